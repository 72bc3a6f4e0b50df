//! How fast it is, as ratios: allout in this process, against a bare thread for each connection with a fixed reply (the
//! bound for any server that has a thread for each connection), against bare `tiny_http` with a fixed reply (the bound
//! for any server on `tiny_http`: one thread receives and writes), and against plain `tiny_http` with a pool of threads.
//!
//! `cargo bench` runs it; `cargo bench -- SECONDS PAIRS` takes longer or shorter. One thread of this program is the
//! client, so that on two cores the server has the other. The servers take turns within each round, and what is compared
//! is always of the same round: a machine that is slower for a while is slower for all of them. Where the rounds differ
//! by more than a quarter, it says that the machine is too noisy to tell.

use std::io::{self, Read, Write};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use allout::Service;
use progress::Line;
use rustix::event::{Timespec, epoll};
use socket2::SockRef;

#[path = "../load/progress.rs"]
mod progress;

const REQUEST: &[u8] = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";
const CONNECTIONS: [usize; 4] = [1, 16, 64, 256];
/// Rounds of one server that differ by more than this, from the lowest to the highest, tell nothing.
const NOISY: f64 = 1.25;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // cargo passes `--bench`; what is left are our own two numbers.
    let mut numbers = std::env::args().skip(1).filter(|argument| !argument.starts_with('-'));
    let seconds: f64 = numbers.next().map_or(Ok(1.0), |number| number.parse())?;
    let pairs: usize = numbers.next().map_or(Ok(5), |number| number.parse())?;

    let mut config = allout::Config::default();
    config.listen = vec!["127.0.0.1:0".parse()?];
    let service = Service::with_config(config).start()?;
    let bound = bound()?;
    let bare = bare()?;
    let plain = plain(thread::available_parallelism().map_or(2, usize::from))?;
    println!("requests per second, medians of {pairs} rounds of {seconds} s each");
    println!(
        "{:>11} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}",
        "connections", "allout", "bound", "bare", "plain", "to bound", "to bare", "to plain"
    );
    let mut noisy = false;
    let loads = u32::try_from(CONNECTIONS.len() * pairs * 4)?;
    let mut line = Line::new(Duration::from_secs_f64(seconds * f64::from(loads)));
    for connections in CONNECTIONS {
        let mut rounds: Vec<[f64; 4]> = Vec::new();
        for _ in 0..pairs {
            let mut round = [0.0; 4];
            line.show(format_args!("{connections} connections"));
            for (figure, address) in round.iter_mut().zip([service.address(), bound, bare, plain]) {
                *figure = load(address, connections, Duration::from_secs_f64(seconds))?;
            }
            rounds.push(round);
        }
        let of = |what: &dyn Fn(&[f64; 4]) -> f64| median(rounds.iter().map(what).collect());
        line.clear();
        print!("{connections:>11}");
        for server in 0..4 {
            print!(" {:>9.0}", of(&|round| round[server]));
        }
        // Plain tiny_http starves connections in bursts; with none answered there is nothing to compare with.
        for peer in 1..4 {
            print!(" {:>9.2}", of(&|round| round[0] / round[peer].max(1.0)));
        }
        println!();
        noisy |= (0..2).any(|server| spread(rounds.iter().map(|round| round[server])) > NOISY);
    }
    if noisy {
        println!("this machine is too noisy to tell: rounds of the same server differ by more than a quarter");
    }
    drop(service);
    Ok(())
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}

fn spread(figures: impl Iterator<Item = f64> + Clone) -> f64 {
    figures.clone().fold(f64::MIN, f64::max) / figures.fold(f64::MAX, f64::min)
}

/// What allout answers, as long as it is.
const REPLY: &[u8] = b"HTTP/1.1 200 OK\r\nServer: allout\r\nContent-Type: text/plain; charset=utf-8\r\n\
    X-Content-Type-Options: nosniff\r\nX-Request-Id: 0123456789-1\r\nCache-Control: no-store\r\n\
    Date: Thu, 01 Jan 1970 00:00:00 GMT\r\nContent-Length: 3\r\n\r\nok\n";

/// A thread for each connection, and the same bytes for whatever is asked.
fn bound() -> io::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || -> io::Result<()> {
                stream.set_nodelay(true)?;
                let mut request = [0; 4096];
                while stream.read(&mut request)? > 0 {
                    stream.write_all(REPLY)?;
                }
                Ok(())
            });
        }
    });
    Ok(address)
}

/// `tiny_http` with as little as can be on top: whatever is asked, one thread writes the same bytes, all at once.
fn bare() -> io::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    SockRef::from(&listener).set_tcp_nodelay(true)?; // connections inherit it
    let address = listener.local_addr()?;
    let server = tiny_http::Server::from_listener(listener, None).map_err(io::Error::other)?;
    thread::spawn(move || {
        for request in server.incoming_requests() {
            let mut writer = request.into_writer();
            let _ = writer.write_all(REPLY).and_then(|()| writer.flush()); // fails if the client has left
        }
    });
    Ok(address)
}

/// `tiny_http` as its own documentation shows it: a few threads that receive and respond.
fn plain(threads: usize) -> io::Result<SocketAddr> {
    let server = Arc::new(tiny_http::Server::http("127.0.0.1:0").map_err(io::Error::other)?);
    for _ in 0..threads {
        let server = Arc::clone(&server);
        thread::spawn(move || {
            for request in server.incoming_requests() {
                let _ = request.respond(tiny_http::Response::from_string("ok\n"));
            }
        });
    }
    server.server_addr().to_ip().ok_or_else(|| io::Error::other("no address"))
}

/// Requests answered per second, with so many connections in a closed loop.
fn load(address: SocketAddr, connections: usize, span: Duration) -> io::Result<f64> {
    let ready = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let mut clients = Vec::new();
    for key in 0..connections {
        let mut stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        epoll::add(&ready, &stream, epoll::EventData::new_u64(key as u64), epoll::EventFlags::IN)?;
        stream.write_all(REQUEST)?;
        stream.set_nonblocking(true)?;
        clients.push(stream);
    }
    let (began, mut answered) = (Instant::now(), 0_u32);
    let mut events = [MaybeUninit::<epoll::Event>::uninit(); 256];
    let mut bytes = [0; 4096];
    let limit = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
    while began.elapsed() < span {
        let (events, _) = epoll::wait(&ready, &mut events, Some(&limit))?;
        for event in events.iter() {
            let Some(client) = usize::try_from(event.data.u64()).ok().and_then(|key| clients.get_mut(key)) else {
                continue;
            };
            // Every response here is small and comes in one piece, or its body last; so its end is a line's end.
            let read = client.read(&mut bytes)?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if bytes[..read].ends_with(b"\n") && !bytes[..read].ends_with(b"\r\n\r\n") {
                answered += 1;
                client.write_all(REQUEST)?;
            }
        }
    }
    Ok(f64::from(answered) / began.elapsed().as_secs_f64())
}
