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

use super::{ApiError, ErrorCode as ApiCode, sanitize_description};
use crate::oauth::{OAuthError, OAuthErrorCode};

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

/// An error response of an OAuth endpoint.
#[derive(Debug)]
pub enum OAuthErrorResponse {
    /// An error that the RFCs define, with its description.
    Protocol(OAuthErrorCode, String),
    /// A general error of the service. The middleware converts it to the format of the RFCs.
    Service(ApiError),
}

/// `Retry-After` of an OAuth error with status 503. Such an error waits for an action of a user,
/// such as enrolling a second factor, so clients need not retry more often.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("60");

/// A response extension that exempts the response from the rate limit of the client's address.
/// Devices that poll as often as they are allowed get it: other clients behind the same address
/// must not use up their limit.
#[derive(Debug, Clone, Copy)]
pub(in crate::http) struct RateLimitExempt;

impl From<OAuthError> for OAuthErrorResponse {
    fn from(error: OAuthError) -> Self {
        match error {
            OAuthError::Protocol { code, description } => {
                Self::Protocol(code, description.into_owned())
            }
            OAuthError::Service(error) => Self::Service(error.into()),
        }
    }
}

impl From<ApiError> for OAuthErrorResponse {
    fn from(error: ApiError) -> Self {
        Self::Service(error)
    }
}

impl IntoResponse for OAuthErrorResponse {
    fn into_response(self) -> Response {
        let (code, description) = match self {
            Self::Protocol(code, description) => (code, description),
            Self::Service(error) => return error.into_response(),
        };
        let status = match code {
            OAuthErrorCode::InvalidClient => StatusCode::UNAUTHORIZED,
            OAuthErrorCode::ServerError => StatusCode::INTERNAL_SERVER_ERROR,
            OAuthErrorCode::TemporarilyUnavailable => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::BAD_REQUEST,
        };
        let mut response = error_response(status, code, &description);
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER);
        }
        if matches!(code, OAuthErrorCode::AuthorizationPending | OAuthErrorCode::SlowDown) {
            response.extensions_mut().insert(RateLimitExempt);
        }
        if status == StatusCode::UNAUTHORIZED {
            let scheme = HeaderValue::from_static("Basic realm=\"call2me\"");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
        }
        response
    }
}

fn error_response(status: StatusCode, code: OAuthErrorCode, description: &str) -> Response {
    let error_description = sanitize_description(description);
    (status, Json(OAuthErrorBody { error: code.as_str(), error_description })).into_response()
}

/// Converts a general error response of the service to the format of RFC 6749, and returns all
/// other responses unchanged. Temporary failures become `temporarily_unavailable`, which ends no
/// grant.
pub(in crate::http) fn render_oauth_error(response: Response) -> Response {
    let Some(error) = ApiError::from_response(&response) else { return response };
    let (status, code) = match error.code() {
        ApiCode::RateLimited => {
            (StatusCode::TOO_MANY_REQUESTS, OAuthErrorCode::TemporarilyUnavailable)
        }
        ApiCode::Unavailable => {
            (StatusCode::SERVICE_UNAVAILABLE, OAuthErrorCode::TemporarilyUnavailable)
        }
        ApiCode::Internal => (StatusCode::INTERNAL_SERVER_ERROR, OAuthErrorCode::ServerError),
        ApiCode::PayloadTooLarge => (StatusCode::PAYLOAD_TOO_LARGE, OAuthErrorCode::InvalidRequest),
        ApiCode::UnsupportedMediaType => {
            (StatusCode::UNSUPPORTED_MEDIA_TYPE, OAuthErrorCode::InvalidRequest)
        }
        _ => (StatusCode::BAD_REQUEST, OAuthErrorCode::InvalidRequest),
    };
    let mut oauth_response = error_response(status, code, error.message());
    for (name, value) in response.headers() {
        if !oauth_response.headers().contains_key(name) && name != header::CONTENT_LENGTH {
            oauth_response.headers_mut().append(name, value.clone());
        }
    }
    if let Some(seconds) = error.retry_after() {
        oauth_response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    oauth_response
}
