//! What the kernel does, as far as the argument that nothing is lost relies on it. Nothing of the program is run here:
//! if one of these fails, the argument does not hold on this kernel.

#![allow(clippy::expect_used, clippy::panic, reason = "a test says what it expects by panicking")]

use socket2::{SockFilter, SockRef};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
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

/// Drops the segments whose SYN and ACK flags are these.
fn drops(flags: u32) -> [SockFilter; 5] {
    [
        SockFilter::new(LOAD_BYTE, 0, 0, 13),
        SockFilter::new(AND, 0, 0, SYN | ACK),
        SockFilter::new(JUMP_IF_EQUAL, 0, 1, flags),
        SockFilter::new(RETURN, 0, 0, 0),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
    ]
}

/// Drops what opens a connection and lets everything else pass.
fn drops_new_connections() -> [SockFilter; 5] {
    drops(SYN)
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

fn hear(stream: &mut TcpStream) -> std::io::Result<String> {
    stream.set_read_timeout(Some(LIMIT))?;
    let mut bytes = [0u8; 16];
    let n = stream.read(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes[..n]).into_owned())
}

/// A client that is connected, as far as it can know, while the server's kernel has yet to hear the last word of the
/// handshake. On a network that lasts as long as the way there; here a filter keeps it back.
fn half_open() -> (TcpListener, TcpStream) {
    let (listener, addr) = listener();
    SockRef::from(&listener).attach_filter(&drops(ACK)).expect("a filter");
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
    assert_eq!(hear(&mut client).map_err(|e| e.kind()), Err(ErrorKind::ConnectionReset));
}

#[test]
fn the_filter_keeps_new_connections_out() {
    let (listener, addr) = listener();
    SockRef::from(&listener).attach_filter(&drops_new_connections()).expect("a filter");
    let refused = TcpStream::connect_timeout(&addr, Duration::from_millis(200)).map_err(|e| e.kind());
    assert_eq!(refused.map(|_| ()), Err(ErrorKind::TimedOut));
    SockRef::from(&listener).detach_filter().expect("it was attached");
    TcpStream::connect_timeout(&addr, LIMIT).expect("without the filter the port is open again");
}

#[test]
fn the_filter_leaves_the_queue_alone() {
    let (listener, addr) = listener();
    let mut queued = TcpStream::connect(addr).expect("connecting");
    SockRef::from(&listener).attach_filter(&drops_new_connections()).expect("a filter");
    // Sent after the filter came, on a connection that nobody has accepted yet.
    queued.write_all(b"request").expect("the kernel takes it");
    let mut accepted = accept(&listener, LIMIT).expect("it was queued");
    assert_eq!(hear(&mut accepted).expect("the request"), "request");
    accepted.write_all(b"response").expect("the client is there");
    assert_eq!(hear(&mut queued).expect("the response"), "response");
}

#[test]
fn a_connection_may_outlive_its_listener() {
    let (listener, addr) = listener();
    let mut client = TcpStream::connect(addr).expect("connecting");
    SockRef::from(&listener).attach_filter(&drops_new_connections()).expect("a filter");
    let mut accepted = accept(&listener, LIMIT).expect("it was queued");
    drop(listener);
    client.write_all(b"request").expect("the kernel takes it");
    // The filter is the listener's: what was accepted has inherited it, and lives on all the same.
    assert_eq!(hear(&mut accepted).expect("the request"), "request");
}

#[test]
fn the_filter_lets_handshakes_finish_that_have_begun() {
    let (listener, mut client) = half_open();
    SockRef::from(&listener).attach_filter(&drops_new_connections()).expect("a filter");
    client.write_all(b"request").expect("the kernel takes it");
    let mut accepted = accept(&listener, LIMIT).expect("a handshake that had begun");
    assert_eq!(hear(&mut accepted).expect("the request"), "request");
}

#[test]
fn a_filter_that_drops_everything_loses_handshakes_that_have_begun() {
    // Why the filter looks at the flags: the last word of a handshake comes to the listener, too.
    let (listener, mut client) = half_open();
    SockRef::from(&listener).attach_filter(&[SockFilter::new(RETURN, 0, 0, 0)]).expect("a filter");
    client.write_all(b"request").expect("the kernel takes it");
    assert!(accept(&listener, Duration::from_millis(500)).is_none(), "it was let in");
    drop(listener);
    assert_eq!(hear(&mut client).map_err(|e| e.kind()), Err(ErrorKind::ConnectionReset));
}
