//! Options of the listening socket that hold for the connections of every engine, which inherit them.

use std::io;
use std::net::TcpListener;
use std::time::Duration;

use socket2::{Domain, SockRef, TcpKeepalive};

/// Idle time of a socket before the kernel sends keep-alive probes (`TCP_KEEPIDLE`). Idle connections are closed earlier;
/// this detects a client machine that is gone while its request is in flight.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// Sets the options that connections inherit from the listening socket.
/// Errors: the system refuses an option.
pub(super) fn set_connection_defaults(listener: &TcpListener) -> io::Result<()> {
    let socket = SockRef::from(listener);
    if socket.domain()? == Domain::UNIX {
        return Ok(()); // a Unix socket has none of these
    }
    // Head and body may be two writes: with Nagle's algorithm the second waits for an acknowledgement (40 ms).
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE))
}
