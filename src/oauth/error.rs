//! Why a request of OAuth is refused, in the words of the RFCs.

use std::borrow::Cow;

use crate::{
    auth::AuthError,
    store::{Constraint, StoreError},
};

/// Error codes that clients act upon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// A parameter is missing, repeated or malformed (RFC 6749, section 5.2).
    InvalidRequest,
    /// The client is unknown, or did not show who it is.
    InvalidClient,
    /// The code, refresh token or device code is worth nothing, or another client's.
    InvalidGrant,
    /// The client may not get tokens this way.
    UnauthorizedClient,
    /// Nobody gets tokens this way.
    UnsupportedGrantType,
    /// Codes are all that authorization answers (RFC 6749, section 4.1.2.1).
    UnsupportedResponseType,
    /// None of the scopes is known.
    InvalidScope,
    /// The resource is none that tokens are made for (RFC 8707, section 2).
    InvalidTarget,
    /// The person said no.
    AccessDenied,
    /// Somebody would have to sign in (`OpenID` Connect Core, section 3.1.2.6).
    LoginRequired,
    /// Somebody would have to consent.
    ConsentRequired,
    /// Nobody has answered on the device's behalf (RFC 8628, section 3.5).
    AuthorizationPending,
    /// The device asks too often.
    SlowDown,
    /// The device's code is over.
    ExpiredToken,
    /// A redirect URI that no client may have (RFC 7591, section 3.2.2).
    InvalidRedirectUri,
    /// Something else about a client that cannot be.
    InvalidClientMetadata,
    /// There is no revoking such a token (RFC 7009, section 2.2.1).
    UnsupportedTokenType,
    /// For the moment.
    TemporarilyUnavailable,
    /// A fault of this service.
    ServerError,
}

impl Code {
    /// The name in answers.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InvalidRequest => "invalid_request",
            Self::InvalidClient => "invalid_client",
            Self::InvalidGrant => "invalid_grant",
            Self::UnauthorizedClient => "unauthorized_client",
            Self::UnsupportedGrantType => "unsupported_grant_type",
            Self::UnsupportedResponseType => "unsupported_response_type",
            Self::InvalidScope => "invalid_scope",
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

/// Why something could not be done. The texts are for clients' authors.
#[derive(Debug, thiserror::Error)]
pub enum OAuthError {
    /// As the RFCs foresee.
    #[error("{description}")]
    Refused {
        /// What a program goes by.
        code: Code,
        /// What its author reads.
        description: Cow<'static, str>,
    },
    /// As everywhere else: the database is away, too many attempts …
    #[error(transparent)]
    Failed(#[from] AuthError),
}

impl OAuthError {
    /// A refusal.
    pub fn new(code: Code, description: impl Into<Cow<'static, str>>) -> Self {
        Self::Refused { code, description: description.into() }
    }

    /// A parameter is to blame.
    pub fn request(description: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::InvalidRequest, description)
    }

    /// What was presented is worth nothing.
    pub fn grant(description: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::InvalidGrant, description)
    }

    /// It is for the moment alone.
    #[must_use]
    pub fn unavailable() -> Self {
        Self::Failed(AuthError::Store(StoreError::late()))
    }
}

impl From<StoreError> for OAuthError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Violated(Constraint::ClientGone) => {
                Self::new(Code::InvalidClient, "there is no such client any more")
            }
            other => Self::Failed(other.into()),
        }
    }
}
