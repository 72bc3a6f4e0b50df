//! The mailbox of the monitor's thread, and the events that wake it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex};

use crossbeam_channel::{Receiver, Sender, unbounded};
use rustix::event::{EventfdFlags, eventfd};

use super::lingering::LingeringClose;
use crate::sync::lock;

/// Commands to the monitor.
pub(super) enum Command {
    /// Close idle connections: their descriptors are needed.
    Evict,
    /// Keep this request until its client has left.
    Linger(Box<LingeringClose>),
    /// Stop.
    Stop,
}

/// The channel to the monitor: any thread sends, the monitor's thread receives. Sending never blocks, since the channel
/// is unbounded: at most one [`Command::Linger`] for each connection is in it.
pub(super) struct Mailbox {
    sender: Sender<Command>,
    /// Taken by the monitor's thread. Once that has ended, sending fails.
    receiver: Mutex<Option<Receiver<Command>>>,
    /// An eventfd.
    wake: Arc<OwnedFd>,
    /// One of the constants below.
    activity: AtomicU8,
    /// A request of an unknown connection has arrived since the last tick.
    new_connection: AtomicBool,
}

/// A tick is under way, and no request has arrived since it began.
const RUNNING: u8 = 0;
/// The monitor sleeps until its next tick.
const TICKING: u8 = 1;
/// The monitor sleeps until something happens.
const IDLE: u8 = 2;
/// A request has arrived since the last tick.
const ACTIVE: u8 = 3;

impl Mailbox {
    /// Errors: no descriptor is left.
    pub(super) fn new() -> io::Result<Mailbox> {
        let (sender, receiver) = unbounded();
        Ok(Mailbox {
            sender,
            receiver: Mutex::new(Some(receiver)),
            wake: Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?),
            activity: AtomicU8::new(RUNNING),
            new_connection: AtomicBool::new(false),
        })
    }

    /// The eventfd that wakes the monitor.
    pub(super) fn wake_fd(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.wake)
    }

    /// Wakes the monitor for a tick.
    pub(super) fn wake(&self) {
        let _ = rustix::io::write(&*self.wake, &1_u64.to_ne_bytes()); // EAGAIN: it is about to wake anyway
    }

    /// Records that a request has arrived: while requests arrive the monitor ticks.
    pub(super) fn note_request(&self, new_connection: bool) {
        if new_connection {
            self.new_connection.store(true, Ordering::Release);
        }
        if self.activity.load(Ordering::Relaxed) != ACTIVE && self.activity.swap(ACTIVE, Ordering::AcqRel) == IDLE {
            self.wake();
        }
    }

    /// Sends a command, and wakes the monitor. Gives the command back if the monitor has ended.
    pub(super) fn send(&self, command: Command) -> Result<(), Command> {
        self.sender.send(command).map_err(|error| error.0)?;
        self.wake();
        Ok(())
    }

    /// Takes the receiving end of the channel, once.
    pub(super) fn open(&self) -> Option<Receiver<Command>> {
        lock(&self.receiver).take()
    }

    /// Called before the monitor sleeps. False if it must not be idle, because a request has arrived since its last
    /// tick began.
    pub(super) fn before_sleep(&self, idle: bool) -> bool {
        if self.activity.swap(if idle { IDLE } else { TICKING }, Ordering::AcqRel) == ACTIVE {
            self.activity.store(ACTIVE, Ordering::Release);
            return false;
        }
        true
    }

    /// Called after the monitor has slept. Returns whether a request has arrived since its last tick began, and whether
    /// one was of an unknown connection.
    pub(super) fn after_sleep(&self) -> (bool, bool) {
        let request = self.activity.swap(RUNNING, Ordering::AcqRel) == ACTIVE;
        (request, self.new_connection.swap(false, Ordering::AcqRel))
    }

    /// Whether it was woken since the last call.
    pub(super) fn was_woken(&self) -> bool {
        let mut count = [0; 8];
        rustix::io::read(&*self.wake, &mut count).is_ok() // EAGAIN if not
    }
}

impl AsFd for Mailbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_wakes_an_idle_monitor_and_only_then() {
        let mailbox = Mailbox::new().unwrap();
        assert!(mailbox.before_sleep(false));
        mailbox.note_request(true);
        assert!(!mailbox.was_woken(), "it ticks anyway");
        assert_eq!(mailbox.after_sleep(), (true, true));

        assert!(mailbox.before_sleep(true));
        assert_eq!(mailbox.after_sleep(), (false, false), "no request has arrived");

        assert!(mailbox.before_sleep(true));
        mailbox.note_request(false);
        mailbox.note_request(false);
        assert!(mailbox.was_woken() && !mailbox.was_woken());
        assert_eq!(mailbox.after_sleep(), (true, false));
    }

    #[test]
    fn a_request_that_arrives_during_a_tick_keeps_the_monitor_from_being_idle() {
        let mailbox = Mailbox::new().unwrap();
        mailbox.after_sleep();
        mailbox.note_request(false);
        assert!(!mailbox.before_sleep(true));
        assert_eq!(mailbox.after_sleep(), (true, false), "it is not forgotten");
    }

    #[test]
    fn a_command_comes_back_when_the_monitor_has_ended() {
        let mailbox = Mailbox::new().unwrap();
        let receiver = mailbox.open().unwrap();
        assert!(mailbox.send(Command::Stop).is_ok() && mailbox.was_woken());
        assert!(matches!(receiver.try_recv(), Ok(Command::Stop)));
        drop(receiver);
        assert!(matches!(mailbox.send(Command::Evict), Err(Command::Evict)));
    }
}
