//! A service in ten lines.

use allout::{Outcome, Service};

fn main() -> Outcome {
    service().run()
}

/// The service: `main` runs it, and tests start it elsewhere.
pub fn service() -> Service {
    Service::new()
        .get("/", |_| "hello, world\n")
        .get("/hello/{name}", |request| format!("hello, {}\n", request.param("name").unwrap_or("world")))
}
