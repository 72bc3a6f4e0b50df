//! The operational routes: health, readiness, liveness, the way out, and metrics.

pub(crate) mod shutdown_guard;

#[cfg(feature = "metrics")]
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::admin::shutdown_guard::Guard;
use crate::crew::message::Stopper;
use crate::crew::pool::Pool;
use crate::dispatch::request::Request;
use crate::dispatch::router::{BadRoute, Handler, Router};
use crate::dispatch::{DispatchStats, Job, ResponseObserver};
use crate::engine::tiny_http::connections::ConnectionTable;
use crate::http::response::Response;
use crate::lifecycle::phase::{Lifecycle, Phase};
use crate::listen::StartError;
use crate::observe::access_log;
#[cfg(feature = "metrics")]
use crate::observe::metrics::Metrics;

// The paths that are ours, unless the service has a route of its own there.
const SHUTDOWN: &str = "/shutdown";
const METRICS: &str = "/metrics";

/// What of all this a service wants.
pub(crate) struct AdminRoutes {
    /// Any of the routes.
    pub(crate) routes: bool,
    pub(crate) shutdown: bool,
    pub(crate) token: Option<String>,
    pub(crate) access_log: bool,
}

impl Default for AdminRoutes {
    fn default() -> AdminRoutes {
        AdminRoutes { routes: true, shutdown: true, token: None, access_log: false }
    }
}

/// What can be told of a service, and is told by `/metrics` and by the state report.
#[derive(Clone)]
pub(crate) struct ServiceState {
    pub(crate) connections: Arc<ConnectionTable>,
    pub(crate) pool: Arc<Pool<Job>>,
    pub(crate) phase: Arc<Lifecycle>,
    pub(crate) ways: Arc<DispatchStats>,
    pub(crate) queue: usize,
    pub(crate) max_connections: usize,
}

impl AdminRoutes {
    /// What those should know who let others than this machine reach the service.
    pub(crate) fn exposure(&self, address: SocketAddr) -> Option<String> {
        if address.ip().to_canonical().is_loopback() {
            return None;
        }
        let reach = format!("{address} can be reached from other machines: whoever connects to it may use every route");
        Some(match (self.routes, self.shutdown, &self.token) {
            (false, ..) => reach,
            (true, false, _) => format!("{reach}, /metrics included; there is no /shutdown"),
            (true, true, None) => format!("{reach}, /metrics included; /shutdown is for this machine only"),
            (true, true, Some(_)) => {
                format!("{reach}, /metrics included; /shutdown is for this machine and for who has the token")
            }
        })
    }

    /// Adds the routes that the service itself does not have, and gives those who watch its responses.
    pub(crate) fn add_to(
        self,
        routes: &mut Router,
        sources: &ServiceState,
        stopper: &Stopper,
        address: SocketAddr,
    ) -> Result<Vec<ResponseObserver>, StartError> {
        let mut observers = Vec::new();
        if self.access_log {
            observers.push(access_log::observer());
        }
        if self.routes {
            let guard = self.shutdown.then(|| Guard { token: self.token, listening: address.ip() });
            add(routes, &sources.phase, stopper, guard).map_err(StartError::Route)?;
            #[cfg(feature = "metrics")]
            observers.push(add_metrics(routes, sources)?);
            #[cfg(not(feature = "metrics"))]
            if !routes.has(METRICS) {
                routes.mask(METRICS).map_err(StartError::Route)?; // no numbers are no greeting
            }
        }
        Ok(observers)
    }
}

/// Adds the routes that need nothing but the phase and the way out; `/shutdown` only with a guard.
///
/// All are quick: they answer while anything at all is alive, whatever the other routes are doing.
fn add(routes: &mut Router, phase: &Arc<Lifecycle>, stopper: &Stopper, guard: Option<Guard>) -> Result<(), BadRoute> {
    let removed = guard.is_none() && !routes.has(SHUTDOWN);
    let mut inline = |methods: &[&str], path: &str, handler: Handler| -> Result<(), BadRoute> {
        if routes.has(path) {
            return Ok(()); // the service's own counts
        }
        methods.iter().try_for_each(|method| routes.add(method, path, true, Arc::clone(&handler)))
    };
    let ready: Handler = {
        let phase = Arc::clone(phase);
        Arc::new(move |_| {
            fresh(if phase.is_draining() {
                Response::text("draining\n").with_status(503).with_header("Retry-After", "1")
            } else {
                Response::text("ok\n")
            })
        })
    };
    inline(&["GET"], "/healthz", Arc::clone(&ready))?;
    inline(&["GET"], "/readyz", ready)?;
    inline(&["GET"], "/livez", Arc::new(|_| fresh(Response::text("ok\n"))))?;
    if let Some(guard) = guard {
        let (stopper, phase) = (stopper.clone(), Arc::clone(phase));
        let handler: Handler = Arc::new(move |request| fresh(shutdown(request, &guard, &stopper, &phase)));
        inline(&["GET", "POST"], SHUTDOWN, handler)?;
    }
    // Not the fallback: a greeting would tell whoever relies on the route that it has worked.
    if removed { routes.mask(SHUTDOWN) } else { Ok(()) }
}

/// Adds `/metrics`, unless the service has its own, and gives who counts for it. Not quick: it reads files of the kernel.
#[cfg(feature = "metrics")]
fn add_metrics(routes: &mut Router, sources: &ServiceState) -> Result<ResponseObserver, StartError> {
    let known = routes.patterns().cloned();
    let is_ours = !routes.has(METRICS);
    let metrics = Metrics::new(known.chain(is_ours.then(|| Arc::from(METRICS))), sources.clone());
    let metrics = metrics.map_err(|error| StartError::System("metrics", io::Error::other(error)))?;
    let observer = metrics.observer();
    if is_ours {
        let handler: Handler = Arc::new(move |_| {
            fresh(match metrics.print() {
                // The format's own name, and the charset that it always has.
                Some(text) => {
                    Response::text(text).with_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
                }
                None => Response::error(500, "Internal Server Error"),
            })
        });
        routes.add("GET", METRICS, false, handler).map_err(StartError::Route)?;
    }
    Ok(observer)
}

/// What is true now is not to be kept for later.
fn fresh(response: Response) -> Response {
    response.with_header("Cache-Control", "no-store")
}

fn shutdown(request: &mut Request, guard: &Guard, stopper: &Stopper, phase: &Lifecycle) -> Response {
    let headers: Vec<_> = request.headers().collect();
    if let Err(reason) = guard.admit(request.peer().ip(), request.target(), &headers) {
        log::warn!("{} asked to shut down, and may not: {reason} (id {})", request.peer(), request.id());
        return Response::error(403, reason);
    }
    // HEAD asks what GET would answer, and no more.
    if request.method() != "HEAD" {
        phase.advance(Phase::DrainDelay); // so that this very response says that it is the last
        stopper.stop(format!("{} /shutdown from {}", request.method(), request.peer()));
    }
    Response::text("one out, all out\n")
}
