//! The original request that a gateway asks about (nginx `auth_request`, Traefik, Caddy, Envoy,
//! HAProxy, Apache).
//!
//! The gateway states the original method and URI in headers, as the path, or by its own method.
//! The service cannot know which of these the gateway sets and which the client forged. So each
//! source that is present requires a scope, and the greatest one counts: a header raises the
//! requirement or leaves it unchanged.

use std::borrow::Cow;

use axum::{
    extract::{FromRequestParts, Request},
    http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, request::Parts},
};
use percent_encoding::{NON_ALPHANUMERIC, percent_encode};

use super::{ApiError, error::ErrorCode};
use crate::model::scope::Scope;

/// Requires the scope of the original method.
const VERIFY: &str = "/v1/auth/verify";
/// Followed by a scope: requires at least that one.
const REQUIRE: &str = "/v1/auth/require";

/// The headers in which gateways state the original request: the method, and the URI.
static STATED_REQUESTS: [(HeaderName, &[HeaderName]); 2] = [
    (HeaderName::from_static("x-forwarded-method"), &FORWARDED_URI),
    (HeaderName::from_static("x-original-method"), &ORIGINAL_URI),
];
static FORWARDED_URI: [HeaderName; 1] = [HeaderName::from_static("x-forwarded-uri")];
static ORIGINAL_URI: [HeaderName; 2] =
    [HeaderName::from_static("x-original-uri"), HeaderName::from_static("x-original-url")];

/// Headers by which clients replace the method: the API behind the gateway may act on them.
static METHOD_OVERRIDES: [HeaderName; 3] = [
    HeaderName::from_static("x-http-method-override"),
    HeaderName::from_static("x-http-method"),
    HeaderName::from_static("x-method-override"),
];

/// True for the paths at which gateways ask about requests of their clients.
pub(super) fn is_forward_auth_path(path: &str) -> bool {
    [VERIFY, REQUIRE].iter().any(|prefix| suffix_of(path, prefix).is_some())
}

/// Returns the rest of the path if it is `prefix` or below it.
fn suffix_of<'a>(path: &'a str, prefix: &str) -> Option<&'a str> {
    path.strip_prefix(prefix).filter(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The scope that a forward-auth request requires; `None` if its path names an unknown scope.
///
/// It is an extension of each forward-auth request and of no other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequiredScope(Option<Scope>);

impl RequiredScope {
    /// The scope that usage reports count. A request with an unknown scope uses none.
    pub(super) fn used(self) -> Scope {
        self.0.unwrap_or(Scope::ReadOnly)
    }
}

impl<S: Sync> FromRequestParts<S> for RequiredScope {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let scope = parts.extensions.get::<Self>().copied();
        scope.ok_or_else(|| ApiError::internal("a forward-auth request has no RequiredScope"))
    }
}

impl TryFrom<RequiredScope> for Scope {
    type Error = ApiError;

    /// An unknown scope is a malformed path parameter.
    fn try_from(scope: RequiredScope) -> Result<Self, ApiError> {
        let unknown = || ApiError::new(ErrorCode::NotFound, "no such scope in the path");
        scope.0.ok_or_else(unknown)
    }
}

/// The original request that a gateway asks about. It is read before authentication: the audit
/// event describes it in any case.
#[derive(Debug)]
pub(super) struct OriginalRequest<'a> {
    /// The method.
    pub method: Cow<'a, Method>,
    /// The path without the query string. Bytes that are not UTF-8 are percent-encoded.
    pub path: Cow<'a, str>,
    /// The scope that it requires.
    pub required_scope: RequiredScope,
}

impl<'a> OriginalRequest<'a> {
    /// Reads the original request from the path, the method and the headers of a forward-auth
    /// request.
    pub(super) fn from_forward_auth(request: &'a Request) -> Self {
        let path = request.uri().path();
        let (suffix, least_scope) = parse_path(path);
        let sources = sources(request.method(), suffix, request.headers());
        let scope = sources.iter().map(|source| source.scope).max().unwrap_or(Scope::Write);
        let method = most_demanding(&sources, |source| source.method.as_ref());
        let stated_path = most_demanding(&sources, |source| source.path);
        Self {
            method: method.cloned().unwrap_or(Cow::Borrowed(request.method())),
            path: stated_path.map_or(Cow::Borrowed(path), |uri| text_of(path_of(uri))),
            required_scope: RequiredScope(least_scope.map(|least| scope.max(least))),
        }
    }
}

/// Removes the query string. It is that of the original request, and is never read here.
pub(super) fn remove_query(uri: &mut Uri) {
    if uri.query().is_some() {
        // The path of a valid URI is a valid URI.
        *uri = uri.path().parse().unwrap_or_default();
    }
}

/// Splits the path of a forward-auth request into the appended original path and the scope that it
/// requires at least; `None` if it names an unknown scope.
fn parse_path(path: &str) -> (&str, Option<Scope>) {
    if let Some(suffix) = suffix_of(path, VERIFY) {
        return (suffix, Some(Scope::ReadOnly));
    }
    let rest = suffix_of(path, REQUIRE).and_then(|rest| rest.strip_prefix('/')).unwrap_or("");
    let (scope, suffix) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    (suffix, scope.parse().ok())
}

/// A statement about the original request.
struct Source<'a> {
    /// The method; `None` if it is absent or malformed.
    method: Option<Cow<'a, Method>>,
    /// The path or URI.
    path: Option<&'a [u8]>,
    /// The scope that the original request requires according to this source.
    scope: Scope,
}

impl<'a> Source<'a> {
    fn own(method: &'a Method, path: Option<&'a [u8]>) -> Self {
        Self { method: Some(Cow::Borrowed(method)), path, scope: scope_of(method) }
    }

    /// Reads a method header and URI headers; `None` if all of them are absent.
    fn stated(headers: &'a HeaderMap, method: &HeaderName, uris: &[HeaderName]) -> Option<Self> {
        let uri = uris.iter().find_map(|name| headers.get(name)).map(HeaderValue::as_bytes);
        let stated = headers.get_all(method);
        let count = stated.iter().count();
        if count == 0 && uri.is_none() {
            return None;
        }
        let methods = stated.iter().filter_map(|value| Method::from_bytes(value.as_bytes()).ok());
        let method = methods.max_by_key(scope_of);
        // An absent, malformed or repeated method must not count as a read.
        let scope = method.as_ref().filter(|_| count == 1).map_or(Scope::Write, scope_of);
        let method = method.map(Cow::Owned);
        Some(Self { method, path: uri.filter(|uri| !uri.is_empty()), scope })
    }
}

/// Returns all statements about the original request. Of several that require the same scope, the
/// first describes it in the audit log.
fn sources<'a>(own: &'a Method, suffix: &'a str, headers: &'a HeaderMap) -> Vec<Source<'a>> {
    // A gateway that sends the URI in a header may be configured with a final slash.
    let (appended, slash) = match suffix {
        "" => (None, None),
        "/" => (None, Some(suffix)),
        path => (Some(path), None),
    };
    let appended = appended.map(|path| Source::own(own, Some(path.as_bytes())));
    let stated =
        STATED_REQUESTS.iter().filter_map(|(method, uris)| Source::stated(headers, method, uris));
    let overrides =
        METHOD_OVERRIDES.iter().filter_map(|method| Source::stated(headers, method, &[]));
    let bare = Source::own(own, slash.map(str::as_bytes));
    appended.into_iter().chain(stated).chain([bare]).chain(overrides).collect()
}

/// Returns a value of the first of those sources that have it and require the greatest scope.
fn most_demanding<'s, 'a, T>(
    sources: &'s [Source<'a>],
    value: impl Fn(&'s Source<'a>) -> Option<T>,
) -> Option<T> {
    // `max_by_key` returns the last of several.
    let values = sources.iter().rev().filter_map(|source| Some((source.scope, value(source)?)));
    values.max_by_key(|(scope, _)| *scope).map(|(_, value)| value)
}

/// Returns the scope that a request with this method requires.
fn scope_of(method: &Method) -> Scope {
    match *method {
        Method::GET | Method::HEAD => Scope::ReadOnly,
        _ => Scope::Write,
    }
}

/// Returns the path of an absolute or relative URI, without scheme, host, query and fragment.
fn path_of(uri: &[u8]) -> &[u8] {
    let uri = uri.split(|byte| matches!(byte, b'?' | b'#')).next().unwrap_or_default();
    let scheme = uri.windows(3).position(|bytes| bytes == b"://");
    let Some(scheme) = scheme.filter(|_| !uri.starts_with(b"/")) else { return uri };
    let rest = &uri[scheme + 3..];
    rest.iter().position(|byte| *byte == b'/').map_or(b"/", |at| &rest[at..])
}

/// Converts bytes to text, and percent-encodes those that are not UTF-8.
fn text_of(bytes: &[u8]) -> Cow<'_, str> {
    if let Ok(text) = str::from_utf8(bytes) {
        return Cow::Borrowed(text);
    }
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(percent_encode(chunk.invalid(), NON_ALPHANUMERIC));
    }
    text.into()
}

#[cfg(test)]
mod tests;
