//! A request that is made, not received: for tests.

use std::net::{Ipv4Addr, SocketAddr};

use super::request::{Context, Request};
use super::route::{Params, Route};
use crate::crew::stop::Stop;
use crate::engine::{Exchange, Peer};
use crate::http::body::Body;

/// Limit of a body, in bytes, for a request that no service handles: that of the default configuration.
const MAX_BODY: u64 = 1024 * 1024;

/// A request that is being made, for [`Service::handle`](crate::Service::handle), or for a handler that is called alone.
///
/// ```
/// use allout::{HandlerError, Request, Response};
///
/// fn greet(request: &mut Request) -> Result<String, HandlerError> {
///     let name = request.param("name").ok_or(Response::from(404))?.to_owned();
///     Ok(format!("{}, {name}", request.text()?))
/// }
///
/// let mut request = Request::post("/greet/you").param("name", "you").body("hello").build();
/// assert_eq!(greet(&mut request).unwrap(), "hello, you");
/// ```
#[derive(Debug)]
#[must_use = "a request is made by `build`, or by what takes it"]
pub struct RequestBuilder {
    method: String,
    target: String,
    headers: Vec<(String, Vec<u8>)>,
    body: Body,
    peer: Peer,
    params: Vec<(Box<str>, String)>,
}

impl RequestBuilder {
    /// A request of this method for this target, path and query.
    ///
    /// ```
    /// let request = allout::RequestBuilder::new("OPTIONS", "*").build();
    /// assert_eq!(request.method(), "OPTIONS");
    /// ```
    pub fn new(method: impl Into<String>, target: impl Into<String>) -> RequestBuilder {
        RequestBuilder {
            method: method.into(),
            target: target.into(),
            headers: Vec::new(),
            body: Body::empty(),
            peer: Peer::Inet(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))),
            params: Vec::new(),
        }
    }

    /// Adds a header. `Host`, and what frames the body, are added when they are missing.
    ///
    /// ```
    /// let request = allout::Request::get("/").header("Accept", "text/html").build();
    /// assert_eq!(request.header("accept"), Some("text/html"));
    /// ```
    pub fn header(mut self, name: impl Into<String>, value: impl Into<Vec<u8>>) -> RequestBuilder {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Sets the body: text, bytes, or a [reader](Body::reader); one without a length is chunked.
    ///
    /// ```
    /// let mut request = allout::Request::put("/note").body("remember").build();
    /// assert_eq!(request.text()?, "remember");
    /// # Ok::<(), allout::BodyError>(())
    /// ```
    pub fn body(mut self, body: impl Into<Body>) -> RequestBuilder {
        self.body = body.into();
        self
    }

    /// Sets the body to `value` as JSON, with its content type.
    ///
    /// ```
    /// let mut request = allout::Request::post("/prices").json(&[1, 2])?.build();
    /// assert_eq!(request.json::<Vec<u32>>()?, [1, 2]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// The value cannot be written as JSON (a map whose keys are no strings, for example).
    #[cfg(feature = "json")]
    pub fn json(self, value: &impl serde::Serialize) -> std::io::Result<RequestBuilder> {
        Ok(self.header("Content-Type", "application/json").body(serde_json::to_vec(value)?))
    }

    /// Sets the body to these fields as a form (`application/x-www-form-urlencoded`), with its content type.
    ///
    /// ```
    /// let mut request = allout::Request::post("/login").form([("user", "Ada"), ("code", "1 2")]).build();
    /// assert_eq!(request.text()?, "user=Ada&code=1+2");
    /// # Ok::<(), allout::BodyError>(())
    /// ```
    pub fn form<'f>(self, fields: impl IntoIterator<Item = (&'f str, &'f str)>) -> RequestBuilder {
        let body = form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
        self.header("Content-Type", "application/x-www-form-urlencoded").body(body)
    }

    /// Sets the peer that sent the request. Default: an address of this machine.
    ///
    /// ```
    /// use std::net::SocketAddr;
    /// let request = allout::Request::get("/").peer(SocketAddr::from(([192, 0, 2, 1], 4711))).build();
    /// assert_eq!(request.peer().to_string(), "192.0.2.1:4711");
    /// ```
    pub fn peer(mut self, peer: impl Into<Peer>) -> RequestBuilder {
        self.peer = peer.into();
        self
    }

    /// Sets a parameter of the path, decoded, for a handler that is called alone. (A service takes them from the path.)
    ///
    /// ```
    /// let request = allout::Request::get("/hello/you").param("name", "you").build();
    /// assert_eq!(request.param("name"), Some("you"));
    /// ```
    pub fn param(mut self, name: impl Into<Box<str>>, value: impl Into<String>) -> RequestBuilder {
        self.params.push((name.into(), value.into()));
        self
    }

    /// The request.
    pub fn build(self) -> Request {
        let RequestBuilder { method, target, headers, body, peer, params } = self;
        let params = Params::new(params.iter().map(|(name, value)| (&**name, value.clone())));
        let exchange = Exchange::in_memory(method, target, headers, body, peer);
        let route = Route::unmatched();
        let context = Context { route, params, stop: Stop::new(), max_body: MAX_BODY, proxies: None };
        Request::new(exchange, context)
    }
}

impl From<RequestBuilder> for Request {
    fn from(builder: RequestBuilder) -> Request {
        builder.build()
    }
}

/// # Made, for tests
impl Request {
    /// Begins a `GET`. See [`RequestBuilder`].
    ///
    /// ```
    /// let request = allout::Request::get("/a?b=c").build();
    /// assert_eq!((request.path(), request.query_string()), ("/a", "b=c"));
    /// ```
    pub fn get(target: impl Into<String>) -> RequestBuilder {
        RequestBuilder::new("GET", target)
    }

    /// Begins a `POST`. See [`RequestBuilder`].
    ///
    /// ```
    /// let request = allout::Request::post("/notes").body("remember").build();
    /// assert_eq!(request.body_length(), Some(8));
    /// ```
    pub fn post(target: impl Into<String>) -> RequestBuilder {
        RequestBuilder::new("POST", target)
    }

    /// Begins a `PUT`. See [`RequestBuilder`].
    ///
    /// ```
    /// assert_eq!(allout::Request::put("/notes/1").build().method(), "PUT");
    /// ```
    pub fn put(target: impl Into<String>) -> RequestBuilder {
        RequestBuilder::new("PUT", target)
    }

    /// Begins a `PATCH`. See [`RequestBuilder`].
    ///
    /// ```
    /// assert_eq!(allout::Request::patch("/notes/1").build().method(), "PATCH");
    /// ```
    pub fn patch(target: impl Into<String>) -> RequestBuilder {
        RequestBuilder::new("PATCH", target)
    }

    /// Begins a `DELETE`. See [`RequestBuilder`].
    ///
    /// ```
    /// assert_eq!(allout::Request::delete("/notes/1").build().method(), "DELETE");
    /// ```
    pub fn delete(target: impl Into<String>) -> RequestBuilder {
        RequestBuilder::new("DELETE", target)
    }
}
