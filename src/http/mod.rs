//! What an exchange is made of: the request, the rules that it must keep, the routes, and the reply. No threads here.

pub(crate) mod head;
pub(crate) mod response;
pub(crate) mod validate;

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// The client's `X-Request-Id`, if it is sane (at most 64 of letters, digits and `-_.:/+=@`), else one of ours.
pub(crate) fn request_id(headers: &[tiny_http::Header]) -> String {
    const LONGEST: usize = 64;
    headers
        .iter()
        .filter(|header| header.field.as_str().len() == "x-request-id".len())
        .find(|header| header.field.equiv("X-Request-Id"))
        .map(|header| header.value.as_str())
        .filter(|id| !id.is_empty() && id.len() <= LONGEST)
        .filter(|id| id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:/+=@".contains(&b)))
        .map_or_else(new_id, str::to_owned)
}

/// An id that no other request of this process has, and hardly one of another: when the process began, and a count.
fn new_id() -> String {
    static BEGAN: OnceLock<u64> = OnceLock::new();
    static COUNT: AtomicU64 = AtomicU64::new(1);
    let began = *BEGAN.get_or_init(|| {
        use std::hash::{BuildHasher, Hasher, RandomState};
        RandomState::new().build_hasher().finish() // random for each process, from the system's own source
    });
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let mut id = String::with_capacity(24);
    push_hex(&mut id, began >> 24);
    id.push('-');
    push_hex(&mut id, count);
    id
}

fn push_hex(text: &mut String, number: u64) {
    const DIGITS: [char; 16] = ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f'];
    let first = (16 - (number.leading_zeros() / 4)).max(1);
    for digit in (0..first).rev() {
        text.push(DIGITS[((number >> (digit * 4)) & 15) as usize]);
    }
}
