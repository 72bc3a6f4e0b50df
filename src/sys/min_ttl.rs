//! A packet filter of one socket, by the least time to live that an arriving packet must have: `IP_MINTTL` (ip(7)) and
//! `IPV6_MINHOPCOUNT`.
//!
//! Packets start with a TTL of 64 on Linux and 128 on Windows, so a minimum of 255 drops all but those of a sender on
//! the same link that sets 255. No privilege is needed, as it is for a socket filter on TCP since Linux 6.18.
//!
//! On a listening socket: no new connection, while a handshake that has begun goes on (`net/ipv4/tcp_ipv4.c`,
//! `tcp_v4_rcv` checks it where a listening or established socket was found, not for a half-open one). On a connection:
//! no byte and no acknowledgement; the peer keeps what it sent, and retransmits it. Accepted sockets inherit it.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;

use socket2::SockRef;

use super::sockopt;

/// The greatest TTL there is.
const ALL_BUT_255: libc::c_int = 255;
const IPV6_MINHOPCOUNT: libc::c_int = 73; // linux/in6.h

/// Switches the filter of a socket on or off.
/// Errors: the system does not know the option (IPv6 before Linux 2.6.35), or the socket is no internet socket.
pub(crate) fn set_min_ttl_filter(socket: impl AsFd, on: bool) -> io::Result<()> {
    let least = if on { ALL_BUT_255 } else { 0 };
    let v4 = sockopt::set(socket.as_fd(), libc::IPPROTO_IP, libc::IP_MINTTL, least);
    match SockRef::from(&socket).local_addr()?.as_socket() {
        // A dual-stack socket sees packets of both protocols.
        Some(SocketAddr::V6(_)) => sockopt::set(socket.as_fd(), libc::IPPROTO_IPV6, IPV6_MINHOPCOUNT, least),
        _ => v4,
    }
}

/// Whether the filter of a socket is on.
pub(crate) fn has_min_ttl_filter(socket: impl AsFd) -> bool {
    get(&socket, libc::IP_MINTTL, IPV6_MINHOPCOUNT).is_ok_and(|least| least > 0)
}

/// Whether the packets of an accepted connection's client pass the filter: whether the packet that ended the handshake
/// had a TTL of 255. A connection keeps that TTL in the field that other sockets use for multicast packets (`mc_ttl`
/// and `mcast_hops` in `tcp_v4_syn_recv_sock` and `tcp_v6_syn_recv_sock`, `net/ipv4/tcp_ipv4.c` and
/// `net/ipv6/tcp_ipv6.c`).
pub(crate) fn passes_min_ttl_filter(socket: impl AsFd) -> bool {
    get(&socket, libc::IP_MULTICAST_TTL, libc::IPV6_MULTICAST_HOPS).is_ok_and(|ttl| ttl == ALL_BUT_255)
}

/// The option of the socket's protocol.
fn get(socket: &impl AsFd, v4: libc::c_int, v6: libc::c_int) -> io::Result<libc::c_int> {
    match SockRef::from(socket).local_addr()?.as_socket() {
        Some(SocketAddr::V6(_)) => sockopt::get(socket.as_fd(), libc::IPPROTO_IPV6, v6),
        _ => sockopt::get(socket.as_fd(), libc::IPPROTO_IP, v4),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use socket2::{Domain, Socket, Type};
    use std::net::TcpListener;

    #[test]
    fn the_filter_is_seen_where_it_was_set() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            assert!(!has_min_ttl_filter(&listener));
            set_min_ttl_filter(&listener, true).unwrap();
            assert!(has_min_ttl_filter(&listener), "{address}");
            set_min_ttl_filter(&listener, false).unwrap();
            assert!(!has_min_ttl_filter(&listener), "{address}");
        }
    }

    #[test]
    fn a_connection_shows_whether_its_client_passes_the_filter() {
        for (address, local) in [("127.0.0.1:0", "127.0.0.1"), ("[::1]:0", "::1"), ("[::]:0", "127.0.0.1")] {
            let listener = TcpListener::bind(address).unwrap();
            let to = SocketAddr::new(local.parse().unwrap(), listener.local_addr().unwrap().port());
            for passes in [false, true] {
                let client = Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap();
                if passes {
                    if to.is_ipv4() { client.set_ttl_v4(255) } else { client.set_unicast_hops_v6(255) }.unwrap();
                }
                client.connect(&to.into()).unwrap();
                let (accepted, _) = listener.accept().unwrap();
                assert_eq!(passes_min_ttl_filter(&accepted), passes, "{address}");
            }
        }
    }
}
