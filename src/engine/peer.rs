//! The other end of a connection.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// The other end of a connection: a proxy, if one is between.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Peer {
    /// An internet address.
    Inet(SocketAddr),
    /// A client of a Unix socket, which has no address.
    Unix,
}

impl Peer {
    /// The IP address; `None` for a Unix socket.
    pub fn ip(&self) -> Option<IpAddr> {
        self.addr().map(|addr| addr.ip())
    }

    /// The address and port; `None` for a Unix socket.
    pub fn addr(&self) -> Option<SocketAddr> {
        match self {
            Peer::Inet(addr) => Some(*addr),
            Peer::Unix => None,
        }
    }
}

impl From<SocketAddr> for Peer {
    fn from(addr: SocketAddr) -> Peer {
        Peer::Inet(addr)
    }
}

/// `192.0.2.1:4711`, or `unix`.
impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Peer::Inet(addr) => addr.fmt(f),
            Peer::Unix => f.pad("unix"),
        }
    }
}
