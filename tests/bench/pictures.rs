//! The pictures of the README, made from real runs:
//!
//! ```text
//! cargo run --release --example pictures -- stop stop.svg NAME[@SIGNAL]=COMMAND...
//! cargo run --release --example pictures -- bars bars.svg TABLES PART WHAT TITLE
//! ```
//!
//! `stop` starts each command in turn, `{port}` in it being a free port, has clients ask for `/` in a closed loop, and
//! sends a signal (TERM). Each server is stopped five times (`--runs`); drawn is the run with the median of lost requests:
//! per half a millisecond the requests that were sent then and answered, and those that were lost: sent whole, without a whole response
//! (`../load/client.rs`). The README's picture is of
//!
//! ```text
//! 'allout, tiny-http=target/release/allout --listen 127.0.0.1:{port}'
//! 'allout, native=target/release/allout --listen 127.0.0.1:{port} --engine native'
//! 'Go net/http=./go-server {port}'          # http.Server, Shutdown with 30 s when SIGTERM comes
//! 'axum=./axum-server {port}'               # axum::serve, with_graceful_shutdown when SIGTERM comes
//! 'nginx@QUIT=./nginx.sh {port}'            # daemon off; SIGQUIT is its graceful stop
//! ```
//!
//! `bars` draws rows of a table that `cargo bench` has printed into a file: `bars speed.svg bench.md steady requests/s
//! 'Requests per second'` those of the part `steady` whose names end with `: requests/s`, a group of bars for each.

#[path = "../load/client.rs"]
mod client;
#[path = "pictures/draw.rs"]
mod draw;
#[path = "../load/http.rs"]
mod http;
#[path = "../load/progress.rs"]
mod progress;

use client::{Load, Running};
use draw::{Picture, Row, Table};
use progress::Line;
use rustix::process::{Pid, Signal};
use std::error::Error;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

const USAGE: &str = "\
usage: pictures stop OUT.svg [--runs N] [--clients N] NAME[@SIGNAL]=COMMAND...
       pictures bars OUT.svg TABLES PART WHAT TITLE";

/// Time from the first request to the signal: connections are open by then, and the server is warm.
const BEFORE: Duration = Duration::from_millis(700);

/// Longest time of a run, a server that does not stop included.
const LASTS: Duration = Duration::from_secs(4);

/// A server, and how it is stopped.
struct Server {
    name: String,
    signal: Signal,
    signal_name: String,
    command: String,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let result = match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["stop", out, ..] => stop(out, &words[2..]),
        ["bars", out, tables, part, what, title] => bars(out, tables, (part, what), title),
        _ => Err(USAGE.into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn bars(out: &str, tables: &str, (part, what): (&str, &str), title: &str) -> Result<(), Box<dyn Error>> {
    let text = std::fs::read_to_string(tables).map_err(|error| format!("{tables}: {error}"))?;
    let table = Table::find(&text, part, what, title);
    let table = table.ok_or_else(|| format!("{tables}: no rows \": {what}\" in a table of {part:?}"))?;
    Ok(std::fs::write(out, table.draw())?)
}

fn stop(out: &str, words: &[String]) -> Result<(), Box<dyn Error>> {
    let (mut runs, mut clients, mut servers) = (5_usize, 32_usize, Vec::new());
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--runs" => runs = words.next().ok_or(USAGE)?.parse()?,
            "--clients" => clients = words.next().ok_or(USAGE)?.parse()?,
            word => servers.push(server(word)?),
        }
    }
    if servers.is_empty() || runs == 0 {
        return Err(USAGE.into());
    }
    let mut line = Line::new((BEFORE * 2) * u32::try_from(runs * servers.len())?);
    let mut rows = Vec::new();
    for server in &servers {
        let mut all = Vec::new();
        for run in 1..=runs {
            line.show(format_args!("{}, stop {run} of {runs}", server.name));
            all.push(run_once(server, clients).map_err(|error| format!("{}: {error}", server.name))?);
        }
        all.sort_by_key(|run: &Run| run.lost);
        let (least, most) = (all[0].lost, all[all.len() - 1].lost);
        let median = all.swap_remove(runs / 2);
        line.clear();
        println!(
            "{}: lost {least} to {most} in {runs} stops, drawn {}; exit {:?}",
            server.name, median.lost, median.exit
        );
        rows.push(Row {
            name: server.name.clone(),
            signal: server.signal_name.clone(),
            lost: (least, most),
            exit: median.exit.map(|exit| exit.as_secs_f64() * 1000.0),
            events: median.events,
        });
    }
    Ok(std::fs::write(out, Picture { runs, clients, machine: machine(), rows }.draw())?)
}

/// `Linux 6.18, 2 cores, 2026-11-26`.
fn machine() -> String {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let version: Vec<&str> = kernel.trim().split(['.', '-']).take(2).collect();
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let date = Command::new("date").arg("+%F").output().map(|output| output.stdout).unwrap_or_default();
    let date = String::from_utf8_lossy(&date).trim().to_owned();
    format!("Linux {}, {cores} cores, {date}", version.join("."))
}

fn server(word: &str) -> Result<Server, Box<dyn Error>> {
    let (name, command) = word.split_once('=').ok_or_else(|| format!("no NAME=COMMAND: {word}"))?;
    let (name, signal_name) = name.split_once('@').unwrap_or((name, "TERM"));
    let signal = match signal_name {
        "TERM" => Signal::TERM,
        "QUIT" => Signal::QUIT,
        "INT" => Signal::INT,
        _ => return Err(format!("no signal: {signal_name}").into()),
    };
    Ok(Server { name: name.to_owned(), signal, signal_name: format!("SIG{signal_name}"), command: command.to_owned() })
}

/// What one stop was like.
struct Run {
    lost: u64,
    /// From the signal to the end of the process.
    exit: Option<Duration>,
    /// Of each request when it was sent, in milliseconds after the signal, and whether it was answered.
    events: Vec<(f64, bool)>,
}

/// A process that is killed when it is dropped.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill(); // it has ended as a rule
        let _ = self.0.wait();
    }
}

fn run_once(server: &Server, clients: usize) -> Result<Run, Box<dyn Error>> {
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let command = server.command.replace("{port}", &address.port().to_string());
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("exec {command}")]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let child = Killed(shell.spawn()?);
    wait_for_port(address)?;
    let pid = child.0.id();
    let load = Load { record: true, lasts: LASTS, ..Load::new(address, clients) };
    let running = Running::start(load, Some(pid))?;
    thread::sleep(BEFORE);
    let process = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or("no process id")?;
    let mut sent = Ok(());
    running.cause(|| sent = rustix::process::kill_process(process, server.signal));
    sent?;
    let report = running.finish(Some(LASTS));
    let cause = report.cause.ok_or("no signal was sent")?;
    let after = |at: Instant| match at.checked_duration_since(cause) {
        Some(after) => after.as_secs_f64() * 1000.0,
        None => -cause.duration_since(at).as_secs_f64() * 1000.0,
    };
    let events = report.counts.timeline.iter().map(|(at, answered)| (after(*at), *answered)).collect();
    Ok(Run { lost: report.counts.lost, exit: report.exit_after_cause, events })
}

fn wait_for_port(address: SocketAddr) -> Result<(), Box<dyn Error>> {
    let until = Instant::now() + Duration::from_secs(10);
    while TcpStream::connect(address).is_err() {
        if Instant::now() > until {
            return Err(format!("nothing listens on {address} after 10 s").into());
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
