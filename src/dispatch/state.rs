//! Handlers that share state.

use crate::dispatch::request::Request;

/// Makes a handler from a function that takes shared state (a database, a cache, a configuration) beside the request.
/// Each call of `with_state` clones the state, so it is an [`Arc`](std::sync::Arc), or holds some.
///
/// ```
/// use std::sync::{Arc, Mutex};
/// use allout::{BodyError, Request, Service, with_state};
///
/// type Notes = Arc<Mutex<Vec<String>>>;
///
/// fn add(notes: &Notes, request: &mut Request) -> Result<u16, BodyError> {
///     let note = request.text()?; // before the lock: the client decides how long it takes
///     notes.lock().unwrap().push(note);
///     Ok(201)
/// }
///
/// let notes = Notes::default();
/// let service = Service::new()
///     .post("/notes", with_state(&notes, add))
///     .get("/notes", with_state(&notes, |notes, _| notes.lock().unwrap().join("\n")));
/// assert_eq!(service.handle(Request::post("/notes").body("tea")).status(), 201);
/// assert_eq!(service.handle(Request::get("/notes")).into_text()?, "tea");
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn with_state<S, R, H>(state: &S, handler: H) -> impl Fn(&mut Request) -> R + Send + Sync + 'static + use<S, R, H>
where
    S: Clone + Send + Sync + 'static,
    H: Fn(&S, &mut Request) -> R + Send + Sync + 'static,
{
    let state = state.clone();
    move |request| handler(&state, request)
}
