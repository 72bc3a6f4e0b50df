//! The methods that add routes and middleware to a service.

use std::sync::Arc;

use crate::dispatch::limits::Limits;
use crate::dispatch::middleware::{ErrorInfo, Next};
use crate::dispatch::request::Request;
use crate::dispatch::router::Handler;
use crate::http::response::Response;
use crate::service::Service;
use crate::service::error::StartError;

/// # Routes
impl Service {
    /// Answers `GET` (and `HEAD`) on `path`, which may have parameters: `/hello/{name}`, `/files/{*path}`.
    ///
    /// The handler runs on a worker's thread, so that it may wait. It returns anything that [`Response`] is made from,
    /// and a `Result` of such things; what it borrows from the request is copied for that. Handlers share state by
    /// [`with_state`](crate::with_state). An invalid path, or one that has a handler for the method already, keeps the
    /// service from starting.
    ///
    /// ```
    /// use allout::{Request, Service};
    /// let service = Service::new().get("/hello/{name}", |request| format!("hello, {}", request.param("name").unwrap_or("you")));
    /// assert_eq!(service.handle(Request::get("/hello/Ada")).into_text()?, "hello, Ada");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn get<R: Into<Response>>(
        self,
        path: &str,
        handler: impl Fn(&mut Request) -> R + Send + Sync + 'static,
    ) -> Service {
        self.route("GET", path, handler)
    }

    /// Answers `POST` on `path`; see [`get`](Service::get).
    ///
    /// ```
    /// let service = allout::Service::new().post("/echo", allout::Request::text);
    /// ```
    pub fn post<R: Into<Response>>(
        self,
        path: &str,
        handler: impl Fn(&mut Request) -> R + Send + Sync + 'static,
    ) -> Service {
        self.route("POST", path, handler)
    }

    /// Answers `PUT` on `path`; see [`get`](Service::get).
    ///
    /// ```
    /// let service = allout::Service::new().put("/state", |request| request.bytes().map(|_| 204));
    /// ```
    pub fn put<R: Into<Response>>(
        self,
        path: &str,
        handler: impl Fn(&mut Request) -> R + Send + Sync + 'static,
    ) -> Service {
        self.route("PUT", path, handler)
    }

    /// Answers `PATCH` on `path`; see [`get`](Service::get).
    ///
    /// ```
    /// let service = allout::Service::new().patch("/state", |_| 204);
    /// ```
    pub fn patch<R: Into<Response>>(
        self,
        path: &str,
        handler: impl Fn(&mut Request) -> R + Send + Sync + 'static,
    ) -> Service {
        self.route("PATCH", path, handler)
    }

    /// Answers `DELETE` on `path`; see [`get`](Service::get).
    ///
    /// ```
    /// let service = allout::Service::new().delete("/state", |_| 204);
    /// ```
    pub fn delete<R: Into<Response>>(
        self,
        path: &str,
        handler: impl Fn(&mut Request) -> R + Send + Sync + 'static,
    ) -> Service {
        self.route("DELETE", path, handler)
    }

    /// Answers this method, in capitals, on `path`; see [`get`](Service::get).
    ///
    /// ```
    /// let service = allout::Service::new().route("PROPFIND", "/", |_| (207, "<multistatus/>"));
    /// ```
    pub fn route<R: Into<Response>>(
        self,
        method: &str,
        path: &str,
        handler: impl Fn(&mut Request) -> R + Send + Sync + 'static,
    ) -> Service {
        self.add(method, path, false, boxed(handler))
    }

    /// As [`route`](Service::route), for a handler that never blocks and returns within microseconds. It
    /// runs on the thread that received the request, which saves a hop between threads. While it runs nothing else is
    /// received: an inline handler that blocks delays the whole service.
    ///
    /// ```
    /// let service = allout::Service::new().inline_route("GET", "/version", |_| env!("CARGO_PKG_VERSION"));
    /// ```
    pub fn inline_route<R: Into<Response>>(
        self,
        method: &str,
        path: &str,
        handler: impl Fn(&mut Request) -> R + Send + Sync + 'static,
    ) -> Service {
        self.add(method, path, true, boxed(handler))
    }

    /// Answers every path that no route claims, whatever the method. Without it such paths are 404.
    ///
    /// ```
    /// use allout::{Request, Service};
    /// let service = Service::new().fallback(|request| (404, format!("there is no {}", request.path())));
    /// assert_eq!(service.handle(Request::get("/none")).into_text()?, "there is no /none");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn fallback<R: Into<Response>>(
        mut self,
        handler: impl Fn(&mut Request) -> R + Send + Sync + 'static,
    ) -> Service {
        self.routes.set_fallback(false, boxed(handler));
        self
    }

    /// As [`fallback`](Service::fallback), for a handler that runs [inline](Service::inline_route).
    ///
    /// ```
    /// let service = allout::Service::new().inline_fallback(|_| "hello");
    /// ```
    pub fn inline_fallback<R: Into<Response>>(
        mut self,
        handler: impl Fn(&mut Request) -> R + Send + Sync + 'static,
    ) -> Service {
        self.routes.set_fallback(true, boxed(handler));
        self
    }

    /// Sets limits for all methods of `path`, or of the fallback (`"*"`), in place of those of the service. The path
    /// must have a route already.
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
            self.fail(StartError::Route(error));
        }
        self
    }

    /// Puts a middleware around all handlers: it may answer by itself, or call the [next](Next::run), and change the
    /// request before and the response after. A middleware for some routes alone looks at [`Request::route`].
    ///
    /// Every response passes it, those of the library as well: 404, 405, 400, 413, 500 and the like. Of several, the one
    /// that is added first is the outermost: it sees the request first, and the response last. It may wait, as handlers
    /// may: so all requests are answered by workers, also those of inline routes. Two kinds of responses that must not
    /// wait for a worker leave it out: those of `/healthz` and the other inline admin routes, and the 503 to a request
    /// that is shed because all workers are busy. A middleware that never waits is better
    /// [inline](Service::inline_around): it sees all.
    ///
    /// ```
    /// use allout::{Request, Response, Service};
    ///
    /// let service = Service::new()
    ///     .get("/", |_| "for members only")
    ///     .around(|request, next| {
    ///         if request.header("Authorization") != Some("Bearer s3cret") {
    ///             return Response::from(401).with_header("WWW-Authenticate", "Bearer");
    ///         }
    ///         next.run(request)
    ///     });
    /// assert_eq!(service.handle(Request::get("/")).status(), 401);
    /// assert_eq!(service.handle(Request::get("/").header("Authorization", "Bearer s3cret")).status(), 200);
    /// ```
    pub fn around<R: Into<Response>>(
        mut self,
        middleware: impl Fn(&mut Request, Next<'_>) -> R + Send + Sync + 'static,
    ) -> Service {
        self.around.add(false, move |request, next| middleware(request, next).into());
        self
    }

    /// As [`around`](Service::around), for a middleware that never waits and is done in microseconds: it changes headers,
    /// for example. It runs where the handler runs, and every response passes it without exception.
    ///
    /// ```
    /// use allout::{Request, Service};
    ///
    /// let service = Service::new().inline_around(|request, next| {
    ///     let mut response = next.run(request);
    ///     response.set_header("Access-Control-Allow-Origin", "*");
    ///     response
    /// });
    /// assert_eq!(service.handle(Request::get("/none")).header("Access-Control-Allow-Origin"), Some("*"));
    /// ```
    pub fn inline_around<R: Into<Response>>(
        mut self,
        middleware: impl Fn(&mut Request, Next<'_>) -> R + Send + Sync + 'static,
    ) -> Service {
        self.around.add(true, move |request, next| middleware(request, next).into());
        self
    }

    /// Sets the function that makes the responses to errors that the library answers by itself, in place of a short
    /// text: no such route, a body that is too large, a handler that failed or panicked, and a bare status (`404`) that
    /// a handler returns. The status stays, and so do headers that belong to it (`Allow`, `Retry-After`).
    ///
    /// It must never wait: a request that is shed is answered where requests are received.
    ///
    /// ```
    /// use allout::{Request, Response, Service};
    ///
    /// let service = Service::new().on_error(|request, error| {
    ///     let body = format!(r#"{{"error": "{}", "id": "{}"}}"#, error.reason, request.id());
    ///     Response::new(body).with_header("Content-Type", "application/json")
    /// });
    /// let response = service.handle(Request::get("/none").header("X-Request-Id", "7"));
    /// assert_eq!((response.status(), response.content_type()), (404, Some("application/json")));
    /// assert_eq!(response.into_text()?, r#"{"error": "Not Found", "id": "7"}"#);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn on_error<R: Into<Response>>(
        mut self,
        make: impl Fn(&Request, ErrorInfo<'_>) -> R + Send + Sync + 'static,
    ) -> Service {
        self.around.set_on_error(move |request, error| make(request, error).into());
        self
    }

    /// Serves the files of a directory below `path`: [`Files`](crate::Files), or just the directory's path.
    ///
    /// A directory that cannot be opened keeps the service from starting.
    ///
    /// ```no_run
    /// let service = allout::Service::new().files("/static", "www");
    /// ```
    #[cfg(feature = "files")]
    pub fn files(mut self, path: &str, files: impl Into<crate::files::Files>) -> Service {
        let files = match files.into().opened() {
            Ok(files) => files,
            Err(reason) => {
                self.fail(StartError::Setting(reason));
                return self;
            }
        };
        let base = path.trim_end_matches('/');
        let handler = |path: Option<&'static str>| {
            let files = files.clone();
            boxed(move |request: &mut Request| files.serve(request, path.or(request.param("path")).unwrap_or_default()))
        };
        let service = if base.is_empty() { self } else { self.add("GET", base, false, handler(Some(""))) };
        let service = service.add("GET", &format!("{base}/"), false, handler(Some("")));
        service.add("GET", &format!("{base}/{{*path}}"), false, handler(None))
    }

    fn add(mut self, method: &str, path: &str, inline: bool, handler: Handler) -> Service {
        if let Err(error) = self.routes.add(method, path, inline, handler) {
            self.fail(StartError::Route(error));
        }
        self
    }
}

fn boxed<R: Into<Response>>(handler: impl Fn(&mut Request) -> R + Send + Sync + 'static) -> Handler {
    Arc::new(move |request| handler(request).into())
}
