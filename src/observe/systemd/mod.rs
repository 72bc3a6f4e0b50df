//! The service manager's watch: a member that tells systemd how the service is, and is never asked.
//!
//! | when | what is told |
//! | --- | --- |
//! | it answers | `READY=1` |
//! | each half of the watchdog's time, if it still answers | `WATCHDOG=1`, and `STATUS=serving, 12 connections` |
//! | the first message | `STOPPING=1` (before a renewal `RELOADING=1`) |
//! | each second of a drain | `EXTEND_TIMEOUT_USEC=`, `WATCHDOG=1`, `STATUS=draining: 3 requests, 27s left` |
//!
//! # What the watchdog means
//!
//! That a client would be answered now: a request for `/livez` over a connection of its own, through the kernel,
//! `tiny_http` and the listener; that the keeper looks when it is woken; and that the workers are not all stuck in requests whose
//! time is over. What fails is tried again a few times before systemd loses its patience. In a drain it means only that
//! the drain is within its grace, which bounds it: connections of our own would be in its way.
//!
//! # When it wakes up
//!
//! With the watchdog, and when the phase changes. Without a watchdog it sleeps for as long as the service serves, and so
//! its status has no numbers then: they would be old.

use std::env;
use std::fmt::Write as _;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use sd_notify::NotifyState;

use crate::crew::pool::Pool;
use crate::dispatch::Job;
use crate::engine::gate::AcceptGate;
use crate::engine::tiny_http::connections::ConnectionTable;
use crate::engine::tiny_http::monitor::Monitor;
use crate::lifecycle::phase::{Lifecycle, Phase};
use crate::sync::WarnOnce;
use crate::text::pluralize;

/// How long an answer may take at the start, where no watchdog says it.
const FIRST_ANSWER: Duration = Duration::from_secs(5);
/// How long to wait before the start is tried again.
const AGAIN: Duration = Duration::from_millis(100);
/// How long a handshake with ourselves may take: it is the kernel's work alone.
const HANDSHAKE: Duration = Duration::from_secs(1);
/// How long the thread is deaf to the first message while it waits for an answer.
const DEAF: Duration = Duration::from_millis(100);
/// How often a drain says that it goes on.
const PROGRESS: Duration = Duration::from_secs(1);
/// How much more time a drain asks for each time: many times [`PROGRESS`], for a machine that is busy with something
/// else; and short, so that a process that is wedged in its drain does not keep systemd waiting for all of the grace.
const EXTENSION: Duration = Duration::from_secs(10);
/// What the exit itself may take after the grace.
const EXIT: Duration = Duration::from_secs(5);
/// How long a request may be over its time before it counts as stuck: by then the keeper has ended its connection.
const OVERDUE: Duration = Duration::from_secs(5);

/// What is watched.
pub(crate) struct SystemdNotifier {
    pub(crate) connections: Arc<ConnectionTable>,
    pub(crate) gate: Arc<AcceptGate>,
    pub(crate) monitor: Arc<Monitor>,
    pub(crate) phase: Arc<Lifecycle>,
    pub(crate) pool: Arc<Pool<Job>>,
    pub(crate) changes: Receiver<Phase>,
    pub(crate) request_timeout: Duration,
    pub(crate) grace: Duration,
}

/// Whether a service manager wants to be told.
pub(crate) fn is_enabled() -> bool {
    env::var_os("NOTIFY_SOCKET").is_some_and(|path| !path.is_empty())
}

impl SystemdNotifier {
    /// The member's life.
    pub(crate) fn run(&self) {
        let mut manager = NotifySocket::default();
        let mut checks = Checks { watch: self, looks: None, warn_unreachable: WarnOnce::default() };
        manager.tell_status("starting", &[]);
        if self.start(&mut manager, &mut checks) {
            if let Some(period) = manager.watchdog {
                self.serve(period, &mut manager, &mut checks);
            } else {
                let _ = self.changes.recv(); // an error is the end as well
            }
        }
        self.drain(&mut manager);
    }

    /// Waits until the service answers. False if it is asked to stop before.
    fn start(&self, manager: &mut NotifySocket, checks: &mut Checks<'_>) -> bool {
        let warn_once = WarnOnce::default();
        while let Err(why) = checks.answers(FIRST_ANSWER) {
            if self.changes.recv_timeout(AGAIN).is_ok() {
                return false;
            }
            if warn_once.is_first() {
                log::warn!("not ready yet: {why}");
            }
        }
        manager.tell_status(&self.serving(manager.watchdog.is_some()), &[NotifyState::Ready]);
        true
    }

    /// Feeds the watchdog while the service answers, until the first message.
    fn serve(&self, period: Duration, manager: &mut NotifySocket, checks: &mut Checks<'_>) {
        let failing = WarnOnce::default();
        let mut next = Instant::now() + period / 2;
        while self.changes.recv_deadline(next).is_err() {
            let status = self.serving(true); // without our own connection
            match checks.all(period / 8) {
                Ok(()) => {
                    manager.tell_status(&status, &[NotifyState::Watchdog]);
                    if failing.reset() {
                        log::info!("the service answers again");
                    }
                    next = Instant::now() + period / 2;
                }
                Err(_) if !self.changes.is_empty() => {} // it was interrupted
                Err(why) => {
                    if failing.is_first() {
                        log::warn!("the watchdog is not fed: {why}");
                    }
                    manager.tell_status(&format!("stuck: {why}"), &[]);
                    next = Instant::now() + period / 16;
                }
            }
        }
    }

    /// Asks for as much time as the drain needs, up to its grace.
    fn drain(&self, manager: &mut NotifySocket) {
        let began = Instant::now();
        let left = || self.grace.saturating_sub(began.elapsed());
        // By itself, because what is in one datagram is not taken in order: it starts the clock that is set later.
        if self.phase.is_reexecuting() {
            // Since version 253 systemd wants to know when, in case the messages of two reloads cross.
            let now = NotifyState::monotonic_usec_now().ok();
            manager.tell(&[Some(NotifyState::Reloading), now].into_iter().flatten().collect::<Vec<_>>());
        } else {
            manager.tell(&[NotifyState::Stopping]);
        }
        while self.phase.get() < Phase::Stopping {
            if !left().is_zero() {
                manager.ask_for(left().min(EXTENSION) + EXIT, &self.draining(left()));
            }
            let _ = self.changes.recv_timeout(PROGRESS); // the next phase, or time for the next word
        }
        // From here on nobody is left to ask again: members leave, this one among them.
        let word = if self.phase.is_reexecuting() { "re-executing" } else { "stopped" };
        let status = match self.connections.in_flight() {
            0 => format!("{word}: every request was answered"),
            n => format!("{word}: {} abandoned", pluralize(n, "request")),
        };
        manager.ask_for(left().saturating_add(EXIT), &status);
    }

    fn serving(&self, counting: bool) -> String {
        if counting {
            format!("serving, {}", pluralize(self.connections.connections(), "connection"))
        } else {
            format!("serving on http://{}", self.gate.address())
        }
    }

    fn draining(&self, left: Duration) -> String {
        let requests = pluralize(self.connections.in_flight() + self.connections.waiting(), "request");
        format!("draining: {requests}, {}s left", left.as_millis().div_ceil(1000))
    }
}

/// What must hold for the watchdog to be fed.
struct Checks<'a> {
    watch: &'a SystemdNotifier,
    /// When the keeper had last looked at the time that it was woken.
    looks: Option<u64>,
    warn_unreachable: WarnOnce,
}

impl Checks<'_> {
    fn all(&mut self, limit: Duration) -> Result<(), String> {
        self.workers_end()?;
        self.keeper_looks()?;
        self.answers(limit)
    }

    /// Not all workers are in requests whose time is over; or some may yet be hired.
    fn workers_end(&self) -> Result<(), String> {
        let SystemdNotifier { connections, pool, request_timeout, .. } = self.watch;
        let facts = pool.stats();
        if facts.busy < facts.threads || facts.busy == 0 || (facts.busy < facts.max_threads && facts.queued == 0) {
            return Ok(());
        }
        let is_over = |since: Instant| since.elapsed() > request_timeout.saturating_add(OVERDUE);
        // A worker may serve one request after the other of a connection: so both it and what it does must be old.
        let overdue = || {
            connections
                .all()
                .iter()
                .map(|connection| connection.snapshot())
                .filter(|at| at.busy && is_over(at.since))
                .count()
        };
        if pool.running_jobs().iter().all(|job| is_over(job.since)) && overdue() >= facts.busy {
            return Err(format!("{} stuck beyond the request timeout", pluralize(facts.busy, "worker")));
        }
        Ok(())
    }

    /// The keeper has looked since it was last woken, and is woken again.
    fn keeper_looks(&mut self) -> Result<(), String> {
        let monitor = &self.watch.monitor;
        let looks = monitor.looks.load(Ordering::Relaxed);
        if self.looks == Some(looks) {
            return Err("the monitor does not look".to_owned());
        }
        self.looks = Some(looks);
        monitor.wake();
        Ok(())
    }

    /// A client is answered.
    fn answers(&mut self, limit: Duration) -> Result<(), String> {
        let gate = &self.watch.gate;
        let deadline = Instant::now() + limit;
        let stream = match gate.call(limit.min(HANDSHAKE)) {
            Ok(stream) => stream,
            // The kernel has room and yet says nothing: there is a rule (IPAddressDeny=) against it, and so it tells
            // nothing about us. What remains must do.
            Err(error)
                if (error.kind() == ErrorKind::TimedOut && gate.accept_queue_len() == 0)
                    || error.kind() == ErrorKind::PermissionDenied =>
            {
                if self.warn_unreachable.is_first() {
                    log::warn!("cannot connect to itself, so that systemd is not told if it does not answer: {error}");
                }
                return Ok(());
            }
            Err(error) => return Err(format!("no connection to http://{}: {error}", gate.address())),
        };
        match self.ask(stream, deadline) {
            Some(status) if status < 500 => Ok(()), // a service may do without /livez
            Some(status) => Err(format!("GET /livez says {status}")),
            None => Err(format!("GET /livez is not answered within {limit:?}")),
        }
    }

    fn ask(&self, mut stream: TcpStream, deadline: Instant) -> Option<u16> {
        const ENOUGH: usize = 4096;
        let mut request = String::new();
        let host = self.watch.gate.address();
        write!(request, "GET /livez HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").ok()?;
        stream.write_all(request.as_bytes()).ok()?;
        stream.set_read_timeout(Some(DEAF)).ok()?;
        let mut response = Vec::new();
        let mut chunk = [0; 512];
        // To its end, so that the connection ends as any other.
        while Instant::now() < deadline && response.len() < ENOUGH && self.watch.changes.is_empty() {
            match stream.read(&mut chunk) {
                Ok(0) => break,
                Ok(n) => response.extend_from_slice(&chunk[..n]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(_) => break,
            }
        }
        status_of(&response)
    }
}

/// The status of a response, if it is one.
fn status_of(response: &[u8]) -> Option<u16> {
    let digits = response.strip_prefix(b"HTTP/1.1 ")?.get(..3)?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// systemd, as far as it listens.
struct NotifySocket {
    watchdog: Option<Duration>,
    /// What it was last told.
    status: String,
    warn_unheard: WarnOnce,
}

impl Default for NotifySocket {
    fn default() -> NotifySocket {
        let watchdog = sd_notify::watchdog_enabled().filter(|period| !period.is_zero());
        NotifySocket { watchdog, status: String::new(), warn_unheard: WarnOnce::default() }
    }
}

impl NotifySocket {
    /// Tells it something, and the status if that has changed.
    fn tell_status(&mut self, status: &str, more: &[NotifyState<'_>]) {
        let mut states = more.to_vec();
        if status != self.status {
            status.clone_into(&mut self.status);
            states.push(NotifyState::Status(status));
        }
        if !states.is_empty() {
            self.tell(&states);
        }
    }

    /// Asks for more time.
    fn ask_for(&mut self, time: Duration, status: &str) {
        // The most that the crate can ask for is more than an hour.
        let extension = NotifyState::ExtendTimeoutUsec(u32::try_from(time.as_micros()).unwrap_or(u32::MAX));
        if self.watchdog.is_some() {
            self.tell_status(status, &[extension, NotifyState::Watchdog]);
        } else {
            self.tell_status(status, &[extension]);
        }
    }

    fn tell(&mut self, states: &[NotifyState<'_>]) {
        if let Err(error) = sd_notify::notify(states)
            && self.warn_unheard.is_first()
        {
            log::warn!("systemd cannot be told anything: NOTIFY_SOCKET: {error}");
        }
    }
}
