//! Framing in the corner cases of the RFCs: complete messages are accepted, malformed ones are 400 and end the connection,
//! and no response has a length that it must not have.

#![allow(clippy::expect_used, clippy::panic, reason = "a test says what it expects by panicking")]

#[macro_use]
mod common;
#[path = "common/wire.rs"]
mod wire;

use common::{Allout, LIMIT, Serving};
use rustix::process::Signal;
use std::io::Write as _;
use std::net::Shutdown;
use std::time::Duration;
use wire::{End, Wire, read_to_end, read_until, send};

/// What is to happen at once, on a machine that is busy with something else.
const AT_ONCE: Duration = Duration::from_secs(2);
/// A request that names itself, so that its answer cannot be missed.
const NEXT: &str = "GET /?user=next HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";

fn start(engine: &str) -> Serving {
    Allout::new().args(["--engine", engine]).start()
}

#[track_caller]
fn assert_clean_stop(mut server: Serving) {
    assert_eq!(server.get("/healthz").status, 200);
    server.signal(Signal::TERM);
    server.assert_exit(0, LIMIT);
    assert!(!server.log().contains("panicked"), "a thread panicked");
}

fn text(wire: &Wire) -> String {
    String::from_utf8_lossy(&wire.bytes).into_owned()
}

fn post(headers: &str, body: &str) -> String {
    format!("POST /?user=first HTTP/1.1\r\nHost: a\r\n{headers}\r\n{body}")
}

const CHUNKED: &str = "Transfer-Encoding: chunked\r\n";

/// Sends this and says no more, by a half-close or not; what comes, up to the end of the connection.
fn ask(server: &Serving, raw: &str, half_close: bool) -> Wire {
    let mut stream = send(server.addr, raw);
    if half_close {
        stream.shutdown(Shutdown::Write).expect("the server is there");
    }
    read_to_end(&mut stream, AT_ONCE)
}

/// Whole bodies.
fn a_chunked_body_that_is_whole_is_answered(engine: &str) {
    let server = start(engine);
    let rows = [
        ("plain", post(CHUNKED, "5\r\nhello\r\n0\r\n\r\n")),
        ("empty", post(CHUNKED, "0\r\n\r\n")),
        ("several chunks", post(CHUNKED, "1\r\nh\r\n4\r\nello\r\n0\r\n\r\n")),
        (
            "digits in both cases, and zeros before",
            post(CHUNKED, "00a\r\n0123456789\r\nA\r\n0123456789\r\n000\r\n\r\n"),
        ),
        ("an extension", post(CHUNKED, "5;a=b\r\nhello\r\n0;c\r\n\r\n")),
        ("an extension in quotes", post(CHUNKED, "5;a=\"b;c\"\r\nhello\r\n0\r\n\r\n")),
        ("a trailer", post(CHUNKED, "5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n")),
        ("two trailers", post(CHUNKED, "5\r\nhello\r\n0\r\nX-Sum: 1\r\nX-Other: 2\r\n\r\n")),
        ("the coding in capitals", post("Transfer-Encoding: CHUNKED\r\n", "5\r\nhello\r\n0\r\n\r\n")),
    ];
    let mut wrong = Vec::new();
    for (name, raw) in &rows {
        for half_close in [false, true] {
            let close = raw.replacen("Host: a\r\n", "Host: a\r\nConnection: close\r\n", 1);
            let wire = ask(&server, if half_close { raw } else { &close }, half_close);
            if wire.status() != 200 || wire.body() != b"hello, first\n" || wire.end == End::Late {
                wrong.push(format!("{name}, half closed {half_close}: {}", wire.summary()));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), rows.len() * 2, wrong.join("\n"));
    assert_clean_stop(server);
}

/// The same for a body with a length, and for no body.
fn a_whole_request_with_a_half_close_behind_it_is_answered(engine: &str) {
    let server = start(engine);
    for raw in [
        post("Content-Length: 5\r\n", "hello"),
        post("Content-Length: 0\r\n", ""),
        post("Content-Length: 0000000000000000000000005\r\n", "hello"),
        "GET /?user=first HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
    ] {
        let wire = ask(&server, &raw, true);
        assert_eq!((wire.status(), wire.body()), (200, &b"hello, first\n"[..]), "{raw:?}: {}", wire.summary());
        assert_eq!(wire.end, End::Eof, "{raw:?}: {}", wire.summary());
    }
    assert_clean_stop(server);
}

/// Items 17 and 24: each is 400, the connection ends, and nothing behind it is handled.
fn a_body_that_cannot_be_framed_is_a_400_and_closes_the_connection(engine: &str) {
    let server = start(engine);
    let get = |headers: &str| format!("GET / HTTP/1.1\r\nHost: a\r\n{headers}\r\n");
    let body = "5\r\nhello\r\n0\r\n\r\n";
    let rows = [
        ("chunked, then gzip", post("Transfer-Encoding: chunked, gzip\r\n", body)),
        ("chunked twice", post("Transfer-Encoding: chunked, chunked\r\n", body)),
        ("a length beyond 64 bits", post("Content-Length: 18446744073709551616\r\n", "")),
        ("a length of 40 digits", post("Content-Length: 1000000000000000000000000000000000000000\r\n", "")),
        ("a folded line", get("X: a\r\n b\r\n")),
        ("a folded line with a tab", get("X: a\r\n\tb\r\n")),
        ("a folded line that looks like a header", get("X: a\r\n Content-Length: 5\r\n")),
        ("a space before the first header", "GET / HTTP/1.1\r\n Host: a\r\n\r\n".to_owned()),
        ("\\x0b before the coding", post("Transfer-Encoding: \x0bchunked\r\n", body)),
        ("\\x0b behind the coding", post("Transfer-Encoding: chunked\x0b\r\n", body)),
        ("\\x0c in a length", post("Content-Length: \x0c5\r\n", "hello")),
        ("an empty coding", post("Transfer-Encoding:\r\n", body)),
    ];
    let mut wrong = Vec::new();
    for (name, raw) in &rows {
        let wire = ask(&server, &format!("{raw}{NEXT}"), false);
        let handled = text(&wire).contains("hello, next");
        if wire.status() != 400 || wire.end == End::Late || handled {
            wrong.push(format!("{name}: the next is handled: {handled}; {}", wire.summary()));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
    assert_clean_stop(server);
}

/// No 100 where there is no body to continue with.
fn no_continue_is_sent_where_there_is_no_body(engine: &str) {
    let server = start(engine);
    let rows = [
        ("no body", "POST /?user=first HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 0\r\n\r\n"),
        ("no length", "GET /?user=first HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n\r\n"),
    ];
    for (name, head) in rows {
        let mut stream = send(server.addr, head);
        let wire = read_until(&mut stream, AT_ONCE, |bytes| bytes.ends_with(b"hello, first\n"));
        assert_eq!(wire.status(), 200, "{name}: {}", wire.summary());
    }
    assert_clean_stop(server);
}

/// RFC 9110, section 10.1.1: an expectation in an HTTP/1.0 request must be ignored.
fn an_expectation_in_http_1_0_is_ignored(engine: &str) {
    let server = start(engine);
    let head = "POST /?user=first HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n";
    let mut stream = send(server.addr, head);
    stream.write_all(b"hello").expect("the server is there");
    let wire = read_to_end(&mut stream, AT_ONCE);
    assert!(!text(&wire).contains("HTTP/1.0 100") && !text(&wire).contains("HTTP/1.1 100"), "{}", text(&wire));
    assert_eq!((wire.status(), wire.body()), (200, &b"hello, first\n"[..]), "{}", wire.summary());
    assert_clean_stop(server);
}

/// RFC 9110, section 9.3.7: `OPTIONS *` asks about the server, and every server can tell.
fn options_of_the_server_itself_are_answered(engine: &str) {
    let service =
        common::engine::service_on(engine).get("/", |_| "hello").listen("127.0.0.1:0").start().expect("it starts");
    let raw = "OPTIONS * HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let wire = wire::ask(service.address(), raw, AT_ONCE);
    assert!(matches!(wire.status(), 200 | 204), "{}", wire.summary());
    assert_eq!(wire.body(), b"", "{}", wire.summary());
    // The asterisk is no path: a GET of it is a 400.
    let wire = wire::ask(service.address(), raw.replacen("OPTIONS", "GET", 1), AT_ONCE);
    assert_eq!(wire.status(), 400, "{}", wire.summary());
    assert_eq!(service.stop("the test is over").code(), 0);
}

/// The general route says 413 to a length that it will not read, whatever of it comes.
fn a_body_that_will_not_be_read_is_a_413(engine: &str) {
    let server = start(engine);
    let mut wrong = Vec::new();
    for length in
        ["1048577", "2000000", "100000000000", "9223372036854775807", "9223372036854775808", "18446744073709551615"]
    {
        for (name, headers) in [("plain", ""), ("expected", "Expect: 100-continue\r\n")] {
            let raw =
                post(&format!("{headers}Content-Length: {length}\r\n"), if headers.is_empty() { "some" } else { "" });
            let wire = ask(&server, &raw, false);
            if wire.status() != 413 || wire.end == End::Late {
                wrong.push(format!("{length}, {name}: {}", wire.summary()));
            }
        }
    }
    // One that is within its limit is read.
    let whole = post("Connection: close\r\nContent-Length: 1048576\r\n", &"x".repeat(1024 * 1024));
    let wire = ask(&server, &whole, false);
    assert_eq!(wire.status(), 200, "{}", wire.summary());
    assert!(wrong.is_empty(), "{} of 12:\n{}", wrong.len(), wrong.join("\n"));
    assert_clean_stop(server);
}

tests_of_both_engines! {
    #[tiny_http = "11 of 18: with a half-close behind it, or with a trailer, it is a 400"]
    a_chunked_body_that_is_whole_is_answered;
    a_whole_request_with_a_half_close_behind_it_is_answered;
    #[tiny_http = "5 of 12: lines that begin with a space, and \\x0b and \\x0c as if they were spaces"]
    a_body_that_cannot_be_framed_is_a_400_and_closes_the_connection;
    no_continue_is_sent_where_there_is_no_body;
    #[tiny_http = "417: tiny_http would send 100 Continue"]
    an_expectation_in_http_1_0_is_ignored;
    options_of_the_server_itself_are_answered;
    a_body_that_will_not_be_read_is_a_413;
}
