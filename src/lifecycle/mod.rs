//! From serving to stopped.

pub(crate) mod drain;
pub(crate) mod phase;
pub(crate) mod reexec;
