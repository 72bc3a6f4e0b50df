//! The keeper of the connection book: the thread that looks at every socket that tiny_http holds, and acts on what it
//! sees. No client decides when it wakes up, and no request waits for it.
//!
//! tiny_http shows no sockets, has no timeouts, loses connections in its own thread pool, and dies when descriptors run
//! out. So the keeper finds the sockets itself (see [`descriptors`](crate::descriptors)), holds a duplicate of each, and
//!
//! * ends what takes too long: idle connections, endless heads, requests beyond the request timeout;
//! * rescues connections that tiny_http has accepted and then left without a thread: bytes wait, none was ever read,
//!   for two looks in a row. One short connection to our own port makes tiny_http start a thread, which then takes the
//!   one that was left;
//! * keeps the number of connections within its limit: the idlest go, and while none can go the gate is closed;
//! * notices that tiny_http has stopped accepting, and has it started anew;
//! * drops the requests whose bodies nobody read, once their clients have left;
//! * counts what tiny_http has lost for good;
//! * holds back clients that send faster than anybody takes it in (see [`flood`](crate::flood));
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
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, epoll, eventfd};
use signal_hook::SigId;
use signal_hook::consts::SIGIO;
use signal_hook::low_level::pipe;
use socket2::SockRef;

use crate::book::{Book, Ended, Fate, Page, unread};
use crate::crew::{Ask, Stopper};
use crate::descriptors::{self, Sighting, ignore_arrivals, ignores_arrivals, signal_this_thread, tcp_facts};
use crate::flood::{self, Flood, Flow, Seen};
use crate::gate::Gate;
use crate::http::leftover;
use crate::http::rules;
use crate::memory;
use crate::phase::{Current, Phase};

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
const LONGEST_HEAD: u64 = 2 * (rules::LONGEST_TARGET + rules::LONGEST_HEADERS) as u64;
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

/// Times and limits that the keeper enforces.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) max_connections: usize,
    pub(crate) idle_timeout: Duration,
    pub(crate) request_timeout: Duration,
    pub(crate) linger: Duration,
    /// So many connections lost by tiny_http make it worn.
    pub(crate) worn_at: u64,
}

/// The keeper, shared by its own thread and by those who need a look at once.
pub(crate) struct Keeper {
    book: Arc<Book>,
    gate: Arc<Gate>,
    phase: Arc<Current>,
    limits: Limits,
    stopper: Stopper,
    /// All watched sockets, and the listening one.
    events: OwnedFd,
    wake: OwnedFd,
    stopping: AtomicBool,
    /// A drain has nothing left to wait for.
    quiet: AtomicBool,
    /// Whether the keeper waits for longer than a tick.
    resting: AtomicBool,
    /// Set for the listener: tiny_http does not accept any more.
    pub(crate) engine_is_dead: AtomicBool,
    on_dead_engine: Mutex<Option<Box<dyn Fn() + Send>>>,
    watched: Mutex<Watched>,
    partings: Mutex<Vec<Parting>>,
    /// Milliseconds since the keeper began, at its last look: for a watchdog.
    pub(crate) looks: AtomicU64,
    said_no_knock: AtomicBool,
    /// Connections must go, so that tiny_http can be started anew.
    room_wanted: AtomicBool,
}

#[derive(Default)]
struct Watched {
    by_cookie: HashMap<u64, Watch>,
    /// The numbers of our own duplicates.
    own: HashSet<RawFd>,
    /// Sockets that tiny_http will never let go of.
    lost: HashSet<u64>,
    /// When a successor was last searched in vain.
    searched: Option<Instant>,
}

/// One socket under watch.
struct Watch {
    page: Arc<Page>,
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
struct Parting {
    since: Instant,
    socket: Option<Arc<OwnedFd>>,
    request: tiny_http::Request,
    left: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The key of the listening socket's events; no socket has this cookie (the kernel counts from 1).
const LISTENER: u64 = 0;

impl Parting {
    fn drop_it(self) {
        if let Some(socket) = &self.socket {
            let _ = SockRef::from(&**socket).shutdown(Shutdown::Read); // fails if the peer has left
        }
        leftover::drop_unread(self.request, self.left);
    }
}

impl Keeper {
    /// # Errors
    ///
    /// No descriptor is left.
    pub(crate) fn new(
        book: Arc<Book>,
        gate: Arc<Gate>,
        phase: Arc<Current>,
        limits: Limits,
        stopper: Stopper,
    ) -> io::Result<Keeper> {
        let events = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let edge = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&events, gate.listener(), epoll::EventData::new_u64(LISTENER), edge)?;
        Ok(Keeper {
            book,
            gate,
            phase,
            limits,
            stopper,
            events,
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            stopping: AtomicBool::new(false),
            quiet: AtomicBool::new(false),
            resting: AtomicBool::new(false),
            engine_is_dead: AtomicBool::new(false),
            on_dead_engine: Mutex::new(None),
            watched: Mutex::new(Watched::default()),
            partings: Mutex::new(Vec::new()),
            looks: AtomicU64::new(0),
            said_no_knock: AtomicBool::new(false),
            room_wanted: AtomicBool::new(false),
        })
    }

    /// What to do when tiny_http does not accept any more.
    pub(crate) fn on_dead_engine(&self, act: impl Fn() + Send + 'static) {
        *lock(&self.on_dead_engine) = Some(Box::new(act));
    }

    /// Whether a drain has nothing left to wait for.
    pub(crate) fn has_come_to_rest(&self) -> bool {
        self.quiet.load(Ordering::Acquire)
    }

    /// Has the keeper look soon.
    pub(crate) fn wake(&self) {
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes()); // full means that it is awake already
    }

    /// Has the keeper look soon, if it would not look within a tick anyway.
    pub(crate) fn wake_if_resting(&self) {
        if self.resting.swap(false, Ordering::AcqRel) {
            self.wake();
        }
    }

    /// Has the idlest connections leave, for the sake of what they hold.
    pub(crate) fn make_room(&self) {
        self.room_wanted.store(true, Ordering::Release);
        self.wake();
    }

    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.wake();
    }

    /// Keeps `request` until its client has left, or has had the time to.
    pub(crate) fn part_with(&self, socket: Arc<OwnedFd>, request: tiny_http::Request, left: Option<u64>) {
        let left = left.unwrap_or(0); // of a chunked body nothing is counted, and its drop reads nothing
        lock(&self.partings).push(Parting { since: Instant::now(), socket: Some(socket), request, left });
        self.wake();
    }

    /// Finds sockets that are not under watch yet. For those who cannot wait for the next tick.
    pub(crate) fn look_now(&self) {
        self.look_through(&mut lock(&self.watched));
    }

    /// Whether a page has a successor: another connection of the same peer. Seldom asked in vain, lest those who send much
    /// to connections that are over make everybody wait.
    pub(crate) fn finds_successor(&self, page: &Arc<Page>) -> bool {
        const SELDOM: Duration = Duration::from_millis(10); // a look takes one at most, with a thousand connections
        let mut watched = lock(&self.watched);
        if watched.searched.is_some_and(|searched| searched.elapsed() < SELDOM) {
            return false;
        }
        self.look_through(&mut watched);
        let found = self.book.page(page.peer).is_some_and(|other| !Arc::ptr_eq(&other, page));
        watched.searched = (!found).then(Instant::now);
        found
    }

    fn look_through(&self, watched: &mut Watched) -> Sighting {
        let mut sighting = descriptors::look(
            self.gate.address(),
            |number| watched.own.contains(&number),
            |cookie| watched.by_cookie.contains_key(&cookie) || watched.lost.contains(&cookie),
        );
        let behind_the_gate = self.gate.is_closed();
        for found in sighting.found.drain(..) {
            // A handshake that ended just behind the gate: what the client said since was ignored, and comes again.
            let was_deaf = behind_the_gate && ignores_arrivals(&found.socket);
            if was_deaf {
                let _ = ignore_arrivals(&found.socket, false); // it took the same option before
            }
            let was_deaf = was_deaf.then(Instant::now);
            let cookie = found.cookie;
            let (page, socket) = self.book.adopt(found);
            let flags = epoll::EventFlags::IN | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
            // Fails only for want of memory; then this socket has no events, and the timeouts still hold.
            let _ = epoll::add(&self.events, &*socket, epoll::EventData::new_u64(cookie), flags);
            watched.own.insert(socket.as_raw_fd());
            let watch = Watch {
                page,
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
        memory::keep_little();
        let bell = Bell::new()?;
        let mut rounds = Rounds::default();
        let mut awake = true;
        while !self.stopping.load(Ordering::Acquire) {
            let brisk = rounds.brisk_until.is_some_and(|until| Instant::now() < until);
            let woken = self.wait(awake, brisk, &bell, &mut rounds)?;
            let active = self.collect()?;
            if self.phase.get() >= Phase::Finishing && (woken || !active.is_empty() || rounds.brisk_until.is_none()) {
                rounds.brisk_until = Some(Instant::now() + BRISK);
            }
            rounds.woken = woken;
            awake = self.look(&active, &mut rounds) || !active.is_empty() || woken;
            self.looks.store(u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
        bell.hang_up(self.gate.listener());
        // The kernel would go on ignoring that their clients have left, long after we have.
        for watch in lock(&self.watched).by_cookie.values() {
            watch.page.release();
        }
        // Nobody else drops these.
        for parting in lock(&self.partings).drain(..) {
            parting.drop_it();
        }
        Ok(())
    }

    /// Waits for the next tick, or, when all is quiet, for something to happen. True if somebody woke us.
    fn wait(&self, awake: bool, brisk: bool, bell: &Bell, rounds: &mut Rounds) -> io::Result<bool> {
        let ticking = awake || self.phase.get() >= Phase::Finishing;
        let limit = match (brisk, ticking) {
            (true, _) => Some(DRAIN_TICK),
            (false, true) if rounds.flood.is_on() => Some(FLOOD_TICK),
            (false, true) => Some(TICK),
            (false, false) if self.book.connections() > 0 || self.gate.is_closed() || rounds.crowd.is_some() => {
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
            memory::give_back();
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
        let draining = self.phase.get() >= Phase::Finishing;
        let mut watched = lock(&self.watched);
        let mut again = false;

        if watched.by_cookie.len() > CROWD {
            rounds.crowd = Some(now);
        }
        if draining && rounds.farthest.is_none() {
            let way = |watch: &Watch| tcp_facts(&*watch.socket).map_or(Duration::ZERO, |facts| facts.round_trip);
            rounds.farthest = Some(watched.by_cookie.values().map(way).max().unwrap_or_default().min(HANDSHAKE));
        }
        let nobody_at_the_gate = draining && self.is_nobody_at_the_gate(rounds);
        let found_before = watched.by_cookie.len();
        let due = draining || rounds.next_round.is_none_or(|next| now >= next);
        if due {
            rounds.next_round = Some(now + REST);
        }
        // The event of a new connection comes before anybody has accepted it: hence once more at the next tick.
        let newcomers = active.contains(&LISTENER) || self.gate.unaccepted() > 0;
        let expected = std::mem::replace(&mut rounds.expects_newcomers, newcomers || rounds.woken);
        let look_through = due || newcomers || expected || rounds.woken || rounds.gone_suspected || rounds.exhausted;
        again |= newcomers;
        let sighting = look_through.then(|| self.look_through(&mut watched));
        let found = watched.by_cookie.len() - found_before;
        if let Some(sighting) = &sighting {
            rounds.exhausted = sighting.exhausted;
            rounds.short = descriptors::are_short(sighting.in_use);
            self.strike(&mut watched, sighting, rounds);
        }
        rounds.gone_suspected = false;
        if sighting.is_some() && !rounds.exhausted {
            // Whoever is there was found by this look; a page that it left without a socket is of one who has gone.
            self.book.forget_gone(now.checked_sub(TICK).unwrap_or(now));
        }
        let mut starved = 0;
        for (cookie, watch) in &mut watched.by_cookie {
            if active.contains(cookie) || watch.starving || watch.flow.is_moving() {
                again |= self.look_at_bytes(watch, &mut starved);
            }
        }
        let on_their_way = watched.by_cookie.values().map(|watch| watch.flow.requests()).sum();
        let flood = rounds.flood.goes_on(now, on_their_way);
        self.book.set_flood(flood);
        for (cookie, watch) in &mut watched.by_cookie {
            let is_active = active.contains(cookie);
            if flood && watch.flow.is_too_much() {
                watch.page.hold(&self.book.counts);
            }
            if due && watch.flow.is_to_be_heeded(watch.page.is_held(), now, draining) {
                watch.page.release();
            }
            if is_active || due {
                rounds.gone_suspected |= self.look_at_time(watch, now, draining);
            }
        }
        if flood {
            flood::let_in(
                watched.by_cookie.values_mut().map(|watch| (&mut watch.flow, &*watch.page)),
                now,
                on_their_way,
            );
        }
        drop(watched);
        self.rescue(starved);
        again |= self.look_at_partings(now, draining);
        self.look_at_engine(now, found, rounds);
        self.keep_within_limits(now, rounds);
        if rounds.woken && self.phase.get() == Phase::DrainDelay && !self.book.has_older(&self.phase) {
            self.stopper.nudge();
        }
        if draining && self.is_quiet(nobody_at_the_gate, rounds) {
            self.quiet.store(true, Ordering::Release);
            self.stopper.nudge();
        }
        again || rounds.gone_suspected || starved > 0 || rounds.waiting_since.is_some()
    }

    /// Takes sockets that tiny_http has let go of off the watch, and off the book.
    fn strike(&self, watched: &mut Watched, sighting: &Sighting, rounds: &mut Rounds) {
        let now = Instant::now();
        let Watched { by_cookie, own, lost, .. } = watched;
        by_cookie.retain(|cookie, watch| {
            let held = sighting.cookies.contains(cookie);
            let given_up = held
                && matches!(watch.page.glance(), glance if !glance.busy
                    && matches!(glance.fate, Fate::Ended { since } | Fate::HeardOut { since }
                        if now - since > LETTING_GO));
            if given_up {
                lost.insert(*cookie);
                let total = self.book.counts.leaked.fetch_add(1, Ordering::Relaxed) + 1;
                log::debug!("tiny_http does not let go of the connection of {} ({total} lost)", watch.page.peer);
                rounds.lost = total;
            }
            if held && !given_up {
                return true;
            }
            own.remove(&watch.socket.as_raw_fd());
            self.book.forget(&watch.page);
            false
        });
        if rounds.lost >= self.limits.worn_at && !std::mem::replace(&mut rounds.said_worn, true) {
            self.stopper.ask(Ask::Worn(format!("tiny_http is worn: it has lost {} connections for good", rounds.lost)));
        }
    }

    /// What the bytes of a socket tell: whether it is starved, or sends a head without end. True to look again soon.
    fn look_at_bytes(&self, watch: &mut Watch, starved: &mut usize) -> bool {
        let Ok(facts) = tcp_facts(&*watch.socket) else { return false };
        let waiting = unread(&watch.socket);
        // The end of the stream counts as one byte received.
        let untouched = waiting > 0 && facts.received <= waiting + 1;
        if untouched && std::mem::replace(&mut watch.starving, true) {
            *starved += 1;
        } else if !untouched {
            watch.starving = false;
        }
        // Also while a request is in flight: tiny_http reads the next head meanwhile, and lines of a chunked body that
        // may be as endless.
        let progress = watch.page.progress();
        let taken = facts.received.saturating_sub(waiting);
        let seen = Seen { taken, arrived: progress, requests: watch.page.requests() };
        watch.flow.look(seen, self.book.is_all_taken_in());
        if std::mem::replace(&mut watch.progress, progress) != progress {
            watch.mark = taken;
        } else if taken.saturating_sub(watch.mark) > LONGEST_HEAD && watch.page.glance().fate == Fate::Open {
            self.end(watch, Ended::HeadTooLarge);
        }
        watch.starving
    }

    /// What the clock tells. True if tiny_http may have let go of the socket by now.
    fn look_at_time(&self, watch: &mut Watch, now: Instant, draining: bool) -> bool {
        let glance = watch.page.glance();
        let age = now.saturating_duration_since(glance.since);
        let limits = &self.limits;
        match glance.fate {
            Fate::Ended { .. } => return true,
            Fate::HeardOut { .. } if !glance.busy => return true,
            Fate::Closing { since } => {
                let patience = if draining { limits.linger } else { PARTING };
                let idle = unread(&watch.socket) == 0;
                if now - since > patience && (idle || now - since > PARTING) {
                    watch.page.shut_down(Shutdown::Both);
                }
                return true;
            }
            Fate::HeardOut { .. } | Fate::Open => {}
        }
        if glance.busy {
            // First the rest of the body is cut off, so that there is time to say so; then everything. At rest, two looks
            // are that far apart.
            let notice = (limits.request_timeout / 4).min(2 * REST);
            if age >= limits.request_timeout {
                self.end(watch, Ended::RequestTimeout);
            } else if age >= limits.request_timeout.saturating_sub(notice) && !std::mem::replace(&mut watch.told, true)
            {
                watch.page.end_input();
            }
            return false;
        }
        watch.told = false;
        if draining && self.has_nothing_to_say(watch, age) {
            self.book.count_ended(Ended::Draining);
            watch.page.hear_out();
            return true;
        }
        if age >= limits.idle_timeout {
            self.end(watch, Ended::Idle);
            return true;
        }
        let Ok(facts) = tcp_facts(&*watch.socket) else { return true };
        if facts.peer_left && age >= LETTING_GO && unread(&watch.socket) == 0 {
            // tiny_http has read the end and is still there: it waits for something that never comes.
            watch.page.shut_down(Shutdown::Both);
        }
        facts.closed
    }

    /// Whether an idle connection may be closed in a drain: it has been silent for as long as the drain lingers, and no
    /// byte of it is unread. A client that is in the middle of a request has as long again.
    fn has_nothing_to_say(&self, watch: &Watch, age: Duration) -> bool {
        let Ok(facts) = tcp_facts(&*watch.socket) else { return true };
        let quiet = Duration::from_millis(u64::from(facts.quiet_ms)).min(age);
        let (linger, drained) = match watch.was_deaf {
            Some(since) => (self.limits.linger.max(SAID_AGAIN), since.elapsed()),
            None => (self.limits.linger, self.phase.since_began()),
        };
        unread(&watch.socket) == 0
            && drained >= linger
            && age >= linger // since its last response, or since it was opened
            && (quiet >= linger || facts.received <= watch.mark || drained >= linger * 20)
    }

    fn end(&self, watch: &Watch, why: Ended) {
        self.book.count_ended(why);
        log::debug!("{} is closed: {why:?}", watch.page.peer);
        watch.page.shut_down(Shutdown::Both);
    }

    /// Makes tiny_http start as many threads as connections were found without one.
    fn rescue(&self, starved: usize) {
        for _ in 0..starved.min(MOST_RESCUES) {
            match self.gate.knock() {
                Ok(()) => {
                    self.book.counts.rescued.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => {
                    if !self.said_no_knock.swap(true, Ordering::Relaxed) {
                        log::warn!("cannot connect to itself, so that connections may starve in bursts: {error}");
                    }
                    return;
                }
            }
        }
    }

    /// Drops requests whose clients have left, or had the time to. True if some are still there.
    fn look_at_partings(&self, now: Instant, draining: bool) -> bool {
        let patience = if draining { self.limits.linger } else { PARTING };
        let mut partings = lock(&self.partings);
        let mut over = Vec::new();
        let mut at = 0;
        while at < partings.len() {
            let parting = &partings[at];
            let left =
                parting.socket.as_ref().is_none_or(|socket| tcp_facts(&**socket).is_ok_and(|facts| facts.closed));
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
        let waiting = self.gate.unaccepted() > 0;
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
        if self.phase.get() >= Phase::Finishing {
            return;
        }
        let most = self.limits.max_connections;
        let wanted = self.room_wanted.swap(false, Ordering::AcqRel) || rounds.exhausted;
        if self.book.connections() <= most && !wanted && !rounds.short && !self.gate.is_closed() {
            return;
        }
        let pages: Vec<_> = self.book.pages().into_iter().map(|page| (page.glance(), page)).collect();
        let open = pages.iter().filter(|(glance, _)| glance.fate == Fate::Open).count();
        // Behind a closed gate somebody may wait: idle ones make room for as many as it opens for, lest it flutter.
        let room = most - most / 8;
        let mut excess = open.saturating_sub(if self.gate.is_closed() { room } else { most });
        if wanted && rounds.next_eviction.is_none_or(|next| now >= next) {
            rounds.next_eviction = Some(now + REST / 2);
            excess = excess.max(open / 4 + 1);
        }
        let mut idle: Vec<_> = pages
            .iter()
            .filter(|(glance, page)| {
                let speaks = || page.socket().is_none_or(|socket| unread(&socket) > 0);
                excess > 0 && !glance.busy && glance.fate == Fate::Open && !speaks()
            })
            .collect();
        idle.sort_by_key(|(glance, _)| glance.since);
        for (_, page) in idle.iter().take(excess) {
            self.book.count_ended(Ended::Evicted);
            page.shut_down(Shutdown::Both);
        }
        // All in flight, or tiny_http does not let go: then nobody else comes in.
        let left = pages.len() - idle.len().min(excess);
        let result = if left > most || rounds.short || wanted {
            self.gate.close()
        } else if left <= room {
            self.gate.open()
        } else {
            Ok(())
        };
        if let Err(error) = result {
            log::debug!("the gate does not move: {error}");
        }
    }

    /// Whether nobody is on the way in, so that the look at the descriptors which follows misses nobody: looks go in the
    /// direction in which connections do. First the handshakes, then the queue; and between the queue and a descriptor
    /// is nobody, if tiny_http has accepted a knock of ours since: it accepts one after the other.
    fn is_nobody_at_the_gate(&self, rounds: &Rounds) -> bool {
        let Some(knocked) = rounds.knocked else { return false };
        let finishing = self.phase.since_finishing();
        finishing >= rounds.farthest.unwrap_or_default()
            // If knocks do not come through, a rule is against them, or tiny_http is dead: then time must do.
            && (self.gate.unaccepted() == 0 || knocked.elapsed() >= HANDSHAKE)
    }

    /// Whether a drain has nothing left to wait for. See [`drain`](crate::drain) for the argument.
    fn is_quiet(&self, nobody_at_the_gate: bool, rounds: &mut Rounds) -> bool {
        let quiet =
            self.book.in_flight() == 0 && lock(&self.watched).by_cookie.is_empty() && lock(&self.partings).is_empty();
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
struct Bell {
    rings: UnixStream,
    handler: SigId,
}

#[allow(clippy::unused_self, reason = "only who has a bell may hang it: SIGIO without its handler ends the process")]
impl Bell {
    fn new() -> io::Result<Bell> {
        let (rings, striker) = UnixStream::pair()?;
        rings.set_nonblocking(true)?;
        Ok(Bell { rings, handler: pipe::register(SIGIO, striker)? })
    }

    fn hang(&self, listener: &TcpListener) {
        // Refused, a silent client that is the only one is noticed when the next one speaks.
        let _ = signal_this_thread(listener, true);
    }

    fn hang_up(&self, listener: &TcpListener) {
        let _ = signal_this_thread(listener, false); // as above
    }

    fn has_rung(&self) -> bool {
        let mut rings = [0; 64];
        (&self.rings).read(&mut rings).is_ok_and(|n| n > 0)
    }
}

impl Drop for Bell {
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
    /// When the last knock of a drain was; none if it has not been quiet since.
    knocked: Option<Instant>,
    lost: u64,
    said_worn: bool,
}
