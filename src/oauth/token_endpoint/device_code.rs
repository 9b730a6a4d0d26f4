//! The device code grant (RFC 8628, section 3.4).

use uuid::Uuid;

use super::{TokenContext, TokenEndpoint, Tokens};
use crate::{
    model::{id::GrantId, one_time_token::TokenPurpose},
    oauth::{
        OAuthError, OAuthErrorCode, clients::AuthenticatedClient, request::required_parameter,
    },
    store::oauth_devices::DeviceState,
};

const BAD_DEVICE_CODE: &str = "the device code is unknown, used or issued to another client";

impl TokenEndpoint {
    pub(super) async fn redeem_device_code(
        &self,
        context: TokenContext<'_>,
    ) -> Result<Tokens, OAuthError> {
        let bad = || OAuthError::invalid_grant(BAD_DEVICE_CODE);
        let code = required_parameter(context.parameters, "device_code")?;
        let device =
            self.context.token_key.verify(TokenPurpose::DeviceCode, code).ok_or_else(bad)?;
        let id = self.approved_device_grant(device, context.client).await?;
        let opened = self.open_user_grant(id).await?.ok_or_else(bad)?;
        if opened.grant.redeemed_at.is_some() {
            return Err(self.record_refusal(context, opened, BAD_DEVICE_CODE).await);
        }
        self.issue_first_tokens(context, opened, BAD_DEVICE_CODE).await
    }

    /// Polls a device authorization; returns the grant if the user approved it.
    async fn approved_device_grant(
        &self,
        device: Uuid,
        client: &AuthenticatedClient,
    ) -> Result<GrantId, OAuthError> {
        let state = self
            .context
            .store
            .poll_device_authorization(device, client.id, self.context.env.clock.now())
            .await?;
        let (code, why) = match state {
            DeviceState::Approved(grant) => return Ok(grant),
            DeviceState::Unknown => (OAuthErrorCode::InvalidGrant, BAD_DEVICE_CODE),
            DeviceState::Expired => (OAuthErrorCode::ExpiredToken, "the device code has expired"),
            DeviceState::Denied => (OAuthErrorCode::AccessDenied, "the user denied the request"),
            DeviceState::Pending => {
                (OAuthErrorCode::AuthorizationPending, "the user has not approved the request yet")
            }
            DeviceState::SlowDown => {
                (OAuthErrorCode::SlowDown, "poll less often: add five seconds to the interval")
            }
        };
        Err(OAuthError::new(code, why))
    }
}
