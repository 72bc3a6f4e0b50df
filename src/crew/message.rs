//! The messages of the crew's channel, and their senders.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crossbeam_channel::Sender;

use crate::crew::member::{Exit, SlotId};

/// A command to the crew, from any thread.
#[derive(Clone, Debug)]
pub(crate) enum Command {
    Signal(i32),
    Stop(String),
    Reexec(String),
    EngineLeak(String),
}

/// A message of the crew's channel.
#[derive(Debug)]
pub(crate) enum Message {
    /// A member has ended.
    Exited { slot: SlotId, exit: Exit },
    /// Sent at this moment, which may be earlier than it is received.
    Command { command: Command, at: Instant },
    /// Something that a drain waits for may have changed.
    Recheck,
    /// A child has ended. Sent in process 1 alone, which has to wait for orphans.
    ChildEnded,
}

/// Stops the crew, from any thread.
#[derive(Clone, Debug)]
pub struct Stopper {
    pub(super) sender: Sender<Message>,
}

impl Stopper {
    /// Stops all members, with `reason` as the [cause](crate::Cause), unless there is another one already.
    ///
    /// ```
    /// let mut crew = allout::Crew::new();
    /// crew.spawn("worker", |stop| stop.wait())?;
    /// let stopper = crew.stopper();
    /// std::thread::spawn(move || stopper.stop("enough"));
    /// assert_eq!(crew.run().cause.to_string(), "asked to stop (enough)");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn stop(&self, reason: impl Into<String>) {
        self.command(Command::Stop(reason.into()));
    }

    /// Asks for a re-exec: drain, then go on under the same pid with the binary that is on disk now. Ignored, with a
    /// warning, except by a service that was [run](crate::Service::run), because only that one owns the process.
    ///
    /// ```
    /// # fn new_binary(stopper: &allout::Stopper) {
    /// stopper.reexec("a new version is installed");
    /// # }
    /// ```
    pub fn reexec(&self, reason: impl Into<String>) {
        self.command(Command::Reexec(reason.into()));
    }

    pub(crate) fn command(&self, command: Command) {
        // An error means that the crew has stopped already.
        let _ = self.sender.send(Message::Command { command, at: Instant::now() });
    }

    /// Makes the thread that runs the crew wait for orphans: children that the kernel has given to process 1.
    pub(crate) fn child_ended(&self) {
        let _ = self.sender.send(Message::ChildEnded);
    }

    pub(crate) fn recheck(&self) {
        let _ = self.sender.send(Message::Recheck);
    }
}

/// Sends a member's exit to the crew exactly once: by [`report`](ExitGuard::report), or [`Exit::Finished`] on drop.
#[derive(Debug)]
pub(crate) struct ExitGuard {
    slot: SlotId,
    sender: Sender<Message>,
    sent: AtomicBool,
}

impl ExitGuard {
    pub(super) fn new(slot: SlotId, sender: Sender<Message>) -> ExitGuard {
        ExitGuard { slot, sender, sent: AtomicBool::new(false) }
    }

    /// The member whose exit this reports.
    pub(crate) fn slot(&self) -> SlotId {
        self.slot
    }

    /// Reports the exit. Every call after the first does nothing.
    pub(crate) fn report(&self, exit: Exit) {
        if !self.sent.swap(true, Ordering::AcqRel) {
            // The receiver is gone if the crew has returned before this member ended: it was abandoned.
            let _ = self.sender.send(Message::Exited { slot: self.slot, exit });
        }
    }

    /// Keeps a member whose thread could not be created from reporting an exit.
    pub(super) fn disarm(&self) {
        self.sent.store(true, Ordering::Release);
    }

    pub(super) fn arm(&self) {
        self.sent.store(false, Ordering::Release);
    }
}

impl Drop for ExitGuard {
    fn drop(&mut self) {
        self.report(Exit::Finished);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_is_reported_once() {
        let (sender, receiver) = crossbeam_channel::unbounded();
        let guard = ExitGuard::new(SlotId(0), sender);
        guard.report(Exit::Failed("first".into()));
        guard.report(Exit::Finished);
        drop(guard);
        assert_eq!(receiver.try_iter().count(), 1);
    }
}
