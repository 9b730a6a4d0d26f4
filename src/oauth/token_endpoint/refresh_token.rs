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
            grant::{GrantEndReason, GrantStage},
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
        let presented = request.token.verify(&locked.seed);
        let presented = presented.ok_or(invalid(RefreshTokenFault::NotGenuine))?;
        let (generation, max_scope) = match self.check_renewal(client, &locked, presented) {
            Ok(renewal) => renewal,
            Err(fault @ RefreshTokenFault::Reused) => {
                self.end_reused_grant(client, locked, GrantEndReason::RefreshTokenReuse).await?;
                return Err(invalid(fault).into());
            }
            Err(fault) => return Err(self.record_refusal(client, locked, invalid(fault)).await),
        };
        // Reduce an excessive scope instead of refusing it: some clients always request all scopes.
        let max_scope = request.scope.map_or(max_scope, |wanted| wanted.min(max_scope));
        let terms = TokenTerms {
            max_scope,
            resources: &request.resources,
            generation: Some(generation),
            action: Action::TokenRefreshed,
        };
        self.issue_from_grant(client, locked, terms).await
    }

    /// Returns the generation of the next refresh token, after a genuine one of the generation
    /// `presented`, and the maximum scope of the user.
    fn check_renewal(
        &self,
        client: &Client,
        locked: &LockedGrant,
        presented: u32,
    ) -> Result<(u32, Scope), RefreshTokenFault> {
        if locked.grant.client_id != client.id {
            return Err(RefreshTokenFault::OtherClient);
        }
        let (last_used_at, current) = match locked.grant.stage {
            GrantStage::Redeemed { last_used_at, generation } => (last_used_at, generation),
            GrantStage::Approved { .. } => return Err(RefreshTokenFault::NotIssued),
            GrantStage::Ended { .. } => return Err(InactiveGrant::Ended.into()),
        };
        let next = match current.checked_sub(presented) {
            None => return Err(RefreshTokenFault::NotIssued),
            Some(0) if client.is_confidential() => presented,
            Some(0) => presented.saturating_add(1),
            Some(1) => current,
            Some(_) => return Err(RefreshTokenFault::Reused),
        };
        if self.context.env.clock.now() - last_used_at >= self.grants.idle_timeout() {
            return Err(InactiveGrant::Idle.into());
        }
        Ok((next, locked.role_scope.ok_or(InactiveGrant::NotAMember)?))
    }
}
