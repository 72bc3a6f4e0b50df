//! The restart of `tiny_http` on the same socket after its accept thread has ended, and the thread that receives.
//!
//! Connections of the retired server live on. Their requests are received by a thread of its own, `old-listener`, which
//! the listener owns and joins.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::RecvTimeoutError;
use tiny_http::Server;

use super::receive::{ReceiveEnd, ReceiveLoop, RunQueue, serve_all};
use super::server::RunningServer;
use crate::engine::Serve;
use crate::sync::{WarnOnce, lock};
use crate::sys::limits::nofile_limit;

/// Delay before the next attempt to restart, while descriptors or threads are short.
const RESTART_RETRY: Duration = Duration::from_millis(100);

/// Descriptors that a connection costs: two for `tiny_http`, one for the monitor.
const FDS_PER_CONNECTION: u64 = 3;

/// Descriptors that must be free beside those for the accept queue.
const SPARE_FDS: u64 = 16;

impl ReceiveLoop {
    /// Receives and serves until stopped.
    /// Errors: `tiny_http` has stopped accepting, for a reason that a restart does not remove.
    pub(crate) fn run(self: &Arc<Self>) -> io::Result<()> {
        let Some(serve) = lock(&self.serve).clone() else { return Ok(()) };
        let mut retired: Vec<RetiredServer> = Vec::new();
        let mut run_queue = RunQueue::new();
        let result = loop {
            let Some(server) = self.server() else { break Ok(()) };
            let end = self.receive(&server, &*serve, &mut run_queue, &self.stopping, &self.restart_wanted);
            match end {
                ReceiveEnd::Stopped => break Ok(()),
                // It is not restarted; requests of its connections are received as before.
                ReceiveEnd::Failed(_) | ReceiveEnd::RestartWanted if self.handed_over.load(Ordering::Acquire) => {
                    continue;
                }
                ReceiveEnd::Failed(error) if !is_transient(&error) => break Err(error),
                ReceiveEnd::Failed(error) => log::warn!("tiny_http stopped accepting ({error}): restarting it"),
                ReceiveEnd::RestartWanted => log::warn!("tiny_http stopped accepting: restarting it"),
            }
            serve_all(&*serve, &mut run_queue);
            match self.restart_server(&server, &serve, &mut retired) {
                Some(server) => {
                    self.accept_point().brake().set_accept_fd(server.accept_fd());
                    *lock(&self.current) = Some(server);
                    self.restart_wanted.store(false, Ordering::Release);
                    log::info!("tiny_http accepts again");
                }
                None => break Ok(()), // stopped meanwhile
            }
        };
        retired.into_iter().for_each(RetiredServer::end);
        result
    }

    /// Starts a new server, once there are descriptors and a thread for it. `None` if the listener is stopped before.
    pub(super) fn restart_server(
        self: &Arc<Self>,
        old: &Arc<Server>,
        serve: &Arc<Serve>,
        retired: &mut Vec<RetiredServer>,
    ) -> Option<RunningServer> {
        self.reap_retired(retired);
        let mut receiving = false;
        let warn_once = WarnOnce::default();
        loop {
            if receiving {
                // The thread of the old server receives.
            } else if let Ok(thread) = RetiredServer::start(Arc::clone(self), Arc::clone(old), Arc::clone(serve)) {
                retired.push(thread);
                receiving = true;
            } else {
                self.drain_queue(old, &**serve);
            }
            let started = if receiving { self.try_start_server() } else { Err(io::Error::other("no thread is left")) };
            match started {
                Ok(server) => return Some(server),
                Err(error) => {
                    if warn_once.is_first() {
                        log::warn!("cannot restart tiny_http yet: {error}");
                    }
                    self.shared.monitor.request_eviction();
                }
            }
            match self.stopped.recv_timeout(RESTART_RETRY) {
                Err(RecvTimeoutError::Timeout) => {}
                _ => return None,
            }
        }
    }

    /// Starts a server if there are descriptors for the connections in the accept queue, all of which it accepts at
    /// once.
    fn try_start_server(&self) -> io::Result<RunningServer> {
        // The queue may be longer than the limit on descriptors allows: then it is accepted in several rounds.
        let waiting = u64::from(self.accept_point().queue_len());
        let needed = (SPARE_FDS + FDS_PER_CONNECTION * waiting).min(nofile_limit() / 2);
        let spare: io::Result<Vec<_>> = (0..needed).map(|_| self.gate.listener().try_clone()).collect();
        drop(spare?);
        RunningServer::start(self.gate.listener())
    }

    /// Ends the threads of retired servers that have no connections left.
    fn reap_retired(&self, retired: &mut Vec<RetiredServer>) {
        let oldest = self.shared.connections.all().iter().map(|connection| connection.opened).min();
        let is_done = |server: &RetiredServer| oldest.is_none_or(|oldest| oldest > server.since);
        let (done, left): (Vec<_>, Vec<_>) = std::mem::take(retired).into_iter().partition(is_done);
        *retired = left;
        done.into_iter().for_each(RetiredServer::end);
    }
}

/// Whether an error of `accept` concerns one connection, or a resource that is short at the moment (accept(2)), as opposed
/// to those that say that this is no listening socket any more.
fn is_transient(error: &io::Error) -> bool {
    !matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EBADF | libc::ENOTSOCK | libc::EOPNOTSUPP))
}

/// A thread that receives from a server whose accept thread has ended.
pub(super) struct RetiredServer {
    thread: Option<JoinHandle<()>>,
    server: Arc<Server>,
    stop: Arc<AtomicBool>,
    since: Instant,
}

impl RetiredServer {
    fn start(receive: Arc<ReceiveLoop>, server: Arc<Server>, serve: Arc<Serve>) -> io::Result<RetiredServer> {
        let stop = Arc::new(AtomicBool::new(false));
        let (source, stopped) = (Arc::clone(&server), Arc::clone(&stop));
        let thread = thread::Builder::new().name("old-listener".to_owned()).spawn(move || {
            let never = AtomicBool::new(false);
            let mut run_queue = RunQueue::new();
            // A dead server has no more errors to report.
            while !matches!(receive.receive(&source, &*serve, &mut run_queue, &stopped, &never), ReceiveEnd::Stopped) {}
        })?;
        Ok(RetiredServer { thread: Some(thread), server, stop, since: Instant::now() })
    }

    pub(super) fn end(mut self) {
        self.stop.store(true, Ordering::Release);
        self.server.unblock();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // a panic there is a bug of this crate, and the panic hook has printed it
        }
        // Dropping it would connect to a port that belongs to another server by now; its own accept thread is gone.
        std::mem::forget(self.server);
    }
}
