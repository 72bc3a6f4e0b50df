//! An exchange with `tiny_http`: the head and the body of its request.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Shared;
use super::conn_state::Activity;
use super::connection::Connection;
use super::quirks::{self, Quirks};
use super::unread_body;
use crate::clock::saturating_add;
use crate::engine::discard::discard;
use crate::engine::progress::Budget;
use crate::engine::{BodyState, CloseReason, Peer};
use crate::http::head::{Framing, Rejection, RequestHead};
use crate::sys::tcp::tcp_info;

/// A request in flight.
pub(crate) struct Exchange {
    pub(super) shared: Arc<Shared>,
    pub(super) connection: Arc<Connection>,
    pub(super) raw: tiny_http::Request,
    since: Instant,
    pub(super) head: RequestHead,
    pub(super) rejection: Option<Rejection>,
    pub(super) quirks: Quirks,
    body: BodyProgress,
    /// Deadline for the handler to start its response.
    deadline: Instant,
    /// Time budget of the client for the body.
    budget: Budget,
}

/// The progress of reading the body.
#[derive(Clone, Copy, Debug, Default)]
struct BodyProgress {
    read: u64,
    ended: bool,
    truncated: bool,
}

impl Exchange {
    pub(super) fn new(shared: Arc<Shared>, connection: Arc<Connection>, raw: tiny_http::Request) -> Exchange {
        let (head, quirks, rejection) = match quirks::validate_request(&raw) {
            // Dropping the request would allocate the whole length.
            Ok((head, quirks)) if matches!(head.framing, Framing::Length(length) if !unread_body::is_allocatable(length)) => {
                (head, quirks, Some(Rejection { status: 413, reason: "the body is too large" }))
            }
            Ok((head, quirks)) => (head, quirks, None),
            Err(rejection) => {
                let (head, quirks) = quirks::of_rejected(&raw);
                (head, quirks, Some(rejection))
            }
        };
        let body = BodyProgress::default();
        let (since, timeout) = (Instant::now(), shared.settings.request_timeout);
        let (deadline, budget) = (saturating_add(since, timeout), Budget::new(timeout));
        Exchange { shared, connection, raw, since, head, rejection, quirks, body, deadline, budget }
    }

    pub(crate) fn method(&self) -> &str {
        self.raw.method().as_str()
    }

    pub(crate) fn target(&self) -> &str {
        self.raw.url()
    }

    pub(crate) fn headers(&self) -> Headers<'_> {
        Headers(self.raw.headers().iter())
    }

    pub(crate) fn head(&self) -> Result<RequestHead, Rejection> {
        self.rejection.map_or(Ok(self.head), Err)
    }

    pub(crate) fn peer(&self) -> Peer {
        Peer::Inet(self.connection.peer)
    }

    pub(crate) fn since(&self) -> Instant {
        self.since
    }

    pub(crate) fn client(&self) -> Client {
        Client { shared: Arc::clone(&self.shared), connection: Arc::clone(&self.connection) }
    }

    pub(crate) fn body(&self) -> BodyState {
        BodyState {
            remaining: self.remaining(),
            consumed: self.is_body_consumed(),
            truncated: self.body.truncated,
            timed_out: self.body.truncated && self.connection.body_deadline_passed(),
            buffered: self.quirks.body_buffered || self.is_body_consumed(),
        }
    }

    pub(super) fn remaining(&self) -> Option<u64> {
        match self.head.framing {
            Framing::None => Some(0),
            Framing::Length(length) => Some(length.saturating_sub(self.body.read)),
            Framing::Chunked => None,
        }
    }

    fn is_body_consumed(&self) -> bool {
        self.body.ended || self.remaining() == Some(0)
    }

    pub(crate) fn read_body(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() || self.is_body_consumed() {
            return Ok(0);
        }
        // Where the client asks for another protocol, tiny_http's reader goes on beyond the body.
        let remaining = self.remaining().map_or(usize::MAX, |left| usize::try_from(left).unwrap_or(usize::MAX));
        let most = remaining.min(into.len());
        match self.read_raw(&mut into[..most]) {
            Ok(0) => {
                self.body.ended = true;
                self.body.truncated = match self.head.framing {
                    Framing::None => false,
                    Framing::Length(length) => self.body.read < length,
                    // tiny_http ends a chunked body alike at its last chunk and where the connection broke off within a
                    // chunk. A client that has sent everything, and has shut its side already, looks like one that
                    // broke off: the body counts as truncated.
                    Framing::Chunked => self.has_input_ended(),
                };
                if self.body.truncated {
                    return Err(io::Error::new(self.truncation(), "the body ended early"));
                }
                Ok(0)
            }
            Ok(n) => {
                self.body.read += n as u64;
                self.connection.on_parsed(n as u64);
                Ok(n)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(error),
            Err(error) => {
                self.body.ended = true;
                self.body.truncated = true;
                Err(error)
            }
        }
    }

    /// Reads the body, with a deadline that the monitor enforces where the read may block.
    fn read_raw(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.quirks.body_buffered {
            return self.raw.as_reader().read(into);
        }
        let started = Instant::now();
        self.connection.set_activity(Activity::Reading { deadline: saturating_add(started, self.budget.left()) });
        let result = self.raw.as_reader().read(into);
        let ended = Instant::now();
        self.budget.spend(ended - started, *result.as_ref().unwrap_or(&0) as u64);
        // The client's time does not count against the handler.
        self.deadline = saturating_add(self.deadline, ended - started);
        self.connection.set_activity(Activity::Handling { deadline: self.deadline });
        result
    }

    pub(crate) fn set_timeout(&mut self, timeout: Duration) {
        self.budget = Budget::new(timeout);
        self.deadline = saturating_add(self.since, timeout);
        self.connection.set_activity(Activity::Handling { deadline: self.deadline });
    }

    /// Whether the input of this request's connection has ended. If the known socket says so, it must be proven to be
    /// this request's: the client may have connected again from the same port.
    fn has_input_ended(&self) -> bool {
        if !self.connection.has_input_ended() {
            return false;
        }
        let Some(socket) = self.shared.monitor.prove_socket(self.connection.peer) else {
            self.shared.connections.count_close(CloseReason::Ambiguous);
            self.shared.monitor.abort_peer(self.connection.peer);
            return true;
        };
        self.connection.body_deadline_passed() || tcp_info(&*socket).is_ok_and(|info| info.close_wait || info.closed)
    }

    fn truncation(&self) -> io::ErrorKind {
        if self.connection.body_deadline_passed() { io::ErrorKind::TimedOut } else { io::ErrorKind::UnexpectedEof }
    }

    pub(crate) fn consume_body(&mut self, closing: bool) -> bool {
        if self.is_body_consumed() || self.body.truncated {
            return true;
        }
        // With `Expect: 100-continue` and no 100 sent, the client holds the body back, and a final status tells it not to
        // send it.
        if !self.quirks.body_buffered && (closing || self.has_header("expect")) {
            return false;
        }
        let limit = self.shared.settings.max_discard;
        if self.remaining().is_some_and(|remaining| remaining > limit) {
            return false;
        }
        discard(limit, |into| self.read_body(into)).unwrap_or_else(|_| self.is_body_consumed())
    }

    fn has_header(&self, name: &str) -> bool {
        self.headers().any(|(known, _)| known.eq_ignore_ascii_case(name))
    }

    pub(crate) fn expect_body(&self) {
        if !self.quirks.body_buffered || self.head.framing == Framing::Chunked {
            // Only the socket shows whether a chunked body is whole; and a body needs a larger buffer than heads.
            if let Some(socket) = self.shared.socket_of(&self.connection) {
                super::socket::grow_receive_buffer(&socket);
            }
        }
    }

    pub(crate) fn can_answer_inline(&self) -> bool {
        (self.rejection.is_some() || self.quirks.body_buffered) && self.can_write_inline()
    }

    pub(crate) fn can_write_inline(&self) -> bool {
        // If the connection will be closed, the socket is searched for now, while the client is still connected.
        let closes = self.rejection.is_some() || !self.quirks.body_buffered;
        (!closes || self.shared.socket_of(&self.connection).is_some())
            && !self.connection.has_busy_predecessor()
            && self.connection.can_write_without_blocking(|| self.shared.socket_of(&self.connection))
    }
}

/// The headers of a request.
#[derive(Clone)]
pub(crate) struct Headers<'a>(std::slice::Iter<'a, tiny_http::Header>);

impl<'a> Iterator for Headers<'a> {
    type Item = (&'a str, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let header = self.0.next()?;
        Some((header.field.as_str().as_str(), header.value.as_str().as_bytes()))
    }
}

/// Tells whether a client is still there.
#[derive(Clone)]
pub(crate) struct Client {
    shared: Arc<Shared>,
    connection: Arc<Connection>,
}

impl Client {
    pub(crate) fn is_gone(&self) -> bool {
        // Searched for first: a connection without a known socket counts as ended.
        self.shared.socket_of(&self.connection);
        self.connection.has_input_ended()
    }
}
