//! Quiescence: whether a drain has nothing left to wait for. `lifecycle::drain` has the proof that nothing is lost.

use std::time::{Duration, Instant};

/// The longest round trip that a drain waits for: of a client almost anywhere on earth.
pub(super) const MAX_HANDSHAKE_RTT: Duration = Duration::from_millis(250);

/// The state of the proof that nothing is left.
#[derive(Debug, Default)]
pub(super) struct Quiescence {
    /// The stop of accepting that the rest is about.
    stop: Option<u64>,
    /// The longest round trip to a client that was connected when accepting stopped, [`MAX_HANDSHAKE_RTT`] at most.
    max_rtt: Option<Duration>,
    /// Accepting has been stopped for longer than that.
    handshakes_over: bool,
    /// When the last probe was sent, a connection to our own port; `None` if something was left since.
    probe_sent: Option<Instant>,
}

/// The next step of the proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Wait,
    /// Connect to our own port: tiny_http accepts in order, so once it has accepted this connection, it has accepted all
    /// that came before.
    Probe,
    /// Nothing is left.
    Done,
}

impl Quiescence {
    /// Restarts the proof if `stop`, the number of the present stop of accepting, has changed: observations during one stop
    /// prove nothing about the next.
    pub(super) fn begin(&mut self, stop: Option<u64>) {
        if self.stop != stop {
            *self = Quiescence { stop, ..Quiescence::default() };
        }
    }

    /// Notes how long handshakes may last, by the clients that are connected when accepting stops; later calls change
    /// nothing.
    pub(super) fn note_rtts(&mut self, rtts: impl FnOnce() -> Option<Duration>) {
        self.max_rtt.get_or_insert_with(|| rtts().unwrap_or_default().min(MAX_HANDSHAKE_RTT));
    }

    /// Whether no connection can still be between its SYN and a descriptor: the longest handshake is over, the accept
    /// queue is empty, and a probe that was sent after all that has been accepted. Call it before the descriptors are
    /// scanned, since connections move in that direction.
    pub(super) fn accept_path_is_empty(
        &mut self,
        accept_stopped_for: Duration,
        accept_queue: u32,
        now: Instant,
    ) -> bool {
        self.handshakes_over = accept_stopped_for >= self.max_rtt.unwrap_or_default();
        // A probe that a firewall rule drops, or that a dead accept thread leaves in the queue, proves nothing: then time
        // must.
        let is_proof = |sent| accept_queue == 0 || now.saturating_duration_since(sent) >= MAX_HANDSHAKE_RTT;
        self.probe_sent.is_some_and(is_proof)
    }

    /// Forgets the probe, which proves nothing any more.
    pub(super) fn forget_probe(&mut self) {
        self.probe_sent = None;
    }

    /// `nothing_left`: no connection and no request is known, after a scan. `path_was_empty`: what
    /// [`accept_path_is_empty`](Quiescence::accept_path_is_empty) said before that scan.
    pub(super) fn step(&mut self, nothing_left: bool, path_was_empty: bool, now: Instant) -> Step {
        if !nothing_left || !self.handshakes_over {
            self.probe_sent = None;
            return Step::Wait;
        }
        if self.probe_sent.is_none() {
            self.probe_sent = Some(now);
            return Step::Probe;
        }
        if path_was_empty { Step::Done } else { Step::Wait }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RTT: Duration = Duration::from_millis(30);

    #[test]
    fn a_drain_is_over_only_after_a_probe_and_the_longest_handshake() {
        let (mut quiescence, began) = (Quiescence::default(), Instant::now());
        quiescence.note_rtts(|| Some(RTT));
        quiescence.note_rtts(|| Some(Duration::ZERO));
        let mut at = |after: Duration, left: bool, queue: u32| {
            let empty = quiescence.accept_path_is_empty(after, queue, began + after);
            quiescence.step(!left, empty, began + after)
        };
        let ms = Duration::from_millis;
        assert_eq!(at(ms(0), true, 0), Step::Wait);
        assert_eq!(at(ms(1), false, 0), Step::Wait, "a handshake may be under way");
        assert_eq!(at(RTT, false, 0), Step::Probe);
        assert_eq!(at(ms(31), true, 0), Step::Wait, "a connection came in between");
        assert_eq!(at(ms(32), false, 0), Step::Probe, "so all begins anew");
        assert_eq!(at(ms(33), false, 1), Step::Wait, "a connection waits to be accepted");
        assert_eq!(at(ms(34), false, 0), Step::Done);
        assert_eq!(at(ms(32) + MAX_HANDSHAKE_RTT, false, 1), Step::Done, "the probe was never accepted");
        quiescence.forget_probe();
        assert!(!quiescence.accept_path_is_empty(RTT, 0, began + RTT));
        assert_eq!(quiescence.step(true, false, began + RTT), Step::Probe);
        quiescence.begin(Some(5));
        assert!(!quiescence.accept_path_is_empty(RTT, 0, began + RTT), "connections were accepted in between");
    }
}
