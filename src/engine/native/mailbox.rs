//! The part of a receiver that other threads share: its counters, and the connections that they bring to it.
//!
//! Workers bring back connections whose response was sent, other receivers bring new ones. Both push under a lock and
//! never wait for the receiver, the only one to take connections out. Only a receiver that sleeps is woken.

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

/// One receiver, as other threads see it. `C` is the type of its connections, which refer to it.
pub(super) struct Mailbox<C> {
    pub(super) common: Arc<Common>,
    /// In the receiver's epoll set, edge-triggered: written to wake it, never read.
    pub(super) wake: OwnedFd,
    /// The receiver waits for events, or is about to.
    sleeping: AtomicBool,
    /// There is something to do beside events.
    attention: AtomicBool,
    /// Connections whose exchange is over. `None` once the receiver has ended: those that are brought then are closed.
    returned: Mutex<Option<Vec<(u32, C)>>>,
    /// Connections that other receivers have accepted; `None` as above.
    new: Mutex<Option<Vec<(OwnedFd, Peer)>>>,
    in_flight: Mutex<HashMap<u32, Flight>>,
    /// Requests in flight; the receiver alone counts.
    busy: AtomicUsize,
    /// Start of the request that the receiver answers inline at this moment, in nanoseconds after the engine's epoch; 0
    /// for none.
    answering: AtomicU64,
    /// Its connections, those in `new` included.
    pub(super) open: AtomicUsize,
    /// Of these, those whose last response was sent.
    pub(super) lingering: AtomicUsize,
    /// When its least recently used connection became idle, in nanoseconds after the engine's epoch; `u64::MAX` if none
    /// is idle.
    oldest_idle: AtomicU64,
    /// Turns of its loop.
    pub(super) ticks: AtomicU64,
    /// The number of the stop in which the receiver is settled: nothing was left to accept at its last check. 0 if it
    /// is not.
    pub(super) settled: AtomicU64,
}

/// A request that a worker has, or whose response waits for its client.
#[derive(Clone, Debug)]
pub(super) struct Flight {
    pub(super) request_line: String,
    pub(super) peer: Peer,
    pub(super) since: Instant,
    /// Its receiver has answered it, and its client has not taken the whole response.
    pub(super) is_answered: bool,
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

    /// Brings back a connection whose exchange is over, from another thread.
    pub(super) fn give_back(&self, slot: u32, connection: C) {
        if let Some(returned) = &mut *lock(&self.returned) {
            returned.push((slot, connection));
        } else {
            return self.close_late(slot, connection);
        }
        self.notify();
    }

    /// Closes a connection that is brought back after the receiver has ended, and counts it in the receiver's place.
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

    /// Wakes the receiver, if it sleeps, to look at its mailbox.
    pub(super) fn notify(&self) {
        // In this order, while the receiver uses the opposite one: so at least one of the two threads sees what the
        // other has written.
        self.attention.store(true, Ordering::SeqCst);
        if self.sleeping.swap(false, Ordering::SeqCst) {
            let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes()); // full means that it has been woken already
        }
    }

    /// Announces that the receiver is about to wait. False if it must not, because something was brought.
    pub(super) fn may_sleep(&self) -> bool {
        self.sleeping.store(true, Ordering::SeqCst);
        !self.attention.load(Ordering::SeqCst)
    }

    /// Announces that the receiver is awake. True if something was brought.
    pub(super) fn woke_up(&self) -> bool {
        self.sleeping.store(false, Ordering::Relaxed);
        self.attention.load(Ordering::Relaxed) && self.attention.swap(false, Ordering::SeqCst)
    }

    fn nanoseconds(&self, moment: Instant) -> u64 {
        u64::try_from(moment.saturating_duration_since(self.common.epoch).as_nanos()).unwrap_or(u64::MAX)
    }

    /// Publishes when the least recently used connection became idle.
    pub(super) fn set_oldest_idle(&self, since: Option<Instant>) {
        self.oldest_idle.store(since.map_or(u64::MAX, |since| self.nanoseconds(since)), Ordering::Relaxed);
    }

    /// The same, as a number by which receivers are compared; `None` if no connection is idle.
    pub(super) fn oldest_idle(&self) -> Option<u64> {
        Some(self.oldest_idle.load(Ordering::Relaxed)).filter(|since| *since != u64::MAX)
    }

    /// Counts a request that the receiver begins to answer. The receiver alone calls this and the next three methods,
    /// so that a store suffices.
    pub(super) fn begin_request(&self, now: Instant) {
        self.answering.store(self.nanoseconds(now).max(1), Ordering::Release);
        self.busy.store(self.busy.load(Ordering::Relaxed) + 1, Ordering::Release);
    }

    /// Counts the end of a request that the receiver has answered.
    pub(super) fn end_request(&self) {
        self.busy.store(self.busy.load(Ordering::Relaxed).saturating_sub(1), Ordering::Release);
        self.answering.store(0, Ordering::Release);
    }

    /// Records that a worker has the request, and the connection of this slot.
    pub(super) fn begin_flight(&self, slot: u32, flight: Flight) {
        lock(&self.in_flight).insert(slot, flight);
        self.answering.store(0, Ordering::Release);
    }

    /// Counts the end of a request that a worker has answered, or whose response its client has taken or never will.
    pub(super) fn end_flight(&self, slot: u32) {
        lock(&self.in_flight).remove(&slot);
        self.busy.store(self.busy.load(Ordering::Relaxed).saturating_sub(1), Ordering::Release);
    }

    /// Start of the request that the receiver answers inline at this moment.
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

    /// Whether the receiver's thread has ended.
    pub(super) fn has_ended(&self) -> bool {
        lock(&self.new).is_none()
    }

    /// Records that the receiver's thread has ended, and its connections with it. Those that workers have stay until
    /// they are brought back.
    pub(super) fn end(&self) {
        drop(lock(&self.new).take());
        let returned = lock(&self.returned).take().unwrap_or_default();
        let mut in_flight = lock(&self.in_flight);
        for (slot, _) in &returned {
            in_flight.remove(slot);
        }
        in_flight.retain(|_, flight| !flight.is_answered);
        self.busy.store(in_flight.len(), Ordering::Release);
        self.answering.store(0, Ordering::Release);
        let closed = self.open.swap(in_flight.len(), Ordering::SeqCst).saturating_sub(in_flight.len());
        self.common.open.fetch_sub(closed, Ordering::SeqCst);
    }
}
