//! The log of the program: `env_logger`'s filter, our lines, and a writer that never blocks.
//!
//! Three promises. *One event is one line*: control characters, and others that could break or forge a line, are
//! escaped in both formats, whatever a client has put into a message. *Logging never blocks a request*: a line is
//! written whole and at once, or it is dropped and counted, and the next line that fits is preceded by one that says
//! how many were dropped. *Logging never ends the process*: a stderr that is closed or broken is ignored.
//!
//! Dropping lines is deliberate. Waiting turns a stuck log reader into a stuck service; queueing turns it into memory
//! that grows until something else breaks.
//!
//! | file | |
//! | --- | --- |
//! | [`access`] | the access log as a file of its own |
//! | [`event`] | the parts of a line: level, target, message, fields; bounded while they are formatted |
//! | [`render`] | an event as a line of text or JSON, cut to [`MAX_LINE`](event::MAX_LINE) |
//! | [`sink`] | the writer: writes without blocking, or drops and counts |

mod access;
mod event;
mod render;
mod sink;

use std::io;
use std::panic::PanicHookInfo;
use std::path::Path;

use log::LevelFilter;
use rustix::fs::fstat;

use crate::args::{AccessLog, Args};
use crate::env_file::Variables;
use access::AccessFile;
use event::Event;
use render::{Style, line};
use sink::{Sink, own_stderr};

/// The target of panics: that of the program, whichever crate the panic came from.
const PANIC: &str = concat!(env!("CARGO_CRATE_NAME"), "::panic");

/// Starts logging to stderr, filtered by `RUST_LOG` (`info` where it is unset or empty), and makes panics lines of the
/// log. `RUST_LOG` of a file of variables precedes the environment's.
///
/// `tiny_http` is silent unless `RUST_LOG` names it: it logs errors of its clients at level `error`. An access log with a
/// file of its own is written there, whatever the filters are.
///
/// # Errors
///
/// A logger was installed before, stderr cannot be duplicated, or the file cannot be opened.
pub fn init(args: &Args, variables: &Variables) -> io::Result<()> {
    let style = Style { format: args.log_format, journal: is_journal() };
    let mut builder = env_logger::Builder::new();
    builder.filter_module("tiny_http", LevelFilter::Off);
    // Checked beforehand: env_logger reports a bad filter by eprintln, which is not JSON and panics if stderr is closed.
    let of_file = variables.get("RUST_LOG").map(|variable| variable.value.clone());
    let wanted = of_file.or_else(|| std::env::var("RUST_LOG").ok()).filter(|filters| !filters.trim().is_empty());
    let unusable = wanted.as_deref().and_then(unusable);
    match &wanted {
        Some(filters) if unusable.is_none() => builder.parse_filters(filters),
        _ => builder.filter_level(LevelFilter::Info),
    };
    let access = match &args.access_log {
        AccessLog::File(path) => Some(access_file(path)?),
        AccessLog::On | AccessLog::Off => None,
    };
    if access.is_some() {
        builder.filter_module(access::TARGET, LevelFilter::Info);
    }
    builder
        .format(move |out, record| {
            let event = Event::new(record);
            match &access {
                Some(file) if event.target == access::TARGET => file.write(&event),
                _ => io::Write::write_all(out, line(style, &event).as_bytes())?,
            }
            Ok(())
        })
        .target(env_logger::Target::Pipe(Box::new(Sink::new(own_stderr()?, style))))
        .try_init()
        .map_err(io::Error::other)?;
    std::panic::set_hook(Box::new(report_panic));
    if let Some(why) = unusable {
        log::warn!("RUST_LOG is ignored: {why}");
    }
    Ok(())
}

fn access_file(path: &Path) -> io::Result<AccessFile> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("--access-log {}: {error}", path.display()));
    AccessFile::new(path.to_owned()).map_err(named)
}

/// The reason why filters cannot be used. Filters that match no line would hide this warning, and everything else.
fn unusable(filters: &str) -> Option<String> {
    let error = env_filter::Builder::new().try_parse(filters).err().map(|error| error.to_string());
    error.or_else(|| {
        let name = unknown_targets(filters).into_iter().next()?;
        Some(format!("{name:?} is neither a level (error, warn, info, debug, trace, off) nor a target of this log"))
    })
}

/// The crates that log here. A filter names one of them, or a module in it.
const TARGETS: [&str; 2] = [env!("CARGO_CRATE_NAME"), "tiny_http"];

/// The modules of this crate and of its library that log.
const MODULES: [&str; 13] = [
    "access",
    "admin",
    "crew",
    "dispatch",
    "engine",
    "http",
    "lifecycle",
    "listen",
    "logging",
    "observe",
    "panic",
    "service",
    "sync",
];

/// The targets in a filter that match no line: `verbose` in `RUST_LOG=verbose`, which `env_filter` takes for one.
fn unknown_targets(filters: &str) -> Vec<&str> {
    // The part behind a slash is a regular expression for messages.
    let directives = filters.split('/').next().unwrap_or_default().split(',');
    let targets = directives.filter_map(|directive| match directive.split_once('=') {
        Some((target, _)) => Some(target.trim()),
        None => Some(directive.trim()).filter(|name| name.parse::<LevelFilter>().is_err()),
    });
    // A filter is for all targets that begin like it.
    let is_one_of = |known: &[&str], target: &str| {
        let is_below = |known| target.strip_prefix(known).is_some_and(|rest: &str| rest.starts_with("::"));
        known.iter().any(|known| known.starts_with(target) || is_below(*known))
    };
    let is_known = |target: &str| match target.strip_prefix(concat!(env!("CARGO_CRATE_NAME"), "::")) {
        Some(module) => is_one_of(&MODULES, module),
        None => is_one_of(&TARGETS, target),
    };
    targets.filter(|target| !is_known(target)).collect()
}

/// Logs a panic as one line, so that it has a level, a time and, in JSON, a form that a program can read.
///
/// With `RUST_BACKTRACE` set, the backtrace follows at `info`, one event for each of its lines: a filter for warnings
/// then finds one panic and not sixty lines.
fn report_panic(panic: &PanicHookInfo<'_>) {
    let payload = panic.payload();
    let message = payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a value that is not text");
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("unnamed");
    match panic.location() {
        Some(location) => log::error!(target: PANIC, thread = name, location:% = location; "panic: {message}"),
        None => log::error!(target: PANIC, thread = name; "panic: {message}"),
    }
    let backtrace = std::backtrace::Backtrace::capture();
    if backtrace.status() == std::backtrace::BacktraceStatus::Captured {
        for frame in backtrace.to_string().lines() {
            log::info!(target: PANIC, thread = name; "backtrace: {}", frame.trim());
        }
    }
}

/// Whether stderr is the systemd journal. `JOURNAL_STREAM` (systemd.exec(5)) must name the device and inode of stderr:
/// the variable is inherited, and stays set when stderr is redirected to a file.
fn is_journal() -> bool {
    let stream = std::env::var("JOURNAL_STREAM").unwrap_or_default();
    fstat(io::stderr()).is_ok_and(|stat| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_that_match_nothing_are_found() {
        let of_modules = ["allout::=info", "allout::acc", "allout::engine::native=trace,tiny_http::client=debug"];
        let others =
            ["", "info", "WARN", "info,allout=debug", "allout::access=info", "tiny_http", "off,all=info", "info/x"];
        for fine in of_modules.into_iter().chain(others) {
            assert_eq!(unknown_targets(fine), [""; 0], "{fine}");
        }
        assert_eq!(unknown_targets("allout::acess=debug"), ["allout::acess"]);
        assert_eq!(unknown_targets("allouts,allout::accessed"), ["allouts", "allout::accessed"]);
        assert_eq!(unknown_targets("verbose"), ["verbose"]);
        assert_eq!(unknown_targets("info, loud ,hyper=debug"), ["loud", "hyper"]);
    }

    #[test]
    fn the_modules_that_log_are_listed() {
        let mut found: Vec<String> = ["access", "panic"].map(str::to_owned).to_vec(); // targets that are no modules
        for root in ["src", "src/bin/allout"] {
            let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(root);
            for entry in std::fs::read_dir(root).unwrap().flatten() {
                let path = entry.path();
                let name = path.file_stem().unwrap().to_string_lossy().into_owned();
                if name != "bin" && name != "main" && logs(&path) {
                    found.push(name);
                }
            }
        }
        found.sort();
        found.dedup();
        assert_eq!(found, MODULES);
    }

    /// Whether a file, or one in this directory, has a line that logs.
    fn logs(path: &Path) -> bool {
        if path.is_dir() {
            return std::fs::read_dir(path).unwrap().flatten().any(|entry| logs(&entry.path()));
        }
        let text = std::fs::read_to_string(path).unwrap_or_default();
        ["error!(", "warn!(", "info!(", "debug!(", "trace!("].iter().any(|name| text.contains(&format!("log::{name}")))
    }
}
