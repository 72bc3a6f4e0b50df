//! The state of a connection, and of the request in flight on it.

use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::pipeline::Pipeline;
use super::wire::write_request_line;
use crate::clock::saturating_add;
use crate::engine::ConnStats;
use crate::sync::lock;
use crate::sys::min_ttl::set_min_ttl_filter;
use crate::sys::tcp::tcp_info;

/// Memory of a request line, in bytes, that an idle connection keeps.
const MAX_IDLE_LINE: usize = 256;

/// Whether a connection accepts requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ConnState {
    /// Requests are accepted.
    Open,
    /// Its input was shut down while it was idle. A request that `tiny_http` had read by then is still answered.
    ReadShut { since: Instant },
    /// The last response was sent, or soon will be: later requests are discarded.
    Closing { since: Instant },
    /// Shut down in both directions: `tiny_http` should close it at once.
    Aborted { since: Instant },
}

impl ConnState {
    pub(super) fn accepts_requests(self) -> bool {
        matches!(self, ConnState::Open | ConnState::ReadShut { .. })
    }
}

/// Activity of the request in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Activity {
    /// Queued or in its handler, until the response starts.
    Handling { deadline: Instant },
    /// Blocked on the client for the body, which must make progress before the deadline.
    Reading { deadline: Instant },
    /// The response is being written. Each write is bounded by `SO_SNDTIMEO`.
    Writing,
}

/// A copy of a connection's state.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Snapshot {
    pub(crate) busy: bool,
    /// When it became busy, or idle.
    pub(crate) since: Instant,
    pub(crate) pipelined: usize,
    pub(crate) conn_state: ConnState,
    /// Of the request in flight.
    pub(crate) activity: Activity,
}

/// The number of a batch of requests, from 1.
#[derive(Clone, Copy, Debug)]
pub(super) struct BatchNumber(pub(super) u64);

/// When a request of a connection was last dropped without a response. From then on nothing on the connection is
/// answered: the client would take a later response for that of the dropped request. Shared with later connections of
/// the same peer.
#[derive(Debug, Default)]
pub(super) struct LastDrop(Mutex<Option<Instant>>);

impl LastDrop {
    /// Records that a request was dropped now.
    pub(super) fn record(&self) {
        *lock(&self.0) = Some(Instant::now());
    }

    /// Takes over the drop on the former connection of the peer, whose request may have come from this one.
    pub(super) fn inherit(&self, former: &LastDrop) {
        let dropped = *lock(&former.0);
        let mut own = lock(&self.0);
        *own = (*own).max(dropped);
    }

    pub(super) fn exists(&self) -> bool {
        lock(&self.0).is_some()
    }

    /// Whether a request was dropped that may have come from a connection which the scan that began at `scanned` has
    /// not found: the request kept its socket open until then.
    pub(super) fn concerns_after(&self, scanned: Option<Instant>) -> bool {
        lock(&self.0).is_some_and(|dropped| scanned.is_none_or(|scanned| scanned <= dropped))
    }
}

/// The part of a connection that changes, under its lock.
#[derive(Debug)]
pub(super) struct Inner {
    pub(super) socket: Option<Arc<OwnedFd>>,
    pub(super) busy: bool,
    pub(super) since: Instant,
    /// Method and target of the request in flight.
    pub(super) request_line: String,
    pub(super) pipelined: Pipeline,
    pub(super) conn_state: ConnState,
    pub(super) activity: Activity,
    pub(super) unacked_responses: u8,
    pub(super) throttled: bool,
    /// Number of throttles so far.
    pub(super) throttles: u32,
    /// Whether the response to the request in flight is claimed, by the request itself or by its timeout.
    pub(super) claimed: bool,
    /// Whether the body of the request in flight did not come in time.
    pub(super) body_expired: bool,
    pub(super) last_drop: Arc<LastDrop>,
    /// The latest batch of requests during whose admission the socket was seen open.
    open_in_batch: u64,
}

impl Inner {
    pub(super) fn new(socket: Option<Arc<OwnedFd>>) -> Inner {
        Inner {
            socket,
            busy: false,
            since: Instant::now(),
            request_line: String::new(),
            pipelined: Pipeline::default(),
            conn_state: ConnState::Open,
            activity: Activity::Writing,
            unacked_responses: 0,
            throttled: false,
            throttles: 0,
            claimed: false,
            body_expired: false,
            last_drop: Arc::default(),
            open_in_batch: 0,
        }
    }

    /// Makes `request` the one in flight.
    pub(super) fn start_request(&mut self, request: &tiny_http::Request, timeout: Duration) {
        let now = Instant::now();
        self.busy = true;
        self.since = now;
        self.claimed = false;
        self.body_expired = false;
        self.activity = Activity::Handling { deadline: saturating_add(now, timeout) };
        write_request_line(request, &mut self.request_line);
    }

    /// Sets that no request is in flight.
    pub(super) fn become_idle(&mut self) {
        self.busy = false;
        // Memory of one long target is not kept by an idle connection.
        if self.request_line.capacity() > MAX_IDLE_LINE {
            self.request_line = String::new();
        }
    }

    /// Whether the table must keep it although its socket is closed: a request that is in flight, or was dropped, may
    /// have come from a newer connection of the same peer that no scan up to the one of `scanned` has found.
    pub(super) fn outlives_socket(&self, scanned: Option<Instant>) -> bool {
        self.busy || self.last_drop.concerns_after(scanned)
    }

    pub(super) fn is_throttled(&self) -> bool {
        self.throttled
    }

    /// Sets the TTL filter: the kernel drops the peer's packets. They are not acknowledged, so the peer retransmits them.
    pub(super) fn throttle(&mut self, stats: &ConnStats) {
        if self.throttled || self.conn_state != ConnState::Open {
            return;
        }
        if let Some(socket) = &self.socket {
            self.throttled = set_min_ttl_filter(&**socket, true).is_ok();
            if self.throttled {
                self.throttles = self.throttles.wrapping_add(1);
                stats.throttled.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    pub(super) fn resume_if_short_queue(&mut self) {
        if self.throttled && self.pipelined.is_low() {
            self.resume();
        }
    }

    pub(super) fn resume(&mut self) {
        if let Some(socket) = &self.socket {
            let _ = set_min_ttl_filter(&**socket, false); // it took the same option before
        }
        self.throttled = false;
    }

    /// Whether a newer connection of the same peer may exist: its own socket is closed, or is not known.
    pub(super) fn may_be_over(&self) -> bool {
        self.socket.is_none() || self.is_tcp_closed()
    }

    /// The same, for a request of a batch: the kernel is asked once for each batch, after all its requests were
    /// received.
    pub(super) fn may_have_been_over(&mut self, batch: BatchNumber) -> bool {
        if self.open_in_batch == batch.0 {
            return false;
        }
        let over = self.may_be_over();
        if !over {
            self.open_in_batch = batch.0;
        }
        over
    }

    /// Whether its socket is known and the kernel has closed it: reset, or closed by both ends.
    pub(super) fn is_tcp_closed(&self) -> bool {
        self.socket.as_ref().is_some_and(|socket| tcp_info(&**socket).is_ok_and(|info| info.closed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drop_concerns_sockets_that_may_have_been_open_when_it_happened() {
        let (dropped, before) = (LastDrop::default(), Instant::now());
        assert!(!dropped.exists() && !dropped.concerns_after(None));
        dropped.record();
        assert!(dropped.exists() && dropped.concerns_after(None), "no scan has been complete");
        assert!(dropped.concerns_after(Some(before)));
        let after = Instant::now();
        let successor = LastDrop::default();
        successor.inherit(&dropped);
        assert!(
            !dropped.concerns_after(Some(after + Duration::from_nanos(1))),
            "the scan has found every socket of then"
        );
        assert!(successor.exists() && !successor.concerns_after(Some(after + Duration::from_nanos(1))));
        successor.record();
        assert!(successor.concerns_after(Some(after)), "another request was dropped");
    }
}
