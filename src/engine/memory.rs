//! Requests without a connection: made in this process, with a response for the code that made them.

use std::io::{self, Read};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::discard::discard;
use super::{BodyState, Peer};
use crate::http::body::Body;
use crate::http::encode::Sent;
use crate::http::head::{Framing, Rejection, RequestHead};
use crate::http::response::Response;
use crate::http::status::is_bodyless;
use crate::http::validate::validate;
use crate::sync::lock;

/// Most bytes of an unread body that are read and thrown away, as for a service with the default limit.
const MAX_DISCARD: u64 = 1024 * 1024;

/// Receiver of the response of an exchange.
#[derive(Clone, Default)]
pub(crate) struct ResponseSlot(Arc<Mutex<Option<Response>>>);

impl ResponseSlot {
    /// The response, once.
    pub(crate) fn take(&self) -> Option<Response> {
        lock(&self.0).take()
    }
}

/// A request that was made in this process, and the slot for its response.
pub(crate) struct Exchange {
    method: String,
    target: String,
    headers: Vec<(String, Vec<u8>)>,
    head: Result<RequestHead, Rejection>,
    peer: Peer,
    since: Instant,
    body: Box<dyn Read + Send>,
    read: u64,
    ended: bool,
    truncated: Option<io::ErrorKind>,
    slot: ResponseSlot,
}

impl Exchange {
    /// `headers` are taken as they are, but for what a client adds by itself: `Host`, and the framing of the body.
    pub(crate) fn new(
        method: String,
        target: String,
        mut headers: Vec<(String, Vec<u8>)>,
        body: Body,
        peer: Peer,
    ) -> Exchange {
        let has = |name: &str| headers.iter().any(|(known, _)| known.eq_ignore_ascii_case(name));
        let host = (!has("host")).then(|| ("Host".to_owned(), b"localhost".to_vec()));
        let framing = match body.length() {
            _ if has("content-length") || has("transfer-encoding") => None,
            Some(0) => None,
            Some(length) => Some(("Content-Length".to_owned(), length.to_string().into_bytes())),
            None => Some(("Transfer-Encoding".to_owned(), b"chunked".to_vec())),
        };
        headers.extend(host.into_iter().chain(framing));
        let all = headers.iter().map(|(name, value)| (name.as_str(), value.as_slice()));
        let head = validate(&method, &target, (1, 1), all);
        Exchange {
            method,
            target,
            headers,
            head,
            peer,
            since: Instant::now(),
            body: Box::new(body.into_reader()),
            read: 0,
            ended: false,
            truncated: None,
            slot: ResponseSlot::default(),
        }
    }

    pub(crate) fn slot(&self) -> ResponseSlot {
        self.slot.clone()
    }

    pub(crate) fn method(&self) -> &str {
        &self.method
    }

    pub(crate) fn target(&self) -> &str {
        &self.target
    }

    pub(crate) fn headers(&self) -> Headers<'_> {
        Headers(self.headers.iter())
    }

    pub(crate) fn head(&self) -> Result<RequestHead, Rejection> {
        self.head
    }

    pub(crate) fn peer(&self) -> Peer {
        self.peer
    }

    pub(crate) fn since(&self) -> Instant {
        self.since
    }

    fn remaining(&self) -> Option<u64> {
        match self.head.map_or(Framing::None, |head| head.framing) {
            Framing::None => Some(0),
            Framing::Length(length) => Some(length.saturating_sub(self.read)),
            Framing::Chunked => None,
        }
    }

    pub(crate) fn body(&self) -> BodyState {
        BodyState {
            remaining: self.remaining(),
            consumed: self.ended || self.remaining() == Some(0),
            truncated: self.truncated.is_some(),
            timed_out: self.truncated == Some(io::ErrorKind::TimedOut),
            buffered: true,
        }
    }

    pub(crate) fn read_body(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let left = self.remaining().map_or(usize::MAX, |left| usize::try_from(left).unwrap_or(usize::MAX));
        let most = left.min(into.len());
        if most == 0 || self.ended {
            return Ok(0);
        }
        let result = match self.body.read(&mut into[..most]) {
            Ok(0) if self.remaining().is_some() => Err(io::ErrorKind::UnexpectedEof.into()),
            result => result,
        };
        match &result {
            Ok(n) => {
                self.read += *n as u64;
                self.ended = *n == 0;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => (self.ended, self.truncated) = (true, Some(error.kind())),
        }
        result
    }

    pub(crate) fn consume_body(&mut self) -> bool {
        discard(MAX_DISCARD, |into| self.read_body(into)).unwrap_or(false)
    }

    /// Puts the response into the slot, as a client would get it.
    pub(crate) fn respond(mut self, mut response: Response) -> Sent {
        let status = response.status();
        if response.body().is_of_request() {
            let mut bytes = response.take_body().into_first();
            let rest = io::copy(&mut BodyReader(&mut self), &mut bytes);
            response.set_body(if rest.is_ok() { Body::from(bytes) } else { Body::reader(io::empty(), Some(1)) });
        }
        if self.method == "HEAD" || is_bodyless(status) || status == 205 {
            response.take_body();
        }
        let bytes = response.length().unwrap_or(0);
        *lock(&self.slot.0) = Some(response);
        Sent { status, bytes, close: false, error: None }
    }
}

/// The rest of the body.
struct BodyReader<'a>(&'a mut Exchange);

impl Read for BodyReader<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.0.read_body(into)
    }
}

/// The headers of a request.
#[derive(Clone)]
pub(crate) struct Headers<'a>(std::slice::Iter<'a, (String, Vec<u8>)>);

impl<'a> Iterator for Headers<'a> {
    type Item = (&'a str, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next().map(|(name, value)| (name.as_str(), value.as_slice()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exchange(method: &str, target: &str, body: Body) -> Exchange {
        let peer = Peer::Inet(std::net::SocketAddr::from(([127, 0, 0, 1], 0)));
        Exchange::new(method.to_owned(), target.to_owned(), Vec::new(), body, peer)
    }

    #[test]
    fn what_a_client_adds_by_itself_is_added() {
        let names = |body| {
            let exchange = exchange("POST", "/", body);
            exchange.headers().map(|(name, _)| name.to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(names(Body::empty()), ["Host"]);
        assert_eq!(names("abc".into()), ["Host", "Content-Length"]);
        assert_eq!(names(Body::reader(io::empty(), None)), ["Host", "Transfer-Encoding"]);
    }

    #[test]
    fn a_head_is_validated() {
        assert_eq!(exchange("GET", "no path", Body::empty()).head().unwrap_err().status, 400);
        assert_eq!(exchange("CONNECT", "/", Body::empty()).head().unwrap_err().status, 501);
    }

    #[test]
    fn a_body_is_read_to_its_length_and_one_that_ends_early_is_truncated() {
        let mut whole = exchange("POST", "/", "abc".into());
        let mut bytes = [0; 2];
        assert_eq!((whole.read_body(&mut bytes).unwrap(), whole.body().remaining), (2, Some(1)));
        assert!(whole.consume_body() && whole.body().consumed && !whole.body().truncated);
        let mut short = exchange("POST", "/", Body::reader(&b"abc"[..], Some(4)));
        assert!(!short.consume_body() && short.body().truncated);
    }

    #[test]
    fn the_response_is_in_the_slot_of_the_request() {
        for (method, status, text) in [("GET", 200, "abc"), ("HEAD", 200, ""), ("GET", 304, "")] {
            let exchange = exchange(method, "/", Body::empty());
            let slot = exchange.slot();
            exchange.respond(Response::text("abc").with_status(status));
            assert_eq!(slot.take().unwrap().into_text().unwrap(), text);
            assert!(slot.take().is_none());
        }
    }
}
