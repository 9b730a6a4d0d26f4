//! The device code grant (RFC 8628, section 3.4).

use secrecy::ExposeSecret;
use uuid::Uuid;

use super::{DeviceCodeRequest, TokenEndpoint, Tokens};
use crate::{
    model::{
        id::GrantId,
        oauth::{
            client::Client,
            device::DeviceState,
            grant::{GrantFlow, GrantState},
        },
        one_time_token::TokenPurpose,
    },
    oauth::{
        DeviceCodeFault, InvalidGrant, OAuthError, OAuthErrorCode, ProtocolError,
        clients::AuthenticatedClient,
    },
};

impl TokenEndpoint {
    pub(super) async fn redeem_device_code(
        &self,
        client: &AuthenticatedClient,
        request: &DeviceCodeRequest,
    ) -> Result<Tokens, OAuthError> {
        let invalid = InvalidGrant::DeviceCode;
        let code = request.device_code.expose_secret();
        let device = self.context.token_key.verify(TokenPurpose::DeviceCode, code);
        let device = device.ok_or(invalid(DeviceCodeFault::NotGenuine))?;
        let id = self.approved_device_grant(device, client).await?;
        let locked = self.lock_user_grant(id).await?;
        let locked = locked.ok_or(invalid(DeviceCodeFault::UnknownGrant))?;
        if let Err(fault) = check_binding(client, &locked.grant) {
            return Err(self.record_refusal(client, locked, invalid(fault)).await);
        }
        match self.redeemable_scope(&locked) {
            Ok(scope) => self.issue_first_tokens(client, locked, scope, &request.resources).await,
            Err(cause) => Err(self.record_refusal(client, locked, invalid(cause.into())).await),
        }
    }

    /// Polls a device authorization; returns the grant if the user approved it.
    async fn approved_device_grant(
        &self,
        device: Uuid,
        client: &AuthenticatedClient,
    ) -> Result<GrantId, OAuthError> {
        let (store, clock) = (&self.context.store, &*self.context.env.clock);
        let (code, why) = match store.poll_device_authorization(device, client.id, clock).await? {
            DeviceState::Approved(grant) => return Ok(grant),
            DeviceState::Unknown => {
                return Err(InvalidGrant::DeviceCode(DeviceCodeFault::Unknown).into());
            }
            DeviceState::Expired => (OAuthErrorCode::ExpiredToken, "the device code has expired"),
            DeviceState::Denied => (OAuthErrorCode::AccessDenied, "the user denied the request"),
            DeviceState::Pending => {
                (OAuthErrorCode::AuthorizationPending, "the user has not approved the request yet")
            }
            DeviceState::SlowDown => {
                (OAuthErrorCode::SlowDown, "poll less often: add five seconds to the interval")
            }
        };
        Err(ProtocolError::new(code, why).into())
    }
}

/// Checks that a grant was created by the approval of a device of this client.
fn check_binding(client: &Client, grant: &GrantState) -> Result<(), DeviceCodeFault> {
    if grant.client_id != client.id {
        return Err(DeviceCodeFault::OtherClient);
    }
    match grant.flow {
        GrantFlow::Device => Ok(()),
        GrantFlow::AuthorizationCode { .. } => Err(DeviceCodeFault::OtherFlow),
    }
}
