//! The crew: a group of threads that start as one and stop as one. It knows nothing of HTTP.
//!
//! A *member* is a named thread that reports exactly one end into the crew's one channel, also when it panics. The
//! first message in that channel (a member's end, or somebody asking) is the cause of everything after; whoever runs
//! the crew then tells everyone to leave and counts them home until the grace period is over.
//!
//! # Who sends, who receives, what may block
//!
//! There is one channel, unbounded, so that **no send ever blocks**: it holds one end per member and a few asks.
//! Senders: a member's [`Reporter`] (its end, once), the signal thread and every [`Stopper`] (asks), and whoever
//! wants the drain to look again (nudges, at most one waiting). Receiver: the thread that runs the crew, alone.
//!
//! # Nearest relatives
//!
//! Go's `errgroup` and `oklog/run`. To which this adds names, deadlines, panics, and who was abandoned.

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};

use crate::outcome::{Cause, Outcome};
use crate::stop::Stop;

/// The longest thread name that Linux keeps: `TASK_COMM_LEN` of 16 less the final NUL, `prctl(2)`, `PR_SET_NAME`.
const LONGEST_NAME: usize = 15;

/// Why a grace period ends a little early for those who can listen: to give them time to answer. A tenth of the
/// period, but never more than this.
const LONGEST_NOTICE: Duration = Duration::from_millis(500);

/// How a member ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum How {
    /// It returned, without an error.
    Finished,
    /// It returned an error.
    Failed(String),
    /// It panicked, with this message.
    Panicked(String),
}

impl fmt::Display for How {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            How::Finished => f.write_str("finished"),
            How::Failed(why) => write!(f, "failed: {why}"),
            How::Panicked(message) => write!(f, "panicked: {message}"),
        }
    }
}

impl From<()> for How {
    fn from((): ()) -> How {
        How::Finished
    }
}

/// `?` works in members whose errors can be shown.
impl<E: fmt::Display> From<Result<(), E>> for How {
    fn from(result: Result<(), E>) -> How {
        result.map_or_else(|error| How::Failed(error.to_string()), How::from)
    }
}

/// What anybody may ask of the crew.
#[derive(Clone, Debug)]
pub(crate) enum Ask {
    Signal(i32),
    Stop(String),
    Renew(String),
    Worn(String),
}

impl From<Ask> for Cause {
    fn from(ask: Ask) -> Cause {
        match ask {
            Ask::Signal(number) => Cause::Signal(number),
            Ask::Stop(by) => Cause::Asked(by),
            Ask::Renew(why) => Cause::Renewal(why),
            Ask::Worn(why) => Cause::Worn(why),
        }
    }
}

/// What the one channel carries.
#[derive(Debug)]
pub(crate) enum Message {
    Out {
        seat: usize,
        how: How,
    },
    Ask(Ask),
    /// Something that the drain waits for may have changed.
    Nudge,
}

/// Reports one end, exactly once: by [`report`](Reporter::report), or when it is dropped.
#[derive(Debug)]
pub(crate) struct Reporter {
    seat: usize,
    sender: Sender<Message>,
    reported: AtomicBool,
}

impl Reporter {
    pub(crate) fn report(&self, how: How) {
        if !self.reported.swap(true, Ordering::AcqRel) {
            // Nobody receives any more once the crew was abandoned; then there is nobody to tell.
            let _ = self.sender.send(Message::Out { seat: self.seat, how });
        }
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        self.report(How::Finished);
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
        self.ask(Ask::Stop(reason.into()));
    }

    /// Asks for a renewal: drain, then go on under the same pid with the binary that is on disk now. Only a service that
    /// was [run](crate::Service::run), and so is the whole process, can do that; others go on.
    pub fn renew(&self, reason: impl Into<String>) {
        self.ask(Ask::Renew(reason.into()));
    }

    pub(crate) fn ask(&self, ask: Ask) {
        let _ = self.sender.send(Message::Ask(ask)); // nobody is left to ask: everyone is out
    }

    pub(crate) fn nudge(&self) {
        let _ = self.sender.send(Message::Nudge);
    }
}

/// Who is in and who is out, as seen from other threads than the one that runs the crew.
#[derive(Clone, Debug, Default)]
pub(crate) struct Roster(Arc<Mutex<Vec<Entry>>>);

/// A member on the roster.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) since: Instant,
    pub(crate) out: Option<How>,
}

impl Roster {
    pub(crate) fn entries(&self) -> Vec<Entry> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

type Interrupt = Box<dyn FnOnce() + Send>;

/// One member as the crew sees it.
struct Seat {
    name: String,
    thread: Option<JoinHandle<()>>,
    interrupt: Option<Interrupt>,
    out: Option<How>,
}

/// A group of threads that live and die together.
///
/// ```
/// use std::time::Duration;
/// use allout::Crew;
///
/// let mut crew = Crew::new().grace(Duration::from_secs(5));
/// crew.spawn("ticker", |stop| {
///     while !stop.leaving_within(Duration::from_millis(10)) { /* tick */ }
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
    seats: Vec<Seat>,
    roster: Roster,
    stop: Stop,
    grace: Duration,
}

impl fmt::Debug for Crew {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let members: Vec<&str> = self.seats.iter().map(|seat| seat.name.as_str()).collect();
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
            seats: Vec::new(),
            roster: Roster::default(),
            stop: Stop::new(),
            grace: crate::config::GRACE,
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
    pub(crate) fn roster(&self) -> Roster {
        self.roster.clone()
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
    pub fn spawn<R: Into<How>>(
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
    pub fn spawn_with<R: Into<How>>(
        &mut self,
        name: &str,
        interrupt: impl FnOnce() + Send + 'static,
        body: impl FnOnce() -> R + Send + 'static,
    ) -> std::io::Result<()> {
        let reporter = self.seat(name, interrupt);
        let seat = reporter.seat;
        // A thread that the system refuses drops its closure: what never began must report no end.
        reporter.reported.store(true, Ordering::Release);
        let thread = thread::Builder::new().name(thread_name(name)).spawn(move || {
            reporter.reported.store(false, Ordering::Release);
            reporter.report(run(body));
        });
        match thread {
            Ok(thread) => {
                self.seats[seat].thread = Some(thread);
                Ok(())
            }
            Err(refused) => {
                self.seats.pop();
                self.roster.lock().pop();
                Err(refused)
            }
        }
    }

    /// A seat for a member that is not one thread of ours (a pool): it is out when it says so.
    pub(crate) fn seat(&mut self, name: &str, interrupt: impl FnOnce() + Send + 'static) -> Reporter {
        let seat = self.seats.len();
        self.roster.lock().push(Entry { name: name.to_owned(), since: Instant::now(), out: None });
        self.seats.push(Seat { name: name.to_owned(), thread: None, interrupt: Some(Box::new(interrupt)), out: None });
        Reporter { seat, sender: self.sender.clone(), reported: AtomicBool::new(false) }
    }

    /// Waits for the first message, takes everyone out, and says how it went.
    ///
    /// A crew without members is out at once. [`Outcome`] turns into an exit code.
    pub fn run(mut self) -> Outcome {
        if self.seats.is_empty() {
            let cause = Cause::Asked("nobody: the crew has no members".to_owned());
            return Departure::new(cause, self.grace).outcome();
        }
        let cause = loop {
            match self.first() {
                // What a renewal is, only a service knows.
                Cause::Renewal(why) => log::warn!("a crew cannot be renewed: {why}"),
                cause => break cause,
            }
        };
        log::info!("{cause}: one out, all out");
        let mut departure = Departure::new(cause, self.grace);
        self.dismiss(&mut departure);
        departure.outcome()
    }

    /// Blocks until the first message, and says what it was.
    pub(crate) fn first(&mut self) -> Cause {
        loop {
            if let Some(cause) = self.first_before(None) {
                return cause;
            }
        }
    }

    /// As [`first`](Crew::first), but for no longer than `until`.
    pub(crate) fn first_before(&mut self, until: Option<Instant>) -> Option<Cause> {
        loop {
            let message = match until {
                Some(until) => match self.receiver.recv_deadline(until) {
                    Err(RecvTimeoutError::Timeout) => return None,
                    message => message.ok(),
                },
                None => self.receiver.recv().ok(),
            };
            match message {
                Some(Message::Out { seat, how }) => {
                    self.count_home(seat, &how);
                    return Some(Cause::Member { name: self.seats[seat].name.clone(), how });
                }
                Some(Message::Ask(ask)) => return Some(ask.into()),
                Some(Message::Nudge) => {}
                // Not reachable: this crew holds a sender. Should it ever be, an end is what it means.
                None => return Some(Cause::Asked("nobody: no member is left".to_owned())),
            }
        }
    }

    /// Takes messages until `until`, or until a nudge or an end calls for another look.
    ///
    /// The drain of a service waits here, so that a second signal is heard in every phase.
    pub(crate) fn listen(&mut self, until: Instant, departure: &mut Departure) {
        match self.receiver.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(Message::Out { seat, how }) => {
                self.count_home(seat, &how);
                if how != How::Finished {
                    departure.failures.push(format!("{} {how}", self.seats[seat].name));
                }
            }
            // Whoever asks a second time by a signal means it: no more waiting.
            Ok(Message::Ask(Ask::Signal(number))) => {
                departure.forced.get_or_insert(number);
            }
            Ok(Message::Nudge | Message::Ask(_)) | Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
        }
    }

    /// Tells everyone to leave, and counts them home until grace is over; who is not home then is abandoned.
    ///
    /// There is no early way out of this loop but a second signal.
    pub(crate) fn dismiss(&mut self, departure: &mut Departure) {
        self.stop.leave();
        for seat in &mut self.seats {
            if let Some(interrupt) = seat.interrupt.take() {
                interrupt();
            }
        }
        while departure.forced.is_none() && self.seats.iter().any(|seat| seat.out.is_none()) {
            let now = Instant::now();
            if now >= departure.notice() {
                self.stop.end_grace();
            }
            if now >= departure.end() {
                break;
            }
            let next = if now < departure.notice() { departure.notice() } else { departure.end() };
            self.listen(next, departure);
        }
        for seat in self.seats.iter().filter(|seat| seat.out.is_none()) {
            // What a member still does may have been named already, one by one.
            if !departure.excused.contains(&seat.name.as_str()) {
                log::warn!("abandoned: {}", seat.name);
                departure.abandoned.push(seat.name.clone());
            }
        }
    }

    /// Whether every member is still in.
    pub(crate) fn all_in(&self) -> bool {
        self.seats.iter().all(|seat| seat.out.is_none())
    }

    /// Whether the member of this name is still in.
    pub(crate) fn is_in(&self, name: &str) -> bool {
        self.seats.iter().any(|seat| seat.name == name && seat.out.is_none())
    }

    fn count_home(&mut self, number: usize, how: &How) {
        let seat = &mut self.seats[number];
        match how {
            How::Finished => log::info!("out: {}", seat.name),
            how => log::error!("out: {}, which {how}", seat.name),
        }
        seat.out = Some(how.clone());
        if let Some(entry) = self.roster.lock().get_mut(number) {
            entry.out = Some(how.clone());
        }
        if let Some(thread) = seat.thread.take() {
            // It has reported, which is the last thing that it does; its panics were caught before.
            let _ = thread.join();
        }
    }
}

/// What the end of a crew has come to so far, and until when it may go on.
#[derive(Debug)]
pub(crate) struct Departure {
    pub(crate) cause: Cause,
    pub(crate) began: Instant,
    pub(crate) grace: Duration,
    pub(crate) abandoned: Vec<String>,
    pub(crate) failures: Vec<String>,
    pub(crate) forced: Option<i32>,
    /// Members that need not be named when they are abandoned.
    pub(crate) excused: Vec<&'static str>,
    last_call: Option<Instant>,
}

impl Departure {
    pub(crate) fn new(cause: Cause, grace: Duration) -> Departure {
        Departure {
            cause,
            began: Instant::now(),
            grace,
            abandoned: Vec::new(),
            failures: Vec::new(),
            forced: None,
            excused: Vec::new(),
            last_call: None,
        }
    }

    /// Puts off the end of grace, if it would come before `earliest`.
    pub(crate) fn not_before(&mut self, earliest: Instant) {
        self.last_call = Some(earliest);
    }

    /// When grace is over.
    pub(crate) fn end(&self) -> Instant {
        let end = self.regular_end();
        self.last_call.map_or(end, |last_call| end.max(last_call))
    }

    fn regular_end(&self) -> Instant {
        // A grace period that the clock cannot count to has no end worth the name: a century will do.
        const CENTURY: Duration = Duration::from_hours(100 * 365 * 24);
        self.began.checked_add(self.grace).unwrap_or_else(|| self.began + CENTURY)
    }

    /// When those who can listen are told that it soon will be.
    pub(crate) fn notice(&self) -> Instant {
        let end = self.end();
        end.checked_sub((self.grace / 10).min(LONGEST_NOTICE)).unwrap_or(end)
    }

    pub(crate) fn outcome(self) -> Outcome {
        Outcome {
            took: self.began.elapsed(),
            cause: self.cause,
            abandoned: self.abandoned,
            failures: self.failures,
            forced: self.forced,
        }
    }
}

/// Runs a member's body to its one end.
fn run<R: Into<How>>(body: impl FnOnce() -> R) -> How {
    // The policy for panics, here and for every thread of this crate: caught at the thread's root, reported, and
    // nothing that the panicking code held is used again, so that no broken state can be seen: hence the assertion.
    match catch_unwind(AssertUnwindSafe(|| body().into())) {
        Ok(how) => how,
        Err(payload) => How::Panicked(panic_message(payload.as_ref())),
    }
}

/// What a panic said, if it said it in words.
pub(crate) fn panic_message(payload: &(dyn Any + Send)) -> String {
    if let Some(text) = payload.downcast_ref::<&str>() {
        (*text).to_owned()
    } else if let Some(text) = payload.downcast_ref::<String>() {
        text.clone()
    } else {
        "without a message".to_owned()
    }
}

/// At most 15 bytes of `name`, cut where a character ends, and without a NUL, which would make the name unusable.
pub(crate) fn thread_name(name: &str) -> String {
    let mut short = String::new();
    for c in name.chars().filter(|c| *c != '\0') {
        if short.len() + c.len_utf8() > LONGEST_NAME {
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
        stop.wait_leaving();
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
        assert_eq!(outcome.cause, Cause::Member { name: "returns".into(), how: How::Finished });
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
        assert_eq!(outcome.cause, Cause::Asked("a test".into()));
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
            stop.wait_leaving();
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
        crew.stopper().ask(Ask::Signal(15));
        crew.stopper().ask(Ask::Signal(2));
        assert_eq!(crew.run().code(), 130);
    }

    #[test]
    fn a_double_report_is_impossible() {
        let mut crew = Crew::new();
        let reporter = crew.seat("pool", || {});
        reporter.report(How::Failed("first".into()));
        reporter.report(How::Finished);
        drop(reporter);
        assert_eq!(crew.receiver.try_iter().count(), 1);
    }

    #[test]
    fn names_are_cut_to_what_linux_keeps() {
        assert_eq!(thread_name("a member with a long name"), "a member with a");
        assert_eq!(thread_name("äöüäöüäöü\0"), "äöüäöüä");
    }
}
