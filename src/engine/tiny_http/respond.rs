//! The response to a request of `tiny_http`, and the end or the next request of its connection.

use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::SendFlags;
use socket2::SockRef;

use super::connection::Connection;
use super::connections::AfterResponse;
use super::exchange::Exchange;
use super::{Shared, unread_body};
use crate::engine::CloseReason;
use crate::http::encode::{ResponseContext, SendError, Sent, send, send_through};
use crate::http::response::Response;

/// Maximum response buffer, in bytes, that a thread retains for the next response; larger ones are freed.
const MAX_RETAINED_BUFFER: usize = 16 * 1024;

/// Time from the start of a drain until all requests that had arrived by then are received from `tiny_http`, also on busy
/// cores.
const SETTLED: Duration = Duration::from_millis(50);

thread_local! {
    /// Where a response is put together, so that it leaves in one write.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Exchange {
    pub(crate) fn respond(
        mut self,
        response: Response,
        close: bool,
        request_id: &str,
    ) -> (Sent, Option<crate::engine::Exchange>) {
        let sends_body_back = response.sends_request_body(self.raw.method().as_str() == "HEAD");
        let unread = !sends_body_back && !self.consume_body(close);
        let body = self.body();
        if !self.connection.claim_response() {
            return self.give_up(response);
        }
        if sends_body_back {
            return self.send_body_back(response, request_id);
        }
        if (self.rejection.is_some() || body.truncated) && !body.timed_out {
            self.shared.connections.count_close(CloseReason::BadRequest);
        }
        let last = close || unread || body.truncated || self.head.close || self.should_close_for_drain();
        let context = ResponseContext {
            version: self.head.version,
            head_only: self.raw.method().as_str() == "HEAD",
            close: last,
            keep_alive: self.head.keep_alive,
            request_id,
            automatic: self.shared.settings.automatic,
        };
        let Exchange { shared, connection, raw, quirks, .. } = self;
        if unread {
            let sent = respond_past_body(&shared, &connection, raw, body.remaining, response, &context);
            return (sent, complete(shared, connection, true, false));
        }
        let mut writer = raw.into_writer();
        let sent = write_response(response, &context, &mut writer);
        let mut last = last || sent.close;
        match &sent.error {
            // The request came from a former connection of the same peer. Requests queued behind it may have come from
            // an open one.
            Some(SendError::Client(error))
                if is_disconnect(error)
                    && (connection.is_open_and_connected() || shared.connections.is_superseded(&connection)) =>
            {
                last = false;
            }
            Some(_) => {
                shared.socket_of(&connection); // finds the socket, which the reset needs
                connection.reset();
            }
            None if last && !quirks.engine_closes => {
                // The FIN is sent before tiny_http's thread can add a response of its own. It only does so after an
                // error; without one, and without a known socket, the monitor sends the FIN at its next tick.
                if close {
                    shared.socket_of(&connection);
                }
                connection.shutdown_write();
            }
            None => {}
        }
        drop(writer);
        (sent, complete(shared, connection, last, quirks.engine_closes))
    }

    /// Responds with the request's own body, past `tiny_http`, whose writer ends its reader. The response is the last of
    /// the connection.
    fn send_body_back(mut self, response: Response, request_id: &str) -> (Sent, Option<crate::engine::Exchange>) {
        let context = ResponseContext {
            version: self.head.version,
            head_only: self.raw.method().as_str() == "HEAD",
            close: true,
            keep_alive: false,
            request_id,
            automatic: self.shared.settings.automatic,
        };
        let connection = Arc::clone(&self.connection);
        let proven =
            if connection.has_busy_predecessor() { None } else { self.shared.monitor.prove_socket(connection.peer) };
        let sent = match &proven {
            Some(socket) => {
                let mut buffer = BUFFER.take();
                let mut out = RawSocket(socket);
                send_through(response, &context, &mut buffer, &mut out, &mut BodyReader(&mut self))
            }
            None => {
                self.shared.connections.count_close(CloseReason::Ambiguous);
                let error = io::Error::other("its connection cannot be told from another one");
                Sent { status: response.status(), bytes: 0, close: true, error: Some(SendError::Client(error)) }
            }
        };
        let left = self.remaining();
        let Exchange { shared, raw, .. } = self;
        match proven {
            Some(socket) if sent.error.is_none() => {
                let _ = SockRef::from(&*socket).shutdown(Shutdown::Write); // fails if the peer has left
                connection.begin_closing();
                shared.monitor.linger_until_closed(socket, raw, left);
            }
            Some(_) => {
                connection.reset();
                unread_body::discard_closing(&shared, &connection, raw, left);
            }
            None => unread_body::discard_closing(&shared, &connection, raw, left),
        }
        (sent, complete(shared, connection, true, false))
    }

    /// Drops a response that is too late: the request timeout has sent a 503.
    fn give_up(self, response: Response) -> (Sent, Option<crate::engine::Exchange>) {
        drop(response); // a panic of the application's reader is caught and logged there
        let body_left = self.remaining();
        let Exchange { shared, connection, raw, .. } = self;
        unread_body::discard_closing(&shared, &connection, raw, body_left);
        let sent = Sent { status: 503, bytes: 0, close: true, error: Some(SendError::Late) };
        (sent, complete(shared, connection, true, false))
    }

    /// Whether a drain wants this response to be the last of its connection.
    fn should_close_for_drain(&self) -> bool {
        self.shared.stop_state.announced().is_some_and(|began| {
            self.shared
                .socket_of(&self.connection)
                .is_none_or(|socket| self.connection.has_no_more_input(&socket, began.elapsed() > SETTLED))
        })
    }

    pub(crate) fn abort(self, why: CloseReason) -> Option<crate::engine::Exchange> {
        let body_left = self.remaining();
        let Exchange { shared, connection, raw, .. } = self;
        shared.connections.count_close(why);
        connection.abort();
        unread_body::discard_closing(&shared, &connection, raw, body_left);
        complete(shared, connection, true, false)
    }
}

/// Ends a request in flight, and gives the next of its connection.
fn complete(
    shared: Arc<Shared>,
    connection: Arc<Connection>,
    last: bool,
    engine_closes: bool,
) -> Option<crate::engine::Exchange> {
    let arrived = connection.since();
    let after = shared.connections.complete(&connection, last);
    // Read after `complete`: if the drain starts in between, it still sees this request end.
    let concerns_the_drain = shared.stop_state.accept_stopped().is_some() || shared.stop_state.predates_drain(arrived);
    if concerns_the_drain {
        shared.monitor.wake();
    }
    match after {
        AfterResponse::Next(raw) => {
            return Some(crate::engine::Exchange::TinyHttp(Exchange::new(shared, connection, raw)));
        }
        AfterResponse::Idle => {}
        AfterResponse::Closed(rest) => {
            unread_body::discard_all(&connection, rest, |peer| shared.monitor.abort_peer(peer));
            if engine_closes {
                shared.connections.remove(&connection);
            }
        }
    }
    None
}

/// The rest of a request's body.
struct BodyReader<'a>(&'a mut Exchange);

impl Read for BodyReader<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.0.read_body(into)
    }
}

/// Responds to a request with an unread body. It is kept while the response goes out past `tiny_http`: dropping it would
/// read its body to the end. The monitor drops it when the client has left, or has had time to.
///
/// The response is sent only on a socket that is proven to be the request's own.
fn respond_past_body(
    shared: &Shared,
    connection: &Connection,
    raw: tiny_http::Request,
    body_left: Option<u64>,
    response: Response,
    context: &ResponseContext<'_>,
) -> Sent {
    // Past tiny_http a response could overtake that of an earlier request of the same connection.
    let proven = if connection.has_busy_predecessor() { None } else { shared.monitor.prove_socket(connection.peer) };
    let Some(socket) = proven else {
        shared.connections.count_close(CloseReason::Ambiguous);
        unread_body::discard_closing(shared, connection, raw, body_left);
        let error = io::Error::other("its connection cannot be told from another one");
        return Sent { status: response.status(), bytes: 0, close: true, error: Some(SendError::Client(error)) };
    };
    let sent = write_response(response, context, &mut RawSocket(&socket));
    if sent.error.is_some() {
        connection.reset(); // to HTTP/1.0 the end of the connection may be that of the body
        unread_body::discard_closing(shared, connection, raw, body_left);
        return sent;
    }
    let _ = SockRef::from(&*socket).shutdown(Shutdown::Write); // fails if the peer has left
    connection.begin_closing();
    shared.monitor.linger_until_closed(socket, raw, body_left);
    sent
}

/// Whether a write failed because the socket is closed, as opposed to a client that does not read.
fn is_disconnect(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

fn write_response(response: Response, context: &ResponseContext<'_>, out: &mut dyn Write) -> Sent {
    // Taken, not borrowed: the reader of a body is the application's code, which may respond as well.
    let mut buffer = BUFFER.take();
    let sent = send(response, context, &mut buffer, out);
    if buffer.capacity() <= MAX_RETAINED_BUFFER {
        BUFFER.set(buffer);
    }
    sent
}

/// The socket itself, past `tiny_http`: for a response whose request must not be dropped yet. Its request is the first
/// of its connection, so that `tiny_http` writes nothing at the same time.
struct RawSocket<'a>(&'a OwnedFd);

impl Write for RawSocket<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::net::send(self.0, bytes, SendFlags::NOSIGNAL)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
