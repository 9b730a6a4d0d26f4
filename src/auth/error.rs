//! The error of authentication and of the services of this module.

use secrecy::SecretString;

use crate::{
    model::{ValidationError, rotation::RotationReport, scope::Scope},
    store::{AdminLockError, Constraint, StoreError},
};

/// An error of authentication, or of an operation on users, keys or workspaces.
///
/// The texts are sent to clients. Several of them reach pages, as sentences; so none starts with a
/// field name unless it is about that field.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// The credential is malformed, unknown or revoked.
    #[error("{0}")]
    InvalidCredential(&'static str),
    /// The credential looks like an API key but is malformed or of another deployment.
    #[error(transparent)]
    MalformedApiKey(#[from] crate::model::api_key::KeyFormatError),
    /// The access token's signature is valid but its `exp` has passed.
    #[error("the access token has expired")]
    TokenExpired,
    /// Wrong password or unknown email address; the caller must not learn which.
    #[error("the email address or password is wrong")]
    WrongEmailOrPassword,
    /// The password is correct, but a second factor is required. Carries the token that completes
    /// the sign-in.
    #[error("a code from your authenticator app is required")]
    MfaRequired(SecretString),
    /// The second factor is wrong, or its challenge has expired.
    #[error("{0}")]
    InvalidSecondFactor(&'static str),
    /// Sign-in attempts are paused for this number of seconds.
    #[error("too many failed attempts")]
    TooManyAttempts(u64),
    /// The invited address is already registered; accepting requires a session of its user.
    #[error("an account with this email address exists: sign in to accept the invitation")]
    SignInRequired,
    /// The refresh token is unknown, expired, revoked or already used.
    #[error("the refresh token is invalid; sign in again")]
    InvalidRefreshToken,
    /// The credential's scope is insufficient.
    #[error("this requires the {required} scope; the credential has {held}")]
    InsufficientScope {
        /// The scope that the operation requires.
        required: Scope,
        /// The scope that the credential has.
        held: Scope,
    },
    /// The caller may not do this.
    #[error("{0}")]
    Forbidden(&'static str),
    /// The workspace requires a second factor, but the user has no authenticator app and this
    /// session did not use a passkey.
    #[error(
        "this workspace requires a second factor: sign in with your passkey, or set up an authenticator app (POST /v1/auth/mfa/totp)"
    )]
    MissingSecondFactor,
    /// The object does not exist, or belongs to another workspace. Carries the kind of object.
    #[error("there is no such {0}")]
    NotFound(&'static str),
    /// The request conflicts with the current state.
    #[error("{0}")]
    Conflict(&'static str),
    /// The key must be idle before it can be revoked, and it may still be in use.
    #[error("the key may still be in use: {}", .0.reason)]
    KeyInUse(Box<RotationReport>),
    /// A field's value is invalid.
    #[error("{reason}")]
    Invalid {
        /// The field's name.
        field: &'static str,
        /// The reason, for the client.
        reason: String,
    },
    /// The queue of passwords to hash is full.
    #[error("too many sign-ins at once")]
    PasswordQueueFull,
    /// The audit queue is full. An action that cannot be audited must not happen, so the caller
    /// must answer 503.
    #[error("the queue of audit events is full")]
    AuditQueueFull,
    /// The database failed.
    #[error(transparent)]
    Store(StoreError),
    /// An internal error of this service, with its cause for the log.
    #[error("{0}")]
    Internal(&'static str),
}

impl AuthError {
    /// Creates an [`AuthError::Invalid`] for a field.
    #[must_use]
    pub fn invalid(field: &'static str, reason: ValidationError) -> Self {
        Self::Invalid { field, reason: reason.0 }
    }
}

impl From<AdminLockError> for AuthError {
    fn from(error: AdminLockError) -> Self {
        match error {
            AdminLockError::NotAMember => StoreError::NotAMember.into(),
            AdminLockError::SessionEnded => Self::InvalidCredential("the session has ended"),
            AdminLockError::KeyNotActive => {
                Self::InvalidCredential("the API key has been revoked or disabled")
            }
            AdminLockError::GrantEnded => {
                Self::InvalidCredential("access was revoked; request authorization again")
            }
            AdminLockError::AddressNotAllowed => {
                Self::Forbidden("the key may not be used from this address")
            }
            AdminLockError::MissingSecondFactor => Self::MissingSecondFactor,
            AdminLockError::InsufficientScope(held) => {
                Self::InsufficientScope { required: Scope::Admin, held }
            }
            AdminLockError::Store(error) => error.into(),
        }
    }
}

impl From<StoreError> for AuthError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::ConstraintViolated(Constraint::EmailTaken) => {
                Self::Conflict("an account with this email address already exists")
            }
            StoreError::ConstraintViolated(Constraint::SuccessorExists) => {
                Self::Conflict("the key already has a successor")
            }
            StoreError::ConstraintViolated(Constraint::PasskeyRegistered) => {
                Self::Conflict("this passkey is already registered")
            }
            StoreError::ConstraintViolated(Constraint::OpenInvitation) => {
                Self::Conflict("this email address already has an open invitation")
            }
            StoreError::ConstraintViolated(Constraint::ClientDeleted) => {
                Self::NotFound("OAuth client")
            }
            StoreError::NotAMember => {
                Self::InvalidCredential("the user is no longer a member of the workspace")
            }
            other => Self::Store(other),
        }
    }
}
