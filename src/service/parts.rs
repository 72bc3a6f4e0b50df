//! The parts of a service, in the order in which they start.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::unbounded;

use super::capacity::{Capacity, Limits};
use super::config::Config;
use super::kernel::Losses;
use super::{Service, kernel, member};
use crate::admin::status::Facts;
use crate::admin::{AdminRoutes, Observed};
use crate::crew::Crew;
use crate::crew::member::{Exit, SlotId, catch_exit};
use crate::crew::message::{Command, Stopper};
use crate::crew::outcome::Cause;
use crate::crew::pool::Pool;
use crate::crew::signals::SignalSource;
use crate::dispatch::{Dispatch, Job};
use crate::engine::{Address, EngineKind, Engines, Events, Exchange, Serve, Settings};
use crate::http::automatic::HeaderLines;
use crate::lifecycle::drain::Drain;
use crate::lifecycle::phase::Lifecycle;
use crate::lifecycle::reexec;
use crate::listen::{self, ListenSocket, Role, Wanted};
use crate::observe::ServiceState;
use crate::observe::state_dump::StateDump;
use crate::observe::systemd::{self, SystemdNotifier};
use crate::service::OnListening;
use crate::service::error::{NotStarted, StartError};
use crate::service::run::Parts;

fn system(what: &'static str) -> impl Fn(io::Error) -> StartError {
    move |error| StartError::System(what, error)
}

impl Service {
    /// Starts all parts. With `signals`, the service owns the process: it may take inherited sockets and notify systemd.
    pub(super) fn start_parts(self, signals: Option<SignalSource>) -> Result<Parts, NotStarted> {
        if let Some(error) = self.error {
            return Err(error.into());
        }
        let (dispatch_settings, config) = (self.dispatch_settings(), self.config);
        config.check()?;
        let owns_process = signals.is_some();
        let (limits, losses) = (Limits::for_engine(config.engine)?, kernel::check(config.engine)?);
        let sockets = open_sockets(&config, self.listeners, owns_process)?;

        let mut crew = self.crew.grace(config.grace);
        let stopper = crew.stopper();
        let capacity = Capacity::new(&config, sockets.len(), limits);
        let settings = settings(&config, capacity.connections, self.automatic);
        let engines = new_engines(config.engine, &sockets, settings, &stopper)?;
        let listening: Vec<_> =
            engines.iter().zip(&sockets).map(|(engine, socket)| (engine.address().clone(), socket.role)).collect();
        let pool = new_pool(capacity.workers, config.queue, &mut crew);
        let connections = settings.max_connections * sockets.len();
        let state = new_state(&crew, engines.clone(), &pool, config.queue, connections);

        let own_router = listening.iter().any(|(_, role)| *role == Role::Admin);
        let exposure = exposure_warnings(&self.admin, &listening, own_router);
        let facts = facts(&config, &listening, capacity.bound());
        let installed =
            self.admin.install(self.routes, own_router, &state, &stopper, facts).map_err(StartError::from)?;
        let dispatch = |Observed { router, observers }: Observed| {
            Arc::new(Dispatch {
                router,
                pool: Arc::clone(&pool),
                stop: crew.stop(),
                observers,
                stats: Arc::clone(&state.dispatch),
                settings: dispatch_settings.clone(),
            })
        };
        let service = dispatch(installed.service);
        let admin = installed.admin.map(dispatch);

        let started = spawn_signals(&mut crew, signals, &state)
            .and_then(|()| member::spawn(&mut crew, self.members))
            .and_then(|()| spawn_notifier(&mut crew, owns_process, &state, &config))
            // Last, since requests arrive from here on.
            .and_then(|()| start_engines(&mut crew, &engines, &listening, &service, admin.as_ref()));
        let engine_threads = match started {
            Ok(threads) => threads,
            Err(error) => return Err(undo(crew, &engines, &sockets, error)),
        };
        announce(&config, &listening, &capacity);
        warn(&exposure, &losses);
        let addresses = tell_addresses(&listening, self.on_listening, &mut crew);

        let drain = Drain {
            engines,
            lifecycle: state.lifecycle,
            engine_threads,
            workers: pool.slot(),
            delay: config.drain_delay,
            keepalive_min: config.keepalive_min,
            outlive_us: sockets.iter().map(|socket| socket.outlives_us).collect(),
        };
        Ok(Parts {
            crew,
            drain,
            sockets,
            pool,
            addresses,
            may_reexec: owns_process && config.reexec,
            grace: config.grace,
            before: self.before_drain,
            after: self.after_drain,
        })
    }
}

/// Stops the parts that had started when another one failed to, so that a start that fails leaves nothing behind.
fn undo(crew: Crew, engines: &Engines, sockets: &[ListenSocket], error: StartError) -> NotStarted {
    let cause = match &error {
        StartError::Stopped(cause) => cause.clone(),
        error => Cause::NotStarted(error.to_string()),
    };
    let outcome = crew.finish(cause);
    for (engine, socket) in engines.iter().zip(sockets) {
        engine.finish(socket.outlives_us);
    }
    NotStarted::Stopped(error, Box::new(outcome))
}

/// All listening sockets, the main ones first.
pub(super) fn open_sockets(
    config: &Config,
    listeners: Vec<TcpListener>,
    owns_process: bool,
) -> Result<Vec<ListenSocket>, StartError> {
    let wanted = Wanted {
        main: &config.listen,
        unix: &config.listen_unix,
        admin: config.admin_listen,
        receive_buffer: config.engine.receive_buffer(),
    };
    let own: Result<Vec<_>, _> = listeners.into_iter().map(|own| listen::adopt(own, wanted.receive_buffer)).collect();
    let opened =
        if owns_process { listen::open_inherited(&wanted, reexec::inherited())? } else { listen::open(&wanted)? };
    let mut sockets = own?;
    sockets.extend(opened);
    let unix = sockets.iter().find_map(|socket| match Address::of(&socket.listener) {
        Ok(Address::Unix(path)) => Some(path),
        _ => None,
    });
    check_unix(config.engine, unix)?;
    if sockets.is_empty() {
        return Err(StartError::Unresolved(io::Error::new(io::ErrorKind::InvalidInput, "none is given")));
    }
    Ok(sockets)
}

/// Refuses an engine that cannot serve a Unix socket, if there is one at this path.
pub(super) fn check_unix(engine: EngineKind, path: Option<PathBuf>) -> Result<(), StartError> {
    match path {
        Some(path) if engine != EngineKind::Native => {
            let why = "the tiny-http engine cannot tell its clients apart: choose the native engine";
            Err(StartError::UnixSocket(path, io::Error::new(io::ErrorKind::Unsupported, why)))
        }
        _ => Ok(()),
    }
}

fn new_engines(
    kind: EngineKind,
    sockets: &[ListenSocket],
    settings: Settings,
    stopper: &Stopper,
) -> Result<Engines, StartError> {
    let engine = |socket: &ListenSocket| kind.engine(&socket.listener, settings, events(stopper));
    let engines: io::Result<Vec<_>> = sockets.iter().map(engine).collect();
    Ok(Engines::new(engines.map_err(system("the listening socket"))?))
}

/// Calls the functions of [`on_listening`](Service::on_listening) with the internet addresses, and returns those. A
/// panic there stops the service, as the panic of a member does.
fn tell_addresses(listening: &[(Address, Role)], on_listening: Vec<OnListening>, crew: &mut Crew) -> Vec<SocketAddr> {
    let addresses: Vec<_> = listening.iter().filter_map(|(address, _)| address.inet()).collect();
    for tell in on_listening {
        if let Exit::Panicked(message) = catch_exit(|| tell(&addresses)) {
            crew.reserve("on_listening").report(Exit::Panicked(message));
        }
    }
    addresses
}

/// The pool of the workers, closed when the crew stops.
fn new_pool(workers: usize, queue: usize, crew: &mut Crew) -> Arc<Pool<Job>> {
    let pool = Pool::new(workers, queue, crew.reserve("workers"));
    let closed = Arc::clone(&pool);
    crew.on_interrupt(pool.slot(), move || closed.close());
    pool
}

/// The facts that `/status` shows and that do not change while the service runs.
pub(super) fn facts(config: &Config, listening: &[(Address, Role)], bound: String) -> Facts {
    Facts {
        engine: config.engine.name(),
        addresses: listening.iter().map(|(address, role)| (role.fd_name(), address.to_string())).collect(),
        ports: listening.iter().filter_map(|(address, _)| Some(address.inet()?.port())).collect(),
        bound,
        grace: config.grace,
        drain_delay: config.drain_delay,
        keepalive_min: config.keepalive_min,
        idle_timeout: config.idle_timeout,
        request_timeout: config.request_timeout,
        max_body: config.max_body,
    }
}

/// The state that metrics, status page and state dump read.
fn new_state(
    crew: &Crew,
    engines: Engines,
    pool: &Arc<Pool<Job>>,
    queue: usize,
    max_connections: usize,
) -> ServiceState {
    ServiceState {
        engines,
        pool: Arc::clone(pool) as _,
        lifecycle: Arc::new(Lifecycle::new(crew.stop())),
        dispatch: Arc::default(),
        queue,
        max_connections,
        members: crew.members(),
        began: Instant::now(),
    }
}

fn exposure_warnings(admin: &AdminRoutes, listening: &[(Address, Role)], own_router: bool) -> Vec<String> {
    let warning =
        |(address, role): &(Address, Role)| admin.exposure_warning(address.inet()?, own_router, *role == Role::Admin);
    listening.iter().filter_map(warning).collect()
}

fn settings(config: &Config, max_connections: usize, automatic: HeaderLines) -> Settings {
    Settings {
        max_connections,
        idle_timeout: config.idle_timeout,
        request_timeout: config.request_timeout,
        keepalive_min: config.keepalive_min,
        leak_limit: (max_connections as u64 / 4).clamp(4, 1024),
        receivers: config.receivers,
        max_discard: config.max_body,
        automatic,
    }
}

fn events(stopper: &Stopper) -> Events {
    let (changed, leaking) = (stopper.clone(), stopper.clone());
    Events {
        changed: Box::new(move || changed.recheck()),
        leaking: Box::new(move |leaked, limit| {
            leaking.command(Command::EngineLeak(format!("the engine has leaked {leaked} connections (limit {limit})")));
        }),
    }
}

fn spawn_signals(crew: &mut Crew, signals: Option<SignalSource>, state: &ServiceState) -> Result<(), StartError> {
    let Some(signals) = signals else { return Ok(()) };
    let dump = StateDump { state: state.clone() };
    crew.spawn_signals(signals, move || dump.log()).map_err(system("the signal thread"))
}

fn spawn_notifier(
    crew: &mut Crew,
    owns_process: bool,
    state: &ServiceState,
    config: &Config,
) -> Result<(), StartError> {
    if !owns_process || !systemd::is_enabled() {
        return Ok(());
    }
    let notifier = SystemdNotifier {
        engines: state.engines.clone(),
        lifecycle: Arc::clone(&state.lifecycle),
        pool: Arc::clone(&state.pool),
        request_timeout: config.request_timeout,
        grace: config.grace,
    };
    crew.spawn("systemd", move |_| notifier.run()).map_err(system("the thread that notifies systemd"))
}

/// Starts all engines. None receives before the threads of all have been created.
fn start_engines(
    crew: &mut Crew,
    engines: &Engines,
    listening: &[(Address, Role)],
    service: &Arc<Dispatch>,
    admin: Option<&Arc<Dispatch>>,
) -> Result<Vec<SlotId>, StartError> {
    let serve = |dispatch: &Arc<Dispatch>| -> Arc<Serve> {
        let dispatch = Arc::clone(dispatch);
        Arc::new(move |exchange: Exchange| dispatch.serve(exchange))
    };
    for (engine, (_, role)) in engines.iter().zip(listening) {
        let dispatch = admin.filter(|_| *role == Role::Admin).unwrap_or(service);
        Arc::clone(engine).start(&serve(dispatch)).map_err(system(engine.kind().name()))?;
    }
    // Each engine thread waits for one message from this thread, and then runs. If this function returns early, they
    // end instead, because the channel is disconnected. It is unbounded: no send blocks.
    let (go, gate) = unbounded::<()>();
    let mut slots = Vec::new();
    for (index, engine) in engines.iter().enumerate() {
        for thread in Arc::clone(engine).threads() {
            let name = if index == 0 { thread.name.to_owned() } else { format!("{}-{}", thread.name, index + 1) };
            let (gate, run) = (gate.clone(), thread.run);
            let run = move || if gate.recv().is_ok() { run() } else { Ok(()) };
            let spawned = crew.spawn_member(&name, Some(thread.interrupt), run);
            slots.push(spawned.map_err(system("a thread of the engine"))?);
        }
    }
    slots.iter().try_for_each(|_| go.send(())).ok(); // the receiver is here
    Ok(slots)
}

fn warn(exposure: &[String], losses: &Losses) {
    exposure.iter().chain(&losses.warning).for_each(|warning| log::warn!("{warning}"));
    losses.note.iter().for_each(|note| log::info!("{note}"));
}

/// Logs one line that says what serves, where, and within which limits: at the start, and after each re-exec.
fn announce(config: &Config, listening: &[(Address, Role)], capacity: &Capacity) {
    let of = |wanted: Role| {
        let urls = listening.iter().filter(|(_, role)| *role == wanted).map(|(address, _)| address.url());
        urls.collect::<Vec<_>>().join(" ")
    };
    let (listen, admin) = (of(Role::Main), of(Role::Admin));
    let connections = capacity.connections * listening.len();
    let (engine, workers, queue) = (config.engine.name(), capacity.workers, config.queue);
    let (version, pid, bound) = (env!("CARGO_PKG_VERSION"), std::process::id(), capacity.bound());
    let commit = option_env!("ALLOUT_COMMIT").unwrap_or_default();
    let build = if commit.is_empty() { String::new() } else { format!(" ({commit})") };
    let admin_routes = if admin.is_empty() { String::new() } else { format!(", admin routes on {admin}") };
    log::info!(
        target: "allout::lifecycle",
        version, commit, pid, engine, listen = *listen, admin = *admin, workers, queue, connections;
        "allout {version}{build}, pid {pid}, {engine} engine, at most {workers} workers, {queue} requests in the queue, \
         {connections} connections{bound}: listening on {listen}{admin_routes}"
    );
}

#[cfg(all(test, feature = "tiny-http"))]
mod tests {
    use super::*;

    #[test]
    fn only_the_engine_that_reads_ahead_is_given_a_small_receive_buffer() {
        let received_at_once = |engine| {
            let config = Config { engine, listen: vec![SocketAddr::from(([127, 0, 0, 1], 0))], ..Config::default() };
            let sockets = open_sockets(&config, Vec::new(), false).unwrap();
            socket2::SockRef::from(&sockets[0].listener).recv_buffer_size().unwrap()
        };
        let (small, of_kernel) = (received_at_once(EngineKind::TinyHttp), received_at_once(EngineKind::Native));
        let default = TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(of_kernel, socket2::SockRef::from(&default).recv_buffer_size().unwrap());
        assert!(small <= 8 * 1024 && small < of_kernel, "{small} and {of_kernel}");
    }
}
