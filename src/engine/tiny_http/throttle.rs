//! Clients that send requests faster than anybody takes them in: how they are noticed, and how they are held back.
//!
//! tiny_http reads every connection as fast as it can, and puts all requests into one queue without a bound. A few
//! clients that pipeline at full speed would have that queue to themselves: everybody else waits behind what they sent.
//! So the [keeper](crate::engine::tiny_http::monitor) measures how many requests of each connection are on their way, between the kernel and
//! the listener. When those of all connections are many, it looks more often, and the kernel ignores the clients that
//! have more than their [`SHARE`] on the way, until that has come. What they send meanwhile they keep, and send again.
//!
//! A long head is no flood, however many bytes of it are on their way: it is one request.

use std::time::{Duration, Instant};

use crate::engine::tiny_http::connections::Connection;

/// Requests on their way, of all connections, that make a flood: some 10 ms of work for the listener.
const MANY: u64 = 2048;
/// As many may be on their way when somebody who was held is let in.
const FEW: u64 = MANY / 4;
/// For how long a flood lasts after there were many for the last time.
const CALM: Duration = Duration::from_secs(1);
/// Requests of one connection that may be on their way in a flood.
const SHARE: u64 = 64;
/// What comes at once of a connection that is let in: a receive buffer of small requests.
const AT_ONCE: u64 = 128;
/// How long a request is, and how many are on their way at most, as long as none has come: the beginning of a flood is
/// noticed, and a few long heads are none.
const SHORT_ONE: u64 = 32;
const MOST_UNSEEN: u64 = 128;
/// For how long a connection that is held is not heeded, the first time, whatever its client does; and the longest time.
const SHORTEST_HOLD: Duration = Duration::from_millis(500);
const LONGEST_HOLD: Duration = Duration::from_secs(16);
/// The longest in a drain.
const HOLD_IN_DRAIN: Duration = Duration::from_millis(50);

/// What a look at one connection sees, as counted since it was opened.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    /// Bytes that tiny_http has taken from the socket.
    pub(crate) taken: u64,
    /// Bytes of requests and bodies that have arrived from it.
    pub(crate) arrived: u64,
    /// Requests that have.
    pub(crate) requests: u64,
}

/// What is on its way of one connection.
#[derive(Debug, Default)]
pub(crate) struct Flow {
    seen: Seen,
    /// Bytes of which nothing has come yet. Not exact: nobody tells what the framing took.
    bytes: u64,
    /// They may be requests in the queue; if not, they are the beginning of one.
    queued: bool,
    /// How long a request of this client is; 0 as long as none has come.
    length: u64,
    /// When it was last heeded while it is held, and for how long it is not from then on.
    heeded: Option<(Instant, Duration)>,
    let_in: Option<Instant>,
}

impl Flow {
    /// `all_taken_in` says that tiny_http's queue is empty.
    pub(crate) fn look(&mut self, seen: Seen, all_taken_in: bool) {
        let before = std::mem::replace(&mut self.seen, seen);
        let came = seen.taken.saturating_sub(before.taken);
        let arrived = seen.arrived.saturating_sub(before.arrived);
        if let Some(length) = arrived.checked_div(seen.requests.saturating_sub(before.requests)) {
            self.length = length.max(1);
        }
        // Nothing moves, nothing is in the queue: then what seems to be left is a beginning, or an error in the count.
        let still = came == 0 && arrived == 0 && all_taken_in;
        self.bytes = if still { 0 } else { (self.bytes + came).saturating_sub(arrived) };
        self.queued = !all_taken_in;
    }

    /// Whether another look is worth while without any event.
    pub(crate) fn is_moving(&self) -> bool {
        self.bytes > 0
    }

    /// Requests on their way, about.
    pub(crate) fn requests(&self) -> u64 {
        if !self.queued {
            return 0;
        }
        self.bytes.checked_div(self.length).unwrap_or((self.bytes / SHORT_ONE).min(MOST_UNSEEN))
    }

    /// Whether it has more than its share of a flood.
    pub(crate) fn is_too_much(&self) -> bool {
        self.requests() > SHARE
    }

    /// Whether a connection that is held should be heeded for a moment: its client may have begun to read, or have left,
    /// and what the kernel ignores is also what says so. Each time after twice as long, for all that comes in then must
    /// be kept; but in a drain, which waits for it, soon.
    pub(crate) fn is_to_be_heeded(&mut self, is_held: bool, now: Instant, draining: bool) -> bool {
        if !is_held {
            self.heeded = None;
            return false;
        }
        let (since, gap) = *self.heeded.get_or_insert((now, SHORTEST_HOLD));
        let gap = if draining { gap.min(HOLD_IN_DRAIN) } else { gap };
        if self.is_too_much() || now.saturating_duration_since(since) < gap {
            return false;
        }
        self.heeded = Some((now, (gap * 2).min(LONGEST_HOLD)));
        true
    }
}

/// Whether there is a flood.
#[derive(Debug, Default)]
pub(crate) struct Flood {
    until: Option<Instant>,
}

impl Flood {
    /// Takes in that so many requests are on their way.
    pub(crate) fn goes_on(&mut self, now: Instant, requests: u64) -> bool {
        if requests > MANY {
            self.until = Some(now + CALM);
        }
        self.until = self.until.filter(|until| now < *until);
        self.is_on()
    }

    pub(crate) fn is_on(&self) -> bool {
        self.until.is_some()
    }
}

/// Heeds connections again that were held, those first that have waited longest, as long as few requests are on their
/// way.
pub(crate) fn let_in<'a>(all: impl Iterator<Item = (&'a mut Flow, &'a Connection)>, now: Instant, requests: u64) {
    let room = usize::try_from(FEW.saturating_sub(requests).div_ceil(AT_ONCE)).unwrap_or(0);
    if room == 0 {
        return;
    }
    let mut held: Vec<_> = all.filter(|(flow, connection)| flow.requests() == 0 && connection.is_held()).collect();
    held.sort_by_key(|(flow, _)| flow.let_in);
    for (flow, connection) in held.into_iter().take(room) {
        connection.release_if_few_wait();
        flow.let_in = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(looks: &[(u64, u64, u64)], all_taken_in: bool) -> Flow {
        let mut flow = Flow::default();
        for &(taken, arrived, requests) in looks {
            flow.look(Seen { taken, arrived, requests }, all_taken_in);
        }
        flow
    }

    #[test]
    fn a_long_head_is_one_request_and_no_flood() {
        let endless = after(&[(45, 45, 1), (140_000, 45, 1)], true);
        assert!(endless.is_moving() && !endless.is_too_much());
        let long_ones = after(&[(60_000, 60_000, 1), (119_000, 60_000, 1)], false);
        assert_eq!(long_ones.requests(), 0);
        let first = after(&[(60_000, 0, 0)], false);
        assert!(
            8 * first.requests() < MANY && 64 * first.requests() > MANY,
            "few long heads, or the beginning of a flood"
        );
    }

    #[test]
    fn small_requests_that_nobody_has_taken_in_are_too_much() {
        let flow = after(&[(40_000, 4_000, 100)], false);
        assert_eq!(flow.requests(), 900);
        assert!(flow.is_too_much());
    }

    #[test]
    fn a_count_that_does_not_come_out_even_is_forgotten_when_nothing_moves_and_nothing_waits() {
        let still = [(40_000, 4_000, 100), (40_000, 4_000, 100)];
        assert!(after(&still, true).requests() == 0 && !after(&still, true).is_moving());
        assert!(after(&still, false).is_too_much(), "nobody had the time to take them in");
    }

    #[test]
    fn whoever_is_held_is_heeded_now_and_then_and_ever_more_seldom() {
        let mut flow = Flow::default();
        let began = Instant::now();
        let mut heeded = Vec::new();
        for tenth in 0..76 {
            if flow.is_to_be_heeded(true, began + Duration::from_millis(100) * tenth, false) {
                heeded.push(tenth * 100);
            }
        }
        assert_eq!(heeded, [500, 1500, 3500, 7500]);
        assert!(flow.is_to_be_heeded(true, began + Duration::from_millis(7500) + HOLD_IN_DRAIN, true), "a drain waits");
        assert!(!flow.is_to_be_heeded(false, began + LONGEST_HOLD * 2, false), "nobody is held");
    }

    #[test]
    fn a_flood_ends_a_while_after_there_were_many_for_the_last_time() {
        let (mut flood, began) = (Flood::default(), Instant::now());
        assert!(!flood.goes_on(began, MANY));
        assert!(flood.goes_on(began, MANY + 1));
        assert!(flood.goes_on(began + CALM / 2, 0));
        assert!(!flood.goes_on(began + CALM, 0) && !flood.is_on());
    }
}
