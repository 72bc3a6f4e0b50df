//! Inherited sockets: checks that they listen, resets the options that a previous holder has set, and warns of
//! addresses that cannot change.

use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;

use socket2::{Domain, Protocol, Socket, Type};

use super::{Address, ListenSocket, Role, Wanted};
use crate::sys::min_ttl::set_min_ttl_filter;
use crate::sys::sigio::set_sigio;
use crate::sys::tcp::release_receive_buffer;

/// Receive buffer, in bytes as getsockopt(2) shows it, of a socket on which an engine has limited what arrives at once:
/// the engine sets half of this, which the kernel doubles (socket(7)).
const BOUNDED_BUFFER: usize = 8 * 1024;

/// Receive buffer, in bytes, of connections whose buffer is not limited: half of the default in `net.ipv4.tcp_rmem`,
/// because the kernel doubles what is set.
const DEFAULT_BUFFER: usize = 64 * 1024;

/// Length of the accept queue of a socket that was passed: as many as the kernel's default allows
/// (`net.core.somaxconn`), and as the printed unit of the socket asks for. An engine may have left a shorter one.
const BACKLOG: i32 = 4096;

/// Warns of configured addresses that differ from those of the sockets that the previous image has left. Those are
/// kept: opening others could fail, when there is no image to return to.
pub(super) fn warn_of_changes(wanted: &Wanted<'_>, sockets: &[ListenSocket]) {
    let own = sockets.iter().filter(|socket| !socket.outlives_us);
    let kept: Vec<_> = own.filter_map(|socket| Some((Address::of(&socket.listener).ok()?, socket.role))).collect();
    // All sockets are the service manager's: the configured addresses were not used before, either.
    if kept.is_empty() {
        return;
    }
    if let Some(new) = changes(wanted, &kept) {
        log::warn!("the addresses stay what they were: {new} takes a restart");
    }
}

/// The changes of the configured addresses that take a restart, because the inherited ones are kept.
fn changes(wanted: &Wanted<'_>, kept: &[(Address, Role)]) -> Option<String> {
    let main = wanted.main.iter().map(|address| (Address::Inet(*address), Role::Main));
    let unix = wanted.unix.iter().map(|socket| (Address::Unix(socket.path().to_owned()), Role::Main));
    let admin = wanted.admin.map(|address| (Address::Inet(address), Role::Admin));
    let wanted: Vec<_> = main.chain(unix).chain(admin).collect();
    let is = |wanted: &(Address, Role), kept: &(Address, Role)| {
        let same = match (&wanted.0, &kept.0) {
            (Address::Inet(wanted), Address::Inet(kept)) => {
                wanted.ip() == kept.ip() && [0, kept.port()].contains(&wanted.port())
            }
            (wanted, kept) => wanted == kept,
        };
        same && wanted.1 == kept.1
    };
    let missing = wanted.iter().filter(|wanted| !kept.iter().any(|kept| is(wanted, kept)));
    let missing: Vec<_> = missing.map(|(address, _)| address.to_string()).collect();
    if !missing.is_empty() {
        return Some(missing.join(", "));
    }
    let is_gone = kept.iter().any(|kept| !wanted.iter().any(|wanted| is(wanted, kept)));
    is_gone.then(|| "fewer of them".to_owned())
}

/// Turns an inherited descriptor into a listening socket, or returns the reason why it is none.
pub(super) fn validate(descriptor: OwnedFd, receive_buffer: Option<usize>) -> Result<TcpListener, String> {
    let socket = Socket::from(descriptor);
    let Ok(domain) = socket.domain() else { return Err("is no socket".to_owned()) };
    if domain != Domain::IPV4 && domain != Domain::IPV6 && domain != Domain::UNIX {
        return Err("is of another family than TCP over IPv4 or IPv6, and no Unix socket".to_owned());
    }
    let is_stream = domain == Domain::UNIX && socket.r#type().is_ok_and(|kind| kind == Type::STREAM);
    let is_tcp = socket.r#type().is_ok_and(|kind| kind == Type::STREAM)
        && socket.protocol().is_ok_and(|protocol| protocol == Some(Protocol::TCP));
    if !is_tcp && !is_stream {
        return Err("is no TCP socket".to_owned());
    }
    if !socket.is_listener().unwrap_or(false) {
        return Err("does not listen (Accept=yes passes one connection each)".to_owned());
    }
    reset_options(&socket, receive_buffer).map_err(|error| format!("cannot be set up: {error}"))?;
    Ok(socket.into())
}

/// Resets options that a previous holder may have set, and options that would end `accept`.
fn reset_options(socket: &Socket, receive_buffer: Option<usize>) -> io::Result<()> {
    if socket.domain()? == Domain::UNIX {
        return socket.set_nonblocking(false);
    }
    set_min_ttl_filter(socket, false)?;
    set_sigio(socket, None)?;
    socket.listen(BACKLOG)?; // may be called again, listen(2)
    socket.set_nonblocking(false)?;
    socket.set_read_timeout(None)?;
    match receive_buffer {
        Some(bytes) => socket.set_recv_buffer_size(bytes),
        None if socket.recv_buffer_size()? == BOUNDED_BUFFER => {
            socket.set_recv_buffer_size(DEFAULT_BUFFER)?;
            let _ = release_receive_buffer(socket); // if it fails, the buffer does not grow beyond that
            Ok(())
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::listen::UnixSocket;
    use crate::sys::min_ttl::has_min_ttl_filter;
    use socket2::SockRef;
    use std::net::{TcpStream, UdpSocket};
    use std::time::Duration;

    fn refused(descriptor: impl Into<OwnedFd>) -> String {
        validate(descriptor.into(), None).expect_err("it is of the wrong kind")
    }

    #[test]
    fn only_a_listening_tcp_socket_is_adopted() {
        let path = std::env::temp_dir().join(format!("allout-socket-test-{}", std::process::id()));
        let unix = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(refused(unix).contains("no TCP socket"));
        assert!(refused(UdpSocket::bind("127.0.0.1:0").unwrap()).contains("no TCP socket"));
        assert!(refused(std::fs::File::open("/dev/null").unwrap()).contains("no socket"));
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            assert!(refused(client).contains("does not listen"));
            validate(listener.into(), None).unwrap();
        }
    }

    #[test]
    fn options_of_a_previous_holder_are_reset() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            set_min_ttl_filter(&listener, true).unwrap();
            set_sigio(&listener, Some(rustix::thread::gettid())).unwrap();
            listener.set_nonblocking(true).unwrap();
            SockRef::from(&listener).set_read_timeout(Some(Duration::from_secs(1))).unwrap();
            SockRef::from(&listener).set_recv_buffer_size(BOUNDED_BUFFER / 2).unwrap();
            SockRef::from(&listener).listen(0).unwrap();

            let adopted = validate(listener.into(), None).unwrap();
            assert!(!has_min_ttl_filter(&adopted));
            let flags = rustix::fs::fcntl_getfl(&adopted).unwrap();
            let unwanted = u32::try_from(libc::O_ASYNC | libc::O_NONBLOCK).unwrap();
            assert_eq!(flags.bits() & unwanted, 0);
            assert_eq!(SockRef::from(&adopted).read_timeout().unwrap(), None);
            for _ in 0..4 {
                TcpStream::connect_timeout(&adopted.local_addr().unwrap(), Duration::from_secs(5)).unwrap();
            }
            let (accepted, _) = adopted.accept().unwrap();
            assert!(SockRef::from(&accepted).recv_buffer_size().unwrap() >= DEFAULT_BUFFER);
        }
    }

    #[test]
    fn addresses_that_differ_from_those_that_are_kept_are_named() {
        let inet = |text: &str| text.parse().unwrap();
        let kept = [
            (Address::Inet(inet("127.0.0.1:80")), Role::Main),
            (Address::Unix("/run/a.sock".into()), Role::Main),
            (Address::Inet(inet("127.0.0.1:90")), Role::Admin),
        ];
        let changes = |main: &str, unix: &str, admin: Option<&str>| {
            let (main, unix) = ([inet(main)], [UnixSocket::new(unix)]);
            changes(&Wanted { main: &main, unix: &unix, admin: admin.map(inet), receive_buffer: None }, &kept)
        };
        assert_eq!(changes("127.0.0.1:80", "/run/a.sock", Some("127.0.0.1:90")), None);
        assert_eq!(changes("127.0.0.1:0", "/run/a.sock", Some("127.0.0.1:90")), None);
        assert_eq!(changes("127.0.0.1:80", "/run/b.sock", Some("127.0.0.1:90")).as_deref(), Some("unix:/run/b.sock"));
        let two = changes("127.0.0.1:81", "/run/a.sock", Some("127.0.0.1:91"));
        assert_eq!(two.as_deref(), Some("127.0.0.1:81, 127.0.0.1:91"));
        assert_eq!(changes("127.0.0.1:80", "/run/a.sock", None).as_deref(), Some("fewer of them"));
    }
}
