//! A connection, and its bytes that were received and not used yet.
//!
//! A connection belongs to its receiver while it waits, and to its [`Exchange`](super::exchange::Exchange) while a request
//! is in flight. While it is idle it has no buffer: receivers lend one, and take it back when it is empty.

use std::cell::Cell;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::net::{RecvFlags, SendFlags, Shutdown};

use super::body::BodyReader;
use super::mailbox::Mailbox;
use super::parse::{Head, Headers, MAX_HEAD, Progress};
use crate::engine::{CloseReason, Peer};
use crate::http::head::{Rejection, RequestHead};
use crate::http::validate::validate;
use crate::sync::lock;

/// Bytes that are received at once: several heads as browsers send them. Small pipelined requests that fit are answered
/// in a row, before other connections are served.
const RECEIVE: usize = 4 * 1024;

/// The socket of a connection, and which side may answer on it. A receiver keeps this of a connection that a worker
/// has.
#[derive(Debug)]
pub(super) struct Socket {
    fd: OwnedFd,
    flight: Mutex<FlightState>,
}

/// The exchange in flight, if a worker has it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct FlightState {
    /// Time for the handler, if it is another than that of all.
    pub(super) timeout: Option<Duration>,
    /// Time that the handler was blocked on the client's body, which does not count.
    pub(super) blocked: Duration,
    /// When the present wait for the body began; `None` if the handler does not wait.
    pub(super) blocked_since: Option<Instant>,
    /// The side that answers.
    pub(super) answer: Answer,
}

/// The side that answers a request: the first to claim it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Answer {
    #[default]
    Unclaimed,
    Handler,
    /// The receiver, because the handler took too long. It wrote so many bytes.
    Timeout(u64),
}

impl Socket {
    pub(super) fn new(fd: OwnedFd) -> Socket {
        Socket { fd, flight: Mutex::default() }
    }

    pub(super) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// Reads or changes the state of the exchange in flight.
    pub(super) fn flight_state<T>(&self, act: impl FnOnce(&mut FlightState) -> T) -> T {
        act(&mut lock(&self.flight))
    }

    /// Sends what the kernel takes at once.
    pub(super) fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        self.send_with(bytes, SendFlags::NOSIGNAL)
    }

    /// As [`send`](Self::send), for bytes after which this side of the connection ends at once: both leave in one
    /// segment (`MSG_MORE`, send(2); a Unix socket ignores it).
    pub(super) fn send_before_end(&self, bytes: &[u8]) -> io::Result<usize> {
        self.send_with(bytes, SendFlags::NOSIGNAL | SendFlags::MORE)
    }

    fn send_with(&self, bytes: &[u8], flags: SendFlags) -> io::Result<usize> {
        loop {
            match rustix::net::send(&self.fd, bytes, flags) {
                Err(rustix::io::Errno::INTR) => {}
                result => return Ok(result?),
            }
        }
    }

    /// Resets the connection at once, whatever else has the socket: a disconnect of a connected socket sends a reset
    /// (`tcp_disconnect`, net/ipv4/tcp.c).
    pub(super) fn reset(&self) {
        let _ = rustix::net::connect_unspec(&self.fd); // fails if the peer has left
        let _ = rustix::net::shutdown(&self.fd, Shutdown::Both); // as above
    }

    /// Receives what has arrived; `WouldBlock` if nothing has.
    pub(super) fn receive(&self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            match rustix::net::recv(&self.fd, &mut *into, RecvFlags::empty()) {
                Err(rustix::io::Errno::INTR) => {}
                result => return Ok(result?.0),
            }
        }
    }
}

/// What becomes of a connection after its response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum After {
    /// It waits for the next request.
    Keep,
    /// It is closed, since no byte of the client is expected.
    Close,
    /// It is closed when the client has had the time to read the response (RFC 9112, section 9.6).
    Linger,
    /// It is reset, so that the client sees that the response is not whole.
    Reset,
}

/// The mailbox of a connection's receiver.
pub(super) type Home = Mailbox<Box<Connection>>;

/// One connection.
pub(crate) struct Connection {
    pub(super) socket: Arc<Socket>,
    pub(super) home: Arc<Home>,
    pub(super) peer: Peer,
    pub(super) slot: u32,
    pub(super) after: After,
    /// Whether the [`FlightState`] of its socket must be reset before the next exchange.
    pub(super) flight_state_used: bool,
    /// `None` while it is idle.
    pub(super) inbox: Option<Box<Inbox>>,
    /// The part of a response that the kernel did not take at once; from `sent` on it is still to be sent.
    pub(super) outbox: Vec<u8>,
    /// Bytes of the outbox that were sent; while it lingers, input that was discarded.
    pub(super) sent: usize,
}

thread_local! {
    /// On a receiver's thread: the connection that is served, once its exchange is completed.
    static COMPLETED: Cell<Option<Box<Connection>>> = const { Cell::new(None) };
    /// On a receiver's thread: the slot whose request it serves at this moment.
    static SERVED: Cell<Option<u32>> = const { Cell::new(None) };
}

impl Connection {
    /// Gives the connection back to its receiver, because its exchange is over.
    pub(super) fn give_back(mut self: Box<Self>) {
        if self.is_served_here() {
            COMPLETED.set(Some(self));
        } else {
            self.flight_state_used = true;
            let (home, slot) = (Arc::clone(&self.home), self.slot);
            home.give_back(slot, self);
        }
    }

    /// Whether the calling thread is its receiver, and serves this very connection. It may serve another one, whose
    /// handler drops a request of this one that was kept.
    pub(super) fn is_served_here(&self) -> bool {
        self.home.is_here() && SERVED.get() == Some(self.slot)
    }

    /// On a receiver's thread: a request of this slot is served from here on.
    pub(super) fn begin_serving(slot: u32) {
        SERVED.set(Some(slot));
    }

    /// On a receiver's thread: the connection that was served, if its exchange is completed.
    pub(super) fn take_completed() -> Option<Box<Connection>> {
        SERVED.set(None);
        COMPLETED.take()
    }

    /// Sends what waits in the outbox. True if nothing is left.
    pub(super) fn flush(&mut self) -> io::Result<bool> {
        while self.sent < self.outbox.len() {
            match self.socket.send(&self.outbox[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        (self.outbox, self.sent) = (Vec::new(), 0);
        Ok(true)
    }

    /// Whether a byte was received that belongs to no exchange yet.
    pub(super) fn has_unused_input(&self) -> bool {
        self.inbox.as_ref().is_some_and(|inbox| !inbox.unread().is_empty())
    }

    /// Whether a drain wants this response to be the last: it has begun, and no byte of another request has arrived.
    pub(super) fn should_close_for_drain(&self) -> bool {
        self.home.common.tells_clients_to_close()
            && !self.has_unused_input()
            && !rustix::io::ioctl_fionread(self.socket.fd()).is_ok_and(|unread| unread > 0)
    }
}

/// Bytes received, and the head that was parsed from them.
#[derive(Default)]
pub(super) struct Inbox {
    bytes: Vec<u8>,
    /// Where the head begins.
    start: usize,
    /// Where the unused bytes begin: behind the head, once it is complete, and the part of the body that was read.
    unread: usize,
    head: Head,
    valid: Option<Result<RequestHead, Rejection>>,
    pub(super) body: BodyReader,
}

impl Inbox {
    /// Receives as much as fits. Zero at the end of the stream.
    pub(super) fn receive(&mut self, socket: &Socket) -> io::Result<usize> {
        if self.bytes.capacity() == self.bytes.len() {
            self.make_room();
        }
        loop {
            match rustix::net::recv(socket.fd(), spare_capacity(&mut self.bytes), RecvFlags::empty()) {
                Err(rustix::io::Errno::INTR) => {}
                result => return Ok(result?.0),
            }
        }
    }

    /// Whether more may have arrived than was received.
    pub(super) fn is_full(&self) -> bool {
        self.bytes.len() == self.bytes.capacity()
    }

    /// Makes room for a whole head, at most, beside what is in use.
    fn make_room(&mut self) {
        if self.start > 0 && self.valid.is_none() {
            self.bytes.drain(..self.start);
            self.unread -= self.start;
            self.start = 0;
        }
        if self.valid.is_some() {
            self.drop_used();
        }
        if self.bytes.capacity() - self.bytes.len() < RECEIVE / 2 {
            self.bytes.reserve_exact(self.bytes.len().clamp(RECEIVE, MAX_HEAD));
        }
    }

    /// Drops what was read of the body.
    fn drop_used(&mut self) {
        let head_end = self.head_end();
        self.bytes.drain(head_end..self.unread);
        self.unread = head_end;
    }

    fn head_end(&self) -> usize {
        self.start + self.head.len()
    }

    /// Looks for a complete head.
    /// Errors: the bytes are no request.
    pub(super) fn parse(&mut self) -> Result<Progress, Rejection> {
        let progress = self.head.advance(&self.bytes[self.start..])?;
        if let Progress::Complete(length) = progress {
            self.unread = self.start + length;
            let bytes = &self.bytes[self.start..self.unread];
            let head = &self.head;
            let valid = validate(head.method(bytes), head.target(bytes), head.version(), head.headers(bytes));
            self.body = BodyReader::new(valid.as_ref().ok());
            self.valid = Some(valid);
        }
        Ok(progress)
    }

    /// Rejects the request though its head is not complete; its request line is.
    pub(super) fn reject(&mut self, rejection: Rejection) {
        self.unread = self.bytes.len();
        self.valid = Some(Err(rejection));
    }

    /// Whether nothing of a request has come: no byte, or only empty lines.
    pub(super) fn is_blank(&self) -> bool {
        self.head.is_blank(&self.bytes[self.start..])
    }

    /// Bytes of memory that the buffer takes.
    pub(super) fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    pub(super) fn has_request_line(&self) -> bool {
        self.head.has_request_line()
    }

    /// Prepares for the next head, which follows the exchange that is over.
    pub(super) fn next(&mut self) {
        self.start = self.unread;
        if self.start == self.bytes.len() {
            self.bytes.clear();
            (self.start, self.unread) = (0, 0);
        }
        self.head.clear();
        self.valid = None;
        self.body = BodyReader::new(None);
    }

    /// Clears it. False if it holds too much memory to be used again.
    pub(super) fn reset(&mut self) -> bool {
        self.bytes.clear();
        (self.start, self.unread) = (0, 0);
        self.next();
        self.bytes.capacity() <= 2 * RECEIVE
    }

    fn head_bytes(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    pub(super) fn method(&self) -> &str {
        self.head.method(self.head_bytes())
    }

    pub(super) fn target(&self) -> &str {
        self.head.target(self.head_bytes())
    }

    pub(super) fn headers(&self) -> Headers<'_> {
        self.head.headers(self.head_bytes())
    }

    /// The facts of the head; a request without a complete head was rejected.
    pub(super) fn head(&self) -> Result<RequestHead, Rejection> {
        self.valid.unwrap_or(Err(Rejection { status: 400, reason: "the head is not complete" }))
    }

    /// Bytes that were received and not used.
    pub(super) fn unread(&self) -> &[u8] {
        &self.bytes[self.unread..]
    }

    /// Uses bytes of the body.
    pub(super) fn consume(&mut self, count: usize) {
        self.unread = (self.unread + count).min(self.bytes.len());
    }
}

/// The reason to close a connection whose bytes are no request.
pub(super) fn close_reason(rejection: Rejection) -> CloseReason {
    match rejection.status {
        414 | 431 => CloseReason::HeadTooLarge,
        _ => CloseReason::Unparsable,
    }
}
