//! The limit on the length of a head, which tiny_http does not have: it reads a header line without a bound, and shows
//! nothing of it before its end.

use crate::http::validate::{MAX_HEADERS_TOTAL, MAX_TARGET};

/// Most bytes that tiny_http may read from a connection before they yield a request or a part of a body: the longest
/// target and the longest headers, and as much again for line ends and for the beginning of the next request.
const MAX_HEAD_BYTES: u64 = 2 * (MAX_TARGET + MAX_HEADERS_TOTAL) as u64;

/// The length of the head that one connection is sending.
#[derive(Debug, Default)]
pub(super) struct HeadLimit {
    /// Bytes that tiny_http had read when they last yielded a request or a part of a body.
    head_start: u64,
    /// Bytes of the requests and bodies that had arrived by then.
    parsed: u64,
}

impl HeadLimit {
    /// Whether the head is longer than any may be. `taken`: bytes that tiny_http has read so far; `parsed`: bytes of
    /// the requests and bodies that have arrived.
    ///
    /// It is checked while a request is in flight as well: tiny_http reads the next head meanwhile, and lines of a
    /// chunked body, which may be as long.
    pub(super) fn is_exceeded(&mut self, taken: u64, parsed: u64) -> bool {
        if std::mem::replace(&mut self.parsed, parsed) != parsed {
            self.head_start = taken;
        }
        taken.saturating_sub(self.head_start) > MAX_HEAD_BYTES
    }

    /// Estimated beginning of the present head, in bytes since the connection was opened.
    pub(super) fn head_start(&self) -> u64 {
        self.head_start
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_too_long_when_more_bytes_than_any_may_have_yield_no_request() {
        let mut limit = HeadLimit::default();
        assert!(!limit.is_exceeded(MAX_HEAD_BYTES, 0));
        assert!(limit.is_exceeded(MAX_HEAD_BYTES + 1, 0));
        assert!(!limit.is_exceeded(MAX_HEAD_BYTES + 1, 500), "a request has come of it");
        assert_eq!(limit.head_start(), MAX_HEAD_BYTES + 1);
        assert!(!limit.is_exceeded(2 * MAX_HEAD_BYTES, 500));
        assert!(limit.is_exceeded(2 * MAX_HEAD_BYTES + 2, 500));
    }
}
