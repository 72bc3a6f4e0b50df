//! *One out, all out*: a synchronous, thread-based HTTP service for Linux that starts as one and stops as one, and loses
//! nothing on the way out. No async runtime. You bring routes, as plain functions that may block; this brings the
//! lifecycle: a drain that answers every request that has arrived, limits and timeouts that no client can get around,
//! health routes, signals, systemd, an exit code that tells how it went. What it says goes to the [`log`] crate.
//!
//! [`log`]: https://docs.rs/log
//!
//! ```no_run
//! use allout::{HandlerError, Outcome, Request, Service};
//!
//! fn main() -> Outcome {
//!     Service::new()
//!         .listen("127.0.0.1:8088")
//!         .get("/", |_| "hello, world\n")
//!         .get("/hello/{name}", |request| format!("hello, {}\n", request.param("name").unwrap_or("world")))
//!         .post("/notes", note)
//!         .run() // until SIGTERM, SIGINT, GET /shutdown, or something fails
//! }
//!
//! fn note(request: &mut Request) -> Result<u16, HandlerError> {
//!     std::fs::write("note.txt", request.text()?)?; // too large: 413; a full disk: 500, and a line in the log
//!     Ok(201)
//! }
//! ```
//!
//! In a test, the same service runs within the process, on a port that the system picks, and stops when it is dropped:
//!
//! ```
//! use std::io::{Read, Write};
//! use allout::Service;
//!
//! let running = Service::new().get("/", |_| "hello").listen("127.0.0.1:0").start()?;
//! let mut client = std::net::TcpStream::connect(running.address())?;
//! client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")?;
//! let mut response = String::new();
//! client.read_to_string(&mut response)?;
//! assert!(response.starts_with("HTTP/1.1 200 OK") && response.ends_with("hello"));
//! assert_eq!(running.stop("the test is over").code(), 0);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What is where
//!
//! | | |
//! | --- | --- |
//! | [`Service`], [`Config`] | routes, settings, members and hooks, put together; [`run`](Service::run) or [`start`](Service::start) |
//! | [`Request`], [`Response`] | what a handler gets, and what its result becomes; [`HandlerError`] makes `?` work in it |
//! | [`Stop`], [`Stopper`] | how a handler or a member sees the end coming, and how anybody brings it about |
//! | [`Crew`] | threads that live and die together, without any HTTP |
//! | [`Outcome`], [`Cause`] | how it ended, why, who was abandoned; it is what `main` returns |
//! | [`channel`] | `crossbeam_channel`, whose `Receiver` is the one foreign type in a signature (but for serde's traits) |
//!
//! Features, all by default: `json` ([`Request::json`], [`Response::json`]), `metrics` (`/metrics`), and `cli`, which is for
//! the program of the same name: a library user does without, by `default-features = false`.
//!
//! Whoever reads the source begins with `crew` (the group of threads) and `drain` (how it ends, and why nothing is
//! lost); then `listener` and `dispatch` (the way of a request), `book`, `keeper` and `flood` (the connections, and what
//! is done about them), `engine` (`tiny_http`'s ways), and `service`, where all of them meet.
//!
//! # What always holds
//!
//! * The library never calls `process::exit`, never installs a logger, never prints.
//! * A request that was accepted is answered, or it is counted as abandoned and named in the log. There is no third fate.
//! * No lock is held across a write to a socket, a handler or a join.
//! * No client can make another client wait: not by being slow, silent, endless, pipelined, malformed or numerous.
//! * `/healthz` answers while anything at all is alive, whatever the other routes are doing.
//! * Only `tiny_http` parses and frames HTTP. It is used unmodified, from the registry, and in no signature.
//! * The arrows point one way. The crew knows nothing of HTTP; the book knows nothing of routes; routes and handlers
//!   know nothing of threads; metrics, log and systemd watch and are never asked.
//!
//! # Limitations
//!
//! * Linux only. HTTP/1.0 and 1.1, without TLS: that is a proxy's business.
//! * A connection takes a thread and three descriptors, so thousands are fine, and a hundred thousand are not.
//! * A handler that neither returns nor looks at its [`Stop`] is abandoned when grace is over: a thread cannot be ended
//!   from outside. It goes on until the process exits.
//! * [`run`](Service::run) handles SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGUSR1 and SIGXFSZ for the whole process, and any
//!   service raises the process's limit on open files and has its panic hook leave out the panics of `tiny_http`'s own
//!   threads.
//! * SIGHUP starts the binary a second time while the first still serves, to see that it would start: see
//!   [`run`](Service::run) for what that asks of `main`.
#![deny(missing_docs)]

mod admin;
mod crew;
mod dispatch;
mod engine;
mod http;
mod lifecycle;
mod listen;
mod observe;
mod service;
mod sync;
mod sys;
mod text;

pub use crossbeam_channel as channel;

pub use crate::{
    crew::{
        Crew,
        member::Exit,
        message::Stopper,
        outcome::{Cause, Outcome},
        stop::{GraceExpired, Stop},
    },
    dispatch::{
        build::RequestBuilder,
        limits::Limits,
        middleware::{ErrorInfo, Next},
        request::{Client, Request},
        route::Params,
        router::BadRoute,
    },
    engine::Peer,
    http::{
        body::Body,
        error::{BodyError, HandlerError},
        response::Response,
    },
    service::{Service, config::Config, error::StartError, run::ServiceHandle},
};

/// The examples of the README are compiled as well.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
