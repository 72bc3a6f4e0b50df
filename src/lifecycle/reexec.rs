//! Reexec: after a drain, the same process goes on with the binary that is on disk now. Same pid, same listening socket,
//! with all that the kernel has queued on it.
//!
//! # Why a bad binary is no reason to be down
//!
//! Before anything is stopped, the new binary is *rehearsed*: started as a child, with the same arguments, told by a
//! variable to do everything but serve. Only if it gets as far as [`Service::run`](crate::Service::run) and says so, by
//! an exit code that nothing else has, does the drain begin. A binary that is missing, broken, of another kind, or at
//! odds with its arguments costs one line in the log, and the service goes on. Should `exec` itself fail after that, the
//! image that is running is executed once more.

use std::ffi::OsString;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::io::{FdFlags, fcntl_setfd};

use crate::crew::outcome::EXIT_PREFLIGHT_OK;

/// Tells a child that it is only rehearsed.
const PREFLIGHT: &str = "ALLOUT_PREFLIGHT";
/// Tells the next image where the listening socket is: its number, the pid that it is meant for, and its origin.
const SOCKET: &str = "ALLOUT_SOCKET";
const FROM_OUTSIDE: &str = "from-outside";
/// How long a rehearsal may take; a start takes milliseconds.
const MAX_PREFLIGHT: Duration = Duration::from_secs(10);
/// A worn engine is renewed at most this often, so that nobody can keep the service renewing.
pub(crate) const MIN_LEAK_REEXEC_INTERVAL: Duration = Duration::from_mins(1);

/// Whether this image, which began then, may be renewed because it is worn. The first of a process always may.
pub(crate) fn may_reexec_for_leak(began: Instant) -> bool {
    inherited().is_none() || began.elapsed() >= MIN_LEAK_REEXEC_INTERVAL
}

/// Variables that are for this process, and for nobody whom it starts.
const PRIVATE_ENV: [&str; 6] =
    ["NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"];

/// Whether this process is only a rehearsal.
pub(crate) fn is_preflight() -> bool {
    std::env::var_os(PREFLIGHT).is_some()
}

/// The listening socket that the image before this one has left, if there was one, and whether it was passed to that one
/// from outside.
pub(crate) fn inherited() -> Option<(RawFd, bool)> {
    let value = std::env::var(SOCKET).ok()?;
    let mut parts = value.split(':');
    let number = parts.next()?.parse().ok()?;
    let pid: u32 = parts.next()?.parse().ok()?;
    (pid == std::process::id()).then_some((number, parts.next() == Some(FROM_OUTSIDE)))
}

/// The binary that is on disk where this one was.
fn binary() -> io::Result<PathBuf> {
    let path = std::env::current_exe()?;
    // So the kernel names what was replaced since (proc_pid_exe(5)).
    match path.to_str().and_then(|path| path.strip_suffix(" (deleted)")) {
        Some(replaced) => Ok(PathBuf::from(replaced)),
        None => Ok(path),
    }
}

fn arguments() -> impl Iterator<Item = OsString> {
    std::env::args_os().skip(1)
}

/// A rehearsal that is under way. Dropped, it is called off.
pub(crate) struct Preflight {
    child: Child,
    until: Instant,
}

impl Preflight {
    /// # Errors
    ///
    /// There is no binary, or it cannot be started.
    pub(crate) fn start() -> io::Result<Preflight> {
        let mut command = Command::new(binary()?);
        command.args(arguments()).env(PREFLIGHT, "1").env_remove(SOCKET).stdin(Stdio::null()).stdout(Stdio::null());
        for name in PRIVATE_ENV {
            command.env_remove(name);
        }
        Ok(Preflight { child: command.spawn()?, until: Instant::now() + MAX_PREFLIGHT })
    }

    /// How it went, once it is over.
    pub(crate) fn result(&mut self) -> Option<Result<(), String>> {
        match self.child.try_wait() {
            Ok(Some(status)) if status.code() == Some(i32::from(EXIT_PREFLIGHT_OK)) => Some(Ok(())),
            Ok(Some(status)) => Some(Err(format!("the new binary failed its preflight: {status}"))),
            Ok(None) if Instant::now() >= self.until => {
                Some(Err(format!("the new binary failed its preflight: not done within {MAX_PREFLIGHT:?}")))
            }
            Ok(None) => None,
            Err(error) => Some(Err(format!("the new binary cannot be watched: {error}"))),
        }
    }
}

impl Drop for Preflight {
    fn drop(&mut self) {
        let _ = self.child.kill(); // fails if it has ended
        let _ = self.child.wait(); // so that no zombie is left
    }
}

/// Becomes the new binary. Comes back only with an error.
pub(crate) fn exec_new_image(listener: &TcpListener, from_outside: bool) -> io::Error {
    ignore_hangup();
    if let Err(error) = fcntl_setfd(listener, FdFlags::empty()) {
        return error.into();
    }
    let origin = if from_outside { FROM_OUTSIDE } else { "" };
    let socket = format!("{}:{}:{origin}", listener.as_raw_fd(), std::process::id());
    let attempt = |binary: PathBuf| {
        let mut command = Command::new(&binary);
        command.arg0(std::env::args_os().next().unwrap_or_else(|| binary.into_os_string()));
        command.args(arguments()).env(SOCKET, &socket);
        for name in ["LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"] {
            command.env_remove(name); // the socket is at another number now
        }
        command.exec()
    };
    match binary() {
        Ok(binary) => log::error!("cannot become {}: {}", binary.display(), attempt(binary.clone())),
        Err(error) => log::error!("cannot tell which binary to become: {error}"),
    }
    attempt(PathBuf::from("/proc/self/exe"))
}

/// A handler does not survive `exec`, and until the next image has its own, another SIGHUP would end the process. Ignored,
/// it means what it would anyway: that a renewal is under way.
#[allow(unsafe_code)] // no safe call sets a disposition; signal-hook only adds handlers
fn ignore_hangup() {
    // SAFETY: sets the disposition of one signal to "ignored", which runs no code of ours. signal-hook's own handler is
    // no longer called, which is what is wanted: this image is about to end.
    unsafe {
        libc::signal(libc::SIGHUP, libc::SIG_IGN);
    }
}
