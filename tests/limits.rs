//! Limits: no request, and no number of them, ends the process, makes it grow without bound, or keeps others from being
//! answered; connections that the engine leaks are counted and logged.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says what it expects by panicking")]

#[macro_use]
mod common;

use allout::{HandlerError, Request, Response, Service};
use common::http::Connection;
use common::{Allout, LIMIT, OTHERS, Serving, Speak as _, alone, assert_others, wait_until};
use rustix::process::Signal;
use std::io::{self, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const BINARY: &str = env!("CARGO_BIN_EXE_allout");
const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

fn start(engine: &str, args: &[&str]) -> Serving {
    Allout::new().args(["--engine", engine]).args(args.iter().copied()).start()
}

/// It stops at once, with code 0 and without an error in its log.
#[track_caller]
fn assert_clean_stop(mut server: Serving, limit: Duration) {
    let began = Instant::now();
    server.signal(Signal::TERM);
    server.assert_exit(0, limit);
    println!("stopped after {:?}", began.elapsed());
    let log = server.log();
    assert!(!log.contains("panicked"), "a thread panicked");
    assert!(!log.lines().any(|line| line.contains(" ERROR ")), "a clean stop logs no error");
}

fn reset(stream: &TcpStream) {
    let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO)); // a socket takes it
}

/// The sum of a metric over the labels that contain this.
#[track_caller]
fn metric(server: &Serving, name: &str, labels: &str) -> f64 {
    let page = server.get("/metrics").text();
    let lines = page.lines().filter(|line| line.starts_with(name) && line.contains(labels));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

/// Runs `client` on so many threads, over and over, for so long. Says how often it ran.
fn over_and_over(threads: usize, span: Duration, client: impl Fn() + Sync) -> usize {
    let (until, count) = (Instant::now() + span, AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while Instant::now() < until {
                    client();
                    count.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    count.into_inner()
}

/// Reset sockets are never found, and the engine was taken for dead although its accept thread lived.
fn clients_that_connect_ask_and_reset_for_seconds_do_no_harm(engine: &str) {
    let _alone = alone();
    let server = start(engine, &[]);
    let count = over_and_over(1, Duration::from_secs(9), || {
        if let Ok(mut stream) = TcpStream::connect(server.addr) {
            let _ = stream.write_all(GET.as_bytes()); // it may be closed by then
            reset(&stream);
        }
    });
    println!("{count} connections");
    assert_others(&server, 40);
    let anew: Vec<_> = server.log().lines().filter(|line| line.contains("anew")).map(str::to_owned).collect();
    assert!(anew.is_empty(), "an engine that lives was started anew: {anew:?}");
    assert_clean_stop(server, Duration::from_secs(5));
}

/// What the tiny_http engine leaks is counted and said.
fn leaks_by_clients_of_http_2_are_counted_and_logged(engine: &str) {
    let _alone = alone();
    let server = start(engine, &[]);
    let (threads, descriptors) = (server.threads(), server.descriptors());
    let all = ["GET / HTTP/2.0\r\n\r\n", "GET / HTTP/3.0\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"];
    for n in 0..60 {
        let mut connection = server.connect();
        connection.send_raw(all[n % 3]);
        server.wait_until_read(&connection);
        reset(connection.stream());
    }
    wait_until(OTHERS, "the leak to be counted", || metric(&server, "allout_connections_leaked_total", "") >= 60.0);
    println!("threads {threads} to {}, descriptors {descriptors} to {}", server.threads(), server.descriptors());
    assert!(server.log().contains("leaked"), "the log does not say it:\n{}", server.log());
    assert_others(&server, 4);
    assert_clean_stop(server, Duration::from_secs(5));
}

/// Within the limit on descriptors, the process goes on before they run out.
fn clients_of_http_2_do_not_use_up_the_descriptors(engine: &str) {
    let _alone = alone();
    let server = common::with_limit(256).env("ALLOUT_ENGINE", engine).start();
    let began = Instant::now();
    let (mut answered, mut failed) = (0, Vec::new());
    for _ in 0..60 {
        let asked = Instant::now();
        let mut hostile = server.connect();
        let _ = hostile.send(b"GET / HTTP/2.0\r\n\r\n"); // it may be closed by then
        reset(hostile.stream());
        drop(hostile);
        let result = Connection::open(server.addr, OTHERS).map_err(|e| e.to_string()).and_then(|mut connection| {
            connection.send(GET.as_bytes()).map_err(|(_, e)| e.to_string())?;
            connection.read_response("GET", OTHERS).map_err(|e| e.to_string())
        });
        match result {
            Ok(response) if response.status == 200 => answered += 1,
            other => failed.push(format!("{other:?} after {:?}", asked.elapsed())),
        }
        thread::sleep(Duration::from_millis(20).saturating_sub(asked.elapsed())); // a rate
    }
    println!("others: {answered} answered, {} not, in {:?}", failed.len(), began.elapsed());
    assert!(failed.is_empty(), "{} of 60 others were not answered: {failed:?}", failed.len());
    assert!(server.descriptors() < 200, "{} descriptors", server.descriptors());
    // While it drains before a re-exec, it says so.
    wait_until(OTHERS, "health after the last re-exec", || server.get("/healthz").status == 200);
    assert_clean_stop(server, Duration::from_secs(5));
}

/// A filter on the TTL of packets does not hold back those whose packets have the highest.
fn clients_with_the_highest_ttl_that_pipeline_are_bounded(engine: &str) {
    let _alone = alone();
    let server = start(engine, &[]);
    let stop = AtomicBool::new(false);
    let most = thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let requests = GET.repeat(500);
                while !stop.load(Ordering::Relaxed) {
                    let Ok(mut stream) = TcpStream::connect(server.addr) else { continue };
                    socket2::SockRef::from(&stream).set_ttl_v4(255).expect("a socket takes a TTL");
                    stream.set_write_timeout(Some(Duration::from_millis(300))).expect("a socket takes a timeout");
                    let mut taken = Ok(());
                    while taken.is_ok() && !stop.load(Ordering::Relaxed) {
                        taken = stream.write_all(requests.as_bytes());
                    }
                }
            });
        }
        let until = Instant::now() + Duration::from_secs(3);
        let mut most = 0;
        let mut others = Ok(());
        while Instant::now() < until && most < 1024 * 1024 {
            most = most.max(server.resident());
            others = others.and(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| assert_others(&server, 1))));
        }
        stop.store(true, Ordering::Relaxed);
        assert!(others.is_ok(), "others were not answered; at most {most} KiB resident");
        most
    });
    println!("at most {most} KiB resident");
    assert!(most < 96 * 1024, "{most} KiB resident");
    assert_clean_stop(server, Duration::from_secs(5));
}

/// Clients that pipeline more requests than are taken at once, never read, and are reset after a while.
fn pipeline_and_reset(server: &Serving, wait: Duration) {
    let requests = "GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n".repeat(3000);
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
            // The responses get stuck soon.
            socket.set_recv_buffer_size(2048).expect("a socket takes a size");
            socket.connect(&server.addr.into()).expect("connecting");
            let mut stream = TcpStream::from(socket);
            stream.set_write_timeout(Some(Duration::from_millis(300))).expect("a socket takes a timeout");
            let _ = stream.write_all(requests.as_bytes()); // as many as are taken
            stream
        })
        .collect();
    thread::sleep(wait); // how far the service gets with them is what is varied
    clients.iter().for_each(reset);
}

/// Requests of a connection that was reset are not in flight, neither for the metrics nor for a stop.
fn pipelined_requests_of_a_connection_that_was_reset_do_not_hold_up_a_stop(engine: &str) {
    let _alone = alone();
    let mut bad = Vec::new();
    for wait in [250, 300, 350, 500].map(Duration::from_millis) {
        let mut server = start(engine, &["--grace", "4s"]);
        pipeline_and_reset(&server, wait);
        let began = Instant::now();
        server.signal(Signal::TERM);
        let status = server.wait_exit(LIMIT);
        println!("reset after {wait:?}: {status} {:?} after the signal", began.elapsed());
        if status.code() != Some(0) || began.elapsed() > Duration::from_secs(3) {
            bad.push(format!("reset after {wait:?}: {status} after {:?}", began.elapsed()));
        }
    }
    assert!(bad.is_empty(), "{} of 4: {bad:?}", bad.len());
}

/// A client's kernel says that it is gone when a packet reaches it: the server's may be repeated after 3.2 s only.
fn pipelined_requests_of_a_connection_that_was_reset_are_not_in_flight(engine: &str) {
    let _alone = alone();
    let server = start(engine, &[]);
    for wait in [20, 200, 300].map(Duration::from_millis) {
        pipeline_and_reset(&server, wait);
        wait_until(Duration::from_secs(10), "nothing to be in flight after a reset", || {
            metric(&server, "allout_http_requests_in_flight ", "") < 2.0 // the one that asks
        });
    }
    assert_others(&server, 4);
    assert_clean_stop(server, Duration::from_secs(5));
}

/// Started by a shell that sets a limit.
fn under(engine: &str, limit: &str) -> Allout {
    let script = format!("{limit} && exec \"$0\" \"$@\"");
    let builder = Allout::of(Path::new("/bin/sh")).env("ALLOUT_ENGINE", engine);
    builder.args(["-c", &script, BINARY, "--listen", "127.0.0.1:0"]).spawn()
}

/// It either refuses to start, with one clear line, or serves through a crowd and after it.
fn refuses_or_serves(engine: &str, limit: &str, crowd: usize) -> Result<&'static str, String> {
    let mut process = under(engine, limit);
    let deadline = Instant::now() + LIMIT;
    while process.is_alive() && !process.log().contains("listening on http://") && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(1));
    }
    if !process.is_alive() {
        let status = process.wait_exit(LIMIT);
        let (log, lines) = (process.log(), process.log().lines().count());
        let clear = status.code() == Some(1) && lines == 1 && !log.contains("panic");
        return if clear { Ok("refuses") } else { Err(format!("{limit}: {status}, and said {log:?}")) };
    }
    let text = process.log();
    let addr = text.split("listening on http://").nth(1).and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    let addr: SocketAddr = addr.ok_or(format!("{limit}: no address in {text:?}"))?;
    let ask = |wait: Duration| {
        Connection::open(addr, wait).is_ok_and(|mut connection| {
            connection.send(GET.as_bytes()).is_ok() && connection.read_response("GET", wait).is_ok()
        })
    };
    if !ask(OTHERS) {
        return Err(format!("{limit}: does not answer its first client"));
    }
    let mut all: Vec<_> = (0..crowd).filter_map(|_| Connection::open(addr, Duration::from_millis(5)).ok()).collect();
    for connection in &mut all {
        let _ = connection.send(GET.as_bytes()); // it may be closed by then
    }
    for connection in &mut all {
        let _ = connection.read_response("GET", Duration::from_millis(5)); // nothing is promised to them
    }
    drop(all);
    let deadline = Instant::now() + Duration::from_secs(5);
    while !ask(Duration::from_millis(500)) {
        if !process.is_alive() {
            let status = process.wait_exit(LIMIT);
            return Err(format!("{limit}: {status} in a crowd of {crowd}: {:?}", process.log().lines().last()));
        }
        if Instant::now() >= deadline {
            return Err(format!("{limit}: answers no client 5 s after a crowd of {crowd}"));
        }
    }
    process.signal(Signal::TERM);
    match process.wait_exit(LIMIT).code() {
        Some(0) => Ok("serves"),
        code => Err(format!("{limit}: exit {code:?}")),
    }
}

#[track_caller]
fn assert_refuses_or_serves(engine: &str, limits: impl Iterator<Item = String>, crowd: usize) {
    // At once: each is a process of its own.
    let results: Vec<_> = thread::scope(|scope| {
        let tries: Vec<_> =
            limits.map(|limit| scope.spawn(move || (refuses_or_serves(engine, &limit, crowd), limit))).collect();
        tries.into_iter().map(|one| one.join().expect("as its message says")).collect()
    });
    for (result, limit) in &results {
        println!("{limit}: {result:?}");
    }
    let bad: Vec<_> = results.iter().filter_map(|(result, _)| result.as_ref().err().cloned()).collect();
    assert!(bad.is_empty(), "{} of {} bad:\n{}", bad.len(), results.len(), bad.join("\n"));
}

fn with_few_descriptors_it_refuses_to_start_or_serves(engine: &str) {
    let _alone = alone();
    let limits = [4, 8, 12, 16, 24, 32, 40, 64];
    assert_refuses_or_serves(engine, limits.into_iter().map(|n| format!("ulimit -n {n}")), 100);
}

/// The limit on address space, in KiB.
fn with_little_address_space_it_refuses_to_start_or_serves(engine: &str) {
    let _alone = alone();
    let limits = [50_000, 100_000, 200_000, 400_000, 1_500_000];
    assert_refuses_or_serves(engine, limits.into_iter().map(|n| format!("ulimit -v {n}")), 150);
    let limits = limits.into_iter().map(|n| format!("export MALLOC_ARENA_MAX=1; ulimit -v {n}"));
    assert_refuses_or_serves(engine, limits, 150);
}

/// Tells the child of this test program, which is `the_service_of_a_child`, to be one, and on which engine.
const CHILD: &str = "READS_BODIES";

fn copied(request: &mut Request) -> Result<String, HandlerError> {
    let n = io::copy(&mut request.body(), &mut io::sink())?;
    Ok(format!("{n} bytes"))
}

/// Not a test: the service of those that would end this process with them.
#[test]
#[ignore = "is started by other tests, as a process of its own"]
fn the_service_of_a_child() {
    let Ok(engine) = std::env::var(CHILD) else { return };
    let service = common::engine::service_on(&engine)
        .request_timeout(Duration::from_secs(1))
        .idle_timeout(Duration::from_secs(2))
        .post("/copy", copied)
        .post("/text", Request::text)
        .post("/all", |request| request.bytes_up_to(u64::MAX))
        .post("/one-byte", |request| {
            let _ = io::Read::read(&mut request.body(), &mut [0]); // as one who looks at the beginning does
        })
        .post("/not-read", |_| "not read")
        .post("/panics", |request| -> Response {
            let _ = io::Read::read(&mut request.body(), &mut [0]);
            panic!("a handler's bug")
        });
    let handle = service.listen("127.0.0.1:0").start().expect("it starts");
    eprintln!("listening on http://{}", handle.address());
    let _ = handle.wait(); // it is killed
}

/// Lengths that no client sends, read by handlers in every way.
fn no_announced_length_that_a_handler_reads_ends_the_process(engine: &str) {
    let _alone = alone();
    let exe = std::env::current_exe().expect("this program has a path");
    let args = ["--exact", "the_service_of_a_child", "--ignored", "--nocapture", "--test-threads=1"];
    // ALLOUT_LISTEN is not read by it: it keeps the builder from adding an option that the child does not know.
    let builder = Allout::of(&exe).env("ALLOUT_LISTEN", "").env(CHILD, engine).args(args);
    let server = builder.start();
    let lengths = [5000, 1 << 30, 100_000_000_000, 1 << 46, 1 << 62, u64::MAX / 2, u64::MAX];
    let mut wrong = Vec::new();
    for half_closes in [true, false] {
        let mut clients = Vec::new();
        for path in ["/copy", "/text", "/all", "/one-byte", "/not-read", "/panics"] {
            for length in lengths {
                let mut connection = server.connect();
                connection.send_raw(format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\nsome"));
                if half_closes {
                    connection.stream().shutdown(Shutdown::Write).expect("the server is there");
                }
                clients.push((path, length, connection));
            }
        }
        for (path, length, mut connection) in clients {
            let response = connection.read_response("POST", Duration::from_secs(4));
            if !server.is_alive() {
                let log = server.log();
                let last = log.lines().rfind(|line| line.contains("memory allocation")).unwrap_or_default();
                panic!("the process ended; clients half closed: {half_closes}: {last}");
            }
            let right = match response.as_ref().map_or(0, |response| response.status) {
                400 | 408 | 413 => true,
                500 => path == "/panics",
                // Where the handler does not care for the whole body, what it says may be said.
                200 | 204 => matches!(path, "/one-byte" | "/not-read"),
                _ => false,
            };
            if !right {
                wrong.push(format!("{path}, {length}, half closed {half_closes}: {response:?}"));
            }
        }
    }
    assert!(server.resident() < 96 * 1024, "{} KiB resident", server.resident());
    assert_eq!(server.get("/healthz").status, 200);
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

/// What no layer above the engine sees is counted, and said at most once a second.
fn unparsable_bytes_are_counted_and_logged(engine: &str) {
    let _alone = alone();
    let mut rows: Vec<(&str, &[u8])> = vec![
        ("a target in UTF-8", "GET /Zoë HTTP/1.1\r\nHost: a\r\n\r\n".as_bytes()),
        ("a method in UTF-8", "GËT / HTTP/1.1\r\nHost: a\r\n\r\n".as_bytes()),
        ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"),
        ("a PROXY line", b"PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"),
    ];
    if engine == "tiny-http" {
        // RFC 9110 allows these.
        rows.push(("a cookie in UTF-8", "GET / HTTP/1.1\r\nHost: a\r\nCookie: name=Zoë\r\n\r\n".as_bytes()));
        rows.push(("a byte of Latin-1", b"GET / HTTP/1.1\r\nHost: a\r\nX: \xe9\r\n\r\n"));
    }
    let server = start(engine, &[]);
    let seen = || {
        metric(&server, "allout_connections_closed_total", "cause=\"unparsable\"")
            + metric(&server, "allout_http_requests_rejected_total", "")
    };
    let mut bad = Vec::new();
    for (name, raw) in rows {
        let (before, times) = (seen(), 5);
        for _ in 0..times {
            let mut connection = server.connect();
            connection.send_raw(raw);
            // An answer, or the end: which one is the engine's.
            let answered = connection.read_response("GET", OTHERS);
            if let Ok(response) = &answered {
                if response.status < 400 {
                    bad.push(format!("{name}: {response:?}"));
                }
            } else if matches!(answered, Err(common::http::NoResponse::Late { .. })) {
                bad.push(format!("{name}: left waiting"));
                break;
            }
        }
        let deadline = Instant::now() + Duration::from_secs(2);
        while seen() < before + f64::from(times) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(10));
        }
        if seen() < before + f64::from(times) {
            bad.push(format!("{name}: {} of {times} are counted", seen() - before));
        }
    }
    let lines = server.log().lines().filter(|line| line.contains("127.0.0.1:") && line.contains(" INFO ")).count();
    println!("{} bad; {lines} lines", bad.len());
    assert!(bad.is_empty(), "{}", bad.join("\n"));
    // The first is where it listens.
    assert!((2..=20).contains(&lines), "{lines} lines of 30 connections:\n{}", server.log());
    assert_clean_stop(server, Duration::from_secs(5));
}

/// Sets something of a service.
type Set = fn(Service) -> Service;

/// No duration that a program may set is one that panics.
fn endless_durations_are_no_panic(engine: &str) {
    let all: [(&str, Set); 6] = [
        ("grace", |service| service.grace(Duration::MAX)),
        ("drain delay", |service| service.drain_delay(Duration::MAX).grace(Duration::from_secs(1))),
        ("grace and drain delay", |service| service.grace(Duration::MAX).drain_delay(Duration::from_millis(1))),
        ("keepalive_min", |service| service.keepalive_min(Duration::MAX).grace(Duration::from_secs(1))),
        ("idle timeout", |service| service.idle_timeout(Duration::MAX)),
        ("request timeout", |service| service.request_timeout(Duration::MAX)),
    ];
    let mut bad = Vec::new();
    for (name, set) in all {
        let service = match set(common::engine::service_on(engine).get("/", |_| "hello").listen("127.0.0.1:0")).start()
        {
            Ok(service) => service,
            Err(error) => {
                bad.push(format!("{name}: does not start: {error}"));
                continue;
            }
        };
        // Closed at the end, so that no drain has to wait for it.
        let mut connection = Connection::open(service.address(), LIMIT).expect("it can be connected to");
        connection.send(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").expect("it is sent");
        let answer = connection.read_response("GET", LIMIT);
        if !answer.as_ref().is_ok_and(|response| response.status == 200) {
            bad.push(format!("{name}: {answer:?}"));
        }
        drop(connection);
        let (sender, outcome) = allout::channel::bounded(1);
        thread::spawn(move || {
            let _ = sender.send(service.stop("the test is over")); // it is not waited for any more
        });
        match outcome.recv_timeout(Duration::from_secs(5)) {
            Ok(outcome) if outcome.code() == 0 => {}
            Ok(outcome) => bad.push(format!("{name}: {outcome}")),
            Err(_) => bad.push(format!("{name}: not stopped after 5 s")),
        }
    }
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}

/// Depth and number are the client's; what they cost is not.
#[cfg(feature = "json")]
fn deep_and_many_are_bounded(engine: &str) {
    let service = common::engine::service_on(engine)
        .post("/json", |request| request.json::<serde_json::Value>().map(|value| value.to_string()))
        .get("/query", |request| format!("{}", request.query_pairs().count()))
        .get("/files/{*path}", |request| request.param("path").unwrap_or_default().len().to_string());
    let service = service.listen("127.0.0.1:0").start().expect("it starts");
    let ask = |raw: String| {
        let mut connection = Connection::open(service.address(), LIMIT).expect("it can be connected to");
        let _ = connection.send(raw.as_bytes()); // it may be refused before the end
        connection.read_response("POST", LIMIT).map(|response| response.status)
    };
    for (name, body) in [
        ("arrays", "[".repeat(500_000)),
        ("objects", "{\"a\":".repeat(100_000)),
        ("closed arrays", format!("{}{}", "[".repeat(200_000), "]".repeat(200_000))),
    ] {
        let length = body.len();
        let raw =
            format!("POST /json HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}");
        assert_eq!(ask(raw), Ok(422), "{name}");
    }
    let many = "a&".repeat(3000);
    assert_eq!(ask(format!("GET /query?{many} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")), Ok(200));
    let deep = "a/".repeat(3000);
    assert_eq!(ask(format!("GET /files/{deep} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")), Ok(200));
    assert_eq!(service.stop("the test is over").code(), 0);
}

/// Also where the logger shows what the engine says.
fn a_clean_stop_logs_no_error_of_the_engine(engine: &str) {
    let mut server = Allout::new().args(["--engine", engine]).env("RUST_LOG", "info,tiny_http=debug").start();
    let mut idle = server.connect();
    assert_eq!(idle.ask("GET", "/").status, 200);
    server.signal(Signal::TERM);
    server.assert_exit(0, LIMIT);
    let loud: Vec<_> =
        server.log().lines().filter(|l| l.contains(" ERROR ") || l.contains(" WARN ")).map(str::to_owned).collect();
    assert!(loud.is_empty(), "{loud:?}");
}

tests_of_both_engines! {
    clients_that_connect_ask_and_reset_for_seconds_do_no_harm;
    clients_of_http_2_do_not_use_up_the_descriptors;
    #[tiny_http = "on cores that are busy with other work 4 of 8 unoptimized runs exceed 2 s or 96 MiB"]
    clients_with_the_highest_ttl_that_pipeline_are_bounded;
    pipelined_requests_of_a_connection_that_was_reset_do_not_hold_up_a_stop;
    pipelined_requests_of_a_connection_that_was_reset_are_not_in_flight;
    with_few_descriptors_it_refuses_to_start_or_serves;
    with_little_address_space_it_refuses_to_start_or_serves;
    no_announced_length_that_a_handler_reads_ends_the_process;
    #[tiny_http = "new connections end sooner than the monitor looks; of kept ones 8 of 10 are counted"]
    unparsable_bytes_are_counted_and_logged;
    endless_durations_are_no_panic;
    #[cfg(feature = "json")]
    deep_and_many_are_bounded;
    a_clean_stop_logs_no_error_of_the_engine;
}

mod tiny_http_alone {
    const ENGINE: &str = "tiny-http";

    tests! {
        leaks_by_clients_of_http_2_are_counted_and_logged;
    }
}
