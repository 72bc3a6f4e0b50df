//! The systemd units: what `--systemd-unit` prints.
//!
//! They are made from the units of the packages, [`SERVICE`] and [`SOCKET`], which grant the service nothing that it
//! does not use. Options that are given with `--systemd-unit` become variables of the unit, which `/etc/default/allout`
//! overrides; the unit allows what they need of the system, such as a port below 1024.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use crate::args::{self, AccessLog, Args, Mode, Owner, Unit};

/// The service, for the manager of the system, and where the packages have the binary.
const SERVICE: &str = include_str!("../../../packaging/allout.service");

/// The sockets that start it: those of the default address.
const SOCKET: &str = include_str!("../../../packaging/allout.socket");

/// The binary in [`SERVICE`].
const BINARY: &str = "/usr/bin/allout";

/// Variable of the addresses.
const LISTEN: &str = "ALLOUT_LISTEN";

/// The line of [`SERVICE`] with the file of options.
const ENV_FILE: &str = "Environment=ALLOUT_ENV_FILE=-/etc/default/allout\n";

/// The beginning of a template.
const TEMPLATE_HEAD: &str = "\
# Printed by allout --systemd-unit=template. Install as /etc/systemd/system/allout@.service. The instance is the port:
#   systemctl enable --now allout@8081 allout@8082
# Options go into /etc/default/allout, for all instances, and /etc/default/allout-8081, a line each: ALLOUT_GRACE=10s";

/// The beginning of a service of a user's own manager.
const USER_HEAD: &str = "\
# Printed by allout --systemd-unit=user. Install as ~/.config/systemd/user/allout.service:
#   systemctl --user enable --now allout; loginctl enable-linger   # serves without an open session, too
# Options go into ~/.config/allout.env, a line each: ALLOUT_GRACE=10s";

/// One directive of each paragraph of [`SERVICE`] that takes privileges, which the manager of a user does not have.
const PRIVILEGED: [&str; 5] =
    ["LimitNOFILE=", "IPAddressDeny=", "DynamicUser=", "ProtectSystem=", "ProtectKernelTunables="];

/// For ports below 1024, in place of the user without any privilege.
const LOW_PORT_USER: &str = "\
# A user of its own with the one privilege that a port below 1024 takes. PrivateUsers= would take that away.
DynamicUser=yes
CapabilityBoundingSet=CAP_NET_BIND_SERVICE
AmbientCapabilities=CAP_NET_BIND_SERVICE";

/// For ports below 1024 in the unit of a user.
const LOW_PORT_OF_USER: &str = "\
# CAUTION: a user may use ports below 1024 only from net.ipv4.ip_unprivileged_port_start= on (sysctl.d).
";

/// Contents of a unit besides the path of the binary.
#[derive(Debug, Default)]
pub struct Options {
    /// Variables, with the value for each.
    pub variables: Vec<(String, String)>,
    /// Addresses that are served, those of the admin routes included.
    pub addresses: Vec<SocketAddr>,
    /// Unix sockets that are served.
    pub unix: Vec<PathBuf>,
    /// Whether the Unix sockets get another owner.
    pub changes_owner: bool,
    /// File of the access log.
    pub access_log: Option<PathBuf>,
    /// File with the shutdown token, which becomes a credential: the user of the service could not read it.
    pub token_file: Option<PathBuf>,
}

impl Options {
    /// `Environment=` lines.
    fn lines(&self, instance_is_port: bool) -> String {
        let mut lines = String::new();
        for (name, value) in &self.variables {
            if instance_is_port && name == LISTEN {
                continue;
            }
            let _ = writeln!(lines, "Environment={}", quote(format!("{name}={value}").as_bytes()));
        }
        if instance_is_port {
            let ips: BTreeSet<_> = self.addresses.iter().map(SocketAddr::ip).collect();
            let host = |ip: &IpAddr| if ip.is_ipv6() { format!("[{ip}]:%i") } else { format!("{ip}:%i") };
            let all = ips.iter().map(host).collect::<Vec<_>>().join(",");
            let _ = writeln!(lines, "Environment={LISTEN}={all}"); // writing to a String cannot fail
        }
        let sockets = self.unix.iter().map(|path| (path, "/run", "RuntimeDirectory"));
        let log = self.access_log.iter().map(|path| (path, "/var/log", "LogsDirectory"));
        for (path, place, name) in sockets.chain(log) {
            let Some(directory) = path.parent() else { continue };
            // A folder of its own in that place is made and given to the service's user; another must be there, and
            // writable.
            let (name, directory) = match directory.strip_prefix(place) {
                Ok(own) if own.components().count() == 1 => (name, own),
                _ => ("ReadWritePaths", directory),
            };
            let _ = writeln!(lines, "{name}={}", quote(directory.as_os_str().as_bytes()));
        }
        if self.changes_owner && !self.unix.is_empty() {
            lines.push_str(
                "# CAUTION: this unit may not give a socket to another user. Let systemd make it: --systemd-unit=socket\n",
            );
        }
        lines
    }

    /// Comments with the options that a socket cannot have.
    fn elsewhere(&self) -> String {
        let is_of_socket = |name: &str| name == LISTEN || name.starts_with("ALLOUT_UNIX_");
        let mut lines = String::new();
        for (name, value) in self.variables.iter().filter(|(name, _)| !is_of_socket(name)) {
            let _ = writeln!(lines, "# For allout.service: {name}={}", value.escape_debug()); // writing to a String cannot fail
        }
        lines
    }

    fn has_low_port(&self) -> bool {
        self.addresses.iter().any(|address| (1..1024).contains(&address.port()))
    }
}

/// Prints the unit for this binary, with the other options in it.
///
/// # Errors
///
/// The path of the binary is unknown, or stdout cannot be written.
pub fn print(unit: Unit, args: &Args) -> io::Result<()> {
    // The kernel adds " (deleted)" if the binary was replaced since it started: proc_pid_exe(5).
    let binary = std::env::current_exe()?;
    let name = binary.to_string_lossy();
    let binary = name.strip_suffix(" (deleted)").map_or(&*binary, Path::new);
    let options = Options {
        variables: args::given(),
        addresses: args.addresses().into_iter().chain(args.admin_listen).collect(),
        unix: args.unix_paths(),
        changes_owner: args.unix_owner.is_some(),
        access_log: match &args.access_log {
            AccessLog::File(path) => Some(path.clone()),
            AccessLog::On | AccessLog::Off => None,
        },
        token_file: args.shutdown_token_file.clone(),
    };
    let text = match unit {
        Unit::Service => service_unit(binary, &options, false),
        Unit::Template => service_unit(binary, &options, true),
        Unit::User => user_unit(binary, &options),
        Unit::Socket => {
            socket_unit(&args.addresses(), &args.unix_paths(), args.unix_mode, args.unix_owner) + &options.elsewhere()
        }
    };
    io::stdout().write_all(text.as_bytes())
}

/// The unit for the service, running this binary; a template for an instance by port, if `template`.
fn service_unit(binary: &Path, options: &Options, template: bool) -> String {
    // DynamicUser could not enter these, and ProtectHome and PrivateTmp hide them.
    let hidden = ["/home", "/root", "/run/user", "/tmp", "/var/tmp"].iter().any(|place| binary.starts_with(place));
    // systemd refuses these even if they are quoted.
    let refused = |c: char| c.is_control() || matches!(c, '"' | '\'' | '\\');
    let note = if hidden {
        "# CAUTION: this unit cannot see the place where the binary is. Install it, as /usr/local/bin/allout, first.\n"
    } else if binary.to_str().is_none_or(|path| path.contains(refused)) {
        "# CAUTION: systemd runs no program of this name. Install it, as /usr/local/bin/allout, first.\n"
    } else {
        ""
    };
    let mut unit = SERVICE.to_owned();
    if template {
        let file = ENV_FILE.replace('\n', ",-/etc/default/allout-%i\n");
        unit = with_paragraph(&unit, "# Printed", TEMPLATE_HEAD).replace(ENV_FILE, &file);
        unit = unit.replace(" service: one out,", " service on port %i: one out,");
    }
    if let Some(path) = &options.token_file {
        let source = [b"shutdown-token:", path.as_os_str().as_bytes()].concat();
        let source = String::from_utf8_lossy(&source).replace('%', "%%");
        let credential = format!("LoadCredential={source}\nEnvironment=ALLOUT_SHUTDOWN_TOKEN_FILE=%d/shutdown-token");
        unit = with_paragraph(&unit, "# A token", &credential);
    }
    if options.has_low_port() {
        unit = with_paragraph(&unit, "# A user", LOW_PORT_USER);
    }
    with_binary(&unit, binary, note, &options.lines(template))
}

/// The unit for the manager of a user.
fn user_unit(binary: &Path, options: &Options) -> String {
    let mut lines = options.lines(false);
    if let Some(path) = &options.token_file {
        let variable = [b"ALLOUT_SHUTDOWN_TOKEN_FILE=", path.as_os_str().as_bytes()].concat();
        let _ = writeln!(lines, "Environment={}", quote(&variable)); // writing to a String cannot fail
    }
    let is_for_user = |paragraph: &&str| {
        let privileged = PRIVILEGED.iter().any(|directive| paragraph.contains(directive));
        !privileged && paragraph.lines().any(|line| !line.starts_with('#'))
    };
    let paragraphs = SERVICE.split("\n\n").filter(is_for_user);
    let unit = [USER_HEAD].into_iter().chain(paragraphs).collect::<Vec<_>>().join("\n\n");
    let unit = unit
        .replace("After=network.target\n", "")
        .replace(ENV_FILE, "Environment=\"ALLOUT_ENV_FILE=-%E/allout.env\"\n")
        .replace("multi-user.target\n", "default.target\n");
    with_binary(&unit, binary, if options.has_low_port() { LOW_PORT_OF_USER } else { "" }, &lines)
}

/// The unit with another paragraph in place of the one that begins with `start`.
fn with_paragraph(unit: &str, start: &str, other: &str) -> String {
    let paragraphs = unit.split("\n\n").map(|paragraph| if paragraph.starts_with(start) { other } else { paragraph });
    paragraphs.collect::<Vec<_>>().join("\n\n")
}

/// The unit for this binary, with a note before it and further lines. They come last: they may contain anything.
fn with_binary(unit: &str, binary: &Path, note: &str, lines: &str) -> String {
    let unit = unit.replace(BINARY, &quote(binary.as_os_str().as_bytes()));
    unit.replace("\nExecStart=", &format!("\n{note}ExecStart="))
        .replace("\nNotifyAccess=main\n", &format!("\nNotifyAccess=main\n{lines}"))
}

/// The unit for the sockets that start the service.
fn socket_unit(listen: &[SocketAddr], unix: &[PathBuf], mode: Mode, owner: Option<Owner>) -> String {
    let is_local = listen.iter().all(|address| address.ip().is_loopback());
    // An address of an interface that may come up later than the socket.
    let is_specific = |ip: IpAddr| !ip.is_loopback() && !ip.is_unspecified();
    let freebind = if listen.iter().any(|address| is_specific(address.ip())) { "FreeBind=yes\n" } else { "" };
    let mut streams = String::new();
    for address in listen {
        let _ = writeln!(streams, "ListenStream={address}"); // writing to a String cannot fail
    }
    // By default a socket for [::] takes IPv4 connections as well, and so the port of the other.
    let has_v4 = |port: u16| listen.iter().any(|other| other.is_ipv4() && other.port() == port);
    if listen.iter().any(|address| address.is_ipv6() && has_v4(address.port())) {
        streams.push_str("BindIPv6Only=ipv6-only\n");
    }
    for path in unix {
        let _ = writeln!(streams, "ListenStream={}", path.to_string_lossy().replace('%', "%%"));
    }
    if !unix.is_empty() {
        let _ = writeln!(streams, "SocketMode={:04o}", mode.0);
        let owner = owner.map_or([None, None], |owner| [owner.user, owner.group]);
        for (name, id) in ["SocketUser", "SocketGroup"].into_iter().zip(owner) {
            let _ = id.map(|id| writeln!(streams, "{name}={id}"));
        }
    }
    let mut unit = SOCKET.to_owned();
    if !is_local {
        // The rules in the service's unit do not apply to sockets that systemd has made.
        let anyone = "# To let only some in: IPAddressDeny=any, and IPAddressAllow= with their networks.";
        unit = with_paragraph(&unit, "# Connections", anyone);
    }
    unit.replace("ListenStream=127.0.0.1:8088\n", &(streams + freebind))
}

/// A word of a command line as systemd reads it: quoted where it must be, bytes that are not plain as `\xNN`, and no
/// specifiers.
fn quote(word: &[u8]) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"/._-+,:@=~".contains(byte);
    if !word.is_empty() && word.iter().all(plain) {
        return String::from_utf8_lossy(word).into_owned();
    }
    let mut quoted = String::from("\"");
    for chunk in word.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '"' | '\\' => quoted.extend(['\\', c]),
                '%' => quoted.push_str("%%"),
                // The program itself is not subject to variable expansion: $ stays as it is.
                c if c.is_ascii_control() => push_byte(&mut quoted, u32::from(c)),
                c => quoted.push(c),
            }
        }
        for byte in chunk.invalid() {
            push_byte(&mut quoted, u32::from(*byte));
        }
    }
    quoted.push('"');
    quoted
}

fn push_byte(quoted: &mut String, byte: u32) {
    // Writing to a String cannot fail.
    let _ = write!(quoted, "\\x{byte:02x}");
}

#[cfg(test)]
mod tests;
