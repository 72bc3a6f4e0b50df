//! The router: finds the handler for a method and a path. Paths are matched by `matchit`, as axum does.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};

use super::limits::Limits;
use super::request::Request;
pub(crate) use super::route::FALLBACK;
use super::route::{Params, Route};
use crate::http::response::Response;

/// Turns a request into a response.
pub(crate) type Handler = Arc<dyn Fn(&mut Request) -> Response + Send + Sync>;

/// A path or method that cannot be routed, and what to write instead.
#[derive(Debug)]
pub struct BadRoute(String);

impl fmt::Display for BadRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BadRoute {}

/// One method of one path.
#[derive(Clone)]
struct MethodRoute {
    method: String,
    handler: Handler,
    inline: bool,
}

/// All methods of one path.
#[derive(Clone)]
struct PathRoutes {
    pattern: Arc<str>,
    methods: Vec<MethodRoute>,
    /// The value of `Allow`.
    allow: Arc<str>,
    limits: Limits,
    /// Answered with 404 as if it were not there, whatever the fallback is.
    masked: bool,
}

/// The route of all requests that match no path.
#[derive(Clone)]
struct Fallback {
    handler: Handler,
    inline: bool,
    limits: Limits,
}

/// The table of routes.
#[derive(Default, Clone)]
pub(crate) struct Router {
    paths: Vec<PathRoutes>,
    by_path: matchit::Router<usize>,
    fallback: Option<Fallback>,
    /// The first of the admin routes; they come last.
    first_admin: Option<usize>,
}

/// The result of routing: handler, route, and how the handler runs.
pub(crate) struct RouteMatch {
    pub(crate) route: Route,
    pub(crate) handler: Option<Handler>,
    /// Whether the handler never blocks, so that it may run on the thread that receives.
    pub(crate) inline: bool,
    /// Whether it is answered whatever the workers are doing, so that middleware that may wait is left out.
    pub(crate) must_not_wait: bool,
    /// Whether it is an admin route, which may take a reserved worker.
    pub(crate) is_admin: bool,
    pub(crate) params: Params,
    pub(crate) limits: Limits,
    /// The methods of the path, if the request's method is not one of them.
    pub(crate) allow: Option<Arc<str>>,
}

impl RouteMatch {
    /// A request that matched no path and has no handler, as one that is rejected before it is routed.
    pub(crate) fn rejected() -> RouteMatch {
        RouteMatch {
            route: Route::unmatched(),
            handler: None,
            inline: true,
            must_not_wait: false,
            is_admin: false,
            params: Params::default(),
            limits: Limits::default(),
            allow: None,
        }
    }
}

impl Router {
    /// Adds a handler for a method of a path.
    /// Errors: the route exists, conflicts with another, or is one that no request can take.
    pub(crate) fn add(&mut self, method: &str, path: &str, inline: bool, handler: Handler) -> Result<(), BadRoute> {
        if method.is_empty() || !method.bytes().all(|b| b.is_ascii_uppercase() || b == b'-') {
            return Err(BadRoute(format!("{method:?} is no method: methods are written in capitals")));
        }
        if method == "CONNECT" || method == "TRACE" {
            return Err(BadRoute(format!("{method} is never routed")));
        }
        let place = self.path_routes(path)?;
        if place.methods.iter().any(|entry| entry.method == method) {
            return Err(BadRoute(format!("{method} {path} has a handler already")));
        }
        place.methods.push(MethodRoute { method: method.to_owned(), handler, inline });
        place.allow = allowed(&place.methods).into_iter().collect::<Vec<_>>().join(", ").into();
        Ok(())
    }

    /// Marks the routes that are added from here on as admin routes. Those of them that are inline leave out the
    /// middleware that may wait.
    pub(crate) fn begin_admin_routes(&mut self) {
        self.first_admin = Some(self.paths.len());
    }

    /// Answers `path` with 404, whatever the method, also where a fallback answers everything else.
    /// Errors: as for [`add`](Router::add).
    pub(crate) fn mask(&mut self, path: &str) -> Result<(), BadRoute> {
        self.path_routes(path)?.masked = true;
        Ok(())
    }

    /// Sets the limits of a path that has a route, or of the fallback ([`FALLBACK`]).
    /// Errors: there is no such route.
    pub(crate) fn set_limits(&mut self, path: &str, limits: Limits) -> Result<(), BadRoute> {
        let known = match &mut self.fallback {
            Some(fallback) if path == FALLBACK => Some(&mut fallback.limits),
            _ => self.paths.iter_mut().find(|place| &*place.pattern == path).map(|place| &mut place.limits),
        };
        *known.ok_or_else(|| BadRoute(format!("{path:?} has no route to limit: limits follow the route")))? = limits;
        Ok(())
    }

    fn path_routes(&mut self, path: &str) -> Result<&mut PathRoutes, BadRoute> {
        let known = self.paths.iter().position(|place| &*place.pattern == path);
        let at = known.unwrap_or(self.paths.len());
        if known.is_none() {
            check_path(path).map_err(|hint| BadRoute(format!("no request has the path {path:?}: {hint}")))?;
            self.by_path.insert(path, at).map_err(|error| {
                BadRoute(match error {
                    matchit::InsertError::Conflict { with } => {
                        format!("{path:?} matches what {with:?} does: parameters at the same place have the same name")
                    }
                    error => format!("{path:?}: {error}"),
                })
            })?;
            self.paths.push(PathRoutes {
                pattern: Arc::from(path),
                methods: Vec::new(),
                allow: Arc::from(""),
                limits: Limits::default(),
                masked: false,
            });
        }
        Ok(&mut self.paths[at])
    }

    pub(crate) fn set_fallback(&mut self, inline: bool, handler: Handler) {
        self.fallback = Some(Fallback { handler, inline, limits: Limits::default() });
    }

    pub(crate) fn has(&self, path: &str) -> bool {
        self.paths.iter().any(|place| &*place.pattern == path)
    }

    /// All patterns, in the order of [`Route::index`].
    #[cfg(feature = "metrics")]
    pub(crate) fn patterns(&self) -> impl Iterator<Item = &Arc<str>> {
        self.paths.iter().map(|place| &place.pattern)
    }

    /// Routes a request of this method on this path. `HEAD` goes where `GET` does.
    pub(crate) fn find(&self, method: &str, path: &str) -> RouteMatch {
        if let Ok(matched) = self.by_path.at(path) {
            let place = &self.paths[*matched.value];
            let get = || place.methods.iter().find(|entry| method == "HEAD" && entry.method == "GET");
            let entry = place.methods.iter().find(|entry| entry.method == method).or_else(get);
            let inline = entry.is_none_or(|entry| entry.inline);
            let is_admin = self.first_admin.is_some_and(|first| *matched.value >= first);
            return RouteMatch {
                route: Route { pattern: Arc::clone(&place.pattern), index: *matched.value },
                handler: entry.map(|entry| Arc::clone(&entry.handler)),
                inline,
                must_not_wait: inline && is_admin,
                is_admin,
                params: Params::new(matched.params.iter().map(|(name, value)| (name, decode(value)))),
                limits: place.limits,
                allow: (entry.is_none() && !place.masked).then(|| Arc::clone(&place.allow)),
            };
        }
        match &self.fallback {
            Some(Fallback { handler, inline, limits }) => RouteMatch {
                handler: Some(Arc::clone(handler)),
                inline: *inline,
                limits: *limits,
                ..RouteMatch::rejected()
            },
            // RFC 9110, section 9.3.7: what the server as a whole can do.
            None if method == "OPTIONS" && path == "*" => {
                RouteMatch { handler: Some(self.server_options()), ..RouteMatch::rejected() }
            }
            None => RouteMatch::rejected(),
        }
    }

    /// The handler of `OPTIONS *`: 204, and the methods of all routes.
    fn server_options(&self) -> Handler {
        let mut methods = BTreeSet::from(["OPTIONS"]);
        methods.extend(self.paths.iter().filter(|place| !place.masked).flat_map(|place| allowed(&place.methods)));
        let allow = methods.into_iter().collect::<Vec<_>>().join(", ");
        Arc::new(move |_| Response::empty(204).with_header("Allow", allow.clone()))
    }
}

/// The methods that a path takes: those of its routes, and `HEAD` where it has `GET`.
fn allowed(methods: &[MethodRoute]) -> BTreeSet<&str> {
    let mut allowed: BTreeSet<&str> = methods.iter().map(|entry| entry.method.as_str()).collect();
    if allowed.contains("GET") {
        allowed.insert("HEAD");
    }
    allowed
}

/// Rejects a path that no valid request has, with a hint: requests are matched by their path as sent.
fn check_path(path: &str) -> Result<(), String> {
    /// Encoded in a path, beside all that is not ASCII.
    const ENCODED: &AsciiSet = &CONTROLS.add(b' ');
    if !path.starts_with('/') {
        return Err(format!("paths begin with a slash: {:?}", format!("/{path}")));
    }
    if let Some(end) = path.find(['?', '#']) {
        return Err(format!("a query is not part of it: {:?}", &path[..end]));
    }
    for segment in path.split('/') {
        let hint = |name: &str| Err(format!("a parameter is written in braces: {:?}", path.replace(segment, name)));
        match segment.as_bytes() {
            [b':', _, ..] => return hint(&format!("{{{}}}", &segment[1..])),
            [b'<', _, .., b'>'] => return hint(&format!("{{{}}}", &segment[1..segment.len() - 1])),
            [b'{', .., b'}'] if segment.contains(':') => {
                let name = segment.split(':').next().unwrap_or_default();
                return Err(format!("a parameter has no type: {:?}", path.replace(segment, &format!("{name}}}"))));
            }
            [b'*'] => return hint("{*rest}"),
            [b'*', _, ..] => return hint(&format!("{{{segment}}}")),
            _ => {}
        }
    }
    if !path.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(format!("clients send it encoded: {:?}", utf8_percent_encode(path, ENCODED).to_string()));
    }
    Ok(())
}

/// The value of a parameter: percent-decoded; what is no UTF-8 becomes U+FFFD.
fn decode(segment: &str) -> String {
    percent_decode_str(segment).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn routes() -> Router {
        let handler = |text: &'static str| -> Handler { Arc::new(move |_| Response::text(text)) };
        let mut routes = Router::default();
        routes.add("GET", "/healthz", true, handler("ok")).unwrap();
        routes.add("GET", "/hello/{name}", false, handler("hello")).unwrap();
        routes.add("POST", "/hello/{name}", false, handler("posted")).unwrap();
        routes
    }

    #[test]
    fn head_goes_where_get_does_and_other_methods_are_told_what_is_allowed() {
        let routes = routes();
        assert!(routes.find("HEAD", "/healthz").handler.is_some());
        let wrong = routes.find("DELETE", "/hello/you");
        assert!(wrong.handler.is_none());
        assert_eq!(wrong.allow.as_deref(), Some("GET, HEAD, POST"));
    }

    #[test]
    fn parameters_are_decoded_and_the_route_is_named_by_its_pattern() {
        let found = routes().find("GET", "/hello/J%C3%BCrgen");
        assert_eq!(found.params.get("name"), Some("Jürgen"));
        assert_eq!((&*found.route.pattern, found.route.index), ("/hello/{name}", 1));
    }

    #[test]
    fn a_request_that_matches_no_path_goes_to_the_fallback() {
        let mut routes = routes();
        assert!(routes.find("GET", "/else").handler.is_none());
        routes.set_fallback(true, Arc::new(|_| Response::text("else")));
        let found = routes.find("DELETE", "/else");
        assert!(found.handler.is_some() && found.inline);
        assert_eq!(&*found.route.pattern, FALLBACK);

        routes.mask("/gone").unwrap();
        let found = routes.find("DELETE", "/gone");
        assert!(found.handler.is_none() && found.allow.is_none() && found.inline);
    }

    #[test]
    fn options_of_the_server_as_a_whole_are_answered_unless_a_fallback_does() {
        let mut routes = routes();
        assert!(routes.find("OPTIONS", "*").handler.is_some() && routes.find("GET", "*").handler.is_none());
        routes.mask("/gone").unwrap();
        let methods: BTreeSet<&str> = routes.paths.iter().flat_map(|place| allowed(&place.methods)).collect();
        assert_eq!(methods.into_iter().collect::<Vec<_>>(), ["GET", "HEAD", "POST"]);
        routes.set_fallback(true, Arc::new(|_| Response::text("else")));
        assert!(routes.find("OPTIONS", "*").handler.is_some());
    }

    #[test]
    fn a_route_has_limits_of_its_own() {
        let mut routes = routes();
        let limits = Limits::new().max_body(5).request_timeout(Duration::from_secs(7));
        assert!(routes.set_limits("/else", limits).is_err() && routes.set_limits(FALLBACK, limits).is_err());
        routes.set_limits("/hello/{name}", limits).unwrap();
        assert_eq!(routes.find("POST", "/hello/you").limits, limits);
        assert_eq!(routes.find("GET", "/healthz").limits, Limits::new());
        routes.set_fallback(true, Arc::new(|_| Response::text("else")));
        routes.set_limits(FALLBACK, limits).unwrap();
        assert_eq!(routes.find("GET", "/else").limits, limits);
    }

    #[test]
    fn dead_routes_are_refused_with_a_hint() {
        let rows = [
            ("", "\"/\""),
            ("a", "\"/a\""),
            ("*", "\"/*\""),
            ("/:id", "\"/{id}\""),
            ("/a/:id/b", "\"/a/{id}/b\""),
            ("/<id>", "\"/{id}\""),
            ("/a/*", "\"/a/{*rest}\""),
            ("/a/*path", "\"/a/{*path}\""),
            ("/a?b", "\"/a\""),
            ("/a#b", "\"/a\""),
            ("/ü", "\"/%C3%BC\""),
            ("/a b", "\"/a%20b\""),
        ];
        for (path, hint) in rows {
            let error = Router::default().add("GET", path, true, Arc::new(|_| Response::text(""))).unwrap_err();
            assert!(error.to_string().ends_with(hint), "{path}: {error}");
        }
        for path in ["/", "/a:b", "/v1/x:y", "/{id}.json", "/%C3%BC", "/a/{*rest}", "/~a/@b/,;=$"] {
            assert!(check_path(path).is_ok(), "{path}");
        }
    }

    #[test]
    fn invalid_routes_are_refused() {
        let handler: Handler = Arc::new(|_| Response::text(""));
        let mut routes = routes();
        assert!(routes.add("GET", "/healthz", true, Arc::clone(&handler)).is_err());
        for method in ["get", "", "GET ", "CONNECT", "TRACE"] {
            assert!(routes.add(method, "/a", true, Arc::clone(&handler)).is_err(), "{method}");
        }
        assert!(routes.add("GET", "/hello/{other}", true, handler).is_err());
    }
}
