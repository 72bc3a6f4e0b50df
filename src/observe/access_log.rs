//! The access log: a line for every response, for those who ask for it.
//!
//! Its lines have a target of their own, so that they can be filtered apart from the rest (`RUST_LOG=warn,allout::access=info`),
//! and consist of fields, so that a logger that knows fields can print each where it belongs.
//!
//! What must not be here is decided here: the log is written after the response, so that no client waits for it, but on
//! the thread that answered. A logger that blocks would therefore hold up requests; the one of the `allout` binary drops
//! lines, and counts them, rather than wait.

use std::borrow::Cow;
use std::fmt::Write as _;

use crate::dispatch::{ResponseObserver, ResponseRecord};

/// The target of access lines.
const TARGET: &str = "allout::access";

/// Somebody who writes a line for every response.
pub(crate) fn observer() -> ResponseObserver {
    Box::new(write)
}

fn write(answered: &ResponseRecord<'_>) {
    let (method, target) = answered.asked;
    log::info!(
        target: TARGET,
        method = &*escaped(method),
        uri = &*escaped(target),
        route = &*answered.route.pattern,
        status = answered.status,
        bytes = answered.bytes,
        duration_us = u64::try_from(answered.took.as_micros()).unwrap_or(u64::MAX),
        peer:% = answered.peer,
        id = answered.id;
        "request"
    );
}

/// What was sent, with everything but visible ASCII as `\xNN`. An accepted request has nothing of the kind, but those
/// that are refused for it are logged, too, and not every logger escapes what it prints.
fn escaped(sent: &str) -> Cow<'_, str> {
    if sent.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Cow::Borrowed(sent);
    }
    let mut text = String::with_capacity(sent.len() + 16);
    for byte in sent.bytes() {
        if byte.is_ascii_graphic() {
            text.push(char::from(byte));
        } else {
            let _ = write!(text, "\\x{byte:02x}"); // writing to a String cannot fail
        }
    }
    Cow::Owned(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_visible_ascii_is_left_as_it_was_sent() {
        assert_eq!(escaped("/a%20b?c=d"), "/a%20b?c=d");
        assert_eq!(escaped("/a\nb\u{2028}\u{1b}[2J"), "/a\\x0ab\\xe2\\x80\\xa8\\x1b[2J");
    }
}
