//! Signals and re-exec: a stop that comes at any moment of a re-exec is a stop with code 0, no other signal ends the
//! process, and what happens to the binary, or what the process was started with, is no reason to be down.

#![allow(clippy::expect_used, clippy::panic, reason = "a test says what it expects by panicking")]

#[path = "load/client.rs"]
mod client;
mod common;

use client::{Load, Mode, Running};
use common::http;
use common::place::Place;
use common::{Allout, LIMIT, Serving, Speak as _, alone, wait_until};
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

const BINARY: &str = env!("CARGO_BIN_EXE_allout");
const SERVES: &str = "listening on http://";
/// The first line of every stop, and of every drain before a re-exec: by then the preflight has passed.
const DRAINS: &str = "one out, all out";

fn start(args: &[&str]) -> Serving {
    Allout::new().args(args.iter().copied()).start()
}

/// Waits for the end, but not for ever: a stop that was swallowed is a result, not a reason to give up.
fn end(server: &mut Serving, limit: Duration) -> String {
    let deadline = Instant::now() + limit;
    while server.is_alive() {
        if Instant::now() >= deadline {
            return "still runs".to_owned();
        }
        thread::sleep(Duration::from_millis(1));
    }
    server.wait_exit(LIMIT).to_string()
}

/// Sends SIGHUP, then `then` after each of these delays (a new process each), and tells how the processes ended.
fn after_hangup(then: Signal, delays: impl Iterator<Item = Duration>) -> BTreeMap<String, usize> {
    let (mut ends, began) = (BTreeMap::new(), Instant::now());
    for delay in delays {
        if began.elapsed() > Duration::from_secs(30) {
            break; // each that was swallowed costs its limit
        }
        let mut server = start(&[]);
        server.signal(Signal::HUP);
        thread::sleep(delay); // the moment of the re-exec that the signal falls into
        server.signal(then);
        if then == Signal::USR1 {
            // Neither ends it; it serves on, and a stop is a stop.
            if server.is_alive() {
                let answers = http::Connection::open(server.addr, LIMIT).is_ok_and(|mut connection| {
                    connection.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").is_ok()
                        && connection.read_response("GET", LIMIT).is_ok_and(|response| response.status == 200)
                });
                if !answers {
                    *ends.entry("does not answer".to_owned()).or_default() += 1;
                }
                server.signal(Signal::TERM);
            }
        }
        *ends.entry(end(&mut server, Duration::from_secs(3))).or_default() += 1;
    }
    println!("SIGHUP, then {then:?}: {ends:?}");
    ends
}

#[track_caller]
fn assert_all_end_with_0(ends: &BTreeMap<String, usize>) {
    assert!(ends.keys().all(|end| end == "exit status: 0"), "{ends:?}");
}

/// 0 to 20 ms in `steps` steps.
fn within_20_ms(steps: u64) -> impl Iterator<Item = Duration> {
    (0..steps).map(move |n| Duration::from_micros(20_000 * n / steps))
}

#[test]
fn a_stop_within_20_ms_after_sighup_ends_with_code_0() {
    let _alone = alone();
    assert_all_end_with_0(&after_hangup(Signal::TERM, within_20_ms(160)));
}

#[test]
fn an_interrupt_within_20_ms_after_sighup_ends_with_code_0() {
    let _alone = alone();
    assert_all_end_with_0(&after_hangup(Signal::INT, within_20_ms(60)));
}

#[test]
fn sigusr1_within_20_ms_after_sighup_ends_nothing() {
    let _alone = alone();
    assert_all_end_with_0(&after_hangup(Signal::USR1, within_20_ms(60)));
}

/// All of them at once, many times: the last image ends with code 0.
#[test]
fn signals_of_all_kinds_in_quick_succession_end_nothing_but_a_stop_does() {
    let _alone = alone();
    let mut ends = BTreeMap::new();
    for n in 0..20 {
        let mut server = start(&[]);
        for k in 0..8 {
            server.signal([Signal::HUP, Signal::USR1][(n + k) % 2]);
            thread::sleep(Duration::from_millis((n + k) as u64 % 5)); // another moment each time
        }
        server.signal(Signal::TERM);
        *ends.entry(end(&mut server, Duration::from_secs(3))).or_default() += 1;
    }
    println!("{ends:?}");
    assert_all_end_with_0(&ends);
}

#[test]
fn a_stop_during_a_reexec_loses_nothing() {
    let _alone = alone();
    let mut bad = Vec::new();
    let runs = 16;
    for n in 0..runs {
        let mut server = start(&[]);
        let load = Load {
            mode: if n % 2 == 0 { Mode::KeepAlive } else { Mode::Close },
            lasts: LIMIT,
            connect_limit: Duration::from_millis(200),
            ..Load::new(server.addr, 16)
        };
        let running = Running::start(load, Some(server.id())).expect("the clients start");
        wait_until(LIMIT, "some answers", || running.answered() >= 128);
        running.cause(|| {
            server.signal(Signal::HUP);
            thread::sleep(Duration::from_micros(1300 * n)); // the moment of the re-exec that the stop falls into
            server.signal(Signal::TERM);
        });
        let ended = end(&mut server, Duration::from_secs(5));
        if ended != "exit status: 0" {
            bad.push(format!("run {n}: {ended}"));
            drop(server); // so that the clients come to an end
            running.finish(None);
            continue;
        }
        let report = running.finish(None);
        if report.counts.lost > 0 {
            bad.push(format!("run {n}: {report}"));
        }
    }
    println!("{} of {runs} bad", bad.len());
    assert!(bad.is_empty(), "{} of {runs} bad:\n{}", bad.len(), bad.join("\n"));
}

/// A name, and what is done to the binary.
type Change<'a> = (&'a str, Box<dyn Fn(&Place) + 'a>);

/// What becomes of a binary between its preflight and the `exec`; a request in flight keeps the two apart.
#[test]
fn a_binary_that_changes_after_its_preflight_is_no_reason_to_be_down() {
    let _alone = alone();
    let good = fs::read(BINARY).expect("it can be read");
    let touched = std::env::temp_dir().join(format!("allout-signals-shell-{}", std::process::id()));
    let text = format!("echo a shell was here > {}\n", touched.display()).into_bytes();
    let overwrite = |place: &Place, content: &[u8]| fs::write(place.binary(), content).expect("it is not running");
    let changes: [Change<'_>; 8] = [
        ("replaced by text", Box::new(|place| place.put_executable(&text))),
        ("replaced by an empty file", Box::new(|place| place.put_executable(b""))),
        ("replaced by half of it", Box::new(|place| place.put_executable(&good[..good.len() / 2]))),
        ("replaced by an eighth of it", Box::new(|place| place.put_executable(&good[..good.len() / 8]))),
        ("replaced by its first page", Box::new(|place| place.put_executable(&good[..4096]))),
        ("replaced by its first 100 bytes", Box::new(|place| place.put_executable(&good[..100]))),
        ("removed", Box::new(|place| fs::remove_file(place.binary()).expect("removing"))),
        ("overwritten by text in place", Box::new(|place| overwrite(place, &text))),
    ];
    let mut bad = Vec::new();
    for (name, change) in &changes {
        let place = Place::new("changed");
        let binary = place.binary();
        let delay = ["--timeout-delay", "700ms"];
        let mut server = Allout::of(&binary).args(delay).start();
        // The image that runs is another file than the one that is tried, so that the latter can be written to.
        place.put_executable(&good);
        let mut slow = server.connect();
        slow.request("GET", "/timeout");
        server.wait_until_read(&slow);
        server.signal(Signal::HUP);
        server.wait_for_line(DRAINS, LIMIT);
        change(&place);
        assert_eq!(slow.expect_response("GET").status, 200, "{name}");
        let deadline = Instant::now() + Duration::from_secs(5);
        while server.is_alive() && server.times(SERVES) < 2 && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
        if !server.is_alive() || server.times(SERVES) < 2 {
            bad.push(format!("{name}: {}", end(&mut server, Duration::ZERO)));
            continue;
        }
        assert_eq!(server.get("/").status, 200, "{name}");
        server.signal(Signal::TERM);
        let ended = end(&mut server, Duration::from_secs(5));
        if ended != "exit status: 0" {
            bad.push(format!("{name}, then SIGTERM: {ended}"));
        }
    }
    if fs::remove_file(&touched).is_ok() {
        bad.push("a shell executed the text".to_owned());
    }
    println!("{} of {} bad", bad.len(), changes.len());
    assert!(bad.is_empty(), "{} of {}: {}", bad.len(), changes.len(), bad.join("; "));
}

/// While slow requests hold up the old image, new clients do not wait for them, and what they ask is answered whole.
#[test]
fn while_a_reexec_waits_for_slow_requests_new_clients_do_not_wait() {
    let _alone = alone();
    let mut server = start(&["--timeout-delay", "2s", "--grace", "5s"]);
    let mut slow: Vec<_> = (0..3).map(|_| server.connect()).collect();
    for connection in &mut slow {
        connection.request("GET", "/timeout");
        server.wait_until_read(connection);
    }
    let began = Instant::now();
    server.signal(Signal::HUP);
    let (mut longest, mut late, mut next) = (Duration::ZERO, Vec::new(), Duration::ZERO);
    while server.times(SERVES) < 2 && began.elapsed() < LIMIT {
        let asked = Instant::now();
        assert_eq!(server.get("/").status, 200);
        longest = longest.max(asked.elapsed());
        if began.elapsed() < Duration::from_secs(2) && began.elapsed() >= next {
            next += Duration::from_millis(300);
            // More slow requests, which begin in the drain.
            let mut connection = server.connect();
            connection.request("GET", "/timeout");
            late.push(connection);
        }
        thread::sleep(Duration::from_millis(50)); // a rate
    }
    for connection in slow.iter_mut().chain(&mut late) {
        let response = connection.read_response("GET", LIMIT);
        assert!(response.as_ref().is_ok_and(|r| matches!(r.status, 200 | 503)), "a request was cut: {response:?}");
    }
    println!("the next image came after {:?}; the longest wait of a new client was {longest:?}", began.elapsed());
    assert_eq!(server.times(SERVES), 2, "no next image after {:?}", began.elapsed());
    assert!(longest < Duration::from_secs(1), "a new client waited {longest:?}");
    server.stop();
}

/// A stop that comes while a re-exec waits for slow requests has its own grace, and what was queued for the next image
/// is answered.
#[test]
fn a_stop_while_a_reexec_waits_for_slow_requests_has_its_full_grace() {
    let _alone = alone();
    // With attempts to stop accepting from 1 s on: before, within and after the first, and when they are given up.
    for stop_after in [700, 1050, 1150, 1300, 1700].map(Duration::from_millis) {
        let mut server = start(&["--timeout-delay", "1s", "--grace", "2s"]);
        let mut slow = server.connect();
        slow.request("GET", "/timeout");
        server.wait_until_read(&slow);
        let began = Instant::now();
        server.signal(Signal::HUP);
        server.wait_for_line(DRAINS, LIMIT);
        let mut late = Vec::new();
        let mut quick = Vec::new();
        while began.elapsed() < stop_after {
            // At least one slow request is in flight from now on.
            for (connections, path) in [(&mut late, "/timeout"), (&mut quick, "/")] {
                let mut connection = server.connect();
                connection.request("GET", path);
                connections.push(connection);
            }
            thread::sleep(Duration::from_millis(100)); // a rate
        }
        server.signal(Signal::TERM);
        for connection in quick.iter_mut().chain([&mut slow]).chain(&mut late) {
            let response = connection.read_response("GET", LIMIT);
            assert!(response.as_ref().is_ok_and(|r| r.status == 200), "stop after {stop_after:?}: {response:?}");
        }
        server.assert_exit(0, LIMIT);
    }
}

/// How the program is started by another that has this set up: `env` of coreutils.
fn start_by(env: &[&str]) -> Serving {
    let args = env.iter().copied().chain([BINARY, "--listen", "127.0.0.1:0"]);
    Allout::of(Path::new("/usr/bin/env")).args(args).start()
}

#[test]
fn signals_that_were_blocked_at_the_start_are_handled() {
    let _alone = alone();
    let block = "--block-signal=TERM,INT,QUIT,HUP,USR1,CHLD";
    let mut bad = Vec::new();
    for signal in [Signal::TERM, Signal::INT] {
        let mut server = start_by(&[block]);
        server.signal(Signal::HUP);
        let deadline = Instant::now() + Duration::from_secs(3);
        while server.times(SERVES) < 2 && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
        if server.times(SERVES) < 2 {
            bad.push("SIGHUP is not handled".to_owned());
        }
        server.signal(Signal::USR1);
        server.signal(signal);
        let ended = end(&mut server, Duration::from_secs(3));
        if ended != "exit status: 0" {
            bad.push(format!("{signal:?}: {ended}"));
        }
    }
    assert!(bad.is_empty(), "{bad:?}");
}

#[test]
fn children_that_are_not_waited_for_by_default_do_not_prevent_a_reexec() {
    let _alone = alone();
    let mut server = start_by(&["--ignore-signal=CHLD"]);
    server.signal(Signal::HUP);
    wait_until(LIMIT, "the next image, or a reason why not", || {
        server.times(SERVES) == 2 || server.times("re-exec cancelled") > 0
    });
    assert_eq!(server.times(SERVES), 2, "{}", server.log());
    server.stop();
}

#[test]
fn a_log_that_may_not_grow_is_no_reason_to_die() {
    let _alone = alone();
    let log = std::env::temp_dir().join(format!("allout-fsize-{}", std::process::id()));
    let script = format!("ulimit -f 8; exec \"$0\" --listen 127.0.0.1:0 --access-log on 2>{}", log.display());
    let mut child = std::process::Command::new("sh").args(["-c", &script, BINARY]).spawn().expect("a shell starts");
    let mut found = None;
    wait_until(LIMIT, "it to listen", || {
        found = common::listening(child.id());
        found.is_some()
    });
    let addr = found.expect("it listens");
    let mut answered = 0;
    for n in 0..200 {
        let Ok(mut connection) = http::Connection::open(addr, LIMIT) else { break };
        let request = format!("GET /?user={} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", "x".repeat(500 + n));
        let sent = connection.send(request.as_bytes()).is_ok();
        answered += usize::from(sent && connection.read_response("GET", LIMIT).is_ok_and(|r| r.status == 200));
    }
    let size = fs::metadata(&log).map_or(0, |m| m.len());
    let early = child.try_wait().expect("a child can be asked");
    if early.is_none() {
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, Signal::TERM).expect("it can be signalled");
    }
    let status = child.wait().expect("a child can be waited for");
    let _ = fs::remove_file(&log);
    assert!(size >= 4000, "the log did not reach its limit: {size} bytes");
    assert_eq!((early, answered, status.code()), (None, 200, Some(0)), "{status}");
}

/// The variable is private, but what the environment holds is input.
#[test]
fn a_descriptor_that_is_passed_and_no_socket_is_an_error_and_no_panic() {
    let _alone = alone();
    for value in ["-1", "-2147483648", "0", "2", "99", "1000000", "99999999999", "", "x"] {
        let script = format!("ALLOUT_SOCKET={value}:$$ exec \"$0\" --listen 127.0.0.1:0");
        let mut process = Allout::of(Path::new("/bin/sh")).args(["-c", &script, BINARY, "--listen"]).spawn();
        let deadline = Instant::now() + LIMIT;
        while process.is_alive() && !process.log().contains(SERVES) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
        let log = process.log();
        assert!(!log.contains("panicked"), "{value:?}: {log}");
        if process.is_alive() {
            assert!(log.contains(SERVES), "{value:?}: neither serves nor ends: {log}");
            process.stop();
        } else {
            process.assert_exit(1, LIMIT);
            assert_eq!(process.log().lines().count(), 1, "{value:?}: one clear line: {}", process.log());
        }
    }
}
