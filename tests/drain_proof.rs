//! The steps of the argument that nothing is lost (see `drain.rs`) which are the program's own: each of them usually takes
//! an instant, and is stretched here until it matters. The kernel's steps are in `kernel.rs`.

#![allow(clippy::expect_used, clippy::panic, reason = "a test says what it expects by panicking")]

#[path = "common/engine.rs"]
mod engine;
#[path = "load/http.rs"]
mod http;

use allout::{Config, Service, ServiceHandle, channel};
use http::Connection;
use std::net::{Ipv4Addr, SocketAddr};
use std::thread;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(20);

/// Several times the minimum keep-alive of a drain.
const LONG: Duration = Duration::from_millis(400);

fn config() -> Config {
    let mut config = Config::default();
    config.listen = vec![(Ipv4Addr::LOCALHOST, 0).into()];
    config.engine = engine::ENGINE;
    config
}

fn request(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: allout.test\r\n\r\n")
}

fn ask(connection: &mut Connection, path: &str) -> http::Response {
    connection.send(request(path).as_bytes()).expect("sending");
    connection.read_response("GET", LIMIT).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// A service whose listener blocks for a while in `/hold`: requests that arrive meanwhile stay in tiny_http.
struct Held {
    service: ServiceHandle,
    address: SocketAddr,
    holding: channel::Receiver<()>,
}

impl Held {
    fn start() -> Held {
        let (hold, holding) = channel::bounded(1);
        let service = Service::with_config(config())
            .inline_route("GET", "/", |_| "ok\n")
            .inline_route("GET", "/hold", move |_| {
                let _ = hold.send(());
                thread::sleep(LONG);
                "held\n"
            })
            .start()
            .expect("it starts");
        Held { address: service.address(), service, holding }
    }

    fn connect(&self) -> Connection {
        Connection::open(self.address, LIMIT).expect("connecting")
    }
}

#[test]
fn a_request_that_tiny_http_has_read_is_answered_though_its_connection_seemed_idle() {
    let held = Held::start();
    let mut idle = held.connect();
    assert_eq!(ask(&mut idle, "/").status, 200);
    let mut holder = held.connect();
    holder.send(request("/hold").as_bytes()).expect("sending");
    held.holding.recv_timeout(LIMIT).expect("the listener holds");
    // Read by tiny_http at once, received by the listener long after the minimum keep-alive.
    idle.send(request("/").as_bytes()).expect("sending");
    let stopper = held.service.stopper();
    stopper.stop("a test");
    let response = idle.read_response("GET", LIMIT).expect("what was sent before the drain is answered");
    assert!(response.closes(), "{response:?}");
    assert_eq!(holder.read_response("GET", LIMIT).expect("it was in flight").status, 200);
    let outcome = held.service.wait();
    assert_eq!((outcome.code(), outcome.abandoned.len()), (0, 0));
}

#[test]
fn a_connection_not_accepted_and_silent_so_far_is_answered() {
    let held = Held::start();
    let mut holder = held.connect();
    holder.send(request("/hold").as_bytes()).expect("sending");
    held.holding.recv_timeout(LIMIT).expect("the listener holds");
    let mut waiting: Vec<_> = (0..16).map(|_| held.connect()).collect();
    for connection in &mut waiting {
        connection.send(request("/").as_bytes()).expect("sending");
    }
    held.service.stopper().stop("a test");
    for connection in &mut waiting {
        assert_eq!(connection.read_response("GET", LIMIT).expect("it was there before the drain").status, 200);
    }
    assert_eq!(held.service.wait().code(), 0);
}
