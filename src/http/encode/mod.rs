//! From a [`Response`] to bytes: its head, the framing of its body, and the writing of both.
//!
//! A response that fails never ends like a whole one: after a failure nothing more is written, above all not the last
//! chunk, and the caller cuts the connection.

#[cfg(test)]
mod tests;

use std::io::{self, Read, Write};

use crate::http::automatic::HeaderLines;
use crate::http::body::{Body, Content};
use crate::http::date::append_date;
use crate::http::head::Version;
use crate::http::response::Response;
use crate::http::source::{BodySource, ReadFailure};
use crate::http::status::{is_bodyless, reason_phrase};
use crate::http::stream::StreamSource;

/// The facts about connection and request that a response depends on.
#[derive(Clone, Copy)]
pub(crate) struct ResponseContext<'a> {
    pub(crate) version: Version,
    /// The request was a `HEAD`: the headers are those of a `GET`, without the body.
    pub(crate) head_only: bool,
    /// The connection closes after the response.
    pub(crate) close: bool,
    /// The connection stays, and the HTTP/1.0 client asked for it.
    pub(crate) keep_alive: bool,
    pub(crate) request_id: &'a str,
    /// The headers that every response gets.
    pub(crate) automatic: HeaderLines,
}

/// The framing of a response's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BodyFraming {
    /// Nothing follows the head.
    None,
    /// `Content-Length`, in bytes.
    Length(u64),
    /// `Transfer-Encoding: chunked`.
    Chunked,
    /// The end of the connection ends the body: HTTP/1.0, length unknown. The head says `Connection: close`.
    UntilClose,
}

/// The result of writing a response.
#[derive(Debug)]
pub(crate) struct Sent {
    pub(crate) status: u16,
    /// Bytes written, the head included.
    pub(crate) bytes: u64,
    /// The connection must not be used again: the body is framed by its end, or the response failed.
    pub(crate) close: bool,
    /// The failure, if the response is not whole.
    pub(crate) error: Option<SendError>,
}

/// A failure after which a response is not whole. The connection must be cut so that the client does not take it for a
/// regular end: after [`BodyFraming::UntilClose`] by a reset.
#[derive(Debug)]
pub(crate) enum SendError {
    /// The client left, or stopped reading.
    Client(io::Error),
    /// The body's reader failed or gave less than its length.
    Reader(String),
    /// The body's reader panicked, while it was read or dropped: the message.
    Panic(String),
    /// The handler was late: the engine has answered 503 in its place.
    Late,
}

impl From<ReadFailure> for SendError {
    fn from(failure: ReadFailure) -> SendError {
        match failure {
            ReadFailure::Error(error) => SendError::Reader(error.to_string()),
            ReadFailure::Panic(message) => SendError::Panic(message),
        }
    }
}

/// Most bytes of a body in memory that are copied behind the head, so that one write sends both. Above, a second write
/// is cheaper than the copy.
const MAX_COPIED_BODY: usize = 64 * 1024;
/// Bytes of one read of a body's reader, and of the chunk that it makes, at first; with [`CHUNK_FRAME`] it fits into the
/// buffer that a thread keeps (16 KiB).
const READ_SIZE: usize = 16 * 1024 - CHUNK_FRAME;
/// Bytes of one read once a read has filled the buffer: a file, or another source that never waits.
const BULK_READ_SIZE: usize = 64 * 1024 - CHUNK_FRAME;
/// Space around the data of a chunk: 8 hexadecimal digits at most, and two line breaks.
const CHUNK_FRAME: usize = CHUNK_PREFIX + 2;
/// Space before the data of a chunk.
const CHUNK_PREFIX: usize = 10;

/// Appends the head, and the body if it is in memory, to `out`. Never blocks.
pub(crate) fn encode(response: &Response, context: &ResponseContext<'_>, out: &mut Vec<u8>) -> BodyFraming {
    let framing = append_head(response, context, out);
    match response.body().as_bytes() {
        Some(body) if framing != BodyFraming::None => out.extend_from_slice(body),
        _ => {}
    }
    framing
}

/// The framing that a response has in this context.
fn framing(response: &Response, context: &ResponseContext<'_>) -> BodyFraming {
    match response.length() {
        _ if is_bodyless(response.status()) => BodyFraming::None,
        // RFC 9110, section 15.3.6: a 205 has no content, and says so.
        _ if response.status() == 205 => BodyFraming::Length(0),
        Some(length) => BodyFraming::Length(length),
        None if context.version == Version::Http11 => BodyFraming::Chunked,
        None => BodyFraming::UntilClose,
    }
}

fn append_head(response: &Response, context: &ResponseContext<'_>, out: &mut Vec<u8>) -> BodyFraming {
    let framing = framing(response, context);
    out.reserve(512 + response.body().as_bytes().map_or(0, |body| body.len().min(MAX_COPIED_BODY)));
    out.extend_from_slice(match context.version {
        Version::Http10 => b"HTTP/1.0 ",
        Version::Http11 => b"HTTP/1.1 ",
    });
    append_number(response.status().into(), out);
    out.push(b' ');
    out.extend_from_slice(reason_phrase(response.status()).as_bytes());
    out.extend_from_slice(b"\r\nDate: ");
    append_date(out);
    out.extend_from_slice(context.automatic.lines.as_bytes());
    if context.automatic.request_id {
        out.extend_from_slice(b"\r\nX-Request-Id: ");
        out.extend_from_slice(context.request_id.as_bytes());
    }
    for (name, value) in response.headers() {
        // RFC 9110, section 15.4.5: no representation metadata in a 304 beyond what a cache needs; a 204 has none.
        if framing == BodyFraming::None && name == "Content-Type" {
            continue;
        }
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
    }
    if context.close || (framing == BodyFraming::UntilClose && !context.head_only) {
        out.extend_from_slice(b"\r\nConnection: close");
    } else if context.keep_alive {
        out.extend_from_slice(b"\r\nConnection: keep-alive");
    }
    match framing {
        BodyFraming::Length(length) => {
            out.extend_from_slice(b"\r\nContent-Length: ");
            append_number(length, out);
        }
        BodyFraming::Chunked => out.extend_from_slice(b"\r\nTransfer-Encoding: chunked"),
        BodyFraming::None | BodyFraming::UntilClose => {}
    }
    out.extend_from_slice(b"\r\n\r\n");
    match framing {
        BodyFraming::Length(0) => BodyFraming::None,
        _ if context.head_only => BodyFraming::None,
        framing => framing,
    }
}

/// Appends a number in decimal digits.
fn append_number(mut number: u64, out: &mut Vec<u8>) {
    let mut digits = [0; 20]; // u64::MAX has 20
    let mut first = digits.len();
    loop {
        first -= 1;
        digits[first] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[first..]);
}

/// Writes a whole response to `out`, which may block. A body in memory leaves with the head in one write; of a reader,
/// the head leaves at once, and then the bytes of each read. `buffer` is memory to work in; its content is overwritten.
pub(crate) fn send(
    response: Response,
    context: &ResponseContext<'_>,
    buffer: &mut Vec<u8>,
    out: &mut dyn Write,
) -> Sent {
    send_through(response, context, buffer, out, &mut io::empty())
}

/// As [`send`]; `rest` is the unread part of the request's body, for a response that sends it back.
pub(crate) fn send_through(
    response: Response,
    context: &ResponseContext<'_>,
    buffer: &mut Vec<u8>,
    out: &mut dyn Write,
    rest: &mut dyn Read,
) -> Sent {
    let status = response.status();
    buffer.clear();
    let copied = response.body().as_bytes().is_some_and(|body| body.len() <= MAX_COPIED_BODY);
    let framing = if copied { encode(&response, context, buffer) } else { append_head(&response, context, buffer) };
    let mut sending = Sending { framing, buffer, out: CountingWriter { inner: out, bytes: 0 } };
    let result = match response.into_body() {
        Body(Content::File(part)) => sending.reader(part.into_source()),
        Body(Content::Reader(source)) => sending.reader(source),
        Body(Content::OfRequest(body)) => sending.request_body(&body.first, rest),
        Body(Content::Stream(source)) => sending.stream(source),
        body if !copied => sending.large(body.as_bytes().unwrap_or_default()),
        _ => sending.out.write_now(sending.buffer),
    };
    let error = result.err();
    let close = framing == BodyFraming::UntilClose || error.is_some();
    Sent { status, bytes: sending.out.bytes, close, error }
}

/// A response that is being sent. Its head is in `buffer`, with the whole body if that is small.
struct Sending<'a> {
    framing: BodyFraming,
    buffer: &'a mut Vec<u8>,
    out: CountingWriter<'a>,
}

impl Sending<'_> {
    fn large(&mut self, body: &[u8]) -> Result<(), SendError> {
        self.out.write_now(self.buffer)?;
        if self.framing == BodyFraming::None { Ok(()) } else { self.out.write_now(body) }
    }

    fn reader(&mut self, mut source: BodySource) -> Result<(), SendError> {
        let result = self.pieces(&mut |into| source.read_piece(into).map_err(SendError::from));
        // The reader is dropped before the last chunk is sent: its panic is a failure as well, and counted whatever else
        // failed.
        source.close().map_err(SendError::Panic)?;
        result?;
        self.end_body()
    }

    /// Sends the body of the request back as it arrives. If it breaks off, or does not come in time, that is the client's
    /// doing.
    fn request_body(&mut self, first: &[u8], rest: &mut dyn Read) -> Result<(), SendError> {
        let mut body = first.chain(rest);
        self.pieces(&mut |into| {
            loop {
                match body.read(into) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    result => return result.map_err(SendError::Client),
                }
            }
        })?;
        self.end_body()
    }

    /// Sends the last chunk of a chunked body.
    fn end_body(&mut self) -> Result<(), SendError> {
        if self.framing == BodyFraming::Chunked { self.out.write_now(b"0\r\n\r\n") } else { Ok(()) }
    }

    /// Runs the source; bytes that it flushes are sent at once.
    fn stream(&mut self, source: StreamSource) -> Result<(), SendError> {
        let Sending { framing, buffer, out } = self;
        out.write_now(buffer)?;
        if *framing == BodyFraming::None {
            return Ok(());
        }
        let mut client_error = None;
        let mut emit = |buffer: &mut Vec<u8>| {
            let n = buffer.len() - CHUNK_PREFIX;
            buffer.extend_from_slice(b"\r\n");
            let sent = out.write_piece(*framing, buffer, n);
            buffer.truncate(CHUNK_PREFIX);
            sent.map_err(|error| match error {
                SendError::Client(error) => {
                    let copy = io::Error::new(error.kind(), error.to_string());
                    client_error.get_or_insert(error);
                    copy
                }
                SendError::Reader(reason) | SendError::Panic(reason) => io::Error::other(reason),
                SendError::Late => io::ErrorKind::TimedOut.into(),
            })
        };
        buffer.clear();
        buffer.resize(CHUNK_PREFIX, 0);
        let result = source.write_to(&mut emit, buffer);
        // An error of the function after the client has left is not its failure.
        match (client_error, result) {
            (_, Err(message)) => Err(SendError::Panic(message)),
            (Some(error), _) => Err(SendError::Client(error)),
            (None, Ok(Err(error))) => Err(SendError::Reader(error.to_string())),
            (None, Ok(Ok(()))) => self.end_body(),
        }
    }

    /// Sends the head, and then what `read` gives up to its end, each read at once.
    fn pieces(&mut self, read: &mut dyn FnMut(&mut [u8]) -> Result<usize, SendError>) -> Result<(), SendError> {
        let Sending { framing, buffer, out } = self;
        out.write_now(buffer)?;
        if *framing == BodyFraming::None {
            return Ok(());
        }
        let mut given: u64 = 0;
        let mut room = READ_SIZE;
        loop {
            let left = match framing {
                BodyFraming::Length(length) => *length - given,
                _ => u64::MAX,
            };
            if left == 0 {
                return Ok(());
            }
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(room);
            buffer.reserve_exact((CHUNK_FRAME + room).saturating_sub(buffer.len()));
            buffer.resize(CHUNK_FRAME + room, 0);
            let n = read(&mut buffer[CHUNK_PREFIX..CHUNK_PREFIX + most])?;
            if n == 0 {
                return match framing {
                    BodyFraming::Length(length) => {
                        Err(SendError::Reader(format!("it gave {given} bytes of a length of {length}")))
                    }
                    _ => Ok(()),
                };
            }
            given += n as u64;
            out.write_piece(*framing, buffer, n)?;
            if n == READ_SIZE {
                room = BULK_READ_SIZE;
            }
        }
    }
}

/// Puts size and line breaks around the `n` bytes of data in `buffer`, which begin at [`CHUNK_PREFIX`].
fn frame_chunk(buffer: &mut [u8], n: usize) -> &[u8] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let end = CHUNK_PREFIX + n;
    buffer[end..end + 2].copy_from_slice(b"\r\n");
    buffer[CHUNK_PREFIX - 2..CHUNK_PREFIX].copy_from_slice(b"\r\n");
    let (mut first, mut rest) = (CHUNK_PREFIX - 2, n);
    while rest > 0 {
        first -= 1;
        buffer[first] = DIGITS[rest % 16];
        rest /= 16;
    }
    &buffer[first..end + 2]
}

/// A writer that counts bytes, and writes all of them at once.
struct CountingWriter<'a> {
    inner: &'a mut dyn Write,
    bytes: u64,
}

impl CountingWriter<'_> {
    /// Writes the `n` bytes of data in `buffer`, which begin at [`CHUNK_PREFIX`].
    fn write_piece(&mut self, framing: BodyFraming, buffer: &mut [u8], n: usize) -> Result<(), SendError> {
        self.write_now(match framing {
            BodyFraming::Chunked => frame_chunk(buffer, n),
            _ => &buffer[CHUNK_PREFIX..CHUNK_PREFIX + n],
        })
    }

    /// Writes all bytes and flushes; the bytes written before a failure are counted.
    fn write_now(&mut self, mut bytes: &[u8]) -> Result<(), SendError> {
        while !bytes.is_empty() {
            match self.inner.write(bytes) {
                Ok(0) => return Err(SendError::Client(io::ErrorKind::WriteZero.into())),
                Ok(n) => {
                    self.bytes += n as u64;
                    bytes = &bytes[n..];
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(SendError::Client(error)),
            }
        }
        self.inner.flush().map_err(SendError::Client)
    }
}
