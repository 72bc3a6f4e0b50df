//! One connection: its state, the request in flight on it, and those that are pipelined behind it.

use std::net::{Shutdown, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Instant;

use socket2::SockRef;

use super::conn_state::{Activity, ConnState, Inner, LastDrop, Snapshot};
use crate::engine::ConnStats;
use crate::sync::lock;
use crate::sys::tcp::{tcp_info, unread_bytes};

/// Small responses written before asking the kernel (`TCP_INFO`) whether earlier ones were acknowledged. A new socket
/// takes 16 KiB (`net.ipv4.tcp_wmem`) before a write blocks, and counts some 1,280 bytes for a small segment: 12 fit.
const MAX_UNACKED_RESPONSES: u8 = 8;

/// A *predecessor* of a connection: an earlier one of the same peer, on which a request was in flight, or was dropped,
/// when the later one was found. Weak: only its request keeps it.
#[derive(Clone, Debug)]
struct Predecessor {
    connection: Weak<Connection>,
    last_drop: Arc<LastDrop>,
}

impl Predecessor {
    fn is_busy(&self) -> bool {
        self.connection.upgrade().is_some_and(|earlier| earlier.state().busy)
    }

    /// Whether a request is still in flight on it, or one was dropped unanswered.
    fn is_in_the_way(&self) -> bool {
        self.is_busy() || self.last_drop.exists()
    }
}

/// The predecessors of a connection. A client may connect from the same port several times while the first request is
/// in flight.
#[derive(Debug, Default)]
pub(super) struct Predecessors(Vec<Predecessor>);

/// One connection.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) peer: SocketAddr,
    pub(crate) opened: Instant,
    /// It is not certain whether a request came from this connection or a predecessor. So until those are done,
    /// requests of this one are not answered where blocking is not allowed: the write could wait for theirs.
    predecessors: Predecessors,
    /// Bytes of all requests that were received (estimated), and of bodies that were read. What the kernel has received
    /// beyond these, `tiny_http` has read ahead.
    bytes_parsed: AtomicU64,
    /// Requests that were received.
    requests: AtomicU64,
    state: Mutex<Inner>,
}

impl Connection {
    pub(super) fn new(peer: SocketAddr, socket: Option<Arc<OwnedFd>>, predecessors: Predecessors) -> Connection {
        let now = Instant::now();
        Connection {
            peer,
            opened: now,
            predecessors,
            bytes_parsed: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            state: Mutex::new(Inner::new(socket)),
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, Inner> {
        // No code that can panic runs under this lock; what it guards is valid between any two steps.
        lock(&self.state)
    }

    pub(crate) fn socket(&self) -> Option<Arc<OwnedFd>> {
        self.state().socket.clone()
    }

    /// Whether an earlier connection of the same peer still has a request in flight, or has dropped one unanswered.
    pub(super) fn has_busy_predecessor(&self) -> bool {
        self.predecessors.0.iter().any(Predecessor::is_in_the_way)
    }

    /// The predecessors of a connection that takes this one's place, and that the scan which began at `scanned` has not
    /// found. `state` is that of this one, locked.
    pub(super) fn to_predecessors(self: &Arc<Connection>, state: &Inner, scanned: Option<Instant>) -> Predecessors {
        // The locks of several connections are taken from the newest to the oldest.
        let in_the_way = |earlier: &&Predecessor| earlier.is_busy() || earlier.last_drop.concerns_after(scanned);
        let mut all: Vec<_> = self.predecessors.0.iter().filter(in_the_way).cloned().collect();
        if state.busy {
            all.push(Predecessor { connection: Arc::downgrade(self), last_drop: Arc::clone(&state.last_drop) });
        }
        Predecessors(all)
    }

    /// Whether a newer connection of the same peer may exist: its own socket is closed, or is not known.
    pub(super) fn may_be_over(&self) -> bool {
        self.state().may_be_over()
    }

    /// Whether its socket is known and connected, and it was not shut down from this side.
    pub(super) fn is_open_and_connected(&self) -> bool {
        let state = self.state();
        state.conn_state.accepts_requests() && state.socket.is_some() && !state.is_tcp_closed()
    }

    /// Method and target of the request in flight, for the log.
    pub(crate) fn request_line(&self) -> String {
        self.state().request_line.clone()
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        let state = self.state();
        Snapshot {
            busy: state.busy,
            since: state.since,
            pipelined: state.pipelined.len(),
            conn_state: state.conn_state,
            activity: state.activity,
        }
    }

    /// When it became busy, or idle.
    pub(crate) fn since(&self) -> Instant {
        self.state().since
    }

    /// True if no further request is pipelined, unread in the socket, or read ahead by `tiny_http`, so that this response
    /// may say `Connection: close`.
    ///
    /// For the last, the bytes that the kernel has received are compared with those that were parsed. For a client that
    /// writes its headers in an unusual way (two blanks behind a colon) the two never match; with `settled` they need
    /// not.
    pub(crate) fn has_no_more_input(&self, socket: &OwnedFd, settled: bool) -> bool {
        if !self.state().pipelined.is_empty() || unread_bytes(socket) > 0 {
            return false;
        }
        settled
            || tcp_info(socket).is_ok_and(|info| {
                let end = u64::from(info.close_wait); // the end of the stream counts as a byte
                info.bytes_received.saturating_sub(end) <= self.bytes_parsed()
            })
    }

    /// Whether a small response can be written now without any risk of waiting for the client.
    ///
    /// Asks the kernel once in [`MAX_UNACKED_RESPONSES`] responses; `socket` finds the socket if it is not known.
    pub(crate) fn can_write_without_blocking(&self, socket: impl FnOnce() -> Option<Arc<OwnedFd>>) -> bool {
        let known = {
            let mut state = self.state();
            if state.unacked_responses < MAX_UNACKED_RESPONSES {
                state.unacked_responses += 1;
                return true;
            }
            state.socket.clone()
        };
        let received =
            known.or_else(socket).and_then(|socket| tcp_info(&*socket).ok()).is_some_and(|info| info.all_acknowledged);
        if received {
            self.state().unacked_responses = 1;
        }
        received
    }

    /// Lifts the throttle, because it also drops the peer's ACKs and a response may be blocked on them.
    pub(crate) fn resume(&self) {
        let mut state = self.state();
        if state.throttled {
            state.resume();
        }
    }

    /// Lifts the throttle if few requests are pipelined.
    pub(crate) fn resume_if_short_queue(&self) {
        self.state().resume_if_short_queue();
    }

    /// Throttles the connection: the kernel drops the peer's packets until it is resumed.
    pub(crate) fn throttle(&self, stats: &ConnStats) {
        self.state().throttle(stats);
    }

    pub(crate) fn is_throttled(&self) -> bool {
        self.state().throttled
    }

    /// How often it was throttled so far, if it is now.
    pub(crate) fn throttle_number(&self) -> Option<u32> {
        let state = self.state();
        state.throttled.then_some(state.throttles)
    }

    /// Shuts both directions down: `tiny_http` closes the socket at once.
    pub(crate) fn abort(&self) {
        self.shut_down(Shutdown::Both);
    }

    /// Shuts the output down: the client sees the end of the stream after the last response.
    pub(super) fn shutdown_write(&self) {
        self.shut_down(Shutdown::Write);
    }

    fn shut_down(&self, how: Shutdown) {
        let socket = {
            let mut state = self.state();
            if state.throttled {
                state.resume(); // else the peer's FIN and ACKs are dropped, and the kernel keeps the socket
            }
            if how != Shutdown::Write && !matches!(state.conn_state, ConnState::Aborted { .. }) {
                state.conn_state = ConnState::Aborted { since: Instant::now() };
            }
            state.socket.clone()
        };
        if let Some(socket) = socket {
            let _ = SockRef::from(&*socket).shutdown(how); // fails if the peer has left
        }
    }

    /// Resets the connection: its client sees an error, never a regular end.
    pub(super) fn reset(&self) {
        if let Some(socket) = self.socket() {
            // A disconnect of a connected socket sends a reset, whatever duplicates of it exist (tcp_disconnect,
            // net/ipv4/tcp.c).
            let _ = rustix::net::connect_unspec(&*socket); // fails if the peer has left
        }
        self.abort();
    }

    /// Shuts the input of an idle connection down. Requests that `tiny_http` has read before are still answered.
    pub(crate) fn shutdown_read(&self) {
        let socket = {
            let mut state = self.state();
            if state.conn_state == ConnState::Open {
                state.conn_state = ConnState::ReadShut { since: Instant::now() };
            }
            state.socket.clone()
        };
        if let Some(socket) = socket {
            let _ = SockRef::from(&*socket).shutdown(Shutdown::Read); // fails if the peer has left
        }
    }

    /// Counts a request of so many bytes.
    pub(super) fn on_received(&self, bytes: u64) {
        self.bytes_parsed.fetch_add(bytes, Ordering::Relaxed);
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts bytes of a body that were read.
    pub(crate) fn on_parsed(&self, bytes: u64) {
        self.bytes_parsed.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes of requests and bodies that were received.
    pub(crate) fn bytes_parsed(&self) -> u64 {
        self.bytes_parsed.load(Ordering::Relaxed)
    }

    /// Requests that were received.
    pub(crate) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Whether the body of the request in flight did not come in time.
    pub(crate) fn body_deadline_passed(&self) -> bool {
        self.state().body_expired
    }

    /// Shuts the input down, so that the request in flight sees the end of its body: its time is over.
    pub(crate) fn expire_body(&self) {
        let socket = {
            let mut state = self.state();
            state.body_expired = true;
            state.socket.clone()
        };
        if let Some(socket) = socket {
            let _ = SockRef::from(&*socket).shutdown(Shutdown::Read); // fails if the peer has left
        }
    }

    /// Sets the activity of the request in flight. Once its response is claimed it has no deadline but that of its
    /// body, which may be the response's.
    pub(super) fn set_activity(&self, activity: Activity) {
        let mut state = self.state();
        state.activity = match activity {
            Activity::Handling { .. } if state.claimed => Activity::Writing,
            activity => activity,
        };
    }

    /// Claims the response to the request in flight: true for the first caller, which alone may write it.
    pub(crate) fn claim_response(&self) -> bool {
        let mut state = self.state();
        state.activity = Activity::Writing;
        !std::mem::replace(&mut state.claimed, true)
    }

    /// Discards all later requests, because a timeout has written the last response.
    pub(crate) fn begin_closing(&self) {
        let mut state = self.state();
        if state.conn_state.accepts_requests() {
            state.conn_state = ConnState::Closing { since: Instant::now() };
        }
    }

    /// Records that a request was dropped without a response.
    pub(super) fn on_request_dropped(&self) {
        self.state().last_drop.record();
    }

    /// Takes over a drop whose request may have come from this connection.
    pub(super) fn inherit_drop(&self, former: &LastDrop) {
        self.state().last_drop.inherit(former);
    }

    /// Whether the input has ended, by the client or by this side.
    pub(crate) fn has_input_ended(&self) -> bool {
        let (ended, socket) = {
            let state = self.state();
            (state.body_expired || matches!(state.conn_state, ConnState::Aborted { .. }), state.socket.clone())
        };
        ended || socket.is_none_or(|socket| tcp_info(&*socket).is_ok_and(|info| info.close_wait || info.closed))
    }
}
