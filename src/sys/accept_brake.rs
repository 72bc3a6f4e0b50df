//! Stops an accept thread once too many descriptors are open. It works on that thread itself: a crowd of connections is
//! accepted faster than another thread could notice.
//!
//! The kernel sends SIGIO to the accepting thread whenever a connection arrives (fcntl(2), `F_SETOWN_EX`, `O_ASYNC`).
//! So the handler runs on that thread before it accepts again, and puts another listening socket, the *private
//! listener*, to which no client connects, under the descriptor number on which the thread accepts. The handler makes
//! system calls and uses atomics, no lock and no memory.

use std::io;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use signal_hook::SigId;
use signal_hook::consts::SIGIO;

use super::fd::{cookie, replace_fd};
use super::sigio::set_sigio;

/// Longest time for a new accept thread to reach its first `accept`.
const STARTS_WITHIN: Duration = Duration::from_millis(50);

/// Most later searches for the thread: where the kernel does not tell what a thread waits for, it is never found.
const MAX_MISSES: u32 = 100;

/// The brake of one accepting thread.
#[derive(Debug)]
pub(crate) struct AcceptBrake {
    listener: Arc<TcpListener>,
    /// The socket from which the thread accepts while the brake is on.
    private: TcpListener,
    /// Cookies of the listener and of the private listener.
    cookies: [u64; 2],
    /// `/proc/self/fd`: its size is the number of open descriptors (since Linux 6.2, `proc_fd_getattr` in
    /// `fs/proc/fd.c`).
    fd_dir: Option<OwnedFd>,
    /// An eventfd, written to when the brake goes on, and when a connection arrives while it is armed.
    wake: Arc<OwnedFd>,
    /// The number on which the thread accepts, or -1.
    accept_fd: AtomicI32,
    /// The thread, or 0 while it is not known.
    thread: AtomicI32,
    /// Searches for the thread that failed.
    missed: AtomicU32,
    /// Open descriptors at which the brake goes on.
    max_fds: AtomicU64,
    on: AtomicBool,
    armed: AtomicBool,
}

/// The handler of SIGIO, until it is dropped.
pub(crate) struct Handler(SigId);

impl Drop for Handler {
    fn drop(&mut self) {
        signal_hook::low_level::unregister(self.0);
    }
}

impl AcceptBrake {
    /// Errors: the kernel has no `SO_COOKIE`.
    pub(crate) fn new(listener: Arc<TcpListener>, private: TcpListener, wake: Arc<OwnedFd>) -> io::Result<AcceptBrake> {
        let cookies = [cookie(listener.as_raw_fd())?, cookie(private.as_raw_fd())?];
        Ok(AcceptBrake {
            listener,
            private,
            cookies,
            fd_dir: open_fd_dir(),
            wake,
            accept_fd: AtomicI32::new(-1),
            thread: AtomicI32::new(0),
            missed: AtomicU32::new(0),
            max_fds: AtomicU64::new(u64::MAX),
            on: AtomicBool::new(false),
            armed: AtomicBool::new(false),
        })
    }

    pub(crate) fn private(&self) -> &TcpListener {
        &self.private
    }

    /// Installs the handler of SIGIO.
    /// Errors: the system refuses.
    pub(crate) fn install(self: &Arc<Self>) -> io::Result<Handler> {
        let brake = Arc::clone(self);
        // SAFETY: the action makes system calls and uses atomics (signal-safety(7)); it neither allocates, locks nor
        // panics. signal-hook drops it, and the `Arc` in it, outside of the handler. `errno` is restored by signal-hook.
        let id = unsafe { signal_hook::low_level::register(SIGIO, move || brake.on_signal()) }?;
        Ok(Handler(id))
    }

    /// Sets the number on which a new thread accepts from now on, and finds the thread, if it soon waits for a
    /// connection.
    pub(crate) fn set_accept_fd(&self, number: RawFd) {
        self.thread.store(0, Ordering::Release);
        self.accept_fd.store(number, Ordering::Release);
        self.on.store(cookie(number) == Ok(self.cookies[1]), Ordering::Release);
        let began = Instant::now();
        while self.fd_dir.is_some() && !self.has_thread() && began.elapsed() < STARTS_WITHIN {
            thread::yield_now();
            self.missed.store(0, Ordering::Relaxed);
            self.find_thread();
        }
    }

    /// Finds the thread that accepts, if it is not known and the brake can work. It is seen while it waits.
    pub(crate) fn find_thread(&self) {
        let number = self.accept_fd.load(Ordering::Acquire);
        if self.fd_dir.is_none() || self.has_thread() || number < 0 || self.missed.load(Ordering::Relaxed) >= MAX_MISSES
        {
            return;
        }
        let Some(thread) = thread_that_accepts(number) else {
            self.missed.fetch_add(1, Ordering::Relaxed);
            return;
        };
        if set_sigio(&*self.listener, Some(thread)).is_ok() {
            self.thread.store(thread.as_raw_nonzero().get(), Ordering::Release);
        }
    }

    fn has_thread(&self) -> bool {
        self.thread.load(Ordering::Acquire) != 0
    }

    /// Sets the number of open descriptors at which the brake goes on.
    pub(crate) fn set_max_fds(&self, max: u64) {
        self.max_fds.store(max, Ordering::Release);
    }

    pub(crate) fn is_on(&self) -> bool {
        self.on.load(Ordering::Acquire)
    }

    /// Makes each connection to the private listener interrupt the thread, so that a call of `accept` that waits at the
    /// other one begins anew (`ERESTARTSYS`, `inet_csk_wait_for_connect`), with the socket that the number holds by
    /// then.
    ///
    /// # Errors
    ///
    /// The thread is not found: it is seen while it waits.
    pub(crate) fn call_to_private(&self) -> io::Result<()> {
        let find = || {
            let known = rustix::thread::Pid::from_raw(self.thread.load(Ordering::Acquire));
            known.or_else(|| thread_that_accepts(self.accept_fd.load(Ordering::Acquire)))
        };
        let (began, mut thread) = (Instant::now(), find());
        while thread.is_none() && began.elapsed() < STARTS_WITHIN {
            thread::yield_now();
            thread = find();
        }
        set_sigio(&self.private, Some(thread.ok_or(io::ErrorKind::NotFound)?))
    }

    /// Makes the thread accept from the private listener. A call of `accept` that already waits at the listener goes on
    /// waiting.
    /// Errors: the thread has ended.
    pub(crate) fn apply(&self) -> io::Result<()> {
        let number = self.accept_fd.load(Ordering::Acquire);
        if cookie(number) != Ok(self.cookies[1]) {
            replace_fd(number, self.cookies[0], &self.private)?;
        }
        self.on.store(true, Ordering::Release);
        Ok(())
    }

    /// Makes the thread accept from the listening socket again, once it has accepted one connection more from the
    /// private listener.
    /// Errors: the thread has ended.
    pub(crate) fn release(&self) -> io::Result<()> {
        let number = self.accept_fd.load(Ordering::Acquire);
        let result = replace_fd(number, self.cookies[1], &*self.listener);
        self.on.store(false, Ordering::Release);
        result
    }

    /// Whether the thread runs: whether its descriptor number still holds one of the two sockets. It closes the number
    /// when it ends.
    pub(crate) fn is_thread_alive(&self) -> bool {
        let number = self.accept_fd.load(Ordering::Acquire);
        number < 0 || cookie(number).is_ok_and(|held| self.cookies.contains(&held))
    }

    /// Makes the next connection that arrives wake the calling thread.
    pub(crate) fn arm(&self) {
        self.armed.store(true, Ordering::SeqCst);
        if !self.has_thread() {
            // If it is refused, a silent client that is the only one is noticed when the next one speaks.
            let _ = set_sigio(&*self.listener, Some(rustix::thread::gettid()));
        }
    }

    pub(crate) fn is_armed(&self) -> bool {
        self.armed.load(Ordering::SeqCst)
    }

    /// Whether a connection has arrived since it was armed.
    pub(crate) fn disarm(&self, was_armed: bool) -> bool {
        if was_armed && !self.has_thread() {
            let _ = set_sigio(&*self.listener, None); // as above
        }
        was_armed && !self.armed.swap(false, Ordering::SeqCst)
    }

    /// Switches the signals off.
    pub(crate) fn end(&self) {
        self.thread.store(0, Ordering::Release);
        let _ = set_sigio(&*self.listener, None); // as above
    }

    /// The handler of SIGIO.
    fn on_signal(&self) {
        if self.armed.swap(false, Ordering::SeqCst) {
            self.wake();
        }
        // Only on the thread that owns the number is it safe to replace it.
        if self.thread.load(Ordering::Acquire) != rustix::thread::gettid().as_raw_nonzero().get() || self.is_on() {
            return;
        }
        let Some(open) = self.fd_dir.as_ref().and_then(open_fds) else { return };
        if open >= self.max_fds.load(Ordering::Acquire) && self.apply().is_ok() {
            self.wake();
        }
    }

    fn wake(&self) {
        let _ = rustix::io::write(&*self.wake, &1_u64.to_ne_bytes()); // EAGAIN: it was woken before
    }
}

/// `/proc/self/fd`, if its size tells the number of open descriptors.
fn open_fd_dir() -> Option<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::open("/proc/self/fd", flags, Mode::empty()).ok()?;
    open_fds(&dir).map(|_| dir)
}

/// Open descriptors of this process.
fn open_fds(dir: &OwnedFd) -> Option<u64> {
    rustix::fs::fstat(dir).ok().and_then(|stat| u64::try_from(stat.st_size).ok()).filter(|open| *open > 0)
}

/// The thread of this process that waits in `accept4` for a connection at a descriptor (`proc_pid_syscall(5)`).
fn thread_that_accepts(number: RawFd) -> Option<rustix::thread::Pid> {
    let waits = |name: &str| {
        let call = std::fs::read_to_string(format!("/proc/self/task/{name}/syscall")).ok()?;
        let mut words = call.split(' ');
        let is_accept = words.next()?.parse() == Ok(libc::SYS_accept4);
        let first = words.next()?.strip_prefix("0x").and_then(|word| u64::from_str_radix(word, 16).ok())?;
        (is_accept && u64::try_from(number) == Ok(first)).then(|| name.parse().ok())?
    };
    let threads = std::fs::read_dir("/proc/self/task").ok()?;
    let id = threads.flatten().find_map(|entry| entry.file_name().to_str().and_then(waits))?;
    rustix::thread::Pid::from_raw(id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::net::TcpStream;
    use std::sync::mpsc;

    use rustix::event::{EventfdFlags, eventfd};

    /// Long enough for a handshake over loopback on any machine.
    const SOON: Duration = Duration::from_secs(5);

    #[test]
    fn a_thread_stops_accepting_by_itself_at_the_limit_and_goes_on_when_it_is_released() {
        let listener = Arc::new(TcpListener::bind("127.0.0.1:0").unwrap());
        let private = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let private_address = private.local_addr().unwrap();
        let wake = Arc::new(eventfd(0, EventfdFlags::NONBLOCK).unwrap());
        let brake = Arc::new(AcceptBrake::new(Arc::clone(&listener), private, Arc::clone(&wake)).unwrap());
        if brake.fd_dir.is_none() {
            return; // an older kernel
        }
        let _handler = brake.install().unwrap();
        let accepting = listener.try_clone().unwrap();
        brake.set_accept_fd(accepting.as_raw_fd());
        let (sender, accepted) = mpsc::channel();
        let thread = thread::spawn(move || {
            while let Ok((stream, _)) = accepting.accept() {
                if sender.send(stream).is_err() {
                    return;
                }
            }
        });
        while !brake.has_thread() {
            brake.find_thread();
            thread::yield_now();
        }
        brake.set_max_fds(0);
        let clients: Vec<_> = (0..9).map(|_| TcpStream::connect(address).unwrap()).collect();
        let first = accepted.recv_timeout(SOON).unwrap();
        assert!(brake.is_on() && brake.is_thread_alive());
        assert_eq!(rustix::io::read(&*wake, &mut [0; 8]), Ok(8), "it says so");

        brake.set_max_fds(u64::MAX);
        brake.release().unwrap();
        // The knock is accepted only if the thread waits by now: else it has the number's next socket already.
        let knock = TcpStream::connect(private_address).unwrap();
        let mut waiting: HashSet<_> = clients.iter().map(|client| client.local_addr().unwrap()).collect();
        waiting.remove(&first.peer_addr().unwrap());
        while !waiting.is_empty() {
            waiting.remove(&accepted.recv_timeout(SOON).expect("the others are accepted").peer_addr().unwrap());
        }
        assert!(!brake.is_on());
        drop((knock, accepted));
        brake.end();
        TcpStream::connect(address).unwrap();
        thread.join().unwrap();
    }
}
