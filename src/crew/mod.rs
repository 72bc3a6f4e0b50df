//! The crew: a group of threads that start as one and stop as one, as Go's `errgroup` and `oklog/run`'s `Group` are. It
//! knows nothing of HTTP.
//!
//! A *member* is a named thread that reports its exit to the crew's one channel, also when it panics. The first message
//! in that channel (an exit, or a [`Command`](message::Command)) is the [`Cause`] of the stop that follows: the thread
//! that runs the crew then tells every member to stop and waits for each exit until the grace period is over.
//!
//! # Who sends, who receives, what may block
//!
//! The channel is unbounded, so **no send ever blocks**; it holds one exit per member and a few commands. Senders: each
//! member's [`ExitGuard`] (its exit, once), the signal thread and every [`Stopper`] (commands), and the parts that a
//! drain waits for ([`Message::Recheck`]). The only receiver is the thread that runs the crew.

pub(crate) mod hooks;
pub(crate) mod member;
pub(crate) mod message;
pub(crate) mod outcome;
pub(crate) mod pool;
pub(crate) mod shutdown;
pub(crate) mod signals;
pub(crate) mod stop;
#[cfg(test)]
mod tests;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};

use crate::clock::saturating_add;
use crate::crew::member::{Exit, Interrupt, MemberTable, Restarts, SlotId, catch_exit, thread_name};
use crate::crew::message::{ExitGuard, Message, Stopper};
use crate::crew::outcome::{Cause, Outcome};
use crate::crew::shutdown::Shutdown;
use crate::crew::stop::Stop;
use crate::sys::children::reap_orphans;
use crate::text::panic_message;

/// Default grace period: the 30 s of the Go program that allout grew from, and of Kubernetes
/// (`terminationGracePeriodSeconds`).
pub(crate) const GRACE: Duration = Duration::from_secs(30);

/// Longest wait for the signal thread to end: it has nothing to finish.
const SIGNAL_THREAD_EXIT: Duration = Duration::from_millis(100);

/// A group of threads that live and die together.
///
/// ```
/// use std::time::Duration;
/// use allout::Crew;
///
/// let mut crew = Crew::new().grace(Duration::from_secs(5));
/// crew.spawn("ticker", |stop| {
///     while !stop.wait_timeout(Duration::from_millis(10)) { /* tick */ }
/// })?;
/// crew.spawn("job", |_| std::fs::metadata("/").map(drop))?; // its end stops the ticker
///
/// let outcome = crew.run();
/// assert_eq!(outcome.cause.to_string(), "job finished");
/// assert!(outcome.abandoned.is_empty());
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// Dropping a crew without running it neither stops its members nor waits for them.
#[must_use = "nothing waits for a crew's members until it is run"]
pub struct Crew {
    sender: Sender<Message>,
    receiver: Receiver<Message>,
    members: MemberTable,
    /// The signal thread, which stops after all other members, so that a second signal is handled until then.
    signals: Option<SlotId>,
    stop: Stop,
    grace: Duration,
}

impl fmt::Debug for Crew {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let members: Vec<String> = self.members.snapshot().into_iter().map(|member| member.name).collect();
        f.debug_struct("Crew").field("members", &members).field("grace", &self.grace).finish_non_exhaustive()
    }
}

impl Default for Crew {
    fn default() -> Crew {
        Crew::new()
    }
}

impl Crew {
    /// A crew without members, with a grace period of 30 s.
    pub fn new() -> Crew {
        let (sender, receiver) = unbounded();
        Crew { sender, receiver, members: MemberTable::default(), signals: None, stop: Stop::new(), grace: GRACE }
    }

    /// Sets the grace period: the time that members have to stop, from the cause on. Default 30 s.
    ///
    /// ```
    /// let crew = allout::Crew::new().grace(std::time::Duration::from_secs(5));
    /// ```
    pub fn grace(mut self, grace: Duration) -> Crew {
        self.grace = grace;
        self
    }

    /// The stop as members see it: it tells them to return. A member that does not look at it is abandoned at the end
    /// of the grace period.
    pub fn stop(&self) -> Stop {
        self.stop.clone()
    }

    /// The table of members, for other threads.
    pub(crate) fn members(&self) -> MemberTable {
        self.members.clone()
    }

    /// A handle that stops this crew, from any thread.
    pub fn stopper(&self) -> Stopper {
        Stopper { sender: self.sender.clone() }
    }

    /// Starts a member: a thread of this name (the first 15 bytes are kept) that runs `body`.
    ///
    /// Its [`Stop`] tells the body to return. The body returns nothing, or a `Result` of nothing. Its end stops the whole
    /// crew, whether it returns or panics; a panic is caught.
    ///
    /// ```
    /// let mut crew = allout::Crew::new();
    /// crew.spawn("worker", |stop| stop.wait())?;
    /// crew.stopper().stop("enough");
    /// assert_eq!(crew.run().code(), 0);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// The system cannot create a thread.
    pub fn spawn<R: Into<Exit>>(
        &mut self,
        name: &str,
        body: impl FnOnce(&Stop) -> R + Send + 'static,
    ) -> std::io::Result<()> {
        let stop = self.stop();
        self.spawn_member(name, None, move || body(&stop)).map(drop)
    }

    /// As [`spawn`](Crew::spawn), for a member that waits for something else than [`Stop`]: `interrupt` is called once,
    /// from the thread that runs the crew, to make the body return. It must not block, and must be safe to call after the
    /// body has returned.
    ///
    /// ```
    /// use std::net::{TcpListener, TcpStream};
    ///
    /// let mut crew = allout::Crew::new();
    /// let listener = TcpListener::bind("127.0.0.1:0")?;
    /// let address = listener.local_addr()?;
    /// let wake = move || drop(TcpStream::connect(address));
    /// crew.spawn_with_interrupt("acceptor", wake, move || listener.accept().map(drop))?;
    /// crew.stopper().stop("enough");
    /// assert_eq!(crew.run().code(), 0);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// The system cannot create a thread.
    pub fn spawn_with_interrupt<R: Into<Exit>>(
        &mut self,
        name: &str,
        interrupt: impl FnOnce() + Send + 'static,
        body: impl FnOnce() -> R + Send + 'static,
    ) -> std::io::Result<()> {
        self.spawn_member(name, Some(Box::new(interrupt)), body).map(drop)
    }

    pub(crate) fn spawn_member<R: Into<Exit>>(
        &mut self,
        name: &str,
        interrupt: Option<Interrupt>,
        body: impl FnOnce() -> R + Send + 'static,
    ) -> std::io::Result<SlotId> {
        let guard = ExitGuard::new(SlotId(self.members.len()), self.sender.clone());
        let slot = guard.slot();
        // If the thread cannot be created its closure is dropped, and with it the guard: no member, no exit.
        guard.disarm();
        let thread = thread::Builder::new().name(thread_name(name)).spawn(move || {
            guard.arm();
            guard.report(catch_exit(body));
        })?;
        self.members.push(name, Some(thread), interrupt);
        Ok(slot)
    }

    /// Adds a member that is not one thread (a worker pool). It has ended when the guard reports so.
    pub(crate) fn reserve(&mut self, name: &str) -> ExitGuard {
        let guard = ExitGuard::new(SlotId(self.members.len()), self.sender.clone());
        self.members.push(name, None, None);
        guard
    }

    /// Lets a member finish while all others go on.
    pub(crate) fn allow_finish(&mut self, slot: SlotId) {
        if let Some(slot) = self.members.lock().get_mut(slot.0) {
            slot.state.may_finish = true;
        }
    }

    /// Shows in the table how often a member was restarted.
    pub(crate) fn show_restarts(&mut self, slot: SlotId, restarts: Arc<Restarts>) {
        if let Some(slot) = self.members.lock().get_mut(slot.0) {
            slot.state.restarts = Some(restarts);
        }
    }

    /// Sets what makes a [reserved](Crew::reserve) member stop.
    pub(crate) fn on_interrupt(&mut self, slot: SlotId, interrupt: impl FnOnce() + Send + 'static) {
        if let Some(slot) = self.members.lock().get_mut(slot.0) {
            slot.interrupt = Some(Box::new(interrupt));
        }
    }

    /// Waits for a cause to stop (a signal, a [`Stopper`], or the end of a member), stops all members, and returns how it
    /// went.
    ///
    /// A crew without members returns at once. [`Outcome`] converts into an exit code.
    pub fn run(mut self) -> Outcome {
        if self.members.len() == 0 {
            return Outcome::immediate(Cause::Requested("the crew has no members".to_owned()));
        }
        let cause = loop {
            match self.wait_first() {
                Cause::Reexec(why) => log::warn!("{why} ignored: only Service::run can re-exec, not a bare Crew"),
                cause => break cause,
            }
        };
        self.finish(cause)
    }

    /// Stops all members, and returns how it went.
    pub(crate) fn finish(mut self, cause: Cause) -> Outcome {
        if !matches!(cause, Cause::NotStarted(_)) {
            log::info!("{}", cause.announcement());
        } // else the caller logs why, in one line
        let mut shutdown = Shutdown::new(cause, self.grace);
        self.stop_members(&mut shutdown);
        self.stop_signal_thread(&mut shutdown);
        shutdown.outcome()
    }

    /// Blocks until the first message.
    pub(crate) fn wait_first(&mut self) -> Cause {
        loop {
            if let Some(cause) = self.wait_first_until(None) {
                return cause;
            }
        }
    }

    /// As [`wait_first`](Crew::wait_first); `None` if there is no message until `until`, or when a member has finished
    /// that [may](Crew::allow_finish).
    pub(crate) fn wait_first_until(&mut self, until: Option<Instant>) -> Option<Cause> {
        loop {
            let message = match until {
                Some(until) => match self.receiver.recv_deadline(until) {
                    Err(RecvTimeoutError::Timeout) => return None,
                    message => message.ok(),
                },
                None => self.receiver.recv().ok(),
            };
            match message {
                Some(Message::Exited { slot, exit }) => {
                    self.record_exit(slot, &exit);
                    if self.members.has_finished_well(slot) {
                        return None;
                    }
                    return Some(Cause::Member { name: self.members.name(slot), exit });
                }
                Some(Message::Command { command, .. }) => return Some(command.into()),
                Some(Message::Recheck) => {}
                Some(Message::ChildEnded) => reap_orphans(),
                // Unreachable while this crew holds a sender itself.
                None => return Some(Cause::Requested("no member is left".to_owned())),
            }
        }
    }

    /// Handles one message, waiting for it until `until`.
    ///
    /// A drain waits nowhere else, so that a second signal is handled in every phase.
    pub(crate) fn wait_event(&mut self, until: Instant, shutdown: &mut Shutdown) {
        match self.receiver.recv_deadline(until) {
            Ok(Message::Exited { slot, exit }) => {
                self.record_exit(slot, &exit);
                if exit != Exit::Finished {
                    shutdown.failures.push(format!("{} {exit}", self.members.name(slot)));
                }
            }
            Ok(Message::Command { command, at }) => shutdown.receive(command, at),
            Ok(Message::ChildEnded) => reap_orphans(),
            Ok(Message::Recheck) | Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
        }
    }

    /// Tells all members but the signal thread to stop, and waits for them until the deadline or a second signal. Members
    /// that still run then are abandoned.
    pub(crate) fn stop_members(&mut self, shutdown: &mut Shutdown) {
        self.stop.stop();
        self.interrupt(|slot, signals| Some(slot) != signals);
        while shutdown.forced_by.is_none() && self.running().next().is_some() {
            let now = Instant::now();
            if now >= shutdown.soft_deadline() {
                self.stop.expire();
            }
            if now >= shutdown.deadline() {
                break;
            }
            self.wait_event(shutdown.next_deadline(now), shutdown);
        }
        for slot in self.running() {
            if !shutdown.is_reported(slot) {
                let name = self.members.name(slot);
                log::warn!("abandoned: {name}");
                shutdown.abandoned.push(name);
            }
        }
    }

    /// Stops the signal thread, after all other members. Signals that it received before are handled.
    pub(crate) fn stop_signal_thread(&mut self, shutdown: &mut Shutdown) {
        let Some(signals) = self.signals else { return };
        self.interrupt(|slot, _| slot == signals);
        let until = saturating_add(Instant::now(), SIGNAL_THREAD_EXIT);
        while self.members.is_running(signals) && Instant::now() < until {
            self.wait_event(until, shutdown);
        }
    }

    /// Calls the interrupts of the members that `which` selects.
    fn interrupt(&mut self, which: impl Fn(SlotId, Option<SlotId>) -> bool) {
        let mut slots = self.members.lock();
        let selected = slots.iter_mut().enumerate().filter(|(number, _)| which(SlotId(*number), self.signals));
        let interrupts: Vec<Interrupt> = selected.filter_map(|(_, slot)| slot.interrupt.take()).collect();
        drop(slots); // no lock is held while the application's code runs
        for interrupt in interrupts {
            // The application's code, on the thread that everything waits for.
            if let Err(payload) = catch_unwind(AssertUnwindSafe(interrupt)) {
                log::error!("the interrupt of a member panicked: {}", panic_message(payload));
            }
        }
    }

    /// The members that still run, but for the signal thread.
    fn running(&self) -> impl Iterator<Item = SlotId> + use<'_> {
        (0..self.members.len()).map(SlotId).filter(|slot| Some(*slot) != self.signals && self.is_running(*slot))
    }

    /// True while every member runs, apart from those that [may finish](Crew::allow_finish).
    pub(crate) fn all_running(&self) -> bool {
        let mut slots = (0..self.members.len()).map(SlotId);
        slots.all(|slot| self.is_running(slot) || self.members.has_finished_well(slot))
    }

    /// True while this member has not ended.
    pub(crate) fn is_running(&self, slot: SlotId) -> bool {
        self.members.is_running(slot)
    }

    fn record_exit(&mut self, slot: SlotId, exit: &Exit) {
        let name = self.members.name(slot);
        let level = match exit {
            Exit::Finished if self.stop.is_stopping() => log::Level::Debug, // it was told to
            Exit::Finished => log::Level::Info,
            Exit::Failed(_) | Exit::Panicked(_) => log::Level::Error,
        };
        log::log!(level, "{name} {exit}");
        let thread = self.members.lock().get_mut(slot.0).and_then(|slot| {
            slot.state.exit = Some(exit.clone());
            slot.thread.take()
        });
        if let Some(thread) = thread {
            let _ = thread.join(); // reporting its exit is the last act of the thread, whose panics were caught before
        }
    }
}
