//! The authorization code grant (OAuth 2.1, section 4.1.3).

use super::{TokenContext, TokenEndpoint, Tokens};
use crate::{
    model::{oauth::grant::GrantEndReason, one_time_token::TokenPurpose},
    oauth::{OAuthError, request::required_parameter},
};

const BAD_CODE: &str = "the code is unknown, expired, used or issued to another client, or does \
                        not match code_verifier or redirect_uri";

impl TokenEndpoint {
    pub(super) async fn redeem_code(
        &self,
        context: TokenContext<'_>,
    ) -> Result<Tokens, OAuthError> {
        let TokenContext { client, parameters, .. } = context;
        let bad = || OAuthError::invalid_grant(BAD_CODE);
        let code = required_parameter(parameters, "code")?;
        let verifier = required_parameter(parameters, "code_verifier")?;
        let id = self.context.token_key.verify(TokenPurpose::AuthorizationCode, code);
        let opened = self.open_user_grant(id.ok_or_else(bad)?.into()).await?.ok_or_else(bad)?;
        let grant = &opened.grant;
        let is_match = grant.client_id == client.id
            && grant.code.as_ref().is_some_and(|(redirect_uri, challenge)| {
                // OAuth 2.1 (section 10.2) no longer requires redirect_uri in the token request.
                parameters.get("redirect_uri").is_none_or(|uri| uri == redirect_uri)
                    && challenge.matches_verifier(verifier)
            });
        if !is_match {
            return Err(self.record_refusal(context, opened, BAD_CODE).await);
        }
        if grant.redeemed_at.is_some() {
            // Two parties presented both the code and its verifier: one of them stole them.
            self.end_reused_grant(context, opened, GrantEndReason::CodeReuse).await?;
            return Err(bad());
        }
        self.issue_first_tokens(context, opened, BAD_CODE).await
    }
}
