//! Numbers, durations and panics as the log writes them.

use std::any::Any;
use std::borrow::Cow;
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

/// `1 request`, `2 requests`.
pub(crate) fn pluralize(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// A duration as on the command line: `7ms` below a second, else `1.5s`.
pub(crate) fn human_duration(span: Duration) -> String {
    if span < Duration::from_secs(1) {
        format!("{}ms", span.as_millis())
    } else {
        format!("{:.1}s", span.as_secs_f64())
    }
}

/// The message of a panic that was caught, if it has one. The payload may be of any type, which may panic when it is
/// dropped: that is caught, too.
pub(crate) fn panic_message(payload: Box<dyn Any + Send>) -> String {
    let message = if let Some(text) = payload.downcast_ref::<&str>() {
        (*text).to_owned()
    } else if let Some(text) = payload.downcast_ref::<String>() {
        text.clone()
    } else {
        "without a message".to_owned()
    };
    // The second payload may do the same again: it is leaked.
    let _ = catch_unwind(AssertUnwindSafe(|| drop(payload))).map_err(std::mem::forget);
    message
}

/// Drops a value of the application, whose `drop` may panic.
/// Errors: the message of the panic, if it panics.
pub(crate) fn drop_caught<T>(value: T) -> Result<(), String> {
    catch_unwind(AssertUnwindSafe(|| drop(value))).map_err(panic_message)
}

/// The text as a JSON string, with its quotes.
pub(crate) fn json_string(text: &str) -> String {
    let mut json = String::with_capacity(text.len() + 2);
    json.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => json.extend(['\\', c]),
            '\n' => json.push_str("\\n"),
            c if c.is_control() => json.extend(format!("\\u{:04x}", u32::from(c)).chars()),
            c => json.push(c),
        }
    }
    json.push('"');
    json
}

/// The text with every byte that is not visible ASCII as `\xNN`. The head of an accepted request has no such bytes here,
/// but rejected requests are logged as well, and not every logger escapes what it prints.
pub(crate) fn escaped(received: &str) -> Cow<'_, str> {
    if received.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Cow::Borrowed(received);
    }
    let mut text = String::with_capacity(received.len() + 16);
    for byte in received.bytes() {
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
    fn everything_but_visible_ascii_is_escaped() {
        assert_eq!(escaped("/a%20b?c=d"), "/a%20b?c=d");
        assert_eq!(escaped("/a\nb\u{2028}\u{1b}[2J"), "/a\\x0ab\\xe2\\x80\\xa8\\x1b[2J");
    }

    #[test]
    fn a_json_string_holds_any_text() {
        assert_eq!(json_string("a\"b\\c\nd\u{1}ü"), r#""a\"b\\c\nd\u0001ü""#);
    }

    #[test]
    fn a_value_or_payload_that_panics_when_it_is_dropped_ends_nothing() {
        struct Bomb;
        impl Drop for Bomb {
            fn drop(&mut self) {
                std::panic::panic_any(Bomb);
            }
        }
        assert_eq!(drop_caught(Bomb), Err("without a message".to_owned()));
        assert_eq!(drop_caught("harmless"), Ok(()));
    }

    #[test]
    fn one_is_singular_and_everything_else_plural() {
        assert_eq!([0, 1, 2].map(|n| pluralize(n, "request")), ["0 requests", "1 request", "2 requests"]);
    }

    #[test]
    fn durations_are_milliseconds_below_a_second() {
        assert_eq!(human_duration(Duration::from_millis(999)), "999ms");
        assert_eq!(human_duration(Duration::from_millis(1500)), "1.5s");
    }
}
