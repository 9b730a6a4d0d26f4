//! Maps every error of the service to an HTTP response.
//!
//! Every error becomes an [`ApiError`]. The outermost middleware knows the request id, so it writes
//! the body of all errors, with `render`. The message for the client and the cause for the operator
//! are separate fields: no message holds SQL, a secret or a backtrace. Messages start in lower case
//! and have no final period, since pages turn them into sentences. Errors of OAuth endpoints have
//! the format of RFC 6749; see [`OAuthErrorResponse`].

mod oauth;

use std::{borrow::Cow, sync::Arc};

use axum::{
    body::Body,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;

use crate::{
    auth::AuthError,
    http::dto::rotation::RotationBody,
    idempotency::IdempotencyError,
    model::{ValidationError, id::RequestId, rotation::RotationReport, scope::Scope},
    resources::ResourceError,
    store::StoreError,
};

pub use oauth::{OAuthErrorBody, OAuthErrorResponse};
pub(in crate::http) use oauth::{RateLimitExempt, render_oauth_error};

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

/// An error response of the API.
#[derive(Debug, Clone)]
pub struct ApiError {
    code: ErrorCode,
    /// Text for the client.
    message: Cow<'static, str>,
    field: Option<Cow<'static, str>>,
    required_scope: Option<Scope>,
    /// Completes a sign-in after a correct password.
    mfa_token: Option<SecretString>,
    /// Selects the challenge of a 401: without a credential it has no `error` (RFC 6750, section
    /// 3.1).
    has_credential: bool,
    /// The scope in the challenge of a 401.
    challenge_scope: Option<Scope>,
    is_second_factor_missing: bool,
    /// In seconds.
    retry_after: Option<u64>,
    /// Evidence that a key may still be in use.
    rotation: Option<Arc<RotationReport>>,
    /// Text for the operator's log.
    cause: Option<Arc<str>>,
}

impl ApiError {
    /// Creates an error with a message for the client.
    pub fn new(code: ErrorCode, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            code,
            message: message.into(),
            field: None,
            required_scope: None,
            mfa_token: None,
            has_credential: true,
            challenge_scope: None,
            is_second_factor_missing: false,
            retry_after: None,
            rotation: None,
            cause: None,
        }
    }

    /// The request has no credential.
    #[must_use]
    pub fn missing_credential() -> Self {
        let message = "an API key or access token is required; send Authorization: Bearer …";
        Self { has_credential: false, ..Self::new(ErrorCode::Unauthorized, message) }
    }

    /// Sets the required scope that the challenge of a 401 names (RFC 6750, section 3).
    #[must_use]
    pub fn with_challenge_scope(self, scope: Option<Scope>) -> Self {
        Self { challenge_scope: scope, ..self }
    }

    /// The value of a field is invalid.
    pub fn invalid(
        field: impl Into<Cow<'static, str>>,
        message: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self { field: Some(field.into()), ..Self::new(ErrorCode::ValidationFailed, message) }
    }

    /// Too many requests. `retry_after` is in seconds.
    #[must_use]
    pub fn rate_limited(retry_after: u64) -> Self {
        Self {
            retry_after: Some(retry_after),
            ..Self::new(
                ErrorCode::RateLimited,
                format!("too many requests; retry in {retry_after} s"),
            )
        }
    }

    /// A temporary failure. `cause` goes to the operator's log only.
    #[must_use]
    pub fn unavailable(cause: &str) -> Self {
        Self {
            retry_after: Some(1),
            cause: Some(cause.into()),
            ..Self::new(
                ErrorCode::Unavailable,
                "the service is temporarily unavailable; please retry",
            )
        }
    }

    /// An internal error. `cause` goes to the operator's log only.
    #[must_use]
    pub fn internal(cause: &str) -> Self {
        Self {
            cause: Some(cause.into()),
            ..Self::new(
                ErrorCode::Internal,
                "an internal error occurred; quote the request_id when you contact support",
            )
        }
    }

    /// Returns the error that a response was made from, if any.
    #[must_use]
    pub fn from_response(response: &Response) -> Option<&Self> {
        response.extensions().get::<Self>()
    }

    /// The error code.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        self.code
    }

    /// The text for the client.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// True if the request failed only because the session lacks a second factor.
    #[must_use]
    pub fn is_second_factor_missing(&self) -> bool {
        self.is_second_factor_missing
    }

    /// True if the request had a credential and it was rejected.
    #[must_use]
    pub fn is_unknown_credential(&self) -> bool {
        self.code == ErrorCode::Unauthorized && self.has_credential
    }

    /// Seconds to wait before a retry.
    #[must_use]
    pub fn retry_after(&self) -> Option<u64> {
        self.retry_after
    }

    /// The text for the operator's log.
    #[must_use]
    pub fn cause(&self) -> Option<&str> {
        self.cause.as_deref()
    }

    /// Returns the `WWW-Authenticate` header of a 401 or a missing scope (RFC 6750, section 3;
    /// RFC 9728, section 5.1).
    fn challenge(&self, public_url: &str) -> Option<String> {
        let metadata =
            format!("resource_metadata=\"{public_url}/.well-known/oauth-protected-resource\"");
        let metadata = match self.challenge_scope {
            Some(scope) => format!("{metadata}, scope=\"{}\"", scope.oauth_name()),
            None => metadata,
        };
        match self.code {
            ErrorCode::Unauthorized if !self.has_credential => {
                Some(format!("Bearer realm=\"call2me\", {metadata}"))
            }
            ErrorCode::Unauthorized | ErrorCode::TokenExpired => {
                let description = sanitize_description(&self.message);
                Some(format!(
                    "Bearer realm=\"call2me\", error=\"invalid_token\", \
                     error_description=\"{description}\", {metadata}"
                ))
            }
            ErrorCode::InsufficientScope => {
                let scope = self.required_scope.map_or("", Scope::oauth_name);
                Some(format!(
                    "Bearer realm=\"call2me\", error=\"insufficient_scope\", scope=\"{scope}\", \
                     {metadata}"
                ))
            }
            ErrorCode::InvalidCredentials
            | ErrorCode::MfaRequired
            | ErrorCode::InvalidRefreshToken => Some("Bearer realm=\"call2me\"".to_owned()),
            _ => None,
        }
    }
}

/// Restricts a text to the characters that RFC 6749 and RFC 6750 allow in `error_description`:
/// printable ASCII without quotes and backslashes.
fn sanitize_description(text: &str) -> String {
    let replace = |c| if matches!(c, '"' | '\\') { '\'' } else { c };
    text.chars().filter(|c| c.is_ascii() && !c.is_ascii_control()).map(replace).collect()
}

impl IntoResponse for ApiError {
    /// Sets only the status and stores the error in the response. `render` adds the body later,
    /// since only the outermost middleware knows the request id.
    fn into_response(self) -> Response {
        let mut response = self.code.status().into_response();
        response.extensions_mut().insert(self);
        response
    }
}

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

/// Writes the body and the headers of an error response.
pub(super) fn render(error: &ApiError, response: &mut Response, id: RequestId, public_url: &str) {
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
    *response.body_mut() = Body::from(serde_json::to_vec(&body).unwrap_or_default());
    let headers = response.headers_mut();
    headers.remove(header::CONTENT_LENGTH);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let mut set = |name: HeaderName, value: String| {
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(name, value);
        }
    };
    if let Some(challenge) = error.challenge(public_url) {
        set(header::WWW_AUTHENTICATE, challenge);
    }
    if let Some(seconds) = error.retry_after {
        set(header::RETRY_AFTER, seconds.to_string());
    }
}

impl From<AuthError> for ApiError {
    fn from(error: AuthError) -> Self {
        let message = error.to_string();
        match error {
            AuthError::InvalidCredential(_) | AuthError::MalformedApiKey(_) => {
                Self::new(ErrorCode::Unauthorized, message)
            }
            AuthError::TokenExpired => Self::new(ErrorCode::TokenExpired, message),
            AuthError::SignInRequired => {
                Self { has_credential: false, ..Self::new(ErrorCode::Unauthorized, message) }
            }
            AuthError::WrongEmailOrPassword | AuthError::InvalidSecondFactor(_) => {
                Self::new(ErrorCode::InvalidCredentials, message)
            }
            AuthError::MfaRequired(token) => {
                Self { mfa_token: Some(token), ..Self::new(ErrorCode::MfaRequired, message) }
            }
            AuthError::TooManyAttempts(seconds) => Self::rate_limited(seconds),
            AuthError::InvalidRefreshToken => Self::new(ErrorCode::InvalidRefreshToken, message),
            AuthError::InsufficientScope { required, .. } => Self {
                required_scope: Some(required),
                ..Self::new(ErrorCode::InsufficientScope, message)
            },
            AuthError::Forbidden(_) => Self::new(ErrorCode::Forbidden, message),
            AuthError::MissingSecondFactor => {
                Self { is_second_factor_missing: true, ..Self::new(ErrorCode::Forbidden, message) }
            }
            AuthError::NotFound(_) => Self::new(ErrorCode::NotFound, message),
            AuthError::Conflict(_) => Self::new(ErrorCode::Conflict, message),
            AuthError::KeyInUse(report) => Self {
                rotation: Some(Arc::from(report)),
                ..Self::new(ErrorCode::KeyInUse, message)
            },
            AuthError::Invalid { field, .. } => Self::invalid(field, message),
            AuthError::PasswordQueueFull => Self::unavailable("the password hashing queue is full"),
            AuthError::AuditQueueFull => Self::unavailable("the audit event queue is full"),
            AuthError::Store(error) => error.into(),
            AuthError::Internal(cause) => Self::internal(cause),
        }
    }
}

impl From<IdempotencyError> for ApiError {
    fn from(error: IdempotencyError) -> Self {
        let message = error.to_string();
        match error {
            IdempotencyError::Conflict => Self::new(ErrorCode::IdempotencyConflict, message),
            IdempotencyError::InProgress => Self {
                retry_after: Some(1),
                ..Self::new(ErrorCode::IdempotencyInProgress, message)
            },
            IdempotencyError::Store(error) => error.into(),
            IdempotencyError::Internal(cause) => Self::internal(cause),
        }
    }
}

impl From<ResourceError> for ApiError {
    fn from(error: ResourceError) -> Self {
        let message = error.to_string();
        match error {
            ResourceError::NotFound(_) => Self::new(ErrorCode::NotFound, message),
            ResourceError::Invalid { field, .. } => Self::invalid(field, message),
            ResourceError::TooLarge(_) => Self::new(ErrorCode::ValidationFailed, message),
            ResourceError::Internal(cause) => Self::internal(cause),
            ResourceError::Store(error) => error.into(),
        }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unavailable(cause) => Self::unavailable(&cause.to_string()),
            StoreError::Aborted => Self::unavailable("the service is shutting down"),
            StoreError::UnstorableText => Self::new(
                ErrorCode::ValidationFailed,
                "a text contains a character that cannot be stored",
            ),
            // Callers map the constraints that a client can violate; one that gets here is a bug.
            StoreError::ConstraintViolated(constraint) => {
                Self::internal(&format!("{constraint:?}"))
            }
            StoreError::Internal(cause) => Self::internal(&cause.to_string()),
        }
    }
}

impl ApiError {
    /// The value of a query parameter is invalid.
    #[must_use]
    pub fn invalid_parameter(name: &'static str, why: ValidationError) -> Self {
        Self::invalid(name, why.0)
    }
}
