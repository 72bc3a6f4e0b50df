//! Every test of behaviour once more, with the native engine: the same sources, compiled into this program, which they
//! recognise by its name (see `common::engine`). What is not here tests no engine, or names each of
//! its tests for both.

#![allow(clippy::duplicate_mod, reason = "each source has its helpers, as on its own")]

#[path = "admin.rs"]
mod admin;
#[path = "drain.rs"]
mod drain;
#[path = "drain_proof.rs"]
mod drain_proof;
#[path = "endpoints.rs"]
mod endpoints;
#[path = "examples.rs"]
mod examples;
#[path = "hostile.rs"]
mod hostile;
#[path = "library.rs"]
mod library;
#[path = "lifecycle.rs"]
mod lifecycle;
#[path = "members.rs"]
mod members;
#[path = "middleware.rs"]
mod middleware;
#[path = "operations.rs"]
mod operations;
#[path = "process.rs"]
mod process;
#[path = "reexec.rs"]
mod reexec;
#[path = "reexec_signals.rs"]
mod reexec_signals;
#[path = "rejections.rs"]
mod rejections;
#[path = "rolling.rs"]
mod rolling;
#[path = "shutdown.rs"]
mod shutdown;
#[path = "shutdown_access.rs"]
mod shutdown_access;
#[path = "startup.rs"]
mod startup;
#[path = "status.rs"]
mod status;
#[path = "streams.rs"]
mod streams;
