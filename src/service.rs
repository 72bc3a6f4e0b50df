//! A service: put together, started, run to its end.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::book::Book;
use crate::config::Config;
use crate::crew::{Crew, Departure, Stopper, panic_message};
use crate::descriptors;
use crate::dispatch::Dispatch;
use crate::drain::{Drain, Hook};
use crate::engine::{self, Engine};
use crate::gate::Gate;
use crate::http::reply::Reply;
use crate::http::request::Request;
use crate::http::routes::{BadRoute, Handler, Routes};
use crate::keeper::{Keeper, Limits};
use crate::listener::Listener;
use crate::operations::{Operations, Sources};
use crate::outcome::{Cause, Outcome, in_words};
use crate::phase::Current;
use crate::renewal::{self, Rehearsal, WORN_AGAIN};
use crate::report::Report;
use crate::signals;
use crate::socket::{self, Listening, StartError};
use crate::stop::Stop;
use crate::systemd::{self, Watch};
use crate::workers::Pool;

/// How often the rehearsal of a renewal is looked after.
const REHEARSAL_TICK: Duration = Duration::from_millis(5);

type Body = Box<dyn FnOnce(Stop) -> Result<(), String> + Send>;

/// A service that is being put together.
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
    config: Config,
    routes: Routes,
    members: Vec<(String, Body)>,
    before_drain: Vec<Hook>,
    after_last_request: Vec<Hook>,
    operations: Operations,
    bad: Option<BadRoute>,
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
            routes: Routes::default(),
            members: Vec::new(),
            before_drain: Vec::new(),
            after_last_request: Vec::new(),
            operations: Operations::default(),
            bad: None,
        }
    }

    /// Answers `GET` (and `HEAD`) on `path`, which may have parameters: `/hello/{name}`, `/files/{*path}`.
    ///
    /// The handler runs on a worker's thread, so that it may wait. A path that cannot be, or is taken, keeps the service
    /// from starting.
    pub fn get<R: Into<Reply>>(
        self,
        path: &str,
        handler: impl Fn(&mut Request) -> R + Send + Sync + 'static,
    ) -> Service {
        self.route("GET", path, handler)
    }

    /// Answers `POST` on `path`; see [`get`](Service::get).
    pub fn post<R: Into<Reply>>(
        self,
        path: &str,
        handler: impl Fn(&mut Request) -> R + Send + Sync + 'static,
    ) -> Service {
        self.route("POST", path, handler)
    }

    /// Answers `PUT` on `path`; see [`get`](Service::get).
    pub fn put<R: Into<Reply>>(
        self,
        path: &str,
        handler: impl Fn(&mut Request) -> R + Send + Sync + 'static,
    ) -> Service {
        self.route("PUT", path, handler)
    }

    /// Answers `DELETE` on `path`; see [`get`](Service::get).
    pub fn delete<R: Into<Reply>>(
        self,
        path: &str,
        handler: impl Fn(&mut Request) -> R + Send + Sync + 'static,
    ) -> Service {
        self.route("DELETE", path, handler)
    }

    /// Answers this method, in capitals, on `path`; see [`get`](Service::get).
    pub fn route<R: Into<Reply>>(
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
    pub fn quick<R: Into<Reply>>(
        self,
        method: &str,
        path: &str,
        handler: impl Fn(&mut Request) -> R + Send + Sync + 'static,
    ) -> Service {
        self.add(method, path, true, erase(handler))
    }

    /// Answers every path that no route claims, whatever the method. Without it such paths are 404.
    pub fn fallback<R: Into<Reply>>(mut self, handler: impl Fn(&mut Request) -> R + Send + Sync + 'static) -> Service {
        self.routes.set_fallback(false, erase(handler));
        self
    }

    /// As [`fallback`](Service::fallback), for a handler that is [quick](Service::quick).
    pub fn quick_fallback<R: Into<Reply>>(
        mut self,
        handler: impl Fn(&mut Request) -> R + Send + Sync + 'static,
    ) -> Service {
        self.routes.set_fallback(true, erase(handler));
        self
    }

    fn add(mut self, method: &str, path: &str, quick: bool, handler: Handler) -> Service {
        if let Err(error) = self.routes.add(method, path, quick, handler) {
            self.bad.get_or_insert(error);
        }
        self
    }

    /// Adds a member to the crew: a thread of this name that lives and dies with the service.
    ///
    /// It is told to leave by `stop`, once the last request has been answered or grace is nearly over, and is waited for
    /// within the grace. If it ends before, in whichever way, everyone goes out.
    pub fn member<E: fmt::Display>(
        mut self,
        name: &str,
        body: impl FnOnce(Stop) -> Result<(), E> + Send + 'static,
    ) -> Service {
        self.members.push((name.to_owned(), Box::new(move |stop| body(stop).map_err(|error| error.to_string()))));
        self
    }

    /// Runs `hook` when the drain begins, on the thread that runs the service. It should be short: the drain waits.
    pub fn before_drain(mut self, hook: impl FnOnce() + Send + 'static) -> Service {
        self.before_drain.push(Box::new(hook));
        self
    }

    /// Runs `hook` after the last request has been answered (or abandoned), before members are told to leave.
    pub fn after_last_request(mut self, hook: impl FnOnce() + Send + 'static) -> Service {
        self.after_last_request.push(Box::new(hook));
        self
    }

    /// Leaves out the operational routes (`/healthz`, `/readyz`, `/livez`, `/shutdown`, `/metrics`).
    pub fn without_operations(mut self) -> Service {
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
    /// Signals are caught from here on: SIGTERM, SIGINT and SIGQUIT stop, a second one at once.
    pub fn run(self) -> Outcome {
        let registered = match signals::register() {
            Ok(registered) => registered,
            Err(error) => return not_started(&StartError::System("signals", error)),
        };
        if renewal::is_rehearsal() {
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
    pub fn start(self) -> Result<Running, StartError> {
        let assembled = self.assemble(None)?;
        let address = assembled.address;
        let stopper = assembled.crew.stopper();
        let thread = thread::Builder::new()
            .name("allout".to_owned())
            .spawn(move || assembled.run())
            .map_err(|error| StartError::System("a thread", error))?;
        Ok(Running { address, stopper, thread: Some(thread) })
    }

    /// As far as a service gets without touching what the one that is running has.
    fn rehearse(self) -> Outcome {
        match self.bad {
            Some(bad) => not_started(&StartError::Route(bad)),
            None => Departure::new(Cause::Rehearsed, Duration::ZERO).outcome(),
        }
    }

    fn assemble(self, signals: Option<signals::Registered>) -> Result<Assembled, StartError> {
        if let Some(bad) = self.bad {
            return Err(StartError::Route(bad));
        }
        let config = self.config;
        let descriptors = descriptors::raise_limit();
        // Whoever catches the signals is the whole process: what was passed to it, and what it tells systemd.
        let renewable = signals.is_some();
        let Listening { listener, inherited } = if renewable {
            socket::inherit_or_bind(config.listen)?
        } else {
            Listening { listener: socket::bind(config.listen)?, inherited: false }
        };
        let system = |what| move |error: io::Error| StartError::System(what, error);
        socket::prepare(&listener, config.request_timeout).map_err(system("socket options"))?;
        let gate = Arc::new(Gate::new(&listener).map_err(system("the listening socket"))?);

        let mut crew = Crew::new().grace(config.grace);
        let (stop, stopper) = (crew.stop(), crew.stopper());
        let phase = Arc::new(Current::default());
        let book = Arc::new(Book::default());
        let max_connections = config.max_connections.min(connections_for(descriptors));
        let limits = Limits {
            max_connections,
            idle_timeout: config.idle_timeout,
            request_timeout: config.request_timeout,
            linger: config.linger,
            worn_at: (max_connections as u64 / 4).clamp(16, 1024),
        };
        let keeper = Keeper::new(Arc::clone(&book), Arc::clone(&gate), Arc::clone(&phase), limits, stopper.clone());
        let keeper = Arc::new(keeper.map_err(system("the keeper's descriptors"))?);
        let closing = Closing::default();
        let pool = {
            let closing = closing.clone();
            Pool::new(config.workers, config.queue, crew.seat("workers", move || closing.close()))
        };
        closing.set(&pool);

        let mut routes = self.routes;
        let sources = Sources {
            book: Arc::clone(&book),
            pool: Arc::clone(&pool),
            phase: Arc::clone(&phase),
            ways: Arc::default(),
            queue: config.queue,
            max_connections,
        };
        let address = gate.address();
        let keep_targets = self.operations.access_log;
        let exposure = self.operations.exposure(address);
        let watchers = self.operations.add_to(&mut routes, &sources, &stopper, address)?;
        let dispatch = Arc::new(Dispatch {
            book: Arc::clone(&book),
            routes,
            pool: Arc::clone(&pool),
            keeper: Arc::clone(&keeper),
            phase: Arc::clone(&phase),
            stop: stop.clone(),
            watchers,
            keep_targets,
            max_body: config.max_body,
            ways: Arc::clone(&sources.ways),
        });

        let system = |what| move |error: io::Error| StartError::System(what, error);
        if let Some(registered) = signals {
            let (handle, stopper) = (registered.handle(), stopper.clone());
            let (roster, gate) = (crew.roster(), Arc::clone(&gate));
            let report = Report { began: Instant::now(), roster, gate, sources };
            let listen = move || registered.listen(&stopper, || report.log());
            crew.spawn_with("signals", move || handle.close(), listen).map_err(system("the signal thread"))?;
        }
        {
            let (of_thread, of_interrupt) = (Arc::clone(&keeper), Arc::clone(&keeper));
            crew.spawn_with("keeper", move || of_interrupt.stop(), move || of_thread.run())
                .map_err(system("the keeper's thread"))?;
        }
        for (name, body) in self.members {
            let stop = stop.clone();
            crew.spawn(&name, move || body(stop)).map_err(system("a member's thread"))?;
        }
        // Before somebody can ask for a change.
        let changes = (renewable && systemd::is_asked()).then(|| phase.changes());
        // Last, since from here on requests arrive.
        let engine = Engine::start(gate.listener()).map_err(system("tiny_http"))?;
        let listening = Arc::new(Listener::new(Arc::clone(&dispatch), Arc::clone(&gate), Arc::clone(&keeper), &engine));
        {
            let listening = Arc::clone(&listening);
            keeper.on_dead_engine(move || listening.replace_engine());
        }
        {
            let (of_thread, of_interrupt) = (Arc::clone(&listening), Arc::clone(&listening));
            crew.spawn_with("listener", move || of_interrupt.stop(), move || of_thread.run())
                .map_err(system("the listener's thread"))?;
        }
        if let Some(changes) = changes {
            let watch = Watch {
                book: Arc::clone(&book),
                gate: Arc::clone(&gate),
                keeper: Arc::clone(&keeper),
                phase: Arc::clone(&phase),
                pool: Arc::clone(&pool),
                changes,
                request_timeout: config.request_timeout,
                grace: config.grace,
            };
            let told = move || {
                watch.run();
                Ok::<(), Infallible>(())
            };
            crew.spawn("systemd", told).map_err(system("the thread that tells systemd"))?;
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
        let drain = Drain {
            book,
            gate: Arc::clone(&gate),
            keeper,
            phase,
            listener: listening,
            delay: config.drain_delay,
            handover: inherited,
        };
        Ok(Assembled {
            crew,
            drain,
            gate,
            listener,
            engine,
            pool,
            address,
            inherited,
            renewable,
            grace: config.grace,
            before: self.before_drain,
            after: self.after_last_request,
        })
    }
}

fn erase<R: Into<Reply>>(handler: impl Fn(&mut Request) -> R + Send + Sync + 'static) -> Handler {
    Arc::new(move |request| handler(request).into())
}

fn not_started(error: &StartError) -> Outcome {
    log::error!("{error}");
    Departure::new(Cause::NotStarted(error.to_string()), Duration::ZERO).outcome()
}

/// As many connections as the descriptors suffice for: two each for tiny_http, one for the keeper, one for what its
/// handler may open; and some for everything else.
fn connections_for(descriptors: u64) -> usize {
    const EVERYTHING_ELSE: u64 = 64;
    usize::try_from(descriptors.saturating_sub(EVERYTHING_ELSE) / 4).unwrap_or(usize::MAX).max(8)
}

/// Breaks the circle of a pool that needs its seat, whose interrupt needs the pool.
#[derive(Clone, Default)]
struct Closing(Arc<std::sync::OnceLock<std::sync::Weak<Pool<crate::dispatch::Job>>>>);

impl Closing {
    fn set(&self, pool: &Arc<Pool<crate::dispatch::Job>>) {
        let _ = self.0.set(Arc::downgrade(pool)); // set once, right after it was made
    }

    fn close(&self) {
        if let Some(pool) = self.0.get().and_then(std::sync::Weak::upgrade) {
            pool.close();
        }
    }
}

/// All parts of a service, started.
struct Assembled {
    crew: Crew,
    drain: Drain,
    gate: Arc<Gate>,
    listener: TcpListener,
    engine: Engine,
    pool: Arc<Pool<crate::dispatch::Job>>,
    address: SocketAddr,
    /// Others hold the listening socket as well.
    inherited: bool,
    renewable: bool,
    grace: Duration,
    before: Vec<Hook>,
    after: Vec<Hook>,
}

impl Assembled {
    fn run(mut self) -> Outcome {
        let cause = self.cause();
        let renews = matches!(cause, Cause::Renewal(_));
        self.drain.handover |= renews;
        let mut departure = Departure::new(cause, self.grace);
        if renews {
            self.drain.phase.set_renewing();
        }
        self.drain.run(&mut self.crew, &mut departure, self.before, self.after);
        if departure.forced.is_none() && departure.abandoned.is_empty() {
            self.pool.join();
        }
        if renews && departure.forced.is_none() {
            log::info!("renewing, {} after the first message", in_words(departure.began.elapsed()));
            let error = renewal::become_the_next(&self.listener, self.inherited);
            departure.failures.push(format!("the renewal failed: {error}"));
        }
        if self.inherited {
            // Dropping tiny_http's server would connect to a port that is somebody else's by now.
            std::mem::forget(self.engine);
        } else {
            // The port is free from here on, and dropping tiny_http's server, which connects to it, comes back at once.
            engine::close_socket(self.gate.listener());
        }
        let outcome = departure.outcome();
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
        let mut rehearsal: Option<(String, Rehearsal)> = None;
        loop {
            let until = match (&rehearsal, &worn) {
                (Some(_), _) => Some(Instant::now() + REHEARSAL_TICK),
                (None, Some(_)) => Some(began + WORN_AGAIN),
                (None, None) => None,
            };
            match self.crew.first_before(until) {
                Some(Cause::Renewal(why)) if !self.renewable => {
                    log::warn!("cannot renew ({why}): not the whole process")
                }
                Some(Cause::Renewal(why)) if rehearsal.is_none() => rehearsal = rehearse(why),
                Some(Cause::Renewal(_)) => {}
                Some(Cause::Worn(why)) if self.renewable => {
                    log::warn!("{why}");
                    worn = Some(why);
                }
                Some(cause) => return cause,
                None => {}
            }
            if worn.is_some() && rehearsal.is_none() && renewal::may_again(began) {
                rehearsal = worn.take().and_then(rehearse);
            }
            if let Some((why, result)) = rehearsal.as_mut().and_then(|(why, it)| Some((why.clone(), it.result()?))) {
                rehearsal = None;
                match result {
                    Ok(()) => return Cause::Renewal(why),
                    Err(error) => log::error!("not renewed ({why}): {error}; going on as before"),
                }
            }
        }
    }
}

fn rehearse(why: String) -> Option<(String, Rehearsal)> {
    match Rehearsal::start() {
        Ok(rehearsal) => Some((why, rehearsal)),
        Err(error) => {
            log::error!("not renewed ({why}): the new binary cannot be started: {error}; going on as before");
            None
        }
    }
}

/// A service that was [started](Service::start) within this process.
#[derive(Debug)]
pub struct Running {
    address: SocketAddr,
    stopper: Stopper,
    thread: Option<JoinHandle<Outcome>>,
}

impl Running {
    /// Where it listens, with the port that was picked.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What stops it, from any thread.
    pub fn stopper(&self) -> Stopper {
        self.stopper.clone()
    }

    /// Stops it, and waits until it is out.
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
            return Departure::new(Cause::Asked("it was joined before".to_owned()), Duration::ZERO).outcome();
        };
        thread.join().unwrap_or_else(|payload| {
            let message = format!("the thread that ran the service panicked: {}", panic_message(payload.as_ref()));
            Departure::new(Cause::NotStarted(message), Duration::ZERO).outcome()
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.stopper.stop("its handle was dropped");
            let _ = self.join(); // the log has it
        }
    }
}
