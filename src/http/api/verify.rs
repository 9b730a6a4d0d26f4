//! Forward-auth: a gateway asks whether a request may pass (nginx `auth_request`, Traefik, Caddy,
//! Envoy).

use axum::{
    Json,
    http::{HeaderMap, HeaderName, HeaderValue, Method, Uri},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    auth::check_scope::{self, Requirement},
    http::{
        ApiError,
        extract::{Authorized, Query, ReadOnly},
        middleware::Forwarded,
    },
    model::{
        id::{ApiKeyId, WorkspaceId},
        scope::Scope,
    },
};

const SUBJECT: HeaderName = HeaderName::from_static("x-auth-subject");
const WORKSPACE_ID: HeaderName = HeaderName::from_static("x-auth-workspace-id");
const SCOPE: HeaderName = HeaderName::from_static("x-auth-scope");
const KEY_ID: HeaderName = HeaderName::from_static("x-auth-key-id");

/// Where gateways put the original request, first come first served.
const METHOD_HEADERS: [&str; 2] = ["x-forwarded-method", "x-original-method"];
const URI_HEADERS: [&str; 3] = ["x-forwarded-uri", "x-original-uri", "x-original-url"];

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
#[utoipa::path(method(get, post, put, patch, delete), path = "/v1/auth/verify", tag = "Gateways",
    params(("scope" = Option<Scope>, Query, description = "Ask for at least this scope")),
    responses((status = 200, body = VerifiedBody,
        headers(("X-Auth-Subject" = String), ("X-Auth-Workspace-Id" = String),
                ("X-Auth-Scope" = String), ("X-Auth-Key-Id" = String)))))]
pub async fn verify(
    caller: Authorized<ReadOnly>,
    method: Method,
    headers: HeaderMap,
    query: Query,
) -> Response {
    answer(&caller, original(&method, &headers, None), &query)
}

/// May this request pass? The path is the original one, as Envoy sends it
#[utoipa::path(method(get, post, put, patch, delete), path = "/v1/auth/verify/{path}", tag = "Gateways",
    params(("path" = String, Path, description = "The original path"),
           ("scope" = Option<Scope>, Query, description = "Ask for at least this scope")),
    responses((status = 200, body = VerifiedBody,
        headers(("X-Auth-Subject" = String), ("X-Auth-Workspace-Id" = String),
                ("X-Auth-Scope" = String), ("X-Auth-Key-Id" = String)))))]
pub async fn verify_path(
    caller: Authorized<ReadOnly>,
    method: Method,
    headers: HeaderMap,
    uri: Uri,
    query: Query,
) -> Response {
    let path = uri.path().strip_prefix("/v1/auth/verify").unwrap_or("/");
    answer(&caller, original(&method, &headers, Some(path)), &query)
}

/// The method and path of the request that the gateway asks for.
fn original(method: &Method, headers: &HeaderMap, path: Option<&str>) -> (Method, String) {
    let find = |names: &[&str]| {
        names.iter().find_map(|name| headers.get(*name)).and_then(|value| value.to_str().ok())
    };
    let method = find(&METHOD_HEADERS)
        .and_then(|name| Method::from_bytes(name.as_bytes()).ok())
        .unwrap_or_else(|| method.clone());
    let path = find(&URI_HEADERS).or(path).unwrap_or("/v1/auth/verify");
    (method, path_of(path).to_owned())
}

/// The path of a URI, which may be whole: without scheme, host, query or fragment.
fn path_of(uri: &str) -> &str {
    let path = match uri.split_once("://") {
        Some((_, rest)) => rest.find('/').map_or("/", |at| &rest[at..]),
        None => uri,
    };
    path.split(['?', '#']).next().unwrap_or_default()
}

fn answer(
    caller: &Authorized<ReadOnly>,
    (method, path): (Method, String),
    query: &Query,
) -> Response {
    let forwarded = Forwarded::new(method.as_str(), &path);
    let mut response = match decide(caller, &method, query) {
        Ok(()) => verified(caller),
        Err(refusal) => refusal.into_response(),
    };
    response.extensions_mut().insert(forwarded);
    response
}

fn decide(caller: &Authorized<ReadOnly>, method: &Method, query: &Query) -> Result<(), ApiError> {
    let asked: Option<Scope> = query.parse_as("scope", "read-only, write or admin")?;
    let by_method = match *method {
        Method::GET | Method::HEAD => Scope::ReadOnly,
        _ => Scope::Write,
    };
    // A gateway may pass the client's own query string on: it can ask for more, never for less.
    let required = asked.map_or(by_method, |asked| asked.max(by_method));
    check_scope::check(Requirement::Scope(required), &caller.principal, caller.request.ip)?;
    Ok(())
}

fn verified(caller: &Authorized<ReadOnly>) -> Response {
    let principal = &caller.principal;
    let body = VerifiedBody {
        subject: principal.subject(),
        workspace_id: principal.workspace_id,
        scope: principal.scope,
        key_id: principal.api_key(),
    };
    let mut headers = HeaderMap::new();
    let mut set = |name, value: &str| {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    };
    set(SUBJECT, &body.subject);
    set(WORKSPACE_ID, &body.workspace_id.to_string());
    set(SCOPE, body.scope.as_str());
    if let Some(id) = body.key_id {
        set(KEY_ID, &id.to_string());
    }
    (headers, Json(body)).into_response()
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
