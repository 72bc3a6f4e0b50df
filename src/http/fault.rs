//! Errors with a status, which their response has even if other errors wrap them.

use std::borrow::Cow;
use std::error::Error;
use std::fmt;
use std::io;

use super::response::Response;

/// An error with a status, and a message for the client: for `?` in the functions that a handler calls.
///
/// It keeps its response inside `anyhow::Error`, `Box<dyn Error>` and errors that have it as their source. A cause, if
/// there is one, is for the log alone.
///
/// ```
/// use allout::{HandlerError, Request, Service, StatusError};
///
/// fn price(item: &str) -> Result<u32, Box<dyn std::error::Error + Send + Sync>> {
///     match item {
///         "tea" => Ok(3),
///         _ => Err(StatusError::new(404, format!("there is no {item}")).into()),
///     }
/// }
///
/// let service = Service::new().get("/{item}", |request| -> Result<String, HandlerError> {
///     Ok(price(request.param("item").unwrap_or_default())?.to_string())
/// });
/// let response = service.handle(Request::get("/gold"));
/// assert_eq!((response.status(), response.into_text()?), (404, "404 there is no gold\n".to_owned()));
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct StatusError(Box<Fault>);

/// The response that an error carries, as one of its sources. A [`StatusError`] names it as its source, because types
/// that wrap an error (`io::Error`, `anyhow::Error`) may expose its sources alone, and not the error itself.
#[derive(Debug)]
pub(super) struct Fault {
    status: u16,
    message: Cow<'static, str>,
    cause: Option<Box<dyn Error + Send + Sync>>,
}

impl Fault {
    pub(super) fn to_response(&self) -> Response {
        let response = Response::error(self.status, self.message.clone());
        match &self.cause {
            Some(cause) => response.with_failure(&format!("{}: {}", self.message, Causes(cause.as_ref()))),
            None if self.status >= 500 => response.with_failure(&self.message),
            None => response,
        }
    }
}

/// Only the status: the message stands before it already.
impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "status {}", self.status)
    }
}

impl Error for Fault {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.cause.as_ref().map(|cause| cause.as_ref() as _)
    }
}

impl StatusError {
    /// An error with this status, 400 to 599, and a message for the client. Any other status becomes 500.
    ///
    /// ```
    /// let error = allout::StatusError::new(409, "that name is taken");
    /// assert_eq!((error.status(), error.to_string()), (409, "that name is taken".to_owned()));
    /// ```
    pub fn new(status: u16, message: impl Into<Cow<'static, str>>) -> StatusError {
        let status = if (400..=599).contains(&status) { status } else { 500 };
        StatusError(Box::new(Fault { status, message: message.into(), cause: None }))
    }

    /// The same error with a cause for the log alone: at the level `error` for a status from 500 on, otherwise `info`,
    /// because no client may fill the log with errors.
    ///
    /// ```
    /// use allout::StatusError;
    /// fn load() -> Result<Vec<u8>, StatusError> {
    ///     let path = "/no/such/file";
    ///     std::fs::read(path).map_err(|error| StatusError::new(503, "no data yet").with_cause(error))
    /// }
    /// assert_eq!(load().unwrap_err().message(), "no data yet");
    /// ```
    #[must_use]
    pub fn with_cause(mut self, cause: impl Into<Box<dyn Error + Send + Sync>>) -> StatusError {
        self.0.cause = Some(cause.into());
        self
    }

    /// The status.
    pub fn status(&self) -> u16 {
        self.0.status
    }

    /// The message for the client.
    pub fn message(&self) -> &str {
        &self.0.message
    }
}

impl fmt::Debug for StatusError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Fault { status, message, cause } = &*self.0;
        f.debug_struct("StatusError").field("status", status).field("message", message).field("cause", cause).finish()
    }
}

impl fmt::Display for StatusError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl Error for StatusError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.0)
    }
}

impl From<StatusError> for Response {
    fn from(error: StatusError) -> Response {
        error.0.to_response()
    }
}

/// An error in reading a body. It turns into a response: 413, 408, 400, 415 or 422, with a short text.
#[derive(Debug)]
#[non_exhaustive]
pub enum BodyError {
    /// It is larger than the limit.
    TooLarge,
    /// It ended early, broke its framing, or stopped coming for longer than the request timeout; then the kind of the
    /// error is [`TimedOut`](io::ErrorKind::TimedOut).
    Broken(io::Error),
    /// It does not parse: it is not UTF-8, or not JSON or a form with the expected fields.
    Malformed(StatusError),
    /// It is of another content type.
    WrongType(StatusError),
}

/// The response to a body that is too large.
static TOO_LARGE: Fault = Fault { status: 413, message: Cow::Borrowed("the body is too large"), cause: None };

impl BodyError {
    pub(crate) fn malformed(reason: impl Into<Cow<'static, str>>) -> BodyError {
        BodyError::Malformed(StatusError::new(422, reason))
    }

    #[cfg(feature = "serde")]
    pub(crate) fn wrong_type(expected: &str) -> BodyError {
        BodyError::WrongType(StatusError::new(415, format!("the body is not {expected}")))
    }
}

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BodyError::TooLarge => f.write_str(&TOO_LARGE.message),
            BodyError::Broken(error) => error.fmt(f),
            BodyError::WrongType(error) => error.fmt(f),
            BodyError::Malformed(error) => write!(f, "the body is malformed: {error}"),
        }
    }
}

impl Error for BodyError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            BodyError::TooLarge => Some(&TOO_LARGE),
            BodyError::Broken(error) => error.source(),
            BodyError::Malformed(error) | BodyError::WrongType(error) => error.source(),
        }
    }
}

impl From<BodyError> for Response {
    fn from(error: BodyError) -> Response {
        match error {
            BodyError::TooLarge => TOO_LARGE.to_response(),
            BodyError::Broken(error) => match fault_of(&error) {
                Some(fault) => fault.to_response(),
                None => truncated_body_error(&error).into(),
            },
            BodyError::Malformed(error) | BodyError::WrongType(error) => error.into(),
        }
    }
}

/// The error of a body that broke off, or did not come in time. The client is at fault.
fn truncated_body_error(error: &io::Error) -> StatusError {
    broken(error.kind() == io::ErrorKind::TimedOut).with_cause(error.to_string())
}

fn broken(timed_out: bool) -> StatusError {
    if timed_out {
        StatusError::new(408, "the body did not come in time")
    } else {
        StatusError::new(400, "the body broke off")
    }
}

/// The response to a request whose body broke off before it was read; no handler has failed.
pub(crate) fn truncated_body(timed_out: bool) -> Response {
    broken(timed_out).into()
}

/// The error that a body's reader returns to a handler: of the same kind, and marked as the client's fault.
pub(crate) fn mark_truncated_body(error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), truncated_body_error(error))
}

/// An error, its source, the source of that, and so on.
pub(super) fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    let mut next = Some(error);
    std::iter::from_fn(move || {
        let error = next?;
        next = error.source();
        Some(error)
    })
}

/// The part of an error that decides its response.
pub(super) fn fault_of<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Fault> {
    chain(error).find_map(|error| error.downcast_ref())
}

/// An error and its sources, in one line.
pub(super) struct Causes<'a>(pub(super) &'a (dyn Error + 'static));

impl fmt::Display for Causes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, error) in chain(self.0).enumerate() {
            write!(f, "{}{error}", if number == 0 { "" } else { ": " })?;
        }
        Ok(())
    }
}
