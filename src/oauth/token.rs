//! Tokens: for a code, for a refresh token, for a device, and for the client itself (OAuth 2.1, section 3.2).
//!
//! What is worth nothing is `invalid_grant`, and only that: while PostgreSQL is away the answer is a 503, since
//! integration platforms take any other refusal of a refresh for the end of the connection.

use std::sync::Arc;

use secrecy::SecretString;
use serde_json::json;
use uuid::Uuid;

use super::{Code, OAuth, OAuthError, scope_of, unknown_resource};
use crate::{
    auth::{AuthError, verify_jwt::GrantedToken},
    model::{
        audit::{Action, RequestInfo},
        id::{GrantId, Id},
        oauth::{
            client::{Client, GrantType, Origin},
            grant::{GrantEnd, GrantState, NewGrant},
            parameters::{Parameters, RESOURCE},
        },
        one_time_token::Purpose,
        refresh_token::{PresentedToken, RefreshSeed},
        scope::{Role, Scope},
    },
    store::{self, Tx, oauth_devices::DeviceState, oauth_grants::Parties},
};

const BAD_CODE: &str = "the code is unknown, expired, used or another client's, or does not fit code_verifier or redirect_uri";
const BAD_REFRESH: &str = "the refresh token is unknown, expired or revoked";
const BAD_DEVICE_CODE: &str = "the device code is unknown, used or another client's";

/// What a client gets.
#[derive(Debug)]
pub struct Tokens {
    /// For the resource, for an hour.
    pub access_token: SecretString,
    /// Its life, in seconds.
    pub expires_in: u64,
    /// What it may do.
    pub scope: Scope,
    /// For the next ones.
    pub refresh_token: Option<SecretString>,
}

/// A grant that was locked, to give tokens.
struct Giving<'a> {
    client: &'a Client,
    id: GrantId,
    parties: Parties,
    scope: Scope,
    resources: Vec<String>,
    /// The refresh token that goes along, if the client may have one.
    refresh: Option<(u32, &'a RefreshSeed)>,
}

impl OAuth {
    /// Answers a token request of a client that has shown who it is.
    ///
    /// # Errors
    /// As RFC 6749, section 5.2 says; RFC 8628, section 3.5.
    pub async fn token(
        &self,
        client: &Client,
        parameters: &Parameters,
        request: &Arc<RequestInfo>,
    ) -> Result<Tokens, OAuthError> {
        let name = required(parameters, "grant_type")?;
        let grant = GrantType::from_name(name).ok_or_else(|| {
            OAuthError::new(Code::UnsupportedGrantType, "there is no such grant_type here")
        })?;
        if !client.may(grant) {
            let what = format!("the client is not registered for {}", grant.as_str());
            return Err(OAuthError::new(Code::UnauthorizedClient, what));
        }
        match grant {
            GrantType::AuthorizationCode => self.redeem_code(client, parameters, request).await,
            GrantType::RefreshToken => self.refresh(client, parameters, request).await,
            GrantType::ClientCredentials => self.act_for_itself(client, parameters, request).await,
            GrantType::DeviceCode => self.redeem_device_code(client, parameters, request).await,
        }
    }

    async fn redeem_code(
        &self,
        client: &Client,
        parameters: &Parameters,
        request: &Arc<RequestInfo>,
    ) -> Result<Tokens, OAuthError> {
        let bad = || OAuthError::grant(BAD_CODE);
        let code = required(parameters, "code")?;
        let verifier = required(parameters, "code_verifier")?;
        let id = self.auth.token_key().verify(Purpose::AuthorizationCode, code);
        let id = GrantId::from(id.ok_or_else(bad)?);
        let (tx, parties, grant, role) = self.open(id).await?.ok_or_else(bad)?;
        if grant.client_id != client.id {
            return Err(self.refuse(tx, client, parties, id, request, bad()).await);
        }
        let (redirect_uri, challenge) = grant.code.as_ref().ok_or_else(bad)?;
        // It need not be told again (OAuth 2.1, section 10.2).
        let is_told = parameters.get("redirect_uri").is_none_or(|told| told == redirect_uri);
        if !is_told || !challenge.is_met_by(verifier) {
            return Err(self.refuse(tx, client, parties, id, request, bad()).await);
        }
        if grant.begun_at.is_some() {
            // Whoever has code and verifier has both halves: one of the two who do is a thief.
            self.end_reused(tx, client, parties, id, GrantEnd::CodeReuse, request).await?;
            return Err(bad());
        }
        let now = self.env.clock.now();
        let Some(most) = role.filter(|_| !grant.ended && now < grant.begin_by) else {
            return Err(self.refuse(tx, client, parties, id, request, bad()).await);
        };
        let giving = Giving {
            client,
            id,
            parties,
            scope: grant.scope.min(most),
            resources: self.resources_left(&grant.resources, parameters)?,
            refresh: client.may(GrantType::RefreshToken).then_some((0, &grant.seed)),
        };
        self.give(tx, &giving, Action::TokenIssued, request).await
    }

    /// A public client's token rotates; the one before still gets the same successor until that has been used,
    /// so that a lost answer may be asked for again, whenever that is. A confidential client's stays: it takes
    /// the client's secret too (OAuth 2.1, section 4.3.1).
    async fn refresh(
        &self,
        client: &Client,
        parameters: &Parameters,
        request: &Arc<RequestInfo>,
    ) -> Result<Tokens, OAuthError> {
        let bad = || OAuthError::grant(BAD_REFRESH);
        let token = required(parameters, "refresh_token")?;
        let token = PresentedToken::<GrantId>::parse(token).ok_or_else(bad)?;
        let id = token.id();
        let (tx, parties, grant, role) = self.open(id).await?.ok_or_else(bad)?;
        let key = self.auth.grant_refresh_key();
        let generation = token.verify(key, &grant.seed).ok_or_else(bad)?;
        if grant.client_id != client.id || generation > grant.generation {
            return Err(self.refuse(tx, client, parties, id, request, bad()).await);
        }
        let next = match grant.generation - generation {
            0 if client.is_confidential() => generation,
            0 => generation.saturating_add(1),
            1 => grant.generation,
            _ if grant.ended => {
                return Err(self.refuse(tx, client, parties, id, request, bad()).await);
            }
            _ => {
                let reason = GrantEnd::RefreshReuse;
                self.end_reused(tx, client, parties, id, reason, request).await?;
                return Err(bad());
            }
        };
        let now = self.env.clock.now();
        let lives = !grant.ended && grant.last_used_at.is_some_and(|used| now - used < self.idle);
        let Some(most) = role.filter(|_| lives) else {
            return Err(self.refuse(tx, client, parties, id, request, bad()).await);
        };
        // Whoever asks for more than there is gets what there is: some clients always ask for all.
        let asked = scope_of(parameters)?.unwrap_or(Scope::Admin);
        let giving = Giving {
            client,
            id,
            parties,
            scope: grant.scope.min(most).min(asked),
            resources: self.resources_left(&grant.resources, parameters)?,
            refresh: Some((next, &grant.seed)),
        };
        self.give(tx, &giving, Action::TokenRefreshed, request).await
    }

    async fn act_for_itself(
        &self,
        client: &Client,
        parameters: &Parameters,
        request: &Arc<RequestInfo>,
    ) -> Result<Tokens, OAuthError> {
        let workspace = match client.origin {
            Origin::Workspace(workspace) if client.is_confidential() => workspace,
            _ => {
                let what = "the client has no workspace of its own, or no secret";
                return Err(OAuthError::new(Code::UnauthorizedClient, what));
            }
        };
        let scope = client.scope_of(scope_of(parameters)?);
        let resources = self.resources_of(parameters)?;
        let now = self.env.clock.now();
        let new = NewGrant {
            id: self.env.new_id(),
            client_id: client.id,
            workspace_id: workspace,
            by: None,
            scope: client.scope_of(client.scope),
            resources: self.resources.iter().map(str::to_owned).collect(),
            code: None,
            created_at: now,
            begin_by: now,
            seed: RefreshSeed::new(self.env.entropy.bytes()),
        };
        let mut tx = self.store.begin(workspace, None).await?;
        let id = store::oauth_grants::own(&mut tx, &new).await?;
        self.charge(id.uuid())?;
        let parties = Parties {
            client_id: client.id,
            workspace_id: workspace,
            user_id: None,
            lacks_second_factor: false,
        };
        let giving = Giving { client, id, parties, scope, resources, refresh: None };
        self.give(tx, &giving, Action::TokenIssued, request).await
    }

    async fn redeem_device_code(
        &self,
        client: &Client,
        parameters: &Parameters,
        request: &Arc<RequestInfo>,
    ) -> Result<Tokens, OAuthError> {
        let bad = || OAuthError::grant(BAD_DEVICE_CODE);
        let code = required(parameters, "device_code")?;
        let device = self.auth.token_key().verify(Purpose::DeviceCode, code).ok_or_else(bad)?;
        let id = self.device_answer(device, client).await?;
        let (tx, parties, grant, role) = self.open(id).await?.ok_or_else(bad)?;
        let now = self.env.clock.now();
        let is_fresh = grant.begun_at.is_none() && !grant.ended && now < grant.begin_by;
        let Some(most) = role.filter(|_| is_fresh) else { return Err(bad()) };
        let giving = Giving {
            client,
            id,
            parties,
            scope: grant.scope.min(most),
            resources: self.resources_left(&grant.resources, parameters)?,
            refresh: client.may(GrantType::RefreshToken).then_some((0, &grant.seed)),
        };
        self.give(tx, &giving, Action::TokenIssued, request).await
    }

    /// The grant that somebody answered a device with.
    async fn device_answer(&self, device: Uuid, client: &Client) -> Result<GrantId, OAuthError> {
        let state = self.store.poll_device(device, client.id, self.env.clock.now()).await?;
        let (code, why) = match state {
            DeviceState::Approved(grant) => return Ok(grant),
            DeviceState::Unknown => (Code::InvalidGrant, BAD_DEVICE_CODE),
            DeviceState::Expired => (Code::ExpiredToken, "nobody answered in time"),
            DeviceState::Denied => (Code::AccessDenied, "the person did not consent"),
            DeviceState::Pending => (Code::AuthorizationPending, "nobody has answered yet"),
            DeviceState::SlowDown => {
                (Code::SlowDown, "wait five seconds longer between two requests")
            }
        };
        Err(OAuthError::new(code, why))
    }

    /// A grant of a person, locked, in a transaction of both, with the scope that the person's role is worth now;
    /// none is no longer a member.
    async fn open(
        &self,
        id: GrantId,
    ) -> Result<Option<(Tx, Parties, GrantState, Option<Scope>)>, OAuthError> {
        let Some(parties) = self.store.find_grant(id).await? else { return Ok(None) };
        let Some(user) = parties.user_id else { return Ok(None) };
        self.charge(id.uuid())?;
        if parties.lacks_second_factor {
            // Not the end of it: the person sets a factor up, and it goes on.
            return Err(OAuthError::new(
                Code::TemporarilyUnavailable,
                "the workspace asks for a second factor, which the person has to set up first",
            ));
        }
        let workspace = parties.workspace_id;
        let mut tx = self.store.begin(workspace, Some(user)).await?;
        // Membership, then what depends on it: everybody locks them in this order.
        let role = store::members::pin_role(&mut tx, workspace, user).await?;
        let grant = store::oauth_grants::lock(&mut tx, workspace, id).await?;
        Ok(grant.map(|grant| (tx, parties, grant, role.map(Role::scope))))
    }

    /// The resources of a request, which must be among those that were granted; all of these where it names none.
    fn resources_left(
        &self,
        granted: &[String],
        parameters: &Parameters,
    ) -> Result<Vec<String>, OAuthError> {
        if parameters.get(RESOURCE).is_none() {
            return Ok(granted.to_vec());
        }
        let named = self.resources_of(parameters)?;
        if named.iter().all(|named| granted.contains(named)) {
            Ok(named)
        } else {
            Err(unknown_resource())
        }
    }

    /// Makes tokens, and commits that it did.
    async fn give(
        &self,
        mut tx: Tx,
        giving: &Giving<'_>,
        action: Action,
        request: &Arc<RequestInfo>,
    ) -> Result<Tokens, OAuthError> {
        let Giving { client, id, parties, scope, resources, refresh } = giving;
        let now = self.env.clock.now();
        let workspace = parties.workspace_id;
        let generation = refresh.map_or(0, |(generation, _)| generation);
        store::oauth_grants::note_tokens(&mut tx, workspace, *id, generation, now).await?;
        let event = self
            .event(request, workspace, action, client, 200)
            .on(*id, None)
            .with(json!({ "scope": scope, "user_id": parties.user_id, "resources": resources }));
        store::audit::insert(&mut tx, workspace, &event).await?;
        let access_token = self.auth.issue_granted_token(&GrantedToken {
            client_id: &client.client_id(),
            person: parties.user_id,
            workspace,
            grant: *id,
            scope: *scope,
            resources,
        })?;
        tx.commit().await?;
        let key = self.auth.grant_refresh_key();
        Ok(Tokens {
            access_token: access_token.into(),
            expires_in: self.auth.access_token_lifetime().as_secs(),
            scope: *scope,
            refresh_token: refresh.map(|(generation, seed)| key.derive(*id, generation, seed)),
        })
    }

    /// The log tells that something genuine was worth nothing.
    async fn refuse(
        &self,
        tx: Tx,
        client: &Client,
        parties: Parties,
        id: GrantId,
        request: &Arc<RequestInfo>,
        error: OAuthError,
    ) -> OAuthError {
        // Before the log is waited for, nothing is to be locked.
        drop(tx);
        let event = self
            .event(request, parties.workspace_id, Action::TokenRefused, client, 400)
            .on(id, None)
            .with(json!({ "user_id": parties.user_id, "description": error.to_string() }));
        match self.auth.note(event).await {
            Ok(()) => error,
            Err(failed) => failed.into(),
        }
    }

    /// Ends a grant whose code or refresh token somebody used a second time, at once.
    async fn end_reused(
        &self,
        mut tx: Tx,
        client: &Client,
        parties: Parties,
        id: GrantId,
        reason: GrantEnd,
        request: &Arc<RequestInfo>,
    ) -> Result<(), AuthError> {
        let (workspace, now) = (parties.workspace_id, self.env.clock.now());
        if store::oauth_grants::end(&mut tx, workspace, id, now, reason).await? {
            let event = self
                .event(request, workspace, Action::GrantReuseDetected, client, 400)
                .on(id, None)
                .with(json!({ "reason": reason.as_str(), "user_id": parties.user_id }));
            store::audit::insert(&mut tx, workspace, &event).await?;
        }
        tx.commit().await?;
        Ok(self.auth.fence().wait().await?)
    }
}

/// A parameter that must be there.
pub(super) fn required<'a>(
    parameters: &'a Parameters,
    name: &'static str,
) -> Result<&'a str, OAuthError> {
    parameters.get(name).ok_or_else(|| OAuthError::request(format!("there is no {name}")))
}
