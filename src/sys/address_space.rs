//! The limit on address space (`RLIMIT_AS`, or the size of an address), in threads.
//!
//! A thread reserves address space for its stack, and glibc reserves more for the arena that it allocates from, whether
//! either is ever used. A thread that finds none left for its first allocation ends the process, so the number of threads
//! is bounded beforehand.

use std::fs;

use rustix::process::{Resource, getrlimit};

/// Address space of a thread, in bytes: the default stack of Rust's threads, and its guard.
const STACK: u64 = 2 * MIB + 64 * 1024;
/// Address space that is left for the heap, in bytes: bodies, and pipelined requests.
const HEAP: u64 = 64 * MIB;
/// Whether addresses have 32 bits.
const IS_32_BIT: bool = usize::BITS == 32;
/// Address space of an arena, in bytes (`HEAP_MAX_SIZE`, malloc/arena.c of glibc).
const ARENA: u64 = if IS_32_BIT { MIB } else { 64 * MIB };
/// Arenas for each processor (`NARENAS_FROM_NCORES`, malloc/arena.c of glibc).
const ARENAS_PER_PROCESSOR: u64 = if IS_32_BIT { 2 } else { 8 };
/// Address space that a process has, in bytes, if an address is what bounds it: with 32 bits the kernel keeps a part for
/// itself, which on ARM and x86 is a quarter (`CONFIG_PAGE_OFFSET`).
const ADDRESSABLE: Option<u64> = if IS_32_BIT { Some(3 << 30) } else { None };
const MIB: u64 = 1024 * 1024;

/// The limits on threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AddressSpace {
    /// `RLIMIT_AS`, or what addresses of 32 bits can reach, in bytes; `u64::MAX` if there is none.
    pub(crate) limit: u64,
    /// In use, in bytes.
    used: u64,
    /// Arenas that the allocator may make beside the first.
    arenas: u64,
}

impl AddressSpace {
    pub(crate) fn of_this_process() -> AddressSpace {
        let limits = [getrlimit(Resource::As).current, ADDRESSABLE];
        let limit = limits.into_iter().flatten().min().unwrap_or(u64::MAX);
        // An emulator of 32 bits may show its own size, which is larger than that of any such process.
        let used = Some(used()).filter(|used| *used <= limit).unwrap_or(0);
        AddressSpace { limit, used, arenas: max_arenas() }
    }

    /// Threads for which the address space suffices, beside those there are.
    pub(crate) fn threads(self) -> u64 {
        let free = self.limit.saturating_sub(self.used + HEAP);
        // Each thread makes an arena until there are as many as there may be. glibc maps twice as much for a moment.
        let with_arena = free.saturating_sub(ARENA) / (STACK + ARENA);
        if with_arena < self.arenas { with_arena } else { free.saturating_sub(self.reserved_for_arenas()) / STACK }
    }

    /// The least limit, in bytes, that suffices for so many threads: with all arenas, and with a single one.
    pub(crate) fn needed_for(self, threads: u64) -> (u64, u64) {
        let one_arena = self.used + HEAP + threads * STACK;
        let more = if threads < self.arenas { ARENA + threads * ARENA } else { self.reserved_for_arenas() };
        (one_arena + more, one_arena)
    }

    fn reserved_for_arenas(self) -> u64 {
        if self.arenas == 0 { 0 } else { ARENA * (self.arenas + 1) }
    }

    /// The address space of a process that uses none of it yet, with a single arena.
    #[cfg(test)]
    pub(crate) const fn empty(limit: u64) -> AddressSpace {
        AddressSpace { limit, used: 0, arenas: 0 }
    }
}

/// Address space in use, in bytes (`VmSize`, `proc_pid_status(5)`).
fn used() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let size = status.lines().find_map(|line| line.strip_prefix("VmSize:")?.trim().strip_suffix(" kB")?.parse().ok());
    size.map_or(0, |kib: u64| kib * 1024)
}

/// Arenas that glibc may make beside the first; other C libraries have none.
fn max_arenas() -> u64 {
    if !cfg!(target_env = "gnu") {
        return 0;
    }
    let tunables = std::env::var("GLIBC_TUNABLES").unwrap_or_default();
    let tunable = tunables.split(':').find_map(|one| one.strip_prefix("glibc.malloc.arena_max=")?.parse().ok());
    let variable = std::env::var("MALLOC_ARENA_MAX").ok().and_then(|max| max.parse().ok());
    let max: u64 = tunable.or(variable).unwrap_or_else(|| processors() * ARENAS_PER_PROCESSOR);
    max.saturating_sub(1)
}

/// Processors that are online.
fn processors() -> u64 {
    // SAFETY: sysconf reads a number that the C library knows.
    let online = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) };
    u64::try_from(online).unwrap_or(1).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space(limit_mib: u64, arenas: u64) -> AddressSpace {
        AddressSpace { limit: limit_mib * MIB, used: 10 * MIB, arenas }
    }

    #[test]
    #[cfg(target_pointer_width = "64")]
    fn stacks_and_arenas_bound_the_threads() {
        assert!(AddressSpace::empty(u64::MAX).threads() > 1 << 40);
        assert_eq!(space(50, 15).threads(), 0);
        assert_eq!(space(400, 15).threads(), 3, "each makes an arena");
        assert_eq!(space(1500, 15).threads(), 194);
        assert_eq!(space(400, 0).threads(), 158, "of one arena that all share");
    }

    #[test]
    #[cfg(target_pointer_width = "32")]
    fn stacks_and_arenas_bound_the_threads() {
        assert_eq!(space(50, 3).threads(), 0);
        assert_eq!(space(400, 3).threads(), 156, "an arena is small");
        assert!((1400..1500).contains(&AddressSpace { limit: 3 << 30, ..space(0, 3) }.threads()));
    }

    #[test]
    fn what_is_needed_is_enough() {
        for arenas in [0, 1, 15] {
            for threads in [1, 14, 15, 28, 500] {
                let (needed, _) = space(0, arenas).needed_for(threads);
                let with = |limit| AddressSpace { limit, ..space(0, arenas) };
                assert!(with(needed).threads() >= threads, "{threads} threads, {arenas} arenas");
                assert!(with(needed - 3 * MIB).threads() < threads, "{threads} threads, {arenas} arenas");
            }
        }
    }
}
