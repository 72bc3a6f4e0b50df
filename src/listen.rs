//! The listening socket: made here, or inherited, and given the options that every connection inherits from it.
//!
//! A socket is inherited from the image before this one (see [`renewal`]), or in systemd's
//! way (`sd_listen_fds(3)`), from systemd or from whoever speaks as it does. The variables stay as they are, because changing the environment is not
//! safe in a process that may have threads; they name this process alone (`LISTEN_PID`), and the descriptors are not
//! passed on to programs that are run from here.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{OwnedFd, RawFd};
use std::time::Duration;

use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, TcpKeepalive, Type};

use crate::lifecycle::reexec;
use crate::sys::fd::take_passed;
use crate::sys::min_ttl::set_min_ttl_filter;
use crate::sys::sigio::set_sigio;
use crate::sys::tcp::set_window_clamp;

/// Connections that the kernel completes and keeps while `tiny_http` is busy; the kernel takes `net.core.somaxconn` if that
/// is less (4096 since Linux 5.4).
const BACKLOG: i32 = 1024;

/// What the kernel takes of a connection before anybody reads it. It bounds how many pipelined requests can arrive at
/// once, which `tiny_http` reads without any bound of its own, and queues before those of all others: some 150 of the
/// smallest, times as many clients as do so.
const RECEIVE_BUFFER: usize = 4 * 1024;

/// The same while a body is read: it is read as fast as somebody takes it, and no faster. An upload over a line of 20 ms
/// gets 3 MB/s; more would need the window scaling that a small buffer at the start rules out.
const BODY_BUFFER: usize = 64 * 1024;

/// Silence after which the kernel asks whether the peer is still there. Idle connections end earlier; this is for
/// requests in flight whose client's machine is gone.
const KEEPALIVE: Duration = Duration::from_mins(1);

/// The name (`FileDescriptorName=`) that tells our socket from others that were passed along with it.
const NAME: &str = "http";

/// A socket that listens.
#[derive(Debug)]
pub(crate) struct ListenSocket {
    pub(crate) listener: TcpListener,
    /// Others hold it as well: it must not be shut down, and must be left as a new instance wants to find it.
    pub(crate) inherited: bool,
}

/// Why there is no listening socket.
#[derive(Debug)]
pub(crate) enum ListenError {
    /// Another socket listens on the address.
    InUse(SocketAddr),
    /// The system refuses to listen on the address.
    Bind(SocketAddr, io::Error),
    /// A socket that was passed to the process cannot be used.
    Inherited(String),
}

/// Takes the socket that was passed to this process, or else listens on `address`.
///
/// # Errors
///
/// What was passed cannot be used; or, as [`bind`].
pub(crate) fn inherit_or_bind(address: SocketAddr) -> Result<ListenSocket, ListenError> {
    if let Some((number, from_outside)) = reexec::inherited() {
        let listener = adopt(number).map_err(|why| ListenError::Inherited(format!("descriptor {number} {why}")))?;
        return Ok(ListenSocket { listener, inherited: from_outside });
    }
    match inherit()? {
        Some(listener) => Ok(ListenSocket { listener, inherited: true }),
        None => Ok(ListenSocket { listener: bind(address)?, inherited: false }),
    }
}

/// The socket that was passed to this process, if one was.
fn inherit() -> Result<Option<TcpListener>, ListenError> {
    let unusable = |error: io::Error| ListenError::Inherited(format!("LISTEN_FDS: {error}"));
    let passed: Vec<_> = sd_notify::listen_fds_with_names().map_err(unusable)?.collect();
    let Some((number, name)) = choose(&passed)? else { return Ok(None) };
    let refused = |why: String| ListenError::Inherited(format!("descriptor {number} ({name}) {why}"));
    let listener = adopt(*number).map_err(refused)?;
    log::info!("the socket was passed by the service manager, as descriptor {number} ({name})");
    Ok(Some(listener))
}

/// Of several sockets, the one with our name: the others may be for other parts of the program.
fn choose(passed: &[(RawFd, String)]) -> Result<Option<&(RawFd, String)>, ListenError> {
    if passed.len() <= 1 {
        return Ok(passed.first());
    }
    let mut ours = passed.iter().filter(|(_, name)| name == NAME);
    if let (Some(one), None) = (ours.next(), ours.next()) {
        for (number, name) in passed.iter().filter(|(number, _)| *number != one.0) {
            log::warn!("descriptor {number} ({name}) was passed as well, and is not served");
        }
        return Ok(Some(one));
    }
    let names: Vec<_> = passed.iter().map(|(_, name)| name.as_str()).collect();
    Err(ListenError::Inherited(format!(
        "{} were passed ({}), and not exactly one is named {NAME} (FileDescriptorName=)",
        passed.len(),
        names.join(", ")
    )))
}

fn adopt(number: RawFd) -> Result<TcpListener, String> {
    let descriptor = take_passed(number).map_err(|error| format!("cannot be had: {error}"))?;
    judge(descriptor)
}

/// Makes a descriptor of whatever kind our listening socket, or says what is wrong with it.
fn judge(descriptor: OwnedFd) -> Result<TcpListener, String> {
    let socket = Socket::from(descriptor);
    let Ok(domain) = socket.domain() else { return Err("is no socket".to_owned()) };
    if domain != Domain::IPV4 && domain != Domain::IPV6 {
        let kind = if domain == Domain::UNIX { "a Unix socket" } else { "of another family" };
        return Err(format!("is {kind}, and only TCP over IPv4 or IPv6 is served"));
    }
    let is_tcp = socket.r#type().is_ok_and(|kind| kind == Type::STREAM)
        && socket.protocol().is_ok_and(|protocol| protocol == Some(Protocol::TCP));
    if !is_tcp {
        return Err("is no TCP socket".to_owned());
    }
    if !socket.is_listener().unwrap_or(false) {
        return Err("does not listen (one connection each is what Accept=yes passes)".to_owned());
    }
    renew(&socket).map_err(|error| format!("cannot be set up: {error}"))?;
    Ok(socket.into())
}

/// Undoes what a former holder may have left on a socket, and what would end `accept`.
fn renew(socket: &Socket) -> io::Result<()> {
    set_min_ttl_filter(socket, false)?;
    set_sigio(socket, false)?;
    socket.set_nonblocking(false)?;
    socket.set_read_timeout(None)?;
    socket.set_recv_buffer_size(RECEIVE_BUFFER)
}

/// Listens on `address`.
///
/// # Errors
///
/// The address is taken, or not one of this machine's, or needs a privilege.
pub(crate) fn bind(address: SocketAddr) -> Result<TcpListener, ListenError> {
    let listen = || -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.set_reuse_address(true)?; // connections of an earlier instance in TIME_WAIT are no reason to fail
        socket.bind(&SockAddr::from(address))?;
        // Before listen(2), or the window of the first connections is not bound by it: tcp(7).
        socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
        socket.listen(BACKLOG)?;
        Ok(socket)
    };
    match listen() {
        Ok(socket) => Ok(socket.into()),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(ListenError::InUse(address)),
        Err(error) => Err(ListenError::Bind(address, error)),
    }
}

/// Lets more of a connection come in at once, for the sake of a body.
pub(crate) fn grow_receive_buffer(connection: &OwnedFd) {
    let _ = SockRef::from(connection).set_recv_buffer_size(BODY_BUFFER); // fails if the peer has left
    let _ = set_window_clamp(connection, BODY_BUFFER);
}

/// Sets what connections inherit from the listening socket.
///
/// # Errors
///
/// The system refuses an option.
pub(crate) fn prepare(listener: &TcpListener, request_timeout: Duration) -> io::Result<()> {
    let socket = SockRef::from(listener);
    // tiny_http writes in pieces where a response is long: without this each piece waits for an acknowledgement (40 ms).
    socket.set_tcp_nodelay(true)?;
    // Bounds the wait for a client that never reads, where the keeper cannot. SO_RCVTIMEO must not be set: it ends accept.
    socket.set_write_timeout(Some(request_timeout))?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpStream, UdpSocket};
    use std::os::unix::net::UnixListener;

    fn refused(descriptor: impl Into<OwnedFd>) -> String {
        judge(descriptor.into()).expect_err("it is of the wrong kind")
    }

    #[test]
    fn only_a_listening_tcp_socket_is_adopted() {
        let path = std::env::temp_dir().join(format!("allout-socket-test-{}", std::process::id()));
        let unix = UnixListener::bind(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(refused(unix).contains("Unix socket"));
        assert!(refused(UdpSocket::bind("127.0.0.1:0").unwrap()).contains("no TCP socket"));
        assert!(refused(std::fs::File::open("/dev/null").unwrap()).contains("no socket"));
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            assert!(refused(client).contains("does not listen"));
            judge(listener.into()).unwrap();
        }
    }

    #[test]
    fn what_a_former_holder_left_on_the_socket_is_undone() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            set_min_ttl_filter(&listener, true).unwrap();
            set_sigio(&listener, true).unwrap();
            listener.set_nonblocking(true).unwrap();
            SockRef::from(&listener).set_read_timeout(Some(Duration::from_secs(1))).unwrap();

            let adopted = judge(listener.into()).unwrap();
            assert!(!crate::sys::min_ttl::has_min_ttl_filter(&adopted));
            let flags = rustix::fs::fcntl_getfl(&adopted).unwrap();
            let unwanted = u32::try_from(libc::O_ASYNC | libc::O_NONBLOCK).unwrap();
            assert_eq!(flags.bits() & unwanted, 0);
            assert_eq!(SockRef::from(&adopted).read_timeout().unwrap(), None);
            TcpStream::connect_timeout(&adopted.local_addr().unwrap(), Duration::from_secs(5)).unwrap();
            adopted.accept().unwrap();
        }
    }

    #[test]
    fn of_several_the_one_with_our_name_is_taken() {
        let passed = |names: &[&str]| (3..).zip(names.iter().map(|&name| name.to_owned())).collect::<Vec<_>>();
        let chosen = |names: &[&str]| choose(&passed(names)).map(|one| one.map(|(number, _)| *number));
        assert_eq!(chosen(&[]).unwrap(), None);
        assert_eq!(chosen(&["whatever"]).unwrap(), Some(3));
        assert_eq!(chosen(&["admin", "http"]).unwrap(), Some(4));
        assert!(chosen(&["admin", "debug"]).is_err());
        let Err(ListenError::Inherited(why)) = chosen(&["http", "http"]) else {
            panic!("two of one name are accepted")
        };
        assert!(why.contains("2 were passed (http, http)"), "{why}");
    }
}
