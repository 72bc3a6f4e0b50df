//! How it ended, and the one place that turns this into an exit code.

use std::fmt;
use std::process::{ExitCode, Termination};
use std::time::Duration;

use crate::crew::Exit;
use crate::text::human_duration;

/// Why everyone went out: the first message.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cause {
    /// It could not even start; the text says why.
    NotStarted(String),
    /// A signal that asks to stop.
    Signal(i32),
    /// Somebody asked: `GET /shutdown`, or a [`Stopper`](crate::Stopper). The text says who, or why.
    Requested(String),
    /// Somebody asked for a renewal: leave, then start again under the same pid. The text says who, or why.
    Reexec(String),
    /// tiny_http has lost more connections (threads, descriptors) than is safe.
    EngineLeak(String),
    /// It was only rehearsed, for the renewal of another process.
    Preflight,
    /// A member went out by itself.
    Member {
        /// Its name.
        name: String,
        /// How it ended.
        how: Exit,
    },
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cause::NotStarted(why) | Cause::EngineLeak(why) => f.write_str(why),
            Cause::Signal(number) => f.write_str(&signal_name(*number)),
            Cause::Requested(who) => write!(f, "asked to stop: {who}"),
            Cause::Reexec(why) => write!(f, "renewal ({why})"),
            Cause::Preflight => f.write_str("rehearsed"),
            Cause::Member { name, how } => write!(f, "{name} {how}"),
        }
    }
}

fn signal_name(number: i32) -> String {
    match signal_hook::low_level::signal_name(number) {
        Some(name) => name.to_owned(),
        None => format!("signal {number}"),
    }
}

/// How a crew, or a service, ended.
#[derive(Clone, Debug)]
#[must_use = "an outcome says whether something failed or was abandoned; turn it into an ExitCode"]
#[non_exhaustive]
pub struct Outcome {
    /// The first message: why everyone went out.
    pub cause: Cause,
    /// What was still running when grace was over: a request (method, path, peer, age) or a member's name.
    pub abandoned: Vec<String>,
    /// Members that failed or panicked after the first message.
    pub failures: Vec<String>,
    /// The second signal, if one cut the drain short.
    pub forced_by: Option<i32>,
    /// From the first message to the end.
    pub duration: Duration,
}

impl Outcome {
    /// The exit code that goes with it.
    ///
    /// | code | |
    /// | --- | --- |
    /// | 0 | asked to stop, and nothing was abandoned |
    /// | 1 | a member failed, panicked, or ended unasked |
    /// | 3 | grace was over and something was abandoned |
    /// | 99 | it was the rehearsal of a renewal, and went well |
    /// | 128+n | a second signal n cut the drain short |
    ///
    /// 2 stays for unusable arguments, as `getopt`'s users have it.
    pub fn code(&self) -> u8 {
        if let Some(signal) = self.forced_by {
            return u8::try_from(128 + signal).unwrap_or(u8::MAX);
        }
        if self.cause == Cause::Preflight {
            return crate::lifecycle::reexec::EXIT_PREFLIGHT_OK;
        }
        let unasked = matches!(self.cause, Cause::Member { .. } | Cause::NotStarted(_) | Cause::EngineLeak(_));
        let failed = unasked || !self.failures.is_empty();
        match (failed, self.abandoned.is_empty()) {
            (true, _) => 1,
            (false, false) => 3,
            (false, true) => 0,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.cause)?;
        match (self.forced_by, self.abandoned.len()) {
            (Some(signal), _) => write!(f, "cut short by {}", signal_name(signal))?,
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

impl Termination for Outcome {
    fn report(self) -> ExitCode {
        self.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(cause: Cause) -> Outcome {
        Outcome { cause, abandoned: vec![], failures: vec![], forced_by: None, duration: Duration::from_millis(7) }
    }

    #[test]
    fn each_end_has_its_exit_code() {
        let asked = outcome(Cause::Signal(15));
        assert_eq!(asked.code(), 0);
        assert_eq!(outcome(Cause::Requested("GET /shutdown".into())).code(), 0);
        let member = |how| outcome(Cause::Member { name: "listener".into(), how });
        assert_eq!(member(Exit::Finished).code(), 1);
        assert_eq!(member(Exit::Failed("no".into())).code(), 1);
        assert_eq!(member(Exit::Panicked("no".into())).code(), 1);
        assert_eq!(Outcome { abandoned: vec!["GET /".into()], ..asked.clone() }.code(), 3);
        assert_eq!(Outcome { failures: vec!["workers".into()], ..asked.clone() }.code(), 1);
        assert_eq!(Outcome { forced_by: Some(2), ..asked }.code(), 130);
    }

    #[test]
    fn the_last_line_says_what_happened_and_how_long_it_took() {
        assert_eq!(outcome(Cause::Signal(15)).to_string(), "SIGTERM: all out after 7ms");
    }
}
