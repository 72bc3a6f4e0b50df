//! The phase of a service. The drain writes it, and `/shutdown`, which begins a drain; every other part only reads.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use crate::crew::shutdown::Shutdown;
use crate::crew::stop::Stop;
use crate::sync::lock;

/// The phases, in the order in which they come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Phase {
    /// Serving as usual.
    Serving,
    /// A stop has begun. Everything is served as before, but `/healthz` answers 503 and responses say
    /// `Connection: close`. Lasts for the drain delay, and until the requests from before the stop are done.
    DrainDelay,
    /// New connections are not accepted. What has arrived is answered.
    Draining,
    /// Members are told to stop.
    Stopping,
    /// All members have stopped, or were abandoned.
    Stopped,
}

/// All phases, with the names that metrics and log use.
pub(crate) const PHASES: [(Phase, &str); 5] = [
    (Phase::Serving, "serving"),
    (Phase::DrainDelay, "drain_delay"),
    (Phase::Draining, "draining"),
    (Phase::Stopping, "stopping"),
    (Phase::Stopped, "stopped"),
];

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(PHASES[*self as usize].1)
    }
}

/// The present phase of a service, and the [`Stop`] that follows from it.
#[derive(Debug)]
pub(crate) struct Lifecycle {
    stop: Stop,
    phase: AtomicU8,
    drain_started: OnceLock<Instant>,
    reexecuting: AtomicBool,
    announced: Mutex<Option<Announced>>,
}

/// The stop that the drain carries out, for other threads to show.
#[derive(Clone, Debug)]
pub(crate) struct Announced {
    /// Its cause, as the log has it.
    pub(crate) cause: String,
    pub(crate) started: Instant,
    /// The end of the grace period.
    pub(crate) deadline: Instant,
}

impl Lifecycle {
    /// `stop` is what members and handlers hold: entering a phase releases its latches.
    pub(crate) fn new(stop: Stop) -> Lifecycle {
        Lifecycle {
            stop,
            phase: AtomicU8::new(Phase::Serving as u8),
            drain_started: OnceLock::new(),
            reexecuting: AtomicBool::new(false),
            announced: Mutex::new(None),
        }
    }

    pub(crate) fn phase(&self) -> Phase {
        PHASES[usize::from(self.phase.load(Ordering::Acquire)).min(PHASES.len() - 1)].0
    }

    /// Goes on to `phase`, never back.
    pub(crate) fn enter(&self, phase: Phase) {
        self.drain_started.get_or_init(Instant::now);
        self.phase.fetch_max(phase as u8, Ordering::AcqRel);
        // After the phase is set, so that it is seen by all that the latches wake.
        if phase >= Phase::Stopping {
            self.stop.stop();
        } else if phase >= Phase::DrainDelay {
            self.stop.drain();
        }
    }

    /// Lets the grace expire: handlers that wait on it answer now.
    pub(crate) fn expire(&self) {
        self.stop.expire();
    }

    /// The latches to wait on for a change of the phase: released when a drain begins, and when members are told to
    /// stop.
    pub(crate) fn stop(&self) -> &Stop {
        &self.stop
    }

    /// Publishes which stop the drain carries out, and whether it ends in a re-exec instead of an exit.
    pub(crate) fn announce(&self, shutdown: &Shutdown) {
        self.reexecuting.store(shutdown.is_reexec(), Ordering::Release);
        let mut announced = lock(&self.announced);
        if announced.as_ref().is_none_or(|known| known.started != shutdown.started) {
            let (cause, started, deadline) = (shutdown.cause.to_string(), shutdown.started, shutdown.deadline());
            *announced = Some(Announced { cause, started, deadline });
        }
    }

    /// The stop that the drain carries out; `None` before it begins.
    pub(crate) fn announced(&self) -> Option<Announced> {
        lock(&self.announced).clone()
    }

    pub(crate) fn is_reexecuting(&self) -> bool {
        self.reexecuting.load(Ordering::Acquire)
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.phase() > Phase::Serving
    }

    /// True once a stop has begun that ends in an exit. A stop may still replace a re-exec, and nothing replaces a
    /// stop.
    pub(crate) fn is_stopping_for_good(&self) -> bool {
        self.is_draining() && !self.is_reexecuting()
    }

    /// Time since the drain began.
    pub(crate) fn draining_for(&self) -> Duration {
        self.drain_started.get().map_or(Duration::ZERO, Instant::elapsed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_go_forward_only_and_release_the_latches_of_the_stop() {
        let lifecycle = Lifecycle::new(Stop::new());
        assert!(!lifecycle.is_draining() && lifecycle.draining_for().is_zero());
        lifecycle.enter(Phase::Draining);
        lifecycle.enter(Phase::DrainDelay);
        assert_eq!(lifecycle.phase(), Phase::Draining);
        assert!(lifecycle.stop().is_draining() && !lifecycle.stop().is_stopping());
        lifecycle.enter(Phase::Stopping);
        assert!(lifecycle.stop().is_stopping());
    }
}
