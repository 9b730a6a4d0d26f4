//! Issuance of tokens: creates tokens and commits the grant's new state.

use serde_json::json;

use super::{TokenContext, TokenEndpoint, Tokens};
use crate::{
    auth::token_issuer::GrantTokenParams,
    model::{
        audit::Action,
        oauth::{
            client::GrantType,
            parameters::{Parameters, RESOURCE},
        },
        refresh_token::RefreshSeed,
        scope::Scope,
    },
    oauth::{
        OAuthError,
        grants::LockedGrant,
        request::{requested_resources, unknown_resource},
    },
    store::{self, Tx, oauth_grants::GrantParties},
};

/// The parameters of the tokens to issue.
pub(super) struct TokenIssuance<'a> {
    pub(super) parties: GrantParties,
    pub(super) scope: Scope,
    pub(super) resources: Vec<String>,
    /// Generation and seed of the refresh token, if the client may have one.
    pub(super) refresh: Option<(u32, &'a RefreshSeed)>,
}

impl TokenEndpoint {
    /// Returns the requested resources, which must be a subset of the granted ones. Without a
    /// `resource` parameter these are all granted resources.
    fn narrow_resources(
        &self,
        granted: &[String],
        parameters: &Parameters,
    ) -> Result<Vec<String>, OAuthError> {
        if parameters.get(RESOURCE).is_none() {
            return Ok(granted.to_vec());
        }
        let named = requested_resources(parameters, &self.resources)?;
        if named.iter().all(|named| granted.contains(named)) {
            Ok(named)
        } else {
            Err(unknown_resource())
        }
    }

    /// Issues the first tokens of a grant, unless its deadline has passed.
    pub(super) async fn issue_first_tokens(
        &self,
        context: TokenContext<'_>,
        opened: LockedGrant,
        bad: &'static str,
    ) -> Result<Tokens, OAuthError> {
        let is_active =
            !opened.grant.is_ended && self.context.env.clock.now() < opened.grant.redeem_by;
        let Some(max_scope) = opened.role_scope.filter(|_| is_active) else {
            return Err(self.record_refusal(context, opened, bad).await);
        };
        let refresh = context.client.allows_grant_type(GrantType::RefreshToken).then_some(0);
        self.issue_from_grant(context, opened, max_scope, refresh, Action::TokenIssued).await
    }

    /// Issues tokens of a user's grant, with at most `max_scope`. With a generation, the response
    /// includes that refresh token.
    pub(super) async fn issue_from_grant(
        &self,
        context: TokenContext<'_>,
        LockedGrant { tx, parties, grant, .. }: LockedGrant,
        max_scope: Scope,
        generation: Option<u32>,
        action: Action,
    ) -> Result<Tokens, OAuthError> {
        let issuance = TokenIssuance {
            parties,
            scope: grant.scope.min(max_scope),
            resources: self.narrow_resources(&grant.resources, context.parameters)?,
            refresh: generation.map(|generation| (generation, &grant.seed)),
        };
        self.commit_tokens(context, tx, issuance, action).await
    }

    /// Creates tokens and commits the grant's new state together with the audit event.
    pub(super) async fn commit_tokens(
        &self,
        TokenContext { client, .. }: TokenContext<'_>,
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
        store::audit::insert(&mut tx, workspace, &event).await?;
        let access_token = self.token_issuer.issue_grant_token(&GrantTokenParams {
            client_id: &client.client_id(),
            user: parties.user_id,
            workspace,
            grant: id,
            scope,
            resources: &resources,
        })?;
        tx.commit().await?;
        Ok(Tokens {
            access_token: access_token.into(),
            expires_in: self.token_issuer.access_token_lifetime().as_secs(),
            scope,
            refresh_token: refresh
                .map(|(generation, seed)| self.grants.refresh_token(id, generation, seed)),
        })
    }
}
