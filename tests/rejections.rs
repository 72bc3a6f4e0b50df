//! Requests that RFC 9112 and RFC 9110 say a server must reject: each is rejected, the connection is closed, and nothing
//! behind it is handled. A request that names itself follows each, so that its response would be noticed.

#![allow(clippy::expect_used, clippy::panic, reason = "tests say what they expect by panicking")]
#![allow(clippy::needless_for_each, clippy::format_collect, clippy::items_after_statements, reason = "shorter to read")]

mod common;

use common::engine::NATIVE;
use common::{Allout, LIMIT, Serving, Speak as _};
use std::io::Read as _;
use std::net::Shutdown;
use std::thread;
use std::time::Duration;

/// A request smuggled behind one that is rejected.
const SMUGGLED: &str = "GET /?user=smuggled HTTP/1.1\r\nHost: allout.test\r\n\r\n";

/// All that comes until the server ends the connection.
#[track_caller]
fn all_until_the_end(server: &Serving, raw: &[u8], name: &str) -> String {
    let mut connection = server.connect();
    connection.send_raw(raw);
    rest(connection.stream(), name)
}

#[track_caller]
fn rest(mut stream: &std::net::TcpStream, name: &str) -> String {
    stream.set_read_timeout(Some(LIMIT)).expect("a socket takes a timeout");
    let mut all = Vec::new();
    match stream.read_to_end(&mut all) {
        Ok(_) => {}
        // Input that the server has not read turns the end into a reset; the bytes before it count.
        Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => {}
        Err(e) => panic!("{name}: waited {LIMIT:?} for the end of the connection: {e}; so far: {all:?}"),
    }
    String::from_utf8_lossy(&all).into_owned()
}

#[track_caller]
fn assert_rejected(server: &Serving, name: &str, status: u16, raw: &str) {
    let said = all_until_the_end(server, format!("{raw}{SMUGGLED}").as_bytes(), name);
    assert!(!said.contains("smuggled"), "{name}: what followed was handled: {said}");
    let heads = said.matches("HTTP/1.").count();
    let first = said.lines().next().unwrap_or_default();
    assert!(first.starts_with("HTTP/1.") && first.contains(&format!(" {status} ")), "{name}: no {status}: {said:?}");
    // tiny_http rejects some by itself, without the header; it closes all the same.
    if said.contains("Server: allout") {
        assert!(said.contains("\r\nConnection: close\r\n"), "{name}: {said}");
        let body = said.split("\r\n\r\n").nth(1).unwrap_or_default();
        let in_body = body.matches("HTTP/1.").count();
        assert_eq!(heads - in_body, 1, "{name}: one response and no more: {said}");
    }
}

fn get(headers: &str) -> String {
    format!("GET / HTTP/1.1\r\n{headers}\r\n")
}

fn post(headers: &str, body: &str) -> String {
    format!("POST / HTTP/1.1\r\nHost: allout.test\r\n{headers}\r\n{body}")
}

/// A request that must be rejected: what is wrong with it, the status, the request.
type Row = (&'static str, u16, String);

const HOST: &str = "Host: allout.test\r\n";

/// Rows about `Host` and about the framing of the body.
fn framing_rows() -> Vec<Row> {
    vec![
        ("no Host", 400, get("")),
        ("two Hosts", 400, get("Host: a\r\nHost: a\r\n")),
        ("an empty Host", 400, get("Host:\r\n")),
        ("a list for a Host", 400, get("Host: a, b\r\n")),
        ("a Host with a user", 400, get("Host: user@a\r\n")),
        ("a Host with a path", 400, get("Host: a/b\r\n")),
        ("a length with a sign", 400, post("Content-Length: +5\r\n", "hello")),
        ("a list of lengths", 400, post("Content-Length: 5,6\r\n", "hello")),
        ("a list of equal lengths", 400, post("Content-Length: 5, 5\r\n", "hello")),
        ("an empty length", 400, post("Content-Length:\r\n", "")),
        ("a negative length", 400, post("Content-Length: -1\r\n", "")),
        ("a hexadecimal length", 400, post("Content-Length: 0x5\r\n", "hello")),
        ("two lengths", 400, post("Content-Length: 5\r\nContent-Length: 5\r\n", "hello")),
        ("two different lengths", 400, post("Content-Length: 5\r\nContent-Length: 60\r\n", "hello")),
        ("a length beyond all numbers", 400, post("Content-Length: 18446744073709551616\r\n", "")),
        ("a length and a coding", 400, post("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n")),
        ("a coding and a length", 400, post("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", "0\r\n\r\n")),
        ("the coding identity", 400, post("Transfer-Encoding: identity\r\n", "0\r\n\r\n")),
        ("the coding gzip, chunked", 501, post("Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n")),
        ("the coding chunked, gzip", 400, post("Transfer-Encoding: chunked, gzip\r\n", "0\r\n\r\n")),
        ("a coding in quotes", 400, post("Transfer-Encoding: \"chunked\"\r\n", "0\r\n\r\n")),
        ("two codings", 400, post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n")),
        (
            "a coding in HTTP/1.0",
            400,
            "POST / HTTP/1.0\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_owned(),
        ),
        ("a chunk without a size", 400, post("Transfer-Encoding: chunked\r\n", "zz\r\nhello\r\n0\r\n\r\n")),
        ("a chunk longer than it says", 400, post("Transfer-Encoding: chunked\r\n", "3\r\nhello\r\n0\r\n\r\n")),
        ("a chunk larger than all", 400, post("Transfer-Encoding: chunked\r\n", "fffffffffffffffff\r\nhello\r\n")),
    ]
}

/// Rows about the request line and the header fields.
fn head_rows() -> Vec<Row> {
    let long = "a".repeat(17_000);
    let many: String = (0..101).map(|n| format!("X-{n}: a\r\n")).collect();
    let large: String = (0..9).map(|n| format!("X-{n}: {}\r\n", "a".repeat(8000))).collect();
    vec![
        ("CR in a value", 400, get(&format!("{HOST}X: a\rb\r\n"))),
        ("LF in a value", 400, get(&format!("{HOST}X: a\nb: c\r\n"))),
        ("NUL in a value", 400, get(&format!("{HOST}X: a\0b\r\n"))),
        ("CR in the target", 400, format!("GET /a\rb HTTP/1.1\r\n{HOST}\r\n")),
        ("NUL in the target", 400, format!("GET /a\0b HTTP/1.1\r\n{HOST}\r\n")),
        ("LF in the target", 400, format!("GET /a\nb HTTP/1.1\r\n{HOST}\r\n")),
        ("a method that is no token", 400, format!("G(T / HTTP/1.1\r\n{HOST}\r\n")),
        ("a method with a NUL", 400, format!("G\0T / HTTP/1.1\r\n{HOST}\r\n")),
        ("version 0.9", 505, format!("GET / HTTP/0.9\r\n{HOST}\r\n")),
        ("no version", 400, format!("GET /\r\n{HOST}\r\n")),
        ("a header without a name", 400, get(&format!("{HOST}: a\r\n"))),
        ("a name that is no token", 400, get(&format!("{HOST}a(b: c\r\n"))),
        ("a space before the colon", 400, post("Content-Length : 5\r\n", "hello")),
        ("a line without a colon", 400, get(&format!("{HOST}nothing\r\n"))),
        ("a folded line", 400, get(&format!("{HOST}X: a\r\n b\r\n"))),
        ("an asterisk with GET", 400, format!("GET * HTTP/1.1\r\n{HOST}\r\n")),
        ("a target that is no path", 400, format!("GET path HTTP/1.1\r\n{HOST}\r\n")),
        ("a target of https", 421, format!("GET https://allout.test/ HTTP/1.1\r\n{HOST}\r\n")),
        (
            "a method of 100 KB",
            if NATIVE { 400 } else { 501 },
            format!("{} / HTTP/1.1\r\n{HOST}\r\n", "A".repeat(100_000)),
        ),
        ("CONNECT", 501, format!("CONNECT a:80 HTTP/1.1\r\n{HOST}\r\n")),
        ("an expectation that is unknown", 417, get(&format!("{HOST}Expect: much\r\n"))),
        ("a long target", 414, format!("GET /{} HTTP/1.1\r\n{HOST}\r\n", "a".repeat(8192))),
        ("a target of 100 KB", 414, format!("GET /{} HTTP/1.1\r\n{HOST}\r\n", "a".repeat(100_000))),
        ("a long header", 431, get(&format!("{HOST}X: {long}\r\n"))),
        ("large headers", 431, get(&format!("{HOST}{large}"))),
        ("many headers", 431, get(&format!("{HOST}{many}"))),
    ]
}

/// Rows about which the engines differ.
fn engine_rows() -> Vec<Row> {
    if NATIVE {
        vec![
            ("a chunk's size with a sign", 400, post("Transfer-Encoding: chunked\r\n", "+5\r\nhello\r\n0\r\n\r\n")),
            ("LF in a chunk's extension", 400, post("Transfer-Encoding: chunked\r\n", "5;a\nb\r\nhello\r\n0\r\n\r\n")),
            ("a bare LF behind a line", 400, get(&format!("{HOST}X: a\n"))),
        ]
    } else {
        // RFC 9110 allows these; tiny_http would misread them.
        vec![
            ("an upgrade with chunks", 501, post("Connection: upgrade\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n")),
            ("a version that is unknown", 400, format!("GET / HTTP/1.2\r\n{HOST}\r\n")),
            (
                "an expectation in HTTP/1.0",
                417,
                "POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n".to_owned(),
            ),
            ("two Connections", 400, get(&format!("{HOST}Connection: keep-alive\r\nConnection: close\r\n"))),
        ]
    }
}

#[test]
fn a_malformed_request_is_rejected_and_nothing_behind_it_is_handled() {
    let rows = [framing_rows(), head_rows(), engine_rows()].concat();
    let mut server = Allout::new().args(["--idle-timeout", "5s"]).start();
    thread::scope(|scope| {
        let server = &server;
        let threads: Vec<_> = rows
            .chunks(rows.len().div_ceil(4))
            .map(|rows| {
                scope.spawn(move || {
                    rows.iter().for_each(|(name, status, raw)| assert_rejected(server, name, *status, raw));
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().expect("as its message says"));
    });
    assert_eq!(server.get("/healthz").status, 200);
    server.signal(rustix::process::Signal::TERM);
    server.assert_exit(0, LIMIT);
    assert!(!server.log().contains("panicked"), "{}", server.log());
}

#[test]
fn what_follows_the_last_request_is_not_handled() {
    let server = Allout::new().start();
    let mut rows = vec![
        ("close", "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".to_owned()),
        ("HTTP/1.0", "GET / HTTP/1.0\r\n\r\n".to_owned()),
        ("an option that only looks like keep-alive", "GET / HTTP/1.0\r\nConnection: x-keep-alive\r\n\r\n".to_owned()),
    ];
    if !NATIVE {
        rows.extend([
            ("upgrade", "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n".to_owned()),
            // tiny_http's decoder of chunks takes it; others may see another end.
            ("a chunk's size with a sign", post("Transfer-Encoding: chunked\r\n", "+5\r\nhello\r\n0\r\n\r\n")),
            ("LF in a chunk's extension", post("Transfer-Encoding: chunked\r\n", "5;a\nb\r\nhello\r\n0\r\n\r\n")),
        ]);
    }
    for (name, raw) in rows {
        let said = all_until_the_end(&server, format!("{raw}{SMUGGLED}").as_bytes(), name);
        assert!(said.contains(" 200 OK") && !said.contains("smuggled"), "{name}: {said}");
        // Also when it comes after the answer.
        let mut connection = server.connect();
        connection.send_raw(&raw);
        assert_eq!(connection.expect_response("GET").status, 200, "{name}");
        let _ = connection.send(SMUGGLED.as_bytes()); // the server may have closed
        let said = rest(connection.stream(), name);
        assert!(said.is_empty(), "{name}: {said}");
    }
}

#[test]
fn a_body_that_ends_early_is_a_400() {
    let server = Allout::new().start();
    let rows = [
        ("a length", post("Content-Length: 5000\r\n", "hello")),
        ("a chunk", post("Transfer-Encoding: chunked\r\n", "5\r\nhel")),
        ("the last chunk", post("Transfer-Encoding: chunked\r\n", "5\r\nhello\r\n")),
    ];
    for (name, raw) in rows {
        let mut connection = server.connect();
        connection.send_raw(&raw);
        connection.stream().shutdown(Shutdown::Write).expect("the server is there");
        let response = connection.expect_response("POST");
        assert_eq!((response.status, response.closes()), (400, true), "{name}: {response:?}");
        connection.expect_end();
    }
}

#[test]
fn a_body_that_does_not_come_in_time_is_a_408() {
    let server = Allout::new().args(["--request-timeout", "2s"]).start();
    let mut connection = server.connect();
    connection.send_raw(post("Content-Length: 5000\r\n", "hello"));
    let response = connection.read_response("POST", Duration::from_secs(4)).expect("an answer within its time");
    assert_eq!((response.status, response.closes()), (408, true), "{response:?}");
    connection.expect_end();
}

#[test]
fn odd_targets_are_answered_and_break_no_line_of_the_log() {
    let mut server = Allout::new().env("RUST_LOG", "debug").start();
    for target in
        ["//", "/../", "/%00", "/%0d%0aX:%20y", "/?user=%0a%1b[31m", "http://host/path", "http://host?q", "/#a"]
    {
        let status = server.get(target).status;
        assert!((200..500).contains(&status), "{target}: {status}");
    }
    assert_eq!(server.ask("OPTIONS", "*").status, 200);
    server.signal(rustix::process::Signal::TERM);
    server.assert_exit(0, LIMIT);
    let log = server.log();
    assert!(log.lines().all(|line| line.starts_with("20") && !line.contains('\u{1b}')), "{log}");
}
