//! The routes of a service.

use std::sync::Arc;

use crate::dispatch::limits::Limits;
use crate::dispatch::request::Request;
use crate::dispatch::router::Handler;
use crate::http::response::Response;
use crate::service::Service;
use crate::service::error::StartError;

/// # Routes
impl Service {
    /// Answers `GET` (and `HEAD`) on `path`, which may have parameters: `/hello/{name}`, `/files/{*path}`.
    ///
    /// The handler runs on a worker's thread, so that it may wait. A path that cannot be, or is taken, keeps the service
    /// from starting.
    pub fn get<R: Into<Response>>(
        self,
        path: &str,
        handler: impl Fn(&mut Request) -> R + Send + Sync + 'static,
    ) -> Service {
        self.route("GET", path, handler)
    }

    /// Answers `POST` on `path`; see [`get`](Service::get).
    pub fn post<R: Into<Response>>(
        self,
        path: &str,
        handler: impl Fn(&mut Request) -> R + Send + Sync + 'static,
    ) -> Service {
        self.route("POST", path, handler)
    }

    /// Answers `PUT` on `path`; see [`get`](Service::get).
    pub fn put<R: Into<Response>>(
        self,
        path: &str,
        handler: impl Fn(&mut Request) -> R + Send + Sync + 'static,
    ) -> Service {
        self.route("PUT", path, handler)
    }

    /// Answers `PATCH` on `path`; see [`get`](Service::get).
    pub fn patch<R: Into<Response>>(
        self,
        path: &str,
        handler: impl Fn(&mut Request) -> R + Send + Sync + 'static,
    ) -> Service {
        self.route("PATCH", path, handler)
    }

    /// Answers `DELETE` on `path`; see [`get`](Service::get).
    pub fn delete<R: Into<Response>>(
        self,
        path: &str,
        handler: impl Fn(&mut Request) -> R + Send + Sync + 'static,
    ) -> Service {
        self.route("DELETE", path, handler)
    }

    /// Answers this method, in capitals, on `path`; see [`get`](Service::get).
    pub fn route<R: Into<Response>>(
        self,
        method: &str,
        path: &str,
        handler: impl Fn(&mut Request) -> R + Send + Sync + 'static,
    ) -> Service {
        self.add(method, path, false, erase(handler))
    }

    /// As [`route`](Service::route), for a handler that is *quick*: it never waits, for nothing and nobody, and is done
    /// in microseconds. It runs where the request was received, which saves a hop between threads. While a quick handler
    /// runs nothing else is received; one that waits holds up the whole service.
    pub fn inline_route<R: Into<Response>>(
        self,
        method: &str,
        path: &str,
        handler: impl Fn(&mut Request) -> R + Send + Sync + 'static,
    ) -> Service {
        self.add(method, path, true, erase(handler))
    }

    /// Answers every path that no route claims, whatever the method. Without it such paths are 404.
    pub fn fallback<R: Into<Response>>(
        mut self,
        handler: impl Fn(&mut Request) -> R + Send + Sync + 'static,
    ) -> Service {
        self.routes.set_fallback(false, erase(handler));
        self
    }

    /// As [`fallback`](Service::fallback), for a handler that is [quick](Service::inline_route).
    pub fn inline_fallback<R: Into<Response>>(
        mut self,
        handler: impl Fn(&mut Request) -> R + Send + Sync + 'static,
    ) -> Service {
        self.routes.set_fallback(true, erase(handler));
        self
    }

    /// Sets limits for all methods of `path`, which has a route already, or for the fallback (`"*"`), in place of those of the
    /// service.
    ///
    /// ```
    /// use allout::{HandlerError, Limits, Service};
    ///
    /// let service = Service::new()
    ///     .post("/photos", |request| -> Result<u16, HandlerError> {
    ///         std::fs::write("photo.jpg", request.bytes()?)?;
    ///         Ok(201)
    ///     })
    ///     .limits("/photos", Limits::new().max_body(20 << 20));
    /// ```
    pub fn limits(mut self, path: &str, limits: Limits) -> Service {
        if let Err(error) = self.routes.set_limits(path, limits) {
            self.refuse(StartError::Route(error));
        }
        self
    }

    fn add(mut self, method: &str, path: &str, inline: bool, handler: Handler) -> Service {
        if let Err(error) = self.routes.add(method, path, inline, handler) {
            self.refuse(StartError::Route(error));
        }
        self
    }
}

fn erase<R: Into<Response>>(handler: impl Fn(&mut Request) -> R + Send + Sync + 'static) -> Handler {
    Arc::new(move |request| handler(request).into())
}
