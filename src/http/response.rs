//! The response of a handler, and what turns into one.

use std::borrow::Cow;
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::status::reason_phrase;
use super::validate::is_token;
use crate::text::panic_message;

/// A response: a status, headers and a body.
///
/// Most handlers return something that turns into one: text (`&'static str`, `String`), bytes, a status (`u16`), a
/// status with any of these (`(404, "no such thing")`), or a `Result` of such things.
///
/// `Content-Length`, `Transfer-Encoding`, `Connection`, `Date`, `Server` and `X-Request-Id` are the service's own.
///
/// ```
/// use allout::Response;
/// let response = Response::text("made").with_status(201).with_header("Location", "/things/7");
/// assert_eq!(response.status(), 201);
/// ```
#[must_use = "a response does nothing until a handler returns it"]
pub struct Response {
    status: u16,
    content_type: Option<Cow<'static, str>>,
    headers: Vec<(Cow<'static, str>, Cow<'static, str>)>,
    pub(super) body: Body,
    /// What the log says of it. Boxed: few responses have one.
    failure: Option<Box<Failure>>,
}

/// The body of a response.
pub(super) enum Body {
    Static(&'static [u8]),
    Bytes(Vec<u8>),
    Reader(BodySource),
}

/// Why a request failed, for the log and never for the client.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// `Error` where the service is at fault, `Info` where the client is: no client can fill the log with errors.
    pub(crate) level: log::Level,
    pub(crate) reason: String,
}

/// A body that is read while the response is written, and its length in bytes if that is known.
pub(super) struct BodySource {
    /// `None` once it was dropped.
    reader: Option<Box<dyn Read + Send>>,
    pub(super) length: Option<u64>,
}

/// A reader's failure.
#[derive(Debug)]
pub(super) enum ReadFailure {
    Error(io::Error),
    /// The message of the panic.
    Panic(String),
}

impl BodySource {
    /// Reads as [`Read::read`] does; a panic of the reader is a failure.
    pub(super) fn read(&mut self, into: &mut [u8]) -> Result<usize, ReadFailure> {
        let Some(reader) = &mut self.reader else { return Ok(0) };
        loop {
            return match catch_unwind(AssertUnwindSafe(|| reader.read(into))) {
                // A reader that claims more than there was room for has a bug like one that panics.
                Ok(Ok(n)) if n > into.len() => {
                    Err(ReadFailure::Panic("it read more than there was room for".to_owned()))
                }
                Ok(Ok(n)) => Ok(n),
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => continue,
                Ok(Err(error)) => Err(ReadFailure::Error(error)),
                Err(payload) => Err(ReadFailure::Panic(panic_message(payload.as_ref()))),
            };
        }
    }

    /// Drops the reader. Its panic is an error, with the message.
    pub(super) fn close(&mut self) -> Result<(), String> {
        let reader = self.reader.take();
        catch_unwind(AssertUnwindSafe(|| drop(reader))).map_err(|payload| panic_message(payload.as_ref()))
    }
}

/// A response may be dropped on any thread: a reader that panics in its `drop` must not end that thread.
impl Drop for BodySource {
    fn drop(&mut self) {
        if let Err(message) = self.close() {
            log::error!("the reader of a response that was not sent panicked when it was dropped: {message}");
        }
    }
}

/// The content type of text.
const TEXT: &str = "text/plain; charset=utf-8";

/// Most bytes of a body that is written where nothing may wait: a quarter of what a new socket takes before a write blocks.
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
            .field("length", &self.length())
            .finish_non_exhaustive()
    }
}

impl Response {
    pub(super) fn new(content_type: Option<&'static str>, body: Body) -> Response {
        let content_type = content_type.map(Cow::Borrowed);
        Response { status: 200, content_type, headers: Vec::new(), body, failure: None }
    }

    /// 200, with a text: `text/plain`, UTF-8.
    pub fn text(text: impl Into<Cow<'static, str>>) -> Response {
        let body = match text.into() {
            Cow::Borrowed(text) => Body::Static(text.as_bytes()),
            Cow::Owned(text) => Body::Bytes(text.into_bytes()),
        };
        Response::new(Some(TEXT), body)
    }

    /// 200, with a page: `text/html`, UTF-8.
    pub fn html(page: impl Into<Cow<'static, str>>) -> Response {
        Response::text(page).with_header("Content-Type", "text/html; charset=utf-8")
    }

    /// 200, with bytes: `application/octet-stream`, unless [`with_header`](Response::with_header) says otherwise.
    pub fn bytes(bytes: impl Into<Vec<u8>>) -> Response {
        Response::new(Some("application/octet-stream"), Body::Bytes(bytes.into()))
    }

    /// 200, with what a reader gives; `length` is its length in bytes, if that is known.
    ///
    /// The reader is read while the response is written. The head is sent at once, and the bytes of each read at once, so
    /// that a reader that waits for events sends each when it comes. A reader that may go on for ever should end when the
    /// service is [draining](crate::Stop::is_draining).
    ///
    /// If the reader fails, panics, or gives less than `length`, the connection is cut, so that the client sees that
    /// something is missing. Bytes beyond `length` are not read. An HTTP/1.0 client gets a body of unknown length up to the
    /// end of the connection; other clients get it chunked.
    pub fn reader(reader: impl Read + Send + 'static, length: Option<u64>) -> Response {
        let source = BodySource { reader: Some(Box::new(reader)), length };
        Response::new(Some("application/octet-stream"), Body::Reader(source))
    }

    /// 200, with a file, from its present position to its present end.
    ///
    /// A file that is not a regular one, or that says that it is empty (as those in `/proc` do), is read to its end.
    ///
    /// # Errors
    ///
    /// The file is a directory, or its metadata cannot be read.
    pub fn file(mut file: File) -> io::Result<Response> {
        let metadata = file.metadata()?;
        if metadata.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        let length = if metadata.is_file() && metadata.len() > 0 {
            Some(metadata.len().saturating_sub(file.stream_position()?))
        } else {
            None
        };
        Ok(Response::reader(file, length))
    }

    /// A status without a body.
    pub fn empty(status: u16) -> Response {
        Response::new(None, Body::Static(b"")).with_status(status)
    }

    /// The same response with another status: 200 to 999; any other becomes 500.
    pub fn with_status(mut self, status: u16) -> Response {
        self.status = if (200..=999).contains(&status) { status } else { 500 };
        self
    }

    /// The same response with one more header; `Content-Type` replaces the one before.
    ///
    /// A header that cannot be sent is left out, with a warning in the log: a name that is no token, a value with
    /// anything but visible ASCII, spaces and tabs, or a header that the service sends itself.
    pub fn with_header(mut self, name: impl Into<Cow<'static, str>>, value: impl Into<Cow<'static, str>>) -> Response {
        let (name, value) = (name.into(), value.into());
        let is_valid = is_token(name.as_bytes()) && value.bytes().all(|b| b == b'\t' || (b' '..=b'~').contains(&b));
        if !is_valid || MANAGED_HEADERS.iter().any(|managed| name.eq_ignore_ascii_case(managed)) {
            log::warn!("a handler's header cannot be sent and is left out: {name:?}: {value:?}");
        } else if name.eq_ignore_ascii_case("content-type") {
            self.content_type = Some(value);
        } else {
            self.headers.push((name, value));
        }
        self
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
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// The body's length in bytes, if it is known.
    pub fn length(&self) -> Option<u64> {
        match &self.body {
            Body::Static(bytes) => Some(bytes.len() as u64),
            Body::Bytes(bytes) => Some(bytes.len() as u64),
            Body::Reader(source) => source.length,
        }
    }

    /// The body, if it is in memory.
    pub fn body(&self) -> Option<&[u8]> {
        match &self.body {
            Body::Static(bytes) => Some(bytes),
            Body::Bytes(bytes) => Some(bytes),
            Body::Reader(_) => None,
        }
    }

    /// Why the request failed, if the log is to say it.
    pub(crate) fn failure(&self) -> Option<&Failure> {
        self.failure.as_deref()
    }

    /// The same response with a reason for the log.
    pub(super) fn with_failure(mut self, level: log::Level, reason: String) -> Response {
        self.failure = Some(Box::new(Failure { level, reason }));
        self
    }

    /// Whether the whole response is small and in memory, so that one write sends it.
    pub(crate) fn fits_send_buffer(&self) -> bool {
        self.body().is_some_and(|body| body.len() as u64 <= MAX_INLINE_BODY)
    }

    /// An error with a short text: the status and what it means.
    pub(crate) fn error(status: u16, reason: &str) -> Response {
        let space = if reason.is_empty() { "" } else { " " };
        Response::text(format!("{status}{space}{reason}\n")).with_status(status)
    }
}

impl From<&'static str> for Response {
    fn from(text: &'static str) -> Response {
        Response::text(text)
    }
}

impl From<String> for Response {
    fn from(text: String) -> Response {
        Response::text(text)
    }
}

impl From<Vec<u8>> for Response {
    fn from(bytes: Vec<u8>) -> Response {
        Response::bytes(bytes)
    }
}

impl From<()> for Response {
    fn from((): ()) -> Response {
        Response::empty(204)
    }
}

/// A status alone, with its reason phrase as text.
impl From<u16> for Response {
    fn from(status: u16) -> Response {
        Response::error(status, reason_phrase(status))
    }
}

impl<T: Into<Response>> From<(u16, T)> for Response {
    fn from((status, response): (u16, T)) -> Response {
        response.into().with_status(status)
    }
}

impl<T: Into<Response>, E: Into<Response>> From<Result<T, E>> for Response {
    fn from(result: Result<T, E>) -> Response {
        match result {
            Ok(response) => response.into(),
            Err(response) => response.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            debug.contains("200") && debug.contains("\"set-cookie\": \"b\"") && debug.contains("Some(3)"),
            "{debug}"
        );
    }

    #[test]
    fn a_file_is_sent_from_its_position_and_one_without_a_length_is_read_to_its_end() {
        let mut file = File::open(file!()).unwrap();
        let all = file.metadata().unwrap().len();
        file.seek(io::SeekFrom::Start(10)).unwrap();
        assert_eq!(Response::file(file).unwrap().length(), Some(all - 10));
        assert_eq!(Response::file(File::open("/proc/self/status").unwrap()).unwrap().length(), None);
        assert!(Response::file(File::open("/").unwrap()).is_err());
    }

    #[test]
    fn what_handlers_return_becomes_a_response() {
        assert_eq!(Response::from((404, "no such thing")).status(), 404);
        assert_eq!(Response::from(503_u16).body(), Some(&b"503 Service Unavailable\n"[..]));
        assert_eq!(Response::from(799_u16).body(), Some(&b"799\n"[..]));
        assert_eq!(Response::from(100_u16).status(), 500);
        assert_eq!(Response::from(()).status(), 204);
        assert_eq!(Response::from(Ok::<_, u16>("yes")).status(), 200);
        assert_eq!(Response::from(Err::<&str, _>(404)).status(), 404);
    }

    #[test]
    fn a_response_with_a_reader_that_panics_when_dropped_can_be_dropped() {
        struct Bomb;
        impl Read for Bomb {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Ok(0)
            }
        }
        impl Drop for Bomb {
            fn drop(&mut self) {
                panic!("a bug in drop");
            }
        }
        drop(Response::reader(Bomb, None));
    }
}
