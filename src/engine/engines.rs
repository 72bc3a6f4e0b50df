//! The engines of a service, one for each listening socket, treated as one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{ConnCensus, ConnStats, Ending, Engine, InFlight};

/// The engines of a service: calls go to each of them, numbers are sums. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Engines(Arc<[Arc<dyn Engine>]>);

impl Engines {
    pub(crate) fn new(engines: Vec<Arc<dyn Engine>>) -> Engines {
        Engines(engines.into())
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<dyn Engine>> {
        self.0.iter()
    }

    pub(crate) fn announce_close(&self) {
        self.iter().for_each(|engine| engine.stop_state().announce_close());
    }

    /// `ending` gives the [`Ending`] of an engine by its number.
    pub(crate) fn stop_accepting(&self, ending: impl Fn(usize) -> Ending) {
        for (number, engine) in self.iter().enumerate() {
            engine.stop_accepting(ending(number));
        }
    }

    /// Seals the gates of the engines that `which` selects by their number.
    pub(crate) fn seal(&self, which: impl Fn(usize) -> bool) {
        self.iter().enumerate().filter(|(number, _)| which(*number)).for_each(|(_, engine)| engine.seal());
    }

    /// Whether new connections still arrive after [`Ending::Filter`], because their packets pass the filter or it could
    /// not be set.
    pub(crate) fn is_gate_passed(&self) -> bool {
        self.iter().any(|engine| engine.gate().is_passed())
    }

    pub(crate) fn resume_accepting(&self) {
        self.iter().for_each(|engine| engine.resume_accepting());
    }

    pub(crate) fn is_quiescent(&self) -> bool {
        self.iter().all(|engine| engine.is_quiescent())
    }

    pub(crate) fn has_requests_older_than_drain(&self) -> bool {
        self.iter().any(|engine| engine.has_requests_older_than_drain())
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.iter().map(|engine| engine.in_flight()).sum()
    }

    pub(crate) fn pipelined(&self) -> usize {
        self.iter().map(|engine| engine.pipelined()).sum()
    }

    pub(crate) fn connections(&self) -> usize {
        self.iter().map(|engine| engine.connections()).sum()
    }

    pub(crate) fn accept_queue_len(&self) -> u32 {
        self.iter().map(|engine| engine.gate().accept_queue_len()).sum()
    }

    pub(crate) fn is_gate_closed(&self) -> bool {
        self.iter().any(|engine| engine.gate().is_closed())
    }

    pub(crate) fn census(&self) -> ConnCensus {
        self.iter().map(|engine| engine.census()).fold(ConnCensus::default(), |sum, census| ConnCensus {
            busy: sum.busy + census.busy,
            idle: sum.idle + census.idle,
            closing: sum.closing + census.closing,
            aborted: sum.aborted + census.aborted,
        })
    }

    /// Every request in flight, oldest first.
    pub(crate) fn requests_in_flight(&self) -> Vec<InFlight> {
        let mut all: Vec<InFlight> = self.iter().flat_map(|engine| engine.requests_in_flight()).collect();
        all.sort_by_key(|request| request.since);
        all
    }

    /// The sum of a counter.
    pub(crate) fn total(&self, counter: impl Fn(&ConnStats) -> &AtomicU64) -> u64 {
        self.iter().map(|engine| counter(engine.stats()).load(Ordering::Relaxed)).sum()
    }
}
