//! The program as seen from outside: it is started, sent requests and signals, and ended in any case.
//!
//! No sleep here synchronises anything. Every wait is for an event (a line of the log, the end of the process, bytes of a
//! socket), or polls a state until it holds; each has a limit, and says on failure what it waited for and what the process
//! has logged so far.

#![allow(dead_code, unreachable_pub, reason = "shared by several test programs, each of which uses its own part")]

#[macro_use]
pub mod engine;
pub mod folder;
#[path = "../load/http.rs"]
pub mod http;
pub mod place;

use http::{Connection, Response};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fd::OwnedFd;
use rustix::process::{Pid, PidfdFlags, Signal};
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Limit of every wait for something that takes no time: long enough on a machine that is busy with other work.
pub const LIMIT: Duration = Duration::from_secs(20);

/// The stderr of a process so far, and whether it has ended.
#[derive(Debug, Default)]
struct Stderr {
    text: String,
    ended: bool,
}

#[derive(Debug, Default)]
struct Log {
    stderr: Mutex<Stderr>,
    more: Condvar,
}

impl Log {
    fn text(&self) -> String {
        self.stderr.lock().expect("no reader panics").text.clone()
    }
}

/// How to start the program.
#[derive(Debug)]
pub struct Builder {
    command: Command,
    args: Vec<String>,
    listen: bool,
}

impl Builder {
    /// Adds arguments.
    pub fn args<'a>(mut self, args: impl IntoIterator<Item = &'a str>) -> Self {
        for arg in args {
            self.listen |= arg == "--listen" || arg.starts_with("--listen=");
            self.args.push(arg.to_owned());
        }
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.listen |= name == "ALLOUT_LISTEN";
        self.command.env(name, value);
        self
    }

    /// Starts it, and does not wait for anything.
    pub fn spawn(mut self) -> Allout {
        if !self.listen {
            // Before the others, because the last one may be an option without its value.
            self.command.args(["--listen", "127.0.0.1:0"]);
        }
        self.command.args(&self.args);
        let what = format!("{:?}", self.command);
        let started = Instant::now();
        let mut child = self.command.spawn().unwrap_or_else(|e| panic!("cannot start {what}: {e}"));
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).expect("a child has a process id");
        let end = rustix::process::pidfd_open(pid, PidfdFlags::empty()).expect("a child can be watched");
        let log = Arc::new(Log::default());
        let stderr = child.stderr.take().expect("stderr is piped");
        let reader = thread::spawn({
            let log = Arc::clone(&log);
            move || listen(stderr, &log)
        });
        let stdout = child.stdout.take().expect("stdout is piped");
        let stdout = thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = BufReader::new(stdout).read_to_end(&mut bytes);
            String::from_utf8_lossy(&bytes).into_owned()
        });
        Allout { child, pid, end, log, reader: Some(reader), stdout: Some(stdout), what, started, status: None }
    }

    /// Starts it and waits until it serves.
    pub fn start(self) -> Serving {
        let process = self.spawn();
        let line = process.wait_for_line("listening on http://", LIMIT);
        let after = line.split("listening on http://").nth(1).unwrap_or_default();
        // The address ends at a comma, a quote or a bracket, by the log format.
        let addr = after.split(|c: char| c.is_whitespace() || matches!(c, ',' | '"' | '\'' | '/' | '}')).next();
        let addr = addr.unwrap_or_default().trim_end_matches('.');
        let addr = addr.parse().unwrap_or_else(|e| panic!("no address in {line:?}: {e}"));
        Serving { process, addr }
    }
}

fn listen(pipe: impl std::io::Read, log: &Log) {
    let mut pipe = BufReader::new(pipe);
    let mut line = Vec::new();
    loop {
        line.clear();
        let more = pipe.read_until(b'\n', &mut line).is_ok_and(|n| n > 0);
        let mut stderr = log.stderr.lock().expect("no waiter panics with the lock held");
        stderr.text.push_str(&String::from_utf8_lossy(&line));
        stderr.ended = !more;
        log.more.notify_all();
        if !more {
            return;
        }
    }
}

/// A process of the program. Dropping it kills it; in a panic, what it said is printed first.
#[derive(Debug)]
pub struct Allout {
    child: Child,
    pid: Pid,
    /// Becomes readable when the process ends.
    end: OwnedFd,
    log: Arc<Log>,
    reader: Option<JoinHandle<()>>,
    stdout: Option<JoinHandle<String>>,
    /// The command line, for messages.
    what: String,
    started: Instant,
    status: Option<ExitStatus>,
}

impl Allout {
    /// How to start one. The environment of the tests is not passed on where the program would read it.
    #[allow(clippy::new_ret_no_self, reason = "the process comes last")]
    pub fn new() -> Builder {
        Allout::of(Path::new(env!("CARGO_BIN_EXE_allout")))
    }

    /// As `new`, of another binary.
    pub fn of(binary: &Path) -> Builder {
        let mut command = Command::new(binary);
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            let read = ["ALLOUT_", "RUST_", "LISTEN_"].iter().any(|prefix| name.starts_with(prefix));
            if read || name == "NOTIFY_SOCKET" || name == "WATCHDOG_USEC" {
                command.env_remove(name);
            }
        }
        command.env("ALLOUT_ENGINE", engine::ENGINE.name());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Builder { command, args: Vec::new(), listen: false }
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its stderr so far.
    pub fn log(&self) -> String {
        self.log.text()
    }

    /// How often its stderr contains this so far.
    pub fn times(&self, part: &str) -> usize {
        self.log().matches(part).count()
    }

    /// Waits for a line on stderr that contains this.
    pub fn wait_for_line(&self, part: &str, limit: Duration) -> String {
        let deadline = Instant::now() + limit;
        let mut stderr = self.log.stderr.lock().expect("no reader panics");
        loop {
            if let Some(line) = stderr.text.lines().find(|l| l.contains(part)) {
                return line.to_owned();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let why = match (stderr.ended, left.is_zero()) {
                (true, _) => "it says no more".to_owned(),
                (_, true) => format!("not within {limit:?}"),
                _ => String::new(),
            };
            if !why.is_empty() {
                drop(stderr);
                panic!("waited for the line {part:?} of {}: {why}", self.what);
            }
            stderr = self.log.more.wait_timeout(stderr, left).expect("no reader panics").0;
        }
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        rustix::process::pidfd_send_signal(&self.end, signal)
            .unwrap_or_else(|e| panic!("sending {signal:?} to {}: {e}", self.what));
    }

    /// Whether it has not ended yet.
    pub fn is_alive(&self) -> bool {
        !ends_within(&self.end, Duration::ZERO)
    }

    /// Waits for the end of the process. The log is complete then.
    pub fn wait_exit(&mut self, limit: Duration) -> ExitStatus {
        if let Some(status) = self.status {
            return status;
        }
        assert!(ends_within(&self.end, limit), "waited {limit:?} for the end of {}", self.what);
        let status = self.child.wait().expect("the process has ended");
        self.status = Some(status);
        if let Some(reader) = self.reader.take() {
            reader.join().expect("the reader of stderr does not panic");
        }
        status
    }

    /// Waits for the end of the process and asserts its exit code.
    #[track_caller]
    pub fn assert_exit(&mut self, code: i32, limit: Duration) {
        let status = self.wait_exit(limit);
        assert_eq!(status.code(), Some(code), "exit of {}: {status}", self.what);
    }

    /// Sends SIGTERM, and waits for an exit with 0.
    #[track_caller]
    pub fn stop(&mut self) {
        self.signal(Signal::TERM);
        self.assert_exit(0, LIMIT);
    }

    /// Its stdout, once it has ended.
    pub fn stdout(&mut self) -> String {
        self.wait_exit(LIMIT);
        self.stdout.take().map(|t| t.join().expect("the reader of stdout does not panic")).unwrap_or_default()
    }

    /// A number of `/proc/PID/status`, such as `Threads` or `VmRSS` (in kB).
    pub fn status_number(&self, name: &str) -> u64 {
        number_in(&format!("/proc/{}/status", self.id()), name)
    }

    /// How many threads it has.
    pub fn threads(&self) -> u64 {
        self.status_number("Threads")
    }

    /// Its resident memory in KiB.
    pub fn resident(&self) -> u64 {
        self.status_number("VmRSS")
    }

    /// How many descriptors it has open.
    pub fn descriptors(&self) -> usize {
        let path = format!("/proc/{}/fd", self.id());
        fs::read_dir(&path).unwrap_or_else(|e| panic!("{path}: {e}")).count()
    }

    /// Context switches of all its threads together, voluntary and involuntary.
    pub fn context_switches(&self) -> u64 {
        let path = format!("/proc/{}/task", self.id());
        let tasks = fs::read_dir(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
        let of =
            |task: &str| number_in(task, "voluntary_ctxt_switches") + number_in(task, "nonvoluntary_ctxt_switches");
        tasks.flatten().map(|task| of(&task.path().join("status").to_string_lossy())).sum()
    }
}

impl Drop for Allout {
    fn drop(&mut self) {
        let alive = self.is_alive();
        if thread::panicking() {
            let state = match self.status {
                Some(status) => format!("ended: {status}"),
                None if alive => "still runs".to_owned(),
                None => "has ended by itself".to_owned(),
            };
            eprintln!("--- {} (pid {}, started {:?} ago) {state}", self.what, self.id(), self.started.elapsed());
            eprint!("--- it said:\n{}", self.log());
            eprintln!("---");
        }
        if self.status.is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// A process that serves.
#[derive(Debug)]
pub struct Serving {
    process: Allout,
    /// The address at which it serves.
    pub addr: SocketAddr,
}

impl std::ops::Deref for Serving {
    type Target = Allout;
    fn deref(&self) -> &Allout {
        &self.process
    }
}

impl std::ops::DerefMut for Serving {
    fn deref_mut(&mut self) -> &mut Allout {
        &mut self.process
    }
}

impl Serving {
    /// A new connection to it.
    #[track_caller]
    pub fn connect(&self) -> Connection {
        Connection::open(self.addr, LIMIT).unwrap_or_else(|e| panic!("connecting to {}: {e}", self.addr))
    }

    /// One GET on a connection of its own.
    #[track_caller]
    pub fn get(&self, path: &str) -> Response {
        self.ask("GET", path)
    }

    /// One request without a body on a connection of its own.
    #[track_caller]
    pub fn ask(&self, method: &str, path: &str) -> Response {
        self.connect().ask(method, path)
    }

    /// As [`ask`](Serving::ask), with these header lines.
    #[track_caller]
    pub fn ask_with(&self, method: &str, path: &str, headers: &str) -> Response {
        ask_at(self.addr, method, path, headers)
    }

    /// The value of a sample of `/metrics`, by its name and labels as they are printed.
    #[track_caller]
    pub fn sample(&self, name: &str) -> Option<f64> {
        let text = self.get("/metrics").text();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ').map(str::to_owned))?;
        Some(line.parse().unwrap_or_else(|e| panic!("no number: {line:?}: {e}")))
    }

    /// Waits until the process has read everything that was sent on this connection. The kernel's table of sockets
    /// shows this, whatever the program is doing.
    #[track_caller]
    pub fn wait_until_read(&self, connection: &Connection) {
        let client = connection.stream().local_addr().expect("a connected socket has an address");
        wait_until(LIMIT, &format!("the request from {client} to be read"), || unread(self.addr, client) == Some(0));
    }

    /// The same for a connection that the process may close instead.
    #[track_caller]
    pub fn wait_until_read_or_closed(&self, connection: &Connection) {
        let client = connection.stream().local_addr().expect("a connected socket has an address");
        let what = format!("the request from {client} to be read, or its connection to be closed");
        wait_until(LIMIT, &what, || unread(self.addr, client).is_none_or(|bytes| bytes == 0));
    }
}

/// One request on a connection of its own, with these header lines, for a host that is this machine's unless they say
/// another.
#[track_caller]
pub fn ask_at(addr: SocketAddr, method: &str, path: &str, headers: &str) -> Response {
    let mut connection = Connection::open(addr, LIMIT).unwrap_or_else(|e| panic!("connecting to {addr}: {e}"));
    let host = if headers.contains("Host:") { "" } else { "Host: localhost\r\n" };
    connection.send_raw(format!("{method} {path} HTTP/1.1\r\n{host}{headers}\r\n"));
    connection.expect_response(method)
}

/// The calls of tests on a connection. Each panics with what it waited for.
pub trait Speak {
    /// Sends bytes as they are.
    fn send_raw(&mut self, raw: impl AsRef<[u8]>);
    /// The whole response to a request of this method.
    fn expect_response(&mut self, method: &str) -> Response;
    /// Sends a request without a body, for a host that is this machine's: `/shutdown` asks for that.
    fn request(&mut self, method: &str, path: &str);
    /// A request without a body, and its response.
    fn ask(&mut self, method: &str, path: &str) -> Response;
    /// Waits for a clean end, with nothing before it.
    fn expect_end(&mut self);
}

impl Speak for Connection {
    #[track_caller]
    fn send_raw(&mut self, raw: impl AsRef<[u8]>) {
        if let Err((sent, e)) = self.send(raw.as_ref()) {
            panic!("sending failed after {sent} bytes: {e}");
        }
    }

    #[track_caller]
    fn expect_response(&mut self, method: &str) -> Response {
        match self.read_response(method, LIMIT) {
            Ok(response) => response,
            Err(e) => panic!("waited for the response to a {method}, up to {LIMIT:?}: {e}"),
        }
    }

    #[track_caller]
    fn request(&mut self, method: &str, path: &str) {
        self.send_raw(format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
    }

    #[track_caller]
    fn ask(&mut self, method: &str, path: &str) -> Response {
        self.request(method, path);
        match self.read_response(method, LIMIT) {
            Ok(response) => response,
            Err(e) => panic!("{method} {path}, waited up to {LIMIT:?}: {e}"),
        }
    }

    #[track_caller]
    fn expect_end(&mut self) {
        if let Err(e) = self.eof(LIMIT) {
            panic!("waited for the end of the connection: {e}");
        }
    }
}

/// Asks for `/healthz` until it says that the process drains. Each request has a connection of `next`, or is the
/// next on the last one if that was left open.
#[track_caller]
pub fn wait_until_draining(mut next: impl FnMut() -> Connection) -> (Connection, Response) {
    let mut connection = next();
    let mut last = None;
    let deadline = Instant::now() + LIMIT;
    while Instant::now() < deadline {
        let response = connection.ask("GET", "/healthz");
        // The native engine tells clients to close 10 ms after the drain has begun.
        if response.status == 503 && response.closes() {
            return (connection, response);
        }
        assert!(matches!(response.status, 200 | 503), "{response:?}");
        if response.closes() {
            connection = next();
        }
        last = Some(response);
        thread::sleep(Duration::from_millis(1));
    }
    panic!("waited {LIMIT:?} for /healthz to say 503 and close; the last response: {last:?}");
}

/// How to start the program with so many descriptors at most.
pub fn with_limit(descriptors: u64) -> Builder {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("ulimit -n {descriptors} && exec \"$0\" \"$@\""), env!("CARGO_BIN_EXE_allout")]);
    command.env("ALLOUT_ENGINE", engine::ENGINE.name());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Builder { command, args: Vec::new(), listen: false }
}

/// Time in which another client gets its response, whatever some clients do.
pub const OTHERS: Duration = Duration::from_secs(2);

/// Other clients, one after the other, each on a new connection: each gets its 200 in time.
#[track_caller]
pub fn assert_others(server: &Serving, times: usize) {
    for n in 0..times {
        let path = if n % 2 == 0 { "/healthz" } else { "/" };
        let began = Instant::now();
        let mut connection = server.connect();
        connection.request("GET", path);
        match connection.read_response("GET", OTHERS) {
            Ok(response) => assert_eq!(response.status, 200, "{path}: {response:?}"),
            Err(e) => panic!("client {n} asked for {path} and waited {:?}: {e}", began.elapsed()),
        }
    }
}

/// Held by the tests of a program that run one after the other: each measures one server under its own clients, or needs
/// ports and moments that no other test takes.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Polls until it holds.
#[track_caller]
pub fn wait_until(limit: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !holds() {
        assert!(Instant::now() < deadline, "waited {limit:?} for {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

fn ends_within(end: &OwnedFd, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).expect("a limit fits");
        match rustix::event::poll(&mut [PollFd::new(end, PollFlags::IN)], Some(&timeout)) {
            Ok(n) => return n > 0,
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => panic!("watching a process: {e}"),
        }
    }
}

fn number_in(path: &str, name: &str) -> u64 {
    // A thread may end after it was listed.
    let text = fs::read_to_string(path).unwrap_or_default();
    let value = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'));
    value.and_then(|v| v.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// Unread bytes in the server's socket of this connection. `None`: there is no such socket.
fn unread(server: SocketAddr, client: SocketAddr) -> Option<u64> {
    let table = if server.is_ipv4() { "/proc/net/tcp" } else { "/proc/net/tcp6" };
    let table = fs::read_to_string(table).unwrap_or_default();
    let (local, remote) = (in_table(server), in_table(client));
    table.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        if words.next()? != local || words.next()? != remote {
            return None;
        }
        let queues = words.nth(1)?;
        u64::from_str_radix(queues.split(':').nth(1)?, 16).ok()
    })
}

/// An address as the kernel prints it: words of the network's order, read as this machine's numbers.
fn in_table(addr: SocketAddr) -> String {
    let octets = match addr.ip() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let words = octets.chunks_exact(4).map(|w| u32::from_ne_bytes([w[0], w[1], w[2], w[3]]));
    let words: Vec<_> = words.map(|w| format!("{w:08X}")).collect();
    format!("{}:{:04X}", words.concat(), addr.port())
}

/// Where a process listens: the one listening socket among its descriptors.
pub fn listening(pid: u32) -> Option<SocketAddr> {
    let links = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten();
    let inodes: Vec<String> = links
        .filter_map(|l| {
            let target = fs::read_link(l.path()).ok()?.to_string_lossy().into_owned();
            Some(target.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())
        })
        .collect();
    let table = fs::read_to_string("/proc/net/tcp").ok()?;
    let found = table.lines().skip(1).filter_map(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        // 0A: the socket listens.
        if words.get(3) != Some(&"0A") || !inodes.iter().any(|inode| words.get(9) == Some(&inode.as_str())) {
            return None;
        }
        let (ip, port) = words.get(1)?.split_once(':')?;
        let ip = u32::from_str_radix(ip, 16).ok()?.to_ne_bytes();
        Some((ip, u16::from_str_radix(port, 16).ok()?).into())
    });
    // A private socket of the program answers no client.
    let answers = |addr: &SocketAddr| TcpStream::connect_timeout(addr, Duration::from_millis(500)).is_ok();
    found.collect::<Vec<_>>().into_iter().find(answers)
}
