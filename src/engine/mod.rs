//! The engines.

pub(crate) mod gate;
pub(crate) mod tiny_http;
