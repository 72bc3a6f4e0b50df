//! The state of a stop: why it began, until when it may last, and what has gone wrong so far.

use std::time::{Duration, Instant};

use crate::clock::saturating_add;
use crate::crew::member::SlotId;
use crate::crew::message::Command;
use crate::crew::outcome::{Cause, Outcome};

/// Longest time by which [`Shutdown::soft_deadline`] comes before the deadline, so that handlers that watch it can still
/// answer. A tenth of the grace period if that is less.
const MAX_SOFT_DEADLINE_LEAD: Duration = Duration::from_millis(500);

/// A signal that repeats the first one within this time counts as the same: supervisors signal the process and its group.
const SAME_SIGNAL: Duration = Duration::from_millis(100);

/// A stop in progress.
#[derive(Debug)]
pub(crate) struct Shutdown {
    pub(crate) cause: Cause,
    pub(crate) started: Instant,
    pub(crate) grace: Duration,
    /// Requests and members that were still running at the deadline.
    pub(crate) abandoned: Vec<String>,
    /// Members and hooks that failed or panicked after the stop began.
    pub(crate) failures: Vec<String>,
    /// The second signal, if there was one: nothing is waited for any more.
    pub(crate) forced_by: Option<i32>,
    /// A re-exec was asked for during this one.
    pub(crate) reexec_again: bool,
    /// The first stop signal, and when it was received.
    first_signal: Option<(i32, Instant)>,
    /// Members whose abandoned work was reported item by item, and that are not reported themselves.
    already_reported: Vec<SlotId>,
    extended_to: Option<Instant>,
}

impl Shutdown {
    /// A stop that begins now.
    pub(crate) fn new(cause: Cause, grace: Duration) -> Shutdown {
        let started = Instant::now();
        let first_signal = match cause {
            Cause::Signal(number) => Some((number, started)),
            _ => None,
        };
        Shutdown {
            cause,
            started,
            grace,
            abandoned: Vec::new(),
            failures: Vec::new(),
            forced_by: None,
            reexec_again: false,
            first_signal,
            already_reported: Vec::new(),
            extended_to: None,
        }
    }

    /// True if this is the drain before a re-exec.
    pub(crate) fn is_reexec(&self) -> bool {
        matches!(self.cause, Cause::Reexec(_))
    }

    /// Handles a command that came after the cause. A stop replaces a re-exec, with a grace period of its own; a
    /// re-exec that is asked for during another one follows it.
    pub(crate) fn receive(&mut self, command: Command, at: Instant) {
        match command {
            Command::Signal(_) | Command::Stop(_) if self.is_reexec() => {
                let mut stop = Shutdown::new(command.into(), self.grace);
                log::info!("{} replaces the {}", stop.cause, self.cause);
                stop.abandoned = std::mem::take(&mut self.abandoned);
                stop.failures = std::mem::take(&mut self.failures);
                stop.already_reported = std::mem::take(&mut self.already_reported);
                *self = stop;
            }
            Command::Reexec(_) if self.is_reexec() => self.reexec_again = true,
            Command::Signal(number) => self.receive_signal(number, at),
            Command::Stop(_) | Command::Reexec(_) | Command::EngineLeak(_) => {}
        }
    }

    /// Records a stop signal. The second one forces the exit, unless it is the first one repeated.
    fn receive_signal(&mut self, number: i32, at: Instant) {
        match self.first_signal {
            None => self.first_signal = Some((number, at)),
            Some((first, since)) if first == number && at.saturating_duration_since(since) < SAME_SIGNAL => {}
            Some(_) => {
                self.forced_by.get_or_insert(number);
            }
        }
    }

    /// Marks a member that is not to be reported as abandoned, because its work was.
    pub(crate) fn mark_reported(&mut self, slot: SlotId) {
        self.already_reported.push(slot);
    }

    pub(super) fn is_reported(&self, slot: SlotId) -> bool {
        self.already_reported.contains(&slot)
    }

    /// Postpones the deadline to `earliest`, if it would come before.
    pub(crate) fn extend_to(&mut self, earliest: Instant) {
        self.extended_to = Some(earliest);
    }

    /// End of the grace period, extensions included.
    pub(crate) fn deadline(&self) -> Instant {
        let deadline = self.base_deadline();
        self.extended_to.map_or(deadline, |extended_to| deadline.max(extended_to))
    }

    fn base_deadline(&self) -> Instant {
        saturating_add(self.started, self.grace)
    }

    /// Moment at which handlers and members are told that the deadline is near.
    pub(crate) fn soft_deadline(&self) -> Instant {
        let deadline = self.deadline();
        deadline.checked_sub((self.grace / 10).min(MAX_SOFT_DEADLINE_LEAD)).unwrap_or(deadline)
    }

    /// The next of the two deadlines after `now`.
    pub(crate) fn next_deadline(&self, now: Instant) -> Instant {
        if now < self.soft_deadline() { self.soft_deadline() } else { self.deadline() }
    }

    pub(crate) fn outcome(self) -> Outcome {
        Outcome {
            duration: self.started.elapsed(),
            cause: self.cause,
            abandoned: self.abandoned,
            failures: self.failures,
            forced_by: self.forced_by,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shutdown(cause: Cause, grace: Duration) -> Shutdown {
        Shutdown::new(cause, grace)
    }

    #[test]
    fn the_second_signal_forces_the_exit_and_a_repetition_of_the_first_does_not() {
        let mut stop = shutdown(Cause::Signal(15), Duration::from_secs(1));
        stop.receive_signal(15, stop.started + SAME_SIGNAL / 2);
        assert_eq!(stop.forced_by, None);
        stop.receive_signal(15, stop.started + SAME_SIGNAL);
        assert_eq!(stop.forced_by, Some(15));
        stop.receive_signal(2, stop.started + SAME_SIGNAL);
        assert_eq!(stop.forced_by, Some(15));

        let mut stop = shutdown(Cause::Signal(15), Duration::from_secs(1));
        stop.receive_signal(2, stop.started);
        assert_eq!(stop.forced_by, Some(2), "another signal is not the same");
    }

    #[test]
    fn the_first_signal_after_another_cause_is_the_first() {
        let mut stop = shutdown(Cause::Requested("a test".into()), Duration::from_secs(1));
        stop.receive_signal(15, stop.started + SAME_SIGNAL * 2);
        assert_eq!(stop.forced_by, None);
        stop.receive_signal(15, stop.started + SAME_SIGNAL * 4);
        assert_eq!(stop.forced_by, Some(15));
    }

    #[test]
    fn a_stop_replaces_a_reexec_with_its_full_grace_and_is_the_first_signal() {
        let mut stop = shutdown(Cause::Reexec("SIGHUP".into()), Duration::from_secs(1));
        stop.failures.push("a hook".into());
        stop.receive(Command::Reexec("SIGHUP".into()), Instant::now());
        assert!(stop.is_reexec() && stop.reexec_again);
        let before = Instant::now();
        stop.receive(Command::Signal(15), before);
        assert_eq!((&stop.cause, stop.forced_by, stop.is_reexec()), (&Cause::Signal(15), None, false));
        assert!(stop.deadline() >= before + Duration::from_secs(1));
        assert_eq!(stop.failures, ["a hook"]);
        stop.receive(Command::Signal(15), before + SAME_SIGNAL * 4);
        assert_eq!(stop.forced_by, Some(15));
    }

    #[test]
    fn a_grace_period_beyond_the_clock_has_a_deadline() {
        let mut stop = shutdown(Cause::Signal(15), Duration::MAX);
        assert!(stop.soft_deadline() < stop.deadline());
        assert!(stop.deadline() > Instant::now() + Duration::from_secs(365 * 24 * 60 * 60));
        let later = stop.deadline() + Duration::from_secs(1);
        stop.extend_to(later);
        assert_eq!(stop.deadline(), later);
    }
}
