//! Requests that were answered without their body having been read: they are dropped once their client has left.
//!
//! Dropping such a request makes tiny_http read the rest of the body. So the response is written first, the connection is
//! shut for writing, and the request is kept until the client has closed its end, or has had the time to: the lingering
//! close of RFC 9112, section 9.6.

use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::SockRef;

use crate::engine::tiny_http::unread_body;
use crate::sys::tcp::tcp_info;

/// Time that a client has to read the last response of its connection, and to close its end. nginx waits up to 5 s
/// between two reads (`lingering_timeout`), 30 s in all (`lingering_time`).
pub(super) const LINGERING_TIMEOUT: Duration = Duration::from_secs(2);

/// A request that was answered, and is not dropped yet because its client may still be sending the body.
pub(super) struct LingeringClose {
    since: Instant,
    socket: Arc<OwnedFd>,
    request: tiny_http::Request,
    /// Bytes of the body that were announced and not read.
    remaining: u64,
}

impl LingeringClose {
    pub(super) fn new(socket: Arc<OwnedFd>, request: tiny_http::Request, remaining: Option<u64>) -> LingeringClose {
        // The length of a chunked body is not known, and dropping it reads nothing.
        LingeringClose { since: Instant::now(), socket, request, remaining: remaining.unwrap_or(0) }
    }

    /// Drops the request. Never waits for the client.
    pub(super) fn discard(self) {
        let _ = SockRef::from(&*self.socket).shutdown(Shutdown::Read); // fails if the peer has left
        unread_body::discard(self.request, self.remaining);
    }

    fn client_has_left(&self) -> bool {
        tcp_info(&*self.socket).is_ok_and(|info| info.closed)
    }
}

/// All requests that linger.
#[derive(Default)]
pub(super) struct Lingering {
    all: Vec<LingeringClose>,
}

impl Lingering {
    pub(super) fn add(&mut self, one: LingeringClose) {
        self.all.push(one);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Drops the requests whose clients have left, or have had the time `patience` to do so.
    pub(super) fn check(&mut self, now: Instant, patience: Duration) {
        let is_done = |one: &LingeringClose| is_done(one.client_has_left(), now - one.since, patience);
        let (done, rest) = std::mem::take(&mut self.all).into_iter().partition::<Vec<_>, _>(is_done);
        self.all = rest;
        done.into_iter().for_each(LingeringClose::discard);
    }

    /// Drops all.
    pub(super) fn discard_all(&mut self) {
        self.all.drain(..).for_each(LingeringClose::discard);
    }
}

fn is_done(client_has_left: bool, waited: Duration, patience: Duration) -> bool {
    client_has_left || waited > patience
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_lingers_until_its_client_has_left_or_patience_is_over() {
        assert!(is_done(true, Duration::ZERO, LINGERING_TIMEOUT));
        assert!(!is_done(false, LINGERING_TIMEOUT, LINGERING_TIMEOUT));
        assert!(is_done(false, LINGERING_TIMEOUT * 2, LINGERING_TIMEOUT));
    }
}
