//! Tokens given back (RFC 7009): a refresh token with all that was granted, an access token alone.

use std::sync::Arc;

use serde_json::json;

use super::{Code, OAuth, OAuthError, token::required};
use crate::{
    auth::verify_jwt::Bond,
    model::{
        api_key::KEY_PREFIX,
        audit::{Action, RequestInfo},
        id::GrantId,
        oauth::{client::Client, grant::GrantEnd, parameters::Parameters},
        refresh_token::PresentedToken,
    },
    store,
};

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
        let id = token.id();
        let Some(parties) = self.store.find_grant(id).await? else { return Ok(()) };
        let workspace = parties.workspace_id;
        let mut tx = self.store.begin(workspace, parties.user_id).await?;
        let grant = store::oauth_grants::lock(&mut tx, workspace, id).await?;
        let Some(grant) = grant else { return Ok(()) };
        if token.verify(self.auth.grant_refresh_key(), &grant.seed).is_none() {
            return Ok(());
        }
        if grant.client_id != client.id {
            return Err(foreign());
        }
        let now = self.env.clock.now();
        if store::oauth_grants::end(&mut tx, workspace, id, now, GrantEnd::Client).await? {
            let event = self
                .event(request, workspace, Action::GrantEnded, client, 200)
                .on(id, None)
                .with(json!({
                    "reason": GrantEnd::Client.as_str(), "user_id": parties.user_id,
                }));
            store::audit::insert(&mut tx, workspace, &event).await?;
            tx.commit().await?;
        }
        // Also a second time: the first one's client may have gone without an answer.
        Ok(self.auth.fence().wait().await?)
    }

    async fn revoke_access_token(
        &self,
        client: &Client,
        token: &str,
        request: &Arc<RequestInfo>,
    ) -> Result<(), OAuthError> {
        let looked = self.auth.look_at_token(token, request.began).await?;
        let Some((claims, _)) = looked else { return Ok(()) };
        let Bond::Grant(id) = claims.sid else { return Err(foreign()) };
        if claims.client_id != client.client_id() {
            return Err(foreign());
        }
        let Some(parties) = self.store.find_grant(id).await? else { return Ok(()) };
        let workspace = parties.workspace_id;
        let mut tx = self.store.begin(workspace, parties.user_id).await?;
        let since = self.env.clock.now() - self.auth.access_token_lifetime();
        store::oauth_grants::revoke_token(&mut tx, workspace, id, claims.jti, since).await?;
        let event = self
            .event(request, workspace, Action::TokenRevoked, client, 200)
            .on(id, None)
            .with(json!({ "user_id": parties.user_id }));
        store::audit::insert(&mut tx, workspace, &event).await?;
        tx.commit().await?;
        Ok(self.auth.fence().wait().await?)
    }
}

fn foreign() -> OAuthError {
    OAuthError::grant("the token was not issued to this client")
}
