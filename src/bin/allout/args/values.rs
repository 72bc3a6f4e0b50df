//! The values of options: their types, and how each is read or refused with what would be accepted.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use allout::EngineKind;
use clap::ValueEnum;

/// Longest duration that is accepted. More is a typing error.
const MAX_DURATION: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// An address to listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    Inet(SocketAddr),
    Unix(PathBuf),
}

/// Permissions of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode(pub u32);

/// Owner of a file, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    pub user: Option<u32>,
    pub group: Option<u32>,
}

/// The format of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One readable line per event.
    Text,
    /// One JSON object per line.
    Json,
}

/// Destination of the access log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccessLog {
    /// Nowhere.
    Off,
    /// In the log.
    On,
    /// In a file of its own.
    File(PathBuf),
}

/// Scope of `--check`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Check {
    /// All conditions of a start.
    Start,
    /// The conditions of a re-exec, which keeps the addresses.
    Reload,
}

/// The systemd unit to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Unit {
    /// The service.
    Service,
    /// The socket that starts the service.
    Socket,
    /// The service, for the manager of a user.
    User,
    /// The service, once for each port.
    Template,
}

/// Texts that are generated from the definition of the command line.
#[cfg(feature = "generate")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Generate {
    /// Completions for bash.
    Bash,
    /// Completions for zsh.
    Zsh,
    /// Completions for fish.
    Fish,
    /// The man page.
    Man,
}

pub fn parse_engine(text: &str) -> Result<EngineKind, String> {
    let mut all = EngineKind::ALL.iter();
    all.find(|engine| engine.name() == text)
        .copied()
        .ok_or_else(|| EngineKind::ALL.iter().map(|engine| engine.name()).collect::<Vec<_>>().join(" or "))
}

pub fn parse_listen(text: &str) -> Result<Listen, String> {
    match text.strip_prefix("unix:") {
        Some(path) if path.starts_with('/') => Ok(Listen::Unix(path.into())),
        Some(_) => Err("expected an absolute path, as in unix:/run/allout/allout.sock".to_owned()),
        None if text.starts_with('/') => Err(format!("a Unix socket is written unix:{text}")),
        None => parse_address(text).map(Listen::Inet),
    }
}

pub fn parse_mode(text: &str) -> Result<Mode, String> {
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777);
    mode.map(Mode).ok_or_else(|| "expected permissions in octal, as in 0660".to_owned())
}

pub fn parse_owner(text: &str) -> Result<Owner, String> {
    let (user, group) = text.split_once(':').unwrap_or((text, ""));
    Ok(Owner { user: parse_id(user, "/etc/passwd")?, group: parse_id(group, "/etc/group")? })
}

/// The number of a user or a group; `None` if it is not given. Both files have it in the third field: passwd(5),
/// group(5).
fn parse_id(text: &str, file: &str) -> Result<Option<u32>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let find = || {
        let lines = std::fs::read_to_string(file).ok()?;
        let line = lines.lines().find(|line| line.split(':').next() == Some(text))?;
        line.split(':').nth(2)?.parse().ok()
    };
    let id = text.parse().ok().or_else(find);
    id.map(Some).ok_or_else(|| format!("{text} is neither a number nor in {file}"))
}

pub fn parse_address(text: &str) -> Result<SocketAddr, String> {
    // The only name that needs no resolver.
    if let Some(port) = text.strip_prefix("localhost:").and_then(|port| port.parse().ok()) {
        return Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    }
    text.parse().map_err(|_| {
        let hint = match text.rsplit_once(':') {
            Some(("", _)) => " (0.0.0.0 is every IPv4 address, [::] is every address)",
            Some((host, _)) if host.contains(':') && !host.starts_with('[') => " (an IPv6 address goes in brackets)",
            Some((host, _)) if host.contains(|c: char| c.is_ascii_alphabetic()) && !host.contains(':') => {
                " (host names are not looked up, except localhost)"
            }
            _ => "",
        };
        format!("expected ADDRESS:PORT, as in 127.0.0.1:8088, localhost:8088 or [::1]:8088{hint}")
    })
}

pub fn parse_access_log(text: &str) -> Result<AccessLog, String> {
    match text {
        "off" | "0" | "false" | "no" | "n" => Ok(AccessLog::Off),
        "on" | "1" | "true" | "yes" | "y" => Ok(AccessLog::On),
        path if path.contains('/') => Ok(AccessLog::File(path.into())),
        _ => Err("expected off, on, or a file with its folder, as in /var/log/allout/access.log".to_owned()),
    }
}

pub fn parse_network(text: &str) -> Result<String, String> {
    let (address, bits) = text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
    let is_network = address.parse().is_ok_and(|address: IpAddr| {
        let most = if address.is_ipv4() { 32 } else { 128 };
        bits.is_none_or(|bits| bits.parse().is_ok_and(|bits: u8| bits <= most))
    });
    if is_network { Ok(text.to_owned()) } else { Err("expected an address or a network, as in 10.0.0.0/8".to_owned()) }
}

pub fn parse_count(text: &str) -> Result<usize, String> {
    text.parse().map_err(|_| "expected a whole number, as in 64".to_owned())
}

pub fn parse_one_or_more(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("expected a whole number, 1 or more, as in 64".to_owned()),
        Ok(number) => Ok(number),
    }
}

pub fn parse_duration(text: &str) -> Result<Duration, String> {
    const EXPECTED: &str = "expected a number with its unit, as in 30s, 500ms or '1m 30s'";
    // humantime accepts a bare 0. Here all bare numbers are refused alike.
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(EXPECTED.to_owned());
    }
    match humantime::parse_duration(text) {
        Ok(duration) if duration <= MAX_DURATION => Ok(duration),
        Ok(_) => Err("expected a year at most".to_owned()),
        Err(_) => Err(EXPECTED.to_owned()),
    }
}

/// A timeout of zero would end every request before it starts. There is no value for "never", which 0 may be meant to
/// say.
pub fn parse_timeout(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        Duration::ZERO => Err("expected more than nothing, as in 30s; there is no 'never'".to_owned()),
        timeout => Ok(timeout),
    }
}
