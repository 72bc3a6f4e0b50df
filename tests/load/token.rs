//! Token-checked requests: each carries a token that no other request has, and its response must repeat it.
//!
//! The token travels as `X-Request-Id` and as the parameter `user` of the target. The service returns the id in every
//! response, error responses included, and the general route returns the parameter in its body. A response that
//! repeats another token, or that has the wrong status for its request, was made for another request.

#![allow(dead_code, unreachable_pub, reason = "shared by several programs, each of which uses its own part")]

use crate::http::{Connection, NoResponse, Response};
use socket2::{Domain, SockAddr, SockRef, Socket, Type};
use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What a request looks like on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A GET of the general route.
    Get,
    /// A GET of `/timeout`.
    Slow,
    /// A POST with a short body, sent whole.
    Post,
    /// A POST with a chunked body, sent whole.
    Chunked,
    /// A POST with a body of 2 MiB, of which a few bytes are sent: the general route answers 413 without reading it.
    Unread,
    /// A POST that waits for `100 Continue` and announces 2 MiB.
    Expect,
    /// A POST that waits for `100 Continue` and announces a body that the general route reads.
    ExpectShort,
    /// A request without `Host` (400), with a body of which a part is sent.
    Rejected,
}

/// All kinds.
pub const KINDS: [Kind; 8] =
    [Kind::Get, Kind::Slow, Kind::Post, Kind::Chunked, Kind::Unread, Kind::Expect, Kind::ExpectShort, Kind::Rejected];

/// A request with its token.
#[derive(Debug, Clone)]
pub struct Tokened {
    /// What it looks like.
    pub kind: Kind,
    token: String,
}

/// What a client got on a connection when the response to a request was due.
#[derive(Debug)]
pub enum Got {
    /// The response to this request, whole.
    Own(Response),
    /// A response that is not this request's.
    Wrong(String),
    /// No whole response: the connection was closed, reset, or said nothing.
    None(NoResponse),
}

impl Got {
    /// Whether the request was answered, by its own response.
    pub fn is_own(&self) -> bool {
        matches!(self, Self::Own(_))
    }

    /// Whether a response came that belongs to another request.
    pub fn is_wrong(&self) -> bool {
        matches!(self, Self::Wrong(_))
    }

    /// Whether the client was left waiting: no response and no end of the connection.
    pub fn is_late(&self) -> bool {
        matches!(self, Self::None(NoResponse::Late { .. }))
    }
}

impl fmt::Display for Got {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own(response) => write!(f, "its own response, {}", response.status),
            Self::Wrong(what) => write!(f, "another's response: {what}"),
            Self::None(why) => write!(f, "{why}"),
        }
    }
}

impl Tokened {
    /// A request with a new token.
    pub fn new(kind: Kind) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let token = format!("t{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        Self { kind, token }
    }

    /// The bytes that are sent, with a further header line where `more` is not empty.
    fn wire_with(&self, more: &str) -> String {
        let token = &self.token;
        let common = format!("X-Request-Id: {token}\r\n{more}");
        let post = format!("POST /?user={token} HTTP/1.1\r\nHost: localhost\r\n{common}");
        match self.kind {
            Kind::Get => format!("GET /?user={token} HTTP/1.1\r\nHost: localhost\r\n{common}\r\n"),
            Kind::Slow => format!("GET /timeout?user={token} HTTP/1.1\r\nHost: localhost\r\n{common}\r\n"),
            Kind::Post => format!("{post}Content-Length: 5\r\n\r\nhello"),
            Kind::Chunked => format!("{post}Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
            Kind::Unread => format!("{post}Content-Length: 2097152\r\n\r\nhello"),
            Kind::Expect => format!("{post}Expect: 100-continue\r\nContent-Length: 2097152\r\n\r\n"),
            Kind::ExpectShort => format!("{post}Expect: 100-continue\r\nContent-Length: 5\r\n\r\n"),
            Kind::Rejected => format!("POST /?user={token} HTTP/1.1\r\n{common}Content-Length: 4000\r\n\r\nhello"),
        }
    }

    /// The bytes that are sent.
    pub fn wire(&self) -> String {
        self.wire_with("")
    }

    /// The bytes that are sent by a client that asks for the connection to be closed.
    pub fn wire_close(&self) -> String {
        self.wire_with("Connection: close\r\n")
    }

    /// Whether the whole request is sent, so that the next one may follow on the same connection.
    pub fn is_whole(&self) -> bool {
        matches!(self.kind, Kind::Get | Kind::Slow | Kind::Post | Kind::Chunked)
    }

    fn may_be(&self, status: u16) -> bool {
        match self.kind {
            Kind::Get => status == 200,
            Kind::Slow | Kind::Post | Kind::Chunked => matches!(status, 200 | 503),
            // 200: the general route may answer before it has looked at the body.
            Kind::Unread | Kind::Expect => matches!(status, 200 | 413 | 503),
            // 400 and 408: the body never comes, and the client may have ended its side.
            Kind::ExpectShort => matches!(status, 200 | 400 | 408 | 503),
            Kind::Rejected => status == 400,
        }
    }

    /// Whether a response that came where this request's was due is its own.
    pub fn check(&self, response: Response) -> Got {
        let id = response.header("x-request-id");
        let wrong = |what: &str| Got::Wrong(format!("{what}: to {:?} {} came {response:?}", self.kind, self.token));
        // A response that the service did not make (an engine's own 400) has no id, and is none that a whole and
        // correct request may get.
        if id != Some(&self.token) && (id.is_some() || !matches!(self.kind, Kind::Rejected)) {
            return wrong("another id");
        }
        if !self.may_be(response.status) {
            return wrong("another status");
        }
        let greets = !matches!(self.kind, Kind::Slow | Kind::Rejected) && response.status == 200;
        if greets && response.text() != format!("hello, {}", self.token) {
            return wrong("another body");
        }
        Got::Own(response)
    }

    /// Reads the response that is due and checks it.
    pub fn receive(&self, connection: &mut Connection, limit: Duration) -> Got {
        let method = if matches!(self.kind, Kind::Get | Kind::Slow) { "GET" } else { "POST" };
        match connection.read_response(method, limit) {
            Ok(response) => self.check(response),
            Err(NoResponse::Malformed(what)) => Got::Wrong(format!("not a response: {what}")),
            Err(why) => Got::None(why),
        }
    }
}

/// Connects from this address and port, also where a connection from there has just ended.
pub fn connect_from(source: SocketAddr, to: SocketAddr) -> io::Result<Connection> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&SockAddr::from(source))?;
    socket.connect(&SockAddr::from(to))?;
    socket.set_tcp_nodelay(true)?;
    socket.set_write_timeout(Some(Duration::from_secs(5)))?;
    Ok(Connection::over(TcpStream::from(socket)))
}

/// Ends a connection by a reset, which frees its port at once.
pub fn reset(connection: Connection) {
    let _ = SockRef::from(connection.stream()).set_linger(Some(Duration::ZERO)); // a socket takes it
    drop(connection);
}
