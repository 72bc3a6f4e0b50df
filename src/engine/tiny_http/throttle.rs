//! Backpressure on clients that send requests faster than the listener receives them: detection and throttling.
//!
//! tiny_http reads every connection as fast as it can, and puts all requests into one unbounded queue. A few clients that
//! pipeline at full speed would fill that queue, and every other client would wait behind their requests. So the
//! [monitor](crate::engine::tiny_http::monitor) estimates the backlog of each connection: requests between the kernel and
//! the listener. When the sum is large (a flood), it ticks more often and throttles the connections whose backlog exceeds
//! their [`SHARE`], until that has been received. What their clients send meanwhile is retransmitted later.
//!
//! A long head is one request, however many bytes it has: it is not counted as many.

use std::time::{Duration, Instant};

use crate::engine::tiny_http::connection::Connection;

/// Backlog of all connections, in requests, above which a flood begins: some 10 ms of work for the listener.
const FLOOD_HIGH: u64 = 2048;
/// Backlog of all connections, in requests, up to which throttled connections are resumed.
const FLOOD_LOW: u64 = FLOOD_HIGH / 4;
/// Duration of a flood after the backlog was last above [`FLOOD_HIGH`].
const COOLDOWN: Duration = Duration::from_secs(1);
/// Backlog of one connection, in requests, above which it is throttled in a flood.
const SHARE: u64 = 64;
/// Requests that arrive at once when a connection is resumed: a receive buffer full of small ones.
const RESUME_COST: u64 = 128;
/// Length of a request, in bytes, that is assumed before the first one of a connection is received.
const MIN_REQUEST_BYTES: u64 = 32;
/// Backlog, in requests, that is assumed at most before then: enough to detect a flood, too few for one long head to
/// look like one.
const MAX_UNPARSED: u64 = 128;
/// Backoff before the first probe of a throttled connection; doubled for each further one.
const MIN_BACKOFF: Duration = Duration::from_millis(500);
/// Maximum backoff between two probes.
const MAX_BACKOFF: Duration = Duration::from_secs(16);
/// Bytes that may be received on a connection after it was throttled: data in flight, and a receive buffer of 4 KiB.
const THROTTLED_BYTES: u64 = 16 * 1024;
/// Maximum backoff in a drain, which waits for these connections.
const DRAIN_BACKOFF: Duration = Duration::from_millis(50);

/// Counters of one connection since it was opened.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sample {
    /// Bytes that tiny_http has taken from the socket.
    pub(crate) taken: u64,
    /// Bytes of requests and bodies that have arrived from it.
    pub(crate) parsed: u64,
    /// Requests that have arrived from it.
    pub(crate) requests: u64,
}

/// Backlog of one connection: what tiny_http has read and the listener has not received.
#[derive(Debug, Default)]
pub(crate) struct Backlog {
    seen: Sample,
    /// Bytes read and not yet received as requests or bodies. An estimate: the bytes of the framing are not known.
    bytes: u64,
    /// Whether tiny_http's queue may hold requests, so that the bytes may be complete ones; otherwise they are the
    /// beginning of one.
    queued: bool,
    /// Mean length of this client's latest requests, in bytes; 0 before the first.
    length: u64,
    /// While it is throttled: when it was last probed, and the backoff until the next probe.
    last_probe: Option<(Instant, Duration)>,
    resumed_at: Option<Instant>,
    /// While it is throttled: the number of the throttle, and the bytes received when it was first seen.
    throttled_at: Option<(u32, u64)>,
}

impl Backlog {
    /// Updates the estimate. `engine_queue_empty`: tiny_http's queue is empty.
    pub(crate) fn update(&mut self, seen: Sample, engine_queue_empty: bool) {
        let before = std::mem::replace(&mut self.seen, seen);
        let came = seen.taken.saturating_sub(before.taken);
        let arrived = seen.parsed.saturating_sub(before.parsed);
        if let Some(length) = arrived.checked_div(seen.requests.saturating_sub(before.requests)) {
            self.length = length.max(1);
        }
        // Without progress, and with an empty queue, the rest is the beginning of a request, or an error of the
        // estimate.
        let still = came == 0 && arrived == 0 && engine_queue_empty;
        self.bytes = if still { 0 } else { (self.bytes + came).saturating_sub(arrived) };
        self.queued = !engine_queue_empty;
    }

    /// Whether bytes arrive although the connection is throttled: its packets have the highest TTL. `throttle` is the
    /// number of the throttle, if it is throttled; `received` are all bytes received of it.
    pub(crate) fn ignores_throttle(&mut self, throttle: Option<u32>, received: u64) -> bool {
        let Some(number) = throttle else {
            self.throttled_at = None;
            return false;
        };
        match self.throttled_at {
            Some((same, since)) if same == number => received.saturating_sub(since) > THROTTLED_BYTES,
            _ => {
                self.throttled_at = Some((number, received));
                false
            }
        }
    }

    /// Whether it must be checked again without an event on the socket.
    pub(crate) fn has_pending(&self) -> bool {
        self.bytes > 0
    }

    /// Backlog in requests, estimated.
    pub(crate) fn estimated_requests(&self) -> u64 {
        if !self.queued {
            return 0;
        }
        self.bytes.checked_div(self.length).unwrap_or((self.bytes / MIN_REQUEST_BYTES).min(MAX_UNPARSED))
    }

    /// Whether it exceeds its share of a flood.
    pub(crate) fn exceeds_share(&self) -> bool {
        self.estimated_requests() > SHARE
    }

    /// Whether a throttled connection should be resumed for a moment. Its client may have begun to read, or have closed
    /// the connection, and the filter drops the packets that would show it. The backoff doubles each time, since
    /// everything that arrives must be stored; in a drain, which waits for the connection, it is at most
    /// [`DRAIN_BACKOFF`].
    pub(crate) fn should_probe(&mut self, is_throttled: bool, now: Instant, draining: bool) -> bool {
        if !is_throttled {
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

/// Detects floods.
#[derive(Debug, Default)]
pub(crate) struct FloodDetector {
    until: Option<Instant>,
}

impl FloodDetector {
    /// Updates with the backlog of all connections, in requests; true in a flood.
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

/// Resumes throttled connections whose backlog was received, longest waiting first, as long as the total backlog,
/// `requests`, is below [`FLOOD_LOW`].
pub(crate) fn resume_oldest<'a>(
    all: impl Iterator<Item = (&'a mut Backlog, &'a Connection)>,
    now: Instant,
    requests: u64,
) {
    let room = usize::try_from(FLOOD_LOW.saturating_sub(requests).div_ceil(RESUME_COST)).unwrap_or(0);
    if room == 0 {
        return;
    }
    let mut throttled: Vec<_> =
        all.filter(|(backlog, connection)| backlog.estimated_requests() == 0 && connection.is_throttled()).collect();
    throttled.sort_by_key(|(backlog, _)| backlog.resumed_at);
    for (backlog, connection) in throttled.into_iter().take(room) {
        connection.resume_if_short_queue();
        backlog.resumed_at = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(samples: &[(u64, u64, u64)], engine_queue_empty: bool) -> Backlog {
        let mut backlog = Backlog::default();
        for &(taken, arrived, requests) in samples {
            backlog.update(Sample { taken, parsed: arrived, requests }, engine_queue_empty);
        }
        backlog
    }

    #[test]
    fn a_long_head_counts_as_one_request() {
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
    fn small_requests_that_were_not_received_exceed_the_share() {
        let backlog = after(&[(40_000, 4_000, 100)], false);
        assert_eq!(backlog.estimated_requests(), 900);
        assert!(backlog.exceeds_share());
    }

    #[test]
    fn a_remainder_is_dropped_without_progress_and_with_an_empty_queue() {
        let still = [(40_000, 4_000, 100), (40_000, 4_000, 100)];
        assert!(after(&still, true).estimated_requests() == 0 && !after(&still, true).has_pending());
        assert!(after(&still, false).exceeds_share(), "they are still in the queue");
    }

    #[test]
    fn a_throttled_connection_is_probed_with_exponential_backoff() {
        let mut backlog = Backlog::default();
        let began = Instant::now();
        let mut probes = Vec::new();
        for tenth in 0..76 {
            if backlog.should_probe(true, began + Duration::from_millis(100) * tenth, false) {
                probes.push(tenth * 100);
            }
        }
        assert_eq!(probes, [500, 1500, 3500, 7500]);
        assert!(backlog.should_probe(true, began + Duration::from_millis(7500) + DRAIN_BACKOFF, true), "a drain waits");
        assert!(!backlog.should_probe(false, began + MAX_BACKOFF * 2, false), "it is not throttled");
    }

    #[test]
    fn a_connection_ignores_a_throttle_if_bytes_arrive_all_the_same() {
        let mut flow = Backlog::default();
        assert!(!flow.ignores_throttle(None, 0) && !flow.ignores_throttle(Some(1), 100_000));
        assert!(!flow.ignores_throttle(Some(1), 100_000 + THROTTLED_BYTES), "they were on their way");
        assert!(!flow.ignores_throttle(Some(2), 900_000), "it was resumed in between");
        assert!(flow.ignores_throttle(Some(2), 900_001 + THROTTLED_BYTES));
    }

    #[test]
    fn a_flood_ends_after_its_cooldown() {
        let (mut flood, began) = (FloodDetector::default(), Instant::now());
        assert!(!flood.update(began, FLOOD_HIGH));
        assert!(flood.update(began, FLOOD_HIGH + 1));
        assert!(flood.update(began + COOLDOWN / 2, 0));
        assert!(!flood.update(began + COOLDOWN, 0) && !flood.is_active());
    }
}
