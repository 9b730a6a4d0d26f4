use axum::http::StatusCode;
use serde::Serialize;

/// Error codes. Clients decide by them what to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// Malformed JSON or query string, or more than one `Authorization` header.
    BadRequest,
    /// The credential is missing, malformed, unknown or revoked.
    Unauthorized,
    /// A genuine access token after its `exp`. Refresh it.
    TokenExpired,
    /// Sign-in failed. Unknown address and wrong password are not distinguished.
    InvalidCredentials,
    /// The password was correct and a second factor is required. Complete the sign-in with
    /// `mfa_token`.
    MfaRequired,
    /// The refresh token is unknown, expired, revoked or reused. Sign in again.
    InvalidRefreshToken,
    /// The credential lacks the required scope.
    InsufficientScope,
    /// The caller is not allowed to do this.
    Forbidden,
    /// The route or resource does not exist, or the resource belongs to another workspace.
    NotFound,
    /// The route does not support this method.
    MethodNotAllowed,
    /// The body is too large.
    PayloadTooLarge,
    /// The body is not JSON.
    UnsupportedMediaType,
    /// The request conflicts with the current state.
    Conflict,
    /// The key may still be in use. `rotation` lists its clients.
    KeyInUse,
    /// The `Idempotency-Key` was used for a request with another body.
    IdempotencyConflict,
    /// A request with this `Idempotency-Key` is in progress. Retry after `Retry-After` seconds.
    IdempotencyInProgress,
    /// The request is well-formed, but a value is invalid.
    ValidationFailed,
    /// Too many requests. Retry after `Retry-After` seconds.
    RateLimited,
    /// Internal error of the service.
    Internal,
    /// Temporarily unavailable. Retry after `Retry-After` seconds.
    Unavailable,
}

impl ErrorCode {
    /// The HTTP status of the code.
    #[must_use]
    pub const fn status(self) -> StatusCode {
        match self {
            Self::BadRequest => StatusCode::BAD_REQUEST,
            Self::Unauthorized
            | Self::TokenExpired
            | Self::InvalidCredentials
            | Self::MfaRequired
            | Self::InvalidRefreshToken => StatusCode::UNAUTHORIZED,
            Self::InsufficientScope | Self::Forbidden => StatusCode::FORBIDDEN,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::PayloadTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Conflict
            | Self::KeyInUse
            | Self::IdempotencyConflict
            | Self::IdempotencyInProgress => StatusCode::CONFLICT,
            Self::ValidationFailed => StatusCode::UNPROCESSABLE_ENTITY,
            Self::RateLimited => StatusCode::TOO_MANY_REQUESTS,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}
