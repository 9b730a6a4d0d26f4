//! Errors as OAuth's own endpoints tell them (RFC 6749, section 5.2).

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;

use super::{ApiError, Code as ApiCode, in_grammar};
use crate::oauth::{Code, OAuthError};

/// The body of every error of OAuth.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct OAuthErrorBody {
    /// What a program goes by.
    #[schema(example = "invalid_grant")]
    error: &'static str,
    /// What its author reads.
    #[schema(example = "the refresh token is unknown, expired or revoked")]
    error_description: String,
}

/// A refusal of an endpoint of OAuth.
#[derive(Debug)]
pub enum OAuthRefusal {
    /// As the RFCs foresee.
    Told(Code, String),
    /// As everywhere else; the guard tells it in the words of the RFCs.
    Failed(ApiError),
}

/// When to ask again for what only a person can change.
const LATER: HeaderValue = HeaderValue::from_static("60");

/// Marks the answers to a device that waits as it should: it is not to be told of limits that others behind its
/// address use up.
#[derive(Debug, Clone, Copy)]
pub(in crate::http) struct Patient;

impl From<OAuthError> for OAuthRefusal {
    fn from(error: OAuthError) -> Self {
        match error {
            OAuthError::Refused { code, description } => Self::Told(code, description.into_owned()),
            OAuthError::Failed(error) => Self::Failed(error.into()),
        }
    }
}

impl From<ApiError> for OAuthRefusal {
    fn from(error: ApiError) -> Self {
        Self::Failed(error)
    }
}

impl IntoResponse for OAuthRefusal {
    fn into_response(self) -> Response {
        let (code, description) = match self {
            Self::Told(code, description) => (code, description),
            Self::Failed(error) => return error.into_response(),
        };
        let status = match code {
            Code::InvalidClient => StatusCode::UNAUTHORIZED,
            Code::ServerError => StatusCode::INTERNAL_SERVER_ERROR,
            Code::TemporarilyUnavailable => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::BAD_REQUEST,
        };
        let mut response = body(status, code, &description);
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, LATER);
        }
        if matches!(code, Code::AuthorizationPending | Code::SlowDown) {
            response.extensions_mut().insert(Patient);
        }
        if status == StatusCode::UNAUTHORIZED {
            let scheme = HeaderValue::from_static("Basic realm=\"call2me\"");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
        }
        response
    }
}

fn body(status: StatusCode, code: Code, description: &str) -> Response {
    let error_description = in_grammar(description);
    (status, Json(OAuthErrorBody { error: code.as_str(), error_description })).into_response()
}

/// A refusal of this service's own, told as OAuth's clients read it; other answers as they are. What is over
/// soon never looks like the end of a grant.
pub(in crate::http) fn of_refusal(response: Response) -> Response {
    let Some(error) = ApiError::of(&response) else { return response };
    let (status, code) = match error.code() {
        ApiCode::RateLimited => (StatusCode::TOO_MANY_REQUESTS, Code::TemporarilyUnavailable),
        ApiCode::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, Code::TemporarilyUnavailable),
        ApiCode::Internal => (StatusCode::INTERNAL_SERVER_ERROR, Code::ServerError),
        ApiCode::PayloadTooLarge => (StatusCode::PAYLOAD_TOO_LARGE, Code::InvalidRequest),
        ApiCode::UnsupportedMediaType => (StatusCode::UNSUPPORTED_MEDIA_TYPE, Code::InvalidRequest),
        _ => (StatusCode::BAD_REQUEST, Code::InvalidRequest),
    };
    let mut told = body(status, code, error.message());
    for (name, value) in response.headers() {
        if !told.headers().contains_key(name) && name != header::CONTENT_LENGTH {
            told.headers_mut().append(name, value.clone());
        }
    }
    if let Some(seconds) = error.retry_after() {
        told.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    told
}
