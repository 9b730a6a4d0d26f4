//! Validation and matching of redirect URIs (RFC 9700, section 4.1).
//!
//! A request's redirect URI must equal a registered one; only the port of a loopback address may
//! differ.

use url::{Host, Url};

use crate::model::ValidationError;

/// Maximum length of a redirect URI in bytes.
const MAX_LEN: usize = 2000;

/// The parameters that an authorization response adds to a redirect URI.
const RESPONSE_PARAMETERS: [&str; 5] = ["code", "state", "iss", "error", "error_description"];

/// The kind of a redirect URI, by its recipient.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RedirectUriKind {
    /// A web server, which its TLS certificate authenticates.
    Web,
    /// Any program that listens on the user's machine (RFC 8252, section 7.3).
    Loopback,
    /// Any program that registered the URI scheme on the user's machine (RFC 8252, section 7.1).
    Native,
}

/// Validates a redirect URI of a client. `native_schemes` lists the schemes that are allowed
/// although they have no dot.
///
/// # Errors
/// [`ValidationError`] with the violated rule.
pub fn validate(uri: &str, native_schemes: &[String]) -> Result<RedirectUriKind, ValidationError> {
    let refuse = |why: &str| Err(ValidationError::new(format!("a redirect URI {why}")));
    // Excludes characters that browsers reinterpret, and those that a header cannot contain.
    let is_plain = |byte: u8| byte.is_ascii_graphic() && !b"\\\"<>^`{|}*".contains(&byte);
    if uri.len() > MAX_LEN || !uri.bytes().all(is_plain) {
        return refuse("must be at most 2000 plain ASCII characters, without wildcards");
    }
    if uri.contains('#') {
        return refuse("must not have a fragment");
    }
    let Ok(url) = uri.parse::<Url>() else { return refuse("must be an absolute URI") };
    if !url.username().is_empty() || url.password().is_some() {
        return refuse("must not contain a user name or password");
    }
    // A response must not repeat a parameter (OAuth 2.1, section 3.1).
    if url.query_pairs().any(|(name, _)| RESPONSE_PARAMETERS.contains(&&*name)) {
        return refuse("must not have response parameters in its query: code, state, iss or error");
    }
    match url.scheme() {
        "https" if uri.starts_with("https://") => match url.host() {
            Some(host) if !is_unusual_host(&host) => Ok(RedirectUriKind::Web),
            _ => {
                refuse("must have an IP address as its host, or letters, digits, dots and hyphens")
            }
        },
        "http" if split_loopback_host(uri).is_some() => Ok(RedirectUriKind::Loopback),
        "http" | "https" => refuse("must use https, or http on a loopback address"),
        // Dangerous schemes such as javascript: and data: have no dot.
        scheme if scheme.contains('.') || native_schemes.iter().any(|native| native == scheme) => {
            Ok(RedirectUriKind::Native)
        }
        _ => refuse("must use https, http on a loopback address, or a scheme with a dot"),
    }
}

/// Returns true if a request's redirect URI equals a registered one. All characters must be equal,
/// except the port of a loopback address (RFC 8252, section 7.3).
#[must_use]
pub fn matches_registered(registered: &str, given: &str) -> bool {
    if registered == given {
        return true;
    }
    match (split_loopback_host(registered), split_loopback_host(given)) {
        (Some((host, rest)), Some((given_host, given_rest))) => {
            host == given_host
                && has_valid_port(given_rest)
                && without_port(rest) == without_port(given_rest)
        }
        _ => false,
    }
}

/// Returns true for a host with characters that no DNS name of a server has. URLs allow some, such
/// as `;` and `,`, which could be part of something else where the host is displayed.
fn is_unusual_host(host: &Host<&str>) -> bool {
    let is_usual = |byte: u8| byte.is_ascii_alphanumeric() || b".-".contains(&byte);
    matches!(host, Host::Domain(name) if !name.bytes().all(is_usual))
}

/// Returns the loopback host of an `http` URI, in its original spelling, and the text after it.
fn split_loopback_host(uri: &str) -> Option<(&str, &str)> {
    let rest = uri.strip_prefix("http://")?;
    ["127.0.0.1", "[::1]", "localhost"].into_iter().find_map(|host| {
        let after = rest.strip_prefix(host)?;
        (after.is_empty() || after.starts_with([':', '/', '?'])).then_some((host, after))
    })
}

/// Returns true if the text after a host has no port, or a valid one and nothing else before the
/// path.
fn has_valid_port(after: &str) -> bool {
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

/// Returns true if a URI leads to a web server on another machine. On the user's own machine, any
/// program could receive the response (RFC 8252, section 8.6).
#[must_use]
pub fn is_remote(uri: &str) -> bool {
    validate(uri, &[]) == Ok(RedirectUriKind::Web) && !is_loopback(uri)
}

/// Returns true if the host of a URI is the user's machine, for any scheme.
#[must_use]
pub fn is_loopback(uri: &str) -> bool {
    match uri.parse::<Url>().ok().as_ref().and_then(Url::host) {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// Returns the destination of a redirect URI for display: the host, or the scheme of a native app.
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn kind(uri: &str) -> Option<RedirectUriKind> {
        validate(uri, &["cursor".to_owned()]).ok()
    }

    #[test]
    fn https_loopback_and_native_uris_are_accepted() {
        for (uri, expected) in [
            ("https://zapier.com/dashboard/auth/oauth/return/App1/", RedirectUriKind::Web),
            ("https://client.example:8443/cb?a=b", RedirectUriKind::Web),
            ("http://127.0.0.1/cb", RedirectUriKind::Loopback),
            ("http://127.0.0.1:3000/cb", RedirectUriKind::Loopback),
            ("https://xn--bcher-kva.example/cb", RedirectUriKind::Web),
            ("https://[2001:db8::1]:8443/cb", RedirectUriKind::Web),
            ("https://192.0.2.7/cb", RedirectUriKind::Web),
            ("http://[::1]:3000/cb", RedirectUriKind::Loopback),
            ("http://localhost:3000", RedirectUriKind::Loopback),
            ("com.example.app:/cb", RedirectUriKind::Native),
            ("com.example.app://cb", RedirectUriKind::Native),
            ("cursor://anysphere.cursor-mcp/oauth/callback", RedirectUriKind::Native),
        ] {
            assert_eq!(kind(uri), Some(expected), "{uri}");
        }
    }

    #[test]
    fn other_uris_are_rejected() {
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
            "https://client.example;script-src/cb",
            "https://client.example,default-src/cb",
            "https://client.example%3bscript-src:8443/cb",
            "https://client.example%2c/cb",
            "https://client'example/cb",
            "https://client_example/cb",
            "https://(client)!$&+=~.example/cb",
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
    fn similar_uri_does_not_match() {
        let registered = "https://client.example/cb";
        assert!(matches_registered(registered, registered));
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
            assert!(!matches_registered(registered, other), "{other}");
        }
    }

    #[test]
    fn loopback_uri_matches_with_any_port() {
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
            assert_eq!(matches_registered(registered, given), same, "{registered} {given}");
        }
    }

    #[test]
    fn local_machine_is_recognized_for_any_scheme() {
        for local in [
            "https://localhost/cb",
            "https://127.0.0.1/cb",
            "http://[::1]/",
            "https://a.localhost/",
        ] {
            assert!(is_loopback(local), "{local}");
        }
        assert!(!is_loopback("https://client.example/cb") && !is_loopback("com.example.app:/cb"));
    }

    #[test]
    fn destination_names_the_host_or_scheme() {
        for (uri, host) in [
            ("https://client.example:8443/cb", "client.example"),
            ("http://127.0.0.1:3000/cb", "127.0.0.1"),
            ("http://[::1]:3000/cb", "[::1]"),
            ("com.example.app:/cb", "com.example.app:"),
        ] {
            assert_eq!(destination(uri), host);
        }
    }

    proptest! {
        #[test]
        fn matching_uris_have_the_same_host_path_and_query(
            text in "(http|https)://(127\\.0\\.0\\.1|localhost|a\\.b)[:/@.?0-9a-z]{0,12}",
        ) {
            for registered in ["http://127.0.0.1/cb", "http://localhost:3000/", "https://a.b/cb"] {
                if matches_registered(registered, &text) {
                    let (registered, given): (Url, Url) =
                        (registered.parse().unwrap(), text.parse().unwrap());
                    prop_assert_eq!(registered.host_str(), given.host_str());
                    let given = (given.path(), given.query());
                    prop_assert_eq!((registered.path(), registered.query()), given);
                }
            }
        }
    }
}
