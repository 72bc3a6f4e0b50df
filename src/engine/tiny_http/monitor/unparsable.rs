//! Connections that tiny_http closes because it cannot parse their bytes: a byte above 0x7F in a head, TLS, a PROXY
//! line. No layer above tiny_http sees such a request, so bytes are compared: those that the kernel has received with
//! those of the requests and bodies that have arrived.
//!
//! A connection that begins and ends between two scans is never seen. A client that leaves in the middle of a head looks
//! the same, if its connection was not seen before it left.

use crate::sys::tcp::TcpInfo;

/// Fewest unaccounted bytes that count: the length of a request is an estimate, and no request has fewer bytes.
const MIN_UNPARSED: u64 = 16;

/// The bytes of one connection that requests and bodies account for.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Accounted {
    taken: u64,
    parsed: u64,
}

impl Accounted {
    /// Updates at a tick. An idle connection of which no byte waits has no error in its account, or the beginning
    /// of a head, of which something will come.
    pub(super) fn update(&mut self, idle: bool, unread: u64, taken: u64, parsed: u64) {
        if idle && unread == 0 {
            *self = Accounted { taken, parsed };
        }
    }

    /// Whether tiny_http has closed the connection because of its bytes. `info` and `unread` are of a duplicate of its
    /// socket, after tiny_http has closed its own; `requests`: the number that has arrived on it.
    pub(super) fn is_unparsable(self, info: TcpInfo, unread: u64, parsed: u64, requests: u64) -> bool {
        if info.peer_closed_first {
            return false;
        }
        // The end of the stream counts as a byte. Of bytes before a reset tiny_http may have read none.
        let read = info.bytes_received.saturating_sub(unread).saturating_sub(1);
        let unparsed = read.saturating_sub(self.taken).saturating_sub(parsed.saturating_sub(self.parsed));
        unparsed >= if requests == 0 { 1 } else { MIN_UNPARSED }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(bytes_received: u64) -> TcpInfo {
        TcpInfo { bytes_received, ..TcpInfo::default() }
    }

    #[test]
    fn bytes_that_yield_no_request_are_unparsable() {
        assert!(Accounted::default().is_unparsable(info(25), 0, 0, 0));
        assert!(!Accounted::default().is_unparsable(info(1), 0, 0, 0), "it has sent nothing but its end");
        assert!(Accounted::default().is_unparsable(info(100), 0, 40, 1), "the second request");
        assert!(!Accounted::default().is_unparsable(info(45), 0, 40, 1), "blanks that the estimate does not know");
        assert!(!Accounted::default().is_unparsable(info(30), 0, 40, 1), "or trims");
    }

    #[test]
    fn a_client_that_left_first_sent_nothing_unparsable() {
        let left = TcpInfo { peer_closed_first: true, ..info(100) };
        assert!(!Accounted::default().is_unparsable(left, 0, 0, 0));
    }

    #[test]
    fn bytes_that_were_reset_before_they_were_read_are_not_unparsable() {
        assert!(!Accounted::default().is_unparsable(info(25), 25, 0, 0));
    }

    #[test]
    fn errors_of_the_estimate_do_not_add_up_and_the_beginning_of_a_head_is_none() {
        let mut accounted = Accounted::default();
        accounted.update(false, 0, 5000, 4000);
        assert!(accounted.is_unparsable(info(5000), 0, 4000, 100), "busy: a request may be on its way");
        accounted.update(true, 0, 5000, 4000);
        assert!(!accounted.is_unparsable(info(5001), 0, 4000, 100));
        assert!(accounted.is_unparsable(info(5101), 0, 4000, 100));
    }
}
