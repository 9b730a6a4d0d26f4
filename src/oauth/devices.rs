//! Device authorization (RFC 8628): a device shows a user code, which the user enters in a browser
//! on another device.
//!
//! The number of waiting devices is limited, overall and per address. The device fetches its tokens
//! from the [token endpoint](super::token_endpoint).

use std::{sync::Arc, time::Duration};

use secrecy::SecretString;
use time::OffsetDateTime;

use super::{
    OAuthError, OAuthErrorCode, ProtocolError,
    clients::AuthenticatedClient,
    grants::{CreateGrantParams, Grants},
    request::{RequestedResources, requested_scope},
};
use crate::{
    auth::{AuthError, ServiceContext, caller::SessionCaller},
    model::{
        address,
        id::WorkspaceId,
        oauth::{
            client::{Client, ClientRef, GrantType},
            device::{DeviceDecision, INITIAL_POLL_SECONDS},
            grant::GrantFlow,
            parameters::Parameters,
            resource::ProtectedResources,
            user_code::UserCode,
        },
        one_time_token::TokenPurpose,
        principal::Caller,
        scope::Scope,
    },
    store::{
        self, Tx,
        oauth_devices::{NewDeviceAuthorization, PendingDeviceAuthorization, StartOutcome},
    },
};

/// Lifetime of a user code.
const LIFETIME: Duration = Duration::from_mins(15);
/// Time after the approval within which the device must fetch its tokens.
const FETCH_WITHIN: Duration = Duration::from_mins(15);
/// Maximum number of devices that wait for approval.
const MAX_WAITING: i32 = 100_000;
/// Maximum number of such devices from one IPv4 address or IPv6 /64.
const MAX_WAITING_PER_ADDRESS: i32 = 50;
/// Maximum number of attempts to generate a user code that is not in use.
const CODE_ATTEMPTS: usize = 5;

/// A device authorization request (RFC 8628, section 3.1).
#[derive(Debug)]
pub struct DeviceAuthorizationRequest {
    scope: Option<Scope>,
    resources: RequestedResources,
}

impl DeviceAuthorizationRequest {
    /// Parses a device authorization request. Every parameter is optional.
    #[must_use]
    pub fn parse(parameters: &Parameters) -> Self {
        Self {
            scope: requested_scope(parameters),
            resources: RequestedResources::parse(parameters),
        }
    }
}

/// The device authorization response (RFC 8628, section 3.2).
#[derive(Debug)]
pub struct DeviceAuthorization {
    /// The code with which the device polls for tokens.
    pub device_code: SecretString,
    /// The code that the device shows to the user.
    pub user_code: UserCode,
    /// The page on which the user enters the code.
    pub verification_uri: String,
    /// The lifetime of both codes, in seconds.
    pub expires_in: u64,
    /// The minimum polling interval, in seconds.
    pub interval: u32,
}

/// A device that waits for the user's decision.
#[derive(Debug)]
pub struct DeviceRequest {
    /// The client.
    pub client: Client,
    /// The requested scope.
    pub scope: Scope,
    waiting: PendingDeviceAuthorization,
}

impl DeviceRequest {
    /// Returns the requested resources (RFC 8707).
    #[must_use]
    pub fn resources(&self) -> &[String] {
        &self.waiting.resources
    }
}

/// Handles device authorizations.
pub struct Devices {
    pub(super) context: Arc<ServiceContext>,
    pub(super) grants: Arc<Grants>,
    pub(super) resources: Arc<ProtectedResources>,
}

impl Devices {
    /// Starts a device authorization for an authenticated client.
    ///
    /// # Errors
    /// The error codes of RFC 6749, section 5.2; a 503 if too many devices wait.
    #[tracing::instrument(
        name = "oauth.devices.start",
        level = "debug",
        skip_all,
        fields(client = %client.id),
        err(level = "debug")
    )]
    pub async fn start(
        &self,
        client: &AuthenticatedClient,
        request: &DeviceAuthorizationRequest,
    ) -> Result<DeviceAuthorization, OAuthError> {
        if !client.allows_grant_type(GrantType::DeviceCode) {
            let message = "the client is not registered for the device grant";
            return Err(ProtocolError::new(OAuthErrorCode::UnauthorizedClient, message).into());
        }
        let scope = client.effective_scope(request.scope);
        let resources = request.resources.resolve(&self.resources)?;
        let id = self.context.env.new_uuid();
        let created_at = self.context.env.clock.now();
        for _ in 0..CODE_ATTEMPTS {
            let user_code = UserCode::generate(|| {
                let [byte] = self.context.env.entropy.bytes();
                byte
            });
            let device = NewDeviceAuthorization {
                id,
                client_id: client.id,
                user_code: *self.context.token_key.user_code_macs(user_code.letters()).current(),
                scope,
                resources: &resources,
                created_at,
                expires_at: created_at + LIFETIME,
                subnet: address::client_subnet(client.request().ip),
            };
            let limits = [MAX_WAITING, MAX_WAITING_PER_ADDRESS];
            match self.context.store.start_device_authorization(&device, limits).await? {
                StartOutcome::Stored => {
                    return Ok(DeviceAuthorization {
                        device_code: self.context.token_key.derive(TokenPurpose::DeviceCode, id),
                        user_code,
                        verification_uri: format!("{}/device", self.context.issuer),
                        expires_in: LIFETIME.as_secs(),
                        interval: INITIAL_POLL_SECONDS,
                    });
                }
                StartOutcome::CodeTaken => {}
                StartOutcome::TooMany => break,
            }
        }
        Err(OAuthError::unavailable())
    }

    /// Returns the waiting device that shows a user code.
    ///
    /// # Errors
    /// [`AuthError::Invalid`] if the code is unknown, expired or already used.
    #[tracing::instrument(
        name = "oauth.devices.find",
        level = "debug",
        skip_all,
        err(level = "debug")
    )]
    pub async fn find(&self, user_code: &str) -> Result<DeviceRequest, OAuthError> {
        let unknown = || {
            let reason = "this code is wrong or has expired: check it, or start over on the device";
            AuthError::Invalid { field: "user_code", reason: reason.to_owned() }
        };
        let code = UserCode::parse(user_code).ok_or_else(unknown)?;
        let macs = self.context.token_key.user_code_macs(code.letters());
        let macs: Vec<_> = macs.iter().map(|mac| mac.to_vec()).collect();
        let now = self.context.env.clock.now();
        let waiting =
            self.context.store.find_device_authorization(&macs, now).await?.ok_or_else(unknown)?;
        let client = self.context.store.find_client(&ClientRef::Id(waiting.client_id), now).await?;
        let client = client.ok_or_else(unknown)?.client;
        Ok(DeviceRequest { client, scope: waiting.scope, waiting })
    }

    /// Authorizes a device for a workspace, with at most this scope.
    ///
    /// # Errors
    /// [`AuthError::Forbidden`] for the same reasons as for an authorization request,
    /// [`AuthError::Conflict`] if the request was already approved or denied.
    #[tracing::instrument(
        name = "oauth.devices.approve",
        level = "debug",
        skip_all,
        fields(client = %device.client.id, %workspace),
        err(level = "debug")
    )]
    pub async fn approve(
        &self,
        caller: &SessionCaller,
        device: &DeviceRequest,
        workspace: WorkspaceId,
        scope: Scope,
    ) -> Result<(), OAuthError> {
        let now = self.context.env.clock.now();
        let wanted = CreateGrantParams {
            client: &device.client,
            scope: scope.min(device.scope),
            resources: &device.waiting.resources,
            flow: GrantFlow::Device,
            redeem_by: now + FETCH_WITHIN,
        };
        let mut created = self.grants.create(caller, workspace, wanted).await?;
        let decision = DeviceDecision::Approved(created.id);
        record_decision(&mut created.tx, device, decision, now).await?;
        self.grants.commit(created).await?;
        Ok(())
    }

    /// Denies a device's request.
    ///
    /// # Errors
    /// [`AuthError::Conflict`] if the request was already approved or denied.
    #[tracing::instrument(
        name = "oauth.devices.deny",
        level = "debug",
        skip_all,
        fields(client = %device.client.id),
        err(level = "debug")
    )]
    pub async fn deny(&self, caller: &Caller, device: &DeviceRequest) -> Result<(), OAuthError> {
        let mut tx = self.context.store.begin_for(caller).await?;
        let now = self.context.env.clock.now();
        record_decision(&mut tx, device, DeviceDecision::Denied, now).await?;
        let audited = self.grants.record_denial(&mut tx, caller, &device.client).await?;
        tx.commit(audited).await?.unfenced("a denial creates no grant");
        Ok(())
    }
}

async fn record_decision(
    tx: &mut Tx,
    device: &DeviceRequest,
    decision: DeviceDecision,
    now: OffsetDateTime,
) -> Result<(), AuthError> {
    if store::oauth_devices::record_decision(tx, device.waiting.id, decision, now).await? {
        Ok(())
    } else {
        Err(AuthError::Conflict("this code has already been used"))
    }
}
