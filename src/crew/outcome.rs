//! The end of a crew or a service: its cause, and the exit code that follows from it.

use std::fmt;
use std::io::{self, Write as _};
use std::process::{ExitCode, Termination};
use std::time::Duration;

use crate::crew::member::Exit;
use crate::crew::message::Command;
use crate::text::human_duration;

/// Exit code of a member that failed, panicked or ended unasked, and of a service that could not start.
pub(crate) const EXIT_FAILED: u8 = 1;
/// Exit code when something was still running at the end of the grace period.
const EXIT_ABANDONED: u8 = 3;
/// Added to the number of the signal that forced the exit, as shells report it.
const EXIT_SIGNAL: i32 = 128;

/// The cause of a stop: the first signal, request to stop, or exit of a member.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cause {
    /// It could not start; the text says why.
    NotStarted(String),
    /// A signal that asks to stop.
    Signal(i32),
    /// `/shutdown`, or a [`Stopper`](crate::Stopper), asked to stop. The text says who, or why.
    Requested(String),
    /// SIGHUP, or a [`Stopper`](crate::Stopper), asked to go on with the binary on disk under the same pid. The text says
    /// who, or why.
    Reexec(String),
    /// The engine has leaked more connections (each a thread and descriptors) than is safe.
    EngineLeak(String),
    /// A member ended by itself.
    Member {
        /// Its name.
        name: String,
        /// Its end.
        exit: Exit,
    },
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cause::NotStarted(why) | Cause::EngineLeak(why) => f.write_str(why),
            Cause::Signal(number) => f.write_str(&signal_name(*number)),
            Cause::Requested(who) => write!(f, "asked to stop ({who})"),
            Cause::Reexec(why) => write!(f, "re-exec ({why})"),
            Cause::Member { name, exit } => write!(f, "{name} {exit}"),
        }
    }
}

impl Cause {
    /// The first line of a stop in the log.
    pub(crate) fn announcement(&self) -> String {
        match self {
            Cause::Reexec(why) => format!("restarting: {why}, one out, all out"),
            cause => format!("shutting down: {cause}, one out, all out"),
        }
    }

    /// The event from which the log counts the time of a stop.
    fn event(&self) -> String {
        match self {
            Cause::Signal(number) => signal_name(*number),
            Cause::Reexec(why) => why.clone(),
            Cause::Member { name, .. } => format!("{name} ended"),
            Cause::Requested(_) => "it was asked to stop".to_owned(),
            Cause::EngineLeak(_) | Cause::NotStarted(_) => "the failure".to_owned(),
        }
    }

    /// `2.5s after SIGTERM`.
    pub(crate) fn time_after(&self, span: Duration) -> String {
        format!("{} after {}", human_duration(span), self.event())
    }
}

impl From<Command> for Cause {
    fn from(command: Command) -> Cause {
        match command {
            Command::Signal(number) => Cause::Signal(number),
            Command::Stop(by) => Cause::Requested(by),
            Command::Reexec(why) => Cause::Reexec(why),
            Command::EngineLeak(why) => Cause::EngineLeak(why),
        }
    }
}

fn signal_name(number: i32) -> String {
    match signal_hook::low_level::signal_name(number) {
        Some(name) => name.to_owned(),
        None => format!("signal {number}"),
    }
}

/// The end of a crew or a service: why it stopped, and what failed or was abandoned.
#[derive(Clone, Debug)]
#[must_use = "an outcome says whether something failed or was abandoned; turn it into an ExitCode"]
#[non_exhaustive]
pub struct Outcome {
    /// The cause for which it stopped.
    pub cause: Cause,
    /// Work still running at the end of the grace period: a request (method, path, peer, age) or a member's name.
    pub abandoned: Vec<String>,
    /// Members and hooks that failed or panicked after the cause.
    pub failures: Vec<String>,
    /// The second stop signal, if it forced the exit.
    pub forced_by: Option<i32>,
    /// Time from the cause to the end.
    pub duration: Duration,
}

impl Outcome {
    /// An outcome without a drain.
    pub(crate) fn immediate(cause: Cause) -> Outcome {
        Outcome { cause, abandoned: Vec::new(), failures: Vec::new(), forced_by: None, duration: Duration::ZERO }
    }

    /// The cause of a failure, what failed after it, and what was abandoned.
    fn failure_line(&self) -> String {
        let mut line = match &self.cause {
            Cause::NotStarted(why) => why.clone(),
            _ => self.to_string(),
        };
        for failure in &self.failures {
            line.extend(["; ", failure]);
        }
        for abandoned in &self.abandoned {
            line.extend(["; abandoned: ", abandoned]);
        }
        line
    }

    /// The exit code.
    ///
    /// | code | |
    /// | --- | --- |
    /// | 0 | asked to stop, and nothing was abandoned |
    /// | 1 | a member failed, panicked, or ended unasked |
    /// | 3 | something still ran at the end of the grace period |
    /// | 128+n | a second signal n forced the exit |
    ///
    /// 2 is for unusable arguments, as in programs that use `getopt`.
    pub fn code(&self) -> u8 {
        if let Some(signal) = self.forced_by {
            return u8::try_from(EXIT_SIGNAL + signal).unwrap_or(u8::MAX);
        }
        let unasked = matches!(self.cause, Cause::Member { .. } | Cause::NotStarted(_) | Cause::EngineLeak(_));
        let failed = unasked || !self.failures.is_empty();
        match (failed, self.abandoned.is_empty()) {
            (true, _) => EXIT_FAILED,
            (false, false) => EXIT_ABANDONED,
            (false, true) => 0,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, ", self.cause)?;
        match (self.forced_by, self.abandoned.len()) {
            (Some(signal), _) => write!(f, "forced by {}", signal_name(signal))?,
            (None, 0) => f.write_str("all out")?,
            (None, n) => write!(f, "{n} abandoned")?,
        }
        if !self.failures.is_empty() {
            write!(f, ", {} failed", self.failures.len())?;
        }
        write!(f, " after {}", human_duration(self.duration))
    }
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> ExitCode {
        ExitCode::from(outcome.code())
    }
}

/// Lets `main` return an outcome. A failure that no logger has written is printed to stderr, in one line: the one thing
/// that this crate prints.
impl Termination for Outcome {
    fn report(self) -> ExitCode {
        if self.code() != 0 {
            print_unless_logged(&self.failure_line());
        }
        self.into()
    }
}

/// Prints why the process fails, if no logger writes it.
pub(crate) fn print_unless_logged(failure: &str) {
    if !log::log_enabled!(log::Level::Error) {
        let _ = writeln!(io::stderr(), "{failure}"); // stderr is closed: no place is left to report it
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(cause: Cause) -> Outcome {
        Outcome { duration: Duration::from_millis(7), ..Outcome::immediate(cause) }
    }

    #[test]
    fn each_end_has_its_exit_code() {
        let asked = outcome(Cause::Signal(15));
        assert_eq!(asked.code(), 0);
        assert_eq!(outcome(Cause::Requested("GET /shutdown".into())).code(), 0);
        let member = |exit| outcome(Cause::Member { name: "listener".into(), exit });
        assert_eq!(member(Exit::Finished).code(), 1);
        assert_eq!(member(Exit::Failed("no".into())).code(), 1);
        assert_eq!(member(Exit::Panicked("no".into())).code(), 1);
        assert_eq!(Outcome { abandoned: vec!["GET /".into()], ..asked.clone() }.code(), 3);
        assert_eq!(Outcome { failures: vec!["workers".into()], ..asked.clone() }.code(), 1);
        assert_eq!(Outcome { forced_by: Some(2), ..asked }.code(), 130);
    }

    #[test]
    fn a_failure_is_told_in_one_line() {
        let in_use = outcome(Cause::NotStarted("address in use: 127.0.0.1:80".into()));
        assert_eq!(in_use.failure_line(), "address in use: 127.0.0.1:80");
        let late = Outcome { abandoned: vec!["GET / from a for 3s".into()], ..outcome(Cause::Signal(15)) };
        let late = Outcome { failures: vec!["journal failed: full".into()], ..late };
        let line = "SIGTERM, 1 abandoned, 1 failed after 7ms; journal failed: full; abandoned: GET / from a for 3s";
        assert_eq!(late.failure_line(), line);
    }

    #[test]
    fn the_last_line_says_what_happened_and_how_long_it_took() {
        assert_eq!(outcome(Cause::Signal(15)).to_string(), "SIGTERM, all out after 7ms");
    }
}
