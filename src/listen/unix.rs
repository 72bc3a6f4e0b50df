//! Unix-domain listening sockets: bound to a path, whose file belongs to the process that has made it.

use std::fs::{self, File};
use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, Mode, fchmod, flock};
use rustix::io::Errno;
use socket2::{Domain, SockAddr, Socket, Type};

/// A Unix-domain socket to listen on; the native engine alone serves it.
///
/// ```
/// use allout::{EngineKind, Service, UnixSocket};
///
/// let path = std::env::temp_dir().join(format!("allout-doc-{}.sock", std::process::id()));
/// let socket = UnixSocket::new(&path).mode(0o660);
/// let running = Service::new().engine(EngineKind::Native).get("/", |_| "hello").listen_unix(socket).start()?;
/// assert!(std::os::unix::net::UnixStream::connect(&path).is_ok());
/// running.stop("done");
/// assert!(!path.exists());
/// # Ok::<(), allout::StartError>(())
/// ```
#[derive(Clone, Debug)]
pub struct UnixSocket {
    path: PathBuf,
    mode: u32,
    owner: Option<u32>,
    group: Option<u32>,
}

impl UnixSocket {
    /// A socket at this path, for processes of the same user: mode 0600. A stale socket, on which nothing listens any
    /// more, is replaced. The file is removed when the service has stopped, unless another has replaced it.
    pub fn new(path: impl Into<PathBuf>) -> UnixSocket {
        UnixSocket { path: path.into(), mode: 0o600, owner: None, group: None }
    }

    /// Permissions of the file; clients need to write to it.
    #[must_use]
    pub fn mode(mut self, mode: u32) -> UnixSocket {
        self.mode = mode & 0o777;
        self
    }

    /// Owner and group of the file, by number; those that are `None` stay as they are.
    #[must_use]
    pub fn owner(mut self, user: Option<u32>, group: Option<u32>) -> UnixSocket {
        (self.owner, self.group) = (user, group);
        self
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Listens. The type is that of all listening sockets; it only holds the descriptor.
    /// Errors: `AddrInUse`: another process listens there. `AlreadyExists`: a file that is no socket is there.
    pub(crate) fn bind(&self, backlog: i32) -> io::Result<(TcpListener, SocketFile)> {
        // Of several processes that start at once, one replaces a stale socket.
        let _locked = lock_directory(&self.path);
        remove_stale(&self.path)?;
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        fchmod(&socket, Mode::empty())?; // the file's mode until it has its owner; unix(7) says nothing of it
        socket.bind(&SockAddr::unix(&self.path)?)?;
        let file = SocketFile::at(&self.path)?;
        // Only if asked for: filters of system calls refuse it (systemd's `@privileged`).
        if self.owner.is_some() || self.group.is_some() {
            std::os::unix::fs::chown(&self.path, self.owner, self.group)?;
        }
        fs::set_permissions(&self.path, fs::Permissions::from_mode(self.mode))?;
        socket.listen(backlog)?;
        Ok((TcpListener::from(OwnedFd::from(socket)), file))
    }
}

/// Attempts to lock a directory, [`LOCK_PAUSE`] apart: 200 ms, many times what another process needs to replace a
/// socket.
const LOCK_TRIES: u32 = 20;

/// Pause between two attempts.
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// Locks the directory of a path until the file is dropped. `None` if it may not be read, or if it stays locked: every
/// user who may read the directory can lock it, and must not keep a service from starting or stopping.
fn lock_directory(path: &Path) -> Option<File> {
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let directory = File::open(directory).ok()?;
    for _ in 0..LOCK_TRIES {
        match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Some(directory),
            Err(Errno::WOULDBLOCK) => std::thread::sleep(LOCK_PAUSE),
            Err(_) => break,
        }
    }
    None
}

/// Removes a socket on which nothing listens.
fn remove_stale(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "a file that is no socket is there"));
        }
        Ok(_) => {}
    }
    let client = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    client.set_nonblocking(true)?; // a full accept queue (EAGAIN) is that of a socket in use
    match client.connect(&SockAddr::unix(path)?) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
        _ => Err(io::ErrorKind::AddrInUse.into()),
    }
}

/// The file of a socket that this process has bound. Dropping it removes the file, unless another file has taken its
/// place.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    id: (u64, u64),
}

impl SocketFile {
    /// The file that is at this path now.
    /// Errors: there is none.
    pub(crate) fn at(path: &Path) -> io::Result<SocketFile> {
        Ok(SocketFile { path: path.to_owned(), id: id(path)? })
    }

    /// The file that was at this path when it had this [identity](SocketFile::id_text).
    pub(super) fn with_id(path: &Path, text: &str) -> Option<SocketFile> {
        let (device, inode) = text.split_once('.')?;
        Some(SocketFile { path: path.to_owned(), id: (device.parse().ok()?, inode.parse().ok()?) })
    }

    /// Its device and inode, as text.
    pub(super) fn id_text(&self) -> String {
        format!("{}.{}", self.id.0, self.id.1)
    }
}

fn id(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()))
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Another process that starts replaces the file either before it is looked at or after it is removed.
        let _locked = lock_directory(&self.path);
        if id(&self.path).is_ok_and(|found| found == self.id) {
            if let Err(error) = fs::remove_file(&self.path) {
                log::warn!("cannot remove {}: {error}", self.path.display());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    fn path(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("allout-{name}-{}.sock", std::process::id()))
    }

    #[test]
    fn a_socket_has_its_mode_is_refused_while_in_use_and_replaced_when_stale() {
        let wanted = UnixSocket::new(path("stale")).mode(0o640);
        let (listener, file) = wanted.bind(8).unwrap();
        assert_eq!(fs::metadata(wanted.path()).unwrap().permissions().mode() & 0o777, 0o640);
        UnixStream::connect(wanted.path()).unwrap();
        assert_eq!(wanted.bind(8).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        std::mem::forget(file); // as a process that was killed
        drop(listener);
        assert!(UnixStream::connect(wanted.path()).is_err());
        let (_listener, file) = wanted.bind(8).unwrap();
        UnixStream::connect(wanted.path()).unwrap();
        drop(file);
        assert!(!wanted.path().exists());
    }

    #[test]
    fn a_path_without_a_directory_is_in_the_working_directory() {
        let name = format!("allout-here-{}.sock", std::process::id());
        let wanted = UnixSocket::new(&name);
        let (_listener, file) = wanted.bind(8).unwrap();
        UnixStream::connect(&name).unwrap();
        drop(file);
        assert!(!wanted.path().exists());
    }

    #[test]
    fn a_directory_that_stays_locked_delays_a_start_and_no_more() {
        let directory = std::env::temp_dir().join(format!("allout-locked-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let held = File::open(&directory).unwrap();
        flock(&held, FlockOperation::LockExclusive).unwrap();
        let wanted = UnixSocket::new(directory.join("a.sock"));
        let (_listener, file) = wanted.bind(8).unwrap();
        drop(file);
        assert!(!wanted.path().exists());
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn a_file_that_is_no_socket_and_the_socket_of_another_process_stay() {
        let wanted = UnixSocket::new(path("others"));
        fs::write(wanted.path(), "x").unwrap();
        assert_eq!(wanted.bind(8).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        fs::remove_file(wanted.path()).unwrap();
        let (_listener, file) = wanted.bind(8).unwrap();
        let moved = wanted.path().with_extension("moved");
        fs::rename(wanted.path(), &moved).unwrap();
        fs::write(wanted.path(), "x").unwrap();
        drop(file);
        assert!(wanted.path().exists(), "it is another's");
        fs::remove_file(wanted.path()).unwrap();
        fs::remove_file(moved).unwrap();
    }
}
