//! Executing a file that is held open.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use libc::c_char;

/// Replaces this process by the program in `file`, which may be open with `O_PATH`. Returns only with an error.
///
/// Unlike `execvp`, which is what `std::process::Command` calls, it executes exactly this file, and never gives a file of
/// an unknown format to a shell. A script needs `file` to stay open over the `exec`.
pub(crate) fn exec(file: impl AsFd, arguments: &[CString], environment: &[CString]) -> io::Error {
    let pointers = |strings: &[CString]| -> Vec<*const c_char> {
        strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (argv, envp) = (pointers(arguments), pointers(environment));
    // SAFETY: both arrays end with a null pointer, and they and the strings that they point to, which end with a NUL,
    // live until the call returns. `fexecve` only reads them. It is a system call (execveat(2)) with a fallback for old
    // kernels.
    unsafe {
        libc::fexecve(file.as_fd().as_raw_fd(), argv.as_ptr(), envp.as_ptr());
    }
    io::Error::last_os_error()
}
