//! The systemd units: what `--systemd-unit` prints.
//!
//! The service is given nothing that it does not use. Options that are given beside `--systemd-unit` become variables of
//! the unit, which `/etc/default/allout` overrides; what they need of the system, such as an address that others reach or
//! a port below 1024, is allowed.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

const SERVICE: &str = "\
@HEAD@[Unit]
Description=allout HTTP service@INSTANCE@: one out, all out
After=network.target
# Ten starts in ten seconds are a loop that needs an operator, and more than are made by hand.
StartLimitIntervalSec=10s
StartLimitBurst=10

[Service]
Type=notify
NotifyAccess=main
@OPTIONS@EnvironmentFile=-/etc/default/allout
@INSTANCEFILE@@NOTE@ExecStart=@BINARY@
# Reexec: the same process goes on with the binary that is on disk now, and no request is lost.
ExecReload=kill -HUP $MAINPID
KillMode=mixed

# No SuccessExitStatus: 0 is the only success. 3 (requests were abandoned) and 128+n (a second signal n forced the
# exit) are shown as failures, because something was lost, but they are the ends of a stop that was asked for, so the
# service stays down. 2 (unusable arguments) would only be repeated.
Restart=on-failure
RestartSec=500ms
RestartPreventExitStatus=2 3 129 130 131 143
TimeoutStartSec=20s
# A drain asks for more time as it needs it, up to its own grace; this bounds a service that no longer asks.
TimeoutStopSec=15s
WatchdogSec=30s

# A connection takes a thread and up to three descriptors.
LimitNOFILE=65536
TasksMax=20000
LimitCORE=0
# Enough for the default --max-connections and --workers: 52 KiB and 56 KiB each. With less memory the service has fewer of
# both, and says so. The kernel ends larger processes first if the whole machine runs out.
MemoryMax=512M
OOMScoreAdjust=-200
OOMPolicy=stop

@REACH@
@TOKEN@
@USER@NoNewPrivileges=yes
SupplementaryGroups=
UMask=0077
KeyringMode=private

# Of the file system it reads its binary and libraries and itself in /proc, and writes nothing.
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
PrivateDevices=yes
DevicePolicy=closed
ProtectProc=invisible
ProcSubset=pid
PrivateMounts=yes
RemoveIPC=yes
PrivateIPC=yes

# TCP is what it is for; AF_UNIX carries READY=1 and the log.
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
SocketBindDeny=any
SocketBindAllow=tcp

ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes

# @system-service lets it start itself anew; the rest it never needs, nor does what might run in its place.
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources @keyring @ipc @setuid @memlock
SystemCallErrorNumber=EPERM

[Install]
WantedBy=multi-user.target
";

const SOCKET: &str = "\
# Printed by allout --systemd-unit=socket. Install as /etc/systemd/system/allout.socket, next to allout.service:
#   systemctl enable --now allout.socket
# The socket, with the connections in its queue, outlives restarts of the service. One for the admin routes has a unit of
# its own, with FileDescriptorName=admin and Service=allout.service.
[Unit]
Description=allout HTTP socket

[Socket]
@LISTEN@@FREEBIND@FileDescriptorName=http
Backlog=4096
NoDelay=yes
@WHO@
[Install]
WantedBy=sockets.target
";

/// A service of the user's own manager, which cannot give what needs privileges.
const USER_SERVICE: &str = "\
# Printed by allout --systemd-unit=user. Install as ~/.config/systemd/user/allout.service:
#   systemctl --user enable --now allout; loginctl enable-linger   # serves while nobody is logged in, too
# Options go into ~/.config/allout.env, a line each: ALLOUT_GRACE=10s
[Unit]
Description=allout HTTP service: one out, all out
StartLimitIntervalSec=10s
StartLimitBurst=10

[Service]
Type=notify
NotifyAccess=main
@OPTIONS@EnvironmentFile=-%E/allout.env
@NOTE@ExecStart=@BINARY@
ExecReload=kill -HUP $MAINPID
KillMode=mixed
Restart=on-failure
RestartSec=500ms
RestartPreventExitStatus=2 3 129 130 131 143
TimeoutStartSec=20s
TimeoutStopSec=15s
WatchdogSec=30s
LimitCORE=0
MemoryMax=512M
OOMPolicy=stop
UMask=0077

# What a manager without privileges can enforce: filters of system calls.
NoNewPrivileges=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources @keyring @ipc @setuid @memlock
SystemCallErrorNumber=EPERM

[Install]
WantedBy=default.target
";

const HEAD: &str = "\
# Printed by allout --systemd-unit. Install as /etc/systemd/system/allout.service.
# Options go into /etc/default/allout, a line each: ALLOUT_GRACE=10s
";

const TEMPLATE_HEAD: &str = "\
# Printed by allout --systemd-unit=template. Install as /etc/systemd/system/allout@.service. The instance is the port:
#   systemctl enable --now allout@8081 allout@8082
# Options go into /etc/default/allout, for all instances, and /etc/default/allout-8081, a line each: ALLOUT_GRACE=10s
";

const LOCAL: &str = "\
# Only this machine is served and spoken to. To serve others, allow them here, too; serve all with
#   IPAddressAllow=any
IPAddressDeny=any
IPAddressAllow=localhost
";

const REACHABLE: &str = "\
# Others can reach the address, so everyone is served. To let only some in: IPAddressDeny=any, and IPAddressAllow= with
# their networks.
";

const TOKEN: &str = "\
# A token for /shutdown from elsewhere:
#   LoadCredential=shutdown-token:/etc/allout/shutdown-token
#   Environment=ALLOUT_SHUTDOWN_TOKEN_FILE=%d/shutdown-token
";

const USER: &str = "\
# A user of its own without any privilege. Ports below 1024 work through allout.socket (--systemd-unit=socket).
DynamicUser=yes
PrivateUsers=yes
CapabilityBoundingSet=
AmbientCapabilities=
";

const LOW_PORT_USER: &str = "\
# A user of its own with the one privilege that a port below 1024 takes. PrivateUsers= would take that away.
DynamicUser=yes
CapabilityBoundingSet=CAP_NET_BIND_SERVICE
AmbientCapabilities=CAP_NET_BIND_SERVICE
";

/// What goes into a unit beside the binary.
#[derive(Debug, Default)]
pub struct Options {
    /// Variables, with the value for each.
    pub variables: Vec<(String, String)>,
    /// Addresses that are served, those of the admin routes included.
    pub addresses: Vec<SocketAddr>,
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
            let first = self.addresses.first().map_or(IpAddr::from([127, 0, 0, 1]), SocketAddr::ip);
            let host = if first.is_ipv6() { format!("[{first}]") } else { first.to_string() };
            let _ = writeln!(lines, "Environment={LISTEN}={host}:%i"); // writing to a String cannot fail
        }
        lines
    }

    fn token(&self) -> String {
        let Some(path) = &self.token_file else { return TOKEN.to_owned() };
        let source = [b"shutdown-token:", path.as_os_str().as_bytes()].concat();
        format!(
            "LoadCredential={}\nEnvironment=ALLOUT_SHUTDOWN_TOKEN_FILE=%d/shutdown-token\n",
            String::from_utf8_lossy(&source).replace('%', "%%")
        )
    }
}

/// Variable of the addresses.
const LISTEN: &str = "ALLOUT_LISTEN";

/// The unit for the service, running this binary; a template for an instance by port, if `template`.
pub fn service_unit(binary: &Path, options: &Options, template: bool) -> String {
    // DynamicUser could not enter these, and ProtectHome and PrivateTmp hide them.
    let hidden = ["/home", "/root", "/run/user", "/tmp", "/var/tmp"].iter().any(|place| binary.starts_with(place));
    // However well quoted.
    let refused = |c: char| c.is_control() || matches!(c, '"' | '\'' | '\\');
    let note = if hidden {
        "# CAUTION: this unit cannot see the place where the binary is. Install it, as /usr/local/bin/allout, first.\n"
    } else if binary.to_str().is_none_or(|path| path.contains(refused)) {
        "# CAUTION: systemd runs no program of this name. Install it, as /usr/local/bin/allout, first.\n"
    } else {
        ""
    };
    let is_reachable = options.addresses.iter().any(|address| !address.ip().is_loopback());
    let has_low_port = options.addresses.iter().any(|address| (1..1024).contains(&address.port()));
    let (head, instance, file) = if template {
        (TEMPLATE_HEAD, " on port %i", "EnvironmentFile=-/etc/default/allout-%i\n")
    } else {
        (HEAD, "", "")
    };
    SERVICE
        .replace("@HEAD@", head)
        .replace("@INSTANCE@", instance)
        .replace("@INSTANCEFILE@", file)
        .replace("@OPTIONS@", &options.lines(template))
        .replace("@REACH@", if is_reachable { REACHABLE } else { LOCAL })
        .replace("@TOKEN@", &options.token())
        .replace("@USER@", if has_low_port { LOW_PORT_USER } else { USER })
        .replace("@NOTE@", note)
        .replace("@BINARY@", &quote(binary.as_os_str().as_bytes()))
}

/// The unit for the manager of a user.
pub fn user_unit(binary: &Path, options: &Options) -> String {
    let mut lines = options.lines(false);
    if let Some(path) = &options.token_file {
        let variable = [b"ALLOUT_SHUTDOWN_TOKEN_FILE=", path.as_os_str().as_bytes()].concat();
        let _ = writeln!(lines, "Environment={}", quote(&variable)); // writing to a String cannot fail
    }
    USER_SERVICE
        .replace("@OPTIONS@", &lines)
        .replace("@NOTE@", "")
        .replace("@BINARY@", &quote(binary.as_os_str().as_bytes()))
}

/// The unit for the sockets that start the service.
pub fn socket_unit(listen: &[SocketAddr]) -> String {
    let is_local = listen.iter().all(|address| address.ip().is_loopback());
    // The rules of the service do not apply to sockets that it did not make.
    let who = if is_local {
        "# Connections from this machine only.\nIPAddressDeny=any\nIPAddressAllow=localhost\n"
    } else {
        "# To let only some in: IPAddressDeny=any, and IPAddressAllow= with their networks.\n"
    };
    // An address of an interface that may come up later than the socket.
    let is_specific = |ip: IpAddr| !ip.is_loopback() && !ip.is_unspecified();
    let freebind = if listen.iter().any(|address| is_specific(address.ip())) { "FreeBind=yes\n" } else { "" };
    let mut streams = String::new();
    for address in listen {
        let _ = writeln!(streams, "ListenStream={address}"); // writing to a String cannot fail
    }
    SOCKET.replace("@LISTEN@", &streams).replace("@FREEBIND@", freebind).replace("@WHO@", who)
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
