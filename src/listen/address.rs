//! Addresses on which a service listens.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::path::PathBuf;

use socket2::SockRef;

/// The address of a listening socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    Inet(SocketAddr),
    Unix(PathBuf),
}

impl Address {
    /// The address of a socket.
    /// Errors: it is of another family, or a Unix socket without a path.
    pub(crate) fn of(socket: &impl AsFd) -> io::Result<Address> {
        let address = SockRef::from(socket).local_addr()?;
        let inet = address.as_socket().map(Address::Inet);
        let unix = || address.as_pathname().map(|path| Address::Unix(path.to_owned()));
        inet.or_else(unix).ok_or_else(|| io::Error::new(io::ErrorKind::Unsupported, "the socket has no path"))
    }

    /// The internet address, if it is one.
    pub(crate) fn inet(&self) -> Option<SocketAddr> {
        match self {
            Address::Inet(address) => Some(*address),
            Address::Unix(_) => None,
        }
    }

    /// As the log names it: `http://127.0.0.1:8088`, `unix:/run/allout.sock`.
    pub(crate) fn url(&self) -> String {
        match self {
            Address::Inet(address) => format!("http://{address}"),
            Address::Unix(_) => self.to_string(),
        }
    }

    /// A `Host` for requests of our own.
    pub(crate) fn host(&self) -> String {
        self.inet().map_or_else(|| "localhost".to_owned(), |address| address.to_string())
    }

    /// The internet address, or the unspecified one.
    pub(crate) fn inet_or_unspecified(&self) -> SocketAddr {
        self.inet().unwrap_or_else(|| SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Inet(address) => address.fmt(f),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}
