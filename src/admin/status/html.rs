//! The page of `/status`. It is complete without the script, which reloads it every two seconds, and leaves the last
//! state on the screen when there is no answer.
//!
//! Every text from elsewhere passes [`Text`], which escapes it.

use std::fmt::{self, Display, Write as _};

use super::format::{Text, bytes, decimal, grouped, long_duration, short_duration};
use super::json::MAX_LISTED;
use super::{Rates, View};
use crate::crew::member::MemberState;
use crate::lifecycle::phase::Phase;
use crate::observe::RouteSummary;
use crate::observe::snapshot::{Located, Snapshot, Stopping};
use crate::text::human_duration;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// Parts of the page that differ from response to response.
pub(super) struct Page<'a> {
    /// Lets the browser apply the style and run the script of this page, and no other.
    pub(super) nonce: &'a str,
    /// The last segment of its path, for links.
    pub(super) name: &'a str,
    /// Whether it is not reloaded.
    pub(super) paused: bool,
}

/// The page so far.
struct Out(String);

impl Out {
    #[inline(never)]
    fn add(&mut self, part: fmt::Arguments<'_>) {
        let _ = self.0.write_fmt(part); // a String takes everything
    }

    /// A row of a table. The columns after the first `texts` are numbers.
    #[inline(never)]
    fn row(&mut self, cell: &str, texts: usize, cells: &[&dyn Display]) {
        self.0.push_str("<tr>");
        for (column, content) in cells.iter().enumerate() {
            let class = if column < texts { "" } else { " class=n" };
            self.add(format_args!("<{cell}{class}>{}</{cell}>", Text(*content)));
        }
        self.0.push_str("</tr>");
    }

    /// The beginning of a section with a table.
    #[inline(never)]
    fn table(&mut self, title: &str, texts: usize, columns: &[&dyn Display]) {
        self.add(format_args!(
            "<section><h2>{title}</h2><div class=scroll tabindex=0 role=region aria-label=\"{title}\"><table><thead>"
        ));
        self.row("th scope=col", texts, columns);
        self.0.push_str("</thead><tbody>");
    }

    #[inline(never)]
    fn end_table(&mut self, more: usize) {
        self.0.push_str("</tbody></table></div>");
        if more > 0 {
            self.add(format_args!("<p class=sub>and {} more</p>", grouped(more as u64)));
        }
        self.0.push_str("</section>");
    }

    #[inline(never)]
    fn fact(&mut self, name: &str, value: &dyn Display) {
        self.add(format_args!("<dt>{name}</dt><dd>{}</dd>", Text(value)));
    }

    #[inline(never)]
    fn tile(&mut self, name: &str, value: &str, of: &str, below: fmt::Arguments<'_>) {
        self.add(format_args!(
            "<div><dt>{name}</dt><dd class=value>{value} <small>{of}</small></dd><dd class=sub>{below}</dd>"
        ));
    }

    /// A bar, filled by a share, at the end of a tile.
    #[inline(never)]
    fn bar(&mut self, part: f64, whole: f64) {
        let share = if whole > 0.0 { (part / whole * 100.0).clamp(0.0, 100.0) } else { 0.0 };
        self.add(format_args!(
            "<svg class=bar viewBox=\"0 0 100 1\" preserveAspectRatio=none aria-hidden=true>\
             <rect class=track width=100 height=1 /><rect width={share:.2} height=1 /></svg>"
        ));
    }
}

#[inline(never)]
pub(super) fn render(view: &View<'_>, page: &Page<'_>) -> String {
    let mut out = Out(String::with_capacity(16 * 1024));
    let (program, nonce, name) = (Text(&view.program), page.nonce, Text(&page.name));
    let (class, phase) = phase(view);
    let colour = match class {
        "ok" => "1a9d5a",
        "warn" => "d29922",
        _ => "d1443a",
    };
    out.add(format_args!(
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>\
         <meta name=viewport content=\"width=device-width, initial-scale=1\"><title>{phase}: {program}</title>\
         <link rel=icon href=\"data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 9 9'>\
         <circle cx='4.5' cy='4.5' r='4' fill='%23{colour}'/></svg>\"><style nonce={nonce}>{STYLE}</style>"
    ));
    if !page.paused {
        out.0.push_str("<noscript><meta http-equiv=refresh content=2></noscript>");
    }
    let (query, word) = if page.paused { ("", "Go on") } else { ("?pause", "Pause") };
    out.add(format_args!(
        "</head><body><header><h1>{program} <span>on {}</span></h1>\
         <nav aria-label=Page><a href=\"{name}{query}\">{word}</a><a href=\"{name}.json\">JSON</a></nav></header>\
         <p id=said role=status></p><section id=lost class=lost role=alert hidden></section><main>",
        Text(&view.host)
    ));
    out.add(format_args!(
        "<section class=phase><strong class={class}><span class=dot></span>{phase}</strong>\
         <p class=sub>up for {}, {} engine, pid {}</p></section>",
        long_duration(view.now.uptime),
        view.facts.engine,
        std::process::id()
    ));
    if let Some(stopping) = &view.now.stopping {
        drain(&mut out, stopping);
    }
    tiles(&mut out, view);
    checks(&mut out, &view.verdicts);
    requests(&mut out, &view.now.requests);
    if let Some(routes) = view.routes.as_ref().filter(|routes| !routes.is_empty()) {
        routes_table(&mut out, routes);
    }
    members(&mut out, &view.now.members);
    facts(&mut out, view);
    out.0.push_str("</main>");
    if !page.paused {
        out.add(format_args!("<script nonce={nonce}>{SCRIPT}</script>"));
    }
    out.0.push_str("</body></html>\n");
    out.0
}

/// The phase in a word, and its colour.
fn phase(view: &View<'_>) -> (&'static str, &'static str) {
    match view.now.phase {
        Phase::Serving if view.is_ready() => ("ok", "Serving"),
        Phase::Serving => ("bad", "Serving, not ready"),
        Phase::DrainDelay => ("warn", "Draining, still accepting"),
        Phase::Draining => ("warn", "Draining"),
        Phase::Stopping => ("warn", "Stopping"),
        Phase::Stopped => ("bad", "Stopped"),
    }
}

fn drain(out: &mut Out, stopping: &Stopping) {
    let Stopping { cause, reexec, lasted, grace_left, waiting_for } = stopping;
    let end = if *reexec { "re-executes" } else { "exits" };
    out.add(format_args!("<section class=drain><h2>{}</h2>", Text(cause)));
    out.bar(lasted.as_secs_f64(), (*lasted + *grace_left).as_secs_f64());
    let waiting = if waiting_for.is_empty() { "nothing more".to_owned() } else { waiting_for.join(", ") };
    out.add(format_args!(
        "<p><b>{} of grace left</b>, {} gone. Waits for {}; then it {end}.</p></section>",
        human_duration(*grace_left),
        human_duration(*lasted),
        Text(&waiting)
    ));
}

fn tiles(out: &mut Out, view: &View<'_>) {
    let now = &view.now;
    out.0.push_str("<dl class=tiles>");
    if let Some(rates) = &view.rates {
        rates_tile(out, rates);
    }
    let oldest = now.requests.first().map_or_else(
        || "none is waiting".to_owned(),
        |oldest| format!("the oldest for {}", human_duration(oldest.request.since.elapsed())),
    );
    let behind =
        if now.pipelined > 0 { format!("and {} pipelined", grouped(now.pipelined as u64)) } else { String::new() };
    out.tile("Requests in flight", &grouped(now.requests.len() as u64), &behind, format_args!("{oldest}"));
    let (open, limit) = (now.connections(), now.max_connections);
    out.0.push_str("</div>");
    out.tile(
        "Connections",
        &grouped(open as u64),
        &format!("of {}", grouped(limit as u64)),
        format_args!(
            "{} busy, {} idle, {} ending",
            now.census.busy,
            now.census.idle,
            open - now.census.busy - now.census.idle
        ),
    );
    out.bar(as_f64(open), as_f64(limit));
    out.0.push_str("</div>");
    let workers = &now.workers;
    out.tile(
        "Workers busy",
        &grouped(workers.busy as u64),
        &format!("of {}", grouped(workers.max_threads as u64)),
        format_args!(
            "{} idle; {} of {} queued",
            workers.threads.saturating_sub(workers.busy),
            workers.queued,
            now.queue
        ),
    );
    out.bar(as_f64(workers.busy), as_f64(workers.max_threads));
    out.0.push_str("</div></dl>");
}

fn rates_tile(out: &mut Out, rates: &Rates) {
    let overall = decimal(rates.overall);
    match rates.recent {
        Some((rate, span)) => {
            let of = format!("in the last {:.0} s", span.as_secs_f64());
            out.tile("Responses per second", &decimal(rate), &of, format_args!("{overall} since the start"));
        }
        None => out.tile(
            "Responses per second",
            &overall,
            "since the start",
            format_args!("{} in all", grouped(rates.total)),
        ),
    }
    let most = rates.course.iter().copied().fold(1.0, f64::max);
    out.0.push_str("<svg class=course viewBox=\"0 0 60 10\" preserveAspectRatio=none aria-hidden=true>");
    for (number, rate) in rates.course.iter().enumerate() {
        let (height, x) = (rate / most * 10.0, 60 - rates.course.len() + number);
        out.add(format_args!("<rect x={x} y={:.2} width=.8 height={:.2} />", 10.0 - height - 0.3, height + 0.3));
    }
    out.0.push_str("</svg></div>");
}

fn checks(out: &mut Out, verdicts: &[(String, Result<(), String>)]) {
    if verdicts.is_empty() {
        return;
    }
    out.0.push_str("<section><h2>Readiness checks</h2><ul>");
    for (name, verdict) in verdicts {
        let (class, mark, said) = match verdict {
            Ok(()) => ("ok", "\u{2713}", "ok"),
            Err(reason) => ("bad", "\u{2717}", reason.as_str()),
        };
        out.add(format_args!("<li><b class={class}>{mark} {}</b> {}</li>", Text(name), Text(&said)));
    }
    out.0.push_str("</ul></section>");
}

fn requests(out: &mut Out, requests: &[Located]) {
    if requests.is_empty() {
        return;
    }
    out.table("Requests in flight, oldest first", 3, &[&"Request", &"Client", &"Where", &"For"]);
    for Located { request, worker } in requests.iter().take(MAX_LISTED) {
        let at = worker.map_or_else(|| "queued or inline".to_owned(), |number| format!("worker-{number}"));
        let since = human_duration(request.since.elapsed());
        out.row("td", 3, &[&super::without_query(&request.request_line), &request.peer, &at, &since]);
    }
    out.end_table(requests.len().saturating_sub(MAX_LISTED));
}

fn routes_table(out: &mut Out, routes: &[RouteSummary]) {
    out.table("Routes", 1, &[&"Route", &"Responses", &"4xx", &"5xx", &"Mean"]);
    for route in routes.iter().take(MAX_LISTED) {
        let [all, client, server] = [route.responses, route.client_errors, route.server_errors].map(grouped);
        out.row("td", 1, &[&route.route, &all, &client, &server, &short_duration(route.mean)]);
    }
    out.end_table(routes.len().saturating_sub(MAX_LISTED));
}

fn members(out: &mut Out, members: &[MemberState]) {
    out.table("Members", 2, &[&"Name", &"State", &"For", &"Restarts"]);
    for member in members {
        let state = match (&member.exit, &member.restarts) {
            (Some(exit), _) => exit.to_string(),
            (None, Some(restarts)) if restarts.is_pausing() => "waits for its restart".to_owned(),
            (None, _) => "running".to_owned(),
        };
        let restarts = member.restarts.as_ref().map_or_else(String::new, |restarts| grouped(restarts.count()));
        out.row("td", 2, &[&member.name, &state, &long_duration(member.since.elapsed()), &restarts]);
    }
    out.end_table(0);
}

fn facts(out: &mut Out, view: &View<'_>) {
    let (facts, now) = (view.facts, &view.now);
    out.0.push_str("<div class=pair><section><h2>Since the start</h2><dl class=facts>");
    since_start(out, view.rates.as_ref(), now);
    out.0.push_str("</dl></section><section><h2>Settings</h2><dl class=facts>");
    for (role, address) in &facts.addresses {
        out.fact(if *role == "admin" { "Admin routes on" } else { "Listens on" }, address);
    }
    let commit = super::commit().map(|commit| format!(" ({commit})")).unwrap_or_default();
    out.fact("allout", &format_args!("{}{commit}", super::VERSION));
    out.fact("Grace period", &human_duration(facts.grace));
    out.fact("Drain delay", &human_duration(facts.drain_delay));
    out.fact("Minimum keep-alive", &human_duration(facts.keepalive_min));
    out.fact("Idle timeout", &human_duration(facts.idle_timeout));
    out.fact("Request timeout", &human_duration(facts.request_timeout));
    out.fact("Largest body", &bytes(facts.max_body));
    if !facts.bound.is_empty() {
        out.fact("Limits are bounded by the", &facts.bound.trim().trim_matches(['(', ')']));
    }
    out.0.push_str("</dl></section></div>");
}

fn since_start(out: &mut Out, rates: Option<&Rates>, now: &Snapshot) {
    if let Some(rates) = rates {
        out.fact("Responses", &grouped(rates.total));
    }
    out.fact("Connections opened", &grouped(now.opened));
    out.fact("Waiting to be accepted", &now.accept_queue);
    out.fact("Requests shed (503)", &grouped(now.shed));
    out.fact("Requests rejected", &grouped(now.rejected));
    out.fact("Handlers that panicked", &grouped(now.panics));
}

#[expect(clippy::cast_precision_loss, reason = "for the length of a bar")]
fn as_f64(number: usize) -> f64 {
    number as f64
}
