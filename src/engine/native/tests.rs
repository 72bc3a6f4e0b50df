//! The engine over real sockets, without routes and workers: the target decides how a request is served.

mod deaf;
mod edges;
mod kept;
mod partial_heads;

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::NativeEngine;
use crate::engine::{CloseReason, Ending, Engine as _, Events, Exchange, Serve, Settings};
use crate::http::automatic::HeaderLines;
use crate::http::response::Response;
use crate::sync::lock;

/// Long enough for anything here on a busy machine.
const LIMIT: Duration = Duration::from_secs(10);

/// An engine with its threads.
struct Server {
    engine: Arc<NativeEngine>,
    address: SocketAddr,
    threads: Vec<JoinHandle<()>>,
}

fn settings() -> Settings {
    Settings {
        max_connections: 100,
        idle_timeout: LIMIT,
        request_timeout: LIMIT,
        keepalive_min: Duration::from_millis(50),
        leak_limit: 1,
        receivers: 2,
        max_discard: 1024,
        automatic: HeaderLines::DEFAULT,
    }
}

/// Exchanges that were kept, until they are dropped.
static KEPT: Mutex<Vec<super::Exchange>> = Mutex::new(Vec::new());

/// Requests for `/hold` that have arrived, and those that may be answered.
static HELD: AtomicUsize = AtomicUsize::new(0);
static RELEASED: AtomicUsize = AtomicUsize::new(0);

/// `/hold` holds its receiver up until it is released. `/keep` is kept, and dropped by `/drop`; `/panic` panics. `/worker`
/// is answered by another thread, `/echo` with its body, `/never` not at all; all others are answered at once.
fn serve(exchange: Exchange) -> Option<Exchange> {
    let Exchange::Native(mut exchange) = exchange else { unreachable!() };
    let target = exchange.target().to_owned();
    let close = exchange.head().is_err();
    if target.starts_with("/worker") || target.starts_with("/echo") || !exchange.body().buffered {
        thread::spawn(move || {
            let mut body = Vec::new();
            let mut buffer = [0; 1000];
            let response = loop {
                if target == "/worker/deny" {
                    break Response::from(403);
                }
                match exchange.read_body(&mut buffer) {
                    Ok(0) if target == "/worker/reader" => {
                        break Response::reader(io::repeat(b'x').take(100_000), None);
                    }
                    Ok(0) => break Response::bytes(body),
                    Ok(count) => body.extend_from_slice(&buffer[..count]),
                    Err(error) => break Response::text(format!("{:?}", error.kind())).with_status(400),
                }
            };
            exchange.respond(response, close, "id");
        });
    } else if target.starts_with("/never") {
        thread::spawn(move || {
            thread::park_timeout(Duration::from_secs(1));
            drop(exchange);
        });
    } else {
        match target.as_str() {
            "/panic" => panic!("the receiver's own panic"),
            "/hold" => {
                let number = HELD.fetch_add(1, Ordering::SeqCst) + 1;
                wait_until("the receiver to be released", || RELEASED.load(Ordering::SeqCst) >= number);
            }
            "/drop" => drop(std::mem::take(&mut *lock(&KEPT))),
            _ if target.starts_with("/keep") => {
                lock(&KEPT).push(exchange);
                return None;
            }
            _ => {}
        }
        let response = match exchange.head() {
            Ok(_) => Response::text(target),
            Err(rejection) => Response::error(rejection.status, rejection.reason),
        };
        exchange.respond(response, close, "id");
    }
    None
}

impl Server {
    fn start(settings: Settings) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let events = Events { changed: Box::new(|| {}), leaking: Box::new(|_, _| {}) };
        let engine = Arc::new(NativeEngine::new(&listener, settings, events).unwrap());
        let serve: Arc<Serve> = Arc::new(serve);
        Arc::clone(&engine).start(&serve).unwrap();
        let threads = Arc::clone(&engine).threads().into_iter().map(|thread| {
            thread::Builder::new().name(thread.name.to_owned()).spawn(move || (thread.run)().unwrap()).unwrap()
        });
        let threads = threads.collect();
        Server { engine, address, threads }
    }

    fn connect(&self) -> TcpStream {
        let client = TcpStream::connect(self.address).unwrap();
        client.set_read_timeout(Some(LIMIT)).unwrap();
        client
    }

    /// Everything that the server sends to one client that sends this, until it closes.
    fn talk(&self, bytes: &[u8]) -> String {
        let mut client = self.connect();
        client.write_all(bytes).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).unwrap();
        String::from_utf8(answer).unwrap()
    }

    /// The statuses of the responses.
    fn statuses(&self, bytes: &[u8]) -> Vec<u16> {
        let answer = self.talk(bytes);
        let lines = answer.split("HTTP/1.").skip(1);
        lines.filter_map(|rest| rest.get(2..5)?.parse().ok()).collect()
    }

    fn closed(&self, why: CloseReason) -> u64 {
        self.engine.stats().closed[why as usize].load(Ordering::Relaxed)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.engine.interrupt();
        for thread in self.threads.drain(..) {
            let result = thread.join();
            assert!(result.is_ok() || thread::panicking(), "a receiver has panicked");
        }
    }
}

#[track_caller]
fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !holds() {
        assert!(Instant::now() < deadline, "waited for {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

const GET: &[u8] = b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n";

#[test]
fn requests_are_answered_one_after_the_other_in_one_write_or_many_and_after_half_a_close() {
    let server = Server::start(settings());
    assert_eq!(server.statuses(GET), [200]);
    assert_eq!(server.statuses(&GET.repeat(100)), [200; 100]);
    let worker = b"GET /worker HTTP/1.1\r\nHost: h\r\n\r\n";
    assert_eq!(server.statuses(&[GET, worker, GET, worker].concat()), [200; 4]);
    let mut client = server.connect();
    for byte in GET {
        client.write_all(&[*byte]).unwrap();
    }
    let mut answer = [0; 12];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
    drop(client);
    wait_until("all to be closed", || server.engine.connections() == 0);
    assert_eq!(server.engine.in_flight(), 0);
}

#[test]
fn bodies_are_read_however_they_are_framed_and_arrive() {
    let server = Server::start(settings());
    let head = "POST /echo HTTP/1.1\r\nHost: h\r\n";
    let long = "x".repeat(300_000);
    for (body, framed) in [
        ("hello", "Content-Length: 5\r\n\r\nhello".to_owned()),
        (
            "hello, world",
            "Transfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n7\r\n, world\r\n0\r\nX: y\r\n\r\n".to_owned(),
        ),
        (&long, format!("Content-Length: {}\r\n\r\n{long}", long.len())),
        (&long, format!("Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{long}\r\n0\r\n\r\n", long.len())),
    ] {
        let answer = server.talk(format!("{head}{framed}{}", std::str::from_utf8(GET).unwrap()).as_bytes());
        assert!(answer.contains(&format!("\r\n\r\n{body}HTTP/1.1 200")), "{} bytes", answer.len());
        assert!(answer.ends_with("/a"), "the next request is found behind the body");
    }
    for (why, framed) in [
        ("UnexpectedEof", "Content-Length: 5\r\n\r\nhell"),
        ("UnexpectedEof", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"),
        ("InvalidData", "Transfer-Encoding: chunked\r\n\r\n5\r\nhelloX"),
    ] {
        let answer = server.talk(format!("{head}{framed}").as_bytes());
        assert!(answer.contains(" 400 ") && answer.contains("Connection: close") && answer.ends_with(why), "{answer}");
    }
}

#[test]
fn the_client_is_told_to_continue_only_when_the_body_is_read_and_only_if_it_waits() {
    let server = Server::start(settings());
    let head = |target: &str| {
        format!("POST {target} HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
    };
    let mut client = server.connect();
    client.write_all(head("/echo").as_bytes()).unwrap();
    let mut interim = [0; 25];
    client.read_exact(&mut interim).unwrap();
    assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
    client.write_all(b"hello").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("hello"), "{answer}");

    assert_eq!(server.statuses(format!("{}hello", head("/echo")).as_bytes()), [200], "it has not waited");
}

#[test]
fn what_is_no_request_is_answered_counted_and_closed() {
    let server = Server::start(settings());
    for bytes in [&b"\x16\x03\x01\x02\x00\x01\x00"[..], b"GET\r\n\r\n", b"GET / HTTP/1.1\n\n", b"\x00"] {
        let mut client = server.connect();
        client.write_all(bytes).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap(); // the client has not closed
        assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("Connection: close"), "{answer}");
    }
    assert_eq!(server.closed(CloseReason::Unparsable), 4);
    assert_eq!(server.statuses(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), [505]);
    assert_eq!(server.statuses(b"GET / HTTP/1.1\r\nHost: h\r\n folded\r\n\r\n"), [400]);
    assert_eq!(server.statuses(&[b"GET / HTTP/1.1\r\nHost: h\r\nx: ", vec![b'x'; 20_000].as_slice()].concat()), [431]);
}

#[test]
fn a_silent_client_and_one_with_a_slow_head_are_closed_after_the_idle_timeout() {
    let server = Server::start(Settings { idle_timeout: Duration::from_millis(100), ..settings() });
    let mut silent = server.connect();
    let mut slow = server.connect();
    slow.write_all(b"GET / HT").unwrap();
    for client in [&mut silent, &mut slow] {
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
    }
    assert_eq!(server.closed(CloseReason::IdleTimeout), 2);
}

#[test]
fn a_late_handler_is_answered_for_and_its_own_response_is_dropped() {
    let server = Server::start(Settings { request_timeout: Duration::from_millis(100), ..settings() });
    let mut client = server.connect();
    client.write_all(b"GET /never HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("Connection: close"), "{answer}");
    assert_eq!(server.engine.in_flight(), 1, "the handler goes on");
    drop(client);
    wait_until("the handler", || server.engine.connections() == 0);
}

#[test]
fn the_503_for_a_late_handler_has_no_body_for_head_and_no_id_of_another_request() {
    let server = Server::start(Settings { request_timeout: Duration::from_millis(100), ..settings() });
    let answer = server.talk(b"HEAD /never HTTP/1.1\r\nHost: h\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 503") && answer.ends_with("\r\n\r\n"), "{answer}");
    assert!(answer.contains("\r\nX-Request-Id: -\r\n"), "{answer}");
}

#[test]
fn a_client_that_does_not_read_blocks_no_other() {
    // Long enough for the others on a machine that is busy with something else.
    let server = Server::start(Settings { request_timeout: Duration::from_secs(1), ..settings() });
    let mut deaf = server.connect();
    deaf.set_nonblocking(true).unwrap();
    let requests = [b"GET /".as_slice(), &[b'a'; 3000], b" HTTP/1.1\r\nHost: h\r\n\r\n"].concat();
    // Until both directions are full.
    while deaf.write(&requests.repeat(10)).is_ok() {
        assert_eq!(server.statuses(GET), [200]);
    }
    assert_eq!(server.statuses(GET), [200]);
    wait_until("the deaf client to be closed", || server.closed(CloseReason::SlowReader) == 1);
}

#[test]
fn connections_beyond_the_limit_take_the_place_of_idle_ones() {
    let server = Server::start(Settings { max_connections: 10, receivers: 1, ..settings() });
    let mut clients: Vec<_> = (0..30).map(|_| server.connect()).collect();
    for client in clients.iter_mut().skip(20) {
        client.write_all(GET).unwrap();
        let mut answer = [0; 12];
        client.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200");
    }
    // The last one is answered before another is closed for it.
    wait_until("others to be closed", || server.closed(CloseReason::Evicted) == 20);
    wait_until("their places to be free", || server.engine.connections() == 10);
}

#[test]
fn a_drain_answers_what_was_sent_and_closes_what_is_silent() {
    let server = Server::start(settings());
    let mut silent = server.connect();
    let mut late = server.connect();
    let mut busy = server.connect();
    busy.write_all(b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\n").unwrap();
    wait_until("three connections", || server.engine.connections() == 3 && server.engine.in_flight() == 1);
    server.engine.stop_state().announce_close();
    assert!(server.engine.has_requests_older_than_drain());
    server.engine.stop_accepting(Ending::Filter);
    late.write_all(GET).unwrap();
    let mut answer = String::new();
    late.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("Connection: close"), "{answer}");
    drop(late);
    assert_eq!(silent.read(&mut [0]).unwrap(), 0);
    assert_eq!(server.closed(CloseReason::Drain), 1);
    assert!(!server.engine.is_quiescent());
    busy.write_all(b"hello").unwrap();
    answer.clear();
    busy.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with("hello") && answer.contains("Connection: close"), "{answer}");
    drop(busy);
    wait_until("the engine to be quiescent", || server.engine.is_quiescent());
}

#[test]
fn a_handover_leaves_the_queue_to_the_next_holder() {
    let server = Server::start(settings());
    let mut before = server.connect();
    wait_until("it to be accepted", || server.engine.connections() == 1);
    server.engine.stop_accepting(Ending::HandOver);
    wait_until("the engine to stop", || server.engine.connections() == 0 && server.engine.is_quiescent());
    assert_eq!(before.read(&mut [0]).unwrap(), 0);
    let _after = server.connect();
    assert_eq!(server.engine.gate().accept_queue_len(), 1);
}

#[test]
fn connections_send_at_once_and_find_out_that_a_client_is_gone() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let events = Events { changed: Box::new(|| {}), leaking: Box::new(|_, _| {}) };
    let _engine = NativeEngine::new(&listener, settings(), events).unwrap();
    let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (connection, _) = listener.accept().unwrap();
    let connection = socket2::SockRef::from(&connection);
    assert!(connection.tcp_nodelay().unwrap() && connection.keepalive().unwrap());
}

/// For `wrk`, by hand: `cargo test --release --lib native::tests::bench -- --ignored`.
#[test]
#[ignore = "runs for ever"]
fn bench() {
    let server = Server::start(Settings { max_connections: 20_000, ..settings() });
    println!("listening on {} as {}", server.address, std::process::id());
    thread::sleep(Duration::from_secs(3600));
}
