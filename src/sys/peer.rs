//! The client's end of a connection on this machine: the user that owns the socket, and the processes that hold it.
//!
//! TCP has no `SO_PEERCRED`. `/proc/self/net/tcp` and `tcp6` (`proc_pid_net(5)`) list every socket of the network
//! namespace with its addresses, owner and inode; `/proc/PID/fd` tells which process holds an inode. Both are readable
//! without privileges, the second for processes of the same user only. Reading costs 1 to 2 µs for each socket of the
//! network namespace and for each descriptor of the readable processes.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

// Socket states in these files (include/net/tcp_states.h).
const TIME_WAIT: &str = "06";
const LISTEN: &str = "0A";

/// The user that the kernel shows for users that are not mapped into a user namespace: `/proc/sys/kernel/overflowuid`,
/// which is 65534 unless an administrator changes it (`user_namespaces(7)`).
pub(crate) const OVERFLOW_UID: u32 = 65534;

/// The client's socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PeerSocket {
    /// The user that created it, as this process's user namespace has it.
    pub(crate) uid: u32,
    /// 0 if no process holds it: it was closed. The uid is then 0 as well, and says nothing.
    pub(crate) inode: u64,
}

/// The sockets of the network namespace, as far as they matter here.
#[derive(Debug, Default)]
pub(crate) struct Sockets {
    /// The sockets that are bound to the peer's address and connected to a port of ours on a loopback address. More
    /// than one is possible: `127.0.0.1` and `127.0.0.2` are two servers, to which a client may connect from one port.
    pub(crate) peers: Vec<PeerSocket>,
    /// The inodes of listening sockets.
    pub(crate) listening: HashSet<u64>,
}

/// Finds the sockets at the other end of connections from `peer` to one of `ports`.
/// Errors: `/proc` is not mounted. A file that does not exist, as `tcp6` on a kernel without IPv6, counts as empty.
pub(crate) fn find_sockets(peer: SocketAddr, ports: &[u16]) -> io::Result<Sockets> {
    let mut sockets = Sockets::default();
    let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
    read_table(File::open("/proc/self/net/tcp")?, peer, ports, &mut sockets)?;
    match File::open("/proc/self/net/tcp6") {
        Ok(table) => read_table(table, peer, ports, &mut sockets)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    Ok(sockets)
}

fn read_table(table: impl io::Read, peer: SocketAddr, ports: &[u16], sockets: &mut Sockets) -> io::Result<()> {
    let mut table = BufReader::with_capacity(64 * 1024, table);
    let mut line = String::new();
    let (peer_port, listening) = (format!(":{:04X} ", peer.port()), format!(" {LISTEN} "));
    loop {
        line.clear();
        if table.read_line(&mut line)? == 0 {
            return Ok(());
        }
        if !line.contains(&peer_port) && !line.contains(&listening) {
            continue; // most lines of a busy machine
        }
        // sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode …
        let mut fields = line.split_ascii_whitespace().skip(1);
        let (Some(local), Some(remote), Some(state), Some(uid), Some(inode)) =
            (fields.next(), fields.next(), fields.next(), fields.nth(3), fields.nth(1))
        else {
            continue;
        };
        let (Ok(uid), Ok(inode)) = (uid.parse(), inode.parse()) else { continue };
        let is_ours = |remote: SocketAddr| ports.contains(&remote.port()) && remote.ip().is_loopback();
        if state == LISTEN {
            sockets.listening.insert(inode);
        } else if state != TIME_WAIT && parse_address(local) == Some(peer) && parse_address(remote).is_some_and(is_ours)
        {
            sockets.peers.push(PeerSocket { uid, inode });
        }
    }
}

/// `0100007F:1F98`: the address as one or four words in the byte order of the machine, and the port.
fn parse_address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let word = |at: usize| u32::from_str_radix(address.get(at..at + 8)?, 16).ok().map(u32::to_ne_bytes);
    let ip = match address.len() {
        8 => IpAddr::from(Ipv4Addr::from(word(0)?)),
        32 => {
            let words = [word(0)?, word(8)?, word(16)?, word(24)?];
            let mut bytes = [0; 16];
            bytes.iter_mut().zip(words.into_iter().flatten()).for_each(|(to, from)| *to = from);
            IpAddr::from(Ipv6Addr::from(bytes)).to_canonical()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

/// A process that holds a socket.
#[derive(Debug)]
pub(crate) struct Holder {
    pub(crate) pid: u32,
    /// The inodes of all its sockets.
    pub(crate) sockets: HashSet<u64>,
}

/// Finds the processes that hold the socket with this inode, among those whose descriptors this process may read.
pub(crate) fn find_holders(inode: u64) -> Vec<Holder> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let holders = pids.map(|pid: u32| Holder { pid, sockets: sockets_of(pid) });
    holders.filter(|holder| holder.sockets.contains(&inode)).collect()
}

/// The inodes of a process's sockets; none if its descriptors cannot be read.
fn sockets_of(pid: u32) -> HashSet<u64> {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let targets = descriptors.filter_map(|entry| fs::read_link(entry.path()).ok());
    targets.filter_map(|target| target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()).collect()
}

/// This process, its parent, and so on, as far as they can be seen.
pub(crate) fn own_ancestry() -> Vec<u32> {
    /// More generations than process trees have; bounds the loop if a pid is reused while it runs.
    const MAX_DEPTH: usize = 64;
    let parent = |pid: &u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // "12 (name) S 1 …", where the name may contain any character, brackets included: proc_pid_stat(5).
        stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(1)?.parse().ok().filter(|pid| *pid != 0)
    };
    std::iter::successors(Some(std::process::id()), parent).take(MAX_DEPTH).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::geteuid;
    use std::net::{TcpListener, TcpStream};

    const TABLE: &str =
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F98 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 44 1 0000000000000000 100 0 0
   1: 0100007F:1388 0100007F:1F98 01 00000000:00000000 00:00000000 00000000  1000        0 45 1 0000000000000000 20 4 30
   2: 0100007F:1F98 0100007F:1388 01 00000000:00000000 00:00000000 00000000     0        0 46 1 0000000000000000 20 4 30
   3: 0100007F:1388 0200007F:1F98 01 00000000:00000000 00:00000000 00000000    33        0 47 1 0000000000000000 20 4 30
   4: 0100007F:1388 0300007F:1F98 06 00000000:00000000 03:000013A1 00000000     0        0 0 3 0000000000000000
   5: 0100007F:1388 0100007F:1F99 01 00000000:00000000 00:00000000 00000000    34        0 48 1 0000000000000000 20 4 30
";

    #[test]
    #[cfg(target_endian = "little")]
    fn every_socket_that_may_be_the_peer_is_found() {
        let mut sockets = Sockets::default();
        read_table(TABLE.as_bytes(), "127.0.0.1:5000".parse().unwrap(), &[8088], &mut sockets).unwrap();
        assert_eq!(sockets.peers, [PeerSocket { uid: 1000, inode: 45 }, PeerSocket { uid: 33, inode: 47 }]);
        assert_eq!(sockets.listening, HashSet::from([44]));
        assert_eq!(parse_address("00000000000000000000000001000000:1F98"), "[::1]:8088".parse().ok());
        assert_eq!(parse_address("0000000000000000FFFF00000100007F:1F98"), "127.0.0.1:8088".parse().ok());
        for bad in ["", ":", "0100007F", "0100007:1F98", "0100007F:", "0100007F:10000", "ä100007:1F98"] {
            assert_eq!(parse_address(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_kernel_knows_the_owner_of_a_connection_and_its_process() {
        for address in ["127.0.0.1:0", "[::1]:0", "[::]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let port = listener.local_addr().unwrap().port();
            let client = match address {
                "[::1]:0" => TcpStream::connect(("::1", port)).unwrap(),
                _ => TcpStream::connect(("127.0.0.1", port)).unwrap(),
            };
            let (_accepted, peer) = listener.accept().unwrap();
            let sockets = find_sockets(peer, &[port]).unwrap();
            let [socket] = sockets.peers[..] else { panic!("{:?}", sockets.peers) };
            assert_eq!(socket.uid, geteuid().as_raw(), "{address}");
            let holders = find_holders(socket.inode);
            let holder = holders.iter().find(|holder| holder.pid == std::process::id()).expect("it is this process");
            assert!(!holder.sockets.is_disjoint(&sockets.listening), "this process listens");

            // Its socket waits for the other end to be closed, and has no owner. Where `tcp_max_tw_buckets` is reached
            // it is gone (tcp_time_wait, net/ipv4/tcp_minisocks.c).
            drop(client);
            let closed = find_sockets(peer, &[port]).unwrap().peers;
            assert!(closed.iter().all(|socket| socket.inode == 0), "{closed:?}");
        }
    }

    #[test]
    fn the_ancestry_begins_with_this_process() {
        let ancestry = own_ancestry();
        assert_eq!(ancestry[0], std::process::id());
        assert!(ancestry.len() > 1 && ancestry.len() < 64, "{ancestry:?}");
    }
}
