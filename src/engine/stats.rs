//! Counters of connections, and the reasons for which an engine closes one.

use std::sync::atomic::{AtomicU64, Ordering};

/// The cause for which a connection was closed from this side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CloseReason {
    /// No complete head arrived within the idle timeout.
    IdleTimeout,
    /// A handler, or a body, took longer than the request timeout.
    RequestTimeout,
    /// The connection limit was reached, and this was the least recently used one.
    Evicted,
    /// A head grew beyond [`MAX_HEADERS_TOTAL`](crate::http::validate::MAX_HEADERS_TOTAL).
    HeadTooLarge,
    /// A request was malformed and got an error response.
    BadRequest,
    /// A response could not be written without blocking, and no worker was free to block.
    SlowReader,
    /// The service stops.
    Drain,
    /// More requests were pipelined than are kept.
    PipelineOverflow,
    /// The bytes are no HTTP/1 request, and nothing could be answered.
    Unparsable,
    /// Two connections have the same peer address, and the engine cannot tell them apart.
    Ambiguous,
    /// The response failed after its head was sent.
    ResponseFailed,
}

/// All reasons, with their names in the metrics.
pub(crate) const CLOSE_REASONS: [(CloseReason, &str); 11] = [
    (CloseReason::IdleTimeout, "idle_timeout"),
    (CloseReason::RequestTimeout, "request_timeout"),
    (CloseReason::Evicted, "evicted"),
    (CloseReason::HeadTooLarge, "head_too_large"),
    (CloseReason::BadRequest, "bad_request"),
    (CloseReason::SlowReader, "slow_reader"),
    (CloseReason::Drain, "drain"),
    (CloseReason::PipelineOverflow, "pipeline_overflow"),
    (CloseReason::Unparsable, "unparsable"),
    (CloseReason::Ambiguous, "ambiguous"),
    (CloseReason::ResponseFailed, "response_failed"),
];

/// Counters of one engine's connections, from its start on.
#[derive(Debug, Default)]
pub(crate) struct ConnStats {
    pub(crate) opened: AtomicU64,
    pub(crate) closed: [AtomicU64; CLOSE_REASONS.len()],
    /// Connections that had been accepted and got a thread late.
    pub(crate) unstarved: AtomicU64,
    /// Times that the kernel was told to ignore a connection for a while.
    pub(crate) throttled: AtomicU64,
    /// Requests that were dropped because the last response of their connection had been sent.
    pub(crate) discarded: AtomicU64,
    /// Connections whose thread and descriptors the engine never releases.
    pub(crate) leaked: AtomicU64,
}

impl ConnStats {
    /// Counts a connection that was closed from this side.
    pub(crate) fn count_close(&self, why: CloseReason) {
        self.closed[why as usize].fetch_add(1, Ordering::Relaxed);
    }
}
