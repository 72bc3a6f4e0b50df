//! The build script: the system that the target must have, and how the static program is linked.

use std::env;
use std::process::Command;

/// Minor version of the first Rust 1 whose musl, 1.2.5, applies packed relocations. With an older one the program would
/// end before `main`.
const FIRST_THAT_APPLIES_THEM: u32 = 93;

fn main() {
    println!("cargo::rerun-if-changed=src/packaging/build.rs");
    if env::var("CARGO_CFG_TARGET_OS").is_ok_and(|system| system != "linux") {
        println!("cargo::error=allout runs on Linux only: it is built on epoll, /proc and systemd's protocol");
    }
    let is_musl = env::var("CARGO_CFG_TARGET_ENV").is_ok_and(|environment| environment == "musl");
    if is_musl && minor_version().is_some_and(|minor| minor >= FIRST_THAT_APPLIES_THEM) {
        // The relocations of a position-independent program in 1 KB, not 50 KB. binutils makes them since 2.38, and
        // ignores the option before.
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}

/// The `Y` of a compiler that says `rustc 1.Y.Z …`.
fn minor_version() -> Option<u32> {
    let output = Command::new(env::var_os("RUSTC")?).arg("--version").output().ok()?;
    let version = String::from_utf8(output.stdout).ok()?;
    version.strip_prefix("rustc 1.")?.split('.').next()?.parse().ok()
}
