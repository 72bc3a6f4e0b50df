//! A response as the bytes that arrived, and how they ended: for tests of what a client can conclude from them.

#![allow(dead_code, unreachable_pub, reason = "shared by several test programs, each of which uses its own part")]
#![allow(clippy::expect_used, clippy::panic, reason = "a test says what it expects by panicking")]

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// The end of the bytes that arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The other side ended its stream.
    Eof,
    /// A reset.
    Reset,
    /// Neither within the limit.
    Late,
}

/// The bytes that arrived on a connection.
#[derive(Debug)]
pub struct Wire {
    /// All bytes.
    pub bytes: Vec<u8>,
    /// How they ended.
    pub end: End,
    /// How long that took.
    pub took: Duration,
}

impl Wire {
    /// The head of the first response, up to its empty line.
    pub fn head(&self) -> String {
        let end = self.bytes.windows(4).position(|w| w == b"\r\n\r\n").unwrap_or(self.bytes.len());
        String::from_utf8_lossy(&self.bytes[..end]).into_owned()
    }

    /// What follows the first head.
    pub fn body(&self) -> &[u8] {
        let start = self.bytes.windows(4).position(|w| w == b"\r\n\r\n").map_or(self.bytes.len(), |at| at + 4);
        &self.bytes[start..]
    }

    /// The status of the first response; 0 if there is none.
    pub fn status(&self) -> u16 {
        self.head().split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or(0)
    }

    /// A header of the first response.
    pub fn header(&self, name: &str) -> Option<String> {
        self.head().lines().skip(1).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
        })
    }

    /// Whether it ends with the chunk that says that the body was whole.
    pub fn has_last_chunk(&self) -> bool {
        self.body().ends_with(b"\r\n0\r\n\r\n") || self.body() == b"0\r\n\r\n"
    }

    /// Whether a client takes the body for whole.
    pub fn looks_whole(&self) -> bool {
        if self.header("transfer-encoding").is_some() {
            return self.has_last_chunk();
        }
        match self.header("content-length").and_then(|length| length.parse::<usize>().ok()) {
            Some(length) => self.body().len() >= length,
            // Ended by the end of the connection alone.
            None => !self.bytes.is_empty() && self.end == End::Eof,
        }
    }

    /// For messages: how many bytes, their end, and the head.
    pub fn summary(&self) -> String {
        let last = &self.bytes[self.bytes.len().saturating_sub(20)..];
        format!(
            "{} bytes, {:?} after {:?}, the last {:?}, the first {:?}",
            self.bytes.len(),
            self.end,
            self.took,
            String::from_utf8_lossy(last),
            self.head().lines().next().unwrap_or_default(),
        )
    }
}

/// Connects and sends this.
#[track_caller]
pub fn send(addr: SocketAddr, request: impl AsRef<[u8]>) -> TcpStream {
    let mut stream = TcpStream::connect(addr).unwrap_or_else(|e| panic!("connecting to {addr}: {e}"));
    stream.set_nodelay(true).expect("a socket takes an option");
    stream.write_all(request.as_ref()).unwrap_or_else(|e| panic!("sending to {addr}: {e}"));
    stream
}

/// Reads until `enough` holds, or the stream ends, or the limit is over.
pub fn read_until(stream: &mut TcpStream, limit: Duration, mut enough: impl FnMut(&[u8]) -> bool) -> Wire {
    let began = Instant::now();
    let (mut bytes, mut chunk) = (Vec::new(), [0_u8; 16 * 1024]);
    let end = loop {
        if enough(&bytes) {
            break End::Late;
        }
        let left = limit.saturating_sub(began.elapsed());
        if left.is_zero() {
            break End::Late;
        }
        stream.set_read_timeout(Some(left.max(Duration::from_millis(1)))).expect("a socket takes a timeout");
        match stream.read(&mut chunk) {
            Ok(0) => break End::Eof,
            Ok(n) => bytes.extend_from_slice(&chunk[..n]),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) => {}
            Err(_) => break End::Reset,
        }
    };
    Wire { bytes, end, took: began.elapsed() }
}

/// Reads until the stream ends, or the limit is over.
pub fn read_to_end(stream: &mut TcpStream, limit: Duration) -> Wire {
    read_until(stream, limit, |_| false)
}

/// Sends this on a connection of its own, and reads until it ends.
#[track_caller]
pub fn ask(addr: SocketAddr, request: impl AsRef<[u8]>, limit: Duration) -> Wire {
    read_to_end(&mut send(addr, request), limit)
}
