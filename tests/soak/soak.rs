//! Mixes all hostile clients against a real binary, for as long as it is told, and watches what is left of the service:
//!
//! ```text
//! cargo run --release --example soak -- 600 target/release/allout
//! ```
//!
//! The first argument is the length in seconds (600), the second the binary (`target/release/allout`). Every ten seconds,
//! and at the end, once everyone has left, it prints threads, descriptors, resident memory, and how the *others* fared:
//! fresh clients that ask for `/healthz` and `/` all the time. Two more keep, pipeline, reset and reuse connections, and
//! check that each response is the one to their request, by its token (`../load/token.rs`). Exit code 1: one of the
//! others was not answered with a 200, one response was another's, or the end is not where it was after the first
//! minute, or the process ended.

#[path = "../load/http.rs"]
mod http;
#[path = "../load/progress.rs"]
mod progress;
#[path = "../load/token.rs"]
mod token;

use http::Connection;
use progress::Line;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Shutdown, SocketAddr};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use token::{Mixed, Tally};

const GET: &str = "GET / HTTP/1.1\r\nHost: soak.test\r\n\r\n";
const SLOW: &str = "GET /timeout HTTP/1.1\r\nHost: soak.test\r\n\r\n";
/// How long others may wait before they count as hurt.
const PATIENCE: Duration = Duration::from_secs(2);
/// Shorter than the defaults, so that a short run sees them pass.
const OPTIONS: [&str; 10] = [
    "--listen",
    "127.0.0.1:0",
    "--idle-timeout",
    "3s",
    "--request-timeout",
    "5s",
    "--timeout-delay",
    "500ms",
    "--max-connections",
    "1500",
];

/// The process under test; killed when dropped.
struct Target {
    child: Child,
    addr: SocketAddr,
}

impl Target {
    fn start(binary: &str) -> Result<Target, String> {
        let mut child = Command::new(binary)
            .args(OPTIONS)
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| format!("cannot start {binary}: {e}"))?;
        let stderr = child.stderr.take().ok_or("stderr is not piped")?;
        let mut lines = BufReader::new(stderr).lines().map_while(Result::ok);
        let addr = lines
            .by_ref()
            .find_map(|line| line.split("listening on http://").nth(1)?.trim().parse().ok())
            .ok_or("it does not listen")?;
        thread::spawn(move || lines.for_each(|line| eprintln!("    {line}")));
        Ok(Target { child, addr })
    }

    fn number(&self, name: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        value.and_then(|value| value.split_whitespace().next()?.parse().ok()).unwrap_or(0)
    }

    fn state(&self) -> State {
        let descriptors = fs::read_dir(format!("/proc/{}/fd", self.child.id())).map_or(0, Iterator::count);
        State { threads: self.number("Threads"), descriptors, resident_kib: self.number("VmRSS") }
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may have ended
        let _ = self.child.wait();
    }
}

/// What the process holds.
#[derive(Clone, Copy, Debug)]
struct State {
    threads: u64,
    descriptors: usize,
    resident_kib: u64,
}

impl State {
    /// Whether it is where it was, give or take what an allocator keeps and a pool that is about to shrink.
    fn is_like(self, before: State) -> bool {
        self.threads <= before.threads + 8
            && self.descriptors <= before.descriptors + 16
            && self.resident_kib <= before.resident_kib + before.resident_kib / 2 + 8 * 1024
    }
}

/// How the others fare.
#[derive(Default)]
struct Others {
    /// They pause: any traffic keeps tiny_http's idle threads from leaving, since it wakes them in turn.
    pausing: AtomicBool,
    failed: AtomicU64,
    took: Mutex<Vec<Duration>>,
    /// Of the clients that check tokens.
    tokens: Mutex<Tally>,
}

impl Others {
    fn ask(&self, addr: SocketAddr, stop: &AtomicBool) {
        for path in ["/healthz", "/"].into_iter().cycle() {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            if self.pausing.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(50));
                continue;
            }
            let began = Instant::now();
            let request = format!("GET {path} HTTP/1.1\r\nHost: soak.test\r\nConnection: close\r\n\r\n");
            let status = Connection::open(addr, PATIENCE).map_err(|e| e.to_string()).and_then(|mut connection| {
                connection.send(request.as_bytes()).map_err(|(_, e)| e.to_string())?;
                Ok(connection.read_response("GET", PATIENCE).map_err(|e| e.to_string())?.status)
            });
            if status != Ok(200) {
                self.failed.fetch_add(1, Ordering::Relaxed);
                println!("  {path}: {status:?} after {:?}", began.elapsed());
            } else if let Ok(mut took) = self.took.lock() {
                took.push(began.elapsed());
            }
            thread::sleep(Duration::from_millis(10)); // a rate, so that the soak is not a load test
        }
    }

    /// Checks that what comes is what was asked for.
    fn check_tokens(&self, addr: SocketAddr, seed: u64, stop: &AtomicBool) {
        let mut client = Mixed::new(addr, seed, PATIENCE);
        while !stop.load(Ordering::Relaxed) {
            if self.pausing.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(50));
                continue;
            }
            client.connect_and_ask();
            let tally = std::mem::take(&mut client.tally);
            for wrong in &tally.wrong {
                println!("  WRONG: {wrong}");
            }
            if let Ok(mut tokens) = self.tokens.lock() {
                tokens.add(tally);
            }
            thread::sleep(Duration::from_millis(10)); // a rate, so that the soak is not a load test
        }
    }

    /// How many responses were another's.
    fn wrong(&self) -> usize {
        self.tokens.lock().map_or(1, |tokens| tokens.wrong.len())
    }

    /// How many were answered, half of them within, and all but one in a hundred within.
    fn summary(&self) -> String {
        let mut took = self.took.lock().map(|took| took.clone()).unwrap_or_default();
        took.sort_unstable();
        let at = |part: usize| took.get((took.len() * part / 100).min(took.len().saturating_sub(1))).copied();
        let (half, most) = (at(50).unwrap_or_default(), at(99).unwrap_or_default());
        let failed = self.failed.load(Ordering::Relaxed);
        let tokens = self.tokens.lock().map_or_else(|e| e.to_string(), |tokens| tokens.to_string());
        format!("others: {} answered, {failed} not, p50 {half:.1?}, p99 {most:.1?}; tokens: {tokens}", took.len())
    }
}

fn open(addr: SocketAddr) -> Option<Connection> {
    Connection::open(addr, PATIENCE).ok()
}

fn many(addr: SocketAddr, number: usize, say: impl Fn(usize) -> String) -> Vec<Connection> {
    let mut all: Vec<_> = (0..number).filter_map(|_| open(addr)).collect();
    for (n, connection) in all.iter_mut().enumerate() {
        let _ = connection.send(say(n).as_bytes()); // it may be closed by now
    }
    all
}

fn read_responses(all: &mut [Connection]) {
    for connection in all {
        let _ = connection.read_response("GET", PATIENCE);
    }
}

fn stream(addr: SocketAddr, prefix: &str, unit: &str, span: Duration) {
    let until = Instant::now() + span;
    while Instant::now() < until {
        let Some(mut stream) = open(addr).and_then(|c| c.stream().try_clone().ok()) else { continue };
        let _ = stream.set_write_timeout(Some(Duration::from_millis(300)));
        let mut sent = stream.write_all(prefix.as_bytes());
        while sent.is_ok() && Instant::now() < until {
            sent = stream.write_all(unit.as_bytes());
        }
    }
}

fn leave(connection: &Connection, how: usize) {
    match how % 3 {
        0 => {
            let _ = socket2::SockRef::from(connection.stream()).set_linger(Some(Duration::ZERO));
        }
        1 => {
            let _ = connection.stream().shutdown(Shutdown::Write);
        }
        _ => {}
    }
}

/// One hostile client, of its kind.
type Row = fn(SocketAddr);

const ROWS: [(&str, Row); 11] = [
    ("bursts", |addr| read_responses(&mut many(addr, 200, |_| GET.to_owned()))),
    ("silent", |addr| {
        let _all = many(addr, 100, |n| "GET / HTTP/1.1\r\nX: "[..n % 19].to_owned());
        thread::sleep(Duration::from_secs(2));
    }),
    ("endless headers", |addr| stream(addr, "GET / HTTP/1.1\r\nX: ", &"1".repeat(65_536), Duration::from_secs(1))),
    ("endless behind", |addr| stream(addr, &format!("{SLOW}GET /"), &"1".repeat(65_536), Duration::from_secs(1))),
    ("bodies that never come", |addr| {
        let head = "POST / HTTP/1.1\r\nHost: a\r\n";
        let rest = ["Content-Length: 5000\r\n\r\na", "Transfer-Encoding: chunked\r\n\r\n5\r\na"];
        read_responses(&mut many(addr, 32, |n| format!("{head}{}", rest[n % 2])));
    }),
    ("pipelines", |addr| {
        let mut all = many(addr, 2, |_| format!("{SLOW}{}", GET.repeat(500)));
        (0..501).for_each(|_| read_responses(&mut all));
    }),
    ("never reads", |addr| stream(addr, "", &GET.repeat(200), Duration::from_secs(1))),
    ("slow requests", |addr| read_responses(&mut many(addr, 200, |_| SLOW.to_owned()))),
    ("announced lengths", |addr| {
        let lengths = ["1025", "1048577", "100000000000", "18446744073709551615", "18446744073709551616"];
        let say = |n: usize| format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\na", lengths[n % 5]);
        many(addr, 60, say).iter().enumerate().for_each(|(n, connection)| leave(connection, n));
    }),
    ("resets", |addr| {
        let all = ["", "GE", GET, SLOW, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5000\r\n\r\na"];
        let all = many(addr, 60, |n| all[n % 5].to_owned());
        all.iter().enumerate().for_each(|(n, connection)| leave(connection, n / 5));
    }),
    ("refusals", |addr| {
        let all = ["GET / HTTP/1.1\r\n\r\n", "GET * HTTP/1.1\r\nHost: a\r\n\r\n", "G(T / HTTP/1.1\r\nHost: a\r\n\r\n"];
        read_responses(&mut many(addr, 60, |n| format!("{}{GET}", all[n % 3])));
    }),
];

/// Waits until what the rows left behind has been closed and the pools have shrunk: timeouts of 5 s, patience of 5 s.
fn settled(target: &Target, others: &Others) -> State {
    others.pausing.store(true, Ordering::Relaxed);
    let until = Instant::now() + Duration::from_secs(40);
    while Instant::now() < until && (target.state().threads > 16 || target.state().descriptors > 32) {
        thread::sleep(Duration::from_millis(200));
    }
    others.pausing.store(false, Ordering::Relaxed);
    target.state()
}

fn run(length: Duration, binary: &str) -> Result<bool, String> {
    let mut target = Target::start(binary)?;
    let (addr, others, done) = (target.addr, Others::default(), AtomicBool::new(false));
    let began = Instant::now();
    println!("at the start: {:?}", target.state());
    let (before, after) = thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| others.ask(addr, &done));
        }
        for seed in 1..=2 {
            let (others, done) = (&others, &done);
            scope.spawn(move || others.check_tokens(addr, seed, done));
        }
        let first = length.min(Duration::from_secs(60));
        let mut line = Line::new(length);
        let before = mix(&target, &others, began, first, &mut line);
        line.clear();
        println!("after the first minute, settled: {before:?}; {}", others.summary());
        let after = if length > first { mix(&target, &others, began, length, &mut line) } else { before };
        done.store(true, Ordering::Relaxed);
        (before, after)
    });
    let alive = target.child.try_wait().is_ok_and(|status| status.is_none());
    let unhurt = others.failed.load(Ordering::Relaxed) == 0;
    println!("at the end, settled: {after:?}; {}", others.summary());
    let wrong = others.wrong();
    let settled = after.is_like(before);
    println!("alive: {alive}, others unhurt: {unhurt}, wrong answers: {wrong}, as after the first minute: {settled}");
    Ok(alive && unhurt && wrong == 0 && settled)
}

/// Runs all rows over and over until `end` after `began`; then waits until what they left has gone.
fn mix(target: &Target, others: &Others, began: Instant, end: Duration, line: &mut Line) -> State {
    let addr = target.addr;
    thread::scope(|scope| {
        for (_, row) in ROWS {
            scope.spawn(move || {
                while began.elapsed() < end {
                    row(addr);
                    thread::sleep(Duration::from_millis(500)); // a mix, not a race for the processors
                }
            });
        }
        let mut next = began.elapsed();
        while began.elapsed() < end {
            if began.elapsed() >= next {
                line.clear();
                println!("{:4} s: {:?}; {}", began.elapsed().as_secs(), target.state(), others.summary());
                next += Duration::from_secs(10);
            }
            line.show_on_terminal(format_args!("{} threads", target.number("Threads")));
            thread::sleep(Duration::from_millis(100));
        }
    });
    settled(target, others)
}

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let seconds = args.next().map_or(Ok(600), |text| text.parse());
    let binary = args.next().unwrap_or_else(|| "target/release/allout".to_owned());
    let result = match seconds {
        Ok(seconds) => run(Duration::from_secs(seconds), &binary),
        Err(e) => Err(format!("the length in seconds: {e}")),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("soak: {e}");
            ExitCode::FAILURE
        }
    }
}
