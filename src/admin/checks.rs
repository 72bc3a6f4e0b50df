//! The service's own readiness checks, which `/readyz` shows.
//!
//! Each check runs at an interval on a thread of its own, and `/readyz` shows its last result: so `/readyz` answers at
//! once, however long a check takes, and no client can make checks run. One member starts the threads and receives from
//! an unbounded channel, on which each thread sends the number of its check once it is done; no send blocks. A check
//! that still runs when the service stops is abandoned, and named in the log.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, select, unbounded};

use crate::clock::saturating_add;
use crate::crew::stop::Stop;
use crate::sync::lock;
use crate::text::{human_duration, json_string, panic_message};

/// Default time between two runs of a check: a load balancer asks about as often.
const EVERY: Duration = Duration::from_secs(5);

/// Default time within which a check must answer.
const LIMIT: Duration = Duration::from_secs(2);

/// A readiness check of the application: a name, a function, how often it runs, and how long it may take.
///
/// ```
/// use std::time::Duration;
/// use allout::{Check, Service};
///
/// let disk = Check::new("disk", || std::fs::metadata("/var/lib/shop").map(drop)).every(Duration::from_secs(30));
/// let service = Service::new().check(disk); // until that exists, /readyz is 503 and says so
/// ```
pub struct Check {
    name: String,
    every: Duration,
    limit: Duration,
    run: Box<dyn Fn() -> Result<(), String> + Send + Sync>,
}

impl fmt::Debug for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Check").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Check {
    /// A check that runs every 5 s and has 2 s to answer. Its error is shown to every client that may see `/readyz`.
    ///
    /// ```
    /// use allout::Check;
    /// let spool = Check::new("spool", || std::fs::metadata("/var/spool/shop").map(drop));
    /// ```
    pub fn new<E: fmt::Display>(
        name: impl Into<String>,
        run: impl Fn() -> Result<(), E> + Send + Sync + 'static,
    ) -> Check {
        let run = move || run().map_err(|error| error.to_string());
        Check { name: name.into(), every: EVERY, limit: LIMIT, run: Box::new(run) }
    }

    /// Sets the time between the end of a run and the next.
    ///
    /// ```
    /// use std::time::Duration;
    /// let check = allout::Check::new("queue", || Ok::<(), String>(())).every(Duration::from_secs(60));
    /// ```
    #[must_use]
    pub fn every(mut self, interval: Duration) -> Check {
        self.every = interval;
        self
    }

    /// Sets the time within which it must answer; one that takes longer fails.
    ///
    /// ```
    /// use std::time::Duration;
    /// let check = allout::Check::new("database", || Ok::<(), String>(())).limit(Duration::from_millis(500));
    /// ```
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Check {
        self.limit = limit;
        self
    }
}

/// A check, and its last result.
struct CheckState {
    check: Check,
    progress: Mutex<Progress>,
}

#[derive(Default)]
struct Progress {
    running_since: Option<Instant>,
    last: Option<Result<(), String>>,
}

impl CheckState {
    /// Runs the check on the calling thread.
    fn run(&self) {
        let began = Instant::now();
        lock(&self.progress).running_since = Some(began);
        let result = catch_unwind(AssertUnwindSafe(|| (self.check.run)()));
        let mut result = result.unwrap_or_else(|payload| Err(format!("it panicked: {}", panic_message(payload))));
        if result.is_ok() && began.elapsed() > self.check.limit {
            result = Err(format!("it took {}", human_duration(began.elapsed())));
        }
        self.finish(result);
    }

    fn finish(&self, result: Result<(), String>) {
        let mut progress = lock(&self.progress);
        progress.running_since = None;
        let before = progress.last.replace(result.clone());
        drop(progress);
        match (before, result) {
            (Some(Err(_)), Ok(())) => log::info!("check {}: ok", self.check.name),
            (before, Err(reason)) if before.as_ref() != Some(&Err(reason.clone())) => {
                log::warn!("check {}: {reason}", self.check.name);
            }
            _ => {}
        }
    }

    /// The last result; or a failure while the check takes longer than its limit, and before the first result.
    fn verdict(&self) -> Result<(), String> {
        let progress = lock(&self.progress);
        let running_for = progress.running_since.map_or(Duration::ZERO, |since| since.elapsed());
        if running_for > self.check.limit {
            return Err(format!("no answer for {}", human_duration(running_for)));
        }
        progress.last.clone().unwrap_or_else(|| Err("not checked yet".to_owned()))
    }
}

/// All checks of a service. Clones share them.
#[derive(Clone, Default)]
pub(crate) struct Checks(Arc<Mutex<Vec<Arc<CheckState>>>>);

impl Checks {
    /// Adds a check. True if it is the first.
    pub(crate) fn add(&self, check: Check) -> bool {
        let mut all = lock(&self.0);
        all.push(Arc::new(CheckState { check, progress: Mutex::default() }));
        all.len() == 1
    }

    fn all(&self) -> Vec<Arc<CheckState>> {
        lock(&self.0).clone()
    }

    /// Runs all checks until the service stops.
    pub(crate) fn run(&self, stop: &Stop) {
        let (sender, ended) = unbounded();
        let mut checks: Vec<_> = self.all().into_iter().map(|state| (state, None, Instant::now())).collect();
        loop {
            let now = Instant::now();
            for (number, (state, thread, due)) in checks.iter_mut().enumerate() {
                if thread.is_none() && *due <= now {
                    *thread = start(state, number, &sender);
                    *due = saturating_add(now, state.check.every); // the next attempt, if no thread could be created
                }
            }
            let idle = checks.iter().filter(|(_, thread, _)| thread.is_none()).map(|(.., due)| *due);
            let wait = idle.min().map_or(EVERY, |due| due.saturating_duration_since(now));
            select! {
                recv(stop.stopping()) -> _ => break,
                recv(ended) -> number => {
                    let Some((state, thread, due)) = number.ok().and_then(|number: usize| checks.get_mut(number)) else {
                        continue;
                    };
                    if let Some(thread) = thread.take() {
                        let _ = thread.join(); // its panics were caught before
                    }
                    *due = saturating_add(Instant::now(), state.check.every);
                }
                default(wait) => {}
            }
        }
        for (state, ..) in checks.iter().filter(|(_, thread, _)| thread.as_ref().is_some_and(|t| !t.is_finished())) {
            log::warn!("abandoned: check {}", state.check.name);
        }
    }

    /// Runs the checks that have not run yet, on the calling thread: for requests that are handled without a running
    /// service.
    pub(crate) fn run_once(&self) {
        for state in self.all().iter().filter(|state| lock(&state.progress).last.is_none()) {
            state.run();
        }
    }

    /// Name and result of each check.
    pub(super) fn verdicts(&self) -> Vec<(String, Result<(), String>)> {
        self.all().iter().map(|state| (state.check.name.clone(), state.verdict())).collect()
    }
}

/// Starts a run on a thread of its own, which sends `number` when it is done.
fn start(state: &Arc<CheckState>, number: usize, ended: &Sender<usize>) -> Option<JoinHandle<()>> {
    let (running, ended) = (Arc::clone(state), ended.clone());
    let run = move || {
        running.run();
        let _ = ended.send(number); // the receiver is gone if the service has stopped
    };
    let name: String = format!("check-{}", state.check.name).chars().filter(|c| *c != '\0').collect();
    let spawned = thread::Builder::new().name(name).spawn(run);
    spawned.inspect_err(|error| state.finish(Err(format!("cannot spawn a thread: {error}")))).ok()
}

/// The state of the service and its checks as JSON.
pub(super) fn as_json(status: &str, verdicts: &[(String, Result<(), String>)]) -> String {
    let checks: Vec<String> = verdicts
        .iter()
        .map(|(name, verdict)| match verdict {
            Ok(()) => format!(r#"{{"name":{},"status":"ok"}}"#, json_string(name)),
            Err(reason) => {
                format!(r#"{{"name":{},"status":"failing","reason":{}}}"#, json_string(name), json_string(reason))
            }
        })
        .collect();
    format!(r#"{{"status":{},"checks":[{}]}}"#, json_string(status), checks.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checks(all: impl IntoIterator<Item = Check>) -> Checks {
        let checks = Checks::default();
        for check in all {
            checks.add(check);
        }
        checks
    }

    #[test]
    fn a_check_shows_the_result_of_its_last_run() {
        let checks = checks([
            Check::new("good", || Ok::<_, String>(())),
            Check::new("bad", || Err("the \"disk\" is gone")),
            Check::new("panics", || -> Result<(), String> { panic!("a bug") }),
            Check::new("late", || Ok::<_, String>(())).limit(Duration::ZERO),
        ]);
        assert!(checks.verdicts().iter().all(|(_, verdict)| *verdict == Err("not checked yet".to_owned())));
        checks.run_once();
        let verdicts = checks.verdicts();
        let reasons: Vec<_> = verdicts.iter().map(|(_, verdict)| verdict.as_ref().err().map(String::as_str)).collect();
        assert_eq!(reasons[..3], [None, Some("the \"disk\" is gone"), Some("it panicked: a bug")]);
        assert!(reasons[3].is_some_and(|reason| reason.starts_with("it took ")), "{reasons:?}");
        let json = as_json("not ready", &verdicts[..2]);
        let expected = r#"{"status":"not ready","checks":[{"name":"good","status":"ok"},"#;
        let failing = r#"{"name":"bad","status":"failing","reason":"the \"disk\" is gone"}]}"#;
        assert_eq!(json, format!("{expected}{failing}"));
    }

    #[test]
    fn a_check_whose_interval_never_ends_runs_once() {
        let once = Check::new("once", || Ok::<_, String>(())).every(Duration::MAX).limit(Duration::MAX);
        let (stop, checks) = (Stop::new(), checks([once]));
        thread::scope(|scope| {
            let member = scope.spawn(|| checks.run(&stop));
            let began = Instant::now();
            while checks.verdicts()[0].1.is_err() && !member.is_finished() {
                assert!(began.elapsed() < Duration::from_secs(20), "{:?}", checks.verdicts());
                thread::yield_now();
            }
            stop.stop();
            member.join().unwrap();
        });
    }

    #[test]
    fn a_check_that_hangs_fails_after_its_limit_and_does_not_delay_a_stop() {
        let (release, held) = crossbeam_channel::bounded::<()>(0);
        let hangs = Check::new("hangs", move || held.recv().or(Ok::<_, String>(()))).limit(Duration::from_millis(5));
        let (stop, checks) = (Stop::new(), checks([hangs, Check::new("good", || Ok::<_, String>(()))]));
        let member = {
            let (stop, checks) = (stop.clone(), checks.clone());
            thread::spawn(move || checks.run(&stop))
        };
        let began = Instant::now();
        while !matches!(&checks.verdicts()[..], [(_, Err(reason)), (_, Ok(()))] if reason.starts_with("no answer for "))
        {
            assert!(began.elapsed() < Duration::from_secs(20), "{:?}", checks.verdicts());
            thread::yield_now();
        }
        stop.stop();
        member.join().unwrap();
        drop(release);
    }
}
