//! What RFC 9112 and RFC 9110 say a server must refuse, as far as tiny_http lets it through.
//!
//! tiny_http parses and frames; it accepts more than it should (two lengths, no host, any transfer coding). What is
//! refused here is answered, the connection is closed, and nothing of what follows on it is ever handled: whoever
//! disagrees with us on where a request ends must not get a second one in.

use tiny_http::{Header, Method, Request};

/// Most bytes of a request target: RFC 9112, section 3, recommends to support 8,000 for the whole line.
pub(crate) const MAX_TARGET: usize = 8 * 1024;
/// Most bytes of one header line; as much as most servers take.
const MAX_HEADER_LINE: usize = 16 * 1024;
/// Most bytes of all header lines.
pub(crate) const MAX_HEADERS_TOTAL: usize = 64 * 1024;
/// Most header lines.
const MAX_HEADER_COUNT: usize = 100;
/// tiny_http reads bodies of up to this length together with the head, unless the client waits for `100 Continue`.
const BUFFERED_BODY_MAX: u64 = 1024;

/// How the body is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// There is none.
    None,
    /// Its `Content-Length`, more than 0.
    Length(u64),
    /// `Transfer-Encoding: chunked`.
    Chunked,
}

/// What the head of an acceptable request says of the connection and of the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) framing: Framing,
    /// The client closes, or expects us to, after this response; or we had better.
    pub(crate) last: bool,
    /// tiny_http reads nothing more of the connection after this request, and closes its end by itself.
    pub(crate) engine_closes: bool,
    /// An HTTP/1.0 client that asked to keep the connection: it must be told that we do.
    pub(crate) keep_alive: bool,
    /// The body, if any, is in memory already: reading it never waits for the client.
    pub(crate) body_buffered: bool,
}

impl Head {
    /// Of a request that is refused: its framing is what tiny_http made of it, for it will have to be dropped.
    pub(crate) fn refused(request: &Request) -> Head {
        let coded = request.headers().iter().any(|header| header.field.equiv("Transfer-Encoding"));
        let framing = match request.body_length() {
            Some(0) => Framing::None,
            Some(length) => Framing::Length(length as u64),
            None if coded => Framing::Chunked,
            None => Framing::None,
        };
        let has = |name: &'static str| request.headers().iter().any(|header| header.field.equiv(name));
        // What tiny_http makes of these depends on their values and on which comes first: none of them is relied on.
        let as_usual = !has("Expect") && !has("Connection");
        let body_buffered = is_buffered(framing, as_usual);
        Head { framing, last: false, engine_closes: false, keep_alive: false, body_buffered }
    }
}

/// Whether tiny_http has read the body together with the head: a short one, of a client that neither waits for
/// `100 Continue` nor asks for another protocol (then the reader is the connection itself).
fn is_buffered(framing: Framing, as_usual: bool) -> bool {
    match framing {
        Framing::None => true,
        Framing::Length(length) => length <= BUFFERED_BODY_MAX && as_usual,
        Framing::Chunked => false,
    }
}

/// Why a request is refused: a status, and a reason for the client and the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rejection {
    pub(crate) status: u16,
    pub(crate) reason: &'static str,
}

fn bad(reason: &'static str) -> Rejection {
    Rejection { status: 400, reason }
}

/// Checks a request's head.
///
/// # Errors
///
/// The request is one that must, or had better, be refused.
pub(crate) fn check(request: &Request) -> Result<Head, Rejection> {
    let version = request.http_version();
    let one_point_zero = match (version.0, version.1) {
        (1, 0) => true,
        (1, 1) => false,
        _ => return Err(Rejection { status: 505, reason: "HTTP/1.0 and HTTP/1.1 only" }),
    };
    check_method(request.method())?;
    check_target(request.method(), request.url())?;
    let headers = FramingHeaders::read(request.headers())?;

    match headers.host {
        Some(host) => check_host(host)?,
        None if one_point_zero => {}
        None => return Err(bad("no Host")), // RFC 9112, section 3.2
    }
    let framing = check_framing(&headers, one_point_zero)?;
    let (mut close, mut keep_alive, mut upgrade) = (false, false, false);
    for option in headers.connection.unwrap_or("").split(',').map(str::trim) {
        close |= option.eq_ignore_ascii_case("close");
        keep_alive |= option.eq_ignore_ascii_case("keep-alive");
        upgrade |= option.eq_ignore_ascii_case("upgrade");
    }
    // tiny_http looks for the words anywhere in the value, and stops reading the connection when it finds one.
    let (mut stops, mut as_for_upgrade) = (one_point_zero, false);
    if let Some(value) = headers.connection.map(str::to_ascii_lowercase) {
        as_for_upgrade = value.contains("upgrade");
        stops = value.contains("close") || as_for_upgrade || (one_point_zero && !value.contains("keep-alive"));
    }
    if as_for_upgrade && framing == Framing::Chunked {
        // It gives out the connection itself then, chunks and all.
        return Err(Rejection { status: 501, reason: "no upgrade with a chunked body" });
    }
    // What tiny_http's decoder of chunks overlooks (a sign before a size, a bare LF in an extension), others may not; the
    // next request must not begin where only one of two thinks that it does.
    let chunked = framing == Framing::Chunked;
    Ok(Head {
        framing,
        last: close || upgrade || stops || chunked || (one_point_zero && !keep_alive),
        engine_closes: stops,
        keep_alive: one_point_zero && keep_alive && !close,
        body_buffered: is_buffered(framing, headers.expect.is_none() && !as_for_upgrade),
    })
}

/// RFC 9110, section 5.6.2.
fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

fn check_method(method: &Method) -> Result<(), Rejection> {
    match method {
        Method::NonStandard(name) if !is_token(name.as_str()) => Err(bad("the method is no token")),
        // A tunnel is not what this server makes; said here, because its target is no path.
        Method::Connect => Err(Rejection { status: 501, reason: "CONNECT is not supported" }),
        _ => Ok(()),
    }
}

fn check_target(method: &Method, target: &str) -> Result<(), Rejection> {
    if target.len() > MAX_TARGET {
        return Err(Rejection { status: 414, reason: "the target is too long" });
    }
    if !target.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(bad("the target holds a control character"));
    }
    match target.as_bytes() {
        [b'/', ..] => Ok(()),
        // RFC 9112, section 3.2.4: asterisk form, for OPTIONS only.
        b"*" if *method == Method::Options => Ok(()),
        // RFC 9112, section 3.2.2: absolute form must be accepted.
        _ if absolute_path(target).is_some() => Ok(()),
        _ => Err(bad("the target is no path")),
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
    let (authority, rest) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    check_host(authority).is_ok().then_some((authority, rest))
}

/// RFC 9110, section 7.2: `uri-host [ ":" port ]`, of a scheme whose host must not be empty (section 4.2.1).
fn check_host(host: &str) -> Result<(), Rejection> {
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, port)) => {
                if address.is_empty() || !address.bytes().all(|b| b.is_ascii_hexdigit() || b".:vV%".contains(&b)) {
                    return Err(bad("the Host is no name or address"));
                }
                (address, port)
            }
            None => return Err(bad("the Host is no name or address")),
        },
        None => match host.find(':') {
            Some(colon) => (&host[..colon], &host[colon..]),
            None => (host, ""),
        },
    };
    // reg-name (RFC 3986, section 3.2.2) less the comma, which would make a list of it.
    let is_name = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~%!$&'()*+;=:".contains(&b));
    let is_port = match port.strip_prefix(':') {
        Some(digits) => digits.bytes().all(|b| b.is_ascii_digit()) && digits.len() <= 5,
        None => port.is_empty(),
    };
    if name.is_empty() || !is_name || !is_port {
        return Err(bad("the Host is no name or address"));
    }
    Ok(())
}

/// The headers that decide something here, each at most once.
#[derive(Default)]
struct FramingHeaders<'a> {
    host: Option<&'a str>,
    length: Option<&'a str>,
    coding: Option<&'a str>,
    connection: Option<&'a str>,
    expect: Option<&'a str>,
}

impl<'a> FramingHeaders<'a> {
    fn read(headers: &'a [Header]) -> Result<FramingHeaders<'a>, Rejection> {
        let too_large = Rejection { status: 431, reason: "the headers are too large" };
        if headers.len() > MAX_HEADER_COUNT {
            return Err(Rejection { status: 431, reason: "too many headers" });
        }
        let mut known = FramingHeaders::default();
        let mut total = 0;
        for header in headers {
            let (name, value) = (header.field.as_str().as_str(), header.value.as_str());
            let length = name.len() + value.len() + ": \r\n".len();
            total += length;
            if length > MAX_HEADER_LINE || total > MAX_HEADERS_TOTAL {
                return Err(too_large);
            }
            if !is_token(name) {
                return Err(bad("a header's name is no token"));
            }
            if value.bytes().any(|b| b.is_ascii_control() && b != b'\t') {
                return Err(bad("a header holds a control character"));
            }
            let (slot, twice) = match name.len() {
                4 if name.eq_ignore_ascii_case("host") => (&mut known.host, "Host twice"),
                14 if name.eq_ignore_ascii_case("content-length") => (&mut known.length, "Content-Length twice"),
                17 if name.eq_ignore_ascii_case("transfer-encoding") => (&mut known.coding, "Transfer-Encoding twice"),
                // tiny_http looks at the first Connection and Expect only, so that a second would be one that we see
                // and it does not.
                10 if name.eq_ignore_ascii_case("connection") => (&mut known.connection, "Connection twice"),
                6 if name.eq_ignore_ascii_case("expect") => (&mut known.expect, "Expect twice"),
                _ => continue,
            };
            if slot.replace(value).is_some() {
                return Err(bad(twice));
            }
        }
        Ok(known)
    }
}

/// RFC 9112, sections 6.1 to 6.3.
fn check_framing(headers: &FramingHeaders<'_>, one_point_zero: bool) -> Result<Framing, Rejection> {
    match (headers.coding, headers.length) {
        (Some(_), Some(_)) => Err(bad("Content-Length beside Transfer-Encoding")),
        (Some(_), None) if one_point_zero => Err(bad("Transfer-Encoding in HTTP/1.0")),
        (Some(coding), None) if coding.eq_ignore_ascii_case("chunked") => Ok(Framing::Chunked),
        (Some(_), None) => Err(Rejection { status: 501, reason: "no transfer coding but chunked" }),
        (None, None) => Ok(Framing::None),
        (None, Some(length)) => {
            if length.is_empty() || !length.bytes().all(|b| b.is_ascii_digit()) {
                return Err(bad("Content-Length is no number"));
            }
            match length.parse() {
                Ok(0) => Ok(Framing::None),
                Ok(length) => Ok(Framing::Length(length)),
                // tiny_http takes what it cannot parse for no body at all.
                Err(_) => Err(Rejection { status: 413, reason: "the body is too large" }),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_names_or_addresses_with_a_port_perhaps() {
        for good in ["a", "example.org", "example.org:80", "127.0.0.1:8088", "[::1]", "[::1]:8088", "a:", "a_b.c"] {
            assert_eq!(check_host(good), Ok(()), "{good}");
        }
        for bad in ["", ":80", "a,b", "a, b", "user@a", "a/b", "a:b", "[::1", "[]", "[x]", "a b", "a:1:2", "a:123456"] {
            assert!(check_host(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn targets_are_paths_or_absolute() {
        for good in ["/", "//", "/../", "/%00", "/?a=b", "http://host/path", "HTTP://host", "http://h:1?q"] {
            assert_eq!(check_target(&Method::Get, good), Ok(()), "{good}");
        }
        for bad in ["*", "host", "", "http://", "ftp://host/", "/a\u{1}", "http://u@h/"] {
            assert!(check_target(&Method::Get, bad).is_err(), "{bad:?}");
        }
        assert_eq!(check_target(&Method::Options, "*"), Ok(()));
        assert_eq!(check_target(&Method::Get, &"/".repeat(8193)).unwrap_err().status, 414);
        assert_eq!(absolute_path("http://host/a?b"), Some("/a?b"));
        assert_eq!(absolute_path("http://host"), Some("/"));
    }

    #[test]
    fn lengths_are_digits_and_nothing_else() {
        let framing = |length, coding, old| {
            check_framing(&FramingHeaders { length, coding, ..FramingHeaders::default() }, old)
                .map_err(|rejection| rejection.status)
        };
        assert_eq!(framing(Some("0"), None, false), Ok(Framing::None));
        assert_eq!(framing(Some("5"), None, true), Ok(Framing::Length(5)));
        assert_eq!(framing(Some("18446744073709551615"), None, false), Ok(Framing::Length(u64::MAX)));
        assert_eq!(framing(Some("18446744073709551616"), None, false), Err(413));
        for bad in ["+5", "5,6", "5, 5", "-1", "", "0x5", "5 "] {
            assert_eq!(framing(Some(bad), None, false), Err(400), "{bad}");
        }
        assert_eq!(framing(None, Some("Chunked"), false), Ok(Framing::Chunked));
        assert_eq!(framing(None, Some("gzip, chunked"), false), Err(501));
        assert_eq!(framing(None, Some("identity"), false), Err(501));
        assert_eq!(framing(Some("5"), Some("chunked"), false), Err(400));
        assert_eq!(framing(None, Some("chunked"), true), Err(400));
    }
}
