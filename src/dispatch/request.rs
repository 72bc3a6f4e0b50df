//! The request as a handler sees it.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, Read};
use std::time::Duration;

use percent_encoding::percent_decode_str;

use crate::crew::stop::{GraceExpired, Stop};
use crate::engine::{Exchange, Peer};
use crate::http::error::{BodyError, mark_broken_body};
use crate::http::head::Framing;
use crate::http::validate::absolute_path;

/// A request: method, path, query, headers, body, and what the service knows of it.
pub struct Request {
    exchange: Exchange,
    id: String,
    params: Vec<(String, String)>,
    stop: Stop,
    max_body: u64,
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("method", &self.method())
            .field("target", &self.target())
            .field("peer", &self.peer())
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Request {
    pub(crate) fn new(exchange: Exchange, params: Vec<(String, String)>, stop: Stop, max_body: u64) -> Request {
        let id = crate::http::request_id::request_id(exchange.headers());
        Request { exchange, id, params, stop, max_body }
    }

    pub(crate) fn exchange(&self) -> &Exchange {
        &self.exchange
    }

    /// The exchange, and the request's id.
    pub(crate) fn into_parts(self) -> (Exchange, String) {
        (self.exchange, self.id)
    }

    /// The method, in capitals: `GET`.
    pub fn method(&self) -> &str {
        self.exchange.method()
    }

    /// The target as it was sent, path and query: visible ASCII.
    pub fn target(&self) -> &str {
        self.exchange.target()
    }

    /// The path as it was sent, not decoded: `/a%20b`.
    pub fn path(&self) -> &str {
        path_of(self.exchange.target())
    }

    /// The query as it was sent, not decoded, without its question mark; empty if there is none.
    pub fn query_string(&self) -> &str {
        self.exchange.target().split_once('?').map_or("", |(_, query)| query)
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
        // A value with bytes above 0x7F is left out here.
        self.exchange.headers().filter_map(|(name, value)| Some((name, std::str::from_utf8(value).ok()?)))
    }

    /// Who sent it: the other end of the connection, which is a proxy if one is between.
    pub fn peer(&self) -> Peer {
        self.exchange.peer()
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
        match self.exchange.head().map(|head| head.framing) {
            Ok(Framing::Length(length)) => Some(length),
            Ok(Framing::Chunked) => None,
            Ok(Framing::None) | Err(_) => Some(0),
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
        if self.exchange.body().remaining.is_some_and(|left| left > limit) {
            return Err(BodyError::TooLarge);
        }
        // The buffer is made only where there is something to read.
        if self.exchange.body().consumed {
            return Ok(());
        }
        let copied = io::copy(&mut self.body().take(limit.saturating_add(1)), &mut io::sink());
        match copied.map_err(BodyError::Broken)? {
            copied if copied > limit => Err(BodyError::TooLarge),
            _ => Ok(()),
        }
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
        let result = self.request.exchange.read_body(into);
        result
            .map_err(|error| if error.kind() == io::ErrorKind::Interrupted { error } else { mark_broken_body(&error) })
    }
}
