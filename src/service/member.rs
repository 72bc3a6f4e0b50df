//! The members that an application adds: their kinds, how they are spawned, and how a member is restarted.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::crew::Crew;
use crate::crew::hooks::Hook;
use crate::crew::member::{Exit, Restarts, catch_exit};
use crate::crew::outcome::Cause;
use crate::crew::stop::Stop;
use crate::service::error::StartError;
use crate::text::human_duration;

/// A member that waits to be started.
pub(super) struct Member {
    pub(super) name: String,
    pub(super) interrupt: Hook,
    pub(super) body: Box<dyn FnOnce(&Stop) -> Exit + Send>,
    pub(super) kind: Kind,
    /// Restarts so far, if the member is restarted when it ends.
    pub(super) restarts: Option<Arc<Restarts>>,
}

/// The kind of a member: when it starts, and what its end means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Its end stops the service.
    Stays,
    /// It may finish while the service goes on.
    MayFinish,
    /// It may finish, and must do so before other members start and the service is ready.
    BeforeReady,
}

/// How often a member is restarted when it ends, and after which pauses.
///
/// ```
/// use std::time::Duration;
/// let restart = allout::Restart::new().times(10).backoff(Duration::from_millis(50), Duration::from_secs(5));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restart {
    times: u32,
    first: Duration,
    most: Duration,
    reset_after: Duration,
}

impl Default for Restart {
    fn default() -> Restart {
        Restart::new()
    }
}

impl Restart {
    /// Five times, after 100 ms, 200 ms, 400 ms and so on, up to 10 s; after a run of a minute the count starts again.
    pub fn new() -> Restart {
        Restart {
            times: 5,
            first: Duration::from_millis(100),
            most: Duration::from_secs(10),
            reset_after: Duration::from_secs(60),
        }
    }

    /// Sets the most restarts in a row.
    ///
    /// ```
    /// let restart = allout::Restart::new().times(10);
    /// ```
    #[must_use]
    pub fn times(mut self, times: u32) -> Restart {
        self.times = times;
        self
    }

    /// Sets the pause before the first restart, which doubles with each, and the longest.
    ///
    /// ```
    /// use std::time::Duration;
    /// let restart = allout::Restart::new().backoff(Duration::from_millis(50), Duration::from_secs(5));
    /// ```
    #[must_use]
    pub fn backoff(mut self, first: Duration, most: Duration) -> Restart {
        (self.first, self.most) = (first, most);
        self
    }

    /// Sets the length of a run after which the count of restarts starts again.
    ///
    /// ```
    /// let restart = allout::Restart::new().reset_after(std::time::Duration::from_secs(600));
    /// ```
    #[must_use]
    pub fn reset_after(mut self, span: Duration) -> Restart {
        self.reset_after = span;
        self
    }

    /// The pause before a restart; the first has number 1.
    fn pause(self, number: u32) -> Duration {
        self.first.saturating_mul(2_u32.saturating_pow(number - 1)).min(self.most)
    }

    /// Runs `body` until the service stops, or until it has ended too often.
    pub(super) fn run(self, name: &str, told: &Restarts, stop: &Stop, body: impl Fn(&Stop) -> Exit) -> Exit {
        let mut restarts = 0;
        loop {
            let began = Instant::now();
            let exit = catch_exit(|| body(stop));
            if stop.is_stopping() {
                return exit;
            }
            if began.elapsed() >= self.reset_after {
                restarts = 0;
            }
            if restarts >= self.times {
                return exit;
            }
            restarts += 1;
            let (pause, times) = (self.pause(restarts), self.times);
            log::warn!("member {name} {exit}: restart {restarts} of {times} in {}", human_duration(pause));
            told.pause();
            if stop.wait_timeout(pause) {
                return Exit::Finished;
            }
            told.restart();
        }
    }
}

/// Spawns the members: first those that must finish before the service is ready, one after the other, then the others
/// at once.
/// Errors: the system cannot create a thread, or there was a cause to stop before they had ended.
pub(super) fn spawn(crew: &mut Crew, members: Vec<Member>) -> Result<(), StartError> {
    let (before, others): (Vec<_>, Vec<_>) = members.into_iter().partition(|member| member.kind == Kind::BeforeReady);
    for Member { name, interrupt, body, kind, restarts } in before.into_iter().chain(others) {
        let stop = crew.stop();
        let spawned = crew.spawn_member(&name, Some(interrupt), move || body(&stop));
        let slot = spawned.map_err(|error| StartError::System("the thread of a member", error))?;
        if kind != Kind::Stays {
            crew.allow_finish(slot);
        }
        if let Some(restarts) = restarts {
            crew.show_restarts(slot, restarts);
        }
        while kind == Kind::BeforeReady && crew.is_running(slot) {
            match crew.wait_first_until(None) {
                Some(Cause::Reexec(why)) => log::warn!("{why} ignored: the service is not ready yet"),
                Some(cause) => return Err(StartError::Stopped(cause)),
                None => {}
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    const QUICK: Restart =
        Restart { times: 2, first: Duration::ZERO, most: Duration::ZERO, reset_after: Duration::MAX };

    #[test]
    fn a_member_is_restarted_a_number_of_times() {
        let (runs, told, stop) = (Cell::new(0), Restarts::default(), Stop::new());
        let exit = QUICK.run("x", &told, &stop, |_| {
            runs.set(runs.get() + 1);
            match runs.get() {
                1 => panic!("a bug"),
                n => Exit::Failed(n.to_string()),
            }
        });
        assert_eq!((runs.get(), exit), (3, Exit::Failed("3".to_owned())));
        assert_eq!((told.count(), told.is_pausing()), (2, false));
    }

    #[test]
    fn a_run_that_lasted_long_enough_resets_the_count() {
        let (runs, told, stop) = (Cell::new(0), Restarts::default(), Stop::new());
        let restart = Restart { reset_after: Duration::ZERO, ..QUICK };
        let exit = restart.run("x", &told, &stop, |stop| {
            runs.set(runs.get() + 1);
            if runs.get() == 100 {
                stop.stop();
            }
            Exit::Finished
        });
        assert_eq!((runs.get(), exit), (100, Exit::Finished));
    }

    #[test]
    fn pauses_double_up_to_the_longest() {
        let pauses = [1, 2, 3, 8, 1000].map(|number| Restart::new().pause(number).as_millis());
        assert_eq!(pauses, [100, 200, 400, 10_000, 10_000]);
    }
}
