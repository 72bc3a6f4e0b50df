//! The parts of a receiver that others may touch: its counters, and the box in which it finds what they bring.
//!
//! Workers bring connections whose response is out, other receivers bring new ones; both push and never wait for the
//! receiver, which alone takes out. A receiver that is awake is not woken.

use std::cell::Cell;
use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};

use super::common::Common;
use crate::engine::Peer;
use crate::sync::lock;

/// One receiver, as others see it. Its connections, `C`, know it in turn.
pub(super) struct Mailbox<C> {
    pub(super) common: Arc<Common>,
    /// In the receiver's epoll set, edge-triggered: written to wake it, never read.
    pub(super) wake: OwnedFd,
    /// The receiver waits for events, or is about to.
    sleeping: AtomicBool,
    /// There is something to look at beside events.
    attention: AtomicBool,
    /// None once the receiver has ended: what is brought then is dropped.
    returned: Mutex<Option<Vec<(u32, C)>>>,
    /// As above.
    new: Mutex<Option<Vec<(OwnedFd, Peer)>>>,
    in_flight: Mutex<HashMap<u32, Flight>>,
    /// Requests in flight; the receiver alone counts.
    busy: AtomicUsize,
    /// When the request began that the receiver answers at this moment: nanoseconds after the engine's epoch, 0 for none.
    answering: AtomicU64,
    /// Its connections, those in `new` included.
    pub(super) open: AtomicUsize,
    /// Of these, those whose last response was sent.
    pub(super) lingering: AtomicUsize,
    /// Since when its least recently used connection is idle: nanoseconds after the engine's epoch, `u64::MAX` if none is.
    oldest_idle: AtomicU64,
    /// Turns of its loop.
    pub(super) ticks: AtomicU64,
    /// The number of the stop in which nothing was left to accept when it looked last; 0 if something may be.
    pub(super) settled: AtomicU64,
}

/// A request that a worker has.
#[derive(Clone, Debug)]
pub(super) struct Flight {
    pub(super) request_line: String,
    pub(super) peer: Peer,
    pub(super) since: Instant,
}

thread_local! {
    /// The mailbox of the receiver whose thread this is: its address, which is only compared.
    static RECEIVER: Cell<usize> = const { Cell::new(0) };
}

impl<C> Mailbox<C> {
    /// Errors: no descriptor is left.
    pub(super) fn new(common: Arc<Common>) -> io::Result<Mailbox<C>> {
        Ok(Mailbox {
            common,
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            sleeping: AtomicBool::new(false),
            attention: AtomicBool::new(false),
            returned: Mutex::new(Some(Vec::new())),
            new: Mutex::new(Some(Vec::new())),
            in_flight: Mutex::default(),
            busy: AtomicUsize::new(0),
            answering: AtomicU64::new(0),
            open: AtomicUsize::new(0),
            lingering: AtomicUsize::new(0),
            oldest_idle: AtomicU64::new(u64::MAX),
            ticks: AtomicU64::new(0),
            settled: AtomicU64::new(0),
        })
    }

    /// Makes the calling thread this mailbox's receiver.
    pub(super) fn attach(&self) {
        RECEIVER.set(std::ptr::from_ref(self).addr());
    }

    /// Whether the calling thread is this mailbox's receiver, which must not block.
    pub(super) fn is_here(&self) -> bool {
        RECEIVER.get() == std::ptr::from_ref(self).addr()
    }

    /// Brings a connection back whose exchange is over, from another thread.
    pub(super) fn give_back(&self, slot: u32, connection: C) {
        if let Some(returned) = &mut *lock(&self.returned) {
            returned.push((slot, connection));
        } else {
            return self.close_late(slot, connection);
        }
        self.notify();
    }

    /// Closes a connection that comes back when the receiver has ended, and does its counting.
    fn close_late(&self, slot: u32, connection: C) {
        drop(connection);
        if lock(&self.in_flight).remove(&slot).is_some() {
            self.busy.fetch_sub(1, Ordering::AcqRel);
            self.open.fetch_sub(1, Ordering::SeqCst);
            self.common.open.fetch_sub(1, Ordering::SeqCst);
        }
        (self.common.events.changed)();
    }

    /// Brings a connection that another receiver has accepted.
    pub(super) fn give_new(&self, socket: OwnedFd, peer: Peer) {
        self.open.fetch_add(1, Ordering::SeqCst);
        if let Some(new) = &mut *lock(&self.new) {
            new.push((socket, peer));
        }
        self.notify();
    }

    pub(super) fn take_returned(&self) -> Vec<(u32, C)> {
        lock(&self.returned).as_mut().map(std::mem::take).unwrap_or_default()
    }

    pub(super) fn take_new(&self) -> Vec<(OwnedFd, Peer)> {
        lock(&self.new).as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Has the receiver look at everything soon.
    pub(super) fn notify(&self) {
        // In this order, and the receiver looks in the other: one of the two sees what the other has written.
        self.attention.store(true, Ordering::SeqCst);
        if self.sleeping.swap(false, Ordering::SeqCst) {
            let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes()); // full means that it has been woken already
        }
    }

    /// The receiver is about to wait; false if it must not, because something was brought.
    pub(super) fn may_sleep(&self) -> bool {
        self.sleeping.store(true, Ordering::SeqCst);
        !self.attention.load(Ordering::SeqCst)
    }

    /// The receiver is awake; true if something was brought.
    pub(super) fn woke_up(&self) -> bool {
        self.sleeping.store(false, Ordering::Relaxed);
        self.attention.load(Ordering::Relaxed) && self.attention.swap(false, Ordering::SeqCst)
    }

    fn nanoseconds(&self, moment: Instant) -> u64 {
        u64::try_from(moment.saturating_duration_since(self.common.epoch).as_nanos()).unwrap_or(u64::MAX)
    }

    /// Says since when the least recently used connection is idle.
    pub(super) fn set_oldest_idle(&self, since: Option<Instant>) {
        self.oldest_idle.store(since.map_or(u64::MAX, |since| self.nanoseconds(since)), Ordering::Relaxed);
    }

    /// The same, as a number that orders receivers; none if no connection is idle.
    pub(super) fn oldest_idle(&self) -> Option<u64> {
        Some(self.oldest_idle.load(Ordering::Relaxed)).filter(|since| *since != u64::MAX)
    }

    /// The receiver begins to answer a request. It alone calls this and the three that follow: so a store suffices.
    pub(super) fn begin_request(&self, now: Instant) {
        self.answering.store(self.nanoseconds(now).max(1), Ordering::Release);
        self.busy.store(self.busy.load(Ordering::Relaxed) + 1, Ordering::Release);
    }

    /// The receiver has answered it.
    pub(super) fn end_request(&self) {
        self.busy.store(self.busy.load(Ordering::Relaxed).saturating_sub(1), Ordering::Release);
        self.answering.store(0, Ordering::Release);
    }

    /// A worker has it, and the connection of this slot.
    pub(super) fn went_away(&self, slot: u32, flight: Flight) {
        lock(&self.in_flight).insert(slot, flight);
        self.answering.store(0, Ordering::Release);
    }

    /// A worker has answered the request of this slot.
    pub(super) fn came_back(&self, slot: u32) {
        lock(&self.in_flight).remove(&slot);
        self.busy.store(self.busy.load(Ordering::Relaxed).saturating_sub(1), Ordering::Release);
    }

    /// When the request began that the receiver answers at this moment.
    pub(super) fn answering_since(&self) -> Option<Instant> {
        match self.answering.load(Ordering::Acquire) {
            0 => None,
            nanoseconds => self.common.epoch.checked_add(Duration::from_nanos(nanoseconds)),
        }
    }

    /// Requests in flight.
    pub(super) fn in_flight(&self) -> usize {
        self.busy.load(Ordering::Acquire)
    }

    /// The requests that workers have.
    pub(super) fn flights(&self) -> Vec<Flight> {
        lock(&self.in_flight).values().cloned().collect()
    }

    /// The request that a worker has at this slot.
    pub(super) fn flight(&self, slot: u32) -> Option<Flight> {
        lock(&self.in_flight).get(&slot).cloned()
    }

    /// Whether the receiver's thread is over.
    pub(super) fn has_ended(&self) -> bool {
        lock(&self.new).is_none()
    }

    /// The receiver's thread is over, and its connections are closed with it: those that workers have stay until they are
    /// brought back.
    pub(super) fn end(&self) {
        drop(lock(&self.new).take());
        let returned = lock(&self.returned).take().unwrap_or_default();
        let mut in_flight = lock(&self.in_flight);
        for (slot, _) in &returned {
            in_flight.remove(slot);
        }
        self.busy.store(in_flight.len(), Ordering::Release);
        self.answering.store(0, Ordering::Release);
        let closed = self.open.swap(in_flight.len(), Ordering::SeqCst).saturating_sub(in_flight.len());
        self.common.open.fetch_sub(closed, Ordering::SeqCst);
    }
}
