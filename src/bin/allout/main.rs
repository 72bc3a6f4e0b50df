//! The program: a small service on the library's public interface, with an option for each setting.
//!
//! | file | |
//! | --- | --- |
//! | [`args`], [`env_file`] | the command line, its variables, and the files that hold them |
//! | [`service`], [`token`] | the service: settings, routes, and the shutdown token |
//! | [`logging`] | the log and the access log |
//! | [`unit`] | `--systemd-unit` |
//! | [`healthcheck`] | `allout healthcheck` |

mod args;
mod env_file;
#[cfg(feature = "generate")]
mod generate;
mod healthcheck;
mod logging;
mod service;
mod token;
mod unit;

use std::io::{self, Write as _};
use std::process::ExitCode;

use allout::Service;

use args::{Args, Check};

/// Exit code for arguments that cannot be used, which is clap's as well.
const EXIT_USAGE: u8 = 2;

fn main() -> ExitCode {
    match std::env::args_os().nth(1) {
        Some(word) if word == "healthcheck" => healthcheck::run(),
        _ => run(),
    }
}

/// Runs what the options ask for: the service, unless they ask to print or to check something.
fn run() -> ExitCode {
    let (args, variables) = Args::from_process().unwrap_or_else(|error| error.exit());
    #[cfg(feature = "generate")]
    if let Some(what) = args.generate {
        return written(generate::generate(what, &mut io::stdout()));
    }
    if let Some(unit) = args.systemd_unit {
        return written(unit::print(unit, &args));
    }
    if let Err(error) = logging::init(&args, &variables) {
        let _ = writeln!(io::stderr(), "allout: cannot log: {error}");
        return ExitCode::FAILURE;
    }
    for warning in args::unknown_variables(&variables) {
        log::warn!("{warning}");
    }
    for warning in args.unused() {
        log::warn!("{warning}");
    }
    match (service::service(&args), args.check) {
        (Ok(service), None) => service.run().into(),
        (Ok(service), Some(check)) => checked(service, check),
        (Err(error), _) => {
            log::error!("{error}");
            ExitCode::from(EXIT_USAGE)
        }
    }
}

/// Says whether the service would start.
fn checked(service: Service, check: Check) -> ExitCode {
    let result = match check {
        Check::Start => service.would_start(),
        Check::Reload => service.would_reexec(),
    };
    match result {
        Ok(()) => {
            let _ = writeln!(io::stdout(), "allout would start"); // the exit code says it as well
            ExitCode::SUCCESS
        }
        Err(error) => {
            log::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Exit code of a run that only prints.
fn written(result: io::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "allout: {error}");
            ExitCode::FAILURE
        }
    }
}
