//! Bodies that a function writes while the response is sent.

use std::fmt;
use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};

use crossbeam_channel::TryRecvError;

use crate::crew::stop::{GraceExpired, Stop};
use crate::text::{drop_caught, panic_message};

/// Most bytes of a stream that gather before they are sent; with the frame of a chunk they fit into the buffer that a
/// thread keeps (16 KiB).
const MAX_BUFFERED: usize = 16 * 1024 - 64;

/// The function that writes a body.
type Run = Box<dyn FnOnce(&mut StreamWriter<'_>) -> io::Result<()> + Send>;

/// Sends the data behind the reserved bytes of a buffer, and removes it.
pub(super) type Emit<'a> = dyn FnMut(&mut Vec<u8>) -> io::Result<()> + 'a;

/// A body that is written while the response is sent.
pub(super) struct StreamSource {
    /// `None` once it runs, or was dropped.
    run: Option<Run>,
    link: StreamLink,
}

/// The link of a stream to its request. Both parts are missing without a connection.
#[derive(Default)]
pub(crate) struct StreamLink {
    pub(crate) stop: Option<Stop>,
    /// Checks whether the client has left.
    pub(crate) is_client_gone: Option<Box<dyn Fn() -> bool + Send>>,
}

/// Writes the body of a response while it is sent; see [`Response::stream`](crate::Response::stream).
///
/// Bytes gather in a buffer of 16 KiB, which is sent when it is full, and by `flush`. Both fail when the client
/// has left, when it reads nothing for too long, and when the service stops and its grace period is over.
pub struct StreamWriter<'a> {
    emit: &'a mut Emit<'a>,
    buffer: &'a mut Vec<u8>,
    /// Bytes at the beginning of the buffer that are not data.
    reserved: usize,
    stop: Stop,
    is_client_gone: Option<Box<dyn Fn() -> bool + Send>>,
}

impl fmt::Debug for StreamWriter<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamWriter").field("buffered", &self.buffered()).finish_non_exhaustive()
    }
}

impl StreamSource {
    pub(super) fn new(run: impl FnOnce(&mut StreamWriter<'_>) -> io::Result<()> + Send + 'static) -> Self {
        StreamSource { run: Some(Box::new(run)), link: StreamLink::default() }
    }

    pub(super) fn set_link(&mut self, link: StreamLink) {
        self.link = link;
    }

    /// Runs the function to its end, and then sends the bytes that it has left in the buffer. `buffer` begins with the
    /// reserved bytes.
    /// Errors: the error of the function, or of sending. The outer one is the message of a panic.
    pub(super) fn write_to(mut self, emit: &mut Emit<'_>, buffer: &mut Vec<u8>) -> Result<io::Result<()>, String> {
        let Some(run) = self.run.take() else { return Ok(Ok(())) };
        let StreamLink { stop, is_client_gone } = std::mem::take(&mut self.link);
        let stop = stop.unwrap_or_else(Stop::new);
        let mut writer = StreamWriter { emit, reserved: buffer.len(), buffer, stop, is_client_gone };
        catch_unwind(AssertUnwindSafe(|| run(&mut writer).and_then(|()| writer.send()))).map_err(panic_message)
    }

    /// Runs the function, and keeps its output.
    pub(super) fn into_bytes(self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut keep = |buffer: &mut Vec<u8>| {
            bytes.append(buffer);
            Ok(())
        };
        let result = self.write_to(&mut keep, &mut Vec::new());
        result.unwrap_or_else(|message| Err(io::Error::other(format!("the stream panicked: {message}"))))?;
        Ok(bytes)
    }
}

/// A response may be dropped on any thread: what a function holds must not end that thread by a panic in its `drop`.
impl Drop for StreamSource {
    fn drop(&mut self) {
        if let Err(message) = drop_caught(self.run.take()) {
            log::error!("the stream of a response that was not sent panicked when it was dropped: {message}");
        }
    }
}

impl StreamWriter<'_> {
    fn buffered(&self) -> usize {
        self.buffer.len() - self.reserved
    }

    fn send(&mut self) -> io::Result<()> {
        if self.buffered() == 0 { Ok(()) } else { (self.emit)(self.buffer) }
    }

    /// The stages of a stop of the service. A stream that could go on without end should end when the service is
    /// [draining](Stop::is_draining); one that waits on a channel can [wait for that as well](Stop::draining).
    ///
    /// A stream that does not is cut at the end of the grace period.
    pub fn stop(&self) -> &Stop {
        &self.stop
    }

    /// True if the service is draining, so that the stream should end.
    pub fn is_draining(&self) -> bool {
        self.stop.is_draining()
    }

    /// True if the client has left. Writing fails only after the client's system has refused some bytes. A client that
    /// has shut only its sending side counts as gone as well.
    ///
    /// Asks the kernel at each call: about a microsecond.
    pub fn is_client_gone(&self) -> bool {
        self.is_client_gone.as_ref().is_some_and(|is_gone| is_gone())
    }

    fn has_grace_expired(&self) -> bool {
        matches!(self.stop.grace_expired().try_recv(), Err(TryRecvError::Disconnected))
    }
}

impl Write for StreamWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.buffered() >= MAX_BUFFERED {
            self.flush()?;
        }
        let n = bytes.len().min(MAX_BUFFERED - self.buffered());
        self.buffer.extend_from_slice(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.has_grace_expired() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, GraceExpired));
        }
        self.send()
    }
}
