//! Setters for the fields of [`Config`], on the service.

use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use crate::engine::EngineKind;
use crate::http::automatic::AutomaticHeaders;
use crate::http::forwarded::TrustedProxies;
use crate::listen::UnixSocket;
use crate::service::Service;
use crate::service::config::Config;
use crate::service::error::StartError;

/// # Settings
///
/// Each method sets the field of [`Config`] of the same name, whose text has the reason of the default.
impl Service {
    /// An address to listen on: `"127.0.0.1:0"`, `([0, 0, 0, 0], 80)`; of the addresses of a name, the first. The first
    /// call replaces the addresses of the configuration, each further call adds one.
    ///
    /// A name is resolved at this call. One that does not resolve keeps the service from starting.
    ///
    /// ```
    /// let service = allout::Service::new().listen("127.0.0.1:8088").listen("[::1]:8088");
    /// ```
    pub fn listen(mut self, address: impl ToSocketAddrs) -> Service {
        if let Some(address) = self.resolve(&address) {
            self.replace_configured();
            self.config.listen.push(address);
        }
        self
    }

    /// Listens on a socket of the program's own, which was bound elsewhere: beside the addresses of
    /// [`listen`](Service::listen), and in place of those of the configuration.
    ///
    /// The service owns it and closes it at its end. Turns re-exec off, because `main` would bind the socket again in
    /// the next image while this one has it.
    ///
    /// ```
    /// use std::net::TcpListener;
    /// use allout::Service;
    ///
    /// let listener = TcpListener::bind("127.0.0.1:0")?;
    /// let address = listener.local_addr()?;
    /// let running = Service::new().get("/", |_| "hello").listener(listener).start()?;
    /// assert_eq!(running.addresses(), [address]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn listener(mut self, listener: TcpListener) -> Service {
        self.replace_configured();
        self.config.reexec = false;
        self.listeners.push(listener);
        self
    }

    /// Listens on a Unix-domain socket: beside the addresses of [`listen`](Service::listen), and in place of those of the
    /// configuration. Only the native engine can.
    pub fn listen_unix(mut self, socket: UnixSocket) -> Service {
        self.replace_configured();
        self.config.listen_unix.push(socket);
        self
    }

    /// Forgets the addresses of the configuration at the first call that says where to listen.
    fn replace_configured(&mut self) {
        if !std::mem::replace(&mut self.listen_was_set, true) {
            self.config.listen.clear();
            self.config.listen_unix.clear();
        }
    }

    /// An address for the admin routes, which are then served there alone.
    ///
    /// ```
    /// let service = allout::Service::new().listen("0.0.0.0:80").admin_listen("127.0.0.1:9090");
    /// ```
    pub fn admin_listen(mut self, address: impl ToSocketAddrs) -> Service {
        if let Some(address) = self.resolve(&address) {
            self.config.admin_listen = Some(address);
        }
        self
    }

    /// The engine that receives requests.
    ///
    /// ```
    /// let service = allout::Service::new().engine(allout::EngineKind::Native);
    /// ```
    pub fn engine(self, kind: EngineKind) -> Service {
        self.set(|config| config.engine = kind)
    }

    /// Threads of the native engine that receive requests; 0 chooses for this machine.
    ///
    /// ```
    /// let service = allout::Service::new().engine(allout::EngineKind::Native).receivers(4);
    /// ```
    pub fn receivers(self, count: usize) -> Service {
        self.set(|config| config.receivers = count)
    }

    fn resolve(&mut self, address: &impl ToSocketAddrs) -> Option<SocketAddr> {
        let error = match address.to_socket_addrs().map(|mut all| all.next()) {
            Ok(Some(address)) => return Some(address),
            Ok(None) => std::io::ErrorKind::AddrNotAvailable.into(),
            Err(error) => error,
        };
        self.fail(StartError::Unresolved(error));
        None
    }

    /// Most workers at once. Default 2048.
    ///
    /// ```
    /// let service = allout::Service::new().workers(64);
    /// ```
    pub fn workers(self, most: usize) -> Service {
        self.set(|config| config.workers = most)
    }

    /// Requests that may wait for a worker; beyond it, 503 at once. Default 1024.
    ///
    /// ```
    /// let service = allout::Service::new().queue(100);
    /// ```
    pub fn queue(self, most: usize) -> Service {
        self.set(|config| config.queue = most)
    }

    /// Open connections for each listening socket. Default 4096, or what the limits of the process allow.
    ///
    /// ```
    /// let service = allout::Service::new().max_connections(500);
    /// ```
    pub fn max_connections(self, most: usize) -> Service {
        self.set(|config| config.max_connections = most)
    }

    /// Longest time for a drain. Default 30 s.
    ///
    /// ```
    /// let service = allout::Service::new().grace(std::time::Duration::from_secs(10));
    /// ```
    pub fn grace(self, grace: Duration) -> Service {
        self.set(|config| config.grace = grace)
    }

    /// Time to serve on when a drain has begun. Default 0 s.
    ///
    /// ```
    /// let service = allout::Service::new().drain_delay(std::time::Duration::from_secs(5));
    /// ```
    pub fn drain_delay(self, delay: Duration) -> Service {
        self.set(|config| config.drain_delay = delay)
    }

    /// Minimum keep-alive in a drain. Default 50 ms.
    ///
    /// ```
    /// let service = allout::Service::new().keepalive_min(std::time::Duration::from_millis(200));
    /// ```
    pub fn keepalive_min(self, keepalive_min: Duration) -> Service {
        self.set(|config| config.keepalive_min = keepalive_min)
    }

    /// Time for a connection to complete its first, or next, head. Default 30 s.
    ///
    /// ```
    /// let service = allout::Service::new().idle_timeout(std::time::Duration::from_secs(75));
    /// ```
    pub fn idle_timeout(self, timeout: Duration) -> Service {
        self.set(|config| config.idle_timeout = timeout)
    }

    /// Time for a handler, and for a body that makes no progress. Default 60 s.
    ///
    /// ```
    /// let service = allout::Service::new().request_timeout(std::time::Duration::from_secs(10));
    /// ```
    pub fn request_timeout(self, timeout: Duration) -> Service {
        self.set(|config| config.request_timeout = timeout)
    }

    /// Never re-executes the process: SIGHUP does nothing, and a leak of the engine stops the service.
    pub fn without_reexec(self) -> Service {
        self.set(|config| config.reexec = false)
    }

    /// The largest head of a request, in bytes; see [`Limits::max_head`](crate::Limits::max_head).
    ///
    /// ```
    /// let service = allout::Service::new().max_head(16 * 1024);
    /// ```
    pub fn max_head(self, bytes: usize) -> Service {
        self.set(|config| config.max_head = Some(bytes))
    }

    /// Largest request body, in bytes, where a route has no limit of its own. Default 1 MiB.
    ///
    /// ```
    /// let service = allout::Service::new().max_body(10 << 20);
    /// ```
    pub fn max_body(self, bytes: u64) -> Service {
        self.set(|config| config.max_body = bytes)
    }

    /// Sets the headers that every response gets: `Server` and the like.
    ///
    /// ```
    /// let service = allout::Service::new().automatic_headers(allout::AutomaticHeaders::new().without_server());
    /// ```
    pub fn automatic_headers(mut self, headers: AutomaticHeaders) -> Service {
        match headers.build() {
            Ok(lines) => self.automatic = lines,
            Err(reason) => self.fail(StartError::Setting(reason)),
        }
        self
    }

    /// Trusts proxies at these addresses or networks (`10.0.0.0/8`), and with `unix` those that connect to a Unix
    /// socket: the client that they name is the [`client_ip`](crate::Request::client_ip) of a request.
    ///
    /// `header` is the one in which they name it, to which each of them appends: `X-Forwarded-For`, `Forwarded` (RFC
    /// 7239), or one of their own (`X-Real-IP`). Other headers are ignored, because a proxy may pass on those that its
    /// client has made up. If the proxy names no client, the address is `None`, never that of the proxy.
    ///
    /// ```
    /// use allout::{Request, Service};
    ///
    /// let service = Service::new()
    ///     .trust_proxies("X-Forwarded-For", ["127.0.0.1", "::1"])
    ///     .get("/", |request| request.client_ip().map(|ip| ip.to_string()));
    /// let response = service.handle(Request::get("/").header("X-Forwarded-For", "1.2.3.4, 203.0.113.7"));
    /// assert_eq!(response.into_text()?, "203.0.113.7"); // the client made up the first
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn trust_proxies<T: AsRef<str>>(mut self, header: &str, proxies: impl IntoIterator<Item = T>) -> Service {
        match TrustedProxies::new(header, proxies) {
            Ok(proxies) => self.proxies = Some(Arc::new(proxies)),
            Err(text) => self.fail(StartError::Setting(format!("{text:?} is no address and no network"))),
        }
        self
    }

    fn set(mut self, set: impl FnOnce(&mut Config)) -> Service {
        set(&mut self.config);
        self
    }
}
