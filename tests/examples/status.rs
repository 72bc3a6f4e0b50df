//! A service that shows its state at `/status`: a page for people, and JSON for programs.

use std::time::Duration;

use allout::{Check, Outcome, Request, Service};

fn main() -> Outcome {
    service().run()
}

/// The service: its state, something to wait for, and a check.
pub fn service() -> Service {
    Service::new()
        .with_status_route()
        .get("/slow", |request: &mut Request| request.sleep(Duration::from_secs(3)).map(|()| "done\n"))
        .check(Check::new("disk", || std::fs::metadata("/").map(drop)))
}
