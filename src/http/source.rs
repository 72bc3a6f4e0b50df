//! The source of a body that is read while the response is written: a reader, or a file.

use std::fs::File;
use std::io::{self, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::text::{drop_caught, panic_message};

/// A body that is read while the response is written, and its length in bytes if that is known.
pub(super) struct BodySource {
    /// `None` once it was dropped.
    reader: Option<Box<dyn Read + Send>>,
    pub(super) length: Option<u64>,
    /// Bytes read by [`Read`].
    given: u64,
}

/// A reader's failure.
#[derive(Debug)]
pub(super) enum ReadFailure {
    Error(io::Error),
    /// The message of the panic.
    Panic(String),
}

impl BodySource {
    pub(super) fn new(reader: impl Read + Send + 'static, length: Option<u64>) -> BodySource {
        BodySource { reader: Some(Box::new(reader)), length, given: 0 }
    }

    /// Reads as [`Read::read`] does; a panic of the reader is a failure.
    pub(super) fn read_piece(&mut self, into: &mut [u8]) -> Result<usize, ReadFailure> {
        let Some(reader) = &mut self.reader else { return Ok(0) };
        loop {
            return match catch_unwind(AssertUnwindSafe(|| reader.read(into))) {
                // A reader that claims more than there was room for is as broken as one that panics.
                Ok(Ok(n)) if n > into.len() => {
                    Err(ReadFailure::Panic("it read more than there was room for".to_owned()))
                }
                Ok(Ok(n)) => Ok(n),
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => continue,
                Ok(Err(error)) => Err(ReadFailure::Error(error)),
                Err(payload) => Err(ReadFailure::Panic(panic_message(payload))),
            };
        }
    }

    /// Drops the reader. Its panic is an error, with the message.
    pub(super) fn close(&mut self) -> Result<(), String> {
        drop_caught(self.reader.take())
    }
}

/// Reads up to the length, if there is one; an end before it is an error.
impl Read for BodySource {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let left = self.length.map_or(u64::MAX, |length| length.saturating_sub(self.given));
        let most = into.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        if most == 0 {
            return Ok(0);
        }
        match self.read_piece(&mut into[..most]) {
            Ok(0) if self.length.is_some() => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                self.given += n as u64;
                Ok(n)
            }
            Err(ReadFailure::Error(error)) => Err(error),
            Err(ReadFailure::Panic(message)) => Err(io::Error::other(format!("the reader panicked: {message}"))),
        }
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

/// A file from its present position on.
pub(super) struct FilePart {
    pub(super) file: File,
    /// In bytes.
    pub(super) length: u64,
}

impl FilePart {
    pub(super) fn into_source(self) -> BodySource {
        BodySource::new(self.file, Some(self.length))
    }
}
