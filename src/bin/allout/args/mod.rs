//! The command line: options, their variables, and the messages for invalid ones.
//!
//! Every option also reads an `ALLOUT_` variable; a flag overrides its variable. Options that do not parse, or contradict
//! each other, end the program with code 2 and a message that says what would be accepted.
//!
//! | file | |
//! | --- | --- |
//! | [`options`] | every option, with its help |
//! | [`values`] | the types of their values, and how each is read |
//! | [`hints`] | hints about slips |

mod hints;
mod options;
#[cfg(test)]
mod tests;
mod values;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::OnceLock;

use clap::builder::Resettable;
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{CommandFactory, FromArgMatches};

use crate::env_file::Variables;
use hints::{add_hint, name_the_variable};

pub use hints::unknown_variables;
#[cfg(feature = "generate")]
pub use options::AFTER_HELP;
pub use options::Args;
#[cfg(feature = "generate")]
pub use values::Generate;
use values::Listen;
pub use values::{AccessLog, Check, LogFormat, Mode, Owner, Unit};

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

    /// Errors: two options contradict each other.
    fn checked(self) -> Result<Self, clap::Error> {
        match self.contradiction() {
            Some(why) => Err(command().error(ErrorKind::ArgumentConflict, why)),
            None => Ok(self),
        }
    }

    fn contradiction(&self) -> Option<String> {
        let has_token = self.shutdown_token.is_some() || self.shutdown_token_file.is_some();
        let of_grace = |name, part| {
            let [part, grace] = [part, self.grace].map(humantime::format_duration);
            Some(format!("--{name} {part} is a part of --grace {grace}, and cannot be longer"))
        };
        if self.no_shutdown && has_token {
            Some(
                "--no-shutdown leaves out the route that --shutdown-token and --shutdown-token-file are for".to_owned(),
            )
        } else if self.systemd_unit.is_some() && self.shutdown_token.is_some() {
            Some("a unit can be read by every user: use --shutdown-token-file".to_owned())
        } else if self.systemd_unit.is_some() && self.check.is_some() {
            Some("--systemd-unit prints, and --check starts nothing: one of them".to_owned())
        } else if self.systemd_unit == Some(Unit::Template)
            && (self.admin_listen.is_some() || !self.unix_paths().is_empty())
        {
            Some("the instances of a template differ by port alone: an --admin-listen or Unix socket for each belongs in \
                  /etc/default/allout-PORT"
                .to_owned())
        } else if self.drain_delay > self.grace {
            of_grace("drain-delay", self.drain_delay)
        } else if self.keepalive_min > self.grace && self.keepalive_min > allout::Config::default().keepalive_min {
            of_grace("keepalive-min", self.keepalive_min)
        } else {
            // A service that is passed its sockets does not use these addresses.
            std::env::var_os("LISTEN_FDS").map_or_else(|| self.same_port_twice(), |_| None)
        }
    }

    fn same_port_twice(&self) -> Option<String> {
        let listen = self.addresses().into_iter().map(|address| ("listen", address));
        let all: Vec<_> = listen.chain(self.admin_listen.map(|address| ("admin-listen", address))).collect();
        let is_same = |a: SocketAddr, b: SocketAddr| {
            let is_every = a.ip().is_unspecified() || b.ip().is_unspecified();
            a.port() == b.port() && a.port() != 0 && a.is_ipv4() == b.is_ipv4() && (a.ip() == b.ip() || is_every)
        };
        let (n, (name, address)) = all.iter().enumerate().find(|(n, b)| all[..*n].iter().any(|a| is_same(a.1, b.1)))?;
        let (other, same) = all[..n].iter().find(|a| is_same(a.1, *address))?;
        Some(format!("--{name} {address} is served by --{other} {same} already"))
    }

    /// Warnings about options that have no effect with the others.
    pub fn unused(&self) -> Vec<&'static str> {
        let mut unused = Vec::new();
        if self.receivers != 0 && self.engine.name() != "native" {
            unused.push("--receivers has no effect: it is for the native engine");
        }
        let is_default = self.unix_mode == Mode(0o600) && self.unix_owner.is_none();
        if !is_default && self.unix_paths().is_empty() {
            unused.push("--unix-mode and --unix-owner have no effect: no --listen is a Unix socket");
        }
        if self.timeout_delay >= self.request_timeout {
            unused.push("--timeout-delay is not within --request-timeout: GET /timeout is a 503");
        }
        unused
    }

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

/// The options that this process was given, on its command line or in its environment, as variables; without
/// `--systemd-unit`, and without those of the shutdown token, which not every user may read.
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
