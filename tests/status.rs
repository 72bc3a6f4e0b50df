//! `/status`: what it shows, in a drain too, who may see it, and that nothing on it is markup but its own.

#![allow(clippy::expect_used, clippy::panic, reason = "a test says what it expects by panicking")]

mod common;

use allout::{Check, Request, Restart, Service};
use common::http::{Connection, Response};
use common::{Allout, LIMIT, Serving, Speak as _, ask_at, wait_until, wait_until_draining};
use rustix::process::Signal;
use serde_json::Value;
use std::net::SocketAddr;
use std::time::Duration;

#[track_caller]
fn get(addr: SocketAddr, path: &str, headers: &str) -> Response {
    ask_at(addr, "GET", path, headers)
}

#[track_caller]
fn json(addr: SocketAddr) -> Value {
    let response = get(addr, "/status.json", "");
    assert_eq!((response.status, response.header("content-type")), (200, Some("application/json")));
    serde_json::from_slice(&response.body).unwrap_or_else(|e| panic!("{e}: {}", response.text()))
}

fn admin_address(server: &Serving) -> SocketAddr {
    const BEFORE: &str = "admin routes on http://";
    let line = server.wait_for_line(BEFORE, LIMIT);
    let address = line.split(BEFORE).nth(1).and_then(|rest| rest.split([' ', ',']).next()).unwrap_or_default();
    address.parse().unwrap_or_else(|e| panic!("{line}: {e}"))
}

#[test]
fn the_page_shows_the_service_and_needs_nothing_from_elsewhere() {
    let server = Allout::new().args(["--grace", "7s", "--queue", "77"]).start();
    assert_eq!(server.get("/").status, 200);
    assert_eq!(server.ask("DELETE", "/healthz").status, 405);
    let page = get(server.addr, "/status", "");
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    assert_eq!(page.header("cache-control"), Some("no-store"));
    let policy = page.header("content-security-policy").expect("it has a policy").to_owned();
    let nonce = policy.split("'nonce-").nth(1).and_then(|rest| rest.split('\'').next()).expect("with a nonce");
    let text = page.text();
    for part in [
        format!("<style nonce={nonce}>"),
        format!("<script nonce={nonce}>"),
        "Serving".to_owned(),
        format!("pid {}", server.id()),
        format!("<dd>{}</dd>", server.addr),
        "<td>signals</td><td>running</td>".to_owned(),
        "<dd>7.0s</dd>".to_owned(),
        "of 77 queued".to_owned(),
        "http-equiv=refresh".to_owned(),
    ] {
        assert!(text.contains(&part), "{part}: {text}");
    }
    for reference in text.split("href=").skip(1) {
        let local = reference.starts_with("\"data:") || reference.starts_with("\"status");
        assert!(local, "{reference}");
    }
    assert!(!text.contains("src=") && !text.contains("@import") && !text.contains("url("), "{text}");
    let other = get(server.addr, "/status", "");
    assert_ne!(other.header("content-security-policy"), Some(&*policy), "a nonce is used once");
    let paused = get(server.addr, "/status?pause", "").text();
    assert!(!paused.contains("http-equiv=refresh") && !paused.contains("<script"), "{paused}");
    assert_eq!(server.ask("POST", "/status").status, 405);
    assert_eq!(server.ask("HEAD", "/status").status, 200);
}

#[test]
fn programs_get_the_same_as_json() {
    let server = Allout::new().args(["--timeout-delay", "60s", "--grace", "1ms", "--workers", "9"]).start();
    assert_eq!(server.get("/").status, 200);
    let state = json(server.addr);
    assert_eq!((&state["phase"], &state["ready"], &state["stop"]), (&"serving".into(), &true.into(), &Value::Null));
    assert_eq!(state["service"]["engine"], common::engine::ENGINE.name());
    assert_eq!(state["service"]["pid"], server.id());
    assert_eq!(state["service"]["program"], "allout");
    assert_eq!(state["addresses"][0]["address"], server.addr.to_string());
    assert_eq!((&state["requests"]["in_flight"], &state["workers"]["busy"]), (&0.into(), &0.into()));
    assert_eq!((&state["workers"]["limit"], &state["limits"]["grace_seconds"]), (&9.into(), &0.001.into()));
    let members = state["members"].as_array().expect("a list");
    assert!(members.iter().any(|member| member["name"] == "workers" && member["state"] == "running"), "{members:?}");

    let mut waiting = server.connect();
    waiting.request("GET", "/timeout?user=secret");
    wait_until(LIMIT, "the request to be shown", || json(server.addr)["requests"]["in_flight"] == 1);
    let state = json(server.addr);
    let request = &state["requests"]["oldest"][0];
    assert_eq!((&request["request"], &request["worker"].is_u64()), (&"GET /timeout".into(), &true));
    assert_eq!(request["peer"], waiting.stream().local_addr().expect("it has one").to_string());
    assert_eq!(state["workers"]["busy"], 1);
    assert!(state["connections"]["open"].as_u64() >= Some(2), "{state}");
    if cfg!(feature = "metrics") {
        // A response is counted after it was written.
        wait_until(LIMIT, "the response to be counted", || json(server.addr)["requests"]["answered_total"] == 1);
        let state = json(server.addr);
        let route = state["routes"].as_array().and_then(|routes| routes.iter().find(|route| route["route"] == "*"));
        assert_eq!(route.expect("it has answered")["responses"], 1);
    }
    let accepted = get(server.addr, "/status", "Accept: application/json\r\n");
    assert_eq!(accepted.header("content-type"), Some("application/json"));
    let page = get(server.addr, "/status", "").text();
    assert!(page.contains("<td>GET /timeout</td>") && !page.contains("secret"), "{page}");
}

#[test]
fn names_and_reasons_are_text_and_never_markup() {
    const MARKUP: &str = "<script>alert('1')</script>\"&";
    let running = Service::new()
        .engine(common::engine::ENGINE)
        .listen("127.0.0.1:0")
        .with_status_route()
        .check(Check::new(MARKUP, || Err(MARKUP)))
        .get("/<b>'x'", |_| "odd")
        .get("/wait/{what}", |request: &mut Request| request.sleep(LIMIT).map(|()| "late"))
        .one_shot("<i>done</i>", |_| ())
        .restarted_member("consumer", Restart::new().times(1).backoff(Duration::ZERO, Duration::ZERO), {
            let first = std::sync::atomic::AtomicBool::new(true);
            move |stop: &allout::Stop| {
                if !first.swap(false, std::sync::atomic::Ordering::Relaxed) {
                    stop.wait();
                }
            }
        })
        .grace(Duration::from_millis(1))
        .start()
        .expect("it starts");
    let addr = running.address();
    assert_eq!(get(addr, "/<b>'x'", "").status, 200);
    let mut waiting = Connection::open(addr, LIMIT).expect("it listens");
    waiting.request("GET", "/wait/<script>");
    let checked = |state: &Value| state["checks"][0]["reason"] == MARKUP;
    let restarted = |state: &Value| {
        let members = state["members"].as_array().expect("a list");
        members.iter().any(|member| member["name"] == "consumer" && member["restarts"] == 1)
    };
    let waits = |state: &Value| state["requests"]["in_flight"] == 1;
    wait_until(LIMIT, "all of it to be shown", || {
        let state = json(addr);
        checked(&state) && restarted(&state) && waits(&state)
    });
    let state = json(addr);
    assert_eq!((&state["ready"], &state["checks"][0]["name"]), (&false.into(), &MARKUP.into()));
    let page = get(addr, "/status", "").text();
    let escaped = "&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;&quot;&amp;";
    assert_eq!(page.matches(escaped).count(), 2, "{page}");
    let shown = [
        "Serving, not ready",
        "<td>GET /wait/&lt;script&gt;</td>",
        "<td>&lt;i&gt;done&lt;/i&gt;</td><td>finished</td>",
    ];
    for part in shown {
        assert!(page.contains(part), "{part}: {page}");
    }
    for markup in ["<script>", "<b>'", "<i>"] {
        assert!(!page.contains(markup), "{markup}: {page}");
    }
}

#[test]
fn a_drain_is_shown_while_it_runs() {
    let mut server = Allout::new().args(["--drain-delay", "30s", "--grace", "40s", "--timeout-delay", "60s"]).start();
    let mut waiting = server.connect();
    waiting.request("GET", "/timeout");
    server.wait_until_read(&waiting);
    server.signal(Signal::TERM);
    wait_until_draining(|| server.connect());
    wait_until(LIMIT, "the stop to be shown", || json(server.addr)["stop"].is_object());
    let state = json(server.addr);
    assert_eq!((&state["phase"], &state["ready"]), (&"drain_delay".into(), &false.into()));
    let stop = &state["stop"];
    assert_eq!((&stop["cause"], &stop["reexec"]), (&"SIGTERM".into(), &false.into()));
    assert!(stop["grace_left_seconds"].as_f64().is_some_and(|left| left > 10.0 && left < 40.0), "{stop}");
    assert_eq!(stop["waiting_for"][0], "the drain delay of 30.0s");
    assert_eq!(stop["waiting_for"][1], "1 request in flight");
    let page = get(server.addr, "/status", "").text();
    for part in
        ["Draining, still accepting", "<h2>SIGTERM</h2>", "then it exits", "of grace left", "1 request in flight"]
    {
        assert!(page.contains(part), "{part}: {page}");
    }
    server.signal(Signal::INT);
    server.wait_exit(LIMIT);
}

#[test]
fn on_a_shared_address_it_is_for_the_operator_alone() {
    let server = Allout::new().args(["--shutdown-token", "s3cret-s3cret-s3cret"]).start();
    for headers in [
        "Host: evil.test\r\n",
        "X-Forwarded-For: 192.0.2.1\r\n",
        "Sec-Fetch-Site: cross-site\r\n",
        "Authorization: Bearer wrong\r\n",
    ] {
        for path in ["/status", "/status.json"] {
            let refused = get(server.addr, path, headers);
            assert_eq!(refused.status, 403, "{path} {headers}");
            assert!(!refused.text().contains("uptime"), "{}", refused.text());
        }
    }
    let shown = "X-Forwarded-For: 192.0.2.1\r\nAuthorization: Bearer s3cret-s3cret-s3cret\r\n";
    assert_eq!(get(server.addr, "/status.json", shown).status, 200);
    assert_eq!(get(server.addr, "/status", "Sec-Fetch-Site: same-origin\r\n").status, 200);
    assert!(server.is_alive());
}

#[test]
fn on_an_admin_address_it_is_open_and_nowhere_else() {
    let server = Allout::new().args(["--admin-listen", "127.0.0.1:0"]).start();
    let admin = admin_address(&server);
    for path in ["/status", "/status.json"] {
        assert_eq!(server.get(path).status, 404, "{path}");
        assert_eq!(get(admin, path, "Host: admin.test\r\nX-Forwarded-For: 192.0.2.1\r\n").status, 200, "{path}");
    }
    let addresses = json(admin)["addresses"].clone();
    assert_eq!((&addresses[0]["role"], &addresses[1]["role"]), (&"http".into(), &"admin".into()));
    assert_eq!(addresses[1]["address"], admin.to_string());
}

#[test]
fn in_the_library_it_is_there_if_it_was_asked_for_and_where() {
    let status = |service: &Service, path: &str| service.handle(Request::get(path)).status();
    let without = Service::new().fallback(|_| 418);
    assert_eq!([status(&without, "/status"), status(&without, "/status.json")], [418, 418]);
    let moved = Service::new().with_status_route().admin_path("/status", "/-/state").fallback(|_| 418);
    let paths = ["/-/state", "/-/state.json", "/status", "/status.json"];
    assert_eq!(paths.map(|path| status(&moved, path)), [200, 200, 418, 418]);
    let page = moved.handle(Request::get("/-/state")).into_text().expect("it is text");
    assert!(page.contains("href=\"state?pause\"") && page.contains("href=\"state.json\""), "{page}");
    let own = Service::new().with_status_route().get("/status", |_| "mine");
    assert_eq!(own.handle(Request::get("/status")).into_text().expect("it is text"), "mine");
    assert_eq!(status(&own, "/status.json"), 200);
}
