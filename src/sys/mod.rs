//! The kernel's interface: what no crate wraps, or wraps with a policy of its own. No policy here.
//!
//! All `unsafe` of this crate is in this folder and in `engine/tiny_http/unread_body.rs`.

#![allow(unsafe_code, reason = "system calls and libc functions that no crate wraps; each block says why it is sound")]

#[cfg(feature = "tiny-http")]
pub(crate) mod accept_brake;
pub(crate) mod address_space;
pub(crate) mod bind_device;
pub(crate) mod children;
pub(crate) mod exec;
pub(crate) mod fd;
pub(crate) mod features;
pub(crate) mod heap;
pub(crate) mod limits;
pub(crate) mod min_ttl;
pub(crate) mod peer;
pub(crate) mod peer_name;
#[cfg(test)]
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(crate) mod seccomp;
pub(crate) mod sigio;
pub(crate) mod signals;
mod sockopt;
pub(crate) mod tcp;
