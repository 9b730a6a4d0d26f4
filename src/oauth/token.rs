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

/// A token request of a client that has shown who it is.
#[derive(Clone, Copy)]
struct Asked<'a> {
    client: &'a Client,
    parameters: &'a Parameters,
    request: &'a Arc<RequestInfo>,
}

/// A grant of a person, locked in a transaction of both.
pub(super) struct Opened {
    pub(super) tx: Tx,
    pub(super) parties: Parties,
    pub(super) grant: GrantState,
    /// What the person's role is worth now; none: they are no longer a member.
    pub(super) most: Option<Scope>,
}

/// What is to be given.
struct Giving<'a> {
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
        let asked = Asked { client, parameters, request };
        match grant {
            GrantType::AuthorizationCode => self.redeem_code(asked).await,
            GrantType::RefreshToken => self.refresh(asked).await,
            GrantType::ClientCredentials => self.act_for_itself(asked).await,
            GrantType::DeviceCode => self.redeem_device_code(asked).await,
        }
    }

    async fn redeem_code(&self, asked: Asked<'_>) -> Result<Tokens, OAuthError> {
        let Asked { client, parameters, .. } = asked;
        let bad = || OAuthError::grant(BAD_CODE);
        let code = required(parameters, "code")?;
        let verifier = required(parameters, "code_verifier")?;
        let id = self.auth.token_key().verify(Purpose::AuthorizationCode, code);
        let opened = self.open(id.ok_or_else(bad)?.into()).await?.ok_or_else(bad)?;
        let grant = &opened.grant;
        let fits = grant.client_id == client.id
            && grant.code.as_ref().is_some_and(|(redirect_uri, challenge)| {
                // It need not be told again (OAuth 2.1, section 10.2).
                parameters.get("redirect_uri").is_none_or(|told| told == redirect_uri)
                    && challenge.is_met_by(verifier)
            });
        if !fits {
            return Err(self.refuse(asked, opened, BAD_CODE).await);
        }
        if grant.begun_at.is_some() {
            // Whoever has code and verifier has both halves: one of the two who do is a thief.
            self.end_reused(asked, opened, GrantEnd::CodeReuse).await?;
            return Err(bad());
        }
        self.begin_grant(asked, opened, BAD_CODE).await
    }

    /// A public client's token rotates; the one before still gets the same successor until that has been used,
    /// so that a lost answer may be asked for again, whenever that is. A confidential client's stays: it takes
    /// the client's secret too (OAuth 2.1, section 4.3.1).
    async fn refresh(&self, asked: Asked<'_>) -> Result<Tokens, OAuthError> {
        let Asked { client, parameters, .. } = asked;
        let bad = || OAuthError::grant(BAD_REFRESH);
        let token = required(parameters, "refresh_token")?;
        let token = PresentedToken::<GrantId>::parse(token).ok_or_else(bad)?;
        let opened = self.open(token.id()).await?.ok_or_else(bad)?;
        let grant = &opened.grant;
        let generation = token.verify(self.auth.grant_refresh_key(), &grant.seed);
        let generation = generation.ok_or_else(bad)?;
        if grant.client_id != client.id || generation > grant.generation {
            return Err(self.refuse(asked, opened, BAD_REFRESH).await);
        }
        let next = match grant.generation - generation {
            0 if client.is_confidential() => generation,
            0 => generation.saturating_add(1),
            1 => grant.generation,
            _ if grant.ended => return Err(self.refuse(asked, opened, BAD_REFRESH).await),
            _ => {
                self.end_reused(asked, opened, GrantEnd::RefreshReuse).await?;
                return Err(bad());
            }
        };
        let now = self.env.clock.now();
        let lives = !grant.ended && grant.last_used_at.is_some_and(|used| now - used < self.idle);
        let Some(most) = opened.most.filter(|_| lives) else {
            return Err(self.refuse(asked, opened, BAD_REFRESH).await);
        };
        // Whoever asks for more than there is gets what there is: some clients always ask for all.
        let most = scope_of(parameters)?.map_or(most, |wanted| wanted.min(most));
        self.give_granted(asked, opened, most, Some(next), Action::TokenRefreshed).await
    }

    async fn act_for_itself(&self, asked: Asked<'_>) -> Result<Tokens, OAuthError> {
        let Asked { client, parameters, .. } = asked;
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
            id,
            client_id: client.id,
            workspace_id: workspace,
            user_id: None,
            lacks_second_factor: false,
        };
        let giving = Giving { parties, scope, resources, refresh: None };
        self.give(asked, tx, giving, Action::TokenIssued).await
    }

    async fn redeem_device_code(&self, asked: Asked<'_>) -> Result<Tokens, OAuthError> {
        let bad = || OAuthError::grant(BAD_DEVICE_CODE);
        let code = required(asked.parameters, "device_code")?;
        let device = self.auth.token_key().verify(Purpose::DeviceCode, code).ok_or_else(bad)?;
        let id = self.device_answer(device, asked.client).await?;
        let opened = self.open(id).await?.ok_or_else(bad)?;
        if opened.grant.begun_at.is_some() {
            return Err(self.refuse(asked, opened, BAD_DEVICE_CODE).await);
        }
        self.begin_grant(asked, opened, BAD_DEVICE_CODE).await
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

    /// Opens the grant of a person for tokens; none where there is no such grant.
    async fn open(&self, id: GrantId) -> Result<Option<Opened>, OAuthError> {
        let parties = self.store.find_grant(id).await?;
        let parties = parties.filter(|parties| parties.user_id.is_some());
        let Some(parties) = parties else { return Ok(None) };
        self.charge(id.uuid())?;
        if parties.lacks_second_factor {
            // Not the end of it: the person sets a factor up, and it goes on.
            return Err(OAuthError::new(
                Code::TemporarilyUnavailable,
                "the workspace asks for a second factor, which the person has to set up first",
            ));
        }
        self.lock(parties).await
    }

    /// Locks the grant of a person; none where it is the client's own, or gone.
    pub(super) async fn lock(&self, parties: Parties) -> Result<Option<Opened>, OAuthError> {
        let Some(user) = parties.user_id else { return Ok(None) };
        let workspace = parties.workspace_id;
        let mut tx = self.store.begin(workspace, Some(user)).await?;
        // Membership, then what depends on it: everybody locks them in this order.
        let role = store::members::pin_role(&mut tx, workspace, user).await?;
        let grant = store::oauth_grants::lock(&mut tx, workspace, parties.id).await?;
        Ok(grant.map(|grant| Opened { tx, parties, grant, most: role.map(Role::scope) }))
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

    /// Gives the first tokens of a grant, unless it is too late for that.
    async fn begin_grant(
        &self,
        asked: Asked<'_>,
        opened: Opened,
        bad: &'static str,
    ) -> Result<Tokens, OAuthError> {
        let lives = !opened.grant.ended && self.env.clock.now() < opened.grant.begin_by;
        let Some(most) = opened.most.filter(|_| lives) else {
            return Err(self.refuse(asked, opened, bad).await);
        };
        let refresh = asked.client.may(GrantType::RefreshToken).then_some(0);
        self.give_granted(asked, opened, most, refresh, Action::TokenIssued).await
    }

    /// Gives tokens of a person's grant, for no more than `most`; with the refresh token of a generation.
    async fn give_granted(
        &self,
        asked: Asked<'_>,
        Opened { tx, parties, grant, .. }: Opened,
        most: Scope,
        generation: Option<u32>,
        action: Action,
    ) -> Result<Tokens, OAuthError> {
        let giving = Giving {
            parties,
            scope: grant.scope.min(most),
            resources: self.resources_left(&grant.resources, asked.parameters)?,
            refresh: generation.map(|generation| (generation, &grant.seed)),
        };
        self.give(asked, tx, giving, action).await
    }

    /// Makes tokens, and commits that it did.
    async fn give(
        &self,
        Asked { client, request, .. }: Asked<'_>,
        mut tx: Tx,
        Giving { parties, scope, resources, refresh }: Giving<'_>,
        action: Action,
    ) -> Result<Tokens, OAuthError> {
        let now = self.env.clock.now();
        let (id, workspace) = (parties.id, parties.workspace_id);
        let generation = refresh.map_or(0, |(generation, _)| generation);
        store::oauth_grants::note_tokens(&mut tx, workspace, id, generation, now).await?;
        let event = self
            .event(request, workspace, action, client, 200)
            .on(id, None)
            .with(json!({ "scope": scope, "user_id": parties.user_id, "resources": resources }));
        store::audit::insert(&mut tx, workspace, &event).await?;
        let access_token = self.auth.issue_granted_token(&GrantedToken {
            client_id: &client.client_id(),
            person: parties.user_id,
            workspace,
            grant: id,
            scope,
            resources: &resources,
        })?;
        tx.commit().await?;
        let key = self.auth.grant_refresh_key();
        Ok(Tokens {
            access_token: access_token.into(),
            expires_in: self.auth.access_token_lifetime().as_secs(),
            scope,
            refresh_token: refresh.map(|(generation, seed)| key.derive(id, generation, seed)),
        })
    }

    /// The log tells that something genuine was worth nothing.
    async fn refuse(
        &self,
        Asked { client, request, .. }: Asked<'_>,
        Opened { tx, parties, .. }: Opened,
        why: &'static str,
    ) -> OAuthError {
        // Before the log is waited for, nothing is to be locked.
        drop(tx);
        let event = self
            .event(request, parties.workspace_id, Action::TokenRefused, client, 400)
            .on(parties.id, None)
            .with(json!({ "user_id": parties.user_id, "description": why }));
        match self.auth.note(event).await {
            Ok(()) => OAuthError::grant(why),
            Err(failed) => failed.into(),
        }
    }

    /// Ends a grant whose code or refresh token somebody used a second time, at once.
    async fn end_reused(
        &self,
        Asked { client, request, .. }: Asked<'_>,
        Opened { mut tx, parties, .. }: Opened,
        reason: GrantEnd,
    ) -> Result<(), AuthError> {
        let (id, workspace, now) = (parties.id, parties.workspace_id, self.env.clock.now());
        if store::oauth_grants::end(&mut tx, workspace, id, now, reason).await? {
            let event = self
                .event(request, workspace, Action::GrantReuseDetected, client, 400)
                .on(id, None)
                .with(reason.told(client.id, parties.user_id));
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
