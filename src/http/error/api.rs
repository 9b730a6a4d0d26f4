//! Error responses of the API: the JSON body, and the headers that go with it.

use axum::{
    body::Body,
    http::{HeaderName, HeaderValue, header},
    response::Response,
};
use secrecy::ExposeSecret;
use serde::Serialize;

use super::{ApiError, ErrorCode, sanitize_description};
use crate::{
    http::dto::rotation::RotationBody,
    model::{id::RequestId, scope::Scope},
};

/// The body of every error.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct ErrorBody {
    /// The details of the error.
    pub error: ErrorDetails,
    /// The same text as `error.message`. The official SDKs read it here.
    #[schema(example = "name must be 1 to 100 characters")]
    pub detail: String,
    /// For `mfa_required`: pass it to `POST /v1/auth/mfa/verify` together with a code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mfa_token: Option<String>,
    /// For `key_in_use`: the recent usage of the key and its clients.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rotation: Option<RotationBody>,
}

/// The details of an error.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct ErrorDetails {
    /// A stable code for programs.
    pub code: ErrorCode,
    /// A text for developers and users. It may change.
    #[schema(example = "name must be 1 to 100 characters")]
    pub message: String,
    /// The invalid field, if the error is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "name")]
    pub field: Option<String>,
    /// For `insufficient_scope`: the scope that the request requires.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub required_scope: Option<Scope>,
    /// The request id. Quote it when you contact support.
    pub request_id: RequestId,
}

/// Renders an error of the API.
pub(in crate::http) fn render_api_error(
    error: &ApiError,
    id: RequestId,
    public_url: &str,
) -> Response {
    let body = ErrorBody {
        error: ErrorDetails {
            code: error.code,
            message: error.message.to_string(),
            field: error.field.as_ref().map(ToString::to_string),
            required_scope: error.required_scope,
            request_id: id,
        },
        detail: error.message.to_string(),
        mfa_token: error.mfa_token.as_ref().map(|token| token.expose_secret().to_owned()),
        rotation: error.rotation.as_deref().map(RotationBody::from),
    };
    let body = Body::from(serde_json::to_vec(&body).unwrap_or_default());
    let mut response = Response::new(body);
    *response.status_mut() = error.code.status();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let mut set = |name: HeaderName, value: String| {
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(name, value);
        }
    };
    if let Some(challenge) = challenge(error, public_url) {
        set(header::WWW_AUTHENTICATE, challenge);
    }
    if let Some(seconds) = error.retry_after {
        set(header::RETRY_AFTER, seconds.to_string());
    }
    response
}

/// Returns the `WWW-Authenticate` header of a 401 or a missing scope (RFC 6750, section 3;
/// RFC 9728, section 5.1).
fn challenge(error: &ApiError, public_url: &str) -> Option<String> {
    let metadata =
        format!("resource_metadata=\"{public_url}/.well-known/oauth-protected-resource\"");
    let metadata = match error.challenge_scope {
        Some(scope) => format!("{metadata}, scope=\"{}\"", scope.oauth_name()),
        None => metadata,
    };
    match error.code {
        ErrorCode::Unauthorized if !error.has_credential => {
            Some(format!("Bearer realm=\"call2me\", {metadata}"))
        }
        ErrorCode::Unauthorized | ErrorCode::TokenExpired => {
            let description = sanitize_description(&error.message);
            Some(format!(
                "Bearer realm=\"call2me\", error=\"invalid_token\", \
                 error_description=\"{description}\", {metadata}"
            ))
        }
        ErrorCode::InsufficientScope => {
            let scope = error.required_scope.map_or("", Scope::oauth_name);
            Some(format!(
                "Bearer realm=\"call2me\", error=\"insufficient_scope\", scope=\"{scope}\", \
                 {metadata}"
            ))
        }
        ErrorCode::InvalidCredentials | ErrorCode::MfaRequired | ErrorCode::InvalidRefreshToken => {
            Some("Bearer realm=\"call2me\"".to_owned())
        }
        _ => None,
    }
}
