//! The connection book: what is known of every open connection. It knows nothing of routes.
//!
//! tiny_http gives us requests, each with its peer's address, and never tells when a connection begins or ends. The
//! book has a page for every connection: the listener opens one when a request arrives from a peer without a page, the
//! [keeper](crate::engine::tiny_http::monitor) opens one when it finds a socket without a page, and the keeper closes pages when their
//! sockets are gone.
//!
//! Its rules, which the rest relies on:
//!
//! * **One request of a connection at a time.** What arrives behind it waits on the page, in order, so that no
//!   connection ever occupies more than one worker, and no worker ever waits for another's response.
//! * **What waits on one page is bounded**: beyond [`PIPELINE_HIGH`] requests the kernel is told to ignore the peer for a
//!   while, and to heed it again when fewer than [`PIPELINE_LOW`] wait. What has arrived by then, which the receive
//!   buffer bounds, still comes in.
//! * **After the last response nothing is handled.** A page that is closing throws away what still arrives.
//! * Locks: the table's, then a page's, never the other way round; none is held across a write, a handler or a join.

use std::collections::{HashMap, VecDeque};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use socket2::SockRef;

use crate::engine::tiny_http::discover::DiscoveredSocket;
use crate::engine::{CloseReason, ConnStats, StopState};
use crate::sync::lock;
use crate::sys::min_ttl::set_min_ttl_filter;
use crate::sys::tcp::{tcp_info, unread_bytes as unread};

/// Requests that may wait behind another of their connection before the kernel is told to take no more of it. A client
/// that pipelines a thousand is answered without ever being held back by more than its own responses.
const PIPELINE_HIGH: usize = 32;

/// So many must wait that not even an acknowledgement is worth letting more of them in: what a connection can have sent
/// by then is bounded.
const PIPELINE_MAX: usize = 2048;

/// Requests that may wait on all pages together, at some 2 KiB each (tiny_http makes two channels for every one), before
/// connections that have more than [`PIPELINE_HIGH`] are ended.
const PIPELINE_TOTAL_MAX: usize = 32 * 1024;

/// As few must wait before it is told to go on: low enough that the two are not toggled for each request.
const PIPELINE_LOW: usize = 8;

/// Responses that may be written without asking whether the earlier ones were received. A new socket takes 16 KiB
/// (`net.ipv4.tcp_wmem`) before a write blocks, and counts some 1,280 bytes for a small segment: 12 fit, so 8 never block.
const MAX_UNACKED_RESPONSES: u8 = 8;

/// The connections.
#[derive(Debug, Default)]
pub(crate) struct ConnectionTable {
    all: Mutex<HashMap<SocketAddr, Arc<Connection>>>,
    in_flight: AtomicUsize,
    waiting: AtomicUsize,
    /// The keeper alone says when a connection that is held is heeded again; see [`flood`](crate::engine::tiny_http::throttle).
    flood: AtomicBool,
    /// The listener sleeps: tiny_http's queue is empty.
    all_taken_in: AtomicBool,
    pub(crate) counts: ConnStats,
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) peer: SocketAddr,
    pub(crate) opened: Instant,
    /// Bytes of all requests that have arrived, as far as can be told, and of bodies that were read. What tiny_http has
    /// taken from the socket beyond it is on its way; as long as this grows, that is no endless line.
    progress: AtomicU64,
    /// Requests that have arrived.
    requests: AtomicU64,
    state: Mutex<State>,
}

/// Whether a connection goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ConnState {
    /// More requests are welcome.
    Open,
    /// Its input was ended while it was idle. tiny_http may have read a request by then that the listener has not
    /// received: that one is still answered.
    ReadShut { since: Instant },
    /// The last response was sent, or soon will be: what still arrives is thrown away.
    Closing { since: Instant },
    /// Shut down by us: tiny_http should let go of it at once.
    Aborted { since: Instant },
}

impl ConnState {
    fn accepts_requests(self) -> bool {
        matches!(self, ConnState::Open | ConnState::ReadShut { .. })
    }
}

#[derive(Debug)]
struct State {
    socket: Option<Arc<OwnedFd>>,
    busy: bool,
    /// Since when it is busy, or idle.
    since: Instant,
    /// Method and target of the request in flight; its memory is used again for the next.
    line: String,
    waiting: VecDeque<tiny_http::Request>,
    fate: ConnState,
    unconfirmed: u8,
    held: bool,
    /// The request in flight was told that its time is over.
    told: bool,
}

/// What the keeper sees of a page.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Snapshot {
    pub(crate) busy: bool,
    pub(crate) since: Instant,
    pub(crate) waiting: usize,
    pub(crate) fate: ConnState,
}

/// What becomes of a request that has arrived.
pub(crate) enum Admission {
    /// It is this connection's turn; `fresh` if nothing was known of it before.
    Serve { connection: Arc<Connection>, request: tiny_http::Request, fresh: bool },
    /// Another of its connection is in flight; it waits.
    Waits,
    /// It waits, as too many others of its connection do, whose socket is not known yet.
    Floods(Arc<Connection>),
    /// Nothing on this connection is handled any more.
    Discard { connection: Option<Arc<Connection>>, request: tiny_http::Request },
}

impl ConnectionTable {
    /// Takes in a request.
    pub(crate) fn admit(&self, request: tiny_http::Request) -> Admission {
        let Some(peer) = request.remote_addr().copied() else {
            return Admission::Discard { connection: None, request }; // no internet socket: not one that we listen on
        };
        let mut fresh = false;
        let connection = {
            let mut all = lock(&self.all);
            Arc::clone(all.entry(peer).or_insert_with(|| {
                fresh = true;
                self.counts.opened.fetch_add(1, Ordering::Relaxed);
                Arc::new(Connection::new(peer, None))
            }))
        };
        connection.progress.fetch_add(estimated_wire_len(&request), Ordering::Relaxed);
        connection.requests.fetch_add(1, Ordering::Relaxed);
        let mut state = lock(&connection.state);
        if !state.fate.accepts_requests() {
            drop(state);
            return Admission::Discard { connection: Some(connection), request };
        }
        if state.busy {
            if state.waiting.is_empty() && state.is_over() {
                drop(state);
                return Admission::Discard { connection: Some(connection), request };
            }
            state.waiting.push_back(request);
            let waiting = self.waiting.fetch_add(1, Ordering::Relaxed) + 1;
            if waiting > PIPELINE_TOTAL_MAX && state.waiting.len() > PIPELINE_HIGH {
                drop(state);
                self.count_close(CloseReason::PipelineOverflow);
                connection.shut_down(Shutdown::Both); // what waits is thrown away when the one in flight is over
                return Admission::Waits;
            }
            if state.waiting.len() > PIPELINE_HIGH && !state.held {
                state.hold(&self.counts);
                if !state.held {
                    drop(state);
                    return Admission::Floods(connection);
                }
            }
            return Admission::Waits;
        }
        state.take(&request);
        drop(state);
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        Admission::Serve { connection, request, fresh }
    }

    /// Ends a request in flight, and gives the next of its connection, which is then in flight.
    ///
    /// With `last`, nothing follows: what waits is handed back to be thrown away.
    pub(crate) fn finish(&self, connection: &Arc<Connection>, last: bool) -> AfterResponse {
        let mut state = lock(&connection.state);
        state.since = Instant::now();
        if last {
            state.busy = false;
            if state.fate.accepts_requests() {
                state.fate = ConnState::Closing { since: state.since };
            }
            let rest: Vec<_> = state.waiting.drain(..).collect();
            drop(state);
            self.waiting.fetch_sub(rest.len(), Ordering::Relaxed);
            self.counts.discarded.fetch_add(rest.len() as u64, Ordering::Relaxed);
            self.in_flight.fetch_sub(1, Ordering::Release);
            return AfterResponse::Closed(rest);
        }
        match state.waiting.pop_front() {
            Some(next) => {
                state.take(&next);
                if !self.flood.load(Ordering::Relaxed) {
                    state.release_if_few_wait();
                }
                drop(state);
                self.waiting.fetch_sub(1, Ordering::Relaxed);
                AfterResponse::Next(next)
            }
            None => {
                state.busy = false;
                // What one long target or one long pipeline took must not stay with an idle connection.
                if state.line.capacity() > 256 {
                    state.line = String::new();
                }
                if state.waiting.capacity() > PIPELINE_LOW {
                    state.waiting = VecDeque::new();
                }
                drop(state);
                self.in_flight.fetch_sub(1, Ordering::Release);
                AfterResponse::Idle
            }
        }
    }

    /// Forgets a connection of which tiny_http itself closes its end after the last response.
    pub(crate) fn forget(&self, connection: &Arc<Connection>) {
        let mut all = lock(&self.all);
        if all.get(&connection.peer).is_some_and(|known| Arc::ptr_eq(known, connection)) {
            all.remove(&connection.peer);
        }
    }

    /// Forgets idle pages of which no socket was ever found, though they are older than `since`: their connections were
    /// gone before anybody looked.
    pub(crate) fn forget_gone(&self, since: Instant) {
        lock(&self.all).retain(|_, connection| {
            let state = lock(&connection.state);
            state.busy || state.socket.is_some() || connection.opened > since
        });
    }

    /// Puts a socket that was found on its page; opens the page if there is none.
    pub(crate) fn adopt(&self, found: DiscoveredSocket) -> (Arc<Connection>, Arc<OwnedFd>) {
        let socket = Arc::new(found.socket);
        let mut all = lock(&self.all);
        if let Some(connection) = all.get(&found.peer) {
            let mut state = lock(&connection.state);
            // The same peer has come back from the same port, before its former page was closed. A request in flight on
            // that page goes on there, whichever connection it is of: its response finds its way by itself.
            let is_of_former = state.socket.is_some();
            if !is_of_former {
                state.socket = Some(Arc::clone(&socket));
                let said_close = !state.busy && matches!(state.fate, ConnState::Closing { .. });
                drop(state);
                if said_close {
                    // The last response was written before the socket was known.
                    let _ = SockRef::from(&*socket).shutdown(Shutdown::Write); // fails if the peer has left
                }
                return (Arc::clone(connection), socket);
            }
        }
        self.counts.opened.fetch_add(1, Ordering::Relaxed);
        let connection = Arc::new(Connection::new(found.peer, Some(Arc::clone(&socket))));
        all.insert(found.peer, Arc::clone(&connection));
        (connection, socket)
    }

    /// Requests that were taken in and are not answered yet, those that wait for their connection's turn not counted.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Acquire)
    }

    /// Whether requests are in flight that were when the drain began.
    pub(crate) fn has_requests_older_than_drain(&self, stop: &StopState) -> bool {
        self.in_flight() > 0
            && self.all().iter().any(|connection| {
                let state = lock(&connection.state);
                state.busy && stop.predates_drain(state.since)
            })
    }

    /// Connections with a request in flight whose socket is not known.
    pub(crate) fn busy_without_socket(&self) -> usize {
        let is_one = |connection: &&Arc<Connection>| {
            let state = lock(&connection.state);
            state.busy && state.socket.is_none()
        };
        lock(&self.all).values().filter(is_one).count()
    }

    /// Requests that wait behind another of their connection.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Says whether requests are sent faster than they are taken in.
    pub(crate) fn set_flood(&self, on: bool) {
        self.flood.store(on, Ordering::Relaxed);
    }

    /// Says that tiny_http's queue is empty, or may not be.
    pub(crate) fn set_all_taken_in(&self, yes: bool) {
        self.all_taken_in.store(yes, Ordering::Relaxed);
    }

    pub(crate) fn is_all_taken_in(&self) -> bool {
        self.all_taken_in.load(Ordering::Relaxed)
    }

    /// Open connections, as far as they are known.
    pub(crate) fn connections(&self) -> usize {
        lock(&self.all).len()
    }

    /// The page of a peer.
    pub(crate) fn connection(&self, peer: SocketAddr) -> Option<Arc<Connection>> {
        lock(&self.all).get(&peer).cloned()
    }

    /// All pages.
    pub(crate) fn all(&self) -> Vec<Arc<Connection>> {
        lock(&self.all).values().cloned().collect()
    }

    /// Counts a connection that was ended by us.
    pub(crate) fn count_close(&self, why: CloseReason) {
        self.counts.count_close(why);
    }
}

/// What follows a request that has ended.
pub(crate) enum AfterResponse {
    /// The next one of its connection, in flight from now on.
    Next(tiny_http::Request),
    /// Nothing, for now.
    Idle,
    /// The connection is closing; these were waiting, and are to be thrown away.
    Closed(Vec<tiny_http::Request>),
}

impl Connection {
    fn new(peer: SocketAddr, socket: Option<Arc<OwnedFd>>) -> Connection {
        let now = Instant::now();
        Connection {
            peer,
            opened: now,
            progress: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            state: Mutex::new(State {
                socket,
                busy: false,
                since: now,
                line: String::new(),
                waiting: VecDeque::new(),
                fate: ConnState::Open,
                unconfirmed: 0,
                held: false,
                told: false,
            }),
        }
    }

    pub(crate) fn socket(&self) -> Option<Arc<OwnedFd>> {
        lock(&self.state).socket.clone()
    }

    /// Whether the kernel is done with it, as far as is known: its peer may be another connection's by now.
    pub(crate) fn is_over(&self) -> bool {
        let state = lock(&self.state);
        state.socket.is_none() || state.is_over()
    }

    /// Method and target of the request in flight, for the log.
    pub(crate) fn request_line(&self) -> String {
        lock(&self.state).line.clone()
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        let state = lock(&self.state);
        Snapshot { busy: state.busy, since: state.since, waiting: state.waiting.len(), fate: state.fate }
    }

    /// Whether nothing more of this connection is on its way, so that the response in hand may be its last: no request
    /// waits, no byte is unread, and none is with tiny_http, which reads ahead.
    ///
    /// For the last, what the kernel has received is compared with what has come of it. Of a client that writes its
    /// headers in an unusual way (two blanks behind a colon) the two never match: with `settled`, they need not.
    pub(crate) fn has_no_more_input(&self, socket: &OwnedFd, settled: bool) -> bool {
        if !lock(&self.state).waiting.is_empty() || unread(socket) > 0 {
            return false;
        }
        settled
            || tcp_info(socket).is_ok_and(|facts| {
                let end = u64::from(facts.close_wait); // the end of the stream counts as a byte
                facts.bytes_received.saturating_sub(end) <= self.progress()
            })
    }

    /// Whether a small response can be written now without any risk of having to wait for the client.
    ///
    /// Asks the kernel once in [`MAX_UNACKED_RESPONSES`] responses; `socket` is asked for one if the page has none.
    pub(crate) fn can_write_without_blocking(&self, socket: impl FnOnce() -> Option<Arc<OwnedFd>>) -> bool {
        let known = {
            let mut state = lock(&self.state);
            if state.unconfirmed < MAX_UNACKED_RESPONSES {
                state.unconfirmed += 1;
                return true;
            }
            state.socket.clone()
        };
        let received = known
            .or_else(socket)
            .and_then(|socket| tcp_info(&*socket).ok())
            .is_some_and(|facts| facts.all_acknowledged);
        if received {
            lock(&self.state).unconfirmed = 1;
        }
        received
    }

    /// Heeds a peer again that was ignored: its acknowledgements were, too, and a response may wait for them.
    pub(crate) fn release(&self) {
        let mut state = lock(&self.state);
        if state.held && state.waiting.len() <= PIPELINE_MAX {
            state.release();
        }
    }

    /// Heeds a peer again that was ignored, if what waits has become little.
    pub(crate) fn release_if_few_wait(&self) {
        lock(&self.state).release_if_few_wait();
    }

    /// Has the kernel ignore a peer for a while that sends faster than its requests are taken in.
    pub(crate) fn hold(&self, counts: &ConnStats) {
        let mut state = lock(&self.state);
        if !state.held {
            state.hold(counts);
        }
    }

    /// Shuts the connection down as `how` says. With both directions, tiny_http lets go of it at once.
    pub(crate) fn shut_down(&self, how: Shutdown) {
        let socket = {
            let mut state = lock(&self.state);
            if state.held {
                state.release(); // or the peer would never hear of the end: its answers to it would be ignored, too
            }
            if how != Shutdown::Write {
                let since = Instant::now();
                state.fate = match state.fate {
                    ConnState::Open | ConnState::ReadShut { .. } | ConnState::Closing { .. } => {
                        ConnState::Aborted { since }
                    }
                    aborted @ ConnState::Aborted { .. } => aborted,
                };
            }
            state.socket.clone()
        };
        if let Some(socket) = socket {
            let _ = SockRef::from(&*socket).shutdown(how); // fails if the peer has left: then there is nothing to shut
        }
    }

    /// Since when it is busy, or idle.
    pub(crate) fn since(&self) -> Instant {
        lock(&self.state).since
    }

    /// Whether the kernel ignores its peer at the moment.
    pub(crate) fn is_held(&self) -> bool {
        lock(&self.state).held
    }

    /// Ends the input of an idle connection. What tiny_http has read of it before is still answered.
    pub(crate) fn shutdown_read(&self) {
        let socket = {
            let mut state = lock(&self.state);
            if state.fate == ConnState::Open {
                state.fate = ConnState::ReadShut { since: Instant::now() };
            }
            state.socket.clone()
        };
        if let Some(socket) = socket {
            let _ = SockRef::from(&*socket).shutdown(Shutdown::Read); // as above
        }
    }

    /// How far it has come; see the field.
    pub(crate) fn progress(&self) -> u64 {
        self.progress.load(Ordering::Relaxed)
    }

    /// How many requests have arrived.
    pub(crate) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Whether the request in flight has been told that its time is over.
    pub(crate) fn body_deadline_passed(&self) -> bool {
        lock(&self.state).told
    }

    /// Lets the request in flight see the end of its body, for its time is over. What tiny_http has read already is
    /// still handled.
    pub(crate) fn expire_body(&self) {
        let socket = {
            let mut state = lock(&self.state);
            state.told = true;
            state.socket.clone()
        };
        if let Some(socket) = socket {
            let _ = SockRef::from(&*socket).shutdown(Shutdown::Read); // as above
        }
    }
}

impl Connection {
    /// So many bytes of a body have been read.
    pub(crate) fn on_parsed(&self, bytes: u64) {
        self.progress.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Whether the input has ended, by the client's will or by ours.
    pub(crate) fn has_input_ended(&self) -> bool {
        let (ended, socket) = {
            let state = lock(&self.state);
            (state.told || matches!(state.fate, ConnState::Aborted { .. }), state.socket.clone())
        };
        ended || socket.is_none_or(|socket| tcp_info(&*socket).is_ok_and(|facts| facts.close_wait || facts.closed))
    }
}

/// About as many bytes as its client sent for a request, without a long body.
fn estimated_wire_len(request: &tiny_http::Request) -> u64 {
    let line = request.method().as_str().len() + request.url().len() + "  HTTP/1.1\r\n\r\n".len();
    let headers = request.headers().iter();
    let headers: usize = headers.map(|header| header.field.as_str().len() + header.value.len() + ": \r\n".len()).sum();
    let body = request.body_length().filter(|length| *length <= 1024).unwrap_or(0); // read with the head
    (line + headers + body) as u64
}

impl State {
    fn take(&mut self, request: &tiny_http::Request) {
        const LONGEST: usize = 200; // enough to know it by; a target may have 8 KB
        self.busy = true;
        self.since = Instant::now();
        self.line.clear();
        self.line
            .extend(request.method().as_str().chars().take(20).map(|c| if c.is_ascii_graphic() { c } else { '?' }));
        self.line.push(' ');
        let target = request.url();
        let end = (0..=LONGEST.min(target.len())).rev().find(|at| target.is_char_boundary(*at)).unwrap_or(0);
        self.line.extend(target[..end].chars().map(|c| if c.is_ascii_graphic() { c } else { '?' }));
    }

    /// Has the kernel ignore the peer for a while. What it sends meanwhile is not acknowledged, so it keeps it, and sends
    /// it again a little later.
    fn hold(&mut self, counts: &ConnStats) {
        if self.fate != ConnState::Open {
            return;
        }
        if let Some(socket) = &self.socket {
            self.held = set_min_ttl_filter(&**socket, true).is_ok();
            if self.held {
                counts.throttled.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Whether its socket is known, and the kernel is done with it.
    fn is_over(&self) -> bool {
        self.socket.as_ref().is_some_and(|socket| tcp_info(&**socket).is_ok_and(|facts| facts.closed))
    }

    fn release_if_few_wait(&mut self) {
        if self.held && self.waiting.len() < PIPELINE_LOW {
            self.release();
        }
    }

    fn release(&mut self) {
        if let Some(socket) = &self.socket {
            let _ = set_min_ttl_filter(&**socket, false); // it took the same option before
        }
        self.held = false;
    }
}
