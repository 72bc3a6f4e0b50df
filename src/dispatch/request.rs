//! The request as a handler sees it.

use std::any::Any;
use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::extensions::Extensions;
use super::route::{Params, Route};
use crate::crew::stop::{GraceExpired, Stop};
use crate::engine::{self, Exchange, Peer};
use crate::http::forwarded::TrustedProxies;
use crate::http::request_id::request_id;
use crate::http::stream::StreamLink;
use crate::http::validate::absolute_path;

/// A request: method, path, query, headers, body, and what the service knows of it.
pub struct Request {
    pub(super) exchange: Exchange,
    id: String,
    pub(super) context: Context,
    extensions: Extensions,
    /// The body was [taken](Request::take_body) for the response.
    pub(super) body_is_taken: bool,
}

/// The parts of the service that a request refers to.
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
    /// True if the client has closed or reset the connection. A client that has shut only its sending side counts as
    /// gone as well, although it still gets its response.
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

    /// The link to this request for a response that is written while it is sent.
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
    ///
    /// ```
    /// let request = allout::Request::get("/search?for=caf%C3%A9+au+lait").build();
    /// assert_eq!(request.query("for").as_deref(), Some("café au lait"));
    /// ```
    pub fn query(&self, name: &str) -> Option<Cow<'_, str>> {
        self.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value)
    }

    /// All parameters of the query, in the order they were sent, decoded as [`query`](Request::query) does.
    pub fn query_pairs(&self) -> impl Iterator<Item = (Cow<'_, str>, Cow<'_, str>)> {
        form_urlencoded::parse(self.query_string().as_bytes())
    }

    /// A parameter of the route's path, decoded: `name` of `/hello/{name}`.
    ///
    /// It borrows the request, and a response cannot: copy it, as here. To hold parameters while the body is read, clone
    /// [`params`](Request::params).
    ///
    /// ```
    /// use allout::{Request, Service};
    /// let service = Service::new().get("/hello/{name}", |request| request.param("name").map(str::to_owned));
    /// assert_eq!(service.handle(Request::get("/hello/J%C3%BCrgen")).into_text()?, "Jürgen");
    /// # Ok::<(), std::io::Error>(())
    /// ```
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

    /// The first header of this name, in any case; `None` if its value is not UTF-8.
    ///
    /// ```
    /// let request = allout::Request::get("/").header("Accept-Language", "de").build();
    /// assert_eq!(request.header("accept-language"), Some("de"));
    /// ```
    pub fn header(&self, name: &str) -> Option<&str> {
        self.header_bytes(name).and_then(|value| std::str::from_utf8(value).ok())
    }

    /// The first header of this name, in any case, as it was sent: a value may hold bytes above 0x7F (RFC 9110,
    /// section 5.5) that are not UTF-8.
    ///
    /// ```
    /// let request = allout::Request::get("/").header("X-Name", b"caf\xe9").build(); // in ISO 8859-1
    /// assert_eq!((request.header("X-Name"), request.header_bytes("X-Name")), (None, Some(&b"caf\xe9"[..])));
    /// ```
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

    /// The request's id: the client's `X-Request-Id` if it is at most 64 letters, digits and `-_.:/+=@`, else a new
    /// one. It is returned and logged. It must not become a file name or a key: clients choose it, may choose the same
    /// one twice, and it may hold `/` and `..`.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// A value that was [set](Request::set_extension) on this request, by its type.
    pub fn extension<T: Any>(&self) -> Option<&T> {
        self.extensions.get()
    }

    /// Sets a value for what handles the request later, by its type: a middleware tells the handler who the user is, for
    /// example. Replaces one of the same type.
    ///
    /// ```
    /// struct User(String);
    /// let mut request = allout::Request::get("/").build();
    /// request.set_extension(User("Ada".to_owned()));
    /// assert_eq!(request.extension::<User>().map(|user| &*user.0), Some("Ada"));
    /// ```
    pub fn set_extension<T: Any + Send + Sync>(&mut self, value: T) {
        self.extensions.set(value);
    }

    /// The stages of a stop of the service. See also [`sleep`](Request::sleep).
    pub fn stop(&self) -> &Stop {
        &self.context.stop
    }

    /// Sleeps for `span`, or up to the end of the grace period of a service that stops.
    ///
    /// ```
    /// use std::time::Duration;
    /// use allout::Service;
    /// let service = Service::new().get("/slow", |request| request.sleep(Duration::from_secs(3)).map(|()| "done"));
    /// ```
    ///
    /// # Errors
    ///
    /// [`GraceExpired`]: answer now. It turns into a 503.
    pub fn sleep(&self, span: Duration) -> Result<(), GraceExpired> {
        self.context.stop.sleep(span)
    }
}

/// The path of a target in any of its forms: RFC 9112, section 3.2.
pub(crate) fn path_of(target: &str) -> &str {
    let target = if target.starts_with('/') { target } else { absolute_path(target).unwrap_or(target) };
    target.split_once('?').map_or(target, |(path, _)| path)
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
