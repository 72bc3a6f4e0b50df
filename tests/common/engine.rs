//! The engine that this test program tries: tests of behaviour run once for each, from one source. `tests/native.rs` holds
//! them all once more; this is how they know that they are in there.

#![allow(dead_code, unreachable_pub, reason = "shared by several test programs, each of which uses its own part")]

use allout::{EngineKind, Service, ServiceHandle};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Limit of every wait for something that takes no time: long enough on a machine that is busy with other work.
pub const LIMIT: Duration = Duration::from_secs(20);

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

/// Starts a service on it, within this process and on a free port.
#[track_caller]
pub fn start(service: Service) -> ServiceHandle {
    service.engine(ENGINE).listen("127.0.0.1:0").start().unwrap_or_else(|e| panic!("a service on a free port: {e}"))
}

/// Sends bytes, and reads the whole response up to the end of the connection.
#[track_caller]
pub fn exchange(address: SocketAddr, bytes: &str) -> String {
    let mut response = String::new();
    let mut exchange = || {
        let mut client = TcpStream::connect(address)?;
        client.set_read_timeout(Some(LIMIT))?;
        client.write_all(bytes.as_bytes())?;
        client.read_to_string(&mut response)
    };
    exchange().unwrap_or_else(|error| panic!("{bytes:?}: {error}: {response}"));
    response
}

/// The whole response to a GET on a connection of its own, as text.
#[track_caller]
pub fn get(address: SocketAddr, path: &str) -> String {
    exchange(address, &format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"))
}
