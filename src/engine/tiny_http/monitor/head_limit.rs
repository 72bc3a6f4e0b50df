//! The limit on the length of a head, which tiny_http does not have: it reads a header line without a bound, and shows
//! nothing of it before its end.

use crate::http::validate::{MAX_HEADERS_TOTAL, MAX_TARGET};

/// Bytes that tiny_http may take from a connection without a request or a part of a body coming of them: the longest
/// target and the longest headers, and as much again for line ends and for the beginning of the next request.
const MAX_HEAD_BYTES: u64 = 2 * (MAX_TARGET + MAX_HEADERS_TOTAL) as u64;

/// How much of a head one connection has sent.
#[derive(Debug, Default)]
pub(super) struct HeadLimit {
    /// Bytes that tiny_http had taken when a request, or a part of a body, was last seen to have come of them.
    head_start: u64,
    /// Bytes of which requests and bodies had come by then.
    parsed: u64,
}

impl HeadLimit {
    /// Whether the head is longer than any may be. `taken` are the bytes that tiny_http has read so far, `parsed` those of
    /// which requests and bodies have come.
    ///
    /// Also while a request is in flight: tiny_http reads the next head meanwhile, and lines of a chunked body that may
    /// be as long.
    pub(super) fn is_exceeded(&mut self, taken: u64, parsed: u64) -> bool {
        if std::mem::replace(&mut self.parsed, parsed) != parsed {
            self.head_start = taken;
        }
        taken.saturating_sub(self.head_start) > MAX_HEAD_BYTES
    }

    /// Where the present head begins, in bytes since the connection was opened; about.
    pub(super) fn head_start(&self) -> u64 {
        self.head_start
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_too_long_when_nothing_comes_of_more_bytes_than_any_may_have() {
        let mut limit = HeadLimit::default();
        assert!(!limit.is_exceeded(MAX_HEAD_BYTES, 0));
        assert!(limit.is_exceeded(MAX_HEAD_BYTES + 1, 0));
        assert!(!limit.is_exceeded(MAX_HEAD_BYTES + 1, 500), "a request has come of it");
        assert_eq!(limit.head_start(), MAX_HEAD_BYTES + 1);
        assert!(!limit.is_exceeded(2 * MAX_HEAD_BYTES, 500));
        assert!(limit.is_exceeded(2 * MAX_HEAD_BYTES + 2, 500));
    }
}
