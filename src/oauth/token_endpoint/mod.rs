//! The token endpoint (OAuth 2.1, section 3.2): authorization codes, refresh tokens, device codes
//! and client credentials.
//!
//! `invalid_grant` means that a code or token is not valid, and nothing else. While PostgreSQL is
//! unavailable the response is a 503, because integration platforms treat any other error of a
//! refresh as the end of the connection.

mod authorization_code;
mod client_credentials;
mod device_code;
mod issuance;
mod refresh_token;
mod refusal;
mod request;

use std::sync::Arc;

use secrecy::SecretString;
use uuid::Uuid;

use super::{
    OAuthError, OAuthErrorCode, ProtocolError,
    clients::AuthenticatedClient,
    grants::{Grants, LockedGrant},
};
use crate::{
    auth::{AuthError, ServiceContext, token_issuer::TokenIssuer},
    limit::Limits,
    model::{
        id::{GrantId, Id},
        oauth::resource::ProtectedResources,
        scope::Scope,
    },
};

pub use request::{
    AuthorizationCodeRequest, ClientCredentialsRequest, DeviceCodeRequest, RefreshTokenRequest,
    TokenRequest,
};

/// The tokens of a successful response (RFC 6749, section 5.1).
#[derive(Debug)]
pub struct Tokens {
    /// The access token, a JWT that lives one hour.
    pub access_token: SecretString,
    /// The lifetime of the access token, in seconds.
    pub expires_in: u64,
    /// The scope of the access token.
    pub scope: Scope,
    /// The refresh token, if the client may use one.
    pub refresh_token: Option<SecretString>,
}

/// Issues tokens.
pub struct TokenEndpoint {
    pub(super) context: Arc<ServiceContext>,
    pub(super) token_issuer: Arc<TokenIssuer>,
    pub(super) grants: Arc<Grants>,
    pub(super) resources: Arc<ProtectedResources>,
    pub(super) limits: Limits,
}

impl TokenEndpoint {
    /// Issues the tokens that a client requests.
    ///
    /// # Errors
    /// The error codes of RFC 6749, section 5.2 and, for device codes, of RFC 8628, section 3.5.
    #[tracing::instrument(
        name = "oauth.token_endpoint.issue_tokens",
        level = "debug",
        skip_all,
        fields(client = %client.id),
        err(level = "debug")
    )]
    pub async fn issue_tokens(
        &self,
        client: &AuthenticatedClient,
        request: &TokenRequest,
    ) -> Result<Tokens, OAuthError> {
        match request {
            TokenRequest::AuthorizationCode(request) => self.redeem_code(client, request).await,
            TokenRequest::RefreshToken(request) => self.refresh(client, request).await,
            TokenRequest::ClientCredentials(request) => self.grant_to_client(client, request).await,
            TokenRequest::DeviceCode(request) => self.redeem_device_code(client, request).await,
        }
    }

    /// Locks a user's grant in order to issue tokens; `None` if there is no such grant. Charges the
    /// rate limit of the grant.
    async fn lock_user_grant(&self, id: GrantId) -> Result<Option<LockedGrant>, OAuthError> {
        let parties = self.context.store.find_grant_parties(id).await?;
        let parties = parties.filter(|parties| parties.user_id.is_some());
        let Some(parties) = parties else { return Ok(None) };
        self.charge_token_request(id.uuid())?;
        if parties.lacks_second_factor {
            // Temporary: the grant works again after the user has set up a second factor.
            let message =
                "the workspace requires a second factor, which the user must set up first";
            return Err(ProtocolError::new(OAuthErrorCode::TemporarilyUnavailable, message).into());
        }
        self.grants.lock(parties).await
    }

    /// Charges one token request to the rate limit of a grant or client, on this node.
    ///
    /// # Errors
    /// [`AuthError::TooManyAttempts`] if the limit is exceeded.
    fn charge_token_request(&self, id: Uuid) -> Result<(), OAuthError> {
        let decision = self.limits.charge_grant(id);
        if decision.allowed {
            return Ok(());
        }
        // Round up, so that a client that waits this long succeeds.
        Err(AuthError::TooManyAttempts(decision.retry_in.as_secs() + 1).into())
    }
}
