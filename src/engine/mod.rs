//! The engines: everything between a listening socket and an exchange.
//!
//! The rest of the crate sees [`Engine`] and [`Exchange`], whatever the engine. An engine knows nothing of routes,
//! members or the lifecycle.
//!
//! An engine is made ([`EngineKind::engine`]), then starts to receive ([`Engine::start`]); its threads are spawned by the crew
//! ([`Engine::threads`]), which joins them before [`Engine::finish`].

mod discard;
mod engines;
mod exchange;
pub(crate) mod gate;
mod memory;
mod native;
mod peer;
mod progress;
mod socket;
mod stats;
mod stop_state;
#[cfg(feature = "tiny-http")]
pub(crate) mod tiny_http;

use std::fmt;
use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::http::automatic::HeaderLines;
pub(crate) use crate::listen::Address;
use crate::text::human_duration;
pub(crate) use engines::Engines;
pub(crate) use exchange::{BodyState, Client, Exchange};
use gate::AcceptGate;
pub(crate) use memory::ResponseSlot;
pub use peer::Peer;
#[cfg(feature = "metrics")]
pub(crate) use stats::CLOSE_REASONS;
pub(crate) use stats::{CloseReason, ConnStats};
pub(crate) use stop_state::StopState;

/// The engine that receives requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum EngineKind {
    /// The `tiny_http` crate: a thread for each connection. For clients that are trusted, or behind a proxy. The
    /// default, if the feature `tiny-http` is on; a service with this engine does not start if it is off.
    #[cfg_attr(feature = "tiny-http", default)]
    TinyHttp,
    /// The engine of this crate: a few threads for all connections, strict parsing, any clients.
    #[cfg_attr(not(feature = "tiny-http"), default)]
    Native,
}

impl EngineKind {
    /// The engines that this build has, the default one first.
    pub const ALL: &[EngineKind] =
        if cfg!(feature = "tiny-http") { &[EngineKind::TinyHttp, EngineKind::Native] } else { &[EngineKind::Native] };

    /// Its name on the command line and in the log.
    pub fn name(self) -> &'static str {
        match self {
            EngineKind::TinyHttp => "tiny-http",
            EngineKind::Native => "native",
        }
    }

    /// Receive buffer that the listening socket must have before it listens, in bytes. `None`: the kernel chooses it,
    /// and enlarges it for a connection that sends much (tcp(7), `tcp_moderate_rcvbuf`).
    pub(crate) fn receive_buffer(self) -> Option<usize> {
        match self {
            #[cfg(feature = "tiny-http")]
            EngineKind::TinyHttp => Some(tiny_http::RECEIVE_BUFFER),
            _ => None, // the native engine receives nothing while a request of the connection is in flight
        }
    }

    /// Costs of one connection: the maximum of descriptors and threads, and the usual amount of memory.
    pub(crate) fn cost_of_connection(self) -> ConnectionCost {
        match self {
            // The monitor has a duplicate of what tiny_http duplicates for its two sides. Of memory a cgroup charges 50 KiB
            // for each of 1,000 idle connections (glibc, Linux 6.18), of which 29 KiB are the kernel's.
            EngineKind::TinyHttp => ConnectionCost { descriptors: 3, threads: 1, memory: 52 * 1024 },
            // 1.8 KiB idle, measured alike; the rest is for the head of a request and for its response.
            EngineKind::Native => ConnectionCost { descriptors: 1, threads: 0, memory: 8 * 1024 },
        }
    }
}

/// Costs of one connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConnectionCost {
    pub(crate) descriptors: u64,
    pub(crate) threads: u64,
    /// In bytes, as the control group charges it: kernel stacks and sockets included.
    pub(crate) memory: u64,
}

/// Times and limits that an engine enforces.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    /// Connections that may be open at once.
    pub(crate) max_connections: usize,
    /// Time for a connection to complete its first, or next, head.
    pub(crate) idle_timeout: Duration,
    /// Time for a handler, and for a body to make progress.
    pub(crate) request_timeout: Duration,
    /// Time that an idle connection has in a drain to send one more request.
    pub(crate) keepalive_min: Duration,
    /// Leaked connections at which the engine asks for a re-exec.
    pub(crate) leak_limit: u64,
    /// Receiving threads of the native engine; 0: as many as measured best for this machine.
    pub(crate) receivers: usize,
    /// Bytes of an unread body that are read and thrown away, so that the connection can go on.
    pub(crate) max_discard: u64,
    /// The headers that every response gets.
    pub(crate) automatic: HeaderLines,
}

/// Callbacks of an engine into the service. None of them may block.
pub(crate) struct Events {
    /// Quiescence, or the requests in flight, may have changed: a drain checks again.
    pub(crate) changed: Box<dyn Fn() + Send + Sync>,
    /// The leak limit is reached: the number of leaked connections, and the limit.
    pub(crate) leaking: Box<dyn Fn(u64, u64) + Send + Sync>,
}

/// Serves an exchange, or takes it away to be served by another thread. Returns the next exchange of the same connection,
/// if there is one. Must not block: it runs on the thread that receives.
pub(crate) type Serve = dyn Fn(Exchange) -> Option<Exchange> + Send + Sync;

/// A thread of an engine, for the crew to spawn.
pub(crate) struct EngineThread {
    /// Name of the thread and of the member.
    pub(crate) name: &'static str,
    pub(crate) run: Box<dyn FnOnce() -> io::Result<()> + Send>,
    /// Makes `run` return; does not block.
    pub(crate) interrupt: Box<dyn FnOnce() + Send>,
}

/// What becomes of the listening socket when accepting stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// It is closed with this process: the kernel drops new SYNs, and the accept queue is accepted.
    Filter,
    /// It outlives this process: the accept queue is left to the next holder.
    HandOver,
}

/// A request in flight, for the log.
#[derive(Clone, Debug)]
pub(crate) struct InFlight {
    /// Method and target, cut to 200 bytes, without control characters.
    pub(crate) request_line: String,
    pub(crate) peer: Peer,
    /// When it was dispatched.
    pub(crate) since: Instant,
    /// Requests that the same client has pipelined behind it.
    pub(crate) pipelined: usize,
}

/// `GET /timeout from 127.0.0.1:4711 for 1.2s, 2 pipelined behind it`
impl fmt::Display for InFlight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} from {} for {}", self.request_line, self.peer, human_duration(self.since.elapsed()))?;
        match self.pipelined {
            0 => Ok(()),
            n => write!(f, ", {n} pipelined behind it"),
        }
    }
}

/// Connections by state, for the log.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ConnCensus {
    pub(crate) busy: usize,
    pub(crate) idle: usize,
    pub(crate) closing: usize,
    pub(crate) aborted: usize,
}

/// An engine on one listening socket. Requests do not go through here: each is an [`Exchange`], whose calls are static.
pub(crate) trait Engine: Send + Sync {
    fn kind(&self) -> EngineKind;

    /// Receives requests from here on; `serve` is called once the [threads](Engine::threads) run.
    /// Errors: no descriptor or no thread is left.
    fn start(self: Arc<Self>, serve: &Arc<Serve>) -> io::Result<()>;

    /// The threads of a started engine, once.
    fn threads(self: Arc<Self>) -> Vec<EngineThread>;

    /// The gate in front of the listening socket.
    fn gate(&self) -> &AcceptGate;

    /// The address on which it listens.
    fn address(&self) -> &Address {
        self.gate().address()
    }

    /// Progress of a stop. Once it announces the close, a response says `Connection: close` unless another request has
    /// arrived.
    fn stop_state(&self) -> &StopState;

    /// Stops accepting, and begins to close idle connections.
    fn stop_accepting(&self, ending: Ending);

    /// Seals the [`gate`] after [`Ending::Filter`], so that no new connection arrives whatever the TTL of its packets.
    /// Where the kernel cannot do that, accepting ends, and connections that are queued from then on are lost.
    fn seal(&self);

    /// Resumes accepting after [`Ending::HandOver`], the connections queued meanwhile included.
    fn resume_accepting(&self);

    /// Whether accepting has stopped and no connection is left, so that no request can be lost.
    fn is_quiescent(&self) -> bool;

    /// Whether a request is in flight that was before the drain began, or before accepting was last resumed.
    fn has_requests_older_than_drain(&self) -> bool;

    /// Requests that are being answered, without those that are pipelined behind them.
    fn in_flight(&self) -> usize;

    /// Requests that wait behind another one of their connection, where they are received before their turn.
    fn pipelined(&self) -> usize {
        0
    }

    /// Open connections, as far as they are known.
    fn connections(&self) -> usize;

    /// Open connections by state.
    fn census(&self) -> ConnCensus;

    /// Every request in flight, in any order.
    fn requests_in_flight(&self) -> Vec<InFlight>;

    fn stats(&self) -> &ConnStats;

    /// Passes that the thread which watches connections has made: the number grows as long as that thread runs.
    fn ticks(&self) -> u64;

    /// Makes the thread that watches connections make a pass soon.
    fn wake(&self);

    /// Releases the listening socket, once all threads were joined; `socket_is_shared` if it outlives this process.
    fn finish(&self, socket_is_shared: bool);
}

impl EngineKind {
    /// An engine that does not receive yet.
    /// Errors: no descriptor is left, the socket refuses an option, or the build lacks the engine.
    pub(crate) fn engine(
        self,
        listener: &TcpListener,
        settings: Settings,
        events: Events,
    ) -> io::Result<Arc<dyn Engine>> {
        Ok(match self {
            #[cfg(feature = "tiny-http")]
            EngineKind::TinyHttp => Arc::new(tiny_http::TinyHttpEngine::new(listener, settings, events)?),
            #[cfg(not(feature = "tiny-http"))]
            EngineKind::TinyHttp => {
                return Err(io::Error::new(io::ErrorKind::Unsupported, "built without the feature tiny-http"));
            }
            EngineKind::Native => Arc::new(native::NativeEngine::new(listener, settings, events)?),
        })
    }
}
