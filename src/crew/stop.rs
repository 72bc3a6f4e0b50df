//! The stop as the threads see it that are to stop: latches, each released once, for any number of waiters.
//!
//! A latch is a channel on which nothing is ever sent. Releasing it drops the only sender; the disconnected channel
//! wakes every waiter, now and later. So nothing polls, no release can block, and a waiter can put the latch into a
//! `select!` beside other channels.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, bounded};

use crate::sync::lock;

/// Released once; any number of threads wait for it.
#[derive(Debug)]
struct Latch {
    /// Dropped to release the latch.
    sender: Mutex<Option<Sender<Infallible>>>,
    /// `Infallible`: no message can exist. Disconnected means released.
    released: Receiver<Infallible>,
}

impl Latch {
    fn new() -> Latch {
        let (sender, released) = bounded(0);
        Latch { sender: Mutex::new(Some(sender)), released }
    }

    fn release(&self) {
        drop(lock(&self.sender).take());
    }

    fn is_released(&self) -> bool {
        matches!(self.released.try_recv(), Err(TryRecvError::Disconnected))
    }

    /// True if the latch is released within `limit`.
    fn wait(&self, limit: Duration) -> bool {
        matches!(self.released.recv_timeout(limit), Err(RecvTimeoutError::Disconnected))
    }
}

/// The stages of a stop, for members and handlers.
///
/// *Draining* begins with the [cause](crate::Cause) of the stop: a signal, `/shutdown`, the end of a member. A handler
/// that could go on without end, such as one that streams, should return then. *Stopping* begins when members are told
/// to return, which in a service is after the last request. *Grace expires* shortly before the grace period ends: the
/// last moment to answer. Clones are cheap and show the same stages.
#[derive(Clone, Debug)]
pub struct Stop {
    stages: Arc<Stages>,
}

#[derive(Debug)]
struct Stages {
    draining: Latch,
    stopping: Latch,
    expired: Latch,
}

/// The grace period is about to end: a handler that waits should answer now.
///
/// As a response it is a 503 that tells the client to retry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GraceExpired;

impl std::fmt::Display for GraceExpired {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the service is stopping and its grace period is over")
    }
}

impl std::error::Error for GraceExpired {
    /// A mark in place of itself: an error type that wraps this one may expose its sources alone.
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&GraceMark)
    }
}

/// Shows that a [`GraceExpired`] is the source of another error.
#[derive(Debug)]
pub(crate) struct GraceMark;

impl std::fmt::Display for GraceMark {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("stopping")
    }
}

impl std::error::Error for GraceMark {}

impl Stop {
    pub(crate) fn new() -> Stop {
        Stop { stages: Arc::new(Stages { draining: Latch::new(), stopping: Latch::new(), expired: Latch::new() }) }
    }

    /// Begins the stage *draining*.
    pub(crate) fn drain(&self) {
        self.stages.draining.release();
    }

    /// Begins the stage *stopping*. Later calls do nothing.
    pub(crate) fn stop(&self) {
        self.drain();
        self.stages.stopping.release();
    }

    /// Begins the stage *grace expires*, which includes *stopping*.
    pub(crate) fn expire(&self) {
        self.stop();
        self.stages.expired.release();
    }

    /// True once there is a cause to stop.
    pub fn is_draining(&self) -> bool {
        self.stages.draining.is_released()
    }

    /// True once members are told to return.
    pub fn is_stopping(&self) -> bool {
        self.stages.stopping.is_released()
    }

    /// Waits until members are told to return, or until `limit` is over. True if they are told to.
    ///
    /// This is how a ticker sleeps: `while !stop.wait_timeout(period) { tick() }`.
    ///
    /// ```
    /// let mut crew = allout::Crew::new();
    /// crew.spawn("ticker", |stop| {
    ///     while !stop.wait_timeout(std::time::Duration::from_secs(1)) {
    ///         println!("tick");
    ///     }
    /// })?;
    /// crew.stopper().stop("enough");
    /// assert_eq!(crew.run().code(), 0);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn wait_timeout(&self, limit: Duration) -> bool {
        self.stages.stopping.wait(limit)
    }

    /// Waits for a cause to stop, or until `limit` is over. True if there is one.
    pub(crate) fn wait_draining(&self, limit: Duration) -> bool {
        self.stages.draining.wait(limit)
    }

    /// Waits, without limit, until members are told to return.
    pub fn wait(&self) {
        let _ = self.stages.stopping.released.recv();
    }

    /// Sleeps for `span` in a handler, or until the grace expires.
    ///
    /// ```
    /// use std::time::Duration;
    /// use allout::{GraceExpired, Service};
    ///
    /// let service = Service::new().get("/slow", |request| -> Result<&str, GraceExpired> {
    ///     request.stop().sleep(Duration::from_secs(3))?; // 503 if the service stops meanwhile
    ///     Ok("done")
    /// });
    /// ```
    ///
    /// # Errors
    ///
    /// [`GraceExpired`] if the service stops and its grace expires before `span` is over.
    pub fn sleep(&self, span: Duration) -> Result<(), GraceExpired> {
        let Some(end) = Instant::now().checked_add(span) else {
            let _ = self.stages.expired.released.recv(); // `span` ends beyond what the clock can represent
            return Err(GraceExpired);
        };
        // Loops because a wait may end early, and this one must not.
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if self.stages.expired.wait(left) {
                return Err(GraceExpired);
            }
            if Instant::now() >= end {
                return Ok(());
            }
        }
    }

    /// A channel for `select!` that carries no message and disconnects when members are told to return.
    ///
    /// The type is that of `crossbeam_channel`, re-exported as [`crate::channel`], because waiting for one of several
    /// events is what that crate provides.
    ///
    /// ```
    /// use allout::{Stop, channel};
    ///
    /// fn consumer(stop: &Stop, jobs: &channel::Receiver<String>) {
    ///     loop {
    ///         channel::select! {
    ///             recv(stop.stopping()) -> _ => return, // jobs left in the queue are lost unless they are taken here
    ///             recv(jobs) -> job => match job {
    ///                 Ok(job) => println!("{job}"),
    ///                 Err(_) => return, // all senders are gone
    ///             },
    ///         }
    ///     }
    /// }
    /// ```
    pub fn stopping(&self) -> &Receiver<Infallible> {
        &self.stages.stopping.released
    }

    /// As [`stopping`](Stop::stopping), for the moment at which there is a cause to stop.
    pub fn draining(&self) -> &Receiver<Infallible> {
        &self.stages.draining.released
    }

    /// As [`stopping`](Stop::stopping), for the moment at which the grace expires: for handlers that wait for something
    /// else.
    ///
    /// ```
    /// use std::time::Duration;
    /// use allout::{GraceExpired, Stop, channel};
    ///
    /// /// Waits for an answer from elsewhere, or until the last moment to say that there is none.
    /// fn wait(stop: &Stop, answers: &channel::Receiver<String>) -> Result<String, GraceExpired> {
    ///     channel::select! {
    ///         recv(answers) -> answer => Ok(answer.unwrap_or_default()),
    ///         recv(stop.grace_expired()) -> _ => Err(GraceExpired),
    ///     }
    /// }
    /// ```
    pub fn grace_expired(&self) -> &Receiver<Infallible> {
        &self.stages.expired.released
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    const SAFETY: Duration = Duration::from_secs(20);

    #[test]
    fn a_released_latch_wakes_waiters_before_and_after() {
        let stop = Stop::new();
        let waiters: Vec<_> = (0..8)
            .map(|_| {
                let stop = stop.clone();
                thread::spawn(move || stop.wait_timeout(SAFETY))
            })
            .collect();
        stop.stop();
        stop.stop();
        for waiter in waiters {
            assert!(waiter.join().unwrap(), "a waiter was not woken within {SAFETY:?}");
        }
        assert!(stop.is_stopping());
        assert!(stop.wait_timeout(Duration::ZERO));
    }

    #[test]
    fn a_handler_sleeps_through_stopping_and_wakes_when_grace_expires() {
        let stop = Stop::new();
        stop.stop();
        assert!(stop.is_draining());
        assert_eq!(stop.sleep(Duration::from_millis(1)), Ok(()), "stopping alone cuts no sleep short");
        let sleeper = {
            let stop = stop.clone();
            thread::spawn(move || stop.sleep(SAFETY))
        };
        stop.expire();
        assert_eq!(sleeper.join().unwrap(), Err(GraceExpired));
    }
}
