//! The notification socket: `sd_notify(3)`.

use std::time::Duration;

use sd_notify::NotifyState;

use crate::sync::WarnOnce;

/// The socket of `NOTIFY_SOCKET`, and the last status sent to it.
pub(super) struct NotifySocket {
    /// `WATCHDOG_USEC`: systemd kills a service that does not write `WATCHDOG=1` this often.
    pub(super) watchdog: Option<Duration>,
    /// The last `STATUS=`, to write it only if it has changed.
    status: String,
    warned: WarnOnce,
}

impl Default for NotifySocket {
    fn default() -> NotifySocket {
        let watchdog = sd_notify::watchdog_enabled().filter(|period| !period.is_zero());
        NotifySocket { watchdog, status: String::new(), warned: WarnOnce::default() }
    }
}

impl NotifySocket {
    /// Writes these states, and the status if it has changed.
    pub(super) fn notify_status(&mut self, status: &str, more: &[NotifyState<'_>]) {
        let mut states = more.to_vec();
        if status != self.status {
            status.clone_into(&mut self.status);
            states.push(NotifyState::Status(status));
        }
        if !states.is_empty() {
            self.notify(&states);
        }
    }

    /// Asks for `time` more before systemd gives up the start or the stop: `EXTEND_TIMEOUT_USEC`. Feeds the watchdog too.
    pub(super) fn extend_timeout(&mut self, time: Duration, status: &str) {
        // The crate takes a u32: more than an hour, far above the extensions of a drain.
        let extension = NotifyState::ExtendTimeoutUsec(u32::try_from(time.as_micros()).unwrap_or(u32::MAX));
        if self.watchdog.is_some() {
            self.notify_status(status, &[extension, NotifyState::Watchdog]);
        } else {
            self.notify_status(status, &[extension]);
        }
    }

    /// Writes these states in one datagram.
    pub(super) fn notify(&mut self, states: &[NotifyState<'_>]) {
        match sd_notify::notify(states) {
            Err(error) if self.warned.is_first() => log::warn!("cannot notify systemd (NOTIFY_SOCKET): {error}"),
            _ => {}
        }
    }
}
