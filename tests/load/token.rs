//! Token-checked requests: each carries a token that no other request has, and its response must repeat it.
//!
//! The token travels as `X-Request-Id` and as the parameter `user` of the target. The service returns the id in every
//! response, error responses included, and the general route returns the parameter in its body. A response that
//! repeats another token, or that has the wrong status for its request, was made for another request.

#![allow(dead_code, unreachable_pub, reason = "shared by several programs, each of which uses its own part")]

use super::http::{Connection, NoResponse, Response};
use socket2::{Domain, SockAddr, SockRef, Socket, Type};
use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

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
            _ if status == 503 => true, // shed
            Kind::Get | Kind::Slow => status == 200,
            Kind::Post | Kind::Chunked => matches!(status, 200 | 408),
            // 200: the general route may answer before it has looked at the body.
            Kind::Unread | Kind::Expect => matches!(status, 200 | 413),
            // 400 and 408: the body never comes, and the client may have ended its side.
            Kind::ExpectShort => matches!(status, 200 | 400 | 408),
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

/// What became of the requests of one or more clients.
#[derive(Debug, Default)]
pub struct Tally {
    /// Answered with their own response.
    pub own: usize,
    /// Not answered: the connection ended.
    pub closed: usize,
    /// Answered with another's response.
    pub wrong: Vec<String>,
    /// Neither answered, nor did the connection end.
    pub late: Vec<String>,
    /// Those of `closed` and `late` whose connection came from a port of its own, and that were sent whole.
    pub owed: Vec<String>,
}

impl Tally {
    /// Counts one.
    pub fn count(&mut self, what: &str, got: &Got) {
        match got {
            Got::Own(_) => self.own += 1,
            Got::Wrong(_) => self.wrong.push(format!("{what}: {got}")),
            Got::None(_) if got.is_late() => self.late.push(format!("{what}: {got}")),
            Got::None(_) => self.closed += 1,
        }
    }

    /// Adds those of another.
    pub fn add(&mut self, other: Self) {
        self.own += other.own;
        self.closed += other.closed;
        self.wrong.extend(other.wrong);
        self.late.extend(other.late);
        self.owed.extend(other.owed);
    }

    /// What is wrong with it, if anything is.
    pub fn verdict(&self, what: &str) -> Option<String> {
        let first = self.wrong.first().or(self.late.first())?;
        Some(format!("{what}: {self}; the first: {first}"))
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (wrong, late) = (self.wrong.len(), self.late.len());
        let all = self.own + self.closed + wrong + late;
        write!(f, "of {all}, {} answered, {} closed, {wrong} wrong, {late} left waiting", self.own, self.closed)
    }
}

/// Passes so many microseconds without leaving the processor: where in the server's work a reset falls is what is varied.
pub fn spin(microseconds: u64) {
    let until = Instant::now() + Duration::from_micros(microseconds);
    while Instant::now() < until {
        std::hint::spin_loop();
    }
}

/// A small generator of numbers, so that a run can be repeated (Knuth's MMIX constants).
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }

    fn kind(&mut self) -> Kind {
        let index = self.below(KINDS.len() as u64);
        usize::try_from(index).ok().and_then(|index| KINDS.get(index).copied()).unwrap_or(Kind::Get)
    }
}

/// A client that does everything a client may do, one connection after the other: keeps, pipelines, resets, and comes
/// back from the same port.
#[derive(Debug)]
pub struct Mixed {
    to: SocketAddr,
    source: SocketAddr,
    random: Random,
    /// Whether the port is one that it has not just used.
    fresh_port: bool,
    /// How long it waits for a response, or for the end of a connection.
    patience: Duration,
    /// What became of its requests.
    pub tally: Tally,
}

impl Mixed {
    /// `to` is an IPv4 address of this machine.
    pub fn new(to: SocketAddr, seed: u64, patience: Duration) -> Self {
        let source = SocketAddr::from(([127, 0, 0, 1], 0));
        Self { to, source, random: Random(seed), fresh_port: true, patience, tally: Tally::default() }
    }

    /// Uses one connection.
    pub fn connect_and_ask(&mut self) {
        let opened = connect_from(self.source, self.to);
        let Ok((mut connection, local)) = opened.and_then(|c| c.stream().local_addr().map(|local| (c, local))) else {
            // The port's former connection has not quite ended, or the server accepts no connection.
            self.source.set_port(0);
            self.fresh_port = true;
            return;
        };
        self.source = local;
        let in_flight = self.ask(&mut connection);
        self.fresh_port = !in_flight && self.random.below(2) == 0;
        if self.fresh_port {
            self.source.set_port(0);
        }
        reset(connection);
    }

    /// Asks one by one or pipelined, to the end or to a reset in between. Whether something was left in flight.
    fn ask(&mut self, connection: &mut Connection) -> bool {
        for _ in 0..=self.random.below(4) {
            let mut asked: Vec<_> = (0..=self.random.below(4)).map(|_| Tokened::new(self.random.kind())).collect();
            // Nothing can follow a request whose body does not come.
            if let Some(broken) = asked.iter().position(|request| !request.is_whole()) {
                asked.truncate(broken + 1);
            }
            let wire: String = asked.iter().map(Tokened::wire).collect();
            if connection.send(wire.as_bytes()).is_err() {
                return false;
            }
            if self.random.below(4) == 0 {
                spin(self.random.below(1000));
                return true;
            }
            if !asked.iter().all(|request| self.receive(connection, request)) {
                return false;
            }
        }
        false
    }

    /// Receives the response to a request. Whether the connection goes on behind it.
    fn receive(&mut self, connection: &mut Connection, request: &Tokened) -> bool {
        // 100 comes, then the body goes; a final response instead is as good.
        if request.kind == Kind::ExpectShort && connection.read_interim(self.patience) == Ok(100) {
            let _ = connection.send(b"hello"); // what comes tells whether it arrived
        }
        let got = request.receive(connection, self.patience);
        let what = format!("{:?}", request.kind);
        self.tally.count(&what, &got);
        match &got {
            Got::Own(response) => request.is_whole() && !response.closes(),
            Got::None(_) if self.fresh_port && request.is_whole() => {
                self.tally.owed.push(format!("{what}: {got}"));
                false
            }
            Got::None(_) | Got::Wrong(_) => false,
        }
    }
}
