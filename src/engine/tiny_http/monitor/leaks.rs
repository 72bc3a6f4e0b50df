//! Connections that tiny_http never closes: each keeps a thread and two descriptors for good.
//!
//! A request line that says HTTP/2.0 or 3.0 (an h2c preface, for one) makes tiny_http's thread wait for a writer that
//! it holds itself (`client.rs`, `next`). No request ever arrives. Only the socket shows it: it stays in the descriptor
//! table although its connection is over.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use crate::engine::tiny_http::conn_state::{ConnState, Snapshot};
use crate::sync::RateLimit;

/// Time that tiny_http may keep the socket of a connection that we have shut down, before the socket counts as leaked.
pub(super) const LEAK_AFTER: Duration = Duration::from_secs(3);
/// The same for a connection that its peer has reset, which no response can reach.
const CLOSED_LEAK_AFTER: Duration = Duration::from_secs(1);
/// The same in a drain, and while there are so many that they would reach the leak limit: a client can leak a thousand
/// sockets in a second, which is as much as `RLIMIT_NOFILE` of 1,024 allows.
const FAST_LEAK_AFTER: Duration = Duration::from_millis(250);

/// All leaked sockets.
#[derive(Debug, Default)]
pub(super) struct Leaks {
    /// Cookies of leaked sockets that are still in the table.
    leaked: HashSet<u64>,
    /// When tiny_http's queue was last empty.
    queue_emptied: Option<Instant>,
    reached: bool,
    /// Limits the line about them.
    pub(super) log: RateLimit,
}

/// The time for which tiny_http may keep closed sockets, as of one tick.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    closed: Duration,
    queue_emptied: Option<Instant>,
}

impl Leaks {
    /// Records that tiny_http's queue was empty since the last tick. All that it had read before has been received.
    pub(super) fn note_queue_emptied(&mut self, now: Instant) {
        self.queue_emptied = Some(now);
    }

    /// The [`Patience`] of this tick. `closed` are the times at which those without a request in flight were closed;
    /// `limit` is the number of leaks that must not be exceeded.
    pub(super) fn patience(
        &self,
        closed: impl Iterator<Item = Instant>,
        draining: bool,
        limit: u64,
        now: Instant,
    ) -> Patience {
        let suspects = closed.filter(|closed| now.saturating_duration_since(*closed) >= FAST_LEAK_AFTER).count();
        let fast = draining || (suspects + self.leaked.len()) as u64 >= limit;
        let closed = if fast { FAST_LEAK_AFTER } else { CLOSED_LEAK_AFTER };
        Patience { closed, queue_emptied: self.queue_emptied }
    }

    /// Adds a leaked socket.
    pub(super) fn add(&mut self, cookie: u64) {
        self.leaked.insert(cookie);
    }

    /// Removes sockets that are closed (not in the descriptor table any more), calling `remove` for each.
    pub(super) fn retain(&mut self, is_open: impl Fn(u64) -> bool, mut remove: impl FnMut(u64)) {
        self.leaked.retain(|cookie| {
            let open = is_open(*cookie);
            if !open {
                remove(*cookie);
            }
            open
        });
    }

    /// Leaked sockets that are still in the table.
    pub(super) fn present(&self) -> usize {
        self.leaked.len()
    }

    /// Whether `total`, all leaked since the start, has reached `limit`: true once.
    pub(super) fn reaches(&mut self, total: u64, limit: u64) -> bool {
        total >= limit && !std::mem::replace(&mut self.reached, true)
    }
}

impl Patience {
    /// Whether tiny_http has leaked the socket of a connection, which it still holds: the connection is over, no request of
    /// it is in flight or in tiny_http's queue, and time has passed. `closed_at` is when the socket was first seen closed.
    pub(super) fn is_over(self, seen: &Snapshot, closed_at: Option<Instant>, now: Instant) -> bool {
        let passed = |over: Instant| {
            // A request that was in the queue at that moment may have come from it, and hold the socket.
            self.queue_emptied
                .filter(|emptied| *emptied > over)
                .map(|_| now.saturating_duration_since(over.max(seen.since)))
        };
        let shut_down = match seen.conn_state {
            ConnState::Aborted { since } | ConnState::ReadShut { since } => Some(since),
            ConnState::Open | ConnState::Closing { .. } => None,
        };
        !seen.busy
            && (closed_at.and_then(passed).is_some_and(|passed| passed > self.closed)
                || shut_down.and_then(passed).is_some_and(|passed| passed > LEAK_AFTER))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::tiny_http::conn_state::Activity;

    const LIMIT: u64 = 10;
    const SECOND: Duration = Duration::from_secs(1);

    fn idle(conn_state: ConnState, since: Instant) -> Snapshot {
        Snapshot { busy: false, since, pipelined: 0, conn_state, activity: Activity::Writing }
    }

    /// The queue was empty at the end of `now`'s tick.
    fn patience(suspects: &[Instant], draining: bool, now: Instant) -> Patience {
        let mut leaks = Leaks::default();
        leaks.note_queue_emptied(now);
        leaks.patience(suspects.iter().copied(), draining, LIMIT, now)
    }

    #[test]
    fn a_socket_is_leaked_when_its_connection_is_over_and_idle_and_it_stays() {
        let began = Instant::now();
        let late = began + LEAK_AFTER + SECOND;
        let aborted = idle(ConnState::Aborted { since: began }, began);
        assert!(patience(&[], false, late).is_over(&aborted, None, late));
        assert!(!patience(&[], false, late).is_over(&Snapshot { busy: true, ..aborted }, None, late));
        let ran_on = Snapshot { since: began + 2 * SECOND, ..aborted };
        assert!(!patience(&[], false, late).is_over(&ran_on, None, late), "its handler");
        assert!(!patience(&[], false, late).is_over(&idle(ConnState::Open, began), None, late));
    }

    #[test]
    fn a_reset_connection_has_a_second_and_less_in_a_drain_or_among_many() {
        let began = Instant::now();
        let reset = idle(ConnState::Open, began);
        let at = |suspects: &[Instant], draining, after| {
            patience(suspects, draining, began + after).is_over(&reset, Some(began), began + after)
        };
        assert!(!at(&[began], false, SECOND) && at(&[began], false, 2 * SECOND));
        assert!(at(&[began], true, SECOND));
        assert!(at(&[began; 10], false, SECOND) && !at(&[began; 9], false, SECOND));
        assert!(!at(&[began; 10], false, FAST_LEAK_AFTER));
    }

    #[test]
    fn while_the_queue_may_hold_a_request_of_it_a_socket_is_not_leaked() {
        let began = Instant::now();
        let late = began + 9 * SECOND;
        let mut leaks = Leaks::default();
        let is_over = |leaks: &Leaks| {
            leaks.patience(std::iter::empty(), false, LIMIT, late).is_over(
                &idle(ConnState::Open, began),
                Some(began),
                late,
            )
        };
        assert!(!is_over(&leaks));
        leaks.note_queue_emptied(began);
        assert!(!is_over(&leaks), "it was empty before the connection was over");
        leaks.note_queue_emptied(began + SECOND);
        assert!(is_over(&leaks));
    }

    #[test]
    fn a_socket_that_tiny_http_closes_is_removed_and_the_limit_is_reached_once() {
        let mut leaks = Leaks::default();
        (7..=9).for_each(|cookie| leaks.add(cookie));
        let mut removed = Vec::new();
        leaks.retain(|cookie| cookie == 8, |cookie| removed.push(cookie));
        removed.sort_unstable();
        assert_eq!((removed.as_slice(), leaks.present()), ([7, 9].as_slice(), 1));
        assert!(!leaks.reaches(LIMIT - 1, LIMIT) && leaks.reaches(LIMIT, LIMIT) && !leaks.reaches(LIMIT, LIMIT));
    }
}
