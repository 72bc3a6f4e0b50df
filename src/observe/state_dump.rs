//! SIGUSR1: logs the state of a service, for an operator who wants to know why it is slow or does not stop.
//!
//! Runs on the signal thread, and holds each lock only to copy. The parts are read one after the other, so the numbers
//! of a busy service need not add up.

use std::collections::BTreeMap;

use crate::crew::member::MemberState;
use crate::engine::ConnCensus;
use crate::lifecycle::phase::Phase;
use crate::observe::ServiceState;
use crate::observe::snapshot::Located;
use crate::text::{human_duration, pluralize};

/// Most requests that are listed, oldest first: a stuck service has old ones.
const MAX_LISTED: usize = 100;

/// The dump of a service.
pub(crate) struct StateDump {
    pub(crate) state: ServiceState,
}

impl StateDump {
    /// Logs the state, at level `info`.
    pub(crate) fn log(&self) {
        // Lines without a lock come first: a dump that blocks on a lock has then said which part is stuck.
        log::info!("state: {}, up for {}", self.phase(), human_duration(self.state.began.elapsed()));
        log::info!("state: {}", threads());
        let members: Vec<String> = self.state.members.snapshot().into_iter().map(in_words).collect();
        log::info!("state: members: {}", members.join(", "));
        self.log_connections();
        self.log_requests();
    }

    fn phase(&self) -> String {
        match self.state.lifecycle.phase() {
            phase if phase < Phase::Draining => phase.to_string(),
            phase => format!("{phase}, draining for {}", human_duration(self.state.lifecycle.draining_for())),
        }
    }

    fn log_connections(&self) {
        let engines = &self.state.engines;
        let ConnCensus { busy, idle, closing, aborted } = engines.census();
        log::info!(
            "state: {} of at most {}: {busy} busy, {idle} idle, {closing} closing, {aborted} shut down; \
             {} not accepted yet{}",
            pluralize(busy + idle + closing + aborted, "connection"),
            self.state.max_connections,
            engines.accept_queue_len(),
            if engines.is_gate_closed() { "; the gate is closed" } else { "" },
        );
    }

    fn log_requests(&self) {
        let stats = self.state.pool.stats();
        log::info!(
            "state: {} of at most {}, {} busy; {} of at most {} queued; {} in flight, {} pipelined",
            pluralize(stats.threads, "worker"),
            stats.max_threads,
            stats.busy,
            stats.queued,
            self.state.queue,
            pluralize(self.state.engines.in_flight(), "request"),
            self.state.engines.pipelined(),
        );
        let requests = self.state.requests();
        for Located { request, worker } in requests.iter().take(MAX_LISTED) {
            let at = match worker {
                Some(number) => format!("worker-{number}"),
                None => "no worker (queued, or inline)".to_owned(),
            };
            log::info!("state: {request}, {at}");
        }
        if requests.len() > MAX_LISTED {
            log::info!("state: and {} more", pluralize(requests.len() - MAX_LISTED, "request"));
        }
    }
}

/// `workers`, `migrate finished`, or `consumer (2 restarts)`.
fn in_words(member: MemberState) -> String {
    let name = member.name;
    match (member.exit, member.restarts) {
        (Some(exit), _) => format!("{name} {exit}"),
        (None, Some(restarts)) => format!("{name} ({} restarts)", restarts.count()),
        (None, None) => name,
    }
}

/// `10 threads: 1 allout waiting, 9 connection waiting`
fn threads() -> String {
    let kinds = thread_census();
    let total: usize = kinds.values().sum();
    let kinds: Vec<_> = kinds.iter().map(|((name, state), count)| format!("{count} {name} {state}")).collect();
    format!("{}: {}", pluralize(total, "thread"), kinds.join(", "))
}

/// Number of threads by name and state. Names that differ by a number only, as in a pool, count as one.
fn thread_census() -> BTreeMap<(String, &'static str), usize> {
    let mut kinds: BTreeMap<(String, &'static str), usize> = BTreeMap::new();
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    for task in tasks {
        let Ok(stat) = std::fs::read_to_string(task.path().join("stat")) else { continue }; // it has ended
        // "12 (name) S ...", where the name may contain any character, brackets included: proc(5).
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
    use std::sync::Arc;

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
        // The threads have started, but may not be asleep yet.
        let kinds = thread_census();
        let sleepers_of = kinds.iter().filter(|((name, _), _)| name == "sleeper").map(|(_, count)| count);
        assert_eq!(sleepers_of.sum::<usize>(), 3, "{kinds:?}");
        drop(go);
        for sleeper in sleepers {
            sleeper.join().unwrap();
        }
    }
}
