//! The route of a request: pattern and parameters.

use std::sync::{Arc, OnceLock};

/// The pattern of the fallback, and of requests that match no path.
pub(crate) const FALLBACK: &str = "*";

/// The route that a request took.
#[derive(Clone, Debug)]
pub(crate) struct Route {
    /// The pattern, never the path: the number of paths that clients send is unbounded, and metrics are labelled by
    /// this.
    pub(crate) pattern: Arc<str>,
    /// Position among the router's patterns; `usize::MAX` for a request that matched no path.
    #[cfg_attr(not(feature = "metrics"), allow(dead_code, reason = "only metrics count by it"))]
    pub(crate) index: usize,
}

impl Route {
    /// The route of a request that matches no path.
    pub(crate) fn unmatched() -> Route {
        static PATTERN: OnceLock<Arc<str>> = OnceLock::new();
        Route { pattern: Arc::clone(PATTERN.get_or_init(|| Arc::from(FALLBACK))), index: usize::MAX }
    }
}

/// The parameters of a route's path, decoded: `name` of `/hello/{name}`. A clone is cheap, and independent of the
/// request.
#[derive(Clone, Debug, Default)]
pub struct Params(Option<Arc<[Param]>>);

/// Name and value.
type Param = (Box<str>, String);

impl Params {
    /// Allocates nothing where there are none.
    pub(crate) fn new<'a>(pairs: impl Iterator<Item = (&'a str, String)>) -> Params {
        let mut pairs = pairs.map(|(name, value)| (Box::from(name), value)).peekable();
        Params(pairs.peek().is_some().then(|| pairs.collect()))
    }

    /// The value of a parameter.
    ///
    /// ```
    /// use allout::{Request, Service};
    /// let service = Service::new().get("/{book}/{page}", |request| {
    ///     let params = request.params();
    ///     format!("page {} of {}", params.get("page").unwrap_or("1"), params.get("book").unwrap_or("?"))
    /// });
    /// assert_eq!(service.handle(Request::get("/emma/7")).into_text()?, "page 7 of emma");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn get(&self, name: &str) -> Option<&str> {
        self.iter().find(|(known, _)| *known == name).map(|(_, value)| value)
    }

    /// Names and values, in the order of the path.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().flat_map(|pairs| pairs.iter()).map(|(name, value)| (&**name, value.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_found_by_name_and_shared_by_clones() {
        let params = Params::new([("a", "1".to_owned()), ("b", "2".to_owned())].into_iter());
        assert_eq!((params.get("b"), params.get("c")), (Some("2"), None));
        let clone = params.clone();
        assert_eq!(clone.iter().collect::<Vec<_>>(), [("a", "1"), ("b", "2")]);
        assert!(std::ptr::eq(clone.get("a").unwrap(), params.get("a").unwrap()));
        assert!(Params::new(std::iter::empty()).0.is_none());
    }
}
