//! Kernel features that an engine needs, checked once, at the start.

use crate::engine::EngineKind;
use crate::service::error::StartError;
use crate::sys::features::{self, Feature};

/// The effects of missing kernel features.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Losses {
    /// Warning that limits or requests are lost. Empty if none are.
    pub(super) warning: Option<String>,
    /// Note of losses that concern rare clients alone.
    pub(super) note: Option<String>,
}

/// Checks which features the kernel has.
/// Errors: [`StartError::Kernel`]: the engine cannot work with this one.
pub(super) fn check(engine: EngineKind) -> Result<Losses, StartError> {
    losses(engine, &features::missing().map_err(|error| StartError::System("a socket", error))?)
}

fn losses(engine: EngineKind, missing: &[Feature]) -> Result<Losses, StartError> {
    if engine == EngineKind::TinyHttp && missing.contains(&Feature::SocketCookie) {
        return Err(StartError::Kernel(format!(
            "the kernel has no {}, without which the engine {} enforces no timeout and no limit; the engine {} does \
             without (--engine {})",
            Feature::SocketCookie.name(),
            EngineKind::TinyHttp.name(),
            EngineKind::Native.name(),
            EngineKind::Native.name(),
        )));
    }
    let mut losses = Losses::default();
    for feature in missing {
        let place = if *feature == Feature::BindDevice { &mut losses.note } else { &mut losses.warning };
        let Some(lost) = lost(engine, *feature) else { continue };
        let beginning = place.take().map_or_else(|| "missing here: ".to_owned(), |before| format!("{before}; "));
        *place = Some(format!("{beginning}{}: {lost}", feature.name()));
    }
    Ok(losses)
}

fn lost(engine: EngineKind, feature: Feature) -> Option<&'static str> {
    let is_native = engine == EngineKind::Native;
    match feature {
        Feature::MinTtl if is_native => Some("a stop ends while clients connect, and may lose their requests"),
        Feature::MinTtl => Some(
            "a stop may lose requests of clients that connect meanwhile, and a flood of requests is not slowed down",
        ),
        Feature::TcpInfo if is_native => Some("a stop may lose requests of clients that connect meanwhile"),
        Feature::TcpInfo => Some("a stop may lose requests, and the limit on the size of a head does not hold"),
        Feature::PeerName if !is_native => Some("a connection that was reset is noticed late"),
        Feature::Proc => Some(
            "the limits on threads and memory are unknown, SIGHUP finds no binary for a re-exec, SIGUSR1 lists no threads",
        ),
        Feature::BindDevice => Some("a stop may lose requests of clients whose packets arrive with a TTL of 255"),
        Feature::SocketCookie | Feature::PeerName => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lost_is_one_line() {
        for engine in [EngineKind::TinyHttp, EngineKind::Native] {
            assert_eq!(losses(engine, &[]).unwrap(), Losses::default());
            let all = losses(engine, &[Feature::MinTtl, Feature::Proc, Feature::BindDevice]).unwrap();
            let (warning, note) = (all.warning.unwrap(), all.note.unwrap());
            assert!(warning.starts_with("missing here: IP_MINTTL (Linux 2.6.34): a stop "), "{warning}");
            assert!(warning.contains("; /proc ") && !warning.contains("BINDTOIFINDEX"), "{warning}");
            assert!(note.contains("TTL of 255"), "{note}");
        }
    }

    /// As on Linux before 4.12, gVisor, and emulators.
    #[test]
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    fn without_socket_cookies_one_engine_is_refused_with_a_hint_and_the_other_serves() {
        use std::io::{Read as _, Write as _};

        crate::sys::seccomp::without_option(libc::SOL_SOCKET, libc::SO_COOKIE, || {
            let service =
                |engine| crate::Service::new().listen("127.0.0.1:0").engine(engine).get("/", |_| "served\n").start();
            let said = service(EngineKind::TinyHttp).unwrap_err().to_string();
            assert!(said.contains("SO_COOKIE (Linux 4.12)") && said.contains("--engine native"), "{said}");

            let service = service(EngineKind::Native).unwrap();
            let mut client = std::net::TcpStream::connect(service.address()).unwrap();
            client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
            let mut response = String::new();
            client.read_to_string(&mut response).unwrap();
            assert!(response.ends_with("served\n"), "{response}");
            assert_eq!(service.stop("a test").code(), 0);
        });
    }
}
