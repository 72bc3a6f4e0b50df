//! In which phase a service is: one word that everyone may read, and that only the drain writes.

use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

/// The phases, in the order in which they come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Phase {
    /// As usual.
    Serving,
    /// The first message has come. All is served as before, but `/healthz` says 503 and connections are told to close.
    DrainDelay,
    /// New connections are ignored; what has arrived is answered.
    Finishing,
    /// Everyone is told to leave.
    Leaving,
    /// Everyone is out, or abandoned.
    Out,
}

/// All phases, with their names.
pub(crate) const PHASES: [(Phase, &str); 5] = [
    (Phase::Serving, "serving"),
    (Phase::DrainDelay, "drain_delay"),
    (Phase::Finishing, "finishing"),
    (Phase::Leaving, "leaving"),
    (Phase::Out, "out"),
];

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(PHASES[*self as usize].1)
    }
}

/// The phase that a service is in at the moment.
#[derive(Debug, Default)]
pub(crate) struct Current {
    phase: AtomicU8,
    finishing: OnceLock<Instant>,
}

impl Current {
    pub(crate) fn get(&self) -> Phase {
        PHASES[usize::from(self.phase.load(Ordering::Acquire)).min(PHASES.len() - 1)].0
    }

    /// Goes on to `phase`; never back.
    pub(crate) fn advance(&self, phase: Phase) {
        if phase >= Phase::Finishing {
            self.finishing.get_or_init(Instant::now);
        }
        self.phase.fetch_max(phase as u8, Ordering::AcqRel);
    }

    /// For how long new connections have been ignored.
    pub(crate) fn since_finishing(&self) -> Duration {
        self.finishing.get().map_or(Duration::ZERO, Instant::elapsed)
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.get() > Phase::Serving
    }
}
