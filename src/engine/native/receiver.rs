//! A receiver: a thread with an epoll set of its own, which owns its connections while they wait.
//!
//! It never blocks but in `epoll_wait`, and sleeps there without a timeout if it has no connection. Interest in a socket
//! changes only where something would be reported again and again in vain, so that a request that is answered at once
//! costs three system calls: one of `epoll_wait`, shared with others, one to receive, one to send.
//!
//! Input is reported once, when it arrives (`EPOLLET`): the kernel does not look at the socket once more in the next
//! `epoll_wait`, as it does where input is reported for as long as there is some (0.4 of 6.1 µs of CPU a request in a
//! server of 70 lines, on busy cores). So if a receiver does not receive all that was reported, it must set its
//! interest in the socket again ([`Interest::Stale`]).

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};

use super::NativeEngine;
use super::common::Common;
use super::connection::{Home, Inbox, Socket};
use super::long_heads::LongHeads;
use super::slots::{Interest, Queue, Slots, State};
use super::timers::Timers;
use crate::engine::{Ending, Serve};

/// Events taken from the kernel in one call: as many connections are served before new ones are accepted.
const EVENTS: usize = 256;

/// Buffers that a receiver keeps for its connections; it needs one, and one for each head that comes in pieces.
const RETAINED_INBOXES: usize = 64;

/// Key of the listening socket's events; slots are never numbered so high.
pub(super) const LISTENER: u64 = u64::MAX;
/// Key of the mailbox's events.
const WAKE: u64 = u64::MAX - 1;

/// The events that are reported beside the last bytes of a client.
const END_OF_INPUT: epoll::EventFlags =
    epoll::EventFlags::RDHUP.union(epoll::EventFlags::HUP).union(epoll::EventFlags::ERR);

/// Time that a client has to read the last response and to close (RFC 9112, section 9.6).
pub(super) const LINGERING_TIMEOUT: Duration = Duration::from_secs(2);

/// How a receiver accepts.
#[derive(Debug, Default)]
pub(super) struct Accepting {
    /// The listening socket is in the epoll set.
    pub(super) registered: bool,
    /// No descriptor or no memory was left: until then nothing is accepted.
    pub(super) paused_until: Option<Instant>,
    /// The last pause.
    pub(super) pause: Duration,
    /// The limit on connections is reached.
    pub(super) full: bool,
    /// No connection is accepted any more: the listening socket is left to its next holder.
    pub(super) over: bool,
}

/// The drain of a receiver: when it began, and until when handshakes may be under way.
#[derive(Debug)]
pub(super) struct Drain {
    /// The number of the stop.
    pub(super) number: u64,
    pub(super) since: Instant,
    pub(super) settles_at: Instant,
    pub(super) ending: Ending,
}

/// Ends a mailbox with the thread of its receiver, also by a panic.
struct EndGuard(Arc<Home>);

impl Drop for EndGuard {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// The state of a receiver's thread.
pub(super) struct Receiver {
    pub(super) engine: Arc<NativeEngine>,
    pub(super) common: Arc<Common>,
    pub(super) mailbox: Arc<Home>,
    pub(super) serve: Arc<Serve>,
    pub(super) epoll: OwnedFd,
    pub(super) slots: Slots,
    pub(super) timers: Timers,
    pub(super) long_heads: LongHeads,
    #[allow(clippy::vec_box, reason = "they are lent by their address")]
    inboxes: Vec<Box<Inbox>>,
    /// Connections with bytes in their inbox, which are served after others have been.
    pub(super) ready: VecDeque<u64>,
    pub(super) accepting: Accepting,
    pub(super) drain: Option<Drain>,
    /// Method and target of the request that is being served.
    pub(super) request_line: String,
    /// The time of this turn of the loop.
    pub(super) now: Instant,
    /// A request or a connection has ended in this turn of the loop.
    pub(super) changed: bool,
}

impl Receiver {
    /// Errors: no descriptor is left.
    pub(super) fn new(engine: Arc<NativeEngine>, mailbox: Arc<Home>, serve: Arc<Serve>) -> io::Result<Receiver> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let edge = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&epoll, &mailbox.wake, epoll::EventData::new_u64(WAKE), edge)?;
        let long_heads = LongHeads::new(engine.common.settings.max_connections, engine.mailboxes.len());
        Ok(Receiver {
            common: Arc::clone(&engine.common),
            engine,
            mailbox,
            serve,
            epoll,
            slots: Slots::new(),
            timers: Timers::default(),
            long_heads,
            inboxes: Vec::new(),
            ready: VecDeque::new(),
            accepting: Accepting::default(),
            drain: None,
            request_line: String::new(),
            now: Instant::now(),
            changed: false,
        })
    }

    /// Receives until it is interrupted.
    /// Errors: the system refuses to wait for events, or to accept.
    pub(super) fn run(mut self) -> io::Result<()> {
        self.mailbox.attach();
        let _end = EndGuard(Arc::clone(&self.mailbox));
        self.receive_until_interrupted()
    }

    fn receive_until_interrupted(&mut self) -> io::Result<()> {
        let mut events = Vec::with_capacity(EVENTS);
        self.start_accepting()?;
        while !self.common.is_interrupted() {
            events.clear();
            let timeout = if self.mailbox.may_sleep() { self.timeout() } else { Some(Duration::ZERO) };
            let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
            match epoll::wait(&self.epoll, spare_capacity(&mut events), timeout.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            self.now = Instant::now();
            if self.mailbox.woke_up() {
                self.take_mail();
            }
            let mut accept = false;
            for event in &events {
                match event.data.u64() {
                    LISTENER => accept = true,
                    WAKE => {}
                    key => self.on_event(key, event.flags),
                }
            }
            self.serve_ready();
            if accept {
                self.accept()?;
            }
            self.expire();
            self.drain_on()?;
            self.resume_accepting()?;
            self.mailbox.set_oldest_idle(self.slots.first(Queue::Idle).map(|(_, since)| since));
            self.slots.release_memory();
            self.mailbox.ticks.fetch_add(1, Ordering::Relaxed);
            if std::mem::take(&mut self.changed) && self.common.stop_state.announced().is_some() {
                (self.common.events.changed)();
            }
        }
        Ok(())
    }

    /// The time to wait for events; `None`: until there is one.
    fn timeout(&self) -> Option<Duration> {
        if !self.ready.is_empty() {
            return Some(Duration::ZERO);
        }
        let settings = &self.common.settings;
        let after = |queue, time| self.slots.first(queue).and_then(|(_, since)| since.checked_add(time));
        let deadlines = [
            after(Queue::Idle, settings.idle_timeout),
            after(Queue::Lingering, LINGERING_TIMEOUT),
            self.timers.next(),
            self.accepting.paused_until,
            self.next_of_drain(),
        ];
        let next = deadlines.into_iter().flatten().min()?;
        // The kernel counts milliseconds: woken up too early, the receiver would wait once more.
        let left = next.saturating_duration_since(self.now);
        Some(Duration::from_millis(u64::try_from(left.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)))
    }

    /// Takes over the connections that workers and other receivers have brought.
    fn take_mail(&mut self) {
        for (slot, connection) in self.mailbox.take_returned() {
            self.mailbox.end_flight(slot);
            self.set_timer(slot, None);
            self.changed = true;
            if let Some(connection) = self.after_response(slot, connection) {
                self.serve(slot, connection);
            }
        }
        for (socket, peer) in self.mailbox.take_new() {
            self.adopt(socket, peer);
        }
        self.make_room();
        self.enforce_limit();
    }

    fn on_event(&mut self, key: u64, flags: epoll::EventFlags) {
        let Some(slot) = self.slots.find(key) else { return };
        let entry = self.slots.get(slot);
        match entry.state {
            State::Free => {}
            State::Ready(_) => entry.interest.make_stale(),
            State::Idle(_) => {
                // The end of the stream is received after the bytes before it.
                if flags.intersects(END_OF_INPUT) {
                    entry.interest.make_stale();
                }
                self.receive(slot);
            }
            // The input is for the worker, or for later: it must not be reported again and again.
            State::Busy => self.set_interest(slot, Interest::Nothing),
            State::Writing(_) => self.flush(slot),
            State::Lingering(_) => self.discard_input(slot),
        }
    }

    /// Receives what an idle connection has sent, and serves it.
    pub(super) fn receive(&mut self, slot: u32) {
        let State::Idle(mut connection) = self.take_state(slot) else { return };
        let mut inbox = connection.inbox.take().or_else(|| self.inboxes.pop()).unwrap_or_default();
        let received = inbox.receive(&connection.socket);
        if inbox.is_full() {
            self.slots.get(slot).interest.make_stale();
        }
        connection.inbox = Some(inbox);
        match received {
            Ok(1..) => self.serve(slot, connection),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.set_idle(slot, connection, false),
            Ok(0) | Err(_) => self.close(slot, connection, None),
        }
    }

    pub(super) fn keep_inbox(&mut self, mut inbox: Box<Inbox>) {
        if self.inboxes.len() < RETAINED_INBOXES && inbox.reset() {
            self.inboxes.push(inbox);
        }
    }

    pub(super) fn take_state(&mut self, slot: u32) -> State {
        std::mem::replace(&mut self.slots.get(slot).state, State::Busy)
    }

    pub(super) fn set_timer(&mut self, slot: u32, deadline: Option<Instant>) {
        let entry = self.slots.get(slot);
        if entry.timer.is_some() || deadline.is_some() {
            entry.timer = self.timers.set(slot, entry.timer, deadline);
        }
    }

    /// Makes the epoll set report this about a connection's socket.
    pub(super) fn set_interest(&mut self, slot: u32, interest: Interest) {
        let key = epoll::EventData::new_u64(self.slots.key(slot));
        let entry = self.slots.get(slot);
        if entry.interest == interest {
            return;
        }
        let Some(socket) = &entry.socket else { return };
        let flags = match interest {
            Interest::Unregistered | Interest::Stale => return,
            Interest::Read => epoll::EventFlags::IN | epoll::EventFlags::RDHUP | epoll::EventFlags::ET,
            Interest::Discard => epoll::EventFlags::IN,
            Interest::Write => epoll::EventFlags::OUT,
            Interest::Nothing => epoll::EventFlags::ET,
        };
        let result = if entry.interest == Interest::Unregistered {
            epoll::add(&self.epoll, socket.fd(), key, flags)
        } else {
            epoll::modify(&self.epoll, socket.fd(), key, flags)
        };
        // Refused only if memory or `fs.epoll.max_user_watches` is used up: then the timeouts end the connection.
        if result.is_ok() {
            entry.interest = interest;
        }
    }

    /// The socket of a slot.
    pub(super) fn socket(&mut self, slot: u32) -> Option<Arc<Socket>> {
        self.slots.get(slot).socket.clone()
    }
}
