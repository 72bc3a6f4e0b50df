//! Dropping requests whose body was not read to its end.
//!
//! `tiny_http` reads a body to its end when the request is dropped, into a buffer as large as the rest of
//! the body (`util/equal_reader.rs`). The read ends at once if the read side of the socket is shut down; the buffer is never
//! touched then, and freed at once. A length that the allocator refuses would end the process: such a request is rejected
//! before its body is read, and dropped here in one of two ways:
//!
//! * Above `isize::MAX` the allocation is a panic, which is caught.
//! * Below, the count of bytes left is set to 0 before the drop. Only lengths that no real client sends get here.

#![allow(unsafe_code)] // denied everywhere else; see `zero_remaining`

use std::fs::File;
use std::io::Read;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::LazyLock;

use rustix::pipe::PipeFlags;

use super::connection::Connection;
use super::{Shared, quirks, server};
use crate::sync::RateLimit;

/// Length, in bytes, that every system can allocate.
const ALWAYS_ALLOCATABLE: u64 = 1024 * 1024;

/// Least length, in bytes, that [`zero_remaining`] looks for: the buffers of `tiny_http` have 1,024 bytes, so that no other
/// field of a reader has this value. A pointer that happens to have it is a second match.
const MIN_SEARCHED: usize = 1024 * 1024 + 1;

/// Whether the allocator grants a buffer of this length. It is asked, and the memory is never touched.
pub(super) fn is_allocatable(length: u64) -> bool {
    length <= ALWAYS_ALLOCATABLE
        || usize::try_from(length).is_ok_and(|length| Vec::<u8>::new().try_reserve_exact(length).is_ok())
}

/// Drops a request of a connection that is closing, unanswered. `body_left`: bytes of its body that were not read, if
/// some were. Never waits for the client.
pub(super) fn discard_closing(
    shared: &Shared,
    connection: &Connection,
    raw: tiny_http::Request,
    body_left: Option<u64>,
) {
    prepare(connection, std::slice::from_ref(&raw), |peer| shared.monitor.abort_peer(peer));
    discard_prepared(raw, body_left);
}

/// The same for requests of which no body was read. `abort_peer` aborts every connection of a peer that a scan finds which
/// begins after these requests were received.
pub(super) fn discard_all(
    connection: &Connection,
    requests: Vec<tiny_http::Request>,
    abort_peer: impl FnOnce(SocketAddr),
) {
    prepare(connection, &requests, abort_peer);
    for raw in requests {
        discard_prepared(raw, None);
    }
}

/// Shuts down the sockets on which dropping requests of a closing connection would block or respond.
///
/// Any of the requests may have come from a newer connection of the peer, which would wait for its response, or take
/// the response to its next request for it. A request keeps its socket open, so that a scan finds it.
fn prepare(connection: &Connection, requests: &[tiny_http::Request], abort_peer: impl FnOnce(SocketAddr)) {
    if requests.iter().any(|raw| !is_body_buffered(raw)) {
        // The drop reads from the request's own socket, and would wait there.
        connection.abort();
        abort_peer(connection.peer);
    } else if !requests.is_empty() && connection.may_be_over() {
        abort_peer(connection.peer);
    }
}

fn is_body_buffered(raw: &tiny_http::Request) -> bool {
    quirks::of_rejected(raw).1.body_buffered
}

fn discard_prepared(raw: tiny_http::Request, body_left: Option<u64>) {
    if is_body_buffered(&raw) {
        drop(raw.into_writer()); // a plain drop of `Request` answers 500
        return;
    }
    let left = body_left.or(raw.body_length().map(|length| length as u64));
    discard(raw, left.unwrap_or(0)); // of a chunked body nothing is allocated
}

/// Drops a request of which `left` bytes of the body were announced and not read, without an answer. Its socket is shut
/// down, at least for reading.
pub(crate) fn discard(request: tiny_http::Request, left: u64) {
    if is_allocatable(left) || !drains_on_drop(&request) {
        drop(request.into_writer()); // as above
    } else if isize::try_from(left).is_err() {
        server::without_panic_message(|| {
            // `into_writer` would leak the writer: the value that a function returns is not dropped if one of its locals
            // panics while it is dropped.
            let _ = catch_unwind(AssertUnwindSafe(|| drop(request)));
        });
    } else {
        discard_oversized(request, left);
    }
}

/// Limits the line about bodies that cannot be dropped: any client can cause it.
static LEAKED: LazyLock<RateLimit> = LazyLock::new(RateLimit::default);

fn discard_oversized(mut request: tiny_http::Request, left: u64) {
    match usize::try_from(left) {
        Ok(left) if zero_remaining(&mut request, left) => drop(request.into_writer()),
        _ => {
            // Leaking a thread and two descriptors is better than ending the process.
            if let Some(omitted) = LEAKED.allow() {
                log::error!("leaked a connection: the body of {left} bytes of its request cannot be dropped{omitted}");
            }
            std::mem::forget(request);
        }
    }
}

/// Whether the request's reader is one that counts, and reads to the end when it is dropped: `tiny_http`'s own rules
/// (`new_request` in request.rs), to the letter.
fn drains_on_drop(request: &tiny_http::Request) -> bool {
    let first = |name: &'static str| request.headers().iter().find(|header| header.field.equiv(name));
    let for_upgrade =
        first("Connection").is_some_and(|header| header.value.as_str().to_ascii_lowercase().contains("upgrade"));
    let in_memory = request.body_length().is_none_or(|length| length <= 1024) && first("Expect").is_none();
    !for_upgrade && !in_memory && request.body_length().is_some_and(|length| length > 0)
}

/// Sets the count of `tiny_http`'s `EqualReader`, which is behind the request's reader, to 0: the state that it would
/// have come to had all been read. False, and nothing was done, unless exactly one word in that object is `left`.
#[allow(clippy::cast_ptr_alignment, reason = "a box is aligned as one; the other pointer is checked before it is used")]
fn zero_remaining(request: &mut tiny_http::Request, left: usize) -> bool {
    type Boxed = Box<dyn Read + Send>;
    if left < MIN_SEARCHED {
        return false;
    }
    let reader = request.as_reader();
    // Only the size of the returned reader is known: it is the box that the request holds, or the content of that box.
    let content: &mut dyn Read = if size_of_val(reader) == size_of::<Boxed>() {
        // SAFETY: `Request::as_reader` returns its `Box<dyn Read + Send>` as a reader (request.rs of the version that is
        // pinned in Cargo.toml). Where `drains_on_drop`, which the caller has checked, the box holds a counting reader of
        // six words at least, so that nothing but the box has the size of one.
        unsafe { &mut **std::ptr::from_mut(reader).cast::<Boxed>() }
    } else {
        reader
    };
    let size = size_of_val(content);
    let first = std::ptr::from_mut(content).cast::<usize>();
    if !first.is_aligned() {
        return false;
    }
    let Some(bytes) = copy_by_kernel(first.cast(), size) else { return false };
    let words = bytes.chunks_exact(size_of::<usize>()).map(|word| word.try_into().map_or(0, usize::from_ne_bytes));
    let mut matches = words.enumerate().filter(|(_, word)| *word == left);
    match (matches.next(), matches.next()) {
        (Some((at, _)), None) => {
            // SAFETY: `at` is the index of a whole word within the object, which is borrowed mutably. The word is a count,
            // of which every value is valid: no other field has a value of `MIN_SEARCHED` or more but pointers, and one
            // that happens to equal `left` would be a second match.
            unsafe { first.add(at).write(0) };
            true
        }
        _ => false,
    }
}

/// A copy of `size` bytes of an object, padding included, made by the kernel through a pipe: what it returns is
/// initialised, whatever the object holds. `None` if no pipe can be created.
fn copy_by_kernel(object: *const u8, size: usize) -> Option<Vec<u8>> {
    let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).ok()?;
    // SAFETY: `object` points to `size` readable bytes; the kernel reads them and nothing in this program does. An object
    // of this size, some 100 bytes, fits a pipe (PIPE_BUF, pipe(7)), so that the call does not block.
    let written = unsafe { libc::write(writer.as_raw_fd(), object.cast(), size) };
    if usize::try_from(written).ok()? != size {
        return None;
    }
    let mut bytes = vec![0; size];
    File::from(reader).read_exact(&mut bytes).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::Shutdown;
    use std::net::TcpStream;
    use std::time::Duration;

    /// Lengths that are lazily allocated, that no machine has, that no address space has, and that no `Layout` takes.
    #[test]
    fn no_announced_length_ends_the_process_and_the_connection_is_released() {
        let server = tiny_http::Server::http("127.0.0.1:0").unwrap();
        let address = server.server_addr().to_ip().unwrap();
        let lengths = [1025, 1 << 20, (1 << 20) + 1, 1 << 31, 100_000_000_000, 1 << 47, i64::MAX as u64, u64::MAX];
        for (length, expects) in
            lengths.into_iter().flat_map(|length| [(length, ""), (length, "Expect: 100-continue\r\n")])
        {
            let mut client = TcpStream::connect(address).unwrap();
            write!(client, "POST / HTTP/1.1\r\nHost: a\r\n{expects}Content-Length: {length}\r\n\r\n").unwrap();
            let request = server.recv_timeout(Duration::from_secs(20)).unwrap().expect("no request within 20 s");
            client.shutdown(Shutdown::Write).unwrap();
            discard(request, length);
            client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            let mut rest = Vec::new();
            client.read_to_end(&mut rest).unwrap_or_else(|error| panic!("{length}: not closed within 20 s: {error}"));
        }
    }

    /// Where the allocator refuses them: with little memory, or a limit on it.
    #[test]
    fn lengths_that_are_refused_are_dropped_without_being_allocated() {
        let server = tiny_http::Server::http("127.0.0.1:0").unwrap();
        let address = server.server_addr().to_ip().unwrap();
        for length in [MIN_SEARCHED as u64, 300_000_000, 900_000_000] {
            let mut client = TcpStream::connect(address).unwrap();
            write!(client, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n").unwrap();
            let mut request = server.recv_timeout(Duration::from_secs(20)).unwrap().expect("no request within 20 s");
            assert!(zero_remaining(&mut request, usize::try_from(length).unwrap()), "{length}");
            client.shutdown(Shutdown::Write).unwrap();
            drop(request.into_writer());
        }
    }

    /// All lengths whose search could match a field of `tiny_http`'s own buffers are below the least one searched for.
    #[test]
    fn lengths_of_real_clients_are_allocated_and_never_searched_for() {
        for length in [0, 1, 70, 1024, MIN_SEARCHED as u64 - 1] {
            assert!(length <= ALWAYS_ALLOCATABLE && is_allocatable(length), "{length}");
        }
    }
}
