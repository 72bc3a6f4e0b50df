//! The body of a request: read, discarded, or sent back.

use std::io::{self, Read};

use super::request::Request;
use crate::engine::Exchange;
use crate::http::body::Body;
use crate::http::fault::{BodyError, mark_truncated_body};
use crate::http::head::Framing;

/// Most memory, in bytes, that is reserved for a body because of its announced length alone.
const MAX_RESERVED: u64 = 64 * 1024;

/// Bytes of a body that are read before it is sent back; as many as `io::copy` reads at once.
const FIRST_PIECE: usize = 8 * 1024;

/// # Body
impl Request {
    /// The body's announced length in bytes; 0 if there is no body, `None` if it is chunked.
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
    /// ```
    /// let mut request = allout::Request::post("/").body("12345").build();
    /// assert!(request.bytes_up_to(4).is_err()); // 413
    /// assert_eq!(request.bytes_up_to(5)?, b"12345");
    /// # Ok::<(), allout::BodyError>(())
    /// ```
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
    /// ```
    /// use allout::{BodyError, Request, Service};
    ///
    /// #[derive(serde::Deserialize)]
    /// struct Order {
    ///     tea: u32,
    /// }
    ///
    /// fn order(request: &mut Request) -> Result<String, BodyError> {
    ///     let order: Order = request.json()?; // no JSON, or no such field: 422
    ///     Ok(format!("{} cups", order.tea))
    /// }
    /// let service = Service::new().post("/order", order);
    /// assert_eq!(service.handle(Request::post("/order").body(r#"{"tea": 2}"#)).into_text()?, "2 cups");
    /// # Ok::<(), std::io::Error>(())
    /// ```
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
    /// Until it is sent, the body cannot be read or changed: [`Body::into_bytes`] fails. In the response to another
    /// request it becomes a 500.
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
    /// ```
    /// use allout::{BodyError, Request, Service};
    ///
    /// let service = Service::new().post("/", |request| -> Result<u16, BodyError> {
    ///     request.discard_body(1 << 20)?; // more than that: 413
    ///     Ok(202)
    /// });
    /// assert_eq!(service.handle(Request::post("/").body("whatever")).status(), 202);
    /// ```
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
