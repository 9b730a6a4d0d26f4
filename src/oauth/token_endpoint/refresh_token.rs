//! The refresh token grant (OAuth 2.1, section 4.3).

use super::{TokenContext, TokenEndpoint, Tokens};
use crate::{
    model::{
        audit::Action, id::GrantId, oauth::grant::GrantEndReason, refresh_token::PresentedToken,
    },
    oauth::{
        OAuthError,
        request::{requested_scope, required_parameter},
    },
};

const BAD_REFRESH: &str = "the refresh token is unknown, expired or revoked";

impl TokenEndpoint {
    /// Handles `grant_type=refresh_token`.
    ///
    /// The refresh token of a public client rotates. The previous token still returns the same
    /// successor until that successor was used, so a client can retry after a lost response at any
    /// time. The token of a confidential client does not rotate, because it is useless without the
    /// client's secret (OAuth 2.1, section 4.3.1).
    pub(super) async fn refresh(&self, context: TokenContext<'_>) -> Result<Tokens, OAuthError> {
        let TokenContext { client, parameters, .. } = context;
        let bad = || OAuthError::invalid_grant(BAD_REFRESH);
        let token = required_parameter(parameters, "refresh_token")?;
        let token = PresentedToken::<GrantId>::parse(token).ok_or_else(bad)?;
        let opened = self.open_user_grant(token.id()).await?.ok_or_else(bad)?;
        let grant = &opened.grant;
        let generation = self.grants.verify_refresh_token(&token, grant);
        let generation = generation.ok_or_else(bad)?;
        if grant.client_id != client.id || generation > grant.generation {
            return Err(self.record_refusal(context, opened, BAD_REFRESH).await);
        }
        let next = match grant.generation - generation {
            0 if client.is_confidential() => generation,
            0 => generation.saturating_add(1),
            1 => grant.generation,
            _ if grant.is_ended => {
                return Err(self.record_refusal(context, opened, BAD_REFRESH).await);
            }
            _ => {
                self.end_reused_grant(context, opened, GrantEndReason::RefreshTokenReuse).await?;
                return Err(bad());
            }
        };
        let now = self.context.env.clock.now();
        let is_active = !grant.is_ended
            && grant.last_used_at.is_some_and(|used| now - used < self.grants.idle_timeout());
        let Some(max_scope) = opened.role_scope.filter(|_| is_active) else {
            return Err(self.record_refusal(context, opened, BAD_REFRESH).await);
        };
        // Reduce an excessive scope instead of refusing it: some clients always request all scopes.
        let max_scope =
            requested_scope(parameters)?.map_or(max_scope, |wanted| wanted.min(max_scope));
        self.issue_from_grant(context, opened, max_scope, Some(next), Action::TokenRefreshed).await
    }
}
