//! tiny_http's own rules for a request's head, beyond or against the RFCs, as in its source (`new_request` in request.rs,
//! `ClientConnection::next` in client.rs).
//!
//! Two of them cannot be seen here, because tiny_http trims each line of a head with `str::trim`. A folded line
//! (obs-fold) arrives here as a header of its own, and a vertical tab or form feed at either end of a value is gone.
//! With `Transfer-Encoding` neither lets a second request in, because the connection closes after a chunked body. A
//! folded `Content-Length` does, if a proxy in front takes it for the end of the value before: lib.rs lists it under
//! Limitations.

use crate::http::head::{Framing, Rejection, RequestHead, Version};
use crate::http::validate::validate;

/// Longest body, in bytes, that tiny_http reads together with the head, unless the client expects `100 Continue`.
const BUFFERED_BODY_MAX: u64 = 1024;

/// tiny_http's behaviour for one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Quirks {
    /// tiny_http reads nothing more of the connection after this request, and closes its end by itself.
    pub(crate) engine_closes: bool,
    /// The body, if any, is in memory: reading it never waits for the client.
    pub(crate) body_buffered: bool,
}

/// The headers of a request of tiny_http, as [`validate`] takes them.
pub(crate) fn headers(request: &tiny_http::Request) -> impl Iterator<Item = (&str, &[u8])> {
    request.headers().iter().map(|header| (header.field.as_str().as_str(), header.value.as_str().as_bytes()))
}

/// Validates the head of a request, by the RFCs and by what tiny_http can do.
/// Errors: the request must be rejected, and its connection closed.
pub(crate) fn validate_request(request: &tiny_http::Request) -> Result<(RequestHead, Quirks), Rejection> {
    let version = request.http_version();
    let head = validate(request.method().as_str(), request.url(), (version.0, version.1), headers(request))?;
    apply(head, headers(request))
}

/// Adds tiny_http's behaviour to a valid head.
/// Errors: the request is valid, but tiny_http cannot serve it.
fn apply<'a>(
    mut head: RequestHead,
    headers: impl Iterator<Item = (&'a str, &'a [u8])>,
) -> Result<(RequestHead, Quirks), Rejection> {
    let Words { close, upgrade, keep_alive, has_connection: _, has_expect } = Words::find(headers)?;
    let http10 = head.version == Version::Http10;
    if upgrade && head.framing == Framing::Chunked {
        // Its body reader is then the connection itself, and does not decode chunks.
        return Err(Rejection { status: 501, reason: "no upgrade with a chunked body" });
    }
    if http10 && has_expect && head.framing != Framing::None {
        // Its body reader would send `100 Continue`, which HTTP/1.0 does not know (RFC 9110, section 15.2).
        return Err(Rejection { status: 417, reason: "HTTP/1.0 cannot expect 100 Continue" });
    }
    let engine_closes = close || upgrade || (http10 && !keep_alive);
    // Its chunk decoder is lenient (a sign before a size, a bare LF in an extension): the connection closes after chunked
    // bodies, so that a proxy that disagrees on where the body ends cannot be smuggled past.
    head.close |= engine_closes || head.framing == Framing::Chunked;
    head.keep_alive &= !head.close;
    let body_buffered = is_buffered(head.framing, !has_expect && !upgrade);
    Ok((head, Quirks { engine_closes, body_buffered }))
}

/// The framing that tiny_http has given to the body of a rejected request: the body must be discarded by it.
pub(crate) fn of_rejected(request: &tiny_http::Request) -> (RequestHead, Quirks) {
    let has = |name: &'static str| request.headers().iter().any(|header| header.field.equiv(name));
    let framing = match request.body_length() {
        Some(0) => Framing::None,
        Some(length) => Framing::Length(length as u64),
        None if has("Transfer-Encoding") => Framing::Chunked,
        None => Framing::None,
    };
    let version = if *request.http_version() == (1, 0) { Version::Http10 } else { Version::Http11 };
    // tiny_http's behaviour depends on the values and order of these headers, which are not relied on.
    let body_buffered = is_buffered(framing, !has("Expect") && !has("Connection"));
    let head = RequestHead { version, framing, close: true, keep_alive: false, expect_continue: false };
    (head, Quirks { engine_closes: false, body_buffered })
}

/// Whether tiny_http has read the body together with the head. `plain`: the client neither waits for `100 Continue` nor
/// asks for another protocol.
fn is_buffered(framing: Framing, plain: bool) -> bool {
    match framing {
        Framing::None => true,
        Framing::Length(length) => length <= BUFFERED_BODY_MAX && plain,
        Framing::Chunked => false,
    }
}

/// The words that tiny_http looks for anywhere in the value of the first `Connection`, not as list elements, and whether
/// there is an `Expect`.
#[derive(Default)]
struct Words {
    close: bool,
    upgrade: bool,
    keep_alive: bool,
    has_connection: bool,
    has_expect: bool,
}

impl Words {
    fn find<'a>(headers: impl Iterator<Item = (&'a str, &'a [u8])>) -> Result<Words, Rejection> {
        let mut words = Words::default();
        for (name, value) in headers {
            words.has_expect |= name.eq_ignore_ascii_case("expect");
            if !name.eq_ignore_ascii_case("connection") {
                continue;
            }
            if std::mem::replace(&mut words.has_connection, true) {
                // tiny_http acts on the first alone.
                return Err(Rejection { status: 400, reason: "Connection twice" });
            }
            let has = |word: &[u8]| value.windows(word.len()).any(|part| part.eq_ignore_ascii_case(word));
            words.close = has(b"close");
            words.upgrade = has(b"upgrade");
            words.keep_alive = has(b"keep-alive");
        }
        Ok(words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(version: (u8, u8), headers: &[(&str, &str)]) -> Result<(RequestHead, Quirks), u16> {
        let headers = || [("Host", "a")].iter().chain(headers).map(|(name, value)| (*name, value.as_bytes()));
        validate("POST", "/", version, headers())
            .and_then(|head| apply(head, headers()))
            .map_err(|rejection| rejection.status)
    }

    #[test]
    fn the_engine_closes_where_it_finds_a_word_anywhere_in_the_value() {
        let closes = |version, value| {
            of(version, &[("Connection", value)]).map(|(head, quirks)| (head.close, quirks.engine_closes))
        };
        assert_eq!(closes((1, 1), "keep-alive"), Ok((false, false)));
        assert_eq!(closes((1, 1), "x-Closed"), Ok((true, true)));
        assert_eq!(closes((1, 1), "Upgrade"), Ok((true, true)));
        assert_eq!(closes((1, 0), "x-keep-alive"), Ok((true, false)));
        assert_eq!(closes((1, 0), "keep-alive"), Ok((false, false)));
        assert_eq!(closes((1, 0), "x"), Ok((true, true)));
        assert_eq!(of((1, 0), &[]).map(|(head, quirks)| (head.close, quirks.engine_closes)), Ok((true, true)));
        assert_eq!(of((1, 1), &[("Connection", "a"), ("Connection", "b")]), Err(400));
    }

    #[test]
    fn short_bodies_are_read_with_the_head_unless_the_client_waits() {
        let buffered = |headers: &[_]| of((1, 1), headers).map(|(_, quirks)| quirks.body_buffered);
        let (short, long) = (("Content-Length", "1024"), ("Content-Length", "1025"));
        assert_eq!(buffered(&[]), Ok(true));
        assert_eq!(buffered(&[short]), Ok(true));
        assert_eq!(buffered(&[long]), Ok(false));
        assert_eq!(buffered(&[short, ("Expect", "100-continue")]), Ok(false));
        assert_eq!(buffered(&[short, ("Connection", "upgrade")]), Ok(false));
        assert_eq!(buffered(&[("Transfer-Encoding", "chunked")]), Ok(false));
    }

    #[test]
    fn what_the_engine_cannot_serve_is_rejected() {
        let chunked = ("Transfer-Encoding", "chunked");
        assert!(of((1, 1), &[chunked]).is_ok_and(|(head, _)| head.close));
        assert_eq!(of((1, 1), &[chunked, ("Connection", "upgrade")]), Err(501));
        assert_eq!(of((1, 0), &[("Expect", "100-continue"), ("Content-Length", "5")]), Err(417));
        assert!(of((1, 0), &[("Expect", "100-continue")]).is_ok());
    }
}
