//! The ends of a receiver's connections: lingering, eviction, timeouts.

use std::io;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::net::Shutdown;

use super::common::late_response;
use super::connection::{Answer, Connection, Socket};
use super::receiver::{LINGERING_TIMEOUT, Receiver};
use super::slots::{Interest, Queue, State};
use crate::engine::CloseReason;

/// Bytes that are discarded in one read of what a client sends after the last response.
const DISCARD: usize = 16 * 1024;

/// Most bytes that are discarded on one connection: a client that sends more does not read its response.
const MAX_DISCARDED: usize = 1024 * 1024;

/// Interval of checks of a late handler in whose place the receiver cannot answer yet.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

impl Receiver {
    /// Keeps a connection whose response the kernel has not taken whole, until there is room for more. Its request is in
    /// flight for as long.
    pub(super) fn wait_for_room(&mut self, slot: u32, connection: Box<Connection>) {
        self.mailbox.begin_request(self.now);
        self.mailbox.begin_flight(slot, self.flight(connection.peer, true));
        self.slots.dequeue(slot);
        self.set_interest(slot, Interest::Write);
        self.set_timer(slot, self.now.checked_add(self.common.settings.request_timeout));
        self.slots.get(slot).state = State::Writing(connection);
    }

    pub(super) fn flush(&mut self, slot: u32) {
        let State::Writing(mut connection) = self.take_state(slot) else { return };
        match connection.flush() {
            Ok(false) => self.slots.get(slot).state = State::Writing(connection),
            Err(_) => {
                self.mailbox.end_flight(slot);
                self.close(slot, connection, None);
            }
            Ok(true) => {
                self.mailbox.end_flight(slot);
                self.changed = true;
                self.set_timer(slot, None);
                if let Some(connection) = self.after_response(slot, connection) {
                    self.serve(slot, connection);
                }
            }
        }
    }

    /// Ends this side of a connection, and waits for the client to do the same.
    pub(super) fn linger(&mut self, slot: u32, mut connection: Box<Connection>) {
        self.count_head(slot, 0);
        let mut has_body_to_come = false;
        if let Some(inbox) = connection.inbox.take() {
            has_body_to_come = !inbox.body.is_complete();
            self.keep_inbox(inbox);
        }
        if rustix::net::shutdown(connection.socket.fd(), Shutdown::Write).is_err() {
            return self.close(slot, connection, None); // the client has left
        }
        self.set_interest(slot, Interest::Discard);
        connection.sent = 0;
        let entry = self.slots.get(slot);
        entry.since = self.now;
        entry.state = State::Lingering(connection);
        // A drain is short with those in the queue. Here, bytes that arrive after the close would reset the connection,
        // and with it a response that the client has not read yet.
        if has_body_to_come {
            self.slots.dequeue(slot);
            self.set_timer(slot, self.now.checked_add(LINGERING_TIMEOUT));
        } else {
            self.set_timer(slot, None);
            self.slots.enqueue(slot, Queue::Lingering);
        }
        self.mailbox.lingering.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn discard_input(&mut self, slot: u32) {
        let State::Lingering(connection) = &mut self.slots.get(slot).state else { return };
        let mut buffer = [0; DISCARD];
        match connection.socket.receive(&mut buffer) {
            Ok(count @ 1..) if connection.sent + count < MAX_DISCARDED => connection.sent += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Ok(_) | Err(_) => self.end_lingering(slot),
        }
    }

    pub(super) fn end_lingering(&mut self, slot: u32) {
        if let State::Lingering(connection) = self.take_state(slot) {
            self.mailbox.lingering.fetch_sub(1, Ordering::Relaxed);
            self.close(slot, connection, None);
        }
    }

    /// Closes a connection that is idle, unless something has arrived: that is served. True if it was closed.
    pub(super) fn close_idle(&mut self, slot: u32, why: CloseReason) -> bool {
        let (was_empty, changed) = (self.is_idle_and_empty(slot), std::mem::take(&mut self.changed));
        self.receive(slot);
        // A request was answered, or a head has begun: more of one that had begun before is not enough.
        let has_spoken = self.changed || self.is_idle_and_empty(slot) != was_empty;
        self.changed |= changed;
        if has_spoken || !matches!(self.slots.get(slot).state, State::Idle(_)) {
            return false;
        }
        let State::Idle(connection) = self.take_state(slot) else { return false };
        self.close(slot, connection, Some(why));
        true
    }

    fn is_idle_and_empty(&mut self, slot: u32) -> bool {
        matches!(&self.slots.get(slot).state, State::Idle(connection) if connection.inbox.is_none())
    }

    /// Closes a connection.
    pub(super) fn close(&mut self, slot: u32, mut connection: Box<Connection>, why: Option<CloseReason>) {
        if let Some(why) = why {
            self.common.stats.count_close(why);
        }
        if let Some(inbox) = connection.inbox.take() {
            self.keep_inbox(inbox);
        }
        self.count_head(slot, 0);
        self.set_timer(slot, None);
        self.slots.remove(slot);
        drop(connection); // the socket is closed, which takes it out of the epoll set
        self.mailbox.open.fetch_sub(1, Ordering::SeqCst);
        self.changed = true;
        self.engine.connection_closed();
    }

    /// Ends the waits whose time is over.
    pub(super) fn expire(&mut self) {
        let (now, idle_timeout) = (self.now, self.common.settings.idle_timeout);
        let is_over = |span| move |(_, since): &(u32, Instant)| now.saturating_duration_since(*since) >= span;
        while let Some((slot, _)) = self.slots.first(Queue::Idle).filter(is_over(idle_timeout)) {
            self.close_idle(slot, CloseReason::IdleTimeout);
        }
        while let Some((slot, _)) = self.slots.first(Queue::Lingering).filter(is_over(LINGERING_TIMEOUT)) {
            self.end_lingering(slot);
        }
        while let Some(slot) = self.timers.pop_due(self.now) {
            self.slots.get(slot).timer = None;
            match self.slots.get(slot).state {
                State::Busy => self.check_handler(slot),
                State::Writing(_) => {
                    if let State::Writing(connection) = self.take_state(slot) {
                        self.mailbox.end_flight(slot);
                        self.close(slot, connection, Some(CloseReason::SlowReader));
                    }
                }
                State::Idle(_) if self.drain.is_some() => {
                    self.close_idle(slot, CloseReason::Drain);
                }
                // Accepting was resumed: the idle timeout holds again.
                State::Idle(_) => {
                    self.slots.get(slot).since = self.now;
                    self.slots.enqueue(slot, Queue::Idle);
                }
                State::Lingering(_) => self.end_lingering(slot),
                State::Free | State::Ready(_) => {}
            }
        }
    }

    /// Answers in the place of a handler that has used up its time. Returns without an answer if it has not, and checks
    /// again later.
    pub(super) fn check_handler(&mut self, slot: u32) {
        let entry = self.slots.get(slot);
        let (since, now, timeout) = (entry.since, self.now, self.common.settings.request_timeout);
        let Some(socket) = self.socket(slot) else { return };
        let automatic = self.common.settings.automatic;
        let is_head = |flight: super::mailbox::Flight| flight.request_line.starts_with("HEAD ");
        let head_only = now > since && self.mailbox.flight(slot).is_some_and(is_head);
        let next = socket.flight_state(|state| {
            if state.answer != Answer::Unclaimed {
                return None; // the handler has answered, and the client reads
            }
            let timeout = state.timeout.unwrap_or(timeout);
            let used =
                state.blocked_since.unwrap_or(now).saturating_duration_since(since).saturating_sub(state.blocked);
            let left = timeout.saturating_sub(used);
            if !left.is_zero() {
                return now.checked_add(left);
            }
            if state.blocked_since.is_some() {
                return now.checked_add(LOOK_AGAIN); // the body has a deadline of its own
            }
            let response = late_response(head_only, automatic);
            // A client that has not read an earlier response has as much time for that as the handler had.
            let Some(sent) = send_last(&socket, &response, used < timeout.saturating_mul(2)) else {
                return now.checked_add(timeout.min(LOOK_AGAIN));
            };
            state.answer = Answer::Timeout(sent as u64);
            None
        });
        if next.is_none() && matches!(socket.flight_state(|state| state.answer), Answer::Timeout(_)) {
            self.common.stats.count_close(CloseReason::RequestTimeout);
            if let Some(flight) = self.mailbox.flight(slot) {
                log::warn!("503: {} from {} was not answered in time", flight.request_line, flight.peer);
            }
        }
        self.set_timer(slot, next);
    }
}

/// Sends a whole response, and ends this side of the connection; or resets it, because a part must not look like the
/// whole. Returns how many bytes were sent. With `may_wait`, returns `None` and does nothing if there is no room for
/// any.
fn send_last(socket: &Socket, response: &[u8], may_wait: bool) -> Option<usize> {
    let sent = match socket.send(response) {
        Err(error) if may_wait && error.kind() == io::ErrorKind::WouldBlock => return None,
        result => result.unwrap_or(0),
    };
    if sent == response.len() {
        let _ = rustix::net::shutdown(socket.fd(), Shutdown::Write); // fails if the peer has left
    } else {
        socket.reset();
    }
    Some(sent)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn without_room_for_the_last_response_the_receiver_waits_or_resets_the_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        for reads in [true, false] {
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (server, _) = listener.accept().unwrap();
            server.set_nonblocking(true).unwrap();
            let socket = Socket::new(server.into());
            let mut before = 0;
            let mut send_behind_others = |may_wait| {
                while let Ok(count) = socket.send(&[b'x'; 1000]) {
                    before += count; // an earlier response, until there is no room
                }
                send_last(&socket, b"last", may_wait)
            };
            assert_eq!(send_behind_others(true), None);
            let mut received = vec![0; 10_000_000];
            if reads {
                let mut count = client.read(&mut received).unwrap();
                while send_last(&socket, b"last", true).is_none() {
                    count += client.read(&mut received[count..]).unwrap();
                }
                received.truncate(count);
                client.read_to_end(&mut received).expect("a regular end");
                assert!(received.ends_with(b"xlast") && received.len() == before + 4);
            } else {
                assert_eq!(send_behind_others(false), Some(0));
                let error = client.read_to_end(&mut received).expect_err("this is no regular end");
                assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
            }
        }
    }
}
