//! The limits of a single route.

use std::time::Duration;

/// Limits of one route; where a limit is not set, that of the service holds.
///
/// ```
/// use std::time::Duration;
/// let uploads = allout::Limits::new().max_body(1 << 30).request_timeout(Duration::from_secs(300));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    pub(crate) max_head: Option<usize>,
    pub(crate) max_body: Option<u64>,
    pub(crate) request_timeout: Option<Duration>,
}

impl Limits {
    /// Sets no limit: all are those of the service.
    pub fn new() -> Limits {
        Limits::default()
    }

    /// Most bytes of a request's head: of its method, its target, and the names and values of its headers. Beyond it the
    /// answer is 431. No head has more than about 64 KiB in any case.
    ///
    /// ```
    /// let limits = allout::Limits::new().max_head(4 * 1024);
    /// ```
    #[must_use]
    pub fn max_head(mut self, bytes: usize) -> Limits {
        self.max_head = Some(bytes);
        self
    }

    /// Most bytes of a body that [`bytes`](crate::Request::bytes), [`text`](crate::Request::text) and the like read.
    ///
    /// ```
    /// let limits = allout::Limits::new().max_body(20 << 20);
    /// ```
    #[must_use]
    pub fn max_body(mut self, bytes: u64) -> Limits {
        self.max_body = Some(bytes);
        self
    }

    /// The request timeout: time for the handler, and for a body to make progress.
    ///
    /// ```
    /// let limits = allout::Limits::new().request_timeout(std::time::Duration::from_secs(5));
    /// ```
    #[must_use]
    pub fn request_timeout(mut self, timeout: Duration) -> Limits {
        self.request_timeout = Some(timeout);
        self
    }
}
