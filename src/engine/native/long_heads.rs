//! Bounds the memory of long heads of which a part has arrived, however many clients send one.
//!
//! The limit on connections counts 8 KiB for each, and a head may have nine times as much. Beyond the bound the head
//! that became long first is rejected: an honest client has sent the rest by then.

use std::collections::BTreeMap;

/// Bytes of each connection's buffer that are not counted here, because the limit on connections counts them
/// (`EngineKind::cost_of_connection`).
const COUNTED_ELSEWHERE: usize = 8 * 1024;

/// Bytes of long heads for each connection that may be open: an eighth of [`COUNTED_ELSEWHERE`].
const FOR_EACH_CONNECTION: usize = 1024;

/// Fewest bytes for the long heads of a receiver, three of the longest.
const LEAST: usize = 256 * 1024;

/// A long head: its place in the order of age, and the bytes that are counted for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LongHead {
    number: u64,
    bytes: usize,
}

/// The long heads of one receiver.
#[derive(Debug)]
pub(super) struct LongHeads {
    /// Slots, oldest head first.
    slots: BTreeMap<u64, u32>,
    bytes: usize,
    limit: usize,
    /// Number of the next.
    next: u64,
}

impl LongHeads {
    pub(super) fn new(max_connections: usize, receivers: usize) -> LongHeads {
        let limit = (max_connections.saturating_mul(FOR_EACH_CONNECTION) / receivers.max(1)).max(LEAST);
        LongHeads { slots: BTreeMap::new(), bytes: 0, limit, next: 0 }
    }

    /// Counts a buffer of `held` bytes for the head of `slot`, in place of `previous`. Returns the value to pass as
    /// `previous` next time.
    #[must_use = "the head can be forgotten only by its owner"]
    pub(super) fn set(&mut self, slot: u32, previous: Option<LongHead>, held: usize) -> Option<LongHead> {
        let bytes = held.saturating_sub(COUNTED_ELSEWHERE);
        self.bytes -= previous.map_or(0, |head| head.bytes);
        self.bytes += bytes;
        match previous {
            Some(head) if bytes == 0 => {
                self.slots.remove(&head.number);
                None
            }
            Some(head) => Some(LongHead { bytes, ..head }),
            None if bytes == 0 => None,
            None => {
                let number = self.next;
                self.next += 1;
                self.slots.insert(number, slot);
                Some(LongHead { number, bytes })
            }
        }
    }

    /// The slot of the oldest long head, if all together exceed the bound.
    pub(super) fn oldest_beyond_limit(&self) -> Option<u32> {
        if self.bytes <= self.limit {
            return None;
        }
        self.slots.first_key_value().map(|(_, slot)| *slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_goes_first_and_what_is_short_is_not_counted() {
        let mut heads = LongHeads::new(1, 1);
        let half = COUNTED_ELSEWHERE + LEAST / 2;
        assert_eq!(heads.set(1, None, COUNTED_ELSEWHERE), None);
        let first = heads.set(2, None, half);
        let second = heads.set(3, None, half);
        assert_eq!(heads.oldest_beyond_limit(), None);
        let second = heads.set(3, second, half + 1);
        assert_eq!(heads.oldest_beyond_limit(), Some(2));
        assert_eq!(heads.set(2, first, 0), None);
        assert_eq!(heads.oldest_beyond_limit(), None);
        assert_eq!(heads.set(3, second, 0), None);
        assert_eq!((heads.bytes, heads.slots.len()), (0, 0));
    }
}
