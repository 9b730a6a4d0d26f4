//! Device authorization (RFC 8628): a program without a browser shows a code, somebody types it in elsewhere.

use std::time::Duration;

use secrecy::SecretString;

use super::{Code, OAuth, OAuthError, consent::Wanted, scope_of};
use crate::{
    auth::AuthError,
    model::{
        address,
        audit::RequestInfo,
        id::WorkspaceId,
        oauth::{
            client::{Client, ClientRef, GrantType},
            parameters::Parameters,
            user_code::UserCode,
        },
        one_time_token::Purpose,
        principal::Caller,
        scope::Scope,
    },
    store::{
        self,
        oauth_devices::{NewDevice, Started, WaitingDevice},
    },
};

/// How long a code may be typed in.
const LIFETIME: Duration = Duration::from_mins(15);
/// How long an answer may be fetched.
const FETCH_WITHIN: Duration = Duration::from_mins(15);
/// Seconds between two polls.
const INTERVAL: u32 = 5;
/// Devices that wait at a time, at most.
const MAX_WAITING: i32 = 100_000;
/// Of these from one address or, of IPv6, one /64.
const MAX_WAITING_FROM_ONE: i32 = 50;
/// So often a code is drawn anew that somebody has already.
const DRAWS: usize = 5;

/// What a device shows and keeps.
#[derive(Debug)]
pub struct DeviceAuthorization {
    /// What it asks for tokens with.
    pub device_code: SecretString,
    /// What it shows.
    pub user_code: UserCode,
    /// Where that is typed in.
    pub verification_uri: String,
    /// How long, in seconds.
    pub expires_in: u64,
    /// How often it may ask, in seconds.
    pub interval: u32,
}

/// A device that waits for an answer.
#[derive(Debug)]
pub struct DeviceRequest {
    /// Who asks.
    pub client: Client,
    /// What for.
    pub scope: Scope,
    waiting: WaitingDevice,
}

impl DeviceRequest {
    /// Against which resources.
    #[must_use]
    pub fn resources(&self) -> &[String] {
        &self.waiting.resources
    }
}

impl OAuth {
    /// Begins with a device of a client that has shown who it is.
    ///
    /// # Errors
    /// As RFC 6749, section 5.2 says.
    pub async fn start_device(
        &self,
        client: &Client,
        parameters: &Parameters,
        request: &RequestInfo,
    ) -> Result<DeviceAuthorization, OAuthError> {
        if !client.may(GrantType::DeviceCode) {
            let what = "the client is not registered for the device grant";
            return Err(OAuthError::new(Code::UnauthorizedClient, what));
        }
        let scope = client.scope_of(scope_of(parameters)?);
        let resources = self.resources_of(parameters)?;
        let id = self.env.new_uuid();
        let created_at = self.env.clock.now();
        for _ in 0..DRAWS {
            let user_code = UserCode::generate(|| {
                let [byte] = self.env.entropy.bytes();
                byte
            });
            let device = NewDevice {
                id,
                client_id: client.id,
                user_code: self.auth.token_key().of_user_code(user_code.letters()),
                scope,
                resources: &resources,
                created_at,
                expires_at: created_at + LIFETIME,
                subnet: address::subnet(request.ip),
            };
            let most = [MAX_WAITING, MAX_WAITING_FROM_ONE];
            match self.store.start_device(&device, most).await? {
                Started::Yes => {
                    return Ok(DeviceAuthorization {
                        device_code: self.auth.token_key().derive(Purpose::DeviceCode, id),
                        user_code,
                        verification_uri: format!("{}/device", self.issuer),
                        expires_in: LIFETIME.as_secs(),
                        interval: INTERVAL,
                    });
                }
                Started::CodeTaken => {}
                Started::TooMany => break,
            }
        }
        Err(OAuthError::unavailable())
    }

    /// The device that shows a code, while it waits.
    ///
    /// # Errors
    /// [`AuthError::Invalid`] where none does.
    pub async fn device_request(&self, user_code: &str) -> Result<DeviceRequest, OAuthError> {
        let unknown = || {
            let reason = "no device shows this code any more: look again, or begin anew there";
            AuthError::Invalid { field: "user_code", reason: reason.to_owned() }
        };
        let code = UserCode::parse(user_code).ok_or_else(unknown)?;
        let code = self.auth.token_key().of_user_code(code.letters());
        let now = self.env.clock.now();
        let waiting = self.store.find_device(&code, now).await?.ok_or_else(unknown)?;
        let client = self.store.find_client(&ClientRef::Id(waiting.client_id), now).await?;
        let client = client.ok_or_else(unknown)?.client;
        Ok(DeviceRequest { client, scope: waiting.scope, waiting })
    }

    /// Lets a device into a workspace, to do no more than this.
    ///
    /// # Errors
    /// [`AuthError::Forbidden`] where the person may not, [`AuthError::Conflict`] where somebody has answered.
    pub async fn approve_device(
        &self,
        caller: &Caller,
        device: &DeviceRequest,
        workspace: WorkspaceId,
        scope: Scope,
    ) -> Result<(), OAuthError> {
        let now = self.env.clock.now();
        let wanted = Wanted {
            client: &device.client,
            scope: scope.min(device.scope),
            resources: &device.waiting.resources,
            code: None,
            begin_by: now + FETCH_WITHIN,
        };
        let (mut tx, grant, has_ended) = self.let_in(caller, workspace, wanted).await?;
        let id = device.waiting.id;
        if !store::oauth_devices::answer(&mut tx, id, Some(grant), now).await? {
            return Err(AuthError::Conflict("this code has been answered already").into());
        }
        tx.commit().await?;
        if has_ended {
            self.auth.fence().wait().await?;
        }
        Ok(())
    }

    /// Does not let a device in.
    ///
    /// # Errors
    /// [`AuthError::Conflict`] where somebody has answered.
    pub async fn deny_device(
        &self,
        caller: &Caller,
        device: &DeviceRequest,
    ) -> Result<(), OAuthError> {
        let mut tx = self.store.begin(caller.workspace(), None).await?;
        let now = self.env.clock.now();
        if !store::oauth_devices::answer(&mut tx, device.waiting.id, None, now).await? {
            return Err(AuthError::Conflict("this code has been answered already").into());
        }
        self.note_denial(&mut tx, caller, &device.client).await?;
        Ok(tx.commit().await?)
    }
}
