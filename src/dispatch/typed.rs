//! Parts of a request as values: cookies, the client's address, and parameters, queries and forms of any type.

use std::net::IpAddr;
use std::str::FromStr;

use super::request::Request;
#[cfg(feature = "serde")]
use crate::http::fault::BodyError;
use crate::http::fault::StatusError;
#[cfg(feature = "serde")]
use crate::http::pairs::from_pairs;

/// # Parts as values
impl Request {
    /// A parameter of the route's path, as a number or anything else that can be parsed.
    ///
    /// ```
    /// use allout::{StatusError, Request, Service};
    ///
    /// fn double(request: &mut Request) -> Result<String, StatusError> {
    ///     let n: u64 = request.parse_param("n")?; // no number: 404
    ///     Ok((2 * n).to_string())
    /// }
    /// let service = Service::new().get("/double/{n}", double);
    /// assert_eq!(service.handle(Request::get("/double/21")).into_text()?, "42");
    /// assert_eq!(service.handle(Request::get("/double/x")).status(), 404);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// There is no such parameter, or it cannot be parsed: 404, since nothing has that path.
    pub fn parse_param<T: FromStr>(&self, name: &str) -> Result<T, StatusError> {
        let value = self.param(name).and_then(|value| value.parse().ok());
        value.ok_or_else(|| StatusError::new(404, format!("{name} is missing or malformed")))
    }

    /// The cookies that the client sent, in that order: names and values, which are not decoded (RFC 6265, section
    /// 4.2.1). Those that are not UTF-8 are left out.
    pub fn cookies(&self) -> impl Iterator<Item = (&str, &str)> {
        let lines = self.exchange().headers().filter(|(name, _)| name.eq_ignore_ascii_case("cookie"));
        // Each for itself: other cookies of the same line count although one is not UTF-8.
        let texts = lines.flat_map(|(_, line)| line.split(|byte| *byte == b';')).flat_map(std::str::from_utf8);
        let pairs = texts.filter_map(|pair| pair.trim().split_once('='));
        pairs.map(|(name, value)| {
            let inner = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
            (name.trim_end(), inner.unwrap_or(value))
        })
    }

    /// The first cookie of this name.
    ///
    /// ```
    /// let request = allout::Request::get("/").header("Cookie", "theme=dark; id=7").build();
    /// assert_eq!(request.cookie("id"), Some("7"));
    /// ```
    pub fn cookie(&self, name: &str) -> Option<&str> {
        self.cookies().find(|(known, _)| *known == name).map(|(_, value)| value)
    }

    /// The address of the client: behind proxies that are [trusted](crate::Service::trust_proxies) the one that they
    /// name, otherwise that of the [peer](Request::peer). `None` if it is not known: that of a client of a Unix socket,
    /// or of one that a trusted proxy does not name (`unknown`, or no address at all). Never grant a right because of a
    /// `None`.
    pub fn client_ip(&self) -> Option<IpAddr> {
        let peer = self.peer().ip();
        match self.proxies() {
            Some(proxies) => proxies.client_ip(peer, self.exchange().headers()),
            None => peer,
        }
    }
}

/// # Parts of any type
#[cfg(feature = "serde")]
impl Request {
    /// The parameters of the route's path as a value of any type, whose fields have their names.
    ///
    /// ```
    /// use allout::{StatusError, Request, Service};
    ///
    /// #[derive(serde::Deserialize)]
    /// struct Page {
    ///     book: String,
    ///     number: u32,
    /// }
    ///
    /// fn page(request: &mut Request) -> Result<String, StatusError> {
    ///     let page: Page = request.params_as()?;
    ///     Ok(format!("page {} of {}", page.number, page.book))
    /// }
    /// let service = Service::new().get("/{book}/{number}", page);
    /// assert_eq!(service.handle(Request::get("/emma/7")).into_text()?, "page 7 of emma");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// They do not fit the type: 404, since nothing has that path.
    pub fn params_as<T: serde::de::DeserializeOwned>(&self) -> Result<T, StatusError> {
        let pairs = self.params().iter().map(|(name, value)| (name.into(), value.into()));
        from_pairs(pairs).map_err(|reason| StatusError::new(404, reason))
    }

    /// The query as a value of any type, whose fields have the names of its parameters. One that comes several times
    /// fills a sequence; an empty one is `None` of an option.
    ///
    /// ```
    /// use allout::{StatusError, Request, Service};
    ///
    /// #[derive(serde::Deserialize)]
    /// struct Search {
    ///     q: String,
    ///     page: Option<u32>,
    /// }
    ///
    /// fn search(request: &mut Request) -> Result<String, StatusError> {
    ///     let search: Search = request.query_as()?;
    ///     Ok(format!("{} on page {}", search.q, search.page.unwrap_or(1)))
    /// }
    /// let service = Service::new().get("/search", search);
    /// assert_eq!(service.handle(Request::get("/search?q=a+b")).into_text()?, "a b on page 1");
    /// assert_eq!(service.handle(Request::get("/search?page=x")).status(), 400);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// It does not fit the type: 400, with the name of what is wrong.
    pub fn query_as<T: serde::de::DeserializeOwned>(&self) -> Result<T, StatusError> {
        from_pairs(self.query_pairs()).map_err(|reason| StatusError::new(400, reason))
    }

    /// The whole body as a form (`application/x-www-form-urlencoded`), within the limit of [`bytes`](Request::bytes);
    /// read as [`query_as`](Request::query_as) reads a query.
    ///
    /// ```
    /// use allout::{BodyError, Request, Response, Service};
    ///
    /// #[derive(serde::Deserialize)]
    /// struct Login {
    ///     user: String,
    ///     password: String,
    /// }
    ///
    /// fn login(request: &mut Request) -> Result<Response, BodyError> {
    ///     let Login { user, password } = request.form()?;
    ///     if (user.as_str(), password.as_str()) != ("Ada", "s3cret") {
    ///         return Ok((401, "wrong user or password").into());
    ///     }
    ///     let session = "0af7651916cd43dd"; // of random bytes, and kept with its user
    ///     let cookie = format!("session={session}; Path=/; HttpOnly; Secure; SameSite=Lax");
    ///     Ok(Response::redirect("/").with_header("Set-Cookie", cookie)) // the browser sends it back: Request::cookie
    /// }
    /// let service = Service::new().post("/login", login);
    /// let response = service.handle(Request::post("/login").form([("user", "Ada"), ("password", "s3cret")]));
    /// assert_eq!((response.status(), response.header("Location")), (303, Some("/")));
    /// ```
    ///
    /// # Errors
    ///
    /// [`BodyError`](crate::BodyError), which turns into a fitting response: 415 for another content type.
    pub fn form<T: serde::de::DeserializeOwned>(&mut self) -> Result<T, BodyError> {
        const FORM: &str = "application/x-www-form-urlencoded";
        let media_type = self.header("content-type").and_then(|value| value.split(';').next()).unwrap_or_default();
        if !media_type.trim().eq_ignore_ascii_case(FORM) {
            return Err(BodyError::wrong_type(FORM));
        }
        let bytes = self.bytes()?;
        from_pairs(form_urlencoded::parse(&bytes)).map_err(BodyError::malformed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cookies_are_found_in_all_their_lines() {
        let request = Request::get("/").header("Cookie", "a=1; b=\"two\" ;c; d=e=f").header("cookie", "a=2;g=").build();
        let all: Vec<_> = request.cookies().collect();
        assert_eq!(all, [("a", "1"), ("b", "two"), ("d", "e=f"), ("a", "2"), ("g", "")]);
        assert_eq!((request.cookie("a"), request.cookie("c")), (Some("1"), None));
    }

    #[test]
    fn a_cookie_that_is_not_utf_8_hides_no_other() {
        let request = Request::get("/").header("Cookie", b"theme=\xff; session=s3cret; \xfe=1").build();
        assert_eq!(request.cookies().collect::<Vec<_>>(), [("session", "s3cret")]);
    }

    #[test]
    fn parameters_are_parsed_or_not_found() {
        let request = Request::get("/").param("n", "7").build();
        assert_eq!(request.parse_param::<u8>("n").unwrap(), 7);
        assert!(request.parse_param::<bool>("n").is_err() && request.parse_param::<u8>("m").is_err());
    }

    #[test]
    fn without_trusted_proxies_the_client_is_the_peer() {
        let request = Request::get("/").header("X-Forwarded-For", "203.0.113.7").header("Forwarded", "for=203.0.113.7");
        assert_eq!(request.build().client_ip(), Some(IpAddr::from([127, 0, 0, 1])));
    }
}
