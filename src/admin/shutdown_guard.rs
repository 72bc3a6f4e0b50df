//! Who may use `/shutdown`.
//!
//! It answers to `GET`, so that a browser can be talked into asking for it, by any page that it shows. Hence, without a
//! token, a request must come from this machine, from no proxy, and from no page but one of our own. `curl` on the same
//! machine passes; so does an address that is typed into a browser.
//!
//! # Limitations
//!
//! A proxy on the same machine that says nothing of itself cannot be told from a client there (nginx's `proxy_pass` says
//! nothing unless it is configured to). Behind one, have no such route, or none that it passes on.
//!
//! The address of a peer says "this machine", not "this user": whoever may run a program here may ask.

use std::net::IpAddr;

use subtle::ConstantTimeEq as _;

use crate::http::validate::authority;

/// The rules, as they stand for one service.
#[derive(Clone)]
pub(crate) struct Guard {
    /// Lets in whoever has it.
    pub(crate) token: Option<String>,
    /// Where the service listens.
    pub(crate) listening: IpAddr,
}

impl Guard {
    /// # Errors
    ///
    /// The reason why this request may not.
    pub(crate) fn authorize(&self, peer: IpAddr, target: &str, headers: &[(&str, &str)]) -> Result<(), &'static str> {
        let named = |wanted: &'static str| {
            headers.iter().filter(move |(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| *value)
        };
        // Whoever shows a token is judged by it alone: no page and no proxy can make one up.
        if let (Some(token), Some(shown)) = (&self.token, named("authorization").next()) {
            return if is_bearer(shown, token) { Ok(()) } else { Err("the token is wrong") };
        }
        if !peer.to_canonical().is_loopback() {
            return Err("not from this machine");
        }
        let through_proxy = |name: &str| {
            // X-Forwarded-For, -Host, -Proto, and whatever else there may be.
            let forwarded = name.get(..12).is_some_and(|start| start.eq_ignore_ascii_case("x-forwarded-"));
            forwarded || ["forwarded", "via", "x-real-ip"].iter().any(|proxy| name.eq_ignore_ascii_case(proxy))
        };
        if headers.iter().any(|(name, _)| through_proxy(name)) {
            return Err("through a proxy");
        }
        // DNS rebinding: a page of a name that has been made to mean this machine. An absolute target counts for more
        // than Host does (RFC 9112, section 3.2.2), so that both must be ours.
        if named("host").chain(authority(target)).any(|host| !self.is_ours(host)) {
            return Err("for another host");
        }
        let from_elsewhere = |site: &str| !matches!(site, "none" | "same-origin");
        if named("sec-fetch-site").any(from_elsewhere) {
            return Err("from another page");
        }
        // Browsers that do not send Sec-Fetch-Site.
        let host = named("host").next().unwrap_or_default();
        let is_own = |connection: &str| {
            let rest = connection.strip_prefix("http://").unwrap_or_default();
            rest.split(['/', '?', '#']).next().is_some_and(|from| !from.is_empty() && from.eq_ignore_ascii_case(host))
        };
        if named("origin").chain(named("referer")).any(|connection| !is_own(connection)) {
            return Err("from another page");
        }
        // Browsers fetch what they believe is about to be asked for: after half of an address was typed, for example.
        let in_advance = |why: &str| why.contains("prefetch") || why.contains("prerender") || why == "preview";
        if named("sec-purpose").chain(named("purpose")).chain(named("x-moz")).any(in_advance) {
            return Err("in advance");
        }
        Ok(())
    }

    /// Whether a host, with or without a port, is a loopback name or address, or where we listen. The port is not
    /// looked at: it is another one where a container or a tunnel maps it.
    fn is_ours(&self, host: &str) -> bool {
        let name = match host.strip_prefix('[') {
            Some(rest) => rest.split(']').next().unwrap_or_default(),
            None => host.split(':').next().unwrap_or_default(),
        };
        let name = name.to_ascii_lowercase();
        // RFC 6761, section 6.3: nobody can have these names.
        name == "localhost"
            || name.ends_with(".localhost")
            || name.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback() || ip == self.listening)
    }
}

/// RFC 6750, section 2.1. How long the comparison takes depends on the lengths, and on nothing else.
fn is_bearer(authorization: &str, token: &str) -> bool {
    let Some((scheme, shown)) = authorization.split_once(' ') else { return false };
    let same = shown.trim_start_matches(' ').as_bytes().ct_eq(token.as_bytes());
    scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() && bool::from(same)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: &str = "127.0.0.1";

    #[track_caller]
    fn check(token: Option<&str>, peer: &str, target: &str, headers: &[(&str, &str)], expected: Result<(), &str>) {
        let guard = Guard { token: token.map(str::to_owned), listening: "192.0.2.1".parse().unwrap() };
        assert_eq!(guard.authorize(peer.parse().unwrap(), target, headers), expected, "{peer} {target} {headers:?}");
    }

    #[test]
    fn this_machine_may_and_others_may_not() {
        for peer in [HERE, "127.9.9.9", "::1", "::ffff:127.0.0.1"] {
            check(None, peer, "/shutdown", &[("Host", "localhost:8088")], Ok(()));
        }
        for peer in ["192.0.2.1", "192.0.2.7", "::ffff:192.0.2.7", "fe80::1"] {
            check(None, peer, "/shutdown", &[("Host", "localhost")], Err("not from this machine"));
        }
        check(None, HERE, "/shutdown", &[], Ok(())); // HTTP/1.0
    }

    #[test]
    fn proxies_are_told_by_what_they_add() {
        for name in ["Forwarded", "via", "X-Forwarded-For", "x-forwarded-proto", "X-FORWARDED-X", "X-Real-IP"] {
            check(None, HERE, "/shutdown", &[("Host", "localhost"), (name, "")], Err("through a proxy"));
        }
    }

    #[test]
    fn hosts_are_loopback_names_or_where_we_listen() {
        for host in
            ["localhost", "LocalHost:1", "a.localhost", "127.0.0.1:8088", "127.1.2.3", "[::1]:8088", "192.0.2.1:80"]
        {
            check(None, HERE, "/shutdown", &[("Host", host)], Ok(()));
            check(None, HERE, &format!("http://{host}/shutdown"), &[("Host", host)], Ok(()));
        }
        for host in ["evil.test", "evil.test:8088", "localhost.evil.test", "127.0.0.1.evil.test", "192.0.2.2", "[::2]"]
        {
            check(None, HERE, "/shutdown", &[("Host", host)], Err("for another host"));
            let target = format!("http://{host}/shutdown");
            check(None, HERE, &target, &[("Host", "localhost")], Err("for another host"));
        }
    }

    #[test]
    fn pages_must_be_our_own() {
        let from = |name, value, expected| {
            check(None, HERE, "/shutdown", &[("Host", "localhost:8088"), (name, value)], expected);
        };
        let elsewhere = Err("from another page");
        from("Sec-Fetch-Site", "none", Ok(()));
        from("Sec-Fetch-Site", "same-origin", Ok(()));
        from("Sec-Fetch-Site", "same-site", elsewhere);
        from("sec-fetch-site", "cross-site", elsewhere);
        from("Sec-Fetch-Site", "", elsewhere);
        from("Origin", "http://localhost:8088", Ok(()));
        for origin in ["null", "", "http://localhost", "http://localhost:3000", "https://localhost:8088", "http://"] {
            from("Origin", origin, elsewhere);
        }
        from("Referer", "http://localhost:8088/a", Ok(()));
        from("Referer", "http://localhost:8088.evil.test/", elsewhere);
        from("Sec-Purpose", "prefetch;prerender", Err("in advance"));
        from("Purpose", "prefetch", Err("in advance"));
        // Each of several counts.
        let twice = [("Host", "localhost"), ("Sec-Fetch-Site", "none"), ("Sec-Fetch-Site", "cross-site")];
        check(None, HERE, "/shutdown", &twice, elsewhere);
    }

    #[test]
    fn a_token_lets_in_from_anywhere_and_a_wrong_one_from_nowhere() {
        let with = |token, peer, shown, expected| {
            check(token, peer, "/shutdown", &[("Host", "evil.test"), ("Via", "x"), ("authorization", shown)], expected);
        };
        with(Some("s3cret"), "192.0.2.7", "Bearer s3cret", Ok(()));
        with(Some("s3cret"), "192.0.2.7", "bearer  s3cret", Ok(()));
        let wrong = Err("the token is wrong");
        for shown in
            ["Bearer s3cre", "Bearer s3cret1", "Bearer S3CRET", "Basic s3cret", "s3cret", "Bearer", "Bearer ", ""]
        {
            with(Some("s3cret"), "192.0.2.7", shown, wrong);
            with(Some("s3cret"), HERE, shown, wrong);
        }
        with(Some(""), HERE, "Bearer ", wrong);
        with(None, "192.0.2.7", "Bearer ", Err("not from this machine"));
        check(Some("s3cret"), "192.0.2.7", "/shutdown", &[], Err("not from this machine"));
        check(Some("s3cret"), HERE, "/shutdown", &[("Host", "localhost")], Ok(()));
    }
}
