//! A service that gets stuck, or fails, in each way that a service manager must notice. Started as its tests want it:
//! `faulty LISTEN`, with one worker, a short grace and a short request timeout.

#![allow(clippy::expect_used, reason = "part of a test")]

use std::time::Duration;

use allout::{Config, Outcome, Request, Service, channel};

fn stuck() -> &'static str {
    loop {
        std::thread::park();
    }
}

fn main() -> Outcome {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    let mut config = Config::default();
    config.listen = vec![std::env::args().nth(1).expect("an address").parse().expect("an address")];
    config.workers = 1;
    config.grace = Duration::from_secs(1);
    config.request_timeout = Duration::from_millis(500);
    let (fail, failing) = channel::bounded(1);
    Service::with_config(config)
        .with_shutdown_route()
        .get("/", |_: &mut Request| "ok\n")
        .get("/stuck-worker", |_: &mut Request| stuck())
        .inline_route("GET", "/stuck-listener", |_: &mut Request| stuck())
        .inline_route("GET", "/fail", move |_: &mut Request| {
            let _ = fail.try_send(());
            "as you wish\n"
        })
        .member("fragile", move |stop| {
            while !stop.wait_timeout(Duration::from_millis(10)) {
                if failing.try_recv().is_ok() {
                    return Err("it was asked to");
                }
            }
            Ok(())
        })
        .run()
}
