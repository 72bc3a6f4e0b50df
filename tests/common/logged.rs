//! What services within this process have logged.

#![allow(dead_code, unreachable_pub, reason = "shared by several test programs, each of which uses its own part")]
#![allow(clippy::expect_used, clippy::panic, reason = "a test says what it expects by panicking")]

use log::kv::{self, Key, Value, VisitSource};
use log::{Level, Log, Metadata, Record};
use std::fmt::Write as _;
use std::sync::{Condvar, Mutex, Once, PoisonError};
use std::time::{Duration, Instant};

/// A line of the log.
#[derive(Debug, Clone)]
pub struct Line {
    /// Its level.
    pub level: Level,
    /// Its target.
    pub target: String,
    /// The message, and each field as ` name=value`.
    pub text: String,
}

struct Collector {
    lines: Mutex<Vec<Line>>,
    more: Condvar,
}

static COLLECTOR: Collector = Collector { lines: Mutex::new(Vec::new()), more: Condvar::new() };

struct Fields<'a>(&'a mut String);

impl<'kvs> VisitSource<'kvs> for Fields<'_> {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), kv::Error> {
        let _ = write!(self.0, " {key}={value}"); // writing to a String cannot fail
        Ok(())
    }
}

impl Log for Collector {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("allout") && metadata.level() <= Level::Debug
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let mut text = record.args().to_string();
        let _ = record.key_values().visit(&mut Fields(&mut text)); // `visit_pair` does not fail
        let line = Line { level: record.level(), target: record.target().to_owned(), text };
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).push(line);
        self.more.notify_all();
    }

    fn flush(&self) {}
}

/// Collects from here on. All tests of a program share one log: tell lines apart by a path or an id.
pub fn collect() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        log::set_logger(&COLLECTOR).expect("no other logger is set");
        log::set_max_level(log::LevelFilter::Debug);
    });
}

/// The lines so far that contain this.
pub fn lines_with(part: &str) -> Vec<Line> {
    let lines = COLLECTOR.lines.lock().unwrap_or_else(PoisonError::into_inner);
    lines.iter().filter(|line| line.text.contains(part)).cloned().collect()
}

/// Waits for a line for which this holds.
#[track_caller]
pub fn wait_for(what: &str, limit: Duration, holds: impl Fn(&Line) -> bool) -> Line {
    let deadline = Instant::now() + limit;
    let mut lines = COLLECTOR.lines.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        if let Some(line) = lines.iter().find(|line| holds(line)) {
            return line.clone();
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let last: Vec<_> = lines.iter().rev().take(10).rev().map(|l| format!("{} {}", l.level, l.text)).collect();
            drop(lines);
            panic!("waited {limit:?} for a line of the log: {what}; the last were\n{}", last.join("\n"));
        }
        lines = COLLECTOR.more.wait_timeout(lines, left).unwrap_or_else(PoisonError::into_inner).0;
    }
}
