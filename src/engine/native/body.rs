//! The body of a request: tells which of the received bytes belong to it. No socket.

use std::io;

use super::chunked::{ChunkDecoder, Next};
use crate::engine::BodyState;
use crate::http::head::{Framing, RequestHead};

/// The progress of reading a body.
#[derive(Debug, Default)]
pub(super) struct BodyReader {
    framing: BodyFraming,
    /// The client waits for a `100 Continue`.
    pub(super) expects_continue: bool,
    /// The error after which nothing more can be read.
    pub(super) failed: Option<io::ErrorKind>,
}

#[derive(Debug, Default)]
enum BodyFraming {
    #[default]
    Complete,
    /// Bytes that are left.
    Length(u64),
    Chunked(ChunkDecoder),
}

/// The next part of a body.
pub(super) enum Step {
    Complete,
    /// So many bytes were copied.
    Copied(usize),
    /// Bytes of the socket: data, at most so many.
    Data(usize),
    /// Bytes of the socket: framing, data, or what follows the body.
    Any,
}

impl BodyReader {
    /// A reader for the body of a request with this head; of a rejected request nothing is read.
    pub(super) fn new(head: Option<&RequestHead>) -> BodyReader {
        let framing = match head.map(|head| head.framing) {
            None | Some(Framing::None) => BodyFraming::Complete,
            Some(Framing::Length(length)) => BodyFraming::Length(length),
            Some(Framing::Chunked) => BodyFraming::Chunked(ChunkDecoder::new()),
        };
        BodyReader { framing, expects_continue: head.is_some_and(|head| head.expect_continue), failed: None }
    }

    pub(super) fn is_complete(&self) -> bool {
        matches!(self.framing, BodyFraming::Complete)
    }

    /// Whether the client has not sent the body because it waits for a `100 Continue`.
    pub(super) fn is_held_back(&self, inbox_is_empty: bool) -> bool {
        self.expects_continue && inbox_is_empty && !self.is_complete()
    }

    /// The state of the body, of which `unread` has been received.
    pub(super) fn state(&self, unread: &[u8]) -> BodyState {
        let (remaining, buffered) = match &self.framing {
            BodyFraming::Complete => (Some(0), true),
            BodyFraming::Length(left) => (Some(*left), *left <= unread.len() as u64),
            BodyFraming::Chunked(decoder) => (None, ends_within(decoder.clone(), unread)),
        };
        BodyState {
            remaining,
            consumed: self.is_complete(),
            truncated: self.failed.is_some(),
            timed_out: self.failed == Some(io::ErrorKind::TimedOut),
            buffered,
        }
    }

    /// Takes the next step with the received bytes. Returns how many of `unread` were used, and what follows.
    pub(super) fn step(&mut self, unread: &[u8], into: &mut [u8]) -> Result<(usize, Step), io::ErrorKind> {
        let mut used = 0;
        let data = match &mut self.framing {
            BodyFraming::Complete => return Ok((0, Step::Complete)),
            BodyFraming::Length(left) => *left,
            BodyFraming::Chunked(decoder) => {
                let (skipped, next) = decoder.skip_framing(unread).map_err(|_| io::ErrorKind::InvalidData)?;
                used = skipped;
                match next {
                    Next::More => return Ok((used, Step::Any)),
                    Next::End => {
                        self.framing = BodyFraming::Complete;
                        return Ok((used, Step::Complete));
                    }
                    Next::Data(announced) => announced,
                }
            }
        };
        let most = usize::try_from(data).unwrap_or(usize::MAX).min(into.len());
        let count = most.min(unread.len() - used);
        if count == 0 {
            return Ok((used, Step::Data(most)));
        }
        into[..count].copy_from_slice(&unread[used..used + count]);
        self.took(count);
        Ok((used + count, Step::Copied(count)))
    }

    /// Bytes of data were taken.
    pub(super) fn took(&mut self, count: usize) {
        match &mut self.framing {
            BodyFraming::Complete => {}
            BodyFraming::Length(left) => {
                *left = left.saturating_sub(count as u64);
                if *left == 0 {
                    self.framing = BodyFraming::Complete;
                }
            }
            BodyFraming::Chunked(decoder) => decoder.take(count as u64),
        }
    }
}

/// Whether a chunked body ends within these bytes.
fn ends_within(mut decoder: ChunkDecoder, mut bytes: &[u8]) -> bool {
    while let Ok((skipped, next)) = decoder.skip_framing(bytes) {
        bytes = &bytes[skipped..];
        match next {
            Next::End => return true,
            Next::Data(length) if length < bytes.len() as u64 => {
                decoder.take(length);
                bytes = &bytes[usize::try_from(length).unwrap_or(bytes.len())..];
            }
            Next::Data(_) | Next::More => return false,
        }
    }
    true // malformed: found without waiting
}
