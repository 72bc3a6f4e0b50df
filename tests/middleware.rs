//! Middleware: what every response passes, in which order, and what it may change.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says what it expects by panicking")]

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Mutex};

use allout::{Body, HandlerError, Request, RequestBuilder, Response, Service, ServiceHandle, channel};
use engine::{LIMIT, exchange, get, start};
use http::Connection;

#[path = "common/engine.rs"]
mod engine;
#[path = "load/http.rs"]
mod http;

/// What middleware saw.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<String>>>);

impl Seen {
    fn add(&self, what: impl Into<String>) {
        self.0.lock().unwrap().push(what.into());
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

#[test]
fn several_run_in_the_order_given_the_first_outermost() {
    let seen = Seen::default();
    let layer = |name: &'static str| {
        let seen = seen.clone();
        move |request: &mut Request, next: allout::Next<'_>| {
            seen.add(format!("{name} before"));
            let response = next.run(request);
            seen.add(format!("{name} after {}", response.status()));
            response
        }
    };
    let handled = seen.clone();
    let service = Service::new()
        .around(layer("first"))
        .get("/", move |_| handled.add("handler"))
        .inline_around(layer("second"))
        .around(layer("third"));
    assert_eq!(service.handle(Request::get("/")).status(), 204);
    let order = [
        "first before",
        "second before",
        "third before",
        "handler",
        "third after 204",
        "second after 204",
        "first after 204",
    ];
    assert_eq!(seen.take(), order);
    // The health routes leave out what may wait.
    assert_eq!(service.handle(Request::get("/healthz")).status(), 200);
    assert_eq!(seen.take(), ["second before", "second after 200"]);
}

/// A service whose responses all say that they passed its middleware.
fn marked(service: Service) -> Service {
    service
        .get("/", |_| "hello")
        .post("/body", |request| -> Result<String, HandlerError> { Ok(request.text()?) })
        .get("/panics", |_| -> Response { panic!("a bug") })
        .get("/fails", |_| -> Result<(), HandlerError> { Err(std::io::Error::other("the disk is gone"))? })
        .get("/teapot", |_| 418)
        .max_body(3)
}

#[test]
fn every_response_passes_also_those_of_the_library_itself() {
    for inline in [true, false] {
        let mark = |request: &mut Request, next: allout::Next<'_>| {
            let mut response = next.run(request);
            let passed = response.header("X-Passed").map_or(1, |times| times.parse::<u32>().unwrap() + 1);
            response.set_header("X-Passed", passed.to_string());
            response.set_header("X-Route", request.route().to_owned());
            response
        };
        let service = marked(Service::new());
        let service = if inline { service.inline_around(mark) } else { service.around(mark) };
        let running = start(service);
        let head = "Host: a\r\nConnection: close\r\n";
        let rows = [
            (format!("GET / HTTP/1.1\r\n{head}\r\n"), 200, "/"),
            (format!("GET /none HTTP/1.1\r\n{head}\r\n"), 404, "*"),
            (format!("DELETE / HTTP/1.1\r\n{head}\r\n"), 405, "/"),
            (format!("TRACE / HTTP/1.1\r\n{head}\r\n"), 405, "/"),
            (format!("GET / HTTP/1.1\r\n{head}Host: b\r\n\r\n"), 400, "*"),
            (format!("GET /panics HTTP/1.1\r\n{head}\r\n"), 500, "/panics"),
            (format!("GET /fails HTTP/1.1\r\n{head}\r\n"), 500, "/fails"),
            (format!("GET /teapot HTTP/1.1\r\n{head}\r\n"), 418, "/teapot"),
            (format!("POST /body HTTP/1.1\r\n{head}Content-Length: 4\r\n\r\nlong"), 413, "/body"),
            (format!("HEAD /none HTTP/1.1\r\n{head}\r\n"), 404, "*"),
        ];
        for (request, status, route) in rows {
            let response = exchange(running.address(), &request);
            assert!(response.starts_with(&format!("HTTP/1.1 {status}")), "{request}{response}");
            assert!(response.contains(&format!("\r\nX-Passed: 1\r\nX-Route: {route}\r\n")), "{request}{response}");
        }
        assert_eq!(running.stop("a test").code(), 0);
    }
}

#[test]
fn a_body_that_breaks_off_unread_is_a_400_for_middleware_too() {
    let seen = Seen::default();
    let saw = seen.clone();
    let running = start(Service::new().post("/", |_| "unread").around(move |request, next| {
        let response = next.run(request);
        saw.add(response.status().to_string());
        response
    }));
    let mut client = TcpStream::connect(running.address()).unwrap();
    client.set_read_timeout(Some(LIMIT)).unwrap();
    client.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5000\r\n\r\nabc").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut response = String::new();
    client.read_to_string(&mut response).unwrap();
    assert!(response.starts_with("HTTP/1.1 400"), "{response}");
    assert_eq!(seen.take(), ["400"]);
}

#[test]
fn a_shed_request_and_the_health_routes_never_wait_for_middleware() {
    let (release, held) = channel::bounded::<()>(0);
    let (begun, begins) = channel::bounded(1);
    let running = start(
        Service::new()
            .workers(1)
            .queue(0)
            .get("/", |_| "hello")
            .around(move |request, next| {
                if request.path() == "/held" {
                    begun.send(()).unwrap();
                    let _ = held.recv();
                }
                let mut response = next.run(request);
                response.set_header("X-Waits", "yes");
                response
            })
            .inline_around(|request, next| {
                let mut response = next.run(request);
                response.set_header("X-Inline", "yes");
                response
            })
            .on_error(|_, error| format!("sorry: {}\n", error.reason)),
    );
    let address = running.address();
    let holder = std::thread::spawn(move || get(address, "/held"));
    begins.recv_timeout(LIMIT).expect("the middleware runs");
    let shed = get(address, "/");
    assert!(shed.starts_with("HTTP/1.1 503") && shed.contains("\r\nRetry-After: 1\r\n"), "{shed}");
    assert!(shed.contains("\r\nX-Inline: yes\r\n") && shed.ends_with("sorry: too busy\n"), "{shed}");
    let healthy = get(address, "/healthz");
    assert!(healthy.starts_with("HTTP/1.1 200") && healthy.contains("\r\nX-Inline: yes\r\n"), "{healthy}");
    assert!(!shed.contains("X-Waits") && !healthy.contains("X-Waits"), "{shed}{healthy}");
    drop(release);
    let held = holder.join().unwrap();
    assert!(held.starts_with("HTTP/1.1 404") && held.contains("X-Waits") && held.contains("X-Inline"), "{held}");
}

#[test]
fn an_inline_route_stays_inline_unless_middleware_may_wait() {
    let thread = |_: &mut Request| std::thread::current().name().unwrap_or_default().to_owned();
    let inline =
        start(Service::new().inline_route("GET", "/", thread).inline_around(|request, next| next.run(request)));
    let waits = start(Service::new().inline_route("GET", "/", thread).around(|request, next| next.run(request)));
    let ran_by_a_worker = |running: &ServiceHandle| get(running.address(), "/").contains("\r\n\r\nworker-");
    assert!(!ran_by_a_worker(&inline) && ran_by_a_worker(&waits));
}

#[test]
fn middleware_answers_by_itself_and_hands_values_on() {
    struct User(String);
    let service = Service::new()
        .get("/", |request| request.extension::<User>().map(|user| user.0.clone()))
        .around(|request, next| match request.header("Authorization").map(str::to_owned) {
            Some(user) => {
                request.set_extension(User(user));
                next.run(request)
            }
            None => Response::from(401).with_header("WWW-Authenticate", "Basic"),
        })
        .post("/upload", |request| -> Result<String, HandlerError> { Ok(request.text()?) });
    let denied = service.handle(Request::get("/"));
    assert_eq!((denied.status(), denied.header("WWW-Authenticate")), (401, Some("Basic")));
    let greeted = service.handle(Request::get("/").header("Authorization", "you"));
    assert_eq!(greeted.into_text().unwrap(), "you");
    let running = start(service);
    let (mut connection, body) = (Connection::open(running.address(), LIMIT).unwrap(), "x".repeat(10_000));
    for authorization in ["", "Authorization: you\r\n"] {
        let head = format!("POST /upload HTTP/1.1\r\nHost: a\r\n{authorization}Content-Length: {}\r\n\r\n", body.len());
        connection.send(format!("{head}{body}").as_bytes()).unwrap();
        let response = connection.read_response("POST", LIMIT).unwrap();
        assert_eq!(response.status, if authorization.is_empty() { 401 } else { 200 }, "on the same connection");
    }
}

#[test]
fn middleware_that_panics_or_fails_is_a_500_that_the_outer_ones_see() {
    let service = Service::new()
        .get("/", |_| "hello")
        .around(|request, next| next.run(request).with_header("X-Outer", "yes"))
        .around(|request, next| -> Result<Response, HandlerError> {
            match request.query_string() {
                "panics" => panic!("a bug"),
                "fails" => Err(std::io::Error::other("the disk is gone"))?,
                _ => Ok(next.run(request)),
            }
        })
        .on_error(|request, error| match request.query("error").as_deref() {
            Some("panics") => panic!("a bug"),
            _ => format!("{} {}", error.status, error.reason),
        });
    let ask = |target: &str| {
        let response = service.handle(Request::get(target));
        assert_eq!(response.header("X-Outer"), Some("yes"), "{target}");
        (response.status(), response.into_text().unwrap())
    };
    assert_eq!(ask("/").0, 200);
    for target in ["/?panics", "/?fails"] {
        assert_eq!(ask(target), (500, "500 Internal Server Error".to_owned()));
    }
    assert_eq!(ask("/none?error=panics"), (404, "404 Not Found\n".to_owned()), "the error is sent all the same");
}

#[test]
fn the_bodies_of_the_librarys_errors_are_the_services_own() {
    let service = marked(Service::new()).on_error(|request, error| {
        (200, format!("{} {} {}", error.status, error.reason, request.id())) // the status is not its to choose
    });
    let ask = |request: RequestBuilder| {
        let response = service.handle(request.header("X-Request-Id", "7"));
        let status = response.status();
        let text = response.into_text().unwrap();
        assert!(text.starts_with(&status.to_string()), "{status}: {text}");
        text
    };
    assert_eq!(ask(Request::get("/none")), "404 Not Found 7");
    assert_eq!(ask(Request::delete("/")), "405 Method Not Allowed 7");
    assert_eq!(ask(Request::get("no path")), "400 the target holds a character other than visible ASCII 7");
    assert_eq!(ask(Request::post("/body").body("long")), "413 the body is too large 7");
    assert_eq!(ask(Request::post("/body").body([0xff])), "422 no UTF-8 7");
    assert_eq!(ask(Request::get("/").body(Body::reader(&b"a"[..], Some(2)))), "400 the body broke off 7");
    assert_eq!(ask(Request::get("/panics")), "500 Internal Server Error 7");
    assert_eq!(ask(Request::get("/fails")), "500 Internal Server Error 7");
    assert_eq!(ask(Request::get("/teapot")), "418  7", "a mere status of a handler");
    assert_eq!(service.handle(Request::delete("/")).header("Allow"), Some("GET, HEAD"));
    let own = service.handle(Request::get("/"));
    assert_eq!(own.into_text().unwrap(), "hello", "what handlers say is theirs");
}

/// Cross-origin requests, as the Fetch standard asks for: for every response, the preflight's included.
fn cors(request: &mut Request, next: allout::Next<'_>) -> Response {
    let preflight = request.method() == "OPTIONS" && request.header("Access-Control-Request-Method").is_some();
    let mut response = if preflight { Response::empty(204) } else { next.run(request) };
    response.set_header("Access-Control-Allow-Origin", "https://example.org");
    response.append_header("Vary", "Origin");
    if preflight {
        response.set_header("Access-Control-Allow-Methods", "GET, POST");
    }
    response
}

#[test]
fn cors_is_a_middleware_and_no_header_comes_twice() {
    let running = start(
        marked(Service::new())
            .inline_around(cors)
            .get("/own", |_| Response::text("own").with_header("Access-Control-Allow-Origin", "*")),
    );
    let head = "Host: a\r\nOrigin: https://example.org\r\nConnection: close\r\n";
    let preflight = format!("OPTIONS / HTTP/1.1\r\n{head}Access-Control-Request-Method: POST\r\n\r\n");
    let rows = [
        (preflight, 204),
        (format!("OPTIONS / HTTP/1.1\r\n{head}\r\n"), 405),
        (format!("GET /own HTTP/1.1\r\n{head}\r\n"), 200),
        (format!("GET /none HTTP/1.1\r\n{head}\r\n"), 404),
    ];
    for (request, status) in rows {
        let response = exchange(running.address(), &request);
        assert!(response.starts_with(&format!("HTTP/1.1 {status}")), "{response}");
        assert_eq!(response.matches("Access-Control-Allow-Origin").count(), 1, "{response}");
    }
}
