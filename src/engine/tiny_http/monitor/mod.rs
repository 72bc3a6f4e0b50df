//! The keeper of the connection book: the thread that looks at every socket that tiny_http holds, and acts on what it
//! sees. No client decides when it wakes up, and no request waits for it.
//!
//! tiny_http shows no sockets, has no timeouts, loses connections in its own thread pool, and dies when descriptors run
//! out. So the keeper finds the sockets itself (see [`discover`](crate::engine::tiny_http::discover)), holds a duplicate of each, and
//!
//! * ends what takes too long: idle connections, endless heads, requests beyond the request timeout;
//! * rescues connections that tiny_http has accepted and then left without a thread: bytes wait, none was ever read,
//!   for two looks in a row. One short connection to our own port makes tiny_http start a thread, which then takes the
//!   one that was left;
//! * keeps the number of connections within its limit: the idlest go, and while none can go the gate is closed;
//! * notices that tiny_http has stopped accepting, and has it started anew;
//! * drops the requests whose bodies nobody read, once their clients have left;
//! * counts what tiny_http has lost for good;
//! * holds back clients that send faster than anybody takes it in (see [`flood`](crate::engine::tiny_http::throttle));
//! * gives memory back when a crowd has left;
//! * and in a drain, closes what has nothing more to say.
//!
//! # When it wakes up
//!
//! All sockets are in one epoll set, edge-triggered: what happens on them collects there without waking anyone. While
//! things happen, the keeper looks every [`TICK`]; when nothing has happened for a tick it rests until something does,
//! or until the next timeout may be due. With no connection open it does not wake up at all, until the first one: of
//! that it learns by a signal, since the accept thread takes it away under any `poll`. A burst of connections that ends
//! a rest is noticed by its first request.

use std::collections::{HashMap, HashSet};
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::net::{Shutdown, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, epoll, eventfd};
use signal_hook::SigId;
use signal_hook::consts::SIGIO;
use signal_hook::low_level::pipe;
use socket2::SockRef;

use crate::engine::CloseReason;
use crate::engine::gate::AcceptGate;
use crate::engine::tiny_http::connections::{ConnState, Connection, ConnectionTable};
use crate::engine::tiny_http::discover::{self, FdScan};
use crate::engine::tiny_http::throttle::{self as flood, Flood, Flow, Seen};
use crate::engine::tiny_http::unread_body as leftover;
use crate::engine::{Events, Settings, StopState};
use crate::http::validate as rules;
use crate::sync::{WarnOnce, lock};
use crate::sys::heap as memory;
use crate::sys::limits::under_fd_pressure;
use crate::sys::min_ttl::{has_min_ttl_filter, set_min_ttl_filter};
use crate::sys::sigio::set_sigio;
use crate::sys::tcp::{tcp_info, unread_bytes as unread};

/// How often the keeper looks while things happen. Two looks find a starved connection, so that it waits 40 ms at most;
/// eight clients that send one endless header each get some 6 MB in between on two cores.
const TICK: Duration = Duration::from_millis(20);
/// How often in a drain in which something happens: the drain ends as soon as the keeper sees that it can.
const DRAIN_TICK: Duration = Duration::from_millis(1);
/// For how long after something happened.
const BRISK: Duration = Duration::from_millis(100);
/// How often while connections are open and nothing happens: by how much a timeout may be late.
const REST: Duration = Duration::from_millis(500);
/// More bytes than any head may have: the longest target, the longest headers, and as much again for line ends and for
/// what a client had already sent of its next request.
const LONGEST_HEAD: u64 = 2 * (rules::MAX_TARGET + rules::MAX_HEADERS_TOTAL) as u64;
/// How often while clients send more than is taken in: each of them can put a hundred requests into tiny_http's queue in
/// that time.
const FLOOD_TICK: Duration = Duration::from_millis(2);
/// How long a client may take to read a response and close, after the last one of its connection; then the connection
/// is shut down. RFC 9112, section 9.6, wants a server to wait for it; nginx waits as long between two looks
/// (`lingering_timeout` 5 s, of `lingering_time` 30 s at most).
const PARTING: Duration = Duration::from_secs(2);
/// How long after a shutdown tiny_http may take to let go of a socket, before the socket counts as lost for good.
const LETTING_GO: Duration = Duration::from_secs(3);
/// By when a client has said again what was not acknowledged: the first time after 200 ms (`TCP_RTO_MIN`), the second
/// after 400 ms more.
const SAID_AGAIN: Duration = Duration::from_millis(700);
/// How long a drain waits at most for handshakes that had begun before the gate was closed: the way to almost any place
/// and back.
const HANDSHAKE: Duration = Duration::from_millis(250);
/// For how long connections may wait in the kernel, none being accepted, before tiny_http counts as dead.
const ACCEPTS_WITHIN: Duration = Duration::from_millis(400);
/// As many connections at once leave behind what is worth giving back: a few megabytes.
const CROWD: usize = 100;
/// How long after a crowd the threads have left, too: tiny_http's wait 5 s for another connection.
const DISPERSED: Duration = Duration::from_secs(6);
/// Events taken from the kernel in one call.
const EVENTS: usize = 256;
/// Rescues in one look; each costs one short connection.
const MOST_RESCUES: usize = 256;

/// The keeper, shared by its own thread and by those who need a look at once.
pub(crate) struct Monitor {
    connections: Arc<ConnectionTable>,
    gate: Arc<AcceptGate>,
    stop_state: Arc<StopState>,
    limits: Settings,
    callbacks: Arc<Events>,
    /// All watched sockets, and the listening one.
    events: OwnedFd,
    wake: OwnedFd,
    stopping: AtomicBool,
    /// A drain has nothing left to wait for.
    /// The number of the stop in which nothing was left; 0 if there was none.
    quiet: AtomicU64,
    /// Whether the keeper waits for longer than a tick.
    resting: AtomicBool,
    /// Set for the listener: tiny_http does not accept any more.
    pub(crate) engine_is_dead: AtomicBool,
    on_dead_engine: Mutex<Option<Box<dyn Fn() + Send>>>,
    watched: Mutex<SocketTable>,
    partings: Mutex<Vec<LingeringClose>>,
    /// Milliseconds since the keeper began, at its last look: for a watchdog.
    pub(crate) looks: AtomicU64,
    warn_no_knock: WarnOnce,
    /// Connections must go, so that tiny_http can be started anew.
    room_wanted: AtomicBool,
}

#[derive(Default)]
struct SocketTable {
    by_cookie: HashMap<u64, WatchedSocket>,
    /// The numbers of our own duplicates.
    own: HashSet<RawFd>,
    /// Sockets that tiny_http will never let go of.
    lost: HashSet<u64>,
    /// When a successor was last searched in vain.
    searched: Option<Instant>,
}

/// One socket under watch.
struct WatchedSocket {
    connection: Arc<Connection>,
    socket: Arc<OwnedFd>,
    /// Bytes that tiny_http had taken when the last request, or the last byte of a body, was seen to have arrived.
    mark: u64,
    /// What had come of them by then.
    progress: u64,
    /// What is on its way of it.
    flow: Flow,
    /// Whether bytes waited at the last look, and none was ever read.
    starving: bool,
    /// The request in flight has been told that its time is over.
    told: bool,
    /// Since when it hears, if it could not before: what its client said then arrives when the client says it again.
    was_deaf: Option<Instant>,
}

/// A request that is over, and not dropped yet, because its client may still be sending the body.
struct LingeringClose {
    since: Instant,
    socket: Option<Arc<OwnedFd>>,
    request: tiny_http::Request,
    left: u64,
}

/// The key of the listening socket's events; no socket has this cookie (the kernel counts from 1).
const LISTENER: u64 = 0;

impl LingeringClose {
    fn drop_it(self) {
        if let Some(socket) = &self.socket {
            let _ = SockRef::from(&**socket).shutdown(Shutdown::Read); // fails if the peer has left
        }
        leftover::discard(self.request, self.left);
    }
}

impl Monitor {
    /// # Errors
    ///
    /// No descriptor is left.
    pub(crate) fn new(
        connections: Arc<ConnectionTable>,
        gate: Arc<AcceptGate>,
        stop_state: Arc<StopState>,
        limits: Settings,
        callbacks: Arc<Events>,
    ) -> io::Result<Monitor> {
        let events = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let edge = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&events, gate.listener(), epoll::EventData::new_u64(LISTENER), edge)?;
        Ok(Monitor {
            connections,
            gate,
            stop_state,
            limits,
            callbacks,
            events,
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            stopping: AtomicBool::new(false),
            quiet: AtomicU64::new(0),
            resting: AtomicBool::new(false),
            engine_is_dead: AtomicBool::new(false),
            on_dead_engine: Mutex::new(None),
            watched: Mutex::new(SocketTable::default()),
            partings: Mutex::new(Vec::new()),
            looks: AtomicU64::new(0),
            warn_no_knock: WarnOnce::default(),
            room_wanted: AtomicBool::new(false),
        })
    }

    /// What to do when tiny_http does not accept any more.
    pub(crate) fn on_dead_engine(&self, act: impl Fn() + Send + 'static) {
        *lock(&self.on_dead_engine) = Some(Box::new(act));
    }

    /// Whether a drain has nothing left to wait for.
    pub(crate) fn is_quiescent(&self) -> bool {
        self.stop_state.stop_number().is_some_and(|stop| self.quiet.load(Ordering::Acquire) == stop)
    }

    /// Has the keeper look soon.
    pub(crate) fn wake(&self) {
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes()); // full means that it is awake already
    }

    /// Has the keeper look soon, if it would not look within a tick anyway.
    pub(crate) fn wake_if_idle(&self) {
        if self.resting.swap(false, Ordering::AcqRel) {
            self.wake();
        }
    }

    /// Has the idlest connections leave, for the sake of what they hold.
    pub(crate) fn request_eviction(&self) {
        self.room_wanted.store(true, Ordering::Release);
        self.wake();
    }

    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.wake();
    }

    /// Keeps `request` until its client has left, or has had the time to.
    pub(crate) fn linger_until_closed(&self, socket: Arc<OwnedFd>, request: tiny_http::Request, left: Option<u64>) {
        let left = left.unwrap_or(0); // of a chunked body nothing is counted, and its drop reads nothing
        lock(&self.partings).push(LingeringClose { since: Instant::now(), socket: Some(socket), request, left });
        self.wake();
    }

    /// Finds sockets that are not under watch yet. For those who cannot wait for the next tick.
    pub(crate) fn scan_now(&self) {
        self.look_through(&mut lock(&self.watched));
    }

    /// Whether a page has a successor: another connection of the same peer. Seldom asked in vain, lest those who send much
    /// to connections that are over make everybody wait.
    pub(crate) fn find_newer_connection(&self, connection: &Arc<Connection>) -> bool {
        const SELDOM: Duration = Duration::from_millis(10); // a look takes one at most, with a thousand connections
        let mut watched = lock(&self.watched);
        if watched.searched.is_some_and(|searched| searched.elapsed() < SELDOM) {
            return false;
        }
        self.look_through(&mut watched);
        let found = self.connections.connection(connection.peer).is_some_and(|other| !Arc::ptr_eq(&other, connection));
        watched.searched = (!found).then(Instant::now);
        found
    }

    fn look_through(&self, watched: &mut SocketTable) -> FdScan {
        let mut sighting = discover::scan(
            self.gate.address(),
            |number| watched.own.contains(&number),
            |cookie| watched.by_cookie.contains_key(&cookie) || watched.lost.contains(&cookie),
        );
        let behind_the_gate = self.gate.is_closed();
        for found in sighting.found.drain(..) {
            // A handshake that ended just behind the gate: what the client said since was ignored, and comes again.
            let was_deaf = behind_the_gate && has_min_ttl_filter(&found.socket);
            if was_deaf {
                let _ = set_min_ttl_filter(&found.socket, false); // it took the same option before
            }
            let was_deaf = was_deaf.then(Instant::now);
            let cookie = found.cookie;
            let (connection, socket) = self.connections.adopt(found);
            let flags = epoll::EventFlags::IN | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
            // Fails only for want of memory; then this socket has no events, and the timeouts still hold.
            let _ = epoll::add(&self.events, &*socket, epoll::EventData::new_u64(cookie), flags);
            watched.own.insert(socket.as_raw_fd());
            let watch = WatchedSocket {
                connection,
                socket,
                mark: 0,
                progress: 0,
                flow: Flow::default(),
                starving: false,
                told: false,
                was_deaf,
            };
            watched.by_cookie.insert(cookie, watch);
        }
        sighting
    }

    /// The keeper's life.
    ///
    /// # Errors
    ///
    /// The system refuses to wait for events.
    pub(crate) fn run(&self) -> io::Result<()> {
        let began = Instant::now();
        memory::set_trim_threshold();
        let bell = AcceptSignal::new()?;
        let mut rounds = Rounds::default();
        let mut awake = true;
        while !self.stopping.load(Ordering::Acquire) {
            let brisk = rounds.brisk_until.is_some_and(|until| Instant::now() < until);
            let woken = self.wait(awake, brisk, &bell, &mut rounds)?;
            let active = self.collect()?;
            if self.stop_state.accept_stopped().is_some()
                && (woken || !active.is_empty() || rounds.brisk_until.is_none())
            {
                rounds.brisk_until = Some(Instant::now() + BRISK);
            }
            rounds.woken = woken;
            awake = self.look(&active, &mut rounds) || !active.is_empty() || woken;
            self.looks.store(u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
        bell.hang_up(self.gate.listener());
        // The kernel would go on ignoring that their clients have left, long after we have.
        for watch in lock(&self.watched).by_cookie.values() {
            watch.connection.release();
        }
        // Nobody else drops these.
        for parting in lock(&self.partings).drain(..) {
            parting.drop_it();
        }
        Ok(())
    }

    /// Waits for the next tick, or, when all is quiet, for something to happen. True if somebody woke us.
    fn wait(&self, awake: bool, brisk: bool, bell: &AcceptSignal, rounds: &mut Rounds) -> io::Result<bool> {
        let ticking = awake || self.stop_state.accept_stopped().is_some();
        let limit = match (brisk, ticking) {
            (true, _) => Some(DRAIN_TICK),
            (false, true) if rounds.flood.is_on() => Some(FLOOD_TICK),
            (false, true) => Some(TICK),
            (false, false) if self.connections.connections() > 0 || self.gate.is_closed() || rounds.crowd.is_some() => {
                Some(REST)
            }
            // The bell is hung before the last look, so that no connection comes unnoticed between the two.
            (false, false) if !rounds.belled => {
                bell.hang(self.gate.listener());
                rounds.belled = true;
                rounds.gone_suspected = true;
                return Ok(false);
            }
            (false, false) => None,
        };
        if !ticking && rounds.crowd.is_some_and(|crowd| crowd.elapsed() >= DISPERSED) {
            rounds.crowd = None;
            memory::trim();
        }
        self.resting.store(!ticking, Ordering::Release);
        let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
        let mut all = [
            PollFd::new(&self.wake, PollFlags::IN),
            PollFd::new(&self.events, PollFlags::IN),
            PollFd::new(&bell.rings, PollFlags::IN),
        ];
        // While awake, events only collect; a tick is what they are worth.
        let waits_for = if ticking { &mut all[..1] } else { &mut all[..] };
        match rustix::event::poll(waits_for, limit.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        self.resting.store(false, Ordering::Release);
        let mut woken = false;
        if std::mem::take(&mut rounds.belled) {
            bell.hang_up(self.gate.listener());
            woken = bell.has_rung();
        }
        let mut count = [0; 8];
        Ok(rustix::io::read(&self.wake, &mut count).is_ok() || woken) // EAGAIN if nobody did
    }

    /// The cookies of all sockets on which something happened.
    fn collect(&self) -> io::Result<HashSet<u64>> {
        let mut active = HashSet::new();
        let mut buffer = [MaybeUninit::<epoll::Event>::uninit(); EVENTS];
        loop {
            let now = Timespec { tv_sec: 0, tv_nsec: 0 };
            let (events, _) = match epoll::wait(&self.events, &mut buffer, Some(&now)) {
                Ok(events) => events,
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            active.extend(events.iter().map(|event| event.data.u64()));
            if events.len() < EVENTS {
                return Ok(active);
            }
        }
    }

    /// One look at everything that may need one. True if there is something to look at again soon.
    fn look(&self, active: &HashSet<u64>, rounds: &mut Rounds) -> bool {
        let now = Instant::now();
        let draining = self.stop_state.accept_stopped().is_some();
        let mut watched = lock(&self.watched);
        let mut again = false;

        if watched.by_cookie.len() > CROWD {
            rounds.crowd = Some(now);
        }
        let stop = self.stop_state.stop_number();
        if rounds.stop != stop {
            (rounds.stop, rounds.farthest, rounds.knocked) = (stop, None, None);
        }
        if draining && rounds.farthest.is_none() {
            let way = |watch: &WatchedSocket| tcp_info(&*watch.socket).map_or(Duration::ZERO, |facts| facts.min_rtt);
            rounds.farthest = Some(watched.by_cookie.values().map(way).max().unwrap_or_default().min(HANDSHAKE));
        }
        let nobody_at_the_gate = stop.is_some() && self.is_nobody_at_the_gate(rounds);
        let found_before = watched.by_cookie.len();
        let due = draining || rounds.next_round.is_none_or(|next| now >= next);
        if due {
            rounds.next_round = Some(now + REST);
        }
        // The event of a new connection comes before anybody has accepted it: hence once more at the next tick.
        let newcomers = active.contains(&LISTENER) || self.gate.accept_queue_len() > 0;
        let expected = std::mem::replace(&mut rounds.expects_newcomers, newcomers || rounds.woken);
        let look_through = due || newcomers || expected || rounds.woken || rounds.gone_suspected || rounds.exhausted;
        again |= newcomers;
        let sighting = look_through.then(|| self.look_through(&mut watched));
        let found = watched.by_cookie.len() - found_before;
        if let Some(sighting) = &sighting {
            rounds.exhausted = sighting.exhausted;
            rounds.short = under_fd_pressure(sighting.in_use);
            self.strike(&mut watched, sighting, rounds);
        }
        rounds.gone_suspected = false;
        if sighting.is_some() && !rounds.exhausted {
            // Whoever is there was found by this look; a page that it left without a socket is of one who has gone.
            self.connections.forget_gone(now.checked_sub(TICK).unwrap_or(now));
        }
        let mut starved = 0;
        for (cookie, watch) in &mut watched.by_cookie {
            if active.contains(cookie) || watch.starving || watch.flow.is_moving() {
                again |= self.look_at_bytes(watch, &mut starved);
            }
        }
        let on_their_way = watched.by_cookie.values().map(|watch| watch.flow.requests()).sum();
        let flood = rounds.flood.goes_on(now, on_their_way);
        self.connections.set_flood(flood);
        for (cookie, watch) in &mut watched.by_cookie {
            let is_active = active.contains(cookie);
            if flood && watch.flow.is_too_much() {
                watch.connection.hold(&self.connections.counts);
            }
            if due && watch.flow.is_to_be_heeded(watch.connection.is_held(), now, draining) {
                watch.connection.release();
            }
            if is_active || due {
                rounds.gone_suspected |= self.look_at_time(watch, now, draining);
            }
        }
        if flood {
            flood::let_in(
                watched.by_cookie.values_mut().map(|watch| (&mut watch.flow, &*watch.connection)),
                now,
                on_their_way,
            );
        }
        drop(watched);
        self.rescue(starved);
        again |= self.look_at_partings(now, draining);
        self.look_at_engine(now, found, rounds);
        self.keep_within_limits(now, rounds);
        if rounds.woken
            && self.stop_state.announced().is_some()
            && !draining
            && !self.connections.has_requests_older_than_drain(&self.stop_state)
        {
            (self.callbacks.changed)();
        }
        if let Some(stop) = stop
            && self.is_quiet(nobody_at_the_gate, rounds)
        {
            self.quiet.store(stop, Ordering::Release);
            (self.callbacks.changed)();
        }
        again || rounds.gone_suspected || starved > 0 || rounds.waiting_since.is_some()
    }

    /// Takes sockets that tiny_http has let go of off the watch, and off the book.
    fn strike(&self, watched: &mut SocketTable, sighting: &FdScan, rounds: &mut Rounds) {
        let now = Instant::now();
        let SocketTable { by_cookie, own, lost, .. } = watched;
        by_cookie.retain(|cookie, watch| {
            let held = sighting.cookies.contains(cookie);
            let given_up = held
                && matches!(watch.connection.snapshot(), snapshot if !snapshot.busy
                    && matches!(snapshot.fate, ConnState::Aborted { since } | ConnState::ReadShut { since }
                        if now - since > LETTING_GO));
            if given_up {
                lost.insert(*cookie);
                let total = self.connections.counts.leaked.fetch_add(1, Ordering::Relaxed) + 1;
                log::debug!("tiny_http does not let go of the connection of {} ({total} lost)", watch.connection.peer);
                rounds.lost = total;
            }
            if held && !given_up {
                return true;
            }
            own.remove(&watch.socket.as_raw_fd());
            self.connections.forget(&watch.connection);
            false
        });
        if rounds.lost >= self.limits.leak_limit && rounds.warn_leak.is_first() {
            (self.callbacks.leaking)(rounds.lost, self.limits.leak_limit);
        }
    }

    /// What the bytes of a socket tell: whether it is starved, or sends a head without end. True to look again soon.
    fn look_at_bytes(&self, watch: &mut WatchedSocket, starved: &mut usize) -> bool {
        let Ok(facts) = tcp_info(&*watch.socket) else { return false };
        let waiting = unread(&watch.socket);
        // The end of the stream counts as one byte received.
        let untouched = waiting > 0 && facts.bytes_received <= waiting + 1;
        if untouched && std::mem::replace(&mut watch.starving, true) {
            *starved += 1;
        } else if !untouched {
            watch.starving = false;
        }
        // Also while a request is in flight: tiny_http reads the next head meanwhile, and lines of a chunked body that
        // may be as endless.
        let progress = watch.connection.progress();
        let taken = facts.bytes_received.saturating_sub(waiting);
        let seen = Seen { taken, arrived: progress, requests: watch.connection.requests() };
        watch.flow.look(seen, self.connections.is_all_taken_in());
        if std::mem::replace(&mut watch.progress, progress) != progress {
            watch.mark = taken;
        } else if taken.saturating_sub(watch.mark) > LONGEST_HEAD && watch.connection.snapshot().fate == ConnState::Open
        {
            self.end(watch, CloseReason::HeadTooLarge);
        }
        watch.starving
    }

    /// What the clock tells. True if tiny_http may have let go of the socket by now.
    fn look_at_time(&self, watch: &mut WatchedSocket, now: Instant, draining: bool) -> bool {
        let snapshot = watch.connection.snapshot();
        let age = now.saturating_duration_since(snapshot.since);
        let limits = &self.limits;
        match snapshot.fate {
            ConnState::Aborted { .. } => return true,
            ConnState::ReadShut { .. } if !snapshot.busy => return true,
            ConnState::Closing { since } => {
                let patience = if draining { limits.keepalive_min } else { PARTING };
                let idle = unread(&watch.socket) == 0;
                if now - since > patience && (idle || now - since > PARTING) {
                    watch.connection.shut_down(Shutdown::Both);
                }
                return true;
            }
            ConnState::ReadShut { .. } | ConnState::Open => {}
        }
        if snapshot.busy {
            // First the rest of the body is cut off, so that there is time to say so; then everything. At rest, two looks
            // are that far apart.
            let notice = (limits.request_timeout / 4).min(2 * REST);
            if age >= limits.request_timeout {
                self.end(watch, CloseReason::RequestTimeout);
            } else if age >= limits.request_timeout.saturating_sub(notice) && !std::mem::replace(&mut watch.told, true)
            {
                watch.connection.expire_body();
            }
            return false;
        }
        watch.told = false;
        if draining && self.has_nothing_to_say(watch, age) {
            self.connections.count_close(CloseReason::Drain);
            watch.connection.shutdown_read();
            return true;
        }
        if age >= limits.idle_timeout {
            self.end(watch, CloseReason::IdleTimeout);
            return true;
        }
        let Ok(facts) = tcp_info(&*watch.socket) else { return true };
        if facts.close_wait && age >= LETTING_GO && unread(&watch.socket) == 0 {
            // tiny_http has read the end and is still there: it waits for something that never comes.
            watch.connection.shut_down(Shutdown::Both);
        }
        facts.closed
    }

    /// Whether an idle connection may be closed in a drain: it has been silent for as long as the drain lingers, and no
    /// byte of it is unread. A client that is in the middle of a request has as long again.
    fn has_nothing_to_say(&self, watch: &WatchedSocket, age: Duration) -> bool {
        let Ok(facts) = tcp_info(&*watch.socket) else { return true };
        let quiet = Duration::from_millis(u64::from(facts.ms_since_data)).min(age);
        let (keepalive_min, drained) = match watch.was_deaf {
            Some(since) => (self.limits.keepalive_min.max(SAID_AGAIN), since.elapsed()),
            None => {
                (self.limits.keepalive_min, self.stop_state.announced().map_or(Duration::ZERO, |began| began.elapsed()))
            }
        };
        unread(&watch.socket) == 0
            && drained >= keepalive_min
            && age >= keepalive_min // since its last response, or since it was opened
            && (quiet >= keepalive_min || facts.bytes_received <= watch.mark || drained >= keepalive_min * 20)
    }

    fn end(&self, watch: &WatchedSocket, why: CloseReason) {
        self.connections.count_close(why);
        log::debug!("{} is closed: {why:?}", watch.connection.peer);
        watch.connection.shut_down(Shutdown::Both);
    }

    /// Makes tiny_http start as many threads as connections were found without one.
    fn rescue(&self, starved: usize) {
        for _ in 0..starved.min(MOST_RESCUES) {
            match self.gate.knock() {
                Ok(()) => {
                    self.connections.counts.unstarved.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => {
                    if self.warn_no_knock.is_first() {
                        log::warn!("cannot connect to own port ({error}): connections may hang after bursts");
                    }
                    return;
                }
            }
        }
    }

    /// Drops requests whose clients have left, or had the time to. True if some are still there.
    fn look_at_partings(&self, now: Instant, draining: bool) -> bool {
        let patience = if draining { self.limits.keepalive_min } else { PARTING };
        let mut partings = lock(&self.partings);
        let mut over = Vec::new();
        let mut at = 0;
        while at < partings.len() {
            let parting = &partings[at];
            let left = parting.socket.as_ref().is_none_or(|socket| tcp_info(&**socket).is_ok_and(|facts| facts.closed));
            if left || now - parting.since > patience {
                over.push(partings.swap_remove(at));
            } else {
                at += 1;
            }
        }
        let again = !partings.is_empty();
        drop(partings);
        for parting in over {
            parting.drop_it();
        }
        again
    }

    /// Whether tiny_http still accepts.
    fn look_at_engine(&self, now: Instant, found: usize, rounds: &mut Rounds) {
        let waiting = self.gate.accept_queue_len() > 0;
        if !waiting || found > 0 {
            rounds.waiting_since = waiting.then_some(now);
            return;
        }
        let since = *rounds.waiting_since.get_or_insert(now);
        if now - since >= ACCEPTS_WITHIN {
            rounds.waiting_since = Some(now);
            self.engine_is_dead.store(true, Ordering::Release);
            if let Some(act) = &*lock(&self.on_dead_engine) {
                act();
            }
        }
    }

    /// Sends the idlest connections away when there are too many; closes the gate while that is not enough.
    fn keep_within_limits(&self, now: Instant, rounds: &mut Rounds) {
        if self.stop_state.accept_stopped().is_some() {
            return;
        }
        let most = self.limits.max_connections;
        let wanted = self.room_wanted.swap(false, Ordering::AcqRel) || rounds.exhausted;
        if self.connections.connections() <= most && !wanted && !rounds.short && !self.gate.is_closed() {
            return;
        }
        let all: Vec<_> =
            self.connections.all().into_iter().map(|connection| (connection.snapshot(), connection)).collect();
        let open = all.iter().filter(|(snapshot, _)| snapshot.fate == ConnState::Open).count();
        // Behind a closed gate somebody may wait: idle ones make room for as many as it opens for, lest it flutter.
        let room = most - most / 8;
        let mut excess = open.saturating_sub(if self.gate.is_closed() { room } else { most });
        if wanted && rounds.next_eviction.is_none_or(|next| now >= next) {
            rounds.next_eviction = Some(now + REST / 2);
            excess = excess.max(open / 4 + 1);
        }
        let mut idle: Vec<_> = all
            .iter()
            .filter(|(snapshot, connection)| {
                let speaks = || connection.socket().is_none_or(|socket| unread(&socket) > 0);
                excess > 0 && !snapshot.busy && snapshot.fate == ConnState::Open && !speaks()
            })
            .collect();
        idle.sort_by_key(|(snapshot, _)| snapshot.since);
        for (_, connection) in idle.iter().take(excess) {
            self.connections.count_close(CloseReason::Evicted);
            connection.shut_down(Shutdown::Both);
        }
        // All in flight, or tiny_http does not let go: then nobody else comes in.
        let left = all.len() - idle.len().min(excess);
        let result = if left > most || rounds.short || wanted {
            self.gate.close()
        } else if left <= room {
            self.gate.open()
        } else {
            Ok(())
        };
        if let Err(error) = result {
            log::debug!("cannot open or close the accept gate: {error}");
        }
    }

    /// Whether nobody is on the way in, so that the look at the descriptors which follows misses nobody: looks go in the
    /// direction in which connections do. First the handshakes, then the queue; and between the queue and a descriptor
    /// is nobody, if tiny_http has accepted a knock of ours since: it accepts one after the other.
    fn is_nobody_at_the_gate(&self, rounds: &Rounds) -> bool {
        let Some(knocked) = rounds.knocked else { return false };
        let finishing = self.stop_state.accept_stopped().map_or(Duration::ZERO, |since| since.elapsed());
        finishing >= rounds.farthest.unwrap_or_default()
            // If knocks do not come through, a rule is against them, or tiny_http is dead: then time must do.
            && (self.gate.accept_queue_len() == 0 || knocked.elapsed() >= HANDSHAKE)
    }

    /// Whether a drain has nothing left to wait for. See [`drain`](crate::lifecycle::drain) for the argument.
    fn is_quiet(&self, nobody_at_the_gate: bool, rounds: &mut Rounds) -> bool {
        let quiet = self.connections.in_flight() == 0
            && lock(&self.watched).by_cookie.is_empty()
            && lock(&self.partings).is_empty();
        if !quiet {
            rounds.knocked = None;
        } else if rounds.knocked.is_none() {
            rounds.knocked = Some(Instant::now());
            let _ = self.gate.knock(); // refused, two looks must do
        } else {
            return nobody_at_the_gate;
        }
        false
    }
}

/// Rings when a connection comes, by SIGIO: signal-hook's handler writes a byte into a pipe.
struct AcceptSignal {
    rings: UnixStream,
    handler: SigId,
}

#[allow(clippy::unused_self, reason = "only who has a bell may hang it: SIGIO without its handler ends the process")]
impl AcceptSignal {
    fn new() -> io::Result<AcceptSignal> {
        let (rings, striker) = UnixStream::pair()?;
        rings.set_nonblocking(true)?;
        Ok(AcceptSignal { rings, handler: pipe::register(SIGIO, striker)? })
    }

    fn hang(&self, listener: &TcpListener) {
        // Refused, a silent client that is the only one is noticed when the next one speaks.
        let _ = set_sigio(listener, true);
    }

    fn hang_up(&self, listener: &TcpListener) {
        let _ = set_sigio(listener, false); // as above
    }

    fn has_rung(&self) -> bool {
        let mut rings = [0; 64];
        (&self.rings).read(&mut rings).is_ok_and(|n| n > 0)
    }
}

impl Drop for AcceptSignal {
    fn drop(&mut self) {
        signal_hook::low_level::unregister(self.handler);
    }
}

/// What the keeper remembers from one look to the next.
#[derive(Default)]
struct Rounds {
    next_round: Option<Instant>,
    next_eviction: Option<Instant>,
    brisk_until: Option<Instant>,
    short: bool,
    flood: Flood,
    /// When there were many connections for the last time, if memory was not given back since.
    crowd: Option<Instant>,
    /// The bell is hung: a new connection rings it.
    belled: bool,
    woken: bool,
    expects_newcomers: bool,
    gone_suspected: bool,
    exhausted: bool,
    waiting_since: Option<Instant>,
    /// How long the way to the farthest client and back took, of those that were connected when the gate was closed.
    farthest: Option<Duration>,
    /// The stop of which the two below tell.
    stop: Option<u64>,
    /// When the last knock of a drain was; none if it has not been quiet since.
    knocked: Option<Instant>,
    lost: u64,
    warn_leak: WarnOnce,
}
