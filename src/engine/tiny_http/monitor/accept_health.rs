//! Checks whether tiny_http's accept thread runs. It ends for good on any error of `accept`, and panics without an
//! event when a descriptor or a thread is missing. Its descriptor of the listening socket is closed exactly then, which
//! [`AcceptBrake::is_thread_alive`](crate::sys::accept_brake::AcceptBrake::is_thread_alive) checks. A server whose
//! thread runs is never replaced, however many connections wait.

use std::time::{Duration, Instant};

/// Time between two requests for a restart, in case the first was missed.
const RESTART_AGAIN: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(super) struct AcceptHealth {
    /// When a restart was last asked for, if the accept thread has not run since.
    requested: Option<Instant>,
}

impl AcceptHealth {
    /// Whether to ask for a restart.
    pub(super) fn must_restart(&mut self, is_accepting: bool, now: Instant) -> bool {
        if is_accepting {
            self.requested = None;
            return false;
        }
        let ask = self.requested.is_none_or(|requested| now.saturating_duration_since(requested) >= RESTART_AGAIN);
        if ask {
            self.requested = Some(now);
        }
        ask
    }

    pub(super) fn is_dead(&self) -> bool {
        self.requested.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restart_is_asked_for_only_while_the_accept_thread_is_dead_and_not_at_every_tick() {
        let (mut health, now) = (AcceptHealth::default(), Instant::now());
        assert!(!health.must_restart(true, now) && !health.is_dead());
        assert!(health.must_restart(false, now) && health.is_dead());
        assert!(!health.must_restart(false, now + RESTART_AGAIN / 2));
        assert!(health.must_restart(false, now + RESTART_AGAIN));
        assert!(!health.must_restart(true, now + RESTART_AGAIN * 2) && !health.is_dead());
        assert!(health.must_restart(false, now + RESTART_AGAIN * 2), "it has died again");
    }
}
