//! The engines: everything between the listening socket and a request whose turn it is.
//!
//! The rest of the crate sees the types of this file alone.

pub(crate) mod gate;
pub(crate) mod tiny_http;

use std::sync::OnceLock;
use std::time::{Duration, Instant};

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
    /// Leaked connections at which the engine asks to be replaced.
    pub(crate) leak_limit: u64,
}

/// Callbacks of an engine into the rest. None of them may block.
pub(crate) struct Events {
    /// Quiescence, or the requests in flight, may have changed: a drain checks again.
    pub(crate) changed: Box<dyn Fn() + Send + Sync>,
    /// The leak limit is reached: the number of leaked connections, and the limit.
    pub(crate) leaking: Box<dyn Fn(u64, u64) + Send + Sync>,
}

/// How far a stop has come, as far as an engine must know. Each step is taken once and never undone.
#[derive(Debug, Default)]
pub(crate) struct StopState {
    announced: OnceLock<Instant>,
    accept_stopped: OnceLock<Instant>,
}

impl StopState {
    /// The drain begins: responses say `Connection: close`.
    pub(crate) fn announce_close(&self) {
        self.announced.get_or_init(Instant::now);
    }

    /// New connections are no longer accepted.
    pub(crate) fn stop_accepting(&self) {
        self.announce_close();
        self.accept_stopped.get_or_init(Instant::now);
    }

    /// When the drain began.
    pub(crate) fn announced(&self) -> Option<Instant> {
        self.announced.get().copied()
    }

    /// When accepting stopped.
    pub(crate) fn accept_stopped(&self) -> Option<Instant> {
        self.accept_stopped.get().copied()
    }

    /// Whether the drain has begun and `moment` came before it.
    pub(crate) fn predates_drain(&self, moment: Instant) -> bool {
        self.announced().is_some_and(|began| moment <= began)
    }
}
