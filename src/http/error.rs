//! The errors of a handler, and the responses that they become.

use std::error::Error;
use std::fmt;
use std::io;

use log::Level;

use super::response::Response;
use super::status::reason_phrase;
use crate::crew::stop::GraceExpired;

/// Why a body could not be read. It turns into a response: 413, 408, 400 or 422, with a short text.
#[derive(Debug)]
#[non_exhaustive]
pub enum BodyError {
    /// It is larger than the limit.
    TooLarge,
    /// It ended early, broke its framing, or stopped coming for longer than the request timeout; then the kind of the error
    /// is [`TimedOut`](io::ErrorKind::TimedOut).
    Broken(io::Error),
    /// It is not what was asked for: not UTF-8, or not JSON of the expected form.
    Malformed(String),
    /// It is of another content type than this one.
    WrongType(&'static str),
}

/// A parameter or query that is not what was asked for. It turns into a response: 404 or 400, with the reason.
#[derive(Debug)]
pub struct ParamError {
    status: u16,
    reason: String,
}

impl ParamError {
    pub(crate) fn not_found(reason: impl Into<String>) -> ParamError {
        ParamError { status: 404, reason: reason.into() }
    }

    #[cfg(feature = "serde")]
    pub(crate) fn bad_request(reason: impl Into<String>) -> ParamError {
        ParamError { status: 400, reason: reason.into() }
    }

    fn to_response(&self) -> Response {
        Response::error(self.status, self.reason.clone())
    }
}

impl fmt::Display for ParamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl Error for ParamError {}

impl From<ParamError> for Response {
    fn from(error: ParamError) -> Response {
        error.to_response()
    }
}

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BodyError::TooLarge => f.write_str("the body is too large"),
            BodyError::Broken(error) => error.fmt(f),
            BodyError::WrongType(expected) => write!(f, "the body is not {expected}"),
            BodyError::Malformed(reason) => write!(f, "the body is malformed: {reason}"),
        }
    }
}

impl Error for BodyError {}

impl BodyError {
    fn to_response(&self) -> Response {
        match self {
            BodyError::TooLarge => Response::error(413, "the body is too large"),
            BodyError::Broken(error) => broken_body(error.kind() == io::ErrorKind::TimedOut, error.to_string()),
            BodyError::WrongType(expected) => Response::error(415, format!("the body is not {expected}")),
            BodyError::Malformed(reason) => Response::error(422, reason.clone()),
        }
    }
}

impl From<BodyError> for Response {
    fn from(error: BodyError) -> Response {
        error.to_response()
    }
}

/// The response to a request whose body broke off. The client is at fault, so that the log has it at the level info.
pub(crate) fn broken_body(timed_out: bool, reason: String) -> Response {
    let response = if timed_out {
        Response::error(408, "the body did not come in time")
    } else {
        Response::error(400, "the body broke off")
    };
    response.with_failure(Level::Info, reason)
}

/// What the errors of a body's reader carry, so that they become a 400 or 408 also where `?` turns them into a
/// [`HandlerError`], alone or as the source of another error.
#[derive(Debug)]
struct BrokenBody {
    timed_out: bool,
    reason: String,
}

impl fmt::Display for BrokenBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the body broke off: {}", self.reason)
    }
}

impl Error for BrokenBody {}

/// A [`BrokenBody`] inside an `io::Error`. It names the mark as its source, because `io::Error::source`, and the `source` of
/// errors that wrap an `io::Error` (`serde_json::Error`), begin below the value that the `io::Error` holds.
#[derive(Debug)]
struct Marked(BrokenBody);

impl fmt::Display for Marked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Error for Marked {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.0)
    }
}

/// The error that a body's reader gives to a handler: of the same kind, and marked as the client's fault.
pub(crate) fn mark_broken_body(error: &io::Error) -> io::Error {
    let timed_out = error.kind() == io::ErrorKind::TimedOut;
    io::Error::new(error.kind(), Marked(BrokenBody { timed_out, reason: error.to_string() }))
}

/// The error of a handler, made by `?` from any other.
///
/// The client is told nothing about it but 500; the log gets it with all its sources, the request and its id.
/// Errors that have a response of their own keep it, also as the source of another error: [`BodyError`], an `io::Error` from
/// [`Request::body`](crate::Request::body), [`GraceExpired`], and any [`Response`].
///
/// ```
/// use allout::{HandlerError, Response, Request};
///
/// fn store(request: &mut Request) -> Result<u16, HandlerError> {
///     let name = request.param("name").ok_or(Response::from(404))?; // the client's fault: 404
///     let path = std::path::Path::new("notes").join(name);
///     let text = request.text()?;                                // the client's fault: 413, 422
///     std::fs::write(path, text)?;                               // ours: 500, and a line in the log
///     Ok(201)
/// }
/// ```
#[derive(Debug)]
pub struct HandlerError(Response);

impl<E: Error + 'static> From<E> for HandlerError {
    fn from(error: E) -> HandlerError {
        HandlerError(chain(&error).find_map(response_of).unwrap_or_else(|| {
            let reason: Vec<String> = chain(&error).map(ToString::to_string).collect();
            Response::error(500, reason_phrase(500)).with_failure(Level::Error, reason.join(": "))
        }))
    }
}

/// An error, its source, the source of that, and so on.
fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    let mut next = Some(error);
    std::iter::from_fn(move || {
        let error = next?;
        next = error.source();
        Some(error)
    })
}

/// The response of an error that has one of its own.
fn response_of(error: &(dyn Error + 'static)) -> Option<Response> {
    if let Some(error) = error.downcast_ref::<BodyError>() {
        Some(error.to_response())
    } else if let Some(error) = error.downcast_ref::<ParamError>() {
        Some(error.to_response())
    } else if let Some(broken) = error.downcast_ref::<BrokenBody>() {
        Some(broken_body(broken.timed_out, broken.to_string()))
    } else {
        error.downcast_ref::<GraceExpired>().map(|expired| Response::from(*expired))
    }
}

impl From<Response> for HandlerError {
    fn from(response: Response) -> HandlerError {
        HandlerError(response)
    }
}

impl From<HandlerError> for Response {
    fn from(error: HandlerError) -> Response {
        error.0
    }
}

/// 503 and `Retry-After`: the service is stopping.
impl From<GraceExpired> for Response {
    fn from(_: GraceExpired) -> Response {
        Response::error(503, "stopping").with_header("Retry-After", "1")
    }
}

/// Here, because it fails with a [`HandlerError`].
#[cfg(feature = "json")]
impl Response {
    /// 200, with `value` as JSON.
    ///
    /// # Errors
    ///
    /// The value cannot be written as JSON (a map whose keys are no strings, for example).
    pub fn json(value: &impl serde::Serialize) -> Result<Response, HandlerError> {
        let bytes = serde_json::to_vec(value)?;
        Ok(Response::new(bytes).with_header("Content-Type", "application/json"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fails<E: Into<HandlerError>>(error: E) -> Response {
        error.into().into()
    }

    fn level(response: &Response) -> Option<Level> {
        response.failure.as_ref().map(|failure| failure.level)
    }

    fn broken(kind: io::ErrorKind) -> io::Error {
        mark_broken_body(&io::Error::new(kind, "as the test wants it"))
    }

    #[test]
    fn any_error_is_a_500_that_the_log_has_with_its_sources() {
        #[derive(Debug)]
        struct Outer(io::Error);
        impl fmt::Display for Outer {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("cannot save")
            }
        }
        impl Error for Outer {
            fn source(&self) -> Option<&(dyn Error + 'static)> {
                Some(&self.0)
            }
        }
        let response = fails(Outer(io::Error::other("the disk is gone")));
        let failure = response.failure.as_ref().unwrap();
        assert_eq!((response.status(), failure.level), (500, Level::Error));
        assert_eq!(failure.reason, "cannot save: the disk is gone");
        assert_eq!(response.body().as_bytes(), Some(&b"500 Internal Server Error\n"[..]));
    }

    #[test]
    fn errors_with_a_response_of_their_own_keep_it() {
        assert_eq!(fails(BodyError::TooLarge).status(), 413);
        assert_eq!(fails(BodyError::Malformed("no UTF-8".to_owned())).status(), 422);
        assert_eq!(fails(GraceExpired).status(), 503);
        assert_eq!(fails(io::Error::other(GraceExpired)).status(), 500, "its source is not shown by io::Error");
        let response = fails(Response::from(404));
        assert_eq!((response.status(), level(&response)), (404, None));
    }

    #[test]
    fn a_body_that_breaks_off_is_the_clients_fault_however_it_is_read() {
        for (kind, status) in [
            (io::ErrorKind::UnexpectedEof, 400),
            (io::ErrorKind::InvalidData, 400),
            (io::ErrorKind::ConnectionReset, 400),
            (io::ErrorKind::TimedOut, 408),
        ] {
            assert_eq!(broken(kind).kind(), kind);
            let responses = [
                fails(broken(kind)),
                fails(BodyError::Broken(broken(kind))),
                Response::from(BodyError::Broken(broken(kind))),
                fails(io::Error::other(broken(kind))),
            ];
            for response in responses {
                assert_eq!((response.status(), level(&response)), (status, Some(Level::Info)), "{kind}");
                let reason = &response.failure.as_ref().unwrap().reason;
                assert_eq!(reason, "the body broke off: as the test wants it");
            }
        }
    }

    #[cfg(feature = "json")]
    #[test]
    fn a_body_that_breaks_off_below_a_parser_is_the_clients_fault() {
        struct Breaks;
        impl io::Read for Breaks {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(broken(io::ErrorKind::TimedOut))
            }
        }
        let error = serde_json::from_reader::<_, u8>(Breaks).unwrap_err();
        assert_eq!(fails(error).status(), 408);
    }
}
