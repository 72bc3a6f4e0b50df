//! How fast it is: both engines of allout beside a bare thread for each connection (`thread`, the bound for any server that
//! has one), beside bare `tiny_http` (`bare`, the bound for any server on it), and beside axum, actix-web and Go where
//! `tests/bench/versus.sh` has built them.
//!
//! `cargo bench` runs all parts, `cargo bench -- steady stop` some. `--seconds N` is the length of each measurement,
//! `--rounds N` how often it is repeated, `--peers DIR` where the peers are (`target/peers`), `--only NAME,NAME` which
//! servers. In each round the servers take turns, so that a machine that is slower for a while is slower for all; medians
//! are printed. The client has one thread, so that on two cores the server has the other.

mod client;
#[path = "../load/progress.rs"]
mod progress;
mod servers;

use client::{connect_and_reset, load};
use progress::Line;
use servers::{Kind, Server, ask, serve};
use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const CONNECTIONS: [usize; 4] = [1, 16, 64, 256];
/// Idle connections whose memory is measured.
const IDLE: u32 = 10_000;
/// Time that the blocking handler sleeps.
const SLEEP: Duration = Duration::from_millis(1);

struct Plan {
    parts: Vec<String>,
    seconds: u64,
    rounds: usize,
    stops: usize,
    peers: PathBuf,
    only: Option<Vec<String>>,
}

impl Plan {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Plan> {
        let peers = std::env::var("PEERS").map_or_else(|_| "target/peers".into(), PathBuf::from);
        let mut plan = Plan { parts: Vec::new(), seconds: 1, rounds: 3, stops: 10, peers, only: None };
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or_else(|| format!("{argument} needs a value"));
            match argument.as_str() {
                "--seconds" => plan.seconds = value()?.parse()?,
                "--rounds" => plan.rounds = value()?.parse()?,
                "--stops" => plan.stops = value()?.parse()?,
                "--peers" => plan.peers = value()?.into(),
                "--only" => plan.only = Some(value()?.split(',').map(String::from).collect()),
                "--bench" => {} // cargo says so
                part if PARTS.iter().any(|(name, _)| *name == part) => plan.parts.push(argument),
                other => return Err(format!("unknown: {other}").into()),
            }
        }
        Ok(plan)
    }

    /// The servers, started, with these options for allout.
    fn start(&self, options: &[&str]) -> Result<Vec<Server>> {
        Ok(self.kinds(options)?.iter().map(Kind::start).collect::<io::Result<_>>()?)
    }

    fn kinds(&self, options: &[&str]) -> io::Result<Vec<Kind>> {
        let is_wanted = |kind: &Kind| self.only.as_ref().is_none_or(|only| only.iter().any(|name| name == kind.name));
        Ok(Kind::all(&self.peers, options)?.into_iter().filter(is_wanted).collect())
    }
}

/// A part of the measurements: its rows.
type Part = fn(&Plan) -> Result<Vec<Row>>;

const PARTS: [(&str, Part); 7] = [
    ("steady", steady),
    ("connect", connect),
    ("memory", memory),
    ("idle", idle),
    ("stop", stop),
    ("blocking", blocking),
    ("receivers", receivers),
];

/// What was measured, of each server.
struct Row {
    what: String,
    figures: Vec<(&'static str, f64)>,
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [first, name, address] = arguments.as_slice() {
        if first == "serve" {
            return Ok(serve(name, address)?);
        }
    }
    let plan = Plan::parse(arguments.into_iter())?;
    // Clients need descriptors, and servers inherit the limit.
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })?;
    let client = if client::has_wrk() { "wrk -t1" } else { "a client of its own, without wrk" };
    println!("{} cores, {client}", thread::available_parallelism()?);
    for (name, part) in PARTS {
        if plan.parts.is_empty() || plan.parts.iter().any(|wanted| wanted == name) {
            print_table(name, &part(&plan)?);
        }
    }
    Ok(())
}

fn print_table(part: &str, rows: &[Row]) {
    let Some(first) = rows.first() else { return };
    let mut head = format!("\n| {part} |");
    for (name, _) in &first.figures {
        head = format!("{head} {name} |");
    }
    println!("{head}\n|{}", " --- |".repeat(first.figures.len() + 1));
    for row in rows {
        let mut line = format!("| {} |", row.what);
        for (_, figure) in &row.figures {
            let text = match figure {
                figure if figure.is_nan() => String::new(),
                figure if figure.abs() >= 100.0 => format!("{figure:.0}"),
                figure if figure.abs() >= 10.0 => format!("{figure:.1}"),
                figure => format!("{figure:.2}"),
            };
            line = format!("{line} {text} |");
        }
        println!("{line}");
    }
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Repeats a measurement of several figures, the servers in turn, and takes the medians.
fn in_turn(
    plan: &Plan,
    servers: &[Server],
    what: &[String],
    measure: impl Fn(&Server) -> io::Result<Vec<f64>>,
) -> Result<Vec<Row>> {
    let mut all = vec![vec![Vec::new(); servers.len()]; what.len()];
    let measurements = plan.seconds * u64::try_from(plan.rounds * servers.len())?;
    let mut line = Line::new(Duration::from_secs(measurements));
    for _ in 0..plan.rounds {
        for (at, server) in servers.iter().enumerate() {
            line.show(format_args!("{} {}", server.name, what.first().map_or("", String::as_str)));
            for (of_row, figure) in all.iter_mut().zip(measure(server)?) {
                of_row[at].push(figure);
            }
        }
    }
    line.clear();
    let row = |(what, of_row): (&String, Vec<Vec<f64>>)| Row {
        what: what.clone(),
        figures: servers.iter().map(|server| server.name).zip(of_row.into_iter().map(median)).collect(),
    };
    Ok(what.iter().zip(all).map(row).collect())
}

/// Requests a second, CPU time for each, in microseconds, and p99 in milliseconds.
fn under_load(server: &Server, path: &str, clients: usize, seconds: u64, close: bool) -> io::Result<Vec<f64>> {
    let before = server.cpu_time()?;
    let seen = load(server.address, path, clients, seconds, close)?;
    let cpu = server.cpu_time()?.saturating_sub(before);
    Ok(vec![seen.per_second, cpu.as_secs_f64() * 1e6 / seen.requests, seen.p99])
}

fn steady(plan: &Plan) -> Result<Vec<Row>> {
    let servers = plan.start(&[])?;
    let mut rows = Vec::new();
    for clients in CONNECTIONS {
        let names = ["requests/s", "CPU µs a request", "p99 ms"].map(|what| format!("{clients}: {what}"));
        rows.extend(in_turn(plan, &servers, &names, |server| {
            under_load(server, "/healthz", clients, plan.seconds, false)
        })?);
    }
    // What the load has left: at most, with 256 connections.
    let figures = servers.iter().map(|server| Ok((server.name, server.memory("VmHWM")? / 1024.0)));
    rows.push(Row { what: "resident at most, MiB".into(), figures: figures.collect::<io::Result<_>>()? });
    rows.sort_by_key(|row| row.what.split(": ").nth(1).map(String::from));
    Ok(rows)
}

fn connect(plan: &Plan) -> Result<Vec<Row>> {
    let servers = plan.start(&[])?;
    let names =
        ["requests/s", "CPU µs a request", "p99 ms"].map(|what| format!("a connection each, 16 at once: {what}"));
    let mut rows = in_turn(plan, &servers, &names, |server| under_load(server, "/healthz", 16, plan.seconds, true))?;
    let names = ["connect, ask, reset by one client: connections/s".into(), "CPU µs a connection".into()];
    rows.extend(in_turn(plan, &servers, &names, |server| {
        let before = server.cpu_time()?;
        let span = Duration::from_secs(plan.seconds);
        let per_second = connect_and_reset(server.address, span)?;
        let cpu = server.cpu_time()?.saturating_sub(before);
        Ok(vec![per_second, cpu.as_secs_f64() * 1e6 / (per_second * span.as_secs_f64())])
    })?);
    Ok(rows)
}

fn memory(plan: &Plan) -> Result<Vec<Row>> {
    let mut rows: Vec<_> =
        ["start to the first 200, ms", "resident idle, MiB", "resident for each of 10,000 idle connections, KiB"]
            .map(|what| Row { what: what.into(), figures: Vec::new() })
            .into();
    for kind in plan.kinds(&["--max-connections", "12000"])? {
        let mut started = Vec::new();
        for _ in 0..plan.rounds {
            started.push(kind.start()?.started_within.as_secs_f64() * 1e3);
        }
        let server = kind.start()?;
        let idle = server.memory("VmRSS")?;
        // Connections starve in a burst, and a queued one is answered only when another ends.
        let many = if kind.name == "bare" { 0 } else { IDLE };
        let held = (0..many).map(|_| ask(server.address)).collect::<io::Result<Vec<_>>>();
        let each = held.and_then(|_held| Ok((server.memory("VmRSS")? - idle) / f64::from(many))).unwrap_or(f64::NAN);
        for (row, figure) in rows.iter_mut().zip([median(started), idle / 1024.0, each]) {
            row.figures.push((kind.name, figure));
        }
    }
    Ok(rows)
}

fn idle(plan: &Plan) -> Result<Vec<Row>> {
    let servers = plan.start(&[])?;
    let names = ["CPU ms a second, 256 idle connections".into()];
    let span = Duration::from_secs(plan.seconds.max(2));
    in_turn(plan, &servers, &names, |server| {
        let _held = (0..256).map(|_| ask(server.address)).collect::<io::Result<Vec<_>>>();
        let before = server.cpu_time()?;
        thread::sleep(span);
        Ok(vec![server.cpu_time()?.saturating_sub(before).as_secs_f64() * 1e3 / span.as_secs_f64()])
    })
}

/// By `cargo run --release --example load`, which counts what is lost as well.
fn stop(plan: &Plan) -> Result<Vec<Row>> {
    let load = std::env::current_exe()?.with_file_name("../examples/load");
    if !load.exists() {
        eprintln!("no stops: cargo build --release --example load");
        return Ok(Vec::new());
    }
    let mut rows: Vec<_> = ["SIGTERM to exit under 256 clients, worst, ms", "median, ms", "requests lost in all"]
        .map(|what| Row { what: what.into(), figures: Vec::new() })
        .into();
    let mut line = Line::new(Duration::from_millis(450) * u32::try_from(plan.stops * 5)?);
    for kind in plan.kinds(&[])?.into_iter().filter(|kind| !["thread", "bare"].contains(&kind.name)) {
        let (mut exits, mut lost) = (Vec::new(), 0.0);
        for stop in 1..=plan.stops {
            line.show(format_args!("{}, stop {stop}", kind.name));
            let server = kind.start()?;
            let mut command = Command::new(&load);
            command.arg(server.pid().to_string()).arg(server.address.to_string()).args(["/healthz", "256"]);
            let output = command.args(["--after", "300ms"]).output()?;
            let json: serde_json::Value =
                serde_json::from_str(String::from_utf8(output.stdout)?.lines().last().unwrap_or_default())?;
            let number = |name: &str| json.get(name).and_then(serde_json::Value::as_f64).unwrap_or(f64::NAN);
            exits.push(number("exit_after_cause_ms"));
            lost += number("lost");
            server.wait()?;
        }
        let worst = exits.iter().copied().fold(f64::NAN, f64::max);
        for (row, figure) in rows.iter_mut().zip([worst, median(exits), lost]) {
            row.figures.push((kind.name, figure));
        }
    }
    line.clear();
    Ok(rows)
}

/// A handler that blocks for a millisecond, and pools that bound it.
fn blocking(plan: &Plan) -> Result<Vec<Row>> {
    let began = Instant::now();
    (0..200).for_each(|_| thread::sleep(SLEEP));
    let sleep = began.elapsed().as_secs_f64() / 200.0;
    let mut rows = Vec::new();
    for workers in [8_u32, 16, 32] {
        let count = workers.to_string();
        let options = ["--timeout-delay", "1ms", "--workers", &count];
        let kinds = plan.kinds(&options)?.into_iter().filter(Kind::is_allout);
        let servers = kinds.map(|kind| kind.start()).collect::<io::Result<Vec<_>>>()?;
        let names = [
            format!("{workers} workers, a handler that sleeps 1 ms, 256 connections: requests/s"),
            format!("{workers} workers: part of {:.0}/s, which the sleeps allow", f64::from(workers) / sleep),
        ];
        rows.extend(in_turn(plan, &servers, &names, |server| {
            let seen = load(server.address, "/timeout", 256, plan.seconds, false)?;
            Ok(vec![seen.per_second, seen.per_second * sleep / f64::from(workers)])
        })?);
    }
    Ok(rows)
}

/// What further receivers of the native engine cost.
fn receivers(plan: &Plan) -> Result<Vec<Row>> {
    let kinds = [("1 receiver", "1"), ("2 receivers", "2"), ("4 receivers", "4")]
        .map(|(name, count)| Kind::allout(name, "native", &["--receivers", count]));
    let servers = kinds.iter().map(Kind::start).collect::<io::Result<Vec<_>>>()?;
    let mut rows = Vec::new();
    for clients in [16, 64, 256] {
        let names = ["requests/s", "CPU µs a request", "p99 ms"].map(|what| format!("{clients}: {what}"));
        rows.extend(in_turn(plan, &servers, &names, |server| {
            under_load(server, "/healthz", clients, plan.seconds, false)
        })?);
    }
    Ok(rows)
}
