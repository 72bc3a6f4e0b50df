//! A rolling restart behind a load balancer, with the configuration in `rolling/`: the client sees no error.

#![allow(clippy::expect_used, clippy::panic, reason = "a test says what it expects by panicking")]

#[path = "load/client.rs"]
mod client;
mod common;

use client::{Load, Mode, Running};
use common::http::{self, Connection};
use common::{Allout, LIMIT, Serving, Speak as _, wait_until};
use rustix::process::Signal;
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const ROUNDS: usize = 10;

/// The balancer, which ends with the test.
struct Proxy(Child, std::path::PathBuf);

impl Proxy {
    fn start(frontend: SocketAddr, backends: [SocketAddr; 2]) -> Proxy {
        let text = include_str!("rolling/haproxy.cfg")
            .replace("bind 127.0.0.1:8080", &format!("bind {frontend}"))
            .replace("server a 127.0.0.1:8081", &format!("server a {}", backends[0]))
            .replace("server b 127.0.0.1:8082", &format!("server b {}", backends[1]));
        let path = std::env::temp_dir().join(format!("allout-rolling-{}.cfg", std::process::id()));
        std::fs::write(&path, text).expect("writing");
        let mut command = Command::new("haproxy");
        command.arg("-db").arg("-f").arg(&path).stdin(Stdio::null()).stdout(Stdio::null());
        Proxy(command.spawn().expect("haproxy starts: it is in every distribution"), path)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
        let _ = std::fs::remove_file(&self.1);
    }
}

fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port")
}

fn start(at: SocketAddr) -> Serving {
    Allout::new().args(["--listen", &at.to_string(), "--drain-delay", "2s"]).start()
}

#[test]
#[ignore = "needs haproxy, and half a minute"]
fn a_rolling_restart_behind_haproxy_is_not_noticed() {
    if Command::new("haproxy").arg("-v").stdout(Stdio::null()).status().is_err() {
        eprintln!("not run: there is no haproxy");
        return;
    }
    let addresses = [free_port(), free_port()];
    let frontend = free_port();
    let mut instances = addresses.map(start);
    let _proxy = Proxy::start(frontend, addresses);
    let is_served =
        || Connection::open(frontend, LIMIT).is_ok_and(|mut connection| connection.ask("GET", "/").status == 200);
    wait_until(LIMIT, "haproxy to serve", is_served);

    for mode in [Mode::KeepAlive, Mode::Close] {
        let load = Load { mode, lasts: Duration::from_secs(300), ..Load::new(frontend, 16) };
        let running = Running::start(load, None).expect("the clients start");
        let began = std::time::Instant::now();
        for round in 0..ROUNDS / 2 {
            let which = round % 2;
            running.cause(|| instances[which].signal(Signal::TERM));
            instances[which].assert_exit(0, LIMIT);
            instances[which] = start(addresses[which]);
            // Two checks, until it has its share again; then it is the other one's turn.
            std::thread::sleep(Duration::from_millis(600));
        }
        println!("{} restarts in {:?}", ROUNDS / 2, began.elapsed());
        let report = running.end();
        println!("{report}");
        let counts = &report.counts;
        assert_eq!((counts.lost, counts.refused, counts.waiting), (0, 0, 0), "{report}");
        assert_eq!(counts.statuses.keys().copied().collect::<Vec<_>>(), [200], "{report}");
    }
}
