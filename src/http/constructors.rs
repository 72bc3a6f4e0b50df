//! Constructors of responses, and conversions from the values that handlers return.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::sync::Arc;

use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use super::body::{Body, Content};
use super::response::Response;
use super::source::FilePart;
use super::status::{is_final, reason_phrase};
use super::stream::StreamWriter;

/// The content type of text.
const TEXT: &str = "text/plain; charset=utf-8";

/// The content type of bytes without a known type: RFC 2046, section 4.5.1.
const BYTES: &str = "application/octet-stream";

/// ASCII characters that are encoded in the target of a redirect, because no URL may hold them (RFC 3986, appendix A).
const NOT_IN_URLS: &AsciiSet =
    &CONTROLS.add(b' ').add(b'"').add(b'<').add(b'>').add(b'\\').add(b'^').add(b'`').add(b'{').add(b'|').add(b'}');

/// # Made
impl Response {
    /// 200, with this body and no content type.
    ///
    /// ```
    /// assert_eq!(allout::Response::new("hello").content_type(), None);
    /// ```
    pub fn new(body: impl Into<Body>) -> Response {
        Response::made(None, body.into())
    }

    /// 200, with a text: `text/plain`, UTF-8.
    ///
    /// ```
    /// assert_eq!(allout::Response::text("hello").content_type(), Some("text/plain; charset=utf-8"));
    /// ```
    pub fn text(text: impl Into<Cow<'static, str>>) -> Response {
        Response::made(Some(TEXT), text.into().into())
    }

    /// 200, with a page: `text/html`, UTF-8.
    ///
    /// ```
    /// let page = allout::Response::html("<!doctype html><title>shop</title>");
    /// ```
    pub fn html(page: impl Into<Cow<'static, str>>) -> Response {
        Response::made(Some("text/html; charset=utf-8"), page.into().into())
    }

    /// 200, with bytes: `application/octet-stream`, unless [`with_header`](Response::with_header) says otherwise.
    ///
    /// ```
    /// let image = allout::Response::bytes(vec![0x89, b'P', b'N', b'G']).with_header("Content-Type", "image/png");
    /// ```
    pub fn bytes(bytes: impl Into<Body>) -> Response {
        Response::made(Some(BYTES), bytes.into())
    }

    /// 200, with a reader's bytes; `length` is its length in bytes, if that is known.
    ///
    /// The reader is read while the response is written. The head is sent at once, and so are the bytes of each read: a
    /// reader that waits for events sends each as it comes. A reader that may go on for ever should end when the
    /// service is [draining](crate::Stop::is_draining).
    ///
    /// If the reader fails, panics, or gives less than `length`, the connection is cut, so that the client sees that
    /// something is missing. Bytes beyond `length` are not read. An HTTP/1.0 client gets a body of unknown length up to
    /// the end of the connection; other clients get it chunked.
    ///
    /// ```no_run
    /// use std::process::{Command, Stdio};
    /// use allout::{HandlerError, Response};
    ///
    /// fn archive() -> Result<Response, HandlerError> {
    ///     let tar = Command::new("tar").args(["-c", "/srv/shop"]).stdout(Stdio::piped()).spawn()?;
    ///     let output = tar.stdout.ok_or("no output")?;
    ///     Ok(Response::reader(output, None).with_header("Content-Type", "application/x-tar"))
    /// }
    /// ```
    pub fn reader(reader: impl Read + Send + 'static, length: Option<u64>) -> Response {
        Response::made(Some(BYTES), Body::reader(reader, length))
    }

    /// 200, with the bytes that a function writes while the response is sent, on a worker's thread.
    ///
    /// The head is sent at once; the bytes that the function writes are sent by `flush`, or when 16 KiB have gathered.
    /// Writing fails when the client has left; the function may then return that error. If it fails for another reason,
    /// or panics, the connection is cut, so that the client sees that something is missing. A function that may go on
    /// for ever should end when the service is [draining](StreamWriter::is_draining).
    ///
    /// ```
    /// use std::io::Write;
    /// use allout::Response;
    ///
    /// let response = Response::stream(|writer| {
    ///     for n in 0..3 {
    ///         writeln!(writer, "line {n}")?;
    ///         writer.flush()?; // sent now
    ///     }
    ///     Ok(())
    /// });
    /// assert_eq!(response.into_text()?, "line 0\nline 1\nline 2\n");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn stream(write: impl FnOnce(&mut StreamWriter<'_>) -> io::Result<()> + Send + 'static) -> Response {
        Response::made(Some(BYTES), Body::stream(write))
    }

    /// 200, with a file, from its present position to its present end.
    ///
    /// If a path does not exist, `File::open` fails, which `?` in a handler turns into a 500. Where a client names the
    /// file, answer 404 instead, or serve it by `Files` (feature `files`).
    ///
    /// A file that is not a regular one, or that says that it is empty (as those in `/proc` do), is read to its end.
    ///
    /// With the feature `files` a regular file that is sent from its beginning has `Last-Modified` and an `ETag` (of its
    /// time and length), and requests for it are conditional (`Response::conditional`), for ranges as well.
    ///
    /// ```
    /// let response = allout::Response::file(std::fs::File::open("Cargo.toml")?)?;
    /// assert!(response.length() > Some(0));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// The file is a directory, or its metadata cannot be read.
    pub fn file(mut file: File) -> io::Result<Response> {
        let metadata = file.metadata()?;
        if metadata.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        if !metadata.is_file() || metadata.len() == 0 {
            return Ok(Response::reader(file, None));
        }
        let at = file.stream_position()?;
        let length = metadata.len().saturating_sub(at);
        let response = Response::made(Some(BYTES), Body(Content::File(FilePart { file, length })));
        #[cfg(feature = "files")]
        let response = if at == 0 { response.with_validators(&metadata) } else { response };
        Ok(response)
    }

    /// A status without a body.
    ///
    /// ```
    /// assert_eq!(allout::Response::empty(204).length(), Some(0));
    /// ```
    pub fn empty(status: u16) -> Response {
        Response::made(None, Body::empty()).with_status(status)
    }

    /// 303: the client is to `GET` this URL or path instead, whatever its method was. Characters that a URL cannot hold
    /// are percent-encoded.
    ///
    /// For other meanings set another status: 307 keeps the method, 301 and 308 are permanent (RFC 9110, section 15.4).
    ///
    /// ```
    /// use allout::Response;
    /// let moved = Response::redirect("/new place").with_status(308);
    /// assert_eq!(moved.header("Location"), Some("/new%20place"));
    /// ```
    pub fn redirect(location: impl AsRef<str>) -> Response {
        let location = utf8_percent_encode(location.as_ref(), NOT_IN_URLS).to_string();
        Response::empty(303).with_header("Location", location)
    }

    /// An error with a short text: the status and what it means.
    pub(crate) fn error(status: u16, reason: impl Into<Cow<'static, str>>) -> Response {
        let reason = reason.into();
        let space = if reason.is_empty() { "" } else { " " };
        let mut response = Response::text(format!("{status}{space}{reason}\n")).with_status(status);
        response.is_own_text = true;
        response
    }
}

macro_rules! from {
    ($($type:ty => |$value:ident| $response:expr;)*) => {
        $(impl From<$type> for Response {
            fn from($value: $type) -> Response {
                $response
            }
        })*
    };
}

from! {
    &'static str => |text| Response::text(text);
    String => |text| Response::text(text);
    Cow<'static, str> => |text| Response::text(text);
    Arc<str> => |text| Response::text("").with_body(text);
    &'static [u8] => |bytes| Response::bytes(bytes);
    Vec<u8> => |bytes| Response::bytes(bytes);
    Arc<[u8]> => |bytes| Response::bytes(bytes);
    Cow<'static, [u8]> => |bytes| Response::bytes(bytes);
}

impl<const N: usize> From<&'static [u8; N]> for Response {
    fn from(bytes: &'static [u8; N]) -> Response {
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
        let status = if is_final(status) { status } else { 500 };
        Response::error(status, reason_phrase(status))
    }
}

impl<T: Into<Response>> From<(u16, T)> for Response {
    fn from((status, response): (u16, T)) -> Response {
        response.into().with_status(status)
    }
}

/// An error without a status (a `String`, for example, which alone would be a 200) becomes a 500, and its text is for
/// the log.
impl<T: Into<Response>, E: Into<Response>> From<Result<T, E>> for Response {
    fn from(result: Result<T, E>) -> Response {
        match result {
            Ok(response) => response.into(),
            Err(error) => {
                let response: Response = error.into();
                if response.status() < 300 { internal_error(&response) } else { response }
            }
        }
    }
}

fn internal_error(error: &Response) -> Response {
    let text = error.body().as_bytes().map(String::from_utf8_lossy).filter(|text| !text.is_empty());
    let reason = text.unwrap_or(Cow::Borrowed("an error without a status")).into_owned();
    Response::error(500, reason_phrase(500)).with_failure(&reason)
}

/// 404 if there is nothing.
impl<T: Into<Response>> From<Option<T>> for Response {
    fn from(found: Option<T>) -> Response {
        found.map_or_else(|| Response::from(404), Into::into)
    }
}

/// Without a content type.
impl From<Body> for Response {
    fn from(body: Body) -> Response {
        Response::new(body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(response: impl Into<Response>) -> (u16, String) {
        let response = response.into();
        (response.status(), response.into_text().unwrap())
    }

    fn answer(status: u16, text: &str) -> (u16, String) {
        (status, text.to_owned())
    }

    #[test]
    fn what_handlers_return_becomes_a_response() {
        assert_eq!(text((404, "no such thing")), answer(404, "no such thing"));
        assert_eq!(text(503), answer(503, "503 Service Unavailable\n"));
        assert_eq!(text(799), answer(799, "799\n"));
        assert_eq!(text(100).0, 500);
        assert_eq!(text(()), answer(204, ""));
        assert_eq!(text(Ok::<_, u16>("yes")), answer(200, "yes"));
        assert_eq!(text(Err::<&str, _>(404)).0, 404);
        assert_eq!(text(Some("yes")), answer(200, "yes"));
        assert_eq!(text(None::<&str>), answer(404, "404 Not Found\n"));
        assert_eq!(text(Ok::<_, u16>(None::<String>)).0, 404);
        assert_eq!(text((201, Some("made"))), answer(201, "made"));
    }

    #[test]
    fn texts_and_bytes_have_their_content_type() {
        let types = |response: Response| response.content_type().map(str::to_owned);
        for response in [Response::from("a"), "a".to_owned().into(), Arc::<str>::from("a").into()] {
            assert_eq!(types(response).as_deref(), Some("text/plain; charset=utf-8"));
        }
        for response in [Response::from(vec![1]), b"a".into(), (&b"a"[..]).into(), Arc::<[u8]>::from(vec![1]).into()] {
            assert_eq!(types(response).as_deref(), Some("application/octet-stream"));
        }
        assert_eq!(types(Body::from("a").into()), None);
    }

    #[test]
    fn an_error_without_a_status_is_a_500_whose_text_is_for_the_log() {
        let response = Response::from(Err::<&str, _>("the disk is full".to_owned()));
        assert_eq!(response.failure.as_ref().unwrap().reason, "the disk is full");
        assert_eq!(text(response), answer(500, "500 Internal Server Error\n"));
        assert_eq!(text(Err::<&str, _>(())).0, 500);
        assert_eq!(text(Err::<&str, _>(Response::redirect("/login"))).0, 303);
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
    fn a_redirect_cannot_break_out_of_its_header() {
        let response = Response::redirect("/ü?a=b c\r\nX-Evil: 1#%20");
        assert_eq!(response.header("location"), Some("/%C3%BC?a=b%20c%0D%0AX-Evil:%201#%20"));
        assert_eq!((response.status(), response.length()), (303, Some(0)));
    }
}
