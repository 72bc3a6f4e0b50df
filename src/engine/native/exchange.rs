//! A request in flight on its connection, which it owns until it is answered.

use std::cell::RefCell;
use std::io;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::connection::{After, Answer, Connection, Inbox, Socket};
use super::parse::Headers;
use super::read;
use super::write::{BlockingWriter, OutboxWriter};
use crate::engine::discard::discard;
use crate::engine::progress::Budget;
use crate::engine::{BodyState, CloseReason, Peer};
use crate::http::encode::{self, ResponseContext, SendError, Sent};
use crate::http::head::{Rejection, RequestHead, Version};
use crate::http::response::Response;

/// Memory of a response, in bytes, that a thread keeps for the next one; larger buffers are freed.
const MAX_RETAINED_BUFFER: usize = 16 * 1024;

thread_local! {
    /// Where a response is put together, so that it leaves in one write.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A request in flight. Dropped unanswered, it closes its connection.
pub(crate) struct Exchange {
    /// `None` once the connection was given back.
    connection: Option<Box<Connection>>,
    since: Instant,
    /// Time for the client to make progress, in either direction.
    timeout: Duration,
    /// The part of that time that is left for the body.
    budget: Budget,
}

impl Exchange {
    /// The exchange of the complete head in the connection's inbox.
    pub(super) fn new(connection: Box<Connection>, since: Instant) -> Exchange {
        let timeout = connection.home.common.settings.request_timeout;
        Exchange { connection: Some(connection), since, timeout, budget: Budget::new(timeout) }
    }

    fn inbox(&self) -> Option<&Inbox> {
        self.connection.as_ref()?.inbox.as_deref()
    }

    pub(crate) fn method(&self) -> &str {
        self.inbox().map_or("", Inbox::method)
    }

    pub(crate) fn target(&self) -> &str {
        self.inbox().map_or("", Inbox::target)
    }

    pub(crate) fn headers(&self) -> Headers<'_> {
        self.inbox().map_or_else(Headers::default, Inbox::headers)
    }

    pub(crate) fn head(&self) -> Result<RequestHead, Rejection> {
        self.inbox().map_or(Err(Rejection { status: 400, reason: "no request" }), Inbox::head)
    }

    pub(crate) fn peer(&self) -> Peer {
        self.connection.as_ref().map_or(Peer::Unix, |connection| connection.peer)
    }

    pub(crate) fn since(&self) -> Instant {
        self.since
    }

    pub(crate) fn client(&self) -> Client {
        Client(self.connection.as_ref().map_or_else(Weak::new, |connection| Arc::downgrade(&connection.socket)))
    }

    /// The route's own timeout: for its handler, and for a body to make progress.
    pub(crate) fn set_timeout(&mut self, timeout: Duration) {
        (self.timeout, self.budget) = (timeout, Budget::new(timeout));
        if let Some(connection) = &mut self.connection {
            connection.flight_state_used = true;
            connection.socket.flight_state(|state| state.timeout = Some(timeout));
        }
    }

    pub(crate) fn body(&self) -> BodyState {
        self.inbox().map(|inbox| inbox.body.state(inbox.unread())).unwrap_or_default()
    }

    pub(crate) fn read_body(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let Some(connection) = &mut self.connection else { return Ok(0) };
        let budget = (!connection.home.is_here()).then_some(&mut self.budget);
        read::read(connection, into, budget)
    }

    pub(crate) fn consume_body(&mut self, closing: bool) -> bool {
        let Some(connection) = &mut self.connection else { return false };
        let Some(inbox) = &connection.inbox else { return true };
        let state = inbox.body.state(inbox.unread());
        if state.consumed {
            return true;
        }
        // A client that waits for `100 Continue` is told by a final response not to send the body.
        let held_back = inbox.body.is_held_back(inbox.unread().is_empty());
        let limit = connection.home.common.settings.max_discard;
        if state.truncated || held_back || (closing && !state.buffered) || state.remaining.is_some_and(|n| n > limit) {
            return false;
        }
        discard(limit, |into| self.read_body(into)).unwrap_or(false)
    }

    /// Sends a response, and gives the connection back to its receiver.
    pub(crate) fn respond(mut self, response: Response, close: bool, request_id: &str) -> Sent {
        let (head_only, head) = (self.method() == "HEAD", self.head());
        let sends_body_back = response.sends_request_body(head_only);
        let mut consumed = sends_body_back || self.consume_body(close);
        let Some(mut connection) = self.connection.take() else {
            return Sent { status: response.status(), bytes: 0, close: true, error: None };
        };
        let (here, served_here) = (connection.home.is_here(), connection.is_served_here());
        if !served_here {
            if let Answer::Timeout(bytes) = claim(&connection.socket) {
                drop(response);
                connection.after = After::Linger;
                connection.give_back();
                return Sent { status: 503, bytes, close: true, error: Some(SendError::Late) };
            }
        }
        if head.is_err() {
            connection.home.common.stats.count_close(CloseReason::BadRequest);
        }
        let wants_close = head.map_or(true, |head| head.close);
        let close = close || !consumed || wants_close || connection.should_close_for_drain();
        let context = ResponseContext {
            version: head.map_or(Version::Http11, |head| head.version),
            head_only,
            close,
            keep_alive: head.is_ok_and(|head| head.keep_alive),
            request_id,
            automatic: connection.home.common.settings.automatic,
        };
        if let Some(inbox) = &mut connection.inbox {
            inbox.body.expects_continue = false; // a `100 Continue` from here on would be within the response
        }
        let sent = BUFFER.with_borrow_mut(|buffer| {
            let sent = if here {
                let mut out = OutboxWriter { connection: &mut connection, last: close && served_here };
                encode::send(response, &context, buffer, &mut out)
            } else {
                let socket = Arc::clone(&connection.socket);
                let mut out = BlockingWriter::new(&socket, self.timeout);
                let mut rest = read::BodyReader { connection: &mut connection, budget: &mut self.budget };
                encode::send_through(response, &context, buffer, &mut out, &mut rest)
            };
            if buffer.capacity() > MAX_RETAINED_BUFFER {
                *buffer = Vec::new();
            }
            sent
        });
        if sends_body_back {
            consumed = connection.inbox.as_ref().is_none_or(|inbox| inbox.body.is_complete());
        }
        connection.after = match &sent.error {
            // To HTTP/1.0 the end of the connection may be that of the body: a regular end would make it look whole.
            Some(SendError::Client(_)) if context.version == Version::Http11 => After::Close,
            Some(_) => After::Reset,
            None if !close && !sent.close && consumed => After::Keep,
            // The client has said that it sends nothing more.
            None if consumed && head.is_ok() && wants_close && !connection.has_unused_input() => After::Close,
            None => After::Linger,
        };
        connection.give_back();
        sent
    }

    /// Ends the connection without an answer.
    pub(crate) fn abort(mut self, why: CloseReason) {
        if let Some(mut connection) = self.connection.take() {
            connection.home.common.stats.count_close(why);
            connection.after = After::Close;
            connection.give_back();
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if let Some(mut connection) = self.connection.take() {
            connection.after = After::Reset;
            connection.give_back();
        }
    }
}

/// Claims the response for the handler, unless the receiver has answered in its place.
fn claim(socket: &Socket) -> Answer {
    socket.flight_state(|state| {
        if state.answer == Answer::Unclaimed {
            state.answer = Answer::Handler;
        }
        state.answer
    })
}

/// Tells whether the client of a request is still there. It does not keep the connection open.
#[derive(Clone)]
pub(crate) struct Client(Weak<Socket>);

impl Client {
    /// Whether the connection was closed, or the client has ended its side of it.
    pub(crate) fn is_gone(&self) -> bool {
        let Some(socket) = self.0.upgrade() else { return true };
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        // Errors and resets are reported whether they are asked for or not.
        matches!(poll(&mut [PollFd::new(socket.fd(), PollFlags::RDHUP)], Some(&now)), Ok(1..))
    }
}
