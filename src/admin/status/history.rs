//! Rates: a few counts, taken when the page is asked for.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::sync::lock;

/// Most counts that are kept: two minutes of a page that is loaded every two seconds.
const MAX_SAMPLES: usize = 61;

/// Minimum time between two counts, so that several pages do not shorten the history.
const MIN_INTERVAL: Duration = Duration::from_millis(1500);

/// Counts older than this are dropped: they say nothing of the present.
const MAX_AGE: Duration = Duration::from_secs(5 * 60);

/// Time that the recent rate covers, if the page has been watched for as long.
const RECENT: Duration = Duration::from_secs(10);

/// Counts of responses at some moments, oldest first.
#[derive(Default)]
pub(super) struct History(Mutex<VecDeque<Sample>>);

#[derive(Clone, Copy)]
struct Sample {
    at: Instant,
    responses: u64,
}

/// Responses, and how many of them there are in a second.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Rates {
    pub(super) total: u64,
    /// Per second, since the start of the service.
    pub(super) overall: f64,
    /// Per second, and the time that it covers. `None` at the first request for the page.
    pub(super) recent: Option<(f64, Duration)>,
    /// Per second, between any two counts, oldest first.
    pub(super) course: Vec<f64>,
}

impl History {
    /// Records the number of responses until now, and returns the rates.
    pub(super) fn record(&self, responses: u64, uptime: Duration) -> Rates {
        let mut samples = lock(&self.0);
        record(&mut samples, Sample { at: Instant::now(), responses }, uptime)
    }
}

fn record(samples: &mut VecDeque<Sample>, now: Sample, uptime: Duration) -> Rates {
    samples.retain(|sample| now.at.saturating_duration_since(sample.at) <= MAX_AGE);
    let since = |sample: &Sample| now.at.saturating_duration_since(sample.at);
    let base = samples.iter().rev().find(|sample| since(sample) >= RECENT).or(samples.front());
    let recent = base.filter(|base| since(base) >= MIN_INTERVAL).map(|base| (rate(*base, now), since(base)));
    if samples.back().is_none_or(|last| since(last) >= MIN_INTERVAL) {
        samples.push_back(now);
    }
    while samples.len() > MAX_SAMPLES {
        samples.pop_front();
    }
    let course = samples.iter().zip(samples.iter().skip(1)).map(|(from, to)| rate(*from, *to)).collect();
    Rates { total: now.responses, overall: per_second(now.responses, uptime), recent, course }
}

fn rate(from: Sample, to: Sample) -> f64 {
    per_second(to.responses.saturating_sub(from.responses), to.at.saturating_duration_since(from.at))
}

#[expect(clippy::cast_precision_loss, reason = "a rate to look at")]
fn per_second(count: u64, span: Duration) -> f64 {
    count as f64 / span.as_secs_f64().max(0.001)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_recent_rate_covers_ten_seconds_if_the_page_was_watched_for_as_long() {
        let (mut samples, start) = (VecDeque::new(), Instant::now());
        let mut look = |seconds: u64, responses: u64| {
            let at = start + Duration::from_secs(seconds);
            record(&mut samples, Sample { at, responses }, Duration::from_secs(seconds + 10))
        };
        assert_eq!(look(0, 100), Rates { total: 100, overall: 10.0, recent: None, course: vec![] });
        assert_eq!(look(2, 120).recent, Some((10.0, Duration::from_secs(2))));
        for seconds in [4, 6, 8, 10, 12] {
            look(seconds, 120);
        }
        let rates = look(14, 220);
        assert_eq!(rates.recent, Some((10.0, Duration::from_secs(10))));
        assert_eq!(rates.course, [10.0, 0.0, 0.0, 0.0, 0.0, 0.0, 50.0]);
        assert_eq!(look(15, 300).course.len(), 7, "a second page does not shorten the history");
        assert_eq!(look(1000, 300).recent, None, "what is too old says nothing");
    }
}
