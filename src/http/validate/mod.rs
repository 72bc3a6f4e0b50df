//! Validation of a request's head by RFC 9110 and RFC 9112: pure functions over what an engine has parsed.
//!
//! A rejected request is answered, its connection is closed, and nothing that follows on it is handled: a client or proxy
//! that disagrees with this server on where a request ends must not get a second request in (request smuggling).

#[cfg(test)]
mod tests;

use std::net::Ipv6Addr;

use super::head::{Framing, Rejection, RequestHead, Version};

/// Most bytes of a request target. RFC 9112, section 3, recommends to support at least 8,000 for the whole line.
pub(crate) const MAX_TARGET: usize = 8 * 1024;
/// Most bytes of a method. The longest of those that are registered has 17 (RFC 9110, section 16.1).
const MAX_METHOD: usize = 64;
/// Most bytes of one header line, its name, colon and line break included. nginx and Go take about as much.
pub(crate) const MAX_HEADER_LINE: usize = 16 * 1024;
/// Most bytes of all header lines together.
pub(crate) const MAX_HEADERS_TOTAL: usize = 64 * 1024;
/// Most header lines, as in Apache httpd (`LimitRequestFields`).
pub(crate) const MAX_HEADER_COUNT: usize = 100;

/// Validates a request's head. `version` is (major, minor). Header values may carry spaces and tabs around them.
/// Errors: the request must or should be rejected.
pub(crate) fn validate<'a>(
    method: &str,
    target: &str,
    version: (u8, u8),
    headers: impl Iterator<Item = (&'a str, &'a [u8])>,
) -> Result<RequestHead, Rejection> {
    let version = match version {
        (1, 0) => Version::Http10,
        (1, _) => Version::Http11,
        _ => return Err(Rejection { status: 505, reason: "HTTP/1.0 and HTTP/1.1 only" }),
    };
    check_method(method)?;
    check_target(method, target)?;
    let headers = FramingHeaders::read(headers)?;

    match headers.host {
        Some(host) => check_host(host)?,
        None if version == Version::Http10 => {}
        None => return Err(bad_request("no Host")), // RFC 9112, section 3.2
    }
    let framing = check_framing(headers.length, headers.coding, version)?;
    let expects = match headers.expect {
        None => false,
        Some(value) if value.eq_ignore_ascii_case(b"100-continue") => true,
        // RFC 9110, section 10.1.1: an expectation in HTTP/1.0 is ignored.
        Some(_) if version == Version::Http10 => false,
        Some(_) => return Err(Rejection { status: 417, reason: "only 100-continue can be expected" }),
    };
    let Connection { close, keep_alive } = headers.connection;
    Ok(RequestHead {
        version,
        framing,
        close: close || (version == Version::Http10 && !keep_alive),
        keep_alive: version == Version::Http10 && keep_alive && !close,
        expect_continue: expects && version == Version::Http11 && framing != Framing::None,
    })
}

fn bad_request(reason: &'static str) -> Rejection {
    Rejection { status: 400, reason }
}

/// True if the text is a token: RFC 9110, section 5.6.2.
pub(crate) fn is_token(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(|byte| TOKEN[usize::from(*byte)])
}

/// The bytes of a token.
const TOKEN: [bool; 256] = alphanumeric_and(b"!#$%&'*+-.^_`|~");

/// The bytes of `reg-name` and `IPv4address` that are not percent-encoded (RFC 3986, section 3.2.2), without the comma,
/// which would make a list of it.
const HOST: [bool; 256] = alphanumeric_and(b"-._~!$&'()*+;=");

const fn alphanumeric_and(others: &[u8]) -> [bool; 256] {
    let mut table = [false; 256];
    let mut byte = 0_u8;
    while byte.is_ascii() {
        table[byte as usize] = byte.is_ascii_alphanumeric();
        byte += 1;
    }
    let mut at = 0;
    while at < others.len() {
        table[others[at] as usize] = true;
        at += 1;
    }
    table
}

/// `reg-name` or `IPv4address` (RFC 3986, section 3.2.2), not empty.
fn is_registered_name(mut name: &[u8]) -> bool {
    let is_empty = name.is_empty();
    while let Some(at) = name.iter().position(|byte| !HOST[usize::from(*byte)]) {
        name = match &name[at..] {
            [b'%', a, b, rest @ ..] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit() => rest,
            _ => return false,
        };
    }
    !is_empty
}

/// The first byte that a target may not hold. It may hold more than RFC 3986 allows, because clients send it and
/// recipients agree on what it means: all visible ASCII but a fragment's `#`, and a backslash in a path.
fn find_not_of_target(target: &[u8]) -> Option<u8> {
    let mut in_query = false;
    target.iter().copied().find(|byte| {
        in_query |= *byte == b'?';
        !byte.is_ascii_graphic() || *byte == b'#' || (*byte == b'\\' && !in_query)
    })
}

/// True if a header may have the value: RFC 9110, section 5.5. Bytes from 0x80 on (obs-text) may occur, control
/// characters may not.
fn is_field_value(value: &[u8]) -> bool {
    value.iter().all(|byte| (*byte >= b' ' && *byte != 0x7f) || *byte == b'\t')
}

/// The value without the optional whitespace around it: spaces and tabs alone (RFC 9110, section 5.6.3). A vertical tab
/// or a form feed is not whitespace.
fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

fn check_method(method: &str) -> Result<(), Rejection> {
    if !is_token(method.as_bytes()) {
        return Err(bad_request("the method is no token"));
    }
    // RFC 9112, section 3: a method that is longer than any that is implemented.
    if method.len() > MAX_METHOD {
        return Err(Rejection { status: 501, reason: "the method is too long" });
    }
    // The target of CONNECT is no path, and this server makes no tunnels.
    if method == "CONNECT" {
        return Err(Rejection { status: 501, reason: "CONNECT is not supported" });
    }
    Ok(())
}

fn check_target(method: &str, target: &str) -> Result<(), Rejection> {
    if target.len() > MAX_TARGET {
        return Err(Rejection { status: 414, reason: "the target is too long" });
    }
    // RFC 9112, section 3.2: not corrected, because recipients disagree on what such bytes mean.
    if let Some(byte) = find_not_of_target(target.as_bytes()) {
        return Err(bad_request(match byte {
            b'!'..=b'~' => "the target holds a fragment or a backslash",
            _ => "the target holds a character other than visible ASCII",
        }));
    }
    match target.as_bytes() {
        [b'/', ..] => Ok(()),
        // RFC 9112, section 3.2.4: asterisk form, for OPTIONS only.
        b"*" if method == "OPTIONS" => Ok(()),
        bytes => match split_absolute(target) {
            None => Err(bad_request("the target is no path")),
            // RFC 9112, section 3.2.2: absolute form must be accepted.
            Some(_) if bytes[..5].eq_ignore_ascii_case(b"http:") => Ok(()),
            // RFC 9110, section 7.4: it must be rejected, because no connection here is secured. A gateway that ends TLS
            // sends origin form (RFC 9112, section 3.2.1).
            Some(_) => Err(Rejection { status: 421, reason: "https is not served here" }),
        },
    }
}

/// The path and query of a target in absolute form (`http://host/path`).
pub(crate) fn absolute_path(target: &str) -> Option<&str> {
    let (_, rest) = split_absolute(target)?;
    Some(if rest.starts_with('/') { rest } else { "/" })
}

/// Host and port of a target in absolute form.
pub(crate) fn authority(target: &str) -> Option<&str> {
    split_absolute(target).map(|(authority, _)| authority)
}

fn split_absolute(target: &str) -> Option<(&str, &str)> {
    let scheme_end = target.find("://")?;
    let scheme = &target[..scheme_end];
    if !(scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https")) {
        return None;
    }
    let rest = &target[scheme_end + 3..];
    let (authority, rest) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    check_host(authority.as_bytes()).is_ok().then_some((authority, rest))
}

/// RFC 9110, section 7.2: `uri-host [ ":" port ]`, of a scheme whose host must not be empty (section 4.2.1).
fn check_host(host: &[u8]) -> Result<(), Rejection> {
    let rejected = bad_request("the Host is no name or address");
    let split = |at: u8, bytes: &[u8]| bytes.iter().position(|byte| *byte == at);
    let (is_name, port) = if let Some(rest) = host.strip_prefix(b"[") {
        let end = split(b']', rest).ok_or(rejected)?;
        (is_ip_literal(&rest[..end]), &rest[end + 1..])
    } else {
        let (name, port) = host.split_at(split(b':', host).unwrap_or(host.len()));
        (is_registered_name(name), port)
    };
    let is_port = match port {
        [] => true,
        [b':', digits @ ..] => digits.len() <= 5 && digits.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    if is_name && is_port { Ok(()) } else { Err(rejected) }
}

/// What brackets may hold: `IPv6address` or `IPvFuture` (RFC 3986, section 3.2.2). A zone is no part of what a client
/// sends (RFC 9844, section 1).
fn is_ip_literal(literal: &[u8]) -> bool {
    let is_future = || {
        let [b'v' | b'V', rest @ ..] = literal else { return false };
        let Some(dot) = rest.iter().position(|byte| *byte == b'.') else { return false };
        let (version, address) = (&rest[..dot], &rest[dot + 1..]);
        let is_address = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:".contains(byte);
        let is_version = !version.is_empty() && version.iter().all(u8::is_ascii_hexdigit);
        is_version && !address.is_empty() && address.iter().all(is_address)
    };
    std::str::from_utf8(literal).is_ok_and(|text| text.parse::<Ipv6Addr>().is_ok()) || is_future()
}

/// The connection options that a server acts on (RFC 9112, section 9.3).
#[derive(Clone, Copy, Default)]
struct Connection {
    close: bool,
    keep_alive: bool,
}

impl Connection {
    /// Adds the options of one `Connection` line; several lines are one list (RFC 9110, section 5.3).
    fn add(&mut self, value: &[u8]) {
        for option in value.split(|byte| *byte == b',').map(trim) {
            self.close |= option.eq_ignore_ascii_case(b"close");
            self.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
        }
    }
}

/// The headers that frame the body or decide about the connection; all but `Connection` at most once.
#[derive(Default)]
struct FramingHeaders<'a> {
    host: Option<&'a [u8]>,
    length: Option<&'a [u8]>,
    coding: Option<&'a [u8]>,
    expect: Option<&'a [u8]>,
    connection: Connection,
}

impl<'a> FramingHeaders<'a> {
    /// Checks all headers, and keeps these.
    fn read(headers: impl Iterator<Item = (&'a str, &'a [u8])>) -> Result<FramingHeaders<'a>, Rejection> {
        let mut known = FramingHeaders::default();
        let (mut total, mut count) = (0, 0);
        for (name, value) in headers {
            let length = name.len() + value.len() + ": \r\n".len();
            total += length;
            count += 1;
            if count > MAX_HEADER_COUNT {
                return Err(Rejection { status: 431, reason: "too many headers" });
            }
            if length > MAX_HEADER_LINE || total > MAX_HEADERS_TOTAL {
                return Err(Rejection { status: 431, reason: "the headers are too large" });
            }
            if !is_token(name.as_bytes()) {
                return Err(bad_request("a header's name is no token"));
            }
            if !is_field_value(value) {
                return Err(bad_request("a header holds a control character"));
            }
            let (slot, twice) = match name.len() {
                4 if name.eq_ignore_ascii_case("host") => (&mut known.host, "Host twice"),
                14 if name.eq_ignore_ascii_case("content-length") => (&mut known.length, "Content-Length twice"),
                17 if name.eq_ignore_ascii_case("transfer-encoding") => (&mut known.coding, "Transfer-Encoding twice"),
                6 if name.eq_ignore_ascii_case("expect") => (&mut known.expect, "Expect twice"),
                10 if name.eq_ignore_ascii_case("connection") => {
                    known.connection.add(value);
                    continue;
                }
                _ => continue,
            };
            if slot.replace(trim(value)).is_some() {
                return Err(bad_request(twice));
            }
        }
        Ok(known)
    }
}

/// The body's framing: RFC 9112, sections 6.1 to 6.3.
fn check_framing(length: Option<&[u8]>, coding: Option<&[u8]>, version: Version) -> Result<Framing, Rejection> {
    match (coding, length) {
        (Some(_), Some(_)) => Err(bad_request("Content-Length beside Transfer-Encoding")),
        (Some(_), None) if version == Version::Http10 => Err(bad_request("Transfer-Encoding in HTTP/1.0")),
        (Some(coding), None) => check_coding(coding),
        (None, None) => Ok(Framing::None),
        (None, Some(length)) => match parse_length(length) {
            Some(0) => Ok(Framing::None),
            Some(length) => Ok(Framing::Length(length)),
            None => Err(bad_request("Content-Length is no number of 64 bits")),
        },
    }
}

/// RFC 9112, section 6.3: without chunked as the last coding the length of a request's body cannot be known: 400. A body
/// that was coded before it was chunked is framed, but not decoded here: 501 (section 6.1).
fn check_coding(coding: &[u8]) -> Result<Framing, Rejection> {
    let is_chunked = |coding: &[u8]| trim(coding).eq_ignore_ascii_case(b"chunked");
    let mut codings = coding.rsplit(|byte| *byte == b',');
    if !codings.next().is_some_and(is_chunked) {
        return Err(bad_request("the last transfer coding is not chunked"));
    }
    let mut others = codings.peekable();
    if others.peek().is_none() {
        return Ok(Framing::Chunked);
    }
    if others.any(|coding| is_chunked(coding) || trim(coding).is_empty()) {
        return Err(bad_request("the transfer codings are malformed"));
    }
    Err(Rejection { status: 501, reason: "no transfer coding but chunked" })
}

/// A length in bytes: decimal digits and nothing else, below 2^64.
fn parse_length(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |length, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        length.checked_mul(10)?.checked_add(digit)
    })
}
