//! The state of a service at one moment, for `/status`.
//!
//! The parts are read one after the other, each under its own lock, so the numbers of a busy service need not add up.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::crew::member::MemberState;
use crate::crew::pool::PoolStats;
use crate::engine::{ConnCensus, InFlight, Peer};
use crate::lifecycle::phase::Phase;
use crate::observe::ServiceState;
use crate::text::pluralize;

/// A request in flight, and where it is.
#[derive(Clone, Debug)]
pub(crate) struct Located {
    pub(crate) request: InFlight,
    /// The number of its worker. `None`: it is queued, or answered where it was received.
    pub(crate) worker: Option<u64>,
}

/// A stop in progress.
#[derive(Clone, Debug)]
pub(crate) struct Stopping {
    pub(crate) cause: String,
    /// Whether it ends in a re-exec.
    pub(crate) reexec: bool,
    pub(crate) lasted: Duration,
    pub(crate) grace_left: Duration,
    /// What the stop waits for, in words.
    pub(crate) waiting_for: Vec<String>,
}

/// The state of a service at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    pub(crate) phase: Phase,
    pub(crate) stopping: Option<Stopping>,
    pub(crate) uptime: Duration,
    pub(crate) members: Vec<MemberState>,
    pub(crate) census: ConnCensus,
    pub(crate) max_connections: usize,
    pub(crate) opened: u64,
    /// Connections that the kernel holds and that were not accepted yet.
    pub(crate) accept_queue: u32,
    /// Requests in flight, oldest first.
    pub(crate) requests: Vec<Located>,
    pub(crate) pipelined: usize,
    pub(crate) workers: PoolStats,
    /// Capacity of the worker queue, in requests.
    pub(crate) queue: usize,
    pub(crate) shed: u64,
    pub(crate) rejected: u64,
    pub(crate) panics: u64,
}

impl Snapshot {
    /// Open connections.
    pub(crate) fn connections(&self) -> usize {
        let ConnCensus { busy, idle, closing, aborted } = self.census;
        busy + idle + closing + aborted
    }
}

impl ServiceState {
    /// Every request in flight, oldest first, with its worker. Matched by peer: a worker keeps its connection, whose
    /// present request may not be the one that the worker was given.
    pub(crate) fn requests(&self) -> Vec<Located> {
        let jobs = self.pool.running_jobs();
        let worker = |peer: Peer| jobs.iter().find(|job| job.id == peer).map(|job| job.worker);
        let requests = self.engines.requests_in_flight().into_iter();
        requests.map(|request| Located { worker: worker(request.peer), request }).collect()
    }

    /// The state now, without the request of `asking` and its worker. `drain_delay` is the configured one.
    pub(crate) fn snapshot(&self, asking: Peer, drain_delay: Duration) -> Snapshot {
        let mut requests = self.requests();
        let all = requests.len();
        requests.retain(|located| located.request.peer != asking);
        let mut workers = self.pool.stats();
        workers.busy = workers.busy.saturating_sub(all - requests.len());
        let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let mut snapshot = Snapshot {
            phase: self.lifecycle.phase(),
            stopping: None,
            uptime: self.began.elapsed(),
            members: self.members.snapshot(),
            census: self.engines.census(),
            max_connections: self.max_connections,
            opened: self.engines.total(|stats| &stats.opened),
            accept_queue: self.engines.accept_queue_len(),
            requests,
            pipelined: self.engines.pipelined(),
            workers,
            queue: self.queue,
            shed: load(&self.dispatch.shed),
            rejected: load(&self.dispatch.rejected),
            panics: load(&self.dispatch.panics),
        };
        snapshot.stopping = self.stopping(&snapshot, drain_delay);
        snapshot
    }

    fn stopping(&self, snapshot: &Snapshot, drain_delay: Duration) -> Option<Stopping> {
        let announced = self.lifecycle.announced()?;
        let lasted = announced.started.elapsed();
        let mut waiting_for = Vec::new();
        let requests = snapshot.requests.len();
        match snapshot.phase {
            Phase::Serving | Phase::DrainDelay => {
                if lasted < drain_delay {
                    waiting_for.push(format!("the drain delay of {}", crate::text::human_duration(drain_delay)));
                }
                if requests > 0 {
                    waiting_for.push(format!("{} in flight", pluralize(requests, "request")));
                }
            }
            Phase::Draining => {
                waiting_for.push(format!("{} in flight", pluralize(requests, "request")));
                waiting_for.push(format!("{} to close", pluralize(snapshot.connections(), "connection")));
            }
            Phase::Stopping | Phase::Stopped => {
                let running = snapshot.members.iter().filter(|member| member.exit.is_none());
                waiting_for.extend(running.map(|member| format!("member {}", member.name)));
            }
        }
        Some(Stopping {
            cause: announced.cause,
            reexec: self.lifecycle.is_reexecuting(),
            lasted,
            grace_left: announced.deadline.saturating_duration_since(Instant::now()),
            waiting_for,
        })
    }
}
