//! Decides how long the monitor sleeps.

use std::time::{Duration, Instant};

/// Interval of ticks while something happens. Two ticks find a starved connection, so that it waits 40 ms at most;
/// eight clients that each send one endless header send some 6 MB each in between, on two cores.
const TICK: Duration = Duration::from_millis(20);
/// Interval of ticks for [`EARLY_TICK_FOR`] after a connection has ended an idle time: it may be the first of a burst, of
/// which tiny_http starves all but its waiting threads.
pub(super) const EARLY_TICK: Duration = Duration::from_millis(2);
/// Time for which [`EARLY_TICK`] holds, at most: what a client takes to open some dozen connections.
const EARLY_TICK_FOR: Duration = Duration::from_millis(20);
/// Interval of ticks while connections are throttled, or the brake is on: each client can put a hundred requests into
/// tiny_http's queue in that time.
const THROTTLE_TICK: Duration = Duration::from_millis(2);
/// Interval of ticks of a drain in which something happens: the drain ends as soon as the monitor sees that it can.
const DRAIN_TICK: Duration = Duration::from_millis(1);
/// Time for which [`DRAIN_TICK`] holds after something happened.
const DRAIN_TICK_FOR: Duration = Duration::from_millis(100);
/// Interval of ticks while connections are open and nothing happens; a timeout may be late by as much.
pub(super) const IDLE_TICK: Duration = Duration::from_millis(500);

/// The facts that decide how long the monitor sleeps.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pace {
    /// Something happened since the tick before, or must be looked at again soon.
    pub(super) active: bool,
    /// Accepting has stopped.
    pub(super) draining: bool,
    /// tiny_http's queue is being kept short, or connections wait for the brake to be released.
    pub(super) throttling: bool,
    /// Something has a timeout: a connection is open, the gate is closed, or the heap is to be trimmed.
    pub(super) waiting: bool,
}

/// The next sleep of the monitor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sleep {
    /// Until the time is over or a command comes; what happens on sockets meanwhile is seen at the next tick.
    Tick(Duration),
    /// The same, but an event on a socket ends it.
    Idle(Duration),
    /// Until a connection or a command comes.
    UntilConnection,
}

/// Remembers when something happened in a drain, and when a connection has ended an idle time.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    fast_until: Option<Instant>,
    /// The latest sleep was to last until something happens.
    was_idle: bool,
    early_until: Option<Instant>,
}

impl Schedule {
    /// A connection has arrived during the latest sleep.
    pub(super) fn on_arrival(&mut self, now: Instant) {
        if self.was_idle {
            self.early_until = Some(now + EARLY_TICK_FOR);
        }
    }

    pub(super) fn sleep(&mut self, pace: Pace, now: Instant) -> Sleep {
        let sleep = self.next(pace, now);
        self.was_idle = !matches!(sleep, Sleep::Tick(_));
        sleep
    }

    fn next(&mut self, pace: Pace, now: Instant) -> Sleep {
        if pace.draining {
            if pace.active || self.fast_until.is_none() {
                self.fast_until = Some(now + DRAIN_TICK_FOR);
            }
            return Sleep::Tick(if self.fast_until.is_some_and(|until| now < until) { DRAIN_TICK } else { TICK });
        }
        match pace {
            Pace { active: true, throttling: true, .. } => Sleep::Tick(THROTTLE_TICK),
            Pace { active: true, .. } if self.early_until.is_some_and(|until| now < until) => Sleep::Tick(EARLY_TICK),
            Pace { active: true, .. } => Sleep::Tick(TICK),
            Pace { waiting: true, .. } => Sleep::Idle(IDLE_TICK),
            Pace { .. } => Sleep::UntilConnection,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleep(pace: Pace) -> Sleep {
        Schedule::default().sleep(pace, Instant::now())
    }

    #[test]
    fn it_ticks_while_things_happen_and_else_only_for_timeouts() {
        assert_eq!(sleep(Pace { active: true, ..Pace::default() }), Sleep::Tick(TICK));
        assert_eq!(
            sleep(Pace { active: true, throttling: true, waiting: true, ..Pace::default() }),
            Sleep::Tick(THROTTLE_TICK)
        );
        assert_eq!(sleep(Pace { waiting: true, ..Pace::default() }), Sleep::Idle(IDLE_TICK));
        assert_eq!(sleep(Pace::default()), Sleep::UntilConnection);
    }

    #[test]
    fn a_connection_after_an_idle_time_is_looked_at_early_and_one_of_many_is_not() {
        let (mut schedule, began) = (Schedule::default(), Instant::now());
        let active = Pace { active: true, waiting: true, ..Pace::default() };
        assert_eq!(schedule.sleep(Pace::default(), began), Sleep::UntilConnection);
        schedule.on_arrival(began);
        assert_eq!(schedule.sleep(active, began), Sleep::Tick(EARLY_TICK));
        let later = began + EARLY_TICK_FOR;
        schedule.on_arrival(later);
        assert_eq!(schedule.sleep(active, later), Sleep::Tick(TICK), "connections arrive all the time");
        assert_eq!(schedule.sleep(Pace { active: false, ..active }, later), Sleep::Idle(IDLE_TICK));
        assert_eq!(schedule.sleep(active, later), Sleep::Tick(TICK), "no connection has arrived");
    }

    #[test]
    fn a_drain_ticks_fast_until_nothing_has_happened_for_a_while_and_never_idles() {
        let (mut schedule, began) = (Schedule::default(), Instant::now());
        let (quiet, active) =
            (Pace { draining: true, ..Pace::default() }, Pace { draining: true, active: true, ..Pace::default() });
        assert_eq!(schedule.sleep(quiet, began), Sleep::Tick(DRAIN_TICK), "it begins fast");
        assert_eq!(schedule.sleep(quiet, began + DRAIN_TICK_FOR), Sleep::Tick(TICK));
        assert_eq!(schedule.sleep(active, began + DRAIN_TICK_FOR), Sleep::Tick(DRAIN_TICK));
        assert_eq!(schedule.sleep(quiet, began + DRAIN_TICK_FOR + DRAIN_TICK_FOR / 2), Sleep::Tick(DRAIN_TICK));
    }
}
