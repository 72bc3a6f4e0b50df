//! The start: options, variables, sockets, and the messages when it fails.

#![allow(clippy::expect_used, clippy::panic, reason = "a test says what it expects by panicking")]

mod common;

use common::folder::Folder;
use common::http::Connection;
use common::{Allout, LIMIT, Speak as _, listening, wait_until};
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

/// It ends with this code and one line on stderr, without a backtrace even where one is asked for.
#[track_caller]
fn refuses_to_start(args: &[&str], env: &[(&str, &str)], code: i32) -> String {
    let mut builder = Allout::new().args(args.iter().copied()).env("RUST_BACKTRACE", "1");
    for (name, value) in env {
        builder = builder.env(name, value);
    }
    let mut process = builder.spawn();
    process.assert_exit(code, LIMIT);
    let log = process.log();
    assert!(!log.contains("panicked") && !log.contains("backtrace"), "{log}");
    assert!(!log.trim().is_empty(), "it does not say why");
    log
}

#[track_caller]
fn one_line(log: &str) -> &str {
    let lines: Vec<_> = log.lines().filter(|l| !l.trim().is_empty()).collect();
    let [line] = lines[..] else { panic!("more than one line:\n{log}") };
    line
}

#[test]
fn an_address_in_use_is_one_clear_line() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let addr = taken.local_addr().expect("a bound socket has an address").to_string();
    let log = refuses_to_start(&["--listen", &addr], &[], 1);
    let line = one_line(&log);
    assert!(line.contains(&format!("address in use: {addr}")), "{line:?}");
}

#[test]
fn an_exit_code_does_not_depend_on_a_reader_of_the_output() {
    let full = || std::fs::File::options().write(true).open("/dev/full").expect("it can be written to");
    for (args, code) in [(&["--check"][..], 0), (&["--systemd-unit"], 1), (&["healthcheck", "nowhere"], 1)] {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_allout"));
        let status = command.args(args).stdout(full()).stderr(full()).status().expect("it starts");
        assert_eq!(status.code(), Some(code), "{args:?}");
    }
}

#[test]
fn a_check_says_whether_it_would_start_and_serves_nothing() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let addr = taken.local_addr().expect("a bound socket has an address").to_string();
    for args in [&["--check"][..], &["--check=reload", "--listen", &addr]] {
        let mut process = Allout::new().args(args.iter().copied()).spawn();
        process.assert_exit(0, LIMIT);
        assert_eq!((process.stdout().as_str(), process.log().as_str()), ("allout would start\n", ""), "{args:?}");
    }
    for (args, code, why) in [
        (&["--check", "--listen", &addr][..], 1, "address in use"),
        (&["--check", "--access-log", "/nonexistent/log"], 1, "--access-log /nonexistent/log: No such file"),
        (&["--check", "--shutdown-token-file", "/nonexistent/token"], 2, "/nonexistent/token"),
        (&["--check", "--env-file", "/nonexistent/file"], 2, "/nonexistent/file"),
        (&["--check=reload", "--grace", "soon"], 2, "--grace"),
    ] {
        let log = refuses_to_start(args, &[], code);
        assert!(log.contains(why), "{args:?}: {log}");
    }
    let unusable = refuses_to_start(&["--check", "--listen", &addr], &[("RUST_LOG", "verbose")], 1);
    assert!(unusable.contains("RUST_LOG is ignored: \"verbose\" is neither a level"), "{unusable}");
}

#[test]
fn an_address_that_another_allout_uses_is_one_clear_line() {
    let first = Allout::new().start();
    let addr = first.addr.to_string();
    let log = refuses_to_start(&["--listen", &addr], &[], 1);
    assert!(one_line(&log).contains(&format!("address in use: {addr}")), "{log}");
    assert_eq!(first.get("/").status, 200);
}

#[test]
fn an_address_of_another_machine_is_one_clear_line() {
    // Reserved for documentation: no machine has it.
    let log = refuses_to_start(&["--listen", "192.0.2.1:8088"], &[], 1);
    assert!(one_line(&log).contains("192.0.2.1:8088"), "{log}");
}

#[test]
fn start_failures_are_reported_as_json_too() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let addr = taken.local_addr().expect("a bound socket has an address").to_string();
    let log = refuses_to_start(&["--listen", &addr, "--log-format", "json"], &[], 1);
    assert!(one_line(&log).contains(&addr), "{log}");
}

#[test]
fn unusable_arguments_are_rejected() {
    let cases: &[&[&str]] = &[
        &["--nonsense"],
        &["-x"],
        &["nonsense"],
        &["--grace"],
        &["--grace", "nonsense"],
        &["--grace", ""],
        &["--grace", "-1s"],
        &["--grace", "10"],
        &["--grace", "1y"],
        &["--grace", "99999999999999999999s"],
        &["--drain-delay", "soon"],
        &["--keepalive-min", "ms"],
        &["--idle-timeout", "s30"],
        &["--request-timeout", "1 fortnight"],
        &["--timeout-delay", "x"],
        &["--workers", "many"],
        &["--workers", "-1"],
        &["--workers", "0"],
        &["--queue", "1.5"],
        &["--max-connections", "x"],
        &["--log-format", "xml"],
        &["--listen", "nonsense"],
        &["--listen", "127.0.0.1"],
        &["--listen", "127.0.0.1:99999"],
        &["--listen", ""],
    ];
    for args in cases {
        // Named in the message: the option, or what is unknown.
        let log = refuses_to_start(args, &[], 2);
        assert!(log.contains(args[0].trim_start_matches('-')), "{args:?} is not named:\n{log}");
    }
}

#[test]
fn an_unusable_variable_is_rejected_and_named() {
    let cases = [
        ("ALLOUT_GRACE", "nonsense"),
        ("ALLOUT_WORKERS", "many"),
        ("ALLOUT_LISTEN", "nowhere"),
        ("ALLOUT_TIMEOUT_DELAY", "10"),
        ("ALLOUT_LOG_FORMAT", "xml"),
    ];
    for (name, value) in cases {
        let log = refuses_to_start(&[], &[(name, value)], 2);
        assert!(log.contains(name), "{name}={value} is not named:\n{log}");
    }
}

#[test]
fn port_0_names_the_port() {
    let server = Allout::new().args(["--listen", "127.0.0.1:0"]).start();
    assert_ne!(server.addr.port(), 0);
    assert_eq!(server.get("/").status, 200);
    let line = server.wait_for_line("listening on", LIMIT);
    assert!(line.contains(&format!("http://{}", server.addr)), "{line:?}");
}

#[test]
fn options_may_be_written_with_an_equals_sign() {
    let server = Allout::new().args(["--listen=127.0.0.1:0", "--timeout-delay=10ms"]).start();
    assert_eq!(server.get("/timeout").status, 200);
}

#[test]
fn variables_are_read() {
    let server = Allout::new().env("ALLOUT_LISTEN", "127.0.0.1:0").env("ALLOUT_TIMEOUT_DELAY", "10ms").start();
    assert_eq!(server.get("/timeout").status, 200);
}

#[test]
fn a_flag_beats_its_variable() {
    // The variable names a port that is taken, and a delay that no test waits for.
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let addr: SocketAddr = taken.local_addr().expect("a bound socket has an address");
    let server = Allout::new()
        .env("ALLOUT_LISTEN", &addr.to_string())
        .env("ALLOUT_TIMEOUT_DELAY", "1h")
        .args(["--listen", "127.0.0.1:0", "--timeout-delay", "10ms"])
        .start();
    assert_ne!(server.addr, addr);
    assert_eq!(server.get("/timeout").status, 200);
}

#[test]
fn durations_have_units() {
    for delay in ["0s", "1ms", "1s", "1000ms"] {
        let server = Allout::new().args(["--timeout-delay", delay]).start();
        assert_eq!(server.get("/timeout").status, 200, "{delay}");
    }
}

#[test]
fn help_names_every_option() {
    let mut process = Allout::new().args(["--help", "--listen", "127.0.0.1:0"]).spawn();
    process.assert_exit(0, LIMIT);
    let help = process.stdout();
    for option in [
        "--listen",
        "--workers",
        "--queue",
        "--max-connections",
        "--grace",
        "--drain-delay",
        "--keepalive-min",
        "--idle-timeout",
        "--request-timeout",
        "--timeout-delay",
        "--log-format",
        "--systemd-unit",
    ] {
        assert!(help.contains(option), "{option} is not in the help:\n{help}");
    }
    assert_eq!(process.log(), "");
}

#[test]
fn it_serves_from_the_line_that_says_so() {
    // After this line every request is answered.
    for _ in 0..10 {
        let server = Allout::new().start();
        assert_eq!(server.get("/healthz").status, 200);
    }
}

#[test]
fn rust_log_off_says_nothing() {
    let mut process = Allout::new().env("RUST_LOG", "off").spawn();
    // It does not say where it listens, so the kernel is asked.
    let mut addr = None;
    wait_until(LIMIT, "a listening socket", || {
        addr = listening(process.id());
        addr.is_some()
    });
    let addr = addr.expect("it listens");
    let mut connection = Connection::open(addr, LIMIT).expect("it listens");
    assert_eq!(connection.ask("GET", "/healthz").status, 200);
    process.stop();
    assert_eq!(process.log(), "");
}

#[test]
fn a_healthcheck_exits_with_0_or_1() {
    let check = |url: &[&str], env: &[(&str, &str)]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_allout"));
        let output = command.arg("healthcheck").args(url).envs(env.iter().copied()).output().expect("it starts");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let server = Allout::new().start();
    let addr = server.addr.to_string();
    assert_eq!(check(&[&format!("http://{addr}/healthz")], &[]), (Some(0), String::new()));
    assert_eq!(check(&[], &[("ALLOUT_LISTEN", &addr)]), (Some(0), String::new()));
    let folder = Folder::new("healthcheck");
    let file = folder.write("variables", format!("ALLOUT_LISTEN={addr}\n"));
    let variables = [("ALLOUT_ENV_FILE", &*file.display().to_string()), ("ALLOUT_LISTEN", "127.0.0.1:1")];
    assert_eq!(check(&[], &variables), (Some(0), String::new()));
    drop(folder);
    let (code, said) = check(&[], &variables);
    assert!(code == Some(1) && said.contains("No such file"), "{said}");
    let (code, said) = check(&["ftp://x"], &[]);
    assert!(code == Some(1) && said.contains("expected http://"), "{said}");
    let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let silent = free.local_addr().expect("a bound socket has an address").to_string();
    let began = std::time::Instant::now();
    let (code, said) = check(&[], &[("ALLOUT_ADMIN_LISTEN", &silent)]);
    assert!(code == Some(1) && said.contains("no answer within 5s"), "{said}");
    assert!(began.elapsed() < LIMIT);
    drop(free);
    let (code, said) = check(&[&format!("http://{silent}/")], &[]);
    assert!(code == Some(1) && said.contains("refused"), "{said}");
    let (code, _) = check(&["http://127.0.0.1/", "more"], &[]);
    assert_eq!(code, Some(1));
}

#[test]
fn idle_it_does_not_wake_up() {
    let server = Allout::new().start();
    assert_eq!(server.get("/").status, 200);
    // What the request and the start have left to do is done when a whole second passes without any switch.
    let mut before = server.context_switches();
    wait_until(LIMIT, "a second without a context switch", || {
        std::thread::sleep(Duration::from_secs(1));
        std::mem::replace(&mut before, server.context_switches()) == before
    });
}
