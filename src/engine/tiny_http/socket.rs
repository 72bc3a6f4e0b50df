//! Options of the listening socket, which every accepted connection inherits.

use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::time::Duration;

use socket2::SockRef;

use crate::engine::socket::set_connection_defaults;
use crate::sys::tcp::set_window_clamp;

/// Receive buffer of a connection, in bytes, until a body is read. It bounds how many pipelined requests can arrive at
/// once, all of which `tiny_http` reads and queues: some 150 of the smallest. It must be set before listen(2), or the
/// window of the first connections is larger (tcp(7)).
pub(crate) const RECEIVE_BUFFER: usize = 4 * 1024;

/// Receive buffer while a body is read, in bytes. An upload over a line of 20 ms gets 3 MB/s; more would need the window
/// scaling that the small buffer at the start rules out.
const BODY_BUFFER: usize = 64 * 1024;

/// Sets the options that connections inherit from the listening socket.
/// Errors: the system refuses an option.
pub(super) fn prepare(listener: &TcpListener, request_timeout: Duration) -> io::Result<()> {
    set_connection_defaults(listener)?;
    // Bounds a write to a client that never reads, where the monitor does not know its socket. SO_RCVTIMEO must not be
    // set: it makes accept time out, which ends tiny_http's accept thread.
    SockRef::from(listener).set_write_timeout(Some(request_timeout))
}

/// Enlarges the receive buffer of a connection for a body.
pub(super) fn grow_receive_buffer(connection: &OwnedFd) {
    let _ = SockRef::from(connection).set_recv_buffer_size(BODY_BUFFER); // fails if the peer has left
    let _ = set_window_clamp(connection, BODY_BUFFER);
}
