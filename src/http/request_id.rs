//! The id of a request: returned to the client, and in every log line about the request.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Longest id, in bytes, that is accepted from a client: a UUID has 36, a W3C trace id 55.
const MAX_LENGTH: usize = 64;

/// The client's `X-Request-Id` if it is at most 64 letters, digits and `-_.:/+=@`, else a new id.
pub(crate) fn request_id<'a>(mut headers: impl Iterator<Item = (&'a str, &'a [u8])>) -> String {
    headers
        .find(|(name, _)| name.eq_ignore_ascii_case("x-request-id"))
        .and_then(|(_, value)| std::str::from_utf8(value).ok())
        .filter(|id| (1..=MAX_LENGTH).contains(&id.len()))
        .filter(|id| id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:/+=@".contains(&byte)))
        .map_or_else(new_id, str::to_owned)
}

/// An id that no other request of this process has: a random number of this process, and a count.
fn new_id() -> String {
    static PROCESS: OnceLock<u64> = OnceLock::new();
    static COUNT: AtomicU64 = AtomicU64::new(1);
    // `RandomState` takes its keys from the system's random source.
    let process = *PROCESS.get_or_init(|| RandomState::new().build_hasher().finish());
    let mut id = String::with_capacity(24);
    push_hex(&mut id, process >> 24);
    id.push('-');
    push_hex(&mut id, COUNT.fetch_add(1, Ordering::Relaxed));
    id
}

fn push_hex(text: &mut String, number: u64) {
    const DIGITS: [char; 16] = ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f'];
    let digits = (16 - (number.leading_zeros() / 4)).max(1);
    for digit in (0..digits).rev() {
        text.push(DIGITS[((number >> (digit * 4)) & 15) as usize]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id_for(value: &[u8]) -> String {
        request_id([("Host", &b"a"[..]), ("X-REQUEST-ID", value)].into_iter())
    }

    #[test]
    fn a_valid_id_is_accepted() {
        for id in ["1", "a-b_c.d:e/f+g=h@i", &"x".repeat(64)] {
            assert_eq!(id_for(id.as_bytes()), id);
        }
    }

    #[test]
    fn any_other_is_replaced_by_a_new_one() {
        for id in [&b""[..], b"a b", b"a\"b", "ü".as_bytes(), b"\xff", "x".repeat(65).as_bytes()] {
            let new = id_for(id);
            assert!(new.as_bytes() != id && new.len() <= MAX_LENGTH && !new.is_empty(), "{id:?}: {new}");
        }
        assert_ne!(request_id(std::iter::empty()), request_id(std::iter::empty()));
    }

    #[test]
    fn numbers_are_hexadecimal_without_leading_zeros() {
        let hex = |number| {
            let mut text = String::new();
            push_hex(&mut text, number);
            text
        };
        assert_eq!([hex(0), hex(255), hex(u64::MAX)], ["0", "ff", "ffffffffffffffff"]);
    }
}
