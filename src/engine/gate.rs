//! The accept gate of a listening socket. While it is closed, the kernel drops SYNs; established, queued and half-open
//! connections are not affected.
//!
//! A client whose SYN was dropped retransmits it after a second, and meets an open gate, the next instance, or a closed
//! port. The mechanism is the TTL filter of [`set_min_ttl_filter`]. A connection whose handshake ends while the gate is
//! closed inherits the filter; the engine lifts it when it finds the socket.
//!
//! Packets with a TTL of 255 pass the filter. So the gate of a socket that is about to be closed for good is *sealed*: from
//! then on the kernel refuses new connections, our own included, and handshakes that have begun go on
//! ([`bind_to_no_device`]).
//!
//! A Unix socket has no such filter: its gate is closed by `shutdown`, for good, and the kernel refuses connections
//! from then on.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use socket2::{Domain, SockAddr, SockRef, Socket, Type};

use crate::listen::Address;
use crate::sync::lock;
use crate::sys::bind_device::bind_to_no_device;
use crate::sys::min_ttl::{passes_min_ttl_filter, set_min_ttl_filter};
use crate::sys::tcp::tcp_info;

/// The gate of one listening socket, of which it holds a duplicate.
pub(crate) struct AcceptGate {
    listener: Arc<TcpListener>,
    /// Address of the socket.
    address: Address,
    state: Mutex<GateState>,
    /// Whether clients were seen to pass the gate although it is closed.
    passed: AtomicBool,
    /// Whether it is [sealed](AcceptGate::seal).
    sealed: AtomicBool,
}

#[derive(Default)]
struct GateState {
    closed: bool,
    /// Whether a drain decides its state: see [`AcceptGate::end_accepting`].
    drain_decides: bool,
}

impl GateState {
    fn set(&mut self, listener: &TcpListener, address: &Address, closed: bool) -> io::Result<()> {
        if self.closed != closed {
            match address {
                Address::Inet(_) => set_min_ttl_filter(listener, closed)?,
                // Connections are refused from here on; those that are queued are still accepted. It does not open
                // again.
                Address::Unix(_) if closed => SockRef::from(listener).shutdown(Shutdown::Both)?,
                Address::Unix(_) => return Ok(()),
            }
            self.closed = closed;
        }
        Ok(())
    }
}

impl AcceptGate {
    /// # Errors
    ///
    /// The socket has no address, or no descriptor is left.
    pub(crate) fn new(listener: &TcpListener) -> io::Result<AcceptGate> {
        Ok(AcceptGate {
            listener: Arc::new(listener.try_clone()?),
            address: Address::of(listener)?,
            state: Mutex::default(),
            passed: AtomicBool::new(false),
            sealed: AtomicBool::new(false),
        })
    }

    pub(crate) fn listener(&self) -> &Arc<TcpListener> {
        &self.listener
    }

    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    /// The internet address on which it listens; the unspecified one for a path.
    pub(crate) fn inet(&self) -> SocketAddr {
        self.address.inet_or_unspecified()
    }

    /// Closes the gate while there are too many connections, and opens it again. Does nothing while a drain
    /// [decides](AcceptGate::end_accepting).
    ///
    /// # Errors
    ///
    /// The system refuses.
    pub(crate) fn set_closed(&self, closed: bool) -> io::Result<()> {
        let mut state = lock(&self.state);
        if state.drain_decides { Ok(()) } else { state.set(&self.listener, &self.address, closed) }
    }

    /// Closes or opens the gate for a drain, in which this engine stops accepting. It stays so until
    /// [`resume_accepting`](AcceptGate::resume_accepting).
    ///
    /// # Errors
    ///
    /// The system refuses.
    pub(crate) fn end_accepting(&self, closed: bool) -> io::Result<()> {
        let mut state = lock(&self.state);
        state.drain_decides = true;
        self.passed.store(false, Ordering::Release);
        state.set(&self.listener, &self.address, closed).inspect_err(|_| self.passed.store(true, Ordering::Release))
    }

    /// Lifts the filter of a connection that was accepted behind the closed gate.
    pub(crate) fn lift_filter(&self, connection: impl AsFd) {
        let _ = set_min_ttl_filter(&connection, false); // cannot fail: it took the same option before
        if passes_min_ttl_filter(&connection) {
            self.passed.store(true, Ordering::Release);
        }
    }

    /// Whether clients pass the gate although it was closed by [`end_accepting`](AcceptGate::end_accepting).
    pub(crate) fn is_passed(&self) -> bool {
        self.passed.load(Ordering::Acquire)
    }

    /// Seals the gate, for good. Handshakes that have begun go on.
    ///
    /// # Errors
    ///
    /// The kernel has no such option for this process (see [`bind_to_no_device`]).
    pub(crate) fn seal(&self) -> io::Result<()> {
        self.sealed.store(true, Ordering::Release);
        // A Unix socket is shut.
        let result = if self.address.inet().is_some() { bind_to_no_device(&self.listener) } else { Ok(()) };
        result.inspect_err(|_| self.sealed.store(false, Ordering::Release))
    }

    /// Whether it is sealed, or about to be.
    pub(crate) fn is_sealed(&self) -> bool {
        self.sealed.load(Ordering::Acquire)
    }

    /// In place of the [seal](AcceptGate::seal): the kernel queues one connection more at most, and drops other SYNs while
    /// that one waits (`sk_acceptq_is_full`, `include/net/sock.h`), so that few are lost if nothing accepts them.
    pub(crate) fn limit_queue(&self) {
        let _ = SockRef::from(&self.listener).listen(0); // may be called again, listen(2)
    }

    /// Returns control of the gate to [`set_closed`](AcceptGate::set_closed) again: accepting goes on.
    pub(crate) fn resume_accepting(&self) {
        lock(&self.state).drain_decides = false;
    }

    pub(crate) fn is_closed(&self) -> bool {
        lock(&self.state).closed
    }

    /// Length of the accept queue: connections that are established and not accepted yet.
    pub(crate) fn accept_queue_len(&self) -> u32 {
        tcp_info(&self.listener).map_or(0, |facts| facts.accept_queue)
    }

    /// Knocks: connects to our own port, which makes an engine with a thread for each connection start one, and resets the
    /// connection at once, so that neither end keeps state.
    ///
    /// # Errors
    ///
    /// The connection was refused.
    pub(crate) fn knock(&self) -> io::Result<()> {
        self.knock_at(self.inet())
    }

    /// Knocks at another socket of ours.
    ///
    /// # Errors
    ///
    /// The connection was refused.
    pub(crate) fn knock_at(&self, address: SocketAddr) -> io::Result<()> {
        let own = self.self_socket()?;
        own.set_linger(Some(Duration::ZERO))?;
        match own.connect(&SockAddr::from(loopback_addr(address))) {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
            _ => Ok(()),
        }
    }

    /// A connection to our own port, as a client would open it.
    ///
    /// # Errors
    ///
    /// There was none within `limit`.
    pub(crate) fn connect_self(&self, limit: Duration) -> io::Result<TcpStream> {
        if let Address::Unix(path) = &self.address {
            let own = Socket::new(Domain::UNIX, Type::STREAM, None)?;
            own.connect_timeout(&SockAddr::unix(path)?, limit)?;
            return Ok(own.into());
        }
        let own = self.self_socket()?;
        own.connect_timeout(&SockAddr::from(loopback_addr(self.inet())), limit)?;
        Ok(own.into())
    }

    /// A socket that passes the closed gate.
    pub(crate) fn self_socket(&self) -> io::Result<Socket> {
        let address = self.inet();
        let own = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        own.set_nonblocking(true)?; // over loopback the handshake is done when `connect` returns; this must never wait for it
        // Our own packets pass the closed gate: their TTL is the maximum, 255.
        match address {
            SocketAddr::V4(_) => own.set_ttl_v4(255)?,
            SocketAddr::V6(_) => own.set_unicast_hops_v6(255)?,
        }
        Ok(own)
    }
}

/// The address at which this process reaches its own listener at `address`.
pub(crate) fn loopback_addr(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    /// Long enough for a handshake over loopback on any machine, and short enough for a test to wait in full.
    const SOON: Duration = Duration::from_millis(300);

    #[test]
    fn a_closed_gate_passes_only_own_connections_and_opens_again() {
        for address in ["127.0.0.1:0", "[::1]:0", "0.0.0.0:0", "[::]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let gate = AcceptGate::new(&listener).unwrap();
            let address = loopback_addr(listener.local_addr().unwrap());

            let mut before = TcpStream::connect_timeout(&address, SOON).unwrap();
            gate.set_closed(true).unwrap();
            gate.set_closed(true).unwrap();
            assert!(gate.is_closed());
            assert!(TcpStream::connect_timeout(&address, SOON).is_err(), "{address}: a connection got through");

            assert_eq!(gate.accept_queue_len(), 1, "what was queued stays");
            let (mut accepted, _) = listener.accept().unwrap();
            before.write_all(b"x").unwrap();
            let mut byte = [0];
            accepted.read_exact(&mut byte).unwrap();

            for _ in 0..3 {
                gate.knock().unwrap();
                listener.accept().unwrap();
            }
            gate.set_closed(false).unwrap();
            TcpStream::connect_timeout(&address, SOON).unwrap();
            gate.end_accepting(true).unwrap();
            gate.set_closed(false).unwrap();
            assert!(gate.is_closed(), "a drain has closed it");
            gate.resume_accepting();
            gate.set_closed(false).unwrap();
            assert!(!gate.is_closed());

            gate.seal().unwrap();
            assert!(gate.is_sealed() && gate.connect_self(SOON).is_err(), "{address}: passed a sealed gate");
        }
    }
}
