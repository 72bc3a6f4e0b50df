//! Accepting new connections, and when it pauses.
//!
//! All receivers wait for the one listening socket, of which the kernel wakes one at a time (`EPOLLEXCLUSIVE`). One that
//! has many more connections than another passes new ones on.
//!
//! When a receiver cannot accept, or may not because of the limit, it takes the listening socket out of its epoll set,
//! so that the socket does not wake it again and again. New connections wait in the accept queue.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::{SocketAddrAny, SocketFlags, acceptfrom_with};

use super::connection::{After, Connection, Socket};
use super::receiver::{LISTENER, Receiver};
use super::slots::{Queue, State};
use crate::engine::{CloseReason, Peer};
use crate::listen::Address;

/// Connections that are accepted in a row, before requests are served.
const BATCH: usize = 16;

/// Idle connections that are closed when descriptors or memory run out.
const EVICTED_AT_ONCE: usize = 8;

/// First pause of accepting after descriptors or memory ran out; it doubles each time, up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Connections that a receiver may have more than another before it passes new ones on.
const IMBALANCE: usize = 8;

/// Time for two retransmissions (after 200 ms, `TCP_RTO_MIN`, and 400 ms more) and some slack: of data that the kernel
/// dropped because the connection had inherited the filter of the closed gate.
pub(super) const RETRANSMIT_WINDOW: Duration = Duration::from_millis(700);

impl Receiver {
    /// Errors: the system refuses.
    pub(super) fn start_accepting(&mut self) -> io::Result<()> {
        if !self.accepting.registered && !self.accepting.over {
            let flags = epoll::EventFlags::IN | epoll::EventFlags::EXCLUSIVE;
            epoll::add(&self.epoll, &self.common.listener, epoll::EventData::new_u64(LISTENER), flags)?;
            self.accepting.registered = true;
        }
        Ok(())
    }

    fn stop_listening(&mut self) {
        if std::mem::take(&mut self.accepting.registered) {
            let _ = epoll::delete(&self.epoll, &self.common.listener); // it is there
        }
    }

    /// Stops accepting because the listening socket is left to its next holder, or resumes.
    pub(super) fn leave_listener(&mut self, over: bool) {
        if over {
            self.stop_listening();
        }
        self.accepting.over = over;
        self.accepting.paused_until = None;
    }

    /// Whether the epoll set reports new connections.
    pub(super) fn is_listening(&self) -> bool {
        self.accepting.registered
    }

    /// Accepts queued connections, up to [`BATCH`].
    /// Errors: the listening socket cannot be used any more.
    pub(super) fn accept(&mut self) -> io::Result<()> {
        if !self.accepting.registered {
            return Ok(());
        }
        let mut accepted = 0;
        loop {
            let (open, max) = (self.common.open.load(Ordering::Relaxed), self.common.settings.max_connections);
            let is_full = open >= max;
            if open >= max + BATCH {
                // Another receiver has been asked to close some connections, and has not done so yet.
                self.stop_listening();
                self.accepting.paused_until = self.now.checked_add(FIRST_PAUSE);
                return Ok(());
            }
            if is_full && self.slots.first(Queue::Idle).is_none() {
                self.stop_listening();
                self.accepting.full = true;
                self.engine.want_room();
                return Ok(());
            }
            if self.drain.is_some() {
                self.mailbox.settled.store(0, Ordering::SeqCst);
            }
            match acceptfrom_with(&self.common.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok((socket, address)) => {
                    self.accepting.pause = Duration::ZERO;
                    self.admit(socket, address);
                    if is_full {
                        self.enforce_limit();
                    }
                }
                Err(Errno::AGAIN) => break self.on_empty_queue(),
                // The socket was shut, and this kernel checks that before the queue.
                Err(Errno::INVAL) if self.drain.is_some() => break self.on_empty_queue(),
                Err(Errno::INTR | Errno::CONNABORTED | Errno::PROTO) => {}
                Err(error @ (Errno::INVAL | Errno::BADF | Errno::NOTSOCK | Errno::OPNOTSUPP)) => {
                    return Err(error.into());
                }
                // MFILE, NFILE, NOBUFS, NOMEM, and other errors that may last.
                Err(error) => {
                    if self.evict(EVICTED_AT_ONCE) == 0 {
                        break self.pause_accepting(error);
                    }
                }
            }
            accepted += 1;
            if accepted == BATCH {
                break;
            }
        }
        Ok(())
    }

    fn on_empty_queue(&mut self) {
        self.accepting.pause = Duration::ZERO;
        let Some(drain) = &self.drain else { return };
        if drain.is_settled(self.now) {
            self.mailbox.settled.store(drain.number, Ordering::SeqCst);
            self.changed = true;
        }
        // A drain closes a Unix socket's gate by `shutdown`: from then on the socket is readable without end, `accept` says
        // EAGAIN, and no connection is queued any more (`unix_stream_connect`, net/unix/af_unix.c).
        if matches!(self.engine.gate.address(), Address::Unix(_)) {
            self.leave_listener(true);
        }
    }

    fn pause_accepting(&mut self, error: Errno) {
        self.stop_listening();
        let pause = (self.accepting.pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
        if self.accepting.pause.is_zero() {
            log::warn!("cannot accept: {error}: trying again");
        }
        self.accepting.pause = pause;
        self.accepting.paused_until = self.now.checked_add(pause);
    }

    /// Resumes accepting if the reason for the pause is over.
    /// Errors: the system refuses.
    pub(super) fn resume_accepting(&mut self) -> io::Result<()> {
        if self.accepting.registered || self.accepting.over {
            return Ok(());
        }
        if self.accepting.full {
            let max = self.common.settings.max_connections;
            let has_room = self.common.open.load(Ordering::Relaxed) < max - max / 8;
            if has_room || self.slots.first(Queue::Idle).is_some() {
                self.accepting.full = false;
            }
        }
        if self.accepting.paused_until.is_some_and(|until| until <= self.now) {
            self.accepting.paused_until = None;
        }
        if self.accepting.full || self.accepting.paused_until.is_some() { Ok(()) } else { self.start_accepting() }
    }

    /// Closes the least recently used connections until the limit holds, or notifies the receiver to which they belong.
    pub(super) fn enforce_limit(&mut self) {
        for _ in 0..BATCH {
            if self.common.open.load(Ordering::Relaxed) <= self.common.settings.max_connections {
                return;
            }
            self.mailbox.set_oldest_idle(self.slots.first(Queue::Idle).map(|(_, since)| since));
            match self.engine.idlest_receiver() {
                None => return,
                Some(other) if !Arc::ptr_eq(other, &self.mailbox) => return other.notify(),
                Some(_) => {
                    self.evict(1);
                }
            }
        }
    }

    /// Closes idle connections for another receiver, which has none of its own and cannot accept.
    pub(super) fn make_room(&mut self) {
        if self.engine.needs_room() {
            self.evict(self.common.settings.max_connections / 8 + 1);
        }
    }

    /// Closes connections that are idle, least recently used first. Returns how many.
    pub(super) fn evict(&mut self, count: usize) -> usize {
        let mut closed = 0;
        for _ in 0..count {
            let Some((slot, _)) = self.slots.first(Queue::Idle) else { break };
            closed += usize::from(self.close_idle(slot, CloseReason::Evicted));
        }
        closed
    }

    fn admit(&mut self, socket: OwnedFd, address: Option<SocketAddrAny>) {
        let peer = match address.map(SocketAddr::try_from) {
            Some(Ok(address)) => Peer::Inet(address),
            _ => Peer::Unix,
        };
        self.common.open.fetch_add(1, Ordering::Relaxed);
        self.common.stats.opened.fetch_add(1, Ordering::Relaxed);
        match self.engine.lighter_receiver(&self.mailbox, IMBALANCE) {
            Some(other) => other.give_new(socket, peer),
            None => {
                self.mailbox.open.fetch_add(1, Ordering::SeqCst);
                self.adopt(socket, peer);
            }
        }
    }

    /// Takes over a connection that is counted already.
    pub(super) fn adopt(&mut self, fd: OwnedFd, peer: Peer) {
        // Its handshake may have ended behind the closed gate: what the client has sent since was dropped, and is
        // retransmitted.
        let was_filtered = self.common.is_gate_closed() && matches!(peer, Peer::Inet(_));
        if was_filtered {
            self.engine.gate.lift_filter(&fd);
        }
        let socket = Arc::new(Socket::new(fd));
        let slot = self.slots.insert(self.now, Arc::clone(&socket));
        let connection = Connection {
            socket,
            home: Arc::clone(&self.mailbox),
            peer,
            slot,
            after: After::Keep,
            flight_state_used: false,
            inbox: None,
            outbox: Vec::new(),
            sent: 0,
        };
        if was_filtered {
            // A timer of its own, because this is longer than `keepalive_min`.
            self.set_timer(slot, self.now.checked_add(RETRANSMIT_WINDOW.max(self.common.settings.keepalive_min)));
        } else {
            self.slots.enqueue(slot, Queue::Idle);
        }
        self.slots.get(slot).state = State::Idle(Box::new(connection));
        // The request has often arrived by now: it is answered before the socket is added to the epoll set.
        self.receive(slot);
    }
}
