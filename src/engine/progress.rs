//! The time that a client may keep an engine waiting for a body, in either direction.

use std::time::Duration;

/// Minimum rate in bytes a second, below which a client uses up its budget: the order of Apache's `RequestReadTimeout
/// MinRate=500`.
const MIN_RATE: u64 = 1024;

/// A budget of time blocked on the client. Blocked time is taken from it, each byte moved adds `1 / MIN_RATE` seconds,
/// and it never exceeds the timeout that it began with: a client that sends or reads at the minimum rate is never cut,
/// one that stalls is cut after the timeout. Time that the handler takes does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Budget {
    left: Duration,
    cap: Duration,
}

impl Budget {
    /// A full budget.
    pub(crate) fn new(timeout: Duration) -> Budget {
        Budget { left: timeout, cap: timeout }
    }

    /// Time that the next wait may take.
    pub(crate) fn left(&self) -> Duration {
        self.left
    }

    /// Accounts for a wait of `blocked` in which `bytes` moved. A budget that is empty stays empty.
    pub(crate) fn spend(&mut self, blocked: Duration, bytes: u64) {
        let earned = Duration::from_micros(bytes.saturating_mul(1_000_000) / MIN_RATE);
        let left = self.left.saturating_sub(blocked);
        self.left = if left.is_zero() { left } else { left.saturating_add(earned).min(self.cap) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(10);

    #[test]
    fn a_client_at_the_minimum_rate_is_never_cut() {
        let mut budget = Budget::new(TIMEOUT);
        for _ in 0..1000 {
            budget.spend(Duration::from_secs(1), MIN_RATE);
        }
        assert_eq!(budget.left(), TIMEOUT);
    }

    #[test]
    fn a_client_that_stalls_is_cut_after_the_timeout_and_one_that_trickles_soon_after() {
        let mut stalled = Budget::new(TIMEOUT);
        stalled.spend(TIMEOUT, 0);
        assert!(stalled.left().is_zero());
        let mut trickling = Budget::new(TIMEOUT);
        let seconds = (1..100).find(|_| {
            trickling.spend(Duration::from_secs(1), 1);
            trickling.left().is_zero()
        });
        assert_eq!(seconds, Some(11));
    }

    #[test]
    fn no_burst_earns_more_than_the_timeout() {
        let mut budget = Budget::new(TIMEOUT);
        budget.spend(Duration::ZERO, u64::MAX);
        assert_eq!(budget.left(), TIMEOUT);
    }
}
