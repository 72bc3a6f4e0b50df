//! Kernel behaviour on which the argument that nothing is lost relies. The program is not run here: if one of these fails,
//! the argument does not hold on this kernel.

#![allow(clippy::expect_used, clippy::panic, reason = "a test says what it expects by panicking")]

use socket2::{Domain, SockFilter, SockRef, Socket, Type};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(20);

/// The kernel's words for classic BPF: load a byte, mask it, compare it, return.
const LOAD_BYTE: u16 = 0x30;
const AND: u16 = 0x54;
const JUMP_IF_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;

/// Flags of TCP.
const SYN: u32 = 0x02;
const ACK: u32 = 0x10;

/// Drops the segments with an ACK and no SYN.
fn drops_acknowledgements() -> [SockFilter; 5] {
    [
        SockFilter::new(LOAD_BYTE, 0, 0, 13),
        SockFilter::new(AND, 0, 0, SYN | ACK),
        SockFilter::new(JUMP_IF_EQUAL, 0, 1, ACK),
        SockFilter::new(RETURN, 0, 0, 0),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
    ]
}

fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let addr = listener.local_addr().expect("a bound socket has an address");
    (listener, addr)
}

/// Accepts within the limit, or does not.
fn accept(listener: &TcpListener, limit: Duration) -> Option<TcpStream> {
    listener.set_nonblocking(true).expect("a socket option");
    let deadline = Instant::now() + limit;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false).expect("a socket option");
                return Some(stream);
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => return None,
            Err(e) => panic!("accepting: {e}"),
        }
    }
}

fn read_text(stream: &mut TcpStream) -> std::io::Result<String> {
    stream.set_read_timeout(Some(LIMIT))?;
    let mut bytes = [0u8; 16];
    let n = stream.read(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes[..n]).into_owned())
}

/// A client that considers itself connected, while the server's kernel has not received the last ACK of the handshake.
/// On a network this lasts for half a round trip; here a packet filter drops that ACK.
fn half_open() -> (TcpListener, TcpStream) {
    let (listener, addr) = listener();
    SockRef::from(&listener).attach_filter(&drops_acknowledgements()).expect("a filter");
    let client = TcpStream::connect(addr).expect("connecting");
    assert!(accept(&listener, Duration::from_millis(50)).is_none(), "the handshake is over");
    (listener, client)
}

#[test]
fn closing_a_listener_resets_what_it_has_queued() {
    let (listener, addr) = listener();
    let mut client = TcpStream::connect(addr).expect("connecting");
    client.write_all(b"request").expect("the kernel takes it");
    drop(listener);
    assert_eq!(read_text(&mut client).map_err(|e| e.kind()), Err(ErrorKind::ConnectionReset));
}

#[test]
fn a_connection_may_outlive_its_listener() {
    let (listener, addr) = listener();
    let mut client = TcpStream::connect(addr).expect("connecting");
    set_min_ttl_filter(&listener, true);
    let mut accepted = accept(&listener, LIMIT).expect("it was queued");
    set_min_ttl_filter(&accepted, false);
    drop(listener);
    client.write_all(b"request").expect("the kernel takes it");
    assert_eq!(read_text(&mut accepted).expect("the request"), "request");
}

/// The filter of the gate (`IP_MINTTL`, ip(7)): packets start with a TTL of 64.
fn set_min_ttl_filter(socket: &impl AsFd, on: bool) {
    sockopt::set_ip_minttl(socket, if on { 255 } else { 0 });
}

#[test]
fn a_minimum_ttl_keeps_new_connections_out_and_leaves_the_queue_alone() {
    let (listener, addr) = listener();
    let mut queued = TcpStream::connect(addr).expect("connecting");
    set_min_ttl_filter(&listener, true);
    let refused = TcpStream::connect_timeout(&addr, Duration::from_millis(200)).map_err(|e| e.kind());
    assert_eq!(refused.map(|_| ()), Err(ErrorKind::TimedOut));
    queued.write_all(b"request").expect("the kernel takes it");
    let mut accepted = accept(&listener, LIMIT).expect("it was queued");
    assert_eq!(read_text(&mut accepted).expect("the request"), "request");
    accepted.write_all(b"response").expect("the client is there");
    assert_eq!(read_text(&mut queued).expect("the response"), "response");
    // Packets that start with a TTL of 255 pass, by which this process reaches itself.
    let own = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    own.set_ttl_v4(255).expect("a socket option");
    own.connect_timeout(&addr.into(), LIMIT).expect("the gate is open for it");
    set_min_ttl_filter(&listener, false);
    TcpStream::connect_timeout(&addr, LIMIT).expect("the port is open again");
}

#[test]
fn a_handshake_that_ends_behind_the_gate_inherits_the_filter_which_can_be_lifted() {
    let (listener, mut client) = half_open();
    set_min_ttl_filter(&listener, true);
    SockRef::from(&listener).detach_filter().expect("it was attached");
    // The request carries the ACK that ends the handshake.
    client.write_all(b"request").expect("the kernel takes it");
    let mut accepted = accept(&listener, LIMIT).expect("a handshake that had begun");
    assert!(sockopt::ip_minttl(&accepted) > 0, "inherited from the listener");
    set_min_ttl_filter(&accepted, false);
    client.write_all(b"").expect("the client is there");
    assert_eq!(read_text(&mut accepted).expect("retransmitted"), "request");
}

#[test]
fn bytes_received_before_the_input_was_shut_are_still_read() {
    let (listener, addr) = listener();
    let mut client = TcpStream::connect(addr).expect("connecting");
    let mut accepted = accept(&listener, LIMIT).expect("it was queued");
    client.write_all(b"before").expect("the kernel takes it");
    accepted.shutdown(Shutdown::Read).expect("it is connected");
    // Also what comes after the end, as long as the end was not read.
    client.write_all(b", after").expect("the kernel takes it");
    assert_eq!(read_text(&mut accepted).expect("both"), "before, after");
    assert_eq!(read_text(&mut accepted).expect("the end"), "");
    accepted.write_all(b"response").expect("the other way is open");
    assert_eq!(read_text(&mut client).expect("the response"), "response");
}

#[test]
fn a_descriptor_replaced_under_an_accept_gives_one_more_connection_and_then_the_new_socket_s() {
    let (old, old_addr) = listener();
    let (side, side_addr) = listener();
    let accepting = old.try_clone().expect("a descriptor");
    let number = accepting.as_raw_fd();
    let thread = std::thread::spawn(move || {
        let first = accepting.accept().expect("of the old one").1;
        let second = accepting.accept().expect("of the private listener").1;
        (first, second)
    });
    std::thread::sleep(Duration::from_millis(50)); // most probably it waits by now; the outcome is the same if not
    let mut target = std::mem::ManuallyDrop::new(unsafe_owner(number));
    rustix::io::dup3(&side, &mut target, rustix::io::DupFlags::CLOEXEC).expect("a number in use");
    let first = TcpStream::connect(old_addr).expect("connecting");
    std::thread::sleep(Duration::from_millis(50));
    let queued = TcpStream::connect(old_addr).expect("the old socket still listens");
    let second = TcpStream::connect(side_addr).expect("connecting");
    let accepted = thread.join().expect("it accepts twice");
    assert_eq!(accepted, (first.local_addr().expect("bound"), second.local_addr().expect("bound")));
    // What came to the old one since waits for its next holder.
    let next = accept(&old, LIMIT).expect("it is in the queue");
    assert_eq!(next.peer_addr().expect("connected"), queued.local_addr().expect("bound"));
}

#[allow(unsafe_code, reason = "a number as an owner that is never dropped, for dup3")]
fn unsafe_owner(number: RawFd) -> OwnedFd {
    // SAFETY: the number is that of a socket which the caller's thread keeps open; the caller forgets this owner.
    unsafe { OwnedFd::from_raw_fd(number) }
}

/// The option that neither socket2 nor rustix knows.
mod sockopt {
    use std::os::fd::{AsFd, AsRawFd as _};

    /// Of an integer.
    const LENGTH: libc::socklen_t = 4;

    #[allow(unsafe_code, reason = "as above")]
    pub fn set_ip_minttl(socket: &impl AsFd, least: libc::c_int) {
        let (fd, length) = (socket.as_fd().as_raw_fd(), LENGTH);
        // SAFETY: the kernel reads an integer.
        let done =
            unsafe { libc::setsockopt(fd, libc::IPPROTO_IP, libc::IP_MINTTL, (&raw const least).cast(), length) };
        assert_eq!(done, 0);
    }

    #[allow(unsafe_code, reason = "as above")]
    pub fn ip_minttl(socket: &impl AsFd) -> libc::c_int {
        let (mut least, mut length) = (0, LENGTH);
        let fd = socket.as_fd().as_raw_fd();
        // SAFETY: the kernel writes an integer.
        let done = unsafe {
            libc::getsockopt(fd, libc::IPPROTO_IP, libc::IP_MINTTL, (&raw mut least).cast(), &raw mut length)
        };
        assert_eq!(done, 0);
        least
    }
}
