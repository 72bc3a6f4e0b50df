//! The library as others use it: the examples, and what its documentation promises. Everything runs in this process, on
//! ports that the system picks.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says what it expects by panicking")]

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use allout::{BodyError, Cause, Crew, Exit, HandlerError, Limits, Request, Response, Service, StartError, channel};
use engine::{LIMIT, start};
use http::Connection;

#[allow(dead_code, reason = "its main is the example's")]
#[cfg(feature = "json")]
#[path = "examples/api.rs"]
mod api;
#[allow(dead_code, reason = "its main is the example's")]
#[path = "examples/crew.rs"]
mod crew;
#[path = "common/engine.rs"]
mod engine;
#[allow(dead_code, reason = "its main is the example's")]
#[path = "examples/hello.rs"]
mod hello;
#[path = "load/http.rs"]
mod http;
#[allow(dead_code, reason = "its main is the example's")]
#[path = "examples/member.rs"]
mod member;

fn ask_with(address: SocketAddr, method: &str, path: &str, body: &str) -> http::Response {
    let mut connection = Connection::open(address, LIMIT).unwrap_or_else(|e| panic!("connecting to {address}: {e}"));
    let length = body.len();
    let request =
        format!("{method} {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}");
    connection.send(request.as_bytes()).unwrap_or_else(|e| panic!("sending {method} {path}: {e:?}"));
    connection.read_response(method, LIMIT).unwrap_or_else(|e| panic!("{method} {path}: {e}"))
}

fn ask(address: SocketAddr, method: &str, path: &str) -> (u16, String) {
    let response = ask_with(address, method, path, "");
    (response.status, response.text())
}

fn answer(status: u16, text: &str) -> (u16, String) {
    (status, text.to_owned())
}

#[test]
fn the_hello_example_greets() {
    let running = start(hello::service());
    assert_eq!(ask(running.address(), "GET", "/"), answer(200, "hello, world"));
    assert_eq!(ask(running.address(), "GET", "/hello/J%C3%BCrgen"), answer(200, "hello, Jürgen"));
    assert_eq!(ask(running.address(), "GET", "/healthz"), answer(200, "ok"));
    assert_eq!(running.stop("a test").code(), 0);
}

#[derive(Clone, Default)]
struct Journal(Arc<Mutex<Vec<u8>>>);

impl Write for Journal {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn the_member_example_loses_nothing_that_it_accepted() {
    let journal = Journal::default();
    let running = start(member::service(journal.clone()));
    let lines: Vec<_> = (0..20).map(|n| format!("line {n}")).collect();
    for line in &lines {
        assert_eq!(ask_with(running.address(), "POST", "/journal", line).status, 202);
    }
    let outcome = running.stop("a test");
    assert_eq!((outcome.code(), outcome.failures.len()), (0, 0), "{outcome}");
    let written = String::from_utf8(journal.0.lock().unwrap().clone()).unwrap();
    assert_eq!(written.lines().collect::<Vec<_>>(), lines);
}

#[test]
fn the_member_example_stops_when_its_member_fails() {
    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let running = start(member::service(Full));
    assert_eq!(ask_with(running.address(), "POST", "/journal", "line").status, 202);
    let outcome = running.wait();
    assert!(matches!(&outcome.cause, Cause::Member { name, exit: Exit::Failed(_) } if name == "journal"), "{outcome}");
    assert_eq!(outcome.code(), 1);
}

#[test]
fn the_crew_example_counts_and_ends_with_its_input() {
    let mut crew = Crew::new();
    let (sender, lines) = channel::bounded(0);
    let count = crew::count(&mut crew, lines).unwrap();
    for n in 0..3 {
        sender.send(Ok(format!("line {n}"))).unwrap();
    }
    drop(sender);
    let outcome = crew.run();
    assert_eq!(outcome.cause.to_string(), "counter finished");
    assert_eq!((count.load(Ordering::Relaxed), outcome.abandoned.len()), (3, 0));
}

#[cfg(feature = "json")]
#[test]
fn the_api_example_keeps_items() {
    let running = start(api::service());
    let address = running.address();
    let made = ask_with(address, "POST", "/items", r#"{"name": "tea"}"#);
    assert_eq!((made.status, made.header("location")), (201, Some("/items/1")));
    let got = ask_with(address, "GET", "/items/1", "");
    assert_eq!(got.header("content-type"), Some("application/json"));
    assert_eq!(got.text(), r#"{"name":"tea","done":false}"#);
    assert_eq!(ask_with(address, "PUT", "/items/1", r#"{"name": "tea", "done": true}"#).status, 204);
    assert_eq!(ask(address, "GET", "/items"), answer(200, r#"{"1":{"name":"tea","done":true}}"#));
    assert_eq!(ask_with(address, "PUT", "/items/1", "{").status, 422);
    assert_eq!(ask(address, "DELETE", "/items/1").0, 204);
    assert_eq!(ask(address, "GET", "/items/1").0, 404);
    assert_eq!(ask(address, "GET", "/items/x").0, 404);
    assert_eq!(ask(address, "GET", "/else"), answer(404, "there is no /else"));
    let wrong = ask_with(address, "PATCH", "/items/1", "");
    assert_eq!((wrong.status, wrong.header("allow")), (405, Some("DELETE, GET, HEAD, PUT")));
}

#[test]
fn the_values_that_handlers_return_become_responses() {
    let file = std::env::temp_dir().join(format!("allout-library-{}", std::process::id()));
    std::fs::write(&file, "from a file").unwrap();
    let path = file.clone();
    let running = start(
        engine::service()
            .get("/text", |_| "text")
            .get("/bytes", |_| vec![1_u8, 2, 3])
            .get("/nothing", |_| ())
            .get("/status", |_| 410)
            .get("/both", |_| (201, "made".to_owned()))
            .get("/result", |_| Err::<(), _>((409, "taken")))
            .get("/failure", |_| -> Result<(), HandlerError> { Err(io::Error::other("secret"))? })
            .get("/panic", |_| -> () { std::panic::resume_unwind(Box::new("a bug")) })
            .get("/html", |_| Response::html("<p>"))
            .get("/reader", |_| Response::reader(io::repeat(b'a').take(100_000), None))
            .get("/file", move |_| -> Result<Response, HandlerError> {
                Ok(Response::file(std::fs::File::open(&path)?)?)
            })
            .get("/query", |request| {
                let all: Vec<_> = request.query_pairs().map(|(name, value)| format!("{name}={value}")).collect();
                format!("{} {:?}", all.join(";"), request.query("b"))
            }),
    );
    let address = running.address();
    assert_eq!(ask(address, "GET", "/text"), answer(200, "text"));
    assert_eq!(ask_with(address, "GET", "/bytes", "").body, [1, 2, 3]);
    assert_eq!(ask(address, "GET", "/nothing"), answer(204, ""));
    assert_eq!(ask(address, "GET", "/status"), answer(410, "410 Gone"));
    assert_eq!(ask(address, "GET", "/both"), answer(201, "made"));
    assert_eq!(ask(address, "GET", "/result"), answer(409, "taken"));
    assert_eq!(ask(address, "GET", "/failure"), answer(500, "500 Internal Server Error"));
    assert_eq!(ask(address, "GET", "/panic"), answer(500, "500 Internal Server Error"));
    assert_eq!(ask_with(address, "GET", "/html", "").header("content-type"), Some("text/html; charset=utf-8"));
    let read = ask_with(address, "GET", "/reader", "");
    assert_eq!((read.header("transfer-encoding"), read.body.len()), (Some("chunked"), 100_000));
    assert_eq!(ask(address, "GET", "/file"), answer(200, "from a file"));
    assert_eq!(ask(address, "GET", "/query?a=1&b=%C3%BC+x&b=2"), answer(200, "a=1;b=ü x;b=2 Some(\"ü x\")"));
    assert_eq!(ask(address, "GET", "/else"), answer(404, "404 Not Found"));
    assert_eq!(running.stop("a test").code(), 0);
    std::fs::remove_file(file).unwrap();
}

#[test]
fn a_body_has_a_limit_and_is_refused_beyond_it() {
    let running = start(
        engine::service()
            .max_body(10)
            .post("/service", Request::text)
            .post("/own", |request| request.bytes_up_to(20))
            .post("/route", Request::bytes)
            .limits("/route", Limits::new().max_body(30))
            .post("/failure", |request| -> Result<String, HandlerError> { Ok(request.text()?) })
            .post("/seen", |request| match request.text() {
                Err(BodyError::TooLarge) => "too large".to_owned(),
                other => format!("{other:?}"),
            }),
    );
    let post = |path: &str, length: usize| ask_with(running.address(), "POST", path, &"x".repeat(length));
    assert_eq!((post("/service", 10).status, post("/service", 11).status), (200, 413));
    assert_eq!((post("/own", 20).status, post("/own", 21).status), (200, 413));
    assert_eq!((post("/route", 30).status, post("/route", 31).status), (200, 413));
    assert_eq!((post("/failure", 10).status, post("/failure", 11).status), (200, 413));
    assert_eq!(post("/seen", 11).text(), "too large");
}

#[test]
fn a_handler_sees_all_of_its_request() {
    let running = start(engine::service().post("/see/{a}/{b}", |request| {
        let (params, client) = (request.params().clone(), request.client());
        let (query, route) = (request.query("q").unwrap_or_default().into_owned(), request.route().to_owned());
        let pairs = request.query_pairs().count();
        let gone = client.is_gone();
        let body = request.text()?; // while the parameters are held
        let (a, b) = (params.get("a").unwrap_or_default(), request.param("b").unwrap_or_default());
        Ok::<_, HandlerError>(format!("{a} {b} {query} {pairs} {route} {body} {gone}"))
    }));
    let response = ask_with(running.address(), "POST", "/see/%C3%BC/b?q=x+y%21&&q=2&z", "body");
    assert_eq!(response.text(), "ü b x y! 3 /see/{a}/{b} body false");
}

#[test]
fn options_of_the_whole_service_name_its_methods() {
    let running = start(engine::service().put("/a", |_| ()).without_admin_routes());
    let response = ask_with(running.address(), "OPTIONS", "*", "");
    assert_eq!((response.status, response.header("allow")), (204, Some("OPTIONS, PUT")));
}

#[test]
fn a_service_that_is_dropped_is_stopped_and_joined() {
    let (sender, told) = channel::bounded(1);
    let running = start(engine::service().member("watches", move |stop| {
        stop.wait();
        sender.send(()).unwrap();
    }));
    let address = running.address();
    drop(running);
    assert_eq!(told.try_recv(), Ok(()), "the member was waited for");
    let refused = Connection::open(address, LIMIT).expect_err("the port is closed");
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
}

#[test]
fn a_stopper_stops_from_within_a_handler_and_the_reason_is_the_cause() {
    let service = engine::service();
    let stopper = service.stopper();
    let running = start(service.get("/enough", move |_| stopper.stop("a client has had enough")));
    assert_eq!(ask(running.address(), "GET", "/enough").0, 204);
    let outcome = running.wait();
    assert_eq!(outcome.cause, Cause::Requested("a client has had enough".to_owned()));
    assert_eq!(outcome.cause.to_string(), "asked to stop (a client has had enough)");
}

#[test]
fn hooks_and_members_have_their_moments_in_order() {
    let (sender, moments) = channel::unbounded();
    let [first, second, third, fourth] = [(); 4].map(|()| sender.clone());
    let (begun, begins) = channel::bounded(1);
    let running = start(
        engine::service()
            .get("/slow", move |request| {
                begun.send(()).unwrap();
                let _ = request.stop().draining().recv(); // ends when the drain begins
                second.send("request").unwrap();
            })
            .before_drain(move || first.send("before").unwrap())
            .after_drain(move || third.send("after").unwrap())
            .member("member", move |stop| {
                stop.wait();
                fourth.send("member").unwrap();
            }),
    );
    let address = running.address();
    let client = std::thread::spawn(move || ask(address, "GET", "/slow").0);
    begins.recv_timeout(LIMIT).expect("the request arrives");
    assert_eq!(running.stop("a test").code(), 0);
    assert_eq!(client.join().unwrap(), 204, "what was in flight is answered");
    drop(sender);
    let mut moments: Vec<_> = std::iter::from_fn(|| moments.recv_timeout(LIMIT).ok()).collect();
    moments[..2].sort_unstable(); // the handler and the hook are told at the same time
    assert_eq!(moments, ["before", "request", "after", "member"]);
}

#[test]
fn a_hook_that_hangs_is_abandoned_within_the_grace() {
    let (_kept, never) = channel::bounded::<()>(0);
    let running = start(engine::service().grace(Duration::from_millis(400)).before_drain(move || {
        let _ = never.recv();
    }));
    let began = Instant::now();
    let outcome = running.stop("a test");
    assert_eq!((outcome.code(), &outcome.abandoned[..]), (3, &["before_drain".to_owned()][..]));
    assert!(began.elapsed() < LIMIT / 2, "it took {:?}", began.elapsed());
}

#[test]
fn durations_beyond_the_clock_panic_nowhere() {
    let get = |service: Service| service.get("/", |_| "ok");
    let running = start(get(Service::new()).grace(Duration::MAX).before_drain(|| {}).after_drain(|| {}));
    assert_eq!(ask(running.address(), "GET", "/"), answer(200, "ok"));
    let outcome = running.stop("a test");
    assert_eq!((outcome.code(), outcome.failures.len()), (0, 0), "{outcome}");

    // The drain delay ends in time for the rest of the drain.
    let running = start(get(Service::new()).grace(Duration::from_millis(400)).drain_delay(Duration::MAX));
    assert_eq!(ask(running.address(), "GET", "/"), answer(200, "ok"));
    assert_eq!(running.stop("a test").code(), 0);

    let timeouts = get(Service::new()).idle_timeout(Duration::MAX).request_timeout(Duration::MAX);
    let running = start(timeouts.keepalive_min(Duration::MAX).grace(Duration::from_millis(400)));
    assert_eq!(ask(running.address(), "GET", "/"), answer(200, "ok"));
    assert_eq!(running.stop("a test").code(), 0);
}

#[test]
fn a_member_that_waits_for_something_else_is_interrupted() {
    let (sender, receiver) = channel::bounded::<()>(0);
    let running = start(engine::service().member_with_interrupt(
        "receives",
        move || drop(sender),
        move |_| {
            let _ = receiver.recv();
        },
    ));
    assert_eq!(running.stop("a test").code(), 0);
}

#[test]
fn what_cannot_start_says_why() {
    let twice = engine::service().get("/a", |_| "1").get("/a", |_| "2").listen("127.0.0.1:0").start();
    assert!(matches!(&twice, Err(StartError::Route(_))), "{twice:?}");
    let dead = engine::service().get("/:id", |_| "").listen("127.0.0.1:0").start().expect_err("a dead route");
    assert!(dead.to_string().contains("/{id}"), "{dead}");
    let unlimited = engine::service().limits("/a", Limits::new()).listen("127.0.0.1:0").start();
    assert!(matches!(&unlimited, Err(StartError::Route(_))), "{unlimited:?}");
    let nowhere = engine::service().listen("no address").start();
    assert!(matches!(&nowhere, Err(StartError::Unresolved(_))), "{nowhere:?}");
    let running = start(engine::service());
    let taken = engine::service().listen(running.address()).start();
    assert!(matches!(&taken, Err(StartError::AddressInUse(at)) if *at == running.address()), "{taken:?}");
}
