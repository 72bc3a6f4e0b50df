//! Conditional requests and ranges: RFC 9110, sections 13 and 14. Pure functions over the headers of a request and the
//! validators of its response.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::time::SystemTime;

use super::response::Response;

/// The headers of a request that make it conditional, or ask for a range.
#[derive(Default)]
pub(crate) struct Conditions<'a> {
    if_match: Vec<&'a str>,
    if_unmodified_since: Option<&'a str>,
    if_none_match: Vec<&'a str>,
    if_modified_since: Option<&'a str>,
    if_range: Option<&'a str>,
    range: Vec<&'a str>,
}

/// The part of a representation to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Selected {
    All,
    /// 304.
    NotModified,
    /// 412.
    PreconditionFailed,
    /// 206: the first byte, and how many.
    Part {
        first: u64,
        length: u64,
    },
    /// 416.
    Unsatisfiable,
}

/// The validators and the length of a representation.
#[derive(Clone, Copy)]
struct Representation<'a> {
    etag: Option<&'a str>,
    modified: Option<&'a str>,
    length: Option<u64>,
}

impl<'a> Conditions<'a> {
    /// The conditions of a request. They count for `GET` and `HEAD` alone, a range for `GET` alone. A value that is not
    /// UTF-8 is a condition that no representation meets.
    pub(crate) fn new(method: &str, headers: impl Iterator<Item = (&'a str, &'a [u8])>) -> Conditions<'a> {
        let mut conditions = Conditions::default();
        for (name, value) in headers {
            let value = std::str::from_utf8(value).unwrap_or_default();
            match name.to_ascii_lowercase().as_str() {
                "if-match" => conditions.if_match.push(value),
                "if-unmodified-since" => conditions.if_unmodified_since = Some(value),
                "if-none-match" => conditions.if_none_match.push(value),
                "if-modified-since" => conditions.if_modified_since = Some(value),
                "if-range" => conditions.if_range = Some(value),
                "range" if method == "GET" => conditions.range.push(value),
                _ => {}
            }
        }
        conditions
    }

    /// Evaluates the conditions in the order of RFC 9110, section 13.2.2.
    fn select(&self, of: Representation<'_>) -> Selected {
        if !self.if_match.is_empty() {
            let matches = |tag: &str| tag == "*" || of.etag.is_some_and(|own| is_strong(own) && own == tag);
            if !tags(&self.if_match).any(matches) {
                return Selected::PreconditionFailed;
            }
        } else if both_dates(self.if_unmodified_since, of.modified).is_some_and(|(since, modified)| modified > since) {
            return Selected::PreconditionFailed;
        }
        if !self.if_none_match.is_empty() {
            // Section 13.1.2: compared weakly.
            let matches = |tag: &str| tag == "*" || of.etag.is_some_and(|own| opaque(own) == opaque(tag));
            if tags(&self.if_none_match).any(matches) {
                return Selected::NotModified;
            }
        } else if both_dates(self.if_modified_since, of.modified).is_some_and(|(since, modified)| modified <= since) {
            return Selected::NotModified;
        }
        match (&self.range[..], of.length) {
            ([range], Some(length)) if self.range_is_wanted(of) => select_range(range, length),
            _ => Selected::All,
        }
    }

    /// True if the part that the client has is of the current representation: section 13.1.5.
    fn range_is_wanted(&self, of: Representation<'_>) -> bool {
        match self.if_range.map(str::trim) {
            None => true,
            Some(tag) if tag.ends_with('"') => of.etag.is_some_and(|own| is_strong(own) && own == tag),
            Some(since) => of.modified.is_some_and(|own| own == since),
        }
    }
}

fn date(text: &str) -> Option<SystemTime> {
    httpdate::parse_http_date(text.trim()).ok()
}

/// Two dates, if both are valid: RFC 9110 ignores a condition with an invalid date.
fn both_dates(first: Option<&str>, second: Option<&str>) -> Option<(SystemTime, SystemTime)> {
    Some((date(first?)?, date(second?)?))
}

fn is_strong(tag: &str) -> bool {
    !tag.starts_with("W/")
}

fn opaque(tag: &str) -> &str {
    tag.strip_prefix("W/").unwrap_or(tag)
}

/// The entity tags of a list, or its star. A malformed one ends the list.
fn tags<'a>(lines: &[&'a str]) -> impl Iterator<Item = &'a str> {
    lines.iter().flat_map(|line| {
        let mut rest = *line;
        std::iter::from_fn(move || {
            rest = rest.trim_start_matches([',', ' ', '\t']);
            if let Some(after) = rest.strip_prefix('*') {
                let star = &rest[..1];
                rest = after;
                return Some(star);
            }
            let start = if rest.starts_with("W/") { 2 } else { 0 };
            let inner = rest.get(start..)?.strip_prefix('"')?;
            let (tag, after) = rest.split_at(start + 1 + inner.find('"')? + 1);
            rest = after;
            Some(tag)
        })
    })
}

/// The part that a range selects. All, if the range is malformed, has another unit, or there are several: section 14.2
/// lets a server ignore those.
fn select_range(range: &str, length: u64) -> Selected {
    let Some((unit, set)) = range.split_once('=') else { return Selected::All };
    // A list may have empty elements: section 5.6.1.2.
    let mut ranges = set.split(',').map(str::trim).filter(|range| !range.is_empty());
    let (true, Some(range), None) = (unit.eq_ignore_ascii_case("bytes"), ranges.next(), ranges.next()) else {
        return Selected::All;
    };
    let Some((first, last)) = range.split_once('-') else { return Selected::All };
    let (first, last) = (first.trim(), last.trim());
    if ![first, last].iter().all(|number| number.bytes().all(|byte| byte.is_ascii_digit())) {
        return Selected::All;
    }
    // A number that does not fit is beyond every length.
    let number = |text: &str| text.parse().unwrap_or(u64::MAX);
    match (first, last) {
        ("", "") => Selected::All,
        ("", suffix) => match number(suffix).min(length) {
            0 => Selected::Unsatisfiable,
            part => Selected::Part { first: length - part, length: part },
        },
        (first, last) => {
            let (first, last) = (number(first), if last.is_empty() { u64::MAX } else { number(last) });
            if last < first {
                Selected::All // section 14.1.1: invalid
            } else if first >= length {
                Selected::Unsatisfiable
            } else {
                Selected::Part { first, length: last.min(length - 1) - first + 1 }
            }
        }
    }
}

impl Response {
    /// Evaluates the conditions and the range of a `GET` or `HEAD` (RFC 9110, sections 13 and 14) when the response is
    /// sent: if the client has it already, by its `ETag` or `Last-Modified`, the answer is 304 without the body; if it
    /// wants a part, 206 with that part; 412 or 416 if a precondition fails or there is no such part. A reader or a
    /// stream is sent as a whole.
    ///
    /// ```
    /// use allout::{Request, Response, Service};
    ///
    /// let service = Service::new().get("/", |_| Response::text("hello").with_header("ETag", "\"1\"").conditional());
    /// assert_eq!(service.handle(Request::get("/").header("If-None-Match", "\"1\"")).status(), 304);
    /// let part = service.handle(Request::get("/").header("Range", "bytes=1-3"));
    /// assert_eq!((part.status(), part.into_text()?), (206, "ell".to_owned()));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn conditional(mut self) -> Response {
        self.is_conditional = true;
        self
    }

    /// Adds the validators of a file, and makes the response conditional.
    pub(crate) fn with_validators(self, metadata: &Metadata) -> Response {
        let tag = format!("\"{:x}.{:x}-{:x}\"", metadata.mtime(), metadata.mtime_nsec(), metadata.len());
        // Section 8.8.2.1: not later than now.
        let modified = metadata.modified().map(|modified| modified.min(SystemTime::now()));
        let response = self.with_header("ETag", tag).conditional();
        match modified {
            // `httpdate` formats no earlier time, and panics.
            Ok(modified) if modified >= SystemTime::UNIX_EPOCH => {
                response.with_header("Last-Modified", httpdate::fmt_http_date(modified))
            }
            _ => response,
        }
    }

    /// The response to a request with these conditions: this one, a part of it, or 304, 412 or 416.
    pub(crate) fn select(mut self, conditions: &Conditions<'_>) -> Response {
        if !self.is_conditional || self.status() != 200 {
            return self;
        }
        let length = self.length().filter(|_| self.body().has_parts());
        if length.is_some() {
            self.set_header("Accept-Ranges", "bytes");
        }
        let of = Representation { etag: self.header("etag"), modified: self.header("last-modified"), length };
        match conditions.select(of) {
            Selected::All => self,
            Selected::NotModified => {
                self.take_body();
                self.with_status(304)
            }
            Selected::PreconditionFailed => Response::from(412),
            Selected::Unsatisfiable => {
                let range = format!("bytes */{}", length.unwrap_or(0));
                Response::from(416).with_header("Accept-Ranges", "bytes").with_header("Content-Range", range)
            }
            Selected::Part { first, length: part } => {
                let range = format!("bytes {first}-{}/{}", first + part - 1, length.unwrap_or(0));
                match self.take_body().slice(first, part) {
                    Ok(body) => self.with_status(206).with_header("Content-Range", range).with_body(body),
                    Err(error) => Response::from(500).with_cause(error),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "Sun, 06 Nov 1994 08:49:36 GMT";
    const DATE: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const NEW: &str = "Sun, 06 Nov 1994 08:49:38 GMT";

    fn select(method: &str, headers: &[(&str, &str)]) -> Selected {
        let of = Representation { etag: Some("\"a\""), modified: Some(DATE), length: Some(10) };
        let headers = headers.iter().map(|(name, value)| (*name, value.as_bytes()));
        Conditions::new(method, headers).select(of)
    }

    #[test]
    fn a_representation_that_the_client_has_is_not_sent_again() {
        for (name, value, not_modified) in [
            ("If-None-Match", "\"a\"", true),
            ("if-none-match", "W/\"a\"", true),
            ("If-None-Match", "\"b\", \"a\"", true),
            ("If-None-Match", "\"b,\\\",\"a\"", true),
            ("If-None-Match", "*", true),
            ("If-None-Match", "\"b\"", false),
            ("If-None-Match", "a", false),
            ("If-Modified-Since", DATE, true),
            ("If-Modified-Since", NEW, true),
            ("If-Modified-Since", "Sunday, 06-Nov-94 08:49:37 GMT", true),
            ("If-Modified-Since", OLD, false),
            ("If-Modified-Since", "yesterday", false),
        ] {
            let expected = if not_modified { Selected::NotModified } else { Selected::All };
            assert_eq!(select("GET", &[(name, value)]), expected, "{name}: {value}");
            assert_eq!(select("HEAD", &[(name, value)]), expected, "{name}: {value}");
        }
        // The tag decides alone: section 13.1.3.
        assert_eq!(select("GET", &[("If-None-Match", "\"b\""), ("If-Modified-Since", NEW)]), Selected::All);
        assert_eq!(select("GET", &[("If-None-Match", "\"b\""), ("If-None-Match", "\"a\"")]), Selected::NotModified);
    }

    #[test]
    fn a_precondition_that_fails_is_a_412() {
        for (name, value, fails) in [
            ("If-Match", "\"a\"", false),
            ("If-Match", "\"b\", \"a\"", false),
            ("If-Match", "*", false),
            ("If-Match", "\"b\"", true),
            ("If-Match", "W/\"a\"", true),
            ("If-Unmodified-Since", DATE, false),
            ("If-Unmodified-Since", NEW, false),
            ("If-Unmodified-Since", OLD, true),
            ("If-Unmodified-Since", "yesterday", false),
        ] {
            let expected = if fails { Selected::PreconditionFailed } else { Selected::All };
            assert_eq!(select("GET", &[(name, value)]), expected, "{name}: {value}");
        }
        assert_eq!(select("GET", &[("If-Match", "\"a\""), ("If-Unmodified-Since", OLD)]), Selected::All);
        let both = [("If-Match", "\"b\""), ("If-None-Match", "\"a\"")];
        assert_eq!(select("GET", &both), Selected::PreconditionFailed);
    }

    #[test]
    fn a_single_range_selects_a_part() {
        let part = |first, length| Selected::Part { first, length };
        for (range, expected) in [
            ("bytes=0-0", part(0, 1)),
            ("bytes=0-4", part(0, 5)),
            ("Bytes= 2 - 4 ", part(2, 3)),
            ("bytes=5-", part(5, 5)),
            ("bytes=9-9", part(9, 1)),
            ("bytes=0-99999999999999999999999", part(0, 10)),
            ("bytes=-3", part(7, 3)),
            ("bytes=-10", part(0, 10)),
            ("bytes=-11", part(0, 10)),
            ("bytes=10-", Selected::Unsatisfiable),
            ("bytes=99999999999999999999999-", Selected::Unsatisfiable),
            ("bytes=-0", Selected::Unsatisfiable),
            ("bytes=4-2", Selected::All),
            ("bytes=-", Selected::All),
            ("bytes=a-b", Selected::All),
            ("bytes=+1-2", Selected::All),
            ("bytes=1--2", Selected::All),
            ("bytes 1-2", Selected::All),
            ("lines=1-2", Selected::All),
            ("bytes=0-1,3-4", Selected::All),
        ] {
            assert_eq!(select("GET", &[("Range", range)]), expected, "{range}");
        }
        assert_eq!(select("HEAD", &[("Range", "bytes=0-0")]), Selected::All);
        assert_eq!(select("GET", &[("Range", "bytes=0-0"), ("Range", "bytes=1-1")]), Selected::All);
        let empty = Representation { etag: None, modified: None, length: Some(0) };
        let conditions = Conditions::new("GET", [("Range", &b"bytes=0-"[..])].into_iter());
        assert_eq!(conditions.select(empty), Selected::Unsatisfiable);
    }

    #[test]
    fn a_range_of_a_representation_that_has_changed_is_not_sent() {
        let part = Selected::Part { first: 0, length: 1 };
        for (if_range, expected) in [
            ("\"a\"", part),
            (DATE, part),
            ("\"b\"", Selected::All),
            ("W/\"a\"", Selected::All),
            (OLD, Selected::All),
            (NEW, Selected::All),
        ] {
            assert_eq!(select("GET", &[("Range", "bytes=0-0"), ("If-Range", if_range)]), expected, "{if_range}");
        }
        let fresh = [("Range", "bytes=0-0"), ("If-None-Match", "\"a\"")];
        assert_eq!(select("GET", &fresh), Selected::NotModified, "which comes first");
    }

    #[test]
    fn a_tag_that_is_not_utf_8_matches_no_representation() {
        let of = Representation { etag: Some("\"a\""), modified: Some(DATE), length: Some(10) };
        let select =
            |headers: &[(&'static str, &'static [u8])]| Conditions::new("GET", headers.iter().copied()).select(of);
        let date = ("If-Modified-Since", DATE.as_bytes());
        assert_eq!(select(&[("If-None-Match", b"\"\xff\""), date]), Selected::All, "the tag decides alone");
        assert_eq!(select(&[("If-Match", b"\"\xff\"")]), Selected::PreconditionFailed);
        assert_eq!(select(&[("Range", b"bytes=0-0"), ("If-Range", b"\"\xff\"")]), Selected::All);
    }

    #[test]
    fn the_response_says_which_part_it_is() {
        let select = |range: &str, body: super::super::body::Body| {
            Response::new(body).conditional().select(&Conditions::new("GET", [("Range", range.as_bytes())].into_iter()))
        };
        for body in
            ["0123456789".into(), "0123456789".to_owned().into(), std::sync::Arc::<str>::from("0123456789").into()]
        {
            let part = select("bytes=2-4", body);
            assert_eq!((part.status(), part.header("Content-Range")), (206, Some("bytes 2-4/10")));
            assert_eq!(part.into_text().unwrap(), "234");
        }
        let of_a_reader = select("bytes=2-4", super::super::body::Body::reader(&b"0123456789"[..], Some(10)));
        assert_eq!((of_a_reader.status(), of_a_reader.header("Accept-Ranges")), (200, None));
        assert_eq!(of_a_reader.into_text().unwrap(), "0123456789");
        let unsatisfiable = select("bytes=10-", "0123456789".into());
        assert_eq!((unsatisfiable.status(), unsatisfiable.header("Content-Range")), (416, Some("bytes */10")));
    }
}
