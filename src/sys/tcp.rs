//! TCP sockets: `TCP_INFO`, `TCP_WINDOW_CLAMP`, `FIONREAD`, `SIOCOUTQ`.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use super::sockopt;

/// Part of the kernel's `struct tcp_info` (linux/tcp.h; only ever extended at its end).
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct TcpInfo {
    /// State `TCP_CLOSE` (7): both directions are shut, or the connection was reset.
    pub(crate) closed: bool,
    /// State `TCP_CLOSE_WAIT` (8): the peer has sent its FIN, and this end has not.
    pub(crate) close_wait: bool,
    /// State `TCP_CLOSE_WAIT` or `TCP_LAST_ACK` (9): the peer has sent its FIN before this end did.
    pub(crate) peer_closed_first: bool,
    /// Of a listening socket: connections that wait to be accepted.
    pub(crate) accept_queue: u32,
    /// Bytes received so far; the FIN counts as one.
    pub(crate) bytes_received: u64,
    /// Whether everything that was written has been acknowledged.
    pub(crate) all_acknowledged: bool,
    /// Milliseconds since bytes last arrived.
    pub(crate) ms_since_data: u32,
    /// The shortest round trip measured; zero if no packet of ours was acknowledged.
    pub(crate) min_rtt: Duration,
    /// Whether data was written, sent or not.
    pub(crate) has_sent: bool,
}

/// The first 160 bytes of `struct tcp_info`, as 8-byte words: up to `tcpi_data_segs_out`, at byte 156.
type RawTcpInfo = [u64; 20];

/// Reads [`TcpInfo`].
/// Errors: the descriptor is no TCP socket.
pub(crate) fn tcp_info(socket: impl AsFd) -> io::Result<TcpInfo> {
    const TCP_CLOSE: u8 = 7; // net/tcp_states.h
    const TCP_CLOSE_WAIT: u8 = 8;
    const TCP_LAST_ACK: u8 = 9;
    let mut info = RawTcpInfo::default();
    raw_tcp_info(socket.as_fd(), &mut info)?;
    let byte = |at: usize| info[at / 8].to_ne_bytes()[at % 8];
    let word = |at: usize| u32::from_ne_bytes([byte(at), byte(at + 1), byte(at + 2), byte(at + 3)]);
    let unacked = word(24); // tcpi_unacked: segments in flight; of a listening socket, the length of its accept queue
    Ok(TcpInfo {
        closed: byte(0) == TCP_CLOSE,
        close_wait: byte(0) == TCP_CLOSE_WAIT,
        peer_closed_first: matches!(byte(0), TCP_CLOSE_WAIT | TCP_LAST_ACK),
        accept_queue: unacked,
        bytes_received: info[16],                         // tcpi_bytes_received, at byte 128
        all_acknowledged: unacked == 0 && word(144) == 0, // tcpi_notsent_bytes
        ms_since_data: word(52),                          // tcpi_last_data_recv
        min_rtt: Duration::from_micros(match word(148) {
            u32::MAX => 0, // not measured yet
            shortest => u64::from(shortest),
        }),
        has_sent: unacked > 0 || word(144) > 0 || word(156) > 0, // tcpi_data_segs_out
    })
}

/// Whether the kernel knows all fields of [`TcpInfo`].
pub(super) fn has_all_of_tcp_info(socket: impl AsFd) -> bool {
    raw_tcp_info(socket.as_fd(), &mut RawTcpInfo::default()).is_ok_and(|length| length == size_of::<RawTcpInfo>())
}

/// Reads as much as the kernel knows, and returns how many bytes that is.
fn raw_tcp_info(socket: BorrowedFd<'_>, info: &mut RawTcpInfo) -> io::Result<usize> {
    let mut length = libc::socklen_t::try_from(size_of::<RawTcpInfo>()).unwrap_or(0);
    // SAFETY: the kernel writes at most `length` bytes, the size of `info`, into integers, of which every bit pattern
    // is a value; what an older kernel does not write stays 0. The descriptor is borrowed, hence open.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut *info).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(usize::try_from(length).unwrap_or(0)) } else { Err(io::Error::last_os_error()) }
}

/// Sets the largest receive window, in bytes, that is advertised to the peer (`TCP_WINDOW_CLAMP`, tcp(7)): a receive
/// buffer that grows does not raise it.
/// Errors: the socket is no TCP socket.
pub(crate) fn set_window_clamp(socket: impl AsFd, bytes: usize) -> io::Result<()> {
    let bytes = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
    sockopt::set(socket.as_fd(), libc::IPPROTO_TCP, libc::TCP_WINDOW_CLAMP, bytes)
}

/// Lets the kernel choose the receive buffer again after it was set (`SO_BUF_LOCK`, include/uapi/asm-generic/socket.h).
/// Errors: the kernel is older than 5.14.
pub(crate) fn release_receive_buffer(socket: impl AsFd) -> io::Result<()> {
    const SO_BUF_LOCK: libc::c_int = 72;
    sockopt::set(socket.as_fd(), libc::SOL_SOCKET, SO_BUF_LOCK, 0)
}

/// Bytes that have arrived and that were not read (`FIONREAD`); zero if the kernel does not say.
pub(crate) fn unread_bytes(socket: impl AsFd) -> u64 {
    rustix::io::ioctl_fionread(socket).unwrap_or(0)
}

/// Bytes that were written and that the peer has not acknowledged (`SIOCOUTQ`, tcp(7)); of a Unix socket, memory of what it
/// has not read (unix(7)). Zero if the kernel does not say.
pub(crate) fn unacknowledged_bytes(socket: impl AsFd) -> u64 {
    let mut count: libc::c_int = 0;
    // SAFETY: the kernel writes one integer, into `count`. The descriptor is borrowed, hence open. `TIOCOUTQ` is the same
    // number (include/uapi/linux/sockios.h).
    let result = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut count) };
    if result == 0 { u64::try_from(count).unwrap_or(0) } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn tcp_info_shows_received_bytes_and_the_accept_queue() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert_eq!(tcp_info(&listener).unwrap().accept_queue, 1);
        let (held, _) = listener.accept().unwrap();
        assert_eq!(tcp_info(&listener).unwrap().accept_queue, 0);
        client.write_all(b"hello").unwrap();
        let info = tcp_info(&held).unwrap();
        assert_eq!((info.bytes_received, info.closed, info.all_acknowledged), (5, false, true));
        assert_eq!(unread_bytes(&held), 5);
    }
}
