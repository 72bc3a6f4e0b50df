//! tiny_http.

pub(crate) mod connections;
pub(crate) mod discover;
pub(crate) mod monitor;
pub(crate) mod quirks;
pub(crate) mod receive;
pub(crate) mod server;
pub(crate) mod throttle;
pub(crate) mod unread_body;
