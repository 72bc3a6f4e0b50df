//! `/status.json`. The fields are described at [`Service::with_status_route`](crate::Service::with_status_route).

use std::fmt::Write as _;
use std::time::Duration;

use super::View;
use crate::crew::member::{Exit, MemberState};
use crate::observe::RouteSummary;
use crate::observe::snapshot::{Located, Snapshot, Stopping};
use crate::text::json_string;

/// Most requests that are listed, oldest first.
pub(super) const MAX_LISTED: usize = 100;

/// A JSON value.
enum Json {
    Null,
    Bool(bool),
    Count(u64),
    /// With milliseconds.
    Number(f64),
    Text(String),
    List(Vec<Json>),
    Object(Vec<(&'static str, Json)>),
}

use Json::{Bool, List, Null, Object};

impl Json {
    fn write(&self, to: &mut String) {
        match self {
            Null => to.push_str("null"),
            Bool(value) => to.push_str(if *value { "true" } else { "false" }),
            Json::Count(value) => drop(write!(to, "{value}")), // a String takes everything
            Json::Number(value) => drop(write!(to, "{value:.3}")),
            Json::Text(text) => to.push_str(&json_string(text)),
            List(items) => {
                let mut before = '[';
                for item in items {
                    to.push(before);
                    item.write(to);
                    before = ',';
                }
                to.push_str(if items.is_empty() { "[]" } else { "]" });
            }
            Object(fields) => {
                let mut before = '{';
                for (name, value) in fields {
                    to.push(before);
                    to.push_str(&json_string(name));
                    to.push(':');
                    value.write(to);
                    before = ',';
                }
                to.push('}');
            }
        }
    }
}

fn text(value: &str) -> Json {
    Json::Text(value.to_owned())
}

fn count(value: usize) -> Json {
    Json::Count(value as u64)
}

fn seconds(span: Duration) -> Json {
    Json::Number(span.as_secs_f64())
}

fn list<T>(items: &[T], of: impl Fn(&T) -> Json) -> Json {
    List(items.iter().map(of).collect())
}

pub(super) fn render(view: &View<'_>) -> String {
    let View { facts, now, .. } = view;
    let document = Object(vec![
        ("phase", text(&now.phase.to_string())),
        ("ready", Bool(view.is_ready())),
        ("stop", now.stopping.as_ref().map_or(Null, stop)),
        (
            "service",
            Object(vec![
                ("program", text(&view.program)),
                ("host", text(&view.host)),
                ("version", text(super::VERSION)),
                ("commit", super::COMMIT.map_or(Null, text)),
                ("engine", text(facts.engine)),
                ("pid", Json::Count(std::process::id().into())),
                ("uptime_seconds", seconds(now.uptime)),
            ]),
        ),
        (
            "addresses",
            list(&facts.addresses, |(role, address)| {
                Object(vec![("role", text(role)), ("address", text(&address.to_string()))])
            }),
        ),
        ("checks", list(&view.verdicts, |(name, verdict)| check(name, verdict.as_ref().err()))),
        ("members", list(&now.members, member)),
        ("connections", connections(now)),
        ("requests", requests(view)),
        ("routes", view.routes.as_ref().map_or(Null, |routes| list(routes, route))),
        ("workers", workers(now)),
        (
            "limits",
            Object(vec![
                ("grace_seconds", seconds(facts.grace)),
                ("drain_delay_seconds", seconds(facts.drain_delay)),
                ("keepalive_min_seconds", seconds(facts.keepalive_min)),
                ("idle_timeout_seconds", seconds(facts.idle_timeout)),
                ("request_timeout_seconds", seconds(facts.request_timeout)),
                ("max_body_bytes", Json::Count(facts.max_body)),
            ]),
        ),
    ]);
    let mut json = String::new();
    document.write(&mut json);
    json.push('\n');
    json
}

fn stop(stopping: &Stopping) -> Json {
    Object(vec![
        ("cause", text(&stopping.cause)),
        ("reexec", Bool(stopping.reexec)),
        ("seconds", seconds(stopping.lasted)),
        ("grace_left_seconds", seconds(stopping.grace_left)),
        ("waiting_for", list(&stopping.waiting_for, |what| text(what))),
    ])
}

fn check(name: &str, reason: Option<&String>) -> Json {
    let status = if reason.is_none() { "ok" } else { "failing" };
    Object(vec![("name", text(name)), ("status", text(status)), ("reason", reason.map_or(Null, |why| text(why)))])
}

fn member(member: &MemberState) -> Json {
    let restarts = member.restarts.as_ref();
    let (state, reason) = match &member.exit {
        None if restarts.is_some_and(|restarts| restarts.is_pausing()) => ("restarting", None),
        None => ("running", None),
        Some(Exit::Finished) => ("finished", None),
        Some(Exit::Failed(why)) => ("failed", Some(why)),
        Some(Exit::Panicked(why)) => ("panicked", Some(why)),
    };
    Object(vec![
        ("name", text(&member.name)),
        ("state", text(state)),
        ("reason", reason.map_or(Null, |why| text(why))),
        ("seconds", seconds(member.since.elapsed())),
        ("restarts", Json::Count(restarts.map_or(0, |restarts| restarts.count()))),
    ])
}

fn connections(now: &Snapshot) -> Json {
    Object(vec![
        ("open", count(now.connections())),
        ("limit", count(now.max_connections)),
        ("busy", count(now.census.busy)),
        ("idle", count(now.census.idle)),
        ("closing", count(now.census.closing)),
        ("aborted", count(now.census.aborted)),
        ("accept_queue", Json::Count(now.accept_queue.into())),
        ("opened_total", Json::Count(now.opened)),
    ])
}

fn requests(view: &View<'_>) -> Json {
    let (now, rates) = (&view.now, view.rates.as_ref());
    let recent = rates.and_then(|rates| rates.recent);
    Object(vec![
        ("in_flight", count(now.requests.len())),
        ("pipelined", count(now.pipelined)),
        ("answered_total", rates.map_or(Null, |rates| Json::Count(rates.total))),
        ("per_second", rates.map_or(Null, |rates| Json::Number(rates.overall))),
        ("recent_per_second", recent.map_or(Null, |(rate, _)| Json::Number(rate))),
        ("recent_seconds", recent.map_or(Null, |(_, span)| seconds(span))),
        ("shed_total", Json::Count(now.shed)),
        ("rejected_total", Json::Count(now.rejected)),
        ("panics_total", Json::Count(now.panics)),
        ("oldest", List(now.requests.iter().take(MAX_LISTED).map(request).collect())),
    ])
}

fn request(Located { request, worker }: &Located) -> Json {
    Object(vec![
        ("request", text(super::without_query(&request.request_line))),
        ("peer", text(&request.peer.to_string())),
        ("seconds", seconds(request.since.elapsed())),
        ("worker", worker.map_or(Null, Json::Count)),
        ("pipelined", count(request.pipelined)),
    ])
}

fn route(route: &RouteSummary) -> Json {
    Object(vec![
        ("route", text(&route.route)),
        ("responses", Json::Count(route.responses)),
        ("client_errors", Json::Count(route.client_errors)),
        ("server_errors", Json::Count(route.server_errors)),
        ("mean_seconds", seconds(route.mean)),
    ])
}

fn workers(now: &Snapshot) -> Json {
    let workers = &now.workers;
    Object(vec![
        ("busy", count(workers.busy)),
        ("idle", count(workers.threads.saturating_sub(workers.busy))),
        ("limit", count(workers.max_threads)),
        ("queued", count(workers.queued)),
        ("queue_limit", count(now.queue)),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_value_is_json() {
        let value = Object(vec![
            ("a", List(vec![Null, Bool(true), Json::Count(7), Json::Number(0.5)])),
            ("b", List(Vec::new())),
            ("c", text("</script>\"\n")),
        ]);
        let mut json = String::new();
        value.write(&mut json);
        assert_eq!(json, r#"{"a":[null,true,7,0.500],"b":[],"c":"</script>\"\n"}"#);
    }
}
