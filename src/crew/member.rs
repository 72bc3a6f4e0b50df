//! Members: how one ends, and the table of all.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Instant;

use crate::sync::lock;
use crate::text::panic_message;

/// Longest thread name that Linux keeps, in bytes: `TASK_COMM_LEN` (16) less the final NUL, prctl(2), `PR_SET_NAME`.
const MAX_THREAD_NAME: usize = 15;

/// How a member ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Exit {
    /// It returned, without an error.
    Finished,
    /// It returned an error.
    Failed(String),
    /// It panicked, with this message.
    Panicked(String),
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Exit::Finished => f.write_str("finished"),
            Exit::Failed(why) => write!(f, "failed: {why}"),
            Exit::Panicked(message) => write!(f, "panicked: {message}"),
        }
    }
}

impl From<()> for Exit {
    fn from((): ()) -> Exit {
        Exit::Finished
    }
}

/// The type `!`, which stable Rust has no name for outside of a function's signature.
type Never = <fn() -> ! as Returns>::Value;

/// Names the type that a function returns.
pub trait Returns {
    /// The returned type.
    type Value;
}

impl<R> Returns for fn() -> R {
    type Value = R;
}

/// A closure that never returns, `|_| loop { … }`, is of type `!` since the edition of 2024.
impl From<Never> for Exit {
    fn from(never: Never) -> Exit {
        match never {}
    }
}

/// `?` works in members whose errors implement `Display`.
impl<E: fmt::Display> From<Result<(), E>> for Exit {
    fn from(result: Result<(), E>) -> Exit {
        result.map_or_else(|error| Exit::Failed(error.to_string()), Exit::from)
    }
}

/// Identifies a member within its crew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SlotId(pub(super) usize);

/// Makes a member return; called once, by the thread that runs the crew.
pub(super) type Interrupt = Box<dyn FnOnce() + Send>;

/// The state of a member.
#[derive(Clone, Debug)]
pub(crate) struct MemberState {
    pub(crate) name: String,
    pub(crate) since: Instant,
    /// `None` while the member runs.
    pub(crate) exit: Option<Exit>,
    /// The member may finish while the crew goes on.
    pub(super) may_finish: bool,
    /// Restarts of this member; `None` if it is not restarted when it ends.
    pub(crate) restarts: Option<Arc<Restarts>>,
}

/// Count of a member's restarts. Its own thread writes it.
#[derive(Debug, Default)]
pub(crate) struct Restarts {
    count: AtomicU64,
    pausing: AtomicBool,
}

impl Restarts {
    /// The member has ended, and waits for its next start.
    pub(crate) fn pause(&self) {
        self.pausing.store(true, Ordering::Relaxed);
    }

    /// The member starts again.
    pub(crate) fn restart(&self) {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.pausing.store(false, Ordering::Relaxed);
    }

    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Whether the member waits for its next start.
    pub(crate) fn is_pausing(&self) -> bool {
        self.pausing.load(Ordering::Relaxed)
    }
}

/// A member's place in the table.
pub(super) struct Slot {
    pub(super) state: MemberState,
    pub(super) thread: Option<JoinHandle<()>>,
    pub(super) interrupt: Option<Interrupt>,
}

/// All members, in the order in which they were added. Clones share the table; the crew alone changes it.
#[derive(Clone, Default)]
pub(crate) struct MemberTable(Arc<Mutex<Vec<Slot>>>);

impl fmt::Debug for MemberTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.snapshot()).finish()
    }
}

impl MemberTable {
    /// The state of every member at this moment.
    pub(crate) fn snapshot(&self) -> Vec<MemberState> {
        self.lock().iter().map(|slot| slot.state.clone()).collect()
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Vec<Slot>> {
        lock(&self.0)
    }

    /// Adds a member that starts now.
    pub(super) fn push(&self, name: &str, thread: Option<JoinHandle<()>>, interrupt: Option<Interrupt>) {
        let state =
            MemberState { name: name.to_owned(), since: Instant::now(), exit: None, may_finish: false, restarts: None };
        self.lock().push(Slot { state, thread, interrupt });
    }

    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }

    pub(super) fn name(&self, slot: SlotId) -> String {
        self.lock().get(slot.0).map_or_else(String::new, |slot| slot.state.name.clone())
    }

    /// True if the member has finished and was allowed to.
    pub(super) fn has_finished_well(&self, slot: SlotId) -> bool {
        let slots = self.lock();
        slots.get(slot.0).is_some_and(|slot| slot.state.may_finish && slot.state.exit == Some(Exit::Finished))
    }

    pub(super) fn is_running(&self, slot: SlotId) -> bool {
        self.lock().get(slot.0).is_some_and(|slot| slot.state.exit.is_none())
    }
}

/// Runs a member's body to its end.
pub(crate) fn catch_exit<R: Into<Exit>>(body: impl FnOnce() -> R) -> Exit {
    // The policy for panics of every thread in this crate: caught at the root of the thread and reported. Nothing that
    // the panicking code held is used again, so no broken state is observed: hence `AssertUnwindSafe`.
    match catch_unwind(AssertUnwindSafe(|| body().into())) {
        Ok(exit) => exit,
        Err(payload) => Exit::Panicked(panic_message(payload)),
    }
}

/// At most [`MAX_THREAD_NAME`] bytes of `name`, cut between characters, without NUL (which `thread::Builder` rejects).
pub(crate) fn thread_name(name: &str) -> String {
    let mut short = String::new();
    for c in name.chars().filter(|c| *c != '\0') {
        if short.len() + c.len_utf8() > MAX_THREAD_NAME {
            break;
        }
        short.push(c);
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cut_to_what_linux_keeps() {
        assert_eq!(thread_name("a member with a long name"), "a member with a");
        assert_eq!(thread_name("äöüäöüäöü\0"), "äöüäöüä");
    }
}
