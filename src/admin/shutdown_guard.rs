//! The guard of `/shutdown`, and of `/status` where clients other than operators are served: decides which clients may
//! use them.
//!
//! A client that shows the token may. Without the token, a request must be one that a person or a script on this
//! machine makes: `curl localhost:8088/shutdown`, by the user that runs the service or by root. Two things look like
//! one and must not pass.
//!
//! *A web page* in a browser on this machine: `GET` needs no permission of the other site. So the request must be for a
//! loopback host (against DNS rebinding) and from no other page (`Origin`, `Referer`, `Sec-Fetch-Site`).
//!
//! *A proxy* on this machine, which forwards requests from anywhere. Most say so in a header, but nginx with `proxy_pass`
//! alone says nothing. So the client's process is looked up ([`sys::peer`](crate::sys::peer)). It must be of the same
//! user as the service, or root's, because proxies have a user of their own as a rule. If it can be inspected, which it
//! must be if it is of the same user, it must not listen on TCP, because every proxy does. Exempt are this process and
//! its ancestors: a test or a supervisor that starts the service may well listen itself, and could kill it anyway.
//!
//! # Limitations
//!
//! * A proxy that runs as root passes, if the service does not run as root and so cannot inspect it. So does one that
//!   accepts its clients by other means than TCP, and one that starts the service itself. Where there is such a proxy,
//!   leave out the route or require a token, and let the proxy deny the route.
//! * A client that closes its socket before the answer has no owner any more, and is refused.
//! * Without `/proc`, or in another process namespace than the client of the same user, the client is refused.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::geteuid;
use subtle::ConstantTimeEq as _;

use crate::dispatch::request::Request;
use crate::http::validate::authority;
use crate::sync::lock;
use crate::sys::peer::{Holder, OVERFLOW_UID, PeerSocket, Sockets, find_holders, find_sockets, own_ancestry};

/// Most requests that wait for a look-up, each of which occupies a worker; others get 503.
const MAX_WAITING: usize = 64;

/// Pause after a look-up that ended in a refusal, before the next. A look-up takes from 1 ms to some 50 ms (25,000
/// sockets in TIME-WAIT) of a core, and a client behind a proxy could ask for one after the other.
const PAUSE: Duration = Duration::from_millis(100);

/// The status and the reason with which a request is refused.
pub(crate) type Denial = (u16, &'static str);

/// The credentials that a request has shown so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Passed {
    /// The token: it may shut down the service.
    Token,
    /// Headers and address of a client on this machine. Its process is not known yet.
    Local(SocketAddr),
}

/// The rules of one service.
#[derive(Debug, Default)]
pub(crate) struct Guard {
    /// The bearer token, if there is one.
    token: Option<String>,
    /// Ports of the sockets on which the route is served.
    ports: Vec<u16>,
    waiting: AtomicUsize,
    /// Held during a look-up: the earliest time of the next.
    next_look_up: Mutex<Option<Instant>>,
    /// The client sockets that have [passed](Guard::check_reader) most recently.
    passed: Mutex<Vec<PeerSocket>>,
}

impl Guard {
    pub(crate) fn new(token: Option<String>, ports: Vec<u16>) -> Guard {
        Guard { token, ports, ..Guard::default() }
    }

    /// Checks a request's token if it shows one, else its address and headers.
    /// Errors: the reason why the request is refused.
    pub(crate) fn check(&self, request: &mut Request) -> Result<Passed, Denial> {
        let (peer, target) = (request.peer().addr(), request.target().to_owned());
        // All of them: a value that is not UTF-8 is still a header that a proxy has added, and equals nothing that is
        // allowed.
        let headers = request.exchange().headers().map(|(name, value)| (name, String::from_utf8_lossy(value)));
        self.check_request(peer, &target, &headers.collect::<Vec<_>>())
    }

    /// Checks the token if one is shown, else address and headers.
    /// Errors: the reason why the request is refused.
    fn check_request(
        &self,
        peer: Option<SocketAddr>,
        target: &str,
        headers: &[(&str, Cow<'_, str>)],
    ) -> Result<Passed, Denial> {
        let named = |wanted: &'static str| {
            headers.iter().filter(move |(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| value.as_ref())
        };
        // A token decides alone: neither a page nor a proxy can make one up.
        if let (Some(token), Some(shown)) = (&self.token, named("authorization").next()) {
            return if is_bearer(shown, token) { Ok(Passed::Token) } else { Err((403, "the token is wrong")) };
        }
        let Some(peer) = peer else { return Err((403, "over a Unix socket, which needs the token")) };
        if !peer.ip().to_canonical().is_loopback() {
            return Err((403, "not from this machine"));
        }
        let through_proxy = |name: &str| {
            // X-Forwarded-For, -Host, -Proto, and any other.
            let forwarded = name.get(..12).is_some_and(|start| start.eq_ignore_ascii_case("x-forwarded-"));
            forwarded || ["forwarded", "via", "x-real-ip"].iter().any(|proxy| name.eq_ignore_ascii_case(proxy))
        };
        if headers.iter().any(|(name, _)| through_proxy(name)) {
            return Err((403, "through a proxy"));
        }
        // DNS rebinding: a name of another site that resolves to this machine. An absolute target overrides Host
        // (RFC 9112, section 3.2.2), so both must be ours.
        if named("host").chain(authority(target)).any(|host| !is_loopback_host(host)) {
            return Err((403, "for another host"));
        }
        let from_elsewhere = |site: &str| !matches!(site, "none" | "same-origin");
        if named("sec-fetch-site").any(from_elsewhere) {
            return Err((403, "from another page"));
        }
        // For browsers that do not send Sec-Fetch-Site.
        let host = named("host").next().unwrap_or_default();
        let is_own = |url: &str| {
            let rest = url.strip_prefix("http://").unwrap_or_default();
            rest.split(['/', '?', '#']).next().is_some_and(|from| !from.is_empty() && from.eq_ignore_ascii_case(host))
        };
        if named("origin").chain(named("referer")).any(|url| !is_own(url)) {
            return Err((403, "from another page"));
        }
        // Browsers fetch in advance, for example an address that is only half typed.
        let in_advance = |why: &str| why.contains("prefetch") || why.contains("prerender") || why == "preview";
        if named("sec-purpose").chain(named("purpose")).chain(named("x-moz")).any(in_advance) {
            return Err((403, "in advance"));
        }
        Ok(Passed::Local(peer))
    }

    /// Checks the process that holds the client's socket, connected to a port of ours. Blocks while others are looked up;
    /// a request that has no effect any more, because the service `is_stopping`, passes.
    /// Errors: the reason why the request is refused.
    pub(crate) fn check_process(&self, peer: SocketAddr, is_stopping: impl Fn() -> bool) -> Result<(), Denial> {
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= MAX_WAITING {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return Err((503, "too many requests that must be checked"));
        }
        let verdict = {
            let mut next_look_up = lock(&self.next_look_up);
            if is_stopping() {
                Ok(())
            } else {
                if let Some(next) = *next_look_up {
                    thread::sleep(next.saturating_duration_since(Instant::now()));
                }
                let verdict = look_up(peer, &self.ports);
                *next_look_up = verdict.is_err().then(|| Instant::now() + PAUSE);
                verdict
            }
        };
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        verdict.map_err(|reason| (403, reason))
    }

    /// As [`check_process`](Guard::check_process), for a client that reads again and again on a kept connection: its
    /// socket passes without another look-up of the process. An inode number is another socket's only once the kernel's
    /// counter has wrapped around (`get_next_ino`, fs/inode.c).
    /// Errors: the reason why the request is refused.
    pub(crate) fn check_reader(&self, peer: SocketAddr) -> Result<(), Denial> {
        let peers = find_sockets(peer, &self.ports).map(|sockets| sockets.peers).unwrap_or_default();
        if !peers.is_empty() && *lock(&self.passed) == peers {
            return Ok(());
        }
        self.check_process(peer, || false)?;
        *lock(&self.passed) = peers;
        Ok(())
    }
}

fn look_up(peer: SocketAddr, ports: &[u16]) -> Result<(), &'static str> {
    let sockets = find_sockets(peer, ports).map_err(|_| UNKNOWN)?;
    authorize(&sockets, geteuid().as_raw(), &own_ancestry(), find_holders)
}

const UNKNOWN: &str = "from a process that cannot be determined";

/// Whether all sockets that may be the client's belong to processes that may shut down the service.
fn authorize(
    sockets: &Sockets,
    own_uid: u32,
    ancestry: &[u32],
    find_holders: impl Fn(u64) -> Vec<Holder>,
) -> Result<(), &'static str> {
    if sockets.peers.is_empty() {
        return Err(UNKNOWN);
    }
    for PeerSocket { uid, inode } in sockets.peers.iter().copied() {
        if inode == 0 {
            return Err("from a socket that was closed");
        }
        // All users that are not mapped into this user namespace look the same: the client may be any of them.
        if uid != 0 && (uid != own_uid || uid == OVERFLOW_UID) {
            return Err("from a process of another user");
        }
        let holders = find_holders(inode);
        if holders.is_empty() && uid == own_uid {
            return Err(UNKNOWN);
        }
        let listens = |holder: &Holder| !holder.sockets.is_disjoint(&sockets.listening);
        if holders.iter().any(|holder| listens(holder) && !ancestry.contains(&holder.pid)) {
            return Err("from a process that is a server itself, such as a proxy");
        }
    }
    Ok(())
}

/// Whether a host, with or without a port, is a loopback name or address. The port may be any: a container or a tunnel
/// may map it.
fn is_loopback_host(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    let name = name.to_ascii_lowercase();
    // RFC 6761, section 6.3: these names cannot be registered.
    name == "localhost"
        || name.ends_with(".localhost")
        || name.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
}

/// Compares the credentials of `Authorization` (RFC 6750, section 2.1) with the token, in a time that depends on the
/// lengths alone.
fn is_bearer(authorization: &str, token: &str) -> bool {
    let Some((scheme, shown)) = authorization.split_once(' ') else { return false };
    let same = shown.trim_start_matches(' ').as_bytes().ct_eq(token.as_bytes());
    scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() && bool::from(same)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    const HERE: &str = "127.0.0.1";
    const PASSES: Result<(), &str> = Ok(());

    #[track_caller]
    fn check(token: Option<&str>, peer: &str, target: &str, headers: &[(&str, &str)], expected: Result<(), &str>) {
        let guard = Guard::new(token.map(str::to_owned), Vec::new());
        let peer = peer.parse().ok().map(|ip| SocketAddr::new(ip, 1));
        let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, Cow::from(*value))).collect();
        let verdict = guard.check_request(peer, target, &headers).map(|_| ());
        assert_eq!(verdict, expected.map_err(|reason| (403, reason)), "{peer:?} {target} {headers:?}");
    }

    #[test]
    fn clients_on_this_machine_pass_and_others_do_not() {
        for peer in [HERE, "127.9.9.9", "::1", "::ffff:127.0.0.1"] {
            check(None, peer, "/shutdown", &[("Host", "localhost:8088")], PASSES);
        }
        for peer in ["192.0.2.1", "192.0.2.7", "::ffff:192.0.2.7", "fe80::1"] {
            check(None, peer, "/shutdown", &[("Host", "localhost")], Err("not from this machine"));
        }
        check(None, HERE, "/shutdown", &[], PASSES); // HTTP/1.0
        let unix = Err("over a Unix socket, which needs the token");
        check(None, "unix", "/shutdown", &[("Host", "localhost")], unix);
        check(Some("s3cret"), "unix", "/shutdown", &[("Authorization", "Bearer s3cret")], PASSES);
    }

    #[test]
    fn proxies_are_recognized_by_the_headers_that_they_add() {
        for name in ["Forwarded", "via", "X-Forwarded-For", "x-forwarded-proto", "X-FORWARDED-X", "X-Real-IP"] {
            check(None, HERE, "/shutdown", &[("Host", "localhost"), (name, "")], Err("through a proxy"));
        }
    }

    #[test]
    fn hosts_are_loopback_names_and_addresses() {
        for host in ["localhost", "LocalHost:1", "a.localhost", "127.0.0.1:8088", "127.1.2.3", "[::1]:8088"] {
            check(None, HERE, "/shutdown", &[("Host", host)], PASSES);
            check(None, HERE, &format!("http://{host}/shutdown"), &[("Host", host)], PASSES);
        }
        for host in [
            "evil.test",
            "evil.test:8088",
            "localhost.evil.test",
            "127.0.0.1.evil.test",
            "192.0.2.1",
            "[::2]",
            "0.0.0.0:8088", // browsers connect to this machine
            "0.0.0.0",
            "[::]:8088",
            "[::ffff:0.0.0.0]:8088",
            "0:8088",
        ] {
            check(None, HERE, "/shutdown", &[("Host", host)], Err("for another host"));
            let target = format!("http://{host}/shutdown");
            check(None, HERE, &target, &[("Host", "localhost")], Err("for another host"));
        }
        check(None, HERE, "/shutdown", &[("Host", "")], Err("for another host"));
    }

    #[test]
    fn requests_from_pages_of_other_sites_do_not_pass() {
        let from = |name, value, expected| {
            check(None, HERE, "/shutdown", &[("Host", "localhost:8088"), (name, value)], expected);
        };
        let elsewhere = Err("from another page");
        from("Sec-Fetch-Site", "none", PASSES);
        from("Sec-Fetch-Site", "same-origin", PASSES);
        from("Sec-Fetch-Site", "same-site", elsewhere);
        from("sec-fetch-site", "cross-site", elsewhere);
        from("Sec-Fetch-Site", "", elsewhere);
        from("Origin", "http://localhost:8088", PASSES);
        for origin in ["null", "", "http://localhost", "http://localhost:3000", "https://localhost:8088", "http://"] {
            from("Origin", origin, elsewhere);
        }
        from("Referer", "http://localhost:8088/a", PASSES);
        from("Referer", "http://localhost:8088.evil.test/", elsewhere);
        from("Sec-Purpose", "prefetch;prerender", Err("in advance"));
        from("Purpose", "prefetch", Err("in advance"));
        // Each of several counts.
        let twice = [("Host", "localhost"), ("Sec-Fetch-Site", "none"), ("Sec-Fetch-Site", "cross-site")];
        check(None, HERE, "/shutdown", &twice, elsewhere);
    }

    #[test]
    fn a_token_passes_from_anywhere_and_a_wrong_one_from_nowhere() {
        let with = |token, peer, shown, expected| {
            check(token, peer, "/shutdown", &[("Host", "evil.test"), ("Via", "x"), ("authorization", shown)], expected);
        };
        with(Some("s3cret"), "192.0.2.7", "Bearer s3cret", Ok(()));
        with(Some("s3cret"), "192.0.2.7", "bearer  s3cret", Ok(()));
        let wrong = Err("the token is wrong");
        for shown in
            ["Bearer s3cre", "Bearer s3cret1", "Bearer S3CRET", "Basic s3cret", "s3cret", "Bearer", "Bearer ", ""]
        {
            with(Some("s3cret"), "192.0.2.7", shown, wrong);
            with(Some("s3cret"), HERE, shown, wrong);
        }
        with(Some(""), HERE, "Bearer ", wrong);
        with(None, "192.0.2.7", "Bearer ", Err("not from this machine"));
        check(Some("s3cret"), "192.0.2.7", "/shutdown", &[], Err("not from this machine"));
        check(Some("s3cret"), HERE, "/shutdown", &[("Host", "localhost")], PASSES);
    }

    /// The result of `authorize` for a service of user `own_uid` in process 7, a child of 6, where inode 1 listens.
    fn verdict(own_uid: u32, peers: &[(u32, u64)], holders: &[(u32, &[u64])]) -> Result<(), &'static str> {
        let peers = peers.iter().map(|&(uid, inode)| PeerSocket { uid, inode }).collect();
        let sockets = Sockets { peers, listening: HashSet::from([1]) };
        let holders_of = |inode| {
            let all = holders.iter().map(|&(pid, sockets)| Holder { pid, sockets: sockets.iter().copied().collect() });
            all.filter(|holder: &Holder| holder.sockets.contains(&inode)).collect()
        };
        authorize(&sockets, own_uid, &[7, 6], holders_of)
    }

    #[test]
    fn clients_of_the_same_user_and_of_root_pass() {
        assert_eq!(verdict(1000, &[(1000, 5)], &[(9, &[5, 8])]), Ok(()));
        assert_eq!(verdict(1000, &[(0, 5)], &[]), Ok(()), "root's process cannot be inspected");
        assert_eq!(verdict(0, &[(0, 5)], &[(9, &[5])]), Ok(()));
        assert_eq!(verdict(OVERFLOW_UID, &[(0, 5)], &[]), Ok(()));
    }

    #[test]
    fn other_users_servers_and_unknown_processes_do_not_pass() {
        let other = Err("from a process of another user");
        assert_eq!(verdict(0, &[(33, 5)], &[(9, &[5])]), other);
        assert_eq!(verdict(1000, &[(33, 5)], &[]), other);
        assert_eq!(verdict(OVERFLOW_UID, &[(OVERFLOW_UID, 5)], &[(9, &[5])]), other, "not mapped, so perhaps another");
        let server = Err("from a process that is a server itself, such as a proxy");
        assert_eq!(verdict(1000, &[(1000, 5)], &[(9, &[5, 1])]), server);
        assert_eq!(verdict(1000, &[(1000, 5)], &[(8, &[5]), (9, &[5, 1])]), server, "each holder counts");
        assert_eq!(verdict(0, &[(0, 5)], &[(9, &[5, 1])]), server);
        assert_eq!(verdict(1000, &[(1000, 5)], &[]), Err(UNKNOWN));
        assert_eq!(verdict(0, &[(0, 5)], &[]), Err(UNKNOWN));
        assert_eq!(verdict(0, &[], &[]), Err(UNKNOWN));
        assert_eq!(verdict(0, &[(0, 0)], &[]), Err("from a socket that was closed"));
        assert_eq!(verdict(1000, &[(1000, 5), (33, 4)], &[(9, &[5])]), other, "each socket counts");
    }

    #[test]
    fn servers_that_started_the_service_pass() {
        assert_eq!(verdict(1000, &[(1000, 5)], &[(6, &[5, 1])]), Ok(()));
        assert_eq!(verdict(1000, &[(1000, 5)], &[(7, &[5, 1])]), Ok(()));
    }
}
