//! A receiver: a thread with an epoll set of its own, which owns its connections while they wait.
//!
//! It never blocks but in `epoll_wait`, and sleeps there without a timeout if it has no connection. Interest in a socket
//! changes only where something would be reported again and again in vain, so that a request that is answered at once
//! costs three system calls: one of `epoll_wait`, shared with others, one to receive, one to send.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};

use super::Engine;
use super::common::{Common, plain_response};
use super::connection::{After, Connection, Home, Inbox, Socket, Turn, close_reason};
use super::mailbox::Flight;
use super::parse::Progress;
use super::slots::{Interest, Queue, Slots, State};
use super::timers::Timers;
use crate::engine::{Ending, Exchange, Serve};
use crate::http::head::Rejection;

/// Events taken from the kernel in one call: as many connections are served before new ones are accepted.
const EVENTS: usize = 256;

/// Pipelined requests of one connection that are answered in a row.
const IN_A_ROW: usize = 16;

/// Buffers that a receiver keeps for its connections; it needs one, and one for each head that comes in pieces.
const RETAINED_INBOXES: usize = 64;

/// Bytes of a method and target that are kept for the log.
const MAX_REQUEST_LINE: usize = 200;

/// Key of the listening socket's events; slots are never numbered so high.
pub(super) const LISTENER: u64 = u64::MAX;
/// Key of the mailbox's events.
const WAKE: u64 = u64::MAX - 1;

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
    /// As many connections are open as may be.
    pub(super) full: bool,
    /// No connection is accepted any more: the listening socket is for its next holder.
    pub(super) over: bool,
}

/// Since when a receiver drains, and until when handshakes may be under way.
#[derive(Debug)]
pub(super) struct Drain {
    /// The number of the stop.
    pub(super) number: u64,
    pub(super) since: Instant,
    pub(super) settles_at: Instant,
    pub(super) ending: Ending,
}

/// The state of a receiver's thread.
pub(super) struct Receiver {
    pub(super) engine: Arc<Engine>,
    pub(super) common: Arc<Common>,
    pub(super) mailbox: Arc<Home>,
    serve: Arc<Serve>,
    pub(super) epoll: OwnedFd,
    pub(super) slots: Slots,
    pub(super) timers: Timers,
    #[allow(clippy::vec_box, reason = "they are lent by their address")]
    inboxes: Vec<Box<Inbox>>,
    /// Connections with bytes in their inbox, whose turn comes after others'.
    ready: VecDeque<u64>,
    pub(super) accepting: Accepting,
    pub(super) drain: Option<Drain>,
    /// Method and target of the request that is being served.
    request_line: String,
    /// The time of this turn of the loop.
    pub(super) now: Instant,
    /// A request or a connection has ended in this turn of the loop.
    pub(super) changed: bool,
}

impl Receiver {
    /// # Errors
    ///
    /// No descriptor is left.
    pub(super) fn new(engine: Arc<Engine>, mailbox: Arc<Home>, serve: Arc<Serve>) -> io::Result<Receiver> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let edge = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&epoll, &mailbox.wake, epoll::EventData::new_u64(WAKE), edge)?;
        Ok(Receiver {
            common: Arc::clone(&engine.common),
            engine,
            mailbox,
            serve,
            epoll,
            slots: Slots::new(),
            timers: Timers::default(),
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
    ///
    /// # Errors
    ///
    /// The system refuses to wait for events, or to accept.
    pub(super) fn run(mut self) -> io::Result<()> {
        self.mailbox.attach();
        let result = self.receive_until_interrupted();
        self.mailbox.end();
        result
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
                    key => self.on_event(key),
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
            self.mailbox.ticks.fetch_add(1, Ordering::Relaxed);
            if std::mem::take(&mut self.changed) && self.common.stop_state.announced().is_some() {
                (self.common.events.changed)();
            }
        }
        Ok(())
    }

    /// How long to wait for events; none: until there is one.
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

    /// What workers and other receivers have brought.
    fn take_mail(&mut self) {
        for connection in self.mailbox.take_returned() {
            let slot = connection.slot;
            self.mailbox.came_back(slot);
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

    fn on_event(&mut self, key: u64) {
        let Some(slot) = self.slots.find(key) else { return };
        match self.slots.get(slot).state {
            State::Free | State::Ready(_) => {}
            State::Idle(_) => self.receive(slot),
            // What has arrived is for the worker, or for later: it must not be reported again and again.
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
        connection.inbox = Some(inbox);
        match received {
            Ok(1..) => self.serve(slot, connection),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.set_idle(slot, connection, false),
            Ok(0) | Err(_) => self.close(slot, connection, None),
        }
    }

    /// Serves the requests in the inbox of a connection.
    pub(super) fn serve(&mut self, slot: u32, mut connection: Box<Connection>) {
        for _ in 0..IN_A_ROW {
            let Some(inbox) = &mut connection.inbox else { return self.set_idle(slot, connection, true) };
            match inbox.parse() {
                Ok(Progress::Complete(_)) => {}
                Ok(Progress::Partial) => return self.set_idle(slot, connection, false),
                Err(rejection) if inbox.has_request_line() => inbox.reject(rejection),
                Err(rejection) => return self.reject(slot, connection, rejection),
            }
            match self.serve_one(slot, connection) {
                Some(next) => connection = next,
                None => return,
            }
        }
        self.ready.push_back(self.slots.key(slot));
        self.slots.dequeue(slot);
        self.slots.get(slot).state = State::Ready(connection);
    }

    /// Serves one request. Gives the connection back if bytes of another one have arrived.
    fn serve_one(&mut self, slot: u32, mut connection: Box<Connection>) -> Option<Box<Connection>> {
        if std::mem::take(&mut connection.turn_used) {
            connection.socket.turn(|turn| *turn = Turn::default());
        }
        if let Some(inbox) = &connection.inbox {
            self.request_line.clear();
            let target = inbox.target();
            self.request_line.push_str(inbox.method());
            self.request_line.push(' ');
            self.request_line.push_str(target.get(..MAX_REQUEST_LINE).unwrap_or(target));
        }
        let peer = connection.peer;
        self.mailbox.begin_request(self.now);
        let next = (self.serve)(Exchange::Native(super::Exchange::new(connection, self.now)));
        debug_assert!(next.is_none(), "the next request of a connection is this receiver's business");
        let completed = Connection::take_completed();
        match completed {
            Some(connection) => {
                self.mailbox.end_request();
                self.changed = true;
                self.after_response(slot, connection)
            }
            None => {
                let flight = Flight { request_line: self.request_line.clone(), peer, since: self.now };
                self.mailbox.went_away(slot, flight);
                self.slots.get(slot).since = self.now;
                self.slots.dequeue(slot);
                self.check_handler(slot);
                None
            }
        }
    }

    /// Goes on with a connection whose response was written. Gives it back if bytes of another request have arrived.
    pub(super) fn after_response(&mut self, slot: u32, mut connection: Box<Connection>) -> Option<Box<Connection>> {
        if connection.sent < connection.outbox.len() {
            self.wait_for_room(slot, connection);
            return None;
        }
        match connection.after {
            After::Keep => {
                let has_more = connection.inbox.as_mut().is_some_and(|inbox| {
                    inbox.next();
                    !inbox.unread().is_empty()
                });
                if has_more {
                    return Some(connection);
                }
                self.set_idle(slot, connection, true);
            }
            After::Close => self.close(slot, connection, None),
            After::Linger => self.linger(slot, connection),
            After::Reset => {
                let _ = rustix::net::sockopt::set_socket_linger(connection.socket.fd(), Some(Duration::ZERO));
                self.close(slot, connection, None);
            }
        }
        None
    }

    /// Connections whose turn has come again.
    fn serve_ready(&mut self) {
        for _ in 0..self.ready.len() {
            let Some(slot) = self.ready.pop_front().and_then(|key| self.slots.find(key)) else { continue };
            if let State::Ready(connection) = self.take_state(slot) {
                self.serve(slot, connection);
            }
        }
    }

    /// Answers what is no request, and closes.
    fn reject(&mut self, slot: u32, connection: Box<Connection>, rejection: Rejection) {
        self.common.count_unparsable(close_reason(rejection), connection.peer, rejection.reason);
        let Rejection { status, reason } = rejection;
        let response = plain_response(status, reason, self.common.settings.automatic);
        let _ = connection.socket.send(&response); // the client left
        self.linger(slot, connection);
    }

    /// A connection waits for a head, or for the rest of it. `since_now`: its time begins now.
    pub(super) fn set_idle(&mut self, slot: u32, mut connection: Box<Connection>, since_now: bool) {
        if let Some(inbox) = connection.inbox.take() {
            if inbox.is_blank() { self.keep_inbox(inbox) } else { connection.inbox = Some(inbox) }
        }
        self.set_interest(slot, Interest::Read);
        let entry = self.slots.get(slot);
        entry.state = State::Idle(connection);
        if since_now {
            entry.since = self.now;
            self.slots.enqueue(slot, Queue::Idle);
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

    /// Has the epoll set report this of a connection's socket.
    pub(super) fn set_interest(&mut self, slot: u32, interest: Interest) {
        let key = epoll::EventData::new_u64(self.slots.key(slot));
        let entry = self.slots.get(slot);
        if entry.interest == interest {
            return;
        }
        let Some(socket) = &entry.socket else { return };
        let flags = match interest {
            Interest::Unregistered => return,
            Interest::Read => epoll::EventFlags::IN,
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
