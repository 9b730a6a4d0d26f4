use secrecy::SecretString;

use crate::{
    model::{Invalid, rotation::RotationReport, scope::Scope},
    store::{Constraint, StoreError},
};

/// Why authentication, or what a caller wants of it, failed. The texts are for clients.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// The credential is malformed, unknown or revoked.
    #[error("{0}")]
    InvalidCredential(&'static str),
    /// The credential is a key that cannot be one of this deployment.
    #[error(transparent)]
    NotAKey(#[from] crate::model::api_key::NotAKey),
    /// A genuine access token past its `exp`.
    #[error("the access token has expired")]
    TokenExpired,
    /// Wrong password or unknown address: the same to the caller.
    #[error("the e-mail address or the password is wrong")]
    InvalidCredentials,
    /// The password was right; a second factor is due, which completes the sign-in with this token.
    #[error("a code of your authenticator is required")]
    MfaRequired(SecretString),
    /// The second factor is wrong, or comes too late.
    #[error("{0}")]
    InvalidSecondFactor(&'static str),
    /// Guesses are over, for so many seconds.
    #[error("too many wrong attempts")]
    TooManyAttempts(u64),
    /// There is an account already, and only its own session may do this.
    #[error("there is an account with this e-mail address: sign in, then do it with its session")]
    SignInFirst,
    /// The refresh token is unknown, expired, revoked or was used before.
    #[error("the refresh token is invalid; sign in again")]
    InvalidRefreshToken,
    /// The credential lacks the scope.
    #[error("this needs the scope {required}; the credential has {held}")]
    InsufficientScope {
        /// What it takes.
        required: Scope,
        /// What there is.
        held: Scope,
    },
    /// This actor may not do this.
    #[error("{0}")]
    Forbidden(&'static str),
    /// The workspace asks for a second factor, and this session has shown none.
    #[error(
        "this workspace asks for a second factor: sign in with your passkey, or set one up (POST /v1/auth/mfa/totp)"
    )]
    NoSecondFactor,
    /// There is no such thing, or not in this workspace.
    #[error("there is no such {0}")]
    NotFound(&'static str),
    /// It clashes with what is there.
    #[error("{0}")]
    Conflict(&'static str),
    /// A key was not to be revoked while somebody may use it.
    #[error("the key may still be in use: {}", .0.reason)]
    KeyInUse(Box<RotationReport>),
    /// A value is wrong.
    #[error("{reason}")]
    Invalid {
        /// Which field.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// Too much at once.
    #[error("too many sign-ins at once")]
    Busy,
    /// What cannot be logged is not to happen.
    #[error("the queue of audit events is full")]
    LogFull,
    /// The database.
    #[error(transparent)]
    Store(StoreError),
    /// A fault of this service.
    #[error("{0}")]
    Internal(&'static str),
}

impl AuthError {
    /// A refusal of a field's value.
    #[must_use]
    pub fn invalid(field: &'static str, reason: Invalid) -> Self {
        Self::Invalid { field, reason: reason.0 }
    }
}

impl From<StoreError> for AuthError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Violated(Constraint::EmailTaken) => {
                Self::Conflict("an account with this e-mail address exists already")
            }
            StoreError::Violated(Constraint::LiveSuccessor) => {
                Self::Conflict("the key has a successor already")
            }
            StoreError::Violated(Constraint::PasskeyKnown) => {
                Self::Conflict("this passkey is known already")
            }
            StoreError::Violated(Constraint::OpenInvitation) => {
                Self::Conflict("this address has an open invitation already")
            }
            StoreError::Violated(Constraint::ClientGone) => Self::NotFound("OAuth client"),
            other => Self::Store(other),
        }
    }
}
