//! One `tiny_http::Server` on the listening socket: its start, its end, and its panics.
//!
//! Facts about it (measured on 0.12.0; the version is pinned):
//!
//! * Its accept thread ends for good on any error of `accept`, and panics, without an event, when a descriptor or a
//!   thread is missing. A new server on the same socket then takes over; the connections of the old one live on.
//! * Its threads set no names. They inherit that of the thread that makes the server: `connection`.
//! * Dropping a `Server` connects to its own port to wake the accept thread. So the port must be closed before, or the
//!   server must be leaked.

use std::cell::Cell;
use std::io;
use std::net::{Shutdown, TcpListener};
use std::os::fd::{AsRawFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Once};
use std::thread;

use socket2::SockRef;
use tiny_http::Server;

use crate::text::panic_message;

/// The name of tiny_http's threads: its accept thread, and one for each connection.
const THREAD_NAME: &str = "connection";

/// A running `Server`.
pub(crate) struct RunningServer {
    server: Arc<Server>,
    /// The number of the descriptor on which it accepts.
    accept_fd: RawFd,
}

impl RunningServer {
    /// Starts tiny_http on a duplicate of the listening socket.
    /// Errors: no descriptor or no thread is left.
    pub(crate) fn start(listener: &TcpListener) -> io::Result<RunningServer> {
        silence_server_panics();
        let listener = listener.try_clone()?;
        let accept_fd = listener.as_raw_fd();
        let maker = thread::Builder::new()
            .name(THREAD_NAME.to_owned())
            .spawn(move || catch_unwind(AssertUnwindSafe(|| Server::from_listener(listener, None))))?;
        match maker.join() {
            Ok(Ok(Ok(server))) => Ok(RunningServer { server: Arc::new(server), accept_fd }),
            Ok(Ok(Err(error))) => Err(io::Error::other(error.to_string())),
            Ok(Err(payload)) | Err(payload) => Err(io::Error::other(panic_message(payload))),
        }
    }

    pub(crate) fn server(&self) -> Arc<Server> {
        Arc::clone(&self.server)
    }

    pub(crate) fn accept_fd(&self) -> RawFd {
        self.accept_fd
    }
}

/// Closes the port for every holder of the listening socket. A `Server` that is dropped after this fails to connect to it
/// at once; an accept thread that still accepts from it ends with an error.
pub(crate) fn shut_listener(listener: &TcpListener) {
    let _ = SockRef::from(listener).shutdown(Shutdown::Both); // fails if it is closed already
}

thread_local! {
    /// Panics of this thread are expected, and not printed.
    static EXPECTED: Cell<bool> = const { Cell::new(false) };
}

/// Runs `f`, whose panic is expected: it is not printed.
pub(super) fn without_panic_message(f: impl FnOnce()) {
    EXPECTED.set(true);
    f();
    EXPECTED.set(false);
}

/// Installs a panic hook that silences `tiny_http`'s own threads, which panic when a peer has left, or when a descriptor or
/// a thread is missing. The consequences are detected, handled and counted elsewhere. Other panics go to the previous hook.
fn silence_server_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            // Threads of tiny_http have a name for Linux (inherited), and none for Rust.
            let of_engine = thread::current().name().is_none_or(|name| name == THREAD_NAME)
                && rustix::thread::name().is_ok_and(|name| name.to_bytes() == THREAD_NAME.as_bytes());
            if of_engine || EXPECTED.get() {
                log::debug!("tiny_http thread panicked: {info}");
            } else {
                before(info);
            }
        }));
    });
}
