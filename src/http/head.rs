//! The head of a valid request: version, framing of the body, and whether the connection closes.

/// The version in which a request was sent, and in which it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    /// HTTP/1.0: no chunked coding, no `100 Continue`, and a connection closes unless it was asked to stay.
    Http10,
    /// HTTP/1.1, and any later minor version (RFC 9110, section 2.5).
    Http11,
}

/// The framing of a request's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// There is no body.
    None,
    /// `Content-Length`, in bytes, more than 0.
    Length(u64),
    /// `Transfer-Encoding: chunked`.
    Chunked,
}

/// The facts of a valid head that the connection and the body depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RequestHead {
    pub(crate) version: Version,
    pub(crate) framing: Framing,
    /// The connection closes after the response: `Connection: close`, or HTTP/1.0 without `keep-alive`.
    pub(crate) close: bool,
    /// An HTTP/1.0 client asked to keep the connection: the response confirms it with `Connection: keep-alive`.
    pub(crate) keep_alive: bool,
    /// The client sends the body after a `100 Continue`. Never true for HTTP/1.0, which must not be sent one
    /// (RFC 9110, section 15.2), nor without a body.
    pub(crate) expect_continue: bool,
}

/// Why a request is rejected: the status of the response, and a reason for the client and the log. The connection closes
/// after the response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rejection {
    pub(crate) status: u16,
    pub(crate) reason: &'static str,
}

/// The methods with a metric label of their own; all others share the last label.
pub(crate) const METHODS: [&str; 10] =
    ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "CONNECT", "TRACE", "other"];

/// The method as a metric label: one of [`METHODS`], whatever the client sent.
pub(crate) fn method_label(method: &str) -> &'static str {
    METHODS.iter().find(|known| **known == method).unwrap_or(&METHODS[METHODS.len() - 1])
}
