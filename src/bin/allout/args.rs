//! The command line: options, their variables, and the messages for invalid ones.
//!
//! Every option also reads an `ALLOUT_` variable; a flag overrides its variable. Options that do not parse, or contradict
//! each other, end the program with code 2 and a message that says what would be accepted.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use allout::EngineKind;
use clap::builder::{BoolishValueParser, NonEmptyStringValueParser, Resettable, StyledStr};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{ArgAction, CommandFactory, FromArgMatches, Parser, ValueEnum};

use crate::env_file::Variables;

/// Longest duration that is accepted. More is a typing error.
const MAX_DURATION: Duration = Duration::from_secs(365 * 24 * 60 * 60);

pub const AFTER_HELP: &str = "\
Durations are written 30s, 500ms, 1m 30s. A flag overrides its variable.

Endpoints:
  /                    200 'hello, world', or 'hello, NAME' with ?user=NAME; so does every path not named here
  /healthz, /readyz    200 'ok'; 503 'draining' as soon as the service is asked to stop
  /livez               200 as long as the process can answer
  /shutdown            200, then one out, all out (GET or POST): for this user and root on this machine, or with the token
  /timeout             200 after --timeout-delay
  /metrics             Prometheus text
  /status              the state of the service, as a page, and at /status.json: for clients that may use /shutdown

Signals:
  TERM, INT    stop: finish what is in flight, then exit; a second one exits at once
  HUP          re-exec: go on under the same pid with the binary, and the --env-file, that are on disk now
  USR1         log the state: threads, members, connections, requests in flight
  USR2         nothing; the file of --access-log may be renamed at any time

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
  allout --env-file /etc/default/allout --check   say whether it would start
  allout healthcheck http://127.0.0.1:8088/healthz   exit 0 if it answers 2xx, else 1: for images without curl";

/// Options from the command line and the environment.
///
/// It has no `Debug`: it holds the shutdown token, which must not end up in a log.
#[derive(Parser)]
#[command(
    name = "allout",
    about = "A small HTTP service that starts as one and stops as one, and loses nothing on the way out.",
    long_about = None,
    version = version(),
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
    #[arg(help_heading = "Listening", value_parser = parse_listen, verbatim_doc_comment)]
    pub listen: Vec<Listen>,

    /// Permissions of Unix sockets, in octal: clients need to write
    #[arg(long, env = "ALLOUT_UNIX_MODE", value_name = "MODE", default_value = "0600")]
    #[arg(help_heading = "Listening", value_parser = parse_mode, verbatim_doc_comment)]
    pub unix_mode: Mode,

    /// Owner of Unix sockets, if it is another than the service's: a user, a
    /// user and a group, or a group alone. Names are looked up in /etc/passwd
    /// and /etc/group
    #[arg(long, env = "ALLOUT_UNIX_OWNER", value_name = "[USER][:GROUP]")]
    #[arg(help_heading = "Listening", value_parser = parse_owner, verbatim_doc_comment)]
    pub unix_owner: Option<Owner>,

    /// Address and port for the admin routes: /healthz, /readyz, /livez,
    /// /metrics, /status and /shutdown are served there, and not on --listen
    #[arg(long, env = "ALLOUT_ADMIN_LISTEN", value_name = "ADDR")]
    #[arg(help_heading = "Listening", value_parser = parse_address, verbatim_doc_comment)]
    pub admin_listen: Option<SocketAddr>,

    /// What receives requests: tiny-http takes a thread for each connection;
    /// native parses strictly, is faster, and stands any client
    #[arg(long, env = "ALLOUT_ENGINE", value_name = "NAME", default_value = EngineKind::default().name())]
    #[arg(help_heading = "Listening", value_parser = parse_engine, verbatim_doc_comment)]
    pub engine: EngineKind,

    /// Most workers at once, 1 or more; the pool grows to it under load and
    /// shrinks when idle
    #[arg(long, env = "ALLOUT_WORKERS", value_name = "N", default_value = "2048")]
    #[arg(help_heading = "Capacity", value_parser = parse_one_or_more, allow_hyphen_values = true, verbatim_doc_comment)]
    pub workers: usize,

    /// Threads that receive requests, of the native engine; 0 chooses for
    /// this machine
    #[arg(long, env = "ALLOUT_RECEIVERS", value_name = "N", default_value = "0")]
    #[arg(help_heading = "Capacity", value_parser = parse_count, allow_hyphen_values = true, verbatim_doc_comment)]
    pub receivers: usize,

    /// Requests that may wait for a worker; beyond it they are answered with
    /// 503 and Retry-After at once
    #[arg(long, env = "ALLOUT_QUEUE", value_name = "N", default_value = "1024")]
    #[arg(help_heading = "Capacity", value_parser = parse_count, allow_hyphen_values = true, verbatim_doc_comment)]
    pub queue: usize,

    /// Open connections for each --listen, 1 or more, if the limits on
    /// descriptors, threads and memory allow as many; beyond it the least
    /// recently used connections are closed first
    #[arg(long, env = "ALLOUT_MAX_CONNECTIONS", value_name = "N", default_value = "4096")]
    #[arg(help_heading = "Capacity", value_parser = parse_one_or_more, allow_hyphen_values = true, verbatim_doc_comment)]
    pub max_connections: usize,

    /// Longest time for a stop: requests that are still in flight at its end
    /// are abandoned, counted and named in the log
    #[arg(long, env = "ALLOUT_GRACE", value_name = "DUR", default_value = "30s")]
    #[arg(help_heading = "Stopping", value_parser = parse_duration, allow_hyphen_values = true, verbatim_doc_comment)]
    pub grace: Duration,

    /// Time to serve on after being asked to stop, while /healthz already
    /// answers 503, for a load balancer to notice
    #[arg(long, env = "ALLOUT_DRAIN_DELAY", value_name = "DUR", default_value = "0s")]
    #[arg(help_heading = "Stopping", value_parser = parse_duration, allow_hyphen_values = true, verbatim_doc_comment)]
    pub drain_delay: Duration,

    /// Minimum keep-alive in a stop: time that an idle connection has to send
    /// one more request, whose response says 'Connection: close'
    #[arg(long, env = "ALLOUT_KEEPALIVE_MIN", value_name = "DUR", default_value = "50ms")]
    #[arg(help_heading = "Stopping", value_parser = parse_duration, allow_hyphen_values = true, verbatim_doc_comment)]
    pub keepalive_min: Duration,

    /// Time for a connection to complete the head of its first, or next,
    /// request
    #[arg(long, env = "ALLOUT_IDLE_TIMEOUT", value_name = "DUR", default_value = "30s")]
    #[arg(help_heading = "Timeouts", value_parser = parse_timeout, allow_hyphen_values = true, verbatim_doc_comment)]
    pub idle_timeout: Duration,

    /// Time for a handler, and for a body that makes no progress
    #[arg(long, env = "ALLOUT_REQUEST_TIMEOUT", value_name = "DUR", default_value = "60s")]
    #[arg(help_heading = "Timeouts", value_parser = parse_timeout, allow_hyphen_values = true, verbatim_doc_comment)]
    pub request_timeout: Duration,

    /// Time that GET /timeout takes to answer
    #[arg(long, env = "ALLOUT_TIMEOUT_DELAY", value_name = "DUR", default_value = "20s")]
    #[arg(help_heading = "Timeouts", value_parser = parse_duration, allow_hyphen_values = true, verbatim_doc_comment)]
    pub timeout_delay: Duration,

    /// Format of the log: text, or json with one object per line
    #[arg(long, env = "ALLOUT_LOG_FORMAT", value_name = "text|json", default_value = "text")]
    #[arg(help_heading = "Logging", hide_possible_values = true, verbatim_doc_comment)]
    pub log_format: LogFormat,

    /// Log a line for every response: on, in the log, or in a file of its own,
    /// in the combined format, which may be renamed at any time
    #[arg(long, env = "ALLOUT_ACCESS_LOG", value_name = "off|on|FILE", default_value = "off")]
    #[arg(help_heading = "Logging", value_parser = parse_access_log, verbatim_doc_comment)]
    pub access_log: AccessLog,

    /// Address or network (10.0.0.0/8) of proxies that are believed when they
    /// name the client in X-Forwarded-For; may be given several times
    #[arg(long, env = "ALLOUT_TRUST_PROXY", value_name = "NET", value_delimiter = ',')]
    #[arg(help_heading = "Logging", value_parser = parse_network, verbatim_doc_comment)]
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

    /// No /shutdown route: it answers 404
    #[arg(long, env = "ALLOUT_NO_SHUTDOWN", action = ArgAction::SetTrue)]
    #[arg(help_heading = "Shutdown route", value_parser = BoolishValueParser::new(), verbatim_doc_comment)]
    pub no_shutdown: bool,

    /// File with variables, a line each, read at the start and at each re-exec.
    /// It overrides the environment. With a - before it it need not exist
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
    /// and exit: the service, the socket that starts it, a service of a user,
    /// or a template whose instances are ports
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

/// The format of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One readable line per event.
    Text,
    /// One JSON object per line.
    Json,
}

/// Where responses are logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccessLog {
    /// Nowhere.
    Off,
    /// In the log.
    On,
    /// In a file of their own.
    File(PathBuf),
}

/// What `--check` checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Check {
    /// Everything that a start needs.
    Start,
    /// What a re-exec needs: the addresses are there.
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

/// What can be generated from the definition of the command line.
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

impl Args {
    /// Reads the command line, the environment of this process, and the files of variables that they name.
    ///
    /// # Errors
    ///
    /// Options that cannot be used, and requests for help or the version: [`clap::Error::exit`] prints each to the right
    /// stream and exits with 2 or 0.
    pub fn from_process() -> Result<(Self, Variables), clap::Error> {
        let line = std::env::args_os().collect::<Vec<_>>();
        let variables =
            Variables::of_command_line(&line).map_err(|why| command().error(ErrorKind::ValueValidation, why))?;
        Ok((Self::read(&line, &variables)?, variables))
    }

    fn read(line: &[OsString], variables: &Variables) -> Result<Self, clap::Error> {
        with_defaults(command(), variables)
            .try_get_matches_from(line)
            .and_then(|matches| Self::from_arg_matches(&matches))
            .map_err(|error| add_hint(name_the_variable(error, line, variables)))
            .and_then(Self::checked)
    }

    /// # Errors
    ///
    /// Two options contradict each other.
    fn checked(self) -> Result<Self, clap::Error> {
        let contradiction = if self.no_shutdown && (self.shutdown_token.is_some() || self.shutdown_token_file.is_some())
        {
            Some(
                "--no-shutdown leaves out the route that --shutdown-token and --shutdown-token-file are for".to_owned(),
            )
        } else if self.drain_delay > self.grace {
            let [delay, grace] = [self.drain_delay, self.grace].map(humantime::format_duration);
            Some(format!("--drain-delay {delay} is a part of --grace {grace}, and cannot be longer"))
        } else {
            None
        };
        match contradiction {
            Some(why) => Err(command().error(ErrorKind::ArgumentConflict, why)),
            None => Ok(self),
        }
    }
}

/// The options that this process was given, on its command line or in its environment, as variables; without
/// `--systemd-unit`, and without those of the shutdown token, which is not for everyone to read.
pub fn given() -> Vec<(String, String)> {
    let mut command = command();
    let Ok(matches) = command.try_get_matches_from_mut(std::env::args_os()) else { return Vec::new() };
    let is_given = |id: &str| {
        let source = matches.value_source(id);
        matches!(source, Some(ValueSource::CommandLine | ValueSource::EnvVariable))
    };
    let mut given = Vec::new();
    for arg in command.get_arguments() {
        let id = arg.get_id().as_str();
        if !is_given(id) || ["systemd_unit", "shutdown_token", "shutdown_token_file", "env_file"].contains(&id) {
            continue;
        }
        let Some(name) = arg.get_env().and_then(|name| name.to_str()) else { continue };
        let values = matches.get_raw(id).into_iter().flatten().map(|value| value.to_string_lossy());
        given.push((name.to_owned(), values.collect::<Vec<_>>().join(",")));
    }
    given
}

/// Makes the variables of files the defaults of their options, instead of the environment's.
fn with_defaults(command: clap::Command, variables: &Variables) -> clap::Command {
    command.mut_args(|arg| match arg.get_env().and_then(|name| variables.get(name.to_str()?)) {
        // clap keeps defaults that live as long as the program; these do.
        Some(variable) => arg.env(Resettable::Reset).default_value(&*variable.value.clone().leak()),
        None => arg,
    })
}

/// Warnings about variables that no option reads, with the one that was probably meant: those of the environment that
/// begin with `ALLOUT_`, and all of files.
pub fn unknown_variables(variables: &Variables) -> Vec<String> {
    let command = command();
    let known: Vec<_> = command.get_arguments().filter_map(|arg| arg.get_env()?.to_str()).chain(["RUST_LOG"]).collect();
    let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    let of_environment = names.filter(|name| name.starts_with("ALLOUT_")).map(|name| (String::new(), name));
    let of_files = variables.iter().map(|variable| (format!("{}: ", variable.place), variable.name.clone()));
    let unknown = of_environment.chain(of_files).filter(|(_, name)| !known.contains(&name.as_str()));
    unknown
        .filter(|(_, name)| !PRIVATE_VARIABLES.contains(&name.as_str()))
        .map(|(place, name)| match known.iter().map(|known| (distance(&name, known), known)).min() {
            Some((distance, known)) if distance <= MAX_TYPOS => {
                format!("{place}the variable {name} is not used: {known} may be meant")
            }
            _ => format!("{place}the variable {name} is not used: no option has this name"),
        })
        .collect()
}

/// Variables that the program sets for itself, for a re-exec and its preflight, and one that a build reads.
const PRIVATE_VARIABLES: [&str; 3] = ["ALLOUT_SOCKET", "ALLOUT_PREFLIGHT", "ALLOUT_COMMIT"];

/// Most letters by which a name that is meant differs from one that is written.
const MAX_TYPOS: usize = 3;

/// Levenshtein distance, in bytes.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.bytes().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// The definition of the command line.
pub fn command() -> clap::Command {
    Args::command().mut_args(|arg| {
        let mut facts = Vec::new();
        facts.extend(arg.get_default_values().first().map(|value| format!("default: {}", value.to_string_lossy())));
        facts.extend(arg.get_env().map(|name| format!("env: {}", name.to_string_lossy())));
        if facts.is_empty() {
            return arg;
        }
        // On a line of their own: clap would append them, and make lines wider than a terminal. The value of the variable
        // is left out, because one of them is a secret.
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        let takes_values = arg.get_action().takes_values();
        arg.help(format!("{help}\n[{}]", facts.join(", "))).hide_default_value(takes_values).hide_env(true)
    })
}

pub fn version() -> &'static str {
    static VERSION: OnceLock<String> = OnceLock::new();
    VERSION.get_or_init(|| match option_env!("ALLOUT_COMMIT") {
        Some(commit) if !commit.is_empty() => format!("{} ({commit})", env!("CARGO_PKG_VERSION")),
        _ => env!("CARGO_PKG_VERSION").to_owned(),
    })
}

/// Hints for options that other programs have.
fn add_hint(mut error: clap::Error) -> clap::Error {
    let Some(ContextValue::String(unknown)) = error.get(ContextKind::InvalidArg) else { return error };
    let hint = match unknown.as_str() {
        _ if error.kind() != ErrorKind::UnknownArgument => return error,
        "--port" | "-p" | "--bind" | "-b" | "--address" | "--host" => {
            "the address and port are --listen 127.0.0.1:8080"
        }
        "--log-level" | "--verbose" | "-v" | "--quiet" | "-q" | "--debug" | "-d" => {
            "the level of the log is the variable RUST_LOG: error, warn, info, debug, trace, off"
        }
        "--config" | "-c" => "there is no configuration file: each option has a variable, such as ALLOUT_LISTEN",
        "--threads" | "-t" => "the most threads for requests are --workers",
        "help" => "help is --help",
        "version" => "the version is --version",
        "--linger" => "--linger is --keepalive-min now",
        other if other.parse::<u16>().is_ok() => "the address and port are --listen 127.0.0.1:8080",
        other if other.contains(':') && !other.starts_with('-') => "the address and port are an option: --listen",
        _ => return error,
    };
    error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![StyledStr::from(hint)]));
    error
}

/// Names the variable that a value came from: clap names the flag, which was not typed then.
fn name_the_variable(mut error: clap::Error, line: &[OsString], variables: &Variables) -> clap::Error {
    let flag = match error.get(ContextKind::InvalidArg) {
        // "--grace <DUR>", "--systemd-unit[=<service|socket>]"
        Some(ContextValue::String(blamed)) => blamed.split([' ', '[', '=']).next().map(str::to_owned),
        _ => None,
    };
    let blamed = |arg: &clap::Arg| match error.kind() {
        ErrorKind::InvalidUtf8 => {
            arg.get_env().and_then(std::env::var_os).is_some_and(|value| value.to_str().is_none())
        }
        _ => arg.get_long().is_some_and(|long| flag.as_deref().and_then(|flag| flag.strip_prefix("--")) == Some(long)),
    };
    let variable = command()
        .get_arguments()
        .find(|arg| blamed(arg) && !is_typed(arg, line))
        .and_then(|arg| arg.get_env().map(ToOwned::to_owned))
        .and_then(|name| {
            let of_file = name.to_str().and_then(|name| variables.get(name));
            let is_set = std::env::var_os(&name).is_some();
            let of_environment = is_set.then(|| format!("the environment variable {}", name.to_string_lossy()));
            of_file.map(|variable| format!("{} in {}", variable.name, variable.place)).or(of_environment)
        });
    if let Some(source) = variable {
        let tip = StyledStr::from(format!("the value comes from {source}"));
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip]));
    }
    error
}

fn is_typed(arg: &clap::Arg, line: &[OsString]) -> bool {
    line.iter().any(|word| {
        let word = word.to_string_lossy();
        let name = word.split_once('=').map_or(&*word, |(name, _)| name);
        name.strip_prefix("--").is_some_and(|name| arg.get_long() == Some(name))
    })
}

fn parse_engine(text: &str) -> Result<EngineKind, String> {
    let mut all = EngineKind::ALL.iter();
    all.find(|engine| engine.name() == text)
        .copied()
        .ok_or_else(|| EngineKind::ALL.iter().map(|engine| engine.name()).collect::<Vec<_>>().join(" or "))
}

/// Where to listen.
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

impl Args {
    /// The internet addresses of `--listen`.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let inet = |listen: &Listen| if let Listen::Inet(address) = listen { Some(*address) } else { None };
        self.listen.iter().filter_map(inet).collect()
    }

    /// The paths of `--listen`.
    pub fn unix_paths(&self) -> Vec<PathBuf> {
        let unix = |listen: &Listen| if let Listen::Unix(path) = listen { Some(path.clone()) } else { None };
        self.listen.iter().filter_map(unix).collect()
    }
}

fn parse_listen(text: &str) -> Result<Listen, String> {
    match text.strip_prefix("unix:") {
        Some(path) if path.starts_with('/') => Ok(Listen::Unix(path.into())),
        Some(_) => Err("expected an absolute path, as in unix:/run/allout/allout.sock".to_owned()),
        None if text.starts_with('/') => Err(format!("a Unix socket is written unix:{text}")),
        None => parse_address(text).map(Listen::Inet),
    }
}

fn parse_mode(text: &str) -> Result<Mode, String> {
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777);
    mode.map(Mode).ok_or_else(|| "expected permissions in octal, as in 0660".to_owned())
}

fn parse_owner(text: &str) -> Result<Owner, String> {
    let (user, group) = text.split_once(':').unwrap_or((text, ""));
    Ok(Owner { user: parse_id(user, "/etc/passwd")?, group: parse_id(group, "/etc/group")? })
}

/// The number of a user or a group; none if it is not given. Both files have it in the third field: passwd(5), group(5).
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

fn parse_address(text: &str) -> Result<SocketAddr, String> {
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

fn parse_access_log(text: &str) -> Result<AccessLog, String> {
    match text {
        "off" | "0" | "false" | "no" | "n" => Ok(AccessLog::Off),
        "on" | "1" | "true" | "yes" | "y" => Ok(AccessLog::On),
        path if path.contains('/') => Ok(AccessLog::File(path.into())),
        _ => Err("expected off, on, or a file with its folder, as in /var/log/allout/access.log".to_owned()),
    }
}

fn parse_network(text: &str) -> Result<String, String> {
    let (address, bits) = text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
    let is_network = address.parse().is_ok_and(|address: IpAddr| {
        let most = if address.is_ipv4() { 32 } else { 128 };
        bits.is_none_or(|bits| bits.parse().is_ok_and(|bits: u8| bits <= most))
    });
    if is_network { Ok(text.to_owned()) } else { Err("expected an address or a network, as in 10.0.0.0/8".to_owned()) }
}

fn parse_count(text: &str) -> Result<usize, String> {
    text.parse().map_err(|_| "expected a whole number, as in 64".to_owned())
}

fn parse_one_or_more(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("expected a whole number, 1 or more, as in 64".to_owned()),
        Ok(number) => Ok(number),
    }
}

fn parse_duration(text: &str) -> Result<Duration, String> {
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

/// A timeout of zero would end every request before it starts. "Never", which 0 may be meant to say, does not exist here.
fn parse_timeout(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        Duration::ZERO => Err("expected more than nothing, as in 30s; there is no 'never'".to_owned()),
        timeout => Ok(timeout),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &[&str]) -> Result<Args, clap::Error> {
        let line: Vec<_> = std::iter::once("allout").chain(line.iter().copied()).map(OsString::from).collect();
        Args::read(&line, &Variables::default())
    }

    fn rejection(line: &[&str]) -> String {
        let error = read(line).err().unwrap_or_else(|| panic!("{line:?} was accepted"));
        assert_eq!(error.exit_code(), 2, "{line:?}");
        error.to_string()
    }

    #[test]
    fn the_definition_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn defaults_are_those_of_the_manual() {
        let args = read(&[]).unwrap();
        let config = allout::Config::default();
        assert_eq!((args.addresses(), args.admin_listen), (config.listen, config.admin_listen));
        assert_eq!(args.addresses(), ["127.0.0.1:8088".parse().unwrap()]);
        assert_eq!(
            (args.workers, args.queue, args.max_connections),
            (config.workers, config.queue, config.max_connections)
        );
        assert_eq!(args.grace, Duration::from_secs(30));
        assert_eq!(args.drain_delay, Duration::ZERO);
        assert_eq!(args.keepalive_min, Duration::from_millis(50));
        assert_eq!(args.idle_timeout, Duration::from_secs(30));
        assert_eq!(args.request_timeout, Duration::from_secs(60));
        assert_eq!(args.timeout_delay, Duration::from_secs(20));
        assert_eq!(args.log_format, LogFormat::Text);
        assert_eq!(args.access_log, AccessLog::Off);
        assert_eq!(args.systemd_unit, None);
        assert!(args.shutdown_token.is_none() && args.shutdown_token_file.is_none() && !args.no_shutdown);
    }

    #[test]
    fn every_option_reads_the_variable_of_its_name() {
        for arg in command().get_arguments() {
            let Some(long) = arg.get_long().filter(|long| !["help", "version", "generate", "check"].contains(long))
            else {
                continue;
            };
            let name = format!("ALLOUT_{}", long.to_uppercase().replace('-', "_"));
            assert_eq!(arg.get_env(), Some(name.as_ref()));
            let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains(&name), "{help}");
        }
    }

    #[test]
    #[cfg(feature = "tiny-http")] // the default engine of what is packaged
    fn the_file_of_options_in_packages_has_every_option_with_its_default() {
        let file = include_str!("../../packaging/allout.default");
        for arg in command().get_arguments() {
            let Some(name) = arg.get_env().and_then(|name| name.to_str()) else { continue };
            // The first is for everyone to read, the second prints a unit, and the third names this file.
            let is_left_out = ["ALLOUT_SHUTDOWN_TOKEN", "ALLOUT_SYSTEMD_UNIT", "ALLOUT_ENV_FILE"].contains(&name);
            let default = arg.get_default_values().first().map(|value| value.to_string_lossy().into_owned());
            let line = format!("\n#{name}={}", default.unwrap_or_default());
            assert_eq!(file.contains(&line), !is_left_out, "{line}");
        }
    }

    #[test]
    fn every_option_is_in_the_readme() {
        let readme = include_str!("../../../README.md");
        for long in command().get_arguments().filter_map(clap::Arg::get_long) {
            let hidden = ["help", "version", "generate"].contains(&long);
            assert!(hidden || readme.contains(&format!("| `--{long}")), "--{long}");
        }
    }

    #[test]
    fn addresses_parse_or_say_what_would() {
        let listen = |line: &[&str]| {
            read(line).unwrap().addresses().iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(listen(&["--listen", "localhost:0"]), "127.0.0.1:0");
        assert_eq!(listen(&["--listen", "[::1]:80", "--listen=127.0.0.1:80"]), "[::1]:80 127.0.0.1:80");
        assert_eq!(listen(&["--listen", "[::1]:80,127.0.0.1:80"]), "[::1]:80 127.0.0.1:80");
        let args = read(&["--listen", "unix:/run/a.sock,127.0.0.1:80", "--unix-mode", "660", "--unix-owner", "1:2"]);
        let args = args.unwrap();
        assert_eq!((args.unix_paths(), args.addresses().len()), (vec!["/run/a.sock".into()], 1));
        assert_eq!((args.unix_mode, args.unix_owner), (Mode(0o660), Some(Owner { user: Some(1), group: Some(2) })));
        let admin = read(&["--admin-listen", "localhost:9000"]).unwrap().admin_listen;
        assert_eq!(admin, Some("127.0.0.1:9000".parse().unwrap()));
        for (bad, hint) in [
            (":8088", "0.0.0.0"),
            ("8088", "127.0.0.1:8088"),
            ("::1:8088", "brackets"),
            ("example.org:80", "not looked up"),
            ("localhost:99999", "127.0.0.1:8088"),
            ("unix:a.sock", "unix:/"),
            ("/run/a.sock", "unix:/run/a.sock"),
            ("", "127.0.0.1:8088"),
        ] {
            let said = rejection(&["--listen", bad]);
            assert!(said.contains(hint), "{bad}: {said}");
        }
    }

    #[test]
    fn durations_parse_or_say_what_would() {
        assert_eq!(read(&["--grace", "1m 30s"]).unwrap().grace, Duration::from_secs(90));
        assert_eq!(read(&["--keepalive-min=500ms"]).unwrap().keepalive_min, Duration::from_millis(500));
        for bad in ["30", "0", "-1s", "30 parsecs", "s", "1e3s", "999999999999999999999s"] {
            let said = rejection(&[&format!("--grace={bad}")]);
            assert!(said.contains("as in 30s"), "{bad}: {said}");
        }
        assert!(rejection(&["--grace", "400d"]).contains("a year at most"));
        assert!(rejection(&["--idle-timeout", "0s"]).contains("more than nothing"));
        assert!(read(&["--grace", "0s"]).is_ok());
    }

    #[test]
    fn numbers_of_nothing_are_refused_where_nothing_would_work() {
        assert!(rejection(&["--workers", "0"]).contains("1 or more"));
        assert!(rejection(&["--max-connections", "0"]).contains("1 or more"));
        assert!(rejection(&["--queue=-1"]).contains("whole number"));
        assert_eq!(read(&["--queue", "0"]).unwrap().queue, 0);
        rejection(&["--shutdown-token", ""]);
    }

    #[test]
    fn access_logs_and_proxies_are_files_and_networks_or_say_what_would_be() {
        assert_eq!(read(&["--access-log", "/x/log"]).unwrap().access_log, AccessLog::File("/x/log".into()));
        assert!(rejection(&["--access-log", "combined"]).contains("/var/log/allout/access.log"));
        assert_eq!(read(&["--trust-proxy", "10.0.0.0/8,::1"]).unwrap().trust_proxy, ["10.0.0.0/8", "::1"]);
        for bad in ["proxy", "10.0.0.0/33", "::1/129", "10.0.0.0/"] {
            assert!(rejection(&["--trust-proxy", bad]).contains("a network"), "{bad}");
        }
    }

    #[test]
    fn a_unit_needs_no_value_and_swallows_no_neighbour() {
        assert_eq!(read(&["--systemd-unit"]).unwrap().systemd_unit, Some(Unit::Service));
        assert_eq!(read(&["--systemd-unit=socket"]).unwrap().systemd_unit, Some(Unit::Socket));
        rejection(&["--systemd-unit", "socket"]);
    }

    #[test]
    fn a_slip_gets_a_suggestion() {
        assert!(rejection(&["--grase", "3s"]).contains("'--grace'"));
        for (line, hint) in [
            (&["--port", "80"][..], "--listen"),
            (&["-p", "80"], "--listen"),
            (&["8080"], "--listen"),
            (&["0.0.0.0:80"], "--listen"),
            (&["--log-level=debug"], "RUST_LOG"),
            (&["-v"], "RUST_LOG"),
            (&["--config", "/etc/allout"], "ALLOUT_LISTEN"),
            (&["help"], "--help"),
        ] {
            let said = rejection(line);
            assert!(said.contains(hint), "{line:?}: {said}");
        }
        assert_eq!(distance("ALLOUT_GRASE", "ALLOUT_GRACE"), 1);
        assert_eq!((distance("", "abc"), distance("abc", ""), distance("kitten", "sitting")), (3, 3, 3));
    }

    #[test]
    fn contradictions_are_refused() {
        assert!(rejection(&["--no-shutdown", "--shutdown-token", "x"]).contains("--no-shutdown leaves out"));
        assert!(rejection(&["--no-shutdown", "--shutdown-token-file", "x"]).contains("--no-shutdown leaves out"));
        let said = rejection(&["--drain-delay", "31s"]);
        assert!(said.contains("--drain-delay 31s is a part of --grace 30s"), "{said}");
        assert!(read(&["--drain-delay", "30s"]).is_ok());
    }

    /// Variables belong to the whole process and tests share it: each of these runs this test program again.
    #[test]
    fn a_flag_beats_the_variable_and_the_variable_is_named_when_it_is_wrong() {
        if std::env::var_os("ALLOUT_TEST_CHILD").is_some() {
            let line: Vec<_> =
                std::env::var("ALLOUT_TEST_LINE").unwrap().split_whitespace().map(str::to_owned).collect();
            match read(&line.iter().map(String::as_str).collect::<Vec<_>>()) {
                Ok(args) => {
                    println!("<{:?} {} {}>", args.grace, args.no_shutdown, args.access_log == AccessLog::On);
                }
                Err(error) => println!("<{} {error}>", error.exit_code()),
            }
            return;
        }
        let child = |line: &str, variables: &[(&str, &str)]| {
            let output = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--nocapture", "--test-threads=1", "a_flag_beats_the_variable"])
                .envs(variables.iter().copied())
                .env("ALLOUT_TEST_CHILD", "1")
                .env("ALLOUT_TEST_LINE", line)
                .output()
                .unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        let expect = |line: &str, variables: &[(&str, &str)], what: &str| {
            let said = child(line, variables);
            assert!(said.contains(what), "{line:?} with {variables:?}: {said}");
        };
        expect("", &[("ALLOUT_GRACE", "3s")], "<3s false false>");
        expect("--grace 4s", &[("ALLOUT_GRACE", "3s")], "<4s false false>");
        expect("--grace 4s", &[("ALLOUT_GRACE", "rubbish")], "<4s false false>");
        for yes in ["1", "true", "yes", "on"] {
            expect("", &[("ALLOUT_NO_SHUTDOWN", yes), ("ALLOUT_ACCESS_LOG", yes)], "<30s true true>");
        }
        for no in ["0", "false", "no", "off"] {
            expect("", &[("ALLOUT_NO_SHUTDOWN", no), ("ALLOUT_ACCESS_LOG", no)], "<30s false false>");
        }
        for (name, value) in [("ALLOUT_GRACE", "30"), ("ALLOUT_NO_SHUTDOWN", "maybe"), ("ALLOUT_LISTEN", ":1")] {
            expect("", &[(name, value)], "<2 error");
            expect("", &[(name, value)], &format!("environment variable {name}"));
        }
        assert!(!child("--grace 3", &[("ALLOUT_GRACE", "3")]).contains("environment variable"));
    }
}
