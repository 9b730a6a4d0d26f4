//! Forward-auth: the routes at which gateways ask whether a request may pass.
//!
//! `crate::http::forward_auth` reads the original request. Scopes are checked in
//! [`crate::auth::check_scope`].

use axum::{
    body::Body,
    http::{HeaderName, HeaderValue, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::ToSchema;

use super::ApiResult;
use crate::{
    auth::check_scope::{self, AccessRequirement},
    http::{
        ApiError, HEADER_CAPACITY,
        endpoint::HandlerResponse,
        extract::{Authorized, Query, ReadOnly},
        forward_auth::required_scope,
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

/// The response to a request that may pass, and the scope that the request required.
pub struct Verified {
    response: Response,
    required_scope: Scope,
}

impl IntoResponse for Verified {
    fn into_response(self) -> Response {
        self.response
    }
}

impl HandlerResponse for Verified {
    fn required_scope(&self) -> Option<Scope> {
        Some(self.required_scope)
    }
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
pub async fn verify(caller: Authorized<ReadOnly>, query: Query) -> ApiResult<Verified> {
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
pub async fn verify_path(caller: Authorized<ReadOnly>, query: Query) -> ApiResult<Verified> {
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
pub async fn verify_root(caller: Authorized<ReadOnly>, query: Query) -> ApiResult<Verified> {
    check(&caller, &query)
}

fn check(caller: &Authorized<ReadOnly>, query: &Query) -> ApiResult<Verified> {
    let requested: Option<Scope> = query.parse_as("scope", "read-only, write or admin")?;
    // A gateway may forward the client's query string, so `scope` can only raise the requirement.
    let required = required_scope(&caller.request.method).max(requested.unwrap_or(Scope::ReadOnly));
    check_scope::check_access(
        AccessRequirement::Scope(required),
        &caller.principal,
        caller.request.ip,
    )?;
    Ok(Verified { response: verified_response(&caller.principal)?, required_scope: required })
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
