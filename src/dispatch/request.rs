//! The request as a handler sees it.

use std::any::Any;
use std::borrow::Cow;
use std::fmt;
use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

use super::extensions::Extensions;
use super::route::{Params, Route};
use crate::crew::stop::{GraceExpired, Stop};
use crate::engine::{self, Exchange, Peer};
use crate::http::body::Body;
use crate::http::fault::{BodyError, mark_truncated_body};
use crate::http::forwarded::TrustedProxies;
use crate::http::head::Framing;
use crate::http::request_id::request_id;
use crate::http::stream::StreamLink;
use crate::http::validate::absolute_path;

/// Memory, in bytes, that is reserved for a body because of its announced length alone.
const MAX_RESERVED: u64 = 64 * 1024;

/// Bytes of a body that are read before it is sent back; as many as `io::copy` reads at once.
const FIRST_PIECE: usize = 8 * 1024;

/// A request: method, path, query, headers, body, and what the service knows of it.
pub struct Request {
    exchange: Exchange,
    id: String,
    context: Context,
    extensions: Extensions,
    /// The body was [taken](Request::take_body) for the response.
    body_is_taken: bool,
}

/// The request's context within the service.
pub(crate) struct Context {
    pub(crate) route: Route,
    pub(crate) params: Params,
    pub(crate) stop: Stop,
    pub(crate) max_body: u64,
    pub(crate) proxies: Option<Arc<TrustedProxies>>,
}

/// Tells whether the client of a request is still there. Cheap to clone, and independent of the request: a body's reader
/// can hold one.
#[derive(Clone)]
pub struct Client(engine::Client);

impl Client {
    /// Whether the client has closed or reset the connection. A client that has ended its sending side alone counts as
    /// gone as well; it still gets its response.
    ///
    /// Asks the kernel at each call: about a microsecond.
    pub fn is_gone(&self) -> bool {
        self.0.is_gone()
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("is_gone", &self.is_gone()).finish()
    }
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
    pub(crate) fn new(exchange: Exchange, context: Context) -> Request {
        let id = request_id(exchange.headers());
        Request { exchange, id, context, extensions: Extensions::default(), body_is_taken: false }
    }

    pub(crate) fn exchange(&self) -> &Exchange {
        &self.exchange
    }

    pub(crate) fn exchange_mut(&mut self) -> &mut Exchange {
        &mut self.exchange
    }

    pub(crate) fn body_is_taken(&self) -> bool {
        self.body_is_taken
    }

    /// What a response that is written while it is sent knows of this request.
    pub(crate) fn stream_link(&self) -> StreamLink {
        let client = self.client();
        StreamLink { stop: Some(self.context.stop.clone()), is_client_gone: Some(Box::new(move || client.is_gone())) }
    }

    pub(crate) fn proxies(&self) -> Option<&TrustedProxies> {
        self.context.proxies.as_deref()
    }

    /// Drops the extensions before the request is. Returns the messages of those that panicked.
    pub(super) fn drop_extensions(&mut self) -> Vec<String> {
        self.extensions.clear()
    }

    /// The exchange, the request's id, and its route.
    pub(crate) fn into_parts(self) -> (Exchange, String, Route) {
        (self.exchange, self.id, self.context.route)
    }

    /// The method as it was sent: `GET`.
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

    /// The first value of a query parameter, decoded (`%C3%BC`, `+`); bytes that are not UTF-8 become U+FFFD.
    pub fn query(&self, name: &str) -> Option<Cow<'_, str>> {
        self.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value)
    }

    /// All parameters of the query, in the order they were sent, decoded as [`query`](Request::query) does.
    pub fn query_pairs(&self) -> impl Iterator<Item = (Cow<'_, str>, Cow<'_, str>)> {
        form_urlencoded::parse(self.query_string().as_bytes())
    }

    /// A parameter of the route's path, decoded: `name` of `/hello/{name}`.
    ///
    /// It borrows the request. To hold parameters while the body is read, clone [`params`](Request::params).
    pub fn param(&self, name: &str) -> Option<&str> {
        self.context.params.get(name)
    }

    /// All parameters of the route's path, decoded; cheap to clone.
    ///
    /// ```
    /// # use allout::{HandlerError, Request, Response};
    /// fn store(request: &mut Request) -> Result<u16, HandlerError> {
    ///     let params = request.params().clone();
    ///     let name = params.get("name").ok_or(Response::from(404))?;
    ///     std::fs::write(name, request.bytes()?)?; // the name is held while the body is read
    ///     Ok(201)
    /// }
    /// ```
    pub fn params(&self) -> &Params {
        &self.context.params
    }

    /// The pattern of the route that the request took, as `/hello/{name}`; `*` if it matched no path.
    pub fn route(&self) -> &str {
        &self.context.route.pattern
    }

    /// The first header of this name, in any case; none if its value is not UTF-8.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.header_bytes(name).and_then(|value| std::str::from_utf8(value).ok())
    }

    /// The first header of this name, in any case, as it was sent: a value may hold bytes above 0x7F (RFC 9110,
    /// section 5.5) that are not UTF-8.
    pub fn header_bytes(&self, name: &str) -> Option<&[u8]> {
        self.exchange.headers().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// All headers whose values are UTF-8, in the order they were sent. No value holds a control character but tabs.
    pub fn headers(&self) -> impl Iterator<Item = (&str, &str)> {
        self.exchange.headers().filter_map(|(name, value)| Some((name, std::str::from_utf8(value).ok()?)))
    }

    /// The other end of the connection; a proxy, if one is between.
    pub fn peer(&self) -> Peer {
        self.exchange.peer()
    }

    /// A handle that tells whether the client is still there.
    pub fn client(&self) -> Client {
        Client(self.exchange.client())
    }

    /// The request's id: the client's `X-Request-Id` if it is sane, else a new one. It is returned and logged.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// A value that was [set](Request::set_extension) on this request, by its type.
    pub fn extension<T: Any>(&self) -> Option<&T> {
        self.extensions.get()
    }

    /// Sets a value for what handles the request later, by its type: a middleware tells the handler who the user is, for
    /// example. Replaces one of the same type.
    pub fn set_extension<T: Any + Send + Sync>(&mut self, value: T) {
        self.extensions.set(value);
    }

    /// How far a stop of the service has come. See also [`sleep`](Request::sleep).
    pub fn stop(&self) -> &Stop {
        &self.context.stop
    }

    /// Sleeps for `span`, or up to the end of the grace period of a service that stops.
    ///
    /// # Errors
    ///
    /// [`GraceExpired`]: answer now. It turns into a 503.
    pub fn sleep(&self, span: Duration) -> Result<(), GraceExpired> {
        self.context.stop.sleep(span)
    }

    /// The body's announced length in bytes; 0 if there is no body, none if it is chunked.
    pub fn body_length(&self) -> Option<u64> {
        match self.exchange.head().map(|head| head.framing) {
            Ok(Framing::Length(length)) => Some(length),
            Ok(Framing::Chunked) => None,
            Ok(Framing::None) | Err(_) => Some(0),
        }
    }

    /// The body as a reader, without a limit on its length.
    ///
    /// Its errors are of the kind [`UnexpectedEof`](io::ErrorKind::UnexpectedEof) if the body ends early,
    /// [`TimedOut`](io::ErrorKind::TimedOut) if it stops coming for longer than the request timeout, and
    /// [`InvalidData`](io::ErrorKind::InvalidData) if it is malformed. `?` turns each into a 400 or 408, not into a 500.
    pub fn body(&mut self) -> impl Read + '_ {
        BodyReader { exchange: &mut self.exchange }
    }

    /// The whole body, if it has at most the limit of the route or the service (1 MiB unless configured otherwise).
    ///
    /// # Errors
    ///
    /// [`BodyError`], which turns into a fitting response.
    pub fn bytes(&mut self) -> Result<Vec<u8>, BodyError> {
        self.bytes_up_to(self.context.max_body)
    }

    /// The whole body, if it has at most `limit` bytes.
    ///
    /// # Errors
    ///
    /// [`BodyError`], which turns into a fitting response.
    pub fn bytes_up_to(&mut self, limit: u64) -> Result<Vec<u8>, BodyError> {
        let announced = self.body_length().unwrap_or(0);
        if announced > limit {
            return Err(BodyError::TooLarge);
        }
        let mut bytes = Vec::with_capacity(usize::try_from(announced.min(MAX_RESERVED)).unwrap_or(0));
        match self.body().take(limit.saturating_add(1)).read_to_end(&mut bytes) {
            Ok(length) if length as u64 > limit => Err(BodyError::TooLarge),
            Ok(_) => Ok(bytes),
            Err(error) if error.kind() == io::ErrorKind::OutOfMemory => Err(BodyError::TooLarge),
            Err(error) => Err(BodyError::Broken(error)),
        }
    }

    /// The whole body as UTF-8 text, within the limit of [`bytes`](Request::bytes).
    ///
    /// # Errors
    ///
    /// [`BodyError`], which turns into a fitting response.
    pub fn text(&mut self) -> Result<String, BodyError> {
        String::from_utf8(self.bytes()?).map_err(|_| BodyError::malformed("no UTF-8"))
    }

    /// The whole body as JSON, within the limit of [`bytes`](Request::bytes); at most 128 levels deep.
    ///
    /// # Errors
    ///
    /// [`BodyError`], which turns into a fitting response.
    #[cfg(feature = "json")]
    pub fn json<T: serde::de::DeserializeOwned>(&mut self) -> Result<T, BodyError> {
        serde_json::from_slice(&self.bytes()?).map_err(|error| BodyError::malformed(error.to_string()))
    }

    /// Takes the rest of the body as the body of the response to this very request: it is sent back as it arrives, and is
    /// never in memory as a whole. The first bytes are read at once; the client must read the response while it sends.
    ///
    /// Until it is sent, the body cannot be read or changed: [`Body::into_bytes`] fails. In the response to another request
    /// it becomes a 500.
    ///
    /// ```
    /// use allout::{HandlerError, Request, Response, Service};
    ///
    /// fn echo(request: &mut Request) -> Result<Response, HandlerError> {
    ///     Ok(Response::bytes(request.take_body()?))
    /// }
    /// let response = Service::new().post("/echo", echo).handle(Request::post("/echo").body("hello"));
    /// assert_eq!(response.into_text()?, "hello");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`BodyError::Broken`]: the client has left, or did not send it in time.
    pub fn take_body(&mut self) -> Result<Body, BodyError> {
        let length = self.exchange.body().remaining;
        let mut first = vec![0; FIRST_PIECE];
        let n = self.body().read(&mut first).map_err(BodyError::Broken)?;
        first.truncate(n);
        if self.exchange.body().consumed {
            return Ok(first.into());
        }
        self.body_is_taken = true;
        Ok(Body::of_request(first, length))
    }

    /// Reads the rest of the body and throws it away, up to `limit` bytes.
    ///
    /// # Errors
    ///
    /// [`BodyError`], which turns into a fitting response.
    pub fn discard_body(&mut self, limit: u64) -> Result<(), BodyError> {
        let body = self.exchange.body();
        if body.remaining.is_some_and(|remaining| remaining > limit) {
            return Err(BodyError::TooLarge);
        }
        if body.consumed {
            return Ok(()); // without the buffer of `io::copy`
        }
        let copied = io::copy(&mut self.body().take(limit.saturating_add(1)), &mut io::sink());
        match copied.map_err(BodyError::Broken)? {
            copied if copied > limit => Err(BodyError::TooLarge),
            _ => Ok(()),
        }
    }
}

/// The path of a target in any of its forms: RFC 9112, section 3.2.
pub(crate) fn path_of(target: &str) -> &str {
    let target = if target.starts_with('/') { target } else { absolute_path(target).unwrap_or(target) };
    target.split_once('?').map_or(target, |(path, _)| path)
}

/// The body of a request. Its errors are marked as the client's fault.
struct BodyReader<'a> {
    exchange: &'a mut Exchange,
}

impl Read for BodyReader<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.exchange.head().is_err() {
            return Ok(0); // where its body begins and ends is not known
        }
        self.exchange.read_body(into).map_err(|error| match error.kind() {
            io::ErrorKind::Interrupted => error,
            _ => mark_truncated_body(&error),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_is_that_of_the_target_without_the_query() {
        let rows = [
            ("/", "/"),
            ("/a%20b?c=d?e", "/a%20b"),
            ("http://host/a?b", "/a"),
            ("http://host", "/"),
            ("http://host?b", "/"),
            ("*", "*"),
        ];
        for (target, path) in rows {
            assert_eq!(path_of(target), path, "{target}");
        }
    }
}
