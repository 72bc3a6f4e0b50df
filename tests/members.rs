//! Members that may end, that come before readiness, and that are restarted.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says what it expects by panicking")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use allout::{Cause, Exit, Restart, Service, ServiceHandle, StartError, channel};

#[path = "common/engine.rs"]
mod engine;

/// Far longer than anything here takes, on a machine that is busy with something else.
const LIMIT: Duration = Duration::from_secs(20);

fn start(service: Service) -> Result<ServiceHandle, StartError> {
    service.engine(engine::ENGINE).listen("127.0.0.1:0").start()
}

fn get(address: SocketAddr, path: &str) -> String {
    let mut client = TcpStream::connect(address).unwrap();
    client.set_read_timeout(Some(LIMIT)).unwrap();
    client.write_all(format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").as_bytes()).unwrap();
    let mut response = String::new();
    client.read_to_string(&mut response).unwrap();
    response
}

#[test]
fn a_one_shot_ends_well_and_the_service_goes_on() {
    let (ended, ends) = channel::bounded::<()>(0);
    let running = start(Service::new().get("/", |_| "hello").one_shot("warm-up", move |_| drop(ended))).unwrap();
    assert!(ends.recv_timeout(LIMIT).is_err_and(|error| error.is_disconnected()), "it runs");
    assert!(get(running.address(), "/").ends_with("hello"));
    assert_eq!(running.stop("a test").code(), 0);
}

#[test]
fn a_one_shot_that_fails_takes_everyone_out() {
    let running = start(Service::new().one_shot("warm-up", |_| Err("no cache"))).unwrap();
    let outcome = running.wait();
    assert!(matches!(&outcome.cause, Cause::Member { name, exit: Exit::Failed(_) } if name == "warm-up"), "{outcome}");
    assert_eq!(outcome.code(), 1);
}

#[test]
fn requests_wait_for_what_comes_before_readiness() {
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
fn a_service_does_not_start_if_what_comes_before_readiness_fails_or_is_stopped() {
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
