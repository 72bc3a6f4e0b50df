//! A program of a few lines, without a logger: it says where it listens, and why it did not start.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says what it expects by panicking")]

use std::error::Error;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio, Termination};
use std::time::Duration;

use allout::{Outcome, Service};
use rustix::process::{Pid, Signal, kill_process};

/// The variable that makes `a_program` one: where it is to listen.
const LISTEN: &str = "ALLOUT_TEST_LISTEN";

/// The variable that lets the program re-execute itself.
const REEXEC: &str = "ALLOUT_TEST_REEXEC";

/// Printed to stderr by the program behind `run`.
const BEHIND_RUN: &str = "behind run";

/// What `main` is in such a program: `?` works before the service runs, and the outcome is what it returns.
fn program(address: &str) -> Result<Outcome, Box<dyn Error>> {
    let address: SocketAddr = address.parse()?;
    let service = Service::new()
        .get("/", |_| "hello")
        .listen(address)
        .on_listening(|addresses| println!("listening on http://{}", addresses[0]));
    if std::env::var_os(REEXEC).is_none() {
        return Ok(service.without_reexec().run());
    }
    let outcome = service.run();
    eprintln!("{BEHIND_RUN}");
    Ok(outcome)
}

/// Not a test by itself: this program, started once more, with the variable set.
#[test]
fn a_program() {
    if let Ok(address) = std::env::var(LISTEN) {
        // As the runtime does with what `main` returns. The code cannot be looked into.
        let code = format!("{:?}", program(&address).report());
        std::process::exit(i32::from(!code.contains("(0)")));
    }
}

fn command(address: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "a_program", "--nocapture", "--test-threads=1"]).env(LISTEN, address);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn start(address: &str) -> Child {
    command(address).spawn().unwrap()
}

fn stderr(child: Child) -> (bool, String) {
    let output = child.wait_with_output().unwrap();
    (output.status.success(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn it_says_where_it_listens_and_nothing_else_when_all_is_well() {
    let mut child = start("127.0.0.1:0");
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let address =
        lines.find_map(|line| Some(line.split_once("listening on http://")?.1.to_owned())).expect("it listens");
    let mut client = TcpStream::connect(address).unwrap();
    client.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let mut response = String::new();
    client.read_to_string(&mut response).unwrap();
    assert!(response.ends_with("hello"), "{response}");
    let pid = Pid::from_child(&child);
    kill_process(pid, Signal::HUP).unwrap(); // re-exec is off
    kill_process(pid, Signal::TERM).unwrap();
    assert_eq!(stderr(child), (true, String::new()));
}

#[test]
fn it_says_why_it_did_not_start() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let (success, line) = stderr(start(&address.to_string()));
    assert!(
        !success && line.starts_with(&format!("address in use: {address}: ")) && line.lines().count() == 1,
        "{line}"
    );
    let (success, line) = stderr(start("nowhere"));
    assert!(!success && line.contains("AddrParseError"), "{line}");
}

#[test]
fn slips_are_reported_before_anything_starts() {
    let says = |service: Service, expected: &str| {
        let error = service.would_start().expect_err(expected).to_string();
        assert!(error.contains(expected), "{error}");
    };
    let new = || Service::new().listen("127.0.0.1:0");
    says(new().get("/{id:int}", |_| ""), r#"a parameter has no type: "/{id}""#);
    says(new().get("/{a}", |_| "").put("/{b}", |_| ""), r#""/{b}" matches what "/{a}" does"#);
    says(new().workers(0), "workers is 0");
    says(new().request_timeout(Duration::ZERO), "request_timeout is 0");
    says(new().listen(":8088"), "it is written HOST:PORT");
}

#[test]
fn code_behind_run_waits_for_the_end_of_the_last_image_and_never_runs_in_a_preflight() {
    let mut child = command("127.0.0.1:0").env(REEXEC, "1").spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let mut listens = || lines.find_map(|line| Some(line.split_once("listening on http://")?.1.to_owned()));
    let first = listens().expect("it listens");
    let pid = Pid::from_child(&child);
    kill_process(pid, Signal::HUP).unwrap();
    assert_eq!(listens().expect("the next image listens"), first);
    kill_process(pid, Signal::TERM).unwrap();
    assert_eq!(stderr(child), (true, format!("{BEHIND_RUN}\n")));
}
