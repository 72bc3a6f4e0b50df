//! Recipes for the parts of a service besides its routes. Each compiles: copy it, and change it.
//!
//! | | |
//! | --- | --- |
//! | [Authentication](#authentication) | a token, checked before each handler |
//! | [CORS](#cors) | cross-origin requests, preflights and errors included |
//! | [Errors as JSON](#errors-as-json) | the library's own errors, with the request's id |
//! | [Files](#files) | a directory, with ranges and precompressed files |
//! | [Compression](#compression) | text, by `flate2` |
//! | [Uploads and downloads](#uploads-and-downloads) | bodies that are never in memory as a whole |
//! | [Forms with files](#forms-with-files) | `multipart/form-data`, by `form-net` |
//! | [Events](#events) | server-sent events that end in a drain |
//! | [Timing and metrics](#timing-and-metrics) | metrics of the service's own |
//! | [`with_state`](crate::with_state) | handlers that share a database |
//! | [Tests](#tests) | without a socket |
//! | [Behind a proxy](#behind-a-proxy) | nginx, HAProxy, Caddy |
//! | [Deploys](#deploys) | systemd, Kubernetes, re-exec |
//!
//! # Authentication
//!
//! A middleware answers by itself, or attaches the user to the request. It may wait for a database, so it is not
//! inline: `/healthz` and the other inline admin routes do not pass it.
//!
//! ```
//! use allout::{Next, Request, Response, Service};
//!
//! #[derive(Clone)]
//! struct User(String);
//!
//! fn find(token: &str) -> Option<User> {
//!     (token == "s3cret").then(|| User("Ada".to_owned())) // a database, or a comparison in constant time
//! }
//!
//! fn authenticate(request: &mut Request, next: Next<'_>) -> Response {
//!     let token = request.header("Authorization").and_then(|value| value.strip_prefix("Bearer "));
//!     match token.and_then(find) {
//!         Some(user) => {
//!             request.set_extension(user);
//!             next.run(request)
//!         }
//!         None => Response::from(401).with_header("WWW-Authenticate", "Bearer"),
//!     }
//! }
//!
//! let service = Service::new()
//!     .get("/me", |request| request.extension::<User>().map(|user| user.0.clone()))
//!     .around(authenticate);
//! assert_eq!(service.handle(Request::get("/me")).status(), 401);
//! let response = service.handle(Request::get("/me").header("Authorization", "Bearer s3cret"));
//! assert_eq!(response.into_text()?, "Ada");
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! # CORS
//!
//! It never waits, so it is inline: every response has the headers, also a 404, a 405, and the 503 of a service that is
//! too busy. A preflight is answered before there is a 405.
//!
//! ```
//! use allout::{Next, Request, Response, Service, RequestBuilder};
//!
//! const ORIGIN: &str = "https://app.example.org";
//!
//! fn cors(request: &mut Request, next: Next<'_>) -> Response {
//!     let is_preflight = request.method() == "OPTIONS" && request.header("Access-Control-Request-Method").is_some();
//!     let mut response = if is_preflight { Response::empty(204) } else { next.run(request) };
//!     response.set_header("Access-Control-Allow-Origin", ORIGIN); // in place of one that is there
//!     response.append_header("Vary", "Origin");
//!     if is_preflight {
//!         response.set_header("Access-Control-Allow-Methods", "GET, POST, DELETE");
//!         response.set_header("Access-Control-Allow-Headers", "Authorization, Content-Type");
//!         response.set_header("Access-Control-Max-Age", "600");
//!     }
//!     response
//! }
//!
//! let service = Service::new().get("/", |_| "hello").inline_around(cors);
//! let preflight = RequestBuilder::new("OPTIONS", "/").header("Access-Control-Request-Method", "DELETE");
//! assert_eq!(service.handle(preflight).status(), 204);
//! assert_eq!(service.handle(Request::get("/none")).header("Access-Control-Allow-Origin"), Some(ORIGIN));
//! ```
//!
//! # Errors as JSON
//!
//! Handlers return errors; the client gets all of them in one form. The cause of a 500 is in the log alone, with the
//! same id.
//!
//! ```
//! # #[cfg(feature = "json")] {
//! use allout::{HandlerError, Request, Response, Service, StatusError};
//!
//! fn item(request: &mut Request) -> Result<String, HandlerError> {
//!     let id: u32 = request.parse_param("id")?; // no number: 404
//!     match id {
//!         1 => Ok("tea".to_owned()),
//!         2 => Err(StatusError::new(410, "sold out"))?,
//!         _ => Ok(std::fs::read_to_string(format!("/no/such/file/{id}"))?), // 500, and a line in the log
//!     }
//! }
//!
//! let service = Service::new().get("/items/{id}", item).on_error(|request, error| {
//!     let body = std::collections::BTreeMap::from([("error", error.reason), ("id", request.id())]);
//!     Response::json(&body)
//! });
//! let gone = service.handle(Request::get("/items/2").header("X-Request-Id", "7"));
//! assert_eq!((gone.status(), gone.content_type()), (410, Some("application/json")));
//! assert_eq!(gone.into_text().unwrap(), r#"{"error":"sold out","id":"7"}"#);
//! let failed = service.handle(Request::get("/items/3").header("X-Request-Id", "8"));
//! assert_eq!(failed.into_text().unwrap(), r#"{"error":"Internal Server Error","id":"8"}"#);
//! # }
//! ```
//!
//! # Files
//!
//! With the feature `files`. If a file exists as `app.js` and as `app.js.br`, clients that accept it get the compressed
//! one. A file that is not public goes through a handler, and has validators and ranges as well.
//!
//! ```no_run
//! # #[cfg(feature = "files")] {
//! use allout::{Files, HandlerError, Response, Service};
//!
//! let service = Service::new()
//!     .files("/static", Files::new("www").cache_control("public, max-age=3600"))
//!     .get("/report", |_| -> Result<Response, HandlerError> {
//!         let report = std::fs::File::open("/var/lib/shop/report.pdf")?;
//!         Ok(Response::file(report)?.with_header("Content-Type", "application/pdf"))
//!     });
//! # }
//! ```
//!
//! # Compression
//!
//! With the crate `flate2`, for bodies that are made for each request; files are better compressed once, as above. A
//! stream is left as it is, because an encoder holds back what a flush should send, and so is an answer to a range.
//! Secrets and text that a client chooses should not be in one compressed body, whose length would betray the secret.
//!
//! ```
//! use allout::{Body, Next, Request, Response, Service};
//! use flate2::{Compression, read::GzEncoder};
//!
//! fn compress(request: &mut Request, next: Next<'_>) -> Response {
//!     let accepts = request.header("Accept-Encoding").is_some_and(|value| {
//!         value.split(',').any(|coding| coding.trim().starts_with("gzip") && !coding.contains("q=0"))
//!     });
//!     let mut response = next.run(request);
//!     let kind = response.content_type().unwrap_or_default();
//!     let gains = (kind.starts_with("text/") || kind == "application/json")
//!         && response.length().is_none_or(|length| length > 1000);
//!     if !gains || response.body().is_stream() || response.status() == 206 || response.header("Content-Encoding").is_some() {
//!         return response;
//!     }
//!     response.append_header("Vary", "Accept-Encoding");
//!     if !accepts {
//!         return response;
//!     }
//!     response.set_header("Content-Encoding", "gzip");
//!     response.remove_header("ETag"); // that of the other representation
//!     response.remove_header("Accept-Ranges");
//!     response.map_body(|body| Body::reader(GzEncoder::new(body.into_reader(), Compression::fast()), None))
//! }
//!
//! let service = Service::new().get("/", |_| "hello, world\n".repeat(1000)).around(compress);
//! let response = service.handle(Request::get("/").header("Accept-Encoding", "gzip, br"));
//! assert_eq!(response.header("Content-Encoding"), Some("gzip"));
//! assert!(response.into_bytes()?.len() < 200);
//! assert_eq!(service.handle(Request::get("/")).length(), Some(13_000));
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! # Uploads and downloads
//!
//! [`Request::body`](crate::Request::body) is a reader: `io::copy` moves a body of any length with a buffer of a few
//! kilobytes. A client that keeps sending is not cut, one that stops is. The file gets its name only when it is whole.
//!
//! ```no_run
//! use std::sync::atomic::{AtomicU64, Ordering};
//! use std::{fs, io, path::Path, process};
//! use allout::{HandlerError, Request, Response, Service, StatusError};
//!
//! const MAX: u64 = 1 << 30;
//! static COUNT: AtomicU64 = AtomicU64::new(0);
//!
//! fn upload(request: &mut Request) -> Result<u16, HandlerError> {
//!     let id: u64 = request.parse_param("id")?; // a number: no name of a client's becomes a path
//!     if request.body_length().is_some_and(|length| length > MAX) {
//!         Err(StatusError::new(413, "1 GiB at most"))?;
//!     }
//!     // A name of the program's own, which no client can make that of another upload.
//!     let count = COUNT.fetch_add(1, Ordering::Relaxed);
//!     let (part, whole) = (format!("uploads/{id}.part-{}-{count}", process::id()), format!("uploads/{id}"));
//!     let mut file = fs::File::create_new(&part)?;
//!     match io::copy(&mut io::Read::take(request.body(), MAX + 1), &mut file) {
//!         Ok(length) if length <= MAX => fs::rename(part, whole)?,
//!         Ok(_) => {
//!             fs::remove_file(part)?;
//!             Err(StatusError::new(413, "1 GiB at most"))?;
//!         }
//!         Err(error) => {
//!             fs::remove_file(part)?;
//!             Err(error)?; // the client has left: 400
//!         }
//!     }
//!     Ok(201)
//! }
//!
//! fn download(request: &mut Request) -> Result<Response, HandlerError> {
//!     let id: u64 = request.parse_param("id")?;
//!     let path = format!("uploads/{id}");
//!     if !Path::new(&path).exists() {
//!         return Ok(Response::from(404));
//!     }
//!     Ok(Response::file(fs::File::open(path)?)?)
//! }
//!
//! let service = Service::new().put("/files/{id}", upload).get("/files/{id}", download);
//! ```
//!
//! # Forms with files
//!
//! A form with files, which a browser sends as `multipart/form-data`, is parsed by a crate of your choice that reads
//! from a reader, such as `form-net`, which limits the number and size of everything. A file is streamed to where the
//! service wants it; its name is the client's, and never a path. `tests/todo/src/bin/photos.rs` is the whole program.
//!
//! ```ignore
//! use form_net::{FormError, MultipartReader};
//!
//! fn add(request: &mut Request) -> Result<String, HandlerError> {
//!     let kind = request.header("Content-Type").unwrap_or_default().to_owned();
//!     let mut form = MultipartReader::new(kind.as_bytes(), request.body()).map_err(malformed)?;
//!     let (mut title, mut bytes, mut photo) = (String::new(), 0, new_part()?); // a file with a name of the program's own
//!     while let Some(mut part) = form.next_part().map_err(malformed)? {
//!         match part.head().view().name() {
//!             "title" => title = part.text().map_err(malformed)?,
//!             "photo" => bytes = std::io::copy(&mut part, &mut photo)?, // of the kind `InvalidData` where the form is malformed
//!             _ => {}
//!         }
//!     }
//!     Ok(format!("{title}: {bytes} bytes"))
//! }
//!
//! fn malformed(error: FormError) -> StatusError {
//!     StatusError::new(400, error.to_string())
//! }
//! ```
//!
//! # Events
//!
//! One channel for each client; [`recv`](crate::EventWriter::recv) ends when the service drains, and sends a comment
//! every 15 s so that no proxy closes the connection. `tests/examples/events.rs` is a whole program.
//!
//! ```
//! use std::sync::{Arc, Mutex};
//! use allout::{Event, Response, Service, channel};
//!
//! let listeners: Arc<Mutex<Vec<channel::Sender<String>>>> = Arc::default();
//! let service = Service::new().get("/events", move |_| {
//!     let (sender, messages) = channel::bounded(100);
//!     listeners.lock().unwrap().push(sender);
//!     Response::events(move |events| {
//!         while let Some(message) = events.recv(&messages)? {
//!             events.send(Event::new(message).name("news"))?;
//!         }
//!         Ok(()) // the service drains: a clean end, after which the client connects to the next instance
//!     })
//! });
//! ```
//!
//! # Timing and metrics
//!
//! `/metrics` has counts and durations by route already. Metrics of the application are appended.
//!
//! ```
//! # #[cfg(feature = "metrics")] {
//! use std::sync::atomic::{AtomicU64, Ordering};
//! use std::time::Instant;
//! use allout::Service;
//!
//! static SLOW: AtomicU64 = AtomicU64::new(0);
//!
//! let service = Service::new()
//!     .inline_around(|request, next| {
//!         let began = Instant::now();
//!         let response = next.run(request);
//!         SLOW.fetch_add(u64::from(began.elapsed().as_millis() > 500), Ordering::Relaxed);
//!         response.with_header("Server-Timing", format!("total;dur={}", began.elapsed().as_millis()))
//!     })
//!     .append_metrics(|| {
//!         format!("# TYPE shop_slow_total counter\nshop_slow_total {}\n", SLOW.load(Ordering::Relaxed))
//!     });
//! # }
//! ```
//!
//! # Tests
//!
//! [`Service::handle`](crate::Service::handle) answers without a socket, on the calling thread; a handler can be called
//! alone. For what concerns the wire, [`start`](crate::Service::start) listens on a free port.
//!
//! ```
//! use allout::{Request, Service};
//!
//! fn service() -> Service {
//!     Service::new().get("/hello/{name}", |request| format!("hello, {}", request.param("name").unwrap_or("world")))
//! }
//!
//! let response = service().handle(Request::get("/hello/you"));
//! assert_eq!((response.status(), response.into_text()?), (200, "hello, you".to_owned()));
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! # Behind a proxy
//!
//! If the service [trusts](crate::Service::trust_proxies) the proxy, [`client_ip`](crate::Request::client_ip) is the
//! address that the proxy names. The proxy keeps connections open, for less time than the service does (`idle_timeout`,
//! 30 s), so that no request meets a connection that closes.
//!
//! ```
//! let service = allout::Service::new().listen("127.0.0.1:8088").trust_proxies("X-Forwarded-For", ["127.0.0.1"]);
//! ```
//!
//! nginx replaces the header with one of its own, and tries another server only if nothing was sent:
//!
//! ```text
//! upstream shop { server 127.0.0.1:8088; keepalive 32; keepalive_timeout 25s; }
//! server {
//!     location / {
//!         proxy_pass http://shop;
//!         proxy_http_version 1.1;
//!         proxy_set_header Connection "";
//!         proxy_set_header Host $host;
//!         proxy_set_header X-Forwarded-For $remote_addr;
//!         proxy_set_header X-Request-Id $request_id;
//!         proxy_request_buffering off;   # uploads reach the service as they come
//!     }
//!     location = /shutdown { return 404; }
//! }
//! ```
//!
//! HAProxy takes a server out by its health check, and tries another if nothing was sent, or no response came:
//!
//! ```text
//! backend shop
//!     option httpchk GET /readyz
//!     option forwardfor
//!     http-request del-header X-Forwarded-For
//!     retry-on conn-failure empty-response
//!     timeout http-keep-alive 25s
//!     server a 127.0.0.1:8088 check inter 1s fall 1
//!     server b 127.0.0.1:8089 check inter 1s fall 1
//! ```
//!
//! Caddy replaces `X-Forwarded-For` of clients that it does not trust by itself:
//!
//! ```text
//! shop.example.org {
//!     reverse_proxy 127.0.0.1:8088 127.0.0.1:8089 {
//!         health_uri /readyz
//!         health_interval 1s
//!         lb_try_duration 5s
//!         flush_interval -1
//!         transport http { keepalive 25s }
//!     }
//! }
//! ```
//!
//! # Deploys
//!
//! * **systemd**: `systemctl reload` (SIGHUP) re-executes the binary on disk under the same pid and on the same socket:
//!   no connection is refused. `Type=notify`, `ExecReload=kill -HUP $MAINPID`; `allout --systemd-unit` prints a
//!   hardened unit.
//! * **Several instances behind a proxy**: SIGTERM. During the [`drain_delay`](crate::Service::drain_delay) it serves
//!   on while `/readyz` says 503. Make it as long as the proxy needs to see that: the interval of its checks times the
//!   failures that it waits for.
//! * **Kubernetes**: a readiness probe on `/readyz`, a liveness probe on `/livez`, `drain_delay` of about 5 s, and
//!   `terminationGracePeriodSeconds` a little above [`grace`](crate::Service::grace), which includes `drain_delay`.
//! * **A migration** that must be done before the first request is a [`before_ready`](crate::Service::before_ready):
//!   the socket is open meanwhile, requests wait in the kernel, and systemd gets `READY=1` only after it.
//!
//! ```
//! use std::time::Duration;
//! use allout::{Check, Service};
//!
//! let service = Service::new()
//!     .drain_delay(Duration::from_secs(5))
//!     .grace(Duration::from_secs(20))
//!     .before_ready("migrate", |_| std::fs::create_dir_all(std::env::temp_dir().join("shop")))
//!     .check(Check::new("disk", || std::fs::metadata(std::env::temp_dir()).map(drop)));
//! ```
