//! What a service can be told, and what it does when it is told nothing. Each default says where it comes from.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use crate::crew::GRACE;
use crate::engine::EngineKind;

/// How a service runs. All fields have defaults; see [`Config::default`].
///
/// ```
/// use std::time::Duration;
/// let mut config = allout::Config::default();
/// config.listen = vec!["127.0.0.1:0".parse()?];
/// config.grace = Duration::from_secs(10);
/// # Ok::<(), std::net::AddrParseError>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Config {
    /// Addresses to listen on; port 0 picks a free one. Default: `127.0.0.1:8088`, so that only this machine is served
    /// unless others are meant to be. Not used when a service manager passes sockets.
    pub listen: Vec<SocketAddr>,
    /// Address of a socket of its own for the admin routes, which are then not served on the others. Default: none.
    pub admin_listen: Option<SocketAddr>,
    /// What receives requests. Default: [`EngineKind::TinyHttp`].
    pub engine: EngineKind,
    /// Most workers that may run at once; the pool grows to it under load and shrinks when idle. Fewer if the memory of the
    /// control group does not suffice for them.
    ///
    /// Default 2048: a thousand handlers that wait must not keep the others waiting, and a thread that waits costs some
    /// 10 KiB resident.
    pub workers: usize,
    /// Requests that may wait for a worker; what comes beyond is shed: 503 at once.
    ///
    /// Default 1024: with all workers waiting, a queue only adds delay, but a burst of quick requests passes through it.
    pub queue: usize,
    /// Connections that may be open at once; beyond it the idlest go first.
    ///
    /// Default 4096, or what the limits on descriptors, threads and the memory of the control group allow, if that is less.
    pub max_connections: usize,
    /// How long a drain may take. Default 30 s.
    pub grace: Duration,
    /// How long to go on serving normally after the first message, while `/healthz` already says 503. Default 0 s.
    pub drain_delay: Duration,
    /// How long a drain waits for an idle keep-alive connection to speak once more. Default 50 ms: longer than a client
    /// in a closed loop takes to ask again, and shorter than anyone notices.
    pub keepalive_min: Duration,
    /// A connection must complete its first, or next, request within this. Default 30 s.
    pub idle_timeout: Duration,
    /// A request, its body and its response included, may take this long. Default 60 s.
    pub request_timeout: Duration,
    /// The largest request body, in bytes, that is read where nobody says another limit; what a handler leaves unread is
    /// thrown away up to this length. Default 1 MiB, as nginx has it (`client_max_body_size`).
    pub max_body: u64,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            listen: vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 8088))],
            admin_listen: None,
            engine: EngineKind::default(),
            workers: 2048,
            queue: 1024,
            max_connections: 4096,
            grace: GRACE,
            drain_delay: Duration::ZERO,
            keepalive_min: Duration::from_millis(50),
            idle_timeout: Duration::from_secs(30),
            request_timeout: Duration::from_mins(1),
            max_body: 1024 * 1024,
        }
    }
}
