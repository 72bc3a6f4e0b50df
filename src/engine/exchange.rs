//! An exchange: a request whose turn it is on its connection, and the right to respond to it; the same for every
//! engine.

use std::io;
use std::time::{Duration, Instant};

#[cfg(feature = "tiny-http")]
use super::tiny_http;
use super::{CloseReason, Peer, ResponseSlot, memory, native};
use crate::http::body::Body;
use crate::http::encode::Sent;
use crate::http::head::{Rejection, RequestHead};
use crate::http::response::Response;

/// Progress of the body of a request.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct BodyState {
    /// Bytes of the body that were not read yet, if its length is known.
    pub(crate) remaining: Option<u64>,
    /// The body was read to its end.
    pub(crate) consumed: bool,
    /// The body broke its framing or ended early: where the next request begins is not known.
    pub(crate) truncated: bool,
    /// The client did not send the body in time.
    pub(crate) timed_out: bool,
    /// Reading the body never blocks.
    pub(crate) buffered: bool,
}

/// A request in flight, and the right to answer it once.
#[allow(clippy::large_enum_variant, reason = "what is received is moved often, and never boxed")]
pub(crate) enum Exchange {
    #[cfg(feature = "tiny-http")]
    TinyHttp(tiny_http::Exchange),
    Native(native::Exchange),
    /// Boxed: only tests have one.
    Memory(Box<memory::Exchange>),
}

macro_rules! delegate {
    ($self:expr, $exchange:ident => $call:expr) => {
        match $self {
            #[cfg(feature = "tiny-http")]
            Exchange::TinyHttp($exchange) => $call,
            Exchange::Native($exchange) => $call,
            Exchange::Memory($exchange) => $call,
        }
    };
}

impl Exchange {
    /// A request that is made in this process, not received.
    pub(crate) fn in_memory(
        method: String,
        target: String,
        headers: Vec<(String, Vec<u8>)>,
        body: Body,
        peer: Peer,
    ) -> Exchange {
        Exchange::Memory(Box::new(memory::Exchange::new(method, target, headers, body, peer)))
    }

    /// Receives the response of a request that was made in this process.
    pub(crate) fn response_slot(&self) -> Option<ResponseSlot> {
        if let Exchange::Memory(exchange) = self { Some(exchange.slot()) } else { None }
    }

    pub(crate) fn method(&self) -> &str {
        delegate!(self, exchange => exchange.method())
    }

    /// The target as it was sent.
    pub(crate) fn target(&self) -> &str {
        delegate!(self, exchange => exchange.target())
    }

    /// All headers in the order they were sent.
    pub(crate) fn headers(&self) -> Headers<'_> {
        match self {
            #[cfg(feature = "tiny-http")]
            Exchange::TinyHttp(exchange) => Headers::TinyHttp(exchange.headers()),
            Exchange::Memory(exchange) => Headers::Memory(exchange.headers()),
            Exchange::Native(exchange) => Headers::Native(exchange.headers()),
        }
    }

    /// The valid head, or the reason for the rejection.
    pub(crate) fn head(&self) -> Result<RequestHead, Rejection> {
        delegate!(self, exchange => exchange.head())
    }

    pub(crate) fn peer(&self) -> Peer {
        delegate!(self, exchange => exchange.peer())
    }

    /// The moment of dispatch, from which the request timeout counts.
    pub(crate) fn since(&self) -> Instant {
        delegate!(self, exchange => exchange.since())
    }

    /// Reads the body; sends `100 Continue` first if the client waits for it.
    /// Errors: `UnexpectedEof`: the body ended early. `TimedOut`: it did not come in time. Others: the connection
    /// failed.
    pub(crate) fn read_body(&mut self, into: &mut [u8]) -> io::Result<usize> {
        delegate!(self, exchange => exchange.read_body(into))
    }

    pub(crate) fn body(&self) -> BodyState {
        delegate!(self, exchange => exchange.body())
    }

    /// Reads the rest of the body and discards it, within limits, so that the connection can go on. False if it
    /// could not: then the response is the last of its connection.
    pub(crate) fn consume_body(&mut self, closing: bool) -> bool {
        match self {
            #[cfg(feature = "tiny-http")]
            Exchange::TinyHttp(exchange) => exchange.consume_body(closing),
            Exchange::Native(exchange) => exchange.consume_body(closing),
            Exchange::Memory(exchange) => exchange.consume_body(),
        }
    }

    /// Sets the request timeout of the route, in place of the service's.
    pub(crate) fn set_timeout(&mut self, timeout: Duration) {
        match self {
            #[cfg(feature = "tiny-http")]
            Exchange::TinyHttp(exchange) => exchange.set_timeout(timeout),
            Exchange::Native(exchange) => exchange.set_timeout(timeout),
            Exchange::Memory(_) => {} // no client waits
        }
    }

    /// Announces that more of the body is about to be read: the engine may enlarge the receive buffer.
    pub(crate) fn expect_body(&self) {
        match self {
            #[cfg(feature = "tiny-http")]
            Exchange::TinyHttp(exchange) => exchange.expect_body(),
            Exchange::Native(_) | Exchange::Memory(_) => {}
        }
    }

    /// Whether a small response can be written without blocking, and no read of the body would block.
    pub(crate) fn can_answer_inline(&self) -> bool {
        match self {
            #[cfg(feature = "tiny-http")]
            Exchange::TinyHttp(exchange) => exchange.can_answer_inline(),
            Exchange::Native(exchange) => exchange.body().buffered,
            Exchange::Memory(_) => true,
        }
    }

    /// As [`can_answer_inline`](Self::can_answer_inline), for a response that closes the connection if the body has not
    /// arrived.
    pub(crate) fn can_write_inline(&self) -> bool {
        match self {
            #[cfg(feature = "tiny-http")]
            Exchange::TinyHttp(exchange) => exchange.can_write_inline(),
            // What the kernel does not take stays in the outbox.
            Exchange::Native(_) | Exchange::Memory(_) => true,
        }
    }

    /// Sends a response. With `close`, it is the last of its connection. Returns what was sent, and the connection's next
    /// request.
    pub(crate) fn respond(self, response: Response, close: bool, request_id: &str) -> (Sent, Option<Exchange>) {
        match self {
            #[cfg(feature = "tiny-http")]
            Exchange::TinyHttp(exchange) => exchange.respond(response, close, request_id),
            // The connection's receiver serves its next request.
            Exchange::Native(exchange) => (exchange.respond(response, close, request_id), None),
            Exchange::Memory(exchange) => (exchange.respond(response), None),
        }
    }

    /// Ends the connection without an answer.
    pub(crate) fn abort(self, why: CloseReason) -> Option<Exchange> {
        match self {
            #[cfg(feature = "tiny-http")]
            Exchange::TinyHttp(exchange) => exchange.abort(why),
            Exchange::Native(exchange) => {
                exchange.abort(why);
                None
            }
            Exchange::Memory(_) => None,
        }
    }

    /// A handle that tells whether the client is still there.
    pub(crate) fn client(&self) -> Client {
        match self {
            #[cfg(feature = "tiny-http")]
            Exchange::TinyHttp(exchange) => Client::TinyHttp(exchange.client()),
            Exchange::Native(exchange) => Client::Native(exchange.client()),
            Exchange::Memory(_) => Client::Memory,
        }
    }
}

/// Names and values of a request's headers. Values may hold bytes above 0x7F (RFC 9110, section 5.5, `obs-text`).
#[derive(Clone)]
pub(crate) enum Headers<'a> {
    #[cfg(feature = "tiny-http")]
    TinyHttp(tiny_http::Headers<'a>),
    Memory(memory::Headers<'a>),
    Native(native::Headers<'a>),
}

impl<'a> Iterator for Headers<'a> {
    type Item = (&'a str, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            #[cfg(feature = "tiny-http")]
            Headers::TinyHttp(headers) => headers.next(),
            Headers::Memory(headers) => headers.next(),
            Headers::Native(headers) => headers.next(),
        }
    }
}

/// Tells whether the client of a request is still there.
#[derive(Clone)]
pub(crate) enum Client {
    #[cfg(feature = "tiny-http")]
    TinyHttp(tiny_http::Client),
    /// It waits for the response.
    Memory,
    Native(native::Client),
}

impl Client {
    /// Whether the connection is reset, or the client has closed it.
    pub(crate) fn is_gone(&self) -> bool {
        match self {
            #[cfg(feature = "tiny-http")]
            Client::TinyHttp(client) => client.is_gone(),
            Client::Memory => false,
            Client::Native(client) => client.is_gone(),
        }
    }
}
