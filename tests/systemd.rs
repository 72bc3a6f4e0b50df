//! Under systemd: a real one, process 1 of a machine within the machine, with the unit as it is printed.

#![allow(clippy::expect_used, clippy::panic, reason = "a test says what it expects by panicking")]

#[path = "load/client.rs"]
mod client;
mod common;

use client::{Load, Mode, Report, Running};
use common::http::{self, Connection, Response};
use common::{LIMIT, Speak as _, wait_until};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Where the printed unit serves.
const HERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8088);

/// A machine of its own, with systemd and nothing else; it ends with the test. The test's thread is in its network.
struct Machine {
    unshare: Child,
    init: u32,
    _alone: MutexGuard<'static, ()>,
}

/// One machine at a time: two systemds have the same control groups, and remove each other's.
static ALONE: Mutex<()> = Mutex::new(());

impl Machine {
    fn boot() -> Machine {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let program = PathBuf::from(env!("CARGO_BIN_EXE_allout"));
        let faulty = program.with_file_name("examples").join("faulty");
        let mut command = Command::new("unshare");
        command.args(["--fork", "--kill-child", "--pid", "--mount", "--uts", "--ipc", "--net", "--cgroup"]);
        command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/systemd/init.sh")).args([&program, &faulty]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
        let mut unshare = command.spawn().expect("unshare starts");
        let path = format!("/proc/{0}/task/{0}/children", unshare.id());
        let mut init = 0;
        wait_until(LIMIT, "systemd to be started", || {
            assert!(unshare.try_wait().expect("a child can be asked").is_none(), "init.sh failed");
            init = fs::read_to_string(&path).ok().and_then(|pids| pids.trim().parse().ok()).unwrap_or(0);
            init != 0 && fs::read_to_string(format!("/proc/{init}/comm")).is_ok_and(|name| name.trim() == "systemd")
        });
        let machine = Machine { unshare, init, _alone: alone };
        wait_until(LIMIT, "systemd to be up", || machine.try_run("systemctl is-active quiet.target").status.success());
        let network = File::open(format!("/proc/{init}/ns/net")).expect("systemd has a network");
        move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network)).expect("a thread can move");
        machine
    }

    /// With the service installed as the README says, and with these lines added to its `[Service]`.
    fn with_service(lines: &str) -> Machine {
        let machine = Machine::boot();
        machine.run("allout --systemd-unit > /etc/systemd/system/allout.service");
        machine.add("allout.service", &format!("[Service]\n{lines}"));
        machine
    }

    /// As [`with_service`](Machine::with_service), running the faulty one under the same unit.
    fn with_faulty(lines: &str) -> Machine {
        Machine::with_service(&format!("ExecStart=\nExecStart=/usr/local/bin/faulty {HERE}\n{lines}"))
    }

    /// Adds to a unit.
    fn add(&self, unit: &str, lines: &str) {
        let place = format!("/etc/systemd/system/{unit}.d");
        self.run(&format!(
            "mkdir -p {place} && cat > {place}/test.conf <<'END'\n{lines}\nEND\nsystemctl daemon-reload"
        ));
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.init.to_string(), "--all", "sh", "-c", line]).stdin(Stdio::null());
        command
    }

    fn try_run(&self, line: &str) -> Output {
        self.command(line).output().expect("nsenter starts")
    }

    /// The output of a command that must succeed.
    #[track_caller]
    fn run(&self, line: &str) -> String {
        let output = self.try_run(line);
        assert!(output.status.success(), "{line}: {output:?}");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Starts a command, and does not wait for it.
    fn begin(&self, line: &str) -> Child {
        self.command(line).spawn().expect("nsenter starts")
    }

    /// Properties of the service, `Name=value` each.
    fn show(&self, names: &str) -> String {
        self.run(&format!("systemctl show allout --property={names}")).replace('\n', " ")
    }

    fn is(&self, names: &str, values: &str) -> bool {
        self.show(names) == values
    }

    #[track_caller]
    fn wait_for(&self, names: &str, values: &str) {
        wait_until(LIMIT, &format!("{values}, it is {}", self.show(names)), || self.is(names, values));
    }

    #[track_caller]
    fn wait_for_status(&self, part: &str) -> String {
        let mut status = String::new();
        wait_until(LIMIT, &format!("the status {part:?}"), || {
            status = self.show("StatusText");
            status.contains(part)
        });
        status
    }

    fn journal(&self, options: &str) -> String {
        self.run(&format!("journalctl --sync && journalctl --no-pager {options}"))
    }

    /// The log of the service itself, at this priority or above.
    fn said(&self, priority: &str) -> String {
        self.journal(&format!("-o cat -u allout -p {priority} _SYSTEMD_UNIT=allout.service"))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let last_words = self.try_run("systemctl status allout --no-pager; journalctl --no-pager -n 100");
            eprintln!("--- {}\n---", String::from_utf8_lossy(&last_words.stdout));
        }
        let _ = self.unshare.kill(); // systemd goes with it, and all processes with systemd
        let _ = self.unshare.wait();
    }
}

#[track_caller]
fn connect() -> Connection {
    Connection::open(HERE, LIMIT).unwrap_or_else(|e| panic!("connecting to {HERE}: {e}"))
}

#[track_caller]
fn get(path: &str) -> Response {
    connect().ask("GET", path)
}

/// A request that a worker has by now, or soon will.
fn in_flight(path: &str) -> Connection {
    let mut connection = connect();
    connection.request("GET", path);
    // Received in order: what comes after it on another connection is answered after it was received.
    connect().ask("GET", "/livez");
    connection
}

const ENDED: &str = "Result,NRestarts,ExecMainStatus,ActiveState,SubState";
const ENDED_WELL: &str = "Result=success NRestarts=0 ExecMainStatus=0 ActiveState=inactive SubState=dead";

#[test]
#[ignore = "needs root and systemd"]
fn three_commands_lead_from_the_binary_to_the_service() {
    let machine = Machine::boot();
    // The first has been done: install allout /usr/local/bin
    machine.run("allout --systemd-unit > /etc/systemd/system/allout.service");
    machine.run("systemctl enable --now allout");
    assert_eq!(get("/").status, 200);
}

#[test]
#[ignore = "needs root and systemd"]
fn the_unit_of_a_unix_socket_starts_reloads_and_stops() {
    let machine = Machine::boot();
    let unit = "allout --systemd-unit --engine native --listen unix:/run/allout/a.sock --unix-mode 0666 \
                --access-log /var/log/allout/access.log";
    machine.run(&format!("{unit} > /etc/systemd/system/allout.service"));
    machine.run("systemctl start allout");
    machine.run("allout healthcheck unix:/run/allout/a.sock");
    machine.run("systemctl reload allout");
    // While it drains before the re-exec it answers 503.
    wait_until(LIMIT, "the re-exec", || machine.said("info").matches("listening on unix:").count() == 2);
    machine.run("allout healthcheck unix:/run/allout/a.sock");
    machine.run("systemctl stop allout");
    assert_eq!(machine.show(ENDED), ENDED_WELL);
    assert_eq!(machine.said("warning"), "");
    assert_eq!(machine.run("grep -c 'GET /healthz' /var/log/allout/access.log"), "2");
}

#[test]
#[ignore = "needs root and systemd"]
fn the_sockets_of_both_families_and_of_a_path_start_the_service() {
    let machine = Machine::boot();
    let listen =
        "--listen 0.0.0.0:8088 --listen [::]:8088 --listen unix:/run/a.sock --unix-owner 0:33 --unix-mode 0660";
    machine.run(&format!("allout --systemd-unit=socket {listen} > /etc/systemd/system/allout.socket"));
    machine.run("allout --systemd-unit --engine native > /etc/systemd/system/allout.service");
    machine.run("systemctl start allout.socket");
    for url in ["http://127.0.0.1:8088/", "http://[::1]:8088/", "unix:/run/a.sock"] {
        machine.run(&format!("allout healthcheck {url}"));
    }
    assert_eq!(machine.run("stat -c '%u:%g %a' /run/a.sock"), "0:33 660");
}

#[test]
#[ignore = "needs root and systemd"]
fn it_says_when_it_serves_and_a_stop_takes_milliseconds() {
    let machine = Machine::with_service("");
    let mut took = Vec::new();
    for _ in 0..5 {
        machine.run("systemctl start allout");
        assert_eq!(get("/").status, 200, "started means that it serves");
        assert!(machine.show("StatusText").contains("serving on http://"), "{}", machine.show("StatusText"));
        let began = Instant::now();
        machine.run("systemctl stop allout");
        took.push(began.elapsed());
        assert_eq!(machine.show(ENDED), ENDED_WELL);
    }
    eprintln!("systemctl stop, idle: {took:?}");
    let own: Vec<_> =
        machine.said("info").lines().filter(|line| line.contains("all out after")).map(str::to_owned).collect();
    eprintln!("of which its own: {own:?}");
    assert!(took.iter().all(|took| *took < Duration::from_secs(1)), "{took:?}");
    assert_eq!(machine.said("warning"), "");
}

#[test]
#[ignore = "needs root and systemd"]
fn a_stop_takes_as_long_as_the_requests_in_flight() {
    let machine = Machine::with_service("Environment=ALLOUT_TIMEOUT_DELAY=2s");
    machine.run("systemctl start allout");
    let asked = Instant::now();
    let mut connection = in_flight("/timeout");
    let began = Instant::now();
    let mut stop = machine.begin("systemctl stop allout");
    machine.wait_for_status("draining: 1 request, ");
    assert_eq!(connection.expect_response("GET").status, 200);
    let answered = asked.elapsed();
    assert!(stop.wait().expect("systemctl ends").success());
    eprintln!("answered after {answered:?}; systemctl stop took {:?}", began.elapsed());
    assert!(began.elapsed() < answered + Duration::from_secs(1));
    assert_eq!(machine.show(ENDED), ENDED_WELL);
}

/// A drain of 6 s, where systemd has patience for 2 s only, and so has its watchdog.
fn outlives_the_patience_of_systemd(how: impl FnOnce(&Machine)) {
    let machine = Machine::with_service("Environment=ALLOUT_TIMEOUT_DELAY=6s\nTimeoutStopSec=2s\nWatchdogSec=2s");
    machine.run("systemctl start allout");
    let mut connection = in_flight("/timeout");
    how(&machine);
    assert_eq!(connection.expect_response("GET").status, 200);
    machine.wait_for(ENDED, ENDED_WELL);
}

#[test]
#[ignore = "needs root and systemd"]
fn a_drain_within_its_grace_outlives_the_patience_of_systemd_after_a_stop() {
    outlives_the_patience_of_systemd(|machine| machine.run("systemctl stop --no-block allout").clear());
}

#[test]
#[ignore = "needs root and systemd"]
fn a_drain_within_its_grace_outlives_the_patience_of_systemd_after_a_shutdown() {
    outlives_the_patience_of_systemd(|_| assert_eq!(get("/shutdown").status, 200));
}

#[test]
#[ignore = "needs root and systemd"]
fn a_shutdown_leaves_it_stopped() {
    let machine = Machine::with_service("");
    machine.run("systemctl start allout");
    assert_eq!(get("/shutdown").status, 200);
    machine.wait_for(ENDED, ENDED_WELL);
}

#[test]
#[ignore = "needs root and systemd"]
fn abandoned_requests_are_shown_and_no_reason_to_restart() {
    let machine = Machine::with_faulty("");
    machine.run("systemctl start allout");
    let _connection = in_flight("/stuck-worker");
    machine.run("systemctl stop allout");
    let ended = "Result=exit-code NRestarts=0 ExecMainStatus=3 ActiveState=failed SubState=failed";
    assert_eq!(machine.show(ENDED), ended);
    let status = machine.try_run("systemctl status --no-pager allout").stdout;
    assert!(String::from_utf8_lossy(&status).contains("status=3"));

    machine.run("systemctl reset-failed allout && systemctl start allout");
    let _connection = in_flight("/stuck-worker");
    assert_eq!(get("/shutdown").status, 200);
    machine.wait_for(ENDED, ended);
    std::thread::sleep(Duration::from_secs(1)); // twice as long as a restart would wait
    assert_eq!(machine.show(ENDED), ended);
}

#[test]
#[ignore = "needs root and systemd"]
fn a_failure_is_a_reason_to_restart() {
    let machine = Machine::with_faulty("");
    machine.run("systemctl start allout");
    assert_eq!(get("/fail").status, 200);
    machine.wait_for("NRestarts,ActiveState", "NRestarts=1 ActiveState=active");
    assert_eq!(get("/").status, 200);
    assert!(machine.said("info").contains("fragile failed: it was asked to"), "{}", machine.said("info"));

    machine.run("systemctl kill --signal=KILL allout");
    machine.wait_for("NRestarts,ActiveState", "NRestarts=2 ActiveState=active");
    assert_eq!(get("/").status, 200);
}

#[test]
#[ignore = "needs root and systemd"]
fn the_watchdog_leaves_a_service_that_answers_alone() {
    let machine = Machine::with_service("WatchdogSec=1s");
    machine.run("systemctl start allout");
    let _connections: Vec<_> = (0..3).map(|_| in_flight("/")).collect();
    machine.wait_for_status("serving on http://127.0.0.1:8088, 3 connections; allout ");
    std::thread::sleep(Duration::from_secs(4)); // four times as long as it would take
    assert_eq!(machine.show("NRestarts,ActiveState"), "NRestarts=0 ActiveState=active");
    assert_eq!(machine.said("warning"), "");
}

/// Systemd restarts it once `wedge` has wedged it, and it serves again.
#[track_caller]
fn the_watchdog_restarts(machine: &Machine, wedge: impl FnOnce(&Machine)) {
    machine.run("systemctl start allout");
    assert_eq!(get("/").status, 200);
    let began = Instant::now();
    wedge(machine);
    machine.wait_for("NRestarts,ActiveState", "NRestarts=1 ActiveState=active");
    eprintln!("restarted {:?} after it was wedged", began.elapsed());
    assert_eq!(get("/").status, 200);
    assert!(machine.journal("-u allout").contains("Watchdog timeout"));
}

#[test]
#[ignore = "needs root and systemd"]
fn the_watchdog_restarts_a_frozen_service() {
    let machine = Machine::with_service("WatchdogSec=2s\nTimeoutAbortSec=1s");
    the_watchdog_restarts(&machine, |machine| {
        machine.run("systemctl kill --kill-whom=main --signal=STOP allout");
    });
}

#[test]
#[ignore = "needs root and systemd"]
fn the_watchdog_restarts_a_service_that_does_not_answer() {
    let machine = Machine::with_faulty("WatchdogSec=2s\nTimeoutAbortSec=1s");
    let mut connection = None;
    the_watchdog_restarts(&machine, |_| {
        let mut asked = connect();
        asked.request("GET", "/stuck-listener");
        connection = Some(asked);
    });
    assert!(machine.said("info").contains("GET /livez is not answered"), "{}", machine.said("info"));
}

#[test]
#[ignore = "needs root and systemd"]
fn the_watchdog_restarts_a_service_without_a_free_worker() {
    let machine = Machine::with_faulty("WatchdogSec=2s\nTimeoutAbortSec=1s");
    let mut connection = None;
    the_watchdog_restarts(&machine, |_| connection = Some(in_flight("/stuck-worker")));
    assert!(machine.said("info").contains("1 worker stuck"), "{}", machine.said("info"));
}

#[test]
#[ignore = "needs root and systemd"]
fn a_socket_of_systemd_is_served_and_outlives_the_service() {
    let machine = Machine::with_service("");
    machine.run("allout --systemd-unit=socket > /etc/systemd/system/allout.socket && systemctl daemon-reload");
    machine.run("systemctl start allout.socket");
    assert!(machine.is("ActiveState", "ActiveState=inactive"));
    for round in 0..3 {
        assert_eq!(get("/?user=socket").text(), "hello, socket", "round {round}: the first request starts it");
        machine.wait_for("ActiveState", "ActiveState=active"); // it answers a moment before it says so
        machine.run("systemctl restart allout");
        assert_eq!(get("/").status, 200);
        machine.run("systemctl stop allout.service");
        assert!(machine.is(ENDED, ENDED_WELL));
    }
    assert!(machine.said("info").contains("descriptor 3 (http)"));
    // Of several, those with the names.
    machine.run("systemctl stop allout.socket");
    for (name, port) in [("admin", 9000), ("debug", 9001)] {
        let socket =
            format!("[Socket]\nListenStream=127.0.0.1:{port}\nService=allout.service\nFileDescriptorName={name}");
        machine.run(&format!("echo '{socket}' > /etc/systemd/system/{name}.socket && systemctl daemon-reload"));
    }
    machine.add("allout.service", "[Service]\nSockets=admin.socket debug.socket allout.socket");
    machine.run("systemctl start admin.socket debug.socket allout.socket");
    assert_eq!((get("/").status, get("/healthz").status), (200, 404));
    let admin = |path: &str| format!("curl -s -o /dev/null -w '%{{http_code}}' http://127.0.0.1:9000{path}");
    for (path, status) in [("/healthz", "200"), ("/", "404")] {
        assert_eq!(String::from_utf8_lossy(&machine.try_run(&admin(path)).stdout), status, "{path}");
    }
    assert!(machine.said("warning").contains("(debug) was passed as well"), "{}", machine.said("warning"));
}

#[test]
#[ignore = "needs root and systemd"]
fn a_socket_of_another_kind_is_one_clear_error() {
    let machine = Machine::with_service("Restart=no");
    let unusable = "the socket that was passed cannot be used";
    for (kind, what, why) in [
        ("ListenDatagram=127.0.0.1:8088", unusable, "is no TCP socket"),
        ("ListenStream=/run/allout.sock", "cannot listen on unix:/run/allout.sock", "choose the native engine"),
        ("ListenFIFO=/run/allout.fifo", unusable, "is no socket"),
    ] {
        let unit = format!("[Socket]\n{kind}\nFileDescriptorName=http\n");
        machine.run(&format!("printf '{unit}' > /etc/systemd/system/allout.socket && systemctl daemon-reload"));
        machine.run("systemctl start allout.socket");
        assert!(!machine.try_run("systemctl start allout.service").status.success());
        // What is new.
        let said = machine.journal("--cursor-file=/run/cursor -o cat _SYSTEMD_UNIT=allout.service");
        let errors = said.lines().filter(|line| !line.contains("the service manager passed a socket"));
        let [line] = errors.collect::<Vec<_>>()[..] else { panic!("more than one line: {said}") };
        assert!(line.contains(what) && line.contains(why), "{line}");
        assert!(machine.show("ExecMainStatus").ends_with("=1"));
        machine.run("systemctl stop allout.socket; systemctl reset-failed allout");
    }
}

#[test]
#[ignore = "needs root and systemd"]
fn the_journal_has_levels_and_no_times() {
    let machine = Machine::with_service("Environment=RUST_LOG=nonsense=nonsense");
    machine.run("systemctl start allout && systemctl stop allout");
    let warnings = machine.said("warning");
    let [line] = warnings.lines().collect::<Vec<_>>()[..] else { panic!("more than one warning: {warnings}") };
    assert!(line.starts_with("RUST_LOG is ignored"), "{line}");
    let all = machine.said("debug");
    assert!(all.lines().any(|line| line.ends_with(&format!("listening on http://{HERE}"))), "{all}");
    assert!(all.lines().any(|line| line.starts_with("stopped: SIGTERM, all out after ")), "{all}");
}

#[test]
#[ignore = "needs root and systemd"]
fn the_units_are_hardened_and_systemd_has_nothing_to_say_about_them() {
    let machine = Machine::boot();
    machine.run("cd /etc/systemd/system && allout --systemd-unit > allout.service");
    machine.run("cd /etc/systemd/system && allout --systemd-unit=socket > allout.socket");
    machine.run("cd /etc/systemd/system && allout --systemd-unit=template > allout@.service");
    let units = "allout.service allout.socket allout@8081.service";
    let verified = machine.try_run(&format!("cd /etc/systemd/system && systemd-analyze verify {units}"));
    let said = [verified.stdout.as_slice(), verified.stderr.as_slice()].concat();
    assert!(verified.status.success() && said.is_empty(), "{}", String::from_utf8_lossy(&said));
    // In tenths.
    machine.run("systemctl daemon-reload && systemd-analyze security --threshold=10 --no-pager allout.service");
}

#[test]
#[ignore = "needs root and systemd"]
fn options_beside_the_unit_are_in_force_and_its_address_is_reached() {
    let machine = Machine::boot();
    // Without a credential: systemd cannot make one readable here, since the kernel's tmpfs has no access control lists.
    machine.run(
        "allout --systemd-unit --listen 0.0.0.0:80 --grace '1m 30s' > /etc/systemd/system/allout.service \
         && systemctl daemon-reload && systemctl start allout",
    );
    let there = SocketAddr::from(([127, 0, 0, 1], 80));
    let ask = |path: &str| Connection::open(there, LIMIT).expect("it can be connected to").ask("GET", path);
    assert_eq!(ask("/").status, 200);
    assert!(machine.show("StatusText").contains("serving on http://0.0.0.0:80"), "{}", machine.show("StatusText"));
    let limits = machine.said("info");
    let limits = limits.lines().find(|line| line.contains("at most ")).unwrap_or_default();
    assert!(limits.contains("4096 connections") && !limits.contains("limit on"), "{limits}");
    let environment = machine.show("Environment");
    assert!(environment.contains("ALLOUT_GRACE=1m 30s"), "{environment}");
    machine.run("systemctl stop allout");
    assert_eq!(machine.show(ENDED), ENDED_WELL);
    let refused = machine.try_run("allout --systemd-unit --shutdown-token s3cret");
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
}

/// Gives the machine an address that is not one of loopback: what connects to it comes from there, too.
fn address_of_others(machine: &Machine) -> SocketAddr {
    machine.run("ip address add 192.0.2.1/32 dev lo");
    SocketAddr::from(([192, 0, 2, 1], HERE.port()))
}

#[test]
#[ignore = "needs root and systemd"]
fn an_address_in_the_file_of_options_is_reached_by_others() {
    let machine = Machine::with_service("");
    let there = address_of_others(&machine);
    machine.run("echo ALLOUT_LISTEN=0.0.0.0:8088 > /etc/default/allout && systemctl start allout");
    let response = Connection::open(there, LIMIT).expect("it can be connected to").ask("GET", "/");
    assert_eq!(response.status, 200);
    // Otherwise a rule of the unit would keep the clients out.
    machine.add("allout.service", "[Service]\nIPAddressAllow=\nIPAddressAllow=localhost");
    machine.run("systemctl restart allout");
    assert_eq!(get("/").status, 200);
    assert!(Connection::open(there, Duration::from_secs(1)).is_err(), "the rule is not in force");
}

/// The file is read anew, and what cannot work fails the reload and nothing else.
#[test]
#[ignore = "needs root and systemd"]
fn a_reload_takes_the_options_of_the_file_or_fails() {
    let machine = Machine::with_service("");
    machine.run("echo ALLOUT_WORKERS=7 > /etc/default/allout && systemctl start allout");
    assert!(machine.said("info").contains("at most 7 workers"), "{}", machine.said("info"));
    machine.run("echo ALLOUT_WORKERS=9 > /etc/default/allout && systemctl reload allout");
    wait_until(LIMIT, "the new options", || machine.said("info").contains("at most 9 workers"));
    machine.run("rm /etc/default/allout && systemctl reload allout");
    wait_until(LIMIT, "the defaults", || machine.said("info").contains("at most 2048 workers"));
    machine.wait_for("ActiveState,SubState", "ActiveState=active SubState=running");

    let before = machine.show("MainPID,NRestarts");
    for bad in ["ALLOUT_GRACE=soon", "ALLOUT_SHUTDOWN_TOKEN_FILE=/nonexistent", "nonsense"] {
        machine.run(&format!("echo {bad} > /etc/default/allout"));
        let reload = machine.try_run("systemctl reload allout");
        assert!(!reload.status.success(), "{bad}: {reload:?}");
        assert_eq!(get("/").status, 200);
        assert_eq!(machine.show("MainPID,NRestarts"), before, "{bad}");
    }
    machine.run("cp /bin/false /usr/local/bin/next && mv /usr/local/bin/next /usr/local/bin/allout");
    let reload = machine.try_run("systemctl reload allout");
    assert!(!reload.status.success(), "{reload:?}");
    assert_eq!((get("/").status, machine.show("MainPID,NRestarts")), (200, before));
}

#[test]
#[ignore = "needs root and systemd"]
fn instances_of_the_template_serve_the_ports_that_they_are_called_by() {
    let machine = Machine::boot();
    machine.run("allout --systemd-unit=template --idle-timeout 20s > /etc/systemd/system/allout@.service");
    machine.run("systemctl daemon-reload && systemctl start allout@8081 allout@8082");
    for port in [8081, 8082] {
        let there = SocketAddr::from(([127, 0, 0, 1], port));
        let response = Connection::open(there, LIMIT).expect("it can be connected to").ask("GET", "/");
        assert_eq!(response.status, 200);
    }
    machine.run("systemctl stop allout@8081 allout@8082");
}

#[test]
#[ignore = "needs root and systemd"]
fn a_reload_keeps_the_process_and_its_state() {
    let machine = Machine::with_service("");
    machine.run("systemctl start allout");
    let before = machine.show("MainPID,NRestarts");
    machine.run("systemctl reload allout");
    wait_until(LIMIT, "the re-exec", || machine.said("info").matches("listening on http://").count() == 2);
    machine.wait_for("ActiveState,SubState", "ActiveState=active SubState=running");
    assert_eq!(get("/").status, 200);
    assert_eq!(machine.show("MainPID,NRestarts"), before);
    machine.run("systemctl stop allout");
    assert_eq!(machine.show(ENDED), ENDED_WELL);
}

/// Until it has answered some more: so the load is under way.
fn some_more(running: &Running) {
    let answered = running.answered();
    wait_until(LIMIT, "some answers", || running.answered() > answered + 64);
}

#[track_caller]
fn assert_unnoticed(report: &Report) {
    println!("{report}");
    let counts = &report.counts;
    let told: Vec<_> = counts.losses.iter().map(|loss| format!("\n  {loss}")).collect();
    assert_eq!((counts.lost, counts.refused), (0, 0), "{report}{}", told.concat());
    assert_eq!(counts.statuses.keys().copied().collect::<Vec<_>>(), [200], "{report}");
}

/// The load's threads are in the network of the thread that starts them: this one's, which is the machine's.
fn load(mode: Mode) -> Running {
    let load = Load { mode, lasts: LIMIT * 10, retry: false, ..Load::new(HERE, 32) };
    Running::start(load, None).expect("the clients start")
}

#[test]
#[ignore = "needs root and systemd"]
fn restarts_with_a_socket_of_systemd_are_not_noticed() {
    // So many in so short a time are no loop here.
    let machine = Machine::with_service("");
    machine.add("allout.service", "[Unit]\nStartLimitIntervalSec=0");
    machine.run("allout --systemd-unit=socket > /etc/systemd/system/allout.socket && systemctl daemon-reload");
    machine.run("systemctl start allout.socket");
    for mode in [Mode::KeepAlive, Mode::Close] {
        let running = load(mode);
        for _ in 0..10 {
            some_more(&running);
            running.cause(|| machine.run("systemctl restart allout.service").clear());
        }
        some_more(&running);
        assert_unnoticed(&running.end());
    }
    // The socket is idle while the service is stopped: the next request starts it.
    machine.run("systemctl stop allout.service");
    assert_eq!(get("/").status, 200);
}

#[test]
#[ignore = "needs root and systemd"]
fn reloads_are_not_noticed() {
    for socket in [false, true] {
        let machine = Machine::with_service("WatchdogSec=2s");
        if socket {
            machine.run("allout --systemd-unit=socket > /etc/systemd/system/allout.socket && systemctl daemon-reload");
            machine.run("systemctl start allout.socket");
        }
        machine.run("systemctl start allout");
        let before = machine.show("MainPID,NRestarts,ExecMainStartTimestampMonotonic");
        let running = load(Mode::Close);
        for reload in 1..=5 {
            some_more(&running);
            running.cause(|| machine.run("systemctl reload allout").clear());
            let serving = || machine.said("info").matches("listening on http://").count() == reload + 1;
            wait_until(LIMIT, "the re-exec", serving);
        }
        some_more(&running);
        assert_unnoticed(&running.end());
        // Longer than the watchdog's patience.
        std::thread::sleep(Duration::from_secs(3));
        machine.wait_for("ActiveState,SubState", "ActiveState=active SubState=running");
        assert_eq!(machine.show("MainPID,NRestarts,ExecMainStartTimestampMonotonic"), before);
        assert_eq!(machine.said("warning"), "");
        if socket {
            // It is systemd's still: what comes after a stop is for the next instance.
            machine.run("systemctl stop allout.service");
            assert_eq!(get("/?user=next").text(), "hello, next");
        }
        machine.run("systemctl stop allout.service");
    }
}

/// The last package of this kind that `src/packaging/build.sh` has built.
fn package(kind: &str) -> Option<PathBuf> {
    let made = fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/target/packaging")).ok()?;
    made.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.extension().is_some_and(|is| is == kind)).max()
}

/// Copies a file from outside: the machine has a /tmp of its own, where the checkout may be.
#[track_caller]
fn put(machine: &Machine, file: &Path, to: &str) {
    let file = File::open(file).expect("it was there");
    let copied = machine.command(&format!("cat > {to}")).stdin(file).status().expect("nsenter starts");
    assert!(copied.success(), "{to} cannot be written: {copied}");
}

#[test]
#[ignore = "needs root, systemd, dpkg and a package: src/packaging/build.sh deb"]
fn a_package_is_installed_started_upgraded_and_removed() {
    let Some(package) = package("deb") else {
        eprintln!("not run: no package");
        return;
    };
    let machine = Machine::boot();
    // /var is empty: no package is installed.
    machine.run("mkdir -p /var/lib/dpkg/info /var/lib/dpkg/updates && touch /var/lib/dpkg/status");
    // Images for containers have one that keeps packages from starting anything.
    machine.run("rm -f /usr/sbin/policy-rc.d");
    put(&machine, &package, "/tmp/allout.deb");
    machine.run("dpkg -i /tmp/allout.deb");
    assert_eq!(machine.show("ActiveState,UnitFileState"), "ActiveState=inactive UnitFileState=disabled");
    machine.run("echo ALLOUT_GRACE=12s >> /etc/default/allout");
    machine.run("systemctl enable --now allout");
    assert_eq!(get("/").status, 200);
    let before = machine.show("MainPID");
    let program = || machine.run("readlink /proc/$(systemctl show allout --property=MainPID --value)/exe");

    let next = "/tmp/next/DEBIAN/control";
    machine.run(&format!("dpkg-deb -R /tmp/allout.deb /tmp/next && sed -i 's/^Version: .*/Version: 99/' {next}"));
    machine.run("dpkg-deb -b /tmp/next /tmp/next.deb");
    let running = load(Mode::Close);
    some_more(&running);
    running.cause(|| machine.run("dpkg -i /tmp/next.deb").clear());
    // A re-exec under load that leaves it no pause may take all its grace.
    wait_until(LIMIT * 2, "the new program to run", || program() == "/usr/bin/allout");
    some_more(&running);
    assert_unnoticed(&running.end());
    assert_eq!(machine.show("MainPID"), before);
    assert_eq!(
        machine.show("Result,ActiveState,UnitFileState"),
        "Result=success ActiveState=active UnitFileState=enabled"
    );
    machine.run("grep -q ALLOUT_GRACE=12s /etc/default/allout");

    machine.run("dpkg -r allout");
    wait_until(LIMIT, "the port to be closed", || Connection::open(HERE, LIMIT).is_err());
    machine.run("test ! -e /usr/bin/allout && test -e /etc/default/allout");
    machine.run("dpkg -P allout");
    machine
        .run("test ! -e /etc/default/allout && test ! -e /etc/systemd/system/multi-user.target.wants/allout.service");
}

#[test]
#[ignore = "needs root, systemd, rpm and a package: src/packaging/build.sh rpm"]
fn a_package_of_rpm_is_installed_started_upgraded_and_removed() {
    let package = package("rpm").filter(|_| Command::new("rpm").arg("--version").output().is_ok());
    let Some(package) = package else {
        eprintln!("not run: no package, or no rpm");
        return;
    };
    let machine = Machine::boot();
    put(&machine, &package, "/tmp/allout.rpm");
    // There is no other package in its database, and so nothing that the scripts' /bin/sh could come from.
    let rpm = |words: &str| machine.run(&format!("rpm --dbpath /var/lib/rpm --nodeps {words}"));
    rpm("-i /tmp/allout.rpm");
    assert_eq!(rpm("-V allout"), "");
    assert_eq!(machine.show("ActiveState,UnitFileState"), "ActiveState=inactive UnitFileState=disabled");
    machine.run("echo ALLOUT_GRACE=12s >> /etc/default/allout && systemctl enable --now allout");
    assert_eq!(get("/").status, 200);
    let before = machine.show("MainPID");

    // To its scripts, the same once more is an upgrade.
    rpm("-U --replacepkgs /tmp/allout.rpm");
    wait_until(LIMIT, "the re-exec", || machine.said("info").contains("re-executing"));
    machine.wait_for("MainPID,ActiveState", &format!("{before} ActiveState=active"));
    assert_eq!(get("/").status, 200);
    machine.run("grep -q ALLOUT_GRACE=12s /etc/default/allout");

    rpm("-e allout");
    wait_until(LIMIT, "the port to be closed", || Connection::open(HERE, LIMIT).is_err());
    machine.run("test ! -e /usr/bin/allout && test -e /etc/default/allout.rpmsave");
    machine.run("test ! -e /etc/systemd/system/multi-user.target.wants/allout.service");
}
