//! The member that notifies systemd: `sd_notify(3)`.
//!
//! | when | what is written |
//! | --- | --- |
//! | the service answers | `READY=1` |
//! | each half of the watchdog's period, if it still answers | `WATCHDOG=1`, and `STATUS=serving on http://127.0.0.1:8088, 12 connections; allout 0.1.0, native engine` |
//! | the drain begins | `STOPPING=1` (before a re-exec `RELOADING=1`) |
//! | each second of a drain | `EXTEND_TIMEOUT_USEC=`, `WATCHDOG=1`, `STATUS=draining: 3 requests, 27s left` |
//!
//! # What `WATCHDOG=1` means
//!
//! A client would be answered now: a request for `/livez` on a new connection was answered; the engine's monitor ticks
//! when it is woken; and not all workers are stuck in requests that have timed out. A check that fails is repeated a
//! few times within the watchdog's period. In a drain `WATCHDOG=1` means only that the grace period, which bounds the
//! drain, is not over: connections of our own would delay it.
//!
//! # When it wakes up
//!
//! For each check of the watchdog, and when the phase changes. Without a watchdog the thread sleeps while the service
//! serves, and the status has no numbers, because they would be out of date.

mod notify;
mod watchdog;

use std::env;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sd_notify::NotifyState;

use crate::engine::Engines;
use crate::lifecycle::phase::{Lifecycle, Phase};
use crate::observe::WorkerPool;
use crate::observe::systemd::notify::NotifySocket;
use crate::observe::systemd::watchdog::Checks;
use crate::sync::WarnOnce;
use crate::text::pluralize;

/// Time for the first answer before `READY=1`; there may be no watchdog to derive it from.
const FIRST_ANSWER: Duration = Duration::from_secs(5);
/// Pause between two checks before `READY=1`.
const START_RETRY: Duration = Duration::from_millis(100);
/// Interval of notifications in a drain.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);
/// Extension of systemd's timeout that each notification asks for: ten times [`PROGRESS_INTERVAL`], for a busy machine,
/// and still short, so that systemd does not wait for the whole grace if the process is stuck in its drain.
const EXTENSION: Duration = Duration::from_secs(10);
/// Time for the exit of the process after the grace.
const EXIT_ALLOWANCE: Duration = Duration::from_secs(5);

/// The member, and the parts that it reads.
pub(crate) struct SystemdNotifier {
    pub(crate) engines: Engines,
    pub(crate) lifecycle: Arc<Lifecycle>,
    pub(crate) pool: Arc<dyn WorkerPool>,
    pub(crate) request_timeout: Duration,
    pub(crate) grace: Duration,
}

/// Whether systemd asked for notifications.
pub(crate) fn is_enabled() -> bool {
    env::var_os("NOTIFY_SOCKET").is_some_and(|path| !path.is_empty())
}

impl SystemdNotifier {
    /// Runs until the service stops.
    pub(crate) fn run(&self) {
        let mut socket = NotifySocket::default();
        let mut checks = Checks {
            engines: self.engines.clone(),
            pool: Arc::clone(&self.pool),
            stop: self.lifecycle.stop().clone(),
            request_timeout: self.request_timeout,
            ticks: vec![None; self.engines.iter().count()],
            unreachable: WarnOnce::default(),
        };
        socket.notify_status("starting", &[]);
        if self.start(&mut socket, &checks) {
            if let Some(period) = socket.watchdog {
                self.serve(period, &mut socket, &mut checks);
            } else {
                let _ = self.lifecycle.stop().draining().recv();
            }
        }
        self.drain(&mut socket);
    }

    /// Waits until the service answers. False if the drain begins before.
    fn start(&self, socket: &mut NotifySocket, checks: &Checks) -> bool {
        let warned = WarnOnce::default();
        while let Err(why) = checks.check_http(FIRST_ANSWER) {
            if self.lifecycle.stop().wait_draining(START_RETRY) {
                return false;
            }
            if warned.is_first() {
                log::warn!("not ready yet: {why}");
            }
        }
        socket.notify_status(&self.serving(socket.watchdog.is_some()), &[NotifyState::Ready]);
        true
    }

    /// Feeds the watchdog while the checks hold, until the drain begins.
    fn serve(&self, period: Duration, socket: &mut NotifySocket, checks: &mut Checks) {
        let failing = WarnOnce::default();
        let mut next = Instant::now() + period / 2;
        while !self.lifecycle.stop().wait_draining(next.saturating_duration_since(Instant::now())) {
            let status = self.serving(true); // counted before the checks open a connection
            match checks.check_all(period / 8) {
                Ok(()) => {
                    socket.notify_status(&status, &[NotifyState::Watchdog]);
                    if failing.reset() {
                        log::info!("the watchdog's checks pass again");
                    }
                    next = Instant::now() + period / 2;
                }
                Err(_) if self.lifecycle.is_draining() => {} // the drain interrupted it
                Err(why) => {
                    if failing.is_first() {
                        log::warn!("watchdog not fed: {why}");
                    }
                    socket.notify_status(&format!("stuck: {why}"), &[]);
                    next = Instant::now() + period / 16;
                }
            }
        }
    }

    /// Extends systemd's timeout step by step, up to the grace.
    fn drain(&self, socket: &mut NotifySocket) {
        let began = Instant::now();
        let left = || self.grace.saturating_sub(began.elapsed());
        // In a datagram of its own: it starts the timeout that the next datagram extends.
        let mut reexecuting = self.lifecycle.is_reexecuting();
        if reexecuting {
            // MONOTONIC_USEC is required since systemd 253, to tell overlapping reloads apart.
            let now = NotifyState::monotonic_usec_now().ok();
            socket.notify(&[Some(NotifyState::Reloading), now].into_iter().flatten().collect::<Vec<_>>());
        } else {
            socket.notify(&[NotifyState::Stopping]);
        }
        while self.lifecycle.phase() < Phase::Stopping {
            // A stop that comes during a re-exec replaces it.
            if reexecuting && !self.lifecycle.is_reexecuting() {
                reexecuting = false;
                socket.notify(&[NotifyState::Stopping]);
            }
            if !left().is_zero() {
                socket.extend_timeout(left().min(EXTENSION) + EXIT_ALLOWANCE, &self.draining(left()));
            }
            self.lifecycle.stop().wait_timeout(PROGRESS_INTERVAL);
        }
        // The last notification: this member stops now as well.
        let word = if self.lifecycle.is_reexecuting() { "re-executing" } else { "stopped" };
        let status = match self.engines.in_flight() {
            0 => format!("{word}: every request was answered"),
            n => format!("{word}: {} abandoned", pluralize(n, "request")),
        };
        socket.extend_timeout(left().saturating_add(EXIT_ALLOWANCE), &status);
    }

    fn addresses(&self) -> String {
        let all: Vec<_> = self.engines.iter().map(|engine| engine.address().url()).collect();
        all.join(", ")
    }

    fn serving(&self, with_numbers: bool) -> String {
        let connections = || format!(", {}", pluralize(self.engines.connections(), "connection"));
        let numbers = if with_numbers { connections() } else { String::new() };
        let (version, engine) =
            (env!("CARGO_PKG_VERSION"), self.engines.iter().next().map_or("no", |engine| engine.kind().name()));
        format!("serving on {}{numbers}; allout {version}, {engine} engine", self.addresses())
    }

    fn draining(&self, left: Duration) -> String {
        let requests = pluralize(self.engines.in_flight() + self.engines.pipelined(), "request");
        format!("draining: {requests}, {}s left", left.as_millis().div_ceil(1000))
    }
}
