//! Keeps the number of connections within its limit: the least recently used idle ones are closed; while there are
//! none, the gate is closed.

use std::time::{Duration, Instant};

/// Minimum time between two evictions caused by a shortage of descriptors.
const EVICTION_INTERVAL: Duration = Duration::from_millis(250);

/// Numbers of connections at a tick.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Usage {
    /// Connections that may be open.
    pub(super) max: usize,
    /// Connections that tiny_http has leaked: each still has a thread and two descriptors.
    pub(super) leaked: usize,
    /// All known connections, the leaked ones not counted.
    pub(super) all: usize,
    /// Known connections that were not closed by us.
    pub(super) open: usize,
    /// Connections that wait in the accept queue while the brake is on.
    pub(super) waiting: usize,
    pub(super) gate_closed: bool,
    /// Descriptors are nearly, or wholly, used up.
    pub(super) fd_pressure: bool,
}

/// Whether an eviction was requested, and when the last one was made for a shortage of descriptors.
#[derive(Debug, Default)]
pub(super) struct Capacity {
    requested: bool,
    next_eviction: Option<Instant>,
}

impl Capacity {
    /// Evicts idle connections at the next tick, because descriptors are short.
    pub(super) fn request_eviction(&mut self) {
        self.requested = true;
    }

    /// Whether there is nothing to do.
    pub(super) fn is_at_ease(&self, usage: Usage) -> bool {
        !self.requested && !usage.fd_pressure && !usage.gate_closed && usage.all + usage.waiting <= usage.limit()
    }

    /// How many connections should be closed.
    pub(super) fn excess(&mut self, usage: Usage, now: Instant) -> usize {
        // While the gate is closed, down to the level at which it opens, so that it does not oscillate.
        let limit = if usage.gate_closed { usage.reopen_at() } else { usage.limit() };
        let excess = (usage.open + usage.waiting).saturating_sub(limit).min(usage.open);
        let wanted = self.requested || usage.fd_pressure;
        if wanted && self.next_eviction.is_none_or(|next| now >= next) {
            self.next_eviction = Some(now + EVICTION_INTERVAL);
            self.requested = false;
            return excess.max(usage.open / 4 + 1);
        }
        excess
    }

    /// Whether the gate should be closed (true) or opened (false), after so many were closed; `None` leaves it.
    pub(super) fn gate(&self, usage: Usage, evicted: usize) -> Option<bool> {
        let left = usage.all.saturating_sub(evicted) + usage.waiting;
        if left > usage.limit() || usage.fd_pressure || self.requested {
            Some(true)
        } else if usage.all <= usage.reopen_at() {
            Some(false) // the connections that were closed before are gone
        } else {
            None
        }
    }
}

impl Usage {
    fn limit(self) -> usize {
        self.max.saturating_sub(self.leaked)
    }

    /// Whether no more may be accepted. The connections that wait exceed the limit.
    pub(super) fn is_full(self) -> bool {
        self.all > self.limit() + 1 // one more: the connection with which the brake went on
    }

    fn reopen_at(self) -> usize {
        self.limit() - self.limit() / 8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USAGE: Usage =
        Usage { max: 80, leaked: 0, all: 80, open: 80, waiting: 0, gate_closed: false, fd_pressure: false };

    fn excess(usage: Usage) -> usize {
        Capacity::default().excess(usage, Instant::now())
    }

    #[test]
    fn connections_beyond_the_limit_are_closed_and_the_gate_if_that_is_not_enough() {
        let capacity = Capacity::default();
        assert!(capacity.is_at_ease(USAGE) && excess(USAGE) == 0);
        let over = Usage { all: 90, open: 88, ..USAGE };
        assert!(!capacity.is_at_ease(over));
        assert_eq!(excess(over), 8);
        assert_eq!(capacity.gate(over, 9), Some(true));
        assert_eq!(capacity.gate(over, 20), None, "they have not gone yet");
        assert_eq!(capacity.gate(Usage { all: 70, open: 68, ..over }, 0), Some(false));
    }

    #[test]
    fn waiting_connections_take_the_place_of_idle_ones_or_close_the_gate() {
        let waiting = Usage { waiting: 10, ..USAGE };
        assert!(!Capacity::default().is_at_ease(waiting));
        assert_eq!(excess(waiting), 10);
        assert_eq!(Capacity::default().gate(waiting, 10), None);
        assert_eq!(Capacity::default().gate(waiting, 9), Some(true));
        assert!(!waiting.is_full() && Usage { all: 82, ..USAGE }.is_full());
    }

    #[test]
    fn behind_a_closed_gate_connections_are_closed_until_it_opens() {
        let closed = Usage { gate_closed: true, ..USAGE };
        assert_eq!(excess(closed), 10);
        assert_eq!(Capacity::default().gate(Usage { all: 70, open: 70, ..closed }, 0), Some(false));
    }

    #[test]
    fn leaked_connections_take_the_place_of_others() {
        assert_eq!(excess(Usage { leaked: 30, ..USAGE }), 30);
        assert_eq!(excess(Usage { leaked: 100, ..USAGE }), 80);
    }

    #[test]
    fn for_descriptors_a_quarter_is_closed_now_and_then() {
        let (mut capacity, now) = (Capacity::default(), Instant::now());
        let few = Usage { all: 8, open: 8, ..USAGE };
        capacity.request_eviction();
        assert!(!capacity.is_at_ease(few));
        assert_eq!(capacity.excess(few, now), 3);
        assert_eq!(capacity.excess(few, now), 0, "it was asked for once");
        let short = Usage { fd_pressure: true, ..few };
        assert_eq!(capacity.excess(short, now + EVICTION_INTERVAL / 2), 0);
        assert_eq!(capacity.excess(short, now + EVICTION_INTERVAL), 3);
        assert_eq!(capacity.gate(short, 3), Some(true));
    }
}
