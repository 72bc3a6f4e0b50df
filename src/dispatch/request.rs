//! The request as a handler sees it.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use percent_encoding::percent_decode_str;

use crate::crew::stop::{GraceExpired, Stop};
use crate::engine::tiny_http::quirks::{self, Quirks};
use crate::http::error::{BodyError, mark_broken_body};
use crate::http::head::{Framing, RequestHead};
use crate::http::validate::absolute_path;

/// A request: method, path, query, headers, body, and what the service knows of it.
pub struct Request {
    raw: tiny_http::Request,
    pub(crate) head: RequestHead,
    pub(crate) quirks: Quirks,
    peer: SocketAddr,
    line: Arc<dyn Line>,
    id: String,
    params: Vec<(String, String)>,
    stop: Stop,
    body: Progress,
    max_body: u64,
}

/// What a request must know of its connection, and tell about it.
pub(crate) trait Line: Send + Sync {
    /// So many bytes of a body have been read.
    fn progressed(&self, bytes: u64);
    /// Whether the input has ended, by the client's will or by ours.
    fn has_ended(&self) -> bool;
}

/// How far the body has been read.
#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    read: u64,
    ended: bool,
    broken: bool,
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("method", &self.method())
            .field("target", &self.target())
            .field("peer", &self.peer)
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Request {
    pub(crate) fn new(
        raw: tiny_http::Request,
        head: RequestHead,
        quirks: Quirks,
        peer: SocketAddr,
        line: Arc<dyn Line>,
        stop: Stop,
        max_body: u64,
    ) -> Request {
        let id = crate::http::request_id::request_id(quirks::headers(&raw));
        Request { raw, head, quirks, peer, line, id, params: Vec::new(), stop, body: Progress::default(), max_body }
    }

    pub(crate) fn set_params(&mut self, params: Vec<(String, String)>) {
        self.params = params;
    }

    /// The request of tiny_http, and the id.
    pub(crate) fn into_parts(self) -> (tiny_http::Request, String) {
        (self.raw, self.id)
    }

    /// The method, in capitals: `GET`.
    pub fn method(&self) -> &str {
        self.raw.method().as_str()
    }

    /// The target as it was sent, path and query: visible ASCII.
    pub fn target(&self) -> &str {
        self.raw.url()
    }

    /// The path as it was sent, not decoded: `/a%20b`.
    pub fn path(&self) -> &str {
        path_of(self.raw.url())
    }

    /// The query as it was sent, not decoded, without its question mark; empty if there is none.
    pub fn query_string(&self) -> &str {
        self.raw.url().split_once('?').map_or("", |(_, query)| query)
    }

    /// The first value of a query parameter, decoded (`%C3%BC`, `+`); what is no UTF-8 becomes U+FFFD.
    pub fn query(&self, name: &str) -> Option<Cow<'_, str>> {
        self.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value)
    }

    /// All parameters of the query, in the order they were sent, decoded as [`query`](Request::query) does.
    pub fn query_pairs(&self) -> impl Iterator<Item = (Cow<'_, str>, Cow<'_, str>)> {
        let pairs = self.query_string().split('&').filter(|pair| !pair.is_empty());
        pairs.map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(name), decode(value))
        })
    }

    /// A parameter of the route's path, decoded: `name` of `/hello/{name}`.
    pub fn param(&self, name: &str) -> Option<&str> {
        self.params.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The first header of this name, in any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// All headers, in the order they were sent. No value holds a control character but tabs.
    pub fn headers(&self) -> impl Iterator<Item = (&str, &str)> {
        self.raw.headers().iter().map(|header| (header.field.as_str().as_str(), header.value.as_str()))
    }

    /// Who sent it: the other end of the connection, which is a proxy if one is between.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// The request's id: the client's `X-Request-Id` if it is sane, else one made here. It is returned and logged.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What tells handlers that the service stops. See also [`sleep`](Request::sleep).
    pub fn stop(&self) -> &Stop {
        &self.stop
    }

    /// Waits, but no longer than the grace period of a service that stops.
    ///
    /// # Errors
    ///
    /// [`GraceExpired`]: answer now. It turns into a 503.
    pub fn sleep(&self, span: Duration) -> Result<(), GraceExpired> {
        self.stop.sleep(span)
    }

    /// The body's length in bytes, if the client said it; 0 if there is no body.
    pub fn body_length(&self) -> Option<u64> {
        match self.head.framing {
            Framing::None => Some(0),
            Framing::Length(length) => Some(length),
            Framing::Chunked => None,
        }
    }

    /// The body as a reader, without a limit of its own but the request timeout.
    ///
    /// An end before the announced length is an error of the kind `UnexpectedEof`.
    pub fn body(&mut self) -> impl Read + '_ {
        Body { request: self }
    }

    /// The whole body, if it has at most the service's limit (1 MiB unless configured otherwise).
    ///
    /// # Errors
    ///
    /// [`BodyError`], which turns into a fitting reply.
    pub fn bytes(&mut self) -> Result<Vec<u8>, BodyError> {
        self.bytes_up_to(self.max_body)
    }

    /// The whole body, if it has at most `limit` bytes.
    ///
    /// # Errors
    ///
    /// [`BodyError`], which turns into a fitting reply.
    pub fn bytes_up_to(&mut self, limit: u64) -> Result<Vec<u8>, BodyError> {
        if self.body_length().is_some_and(|length| length > limit) {
            return Err(BodyError::TooLarge);
        }
        let mut bytes = Vec::new();
        self.body().take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(BodyError::Broken)?;
        if bytes.len() as u64 > limit {
            return Err(BodyError::TooLarge);
        }
        Ok(bytes)
    }

    /// The whole body as UTF-8 text, within the service's limit.
    ///
    /// # Errors
    ///
    /// [`BodyError`], which turns into a fitting reply.
    pub fn text(&mut self) -> Result<String, BodyError> {
        String::from_utf8(self.bytes()?).map_err(|_| BodyError::Malformed("no UTF-8".to_owned()))
    }

    /// The whole body as JSON, within the service's limit.
    ///
    /// # Errors
    ///
    /// [`BodyError`], which turns into a fitting reply.
    #[cfg(feature = "json")]
    pub fn json<T: serde::de::DeserializeOwned>(&mut self) -> Result<T, BodyError> {
        serde_json::from_slice(&self.bytes()?).map_err(|error| BodyError::Malformed(error.to_string()))
    }

    /// Reads what is left of the body and throws it away, up to `limit` bytes.
    ///
    /// # Errors
    ///
    /// [`BodyError`], which turns into a fitting reply.
    pub fn discard_body(&mut self, limit: u64) -> Result<(), BodyError> {
        if self.left().is_some_and(|left| left > limit) {
            return Err(BodyError::TooLarge);
        }
        // The buffer is made only where there is something to read.
        if self.is_body_done() {
            return Ok(());
        }
        let copied = io::copy(&mut self.body().take(limit.saturating_add(1)), &mut io::sink());
        match copied.map_err(BodyError::Broken)? {
            copied if copied > limit => Err(BodyError::TooLarge),
            _ => Ok(()),
        }
    }

    /// Bytes of the body that have not been read, if its length is known.
    pub(crate) fn left(&self) -> Option<u64> {
        self.body_length().map(|length| length.saturating_sub(self.body.read))
    }

    /// Whether the body has been read to its end.
    pub(crate) fn is_body_done(&self) -> bool {
        self.body.ended || self.left() == Some(0)
    }

    /// Whether the body broke its framing, so that nobody knows where the next request begins.
    pub(crate) fn is_body_broken(&self) -> bool {
        self.body.broken
    }

    /// Whether reading the rest of the body never waits for the client.
    pub(crate) fn is_body_buffered(&self) -> bool {
        self.quirks.body_buffered || self.is_body_done()
    }
}

/// The path of a target, in whichever form.
pub(crate) fn path_of(target: &str) -> &str {
    let target = if target.starts_with('/') { target } else { absolute_path(target).unwrap_or(target) };
    target.split_once('?').map_or(target, |(path, _)| path)
}

/// A name or a value of a query: <https://url.spec.whatwg.org/#urlencoded-parsing>.
fn decode(text: &str) -> Cow<'_, str> {
    if text.contains('+') {
        let spaced = text.replace('+', " ");
        return Cow::Owned(percent_decode_str(&spaced).decode_utf8_lossy().into_owned());
    }
    percent_decode_str(text).decode_utf8_lossy()
}

struct Body<'a> {
    request: &'a mut Request,
}

impl Read for Body<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() || self.request.is_body_done() {
            return Ok(0);
        }
        // Where the client asks for another protocol, tiny_http's reader goes on beyond the body.
        let left = self.request.left().map_or(usize::MAX, |left| usize::try_from(left).unwrap_or(usize::MAX));
        let most = left.min(into.len());
        let result = self.request.raw.as_reader().read(&mut into[..most]);
        let body = &mut self.request.body;
        match result {
            Ok(0) => {
                body.ended = true;
                body.broken = match self.request.head.framing {
                    Framing::None => false,
                    Framing::Length(length) => body.read < length,
                    // tiny_http ends a chunked body alike at its last chunk and where the connection broke off within a
                    // chunk. A client that has said all, and ended its side already, cannot be told from one that broke
                    // off: it is not believed.
                    Framing::Chunked => self.request.line.has_ended(),
                };
                if body.broken {
                    return Err(mark_broken_body(&io::Error::new(io::ErrorKind::UnexpectedEof, "it ended early")));
                }
                Ok(0)
            }
            Ok(n) => {
                body.read += n as u64;
                self.request.line.progressed(n as u64);
                Ok(n)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(error),
            Err(error) => {
                body.ended = true;
                body.broken = true;
                Err(mark_broken_body(&error))
            }
        }
    }
}
