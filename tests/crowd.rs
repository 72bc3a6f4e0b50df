//! Crowds: on the native engine as many connections as descriptors allow, of which none is refused, while others wait no
//! longer than before; on the other one many more than may be open, of which no more are accepted.

#![allow(clippy::expect_used, clippy::panic, reason = "a test says what it expects by panicking")]

mod common;

use common::{Allout, LIMIT, Serving, Speak as _, alone, http::Connection, with_limit};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, SockAddr, Socket, Type};
use std::thread;
use std::time::{Duration, Instant};

/// Connections at once.
const CROWD: usize = 19_000;
/// Descriptors of the server, and of this program.
const DESCRIPTORS: u64 = 20_000;
/// Requests by which the time of others is measured.
const REQUESTS: usize = 400;
/// How much longer others may wait. On idle cores it is 5 ms; these share theirs with whatever runs beside.
const LONGER: Duration = Duration::from_millis(50);

fn p99(server: &Serving) -> Duration {
    let mut connection = server.connect();
    let ask = |_| {
        let began = Instant::now();
        assert_eq!(connection.ask("GET", "/").status, 200);
        began.elapsed()
    };
    let mut times: Vec<_> = (0..REQUESTS).map(ask).collect();
    times.sort();
    times[REQUESTS * 99 / 100]
}

#[test]
fn a_crowd_within_the_limit_on_descriptors_is_held_and_delays_no_others() {
    let _alone = alone();
    let limit = getrlimit(Resource::Nofile);
    if limit.maximum.is_some_and(|maximum| maximum < DESCRIPTORS) {
        eprintln!("not tried: this program may open {:?} descriptors, and needs {DESCRIPTORS}", limit.maximum);
        return;
    }
    setrlimit(Resource::Nofile, Rlimit { current: Some(DESCRIPTORS), ..limit }).expect("below the hard limit");
    let options = ["--engine", "native", "--max-connections", "19500", "--idle-timeout", "10m"];
    let mut server = with_limit(DESCRIPTORS).args(options).start();
    let before = p99(&server);
    let resident = server.resident();
    let mut crowd: Vec<Connection> = (0..CROWD).map(|_| server.connect()).collect();
    for connection in &mut crowd {
        connection.send_raw("GET /livez HTTP/1.1\r\nHost: a\r\n\r\n");
    }
    for (n, connection) in crowd.iter_mut().enumerate() {
        let response = connection.read_response("GET", LIMIT).unwrap_or_else(|error| panic!("connection {n}: {error}"));
        assert_eq!(response.status, 200, "connection {n}");
    }
    assert!(server.descriptors() > CROWD, "{} descriptors", server.descriptors());
    // In KiB; the documentation says 512 bytes at most for each.
    let grown = server.resident() - resident;
    assert!(grown < 19_000 / 2 + 4 * 1024, "{grown} KiB for {CROWD} connections");
    let during = p99(&server);
    assert!(during < before + LONGER, "others waited {during:?}, {before:?} before");
    assert_eq!(crowd[0].ask("GET", "/").status, 200, "the first is still there");
    server.stop();
    assert!(!server.log().contains("panicked"), "{}", server.log());
}

/// Connections that may be open, of [`BEYOND`] at once.
const MOST: u64 = 50;
const BEYOND: usize = 3000;
/// Threads beside those of the connections that may be open. The kernel's queue (128) is accepted at once when a place
/// becomes free. Some are started by the engine's connections to itself, for connections that `tiny_http` has left without
/// a thread: on busy cores more than a hundred. Some 20 are of the service and of `tiny_http` itself. Without the brake
/// there are 900 to 1,600.
const OTHER_THREADS: u64 = 450;

/// Connects without waiting for the handshake.
fn connect_at_once(server: &Serving) -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.set_nonblocking(true).expect("a socket of our own");
    let _ = socket.connect(&SockAddr::from(server.addr)); // it is under way
    socket
}

/// Threads of the server while a crowd arrives and stays, at their most; the clients speak, or are silent.
fn most_threads_in_a_crowd(server: &Serving, speak: bool) -> u64 {
    let (mut crowd, mut most) = (Vec::new(), 0);
    while crowd.len() < BEYOND {
        crowd.extend((0..10).map(|_| connect_at_once(server)));
        most = most.max(server.threads());
    }
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(2) {
        for sockets in crowd.chunks_mut(BEYOND / 10) {
            for socket in sockets.iter_mut().filter(|_| speak) {
                // Fails until it is accepted, and once it is closed.
                let _ = socket.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
                let _ = socket.recv(&mut [std::mem::MaybeUninit::uninit(); 1024]);
            }
            most = most.max(server.threads());
        }
        thread::sleep(Duration::from_millis(1)); // samples, where the clients are silent
    }
    most
}

#[test]
fn a_crowd_makes_no_more_threads_than_the_limit_on_connections_allows() {
    let _alone = alone(); // together the two crowds need more descriptors than one program may have
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).expect("the hard limit");
    let most = MOST.to_string();
    let mut server = Allout::new().args(["--engine", "tiny-http", "--max-connections", &most]).start();
    for speak in [false, true] {
        let threads = most_threads_in_a_crowd(&server, speak);
        println!("{threads} threads for {BEYOND} connections, which speak: {speak}");
        assert!(threads <= MOST + OTHER_THREADS, "{threads} threads");
        assert_eq!(server.get("/").status, 200, "the crowd has left");
    }
    server.stop();
    assert!(!server.log().contains("panicked"), "{}", server.log());
}
