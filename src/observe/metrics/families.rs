//! Metric families that are built when they are read, in the types of `prometheus`.

use std::time::Duration;

use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};

#[expect(clippy::cast_precision_loss, reason = "the format has no other numbers; exact up to 2^53")]
pub(super) fn as_f64(number: usize) -> f64 {
    number as f64
}

pub(super) fn seconds(span: Duration) -> f64 {
    span.as_secs_f64()
}

pub(super) fn label(name: &str, value: &str) -> LabelPair {
    let mut label = LabelPair::default();
    label.set_name(name.to_owned());
    label.set_value(value.to_owned());
    label
}

/// The metrics to encode.
pub(super) struct Families(pub(super) Vec<MetricFamily>);

impl Families {
    pub(super) fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.add(MetricType::GAUGE, name, help, [(Vec::new(), value)]);
    }

    pub(super) fn counter(&mut self, name: &str, help: &str, value: f64) {
        self.add(MetricType::COUNTER, name, help, [(Vec::new(), value)]);
    }

    pub(super) fn gauges<const N: usize>(&mut self, name: &str, help: &str, by: &str, values: [(&str, f64); N]) {
        self.add(MetricType::GAUGE, name, help, values.map(|(which, value)| (vec![label(by, which)], value)));
    }

    pub(super) fn counters<const N: usize>(&mut self, name: &str, help: &str, by: &str, values: [(&str, f64); N]) {
        self.add(MetricType::COUNTER, name, help, values.map(|(which, value)| (vec![label(by, which)], value)));
    }

    /// Adds a family, unless it has no sample: the encoder refuses an empty one.
    pub(super) fn add(
        &mut self,
        kind: MetricType,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Vec<LabelPair>, f64)>,
    ) {
        let samples = samples.into_iter().map(|(labels, value)| {
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
        let samples: Vec<_> = samples.collect();
        if samples.is_empty() {
            return;
        }
        let mut family = MetricFamily::default();
        family.set_name(name.to_owned());
        family.set_help(help.to_owned());
        family.set_field_type(kind);
        family.set_metric(samples);
        self.0.push(family);
    }
}
