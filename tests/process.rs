//! Other parents than systemd: a shell, a container's process 1, a supervisor that speaks the same protocol.

#![allow(clippy::expect_used, clippy::panic, reason = "a test says what it expects by panicking")]

mod common;

use common::http::Connection;
use common::{Allout, LIMIT, Speak as _, listening, wait_until};
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

fn pid_of(number: u32) -> Option<Pid> {
    i32::try_from(number).ok().and_then(Pid::from_raw)
}

/// The process that `unshare --fork` has started, and that is process 1 within.
fn only_child(unshare: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children")).ok()?;
    children.trim().parse().ok()
}

/// The program as a shell starts it: `$0` is the program, and stands in `line` with its redirections.
struct Shell {
    child: Child,
    address: SocketAddr,
}

impl Shell {
    fn start(mut command: Command, of: impl Fn(u32) -> Option<u32>) -> Shell {
        let mut child = command.spawn().expect("a shell starts");
        let mut found = None;
        wait_until(LIMIT, "it to listen", || {
            if let Some(status) = child.try_wait().expect("a child can be asked") {
                panic!("it has ended: {status}");
            }
            found = of(child.id()).and_then(listening);
            found.is_some()
        });
        Shell { child, address: found.expect("it listens") }
    }

    fn sh(line: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", line, env!("CARGO_BIN_EXE_allout")]);
        command
    }

    #[track_caller]
    fn answers(&self) {
        let mut connection = Connection::open(self.address, LIMIT).expect("it can be connected to");
        assert_eq!(connection.ask("GET", "/").status, 200);
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("it can be signalled");
    }

    #[track_caller]
    fn ends(&mut self) -> ExitStatus {
        let mut status = None;
        wait_until(LIMIT, "its end", || {
            status = self.child.try_wait().expect("a child can be asked");
            status.is_some()
        });
        status.expect("it has ended")
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn closed_standard_streams_are_no_reason_to_die() {
    for line in ["exec \"$0\" --listen 127.0.0.1:0 2>&-", "exec \"$0\" --listen 127.0.0.1:0 <&- >&- 2>&-"] {
        let mut shell = Shell::start(Shell::sh(line), Some);
        shell.answers();
        shell.signal(Signal::USR1);
        shell.answers();
        shell.signal(Signal::TERM);
        assert_eq!(shell.ends().code(), Some(0), "{line}");
    }
}

#[test]
fn a_reader_of_the_log_that_leaves_is_no_reason_to_die() {
    let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).expect("a pipe");
    let mut command = Command::new(env!("CARGO_BIN_EXE_allout"));
    command.args(["--listen", "127.0.0.1:0"]).stderr(writer);
    let mut shell = Shell::start(command, Some);
    drop(reader);
    shell.signal(Signal::PIPE);
    shell.answers();
    shell.signal(Signal::TERM);
    assert_eq!(shell.ends().code(), Some(0));
}

#[test]
#[ignore = "needs root: a process namespace of its own"]
fn as_process_1_it_reacts_to_signals_and_ends_with_the_right_code() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut command = Command::new("unshare");
        command.args(["--fork", "--kill-child", "--pid", "--mount-proc", env!("CARGO_BIN_EXE_allout")]);
        command.args(["--listen", "127.0.0.1:0"]);
        let mut shell = Shell::start(command, only_child);
        let pid = only_child(shell.child.id()).and_then(pid_of).expect("it runs");
        shell.answers();
        for harmless in [Signal::PIPE, Signal::USR1] {
            kill_process(pid, harmless).expect("it can be signalled");
        }
        shell.answers();
        kill_process(pid, signal).expect("it can be signalled");
        assert_eq!(shell.ends().code(), Some(0), "{signal:?}");
    }
}

/// Processes whose parent this is, and of those the ones that have ended and were not waited for.
fn children_of(parent: u32) -> (usize, usize) {
    let stats = fs::read_dir("/proc").into_iter().flatten().flatten();
    let stats = stats.filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok());
    let (mut all, mut zombies) = (0, 0);
    for stat in stats {
        // The name, which may have spaces, is in parentheses: proc_pid_stat(5).
        let mut fields = stat.rsplit_once(") ").map(|(_, rest)| rest.split(' ')).into_iter().flatten();
        let state = fields.next();
        if fields.next().and_then(|pid| pid.parse().ok()) == Some(parent) {
            all += 1;
            zombies += usize::from(state == Some("Z"));
        }
    }
    (all, zombies)
}

#[test]
#[ignore = "needs root: a process namespace of its own"]
fn as_process_1_it_waits_for_orphans() {
    let mut command = Command::new("unshare");
    command.args(["--fork", "--kill-child", "--pid", "--mount-proc", env!("CARGO_BIN_EXE_allout")]);
    command.args(["--listen", "127.0.0.1:0"]);
    let mut shell = Shell::start(command, only_child);
    let pid = only_child(shell.child.id()).expect("it runs");
    // Each shell ends at once, and its ten children are orphans then; they end when they read the end of a pipe.
    for _ in 0..5 {
        let mut orphans = Command::new("nsenter");
        let script = "for i in 1 2 3 4 5 6 7 8 9 10; do (exec <&3; read -r _) & done";
        orphans.args(["--target", &pid.to_string(), "--pid", "sh", "-c", &format!("exec 3<&0; {script}")]);
        let mut shell = orphans.stdin(Stdio::piped()).spawn().expect("nsenter starts");
        let pipe = shell.stdin.take();
        // `wait` would close the pipe first: it is held until the orphans are there.
        assert!(shell.wait().expect("the shell ends").success());
        wait_until(LIMIT, "ten orphans", || children_of(pid).0 >= 10);
        drop(pipe);
        wait_until(LIMIT, "no orphan to be left", || children_of(pid) == (0, 0));
    }
    let process = pid_of(pid).expect("it runs");
    // A preflight is a child as well, and is waited for by the re-exec.
    kill_process(process, Signal::HUP).expect("it can be signalled");
    shell.answers();
    kill_process(process, Signal::TERM).expect("it can be signalled");
    assert_eq!(shell.ends().code(), Some(0));
}

#[test]
#[ignore = "needs root: a process namespace of its own"]
fn as_process_1_it_reexecutes_without_a_single_device() {
    let mut command = Command::new("unshare");
    command.args(["--fork", "--kill-child", "--pid", "--mount-proc", "sh", "-c"]);
    command.args([r#"mount -t tmpfs tmpfs /dev && exec "$0" --listen 127.0.0.1:0"#, env!("CARGO_BIN_EXE_allout")]);
    command.stderr(Stdio::piped());
    let mut shell = Shell::start(command, only_child);
    let pid = only_child(shell.child.id()).and_then(pid_of).expect("it runs");
    shell.answers();
    let mut log = BufReader::new(shell.child.stderr.take().expect("it is piped")).lines().map_while(Result::ok);
    for _ in 0..2 {
        kill_process(pid, Signal::HUP).expect("it can be signalled");
        let line = log.find(|line| line.contains("re-executing") || line.contains("re-exec cancelled"));
        assert!(line.as_deref().is_some_and(|line| line.contains("re-executing")), "{line:?}");
        shell.answers();
    }
    let drain = std::thread::spawn(move || log.count());
    kill_process(pid, Signal::TERM).expect("it can be signalled");
    assert_eq!(shell.ends().code(), Some(0));
    drain.join().expect("the log is read to its end");
}

#[test]
#[ignore = "needs root: a mount namespace of its own"]
fn without_proc_it_serves_and_says_what_it_cannot_do() {
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", r#"umount -l /proc && exec "$0" --listen 127.0.0.1:0"#]);
    command.arg(env!("CARGO_BIN_EXE_allout")).stderr(Stdio::piped());
    let mut shell = Shell::start(command, Some);
    let mut all: Vec<_> = (0..64).map(|_| Connection::open(shell.address, LIMIT).expect("it is there")).collect();
    for connection in &mut all {
        assert_eq!(connection.ask("GET", "/").status, 200);
    }
    shell.signal(Signal::TERM);
    assert_eq!(shell.ends().code(), Some(0));
    let mut log = String::new();
    let mut stderr = shell.child.stderr.take().expect("it is piped");
    stderr.read_to_string(&mut log).expect("a log is text");
    assert_eq!(log.matches("missing here: /proc ").count(), 1, "{log}");
}

/// The end of the status.
fn about() -> String {
    format!("; allout {}, {} engine", env!("CARGO_PKG_VERSION"), common::engine::ENGINE.name())
}

/// A receiver at `NOTIFY_SOCKET`.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Manager {
    fn new(name: &str) -> Manager {
        let path = std::env::temp_dir().join(format!("allout-{}-{name}", std::process::id()));
        let socket = UnixDatagram::bind(&path).expect("a socket can be made");
        socket.set_read_timeout(Some(LIMIT)).expect("a timeout can be set");
        Manager { socket, path }
    }

    fn path(&self) -> &str {
        self.path.to_str().expect("a name of ours is text")
    }

    /// The next message.
    #[track_caller]
    fn receive(&self) -> String {
        let mut message = [0; 4096];
        let length = self.socket.recv(&mut message).unwrap_or_else(|e| panic!("waited for a message: {e}"));
        String::from_utf8_lossy(&message[..length]).trim_end().replace('\n', " ")
    }

    /// The next message that has this in it.
    #[track_caller]
    fn hear_of(&self, part: &str) -> String {
        let deadline = Instant::now() + LIMIT;
        loop {
            let message = self.receive();
            if message.contains(part) {
                return message;
            }
            assert!(Instant::now() < deadline, "waited {LIMIT:?} for {part}");
        }
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

#[test]
fn a_manager_is_told_of_the_start_the_drain_and_the_end() {
    let manager = Manager::new("told");
    let mut server =
        Allout::new().env("NOTIFY_SOCKET", manager.path()).args(["--timeout-delay", "3s", "--grace", "20s"]).start();
    assert_eq!(manager.receive(), "STATUS=starting");
    assert_eq!(manager.receive(), format!("READY=1 STATUS=serving on http://{}{}", server.addr, about()));
    let mut connection = server.connect();
    connection.request("GET", "/timeout");
    server.wait_until_read(&connection);
    server.signal(Signal::TERM);
    assert_eq!(manager.receive(), "STOPPING=1");
    assert_eq!(manager.receive(), "EXTEND_TIMEOUT_USEC=15000000 STATUS=draining: 1 request, 20s left");
    let again = manager.hear_of("draining: 1 request, 1"); // 19s, or a little less where the cores are busy
    assert!(again.starts_with("EXTEND_TIMEOUT_USEC=15000000"), "{again}");
    assert_eq!(connection.expect_response("GET").status, 200);
    let last = manager.hear_of("stopped: ");
    assert!(last.ends_with("STATUS=stopped: every request was answered"), "{last}");
    server.assert_exit(0, LIMIT);
    manager.socket.set_nonblocking(true).expect("it can be set");
    assert!(manager.socket.recv(&mut [0; 1]).is_err(), "nothing comes after the end");
}

#[test]
fn a_manager_is_told_when_a_stop_replaces_a_reexec() {
    let manager = Manager::new("replaced");
    let mut server = Allout::new().env("NOTIFY_SOCKET", manager.path()).args(["--timeout-delay", "2s"]).start();
    manager.hear_of("READY=1");
    let mut connection = server.connect();
    connection.request("GET", "/timeout");
    server.wait_until_read(&connection);
    server.signal(Signal::HUP);
    manager.hear_of("RELOADING=1");
    server.signal(Signal::TERM);
    manager.hear_of("STOPPING=1");
    assert_eq!(connection.expect_response("GET").status, 200);
    manager.hear_of("STATUS=stopped: every request was answered");
    server.assert_exit(0, LIMIT);
}

#[test]
fn a_watchdog_is_fed_twice_in_its_time_and_told_of_connections() {
    let manager = Manager::new("watchdog");
    let server = Allout::new().env("NOTIFY_SOCKET", manager.path()).env("WATCHDOG_USEC", "400000").start();
    manager.hear_of("READY=1");
    let mut last = Instant::now();
    for _ in 0..5 {
        manager.hear_of("WATCHDOG=1");
        // Early by as much as the thread of this test was late before.
        assert!(last.elapsed() > Duration::from_millis(100), "{:?}", last.elapsed());
        last = Instant::now();
    }
    let _connections: Vec<_> = (0..2)
        .map(|_| {
            let mut connection = server.connect();
            assert_eq!(connection.ask("GET", "/").status, 200);
            connection
        })
        .collect();
    manager.hear_of(", 2 connections; allout ");
    server.signal(Signal::STOP);
    manager.socket.set_read_timeout(Some(Duration::from_secs(1))).expect("a timeout can be set");
    while manager.socket.recv(&mut [0; 256]).is_ok() {}
    server.signal(Signal::CONT);
    manager.socket.set_read_timeout(Some(LIMIT)).expect("a timeout can be set");
    manager.hear_of("WATCHDOG=1");
}

#[test]
fn a_manager_that_is_gone_is_no_reason_to_die() {
    let mut server = Allout::new().env("NOTIFY_SOCKET", "/nonexistent/socket").start();
    server.wait_for_line("cannot notify systemd", LIMIT);
    assert_eq!(server.get("/").status, 200);
    server.stop();
}

/// With this as its third descriptor, passed as systemd does.
fn with_passed(descriptor: OwnedFd, names: &str) -> Command {
    let mut command = Shell::sh("exec 3<&0 </dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec \"$0\"");
    command.env("LISTEN_FDNAMES", names).stdin(descriptor);
    command
}

#[test]
fn a_socket_that_was_passed_is_served_and_left_open() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("a bound socket has an address");
    listener.set_nonblocking(true).expect("it can be set");
    for _ in 0..2 {
        let passed = listener.try_clone().expect("a duplicate").into();
        let mut shell = Shell::start(with_passed(passed, "http"), Some);
        assert_eq!(shell.address, address);
        shell.answers();
        shell.signal(Signal::TERM);
        assert_eq!(shell.ends().code(), Some(0));
        // Who comes meanwhile waits for the next one.
        TcpStream::connect_timeout(&address, LIMIT).expect("the socket listens on");
    }
}

#[test]
fn descriptors_passed_to_another_process_are_left_alone() {
    let server = Allout::new().env("LISTEN_FDS", "1").env("LISTEN_PID", "1").start();
    assert_eq!(server.get("/").status, 200);
}

#[test]
fn a_descriptor_of_another_kind_is_one_clear_error() {
    let datagram = std::net::UdpSocket::bind("127.0.0.1:0").expect("a free port");
    let file = fs::File::open("/dev/null").expect("it can be opened");
    for (descriptor, why) in [(datagram.into(), "is no TCP socket"), (file.into(), "is no socket")] {
        let output = with_passed(descriptor, "http").stderr(Stdio::piped()).output().expect("a shell starts");
        assert_eq!(output.status.code(), Some(1));
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(said.contains("the socket that was passed cannot be used: descriptor 3 (http)"), "{said}");
        assert!(said.contains(why), "{said}");
    }
}
