//! The admin routes: health, readiness, liveness, `/metrics`, and `/shutdown` where it is asked for.

pub(crate) mod shutdown_guard;

use std::net::SocketAddr;
use std::sync::Arc;

use crate::admin::shutdown_guard::{Guard, Passed};
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

// Paths of the admin routes. A route of the service with the same path takes precedence.
const SHUTDOWN: &str = "/shutdown";
const METRICS: &str = "/metrics";

/// Which admin routes a service has.
#[derive(Clone)]
pub(crate) struct AdminRoutes {
    /// Any of them.
    pub(crate) routes: bool,
    pub(crate) shutdown: bool,
    /// The bearer token for `/shutdown`.
    pub(crate) token: Option<String>,
    pub(crate) access_log: bool,
}

impl Default for AdminRoutes {
    fn default() -> AdminRoutes {
        AdminRoutes { routes: true, shutdown: false, token: None, access_log: false }
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
    /// The warning that is logged when the address is not a loopback address.
    pub(crate) fn exposure_warning(&self, address: SocketAddr) -> Option<String> {
        if address.ip().to_canonical().is_loopback() {
            return None;
        }
        let reach = format!("{address} can be reached from other machines: their clients may use every route");
        Some(match (self.routes, self.shutdown, &self.token) {
            (false, ..) => reach,
            (true, false, _) => format!("{reach}, /metrics included; there is no /shutdown"),
            (true, true, None) => format!("{reach}, /metrics included; /shutdown is for this machine only"),
            (true, true, Some(_)) => {
                format!("{reach}, /metrics included; /shutdown is for this machine and for clients with the token")
            }
        })
    }

    /// Adds the routes that the service itself does not have. Returns the observers of its responses.
    pub(crate) fn install(
        self,
        routes: &mut Router,
        state: &ServiceState,
        stopper: &Stopper,
        address: SocketAddr,
    ) -> Result<Vec<ResponseObserver>, InstallError> {
        routes.begin_admin_routes();
        let mut observers = Vec::new();
        if self.access_log {
            observers.push(access_log::observer());
        }
        if self.routes {
            add_health(routes, &state.phase)?;
            let guard = self.shutdown.then(|| Guard::new(self.token));
            add_shutdown(routes, state, stopper, address.port(), guard)?;
            #[cfg(feature = "metrics")]
            observers.push(add_metrics(routes, state)?);
            #[cfg(not(feature = "metrics"))]
            if !routes.has(METRICS) {
                routes.mask(METRICS)?; // 404, not the fallback
            }
        }
        Ok(observers)
    }
}

/// Adds a route for these methods, unless the service has a route of its own there.
fn add(routes: &mut Router, methods: &[&str], path: &str, inline: bool, handler: &Handler) -> Result<(), BadRoute> {
    if routes.has(path) {
        return Ok(());
    }
    methods.iter().try_for_each(|method| routes.add(method, path, inline, Arc::clone(handler)))
}

/// Adds `/healthz`, `/readyz` and `/livez`. They are inline: they answer whatever the workers are doing.
fn add_health(routes: &mut Router, phase: &Arc<Lifecycle>) -> Result<(), BadRoute> {
    let phase = Arc::clone(phase);
    let ready: Handler = Arc::new(move |_| {
        no_store(if phase.is_draining() {
            Response::text("draining\n").with_status(503).with_header("Retry-After", "1")
        } else {
            Response::text("ok\n")
        })
    });
    let live: Handler = Arc::new(|_| no_store(Response::text("ok\n")));
    add(routes, &["GET"], "/healthz", true, &ready)?;
    add(routes, &["GET"], "/readyz", true, &ready)?;
    add(routes, &["GET"], "/livez", true, &live)
}

/// Adds `/shutdown`. Without a guard it is 404, not the fallback, whose 200 would look like success. Not inline: the
/// guard reads /proc.
fn add_shutdown(
    routes: &mut Router,
    state: &ServiceState,
    stopper: &Stopper,
    port: u16,
    guard: Option<Guard>,
) -> Result<(), BadRoute> {
    let Some(guard) = guard else {
        return if routes.has(SHUTDOWN) { Ok(()) } else { routes.mask(SHUTDOWN) };
    };
    let (state, stopper) = (state.clone(), stopper.clone());
    let handler: Handler = Arc::new(move |request| no_store(shutdown(request, &guard, port, &stopper, &state)));
    add(routes, &["GET", "POST"], SHUTDOWN, false, &handler)
}

fn shutdown(request: &mut Request, guard: &Guard, port: u16, stopper: &Stopper, state: &ServiceState) -> Response {
    let headers: Vec<_> = request.headers().collect();
    let passed = guard.check_request(request.peer().addr(), request.target(), &headers);
    let verdict = passed.and_then(|passed| match passed {
        Passed::Token => Ok(()),
        Passed::Local(peer) => guard.check_process(peer, port, || state.phase.is_draining()),
    });
    if let Err((status, reason)) = verdict {
        log::warn!("/shutdown refused for {}: {reason} (id {})", request.peer(), request.id());
        return Response::error(status, reason);
    }
    // HEAD has the response of GET and no effect (RFC 9110, section 9.3.2).
    if request.method() != "HEAD" {
        // Before the response is written, so that it says `Connection: close`.
        state.phase.enter(Phase::DrainDelay);
        state.engines.announce_close();
        stopper.stop(format!("{} /shutdown from {}", request.method(), request.peer()));
    }
    Response::text("one out, all out\n")
}

/// Adds `/metrics`, unless the service has its own, and returns the observer that counts. Not inline: it reads /proc.
#[cfg(feature = "metrics")]
fn add_metrics(routes: &mut Router, state: &ServiceState) -> Result<ResponseObserver, InstallError> {
    let is_ours = !routes.has(METRICS);
    let patterns = routes.patterns().cloned().chain(is_ours.then(|| Arc::from(METRICS))).chain([Arc::from(FALLBACK)]);
    let metrics = Metrics::new(patterns, state.clone()).map_err(InstallError::Metrics)?;
    let observer = metrics.observer();
    if is_ours {
        let handler: Handler = Arc::new(move |_| {
            no_store(match metrics.encode() {
                Some(text) => {
                    Response::text(text).with_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
                }
                None => Response::error(500, "Internal Server Error"),
            })
        });
        routes.add("GET", METRICS, false, handler)?;
    }
    Ok(observer)
}

/// Forbids caches to keep the response.
fn no_store(response: Response) -> Response {
    response.with_header("Cache-Control", "no-store")
}
