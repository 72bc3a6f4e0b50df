//! The options: a field each, with its variable, its default and its help; and the text that ends the help.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use allout::EngineKind;
use clap::builder::{BoolishValueParser, NonEmptyStringValueParser};
use clap::{ArgAction, Parser};

#[cfg(feature = "generate")]
use super::values::Generate;
use super::values::{AccessLog, Check, Listen, LogFormat, Mode, Owner, Unit};
use super::{values, version};

pub const AFTER_HELP: &str = "\
Durations are written 30s, 500ms, 1m 30s. A flag overrides its variable.

Endpoints:
  /                    200 'hello, world', or 'hello, NAME' with ?user=NAME; so does every path not named here
  /healthz, /readyz    200 'ok'; 503 'draining' as soon as the service is asked to stop
  /livez               200 as long as the process can answer
  /shutdown            200, then one out, all out (GET or POST): for root and the service's own user on this machine, or
                       with the token
  /timeout             200 after --timeout-delay
  /metrics             Prometheus text
  /status              the state of the service, as a page; /status.json has the same: for clients that may use /shutdown

Signals:
  TERM, INT, QUIT  stop: answer the requests in flight, then exit; a second one exits at once
  HUP              re-exec: go on under the same pid with the binary and the --env-file that are on disk now
  USR1             log the state: threads, members, connections, requests in flight
  USR2             ignored: the file of --access-log is reopened without a signal

Exit codes:
  0      asked to stop, and every request was answered
  1      a part of the service failed, or it could not start
  2      unusable arguments
  3      the grace period ran out and requests were abandoned
  128+n  a second signal n forced the exit

Logging:
  RUST_LOG chooses what is logged, on stderr: error, warn, info (the default), debug, trace, off,
  or by target: RUST_LOG=info,allout=debug. tiny_http is silent unless named: RUST_LOG=info,tiny_http=debug.
  The lines of --access-log are at info, with the target allout::access: RUST_LOG=warn,allout::access=info.

Examples:
  allout                                        serve on http://127.0.0.1:8088
  allout --listen 127.0.0.1:0                   serve on a free port; the log names it
  allout --listen 0.0.0.0:80 --listen [::]:80 --admin-listen 127.0.0.1:9000
                                                serve everyone, with health, metrics and /shutdown for this machine
  ALLOUT_GRACE=5s allout --log-format json      options from both places
  allout --systemd-unit > /etc/systemd/system/allout.service
  curl http://127.0.0.1:8088/shutdown
  allout --env-file /etc/default/allout --check
                                                say whether it would start
  allout healthcheck http://127.0.0.1:8088/healthz
                                                exit 0 if it answers 2xx, else 1: for images without curl";

/// Options from the command line and the environment.
///
/// It has no `Debug`: it holds the shutdown token, which must not end up in a log.
#[derive(Parser)]
#[command(
    name = "allout",
    about = "A small HTTP service that starts as one and stops as one, and loses nothing on the way out.",
    long_about = None,
    version = version(),
    override_usage = "allout [OPTIONS]\n       allout healthcheck [URL]",
    after_help = AFTER_HELP,
    // Replaced below, under a heading of their own and with one help for both spellings: two would drift apart.
    disable_help_flag = true,
    disable_version_flag = true
)]
pub struct Args {
    /// Address and port to serve on, or unix:PATH for a Unix socket, which
    /// needs the native engine; may be given several times. Port 0 picks a
    /// free one. Not used when systemd passes a socket
    #[arg(long, env = "ALLOUT_LISTEN", value_name = "ADDR", default_value = "127.0.0.1:8088", value_delimiter = ',')]
    #[arg(help_heading = "Listening", value_parser = values::parse_listen, verbatim_doc_comment)]
    pub listen: Vec<Listen>,

    /// Permissions of Unix sockets, in octal: clients need to write
    #[arg(long, env = "ALLOUT_UNIX_MODE", value_name = "MODE", default_value = "0600")]
    #[arg(help_heading = "Listening", value_parser = values::parse_mode, verbatim_doc_comment)]
    pub unix_mode: Mode,

    /// Owner of Unix sockets, if it is another than the service's: a user, a
    /// user and a group, or a group alone. Names are looked up in /etc/passwd
    /// and /etc/group
    #[arg(long, env = "ALLOUT_UNIX_OWNER", value_name = "[USER][:GROUP]")]
    #[arg(help_heading = "Listening", value_parser = values::parse_owner, verbatim_doc_comment)]
    pub unix_owner: Option<Owner>,

    /// Address and port for the admin routes: /healthz, /readyz, /livez,
    /// /metrics, /status and /shutdown are served there, and not on --listen
    #[arg(long, env = "ALLOUT_ADMIN_LISTEN", value_name = "ADDR")]
    #[arg(help_heading = "Listening", value_parser = values::parse_address, verbatim_doc_comment)]
    pub admin_listen: Option<SocketAddr>,

    /// What receives requests: tiny-http takes a thread for each connection;
    /// native parses strictly, needs less CPU time, and is for all clients
    #[arg(long, env = "ALLOUT_ENGINE", value_name = "NAME", default_value = EngineKind::default().name())]
    #[arg(help_heading = "Listening", value_parser = values::parse_engine, verbatim_doc_comment)]
    pub engine: EngineKind,

    /// Most workers at once, 1 or more; the pool grows to it under load and
    /// shrinks when idle
    #[arg(long, env = "ALLOUT_WORKERS", value_name = "N", default_value = "2048")]
    #[arg(help_heading = "Capacity", value_parser = values::parse_one_or_more, allow_hyphen_values = true, verbatim_doc_comment)]
    pub workers: usize,

    /// Threads of the native engine that receive requests; 0 chooses for
    /// this machine
    #[arg(long, env = "ALLOUT_RECEIVERS", value_name = "N", default_value = "0")]
    #[arg(help_heading = "Capacity", value_parser = values::parse_count, allow_hyphen_values = true, verbatim_doc_comment)]
    pub receivers: usize,

    /// Requests that may wait for a worker; beyond it they are answered with
    /// 503 and Retry-After at once
    #[arg(long, env = "ALLOUT_QUEUE", value_name = "N", default_value = "1024")]
    #[arg(help_heading = "Capacity", value_parser = values::parse_count, allow_hyphen_values = true, verbatim_doc_comment)]
    pub queue: usize,

    /// Open connections for each --listen, 1 or more, if the limits on
    /// descriptors, threads and memory allow as many; beyond it the least
    /// recently used connections are closed first
    #[arg(long, env = "ALLOUT_MAX_CONNECTIONS", value_name = "N", default_value = "4096")]
    #[arg(help_heading = "Capacity", value_parser = values::parse_one_or_more, allow_hyphen_values = true, verbatim_doc_comment)]
    pub max_connections: usize,

    /// Longest time for a stop: requests that are still in flight at its end
    /// are abandoned, counted and named in the log
    #[arg(long, env = "ALLOUT_GRACE", value_name = "DUR", default_value = "30s")]
    #[arg(help_heading = "Stopping", value_parser = values::parse_duration, allow_hyphen_values = true, verbatim_doc_comment)]
    pub grace: Duration,

    /// Time to serve on after being asked to stop, while /healthz already
    /// answers 503, for a load balancer to notice
    #[arg(long, env = "ALLOUT_DRAIN_DELAY", value_name = "DUR", default_value = "0s")]
    #[arg(help_heading = "Stopping", value_parser = values::parse_duration, allow_hyphen_values = true, verbatim_doc_comment)]
    pub drain_delay: Duration,

    /// Minimum keep-alive in a stop: time that an idle connection has to send
    /// one more request, whose response says 'Connection: close'
    #[arg(long, env = "ALLOUT_KEEPALIVE_MIN", value_name = "DUR", default_value = "50ms")]
    #[arg(help_heading = "Stopping", value_parser = values::parse_duration, allow_hyphen_values = true, verbatim_doc_comment)]
    pub keepalive_min: Duration,

    /// Time for a connection to complete the head of its first, or next,
    /// request
    #[arg(long, env = "ALLOUT_IDLE_TIMEOUT", value_name = "DUR", default_value = "30s")]
    #[arg(help_heading = "Timeouts", value_parser = values::parse_timeout, allow_hyphen_values = true, verbatim_doc_comment)]
    pub idle_timeout: Duration,

    /// Time for a handler, and for a body that makes no progress
    #[arg(long, env = "ALLOUT_REQUEST_TIMEOUT", value_name = "DUR", default_value = "60s")]
    #[arg(help_heading = "Timeouts", value_parser = values::parse_timeout, allow_hyphen_values = true, verbatim_doc_comment)]
    pub request_timeout: Duration,

    /// Time that GET /timeout takes to answer
    #[arg(long, env = "ALLOUT_TIMEOUT_DELAY", value_name = "DUR", default_value = "20s")]
    #[arg(help_heading = "Timeouts", value_parser = values::parse_duration, allow_hyphen_values = true, verbatim_doc_comment)]
    pub timeout_delay: Duration,

    /// Format of the log: text, or json with one object per line
    #[arg(long, env = "ALLOUT_LOG_FORMAT", value_name = "text|json", default_value = "text")]
    #[arg(help_heading = "Logging", hide_possible_values = true, verbatim_doc_comment)]
    pub log_format: LogFormat,

    /// Log a line for every response: 'on' in the log, or FILE in a file of
    /// its own, in the combined format. The file may be renamed at any time
    #[arg(long, env = "ALLOUT_ACCESS_LOG", value_name = "off|on|FILE", default_value = "off")]
    #[arg(help_heading = "Logging", value_parser = values::parse_access_log, verbatim_doc_comment)]
    pub access_log: AccessLog,

    /// Address or network (10.0.0.0/8) of proxies that are believed when they
    /// name the client in X-Forwarded-For; may be given several times
    #[arg(long, env = "ALLOUT_TRUST_PROXY", value_name = "NET", value_delimiter = ',')]
    #[arg(help_heading = "Logging", value_parser = values::parse_network, verbatim_doc_comment)]
    pub trust_proxy: Vec<String>,

    /// File with a token: requests with 'Authorization: Bearer TOKEN' may use
    /// /shutdown from anywhere. A systemd credential is such a file
    #[arg(long, env = "ALLOUT_SHUTDOWN_TOKEN_FILE", value_name = "PATH")]
    #[arg(help_heading = "Shutdown route", verbatim_doc_comment)]
    pub shutdown_token_file: Option<PathBuf>,

    /// The token itself. Discouraged: ps shows it to every user. The file
    /// takes precedence if both are given
    #[arg(long, env = "ALLOUT_SHUTDOWN_TOKEN", value_name = "TOKEN")]
    #[arg(help_heading = "Shutdown route", value_parser = NonEmptyStringValueParser::new(), verbatim_doc_comment)]
    pub shutdown_token: Option<String>,

    /// Leave out the /shutdown route, which then answers 404
    #[arg(long, env = "ALLOUT_NO_SHUTDOWN", action = ArgAction::SetTrue)]
    #[arg(help_heading = "Shutdown route", value_parser = BoolishValueParser::new(), verbatim_doc_comment)]
    pub no_shutdown: bool,

    /// File with variables, a line each, read at the start and at each re-exec.
    /// It overrides the environment. With a - before its name it may be missing
    #[arg(long, env = "ALLOUT_ENV_FILE", value_name = "FILE", value_delimiter = ',')]
    #[arg(help_heading = "Start", verbatim_doc_comment)]
    pub env_file: Vec<String>,

    /// Say whether the service would start with the other options, and exit:
    /// 0 if so, 1 if it cannot, 2 if they are unusable. =reload leaves out the
    /// addresses, which a running service keeps
    #[arg(long, value_name = "start|reload", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "start", hide_possible_values = true)]
    #[arg(help_heading = "Start", verbatim_doc_comment)]
    pub check: Option<Check>,

    /// Print a hardened unit for this binary, with the other options in it,
    /// and exit: the service, the socket that starts it, a service for a
    /// user's own manager, or a template whose instances are ports
    #[arg(long, env = "ALLOUT_SYSTEMD_UNIT", value_name = "service|socket|user|template")]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "service", hide_possible_values = true)]
    #[arg(help_heading = "systemd", verbatim_doc_comment)]
    pub systemd_unit: Option<Unit>,

    /// Print shell completions or the man page and exit
    #[cfg(feature = "generate")]
    #[arg(long, value_name = "WHAT", hide = true)]
    pub generate: Option<Generate>,

    /// Print this help and exit
    #[arg(short, long, action = ArgAction::HelpShort, help_heading = "Information")]
    help: Option<bool>,

    /// Print version and commit, where known, and exit
    #[arg(short = 'V', long, action = ArgAction::Version, help_heading = "Information")]
    version: Option<bool>,
}
