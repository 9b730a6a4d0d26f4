//! Forward-auth: the routes at which gateways ask whether a request may pass.
//!
//! `crate::http::forward_auth` reads the original request. Scopes are checked in
//! [`crate::auth::check_scope`].

use axum::{
    body::Body,
    http::{HeaderName, HeaderValue, header},
    response::Response,
};
use serde::Serialize;
use utoipa::ToSchema;

use super::ApiResult;
use crate::{
    auth::check_scope::{self, AccessRequirement},
    http::{
        ApiError, HEADER_CAPACITY,
        extract::{Authorized, ReadOnly},
        forward_auth::RequiredScope,
    },
    model::{
        id::{ApiKeyId, ClientId, WorkspaceId},
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
const CLIENT_ID: HeaderName = HeaderName::from_static("x-auth-client-id");

/// The caller of a request that may pass.
#[derive(Serialize, ToSchema)]
pub struct ForwardAuthBody {
    /// The id of the API key, the user, or the OAuth client without a user.
    #[schema(example = "key_01jd0zt8q7f7qvs4p2k6x3m9ab")]
    subject: String,
    workspace_id: WorkspaceId,
    scope: Scope,
    /// The id of the API key, if the credential is one.
    #[schema(required)]
    key_id: Option<ApiKeyId>,
    /// The id of the OAuth client, if the credential is a token of one.
    #[schema(required)]
    client_id: Option<ClientId>,
}

macro_rules! forward_auth {
    ($($(#[$doc:meta])* $name:ident $path:literal, params($($params:tt)*);)*) => {$(
        $(#[$doc])*
        #[utoipa::path(method(get, post, put, patch, delete, head, options), path = $path,
            tag = "Gateways", params($($params)*),
            responses((status = 200, body = ForwardAuthBody,
                headers(("X-Auth-Subject" = String), ("X-Auth-Workspace-Id" = String),
                        ("X-Auth-Scope" = String), ("X-Auth-Key-Id" = String),
                        ("X-Auth-Client-Id" = String)))))]
        pub async fn $name(
            caller: Authorized<ReadOnly>,
            required: RequiredScope,
        ) -> ApiResult<Response> {
            check(&caller, required)
        }
    )*};
}

forward_auth! {
    /// Check a request for a gateway
    ///
    /// Send the original method and URI in `X-Forwarded-Method` and `X-Forwarded-Uri`, or in
    /// `X-Original-Method` and `X-Original-URI`. GET and HEAD require the scope `read-only`, other
    /// methods `write`. If several methods are stated, the most demanding one counts, also that of
    /// this request. A URI without a method requires `write`. The query string is ignored.
    verify "/v1/auth/verify", params();

    /// Check a request for a gateway, with the original path `/`
    ///
    /// For gateways that append the original path to the URL, such as Envoy. The method of this
    /// request is the original one.
    verify_root "/v1/auth/verify/", params();

    /// Check a request for a gateway, with the original path in the URL
    ///
    /// For gateways that append the original path to the URL, such as Envoy. The method of this
    /// request is the original one.
    verify_path "/v1/auth/verify/{path}",
        params(("path" = String, Path, description = "The original path"));

    /// Check a request for a gateway, and require at least a scope
    ///
    /// As `/v1/auth/verify`. The method of the original request can require more.
    require "/v1/auth/require/{scope}",
        params(("scope" = Scope, Path, description = "Require at least this scope"));

    /// Check a request for a gateway, with the original path `/`, and require at least a scope
    ///
    /// As `/v1/auth/verify/`. The method of the original request can require more.
    require_root "/v1/auth/require/{scope}/",
        params(("scope" = Scope, Path, description = "Require at least this scope"));

    /// Check a request for a gateway, with the original path in the URL, and require at least a
    /// scope
    ///
    /// As `/v1/auth/verify/{path}`. The method of the original request can require more.
    require_path "/v1/auth/require/{scope}/{path}",
        params(("scope" = Scope, Path, description = "Require at least this scope"),
               ("path" = String, Path, description = "The original path"));
}

fn check(caller: &Authorized<ReadOnly>, required: RequiredScope) -> ApiResult<Response> {
    let required = AccessRequirement::Scope(required.try_into()?);
    check_scope::check_access(required, &caller.principal, caller.request.ip)?;
    verified_response(&caller.principal)
}

/// Builds the response without `Json`: this is the most frequent response of the service.
fn verified_response(principal: &Principal) -> ApiResult<Response> {
    let verified = ForwardAuthBody {
        subject: principal.subject(),
        workspace_id: principal.workspace_id,
        scope: principal.scope,
        key_id: principal.api_key(),
        client_id: principal.client(),
    };
    let mut body = Vec::with_capacity(BODY_CAPACITY);
    serde_json::to_writer(&mut body, &verified)
        .map_err(|error| ApiError::internal(&error.to_string()))?;
    let mut response = Response::new(Body::from(body));
    let headers = response.headers_mut();
    headers.reserve(HEADER_CAPACITY);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(SCOPE, HeaderValue::from_static(verified.scope.as_str()));
    // Gateways copy the headers over those of the client, so each is present, empty if need be.
    let mut set = |name, value: Option<String>| {
        let value = value.and_then(|value| HeaderValue::try_from(value).ok());
        headers.insert(name, value.unwrap_or(HeaderValue::from_static("")));
    };
    set(WORKSPACE_ID, Some(verified.workspace_id.to_string()));
    set(KEY_ID, verified.key_id.map(|id| id.to_string()));
    set(CLIENT_ID, verified.client_id.map(|id| id.to_string()));
    set(SUBJECT, Some(verified.subject));
    Ok(response)
}
