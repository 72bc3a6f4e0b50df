//! Errors of handlers: the response to the client, and the line in the log.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says what it expects by panicking")]

use std::error::Error;
use std::io;
use std::sync::{Mutex, PoisonError};

use allout::{HandlerError, Request, Response, Service, StatusError};
use anyhow::Context as _;

/// The lines of the log.
static LOG: Log = Log(Mutex::new(Vec::new()));

struct Log(Mutex<Vec<String>>);

impl log::Log for Log {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let line = format!("{} {}", record.level(), record.args());
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    }

    fn flush(&self) {}
}

/// The response to `target`, and what the log says of the request.
fn ask(service: &Service, target: &str) -> (u16, String, Vec<String>) {
    let _ = log::set_logger(&LOG).map(|()| log::set_max_level(log::LevelFilter::Info));
    let id = format!("id-of-{}", &target[1..]);
    let response = service.handle(Request::get(target).header("X-Request-Id", id.clone()));
    let lines = LOG.0.lock().unwrap().iter().filter(|line| line.contains(&id)).cloned().collect();
    (response.status(), response.into_text().unwrap(), lines)
}

fn gone() -> io::Error {
    io::Error::other("the disk is gone")
}

fn with_anyhow(request: &mut Request) -> anyhow::Result<String> {
    if request.path() == "/refused" {
        Err(StatusError::new(409, "taken")).context("cannot book")?;
    }
    Err(gone()).context("cannot save")
}

#[test]
fn every_error_of_a_handler_is_a_500_whose_cause_only_the_log_has() {
    let service = Service::new()
        .get("/io", |_| -> io::Result<()> { Err(gone()) })
        .get("/boxed", |_| -> Result<(), Box<dyn Error>> { Err(gone())? })
        .get("/sync", |_| -> Result<(), Box<dyn Error + Send + Sync>> { Err(gone())? })
        .get("/text", |_| -> Result<String, String> { Err("the disk is gone".to_owned()) })
        .get("/mixed", |_| -> Result<(), HandlerError> {
            let boxed: Result<(), Box<dyn Error + Send + Sync>> = Err("the disk is gone".into());
            Ok(boxed?)
        })
        .get("/anyhow", |request| -> Result<String, HandlerError> { Ok(with_anyhow(request)?) });
    for target in ["/io", "/boxed", "/sync", "/text", "/mixed", "/anyhow"] {
        let (status, text, lines) = ask(&service, target);
        assert_eq!((status, text.as_str()), (500, "500 Internal Server Error\n"), "{target}");
        let [line] = &lines[..] else { panic!("{target}: {lines:?}") };
        assert!(line.starts_with(&format!("ERROR the handler of GET {target} from ")), "{line}");
        assert!(line.ends_with("the disk is gone"), "{line}");
    }
    assert!(ask(&service, "/anyhow").2[0].ends_with(": cannot save: the disk is gone"));
}

#[test]
fn an_error_with_a_status_keeps_it_and_its_body_is_the_services_own_with_the_id() {
    let service = Service::new()
        .get("/refused", |request| -> Result<String, HandlerError> { Ok(with_anyhow(request)?) })
        .get("/upstream", |_| -> Result<(), StatusError> { Err(StatusError::new(502, "no answer").with_cause(gone())) })
        .get("/own", |_| -> Result<(), HandlerError> { Err(Response::html("<p>no").with_status(403))? })
        .on_error(|request, error| {
            let body = format!(r#"{{"error":"{}","id":"{}"}}"#, error.reason, request.id());
            Response::new(body).with_header("Content-Type", "application/json")
        });
    let (status, text, lines) = ask(&service, "/refused");
    assert_eq!((status, text.as_str()), (409, r#"{"error":"taken","id":"id-of-refused"}"#));
    assert!(lines.is_empty(), "the client's fault, without a cause: {lines:?}");
    let (status, text, lines) = ask(&service, "/upstream");
    assert_eq!((status, text.as_str()), (502, r#"{"error":"no answer","id":"id-of-upstream"}"#));
    assert!(lines[0].starts_with("ERROR") && lines[0].ends_with("no answer: the disk is gone"), "{lines:?}");
    assert_eq!(ask(&service, "/own").1, "<p>no", "what the handler says is its own");
}

#[cfg(feature = "anyhow")]
#[test]
fn a_handler_may_return_the_result_of_anyhow() {
    let service = Service::new().get("/refused", with_anyhow).get("/returned", with_anyhow);
    assert_eq!(ask(&service, "/refused").0, 409);
    assert_eq!(ask(&service, "/returned").0, 500);
}
