//! Responses are complete or visibly broken, are sent as soon as they exist, and late ones are reported.
//!
//! Services run within this process, with handlers whose readers fail, fall short, wait, panic and stream. The bytes
//! on the wire are looked at, not what a forgiving client makes of them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says what it expects by panicking")]

#[path = "common/engine.rs"]
#[macro_use]
mod engine;
#[path = "common/logged.rs"]
mod logged;
#[path = "common/wire.rs"]
mod wire;

use allout::{HandlerError, Request, Response, Service, ServiceHandle, channel};
use log::Level;
use std::io::{self, Read, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use wire::{End, Wire, ask, read_to_end, read_until, send};

/// Limit of every wait for something that takes no time.
const LIMIT: Duration = Duration::from_secs(5);
/// Limit for something that happens at once, on a machine that is busy with other work.
const AT_ONCE: Duration = Duration::from_secs(1);
/// Tries of each kind.
const TRIES: usize = 20;

fn start(service: Service) -> ServiceHandle {
    logged::collect();
    // A short grace: a test that fails may leave something that never ends.
    let service = service.access_log(true).grace(Duration::from_secs(2)).listen("127.0.0.1:0");
    service.start().expect("a service on a free port starts")
}

fn get(path: &str, more: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: a\r\n{more}\r\n")
}

const CLOSE: &str = "Connection: close\r\n";

/// Asserts that the service still answers, and stops with code 0.
#[track_caller]
fn assert_sound(service: ServiceHandle) {
    assert_eq!(ask(service.address(), get("/healthz", CLOSE), LIMIT).status(), 200, "the service answers no more");
    let outcome = service.stop("the test is over");
    assert_eq!((outcome.code(), outcome.abandoned.len()), (0, 0), "{outcome}");
}

/// The sum of a metric, over all its labels that contain `labels`.
fn metric(addr: SocketAddr, name: &str, labels: &str) -> f64 {
    let page = ask(addr, get("/metrics", CLOSE), LIMIT);
    let text = String::from_utf8_lossy(&page.bytes).into_owned();
    let lines = text.lines().filter(|line| line.starts_with(name) && line.contains(labels));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

/// What a reader does once it has given `bytes`.
#[derive(Clone, Copy, Debug)]
enum Then {
    End,
    Fail,
    Panic,
}

/// Gives so many bytes, then does that.
struct Gives {
    left: usize,
    then: Then,
}

impl Read for Gives {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            return match self.then {
                Then::End => Ok(0),
                Then::Fail => Err(io::Error::other("the disk is gone")),
                Then::Panic => panic!("a reader's bug"),
            };
        }
        let n = self.left.min(into.len());
        into[..n].fill(b'a');
        self.left -= n;
        Ok(n)
    }
}

/// A route for each way to fall short, at `/NAME`.
const BROKEN: [(&str, usize, Then, Option<u64>); 8] = [
    ("/fails-at-once", 0, Then::Fail, None),
    ("/fails-early", 100, Then::Fail, None),
    ("/fails-late", 24 * 1024, Then::Fail, None),
    ("/fails-of-known-length", 24 * 1024, Then::Fail, Some(100_000)),
    ("/short", 24 * 1024, Then::End, Some(100_000)),
    ("/empty-of-known-length", 0, Then::End, Some(100_000)),
    ("/panics", 24 * 1024, Then::Panic, None),
    ("/panics-of-known-length", 24 * 1024, Then::Panic, Some(100_000)),
];

fn broken_routes(service: Service) -> Service {
    BROKEN.into_iter().fold(service, |service, (path, left, then, length)| {
        service.get(path, move |_| Response::reader(Gives { left, then }, length))
    })
}

/// The requests after which a client reads: each is its last, but may keep the connection.
const MANNERS: [(&str, &str, &str); 2] =
    [("HTTP/1.1, close", "HTTP/1.1", CLOSE), ("HTTP/1.1, kept alive", "HTTP/1.1", "")];

/// To HTTP/1.0 a response of unknown length ends with the connection: only a reset tells that it is not whole.
const OLD_MANNERS: [(&str, &str, &str); 2] =
    [("HTTP/1.0", "HTTP/1.0", ""), ("HTTP/1.0, kept alive", "HTTP/1.0", "Connection: keep-alive\r\n")];

fn a_response_whose_reader_fails_never_looks_whole_and_ends_at_once(
    engine: &str,
    path: &str,
    manners: &[(&str, &str, &str)],
) {
    let service = start(broken_routes(engine::service_on(engine)));
    let mut bad = Vec::new();
    for (manner, version, headers) in manners {
        for n in 0..TRIES {
            let request = format!("GET {path}?{n} {version}\r\nHost: a\r\n{headers}\r\n");
            let wire = ask(service.address(), request, Duration::from_secs(2));
            if wire.end == End::Late {
                bad.push(format!("{path}, {manner}: still open: {}", wire.summary()));
                break; // each costs its whole limit
            }
            if wire.looks_whole() {
                bad.push(format!("{path}, {manner}: looks whole: {}", wire.summary()));
            }
        }
    }
    let tries = manners.len() * TRIES;
    println!("{path}: {} of {tries} bad", bad.len());
    assert!(bad.is_empty(), "{} of {tries} bad; the first: {}", bad.len(), bad[0]);
    assert!(metric(service.address(), "allout_connections_leaked_total", "") < 1.0, "connections are leaked");
    assert_sound(service);
}

fn a_response_to_http_1_0_whose_reader_fails_never_looks_whole(engine: &str) {
    for (path, ..) in BROKEN {
        a_response_whose_reader_fails_never_looks_whole_and_ends_at_once(engine, path, &OLD_MANNERS);
    }
}

fn a_response_to_http_1_0_that_its_client_does_not_take_in_time_never_looks_whole(engine: &str) {
    let service = engine::service_on(engine).request_timeout(Duration::from_millis(300));
    let service = start(service.get("/endless", |_| Response::reader(io::repeat(b'x'), None)));
    let id = format!("stalled-{engine}");
    let mut client = send(service.address(), format!("GET /endless HTTP/1.0\r\nHost: a\r\nX-Request-Id: {id}\r\n\r\n"));
    logged::wait_for("the access line", LIMIT, |line| line.target == "allout::access" && line.text.contains(&id));
    let wire = read_to_end(&mut client, LIMIT);
    assert_eq!(wire.status(), 200, "{}", wire.summary());
    assert!(!wire.looks_whole(), "looks whole: {}", wire.summary());
    assert_sound(service);
}

/// It is logged twice: as an error with the route, the id and the reason; and in the access log as cut.
fn a_response_that_was_cut_is_logged_as_cut(engine: &str) {
    let service = start(broken_routes(engine::service_on(engine)));
    for (path, reason) in [("/fails-late", "the disk is gone"), ("/short", "length"), ("/panics", "a reader's bug")] {
        let id = format!("cut{}", path.replace('/', "-"));
        ask(service.address(), get(path, &format!("X-Request-Id: {id}\r\n{CLOSE}")), Duration::from_secs(2));
        let error = logged::wait_for(&format!("an error about {path}"), LIMIT, |line| {
            line.level == Level::Error && line.text.contains(&id) && line.text.contains(path)
        });
        assert!(error.text.contains(reason), "{path}: no {reason:?} in {:?}", error.text);
        let access = logged::wait_for(&format!("the access line of {path}"), LIMIT, |line| {
            line.target == "allout::access" && line.text.contains(&id)
        });
        assert!(access.text.contains("cut"), "{path}: the access log does not say that it was cut: {}", access.text);
        assert!(!access.text.contains("bytes=0"), "{path}: 24 KiB were sent: {}", access.text);
    }
    assert_sound(service);
}

/// Many loggers print no fields.
fn the_access_line_says_what_happened_in_its_message(engine: &str) {
    let service = start(engine::service_on(engine).get("/said", |_| "12 bytes, so"));
    assert_eq!(ask(service.address(), get("/said?in=words", CLOSE), LIMIT).status(), 200);
    let line = logged::wait_for("the access line", LIMIT, |line| {
        line.target == "allout::access" && line.text.contains("/said?in=words")
    });
    let message = line.text.split(" method=").next().unwrap_or_default();
    assert!(message.starts_with("GET /said?in=words 200 "), "{message:?}");
    assert!(message.contains(" bytes ") && message.ends_with("ms"), "bytes and duration: {message:?}");
    assert_sound(service);
}

struct PanicsInDrop(Gives);

impl Read for PanicsInDrop {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.0.read(into)
    }
}

impl Drop for PanicsInDrop {
    fn drop(&mut self) {
        assert!(thread::panicking(), "a bug in a reader's drop");
    }
}

fn a_reader_that_panics_costs_its_connection_alone(engine: &str) {
    let service = start(
        broken_routes(engine::service_on(engine))
            .get("/drop", |_| Response::reader(PanicsInDrop(Gives { left: 1000, then: Then::End }), None)),
    );
    let addr = service.address();
    for path in ["/panics", "/panics-of-known-length", "/drop"] {
        for n in 0..10 {
            ask(addr, get(path, CLOSE), Duration::from_secs(2));
            let other = ask(addr, get("/healthz", CLOSE), LIMIT);
            assert_eq!(other.status(), 200, "after {n} panics of {path}: {}", other.summary());
        }
    }
    assert!(metric(addr, "allout_handler_panics_total", "") >= 30.0, "the panics are not counted");
    assert_sound(service);
}

/// Gives what comes through a channel, each message by a read of its own; says when it is dropped.
struct Channel {
    messages: channel::Receiver<&'static str>,
    dropped: channel::Sender<()>,
}

impl Read for Channel {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let Ok(message) = self.messages.recv() else { return Ok(0) };
        into[..message.len()].copy_from_slice(message.as_bytes());
        Ok(message.len())
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        let _ = self.dropped.send(());
    }
}

fn head_and_pieces_leave_as_they_come(engine: &str) {
    let (sender, messages) = channel::unbounded();
    let (dropped, is_dropped) = channel::unbounded();
    let service = start(engine::service_on(engine).get("/events", move |_| {
        let (messages, dropped) = (messages.clone(), dropped.clone());
        Response::reader(Channel { messages, dropped }, None).with_header("Content-Type", "text/event-stream")
    }));
    let mut client = send(service.address(), get("/events", ""));
    let head = read_until(&mut client, AT_ONCE, |bytes| bytes.ends_with(b"\r\n\r\n"));
    assert!(head.status() == 200 && head.bytes.ends_with(b"\r\n\r\n"), "the head came not at once: {}", head.summary());
    for piece in ["data: 1\n\n", "data: 22\n\n", "data: 333\n\n"] {
        sender.send(piece).unwrap();
        let came = read_until(&mut client, AT_ONCE, |bytes| bytes.windows(piece.len()).any(|w| w == piece.as_bytes()));
        let text = String::from_utf8_lossy(&came.bytes).into_owned();
        assert!(text.contains(piece), "{piece:?} came not at once: {}", came.summary());
    }
    drop(sender);
    let rest = read_until(&mut client, AT_ONCE, |bytes| bytes.ends_with(b"0\r\n\r\n"));
    assert!(rest.bytes.ends_with(b"0\r\n\r\n"), "no last chunk: {}", rest.summary());
    is_dropped.recv_timeout(AT_ONCE).expect("the reader is dropped when it has ended");
    assert_sound(service);
}

/// Of known length the same holds.
fn pieces_of_a_known_length_leave_as_they_come(engine: &str) {
    let (sender, messages) = channel::unbounded();
    let (dropped, _is_dropped) = channel::unbounded();
    let service = start(engine::service_on(engine).get("/pieces", move |_| {
        let (messages, dropped) = (messages.clone(), dropped.clone());
        Response::reader(Channel { messages, dropped }, Some(10))
    }));
    let mut client = send(service.address(), get("/pieces", ""));
    let head = read_until(&mut client, AT_ONCE, |bytes| bytes.ends_with(b"\r\n\r\n"));
    assert!(head.status() == 200 && head.bytes.ends_with(b"\r\n\r\n"), "the head came not at once: {}", head.summary());
    for piece in ["first", "final"] {
        sender.send(piece).unwrap();
        let came = read_until(&mut client, AT_ONCE, |bytes| bytes == piece.as_bytes());
        assert_eq!(String::from_utf8_lossy(&came.bytes), piece, "came not at once: {}", came.summary());
    }
    client.write_all(get("/healthz", CLOSE).as_bytes()).unwrap();
    let next = read_to_end(&mut client, LIMIT);
    assert_eq!(next.status(), 200, "the connection goes on after it: {}", next.summary());
    assert_sound(service);
}

/// Gives a few bytes, then waits a little, without end.
struct Ticks {
    dropped: channel::Sender<()>,
}

impl Read for Ticks {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        thread::sleep(Duration::from_millis(50)); // what it waits for: the next event
        into[..5].copy_from_slice(b"tick\n");
        Ok(5)
    }
}

impl Drop for Ticks {
    fn drop(&mut self) {
        let _ = self.dropped.send(());
    }
}

fn a_client_that_has_left_ends_the_reader(engine: &str) {
    let (dropped, is_dropped) = channel::unbounded();
    let service = start(
        engine::service_on(engine).get("/ticks", move |_| Response::reader(Ticks { dropped: dropped.clone() }, None)),
    );
    for leaves in ["closes", "resets"] {
        let mut clients: Vec<_> = (0..10).map(|_| send(service.address(), get("/ticks", ""))).collect();
        for client in &mut clients {
            let first = read_until(client, AT_ONCE, |bytes| bytes.windows(4).any(|w| w == b"tick"));
            assert!(first.looks_like_ticks(), "no event came: {}", first.summary());
        }
        for client in clients {
            if leaves == "resets" {
                socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
            }
            drop(client);
        }
        let began = Instant::now();
        for n in 0..10 {
            let ended = is_dropped.recv_timeout(Duration::from_secs(2));
            assert!(ended.is_ok(), "a client that {leaves}: {n} of 10 readers have ended after {:?}", began.elapsed());
        }
    }
    assert_sound(service);
}

/// A handler that waits for something can ask; so can a reader that waits, by a clone.
fn a_handler_can_ask_whether_its_client_has_left(engine: &str) {
    let (asked, answers) = channel::unbounded();
    let service = start(engine::service_on(engine).get("/waits", move |request| {
        let (client, began) = (request.client(), Instant::now());
        asked.send(client.is_gone()).unwrap();
        while !client.is_gone() && began.elapsed() < LIMIT {
            thread::sleep(Duration::from_millis(10)); // what it does meanwhile
        }
        asked.send(client.is_gone()).unwrap();
    }));
    for leaves in ["closes", "resets"] {
        let client = send(service.address(), get("/waits", ""));
        assert_eq!(answers.recv_timeout(LIMIT), Ok(false), "it is still there");
        if leaves == "resets" {
            socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
        }
        drop(client);
        assert_eq!(answers.recv_timeout(AT_ONCE), Ok(true), "a client that {leaves}");
    }
    assert_sound(service);
}

impl Wire {
    fn looks_like_ticks(&self) -> bool {
        self.bytes.windows(4).any(|w| w == b"tick")
    }
}

fn a_handler_that_is_slower_than_its_timeout_is_a_503(engine: &str) {
    let service = start(engine::service_on(engine).request_timeout(Duration::from_secs(1)).get("/too-slow", |_| {
        thread::sleep(Duration::from_millis(2500));
        "late"
    }));
    let wire = ask(service.address(), get("/too-slow", "X-Request-Id: too-slow-1\r\n"), LIMIT);
    assert_eq!(wire.status(), 503, "{}", wire.summary());
    assert!(wire.took < Duration::from_millis(2400), "it came only when the handler was done: {}", wire.summary());
    logged::wait_for("a warning that names the route", LIMIT, |line| {
        line.level == Level::Warn && line.text.contains("/too-slow") && line.text.contains("too-slow-1")
    });
    let access = logged::wait_for("the access line", LIMIT, |line| {
        line.target == "allout::access" && line.text.contains("too-slow-1")
    });
    assert!(access.text.contains("status=503"), "{}", access.text);
    assert_sound(service);
}

/// Sends a head that announces `length` bytes, and then a piece of the body every `pause`.
fn trickle(addr: SocketAddr, path: &str, pieces: usize, piece: &[u8], pause: Duration) -> TcpStream {
    let length = pieces * piece.len();
    let mut stream = send(addr, format!("POST {path} HTTP/1.1\r\nHost: a\r\n{CLOSE}Content-Length: {length}\r\n\r\n"));
    for _ in 0..pieces {
        thread::sleep(pause); // the rate of this client
        if stream.write_all(piece).is_err() {
            break; // the service has ended it; what it said is read by the caller
        }
    }
    stream
}

fn count_body(request: &mut Request) -> Result<String, HandlerError> {
    let n = io::copy(&mut request.body(), &mut io::sink())?;
    Ok(format!("{n} bytes"))
}

fn a_body_that_keeps_coming_is_not_cut_and_one_that_stops_is_a_408(engine: &str) {
    let service = start(
        engine::service_on(engine)
            .request_timeout(Duration::from_secs(1))
            .idle_timeout(Duration::from_secs(1))
            .post("/up", count_body),
    );
    // 100 KB a second for 2.5 s.
    let mut steady = trickle(service.address(), "/up", 25, &[b'x'; 10_000], Duration::from_millis(100));
    let wire = read_to_end(&mut steady, LIMIT);
    let text = String::from_utf8_lossy(wire.body()).into_owned();
    assert_eq!((wire.status(), text.as_str()), (200, "250000 bytes"), "{}", wire.summary());
    // Some, and then nothing.
    let mut stalled = send(service.address(), "POST /up HTTP/1.1\r\nHost: a\r\nContent-Length: 2000\r\n\r\nsome");
    let wire = read_to_end(&mut stalled, LIMIT);
    assert_eq!((wire.status(), wire.end), (408, End::Eof), "{}", wire.summary());
    assert!(wire.took < Duration::from_secs(3), "{}", wire.summary());
    assert_sound(service);
}

fn a_response_that_keeps_being_read_is_not_cut_and_one_that_is_not_is_ended(engine: &str) {
    let (dropped, is_dropped) = channel::unbounded();
    let service = start(
        engine::service_on(engine).request_timeout(Duration::from_secs(1)).idle_timeout(Duration::from_secs(1)).get(
            "/down",
            {
                move |_| {
                    let reader = Gives { left: 64 << 20, then: Then::End };
                    Response::reader(TellsDrop { reader, dropped: dropped.clone() }, Some(64 << 20))
                }
            },
        ),
    );
    // 20 MB a second: as much as takes 3.2 s.
    let mut steady = send(service.address(), get("/down", CLOSE));
    steady.set_read_timeout(Some(LIMIT)).unwrap();
    let (mut chunk, mut received, began) = (vec![0_u8; 1 << 20], 0, Instant::now());
    loop {
        match steady.read(&mut chunk) {
            Ok(0) => break,
            Ok(n) => received += n,
            Err(e) => panic!("cut after {received} bytes and {:?}: {e}", began.elapsed()),
        }
        let due = Duration::from_secs_f64(f64::from(u32::try_from(received).unwrap()) / 20e6);
        thread::sleep(due.saturating_sub(began.elapsed())); // the rate of this client
    }
    assert!(received > 64 << 20, "cut after {received} bytes and {:?}", began.elapsed());
    is_dropped.recv_timeout(AT_ONCE).expect("the reader is dropped");
    // Not read at all: ended in about the timeout.
    let _silent = send(service.address(), get("/down", CLOSE));
    let ended = is_dropped.recv_timeout(Duration::from_secs(4));
    assert!(ended.is_ok(), "a response that is not read is not ended within 4 s");
    assert_sound(service);
}

struct TellsDrop<R> {
    reader: R,
    dropped: channel::Sender<()>,
}

impl<R: Read> Read for TellsDrop<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.reader.read(into)
    }
}

impl<R> Drop for TellsDrop<R> {
    fn drop(&mut self) {
        let _ = self.dropped.send(());
    }
}

/// Every way to read a body, each as a route.
fn uploads(service: Service, kinds: &channel::Sender<io::ErrorKind>) -> Service {
    let kinds = kinds.clone();
    service
        .post("/bytes", Request::bytes)
        .post("/text", Request::text)
        .post("/bytes-by-question-mark", |request| -> Result<Vec<u8>, HandlerError> { Ok(request.bytes()?) })
        .post("/copy-by-question-mark", count_body)
        .post("/discard", |request| request.discard_body(1 << 20))
        .post("/hidden", |request| request.bytes().map_err(|error| error.to_string())) // an error without a source
        .post("/own", move |request| -> Result<String, HandlerError> {
            let mut text = String::new();
            let result = request.body().read_to_string(&mut text);
            if let Err(error) = &result {
                kinds.send(error.kind()).unwrap();
            }
            result?;
            Ok(text)
        })
}

const UPLOADS: [&str; 7] =
    ["/bytes", "/text", "/bytes-by-question-mark", "/copy-by-question-mark", "/discard", "/hidden", "/own"];
const FRAMINGS: [(&str, &str); 2] =
    [("length", "Content-Length: 5000\r\n\r\nab"), ("chunked", "Transfer-Encoding: chunked\r\n\r\n5\r\nab")];

/// No line of the log above info is about this request.
#[track_caller]
fn assert_not_loud(id: &str) {
    let loud: Vec<_> = logged::lines_with(id).into_iter().filter(|line| line.level <= Level::Warn).collect();
    assert!(loud.is_empty(), "a visitor can cause it: {loud:?}");
}

fn an_upload_that_breaks_off_is_a_400_however_it_is_read(engine: &str) {
    let (kinds, kind) = channel::unbounded();
    let service = start(uploads(engine::service_on(engine), &kinds));
    let mut wrong = Vec::new();
    for path in UPLOADS {
        for (framing, rest) in FRAMINGS {
            let id = format!("off{}-{framing}", path.replace('/', "-"));
            let mut client =
                send(service.address(), format!("POST {path} HTTP/1.1\r\nHost: a\r\nX-Request-Id: {id}\r\n{rest}"));
            client.shutdown(Shutdown::Write).unwrap();
            let wire = read_to_end(&mut client, Duration::from_secs(2));
            if wire.status() != 400 || wire.end != End::Eof {
                wrong.push(format!("{path}, {framing}: {}", wire.summary()));
            }
            assert_not_loud(&id);
            if path == "/own" && kind.try_recv() != Ok(io::ErrorKind::UnexpectedEof) {
                wrong.push(format!("{path}, {framing}: not UnexpectedEof"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), UPLOADS.len() * 2, wrong.join("\n"));
    assert_sound(service);
}

fn an_upload_that_times_out_is_a_408_however_it_is_read(engine: &str) {
    let (kinds, kind) = channel::unbounded();
    let service = start(
        uploads(engine::service_on(engine).request_timeout(Duration::from_secs(1)), &kinds)
            .idle_timeout(Duration::from_secs(1)),
    );
    // All at once: each waits for its timeout.
    let clients: Vec<_> = UPLOADS
        .into_iter()
        .flat_map(|path| FRAMINGS.map(|(framing, rest)| (path, framing, rest)))
        .map(|(path, framing, rest)| {
            let id = format!("late{}-{framing}", path.replace('/', "-"));
            let head = format!("POST {path} HTTP/1.1\r\nHost: a\r\nX-Request-Id: {id}\r\n{rest}");
            (path, framing, id, send(service.address(), head))
        })
        .collect();
    let mut wrong = Vec::new();
    for (path, framing, id, mut client) in clients {
        let wire = read_to_end(&mut client, LIMIT);
        if wire.status() != 408 || wire.end != End::Eof {
            wrong.push(format!("{path}, {framing}: {}", wire.summary()));
        }
        assert_not_loud(&id);
    }
    let told: Vec<_> = kind.try_iter().collect();
    if told != [io::ErrorKind::TimedOut; 2] {
        wrong.push(format!("the io::Errors say {told:?}"));
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), UPLOADS.len() * 2, wrong.join("\n"));
    assert_sound(service);
}

/// RFC 9110, section 8.6: no Content-Length in 1xx and 204; in a 304 only the one that a 200 would have.
fn responses_without_a_body_say_no_length(engine: &str) {
    let service = start(
        engine::service_on(engine)
            .get("/204", |_| ())
            .get("/304", |_| 304)
            .get("/205", |_| Response::empty(205))
            .get("/304-with-a-text", |_| (304, "not modified")),
    );
    for (path, status) in [("/204", 204), ("/304", 304), ("/304-with-a-text", 304)] {
        let wire = ask(service.address(), get(path, CLOSE), LIMIT);
        assert_eq!((wire.status(), wire.body()), (status, &b""[..]), "{path}: {}", wire.summary());
        assert_eq!(wire.header("transfer-encoding"), None, "{path}: {}", wire.head());
        // The text of a 304 would be what a 200 has, and then its length may be told.
        let says_length = wire.header("content-length");
        assert!(says_length.is_none() || (path == "/304-with-a-text" && says_length.as_deref() != Some("0")), "{path}");
    }
    // RFC 9110, section 15.3.6: a 205 has no content, and must say so.
    let reset = ask(service.address(), get("/205", CLOSE), LIMIT);
    assert_eq!((reset.status(), reset.header("content-length").as_deref()), (205, Some("0")), "{}", reset.head());
    // Behind one the connection goes on.
    let two = ask(service.address(), [get("/204", ""), get("/healthz", CLOSE)].concat(), LIMIT);
    assert!(String::from_utf8_lossy(&two.bytes).contains("\r\n\r\nHTTP/1.1 200 OK"), "{}", two.summary());
    assert_sound(service);
}

/// HEAD asks for the head of a GET, and the reader is not read for it.
fn a_head_does_not_read_the_reader(engine: &str) {
    struct CountsReads(Arc<AtomicUsize>);
    impl Read for CountsReads {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Err(io::Error::other("a HEAD has no body"))
        }
    }
    let reads = Arc::new(AtomicUsize::new(0));
    let service = start(
        engine::service_on(engine)
            .get("/known", {
                let reads = Arc::clone(&reads);
                move |_| Response::reader(CountsReads(Arc::clone(&reads)), Some(10))
            })
            .get("/unknown", {
                let reads = Arc::clone(&reads);
                move |_| Response::reader(CountsReads(Arc::clone(&reads)), None)
            }),
    );
    for path in ["/known", "/unknown"] {
        let wire = ask(service.address(), get(path, CLOSE).replacen("GET", "HEAD", 1), LIMIT);
        assert_eq!((wire.status(), wire.body(), wire.end), (200, &b""[..], End::Eof), "{path}: {}", wire.summary());
    }
    assert_eq!(reads.load(Ordering::Relaxed), 0, "reads for a HEAD");
    assert_sound(service);
}

/// A test for each way to fall short.
macro_rules! readers {
    ($($name:ident: $path:literal;)*) => {
        $(fn $name(engine: &str) {
            a_response_whose_reader_fails_never_looks_whole_and_ends_at_once(engine, $path, &MANNERS);
        })*
    };
}

readers! {
    a_reader_that_fails_at_once: "/fails-at-once";
    a_reader_that_fails_early: "/fails-early";
    a_reader_that_fails_late: "/fails-late";
    a_reader_of_known_length_that_fails: "/fails-of-known-length";
    a_reader_that_is_short: "/short";
    a_reader_of_known_length_that_is_empty: "/empty-of-known-length";
    a_reader_that_panics: "/panics";
    a_reader_of_known_length_that_panics: "/panics-of-known-length";
}

tests_of_both_engines! {
    a_reader_that_fails_at_once;
    a_reader_that_fails_early;
    a_reader_that_fails_late;
    a_reader_of_known_length_that_fails;
    a_reader_that_is_short;
    a_reader_of_known_length_that_is_empty;
    a_reader_that_panics;
    a_reader_of_known_length_that_panics;
    a_response_to_http_1_0_whose_reader_fails_never_looks_whole;
    a_response_to_http_1_0_that_its_client_does_not_take_in_time_never_looks_whole;
    a_response_that_was_cut_is_logged_as_cut;
    the_access_line_says_what_happened_in_its_message;
    a_reader_that_panics_costs_its_connection_alone;
    head_and_pieces_leave_as_they_come;
    pieces_of_a_known_length_leave_as_they_come;
    a_client_that_has_left_ends_the_reader;
    a_handler_can_ask_whether_its_client_has_left;
    a_handler_that_is_slower_than_its_timeout_is_a_503;
    a_body_that_keeps_coming_is_not_cut_and_one_that_stops_is_a_408;
    a_response_that_keeps_being_read_is_not_cut_and_one_that_is_not_is_ended;
    an_upload_that_breaks_off_is_a_400_however_it_is_read;
    an_upload_that_times_out_is_a_408_however_it_is_read;
    responses_without_a_body_say_no_length;
    a_head_does_not_read_the_reader;
}
