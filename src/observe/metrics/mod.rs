//! `/metrics`: Prometheus' text format, named as its conventions ask.
//!
//! A response costs one counter and one observation, both found by index: each route has its handles from the start, and
//! each of its counters from the first response that needs it. Everything else is read when `/metrics` is requested.

mod families;
mod process;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use prometheus::core::Collector as _;
use prometheus::proto::{LabelPair, MetricFamily, MetricType};
use prometheus::{Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts, Registry, TextEncoder};

use crate::engine::{CLOSE_REASONS, Engine};
use crate::http::head::METHODS;
use crate::lifecycle::phase::PHASES;
use crate::observe::metrics::families::{Families, as_f64, label, seconds};
use crate::observe::{CUTS, ResponseObserver, ResponseRecord, RouteSummary, ServiceState};

/// Upper bounds of the histogram in seconds: from the time of an inline handler to the default request timeout.
const BUCKETS: [f64; 16] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 20.0, 60.0];

/// Statuses whose counters are found by index; others cost a lookup.
const COMMON_STATUSES: [u16; 20] =
    [200, 204, 201, 202, 206, 301, 302, 303, 304, 400, 401, 403, 404, 405, 413, 422, 429, 500, 501, 503];

/// The counters of responses, and the sources of all other values.
pub(crate) struct Metrics {
    state: ServiceState,
    registry: Registry,
    requests: IntCounterVec,
    durations: HistogramVec,
    /// Responses that were not written to their end, by cause.
    cut: [AtomicU64; CUTS.len()],
    /// Start of this image, in seconds since the epoch.
    started: f64,
}

struct RouteHandles {
    pattern: Arc<str>,
    duration: Histogram,
    /// By method, then by status.
    requests: [[OnceLock<IntCounter>; COMMON_STATUSES.len()]; METHODS.len()],
}

impl Metrics {
    /// Errors: `prometheus` rejects a name: a bug.
    pub(crate) fn new(state: ServiceState) -> Result<Arc<Metrics>, prometheus::Error> {
        let registry = Registry::new();
        let requests = IntCounterVec::new(
            Opts::new("allout_http_requests_total", "Requests that were answered, by route, method and status."),
            &["route", "method", "code"],
        )?;
        let durations = HistogramVec::new(
            HistogramOpts::new(
                "allout_http_request_duration_seconds",
                "Time from dispatch to the end of the response write, by route.",
            )
            .buckets(BUCKETS.to_vec()),
            &["route"],
        )?;
        registry.register(Box::new(requests.clone()))?;
        registry.register(Box::new(durations.clone()))?;
        // Of this image, not of the process: a re-exec keeps the process and resets all counters.
        let started = seconds(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default());
        Ok(Arc::new(Metrics { state, registry, requests, durations, cut: Default::default(), started }))
    }

    /// Counts every response of one router. `patterns` are those of its routes, by number; the last is the fallback's.
    pub(crate) fn observer(self: &Arc<Self>, patterns: impl Iterator<Item = Arc<str>>) -> ResponseObserver {
        let handles = |pattern: Arc<str>| RouteHandles {
            duration: self.durations.with_label_values(&[&*pattern]),
            pattern,
            requests: Default::default(),
        };
        let (routes, metrics): (Vec<_>, _) = (patterns.map(handles).collect(), Arc::clone(self));
        Box::new(move |record| metrics.count(&routes, record))
    }

    fn count(&self, routes: &[RouteHandles], record: &ResponseRecord<'_>) {
        if let Some(cut) = record.cut {
            self.cut[cut as usize].fetch_add(1, Ordering::Relaxed);
        }
        let Some(route) = routes.get(record.route).or(routes.last()) else { return };
        route.duration.observe(seconds(record.duration));
        let method = METHODS.iter().position(|name| *name == record.method);
        let status = COMMON_STATUSES.iter().position(|code| *code == record.status);
        let labelled = || {
            let code = record.status.to_string();
            self.requests.with_label_values(&[&*route.pattern, record.method, &code])
        };
        match (method, status) {
            (Some(method), Some(status)) => route.requests[method][status].get_or_init(labelled).inc(),
            _ => labelled().inc(),
        }
    }

    /// The responses of each route that has answered.
    pub(crate) fn routes(&self) -> Vec<RouteSummary> {
        let mut routes: Vec<RouteSummary> = Vec::new();
        for sample in self.requests.collect().iter().flat_map(MetricFamily::get_metric) {
            let pattern = value(sample.get_label(), "route");
            let at = routes.iter().position(|route| route.route == pattern).unwrap_or(routes.len());
            if at == routes.len() {
                routes.push(RouteSummary { route: pattern.to_owned(), ..RouteSummary::default() });
            }
            let count = whole(sample.get_counter().get_value());
            routes[at].responses += count;
            match value(sample.get_label(), "code").as_bytes().first() {
                Some(b'4') => routes[at].client_errors += count,
                Some(b'5') => routes[at].server_errors += count,
                _ => {}
            }
        }
        for sample in self.durations.collect().iter().flat_map(MetricFamily::get_metric) {
            let (histogram, pattern) = (sample.get_histogram(), value(sample.get_label(), "route"));
            if let Some(route) = routes.iter_mut().find(|route| route.route == pattern) {
                let mean = histogram.get_sample_sum() / count(histogram.get_sample_count().max(1));
                route.mean = Duration::try_from_secs_f64(mean).unwrap_or_default();
            }
        }
        routes.sort_by(|a, b| a.route.cmp(&b.route));
        routes
    }

    /// All metrics as text.
    pub(crate) fn encode(&self) -> Option<String> {
        let mut families = Families(self.registry.gather());
        self.collect(&mut families);
        process::collect(&mut families, self.started);
        let text = TextEncoder::new().encode_to_string(&families.0);
        text.inspect_err(|error| log::error!("cannot encode metrics: {error}")).ok()
    }

    fn collect(&self, families: &mut Families) {
        self.collect_requests(families);
        self.collect_workers(families);
        self.collect_connections(families);
        self.collect_listeners(families);
        let now = self.state.lifecycle.phase();
        let phases = PHASES.map(|(phase, name)| (name, f64::from(u8::from(phase == now))));
        families.gauges("allout_phase", "1 for the phase that the service is in.", "phase", phases);
        let labels = vec![
            label("version", env!("CARGO_PKG_VERSION")),
            label("commit", option_env!("ALLOUT_COMMIT").filter(|commit| !commit.is_empty()).unwrap_or("unknown")),
        ];
        let help = "Always 1; the labels say what this was built from.";
        families.add(MetricType::GAUGE, "allout_build_info", help, [(labels, 1.0)]);
    }

    fn collect_requests(&self, families: &mut Families) {
        let ServiceState { engines, dispatch, .. } = &self.state;
        let gauge = as_f64(engines.in_flight());
        families.gauge("allout_http_requests_in_flight", "Requests whose response is not written yet.", gauge);
        let help = "Requests queued behind another one of their connection.";
        families.gauge("allout_http_requests_pipelined", help, as_f64(engines.pipelined()));
        let help = "Requests answered with 503 because no worker was free and the queue was full.";
        families.counter("allout_http_requests_shed_total", help, load(&dispatch.shed));
        let help = "Requests answered with an error because they broke the protocol or its limits.";
        families.counter("allout_http_requests_rejected_total", help, load(&dispatch.rejected));
        let help = "Requests received after the last response of their connection, and dropped.";
        families.counter("allout_http_requests_discarded_total", help, count(engines.total(|stats| &stats.discarded)));
        let cut = CUTS.map(|(cut, name)| (name, load(&self.cut[cut as usize])));
        let help = "Responses that were not written to their end, by cause.";
        families.counters("allout_http_responses_cut_total", help, "cause", cut);
        families.counter("allout_handler_panics_total", "Handlers that panicked.", load(&dispatch.panics));
    }

    fn collect_workers(&self, families: &mut Families) {
        let stats = self.state.pool.stats();
        let (busy, idle) = (as_f64(stats.busy), as_f64(stats.threads.saturating_sub(stats.busy)));
        families.gauges("allout_workers", "Workers at the moment.", "state", [("busy", busy), ("idle", idle)]);
        families.gauge("allout_workers_limit", "Most workers at once.", as_f64(stats.max_threads));
        families.gauge("allout_worker_queue_length", "Requests that wait for a worker.", as_f64(stats.queued));
        let help = "Most requests that may wait for a worker.";
        families.gauge("allout_worker_queue_limit", help, as_f64(self.state.queue));
    }

    fn collect_connections(&self, families: &mut Families) {
        let ServiceState { engines, max_connections, .. } = &self.state;
        families.gauge("allout_connections_open", "Open connections.", as_f64(engines.connections()));
        families.gauge("allout_connections_limit", "Most connections open at once.", as_f64(*max_connections));
        families.counter(
            "allout_connections_opened_total",
            "Connections opened.",
            count(engines.total(|stats| &stats.opened)),
        );
        let closed = CLOSE_REASONS.map(|(why, name)| (name, count(engines.total(|stats| &stats.closed[why as usize]))));
        let help = "Connections closed from this side, by cause.";
        families.counters("allout_connections_closed_total", help, "cause", closed);
        let help = "Connections that were accepted without a thread for them, and got one.";
        families.counter("allout_connections_unstarved_total", help, count(engines.total(|stats| &stats.unstarved)));
        let help = "Times that a connection was throttled because too many of its requests were queued.";
        families.counter("allout_connections_throttled_total", help, count(engines.total(|stats| &stats.throttled)));
        let help = "Connections that the HTTP engine never closes.";
        families.counter("allout_connections_leaked_total", help, count(engines.total(|stats| &stats.leaked)));
    }

    /// Each listening socket for itself: the label is its address.
    fn collect_listeners(&self, families: &mut Families) {
        let mut add = |kind: MetricType, name: &str, help: &str, value: &dyn Fn(&dyn Engine) -> f64| {
            let labels = |engine: &Arc<dyn Engine>| vec![label("listener", &engine.address().to_string())];
            let sample = |engine| (labels(engine), value(&**engine));
            families.add(kind, name, help, self.state.engines.iter().map(sample));
        };
        let (gauge, counter) = (MetricType::GAUGE, MetricType::COUNTER);
        let help = "Open connections, by listening address.";
        add(gauge, "allout_listener_connections_open", help, &|engine| as_f64(engine.connections()));
        let help = "Connections opened, by listening address.";
        let opened = |engine: &dyn Engine| load(&engine.stats().opened);
        add(counter, "allout_listener_connections_opened_total", help, &opened);
        let help = "Requests whose response is not written yet, by listening address.";
        add(gauge, "allout_listener_requests_in_flight", help, &|engine| as_f64(engine.in_flight()));
        let help = "Connections that wait in the kernel to be accepted, by listening address.";
        add(gauge, "allout_listener_accept_queue_length", help, &|engine| f64::from(engine.gate().accept_queue_len()));
    }
}

/// The value of a label; empty if there is no such label.
fn value<'a>(labels: &'a [LabelPair], name: &str) -> &'a str {
    labels.iter().find(|label| label.name() == name).map(LabelPair::value).unwrap_or_default()
}

fn load(counter: &AtomicU64) -> f64 {
    count(counter.load(Ordering::Relaxed))
}

#[expect(clippy::cast_precision_loss, reason = "the format has no other numbers; exact up to 2^53")]
fn count(number: u64) -> f64 {
    number as f64
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a counter, which counts up from 0")]
fn whole(number: f64) -> u64 {
    number as u64
}
