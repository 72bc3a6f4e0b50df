//! `/status.json`. The fields are described at [`Service::with_status_route`](crate::Service::with_status_route).

use std::fmt::Write as _;
use std::time::Duration;

use super::View;
use super::history::Rates;
use crate::crew::member::{Exit, MemberState};
use crate::observe::RouteSummary;
use crate::observe::snapshot::{Located, Snapshot, Stopping};
use crate::text::json_string;

/// Most requests that are listed, oldest first.
pub(super) const MAX_LISTED: usize = 100;

/// The document so far. Never inlined, so that a field costs a call.
struct Json(String);

impl Json {
    fn comma(&mut self) {
        if !matches!(self.0.as_bytes().last(), None | Some(b'{' | b'[' | b':')) {
            self.0.push(',');
        }
    }

    #[inline(never)]
    fn key(&mut self, name: &str) {
        self.comma();
        self.0.extend(["\"", name, "\":"]);
    }

    #[inline(never)]
    fn text(&mut self, name: &str, value: &str) {
        self.key(name);
        self.0.push_str(&json_string(value));
    }

    #[inline(never)]
    fn text_or_null(&mut self, name: &str, value: Option<&str>) {
        match value {
            Some(value) => self.text(name, value),
            None => self.null(name),
        }
    }

    #[inline(never)]
    fn null(&mut self, name: &str) {
        self.key(name);
        self.0.push_str("null");
    }

    #[inline(never)]
    fn flag(&mut self, name: &str, value: bool) {
        self.key(name);
        self.0.push_str(if value { "true" } else { "false" });
    }

    #[inline(never)]
    fn count(&mut self, name: &str, value: u64) {
        self.key(name);
        let _ = write!(self.0, "{value}"); // a String takes everything
    }

    #[inline(never)]
    fn size(&mut self, name: &str, value: usize) {
        self.count(name, value as u64);
    }

    #[inline(never)]
    fn number(&mut self, name: &str, value: f64) {
        self.key(name);
        let _ = write!(self.0, "{value:.3}"); // as above
    }

    #[inline(never)]
    fn seconds(&mut self, name: &str, span: Duration) {
        self.number(name, span.as_secs_f64());
    }

    /// An object with what `fill` writes.
    fn object(&mut self, name: &str, fill: impl FnOnce(&mut Json)) {
        self.key(name);
        self.item(fill);
    }

    /// As [`object`](Json::object), in a list.
    fn item(&mut self, fill: impl FnOnce(&mut Json)) {
        self.comma();
        self.0.push('{');
        fill(self);
        self.0.push('}');
    }

    /// A list of objects.
    fn list<T>(&mut self, name: &str, items: impl IntoIterator<Item = T>, fill: impl Fn(&mut Json, T)) {
        self.key(name);
        self.0.push('[');
        for item in items {
            self.item(|json| fill(json, item));
        }
        self.0.push(']');
    }
}

#[inline(never)]
pub(super) fn render(view: &View<'_>) -> String {
    let View { facts, now, .. } = view;
    let mut json = Json(String::new());
    json.item(|json| {
        json.text("phase", &now.phase.to_string());
        json.flag("ready", view.is_ready());
        match &now.stopping {
            Some(stopping) => json.object("stop", |json| stop(json, stopping)),
            None => json.null("stop"),
        }
        json.object("service", |json| service(json, view));
        json.list("addresses", &facts.addresses, |json, (role, address)| {
            json.text("role", role);
            json.text("address", address);
        });
        json.list("checks", &view.verdicts, |json, (name, verdict)| {
            json.text("name", name);
            json.text("status", if verdict.is_ok() { "ok" } else { "failing" });
            json.text_or_null("reason", verdict.as_ref().err().map(String::as_str));
        });
        json.list("members", &now.members, member);
        json.object("connections", |json| connections(json, now));
        json.object("requests", |json| requests(json, now, view.rates.as_ref()));
        match &view.routes {
            Some(routes) => json.list("routes", routes, route),
            None => json.null("routes"),
        }
        json.object("workers", |json| workers(json, now));
        json.object("limits", |json| {
            json.seconds("grace_seconds", facts.grace);
            json.seconds("drain_delay_seconds", facts.drain_delay);
            json.seconds("keepalive_min_seconds", facts.keepalive_min);
            json.seconds("idle_timeout_seconds", facts.idle_timeout);
            json.seconds("request_timeout_seconds", facts.request_timeout);
            json.count("max_body_bytes", facts.max_body);
        });
    });
    json.0 + "\n"
}

fn service(json: &mut Json, view: &View<'_>) {
    json.text("program", &view.program);
    json.text("host", &view.host);
    json.text("version", super::VERSION);
    json.text_or_null("commit", super::commit());
    json.text("engine", view.facts.engine);
    json.count("pid", std::process::id().into());
    json.seconds("uptime_seconds", view.now.uptime);
}

fn stop(json: &mut Json, stopping: &Stopping) {
    json.text("cause", &stopping.cause);
    json.flag("reexec", stopping.reexec);
    json.seconds("seconds", stopping.lasted);
    json.seconds("grace_left_seconds", stopping.grace_left);
    json.key("waiting_for");
    let texts: Vec<String> = stopping.waiting_for.iter().map(|what| json_string(what)).collect();
    json.0.extend(["[", &texts.join(","), "]"]);
}

fn member(json: &mut Json, member: &MemberState) {
    let restarts = member.restarts.as_ref();
    let (state, reason) = match &member.exit {
        None if restarts.is_some_and(|restarts| restarts.is_pausing()) => ("restarting", None),
        None => ("running", None),
        Some(Exit::Finished) => ("finished", None),
        Some(Exit::Failed(why)) => ("failed", Some(why)),
        Some(Exit::Panicked(why)) => ("panicked", Some(why)),
    };
    json.text("name", &member.name);
    json.text("state", state);
    json.text_or_null("reason", reason.map(String::as_str));
    json.seconds("seconds", member.since.elapsed());
    json.count("restarts", restarts.map_or(0, |restarts| restarts.count()));
}

fn connections(json: &mut Json, now: &Snapshot) {
    json.size("open", now.connections());
    json.size("limit", now.max_connections);
    json.size("busy", now.census.busy);
    json.size("idle", now.census.idle);
    json.size("closing", now.census.closing);
    json.size("aborted", now.census.aborted);
    json.count("accept_queue", now.accept_queue.into());
    json.count("opened_total", now.opened);
}

fn requests(json: &mut Json, now: &Snapshot, rates: Option<&Rates>) {
    json.size("in_flight", now.requests.len());
    json.size("pipelined", now.pipelined);
    if let Some(rates) = rates {
        json.count("answered_total", rates.total);
        json.number("per_second", rates.overall);
    } else {
        json.null("answered_total");
        json.null("per_second");
    }
    if let Some((rate, span)) = rates.and_then(|rates| rates.recent) {
        json.number("recent_per_second", rate);
        json.seconds("recent_seconds", span);
    } else {
        json.null("recent_per_second");
        json.null("recent_seconds");
    }
    json.count("shed_total", now.shed);
    json.count("rejected_total", now.rejected);
    json.count("panics_total", now.panics);
    json.list("oldest", now.requests.iter().take(MAX_LISTED), |json, Located { request, worker }| {
        json.text("request", super::without_query(&request.request_line));
        json.text("peer", &request.peer.to_string());
        json.seconds("seconds", request.since.elapsed());
        match worker {
            Some(number) => json.count("worker", *number),
            None => json.null("worker"),
        }
        json.size("pipelined", request.pipelined);
    });
}

fn route(json: &mut Json, route: &RouteSummary) {
    json.text("route", &route.route);
    json.count("responses", route.responses);
    json.count("client_errors", route.client_errors);
    json.count("server_errors", route.server_errors);
    json.seconds("mean_seconds", route.mean);
}

fn workers(json: &mut Json, now: &Snapshot) {
    let workers = &now.workers;
    json.size("busy", workers.busy);
    json.size("idle", workers.threads.saturating_sub(workers.busy));
    json.size("limit", workers.max_threads);
    json.size("queued", workers.queued);
    json.size("queue_limit", now.queue);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_value_is_json() {
        let mut json = Json(String::new());
        json.item(|json| {
            json.text("a", "</script>\"\n{");
            json.list("b", [1, 2], |json, number| json.count("c", number));
            json.list("d", [0; 0], |json, number| json.count("c", number));
            json.object("e", |json| json.flag("f", true));
            json.null("g");
            json.number("h", 0.5);
        });
        let expected = r#"{"a":"</script>\"\n{","b":[{"c":1},{"c":2}],"d":[],"e":{"f":true},"g":null,"h":0.500}"#;
        assert_eq!(json.0, expected);
    }
}
