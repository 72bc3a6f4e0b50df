//! Several listening sockets: each is served, stopped and handed on, and the admin routes can have one of their own.

#![allow(clippy::expect_used, clippy::panic, reason = "a test says what it expects by panicking")]

mod common;

use allout::Service;
use common::http::Response;
use common::{Allout, LIMIT, Serving, ask_at, wait_until};
use rustix::process::Signal;
use std::net::SocketAddr;

const ADMIN: [&str; 5] = ["/healthz", "/readyz", "/livez", "/metrics", "/shutdown"];

fn get(addr: SocketAddr, path: &str) -> Response {
    ask_at(addr, "GET", path, "")
}

/// The addresses behind this text in the log.
fn addresses(server: &Serving, before: &str) -> Vec<SocketAddr> {
    let lines = server.log();
    let urls = lines.lines().filter_map(|line| Some(line.split_once(before)?.1.split(',').next()?.to_owned()));
    urls.flat_map(|urls| urls.split_whitespace().map(read).collect::<Vec<_>>()).collect()
}

fn read(url: &str) -> SocketAddr {
    url.trim_start_matches("http://").parse().unwrap_or_else(|error| panic!("{url}: {error}"))
}

#[test]
fn every_address_is_served_and_a_stop_ends_all() {
    let mut server = Allout::new().args(["--listen", "127.0.0.1:0", "--listen", "[::1]:0,127.0.0.2:0"]).start();
    let all = addresses(&server, "listening on http://");
    assert_eq!(all.len(), 3, "{}", server.log());
    for addr in &all {
        assert_eq!(get(*addr, "/?user=x").text(), "hello, x");
        assert_eq!(get(*addr, "/healthz").status, 200);
    }
    server.stop();
    for addr in &all {
        assert!(std::net::TcpStream::connect(addr).is_err(), "{addr} is still open");
    }
}

#[test]
fn admin_routes_with_a_socket_of_their_own_are_on_no_other() {
    let mut server = Allout::new().args(["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]).start();
    let admin = addresses(&server, "admin routes on http://")[0];
    for path in ADMIN {
        assert_eq!(get(server.addr, path).status, 404, "{path}");
    }
    assert_eq!(get(server.addr, "/").status, 200);
    assert_eq!(get(admin, "/").status, 404);
    assert_eq!(get(admin, "/timeout").status, 404);
    for path in &ADMIN[..4] {
        assert_eq!(get(admin, path).status, 200, "{path}");
    }
    // Both are counted.
    wait_until(LIMIT, "the counters of both sockets", || {
        let text = get(admin, "/metrics").text();
        text.contains("{code=\"200\",method=\"GET\",route=\"*\"} 1\n")
            && text.contains("{code=\"404\",method=\"GET\",route=\"/shutdown\"} 1\n")
            && text.contains("{code=\"200\",method=\"GET\",route=\"/livez\"} 1\n")
    });
    let text = get(admin, "/metrics").text();
    for (name, addr, least) in [("opened_total", server.addr, 6), ("opened_total", admin, 6), ("open", admin, 1)] {
        let before = format!("allout_listener_connections_{name}{{listener=\"{addr}\"}} ");
        let value = text.lines().find_map(|line| line.strip_prefix(&before)?.parse().ok());
        assert!(value.is_some_and(|value: u32| value >= least), "{before}{value:?}");
    }
    assert!(
        text.contains("allout_listener_accept_queue_length") && text.contains("allout_listener_requests_in_flight")
    );
    assert_eq!(get(admin, "/shutdown").status, 200);
    server.assert_exit(0, LIMIT);
}

#[test]
fn a_re_exec_keeps_all_sockets() {
    let mut server =
        Allout::new().args(["--listen", "127.0.0.1:0,127.0.0.2:0", "--admin-listen", "127.0.0.1:0"]).start();
    let (main, admin) = (addresses(&server, "listening on http://"), addresses(&server, "admin routes on http://"));
    server.signal(Signal::HUP);
    wait_until(LIMIT, "the next image", || addresses(&server, "admin routes on http://").len() == 2);
    let (again, admin_again) =
        (addresses(&server, "listening on http://"), addresses(&server, "admin routes on http://"));
    assert_eq!((&again[2..], &admin_again[1..]), (&main[..], &admin[..]), "{}", server.log());
    for addr in main {
        assert_eq!((get(addr, "/").status, get(addr, "/healthz").status), (200, 404), "{addr}");
    }
    assert_eq!((get(admin[0], "/").status, get(admin[0], "/healthz").status), (404, 200));
    server.stop();
}

#[test]
fn an_address_that_is_taken_keeps_it_from_starting() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let taken = taken.local_addr().expect("it is bound").to_string();
    for args in
        [&["--listen", "127.0.0.1:0", "--listen", &taken][..], &["--listen", "127.0.0.1:0", "--admin-listen", &taken]]
    {
        let _held = std::net::TcpListener::bind(&taken);
        let mut process = Allout::new().args(args.iter().copied()).spawn();
        process.assert_exit(1, LIMIT);
        assert!(process.log().contains(&format!("address in use: {taken}")), "{}", process.log());
    }
}

#[test]
fn a_service_of_the_library_listens_on_several_addresses() {
    let service =
        Service::new().get("/", |_| "here").listen("127.0.0.1:0").listen("[::1]:0").admin_listen("127.0.0.1:0");
    let service = service.start().expect("it starts");
    let [first, second, admin] = *service.addresses() else { panic!("{:?}", service.addresses()) };
    assert_eq!(service.address(), first);
    assert_eq!([first, second].map(|addr| get(addr, "/").text()), ["here", "here"]);
    assert_eq!((get(admin, "/").status, get(admin, "/healthz").status, get(first, "/healthz").status), (404, 200, 404));
    assert_eq!(service.stop("the test is over").code(), 0);
}

#[test]
fn a_listener_of_the_programs_own_is_served_beside_others() {
    let bound = || std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let (own, other) = (bound(), bound());
    let addresses = [&own, &other].map(|listener| listener.local_addr().expect("it is bound"));
    own.set_nonblocking(true).expect("a flag"); // as another library leaves it
    let service = Service::new().get("/", |_| "here").listener(own).listen("[::1]:0").listener(other);
    let service = service.start().expect("it starts");
    assert_eq!(service.addresses()[..2], addresses);
    assert_eq!(service.addresses().len(), 3, "the configured address is not one of them");
    assert_eq!(service.addresses().iter().map(|addr| get(*addr, "/").text()).collect::<String>(), "hereherehere");
    assert_eq!(service.stop("the test is over").code(), 0);
    for address in addresses {
        assert!(std::net::TcpStream::connect(address).is_err(), "{address} is still open");
    }
}
