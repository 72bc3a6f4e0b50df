//! The operational routes: health, readiness, liveness, and the way out.

use std::sync::Arc;

use crate::crew::Stopper;
use crate::http::reply::Reply;
use crate::http::request::Request;
use crate::http::routes::{BadRoute, Handler, Routes};
use crate::phase::{Current, Phase};

/// Adds the operational routes that the service itself does not have.
///
/// All are quick: they answer while anything at all is alive, whatever the other routes are doing.
pub(crate) fn add(routes: &mut Routes, phase: &Arc<Current>, stopper: &Stopper) -> Result<(), BadRoute> {
    let mut quick = |methods: &[&str], path: &str, handler: Handler| -> Result<(), BadRoute> {
        if routes.has(path) {
            return Ok(()); // the service's own counts
        }
        methods.iter().try_for_each(|method| routes.add(method, path, true, Arc::clone(&handler)))
    };
    let ready: Handler = {
        let phase = Arc::clone(phase);
        Arc::new(move |_| {
            let reply = if phase.is_draining() {
                Reply::text("draining\n").with_status(503).with_header("Retry-After", "1")
            } else {
                Reply::text("ok\n")
            };
            reply.with_header("Cache-Control", "no-store")
        })
    };
    quick(&["GET"], "/healthz", Arc::clone(&ready))?;
    quick(&["GET"], "/readyz", ready)?;
    quick(&["GET"], "/livez", Arc::new(|_| Reply::text("ok\n").with_header("Cache-Control", "no-store")))?;
    let (stopper, phase) = (stopper.clone(), Arc::clone(phase));
    quick(&["GET", "POST"], "/shutdown", Arc::new(move |request| shutdown(request, &stopper, &phase)))
}

fn shutdown(request: &mut Request, stopper: &Stopper, phase: &Current) -> Reply {
    if !request.peer().ip().to_canonical().is_loopback() {
        log::warn!("{} asked to shut down, and may not", request.peer());
        return Reply::error(403, "Forbidden");
    }
    phase.advance(Phase::DrainDelay); // so that this very response says that it is the last
    stopper.stop(format!("{} /shutdown from {}", request.method(), request.peer()));
    Reply::text("one out, all out\n").with_header("Cache-Control", "no-store")
}
