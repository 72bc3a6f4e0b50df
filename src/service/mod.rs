//! The service: the public builder, which puts all parts together, and runs them to their end.

mod admin;
mod capacity;
pub(crate) mod config;
pub(crate) mod error;
mod in_process;
mod kernel;
pub(crate) mod member;
mod members;
mod parts;
mod routes;
pub(crate) mod run;
pub(crate) mod settings;

use std::fmt;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use crate::admin::AdminRoutes;
use crate::crew::Crew;
use crate::crew::hooks::Hook;
use crate::crew::message::Stopper;
use crate::crew::outcome::{Cause, Outcome};
use crate::dispatch::DispatchSettings;
use crate::dispatch::middleware::Around;
use crate::dispatch::router::Router;
use crate::http::automatic::HeaderLines;
use crate::http::forwarded::TrustedProxies;
use crate::lifecycle::reexec;
use crate::service::config::Config;
use crate::service::error::{NotStarted, StartError};
use crate::service::member::Member;
use crate::service::run::{Runner, ServiceHandle};

/// Called with the addresses of a service once it serves.
type OnListening = Box<dyn FnOnce(&[SocketAddr]) + Send>;

/// A service that is being put together: routes, settings, members, hooks. [`run`](Service::run) runs it on the calling
/// thread, [`start`](Service::start) on a thread of its own.
///
/// ```no_run
/// use allout::{Outcome, Service};
///
/// fn main() -> Outcome {
///     Service::new()
///         .get("/", |_| "hello, world")
///         .get("/hello/{name}", |request| format!("hello, {}", request.param("name").unwrap_or("world")))
///         .run()
/// }
/// ```
#[must_use = "a service does nothing until it is run"]
pub struct Service {
    pub(crate) config: Config,
    /// [`listen`](Service::listen) or [`listener`](Service::listener) was called.
    pub(crate) listen_was_set: bool,
    listeners: Vec<TcpListener>,
    crew: Crew,
    routes: Router,
    around: Around,
    proxies: Option<Arc<TrustedProxies>>,
    automatic: HeaderLines,
    members: Vec<Member>,
    on_listening: Vec<OnListening>,
    before_drain: Vec<Hook>,
    after_drain: Vec<Hook>,
    admin: AdminRoutes,
    error: Option<StartError>,
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Default for Service {
    fn default() -> Service {
        Service::new()
    }
}

impl Service {
    /// A service with the default [`Config`] and no routes but the admin routes.
    pub fn new() -> Service {
        Service::with_config(Config::default())
    }

    /// A service with this configuration and no routes but the admin routes.
    ///
    /// ```
    /// use allout::{Config, Service};
    /// let mut config = Config::default();
    /// config.workers = 64;
    /// let service = Service::with_config(config);
    /// ```
    pub fn with_config(config: Config) -> Service {
        Service {
            config,
            listen_was_set: false,
            listeners: Vec::new(),
            crew: Crew::new(),
            routes: Router::default(),
            around: Around::default(),
            proxies: None,
            automatic: HeaderLines::DEFAULT,
            members: Vec::new(),
            on_listening: Vec::new(),
            before_drain: Vec::new(),
            after_drain: Vec::new(),
            admin: AdminRoutes::default(),
            error: None,
        }
    }

    /// Records an error that keeps the service from starting. The first one is reported.
    pub(crate) fn fail(&mut self, error: StartError) {
        self.error.get_or_insert(error);
    }

    /// A handle that stops the service, from any thread: for handlers and members. A stop that is asked for before the
    /// service runs takes effect once it runs.
    ///
    /// ```
    /// # use allout::Service;
    /// let service = Service::new();
    /// let stopper = service.stopper();
    /// let service = service.post("/enough", move |_| stopper.stop("a client has had enough"));
    /// ```
    pub fn stopper(&self) -> Stopper {
        self.crew.stopper()
    }

    /// Calls `tell` once the service serves, with all addresses that it listens on: to print them, for example. The log
    /// has them as well.
    ///
    /// ```
    /// # use allout::Service;
    /// let service = Service::new().on_listening(|addresses| println!("listening on http://{}", addresses[0]));
    /// ```
    pub fn on_listening(mut self, tell: impl FnOnce(&[SocketAddr]) + Send + 'static) -> Service {
        self.on_listening.push(Box::new(tell));
        self
    }

    /// Runs `hook` when the drain begins, while everything is still served: to tell a load balancer, for example.
    ///
    /// Hooks run one after the other, in the order in which they were added. They have half the grace period together;
    /// the drain goes on without those that take longer. A hook that panics makes the outcome a failure.
    ///
    /// ```
    /// let service = allout::Service::new().before_drain(|| println!("tell the load balancer"));
    /// ```
    pub fn before_drain(mut self, hook: impl FnOnce() + Send + 'static) -> Service {
        self.before_drain.push(Box::new(hook));
        self
    }

    /// Runs `hook` after the last request was answered (or abandoned), before members are told to stop: to save state
    /// that requests have changed. They have the rest of the grace period; all else is as for
    /// [`before_drain`](Service::before_drain).
    ///
    /// ```
    /// let service = allout::Service::new().after_drain(|| println!("save the state"));
    /// ```
    pub fn after_drain(mut self, hook: impl FnOnce() + Send + 'static) -> Service {
        self.after_drain.push(Box::new(hook));
        self
    }

    /// Settings for all requests.
    fn dispatch_settings(&self) -> DispatchSettings {
        DispatchSettings {
            around: self.around.clone(),
            proxies: self.proxies.clone(),
            max_head: self.config.max_head,
            max_body: self.config.max_body,
            record_requests: self.admin.access_log,
        }
    }

    /// Runs the service until a signal, `/shutdown`, a [`Stopper`] or the end of a member stops it.
    ///
    /// # Signals
    ///
    /// SIGTERM, SIGINT and SIGQUIT stop; a second one ends the wait for requests and members (the same one within 100
    /// ms does not count). SIGHUP re-executes, SIGUSR1 writes the state to the log, SIGUSR2 does nothing. They are
    /// caught and unblocked from here on. SIGCHLD gets its default disposition if the process was started with it
    /// ignored, and SIGXFSZ, which a log that reaches `RLIMIT_FSIZE` causes, no longer ends the process.
    ///
    /// # Re-exec
    ///
    /// Before anything stops, the binary on disk is started a second time with the same arguments, as a *preflight*. It
    /// gets as far as this call, which ends that process, so that no code after it runs there. What `main` does before
    /// this call must be harmless while another instance serves: no port or lock taken, no file truncated. What must be
    /// done once belongs into a [member](Service::member). If that start succeeds, the service drains, and the process
    /// goes on with that very file, under the same pid and on the same socket.
    ///
    /// No connection is refused and no request is lost. New connections wait while accepting is stopped: for less than
    /// a second at a time while the service waits for slow requests, and for the exits of members and
    /// [hooks](Service::after_drain). If slow requests never end within three quarters of the grace period, new
    /// connections wait for those that are in flight then, a quarter of it at most. A stop replaces a re-exec at any
    /// moment, with a grace period of its own.
    pub fn run(self) -> Outcome {
        let signals = match run::own_process() {
            Ok(signals) => signals,
            Err(error) => return not_started(&StartError::System("signals", error)),
        };
        if reexec::is_preflight() {
            reexec::end_preflight(self.would_reexec().err().map(|error| error.to_string()).as_deref());
        }
        match self.start_parts(Some(signals)) {
            Ok(parts) => parts.run(),
            Err(NotStarted::Error(error)) => not_started(&error),
            Err(NotStarted::Stopped(_, outcome)) => run::log_outcome(*outcome),
        }
    }

    /// Starts the service on threads of its own, without catching signals: for tests, and for programs that have another
    /// main job. It is stopped and joined when the handle is dropped.
    ///
    /// # Errors
    ///
    /// [`StartError`]: the address is in use, a route is invalid, or the system refuses something.
    pub fn start(self) -> Result<ServiceHandle, StartError> {
        // Before all others, so that none has to be stopped if it cannot be created.
        let runner = Runner::spawn().map_err(|error| StartError::System("a thread", error))?;
        match self.start_parts(None) {
            Ok(parts) => Ok(runner.run(parts)),
            Err(NotStarted::Error(error) | NotStarted::Stopped(error, _)) => Err(error),
        }
    }

    /// Checks whether the service would start now: settings, routes, limits, kernel and addresses are tried. No member
    /// is started, and no connection is accepted.
    ///
    /// # Errors
    ///
    /// [`StartError`]: what would keep it from starting.
    pub fn would_start(mut self) -> Result<(), StartError> {
        let listeners = std::mem::take(&mut self.listeners);
        let sockets = parts::open_sockets(&self.config, listeners, true);
        self.would_reexec().and(sockets.map(drop))
    }

    /// Checks whether a running service could [re-exec](Service::run) into this one: as
    /// [`would_start`](Service::would_start), apart from the addresses, which the running one keeps. A re-exec checks
    /// this before anything stops.
    ///
    /// # Errors
    ///
    /// [`StartError`]: what would keep it from starting.
    pub fn would_reexec(mut self) -> Result<(), StartError> {
        if let Some(error) = self.error.take() {
            return Err(error);
        }
        self.config.check()?;
        // A preflight is told which Unix socket the running service keeps. Otherwise that is taken to be the configured
        // one.
        let own = || self.config.listen_unix.first().map(|socket| socket.path().to_owned());
        let unix = if reexec::is_preflight() { reexec::left_unix_socket() } else { own() };
        parts::check_unix(self.config.engine, unix)?;
        capacity::Limits::for_engine(self.config.engine)?;
        kernel::check(self.config.engine)?;
        self.dispatch().map(drop)
    }
}

fn not_started(error: &StartError) -> Outcome {
    log::error!("{error}");
    Outcome::immediate(Cause::NotStarted(error.to_string()))
}
