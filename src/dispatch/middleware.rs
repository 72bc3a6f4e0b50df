//! Middleware, and the bodies of this crate's own errors.

use std::fmt;
use std::sync::Arc;

use super::request::Request;
use crate::http::response::Response;

/// Answers a request by itself, or by calling the next.
type Middleware = Arc<dyn Fn(&mut Request, Next<'_>) -> Response + Send + Sync>;

/// Makes the response to an error of this crate.
type ErrorResponse = Arc<dyn Fn(&Request, ErrorInfo<'_>) -> Response + Send + Sync>;

/// One middleware.
#[derive(Clone)]
struct Layer {
    run: Middleware,
    /// Whether it never waits, so that it may run on the thread that receives.
    inline: bool,
}

/// All middleware, the outermost first, and the function that makes error responses.
#[derive(Clone, Default)]
pub(crate) struct Around {
    layers: Vec<Layer>,
    on_error: Option<ErrorResponse>,
}

/// The rest of the chain: the middleware that was added after this one, then the handler.
///
/// Without a handler it answers 404 or 405, or says why the request is rejected.
#[must_use = "without `run` the request never reaches its handler"]
pub struct Next<'a> {
    layers: &'a [Layer],
    chain: Chain<'a>,
}

/// A middleware with the rest of the chain, or a handler.
pub(super) type Call<'a> = dyn Fn(&mut Request) -> Response + 'a;

/// How the chain of middleware and handler runs.
#[derive(Clone, Copy)]
pub(super) struct Chain<'a> {
    /// Whether to leave out the middleware that may wait.
    pub(super) must_not_wait: bool,
    /// Runs a middleware or the handler: its panic is a 500.
    pub(super) guard: &'a dyn Fn(&mut Request, &Call<'_>) -> Response,
    /// The handler, or the error if there is none.
    pub(super) end: &'a Call<'a>,
}

impl fmt::Debug for Next<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Next").field("layers", &self.layers.len()).finish_non_exhaustive()
    }
}

impl Next<'_> {
    /// Runs the rest of the chain, and returns its response. A panic there is a 500 here.
    ///
    /// ```
    /// use allout::{Request, Service};
    ///
    /// let service = Service::new().around(|request, next| {
    ///     let response = next.run(request);
    ///     if response.status() == 404 { (404, "nothing is here\n").into() } else { response }
    /// });
    /// assert_eq!(service.handle(Request::get("/none")).into_text()?, "nothing is here\n");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn run(self, request: &mut Request) -> Response {
        let Next { layers, chain } = self;
        match layers.iter().position(|layer| layer.inline || !chain.must_not_wait) {
            Some(at) => {
                let next = |request: &mut Request| (layers[at].run)(request, Next { layers: &layers[at + 1..], chain });
                (chain.guard)(request, &next)
            }
            None => (chain.guard)(request, chain.end),
        }
    }
}

/// An error that this crate answers by itself: no such route, for example.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct ErrorInfo<'a> {
    /// The status of the response.
    pub status: u16,
    /// The text for the client unless [`on_error`](crate::Service::on_error) makes another: `Not Found`,
    /// `the body is too large`. Never the cause of a 500.
    pub reason: &'a str,
}

impl Around {
    /// Adds a middleware within those that were added before.
    pub(crate) fn add(
        &mut self,
        inline: bool,
        run: impl Fn(&mut Request, Next<'_>) -> Response + Send + Sync + 'static,
    ) {
        self.layers.push(Layer { run: Arc::new(run), inline });
    }

    pub(crate) fn set_on_error(&mut self, make: impl Fn(&Request, ErrorInfo<'_>) -> Response + Send + Sync + 'static) {
        self.on_error = Some(Arc::new(make));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.layers.is_empty()
    }

    /// True if no middleware waits.
    pub(super) fn is_inline(&self) -> bool {
        self.layers.iter().all(|layer| layer.inline)
    }

    /// Runs the middleware and then the handler.
    pub(super) fn run(&self, request: &mut Request, chain: Chain<'_>) -> Response {
        Next { layers: &self.layers, chain }.run(request)
    }

    /// True if the service has its own response in place of this one.
    pub(super) fn replaces(&self, response: &Response) -> bool {
        self.on_error.is_some() && response.own_reason().is_some()
    }

    /// The service's own response in place of this one, if it has one. Runs the service's code, which may panic.
    pub(super) fn replacement(&self, request: &Request, error: &Response) -> Response {
        let (status, reason) = (error.status(), error.own_reason().unwrap_or_default());
        let Some(make) = &self.on_error else { return Response::from(status) };
        let mut response = make(request, ErrorInfo { status, reason }).with_status(status).finished();
        // `Allow` and `Retry-After` are part of the error.
        for (name, value) in error.headers() {
            if !name.eq_ignore_ascii_case("content-type") && response.header(name).is_none() {
                response.append_header(name.to_owned(), value.to_owned());
            }
        }
        response
    }
}
