//! The access log: one line for each response, if the service was told to write it.
//!
//! The lines have a target of their own, to be filtered apart from the rest (`RUST_LOG=warn,allout::access=info`). The
//! message says the most important facts, for loggers that print no fields; the fields say all of them.
//!
//! The line is written after the response, on the thread that wrote it, so a logger that blocks delays later requests.
//! The logger of the `allout` binary never blocks.

use std::fmt;
use std::time::Duration;

use log::kv::Value;
use log::{Level, Record};

use crate::observe::{ResponseObserver, ResponseRecord};
use crate::text::escaped;

/// The target of access lines.
const TARGET: &str = "allout::access";

/// Logs every response.
pub(crate) fn observer() -> ResponseObserver {
    Box::new(write)
}

fn write(record: &ResponseRecord<'_>) {
    let (Some(request), true) = (&record.request, log::log_enabled!(target: TARGET, Level::Info)) else { return };
    let (method, target) = (&*escaped(&request.method), &*escaped(&request.target));
    let micros = u64::try_from(record.duration.as_micros()).unwrap_or(u64::MAX);
    let mut fields = vec![
        ("method", Value::from(method)),
        ("uri", Value::from(target)),
        ("version", Value::from(request.version)),
        ("route", Value::from(record.pattern)),
        ("status", Value::from(record.status)),
        ("bytes", Value::from(record.bytes)),
        ("duration_us", Value::from(micros)),
        ("peer", Value::from_display(&record.peer)),
    ];
    // These fields are left out where they are empty: in most lines they are.
    if let Some(cut) = record.cut {
        fields.push(("cut", Value::from(cut.name())));
    }
    if let Some(client) = request.client.as_ref().filter(|client| record.peer.ip() != Some(**client)) {
        fields.push(("client", Value::from_display(client)));
    }
    for (name, value) in [("user_agent", &request.user_agent), ("referer", &request.referer)] {
        if !value.is_empty() {
            fields.push((name, Value::from(value.as_str())));
        }
    }
    fields.push(("id", Value::from(record.id)));
    let line = Message { method, target, record };
    log::logger().log(
        &Record::builder()
            .level(Level::Info)
            .target(TARGET)
            .module_path_static(Some(module_path!()))
            .key_values(&fields.as_slice())
            .args(format_args!("{line}"))
            .build(),
    );
}

/// `GET /a 200 312 bytes 0.214ms`, or `GET /a 200 cut (client) 8400 bytes 1203.000ms`.
struct Message<'a> {
    method: &'a str,
    target: &'a str,
    record: &'a ResponseRecord<'a>,
}

impl fmt::Display for Message<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ResponseRecord { status, bytes, cut, duration, .. } = self.record;
        write!(f, "{} {} {status} ", self.method, self.target)?;
        if let Some(cut) = cut {
            write!(f, "cut ({}) ", cut.name())?;
        }
        write!(f, "{bytes} bytes {}", Millis(*duration))
    }
}

/// Milliseconds, with microseconds as decimals.
struct Millis(Duration);

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = self.0.as_micros();
        write!(f, "{}.{:03}ms", micros / 1000, micros % 1000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::Cut;

    #[test]
    fn the_message_has_the_most_important_facts() {
        let mut record = ResponseRecord {
            route: 0,
            pattern: "/{id}",
            method: "GET",
            request: None,
            status: 200,
            bytes: 312,
            cut: None,
            duration: Duration::from_micros(214),
            peer: std::net::SocketAddr::from(([127, 0, 0, 1], 1)).into(),
            id: "x",
        };
        let said = |record: &ResponseRecord<'_>| Message { method: "GET", target: "/a", record }.to_string();
        assert_eq!(said(&record), "GET /a 200 312 bytes 0.214ms");
        record.cut = Some(Cut::Client);
        record.duration = Duration::from_millis(1203);
        assert_eq!(said(&record), "GET /a 200 cut (client) 312 bytes 1203.000ms");
    }
}
