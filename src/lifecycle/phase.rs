//! In which phase a service is: one word that everyone may read, and that only the drain writes.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};

use crate::sync::lock;

/// The phases, in the order in which they come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Phase {
    /// As usual.
    Serving,
    /// The first message has come. All is served as before, but `/healthz` says 503 and connections are told to close. It
    /// lasts for the drain delay, and for as long as requests are in flight that were when the message came.
    DrainDelay,
    /// New connections are ignored; what has arrived is answered.
    Draining,
    /// Everyone is told to leave.
    Stopping,
    /// Everyone is out, or abandoned.
    Stopped,
}

/// All phases, with their names.
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

/// The phase that a service is in at the moment.
#[derive(Debug, Default)]
pub(crate) struct Lifecycle {
    phase: AtomicU8,
    began: OnceLock<Instant>,
    renewing: AtomicBool,
    observers: Mutex<Vec<Sender<Phase>>>,
}

impl Lifecycle {
    pub(crate) fn get(&self) -> Phase {
        PHASES[usize::from(self.phase.load(Ordering::Acquire)).min(PHASES.len() - 1)].0
    }

    /// Goes on to `phase`; never back.
    pub(crate) fn advance(&self, phase: Phase) {
        self.began.get_or_init(Instant::now);
        let former = self.phase.fetch_max(phase as u8, Ordering::AcqRel);
        if former < phase as u8 {
            let mut observers = lock(&self.observers);
            observers.retain(|observer| observer.send(phase).is_ok()); // unbounded: never waits
        }
    }

    /// Each phase that comes from now on, for those who watch.
    pub(crate) fn changes(&self) -> Receiver<Phase> {
        let (sender, receiver) = unbounded();
        lock(&self.observers).push(sender);
        receiver
    }

    /// The drain is for a new instance that takes over. To be said before the drain begins.
    pub(crate) fn set_reexecuting(&self) {
        self.renewing.store(true, Ordering::Release);
    }

    pub(crate) fn is_reexecuting(&self) -> bool {
        self.renewing.load(Ordering::Acquire)
    }

    /// For how long the drain has lasted.
    pub(crate) fn draining_for(&self) -> Duration {
        self.began.get().map_or(Duration::ZERO, Instant::elapsed)
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.get() > Phase::Serving
    }
}
