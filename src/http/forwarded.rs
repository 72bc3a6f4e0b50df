//! The address of a client behind proxies, as `X-Forwarded-For` and `Forwarded` (RFC 7239) tell it.

use std::net::{IpAddr, SocketAddr};

/// The trusted proxies, and the header in which they name the client.
#[derive(Clone, Debug)]
pub(crate) struct TrustedProxies {
    header: String,
    networks: Vec<Network>,
    /// Clients of a Unix socket are trusted.
    unix: bool,
}

/// Addresses that begin with the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Network {
    address: IpAddr,
    bits: u32,
}

impl Network {
    fn parse(text: &str) -> Option<Network> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits.parse().ok()?)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().ok()?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.unwrap_or(most);
        (bits <= most).then_some(Network { address, bits })
    }

    fn contains(self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                (own.to_bits() ^ other.to_bits()).checked_shr(32 - self.bits).unwrap_or(0) == 0
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                (own.to_bits() ^ other.to_bits()).checked_shr(128 - self.bits).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

impl TrustedProxies {
    /// `proxies` are addresses, networks (`10.0.0.0/8`), or `unix`.
    /// Errors: the first text that is none of these.
    pub(crate) fn new<T: AsRef<str>>(
        header: &str,
        proxies: impl IntoIterator<Item = T>,
    ) -> Result<TrustedProxies, String> {
        let mut trusted = TrustedProxies { header: header.to_owned(), networks: Vec::new(), unix: false };
        for proxy in proxies {
            match proxy.as_ref() {
                "unix" => trusted.unix = true,
                text => trusted.networks.push(Network::parse(text).ok_or_else(|| text.to_owned())?),
            }
        }
        Ok(trusted)
    }

    fn trusts(&self, address: IpAddr) -> bool {
        self.networks.iter().any(|network| network.contains(address))
    }

    /// The address of the client: that of the peer, or, behind proxies that are trusted, the last one that is not a
    /// trusted proxy. `peer` is `None` for a Unix socket.
    ///
    /// Each proxy appends the address of its client; the client itself may have put anything before that. So the
    /// elements are read from the last to the first, and no further than to the client. If a trusted proxy names no
    /// address (`unknown`, an obfuscated name, garbage), the result is `None`, and not the proxy's own address, which
    /// may have rights that the client has not.
    pub(crate) fn client_ip<'a>(
        &self,
        peer: Option<IpAddr>,
        headers: impl Iterator<Item = (&'a str, &'a [u8])>,
    ) -> Option<IpAddr> {
        let mut client = peer.map(|address| address.to_canonical());
        if !client.map_or(self.unix, |address| self.trusts(address)) {
            return client;
        }
        let has_parameters = self.header.eq_ignore_ascii_case("forwarded");
        let lines: Vec<&[u8]> =
            headers.filter(|(name, _)| name.eq_ignore_ascii_case(&self.header)).map(|(_, value)| value).collect();
        for hop in lines.into_iter().rev().flat_map(|line| from_last(line, has_parameters)) {
            let address = if has_parameters { forwarded_for(hop)? } else { node(hop)? };
            client = Some(address);
            if !self.trusts(address) {
                break;
            }
        }
        client
    }
}

/// The elements of a list, the last first, without empty ones. `quotes`: whether commas within quoted strings do not
/// separate.
///
/// Quoted strings are read from their ends as well: those that a proxy has appended are complete, so an open quote
/// before them cannot reach into them.
fn from_last(line: &[u8], quotes: bool) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(line);
    let elements = std::iter::from_fn(move || {
        let text = rest?;
        let comma = last_comma(text, quotes);
        rest = comma.map(|at| &text[..at]);
        Some(&text[comma.map_or(0, |at| at + 1)..])
    });
    elements.map(<[u8]>::trim_ascii).filter(|element| !element.is_empty())
}

fn last_comma(text: &[u8], quotes: bool) -> Option<usize> {
    let is_escaped = |at: usize| text[..at].iter().rev().take_while(|byte| **byte == b'\\').count() % 2 == 1;
    let mut quoted = false;
    for (at, byte) in text.iter().enumerate().rev() {
        match byte {
            b'"' if quotes && !(quoted && is_escaped(at)) => quoted = !quoted,
            b',' if !quoted => return Some(at),
            _ => {}
        }
    }
    None
}

/// The parameters of an element of `Forwarded`, split at semicolons outside of quoted strings (RFC 9110, section 5.6.4).
fn parameters(element: &[u8]) -> impl Iterator<Item = &[u8]> {
    let (mut quoted, mut escaped) = (false, false);
    element.split(move |byte| {
        if std::mem::take(&mut escaped) {
            return false;
        }
        match byte {
            b'"' => quoted = !quoted,
            b'\\' if quoted => escaped = true,
            _ => return *byte == b';' && !quoted,
        }
        false
    })
}

/// The `for` of an element of `Forwarded`: `for="[2001:db8::1]:4711";proto=https`.
fn forwarded_for(element: &[u8]) -> Option<IpAddr> {
    parameters(element).find_map(|pair| {
        let (name, value) = pair.split_at(pair.iter().position(|byte| *byte == b'=')?);
        name.trim_ascii().eq_ignore_ascii_case(b"for").then(|| node(value[1..].trim_ascii()))
    })?
}

/// An address as proxies write it: with a port or without, in brackets or quotes or without.
fn node(text: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(text).ok()?;
    let text = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let address = bare.parse().or_else(|_| text.parse::<SocketAddr>().map(|address| address.ip())).ok()?;
    Some(IpAddr::to_canonical(&address))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(header: &str, peer: &str, lines: &[(&str, impl AsRef<[u8]>)]) -> String {
        let trusted = TrustedProxies::new(header, ["127.0.0.1", "10.0.0.0/8", "fd00::/8", "unix"]).unwrap();
        let lines = lines.iter().map(|(name, value)| (*name, value.as_ref()));
        trusted.client_ip(peer.parse().ok(), lines).map_or("none".to_owned(), |ip| ip.to_string())
    }

    #[test]
    fn only_a_trusted_proxy_is_believed() {
        let x = |peer, value| client("X-Forwarded-For", peer, &[("x-forwarded-for", value)]);
        assert_eq!(x("192.0.2.1", "203.0.113.7"), "192.0.2.1");
        assert_eq!(x("127.0.0.1", "203.0.113.7"), "203.0.113.7");
        assert_eq!(x("::ffff:10.1.2.3", "203.0.113.7"), "203.0.113.7");
        assert_eq!(x("fd00::1", "2001:db8::1"), "2001:db8::1");
        assert_eq!(x("unix", "203.0.113.7"), "203.0.113.7", "a Unix socket");
        assert_eq!(client("X-Forwarded-For", "unix", &[("X-Real-IP", "203.0.113.7")]), "none");
        assert_eq!(client("X-Forwarded-For", "127.0.0.1", &[("Forwarded", "for=203.0.113.7")]), "127.0.0.1");
    }

    #[test]
    fn elements_that_the_client_made_up_are_not_believed() {
        let x = |lines: &[(&str, &str)]| client("X-Forwarded-For", "127.0.0.1", lines);
        let name = "X-Forwarded-For";
        assert_eq!(x(&[(name, "198.51.100.1, 203.0.113.7, 10.0.0.2")]), "203.0.113.7");
        assert_eq!(x(&[(name, "198.51.100.1"), (name, "203.0.113.7")]), "203.0.113.7");
        assert_eq!(x(&[(name, "10.0.0.3, 10.0.0.2")]), "10.0.0.3", "all of them are trusted");
        assert_eq!(x(&[(name, "")]), "127.0.0.1");
    }

    #[test]
    fn a_client_that_a_trusted_proxy_does_not_name_is_not_known() {
        let x = |value| client("X-Forwarded-For", "127.0.0.1", &[("X-Forwarded-For", value)]);
        for value in [&b"unknown"[..], b"203.0.113.7, unknown", b"203.0.113.7, unknown, 10.0.0.2", b"\xff", b"\""] {
            assert_eq!(x(value), "none", "{}", String::from_utf8_lossy(value));
        }
        let f = |value| client("Forwarded", "127.0.0.1", &[("Forwarded", value)]);
        for value in [&b"for=_hidden"[..], b"proto=https", b"for=", b"for=\"203.0.113.7", b"203.0.113.7", b"for=\xff"] {
            assert_eq!(f(value), "none", "{}", String::from_utf8_lossy(value));
        }
    }

    #[test]
    fn no_element_of_a_client_hides_one_that_a_proxy_appends() {
        let forged: [&[u8]; 9] =
            [b"\"", b"for=\"", b"\xff", b"for=\xff", b"for=\"\\", b"\\", b"\"a\" \"", b"for=\"\\\"", b",,;\","];
        for before in forged {
            for (header, appended, expected) in [
                ("X-Forwarded-For", "203.0.113.7", "203.0.113.7"),
                ("X-Forwarded-For", "203.0.113.7, 10.0.0.2", "203.0.113.7"),
                ("Forwarded", "for=203.0.113.7", "203.0.113.7"),
                ("Forwarded", "for=\"[2001:db8::1]:4711\"", "2001:db8::1"),
                ("Forwarded", "host=\"a\\\"b\\\\\";for=203.0.113.7;by=\"_a,\\\",b\"", "203.0.113.7"),
                ("Forwarded", "for=\"203.0.113.7\", for=\"10.0.0.2\"", "203.0.113.7"),
            ] {
                let value = [before, b", ", appended.as_bytes()].concat();
                let shown = format!("{header}: {}", String::from_utf8_lossy(&value));
                assert_eq!(client(header, "127.0.0.1", &[(header, value)]), expected, "{shown}");
                let lines = [(header, before), (header, appended.as_bytes())];
                assert_eq!(client(header, "127.0.0.1", &lines), expected, "{shown}, in two lines");
            }
        }
    }

    #[test]
    fn addresses_are_understood_in_all_their_forms() {
        let x = |value| client("X-Forwarded-For", "127.0.0.1", &[("X-Forwarded-For", value)]);
        for value in ["203.0.113.7", "203.0.113.7:80", "[::ffff:203.0.113.7]:80"] {
            assert_eq!(x(value), "203.0.113.7");
        }
        let f = |value| client("Forwarded", "127.0.0.1", &[("Forwarded", value)]);
        for value in [
            "for=203.0.113.7",
            "proto=https;For=\"203.0.113.7:4711\";by=10.0.0.1",
            "for=\"[2001:db8::1]\", for=203.0.113.7;proto=http",
            "for=198.51.100.1, for=203.0.113.7, for=10.0.0.1",
            "for=\"a,b;\\\"for=c\", for = 203.0.113.7",
        ] {
            assert_eq!(f(value), "203.0.113.7", "{value}");
        }
        assert_eq!(f("for=\"[2001:db8::1]:4711\""), "2001:db8::1");
    }

    #[test]
    fn networks_are_checked() {
        let bad = |text: &str| TrustedProxies::new("X", [text]).unwrap_err();
        for text in ["", "a", "10.0.0.0/33", "::/129", "10.0.0.0/x", "10.0.0/8"] {
            assert_eq!(bad(text), text);
        }
        let all = Network::parse("0.0.0.0/0").unwrap();
        assert!(all.contains("203.0.113.7".parse().unwrap()) && !all.contains("::1".parse().unwrap()));
        let odd = Network::parse("10.128.0.0/9").unwrap();
        assert!(odd.contains("10.255.0.1".parse().unwrap()) && !odd.contains("10.127.0.1".parse().unwrap()));
    }
}
