//! The sockets of tiny_http's connections: a duplicate of each, found by scans of the descriptor table.
//!
//! Any thread may scan; no lock is held meanwhile, so no thread waits for another's scan. The thread that finds a new
//! socket attaches it to its connection. Only the monitor's thread watches sockets and forgets them.

use std::collections::{HashMap, HashSet};
use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::event::{Timespec, epoll};
use socket2::SockRef;

use super::head_limit::HeadLimit;
use super::starvation::Starved;
use super::timeouts::Observation;
use super::unparsable::Accounted;
use crate::engine::gate::AcceptGate;
use crate::engine::tiny_http::accept_point::AcceptPoint;
use crate::engine::tiny_http::connection::Connection;
use crate::engine::tiny_http::connections::ConnectionTable;
use crate::engine::tiny_http::discover::{self, FdScan};
use crate::engine::tiny_http::throttle::Backlog;
use crate::sync::lock;
use crate::sys::min_ttl::has_min_ttl_filter;
use crate::sys::tcp::{TcpInfo, tcp_info, unread_bytes};

/// Events taken from the kernel in one call.
const EPOLL_BATCH: usize = 256;
/// The key of the listening socket's events; no socket has this cookie (the kernel counts from 1).
const LISTENER_KEY: u64 = 0;

/// A watched socket, with the state that each check keeps of it.
pub(super) struct WatchedSocket {
    pub(super) connection: Arc<Connection>,
    pub(super) socket: Arc<OwnedFd>,
    pub(super) head: HeadLimit,
    pub(super) backlog: Backlog,
    pub(super) starved: Starved,
    pub(super) accounted: Accounted,
    /// When the gate's packet filter was lifted from it; `None` if it did not inherit the filter.
    pub(super) unfiltered_at: Option<Instant>,
    /// When it was first seen to be closed.
    pub(super) closed_at: Option<Instant>,
}

impl WatchedSocket {
    /// The state of the socket and of its connection, for [`timeouts::check`](super::timeouts::check).
    pub(super) fn observe(&self) -> Observation {
        let snapshot = self.connection.snapshot();
        Observation {
            // Without its state the socket counts as closed: then the table is scanned.
            tcp: tcp_info(&*self.socket).unwrap_or(TcpInfo { closed: true, ..TcpInfo::default() }),
            unread: unread_bytes(&*self.socket),
            state: snapshot.conn_state,
            busy: snapshot.busy,
            since: snapshot.since,
            activity: snapshot.activity,
            body_expired: self.connection.body_deadline_passed(),
            head_start: self.head.head_start(),
            unfiltered_at: self.unfiltered_at,
        }
    }
}

/// Watched sockets by `SO_COOKIE`.
pub(super) type Watched = HashMap<u64, WatchedSocket>;

/// The table of all sockets, shared by all threads.
pub(super) struct SocketTable {
    gate: Arc<AcceptGate>,
    accept: Arc<AcceptPoint>,
    connections: Arc<ConnectionTable>,
    /// An epoll set of all watched sockets and the listening one, edge-triggered, which collects their events.
    events: OwnedFd,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// The numbers of our own duplicates.
    own_fds: HashSet<RawFd>,
    /// Duplicates that the monitor has forgotten, and that other threads may still hold.
    retired: Vec<Arc<OwnedFd>>,
    /// Cookies of sockets that need no duplicate, being watched or leaked, and their peers.
    peers: HashMap<u64, SocketAddr>,
    /// Sockets that were found, and that the monitor's thread has not taken yet.
    fresh: Vec<(u64, WatchedSocket)>,
    /// Start of the latest complete scan, which has found all sockets that were open then.
    scanned: Option<Instant>,
}

impl Known {
    /// Closes forgotten duplicates that no other thread holds. Until then their numbers count as ours: otherwise the next
    /// scan would take them for tiny_http's. True if some are left.
    fn close_retired(&mut self) -> bool {
        self.retired.retain(|socket| {
            let held = Arc::strong_count(socket) > 1;
            if !held {
                self.own_fds.remove(&socket.as_raw_fd());
            }
            held
        });
        !self.retired.is_empty()
    }
}

impl SocketTable {
    /// Errors: no descriptor is left.
    pub(super) fn new(
        gate: Arc<AcceptGate>,
        accept: Arc<AcceptPoint>,
        connections: Arc<ConnectionTable>,
    ) -> io::Result<SocketTable> {
        let events = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let edge = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&events, gate.listener(), epoll::EventData::new_u64(LISTENER_KEY), edge)?;
        Ok(SocketTable { gate, accept, connections, events, known: Mutex::default() })
    }

    /// Scans the table, and attaches each new socket to its connection. The scan is complete for all sockets that
    /// the monitor watched before it began.
    pub(super) fn scan(&self) -> FdScan {
        let (own_fds, cookies, scanned) = {
            let known = lock(&self.known);
            (known.own_fds.clone(), known.peers.keys().copied().collect::<HashSet<u64>>(), known.scanned)
        };
        let began = Instant::now();
        let mut scan = discover::scan(
            self.gate.address().inet_or_unspecified(),
            |number| own_fds.contains(&number),
            |cookie| cookies.contains(&cookie),
        );
        // Closed sockets first: if a client has connected again from the same port, the closed socket is the former
        // one.
        scan.found.sort_by_cached_key(|found| tcp_info(&found.socket).is_ok_and(|info| !info.closed));
        let mut known = lock(&self.known);
        for found in scan.found.drain(..) {
            if known.peers.contains_key(&found.cookie) {
                continue; // another thread has found it meanwhile
            }
            known.peers.insert(found.cookie, found.peer);
            // The handshake ended behind the closed gate, so the connection has inherited the packet filter.
            let filtered = self.gate.is_closed() && has_min_ttl_filter(&found.socket);
            // Our own knocks pass the gate, too, and are reset at once.
            if filtered && tcp_info(&found.socket).is_ok_and(|seen| !seen.closed) {
                self.gate.lift_filter(&found.socket);
            }
            let cookie = found.cookie;
            let (connection, socket) = self.connections.attach_socket(found, scanned);
            let flags = epoll::EventFlags::IN | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
            // Fails only without memory; then this socket has no events, and the timeouts still hold.
            let _ = epoll::add(&self.events, &*socket, epoll::EventData::new_u64(cookie), flags);
            known.own_fds.insert(socket.as_raw_fd());
            let watched = WatchedSocket {
                connection,
                socket,
                head: HeadLimit::default(),
                backlog: Backlog::default(),
                starved: Starved::default(),
                accounted: Accounted::default(),
                unfiltered_at: filtered.then(Instant::now),
                closed_at: None,
            };
            known.fresh.push((cookie, watched));
        }
        if !scan.exhausted {
            known.scanned = known.scanned.max(Some(began));
        }
        self.accept.set_other_fds(scan.others);
        self.accept.set_limit(known.own_fds.len());
        scan
    }

    /// The socket of a request in flight from `peer`, if it is proven to be the request's own.
    ///
    /// `tiny_http` keeps the socket of a request open for as long as the request exists, so the scan sees it. If a
    /// single socket has this peer, it is the request's.
    pub(super) fn prove(&self, peer: SocketAddr) -> Option<Arc<OwnedFd>> {
        let scan = self.scan();
        if scan.exhausted {
            return None; // a socket was seen that could not be duplicated
        }
        let proven = {
            let known = lock(&self.known);
            let mut candidates = scan.cookies.iter().filter(|cookie| known.peers.get(cookie) == Some(&peer));
            match (candidates.next(), candidates.next()) {
                (Some(one), None) => *one,
                _ => return None,
            }
        };
        let socket = self.connections.get(peer)?.socket()?;
        (SockRef::from(&*socket).cookie().ok()? == proven).then_some(socket)
    }

    /// Shuts down every socket of a peer, found by a scan.
    pub(super) fn abort_peer(&self, peer: SocketAddr) {
        self.scan();
        self.connections.abort_current(peer);
    }

    /// Closes forgotten duplicates that no other thread holds. True if some are left.
    pub(super) fn close_retired(&self) -> bool {
        lock(&self.known).close_retired()
    }

    /// Sets the brake to go on with one connection above the limit.
    pub(super) fn set_accept_limit(&self) {
        self.accept.set_limit(lock(&self.known).own_fds.len());
    }

    /// Takes the sockets found since the last call, for the monitor's thread.
    pub(super) fn take_fresh(&self) -> Vec<(u64, WatchedSocket)> {
        std::mem::take(&mut lock(&self.known).fresh)
    }

    /// Whether a socket was found that [`take_fresh`](SocketTable::take_fresh) has not returned yet.
    pub(super) fn has_fresh(&self) -> bool {
        !lock(&self.known).fresh.is_empty()
    }

    /// Removes a watched socket. With `keep_cookie` later scans skip it.
    pub(super) fn remove(&self, cookie: u64, watched: WatchedSocket, keep_cookie: bool) {
        let mut known = lock(&self.known);
        known.retired.push(watched.socket);
        if !keep_cookie {
            known.peers.remove(&cookie);
        }
    }

    /// Forgets a socket of which there is no duplicate.
    pub(super) fn forget_cookie(&self, cookie: u64) {
        lock(&self.known).peers.remove(&cookie);
    }

    /// The cookies of all sockets on which something happened since the last call, and whether a connection has arrived.
    /// Errors: the system refuses.
    pub(super) fn take_events(&self) -> io::Result<(HashSet<u64>, bool)> {
        let mut active = HashSet::new();
        let mut buffer = [MaybeUninit::<epoll::Event>::uninit(); EPOLL_BATCH];
        loop {
            let now = Timespec { tv_sec: 0, tv_nsec: 0 };
            let (events, _) = match epoll::wait(&self.events, &mut buffer, Some(&now)) {
                Ok(events) => events,
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            active.extend(events.iter().map(|event| event.data.u64()));
            if events.len() < EPOLL_BATCH {
                let connected = active.remove(&LISTENER_KEY);
                return Ok((active, connected));
            }
        }
    }
}

impl AsFd for SocketTable {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}

/// Reasons for a scan of the table at a tick.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Reasons {
    /// All sockets are due.
    pub(super) full_tick: bool,
    /// Connections arrive or wait to be accepted, or a request of an unknown one has arrived.
    pub(super) arriving: bool,
    /// tiny_http may have closed sockets.
    pub(super) ending: bool,
    /// A drain waits for the last socket to go, or the brake is on.
    pub(super) urgent: bool,
}

/// Decides when the descriptor table is scanned.
#[derive(Debug, Default)]
pub(super) struct Rescan {
    next_full_tick: Option<Instant>,
    /// A scan was put off, or must be repeated, because the event of a new connection comes before it is accepted.
    pending: bool,
    /// The last scan found a socket for which no descriptor was left.
    fd_exhausted: bool,
    not_before: Option<Instant>,
}

/// Scans take at most one part in this many of the monitor's time, except in a drain.
const MAX_SCAN_SHARE: u32 = 10;

impl Rescan {
    /// Whether all sockets are due at this tick: every `interval`.
    pub(super) fn is_full_tick(&mut self, interval: Duration, always: bool, now: Instant) -> bool {
        let due = always || self.next_full_tick.is_none_or(|next| now >= next);
        if due {
            self.next_full_tick = Some(now + interval);
        }
        due
    }

    pub(super) fn is_due(&mut self, reasons: Reasons, now: Instant) -> bool {
        let wanted = reasons.full_tick
            || reasons.arriving
            || reasons.ending
            || self.fd_exhausted
            || std::mem::take(&mut self.pending);
        let due = wanted && (reasons.urgent || self.not_before.is_none_or(|next| now >= next));
        self.pending = reasons.arriving || (wanted && !due);
        due
    }

    /// Records a scan that took `took`.
    pub(super) fn scanned(&mut self, fd_exhausted: bool, took: Duration, now: Instant) {
        self.fd_exhausted = fd_exhausted;
        self.not_before = Some(now + took * MAX_SCAN_SHARE);
    }

    pub(super) fn is_fd_exhausted(&self) -> bool {
        self.fd_exhausted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scan_follows_what_may_have_changed_the_table_and_once_more_an_arrival() {
        let (mut rescan, now) = (Rescan::default(), Instant::now());
        assert!(!rescan.is_due(Reasons::default(), now));
        assert!(rescan.is_due(Reasons { arriving: true, ..Reasons::default() }, now));
        assert!(rescan.is_due(Reasons::default(), now), "it may not have been accepted yet");
        assert!(!rescan.is_due(Reasons::default(), now));
        assert!(rescan.is_due(Reasons { ending: true, ..Reasons::default() }, now));
        rescan.scanned(true, Duration::ZERO, now);
        assert!(rescan.is_due(Reasons::default(), now), "a socket was seen that could not be duplicated");
    }

    #[test]
    fn scans_of_a_large_table_are_far_apart_but_in_a_drain() {
        let (mut rescan, began) = (Rescan::default(), Instant::now());
        let (took, ending) = (Duration::from_millis(8), Reasons { ending: true, ..Reasons::default() });
        rescan.scanned(false, took, began);
        assert!(!rescan.is_due(ending, began + took));
        assert!(rescan.is_due(Reasons { urgent: true, ..ending }, began + took));
        assert!(rescan.is_due(ending, began + took * MAX_SCAN_SHARE));
        rescan.scanned(false, took, began);
        let arriving = Reasons { arriving: true, ..Reasons::default() };
        assert!(!rescan.is_due(arriving, began + took));
        assert!(rescan.is_due(Reasons::default(), began + took * MAX_SCAN_SHARE), "it is made up for");
    }

    #[test]
    fn all_sockets_are_due_at_every_interval() {
        let (mut rescan, began, interval) = (Rescan::default(), Instant::now(), Duration::from_millis(500));
        assert!(rescan.is_full_tick(interval, false, began));
        assert!(!rescan.is_full_tick(interval, false, began + interval / 2));
        assert!(rescan.is_full_tick(interval, true, began + interval / 2));
        assert!(rescan.is_full_tick(interval, false, began + interval * 2));
    }
}
