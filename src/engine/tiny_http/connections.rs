//! The connection table: every open connection, by the address of its peer.
//!
//! `tiny_http` delivers requests, each with its peer's address, and never tells when a connection begins or ends. The
//! table has an entry for every connection: the listener makes one when a request arrives from a peer without an entry,
//! the [monitor](super::monitor) makes one when it finds a socket without an entry, and removes entries whose sockets
//! are gone.
//!
//! Its rules:
//!
//! * **One request of a connection at a time.** Requests that arrive behind it are queued, in order, so that no connection
//!   ever occupies more than one worker, and no worker ever waits for another's response.
//! * **The queue of a connection is bounded**: see [`pipeline`](super::pipeline).
//! * **After the last response nothing is handled.** Requests that still arrive are discarded.
//! * Locks: the table's, then a connection's, never the other way round; none is held across a write, a handler or a join.
//!
//! # A peer's address is no identity
//!
//! The same address and port can come back right after a reset, and can be connected to two local addresses at once. So:
//!
//! * A response leaves through the writer of its own request, which `tiny_http` has tied to the right socket, or through a
//!   socket that is proven to be the request's (see `identity`). Nothing else is ever written.
//! * After a request was dropped unanswered, nothing is answered on its connection any more, nor on another socket of
//!   the same peer that was open by then ([`LastDrop`]). Otherwise the client would take a later response for that of
//!   the dropped request.
//! * Two sockets of one peer that both live are both closed ([`CloseReason::Ambiguous`]).
//! * A new socket of a peer whose former socket is closed gets an entry of its own; a request in flight on the former
//!   one finishes there.

use std::collections::HashMap;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use socket2::SockRef;

use super::conn_state::{BatchNumber, ConnState, LastDrop};
use super::connection::{Connection, Predecessors};
use super::discover::DiscoveredSocket;
use super::pipeline::{Fill, PipelineTotals};
use super::wire::estimated_wire_len;
use crate::engine::{CloseReason, ConnStats, StopState};
use crate::sync::lock;
use crate::sys::tcp::tcp_info;

/// The table.
#[derive(Debug)]
pub(crate) struct ConnectionTable {
    by_peer: Mutex<HashMap<SocketAddr, Arc<Connection>>>,
    request_timeout: Duration,
    in_flight: AtomicUsize,
    pipelined: PipelineTotals,
    /// Batches of requests so far.
    batches: AtomicU64,
    /// The monitor alone resumes throttled connections; see `throttle`.
    throttling: AtomicBool,
    /// The listener sleeps: `tiny_http`'s queue is empty.
    engine_queue_empty: AtomicBool,
    /// It was empty at some moment since the monitor last asked.
    engine_queue_emptied: AtomicBool,
    pub(crate) counts: ConnStats,
}

/// The result of admitting a request.
pub(crate) enum Admission {
    /// The request is in flight from now on.
    Run { connection: Arc<Connection>, request: tiny_http::Request, new_connection: bool },
    /// It is queued, because another request of its connection is in flight.
    Queued,
    /// It is queued, and so are many others of its connection, which is to be throttled once its socket is found.
    OverLimit(Arc<Connection>),
    /// It is queued, and so are more than are kept: the connection is to be aborted.
    Overflow(Arc<Connection>),
    /// The connection of this peer is closing or closed: the request may be of a newer one.
    Stale(Arc<Connection>, tiny_http::Request),
    /// It did not come from an internet socket.
    Foreign(tiny_http::Request),
}

/// The state of a connection after a response.
pub(crate) enum AfterResponse {
    /// The next request of the connection is in flight from now on.
    Next(tiny_http::Request),
    /// No request is queued.
    Idle,
    /// The connection is closing; these requests were queued, and are to be discarded.
    Closed(Vec<tiny_http::Request>),
}

impl ConnectionTable {
    pub(crate) fn new(request_timeout: Duration) -> ConnectionTable {
        ConnectionTable {
            by_peer: Mutex::default(),
            request_timeout,
            in_flight: AtomicUsize::new(0),
            pipelined: PipelineTotals::default(),
            batches: AtomicU64::new(0),
            throttling: AtomicBool::new(false),
            engine_queue_empty: AtomicBool::new(false),
            engine_queue_emptied: AtomicBool::new(false),
            counts: ConnStats::default(),
        }
    }

    /// Numbers a batch of requests that were all received.
    pub(super) fn begin_batch(&self) -> BatchNumber {
        BatchNumber(self.batches.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// Admits a request of a batch. `certain`: a scan has found no newer connection of the peer.
    pub(super) fn admit(&self, request: tiny_http::Request, batch: BatchNumber, certain: bool) -> Admission {
        let Some(peer) = request.remote_addr().copied() else { return Admission::Foreign(request) };
        let mut new_connection = false;
        let mut by_peer = lock(&self.by_peer);
        let connection = Arc::clone(by_peer.entry(peer).or_insert_with(|| {
            new_connection = true;
            self.counts.opened.fetch_add(1, Ordering::Relaxed);
            Arc::new(Connection::new(peer, None, Predecessors::default()))
        }));
        // Locked before the table is released: a later connection that is found from here on sees this request in
        // flight.
        let mut state = connection.state();
        drop(by_peer);
        let stale = state.last_drop.exists()
            || !state.conn_state.accepts_requests()
            // It would be queued behind another request, but may have come from a newer connection: the known socket is
            // closed, or none was found.
            || (state.busy && !certain && state.may_have_been_over(batch));
        if stale {
            drop(state);
            return Admission::Stale(connection, request);
        }
        connection.on_received(estimated_wire_len(&request));
        if !state.busy {
            state.start_request(&request, self.request_timeout);
            drop(state);
            self.in_flight.fetch_add(1, Ordering::Relaxed);
            return Admission::Run { connection, request, new_connection };
        }
        match state.pipelined.push(request, &self.pipelined) {
            Fill::Short => Admission::Queued,
            Fill::Long => {
                state.throttle(&self.counts);
                if state.is_throttled() {
                    return Admission::Queued;
                }
                drop(state);
                Admission::OverLimit(connection)
            }
            Fill::Overflow => {
                drop(state);
                Admission::Overflow(connection)
            }
        }
    }

    /// Takes the pipelined requests of a connection on which nothing is answered any more, to be discarded.
    pub(crate) fn take_pipelined(&self, connection: &Connection) -> Vec<tiny_http::Request> {
        let rest = {
            let mut state = connection.state();
            let rest = state.pipelined.take_all(&self.pipelined);
            if !rest.is_empty() {
                state.last_drop.record();
            }
            rest
        };
        self.counts.discarded.fetch_add(rest.len() as u64, Ordering::Relaxed);
        rest
    }

    /// Ends a request in flight, and returns the next of its connection, which is then in flight.
    ///
    /// With `last`, the connection closes, and the queued requests are returned to be discarded.
    pub(crate) fn complete(&self, connection: &Arc<Connection>, last: bool) -> AfterResponse {
        let mut state = connection.state();
        state.since = Instant::now();
        if last {
            state.busy = false;
            if state.conn_state.accepts_requests() {
                state.conn_state = ConnState::Closing { since: state.since };
            }
            drop(state);
            let rest = self.take_pipelined(connection);
            self.in_flight.fetch_sub(1, Ordering::Release);
            return AfterResponse::Closed(rest);
        }
        if let Some(next) = state.pipelined.pop(&self.pipelined) {
            state.start_request(&next, self.request_timeout);
            if !self.throttling.load(Ordering::Relaxed) {
                state.resume_if_short_queue();
            }
            drop(state);
            return AfterResponse::Next(next);
        }
        state.become_idle();
        drop(state);
        self.in_flight.fetch_sub(1, Ordering::Release);
        AfterResponse::Idle
    }

    /// Removes a connection that `tiny_http` has closed, or closes by itself. While a request is in flight on it, it stays,
    /// without a socket.
    pub(crate) fn remove(&self, connection: &Arc<Connection>) {
        let mut by_peer = lock(&self.by_peer);
        {
            let mut state = connection.state();
            state.socket = None; // another thread may still hold the connection
            if state.outlives_socket(None) {
                return;
            }
        }
        if by_peer.get(&connection.peer).is_some_and(|known| Arc::ptr_eq(known, connection)) {
            by_peer.remove(&connection.peer);
        }
    }

    /// Removes idle connections that were opened before `since` and whose socket the scan that began at `scanned` has not
    /// found: it is closed.
    pub(crate) fn remove_stale(&self, since: Instant, scanned: Instant) {
        lock(&self.by_peer).retain(|_, connection| {
            let state = connection.state();
            state.outlives_socket(Some(scanned)) || state.socket.is_some() || connection.opened > since
        });
    }

    /// Attaches a socket that was found, but not by the scan that began at `scanned`, to the connection of its peer.
    pub(crate) fn attach_socket(
        &self,
        found: DiscoveredSocket,
        scanned: Option<Instant>,
    ) -> (Arc<Connection>, Arc<OwnedFd>) {
        let socket = Arc::new(found.socket);
        let mut by_peer = lock(&self.by_peer);
        let mut predecessors = Predecessors::default();
        let last_drop = LastDrop::default();
        if let Some(former) = by_peer.get(&found.peer) {
            let mut state = former.state();
            let newer = match &state.socket {
                None => {
                    let silent = tcp_info(&*socket).is_ok_and(|info| !info.has_sent);
                    // The former connection has had its last response, and this socket none.
                    let over = !state.busy && !state.conn_state.accepts_requests();
                    matches!(state.conn_state, ConnState::Aborted { .. }) || (silent && over)
                }
                Some(_) if state.is_tcp_closed() => true,
                // Both are open: it cannot be told which of them a request came from.
                Some(old) => {
                    let _ = SockRef::from(&**old).shutdown(Shutdown::Both); // fails if the peer has left
                    state.conn_state = ConnState::Aborted { since: Instant::now() };
                    self.count_close(CloseReason::Ambiguous);
                    last_drop.record();
                    true
                }
            };
            if !newer {
                state.socket = Some(Arc::clone(&socket));
                let said_close = !state.busy && matches!(state.conn_state, ConnState::Closing { .. });
                drop(state);
                if said_close {
                    // The last response was written before the socket was known.
                    let _ = SockRef::from(&*socket).shutdown(Shutdown::Write); // fails if the peer has left
                }
                return (Arc::clone(former), socket);
            }
            if state.last_drop.concerns_after(scanned) {
                last_drop.inherit(&state.last_drop);
            }
            predecessors = former.to_predecessors(&state, scanned);
        }
        self.counts.opened.fetch_add(1, Ordering::Relaxed);
        let connection = Arc::new(Connection::new(found.peer, Some(Arc::clone(&socket)), predecessors));
        if last_drop.exists() {
            connection.inherit_drop(&last_drop);
            self.count_close(CloseReason::Ambiguous);
            connection.abort();
        }
        by_peer.insert(found.peer, Arc::clone(&connection));
        (connection, socket)
    }

    /// Requests in flight, without those that are pipelined behind them.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Acquire)
    }

    /// Whether a request is in flight that was before the drain began.
    pub(crate) fn has_requests_older_than_drain(&self, stop: &StopState) -> bool {
        self.in_flight() > 0
            && self.all().iter().any(|connection| {
                let snapshot = connection.snapshot();
                snapshot.busy && stop.predates_drain(snapshot.since)
            })
    }

    /// Requests that are pipelined behind the one in flight of their connection.
    pub(crate) fn pipelined(&self) -> usize {
        self.pipelined.requests()
    }

    /// Switches throttling on or off, for a flood of requests: while it is on, only the monitor resumes connections.
    pub(crate) fn set_throttling(&self, on: bool) {
        self.throttling.store(on, Ordering::Relaxed);
    }

    /// Records whether the listener has found `tiny_http`'s queue empty. Stores only changes: it is called for each
    /// request.
    pub(crate) fn set_engine_queue_empty(&self, empty: bool) {
        if self.engine_queue_empty.load(Ordering::Relaxed) != empty {
            self.engine_queue_empty.store(empty, Ordering::Relaxed);
        }
        if empty && !self.engine_queue_emptied.load(Ordering::Relaxed) {
            self.engine_queue_emptied.store(true, Ordering::Release);
        }
    }

    /// Whether the queue is empty, or was at any moment since the last call: then all that `tiny_http` had read before has
    /// been received.
    pub(crate) fn take_engine_queue_emptied(&self) -> bool {
        self.engine_queue_emptied.swap(false, Ordering::AcqRel) || self.is_engine_queue_empty() // the listener sleeps
    }

    pub(crate) fn is_engine_queue_empty(&self) -> bool {
        self.engine_queue_empty.load(Ordering::Relaxed)
    }

    /// Open connections, as far as they are known.
    pub(crate) fn connections(&self) -> usize {
        lock(&self.by_peer).len()
    }

    /// The connection of a peer.
    pub(crate) fn get(&self, peer: SocketAddr) -> Option<Arc<Connection>> {
        lock(&self.by_peer).get(&peer).cloned()
    }

    /// Aborts the connection of a peer, if it has one.
    pub(super) fn abort_current(&self, peer: SocketAddr) {
        if let Some(connection) = self.get(peer) {
            connection.abort();
        }
    }

    /// Whether a newer connection of the same peer has taken its place.
    pub(super) fn is_superseded(&self, connection: &Arc<Connection>) -> bool {
        self.get(connection.peer).is_some_and(|current| !Arc::ptr_eq(&current, connection))
    }

    pub(crate) fn all(&self) -> Vec<Arc<Connection>> {
        lock(&self.by_peer).values().cloned().collect()
    }

    /// Counts a connection that was closed from this side.
    pub(crate) fn count_close(&self, why: CloseReason) {
        self.counts.count_close(why);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    /// A connection of this peer, as a scan finds it, and its other end.
    fn found(peer: SocketAddr, cookie: u64) -> (DiscoveredSocket, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let socket = listener.accept().unwrap().0.into();
        (DiscoveredSocket { socket, peer, cookie }, client)
    }

    fn reset(client: TcpStream) {
        SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
        drop(client); // over loopback the reset has arrived when this returns
    }

    /// The request may have come from the last of them: a response past `tiny_http` would overtake its own.
    #[test]
    fn a_request_in_flight_is_in_the_way_of_every_later_connection_of_its_peer() {
        let table = ConnectionTable::new(Duration::from_secs(30));
        let peer = SocketAddr::from(([127, 0, 0, 1], 7));
        let (socket, client) = found(peer, 1);
        table.attach_socket(socket, None);
        let request = tiny_http::TestRequest::new().with_remote_addr(peer).into();
        let Admission::Run { connection: first, .. } = table.admit(request, table.begin_batch(), false) else {
            panic!("a request of an idle connection does not run");
        };
        reset(client);
        let (socket, client) = found(peer, 2);
        let (second, _) = table.attach_socket(socket, None);
        reset(client);
        let (socket, _client) = found(peer, 3);
        let (third, _) = table.attach_socket(socket, None);
        assert!(second.has_busy_predecessor() && third.has_busy_predecessor());
        assert!(matches!(table.complete(&first, false), AfterResponse::Idle));
        assert!(!second.has_busy_predecessor() && !third.has_busy_predecessor());
    }
}
