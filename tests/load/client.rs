//! A closed loop of clients that count what becomes of each request while the server stops.
//!
//! A request is **lost** when it was sent whole and got no whole response. That is counted strictly: a client that
//! looked, found its connection open, sent, and then met the end of it has lost a request, however small the window
//! was. Everything else that can happen to a client of a server that stops has a count of its own, so that nothing
//! is forgiven by falling through:
//!
//! | count | what happened |
//! | --- | --- |
//! | answered | sent whole, whole response |
//! | lost | sent whole, no whole response |
//! | refused | the port refused the connection |
//! | waiting | connecting took longer than the limit: the kernel ignored us. Nothing was sent |
//! | closed while idle | the connection ended while nothing of ours was on it |
//! | reset before sending | the same by a reset, or a send that failed before a request was whole |
//! | behind close | a pipelined request behind a response with `Connection: close` (RFC 9112, section 9.6) |
//! | behind close, reached | of those, the ones that had been sent before the cause: a server may be held to answer these |
//!
//! The end of the time never loses anything: each client finishes the requests that it is in.

#![allow(dead_code, unreachable_pub, reason = "shared by several programs, each of which uses its own part")]

use super::http::{Connection, Look, NoResponse};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fd::OwnedFd;
use rustix::process::{Pid, PidfdFlags};
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How a client uses its connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// One connection for as long as the server keeps it.
    KeepAlive,
    /// One request for each connection.
    Close,
    /// As keep-alive, with so many requests sent at once.
    Pipeline(usize),
}

/// What the clients do.
#[derive(Debug, Clone)]
pub struct Load {
    /// The server.
    pub addr: SocketAddr,
    /// What most requests ask for.
    pub path: String,
    /// How many clients there are, each with a thread of its own.
    pub clients: usize,
    /// How they use their connections.
    pub mode: Mode,
    /// How many requests of a hundred ask for `slow_path` instead.
    pub slow_share: u64,
    /// See `slow_share`.
    pub slow_path: String,
    /// Whether a client goes on after the port has refused it, as clients of a server that restarts do.
    pub retry: bool,
    /// How long all of it lasts at most.
    pub lasts: Duration,
    /// How long a connection may take before it counts as waiting.
    pub connect_limit: Duration,
    /// Whether their packets have a TTL of 255, as those of some systems have.
    pub full_ttl: bool,
    /// How long a response may take before its request counts as lost.
    pub response_limit: Duration,
    /// Whether [`Counts::timeline`] is kept.
    pub record: bool,
}

impl Load {
    /// Clients that ask for `/` on kept connections.
    pub fn new(addr: SocketAddr, clients: usize) -> Self {
        Self {
            addr,
            path: "/".to_owned(),
            clients,
            mode: Mode::KeepAlive,
            slow_share: 0,
            slow_path: "/timeout".to_owned(),
            retry: false,
            lasts: Duration::from_secs(5),
            connect_limit: Duration::from_secs(3),
            full_ttl: false,
            response_limit: Duration::from_secs(30),
            record: false,
        }
    }

    /// Whether the request of this number asks for the slow path: `slow_share` of a hundred, evenly spread.
    pub fn is_slow(&self, number: u64) -> bool {
        (number + 1) * self.slow_share / 100 != number * self.slow_share / 100
    }
}

/// One lost request, told so that its cause can be found.
#[derive(Debug, Clone)]
pub struct Loss {
    /// What came instead of the response.
    pub instead: NoResponse,
    /// Its number on its connection, from 1.
    pub number: u64,
    /// When it was sent, in milliseconds after the cause (negative: before it). None: there was no cause yet.
    pub after_cause: Option<f64>,
    /// From the look that found the connection open to the end of the send.
    pub look_to_sent: Duration,
    /// From the end of the send to the end of the connection.
    pub sent_to_end: Duration,
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: request {} of its connection, sent ", self.instead, self.number)?;
        match self.after_cause {
            Some(ms) if ms < 0.0 => write!(f, "{:.3} ms before the cause", -ms)?,
            Some(ms) => write!(f, "{ms:.3} ms after the cause")?,
            None => write!(f, "without any cause")?,
        }
        write!(f, ", {:?} after the look, {:?} before the end", self.look_to_sent, self.sent_to_end)
    }
}

/// What became of the requests.
#[derive(Debug, Clone, Default)]
pub struct Counts {
    pub answered: u64,
    pub lost: u64,
    pub refused: u64,
    pub waiting: u64,
    pub closed_while_idle: u64,
    pub reset_before_sending: u64,
    pub behind_close: u64,
    pub behind_close_reached: u64,
    /// Connections that came to be.
    pub connections: u64,
    /// Responses by status.
    pub statuses: BTreeMap<u16, u64>,
    /// Everything that went wrong, in words.
    pub errors: BTreeMap<String, u64>,
    /// The first losses of each client.
    pub losses: Vec<Loss>,
    /// The longest time from sending a request to its whole response.
    pub longest_response: Duration,
    /// The longest time from wanting to send a request to its whole response, all attempts to connect included.
    pub longest_wait: Duration,
    /// When the last response was whole.
    pub last_response: Option<Instant>,
    /// Of each request, if it was asked for, when it was sent and whether it was answered.
    pub timeline: Vec<(Instant, bool)>,
}

impl Counts {
    fn error(&mut self, what: impl fmt::Display) {
        *self.errors.entry(what.to_string()).or_default() += 1;
    }

    /// The numbers with their names.
    fn numbers(&mut self) -> [(&'static str, &mut u64); 9] {
        [
            ("answered", &mut self.answered),
            ("lost", &mut self.lost),
            ("refused", &mut self.refused),
            ("waiting", &mut self.waiting),
            ("closed_while_idle", &mut self.closed_while_idle),
            ("reset_before_sending", &mut self.reset_before_sending),
            ("behind_close", &mut self.behind_close),
            ("behind_close_reached", &mut self.behind_close_reached),
            ("connections", &mut self.connections),
        ]
    }

    fn add(&mut self, mut other: Self) {
        for ((_, own), (_, more)) in self.numbers().into_iter().zip(other.numbers()) {
            *own += *more;
        }
        for (status, n) in other.statuses {
            *self.statuses.entry(status).or_default() += n;
        }
        for (what, n) in other.errors {
            *self.errors.entry(what).or_default() += n;
        }
        self.losses.extend(other.losses);
        self.longest_response = self.longest_response.max(other.longest_response);
        self.longest_wait = self.longest_wait.max(other.longest_wait);
        self.last_response = self.last_response.max(other.last_response);
        self.timeline.extend(other.timeline);
    }
}

/// What a run found.
#[derive(Debug, Clone)]
pub struct Report {
    /// What became of the requests.
    pub counts: Counts,
    /// When the cause was.
    pub cause: Option<Instant>,
    /// From the cause to the end of the process. None: it was not waited for, or did not end.
    pub exit_after_cause: Option<Duration>,
    /// From the last whole response to the end of the process.
    pub exit_after_last_response: Option<Duration>,
}

impl Report {
    /// One line for a program.
    pub fn json(&self) -> String {
        let mut c = self.counts.clone();
        let ms = |d: Option<Duration>| d.map_or("null".to_owned(), |d| format!("{:.3}", millis(d)));
        let numbers = c.numbers().map(|(name, n)| format!("\"{name}\":{n}")).join(",");
        let statuses: Vec<_> = c.statuses.iter().map(|(k, v)| format!("\"{k}\":{v}")).collect();
        // The words are ours or an error kind's; only what a server sent could hold a quote.
        let errors: Vec<_> = c.errors.iter().map(|(k, v)| format!("{:?}:{v}", plain(k))).collect();
        format!(
            "{{{numbers},\"statuses\":{{{}}},\"errors\":{{{}}},\"longest_response_ms\":{},\"longest_wait_ms\":{},\
             \"exit_after_cause_ms\":{},\"exit_after_last_response_ms\":{}}}",
            statuses.join(","),
            errors.join(","),
            ms(Some(c.longest_response)),
            ms(Some(c.longest_wait)),
            ms(self.exit_after_cause),
            ms(self.exit_after_last_response),
        )
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut c = self.counts.clone();
        for (name, n) in c.numbers() {
            write!(f, "{} {n}, ", name.replace('_', " "))?;
        }
        let (response, wait) = (millis(c.longest_response), millis(c.longest_wait));
        write!(f, "longest response {response:.1} ms, longest wait {wait:.1} ms")?;
        if let (Some(cause), Some(last)) = (self.exit_after_cause, self.exit_after_last_response) {
            write!(
                f,
                ", exit {:.1} ms after the cause, {:.1} ms after the last response",
                millis(cause),
                millis(last)
            )?;
        }
        for (status, n) in c.statuses.iter().filter(|(status, _)| **status != 200) {
            write!(f, "; status {status}: {n}")?;
        }
        for (what, n) in &c.errors {
            write!(f, "; {what}: {n}")?;
        }
        Ok(())
    }
}

/// Clients at work.
#[derive(Debug)]
pub struct Running {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<Counts>>,
    process: Option<OwnedFd>,
}

#[derive(Debug)]
struct Shared {
    load: Load,
    until: Instant,
    /// No more requests are wanted, though there is time.
    enough: AtomicBool,
    sent: AtomicU64,
    answered: AtomicU64,
    cause: OnceLock<Instant>,
}

impl Shared {
    fn is_over(&self) -> bool {
        self.enough.load(Ordering::Relaxed) || Instant::now() >= self.until
    }
}

impl Running {
    /// Sets the clients to work. `pid` is the server, if its end is to be seen.
    pub fn start(load: Load, pid: Option<u32>) -> io::Result<Self> {
        // Before the first request: the process that we watch is the one that we load, whatever becomes of the pid.
        let process = pid.map(watch).transpose()?;
        let until = Instant::now() + load.lasts;
        let count = load.clients;
        let shared = Arc::new(Shared {
            load,
            until,
            enough: AtomicBool::new(false),
            sent: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            cause: OnceLock::new(),
        });
        let clients = (0..count)
            .map(|number| {
                let shared = Arc::clone(&shared);
                thread::Builder::new()
                    .name(format!("client {number}"))
                    .stack_size(128 * 1024)
                    .spawn(move || Client::new(&shared, number as u64).run())
            })
            .collect::<io::Result<_>>()?;
        Ok(Self { shared, clients, process })
    }

    /// How many requests were sent whole so far.
    pub fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::Relaxed)
    }

    /// How many responses there are so far.
    pub fn answered(&self) -> u64 {
        self.shared.answered.load(Ordering::Relaxed)
    }

    /// What there is so far, for another thread.
    pub fn so_far(&self) -> impl Fn() -> String + Send + use<> {
        let shared = Arc::clone(&self.shared);
        move || {
            let [sent, answered] = [&shared.sent, &shared.answered].map(|count| count.load(Ordering::Relaxed));
            format!("{sent} requests sent, {answered} answered")
        }
    }

    /// Does what makes the server stop, and takes the time of it.
    pub fn cause(&self, cause: impl FnOnce()) {
        self.shared.cause.get_or_init(Instant::now);
        cause();
    }

    /// Ends the load before its time: each client finishes what it has begun.
    pub fn end(self) -> Report {
        self.shared.enough.store(true, Ordering::Relaxed);
        self.finish(None)
    }

    /// Waits for the end of the process, if `exit_within` says so, and of the clients.
    pub fn finish(self, exit_within: Option<Duration>) -> Report {
        let end = match (&self.process, exit_within) {
            (Some(process), Some(limit)) => wait_for_end(process, limit),
            _ => None,
        };
        let mut counts = Counts::default();
        for client in self.clients {
            match client.join() {
                Ok(c) => counts.add(c),
                Err(_) => counts.error("a client panicked"),
            }
        }
        let cause = self.shared.cause.get().copied();
        Report {
            exit_after_cause: end.zip(cause).map(|(end, at)| end.saturating_duration_since(at)),
            exit_after_last_response: end.zip(counts.last_response).map(|(end, at)| end.saturating_duration_since(at)),
            counts,
            cause,
        }
    }
}

/// A descriptor that becomes readable when the process ends.
fn watch(pid: u32) -> io::Result<OwnedFd> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(rustix::process::pidfd_open(pid, PidfdFlags::empty())?)
}

/// When the process ended, or None if it did not within `limit`.
fn wait_for_end(process: &OwnedFd, limit: Duration) -> Option<Instant> {
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).ok()?;
        match rustix::event::poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => return None,
            Ok(_) => return Some(Instant::now()),
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return None,
        }
    }
}

struct Client<'a> {
    shared: &'a Shared,
    counts: Counts,
    /// The number of the next request. Clients start at different ones, so that slow requests do not come in step.
    number: u64,
    /// Since when the next request has waited to be sent.
    wanted: Instant,
    host: String,
}

/// A connection, and how many requests were sent on it.
struct Held {
    connection: Connection,
    requests: u64,
}

impl<'a> Client<'a> {
    fn new(shared: &'a Shared, number: u64) -> Self {
        let host = shared.load.addr.to_string();
        Self { shared, counts: Counts::default(), number: number * 7, wanted: Instant::now(), host }
    }

    fn run(mut self) -> Counts {
        let mut held = None;
        while !self.shared.is_over() {
            let connection = match held.take() {
                Some(h) => h,
                None => match self.connect() {
                    Ok(h) => h,
                    Err(Gone) if self.shared.load.retry => continue,
                    Err(Gone) => break,
                },
            };
            held = self.converse(connection);
        }
        // Who still stands at the door when the time is over has waited, too.
        if self.shared.load.retry && held.is_none() {
            self.counts.longest_wait = self.counts.longest_wait.max(self.wanted.elapsed());
        }
        self.counts
    }

    /// Connects, as often as it takes within the time. An error says that the port is closed.
    fn connect(&mut self) -> Result<Held, Gone> {
        let load = &self.shared.load;
        loop {
            let opened = if load.full_ttl { Connection::open_with_full_ttl } else { Connection::open };
            let error = match opened(load.addr, load.connect_limit) {
                Ok(connection) => {
                    self.counts.connections += 1;
                    return Ok(Held { connection, requests: 0 });
                }
                Err(e) => e,
            };
            match error.kind() {
                io::ErrorKind::ConnectionRefused => {
                    self.counts.refused += 1;
                    // Not to spin; a client that retries waits a little.
                    thread::sleep(Duration::from_millis(1));
                    return Err(Gone);
                }
                io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => self.counts.waiting += 1,
                io::ErrorKind::ConnectionReset => self.counts.reset_before_sending += 1,
                _ => {
                    self.counts.error(format_args!("connecting: {error}"));
                    thread::sleep(Duration::from_millis(1));
                }
            }
            if self.shared.is_over() {
                return Err(Gone);
            }
        }
    }

    /// Sends what the mode sends at once and reads the responses. Gives the connection back if it can be used again.
    fn converse(&mut self, mut held: Held) -> Option<Held> {
        let load = &self.shared.load;
        let depth = if let Mode::Pipeline(depth) = load.mode { depth.max(1) } else { 1 };
        let mut raw = String::new();
        // Where in `raw` each request ends.
        let mut ends = Vec::with_capacity(depth);
        for n in 0..depth as u64 {
            let path = if load.is_slow(self.number + n) { &load.slow_path } else { &load.path };
            let close = if load.mode == Mode::Close { "Connection: close\r\n" } else { "" };
            raw.extend(["GET ", path, " HTTP/1.1\r\nHost: ", &self.host, "\r\n", close, "\r\n"]);
            ends.push(raw.len());
        }

        let looked = Instant::now();
        match held.connection.look() {
            Look::Open => {}
            Look::Closed => {
                self.counts.closed_while_idle += 1;
                return None;
            }
            Look::Reset => {
                self.counts.reset_before_sending += 1;
                return None;
            }
            Look::Unasked => {
                self.counts.error("bytes that no request asked for");
                return None;
            }
        }
        let whole = match held.connection.send(raw.as_bytes()) {
            Ok(()) => depth,
            Err((sent, error)) => {
                let whole = ends.iter().take_while(|end| **end <= sent).count();
                self.counts.reset_before_sending += (depth - whole) as u64;
                self.counts.error(format_args!("sending: {}", error.kind()));
                whole
            }
        };
        let sent = Instant::now();
        self.shared.sent.fetch_add(whole as u64, Ordering::Relaxed);
        self.number += whole as u64;

        for n in 0..whole {
            match held.connection.read_response("GET", load.response_limit) {
                Ok(response) => {
                    let now = Instant::now();
                    held.requests += 1;
                    self.answer(response.status, sent, now);
                    if response.closes() {
                        self.behind_close((whole - n - 1) as u64, sent);
                        return None;
                    }
                }
                Err(instead) => {
                    self.lose(
                        (whole - n) as u64,
                        sent,
                        Loss {
                            instead,
                            number: held.requests + 1,
                            after_cause: self.shared.cause.get().map(|cause| signed_millis(*cause, sent)),
                            look_to_sent: sent - looked,
                            sent_to_end: sent.elapsed(),
                        },
                    );
                    return None;
                }
            }
        }
        (load.mode != Mode::Close && whole == depth).then_some(held)
    }

    fn answer(&mut self, status: u16, sent: Instant, now: Instant) {
        self.counts.answered += 1;
        *self.counts.statuses.entry(status).or_default() += 1;
        self.counts.longest_response = self.counts.longest_response.max(now - sent);
        self.counts.longest_wait = self.counts.longest_wait.max(now - self.wanted);
        self.counts.last_response = Some(now);
        self.wanted = now;
        if self.shared.load.record {
            self.counts.timeline.push((sent, true));
        }
        self.shared.answered.fetch_add(1, Ordering::Relaxed);
    }

    fn behind_close(&mut self, requests: u64, sent: Instant) {
        self.counts.behind_close += requests;
        // On loopback what was sent has reached the server's socket when the send returns.
        if self.shared.cause.get().is_some_and(|cause| sent < *cause) {
            self.counts.behind_close_reached += requests;
        }
    }

    fn lose(&mut self, requests: u64, sent: Instant, loss: Loss) {
        self.counts.lost += requests;
        if self.shared.load.record {
            self.counts.timeline.extend((0..requests).map(|_| (sent, false)));
        }
        self.counts.error(&loss.instead);
        if self.counts.losses.len() < 4 {
            self.counts.losses.push(loss);
        }
        self.wanted = Instant::now();
    }
}

/// No socket listens at the address.
struct Gone;

fn millis(d: Duration) -> f64 {
    d.as_secs_f64() * 1000.0
}

/// From `from` to `to`, negative if that is backwards.
fn signed_millis(from: Instant, to: Instant) -> f64 {
    if to >= from { millis(to - from) } else { -millis(from - to) }
}

/// Without what JSON would need an escape for that Rust's differs in.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii() && !c.is_ascii_control() { c } else { '?' }).collect()
}
