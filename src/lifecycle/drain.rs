//! The drain: the work of the thread that runs the crew, from the first message until the last member has stopped.
//!
//! # The phases
//!
//! 1. *Drain delay*: for as long as configured (0 s by default), and until the requests that were in flight at the first
//!    message are done. Everything is served as before, new connections included, so that a load balancer can see
//!    `/healthz` answer 503, and a health check does not wait behind slow requests. Responses say `Connection: close`.
//! 2. *Draining*. Accepting stops: the kernel ignores new connections, and what it had queued is accepted and answered.
//!    (A listening socket that a service manager passed outlives this process: its queue is left to the next holder.)
//!    Requests in flight finish; the last response of a connection says `Connection: close`. An idle connection has
//!    `keepalive_min` to send one more request; then its input is shut. The phase ends when no connection is left.
//! 3. *Stopping*. Members are told to stop, and each exit is waited for.
//! 4. *Stopped*.
//!
//! # Before a re-exec
//!
//! The listening socket goes to the next image, and with it what the kernel queues: so connections that arrive while the
//! old image drains wait for the next one. A request that began just before accepting stopped must not make all of them
//! wait until it is done. So accepting stops for an attempt only, 200 to 800 ms; if connections are left by then it resumes, what was
//! queued is served, and the next attempt follows once the requests in flight then are done. A new connection waits for an
//! attempt at most, as long as one succeeds within three quarters of the grace period. After that accepting stops for
//! good, so that every request that began in the drain has at least a quarter of the grace period, and new connections
//! wait for those that are in flight then.
//!
//! A stop that arrives before the socket was left to the next image replaces the re-exec: accepting resumes, and the drain
//! goes on as that of a stop. One that arrives later is for the next image.
//!
//! # Why nothing is lost
//!
//! A request that a client has sent completely is always in one of the places below. It only ever moves down the list, and
//! the checks go down it as well, so that none slips past them:
//!
//! 1. in a handshake whose final ACK is on the wire, so that the client considers itself connected. No API shows these, so
//!    accepting stays stopped for at least the longest round trip to a client;
//! 2. in the accept queue: `tcp_info` of the listening socket counts it;
//! 3. between the accept queue and a descriptor, for a few instructions of the thread that accepts: no connection is there
//!    once that thread, which accepts one after the other, has accepted a connection of our own that was made later;
//! 4. in the receive buffer of a connection: `FIONREAD` counts its bytes, and input is shut only where there are none.
//!    What arrives between the check and the shutdown is still read, since the kernel delivers what it has received before
//!    it reports the end (`tcp_recvmsg` looks at the queue before `RCV_SHUTDOWN`);
//! 5. in the engine, read and not yet dispatched: the descriptor of its connection is open until the request is dropped,
//!    no connection counts as closed while its descriptor is open, and what arrives from a connection whose input was
//!    shut is answered all the same;
//! 6. in the connection table, queued or in flight: counted, and its descriptor is open as well.
//!
//! A connection whose handshake ends while the kernel ignores new ones inherits the filter that makes it do so, until the
//! engine finds it and lifts the filter; the client retransmits. Such a connection has longer before its input is shut.
//!
//! Places 1 to 3 fill again if packets of new connections pass the filter, as those do that arrive with a TTL of 255.
//! So once all places are empty the kernel is told to refuse new connections (the gate is *sealed*, see
//! [`gate`](crate::engine::gate)), which lets those handshakes end that have begun, and the places are checked once
//! more. Where such clients were seen, 1 gets the longest time, and connections are refused from 1.2 s after the end of
//! accepting on, since those clients may never leave all places empty at once.
//!
//! Engines stop with the members, so after all of these places are empty, and accepting has been stopped all along. Where
//! the socket is handed over, places 1 and 2 belong to its next holder, and the connection of place 3 is made to a private
//! socket from which the engine accepts instead.
//!
//! One case remains, and is HTTP's own: a client that was silent for longer than `keepalive_min` and sends a request at
//! the very moment at which its connection is closed cannot know whether it was processed (RFC 9112, section 9.5).

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::clock::saturating_add;
use crate::crew::Crew;
use crate::crew::hooks::{self, Hook};
use crate::crew::member::SlotId;
use crate::crew::shutdown::Shutdown;
use crate::engine::{Ending, Engines};
use crate::lifecycle::phase::{Lifecycle, Phase};
use crate::text::{human_duration, pluralize};

/// Interval of the log lines that say how far the drain is.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// Time left for members to stop when requests have used up the grace period, so that the exit comes within half a second
/// of its end.
const JOIN_GRACE: Duration = Duration::from_millis(250);

/// Time for which a re-exec stops accepting to see whether all connections end, beyond `keepalive_min`, at the first
/// attempt: several times what closing idle connections takes. Each attempt has twice the time of the one before, because
/// a machine that is busy with something else takes longer for everything.
const FIRST_ATTEMPT: Duration = Duration::from_millis(200);

/// Longest attempt: less than a client notices, and than the kernel takes to retransmit a SYN (1 s).
const MAX_ATTEMPT: Duration = Duration::from_millis(800);

/// Minimum time between two attempts, in which queued connections are served.
const ATTEMPT_PAUSE: Duration = Duration::from_millis(400);

/// Longest time from the end of accepting until the gate is sealed (see the module text), if packets of new connections
/// pass the filter: handshakes that were under way are over, one that had to be repeated (after 1 s,
/// `TCP_TIMEOUT_INIT`) included.
const SEAL_AFTER: Duration = Duration::from_millis(1200);

/// The parts that a drain works on.
pub(crate) struct Drain {
    pub(crate) engines: Engines,
    pub(crate) lifecycle: Arc<Lifecycle>,
    /// The threads of the engines: without them quiescence is not detected.
    pub(crate) engine_threads: Vec<SlotId>,
    /// The worker pool.
    pub(crate) workers: SlotId,
    pub(crate) delay: Duration,
    pub(crate) keepalive_min: Duration,
    /// For each engine whether its listening socket is a service manager's, and outlives this service.
    pub(crate) outlive_us: Vec<bool>,
}

/// Reason why a wait for quiescence ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// No connection is left, or none that could still be detected.
    Quiescent,
    /// A second signal, or the time is up.
    Over,
    /// A stop has replaced the re-exec.
    Stopped,
}

impl Drain {
    /// Runs the drain until all members but the signal thread have stopped. Only a second signal shortens it. True if the
    /// listening socket was left to the next image.
    pub(crate) fn run(&self, crew: &mut Crew, shutdown: &mut Shutdown, before: Vec<Hook>, after: Vec<Hook>) -> bool {
        self.lifecycle.enter(Phase::DrainDelay);
        self.engines.announce_close();
        self.log(&shutdown.cause.announcement());
        hooks::run("before_drain", before, saturating_add(shutdown.started, shutdown.grace / 2), crew, shutdown);
        self.drain_delay(crew, shutdown);

        let handed_over = self.hand_over(crew, shutdown);
        if !handed_over {
            self.finish_requests(crew, shutdown);
        }
        if shutdown.forced_by.is_none() {
            self.report_abandoned(shutdown);
        }
        let until = shutdown.deadline().max(Instant::now() + JOIN_GRACE / 2);
        hooks::run("after_drain", after, until, crew, shutdown);
        self.lifecycle.enter(Phase::Stopping);
        self.log(&format!("stopping members {}", shutdown.cause.time_after(shutdown.started.elapsed())));
        shutdown.extend_to(Instant::now() + JOIN_GRACE);
        crew.stop_members(shutdown);
        handed_over
    }

    /// Serves on until the drain delay is over and the requests in flight at the first message are done, but not beyond
    /// the soft deadline.
    fn drain_delay(&self, crew: &mut Crew, shutdown: &mut Shutdown) {
        let until = saturating_add(shutdown.started, self.delay);
        let mut progress = Progress::new();
        if !self.delay.is_zero() {
            log::info!("drain delay: serving as before for {}", human_duration(self.delay));
        }
        while shutdown.forced_by.is_none() && crew.all_running() {
            let now = Instant::now();
            let over = now >= until && !self.engines.has_requests_older_than_drain();
            if over || now >= shutdown.soft_deadline() {
                return;
            }
            let next = if now < until { until } else { shutdown.soft_deadline() };
            self.wait(next.min(shutdown.soft_deadline()), &mut progress, crew, shutdown);
        }
    }

    /// Stops accepting, and waits until no connection is left or the deadline has passed.
    fn finish_requests(&self, crew: &mut Crew, shutdown: &mut Shutdown) {
        self.lifecycle.enter(Phase::Draining);
        let outlives_us = |engine: usize| self.outlive_us.get(engine).is_some_and(|outlives| *outlives);
        let what = if outlives_us(0) {
            "new connections are left to the next instance"
        } else {
            "no longer accepting connections"
        };
        self.log(&format!("draining: {what}"));
        self.engines.stop_accepting(|engine| if outlives_us(engine) { Ending::HandOver } else { Ending::Filter });
        loop {
            let until = saturating_add(Instant::now(), SEAL_AFTER).min(shutdown.deadline());
            let end = self.wait_quiescent(until, crew, shutdown);
            let is_over = shutdown.forced_by.is_some() || until >= shutdown.deadline();
            if end == End::Quiescent || is_over || self.engines.is_gate_passed() {
                break;
            }
        }
        if shutdown.forced_by.is_none() {
            self.engines.seal(|engine| !outlives_us(engine));
            self.wait_quiescent(shutdown.deadline(), crew, shutdown);
        }
    }

    /// Leaves the listening socket to the next image, if this is a re-exec that no stop replaces: see the module text.
    /// True if it was left; then no connection is left, or the deadline has passed, or a second signal came.
    fn hand_over(&self, crew: &mut Crew, shutdown: &mut Shutdown) -> bool {
        let mut attempt = FIRST_ATTEMPT;
        while shutdown.is_reexec() && shutdown.forced_by.is_none() {
            let last = saturating_add(shutdown.started, shutdown.grace / 4 * 3).min(shutdown.soft_deadline());
            self.engines.stop_accepting(|_| Ending::HandOver);
            let now = Instant::now();
            let until = if now >= last {
                shutdown.deadline()
            } else {
                saturating_add(now, self.keepalive_min.saturating_add(attempt))
            };
            match self.wait_quiescent(until, crew, shutdown) {
                End::Quiescent => {}
                End::Over if now >= last || shutdown.forced_by.is_some() => {}
                End::Over | End::Stopped => {
                    self.engines.resume_accepting();
                    log::debug!("accepting again: {}", self.summary());
                    self.pause(last, crew, shutdown);
                    attempt = (attempt * 2).min(MAX_ATTEMPT);
                    continue;
                }
            }
            self.lifecycle.enter(Phase::Draining);
            self.log("draining: new connections are left to the next image");
            return true;
        }
        false
    }

    /// Serves until the requests that were in flight when accepting resumed are done, or until `until`.
    fn pause(&self, until: Instant, crew: &mut Crew, shutdown: &mut Shutdown) {
        let mut progress = Progress::new();
        let resumed = Instant::now();
        while shutdown.is_reexec() && shutdown.forced_by.is_none() && crew.all_running() {
            let now = Instant::now();
            let rested = now >= resumed + ATTEMPT_PAUSE;
            if now >= until || (rested && !self.engines.has_requests_older_than_drain()) {
                return;
            }
            let next = if rested { until } else { until.min(resumed + ATTEMPT_PAUSE) };
            self.wait(next, &mut progress, crew, shutdown);
        }
    }

    /// Waits until no connection is left, but not beyond `until`, or the deadline of a stop that replaces a re-exec.
    fn wait_quiescent(&self, until: Instant, crew: &mut Crew, shutdown: &mut Shutdown) -> End {
        let reexec = shutdown.is_reexec();
        let mut progress = Progress::new();
        while shutdown.forced_by.is_none() {
            if self.engines.is_quiescent() {
                return End::Quiescent;
            }
            if reexec && !shutdown.is_reexec() {
                return End::Stopped;
            }
            let now = Instant::now();
            if now >= shutdown.soft_deadline() {
                self.lifecycle.expire();
            }
            if now >= until {
                return End::Over;
            }
            if self.engine_threads.iter().any(|thread| !crew.is_running(*thread)) && self.engines.in_flight() == 0 {
                return End::Quiescent; // without that engine's threads quiescence cannot be detected
            }
            self.wait(shutdown.next_deadline(now).min(until), &mut progress, crew, shutdown);
        }
        End::Over
    }

    /// Waits for one event until `until`, and logs the progress when it is time to.
    fn wait(&self, until: Instant, progress: &mut Progress, crew: &mut Crew, shutdown: &mut Shutdown) {
        if progress.is_due() {
            let left = shutdown.deadline().saturating_duration_since(Instant::now());
            self.log(&format!("draining: {} of grace left", human_duration(left)));
        }
        crew.wait_event(until.min(progress.next), shutdown);
        self.lifecycle.announce(shutdown);
    }

    fn report_abandoned(&self, shutdown: &mut Shutdown) {
        for request in self.engines.requests_in_flight() {
            log::warn!("abandoned: {request}");
            shutdown.abandoned.push(request.to_string());
            shutdown.mark_reported(self.workers);
        }
    }

    /// Logs how far the drain is, in words and in fields.
    fn log(&self, what: &str) {
        let (in_flight, pipelined) = (self.engines.in_flight(), self.engines.pipelined());
        let connections = self.engines.connections();
        log::info!(in_flight, pipelined, connections; "{what} ({})", self.summary());
    }

    fn summary(&self) -> String {
        let pipelined = match self.engines.pipelined() {
            0 => String::new(),
            n => format!(" ({n} more pipelined)"),
        };
        let in_flight = pluralize(self.engines.in_flight(), "request");
        format!("{in_flight} in flight{pipelined}, {} open", pluralize(self.engines.connections(), "connection"))
    }
}

/// Schedule of the log lines about the progress of the drain.
struct Progress {
    next: Instant,
}

impl Progress {
    fn new() -> Progress {
        Progress { next: Instant::now() + PROGRESS_INTERVAL }
    }

    fn is_due(&mut self) -> bool {
        let now = Instant::now();
        let due = now >= self.next;
        if due {
            self.next = now + PROGRESS_INTERVAL;
        }
        due
    }
}
