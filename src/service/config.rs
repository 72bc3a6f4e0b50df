//! The configuration of a service. Each default says where it comes from.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use crate::crew::GRACE;
use crate::engine::EngineKind;
use crate::listen::UnixSocket;
use crate::service::error::StartError;

/// The settings of a service. All fields have defaults; see [`Config::default`].
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
    /// unless the application asks for more. Not used when a service manager passes sockets.
    pub listen: Vec<SocketAddr>,
    /// Unix-domain sockets to listen on besides; the native engine alone serves them. Default: none. Not used when a
    /// service manager passes sockets.
    pub listen_unix: Vec<UnixSocket>,
    /// Address for the admin routes, which are then served there alone. Default: none, so that they are served with the
    /// other routes.
    pub admin_listen: Option<SocketAddr>,
    /// The engine on every listening socket. Default: [`EngineKind::TinyHttp`].
    pub engine: EngineKind,
    /// Threads of the native engine that receive requests. Default 0: half as many as cores, 1 at least and 16 at most.
    pub receivers: usize,
    /// Most workers at once; the pool grows to it under load and shrinks when idle. Fewer if the memory of the control
    /// group does not suffice for them.
    ///
    /// Default 2048: a thousand handlers that block must not delay the others, and a blocked thread costs some 10 KiB of
    /// resident memory.
    pub workers: usize,
    /// Requests that may wait for a worker; beyond it requests are shed: answered with 503 at once.
    ///
    /// Default 1024: if all workers are blocked, a queue only adds delay, but a burst of short requests passes through
    /// it.
    pub queue: usize,
    /// Open connections for each listening socket; beyond it the least recently used are closed first.
    ///
    /// Default 4096, or what the limits on descriptors, threads and the memory of the control group allow, if that is
    /// less.
    pub max_connections: usize,
    /// Longest time for a drain. Default 30 s.
    pub grace: Duration,
    /// Time to serve on when a drain has begun, while `/healthz` already answers 503. Default 0 s.
    pub drain_delay: Duration,
    /// Minimum keep-alive in a drain: the time that an idle connection has to send one more request, whose response says
    /// `Connection: close`. Closing it at once could cross a request on its way. Default 50 ms: more than a client in a
    /// closed loop needs for its next request, and short to wait for.
    pub keepalive_min: Duration,
    /// Time for a connection to complete its first, or next, head. Default 30 s.
    pub idle_timeout: Duration,
    /// Time from dispatch to the start of the response, and for a body that makes no progress. Default 60 s.
    pub request_timeout: Duration,
    /// Default limit, in bytes, for reading a request body, and for discarding one that a handler leaves unread. Default
    /// 1 MiB, as nginx has it (`client_max_body_size`).
    pub max_body: u64,
    /// SIGHUP, or a leak of the engine, may re-execute the process. Default: true. Without it SIGHUP does nothing, and
    /// a leak stops the service.
    pub reexec: bool,
    /// The largest head of a request, in bytes: see [`Limits::max_head`](crate::Limits::max_head). Default: none but
    /// that of the engine, about 64 KiB.
    pub max_head: Option<usize>,
}

impl Config {
    /// Errors: [`StartError::Setting`]: a number or a time is zero, with which no request would be answered.
    pub(super) fn check(&self) -> Result<(), StartError> {
        let zero = [
            ("workers", self.workers == 0),
            ("max_connections", self.max_connections == 0),
            ("idle_timeout", self.idle_timeout.is_zero()),
            ("request_timeout", self.request_timeout.is_zero()),
        ];
        match zero.into_iter().find(|(_, is_zero)| *is_zero) {
            Some((name, _)) => Err(StartError::Setting(format!("{name} is 0: no request would be answered"))),
            None => Ok(()),
        }
    }
}

impl Default for Config {
    fn default() -> Config {
        Config {
            listen: vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 8088))],
            listen_unix: Vec::new(),
            admin_listen: None,
            engine: EngineKind::default(),
            receivers: 0,
            workers: 2048,
            queue: 1024,
            max_connections: 4096,
            grace: GRACE,
            drain_delay: Duration::ZERO,
            keepalive_min: Duration::from_millis(50),
            idle_timeout: Duration::from_secs(30),
            request_timeout: Duration::from_secs(60),
            max_body: 1024 * 1024,
            max_head: None,
            reexec: true,
        }
    }
}
