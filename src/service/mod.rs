//! A service: put together, started, run to its end.

pub(crate) mod config;
pub(crate) mod error;
pub(crate) mod settings;

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::admin::AdminRoutes;
use crate::crew::Crew;
use crate::crew::hooks::Hook;
use crate::crew::member::Exit;
use crate::crew::message::{Command, Stopper};
use crate::crew::outcome::{Cause, Outcome};
use crate::crew::pool::Pool;
use crate::crew::shutdown::Shutdown;
use crate::crew::signals;
use crate::crew::stop::Stop;
use crate::dispatch::Dispatch;
use crate::dispatch::request::Request;
use crate::dispatch::router::{Handler, Router};
use crate::engine::gate::AcceptGate;
use crate::engine::tiny_http::connections::ConnectionTable;
use crate::engine::tiny_http::monitor::Monitor;
use crate::engine::tiny_http::receive::ReceiveLoop;
use crate::engine::tiny_http::server::{self as engine, Engine};
use crate::engine::{Events, Settings, StopState};
use crate::http::response::Response;
use crate::lifecycle::drain::Drain;
use crate::lifecycle::phase::Lifecycle;
use crate::lifecycle::reexec::{self as renewal, MIN_LEAK_REEXEC_INTERVAL, Preflight};
use crate::listen::{self as socket, ListenSocket};
use crate::observe::ServiceState;
use crate::observe::state_dump::StateDump;
use crate::observe::systemd::{self, SystemdNotifier};
use crate::service::config::Config;
use crate::service::error::StartError;
use crate::sys::limits;
use crate::text::{human_duration, panic_message};

/// How often the rehearsal of a renewal is looked after.
const PREFLIGHT_TICK: Duration = Duration::from_millis(5);

/// A member that waits to be started.
struct Member {
    name: String,
    interrupt: Hook,
    body: Box<dyn FnOnce(&Stop) -> Exit + Send>,
}

/// A service that is being put together: routes, settings, members, hooks. It begins with [`run`](Service::run), or with
/// [`start`](Service::start) on threads of its own.
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
    crew: Crew,
    routes: Router,
    members: Vec<Member>,
    before_drain: Vec<Hook>,
    after_drain: Vec<Hook>,
    operations: AdminRoutes,
    bad: Option<StartError>,
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
    /// A service with the default [`Config`] and the operational routes alone.
    pub fn new() -> Service {
        Service::with_config(Config::default())
    }

    /// A service with this configuration and the operational routes alone.
    pub fn with_config(config: Config) -> Service {
        Service {
            config,
            crew: Crew::new(),
            routes: Router::default(),
            members: Vec::new(),
            before_drain: Vec::new(),
            after_drain: Vec::new(),
            operations: AdminRoutes::default(),
            bad: None,
        }
    }

    /// Answers `GET` (and `HEAD`) on `path`, which may have parameters: `/hello/{name}`, `/files/{*path}`.
    ///
    /// The handler runs on a worker's thread, so that it may wait. A path that cannot be, or is taken, keeps the service
    /// from starting.
    pub fn get<R: Into<Response>>(
        self,
        path: &str,
        handler: impl Fn(&mut Request) -> R + Send + Sync + 'static,
    ) -> Service {
        self.route("GET", path, handler)
    }

    /// Answers `POST` on `path`; see [`get`](Service::get).
    pub fn post<R: Into<Response>>(
        self,
        path: &str,
        handler: impl Fn(&mut Request) -> R + Send + Sync + 'static,
    ) -> Service {
        self.route("POST", path, handler)
    }

    /// Answers `PUT` on `path`; see [`get`](Service::get).
    pub fn put<R: Into<Response>>(
        self,
        path: &str,
        handler: impl Fn(&mut Request) -> R + Send + Sync + 'static,
    ) -> Service {
        self.route("PUT", path, handler)
    }

    /// Answers `PATCH` on `path`; see [`get`](Service::get).
    pub fn patch<R: Into<Response>>(
        self,
        path: &str,
        handler: impl Fn(&mut Request) -> R + Send + Sync + 'static,
    ) -> Service {
        self.route("PATCH", path, handler)
    }

    /// Answers `DELETE` on `path`; see [`get`](Service::get).
    pub fn delete<R: Into<Response>>(
        self,
        path: &str,
        handler: impl Fn(&mut Request) -> R + Send + Sync + 'static,
    ) -> Service {
        self.route("DELETE", path, handler)
    }

    /// Answers this method, in capitals, on `path`; see [`get`](Service::get).
    pub fn route<R: Into<Response>>(
        self,
        method: &str,
        path: &str,
        handler: impl Fn(&mut Request) -> R + Send + Sync + 'static,
    ) -> Service {
        self.add(method, path, false, erase(handler))
    }

    /// As [`route`](Service::route), for a handler that is *quick*: it never waits, for nothing and nobody, and is done
    /// in microseconds. It runs where the request was received, which saves a hop between threads. While a quick handler
    /// runs nothing else is received; one that waits holds up the whole service.
    pub fn inline_route<R: Into<Response>>(
        self,
        method: &str,
        path: &str,
        handler: impl Fn(&mut Request) -> R + Send + Sync + 'static,
    ) -> Service {
        self.add(method, path, true, erase(handler))
    }

    /// Answers every path that no route claims, whatever the method. Without it such paths are 404.
    pub fn fallback<R: Into<Response>>(
        mut self,
        handler: impl Fn(&mut Request) -> R + Send + Sync + 'static,
    ) -> Service {
        self.routes.set_fallback(false, erase(handler));
        self
    }

    /// As [`fallback`](Service::fallback), for a handler that is [quick](Service::inline_route).
    pub fn inline_fallback<R: Into<Response>>(
        mut self,
        handler: impl Fn(&mut Request) -> R + Send + Sync + 'static,
    ) -> Service {
        self.routes.set_fallback(true, erase(handler));
        self
    }

    fn add(mut self, method: &str, path: &str, inline: bool, handler: Handler) -> Service {
        if let Err(error) = self.routes.add(method, path, inline, handler) {
            self.refuse(StartError::Route(error));
        }
        self
    }

    /// The first thing that is wrong is what keeps the service from starting.
    pub(crate) fn refuse(&mut self, error: StartError) {
        self.bad.get_or_insert(error);
    }

    /// Adds a member to the crew: a thread of this name (15 bytes at most are kept) that lives and dies with the service.
    ///
    /// Its [`Stop`] tells it to leave, once the last request has been answered or grace is nearly over, and it is waited
    /// for within the grace. It returns nothing, or a `Result` of nothing. If it ends before it is told to, in whichever
    /// way, everyone goes out.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use allout::Service;
    /// let service = Service::new().member("ticker", |stop| {
    ///     while !stop.wait_timeout(Duration::from_secs(1)) {
    ///         println!("tick");
    ///     }
    /// });
    /// ```
    pub fn member<R: Into<Exit>>(self, name: &str, body: impl FnOnce(&Stop) -> R + Send + 'static) -> Service {
        self.member_with_interrupt(name, || {}, body)
    }

    /// As [`member`](Service::member), for one that waits for something else than [`Stop`]: `interrupt` is called once,
    /// from another thread, to make it leave. It must not block, and must be safe to call when the member has left.
    pub fn member_with_interrupt<R: Into<Exit>>(
        mut self,
        name: &str,
        interrupt: impl FnOnce() + Send + 'static,
        body: impl FnOnce(&Stop) -> R + Send + 'static,
    ) -> Service {
        self.members.push(Member {
            name: name.to_owned(),
            interrupt: Box::new(interrupt),
            body: Box::new(move |stop| body(stop).into()),
        });
        self
    }

    /// What stops the service, from any thread: for handlers and members. Pulled before the service runs, it stops it
    /// then.
    ///
    /// ```
    /// # use allout::Service;
    /// let service = Service::new();
    /// let stopper = service.stopper();
    /// let service = service.post("/enough", move |_| stopper.stop("somebody has had enough"));
    /// ```
    pub fn stopper(&self) -> Stopper {
        self.crew.stopper()
    }

    /// Runs `hook` when the drain begins, while everything is still served: to tell others to look elsewhere.
    ///
    /// Hooks run one after the other, in the order in which they were added. Half the grace is theirs; the drain goes on
    /// without those that take longer. One that panics makes the outcome a failure.
    pub fn before_drain(mut self, hook: impl FnOnce() + Send + 'static) -> Service {
        self.before_drain.push(Box::new(hook));
        self
    }

    /// Runs `hook` after the last request has been answered (or abandoned), before members are told to leave: to save
    /// what requests have changed. What is left of the grace is theirs, in the same way as
    /// [before](Service::before_drain).
    pub fn after_drain(mut self, hook: impl FnOnce() + Send + 'static) -> Service {
        self.after_drain.push(Box::new(hook));
        self
    }

    /// Leaves out the operational routes (`/healthz`, `/readyz`, `/livez`, `/shutdown`, `/metrics`).
    pub fn without_admin_routes(mut self) -> Service {
        self.operations.routes = false;
        self
    }

    /// Lets whoever shows this token use `/shutdown`, from wherever: `Authorization: Bearer TOKEN`.
    ///
    /// Without it `/shutdown` answers only to this machine: to loopback peers, for loopback hosts, and not to what came
    /// through a proxy or from a web page of others. Who shows a wrong token is refused in any case; an empty one lets
    /// nobody in.
    pub fn shutdown_token(mut self, token: impl Into<String>) -> Service {
        self.operations.token = Some(token.into());
        self
    }

    /// Has no `/shutdown`: it is answered with 404, whatever the [fallback](Service::fallback) is.
    pub fn without_shutdown(mut self) -> Service {
        self.operations.shutdown = false;
        self
    }

    /// Whether every response is logged, at level `info` and with the target `allout::access`: `method`, `uri`,
    /// `route`, `status`, `bytes`, `duration_us`, `peer` and `id`, as fields of the `log` crate. Off unless asked for.
    ///
    /// It is logged after the response was written, on the thread that wrote it: use a logger that never blocks for long.
    pub fn access_log(mut self, on: bool) -> Service {
        self.operations.access_log = on;
        self
    }

    /// Runs the service until somebody takes it out: a signal, `/shutdown`, a [`Stopper`], or a member's end.
    ///
    /// Signals are caught from here on: SIGTERM, SIGINT and SIGQUIT stop, a second one at once; SIGHUP renews.
    ///
    /// A renewal starts the binary that is on disk a second time, with the same arguments, before it stops anything: that
    /// one gets as far as here, and returns. So what `main` does before should be harmless while another instance serves:
    /// no port or lock taken, no file truncated. What must be done once belongs into a [member](Service::member).
    pub fn run(self) -> Outcome {
        let registered = match signals::register() {
            Ok(registered) => registered,
            Err(error) => return not_started(&StartError::System("signals", error)),
        };
        if renewal::is_preflight() {
            return self.rehearse();
        }
        match self.assemble(Some(registered)) {
            Ok(assembled) => assembled.run(),
            Err(error) => not_started(&error),
        }
    }

    /// Starts the service on threads of its own, without catching signals: for tests, and for programs that have another
    /// main job. It is stopped and joined when the handle is dropped.
    ///
    /// # Errors
    ///
    /// [`StartError`]: the address is in use, a route cannot be, or the system refuses something.
    pub fn start(self) -> Result<ServiceHandle, StartError> {
        let assembled = self.assemble(None)?;
        let address = assembled.address;
        let stopper = assembled.crew.stopper();
        let thread = thread::Builder::new()
            .name("allout".to_owned())
            .spawn(move || assembled.run())
            .map_err(|error| StartError::System("a thread", error))?;
        Ok(ServiceHandle { address, stopper, thread: Some(thread) })
    }

    /// As far as a service gets without touching what the one that is running has.
    fn rehearse(self) -> Outcome {
        match self.bad {
            Some(bad) => not_started(&bad),
            None => Outcome::immediate(Cause::Preflight),
        }
    }

    #[allow(clippy::too_many_lines, reason = "the one place where all parts meet, in the order in which they start")]
    fn assemble(self, signals: Option<signals::SignalSource>) -> Result<Parts, StartError> {
        if let Some(bad) = self.bad {
            return Err(bad);
        }
        let config = self.config;
        let descriptors = limits::raise_nofile_limit();
        // Whoever catches the signals is the whole process: what was passed to it, and what it tells systemd.
        let owns_process = signals.is_some();
        let ListenSocket { listener, inherited } = if owns_process {
            socket::inherit_or_bind(config.listen)?
        } else {
            ListenSocket { listener: socket::bind(config.listen)?, inherited: false }
        };
        let system = |what| move |error: io::Error| StartError::System(what, error);
        socket::prepare(&listener, config.request_timeout).map_err(system("socket options"))?;
        let gate = Arc::new(AcceptGate::new(&listener).map_err(system("the listening socket"))?);

        let mut crew = self.crew.grace(config.grace);
        let (stop, stopper) = (crew.stop(), crew.stopper());
        let phase = Arc::new(Lifecycle::default());
        let stop_state = Arc::new(StopState::default());
        let events = {
            let (changed, leaking) = (stopper.clone(), stopper.clone());
            Arc::new(Events {
                changed: Box::new(move || changed.recheck()),
                leaking: Box::new(move |leaked, limit| {
                    let why = format!("tiny_http has leaked {leaked} connections (limit {limit})");
                    leaking.command(Command::EngineLeak(why));
                }),
            })
        };
        let connections = Arc::new(ConnectionTable::default());
        let max_connections = config.max_connections.min(connections_for(descriptors, limits::max_threads()));
        let limits = Settings {
            max_connections,
            idle_timeout: config.idle_timeout,
            request_timeout: config.request_timeout,
            keepalive_min: config.keepalive_min,
            leak_limit: (max_connections as u64 / 4).clamp(16, 1024),
        };
        let monitor =
            Monitor::new(Arc::clone(&connections), Arc::clone(&gate), Arc::clone(&stop_state), limits, events);
        let monitor = Arc::new(monitor.map_err(system("the monitor's descriptors"))?);
        let pool = Pool::new(config.workers, config.queue, crew.reserve("workers"));
        {
            let pool = Arc::clone(&pool);
            crew.on_interrupt(pool.slot(), move || pool.close());
        }

        let mut routes = self.routes;
        let state = ServiceState {
            connections: Arc::clone(&connections),
            pool: Arc::clone(&pool) as _,
            phase: Arc::clone(&phase),
            dispatch: Arc::default(),
            queue: config.queue,
            max_connections,
        };
        let address = gate.address();
        let record_request_line = self.operations.access_log;
        let exposure = self.operations.exposure_warning(address);
        let observers = self.operations.install(&mut routes, &state, &stopper, address)?;
        let dispatch = Arc::new(Dispatch {
            connections: Arc::clone(&connections),
            routes,
            pool: Arc::clone(&pool),
            monitor: Arc::clone(&monitor),
            phase: Arc::clone(&phase),
            stop: stop.clone(),
            observers,
            record_request_line,
            max_body: config.max_body,
            stats: Arc::clone(&state.dispatch),
        });

        let system = |what| move |error: io::Error| StartError::System(what, error);
        if let Some(registered) = signals {
            let dump = StateDump { began: Instant::now(), members: crew.members(), gate: Arc::clone(&gate), state };
            crew.spawn_signals(registered, move || dump.log()).map_err(system("the signal thread"))?;
        }
        let watcher = {
            let (of_thread, of_interrupt) = (Arc::clone(&monitor), Arc::clone(&monitor));
            crew.spawn_member("monitor", Some(Box::new(move || of_interrupt.stop())), move || of_thread.run())
                .map_err(system("the monitor's thread"))?
        };
        for Member { name, interrupt, body } in self.members {
            let stop = stop.clone();
            crew.spawn_member(&name, Some(interrupt), move || body(&stop)).map_err(system("a member's thread"))?;
        }
        // Before somebody can ask for a change.
        let changes = (owns_process && systemd::is_enabled()).then(|| phase.changes());
        // Last, since from here on requests arrive.
        let engine = Engine::start(gate.listener()).map_err(system("tiny_http"))?;
        let listening =
            Arc::new(ReceiveLoop::new(Arc::clone(&dispatch), Arc::clone(&gate), Arc::clone(&monitor), &engine));
        {
            // The listener holds the keeper: held in turn, neither would ever be dropped.
            let listening = Arc::downgrade(&listening);
            monitor.on_dead_engine(move || {
                if let Some(listening) = listening.upgrade() {
                    listening.replace_engine();
                }
            });
        }
        {
            let (of_thread, of_interrupt) = (Arc::clone(&listening), Arc::clone(&listening));
            crew.spawn_with_interrupt("listener", move || of_interrupt.stop(), move || of_thread.run())
                .map_err(system("the listener's thread"))?;
        }
        if let Some(changes) = changes {
            let watch = SystemdNotifier {
                connections: Arc::clone(&connections),
                gate: Arc::clone(&gate),
                monitor: Arc::clone(&monitor),
                phase: Arc::clone(&phase),
                pool: Arc::clone(&pool) as _,
                changes,
                request_timeout: config.request_timeout,
                grace: config.grace,
            };
            crew.spawn("systemd", move |_| watch.run()).map_err(system("the thread that tells systemd"))?;
        }
        log::info!("listening on http://{address}");
        if let Some(exposure) = exposure {
            log::warn!("{exposure}");
        }
        log::info!(
            "at most {} workers, {} requests in the queue, {max_connections} connections",
            config.workers,
            config.queue
        );
        if !std::path::Path::new("/proc/self").exists() {
            log::warn!(
                "/proc is not mounted: a limit on threads is not known, a renewal finds no binary, SIGUSR1 names no threads"
            );
        }
        let drain = Drain {
            connections,
            gate: Arc::clone(&gate),
            monitor,
            phase,
            stop_state,
            listener: listening,
            watcher,
            workers: pool.slot(),
            delay: config.drain_delay,
            handover: inherited,
        };
        Ok(Parts {
            crew,
            drain,
            gate,
            listener,
            engine,
            pool,
            address,
            inherited,
            owns_process,
            grace: config.grace,
            before: self.before_drain,
            after: self.after_drain,
        })
    }
}

fn erase<R: Into<Response>>(handler: impl Fn(&mut Request) -> R + Send + Sync + 'static) -> Handler {
    Arc::new(move |request| handler(request).into())
}

fn not_started(error: &StartError) -> Outcome {
    log::error!("{error}");
    Outcome::immediate(Cause::NotStarted(error.to_string()))
}

/// As many connections as the descriptors suffice for: two each for tiny_http, one for the keeper, one for what its
/// handler may open; and some for everything else.
///
/// And as threads do: one each for tiny_http; a quarter of them is for workers, and some for everything else.
fn connections_for(descriptors: u64, threads: u64) -> usize {
    const EVERYTHING_ELSE: u64 = 64;
    const OTHER_THREADS: u64 = 16;
    let by_descriptors = descriptors.saturating_sub(EVERYTHING_ELSE) / 4;
    let by_threads = threads.saturating_sub(OTHER_THREADS) / 4 * 3;
    usize::try_from(by_descriptors.min(by_threads)).unwrap_or(usize::MAX).max(8)
}

/// All parts of a service, started.
struct Parts {
    crew: Crew,
    drain: Drain,
    gate: Arc<AcceptGate>,
    listener: TcpListener,
    engine: Engine,
    pool: Arc<Pool<crate::dispatch::Job>>,
    address: SocketAddr,
    /// Others hold the listening socket as well.
    inherited: bool,
    owns_process: bool,
    grace: Duration,
    before: Vec<Hook>,
    after: Vec<Hook>,
}

impl Parts {
    fn run(mut self) -> Outcome {
        let cause = self.cause();
        let reexecs = matches!(cause, Cause::Reexec(_));
        self.drain.handover |= reexecs;
        let mut shutdown = Shutdown::new(cause, self.grace);
        if reexecs {
            self.drain.phase.set_reexecuting();
        }
        self.drain.run(&mut self.crew, &mut shutdown, self.before, self.after);
        if shutdown.forced_by.is_none() && shutdown.abandoned.is_empty() {
            self.pool.join();
        }
        if reexecs && shutdown.forced_by.is_none() {
            log::info!("re-executing, {} after the first message", human_duration(shutdown.started.elapsed()));
            let error = renewal::exec_new_image(&self.listener, self.inherited);
            shutdown.failures.push(format!("the renewal failed: {error}"));
        }
        if self.inherited {
            // Dropping tiny_http's server would connect to a port that is somebody else's by now.
            std::mem::forget(self.engine);
        } else {
            // The port is free from here on, and dropping tiny_http's server, which connects to it, comes back at once.
            engine::shut_listener(self.gate.listener());
        }
        let outcome = shutdown.outcome();
        if outcome.code() == 0 {
            log::info!("{outcome}");
        } else {
            log::error!("{outcome}");
        }
        outcome
    }

    /// The first message that counts. A renewal counts once the next image has been rehearsed, while the service goes on.
    fn cause(&mut self) -> Cause {
        let began = Instant::now();
        let mut worn: Option<String> = None;
        let mut preflight: Option<(String, Preflight)> = None;
        loop {
            let until = match (&preflight, &worn) {
                (Some(_), _) => Some(Instant::now() + PREFLIGHT_TICK),
                (None, Some(_)) => Some(began + MIN_LEAK_REEXEC_INTERVAL),
                (None, None) => None,
            };
            match self.crew.wait_first_until(until) {
                Some(Cause::Reexec(why)) if !self.owns_process => {
                    log::warn!("{why} ignored: only Service::run can re-exec, not Service::start");
                }
                Some(Cause::Reexec(why)) if preflight.is_none() => preflight = rehearse(why),
                Some(Cause::Reexec(_)) | None => {}
                Some(Cause::EngineLeak(why)) if self.owns_process => {
                    log::warn!("{why}");
                    worn = Some(why);
                }
                Some(cause) => return cause,
            }
            if worn.is_some() && preflight.is_none() && renewal::may_reexec_for_leak(began) {
                preflight = worn.take().and_then(rehearse);
            }
            if let Some((why, result)) = preflight.as_mut().and_then(|(why, it)| Some((why.clone(), it.result()?))) {
                preflight = None;
                match result {
                    Ok(()) => return Cause::Reexec(why),
                    Err(error) => log::error!("re-exec cancelled ({why}): {error}"),
                }
            }
        }
    }
}

fn rehearse(why: String) -> Option<(String, Preflight)> {
    match Preflight::start() {
        Ok(preflight) => Some((why, preflight)),
        Err(error) => {
            log::error!("re-exec cancelled ({why}): the new binary cannot be started: {error}");
            None
        }
    }
}

/// A service that was [started](Service::start) within this process. It is stopped, and waited for, when this is dropped.
#[derive(Debug)]
#[must_use = "the service is stopped when its handle is dropped"]
pub struct ServiceHandle {
    address: SocketAddr,
    stopper: Stopper,
    thread: Option<JoinHandle<Outcome>>,
}

impl ServiceHandle {
    /// Where it listens, with the port that was picked.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What stops it, from any thread.
    pub fn stopper(&self) -> Stopper {
        self.stopper.clone()
    }

    /// Stops it, and waits until it is out: as long as its grace, at most.
    pub fn stop(mut self, reason: &str) -> Outcome {
        self.stopper.stop(reason);
        self.join()
    }

    /// Waits until it is out, for whichever cause.
    pub fn wait(mut self) -> Outcome {
        self.join()
    }

    fn join(&mut self) -> Outcome {
        let Some(thread) = self.thread.take() else {
            return Outcome::immediate(Cause::Requested("it was joined before".to_owned()));
        };
        thread.join().unwrap_or_else(|payload| {
            let message = format!("the thread that ran the service panicked: {}", panic_message(payload.as_ref()));
            Outcome::immediate(Cause::NotStarted(message))
        })
    }
}

impl Drop for ServiceHandle {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.stopper.stop("its handle was dropped");
            let _ = self.join(); // the log has it
        }
    }
}
