//! Hooks: the application's code at two points of a drain ([`before_drain`](crate::Service::before_drain) and
//! [`after_drain`](crate::Service::after_drain)), with a deadline each.
//!
//! The hooks of one point run one after the other on a thread of their own, so that a hook that hangs costs no more
//! than the time until the deadline, and a second signal is handled meanwhile. A hook that panics is a failure of the
//! service; the others still run.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;
use std::time::Instant;

use crossbeam_channel::{TryRecvError, bounded};

use crate::crew::Crew;
use crate::crew::member::thread_name;
use crate::crew::shutdown::Shutdown;
use crate::text::panic_message;

pub(crate) type Hook = Box<dyn FnOnce() + Send>;

/// Runs `hooks`, and waits for them until `until` at most. `name` is what the log calls them.
pub(crate) fn run(name: &str, hooks: Vec<Hook>, until: Instant, crew: &mut Crew, shutdown: &mut Shutdown) {
    if hooks.is_empty() || shutdown.forced_by.is_some() {
        return;
    }
    let (sender, ended) = bounded(1);
    let stopper = crew.stopper();
    let thread = thread::Builder::new().name(thread_name(name)).spawn(move || {
        // The policy for panics of `crew::member`: nothing that a hook held is used again.
        let panics: Vec<String> = hooks
            .into_iter()
            .filter_map(|hook| catch_unwind(AssertUnwindSafe(hook)).err())
            .map(panic_message)
            .collect();
        let _ = sender.send(panics); // an error means that the deadline has passed
        stopper.recheck();
    });
    let thread = match thread {
        Ok(thread) => thread,
        Err(error) => {
            log::error!("cannot spawn a thread for {name}: {error}");
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
                let _ = thread.join(); // it has ended; panics were caught
                return;
            }
            Err(TryRecvError::Disconnected) => return, // unreachable: the thread always sends
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
    fn hooks_run_in_order_and_a_panic_of_one_keeps_none_from_running() {
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
    fn a_hook_that_hangs_is_abandoned_at_the_deadline() {
        let (_kept, receiver) = bounded::<()>(0);
        let hangs: Hook = Box::new(move || {
            let _ = receiver.recv();
        });
        let shutdown = run_all(vec![hangs], Duration::from_millis(10));
        assert_eq!(shutdown.abandoned, ["the hooks"]);
    }
}
