//! From serving to stopped: the phases, the drain, and re-exec.

pub(crate) mod drain;
pub(crate) mod phase;
pub(crate) mod reexec;
