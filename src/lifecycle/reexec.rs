//! Re-exec: after a drain, the same process goes on with the binary that is on disk now: same pid, same listening
//! sockets, with all connections that the kernel has queued on them. An *image* is a program as a process runs it, from
//! one `exec` to the next.
//!
//! # Why a bad binary does not end the service
//!
//! Before anything is stopped, the new binary passes a *preflight*: it is started as a child, with the same arguments,
//! and a variable that makes it stop short of serving. Only if it gets as far as [`Service::run`](crate::Service::run),
//! which exits with a code that no other end has, does the drain begin. A binary that is missing, broken, built for
//! another machine or at odds with its arguments costs one line in the log, and the service goes on.
//!
//! The file is opened before its preflight, and that open file is what is executed, both times: a binary that is
//! replaced, renamed or removed in between changes nothing. If it is *written to* in between, the running image is
//! executed again instead, whose file cannot be written to (`ETXTBSY`), and likewise if `exec` fails.
//!
//! # Why no signal is lost, and none kills
//!
//! Before the handlers of the old image are removed, all signals that it handles are [held](crate::sys::signals::hold):
//! they stay pending over `exec`, and the next image, which starts with them blocked, unblocks them once its handlers
//! are installed. A stop that arrives after the listening socket was left to the next image is sent again while signals
//! are held, so that the next image takes over, drains and exits.

use std::ffi::{CString, OsStr, OsString};
use std::fs::Metadata;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::pipe::PipeFlags;
use rustix::process::{Signal, getpid, kill_process};

use crate::crew::outcome::{EXIT_FAILED, print_unless_logged};
use crate::sys;

/// Tells a child that it is a preflight: `1`, or the path of a Unix socket among those that it would be left, after
/// [`LEFT_UNIX`].
const PREFLIGHT: &str = "ALLOUT_PREFLIGHT";
const LEFT_UNIX: &str = "unix:";
/// Tells the next image where the listening sockets are: `3=http,7=admin:4711`, their descriptors and labels, and the pid
/// that they are meant for.
const SOCKETS: &str = "ALLOUT_SOCKET";
/// Exit code of a preflight that went well: no [`Outcome`](crate::Outcome) has it, and 2 is for unusable arguments, as in
/// clap and getopt.
const EXIT_PREFLIGHT_OK: u8 = 99;
/// Longest time that a preflight may take; a start takes milliseconds.
const MAX_PREFLIGHT: Duration = Duration::from_secs(10);
/// Minimum time between two re-execs because of a leaking engine, so that a client cannot keep the service busy with
/// them.
pub(crate) const MIN_LEAK_REEXEC_INTERVAL: Duration = Duration::from_secs(60);

/// Variables of the protocols between a service manager and this process, which are not for its children.
const PRIVATE_ENV: [&str; 6] =
    ["NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"];

/// Variables that the next image does not get: the socket has another number by then.
const LISTEN_ENV: [&str; 3] = ["LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"];

/// True if this image, which started at `started`, may re-exec because its engine leaks. The first image of a process
/// always may.
pub(crate) fn may_reexec_for_leak(started: Instant) -> bool {
    inherited().is_none() || started.elapsed() >= MIN_LEAK_REEXEC_INTERVAL
}

/// True if this process is a preflight.
pub(crate) fn is_preflight() -> bool {
    std::env::var_os(PREFLIGHT).is_some()
}

/// The path of one of the Unix sockets that the running service would leave to this process, which is a preflight.
pub(crate) fn left_unix_socket() -> Option<PathBuf> {
    let value = std::env::var_os(PREFLIGHT)?.into_vec();
    value.strip_prefix(LEFT_UNIX.as_bytes()).map(|path| PathBuf::from(OsStr::from_bytes(path)))
}

/// Ends this process, which is a preflight, with success or with the reason why the service would not start. It does
/// not return, because the code after `run` is for a service that has stopped, while the service still runs.
pub(crate) fn end_preflight(failure: Option<&str>) -> ! {
    if let Some(why) = failure {
        log::error!("{why}");
        print_unless_logged(why);
    }
    log::logger().flush();
    std::process::exit(i32::from(if failure.is_some() { EXIT_FAILED } else { EXIT_PREFLIGHT_OK }))
}

/// Descriptors and labels of the listening sockets that the previous image has left; `None` if there was none.
pub(crate) fn inherited() -> Option<Vec<(RawFd, String)>> {
    let value = std::env::var(SOCKETS).ok()?;
    let (sockets, pid) = value.split_once(':')?;
    if pid.parse() != Ok(std::process::id()) {
        return None;
    }
    let socket = |text: &str| {
        let (number, label) = text.split_once('=').unwrap_or((text, ""));
        let number = number.parse().ok().filter(|number: &RawFd| *number >= 0)?;
        Some((number, label.to_owned()))
    };
    sockets.split(',').map(socket).collect()
}

/// Gives the process the name of its binary, which ps(1) and pkill(1) know it by: the kernel names a process that was
/// executed by descriptor after the descriptor's number.
pub(crate) fn restore_process_name() {
    if inherited().is_none() {
        return;
    }
    if let Some(name) = binary_path().ok().as_deref().and_then(Path::file_name) {
        let _ = std::fs::write("/proc/self/comm", name.as_bytes()); // cut to 15 bytes by the kernel, proc_pid_comm(5)
    }
}

/// The path of the binary that this process was started from.
fn binary_path() -> io::Result<PathBuf> {
    let path = std::env::current_exe()
        .map_err(|error| io::Error::new(error.kind(), format!("/proc/self/exe cannot be read: {error}")))?;
    // The kernel adds this to the name of a file that was replaced or removed since, proc_pid_exe(5).
    match path.as_os_str().as_bytes().strip_suffix(b" (deleted)") {
        Some(replaced) => Ok(PathBuf::from(OsStr::from_bytes(replaced))),
        None => Ok(path),
    }
}

/// A binary that is held open, so that it is the one that is executed whatever happens to its name.
#[derive(Debug)]
pub(crate) struct Binary {
    path: PathBuf,
    /// `O_PATH`: a binary may be executable and not readable.
    file: OwnedFd,
    version: Version,
}

/// Metadata that changes when a file is written to.
#[derive(Debug, PartialEq, Eq)]
struct Version {
    size: u64,
    modified: (i64, i64),
}

impl From<&Metadata> for Version {
    fn from(metadata: &Metadata) -> Version {
        Version { size: metadata.len(), modified: (metadata.mtime(), metadata.mtime_nsec()) }
    }
}

impl Binary {
    /// The binary on disk.
    /// Errors: there is none.
    fn on_disk() -> io::Result<Binary> {
        Binary::open(binary_path()?)
    }

    /// The image that is running.
    /// Errors: `/proc` is not mounted.
    fn running() -> io::Result<Binary> {
        Binary::open(PathBuf::from("/proc/self/exe"))
    }

    fn open(path: PathBuf) -> io::Result<Binary> {
        let file = rustix::fs::open(&path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
        let version = version_of(&file)?;
        Ok(Binary { path, file, version })
    }

    /// True if the file was not written to since it was opened.
    fn is_unchanged(&self) -> bool {
        version_of(&self.file).is_ok_and(|version| version == self.version)
    }

    /// The open file, as a path for this process and its children.
    fn proc_path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }

    /// True for a script, which its interpreter opens once more: its descriptor must stay open over the `exec`.
    fn is_script(&self) -> bool {
        let mut start = [0; 2];
        std::fs::File::open(self.proc_path())
            .is_ok_and(|mut file| file.read_exact(&mut start).is_ok() && start == *b"#!")
    }

    /// Sets whether the descriptor stays open over an `exec`.
    fn keep_open(&self, keep: bool) -> io::Result<()> {
        Ok(fcntl_setfd(&self.file, if keep { FdFlags::empty() } else { FdFlags::CLOEXEC })?)
    }
}

fn version_of(file: &OwnedFd) -> io::Result<Version> {
    // fstat(2) works on O_PATH since Linux 3.6, and `File` is the way to it without `unsafe`.
    Ok(Version::from(&std::fs::File::from(file.try_clone()?).metadata()?))
}

/// A preflight in progress. Dropping it ends it.
pub(crate) struct Preflight {
    child: Child,
    until: Instant,
    binary: Option<Binary>,
}

impl Preflight {
    /// Starts the binary on disk. `unix`: the path of a Unix socket that it would be left, if there is one.
    /// Errors: there is no binary, or it cannot be started.
    pub(crate) fn start(unix: Option<&Path>) -> io::Result<Preflight> {
        let binary = Binary::on_disk()?;
        let left = unix.map(|path| [OsStr::new(LEFT_UNIX), path.as_os_str()].into_iter().collect::<OsString>());
        Preflight::of(binary, &left.unwrap_or_else(|| "1".into()))
    }

    fn of(binary: Binary, left: &OsStr) -> io::Result<Preflight> {
        let mut command = Command::new(binary.proc_path());
        command.arg0(program_name(&binary.path)).args(arguments()).env(PREFLIGHT, left).env_remove(SOCKETS);
        for name in PRIVATE_ENV {
            command.env_remove(name);
        }
        // A process group of its own: signals for ours are not meant for it.
        command.stdin(no_input()).stdout(no_output()).process_group(0);
        let script = binary.is_script();
        if script {
            binary.keep_open(true)?;
        }
        let path = binary.path.display();
        let child = command.spawn().map_err(|error| io::Error::new(error.kind(), format!("{path}: {error}")))?;
        sys::children::set_own(Some(child.id()));
        if script {
            binary.keep_open(false)?;
        }
        Ok(Preflight { child, until: Instant::now() + MAX_PREFLIGHT, binary: Some(binary) })
    }

    /// The binary that passed, or why it did not; `None` while the preflight runs.
    pub(crate) fn result(&mut self) -> Option<Result<Binary, String>> {
        let passed = match self.child.try_wait() {
            Ok(Some(status)) if status.code() == Some(i32::from(EXIT_PREFLIGHT_OK)) => Ok(()),
            Ok(Some(status)) => Err(status.to_string()),
            Ok(None) if Instant::now() >= self.until => Err(format!("not done within {MAX_PREFLIGHT:?}")),
            Ok(None) => return None,
            Err(error) => Err(format!("it cannot be waited for: {error}")),
        };
        let binary = self.binary.take()?;
        Some(match passed {
            Ok(()) => Ok(binary),
            Err(why) => Err(format!("the new binary failed its preflight: {why}")),
        })
    }
}

impl Drop for Preflight {
    fn drop(&mut self) {
        let _ = self.child.kill(); // fails if it has ended
        let _ = self.child.wait(); // so that no zombie is left
        sys::children::set_own(None);
        if sys::children::is_process_1() {
            sys::children::reap_orphans(); // those that the preflight hid: the kernel tells of the first child that has ended
        }
    }
}

/// The standard input of a preflight, which is at its end. Not `/dev/null`, which an empty root directory, as a
/// container may have, lacks.
fn no_input() -> Stdio {
    rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_or_else(|_| Stdio::inherit(), |(reader, _)| reader.into())
}

/// The standard output of a preflight: `/dev/null`, or, where there is none, that of this process.
fn no_output() -> Stdio {
    std::fs::OpenOptions::new().write(true).open("/dev/null").map_or_else(|_| Stdio::inherit(), Stdio::from)
}

fn arguments() -> impl Iterator<Item = OsString> {
    std::env::args_os().skip(1)
}

fn program_name(binary: &Path) -> OsString {
    std::env::args_os().next().unwrap_or_else(|| binary.as_os_str().to_owned())
}

/// Executes `binary`, or the running image once more if that fails. Returns only with an error.
///
/// `sockets` are the listening sockets with their labels. The caller has [held](crate::sys::signals::hold) the signals;
/// `resend` are those that the next image is to receive.
pub(crate) fn exec_new_image(binary: &Binary, sockets: &[(BorrowedFd<'_>, String)], resend: &[Signal]) -> io::Error {
    for (socket, _) in sockets {
        if let Err(error) = fcntl_setfd(socket, FdFlags::empty()) {
            return error.into();
        }
    }
    for signal in resend {
        if let Err(error) = kill_process(getpid(), *signal) {
            log::error!("signal {} is lost in the re-exec: {error}", signal.as_raw());
        }
    }
    let sockets: Vec<_> = sockets.iter().map(|(socket, label)| format!("{}={label}", socket.as_raw_fd())).collect();
    let environment = environment(&format!("{}:{}", sockets.join(","), std::process::id()));
    let arguments: Vec<CString> =
        std::iter::once(program_name(&binary.path)).chain(arguments()).filter_map(c_string).collect();
    if binary.is_unchanged() {
        let kept = if binary.is_script() { binary.keep_open(true) } else { Ok(()) };
        let error = kept.err().unwrap_or_else(|| sys::exec::exec(binary.file.as_fd(), &arguments, &environment));
        log::error!("cannot execute {}: {error}: going on with the running binary", binary.path.display());
    } else {
        log::error!("{} was written to after its preflight: going on with the running binary", binary.path.display());
    }
    match Binary::running() {
        Ok(running) => sys::exec::exec(running.file.as_fd(), &arguments, &environment),
        Err(error) => error,
    }
}

/// The environment of the next image, as `NAME=value`.
fn environment(sockets: &str) -> Vec<CString> {
    let kept =
        std::env::vars_os().filter(|(name, _)| name != SOCKETS && LISTEN_ENV.iter().all(|listen| name != listen));
    kept.chain([(SOCKETS.into(), sockets.into())])
        .filter_map(|(mut name, value)| {
            name.push("=");
            name.push(value);
            c_string(name)
        })
        .collect()
}

/// `None` is unreachable: what this process was started with has no NUL inside.
fn c_string(text: OsString) -> Option<CString> {
    CString::new(text.into_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("allout-binary-{name}-{}", std::process::id()));
        std::fs::write(&path, "#!/bin/sh\n").unwrap();
        path
    }

    #[test]
    fn a_held_binary_outlives_its_name_and_notices_what_is_written_to_it() {
        let path = place("held");
        let binary = Binary::open(path.clone()).unwrap();
        assert!(binary.is_script());
        std::fs::rename(place("next"), &path).unwrap();
        assert!(binary.is_unchanged(), "its name was given to another file");
        let other = Binary::open(path.clone()).unwrap();
        std::fs::write(&path, "something else").unwrap();
        assert!(binary.is_unchanged() && !other.is_unchanged());
        assert!(!other.is_script());
        std::fs::remove_file(&path).unwrap();
        assert!(binary.is_unchanged());
    }
}
