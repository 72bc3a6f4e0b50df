//! How far a stop has come, as far as an engine must know.

use std::sync::OnceLock;
use std::time::Instant;

/// The steps of a stop. Each is taken once and never undone.
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
