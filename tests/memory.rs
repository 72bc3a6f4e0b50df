//! Memory that is bounded: a control group with 32 MiB, and more clients than it has room for.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says what it expects by panicking")]

mod common;

use common::http::Connection;
use common::{Allout, LIMIT, Serving};
use rustix::process::Signal;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A control group with a limit on memory, removed when the test ends.
struct Group {
    path: PathBuf,
    /// File with the processes that were killed because memory ran out, and the word before their number.
    kills: &'static str,
}

impl Group {
    /// None if this machine has no control groups for memory that this process may make, with the reason on stdout.
    fn new(name: &str, bytes: u64) -> Option<Group> {
        let name = format!("allout-test-{}-{name}", std::process::id());
        let v1 = Path::new("/sys/fs/cgroup/memory");
        let (root, limit, kills) = if v1.exists() {
            (v1, "memory.limit_in_bytes", "memory.oom_control")
        } else {
            (Path::new("/sys/fs/cgroup"), "memory.max", "memory.events")
        };
        let path = root.join(name);
        let made = fs::create_dir(&path).and_then(|()| fs::write(path.join(limit), bytes.to_string()));
        match made {
            Ok(()) => Some(Group { path, kills }),
            Err(error) => {
                println!("not run: no control group with a limit on memory: {error}");
                let _ = fs::remove_dir(path);
                None
            }
        }
    }

    fn start(&self, engine: &str) -> Serving {
        let script = format!("echo $$ > {}/cgroup.procs && exec \"$0\" \"$@\"", self.path.display());
        let binary = env!("CARGO_BIN_EXE_allout");
        Allout::of(Path::new("/bin/sh"))
            .args(["-c", &script, binary, "--listen", "127.0.0.1:0", "--engine", engine])
            .start()
    }

    fn kills(&self) -> u64 {
        let text = fs::read_to_string(self.path.join(self.kills)).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        line.and_then(|number| number.trim().parse().ok()).unwrap_or(0)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.path); // empty once its process has ended
    }
}

/// Asks over each of `count` connections that stay open, and then over all of them again at once. Returns how many of the
/// connections were answered both times.
fn crowd(server: &Serving, count: usize) -> usize {
    let ask = |connection: &mut Connection| {
        connection.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").is_ok()
            && connection.read_response("GET", LIMIT).is_ok_and(|response| response.status == 200)
    };
    let mut all = Vec::new();
    for n in 0..count {
        let mut connection = server.connect();
        assert!(ask(&mut connection), "client {n} is not answered: {}", server.log());
        all.push(connection);
    }
    all.iter_mut().filter_map(|connection| ask(connection).then_some(())).count()
}

fn survives(engine: &str, at_least: usize) {
    let Some(group) = Group::new(engine, 32 << 20) else { return };
    let mut server = group.start(engine);
    let line = server.wait_for_line("at most ", LIMIT);
    assert!(line.contains("(limit on memory: 32 MiB)"), "{line}");
    let kept = crowd(&server, 1000);
    println!("{engine}: {kept} of 1000 connections are kept");
    assert!(kept >= at_least, "{kept}");
    assert_eq!(server.get("/healthz").status, 200);
    server.signal(Signal::TERM);
    server.assert_exit(0, Duration::from_secs(10));
    assert_eq!(group.kills(), 0);
}

#[test]
#[ignore = "needs root and a control group"]
fn in_32_mib_the_native_engine_keeps_a_thousand_connections() {
    survives("native", 1000);
}

#[test]
#[ignore = "needs root and a control group"]
fn in_32_mib_the_default_engine_evicts_idle_connections_and_survives() {
    survives("tiny-http", 100);
}
