//! The admin routes: health, readiness, liveness, `/metrics`; `/shutdown` and `/status` where they are asked for.

pub(crate) mod checks;
pub(crate) mod shutdown_guard;
pub(crate) mod status;

use std::net::SocketAddr;
use std::sync::Arc;

use crate::admin::checks::{Checks, as_json};
use crate::admin::shutdown_guard::{Guard, Passed};
use crate::admin::status::{Facts, Routes, StatusPage};
use crate::crew::message::Stopper;
use crate::dispatch::request::Request;
#[cfg(feature = "metrics")]
use crate::dispatch::router::FALLBACK;
use crate::dispatch::router::{BadRoute, Handler, Router};
use crate::http::response::Response;
use crate::lifecycle::phase::{Lifecycle, Phase};
#[cfg(feature = "metrics")]
use crate::observe::metrics::Metrics;
use crate::observe::{ResponseObserver, ServiceState, access_log};
use crate::sync::RateLimit;

/// The paths of the admin routes. A route of the service with the same path takes precedence.
#[derive(Clone)]
pub(crate) struct Paths {
    healthz: String,
    readyz: String,
    livez: String,
    shutdown: String,
    metrics: String,
    status: String,
}

impl Default for Paths {
    fn default() -> Paths {
        let [healthz, readyz, livez, shutdown, metrics, status] =
            ["/healthz", "/readyz", "/livez", "/shutdown", "/metrics", "/status"].map(str::to_owned);
        Paths { healthz, readyz, livez, shutdown, metrics, status }
    }
}

impl Paths {
    /// Moves the admin route whose default path is `from`. False if there is no such route.
    pub(crate) fn set(&mut self, from: &str, to: &str) -> bool {
        let path = match from {
            "/healthz" => &mut self.healthz,
            "/readyz" => &mut self.readyz,
            "/livez" => &mut self.livez,
            "/shutdown" => &mut self.shutdown,
            "/metrics" => &mut self.metrics,
            "/status" => &mut self.status,
            _ => return false,
        };
        to.clone_into(path);
        true
    }

    fn all(&self) -> [&str; 5] {
        [&self.healthz, &self.readyz, &self.livez, &self.shutdown, &self.metrics]
    }

    /// The path of the state as JSON.
    fn status_json(&self) -> String {
        format!("{}.json", self.status)
    }
}

/// Metrics of the application, in Prometheus' text format.
#[cfg(feature = "metrics")]
pub(crate) type OwnMetrics = Arc<dyn Fn() -> String + Send + Sync>;

/// The admin routes of a service.
#[derive(Clone)]
pub(crate) struct AdminRoutes {
    /// Whether there are admin routes at all.
    pub(crate) routes: bool,
    pub(crate) shutdown: bool,
    pub(crate) status: bool,
    /// The bearer token for `/shutdown`, and for `/status` where it is guarded.
    pub(crate) token: Option<String>,
    pub(crate) access_log: bool,
    pub(crate) paths: Paths,
    pub(crate) checks: Checks,
    #[cfg(feature = "metrics")]
    pub(crate) own_metrics: Vec<OwnMetrics>,
}

impl Default for AdminRoutes {
    fn default() -> AdminRoutes {
        AdminRoutes {
            routes: true,
            shutdown: false,
            status: false,
            token: None,
            access_log: false,
            paths: Paths::default(),
            checks: Checks::default(),
            #[cfg(feature = "metrics")]
            own_metrics: Vec::new(),
        }
    }
}

/// Why the admin routes could not be installed.
#[derive(Debug)]
pub(crate) enum InstallError {
    Route(BadRoute),
    /// `prometheus` rejects a name or a label of ours.
    #[cfg(feature = "metrics")]
    Metrics(prometheus::Error),
}

impl From<BadRoute> for InstallError {
    fn from(error: BadRoute) -> InstallError {
        InstallError::Route(error)
    }
}

impl AdminRoutes {
    /// The warning that is logged when the address is not a loopback address. `own_router`: the admin routes are served
    /// at addresses of their own; `is_admin`: this is one.
    pub(crate) fn exposure_warning(&self, address: SocketAddr, own_router: bool, is_admin: bool) -> Option<String> {
        if address.ip().to_canonical().is_loopback() {
            return None;
        }
        let reach = format!("{address} can be reached from other machines: their clients may use every route there");
        let Paths { metrics, shutdown, status, .. } = &self.paths;
        let open = if self.status && own_router { format!("{metrics} and {status}") } else { metrics.clone() };
        Some(match (self.routes && (is_admin || !own_router), self.shutdown, &self.token) {
            (false, ..) => reach,
            (true, false, _) => format!("{reach}, {open} included; there is no {shutdown}"),
            (true, true, None) => format!("{reach}, {open} included; {shutdown} is for this machine only"),
            (true, true, Some(_)) => {
                format!("{reach}, {open} included; {shutdown} is for this machine and for clients with the token")
            }
        })
    }

    /// Adds the admin routes, except where the service has a route at the same path. With `own_router` they go to a
    /// router of their own, and their paths are 404 on the service's.
    pub(crate) fn install(
        self,
        mut service: Router,
        own_router: bool,
        state: &ServiceState,
        stopper: &Stopper,
        facts: Facts,
    ) -> Result<Installed, InstallError> {
        if !self.routes {
            let observers = self.access_log.then(access_log::observer).into_iter().collect();
            return Ok(Installed { service: Observed { router: service, observers }, admin: None });
        }
        let mut separate = own_router.then(Router::default);
        let admin = separate.as_mut().unwrap_or(&mut service);
        admin.begin_admin_routes();
        add_health(admin, &self.paths, &state.lifecycle, &self.checks)?;
        let ports = facts.ports.clone();
        // Without an address there are no requests but those of the process itself.
        let guards_status = self.status && !own_router && !facts.addresses.is_empty();
        let guard = Arc::new(Guard::new(self.token, ports));
        add_shutdown(admin, &self.paths.shutdown, state, stopper, self.shutdown.then(|| Arc::clone(&guard)))?;
        #[cfg(feature = "metrics")]
        let metrics = add_metrics(admin, &self.paths.metrics, state, self.own_metrics)?;
        #[cfg(not(feature = "metrics"))]
        if !admin.has(&self.paths.metrics) {
            admin.mask(&self.paths.metrics)?; // 404, not the fallback
        }
        let mut paths: Vec<String> = self.paths.all().map(str::to_owned).into();
        if self.status {
            #[cfg(feature = "metrics")]
            let routes: Option<Routes> = {
                let metrics = Arc::clone(&metrics);
                Some(Box::new(move || metrics.routes()))
            };
            #[cfg(not(feature = "metrics"))]
            let routes: Option<Routes> = None;
            let (path, guard) = (&self.paths.status, guards_status.then_some(guard));
            let page = StatusPage::new(state.clone(), facts, self.checks, routes, guard, path);
            add_status(admin, &self.paths, page)?;
            paths.extend([path.clone(), self.paths.status_json()]);
        }
        if separate.is_some() {
            for path in paths.iter().filter(|path| !service.has(path)).collect::<Vec<_>>() {
                service.mask(path)?;
            }
        }
        let observed = |router: Router| {
            let observers = self.access_log.then(access_log::observer).into_iter();
            #[cfg(feature = "metrics")]
            let observers =
                observers.chain([metrics.observer(router.patterns().cloned().chain([Arc::from(FALLBACK)]))]);
            let observers = observers.collect();
            Observed { router, observers }
        };
        Ok(Installed { service: observed(service), admin: separate.map(observed) })
    }
}

/// A router, and the observers of its responses.
pub(crate) struct Observed {
    pub(crate) router: Router,
    pub(crate) observers: Vec<ResponseObserver>,
}

/// The routers of a service.
pub(crate) struct Installed {
    pub(crate) service: Observed,
    /// The admin routes, if they have a router of their own.
    pub(crate) admin: Option<Observed>,
}

/// Adds a route for these methods, unless the service has a route of its own there.
fn add(routes: &mut Router, methods: &[&str], path: &str, inline: bool, handler: &Handler) -> Result<(), BadRoute> {
    if routes.has(path) {
        return Ok(());
    }
    methods.iter().try_for_each(|method| routes.add(method, path, inline, Arc::clone(handler)))
}

/// Adds `/healthz`, `/readyz` and `/livez`. They are inline: they answer whatever the workers are doing.
fn add_health(routes: &mut Router, paths: &Paths, lifecycle: &Arc<Lifecycle>, checks: &Checks) -> Result<(), BadRoute> {
    let draining = || Response::text("draining\n").with_status(503).with_header("Retry-After", "1");
    let healthy: Handler = {
        let lifecycle = Arc::clone(lifecycle);
        Arc::new(move |_| no_store(if lifecycle.is_draining() { draining() } else { Response::text("ok\n") }))
    };
    let ready: Handler = {
        let (lifecycle, checks) = (Arc::clone(lifecycle), checks.clone());
        Arc::new(move |request| no_store(readiness(request, lifecycle.is_draining(), &checks)))
    };
    let live: Handler = Arc::new(|_| no_store(Response::text("ok\n")));
    add(routes, &["GET"], &paths.healthz, true, &healthy)?;
    add(routes, &["GET"], &paths.readyz, true, &ready)?;
    add(routes, &["GET"], &paths.livez, true, &live)
}

/// The response of `/readyz`: a line for each check that fails; all of them as JSON for a client that accepts JSON.
fn readiness(request: &Request, draining: bool, checks: &Checks) -> Response {
    let verdicts = checks.verdicts();
    let status = match verdicts.iter().all(|(_, verdict)| verdict.is_ok()) {
        _ if draining => "draining",
        true => "ok",
        false => "not ready",
    };
    let response = if request.header("accept").is_some_and(|accept| accept.contains("application/json")) {
        Response::new(as_json(status, &verdicts)).with_header("Content-Type", "application/json")
    } else {
        let failing = verdicts.iter().filter_map(|(name, verdict)| Some((name, verdict.as_ref().err()?)));
        let lines = failing.map(|(name, reason)| format!("{name}: {reason}\n"));
        Response::text(format!("{status}\n{}", lines.collect::<String>()))
    };
    if status == "ok" { response } else { response.with_status(503).with_header("Retry-After", "1") }
}

/// Adds `/shutdown`. Without a guard it is 404, not the fallback, whose 200 would look like success. Not inline: the
/// guard reads /proc.
fn add_shutdown(
    routes: &mut Router,
    path: &str,
    state: &ServiceState,
    stopper: &Stopper,
    guard: Option<Arc<Guard>>,
) -> Result<(), BadRoute> {
    let Some(guard) = guard else {
        return if routes.has(path) { Ok(()) } else { routes.mask(path) };
    };
    let (state, stopper, refusals) = (state.clone(), stopper.clone(), RateLimit::default());
    let handler: Handler = Arc::new(move |request| no_store(shutdown(request, &guard, &refusals, &stopper, &state)));
    add(routes, &["GET", "POST"], path, false, &handler)
}

fn shutdown(
    request: &mut Request,
    guard: &Guard,
    refusals: &RateLimit,
    stopper: &Stopper,
    state: &ServiceState,
) -> Response {
    let passed = guard.check(request);
    let verdict = passed.and_then(|passed| match passed {
        Passed::Token => Ok(()),
        Passed::Local(peer) => guard.check_process(peer, || state.lifecycle.is_stopping_for_good()),
    });
    if let Err((status, reason)) = verdict {
        if let Some(omitted) = refusals.allow() {
            log::warn!("/shutdown refused for {}: {reason} (id {}){omitted}", request.peer(), request.id());
        }
        return Response::error(status, reason);
    }
    // HEAD has the response of GET and no effect (RFC 9110, section 9.3.2).
    if request.method() != "HEAD" {
        // Before the response is written, so that it says `Connection: close`.
        state.lifecycle.enter(Phase::DrainDelay);
        state.engines.announce_close();
        stopper.stop(format!("{} /shutdown from {}", request.method(), request.peer()));
    }
    Response::text("one out, all out\n")
}

/// Adds `/status` and `/status.json`. Not inline: the guard reads /proc, and the page may be long.
fn add_status(routes: &mut Router, paths: &Paths, page: StatusPage) -> Result<(), BadRoute> {
    let page = Arc::new(page);
    for (path, as_json) in [(&paths.status, false), (&paths.status_json(), true)] {
        let page = Arc::clone(&page);
        let handler: Handler = Arc::new(move |request| no_store(page.answer(request, as_json)));
        add(routes, &["GET"], path, false, &handler)?;
    }
    Ok(())
}

/// Adds `/metrics`, unless the service has a route there. Not inline: it reads /proc.
#[cfg(feature = "metrics")]
fn add_metrics(
    routes: &mut Router,
    path: &str,
    state: &ServiceState,
    own: Vec<OwnMetrics>,
) -> Result<Arc<Metrics>, InstallError> {
    let metrics = Metrics::new(state.clone()).map_err(InstallError::Metrics)?;
    let source = Arc::clone(&metrics);
    let handler: Handler = Arc::new(move |_| {
        no_store(match source.encode() {
            Some(text) => {
                let all: Vec<String> = own.iter().map(|own| own()).collect();
                Response::text(text + &all.concat())
                    .with_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            }
            None => Response::error(500, "Internal Server Error"),
        })
    });
    add(routes, &["GET"], path, false, &handler)?;
    Ok(metrics)
}

/// Forbids caches to keep the response.
fn no_store(response: Response) -> Response {
    response.with_header("Cache-Control", "no-store")
}
