//! The headers that the service adds to every response.

use super::validate::is_token;

/// The headers that every response gets, besides `Date` and those that frame it.
///
/// ```
/// use allout::{AutomaticHeaders, Service};
///
/// let service = Service::new().automatic_headers(AutomaticHeaders::new().server("shop").nosniff(false));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AutomaticHeaders {
    server: Option<String>,
    nosniff: bool,
    request_id: bool,
}

impl Default for AutomaticHeaders {
    fn default() -> AutomaticHeaders {
        AutomaticHeaders::new()
    }
}

impl AutomaticHeaders {
    /// `Server: allout`, `X-Content-Type-Options: nosniff`, and `X-Request-Id`.
    pub fn new() -> AutomaticHeaders {
        AutomaticHeaders { server: Some("allout".to_owned()), nosniff: true, request_id: true }
    }

    /// Sets the value of `Server`: a product, perhaps with its version (RFC 9110, section 10.2.4).
    ///
    /// ```
    /// use allout::{AutomaticHeaders, Service};
    /// let service = Service::new().automatic_headers(AutomaticHeaders::new().server("shop/1.0"));
    /// ```
    #[must_use]
    pub fn server(mut self, product: impl Into<String>) -> AutomaticHeaders {
        self.server = Some(product.into());
        self
    }

    /// Leaves `Server` out.
    #[must_use]
    pub fn without_server(mut self) -> AutomaticHeaders {
        self.server = None;
        self
    }

    /// Sends `X-Content-Type-Options: nosniff`, or not. With it browsers do not guess another type than `Content-Type`
    /// says.
    ///
    /// ```
    /// let headers = allout::AutomaticHeaders::new().nosniff(false);
    /// ```
    #[must_use]
    pub fn nosniff(mut self, on: bool) -> AutomaticHeaders {
        self.nosniff = on;
        self
    }

    /// Sends `X-Request-Id` with the id that the log has, or not.
    ///
    /// ```
    /// let headers = allout::AutomaticHeaders::new().request_id(false);
    /// ```
    #[must_use]
    pub fn request_id(mut self, on: bool) -> AutomaticHeaders {
        self.request_id = on;
        self
    }

    /// The headers as they are sent. Those other than the default are leaked, once for each service.
    /// Errors: the value of `Server` cannot be sent.
    pub(crate) fn build(self) -> Result<HeaderLines, String> {
        if self == AutomaticHeaders::new() {
            return Ok(HeaderLines::DEFAULT);
        }
        let mut lines = String::new();
        if let Some(server) = &self.server {
            let is_product =
                server.split([' ', '/', '(', ')', ';']).all(|word| word.is_empty() || is_token(word.as_bytes()));
            if !is_product || server.is_empty() {
                return Err(format!("{server:?} is no value of Server"));
            }
            lines.push_str("\r\nServer: ");
            lines.push_str(server);
        }
        if self.nosniff {
            lines.push_str("\r\nX-Content-Type-Options: nosniff");
        }
        Ok(HeaderLines { lines: String::leak(lines), request_id: self.request_id })
    }
}

/// The automatic headers, ready to be sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeaderLines {
    /// The lines, each with a line break before it.
    pub(crate) lines: &'static str,
    /// Whether the id of the request is sent as well.
    pub(crate) request_id: bool,
}

impl HeaderLines {
    /// The headers of [`AutomaticHeaders::new`].
    pub(crate) const DEFAULT: HeaderLines =
        HeaderLines { lines: "\r\nServer: allout\r\nX-Content-Type-Options: nosniff", request_id: true };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_changed_and_left_out() {
        let lines = |headers: AutomaticHeaders| headers.build().map(|built| (built.lines, built.request_id));
        assert_eq!(
            lines(AutomaticHeaders::new().server("a/1.0 (b)")),
            Ok(("\r\nServer: a/1.0 (b)\r\nX-Content-Type-Options: nosniff", true))
        );
        assert_eq!(lines(AutomaticHeaders::new().without_server().nosniff(false).request_id(false)), Ok(("", false)));
        assert_eq!(lines(AutomaticHeaders::new().server("allout")), Ok((HeaderLines::DEFAULT.lines, true)));
    }

    #[test]
    fn no_server_can_break_a_line() {
        for server in ["", "a\r\nX: y", "ü", "a\tb"] {
            assert!(AutomaticHeaders::new().server(server).build().is_err(), "{server:?}");
        }
    }
}
