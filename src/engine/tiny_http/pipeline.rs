//! Requests that are pipelined behind the one in flight of their connection, and how many of them are kept.
//!
//! `tiny_http` reads ahead without bound. Beyond [`PIPELINE_HIGH`] the connection is *throttled*: the kernel drops the
//! client's packets for a while (see `sys::min_ttl`), unless they arrive with the highest TTL. Requests that
//! `tiny_http` has read by then still arrive. Beyond [`MAX_BYTES`], or if all pipelines together are too long, the
//! connection is aborted.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::wire::estimated_wire_len;

/// Requests that may be pipelined before the client is throttled. A client that pipelines a thousand is answered without
/// being throttled by more than its own responses.
const PIPELINE_HIGH: usize = 32;
/// Memory, in bytes, of pipelined requests above which the client is throttled: three heads of the greatest length.
const PIPELINE_HIGH_BYTES: u64 = 256 * 1024;
/// Pipelined requests below which a throttled client is resumed: low enough that the throttle is not toggled for each
/// request.
const PIPELINE_LOW: usize = 8;
/// Memory, in bytes, of the pipelined requests of one connection at which it is aborted: 10,000 small ones. A client that
/// is throttled has sent less by then, even on busy cores.
const MAX_BYTES: u64 = 16 * 1024 * 1024;
/// Memory, in bytes, of the pipelined requests of all connections above which those with more than their share are aborted.
const TOTAL_MAX_BYTES: u64 = 48 * 1024 * 1024;
/// Memory, in bytes, of pipelined requests that each connection may always have: 16 MiB for 1,000 connections.
const SHARE_BYTES: u64 = 16 * 1024;
/// Memory of a request beside its bytes: `tiny_http` makes two channels for each. Measured: 1.5 KiB for one of 31 bytes.
const REQUEST_OVERHEAD: u64 = 1536;

/// The pipelined requests of one connection, in the order in which they came.
#[derive(Default)]
pub(super) struct Pipeline {
    requests: VecDeque<tiny_http::Request>,
    bytes: u64,
}

/// The pipelined requests of all connections together.
#[derive(Debug, Default)]
pub(super) struct PipelineTotals {
    requests: AtomicUsize,
    bytes: AtomicU64,
}

/// How full a pipeline is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fill {
    /// There is room.
    Short,
    /// The client is to be throttled.
    Long,
    /// The connection is to be aborted.
    Overflow,
}

impl Pipeline {
    /// Adds a request that has arrived.
    pub(super) fn push(&mut self, request: tiny_http::Request, totals: &PipelineTotals) -> Fill {
        let cost = cost(&request);
        self.requests.push_back(request);
        self.bytes += cost;
        totals.requests.fetch_add(1, Ordering::Relaxed);
        let total = totals.bytes.fetch_add(cost, Ordering::Relaxed) + cost;
        fill(self.requests.len(), self.bytes, total)
    }

    /// Takes the request whose turn it is.
    pub(super) fn pop(&mut self, totals: &PipelineTotals) -> Option<tiny_http::Request> {
        let request = self.requests.pop_front()?;
        let cost = cost(&request);
        self.bytes -= cost;
        totals.requests.fetch_sub(1, Ordering::Relaxed);
        totals.bytes.fetch_sub(cost, Ordering::Relaxed);
        if self.requests.is_empty() && self.requests.capacity() > PIPELINE_LOW {
            self.requests = VecDeque::new(); // frees the memory of a long pipeline
        }
        Some(request)
    }

    /// Takes all requests, to be discarded.
    pub(super) fn take_all(&mut self, totals: &PipelineTotals) -> Vec<tiny_http::Request> {
        totals.requests.fetch_sub(self.requests.len(), Ordering::Relaxed);
        totals.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        self.bytes = 0;
        std::mem::take(&mut self.requests).into()
    }

    pub(super) fn len(&self) -> usize {
        self.requests.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// Whether a throttled client may be resumed.
    pub(super) fn is_low(&self) -> bool {
        self.requests.len() < PIPELINE_LOW && self.bytes <= PIPELINE_HIGH_BYTES / 4
    }
}

impl PipelineTotals {
    pub(super) fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }
}

/// Memory of a request, in bytes.
fn cost(request: &tiny_http::Request) -> u64 {
    estimated_wire_len(request) + REQUEST_OVERHEAD
}

fn fill(requests: usize, bytes: u64, total_bytes: u64) -> Fill {
    if bytes > MAX_BYTES || (total_bytes > TOTAL_MAX_BYTES && bytes > SHARE_BYTES) {
        Fill::Overflow
    } else if requests > PIPELINE_HIGH || bytes > PIPELINE_HIGH_BYTES {
        Fill::Long
    } else {
        Fill::Short
    }
}

impl std::fmt::Debug for Pipeline {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} requests of {} bytes", self.requests.len(), self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_small_requests_and_few_large_ones_are_bounded_alike() {
        let small = |n: usize| fill(n, 2000 * n as u64, 0);
        assert_eq!([32, 33, 8000, 9000].map(small), [Fill::Short, Fill::Long, Fill::Long, Fill::Overflow]);
        let large = |n: usize| fill(n, 74 * 1024 * n as u64, 0);
        assert_eq!([3, 4, 200, 240].map(large), [Fill::Short, Fill::Long, Fill::Long, Fill::Overflow]);
    }

    #[test]
    fn when_all_together_are_too_many_those_with_more_than_their_share_go() {
        assert_eq!(fill(8, SHARE_BYTES, TOTAL_MAX_BYTES + 1), Fill::Short);
        assert_eq!(fill(9, SHARE_BYTES + 1, TOTAL_MAX_BYTES + 1), Fill::Overflow);
    }

    #[test]
    fn what_is_taken_is_no_longer_counted() {
        let (mut pipeline, totals) = (Pipeline::default(), PipelineTotals::default());
        let request = || tiny_http::Request::from(tiny_http::TestRequest::new());
        for _ in 0..40 {
            pipeline.push(request(), &totals);
        }
        assert!(!pipeline.is_low() && totals.requests() == 40);
        for _ in 0..35 {
            assert!(pipeline.pop(&totals).is_some());
        }
        assert!(pipeline.is_low());
        assert_eq!((pipeline.take_all(&totals).len(), totals.requests()), (5, 0));
        assert_eq!((pipeline.bytes, totals.bytes.into_inner()), (0, 0));
    }
}
