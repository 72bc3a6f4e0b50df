//! The body of a response: bytes in memory, or a reader or function that is run while the response is written.

use std::borrow::Cow;
use std::fmt;
#[cfg(feature = "files")]
use std::io::Seek as _;
use std::io::{self, Read};
use std::sync::Arc;

use super::source::{BodySource, FilePart};
use super::stream::{StreamSource, StreamWriter};

/// The body of a response: bytes in memory, some of which are shared, or a reader.
///
/// It is made from text or bytes (owned, static or shared) by `From`, without a copy, or by [`reader`](Body::reader).
///
/// ```
/// use std::sync::Arc;
/// use allout::{Body, Response};
///
/// let logo: Arc<[u8]> = Arc::from(&b"..."[..]);
/// let response = Response::new(Arc::clone(&logo)).with_header("Content-Type", "image/png");
/// assert_eq!(response.into_bytes()?, *logo);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Default)]
pub struct Body(pub(super) Content);

/// The source of a body.
pub(super) enum Content {
    Static(&'static [u8]),
    Bytes(Vec<u8>),
    Shared(Arc<[u8]>),
    SharedText(Arc<str>),
    File(FilePart),
    Reader(BodySource),
    Stream(StreamSource),
    /// The body of the request that is answered.
    OfRequest(RequestBody),
}

/// The body of the request that is answered: the part that was read, and the length of all, if it is known.
pub(super) struct RequestBody {
    pub(super) first: Vec<u8>,
    pub(super) length: Option<u64>,
}

impl Default for Content {
    fn default() -> Content {
        Content::Static(b"")
    }
}

/// Most bytes of a body that its `Debug` shows.
const SHOWN: usize = 200;

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.as_bytes(), self.length()) {
            (Some(bytes), _) if bytes.len() <= SHOWN => fmt::Debug::fmt(&String::from_utf8_lossy(bytes), f),
            (_, Some(length)) => write!(f, "{length} bytes"),
            (_, None) if matches!(self.0, Content::Stream(_)) => f.write_str("a stream"),
            (_, None) if matches!(self.0, Content::OfRequest(_)) => f.write_str("the request's"),
            (_, None) => f.write_str("a reader"),
        }
    }
}

impl Body {
    /// A body without bytes.
    pub fn empty() -> Body {
        Body::default()
    }

    /// A body that is read from a reader while it is sent; see [`Response::reader`](crate::Response::reader).
    ///
    /// ```
    /// let body = allout::Body::reader(std::io::Cursor::new("hello"), Some(5));
    /// assert_eq!(body.length(), Some(5));
    /// ```
    pub fn reader(reader: impl Read + Send + 'static, length: Option<u64>) -> Body {
        Body(Content::Reader(BodySource::new(reader, length)))
    }

    /// A body that a function writes while it is sent; see [`Response::stream`](crate::Response::stream).
    ///
    /// ```
    /// use std::io::Write;
    /// let body = allout::Body::stream(|writer| writer.write_all(b"hello"));
    /// assert!(body.is_stream());
    /// ```
    pub fn stream(write: impl FnOnce(&mut StreamWriter<'_>) -> io::Result<()> + Send + 'static) -> Body {
        Body(Content::Stream(StreamSource::new(write)))
    }

    /// Its length in bytes, if it is known before the body is read.
    pub fn length(&self) -> Option<u64> {
        match &self.0 {
            Content::File(part) => Some(part.length),
            Content::Reader(source) => source.length,
            Content::OfRequest(body) => body.length,
            _ => self.as_bytes().map(|bytes| bytes.len() as u64),
        }
    }

    /// Its bytes, if they are in memory.
    pub fn as_bytes(&self) -> Option<&[u8]> {
        match &self.0 {
            Content::Static(bytes) => Some(bytes),
            Content::Bytes(bytes) => Some(bytes),
            Content::Shared(bytes) => Some(bytes),
            Content::SharedText(text) => Some(text.as_bytes()),
            Content::File(_) | Content::Reader(_) | Content::Stream(_) | Content::OfRequest(_) => None,
        }
    }

    /// All of its bytes; a reader is read to its end, and a stream written to its end.
    ///
    /// # Errors
    ///
    /// The reader or stream fails, panics, or gives less than its length.
    pub fn into_bytes(self) -> io::Result<Vec<u8>> {
        match self.0 {
            Content::Bytes(bytes) => Ok(bytes),
            Content::File(part) => Body(Content::Reader(part.into_source())).into_bytes(),
            Content::Reader(mut source) => {
                let mut bytes = Vec::new();
                source.read_to_end(&mut bytes)?;
                source.close().map_err(io::Error::other)?;
                Ok(bytes)
            }
            Content::Stream(source) => source.into_bytes(),
            Content::OfRequest(_) => Err(io::ErrorKind::Unsupported.into()),
            _ => Ok(self.as_bytes().unwrap_or_default().to_vec()),
        }
    }

    /// Whether a part of it can be sent, because it is a file or in memory.
    #[cfg(feature = "files")]
    pub(super) fn has_parts(&self) -> bool {
        matches!(self.0, Content::File(_)) || self.as_bytes().is_some()
    }

    /// A part of a body that [has parts](Body::has_parts), within its length.
    /// Errors: the file cannot be positioned.
    #[cfg(feature = "files")]
    pub(super) fn slice(self, first: u64, length: u64) -> io::Result<Body> {
        if let Content::File(mut part) = self.0 {
            part.file.seek_relative(i64::try_from(first).map_err(io::Error::other)?)?;
            return Ok(Body(Content::File(FilePart { file: part.file, length })));
        }
        let range = usize::try_from(first).ok().zip(usize::try_from(first + length).ok());
        let bytes = self.as_bytes().zip(range).and_then(|(bytes, (first, end))| bytes.get(first..end));
        bytes.map(|bytes| Body::from(bytes.to_vec())).ok_or_else(|| io::ErrorKind::Unsupported.into())
    }

    /// The body of the request that is answered; see [`Request::take_body`](crate::Request::take_body).
    pub(crate) fn of_request(first: Vec<u8>, length: Option<u64>) -> Body {
        Body(Content::OfRequest(RequestBody { first, length }))
    }

    pub(crate) fn is_of_request(&self) -> bool {
        matches!(self.0, Content::OfRequest(_))
    }

    /// The bytes of a request's body that were read already; empty for any other body.
    pub(crate) fn into_first(self) -> Vec<u8> {
        if let Content::OfRequest(body) = self.0 { body.first } else { Vec::new() }
    }

    /// True if a function writes it, which may never end.
    pub fn is_stream(&self) -> bool {
        matches!(self.0, Content::Stream(_))
    }

    /// A reader of its bytes, for a body that is made from this one, by compression, for example. A
    /// [stream](Body::is_stream) is written to its end, into memory, when the first byte is read.
    pub fn into_reader(self) -> impl Read + Send + 'static {
        BodyReader { body: self, at: 0 }
    }
}

/// Reads a body.
struct BodyReader {
    body: Body,
    /// Bytes read of a body in memory.
    at: usize,
}

impl Read for BodyReader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.body.0 = match std::mem::take(&mut self.body.0) {
            Content::File(part) => Content::Reader(part.into_source()),
            other => other,
        };
        if let Content::Reader(source) = &mut self.body.0 {
            return source.read(into);
        }
        if self.body.is_stream() || self.body.is_of_request() {
            self.body = std::mem::take(&mut self.body).into_bytes()?.into();
        }
        let mut rest = self.body.as_bytes().and_then(|bytes| bytes.get(self.at..)).unwrap_or_default();
        let n = rest.read(into)?;
        self.at += n;
        Ok(n)
    }
}

macro_rules! from {
    ($($type:ty => |$value:ident| $content:expr;)*) => {
        $(impl From<$type> for Body {
            fn from($value: $type) -> Body {
                Body($content)
            }
        })*
    };
}

from! {
    &'static str => |text| Content::Static(text.as_bytes());
    &'static [u8] => |bytes| Content::Static(bytes);
    String => |text| Content::Bytes(text.into_bytes());
    Vec<u8> => |bytes| Content::Bytes(bytes);
    Box<str> => |text| Content::Bytes(text.into_string().into_bytes());
    Box<[u8]> => |bytes| Content::Bytes(bytes.into_vec());
    Arc<str> => |text| Content::SharedText(text);
    Arc<[u8]> => |bytes| Content::Shared(bytes);
}

impl<const N: usize> From<&'static [u8; N]> for Body {
    fn from(bytes: &'static [u8; N]) -> Body {
        Body(Content::Static(bytes))
    }
}

impl<const N: usize> From<[u8; N]> for Body {
    fn from(bytes: [u8; N]) -> Body {
        Body(Content::Bytes(bytes.to_vec()))
    }
}

impl From<Cow<'static, str>> for Body {
    fn from(text: Cow<'static, str>) -> Body {
        match text {
            Cow::Borrowed(text) => text.into(),
            Cow::Owned(text) => text.into(),
        }
    }
}

impl From<Cow<'static, [u8]>> for Body {
    fn from(bytes: Cow<'static, [u8]>) -> Body {
        match bytes {
            Cow::Borrowed(bytes) => bytes.into(),
            Cow::Owned(bytes) => bytes.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_are_static_or_shared_are_not_copied() {
        let (text, bytes): (Arc<str>, Arc<[u8]>) = (Arc::from("text"), Arc::from(&b"bytes"[..]));
        let is_same = |body: &Body, bytes: &[u8]| std::ptr::eq(body.as_bytes().unwrap(), bytes);
        assert!(is_same(&Arc::clone(&text).into(), text.as_bytes()));
        assert!(is_same(&Arc::clone(&bytes).into(), &bytes));
        assert!(is_same(&b"abc".into(), b"abc"));
        let owned = vec![1, 2, 3];
        let at = owned.as_ptr();
        let bytes = Body::from(owned).into_bytes().unwrap();
        assert_eq!(bytes.as_ptr(), at);
    }

    #[test]
    fn a_body_can_be_read_whatever_it_is_made_of() {
        let bodies: [Body; 8] = [
            "abc".into(),
            "abc".to_owned().into(),
            b"abc".into(),
            [b'a', b'b', b'c'].into(),
            Cow::Borrowed("abc").into(),
            Arc::<str>::from("abc").into(),
            Body::reader(&b"abc"[..], None),
            Body::reader(&b"abcdef"[..], Some(3)),
        ];
        for body in bodies {
            let mut text = String::new();
            body.into_reader().read_to_string(&mut text).unwrap();
            assert_eq!(text, "abc");
        }
        assert_eq!(Body::reader(&b"abcdef"[..], Some(3)).into_bytes().unwrap(), b"abc");
    }

    #[test]
    fn a_reader_that_fails_is_an_error() {
        struct Fails;
        impl Read for Fails {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                panic!("a bug")
            }
        }
        let short = Body::reader(&b"abc"[..], Some(4)).into_bytes().unwrap_err();
        assert_eq!(short.kind(), io::ErrorKind::UnexpectedEof);
        assert!(Body::reader(Fails, None).into_bytes().unwrap_err().to_string().contains("a bug"));
    }

    #[test]
    fn debug_shows_a_short_body_and_the_length_of_a_long_one() {
        let shown = [Body::from("abc"), Body::from("x".repeat(201)), Body::reader(io::empty(), None)];
        assert_eq!(shown.map(|body| format!("{body:?}")), ["\"abc\"", "201 bytes", "a reader"]);
    }

    #[test]
    fn a_reader_that_panics_when_dropped_can_be_dropped() {
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
        drop(Body::reader(Bomb, None));
    }
}
