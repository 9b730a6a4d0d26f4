//! The errors of the OAuth endpoints, with the error codes of the RFCs.
//!
//! Inward and outward texts are apart: the log may name the cause of an `invalid_grant`, the
//! response does not.

mod invalid_grant;

use std::borrow::Cow;

use crate::{
    auth::AuthError,
    store::{Constraint, StoreError},
};

pub use invalid_grant::{
    CodeFault, DeviceCodeFault, InactiveGrant, InvalidGrant, RefreshTokenFault,
};

/// The `error` code of a response, on which clients act.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OAuthErrorCode {
    /// A parameter is missing, repeated or malformed (RFC 6749, section 5.2).
    InvalidRequest,
    /// Client authentication failed, or the client is unknown.
    InvalidClient,
    /// The code, refresh token or device code is not valid or belongs to another client.
    InvalidGrant,
    /// The client is not allowed to use this grant type.
    UnauthorizedClient,
    /// The server does not support this grant type.
    UnsupportedGrantType,
    /// The response type is not `code` (RFC 6749, section 4.1.2.1).
    UnsupportedResponseType,
    /// The server issues no tokens for this resource (RFC 8707, section 2).
    InvalidTarget,
    /// The user denied the request.
    AccessDenied,
    /// The user must sign in first (`OpenID` Connect Core, section 3.1.2.6).
    LoginRequired,
    /// The user must consent first.
    ConsentRequired,
    /// The user has not yet approved the device (RFC 8628, section 3.5).
    AuthorizationPending,
    /// The device polls too often.
    SlowDown,
    /// The device code has expired.
    ExpiredToken,
    /// A redirect URI is not allowed (RFC 7591, section 3.2.2).
    InvalidRedirectUri,
    /// Other client metadata is not valid.
    InvalidClientMetadata,
    /// A token of this type cannot be revoked here (RFC 7009, section 2.2.1).
    UnsupportedTokenType,
    /// The request can succeed later.
    TemporarilyUnavailable,
    /// An internal error of this service.
    ServerError,
}

impl OAuthErrorCode {
    /// The code as it appears in responses.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InvalidRequest => "invalid_request",
            Self::InvalidClient => "invalid_client",
            Self::InvalidGrant => "invalid_grant",
            Self::UnauthorizedClient => "unauthorized_client",
            Self::UnsupportedGrantType => "unsupported_grant_type",
            Self::UnsupportedResponseType => "unsupported_response_type",
            Self::InvalidTarget => "invalid_target",
            Self::AccessDenied => "access_denied",
            Self::LoginRequired => "login_required",
            Self::ConsentRequired => "consent_required",
            Self::AuthorizationPending => "authorization_pending",
            Self::SlowDown => "slow_down",
            Self::ExpiredToken => "expired_token",
            Self::InvalidRedirectUri => "invalid_redirect_uri",
            Self::InvalidClientMetadata => "invalid_client_metadata",
            Self::UnsupportedTokenType => "unsupported_token_type",
            Self::TemporarilyUnavailable => "temporarily_unavailable",
            Self::ServerError => "server_error",
        }
    }
}

/// An error that the RFCs define. The description is for developers of clients.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{description}")]
pub struct ProtocolError {
    /// The code for programs.
    pub code: OAuthErrorCode,
    /// The description for developers.
    pub description: Cow<'static, str>,
}

impl ProtocolError {
    /// Creates an error with a code and a description.
    pub fn new(code: OAuthErrorCode, description: impl Into<Cow<'static, str>>) -> Self {
        Self { code, description: description.into() }
    }

    /// Creates an `invalid_request` error.
    pub fn invalid_request(description: impl Into<Cow<'static, str>>) -> Self {
        Self::new(OAuthErrorCode::InvalidRequest, description)
    }

    /// Creates an `invalid_client` error.
    pub fn invalid_client(description: impl Into<Cow<'static, str>>) -> Self {
        Self::new(OAuthErrorCode::InvalidClient, description)
    }
}

/// An error of an OAuth endpoint.
///
/// Its text is for logs. [`Self::for_client`] returns the text for clients.
#[derive(Debug, thiserror::Error)]
pub enum OAuthError {
    /// An error that the RFCs define.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    /// No client has the `client_id`. A registration that no user has authorized is deleted after a
    /// week, or earlier if there are many.
    #[error("unknown client")]
    UnknownClient,
    /// A code or token is not valid.
    #[error(transparent)]
    InvalidGrant(#[from] InvalidGrant),
    /// An error that any endpoint can have, such as an unavailable database or a rate limit.
    #[error(transparent)]
    Service(#[from] AuthError),
}

impl OAuthError {
    /// Creates a temporary error: the response is a 503.
    #[must_use]
    pub fn unavailable() -> Self {
        Self::Service(AuthError::Store(StoreError::timed_out()))
    }

    /// Returns the error as the client may see it.
    ///
    /// # Errors
    /// The error of the service if it is not one that the RFCs define.
    pub fn for_client(self) -> Result<ProtocolError, AuthError> {
        match self {
            Self::Protocol(error) => Ok(error),
            Self::UnknownClient => {
                Ok(ProtocolError::invalid_client("unknown client: it must be registered again"))
            }
            Self::InvalidGrant(cause) => {
                Ok(ProtocolError::new(OAuthErrorCode::InvalidGrant, cause.description()))
            }
            Self::Service(error) => Err(error),
        }
    }
}

impl From<StoreError> for OAuthError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::ConstraintViolated(Constraint::ClientDeleted) => {
                ProtocolError::invalid_client("the client no longer exists").into()
            }
            other => Self::Service(other.into()),
        }
    }
}
