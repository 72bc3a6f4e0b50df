//! Discards unread bodies, so that their connection can go on.

use std::io;

/// Reads and discards up to `limit` bytes and a buffer more. True if the body ended within them.
/// Errors: the body cannot be read to its end.
pub(super) fn discard(limit: u64, mut read: impl FnMut(&mut [u8]) -> io::Result<usize>) -> io::Result<bool> {
    let mut buffer = [0; 8 * 1024];
    let mut discarded = 0;
    while discarded <= limit {
        match read(&mut buffer) {
            Ok(0) => return Ok(true),
            Ok(count) => discarded += count as u64,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}
