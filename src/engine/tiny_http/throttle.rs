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

use crate::engine::tiny_http::connection::Connection;

/// Requests on their way, of all connections, that make a flood: some 10 ms of work for the listener.
const FLOOD_HIGH: u64 = 2048;
/// As many may be on their way when somebody who was held is let in.
const FLOOD_LOW: u64 = FLOOD_HIGH / 4;
/// For how long a flood lasts after there were many for the last time.
const COOLDOWN: Duration = Duration::from_secs(1);
/// Requests of one connection that may be on their way in a flood.
const SHARE: u64 = 64;
/// What comes at once of a connection that is let in: a receive buffer of small requests.
const RESUME_COST: u64 = 128;
/// How long a request is, and how many are on their way at most, as long as none has come: the beginning of a flood is
/// noticed, and a few long heads are none.
const MIN_REQUEST_BYTES: u64 = 32;
const MAX_UNPARSED: u64 = 128;
/// Backoff between probes of a throttled connection: first, and maximum.
const MIN_BACKOFF: Duration = Duration::from_millis(500);
const MAX_BACKOFF: Duration = Duration::from_secs(16);
/// The longest in a drain.
const DRAIN_BACKOFF: Duration = Duration::from_millis(50);

/// What a look at one connection sees, as counted since it was opened.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sample {
    /// Bytes that tiny_http has taken from the socket.
    pub(crate) taken: u64,
    /// Bytes of requests and bodies that have arrived from it.
    pub(crate) parsed: u64,
    /// Requests that have.
    pub(crate) requests: u64,
}

/// What is on its way of one connection.
#[derive(Debug, Default)]
pub(crate) struct Backlog {
    seen: Sample,
    /// Bytes of which nothing has come yet. Not exact: nobody tells what the framing took.
    bytes: u64,
    /// They may be requests in the queue; if not, they are the beginning of one.
    queued: bool,
    /// How long a request of this client is; 0 as long as none has come.
    length: u64,
    /// While it is throttled: when it was last probed, and the backoff until the next probe.
    last_probe: Option<(Instant, Duration)>,
    resumed_at: Option<Instant>,
}

impl Backlog {
    /// `all_taken_in` says that tiny_http's queue is empty.
    pub(crate) fn update(&mut self, seen: Sample, all_taken_in: bool) {
        let before = std::mem::replace(&mut self.seen, seen);
        let came = seen.taken.saturating_sub(before.taken);
        let arrived = seen.parsed.saturating_sub(before.parsed);
        if let Some(length) = arrived.checked_div(seen.requests.saturating_sub(before.requests)) {
            self.length = length.max(1);
        }
        // Nothing moves, nothing is in the queue: then what seems to be left is a beginning, or an error in the count.
        let still = came == 0 && arrived == 0 && all_taken_in;
        self.bytes = if still { 0 } else { (self.bytes + came).saturating_sub(arrived) };
        self.queued = !all_taken_in;
    }

    /// Whether another look is worth while without any event.
    pub(crate) fn has_pending(&self) -> bool {
        self.bytes > 0
    }

    /// Requests on their way, about.
    pub(crate) fn estimated_requests(&self) -> u64 {
        if !self.queued {
            return 0;
        }
        self.bytes.checked_div(self.length).unwrap_or((self.bytes / MIN_REQUEST_BYTES).min(MAX_UNPARSED))
    }

    /// Whether it has more than its share of a flood.
    pub(crate) fn exceeds_share(&self) -> bool {
        self.estimated_requests() > SHARE
    }

    /// Whether a connection that is held should be resumed for a moment: its client may have begun to read, or have left,
    /// and what the kernel ignores is also what says so. Each time after twice as long, for all that comes in then must
    /// be kept; but in a drain, which waits for it, soon.
    pub(crate) fn should_probe(&mut self, is_held: bool, now: Instant, draining: bool) -> bool {
        if !is_held {
            self.last_probe = None;
            return false;
        }
        let (since, gap) = *self.last_probe.get_or_insert((now, MIN_BACKOFF));
        let gap = if draining { gap.min(DRAIN_BACKOFF) } else { gap };
        if self.exceeds_share() || now.saturating_duration_since(since) < gap {
            return false;
        }
        self.last_probe = Some((now, (gap * 2).min(MAX_BACKOFF)));
        true
    }
}

/// Whether there is a flood.
#[derive(Debug, Default)]
pub(crate) struct FloodDetector {
    until: Option<Instant>,
}

impl FloodDetector {
    /// Takes in that so many requests are on their way.
    pub(crate) fn update(&mut self, now: Instant, requests: u64) -> bool {
        if requests > FLOOD_HIGH {
            self.until = Some(now + COOLDOWN);
        }
        self.until = self.until.filter(|until| now < *until);
        self.is_active()
    }

    pub(crate) fn is_active(&self) -> bool {
        self.until.is_some()
    }
}

/// Heeds connections again that were held, those first that have waited longest, as long as few requests are on their
/// way.
pub(crate) fn resume_oldest<'a>(
    all: impl Iterator<Item = (&'a mut Backlog, &'a Connection)>,
    now: Instant,
    requests: u64,
) {
    let room = usize::try_from(FLOOD_LOW.saturating_sub(requests).div_ceil(RESUME_COST)).unwrap_or(0);
    if room == 0 {
        return;
    }
    let mut held: Vec<_> =
        all.filter(|(flow, connection)| flow.estimated_requests() == 0 && connection.is_held()).collect();
    held.sort_by_key(|(flow, _)| flow.resumed_at);
    for (flow, connection) in held.into_iter().take(room) {
        connection.release_if_few_wait();
        flow.resumed_at = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(looks: &[(u64, u64, u64)], all_taken_in: bool) -> Backlog {
        let mut flow = Backlog::default();
        for &(taken, arrived, requests) in looks {
            flow.update(Sample { taken, parsed: arrived, requests }, all_taken_in);
        }
        flow
    }

    #[test]
    fn a_long_head_is_activee_request_and_no_flood() {
        let endless = after(&[(45, 45, 1), (140_000, 45, 1)], true);
        assert!(endless.has_pending() && !endless.exceeds_share());
        let long_ones = after(&[(60_000, 60_000, 1), (119_000, 60_000, 1)], false);
        assert_eq!(long_ones.estimated_requests(), 0);
        let first = after(&[(60_000, 0, 0)], false);
        assert!(
            8 * first.estimated_requests() < FLOOD_HIGH && 64 * first.estimated_requests() > FLOOD_HIGH,
            "few long heads, or the beginning of a flood"
        );
    }

    #[test]
    fn small_requests_that_nobody_has_taken_in_are_too_much() {
        let flow = after(&[(40_000, 4_000, 100)], false);
        assert_eq!(flow.estimated_requests(), 900);
        assert!(flow.exceeds_share());
    }

    #[test]
    fn a_count_that_does_not_come_out_even_is_forgotten_when_nothing_moves_and_nothing_waits() {
        let still = [(40_000, 4_000, 100), (40_000, 4_000, 100)];
        assert!(after(&still, true).estimated_requests() == 0 && !after(&still, true).has_pending());
        assert!(after(&still, false).exceeds_share(), "nobody had the time to take them in");
    }

    #[test]
    fn whoever_is_held_is_last_probe_now_and_then_and_ever_more_seldom() {
        let mut flow = Backlog::default();
        let began = Instant::now();
        let mut last_probe = Vec::new();
        for tenth in 0..76 {
            if flow.should_probe(true, began + Duration::from_millis(100) * tenth, false) {
                last_probe.push(tenth * 100);
            }
        }
        assert_eq!(last_probe, [500, 1500, 3500, 7500]);
        assert!(flow.should_probe(true, began + Duration::from_millis(7500) + DRAIN_BACKOFF, true), "a drain waits");
        assert!(!flow.should_probe(false, began + MAX_BACKOFF * 2, false), "nobody is held");
    }

    #[test]
    fn a_flood_ends_a_while_after_there_were_many_for_the_last_time() {
        let (mut flood, began) = (FloodDetector::default(), Instant::now());
        assert!(!flood.update(began, FLOOD_HIGH));
        assert!(flood.update(began, FLOOD_HIGH + 1));
        assert!(flood.update(began + COOLDOWN / 2, 0));
        assert!(!flood.update(began + COOLDOWN, 0) && !flood.is_active());
    }
}
