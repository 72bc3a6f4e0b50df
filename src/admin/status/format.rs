//! Texts, numbers and durations as the page writes them.

use std::fmt::{self, Display, Write as _};
use std::time::Duration;

use crate::text::human_duration;

/// Text, escaped for elements and for quoted attributes.
pub(super) struct Text<'a>(pub(super) &'a dyn Display);

impl Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.to_string().chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// `1,234,567`.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// `1 MiB`, or `1,000 bytes`.
pub(super) fn bytes(number: u64) -> String {
    const MIB: u64 = 1 << 20;
    if number >= MIB && number % MIB == 0 {
        format!("{} MiB", grouped(number / MIB))
    } else {
        format!("{} bytes", grouped(number))
    }
}

/// `0.25`, `42.0`, `12,346`: at most two digits behind the point, and three that matter.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate, which is not negative")]
pub(super) fn decimal(number: f64) -> String {
    match number {
        n if n >= 100.0 => grouped(n.round() as u64),
        n if n >= 10.0 => format!("{n:.1}"),
        n => format!("{n:.2}"),
    }
}

/// `250 µs`, or as [`human_duration`].
pub(super) fn short_duration(span: Duration) -> String {
    match span.as_micros() {
        micros @ ..10_000 => format!("{micros} µs"),
        _ => human_duration(span),
    }
}

/// `4.2s`, `12m 30s`, `3h 12m`, `4d 3h`.
pub(super) fn long_duration(span: Duration) -> String {
    let seconds = span.as_secs();
    match (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60) {
        (0, 0, 0, _) => human_duration(span),
        (0, 0, minutes, seconds) => format!("{minutes}m {seconds}s"),
        (0, hours, minutes, _) => format!("{hours}h {minutes}m"),
        (days, hours, ..) => format!("{days}d {hours}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_escaped_in_elements_and_attributes() {
        let said = Text(&r#"<script>alert("a" & 'b')</script>"#).to_string();
        assert_eq!(said, "&lt;script&gt;alert(&quot;a&quot; &amp; &#39;b&#39;)&lt;/script&gt;");
    }

    #[test]
    fn numbers_are_grouped_and_durations_have_two_units() {
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([0.25, 42.04, 12_345.6].map(decimal), ["0.25", "42.0", "12,346"]);
        let spans = [4200, 750_000, 11_520_000, 356_400_000].map(|ms| long_duration(Duration::from_millis(ms)));
        assert_eq!(spans, ["4.2s", "12m 30s", "3h 12m", "4d 3h"]);
    }
}
