//! The listening sockets: bound here, or passed to this process by a service manager or by the previous image (see
//! [`reexec`](crate::lifecycle::reexec)).
//!
//! A service manager passes sockets as `sd_listen_fds(3)` says. The variables stay set, because a process that may have
//! threads must not change its environment; they name this process alone (`LISTEN_PID`), and the descriptors are not
//! inherited by its children.

mod address;
mod inherited;
mod unix;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::RawFd;
use std::path::PathBuf;

use socket2::{Domain, SockAddr, SockRef, Socket, Type};

pub(crate) use address::Address;
use inherited::{validate, warn_of_changes};
use unix::SocketFile;
pub use unix::UnixSocket;

use crate::sys::fd::take_passed;

/// Length of the accept queue: connections that the kernel completes while the engine is busy. The kernel takes
/// `net.core.somaxconn` if that is less (4096 since Linux 5.4).
const BACKLOG: i32 = 1024;

/// The purpose of a listening socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// The routes of the service, and the admin routes if they have no socket of their own.
    Main,
    /// The admin routes alone.
    Admin,
}

impl Role {
    /// The name of a passed socket with this role: `FileDescriptorName=` (systemd.socket(5)).
    pub(crate) fn fd_name(self) -> &'static str {
        match self {
            Role::Main => "http",
            Role::Admin => "admin",
        }
    }
}

/// A listening socket.
#[derive(Debug)]
pub(crate) struct ListenSocket {
    /// The type serves for Unix sockets as well, of which it only holds the descriptor.
    pub(crate) listener: TcpListener,
    pub(crate) role: Role,
    /// The file of a Unix socket, if it is ours to remove.
    pub(crate) file: Option<SocketFile>,
    /// It belongs to a service manager and outlives this process: it must not be shut down, and must be left as a new
    /// instance expects it.
    pub(crate) outlives_us: bool,
}

/// The suffix of [`ListenSocket::label`] if the socket [outlives us](ListenSocket::outlives_us).
const OUTLIVES_US: &str = "+";

/// In [`ListenSocket::label`], before the identity of the file of a Unix socket.
const FILE: char = '@';

impl ListenSocket {
    /// The label of the socket for the next image, as [`open_inherited`] takes it.
    pub(crate) fn label(&self) -> String {
        let file = self.file.as_ref().map(|file| format!("{FILE}{}", file.id_text())).unwrap_or_default();
        format!("{}{file}{}", self.role.fd_name(), if self.outlives_us { OUTLIVES_US } else { "" })
    }
}

/// The reason why there is no listening socket.
#[derive(Debug)]
pub(crate) enum ListenError {
    /// Another socket listens on the address.
    InUse(SocketAddr),
    /// The system refuses to listen on the address.
    Bind(SocketAddr, io::Error),
    /// The Unix socket at this path cannot be listened on.
    Unix(PathBuf, io::Error),
    /// A socket that was passed to the process cannot be used.
    Inherited(String),
}

/// The sockets to open.
pub(crate) struct Wanted<'a> {
    pub(crate) main: &'a [SocketAddr],
    pub(crate) unix: &'a [UnixSocket],
    pub(crate) admin: Option<SocketAddr>,
    /// Size of the receive buffer that connections inherit, in bytes, if it is not the kernel's choice.
    pub(crate) receive_buffer: Option<usize>,
}

/// Opens all sockets of a service, the main ones first: those that were passed, by the previous image or else by the
/// service manager, and new ones for a role of which none was passed.
///
/// `left` are the descriptors and [labels](ListenSocket::label) of the sockets that the previous image has left, if
/// there was one.
/// Errors: a socket that was passed cannot be used; or an address is taken, or not one of this machine, or needs a
/// privilege.
pub(crate) fn open_inherited(
    wanted: &Wanted<'_>,
    left: Option<Vec<(RawFd, String)>>,
) -> Result<Vec<ListenSocket>, ListenError> {
    let from_manager = left.is_none();
    let passed = match left {
        Some(left) => left
            .into_iter()
            .map(|(fd, label)| {
                let role = if label.starts_with(Role::Admin.fd_name()) { Role::Admin } else { Role::Main };
                (fd, label.clone(), role, label.ends_with(OUTLIVES_US))
            })
            .collect(),
        None => passed_by_manager()?,
    };
    let mut sockets = Vec::new();
    for (fd, name, role, outlives_us) in passed {
        let unusable = |why: String| ListenError::Inherited(format!("descriptor {fd} ({name}) {why}"));
        let listener = take_inherited(fd, wanted.receive_buffer).map_err(unusable)?;
        if from_manager {
            log::info!("the service manager passed a socket: descriptor {fd} ({name})");
        }
        let file = if outlives_us { None } else { own_file(&listener, &name) };
        sockets.push(ListenSocket { listener, role, file, outlives_us });
    }
    let has = |role: Role| sockets.iter().any(|socket| socket.role == role);
    let (main, admin) = (!has(Role::Main), !has(Role::Admin));
    if !from_manager && !main {
        warn_of_changes(wanted, &sockets);
        return Ok(sockets);
    }
    sockets.extend(open(&Wanted {
        main: if main { wanted.main } else { &[] },
        unix: if main { wanted.unix } else { &[] },
        admin: wanted.admin.filter(|_| admin),
        ..*wanted
    })?);
    sockets.sort_by_key(|socket| socket.role == Role::Admin);
    Ok(sockets)
}

/// Opens new sockets, the main ones first.
/// Errors: an address is taken, or not one of this machine, or needs a privilege.
pub(crate) fn open(wanted: &Wanted<'_>) -> Result<Vec<ListenSocket>, ListenError> {
    let main = wanted.main.iter().map(|address| (*address, Role::Main));
    let all = main.chain(wanted.admin.map(|address| (address, Role::Admin)));
    let open_one = |(address, role): (SocketAddr, Role)| {
        // A socket for `[::]` takes IPv4 connections as well (ipv6(7)), and so the port, unless it is told not to.
        let has_v4_socket = wanted.main.iter().any(|other| other.is_ipv4() && other.port() == address.port());
        let only_v6 = address.is_ipv6() && has_v4_socket;
        let listener = bind(address, only_v6, wanted.receive_buffer)?;
        Ok(ListenSocket { listener, role, file: None, outlives_us: false })
    };
    let open_unix = |wanted: &UnixSocket| {
        let opened = wanted.bind(BACKLOG).map_err(|error| ListenError::Unix(wanted.path().to_owned(), error));
        opened.map(|(listener, file)| ListenSocket { listener, role: Role::Main, file: Some(file), outlives_us: false })
    };
    // The admin socket is the last.
    let mut sockets = all.map(open_one).collect::<Result<Vec<_>, _>>()?;
    let unix = wanted.unix.iter().map(open_unix).collect::<Result<Vec<_>, _>>()?;
    sockets.splice(wanted.main.len()..wanted.main.len(), unix);
    Ok(sockets)
}

/// Takes over a socket that the program has opened by itself.
/// Errors: it cannot be set up.
pub(crate) fn adopt(listener: TcpListener, receive_buffer: Option<usize>) -> Result<ListenSocket, ListenError> {
    // `TcpListener::bind` sets a shorter queue; listen(2) may be called again.
    let longer = SockRef::from(&listener).listen(BACKLOG).map_err(|error| error.to_string());
    let listener = longer.and_then(|()| validate(listener.into(), receive_buffer));
    let listener = listener.map_err(|why| ListenError::Inherited(format!("the program's own {why}")))?;
    Ok(ListenSocket { listener, role: Role::Main, file: None, outlives_us: false })
}

/// The file of a socket that the previous image has left with this label, if it is a Unix socket. By now another
/// process may have replaced the file.
fn own_file(listener: &TcpListener, label: &str) -> Option<SocketFile> {
    match Address::of(listener) {
        Ok(Address::Unix(path)) => SocketFile::with_id(&path, label.split_once(FILE)?.1),
        _ => None,
    }
}

/// Descriptor, name, role, and whether it outlives us.
type Passed = (RawFd, String, Role, bool);

/// The sockets that a service manager passed to this process.
fn passed_by_manager() -> Result<Vec<Passed>, ListenError> {
    let unusable = |error: io::Error| ListenError::Inherited(format!("LISTEN_FDS: {error}"));
    let passed: Vec<_> = sd_notify::listen_fds_with_names().map_err(unusable)?.collect();
    select(&passed)
}

/// Chooses by name: `http` is for the service, `admin` for the admin routes. If all others have one name, as the sockets
/// of one unit without `FileDescriptorName=` do, they are the service's, too.
fn select(passed: &[(RawFd, String)]) -> Result<Vec<Passed>, ListenError> {
    let named = |role: Role| move |passed: &&(RawFd, String)| passed.1 == role.fd_name();
    let others = || passed.iter().filter(|passed| !named(Role::Admin)(passed));
    let mut main: Vec<_> = others().filter(named(Role::Main)).collect();
    if main.is_empty() {
        main = others().collect();
        if let Some((_, other)) = main.iter().find(|(_, name)| *name != main[0].1) {
            return Err(ListenError::Inherited(format!(
                "{} were passed, among them {} and {other}, and none is named {} (FileDescriptorName=)",
                passed.len(),
                main[0].1,
                Role::Main.fd_name(),
            )));
        }
    } else {
        for (fd, name) in others().filter(|passed| !named(Role::Main)(passed)) {
            log::warn!("descriptor {fd} ({name}) was passed as well, and is not used");
        }
    }
    let with = |role| move |(fd, name): &(RawFd, String)| (*fd, name.clone(), role, true);
    let admin = passed.iter().filter(named(Role::Admin)).map(with(Role::Admin));
    Ok(main.into_iter().map(with(Role::Main)).chain(admin).collect())
}

fn take_inherited(fd: RawFd, receive_buffer: Option<usize>) -> Result<TcpListener, String> {
    let descriptor = take_passed(fd).map_err(|error| format!("cannot be used: {error}"))?;
    validate(descriptor, receive_buffer)
}

fn bind(address: SocketAddr, only_v6: bool, receive_buffer: Option<usize>) -> Result<TcpListener, ListenError> {
    let listen = || -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.set_reuse_address(true)?; // else refused while connections of an earlier instance are in TIME-WAIT
        if only_v6 {
            socket.set_only_v6(true)?;
        }
        socket.bind(&SockAddr::from(address))?;
        // Before listen(2): the window of the first connections depends on it, tcp(7).
        receive_buffer.map_or(Ok(()), |bytes| socket.set_recv_buffer_size(bytes))?;
        socket.listen(BACKLOG)?;
        Ok(socket)
    };
    match listen() {
        Ok(socket) => Ok(socket.into()),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(ListenError::InUse(address)),
        Err(error) => Err(ListenError::Bind(address, error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    fn passed_sockets_are_chosen_by_name() {
        let passed = |names: &[&str]| (3..).zip(names.iter().map(|&name| name.to_owned())).collect::<Vec<_>>();
        let chosen = |names: &[&str]| {
            let all = select(&passed(names)).map_err(|error| format!("{error:?}"));
            all.map(|all| all.iter().map(|(fd, _, role, _)| (*fd, *role)).collect::<Vec<_>>())
        };
        let (main, admin) = (Role::Main, Role::Admin);
        assert_eq!(chosen(&[]), Ok(vec![]));
        assert_eq!(chosen(&["whatever"]), Ok(vec![(3, main)]));
        assert_eq!(chosen(&["allout.socket", "allout.socket"]), Ok(vec![(3, main), (4, main)]));
        assert_eq!(chosen(&["admin", "http"]), Ok(vec![(4, main), (3, admin)]));
        assert_eq!(chosen(&["http", "debug", "http"]), Ok(vec![(3, main), (5, main)]));
        assert_eq!(chosen(&["admin", "debug"]), Ok(vec![(4, main), (3, admin)]));
        assert_eq!(chosen(&["admin"]), Ok(vec![(3, admin)]));
        let why = chosen(&["web", "debug", "admin"]).unwrap_err();
        assert!(why.contains("3 were passed, among them web and debug, and none is named http"), "{why}");
    }

    #[test]
    fn new_sockets_are_bound_for_each_role() {
        let any = |address: &str| address.parse().unwrap();
        let main = [any("127.0.0.1:0"), any("[::1]:0")];
        let wanted = Wanted { main: &main, unix: &[], admin: Some(any("127.0.0.1:0")), receive_buffer: Some(4096) };
        let sockets = open(&wanted).unwrap();
        let roles: Vec<_> = sockets.iter().map(|socket| (socket.role, socket.label())).collect();
        let main = (Role::Main, "http".to_owned());
        assert_eq!(roles, [main.clone(), main, (Role::Admin, "admin".to_owned())]);

        // The unspecified addresses of both families, with one port.
        let port = sockets[0].listener.local_addr().unwrap().port();
        drop(sockets);
        let main = [SocketAddr::from(([0, 0, 0, 0], port)), SocketAddr::from(([0; 8], port))];
        open(&Wanted { main: &main, unix: &[], admin: None, receive_buffer: None }).unwrap();
    }
}
