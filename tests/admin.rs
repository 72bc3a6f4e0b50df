//! What operators see and may change: readiness checks, metrics of the service's own, paths, automatic headers, limits.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says what it expects by panicking")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use allout::{AutomaticHeaders, Check, Limits, Request, RequestBuilder, Service, StartError};
use engine::{LIMIT, start};
use http::Connection;

#[path = "common/engine.rs"]
mod engine;
#[path = "load/http.rs"]
mod http;

fn get(address: SocketAddr, path: &str, headers: &str) -> http::Response {
    let mut connection = Connection::open(address, LIMIT).unwrap_or_else(|e| panic!("connecting to {address}: {e}"));
    let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{headers}\r\n");
    connection.send(request.as_bytes()).unwrap_or_else(|e| panic!("sending {path}: {e:?}"));
    connection.read_response("GET", LIMIT).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Asks until the answer is this one.
fn wait_for(address: SocketAddr, path: &str, status: u16, text: &str) {
    let began = Instant::now();
    loop {
        let response = get(address, path, "");
        if response.status == status && response.text().contains(text) {
            return;
        }
        assert!(began.elapsed() < LIMIT, "{path}: {} {}", response.status, response.text());
    }
}

#[test]
fn a_service_is_ready_when_its_checks_say_so() {
    let good = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&good);
    let database =
        Check::new("database", move || if asked.load(Ordering::Relaxed) { Ok(()) } else { Err("no \"db\"") });
    let service = Service::new()
        .check(database.every(Duration::from_millis(5)))
        .check(Check::new("cache", || Ok::<_, String>(())));
    let running = start(service);
    let address = running.address();
    wait_for(address, "/readyz", 503, "not ready\ndatabase: no \"db\"");
    let response = get(address, "/readyz", "Accept: application/json\r\n");
    assert_eq!(response.header("content-type"), Some("application/json"));
    assert_eq!((response.status, response.header("retry-after")), (503, Some("1")));
    let text = response.text();
    assert!(text.contains(r#"{"name":"database","status":"failing","reason":"no \"db\""}"#), "{text}");
    assert_eq!(get(address, "/healthz", "").status, 200);
    good.store(true, Ordering::Relaxed);
    wait_for(address, "/readyz", 200, "ok");
    let json = get(address, "/readyz", "Accept: application/json\r\n").text();
    assert_eq!(json, r#"{"status":"ok","checks":[{"name":"database","status":"ok"},{"name":"cache","status":"ok"}]}"#);
    assert_eq!(running.stop("a test").code(), 0);
}

#[test]
fn a_check_that_hangs_is_not_ready_and_delays_no_stop() {
    let (release, held) = allout::channel::bounded::<()>(0);
    let hangs = Check::new("hangs", move || held.recv().or(Ok::<_, String>(()))).limit(Duration::from_millis(5));
    let running = start(Service::new().check(hangs).grace(LIMIT));
    wait_for(running.address(), "/readyz", 503, "hangs: no answer for ");
    let began = Instant::now();
    let outcome = running.stop("a test");
    assert!(outcome.code() == 0 && began.elapsed() < LIMIT / 2, "{outcome}");
    drop(release);
}

#[test]
fn admin_routes_are_elsewhere_if_they_are_moved() {
    let service =
        Service::new().admin_path("/readyz", "/-/ready").admin_path("/metrics", "/-/metrics").fallback(|_| "else");
    let running = start(service);
    let ask = |path: &str| {
        let response = get(running.address(), path, "");
        (response.status, response.text())
    };
    assert_eq!(ask("/-/ready"), (200, "ok".to_owned()));
    assert_eq!(ask("/readyz"), (200, "else".to_owned()));
    assert_eq!(ask("/healthz"), (200, "ok".to_owned()));
    if cfg!(feature = "metrics") {
        assert!(ask("/-/metrics").1.contains("allout_build_info"));
    }
    let error = Service::new().admin_path("/state", "/s").listen("127.0.0.1:0").start().expect_err("no such route");
    assert!(matches!(&error, StartError::Setting(_)), "{error}");
}

#[cfg(feature = "metrics")]
#[test]
fn metrics_of_the_application_are_appended() {
    let running = start(
        Service::new()
            .append_metrics(|| "# TYPE shop_sold_total counter\nshop_sold_total 7\n".to_owned())
            .append_metrics(|| "# TYPE shop_open gauge\nshop_open 1\n".to_owned()),
    );
    let text = get(running.address(), "/metrics", "").text();
    let (ours, own) = text.split_once("# TYPE shop_sold_total counter\n").unwrap();
    assert!(ours.ends_with('\n') && ours.contains("allout_build_info"), "{ours}");
    assert_eq!(own, "shop_sold_total 7\n# TYPE shop_open gauge\nshop_open 1");
}

#[test]
fn the_automatic_headers_are_the_services_choice() {
    let headers = AutomaticHeaders::new().server("shop/2").nosniff(false).request_id(false);
    let running = start(Service::new().get("/", |_| "hello").automatic_headers(headers));
    for path in ["/", "/none", "/healthz"] {
        let response = get(running.address(), path, "");
        assert_eq!(response.header("server"), Some("shop/2"));
        assert!(response.header("x-request-id").is_none() && response.header("x-content-type-options").is_none());
        assert!(response.header("date").is_some());
    }
    let none = start(Service::new().automatic_headers(AutomaticHeaders::new().without_server()));
    let response = get(none.address(), "/", "");
    assert!(response.header("server").is_none() && response.header("x-request-id").is_some());
    let error =
        Service::new().automatic_headers(AutomaticHeaders::new().server("a\r\nb")).listen("127.0.0.1:0").start();
    assert!(matches!(&error, Err(StartError::Setting(_))), "{error:?}");
}

#[test]
fn heads_and_bodies_have_limits_of_the_service_and_of_a_route() {
    let service = Service::new()
        .max_head(200)
        .max_body(10)
        .get("/service", |_| "hello")
        .get("/route", |_| "hello")
        .limits("/route", Limits::new().max_head(300))
        .post("/body", Request::text)
        .limits("/body", Limits::new().max_head(300).max_body(20));
    let ask = |request: RequestBuilder, padding: usize| {
        service.handle(request.header("X-Padding", "x".repeat(padding))).status()
    };
    assert_eq!([ask(Request::get("/service"), 150), ask(Request::get("/service"), 200)], [200, 431]);
    assert_eq!([ask(Request::get("/route"), 200), ask(Request::get("/route"), 300)], [200, 431]);
    let post = |length: usize| ask(Request::post("/body").body("x".repeat(length)), 0);
    assert_eq!([post(20), post(21)], [200, 413]);
    let running = start(service);
    let padded = |length: usize| get(running.address(), "/service", &format!("X-Padding: {}\r\n", "x".repeat(length)));
    assert_eq!([padded(100).status, padded(200).status], [200, 431]);
}
