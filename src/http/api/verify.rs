//! Forward-auth: a gateway asks whether a request may pass (nginx `auth_request`, Traefik, Caddy,
//! Envoy).

use std::borrow::Cow;

use axum::{
    body::Body,
    extract::Request,
    http::{HeaderMap, HeaderName, HeaderValue, Method, header},
    response::Response,
};
use serde::Serialize;
use utoipa::ToSchema;

use super::Answer;
use crate::{
    auth::check_scope::{self, Requirement},
    http::{
        ApiError, USUAL_HEADERS,
        extract::{Authorized, Query, ReadOnly},
    },
    model::{
        id::{ApiKeyId, WorkspaceId},
        principal::Principal,
        scope::Scope,
    },
};

/// No answer is longer, in bytes.
const MAX_LEN: usize = 256;

const SUBJECT: HeaderName = HeaderName::from_static("x-auth-subject");
const WORKSPACE_ID: HeaderName = HeaderName::from_static("x-auth-workspace-id");
const SCOPE: HeaderName = HeaderName::from_static("x-auth-scope");
const KEY_ID: HeaderName = HeaderName::from_static("x-auth-key-id");

/// Where a gateway asks; behind it may stand the original path.
const PATH: &str = "/v1/auth/verify";

/// Where gateways put the original request. Nobody knows which of the two a gateway sets and which
/// its client made up, so both are heard: see [`told`].
static HEADERS: [(HeaderName, &[HeaderName]); 2] = [
    (HeaderName::from_static("x-forwarded-method"), &FORWARDED_URI),
    (HeaderName::from_static("x-original-method"), &ORIGINAL_URI),
];
static FORWARDED_URI: [HeaderName; 1] = [HeaderName::from_static("x-forwarded-uri")];
static ORIGINAL_URI: [HeaderName; 2] =
    [HeaderName::from_static("x-original-uri"), HeaderName::from_static("x-original-url")];

/// Who may pass.
#[derive(Serialize, ToSchema)]
pub struct VerifiedBody {
    /// The key or the person.
    #[schema(example = "key_01jd0zt8q7f7qvs4p2k6x3m9ab")]
    subject: String,
    workspace_id: WorkspaceId,
    scope: Scope,
    /// The key, if it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    key_id: Option<ApiKeyId>,
}

/// May this request pass?
///
/// The original method and URI come from `X-Forwarded-Method` and `X-Forwarded-Uri` or
/// `X-Original-Method` and `X-Original-URI`. GET and HEAD take the scope `read-only`, others `write`;
/// `scope` may ask for more.
#[utoipa::path(method(get, post, put, patch, delete, head, options), path = "/v1/auth/verify",
    tag = "Gateways",
    params(("scope" = Option<Scope>, Query, description = "Ask for at least this scope")),
    responses((status = 200, body = VerifiedBody,
        headers(("X-Auth-Subject" = String), ("X-Auth-Workspace-Id" = String),
                ("X-Auth-Scope" = String), ("X-Auth-Key-Id" = String)))))]
pub async fn verify(caller: Authorized<ReadOnly>, query: Query) -> Answer<Response> {
    answer(&caller, &query)
}

/// May this request pass? The path is the original one, as Envoy sends it
#[utoipa::path(method(get, post, put, patch, delete, head, options),
    path = "/v1/auth/verify/{path}", tag = "Gateways",
    params(("path" = String, Path, description = "The original path"),
           ("scope" = Option<Scope>, Query, description = "Ask for at least this scope")),
    responses((status = 200, body = VerifiedBody,
        headers(("X-Auth-Subject" = String), ("X-Auth-Workspace-Id" = String),
                ("X-Auth-Scope" = String), ("X-Auth-Key-Id" = String)))))]
pub async fn verify_path(caller: Authorized<ReadOnly>, query: Query) -> Answer<Response> {
    answer(&caller, &query)
}

/// May this request pass? The original path is `/`
#[utoipa::path(method(get, post, put, patch, delete, head, options), path = "/v1/auth/verify/",
    tag = "Gateways",
    params(("scope" = Option<Scope>, Query, description = "Ask for at least this scope")),
    responses((status = 200, body = VerifiedBody,
        headers(("X-Auth-Subject" = String), ("X-Auth-Workspace-Id" = String),
                ("X-Auth-Scope" = String), ("X-Auth-Key-Id" = String)))))]
pub async fn verify_root(caller: Authorized<ReadOnly>, query: Query) -> Answer<Response> {
    answer(&caller, &query)
}

/// Whether a path is where gateways ask, about requests of others.
#[must_use]
pub fn is_question(path: &str) -> bool {
    path.strip_prefix(PATH).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The request that a gateway asks about. Read before anything else, for the log tells of it however
/// the question is answered.
#[derive(Debug, Clone)]
pub struct OriginalRequest<'a> {
    /// Its method.
    pub method: Cow<'a, Method>,
    /// Its path, without the query string.
    pub path: &'a str,
}

impl<'a> OriginalRequest<'a> {
    /// What the headers of a question tell, or its own method and path.
    #[must_use]
    pub fn of(question: &'a Request) -> Self {
        let told = told(question.headers());
        let path = question.uri().path();
        let method = Cow::Borrowed(question.method());
        match path.strip_prefix(PATH).filter(|rest| !rest.is_empty()) {
            // The method is the original one too, and a header that the client made up must not
            // soften it.
            Some(rest) => {
                let carrier = Self { method, path: rest };
                told.map_or(carrier.clone(), |told| told.or_more_demanding(carrier))
            }
            // The gateway's own method says nothing where a header tells the original one.
            None => told.unwrap_or(Self { method, path }),
        }
    }

    /// Of two requests the one that takes the greater scope; the first, where they are alike.
    fn or_more_demanding(self, other: Self) -> Self {
        if scope_of(other.method.as_str()) > scope_of(self.method.as_str()) { other } else { self }
    }
}

/// The scope that a request of this method takes.
fn scope_of(method: &str) -> Scope {
    match method {
        "GET" | "HEAD" => Scope::ReadOnly,
        _ => Scope::Write,
    }
}

/// What headers tell of the original request, if they do. Where several tell, the one that takes the
/// greater scope: a client may add headers, and must gain nothing by it.
fn told(headers: &HeaderMap) -> Option<OriginalRequest<'_>> {
    let told = HEADERS.iter().filter_map(|(method_header, uri_headers)| {
        let uri = uri_headers.iter().find_map(|name| headers.get(name));
        let uri = uri.and_then(|value| value.to_str().ok()).filter(|uri| !uri.is_empty());
        let methods: Vec<_> = headers.get_all(method_header).iter().collect();
        if methods.is_empty() && uri.is_none() {
            return None;
        }
        // What is no method, or two of them, is not to be taken for a read.
        let method = match methods.as_slice() {
            [] => Method::GET,
            [method] => Method::from_bytes(method.as_bytes()).unwrap_or(Method::CONNECT),
            _ => Method::CONNECT,
        };
        Some(OriginalRequest { method: Cow::Owned(method), path: path_of(uri.unwrap_or(PATH)) })
    });
    told.reduce(OriginalRequest::or_more_demanding)
}

/// The path of a URI, which may be whole: without scheme, host, query or fragment.
fn path_of(uri: &str) -> &str {
    let path = match uri.split_once("://") {
        Some((_, rest)) => rest.find('/').map_or("/", |at| &rest[at..]),
        None => uri,
    };
    path.split(['?', '#']).next().unwrap_or_default()
}

fn answer(caller: &Authorized<ReadOnly>, query: &Query) -> Answer<Response> {
    let asked: Option<Scope> = query.parse_as("scope", "read-only, write or admin")?;
    // A gateway may pass the client's own query string on: it can ask for more, never for less.
    let required = scope_of(&caller.request.method).max(asked.unwrap_or(Scope::ReadOnly));
    check_scope::check(Requirement::Scope(required), &caller.principal, caller.request.ip)?;
    let mut response = verified(&caller.principal)?;
    if asked == Some(required) {
        response.extensions_mut().insert(Asked(required));
    }
    Ok(response)
}

/// What a question asked for, where its query string told.
#[derive(Clone, Copy)]
struct Asked(Scope);

/// The scope that a question asked for: its request is of this method, its answer this.
pub(in crate::http) fn asked_scope(method: &str, answer: &Response) -> Scope {
    answer.extensions().get::<Asked>().map_or(scope_of(method), |asked| asked.0)
}

/// Written by hand, not with `Json`: this is the answer that is given most often.
fn verified(principal: &Principal) -> Answer<Response> {
    let verified = VerifiedBody {
        subject: principal.subject(),
        workspace_id: principal.workspace_id,
        scope: principal.scope,
        key_id: principal.api_key(),
    };
    let mut body = Vec::with_capacity(MAX_LEN);
    serde_json::to_writer(&mut body, &verified)
        .map_err(|error| ApiError::internal(&error.to_string()))?;
    let mut response = Response::new(Body::from(body));
    let headers = response.headers_mut();
    headers.reserve(USUAL_HEADERS);
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
    fn the_path_of_a_uri_is_bare() {
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
