//! The drain: what the main thread does from the first message until the last member is out.
//!
//! # The phases
//!
//! 1. *Drain delay*: for as long as configured (0 s by default), and for as long as requests are in flight that were
//!    when the message came. All is served as before, new connections included, so that a load balancer, or whoever
//!    asks, can see `/healthz` say 503; every response tells its client to close.
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
//! A request that a client has sent whole is always in a place that somebody looks at before the drain goes on. It only
//! ever moves down this list, and the looks go down it, too, so that none slips past them:
//!
//! 1. behind a handshake that has begun and is not over, so that the client believes that it is connected: nothing that
//!    can be asked for shows it, so the gate is closed for as long as the way to the farthest client and back takes;
//! 2. in the kernel's queue of connections: `tcp_info` of the listening socket counts them;
//! 3. between that queue and a descriptor, for a few instructions of the accept thread: nobody is there once that thread,
//!    which accepts one after the other, has accepted a knock of ours that came later;
//! 4. in a connection's receive buffer: `FIONREAD` counts its bytes, and input is ended only where there are none; what
//!    arrives after the look and before the end is still read, since the kernel gives out what it has received before it
//!    reports the end (`tcp_recvmsg` looks at the queue before `RCV_SHUTDOWN`);
//! 5. in tiny_http, read and not yet received by the listener: its connection's descriptor is open until the request is
//!    dropped, no connection counts as gone while its descriptor is open, and what arrives from a connection whose input
//!    was ended is answered all the same;
//! 6. on a page of the book, waiting or in flight: counted, and its descriptor is open as well.
//!
//! A connection whose handshake ends behind the closed gate ignores what its client says next until the keeper finds it
//! and makes it listen; the client then says it again. Such a connection has longer before its input is ended.
//!
//! Leaving is the end of the accept thread, so it comes after all of these are empty, with the gate closed all along.
//! Where the socket is handed over instead, places 1 and 2 are for whoever has it next, and the knock of 3 is at a side
//! door (see [`AcceptGate::show_side_door`]): who accepts there has let go of the socket.
//!
//! What remains is HTTP's own: a client that has been silent for longer than the linger and speaks in the very moment
//! that its connection is closed cannot know whether it was heard (RFC 9112, section 9.5).

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::crew::Crew;
use crate::crew::hooks::{self, Hook};
use crate::crew::member::SlotId;
use crate::crew::shutdown::{Shutdown, saturating_add};
use crate::engine::{Ending, Engines};
use crate::lifecycle::phase::{Lifecycle, Phase};
use crate::text::{human_duration, pluralize};

/// How often the log says how far the drain is.
const PROGRESS: Duration = Duration::from_secs(1);

/// For how long members may leave when grace was used up by requests: the exit comes within half a second of its end.
const LAST_CALL: Duration = Duration::from_millis(250);

/// What a drain works on.
pub(crate) struct Drain {
    pub(crate) engines: Engines,
    pub(crate) phase: Arc<Lifecycle>,
    /// The threads of the engines: without them there is no quiescence to wait for.
    pub(crate) watchers: Vec<SlotId>,
    /// The worker pool.
    pub(crate) workers: SlotId,
    pub(crate) delay: Duration,
    /// The listening socket is a service manager's, and outlives this service.
    pub(crate) inherited: bool,
}

impl Drain {
    /// Runs the drain until all members but the signal thread have stopped. Only a second signal shortens it. True if the
    /// listening socket was left to the next image.
    pub(crate) fn run(&self, crew: &mut Crew, shutdown: &mut Shutdown, before: Vec<Hook>, after: Vec<Hook>) -> bool {
        self.phase.enter(Phase::DrainDelay);
        self.engines.announce_close();
        log::info!("{}: one out, all out: {}", shutdown.cause, self.what_is_left());
        hooks::run("before_drain", before, saturating_add(shutdown.started, shutdown.grace / 2), crew, shutdown);
        self.delay(crew, shutdown);

        self.phase.enter(Phase::Draining);
        // From here on a stop no longer replaces a re-exec, but comes after it: the next image has the socket.
        let handed_over = shutdown.is_reexec();
        let handover = self.inherited || handed_over;
        let whose =
            if handover { "new connections are left to the next instance" } else { "no longer accepting connections" };
        log::info!("draining: {whose}: {}", self.what_is_left());
        let ending = if handover { Ending::HandOver } else { Ending::Filter };
        self.engines.stop_accepting(|_| ending);
        self.finish(crew, shutdown);

        for request in self.engines.requests_in_flight() {
            if shutdown.forced_by.is_none() {
                log::warn!("abandoned: {request}");
                shutdown.abandoned.push(request.to_string());
                shutdown.mark_reported(self.workers);
            }
        }
        let until = shutdown.deadline().max(Instant::now() + LAST_CALL / 2);
        hooks::run("after_drain", after, until, crew, shutdown);
        self.phase.enter(Phase::Stopping);
        log::info!(
            "stopping members {} after the first message: {}",
            human_duration(shutdown.started.elapsed()),
            self.what_is_left()
        );
        shutdown.extend_to(Instant::now() + LAST_CALL);
        crew.stop_members(shutdown);
        handed_over
    }

    /// Goes on serving for the drain delay, and until what was in flight at the first message is over: nobody who comes
    /// meanwhile, a health check above all, waits for others' requests to end. Ends in time for the rest of the drain.
    fn delay(&self, crew: &mut Crew, shutdown: &mut Shutdown) {
        let until = saturating_add(shutdown.started, self.delay);
        let mut progress = Instant::now() + PROGRESS;
        if !self.delay.is_zero() {
            log::info!("drain delay: serving as before for {}", human_duration(self.delay));
        }
        while shutdown.forced_by.is_none() && crew.all_running() {
            let now = Instant::now();
            let over = now >= until && !self.engines.has_requests_older_than_drain();
            if over || now >= shutdown.soft_deadline() {
                return;
            }
            self.say_how_far(&mut progress, shutdown);
            let next = if now < until { until } else { shutdown.soft_deadline() };
            crew.wait_event(next.min(shutdown.soft_deadline()).min(progress), shutdown);
            self.phase.set_reexecuting(shutdown.is_reexec());
        }
    }

    fn say_how_far(&self, progress: &mut Instant, shutdown: &Shutdown) {
        let now = Instant::now();
        if now >= *progress {
            let left = shutdown.deadline().saturating_duration_since(now);
            log::info!("draining: {}, {} of grace left", self.what_is_left(), human_duration(left));
            *progress = now + PROGRESS;
        }
    }

    /// Waits until no connection is left, or grace is over.
    fn finish(&self, crew: &mut Crew, shutdown: &mut Shutdown) {
        let mut progress = Instant::now() + PROGRESS;
        while shutdown.forced_by.is_none() && !self.engines.is_quiescent() {
            let now = Instant::now();
            if now >= shutdown.soft_deadline() {
                self.phase.expire();
            }
            if now >= shutdown.deadline() {
                return;
            }
            self.say_how_far(&mut progress, shutdown);
            if self.watchers.iter().any(|watcher| !crew.is_running(*watcher)) && self.engines.in_flight() == 0 {
                return; // nobody is left who could see more than this
            }
            crew.wait_event(shutdown.next_deadline(now).min(progress), shutdown);
        }
    }

    fn what_is_left(&self) -> String {
        let waiting = match self.engines.pipelined() {
            0 => String::new(),
            n => format!(" ({n} more pipelined)"),
        };
        let in_flight = pluralize(self.engines.in_flight(), "request");
        format!("{in_flight} in flight{waiting}, {} open", pluralize(self.engines.connections(), "connection"))
    }
}
