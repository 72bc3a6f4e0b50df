//! Signal masks and dispositions: what must hold from one image of the process to the next.
//!
//! `execve` resets caught signals to their default, which for most is to kill; ignored ones stay ignored, the mask of the
//! calling thread stays, and signals that are pending stay pending (execve(2), signal(7)).

use std::io;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use libc::{c_int, c_void, pid_t, siginfo_t, sigset_t, ucontext_t};

/// Makes a thread block the signals that are held. By default it is ignored, and nothing here uses it otherwise.
const BLOCK_HERE: c_int = libc::SIGURG;

/// Longest wait for other threads to block the signals that are held: a few microseconds each, unless the machine is
/// busy.
const MAX_HOLD_WAIT: Duration = Duration::from_millis(200);

/// Pause between two checks whether they have.
const HOLD_TICK: Duration = Duration::from_micros(50);

/// Highest signal number, signal(7): each is a bit of [`HELD`].
const MAX_SIGNAL: c_int = 64;

/// The signals that are held, as bits: signal n is bit n - 1.
static HELD: AtomicU64 = AtomicU64::new(0);

/// Threads that block them by now.
static BLOCKED: AtomicUsize = AtomicUsize::new(0);

type Handler = extern "C" fn(c_int, *mut siginfo_t, *mut c_void);

/// Unblocks `signals` in the calling thread, and so in the threads that it creates.
/// Errors: one of them is no signal.
pub(crate) fn unblock(signals: &[c_int]) -> io::Result<()> {
    change_mask(libc::SIG_UNBLOCK, signals)
}

/// Keeps `signals` pending from here on, in the whole process, so that the next image receives them. Call it once, on
/// the thread that will call `exec`. Every handler that was set before is replaced.
///
/// This thread blocks them. No call blocks signals in another thread, so each of those is interrupted by a signal whose
/// handler does ([`block_here`]); until then it passes on the held signals that it catches ([`pass_on`]). A thread that
/// cannot be interrupted, and catches a signal in the moment of the `exec`, may still lose it.
/// Errors: one of them is no signal, or cannot be caught.
pub(crate) fn hold(signals: &[c_int]) -> io::Result<()> {
    change_mask(libc::SIG_BLOCK, signals)?;
    HELD.store(signals.iter().fold(0, |bits, signal| bits | 1 << (signal - 1)), Ordering::SeqCst);
    for signal in signals {
        catch(*signal, pass_on)?;
    }
    catch(BLOCK_HERE, block_here)?;
    let deadline = Instant::now() + MAX_HOLD_WAIT;
    let mut signalled: Vec<pid_t> = Vec::new();
    loop {
        let before = signalled.len();
        for thread in other_threads() {
            if !signalled.contains(&thread) && signal_thread(thread) {
                signalled.push(thread);
            }
        }
        // A thread that ended meanwhile does not answer: it is not in the list any more.
        let threads = other_threads();
        let alive = signalled.iter().filter(|thread| threads.contains(thread)).count();
        let settled = signalled.len() == before && BLOCKED.load(Ordering::SeqCst) >= alive;
        if settled || Instant::now() >= deadline {
            return Ok(());
        }
        std::thread::sleep(HOLD_TICK);
    }
}

/// The ids of all threads but this one; none if `/proc` is not mounted.
fn other_threads() -> Vec<pid_t> {
    let own = rustix::thread::gettid().as_raw_nonzero().get();
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    tasks.filter_map(|task| task.file_name().to_str()?.parse().ok()).filter(|thread| *thread != own).collect()
}

/// Interrupts one thread. False if it has ended.
fn signal_thread(thread: pid_t) -> bool {
    // SAFETY: a system call with three numbers. The process id is our own, so a thread id that was reused is never in
    // another process; the signal's handler is installed.
    unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, BLOCK_HERE) == 0 }
}

/// Blocks the held signals in the thread that runs it.
extern "C" fn block_here(_: c_int, _: *mut siginfo_t, context: *mut c_void) {
    block_in(context);
    BLOCKED.fetch_add(1, Ordering::SeqCst);
}

/// Blocks the held signals in the thread that has caught one, and sends that one to the process again: another thread
/// gets it, or it stays pending once all of them block it.
extern "C" fn pass_on(signal: c_int, _: *mut siginfo_t, context: *mut c_void) {
    block_in(context);
    // SAFETY: both calls are async-signal-safe (signal-safety(7)) and do not fail here, so that errno stays.
    unsafe {
        libc::kill(libc::getpid(), signal);
    }
}

/// Adds the held signals to the mask that the thread has when the handler returns.
fn block_in(context: *mut c_void) {
    let held = HELD.load(Ordering::SeqCst);
    for signal in (1..=MAX_SIGNAL).filter(|signal| held & (1 << (signal - 1)) != 0) {
        // SAFETY: with SA_SIGINFO the kernel passes a `ucontext_t` that is the handler's until it returns; the mask in it
        // becomes the thread's then (sigreturn(2)). `sigaddset` is async-signal-safe.
        unsafe {
            libc::sigaddset(&raw mut (*context.cast::<ucontext_t>()).uc_sigmask, signal);
        }
    }
}

/// Sets a handler. While it runs, all signals are blocked, so that no handler interrupts another.
fn catch(signal: c_int, handler: Handler) -> io::Result<()> {
    // SAFETY: all bits zero is a valid `sigaction` (an integer, a set, flags). The handler has the signature that
    // SA_SIGINFO asks for, and calls async-signal-safe functions alone.
    let result = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
        libc::sigfillset(&raw mut action.sa_mask);
        libc::sigaction(signal, &raw const action, std::ptr::null_mut())
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Gives SIGCHLD its default disposition if it is ignored: then children cannot be waited for (wait(2), NOTES).
pub(crate) fn unignore_sigchld() {
    // SAFETY: reads the disposition of one signal and sets it to a constant. Neither fails for a signal that exists.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(libc::SIGCHLD, std::ptr::null(), &raw mut action);
        if action.sa_sigaction == libc::SIG_IGN {
            libc::signal(libc::SIGCHLD, libc::SIG_DFL);
        }
    }
}

fn change_mask(how: c_int, signals: &[c_int]) -> io::Result<()> {
    // SAFETY: all bits zero is a valid `sigset_t`, and `sigemptyset` makes it an empty one whatever libc it is. The set
    // lives until `pthread_sigmask` returns, which changes nothing but the mask of this thread.
    unsafe {
        let mut set: sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in signals {
            if libc::sigaddset(&raw mut set, *signal) != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        match libc::pthread_sigmask(how, &raw const set, std::ptr::null_mut()) {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }
}
