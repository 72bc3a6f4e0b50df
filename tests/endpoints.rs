//! The responses of each endpoint, byte by byte where it matters.

#![allow(clippy::expect_used, clippy::panic, reason = "a test says what it expects by panicking")]

mod common;

use common::http::Response;
use common::{Allout, LIMIT, Speak as _};
use rustix::process::Signal;
use std::net::TcpListener;
use std::time::Duration;

/// What every error must be: short, and text.
#[track_caller]
fn assert_short_text(response: &Response) {
    let kind = response.header("content-type").unwrap_or_default();
    assert!(kind.starts_with("text/plain"), "{response:?}");
    assert!((1..=300).contains(&response.text().len()), "not a short text: {response:?}");
}

#[track_caller]
fn assert_answer(response: &Response, status: u16, text: &str) {
    assert_eq!((response.status, response.text().as_str()), (status, text), "{response:?}");
}

#[test]
fn the_general_route_greets() {
    let server = Allout::new().start();
    for path in ["/", "/nope", "/a/b/c", "/?other=x", "/healthzz", "/health", "//", "/index.html"] {
        assert_answer(&server.get(path), 200, "hello, world");
    }
}

#[test]
fn the_general_route_greets_by_name() {
    let server = Allout::new().start();
    let cases = [
        ("/?user=alice", "alice"),
        ("/any/where?user=alice", "alice"),
        ("/?other=1&user=alice&more=2", "alice"),
        ("/?user=Ada+Lovelace", "Ada Lovelace"),
        ("/?user=Ada%20Lovelace", "Ada Lovelace"),
        ("/?user=1%2B1", "1+1"),
        ("/?user=a%26b%3Dc", "a&b=c"),
        ("/?user=a=b", "a=b"),
        ("/?user=100%25", "100%"),
        ("/?%75ser=alice", "alice"),
        ("/?user=%c3%a9t%C3%A9", "\u{e9}t\u{e9}"),
        ("/?user=%F0%9F%A6%80", "\u{1f980}"),
        ("/?user=%E4%BD%A0%E5%A5%BD", "\u{4f60}\u{597d}"),
        ("/?user=%3Cb%3E", "<b>"),
    ];
    for (path, name) in cases {
        // Shown only if the test fails.
        println!("{path}");
        assert_answer(&server.get(path), 200, &format!("hello, {name}"));
    }
}

#[test]
fn an_empty_name_is_no_name() {
    let server = Allout::new().start();
    for path in ["/?user=", "/?user", "/?user=&x=1", "/?", "/?&", "/?="] {
        assert_answer(&server.get(path), 200, "hello, world");
    }
}

#[test]
fn of_repeated_names_the_first_counts() {
    let server = Allout::new().start();
    assert_answer(&server.get("/?user=first&user=second"), 200, "hello, first");
}

#[test]
fn names_that_are_not_utf8_are_answered_in_utf8() {
    let server = Allout::new().start();
    for path in ["/?user=%FF", "/?user=a%C3", "/?user=%ED%A0%80", "/?user=%80b"] {
        let response = server.get(path);
        assert_eq!(response.status, 200, "{path}: {response:?}");
        let text = std::str::from_utf8(&response.body);
        assert!(text.is_ok_and(|t| t.starts_with("hello, ")), "{path}: {response:?}");
    }
}

#[test]
fn broken_percent_signs_do_no_harm() {
    let server = Allout::new().start();
    for path in ["/?user=%", "/?user=%4", "/?user=%zz", "/?user=a%", "/?user=%%41", "/%zz?user=a", "/?user=%+1"] {
        let response = server.get(path);
        assert!(matches!(response.status, 200 | 400), "{path}: {response:?}");
        assert!(std::str::from_utf8(&response.body).is_ok(), "{path}: {response:?}");
    }
    assert_answer(&server.get("/"), 200, "hello, world");
}

#[test]
fn a_long_name_comes_back_whole() {
    let server = Allout::new().start();
    let name: String = ('a'..='z').cycle().take(8000).collect();
    let mut connection = server.connect();
    assert_answer(&connection.ask("GET", &format!("/?user={name}")), 200, &format!("hello, {name}"));
    assert_answer(&connection.ask("GET", "/?user=short"), 200, "hello, short");
    let name = "\u{e9}".repeat(1300);
    let encoded = "%C3%A9".repeat(1300);
    assert_answer(&connection.ask("GET", &format!("/?user={encoded}")), 200, &format!("hello, {name}"));
}

#[test]
fn a_target_that_is_too_long_is_414() {
    let server = Allout::new().start();
    let response = server.get(&format!("/?user={}", "a".repeat(9000)));
    assert_eq!(response.status, 414, "{response:?}");
    assert_short_text(&response);
    assert_answer(&server.get("/"), 200, "hello, world");
}

#[test]
fn a_name_breaks_neither_a_header_nor_a_log_line() {
    for format in ["text", "json"] {
        let mut server = Allout::new().args(["--log-format", format]).env("RUST_LOG", "trace").start();
        let mut connection = server.connect();
        let names = [
            "a%0D%0ASet-Cookie:%20forged=1%0D%0A%0D%0Aforged",
            "a%0Aforged%20line",
            "a%0Dforged%20line",
            "a%E2%80%A8forged%20line",
            "a%C2%85forged%20line",
            "a%1B%5B2J%1B%5D0;forged%07",
            "a%00forged",
            "a%22,%22forged%22:%22b",
            "%7B%7D%7B0%7D%25s",
        ];
        for name in names {
            for path in [format!("/?user={name}"), format!("/{name}"), format!("/healthz?{name}")] {
                let response = connection.ask("GET", &path);
                assert_eq!(response.status, 200, "{path}: {response:?}");
                assert_eq!(response.header("set-cookie"), None, "{path}: {response:?}");
                assert!(
                    !response.headers.iter().any(|(n, v)| n.contains("forged") || v.contains("forged")),
                    "{path}: {response:?}"
                );
            }
        }
        // The framing is intact: the next response is the next one's.
        assert_answer(&connection.ask("GET", "/?user=after"), 200, "hello, after");
        server.stop();
        for line in server.log().split(['\n', '\r', '\u{85}', '\u{2028}', '\u{2029}']) {
            assert!(!line.starts_with("forged"), "a log line was forged ({format}): {line:?}");
            let control = |c: char| c.is_control() && c != '\t';
            assert!(!line.contains(control), "a control character in the log ({format}): {line:?}");
        }
    }
}

#[test]
fn the_general_route_takes_every_method() {
    let server = Allout::new().start();
    let mut connection = server.connect();
    for method in ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "PROPFIND", "BREW"] {
        assert_answer(&connection.ask(method, "/?user=any"), 200, "hello, any");
    }
    let response = connection.ask("HEAD", "/?user=any");
    assert_eq!(response.status, 200, "{response:?}");
    assert_answer(&connection.ask("GET", "/"), 200, "hello, world");
}

#[test]
fn connect_is_not_implemented() {
    let server = Allout::new().start();
    for target in ["example.org:443", "/", "/healthz"] {
        let response = server.ask("CONNECT", target);
        assert_eq!(response.status, 501, "{target}: {response:?}");
        assert_short_text(&response);
    }
}

#[test]
fn trace_is_not_allowed() {
    let server = Allout::new().start();
    for path in ["/", "/any", "/healthz"] {
        let response = server.ask("TRACE", path);
        assert_eq!(response.status, 405, "{path}: {response:?}");
        assert!(response.header("allow").is_some_and(|a| !a.contains("TRACE")), "{path}: {response:?}");
        assert_short_text(&response);
    }
}

#[test]
fn health_readiness_and_life() {
    let server = Allout::new().start();
    assert_answer(&server.get("/healthz"), 200, "ok");
    assert_answer(&server.get("/readyz"), 200, "ok");
    assert_eq!(server.get("/livez").status, 200);
    // A query does not make another path of it.
    assert_answer(&server.get("/healthz?user=x"), 200, "ok");
}

#[test]
fn timeout_answers_after_its_delay() {
    let server = Allout::new().args(["--timeout-delay", "300ms"]).start();
    let asked = std::time::Instant::now();
    let response = server.get("/timeout");
    assert_eq!(response.status, 200, "{response:?}");
    assert!(asked.elapsed() >= Duration::from_millis(300), "answered after {:?}", asked.elapsed());
}

#[test]
fn metrics_are_prometheus_text() {
    let server = Allout::new().start();
    assert_eq!(server.get("/").status, 200);
    let response = server.get("/metrics");
    assert_eq!(response.status, 200, "{response:?}");
    assert!(response.header("content-type").is_some_and(|v| v.starts_with("text/plain")), "{response:?}");
    let text = response.text();
    let mut samples = 0;
    for line in text.lines().filter(|l| !l.is_empty()) {
        if let Some(comment) = line.strip_prefix('#') {
            let word = comment.split_whitespace().next().unwrap_or_default();
            assert!(matches!(word, "HELP" | "TYPE" | "EOF"), "{line:?}");
            continue;
        }
        let value = line.rsplit(' ').next().and_then(|v| v.parse::<f64>().ok());
        assert!(value.is_some(), "no sample: {line:?}");
        assert!(line.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_'), "no name: {line:?}");
        samples += 1;
    }
    assert!(samples > 0, "no sample at all: {text:?}");
}

#[test]
fn head_has_the_headers_of_get_and_no_body() {
    let server = Allout::new().args(["--timeout-delay", "10ms"]).start();
    let mut connection = server.connect();
    for path in ["/", "/?user=alice", "/nope", "/healthz", "/readyz", "/livez", "/timeout"] {
        let get = connection.ask("GET", path);
        // A body would be taken for the beginning of the next response here.
        let head = connection.ask("HEAD", path);
        assert_eq!(head.status, get.status, "{path}");
        let compared = |r: &Response| {
            let mut headers: Vec<_> = r.headers.iter().map(|(n, v)| (n.to_lowercase(), v.clone())).collect();
            headers.retain(|(n, _)| n != "date" && n != "x-request-id");
            headers.sort();
            headers
        };
        assert_eq!(compared(&head), compared(&get), "{path}");
    }
    let head = connection.ask("HEAD", "/metrics");
    assert_eq!(head.status, 200, "{head:?}");
    assert_answer(&connection.ask("GET", "/"), 200, "hello, world");
}

#[test]
fn other_methods_on_known_paths_are_405_with_allow() {
    let server = Allout::new().start();
    for path in ["/healthz", "/readyz", "/livez", "/timeout", "/metrics"] {
        for method in ["POST", "PUT", "DELETE", "BREW"] {
            let response = server.ask(method, path);
            assert_eq!(response.status, 405, "{method} {path}: {response:?}");
            let allow = response.header("allow").unwrap_or_default();
            let allowed: Vec<_> = allow.split(',').map(str::trim).collect();
            assert!(allowed.contains(&"GET") && allowed.contains(&"HEAD"), "{method} {path}: {response:?}");
            assert!(!allowed.contains(&method), "{method} {path}: {response:?}");
            assert_short_text(&response);
        }
    }
    for method in ["PUT", "DELETE", "PATCH"] {
        let response = server.ask(method, "/shutdown");
        assert_eq!(response.status, 405, "{method} /shutdown: {response:?}");
        let allow = response.header("allow").unwrap_or_default();
        let allowed: Vec<_> = allow.split(',').map(str::trim).collect();
        assert!(allowed.contains(&"GET") && allowed.contains(&"POST"), "{method} /shutdown: {response:?}");
        assert_short_text(&response);
    }
    assert!(server.is_alive());
    assert_answer(&server.get("/healthz"), 200, "ok");
}

#[test]
fn responses_carry_what_they_should() {
    let server = Allout::new().args(["--timeout-delay", "10ms"]).start();
    let cases = [
        ("GET", "/"),
        ("GET", "/?user=%C3%A9"),
        ("GET", "/healthz"),
        ("GET", "/livez"),
        ("GET", "/metrics"),
        ("GET", "/timeout"),
        ("POST", "/healthz"),
        ("TRACE", "/"),
    ];
    for (method, path) in cases {
        let response = server.ask(method, path);
        let told = format!("{method} {path}: {response:?}");
        let count = |name: &str| response.headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name)).count();
        assert_eq!(response.version, "HTTP/1.1", "{told}");
        assert_eq!(count("date"), 1, "{told}");
        assert!(response.header("date").is_some_and(|d| d.len() == 29 && d.ends_with(" GMT")), "{told}");
        assert_eq!(count("content-type"), 1, "{told}");
        let kind = response.header("content-type").unwrap_or_default().to_lowercase().replace(' ', "");
        assert!(kind.contains("charset=utf-8"), "{told}");
        assert_eq!(count("content-length") + count("transfer-encoding"), 1, "{told}");
        if let Some(length) = response.header("content-length") {
            assert_eq!(length, response.body.len().to_string(), "{told}");
        }
        assert!(count("server") <= 1, "{told}");
        let server = response.header("server").unwrap_or_default();
        assert!(!server.contains(|c: char| c.is_ascii_digit()), "a version: {told}");
    }
}

#[test]
fn a_connection_serves_one_request_after_the_other() {
    let server = Allout::new().start();
    let mut connection = server.connect();
    for n in 0..20 {
        let response = connection.ask("GET", &format!("/?user={n}"));
        assert_answer(&response, 200, &format!("hello, {n}"));
        assert!(!response.closes(), "{response:?}");
    }
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let server = Allout::new().args(["--timeout-delay", "50ms"]).start();
    let mut connection = server.connect();
    let request = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: allout.test\r\n\r\n");
    let all: String = ["/?user=1", "/timeout", "/?user=2", "/healthz", "/?user=3"].map(request).concat();
    connection.send_raw(all);
    assert_answer(&connection.expect_response("GET"), 200, "hello, 1");
    assert_eq!(connection.expect_response("GET").status, 200);
    assert_answer(&connection.expect_response("GET"), 200, "hello, 2");
    assert_answer(&connection.expect_response("GET"), 200, "ok");
    assert_answer(&connection.expect_response("GET"), 200, "hello, 3");
}

#[test]
fn a_connection_closes_when_its_client_asks_for_it() {
    let server = Allout::new().start();
    let mut connection = server.connect();
    connection.send_raw("GET / HTTP/1.1\r\nHost: allout.test\r\nConnection: close\r\n\r\n");
    let response = connection.expect_response("GET");
    assert_answer(&response, 200, "hello, world");
    assert!(response.closes(), "{response:?}");
    connection.expect_end();
}

#[test]
fn http_1_0_is_answered_and_ended() {
    let server = Allout::new().start();
    let mut connection = server.connect();
    connection.send_raw("GET /?user=old HTTP/1.0\r\n\r\n");
    assert_answer(&connection.expect_response("GET"), 200, "hello, old");
    connection.expect_end();
}

#[test]
fn absolute_targets_are_taken_apart() {
    // RFC 9112, section 3.2.2: a server must accept them.
    let server = Allout::new().start();
    assert_answer(&server.get("http://allout.test/healthz"), 200, "ok");
    assert_answer(&server.get("http://allout.test/?user=alice"), 200, "hello, alice");
}

#[test]
fn a_body_is_read_and_thrown_away() {
    let server = Allout::new().start();
    let head = "POST /?user=sender HTTP/1.1\r\nHost: allout.test\r\n";
    let big = "x".repeat(100_000);
    let bodies = [
        "Content-Length: 0\r\n\r\n".to_owned(),
        "Content-Length: 5\r\n\r\nhello".to_owned(),
        // What would be a request if the body were not taken off.
        "Content-Length: 24\r\n\r\nGET /?user=x HTTP/1.1\r\n\r".to_owned(),
        "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n3\r\n!!!\r\n0\r\n\r\n".to_owned(),
        format!("Content-Length: {}\r\n\r\n{big}", big.len()),
    ];
    for body in bodies {
        let mut connection = server.connect();
        connection.send_raw(format!("{head}{body}"));
        let response = connection.expect_response("POST");
        assert_answer(&response, 200, "hello, sender");
        // Either the body was read to its end, or nothing more may come on this connection.
        if response.closes() {
            connection.expect_end();
        } else {
            assert_answer(&connection.ask("GET", "/?user=next"), 200, "hello, next");
        }
    }
}

#[test]
fn a_client_that_waits_for_continue_is_told_to() {
    let server = Allout::new().start();
    let mut connection = server.connect();
    connection.send_raw("POST / HTTP/1.1\r\nHost: allout.test\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n");
    // Either it is told to go on, or it gets its answer at once; what it must not do is to wait for ever.
    server.wait_until_read(&connection);
    let early = connection.read_interim(LIMIT);
    match early {
        Ok(100) => {
            connection.send_raw("hello");
            assert_answer(&connection.expect_response("POST"), 200, "hello, world");
        }
        Ok(200) => {}
        other => panic!("waited for 100 or 200: {other:?}"),
    }
}

#[test]
fn it_serves_on_ipv6() {
    if let Err(e) = TcpListener::bind("[::1]:0") {
        eprintln!("this machine has no IPv6: {e}");
        return;
    }
    let mut server = Allout::new().args(["--listen", "[::1]:0"]).start();
    assert!(server.addr.is_ipv6() && server.addr.port() != 0, "{}", server.addr);
    let mut connection = server.connect();
    assert_answer(&connection.ask("GET", "/?user=six"), 200, "hello, six");
    assert_answer(&connection.ask("GET", "/healthz"), 200, "ok");
    server.signal(Signal::TERM);
    connection.expect_end();
    server.assert_exit(0, LIMIT);
}
