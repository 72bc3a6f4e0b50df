//! The states of a connection, and of the request in flight on it.

use std::time::Instant;

/// Whether a connection goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ConnState {
    /// More requests are welcome.
    Open,
    /// Its input was shut down while it was idle. A request that `tiny_http` had read by then is still answered.
    ReadShut { since: Instant },
    /// The last response was sent, or soon will be: later requests are discarded.
    Closing { since: Instant },
    /// Shut down in both directions: `tiny_http` should release it at once.
    Aborted { since: Instant },
}

impl ConnState {
    pub(super) fn accepts_requests(self) -> bool {
        matches!(self, ConnState::Open | ConnState::ReadShut { .. })
    }
}

/// What the request in flight is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Activity {
    /// A handler, or the way to it, until the response starts.
    Handling { deadline: Instant },
    /// Blocked on the client for the body, which has until then to make progress.
    Reading { deadline: Instant },
    /// The response is being written. Each write is bounded by `SO_SNDTIMEO`.
    Writing,
}

/// A copy of a connection's state.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Snapshot {
    pub(crate) busy: bool,
    /// When it became busy, or idle.
    pub(crate) since: Instant,
    pub(crate) waiting: usize,
    pub(crate) fate: ConnState,
    /// Of the request in flight.
    pub(crate) activity: Activity,
}
