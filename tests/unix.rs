//! Unix-domain listening sockets, which the native engine serves: their file, their stops, and who removes what.

#![allow(clippy::expect_used, clippy::panic, reason = "a test says what it expects by panicking")]

mod common;

use common::{Allout, LIMIT, Serving, wait_until};
use rustix::process::Signal;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

/// Clients of each stop.
const CLIENTS: usize = 16;

/// A path for one test.
fn path(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("allout-{name}-{}.sock", std::process::id()))
}

fn start(path: &Path, options: &[&str]) -> Serving {
    let listen = format!("127.0.0.1:0,unix:{}", path.display());
    let server = Allout::new().args(["--engine", "native", "--listen", &listen]).args(options.iter().copied()).start();
    server.wait_for_line("at most 2048 workers", LIMIT);
    server
}

/// Asks once, over a connection that ends with the response.
fn ask(path: &Path, target: &str) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(LIMIT))?;
    write!(stream, "GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut response = String::new();
    stream.read_to_string(&mut response)?;
    Ok(response)
}

#[test]
fn a_unix_socket_is_served_with_its_permissions_and_removed_at_the_stop() {
    let path = path("served");
    let mut server = start(&path, &["--unix-mode", "0660"]);
    assert_eq!(fs::metadata(&path).expect("it is there").permissions().mode() & 0o777, 0o660);
    assert!(server.log().contains(&format!(" unix:{}", path.display())), "{}", server.log());
    assert!(ask(&path, "/?user=x").expect("it is served").ends_with("hello, x\n"));
    assert_eq!(server.get("/?user=y").text(), "hello, y", "over TCP as well");
    let metrics = ask(&path, "/metrics").expect("it is served");
    assert!(metrics.contains(&format!("listener=\"unix:{}\"", path.display())), "{metrics}");
    // Which process asks is unknown.
    assert!(ask(&path, "/shutdown").expect("it is served").starts_with("HTTP/1.1 403"));
    server.stop();
    assert!(!path.exists());
}

#[test]
fn a_stale_socket_is_replaced_and_one_in_use_or_another_file_is_not() {
    let path = path("stale");
    drop(UnixListener::bind(&path).expect("it is free"));
    let mut server = start(&path, &[]);
    assert!(ask(&path, "/livez").expect("it is served").starts_with("HTTP/1.1 200"));

    let listen = format!("unix:{}", path.display());
    let mut second = Allout::new().args(["--engine", "native", "--listen", &listen]).spawn();
    second.assert_exit(1, LIMIT);
    assert!(second.log().contains("cannot listen on unix:"), "{}", second.log());
    assert!(ask(&path, "/livez").expect("it is served still").starts_with("HTTP/1.1 200"));
    server.stop();

    fs::write(&path, "precious").expect("it is free");
    let mut third = Allout::new().args(["--engine", "native", "--listen", &listen]).spawn();
    third.assert_exit(1, LIMIT);
    assert!(third.log().contains("no socket"), "{}", third.log());
    assert_eq!(fs::read_to_string(&path).expect("it is there"), "precious");
    fs::remove_file(&path).expect("it is there");
}

#[test]
fn the_other_engine_refuses_a_unix_socket_and_names_the_one_that_can() {
    let path = path("refused");
    let listen = format!("unix:{}", path.display());
    let mut server = Allout::new().args(["--engine", "tiny-http", "--listen", &listen]).spawn();
    server.assert_exit(1, LIMIT);
    assert!(server.log().contains("choose the native engine"), "{}", server.log());
    assert!(!path.exists());
}

#[test]
fn after_a_re_exec_the_file_of_another_process_stays_as_well() {
    let path = path("another");
    let mut server = start(&path, &[]);
    fs::remove_file(&path).expect("it is there");
    let second = start(&path, &[]);
    server.signal(Signal::HUP);
    wait_until(LIMIT, "the next image", || server.log().matches("listening on ").count() == 2);
    server.stop();
    assert!(ask(&path, "/livez").expect("the other is served still").starts_with("HTTP/1.1 200"));
    drop(second);
    fs::remove_file(&path).expect("it was killed");
}

#[test]
fn a_reload_for_an_engine_that_cannot_serve_the_sockets_that_are_kept_changes_nothing() {
    let path = path("reload");
    let options = path.with_extension("env");
    fs::write(&options, "ALLOUT_ENGINE=native\n").expect("it can be written");
    let listen = format!("127.0.0.1:0,unix:{}", path.display());
    let file = options.display().to_string();
    let mut server = Allout::new().env("ALLOUT_LISTEN", &listen).args(["--env-file", &file]).start();
    for (number, text) in
        ["ALLOUT_ENGINE=tiny-http\n", "ALLOUT_ENGINE=tiny-http\nALLOUT_LISTEN=127.0.0.1:0\n"].into_iter().enumerate()
    {
        fs::write(&options, text).expect("it can be written");
        server.signal(Signal::HUP);
        wait_until(LIMIT, "the re-exec to be cancelled, or the end", || {
            server.log().matches("re-exec cancelled (SIGHUP)").count() > number || !server.is_alive()
        });
        assert!(server.log().contains("choose the native engine"), "{}", server.log());
        assert!(ask(&path, "/livez").expect("it is served still").starts_with("HTTP/1.1 200"));
    }
    let mut check = Allout::new().env("ALLOUT_LISTEN", &listen).args(["--engine=tiny-http", "--check=reload"]).spawn();
    check.assert_exit(1, LIMIT);
    server.stop();
    fs::remove_file(options).expect("it is there");
}

/// One client in a closed loop, until the socket refuses it. Counts what was answered; says what was lost.
fn client(path: &Path, keep: bool, answered: &AtomicU64) -> Option<String> {
    let mut connection = None;
    loop {
        let mut stream = match connection.take() {
            Some(stream) => stream,
            None => match UnixStream::connect(path) {
                Ok(stream) => stream,
                Err(_) => return None,
            },
        };
        let close = if keep { "" } else { "Connection: close\r\n" };
        let request = format!("GET /?user=x HTTP/1.1\r\nHost: localhost\r\n{close}\r\n");
        if let Err(error) = stream.set_read_timeout(Some(LIMIT)).and_then(|()| stream.write_all(request.as_bytes())) {
            return Some(format!("not sent: {error}"));
        }
        let (mut response, mut chunk) = (Vec::new(), [0; 1024]);
        while !response.ends_with(b"hello, x\n") {
            match stream.read(&mut chunk) {
                Ok(count @ 1..) => response.extend_from_slice(&chunk[..count]),
                end => return Some(format!("{end:?} after {:?}", String::from_utf8_lossy(&response))),
            }
        }
        answered.fetch_add(1, Ordering::Relaxed);
        let goes_on = keep && !String::from_utf8_lossy(&response).contains("Connection: close");
        connection = goes_on.then_some(stream);
    }
}

#[test]
fn a_stop_loses_no_request_of_clients_of_a_unix_socket() {
    for (stop, keep) in [true, false].into_iter().cycle().take(10).enumerate() {
        let path = path("stops");
        let mut server = start(&path, &[]);
        let answered = AtomicU64::new(0);
        let lost: Vec<_> = thread::scope(|scope| {
            let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(|| client(&path, keep, &answered))).collect();
            wait_until(LIMIT, "a thousand answers", || answered.load(Ordering::Relaxed) > 1000);
            server.signal(Signal::TERM);
            clients.into_iter().filter_map(|client| client.join().expect("it does not panic")).collect()
        });
        assert!(lost.is_empty(), "stop {stop}, kept alive: {keep}: {} lost: {lost:?}\n{}", lost.len(), server.log());
        server.assert_exit(0, LIMIT);
    }
}

#[test]
fn a_drain_waits_for_a_request_without_burning_a_core() {
    let path = path("waits");
    let mut server = start(&path, &["--timeout-delay", "1s"]);
    let mut client = UnixStream::connect(&path).expect("it is served");
    client.set_read_timeout(Some(LIMIT)).expect("it is a socket");
    client.write_all(b"GET /timeout HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("it is read");
    let is_in_flight = |line: &str| {
        line.starts_with("allout_listener_requests_in_flight") && line.contains("unix:") && line.ends_with(" 1")
    };
    wait_until(LIMIT, "the request in flight", || server.get("/metrics").text().lines().any(is_in_flight));
    // User and system time in hundredths of a second: proc_pid_stat(5).
    let cpu_time = |server: &Serving| -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", server.id())).expect("it runs");
        let fields = stat.rsplit(')').next().expect("a name").split_whitespace().skip(11).take(2);
        fields.map(|field| field.parse::<u64>().expect("a number")).sum()
    };
    let before = cpu_time(&server);
    server.signal(Signal::TERM);
    let mut response = [0; 4096];
    let count = client.read(&mut response).expect("it is answered");
    let burnt = cpu_time(&server) - before;
    assert!(response[..count].starts_with(b"HTTP/1.1 200"), "{}", response[..count].escape_ascii());
    assert!(burnt < 50, "{burnt} hundredths of a second");
    server.assert_exit(0, LIMIT);
}

#[test]
fn a_socket_has_the_owner_that_it_is_to_have() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("not checked: only root gives a file to another user");
        return;
    }
    let path = path("owned");
    let mut server = start(&path, &["--unix-mode", "0660", "--unix-owner", "nobody:12345"]);
    let file = fs::metadata(&path).expect("it is there");
    assert_eq!((file.uid(), file.gid(), file.permissions().mode() & 0o777), (65534, 12345, 0o660));
    assert!(ask(&path, "/livez").expect("root may").starts_with("HTTP/1.1 200"));
    server.stop();
    assert!(!path.exists());
}

#[test]
fn a_re_exec_hands_the_socket_on_with_its_file() {
    let path = path("reexec");
    let mut server = start(&path, &[]);
    let mut before = UnixStream::connect(&path).expect("it is served");
    server.signal(Signal::HUP);
    wait_until(LIMIT, "the next image", || server.log().matches("at most 2048 workers").count() == 2);
    assert!(ask(&path, "/livez").expect("it is served").starts_with("HTTP/1.1 200"));
    before.set_read_timeout(Some(LIMIT)).expect("it is a socket");
    assert!(matches!(before.read(&mut [0]), Ok(0) | Err(_)), "it was idle");
    server.stop();
    assert!(!path.exists());
}

#[test]
fn a_socket_of_the_service_manager_is_served_and_its_file_stays() {
    let path = path("passed");
    let listener = UnixListener::bind(&path).expect("it is free");
    let stdin = OwnedFd::from(listener.try_clone().expect("descriptors are left"));
    let mut server = Command::new("sh")
        .args(["-c", "exec 3<&0 </dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec \"$0\" --engine native"])
        .arg(env!("CARGO_BIN_EXE_allout"))
        .stdin(stdin)
        .stderr(Stdio::piped())
        .spawn()
        .expect("there is a shell");
    assert!(ask(&path, "/?user=z").expect("it is served").ends_with("hello, z\n"));
    rustix::process::kill_process(rustix::process::Pid::from_child(&server), Signal::TERM).expect("it runs");
    assert!(server.wait().expect("it is a child").success());
    assert!(path.exists());
    // A client that comes now is the next instance's.
    UnixStream::connect(&path).expect("the manager listens still");
    fs::remove_file(&path).expect("it is there");
}
