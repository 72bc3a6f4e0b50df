//! Connections that tiny_http has accepted and left without a thread, which happens in bursts: its thread pool counts on
//! idle threads that have work already (`util/task_pool.rs`, `waiting_tasks`).
//!
//! A connection counts as starved if bytes wait and none was ever read, at two ticks in a row. A *knock*, a short
//! connection to our own port, makes tiny_http start a thread, which then takes the starved connection.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::engine::tiny_http::accept_point::AcceptPoint;
use crate::sync::WarnOnce;

/// Most knocks in one tick; each takes some 20 µs.
const MAX_KNOCKS_PER_TICK: usize = 256;
/// Most knocks in a tick that follows another one by a moment: a thread may have its connection and not have run yet, so
/// that a knock for it is in vain.
const MAX_EARLY_KNOCKS: usize = 16;

/// Whether one connection is starved.
#[derive(Debug, Default)]
pub(super) struct Starved {
    untouched: bool,
}

impl Starved {
    /// Updates at a tick with the unread bytes and all bytes received (the end of the stream counts as one).
    /// True from the second tick in a row at which nothing was ever read.
    pub(super) fn update(&mut self, unread: u64, received: u64) -> bool {
        let untouched = unread > 0 && received <= unread + 1;
        std::mem::replace(&mut self.untouched, untouched) && untouched
    }

    /// Whether it must be checked again at the next tick.
    pub(super) fn is_suspected(&self) -> bool {
        self.untouched
    }
}

/// Makes tiny_http start threads.
#[derive(Debug, Default)]
pub(super) struct Unstarve {
    warned: WarnOnce,
}

impl Unstarve {
    /// Makes tiny_http start as many threads as connections were found without one, and counts them in `unstarved`.
    /// `early`: the tick follows another one by a moment.
    pub(super) fn knock(&self, starved: usize, early: bool, accept: &AcceptPoint, unstarved: &AtomicU64) {
        for _ in 0..starved.min(if early { MAX_EARLY_KNOCKS } else { MAX_KNOCKS_PER_TICK }) {
            if let Err(error) = accept.knock() {
                if self.warned.is_first() {
                    log::warn!("cannot connect to own port ({error}): connections may hang after bursts");
                }
                return;
            }
            unstarved.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_of_which_nothing_was_read_at_two_ticks_in_a_row_is_starved() {
        let mut starved = Starved::default();
        assert!(!starved.update(0, 0) && !starved.is_suspected(), "it is silent");
        assert!(!starved.update(40, 40) && starved.is_suspected());
        assert!(starved.update(40, 41), "its client has left since");
        assert!(!starved.update(0, 41) && !starved.is_suspected(), "tiny_http has read it");
        assert!(!starved.update(40, 81), "the next request waits behind one that was read");
    }
}
