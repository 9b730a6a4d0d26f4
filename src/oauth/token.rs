//! The token endpoint (OAuth 2.1, section 3.2): authorization codes, refresh tokens, device codes
//! and client credentials.
//!
//! `invalid_grant` means that a code or token is not valid, and nothing else. While PostgreSQL is
//! unavailable the response is a 503, because integration platforms treat any other error of a
//! refresh as the end of the connection.

use std::sync::Arc;

use secrecy::SecretString;
use serde_json::json;
use uuid::Uuid;

use super::{OAuth, OAuthError, OAuthErrorCode, requested_scope, unknown_resource};
use crate::{
    auth::{AuthError, token_issuer::GrantTokenParams},
    model::{
        audit::{Action, RequestInfo},
        id::{GrantId, Id},
        oauth::{
            client::{Client, ClientOrigin, GrantType},
            grant::{GrantEndReason, GrantState, NewGrant},
            parameters::{Parameters, RESOURCE},
        },
        one_time_token::TokenPurpose,
        refresh_token::{PresentedToken, RefreshSeed},
        scope::{Role, Scope},
    },
    store::{self, Tx, oauth_devices::DeviceState, oauth_grants::GrantParties},
};

const BAD_CODE: &str = "the code is unknown, expired, used or issued to another client, or does \
                        not match code_verifier or redirect_uri";
const BAD_REFRESH: &str = "the refresh token is unknown, expired or revoked";
const BAD_DEVICE_CODE: &str = "the device code is unknown, used or issued to another client";

/// The tokens of a successful response (RFC 6749, section 5.1).
#[derive(Debug)]
pub struct Tokens {
    /// The access token, a JWT that lives one hour.
    pub access_token: SecretString,
    /// The lifetime of the access token, in seconds.
    pub expires_in: u64,
    /// The scope of the access token.
    pub scope: Scope,
    /// The refresh token, if the client may use one.
    pub refresh_token: Option<SecretString>,
}

/// A token request of an authenticated client.
#[derive(Clone, Copy)]
struct TokenContext<'a> {
    client: &'a Client,
    parameters: &'a Parameters,
    request: &'a Arc<RequestInfo>,
}

/// A user's grant, locked in a transaction of its workspace and user.
pub(super) struct LockedGrant {
    pub(super) tx: Tx,
    pub(super) parties: GrantParties,
    pub(super) grant: GrantState,
    /// The maximum scope of the user's current role; `None` if the user is no longer a member.
    pub(super) role_scope: Option<Scope>,
}

/// The parameters of the tokens to issue.
struct TokenIssuance<'a> {
    parties: GrantParties,
    scope: Scope,
    resources: Vec<String>,
    /// Generation and seed of the refresh token, if the client may have one.
    refresh: Option<(u32, &'a RefreshSeed)>,
}

impl OAuth {
    /// Handles a token request of an authenticated client.
    ///
    /// # Errors
    /// The error codes of RFC 6749, section 5.2 and, for device codes, of RFC 8628, section 3.5.
    pub async fn handle_token_request(
        &self,
        client: &Client,
        parameters: &Parameters,
        request: &Arc<RequestInfo>,
    ) -> Result<Tokens, OAuthError> {
        let name = required_parameter(parameters, "grant_type")?;
        let grant = GrantType::from_name(name).ok_or_else(|| {
            OAuthError::new(
                OAuthErrorCode::UnsupportedGrantType,
                "this grant_type is not supported",
            )
        })?;
        if !client.allows_grant_type(grant) {
            let message = format!("the client is not registered for {}", grant.as_str());
            return Err(OAuthError::new(OAuthErrorCode::UnauthorizedClient, message));
        }
        let context = TokenContext { client, parameters, request };
        match grant {
            GrantType::AuthorizationCode => self.redeem_code(context).await,
            GrantType::RefreshToken => self.refresh(context).await,
            GrantType::ClientCredentials => self.client_credentials_grant(context).await,
            GrantType::DeviceCode => self.redeem_device_code(context).await,
        }
    }

    async fn redeem_code(&self, context: TokenContext<'_>) -> Result<Tokens, OAuthError> {
        let TokenContext { client, parameters, .. } = context;
        let bad = || OAuthError::invalid_grant(BAD_CODE);
        let code = required_parameter(parameters, "code")?;
        let verifier = required_parameter(parameters, "code_verifier")?;
        let id = self.auth.context.token_key.verify(TokenPurpose::AuthorizationCode, code);
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

    /// Handles `grant_type=refresh_token`.
    ///
    /// The refresh token of a public client rotates. The previous token still returns the same
    /// successor until that successor was used, so a client can retry after a lost response at any
    /// time. The token of a confidential client does not rotate, because it is useless without the
    /// client's secret (OAuth 2.1, section 4.3.1).
    async fn refresh(&self, context: TokenContext<'_>) -> Result<Tokens, OAuthError> {
        let TokenContext { client, parameters, .. } = context;
        let bad = || OAuthError::invalid_grant(BAD_REFRESH);
        let token = required_parameter(parameters, "refresh_token")?;
        let token = PresentedToken::<GrantId>::parse(token).ok_or_else(bad)?;
        let opened = self.open_user_grant(token.id()).await?.ok_or_else(bad)?;
        let grant = &opened.grant;
        let generation = token.verify(&self.auth.grant_refresh_key, &grant.seed);
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
        let now = self.env.clock.now();
        let is_active = !grant.is_ended
            && grant.last_used_at.is_some_and(|used| now - used < self.grant_idle_timeout);
        let Some(max_scope) = opened.role_scope.filter(|_| is_active) else {
            return Err(self.record_refusal(context, opened, BAD_REFRESH).await);
        };
        // Reduce an excessive scope instead of refusing it: some clients always request all scopes.
        let max_scope =
            requested_scope(parameters)?.map_or(max_scope, |wanted| wanted.min(max_scope));
        self.issue_from_grant(context, opened, max_scope, Some(next), Action::TokenRefreshed).await
    }

    async fn client_credentials_grant(
        &self,
        context: TokenContext<'_>,
    ) -> Result<Tokens, OAuthError> {
        let TokenContext { client, parameters, .. } = context;
        let workspace = match client.origin {
            ClientOrigin::Workspace(workspace) if client.is_confidential() => workspace,
            _ => {
                let message = "client_credentials requires a workspace client with a secret";
                return Err(OAuthError::new(OAuthErrorCode::UnauthorizedClient, message));
            }
        };
        let scope = client.effective_scope(requested_scope(parameters)?);
        let resources = self.requested_resources(parameters)?;
        let now = self.env.clock.now();
        let new = NewGrant {
            id: self.env.new_id(),
            client_id: client.id,
            workspace_id: workspace,
            granted_by: None,
            scope: client.effective_scope(client.scope),
            resources: self.resources.iter().map(str::to_owned).collect(),
            code: None,
            created_at: now,
            redeem_by: now,
            seed: RefreshSeed::new(self.env.entropy.bytes()),
        };
        let mut tx = self.store.begin(workspace, None).await?;
        let id = store::oauth_grants::get_or_create_own_grant(&mut tx, &new).await?;
        self.charge_token_request(id.uuid())?;
        let parties = GrantParties {
            id,
            client_id: client.id,
            workspace_id: workspace,
            user_id: None,
            lacks_second_factor: false,
        };
        let issuance = TokenIssuance { parties, scope, resources, refresh: None };
        self.issue_tokens(context, tx, issuance, Action::TokenIssued).await
    }

    async fn redeem_device_code(&self, context: TokenContext<'_>) -> Result<Tokens, OAuthError> {
        let bad = || OAuthError::invalid_grant(BAD_DEVICE_CODE);
        let code = required_parameter(context.parameters, "device_code")?;
        let device =
            self.auth.context.token_key.verify(TokenPurpose::DeviceCode, code).ok_or_else(bad)?;
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
        client: &Client,
    ) -> Result<GrantId, OAuthError> {
        let state =
            self.store.poll_device_authorization(device, client.id, self.env.clock.now()).await?;
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

    /// Locks a user's grant in order to issue tokens; `None` if there is no such grant. Charges the
    /// rate limit of the grant.
    async fn open_user_grant(&self, id: GrantId) -> Result<Option<LockedGrant>, OAuthError> {
        let parties = self.store.find_grant_parties(id).await?;
        let parties = parties.filter(|parties| parties.user_id.is_some());
        let Some(parties) = parties else { return Ok(None) };
        self.charge_token_request(id.uuid())?;
        if parties.lacks_second_factor {
            // Temporary: the grant works again after the user has set up a second factor.
            return Err(OAuthError::new(
                OAuthErrorCode::TemporarilyUnavailable,
                "the workspace requires a second factor, which the user must set up first",
            ));
        }
        self.lock_grant(parties).await
    }

    /// Locks a user's grant. Returns `None` if the client holds it for itself, or if it was
    /// deleted.
    pub(super) async fn lock_grant(
        &self,
        parties: GrantParties,
    ) -> Result<Option<LockedGrant>, OAuthError> {
        let Some(user) = parties.user_id else { return Ok(None) };
        let workspace = parties.workspace_id;
        let mut tx = self.store.begin(workspace, Some(user)).await?;
        // Lock order: membership first, then the rows that depend on it.
        let role = store::members::lock_role_for_share(&mut tx, workspace, user).await?;
        let grant = store::oauth_grants::lock(&mut tx, workspace, parties.id).await?;
        Ok(grant.map(|grant| LockedGrant { tx, parties, grant, role_scope: role.map(Role::scope) }))
    }

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
        let named = self.requested_resources(parameters)?;
        if named.iter().all(|named| granted.contains(named)) {
            Ok(named)
        } else {
            Err(unknown_resource())
        }
    }

    /// Issues the first tokens of a grant, unless its deadline has passed.
    async fn issue_first_tokens(
        &self,
        context: TokenContext<'_>,
        opened: LockedGrant,
        bad: &'static str,
    ) -> Result<Tokens, OAuthError> {
        let is_active = !opened.grant.is_ended && self.env.clock.now() < opened.grant.redeem_by;
        let Some(max_scope) = opened.role_scope.filter(|_| is_active) else {
            return Err(self.record_refusal(context, opened, bad).await);
        };
        let refresh = context.client.allows_grant_type(GrantType::RefreshToken).then_some(0);
        self.issue_from_grant(context, opened, max_scope, refresh, Action::TokenIssued).await
    }

    /// Issues tokens of a user's grant, with at most `max_scope`. With a generation, the response
    /// includes that refresh token.
    async fn issue_from_grant(
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
        self.issue_tokens(context, tx, issuance, action).await
    }

    /// Creates tokens and commits the grant's new state together with the audit event.
    async fn issue_tokens(
        &self,
        TokenContext { client, request, .. }: TokenContext<'_>,
        mut tx: Tx,
        TokenIssuance { parties, scope, resources, refresh }: TokenIssuance<'_>,
        action: Action,
    ) -> Result<Tokens, OAuthError> {
        let now = self.env.clock.now();
        let (id, workspace) = (parties.id, parties.workspace_id);
        let generation = refresh.map_or(0, |(generation, _)| generation);
        store::oauth_grants::record_token_issuance(&mut tx, workspace, id, generation, now).await?;
        let event = self
            .client_event(request, workspace, action, client, 200)
            .with_target(id, None)
            .with_metadata(
                json!({ "scope": scope, "user_id": parties.user_id, "resources": resources }),
            );
        store::audit::insert(&mut tx, workspace, &event).await?;
        let access_token = self.auth.token_issuer.issue_grant_token(&GrantTokenParams {
            client_id: &client.client_id(),
            user: parties.user_id,
            workspace,
            grant: id,
            scope,
            resources: &resources,
        })?;
        tx.commit().await?;
        let key = &self.auth.grant_refresh_key;
        Ok(Tokens {
            access_token: access_token.into(),
            expires_in: self.auth.token_issuer.access_token_lifetime().as_secs(),
            scope,
            refresh_token: refresh.map(|(generation, seed)| key.derive(id, generation, seed)),
        })
    }

    /// Records in the audit log that a genuine code or token was refused; returns `invalid_grant`.
    async fn record_refusal(
        &self,
        TokenContext { client, request, .. }: TokenContext<'_>,
        LockedGrant { tx, parties, .. }: LockedGrant,
        why: &'static str,
    ) -> OAuthError {
        // Release the locks before waiting for the audit queue.
        drop(tx);
        let event = self
            .client_event(request, parties.workspace_id, Action::TokenRefused, client, 400)
            .with_target(parties.id, None)
            .with_metadata(json!({ "user_id": parties.user_id, "description": why }));
        match self.auth.context.queue_audit_event(event).await {
            Ok(()) => OAuthError::invalid_grant(why),
            Err(failed) => failed.into(),
        }
    }

    /// Ends a grant whose code or refresh token was reused, on all nodes before it returns.
    async fn end_reused_grant(
        &self,
        TokenContext { client, request, .. }: TokenContext<'_>,
        LockedGrant { mut tx, parties, .. }: LockedGrant,
        reason: GrantEndReason,
    ) -> Result<(), AuthError> {
        let (id, workspace, now) = (parties.id, parties.workspace_id, self.env.clock.now());
        if store::oauth_grants::end(&mut tx, workspace, id, now, reason).await? {
            let event = self
                .client_event(request, workspace, Action::GrantReuseDetected, client, 400)
                .with_target(id, None)
                .with_metadata(reason.audit_metadata(client.id, parties.user_id));
            store::audit::insert(&mut tx, workspace, &event).await?;
        }
        tx.commit().await?;
        Ok(self.auth.context.fence.wait().await?)
    }
}

/// Returns a required parameter, or `invalid_request` if it is missing.
pub(super) fn required_parameter<'a>(
    parameters: &'a Parameters,
    name: &'static str,
) -> Result<&'a str, OAuthError> {
    parameters.get(name).ok_or_else(|| OAuthError::invalid_request(format!("{name} is missing")))
}
