//! The refresh token grant (OAuth 2.1, section 4.3).
//!
//! The refresh token of a public client rotates. The previous token still returns the same
//! successor until that successor was used, so a client can retry after a lost response at any
//! time. The token of a confidential client does not rotate, because it is useless without the
//! client's secret (OAuth 2.1, section 4.3.1).

use super::{RefreshTokenRequest, TokenEndpoint, Tokens, issuance::TokenTerms};
use crate::{
    model::{
        audit::Action,
        oauth::{
            client::Client,
            grant::{GrantEndReason, GrantState},
        },
        scope::Scope,
    },
    oauth::{
        InactiveGrant, InvalidGrant, OAuthError, RefreshTokenFault, clients::AuthenticatedClient,
        grants::LockedGrant,
    },
};

impl TokenEndpoint {
    pub(super) async fn refresh(
        &self,
        client: &AuthenticatedClient,
        request: &RefreshTokenRequest,
    ) -> Result<Tokens, OAuthError> {
        let invalid = InvalidGrant::RefreshToken;
        let locked = self.lock_user_grant(request.token.id()).await?;
        let locked = locked.ok_or(invalid(RefreshTokenFault::UnknownGrant))?;
        let presented = self.grants.verify_refresh_token(&request.token, &locked.grant);
        let presented = presented.ok_or(invalid(RefreshTokenFault::NotGenuine))?;
        let next = match next_generation(client, &locked.grant, presented) {
            Ok(next) => next,
            Err(RefreshTokenFault::Reused) => {
                self.end_reused_grant(client, locked, GrantEndReason::RefreshTokenReuse).await?;
                return Err(invalid(RefreshTokenFault::Reused).into());
            }
            Err(fault) => return Err(self.record_refusal(client, locked, invalid(fault)).await),
        };
        let max_scope = match self.renewable_scope(&locked) {
            Ok(scope) => scope,
            Err(cause) => {
                return Err(self.record_refusal(client, locked, invalid(cause.into())).await);
            }
        };
        // Reduce an excessive scope instead of refusing it: some clients always request all scopes.
        let max_scope = request.scope.known()?.map_or(max_scope, |wanted| wanted.min(max_scope));
        let terms = TokenTerms {
            max_scope,
            resources: &request.resources,
            generation: Some(next),
            action: Action::TokenRefreshed,
        };
        self.issue_from_grant(client, locked, terms).await
    }

    /// Returns the maximum scope of the user, if the grant is in use.
    fn renewable_scope(&self, locked: &LockedGrant) -> Result<Scope, InactiveGrant> {
        let (now, grant) = (self.context.env.clock.now(), &locked.grant);
        if grant.is_ended {
            return Err(InactiveGrant::Ended);
        }
        let idle_timeout = self.grants.idle_timeout();
        if !grant.last_used_at.is_some_and(|used| now - used < idle_timeout) {
            return Err(InactiveGrant::Idle);
        }
        locked.role_scope.ok_or(InactiveGrant::NotAMember)
    }
}

/// Returns the generation of the next refresh token of a grant, after a genuine token of the
/// generation `presented`.
fn next_generation(
    client: &Client,
    grant: &GrantState,
    presented: u32,
) -> Result<u32, RefreshTokenFault> {
    if grant.client_id != client.id {
        return Err(RefreshTokenFault::OtherClient);
    }
    let age = grant.generation.checked_sub(presented).ok_or(RefreshTokenFault::NotIssued)?;
    match age {
        0 if client.is_confidential() => Ok(presented),
        0 => Ok(presented.saturating_add(1)),
        1 => Ok(grant.generation),
        _ if grant.is_ended => Err(InactiveGrant::Ended.into()),
        _ => Err(RefreshTokenFault::Reused),
    }
}
