//! The load client counts correctly: each outcome that a request can have is provoked here, and counted.

#![allow(clippy::expect_used, clippy::panic, reason = "a test says what it expects by panicking")]

#[path = "load/client.rs"]
mod client;
#[path = "load/http.rs"]
mod http;

use client::{Load, Mode, Report, Running};
use http::{Connection, Look, NoResponse};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(20);
const WHOLE: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
const LAST: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello";

/// A server that does this with its first connections, one after the other, and then is gone.
fn server(connections: usize, act: impl Fn(TcpStream) + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let addr = listener.local_addr().expect("a bound socket has an address");
    thread::spawn(move || {
        for _ in 1..connections {
            act(listener.accept().expect("a client comes").0);
        }
        let (last, _) = listener.accept().expect("a client comes");
        // Before the last: a client that comes once more must be refused, not left in the queue and then reset.
        drop(listener);
        act(last);
    });
    addr
}

/// Reads so many requests.
fn take(stream: &mut TcpStream, requests: usize) {
    let mut bytes = Vec::new();
    let mut chunk = [0u8; 4096];
    while bytes.windows(4).filter(|w| w == b"\r\n\r\n").count() < requests {
        let n = stream.read(&mut chunk).expect("a request comes");
        assert!(n > 0, "the client left before it had sent {requests} requests");
        bytes.extend_from_slice(&chunk[..n]);
    }
}

fn say(stream: &mut TcpStream, text: &str) {
    stream.write_all(text.as_bytes()).expect("the client reads");
}

/// Ends a connection by a reset.
fn reset(stream: TcpStream) {
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("a socket option");
    drop(stream);
}

fn run(load: Load) -> Report {
    let report = Running::start(load, None).expect("the client starts").finish(None);
    println!("{report}\n{}", report.json());
    report
}

fn one(addr: SocketAddr, mode: Mode) -> Load {
    Load { mode, lasts: LIMIT, ..Load::new(addr, 1) }
}

/// The counts, in the order of the table in the client: answered, lost, refused, closed while idle, behind close.
fn counts(report: &Report) -> [u64; 5] {
    let c = &report.counts;
    [c.answered, c.lost, c.refused, c.closed_while_idle, c.behind_close]
}

#[test]
fn no_listener() {
    let addr = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port");
    let report = run(Load { clients: 3, ..one(addr, Mode::KeepAlive) });
    assert_eq!(counts(&report), [0, 0, 3, 0, 0]);
}

#[test]
fn a_last_response_is_no_loss() {
    let addr = server(2, |mut s| {
        take(&mut s, 1);
        say(&mut s, WHOLE);
        take(&mut s, 1);
        say(&mut s, LAST);
    });
    assert_eq!(counts(&run(one(addr, Mode::KeepAlive))), [4, 0, 1, 0, 0]);
}

#[test]
fn an_end_instead_of_a_response_is_a_loss() {
    let addr = server(2, |mut s| take(&mut s, 1));
    let report = run(one(addr, Mode::KeepAlive));
    assert_eq!(counts(&report), [0, 2, 1, 0, 0]);
    assert!(report.counts.losses.iter().all(|l| l.instead == NoResponse::Closed { received: 0 }), "{report}");
}

#[test]
fn half_a_response_is_a_loss() {
    let addr = server(3, |mut s| {
        take(&mut s, 1);
        say(&mut s, &WHOLE[..WHOLE.len() - 1]);
    });
    let report = run(one(addr, Mode::Close));
    assert_eq!(counts(&report), [0, 3, 1, 0, 0]);
    assert_eq!(report.counts.errors.get("closed within a response"), Some(&3), "{report}");
}

#[test]
fn half_a_chunked_response_is_a_loss() {
    let addr = server(1, |mut s| {
        take(&mut s, 1);
        say(&mut s, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n");
    });
    assert_eq!(counts(&run(one(addr, Mode::KeepAlive))), [0, 1, 1, 0, 0]);
}

#[test]
fn a_reset_instead_of_a_response_is_a_loss() {
    let addr = server(1, |mut s| {
        take(&mut s, 1);
        reset(s);
    });
    let report = run(one(addr, Mode::KeepAlive));
    assert_eq!(counts(&report), [0, 1, 1, 0, 0]);
    assert_eq!(report.counts.errors.get("reset without a response"), Some(&1), "{report}");
}

#[test]
fn a_queue_that_is_dropped_is_a_loss() {
    // Accepted by the kernel alone: what the client sends goes nowhere, and the end of the listener resets it.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let addr = listener.local_addr().expect("a bound socket has an address");
    let running = Running::start(one(addr, Mode::KeepAlive), None).expect("the client starts");
    let deadline = Instant::now() + LIMIT;
    // The request is there when the connection could be read from; it need not be accepted for that.
    while !has_queued_bytes(addr) {
        assert!(Instant::now() < deadline, "waited {LIMIT:?} for a request in the queue");
        thread::sleep(Duration::from_millis(1));
    }
    drop(listener);
    assert_eq!(counts(&running.finish(None)), [0, 1, 1, 0, 0]);
}

/// Whether the kernel holds unread bytes for a connection to this address.
fn has_queued_bytes(addr: SocketAddr) -> bool {
    let port = format!(":{:04X}", addr.port());
    let table = std::fs::read_to_string("/proc/net/tcp").expect("the kernel's table");
    table.lines().any(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        let unread = words.get(4).and_then(|w| w.split(':').nth(1));
        // 01: established. On a listening socket the number would mean something else.
        words.get(1).is_some_and(|w| w.ends_with(&port)) && words[3] == "01" && unread.is_some_and(|n| n != "00000000")
    })
}

#[test]
fn an_end_while_idle_is_no_loss() {
    // The response and the end come as one, so that the client sees the end before it sends again.
    let addr = server(3, |mut s| {
        take(&mut s, 1);
        let cork = socket2::SockRef::from(&s);
        cork.set_tcp_cork(true).expect("a socket option");
        say(&mut s, WHOLE);
        s.shutdown(std::net::Shutdown::Write).expect("the client is there");
        // Until the client has left: an early drop could turn into a reset.
        let _ = s.read(&mut [0u8; 1]);
    });
    let report = run(one(addr, Mode::KeepAlive));
    let [answered, lost, refused, idle, behind] = counts(&report);
    assert_eq!([answered, lost, refused, idle, behind], [3, 0, 1, 3, 0]);
}

#[test]
fn pipelined_behind_close_is_no_loss() {
    let addr = server(2, |mut s| {
        take(&mut s, 4);
        say(&mut s, WHOLE);
        say(&mut s, LAST);
    });
    assert_eq!(counts(&run(one(addr, Mode::Pipeline(4)))), [4, 0, 1, 0, 4]);
}

#[test]
fn pipelined_without_a_close_is_a_loss() {
    let addr = server(2, |mut s| {
        take(&mut s, 4);
        say(&mut s, WHOLE);
    });
    assert_eq!(counts(&run(one(addr, Mode::Pipeline(4)))), [2, 6, 1, 0, 0]);
}

#[test]
fn pipelined_before_the_cause_and_behind_close_is_told_apart() {
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let (came, comes) = std::sync::mpsc::channel();
    let wait = std::sync::Mutex::new(wait);
    let addr = server(1, move |mut s| {
        take(&mut s, 4);
        came.send(()).expect("the test waits");
        wait.lock().expect("no other holds it").recv().expect("the test goes on");
        say(&mut s, LAST);
    });
    let running = Running::start(one(addr, Mode::Pipeline(4)), None).expect("the client starts");
    comes.recv_timeout(LIMIT).expect("the requests come");
    // They may be there before the client has taken the time.
    let deadline = Instant::now() + LIMIT;
    while running.sent() < 4 {
        assert!(Instant::now() < deadline, "waited {LIMIT:?} for the client to have sent");
        thread::sleep(Duration::from_millis(1));
    }
    running.cause(|| go.send(()).expect("the server waits"));
    let report = running.finish(None);
    assert_eq!(counts(&report), [1, 0, 1, 0, 3]);
    assert_eq!(report.counts.behind_close_reached, 3, "{report}");
}

#[test]
fn the_end_of_the_time_is_no_loss() {
    let addr = server(1, |mut s| {
        take(&mut s, 1);
        // Longer than the client's time.
        thread::sleep(Duration::from_millis(300));
        say(&mut s, WHOLE);
        let _ = s.read(&mut [0u8; 1]);
    });
    let load = Load { lasts: Duration::from_millis(100), ..one(addr, Mode::KeepAlive) };
    assert_eq!(counts(&run(load)), [1, 0, 0, 0, 0]);
}

#[test]
fn a_response_that_takes_too_long_is_a_loss() {
    let addr = server(1, |mut s| {
        take(&mut s, 1);
        let _ = s.read(&mut [0u8; 1]);
    });
    let load = Load { response_limit: Duration::from_millis(200), ..one(addr, Mode::KeepAlive) };
    let report = run(load);
    assert_eq!(counts(&report), [0, 1, 1, 0, 0]);
    assert_eq!(report.counts.errors.get("no response in time"), Some(&1), "{report}");
}

#[test]
fn a_look_tells_open_from_closed_from_reset() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let addr = listener.local_addr().expect("a bound socket has an address");
    let pair = || {
        let client = Connection::open(addr, LIMIT).expect("the queue takes it");
        (client, listener.accept().expect("it is in the queue").0)
    };
    let until = |client: &Connection, look: Look| {
        let deadline = Instant::now() + LIMIT;
        while client.look() != look {
            assert!(Instant::now() < deadline, "waited {LIMIT:?} for {look:?}; it is {:?}", client.look());
            thread::sleep(Duration::from_millis(1));
        }
    };
    let (client, mut server) = pair();
    assert_eq!(client.look(), Look::Open);
    say(&mut server, "x");
    until(&client, Look::Unasked);
    let (client, server) = pair();
    drop(server);
    until(&client, Look::Closed);
    let (client, server) = pair();
    reset(server);
    until(&client, Look::Reset);
}

#[test]
fn slow_requests_are_the_share_that_was_asked_for() {
    let addr = server(1, |mut s| {
        for _ in 0..100 {
            take(&mut s, 1);
            say(&mut s, WHOLE);
        }
        take(&mut s, 1);
        say(&mut s, LAST);
    });
    let report = run(Load { slow_share: 10, ..one(addr, Mode::KeepAlive) });
    assert_eq!(counts(&report), [101, 0, 1, 0, 0]);
    let load = Load { slow_share: 10, ..one(addr, Mode::KeepAlive) };
    assert_eq!((0..1000).filter(|n| load.is_slow(*n)).count(), 100);
}
