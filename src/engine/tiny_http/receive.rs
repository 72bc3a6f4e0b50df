//! The listener: receives requests from tiny_http, and answers or passes on each.
//!
//! It takes what has arrived, up to [`AT_ONCE`], before it answers the next, so that requests which wait are seen where
//! they wait: on their connection's page, one turn for each connection. It blocks only when nothing has arrived and
//! nobody's turn is left; where requests come quickly it waits awake for a moment first (see [`SpinWait`]).
//!
//! When tiny_http stops accepting (see [`engine`](crate::engine::tiny_http::server)), the listener starts it anew on the same socket. What
//! the old one still has is received by a thread of its own, which the listener owns and joins.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use tiny_http::Server;

use crate::dispatch::{Dispatch, Ready};
use crate::engine::gate::AcceptGate;
use crate::engine::tiny_http::monitor::Monitor;
use crate::engine::tiny_http::server::Engine;
use crate::sync::{WarnOnce, lock};
use std::sync::Mutex;

/// How long to wait before tiny_http is started anew, when it could not be: descriptors or threads are missing.
const AGAIN: Duration = Duration::from_millis(100);

/// Requests taken before the next is answered: many, so that those which wait are seen to wait; and not all, for a
/// hundred clients that pipeline as fast as they can send them faster than anyone can take them.
const AT_ONCE: usize = 64;

/// What the listener needs, and what others need of it.
pub(crate) struct ReceiveLoop {
    dispatch: Arc<Dispatch>,
    gate: Arc<AcceptGate>,
    monitor: Arc<Monitor>,
    current: Mutex<ActiveServer>,
    stopping: AtomicBool,
    /// tiny_http is not to accept from the listening socket any more.
    handed_over: AtomicBool,
    replace: AtomicBool,
    stop: Mutex<Option<Sender<()>>>,
    stopped: Receiver<()>,
}

impl ReceiveLoop {
    pub(crate) fn new(
        dispatch: Arc<Dispatch>,
        gate: Arc<AcceptGate>,
        monitor: Arc<Monitor>,
        engine: &Engine,
    ) -> ReceiveLoop {
        let (stop, stopped) = bounded(0);
        ReceiveLoop {
            dispatch,
            gate,
            monitor,
            current: Mutex::new(ActiveServer { server: engine.server(), number: engine.number() }),
            stopping: AtomicBool::new(false),
            handed_over: AtomicBool::new(false),
            replace: AtomicBool::new(false),
            stop: Mutex::new(Some(stop)),
            stopped,
        }
    }

    fn server(&self) -> Arc<Server> {
        Arc::clone(&lock(&self.current).server)
    }

    /// Has tiny_http accept no more, for the sake of whoever gets the listening socket next: what the kernel queues from
    /// here on is theirs.
    ///
    /// # Errors
    ///
    /// See [`AcceptGate::show_side_door`].
    pub(crate) fn hand_over(&self) -> io::Result<()> {
        self.handed_over.store(true, Ordering::Release);
        let number = lock(&self.current).number;
        self.gate.redirect_accept(number)
    }

    /// Makes the listener leave.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        drop(lock(&self.stop).take());
        self.server().unblock();
    }

    /// Makes the listener start tiny_http anew.
    pub(crate) fn replace_engine(&self) {
        self.replace.store(true, Ordering::Release);
        self.server().unblock();
    }

    /// The listener's life.
    ///
    /// # Errors
    ///
    /// tiny_http does not accept any more, for a reason that will not pass.
    pub(crate) fn run(self: &Arc<Self>) -> io::Result<()> {
        let mut former: Vec<RetiredServer> = Vec::new();
        let mut ready = Ready::new();
        let result = loop {
            let server = self.server();
            match self.receive(&server, &mut ready, &self.stopping, &self.replace) {
                ReceiveEnd::Stopped => break Ok(()),
                // It is not to be started anew; what its connections still ask is received as before.
                ReceiveEnd::Failed(_) | ReceiveEnd::Replaced if self.handed_over.load(Ordering::Acquire) => continue,
                ReceiveEnd::Failed(error) if !passes(&error) => break Err(error),
                ReceiveEnd::Failed(error) => {
                    log::warn!("tiny_http accepts no more connections ({error}): starting it anew");
                }
                ReceiveEnd::Replaced => log::warn!("tiny_http accepts no more connections: starting it anew"),
            }
            self.monitor.engine_is_dead.store(true, Ordering::Release);
            self.serve_all(&mut ready);
            self.retire(&mut former);
            // What the old one still has must be received meanwhile; if no thread can be had for it, later.
            match self.start_anew(&server, &mut former) {
                Some(engine) => {
                    *lock(&self.current) = ActiveServer { server: engine.server(), number: engine.number() };
                    self.replace.store(false, Ordering::Release);
                    self.monitor.engine_is_dead.store(false, Ordering::Release);
                    log::info!("tiny_http accepts again");
                }
                None => break Ok(()), // told to stop meanwhile
            }
        };
        for former in former {
            former.end();
        }
        result
    }

    /// Ends the threads of dead engines that have no connections left.
    fn retire(&self, former: &mut Vec<RetiredServer>) {
        let oldest = self.dispatch.connections.all().iter().map(|connection| connection.opened).min();
        let (done, left) =
            std::mem::take(former).into_iter().partition(|former| oldest.is_none_or(|oldest| oldest > former.since));
        *former = left;
        let done: Vec<RetiredServer> = done;
        done.into_iter().for_each(RetiredServer::end);
    }

    fn start_anew(self: &Arc<Self>, old: &Arc<Server>, former: &mut Vec<RetiredServer>) -> Option<Engine> {
        let mut receiving = false;
        let warn_once = WarnOnce::default();
        loop {
            if !receiving {
                match RetiredServer::start(Arc::clone(self), Arc::clone(old)) {
                    Ok(thread) => {
                        former.push(thread);
                        receiving = true;
                    }
                    // Then it is received here, in between.
                    Err(_) => self.receive_what_is_there(old),
                }
            }
            let started = if receiving { self.start_engine() } else { Err(io::Error::other("no thread is left")) };
            match started {
                Ok(engine) => return Some(engine),
                Err(error) => {
                    if warn_once.is_first() {
                        log::warn!("tiny_http cannot be started anew yet: {error}");
                    }
                    self.monitor.request_eviction();
                }
            }
            match self.stopped.recv_timeout(AGAIN) {
                Err(RecvTimeoutError::Timeout) => {}
                _ => return None,
            }
        }
    }

    /// An engine, once there are descriptors for what waits in the kernel's queue: it accepts all that at once.
    fn start_engine(&self) -> io::Result<Engine> {
        let each = 3; // two for tiny_http, one for the keeper
        // More may wait there than can ever be held, most of them gone by now: those are accepted in several goes.
        let most = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX) / 2;
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        let needed = (16 + each * self.gate.accept_queue_len() as usize).min(most);
        let spare: Result<Vec<_>, _> = (0..needed).map(|_| self.gate.listener().try_clone()).collect();
        drop(spare?);
        Engine::start(self.gate.listener())
    }

    fn receive_what_is_there(self: &Arc<Self>, server: &Server) {
        let mut ready = Ready::new();
        while let Ok(Some(request)) = server.try_recv() {
            self.dispatch.arrive(request, &mut ready);
        }
        self.serve_all(&mut ready);
    }

    fn serve_all(&self, ready: &mut Ready) {
        while let Some(turn) = ready.pop_front() {
            ready.extend(self.dispatch.serve(turn));
        }
    }

    /// Receives and answers until told to stop, or until tiny_http fails.
    /// Turns that were not taken when it returns stay in `ready`.
    fn receive(&self, server: &Server, ready: &mut Ready, stop: &AtomicBool, replace: &AtomicBool) -> ReceiveEnd {
        let mut pause = SpinWait::default();
        loop {
            // A marker that `unblock` left is taken by `try_recv`, too: the flags say what it was for.
            for _ in 0..AT_ONCE {
                match server.try_recv() {
                    Ok(Some(request)) => self.dispatch.arrive(request, ready),
                    Ok(None) => break,
                    Err(error) => return ReceiveEnd::Failed(error),
                }
            }
            if let Some(turn) = ready.pop_front() {
                ready.extend(self.dispatch.serve(turn));
                pause.over();
                continue;
            }
            if stop.load(Ordering::Acquire) {
                return ReceiveEnd::Stopped;
            }
            if replace.swap(false, Ordering::AcqRel) {
                return ReceiveEnd::Replaced;
            }
            if pause.goes_on() {
                thread::yield_now();
                continue;
            }
            let asleep = Instant::now();
            self.dispatch.connections.set_all_taken_in(true);
            let received = server.recv();
            self.dispatch.connections.set_all_taken_in(false);
            match received {
                Ok(request) => self.dispatch.arrive(request, ready),
                // The marker of `unblock`: the flags say what for. An error of tiny_http's own has a number.
                Err(error) if error.raw_os_error().is_none() => {}
                Err(error) => return ReceiveEnd::Failed(error),
            }
            pause.slept(asleep.elapsed());
        }
    }
}

/// Whether to wait for the next request awake or asleep.
///
/// To be put to sleep and woken costs more than to answer one request, so where requests come one by one in quick
/// succession, the listener waits awake for the next. Where they come seldom it does not, so that nothing is burnt for a
/// request now and then; nor where they come in crowds: one sleep costs a crowd next to nothing, and the threads that
/// bring the next one need the core.
#[derive(Default)]
struct SpinWait {
    since: Option<Instant>,
    brisk: bool,
    answered: usize,
}

/// How long to wait awake: about what a sleep and a wake-up cost, so that waiting in vain costs twice as much at most.
const AWAKE: Duration = Duration::from_micros(50);

/// A sleep that was shorter than this shows that requests come in quick succession.
const SHORT_SLEEP: Duration = Duration::from_micros(200);

/// As many answers from one pause to the next show that they come in crowds.
const CROWD: usize = 8;

impl SpinWait {
    /// One was answered.
    fn over(&mut self) {
        if self.since.take().is_some() {
            self.answered = 0;
        }
        self.answered += 1;
    }

    /// Whether to yield and look again, rather than to sleep.
    fn goes_on(&mut self) -> bool {
        match self.since {
            None => {
                self.since = Some(Instant::now());
                true // once in any case: it costs next to nothing
            }
            Some(since) => self.brisk && self.answered < CROWD && since.elapsed() < AWAKE,
        }
    }

    fn slept(&mut self, span: Duration) {
        self.brisk = span < SHORT_SLEEP;
    }
}

/// The engine that accepts.
struct ActiveServer {
    server: Arc<Server>,
    number: RawFd,
}

/// Why `receive` returned.
enum ReceiveEnd {
    Stopped,
    Replaced,
    Failed(io::Error),
}

/// Whether an error of `accept` passes: all those that are about one connection, or about what is missing at the moment
/// (accept(2)), as opposed to those that say that this is no listening socket any more.
fn passes(error: &io::Error) -> bool {
    !matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EBADF | libc::ENOTSOCK | libc::EOPNOTSUPP))
}

/// A thread that receives what a dead engine's connections still ask.
struct RetiredServer {
    thread: Option<JoinHandle<()>>,
    server: Arc<Server>,
    stop: Arc<AtomicBool>,
    since: Instant,
}

impl RetiredServer {
    fn start(listener: Arc<ReceiveLoop>, server: Arc<Server>) -> io::Result<RetiredServer> {
        let stop = Arc::new(AtomicBool::new(false));
        let (of_thread, told) = (Arc::clone(&server), Arc::clone(&stop));
        let thread = thread::Builder::new().name("former-listener".to_owned()).spawn(move || {
            let never = AtomicBool::new(false);
            let mut ready = Ready::new();
            // A dead engine has no more errors of its own to tell.
            while !matches!(listener.receive(&of_thread, &mut ready, &told, &never), ReceiveEnd::Stopped) {}
        })?;
        Ok(RetiredServer { thread: Some(thread), server, stop, since: Instant::now() })
    }

    fn end(mut self) {
        self.stop.store(true, Ordering::Release);
        self.server.unblock();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // a panic there was one of ours, and has been printed
        }
        // Dropping it would connect to a port that belongs to another engine by now; its own thread is gone.
        std::mem::forget(self.server);
    }
}
