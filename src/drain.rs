//! The drain: what the main thread does from the first message until the last member is out.
//!
//! # The phases
//!
//! 1. *Drain delay* (0 s unless configured). All is served as before, new connections included, so that a load balancer
//!    can see `/healthz` say 503; every response tells its client to close.
//! 2. *Finishing*. The gate is closed: the kernel ignores new connections. What it had queued is accepted and answered.
//!    (If the listening socket outlives this service, the gate stays open and tiny_http stops accepting instead: the
//!    kernel's queue is for whoever has the socket next, be it the next image or the next instance under systemd.)
//!    Requests in flight finish; a connection's last response says `Connection: close`. An idle connection has the
//!    linger to speak once more; then its input is ended. This phase is over when no connection is left.
//! 3. *Leaving*. Members are told to leave, and counted home.
//! 4. *Out*.
//!
//! # Why nothing is lost
//!
//! A request that a client has sent whole is always in a place that somebody looks at before the drain goes on:
//!
//! * in the kernel's queue of connections: `tcp_info` of the listening socket counts them;
//! * between that queue and a descriptor: for a few instructions of the accept thread, hence two quiet looks in a row;
//! * in a connection's receive buffer: `FIONREAD` counts its bytes, and input is ended only where there are none; what
//!   arrives after the look and before the end is still read, since the kernel gives out what it has received before it
//!   reports the end (`tcp_recvmsg` looks at the queue before `RCV_SHUTDOWN`);
//! * in tiny_http, read and not yet received by the listener: its connection's descriptor is open until the request is
//!   dropped, and no connection counts as gone while its descriptor is open;
//! * on a page of the book, waiting or in flight: counted, and its descriptor is open as well.
//!
//! Leaving is the end of the accept thread, so it comes after all of these are empty, with the gate closed all along.
//! Where the socket is handed over instead, the accept thread is known to have ended before the first of the looks.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::book::Book;
use crate::crew::{Crew, Departure};
use crate::gate::Gate;
use crate::hooks::{self, Hook};
use crate::keeper::Keeper;
use crate::listener::Listener;
use crate::outcome::in_words;
use crate::phase::{Current, Phase};

/// How often the log says how far the drain is.
const PROGRESS: Duration = Duration::from_secs(1);

/// For how long members may leave when grace was used up by requests: the exit comes within half a second of its end.
const LAST_CALL: Duration = Duration::from_millis(250);

/// What a drain works on.
pub(crate) struct Drain {
    pub(crate) book: Arc<Book>,
    pub(crate) gate: Arc<Gate>,
    pub(crate) keeper: Arc<Keeper>,
    pub(crate) phase: Arc<Current>,
    pub(crate) listener: Arc<Listener>,
    pub(crate) delay: Duration,
    /// The listening socket outlives this service: it is systemd's, or goes to the next image.
    pub(crate) handover: bool,
}

impl Drain {
    /// Takes everyone out. Only a second signal makes it shorter than its phases.
    pub(crate) fn run(&self, crew: &mut Crew, departure: &mut Departure, before: Vec<Hook>, after: Vec<Hook>) {
        self.phase.advance(Phase::DrainDelay);
        crew.stop().drain();
        log::info!("{}: one out, all out: {}", departure.cause, self.what_is_left());
        hooks::run("before_drain", before, departure.began + departure.grace / 2, crew, departure);
        if !self.delay.is_zero() {
            log::info!("drain delay: serving as before for {}", in_words(self.delay));
            let until = departure.began + self.delay;
            while departure.forced.is_none() && Instant::now() < until.min(departure.end()) && crew.all_in() {
                crew.listen(until.min(departure.end()), departure);
            }
        }

        self.phase.advance(Phase::Finishing);
        if self.handover {
            let listener = Arc::clone(&self.listener);
            self.keeper.hand_over(move || listener.accepts_no_more());
            if let Err(error) = self.listener.stop_accepting() {
                log::warn!("tiny_http may go on accepting, so that some connections may be reset: {error}");
            }
        } else if let Err(error) = self.gate.close() {
            log::warn!("new connections cannot be kept out, so that some may be reset: {error}");
        }
        self.keeper.wake();
        self.finish(crew, departure);

        for request in self.book.in_flight_by_name() {
            if departure.forced.is_none() {
                log::warn!("abandoned: {request}");
                departure.abandoned.push(request);
                departure.excused = vec!["workers"];
            }
        }
        let until = departure.end().max(Instant::now() + LAST_CALL / 2);
        hooks::run("after_last_request", after, until, crew, departure);
        self.phase.advance(Phase::Leaving);
        departure.not_before(Instant::now() + LAST_CALL);
        crew.dismiss(departure);
        self.phase.advance(Phase::Out);
    }

    /// Waits until no connection is left, or grace is over.
    fn finish(&self, crew: &mut Crew, departure: &mut Departure) {
        let mut progress = Instant::now() + PROGRESS;
        departure.nudged = false;
        while departure.forced.is_none() && !departure.nudged {
            let now = Instant::now();
            if now >= departure.notice() {
                crew.stop().end_grace();
            }
            if now >= departure.end() {
                return;
            }
            if now >= progress {
                log::info!("draining: {}, {} of grace left", self.what_is_left(), in_words(departure.end() - now));
                progress = now + PROGRESS;
            }
            if !crew.is_in("keeper") && self.book.in_flight() == 0 {
                return; // nobody is left who could see more than this
            }
            let next = if now < departure.notice() { departure.notice() } else { departure.end() };
            crew.listen(next.min(progress), departure);
        }
    }

    fn what_is_left(&self) -> String {
        let waiting = match self.book.waiting() {
            0 => String::new(),
            n => format!(" ({n} more behind)"),
        };
        let in_flight = counted(self.book.in_flight(), "request");
        format!("{in_flight} in flight{waiting}, {} open", counted(self.book.connections(), "connection"))
    }
}

/// `1 request`, `2 requests`.
pub(crate) fn counted(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}
