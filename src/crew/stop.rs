//! Being told to stop, seen from the threads that are told: a latch that is pulled once and releases every waiter.
//!
//! Built on the one thing that a channel broadcasts: its own end. Nobody ever sends on a latch's channel; dropping the
//! only sender wakes whoever waits, and whoever asks later. So nothing polls, no send can block, and a waiter can put
//! the latch into a `select!` beside what else it waits for.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, bounded};

use crate::sync::lock;

/// Pulled at most once; any number of threads wait for it.
#[derive(Debug)]
struct Latch {
    // `Infallible`: what the channel carries is nothing, ever. Only its end means something.
    sender: Mutex<Option<Sender<Infallible>>>,
    pulled: Receiver<Infallible>,
}

impl Latch {
    fn new() -> Latch {
        let (sender, pulled) = bounded(0);
        Latch { sender: Mutex::new(Some(sender)), pulled }
    }

    fn pull(&self) {
        drop(lock(&self.sender).take());
    }

    fn is_released(&self) -> bool {
        matches!(self.pulled.try_recv(), Err(TryRecvError::Disconnected))
    }

    /// Whether the latch was pulled within `limit`.
    fn wait(&self, limit: Duration) -> bool {
        matches!(self.pulled.recv_timeout(limit), Err(RecvTimeoutError::Disconnected))
    }
}

/// What every member and every handler holds of the end: how far it has come.
///
/// Three moments matter. *Draining* is everything from the first message on: who could go on for ever, such as a handler
/// that streams, should come to an end. *Leaving* is when members are told to stop, which in a service is after the last
/// request. *Grace is over* a little before the grace period runs out: the last moment to answer. Cloning is cheap, and
/// all clones see the same.
#[derive(Clone, Debug)]
pub struct Stop {
    inner: Arc<Stages>,
}

#[derive(Debug)]
struct Stages {
    draining: Latch,
    leaving: Latch,
    over: Latch,
}

/// Grace is over: whoever was waiting should answer with what it has, now.
///
/// As an answer it is a 503 that tells the client to come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GraceExpired;

impl std::fmt::Display for GraceExpired {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the service is stopping and its grace period is over")
    }
}

impl std::error::Error for GraceExpired {}

impl Stop {
    pub(crate) fn new() -> Stop {
        Stop { inner: Arc::new(Stages { draining: Latch::new(), leaving: Latch::new(), over: Latch::new() }) }
    }

    /// Says that the first message has come.
    pub(crate) fn drain(&self) {
        self.inner.draining.pull();
    }

    /// Tells every member to leave. May be called again; nothing more happens.
    pub(crate) fn stop(&self) {
        self.drain();
        self.inner.leaving.pull();
    }

    /// Says that grace is over (and so, that it is time to leave).
    pub(crate) fn expire(&self) {
        self.stop();
        self.inner.over.pull();
    }

    /// Whether the first message has come.
    pub fn is_draining(&self) -> bool {
        self.inner.draining.is_released()
    }

    /// Whether members have been told to leave.
    pub fn is_stopping(&self) -> bool {
        self.inner.leaving.is_released()
    }

    /// Waits until members are told to leave, `limit` at most; true if they were.
    ///
    /// This is how a ticker sleeps: `while !stop.wait_timeout(period) { tick() }`.
    pub fn wait_timeout(&self, limit: Duration) -> bool {
        self.inner.leaving.wait(limit)
    }

    /// Waits, without limit, until members are told to leave.
    pub fn wait(&self) {
        let _ = self.inner.leaving.pulled.recv();
    }

    /// Sleeps for `span` in a handler: longer waits than the grace period end with it.
    ///
    /// # Errors
    ///
    /// [`GraceExpired`] if the service stops and its grace is over before `span` is.
    pub fn sleep(&self, span: Duration) -> Result<(), GraceExpired> {
        // A channel that times out rounds nothing down, but a spurious early return would cut a promise short.
        let Some(end) = Instant::now().checked_add(span) else {
            let _ = self.inner.over.pulled.recv(); // longer than the clock counts
            return Err(GraceExpired);
        };
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if self.inner.over.wait(left) {
                return Err(GraceExpired);
            }
            if Instant::now() >= end {
                return Ok(());
            }
        }
    }

    /// A channel that nothing is ever sent on, and that disconnects when members are told to leave: for `select!`.
    ///
    /// On purpose a type of `crossbeam_channel`, which is here as [`crate::channel`]: waiting for one of several things
    /// is what that crate is for.
    ///
    /// ```
    /// use allout::{Stop, channel};
    ///
    /// fn consumer(stop: &Stop, jobs: &channel::Receiver<String>) {
    ///     loop {
    ///         channel::select! {
    ///             recv(stop.stopping()) -> _ => return, // what is still in the queue is lost, unless it is taken here
    ///             recv(jobs) -> job => match job {
    ///                 Ok(job) => println!("{job}"),
    ///                 Err(_) => return, // nobody is left who could send one
    ///             },
    ///         }
    ///     }
    /// }
    /// ```
    pub fn stopping(&self) -> &Receiver<Infallible> {
        &self.inner.leaving.pulled
    }

    /// As [`stopping`](Stop::stopping), for the first message.
    pub fn draining(&self) -> &Receiver<Infallible> {
        &self.inner.draining.pulled
    }

    /// As [`stopping`](Stop::stopping), for the end of grace: what a handler that waits puts beside what it waits for.
    ///
    /// ```
    /// use std::time::Duration;
    /// use allout::{GraceExpired, Stop, channel};
    ///
    /// /// Waits for an answer from elsewhere, or for the last moment to say that there is none.
    /// fn wait(stop: &Stop, answers: &channel::Receiver<String>) -> Result<String, GraceExpired> {
    ///     channel::select! {
    ///         recv(answers) -> answer => Ok(answer.unwrap_or_default()),
    ///         recv(stop.grace_expired()) -> _ => Err(GraceExpired),
    ///     }
    /// }
    /// ```
    pub fn grace_expired(&self) -> &Receiver<Infallible> {
        &self.inner.over.pulled
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    const SAFETY: Duration = Duration::from_secs(20);

    #[test]
    fn a_pulled_latch_releases_every_waiter_and_those_who_come_later() {
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
            assert!(waiter.join().unwrap(), "a waiter was not told within {SAFETY:?}");
        }
        assert!(stop.is_stopping());
        assert!(stop.wait_timeout(Duration::ZERO));
    }

    #[test]
    fn a_handler_sleeps_through_leaving_and_wakes_when_grace_is_over() {
        let stop = Stop::new();
        stop.stop();
        assert!(stop.is_draining());
        assert_eq!(stop.sleep(Duration::from_millis(1)), Ok(()), "leaving alone cuts no handler short");
        let sleeper = {
            let stop = stop.clone();
            thread::spawn(move || stop.sleep(SAFETY))
        };
        stop.expire();
        assert_eq!(sleeper.join().unwrap(), Err(GraceExpired));
    }
}
