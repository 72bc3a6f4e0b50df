//! The crew as a specification: what is the cause, who is abandoned, and with which code it ends.

use super::*;
use crate::crew::message::Command;
use std::io;

fn waits(stop: &Stop) {
    stop.wait();
}

#[test]
fn a_crew_without_members_is_out_at_once() {
    let outcome = Crew::new().run();
    assert_eq!((outcome.code(), outcome.abandoned.len()), (0, 0));
}

#[test]
fn a_member_that_merely_returns_takes_everyone_out() {
    let mut crew = Crew::new();
    crew.spawn("waits", waits).unwrap();
    crew.spawn("returns", |_| ()).unwrap();
    let outcome = crew.run();
    assert_eq!(outcome.cause, Cause::Member { name: "returns".into(), exit: Exit::Finished });
    assert_eq!((outcome.code(), outcome.abandoned.len()), (1, 0));
}

#[test]
fn a_member_that_fails_is_the_cause_with_its_error() {
    let mut crew = Crew::new();
    crew.spawn("fails", |_| Err(io::Error::other("the disk is gone"))).unwrap();
    let outcome = crew.run();
    assert_eq!(outcome.cause.to_string(), "fails failed: the disk is gone");
    assert_eq!(outcome.code(), 1);
}

#[test]
fn a_member_that_panics_is_the_cause_with_its_message() {
    let mut crew = Crew::new();
    for n in 0..10 {
        crew.spawn(&format!("waits-{n}"), waits).unwrap();
    }
    crew.spawn("panics", |_| -> () { std::panic::resume_unwind(Box::new("out of tea")) }).unwrap();
    let outcome = crew.run();
    assert_eq!(outcome.cause.to_string(), "panics panicked: out of tea");
    assert!(outcome.abandoned.is_empty(), "the ten others left: {outcome:?}");
}

#[test]
fn a_crew_that_is_asked_to_stop_ends_with_code_0() {
    let mut crew = Crew::new();
    crew.spawn("waits", waits).unwrap();
    let stopper = crew.stopper();
    stopper.stop("a test");
    stopper.stop("another");
    let outcome = crew.run();
    assert_eq!(outcome.cause, Cause::Requested("a test".into()));
    assert_eq!(outcome.code(), 0);
}

#[test]
fn a_member_is_interrupted_once_and_from_outside() {
    let mut crew = Crew::new();
    let (sender, receiver) = crossbeam_channel::bounded::<()>(0);
    crew.spawn_with_interrupt(
        "receives",
        move || drop(sender),
        move || {
            let _ = receiver.recv();
        },
    )
    .unwrap();
    crew.stopper().stop("a test");
    assert!(crew.run().abandoned.is_empty());
}

#[test]
fn a_member_that_never_ends_is_abandoned_and_named() {
    let mut crew = Crew::new().grace(Duration::from_millis(20));
    let (_kept, receiver) = crossbeam_channel::bounded::<()>(0);
    crew.spawn("never ends", move |_| {
        let _ = receiver.recv();
    })
    .unwrap();
    crew.stopper().stop("a test");
    let outcome = crew.run();
    assert_eq!(outcome.abandoned, ["never ends"]);
    assert_eq!(outcome.code(), 3);
}

#[test]
fn a_failure_after_the_cause_is_reported_too() {
    let mut crew = Crew::new();
    crew.spawn("fails late", |stop| {
        stop.wait();
        Err(io::Error::other("could not save"))
    })
    .unwrap();
    crew.stopper().stop("a test");
    let outcome = crew.run();
    assert_eq!(outcome.failures, ["fails late failed: could not save"]);
    assert_eq!(outcome.code(), 1);
}

#[test]
fn a_second_signal_ends_the_stop_at_once() {
    let mut crew = Crew::new();
    let (_kept, receiver) = crossbeam_channel::bounded::<()>(0);
    crew.spawn("never ends", move |_| {
        let _ = receiver.recv();
    })
    .unwrap();
    crew.stopper().command(Command::Signal(15));
    crew.stopper().command(Command::Signal(2));
    assert_eq!(crew.run().code(), 130);
}
