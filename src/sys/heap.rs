//! The heap: returns free pages to the system.
//!
//! glibc keeps memory that a thread has freed in an arena. With a thread for each connection, an idle service would keep
//! the memory of a thousand former connections.

/// Returns all free pages of all arenas to the system (`malloc_trim(3)`).
///
/// It takes a few milliseconds, in which other threads may wait to allocate: call it when the service is idle.
#[cfg(target_env = "gnu")]
pub(crate) fn trim() {
    // SAFETY: malloc_trim takes the allocator's locks and touches no memory that is in use.
    unsafe { libc::malloc_trim(0) };
}

/// Does nothing: C libraries other than glibc have no such call.
#[cfg(not(target_env = "gnu"))]
pub(crate) fn trim() {}
