//! The kernel.

pub(crate) mod heap;
pub(crate) mod limits;
