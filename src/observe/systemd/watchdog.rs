//! The checks behind `WATCHDOG=1`: workers, monitor, and a request over a connection of our own.

use std::fmt::Write as _;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::crew::stop::Stop;
use crate::engine::{Engine, Engines};
use crate::observe::WorkerPool;
use crate::sync::WarnOnce;
use crate::text::pluralize;

/// Longest time for a handshake with our own port: the kernel alone completes it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Read timeout, after which the thread looks whether the phase has changed.
const READ_SLICE: Duration = Duration::from_millis(100);
/// Time beyond the request timeout after which a request counts as stuck: by then its connection was closed.
const STUCK_AFTER: Duration = Duration::from_secs(5);
/// Most bytes that are read of a response.
const MAX_RESPONSE: usize = 4096;

/// The conditions for `WATCHDOG=1`.
pub(super) struct Checks {
    pub(super) engines: Engines,
    pub(super) pool: Arc<dyn WorkerPool>,
    pub(super) stop: Stop,
    pub(super) request_timeout: Duration,
    /// The ticks of each engine when it was last woken.
    pub(super) ticks: Vec<Option<u64>>,
    pub(super) unreachable: WarnOnce,
}

impl Checks {
    /// Errors: the first condition that does not hold, in words.
    pub(super) fn check_all(&mut self, limit: Duration) -> Result<(), String> {
        self.check_workers()?;
        self.check_monitor()?;
        self.check_http(limit)
    }

    /// A worker is idle, or can be started, or serves a request that has not timed out.
    fn check_workers(&self) -> Result<(), String> {
        let stats = self.pool.stats();
        if stats.busy < stats.threads || stats.busy == 0 || (stats.busy < stats.max_threads && stats.queued == 0) {
            return Ok(());
        }
        let is_overdue = |since: Instant| since.elapsed() > self.request_timeout.saturating_add(STUCK_AFTER);
        // Both the job and the request must be old: a job serves the requests of its connection one after the other.
        let requests = self.engines.requests_in_flight();
        let overdue = requests.iter().filter(|request| is_overdue(request.since)).count();
        if overdue >= stats.busy && self.pool.running_jobs().iter().all(|job| is_overdue(job.since)) {
            return Err(format!("{} stuck beyond the request timeout", pluralize(stats.busy, "worker")));
        }
        Ok(())
    }

    /// The monitor has ticked since it was last woken; wakes it again.
    fn check_monitor(&mut self) -> Result<(), String> {
        for (engine, last) in self.engines.iter().zip(&mut self.ticks) {
            let ticks = engine.ticks();
            if last.replace(ticks) == Some(ticks) {
                return Err("the monitor does not run".to_owned());
            }
            engine.wake();
        }
        Ok(())
    }

    /// A request for `/livez` is answered within `limit`.
    pub(super) fn check_http(&self, limit: Duration) -> Result<(), String> {
        self.engines.iter().try_for_each(|engine| self.check_engine(&**engine, limit))
    }

    fn check_engine(&self, engine: &dyn Engine, limit: Duration) -> Result<(), String> {
        let deadline = Instant::now() + limit;
        let stream = match engine.gate().connect_self(limit.min(CONNECT_TIMEOUT)) {
            Ok(stream) => stream,
            // No SYN-ACK although the accept queue is not full: a firewall rule (`IPAddressDeny=`) blocks us. This check
            // is skipped; the others still apply.
            Err(error)
                if (error.kind() == ErrorKind::TimedOut && engine.gate().accept_queue_len() == 0)
                    || error.kind() == ErrorKind::PermissionDenied =>
            {
                if self.unreachable.is_first() {
                    log::warn!("cannot connect to own port, so the watchdog does not check that it answers: {error}");
                }
                return Ok(());
            }
            Err(error) => return Err(format!("cannot connect to {}: {error}", engine.address().url())),
        };
        match self.get_livez(stream, engine, deadline) {
            Some(status) if status < 500 => Ok(()), // 404 if the service has no /livez
            Some(status) => Err(format!("GET /livez answers {status}")),
            None => Err(format!("GET /livez is not answered within {limit:?}")),
        }
    }

    fn get_livez(&self, mut stream: TcpStream, engine: &dyn Engine, deadline: Instant) -> Option<u16> {
        let mut request = String::new();
        let host = engine.address().host();
        write!(request, "GET /livez HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").ok()?;
        stream.write_all(request.as_bytes()).ok()?;
        stream.set_read_timeout(Some(READ_SLICE)).ok()?;
        let mut response = Vec::new();
        let mut chunk = [0; 512];
        // To the end of the stream: closing earlier would send a reset.
        while Instant::now() < deadline && response.len() < MAX_RESPONSE && !self.stop.is_draining() {
            match stream.read(&mut chunk) {
                Ok(0) => break,
                Ok(n) => response.extend_from_slice(&chunk[..n]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(_) => break,
            }
        }
        status_of(&response)
    }
}

/// The status of a response, if it is one.
fn status_of(response: &[u8]) -> Option<u16> {
    let digits = response.strip_prefix(b"HTTP/1.1 ")?.get(..3)?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_response_has_a_status() {
        assert_eq!(status_of(b"HTTP/1.1 200 OK\r\n\r\n"), Some(200));
        for other in [&b""[..], b"HTTP/1.1 ", b"HTTP/1.1 20", b"HTTP/1.1 abc", b"SSH-2.0-x 200"] {
            assert_eq!(status_of(other), None);
        }
    }
}
