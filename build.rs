//! The build script: how the static program is linked.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_ENV").is_ok_and(|environment| environment == "musl") {
        // The relocations of a position-independent program in 1 KB, not 50 KB. musl applies them since 1.2.4, binutils
        // makes them since 2.38, and ignores the option before.
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}
