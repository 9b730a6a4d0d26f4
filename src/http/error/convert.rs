//! Conversions of the errors of the services.

use std::convert::Infallible;

use super::{ApiError, EndpointError, ErrorCode};
use crate::{
    auth::AuthError,
    idempotency::IdempotencyError,
    oauth::{OAuthError, ProtocolError},
    resources::ResourceError,
    store::StoreError,
};

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
            AuthError::KeyInUse(report) => {
                Self { rotation: Some(report), ..Self::new(ErrorCode::KeyInUse, message) }
            }
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
            ResourceError::TooMany(_) | ResourceError::StorageFull(_) => {
                Self::new(ErrorCode::Conflict, message)
            }
            ResourceError::AccessLost(error) => AuthError::from(error).into(),
            ResourceError::Internal(cause) => Self::internal(cause),
            ResourceError::Store(error) => error.into(),
        }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        let cause = error.to_string();
        match error {
            StoreError::Unavailable(_) | StoreError::Aborted => Self::unavailable(&cause),
            StoreError::NotAMember => AuthError::from(error).into(),
            StoreError::UnstorableText => Self::new(
                ErrorCode::ValidationFailed,
                "a text contains a character that cannot be stored",
            ),
            // Callers map the constraints that a client can violate; one that gets here is a bug.
            StoreError::ConstraintViolated(_) | StoreError::Internal(_) => Self::internal(&cause),
        }
    }
}

impl From<ApiError> for EndpointError {
    fn from(error: ApiError) -> Self {
        Self::Service(error)
    }
}

impl From<OAuthError> for EndpointError {
    fn from(error: OAuthError) -> Self {
        match error.for_client() {
            Ok(error) => Self::Protocol(error),
            Err(error) => Self::Service(error.into()),
        }
    }
}

impl From<ProtocolError> for EndpointError {
    fn from(error: ProtocolError) -> Self {
        Self::Protocol(error)
    }
}

impl From<Infallible> for EndpointError {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}
