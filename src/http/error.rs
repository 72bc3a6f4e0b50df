//! The error of a handler, made by `?` from any other.

use std::error::Error;

use super::fault::{Causes, chain, fault_of};
use super::response::Response;
use super::status::reason_phrase;
use crate::crew::stop::{GraceExpired, GraceMark};

/// The error of a handler, made by `?` from any other: from all that implement `Error`, from `anyhow::Error`,
/// `Box<dyn Error + Send + Sync>`, and from text.
///
/// The client gets a bare 500; the log gets the error with all its sources, the request and its id. Errors that have a
/// response of their own keep it, also as the source of another error: [`StatusError`], [`BodyError`], an `io::Error`
/// from [`Request::body`], [`GraceExpired`], and any [`Response`].
///
/// [`StatusError`]: crate::StatusError
/// [`BodyError`]: crate::BodyError
/// [`Request::body`]: crate::Request::body
///
/// ```
/// use allout::{HandlerError, Response, Request};
///
/// fn store(request: &mut Request) -> Result<u16, HandlerError> {
///     let name = request.param("name").ok_or(Response::from(404))?; // the client's fault: 404
///     let path = std::path::Path::new("notes").join(name);
///     let text = request.text()?;                                // the client's fault: 413, 422
///     if text.is_empty() {
///         Err("an empty note")?;                                 // ours: 500, and a line in the log
///     }
///     std::fs::write(path, text).map_err(|error| HandlerError::new(507, error))?; // 507, and a line in the log
///     Ok(201)
/// }
/// ```
///
/// A closure that uses `?` needs a result type: `|request| -> Result<_, HandlerError> { … }`. An error type of the
/// program's own can be the error of a handler as well, if it says what the client gets:
///
/// ```
/// use allout::{Request, Response, Service};
///
/// enum ShopError {
///     SoldOut,
///     Database(std::io::Error),
/// }
///
/// impl From<ShopError> for Response {
///     fn from(error: ShopError) -> Response {
///         match error {
///             ShopError::SoldOut => (410, "sold out").into(),
///             ShopError::Database(cause) => Response::from(503).with_cause(cause), // the log has the cause
///         }
///     }
/// }
///
/// fn buy(_: &mut Request) -> Result<&'static str, ShopError> {
///     std::fs::read("/no/such/file").map_err(ShopError::Database)?;
///     Err(ShopError::SoldOut)
/// }
/// assert_eq!(Service::new().post("/buy", buy).handle(Request::post("/buy")).status(), 503);
/// ```
#[derive(Debug)]
pub struct HandlerError(Response);

impl HandlerError {
    /// An error with this status, and a cause for the log alone.
    ///
    /// ```
    /// use allout::HandlerError;
    /// fn charge() -> Result<(), HandlerError> {
    ///     std::fs::read("/no/such/file").map_err(|error| HandlerError::new(502, error))?; // the log has the cause
    ///     Ok(())
    /// }
    /// assert_eq!(charge().unwrap_err().status(), 502);
    /// ```
    pub fn new(status: u16, cause: impl Into<Box<dyn Error + Send + Sync>>) -> HandlerError {
        HandlerError(Response::from(status).with_cause(cause))
    }

    /// The status of its response.
    pub fn status(&self) -> u16 {
        self.0.status()
    }

    /// Its response.
    pub fn response(&self) -> &Response {
        &self.0
    }
}

impl<E: Into<Box<dyn Error + Send + Sync>>> From<E> for HandlerError {
    fn from(error: E) -> HandlerError {
        HandlerError(response_of(&*error.into()))
    }
}

impl Response {
    /// The same response with a cause for the log alone, which names the request and its id: at the level `error` for a
    /// status from 500 on, otherwise `info`.
    ///
    /// ```
    /// use allout::Response;
    /// let response = Response::text("come back later\n").with_status(503).with_cause("the database is being moved");
    /// ```
    pub fn with_cause(self, cause: impl Into<Box<dyn Error + Send + Sync>>) -> Response {
        let cause = cause.into();
        self.with_failure(&Causes(&*cause))
    }
}

/// The response of an error: its own, or a 500.
fn response_of(error: &(dyn Error + 'static)) -> Response {
    if let Some(fault) = fault_of(error) {
        return fault.to_response();
    }
    match chain(error).find_map(|error| error.downcast_ref::<GraceMark>()) {
        Some(_) => Response::from(GraceExpired),
        None => Response::error(500, reason_phrase(500)).with_failure(&Causes(error)),
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

macro_rules! from_error {
    ($($(#[$condition:meta])? $error:ty => $as_error:expr;)*) => {
        $(
            /// As `?` in a handler makes it: 500, unless the error has a response of its own.
            $(#[$condition])?
            impl From<$error> for Response {
                fn from(error: $error) -> Response {
                    response_of($as_error(&error))
                }
            }
        )*
    };
}

from_error! {
    Box<dyn Error + Send + Sync> => AsRef::as_ref;
    Box<dyn Error> => AsRef::as_ref;
    std::io::Error => std::convert::identity;
    #[cfg(feature = "anyhow")] anyhow::Error => AsRef::as_ref;
}

/// 503 and `Retry-After`: the service is stopping.
impl From<GraceExpired> for Response {
    fn from(_: GraceExpired) -> Response {
        Response::error(503, "stopping").with_header("Retry-After", "1")
    }
}

/// JSON is in this file because [`Response::json`] fails with a [`HandlerError`].
#[cfg(feature = "json")]
impl Response {
    /// 200, with `value` as JSON.
    ///
    /// ```
    /// use allout::{HandlerError, Response};
    ///
    /// #[derive(serde::Serialize)]
    /// struct Item {
    ///     name: String,
    /// }
    ///
    /// let response = Response::json(&Item { name: "tea".to_owned() })?;
    /// assert_eq!(response.content_type(), Some("application/json"));
    /// assert_eq!(response.into_text().unwrap(), r#"{"name":"tea"}"#);
    /// # Ok::<(), HandlerError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// The value cannot be written as JSON (a map whose keys are no strings, for example).
    pub fn json(value: &impl serde::Serialize) -> Result<Response, HandlerError> {
        let bytes = serde_json::to_vec(value)?;
        Ok(Response::new(bytes).with_header("Content-Type", "application/json"))
    }

    /// The whole body, read as JSON: for tests.
    ///
    /// ```
    /// use allout::{Request, Response, Service};
    /// let service = Service::new().get("/prices", |_| Response::json(&[1, 2]));
    /// let prices: Vec<u32> = service.handle(Request::get("/prices")).into_json()?;
    /// assert_eq!(prices, [1, 2]);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`into_bytes`](Response::into_bytes); [`InvalidData`](std::io::ErrorKind::InvalidData) if it is not JSON,
    /// or not of this type.
    pub fn into_json<T: serde::de::DeserializeOwned>(self) -> std::io::Result<T> {
        Ok(serde_json::from_slice(&self.into_bytes()?)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::fault::{BodyError, StatusError, mark_truncated_body};
    use log::Level;
    use std::{fmt, io};

    fn fails<E: Into<HandlerError>>(error: E) -> Response {
        error.into().into()
    }

    fn logged(response: &Response) -> Option<(Level, &str)> {
        response.failure.as_ref().map(|failure| (failure.level, failure.reason.as_str()))
    }

    fn broken(kind: io::ErrorKind) -> io::Error {
        mark_truncated_body(&io::Error::new(kind, "as the test wants it"))
    }

    /// An error with another as its source.
    #[derive(Debug)]
    struct Outer<E>(E);

    impl<E> fmt::Display for Outer<E> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("cannot save")
        }
    }

    impl<E: Error + 'static> Error for Outer<E> {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(&self.0)
        }
    }

    /// Shows the sources of an error and not the error itself, as what `anyhow` turns into does.
    #[derive(Debug)]
    struct Hides<E>(E);

    impl<E: fmt::Display> fmt::Display for Hides<E> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            self.0.fmt(f)
        }
    }

    impl<E: Error> Error for Hides<E> {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            self.0.source()
        }
    }

    #[test]
    fn any_error_is_a_500_that_the_log_has_with_its_sources() {
        let response = fails(Outer(io::Error::other("the disk is gone")));
        assert_eq!(response.status(), 500);
        assert_eq!(logged(&response), Some((Level::Error, "cannot save: the disk is gone")));
        assert_eq!(response.into_text().unwrap(), "500 Internal Server Error\n");
        let boxed: Box<dyn Error + Send + Sync> = Box::new(Outer(fmt::Error));
        for response in [fails("a text"), fails("a text".to_owned()), fails(boxed)] {
            let reason = response.failure.as_ref().unwrap().reason.as_str();
            assert!(
                response.status() == 500 && (reason == "a text" || reason.starts_with("cannot save: ")),
                "{reason}"
            );
        }
    }

    type Make = fn() -> Box<dyn Error + Send + Sync>;

    #[test]
    fn errors_with_a_response_of_their_own_keep_it_whatever_wraps_them() {
        let rows: [(Make, u16); 8] = [
            (|| BodyError::TooLarge.into(), 413),
            (|| BodyError::malformed("no UTF-8").into(), 422),
            (|| GraceExpired.into(), 503),
            (|| StatusError::new(409, "taken").into(), 409),
            (|| Hides(BodyError::TooLarge).into(), 413),
            (|| Hides(BodyError::Broken(broken(io::ErrorKind::TimedOut))).into(), 408),
            (|| Hides(GraceExpired).into(), 503),
            (|| Hides(StatusError::new(409, "taken")).into(), 409),
        ];
        for (make, status) in rows {
            assert_eq!(fails(make()).status(), status);
            assert_eq!(Response::from(make()).status(), status);
            assert_eq!(Response::from(make() as Box<dyn Error>).status(), status);
            assert_eq!(
                fails(io::Error::other(Outer(Hides(io::Error::other(StatusError::new(418, "")))))).status(),
                418
            );
        }
        let response = fails(Response::from(404));
        assert_eq!((response.status(), logged(&response)), (404, None));
    }

    #[test]
    fn a_status_and_a_cause_go_together_and_only_the_log_gets_the_cause() {
        let cause = || io::Error::other("the disk is gone");
        let conflict = fails(StatusError::new(409, "taken").with_cause(Outer(cause())));
        assert_eq!(logged(&conflict), Some((Level::Info, "taken: cannot save: the disk is gone")));
        assert_eq!(conflict.into_text().unwrap(), "409 taken\n");
        let upstream = fails(HandlerError::new(502, cause()));
        assert_eq!((upstream.status(), logged(&upstream)), (502, Some((Level::Error, "the disk is gone"))));
        assert_eq!(upstream.into_text().unwrap(), "502 Bad Gateway\n");
        assert_eq!(logged(&fails(StatusError::new(503, "full"))), Some((Level::Error, "full")));
        assert_eq!(StatusError::new(200, "").status(), 500);
        let own = Response::html("<p>").with_status(500).with_cause("a text");
        assert_eq!(logged(&own), Some((Level::Error, "a text")));
    }

    #[test]
    fn a_body_that_breaks_off_is_the_clients_fault_however_it_is_read() {
        for (kind, status, message) in [
            (io::ErrorKind::UnexpectedEof, 400, "the body broke off"),
            (io::ErrorKind::InvalidData, 400, "the body broke off"),
            (io::ErrorKind::ConnectionReset, 400, "the body broke off"),
            (io::ErrorKind::TimedOut, 408, "the body did not come in time"),
        ] {
            assert_eq!(broken(kind).kind(), kind);
            let responses = [
                fails(broken(kind)),
                fails(BodyError::Broken(broken(kind))),
                Response::from(BodyError::Broken(broken(kind))),
                Response::from(broken(kind)),
                fails(io::Error::other(broken(kind))),
            ];
            for response in responses {
                let reason = format!("{message}: as the test wants it");
                assert_eq!((response.status(), logged(&response)), (status, Some((Level::Info, reason.as_str()))));
            }
        }
    }

    #[cfg(feature = "anyhow")]
    #[test]
    fn anyhow_keeps_the_response_too() {
        let wrapped = |error: anyhow::Error| error.context("cannot save").context("cannot answer");
        for error in [|| anyhow::Error::from(BodyError::TooLarge), || StatusError::new(413, "").into()] {
            assert_eq!(fails(error()).status(), 413);
            assert_eq!(fails(wrapped(error())).status(), 413);
            assert_eq!(Response::from(wrapped(error())).status(), 413);
        }
        let response = fails(wrapped(anyhow::anyhow!("the disk is gone")));
        let reason = "cannot answer: cannot save: the disk is gone";
        assert_eq!((response.status(), logged(&response)), (500, Some((Level::Error, reason))));
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
