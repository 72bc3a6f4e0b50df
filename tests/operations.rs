//! Operations: metrics, logs, and the state dump.

#![allow(clippy::expect_used, clippy::panic, reason = "a test says what it expects by panicking")]

mod common;

use allout::{Config, Request, Service};
use common::http::Connection;
use common::{Allout, LIMIT, Serving, Speak as _, wait_until, wait_until_draining};
use rustix::process::Signal;
use std::collections::HashSet;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Command, Stdio};
use std::time::Duration;

/// A count is made after the response was written, so that its reader may come first.
#[track_caller]
fn wait_for_sample(server: &Serving, name: &str, expected: f64) {
    wait_until(LIMIT, &format!("{name} to be {expected}"), || server.sample(name) == Some(expected));
}

// --- /metrics

#[test]
fn requests_are_counted_by_route_and_never_by_path() {
    let server = Allout::new().args(["--timeout-delay", "1ms"]).start();
    for path in ["/", "/secret-path", "/a\"b", "/healthz", "/healthz?secret-query", "/timeout"] {
        assert_eq!(server.get(path).status, 200, "{path}");
    }
    server.ask("DELETE", "/healthz");
    server.ask("SECRETMETHOD", "/");
    assert_eq!(server.ask_with("GET", "/secret-path", "Content-Length: x\r\n").status, 400);
    let count = |route: &str, method: &str, code: u16| {
        format!("allout_http_requests_total{{code=\"{code}\",method=\"{method}\",route=\"{route}\"}}")
    };
    wait_for_sample(&server, &count("*", "GET", 200), 3.0);
    wait_for_sample(&server, &count("*", "other", 200), 1.0);
    wait_for_sample(&server, &count("*", "GET", 400), 1.0);
    wait_for_sample(&server, &count("/healthz", "GET", 200), 2.0);
    wait_for_sample(&server, &count("/healthz", "DELETE", 405), 1.0);
    wait_for_sample(&server, &count("/timeout", "GET", 200), 1.0);
    wait_for_sample(&server, "allout_http_request_duration_seconds_count{route=\"/healthz\"}", 3.0);
    wait_for_sample(&server, "allout_http_requests_rejected_total", 1.0);
    wait_for_sample(&server, "allout_connections_closed_total{cause=\"bad_request\"}", 1.0);
    let text = server.get("/metrics").text();
    assert!(!text.to_lowercase().contains("secret"), "{text}");
}

#[test]
fn what_goes_on_is_measured() {
    let server = Allout::new().args(["--timeout-delay", "60s", "--workers", "2", "--grace", "1ms"]).start();
    let mut waiting = server.connect();
    waiting.request("GET", "/timeout");
    // Itself is one of the two.
    wait_for_sample(&server, "allout_workers{state=\"busy\"}", 2.0);
    wait_for_sample(&server, "allout_http_requests_in_flight", 2.0);
    wait_for_sample(&server, "allout_workers_limit", 2.0);
    wait_for_sample(&server, "allout_phase{phase=\"serving\"}", 1.0);
    for name in ["process_resident_memory_bytes", "process_open_fds", "process_max_fds", "process_start_time_seconds"] {
        assert!(server.sample(name).is_some_and(|value| value > 1.0), "{name}");
    }
    assert!(server.sample("allout_connections_open").is_some_and(|open| open >= 2.0));
}

#[test]
fn the_phase_of_a_drain_is_told() {
    let mut server = Allout::new().args(["--drain-delay", "30s", "--grace", "30s"]).start();
    server.signal(Signal::TERM);
    wait_until_draining(|| server.connect());
    wait_for_sample(&server, "allout_phase{phase=\"drain_delay\"}", 1.0);
    wait_for_sample(&server, "allout_phase{phase=\"serving\"}", 0.0);
    server.signal(Signal::INT);
    server.wait_exit(LIMIT);
}

#[test]
fn promtool_has_nothing_to_say() {
    let server = Allout::new().start();
    assert_eq!(server.get("/").status, 200);
    let text = server.get("/metrics").body;
    let promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut promtool) = promtool else {
        eprintln!("this machine has no promtool");
        return;
    };
    promtool.stdin.take().expect("stdin is piped").write_all(&text).expect("promtool reads");
    let output = promtool.wait_with_output().expect("promtool ends");
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success() && said.is_empty(), "{}", String::from_utf8_lossy(&said));
}

#[test]
fn panics_are_counted_and_names_of_routes_are_escaped() {
    let mut config = Config::default();
    config.listen = vec![([127, 0, 0, 1], 0).into()];
    let service = Service::with_config(config)
        .engine(common::engine::ENGINE)
        .get("/panic", |_| -> &str { panic!("on purpose") })
        .get("/a\"b", |_| "odd")
        .get("/id", |request: &mut Request| request.id().to_owned())
        .start()
        .expect("it starts");
    let get = |path: &str, headers: &str| {
        let mut connection = Connection::open(service.address(), LIMIT).expect("it listens");
        connection.send_raw(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n"));
        connection.expect_response("GET")
    };
    assert_eq!(get("/panic", "").status, 500);
    assert_eq!(get("/a\"b", "").status, 200);
    wait_until(LIMIT, "both to be counted", || {
        let text = get("/metrics", "").text();
        text.contains("\nallout_handler_panics_total 1\n")
            && text.contains("{code=\"500\",method=\"GET\",route=\"/panic\"} 1\n")
            && text.contains("{code=\"200\",method=\"GET\",route=\"/a\\\"b\"} 1\n")
    });

    // A handler sees the request's id: the one that the response carries.
    let given = get("/id", "X-Request-Id: given-1\r\n");
    assert_eq!((given.text().as_str(), given.header("x-request-id")), ("given-1", Some("given-1")));
    let made = get("/id", "");
    assert_eq!(made.header("x-request-id"), Some(made.text().as_str()));
    assert_eq!(service.stop("the test is over").code(), 0);
}

#[test]
fn a_value_that_panics_when_it_is_dropped_costs_no_more_than_a_line_in_the_log() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("a bug in drop");
        }
    }
    fn keep(request: &mut Request) -> &'static str {
        request.set_extension(Bomb);
        request.set_extension((Bomb, "another type"));
        "kept"
    }
    let service = common::engine::service()
        .listen("127.0.0.1:0")
        .get("/keep", keep)
        .inline_route("GET", "/keep-inline", keep)
        .get("/payload", |_| -> &str { std::panic::panic_any(Bomb) })
        .start()
        .expect("it starts");
    let get = |path: &str| {
        let mut connection = Connection::open(service.address(), LIMIT).expect("it listens");
        connection.send_raw(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
        connection.expect_response("GET")
    };
    for (path, status) in [("/keep", 200), ("/keep-inline", 200), ("/payload", 500), ("/keep", 200)] {
        assert_eq!(get(path).status, status, "{path}");
    }
    // Two values of each request, and the handler that panicked.
    wait_until(LIMIT, "7 panics to be counted", || {
        get("/metrics").text().contains("\nallout_handler_panics_total 7\n")
    });
    assert_eq!(service.stop("the test is over").code(), 0);
}

// --- Request ids and the access log

#[test]
fn valid_request_ids_are_kept_and_others_are_replaced() {
    let server = Allout::new().start();
    let id_of = |header: &str| {
        let response = server.ask_with("GET", "/", header);
        response.header("x-request-id").expect("every response has one").to_owned()
    };
    for sane in ["a", "0af7651916cd43dd8448eb211c80319c", "A-b_c.d:e/f+g=h@i", &"x".repeat(64)] {
        assert_eq!(id_of(&format!("X-Request-Id: {sane}\r\n")), sane);
        assert_eq!(id_of(&format!("x-request-id: {sane}\r\n")), sane);
    }
    let mut made = HashSet::new();
    for other in ["", "two words", "a\"b", "a;b", "<b>", "%0a", &"x".repeat(65)] {
        let id = id_of(&format!("X-Request-Id: {other}\r\n"));
        assert!(id != other && !id.is_empty(), "{other:?}: {id:?}");
        assert!(made.insert(id.clone()), "{id} was made twice");
    }
    assert!(made.insert(id_of("")));
}

/// The access lines of a process that has ended.
fn access_lines(process: &Allout) -> Vec<String> {
    process.log().lines().filter(|line| line.contains("route")).map(str::to_owned).collect()
}

#[test]
fn the_access_log_is_off_unless_asked_for() {
    let mut server = Allout::new().env("RUST_LOG", "debug").start();
    assert_eq!(server.get("/").status, 200);
    server.stop();
    assert_eq!(access_lines(&server), [""; 0]);
}

/// What clients may send to break a line, and the status that it gets.
const HOSTILE: [(&str, u16); 8] = [
    ("/?user=a%0Aforged", 200),
    ("/\"},{\"level\":\"error\"", 200),
    ("/?a=b%20c\\n", 200),
    ("/{}{0}%s%n", 200),
    ("/x\u{1b}[2J", 400),
    ("/x%E2%80%A8forged\u{7f}", 400),
    ("/x\u{0}y", 400),
    ("no-path", 400),
];

#[test]
fn every_response_is_one_line_of_json() {
    let mut server = Allout::new().args(["--access-log", "on", "--log-format", "json"]).start();
    for (path, status) in HOSTILE {
        let response = server.ask_with("GET", path, "X-Request-Id: the-id\r\n");
        assert_eq!(response.status, status, "{path:?}: {response:?}");
    }
    server.ask("BREW", "/healthz");
    server.stop();
    let mut seen = Vec::new();
    for line in server.log().lines() {
        let json: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{line:?}: {e}"));
        assert!(json["level"] != "error", "{line}");
        if json["target"] == "allout::access" {
            let text = |name: &str| json[name].as_str().unwrap_or_default().to_owned();
            let said = format!("{} {} {} {} bytes ", text("method"), text("uri"), json["status"], json["bytes"]);
            assert!(text("msg").starts_with(&said) && text("msg").ends_with("ms"), "{said}: {line}");
            assert!(json["bytes"].as_u64().is_some_and(|bytes| bytes > 100), "{line}");
            assert!(json["duration_us"].is_u64(), "{line}");
            assert!(json["peer"].as_str().is_some_and(|peer| peer.starts_with("127.0.0.1:")), "{line}");
            assert!(json["id"].is_string() && json["route"].is_string(), "{line}");
            seen.push((json["uri"].as_str().expect("a text").to_owned(), json["status"].clone()));
        }
        assert_eq!(json["target"] == "allout::access", json["uri"].is_string(), "{line}");
    }
    let escaped = |path: &str| {
        let escape = |byte: u8| {
            if byte.is_ascii_graphic() { char::from(byte).to_string() } else { format!("\\x{byte:02x}") }
        };
        path.bytes().map(escape).collect::<String>()
    };
    let mut expected: Vec<_> = HOSTILE.iter().map(|(path, status)| (escaped(path), (*status).into())).collect();
    expected.push(("/healthz".to_owned(), 405.into()));
    assert_eq!(seen, expected);
    assert!(server.log().contains("\"method\":\"BREW\""), "{}", server.log());
}

#[test]
fn every_response_is_one_line_of_text() {
    let mut server = Allout::new().args(["--access-log", "on"]).start();
    for (path, _) in HOSTILE {
        server.ask_with("GET", path, "X-Request-Id: the-id\r\n");
    }
    server.stop();
    let lines = access_lines(&server);
    assert_eq!(lines.len(), HOSTILE.len(), "{lines:#?}");
    for (line, (_, status)) in lines.iter().zip(HOSTILE) {
        assert!(line.contains("INFO  GET ") && line.contains("ms version=HTTP/1.1 route="), "{line}");
        assert!(line.contains(&format!(" {status} ")) && line.ends_with(" id=the-id"), "{line}");
    }
    for line in server.log().split(|c: char| c != '\t' && c.is_control() || c == '\u{2028}') {
        assert!(line.is_empty() || line.starts_with("20"), "no time at the beginning of {line:?}");
    }
}

#[test]
fn the_access_log_may_be_a_file_in_the_combined_format_that_is_renamed_at_any_time() {
    let file =
        std::env::temp_dir().join(format!("allout-combined-{}-{}", std::process::id(), env!("CARGO_CRATE_NAME")));
    let renamed = file.with_extension("1");
    let path = file.to_str().expect("a path of this test").to_owned();
    let mut server = Allout::new()
        .args(["--access-log", &path, "--trust-proxy", "127.0.0.1"])
        .env("RUST_LOG", "warn,allout::lifecycle=info")
        .start();
    let lines = |file: &std::path::Path| -> Vec<String> {
        std::fs::read_to_string(file).unwrap_or_default().lines().map(str::to_owned).collect()
    };
    let wait_for = |file: &std::path::Path, count: usize| {
        wait_until(LIMIT, &format!("{count} lines in {file:?}"), || lines(file).len() == count);
        lines(file)
    };
    server.ask_with("GET", "/a?b", "X-Forwarded-For: 203.0.113.7\r\nUser-Agent: a \"b\"\r\nReferer: http://c/\r\n");
    let all = wait_for(&file, 1);
    assert!(all[0].starts_with("203.0.113.7 - - ["), "{}", all[0]);
    assert!(all[0].contains(" +0000] \"GET /a?b HTTP/1.1\" 200 "), "{}", all[0]);
    assert!(all[0].ends_with(" \"http://c/\" \"a \\\"b\\\"\""), "{}", all[0]);

    std::fs::rename(&file, &renamed).expect("the file is there");
    server.signal(Signal::USR2); // what some tools send then: it ends nothing
    server.ask_with("GET", "/again", "");
    wait_for(&file, 1);
    server.stop();
    assert_eq!((lines(&renamed).len(), access_lines(&server)), (1, vec![]));
    for file in [file, renamed] {
        std::fs::remove_file(file).expect("it was made");
    }
}

/// The files of `src/packaging/monitoring` ask for no metric that does not exist.
#[test]
fn alert_rules_and_dashboard_use_existing_metrics() {
    let server = Allout::new().start();
    server.get("/");
    let there = server.get("/metrics").text();
    let alerts = include_str!("../src/packaging/monitoring/alerts.yml");
    let dashboard = include_str!("../src/packaging/monitoring/dashboard.json");
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = alerts.split(|c| !is_name(c)).chain(dashboard.split(|c| !is_name(c)));
    let names: HashSet<_> = words.filter(|word| word.starts_with("allout_") || word.starts_with("process_")).collect();
    assert!(names.len() > 15, "{names:?}");
    for name in names {
        let sample = |line: &str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
        assert!(there.lines().any(sample), "{name} is not in /metrics");
    }
    assert!(serde_json::from_str::<serde_json::Value>(dashboard).is_ok());
}

#[test]
fn a_log_that_is_not_read_blocks_no_request() {
    let mut process = Command::new(env!("CARGO_BIN_EXE_allout"))
        .args(["--listen", "127.0.0.1:0", "--access-log", "on"])
        .env_remove("RUST_LOG")
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut log = BufReader::new(process.stderr.take().expect("stderr is piped"));
    let mut first = String::new();
    log.read_line(&mut first).expect("it says where it listens");
    let addr = first.trim().rsplit("http://").next().and_then(|addr| addr.parse().ok()).expect("an address");
    // From here on the log is not read: 64 KiB are some 400 lines.
    let mut connection = Connection::open(addr, LIMIT).expect("it listens");
    for _ in 0..2_000 {
        assert_eq!(connection.ask("GET", "/").status, 200);
    }
    let reader = std::thread::spawn(move || {
        let mut rest = String::new();
        log.read_to_string(&mut rest).expect("the log is text");
        rest
    });
    // What follows fits again, and tells how much did not.
    wait_until(LIMIT, "room in the pipe", || {
        connection.ask("GET", "/");
        std::thread::sleep(Duration::from_millis(5));
        reader.is_finished() || connection.ask("GET", "/shutdown").closes()
    });
    let status = process.wait().expect("it ends");
    let rest = reader.join().expect("the reader does not panic");
    assert!(status.success(), "{status}");
    assert!(rest.contains(" log lines were dropped: stderr was full"), "{}", &rest[rest.len().saturating_sub(2000)..]);
}

#[test]
fn no_clean_stop_logs_an_error_not_even_of_the_engine() {
    for listen in ["127.0.0.1:0", "[::]:0"] {
        for path in ["", "/", "/shutdown"] {
            let mut server = Allout::new().args(["--listen", listen]).env("RUST_LOG", "debug,tiny_http=debug").start();
            if !path.is_empty() {
                assert_eq!(server.ask_with("GET", path, "").status, 200);
            }
            if path != "/shutdown" {
                server.signal(Signal::TERM);
            }
            server.assert_exit(0, LIMIT);
            let said = server.log();
            assert!(!said.contains("ERROR") && !said.contains("WARN  Error"), "{said}");
            // Whether its thread says so before the process is gone is chance; that it had to be forced is said first.
            assert!(!said.contains("ended by closing its socket"), "tiny_http's accept thread did not end:\n{said}");
        }
    }
}

// --- SIGUSR1

#[test]
fn sigusr1_tells_who_is_doing_what() {
    let server = Allout::new().args(["--timeout-delay", "60s", "--workers", "1", "--queue", "1"]).start();
    let mut idle = server.connect();
    assert_eq!(idle.ask("GET", "/").status, 200);
    let mut stuck = server.connect();
    stuck.request("GET", "/timeout?stuck");
    server.wait_until_read(&stuck);
    let mut queued = server.connect();
    queued.request("GET", "/timeout?queued");
    server.wait_until_read(&queued);

    let report = || {
        let before = server.log().len();
        server.signal(Signal::USR1);
        wait_until(LIMIT, "the report", || server.log()[before..].contains(" in flight, "));
        // Its last lines are the requests; what follows them is not known.
        server.log()
    };
    wait_until(LIMIT, "both requests to be in the report", || {
        let said = report();
        said.contains("state: GET /timeout?stuck from 127.0.0.1:") && said.contains("state: GET /timeout?queued from ")
    });
    let said = server.log();
    for expected in [
        "state: serving, up for ",
        if common::engine::NATIVE { "1 receiver waiting" } else { "1 listener waiting" },
        if common::engine::NATIVE {
            "state: members: workers, signals, receiver-1"
        } else {
            "state: members: workers, signals, monitor"
        },
        "2 busy, 1 idle, 0 closing",
        "state: 1 worker of at most 1, 1 busy; 1 of at most 1 queued; 2 requests in flight",
        ", worker-1",
        ", no worker (queued, or inline)",
    ] {
        assert!(said.contains(expected), "no {expected:?} in:\n{said}");
    }
    assert_eq!(server.get("/healthz").status, 200);
}

#[test]
fn admin_routes_answer_although_all_workers_are_busy() {
    let mut server =
        Allout::new().args(["--timeout-delay", "60s", "--workers", "1", "--queue", "0", "--grace", "100ms"]).start();
    let mut stuck = server.connect();
    stuck.request("GET", "/timeout");
    server.wait_until_read(&stuck);
    wait_until(LIMIT, "the only worker to be busy", || server.ask("POST", "/timeout").status == 405);
    for path in ["/healthz", "/livez", "/metrics"] {
        assert_eq!(server.get(path).status, 200, "{path}");
    }
    wait_for_sample(&server, "allout_workers{state=\"busy\"}", 2.0); // one of them is reserved for /metrics
    assert_eq!(server.get("/timeout").status, 503, "it is shed");
    assert_eq!(server.get("/shutdown").status, 200);
    assert!(matches!(server.wait_exit(LIMIT).code(), Some(0 | 3)));
}

// --- Responses

#[test]
fn responses_of_admin_routes_are_not_to_be_cached() {
    let server = Allout::new().start();
    for path in ["/healthz", "/readyz", "/livez", "/metrics"] {
        let response = server.get(path);
        assert_eq!(response.header("cache-control"), Some("no-store"), "{path}: {response:?}");
    }
    for (method, path) in [("GET", "/"), ("GET", "/metrics"), ("BREW", "/healthz"), ("CONNECT", "/")] {
        let response = server.ask(method, path);
        assert_eq!(response.header("x-content-type-options"), Some("nosniff"), "{method} {path}: {response:?}");
    }
    let text = server.get("/metrics");
    assert_eq!(text.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
}

#[cfg(feature = "generate")]
#[test]
fn completions_and_the_man_page_are_of_the_plain_binary() {
    for (what, expected) in [("bash", "complete -F"), ("zsh", "#compdef allout"), ("fish", "complete -c allout")] {
        let mut process = Allout::new().args(["--generate", what]).spawn();
        process.assert_exit(0, LIMIT);
        let text = process.stdout();
        assert!(text.contains(expected) && text.contains("shutdown-token-file"), "{what}: {text}");
        assert!(!text.contains("generate"), "{what}: {text}");
    }
    let mut process = Allout::new().args(["--generate", "man"]).spawn();
    process.assert_exit(0, LIMIT);
    let text = process.stdout();
    assert!(text.contains(".TH allout 1") && text.contains("drain\\-delay"), "{text}");
}
