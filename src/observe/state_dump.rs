//! The state of a service, for the log: what an operator looks at before killing it.
//!
//! It runs on the signal thread, and takes each lock for a moment only. What it says it has seen one after the other, so
//! that numbers may differ by what happened in between.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use crate::admin::ServiceState;
use crate::crew::member::MemberTable;
use crate::engine::gate::AcceptGate;
use crate::engine::tiny_http::connections::ConnState;
use crate::lifecycle::phase::Phase;
use crate::text::{human_duration, pluralize};

/// Requests that are named; the oldest are those that somebody looks for.
const MOST_NAMED: usize = 100;

/// What a report looks at.
pub(crate) struct StateDump {
    pub(crate) began: Instant,
    pub(crate) members: MemberTable,
    pub(crate) gate: Arc<AcceptGate>,
    pub(crate) sources: ServiceState,
}

impl StateDump {
    /// Says it all, at level `info`.
    pub(crate) fn log(&self) {
        // First what needs no lock: a report that goes on no further tells something, too.
        log::info!("state: {}, up for {}", self.phase_in_words(), human_duration(self.began.elapsed()));
        log::info!("state: threads: {}", threads());
        for member in self.members.snapshot() {
            let since = human_duration(member.since.elapsed());
            match member.exit {
                None => log::info!("state: member {}: running for {since}", member.name),
                Some(exit) => log::info!("state: member {}: {exit}", member.name),
            }
        }
        self.log_connections();
        self.log_requests();
    }

    fn phase_in_words(&self) -> String {
        match self.sources.phase.get() {
            phase if phase < Phase::Draining => phase.to_string(),
            phase => format!("{phase}, draining for {}", human_duration(self.sources.phase.draining_for())),
        }
    }

    fn log_connections(&self) {
        let (mut busy, mut idle, mut closing, mut ended) = (0, 0, 0, 0);
        for connection in self.sources.connections.all() {
            let snapshot = connection.snapshot();
            *match (snapshot.fate, snapshot.busy) {
                (ConnState::Aborted { .. }, _) => &mut ended,
                (_, true) => &mut busy,
                (ConnState::Closing { .. } | ConnState::ReadShut { .. }, _) => &mut closing,
                (ConnState::Open, _) => &mut idle,
            } += 1;
        }
        log::info!(
            "state: {} of at most {}: {busy} busy, {idle} idle, {closing} closing, {ended} shut down; \
             {} not accepted yet{}",
            pluralize(busy + idle + closing + ended, "connection"),
            self.sources.max_connections,
            self.gate.accept_queue_len(),
            if self.gate.is_closed() { "; the gate is closed" } else { "" },
        );
    }

    fn log_requests(&self) {
        let facts = self.sources.pool.stats();
        log::info!(
            "state: {} of at most {}, {} busy; {} of at most {} queued; {} in flight, {} behind others",
            pluralize(facts.threads, "worker"),
            facts.max_threads,
            facts.busy,
            facts.queued,
            self.sources.queue,
            pluralize(self.sources.connections.in_flight(), "request"),
            self.sources.connections.waiting(),
        );
        let running = self.sources.pool.running_jobs();
        let mut busy: Vec<_> = self
            .sources
            .connections
            .all()
            .into_iter()
            .map(|connection| (connection.snapshot(), connection.peer))
            .collect();
        busy.retain(|(snapshot, _)| snapshot.busy);
        busy.sort_by_key(|(snapshot, _)| snapshot.since);
        for (snapshot, peer) in busy.iter().take(MOST_NAMED) {
            // A worker stays with its connection, whose next request may be another than the one it was given.
            let of_peer = format!(" from {peer}");
            let at = match running.iter().find(|job| job.id == *peer) {
                Some(job) => format!("at worker-{}", job.worker),
                None => "at no worker (queued, or at the listener)".to_owned(),
            };
            let behind = if snapshot.waiting > 0 { format!(", {} behind it", snapshot.waiting) } else { String::new() };
            log::info!(
                "state: {}{of_peer} for {} {at}{behind}",
                snapshot.line,
                human_duration(snapshot.since.elapsed())
            );
        }
        if busy.len() > MOST_NAMED {
            log::info!("state: and {} more", pluralize(busy.len() - MOST_NAMED, "request"));
        }
    }
}

fn threads() -> String {
    let kinds = kinds_of_threads();
    let total: usize = kinds.values().sum();
    let kinds: Vec<_> = kinds.iter().map(|((name, state), count)| format!("{count} {name} {state}")).collect();
    format!("{total}: {}", kinds.join(", "))
}

/// The threads by name and by what the kernel says that they do; those of a pool, which differ by a number, together.
fn kinds_of_threads() -> BTreeMap<(String, &'static str), usize> {
    let mut kinds: BTreeMap<(String, &'static str), usize> = BTreeMap::new();
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    for task in tasks {
        // One that has ended in between is not there any more.
        let Ok(stat) = std::fs::read_to_string(task.path().join("stat")) else { continue };
        // "12 (name) S ...", where the name may hold anything, brackets included: proc(5).
        let (Some(open), Some(close)) = (stat.find('('), stat.rfind(')')) else { continue };
        let name = stat.get(open + 1..close).unwrap_or_default();
        let name = name.trim_end_matches(|c: char| c.is_ascii_digit()).trim_end_matches('-');
        let state = match stat.get(close + 2..close + 3) {
            Some("R") => "running",
            Some("S") => "waiting",
            Some("D") => "waiting for a device",
            Some("T" | "t") => "stopped",
            _ => "ending",
        };
        *kinds.entry((name.to_owned(), state)).or_default() += 1;
    }
    kinds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_counted_by_name_and_state() {
        let (begun, begins) = std::sync::mpsc::channel();
        let (go, gone) = std::sync::mpsc::channel::<()>();
        let gone = Arc::new(std::sync::Mutex::new(gone));
        let sleepers: Vec<_> = (1..=3)
            .map(|number| {
                let (begun, gone) = (begun.clone(), Arc::clone(&gone));
                let sleep = move || {
                    begun.send(()).unwrap();
                    let _ = gone.lock().unwrap().recv();
                };
                std::thread::Builder::new().name(format!("sleeper-{number}")).spawn(sleep).unwrap()
            })
            .collect();
        for _ in 0..3 {
            begins.recv().unwrap();
        }
        // They have begun, and may not sleep yet.
        let kinds = kinds_of_threads();
        let sleepers_of = kinds.iter().filter(|((name, _), _)| name == "sleeper").map(|(_, count)| count);
        assert_eq!(sleepers_of.sum::<usize>(), 3, "{kinds:?}");
        drop(go);
        for sleeper in sleepers {
            sleeper.join().unwrap();
        }
    }
}
