//! The crew: a group of threads that start as one and stop as one. It knows nothing of HTTP.
//!
//! A *member* is a named thread that reports exactly one end into the crew's one channel, also when it panics. The
//! first message in that channel (a member's end, or somebody asking) is the cause of everything after; whoever runs
//! the crew then tells everyone to leave and counts them home until the grace period is over.
//!
//! # Who sends, who receives, what may block
//!
//! There is one channel, unbounded, so that **no send ever blocks**: it holds one end per member and a few asks.
//! Senders: a member's [`ExitGuard`] (its end, once), the signal thread and every [`Stopper`] (asks), and whoever
//! wants the drain to look again (nudges, at most one waiting). Receiver: the thread that runs the crew, alone.
//!
//! # Nearest relatives
//!
//! Go's `errgroup` and `oklog/run`. To which this adds names, deadlines, panics, and who was abandoned.

pub(crate) mod hooks;
pub(crate) mod outcome;
pub(crate) mod pool;
pub(crate) mod signals;
pub(crate) mod stop;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};

use crate::crew::outcome::{Cause, Outcome};
use crate::crew::stop::Stop;
use crate::sync::lock;
use crate::text::panic_message;

/// The longest thread name that Linux keeps: `TASK_COMM_LEN` of 16 less the final NUL, `prctl(2)`, `PR_SET_NAME`.
const MAX_THREAD_NAME: usize = 15;

/// Why a grace period ends a little early for those who can listen: to give them time to answer. A tenth of the
/// period, but never more than this.
const MAX_SOFT_DEADLINE_LEAD: Duration = Duration::from_millis(500);

/// How a member ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Exit {
    /// It returned, without an error.
    Finished,
    /// It returned an error.
    Failed(String),
    /// It panicked, with this message.
    Panicked(String),
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Exit::Finished => f.write_str("finished"),
            Exit::Failed(why) => write!(f, "failed: {why}"),
            Exit::Panicked(message) => write!(f, "panicked: {message}"),
        }
    }
}

impl From<()> for Exit {
    fn from((): ()) -> Exit {
        Exit::Finished
    }
}

/// `?` works in members whose errors can be shown.
impl<E: fmt::Display> From<Result<(), E>> for Exit {
    fn from(result: Result<(), E>) -> Exit {
        result.map_or_else(|error| Exit::Failed(error.to_string()), Exit::from)
    }
}

/// What anybody may ask of the crew.
#[derive(Clone, Debug)]
pub(crate) enum Command {
    Signal(i32),
    Stop(String),
    Reexec(String),
    EngineLeak(String),
}

impl From<Command> for Cause {
    fn from(ask: Command) -> Cause {
        match ask {
            Command::Signal(number) => Cause::Signal(number),
            Command::Stop(by) => Cause::Requested(by),
            Command::Reexec(why) => Cause::Reexec(why),
            Command::EngineLeak(why) => Cause::EngineLeak(why),
        }
    }
}

/// What the one channel carries.
#[derive(Debug)]
pub(crate) enum Message {
    Exited {
        slot: usize,
        how: Exit,
    },
    Command(Command),
    /// Something that the drain waits for may have changed.
    Recheck,
}

/// Reports one end, exactly once: by [`report`](ExitGuard::report), or when it is dropped.
#[derive(Debug)]
pub(crate) struct ExitGuard {
    slot: usize,
    sender: Sender<Message>,
    reported: AtomicBool,
}

impl ExitGuard {
    pub(crate) fn report(&self, how: Exit) {
        if !self.reported.swap(true, Ordering::AcqRel) {
            // Nobody receives any more once the crew was abandoned; then there is nobody to tell.
            let _ = self.sender.send(Message::Exited { slot: self.slot, how });
        }
    }
}

impl Drop for ExitGuard {
    fn drop(&mut self) {
        self.report(Exit::Finished);
    }
}

/// Asks the crew to stop, from any thread.
#[derive(Clone, Debug)]
pub struct Stopper {
    sender: Sender<Message>,
}

impl Stopper {
    /// Takes everyone out. Only the first message counts as the cause; asking again does nothing.
    pub fn stop(&self, reason: impl Into<String>) {
        self.ask(Command::Stop(reason.into()));
    }

    /// Asks for a renewal: drain, then go on under the same pid with the binary that is on disk now. Only a service that
    /// was [run](crate::Service::run), and so is the whole process, can do that; others go on.
    pub fn reexec(&self, reason: impl Into<String>) {
        self.ask(Command::Reexec(reason.into()));
    }

    pub(crate) fn ask(&self, ask: Command) {
        let _ = self.sender.send(Message::Command(ask)); // nobody is left to ask: everyone is out
    }

    pub(crate) fn recheck(&self) {
        let _ = self.sender.send(Message::Recheck);
    }
}

/// Who is in and who is out, as seen from other threads than the one that runs the crew.
#[derive(Clone, Debug, Default)]
pub(crate) struct MemberTable(Arc<Mutex<Vec<MemberState>>>);

/// A member on the roster.
#[derive(Clone, Debug)]
pub(crate) struct MemberState {
    pub(crate) name: String,
    pub(crate) since: Instant,
    pub(crate) out: Option<Exit>,
}

impl MemberTable {
    pub(crate) fn entries(&self) -> Vec<MemberState> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<MemberState>> {
        lock(&self.0)
    }
}

type Interrupt = Box<dyn FnOnce() + Send>;

/// One member as the crew sees it.
struct Slot {
    name: String,
    thread: Option<JoinHandle<()>>,
    interrupt: Option<Interrupt>,
    out: Option<Exit>,
}

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
/// crew.spawn("job", |_| std::fs::metadata("/").map(drop))?; // ends, and so takes everyone out
///
/// let outcome = crew.run();
/// assert_eq!(outcome.cause.to_string(), "job finished");
/// assert!(outcome.abandoned.is_empty());
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// A crew that is dropped without being run leaves its members alone: nobody stops them, and nobody waits for them.
#[must_use = "nobody waits for a crew's members until it is run"]
pub struct Crew {
    sender: Sender<Message>,
    receiver: Receiver<Message>,
    slots: Vec<Slot>,
    member_table: MemberTable,
    stop: Stop,
    grace: Duration,
}

impl fmt::Debug for Crew {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let members: Vec<&str> = self.slots.iter().map(|slot| slot.name.as_str()).collect();
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
        Crew {
            sender,
            receiver,
            slots: Vec::new(),
            member_table: MemberTable::default(),
            stop: Stop::new(),
            grace: crate::service::config::GRACE,
        }
    }

    /// How long members have to leave, from the first message on.
    pub fn grace(mut self, grace: Duration) -> Crew {
        self.grace = grace;
        self
    }

    /// What tells members to leave. A member that does not look at it is abandoned when grace is over.
    pub fn stop(&self) -> Stop {
        self.stop.clone()
    }

    /// Who is in and who is out, for other threads.
    pub(crate) fn member_table(&self) -> MemberTable {
        self.member_table.clone()
    }

    /// Asks this crew to stop.
    pub fn stopper(&self) -> Stopper {
        Stopper { sender: self.sender.clone() }
    }

    /// Starts a member: a thread of this name (15 bytes at most are kept) that runs `body`.
    ///
    /// The body is told to leave by its [`Stop`], and returns nothing, or a `Result` of nothing. Its end, whichever way,
    /// takes everyone out. A panic is caught, and is such an end.
    ///
    /// # Errors
    ///
    /// The system refused a thread.
    pub fn spawn<R: Into<Exit>>(
        &mut self,
        name: &str,
        body: impl FnOnce(&Stop) -> R + Send + 'static,
    ) -> std::io::Result<()> {
        let stop = self.stop();
        self.spawn_with(name, || {}, move || body(&stop))
    }

    /// As [`spawn`](Crew::spawn), for a member that waits for something else than [`Stop`]: `interrupt` is called once,
    /// from the thread that runs the crew, to make it leave. It must not block, and must be safe to call when the
    /// member has left already.
    ///
    /// # Errors
    ///
    /// The system refused a thread.
    pub fn spawn_with<R: Into<Exit>>(
        &mut self,
        name: &str,
        interrupt: impl FnOnce() + Send + 'static,
        body: impl FnOnce() -> R + Send + 'static,
    ) -> std::io::Result<()> {
        let guard = self.reserve(name, interrupt);
        let slot = guard.slot;
        // A thread that the system refuses drops its closure: what never began must report no end.
        guard.reported.store(true, Ordering::Release);
        let thread = thread::Builder::new().name(thread_name(name)).spawn(move || {
            guard.reported.store(false, Ordering::Release);
            guard.report(catch_exit(body));
        });
        match thread {
            Ok(thread) => {
                self.slots[slot].thread = Some(thread);
                Ok(())
            }
            Err(refused) => {
                self.slots.pop();
                self.member_table.lock().pop();
                Err(refused)
            }
        }
    }

    /// A seat for a member that is not one thread of ours (a pool): it is out when it says so.
    pub(crate) fn reserve(&mut self, name: &str, interrupt: impl FnOnce() + Send + 'static) -> ExitGuard {
        let slot = self.slots.len();
        self.member_table.lock().push(MemberState { name: name.to_owned(), since: Instant::now(), out: None });
        self.slots.push(Slot { name: name.to_owned(), thread: None, interrupt: Some(Box::new(interrupt)), out: None });
        ExitGuard { slot, sender: self.sender.clone(), reported: AtomicBool::new(false) }
    }

    /// Waits for the first message, takes everyone out, and says how it went.
    ///
    /// A crew without members is out at once. [`Outcome`] turns into an exit code.
    pub fn run(mut self) -> Outcome {
        if self.slots.is_empty() {
            let cause = Cause::Requested("nobody: the crew has no members".to_owned());
            return Shutdown::new(cause, self.grace).outcome();
        }
        let cause = loop {
            match self.wait_first() {
                // What a renewal is, only a service knows.
                Cause::Reexec(why) => log::warn!("a crew cannot be renewed: {why}"),
                cause => break cause,
            }
        };
        log::info!("{cause}: one out, all out");
        let mut shutdown = Shutdown::new(cause, self.grace);
        self.stop_members(&mut shutdown);
        shutdown.outcome()
    }

    /// Blocks until the first message, and says what it was.
    pub(crate) fn wait_first(&mut self) -> Cause {
        loop {
            if let Some(cause) = self.wait_first_until(None) {
                return cause;
            }
        }
    }

    /// As [`first`](Crew::first), but for no longer than `until`.
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
                Some(Message::Exited { slot, how }) => {
                    self.record_exit(slot, &how);
                    return Some(Cause::Member { name: self.slots[slot].name.clone(), how });
                }
                Some(Message::Command(ask)) => return Some(ask.into()),
                Some(Message::Recheck) => {}
                // Not reachable: this crew holds a sender. Should it ever be, an end is what it means.
                None => return Some(Cause::Requested("nobody: no member is left".to_owned())),
            }
        }
    }

    /// Takes messages until `until`, or until a nudge or an end calls for another look.
    ///
    /// The drain of a service waits here, so that a second signal is heard in every phase.
    pub(crate) fn wait_event(&mut self, until: Instant, shutdown: &mut Shutdown) {
        match self.receiver.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(Message::Exited { slot, how }) => {
                self.record_exit(slot, &how);
                if how != Exit::Finished {
                    shutdown.failures.push(format!("{} {how}", self.slots[slot].name));
                }
            }
            // Whoever asks a second time by a signal means it: no more waiting.
            Ok(Message::Command(Command::Signal(number))) => {
                shutdown.forced_by.get_or_insert(number);
            }
            Ok(Message::Recheck | Message::Command(_))
            | Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
        }
    }

    /// Tells everyone to leave, and counts them home until grace is over; who is not home then is abandoned.
    ///
    /// There is no early way out of this loop but a second signal.
    pub(crate) fn stop_members(&mut self, shutdown: &mut Shutdown) {
        self.stop.stop();
        for slot in &mut self.slots {
            if let Some(interrupt) = slot.interrupt.take() {
                interrupt();
            }
        }
        while shutdown.forced_by.is_none() && self.slots.iter().any(|slot| slot.out.is_none()) {
            let now = Instant::now();
            if now >= shutdown.soft_deadline() {
                self.stop.expire();
            }
            if now >= shutdown.end() {
                break;
            }
            let next = if now < shutdown.soft_deadline() { shutdown.soft_deadline() } else { shutdown.end() };
            self.wait_event(next, shutdown);
        }
        for slot in self.slots.iter().filter(|slot| slot.out.is_none()) {
            // What a member still does may have been named already, one by one.
            if !shutdown.already_reported.contains(&slot.name.as_str()) {
                log::warn!("abandoned: {}", slot.name);
                shutdown.abandoned.push(slot.name.clone());
            }
        }
    }

    /// Whether every member is still in.
    pub(crate) fn all_running(&self) -> bool {
        self.slots.iter().all(|slot| slot.out.is_none())
    }

    /// Whether the member of this name is still in.
    pub(crate) fn is_running(&self, name: &str) -> bool {
        self.slots.iter().any(|slot| slot.name == name && slot.out.is_none())
    }

    fn record_exit(&mut self, number: usize, how: &Exit) {
        let slot = &mut self.slots[number];
        match how {
            Exit::Finished => log::info!("stopped: {}", slot.name),
            exit => log::error!("stopped: {} ({exit})", slot.name),
        }
        slot.out = Some(how.clone());
        if let Some(entry) = self.member_table.lock().get_mut(number) {
            entry.out = Some(how.clone());
        }
        if let Some(thread) = slot.thread.take() {
            // It has reported, which is the last thing that it does; its panics were caught before.
            let _ = thread.join();
        }
    }
}

/// What the end of a crew has come to so far, and until when it may go on.
#[derive(Debug)]
pub(crate) struct Shutdown {
    pub(crate) cause: Cause,
    pub(crate) began: Instant,
    pub(crate) grace: Duration,
    pub(crate) abandoned: Vec<String>,
    pub(crate) failures: Vec<String>,
    pub(crate) forced_by: Option<i32>,
    /// Members that need not be named when they are abandoned.
    pub(crate) already_reported: Vec<&'static str>,
    extended_to: Option<Instant>,
}

impl Shutdown {
    pub(crate) fn new(cause: Cause, grace: Duration) -> Shutdown {
        Shutdown {
            cause,
            began: Instant::now(),
            grace,
            abandoned: Vec::new(),
            failures: Vec::new(),
            forced_by: None,
            already_reported: Vec::new(),
            extended_to: None,
        }
    }

    /// Puts off the end of grace, if it would come before `earliest`.
    pub(crate) fn extend_to(&mut self, earliest: Instant) {
        self.extended_to = Some(earliest);
    }

    /// When grace is over.
    pub(crate) fn end(&self) -> Instant {
        let end = self.base_deadline();
        self.extended_to.map_or(end, |extended_to| end.max(extended_to))
    }

    fn base_deadline(&self) -> Instant {
        // A grace period that the clock cannot count to has no end worth the name: a century will do.
        const CENTURY: Duration = Duration::from_hours(100 * 365 * 24);
        self.began.checked_add(self.grace).unwrap_or_else(|| self.began + CENTURY)
    }

    /// When those who can listen are told that it soon will be.
    pub(crate) fn soft_deadline(&self) -> Instant {
        let end = self.end();
        end.checked_sub((self.grace / 10).min(MAX_SOFT_DEADLINE_LEAD)).unwrap_or(end)
    }

    pub(crate) fn outcome(self) -> Outcome {
        Outcome {
            duration: self.began.elapsed(),
            cause: self.cause,
            abandoned: self.abandoned,
            failures: self.failures,
            forced_by: self.forced_by,
        }
    }
}

/// Runs a member's body to its one end.
fn catch_exit<R: Into<Exit>>(body: impl FnOnce() -> R) -> Exit {
    // The policy for panics, here and for every thread of this crate: caught at the thread's root, reported, and
    // nothing that the panicking code held is used again, so that no broken state can be seen: hence the assertion.
    match catch_unwind(AssertUnwindSafe(|| body().into())) {
        Ok(how) => how,
        Err(payload) => Exit::Panicked(panic_message(payload.as_ref())),
    }
}

/// At most 15 bytes of `name`, cut where a character ends, and without a NUL, which would make the name unusable.
pub(crate) fn thread_name(name: &str) -> String {
    let mut short = String::new();
    for c in name.chars().filter(|c| *c != '\0') {
        if short.len() + c.len_utf8() > MAX_THREAD_NAME {
            break;
        }
        short.push(c);
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    fn waits(stop: &Stop) {
        stop.wait();
    }

    #[test]
    fn a_crew_without_members_is_out_at_once() {
        let outcome = Crew::new().run();
        assert_eq!((outcome.code(), outcome.abandoned.len()), (0, 0));
    }

    #[test]
    fn a_member_that_merely_returns_takes_everyone_out() {
        let mut crew = Crew::new();
        crew.spawn("waits", waits).unwrap();
        crew.spawn("returns", |_| ()).unwrap();
        let outcome = crew.run();
        assert_eq!(outcome.cause, Cause::Member { name: "returns".into(), how: Exit::Finished });
        assert_eq!((outcome.code(), outcome.abandoned.len()), (1, 0));
    }

    #[test]
    fn a_member_that_fails_is_the_cause_with_its_error() {
        let mut crew = Crew::new();
        crew.spawn("fails", |_| Err(io::Error::other("the disk is gone"))).unwrap();
        let outcome = crew.run();
        assert_eq!(outcome.cause.to_string(), "fails failed: the disk is gone");
        assert_eq!(outcome.code(), 1);
    }

    #[test]
    fn a_member_that_panics_is_the_cause_with_its_message() {
        let mut crew = Crew::new();
        for n in 0..10 {
            crew.spawn(&format!("waits-{n}"), waits).unwrap();
        }
        crew.spawn("panics", |_| -> () { std::panic::resume_unwind(Box::new("out of tea")) }).unwrap();
        let outcome = crew.run();
        assert_eq!(outcome.cause.to_string(), "panics panicked: out of tea");
        assert!(outcome.abandoned.is_empty(), "the ten others left: {outcome:?}");
    }

    #[test]
    fn who_is_asked_to_stop_stops_with_code_0() {
        let mut crew = Crew::new();
        crew.spawn("waits", waits).unwrap();
        let stopper = crew.stopper();
        stopper.stop("a test");
        stopper.stop("another");
        let outcome = crew.run();
        assert_eq!(outcome.cause, Cause::Requested("a test".into()));
        assert_eq!(outcome.code(), 0);
    }

    #[test]
    fn a_member_is_interrupted_once_and_from_outside() {
        let mut crew = Crew::new();
        let (sender, receiver) = crossbeam_channel::bounded::<()>(0);
        crew.spawn_with(
            "receives",
            move || drop(sender),
            move || {
                let _ = receiver.recv();
            },
        )
        .unwrap();
        crew.stopper().stop("a test");
        assert!(crew.run().abandoned.is_empty());
    }

    #[test]
    fn a_member_that_never_ends_is_abandoned_and_named() {
        let mut crew = Crew::new().grace(Duration::from_millis(20));
        let (_kept, receiver) = crossbeam_channel::bounded::<()>(0);
        crew.spawn("never ends", move |_| {
            let _ = receiver.recv();
        })
        .unwrap();
        crew.stopper().stop("a test");
        let outcome = crew.run();
        assert_eq!(outcome.abandoned, ["never ends"]);
        assert_eq!(outcome.code(), 3);
    }

    #[test]
    fn a_failure_after_the_first_message_is_told_too() {
        let mut crew = Crew::new();
        crew.spawn("fails late", |stop| {
            stop.wait();
            Err(io::Error::other("could not save"))
        })
        .unwrap();
        crew.stopper().stop("a test");
        let outcome = crew.run();
        assert_eq!(outcome.failures, ["fails late failed: could not save"]);
        assert_eq!(outcome.code(), 1);
    }

    #[test]
    fn a_second_signal_cuts_it_short() {
        let mut crew = Crew::new();
        let (_kept, receiver) = crossbeam_channel::bounded::<()>(0);
        crew.spawn("never ends", move |_| {
            let _ = receiver.recv();
        })
        .unwrap();
        crew.stopper().ask(Command::Signal(15));
        crew.stopper().ask(Command::Signal(2));
        assert_eq!(crew.run().code(), 130);
    }

    #[test]
    fn a_double_report_is_impossible() {
        let mut crew = Crew::new();
        let guard = crew.reserve("pool", || {});
        guard.report(Exit::Failed("first".into()));
        guard.report(Exit::Finished);
        drop(guard);
        assert_eq!(crew.receiver.try_iter().count(), 1);
    }

    #[test]
    fn names_are_cut_to_what_linux_keeps() {
        assert_eq!(thread_name("a member with a long name"), "a member with a");
        assert_eq!(thread_name("äöüäöüäöü\0"), "äöüäöüä");
    }
}
