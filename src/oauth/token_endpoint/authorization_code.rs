//! The authorization code grant (OAuth 2.1, section 4.1.3).

use secrecy::ExposeSecret;

use super::{AuthorizationCodeRequest, TokenEndpoint, Tokens};
use crate::{
    model::{
        oauth::{
            client::Client,
            grant::{GrantEndReason, GrantFlow, GrantState},
        },
        one_time_token::TokenPurpose,
    },
    oauth::{CodeFault, InactiveGrant, InvalidGrant, OAuthError, clients::AuthenticatedClient},
};

impl TokenEndpoint {
    pub(super) async fn redeem_code(
        &self,
        client: &AuthenticatedClient,
        request: &AuthorizationCodeRequest,
    ) -> Result<Tokens, OAuthError> {
        let invalid = InvalidGrant::AuthorizationCode;
        let code = request.code.expose_secret();
        let id = self.context.token_key.verify(TokenPurpose::AuthorizationCode, code);
        let id = id.ok_or(invalid(CodeFault::NotGenuine))?;
        let locked = self.lock_user_grant(id.into()).await?;
        let locked = locked.ok_or(invalid(CodeFault::UnknownGrant))?;
        if let Err(fault) = check_binding(client, &locked.grant, request) {
            return Err(self.record_refusal(client, locked, invalid(fault)).await);
        }
        match self.redeemable_scope(&locked) {
            Ok(scope) => self.issue_first_tokens(client, locked, scope, &request.resources).await,
            Err(cause @ InactiveGrant::Redeemed) => {
                // Two parties presented both the code and its verifier: one of them stole them.
                self.end_reused_grant(client, locked, GrantEndReason::CodeReuse).await?;
                Err(invalid(cause.into()).into())
            }
            Err(cause) => Err(self.record_refusal(client, locked, invalid(cause.into())).await),
        }
    }
}

/// Checks that a code was issued to this client, for this redirect URI and this verifier.
fn check_binding(
    client: &Client,
    grant: &GrantState,
    request: &AuthorizationCodeRequest,
) -> Result<(), CodeFault> {
    if grant.client_id != client.id {
        return Err(CodeFault::OtherClient);
    }
    let GrantFlow::AuthorizationCode { redirect_uri, challenge } = &grant.flow else {
        return Err(CodeFault::OtherFlow);
    };
    if request.redirect_uri.as_ref().is_some_and(|uri| uri != redirect_uri) {
        return Err(CodeFault::RedirectUriMismatch);
    }
    if !challenge.matches_verifier(request.code_verifier.expose_secret()) {
        return Err(CodeFault::VerifierMismatch);
    }
    Ok(())
}
