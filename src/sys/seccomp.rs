//! For tests: makes the kernel refuse a socket option, for one thread and the threads that it creates.

use std::thread;

use libc::{c_int, sock_filter, sock_fprog};

/// Runs `body` on a thread for which `getsockopt` and `setsockopt` of this option fail with `ENOPROTOOPT` (seccomp(2)).
pub(crate) fn without_option<T: Send>(level: c_int, option: c_int, body: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            install(level, option);
            body()
        });
        thread.join().expect("the body does not panic")
    })
}

/// Offsets in `struct seccomp_data` (linux/seccomp.h): the number of the call, and the lower halves of its arguments.
const NR: u32 = 0;
const LEVEL: u32 = 24;
const OPTION: u32 = 32;

fn install(level: c_int, option: c_int) {
    let load = |offset| statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset);
    let ret = |action| statement(libc::BPF_RET | libc::BPF_K, action);
    let number = |call: libc::c_long| u32::try_from(call).expect("system calls have small numbers");
    let word = |argument: c_int| u32::try_from(argument).expect("levels and options are positive");
    let failing = libc::SECCOMP_RET_ERRNO | u32::try_from(libc::ENOPROTOOPT).expect("it is positive");
    let mut program = [
        load(NR),
        jump(number(libc::SYS_getsockopt), 1, 0),
        jump(number(libc::SYS_setsockopt), 0, 5),
        load(LEVEL),
        jump(word(level), 0, 3),
        load(OPTION),
        jump(word(option), 0, 1),
        ret(failing),
        ret(libc::SECCOMP_RET_ALLOW),
    ];
    let length = u16::try_from(program.len()).expect("it is short");
    let filter = sock_fprog { len: length, filter: program.as_mut_ptr() };
    // SAFETY: prctl reads the program, which lives until it returns, and sets what holds for this thread alone.
    let result = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter)
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

fn statement(code: u32, k: u32) -> sock_filter {
    sock_filter { code: u16::try_from(code).expect("codes have 16 bits"), jt: 0, jf: 0, k }
}

/// Compares the loaded word with `k`, and skips so many instructions if it is equal, and if it is not.
fn jump(k: u32, if_equal: u8, if_not: u8) -> sock_filter {
    let equal = statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, k);
    sock_filter { jt: if_equal, jf: if_not, ..equal }
}
