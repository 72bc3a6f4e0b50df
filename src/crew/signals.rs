//! The signal thread: turns signals into messages for the crew.
//!
//! What is hard about signals (a handler may do next to nothing) is signal-hook's business: its handler writes into a
//! pipe, and this thread reads it. Registered before any thread is started, so that none is missed; the second signal
//! that asks to stop reaches the crew like the first, and cuts the drain short.
//!
//! | signal | |
//! | --- | --- |
//! | SIGTERM, SIGINT, SIGQUIT | stop |
//! | SIGHUP | renew |
//! | SIGUSR1 | report the state to the log |

use std::io;

use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1};
use signal_hook::iterator::{Handle, Signals};

use crate::crew::{Command, Crew, Stopper};

/// Signals that are caught and not yet listened to.
pub(crate) struct SignalSource(Signals);

/// Catches the signals from here on.
///
/// # Errors
///
/// The system refuses the pipe or the handlers.
pub(crate) fn register() -> io::Result<SignalSource> {
    Signals::new([SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGUSR1]).map(SignalSource)
}

impl Crew {
    /// Makes SIGTERM, SIGINT and SIGQUIT take everyone out, and a second one of them end the wait at once.
    ///
    /// To be called before any thread is started, so that none is missed. The thread that listens is a member itself,
    /// `signals`. A [`Service`](crate::Service) that is run does this by itself.
    ///
    /// # Errors
    ///
    /// The system refuses a pipe, a handler or a thread.
    pub fn handle_signals(&mut self) -> io::Result<()> {
        let registered = SignalSource(Signals::new([SIGTERM, SIGINT, SIGQUIT])?);
        let (handle, stopper) = (registered.handle(), self.stopper());
        self.spawn_with("signals", move || handle.close(), move || registered.run(&stopper, || {}))
    }
}

impl SignalSource {
    /// What ends [`listen`](SignalSource::run).
    pub(crate) fn handle(&self) -> Handle {
        self.0.handle()
    }

    /// The signal thread's life: until its handle is closed.
    pub(crate) fn run(mut self, stopper: &Stopper, report: impl Fn()) {
        for signal in self.0.forever() {
            match signal {
                SIGHUP => stopper.ask(Command::Reexec("SIGHUP".to_owned())),
                SIGUSR1 => report(),
                signal => stopper.ask(Command::Signal(signal)),
            }
        }
    }
}
