//! Dispatch, from an exchange to its response: finds the handler, chooses its thread, and tells the observers.
//!
//! An exchange whose handler is *inline* (it never blocks), and whose body is buffered, is answered right where it was
//! received: no hop, no wake-up. All others go to a worker. So nothing that may block runs on the thread that receives;
//! that includes the response, of which this thread writes only what the socket takes at once.
//!
//! Every exchange leaves by one of these ways, and each is counted: answered, rejected, shed, or aborted.

mod body;
pub(crate) mod builder;
mod extensions;
mod handle;
pub(crate) mod limits;
pub(crate) mod middleware;
pub(crate) mod request;
pub(crate) mod route;
pub(crate) mod router;
pub(crate) mod state;
mod typed;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::crew::pool::{Pool, Work};
use crate::crew::stop::Stop;
use crate::dispatch::limits::Limits;
use crate::dispatch::middleware::Around;
use crate::dispatch::request::{Context, Request, path_of};
use crate::dispatch::route::{Params, Route};
use crate::dispatch::router::{RouteMatch, Router};
use crate::engine::{CloseReason, Exchange, Peer};
use crate::http::encode::{SendError, Sent};
use crate::http::forwarded::TrustedProxies;
use crate::http::head::{Version, method_label};
use crate::http::response::Response;
use crate::observe::{Cut, DispatchStats, RequestFacts, ResponseObserver, ResponseRecord};

/// An exchange and the route that it takes.
struct Routed {
    exchange: Exchange,
    matched: RouteMatch,
}

/// A response to be written, and its exchange.
struct Reply {
    request: Request,
    response: Response,
    /// Whether the connection closes after it.
    close: bool,
}

/// A job of a worker.
pub(crate) struct Job {
    dispatch: Arc<Dispatch>,
    task: Task,
}

enum Task {
    /// Run the handler and respond.
    Handle(Routed),
    /// Write a response that may block.
    Write(Reply),
}

impl Work for Job {
    type Id = Peer;

    fn id(&self) -> Peer {
        match &self.task {
            Task::Handle(routed) => routed.exchange.peer(),
            Task::Write(reply) => reply.request.peer(),
        }
    }

    fn run(self) {
        let mut next = match self.task {
            Task::Handle(routed) => self.dispatch.answer(routed),
            Task::Write(reply) => self.dispatch.respond(reply),
        };
        // A worker goes on with its connection for as long as requests wait there.
        while let Some(exchange) = next {
            next = self.dispatch.answer(self.dispatch.route(exchange));
        }
    }
}

/// The parts that answer requests: routes, workers, observers, settings.
pub(crate) struct Dispatch {
    pub(crate) router: Router,
    pub(crate) pool: Arc<Pool<Job>>,
    pub(crate) stop: Stop,
    pub(crate) observers: Vec<ResponseObserver>,
    pub(crate) stats: Arc<DispatchStats>,
    pub(crate) settings: DispatchSettings,
}

/// Settings for the requests of all routers of a service.
#[derive(Clone)]
pub(crate) struct DispatchSettings {
    pub(crate) around: Around,
    /// The proxies that are believed when they name a client.
    pub(crate) proxies: Option<Arc<TrustedProxies>>,
    pub(crate) max_head: Option<usize>,
    pub(crate) max_body: u64,
    /// True if an observer wants facts of each request, which are copied for it.
    pub(crate) record_requests: bool,
}

impl Dispatch {
    /// Answers an exchange on the calling thread if that is certain not to block, and otherwise on a worker. Returns
    /// the next exchange of the same connection, if there is one.
    pub(crate) fn serve(self: &Arc<Self>, exchange: Exchange) -> Option<Exchange> {
        let routed = self.route(exchange);
        let inline = routed.matched.inline && (routed.matched.must_not_wait || self.settings.around.is_inline());
        if !(inline && routed.exchange.can_answer_inline()) {
            return self.submit(Task::Handle(routed));
        }
        let reply = self.handle(routed);
        if reply.response.fits_send_buffer() { self.respond(reply) } else { self.submit(Task::Write(reply)) }
    }

    /// Answers an exchange that was made in this process, on the calling thread.
    pub(crate) fn answer_here(&self, exchange: Exchange) -> Response {
        let slot = exchange.response_slot();
        self.answer(self.route(exchange));
        slot.and_then(|slot| slot.take()).unwrap_or_else(|| Response::from(500))
    }

    /// Gives a task to a worker; sheds the request if none is idle and the queue is full. Admin routes have reserved
    /// workers.
    fn submit(self: &Arc<Self>, task: Task) -> Option<Exchange> {
        let is_urgent = matches!(&task, Task::Handle(routed) if routed.matched.is_admin);
        let job = Job { dispatch: Arc::clone(self), task };
        let submitted = if is_urgent { self.pool.submit_urgent(job) } else { self.pool.submit(job) };
        let Err(job) = submitted else { return None };
        self.stats.shed.fetch_add(1, Ordering::Relaxed);
        let mut request = match job.task {
            Task::Handle(Routed { exchange, matched }) => {
                self.request(exchange, matched.route, Params::default(), Limits::default())
            }
            Task::Write(reply) => reply.request,
        };
        let exchange = request.exchange();
        if !exchange.can_write_inline() {
            return self.end(request).0.abort(CloseReason::SlowReader); // even a 503 might block
        }
        let close = !exchange.body().buffered; // reading it might block
        let response = self.shed(&mut request);
        self.respond(Reply { request, response, close })
    }

    fn route(&self, mut exchange: Exchange) -> Routed {
        let matched = match exchange.head() {
            Ok(_) => self.router.find(exchange.method(), path_of(exchange.target())),
            Err(_) => RouteMatch::rejected(),
        };
        if let Some(timeout) = matched.limits.request_timeout {
            exchange.set_timeout(timeout);
        }
        Routed { exchange, matched }
    }

    fn request(&self, exchange: Exchange, route: Route, params: Params, limits: Limits) -> Request {
        let (max_body, proxies) = (limits.max_body.unwrap_or(self.settings.max_body), self.settings.proxies.clone());
        Request::new(exchange, Context { route, params, stop: self.stop.clone(), max_body, proxies })
    }

    /// Answers where blocking is allowed: on a worker's thread.
    fn answer(&self, routed: Routed) -> Option<Exchange> {
        let reply = self.handle(routed);
        self.respond(reply)
    }

    /// Sends the response, tells the observers, and gives the connection's next request.
    fn respond(&self, reply: Reply) -> Option<Exchange> {
        let Reply { mut request, response, close } = reply;
        let mut response = self.with_whole_body(&mut request, response, close);
        response.link_stream(|| request.stream_link());
        let facts = self.settings.record_requests.then(|| facts(&request));
        let (exchange, id, route) = self.end(request);
        // After a body that broke off it is not known where the next request begins.
        let close = close || exchange.body().truncated;
        let method = method_label(exchange.method());
        let (peer, since) = (exchange.peer(), exchange.since());
        let (sent, next) = exchange.respond(response, close, &id);
        self.log_cut(&sent, &route, peer, &id);
        let record = ResponseRecord {
            route: route.index,
            pattern: &route.pattern,
            method,
            request: facts,
            status: sent.status,
            bytes: sent.bytes,
            cut: sent.error.as_ref().and_then(|error| match error {
                SendError::Client(_) => Some(Cut::Client),
                SendError::Reader(_) | SendError::Panic(_) => Some(Cut::Reader),
                SendError::Late => None, // the 503 is whole
            }),
            duration: since.elapsed(),
            peer,
            id: &id,
        };
        for observer in &self.observers {
            observer(&record);
        }
        next
    }

    /// Logs why a response is not whole.
    fn log_cut(&self, sent: &Sent, route: &Route, peer: Peer, id: &str) {
        let Some(error) = &sent.error else { return };
        let what = format!("the response of {} to {peer} (id {id}) was cut after {} bytes", route.pattern, sent.bytes);
        match error {
            SendError::Late => {
                let pattern = &route.pattern;
                log::warn!("the handler of {pattern} for {peer} (id {id}) was late: the client has got a 503");
            }
            SendError::Client(error) => log::debug!("{what}: {error}"),
            SendError::Reader(reason) => log::error!("{what}: its reader failed: {reason}"),
            SendError::Panic(message) => {
                self.stats.panics.fetch_add(1, Ordering::Relaxed);
                log::error!("{what}: its reader panicked: {message}");
            }
        }
    }
}

fn facts(request: &Request) -> RequestFacts {
    let header = |name| request.header_bytes(name).map(|value| String::from_utf8_lossy(value).into_owned());
    RequestFacts {
        method: request.method().to_owned(),
        target: request.target().to_owned(),
        version: match request.exchange().head() {
            Ok(head) if head.version == Version::Http10 => "HTTP/1.0",
            _ => "HTTP/1.1",
        },
        client: request.client_ip(),
        user_agent: header("User-Agent").unwrap_or_default(),
        referer: header("Referer").unwrap_or_default(),
    }
}
