//! What is left of a request's body when nobody will read it.
//!
//! tiny_http reads a body to its end when a request is dropped, into a buffer that it makes as large as all that is
//! left. Where the client announced more than the system will give, that ends the process; an announced length of a
//! hundred gigabytes is enough. Up to [`HARMLESS`] the memory is never touched, and freed again at once, provided that
//! the read side of the socket is shut down. Beyond it, the count of what is left is set to nothing before the drop.

#![allow(unsafe_code)] // denied everywhere else; see `forget_what_is_left`

use std::io::Read;
use std::net::Shutdown;

use socket2::SockRef;

use super::{Shared, quirks};

/// Buffers up to this length are made and freed without a thought, on any system that runs this at all.
const HARMLESS: u64 = 1024 * 1024;

/// Drops a request of a connection that is closing, unanswered. `body_left`: bytes of its body that were not read, if
/// some were. Never waits for the client, since the thread that receives calls it.
pub(super) fn discard_closing(shared: &Shared, raw: tiny_http::Request, body_left: Option<u64>) {
    let (_, quirks) = quirks::of_rejected(&raw);
    if !quirks.body_buffered {
        let left = body_left.or(raw.body_length().map(|length| length as u64));
        let connection = raw.remote_addr().and_then(|peer| shared.connections.connection(*peer));
        let Some(socket) = connection.and_then(|connection| shared.socket_of(&connection)) else {
            return discard_unknown_socket(raw, left.unwrap_or(0));
        };
        // Dropping it reads the rest of the body, which is then empty.
        let _ = SockRef::from(&*socket).shutdown(Shutdown::Read); // fails if the peer has left
        return discard(raw, left.unwrap_or(0));
    }
    drop(raw.into_writer()); // a plain drop of `Request` answers 500
}

/// Drops a request of which `left` bytes of the body were announced and not read, without an answer.
///
/// Nothing waits for the client here if the read side of its socket is shut down.
pub(crate) fn discard(mut request: tiny_http::Request, left: u64) {
    if left > HARMLESS && !forget(&mut request, left) {
        leak(request, left);
        return;
    }
    // Taking the writer and dropping it is what keeps `Request` from answering 500 by itself.
    drop(request.into_writer());
}

/// Drops a request of which `left` bytes of the body were announced and not read, without an answer, where nothing is
/// known of its socket, so that its client could make us wait.
pub(crate) fn discard_unknown_socket(mut request: tiny_http::Request, left: u64) {
    if forget(&mut request, left) {
        drop(request.into_writer()); // as above
    } else {
        leak(request, left);
    }
}

/// Makes dropping a request harmless, whatever is left of its body, also while the client goes on sending it. False if
/// that could not be done.
pub(crate) fn forget(request: &mut tiny_http::Request, left: u64) -> bool {
    left == 0 || !reads_on_drop(request) || forget_what_is_left(request, left)
}

/// Not the tiny_http that this was written for. A thread and two descriptors are lost; better than the process.
fn leak(request: tiny_http::Request, left: u64) {
    log::error!("a request with a body of {left} bytes had to be leaked");
    std::mem::forget(request);
}

/// Whether the request's reader is one that counts, and reads to its end when it is dropped: tiny_http's own rules
/// (`new_request` in request.rs), to the letter.
fn reads_on_drop(request: &tiny_http::Request) -> bool {
    let first = |name: &'static str| request.headers().iter().find(|header| header.field.equiv(name));
    let for_upgrade =
        first("Connection").is_some_and(|header| header.value.as_str().to_ascii_lowercase().contains("upgrade"));
    let in_memory = request.body_length().is_none_or(|length| length <= 1024) && first("Expect").is_none();
    !for_upgrade && !in_memory && request.body_length().is_some_and(|length| length > 0)
}

/// Sets the count of tiny_http's `EqualReader` (`util/equal_reader.rs`), which is behind the request's reader, to nothing:
/// the state that it would have come to had all been read. False, and nothing was done, unless exactly one word in that
/// object says `left`.
#[allow(clippy::cast_ptr_alignment, reason = "a box is aligned as one; the other pointer is asked before it is used")]
fn forget_what_is_left(request: &mut tiny_http::Request, left: u64) -> bool {
    type Boxed = Box<dyn Read + Send>;
    let Ok(left) = usize::try_from(left) else { return false };
    let reader = request.as_reader();
    // What comes back is a reader of which only the size can be known: the box that the request holds, or its content.
    let content: &mut dyn Read = if size_of_val(reader) == size_of::<Boxed>() {
        // SAFETY: `Request::as_reader` returns its `Box<dyn Read + Send>` as a reader (request.rs of the version that is
        // pinned in Cargo.toml); nothing smaller than a counting reader, which has six words at least, is in the box
        // where `reads_on_drop`, which callers have asked.
        unsafe { &mut **std::ptr::from_mut(reader).cast::<Boxed>() }
    } else {
        reader
    };
    let words = size_of_val(content) / size_of::<usize>();
    let first = std::ptr::from_mut(content).cast::<usize>();
    if !first.is_aligned() {
        return false;
    }
    // SAFETY: `first` up to `first + words` lies within one object, which is borrowed mutably for as long as this takes.
    // It is read word by word, volatile, so that padding between its fields (of no value in the language's eyes) is
    // whatever the memory holds. The one word that is written is a count, of which every value is valid: no pointer has
    // the value of `left` by chance more than once, and pointers of a user process lie far above any count that passes
    // the check for a single match unless a client guesses one exactly; then nothing is written, as there are two.
    unsafe {
        let mut matches = (0..words).filter(|at| first.add(*at).read_volatile() == left);
        match (matches.next(), matches.next()) {
            (Some(at), None) => {
                first.add(at).write_volatile(0);
                true
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::TcpStream;
    use std::time::Duration;

    /// Lengths that are lazily allocated, that no machine has, that no address space has, and that no `Layout` takes.
    #[test]
    fn no_announced_length_ends_the_process_and_the_connection_is_let_go() {
        let server = tiny_http::Server::http("127.0.0.1:0").unwrap();
        let address = server.server_addr().to_ip().unwrap();
        let lengths = [1025, 1 << 20, (1 << 20) + 1, 1 << 31, 100_000_000_000, 1 << 47, i64::MAX as u64, u64::MAX];
        for (length, expects) in
            lengths.into_iter().flat_map(|length| [(length, ""), (length, "Expect: 100-continue\r\n")])
        {
            let mut client = TcpStream::connect(address).unwrap();
            write!(client, "POST / HTTP/1.1\r\nHost: a\r\n{expects}Content-Length: {length}\r\n\r\nsome").unwrap();
            let mut request = server.recv_timeout(Duration::from_secs(20)).unwrap().expect("no request within 20 s");
            let mut some = [0; 4];
            if expects.is_empty() {
                request.as_reader().read_exact(&mut some).unwrap();
            }
            client.shutdown(Shutdown::Write).unwrap();
            let left = length - if expects.is_empty() { 4 } else { 0 };
            if left > HARMLESS {
                assert!(forget_what_is_left(&mut request, left), "{length} was not found");
            }
            drop(request.into_writer());
            client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            let mut rest = Vec::new();
            client.read_to_end(&mut rest).expect("the connection is closed within 20 s");
        }
    }
}
