//! The program: a small service on the library's public interface, with an option for each setting.

mod args;
mod env_file;
#[cfg(feature = "generate")]
mod generate;
mod healthcheck;
mod logging;
mod token;
mod unit;

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use allout::{BodyError, Config, Request, Service, UnixSocket};

use args::{AccessLog, Args, Check, Unit};

/// Exit code for arguments that cannot be used, which is clap's as well.
const EXIT_USAGE: u8 = 2;

fn main() -> ExitCode {
    let words: Vec<_> = std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    match words.split_first() {
        Some((first, rest)) if first == "healthcheck" => return healthcheck::run(rest),
        _ => {}
    }
    let (args, variables) = Args::from_process().unwrap_or_else(|error| error.exit());
    #[cfg(feature = "generate")]
    if let Some(what) = args.generate {
        return written(generate::generate(what, &mut std::io::stdout()));
    }
    if let Some(unit) = args.systemd_unit {
        if args.shutdown_token.is_some() {
            eprintln!("allout: a unit can be read by every user: use --shutdown-token-file");
            return ExitCode::from(EXIT_USAGE);
        }
        return written(print_unit(unit, &args));
    }
    let access = match &args.access_log {
        AccessLog::File(path) => Some(path.clone()),
        AccessLog::On | AccessLog::Off => None,
    };
    let filters = variables.get("RUST_LOG").map(|variable| variable.value.as_str());
    if let Err(error) = logging::init(args.log_format, filters, access) {
        eprintln!("allout: cannot log: {error}");
        return ExitCode::FAILURE;
    }
    logging::install_panic_hook();
    for warning in args::unknown_variables(&variables) {
        log::warn!("{warning}");
    }
    match (service(&args), args.check) {
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
            println!("allout would start");
            ExitCode::SUCCESS
        }
        Err(error) => {
            log::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn written(result: std::io::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("allout: {error}");
            ExitCode::FAILURE
        }
    }
}

fn print_unit(unit: Unit, args: &Args) -> std::io::Result<()> {
    // The kernel adds " (deleted)" if the binary was replaced since it started: proc_pid_exe(5).
    let binary = std::env::current_exe()?;
    let name = binary.to_string_lossy();
    let binary = name.strip_suffix(" (deleted)").map_or(&*binary, Path::new);
    let options = unit::Options {
        variables: args::given(),
        addresses: args.addresses().into_iter().chain(args.admin_listen).collect(),
        unix: args.unix_paths(),
        token_file: args.shutdown_token_file.clone(),
    };
    let text = match unit {
        Unit::Service => unit::service_unit(binary, &options, false),
        Unit::Template => unit::service_unit(binary, &options, true),
        Unit::User => unit::user_unit(binary, &options),
        Unit::Socket => unit::socket_unit(&args.addresses(), &args.unix_paths(), args.unix_mode.0),
    };
    std::io::stdout().write_all(text.as_bytes())
}

/// # Errors
///
/// The token cannot be read or used.
fn service(args: &Args) -> Result<Service, String> {
    let delay = args.timeout_delay;
    let config = config(args);
    let max_body = config.max_body;
    let mut service = Service::with_config(config)
        .access_log(args.access_log != AccessLog::Off)
        .with_status_route()
        .get("/timeout", move |request| request.sleep(delay).map(|()| "done\n"))
        .inline_fallback(move |request| hello(request, max_body));
    if !args.trust_proxy.is_empty() {
        service = service.trust_proxies("X-Forwarded-For", &args.trust_proxy);
    }
    if args.no_shutdown {
        return Ok(service);
    }
    Ok(match token::load(args)? {
        Some(token) => service.shutdown_token(token),
        None => service.with_shutdown_route(),
    })
}

fn config(args: &Args) -> Config {
    let mut config = Config::default();
    config.listen = args.addresses();
    let owner = args.unix_owner.map_or((None, None), |owner| (owner.user, owner.group));
    let unix = |path| UnixSocket::new(path).mode(args.unix_mode.0).owner(owner.0, owner.1);
    config.listen_unix = args.unix_paths().into_iter().map(unix).collect();
    config.engine = args.engine;
    config.receivers = args.receivers;
    config.admin_listen = args.admin_listen;
    config.workers = args.workers;
    config.queue = args.queue;
    config.max_connections = args.max_connections;
    config.grace = args.grace;
    config.drain_delay = args.drain_delay;
    config.keepalive_min = args.keepalive_min;
    config.idle_timeout = args.idle_timeout;
    config.request_timeout = args.request_timeout;
    config
}

/// Answers with a greeting and discards the body; one that is larger than `max_body` is a 413.
fn hello(request: &mut Request, max_body: u64) -> Result<String, BodyError> {
    request.discard_body(max_body)?;
    Ok(match request.query("user").as_deref() {
        None | Some("") => "hello, world\n".to_owned(),
        Some(user) => format!("hello, {user}\n"),
    })
}
