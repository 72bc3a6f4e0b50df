//! Just enough HTTP/1.1 to be a client that notices everything.
//!
//! A real client library mends what it can: it retries, it reconnects, it forgives. This one does none of that. It
//! sends the bytes it is given and tells apart the ways in which a response can fail to come, because that is what
//! the tests ask about.

#![allow(dead_code, unreachable_pub, reason = "shared by several programs, each of which uses its own part")]

use rustix::io::Errno;
use rustix::net::RecvFlags;
use std::fmt;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// A read that takes longer, in milliseconds, is begun anew.
const LONG: u64 = 60_000;

/// A whole response.
#[derive(Clone)]
pub struct Response {
    /// As on the wire, `HTTP/1.1`.
    pub version: String,
    /// The three digits.
    pub status: u16,
    /// In the order of arrival, names as they came.
    pub headers: Vec<(String, String)>,
    /// With the framing taken off.
    pub body: Vec<u8>,
    /// How many interim (1xx) responses came before it.
    pub interim: usize,
}

impl Response {
    /// The first header of this name, whatever its case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    /// The body as text, without the line end that text bodies may have.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).trim_end().to_owned()
    }

    /// Whether this is the last response of its connection, by what it says itself.
    pub fn closes(&self) -> bool {
        let says = |token: &str| {
            self.headers
                .iter()
                .filter(|(n, _)| n.eq_ignore_ascii_case("connection"))
                .any(|(_, v)| v.split(',').any(|t| t.trim().eq_ignore_ascii_case(token)))
        };
        says("close") || (self.version == "HTTP/1.0" && !says("keep-alive"))
    }
}

impl fmt::Debug for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {:?} {:?}", self.version, self.status, self.headers, String::from_utf8_lossy(&self.body))
    }
}

/// Why there is no whole response. `received` counts the bytes of it that did come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoResponse {
    /// The other side ended the connection.
    Closed { received: usize },
    /// The other side, or its kernel, reset the connection.
    Reset { received: usize },
    /// The time for it was over.
    Late { received: usize },
    /// Something came that is no HTTP response.
    Malformed(String),
    /// The socket failed in another way.
    Failed(io::ErrorKind),
}

impl fmt::Display for NoResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed { received: 0 } => write!(f, "closed without a response"),
            Self::Closed { .. } => write!(f, "closed within a response"),
            Self::Reset { received: 0 } => write!(f, "reset without a response"),
            Self::Reset { .. } => write!(f, "reset within a response"),
            Self::Late { received: 0 } => write!(f, "no response in time"),
            Self::Late { .. } => write!(f, "no whole response in time"),
            Self::Malformed(what) => write!(f, "malformed response: {what}"),
            Self::Failed(kind) => write!(f, "{kind}"),
        }
    }
}

/// What a connection looks like to a client that is about to send on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// Nothing to read, nothing wrong.
    Open,
    /// The other side has ended it.
    Closed,
    /// It was reset.
    Reset,
    /// Bytes are there that no request asked for.
    Unasked,
}

/// One connection to the server.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    /// What has arrived and belongs to no response yet.
    buffer: Vec<u8>,
    /// The read timeout that the socket has now; most reads need no other.
    timeout: Option<Duration>,
}

impl Connection {
    /// Connects, or says within `limit` why not.
    pub fn open(addr: SocketAddr, limit: Duration) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&addr, limit)?;
        stream.set_nodelay(true)?;
        // A server that never reads must not hang its client.
        stream.set_write_timeout(Some(Duration::from_secs(30)))?;
        Ok(Self::over(stream))
    }

    /// Connects with packets that have a TTL of 255, the greatest there is.
    pub fn open_with_full_ttl(addr: SocketAddr, limit: Duration) -> io::Result<Self> {
        let socket = socket2::Socket::new(socket2::Domain::for_address(addr), socket2::Type::STREAM, None)?;
        socket.set_ttl_v4(255)?;
        socket.connect_timeout(&addr.into(), limit)?;
        let stream = TcpStream::from(socket);
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(Duration::from_secs(30)))?;
        Ok(Self::over(stream))
    }

    /// Speaks over a socket that is connected already.
    pub fn over(stream: TcpStream) -> Self {
        Self { stream, buffer: Vec::new(), timeout: None }
    }

    /// The socket itself.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Sends `raw` as it is. On failure, says how many bytes the kernel took before.
    pub fn send(&mut self, raw: &[u8]) -> Result<(), (usize, io::Error)> {
        let mut sent = 0;
        while sent < raw.len() {
            match self.stream.write(&raw[sent..]) {
                Ok(n) => sent += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err((sent, e)),
            }
        }
        Ok(())
    }

    /// Looks without waiting and without taking anything.
    pub fn look(&self) -> Look {
        if !self.buffer.is_empty() {
            return Look::Unasked;
        }
        let mut byte = [0u8; 1];
        match rustix::net::recv(&self.stream, &mut byte, RecvFlags::PEEK | RecvFlags::DONTWAIT) {
            Ok((0, _)) => Look::Closed,
            Ok(_) => Look::Unasked,
            Err(Errno::AGAIN | Errno::INTR) => Look::Open,
            Err(_) => Look::Reset,
        }
    }

    /// Reads the response to a request of this method (a response to `HEAD` has no body).
    pub fn read_response(&mut self, method: &str, limit: Duration) -> Result<Response, NoResponse> {
        let deadline = Instant::now() + limit;
        let mut interim = 0;
        loop {
            let head_length = self.head_length(deadline)?;
            let head = parse_head(&self.buffer[..head_length])?;
            if (100..200).contains(&head.status) {
                self.buffer.drain(..head_length);
                interim += 1;
                continue;
            }
            let (body, end) = self.read_body(method, &head, head_length, deadline)?;
            self.buffer.drain(..end);
            return Ok(Response { body, interim, ..head });
        }
    }

    /// Waits for the head of a response, interim ones included, and says its status. An interim one is taken; what
    /// else comes is left for `read_response`.
    pub fn read_interim(&mut self, limit: Duration) -> Result<u16, NoResponse> {
        let deadline = Instant::now() + limit;
        let length = self.head_length(deadline)?;
        let status = parse_head(&self.buffer[..length])?.status;
        if status < 200 {
            self.buffer.drain(..length);
        }
        Ok(status)
    }

    /// Waits for the end of the connection. Anything else is an error in words.
    pub fn eof(&mut self, limit: Duration) -> Result<(), String> {
        let unasked = |b: &[u8]| format!("instead of the end came {:?}", String::from_utf8_lossy(b));
        if !self.buffer.is_empty() {
            return Err(unasked(&self.buffer));
        }
        match self.fill(Instant::now() + limit) {
            Ok(0) => Ok(()),
            Ok(_) => Err(unasked(&self.buffer)),
            Err(NoResponse::Late { .. }) => Err(format!("connection still open after {limit:?}")),
            Err(e) => Err(format!("instead of the end: {e}")),
        }
    }

    /// Waits for a whole head and says where it ends.
    fn head_length(&mut self, deadline: Instant) -> Result<usize, NoResponse> {
        loop {
            if let Some(at) = find(&self.buffer, b"\r\n\r\n") {
                return Ok(at + 4);
            }
            if self.fill(deadline)? == 0 {
                return Err(NoResponse::Closed { received: self.buffer.len() });
            }
        }
    }

    /// The body that follows this head, and where in the buffer it ends.
    fn read_body(
        &mut self,
        method: &str,
        head: &Response,
        start: usize,
        deadline: Instant,
    ) -> Result<(Vec<u8>, usize), NoResponse> {
        if method == "HEAD" || head.status == 204 || head.status == 304 {
            return Ok((Vec::new(), start));
        }
        if head.header("transfer-encoding").is_some_and(|v| v.trim().eq_ignore_ascii_case("chunked")) {
            return self.read_chunks(start, deadline);
        }
        if let Some(length) = head.header("content-length") {
            let length: usize =
                length.trim().parse().map_err(|_| NoResponse::Malformed(format!("Content-Length: {length}")))?;
            self.have(start + length, deadline)?;
            return Ok((self.buffer[start..start + length].to_vec(), start + length));
        }
        while self.fill(deadline)? > 0 {}
        Ok((self.buffer[start..].to_vec(), self.buffer.len()))
    }

    fn read_chunks(&mut self, start: usize, deadline: Instant) -> Result<(Vec<u8>, usize), NoResponse> {
        let mut body = Vec::new();
        let mut at = start;
        loop {
            let line = self.line(at, deadline)?;
            let size = String::from_utf8_lossy(&self.buffer[at..line]).into_owned();
            let digits = size.split(';').next().unwrap_or_default().trim();
            let size =
                usize::from_str_radix(digits, 16).map_err(|_| NoResponse::Malformed(format!("chunk size {size:?}")))?;
            at = line + 2;
            if size == 0 {
                break;
            }
            self.have(at + size + 2, deadline)?;
            body.extend_from_slice(&self.buffer[at..at + size]);
            if &self.buffer[at + size..at + size + 2] != b"\r\n" {
                return Err(NoResponse::Malformed("a chunk longer than it said".to_owned()));
            }
            at += size + 2;
        }
        // Trailers, up to the empty line.
        loop {
            let line = self.line(at, deadline)?;
            let empty = line == at;
            at = line + 2;
            if empty {
                return Ok((body, at));
            }
        }
    }

    /// Where the line that starts at `at` has its CR LF.
    fn line(&mut self, at: usize, deadline: Instant) -> Result<usize, NoResponse> {
        loop {
            if let Some(n) = self.buffer.get(at..).and_then(|b| find(b, b"\r\n")) {
                return Ok(at + n);
            }
            self.have(self.buffer.len() + 1, deadline)?;
        }
    }

    /// Reads until the buffer holds `length` bytes.
    fn have(&mut self, length: usize, deadline: Instant) -> Result<(), NoResponse> {
        while self.buffer.len() < length {
            if self.fill(deadline)? == 0 {
                return Err(NoResponse::Closed { received: self.buffer.len() });
            }
        }
        Ok(())
    }

    /// Reads once. 0 is the end of the connection.
    fn fill(&mut self, deadline: Instant) -> Result<usize, NoResponse> {
        let received = self.buffer.len();
        let mut bytes = [0u8; 16 * 1024];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(NoResponse::Late { received });
            }
            // Whole tenths of a second: the socket keeps its timeout from one read to the next.
            let timeout = Duration::from_millis(
                u64::try_from(left.as_millis()).unwrap_or(LONG).clamp(1, LONG).next_multiple_of(100),
            );
            if self.timeout != Some(timeout) {
                self.stream.set_read_timeout(Some(timeout)).map_err(|e| NoResponse::Failed(e.kind()))?;
                self.timeout = Some(timeout);
            }
            match self.stream.read(&mut bytes) {
                Ok(n) => {
                    self.buffer.extend_from_slice(&bytes[..n]);
                    return Ok(n);
                }
                Err(e) => match e.kind() {
                    io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {}
                    io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
                        return Err(NoResponse::Reset { received });
                    }
                    kind => return Err(NoResponse::Failed(kind)),
                },
            }
        }
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|w| w == what)
}

/// The status line and the headers, as a response without a body.
fn parse_head(bytes: &[u8]) -> Result<Response, NoResponse> {
    let malformed = |what: &str| NoResponse::Malformed(what.to_owned());
    let text = std::str::from_utf8(bytes).map_err(|_| malformed("a head that is not UTF-8"))?;
    let mut lines = text.split("\r\n");
    let first = lines.next().unwrap_or_default();
    let mut words = first.splitn(3, ' ');
    let version = words.next().unwrap_or_default();
    if !version.starts_with("HTTP/1.") {
        return Err(malformed(first));
    }
    let status = words.next().and_then(|w| w.parse().ok()).ok_or_else(|| malformed(first))?;
    let mut headers = Vec::new();
    for line in lines.filter(|l| !l.is_empty()) {
        let (name, value) = line.split_once(':').ok_or_else(|| malformed(line))?;
        headers.push((name.to_owned(), value.trim().to_owned()));
    }
    Ok(Response { version: version.to_owned(), status, headers, body: Vec::new(), interim: 0 })
}
