//! Tokens given back (RFC 7009): a refresh token with all that was granted, an access token alone.

use std::sync::Arc;

use serde_json::json;

use super::{
    Code, OAuth, OAuthError,
    token::{Opened, required},
};
use crate::{
    auth::verify_jwt::Bond,
    model::{
        api_key::KEY_PREFIX,
        audit::{Action, RequestInfo},
        id::GrantId,
        oauth::{client::Client, grant::GrantEnd, parameters::Parameters},
        refresh_token::PresentedToken,
    },
    store::{self, Tx, oauth_grants::Parties},
};

/// Access tokens of one grant that are revoked one by one within their life; then all of it goes.
const MAX_REVOKED: i32 = 100;

impl OAuth {
    /// Revokes a token of a client that has shown who it is, at once. What is no token of anybody needs none.
    ///
    /// # Errors
    /// [`Code::InvalidGrant`] for another client's, [`Code::UnsupportedTokenType`] for an API key.
    pub async fn revoke(
        &self,
        client: &Client,
        parameters: &Parameters,
        request: &Arc<RequestInfo>,
    ) -> Result<(), OAuthError> {
        let token = required(parameters, "token")?;
        if token.starts_with(KEY_PREFIX) {
            let what = "API keys are revoked at /v1/api-keys";
            return Err(OAuthError::new(Code::UnsupportedTokenType, what));
        }
        match PresentedToken::parse(token) {
            Some(refresh) => self.revoke_refresh_token(client, &refresh, request).await,
            None => self.revoke_access_token(client, token, request).await,
        }
    }

    async fn revoke_refresh_token(
        &self,
        client: &Client,
        token: &PresentedToken<GrantId>,
        request: &Arc<RequestInfo>,
    ) -> Result<(), OAuthError> {
        let Some(parties) = self.store.find_grant(token.id()).await? else { return Ok(()) };
        let opened = self.lock(parties).await?;
        let Some(Opened { mut tx, parties, grant, .. }) = opened else { return Ok(()) };
        if token.verify(self.auth.grant_refresh_key(), &grant.seed).is_none() {
            return Ok(());
        }
        if grant.client_id != client.id {
            return Err(foreign());
        }
        self.give_back(&mut tx, client, parties, request).await?;
        tx.commit().await?;
        // Also a second time: the first one's client may have gone without an answer.
        Ok(self.auth.fence().wait().await?)
    }

    /// Ends a grant for its client, unless it has ended.
    async fn give_back(
        &self,
        tx: &mut Tx,
        client: &Client,
        parties: Parties,
        request: &Arc<RequestInfo>,
    ) -> Result<(), OAuthError> {
        let (id, workspace, now) = (parties.id, parties.workspace_id, self.env.clock.now());
        if store::oauth_grants::end(tx, workspace, id, now, GrantEnd::Client).await? {
            let event = self
                .event(request, workspace, Action::GrantEnded, client, 200)
                .on(id, None)
                .with(GrantEnd::Client.told(client.id, parties.user_id));
            store::audit::insert(tx, workspace, &event).await?;
        }
        Ok(())
    }

    async fn revoke_access_token(
        &self,
        client: &Client,
        token: &str,
        request: &Arc<RequestInfo>,
    ) -> Result<(), OAuthError> {
        // Whatever it is worth at the moment: it is not to be worth more later.
        let Some(claims) = self.auth.read_token(token).await? else { return Ok(()) };
        let Bond::Grant(id) = claims.sid else { return Err(foreign()) };
        if claims.client_id != client.client_id() {
            return Err(foreign());
        }
        let Some(parties) = self.store.find_grant(id).await? else { return Ok(()) };
        let workspace = parties.workspace_id;
        let mut tx = self.store.begin(workspace, parties.user_id).await?;
        let since = self.env.clock.now() - self.auth.access_token_lifetime();
        let revoked =
            store::oauth_grants::revoke_token(&mut tx, workspace, id, claims.jti, since).await?;
        let event = self
            .event(request, workspace, Action::TokenRevoked, client, 200)
            .on(id, None)
            .with(json!({ "user_id": parties.user_id }));
        store::audit::insert(&mut tx, workspace, &event).await?;
        if revoked > MAX_REVOKED {
            self.give_back(&mut tx, client, parties, request).await?;
        }
        tx.commit().await?;
        Ok(self.auth.fence().wait().await?)
    }
}

fn foreign() -> OAuthError {
    OAuthError::grant("the token was not issued to this client")
}
