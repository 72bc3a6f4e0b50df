//! The engine that this test program tries: tests of behaviour run once for each, from one source. `tests/native.rs` holds
//! them all once more; this is how they know that they are in there.

#![allow(dead_code, unreachable_pub, reason = "shared by several test programs, each of which uses its own part")]

use allout::{EngineKind, Service};

/// One test for each name: the function of that name of the module above, with `ENGINE`.
#[allow(unused_macros, reason = "shared by several test programs, each of which uses its own part")]
macro_rules! tests {
    ($($(#[$attribute:meta])* $name:ident;)*) => {
        $(#[test]
        $(#[$attribute])*
        fn $name() {
            super::$name(ENGINE);
        })*
    };
}

/// The [`tests`] of these names for each engine. With `#[tiny_http = "reason"]` one is ignored for `tiny_http`.
#[allow(unused_macros, reason = "shared by several test programs, each of which uses its own part")]
macro_rules! tests_of_both_engines {
    ($($(#[tiny_http = $reason:literal])? $(#[cfg($condition:meta)])? $name:ident;)*) => {
        mod tiny_http {
            const ENGINE: &str = "tiny-http";
            tests! { $($(#[ignore = $reason])? $(#[cfg($condition)])? $name;)* }
        }

        mod native {
            const ENGINE: &str = "native";
            tests! { $($(#[cfg($condition)])? $name;)* }
        }
    };
}

/// Whether this program tries the native engine.
pub const NATIVE: bool = matches!(env!("CARGO_CRATE_NAME").as_bytes(), b"native");

/// The engine to try.
pub const ENGINE: EngineKind =
    if NATIVE || cfg!(not(feature = "tiny-http")) { EngineKind::Native } else { EngineKind::TinyHttp };

/// How this program calls a test that is called so in `tests/native.rs`.
pub fn test_name(native: &'static str) -> &'static str {
    if NATIVE { native } else { native.split_once("::").map_or(native, |(_, name)| name) }
}

/// A service on it.
pub fn service() -> Service {
    Service::new().engine(ENGINE)
}

/// A service on the engine of this name.
pub fn service_on(name: &str) -> Service {
    let kind = [EngineKind::TinyHttp, EngineKind::Native].into_iter().find(|kind| kind.name() == name);
    Service::new().engine(kind.unwrap_or(ENGINE))
}
