//! Error responses of the OAuth endpoints (RFC 6749, section 5.2).
//!
//! Integration platforms take a 4xx response to a refresh for the end of the connection. So a
//! temporary failure is always 429 or 503, never an error that would end a grant.

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;

use super::{EndpointError, ErrorCode as ApiCode, sanitize_description};
use crate::oauth::{OAuthErrorCode, ProtocolError};

/// The body of every error of the OAuth endpoints.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct OAuthErrorBody {
    /// The error code of the RFC.
    #[schema(example = "invalid_grant")]
    error: &'static str,
    /// A text for the developer of the client.
    #[schema(example = "the refresh token is unknown, expired or revoked")]
    error_description: String,
}

/// `Retry-After` of an error of the protocol with status 503, in seconds. Such an error waits for
/// an action of a user, such as enrolling a second factor, so clients need not retry more often.
const RETRY_AFTER_SECONDS: u64 = 60;

/// The status of an error that the RFCs define.
pub(super) const fn protocol_status(code: OAuthErrorCode) -> StatusCode {
    match code {
        OAuthErrorCode::InvalidClient => StatusCode::UNAUTHORIZED,
        OAuthErrorCode::ServerError => StatusCode::INTERNAL_SERVER_ERROR,
        OAuthErrorCode::TemporarilyUnavailable => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::BAD_REQUEST,
    }
}

/// The status and the code of an error of the service. Temporary failures are
/// `temporarily_unavailable`, which ends no grant.
const fn service_status(code: ApiCode) -> (StatusCode, OAuthErrorCode) {
    match code {
        ApiCode::RateLimited | ApiCode::Unavailable => {
            (code.status(), OAuthErrorCode::TemporarilyUnavailable)
        }
        ApiCode::Internal => (code.status(), OAuthErrorCode::ServerError),
        ApiCode::PayloadTooLarge | ApiCode::UnsupportedMediaType => {
            (code.status(), OAuthErrorCode::InvalidRequest)
        }
        _ => (StatusCode::BAD_REQUEST, OAuthErrorCode::InvalidRequest),
    }
}

/// Renders an error of an OAuth endpoint.
pub(in crate::http) fn render_oauth_error(error: &EndpointError) -> Response {
    let (status, code, description, retry_after) = match error {
        EndpointError::Service(error) => {
            let (status, code) = service_status(error.code());
            (status, code, error.message(), error.retry_after())
        }
        EndpointError::Protocol(ProtocolError { code, description }) => {
            let status = protocol_status(*code);
            let is_unavailable = status == StatusCode::SERVICE_UNAVAILABLE;
            (status, *code, &**description, is_unavailable.then_some(RETRY_AFTER_SECONDS))
        }
    };
    let error_description = sanitize_description(description);
    let body = Json(OAuthErrorBody { error: code.as_str(), error_description });
    let mut response = (status, body).into_response();
    let headers = response.headers_mut();
    if let Some(seconds) = retry_after {
        headers.insert(header::RETRY_AFTER, seconds.into());
    }
    if status == StatusCode::UNAUTHORIZED {
        let scheme = HeaderValue::from_static("Basic realm=\"call2me\"");
        headers.insert(header::WWW_AUTHENTICATE, scheme);
    }
    response
}
