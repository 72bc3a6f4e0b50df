//! A page that shows the state of a running service: what `/metrics` and `/readyz` say, every second.

use std::time::Duration;

use allout::{Check, Outcome, Request, Response, Service};

const PAGE: &str = "<!doctype html><meta charset=utf-8><title>status</title>
<h1 id=ready></h1><table id=numbers></table>
<script>
const shown = /^allout_(phase|workers|connections_open|http_requests_in_flight|worker_queue_length|http_requests_total)/
async function show() {
    const ready = await fetch('/readyz', {headers: {Accept: 'application/json'}}).then(r => r.json(), () => null)
    document.getElementById('ready').textContent = ready
        ? [ready.status, ...ready.checks.filter(c => c.reason).map(c => c.name + ': ' + c.reason)].join(', ')
        : 'not reachable'
    const metrics = await fetch('/metrics').then(r => r.text(), () => '')
    document.getElementById('numbers').replaceChildren(...metrics.split('\\n').filter(l => shown.test(l)).map(line => {
        const row = document.createElement('tr')
        row.append(...line.split(/ (?=[^ ]*$)/).map(text => {
            const cell = document.createElement('td')
            cell.textContent = text
            return cell
        }))
        return row
    }))
    setTimeout(show, 1000)
}
show()
</script>
";

fn main() -> Outcome {
    service().run()
}

/// The service: the page, something to wait for, and a check.
pub fn service() -> Service {
    Service::new()
        .get("/", |_| Response::html(PAGE))
        .get("/slow", |request: &mut Request| request.sleep(Duration::from_secs(3)).map(|()| "done\n"))
        .check(Check::new("disk", || std::fs::metadata("/").map(drop)))
}
