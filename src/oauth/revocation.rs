//! Token revocation (RFC 7009).
//!
//! Revoking a refresh token ends its grant; revoking an access token affects only that token. Both
//! take effect on all nodes before the response.

use std::sync::Arc;

use secrecy::ExposeSecret;
use serde_json::json;

use super::{
    OAuthError, OAuthErrorCode, ProtocolError,
    clients::AuthenticatedClient,
    grants::{Grants, LockedGrant},
    request::{TokenParameter, required_parameter},
};
use crate::{
    auth::{
        ServiceContext,
        authenticator::Authenticator,
        token_issuer::{TokenBinding, TokenIssuer},
    },
    model::{
        api_key::KEY_PREFIX,
        audit::Action,
        id::GrantId,
        oauth::{grant::GrantEndReason, parameters::Parameters},
        refresh_token::PresentedToken,
    },
    store::{self, Audited, Tx, oauth_grants::GrantParties},
};

/// Maximum number of unexpired access tokens of a grant that are revoked one by one. One more ends
/// the grant.
const MAX_REVOKED: i32 = 100;

/// A revocation request (RFC 7009, section 2.1).
#[derive(Debug)]
pub struct RevocationRequest {
    token: TokenParameter,
}

impl RevocationRequest {
    /// Parses a revocation request.
    ///
    /// # Errors
    /// [`OAuthErrorCode::InvalidRequest`] without a token,
    /// [`OAuthErrorCode::UnsupportedTokenType`] for an API key.
    pub fn parse(parameters: &Parameters) -> Result<Self, ProtocolError> {
        let token = required_parameter(parameters, "token")?;
        if token.starts_with(KEY_PREFIX) {
            let message = "this is an API key; revoke it at /v1/api-keys";
            return Err(ProtocolError::new(OAuthErrorCode::UnsupportedTokenType, message));
        }
        Ok(Self { token: TokenParameter::parse(token) })
    }
}

/// Revokes tokens at the request of their clients.
pub struct Revocation {
    pub(super) context: Arc<ServiceContext>,
    pub(super) authenticator: Arc<Authenticator>,
    pub(super) token_issuer: Arc<TokenIssuer>,
    pub(super) grants: Arc<Grants>,
}

impl Revocation {
    /// Revokes a token of an authenticated client. An unknown token needs no revocation and
    /// succeeds (RFC 7009, section 2.2).
    ///
    /// # Errors
    /// [`OAuthErrorCode::InvalidGrant`] for a token of another client.
    #[tracing::instrument(
        name = "oauth.revocation.revoke",
        level = "debug",
        skip_all,
        fields(client = %client.id),
        err(level = "debug")
    )]
    pub async fn revoke(
        &self,
        client: &AuthenticatedClient,
        request: &RevocationRequest,
    ) -> Result<(), OAuthError> {
        match &request.token {
            TokenParameter::Refresh(token) => self.revoke_refresh_token(client, token).await,
            TokenParameter::Access(token) => {
                self.revoke_access_token(client, token.expose_secret()).await
            }
        }
    }

    async fn revoke_refresh_token(
        &self,
        client: &AuthenticatedClient,
        token: &PresentedToken<GrantId>,
    ) -> Result<(), OAuthError> {
        let Some(parties) = self.context.store.find_grant_parties(token.id()).await? else {
            return Ok(());
        };
        let opened = self.grants.lock(parties).await?;
        let Some(LockedGrant { mut tx, parties, grant, seed, .. }) = opened else { return Ok(()) };
        if token.verify(&seed).is_none() {
            return Ok(());
        }
        if grant.client_id != client.id {
            return Err(not_issued_to_client().into());
        }
        let audited = self.end_grant(&mut tx, client, parties).await?;
        // Wait also if it had already ended: an earlier call may have been aborted before its wait.
        Ok(self.context.fence.wait(tx.commit(audited).await?).await?)
    }

    /// Ends a grant at the request of its client, unless it has already ended.
    async fn end_grant(
        &self,
        tx: &mut Tx,
        client: &AuthenticatedClient,
        parties: GrantParties,
    ) -> Result<Audited, OAuthError> {
        let (id, workspace, now) = (parties.id, parties.workspace_id, self.context.env.clock.now());
        let reason = GrantEndReason::RevokedByClient;
        if !store::oauth_grants::end(tx, workspace, id, now, reason).await? {
            return Ok(Audited::exempt("the grant had already ended"));
        }
        let event = client
            .audit_event(&self.context, workspace, Action::GrantEnded, 200)
            .with_target(id, None)
            .with_metadata(reason.audit_metadata(client.id, parties.user_id));
        Ok(store::audit::insert(tx, workspace, &event).await?)
    }

    async fn revoke_access_token(
        &self,
        client: &AuthenticatedClient,
        token: &str,
    ) -> Result<(), OAuthError> {
        // Revoke the token even if it is not valid at the moment: it could become valid again
        // later.
        let Some(claims) = self.authenticator.decode_access_token(token).await? else {
            return Ok(());
        };
        let TokenBinding::Grant(id) = claims.sid else {
            return Err(not_issued_to_client().into());
        };
        if claims.client_id != client.client_id() {
            return Err(not_issued_to_client().into());
        }
        let Some(parties) = self.context.store.find_grant_parties(id).await? else { return Ok(()) };
        let workspace = parties.workspace_id;
        let mut tx = self.context.store.begin(workspace, None).await?;
        let since = self.context.env.clock.now() - self.token_issuer.access_token_lifetime();
        let revoked =
            store::oauth_grants::revoke_token(&mut tx, workspace, id, claims.jti, since).await?;
        let event = client
            .audit_event(&self.context, workspace, Action::TokenRevoked, 200)
            .with_target(id, None)
            .with_metadata(json!({ "user_id": parties.user_id }));
        let audited = store::audit::insert(&mut tx, workspace, &event).await?;
        if revoked > MAX_REVOKED {
            self.end_grant(&mut tx, client, parties).await?;
        }
        Ok(self.context.fence.wait(tx.commit(audited).await?).await?)
    }
}

fn not_issued_to_client() -> ProtocolError {
    let message = "the token was not issued to this client";
    ProtocolError::new(OAuthErrorCode::InvalidGrant, message)
}
