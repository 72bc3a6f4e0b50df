//! What RFC 9110 and RFC 9112 ask of a server, rule by rule, by their sections, on the native engine.
//!
//! Each row is one message and what must come of it. Behind every message follows another request: it is answered where
//! the connection goes on, and must not be where it does not.

#![allow(clippy::expect_used, clippy::panic, reason = "a test says what it expects by panicking")]

mod common;
#[path = "common/wire.rs"]
mod wire;

use common::{Allout, LIMIT, Serving};
use std::io::Write as _;
use std::net::Shutdown;
use std::time::Duration;
use wire::{End, Wire, ask, read_to_end, read_until, send};

/// What must come of a message.
#[derive(Clone, Copy, Debug)]
enum Expect {
    /// This status, and the connection goes on.
    Keeps(u16),
    /// This status, and the connection ends.
    Closes(u16),
}
use Expect::{Closes, Keeps};

/// Follows every message, and is answered with `NEXT`.
const NEXT: &str = "GET /?user=NEXT HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";

fn start() -> Serving {
    Allout::new().args(["--engine", "native"]).start()
}

fn text(wire: &Wire) -> String {
    String::from_utf8_lossy(&wire.bytes).into_owned()
}

/// What is wrong with the answer to one message, if anything is.
fn judge(server: &Serving, raw: &[u8], expect: Expect) -> Option<String> {
    let all = [raw, NEXT.as_bytes()].concat();
    let wire = ask(server.addr, &all, LIMIT);
    let (status, goes_on) = match expect {
        Keeps(status) => (status, true),
        Closes(status) => (status, false),
    };
    let said = text(&wire);
    let right = wire.status() == status && said.contains("hello, NEXT") == goes_on && wire.end == End::Eof;
    (!right).then(|| format!("{expect:?}, but {}: {said:?}", wire.summary()))
}

#[track_caller]
fn assert_all(rows: &[(&str, &str, Expect)]) {
    let server = start();
    let wrong: Vec<_> = rows
        .iter()
        .filter_map(|(rule, raw, expect)| {
            judge(&server, raw.as_bytes(), *expect).map(|what| format!("{rule}: {raw:?}: {what}"))
        })
        .collect();
    assert!(wrong.is_empty(), "{} of {} are wrong:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
}

#[test]
fn request_lines() {
    let long_target = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(9000));
    let good_target = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(8000));
    let longer_method = format!("{} / HTTP/1.1\r\nHost: a\r\n\r\n", "A".repeat(1000));
    let long_method = format!("{} / HTTP/1.1\r\nHost: a\r\n\r\n", "A".repeat(20_000));
    assert_all(&[
        ("9112 2.2: empty lines before it are ignored", "\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", Keeps(200)),
        ("9112 2.2: white space before it is not", " GET / HTTP/1.1\r\nHost: a\r\n\r\n", Closes(400)),
        ("9112 2.2: white space behind it", "GET / HTTP/1.1\r\n Host: a\r\nHost: a\r\n\r\n", Closes(400)),
        ("9112 2.2: a bare CR", "GET / HTTP/1.1\rHost: a\r\n\r\n", Closes(400)),
        ("9112 2.2: a bare LF", "GET / HTTP/1.1\nHost: a\n\n", Closes(400)),
        ("9112 3: two spaces", "GET  / HTTP/1.1\r\nHost: a\r\n\r\n", Closes(400)),
        ("9112 3: two spaces", "GET /  HTTP/1.1\r\nHost: a\r\n\r\n", Closes(400)),
        ("9112 3: a space at its end", "GET / HTTP/1.1 \r\nHost: a\r\n\r\n", Closes(400)),
        ("9112 3: a tab", "GET\t/\tHTTP/1.1\r\nHost: a\r\n\r\n", Closes(400)),
        ("9112 3: no target", "GET HTTP/1.1\r\nHost: a\r\n\r\n", Closes(400)),
        ("9112 3: no version, which is HTTP/0.9", "GET /\r\n\r\n", Closes(400)),
        ("9112 3.1: a method is a token", "GE@T / HTTP/1.1\r\nHost: a\r\n\r\n", Closes(400)),
        ("9112 3.1: a method has a case", "get /healthz HTTP/1.1\r\nHost: a\r\n\r\n", Keeps(405)),
        ("9112 3.1: an unknown method", "BREW /healthz HTTP/1.1\r\nHost: a\r\n\r\n", Keeps(405)),
        ("9112 3: a method longer than any", &longer_method, Closes(501)),
        ("9112 3.1: a method without an end", &long_method, Closes(400)),
        ("9112 3: at least 8000 bytes", &good_target, Keeps(200)),
        ("9112 3.2: a target that is too long", &long_target, Closes(414)),
        ("9112 3.2: white space within", "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", Closes(400)),
        ("9112 3.2: a control character", "GET /a\u{1}b HTTP/1.1\r\nHost: a\r\n\r\n", Closes(400)),
        ("9112 3.2: NUL", "GET /a\0b HTTP/1.1\r\nHost: a\r\n\r\n", Closes(400)),
        ("9112 3.2: a byte above 0x7F", "GET /\u{e9} HTTP/1.1\r\nHost: a\r\n\r\n", Closes(400)),
        ("9112 3.2: a fragment", "GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", Closes(400)),
        ("3986 3.3: a backslash", "GET /a\\b HTTP/1.1\r\nHost: a\r\n\r\n", Closes(400)),
        ("URL Standard: what browsers send in a query", "GET /?a[]={b|c}^`\\ HTTP/1.1\r\nHost: a\r\n\r\n", Keeps(200)),
        ("URL Standard: what browsers send in a query", "GET /?user=100% HTTP/1.1\r\nHost: a\r\n\r\n", Keeps(200)),
        ("3986 2.1: percent-encoded bytes", "GET /%00%fF HTTP/1.1\r\nHost: a\r\n\r\n", Keeps(200)),
        ("9112 3.2: two UTF-8 bytes for a slash", "GET /\u{c0}\u{af} HTTP/1.1\r\nHost: a\r\n\r\n", Closes(400)),
        ("9112 3.2.1: origin form", "GET /a?b=c HTTP/1.1\r\nHost: a\r\n\r\n", Keeps(200)),
        ("9112 3.2.1: a path begins with a slash", "GET a HTTP/1.1\r\nHost: a\r\n\r\n", Closes(400)),
        ("9112 3.2.2: absolute form", "GET http://a/b HTTP/1.1\r\nHost: a\r\n\r\n", Keeps(200)),
        ("9112 3.2.2: absolute form, another Host", "GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n", Keeps(200)),
        ("9112 3.2.2: absolute form without a Host", "GET http://b/ HTTP/1.1\r\n\r\n", Closes(400)),
        ("9110 7.4: no secured connection", "GET https://a/ HTTP/1.1\r\nHost: a\r\n\r\n", Closes(421)),
        ("9112 3.2.2: another scheme", "GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n", Closes(400)),
        ("9110 4.2.1: an empty host", "GET http:///b HTTP/1.1\r\nHost: a\r\n\r\n", Closes(400)),
        ("9110 4.2.4: no user information", "GET http://u:p@b/ HTTP/1.1\r\nHost: b\r\n\r\n", Closes(400)),
        ("9112 3.2.3: authority form is for CONNECT", "GET a:80 HTTP/1.1\r\nHost: a\r\n\r\n", Closes(400)),
        ("9110 9.3.6: CONNECT", "CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n", Closes(501)),
        ("9112 3.2.4: an asterisk is for OPTIONS", "GET * HTTP/1.1\r\nHost: a\r\n\r\n", Closes(400)),
        ("9112 2.3: the version has a case", "GET / http/1.1\r\nHost: a\r\n\r\n", Closes(400)),
        ("9112 2.3: one digit each", "GET / HTTP/1.10\r\nHost: a\r\n\r\n", Closes(400)),
        ("9112 2.3: a minor version", "GET / HTTP/1\r\nHost: a\r\n\r\n", Closes(400)),
        ("9112 2.3: white space in it", "GET / HTTP/ 1.1\r\nHost: a\r\n\r\n", Closes(400)),
        ("9112 2.3: one digit each", "GET / HTTP/01.1\r\nHost: a\r\n\r\n", Closes(400)),
        ("9112 2.3: a dot", "GET / HTTP/1,1\r\nHost: a\r\n\r\n", Closes(400)),
        ("9112 2.3: a name", "GET / HTTPS/1.1\r\nHost: a\r\n\r\n", Closes(400)),
        ("9110 2.5: a higher minor version is the highest known", "GET / HTTP/1.2\r\nHost: a\r\n\r\n", Keeps(200)),
        ("9110 2.5: another major version", "GET / HTTP/2.0\r\nHost: a\r\n\r\n", Closes(505)),
        ("9113 3.4: the preface of HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Closes(505)),
        ("another protocol", "\u{16}\u{3}\u{1}\u{2}\0", Closes(400)),
    ]);
}

#[test]
fn hosts() {
    let host = |value: &str| format!("GET / HTTP/1.1\r\nHost: {value}\r\n\r\n");
    let [named, port, v4, v6, v6_port] = ["a.example", "a:8080", "127.0.0.1", "[::1]", "[::1]:80"].map(host);
    let [user, path, list, space, empty_v6, letters] = ["u@a", "a/b", "a, b", "a b", "[]", "a:b"].map(host);
    let [percent, bad_v6, zone] = ["a%zz", "[::::1]", "[fe80::1%25eth0]"].map(host);
    assert_all(&[
        ("9112 3.2", &named, Keeps(200)),
        ("9112 3.2", &port, Keeps(200)),
        ("9112 3.2", &v4, Keeps(200)),
        ("9112 3.2", &v6, Keeps(200)),
        ("9112 3.2", &v6_port, Keeps(200)),
        ("9112 3.2: none in HTTP/1.1", "GET / HTTP/1.1\r\n\r\n", Closes(400)),
        ("9112 3.2: two", "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", Closes(400)),
        ("9112 3.2: two, of two cases", "GET / HTTP/1.1\r\nHost: a\r\nhOST: b\r\n\r\n", Closes(400)),
        ("9112 3.2: none in HTTP/1.0", "GET / HTTP/1.0\r\n\r\n", Closes(200)),
        ("9112 3.2: not a valid value", &user, Closes(400)),
        ("9112 3.2: not a valid value", &path, Closes(400)),
        ("9112 3.2: not a valid value", &list, Closes(400)),
        ("9112 3.2: not a valid value", &space, Closes(400)),
        ("9112 3.2: not a valid value", &empty_v6, Closes(400)),
        ("9112 3.2: not a valid value", &letters, Closes(400)),
        ("3986 3.2.2: percent and two digits", &percent, Closes(400)),
        ("3986 3.2.2: no IPv6 address", &bad_v6, Closes(400)),
        ("3986 3.2.2: a zone is no part of it", &zone, Closes(400)),
    ]);
}

#[test]
fn header_lines() {
    let with = |line: &str| format!("GET / HTTP/1.1\r\nHost: a\r\n{line}\r\n\r\n");
    let rows = [
        ("9112 5: no white space", "X:b", Keeps(200)),
        ("9112 5: white space around a value", "X: \t b \t ", Keeps(200)),
        ("9112 5: an empty value", "X:", Keeps(200)),
        ("9110 5.5: obs-text", "X: caf\u{e9}", Keeps(200)),
        ("9110 5.5: a tab within", "X: a\tb", Keeps(200)),
        ("9110 5.1: names have no case", "cOnTeNt-LeNgTh: 0", Keeps(200)),
        ("9110 5.6.2: a token", "!#$%&'*+-.^_`|~0aZ: b", Keeps(200)),
        ("9112 5.1: white space before the colon", "X : b", Closes(400)),
        ("9112 5.1: a tab before the colon", "X\t: b", Closes(400)),
        ("9112 5.2: obs-fold", "X: a\r\n b", Closes(400)),
        ("9112 5.2: obs-fold with a tab", "X: a\r\n\tb", Closes(400)),
        ("9110 5.6.2: no name", ": b", Closes(400)),
        ("9110 5.6.2: white space in a name", "X Y: b", Closes(400)),
        ("9110 5.6.2: no token", "X[]: b", Closes(400)),
        ("9110 5.6.2: a byte above 0x7F in a name", "caf\u{e9}: b", Closes(400)),
        ("9112 5: no colon", "X", Closes(400)),
        ("9110 5.5: NUL", "X: a\0b", Closes(400)),
        ("9110 5.5: CR", "X: a\rb", Closes(400)),
        ("9110 5.5: LF", "X: a\nY: b", Closes(400)),
        ("9110 5.5: another control character", "X: a\u{8}b", Closes(400)),
        ("9110 5.5: DEL", "X: a\u{7f}b", Closes(400)),
    ];
    let rows: Vec<_> = rows.into_iter().map(|(rule, line, expect)| (rule, with(line), expect)).collect();
    let long = with(&format!("X: {}", "b".repeat(20_000)));
    let many = with(&vec!["X: b"; 200].join("\r\n"));
    let mut all: Vec<_> = rows.iter().map(|(rule, raw, expect)| (*rule, raw.as_str(), *expect)).collect();
    all.push(("9110 5.4: a line that is too long", &long, Closes(431)));
    all.push(("6585 5: too many lines", &many, Closes(431)));
    assert_all(&all);
}

#[test]
fn framing_of_bodies() {
    let post = |headers: &str, body: &str| format!("POST / HTTP/1.1\r\nHost: a\r\n{headers}\r\n\r\n{body}");
    let rows = [
        ("9112 6.3: a length", "Content-Length: 5", "hello", Keeps(200)),
        ("9112 6.3: a length of zero", "Content-Length: 0", "", Keeps(200)),
        ("9110 8.6: leading zeros", "Content-Length: 005", "hello", Keeps(200)),
        ("9112 6.3: neither a length nor a coding", "X: y", "", Keeps(200)),
        ("9110 8.6: a sign", "Content-Length: +5", "hello", Closes(400)),
        ("9110 8.6: a sign", "Content-Length: -1", "", Closes(400)),
        ("9110 8.6: hexadecimal", "Content-Length: 0x5", "hello", Closes(400)),
        ("9110 8.6: a fraction", "Content-Length: 5.0", "hello", Closes(400)),
        ("9110 8.6: a space within", "Content-Length: 1 5", "hello", Closes(400)),
        ("9110 8.6: nothing", "Content-Length:", "", Closes(400)),
        ("9110 15.5.14: more than 63 bits", "Content-Length: 9223372036854775808", "", Closes(413)),
        ("9110 15.5.14: all of 64 bits", "Content-Length: 18446744073709551615", "", Closes(413)),
        ("9110 8.6: more than 64 bits", "Content-Length: 18446744073709551616", "", Closes(400)),
        ("9110 8.6: more than 64 bits", "Content-Length: 99999999999999999999", "", Closes(400)),
        ("9112 6.3: lengths that differ", "Content-Length: 5\r\nContent-Length: 6", "hello!", Closes(400)),
        ("9112 6.3: a list that differs", "Content-Length: 5, 6", "hello!", Closes(400)),
        ("9112 6.1: chunked", "Transfer-Encoding: chunked", "5\r\nhello\r\n0\r\n\r\n", Keeps(200)),
        ("9112 7: codings have no case", "Transfer-Encoding: CHUNKED", "5\r\nhello\r\n0\r\n\r\n", Keeps(200)),
        (
            "9112 6.3: a coding and a length",
            "Transfer-Encoding: chunked\r\nContent-Length: 5",
            "0\r\n\r\n",
            Closes(400),
        ),
        ("9112 6.3: chunked is not the last", "Transfer-Encoding: chunked, gzip", "0\r\n\r\n", Closes(400)),
        ("9112 6.1: chunked twice", "Transfer-Encoding: chunked, chunked", "0\r\n\r\n", Closes(400)),
        (
            "9112 6.1: chunked on two lines",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "0\r\n\r\n",
            Closes(400),
        ),
        ("9112 6.3: an unknown coding is the last", "Transfer-Encoding: xchunked", "0\r\n\r\n", Closes(400)),
        ("9112 6.1: an unknown coding before it", "Transfer-Encoding: gzip, chunked", "0\r\n\r\n", Closes(501)),
        ("9112 6.1: no coding", "Transfer-Encoding:", "", Closes(400)),
        ("9112 6.1: what only looks like chunked", "Transfer-Encoding: \u{b}chunked", "0\r\n\r\n", Closes(400)),
    ];
    let rows: Vec<_> = rows.into_iter().map(|(rule, headers, body, e)| (rule, post(headers, body), e)).collect();
    let mut all: Vec<_> = rows.iter().map(|(rule, raw, expect)| (*rule, raw.as_str(), *expect)).collect();
    let get = "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello";
    all.push(("9110 9.3.1: a GET may have a body, which is no request", get, Keeps(200)));
    let old = "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    all.push(("9112 6.1: a coding in HTTP/1.0", old, Closes(400)));
    assert_all(&all);
}

#[test]
fn chunks() {
    let post = |body: &str| format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{body}");
    let rows = [
        ("9112 7.1: many chunks", "1\r\na\r\n000a\r\n0123456789\r\n0\r\n\r\n", Keeps(200)),
        ("9112 7.1.1: extensions are ignored", "1;a=b;c=\"d;\\\"\";e\r\na\r\n0;f\r\n\r\n", Keeps(200)),
        ("9112 7.1.1: bad white space", "1 ;\ta = b\r\na\r\n0\r\n\r\n", Keeps(200)),
        ("9112 7.1.2: trailers", "1\r\na\r\n0\r\nX: y\r\nZ:\r\n\r\n", Keeps(200)),
        ("9112 7.1: no size", "\r\na\r\n0\r\n\r\n", Closes(400)),
        ("9112 7.1: not hexadecimal", "g\r\na\r\n0\r\n\r\n", Closes(400)),
        ("9112 7.1: a sign", "+1\r\na\r\n0\r\n\r\n", Closes(400)),
        ("9112 7.1: a prefix", "0x1\r\na\r\n0\r\n\r\n", Closes(400)),
        ("9112 7.1: an underscore", "1_0\r\na\r\n0\r\n\r\n", Closes(400)),
        ("9112 7.1: white space before a size", " 1\r\na\r\n0\r\n\r\n", Closes(400)),
        ("9112 7.1: white space behind a size", "1 \r\na\r\n0\r\n\r\n", Closes(400)),
        ("9112 7.1: more than 64 bits", "10000000000000000\r\na\r\n0\r\n\r\n", Closes(400)),
        ("9112 7.1: an overflow of signed 64 bits", "ffffffffffffffff\r\na\r\n0\r\n\r\n", Closes(400)),
        ("9112 7.1: a bare LF behind a size", "1\na\r\n0\r\n\r\n", Closes(400)),
        ("9112 7.1: a bare CR behind a size", "1\ra\r\n0\r\n\r\n", Closes(400)),
        ("9112 7.1: no line break behind the data", "1\r\na0\r\n\r\n", Closes(400)),
        ("9112 7.1: a bare LF behind the data", "1\r\na\n0\r\n\r\n", Closes(400)),
        ("9112 7.1.1: LF in an extension", "1;a\nb\r\na\r\n0\r\n\r\n", Closes(400)),
        ("9112 7.1.1: an extension without a name", "1;\r\na\r\n0\r\n\r\n", Closes(400)),
        ("9112 7.1.1: NUL in an extension", "1;a\0\r\na\r\n0\r\n\r\n", Closes(400)),
        ("9112 7.1.2: a trailer that is no header line", "0\r\nX\r\n\r\n", Closes(400)),
        ("9112 7.1.2: a bare LF in a trailer", "0\r\nX: y\n\r\n", Closes(400)),
    ];
    let rows: Vec<_> = rows.into_iter().map(|(rule, body, expect)| (rule, post(body), expect)).collect();
    let all: Vec<_> = rows.iter().map(|(rule, raw, expect)| (*rule, raw.as_str(), *expect)).collect();
    assert_all(&all);
}

#[test]
fn connections_that_go_on_and_that_end() {
    let with = |version: &str, value: &str| format!("GET / HTTP/{version}\r\nHost: a\r\nConnection: {value}\r\n\r\n");
    let [none, close, cased, listed, empty, keep, other] =
        ["", "close", "CLOSE", "x, close ,y", ", ,close", "keep-alive", "closed"].map(|value| with("1.1", value));
    let [old, old_keep, old_close] = ["x", "Keep-Alive", "keep-alive, close"].map(|value| with("1.0", value));
    assert_all(&[
        ("9112 9.3: HTTP/1.1 goes on", "GET / HTTP/1.1\r\nHost: a\r\n\r\n", Keeps(200)),
        ("9110 5.6.1: an empty list", &none, Keeps(200)),
        ("9112 9.6: close", &close, Closes(200)),
        ("9110 7.6.1: options have no case", &cased, Closes(200)),
        ("9110 7.6.1: a list", &listed, Closes(200)),
        ("9110 5.6.1: empty elements", &empty, Closes(200)),
        ("9112 9.3: keep-alive says nothing in HTTP/1.1", &keep, Keeps(200)),
        ("9112 9.3: what only looks like close", &other, Keeps(200)),
        (
            "9110 5.3: two lines are a list",
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: x\r\nConnection: close\r\n\r\n",
            Closes(200),
        ),
        ("9112 9.3: HTTP/1.0 ends", "GET / HTTP/1.0\r\n\r\n", Closes(200)),
        ("9112 9.3: HTTP/1.0 ends", &old, Closes(200)),
        ("9112 9.3: unless asked to go on", &old_keep, Keeps(200)),
        ("9112 9.3: close comes first", &old_close, Closes(200)),
        (
            "9110 7.8: an upgrade that is not wanted is ignored",
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n",
            Keeps(200),
        ),
    ]);
}

#[test]
fn expectations() {
    let server = start();
    let head = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n";
    // 9110, 10.1.1: a 100, or the final status at once.
    let mut stream = send(server.addr, head);
    let wire = read_until(&mut stream, LIMIT, |bytes| bytes.ends_with(b"\r\n\r\n"));
    assert!(matches!(wire.status(), 100 | 200), "{}", wire.summary());
    if wire.status() == 100 {
        stream.write_all(b"hello").expect("it is there");
        let wire = read_until(&mut stream, LIMIT, |bytes| bytes.ends_with(b"world\n"));
        assert_eq!(wire.status(), 200, "{}", wire.summary());
    }
    let told = |raw: &str| text(&ask(server.addr, format!("{raw}{NEXT}"), LIMIT)).contains("100 Continue");
    assert!(
        !told("POST / HTTP/1.0\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\nhello"),
        "HTTP/1.0 is never told"
    );
    assert!(!told("GET / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n\r\n"), "there is no body");
    assert_all(&[("9110 10.1.1: another", "GET / HTTP/1.1\r\nHost: a\r\nExpect: x\r\n\r\n", Closes(417))]);
}

#[test]
fn responses() {
    let server = start();
    let get =
        |path: &str| ask(server.addr, format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"), LIMIT);
    let with = |method: &str, path: &str| {
        ask(server.addr, format!("{method} {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"), LIMIT)
    };
    // 9110, 9.3.2: a HEAD has the headers of a GET and no content.
    let (head, whole) = (with("HEAD", "/"), get("/"));
    assert_eq!((head.status(), head.body()), (200, &b""[..]));
    assert_eq!(head.header("content-length"), whole.header("content-length"));
    // 9110, 6.6.1: a clock means a Date, also of errors; 9112, 9.6: the last response says close.
    for wire in [&whole, &with("POST", "/healthz"), &ask(server.addr, "GET / HTTP/1.1\r\n\r\n", LIMIT)] {
        assert!(wire.header("date").is_some_and(|date| date.ends_with(" GMT")), "{}", wire.summary());
        assert_eq!(wire.header("connection").as_deref(), Some("close"), "{}", wire.summary());
        assert!(wire.bytes.starts_with(b"HTTP/1.1 "), "{}", wire.summary());
    }
    // 9110, 15.5.6: a 405 says what is allowed; 9.3.8: TRACE is one.
    for wire in [with("POST", "/healthz"), with("TRACE", "/")] {
        assert!(wire.status() == 405 && wire.header("allow").is_some(), "{}", wire.summary());
    }
    // 9110, 9.3.7: OPTIONS, of a resource and of the server.
    for path in ["/healthz", "*"] {
        let wire = with("OPTIONS", path);
        assert!((200..300).contains(&wire.status()) || wire.status() == 405, "{path}: {}", wire.summary());
    }
    // 9112, 9.3.2: responses come in the order of the requests.
    let all: Vec<_> = (0..50).map(|n| format!("GET /?user={n} HTTP/1.1\r\nHost: a\r\n\r\n")).collect();
    let all = all.concat();
    let said = text(&ask(server.addr, format!("{all}{NEXT}"), LIMIT));
    let order: Vec<_> = said.lines().filter_map(|line| line.strip_prefix("hello, ")?.parse::<u32>().ok()).collect();
    assert_eq!(order, (0..50).collect::<Vec<_>>());
}

#[test]
fn ends_of_connections() {
    let server = start();
    // 9112, 8: a request that is not whole is no request.
    for part in ["GET / HT", "GET / HTTP/1.1\r\nHost: a", "GET / HTTP/1.1\r\nHost: a\r\n"] {
        let mut stream = send(server.addr, part);
        stream.shutdown(Shutdown::Write).expect("it is there");
        let wire = read_to_end(&mut stream, LIMIT);
        assert!(matches!(wire.status(), 0 | 400) && wire.end == End::Eof, "{part:?}: {}", wire.summary());
    }
    // 9112, 8: nor is a body.
    for (part, whole) in [("Content-Length: 5\r\n\r\nhel", false), ("Content-Length: 5\r\n\r\nhello", true)] {
        let mut stream = send(server.addr, format!("POST / HTTP/1.1\r\nHost: a\r\n{part}"));
        stream.shutdown(Shutdown::Write).expect("it is there");
        let wire = read_to_end(&mut stream, LIMIT);
        assert_eq!(wire.status(), if whole { 200 } else { 400 }, "{part:?}: {}", wire.summary());
    }
    // 9112, 9.6: a client that goes on sending gets its response all the same.
    let mut stream = send(server.addr, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n");
    for _ in 0..16 {
        let _ = stream.write_all(&[b'x'; 16 * 1024]); // it may be closed by then
    }
    let wire = read_until(&mut stream, Duration::from_secs(5), |bytes| bytes.windows(4).any(|w| w == b"\r\n\r\n"));
    assert_eq!(wire.status(), 413, "{}", wire.summary());
}

#[test]
fn framing_of_chunks_that_never_ends_is_answered_and_bounded() {
    let server = start();
    let before = server.resident();
    for (what, begin, again, status) in [
        ("an extension's name", "1;", "a", 400),
        ("an extension's value", "1;a=", "b", 400),
        ("a quoted extension", "1;a=\"", "\\\"", 400),
        ("extensions", "1", ";a", 400),
        ("white space", "1", " ", 400),
        ("extensions of many chunks", "", "1;aaaaaaaa\r\nx\r\n", 400),
        ("a trailer's name", "0\r\n", "a", 400),
        ("a trailer's value", "0\r\na: ", "b", 400),
        ("trailers", "0\r\n", "a: b\r\n", 400),
        ("chunks of a byte", "", "1\r\nx\r\n", 413),
    ] {
        let head = format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{begin}");
        let mut stream = send(server.addr, head);
        let piece = again.repeat(16 * 1024);
        // At most 64 MiB, which no limit is as large as.
        let ended = (0..64 * 1024 * 1024 / piece.len()).any(|_| {
            stream.set_nonblocking(true).expect("it is a socket");
            let has_answer = stream.peek(&mut [0]).is_ok();
            stream.set_nonblocking(false).expect("it is a socket");
            has_answer || stream.write_all(piece.as_bytes()).is_err()
        });
        assert!(ended, "{what}: nothing ends it");
        let wire = read_until(&mut stream, LIMIT, |bytes| bytes.windows(4).any(|part| part == b"\r\n\r\n"));
        assert_eq!(wire.status(), status, "{what}: {}", wire.summary());
    }
    let grown = server.resident().saturating_sub(before);
    assert!(grown < 4 * 1024, "{grown} KiB");
}
