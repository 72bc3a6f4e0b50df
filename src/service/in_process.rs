//! A service without a socket: answers requests that a test has made as if they had been received.

use std::sync::Arc;
use std::time::Instant;

use crate::admin::Observed;
use crate::crew::Crew;
use crate::crew::pool::Pool;
use crate::dispatch::Dispatch;
use crate::dispatch::request::Request;
use crate::engine::Engines;
use crate::http::response::Response;
use crate::lifecycle::phase::Lifecycle;
use crate::observe::ServiceState;
use crate::service::Service;
use crate::service::error::StartError;
use crate::service::parts::facts;

/// # Tests without a socket
impl Service {
    /// Answers a request with the response that the service would send, on the calling thread, without a socket and
    /// without its members: for tests.
    ///
    /// The request is [made](Request::get), and takes the way of one that is received: it is validated, routed, handled
    /// and counted, and the errors and panics of handlers become what they are for a client. `HEAD` gets no body. Only
    /// the headers that each response gets when it is written (`Date`, `X-Request-Id` and the like) are not in it.
    ///
    /// A service that could not start answers everything with 500, and says why.
    ///
    /// ```
    /// use allout::{Request, Service};
    ///
    /// let service = Service::new().post("/echo", Request::text);
    /// let response = service.handle(Request::post("/echo").body("hello"));
    /// assert_eq!((response.status(), response.into_text()?), (200, "hello".to_owned()));
    /// assert_eq!(service.handle(Request::get("/echo")).header("Allow"), Some("POST"));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn handle(&self, request: impl Into<Request>) -> Response {
        let (exchange, ..) = request.into().into_parts();
        if let Some(error) = &self.error {
            return Response::error(500, error.to_string());
        }
        self.admin.checks.run_once();
        match self.dispatch() {
            Ok(dispatch) => dispatch.answer_here(exchange),
            Err(error) => Response::error(500, error.to_string()),
        }
    }

    /// The dispatch of the service, without an engine that receives requests.
    pub(super) fn dispatch(&self) -> Result<Dispatch, StartError> {
        let mut unused = Crew::new();
        let pool = Pool::new(1, 0, unused.reserve("workers"));
        let state = ServiceState {
            engines: Engines::new(Vec::new()),
            pool: Arc::clone(&pool) as _,
            lifecycle: Arc::new(Lifecycle::new(self.crew.stop())),
            dispatch: Arc::default(),
            queue: self.config.queue,
            max_connections: self.config.max_connections,
            members: unused.members(),
            began: Instant::now(),
        };
        let admin = self.admin.clone();
        let facts = facts(&self.config, &[], String::new());
        let installed = admin.install(self.routes.clone(), false, &state, &unused.stopper(), facts);
        let Observed { router, observers } = installed?.service;
        Ok(Dispatch {
            router,
            pool,
            stop: self.crew.stop(),
            observers,
            settings: self.dispatch_settings(),
            stats: state.dispatch,
        })
    }
}
