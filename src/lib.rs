//! *One out, all out*: a synchronous, thread-based HTTP service for Linux that starts as one and stops as one, and
//! loses nothing on the way out. No async runtime. You bring routes, as plain functions that may block; this crate
//! brings the lifecycle: a drain that answers every request that has arrived, limits and timeouts that no client can
//! get around, health routes, signals, systemd, an exit code that tells how it went.
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
//! It logs by the [`log`] crate: install any logger, such as `env_logger::init()` in `main`, to read why a handler
//! failed. In `Cargo.toml`, leave out the feature `cli`, which is for the program of the same name:
//!
//! ```toml
//! allout = { path = "../allout", default-features = false, features = ["json", "metrics", "tiny-http"] }
//! ```
//!
//! [`log`]: https://docs.rs/log
//!
//! The [cookbook] has recipes for authentication, CORS, errors as JSON, files, uploads, events and proxies.
//!
//! In a test, a request is made and handled without a socket:
//!
//! ```
//! use allout::{Request, Service};
//!
//! let service = Service::new().get("/", |_| "hello");
//! assert_eq!(service.handle(Request::get("/")).into_text()?, "hello");
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! Or the service runs within the process of the test, on a port that the system picks, and stops when it is dropped:
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
//! | [`with_state`] | handlers that share a database, or any other state |
//! | [`Next`], [`ErrorInfo`] | middleware around all handlers; the service's own bodies for the library's errors |
//! | [`StreamWriter`], [`EventWriter`] | bodies that are written while they are sent; server-sent events |
//! | [`Check`], [`Restart`] | readiness checks; members that are restarted |
//! | [`Stop`], [`Stopper`] | how a handler or a member sees the end coming, and how any thread brings it about |
//! | [`Crew`] | a group of threads that live and die together, without any HTTP |
//! | [`Outcome`], [`Cause`] | how it ended, why, what was abandoned; it is what `main` returns |
//! | [`channel`] | `crossbeam_channel`, whose `Receiver` is the one foreign type in a signature (but for serde's traits) |
//!
//! Features by default: `json` ([`Request::json`], [`Response::json`]; it includes `serde`), `metrics` (`/metrics`),
//! `tiny-http` (the default engine; without it the engine is the native one), and `cli` (the program). Others: `serde`
//! (parameters, queries and forms of any type), `files` (directories, conditional requests, ranges), `anyhow` (handlers
//! that return `anyhow::Result`). Each adds, and changes nothing else.
//!
//! # The path of a request, and of the first message
//!
//! ```text
//!  client ──► kernel's accept queue ──► engine ────────► dispatch ──► handler, inline or on a worker
//!                      ▲                 │ accepts,          │                    │
//!                 accept gate            │ reads, frames,    │ finds the route    │ Response
//!                                        │ times out         ▼                    ▼
//!                              connections, limits        observers ◄──── Exchange::respond ──► client
//!
//!  SIGTERM, SIGINT ──► signals ──┐
//!  GET /shutdown, Stopper ───────┤   one channel,      main thread: takes the FIRST message,
//!  listener, monitor, workers ───┼──► unbounded ──────► drains (drain delay, stop accepting, quiescence),
//!  members of your own ──────────┘   (no send blocks)  stops every member, joins them ──► one Outcome ──► exit code
//! ```
//!
//! # What always holds
//!
//! * The library never calls `process::exit`, never installs a logger, never prints. Two exceptions: the failure that
//!   `main` returns as an [`Outcome`] is printed if no logger has told it, and a preflight ends where
//!   [`run`](Service::run) begins.
//! * A request that was accepted is answered, or it is counted as abandoned and named in the log.
//! * A response reaches the client that asked, whole or visibly broken: a response that fails never ends like a whole
//!   one.
//! * No lock is held across a write to a socket, a handler or a join.
//! * No client can make another client wait: not by being slow, silent, endless, pipelined, malformed or numerous. With
//!   the `tiny_http` engine floods can, as [Limitations](#limitations) says.
//! * `/healthz` answers while anything at all is alive, whatever the other routes are doing.
//! * No async runtime. `tiny_http` is used unmodified, from the registry, and named in `engine` alone.
//!
//! # Limitations
//!
//! * Linux only. HTTP/1.0 and 1.1, without TLS: that is a proxy's business.
//! * A Unix socket cannot be reset: to an HTTP/1.0 client of one, a response of unknown length that breaks off looks whole.
//!   Have a proxy speak HTTP/1.1 to it (nginx: `proxy_http_version 1.1`).
//! * A handler that neither returns nor looks at its [`Stop`] is abandoned when the grace period is over: a thread cannot
//!   be ended from outside. It goes on until the process exits.
//! * [`run`](Service::run) handles SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGUSR1 and SIGXFSZ for the whole process, and any
//!   service raises the process's limit on open files.
//! * SIGHUP re-executes the process, after a preflight: its binary is started a second time while the first still
//!   serves, to see that it would start. [`run`](Service::run) says what `main` must not do before it.
//!
//! The `tiny_http` engine is for clients that are trusted, or for use behind a proxy that speaks clean HTTP/1.1. Its
//! own limitations, none of which the native engine has:
//!
//! * A connection costs a thread and three descriptors: thousands are fine, a hundred thousand are not.
//! * A byte above 0x7F in a request's head (a UTF-8 cookie), TLS bytes or a PROXY line close the connection without an
//!   answer. Some of these are counted and logged on kept-alive connections, and few on new ones, which end before they
//!   are noticed.
//! * `HTTP/2.0`, `HTTP/3.0` and `PRI *` request lines each leak a thread and two descriptors for good. The leak is
//!   counted and logged, and leads to a re-exec before threads or descriptors run out.
//! * A chunked body with a trailer, or one that is whole and followed by a half-close, is 400. A connection closes
//!   after a chunked body. A folded header line counts as a header of its own, so that a proxy in front must unfold or
//!   refuse it. Control characters at the ends of values are not seen.
//! * Two live connections of one client address and port, to two local addresses, are both closed: they cannot be told
//!   apart. A client that resets a connection and connects again from the same port may be closed without an answer.
//! * `tiny_http` answers some heads by itself (400, 417), without a log line. A fourth word of a request line is ignored.
//! * A client that reads slowly holds its worker for as long as each write makes progress within the request timeout.
//! * A burst may exceed the limit on connections by as many again (at least 128, at most 1,024); by a thousand before
//!   Linux 6.2, or without /proc. The process listens on a second, private port.
//! * When a body breaks off, the whole rest of its length is allocated: where address space is short, that can end the
//!   process.
//! * Pipelined requests are read ahead; beyond a limit the connection is ended. While 64 clients flood the service on
//!   two cores, others may wait for some tenths of a second, and for seconds if the cores are busy with other work too.
//! * It installs a panic hook that leaves out the panics of `tiny_http`'s own threads.
//!
//! # The source
//!
//! In reading order. `tests/tidy.rs` lists which folder may use which.
//!
//! | folder | |
//! | --- | --- |
//! | `crew` | threads that live and die together: members, the one channel, the worker pool, signals, exit codes. No HTTP |
//! | `lifecycle` | from serving to stopped: phases, the drain and why it loses nothing, re-exec |
//! | `http` | messages: what is a valid head, what a response is, how it becomes bytes. No threads, no sockets |
//! | `engine` | everything between a listening socket and an exchange. Its `mod.rs` is the waist: the rest sees `Engine` and `Exchange`, whichever engine is behind them |
//! | `dispatch` | from an exchange to its response: routes, handlers, inline or on a worker, shedding |
//! | `admin`, `observe` | `/healthz` to `/shutdown`; metrics, logs, state dump, systemd: they see everything and are never asked |
//! | `service` | the public builder, and the one place where all parts meet |
//! | `sys`, `listen`, `sync`, `text` | the kernel (all `unsafe` code); the listening socket; helpers |
#![deny(missing_docs)]
#![cfg_attr(
    not(feature = "tiny-http"),
    allow(dead_code, reason = "the engine on tiny_http alone uses some of what engines have in common")
)]
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(not(target_has_atomic = "64"))]
compile_error!("allout counts with atomics of 64 bits, which 32-bit PowerPC and MIPS, among others, do not have");

mod admin;
mod clock;
pub mod cookbook;
mod crew;
mod dispatch;
mod engine;
#[cfg(feature = "files")]
mod files;
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
    admin::checks::Check,
    crew::{
        Crew,
        member::Exit,
        message::Stopper,
        outcome::{Cause, Outcome},
        stop::{GraceExpired, Stop},
    },
    dispatch::{
        builder::RequestBuilder,
        limits::Limits,
        middleware::{ErrorInfo, Next},
        request::{Client, Request},
        route::Params,
        router::BadRoute,
        state::with_state,
    },
    engine::{EngineKind, Peer},
    http::{
        automatic::AutomaticHeaders,
        body::Body,
        error::HandlerError,
        events::{Event, EventWriter},
        fault::{BodyError, StatusError},
        response::Response,
        stream::StreamWriter,
    },
    listen::UnixSocket,
    service::{Service, config::Config, error::StartError, member::Restart, run::ServiceHandle},
};

#[cfg(feature = "files")]
pub use crate::files::Files;

/// The examples of the README are compiled as well.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
