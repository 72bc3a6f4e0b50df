//! The parts of a service, in the order in which they start.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use super::config::Config;
use super::{Member, Service};
use crate::crew::Crew;
use crate::crew::member::SlotId;
use crate::crew::message::{Command, Stopper};
use crate::crew::pool::Pool;
use crate::crew::signals::SignalSource;
use crate::dispatch::Dispatch;
use crate::engine::{Engine, Engines, Events, Exchange, Serve, Settings};
use crate::lifecycle::drain::Drain;
use crate::lifecycle::phase::Lifecycle;
use crate::listen::{self, ListenSocket};
use crate::observe::ServiceState;
use crate::observe::state_dump::StateDump;
use crate::observe::systemd::{self, SystemdNotifier};
use crate::service::error::StartError;
use crate::service::run::Parts;
use crate::sys::limits;

fn system(what: &'static str) -> impl Fn(io::Error) -> StartError {
    move |error| StartError::System(what, error)
}

impl Service {
    /// Starts all parts. With `signals`, the service owns the process: it may take inherited sockets and notify systemd.
    pub(super) fn start_parts(self, signals: Option<SignalSource>) -> Result<Parts, StartError> {
        if let Some(error) = self.bad {
            return Err(error);
        }
        let config = self.config;
        let owns_process = signals.is_some();
        let nofile = limits::raise_nofile_limit();
        let ListenSocket { listener, inherited } = open_socket(&config, owns_process)?;

        let mut crew = self.crew.grace(config.grace);
        let stopper = crew.stopper();
        let settings = settings(&config, connection_capacity(nofile, limits::max_threads()));
        let engine = Engine::new(&listener, settings, events(&stopper)).map_err(system("the listening socket"))?;
        let address = engine.address();
        let engines = Engines::new(vec![engine]);
        let pool = Pool::new(config.workers, config.queue, crew.reserve("workers"));
        {
            let pool = Arc::clone(&pool);
            crew.on_interrupt(pool.slot(), move || pool.close());
        }
        let state = ServiceState {
            engines: engines.clone(),
            pool: Arc::clone(&pool) as _,
            phase: Arc::new(Lifecycle::new(crew.stop())),
            dispatch: Arc::default(),
            queue: config.queue,
            max_connections: settings.max_connections,
        };

        let mut router = self.routes;
        let record_request_line = self.operations.access_log;
        let exposure = self.operations.exposure_warning(address);
        let observers = self.operations.install(&mut router, &state, &stopper, address)?;
        let dispatch = Arc::new(Dispatch {
            router,
            around: self.around,
            pool: Arc::clone(&pool),
            stop: crew.stop(),
            observers,
            record_request_line,
            max_body: config.max_body,
            stats: Arc::clone(&state.dispatch),
        });

        if let Some(signals) = signals {
            spawn_signals(&mut crew, signals, state.clone())?;
        }
        spawn_members(&mut crew, self.members)?;
        spawn_notifier(&mut crew, owns_process, &state, &config)?;
        // Last, since requests arrive from here on.
        let watchers = start_engines(&mut crew, &engines, dispatch)?;
        announce(&config, address, settings.max_connections, exposure);

        let drain = Drain {
            engines,
            phase: state.phase,
            watchers,
            workers: pool.slot(),
            delay: config.drain_delay,
            keepalive_min: config.keepalive_min,
            inherited,
        };
        Ok(Parts {
            crew,
            drain,
            listener,
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

fn open_socket(config: &Config, owns_process: bool) -> Result<ListenSocket, StartError> {
    let socket = if owns_process {
        listen::inherit_or_bind(config.listen)?
    } else {
        ListenSocket { listener: listen::bind(config.listen)?, inherited: false }
    };
    listen::prepare(&socket.listener, config.request_timeout).map_err(system("socket options"))?;
    Ok(socket)
}

fn settings(config: &Config, capacity: usize) -> Settings {
    let max_connections = config.max_connections.min(capacity);
    Settings {
        max_connections,
        idle_timeout: config.idle_timeout,
        request_timeout: config.request_timeout,
        keepalive_min: config.keepalive_min,
        leak_limit: (max_connections as u64 / 4).clamp(16, 1024),
        max_discard: config.max_body,
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

fn spawn_signals(crew: &mut Crew, signals: SignalSource, state: ServiceState) -> Result<(), StartError> {
    let dump = StateDump { began: Instant::now(), members: crew.members(), state };
    crew.spawn_signals(signals, move || dump.log()).map_err(system("the signal thread"))
}

fn spawn_members(crew: &mut Crew, members: Vec<Member>) -> Result<(), StartError> {
    for Member { name, interrupt, body } in members {
        let stop = crew.stop();
        crew.spawn_member(&name, Some(interrupt), move || body(&stop)).map_err(system("the thread of a member"))?;
    }
    Ok(())
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
        phase: Arc::clone(&state.phase),
        pool: Arc::clone(&state.pool),
        request_timeout: config.request_timeout,
        grace: config.grace,
    };
    crew.spawn("systemd", move |_| notifier.run()).map_err(system("the thread that notifies systemd"))
}

fn start_engines(crew: &mut Crew, engines: &Engines, dispatch: Arc<Dispatch>) -> Result<Vec<SlotId>, StartError> {
    let serve: Arc<Serve> = Arc::new(move |exchange: Exchange| dispatch.serve(exchange));
    let mut slots = Vec::new();
    for engine in engines.iter() {
        engine.start(Arc::clone(&serve)).map_err(system(engine.name()))?;
        for thread in engine.threads() {
            let spawned = crew.spawn_member(thread.name, Some(thread.interrupt), thread.run);
            slots.push(spawned.map_err(system("a thread of the engine"))?);
        }
    }
    Ok(slots)
}

fn announce(config: &Config, address: SocketAddr, max_connections: usize, exposure: Option<String>) {
    log::info!("listening on http://{address}");
    if let Some(exposure) = exposure {
        log::warn!("{exposure}");
    }
    let Config { workers, queue, .. } = config;
    log::info!("at most {workers} workers, {queue} requests in the queue, {max_connections} connections");
    if !std::path::Path::new("/proc/self").exists() {
        log::warn!(
            "/proc is not mounted: the limit on threads is unknown, re-exec finds no binary, SIGUSR1 lists no threads"
        );
    }
}

/// Connections that the descriptors suffice for: two each for the engine, one for the monitor, one that the handler may
/// open; and some for everything else. Threads likewise: one each, a quarter of all for workers.
fn connection_capacity(descriptors: u64, threads: u64) -> usize {
    const OTHER_DESCRIPTORS: u64 = 64;
    const OTHER_THREADS: u64 = 16;
    let by_descriptors = descriptors.saturating_sub(OTHER_DESCRIPTORS) / 4;
    let by_threads = threads.saturating_sub(OTHER_THREADS) / 4 * 3;
    usize::try_from(by_descriptors.min(by_threads)).unwrap_or(usize::MAX).max(8)
}
