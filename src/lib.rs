//! *One out, all out*: a synchronous, thread-based HTTP service for Linux that starts as one and stops as one, and loses
//! nothing on the way out. No async runtime.
#![deny(missing_docs)]

mod access_log;
mod book;
mod config;
mod crew;
mod descriptors;
mod dispatch;
mod drain;
mod engine;
mod gate;
mod http;
mod keeper;
mod listener;
#[cfg(feature = "metrics")]
mod metrics;
mod operations;
mod outcome;
mod phase;
mod renewal;
mod report;
mod service;
mod shutdown;
mod signals;
mod socket;
mod stop;
mod systemd;
mod workers;

pub use crossbeam_channel as channel;

pub use crate::{
    config::Config,
    crew::{Crew, How, Stopper},
    http::{
        reply::{Failure, Reply},
        request::{BodyError, Request},
        routes::BadRoute,
    },
    outcome::{Cause, Outcome},
    service::{Running, Service},
    socket::StartError,
    stop::{GraceOver, Never, Stop},
};
