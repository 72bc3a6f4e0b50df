//! Deadlines of single connections, in order: for waits of different lengths.

use std::collections::BTreeSet;
use std::time::Instant;

/// The deadlines; each connection, named by its slot, has one at most.
#[derive(Debug, Default)]
pub(super) struct Timers(BTreeSet<(Instant, u32)>);

impl Timers {
    /// Sets a deadline in place of `previous`, the one that the same connection had; returns the value to pass as
    /// `previous` next time.
    #[must_use = "the deadline can be replaced only by its owner"]
    pub(super) fn set(&mut self, slot: u32, previous: Option<Instant>, deadline: Option<Instant>) -> Option<Instant> {
        if let Some(previous) = previous {
            self.0.remove(&(previous, slot));
        }
        if let Some(deadline) = deadline {
            self.0.insert((deadline, slot));
        }
        deadline
    }

    /// The next deadline.
    pub(super) fn next(&self) -> Option<Instant> {
        self.0.first().map(|(deadline, _)| *deadline)
    }

    /// Takes one deadline that has passed.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<u32> {
        if self.next()? > now {
            return None;
        }
        self.0.pop_first().map(|(_, slot)| slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn deadlines_come_in_order_once_and_only_when_they_have_passed() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut timers = Timers::default();
        assert_eq!(timers.next(), None);
        let first = timers.set(1, None, Some(at(3)));
        let second = timers.set(2, None, Some(at(1)));
        assert_eq!((timers.next(), second), (Some(at(1)), Some(at(1))));
        assert_eq!(timers.pop_due(start), None);
        assert_eq!(timers.set(1, first, Some(at(1))), Some(at(1)));
        assert_eq!([timers.pop_due(at(2)), timers.pop_due(at(2)), timers.pop_due(at(9))], [Some(1), Some(2), None]);
        let third = timers.set(3, None, Some(at(4)));
        assert_eq!(timers.set(3, third, None), None);
        assert_eq!(timers.next(), None);
    }
}
