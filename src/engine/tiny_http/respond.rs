//! The response to a request of `tiny_http`, and what becomes of its connection.

use std::cell::RefCell;
use std::io::{self, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::SendFlags;

use super::connections::{AfterResponse, Connection};
use super::exchange::Exchange;
use super::{Shared, unread_body};
use crate::engine::CloseReason;
use crate::http::encode::{ResponseContext, Sent, send};
use crate::http::response::Response;

/// Memory of a response, in bytes, that a thread keeps for the next one; larger buffers are freed.
const MAX_RETAINED_BUFFER: usize = 16 * 1024;

/// Time after the start of a drain in which all that had arrived by then is received from `tiny_http`, also on busy cores.
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
        let (closing, truncated) = (close, self.body().truncated);
        if (self.rejection.is_some() || truncated) && !self.body().timed_out {
            self.shared.connections.count_close(CloseReason::BadRequest);
        }
        let unread = !self.consume_body(close);
        let close = close || unread || truncated || self.head.close || self.should_close_for_drain();
        let context = ResponseContext {
            version: self.head.version,
            head_only: self.method() == "HEAD",
            close,
            keep_alive: self.head.keep_alive,
            request_id,
        };
        let body_left = self.remaining();
        let Exchange { shared, connection, mut raw, quirks, .. } = self;
        let sent;
        if let Some(socket) = unread.then(|| shared.socket_of(&connection)).flatten() {
            // The request is kept while the response goes out past it: dropping it would read its body to the end. The
            // monitor drops it when the client has left, or has had time to.
            sent = write_response(response, &context, &mut RawSocket(&socket));
            connection.shut_down(Shutdown::Write);
            shared.monitor.linger_until_closed(socket, raw, body_left);
        } else {
            if unread {
                unread_body::forget(&mut raw, body_left.unwrap_or(0));
            }
            let mut writer = raw.into_writer();
            sent = write_response(response, &context, &mut writer);
            if sent.error.is_some() {
                shared.socket_of(&connection); // without it nothing can be shut down
                connection.shut_down(Shutdown::Both);
            } else if (close || sent.close) && !quirks.engine_closes {
                // The end of the stream goes out before tiny_http's own thread can add a word to it. Where all is well
                // it has no word to add: then the monitor can see to it, in a tick, if the socket is not known yet.
                if closing {
                    shared.socket_of(&connection);
                }
                connection.shut_down(Shutdown::Write);
            }
            drop(writer);
        }
        let last = close || sent.close;
        (sent, complete(shared, connection, last, quirks.engine_closes))
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
        connection.shut_down(Shutdown::Both);
        unread_body::discard_closing(&shared, raw, body_left);
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
    let after = shared.connections.finish(&connection, last);
    // Read after `finish`: if the drain starts in between, it still sees this request end.
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
            for raw in rest {
                unread_body::discard_closing(&shared, raw, None);
            }
            if engine_closes {
                shared.connections.forget(&connection);
            }
        }
    }
    None
}

fn write_response(response: Response, context: &ResponseContext<'_>, out: &mut dyn Write) -> Sent {
    // Taken, not borrowed: the reader of a body is foreign code.
    let mut buffer = BUFFER.take();
    let sent = send(response, context, &mut buffer, out);
    if buffer.capacity() <= MAX_RETAINED_BUFFER {
        BUFFER.set(buffer);
    }
    sent
}

/// The socket itself, past `tiny_http`: for a response whose request must not be dropped yet. It is the first in line,
/// so that nothing of `tiny_http` itself can be on its way at the same time.
struct RawSocket<'a>(&'a OwnedFd);

impl Write for RawSocket<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::net::send(self.0, bytes, SendFlags::NOSIGNAL)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
