//! One out, all out: every cause, every exit code, and what a drain does in between.

#![allow(clippy::expect_used, clippy::panic, reason = "a test says what it expects by panicking")]

mod common;

use common::http::Connection;
use common::{Allout, LIMIT, Serving, Speak as _, wait_until, wait_until_draining};
use rustix::process::Signal;
use socket2::{Domain, Socket, Type};
use std::net::TcpListener;
use std::time::{Duration, Instant};

/// What a machine that is busy with something else may add to any period.
const MARGIN: Duration = Duration::from_secs(5);

/// Waits until the process has taken its first message, seen from new connections: they are served as long as the
/// drain delay lasts.
fn until_draining_for_new_connections(server: &Serving) {
    wait_until_draining(|| server.connect());
}

/// A connection on which the server has answered once.
fn idle(server: &Serving) -> Connection {
    let mut connection = server.connect();
    assert_eq!(connection.ask("GET", "/").status, 200);
    connection
}

/// A `GET /timeout` that the server has read.
fn in_flight(server: &Serving) -> Connection {
    let mut connection = server.connect();
    connection.request("GET", "/timeout");
    server.wait_until_read(&connection);
    connection
}

fn a_signal_ends_it(signal: Signal, name: &str) {
    let mut server = Allout::new().start();
    assert_eq!(server.get("/").status, 200);
    server.signal(signal);
    server.assert_exit(0, LIMIT);
    assert!(server.log().contains(name), "the log does not name {name}:\n{}", server.log());
}

#[test]
fn sigterm_ends_it() {
    a_signal_ends_it(Signal::TERM, "SIGTERM");
}

#[test]
fn sigint_ends_it() {
    a_signal_ends_it(Signal::INT, "SIGINT");
}

#[test]
fn sigquit_ends_it() {
    a_signal_ends_it(Signal::QUIT, "SIGQUIT");
}

fn shutdown_ends_it(method: &str) {
    let mut server = Allout::new().start();
    let mut connection = server.connect();
    let response = connection.ask(method, "/shutdown");
    assert_eq!(response.status, 200, "{response:?}");
    connection.expect_end();
    server.assert_exit(0, LIMIT);
    assert!(server.log().contains("/shutdown"), "the log does not name /shutdown:\n{}", server.log());
}

#[test]
fn get_shutdown_ends_it() {
    shutdown_ends_it("GET");
}

#[test]
fn post_shutdown_ends_it() {
    shutdown_ends_it("POST");
}

#[test]
fn a_signal_before_the_first_request_ends_it() {
    let mut server = Allout::new().start();
    server.stop();
}

#[test]
fn an_idle_server_leaves_at_once() {
    let mut server = Allout::new().start();
    let told = Instant::now();
    server.stop();
    assert!(told.elapsed() < MARGIN, "took {:?}", told.elapsed());
}

#[test]
fn a_request_in_flight_gets_its_answer_and_the_exit_follows_it() {
    let mut server = Allout::new().args(["--timeout-delay", "1s"]).start();
    let mut connection = in_flight(&server);
    server.signal(Signal::TERM);
    let response = connection.expect_response("GET");
    let answered = Instant::now();
    assert_eq!(response.status, 200, "{response:?}");
    assert!(response.closes(), "does not say that it is the last: {response:?}");
    connection.expect_end();
    server.assert_exit(0, LIMIT);
    // Not at the end of the grace period, which is 30 s.
    assert!(answered.elapsed() < MARGIN, "the exit came {:?} after the response", answered.elapsed());
}

#[test]
fn several_requests_in_flight_get_their_answers() {
    let mut server = Allout::new().args(["--timeout-delay", "1s"]).start();
    let mut connections: Vec<_> = (0..4).map(|_| in_flight(&server)).collect();
    server.signal(Signal::INT);
    for connection in &mut connections {
        let response = connection.expect_response("GET");
        assert_eq!(response.status, 200, "{response:?}");
        connection.expect_end();
    }
    server.assert_exit(0, LIMIT);
}

#[test]
fn shutdown_lets_other_requests_finish() {
    let mut server = Allout::new().args(["--timeout-delay", "1s"]).start();
    let mut connection = in_flight(&server);
    assert_eq!(server.get("/shutdown").status, 200);
    assert_eq!(connection.expect_response("GET").status, 200);
    server.assert_exit(0, LIMIT);
}

#[test]
fn a_connection_from_before_the_drain_is_told_to_close() {
    // A long minimum keep-alive: the drain waits for these connections to send one more request. The request in flight keeps it going.
    let mut server = Allout::new().args(["--keepalive-min", "10s", "--timeout-delay", "3s"]).start();
    // A response of 200 that already carries `close` takes its connection with it, so there are some to spare.
    let mut spare: Vec<_> = (0..8).map(|_| idle(&server)).collect();
    let mut ready = idle(&server);
    let mut slow = in_flight(&server);
    server.signal(Signal::TERM);

    let (mut connection, response) = wait_until_draining(|| spare.pop().expect("eight connections suffice"));
    assert_eq!(response.text(), "draining");
    assert!(response.closes(), "does not say that it is the last: {response:?}");
    connection.expect_end();

    let response = ready.ask("GET", "/readyz");
    assert_eq!((response.status, response.text().as_str()), (503, "draining"));
    assert!(response.closes(), "does not say that it is the last: {response:?}");
    ready.expect_end();

    drop(spare);
    assert_eq!(slow.expect_response("GET").status, 200);
    server.assert_exit(0, LIMIT);
}

#[test]
fn new_connections_are_served_while_the_drain_delay_lasts() {
    let mut server = Allout::new().args(["--drain-delay", "3s"]).start();
    let told = Instant::now();
    server.signal(Signal::TERM);
    let (mut connection, response) = wait_until_draining(|| server.connect());
    assert_eq!(response.text(), "draining");
    assert!(response.closes(), "does not say that it is the last: {response:?}");
    connection.expect_end();
    for (path, status) in [("/readyz", 503), ("/", 200), ("/livez", 200), ("/?user=late", 200)] {
        let mut connection = server.connect();
        let response = connection.ask("GET", path);
        assert_eq!(response.status, status, "{path}: {response:?}");
        assert!(response.closes(), "{path} does not say that it is the last: {response:?}");
        connection.expect_end();
    }
    server.assert_exit(0, LIMIT);
    // A clock that runs out early would end what it promises to serve.
    assert!(told.elapsed() >= Duration::from_secs(3), "left after {:?}", told.elapsed());
}

#[test]
fn handlers_that_watch_the_stop_answer_503_before_the_grace_period_ends() {
    let mut server = Allout::new().args(["--grace", "1s", "--timeout-delay", "30s"]).start();
    let mut connection = in_flight(&server);
    let told = Instant::now();
    server.signal(Signal::TERM);
    let response = connection.expect_response("GET");
    assert_eq!(response.status, 503, "{response:?}");
    assert!(response.closes(), "does not say that it is the last: {response:?}");
    assert!(told.elapsed() < Duration::from_secs(1) + MARGIN, "answered after {:?}", told.elapsed());
    connection.expect_end();
    server.assert_exit(0, LIMIT);
}

/// Told to leave with a grace of a second, it ends with 3 and names what it left behind.
fn is_abandoned(server: &mut Serving, connection: &Connection, method: &str, path: &str) {
    let peer = connection.stream().local_addr().expect("a connected socket has an address").to_string();
    let told = Instant::now();
    server.signal(Signal::TERM);
    server.assert_exit(3, LIMIT);
    let took = told.elapsed();
    assert!(took >= Duration::from_secs(1), "gave up after {took:?} already");
    assert!(took < Duration::from_millis(1500) + MARGIN, "left {took:?} after the signal");
    let log = server.log();
    let line = log.lines().find(|l| l.contains(&peer) && l.contains(path) && l.contains(method));
    let line = line.unwrap_or_else(|| panic!("no line names {method} {path} of {peer}:\n{log}"));
    // The age is what remains to be named: a number with a unit of time.
    let rest = line.replace(&peer, "");
    let age = rest.split(|c: char| !c.is_ascii_alphanumeric() && c != '.').any(|word| {
        let unit = word.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
        unit.len() < word.len() && matches!(unit, "s" | "ms")
    });
    assert!(age, "no age in {line:?}");
}

#[test]
fn a_body_that_never_comes_is_abandoned_and_named() {
    let mut server = Allout::new().args(["--grace", "1s"]).start();
    let mut connection = server.connect();
    connection.send_raw("POST /never-whole HTTP/1.1\r\nHost: allout.test\r\nContent-Length: 5000\r\n\r\nonly this");
    server.wait_until_read(&connection);
    is_abandoned(&mut server, &connection, "POST", "/never-whole");
}

#[test]
fn a_client_that_never_reads_is_abandoned_and_named() {
    let mut server = Allout::new().args(["--grace", "1s"]).start();
    let connection = never_reads(&server);
    is_abandoned(&mut server, &connection, "GET", "/never-read");
}

/// A connection filled with requests whose responses are not read, until the send buffer is full.
fn never_reads(server: &Serving) -> Connection {
    let socket = Socket::new(Domain::for_address(server.addr), Type::STREAM, None).expect("a socket");
    // Before connecting: the window follows from it.
    socket.set_recv_buffer_size(4096).expect("a small buffer");
    socket.connect(&server.addr.into()).expect("connecting");
    let mut connection = Connection::over(socket.into());
    connection.stream().set_write_timeout(Some(Duration::from_secs(1))).expect("a timeout");
    let name = "n".repeat(7000);
    let request = format!("GET /never-read?user={name} HTTP/1.1\r\nHost: allout.test\r\n\r\n");
    // The server's buffers have limits of a few megabytes; this is far more than all of them hold.
    for _ in 0..20_000 {
        if connection.send(request.as_bytes()).is_err() {
            return connection;
        }
    }
    panic!("the server takes requests without end from a client that reads none of the responses");
}

/// Told to leave, with a request in flight that lasts longer than any test.
fn leaving(signal: Signal) -> (Serving, Connection) {
    let server = Allout::new().args(["--timeout-delay", "1h", "--grace", "1h", "--drain-delay", "1h"]).start();
    let connection = in_flight(&server);
    server.signal(signal);
    // Two equal signals at once may become one: the first must have been taken.
    until_draining_for_new_connections(&server);
    assert!(server.is_alive(), "left with a request in flight");
    (server, connection)
}

/// More than the time within which a signal that is repeated counts as one.
const NOT_THE_SAME: Duration = Duration::from_millis(150);

fn a_second_signal_forces_the_exit(first: Signal, second: Signal, code: i32) {
    let (mut server, _connection) = leaving(first);
    std::thread::sleep(NOT_THE_SAME);
    server.signal(second);
    server.assert_exit(code, LIMIT);
}

/// Supervisors signal the process and its group.
#[test]
fn a_signal_that_is_repeated_at_once_counts_as_one() {
    let mut server = Allout::new().args(["--timeout-delay", "1s"]).start();
    let mut connection = in_flight(&server);
    for _ in 0..3 {
        server.signal(Signal::TERM);
        std::thread::sleep(Duration::from_millis(5)); // equal signals that are pending at once are one
    }
    assert_eq!(connection.expect_response("GET").status, 200);
    server.assert_exit(0, LIMIT);
}

#[test]
fn a_second_sigterm_forces_the_exit() {
    a_second_signal_forces_the_exit(Signal::TERM, Signal::TERM, 143);
}

#[test]
fn a_second_sigint_forces_the_exit() {
    a_second_signal_forces_the_exit(Signal::INT, Signal::INT, 130);
}

#[test]
fn a_second_signal_may_be_another() {
    a_second_signal_forces_the_exit(Signal::TERM, Signal::INT, 130);
    a_second_signal_forces_the_exit(Signal::INT, Signal::QUIT, 131);
}

/// As a service manager does whose stop command is a request to `/shutdown`.
#[test]
fn the_first_signal_after_shutdown_forces_nothing() {
    let mut server = Allout::new().args(["--timeout-delay", "1s"]).start();
    let mut connection = in_flight(&server);
    assert_eq!(server.get("/shutdown").status, 200);
    server.signal(Signal::TERM);
    assert_eq!(connection.expect_response("GET").status, 200);
    server.assert_exit(0, LIMIT);
}

#[test]
fn the_port_is_free_after_the_exit() {
    let mut server = Allout::new().start();
    let idle = idle(&server);
    server.stop();
    drop(TcpListener::bind(server.addr).expect("the port is free"));
    // And it can itself start there again at once.
    let again = Allout::new().args(["--listen", &server.addr.to_string()]).start();
    assert_eq!(again.addr, server.addr);
    assert_eq!(again.get("/").status, 200);
    drop(idle);
}

#[test]
fn idle_connections_do_not_hold_the_drain() {
    let mut server = Allout::new().start();
    let mut connections: Vec<_> = (0..50).map(|_| idle(&server)).collect();
    let told = Instant::now();
    server.signal(Signal::TERM);
    for connection in &mut connections {
        connection.expect_end();
    }
    server.assert_exit(0, LIMIT);
    assert!(told.elapsed() < MARGIN, "took {:?}", told.elapsed());
}

#[test]
fn connections_that_never_spoke_do_not_hold_the_drain() {
    let mut server = Allout::new().start();
    let connections: Vec<_> = (0..20).map(|_| server.connect()).collect();
    let mut half = server.connect();
    half.send_raw("GET / HTTP/1.1\r\nHost: al");
    assert_eq!(server.get("/").status, 200);
    let told = Instant::now();
    server.stop();
    assert!(told.elapsed() < MARGIN, "took {:?}", told.elapsed());
    drop(connections);
}

#[test]
fn a_client_that_left_does_not_hold_the_drain() {
    let mut server = Allout::new().args(["--timeout-delay", "1s"]).start();
    drop(in_flight(&server));
    let told = Instant::now();
    server.stop();
    assert!(told.elapsed() < Duration::from_secs(1) + MARGIN, "took {:?}", told.elapsed());
}

#[test]
fn the_log_tells_the_story() {
    let mut server = Allout::new().start();
    server.stop();
    let log = server.log();
    let at = |part: &str| log.find(part).unwrap_or_else(|| panic!("{part:?} is not in the log:\n{log}"));
    assert!(at("listening on http://") < at("SIGTERM"), "{log}");
    let last = log.lines().last().unwrap_or_default();
    assert!(last.contains("ms") || last.contains("µs"), "the last line does not say how long it took: {last:?}");
    assert!(!log.contains("panicked"), "{log}");
}

#[test]
fn nothing_is_printed_on_stdout() {
    let mut server = Allout::new().start();
    assert_eq!(server.get("/").status, 200);
    server.signal(Signal::TERM);
    assert_eq!(server.stdout(), "");
}

#[test]
fn threads_have_names() {
    let server = Allout::new().start();
    assert_eq!(server.get("/").status, 200);
    // Names are given when a thread starts, and it says so itself: look until all have.
    let named = || {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", server.id())).expect("the process is alive");
        let comm = |task: std::fs::DirEntry| {
            let name = std::fs::read_to_string(task.path().join("comm")).ok()?;
            Some((task.file_name().to_string_lossy().into_owned(), name.trim().to_owned()))
        };
        // The first thread bears the program's name, and so does every thread without a name. The HTTP library's own
        // threads are not ours to name; ours must be more than one.
        tasks.flatten().filter_map(comm).filter(|(_, name)| name != "allout").count()
    };
    wait_until(LIMIT, "threads with names of their own", || named() >= 2);
}
