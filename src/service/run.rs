//! A service that runs: the cause that ends it, the re-exec that may follow, and the handle of one that was started.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded};
use rustix::process::Signal;
use signal_hook::consts::SIGXFSZ;

use crate::crew::Crew;
use crate::crew::hooks::Hook;
use crate::crew::message::Stopper;
use crate::crew::outcome::{Cause, Outcome};
use crate::crew::pool::Pool;
use crate::crew::shutdown::Shutdown;
use crate::crew::signals::{self, SignalSource};
use crate::dispatch::Job;
use crate::engine::Address;
use crate::lifecycle::drain::Drain;
use crate::lifecycle::phase::Phase;
use crate::lifecycle::reexec::{self, Binary, MIN_LEAK_REEXEC_INTERVAL, Preflight};
use crate::listen::ListenSocket;
use crate::sys;
use crate::text::panic_message;

/// Interval between two checks for the end of a preflight: a process that was started offers no event to the crew's
/// channel.
const PREFLIGHT_TICK: Duration = Duration::from_millis(5);

/// Takes over what belongs to the process as a whole: its signals, its name, and dispositions that it may have inherited.
/// Errors: the system refuses the pipe or the handlers.
pub(super) fn own_process() -> io::Result<SignalSource> {
    let source = signals::register()?;
    // The process was started with it ignored: no preflight could be waited for.
    sys::signals::unignore_sigchld();
    // By default it ends the process; a log that reaches RLIMIT_FSIZE is to get a failed write (EFBIG) instead. Handled
    // and not ignored, because children inherit ignored signals. Nothing reads the flag.
    signal_hook::flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)))?;
    reexec::restore_process_name();
    Ok(source)
}

/// All parts of a service, started.
pub(super) struct Parts {
    pub(super) crew: Crew,
    pub(super) drain: Drain,
    /// The listening sockets, in the order of the engines.
    pub(super) sockets: Vec<ListenSocket>,
    pub(super) pool: Arc<Pool<Job>>,
    /// Addresses of the sockets.
    pub(super) addresses: Vec<SocketAddr>,
    /// The service owns the process, and may go on with another binary.
    pub(super) may_reexec: bool,
    pub(super) grace: Duration,
    pub(super) before: Vec<Hook>,
    pub(super) after: Vec<Hook>,
}

impl Parts {
    /// Serves until there is a cause to stop, drains, and exits or re-executes.
    pub(super) fn run(mut self) -> Outcome {
        let (cause, next_image) = self.wait_for_cause();
        let mut shutdown = Shutdown::new(cause, self.grace);
        self.drain.lifecycle.announce(&shutdown);
        let handed_over = self.drain.run(&mut self.crew, &mut shutdown, self.before, self.after);
        if handed_over {
            if let Err(error) = sys::signals::hold(&signals::HANDLED) {
                log::error!("signals during the re-exec may be lost: {error}");
            }
        }
        // Signals that were caught before they were held are handled now.
        self.crew.stop_signal_thread(&mut shutdown);
        self.drain.lifecycle.enter(Phase::Stopped);
        if shutdown.forced_by.is_none() && shutdown.abandoned.is_empty() {
            self.pool.join();
        }
        if let (true, None, Some(binary)) = (handed_over, shutdown.forced_by, next_image) {
            log::info!("re-executing {}", shutdown.cause.time_after(shutdown.started.elapsed()));
            let sockets: Vec<_> = self.sockets.iter().map(|socket| (socket.listener.as_fd(), socket.label())).collect();
            let error = reexec::exec_new_image(&binary, &sockets, &for_next_image(&shutdown));
            shutdown.failures.push(format!("the re-exec failed: {error}"));
        }
        for (engine, socket) in self.drain.engines.iter().zip(&self.sockets) {
            engine.finish(socket.outlives_us);
        }
        log_outcome(shutdown.outcome())
    }

    /// Serves until there is a cause to stop. A re-exec becomes the cause only once the new binary has passed its
    /// preflight, and is returned with that binary.
    fn wait_for_cause(&mut self) -> (Cause, Option<Binary>) {
        let unix = self.drain.engines.iter().find_map(|engine| match engine.address() {
            Address::Unix(path) => Some(path.clone()),
            Address::Inet(_) => None,
        });
        let mut requests = ReexecRequests { started: Instant::now(), unix, leak: None, preflight: None, again: None };
        loop {
            match self.crew.wait_first_until(requests.check_at()) {
                Some(Cause::Reexec(why)) if self.may_reexec => requests.request(why),
                Some(Cause::Reexec(why)) => {
                    log::warn!("{why} ignored: re-exec is off, or not possible, as by Service::start");
                }
                Some(Cause::EngineLeak(why)) if self.may_reexec => {
                    log::warn!("{why}");
                    requests.leak = Some(why);
                }
                Some(cause) => return (cause, None),
                None => {}
            }
            if let Some((why, binary)) = requests.check() {
                if let Some(again) = requests.again {
                    self.crew.stopper().reexec(again); // for the drain, which passes it on to the next image
                }
                return (Cause::Reexec(why), Some(binary));
            }
        }
    }
}

/// The thread that is to run a service which is not started yet. It receives the parts, once, from the thread that starts
/// them; if that drops the sender instead, it ends.
pub(super) struct Runner {
    parts: Sender<Parts>,
    thread: JoinHandle<Outcome>,
}

impl Runner {
    /// Errors: the system cannot create a thread.
    pub(super) fn spawn() -> io::Result<Runner> {
        let (parts, started) = bounded::<Parts>(1);
        let run = move || match started.recv() {
            Ok(parts) => parts.run(),
            Err(_) => Outcome::immediate(Cause::NotStarted("a part did not start".to_owned())), // not read: the start returns its error
        };
        Ok(Runner { parts, thread: thread::Builder::new().name("allout".to_owned()).spawn(run)? })
    }

    /// Runs the service on its thread.
    pub(super) fn run(self, parts: Parts) -> ServiceHandle {
        let (addresses, stopper) = (parts.addresses.clone(), parts.crew.stopper());
        let _ = self.parts.send(parts); // there is room for one, and the thread does not end before it receives it
        ServiceHandle { addresses, stopper, thread: Some(self.thread) }
    }
}

/// Logs how it went.
pub(super) fn log_outcome(outcome: Outcome) -> Outcome {
    let level = if outcome.code() == 0 { log::Level::Info } else { log::Level::Error };
    let (code, abandoned, failures) = (outcome.code(), outcome.abandoned.len(), outcome.failures.len());
    let milliseconds = u64::try_from(outcome.duration.as_millis()).unwrap_or(u64::MAX);
    log::log!(
        target: "allout::lifecycle",
        level,
        cause:% = outcome.cause, code, abandoned, failures, duration_ms = milliseconds;
        "stopped: {outcome}"
    );
    outcome
}

/// The signals that the next image is to receive: a stop that came too late for this one, and a re-exec that was asked
/// for during this one.
fn for_next_image(shutdown: &Shutdown) -> Vec<Signal> {
    let stop = match &shutdown.cause {
        Cause::Reexec(_) => None,
        Cause::Signal(number) => Signal::from_named_raw(*number),
        _ => Some(Signal::TERM),
    };
    let again = shutdown.reexec_again.then_some(Signal::HUP);
    stop.into_iter().chain(again).collect()
}

/// Re-exec requests while the service serves.
struct ReexecRequests {
    /// Moment at which this image started to serve.
    started: Instant,
    /// The path of a Unix socket that the next image is left.
    unix: Option<PathBuf>,
    /// The engine leaks; a re-exec waits until it is [allowed](reexec::may_reexec_for_leak).
    leak: Option<String>,
    /// The preflight that decides, and why it was started.
    preflight: Option<(String, Preflight)>,
    /// Reason of a request during the preflight, after which the binary on disk may be another one.
    again: Option<String>,
}

impl ReexecRequests {
    fn request(&mut self, why: String) {
        if self.preflight.is_some() {
            self.again = Some(why);
        } else {
            self.start_preflight(why);
        }
    }

    fn start_preflight(&mut self, why: String) {
        match Preflight::start(self.unix.as_deref()) {
            Ok(preflight) => self.preflight = Some((why, preflight)),
            Err(error) => log::error!("re-exec cancelled ({why}): cannot start the new binary: {error}"),
        }
    }

    /// Moment of the next [check](ReexecRequests::check) without a message.
    fn check_at(&self) -> Option<Instant> {
        match (&self.preflight, &self.leak) {
            (Some(_), _) => Some(Instant::now() + PREFLIGHT_TICK),
            (None, Some(_)) => Some(self.started + MIN_LEAK_REEXEC_INTERVAL),
            (None, None) => None,
        }
    }

    /// Starts a preflight that is due, and returns why to re-exec, and with what, once one has passed.
    fn check(&mut self) -> Option<(String, Binary)> {
        if self.preflight.is_none() && reexec::may_reexec_for_leak(self.started) {
            if let Some(why) = self.leak.take() {
                self.start_preflight(why);
            }
        }
        let result = self.preflight.as_mut()?.1.result()?;
        let (why, _) = self.preflight.take()?;
        match result {
            Ok(binary) => return Some((why, binary)),
            Err(error) => log::error!("re-exec cancelled ({why}): {error}"),
        }
        if let Some(again) = self.again.take() {
            self.start_preflight(again);
        }
        None
    }
}

/// A service that was [started](crate::Service::start) within this process. Dropping it stops the service and waits.
#[derive(Debug)]
#[must_use = "the service is stopped when its handle is dropped"]
pub struct ServiceHandle {
    /// Empty if it listens on Unix sockets alone.
    addresses: Vec<SocketAddr>,
    stopper: Stopper,
    thread: Option<JoinHandle<Outcome>>,
}

impl ServiceHandle {
    /// The first address that it listens on, with the port that the kernel chose; `0.0.0.0:0` if it listens on Unix
    /// sockets alone.
    pub fn address(&self) -> SocketAddr {
        self.addresses.first().copied().unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], 0)))
    }

    /// All addresses that it listens on: those of [listeners of the program's own](crate::Service::listener) first,
    /// that of the admin routes last.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// A handle that stops it, from any thread.
    pub fn stopper(&self) -> Stopper {
        self.stopper.clone()
    }

    /// Stops it, and waits until it has stopped: for its grace period at most.
    ///
    /// ```
    /// let running = allout::Service::new().listen("127.0.0.1:0").start()?;
    /// assert_eq!(running.stop("enough").code(), 0);
    /// # Ok::<(), allout::StartError>(())
    /// ```
    pub fn stop(mut self, reason: &str) -> Outcome {
        self.stopper.stop(reason);
        self.join()
    }

    /// Waits until it has stopped, for whatever cause.
    pub fn wait(mut self) -> Outcome {
        self.join()
    }

    fn join(&mut self) -> Outcome {
        let Some(thread) = self.thread.take() else {
            return Outcome::immediate(Cause::Requested("the service was joined before".to_owned()));
        };
        thread.join().unwrap_or_else(|payload| {
            let message = format!("the thread that ran the service panicked: {}", panic_message(payload));
            Outcome::immediate(Cause::NotStarted(message))
        })
    }
}

impl Drop for ServiceHandle {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.stopper.stop("its handle was dropped");
            let _ = self.join(); // its outcome is in the log
        }
    }
}
