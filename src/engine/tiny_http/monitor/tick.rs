//! One tick of the monitor: observations, checks, and actions.

use std::collections::HashSet;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use super::accept_health::AcceptHealth;
use super::capacity::{Capacity, Usage};
use super::heap::TrimTimer;
use super::late_handler;
use super::leaks::Leaks;
use super::lingering::{LINGERING_TIMEOUT, Lingering};
use super::quiescence::{MAX_HANDSHAKE_RTT, Quiescence, Step};
use super::schedule::IDLE_TICK;
use super::sockets::{Reasons, Rescan, SocketTable, Watched, WatchedSocket};
use super::starvation::Unstarve;
use super::timeouts::{self, Verdict};
use crate::engine::gate::AcceptGate;
use crate::engine::tiny_http::accept_point::AcceptPoint;
use crate::engine::tiny_http::conn_state::ConnState;
use crate::engine::tiny_http::connection::Connection;
use crate::engine::tiny_http::connections::ConnectionTable;
use crate::engine::tiny_http::throttle::{self, FloodDetector, Sample};
use crate::engine::tiny_http::unread_body;
use crate::engine::{CloseReason, Events, Settings, StopState};
use crate::sync::RateLimit;
use crate::sys::tcp::{tcp_info, unread_bytes};

/// Everything that the monitor watches, and its callbacks.
pub(super) struct Context {
    pub(super) sockets: SocketTable,
    pub(super) connections: Arc<ConnectionTable>,
    pub(super) gate: Arc<AcceptGate>,
    pub(super) accept: Arc<AcceptPoint>,
    pub(super) stop_state: Arc<StopState>,
    pub(super) settings: Settings,
    pub(super) events: Arc<Events>,
    /// Restarts tiny_http.
    pub(super) on_accept_stopped: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

/// The state that its thread keeps from one tick to the next.
#[derive(Default)]
pub(super) struct Memory {
    pub(super) watched: Watched,
    pub(super) scans: Scans,
    pub(super) leaks: Leaks,
    pub(super) logs: Logs,
    accept_health: AcceptHealth,
    quiescence: Quiescence,
    pub(super) throttle: FloodDetector,
    pub(super) lingering: Lingering,
    pub(super) capacity: Capacity,
    pub(super) trim_timer: TrimTimer,
}

#[derive(Default)]
pub(super) struct Scans {
    pub(super) rescan: Rescan,
    /// tiny_http may have closed sockets since the last scan.
    pub(super) ending: bool,
    /// Few descriptors are left.
    pub(super) fd_pressure: bool,
    /// Another thread still holds the duplicate of a socket that was removed.
    retired_left: bool,
}

/// Rate limits of log lines.
#[derive(Default)]
pub(super) struct Logs {
    unstarve: Unstarve,
    pub(super) unparsable: RateLimit,
}

impl Memory {
    /// Call when the monitor stops.
    pub(super) fn finish(&mut self) {
        // Lifts the filters: they drop the peers' acknowledgements as well, so that the kernel would keep these sockets
        // in FIN_WAIT after this process has exited.
        for watched in self.watched.values() {
            watched.connection.resume();
        }
        self.lingering.discard_all();
    }
}

/// The events since the tick before.
#[derive(Default)]
pub(super) struct Happened {
    /// Cookies of the sockets with events.
    pub(super) active: HashSet<u64>,
    /// A connection has arrived, or a request of an unknown one.
    pub(super) connected: bool,
    /// A request has arrived.
    pub(super) request: bool,
    /// [`Monitor::wake`](super::Monitor::wake) was called, or a command has come.
    pub(super) woken: bool,
    pub(super) must_scan: bool,
    /// It is only a moment since the tick before.
    pub(super) early: bool,
}

impl Happened {
    pub(super) fn is_anything(&self) -> bool {
        !self.active.is_empty() || self.connected || self.request || self.woken
    }
}

/// The result of a tick.
pub(super) struct Outcome {
    /// A check must be repeated soon.
    pub(super) again: bool,
    /// The number of the stop of accepting in which nothing is left.
    pub(super) quiescent: Option<u64>,
}

impl Context {
    /// Whether something may become due without an event.
    pub(super) fn has_deadlines(&self, memory: &Memory) -> bool {
        self.connections.connections() > 0
            || !memory.watched.is_empty()
            || memory.trim_timer.is_pending()
            || self.gate.is_closed()
            || memory.scans.retired_left
    }

    /// Runs all checks.
    pub(super) fn tick(&self, happened: &Happened, memory: &mut Memory) -> Outcome {
        let now = Instant::now();
        let accept_stopped = self.stop_state.accept_stopped();
        let draining = accept_stopped.is_some();
        let stop = self.stop_state.stop_number();
        memory.quiescence.begin(stop);
        let path_empty = accept_stopped.is_some_and(|since| self.is_accept_path_empty(since, memory, now));
        let full = memory.scans.rescan.is_full_tick(IDLE_TICK, draining, now);
        let arriving = happened.connected || self.accept.queue_len() > 0;
        let ending = happened.must_scan || memory.scans.ending;
        self.accept.brake().find_thread();
        // Connections are waiting for it: it is released at this tick.
        let braked = self.accept.brake().is_on();
        if self.connections.take_engine_queue_emptied() {
            memory.leaks.note_queue_emptied(now);
        }
        if memory.scans.rescan.is_due(Reasons { full_tick: full, arriving, ending, urgent: draining || braked }, now) {
            self.scan(memory, now);
        }
        // Another thread's scan may have found sockets whose events were taken at this tick.
        memory.watched.extend(self.sockets.take_fresh());
        memory.scans.retired_left = self.sockets.close_retired();
        let again = arriving | self.check_sockets(happened, full, memory, now);
        memory.trim_timer.update(memory.watched.len(), now);
        memory.lingering.check(now, if draining { self.settings.keepalive_min } else { LINGERING_TIMEOUT });
        if memory.accept_health.must_restart(self.accept.brake().is_thread_alive(), now) {
            if let Some(restart) = self.on_accept_stopped.get() {
                restart();
            }
        }
        let is_full = !draining && self.check_capacity(braked, memory, now);
        self.sockets.set_accept_limit();
        if braked && (!is_full || self.gate.is_closed()) {
            self.accept.release_brake();
        }
        if !draining {
            let delayed = happened.woken && self.stop_state.announced().is_some();
            if delayed && !self.connections.has_requests_older_than_drain(&self.stop_state) {
                (self.events.changed)();
            }
        }
        Outcome {
            again: again
                || braked
                || memory.scans.ending
                || !memory.lingering.is_empty()
                || memory.accept_health.is_dead(),
            quiescent: stop.filter(|_| self.check_quiescence(path_empty, memory, now)),
        }
    }

    fn is_accept_path_empty(&self, stopped: Instant, memory: &mut Memory, now: Instant) -> bool {
        let rtt = |watched: &WatchedSocket| tcp_info(&*watched.socket).ok().map(|info| info.min_rtt);
        let rtts = || memory.watched.values().filter_map(rtt).max();
        memory.quiescence.note_rtts(|| if self.gate.is_passed() { Some(MAX_HANDSHAKE_RTT) } else { rtts() });
        if self.gate.is_sealed() && !self.accept.is_called() {
            memory.quiescence.forget_probe(); // it was sent back to the listening socket since
        }
        let stopped_for = now.saturating_duration_since(stopped);
        memory.quiescence.accept_path_is_empty(stopped_for, self.accept.queue_len(), now)
    }

    /// Checks each socket on which something happened, and at a full tick all.
    fn check_sockets(&self, happened: &Happened, full: bool, memory: &mut Memory, now: Instant) -> bool {
        let draining = self.stop_state.accept_stopped().and(self.stop_state.announced());
        let queue_empty = self.connections.is_engine_queue_empty();
        let mut starved = 0;
        let mut again = false;
        for (cookie, watched) in &mut memory.watched {
            let active = happened.active.contains(cookie)
                || watched.starved.is_suspected()
                || watched.backlog.has_pending()
                || watched.closed_at.is_some();
            if !active && !full {
                continue;
            }
            let seen = watched.observe();
            let taken = seen.tcp.bytes_received.saturating_sub(seen.unread);
            let parsed = watched.connection.bytes_parsed();
            // At a full tick all: the event of a socket may have been taken before it was watched.
            starved += usize::from(watched.starved.update(seen.unread, seen.tcp.bytes_received));
            again |= watched.starved.is_suspected();
            if active {
                let requests = watched.connection.requests();
                watched.backlog.update(Sample { taken, parsed, requests }, queue_empty);
                again |= watched.backlog.has_pending();
            }
            watched.accounted.update(!seen.busy, seen.unread, taken, parsed);
            if watched.head.is_exceeded(taken, parsed) && seen.state == ConnState::Open {
                self.abort(&watched.connection, Some(CloseReason::HeadTooLarge));
                memory.scans.ending = true;
                continue;
            }
            if seen.tcp.closed && watched.closed_at.is_none() {
                watched.closed_at = Some(now);
                starved += usize::from(taken == 0); // or it was reset before tiny_http had a thread for it
            }
            let throttle = watched.connection.throttle_number();
            if watched.backlog.ignores_throttle(throttle, seen.tcp.bytes_received) {
                self.abort(&watched.connection, Some(CloseReason::PipelineOverflow));
                memory.scans.ending = true;
                continue;
            }
            let verdict = timeouts::check(&seen, &self.settings, draining, now);
            memory.scans.ending |= self.act(verdict, &watched.connection);
        }
        self.check_throttle(full, draining.is_some(), memory, now);
        memory.logs.unstarve.knock(starved, happened.early, &self.accept, &self.connections.counts.unstarved);
        again || starved > 0
    }

    /// Throttles connections that exceed their share of a flood, and resumes them when it is over.
    fn check_throttle(&self, full: bool, draining: bool, memory: &mut Memory, now: Instant) {
        let total = memory.watched.values().map(|watched| watched.backlog.estimated_requests()).sum();
        let flood = memory.throttle.update(now, total);
        self.connections.set_throttling(flood);
        if !flood && !full {
            return;
        }
        for WatchedSocket { connection, backlog, .. } in memory.watched.values_mut() {
            if flood && backlog.exceeds_share() {
                connection.throttle(&self.connections.counts);
            }
            if full && backlog.should_probe(connection.is_throttled(), now, draining) {
                connection.resume();
            }
        }
        if flood {
            let all = memory.watched.values_mut().map(|watched| (&mut watched.backlog, &*watched.connection));
            throttle::resume_oldest(all, now, total);
        }
    }

    /// True if tiny_http closes the connection soon.
    fn act(&self, verdict: Verdict, connection: &Connection) -> bool {
        match verdict {
            Verdict::Keep => return false,
            Verdict::Ending => {}
            Verdict::ExpireBody => {
                connection.expire_body();
                return false;
            }
            Verdict::TimeOut => {
                late_handler::answer_for(connection, &self.sockets, &self.connections.counts, self.settings.automatic);
            }
            Verdict::ShutRead => {
                self.connections.count_close(CloseReason::Drain);
                connection.shutdown_read();
            }
            Verdict::Abort(why) => self.abort(connection, why),
        }
        true
    }

    /// Aborts a connection, and drops the requests that are pipelined on it.
    fn abort(&self, connection: &Connection, why: Option<CloseReason>) {
        if let Some(why) = why {
            self.connections.count_close(why);
            log::debug!("{} is closed: {why:?}", connection.peer);
        }
        connection.abort();
        let rest = self.connections.take_pipelined(connection);
        unread_body::discard_all(connection, rest, |peer| self.sockets.abort_peer(peer));
    }

    /// Closes idle connections when there are too many, and the gate while that is not enough. True if no more may be
    /// accepted.
    fn check_capacity(&self, braked: bool, memory: &mut Memory, now: Instant) -> bool {
        let mut usage = Usage {
            max: self.settings.max_connections,
            leaked: memory.leaks.present(),
            all: self.connections.connections(),
            open: 0,
            waiting: if braked { self.accept.queue_len() as usize } else { 0 },
            gate_closed: self.gate.is_closed(),
            fd_pressure: memory.scans.fd_pressure || memory.scans.rescan.is_fd_exhausted(),
        };
        if memory.capacity.is_at_ease(usage) {
            return false;
        }
        let all: Vec<_> = self.connections.all().into_iter().map(|one| (one.snapshot(), one)).collect();
        usage.all = all.len();
        usage.open = all.iter().filter(|(seen, _)| seen.conn_state == ConnState::Open).count();
        let excess = memory.capacity.excess(usage, now);
        let mut idle = Vec::new();
        if excess > 0 {
            let has_input = |one: &Connection| one.socket().is_none_or(|socket| unread_bytes(&*socket) > 0);
            idle.extend(
                all.iter().filter(|(seen, one)| !seen.busy && seen.conn_state == ConnState::Open && !has_input(one)),
            );
            idle.sort_by_key(|(seen, _)| seen.since);
        }
        let evicted = idle.len().min(excess);
        for (_, connection) in idle.into_iter().take(excess) {
            self.abort(connection, Some(CloseReason::Evicted));
            memory.scans.ending = true;
        }
        if let Some(closed) = memory.capacity.gate(usage, evicted) {
            if let Err(error) = self.gate.set_closed(closed) {
                log::debug!("cannot open or close the accept gate: {error}");
            }
        }
        usage.is_full()
    }

    fn check_quiescence(&self, path_empty: bool, memory: &mut Memory, now: Instant) -> bool {
        let nothing_left = self.connections.in_flight() == 0
            && memory.watched.is_empty()
            && !self.sockets.has_fresh()
            && memory.lingering.is_empty();
        match memory.quiescence.step(nothing_left, path_empty, now) {
            Step::Wait => false,
            Step::Probe => {
                let _ = self.accept.knock(); // if it fails, two ticks are the proof
                false
            }
            Step::Done => true,
        }
    }
}
