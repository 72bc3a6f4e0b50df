//! Hostile clients (many, slow, silent, endless or greedy ones) do not affect others: new clients that ask for `/healthz`
//! and `/` meanwhile must all get a 200. Sizes are small enough for every day; see `tests/soak` for long
//! runs, and `--ignored` for large ones.

#![allow(clippy::expect_used, clippy::panic, reason = "tests say what they expect by panicking")]
#![allow(clippy::needless_for_each, clippy::format_collect, clippy::items_after_statements, reason = "shorter to read")]

mod common;

use common::{Allout, Builder, LIMIT, OTHERS, Serving, Speak as _, assert_others, http::Connection, wait_until};
use std::io::Write as _;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const GET: &str = "GET / HTTP/1.1\r\nHost: allout.test\r\n\r\n";
/// Times that a connection was throttled so far.
const THROTTLED: &str = "allout_connections_throttled_total";
const SLOW: &str = "GET /timeout HTTP/1.1\r\nHost: allout.test\r\n\r\n";

/// Ends the server, and looks at what must hold in any case.
#[track_caller]
fn assert_sound(mut server: Serving) {
    assert_others(&server, 4);
    server.stop();
    assert!(!server.log().contains("panicked"), "no client makes a thread panic aloud:\n{}", server.log());
}

fn allout() -> Builder {
    Allout::new()
}

fn connections(server: &Serving, number: usize) -> Vec<Connection> {
    (0..number).map(|_| server.connect()).collect()
}

/// Whether the server has let go of all but a few descriptors and threads.
#[track_caller]
fn assert_lets_go(server: &Serving, limit: Duration) {
    wait_until(limit, "descriptors to be closed", || server.descriptors() < 40);
    wait_until(limit, "threads to leave", || server.threads() < 40);
}

/// `number` keep-alive connections, opened at once; then each asks, and each is answered.
#[track_caller]
fn burst(server: &Serving, number: usize) -> Vec<Connection> {
    let mut all = connections(server, number);
    for connection in &mut all {
        connection.send_raw(GET);
    }
    for (n, connection) in all.iter_mut().enumerate() {
        match connection.read_response("GET", LIMIT) {
            Ok(response) => assert_eq!(response.status, 200, "{response:?}"),
            Err(e) => panic!("connection {n} of a burst of {number}: {e}"),
        }
    }
    all
}

#[test]
fn every_connection_of_a_burst_is_answered_also_while_others_are_idle() {
    let server = allout().start();
    let mut idle = Vec::new();
    for number in [8, 64, 200, 8, 64] {
        let began = Instant::now();
        idle.push(burst(&server, number));
        assert!(began.elapsed() < OTHERS, "a burst of {number} took {:?}", began.elapsed());
    }
    drop(idle);
    assert_sound(server);
}

#[test]
#[ignore = "a thousand connections at a time, for a minute"]
fn bursts_of_a_thousand_every_second_for_a_minute() {
    let server = allout().start();
    for _ in 0..60 {
        let began = Instant::now();
        drop(burst(&server, 1000));
        thread::sleep(Duration::from_secs(1).saturating_sub(began.elapsed()));
    }
    assert_sound(server);
}

#[test]
fn silent_and_trickling_clients_are_closed_in_time_and_delay_no_others() {
    let server = allout().args(["--idle-timeout", "2s"]).start();
    let began = Instant::now();
    let mut silent = connections(&server, 100);
    let mut half = connections(&server, 100);
    half.iter_mut().for_each(|connection| connection.send_raw("GET /he"));
    assert_others(&server, 10);
    let mut trickling: Vec<_> = connections(&server, 20);
    trickling.iter_mut().for_each(|connection| connection.send_raw("GET / HTTP/1.1\r\nX: "));
    while began.elapsed() < Duration::from_millis(1500) {
        for connection in &mut trickling {
            let _ = connection.send(b"x"); // it may be closed
        }
        assert_others(&server, 2);
        thread::sleep(Duration::from_millis(200));
    }
    for connection in silent.iter_mut().chain(&mut half) {
        connection.expect_end();
    }
    for connection in &trickling {
        wait_until(LIMIT, "a trickling connection to be closed", || connection.look() != common::http::Look::Open);
    }
    assert!(began.elapsed() < Duration::from_secs(5), "all are closed after {:?}", began.elapsed());
    assert_lets_go(&server, LIMIT);
    assert_sound(server);
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Streams without end, over new connections when one is closed, until told to stop. Says how often it was closed.
fn stream_without_end(server: &Serving, prefix: &str, stop: &AtomicBool) -> usize {
    let junk = vec![b'1'; 64 * 1024];
    let mut closed = 0;
    while !stop.load(Ordering::Relaxed) {
        let Ok(mut stream) = TcpStream::connect(server.addr) else { continue };
        stream.set_write_timeout(Some(Duration::from_millis(300))).expect("a socket takes a timeout");
        let mut sent = stream.write_all(prefix.as_bytes());
        while sent.is_ok() && !stop.load(Ordering::Relaxed) {
            sent = stream.write_all(&junk);
        }
        closed += usize::from(sent.is_err());
    }
    closed
}

#[track_caller]
fn assert_endless_lines_are_bounded(prefix: &str) {
    let server = allout().args(["--timeout-delay", "3s"]).start();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let told = StopOnDrop(&stop); // also if something below fails
        let streams: Vec<_> = (0..8).map(|_| scope.spawn(|| stream_without_end(&server, prefix, &stop))).collect();
        let until = Instant::now() + Duration::from_secs(2);
        let mut most = 0;
        while Instant::now() < until {
            most = most.max(server.resident());
            assert_others(&server, 2);
        }
        drop(told);
        let closed: usize = streams.into_iter().map(|s| s.join().expect("nothing in it panics")).sum();
        assert!(closed > 8, "endless lines were closed {closed} times");
        assert!(most < 96 * 1024, "{most} KiB resident");
    });
    assert_sound(server);
}

#[test]
fn endless_headers_are_bounded() {
    assert_endless_lines_are_bounded("GET / HTTP/1.1\r\nHost: a\r\nX: ");
}

#[test]
fn endless_headers_behind_a_request_in_flight_are_bounded() {
    assert_endless_lines_are_bounded(&format!("{SLOW}GET / HTTP/1.1\r\nX: "));
}

#[test]
fn an_endless_size_of_a_chunk_is_bounded() {
    assert_endless_lines_are_bounded("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
}

#[test]
fn bodies_that_never_come_delay_no_others_and_are_closed_in_time() {
    let server = allout().args(["--request-timeout", "3s"]).start();
    let began = Instant::now();
    let mut posts = connections(&server, 64);
    for (n, connection) in posts.iter_mut().enumerate() {
        let rest =
            if n % 2 == 0 { "Content-Length: 5000\r\n\r\nab" } else { "Transfer-Encoding: chunked\r\n\r\n5\r\na" };
        connection.send_raw(format!("POST / HTTP/1.1\r\nHost: a\r\n{rest}"));
    }
    assert_others(&server, 20);
    for connection in &mut posts {
        let _ = connection.read_response("POST", LIMIT); // a 408, or nothing
        let _ = connection.eof(LIMIT);
    }
    assert!(began.elapsed() < Duration::from_secs(5), "all are closed after {:?}", began.elapsed());
    assert_sound(server);
}

/// Each of these made tiny_http's reader wait on the thread that receives for everyone.
#[test]
fn short_bodies_that_are_not_in_memory_delay_no_others() {
    let server = allout().start();
    let rows = [
        ("for an upgrade", "POST / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nContent-Length: 10\r\n\r\n"),
        ("refused, and expected", "POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 10\r\n\r\n"),
        ("refused, for an upgrade", "POST / HTTP/1.1\r\nConnection: upgrade\r\nContent-Length: 10\r\n\r\n"),
        (
            "thrown away, and expected",
            "GET / HTTP/1.1\r\n\r\nPOST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 10\r\n\r\n",
        ),
    ];
    for (name, raw) in rows {
        eprintln!("a body {name}");
        let mut connection = server.connect();
        connection.send_raw(raw);
        server.wait_until_read(&connection);
        assert_others(&server, 2);
    }
    assert_sound(server);
}

#[test]
fn a_pipeline_is_answered_in_order_and_occupies_one_worker() {
    let server = allout().args(["--timeout-delay", "1s", "--workers", "2", "--queue", "1"]).start();
    let mut greedy = server.connect();
    greedy.send_raw(format!("{SLOW}{}", GET.repeat(500)));
    server.wait_until_read(&greedy);
    // The other worker is free for another's slow request.
    let mut other = server.connect();
    other.send_raw(SLOW);
    assert_others(&server, 10);
    assert_eq!(other.expect_response("GET").status, 200);
    assert_eq!(greedy.expect_response("GET").text(), "done");
    for _ in 0..500 {
        assert_eq!(greedy.expect_response("GET").text(), "hello, world");
    }
    assert_sound(server);
}

#[test]
fn many_pipelined_requests_behind_a_slow_one_are_answered_within_bounded_memory() {
    let server = allout().args(["--timeout-delay", "500ms"]).start();
    // On tiny_http fewer than are kept of one connection (16 MiB, 1.5 KiB each), so that it is not ended on busy cores either,
    // where all of them may be read before the first is received.
    const MANY: usize = if common::engine::NATIVE { 100_000 } else { 8_000 };
    let mut greedy = server.connect();
    let mut sender = greedy.stream().try_clone().expect("a descriptor is left");
    thread::scope(|scope| {
        scope.spawn(move || sender.write_all(format!("{SLOW}{}", GET.repeat(MANY)).as_bytes()));
        assert_eq!(greedy.expect_response("GET").text(), "done");
        let mut most = 0;
        for n in 0..MANY {
            assert_eq!(greedy.expect_response("GET").text(), "hello, world", "request {n}");
            if n % 1000 == 0 {
                most = most.max(server.resident());
                assert_others(&server, 1);
            }
        }
        assert!(most < 64 * 1024, "{most} KiB resident");
    });
    assert_sound(server);
}

#[test]
fn clients_that_never_read_delay_no_others_and_are_closed_in_time() {
    let server = allout().args(["--request-timeout", "2s"]).start();
    // As many as fill the buffers of both ends.
    thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                let mut stream = server.connect().stream().try_clone().expect("a descriptor is left");
                stream.set_write_timeout(Some(Duration::from_secs(1))).expect("a socket takes a timeout");
                let many = GET.repeat(500);
                while stream.write_all(many.as_bytes()).is_ok() {}
                // Not until the client hears of it: its kernel asks a full receiver more and more seldom.
                wait_until(LIMIT * 3, "clients that never read to be closed", || server.descriptors() < 20);
            });
        }
        assert_others(&server, 20);
    });
    assert_lets_go(&server, LIMIT);
    assert_sound(server);
}

#[test]
fn the_resources_of_a_crowd_are_released_when_it_has_left() {
    let server = allout().start();
    let before = server.resident();
    let crowd = burst(&server, 300);
    let with = server.resident();
    if common::engine::NATIVE {
        assert!(with < before + 1024, "{before} KiB, {with} KiB with 300 connections");
        return; // not worth giving back
    }
    assert!(with > before + 4096, "{before} KiB, {with} KiB with 300 connections");
    drop(crowd);
    wait_until(LIMIT, "memory to be given back", || server.resident() < before + (with - before) / 2);
    assert_sound(server);
}

#[test]
fn a_drain_does_not_wait_for_throttled_clients_that_have_left() {
    let mut server = allout().start();
    let flood = GET.repeat(2000);
    thread::scope(|scope| {
        for _ in 0..16 {
            let stream = server.connect().stream().try_clone().expect("a descriptor is left");
            let flood = &flood;
            scope.spawn(move || {
                stream.set_write_timeout(Some(Duration::from_millis(300))).expect("a socket takes a timeout");
                while (&stream).write_all(flood.as_bytes()).is_ok() {}
            });
        }
    });
    assert!(common::engine::NATIVE || server.sample(THROTTLED) > Some(0.0), "16 clients that never read are held back");
    server.stop();
}

#[test]
fn long_heads_are_not_throttled_however_many_come_at_once() {
    let server = allout().start();
    let lines = format!("X-Long: {}\r\n", "a".repeat(15 * 1024)).repeat(4);
    let long = format!("GET / HTTP/1.1\r\nHost: allout.test\r\n{lines}\r\n");
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..10 {
                    let mut connection = server.connect();
                    connection.send_raw(&long);
                    assert_eq!(connection.expect_response("GET").status, 200);
                    connection.send_raw(&long);
                    assert_eq!(connection.expect_response("GET").status, 200);
                }
            });
        }
    });
    assert_eq!(server.sample(THROTTLED), Some(0.0), "a long head is no flood");
    assert_sound(server);
}

fn all_slow_at_once(number: usize, within: Duration) {
    let server = allout().args(["--timeout-delay", "1s"]).start();
    let mut slow = connections(&server, number);
    let began = Instant::now();
    slow.iter_mut().for_each(|connection| connection.send_raw(SLOW));
    assert_others(&server, 4);
    for connection in &mut slow {
        assert_eq!(connection.expect_response("GET").status, 200);
    }
    assert!(began.elapsed() < within, "{number} slow requests took {:?}", began.elapsed());
    drop(slow);
    assert_lets_go(&server, Duration::from_secs(40));
    assert_sound(server);
}

#[test]
fn the_pool_grows_to_what_is_needed_and_shrinks_again() {
    all_slow_at_once(100, Duration::from_secs(3));
}

#[test]
#[ignore = "two thousand threads"]
fn a_thousand_slow_requests_run_at_once() {
    all_slow_at_once(1000, Duration::from_millis(1600));
}

#[test]
fn the_least_recently_used_connections_are_evicted_and_none_in_flight() {
    let server = allout().args(["--max-connections", "30", "--timeout-delay", "2s"]).start();
    let mut busy = server.connect();
    busy.send_raw(SLOW);
    server.wait_until_read(&busy);
    let idle = burst(&server, 25);
    let _newer = burst(&server, 25);
    assert_others(&server, 4);
    let is_gone = |connection: &&Connection| connection.look() != common::http::Look::Open;
    wait_until(LIMIT, "the idlest to be closed", || idle.iter().filter(is_gone).count() >= 20);
    assert_eq!(busy.expect_response("GET").status, 200);
    assert_sound(server);
}

#[test]
fn a_connection_at_the_closed_gate_is_accepted_once_others_have_become_idle() {
    let server = allout().args(["--max-connections", "16", "--timeout-delay", "500ms"]).start();
    let mut all: Vec<_> = (0..17)
        .map(|_| {
            let mut connection = server.connect();
            connection.send_raw(SLOW);
            server.wait_until_read(&connection); // in flight: not one that may be sent away
            connection
        })
        .collect();
    for connection in &mut all {
        assert_eq!(connection.expect_response("GET").status, 200);
    }
    // They stay open: the idlest have to make room, for as many as the gate opens for.
    assert_eq!(server.get("/").status, 200);
    assert_sound(server);
}

#[test]
fn requests_beyond_workers_and_queue_are_shed_at_once() {
    let server = allout().args(["--workers", "2", "--queue", "2", "--timeout-delay", "2s"]).start();
    let mut all = connections(&server, 12);
    let began = Instant::now();
    all.iter_mut().for_each(|connection| connection.send_raw(SLOW));
    assert_others(&server, 4);
    let mut shed = 0;
    for connection in &mut all {
        let response = connection.expect_response("GET");
        if response.status == 503 {
            assert!(response.header("retry-after").is_some(), "{response:?}");
            shed += 1;
        } else {
            assert_eq!(response.status, 200, "{response:?}");
        }
    }
    assert_eq!(shed, 8);
    assert!(began.elapsed() < LIMIT);
    assert_sound(server);
}

#[test]
fn a_request_is_shed_also_before_its_body_has_arrived() {
    let server = allout().args(["--workers", "1", "--queue", "0", "--timeout-delay", "3s"]).start();
    let mut slow = server.connect();
    slow.send_raw(SLOW);
    server.wait_until_read(&slow);
    // Not so short that tiny_http reads it before the request is seen: 1,024 bytes.
    let heads = ["Content-Length: 5000", "Transfer-Encoding: chunked", "Expect: 100-continue\r\nContent-Length: 5000"];
    for head in heads {
        let mut connection = server.connect();
        connection.send_raw(format!("POST / HTTP/1.1\r\nHost: a\r\n{head}\r\n\r\n"));
        let response = connection.expect_response("POST");
        assert!(response.status == 503 && response.closes(), "{head}: {response:?}");
    }
    assert_eq!(slow.expect_response("GET").status, 200);
    assert_sound(server);
}

/// Announces lengths, sends little, and leaves in every way.
fn announce(server: &Serving, times: usize) {
    let lengths = ["1025", "1048576", "1048577", "2147483648", "100000000000", "9223372036854775807"];
    let beyond = ["9223372036854775808", "18446744073709551615", "18446744073709551616"];
    for n in 0..times {
        let length = lengths.iter().chain(&beyond).nth(n % 9).expect("there are nine");
        let mut connection = server.connect();
        connection
            .send_raw(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n{}", &"some"[n % 5..]));
        match n % 3 {
            0 => {}
            1 => {
                connection.stream().shutdown(Shutdown::Write).expect("the server is there");
                let status = connection.expect_response("POST").status;
                assert!([200, 400, 413].contains(&status), "{length}: {status}");
            }
            _ => reset(&connection),
        }
    }
}

fn reset(connection: &Connection) {
    let linger = socket2::SockRef::from(connection.stream()).set_linger(Some(Duration::ZERO));
    linger.expect("a socket takes a linger");
}

#[test]
fn a_client_that_reuses_the_port_of_an_ended_connection_is_answered() {
    use socket2::{Domain, SockAddr, Socket, Type};
    let server = allout().args(["--timeout-delay", "1s"]).start();
    let from_port = |port: u16| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a descriptor is left");
        socket.set_reuse_address(true).expect("a socket takes the option");
        socket.bind(&SockAddr::from(SocketAddr::from(([127, 0, 0, 1], port)))).expect("the port is ours");
        socket.connect(&SockAddr::from(server.addr)).expect("the server is there");
        Connection::over(TcpStream::from(socket))
    };
    // One that left while its request was in flight must not take the next with it.
    let mut left = from_port(0);
    let port = left.stream().local_addr().expect("it is bound").port();
    left.send_raw(SLOW);
    server.wait_until_read(&left);
    assert_others(&server, 2); // received in order: by now it is in flight
    reset(&left);
    drop(left);
    let mut back = from_port(port);
    back.send_raw(GET);
    assert_eq!(back.expect_response("GET").status, 200);
    reset(&back);
    drop(back);

    let mut port = 0;
    for _ in 0..10 {
        let mut refused = from_port(port);
        port = refused.stream().local_addr().expect("it is bound").port();
        refused.send_raw("GET / HTTP/1.1\r\n\r\n");
        assert_eq!(refused.expect_response("GET").status, 400);
        reset(&refused);
        drop(refused);
        let mut back = from_port(port);
        back.send_raw(GET);
        assert_eq!(back.expect_response("GET").status, 200);
        reset(&back);
    }
    assert_sound(server);
}

#[test]
fn no_announced_length_ends_the_process() {
    let server = allout().start();
    announce(&server, 300);
    assert!(server.resident() < 96 * 1024, "{} KiB resident", server.resident());
    assert_lets_go(&server, LIMIT);
    assert_sound(server);
}

#[test]
#[ignore = "ten thousand connections"]
fn ten_thousand_announced_lengths_leave_nothing_behind() {
    let server = allout().start();
    announce(&server, 10_000);
    assert!(server.resident() < 96 * 1024, "{} KiB resident", server.resident());
    assert_lets_go(&server, LIMIT);
    assert_sound(server);
}

#[test]
fn resets_and_half_closes_at_any_point_leak_nothing() {
    let server = allout().args(["--timeout-delay", "100ms"]).start();
    let chunked = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab";
    let long = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5000\r\n\r\nab";
    let refused = format!("GET / HTTP/1.1\r\n\r\n{GET}");
    let pipeline = GET.repeat(20);
    let all = ["", "GE", GET, SLOW, chunked, long, &refused, &pipeline];
    for n in 0..600 {
        let mut connection = server.connect();
        connection.send_raw(all[n % all.len()]);
        match n / all.len() % 3 {
            0 => reset(&connection),
            1 => {
                // The server may have left first.
                let _ = connection.stream().shutdown(Shutdown::Write);
            }
            _ => {}
        }
        if n % 100 == 0 {
            assert_others(&server, 2);
        }
    }
    assert_lets_go(&server, Duration::from_secs(40));
    assert_sound(server);
}

#[test]
fn leaks_of_tiny_http_are_counted_and_lead_to_a_reexec_or_a_stop_in_time() {
    if common::engine::NATIVE {
        return; // it leaks nothing
    }
    let server = allout().args(["--max-connections", "64", "--idle-timeout", "1s"]).start();
    for _ in 0..40 {
        // Nothing is promised to these clients, not even that they get in.
        if let Ok(mut connection) = Connection::open(server.addr, Duration::from_secs(2)) {
            let _ = connection.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        }
    }
    server.wait_for_line("the engine has leaked", LIMIT);
}

#[test]
fn out_of_descriptors_requests_in_flight_are_answered_and_the_process_recovers() {
    // The hard limit, too: the program raises the soft one to it.
    let server = common::with_limit(256).args(["--timeout-delay", "2s"]).start();
    let mut busy = connections(&server, 3);
    busy.iter_mut().for_each(|connection| connection.send_raw(SLOW));
    busy.iter().for_each(|connection| server.wait_until_read(connection));
    // Some are let in, some wait in the kernel, and some are not even answered by it.
    let many: Vec<_> = (0..400).filter_map(|_| Connection::open(server.addr, Duration::from_millis(10)).ok()).collect();
    for connection in &mut busy {
        assert_eq!(connection.expect_response("GET").status, 200);
    }
    drop(many);
    let healthy = || {
        let Ok(mut connection) = Connection::open(server.addr, Duration::from_millis(500)) else { return false };
        connection.send(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n").is_ok()
            && connection.read_response("GET", Duration::from_millis(500)).is_ok_and(|response| response.status == 200)
    };
    wait_until(Duration::from_secs(4), "the same process to answer again", healthy);
    assert_sound(server);
}
