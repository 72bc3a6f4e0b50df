//! File descriptors of which only the number is known.
//!
//! A number means nothing by itself: between two system calls it may be closed and given to another file. So a number is
//! used only to ask for a socket's cookie or to make a duplicate, and the *duplicate* is what is judged. `pidfd_getfd`
//! would make duplicates without `unsafe`, but systemd's `@system-service` filter and container runtimes refuse it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::Errno;
use rustix::net::sockopt;

/// The cookie (`SO_COOKIE`, socket(7)) of the socket behind `number`: unique for as long as the machine runs.
/// Errors: `EBADF` if the number is not in use, `ENOTSOCK` if it is no socket.
pub(crate) fn cookie(number: RawFd) -> Result<u64, Errno> {
    with_raw_fd(number, |fd| sockopt::socket_cookie(fd))
}

/// A duplicate of the file that `number` is at this moment.
/// Errors: `EBADF` if the number is not in use, `EMFILE` if no descriptor is left.
pub(crate) fn duplicate(number: RawFd) -> Result<OwnedFd, Errno> {
    with_raw_fd(number, |fd| rustix::io::fcntl_dupfd_cloexec(fd, 3))
}

/// A duplicate of a descriptor that was passed to this process by its number. The passed one is closed at the next
/// `exec`.
/// Errors: the number is not in use, or no descriptor is left.
pub(crate) fn take_passed(number: RawFd) -> io::Result<OwnedFd> {
    let duplicate = duplicate(number)?;
    with_raw_fd(number, |fd| rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::CLOEXEC))?;
    Ok(duplicate)
}

/// Puts a duplicate of `by` under `number`, which holds the socket with the cookie `expected`. A call that already waits
/// on that socket goes on waiting on it.
///
/// Check and replacement are two system calls. If the number is closed and reused between them, another file is replaced.
/// So the caller must know that the owner of the number is alive and keeps it open.
/// Errors: `NotFound`: the number holds something else by now.
pub(crate) fn replace_fd(number: RawFd, expected: u64, by: impl AsFd) -> io::Result<()> {
    if cookie(number) != Ok(expected) {
        return Err(io::ErrorKind::NotFound.into());
    }
    // SAFETY: `dup3` wants to own the number, since it closes what was there. The file there is a listening socket that
    // this crate made and gave to an accept thread, which calls nothing but `accept` on it, and closes the number when it
    // ends: with the file that is there then. The owner made here is never dropped, so nothing is closed twice.
    let mut target = std::mem::ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(number) });
    rustix::io::dup3(by, &mut target, rustix::io::DupFlags::CLOEXEC)?;
    Ok(())
}

/// Makes one system call about a descriptor of which only the number is known.
fn with_raw_fd<T>(number: RawFd, call: impl FnOnce(BorrowedFd<'_>) -> Result<T, Errno>) -> Result<T, Errno> {
    if number < 0 {
        return Err(Errno::BADF); // -1 is the one value that `borrow_raw` does not allow
    }
    // SAFETY: `borrow_raw` wants a descriptor that stays open while it is borrowed, so that code which relies on *which*
    // file it is cannot be fooled. No code here relies on it: `call` is one system call that reads a socket option, sets
    // a flag of the number, or makes a duplicate. If the number is closed the kernel answers EBADF; if it was given to
    // another file meanwhile, the answer is about that file, and callers judge it by the answer (module text).
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    call(fd)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_is_not_in_use_is_an_error_and_no_panic() {
        for number in [-1, RawFd::MAX] {
            assert_eq!(cookie(number), Err(Errno::BADF));
            assert!(duplicate(number).is_err() && take_passed(number).is_err());
        }
        let file = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(cookie(std::os::fd::AsRawFd::as_raw_fd(&file)), Err(Errno::NOTSOCK));
    }
}
