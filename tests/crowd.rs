//! As many connections as descriptors allow, on the native engine: none is refused, and others wait no longer than before.

#![allow(clippy::expect_used, clippy::panic, reason = "a test says what it expects by panicking")]

mod common;

use common::{LIMIT, Serving, Speak as _, http::Connection, with_limit};
use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
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
        connection.say("GET /livez HTTP/1.1\r\nHost: a\r\n\r\n");
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
    server.signal(Signal::TERM);
    server.assert_exit(0, LIMIT);
    assert!(!server.log().contains("panicked"), "{}", server.log());
}
