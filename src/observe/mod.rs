//! Metrics, access log, state dump and systemd: all read what the other parts do, and none of them changes it.

pub(crate) mod access_log;
#[cfg(feature = "metrics")]
pub(crate) mod metrics;
pub(crate) mod snapshot;
pub(crate) mod state_dump;
pub(crate) mod systemd;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use crate::crew::member::MemberTable;
use crate::crew::pool::{Pool, PoolStats, RunningJob, Work};
use crate::engine::{Engines, Peer};
use crate::lifecycle::phase::Lifecycle;
use crate::sync::RateLimit;

/// Facts about one response, for observers.
#[derive(Debug)]
pub(crate) struct ResponseRecord<'a> {
    /// Number of the route among the router's patterns; beyond their end for the fallback.
    #[cfg_attr(not(feature = "metrics"), allow(dead_code, reason = "only metrics count by it"))]
    pub(crate) route: usize,
    /// Pattern of the route, never the path: the number of paths is unbounded, and labels must be bounded.
    pub(crate) pattern: &'a str,
    /// Method, if it is a common one, or `OTHER`.
    #[cfg_attr(not(feature = "metrics"), allow(dead_code, reason = "only metrics count by it"))]
    pub(crate) method: &'static str,
    /// The request, if an observer asked for it.
    pub(crate) request: Option<RequestFacts>,
    pub(crate) status: u16,
    /// Bytes written to the client, head included.
    pub(crate) bytes: u64,
    /// Why the response was not written to its end; `None` if it was.
    pub(crate) cut: Option<Cut>,
    /// Time from dispatch to the end of the write.
    pub(crate) duration: Duration,
    pub(crate) peer: Peer,
    /// The request's id.
    pub(crate) id: &'a str,
}

/// A request as it was received.
#[derive(Debug, Default)]
pub(crate) struct RequestFacts {
    pub(crate) method: String,
    pub(crate) target: String,
    /// `HTTP/1.0` or `HTTP/1.1`.
    pub(crate) version: &'static str,
    /// The client's address: the peer's, or what a trusted proxy says.
    pub(crate) client: Option<IpAddr>,
    /// Empty if the request has no such header; so is the next field.
    pub(crate) user_agent: String,
    pub(crate) referer: String,
}

/// Why a response was not written to its end. The connection was closed, so that the client sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// The client left, or did not read fast enough.
    Client,
    /// The response's reader failed, panicked, or gave another length than it had announced.
    Reader,
}

/// All causes, with their names in metrics and in the access log.
pub(crate) const CUTS: [(Cut, &str); 2] = [(Cut::Client, "client"), (Cut::Reader, "reader")];

impl Cut {
    pub(crate) fn name(self) -> &'static str {
        CUTS[self as usize].1
    }
}

/// Called after each response, on the thread that wrote it; cannot influence it.
pub(crate) type ResponseObserver = Box<dyn Fn(&ResponseRecord<'_>) + Send + Sync>;

/// Counters of dispatch. Responses are counted by their observers.
#[derive(Debug, Default)]
pub(crate) struct DispatchStats {
    /// Requests answered with 503 because no worker was free and the queue was full.
    pub(crate) shed: AtomicU64,
    /// Requests answered with an error because they broke the protocol or a limit.
    pub(crate) rejected: AtomicU64,
    /// Limits the lines about rejected requests.
    pub(crate) rejected_log: RateLimit,
    /// Panics of handlers.
    pub(crate) panics: AtomicU64,
}

/// The worker pool, whatever its jobs are.
pub(crate) trait WorkerPool: Send + Sync {
    fn stats(&self) -> PoolStats;
    /// The jobs that workers are running, by the peer of their connection.
    fn running_jobs(&self) -> Vec<RunningJob<Peer>>;
}

impl<W: Work<Id = Peer>> WorkerPool for Pool<W> {
    fn stats(&self) -> PoolStats {
        Pool::stats(self)
    }

    fn running_jobs(&self) -> Vec<RunningJob<Peer>> {
        Pool::running_jobs(self)
    }
}

/// The parts of a service that `/metrics`, `/status` and the state dump read.
#[derive(Clone)]
pub(crate) struct ServiceState {
    pub(crate) engines: Engines,
    pub(crate) pool: Arc<dyn WorkerPool>,
    pub(crate) lifecycle: Arc<Lifecycle>,
    pub(crate) dispatch: Arc<DispatchStats>,
    /// Capacity of the worker queue, in requests.
    pub(crate) queue: usize,
    pub(crate) max_connections: usize,
    pub(crate) members: MemberTable,
    /// Moment of the start.
    pub(crate) began: Instant,
}

/// The responses of one route, from the start of the service on.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct RouteSummary {
    /// Pattern of the route.
    pub(crate) route: String,
    pub(crate) responses: u64,
    /// Of these, with a status of 4xx.
    pub(crate) client_errors: u64,
    /// Of these, with a status of 5xx.
    pub(crate) server_errors: u64,
    /// Mean time from dispatch to the end of the response write.
    pub(crate) mean: Duration,
}
