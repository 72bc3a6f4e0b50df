//! The value of the `Date` header, formatted once a second.

use std::cell::RefCell;
use std::time::{Duration, SystemTime};

/// The date of a thread's last response, and the second since the epoch that it stands for.
struct CachedDate {
    second: u64,
    text: String,
}

thread_local! {
    static DATE: RefCell<CachedDate> = const { RefCell::new(CachedDate { second: 0, text: String::new() }) };
}

/// Appends the present date in the format of RFC 9110, section 5.6.7: `Sun, 06 Nov 1994 08:49:37 GMT`.
pub(crate) fn append_date(out: &mut Vec<u8>) {
    let now = SystemTime::now();
    let second = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    DATE.with_borrow_mut(|date| {
        if date.second != second || date.text.is_empty() {
            let now = SystemTime::UNIX_EPOCH + Duration::from_secs(second);
            *date = CachedDate { second, text: httpdate::fmt_http_date(now) };
        }
        out.extend_from_slice(date.text.as_bytes());
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_date_is_that_of_now() {
        let mut out = Vec::new();
        append_date(&mut out);
        let date = httpdate::parse_http_date(std::str::from_utf8(&out).unwrap()).unwrap();
        assert!(date <= SystemTime::now() && date.elapsed().unwrap() < Duration::from_secs(5));
    }
}
