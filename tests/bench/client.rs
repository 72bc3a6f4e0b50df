//! Load: `wrk` with one thread where it is installed, and else a closed loop of our own; and clients that do nothing else
//! than to come and go.

use std::io::{self, Read, Write};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{Timespec, epoll};
use socket2::SockRef;

use crate::servers::REQUEST;

/// What clients have seen.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    pub requests: f64,
    pub per_second: f64,
    /// In milliseconds.
    pub p99: f64,
}

/// Whether `wrk` is there.
pub fn has_wrk() -> bool {
    Command::new("wrk").arg("-v").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
}

/// So many clients ask for a path in a closed loop; with `close`, each time over a new connection.
pub fn load(address: SocketAddr, path: &str, clients: usize, seconds: u64, close: bool) -> io::Result<Seen> {
    if has_wrk() {
        return wrk(address, path, clients, seconds, close);
    }
    let close = if close { "Connection: close\r\n" } else { "" };
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{close}\r\n");
    Loop::new(address, request.into_bytes(), !close.is_empty()).run(clients, Duration::from_secs(seconds))
}

fn wrk(address: SocketAddr, path: &str, clients: usize, seconds: u64, close: bool) -> io::Result<Seen> {
    let mut command = Command::new("wrk");
    command.args(["-t1", "--latency", &format!("-c{clients}"), &format!("-d{seconds}s")]);
    if close {
        command.args(["-H", "Connection: close"]);
    }
    let output = command.arg(format!("http://{address}{path}")).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let word = |line: &str, at: usize| line.split_whitespace().nth(at).map(String::from);
    let find = |what: &str, at: usize| text.lines().find(|line| line.contains(what)).and_then(|line| word(line, at));
    let number = |text: Option<String>| text.and_then(|text| text.parse::<f64>().ok()).unwrap_or(f64::NAN);
    let p99 = text.lines().find(|line| line.trim_start().starts_with("99%")).and_then(|line| word(line, 1));
    Ok(Seen {
        requests: number(find("requests in", 0)),
        per_second: number(find("Requests/sec", 1)),
        p99: p99.map_or(f64::NAN, |text| milliseconds(&text)),
    })
}

/// A time as `wrk` prints it.
fn milliseconds(text: &str) -> f64 {
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor = match unit {
        "us" => 0.001,
        "ms" => 1.0,
        _ => 1000.0,
    };
    number.parse::<f64>().map_or(f64::NAN, |number| number * factor)
}

/// A closed loop.
struct Loop {
    address: SocketAddr,
    request: Vec<u8>,
    close: bool,
    clients: Vec<(TcpStream, Instant)>,
    latencies: Vec<Duration>,
}

impl Loop {
    fn new(address: SocketAddr, request: Vec<u8>, close: bool) -> Loop {
        Loop { address, request, close, clients: Vec::new(), latencies: Vec::new() }
    }

    fn connect(&self, ready: &impl rustix::fd::AsFd, key: usize) -> io::Result<(TcpStream, Instant)> {
        let began = Instant::now();
        let mut stream = TcpStream::connect(self.address)?;
        stream.set_nodelay(true)?;
        epoll::add(ready, &stream, epoll::EventData::new_u64(key as u64), epoll::EventFlags::IN)?;
        stream.write_all(&self.request)?;
        stream.set_nonblocking(true)?;
        Ok((stream, began))
    }

    fn run(mut self, clients: usize, span: Duration) -> io::Result<Seen> {
        let ready = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        for key in 0..clients {
            let client = self.connect(&ready, key)?;
            self.clients.push(client);
        }
        let began = Instant::now();
        let mut events = [MaybeUninit::<epoll::Event>::uninit(); 256];
        let limit = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
        while began.elapsed() < span {
            let (events, _) = epoll::wait(&ready, &mut events, Some(&limit))?;
            for event in events.iter() {
                let key = usize::try_from(event.data.u64()).unwrap_or(usize::MAX);
                if self.answered(key)? {
                    let client = self.connect(&ready, key)?;
                    self.clients[key] = client;
                }
            }
        }
        let seconds = began.elapsed().as_secs_f64();
        self.latencies.sort_unstable();
        let requests = self.latencies.len();
        let p99 = self.latencies.get(requests * 99 / 100).map_or(f64::NAN, |p99| p99.as_secs_f64() * 1e3);
        let requests = f64::from(u32::try_from(requests).unwrap_or(u32::MAX));
        Ok(Seen { requests, per_second: requests / seconds, p99 })
    }

    /// Reads an answer and asks again; true if that takes a new connection.
    fn answered(&mut self, key: usize) -> io::Result<bool> {
        let Some((stream, began)) = self.clients.get_mut(key) else { return Ok(false) };
        let mut bytes = [0; 4096];
        let read = match stream.read(&mut bytes) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            read => read?,
        };
        if read == 0 {
            return Ok(true);
        }
        // Every response here is small and comes in one piece, or its body last; so its end is a line's end.
        if bytes[..read].ends_with(b"\n") && !bytes[..read].ends_with(b"\r\n\r\n") {
            let now = Instant::now();
            self.latencies.push(now - *began);
            if self.close {
                return Ok(true);
            }
            *began = now;
            stream.write_all(&self.request)?;
        }
        Ok(false)
    }
}

/// One client that connects, asks, and resets the connection, again and again: connections a second.
pub fn connect_and_reset(address: SocketAddr, span: Duration) -> io::Result<f64> {
    let (began, mut count) = (Instant::now(), 0_u32);
    while began.elapsed() < span {
        let mut stream = TcpStream::connect(address)?;
        stream.write_all(REQUEST)?;
        SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
        count += 1;
    }
    Ok(f64::from(count) / began.elapsed().as_secs_f64())
}
