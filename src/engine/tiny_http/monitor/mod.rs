//! The monitor: a thread that watches every socket that tiny_http holds. No client decides when it wakes up, and no
//! request waits for it.
//!
//! tiny_http shows no sockets, has no timeouts, loses connections in its own thread pool, and dies when descriptors run
//! out. So the monitor finds the sockets itself (`sockets`, `reap`), holds a duplicate of each, and checks, at each tick:
//!
//! | file | check |
//! | --- | --- |
//! | `timeouts` | idle connections, requests beyond their time, clients that are gone; in a drain, idle connections |
//! | `lingering` | requests with unread bodies whose client has left |
//! | `starvation` | connections that tiny_http has accepted and left without a thread |
//! | `head_limit` | heads above the limit |
//! | [`throttle`](crate::engine::tiny_http::throttle) | clients that send faster than requests are received |
//! | `unparsable` | connections that tiny_http closes without a response |
//! | `leaks` | sockets that tiny_http never closes |
//! | `capacity` | the number of connections |
//! | `accept_health` | whether tiny_http accepts |
//! | `quiescence` | whether a drain has anything left to wait for |
//! | `heap` | memory to be returned after many connections |
//!
//! Each check is a function of observations and the time; `tick` observes and acts.
//!
//! # When it wakes up
//!
//! While requests arrive, or anything else happens, it ticks (`schedule`). When nothing has happened for a tick it sleeps
//! until something does, or until the next timeout may be due. With no connection open it does not wake up at all until
//! one arrives (`wakeup`).

mod accept_health;
mod capacity;
mod head_limit;
mod heap;
mod late_handler;
mod leaks;
mod lingering;
mod quiescence;
mod reap;
mod schedule;
mod sockets;
mod starvation;
mod tick;
mod timeouts;
mod unparsable;
mod wakeup;

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use crossbeam_channel::Receiver;
use rustix::event::{PollFd, PollFlags, Timespec};

use crate::engine::gate::AcceptGate;
use crate::engine::tiny_http::accept_point::AcceptPoint;
use crate::engine::tiny_http::connections::ConnectionTable;
use crate::engine::{Events, Settings, StopState};
use crate::sys::heap::trim;

use lingering::LingeringClose;
use schedule::{EARLY_TICK, Pace, Schedule, Sleep};
use sockets::SocketTable;
use tick::{Context, Happened, Memory};
use wakeup::{Command, Mailbox};

/// The monitor, as other threads see it.
pub(crate) struct Monitor {
    context: Context,
    mailbox: Mailbox,
    /// The number of the stop of accepting in which quiescence was reached; 0 before.
    quiescent: AtomicU64,
    /// Ticks so far.
    ticks: AtomicU64,
}

impl Monitor {
    /// Errors: no descriptor is left.
    pub(crate) fn new(
        connections: Arc<ConnectionTable>,
        gate: Arc<AcceptGate>,
        stop_state: Arc<StopState>,
        settings: Settings,
        events: Arc<Events>,
    ) -> io::Result<Monitor> {
        let mailbox = Mailbox::new()?;
        let wake = mailbox.wake_fd();
        let accept = Arc::new(AcceptPoint::new(Arc::clone(&gate), settings.max_connections, wake)?);
        let sockets = SocketTable::new(Arc::clone(&gate), Arc::clone(&accept), Arc::clone(&connections))?;
        let on_accept_stopped = OnceLock::new();
        Ok(Monitor {
            context: Context { sockets, connections, gate, accept, stop_state, settings, events, on_accept_stopped },
            mailbox,
            quiescent: AtomicU64::new(0),
            ticks: AtomicU64::new(0),
        })
    }

    /// Sets the callback that restarts tiny_http when its accept thread has ended. Must not block. Only the first call
    /// counts.
    pub(crate) fn on_accept_stalled(&self, restart: impl Fn() + Send + Sync + 'static) {
        let _ = self.context.on_accept_stopped.set(Box::new(restart));
    }

    pub(super) fn accept_point(&self) -> &AcceptPoint {
        &self.context.accept
    }

    /// Whether a drain has nothing left to wait for.
    pub(crate) fn is_quiescent(&self) -> bool {
        self.context.stop_state.stop_number().is_some_and(|stop| self.quiescent.load(Ordering::Acquire) == stop)
    }

    /// Ticks so far. A watchdog that wakes the monitor sees this grow.
    pub(crate) fn ticks(&self) -> u64 {
        self.ticks.load(Ordering::Relaxed)
    }

    /// Wakes the monitor for a tick.
    pub(crate) fn wake(&self) {
        self.mailbox.wake();
    }

    /// Records that a request has arrived; called for each. `new_connection`: its connection was unknown. Costs one
    /// load, except for the first request after a tick.
    pub(crate) fn note_request(&self, new_connection: bool) {
        self.mailbox.note_request(new_connection);
    }

    /// Requests the eviction of idle connections, because descriptors are short.
    pub(crate) fn request_eviction(&self) {
        let _ = self.mailbox.send(Command::Evict); // fails if the monitor has ended
    }

    /// Stops the monitor's thread.
    pub(crate) fn stop(&self) {
        let _ = self.mailbox.send(Command::Stop); // fails if the monitor has ended
    }

    /// Keeps `request` until its client has left, or has had the time to. `remaining` bytes of its body were not read.
    pub(crate) fn linger_until_closed(
        &self,
        socket: Arc<OwnedFd>,
        request: tiny_http::Request,
        remaining: Option<u64>,
    ) {
        let lingering = Box::new(LingeringClose::new(socket, request, remaining));
        if let Err(Command::Linger(lingering)) = self.mailbox.send(Command::Linger(lingering)) {
            lingering.discard();
        }
    }

    /// Scans for sockets that are not watched yet, on a thread that cannot wait for the next tick.
    pub(crate) fn scan_now(&self) {
        self.context.sockets.scan();
    }

    /// The socket of a request in flight from `peer`, if it is proven to be the request's own. Scans the table.
    pub(crate) fn prove_socket(&self, peer: SocketAddr) -> Option<Arc<OwnedFd>> {
        self.context.sockets.prove(peer)
    }

    /// Shuts down every socket of a peer, found by a scan.
    pub(crate) fn abort_peer(&self, peer: SocketAddr) {
        self.context.sockets.abort_peer(peer);
    }

    /// The monitor's thread.
    /// Errors: the system refuses to wait for events.
    pub(crate) fn run(&self) -> io::Result<()> {
        let Some(commands) = self.mailbox.open() else { return Ok(()) }; // it runs once
        let mut memory = Memory::default();
        let mut schedule = Schedule::default();
        let mut active = true;
        loop {
            let mut happened = self.sleep(active, &mut schedule, &mut memory)?;
            if take_commands(&commands, &mut memory) {
                break;
            }
            let arrived;
            (happened.active, arrived) = self.context.sockets.take_events()?;
            happened.connected |= arrived;
            if happened.connected {
                schedule.on_arrival(Instant::now());
            }
            let outcome = self.context.tick(&happened, &mut memory);
            active = outcome.again || happened.is_anything();
            if let Some(stop) = outcome.quiescent {
                self.quiescent.store(stop, Ordering::Release);
                (self.context.events.changed)();
            }
            self.ticks.fetch_add(1, Ordering::Relaxed);
        }
        self.context.accept.brake().end();
        memory.finish();
        Ok(())
    }

    /// Sleeps until the next tick. `active`: something happened at the last one, or must be checked again soon.
    fn sleep(&self, active: bool, schedule: &mut Schedule, memory: &mut Memory) -> io::Result<Happened> {
        let now = Instant::now();
        let brake = self.context.accept.brake();
        if memory.trim_timer.is_due(!active, now) {
            trim();
        }
        let mut pace = Pace {
            active,
            draining: self.context.stop_state.accept_stopped().is_some(),
            throttling: memory.throttle.is_active() || brake.is_on(),
            waiting: self.context.has_deadlines(memory),
        };
        let mut sleep = schedule.sleep(pace, now);
        let armed = brake.is_armed();
        if sleep == Sleep::UntilConnection && !armed {
            // Armed before one more scan, so that no connection arrives unnoticed between the two.
            brake.arm();
            return Ok(Happened { must_scan: true, ..Happened::default() });
        }
        if !self.mailbox.before_sleep(!matches!(sleep, Sleep::Tick(_))) {
            pace.active = true;
            sleep = schedule.sleep(pace, now);
        }
        self.poll(sleep)?;
        let connected = brake.disarm(armed);
        let (request, new_connection) = self.mailbox.after_sleep();
        Ok(Happened {
            woken: self.mailbox.was_woken(),
            request,
            connected: connected || new_connection,
            early: sleep == Sleep::Tick(EARLY_TICK),
            ..Happened::default()
        })
    }

    fn poll(&self, sleep: Sleep) -> io::Result<()> {
        let mut all = [PollFd::new(&self.mailbox, PollFlags::IN), PollFd::new(&self.context.sockets, PollFlags::IN)];
        let (wakers, limit) = match sleep {
            Sleep::Tick(limit) => (&mut all[..1], Some(limit)),
            Sleep::Idle(limit) => (&mut all[..], Some(limit)),
            Sleep::UntilConnection => (&mut all[..], None),
        };
        let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
        match rustix::event::poll(wakers, limit.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Takes all commands that have come. True if one of them is [`Command::Stop`].
fn take_commands(commands: &Receiver<Command>, memory: &mut Memory) -> bool {
    let mut stop = false;
    for command in commands.try_iter() {
        match command {
            Command::Evict => memory.capacity.request_eviction(),
            Command::Linger(lingering) => memory.lingering.add(*lingering),
            Command::Stop => stop = true,
        }
    }
    stop
}
