//! The text of the units. `@NAME@` is replaced.

/// The service, for the manager of the system.
pub(super) const SERVICE: &str = "\
@HEAD@[Unit]
Description=allout HTTP service@INSTANCE@: one out, all out
After=network.target
# Ten starts in ten seconds are a loop that needs an operator, and more than are made by hand.
StartLimitIntervalSec=10s
StartLimitBurst=10

[Service]
Type=notify
NotifyAccess=main
@OPTIONS@# Read by the program itself, at the start and at each reload. With a - before it, it need not exist.
Environment=ALLOUT_ENV_FILE=-/etc/default/allout@INSTANCEFILE@
@NOTE@ExecStart=@BINARY@
# Re-exec: the same process goes on with the binary and the options that are on disk now, and no request is lost. It fails,
# and the service goes on as it was, if it could not start with them. Addresses, and this unit, take a restart.
ExecReload=@BINARY@ --check=reload
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

# The address says which machines are served, ALLOUT_LISTEN: this one alone by default. To serve only some of those that
# can reach an address, name their networks instead.
IPAddressDeny=any
IPAddressAllow=any

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
# Of @ipc, what musl starts a process with.
SystemCallFilter=pipe pipe2
SystemCallErrorNumber=EPERM

[Install]
WantedBy=multi-user.target
";

/// The sockets that start it.
pub(super) const SOCKET: &str = "\
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
pub(super) const USER_SERVICE: &str = "\
# Printed by allout --systemd-unit=user. Install as ~/.config/systemd/user/allout.service:
#   systemctl --user enable --now allout; loginctl enable-linger   # serves without an open session, too
# Options go into ~/.config/allout.env, a line each: ALLOUT_GRACE=10s
[Unit]
Description=allout HTTP service: one out, all out
StartLimitIntervalSec=10s
StartLimitBurst=10

[Service]
Type=notify
NotifyAccess=main
@OPTIONS@Environment=\"ALLOUT_ENV_FILE=-%E/allout.env\"
@NOTE@ExecStart=@BINARY@
ExecReload=@BINARY@ --check=reload
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
# Of @ipc, what musl starts a process with.
SystemCallFilter=pipe pipe2
SystemCallErrorNumber=EPERM

[Install]
WantedBy=default.target
";

/// The beginning of the service.
pub(super) const HEAD: &str = "\
# Printed by allout --systemd-unit. Install as /etc/systemd/system/allout.service.
# Options go into /etc/default/allout, a line each: ALLOUT_GRACE=10s
";

/// The beginning of the template.
pub(super) const TEMPLATE_HEAD: &str = "\
# Printed by allout --systemd-unit=template. Install as /etc/systemd/system/allout@.service. The instance is the port:
#   systemctl enable --now allout@8081 allout@8082
# Options go into /etc/default/allout, for all instances, and /etc/default/allout-8081, a line each: ALLOUT_GRACE=10s
";

/// Without a token.
pub(super) const TOKEN: &str = "\
# A token for /shutdown from elsewhere:
#   LoadCredential=shutdown-token:/etc/allout/shutdown-token
#   Environment=ALLOUT_SHUTDOWN_TOKEN_FILE=%d/shutdown-token
";

/// For ports from 1024 on.
pub(super) const USER: &str = "\
# A user of its own without any privilege. Ports below 1024 work through allout.socket (--systemd-unit=socket).
DynamicUser=yes
PrivateUsers=yes
CapabilityBoundingSet=
AmbientCapabilities=
";

/// For ports below 1024.
pub(super) const LOW_PORT_USER: &str = "\
# A user of its own with the one privilege that a port below 1024 takes. PrivateUsers= would take that away.
DynamicUser=yes
CapabilityBoundingSet=CAP_NET_BIND_SERVICE
AmbientCapabilities=CAP_NET_BIND_SERVICE
";

/// For ports below 1024 in the unit of a user.
pub(super) const LOW_PORT_OF_USER: &str = "\
# CAUTION: a user may use ports below 1024 only from net.ipv4.ip_unprivileged_port_start= on (sysctl.d).
";
