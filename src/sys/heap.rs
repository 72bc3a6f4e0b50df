//! The heap: returns to the system what glibc keeps.
//!
//! Each connection of tiny_http has a thread, and glibc keeps what a thread freed in an arena. Without this, an idle
//! service would keep the memory that a thousand former connections used.

/// Sets the size, in bytes, of the free end of an arena above which glibc returns it to the system.
///
/// glibc's default of 128 KiB grows up to 64 MiB as large blocks are freed (mallopt(3), "dynamic mmap threshold"); after
/// one long queue no arena would be trimmed again.
#[cfg(target_env = "gnu")]
pub(crate) fn set_trim_threshold() {
    const TRIM_THRESHOLD: libc::c_int = 256 * 1024;
    // SAFETY: mallopt takes the allocator's locks and sets a number.
    unsafe { libc::mallopt(libc::M_TRIM_THRESHOLD, TRIM_THRESHOLD) };
}

/// Returns all free pages of all arenas to the system (`malloc_trim(3)`).
///
/// It takes a few milliseconds, in which other threads may wait to allocate: call it when the service is idle.
#[cfg(target_env = "gnu")]
pub(crate) fn trim() {
    // SAFETY: malloc_trim takes the allocator's locks and touches no memory that is in use.
    unsafe { libc::malloc_trim(0) };
}

/// Other C libraries have no such calls.
#[cfg(not(target_env = "gnu"))]
mod others {
    pub(crate) fn set_trim_threshold() {}
    pub(crate) fn trim() {}
}
#[cfg(not(target_env = "gnu"))]
pub(crate) use others::{set_trim_threshold, trim};
