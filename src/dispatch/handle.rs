//! The response to a request: by middleware and its handler, or the error where there is none.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;

use super::middleware::{Call, Chain};
use super::request::Request;
use super::route::Route;
use super::router::RouteMatch;
use super::{Dispatch, Reply, Routed};
use crate::engine::Exchange;
#[cfg(feature = "files")]
use crate::http::conditional::Conditions;
use crate::http::fault::truncated_body;
use crate::http::head::Rejection;
use crate::http::response::Response;
use crate::text::{escaped, panic_message};

/// The methods of `Allow` where no route has any.
const USUAL_METHODS: &str = "GET, HEAD, POST, PUT, DELETE, OPTIONS, PATCH";

/// The head is larger than the route or the service allows.
const HEAD_TOO_LARGE: Rejection = Rejection { status: 431, reason: "the head is too large" };

impl Dispatch {
    /// Runs middleware and handler, or finds the response that needs no handler.
    pub(super) fn handle(&self, routed: Routed) -> Reply {
        let Routed { exchange, matched } = routed;
        let RouteMatch { route, handler, params, limits, allow, must_not_wait, .. } = matched;
        let rejection = exchange.head().err();
        if rejection.is_none() {
            exchange.expect_body();
        }
        let mut request = self.request(exchange, route, params, limits);
        let not_allowed =
            |allow: &str| Response::error(405, "Method Not Allowed").with_header("Allow", allow.to_owned());
        let max_head = limits.max_head.or(self.settings.max_head);
        let end = |request: &mut Request| match (rejection, &handler, &allow) {
            (Some(rejection), ..) => self.reject(request, rejection),
            _ if max_head.is_some_and(|max| head_size(request) > max) => self.reject(request, HEAD_TOO_LARGE),
            // RFC 9110, section 9.3.8: TRACE sends back what intermediaries have added, secrets included.
            (None, _, allow) if request.method() == "TRACE" => not_allowed(allow.as_deref().unwrap_or(USUAL_METHODS)),
            (None, Some(handler), _) => selected(handler(request), request),
            (None, None, Some(allow)) => not_allowed(allow),
            (None, None, None) => Response::error(404, "Not Found"),
        };
        let close = rejection.is_some();
        let response = if self.settings.around.is_empty() {
            self.guard(&mut request, &end)
        } else {
            // Middleware sees the 400 of a body that breaks off, too.
            let end = |request: &mut Request| {
                let response = end(request);
                self.with_whole_body(request, response, close)
            };
            self.run(&mut request, must_not_wait, &end)
        };
        Reply { request, response, close }
    }

    /// The response to a request that no worker is free for, on the thread that receives: nothing may wait here.
    pub(super) fn shed(&self, request: &mut Request) -> Response {
        self.run(request, true, &|_| Response::error(503, "too busy").with_header("Retry-After", "1"))
    }

    /// Runs the middleware, or only that which never waits, and then `end`.
    fn run(&self, request: &mut Request, must_not_wait: bool, end: &Call<'_>) -> Response {
        let guard = |request: &mut Request, call: &Call<'_>| self.guard(request, call);
        self.settings.around.run(request, Chain { must_not_wait, guard: &guard, end })
    }

    /// Reads the rest of the body, if that is small enough. Where it breaks off the request has not arrived whole: 400 or
    /// 408, also where the handler did not read it.
    pub(super) fn with_whole_body(&self, request: &mut Request, response: Response, close: bool) -> Response {
        if response.body().is_of_request() {
            if request.body_is_taken() {
                return response; // sending it reads the rest
            }
            log::error!("the response of {} has the body of another request", describe(request));
            let error = self.with_own_error(request, Response::from(500));
            return self.with_whole_body(request, error, close);
        }
        request.exchange_mut().consume_body(close);
        let body = request.exchange().body();
        if !body.truncated || response.status() >= 400 {
            return response;
        }
        self.stats.rejected.fetch_add(1, Ordering::Relaxed);
        self.with_own_error(request, truncated_body(body.timed_out))
    }

    fn reject(&self, request: &Request, rejection: Rejection) -> Response {
        self.stats.rejected.fetch_add(1, Ordering::Relaxed);
        if let Some(omitted) = self.stats.rejected_log.allow() {
            let (peer, status, reason) = (request.peer(), rejection.status, rejection.reason);
            log::info!("{peer} sent a bad request: {status}, {reason}{omitted}");
        }
        Response::error(rejection.status, rejection.reason)
    }

    /// Calls a handler or a middleware. Its panic is not the end of a member: it is caught, logged and counted, and the
    /// client gets a 500. An error response of this crate is replaced by the service's own.
    fn guard<F>(&self, request: &mut Request, call: &F) -> Response
    where
        F: Fn(&mut Request) -> Response + ?Sized,
    {
        let response = match catch_unwind(AssertUnwindSafe(|| call(request))) {
            Ok(mut response) => {
                if let Some(failure) = response.take_failure() {
                    let body = request.exchange().body();
                    // A parser may hide that the body failed, which is the client's fault: a client must not fill the
                    // log with errors.
                    let is_clients = body.truncated && response.status() == 500;
                    let level = if is_clients { log::Level::Info } else { failure.level };
                    log::log!(level, "the handler of {} failed: {}", describe(request), failure.reason);
                    if is_clients {
                        response = truncated_body(body.timed_out);
                    }
                }
                response
            }
            Err(payload) => {
                let message = panic_message(payload);
                self.count_panic(&format!("the handler of {} panicked: {message}", describe(request)));
                Response::error(500, "Internal Server Error")
            }
        };
        self.with_own_error(request, response)
    }

    /// The service's own response ([`on_error`](crate::Service::on_error)) in place of an error response of this crate;
    /// the latter if the service has none, or making it panics.
    fn with_own_error(&self, request: &Request, response: Response) -> Response {
        if !self.settings.around.replaces(&response) {
            return response;
        }
        match catch_unwind(AssertUnwindSafe(|| self.settings.around.replacement(request, &response))) {
            Ok(replacement) => replacement,
            Err(payload) => {
                let message = panic_message(payload);
                self.count_panic(&format!("the error response of {} panicked: {message}", describe(request)));
                response.finished()
            }
        }
    }

    /// Takes apart a request that no handler needs any more. Its extensions may panic when they are dropped.
    pub(super) fn end(&self, mut request: Request) -> (Exchange, String, Route) {
        for message in request.drop_extensions() {
            let of = describe(&request);
            self.count_panic(&format!("an extension of {of} panicked when it was dropped: {message}"));
        }
        request.into_parts()
    }

    fn count_panic(&self, what: &str) {
        self.stats.panics.fetch_add(1, Ordering::Relaxed);
        log::error!("{what}");
    }
}

/// The part of a response that the conditions and the range of the request select.
#[cfg(feature = "files")]
fn selected(response: Response, request: &Request) -> Response {
    if response.is_conditional && matches!(request.method(), "GET" | "HEAD") {
        response.select(&Conditions::new(request.method(), request.exchange().headers()))
    } else {
        response
    }
}

#[cfg(not(feature = "files"))]
fn selected(response: Response, _: &Request) -> Response {
    response
}

/// Bytes of a request's head, without those between its parts.
fn head_size(request: &Request) -> usize {
    let line = request.method().len() + request.target().len();
    request.exchange().headers().fold(line, |size, (name, value)| size + name.len() + value.len())
}

/// A request, for the log.
fn describe(request: &Request) -> String {
    let (method, target) = (escaped(request.method()), escaped(request.target()));
    format!("{method} {target} from {} (id {})", request.peer(), request.id())
}
