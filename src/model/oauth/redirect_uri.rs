//! Redirect URIs: which a client may have, and whether a request's is one of them (RFC 9700, section 4.1).

use url::{Host, Url};

use crate::model::Invalid;

/// The longest that a client may have, in bytes.
const MAX_LEN: usize = 2000;

/// What answers add to a redirect URI.
const ANSWERED: [&str; 5] = ["code", "state", "iss", "error", "error_description"];

/// Where a redirect URI leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// To a web server, which its certificate proves to be its own.
    Web,
    /// To whatever program listens on the person's own machine (RFC 8252, section 7.3).
    Loopback,
    /// To whatever program took the scheme on the person's own machine (RFC 8252, section 7.1).
    Native,
}

/// Checks a redirect URI that a client wants to have; `native_schemes` are those without a dot that are
/// taken all the same.
///
/// # Errors
/// With what is wrong.
pub fn check(uri: &str, native_schemes: &[String]) -> Result<Kind, Invalid> {
    let refuse = |why: &str| Err(Invalid::new(format!("a redirect URI {why}")));
    // What browsers would read otherwise than it is written, and what cannot stand in a header.
    let is_plain = |byte: u8| byte.is_ascii_graphic() && !b"\\\"<>^`{|}*".contains(&byte);
    if uri.len() > MAX_LEN || !uri.bytes().all(is_plain) {
        return refuse("must be at most 2000 plain ASCII characters, and has no wildcards");
    }
    if uri.contains('#') {
        return refuse("must have no fragment");
    }
    let Ok(url) = uri.parse::<Url>() else { return refuse("must be an absolute URI") };
    if !url.username().is_empty() || url.password().is_some() {
        return refuse("must hold no user or password");
    }
    // No answer has anything twice (OAuth 2.1, section 3.1).
    if url.query_pairs().any(|(name, _)| ANSWERED.contains(&&*name)) {
        return refuse("must not have in its query what answers have: code, state, iss or error");
    }
    match url.scheme() {
        "https" if uri.starts_with("https://") && url.host().is_some() => Ok(Kind::Web),
        "http" if after_loopback_host(uri).is_some() => Ok(Kind::Loopback),
        "http" | "https" => refuse("must be https, or http on a loopback address"),
        // Schemes such as javascript: and data: have none.
        scheme if scheme.contains('.') || native_schemes.iter().any(|own| own == scheme) => {
            Ok(Kind::Native)
        }
        _ => refuse("must be https, http on a loopback address, or of a scheme with a dot in it"),
    }
}

/// Whether a request's redirect URI is one that a client has: letter by letter, but for the port of a loopback
/// address (RFC 8252, section 7.3).
#[must_use]
pub fn is_same(registered: &str, given: &str) -> bool {
    if registered == given {
        return true;
    }
    match (after_loopback_host(registered), after_loopback_host(given)) {
        (Some((own, after)), Some((other, rest))) => {
            own == other && is_port_and(rest) && without_port(after) == without_port(rest)
        }
        _ => false,
    }
}

/// The loopback host of an `http` URI as it is written, and what follows it.
fn after_loopback_host(uri: &str) -> Option<(&str, &str)> {
    let rest = uri.strip_prefix("http://")?;
    ["127.0.0.1", "[::1]", "localhost"].into_iter().find_map(|host| {
        let after = rest.strip_prefix(host)?;
        (after.is_empty() || after.starts_with([':', '/', '?'])).then_some((host, after))
    })
}

/// Whether what follows a host is a port, if there is one, and no more than a port.
fn is_port_and(after: &str) -> bool {
    let Some(port) = after.strip_prefix(':') else { return true };
    let port = port.split(['/', '?']).next().unwrap_or_default();
    port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok()
}

fn without_port(after: &str) -> &str {
    match after.strip_prefix(':') {
        Some(port) => port.trim_start_matches(|c: char| c.is_ascii_digit()),
        None => after,
    }
}

/// Whether a URI leads to the person's own machine, by whatever scheme.
#[must_use]
pub fn is_here(uri: &str) -> bool {
    match uri.parse::<Url>().ok().as_ref().and_then(Url::host) {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// Where a redirect URI leads, for people: the host, or the scheme of a program.
#[must_use]
pub fn destination(uri: &str) -> String {
    match uri.parse::<Url>() {
        Ok(url) if ["http", "https"].contains(&url.scheme()) => {
            url.host_str().unwrap_or_default().to_owned()
        }
        Ok(url) => format!("{}:", url.scheme()),
        Err(_) => String::new(),
    }
}

/// The source of `form-action` that lets a form lead there (CSP 3, section 2.3.1); browsers hold redirects to it
/// as well.
#[must_use]
pub fn csp_source(uri: &str) -> Option<String> {
    let url = uri.parse::<Url>().ok()?;
    match (url.scheme(), url.host()) {
        // A source cannot name such an address.
        ("http" | "https", Some(Host::Ipv6(_))) => Some(format!("{}:", url.scheme())),
        ("http" | "https", Some(_)) => Some(url.origin().ascii_serialization()),
        (scheme, _) => Some(format!("{scheme}:")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn kind(uri: &str) -> Option<Kind> {
        check(uri, &["cursor".to_owned()]).ok()
    }

    #[test]
    fn codes_are_sent_to_servers_and_programs_of_ones_own() {
        for (uri, expected) in [
            ("https://zapier.com/dashboard/auth/oauth/return/App1/", Kind::Web),
            ("https://client.example:8443/cb?a=b", Kind::Web),
            ("http://127.0.0.1/cb", Kind::Loopback),
            ("http://127.0.0.1:3000/cb", Kind::Loopback),
            ("http://[::1]:3000/cb", Kind::Loopback),
            ("http://localhost:3000", Kind::Loopback),
            ("com.example.app:/cb", Kind::Native),
            ("com.example.app://cb", Kind::Native),
            ("cursor://anysphere.cursor-mcp/oauth/callback", Kind::Native),
        ] {
            assert_eq!(kind(uri), Some(expected), "{uri}");
        }
    }

    #[test]
    fn and_nowhere_else() {
        for uri in [
            "",
            "/cb",
            "client.example/cb",
            "http://client.example/cb",
            "http://127.0.0.1.evil.example/cb",
            "http://localhost.evil.example/cb",
            "http://127.0.0.1@evil.example/cb",
            "http://127.0.0.2/cb",
            "https://user@client.example/cb",
            "https://user:password@client.example/cb",
            "https://client.example/cb#fragment",
            "https://client.example/cb#",
            "https://client.example/cb?a=b&state=x",
            "https://client.example/cb?co%64e=x",
            "https://*.client.example/cb",
            "https://client.example/*",
            "https:client.example/cb",
            "https:\\\\client.example",
            "https://client.example\\@evil.example/cb",
            "https://client.example/\r\nSet-Cookie: a=b",
            "https://client.example/ä",
            "HTTPS://",
            "javascript:alert(1)",
            "JavaScript:alert(1)",
            "data:text/html,x",
            "vbscript:x",
            "file:///etc/passwd",
            "blob:https://client.example/x",
            "about:blank",
            "mailto:a@b.example",
            "vscode://x",
            "ftp://client.example/cb",
        ] {
            assert_eq!(kind(uri), None, "{uri}");
        }
    }

    #[test]
    fn near_misses_are_not_the_same() {
        let own = "https://client.example/cb";
        assert!(is_same(own, own));
        for other in [
            "https://client.example/cb/",
            "https://client.example/cb?x=1",
            "https://client.example/cb/../cb",
            "https://client.example/CB",
            "https://CLIENT.example/cb",
            "https://client.example:443/cb",
            "https://client.example/c%62",
            "https://client.example.evil.example/cb",
            "https://client.example@evil.example/cb",
            "https://evil.example/https://client.example/cb",
            "http://client.example/cb",
            "https://client.example/cb#x",
            "https://client.example/c",
            "",
        ] {
            assert!(!is_same(own, other), "{other}");
        }
    }

    #[test]
    fn the_port_of_a_loopback_address_is_free() {
        for (registered, given, same) in [
            ("http://127.0.0.1/cb", "http://127.0.0.1:51004/cb", true),
            ("http://127.0.0.1:3000/cb", "http://127.0.0.1:51004/cb", true),
            ("http://127.0.0.1:3000/cb", "http://127.0.0.1/cb", true),
            ("http://[::1]/cb", "http://[::1]:9/cb", true),
            ("http://localhost:1/cb?a=b", "http://localhost:2/cb?a=b", true),
            ("http://localhost", "http://localhost:2", true),
            ("http://127.0.0.1/cb", "http://localhost/cb", false),
            ("http://127.0.0.1/cb", "http://127.0.0.1:1/cc", false),
            ("http://127.0.0.1/cb", "http://127.0.0.1:1/cb?x", false),
            ("http://127.0.0.1/cb", "http://127.0.0.1:99999/cb", false),
            ("http://127.0.0.1/cb", "http://127.0.0.1:1@evil.example/cb", false),
            ("http://127.0.0.1/cb", "http://127.0.0.1:1evil/cb", false),
            ("http://127.0.0.1/cb", "https://127.0.0.1:1/cb", false),
            ("https://127.0.0.1/cb", "https://127.0.0.1:1/cb", false),
        ] {
            assert_eq!(is_same(registered, given), same, "{registered} {given}");
        }
    }

    #[test]
    fn ones_own_machine_is_known_by_any_scheme() {
        for here in [
            "https://localhost/cb",
            "https://127.0.0.1/cb",
            "http://[::1]/",
            "https://a.localhost/",
        ] {
            assert!(is_here(here), "{here}");
        }
        assert!(!is_here("https://client.example/cb") && !is_here("com.example.app:/cb"));
    }

    #[test]
    fn people_and_browsers_are_told_where_it_leads() {
        for (uri, host, source) in [
            ("https://client.example:8443/cb", "client.example", "https://client.example:8443"),
            ("http://127.0.0.1:3000/cb", "127.0.0.1", "http://127.0.0.1:3000"),
            ("http://[::1]:3000/cb", "[::1]", "http:"),
            ("com.example.app:/cb", "com.example.app:", "com.example.app:"),
        ] {
            assert_eq!(destination(uri), host);
            assert_eq!(csp_source(uri).as_deref(), Some(source));
        }
    }

    proptest! {
        #[test]
        fn what_is_the_same_leads_to_the_same_host(text in "(http|https)://(127\\.0\\.0\\.1|localhost|a\\.b)[:/@.?0-9a-z]{0,12}") {
            for own in ["http://127.0.0.1/cb", "http://localhost:3000/", "https://a.b/cb"] {
                if is_same(own, &text) {
                    let (own, text): (Url, Url) = (own.parse().unwrap(), text.parse().unwrap());
                    prop_assert_eq!(own.host_str(), text.host_str());
                    prop_assert_eq!((own.path(), own.query()), (text.path(), text.query()));
                }
            }
        }
    }
}
