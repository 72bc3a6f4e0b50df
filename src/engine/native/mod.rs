//! The native engine: threads and system calls of this crate, no runtime.
//!
//! # How a request goes
//!
//! A few *receivers* ([`receiver`]) wait in `epoll_wait`, each for the sockets of its own connections. A receiver
//! accepts ([`accept`]), receives into a buffer that it lends to the connection, parses ([`parse`]), and hands the
//! request to `serve` ([`mod@serve`]). A response that is made inline is written at once; the part that the kernel does
//! not take stays in the connection's outbox until there is room. A request whose handler may wait goes to a worker
//! *with its connection* ([`exchange`]); there a read of the body ([`read`]) or a write ([`write`]) blocks in `poll`,
//! for as long as the client makes progress. Once the response is sent, the worker gives the connection back to its
//! receiver through the receiver's [`mailbox`].
//!
//! So a connection has one owner at any time. While a worker has it, its receiver keeps only the socket, to answer in
//! the place of a handler that takes too long: the side that *claims* the response first writes it.
//!
//! Requests of one connection are served one at a time. While one is in flight nothing more is received, so that what a
//! client may send ahead is bounded by one buffer here and the receive buffer of the kernel.
//!
//! # Who blocks, who wakes
//!
//! A receiver blocks in `epoll_wait` alone, without a timeout if no deadline is set. `serve` must not block. Workers
//! and other receivers push into its mailbox and write to its eventfd only if it sleeps. Locks: a mailbox's, and that
//! of a socket's flight state; each is held for a few instructions, and no other is taken meanwhile.
//!
//! # Memory
//!
//! With *C* connections, of which *P* have sent a part of a head, *F* have a request received or in flight and *W* an unsent
//! response, with *R* receivers and a limit of *M* connections, the engine holds at most
//!
//! > *C* · 512 B + *P* · 10 KiB + max(*M* · 1 KiB, *R* · 256 KiB) + *F* · 84 KiB + *W* · 89 KiB + *R* · 700 KiB
//!
//! | part | bytes |
//! | --- | --- |
//! | connection, slot, socket, and their allocation | 400 (measured), 512 at most |
//! | buffer: 4 KiB for a head as clients send it, at most the longest head ([`parse::MAX_HEAD`], 72.3 KiB) and 4 KiB, offsets of 100 headers | 5.6 KiB to 84 KiB |
//! | outbox: a response that is answered inline is 4 KiB and its head | 4.5 KiB |
//! | a receiver: 64 buffers that are kept, 1,024 slots, 256 events | 700 KiB |
//!
//! *F* is at most the workers and their queue, and what was received in one turn; *P* is bounded by *C* alone, and each for
//! `idle_timeout`. What long heads hold beyond 8 KiB has a bound of its own ([`long_heads`]). The body of a request is read into the handler's own memory, and a response belongs to the handler until it is written.
//!
//! The kernel's part for an open socket is some 2.5 KiB (`struct sock`, inode, dentry, file, epoll item), and buffers only
//! while bytes wait in them: at most `net.ipv4.tcp_rmem` and `tcp_wmem`.
//!
//! # Why nothing is lost in a drain
//!
//! A request that a client has sent whole is in one of four places, and moves only down this list:
//!
//! 1. *Behind a handshake that is not complete on this side.* The [gate](crate::engine::gate) is closed first, then the
//!    longest round trip of the connections that are open is waited for (250 ms at most) before a receiver may be
//!    *settled*. Handshakes that end behind the gate are accepted, and their filter is lifted.
//! 2. *In the accept queue.* A receiver is settled when `accept` has reported, after that time, that the queue is
//!    empty. From before each `accept` until the connection is counted it is not settled.
//! 3. *In the receive buffer of a connection.* Connections are counted until they are closed. An idle one is closed by us
//!    when it has been silent for `keepalive_min`, and only after a `recv` that found nothing.
//! 4. *In an inbox, or in flight.* Its connection is open, hence counted.
//!
//! The engine is quiescent when every receiver is settled and no connection is open. The listening socket is closed after
//! that. Where it is handed over instead, places 1 and 2 are for its next holder: receivers stop accepting and are
//! settled at once.
//!
//! A client whose packets arrive with a TTL of 255 passes the closed gate: its connection is accepted and answered with
//! `Connection: close`. So the gate is sealed before the engine may be quiescent for good, and 1 to 3 are proved anew. Where
//! such a client was seen, 1 has 250 ms then: there may be no connection left of which to know the round trip.
//!
//! What remains is HTTP's own: a client that has been silent for `keepalive_min` and speaks in the very moment that its
//! connection is closed. Its request was not read, and it sees a reset or an end of stream before any byte of a response,
//! so that it can repeat what is idempotent (RFC 9112, section 9.3.1).
//!
//! A Unix socket has no gate. `shutdown` on the listening socket refuses new connections at once, and leaves those that
//! are queued to be accepted (`net/unix/af_unix.c`, `unix_stream_connect`).

mod accept;
mod body;
mod chunked;
mod closing;
mod common;
mod connection;
mod drain;
mod exchange;
mod long_heads;
mod mailbox;
mod parse;
mod read;
mod receiver;
mod serve;
mod slots;
mod timers;
mod write;

#[cfg(test)]
mod tests;

use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Instant;

use common::Common;
use connection::Home;
pub(crate) use exchange::{Client, Exchange};
pub(crate) use parse::Headers;
use receiver::Receiver;

use crate::engine::gate::AcceptGate;
use crate::engine::socket::set_connection_defaults;
use crate::engine::{
    ConnCensus, ConnStats, Ending, Engine, EngineKind, EngineThread, Events, InFlight, Serve, Settings, StopState,
};
use crate::sync::{RateLimit, lock};

/// Names of the receivers' threads; their number is the most receivers.
#[rustfmt::skip]
const NAMES: [&str; 16] = [
    "receiver-1", "receiver-2", "receiver-3", "receiver-4", "receiver-5", "receiver-6", "receiver-7", "receiver-8",
    "receiver-9", "receiver-10", "receiver-11", "receiver-12", "receiver-13", "receiver-14", "receiver-15", "receiver-16",
];

/// Descriptors that must be left for connections, and for what handlers open.
const MIN_DESCRIPTORS: usize = 4;

/// The engine.
pub(crate) struct NativeEngine {
    common: Arc<Common>,
    gate: AcceptGate,
    mailboxes: Vec<Arc<Home>>,
    /// Receivers whose threads have not been created yet.
    receivers: Mutex<Vec<Receiver>>,
}

impl NativeEngine {
    /// An engine that does not receive yet.
    /// Errors: no descriptor is left, or the socket refuses an option.
    pub(crate) fn new(listener: &TcpListener, settings: Settings, events: Events) -> io::Result<NativeEngine> {
        set_connection_defaults(listener)?;
        let own: OwnedFd = listener.try_clone()?.into();
        rustix::io::ioctl_fionbio(&own, true)?;
        let common = Arc::new(Common {
            epoch: Instant::now(),
            listener: own,
            settings,
            events,
            stats: ConnStats::default(),
            stop_state: StopState::default(),
            handed_over: AtomicBool::new(false),
            gate_closed: AtomicBool::new(false),
            interrupted: AtomicBool::new(false),
            open: AtomicUsize::new(0),
            room_wanted: AtomicBool::new(false),
            unparsable: RateLimit::default(),
        });
        let mailboxes: io::Result<Vec<_>> =
            (0..receiver_count(settings.receivers)).map(|_| Home::new(Arc::clone(&common)).map(Arc::new)).collect();
        Ok(NativeEngine {
            common,
            gate: AcceptGate::new(listener)?,
            mailboxes: mailboxes?,
            receivers: Mutex::default(),
        })
    }

    fn interrupt(&self) {
        self.common.interrupted.store(true, Ordering::Release);
        self.wake();
    }

    /// A receiver with fewer connections than this one, by at least `imbalance`; it gets the next one.
    fn lighter_receiver(&self, own: &Home, imbalance: usize) -> Option<&Home> {
        if self.mailboxes.len() == 1 {
            return None;
        }
        let load = |mailbox: &Home| mailbox.open.load(Ordering::Relaxed);
        let lightest = self.mailboxes.iter().min_by_key(|mailbox| load(mailbox))?;
        let limit = load(lightest) + imbalance.max(load(lightest) / 8);
        (load(own) >= limit && !lightest.has_ended()).then_some(lightest)
    }

    /// The receiver whose idle connections are the least recently used.
    fn idlest_receiver(&self) -> Option<&Arc<Home>> {
        let idle = self.mailboxes.iter().filter_map(|mailbox| Some((mailbox.oldest_idle()?, mailbox)));
        idle.min_by_key(|(since, _)| *since).map(|(_, mailbox)| mailbox)
    }

    /// Whether a receiver has no room for new connections, and none to close.
    fn needs_room(&self) -> bool {
        self.common.room_wanted.load(Ordering::Relaxed)
    }

    /// Records that a receiver has no room for new connections, and none to close; wakes the others.
    fn want_room(&self) {
        self.common.room_wanted.store(true, Ordering::SeqCst);
        if self.mailboxes.len() > 1 {
            self.wake();
        }
    }

    /// Counts a connection that was closed.
    fn connection_closed(&self) {
        let common = &self.common;
        let open = common.open.fetch_sub(1, Ordering::SeqCst) - 1;
        let max = common.settings.max_connections;
        if common.room_wanted.load(Ordering::SeqCst)
            && open < max - max / 8
            && common.room_wanted.swap(false, Ordering::SeqCst)
        {
            self.wake();
        }
    }
}

impl Engine for NativeEngine {
    fn kind(&self) -> EngineKind {
        EngineKind::Native
    }

    /// Makes the receivers. It is an error if too few descriptors are left to serve any connection.
    fn start(self: Arc<Self>, serve: &Arc<Serve>) -> io::Result<()> {
        let receiver = |mailbox: &Arc<Home>| Receiver::new(Arc::clone(&self), Arc::clone(mailbox), Arc::clone(serve));
        let receivers: io::Result<Vec<_>> = self.mailboxes.iter().map(receiver).collect();
        *lock(&self.receivers) = receivers?;
        let spare: io::Result<Vec<OwnedFd>> = (0..MIN_DESCRIPTORS).map(|_| self.common.listener.try_clone()).collect();
        spare.map(drop)
    }

    fn threads(self: Arc<Self>) -> Vec<EngineThread> {
        let receivers = std::mem::take(&mut *lock(&self.receivers));
        let thread = |(receiver, name): (Receiver, &'static str)| {
            let engine = Arc::clone(&self);
            EngineThread {
                name,
                run: Box::new(move || receiver.run()),
                interrupt: Box::new(move || engine.interrupt()),
            }
        };
        receivers.into_iter().zip(NAMES).map(thread).collect()
    }

    fn gate(&self) -> &AcceptGate {
        &self.gate
    }

    fn stop_state(&self) -> &StopState {
        &self.common.stop_state
    }

    fn stop_accepting(&self, ending: Ending) {
        self.common.stop_state.stop_accepting();
        self.common.handed_over.store(ending == Ending::HandOver, Ordering::SeqCst);
        if ending == Ending::Filter {
            self.common.gate_closed.store(true, Ordering::Release);
            if let Err(error) = self.gate.end_accepting(true) {
                log::warn!("cannot stop accepting ({error}): some new connections may be reset");
            }
        }
        self.common.stop_state.accepting_stopped();
        self.wake();
    }

    fn seal(&self) {
        if let Err(error) = self.gate.seal() {
            log::debug!("the gate cannot be sealed ({error}): what the kernel queues from here on is not accepted");
            self.gate.limit_queue();
            self.common.handed_over.store(true, Ordering::SeqCst);
        }
        self.common.stop_state.restart_proof();
        self.wake();
    }

    fn resume_accepting(&self) {
        self.common.stop_state.resume_accepting();
        self.wake();
    }

    fn is_quiescent(&self) -> bool {
        let Some((number, _)) = self.common.stop() else { return false };
        self.mailboxes.iter().all(|mailbox| mailbox.settled.load(Ordering::SeqCst) == number)
            && self.mailboxes.iter().all(|mailbox| mailbox.open.load(Ordering::SeqCst) == 0)
    }

    fn has_requests_older_than_drain(&self) -> bool {
        let predates = |since| self.common.stop_state.predates_drain(since);
        // The receiver first: a request moves from there to a worker.
        self.mailboxes.iter().any(|mailbox| {
            mailbox.answering_since().is_some_and(predates) || mailbox.flights().iter().any(|one| predates(one.since))
        })
    }

    fn in_flight(&self) -> usize {
        self.mailboxes.iter().map(|mailbox| mailbox.in_flight()).sum()
    }

    fn connections(&self) -> usize {
        self.common.open.load(Ordering::Relaxed)
    }

    fn census(&self) -> ConnCensus {
        let (busy, open) = (self.in_flight(), self.connections());
        let closing: usize = self.mailboxes.iter().map(|mailbox| mailbox.lingering.load(Ordering::Relaxed)).sum();
        ConnCensus { busy, idle: open.saturating_sub(busy + closing), closing, aborted: 0 }
    }

    fn requests_in_flight(&self) -> Vec<InFlight> {
        let flights = self.mailboxes.iter().flat_map(|mailbox| mailbox.flights());
        let in_flight = |one: mailbox::Flight| InFlight {
            request_line: one.request_line,
            peer: one.peer,
            since: one.since,
            pipelined: 0, // they are not parsed before their turn
        };
        flights.map(in_flight).collect()
    }

    fn stats(&self) -> &ConnStats {
        &self.common.stats
    }

    /// The fewest turns of the loop that any receiver has made: the number stands still if one of them does.
    fn ticks(&self) -> u64 {
        self.mailboxes.iter().map(|mailbox| mailbox.ticks.load(Ordering::Relaxed)).min().unwrap_or(0)
    }

    fn wake(&self) {
        self.mailboxes.iter().for_each(|mailbox| mailbox.notify());
    }

    /// Drops receivers that no thread has taken: they hold the engine, and with it the listening socket, which is closed
    /// with the engine.
    fn finish(&self, _socket_is_shared: bool) {
        lock(&self.receivers).clear();
    }
}

/// The number of receivers: as configured, or as the cores suggest.
fn receiver_count(wanted: usize) -> usize {
    let automatic = || thread::available_parallelism().map_or(1, |cores| cores.get() / 2);
    let count = if wanted == 0 { automatic() } else { wanted };
    count.clamp(1, NAMES.len())
}
