//! The scan of the descriptor table at a tick: watches new sockets, and removes those that tiny_http has closed or
//! leaked.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::leaks::Leaks;
use super::sockets::WatchedSocket;
use super::tick::{Context, Memory};
use crate::engine::CloseReason;
use crate::engine::tiny_http::conn_state::ConnState;
use crate::engine::tiny_http::discover::FdScan;
use crate::sys::limits::under_fd_pressure;
use crate::sys::tcp::{tcp_info, unread_bytes};

/// Age of a connection without a socket above which a scan removes it: its socket is closed.
const STALE_AFTER: Duration = Duration::from_millis(20);

impl Context {
    /// Scans the descriptor table: adds new sockets, and removes those that tiny_http has closed or leaked.
    pub(super) fn scan(&self, memory: &mut Memory, now: Instant) {
        memory.watched.extend(self.sockets.take_fresh());
        let began = Instant::now();
        let scan = self.sockets.scan();
        memory.scans.rescan.scanned(scan.exhausted, began.elapsed(), now);
        memory.scans.fd_pressure = under_fd_pressure(scan.in_use);
        memory.scans.ending = false;
        self.reap(&scan, memory, now);
        if !scan.exhausted {
            // The scan is complete, so a connection without a socket is closed.
            self.connections.remove_stale(now.checked_sub(STALE_AFTER).unwrap_or(now), began);
        }
        memory.watched.extend(self.sockets.take_fresh());
    }

    /// Removes sockets that tiny_http has closed or leaked.
    fn reap(&self, scan: &FdScan, memory: &mut Memory, now: Instant) {
        let Memory { watched, leaks, logs, .. } = memory;
        leaks.retain(|cookie| scan.cookies.contains(&cookie), |cookie| self.sockets.forget_cookie(cookie));
        let closed = watched.values().filter(|one| !one.connection.snapshot().busy).filter_map(|one| one.closed_at);
        let draining = self.stop_state.accept_stopped().is_some();
        let patience = leaks.patience(closed, draining, self.settings.leak_limit, now);
        let is_gone = |(cookie, one): &(&u64, &WatchedSocket)| {
            !scan.cookies.contains(*cookie) || patience.is_over(&one.connection.snapshot(), one.closed_at, now)
        };
        let gone: Vec<u64> = watched.iter().filter(is_gone).map(|(cookie, _)| *cookie).collect();
        let mut leaked = 0;
        for cookie in gone {
            let Some(watched) = watched.remove(&cookie) else { continue };
            let is_leaked = scan.cookies.contains(&cookie);
            if is_leaked {
                log::debug!("tiny_http has leaked the connection of {}", watched.connection.peer);
                leaks.add(cookie);
                leaked += 1;
            } else if was_unparsable(&watched) {
                self.connections.count_close(CloseReason::Unparsable);
                if let Some(omitted) = logs.unparsable.allow() {
                    let peer = watched.connection.peer;
                    log::info!("{peer} is closed: tiny_http cannot parse what it sent{omitted}");
                }
            }
            self.connections.remove(&watched.connection);
            self.sockets.remove(cookie, watched, is_leaked);
        }
        if leaked > 0 {
            self.report_leaks(leaked, leaks);
        }
    }

    /// Counts leaks, and reports when the limit is reached.
    fn report_leaks(&self, leaked: u64, leaks: &mut Leaks) {
        let total = self.connections.counts.leaked.fetch_add(leaked, Ordering::Relaxed) + leaked;
        if leaks.log.allow().is_some() {
            log::warn!("tiny_http has leaked {total} connections, each with a thread and two descriptors");
        }
        if leaks.reaches(total, self.settings.leak_limit) {
            (self.events.leaking)(total, self.settings.leak_limit);
        }
    }
}

/// Whether tiny_http has closed a connection because it could not parse what it sent.
fn was_unparsable(watched: &WatchedSocket) -> bool {
    let WatchedSocket { connection, socket, accounted, .. } = watched;
    let unread = unread_bytes(&**socket);
    connection.snapshot().conn_state == ConnState::Open
        && tcp_info(&**socket)
            .is_ok_and(|info| accounted.is_unparsable(info, unread, connection.bytes_parsed(), connection.requests()))
}
