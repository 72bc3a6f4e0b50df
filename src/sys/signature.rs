//! TCP signatures (RFC 2385, `TCP_MD5SIG_EXT`): a listening socket that asks for them drops every SYN without one, whatever
//! its TTL is.
//!
//! The kernel looks for a signature in each packet to a socket that has a key for its sender, a listening one and its
//! half-open connections included (`tcp_inbound_hash`, `net/ipv4/tcp_ipv4.c`). Connections that are established keep what
//! they had. No privilege is needed. Since Linux 4.13, where the kernel is built with `CONFIG_TCP_MD5SIG`, as those of
//! distributions are.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;

use socket2::SockRef;

use super::sockopt;

const TCP_MD5SIG_EXT: libc::c_int = 32; // linux/tcp.h
const TCP_MD5SIG_FLAG_PREFIX: u8 = 1; // linux/tcp.h: the address is that of a network

/// `struct tcp_md5sig` (linux/tcp.h), in bytes: an address of 128 bytes, flags, prefix length, key length, interface, and
/// 80 bytes for a key.
const SIZE: usize = 216;

/// No secret: the key only has to be one that clients do not have.
const KEY: &[u8] = b"allout";

/// Makes a socket sign what it sends, and drop what is not signed, to and from all addresses.
///
/// # Errors
///
/// The kernel does not know the option, or the socket is no TCP socket.
pub(crate) fn require(socket: impl AsFd) -> io::Result<()> {
    let local = SockRef::from(&socket).local_addr()?.as_socket();
    let set = |address: IpAddr| sockopt::set_bytes(socket.as_fd(), libc::IPPROTO_TCP, TCP_MD5SIG_EXT, &every(address));
    match local {
        Some(SocketAddr::V6(_)) => {
            set(Ipv6Addr::UNSPECIFIED.into())?;
            // A dual-stack socket looks up the keys of IPv4 apart.
            set(Ipv4Addr::UNSPECIFIED.to_ipv6_mapped().into())
        }
        _ => set(Ipv4Addr::UNSPECIFIED.into()),
    }
}

/// The key for every address of the family of `address`.
fn every(address: IpAddr) -> [u8; SIZE] {
    let mut bytes = [0; SIZE];
    match address {
        IpAddr::V4(_) => put(&mut bytes, 0, &family(libc::AF_INET)),
        IpAddr::V6(address) => {
            put(&mut bytes, 0, &family(libc::AF_INET6));
            put(&mut bytes, 8, &address.octets()); // sin6_addr, after port and flow
        }
    }
    bytes[128] = TCP_MD5SIG_FLAG_PREFIX; // the prefix length behind it is 0
    put(&mut bytes, 130, &u16::try_from(KEY.len()).unwrap_or(0).to_ne_bytes());
    put(&mut bytes, 136, KEY);
    bytes
}

fn family(number: libc::c_int) -> [u8; 2] {
    u16::try_from(number).unwrap_or(0).to_ne_bytes()
}

fn put(bytes: &mut [u8], at: usize, what: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + what.len()) {
        place.copy_from_slice(what);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use socket2::{Domain, Type};
    use std::net::{TcpListener, TcpStream};
    use std::time::Duration;

    /// In vain.
    const SOON: Duration = Duration::from_millis(300);

    #[test]
    fn only_signed_connections_reach_a_socket_that_asks_for_signatures() {
        for address in ["127.0.0.1:0", "[::1]:0", "[::]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let port = listener.local_addr().unwrap().port();
            let to = SocketAddr::new(if address.starts_with('[') { "::1" } else { "127.0.0.1" }.parse().unwrap(), port);
            let before = TcpStream::connect(to).unwrap();
            require(&listener).unwrap();
            for local in ["127.0.0.1", "::1"] {
                let to = SocketAddr::new(local.parse().unwrap(), port);
                assert!(TcpStream::connect_timeout(&to, SOON).is_err(), "{address} from {local}");
            }
            listener.accept().unwrap();
            drop(before);
            let own = socket2::Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap();
            require(&own).unwrap();
            own.connect_timeout(&to.into(), SOON).unwrap();
            listener.accept().unwrap();
        }
    }
}
