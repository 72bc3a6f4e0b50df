//! A socket that is bound to a network interface which does not exist (`SO_BINDTOIFINDEX`,
//! `include/uapi/asm-generic/socket.h`).
//!
//! A listening socket that is bound to an interface takes part only in handshakes that begin with a SYN from there
//! (`inet_sk_bound_dev_eq`, `include/net/inet_sock.h`): the kernel answers all others with a reset, as if nothing
//! listened. Handshakes that have begun go on, since a half-open connection has the binding that its listening socket
//! had when its SYN came (`ir_iif`, `tcp_conn_request` in `net/ipv4/tcp_input.c`), and so do connections, which take it
//! from there.
//!
//! Since Linux 5.0, and 5.7 without privileges. A process without privileges cannot undo it.

use std::io;
use std::os::fd::AsFd;

use super::sockopt;

/// An interface that does not exist: the kernel numbers them from 1, and names would run out long before.
const NO_DEVICE: libc::c_int = libc::c_int::MAX;

/// Binds a socket to no interface.
///
/// # Errors
///
/// The kernel is older.
pub(crate) fn bind_to_no_device(socket: impl AsFd) -> io::Result<()> {
    sockopt::set(socket.as_fd(), libc::SOL_SOCKET, libc::SO_BINDTOIFINDEX, NO_DEVICE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::min_ttl::set_min_ttl_filter;
    use socket2::{Domain, Socket, Type};
    use std::io::{ErrorKind, Read as _, Write as _};
    use std::net::{SocketAddr, TcpListener, TcpStream};

    #[test]
    fn new_connections_are_refused_and_a_handshake_that_has_begun_ends() {
        let begin = |(address, local): (&str, &str)| {
            let listener = TcpListener::bind(address).unwrap();
            let to = SocketAddr::new(local.parse().unwrap(), listener.local_addr().unwrap().port());
            let before = TcpStream::connect(to).unwrap();
            // It does not hear the answer to its SYN until the kernel repeats that, after a second.
            let half_open = Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap();
            set_min_ttl_filter(&half_open, true).unwrap();
            half_open.set_nonblocking(true).unwrap();
            half_open.connect(&to.into()).unwrap_err();
            bind_to_no_device(&listener).unwrap();
            assert_eq!(TcpStream::connect(to).unwrap_err().kind(), ErrorKind::ConnectionRefused, "{address}");
            set_min_ttl_filter(&half_open, false).unwrap();
            half_open.set_nonblocking(false).unwrap();
            (listener, before, TcpStream::from(half_open))
        };
        let all =
            [("127.0.0.1:0", "127.0.0.1"), ("0.0.0.0:0", "127.0.0.1"), ("[::1]:0", "::1"), ("[::]:0", "127.0.0.1")];
        for (listener, mut before, mut half_open) in all.map(begin) {
            for client in [&mut before, &mut half_open] {
                let (mut accepted, _) = listener.accept().unwrap();
                client.write_all(b"x").unwrap();
                accepted.read_exact(&mut [0]).unwrap();
            }
        }
    }
}
