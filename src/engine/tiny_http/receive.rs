//! The receive loop: takes requests from `tiny_http`'s queue and serves them. Its thread is the member `listener`.
//!
//! It receives up to [`RECEIVE_BATCH`] requests before it serves the next, so that pipelined requests are queued on their
//! connection: one exchange of each connection is served at a time. It blocks only when `tiny_http`'s queue and the run
//! queue are empty; where requests arrive in quick succession it spins first (see [`SpinWait`]).

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use tiny_http::Server;

use super::Shared;
use super::accept_point::AcceptPoint;
use super::admission::Batch;
use super::server::{self, RunningServer};
use crate::engine::gate::AcceptGate;
use crate::engine::{Peer, Serve};
use crate::sync::lock;

/// Requests received per batch before serving: large enough to see pipelined requests queue up, bounded so that fast
/// pipeliners cannot starve serving.
const RECEIVE_BATCH: usize = 64;

/// Time for tiny_http's accept thread to accept a connection of our own at the end.
const ACCEPT_LIMIT: Duration = Duration::from_millis(200);

/// Exchanges to be served, in order, at most one of each connection, so that no connection delays another.
pub(super) type RunQueue = VecDeque<crate::engine::Exchange>;

/// The listener's state, shared by its own thread, the threads of retired servers, and the threads that stop it.
pub(crate) struct ReceiveLoop {
    pub(super) shared: Arc<Shared>,
    pub(super) gate: Arc<AcceptGate>,
    /// Serves an exchange. `None` once the engine is finished: it holds the routes, which hold the engine.
    pub(super) serve: Mutex<Option<Arc<Serve>>>,
    /// The current server. `None` once the engine is finished.
    pub(super) current: Mutex<Option<RunningServer>>,
    pub(super) stopping: AtomicBool,
    /// `tiny_http` no longer accepts from the listening socket.
    pub(super) handed_over: AtomicBool,
    pub(super) restart_wanted: AtomicBool,
    /// Never sent on: dropped to disconnect `stopped`, which ends a wait for descriptors.
    stop: Mutex<Option<Sender<()>>>,
    pub(super) stopped: Receiver<()>,
}

impl ReceiveLoop {
    /// Starts `tiny_http` on the listening socket behind `gate`.
    /// Errors: no descriptor or no thread is left.
    pub(crate) fn start(shared: Arc<Shared>, gate: Arc<AcceptGate>, serve: Arc<Serve>) -> io::Result<ReceiveLoop> {
        let server = RunningServer::start(gate.listener())?;
        shared.monitor.accept_point().brake().set_accept_fd(server.accept_fd());
        let (stop, stopped) = bounded(0);
        Ok(ReceiveLoop {
            shared,
            gate,
            serve: Mutex::new(Some(serve)),
            current: Mutex::new(Some(server)),
            stopping: AtomicBool::new(false),
            handed_over: AtomicBool::new(false),
            restart_wanted: AtomicBool::new(false),
            stop: Mutex::new(Some(stop)),
            stopped,
        })
    }

    pub(super) fn server(&self) -> Option<Arc<Server>> {
        lock(&self.current).as_ref().map(RunningServer::server)
    }

    pub(super) fn accept_point(&self) -> &AcceptPoint {
        self.shared.monitor.accept_point()
    }

    fn unblock(&self) {
        if let Some(server) = self.server() {
            server.unblock();
        }
    }

    /// Makes `tiny_http` stop accepting: connections that the kernel queues from here on are left to the next holder of
    /// the listening socket.
    /// Errors: see [`AcceptPoint::redirect`].
    pub(crate) fn hand_over(&self) -> io::Result<()> {
        self.handed_over.store(true, Ordering::Release);
        self.accept_point().redirect()
    }

    /// Makes `tiny_http` accept from the listening socket again.
    pub(crate) fn take_back(&self) {
        let result = self.accept_point().restore();
        self.handed_over.store(false, Ordering::Release);
        if let Err(error) = result {
            log::debug!("tiny_http's accept thread has ended meanwhile: {error}");
            self.request_restart();
        }
    }

    /// Makes `run` return.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        drop(lock(&self.stop).take());
        self.unblock();
    }

    /// Makes the listener restart `tiny_http`, whose accept thread has ended.
    pub(crate) fn request_restart(&self) {
        self.restart_wanted.store(true, Ordering::Release);
        self.unblock();
    }

    /// Releases `tiny_http` and the listening socket, once all threads have ended.
    pub(crate) fn finish(&self, socket_is_shared: bool) {
        lock(&self.serve).take();
        let Some(running) = lock(&self.current).take() else { return };
        if socket_is_shared {
            // Dropping the server would connect to a port that belongs to another holder by now.
            std::mem::forget(running);
        } else {
            self.end_accept_thread(running);
        }
    }

    /// Ends tiny_http's accept thread, and closes the port.
    ///
    /// Shutting the socket under the thread would end it with an error, which tiny_http logs. It ends without one if it
    /// accepts a connection after its `Server` was dropped. That drop connects to the port: it must be closed by then, or
    /// the gate in front of it makes the connection hang. So the thread is made to accept elsewhere first.
    fn end_accept_thread(&self, running: RunningServer) {
        let handed_over = self.handed_over.load(Ordering::Acquire);
        let redirected = if handed_over { Ok(()) } else { self.accept_point().redirect() };
        let redirected = redirected.and_then(|()| self.accept_point().wait_for_private_accept(ACCEPT_LIMIT));
        server::shut_listener(self.gate.listener());
        drop(running);
        let ended = redirected.and_then(|()| self.accept_point().wait_for_thread_end(ACCEPT_LIMIT));
        // Where it had ended by itself there was nothing to redirect.
        if let (Err(error), true) = (ended, self.accept_point().brake().is_thread_alive()) {
            log::debug!("tiny_http's accept thread was ended by closing its socket: {error}");
        }
    }

    /// Serves what `server` has received, without waiting for more.
    pub(super) fn drain_queue(&self, server: &Server, serve: &Serve) {
        let (mut run_queue, mut batch) = (RunQueue::new(), Vec::new());
        let mut more = true;
        while more {
            more = matches!(self.receive_batch(server, &mut batch), Ok(false));
            self.admit(batch.drain(..), &mut run_queue);
        }
        serve_all(serve, &mut run_queue);
    }

    /// Receives up to [`RECEIVE_BATCH`] requests. True if there were no more.
    fn receive_batch(&self, server: &Server, batch: &mut Vec<tiny_http::Request>) -> io::Result<bool> {
        while batch.len() < RECEIVE_BATCH {
            let Some(request) = server.try_recv()? else { return Ok(true) };
            self.shared.connections.set_engine_queue_empty(false);
            batch.push(request);
        }
        Ok(false)
    }

    /// Admits the requests of one batch.
    fn admit(&self, requests: impl IntoIterator<Item = tiny_http::Request>, run_queue: &mut RunQueue) {
        let mut batch = Batch::new(&self.shared);
        let admitted = requests.into_iter().filter_map(|request| batch.admit(request));
        run_queue.extend(admitted.map(crate::engine::Exchange::TinyHttp));
    }

    /// Receives and serves until told to stop, or until `tiny_http` fails. Exchanges that were not served when it returns
    /// stay in `run_queue`.
    pub(super) fn receive(
        &self,
        server: &Server,
        serve: &Serve,
        run_queue: &mut RunQueue,
        stop: &AtomicBool,
        restart_wanted: &AtomicBool,
    ) -> ReceiveEnd {
        let mut spin = SpinWait::default();
        let mut batch = Vec::with_capacity(RECEIVE_BATCH);
        loop {
            // `try_recv` takes the marker that `unblock` leaves as well: the flags say why it was left.
            let emptied = self.receive_batch(server, &mut batch);
            self.admit(batch.drain(..), run_queue);
            match emptied {
                Ok(emptied) if emptied => self.shared.connections.set_engine_queue_empty(true),
                Ok(_) => {}
                Err(error) => return ReceiveEnd::Failed(error),
            }
            if let Some(exchange) = run_queue.pop_front() {
                spin.on_served(exchange.peer());
                run_queue.extend(serve(exchange));
                continue;
            }
            if stop.load(Ordering::Acquire) {
                return ReceiveEnd::Stopped;
            }
            if restart_wanted.swap(false, Ordering::AcqRel) {
                return ReceiveEnd::RestartWanted;
            }
            if spin.should_spin() {
                thread::yield_now();
                continue;
            }
            let asleep = Instant::now();
            let received = server.recv();
            self.shared.connections.set_engine_queue_empty(false);
            match received {
                Ok(request) => self.admit([request], run_queue),
                // The marker of `unblock`: the flags say why it was left. An error of tiny_http itself has an error
                // number.
                Err(error) if error.raw_os_error().is_none() => {}
                Err(error) => return ReceiveEnd::Failed(error),
            }
            spin.on_sleep(asleep.elapsed());
        }
    }
}

pub(super) fn serve_all(serve: &Serve, run_queue: &mut RunQueue) {
    while let Some(exchange) = run_queue.pop_front() {
        run_queue.extend(serve(exchange));
    }
}

/// Decides whether to spin or to sleep until the next request.
///
/// A sleep and a wake-up cost more than an inline response, so the listener spins where one or two clients ask in quick
/// succession: they get twice as many responses. It sleeps where requests are rare, and where more clients ask: then each
/// sleep serves several of them, and the threads that read their next requests need the core (1.4 of 17 µs of CPU time for
/// each request of 64 clients, on two cores).
#[derive(Default)]
struct SpinWait {
    started: Option<Instant>,
    /// The latest sleep was short.
    worthwhile: bool,
    /// The latest two clients.
    clients: [Option<Peer>; 2],
    /// Requests served since another client has asked.
    in_a_row: u32,
}

/// Maximum spin: about the cost of a sleep and a wake-up, so that a spin without a request at most doubles that cost.
const SPIN_FOR: Duration = Duration::from_micros(50);

/// Sleep, shorter than which requests count as arriving in quick succession.
const SPIN_IF_SLEPT_LESS: Duration = Duration::from_micros(200);

/// Requests in a row of the same one or two clients after which no other client counts as active: more than occur by
/// chance.
const SPIN_FROM: u32 = 4;

impl SpinWait {
    fn on_served(&mut self, client: Peer) {
        self.started = None;
        if self.clients.contains(&Some(client)) {
            self.in_a_row = self.in_a_row.saturating_add(1);
        } else {
            self.clients = [self.clients[1], Some(client)];
            self.in_a_row = 0;
        }
    }

    /// Whether to yield and try again, rather than to sleep.
    fn should_spin(&mut self) -> bool {
        if !self.worthwhile || self.in_a_row < SPIN_FROM {
            return false;
        }
        self.started.get_or_insert_with(Instant::now).elapsed() < SPIN_FOR
    }

    fn on_sleep(&mut self, span: Duration) {
        self.worthwhile = span < SPIN_IF_SLEPT_LESS;
    }
}

/// Why [`ReceiveLoop::receive`] returned.
pub(super) enum ReceiveEnd {
    Stopped,
    RestartWanted,
    Failed(io::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(port: u16) -> Peer {
        Peer::Inet(([127, 0, 0, 1], port).into())
    }

    fn serve(spin: &mut SpinWait, ports: impl IntoIterator<Item = u16>) {
        ports.into_iter().for_each(|port| spin.on_served(client(port)));
    }

    #[test]
    fn the_listener_spins_for_one_or_two_clients_in_quick_succession_and_for_no_more() {
        let mut spin = SpinWait::default();
        serve(&mut spin, [1; 10]);
        assert!(!spin.should_spin(), "it has not slept yet");
        spin.on_sleep(SPIN_IF_SLEPT_LESS / 2);
        assert!(spin.should_spin());
        serve(&mut spin, [1, 2].repeat(5));
        assert!(spin.should_spin());
        serve(&mut spin, [1, 2, 3].repeat(5));
        assert!(!spin.should_spin());
        serve(&mut spin, [3; 10]);
        assert!(spin.should_spin(), "the others have left");
        spin.on_sleep(SPIN_IF_SLEPT_LESS);
        assert!(!spin.should_spin(), "requests are rare");
    }

    #[test]
    fn a_spin_without_a_request_ends() {
        let mut spin = SpinWait::default();
        serve(&mut spin, [1; 10]);
        spin.on_sleep(Duration::ZERO);
        let began = Instant::now();
        while spin.should_spin() {
            assert!(began.elapsed() < Duration::from_secs(10), "it has spun for 10 s");
        }
        assert!(began.elapsed() >= SPIN_FOR);
        serve(&mut spin, [1]);
        assert!(spin.should_spin(), "a request begins the next one");
    }
}
