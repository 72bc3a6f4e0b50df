//! A service without a socket: requests are made and handled, and their responses checked, within a test.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says what it expects by panicking")]

use std::io::{self, Read};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use allout::{Body, HandlerError, Peer, Request, RequestBuilder, Response, Service};

#[allow(dead_code, reason = "its main is the example's")]
#[cfg(feature = "json")]
#[path = "examples/api.rs"]
mod api;

fn answer(service: &Service, request: impl Into<Request>) -> (u16, String) {
    let response = service.handle(request);
    (response.status(), response.into_text().expect("the body is text"))
}

fn text(status: u16, text: &str) -> (u16, String) {
    (status, text.to_owned())
}

fn service() -> Service {
    Service::new()
        .get("/", |_| "hello")
        .post("/echo/{name}", |request| -> Result<String, HandlerError> {
            let (name, query) = (request.params().clone(), request.query("q").unwrap_or_default().into_owned());
            let header = request.header("x-a").unwrap_or_default().to_owned();
            Ok(format!("{} {query} {header} {}", name.get("name").unwrap_or_default(), request.text()?))
        })
        .get("/panics", |_| -> Response { panic!("a bug") })
        .get("/fails", |_| -> Result<(), HandlerError> { Err(io::Error::other("the disk is gone"))? })
}

#[test]
fn a_request_is_answered_as_by_a_running_service() {
    let service = service();
    assert_eq!(answer(&service, Request::get("/")), text(200, "hello"));
    let made = Request::post("/echo/J%C3%BCrgen?q=x+y").header("X-A", "1").body("body");
    assert_eq!(answer(&service, made), text(200, "Jürgen x y 1 body"));
    assert_eq!(answer(&service, Request::get("/panics")), text(500, "500 Internal Server Error\n"));
    assert_eq!(answer(&service, Request::get("/fails")), text(500, "500 Internal Server Error\n"));
    assert_eq!(answer(&service, Request::get("/else")), text(404, "404 Not Found\n"));
    assert_eq!(answer(&service, Request::get("/healthz")), text(200, "ok\n"));
    assert_eq!(answer(&service, RequestBuilder::new("HEAD", "/")), text(200, ""));
}

#[test]
fn the_errors_of_the_service_itself_are_answered_too() {
    let service = service().max_body(3);
    let not_allowed = service.handle(Request::delete("/echo/a"));
    assert_eq!((not_allowed.status(), not_allowed.header("allow")), (405, Some("POST")));
    assert_eq!(answer(&service, Request::post("/echo/a").body("long")).0, 413);
    assert_eq!(answer(&service, Request::post("/echo/a").body(Body::reader(&b"long"[..], None))).0, 413);
    assert_eq!(answer(&service, Request::get("no path")).0, 400);
    assert_eq!(answer(&service, Request::get("/").header("Host", "a").header("host", "b")).0, 400);
    assert_eq!(answer(&service, RequestBuilder::new("CONNECT", "/")).0, 501);
    let broken = Request::post("/echo/a").body(Body::reader(&b"a"[..], Some(2)));
    assert_eq!(answer(&service, broken), text(400, "400 the body broke off\n"));
    let unread = Request::get("/").body(Body::reader(&b"a"[..], Some(2)));
    assert_eq!(answer(&service, unread).0, 400, "also where the handler does not read the body");
}

#[test]
fn state_lasts_between_requests_and_the_service_can_still_start() {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    let service = Service::new().post("/count", move |_| counted.fetch_add(1, Ordering::Relaxed).to_string());
    assert_eq!(answer(&service, Request::post("/count")), text(200, "0"));
    assert_eq!(answer(&service, Request::post("/count")), text(200, "1"));
    let running = service.listen("127.0.0.1:0").start().expect("a service on a free port starts");
    assert_eq!(running.stop("a test").code(), 0);
}

#[test]
fn a_handler_is_called_alone() {
    let handler = |request: &mut Request| -> Result<String, HandlerError> {
        let (id, peer) = (request.param("id").ok_or(Response::from(404))?.to_owned(), request.peer());
        Ok(format!("{id} {peer} {}", request.text()?))
    };
    let from = SocketAddr::from(([192, 0, 2, 1], 7));
    let made = || Request::put("/items/7").peer(from).body("body");
    assert_eq!(handler(&mut made().param("id", "7").build()).unwrap(), "7 192.0.2.1:7 body");
    assert_eq!(Response::from(handler(&mut made().build()).unwrap_err()).status(), 404);
    assert_eq!(Request::get("/").peer(Peer::Unix).build().peer().ip(), None);
}

#[test]
fn a_service_that_could_not_start_says_why() {
    let service = Service::new().get("/:id", |_| "");
    let (status, reason) = answer(&service, Request::get("/"));
    assert!(status == 500 && reason.contains("/{id}"), "{reason}");
}

#[test]
fn a_body_that_is_read_later_is_read_to_its_end() {
    let service = Service::new().get("/", |_| Response::reader(io::repeat(b'a').take(100_000), None));
    let response = service.handle(Request::get("/"));
    assert_eq!(response.length(), None);
    assert_eq!(response.into_bytes().unwrap().len(), 100_000);
}

#[cfg(feature = "json")]
#[test]
fn the_api_example_is_tested_without_a_socket() {
    let service = api::service();
    let made = service.handle(Request::post("/items").body(r#"{"name": "a"}"#));
    assert_eq!((made.status(), made.header("Location")), (201, Some("/items/1")));
    assert_eq!(answer(&service, Request::get("/items/1")), text(200, r#"{"name":"a","done":false}"#));
    assert_eq!(answer(&service, Request::put("/items/2").body(r#"{"name": "a"}"#)).0, 404);
    assert_eq!(answer(&service, Request::post("/items").body("{}")).0, 422);
    assert_eq!(answer(&service, Request::delete("/items/1")), text(204, ""));
}
