//! The causes of `invalid_grant` (RFC 6749, section 5.2).
//!
//! A client gets one text for all causes, so that it cannot find out why a stolen code fails.

use thiserror::Error;

/// A code or token that gives no tokens. The text names the cause, for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum InvalidGrant {
    /// An authorization code.
    #[error("authorization code: {0}")]
    AuthorizationCode(CodeFault),
    /// A refresh token.
    #[error("refresh token: {0}")]
    RefreshToken(RefreshTokenFault),
    /// A device code.
    #[error("device code: {0}")]
    DeviceCode(DeviceCodeFault),
}

impl InvalidGrant {
    /// Returns the text for the client and for the audit log of the workspace.
    #[must_use]
    pub const fn description(self) -> &'static str {
        match self {
            Self::AuthorizationCode(_) => {
                "the code is unknown, expired, used or issued to another client, or does not \
                 match code_verifier or redirect_uri"
            }
            Self::RefreshToken(_) => "the refresh token is unknown, expired or revoked",
            Self::DeviceCode(_) => "the device code is unknown, used or issued to another client",
        }
    }
}

/// The cause for which an authorization code is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum CodeFault {
    /// The code was not issued by this service.
    #[error("it is not genuine")]
    NotGenuine,
    /// The grant of the code was deleted.
    #[error("its grant does not exist")]
    UnknownGrant,
    /// The code was issued to another client.
    #[error("it was issued to another client")]
    OtherClient,
    /// The grant was not created by an authorization request.
    #[error("its grant has no authorization code")]
    OtherFlow,
    /// `redirect_uri` is not that of the authorization request.
    #[error("redirect_uri differs")]
    RedirectUriMismatch,
    /// `code_verifier` does not have the challenge of the authorization request (RFC 7636).
    #[error("code_verifier does not match the challenge")]
    VerifierMismatch,
    /// The grant gives no tokens.
    #[error(transparent)]
    Inactive(#[from] InactiveGrant),
}

/// The cause for which a refresh token is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum RefreshTokenFault {
    /// The token has another format.
    #[error("it is malformed")]
    Malformed,
    /// The grant of the token was deleted.
    #[error("its grant does not exist")]
    UnknownGrant,
    /// The token was not issued by this service.
    #[error("it is not genuine")]
    NotGenuine,
    /// The token was issued to another client.
    #[error("it was issued to another client")]
    OtherClient,
    /// The generation of the token is newer than the last one on record.
    #[error("its generation was not issued yet")]
    NotIssued,
    /// A successor of the token was used before.
    #[error("it was used after its successor")]
    Reused,
    /// The grant gives no tokens.
    #[error(transparent)]
    Inactive(#[from] InactiveGrant),
}

/// The cause for which a device code is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum DeviceCodeFault {
    /// The code was not issued by this service.
    #[error("it is not genuine")]
    NotGenuine,
    /// The device authorization was deleted, or belongs to another client.
    #[error("it is unknown, or was issued to another client")]
    Unknown,
    /// The grant of the device was deleted.
    #[error("its grant does not exist")]
    UnknownGrant,
    /// The grant gives access to another client.
    #[error("its grant is one of another client")]
    OtherClient,
    /// The grant was not created by the approval of a device.
    #[error("its grant has an authorization code")]
    OtherFlow,
    /// The grant gives no tokens.
    #[error(transparent)]
    Inactive(#[from] InactiveGrant),
}

/// The cause for which a grant gives no tokens, although its code or token is genuine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum InactiveGrant {
    /// The grant was ended.
    #[error("the grant has ended")]
    Ended,
    /// The code of the grant was redeemed before.
    #[error("the grant was redeemed before")]
    Redeemed,
    /// The grant was not redeemed before its deadline.
    #[error("the grant was not redeemed in time")]
    NotRedeemedInTime,
    /// The grant was unused for longer than the idle timeout.
    #[error("the grant was unused for too long")]
    Idle,
    /// The user is no longer a member of the workspace.
    #[error("the user is no longer a member of the workspace")]
    NotAMember,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cause_is_in_text_for_log_and_not_in_description() {
        let expired = InactiveGrant::NotRedeemedInTime;
        let codes = [CodeFault::VerifierMismatch, CodeFault::Inactive(expired)];
        let [mismatch, expired] = codes.map(InvalidGrant::AuthorizationCode);
        assert_eq!(
            mismatch.to_string(),
            "authorization code: code_verifier does not match the challenge"
        );
        assert_eq!(expired.to_string(), "authorization code: the grant was not redeemed in time");
        assert_eq!(mismatch.description(), expired.description());
    }
}
