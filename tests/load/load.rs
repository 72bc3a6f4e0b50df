//! `load PID ADDR PATH CLIENTS`: stops any HTTP server under load and counts what its clients lose.
//!
//! The clients run in a closed loop. After a while the process `PID` gets a signal; the clients go on until the port
//! refuses them or the time is over. Then come the losses, if any, one line of counts, and the same as JSON. The exit
//! code is 1 if a request was lost. What the counts mean stands in `client.rs`.

mod client;
mod http;
mod progress;

use client::{Load, Mode, Running};
use progress::Progress;
use rustix::process::{Pid, Signal};
use std::net::ToSocketAddrs as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// More of them would only hide the counts.
const LOSSES_TOLD: usize = 8;

const USAGE: &str = "\
usage: load PID ADDR PATH CLIENTS [OPTIONS]

  PID      the server; - for none (then nothing is signalled)
  ADDR     where it listens, 127.0.0.1:8088
  PATH     what to ask for
  CLIENTS  how many clients, each with one connection

  --mode keepalive|close|pipeline=N  how they use connections (keepalive)
  --slow-share N       of a hundred requests, so many ask for the slow path (0)
  --slow-path PATH     the slow path (/timeout)
  --signal TERM|INT|QUIT|HUP|none    what the process gets (TERM)
  --after DUR          after how long (500ms)
  --for DUR            how long all of it lasts at most (5s)
  --retry              go on when the port refuses: for servers that restart
  --full-ttl           send packets with a TTL of 255, as some systems do
  --connect-limit DUR  a connection that takes longer counts as waiting (3s)
  --response-limit DUR a response that takes longer is lost (30s)
";

struct Plan {
    load: Load,
    pid: Option<u32>,
    signal: Option<Signal>,
    after: Duration,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|a| a == "--help" || a == "-h") {
        print!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    let plan = match parse(arguments) {
        Ok(plan) => plan,
        Err(what) => {
            eprintln!("load: {what}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match run(plan) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("load: {e}");
            ExitCode::from(2)
        }
    }
}

/// Does it all and says how many requests were lost.
fn run(plan: Plan) -> std::io::Result<u64> {
    let Plan { load, pid, signal, after } = plan;
    let (ends, until) = (!load.retry, Instant::now() + load.lasts);
    let lasts = load.lasts;
    let running = Running::start(load, pid)?;
    let progress = Progress::start(lasts, running.so_far());
    let mut exit_within = None;
    if let Some((pid, signal)) = pid.zip(signal) {
        std::thread::sleep(after);
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(std::io::ErrorKind::InvalidInput)?;
        let mut sent = Ok(());
        running.cause(|| sent = rustix::process::kill_process(pid, signal));
        sent?;
        // A process that goes on under its pid, as after a re-exec, has no end to wait for.
        if ends && signal != Signal::HUP {
            exit_within = Some(until.saturating_duration_since(Instant::now()));
        }
    }
    let report = running.finish(exit_within);
    drop(progress);
    for loss in report.counts.losses.iter().take(LOSSES_TOLD) {
        println!("lost: {loss}");
    }
    println!("{report}");
    println!("{}", report.json());
    Ok(report.counts.lost)
}

fn parse(arguments: Vec<String>) -> Result<Plan, String> {
    let mut positional = Vec::new();
    let mut options = Vec::new();
    let (mut retry, mut full_ttl) = (false, false);
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        if argument == "--retry" {
            retry = true;
        } else if argument == "--full-ttl" {
            full_ttl = true;
        } else if argument.starts_with("--") {
            let (name, value) = match argument.split_once('=') {
                Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                None => (argument, arguments.next()),
            };
            let value = value.ok_or_else(|| format!("{name} needs a value"))?;
            options.push((name, value));
        } else {
            positional.push(argument);
        }
    }
    let [pid, addr, path, clients] = <[String; 4]>::try_from(positional)
        .map_err(|p| format!("four arguments are needed, {} were given", p.len()))?;
    let pid = match pid.as_str() {
        "-" => None,
        pid => Some(pid.parse().map_err(|_| format!("no process id: {pid}"))?),
    };
    let addr = addr
        .trim_start_matches("http://")
        .to_socket_addrs()
        .ok()
        .and_then(|mut all| all.next())
        .ok_or_else(|| format!("no address: {addr}"))?;
    let clients = clients.parse().map_err(|_| format!("no number of clients: {clients}"))?;
    let mut plan = Plan {
        load: Load { path, retry, full_ttl, ..Load::new(addr, clients) },
        pid,
        signal: Some(Signal::TERM),
        after: Duration::from_millis(500),
    };
    for (name, value) in options {
        let bad = || format!("{name} cannot be {value}");
        match name.as_str() {
            "--mode" => plan.load.mode = mode(&value).ok_or_else(bad)?,
            "--slow-share" => plan.load.slow_share = value.parse().ok().filter(|n| *n <= 100).ok_or_else(bad)?,
            "--slow-path" => plan.load.slow_path = value,
            "--signal" => plan.signal = signal(&value).map_err(|()| bad())?,
            "--after" => plan.after = duration(&value).ok_or_else(bad)?,
            "--for" => plan.load.lasts = duration(&value).ok_or_else(bad)?,
            "--connect-limit" => plan.load.connect_limit = duration(&value).ok_or_else(bad)?,
            "--response-limit" => plan.load.response_limit = duration(&value).ok_or_else(bad)?,
            _ => return Err(format!("no such option: {name}")),
        }
    }
    Ok(plan)
}

fn mode(value: &str) -> Option<Mode> {
    match value.split_once('=') {
        None if value == "keepalive" => Some(Mode::KeepAlive),
        None if value == "close" => Some(Mode::Close),
        Some(("pipeline", depth)) => depth.parse().ok().filter(|n| *n > 0).map(Mode::Pipeline),
        _ => None,
    }
}

/// An error is a word that names no signal.
fn signal(value: &str) -> Result<Option<Signal>, ()> {
    match value.trim_start_matches("SIG") {
        "TERM" => Ok(Some(Signal::TERM)),
        "INT" => Ok(Some(Signal::INT)),
        "QUIT" => Ok(Some(Signal::QUIT)),
        "HUP" => Ok(Some(Signal::HUP)),
        "none" => Ok(None),
        _ => Err(()),
    }
}

fn duration(value: &str) -> Option<Duration> {
    let digits = value.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: f64 = digits.parse().ok()?;
    let seconds = match &value[digits.len()..] {
        "ms" => number / 1000.0,
        "s" => number,
        "m" => number * 60.0,
        _ => return None,
    };
    Duration::try_from_secs_f64(seconds).ok().filter(|d| !d.is_zero())
}
