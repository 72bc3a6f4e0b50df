//! What a handler answers, and how it becomes bytes.

use std::any::Any;
use std::borrow::Cow;
use std::cell::RefCell;
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::time::SystemTime;

use tiny_http::{HTTPVersion, Header, StatusCode};

use crate::crew::stop::GraceExpired;
use crate::dispatch::request::BodyError;

/// An answer: a status, headers and a body.
///
/// Most handlers return something that turns into one: text (`&'static str`, `String`), bytes, a status (`u16`), a
/// status with any of these (`(404, "no such thing")`), or a `Result` of such things.
///
/// `Content-Length`, `Transfer-Encoding`, `Connection`, `Date` and `Server` are the service's own business.
///
/// ```
/// use allout::Response;
/// let reply = Response::text("made").with_status(201).with_header("Location", "/things/7");
/// assert_eq!(reply.status(), 201);
/// ```
#[must_use = "a response does nothing until a handler returns it"]
pub struct Response {
    status: u16,
    /// Of a handler that failed: for the log, and nobody else.
    failure: Option<Box<str>>,
    content_type: Option<Cow<'static, str>>,
    headers: Vec<(Cow<'static, str>, Cow<'static, str>)>,
    body: Body,
}

enum Body {
    Static(&'static [u8]),
    Bytes(Vec<u8>),
    Reader(Box<dyn Read + Send>, Option<u64>),
}

const TEXT: &str = "text/plain; charset=utf-8";

impl fmt::Debug for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let length = self.length();
        f.debug_struct("Response").field("status", &self.status).field("length", &length).finish_non_exhaustive()
    }
}

impl Response {
    fn new(content_type: Option<Cow<'static, str>>, body: Body) -> Response {
        Response { status: 200, failure: None, content_type, headers: Vec::new(), body }
    }

    /// 200, with a text: `text/plain`, UTF-8.
    pub fn text(text: impl Into<Cow<'static, str>>) -> Response {
        let body = match text.into() {
            Cow::Borrowed(text) => Body::Static(text.as_bytes()),
            Cow::Owned(text) => Body::Bytes(text.into_bytes()),
        };
        Response::new(Some(Cow::Borrowed(TEXT)), body)
    }

    /// 200, with a page: `text/html`, UTF-8.
    pub fn html(page: impl Into<Cow<'static, str>>) -> Response {
        Response::text(page).with_header("Content-Type", "text/html; charset=utf-8")
    }

    /// 200, with bytes: `application/octet-stream`, unless [`with_header`](Response::with_header) says otherwise.
    pub fn bytes(bytes: impl Into<Vec<u8>>) -> Response {
        Response::new(Some(Cow::Borrowed("application/octet-stream")), Body::Bytes(bytes.into()))
    }

    /// 200, with `value` as JSON.
    ///
    /// # Errors
    ///
    /// The value cannot be written as JSON (a map whose keys are no strings, for example).
    #[cfg(feature = "json")]
    pub fn json(value: &impl serde::Serialize) -> Result<Response, crate::HandlerError> {
        let bytes = serde_json::to_vec(value)?;
        Ok(Response::new(Some(Cow::Borrowed("application/json")), Body::Bytes(bytes)))
    }

    /// 200, with what a reader gives; chunked if its length in bytes is not known.
    ///
    /// The reader is read while the response is written. If it fails, or gives less than was promised, the connection is
    /// cut, so that the client sees that something is missing; what it would give beyond that is not asked for. A reader
    /// that may go on for ever should end when the service is [draining](crate::Stop::is_draining).
    pub fn reader(reader: impl Read + Send + 'static, length: Option<u64>) -> Response {
        Response::new(Some(Cow::Borrowed("application/octet-stream")), Body::Reader(Box::new(reader), length))
    }

    /// 200, with a file, from where it was read or positioned to until its present end.
    ///
    /// What is no regular file, or says that it is empty (as those in `/proc` do), is read to its end.
    ///
    /// # Errors
    ///
    /// It is a directory, or does not tell what it is.
    pub fn file(mut file: File) -> io::Result<Response> {
        let facts = file.metadata()?;
        if facts.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        let length = if facts.is_file() && facts.len() > 0 {
            Some(facts.len().saturating_sub(file.stream_position()?))
        } else {
            None
        };
        Ok(Response::reader(file, length))
    }

    /// A status without a body.
    pub fn empty(status: u16) -> Response {
        Response::new(None, Body::Static(b"")).with_status(status)
    }

    /// The same with another status: three digits, from 200 on.
    pub fn with_status(mut self, status: u16) -> Response {
        self.status = if (200..=999).contains(&status) { status } else { 500 };
        self
    }

    /// The same with one more header; `Content-Type` replaces what was there.
    ///
    /// A header that could not be sent is left out, with a line in the log: a name that is no token, a value with
    /// anything but visible ASCII, spaces and tabs, or one of those that the service sends itself.
    pub fn with_header(mut self, name: impl Into<Cow<'static, str>>, value: impl Into<Cow<'static, str>>) -> Response {
        const OURS: [&str; 6] = ["connection", "content-length", "transfer-encoding", "date", "server", "x-request-id"];
        let (name, value) = (name.into(), value.into());
        let sendable = !name.is_empty()
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
            && value.bytes().all(|b| b == b'\t' || (b' '..=b'~').contains(&b));
        if !sendable || OURS.iter().any(|ours| name.eq_ignore_ascii_case(ours)) {
            log::warn!("a handler's header cannot be sent, and is left out: {name:?}: {value:?}");
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

    /// The body's length in bytes, if it is known.
    pub fn length(&self) -> Option<u64> {
        match &self.body {
            Body::Static(bytes) => Some(bytes.len() as u64),
            Body::Bytes(bytes) => Some(bytes.len() as u64),
            Body::Reader(_, length) => *length,
        }
    }

    /// The body, if it is in memory: for tests of handlers.
    pub fn body(&self) -> Option<&[u8]> {
        match &self.body {
            Body::Static(bytes) => Some(bytes),
            Body::Bytes(bytes) => Some(bytes),
            Body::Reader(..) => None,
        }
    }

    /// Why the handler failed, if it did.
    pub(crate) fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// Whether the whole response is small and in memory, so that one write sends it.
    pub(crate) fn fits_send_buffer(&self) -> bool {
        const SMALL: u64 = 4 * 1024; // a quarter of what a new socket takes before a write blocks
        matches!(self.body, Body::Static(_) | Body::Bytes(_)) && self.length().is_some_and(|length| length <= SMALL)
    }

    /// An error with a short text: the status and what it means.
    pub(crate) fn error(status: u16, reason: &str) -> Response {
        Response::text(format!("{status} {reason}\n")).with_status(status)
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

/// A status alone, with its name as text.
impl From<u16> for Response {
    fn from(status: u16) -> Response {
        Response::error(status, StatusCode(status).default_reason_phrase())
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

/// The service is stopping: 503, and come back later.
impl From<GraceExpired> for Response {
    fn from(_: GraceExpired) -> Response {
        Response::error(503, "stopping").with_header("Retry-After", "1")
    }
}

/// What a handler fails with, so that `?` works in it whatever the error.
///
/// The client is told nothing about an error but 500, and the log gets it with all its sources, the request and its id.
/// Errors that have an answer of their own keep it: [`BodyError`](crate::BodyError), [`GraceExpired`], and any [`Response`].
///
/// ```
/// use allout::{HandlerError, Response, Request};
///
/// fn store(request: &mut Request) -> Result<u16, HandlerError> {
///     let name = request.param("name").ok_or(Response::from(404))?; // the client's fault: 404
///     let path = std::path::Path::new("notes").join(name);
///     let text = request.text()?;                                // the client's fault: 413, 422
///     std::fs::write(path, text)?;                               // ours: 500, and a line in the log
///     Ok(201)
/// }
/// ```
#[derive(Debug)]
pub struct HandlerError(Response);

impl<E: std::error::Error + 'static> From<E> for HandlerError {
    fn from(error: E) -> HandlerError {
        let mut what = error.to_string();
        let mut source = error.source();
        while let Some(deeper) = source {
            what = format!("{what}: {deeper}");
            source = deeper.source();
        }
        let error: Box<dyn Any> = Box::new(error);
        let response = match error.downcast::<BodyError>().map(|error| Response::from(*error)) {
            Ok(response) => response,
            Err(error) if error.is::<GraceExpired>() => Response::from(GraceExpired),
            Err(_) => Response { failure: Some(what.into()), ..Response::error(500, "Internal Server Error") },
        };
        HandlerError(response)
    }
}

impl From<Response> for HandlerError {
    fn from(response: Response) -> HandlerError {
        HandlerError(response)
    }
}

impl From<HandlerError> for Response {
    fn from(failure: HandlerError) -> Response {
        failure.0
    }
}

/// What the connection and the request add to a response.
pub(crate) struct ResponseContext<'a> {
    pub(crate) version: HTTPVersion,
    pub(crate) head_only: bool,
    pub(crate) close: bool,
    pub(crate) keep_alive: bool,
    pub(crate) request_id: &'a str,
}

/// The date of the last response of this thread, as header text; a second is what it changes by.
struct Date {
    second: u64,
    text: String,
}

thread_local! {
    static DATE: RefCell<Date> = const { RefCell::new(Date { second: 0, text: String::new() }) };
}

fn with_date<T>(use_it: impl FnOnce(&str) -> T) -> T {
    let now = SystemTime::now();
    let second = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    DATE.with_borrow_mut(|date| {
        if date.second != second || date.text.is_empty() {
            *date = Date { second, text: httpdate::fmt_http_date(now) };
        }
        use_it(&date.text)
    })
}

impl Response {
    /// Prints the response to `out`. tiny_http frames it; a known length is sent as `Content-Length`.
    ///
    /// # Errors
    ///
    /// The body's reader failed or gave another length, or the peer has left: the connection must be cut.
    pub(crate) fn print(self, context: &ResponseContext<'_>, out: impl Write) -> io::Result<u64> {
        // All headers of ours go into the text of one: tiny_http drops some by name (`Connection`), and for each that
        // it is given it wants two allocations. What is put in here was checked to hold no line break of its own.
        let mut block = String::with_capacity(256);
        block.push_str("allout");
        if let Some(content_type) = &self.content_type {
            block.push_str("\r\nContent-Type: ");
            block.push_str(content_type);
        }
        block.push_str("\r\nX-Content-Type-Options: nosniff\r\nX-Request-Id: ");
        block.push_str(context.request_id);
        for (name, value) in &self.headers {
            block.push_str("\r\n");
            block.push_str(name);
            block.push_str(": ");
            block.push_str(value);
        }
        if context.close {
            block.push_str("\r\nConnection: close");
        } else if context.keep_alive {
            block.push_str("\r\nConnection: keep-alive");
        }
        let date = with_date(|date| Header::from_bytes(&b"Date"[..], date.as_bytes()));
        let server = Header::from_bytes(&b"Server"[..], block);
        let headers: Vec<Header> = server.into_iter().chain(date).collect();

        // Longer than memory can be addressed, on a 32-bit machine: then chunks must do.
        let promised = self.length().and_then(|length| usize::try_from(length).ok());
        let mut out = Counting { inner: out, bytes: 0 };
        let mut given = 0;
        let result = match self.body {
            Body::Static(bytes) => print(self.status, headers, bytes, promised, context, &mut out),
            Body::Bytes(bytes) => print(self.status, headers, bytes.as_slice(), promised, context, &mut out),
            Body::Reader(reader, _) => {
                let reader = CountingReader {
                    inner: reader.take(promised.map_or(u64::MAX, |promised| promised as u64)),
                    bytes: &mut given,
                };
                print(self.status, headers, reader, promised, context, &mut out).and_then(|()| match promised {
                    Some(promised) if !context.head_only && given != promised as u64 => {
                        Err(io::Error::other("a response's reader gave another length than was promised"))
                    }
                    _ => Ok(()),
                })
            }
        };
        result.map(|()| out.bytes)
    }
}

fn print(
    status: u16,
    headers: Vec<Header>,
    body: impl Read,
    length: Option<usize>,
    context: &ResponseContext<'_>,
    out: impl Write,
) -> io::Result<()> {
    tiny_http::Response::new(StatusCode(status), headers, body, length, None)
        .with_chunked_threshold(usize::MAX)
        .raw_print(out, context.version.clone(), &[], context.head_only, None)
}

struct Counting<W> {
    inner: W,
    bytes: u64,
}

impl<W: Write> Write for Counting<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

struct CountingReader<'a> {
    inner: io::Take<Box<dyn Read + Send>>,
    bytes: &'a mut u64,
}

impl Read for CountingReader<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(into)?;
        *self.bytes += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(response: Response, close: bool, head_only: bool) -> String {
        let context =
            ResponseContext { version: HTTPVersion(1, 1), head_only, close, keep_alive: false, request_id: "id-1" };
        let mut out = Vec::new();
        response.print(&context, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_response_is_framed_by_its_length_and_says_what_it_is() {
        let text = printed(Response::text("hello"), true, false);
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert_eq!(body, "hello");
        for line in [
            "HTTP/1.1 200 OK",
            "Server: allout",
            "Content-Type: text/plain; charset=utf-8",
            "X-Content-Type-Options: nosniff",
            "X-Request-Id: id-1",
            "Connection: close",
            "Content-Length: 5",
        ] {
            assert!(head.lines().any(|l| l == line), "no {line:?} in:\n{head}");
        }
        assert_eq!(head.lines().filter(|line| line.starts_with("Date: ")).count(), 1);
    }

    #[test]
    fn a_head_has_the_length_and_not_the_body() {
        let text = printed(Response::text("hello"), false, true);
        assert!(text.contains("Content-Length: 5\r\n") && text.ends_with("\r\n\r\n"), "{text}");
        assert!(!text.contains("Connection:"));
    }

    #[test]
    fn no_header_can_break_a_line() {
        let response =
            Response::text("x").with_header("X-A", "b\r\nX-Evil: 1").with_header("X B", "c").with_header("Date", "d");
        assert!(response.headers.is_empty());
    }

    #[test]
    fn a_reader_of_unknown_length_is_chunked_and_one_that_lies_is_broken() {
        let text = printed(Response::reader(&b"hello"[..], None), false, false);
        assert!(text.contains("Transfer-Encoding: chunked\r\n") && text.ends_with("5\r\nhello\r\n0\r\n\r\n"), "{text}");
        let context = ResponseContext {
            version: HTTPVersion(1, 1),
            head_only: false,
            close: false,
            keep_alive: false,
            request_id: "",
        };
        assert!(Response::reader(&b"hello"[..], Some(7)).print(&context, Vec::new()).is_err());
    }

    #[test]
    fn a_reader_that_would_give_more_than_was_promised_is_not_asked_for_it() {
        let text = printed(Response::reader(&b"hello"[..], Some(2)), false, false);
        assert!(text.contains("Content-Length: 2\r\n") && text.ends_with("\r\n\r\nhe"), "{text}");
    }

    #[test]
    fn a_file_is_sent_from_where_it_is_positioned_and_one_without_a_length_is_read_to_its_end() {
        let mut file = File::open(file!()).unwrap();
        let all = file.metadata().unwrap().len();
        file.seek(io::SeekFrom::Start(10)).unwrap();
        assert_eq!(Response::file(file).unwrap().length(), Some(all - 10));
        assert_eq!(Response::file(File::open("/proc/self/status").unwrap()).unwrap().length(), None);
        assert!(Response::file(File::open("/").unwrap()).is_err());
    }

    #[test]
    fn a_failure_is_for_the_log_unless_the_error_has_an_answer_of_its_own() {
        fn fails<E: Into<HandlerError>>(error: E) -> Response {
            error.into().into()
        }
        let response = fails(io::Error::other("the disk is gone"));
        assert_eq!((response.status(), response.failure()), (500, Some("the disk is gone")));
        assert_eq!(fails(BodyError::TooLarge).status(), 413);
        assert_eq!(fails(GraceExpired).status(), 503);
        assert_eq!((fails(Response::from(404)).status(), fails(Response::from(404)).failure()), (404, None));
    }

    #[test]
    fn what_handlers_return_becomes_a_reply() {
        assert_eq!(Response::from((404, "no such thing")).status(), 404);
        assert_eq!(Response::from(503_u16).body(), Some(&b"503 Service Unavailable\n"[..]));
        assert_eq!(Response::from(Ok::<_, GraceExpired>("yes")).status(), 200);
        assert_eq!(Response::from(Err::<&str, _>(GraceExpired)).status(), 503);
    }
}
