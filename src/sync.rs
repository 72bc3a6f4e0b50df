//! Locks without poisoning, and log lines that are written once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{LockResult, Mutex, MutexGuard, PoisonError};

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
    fn a_warning_is_written_once_until_it_is_reset() {
        let once = WarnOnce::default();
        assert_eq!([once.is_first(), once.is_first()], [true, false]);
        assert_eq!([once.reset(), once.reset()], [true, false]);
        assert!(once.is_first());
    }
}
