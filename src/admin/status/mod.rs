//! `/status`: the state of a service as a page, and as JSON.
//!
//! It shows the values of the state dump and the metrics, and keeps none itself but [`History`]: a few counts, taken
//! when the page is asked for. On a socket for the admin routes alone it is as open as they are. On a socket that
//! serves other clients as well it takes the same credentials as `/shutdown` ([`Guard`]), because it names clients and
//! paths.

mod format;
mod history;
mod html;
mod json;

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hasher as _};
use std::sync::Arc;
use std::time::Duration;

use crate::admin::checks::Checks;
use crate::admin::shutdown_guard::{Guard, Passed};
use crate::dispatch::request::Request;
use crate::http::response::Response;
use crate::observe::snapshot::Snapshot;
use crate::observe::{RouteSummary, ServiceState};
use history::{History, Rates};

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The commit that this was built from, if the build was told (`ALLOUT_COMMIT`).
fn commit() -> Option<&'static str> {
    option_env!("ALLOUT_COMMIT").filter(|commit| !commit.is_empty())
}

/// Facts of a service that do not change while it runs.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    pub(crate) engine: &'static str,
    /// Role (`http` or `admin`) and address of each listening socket.
    pub(crate) addresses: Vec<(&'static str, String)>,
    /// Ports of the listening sockets that have one.
    pub(crate) ports: Vec<u16>,
    /// Reason why the limits are below those of the configuration, if they are.
    pub(crate) bound: String,
    pub(crate) grace: Duration,
    pub(crate) drain_delay: Duration,
    pub(crate) keepalive_min: Duration,
    pub(crate) idle_timeout: Duration,
    pub(crate) request_timeout: Duration,
    /// In bytes.
    pub(crate) max_body: u64,
}

/// Gives the responses of each route.
pub(super) type Routes = Box<dyn Fn() -> Vec<RouteSummary> + Send + Sync>;

/// The two routes of one service.
pub(super) struct StatusPage {
    pub(super) state: ServiceState,
    pub(super) facts: Facts,
    pub(super) checks: Checks,
    /// Without metrics no responses are counted.
    pub(super) routes: Option<Routes>,
    /// `None` if the socket is for operators alone.
    pub(super) guard: Option<Arc<Guard>>,
    /// The path of the page.
    pub(super) path: String,
    history: History,
}

/// All values that are shown.
struct View<'a> {
    facts: &'a Facts,
    now: Snapshot,
    verdicts: Vec<(String, Result<(), String>)>,
    routes: Option<Vec<RouteSummary>>,
    rates: Option<Rates>,
    /// Name of the program.
    program: String,
    host: String,
}

impl View<'_> {
    fn is_ready(&self) -> bool {
        self.now.stopping.is_none() && self.verdicts.iter().all(|(_, verdict)| verdict.is_ok())
    }
}

impl StatusPage {
    pub(super) fn new(
        state: ServiceState,
        facts: Facts,
        checks: Checks,
        routes: Option<Routes>,
        guard: Option<Arc<Guard>>,
        path: &str,
    ) -> StatusPage {
        StatusPage { state, facts, checks, routes, guard, path: path.to_owned(), history: History::default() }
    }

    /// Answers with JSON if `as_json`, or if the client accepts it; with the page otherwise.
    pub(super) fn answer(&self, request: &mut Request, as_json: bool) -> Response {
        if let Err((status, reason)) = self.check(request) {
            log::debug!("{} refused for {}: {reason} (id {})", self.path, request.peer(), request.id());
            return Response::error(status, reason);
        }
        let view = self.view(request);
        if as_json || request.header("accept").is_some_and(|accept| accept.contains("application/json")) {
            return Response::new(json::render(&view)).with_header("Content-Type", "application/json");
        }
        let nonce = nonce();
        let policy = format!(
            "default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; img-src data:; \
             connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        );
        let paused = request.query("pause").is_some();
        let name = self.path.rsplit('/').next().unwrap_or_default();
        Response::new(html::render(&view, &html::Page { nonce: &nonce, name, paused }))
            .with_header("Content-Type", "text/html; charset=utf-8")
            .with_header("Content-Security-Policy", policy)
            .with_header("Referrer-Policy", "same-origin")
    }

    fn check(&self, request: &mut Request) -> Result<(), (u16, &'static str)> {
        let Some(guard) = &self.guard else { return Ok(()) };
        match guard.check(request)? {
            Passed::Token => Ok(()),
            Passed::Local(peer) => guard.check_reader(peer),
        }
    }

    #[inline(never)]
    fn view(&self, request: &Request) -> View<'_> {
        let routes = self.routes.as_ref().map(|routes| routes());
        // Without the page itself, which would make an idle service look busy.
        let counted = |routes: &Vec<RouteSummary>| {
            routes.iter().filter(|route| !route.route.starts_with(&self.path)).map(|route| route.responses).sum()
        };
        let now = self.state.snapshot(request.peer(), self.facts.drain_delay);
        let rates = routes.as_ref().map(|routes| self.history.record(counted(routes), now.uptime));
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        View {
            facts: &self.facts,
            now,
            verdicts: self.checks.verdicts(),
            routes,
            rates,
            program: program(),
            host: host.trim().to_owned(),
        }
    }
}

/// A request line without the query, which may hold secrets.
fn without_query(request_line: &str) -> &str {
    request_line.split('?').next().unwrap_or_default()
}

/// The file name of this program.
fn program() -> String {
    let path = std::env::args_os().next().unwrap_or_default();
    let name = std::path::Path::new(&path).file_name().unwrap_or_default().to_string_lossy().into_owned();
    if name.is_empty() { "allout".to_owned() } else { name }
}

/// 128 bits that no client can guess: the keys of `RandomState` come from the system.
fn nonce() -> String {
    let bits = || RandomState::new().build_hasher().finish();
    format!("{:016x}{:016x}", bits(), bits())
}
