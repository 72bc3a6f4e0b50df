//! Admission of the requests of one batch: run, queue, or discard.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::conn_state::BatchNumber;
use super::connection::Connection;
use super::connections::Admission;
use super::exchange::Exchange;
use super::{Shared, unread_body};
use crate::engine::CloseReason;

/// Admits the requests of one batch, in order. All of them are received before the first is admitted, and each keeps its
/// socket open: one scan of the descriptor table finds the connections of all, however many need it.
pub(super) struct Batch<'a> {
    shared: &'a Arc<Shared>,
    number: BatchNumber,
    scanned: bool,
}

impl<'a> Batch<'a> {
    /// Call it once the last request of the batch is received.
    pub(super) fn new(shared: &'a Arc<Shared>) -> Batch<'a> {
        Batch { shared, number: shared.connections.begin_batch(), scanned: false }
    }

    /// Admits the next request. `None` if it is queued or discarded.
    pub(super) fn admit(&mut self, request: tiny_http::Request) -> Option<Exchange> {
        let connections = &self.shared.connections;
        let admission = match connections.admit(request, self.number, self.scanned) {
            // The client may have connected again from the same port before the end of its former connection was
            // noticed.
            Admission::Stale(connection, request) if !self.scanned && connection.may_be_over() => {
                self.scan();
                connections.admit(request, self.number, true)
            }
            admission => admission,
        };
        match admission {
            Admission::Run { connection, request, new_connection } => {
                self.shared.monitor.note_request(new_connection);
                return Some(Exchange::new(Arc::clone(self.shared), connection, request));
            }
            Admission::Queued => self.shared.monitor.note_request(false),
            // At once: before the monitor's next tick the client may send a million more.
            Admission::OverLimit(connection) => {
                self.scan();
                connection.throttle(&connections.counts);
            }
            Admission::Overflow(connection) => self.overflow(&connection),
            Admission::Stale(connection, request) => {
                connection.on_request_dropped();
                self.shared.monitor.note_request(true); // a scan soon finds the connection that it may have come from
                connections.counts.discarded.fetch_add(1, Ordering::Relaxed);
                self.discard(&connection, vec![request]);
            }
            Admission::Foreign(request) => drop(request.into_writer()),
        }
        None
    }

    /// Aborts a connection on which more requests are pipelined than are kept.
    fn overflow(&mut self, connection: &Connection) {
        if connection.socket().is_none() {
            self.scan(); // without its socket nothing can be shut down
        }
        self.shared.connections.count_close(CloseReason::PipelineOverflow);
        log::debug!("{} is closed: it has pipelined more requests than are kept", connection.peer);
        connection.abort();
        let rest = self.shared.connections.take_pipelined(connection);
        self.discard(connection, rest);
    }

    fn discard(&mut self, connection: &Connection, requests: Vec<tiny_http::Request>) {
        let shared = self.shared;
        unread_body::discard_all(connection, requests, |peer| {
            self.scan();
            shared.connections.abort_current(peer);
        });
    }

    fn scan(&mut self) {
        if !std::mem::replace(&mut self.scanned, true) {
            self.shared.monitor.scan_now();
        }
    }
}
