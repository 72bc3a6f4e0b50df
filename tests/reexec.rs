//! Re-exec on SIGHUP: the process goes on with the binary that is on disk, without a refused connection or a lost request.

#![allow(clippy::expect_used, clippy::panic, reason = "a test says what it expects by panicking")]

#[path = "load/client.rs"]
mod client;
mod common;

use client::{Load, Mode, Report, Running};
use common::http;
use common::place::Place;
use common::{Allout, LIMIT, Serving, Speak as _, alone, wait_until};
use rustix::process::Signal;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

const SERVES: &str = "listening on http://";

/// What is written there is in force after the next re-exec, if it can be.
#[test]
fn the_file_of_options_is_read_anew_and_a_bad_one_changes_nothing() {
    let place = Place::new("options");
    let file = place.0.join("options");
    let set = |text: &str| drop(place.0.write("options", text));
    set("ALLOUT_WORKERS=7\n");
    let server = place.start(&["--env-file", file.to_str().expect("a path of this test")]);
    assert!(server.log().contains("at most 7 workers"), "{}", server.log());
    set("ALLOUT_WORKERS=9\n");
    reexec(&server);
    assert!(server.log().contains("at most 9 workers"), "{}", server.log());
    set("ALLOUT_WORKERS=none\n");
    server.signal(Signal::HUP);
    server.wait_for_line("re-exec cancelled (SIGHUP)", LIMIT);
    assert_eq!(server.get("/").status, 200);
    // Addresses stay: another one could fail when there is nothing left to go back to.
    set("ALLOUT_WORKERS=9\nALLOUT_ADMIN_LISTEN=127.0.0.1:0\n");
    reexec(&server);
    server.wait_for_line("the addresses stay what they were: 127.0.0.1:0 takes a restart", LIMIT);
    assert_eq!(server.get("/healthz").status, 200);
}

/// One re-exec, from the signal until the next image serves.
fn reexec(server: &Serving) {
    let before = server.times(SERVES);
    server.signal(Signal::HUP);
    wait_until(LIMIT, "the re-exec", || server.times(SERVES) > before);
}

#[track_caller]
fn assert_unnoticed(report: &Report) {
    let counts = &report.counts;
    let told: Vec<_> = counts.losses.iter().map(|loss| format!("\n  {loss}")).collect();
    assert_eq!((counts.lost, counts.refused), (0, 0), "{report}{}", told.concat());
    assert_eq!(counts.statuses.keys().copied().collect::<Vec<_>>(), [200], "{report}");
    assert!(counts.longest_wait < Duration::from_secs(5), "{report}");
}

fn load(server: &Serving, mode: Mode) -> Load {
    Load { mode, lasts: LIMIT * 5, ..Load::new(server.addr, 16) }
}

fn some_more(running: &Running) {
    let answered = running.answered();
    wait_until(LIMIT, "some answers", || running.answered() > answered + 64);
}

#[test]
fn reexecs_under_load_are_not_noticed() {
    let _alone = alone();
    for mode in [Mode::KeepAlive, Mode::Close, Mode::Pipeline(4)] {
        let mut server = Allout::new().start();
        let running = Running::start(load(&server, mode), Some(server.id())).expect("the clients start");
        for _ in 0..4 {
            some_more(&running);
            running.cause(|| reexec(&server));
        }
        some_more(&running);
        let report = running.end();
        println!("{report}");
        assert_unnoticed(&report);
        server.stop();
    }
}

#[test]
fn a_reexec_lets_slow_requests_finish() {
    let _alone = alone();
    let mut server = Allout::new().args(["--timeout-delay", "1s"]).start();
    let mut slow = server.connect();
    slow.request("GET", "/timeout");
    server.wait_until_read(&slow);
    server.signal(Signal::HUP);
    server.wait_for_line("restarting: SIGHUP", LIMIT);
    // A request meanwhile is not delayed, and is still answered by this image.
    assert_eq!(server.get("/").status, 200);
    assert_eq!(server.times(SERVES), 1);
    assert_eq!(slow.expect_response("GET").status, 200);
    wait_until(LIMIT, "the next image", || server.times(SERVES) == 2);
    assert_eq!(server.get("/").status, 200);
    server.stop();
}

#[test]
fn the_next_image_is_the_binary_on_disk() {
    let _alone = alone();
    let place = Place::new("newer");
    let mut server = place.start(&[]);
    for _ in 0..3 {
        place.put_copy(env!("CARGO_BIN_EXE_allout"));
        let newer = fs::metadata(place.binary()).expect("it is there").ino();
        let running = || fs::metadata(format!("/proc/{}/exe", server.id())).expect("it runs").ino();
        assert_ne!(running(), newer);
        reexec(&server);
        assert_eq!(running(), newer);
        assert_eq!(server.get("/").status, 200);
    }
    server.stop();
}

#[test]
fn a_binary_that_cannot_serve_is_no_reason_to_be_down() {
    let _alone = alone();
    let place = Place::new("broken");
    let mut server = place.start(&[]);
    let running = Running::start(load(&server, Mode::KeepAlive), Some(server.id())).expect("the clients start");
    let good = fs::read(env!("CARGO_BIN_EXE_allout")).expect("it can be read");
    let half = &good[..good.len() / 2];
    let attempts: [(&str, &dyn Fn()); 6] = [
        ("ends at once", &|| place.put_copy("/bin/true")),
        ("rejects its arguments", &|| place.put_executable("#!/bin/sh\necho 'no such option' >&2\nexit 2\n")),
        ("is none", &|| place.put_executable("not a program\n")),
        ("is cut off", &|| place.put(|path| fs::write(path, half).expect("writing"))),
        ("may not be executed", &|| place.put(|path| fs::write(path, &good).expect("writing"))),
        ("is missing", &|| fs::remove_file(place.binary()).expect("removing")),
    ];
    for (number, (what, put)) in attempts.iter().enumerate() {
        put();
        server.signal(Signal::HUP);
        wait_until(LIMIT, &format!("the end of a preflight: the new binary {what}"), || {
            server.times("re-exec cancelled (SIGHUP)") > number
        });
        assert_eq!(server.get("/").status, 200, "the new binary {what}");
    }
    assert_eq!(server.times(SERVES), 1);
    some_more(&running);
    let report = running.end();
    assert_unnoticed(&report);
    // And then a good one.
    place.put_copy(env!("CARGO_BIN_EXE_allout"));
    reexec(&server);
    assert_eq!(server.get("/").status, 200);
    server.stop();
}

#[test]
fn a_binary_that_hangs_is_given_up_and_a_stop_does_not_wait_for_it() {
    let _alone = alone();
    let place = Place::new("hangs");
    let mut server = place.start(&[]);
    place.put_executable("#!/bin/sh\nexec sleep 60\n");
    server.signal(Signal::HUP);
    assert_eq!(server.get("/").status, 200);
    server.signal(Signal::TERM);
    server.assert_exit(0, Duration::from_secs(5));
}

#[test]
fn hangups_in_quick_succession_are_at_least_one_reexec_and_never_the_end() {
    let _alone = alone();
    let mut server = Allout::new().start();
    let running = Running::start(load(&server, Mode::Close), Some(server.id())).expect("the clients start");
    for _ in 0..200 {
        server.signal(Signal::HUP);
        std::thread::sleep(Duration::from_millis(5)); // so that they come in every phase
    }
    some_more(&running);
    let report = running.end();
    println!("{} images: {report}", server.times(SERVES));
    assert_unnoticed(&report);
    assert!(server.times(SERVES) > 1);
    // One may be under way.
    wait_until(LIMIT, "the last re-exec to be over", || {
        server.times("re-executing ") + 1 == server.times(SERVES) && server.times("re-exec cancelled") == 0
    });
    server.signal(Signal::TERM);
    let code = server.wait_exit(LIMIT).code();
    // A re-exec that is under way when the signal arrives is cut short by it.
    assert!(matches!(code, Some(0 | 143)), "{code:?}");
}

/// Connections of HTTP/2 clients, which tiny_http leaks.
fn leak(server: &Serving, how_many: usize) {
    for _ in 0..how_many {
        let mut connection = server.connect();
        connection.send_raw("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        server.wait_until_read(&connection);
    }
}

#[test]
fn the_leak_limit_causes_a_reexec_at_most_once_a_minute() {
    if common::engine::NATIVE {
        return; // it leaks nothing
    }
    let _alone = alone();
    // The lowest leak limit.
    let mut server = Allout::new().args(["--max-connections", "64"]).start();
    let pid = server.id();
    leak(&server, 40);
    wait_until(LIMIT, "the re-exec", || server.times(SERVES) == 2);
    assert!(server.log().contains("the engine has leaked"));
    assert_eq!((server.id(), server.get("/").status), (pid, 200));
    leak(&server, 40);
    wait_until(LIMIT, "the leak limit to be reached again", || {
        server.times("the engine has leaked") > 2 || has_leaked_since_reexec(&server)
    });
    std::thread::sleep(Duration::from_millis(500)); // many times the duration of a re-exec
    assert_eq!(server.times(SERVES), 2, "re-executed again");
    assert_eq!(server.get("/").status, 200);
    server.stop();
}

fn has_leaked_since_reexec(server: &Serving) -> bool {
    server.log().rsplit(SERVES).next().is_some_and(|since| since.contains("the engine has leaked"))
}
