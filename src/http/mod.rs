//! HTTP messages: validation of a request's head, and responses from their value to bytes. No threads, no sockets, no
//! engine.

pub(crate) mod automatic;
pub(crate) mod body;
#[cfg(feature = "files")]
pub(crate) mod conditional;
mod constructors;
pub(crate) mod date;
pub(crate) mod encode;
pub(crate) mod error;
pub(crate) mod events;
pub(crate) mod fault;
pub(crate) mod forwarded;
pub(crate) mod head;
#[cfg(feature = "serde")]
pub(crate) mod pairs;
pub(crate) mod request_id;
pub(crate) mod response;
mod source;
pub(crate) mod status;
pub(crate) mod stream;
pub(crate) mod validate;
