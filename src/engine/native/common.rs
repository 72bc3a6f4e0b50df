//! The state that all receivers of an engine share.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::engine::{CloseReason, ConnStats, Ending, Events, Peer, Settings, StopState};
use crate::http::automatic::HeaderLines;
use crate::http::encode::{self, ResponseContext};
use crate::http::head::Version;
use crate::http::request_id::request_id;
use crate::http::response::Response;
use crate::sync::RateLimit;

/// Time at the beginning of a drain in which responses do not say `Connection: close` yet, so that accepting stops
/// first. Clients that are told to close connect again at once; if their handshake ends while the gate closes, the
/// kernel drops what they send, and the drain waits for the retransmission after 200 ms (`TCP_RTO_MIN`). Without a
/// drain delay accepting stops sooner than this.
const CLOSE_LEAD: Duration = Duration::from_millis(10);

/// The state that all receivers share.
pub(super) struct Common {
    /// Origin of the times that are kept as numbers.
    pub(super) epoch: Instant,
    pub(super) listener: OwnedFd,
    pub(super) settings: Settings,
    pub(super) events: Events,
    pub(super) stats: ConnStats,
    pub(super) stop_state: StopState,
    /// The listening socket outlives this process, once accepting has stopped.
    pub(super) handed_over: AtomicBool,
    /// Set before the gate is closed: connections may carry its filter.
    pub(super) gate_closed: AtomicBool,
    pub(super) interrupted: AtomicBool,
    /// Connections of all receivers.
    pub(super) open: AtomicUsize,
    /// A receiver cannot accept because the limit on connections is reached.
    pub(super) room_wanted: AtomicBool,
    /// Limits the lines about bytes that are no request.
    pub(super) unparsable: RateLimit,
}

impl Common {
    pub(super) fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Acquire)
    }

    pub(super) fn is_gate_closed(&self) -> bool {
        self.gate_closed.load(Ordering::Acquire)
    }

    /// Whether responses say `Connection: close`, in a drain.
    pub(super) fn tells_clients_to_close(&self) -> bool {
        let Some(began) = self.stop_state.announced() else { return false };
        self.stop_state.stop_number().is_some() || began.elapsed() >= CLOSE_LEAD
    }

    /// The number of this stop, and how accepting has stopped; `None` if it has not.
    pub(super) fn stop(&self) -> Option<(u64, Ending)> {
        let number = self.stop_state.stop_number()?;
        let ending = if self.handed_over.load(Ordering::SeqCst) { Ending::HandOver } else { Ending::Filter };
        Some((number, ending))
    }

    /// Counts and logs a connection that sent what is no request.
    pub(super) fn count_unparsable(&self, why: CloseReason, peer: Peer, reason: &str) {
        self.stats.count_close(why);
        if let Some(omitted) = self.unparsable.allow() {
            log::info!("{peer} sent no HTTP request: {reason}{omitted}");
        }
    }
}

/// A response of the engine itself, to bytes that it does not serve: whole, and the last of its connection.
pub(super) fn plain_response(status: u16, reason: &'static str, automatic: HeaderLines) -> Vec<u8> {
    response_to(false, &request_id(std::iter::empty()), status, reason, automatic)
}

/// The response in the place of a late handler; `head_only`: the request was a `HEAD`. It has no id, since that of the
/// request is with the handler, and another would mislead.
pub(super) fn late_response(head_only: bool, automatic: HeaderLines) -> Vec<u8> {
    response_to(head_only, "-", 503, "the request timed out", automatic)
}

fn response_to(
    head_only: bool,
    request_id: &str,
    status: u16,
    reason: &'static str,
    automatic: HeaderLines,
) -> Vec<u8> {
    let context =
        ResponseContext { version: Version::Http11, head_only, close: true, keep_alive: false, request_id, automatic };
    let mut bytes = Vec::new();
    encode::encode(&Response::error(status, reason), &context, &mut bytes);
    bytes
}
