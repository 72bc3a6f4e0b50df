//! The address of a client behind proxies, as `X-Forwarded-For` and `Forwarded` (RFC 7239) tell it.

use std::net::{IpAddr, SocketAddr};

/// The proxies whose word is taken, and the header in which they say whom they forward for.
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
    ///
    /// # Errors
    ///
    /// The first text that is none of these.
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
    /// Each proxy appends whom it forwards for. What the client itself has put before that is not looked at.
    pub(crate) fn client_ip<'a>(
        &self,
        peer: Option<IpAddr>,
        headers: impl Iterator<Item = (&'a str, &'a [u8])>,
    ) -> Option<IpAddr> {
        let mut client = peer.map(|address| address.to_canonical());
        if !client.map_or(self.unix, |address| self.trusts(address)) {
            return client;
        }
        let mut hops = Vec::new();
        for (_, value) in headers.filter(|(name, _)| name.eq_ignore_ascii_case(&self.header)) {
            // Of a value that is not text, what comes before it is not known either.
            let Ok(value) = std::str::from_utf8(value) else { return client };
            hops.extend(split(value, ','));
        }
        for hop in hops.into_iter().rev() {
            let address = if self.header.eq_ignore_ascii_case("forwarded") { forwarded_for(hop) } else { node(hop) };
            // `unknown`, an obfuscated name, or garbage: nothing that is said before it can be believed.
            let Some(address) = address else { return client };
            client = Some(address);
            if !self.trusts(address) {
                break;
            }
        }
        client
    }
}

/// Splits at a separator outside of quoted strings (RFC 9110, section 5.6.4).
fn split(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let (mut quoted, mut escaped) = (false, false);
    text.split(move |c| {
        if std::mem::take(&mut escaped) {
            return false;
        }
        match c {
            '"' => quoted = !quoted,
            '\\' if quoted => escaped = true,
            _ => return c == separator && !quoted,
        }
        false
    })
    .map(str::trim)
    .filter(|part| !part.is_empty())
}

/// The `for` of an element of `Forwarded`: `for="[2001:db8::1]:4711";proto=https`.
fn forwarded_for(element: &str) -> Option<IpAddr> {
    let mut pairs = split(element, ';').filter_map(|pair| pair.split_once('='));
    let (_, value) = pairs.find(|(name, _)| name.trim().eq_ignore_ascii_case("for"))?;
    node(value.trim())
}

/// An address as proxies write it: with a port or without, in brackets or quotes or without.
fn node(text: &str) -> Option<IpAddr> {
    let text = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let address = bare.parse().or_else(|_| text.parse::<SocketAddr>().map(|address| address.ip())).ok()?;
    Some(IpAddr::to_canonical(&address))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(header: &str, peer: &str, lines: &[(&str, &str)]) -> String {
        let trusted = TrustedProxies::new(header, ["127.0.0.1", "10.0.0.0/8", "fd00::/8", "unix"]).unwrap();
        let lines = lines.iter().map(|(name, value)| (*name, value.as_bytes()));
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
        assert_eq!(client("X-Forwarded-For", "unix", &[]), "none");
        assert_eq!(client("X-Forwarded-For", "127.0.0.1", &[("Forwarded", "for=203.0.113.7")]), "127.0.0.1");
    }

    #[test]
    fn what_the_client_has_put_in_before_is_not_believed() {
        let x = |lines: &[(&str, &str)]| client("X-Forwarded-For", "127.0.0.1", lines);
        let name = "X-Forwarded-For";
        assert_eq!(x(&[(name, "198.51.100.1, 203.0.113.7, 10.0.0.2")]), "203.0.113.7");
        assert_eq!(x(&[(name, "198.51.100.1"), (name, "203.0.113.7")]), "203.0.113.7");
        assert_eq!(x(&[(name, "198.51.100.1, unknown, 10.0.0.2")]), "10.0.0.2");
        assert_eq!(x(&[(name, "10.0.0.3, 10.0.0.2")]), "10.0.0.3", "all of them are trusted");
        assert_eq!(x(&[(name, "")]), "127.0.0.1");
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
        assert_eq!(f("for=_hidden"), "127.0.0.1");
        assert_eq!(f("proto=https"), "127.0.0.1");
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
