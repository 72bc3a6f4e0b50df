//! Where a request is answered, and how: from the moment that it arrives until the next of its connection may.
//!
//! A request whose handler is *quick* (it never waits) and whose body is at hand is answered right where it was
//! received, on the listener's thread: no hop, no wake-up. All others go to a worker. So nothing that may wait ever runs
//! where it would hold up others; that includes the response: the listener writes only what the socket takes at once.
//!
//! Every request that was taken in leaves by one of these ways, and each is counted: answered, refused, shed, or
//! thrown away because its connection was closing.

pub(crate) mod limits;
pub(crate) mod request;
pub(crate) mod router;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, Write};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::net::SendFlags;
use socket2::SockRef;

use crate::crew::pool::{Pool, Work};
use crate::crew::stop::Stop;
use crate::dispatch::request::{Line, Request, path_of};
use crate::dispatch::router::{Handler, Route, RouteMatch, Router};
use crate::engine::tiny_http::connections::{Admission, AfterResponse, CloseReason, Connection, ConnectionTable};
use crate::engine::tiny_http::monitor::Monitor;
use crate::engine::tiny_http::quirks::{self, Quirks};
use crate::engine::tiny_http::unread_body as leftover;
use crate::http::encode::{ResponseContext, SendError, Sent, send};
use crate::http::error::broken_body;
use crate::http::head::{Framing, Rejection, RequestHead, method_label};
use crate::http::response::Response;
use crate::lifecycle::phase::{Lifecycle, Phase};
use crate::observe::{Cut, DispatchStats, ResponseObserver, ResponseRecord};
use crate::text::panic_message;

/// A response's memory that a thread keeps for the next one; larger ones are given back.
const MAX_RETAINED_BUFFER: usize = 16 * 1024;

/// A connection's turn: the request that is in flight on it from now on.
pub(crate) type Turn = (Arc<Connection>, tiny_http::Request);

/// Requests whose turn it is, one of each connection at most: taking them in order, no connection holds up another.
pub(crate) type Ready = VecDeque<Turn>;

/// A request on its way, with all that was found out about it.
struct Exchange {
    connection: Arc<Connection>,
    raw: tiny_http::Request,
    since: Instant,
    head: Result<(RequestHead, Quirks), Rejection>,
    found: RouteMatch,
}

/// A reply on its way.
struct Delivery {
    connection: Arc<Connection>,
    request: Request,
    response: Response,
    route: Route,
    since: Instant,
    /// The connection must not go on after it.
    last: bool,
}

/// What a worker is given.
pub(crate) struct Job {
    dispatch: Arc<Dispatch>,
    step: Step,
}

enum Step {
    /// Answer it from the beginning.
    Answer(Exchange),
    /// The reply is there, but writing it may take its time.
    Deliver(Delivery),
}

impl Step {
    fn connection(&self) -> &Arc<Connection> {
        match self {
            Step::Answer(exchange) => &exchange.connection,
            Step::Deliver(delivery) => &delivery.connection,
        }
    }
}

impl Work for Job {
    type Id = SocketAddr;

    fn id(&self) -> SocketAddr {
        self.step.connection().peer
    }

    fn run(self) {
        let mut turn = match self.step {
            Step::Answer(exchange) => self.dispatch.answer(exchange),
            Step::Deliver(delivery) => self.dispatch.deliver(delivery),
        };
        // A worker goes on with its connection for as long as requests wait there.
        while let Some(next) = turn {
            turn = self.dispatch.answer(self.dispatch.examine(next));
        }
    }
}

/// Everything that answering needs.
pub(crate) struct Dispatch {
    pub(crate) connections: Arc<ConnectionTable>,
    pub(crate) routes: Router,
    pub(crate) pool: Arc<Pool<Job>>,
    pub(crate) monitor: Arc<Monitor>,
    pub(crate) phase: Arc<Lifecycle>,
    pub(crate) stop: Stop,
    pub(crate) observers: Vec<ResponseObserver>,
    /// Whether a watcher wants each request's target, which is copied for it.
    pub(crate) record_request_line: bool,
    pub(crate) max_body: u64,
    pub(crate) stats: Arc<DispatchStats>,
}

thread_local! {
    /// Where a response is put together, so that it leaves in one write.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Dispatch {
    /// Takes in a request that has arrived.
    pub(crate) fn arrive(&self, raw: tiny_http::Request, ready: &mut Ready) {
        let admission = match self.connections.admit(raw) {
            // A client may come back from the port of a connection that we have ended, before anybody looked.
            Admission::Discard { connection: Some(connection), request }
                if connection.is_over() && self.monitor.find_newer_connection(&connection) =>
            {
                self.connections.admit(request)
            }
            admission => admission,
        };
        match admission {
            Admission::Serve { connection, request, fresh } => {
                if fresh {
                    self.monitor.wake_if_idle();
                }
                ready.push_back((connection, request));
            }
            Admission::Waits => {}
            // At once: by the next tick of the keeper it would have sent a million.
            Admission::Floods(connection) => {
                self.monitor.scan_now();
                connection.hold(&self.connections.counts);
            }
            Admission::Discard { request, .. } => {
                self.connections.counts.discarded.fetch_add(1, Ordering::Relaxed);
                self.discard(request, None);
            }
        }
    }

    /// Answers a request here and now if that is certain not to wait, or else has it answered by a worker.
    pub(crate) fn serve(self: &Arc<Self>, turn: Turn) -> Option<Turn> {
        let exchange = self.examine(turn);
        let body_buffered = match exchange.head {
            Ok((_, quirks)) => quirks.body_buffered,
            Err(_) => self.socket_of(&exchange.connection).is_some(), // then the connection is closed under the body
        };
        let here = exchange.found.inline
            && body_buffered
            && exchange.connection.can_write_without_blocking(|| self.socket_of(&exchange.connection));
        if !here {
            return self.submit(Step::Answer(exchange));
        }
        let delivery = self.handle(exchange);
        if delivery.response.fits_send_buffer() { self.deliver(delivery) } else { self.submit(Step::Deliver(delivery)) }
    }

    /// Gives a step to a worker; sheds the request if none is free and the queue is full.
    fn submit(self: &Arc<Self>, step: Step) -> Option<Turn> {
        let Err(job) = self.pool.submit(Job { dispatch: Arc::clone(self), step }) else { return None };
        self.stats.shed.fetch_add(1, Ordering::Relaxed);
        let Delivery { connection, request, route, since, .. } = match job.step {
            Step::Answer(exchange) => self.prepare(exchange).0,
            Step::Deliver(delivery) => delivery,
        };
        let can_say_so = request.is_body_buffered() || self.socket_of(&connection).is_some();
        if can_say_so && connection.can_write_without_blocking(|| self.socket_of(&connection)) {
            let response = Response::error(503, "too busy").with_header("Retry-After", "1");
            let last = !request.is_body_buffered(); // reading it might take time
            return self.deliver(Delivery { connection, request, response, route, since, last });
        }
        // Even that might wait for the client.
        self.connections.count_close(CloseReason::SlowReader);
        connection.shut_down(Shutdown::Both);
        let left = request.left();
        self.discard(request.into_parts().0, left);
        self.finish(&connection, true, false)
    }

    fn socket_of(&self, connection: &Arc<Connection>) -> Option<Arc<OwnedFd>> {
        connection.socket().or_else(|| {
            self.monitor.scan_now();
            connection.socket()
        })
    }

    fn examine(&self, (connection, raw): Turn) -> Exchange {
        let head = quirks::validate_request(&raw);
        let found = match head {
            Ok(_) => self.routes.find(raw.method().as_str(), path_of(raw.url())),
            Err(_) => RouteMatch::refused(),
        };
        Exchange { connection, raw, since: Instant::now(), head, found }
    }

    /// A delivery without its reply, and what may find one.
    fn prepare(&self, exchange: Exchange) -> (Delivery, Option<Handler>, Option<Arc<str>>) {
        let Exchange { connection, raw, since, head, found } = exchange;
        let last = head.is_err();
        let (head, quirks) = head.unwrap_or_else(|_| quirks::of_rejected(&raw));
        let line: Arc<dyn Line> = Arc::<Connection>::clone(&connection);
        let mut request = Request::new(raw, head, quirks, connection.peer, line, self.stop.clone(), self.max_body);
        request.set_params(found.params);
        let delivery =
            Delivery { connection, request, response: Response::empty(500), route: found.route, since, last };
        (delivery, found.handler, found.allow)
    }

    /// Runs the handler, or finds the reply that needs none.
    fn handle(&self, exchange: Exchange) -> Delivery {
        let rejection = exchange.head.err();
        if exchange.head.is_ok_and(|(head, quirks)| !quirks.body_buffered || head.framing == Framing::Chunked) {
            // Whether a chunked body is whole is known from the socket alone; and a body may come faster than heads may.
            if let Some(socket) = self.socket_of(&exchange.connection) {
                crate::listen::grow_receive_buffer(&socket);
            }
        }
        let (mut delivery, handler, allow) = self.prepare(exchange);
        delivery.response = match (rejection, handler) {
            (Some(rejection), _) => self.refuse(&delivery.connection, rejection),
            // RFC 9110, section 9.3.8: TRACE sends back what others have added on the way. Nobody needs that.
            (None, _) if delivery.request.method() == "TRACE" => {
                let allow = allow.as_deref().unwrap_or("GET, HEAD, POST, PUT, DELETE, OPTIONS, PATCH").to_owned();
                Response::error(405, "Method Not Allowed").with_header("Allow", allow)
            }
            (None, Some(handler)) => self.call(&handler, &delivery.connection, &mut delivery.request),
            (None, None) => match allow {
                Some(allow) => Response::error(405, "Method Not Allowed").with_header("Allow", allow.to_string()),
                None => Response::error(404, "Not Found"),
            },
        };
        delivery
    }

    fn refuse(&self, connection: &Connection, rejection: Rejection) -> Response {
        self.stats.rejected.fetch_add(1, Ordering::Relaxed);
        self.connections.count_close(CloseReason::BadRequest);
        log::debug!("refused {}: {}", connection.peer, rejection.reason);
        Response::error(rejection.status, rejection.reason)
    }

    fn broken_body(&self, connection: &Connection) -> Response {
        self.stats.rejected.fetch_add(1, Ordering::Relaxed);
        let timed_out = connection.body_deadline_passed();
        if !timed_out {
            self.connections.count_close(CloseReason::BadRequest);
        }
        broken_body(timed_out, "the handler has not read it".to_owned())
    }

    /// Calls a handler. Its panic is no member's end: the policy of `crew` holds here, and the client gets a 500.
    fn call(&self, handler: &Handler, connection: &Connection, request: &mut Request) -> Response {
        match catch_unwind(AssertUnwindSafe(|| handler(request))) {
            Ok(response) => {
                if let Some(failure) = response.failure() {
                    let (line, peer, id) = (connection.snapshot().line, connection.peer, request.id());
                    log::log!(failure.level, "the handler of {line} from {peer} (id {id}) failed: {}", failure.reason);
                }
                response
            }
            Err(payload) => {
                self.stats.panics.fetch_add(1, Ordering::Relaxed);
                let (line, message) = (connection.snapshot().line, panic_message(payload.as_ref()));
                log::error!("the handler of {line} from {} (id {}) panicked: {message}", connection.peer, request.id());
                Response::error(500, "Internal Server Error")
            }
        }
    }

    /// Answers where waiting is allowed: on a worker's thread.
    fn answer(&self, exchange: Exchange) -> Option<Turn> {
        let delivery = self.handle(exchange);
        self.deliver(delivery)
    }

    /// Writes the response, and gives the connection's next request its turn.
    fn deliver(&self, delivery: Delivery) -> Option<Turn> {
        let Delivery { connection, mut request, mut response, route, since, mut last } = delivery;
        let unread = !self.consume_body(&mut request, last);
        if request.is_body_broken() {
            // Nobody knows where the next request would begin.
            last = true;
            if response.status() < 400 {
                // Also where the handler did not care for the body: what was asked has not arrived whole.
                response = self.broken_body(&connection);
            }
        }
        let close = last || unread || request.head.close || self.should_close_for_drain(&connection);
        let left = request.left();
        let (head, quirks, method) = (request.head, request.quirks, method_label(request.method()));
        let as_sent = |text: &str| if self.record_request_line { text.to_owned() } else { String::new() };
        let asked = (as_sent(request.method()), as_sent(request.target()));
        let (mut raw, id) = request.into_parts();
        let context = ResponseContext {
            version: head.version,
            head_only: *raw.method() == tiny_http::Method::Head,
            close,
            keep_alive: head.keep_alive,
            request_id: &id,
        };

        let sent;
        if let Some(socket) = unread.then(|| self.socket_of(&connection)).flatten() {
            // The request is kept while the response goes out past it: dropping it would read its body to the end. The
            // keeper drops it when the client has left, or has had time to.
            sent = respond(response, &context, &mut RawSocket(&socket));
            connection.shut_down(Shutdown::Write);
            self.monitor.linger_until_closed(socket, raw, left);
        } else {
            if unread {
                leftover::forget(&mut raw, left.unwrap_or(0));
            }
            let mut writer = raw.into_writer();
            sent = respond(response, &context, &mut writer);
            if sent.error.is_some() {
                self.socket_of(&connection); // without it nothing can be shut down
                connection.shut_down(Shutdown::Both);
            } else if (close || sent.close) && !quirks.engine_closes {
                // The end of the stream goes out before tiny_http's own thread can add a word to it. Where all is well
                // it has no word to add: then the keeper can see to it, in a tick, if the socket is not known yet.
                if last {
                    self.socket_of(&connection);
                }
                connection.shut_down(Shutdown::Write);
            }
            drop(writer);
        }
        self.log_cut(&sent, &connection, &id);
        let answered = ResponseRecord {
            route: route.number,
            pattern: &route.pattern,
            method,
            request_line: (&asked.0, &asked.1),
            status: sent.status,
            bytes: sent.bytes,
            cut: sent.error.as_ref().map(|error| match error {
                SendError::Client(_) => Cut::Client,
                SendError::Reader(_) | SendError::Panic(_) => Cut::Reader,
            }),
            duration: since.elapsed(),
            peer: connection.peer,
            id: &id,
        };
        for observer in &self.observers {
            observer(&answered);
        }
        self.finish(&connection, close || sent.close, quirks.engine_closes)
    }

    /// Logs why a response is not whole.
    fn log_cut(&self, sent: &Sent, connection: &Connection, id: &str) {
        let Some(error) = &sent.error else { return };
        let (line, peer) = (connection.snapshot().line, connection.peer);
        match error {
            SendError::Client(error) => {
                log::debug!("the response to {line} from {peer} (id {id}) was cut: {error}");
            }
            SendError::Reader(reason) => {
                log::error!("the response to {line} from {peer} (id {id}) was cut: its reader failed: {reason}");
            }
            SendError::Panic(message) => {
                self.stats.panics.fetch_add(1, Ordering::Relaxed);
                log::error!("the response to {line} from {peer} (id {id}) was cut: its reader panicked: {message}");
            }
        }
    }

    /// Whether a drain wants this response to be the last of its connection.
    fn should_close_for_drain(&self, connection: &Arc<Connection>) -> bool {
        /// By when all that had arrived at the drain's beginning has been received from tiny_http, however busy the cores.
        const SETTLED: Duration = Duration::from_millis(50);
        self.phase.is_draining()
            && self
                .socket_of(connection)
                .is_none_or(|socket| connection.has_no_more_input(&socket, self.phase.draining_for() > SETTLED))
    }

    /// Sees to it that the body is out of the way of the next request; false if it is not, and the connection must be
    /// closed under it.
    fn consume_body(&self, request: &mut Request, last: bool) -> bool {
        if request.is_body_done() || request.is_body_broken() {
            return true;
        }
        if request.is_body_buffered() {
            return request.discard_body(self.max_body).is_ok();
        }
        // Who waits for `100 Continue` has not sent it, and is told not to by a final response.
        if last || request.header("expect").is_some() {
            return false;
        }
        request.discard_body(self.max_body).is_ok() || request.is_body_done()
    }

    /// Ends a request in flight.
    fn finish(&self, connection: &Arc<Connection>, last: bool, engine_closes: bool) -> Option<Turn> {
        let arrived = connection.since();
        let finished = self.connections.finish(connection, last);
        // Only after it is finished, lest the drain begin in between and wait for one that nobody tells it of.
        let concerns_the_drain = match self.phase.get() {
            Phase::Serving => false,
            Phase::DrainDelay => self.phase.predates_drain(arrived),
            _ => true,
        };
        if concerns_the_drain {
            self.monitor.wake();
        }
        match finished {
            AfterResponse::Next(raw) => return Some((Arc::clone(connection), raw)),
            AfterResponse::Idle => {}
            AfterResponse::Closed(rest) => {
                for raw in rest {
                    self.discard(raw, None);
                }
                if engine_closes {
                    self.connections.forget(connection);
                }
            }
        }
        None
    }

    /// Throws a request of a connection that is closing away, unanswered. `left` says how much of its body is, if some
    /// was read. Never waits for the client, for it is done on the listener's thread.
    fn discard(&self, raw: tiny_http::Request, left: Option<u64>) {
        let (_, quirks) = quirks::of_rejected(&raw);
        if !quirks.body_buffered {
            let left = left.or(raw.body_length().map(|length| length as u64));
            let connection = raw.remote_addr().and_then(|peer| self.connections.connection(*peer));
            let Some(socket) = connection.and_then(|connection| self.socket_of(&connection)) else {
                return leftover::discard_unknown_socket(raw, left.unwrap_or(0));
            };
            // Dropping it reads what is left, and comes to its end at once.
            let _ = SockRef::from(&*socket).shutdown(Shutdown::Read); // fails if the peer has left
            return leftover::discard(raw, left.unwrap_or(0));
        }
        drop(raw.into_writer()); // lest `Request` answers 500 by itself
    }
}

/// Writes a response, with the memory that this thread keeps for it.
fn respond(response: Response, context: &ResponseContext<'_>, out: &mut dyn Write) -> Sent {
    // Taken, not borrowed: the reader of a body is foreign code.
    let mut buffer = BUFFER.take();
    let sent = send(response, context, &mut buffer, out);
    if buffer.capacity() <= MAX_RETAINED_BUFFER {
        BUFFER.set(buffer);
    }
    sent
}

/// The socket itself, past tiny_http: for the one response whose request must not be dropped yet. It is the first in
/// line, so that nothing of tiny_http's own can be on its way at the same time.
struct RawSocket<'a>(&'a OwnedFd);

impl Write for RawSocket<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::net::send(self.0, bytes, SendFlags::NOSIGNAL)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
