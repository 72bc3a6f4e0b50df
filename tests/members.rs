//! Members that may end, that come before readiness, and that are restarted.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says what it expects by panicking")]

use std::fs::File;
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use allout::{Cause, Exit, Restart, Service, ServiceHandle, StartError, Stop, channel};
use engine::{LIMIT, get};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

#[path = "common/engine.rs"]
mod engine;

fn start(service: Service) -> Result<ServiceHandle, StartError> {
    service.engine(engine::ENGINE).listen("127.0.0.1:0").start()
}

#[test]
fn a_one_shot_finishes_and_the_service_goes_on() {
    let (ended, ends) = channel::bounded::<()>(0);
    let running = start(Service::new().get("/", |_| "hello").one_shot("warm-up", move |_| drop(ended))).unwrap();
    assert!(ends.recv_timeout(LIMIT).is_err_and(|error| error.is_disconnected()), "it runs");
    assert!(get(running.address(), "/").ends_with("hello"));
    assert_eq!(running.stop("a test").code(), 0);
}

#[test]
fn a_one_shot_that_fails_stops_the_service() {
    let running = start(Service::new().one_shot("warm-up", |_| Err("no cache"))).unwrap();
    let outcome = running.wait();
    assert!(matches!(&outcome.cause, Cause::Member { name, exit: Exit::Failed(_) } if name == "warm-up"), "{outcome}");
    assert_eq!(outcome.code(), 1);
}

#[test]
fn a_member_may_be_a_closure_that_never_returns() {
    let running = start(Service::new().member("jobs", |_| panic!("on purpose"))).unwrap();
    let outcome = running.wait();
    assert!(matches!(&outcome.cause, Cause::Member { name, exit: Exit::Panicked(_) } if name == "jobs"), "{outcome}");
}

#[test]
fn requests_wait_until_before_ready_has_finished() {
    // A port that was free a moment ago: the address must be known before the service has started.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (begun, begins) = channel::bounded(1);
    let (release, held) = channel::bounded::<()>(0);
    let order = Arc::new(AtomicU32::new(0));
    let step = |number: u32| {
        let order = Arc::clone(&order);
        move || assert_eq!(order.fetch_add(1, Ordering::Relaxed), number, "in the order given")
    };
    let (first, second, third) = (step(0), step(1), step(2));
    let service = Service::new()
        .get("/", |_| "hello")
        .member("member", move |stop| {
            third();
            stop.wait();
        })
        .before_ready("migrate", move |_| {
            first();
            begun.send(()).unwrap();
            let _ = held.recv();
        })
        .before_ready("check", move |_| second())
        .engine(engine::ENGINE)
        .listen(address);
    let starts = std::thread::spawn(move || service.start());
    begins.recv_timeout(LIMIT).expect("it runs");
    let client = std::thread::spawn(move || get(address, "/"));
    assert!(!starts.is_finished() && !client.is_finished());
    drop(release);
    let running = starts.join().unwrap().expect("the service starts");
    assert!(client.join().unwrap().ends_with("hello"));
    assert_eq!(running.stop("a test").code(), 0);
    assert_eq!(order.load(Ordering::Relaxed), 3);
}

#[test]
fn a_service_does_not_start_if_before_ready_fails_or_is_stopped() {
    let failed = start(Service::new().before_ready("migrate", |_| Err("no database"))).expect_err("it failed");
    assert_eq!(failed.to_string(), "stopped before it was ready: migrate failed: no database");
    let service = Service::new();
    let stopper = service.stopper();
    let stopped = start(service.before_ready("migrate", move |stop| {
        stopper.stop("a test");
        stop.wait(); // and it is waited for
    }));
    assert!(matches!(&stopped, Err(StartError::Stopped(Cause::Requested(why))) if why == "a test"), "{stopped:?}");
}

/// The variable that makes `a_process_with_few_descriptors` one.
const FEW_DESCRIPTORS: &str = "ALLOUT_TEST_FEW_DESCRIPTORS";

/// Takes all descriptors of this process but `more` of them.
fn take_descriptors(more: usize) -> Vec<File> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: Some(256), maximum }).unwrap();
    let mut taken: Vec<_> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
    taken.truncate(taken.len().saturating_sub(more));
    taken
}

fn count(directory: &str) -> usize {
    std::fs::read_dir(directory).unwrap().count()
}

/// Not a test by itself: descriptors are those of a whole process.
#[test]
#[ignore = "a process of its own for the test below"]
fn a_process_with_few_descriptors() {
    if std::env::var_os(FEW_DESCRIPTORS).is_none() {
        return;
    }
    // Without those of tiny_http, which end after 5 s.
    let threads = || {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        let names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
        names.filter(|name| name != "connection\n").count()
    };
    let before = (threads(), count("/proc/self/fd"));
    let mut more = 0;
    for _ in 0..100 {
        let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let addresses = listeners.map(|listener| listener.local_addr().unwrap());
        let stopped = Arc::new(AtomicBool::new(false));
        let (tell, taken) = (Arc::clone(&stopped), Arc::new(Mutex::new(Vec::new())));
        let takes = Arc::clone(&taken);
        let service = Service::new()
            .engine(engine::ENGINE)
            .get("/", |_| "hello")
            .listen(addresses[0])
            .listen(addresses[1])
            .before_ready("limit", move |_| *takes.lock().unwrap() = take_descriptors(more))
            .member("consumer", move |stop| {
                stop.wait();
                tell.store(true, Ordering::Relaxed);
            });
        let started = service.start();
        taken.lock().unwrap().clear();
        match started {
            Ok(running) => {
                assert_eq!(running.stop("a test").code(), 0);
                if more > 0 {
                    return;
                }
                continue; // another thread gave one back: the C library looks into /sys for its number of arenas
            }
            Err(error) => assert!(matches!(error, StartError::System(..)), "{error}"),
        }
        assert!(stopped.load(Ordering::Relaxed), "{more}: the member goes on");
        let began = Instant::now();
        while threads() > before.0 || count("/proc/self/fd") > before.1 {
            let now = (threads(), count("/proc/self/fd"));
            assert!(began.elapsed() < LIMIT, "{more}: {now:?} threads and descriptors are left, of {before:?}");
            std::thread::yield_now();
        }
        for address in addresses {
            let refused = TcpStream::connect(address).expect_err("nothing listens there");
            assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused, "{more}");
        }
        more += 1;
    }
    panic!("it does not start");
}

#[test]
fn a_start_that_fails_half_way_leaves_nothing_behind() {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", engine::test_name("members::a_process_with_few_descriptors")])
        .args(["--ignored", "--nocapture", "--test-threads=1"])
        .env(FEW_DESCRIPTORS, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

#[test]
fn a_panic_in_on_listening_stops_the_service() {
    let running = start(Service::new().on_listening(|_| panic!("a bug"))).expect("it starts, and stops");
    let outcome = running.wait();
    assert_eq!((outcome.cause.to_string().as_str(), outcome.code()), ("on_listening panicked: a bug", 1));
}

#[test]
fn an_interrupt_that_panics_keeps_no_other_from_being_told_to_stop() {
    let running = start(
        Service::new().member_with_interrupt("first", || panic!("a bug"), Stop::wait).member("second", Stop::wait),
    )
    .unwrap();
    assert_eq!(running.stop("a test").code(), 0);
}

#[test]
fn a_member_is_restarted_until_it_has_ended_too_often() {
    let quick = Restart::new().times(3).backoff(Duration::ZERO, Duration::ZERO);
    let (told, tells) = channel::unbounded();
    let runs = AtomicU32::new(0);
    let running =
        start(Service::new().restarted_member(
            "consumer",
            quick,
            move |stop| match runs.fetch_add(1, Ordering::Relaxed) {
                0 => Err("the broker is gone"),
                1 => panic!("a bug"),
                _ => {
                    told.send(()).unwrap();
                    stop.wait();
                    Ok(())
                }
            },
        ))
        .unwrap();
    tells.recv_timeout(LIMIT).expect("it runs for the third time");
    assert_eq!(running.stop("a test").code(), 0);

    let running = start(Service::new().restarted_member("consumer", quick, |_| Err("the broker is gone"))).unwrap();
    let outcome = running.wait();
    assert_eq!((outcome.code(), outcome.cause.to_string()), (1, "consumer failed: the broker is gone".to_owned()));
}
