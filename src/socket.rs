//! The listening socket: made here, or inherited, and given the options that every connection inherits from it.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::RawFd;
use std::time::Duration;

use socket2::{Domain, SockAddr, SockRef, Socket, TcpKeepalive, Type};

use crate::descriptors;
use crate::renewal;

/// Connections that the kernel completes and keeps while tiny_http is busy; the kernel takes `net.core.somaxconn` if that
/// is less (4096 since Linux 5.4).
const BACKLOG: i32 = 1024;

/// What the kernel takes of a connection before anybody reads it. It bounds how many pipelined requests can arrive at
/// once, which tiny_http reads without any bound of its own; and an upload over a line of 20 ms still gets 10 MB/s.
const RECEIVE_BUFFER: usize = 128 * 1024;

/// Silence after which the kernel asks whether the peer is still there. Idle connections end earlier; this is for
/// requests in flight whose client's machine is gone.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// Why a service could not start.
#[derive(Debug)]
#[non_exhaustive]
pub enum StartError {
    /// Somebody else listens there.
    AddressInUse(SocketAddr),
    /// The address cannot be listened on.
    Listen(SocketAddr, io::Error),
    /// A socket was passed that cannot be used.
    Inherited(String),
    /// A route cannot be.
    Route(crate::BadRoute),
    /// The system refuses a thread, a descriptor or the like.
    System(&'static str, io::Error),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartError::AddressInUse(address) => {
                write!(f, "address in use: {address}: stop whoever listens there, or listen elsewhere (--listen)")
            }
            StartError::Listen(address, error) => write!(f, "cannot listen on {address}: {error}"),
            StartError::Inherited(what) => write!(f, "the socket that was passed cannot be used: {what}"),
            StartError::Route(error) => write!(f, "bad route: {error}"),
            StartError::System(what, error) => write!(f, "cannot start: {what}: {error}"),
        }
    }
}

impl std::error::Error for StartError {}

/// The listening socket, and whether it outlives this service.
pub(crate) struct Listening {
    pub(crate) listener: TcpListener,
    pub(crate) inherited: bool,
}

/// The socket that was passed to this process, or a new one.
///
/// # Errors
///
/// See [`StartError`].
pub(crate) fn listen(address: SocketAddr) -> Result<Listening, StartError> {
    match renewal::inherited() {
        Some((number, inherited)) => Ok(Listening { listener: adopt(number)?, inherited }),
        None => Ok(Listening { listener: bind(address)?, inherited: false }),
    }
}

/// Takes over a socket by its number, and undoes what a former instance may have left on it.
fn adopt(number: RawFd) -> Result<TcpListener, StartError> {
    let unusable = |error: io::Error| StartError::Inherited(format!("descriptor {number}: {error}"));
    let listener = TcpListener::from(descriptors::passed(number).map_err(unusable)?);
    listener.local_addr().map_err(unusable)?;
    descriptors::ignore_arrivals(&listener, false).map_err(unusable)?;
    descriptors::signal_this_thread(&listener, false).map_err(unusable)?;
    Ok(listener)
}

/// Listens on `address`.
///
/// # Errors
///
/// The address is taken, or not one of this machine's, or needs a privilege.
pub(crate) fn bind(address: SocketAddr) -> Result<TcpListener, StartError> {
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
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(StartError::AddressInUse(address)),
        Err(error) => Err(StartError::Listen(address, error)),
    }
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
