//! The parser of a request's head: incremental, one pass over each line, no copy.
//!
//! It finds the parts and leaves their meaning to [`validate`](crate::http::validate): a line is parsed once, when its
//! line feed has arrived, so that a client that sends byte by byte costs no more than one that sends all at once. What
//! can be malformed in the shape of lines is rejected here, as early as the line that shows it (RFC 9112):
//!
//! * a line ends with CRLF; a bare LF is rejected (section 2.2 lets a recipient take it, and proxies disagree on it), a
//!   bare CR is a control character, which no part of a head may hold;
//! * the request line is method, target and version, with one space between them (section 3);
//! * a header line that begins with white space (obs-fold, section 5.2), has no colon, or has anything but a token before
//!   the colon (section 5.1) is rejected;
//! * empty lines before the request line are ignored (section 2.2); they count towards its limit.

use crate::http::head::Rejection;
use crate::http::validate::{MAX_HEADER_COUNT, MAX_HEADER_LINE, MAX_HEADERS_TOTAL, MAX_TARGET, is_token};

/// Most bytes of a request line, and of the empty lines before it: the longest target, and room for a method and the
/// version.
const MAX_REQUEST_LINE: usize = MAX_TARGET + 256;

/// Most bytes of a head.
pub(super) const MAX_HEAD: usize = MAX_REQUEST_LINE + MAX_HEADERS_TOTAL + "\r\n".len();

/// Part of the head: offsets in bytes from its beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Span {
    start: u32,
    end: u32,
}

impl Span {
    fn new(start: usize, end: usize) -> Span {
        // Offsets are at most `MAX_HEAD`.
        Span { start: u32::try_from(start).unwrap_or(0), end: u32::try_from(end).unwrap_or(0) }
    }

    fn of(self, bytes: &[u8]) -> &[u8] {
        bytes.get(self.start as usize..self.end as usize).unwrap_or_default()
    }
}

/// The progress of a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// More bytes are needed.
    Partial,
    /// The head is complete, and this many bytes long.
    Complete(usize),
}

/// A head that is being parsed, or was. It holds offsets only; its memory is used again for the next head.
#[derive(Debug, Default)]
pub(super) struct Head {
    /// Bytes that were searched for a line feed.
    scanned: usize,
    /// Where the line begins that is not complete yet.
    line_start: usize,
    /// Where the header lines begin; 0 before the request line is complete.
    headers_start: usize,
    method: Span,
    target: Span,
    version: (u8, u8),
    headers: Vec<(Span, Span)>,
}

impl Head {
    /// Clears it for the next head.
    pub(super) fn clear(&mut self) {
        let headers = std::mem::take(&mut self.headers);
        *self = Head { headers, ..Head::default() };
        self.headers.clear();
    }

    /// Length of a complete head in bytes.
    pub(super) fn len(&self) -> usize {
        self.scanned
    }

    /// Whether no byte of a request line has come: nothing, or only empty lines.
    pub(super) fn is_blank(&self, bytes: &[u8]) -> bool {
        self.headers_start == 0 && bytes.len() == self.line_start
    }

    /// Whether the request line was parsed, so that method, target and version are known.
    pub(super) fn has_request_line(&self) -> bool {
        self.headers_start > 0
    }

    /// Parses the lines that are complete by now. `bytes` is everything since the beginning of the head.
    ///
    /// # Errors
    ///
    /// The head is malformed or too large; it cannot be parsed any further.
    pub(super) fn advance(&mut self, bytes: &[u8]) -> Result<Progress, Rejection> {
        while let Some(at) = find_lf(bytes, self.scanned) {
            self.scanned = at + 1;
            let line = self.line_start..at.saturating_sub(1);
            if at == self.line_start || bytes[at - 1] != b'\r' {
                return Err(bad_request("a line does not end with CRLF"));
            }
            self.line_start = at + 1;
            if !self.has_request_line() {
                if at > MAX_REQUEST_LINE {
                    return Err(too_long(&bytes[line]));
                }
                if !line.is_empty() {
                    self.parse_request_line(bytes, line.start, line.end)?;
                    self.headers_start = at + 1;
                }
            } else if line.is_empty() {
                return Ok(Progress::Complete(at + 1));
            } else {
                self.parse_header(bytes, line.start, line.end)?;
            }
        }
        self.scanned = bytes.len();
        self.check_partial_line(bytes)?;
        Ok(Progress::Partial)
    }

    /// Rejects a partial line that no further byte can make valid, so that it is neither kept nor waited for.
    fn check_partial_line(&self, bytes: &[u8]) -> Result<(), Rejection> {
        let line = &bytes[self.line_start..];
        if self.has_request_line() {
            if line.len() > MAX_HEADER_LINE || bytes.len() - self.headers_start > MAX_HEADERS_TOTAL {
                return Err(too_large());
            }
            return Ok(());
        }
        // Bytes of another protocol, a TLS greeting above all, may never hold a line feed.
        if line.first().is_some_and(|first| *first != b'\r' && !is_token(&[*first])) {
            return Err(bad_request("no HTTP request"));
        }
        if bytes.len() > MAX_REQUEST_LINE { Err(too_long(line)) } else { Ok(()) }
    }

    fn parse_request_line(&mut self, bytes: &[u8], start: usize, end: usize) -> Result<(), Rejection> {
        let line = &bytes[start..end];
        let malformed = bad_request("the request line is not method, target and version");
        let first = line.iter().position(|byte| *byte == b' ').ok_or(malformed)?;
        let last = line.iter().rposition(|byte| *byte == b' ').ok_or(malformed)?;
        if first == last {
            return Err(malformed);
        }
        let (method, target) = (&line[..first], &line[first + 1..last]);
        // Only checks that they are words of text; further errors in them are found, answered and logged as with any
        // other request.
        let is_word = |word: &[u8]| !word.is_empty() && !word.contains(&b' ') && std::str::from_utf8(word).is_ok();
        if !is_word(method) || !is_word(target) {
            return Err(malformed);
        }
        let [b'H', b'T', b'T', b'P', b'/', major @ b'0'..=b'9', b'.', minor @ b'0'..=b'9'] = line[last + 1..] else {
            return Err(malformed);
        };
        self.version = (major - b'0', minor - b'0');
        self.method = Span::new(start, start + first);
        self.target = Span::new(start + first + 1, start + last);
        Ok(())
    }

    fn parse_header(&mut self, bytes: &[u8], start: usize, end: usize) -> Result<(), Rejection> {
        let line = &bytes[start..end];
        if self.headers.len() >= MAX_HEADER_COUNT {
            return Err(Rejection { status: 431, reason: "too many headers" });
        }
        if line.len() > MAX_HEADER_LINE || end - self.headers_start > MAX_HEADERS_TOTAL {
            return Err(too_large());
        }
        if matches!(line, [b' ' | b'\t', ..]) {
            return Err(bad_request("a header line begins with white space"));
        }
        let colon = line.iter().position(|byte| *byte == b':').ok_or(bad_request("a header line has no colon"))?;
        if !is_token(&line[..colon]) {
            return Err(bad_request("a header's name is no token"));
        }
        let value = &line[colon + 1..];
        let blank = |byte: &u8| *byte == b' ' || *byte == b'\t';
        let before = value.iter().take_while(|byte| blank(byte)).count();
        let after = value[before..].iter().rev().take_while(|byte| blank(byte)).count();
        self.headers.push((Span::new(start, start + colon), Span::new(start + colon + 1 + before, end - after)));
        Ok(())
    }

    /// The method; empty before the request line is complete. `bytes` are those that were parsed.
    pub(super) fn method<'a>(&self, bytes: &'a [u8]) -> &'a str {
        text(self.method.of(bytes))
    }

    pub(super) fn target<'a>(&self, bytes: &'a [u8]) -> &'a str {
        text(self.target.of(bytes))
    }

    /// Major and minor version.
    pub(super) fn version(&self) -> (u8, u8) {
        self.version
    }

    /// Names and values, white space around values removed.
    pub(super) fn headers<'a>(&'a self, bytes: &'a [u8]) -> Headers<'a> {
        Headers { spans: self.headers.iter(), bytes }
    }
}

/// Names and values of a head.
#[derive(Clone, Default)]
pub(crate) struct Headers<'a> {
    spans: std::slice::Iter<'a, (Span, Span)>,
    bytes: &'a [u8],
}

impl<'a> Iterator for Headers<'a> {
    type Item = (&'a str, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (name, value) = self.spans.next()?;
        Some((text(name.of(self.bytes)), value.of(self.bytes)))
    }
}

/// Text that was checked to be UTF-8 when it was parsed.
fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or_default()
}

fn find_lf(bytes: &[u8], from: usize) -> Option<usize> {
    bytes.get(from..)?.iter().position(|byte| *byte == b'\n').map(|at| from + at)
}

fn bad_request(reason: &'static str) -> Rejection {
    Rejection { status: 400, reason }
}

fn too_large() -> Rejection {
    Rejection { status: 431, reason: "the headers are too large" }
}

/// The request line is too long: because of its target, if a method came before it.
fn too_long(line: &[u8]) -> Rejection {
    match line.iter().position(|byte| *byte == b' ') {
        Some(space) if is_token(&line[..space]) => Rejection { status: 414, reason: "the target is too long" },
        _ => bad_request("the request line is too long"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The status of a head, sent at once and byte by byte: 0 if it is complete, 1 if more is needed.
    #[track_caller]
    fn status(head: &[u8]) -> u16 {
        let number = |result| match result {
            Ok(Progress::Complete(_)) => 0,
            Ok(Progress::Partial) => 1,
            Err(Rejection { status, .. }) => status,
        };
        let at_once = number(Head::default().advance(head));
        let mut slow = Head::default();
        let results = (0..=head.len()).map(|end| number(slow.advance(&head[..end])));
        let byte_by_byte = results.into_iter().find(|status| *status != 1).unwrap_or(1);
        assert_eq!(at_once, byte_by_byte, "{}", head.escape_ascii());
        at_once
    }

    #[test]
    fn parts_are_found_and_white_space_around_values_is_not_part_of_them() {
        let bytes =
            b"\r\n\r\nGET /a?b HTTP/1.1\r\nHost:h\r\nX-A: \t b c\t \r\nX-Empty:  \r\nX-Obs: Zo\xC3\xAB\xFF\r\n\r\nrest";
        let mut head = Head::default();
        assert_eq!(head.advance(bytes), Ok(Progress::Complete(bytes.len() - 4)));
        assert_eq!((head.method(bytes), head.target(bytes), head.version()), ("GET", "/a?b", (1, 1)));
        let headers: Vec<_> = head.headers(bytes).collect();
        let expected: [(&str, &[u8]); 4] =
            [("Host", b"h"), ("X-A", b"b c"), ("X-Empty", b""), ("X-Obs", b"Zo\xC3\xAB\xFF")];
        assert_eq!(headers, expected);
        head.clear();
        assert_eq!(head.advance(b"PUT * HTTP/1.0\r\n\r\n"), Ok(Progress::Complete(18)));
        assert_eq!(head.headers(b"").count(), 0);
    }

    #[test]
    fn lines_end_with_crlf_and_with_nothing_else() {
        for (expected, head) in [
            (0, &b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"[..]),
            (0, b"\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n"),
            (1, b"GET / HTTP/1.1\r\nHost: h\r\n\r"),
            (1, b"GET / HTTP/1.1\r\nHost: h"),
            (1, b""),
            (1, b"\r"),
            (400, b"GET / HTTP/1.1\nHost: h\r\n\r\n"),
            (400, b"GET / HTTP/1.1\r\nHost: h\n\r\n"),
            (400, b"GET / HTTP/1.1\r\nHost: h\r\n\n"),
            (400, b"\nGET / HTTP/1.1\r\n\r\n"),
        ] {
            assert_eq!(status(head), expected, "{}", head.escape_ascii());
        }
    }

    #[test]
    fn a_request_line_is_three_words_with_one_space_between_them() {
        for line in [
            "GET  / HTTP/1.1",
            "GET /  HTTP/1.1",
            " GET / HTTP/1.1",
            "GET / HTTP/1.1 ",
            "GET\t/ HTTP/1.1",
            "GET / http/1.1",
            "GET /",
            "GET",
            "GET / HTTP/1",
            "GET / HTTP/11.1",
            "GET / HTTP/1.1x",
            "GET /a b HTTP/1.1",
            "GET / HTTP /1.1",
            "GET / XTTP/1.1",
            "GET / HTTP/1.\r1",
        ] {
            assert_eq!(status(format!("{line}\r\nHost: h\r\n\r\n").as_bytes()), 400, "{line:?}");
        }
        for line in [
            "GET / HTTP/2.0",
            "PRI * HTTP/2.0",
            "X-!#$ http://h/ HTTP/1.9",
            "GET host HTTP/1.1",
            "G(T /\r\u{e9} HTTP/1.1",
        ] {
            assert_eq!(status(format!("{line}\r\n\r\n").as_bytes()), 0, "{line:?}: validated elsewhere");
        }
    }

    #[test]
    fn a_header_line_is_a_token_a_colon_and_a_value() {
        for line in
            [" folded: x", "\tfolded", "no colon", ": empty", "a b: c", "a : b", "a\t: b", "a\r: b", "é: b", "(a): b"]
        {
            assert_eq!(status(format!("GET / HTTP/1.1\r\nHost: h\r\n{line}\r\n\r\n").as_bytes()), 400, "{line:?}");
        }
        for line in ["a:b", "a:", "a: :", "A-1_~: x: y"] {
            assert_eq!(status(format!("GET / HTTP/1.1\r\n{line}\r\n\r\n").as_bytes()), 0, "{line:?}");
        }
    }

    #[test]
    fn other_protocols_are_rejected_with_their_first_byte() {
        for bytes in [&b"\x16\x03\x01\x02"[..], b"\0", b"\x80\x80", b" GET", b"{\"a\"", b"<xml", b"\x7f"] {
            assert_eq!(status(bytes), 400, "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn whatever_grows_without_end_is_rejected_at_its_limit() {
        let start = b"GET / HTTP/1.1\r\n".to_vec();
        let at = |head: &[u8]| Head::default().advance(head).err().map(|rejection| rejection.status);
        assert_eq!(at(&[b"GET /".as_slice(), &[b'a'; MAX_REQUEST_LINE]].concat()), Some(414));
        let long_line = [b"GET /".as_slice(), &[b'a'; MAX_REQUEST_LINE], b" HTTP/1.1\r\n"].concat();
        assert_eq!(at(&long_line), Some(414), "whole or not");
        assert_eq!(at(&[b'G'; MAX_REQUEST_LINE + 1]), Some(400));
        assert_eq!(at(&b"\r\n".repeat(MAX_REQUEST_LINE)), Some(400));
        assert_eq!(at(&[&start[..], &vec![b'a'; MAX_HEADER_LINE + 1]].concat()), Some(431));
        assert_eq!(at(&[&start[..], b"a: ", &vec![b'a'; MAX_HEADER_LINE], b"\r\n"].concat()), Some(431));
        assert_eq!(at(&[&start[..], &b"a: b\r\n".repeat(MAX_HEADER_COUNT + 1)].concat()), Some(431));
        let line = [b"a: ".as_slice(), &[b'b'; 8 * 1024], b"\r\n"].concat();
        assert_eq!(at(&[&start[..], &line.repeat(9)].concat()), Some(431));
        assert_eq!(at(&[&start[..], &line.repeat(7), b"\r\n"].concat()), None);
    }
}
