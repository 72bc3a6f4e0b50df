//! The number of connections and workers that the limits of the process allow.

use std::fmt;

use super::config::Config;
use super::error::StartError;
use crate::engine::{ConnectionCost, EngineKind};
use crate::sys::address_space::AddressSpace;
use crate::sys::limits;

/// Descriptors for everything but connections: sockets, the log, epoll, duplicates.
const OTHER_DESCRIPTORS: u64 = 64;
/// Threads for everything but connections and workers.
const OTHER_THREADS: u64 = 16;
/// Memory for everything but connections and workers, in bytes. An idle process is charged 0.8 MiB (native, glibc) to
/// 1.1 MiB (tiny-http); the rest is for metrics, the log and the pages of the binary.
const OTHER_MEMORY: u64 = 4 * 1024 * 1024;
/// Memory that a worker is charged, in bytes: its stacks, in the program and in the kernel, and its share of the heap.
/// Measured with 500 workers that wait: 46 KiB (glibc, Linux 6.18); the rest is for what a handler puts on its stack.
const MEMORY_OF_WORKER: u64 = 56 * 1024;
/// Fewest connections and workers, whatever the limits are: below it nothing works.
const MIN_CONNECTIONS: u64 = 8;
const MIN_WORKERS: u64 = 4;
/// Fewest descriptors and threads for an engine with a thread for each connection. Tried with a hundred clients: with 40
/// descriptors no client is answered afterwards, and with 8 threads it does not start.
const MIN_DESCRIPTORS: u64 = OTHER_DESCRIPTORS;
const MIN_THREADS: u64 = OTHER_THREADS;

/// Limits of the process.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) descriptors: u64,
    pub(super) threads: u64,
    /// In bytes.
    pub(super) memory: u64,
    pub(super) address_space: AddressSpace,
}

impl Limits {
    /// The limits in force, once the soft limit on descriptors has been raised.
    fn of_this_process() -> Limits {
        Limits {
            descriptors: limits::raise_nofile_limit(),
            threads: limits::max_threads(),
            memory: limits::max_memory(),
            address_space: AddressSpace::of_this_process(),
        }
    }

    /// The limits of this process, if `engine` can work with them.
    /// Errors: [`StartError::Limit`]: one is too low.
    pub(super) fn for_engine(engine: EngineKind) -> Result<Limits, StartError> {
        let limits = Limits::of_this_process();
        limits.check(engine).map(|()| limits)
    }

    /// Errors: [`StartError::Limit`]: `engine` cannot work with them.
    fn check(&self, engine: EngineKind) -> Result<(), StartError> {
        if engine.cost_of_connection().threads == 0 {
            return Ok(());
        }
        let too_low = |limit: String, needed: String| {
            Err(StartError::Limit(format!("{limit}; the engine {} needs at least {needed}", engine.name())))
        };
        if self.descriptors < MIN_DESCRIPTORS {
            return too_low(format!("RLIMIT_NOFILE is {}", self.descriptors), MIN_DESCRIPTORS.to_string());
        }
        if self.threads < MIN_THREADS {
            let limit = format!("the limit on threads (pids.max or RLIMIT_NPROC) is {}", self.threads);
            return too_low(limit, MIN_THREADS.to_string());
        }
        let threads = OTHER_THREADS + MIN_CONNECTIONS + MIN_WORKERS;
        if self.address_space.threads() < threads {
            let mib = |bytes: u64| format!("{} MiB", bytes.div_ceil(1 << 20));
            let (needed, with_one_arena) = self.address_space.needed_for(threads);
            let hint = if needed > with_one_arena {
                format!(", or {} with MALLOC_ARENA_MAX=1 in its environment", mib(with_one_arena))
            } else {
                String::new()
            };
            let limit = format!("RLIMIT_AS is {}", mib(self.address_space.limit));
            return too_low(limit, format!("{}{hint}", mib(needed)));
        }
        Ok(())
    }
}

/// Resources that the service may use at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Capacity {
    /// For each listening socket.
    pub(super) connections: usize,
    pub(super) workers: usize,
    /// The limit that keeps the numbers below the configuration.
    bound: Option<Bound>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bound {
    Descriptors(u64),
    Threads(u64),
    Memory(u64),
    AddressSpace(u64),
}

/// `limit on memory: 32 MiB`
impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Bound::Descriptors(limit) => write!(f, "limit on descriptors: {limit}"),
            Bound::Threads(limit) => write!(f, "limit on threads: {limit}"),
            Bound::Memory(limit) => write!(f, "limit on memory: {} MiB", limit >> 20),
            Bound::AddressSpace(limit) => write!(f, "limit on address space: {} MiB", limit >> 20),
        }
    }
}

impl Capacity {
    /// The numbers of `config`, or lower ones if the limits allow no more. The listening sockets share what the limits
    /// allow.
    ///
    /// Descriptors: each connection needs its own, and its handler may open one more, for which [`for_handlers`] keeps
    /// some where connections have no thread. Threads, by their limit and by address space: three quarters are for
    /// connections, a quarter for workers. Memory: a half is for connections, a quarter for workers, the rest for
    /// bodies and for socket buffers, which cgroups of version 2 charge as well.
    pub(super) fn new(config: &Config, sockets: usize, limits: Limits) -> Capacity {
        let cost = config.engine.cost_of_connection();
        let memory = limits.memory.saturating_sub(OTHER_MEMORY);
        let for_connections = |threads: u64| {
            (threads.saturating_sub(OTHER_THREADS) / 4 * 3).checked_div(cost.threads).unwrap_or(u64::MAX)
        };
        let stacks = limits.address_space.threads();
        let (connections, bound) = [
            (with_descriptors(limits.descriptors, cost), Bound::Descriptors(limits.descriptors)),
            (for_connections(limits.threads), Bound::Threads(limits.threads)),
            (memory / 2 / cost.memory, Bound::Memory(limits.memory)),
            (for_connections(stacks), Bound::AddressSpace(limits.address_space.limit)),
        ]
        .into_iter()
        .min_by_key(|(connections, _)| *connections)
        .unwrap_or((u64::MAX, Bound::Memory(u64::MAX)));
        let each = count(connections.max(MIN_CONNECTIONS)) / sockets.max(1);
        let (workers, workers_bound) = [
            (memory / 4 / MEMORY_OF_WORKER, Bound::Memory(limits.memory)),
            (stacks.saturating_sub(OTHER_THREADS) / 4, Bound::AddressSpace(limits.address_space.limit)),
        ]
        .into_iter()
        .min_by_key(|(workers, _)| *workers)
        .unwrap_or((u64::MAX, bound));
        let workers = count(workers.max(MIN_WORKERS));
        let bound = if each < config.max_connections {
            Some(bound)
        } else if workers < config.workers {
            Some(workers_bound)
        } else {
            None
        };
        Capacity { connections: config.max_connections.min(each), workers: config.workers.min(workers), bound }
    }

    /// The limit that bounds the numbers, for the end of a line of the log: empty, or ` (limit on memory: 32 MiB)`.
    pub(super) fn bound(&self) -> String {
        self.bound.map(|bound| format!(" ({bound})")).unwrap_or_default()
    }
}

/// Connections for which these descriptors suffice.
fn with_descriptors(limit: u64, cost: ConnectionCost) -> u64 {
    let left = limit.saturating_sub(OTHER_DESCRIPTORS);
    if cost.threads > 0 { left / (cost.descriptors + 1) } else { (left - for_handlers(limit, left)) / cost.descriptors }
}

/// Descriptors that are kept for handlers, if connections have no thread: fewer than one for each connection, since few
/// of thousands have a request in flight. A handler without a descriptor fails, while a connection without one only
/// takes the place of an idle one.
fn for_handlers(limit: u64, left: u64) -> u64 {
    (limit / 32).max(256).min(left / 2)
}

fn count(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::EngineKind;

    const NONE: Limits = Limits {
        descriptors: u64::MAX,
        threads: u64::MAX,
        memory: u64::MAX,
        address_space: AddressSpace::empty(u64::MAX),
    };

    fn capacity(engine: EngineKind, limits: Limits) -> (usize, usize, String) {
        let config = Config { engine, ..Config::default() };
        let capacity = Capacity::new(&config, 1, limits);
        (capacity.connections, capacity.workers, capacity.bound())
    }

    #[test]
    fn without_limits_the_configuration_holds() {
        let config = Config::default();
        for engine in [EngineKind::TinyHttp, EngineKind::Native] {
            assert_eq!(capacity(engine, NONE), (config.max_connections, config.workers, String::new()));
        }
    }

    #[test]
    fn the_least_of_the_limits_holds_and_is_named() {
        let few = Limits { descriptors: 1064, ..NONE };
        assert_eq!(capacity(EngineKind::TinyHttp, few), (250, 2048, " (limit on descriptors: 1064)".into()));
        let crowd = Limits { descriptors: 20_000, ..NONE };
        let config = Config { max_connections: 50_000, ..Config::default() };
        let native = Capacity::new(&Config { engine: EngineKind::Native, ..config }, 1, crowd);
        assert!(native.connections >= 19_000, "{}", native.connections);
        let few = Limits { threads: 416, ..NONE };
        assert_eq!(capacity(EngineKind::TinyHttp, few), (300, 2048, " (limit on threads: 416)".into()));
        assert_eq!(capacity(EngineKind::Native, few), (4096, 2048, String::new()), "its connections have no threads");
        let few = Limits { memory: 32 << 20, ..NONE };
        let bound = " (limit on memory: 32 MiB)".to_owned();
        assert_eq!(capacity(EngineKind::TinyHttp, few), (275, 128, bound.clone()));
        let (connections, workers, named) = capacity(EngineKind::Native, few);
        assert!(connections >= 1000, "{connections}");
        assert_eq!((workers, named), (128, bound));
    }

    #[test]
    fn nothing_is_left_without_any_connection_or_worker() {
        let none = Limits { descriptors: 0, threads: 0, memory: 0, ..NONE };
        let (connections, workers, _) = capacity(EngineKind::TinyHttp, none);
        assert_eq!((connections, workers), (8, 4));
    }

    #[test]
    fn the_address_space_bounds_connections_and_workers_with_their_stacks() {
        let few = Limits { address_space: AddressSpace::empty(400 << 20), ..NONE };
        assert!(few.check(EngineKind::TinyHttp).is_ok());
        let bound = " (limit on address space: 400 MiB)".to_owned();
        assert_eq!(capacity(EngineKind::TinyHttp, few), (108, 36, bound.clone()));
        assert_eq!(capacity(EngineKind::Native, few), (4096, 36, bound), "its connections have no threads");
    }

    #[test]
    fn limits_with_which_an_engine_cannot_work_are_refused_and_what_it_needs_is_said() {
        let said = |limits: Limits| limits.check(EngineKind::TinyHttp).map_err(|error| error.to_string());
        assert_eq!(said(NONE), Ok(()));
        let rows = [
            (Limits { descriptors: 32, ..NONE }, "RLIMIT_NOFILE is 32; the engine tiny-http needs at least 64"),
            (
                Limits { threads: 12, ..NONE },
                "the limit on threads (pids.max or RLIMIT_NPROC) is 12; the engine tiny-http needs at least 16",
            ),
            (
                Limits { address_space: AddressSpace::empty(100 << 20), ..NONE },
                "RLIMIT_AS is 100 MiB; the engine tiny-http needs at least 122 MiB",
            ),
        ];
        for (limits, expected) in rows {
            assert_eq!(said(limits), Err(format!("cannot start: {expected}")));
            assert!(limits.check(EngineKind::Native).is_ok());
        }
    }

    #[test]
    fn several_sockets_share_the_capacity() {
        let config = Config { engine: EngineKind::TinyHttp, ..Config::default() };
        let few = Limits { descriptors: 1064, ..NONE };
        assert_eq!(Capacity::new(&config, 2, few).connections, 125);
    }
}
