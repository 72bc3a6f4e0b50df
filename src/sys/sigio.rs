//! SIGIO for a socket (fcntl(2), `F_SETOWN_EX` and `O_ASYNC`).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::thread::Pid;

/// Makes the kernel send SIGIO to a thread whenever something happens on a socket; `None` switches it off.
///
/// This is the one way to learn of a new connection on a listening socket in whose `accept` another thread waits: `poll`
/// and `epoll` look again after they were woken, find that the connection has been taken, and go on sleeping.
///
/// SIGIO ends the process unless a handler is installed: install it first.
/// Errors: the system refuses.
pub(crate) fn set_sigio(socket: impl AsFd, thread: Option<Pid>) -> io::Result<()> {
    let socket = socket.as_fd();
    let asynchronous = OFlags::from_bits_retain(u32::try_from(libc::O_ASYNC).unwrap_or(0));
    let flags = fcntl_getfl(socket)?;
    if let Some(thread) = thread {
        set_owner(socket, thread)?;
        fcntl_setfl(socket, flags | asynchronous)?;
    } else {
        fcntl_setfl(socket, flags - asynchronous)?;
    }
    Ok(())
}

/// Makes a thread, not the process, the receiver of the socket's SIGIO.
fn set_owner(socket: BorrowedFd<'_>, thread: Pid) -> io::Result<()> {
    #[repr(C)]
    struct Owner {
        kind: libc::c_int,
        id: libc::pid_t,
    }
    const F_SETOWN_EX: libc::c_int = 15; // asm-generic/fcntl.h
    const F_OWNER_TID: libc::c_int = 0;
    let owner = Owner { kind: F_OWNER_TID, id: thread.as_raw_nonzero().get() };
    // SAFETY: for this command the kernel reads a `struct f_owner_ex` from the pointer, which is laid out as `Owner` and
    // lives until the call returns. The descriptor is borrowed, hence open.
    let result = unsafe { libc::fcntl(socket.as_raw_fd(), F_SETOWN_EX, &raw const owner) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
