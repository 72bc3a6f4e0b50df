//! Features of the kernel that old ones, emulators and sandboxes lack.

use std::io;

use rustix::net::sockopt;
use socket2::{Domain, Socket, Type};

use super::{bind_device, min_ttl, peer_name, tcp};

/// A feature that may be missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Feature {
    /// `SO_COOKIE`: identifies a socket.
    SocketCookie,
    /// `IP_MINTTL`: the filter of a listening socket, by which a drain stops accepting (`engine::gate`).
    MinTtl,
    /// `TCP_INFO` with all fields that are read.
    TcpInfo,
    /// `SO_PEERNAME`: the peer of a connection that was reset.
    PeerName,
    /// `SO_BINDTOIFINDEX` without privileges: refuses new connections at the end of a drain (`engine::gate`).
    BindDevice,
    /// `/proc`.
    Proc,
}

impl Feature {
    /// Its name, and the first version of Linux that has it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Feature::SocketCookie => "SO_COOKIE (Linux 4.12)",
            Feature::MinTtl => "IP_MINTTL (Linux 2.6.34)",
            Feature::TcpInfo => "TCP_INFO with 160 bytes (Linux 4.6)",
            Feature::PeerName => "SO_PEERNAME (Linux 2.4)",
            Feature::BindDevice => "SO_BINDTOIFINDEX (Linux 5.7)",
            Feature::Proc => "/proc (a file system that is not mounted)",
        }
    }
}

/// The features that this kernel does not have.
/// Errors: there is no socket to ask it with: no descriptor is left, or there is no TCP.
pub(crate) fn missing() -> io::Result<Vec<Feature>> {
    let socket = |domain| Socket::new(domain, Type::STREAM, None);
    let socket = socket(Domain::IPV4).or_else(|_| socket(Domain::IPV6))?;
    // For a socket without a peer the error shows whether the kernel knows the option.
    let has_peer_name = peer_name::is_known(&socket);
    let all = [
        (Feature::SocketCookie, sockopt::socket_cookie(&socket).is_ok()),
        (Feature::MinTtl, min_ttl::set_min_ttl_filter(&socket, true).is_ok()),
        (Feature::TcpInfo, tcp::has_all_of_tcp_info(&socket)),
        (Feature::PeerName, has_peer_name),
        (Feature::BindDevice, bind_device::bind_to_no_device(&socket).is_ok()),
        (Feature::Proc, std::path::Path::new("/proc/self").exists()),
    ];
    Ok(all.into_iter().filter(|(_, is_there)| !is_there).map(|(feature, _)| feature).collect())
}

#[cfg(test)]
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod tests {
    use super::*;
    use crate::sys::seccomp::without_option;

    #[test]
    fn each_option_that_the_kernel_does_not_know_is_found() {
        assert_eq!(missing().unwrap(), []);
        for (level, option, feature) in [
            (libc::SOL_SOCKET, libc::SO_COOKIE, Feature::SocketCookie),
            (libc::IPPROTO_IP, libc::IP_MINTTL, Feature::MinTtl),
            (libc::IPPROTO_TCP, libc::TCP_INFO, Feature::TcpInfo),
            (libc::SOL_SOCKET, libc::SO_PEERNAME, Feature::PeerName),
            (libc::SOL_SOCKET, libc::SO_BINDTOIFINDEX, Feature::BindDevice),
        ] {
            assert_eq!(without_option(level, option, || missing().unwrap()), [feature]);
        }
    }
}
