//! Hooks: what a service does at two moments of its drain, for no longer than its share of the grace.
//!
//! They run one after the other on a thread of their own, so that one that hangs costs its share and no more, and so
//! that a second signal is heard meanwhile. One that panics is a failure of the service; the others still run.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;
use std::time::Instant;

use crossbeam_channel::{TryRecvError, bounded};

use crate::crew::{Crew, Shutdown, thread_name};
use crate::text::panic_message;

pub(crate) type Hook = Box<dyn FnOnce() + Send>;

/// Runs `hooks`, and waits for them, but no longer than `until`. `name` is what the log calls them.
pub(crate) fn run(name: &str, hooks: Vec<Hook>, until: Instant, crew: &mut Crew, shutdown: &mut Shutdown) {
    if hooks.is_empty() || shutdown.forced_by.is_some() {
        return;
    }
    let (sender, ended) = bounded(1);
    let stopper = crew.stopper();
    let thread = thread::Builder::new().name(thread_name(name)).spawn(move || {
        // The policy for panics of `crew`: nothing that a hook held is used again.
        let panics: Vec<String> = hooks
            .into_iter()
            .filter_map(|hook| catch_unwind(AssertUnwindSafe(hook)).err())
            .map(|payload| panic_message(payload.as_ref()))
            .collect();
        let _ = sender.send(panics); // nobody waits any more if it took too long
        stopper.recheck();
    });
    let thread = match thread {
        Ok(thread) => thread,
        Err(error) => {
            log::error!("{name} could not be run, for want of a thread: {error}");
            shutdown.failures.push(format!("{name} could not be run: {error}"));
            return;
        }
    };
    loop {
        match ended.try_recv() {
            Ok(panics) => {
                for message in panics {
                    log::error!("{name} panicked: {message}");
                    shutdown.failures.push(format!("{name} panicked: {message}"));
                }
                let _ = thread.join(); // it is done; its panics were caught
                return;
            }
            Err(TryRecvError::Disconnected) => return, // not reachable: the thread sends, whatever happens
            Err(TryRecvError::Empty) if shutdown.forced_by.is_some() => return,
            Err(TryRecvError::Empty) if Instant::now() >= until => {
                log::warn!("abandoned: {name}");
                shutdown.abandoned.push(name.to_owned());
                return;
            }
            Err(TryRecvError::Empty) => crew.wait_event(until, shutdown),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crew::outcome::Cause;
    use std::time::Duration;

    const SAFETY: Duration = Duration::from_secs(20);

    fn run_all(hooks: Vec<Hook>, limit: Duration) -> Shutdown {
        let mut crew = Crew::new();
        let mut shutdown = Shutdown::new(Cause::Requested("a test".to_owned()), SAFETY);
        run("the hooks", hooks, Instant::now() + limit, &mut crew, &mut shutdown);
        shutdown
    }

    #[test]
    fn hooks_run_in_order_and_one_that_panics_keeps_none_from_running() {
        let (sender, receiver) = bounded(2);
        let other = sender.clone();
        let shutdown = run_all(
            vec![
                Box::new(move || sender.send(1).unwrap()),
                Box::new(|| std::panic::resume_unwind(Box::new("no milk"))),
                Box::new(move || other.send(2).unwrap()),
            ],
            SAFETY,
        );
        assert_eq!(receiver.iter().collect::<Vec<_>>(), [1, 2]);
        assert_eq!(shutdown.failures, ["the hooks panicked: no milk"]);
        assert!(shutdown.abandoned.is_empty());
    }

    #[test]
    fn a_hook_that_hangs_is_abandoned_when_its_share_is_over() {
        let (_kept, receiver) = bounded::<()>(0);
        let hangs: Hook = Box::new(move || {
            let _ = receiver.recv();
        });
        let shutdown = run_all(vec![hangs], Duration::from_millis(10));
        assert_eq!(shutdown.abandoned, ["the hooks"]);
    }
}
