//! The signal thread: turns signals into commands for the crew.
//!
//! A signal handler may do next to nothing (signal-safety(7)). signal-hook's handler writes into a pipe, and this
//! thread reads it. It is the last member to stop, so that a second stop signal is handled until everything else has
//! ended.
//!
//! | signal | |
//! | --- | --- |
//! | SIGTERM, SIGINT, SIGQUIT | stop |
//! | SIGHUP | re-exec |
//! | SIGUSR1 | write the state to the log |
//! | SIGUSR2 | nothing: log files are reopened without it, and its default would end the process |
//! | SIGCHLD | as process 1 alone: wait for orphans |

use std::io;

use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::{Handle, Signals};

use crate::crew::Crew;
use crate::crew::message::{Command, Stopper};
use crate::sys::children::is_process_1;

/// Signals that stop.
pub(crate) const STOP: [i32; 3] = [SIGTERM, SIGINT, SIGQUIT];

/// Signals that a service handles.
pub(crate) const HANDLED: [i32; 6] = [SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGUSR1, SIGUSR2];

/// Signals that are caught, before a thread handles them.
pub(crate) struct SignalSource(Signals);

/// Catches the signals from here on.
/// Errors: the system refuses the pipe or the handlers.
pub(crate) fn register() -> io::Result<SignalSource> {
    let mut signals = HANDLED.to_vec();
    if is_process_1() {
        signals.push(SIGCHLD);
    }
    SignalSource::new(&signals)
}

impl Crew {
    /// Makes SIGTERM, SIGINT and SIGQUIT stop all members, and a second one of them end the wait at once.
    ///
    /// Call it before any thread is started, so that no signal is missed. The thread that handles them is a member,
    /// `signals`. A [`Service`](crate::Service) that is run does this by itself.
    ///
    /// # Errors
    ///
    /// The system refuses a pipe, a handler or a thread.
    pub fn handle_signals(&mut self) -> io::Result<()> {
        let source = SignalSource::new(&STOP)?;
        self.spawn_signals(source, || {})
    }

    /// Starts the signal thread.
    pub(crate) fn spawn_signals(
        &mut self,
        source: SignalSource,
        dump_state: impl Fn() + Send + 'static,
    ) -> io::Result<()> {
        let (handle, stopper) = (source.handle(), self.stopper());
        let slot = self.spawn_member("signals", Some(Box::new(move || handle.close())), move || {
            source.run(&stopper, dump_state);
        })?;
        self.signals = Some(slot);
        Ok(())
    }
}

impl SignalSource {
    /// Catches `signals`, and unblocks them: the previous image blocked them before its `exec`, and a parent process
    /// may have.
    fn new(signals: &[i32]) -> io::Result<SignalSource> {
        let source = Signals::new(signals)?;
        crate::sys::signals::unblock(signals)?;
        Ok(SignalSource(source))
    }

    /// Closing it ends [`run`](SignalSource::run).
    fn handle(&self) -> Handle {
        self.0.handle()
    }

    /// Handles signals until the handle is closed, and then those that were caught before.
    fn run(mut self, stopper: &Stopper, dump_state: impl Fn()) {
        let handle = |signal| match signal {
            SIGHUP => stopper.command(Command::Reexec("SIGHUP".to_owned())),
            SIGUSR1 => dump_state(),
            SIGUSR2 => {}
            SIGCHLD => stopper.child_ended(),
            signal => stopper.command(Command::Signal(signal)),
        };
        self.0.forever().for_each(handle);
        self.0.pending().for_each(handle);
    }
}
