//! `SO_PEERNAME`: the peer of a socket, also after a reset.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd};

use socket2::SockRef;

/// Size of `struct sockaddr_in` and of `struct sockaddr_in6`, in bytes (ip(7), ipv6(7)).
const SOCKADDR_IN: usize = 16;
const SOCKADDR_IN6: usize = 28;

/// The peer of a connection. `getpeername` fails once the connection was reset; this option still returns it
/// (`inet_getname`, `net/ipv4/af_inet.c`: only a socket that never had a peer has none).
pub(crate) fn peer_name(socket: impl AsFd) -> Option<SocketAddr> {
    let is_ipv4 = SockRef::from(&socket).local_addr().ok()?.is_ipv4();
    // The kernel refuses a buffer that is longer than the address (`sk_getsockopt`, `net/core/sock.c`).
    let size = if is_ipv4 { SOCKADDR_IN } else { SOCKADDR_IN6 };
    let mut bytes = [0_u8; SOCKADDR_IN6];
    get(&socket, bytes.get_mut(..size)?).ok()?;
    Some(parse(&bytes, is_ipv4))
}

/// Whether the kernel knows the option, tried on a socket without a peer.
pub(super) fn is_known(socket: impl AsFd) -> bool {
    let mut bytes = [0_u8; SOCKADDR_IN];
    let error = get(socket, &mut bytes).err().and_then(|error| error.raw_os_error());
    error == Some(libc::ENOTCONN)
}

fn get(socket: impl AsFd, bytes: &mut [u8]) -> io::Result<()> {
    let mut length = libc::socklen_t::try_from(bytes.len()).unwrap_or(0);
    // SAFETY: the kernel writes at most `length` bytes, the size of `bytes`, plain bytes of which every value is valid.
    // The descriptor is borrowed, hence open.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERNAME,
            bytes.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Port and address are in network byte order, the scope in that of the machine.
fn parse(bytes: &[u8; SOCKADDR_IN6], is_ipv4: bool) -> SocketAddr {
    let port = u16::from_be_bytes([bytes[2], bytes[3]]);
    if is_ipv4 {
        let address = Ipv4Addr::new(bytes[4], bytes[5], bytes[6], bytes[7]);
        return SocketAddr::from((address, port));
    }
    let mut address = [0; 16];
    address.copy_from_slice(&bytes[8..24]);
    let flow = u32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
    let scope = u32::from_ne_bytes([bytes[24], bytes[25], bytes[26], bytes[27]]);
    SocketAddr::V6(SocketAddrV6::new(Ipv6Addr::from(address), port, flow, scope))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};
    use std::time::Duration;

    #[test]
    fn a_peer_has_its_name_before_and_after_it_resets() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            assert_eq!(peer_name(&listener), None);
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (accepted, peer) = listener.accept().unwrap();
            assert_eq!(peer_name(&accepted), Some(peer));
            SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
            drop(client); // over loopback the reset has arrived when this returns
            assert!(accepted.peer_addr().is_err());
            assert_eq!(peer_name(&accepted), Some(peer));
        }
    }
}
