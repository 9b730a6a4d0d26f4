//! WHERE ERRORS ARE MAPPED.
//!
//! Every refusal becomes an [`ApiError`]; the body is made in one place, `render`, by the outermost
//! middleware, which knows the request's id. What a client reads and what the operator reads are
//! separate fields: no message holds SQL, a secret or a backtrace.

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
    http::api::key_rotation::RotationBody,
    idempotency::IdempotencyError,
    model::{Invalid, id::RequestId, rotation::RotationReport, scope::Scope},
    resources::ResourceError,
    store::StoreError,
};

pub use oauth::{OAuthErrorBody, OAuthRefusal};
pub(in crate::http) use oauth::{Patient, of_refusal as oauth_refusal};

/// The codes that clients act upon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// Malformed JSON or query string, two `Authorization` headers.
    BadRequest,
    /// The credential is missing, malformed, unknown or revoked.
    Unauthorized,
    /// A genuine access token past its `exp`: refresh.
    TokenExpired,
    /// Sign-in: unknown address and wrong password alike.
    InvalidCredentials,
    /// The password was right, a second factor is due: `mfa_token` completes the sign-in.
    MfaRequired,
    /// The refresh token is unknown, expired, revoked or reused: sign in again.
    InvalidRefreshToken,
    /// The credential lacks the scope.
    InsufficientScope,
    /// This actor may not do this.
    Forbidden,
    /// No such route or row, or a row of another workspace.
    NotFound,
    /// The route has other methods.
    MethodNotAllowed,
    /// The body is too large.
    PayloadTooLarge,
    /// The body is not JSON.
    UnsupportedMediaType,
    /// It clashes with what is there.
    Conflict,
    /// The key may still be in use: `rotation` tells by whom.
    KeyInUse,
    /// The `Idempotency-Key` was used for a request with another body.
    IdempotencyConflict,
    /// A request with this `Idempotency-Key` is still worked on: retry after `Retry-After` seconds.
    IdempotencyInProgress,
    /// Well-formed, but a value is wrong.
    ValidationFailed,
    /// Back off for `Retry-After` seconds.
    RateLimited,
    /// A fault of this service.
    Internal,
    /// For the moment; try again after `Retry-After` seconds.
    Unavailable,
}

impl Code {
    /// The status that goes with it.
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

/// A refusal.
#[derive(Debug, Clone)]
pub struct ApiError {
    code: Code,
    /// For the client.
    message: Cow<'static, str>,
    field: Option<Cow<'static, str>>,
    required_scope: Option<Scope>,
    /// What completes a sign-in whose password was right.
    mfa_token: Option<SecretString>,
    /// Whether a credential was sent, for the challenge of a 401.
    credential_sent: bool,
    /// What a credential should have, for the challenge of a 401.
    wanted_scope: Option<Scope>,
    /// Whether a second factor is all that is missing.
    lacks_second_factor: bool,
    retry_after: Option<u64>,
    /// Why a key may still be in use.
    rotation: Option<Arc<RotationReport>>,
    /// For the operator.
    cause: Option<Arc<str>>,
}

impl ApiError {
    /// A refusal with a message for the client.
    pub fn new(code: Code, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            code,
            message: message.into(),
            field: None,
            required_scope: None,
            mfa_token: None,
            credential_sent: true,
            wanted_scope: None,
            lacks_second_factor: false,
            retry_after: None,
            rotation: None,
            cause: None,
        }
    }

    /// No credential was sent.
    #[must_use]
    pub fn no_credential() -> Self {
        let message = "an API key or access token is required: Authorization: Bearer …";
        Self { credential_sent: false, ..Self::new(Code::Unauthorized, message) }
    }

    /// The same, telling with which scope a credential would do (RFC 6750, section 3).
    #[must_use]
    pub fn wanting(self, scope: Option<Scope>) -> Self {
        Self { wanted_scope: scope, ..self }
    }

    /// A field's value is wrong.
    pub fn invalid(
        field: impl Into<Cow<'static, str>>,
        message: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self { field: Some(field.into()), ..Self::new(Code::ValidationFailed, message) }
    }

    /// Too many requests; in so many seconds there will be room.
    #[must_use]
    pub fn rate_limited(retry_after: u64) -> Self {
        Self {
            retry_after: Some(retry_after),
            ..Self::new(Code::RateLimited, format!("too many requests; retry in {retry_after} s"))
        }
    }

    /// For the moment not; with the reason, for the operator.
    #[must_use]
    pub fn unavailable(cause: &str) -> Self {
        Self {
            retry_after: Some(1),
            cause: Some(cause.into()),
            ..Self::new(Code::Unavailable, "the service is unavailable for the moment; retry")
        }
    }

    /// A fault of this service; with the reason, for the operator.
    #[must_use]
    pub fn internal(cause: &str) -> Self {
        Self {
            cause: Some(cause.into()),
            ..Self::new(
                Code::Internal,
                "an internal error occurred; quote the request_id to support",
            )
        }
    }

    /// The refusal behind a response, if it is one.
    #[must_use]
    pub fn of(response: &Response) -> Option<&Self> {
        response.extensions().get::<Self>()
    }

    /// What a program goes by.
    #[must_use]
    pub fn code(&self) -> Code {
        self.code
    }

    /// What a person is told.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Whether a second factor is all that is missing.
    #[must_use]
    pub fn lacks_second_factor(&self) -> bool {
        self.lacks_second_factor
    }

    /// Whether a credential was sent that nobody knows.
    #[must_use]
    pub fn is_unknown_credential(&self) -> bool {
        self.code == Code::Unauthorized && self.credential_sent
    }

    /// How many seconds to wait before the next attempt.
    #[must_use]
    pub fn retry_after(&self) -> Option<u64> {
        self.retry_after
    }

    /// What the operator should know.
    #[must_use]
    pub fn cause(&self) -> Option<&str> {
        self.cause.as_deref()
    }

    /// The `WWW-Authenticate` of a 401 or a missing scope (RFC 6750, section 3; RFC 9728, section 5.1).
    fn challenge(&self, public_url: &str) -> Option<String> {
        let metadata =
            format!("resource_metadata=\"{public_url}/.well-known/oauth-protected-resource\"");
        let metadata = match self.wanted_scope {
            Some(scope) => format!("{metadata}, scope=\"{}\"", scope.oauth_name()),
            None => metadata,
        };
        match self.code {
            Code::Unauthorized if !self.credential_sent => {
                Some(format!("Bearer realm=\"call2me\", {metadata}"))
            }
            Code::Unauthorized | Code::TokenExpired => {
                let description = in_grammar(&self.message);
                Some(format!(
                    "Bearer realm=\"call2me\", error=\"invalid_token\", \
                     error_description=\"{description}\", {metadata}"
                ))
            }
            Code::InsufficientScope => {
                let scope = self.required_scope.map_or("", Scope::oauth_name);
                Some(format!(
                    "Bearer realm=\"call2me\", error=\"insufficient_scope\", scope=\"{scope}\", \
                     {metadata}"
                ))
            }
            Code::InvalidCredentials | Code::MfaRequired | Code::InvalidRefreshToken => {
                Some("Bearer realm=\"call2me\"".to_owned())
            }
            _ => None,
        }
    }
}

/// A description in the grammar of RFC 6749 and RFC 6750, which has neither quotes nor backslashes, nor anything
/// but ASCII.
fn in_grammar(text: &str) -> String {
    let spelt = |c| if matches!(c, '"' | '\\') { '\'' } else { c };
    text.chars().filter(|c| c.is_ascii() && !c.is_ascii_control()).map(spelt).collect()
}

impl IntoResponse for ApiError {
    /// The status alone: `render` adds the body, once the request's id is at hand.
    fn into_response(self) -> Response {
        let mut response = self.code.status().into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// The body of every error.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct ErrorBody {
    /// What is wrong.
    pub error: ErrorDetails,
    /// The message once more: the official SDKs read it here.
    #[schema(example = "name must be 1 to 100 characters")]
    pub detail: String,
    /// On `mfa_required`: what `POST /v1/auth/mfa/verify` takes, with a code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mfa_token: Option<String>,
    /// On `key_in_use`: who uses the key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rotation: Option<RotationBody>,
}

/// What is wrong.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct ErrorDetails {
    /// What a program goes by.
    pub code: Code,
    /// What a person reads.
    #[schema(example = "name must be 1 to 100 characters")]
    pub message: String,
    /// The field that is to blame, where one is.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "name")]
    pub field: Option<String>,
    /// The scope that it takes, where that is what is lacking.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub required_scope: Option<Scope>,
    /// To quote to support.
    pub request_id: RequestId,
}

/// Makes the body and the headers of an error.
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
            AuthError::InvalidCredential(_) | AuthError::NotAKey(_) => {
                Self::new(Code::Unauthorized, message)
            }
            AuthError::TokenExpired => Self::new(Code::TokenExpired, message),
            AuthError::SignInFirst => {
                Self { credential_sent: false, ..Self::new(Code::Unauthorized, message) }
            }
            AuthError::InvalidCredentials | AuthError::InvalidSecondFactor(_) => {
                Self::new(Code::InvalidCredentials, message)
            }
            AuthError::MfaRequired(token) => {
                Self { mfa_token: Some(token), ..Self::new(Code::MfaRequired, message) }
            }
            AuthError::TooManyAttempts(seconds) => Self::rate_limited(seconds),
            AuthError::InvalidRefreshToken => Self::new(Code::InvalidRefreshToken, message),
            AuthError::InsufficientScope { required, .. } => Self {
                required_scope: Some(required),
                ..Self::new(Code::InsufficientScope, message)
            },
            AuthError::Forbidden(_) => Self::new(Code::Forbidden, message),
            AuthError::NoSecondFactor => {
                Self { lacks_second_factor: true, ..Self::new(Code::Forbidden, message) }
            }
            AuthError::NotFound(_) => Self::new(Code::NotFound, message),
            AuthError::Conflict(_) => Self::new(Code::Conflict, message),
            AuthError::KeyInUse(report) => {
                Self { rotation: Some(Arc::from(report)), ..Self::new(Code::KeyInUse, message) }
            }
            AuthError::Invalid { field, .. } => Self::invalid(field, message),
            AuthError::Busy => Self::unavailable("the queue of passwords to hash is full"),
            AuthError::LogFull => Self::unavailable("the queue of audit events is full"),
            AuthError::Store(error) => error.into(),
            AuthError::Internal(cause) => Self::internal(cause),
        }
    }
}

impl From<IdempotencyError> for ApiError {
    fn from(error: IdempotencyError) -> Self {
        let message = error.to_string();
        match error {
            IdempotencyError::Conflict => Self::new(Code::IdempotencyConflict, message),
            IdempotencyError::InProgress => {
                Self { retry_after: Some(1), ..Self::new(Code::IdempotencyInProgress, message) }
            }
            IdempotencyError::Store(error) => error.into(),
            IdempotencyError::Internal(cause) => Self::internal(cause),
        }
    }
}

impl From<ResourceError> for ApiError {
    fn from(error: ResourceError) -> Self {
        let message = error.to_string();
        match error {
            ResourceError::NotFound(_) => Self::new(Code::NotFound, message),
            ResourceError::Invalid { field, .. } => Self::invalid(field, message),
            ResourceError::TooLarge(_) => Self::new(Code::ValidationFailed, message),
            ResourceError::Internal(cause) => Self::internal(cause),
            ResourceError::Store(error) => error.into(),
        }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unavailable(cause) => Self::unavailable(&cause.to_string()),
            StoreError::Aborted => Self::unavailable("the service is stopping"),
            StoreError::BadText => Self::new(
                Code::ValidationFailed,
                "a text contains a character that cannot be stored",
            ),
            // Constraints that a client can run into are told apart where they are met.
            StoreError::Violated(constraint) => Self::internal(&format!("{constraint:?}")),
            StoreError::Internal(cause) => Self::internal(&cause.to_string()),
        }
    }
}

impl ApiError {
    /// A query parameter's value is wrong.
    #[must_use]
    pub fn invalid_parameter(name: &'static str, why: Invalid) -> Self {
        Self::invalid(name, why.0)
    }
}
