//! The response of a handler.

use std::borrow::Cow;
use std::fmt;
use std::io;

use super::body::{Body, Content};
use super::status::{is_bodyless, is_final};
use super::stream::StreamLink;
use super::validate::is_token;

/// A response: a status, headers and a body.
///
/// Most handlers return something that turns into one: text (`&'static str`, `String`, `Arc<str>`), bytes (`Vec<u8>`,
/// `&'static [u8]`, `Arc<[u8]>`), a status (`u16`), a status with any of these (`(404, "no such thing")`), an `Option`
/// (404 if there is nothing), or a `Result` of such things.
///
/// `Content-Length`, `Transfer-Encoding`, `Connection`, `Date`, `Server` and `X-Request-Id` are the service's own.
///
/// ```
/// use allout::Response;
/// let mut response = Response::text("made").with_status(201).with_header("Location", "/things/7");
/// assert_eq!((response.status(), response.header("location")), (201, Some("/things/7")));
/// response.set_header("Cache-Control", "no-store");
/// response.remove_header("Location");
/// let response = response.map_body(|body| format!("{body:?}").into());
/// assert_eq!(response.into_text()?, "\"made\"");
/// # Ok::<(), std::io::Error>(())
/// ```
#[must_use = "a response does nothing until a handler returns it"]
pub struct Response {
    status: u16,
    content_type: Option<Cow<'static, str>>,
    headers: Vec<(Cow<'static, str>, Cow<'static, str>)>,
    body: Body,
    /// The failure behind it, for the log. Boxed: few responses have one.
    pub(super) failure: Option<Box<Failure>>,
    /// Whether the body is the text of an error of this crate: status, reason, and a line break.
    pub(super) is_own_text: bool,
    /// Whether conditions and a range of the request are to be evaluated.
    #[cfg(feature = "files")]
    pub(crate) is_conditional: bool,
}

/// The reason why a request failed, for the log and never for the client.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// `Error` where the service is at fault, `Info` where the client is: no client can fill the log with errors.
    pub(crate) level: log::Level,
    pub(crate) reason: String,
}

/// Most bytes of a body that is written on a thread that must not block: a quarter of what a new socket takes before a
/// write blocks.
const MAX_INLINE_BODY: u64 = 4 * 1024;

/// The headers that handlers cannot set: those that frame the message and those of one connection (RFC 9110,
/// section 7.6.1), and those that name the service.
const MANAGED_HEADERS: [&str; 9] = [
    "connection",
    "content-length",
    "date",
    "keep-alive",
    "server",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-request-id",
];

impl fmt::Debug for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        struct Headers<'a>(&'a Response);
        impl fmt::Debug for Headers<'_> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_map().entries(self.0.headers()).finish()
            }
        }
        f.debug_struct("Response")
            .field("status", &self.status)
            .field("headers", &Headers(self))
            .field("body", &self.body)
            .finish_non_exhaustive()
    }
}

/// # Read
impl Response {
    /// 200, with this body.
    pub(super) fn made(content_type: Option<&'static str>, body: Body) -> Response {
        let content_type = content_type.map(Cow::Borrowed);
        Response {
            status: 200,
            content_type,
            headers: Vec::new(),
            body,
            failure: None,
            is_own_text: false,
            #[cfg(feature = "files")]
            is_conditional: false,
        }
    }

    /// The status.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// The headers, without those that the service adds: names as they were given, and values.
    pub fn headers(&self) -> impl Iterator<Item = (&str, &str)> {
        let content_type = self.content_type.as_deref().map(|value| ("Content-Type", value));
        content_type.into_iter().chain(self.headers.iter().map(|(name, value)| (&**name, &**value)))
    }

    /// The first header of this name, in any case.
    ///
    /// ```
    /// let response = allout::Response::html("<p>");
    /// assert_eq!(response.header("content-TYPE"), Some("text/html; charset=utf-8"));
    /// ```
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// The value of `Content-Type`.
    pub fn content_type(&self) -> Option<&str> {
        self.content_type.as_deref()
    }

    /// The body.
    pub fn body(&self) -> &Body {
        &self.body
    }

    /// The body's length in bytes, if it is known.
    pub fn length(&self) -> Option<u64> {
        self.body.length()
    }

    /// The body alone.
    pub fn into_body(self) -> Body {
        self.body
    }

    /// All bytes of the body; a reader is read to its end.
    ///
    /// # Errors
    ///
    /// The reader fails, panics, or gives less than its length.
    pub fn into_bytes(self) -> io::Result<Vec<u8>> {
        self.body.into_bytes()
    }

    /// The whole body as text.
    ///
    /// # Errors
    ///
    /// As for [`into_bytes`](Response::into_bytes); [`InvalidData`](io::ErrorKind::InvalidData) if it is not UTF-8.
    pub fn into_text(self) -> io::Result<String> {
        String::from_utf8(self.into_bytes()?).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    /// True if the whole response is small and in memory: one write sends it.
    pub(crate) fn fits_send_buffer(&self) -> bool {
        self.body.as_bytes().is_some_and(|body| body.len() as u64 <= MAX_INLINE_BODY)
    }
}

/// # Changed
impl Response {
    /// The same response with another status: 200 to 999; any other becomes 500.
    ///
    /// ```
    /// assert_eq!(allout::Response::text("made").with_status(201).status(), 201);
    /// ```
    pub fn with_status(mut self, status: u16) -> Response {
        self.set_status(status);
        self
    }

    /// The same response with one more header; a `Content-Type` replaces the present one.
    ///
    /// A header that cannot be sent is left out, with a warning in the log: a name that is no token, a value with
    /// anything but visible ASCII, spaces and tabs, or a header that the service sends itself.
    ///
    /// ```
    /// let response = allout::Response::empty(201).with_header("Location", "/things/7");
    /// ```
    pub fn with_header(mut self, name: impl Into<Cow<'static, str>>, value: impl Into<Cow<'static, str>>) -> Response {
        self.append_header(name, value);
        self
    }

    /// The same response with another body. The content type stays.
    ///
    /// ```
    /// let response = allout::Response::html("").with_body("<p>hello");
    /// ```
    pub fn with_body(mut self, body: impl Into<Body>) -> Response {
        self.set_body(body);
        self
    }

    /// The same response with a body that is made from its present one.
    ///
    /// ```
    /// let response = allout::Response::bytes("abc").map_body(|body| allout::Body::reader(body.into_reader(), None));
    /// assert_eq!(response.length(), None);
    /// ```
    pub fn map_body(mut self, map: impl FnOnce(Body) -> Body) -> Response {
        let body = self.take_body();
        self.with_body(map(body))
    }

    /// Sets the status, as [`with_status`](Response::with_status) does.
    ///
    /// ```
    /// let mut response = allout::Response::text("made");
    /// response.set_status(201);
    /// ```
    pub fn set_status(&mut self, status: u16) {
        self.status = if is_final(status) { status } else { 500 };
    }

    /// Adds a header, as [`with_header`](Response::with_header) does: others of the same name stay.
    ///
    /// ```
    /// let mut response = allout::Response::empty(204);
    /// response.append_header("Set-Cookie", "a=1");
    /// response.append_header("Set-Cookie", "b=2");
    /// assert_eq!(response.headers().count(), 2);
    /// ```
    pub fn append_header(&mut self, name: impl Into<Cow<'static, str>>, value: impl Into<Cow<'static, str>>) {
        let (name, value) = (name.into(), value.into());
        let is_valid = is_token(name.as_bytes()) && value.bytes().all(|b| b == b'\t' || (b' '..=b'~').contains(&b));
        if !is_valid || MANAGED_HEADERS.iter().any(|managed| name.eq_ignore_ascii_case(managed)) {
            log::warn!("a handler's header cannot be sent and is left out: {name:?}: {value:?}");
        } else if is_content_type(&name) {
            self.content_type = Some(value);
        } else {
            self.headers.push((name, value));
        }
    }

    /// Sets a header in place of all others of its name.
    ///
    /// ```
    /// let mut response = allout::Response::text("x");
    /// response.set_header("Cache-Control", "no-store");
    /// ```
    pub fn set_header(&mut self, name: impl Into<Cow<'static, str>>, value: impl Into<Cow<'static, str>>) {
        let name = name.into();
        self.remove_header(&name);
        self.append_header(name, value);
    }

    /// Removes all headers of this name, in any case. False if there was none.
    ///
    /// ```
    /// let mut response = allout::Response::text("x");
    /// assert!(response.remove_header("content-type") && !response.remove_header("content-type"));
    /// ```
    pub fn remove_header(&mut self, name: &str) -> bool {
        if is_content_type(name) {
            return self.content_type.take().is_some();
        }
        let before = self.headers.len();
        self.headers.retain(|(known, _)| !known.eq_ignore_ascii_case(name));
        self.headers.len() < before
    }

    /// Sets another body. The content type stays.
    ///
    /// ```
    /// let mut response = allout::Response::text("x");
    /// response.set_body("y");
    /// ```
    pub fn set_body(&mut self, body: impl Into<Body>) {
        self.body = body.into();
        self.is_own_text = false;
    }

    /// Takes the body out; the response is left with an empty one.
    pub fn take_body(&mut self) -> Body {
        self.is_own_text = false;
        std::mem::take(&mut self.body)
    }
}

/// # Sent
impl Response {
    /// Whether its body is that of the request, and is sent: a response without content does not read it.
    pub(crate) fn sends_request_body(&self, head_only: bool) -> bool {
        self.body.is_of_request() && !head_only && !is_bodyless(self.status)
    }

    /// Gives a streamed body the link to its request. `link` is called only if the body is a stream.
    pub(crate) fn link_stream(&mut self, link: impl FnOnce() -> StreamLink) {
        if let Content::Stream(source) = &mut self.body.0 {
            source.set_link(link());
        }
    }
}

/// # What the log says of it
impl Response {
    /// The reason why the request failed, if it is to be logged; taken once.
    pub(crate) fn take_failure(&mut self) -> Option<Box<Failure>> {
        self.failure.take()
    }

    /// The reason in the body, if the body is the text of an error of this crate.
    pub(crate) fn own_reason(&self) -> Option<&str> {
        let text = std::str::from_utf8(self.body.as_bytes()?).ok()?;
        let reason = text.get(3..).filter(|_| self.is_own_text && self.status >= 400)?;
        Some(reason.trim())
    }

    /// The same response, no longer marked as an error of this crate: `on_error` has seen it.
    pub(crate) fn finished(mut self) -> Response {
        self.is_own_text = false;
        self
    }

    /// The same response with a reason for the log.
    pub(super) fn with_failure(mut self, reason: &dyn fmt::Display) -> Response {
        let level = if self.status >= 500 { log::Level::Error } else { log::Level::Info };
        self.failure = Some(Box::new(Failure { level, reason: reason.to_string() }));
        self
    }
}

fn is_content_type(name: &str) -> bool {
    name.eq_ignore_ascii_case("content-type")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    const TEXT: &str = "text/plain; charset=utf-8";

    #[test]
    fn no_header_can_break_a_line_or_replace_one_of_the_service() {
        let response = Response::text("x")
            .with_header("X-A", "b\r\nX-Evil: 1")
            .with_header("X B", "c")
            .with_header("Date", "d")
            .with_header("transfer-encoding", "chunked")
            .with_header("X-Ü", "a")
            .with_header("X-C", "ü");
        assert_eq!(response.headers().collect::<Vec<_>>(), [("Content-Type", TEXT)]);
    }

    #[test]
    fn a_content_type_replaces_the_one_before_and_other_headers_add_up() {
        let response = Response::html("<p>").with_header("Set-Cookie", "a").with_header("set-cookie", "b");
        assert_eq!(response.header("content-TYPE"), Some("text/html; charset=utf-8"));
        assert_eq!(response.headers().filter(|(name, _)| name.eq_ignore_ascii_case("set-cookie")).count(), 2);
        let debug = format!("{response:?}");
        assert!(
            debug.contains("200") && debug.contains("\"set-cookie\": \"b\"") && debug.contains("\"<p>\""),
            "{debug}"
        );
    }

    #[test]
    fn headers_are_set_appended_and_removed_whatever_their_case() {
        let mut response = Response::text("x").with_header("A", "1").with_header("B", "2").with_header("a", "3");
        response.set_header("a", "4");
        assert_eq!(response.headers().skip(1).collect::<Vec<_>>(), [("B", "2"), ("a", "4")]);
        assert!(response.remove_header("A") && !response.remove_header("A"));
        assert!(response.remove_header("content-type") && response.content_type().is_none());
        response.set_header("Content-type", "text/css");
        assert_eq!(response.content_type(), Some("text/css"));
    }

    #[test]
    fn a_body_is_taken_out_replaced_and_mapped() {
        let mut response = Response::text("one");
        assert_eq!(response.take_body().as_bytes(), Some(&b"one"[..]));
        assert_eq!((response.length(), response.content_type()), (Some(0), Some(TEXT)));
        let response = response.with_body("two").map_body(|body| Body::reader(body.into_reader().take(2), None));
        assert_eq!((response.length(), response.into_text().unwrap()), (None, "tw".to_owned()));
    }
}
