//! The errors with which the start of a service fails.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::admin::InstallError;
use crate::crew::outcome::{Cause, Outcome};
use crate::dispatch::router::BadRoute;
use crate::listen::ListenError;

/// The reason why a service did not start.
#[derive(Debug)]
#[non_exhaustive]
pub enum StartError {
    /// Another socket listens on the address.
    AddressInUse(SocketAddr),
    /// The system refuses to listen on the address.
    Listen(SocketAddr, io::Error),
    /// The Unix socket at this path cannot be listened on: it is in use, or the system refuses.
    UnixSocket(PathBuf, io::Error),
    /// The address to listen on cannot be parsed or resolved.
    Unresolved(io::Error),
    /// A socket that was passed to the process cannot be used.
    Inherited(String),
    /// A route is invalid.
    Route(BadRoute),
    /// It was stopped, or something failed, before it was [ready](crate::Service::before_ready).
    Stopped(Cause),
    /// A limit of the process is too low: which one, and what is needed.
    Limit(String),
    /// The kernel lacks a feature that the engine needs: which one, and what to do instead.
    Kernel(String),
    /// A setting is invalid: which one, and why.
    Setting(String),
    /// The system refuses a thread, a descriptor or the like: which one, and the error.
    System(&'static str, io::Error),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartError::AddressInUse(address) => {
                write!(f, "address in use: {address}: stop the process that listens there, or choose another address")
            }
            StartError::Listen(address, error) => write!(f, "cannot listen on {address}: {error}"),
            StartError::UnixSocket(path, error) => write!(f, "cannot listen on unix:{}: {error}", path.display()),
            StartError::Unresolved(error) => {
                write!(f, "no address to listen on: {error}: it is written HOST:PORT, as 0.0.0.0:8088")
            }
            StartError::Inherited(what) => write!(f, "the socket that was passed cannot be used: {what}"),
            StartError::Route(error) => write!(f, "bad route: {error}"),
            StartError::Stopped(cause) => write!(f, "stopped before it was ready: {cause}"),
            StartError::Limit(what) | StartError::Kernel(what) => write!(f, "cannot start: {what}"),
            StartError::Setting(why) => write!(f, "bad setting: {why}"),
            StartError::System(what, error) => write!(f, "cannot start: {what}: {error}"),
        }
    }
}

impl std::error::Error for StartError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            StartError::Listen(_, error)
            | StartError::UnixSocket(_, error)
            | StartError::Unresolved(error)
            | StartError::System(_, error) => Some(error),
            StartError::Route(error) => Some(error),
            StartError::AddressInUse(_)
            | StartError::Inherited(_)
            | StartError::Limit(_)
            | StartError::Kernel(_)
            | StartError::Stopped(_)
            | StartError::Setting(_) => None,
        }
    }
}

/// A service that did not start.
pub(crate) enum NotStarted {
    /// No part had started yet.
    Error(StartError),
    /// Some parts had started; the outcome is that of stopping them.
    Stopped(StartError, Box<Outcome>),
}

impl From<StartError> for NotStarted {
    fn from(error: StartError) -> NotStarted {
        NotStarted::Error(error)
    }
}

impl From<ListenError> for StartError {
    fn from(error: ListenError) -> StartError {
        match error {
            ListenError::InUse(address) => StartError::AddressInUse(address),
            ListenError::Bind(address, error) => StartError::Listen(address, error),
            ListenError::Unix(path, error) => StartError::UnixSocket(path, error),
            ListenError::Inherited(what) => StartError::Inherited(what),
        }
    }
}

impl From<InstallError> for StartError {
    fn from(error: InstallError) -> StartError {
        match error {
            InstallError::Route(error) => StartError::Route(error),
            #[cfg(feature = "metrics")]
            InstallError::Metrics(error) => StartError::System("metrics", io::Error::other(error)),
        }
    }
}
