//! The admin routes of a service, and what they show.

#[cfg(feature = "metrics")]
use std::sync::Arc;

use crate::admin::checks::Check;
use crate::service::Service;
use crate::service::error::StartError;

/// # Admin routes
impl Service {
    /// Leaves out all admin routes (`/healthz`, `/readyz`, `/livez`, `/shutdown`, `/metrics`, `/status`). To replace a
    /// single one, add a route of the service's own at its path; to move one, see [`admin_path`](Service::admin_path).
    pub fn without_admin_routes(mut self) -> Service {
        self.admin.routes = false;
        self
    }

    /// Adds `/shutdown`, which stops the service on `GET` and `POST`. Without it the path is 404, whatever the
    /// [fallback](Service::fallback) is.
    ///
    /// It answers to clients on this machine that run as the same user as the service, or as root: `curl
    /// localhost:8088/shutdown`. A request is refused with 403 if it comes from another web page or through a proxy. A
    /// proxy on this machine that adds no header is recognized by its process, which is another user's, or listens on
    /// TCP. A proxy that runs as root is not recognized by a service that does not: behind one, use a
    /// [token](Service::shutdown_token) or leave the route out.
    pub fn with_shutdown_route(mut self) -> Service {
        self.admin.shutdown = true;
        self
    }

    /// Adds `/shutdown` as [`with_shutdown_route`](Service::with_shutdown_route) does, and lets every client use it that
    /// shows this token: `Authorization: Bearer TOKEN`.
    ///
    /// A request with a wrong token is refused, wherever it comes from. An empty token lets no request pass.
    ///
    /// ```
    /// let service = allout::Service::new().shutdown_token(std::env::var("SHUTDOWN_TOKEN").unwrap_or_default());
    /// ```
    pub fn shutdown_token(mut self, token: impl Into<String>) -> Service {
        self.admin.token = Some(token.into());
        self.with_shutdown_route()
    }

    /// Adds `/status`, a page with the state of the service: phase, and a stop while it lasts; checks, requests in
    /// flight, routes, connections, workers, members, rates, settings. It loads nothing from other servers, works
    /// without its script, and reloads every two seconds unless it is paused. Requests are shown without their query.
    ///
    /// On an [admin address](Service::admin_listen) it is open, as `/metrics` is. Otherwise it answers to the clients
    /// that [`/shutdown`](Service::with_shutdown_route) would answer to: those on this machine of the same user, root,
    /// and those that show the [token](Service::shutdown_token). In a drain it is served as long as `/healthz` is.
    ///
    /// `/status.json`, or `/status` for a client that accepts `application/json`, has the same for programs. Numbers are
    /// counts, or seconds where the name says so; more fields may be added.
    ///
    /// | field | |
    /// | --- | --- |
    /// | `phase`, `ready` | `serving`, `drain_delay`, `draining`, `stopping` or `stopped`; whether `/readyz` would answer 200 |
    /// | `stop` | `null`, or of a stop in progress `cause`, `reexec`, `seconds`, `grace_left_seconds`, `waiting_for` (texts) |
    /// | `service` | `program`, `host`, `version` and `commit` of allout, `engine`, `pid`, `uptime_seconds` |
    /// | `addresses` | of each its `role` (`http` or `admin`) and `address` |
    /// | `checks` | of each its `name`, `status` (`ok` or `failing`), `reason` |
    /// | `members` | of each its `name`, `state` (`running`, `restarting`, `finished`, `failed`, `panicked`), `reason`, `seconds`, `restarts` |
    /// | `connections` | `open`, `limit`; of the open ones `busy`, `idle`, `closing`, `aborted`; `accept_queue`, `opened_total` |
    /// | `requests` | `in_flight` without this one, `pipelined`, `answered_total`, `per_second` since the start, `recent_per_second` over `recent_seconds`, `shed_total`, `rejected_total`, `panics_total`; `oldest`: of 100 at most `request`, `peer`, `seconds`, `worker`, `pipelined` |
    /// | `routes` | of each its pattern `route`, `responses`, `client_errors`, `server_errors`, `mean_seconds` |
    /// | `workers` | `busy`, `idle`, `limit`, `queued`, `queue_limit` |
    /// | `limits` | `grace_seconds`, `drain_delay_seconds`, `keepalive_min_seconds`, `idle_timeout_seconds`, `request_timeout_seconds`, `max_body_bytes` |
    ///
    /// Without the feature `metrics` responses are not counted: `routes` and the rates are `null`.
    ///
    /// ```
    /// use allout::{Request, Service};
    /// let service = Service::new().with_status_route();
    /// assert!(service.handle(Request::get("/status.json")).into_text()?.starts_with(r#"{"phase":"serving""#));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn with_status_route(mut self) -> Service {
        self.admin.status = true;
        self
    }

    /// Logs every response, or none, at level `info` and with the target `allout::access`: `method`, `uri`, `version`,
    /// `route`, `status`, `bytes`, `duration_us`, `peer`, `id`, and, where there are such, `client` (the address that a
    /// [trusted proxy](Service::trust_proxies) says), `user_agent`, `referer` and `cut`, as fields of the `log` crate.
    /// Default: off.
    ///
    /// It is logged after the response was written, on the thread that wrote it: use a logger that never blocks for long.
    ///
    /// ```
    /// let service = allout::Service::new().access_log(true);
    /// ```
    pub fn access_log(mut self, on: bool) -> Service {
        self.admin.access_log = on;
        self
    }

    /// Moves an admin route (`/healthz`, `/readyz`, `/livez`, `/metrics`, `/shutdown` or `/status`) to another path.
    ///
    /// ```
    /// use allout::{Request, Service};
    /// let service = Service::new().admin_path("/healthz", "/-/healthy");
    /// assert_eq!(service.handle(Request::get("/-/healthy")).status(), 200);
    /// assert_eq!(service.handle(Request::get("/healthz")).status(), 404);
    /// ```
    pub fn admin_path(mut self, from: &str, to: &str) -> Service {
        if !self.admin.paths.set(from, to) {
            self.fail(StartError::Setting(format!("{from:?} is no admin route")));
        }
        self
    }

    /// Adds a readiness check: as long as it fails `/readyz` answers 503, with its name and what is wrong; as JSON if
    /// the client accepts that (`Accept: application/json`). It runs from the start of the service on; until it has run
    /// once, the service is not ready. `/healthz` does not depend on it.
    ///
    /// ```
    /// use allout::{Check, Request, Service};
    ///
    /// let service = Service::new().check(Check::new("database", || Err("no connection")));
    /// let response = service.handle(Request::get("/readyz"));
    /// assert_eq!((response.status(), response.into_text()?), (503, "not ready\ndatabase: no connection\n".to_owned()));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn check(self, check: Check) -> Service {
        let checks = self.admin.checks.clone();
        if checks.add(check) { self.member("checks", move |stop| checks.run(stop)) } else { self }
    }

    /// Appends metrics of the application to `/metrics`, in Prometheus' text format: from a registry of any crate, or
    /// written by hand. Each family begins on a line of its own. Names that begin with `allout_` or `process_` are
    /// taken.
    ///
    /// With the crate `prometheus`: `.append_metrics(|| TextEncoder::new().encode_to_string(&prometheus::gather())...)`.
    ///
    /// ```
    /// use std::sync::atomic::{AtomicU64, Ordering};
    /// use allout::{Request, Service};
    ///
    /// static SOLD: AtomicU64 = AtomicU64::new(7);
    /// let service = Service::new().append_metrics(|| {
    ///     format!("# TYPE shop_sold_total counter\nshop_sold_total {}\n", SOLD.load(Ordering::Relaxed))
    /// });
    /// assert!(service.handle(Request::get("/metrics")).into_text()?.ends_with("\nshop_sold_total 7\n"));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[cfg(feature = "metrics")]
    pub fn append_metrics(mut self, encode: impl Fn() -> String + Send + Sync + 'static) -> Service {
        self.admin.own_metrics.push(Arc::new(encode));
        self
    }
}
