use std::net::{IpAddr, SocketAddr};

use axum::http::HeaderMap;
use ipnet::IpNet;

/// The client's address: the rightmost address of `X-Forwarded-For` that is not a trusted proxy, or
/// the peer of the connection.
///
/// The header is used only if the peer is a trusted proxy. Addresses further left are ignored: the
/// client can write anything there.
#[must_use]
pub fn client_ip(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
    let peer = peer.to_canonical();
    let is_trusted = |ip: &IpAddr| trusted.iter().any(|net| net.contains(ip));
    if trusted.is_empty() || !is_trusted(&peer) {
        return peer;
    }
    let forwarded = headers.get_all("x-forwarded-for");
    // Split as bytes: an invalid value on the left, written by the client, must not invalidate the
    // addresses that proxies added on the right.
    let hops = forwarded.iter().rev().flat_map(|value| value.as_bytes().rsplit(|b| *b == b','));
    let hops = hops.map(|hop| std::str::from_utf8(hop).ok().and_then(|hop| parse_hop(hop.trim())));
    let mut nearest = peer;
    for hop in hops {
        // Trusted proxies write only addresses; anything else comes from an untrusted source.
        let Some(ip) = hop else { break };
        nearest = ip;
        if !is_trusted(&ip) {
            break;
        }
    }
    nearest
}

/// Parses an address, with or without a port or brackets.
fn parse_hop(hop: &str) -> Option<IpAddr> {
    let bare = hop.strip_prefix('[').and_then(|hop| hop.strip_suffix(']')).unwrap_or(hop);
    let address = bare.parse::<IpAddr>().or_else(|_| hop.parse::<SocketAddr>().map(|a| a.ip()));
    address.ok().map(|ip| ip.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(peer: &str, forwarded: &[&str]) -> String {
        let mut headers = HeaderMap::new();
        for value in forwarded {
            let value = axum::http::HeaderValue::from_bytes(value.as_bytes()).unwrap();
            headers.append("x-forwarded-for", value);
        }
        let trusted = ["10.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()];
        client_ip(peer.parse().unwrap(), &headers, &trusted).to_string()
    }

    #[test]
    fn header_from_untrusted_peer_is_ignored() {
        assert_eq!(resolve("203.0.113.9", &["198.51.100.1"]), "203.0.113.9");
    }

    #[test]
    fn rightmost_untrusted_hop_is_used() {
        assert_eq!(resolve("10.0.0.1", &["1.1.1.1, 198.51.100.1"]), "198.51.100.1");
        assert_eq!(resolve("10.0.0.1", &["1.1.1.1, 198.51.100.1, 10.2.2.2"]), "198.51.100.1");
        assert_eq!(resolve("10.0.0.1", &["1.1.1.1", "198.51.100.1:4711"]), "198.51.100.1");
        assert_eq!(resolve("::1", &["2001:db8::7"]), "2001:db8::7");
        assert_eq!(resolve("::1", &["[2001:db8::7]"]), "2001:db8::7");
        assert_eq!(resolve("10.0.0.1", &["caf\u{e9}, 198.51.100.1"]), "198.51.100.1");
        assert_eq!(resolve("::ffff:10.0.0.1", &["198.51.100.1"]), "198.51.100.1");
    }

    #[test]
    fn invalid_hop_ends_the_search() {
        assert_eq!(resolve("10.0.0.1", &["198.51.100.1, unknown"]), "10.0.0.1");
        assert_eq!(resolve("10.0.0.1", &["198.51.100.1, 10.2.2, 10.2.2.2"]), "10.2.2.2");
        assert_eq!(resolve("10.0.0.1", &[]), "10.0.0.1");
        assert_eq!(resolve("10.0.0.1", &["10.3.3.3"]), "10.3.3.3");
    }
}
