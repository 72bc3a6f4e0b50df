//! Memory that a crowd has left behind.

//!
//! Each connection has a thread, and glibc keeps what its threads have freed in pools of its own. After a thousand
//! connections, a service that is idle would hold what it held with all of them.

/// Has the allocator give back the end of a pool as soon as so much of it is free.
///
/// glibc begins with half as much, and goes up to 64 MiB with every large block that is freed (mallopt(3), "dynamic mmap
/// threshold"): one long queue, once, and no pool would ever shrink again.
#[cfg(target_env = "gnu")]
#[allow(unsafe_code, reason = "no crate wraps mallopt")]
pub(crate) fn set_trim_threshold() {
    const FREE_AT_THE_END: libc::c_int = 256 * 1024;
    // SAFETY: it takes the locks of the allocator, and sets a number there.
    unsafe { libc::mallopt(libc::M_TRIM_THRESHOLD, FREE_AT_THE_END) };
}

/// Gives the system back what is free in the middle of pools, too.
///
/// `malloc_trim(3)` takes a few milliseconds, in which others may have to wait to allocate: for when nobody is there.
#[cfg(target_env = "gnu")]
#[allow(unsafe_code, reason = "no crate wraps malloc_trim")]
pub(crate) fn trim() {
    // SAFETY: it takes the locks of the allocator, and touches nothing that is in use.
    unsafe { libc::malloc_trim(0) };
}

/// Other allocators have no such calls, and need none.
#[cfg(not(target_env = "gnu"))]
mod others {
    pub(crate) fn set_trim_threshold() {}
    pub(crate) fn trim() {}
}
#[cfg(not(target_env = "gnu"))]
pub(crate) use others::{set_trim_threshold, trim};
