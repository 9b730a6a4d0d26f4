//! Forward-auth: gateways ask whether a request may pass (nginx `auth_request`, Traefik, Caddy,
//! Envoy).
//!
//! The gateway sends the original method and URI in headers or as the path. Clients can add such
//! headers too, so of several candidates the one that requires the greater scope counts: a forged
//! header never lowers the requirement. Scopes are checked in [`crate::auth::check_scope`].

use std::borrow::Cow;

use axum::{
    body::Body,
    extract::Request,
    http::{HeaderMap, HeaderName, HeaderValue, Method, header},
    response::Response,
};
use serde::Serialize;
use utoipa::ToSchema;

use super::ApiResult;
use crate::{
    auth::check_scope::{self, AccessRequirement},
    http::{
        ApiError, HEADER_CAPACITY,
        extract::{Authorized, Query, ReadOnly},
    },
    model::{
        id::{ApiKeyId, WorkspaceId},
        principal::Principal,
        scope::Scope,
    },
};

/// Capacity in bytes that holds every response body.
const BODY_CAPACITY: usize = 256;

const SUBJECT: HeaderName = HeaderName::from_static("x-auth-subject");
const WORKSPACE_ID: HeaderName = HeaderName::from_static("x-auth-workspace-id");
const SCOPE: HeaderName = HeaderName::from_static("x-auth-scope");
const KEY_ID: HeaderName = HeaderName::from_static("x-auth-key-id");

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

/// The caller of a request that may pass.
#[derive(Serialize, ToSchema)]
pub struct ForwardAuthBody {
    /// The id of the API key or the user.
    #[schema(example = "key_01jd0zt8q7f7qvs4p2k6x3m9ab")]
    subject: String,
    workspace_id: WorkspaceId,
    scope: Scope,
    /// The id of the API key, if the credential is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    key_id: Option<ApiKeyId>,
}

/// Check a request for a gateway
///
/// Send the original method and URI in `X-Forwarded-Method` and `X-Forwarded-Uri`, or in
/// `X-Original-Method` and `X-Original-URI`. GET and HEAD require the scope `read-only`, other
/// methods `write`. Use `scope` to require more.
#[utoipa::path(method(get, post, put, patch, delete, head, options), path = "/v1/auth/verify",
    tag = "Gateways",
    params(("scope" = Option<Scope>, Query, description = "Require at least this scope")),
    responses((status = 200, body = ForwardAuthBody,
        headers(("X-Auth-Subject" = String), ("X-Auth-Workspace-Id" = String),
                ("X-Auth-Scope" = String), ("X-Auth-Key-Id" = String)))))]
pub async fn verify(caller: Authorized<ReadOnly>, query: Query) -> ApiResult<Response> {
    check(&caller, &query)
}

/// Check a request for a gateway, with the original path in the URL
///
/// For gateways that append the original path to the URL, such as Envoy. The method of this request
/// is the original one.
#[utoipa::path(method(get, post, put, patch, delete, head, options),
    path = "/v1/auth/verify/{path}", tag = "Gateways",
    params(("path" = String, Path, description = "The original path"),
           ("scope" = Option<Scope>, Query, description = "Require at least this scope")),
    responses((status = 200, body = ForwardAuthBody,
        headers(("X-Auth-Subject" = String), ("X-Auth-Workspace-Id" = String),
                ("X-Auth-Scope" = String), ("X-Auth-Key-Id" = String)))))]
pub async fn verify_path(caller: Authorized<ReadOnly>, query: Query) -> ApiResult<Response> {
    check(&caller, &query)
}

/// Check a request for a gateway, with the original path `/`
///
/// For gateways that append the original path to the URL, such as Envoy. The method of this request
/// is the original one.
#[utoipa::path(method(get, post, put, patch, delete, head, options), path = "/v1/auth/verify/",
    tag = "Gateways",
    params(("scope" = Option<Scope>, Query, description = "Require at least this scope")),
    responses((status = 200, body = ForwardAuthBody,
        headers(("X-Auth-Subject" = String), ("X-Auth-Workspace-Id" = String),
                ("X-Auth-Scope" = String), ("X-Auth-Key-Id" = String)))))]
pub async fn verify_root(caller: Authorized<ReadOnly>, query: Query) -> ApiResult<Response> {
    check(&caller, &query)
}

/// True for the paths at which gateways ask about requests of their clients.
#[must_use]
pub fn is_forward_auth_path(path: &str) -> bool {
    path.strip_prefix(PATH).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The original request that a gateway asks about. It is read before authentication: the audit
/// event describes it in any case.
#[derive(Debug, Clone)]
pub struct OriginalRequest<'a> {
    /// The method.
    pub method: Cow<'a, Method>,
    /// The path without the query string.
    pub path: &'a str,
}

impl<'a> OriginalRequest<'a> {
    /// Reads the original request from the headers or the path of a forward-auth request. Without
    /// either, the forward-auth request itself counts as the original one.
    #[must_use]
    pub fn from_forward_auth(request: &'a Request) -> Self {
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
fn required_scope(method: &str) -> Scope {
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

fn check(caller: &Authorized<ReadOnly>, query: &Query) -> ApiResult<Response> {
    let requested: Option<Scope> = query.parse_as("scope", "read-only, write or admin")?;
    // A gateway may forward the client's query string, so `scope` can only raise the requirement.
    let required = required_scope(&caller.request.method).max(requested.unwrap_or(Scope::ReadOnly));
    check_scope::check_access(
        AccessRequirement::Scope(required),
        &caller.principal,
        caller.request.ip,
    )?;
    let mut response = verified_response(&caller.principal)?;
    if requested == Some(required) {
        response.extensions_mut().insert(RequestedScope(required));
    }
    Ok(response)
}

/// A response extension: the scope that the query string of a forward-auth request required.
#[derive(Clone, Copy)]
struct RequestedScope(Scope);

/// Returns the scope that a forward-auth request required, from the original method and the
/// response.
pub(in crate::http) fn requested_scope(method: &str, response: &Response) -> Scope {
    let requested = response.extensions().get::<RequestedScope>();
    requested.map_or(required_scope(method), |requested| requested.0)
}

/// Builds the response without `Json`: this is the most frequent response of the service.
fn verified_response(principal: &Principal) -> ApiResult<Response> {
    let verified = ForwardAuthBody {
        subject: principal.subject(),
        workspace_id: principal.workspace_id,
        scope: principal.scope,
        key_id: principal.api_key(),
    };
    let mut body = Vec::with_capacity(BODY_CAPACITY);
    serde_json::to_writer(&mut body, &verified)
        .map_err(|error| ApiError::internal(&error.to_string()))?;
    let mut response = Response::new(Body::from(body));
    let headers = response.headers_mut();
    headers.reserve(HEADER_CAPACITY);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(SCOPE, HeaderValue::from_static(verified.scope.as_str()));
    let mut set = |name, value: String| {
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(name, value);
        }
    };
    set(WORKSPACE_ID, verified.workspace_id.to_string());
    if let Some(id) = verified.key_id {
        set(KEY_ID, id.to_string());
    }
    set(SUBJECT, verified.subject);
    Ok(response)
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
