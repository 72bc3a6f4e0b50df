//! How a receiver serves the requests that a connection has sent, one after the other.

use std::time::Duration;

use rustix::net::Shutdown;

use super::common::plain_response;
use super::connection::{After, Connection, FlightState, close_reason};
use super::exchange::Exchange;
use super::mailbox::Flight;
use super::parse::Progress;
use super::receiver::Receiver;
use super::slots::{Interest, Queue, State};
use crate::engine::Peer;
use crate::http::head::Rejection;
use crate::text::escaped;

/// Pipelined requests of one connection that are answered in a row.
pub(super) const IN_A_ROW: usize = 16;

/// Bytes of a method and target that are kept for the log.
const MAX_REQUEST_LINE: usize = 200;

impl Receiver {
    /// Serves the requests in the inbox of a connection.
    pub(super) fn serve(&mut self, slot: u32, mut connection: Box<Connection>) {
        for served in 0..IN_A_ROW {
            let Some(inbox) = &mut connection.inbox else { return self.set_idle(slot, connection, true) };
            match inbox.parse() {
                Ok(Progress::Complete(_)) => {}
                Ok(Progress::Partial) => return self.set_idle(slot, connection, served > 0),
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
        self.set_timer(slot, None);
        self.slots.get(slot).state = State::Ready(connection);
    }

    /// Serves one request. Gives the connection back if bytes of another one have arrived.
    fn serve_one(&mut self, slot: u32, mut connection: Box<Connection>) -> Option<Box<Connection>> {
        self.count_head(slot, 0);
        if std::mem::take(&mut connection.flight_state_used) {
            connection.socket.flight_state(|state| *state = FlightState::default());
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
        Connection::begin_serving(slot);
        let next = (self.serve)(crate::engine::Exchange::Native(Exchange::new(connection, self.now)));
        debug_assert!(next.is_none(), "the next request of a connection is this receiver's business");
        let completed = Connection::take_completed();
        match completed {
            Some(connection) => {
                self.mailbox.end_request();
                self.changed = true;
                self.after_response(slot, connection)
            }
            None => {
                self.mailbox.begin_flight(slot, self.flight(peer, false));
                self.slots.get(slot).since = self.now;
                self.slots.dequeue(slot);
                self.check_handler(slot);
                None
            }
        }
    }

    /// The request that was received last, as others see it.
    pub(super) fn flight(&self, peer: Peer, is_answered: bool) -> Flight {
        // A rejected request goes this way as well, whatever its bytes are.
        let (method, target) = self.request_line.split_once(' ').unwrap_or_default();
        let request_line = format!("{} {}", escaped(method), escaped(target));
        Flight { request_line, peer, since: self.now, is_answered }
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
            After::Close => {
                // Sends the response that `MSG_MORE` has held back. `close` would reset the connection if the client
                // has sent more meanwhile.
                let _ = rustix::net::shutdown(connection.socket.fd(), Shutdown::Write); // fails if the client has left
                self.close(slot, connection, None);
            }
            After::Linger => self.linger(slot, connection),
            After::Reset => {
                let _ = rustix::net::sockopt::set_socket_linger(connection.socket.fd(), Some(Duration::ZERO));
                self.close(slot, connection, None);
            }
        }
        None
    }

    /// Serves the connections that had to wait because others were served first.
    pub(super) fn serve_ready(&mut self) {
        for _ in 0..self.ready.len() {
            let Some(slot) = self.ready.pop_front().and_then(|key| self.slots.find(key)) else { continue };
            if let State::Ready(connection) = self.take_state(slot) {
                self.serve(slot, connection);
            }
        }
    }

    /// Answers bytes that are no request, and closes the connection.
    fn reject(&mut self, slot: u32, connection: Box<Connection>, rejection: Rejection) {
        self.common.count_unparsable(close_reason(rejection), connection.peer, rejection.reason);
        let Rejection { status, reason } = rejection;
        let response = plain_response(status, reason, self.common.settings.automatic);
        let _ = connection.socket.send(&response); // the client left
        self.linger(slot, connection);
    }

    /// Makes a connection wait for a head, or for the rest of it. `since_now`: its time begins now, because a response
    /// was completed since it last waited.
    pub(super) fn set_idle(&mut self, slot: u32, mut connection: Box<Connection>, since_now: bool) {
        let mut held = 0;
        if let Some(inbox) = connection.inbox.take() {
            if inbox.is_blank() {
                self.keep_inbox(inbox);
            } else {
                held = inbox.capacity();
                connection.inbox = Some(inbox);
            }
        }
        self.set_interest(slot, Interest::Read);
        self.slots.get(slot).state = State::Idle(connection);
        self.count_head(slot, held);
        // Every connection that waits has a deadline: by its queue, or by a timer of its own.
        if since_now || !self.slots.has_deadline(slot) {
            self.set_timer(slot, None);
            self.slots.get(slot).since = self.now;
            self.slots.enqueue(slot, Queue::Idle);
        }
        self.bound_long_heads();
    }

    /// Counts the buffer of a connection that waits for the rest of a head; other connections pass 0.
    pub(super) fn count_head(&mut self, slot: u32, held: usize) {
        let entry = self.slots.get(slot);
        if held > 0 || entry.long_head.is_some() {
            entry.long_head = self.long_heads.set(slot, entry.long_head, held);
        }
    }

    /// Rejects the oldest long heads while all together exceed their bound.
    fn bound_long_heads(&mut self) {
        while let Some(slot) = self.long_heads.oldest_beyond_limit() {
            self.count_head(slot, 0);
            if let State::Idle(connection) = self.take_state(slot) {
                self.reject(slot, connection, Rejection { status: 431, reason: "too many long heads are under way" });
            }
        }
    }
}
