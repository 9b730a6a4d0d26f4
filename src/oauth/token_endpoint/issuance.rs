//! Issuance of tokens: creates tokens and commits the grant's new state.

use serde_json::json;

use super::{TokenEndpoint, Tokens};
use crate::{
    auth::token_issuer::GrantTokenParams,
    model::{
        audit::Action,
        oauth::{client::GrantType, grant::GrantStage},
        refresh_token::RefreshSeed,
        scope::Scope,
    },
    oauth::{
        InactiveGrant, OAuthError, clients::AuthenticatedClient, grants::LockedGrant,
        request::RequestedResources,
    },
    store::{self, Tx, oauth_grants::GrantParties},
};

/// The terms on which a user's grant gives tokens.
pub(super) struct TokenTerms<'a> {
    /// The maximum scope of the access token.
    pub(super) max_scope: Scope,
    pub(super) resources: &'a RequestedResources,
    /// The generation of the refresh token, if the client may have one.
    pub(super) generation: Option<u32>,
    pub(super) action: Action,
}

/// The parameters of the tokens to issue.
pub(super) struct TokenIssuance<'a> {
    pub(super) parties: GrantParties,
    pub(super) scope: Scope,
    pub(super) resources: Vec<String>,
    /// Generation and seed of the refresh token, if the client may have one.
    pub(super) refresh: Option<(u32, &'a RefreshSeed)>,
}

impl TokenEndpoint {
    /// Returns the maximum scope of the user, if the grant may give its first tokens.
    pub(super) fn redeemable_scope(&self, locked: &LockedGrant) -> Result<Scope, InactiveGrant> {
        let now = self.context.env.clock.now();
        match locked.grant.stage {
            GrantStage::Redeemed { .. } | GrantStage::Ended { was_redeemed: true } => {
                Err(InactiveGrant::Redeemed)
            }
            GrantStage::Ended { was_redeemed: false } => Err(InactiveGrant::Ended),
            GrantStage::Approved { redeem_by } if now >= redeem_by => {
                Err(InactiveGrant::NotRedeemedInTime)
            }
            GrantStage::Approved { .. } => locked.role_scope.ok_or(InactiveGrant::NotAMember),
        }
    }

    /// Issues the first tokens of a user's grant, with at most `max_scope`.
    pub(super) async fn issue_first_tokens(
        &self,
        client: &AuthenticatedClient,
        locked: LockedGrant,
        max_scope: Scope,
        resources: &RequestedResources,
    ) -> Result<Tokens, OAuthError> {
        let generation = client.allows_grant_type(GrantType::RefreshToken).then_some(0);
        let terms = TokenTerms { max_scope, resources, generation, action: Action::TokenIssued };
        self.issue_from_grant(client, locked, terms).await
    }

    /// Issues tokens of a user's grant.
    pub(super) async fn issue_from_grant(
        &self,
        client: &AuthenticatedClient,
        LockedGrant { tx, parties, grant, seed, .. }: LockedGrant,
        TokenTerms { max_scope, resources, generation, action }: TokenTerms<'_>,
    ) -> Result<Tokens, OAuthError> {
        let issuance = TokenIssuance {
            parties,
            scope: grant.scope.min(max_scope),
            resources: resources.narrow(&grant.resources, &self.resources)?,
            refresh: generation.map(|generation| (generation, &seed)),
        };
        self.commit_tokens(client, tx, issuance, action).await
    }

    /// Creates tokens and commits the grant's new state together with the audit event.
    pub(super) async fn commit_tokens(
        &self,
        client: &AuthenticatedClient,
        mut tx: Tx,
        TokenIssuance { parties, scope, resources, refresh }: TokenIssuance<'_>,
        action: Action,
    ) -> Result<Tokens, OAuthError> {
        let now = self.context.env.clock.now();
        let (id, workspace) = (parties.id, parties.workspace_id);
        let generation = refresh.map_or(0, |(generation, _)| generation);
        store::oauth_grants::record_token_issuance(&mut tx, workspace, id, generation, now).await?;
        let event = client
            .audit_event(&self.context, workspace, action, 200)
            .with_target(id, None)
            .with_metadata(
                json!({ "scope": scope, "user_id": parties.user_id, "resources": resources }),
            );
        let audited = store::audit::insert(&mut tx, workspace, &event).await?;
        let access_token = self.token_issuer.issue_grant_token(&GrantTokenParams {
            client_id: &client.client_id(),
            user: parties.user_id,
            workspace,
            grant: id,
            scope,
            resources: &resources,
        })?;
        tx.commit(audited).await?.unfenced("new tokens, which no node has cached");
        Ok(Tokens {
            access_token: access_token.into(),
            expires_in: self.token_issuer.access_token_lifetime().as_secs(),
            scope,
            refresh_token: refresh.map(|(generation, seed)| seed.derive(id, generation)),
        })
    }
}
