//! Router: which handler answers which method on which path. Paths are matched by `matchit`, as axum does.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use super::request::Request;
use crate::http::response::Response;

/// What answers a request.
pub(crate) type Handler = Arc<dyn Fn(&mut Request) -> Response + Send + Sync>;

/// A path or method that cannot be routed.
#[derive(Debug)]
pub struct BadRoute(String);

impl fmt::Display for BadRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BadRoute {}

/// Which route a request took.
#[derive(Clone, Debug)]
pub(crate) struct Route {
    /// The pattern, never the path: what a client can send is without end, and so would be what is counted by it.
    pub(crate) pattern: Arc<str>,
    /// Its place among [`Router::patterns`]; beyond their end for what no route claims.
    #[cfg_attr(not(feature = "metrics"), allow(dead_code, reason = "only metrics count by it"))]
    pub(crate) number: usize,
}

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
    entries: Vec<MethodRoute>,
    allow: Arc<str>,
    /// Answered as if it were not there, whatever the fallback is.
    absent: bool,
}

/// The table of routes.
#[derive(Default, Clone)]
pub(crate) struct Router {
    places: Vec<PathRoutes>,
    by_path: matchit::Router<usize>,
    fallback: Option<(Handler, bool)>,
}

/// Where a request goes.
pub(crate) struct RouteMatch {
    pub(crate) route: Route,
    pub(crate) handler: Option<Handler>,
    pub(crate) inline: bool,
    pub(crate) params: Vec<(String, String)>,
    /// Which methods the path takes, if this is not one of them.
    pub(crate) allow: Option<Arc<str>>,
}

impl RouteMatch {
    /// For a request that is refused before anyone asks where it goes.
    pub(crate) fn refused() -> RouteMatch {
        RouteMatch { route: elsewhere(), handler: None, inline: true, params: Vec::new(), allow: None }
    }
}

impl Router {
    pub(crate) fn add(&mut self, method: &str, path: &str, inline: bool, handler: Handler) -> Result<(), BadRoute> {
        if method.is_empty() || !method.bytes().all(|b| b.is_ascii_uppercase() || b == b'-') {
            return Err(BadRoute(format!("{method:?} is no method: methods are written in capitals")));
        }
        let place = self.place(path)?;
        if place.entries.iter().any(|entry| entry.method == method) {
            return Err(BadRoute(format!("{method} {path} has a handler already")));
        }
        place.entries.push(MethodRoute { method: method.to_owned(), handler, inline });
        let mut methods: BTreeSet<&str> = place.entries.iter().map(|entry| entry.method.as_str()).collect();
        if methods.contains("GET") {
            methods.insert("HEAD");
        }
        place.allow = methods.into_iter().collect::<Vec<_>>().join(", ").into();
        Ok(())
    }

    /// Has `path` answered with 404, whatever the method, even where a fallback answers everything else.
    pub(crate) fn mask(&mut self, path: &str) -> Result<(), BadRoute> {
        self.place(path)?.absent = true;
        Ok(())
    }

    fn place(&mut self, path: &str) -> Result<&mut PathRoutes, BadRoute> {
        let known = self.places.iter().position(|place| &*place.pattern == path);
        let at = known.unwrap_or(self.places.len());
        if known.is_none() {
            self.by_path.insert(path, at).map_err(|error| BadRoute(format!("{path:?}: {error}")))?;
            let (pattern, allow) = (Arc::from(path), Arc::from(""));
            self.places.push(PathRoutes { pattern, entries: Vec::new(), allow, absent: false });
        }
        Ok(&mut self.places[at])
    }

    pub(crate) fn set_fallback(&mut self, inline: bool, handler: Handler) {
        self.fallback = Some((handler, inline));
    }

    pub(crate) fn has(&self, path: &str) -> bool {
        self.places.iter().any(|place| &*place.pattern == path)
    }

    /// All patterns, in the order of their routes' numbers.
    #[cfg(feature = "metrics")]
    pub(crate) fn patterns(&self) -> impl Iterator<Item = &Arc<str>> {
        self.places.iter().map(|place| &place.pattern)
    }

    /// Where a request of this method on this path goes. `HEAD` goes where `GET` does.
    pub(crate) fn find(&self, method: &str, path: &str) -> RouteMatch {
        if let Ok(matched) = self.by_path.at(path) {
            let place = &self.places[*matched.value];
            let get = || place.entries.iter().find(|entry| method == "HEAD" && entry.method == "GET");
            let entry = place.entries.iter().find(|entry| entry.method == method).or_else(get);
            return RouteMatch {
                route: Route { pattern: Arc::clone(&place.pattern), number: *matched.value },
                handler: entry.map(|entry| Arc::clone(&entry.handler)),
                inline: entry.is_none_or(|entry| entry.inline),
                params: matched.params.iter().map(|(name, value)| (name.to_owned(), decode(value))).collect(),
                allow: (entry.is_none() && !place.absent).then(|| Arc::clone(&place.allow)),
            };
        }
        let fallback = self.fallback.as_ref();
        RouteMatch {
            route: elsewhere(),
            handler: fallback.map(|(handler, _)| Arc::clone(handler)),
            inline: fallback.is_none_or(|(_, inline)| *inline),
            params: Vec::new(),
            allow: None,
        }
    }
}

/// The name under which requests that no path claims are counted.
pub(crate) const FALLBACK: &str = "*";

fn elsewhere() -> Route {
    use std::sync::OnceLock;
    static NAME: OnceLock<Arc<str>> = OnceLock::new();
    Route { pattern: Arc::clone(NAME.get_or_init(|| Arc::from(FALLBACK))), number: usize::MAX }
}

fn decode(segment: &str) -> String {
    percent_encoding::percent_decode_str(segment).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(found.params, [("name".to_owned(), "Jürgen".to_owned())]);
        assert_eq!((&*found.route.pattern, found.route.number), ("/hello/{name}", 1));
    }

    #[test]
    fn what_nobody_claims_goes_to_the_fallback() {
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
    fn routes_that_cannot_be_are_refused() {
        let handler: Handler = Arc::new(|_| Response::text(""));
        let mut routes = routes();
        assert!(routes.add("GET", "/healthz", true, Arc::clone(&handler)).is_err());
        assert!(routes.add("get", "/a", true, Arc::clone(&handler)).is_err());
        assert!(routes.add("GET", "/hello/{other}", true, handler).is_err());
    }
}
