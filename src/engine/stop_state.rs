//! Progress of a stop, as far as it concerns an engine.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::Instant;

use crate::sync::lock;

/// The steps of a stop. A close, once announced, stays so; accepting may stop, resume and stop again before a re-exec.
#[derive(Debug, Default)]
pub(crate) struct StopState {
    announced: OnceLock<Instant>,
    /// Count of steps. They cycle: accepting, stopping, stopped, accepting again, and so on.
    steps: AtomicU64,
    /// When accepting was last stopped or resumed.
    last_change: Mutex<Option<Instant>>,
}

// The stages, which follow each other in this order, again and again.
const ACCEPTING: u64 = 0;
const STOPPING: u64 = 1;
const STOPPED: u64 = 2;

fn stage(steps: u64) -> u64 {
    steps % 3
}

impl StopState {
    /// The drain begins: responses say `Connection: close`.
    pub(crate) fn announce_close(&self) {
        self.announced.get_or_init(Instant::now);
    }

    /// Accepting is about to be stopped.
    pub(crate) fn stop_accepting(&self) {
        self.announce_close();
        self.advance(ACCEPTING, 1);
    }

    /// Accepting has been stopped: from here on quiescence can be detected.
    pub(crate) fn accepting_stopped(&self) {
        self.advance(STOPPING, 1);
    }

    /// New connections are accepted again.
    pub(crate) fn resume_accepting(&self) {
        self.advance(STOPPING, 2);
        self.advance(STOPPED, 1);
    }

    /// Gives the present stop a new number, so that what was observed before proves nothing any more.
    pub(crate) fn restart_proof(&self) {
        self.advance(STOPPED, 3);
    }

    fn advance(&self, from: u64, by: u64) {
        let mut last_change = lock(&self.last_change);
        let steps = self.steps.load(Ordering::SeqCst);
        if stage(steps) == from {
            if (from, by) != (STOPPING, 1) {
                *last_change = Some(Instant::now());
            }
            self.steps.store(steps + by, Ordering::SeqCst);
        }
    }

    /// When the drain began.
    pub(crate) fn announced(&self) -> Option<Instant> {
        self.announced.get().copied()
    }

    /// When accepting began to stop; `None` while connections are accepted.
    pub(crate) fn accept_stopped(&self) -> Option<Instant> {
        if self.is_accepting() { None } else { *lock(&self.last_change) }
    }

    fn is_accepting(&self) -> bool {
        stage(self.steps.load(Ordering::SeqCst)) == ACCEPTING
    }

    /// The number of this stop, once accepting has been stopped. What is observed during one stop proves nothing about
    /// the next, since connections are accepted in between.
    pub(crate) fn stop_number(&self) -> Option<u64> {
        Some(self.steps.load(Ordering::SeqCst)).filter(|steps| stage(*steps) == STOPPED)
    }

    /// True if the drain has begun and `moment` was before it, or before accepting was last resumed.
    pub(crate) fn predates_drain(&self, moment: Instant) -> bool {
        let resumed = || if self.is_accepting() { *lock(&self.last_change) } else { None };
        self.announced().is_some_and(|announced| moment <= resumed().unwrap_or(announced))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepting_stops_and_resumes_and_each_stop_has_a_number() {
        let (state, before) = (StopState::default(), Instant::now());
        assert!(!state.predates_drain(before) && state.accept_stopped().is_none());
        state.stop_accepting();
        state.stop_accepting();
        assert!(state.accept_stopped() >= Some(before) && state.stop_number().is_none(), "it has only begun");
        state.accepting_stopped();
        let first = state.stop_number();
        assert!(first.is_some() && state.accept_stopped().is_some() && state.predates_drain(before));
        let during = Instant::now();
        state.resume_accepting();
        state.resume_accepting();
        assert!(state.stop_number().is_none() && state.accept_stopped().is_none());
        assert!(state.predates_drain(during) && !state.predates_drain(Instant::now()));
        state.stop_accepting();
        state.accepting_stopped();
        assert!(state.stop_number().is_some() && state.stop_number() != first);
    }
}
