//! The original request that a gateway asks about (nginx `auth_request`, Traefik, Caddy, Envoy).
//!
//! The gateway sends the original method and URI in headers or as the path. Clients can add such
//! headers too, so of several candidates the one that requires the greater scope counts: a forged
//! header never lowers the requirement.

use std::borrow::Cow;

use axum::{
    extract::Request,
    http::{HeaderMap, HeaderName, Method},
};

use crate::model::scope::Scope;

/// The path of the endpoint. Some gateways append the original path.
const PATH: &str = "/v1/auth/verify";

/// The headers in which gateways send the original request. The service cannot know which pair the
/// gateway sets and which the client forged, so it reads both: see [`forwarded_request`].
static FORWARDED_HEADERS: [(HeaderName, &[HeaderName]); 2] = [
    (HeaderName::from_static("x-forwarded-method"), &FORWARDED_URI),
    (HeaderName::from_static("x-original-method"), &ORIGINAL_URI),
];
static FORWARDED_URI: [HeaderName; 1] = [HeaderName::from_static("x-forwarded-uri")];
static ORIGINAL_URI: [HeaderName; 2] =
    [HeaderName::from_static("x-original-uri"), HeaderName::from_static("x-original-url")];

/// True for the paths at which gateways ask about requests of their clients.
pub(super) fn is_forward_auth_path(path: &str) -> bool {
    path.strip_prefix(PATH).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The original request that a gateway asks about. It is read before authentication: the audit
/// event describes it in any case.
#[derive(Debug, Clone)]
pub(super) struct OriginalRequest<'a> {
    /// The method.
    pub method: Cow<'a, Method>,
    /// The path without the query string.
    pub path: &'a str,
}

impl<'a> OriginalRequest<'a> {
    /// Reads the original request from the headers or the path of a forward-auth request. Without
    /// either, the forward-auth request itself counts as the original one.
    pub(super) fn from_forward_auth(request: &'a Request) -> Self {
        let forwarded = forwarded_request(request.headers());
        let path = request.uri().path();
        let method = Cow::Borrowed(request.method());
        match path.strip_prefix(PATH).filter(|rest| !rest.is_empty()) {
            // The method is the original one too. A forged header must not lower its requirement.
            Some(rest) => {
                let from_path = Self { method, path: rest };
                forwarded
                    .map_or(from_path.clone(), |forwarded| forwarded.or_more_restricted(from_path))
            }
            // The gateway's own method is irrelevant if a header holds the original one.
            None => forwarded.unwrap_or(Self { method, path }),
        }
    }

    /// Returns the request that requires the greater scope, or `self` if both require the same.
    fn or_more_restricted(self, other: Self) -> Self {
        if required_scope(other.method.as_str()) > required_scope(self.method.as_str()) {
            other
        } else {
            self
        }
    }
}

/// Returns the scope that a request with this method requires.
pub(super) fn required_scope(method: &str) -> Scope {
    match method {
        "GET" | "HEAD" => Scope::ReadOnly,
        _ => Scope::Write,
    }
}

/// Reads the original request from headers. Of several, it returns the one that requires the
/// greater scope: clients can add headers, and must not gain anything by it.
fn forwarded_request(headers: &HeaderMap) -> Option<OriginalRequest<'_>> {
    let candidates = FORWARDED_HEADERS.iter().filter_map(|(method_header, uri_headers)| {
        let uri = uri_headers.iter().find_map(|name| headers.get(name));
        let uri = uri.and_then(|value| value.to_str().ok()).filter(|uri| !uri.is_empty());
        let methods: Vec<_> = headers.get_all(method_header).iter().collect();
        if methods.is_empty() && uri.is_none() {
            return None;
        }
        // An invalid or repeated method must not count as a read. CONNECT requires `write`.
        let method = match methods.as_slice() {
            [] => Method::GET,
            [method] => Method::from_bytes(method.as_bytes()).unwrap_or(Method::CONNECT),
            _ => Method::CONNECT,
        };
        Some(OriginalRequest { method: Cow::Owned(method), path: path_of(uri.unwrap_or(PATH)) })
    });
    candidates.reduce(OriginalRequest::or_more_restricted)
}

/// Returns the path of an absolute or relative URI, without scheme, host, query and fragment.
fn path_of(uri: &str) -> &str {
    let path = match uri.split_once("://") {
        Some((_, rest)) => rest.find('/').map_or("/", |at| &rest[at..]),
        None => uri,
    };
    path.split(['?', '#']).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uri_with_host_query_or_fragment_is_reduced_to_its_path() {
        for (uri, path) in [
            ("/v1/agents?x=1", "/v1/agents"),
            ("https://api.example.com/v1/agents?x=1#y", "/v1/agents"),
            ("https://api.example.com", "/"),
            ("/a#b", "/a"),
            ("", ""),
        ] {
            assert_eq!(path_of(uri), path);
        }
    }
}
