//! Locks without poisoning, and log lines that are written once, or not too often.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{LockResult, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Locks `mutex`, also after a thread panicked while it held the lock.
///
/// Code under the locks of this crate does not panic except on failed allocation, which aborts; so a poisoned lock
/// protects nothing, and refusing it would only turn one failure into many.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    ignore_poison(mutex.lock())
}

/// The guard of a lock, or the result of a wait on a `Condvar`, poisoned or not.
pub(crate) fn ignore_poison<G>(result: LockResult<G>) -> G {
    result.unwrap_or_else(PoisonError::into_inner)
}

/// Limits a warning to its first occurrence: `if once.is_first() { log::warn!(…) }`.
#[derive(Debug, Default)]
pub(crate) struct WarnOnce(AtomicBool);

impl WarnOnce {
    /// True the first time, and the first time after each [`reset`](WarnOnce::reset).
    pub(crate) fn is_first(&self) -> bool {
        !self.0.swap(true, Ordering::Relaxed)
    }

    /// Allows the warning again. True if it was written since the last time.
    pub(crate) fn reset(&self) -> bool {
        self.0.swap(false, Ordering::Relaxed)
    }
}

/// Shortest time between two lines of one kind that clients can cause: they can cause thousands a second, and a log
/// fills a disk.
const LINE_INTERVAL: Duration = Duration::from_secs(1);

/// Limits a line of the log that clients can cause to one a second, and counts those that were left out:
/// `if let Some(omitted) = limit.allow() { log::info!("…{omitted}") }`.
#[derive(Debug, Default)]
pub(crate) struct RateLimit(Mutex<(Option<Instant>, u64)>);

impl RateLimit {
    /// The lines that were left out since the last one, if this one may be written.
    pub(crate) fn allow(&self) -> Option<Omitted> {
        self.allow_at(Instant::now())
    }

    fn allow_at(&self, now: Instant) -> Option<Omitted> {
        let mut state = lock(&self.0);
        if state.0.is_some_and(|last| now.saturating_duration_since(last) < LINE_INTERVAL) {
            state.1 += 1;
            return None;
        }
        state.0 = Some(now);
        Some(Omitted(std::mem::take(&mut state.1)))
    }
}

/// How many lines were left out, as the end of the next one; nothing if there were none.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Omitted(u64);

impl fmt::Display for Omitted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 { Ok(()) } else { write!(f, " ({} more since the last such line)", self.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mutex_is_usable_after_a_panic_under_its_lock() {
        let mutex = Mutex::new(1);
        let panicked = std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let _guard = lock(&mutex);
                std::panic::resume_unwind(Box::new("a bug"));
            });
            thread.join().is_err()
        });
        assert!(panicked && mutex.is_poisoned());
        assert_eq!(*lock(&mutex), 1);
    }

    #[test]
    fn lines_beyond_one_in_an_interval_are_counted() {
        let (limit, now) = (RateLimit::default(), Instant::now());
        let said = |after: Duration| limit.allow_at(now + after).map(|omitted| omitted.to_string());
        assert_eq!(said(Duration::ZERO), Some(String::new()));
        assert_eq!((said(LINE_INTERVAL / 2), said(LINE_INTERVAL / 2)), (None, None));
        assert_eq!(said(LINE_INTERVAL).as_deref(), Some(" (2 more since the last such line)"));
    }

    #[test]
    fn a_warning_is_written_once_until_it_is_reset() {
        let once = WarnOnce::default();
        assert_eq!([once.is_first(), once.is_first()], [true, false]);
        assert_eq!([once.reset(), once.reset()], [true, false]);
        assert!(once.is_first());
    }
}
