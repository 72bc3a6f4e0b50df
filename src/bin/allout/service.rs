//! The service of the program: its settings, its routes, and its rules for `/shutdown`.

use allout::{BodyError, Config, Request, Service, UnixSocket};

use crate::args::{AccessLog, Args};
use crate::token;

/// The service that these options describe.
///
/// # Errors
///
/// The token cannot be read or used.
pub fn service(args: &Args) -> Result<Service, String> {
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
