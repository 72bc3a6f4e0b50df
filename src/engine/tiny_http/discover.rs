//! The process's own descriptor table: where the connections are found that tiny_http holds and does not show.
//!
//! There is `unsafe` in six small functions here: a descriptor's number becomes a duplicate of our own, or another file, and the kernel
//! fills in a `tcp_info`, tells and takes an option that no crate knows, and learns which thread to signal. No safe call does any
//! of it within the system calls that a hardened unit allows (`pidfd_getfd` is refused by systemd's `@system-service`,
//! and by container runtimes).
//!
//! A number means nothing by itself: between two looks it may be closed and given to another file. So a number is only
//! ever used to ask for a cookie or to make a duplicate, and the *duplicate* is what is judged.

#![allow(unsafe_code)] // denied everywhere else; the module's text says why here

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt;
use socket2::SockRef;

/// How many unused numbers in a row end a look through the table, where its size is not known (no `/proc`). The lowest
/// free number is given out first, so that gaps are what connections left that have ended: more than this many at
/// once, all below one that lasts, is missed until the gap is filled again.
const LONGEST_GAP: RawFd = 4096;

/// A connection's socket that somebody in this process holds, seen for the first time.
pub(crate) struct DiscoveredSocket {
    pub(crate) socket: OwnedFd,
    pub(crate) peer: SocketAddr,
    pub(crate) cookie: u64,
}

/// What a look through the table saw of the connections that were accepted on one address.
#[derive(Default)]
pub(crate) struct FdScan {
    /// Cookies of all sockets in the table but our own duplicates.
    pub(crate) cookies: HashSet<u64>,
    /// Connections that were not known yet.
    pub(crate) found: Vec<DiscoveredSocket>,
    /// Whether a connection was seen that could not be duplicated, because no descriptor was left.
    pub(crate) exhausted: bool,
    /// How many numbers are in use.
    pub(crate) in_use: u64,
}

/// Looks through the table.
///
/// `ours` says which numbers are our own duplicates (they are passed over), `known` which cookies need no duplicate.
pub(crate) fn look(listen: SocketAddr, ours: impl Fn(RawFd) -> bool, known: impl Fn(u64) -> bool) -> FdScan {
    let mut sighting = FdScan::default();
    let size = table_size();
    let mut gap = 0;
    let mut number: RawFd = 3; // 0, 1 and 2 are the standard streams, or what the caller made of them
    while size.map_or(gap < LONGEST_GAP, |size| number < size) {
        let this = number;
        number += 1;
        if ours(this) {
            gap = 0;
            sighting.in_use += 1;
            continue;
        }
        match cookie(this) {
            Ok(cookie) => {
                gap = 0;
                sighting.in_use += 1;
                if sighting.cookies.insert(cookie) && !known(cookie) {
                    match identify(this, listen) {
                        Ok(Some(found)) => sighting.found.push(found),
                        Ok(None) => {}
                        Err(_) => sighting.exhausted = true,
                    }
                }
            }
            Err(Errno::BADF) => gap += 1,
            Err(_) => {
                gap = 0; // in use, and no socket
                sighting.in_use += 1;
            }
        }
    }
    sighting
}

/// The connection behind `number`, duplicated, if it is one that was accepted on `listen`.
///
/// # Errors
///
/// No descriptor is left for the duplicate.
fn identify(number: RawFd, listen: SocketAddr) -> io::Result<Option<DiscoveredSocket>> {
    let socket = match duplicate(number) {
        Ok(socket) => socket,
        Err(Errno::MFILE) => return Err(Errno::MFILE.into()),
        Err(_) => return Ok(None), // closed meanwhile
    };
    let reference = SockRef::from(&socket);
    let (Ok(local), Ok(peer), Ok(cookie)) = (reference.local_addr(), reference.peer_addr(), reference.cookie()) else {
        return Ok(None); // no connection (listening, or reset already), or no internet socket
    };
    let (Some(local), Some(peer)) = (local.as_socket(), peer.as_socket()) else {
        return Ok(None);
    };
    // Ours are those whose own end is the listening port; a client of this process has it at the other end.
    if local.port() != listen.port() || !(listen.ip().is_unspecified() || listen.ip() == local.ip()) {
        return Ok(None);
    }
    Ok(Some(DiscoveredSocket { socket, peer, cookie }))
}

/// Raises the limit on descriptors to the most that is allowed.
pub(crate) fn raise_nofile_limit() -> u64 {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum });
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Whether so few descriptors are left that no more connections should be taken: an eighth, 32 at least.
pub(crate) fn under_fd_pressure(in_use: u64) -> bool {
    use rustix::process::{Resource, getrlimit};
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    limit.saturating_sub(in_use) < (limit / 8).clamp(32, 1024)
}

/// How many numbers the table can hold at present, from `/proc/self/status` (`FDSize`, `proc_pid_status(5)`).
fn table_size() -> Option<RawFd> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    status.lines().find_map(|line| line.strip_prefix("FDSize:"))?.trim().parse().ok()
}

fn cookie(number: RawFd) -> Result<u64, Errno> {
    with_number(number, |fd| sockopt::socket_cookie(fd))
}

fn duplicate(number: RawFd) -> Result<OwnedFd, Errno> {
    with_number(number, |fd| rustix::io::fcntl_dupfd_cloexec(fd, 3))
}

/// Asks the kernel something about a descriptor of which only the number is known.
fn with_number<T>(number: RawFd, ask: impl FnOnce(BorrowedFd<'_>) -> Result<T, Errno>) -> Result<T, Errno> {
    // SAFETY: `borrow_raw` wants a descriptor that stays open while it is borrowed, because code that relies on *which*
    // file it is must not be fooled. Nothing here relies on it: `ask` is one system call that reads a socket option or
    // makes a duplicate. If the number is closed the kernel says EBADF; if it was given to another file meanwhile, the
    // answer is about that file, and callers judge it by what the answer itself says (module text).
    // -1 is the one value that is not allowed, and numbers here start at 3.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    ask(fd)
}

/// A descriptor that was passed to this process by its number: a duplicate. What was passed is closed at the next `exec`.
///
/// # Errors
///
/// The number is not in use, or no descriptor is left.
pub(crate) fn passed(number: RawFd) -> io::Result<OwnedFd> {
    let duplicate = duplicate(number)?;
    with_number(number, |fd| rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::CLOEXEC))?;
    Ok(duplicate)
}

/// Puts another file under a number that holds the socket with this cookie; a call that waits on that socket goes on.
///
/// # Errors
///
/// The number holds something else by now.
pub(crate) fn replace(number: RawFd, expected: u64, by: &OwnedFd) -> io::Result<()> {
    if cookie(number) != Ok(expected) {
        return Err(io::ErrorKind::NotFound.into());
    }
    // SAFETY: `dup2` wants to own the number, since it closes what was there. The socket there is one that we made and
    // gave to tiny_http, which uses it for nothing but `accept`, and closes it when its accept thread ends: with the file
    // that is there then. The owner made here is forgotten, so that nothing is closed twice.
    let mut target = std::mem::ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(number) });
    rustix::io::dup3(by, &mut target, rustix::io::DupFlags::CLOEXEC)?;
    Ok(())
}

/// What the kernel says of a TCP socket (`struct tcp_info`, linux/tcp.h; only ever extended at its end).
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct TcpInfo {
    /// `TCP_CLOSE` (7) once both ends are done with it.
    pub(crate) closed: bool,
    /// `TCP_CLOSE_WAIT` (8): the peer has sent its end, and we have not.
    pub(crate) peer_left: bool,
    /// Of a listening socket: connections that wait to be accepted.
    pub(crate) accept_queue_len: u32,
    /// Bytes received so far.
    pub(crate) received: u64,
    /// Whether everything that was written has been acknowledged.
    pub(crate) all_acknowledged: bool,
    /// Milliseconds since bytes last arrived.
    pub(crate) quiet_ms: u32,
    /// The shortest time that it took to be acknowledged; zero if nothing was.
    pub(crate) round_trip: Duration,
}

/// As much of `struct tcp_info` as is read here, in 8-byte words: up to `tcpi_min_rtt`, at byte 148.
type RawTcpInfo = [u64; 19];

/// Reads [`TcpInfo`].
///
/// # Errors
///
/// The descriptor is no TCP socket.
pub(crate) fn tcp_info(socket: impl AsFd) -> io::Result<TcpInfo> {
    const TCP_CLOSE: u8 = 7; // net/tcp_states.h
    const TCP_CLOSE_WAIT: u8 = 8;
    let info = raw_tcp_info(socket.as_fd())?;
    let byte = |at: usize| info[at / 8].to_ne_bytes()[at % 8];
    let word = |at: usize| u32::from_ne_bytes([byte(at), byte(at + 1), byte(at + 2), byte(at + 3)]);
    let unacked = word(24); // segments in flight; of a listening socket, the length of its queue
    Ok(TcpInfo {
        closed: byte(0) == TCP_CLOSE,
        peer_left: byte(0) == TCP_CLOSE_WAIT,
        accept_queue_len: unacked,
        received: info[16], // tcpi_bytes_received, at byte 128
        all_acknowledged: unacked == 0 && word(144) == 0,
        quiet_ms: word(52), // tcpi_last_data_recv
        round_trip: Duration::from_micros(match word(148) {
            u32::MAX => 0,
            shortest => u64::from(shortest),
        }),
    })
}

fn raw_tcp_info(socket: BorrowedFd<'_>) -> io::Result<RawTcpInfo> {
    let mut info = RawTcpInfo::default();
    let mut length = libc::socklen_t::try_from(size_of::<RawTcpInfo>()).unwrap_or(0);
    // SAFETY: the kernel writes at most `length` bytes, which is the size of `info`, into plain integers for which every
    // pattern of bits is a value; what an older kernel does not write stays 0. The descriptor is borrowed, hence open.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, (&raw mut info).cast(), &raw mut length)
    };
    if result == 0 { Ok(info) } else { Err(io::Error::last_os_error()) }
}

/// Makes the kernel ignore what arrives for a socket, or heed it again, by the least time to live that a packet must
/// have (`IP_MINTTL`, ip(7); `IPV6_MINHOPCOUNT`). Packets start with 64 on Linux, so that 255 ignores all but those of a
/// sender who asks for 255. No privilege is needed, as it is for a socket filter on TCP since Linux 6.18.
///
/// On a listening socket: no new connection, while a handshake that has begun goes on (`net/ipv4/tcp_ipv4.c`,
/// `tcp_v4_rcv`, looks at it where a listening or established socket was found, not for one half open).
///
/// # Errors
///
/// The system does not know the option (IPv6 before Linux 2.6.35), or the socket is no internet socket.
pub(crate) fn set_min_ttl_filter(socket: impl AsFd, ignore: bool) -> io::Result<()> {
    let least = if ignore { 255 } else { 0 };
    let v4 = set_option(socket.as_fd(), libc::IPPROTO_IP, libc::IP_MINTTL, least);
    match SockRef::from(&socket).local_addr()?.as_socket() {
        // A socket for both sees packets of both.
        Some(SocketAddr::V6(_)) => set_option(socket.as_fd(), libc::IPPROTO_IPV6, IPV6_MINHOPCOUNT, least),
        _ => v4,
    }
}

/// Whether arrivals are ignored for a socket.
pub(crate) fn has_min_ttl_filter(socket: impl AsFd) -> bool {
    let socket = socket.as_fd();
    let mut least: libc::c_int = 0;
    let mut length = libc::socklen_t::try_from(size_of_val(&least)).unwrap_or(0);
    let (level, name) = match SockRef::from(&socket).local_addr().ok().and_then(|local| local.as_socket()) {
        Some(SocketAddr::V6(_)) => (libc::IPPROTO_IPV6, IPV6_MINHOPCOUNT),
        _ => (libc::IPPROTO_IP, libc::IP_MINTTL),
    };
    let (least_at, length_at) = ((&raw mut least).cast(), &raw mut length);
    // SAFETY: the kernel writes at most `length` bytes, the size of `least`, an integer. The descriptor is open.
    let result = unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, least_at, length_at) };
    result == 0 && least > 0
}

const IPV6_MINHOPCOUNT: libc::c_int = 73; // linux/in6.h

/// Has the kernel send SIGIO to the calling thread whenever something happens on a socket, or stops it (fcntl(2),
/// `F_SETOWN_EX` and `O_ASYNC`).
///
/// This is the one way to learn of a new connection on a listening socket in whose `accept` another thread waits: `poll`
/// and `epoll` look again after they were woken, find that the connection has been taken, and go on sleeping.
///
/// # Errors
///
/// The system refuses.
pub(crate) fn set_sigio(socket: impl AsFd, on: bool) -> io::Result<()> {
    use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
    let socket = socket.as_fd();
    let asynchronous = OFlags::from_bits_retain(u32::try_from(libc::O_ASYNC).unwrap_or(0));
    let flags = fcntl_getfl(socket)?;
    if on {
        set_owner(socket)?;
        fcntl_setfl(socket, flags | asynchronous)?;
    } else {
        fcntl_setfl(socket, flags - asynchronous)?;
    }
    Ok(())
}

/// The most that a peer may send ahead (`TCP_WINDOW_CLAMP`, tcp(7)): a receive buffer that grows does not raise it.
///
/// # Errors
///
/// The socket is no TCP socket.
pub(crate) fn set_window_clamp(socket: impl AsFd, bytes: usize) -> io::Result<()> {
    let bytes = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
    set_option(socket.as_fd(), libc::IPPROTO_TCP, libc::TCP_WINDOW_CLAMP, bytes)
}

fn set_owner(socket: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct Owner {
        kind: libc::c_int,
        id: libc::pid_t,
    }
    const F_SETOWN_EX: libc::c_int = 15; // asm-generic/fcntl.h
    const F_OWNER_TID: libc::c_int = 0;
    let owner = Owner { kind: F_OWNER_TID, id: rustix::thread::gettid().as_raw_nonzero().get() };
    // SAFETY: for this command the kernel reads a `struct f_owner_ex` from the pointer, which is laid out as `Owner` and
    // lives until the call returns. The descriptor is borrowed, hence open.
    let result = unsafe { libc::fcntl(socket.as_raw_fd(), F_SETOWN_EX, &raw const owner) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn set_option(socket: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of_val(&value)).unwrap_or(0);
    // SAFETY: the kernel reads `length` bytes, the size of `value`, which lives until the call returns. The descriptor is
    // borrowed, hence open.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn a_connection_that_somebody_else_holds_is_found_once_and_known_after() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let client = TcpStream::connect(address).unwrap();
        let (held, peer) = listener.accept().unwrap();
        let clone = held.try_clone().unwrap();

        let sighting = look(address, |_| false, |_| false);
        assert_eq!(sighting.found.len(), 1, "the client's end and the listener are not connections of ours");
        let found = &sighting.found[0];
        assert_eq!((found.peer, found.peer), (peer, client.local_addr().unwrap()));

        let ours = found.socket.as_raw_fd();
        let again = look(address, |number| number == ours, |cookie| cookie == found.cookie);
        assert!(again.found.is_empty());
        assert!(again.cookies.contains(&found.cookie), "the holder still has it");

        drop((held, clone));
        let gone = look(address, |number| number == ours, |_| true);
        assert!(!gone.cookies.contains(&found.cookie), "only our duplicate is left");
    }

    #[test]
    fn the_kernel_tells_what_arrived_and_what_waits_to_be_accepted() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert_eq!(tcp_info(&listener).unwrap().accept_queue_len, 1);
        let (held, _) = listener.accept().unwrap();
        assert_eq!(tcp_info(&listener).unwrap().accept_queue_len, 0);
        client.write_all(b"hello").unwrap();
        let facts = tcp_info(&held).unwrap();
        assert_eq!((facts.received, facts.closed, facts.all_acknowledged), (5, false, true));
    }
}
