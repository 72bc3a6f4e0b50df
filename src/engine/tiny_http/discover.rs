//! Finds the sockets of tiny_http's connections, which it does not show, by a scan of the process's descriptor table.

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{OwnedFd, RawFd};

use rustix::io::Errno;
use socket2::SockRef;

use crate::sys::fd::{cookie, duplicate};
use crate::sys::peer_name::peer_name;

/// Without `/proc` the size of the table is unknown: the scan stops after this many unused descriptors in a row. The
/// lowest free fd is given out first, so a live descriptor above a larger gap is missed until lower ones are reused.
const MAX_FD_GAP: RawFd = 4096;

/// The socket of a connection, seen for the first time.
pub(crate) struct DiscoveredSocket {
    /// A duplicate of our own.
    pub(crate) socket: OwnedFd,
    pub(crate) peer: SocketAddr,
    /// `SO_COOKIE`: the identity of the socket.
    pub(crate) cookie: u64,
}

/// The result of a scan.
#[derive(Default)]
pub(crate) struct FdScan {
    /// Cookies of all sockets in the table but our own duplicates.
    pub(crate) cookies: HashSet<u64>,
    /// Connections that were not known yet.
    pub(crate) found: Vec<DiscoveredSocket>,
    /// Whether a connection was seen that could not be duplicated, because no descriptor was left.
    pub(crate) exhausted: bool,
    /// Descriptors in use.
    pub(crate) in_use: u64,
    /// Descriptors in use that are neither tiny_http's connections nor our duplicates of them.
    pub(crate) others: u64,
}

/// Scans the table for connections that were accepted on `listen`.
///
/// `ours`: whether a number is one of our own duplicates, which are skipped; `known`: whether a cookie needs no
/// duplicate.
pub(crate) fn scan(listen: SocketAddr, ours: impl Fn(RawFd) -> bool, known: impl Fn(u64) -> bool) -> FdScan {
    let mut result = FdScan { others: 3, ..FdScan::default() };
    let mut new = HashSet::new();
    let size = table_size();
    let mut gap = 0;
    let mut fd: RawFd = 3; // 0, 1 and 2 are the standard streams
    while size.map_or(gap < MAX_FD_GAP, |size| fd < size) {
        let this = fd;
        fd += 1;
        if ours(this) {
            gap = 0;
            result.in_use += 1;
            continue;
        }
        match cookie(this) {
            Ok(cookie) => {
                gap = 0;
                result.in_use += 1;
                let is_known = known(cookie);
                if result.cookies.insert(cookie) && !is_known {
                    match identify(this, listen) {
                        Ok(None) => {}
                        Ok(Some(found)) => {
                            new.insert(found.cookie);
                            result.found.push(found);
                        }
                        Err(_) => result.exhausted = true,
                    }
                }
                result.others += u64::from(!is_known && !new.contains(&cookie));
            }
            Err(Errno::BADF) => gap += 1,
            Err(_) => {
                gap = 0; // in use, but no socket
                result.in_use += 1;
                result.others += 1;
            }
        }
    }
    result
}

/// A duplicate of the connection behind `fd`, also of one that was reset, if it was accepted on `listen`.
/// Errors: no descriptor is left for the duplicate.
fn identify(fd: RawFd, listen: SocketAddr) -> io::Result<Option<DiscoveredSocket>> {
    let socket = match duplicate(fd) {
        Ok(socket) => socket,
        Err(Errno::MFILE) => return Err(Errno::MFILE.into()),
        Err(_) => return Ok(None), // closed meanwhile
    };
    let reference = SockRef::from(&socket);
    let (Ok(local), Ok(cookie)) = (reference.local_addr(), reference.cookie()) else { return Ok(None) };
    // An accepted connection has the listening port at its own end; a client within this process has it at the other.
    let is_ours = local.as_socket().is_some_and(|local| {
        // It has the family of its listening socket, also where that is `[::]` and the client speaks IPv4. Another engine
        // may listen on the same port of the other family.
        local.port() == listen.port()
            && local.is_ipv4() == listen.is_ipv4()
            && (listen.ip().is_unspecified() || listen.ip() == local.ip())
    });
    // A listening socket has no peer.
    let peer = if is_ours { peer_name(&socket) } else { None };
    Ok(peer.map(|peer| DiscoveredSocket { socket, peer, cookie }))
}

/// The size of the descriptor table, from `/proc/self/status` (`FDSize`, `proc_pid_status(5)`).
fn table_size() -> Option<RawFd> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    status.lines().find_map(|line| line.strip_prefix("FDSize:"))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd;

    #[test]
    fn a_connection_is_found_once_and_known_after() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let client = TcpStream::connect(address).unwrap();
        let (held, peer) = listener.accept().unwrap();
        let clone = held.try_clone().unwrap();

        let first = scan(address, |_| false, |_| false);
        assert_eq!(first.found.len(), 1, "the client's end and the listener are not connections of ours");
        let found = &first.found[0];
        assert_eq!((found.peer, found.peer), (peer, client.local_addr().unwrap()));

        let ours = found.socket.as_raw_fd();
        let again = scan(address, |fd| fd == ours, |cookie| cookie == found.cookie);
        assert!(again.found.is_empty());
        assert!(again.cookies.contains(&found.cookie), "the holder still has it");

        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(scan(other.local_addr().unwrap(), |_| false, |_| false).found.is_empty());

        drop((held, clone));
        let gone = scan(address, |fd| fd == ours, |_| true);
        assert!(!gone.cookies.contains(&found.cookie), "only our duplicate is left");
    }

    #[test]
    fn a_connection_belongs_to_the_listening_socket_of_its_family() {
        let v4 = TcpListener::bind("0.0.0.0:0").unwrap();
        let port = v4.local_addr().unwrap().port();
        let v6 = socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::STREAM, None).unwrap();
        v6.set_only_v6(true).unwrap();
        let address = SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, port));
        v6.bind(&address.into()).unwrap();
        v6.listen(1).unwrap();
        let _client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let _held = v4.accept().unwrap();
        let found = |listen| scan(listen, |_| false, |_| false).found.len();
        assert_eq!((found(v4.local_addr().unwrap()), found(address)), (1, 0));
    }

    #[test]
    fn a_connection_that_was_reset_before_it_was_found_has_its_peer_all_the_same() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let client = TcpStream::connect(address).unwrap();
        let (_held, peer) = listener.accept().unwrap();
        SockRef::from(&client).set_linger(Some(std::time::Duration::ZERO)).unwrap();
        drop(client); // over loopback the reset has arrived when this returns
        let seen = scan(address, |_| false, |_| false);
        assert_eq!(seen.found.iter().map(|found| found.peer).collect::<Vec<_>>(), [peer]);
    }
}
