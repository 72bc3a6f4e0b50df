//! A receiver's part in the drain; see the [engine's text](super) for why nothing is lost.

use std::io;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::receiver::{Drain, Receiver};
use super::slots::{Queue, State};
use crate::engine::{CloseReason, Ending};
use crate::sys::tcp::tcp_info;

/// Longest round trip that is waited for: enough for almost any place on earth.
const MAX_HANDSHAKE_RTT: Duration = Duration::from_millis(250);

/// Multiple of `keepalive_min` that a client has to complete a head of which a part has arrived.
const PARTIAL_HEAD_FACTOR: u32 = 20;

impl Drain {
    /// Whether no handshake can be under way that began before accepting stopped.
    pub(super) fn is_settled(&self, now: Instant) -> bool {
        now >= self.settles_at
    }
}

impl Receiver {
    /// The moment of the drain's next step.
    pub(super) fn next_of_drain(&self) -> Option<Instant> {
        let drain = self.drain.as_ref()?;
        let keepalive_min = self.common.settings.keepalive_min;
        let is_unsettled = self.mailbox.settled.load(Ordering::SeqCst) != drain.number && self.is_listening();
        let settles = is_unsettled.then_some(drain.settles_at);
        let idle = self.slots.first(Queue::Idle);
        let idle = idle.and_then(|(_, since)| since.max(drain.since).checked_add(keepalive_min));
        let lingering = self.slots.first(Queue::Lingering).and_then(|(_, since)| since.checked_add(keepalive_min));
        [settles, idle, lingering].into_iter().flatten().min()
    }

    /// One step of the drain, if there is one.
    /// Errors: the listening socket cannot be used any more.
    pub(super) fn drain_on(&mut self) -> io::Result<()> {
        match (self.common.stop(), &self.drain) {
            (None, None) => return Ok(()),
            (None, Some(_)) => {
                self.drain = None;
                self.leave_listener(false);
                return Ok(());
            }
            (Some((number, _)), Some(drain)) if drain.number == number => {}
            (Some((number, ending)), _) => self.begin_drain(number, ending),
        }
        let Some(drain) = &self.drain else { return Ok(()) };
        let (since, settled) = (drain.since, drain.is_settled(self.now));
        let wants_settling =
            drain.ending == Ending::Filter && self.mailbox.settled.load(Ordering::SeqCst) != drain.number;
        let keepalive_min = self.common.settings.keepalive_min;
        let now = self.now;
        let is_over = |(_, began): &(u32, Instant)| now.saturating_duration_since((*began).max(since)) >= keepalive_min;
        while let Some((slot, idle_since)) = self.slots.first(Queue::Idle).filter(is_over) {
            if matches!(&self.slots.get(slot).state, State::Idle(connection) if connection.inbox.is_some()) {
                // A part of a head has arrived.
                self.slots.dequeue(slot);
                let deadline = idle_since.max(since).checked_add(keepalive_min.saturating_mul(PARTIAL_HEAD_FACTOR));
                self.set_timer(slot, deadline);
            } else if !self.close_idle(slot, CloseReason::Drain) {
                break; // a request had arrived; its time begins anew
            }
        }
        let is_over = |(_, began): &(u32, Instant)| now.saturating_duration_since(*began) >= keepalive_min;
        while let Some((slot, _)) = self.slots.first(Queue::Lingering).filter(is_over) {
            self.end_lingering(slot);
        }
        if settled && wants_settling { self.accept() } else { Ok(()) }
    }

    fn begin_drain(&mut self, number: u64, ending: Ending) {
        let mut settles_at = self.now;
        if ending == Ending::HandOver {
            self.leave_listener(true);
            self.mailbox.settled.store(number, Ordering::SeqCst);
        } else {
            self.leave_listener(false);
            settles_at += if self.engine.gate.is_passed() { MAX_HANDSHAKE_RTT } else { self.longest_round_trip() };
        }
        self.drain = Some(Drain { number, since: self.now, settles_at, ending });
        self.changed = true;
    }

    /// The longest round trip to a client that is connected.
    fn longest_round_trip(&mut self) -> Duration {
        let numbers: Vec<u32> = self.slots.numbers().collect();
        let sockets = numbers.into_iter().filter_map(|slot| self.socket(slot));
        let round_trips = sockets.filter_map(|socket| tcp_info(socket.fd()).ok()).map(|info| info.min_rtt);
        round_trips.max().unwrap_or_default().min(MAX_HANDSHAKE_RTT)
    }
}
