//! Children of this process: orphans that the kernel gives to process 1 are waited for.

use std::sync::atomic::{AtomicI32, Ordering};

use libc::pid_t;

/// The child of the calling thread that is waited for elsewhere; 0 if there is none.
static OWN: AtomicI32 = AtomicI32::new(0);

/// Whether this process is process 1 of its namespace: it becomes the parent of orphans (`pid_namespaces(7)`).
pub(crate) fn is_process_1() -> bool {
    std::process::id() == 1
}

/// Names the child that [`reap_orphans`] leaves alone; `None` once it has been waited for.
pub(crate) fn set_own(child: Option<u32>) {
    let pid = child.and_then(|pid| pid_t::try_from(pid).ok());
    OWN.store(pid.unwrap_or(0), Ordering::Relaxed);
}

/// Waits for all orphans that have ended, and does not block. Call it on the main thread: the kernel gives it the
/// orphans (`find_new_reaper` in kernel/exit.c), while children that other threads have started are left to those
/// (`__WNOTHREAD`, wait(2)).
pub(crate) fn reap_orphans() {
    const FLAGS: libc::c_int = libc::WEXITED | libc::WNOHANG | libc::__WNOTHREAD;
    loop {
        // SAFETY: all bits zero is a valid `siginfo_t`, and the call writes to it alone. Its pid stays 0 if no child has
        // ended, and is set by waitid(2) otherwise. With WNOWAIT nothing is waited for yet.
        let pid = unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            match libc::waitid(libc::P_ALL, 0, &raw mut info, FLAGS | libc::WNOWAIT) {
                0 => info.si_pid(),
                _ => return,
            }
        };
        if pid == 0 || pid == OWN.load(Ordering::Relaxed) || !reap(pid) {
            return;
        }
    }
}

fn reap(pid: pid_t) -> bool {
    // SAFETY: a system call with numbers and a null pointer, which says that the status is not wanted.
    unsafe { libc::waitpid(pid, std::ptr::null_mut(), libc::WNOHANG) == pid }
}
