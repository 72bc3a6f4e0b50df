//! What is counted, as `/metrics` tells it: Prometheus' text format, named as its conventions ask.
//!
//! A response costs one counter and one observation, both looked up by number: a route has its handles from the
//! beginning, and each of its counters from the first response on that needs it. All else is read, where it is known
//! already, at the moment that somebody asks.

mod process;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts, Registry, TextEncoder};

use crate::admin::ServiceState;
use crate::dispatch::router::FALLBACK;
use crate::dispatch::{ResponseObserver, ResponseRecord};
use crate::engine::tiny_http::connections::CLOSE_REASONS;
use crate::http::head::METHODS;
use crate::lifecycle::phase::PHASES;

/// Upper bounds in seconds: from what a quick handler takes to the default request timeout.
const BUCKETS: [f64; 16] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 20.0, 60.0];

/// Statuses whose counters are found without a lookup; others cost one.
const COMMON: [u16; 20] =
    [200, 204, 201, 202, 206, 301, 302, 303, 304, 400, 401, 403, 404, 405, 413, 422, 429, 500, 501, 503];

/// Everything that is counted here.
pub(crate) struct Metrics {
    sources: ServiceState,
    registry: Registry,
    requests: IntCounterVec,
    /// By the routes' numbers; the last is for what no route claims.
    routes: Vec<RouteHandles>,
    started: f64,
}

struct RouteHandles {
    pattern: Arc<str>,
    duration: Histogram,
    /// By method, then by status.
    requests: [[OnceLock<IntCounter>; COMMON.len()]; METHODS.len()],
}

impl Metrics {
    /// `routes` are their patterns, by their numbers.
    ///
    /// # Errors
    ///
    /// The library refuses a name of ours.
    pub(crate) fn new(
        routes: impl Iterator<Item = Arc<str>>,
        sources: ServiceState,
    ) -> Result<Arc<Metrics>, prometheus::Error> {
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
        let routes = routes
            .chain([Arc::from(FALLBACK)])
            .map(|pattern| RouteHandles {
                duration: durations.with_label_values(&[&*pattern]),
                pattern,
                requests: Default::default(),
            })
            .collect();
        // That of this image of the program: a renewal keeps the process, but all counters begin again.
        let started = seconds(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default());
        Ok(Arc::new(Metrics { sources, registry, requests, routes, started }))
    }

    /// Somebody who counts responses.
    pub(crate) fn observer(self: &Arc<Self>) -> ResponseObserver {
        let metrics = Arc::clone(self);
        Box::new(move |answered| metrics.count(answered))
    }

    fn count(&self, answered: &ResponseRecord<'_>) {
        let Some(route) = self.routes.get(answered.route.number).or(self.routes.last()) else { return };
        route.duration.observe(seconds(answered.took));
        let method = METHODS.iter().position(|name| *name == answered.method);
        let status = COMMON.iter().position(|code| *code == answered.status);
        let labelled = || {
            let code = answered.status.to_string();
            self.requests.with_label_values(&[&*route.pattern, answered.method, &code])
        };
        match (method, status) {
            (Some(method), Some(status)) => route.requests[method][status].get_or_init(labelled).inc(),
            _ => labelled().inc(),
        }
    }

    /// All of it, as text.
    pub(crate) fn print(&self) -> Option<String> {
        let mut families = Families(self.registry.gather());
        self.tell(&mut families);
        process::tell(&mut families, self.started);
        let text = TextEncoder::new().encode_to_string(&families.0);
        text.inspect_err(|error| log::error!("metrics cannot be printed: {error}")).ok()
    }

    fn tell(&self, families: &mut Families) {
        let ServiceState { connections, pool, phase, ways, queue, max_connections } = &self.sources;
        families.gauge(
            "allout_http_requests_in_flight",
            "Requests that are being answered.",
            whole(connections.in_flight()),
        );
        families.gauge(
            "allout_http_requests_pipelined",
            "Requests that wait behind another one of their connection.",
            whole(connections.waiting()),
        );
        let help = "Requests that were answered with 503 because no worker was free and the queue was full.";
        families.counter("allout_http_requests_shed_total", help, load(&ways.shed));
        let help = "Requests that were refused because they broke the protocol or its limits.";
        families.counter("allout_http_requests_rejected_total", help, load(&ways.refused));
        let help = "Requests that came after the last response of their connection, and were thrown away.";
        families.counter("allout_http_requests_discarded_total", help, load(&connections.counts.discarded));
        families.counter("allout_handler_panics_total", "Handlers that panicked.", load(&ways.panics));

        let facts = pool.stats();
        let (busy, idle) = (whole(facts.busy), whole(facts.threads.saturating_sub(facts.busy)));
        families.gauges("allout_workers", "Workers at the moment.", "state", [("busy", busy), ("idle", idle)]);
        families.gauge("allout_workers_limit", "Most workers that may run at once.", whole(facts.max_threads));
        families.gauge("allout_worker_queue_length", "Requests that wait for a worker.", whole(facts.queued));
        families.gauge("allout_worker_queue_limit", "Most requests that may wait for a worker.", whole(*queue));

        families.gauge("allout_connections_open", "Connections that are open.", whole(connections.connections()));
        families.gauge("allout_connections_limit", "Most connections that may be open.", whole(*max_connections));
        families.counter(
            "allout_connections_opened_total",
            "Connections that were opened.",
            load(&connections.counts.opened),
        );
        let closed = CLOSE_REASONS.map(|(why, name)| (name, load(&connections.counts.ended[why as usize])));
        let help = "Connections that were closed from this side, by cause.";
        families.counters("allout_connections_closed_total", help, "cause", closed);
        let help = "Connections that had been accepted and left without a thread, and got one.";
        families.counter("allout_connections_unstarved_total", help, load(&connections.counts.unstarved));
        let help = "Times that a connection was ignored for a while because too many of its requests waited.";
        families.counter("allout_connections_throttled_total", help, load(&connections.counts.held));
        let help = "Connections that the HTTP engine will never let go of.";
        families.counter("allout_connections_leaked_total", help, load(&connections.counts.leaked));

        let now = phase.get();
        let phases = PHASES.map(|(phase, name)| (name, f64::from(u8::from(phase == now))));
        families.gauges("allout_phase", "1 for the phase that the service is in.", "phase", phases);
        let labels = vec![
            label("version", env!("CARGO_PKG_VERSION")),
            label("commit", option_env!("ALLOUT_COMMIT").filter(|commit| !commit.is_empty()).unwrap_or("unknown")),
        ];
        let help = "Always 1; the labels say what this was built from.";
        families.add(MetricType::GAUGE, "allout_build_info", help, [(labels, 1.0)]);
    }
}

fn load(count: &AtomicU64) -> f64 {
    whole(usize::try_from(count.load(Ordering::Relaxed)).unwrap_or(usize::MAX))
}

#[expect(clippy::cast_precision_loss, reason = "the format has no other numbers; exact up to 2^53")]
fn whole(number: usize) -> f64 {
    number as f64
}

fn seconds(span: Duration) -> f64 {
    span.as_secs_f64()
}

fn label(name: &str, value: &str) -> LabelPair {
    let mut label = LabelPair::default();
    label.set_name(name.to_owned());
    label.set_value(value.to_owned());
    label
}

/// What will be printed.
struct Families(Vec<MetricFamily>);

impl Families {
    fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.add(MetricType::GAUGE, name, help, [(Vec::new(), value)]);
    }

    fn counter(&mut self, name: &str, help: &str, value: f64) {
        self.add(MetricType::COUNTER, name, help, [(Vec::new(), value)]);
    }

    fn gauges<const N: usize>(&mut self, name: &str, help: &str, by: &str, values: [(&str, f64); N]) {
        self.add(MetricType::GAUGE, name, help, values.map(|(which, value)| (vec![label(by, which)], value)));
    }

    fn counters<const N: usize>(&mut self, name: &str, help: &str, by: &str, values: [(&str, f64); N]) {
        self.add(MetricType::COUNTER, name, help, values.map(|(which, value)| (vec![label(by, which)], value)));
    }

    fn add<const N: usize>(&mut self, kind: MetricType, name: &str, help: &str, samples: [(Vec<LabelPair>, f64); N]) {
        let samples = samples.map(|(labels, value)| {
            let mut sample = Metric::from_label(labels);
            if kind == MetricType::COUNTER {
                let mut counter = Counter::default();
                counter.set_value(value);
                sample.set_counter(counter);
            } else {
                let mut gauge = Gauge::default();
                gauge.set_value(value);
                sample.set_gauge(gauge);
            }
            sample
        });
        let mut family = MetricFamily::default();
        family.set_name(name.to_owned());
        family.set_help(help.to_owned());
        family.set_field_type(kind);
        family.set_metric(samples.into());
        self.0.push(family);
    }
}
