//! Stopping under load loses nothing: small versions of what the load client measures at length.

#![allow(clippy::expect_used, clippy::panic, reason = "a test says what it expects by panicking")]

#[path = "load/client.rs"]
mod client;
mod common;

use client::{Load, Mode, Report, Running};
use common::http;
use common::{Allout, LIMIT, Serving, Speak as _, alone, wait_until, wait_until_draining};
use rustix::process::Signal;
use std::io::ErrorKind;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const RUNS: usize = 3;

/// What a machine that is busy with something else may add to any period.
const MARGIN: Duration = Duration::from_secs(5);

fn load(server: &Serving, clients: usize, mode: Mode) -> Load {
    Load {
        mode,
        lasts: LIMIT,
        // A client whose SYN is dropped while the port closes tries again sooner than the kernel does (1 s).
        connect_limit: Duration::from_millis(200),
        ..Load::new(server.addr, clients)
    }
}

/// Runs the load until every client has got some answers, then does what ends the server, and waits for both.
fn end_under(mut server: Serving, load: Load, cause: impl FnOnce(&Serving)) -> (Serving, Report) {
    let (clients, lasts) = (load.clients, load.lasts);
    let running = Running::start(load, Some(server.id())).expect("the clients start");
    let enough = clients as u64 * 8;
    wait_until(LIMIT, &format!("{enough} answers"), || running.answered() >= enough);
    running.cause(|| cause(&server));
    let report = running.finish(Some(lasts));
    println!("{report}");
    server.assert_exit(0, LIMIT);
    (server, report)
}

/// Nothing was lost, nothing was answered with an error, and the clients did see the end.
#[track_caller]
fn assert_nothing_lost(report: &Report) {
    let counts = &report.counts;
    let told: Vec<_> = counts.losses.iter().map(|l| format!("\n  {l}")).collect();
    assert_eq!(counts.lost, 0, "{report}{}", told.concat());
    assert_eq!(counts.statuses.keys().copied().collect::<Vec<_>>(), [200], "{report}");
    assert!(counts.refused > 0, "no client saw the port closed: {report}");
}

fn loses_nothing(args: &[&str], clients: usize, mode: Mode, slow_share: u64) {
    for _ in 0..RUNS {
        let server = Allout::new().args(args.iter().copied()).start();
        let load = Load { slow_share, ..load(&server, clients, mode) };
        let (_server, report) = end_under(server, load, |server| server.signal(Signal::TERM));
        assert_nothing_lost(&report);
    }
}

#[test]
fn sigterm_loses_nothing_of_kept_connections() {
    let _alone = alone();
    loses_nothing(&[], 32, Mode::KeepAlive, 0);
}

/// Their packets pass the filter that keeps other clients from connecting during a stop.
#[test]
fn sigterm_loses_nothing_of_clients_whose_packets_have_the_greatest_ttl() {
    let _alone = alone();
    for mode in [Mode::KeepAlive, Mode::Close] {
        let server = Allout::new().start();
        let load = Load { full_ttl: true, ..load(&server, 32, mode) };
        let (server, report) = end_under(server, load, |server| server.signal(Signal::TERM));
        assert_nothing_lost(&report);
        assert!(server.log().contains("all out after"), "{}", server.log());
    }
}

/// The kernel ignores them until the end, so that they may reach the next instance.
#[test]
fn new_connections_are_not_refused_while_a_request_is_in_flight() {
    let _alone = alone();
    // Longer than the time after which connections that pass the filter are refused.
    let mut server = Allout::new().args(["--timeout-delay", "1500ms", "--keepalive-min", "1s"]).start();
    let (mut slow, mut late) = (server.connect(), server.connect());
    slow.request("GET", "/timeout");
    server.wait_until_read(&slow);
    server.signal(Signal::TERM);
    assert_eq!(slow.expect_response("GET").status, 200);
    late.request("GET", "/timeout");
    let answered = thread::spawn(move || late.expect_response("GET").status);
    wait_until(LIMIT, "the end of accepting", || server.log().contains("no longer accepting"));
    while !answered.is_finished() {
        let refused = TcpStream::connect_timeout(&server.addr, Duration::from_millis(100)).map(drop);
        let is_ignored = refused.as_ref().is_err_and(|error| error.kind() == ErrorKind::TimedOut);
        assert!(is_ignored || answered.is_finished(), "{refused:?}");
    }
    assert_eq!(answered.join().expect("it is answered"), 200);
    server.assert_exit(0, LIMIT);
}

#[test]
fn sigterm_loses_nothing_of_a_connection_for_each_request() {
    let _alone = alone();
    loses_nothing(&[], 32, Mode::Close, 0);
}

#[test]
fn sigterm_loses_nothing_of_pipelined_requests() {
    let _alone = alone();
    loses_nothing(&[], 32, Mode::Pipeline(4), 0);
}

#[test]
fn sigterm_loses_nothing_of_a_mix_with_slow_requests() {
    let _alone = alone();
    loses_nothing(&["--timeout-delay", "300ms"], 32, Mode::KeepAlive, 10);
    loses_nothing(&["--timeout-delay", "300ms"], 32, Mode::Close, 10);
}

#[test]
fn sigterm_loses_nothing_of_many_clients() {
    let _alone = alone();
    loses_nothing(&[], 256, Mode::KeepAlive, 0);
}

#[test]
fn sigterm_loses_nothing_while_the_cores_are_busy() {
    let _alone = alone();
    let stop = Arc::new(AtomicBool::new(false));
    let cores = thread::available_parallelism().map_or(2, usize::from);
    let spinners: Vec<_> = (0..cores)
        .map(|_| {
            let stop = Arc::clone(&stop);
            thread::spawn(move || while !stop.load(Ordering::Relaxed) {})
        })
        .collect();
    let result = std::panic::catch_unwind(|| {
        loses_nothing(&[], 32, Mode::KeepAlive, 0);
        loses_nothing(&[], 32, Mode::Close, 0);
    });
    stop.store(true, Ordering::Relaxed);
    for spinner in spinners {
        spinner.join().expect("a loop does not panic");
    }
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn requests_pipelined_before_the_drain_are_answered() {
    let _alone = alone();
    for _ in 0..RUNS {
        let server = Allout::new().start();
        let load = load(&server, 16, Mode::Pipeline(4));
        let (_server, report) = end_under(server, load, |server| server.signal(Signal::TERM));
        assert_nothing_lost(&report);
        assert_eq!(report.counts.behind_close_reached, 0, "had reached the server before the signal: {report}");
    }
}

#[test]
fn requests_pipelined_behind_a_slow_one_are_answered() {
    let _alone = alone();
    let mut server = Allout::new().args(["--timeout-delay", "1s"]).start();
    let mut connection = server.connect();
    let request = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: allout.test\r\n\r\n");
    connection.send_raw(["/timeout", "/?user=2", "/?user=3", "/?user=4"].map(request).concat());
    server.wait_until_read(&connection);
    server.signal(Signal::TERM);
    assert_eq!(connection.expect_response("GET").status, 200);
    for name in ["2", "3", "4"] {
        let response = connection.expect_response("GET");
        assert_eq!((response.status, response.text()), (200, format!("hello, {name}")));
        assert_eq!(response.closes(), name == "4", "{response:?}");
    }
    connection.expect_end();
    server.assert_exit(0, LIMIT);
}

#[test]
fn a_drain_delay_loses_nothing_and_accepts_every_connection_meanwhile() {
    let _alone = alone();
    for mode in [Mode::KeepAlive, Mode::Close] {
        let delay = Duration::from_secs(1);
        let server = Allout::new().args(["--drain-delay", "1s"]).start();
        let load = Load { retry: true, ..load(&server, 16, mode) };
        let mut server = server;
        // These clients run until their time is over, before the delay ends.
        let load = Load { lasts: Duration::from_millis(900), ..load };
        let began = Instant::now();
        let running = Running::start(load, Some(server.id())).expect("the clients start");
        running.cause(|| server.signal(Signal::TERM));
        let report = running.finish(None);
        println!("{report}");
        // On a machine so busy that the clients ended late, the port may have been closed already.
        if began.elapsed() < delay {
            assert_eq!((report.counts.refused, report.counts.waiting), (0, 0), "{report}");
        }
        assert_eq!(report.counts.lost, 0, "{report}");
        assert_eq!(report.counts.statuses.keys().copied().collect::<Vec<_>>(), [200], "{report}");
        server.assert_exit(0, LIMIT);
    }
}

#[test]
fn the_end_of_a_drain_delay_loses_nothing() {
    let _alone = alone();
    for mode in [Mode::KeepAlive, Mode::Close, Mode::Pipeline(4)] {
        let server = Allout::new().args(["--drain-delay", "300ms"]).start();
        let load = load(&server, 32, mode);
        let (_server, report) = end_under(server, load, |server| server.signal(Signal::TERM));
        assert_nothing_lost(&report);
    }
}

#[test]
fn shutdown_loses_nothing_its_own_response_included() {
    let _alone = alone();
    for mode in [Mode::KeepAlive, Mode::Close, Mode::Pipeline(4)] {
        let server = Allout::new().start();
        let load = load(&server, 32, mode);
        let (_server, report) = end_under(server, load, |server| {
            let mut connection = server.connect();
            assert_eq!(connection.ask("POST", "/shutdown").status, 200);
            connection.expect_end();
        });
        assert_nothing_lost(&report);
    }
}

#[test]
fn every_client_may_ask_for_the_shutdown_at_once() {
    let _alone = alone();
    let server = Allout::new().start();
    let load = Load { slow_share: 2, slow_path: "/shutdown".to_owned(), ..load(&server, 32, Mode::KeepAlive) };
    let running = Running::start(load, Some(server.id())).expect("the clients start");
    running.cause(|| ());
    let report = running.finish(Some(LIMIT));
    println!("{report}");
    let mut server = server;
    server.assert_exit(0, LIMIT);
    assert_nothing_lost(&report);
}

#[test]
fn an_exit_right_after_the_start_loses_nothing() {
    let _alone = alone();
    for _ in 0..RUNS {
        let server = Allout::new().start();
        let running = Running::start(load(&server, 32, Mode::KeepAlive), Some(server.id())).expect("the clients start");
        running.cause(|| server.signal(Signal::TERM));
        let report = running.finish(Some(LIMIT));
        println!("{report}");
        let mut server = server;
        server.assert_exit(0, LIMIT);
        assert_eq!(report.counts.lost, 0, "{report}");
    }
}

#[test]
fn idle_connections_do_not_delay_the_exit_after_the_last_response() {
    let _alone = alone();
    let mut server = Allout::new().args(["--timeout-delay", "1s"]).start();
    let mut idle: Vec<_> = (0..200)
        .map(|_| {
            let mut connection = server.connect();
            assert_eq!(connection.ask("GET", "/").status, 200);
            connection
        })
        .collect();
    let mut slow = server.connect();
    slow.request("GET", "/timeout");
    server.wait_until_read(&slow);
    server.signal(Signal::TERM);
    let response = slow.expect_response("GET");
    let answered = Instant::now();
    assert_eq!(response.status, 200, "{response:?}");
    server.assert_exit(0, LIMIT);
    assert!(answered.elapsed() < MARGIN, "the exit came {:?} after the response", answered.elapsed());
    for connection in &mut idle {
        connection.expect_end();
    }
}

#[test]
fn a_request_on_an_idle_connection_within_the_minimum_keep_alive_is_answered() {
    let _alone = alone();
    let mut server = Allout::new().args(["--keepalive-min", "10s"]).start();
    let mut idle: Vec<_> = (0..8)
        .map(|_| {
            let mut connection = server.connect();
            assert_eq!(connection.ask("GET", "/").status, 200);
            connection
        })
        .collect();
    server.signal(Signal::TERM);
    let mut spare = idle.split_off(4);
    wait_until_draining(|| spare.pop().expect("four connections suffice"));
    drop(spare);
    for connection in &mut idle {
        let response = connection.ask("GET", "/?user=late");
        assert_eq!((response.status, response.text().as_str()), (200, "hello, late"));
        assert!(response.closes(), "does not say that it is the last: {response:?}");
        connection.expect_end();
    }
    server.assert_exit(0, LIMIT);
}
