//! Hints for slips: options of other programs, variables that no option reads, and where a refused value comes from.

use std::ffi::OsString;

use clap::builder::StyledStr;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use super::command;
use crate::env_file::Variables;

/// Hints for options that other programs have.
pub fn add_hint(mut error: clap::Error) -> clap::Error {
    if error.kind() == ErrorKind::UnknownArgument {
        let hint = match error.get(ContextKind::InvalidArg) {
            Some(ContextValue::String(unknown)) => hint_for(unknown),
            _ => None,
        };
        let hint = hint.map(|hint| ContextValue::StyledStrs(vec![StyledStr::from(hint)]));
        hint.map(|hint| error.insert(ContextKind::Suggested, hint));
    }
    error
}

fn hint_for(unknown: &str) -> Option<&'static str> {
    Some(match unknown {
        "--port" | "-p" | "--bind" | "-b" | "--address" | "--addr" | "--host" => {
            "the address and port are --listen 127.0.0.1:8080"
        }
        "--log-level" | "--log" | "--verbose" | "-v" | "--quiet" | "-q" | "--debug" | "-d" => {
            "the level of the log is the variable RUST_LOG: error, warn, info, debug, trace, off"
        }
        "--config" | "-c" => "there is no configuration file: each option has a variable, such as ALLOUT_LISTEN",
        "--threads" | "-t" => "the most threads for requests are --workers",
        "help" => "help is --help",
        "version" => "the version is --version",
        "--linger" => "--linger is --keepalive-min now",
        other if other.parse::<u16>().is_ok() => "the address and port are --listen 127.0.0.1:8080",
        other if other.contains(':') && !other.starts_with('-') => "the address and port are an option: --listen",
        _ => return None,
    })
}

/// Names the variable that a value came from: clap names the flag, which was not typed then.
pub fn name_the_variable(mut error: clap::Error, line: &[OsString], variables: &Variables) -> clap::Error {
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

/// Warnings about variables that no option reads, with the one that was probably meant: those of the environment that
/// begin with `ALLOUT`, and those of files.
pub fn unknown_variables(variables: &Variables) -> Vec<String> {
    let command = command();
    let known: Vec<_> = command.get_arguments().filter_map(|arg| arg.get_env()?.to_str()).chain(["RUST_LOG"]).collect();
    let is_ours = |name: &str| name.to_ascii_uppercase().starts_with("ALLOUT");
    // In OpenRC's file of a service are also variables of its own, such as `rc_need`.
    let may_be_ours = |name: &str| is_ours(name) || !name.starts_with(|c: char| c.is_ascii_lowercase());
    let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    let of_environment = names.filter(|name| is_ours(name)).map(|name| (String::new(), name));
    let of_files = variables.iter().filter(|variable| may_be_ours(&variable.name));
    let of_files = of_files.map(|variable| (format!("{}: ", variable.place), variable.name.clone()));
    let unknown = of_environment.chain(of_files).filter(|(_, name)| !known.contains(&name.as_str()));
    unknown
        .filter(|(_, name)| !PRIVATE_VARIABLES.contains(&name.as_str()))
        .map(|(place, name)| format!("{place}the variable {name} is not used: {}", meant(&name, &known)))
        .collect()
}

/// The variable that may be meant by one that no option reads.
pub fn meant(name: &str, known: &[&str]) -> String {
    let name = name.to_ascii_uppercase();
    let flag = name.strip_prefix("ALLOUT_").map(|rest| format!("--{}", rest.to_ascii_lowercase().replace('_', "-")));
    if let Some(hint) = flag.and_then(|flag| hint_for(&flag)) {
        return hint.to_owned();
    }
    let is_longer = |a: &str, b: &str| a.starts_with(b) && b.len() > "ALLOUT_LOG".len();
    let near = |known: &&str| match distance(&name, known) {
        distance if distance <= MAX_TYPOS => Some((distance, (*known).to_owned())),
        _ if is_longer(&name, known) || is_longer(known, &name) => Some((MAX_TYPOS + 1, (*known).to_owned())),
        _ => None,
    };
    let nearest = known.iter().filter_map(near).min();
    nearest.map_or_else(|| "no option has this name".to_owned(), |(_, known)| format!("{known} may be meant"))
}

/// Variables that the program sets for itself, for a re-exec and its preflight, and one that a build reads.
const PRIVATE_VARIABLES: [&str; 3] = ["ALLOUT_SOCKET", "ALLOUT_PREFLIGHT", "ALLOUT_COMMIT"];

/// Most letters by which a name that is meant differs from one that is written.
const MAX_TYPOS: usize = 3;

/// Levenshtein distance, in bytes.
pub fn distance(a: &str, b: &str) -> usize {
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
