//! Access to `/shutdown`: for people and scripts on this machine and clients with the token, not for web pages or proxies.

#![allow(clippy::expect_used, clippy::panic, reason = "a test says what it expects by panicking")]

mod common;

use allout::Service;
use common::folder::Folder;
use common::http::Connection;
use common::place::Place;
use common::{Allout, LIMIT, Speak as _};
use rustix::process::geteuid;
use std::io::{self, BufRead as _, BufReader};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Instant;

#[test]
fn shutdown_refuses_requests_of_pages_and_proxies() {
    let mut server = Allout::new().start();
    let port = server.addr.port();
    let refused = [
        "Host: evil.test\r\n".to_owned(),
        format!("Host: evil.test:{port}\r\n"),
        "X-Forwarded-For: 127.0.0.1\r\n".to_owned(),
        "Forwarded: for=127.0.0.1\r\n".to_owned(),
        "Via: 1.1 proxy\r\n".to_owned(),
        "Sec-Fetch-Site: cross-site\r\n".to_owned(),
        "Origin: http://evil.test\r\n".to_owned(),
        "Origin: null\r\n".to_owned(),
        "Referer: http://evil.test/page\r\n".to_owned(),
        "Sec-Purpose: prefetch;prerender\r\n".to_owned(),
    ];
    for (headers, method) in refused.iter().zip(["GET", "POST"].iter().cycle()) {
        let response = server.ask_with(method, "/shutdown", headers);
        assert_eq!(response.status, 403, "{method} {headers:?}: {response:?}");
        assert_eq!(response.header("cache-control"), Some("no-store"), "{response:?}");
    }
    assert_eq!(server.ask_with("GET", "http://evil.test/shutdown", "").status, 403);
    // Any client can cause the line: it is written once a second, and counts the others.
    server.wait_for_line("/shutdown refused for ", LIMIT);
    let (began, lines) = (Instant::now(), || server.log().matches("/shutdown refused for ").count());
    for _ in 0..100 {
        assert_eq!(server.ask_with("GET", "/shutdown", "Via: x\r\n").status, 403);
    }
    assert!(lines() as u64 <= 3 + began.elapsed().as_secs(), "{}", server.log());
    assert_eq!(server.get("/healthz").status, 200);
    let own = format!("Host: localhost:{port}\r\nOrigin: http://localhost:{port}\r\nSec-Fetch-Site: same-origin\r\n");
    assert_eq!(server.ask_with("POST", "/shutdown", &own).status, 200);
    server.assert_exit(0, LIMIT);
}

#[test]
fn shutdown_works_with_what_curl_sends() {
    let mut server = Allout::new().start();
    let headers = format!("Host: {}\r\nUser-Agent: curl/8.0.0\r\nAccept: */*\r\n", server.addr);
    assert_eq!(server.ask_with("GET", "/shutdown", &headers).text(), "one out, all out");
    server.assert_exit(0, LIMIT);
}

#[test]
fn head_asks_what_shutdown_would_answer_and_no_more() {
    let server = Allout::new().start();
    assert_eq!(server.ask("HEAD", "/shutdown").status, 200);
    assert_eq!(server.ask_with("HEAD", "/shutdown", "Via: x\r\n").status, 403);
    assert_eq!(server.get("/healthz").status, 200);
}

#[test]
fn a_client_with_the_token_may_stop_the_service() {
    let folder = Folder::new("token");
    let file = folder.write("token", "from-the-file\n").to_string_lossy().into_owned();
    // The file goes first.
    let mut server =
        Allout::new().args(["--shutdown-token-file", &file]).env("ALLOUT_SHUTDOWN_TOKEN", "from-elsewhere").start();
    let with = |token: &str| {
        let headers = format!("Host: evil.test\r\nX-Forwarded-For: 192.0.2.1\r\nAuthorization: {token}\r\n");
        server.ask_with("POST", "/shutdown", &headers)
    };
    for wrong in
        ["Bearer from-elsewhere", "Bearer from-the-fil", "Bearer from-the-file1", "Basic from-the-file", "Bearer"]
    {
        assert_eq!(with(wrong).status, 403, "{wrong}");
    }
    assert_eq!(with("Bearer from-the-file").status, 200);
    server.assert_exit(0, LIMIT);
    assert!(!server.log().contains("from-the-file"), "the token is in the log:\n{}", server.log());
}

#[test]
fn an_unusable_token_is_an_unusable_argument() {
    for (args, expected) in [
        (["--shutdown-token-file", "/nonexistent/token"], "/nonexistent/token"),
        (["--shutdown-token-file", "/dev/null"], "the token is empty"),
        (["--shutdown-token", "two words"], "without spaces"),
    ] {
        let mut process = Allout::new().args(args).spawn();
        process.assert_exit(2, LIMIT);
        assert!(process.log().contains(expected), "{}", process.log());
        assert_eq!(process.log().lines().count(), 1, "{}", process.log());
    }
}

#[test]
fn without_shutdown_there_is_no_such_route() {
    let server = Allout::new().args(["--no-shutdown"]).start();
    for method in ["GET", "POST", "HEAD", "DELETE", "BREW"] {
        let response = server.ask_with(method, "/shutdown", "Authorization: Bearer s3cret\r\n");
        assert_eq!(response.status, 404, "{method}: {response:?}");
    }
    assert_eq!(server.get("/healthz").status, 200);
}

#[test]
fn routes_that_other_machines_can_reach_are_warned_about() {
    for (args, expected) in [
        (&["--listen", "0.0.0.0:0"][..], "/shutdown is for this machine only"),
        (
            &["--listen", "0.0.0.0:0", "--shutdown-token", "s3cret"],
            "/shutdown is for this machine and for clients with",
        ),
        (&["--listen", "0.0.0.0:0", "--no-shutdown"], "there is no /shutdown"),
    ] {
        let mut process = Allout::new().args(args.iter().copied()).spawn();
        let line = process.wait_for_line("can be reached from other machines", LIMIT);
        assert!(line.contains("WARN") && line.contains(expected) && !line.contains("s3cret"), "{line}");
        process.stop();
        assert!(process.log().lines().next().is_some_and(|first| first.contains("listening on")), "{}", process.log());
    }
    let mut process = Allout::new().start();
    process.stop();
    assert!(!process.log().contains("other machines"), "{}", process.log());
}

// --- Processes

/// The exit code and the output of curl, run by this user.
fn curl_as(uid: u32, url: &str) -> (Option<i32>, String) {
    let output = Command::new("curl").args(["-sS", "--max-time", "20", url]).uid(uid).gid(uid).output();
    let output = output.expect("curl can be run");
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&said).into_owned())
}

/// Some user without a process of its own.
const USER: u32 = 64_123;
const OTHER_USER: u32 = 64_124;

#[test]
fn curl_of_the_same_user_and_of_root_may_and_that_of_another_user_may_not() {
    if !geteuid().is_root() {
        eprintln!("this needs root, to run processes of other users");
        return;
    }
    // Where every user can run it.
    let place = Place::new("shutdown");
    let binary = place.binary();
    for (service, client, may) in
        [(0, 0, true), (0, USER, false), (USER, USER, true), (USER, 0, true), (USER, OTHER_USER, false)]
    {
        let (uid, gid) = (format!("--reuid={service}"), format!("--regid={service}"));
        let mut server = Allout::of(std::path::Path::new("setpriv"))
            .args([&uid, &gid, "--clear-groups", &*binary.to_string_lossy(), "--listen", "127.0.0.1:0"])
            .start();
        let (code, said) = curl_as(client, &format!("http://localhost:{}/shutdown", server.addr.port()));
        let expected = if may { "one out, all out\n" } else { "403 from a process of another user\n" };
        assert_eq!((code, &*said), (Some(0), expected), "a client of {client}, a service of {service}");
        if may {
            server.assert_exit(0, LIMIT);
        } else {
            assert_eq!(server.get("/healthz").status, 200);
        }
    }
}

/// A proxy that adds nothing, as a process of the same user: this test program, which runs `be_a_proxy` alone.
struct Proxy {
    process: Child,
    addr: SocketAddr,
}

impl Proxy {
    fn start(target: SocketAddr) -> Proxy {
        let mut process = Command::new(std::env::current_exe().expect("it has a name"))
            .args(["--exact", common::engine::test_name("shutdown::be_a_proxy"), "--ignored", "--nocapture"])
            .env("PROXY_TO", target.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the proxy starts");
        let said = BufReader::new(process.stdout.take().expect("stdout is piped"));
        let addr = said.lines().find_map(|line| line.ok()?.split_once("proxy on ")?.1.parse().ok());
        Proxy { process, addr: addr.expect("the proxy says where it listens") }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
#[ignore = "a process of its own for the test below"]
fn be_a_proxy() {
    let Some(target) = std::env::var("PROXY_TO").ok().and_then(|addr| addr.parse::<SocketAddr>().ok()) else { return };
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    println!("proxy on {}", listener.local_addr().expect("it is bound"));
    let forward = |mut from: TcpStream, mut to: TcpStream| {
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    };
    for client in listener.incoming().flatten() {
        let server = TcpStream::connect(target).expect("the service listens");
        let clone = |stream: &TcpStream| stream.try_clone().expect("a descriptor is free");
        let (from, to) = (clone(&client), clone(&server));
        thread::spawn(move || forward(from, to));
        thread::spawn(move || forward(server, client));
    }
}

#[test]
fn a_proxy_of_the_same_user_that_says_nothing_is_known_by_its_listening_socket() {
    for listen in ["127.0.0.1:0", "0.0.0.0:0", "[::]:0"] {
        let server = Allout::new().args(["--listen", listen]).start();
        let target = SocketAddr::from(([127, 0, 0, 1], server.addr.port()));
        let proxy = Proxy::start(target);
        for host in ["localhost", "127.0.0.1:8088", &target.to_string()] {
            let mut connection = Connection::open(proxy.addr, LIMIT).expect("the proxy listens");
            connection.send_raw(format!("GET /healthz HTTP/1.1\r\nHost: {host}\r\n\r\n"));
            assert_eq!(connection.expect_response("GET").status, 200);
            connection.send_raw(format!("GET /shutdown HTTP/1.1\r\nHost: {host}\r\n\r\n"));
            let response = connection.expect_response("GET");
            assert_eq!(response.status, 403, "{response:?}");
            assert_eq!(response.text(), "403 from a process that is a server itself, such as a proxy");
        }
        assert!(server.is_alive());
    }
}

// --- The library

#[test]
fn a_service_has_the_route_only_where_it_was_asked_for() {
    let ask = |service: &allout::ServiceHandle, headers: &str| {
        let mut connection = Connection::open(service.address(), LIMIT).expect("it listens");
        connection.send_raw(format!("POST /shutdown HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n"));
        connection.expect_response("POST")
    };
    let start = |service: Service| service.listen("127.0.0.1:0").start().expect("it starts");
    let without = start(common::engine::service().fallback(|_| "greeting"));
    assert_eq!(ask(&without, "").status, 404);
    assert_eq!(without.stop("the test is over").code(), 0);

    // A client in the process of the service.
    let with = start(common::engine::service().with_shutdown_route());
    assert_eq!(ask(&with, "").status, 200);
    assert_eq!(with.wait().code(), 0);

    let with_token = start(common::engine::service().shutdown_token("s3cret"));
    assert_eq!(ask(&with_token, "Via: x\r\nAuthorization: Bearer wrong\r\n").status, 403);
    assert_eq!(ask(&with_token, "Via: x\r\nAuthorization: Bearer s3cret\r\n").status, 200);
    assert_eq!(with_token.wait().code(), 0);
}
