//! The timeouts that tiny_http does not have, the close of idle connections in a drain, and the end of connections whose
//! client is gone.

use std::time::{Duration, Instant};

use super::leaks::LEAK_AFTER;
use super::lingering::LINGERING_TIMEOUT;
use crate::clock::saturating_add;
use crate::engine::tiny_http::conn_state::{Activity, ConnState};
use crate::engine::{CloseReason, Settings};
use crate::sys::tcp::TcpInfo;

/// Time for two retransmissions (`TCP_RTO_MIN` of 200 ms, then 400 ms), and some slack.
const RETRANSMIT_WINDOW: Duration = Duration::from_millis(700);

/// Observations of one connection at a tick.
#[derive(Clone, Copy, Debug)]
pub(super) struct Observation {
    pub(super) tcp: TcpInfo,
    /// Bytes that have arrived and that tiny_http has not read.
    pub(super) unread: u64,
    pub(super) state: ConnState,
    /// A request is in flight.
    pub(super) busy: bool,
    /// When it became busy, or idle.
    pub(super) since: Instant,
    /// Activity of the request in flight.
    pub(super) activity: Activity,
    /// The body of the request in flight was cut off, because its time is over.
    pub(super) body_expired: bool,
    /// Bytes that tiny_http had taken when the present head began.
    pub(super) head_start: u64,
    /// When the packet filter of the gate was lifted from it, if it inherited the filter: data sent before is
    /// retransmitted.
    pub(super) unfiltered_at: Option<Instant>,
}

/// The action that an observation asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Keep,
    /// tiny_http closes it soon, or has done so already: the table is to be scanned.
    Ending,
    /// Let the request in flight see the end of its body, so that its handler can still answer.
    ExpireBody,
    /// The handler has not started its response in time: answer 503 in its place.
    TimeOut,
    /// Shut its input: requests that tiny_http has read are still answered.
    ShutRead,
    /// Shut it down in both directions; counted if there is a reason.
    Abort(Option<CloseReason>),
}

/// When the drain began, if it has.
pub(super) type Draining = Option<Instant>;

pub(super) fn check(seen: &Observation, settings: &Settings, draining: Draining, now: Instant) -> Verdict {
    let age = now.saturating_duration_since(seen.since);
    match seen.state {
        ConnState::Aborted { .. } | ConnState::ReadShut { .. } if !seen.busy => Verdict::Ending,
        ConnState::Aborted { .. } => Verdict::Keep,
        ConnState::Closing { since } => check_closing(seen, now.saturating_duration_since(since), settings, draining),
        ConnState::Open | ConnState::ReadShut { .. } if seen.busy => check_busy(seen, now),
        ConnState::Open | ConnState::ReadShut { .. } => check_idle(seen, age, settings, draining, now),
    }
}

/// After the last response: the client has time to read it.
fn check_closing(seen: &Observation, waited: Duration, settings: &Settings, draining: Draining) -> Verdict {
    let patience = if draining.is_some() { settings.keepalive_min } else { LINGERING_TIMEOUT };
    if waited > patience && (seen.unread == 0 || waited > LINGERING_TIMEOUT) {
        Verdict::Abort(None)
    } else {
        Verdict::Ending
    }
}

fn check_busy(seen: &Observation, now: Instant) -> Verdict {
    if seen.tcp.closed {
        return Verdict::Abort(None); // reset: its response has no receiver, nor have those of the requests behind it
    }
    match seen.activity {
        Activity::Handling { deadline } if now >= deadline => Verdict::TimeOut,
        // The end of the input ends the read at once, unless it is from another socket of the same peer.
        Activity::Reading { deadline } if seen.body_expired && now >= saturating_add(deadline, LINGERING_TIMEOUT) => {
            Verdict::Abort(Some(CloseReason::RequestTimeout))
        }
        Activity::Reading { deadline } if !seen.body_expired && now >= deadline => Verdict::ExpireBody,
        // A write is bounded by SO_SNDTIMEO.
        Activity::Handling { .. } | Activity::Reading { .. } | Activity::Writing => Verdict::Keep,
    }
}

fn check_idle(seen: &Observation, age: Duration, settings: &Settings, draining: Draining, now: Instant) -> Verdict {
    if draining.is_some_and(|began| may_close_for_drain(seen, age, settings.keepalive_min, began, now)) {
        Verdict::ShutRead
    } else if age >= settings.idle_timeout {
        Verdict::Abort(Some(CloseReason::IdleTimeout))
    } else if seen.tcp.closed {
        Verdict::Ending
    } else if seen.tcp.close_wait && age >= LEAK_AFTER && seen.unread == 0 {
        Verdict::Abort(None) // tiny_http has read the end and is still there: it waits for something that never comes
    } else {
        Verdict::Keep
    }
}

/// Whether an idle connection may be closed in a drain: it has been silent for the minimum keep-alive, and no byte of it
/// is unread. A client in the middle of a head has longer.
fn may_close_for_drain(seen: &Observation, age: Duration, min: Duration, began: Instant, now: Instant) -> bool {
    const MID_HEAD_FACTOR: u32 = 20; // a second, with the default minimum of 50 ms
    let silent = Duration::from_millis(u64::from(seen.tcp.ms_since_data)).min(age);
    let (min, drained) = match seen.unfiltered_at {
        Some(since) => (min.max(RETRANSMIT_WINDOW), now.saturating_duration_since(since)),
        None => (min, now.saturating_duration_since(began)),
    };
    let in_head = seen.tcp.bytes_received > seen.head_start;
    seen.unread == 0
        && drained >= min
        && age >= min // since its last response, or since it was opened
        && (silent >= min || !in_head || drained >= min * MID_HEAD_FACTOR)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::automatic::HeaderLines;

    const SECOND: Duration = Duration::from_secs(1);
    const SETTINGS: Settings = Settings {
        max_connections: 100,
        idle_timeout: Duration::from_secs(30),
        request_timeout: Duration::from_secs(60),
        keepalive_min: Duration::from_millis(50),
        leak_limit: 16,
        receivers: 0,
        max_discard: 0,
        automatic: HeaderLines::DEFAULT,
    };

    fn idle(since: Instant) -> Observation {
        Observation {
            tcp: TcpInfo { ms_since_data: u32::MAX, ..TcpInfo::default() },
            unread: 0,
            state: ConnState::Open,
            busy: false,
            activity: Activity::Writing,
            since,
            body_expired: false,
            head_start: 0,
            unfiltered_at: None,
        }
    }

    fn busy(since: Instant) -> Observation {
        let deadline = since + SETTINGS.request_timeout;
        Observation { busy: true, activity: Activity::Handling { deadline }, ..idle(since) }
    }

    #[test]
    fn an_idle_connection_has_the_idle_timeout() {
        let began = Instant::now();
        assert_eq!(check(&idle(began), &SETTINGS, None, began + 29 * SECOND), Verdict::Keep);
        let over = Verdict::Abort(Some(CloseReason::IdleTimeout));
        assert_eq!(check(&idle(began), &SETTINGS, None, began + 30 * SECOND), over);
    }

    #[test]
    fn a_handler_that_is_late_is_answered_for_and_a_response_takes_as_long_as_its_client_reads() {
        let began = Instant::now();
        assert_eq!(check(&busy(began), &SETTINGS, None, began + 59 * SECOND), Verdict::Keep);
        assert_eq!(check(&busy(began), &SETTINGS, None, began + 60 * SECOND), Verdict::TimeOut);
        let writing = Observation { activity: Activity::Writing, ..busy(began) };
        assert_eq!(check(&writing, &SETTINGS, None, began + 600 * SECOND), Verdict::Keep);
    }

    #[test]
    fn a_body_that_stalls_ends_at_its_deadline_and_its_connection_if_that_does_not_help() {
        let now = Instant::now();
        let deadline = now + SECOND;
        let reading = Observation { activity: Activity::Reading { deadline }, ..busy(deadline) };
        assert_eq!(check(&reading, &SETTINGS, None, now), Verdict::Keep);
        assert_eq!(check(&reading, &SETTINGS, None, deadline), Verdict::ExpireBody);
        let expired = Observation { body_expired: true, ..reading };
        assert_eq!(check(&expired, &SETTINGS, None, deadline + SECOND), Verdict::Keep);
        let over = Verdict::Abort(Some(CloseReason::RequestTimeout));
        assert_eq!(check(&expired, &SETTINGS, None, deadline + LINGERING_TIMEOUT), over);
    }

    #[test]
    fn a_client_that_resets_ends_its_requests_at_once() {
        let now = Instant::now();
        let closed = TcpInfo { closed: true, ..TcpInfo::default() };
        assert_eq!(check(&Observation { tcp: closed, ..busy(now) }, &SETTINGS, None, now), Verdict::Abort(None));
        assert_eq!(check(&Observation { tcp: closed, ..idle(now) }, &SETTINGS, None, now), Verdict::Ending);
        let aborted = Observation { state: ConnState::Aborted { since: now }, ..busy(now) };
        assert_eq!(check(&aborted, &SETTINGS, None, now), Verdict::Keep, "its handler runs to its end");
    }

    #[test]
    fn after_the_last_response_a_client_has_time_to_read_it() {
        let now = Instant::now();
        let closing = Observation { state: ConnState::Closing { since: now }, ..idle(now) };
        assert_eq!(check(&closing, &SETTINGS, None, now + SECOND), Verdict::Ending);
        assert_eq!(check(&closing, &SETTINGS, None, now + 3 * SECOND), Verdict::Abort(None));
        assert_eq!(check(&closing, &SETTINGS, Some(now), now + SECOND), Verdict::Abort(None), "less in a drain");
        let sending = Observation { unread: 5, ..closing };
        assert_eq!(check(&sending, &SETTINGS, Some(now), now + SECOND), Verdict::Ending);
    }

    #[test]
    fn a_drain_closes_connections_that_were_silent_for_the_minimum_keep_alive() {
        let began = Instant::now();
        let at = |seen: Observation, ms: u64| check(&seen, &SETTINGS, Some(began), began + Duration::from_millis(ms));
        assert_eq!(at(idle(began), 49), Verdict::Keep);
        assert_eq!(at(idle(began), 50), Verdict::ShutRead);
        assert_eq!(at(Observation { unread: 1, ..idle(began) }, 500), Verdict::Keep);
        let in_head = TcpInfo { bytes_received: 9, ms_since_data: 10, ..TcpInfo::default() };
        assert_eq!(at(Observation { tcp: in_head, ..idle(began) }, 500), Verdict::Keep);
        assert_eq!(
            at(Observation { tcp: in_head, ..idle(began) }, 1000),
            Verdict::ShutRead,
            "a slow head has a second"
        );
        let filtered = Observation { unfiltered_at: Some(began), ..idle(began) };
        assert_eq!(at(filtered, 699), Verdict::Keep, "what it sent is retransmitted");
        assert_eq!(at(filtered, 700), Verdict::ShutRead);
    }
}
