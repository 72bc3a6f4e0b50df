//! Observers.

pub(crate) mod access_log;
#[cfg(feature = "metrics")]
pub(crate) mod metrics;
pub(crate) mod state_dump;
pub(crate) mod systemd;
