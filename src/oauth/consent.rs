//! Consent: a person lets a client into a workspace, and what that comes to.

use secrecy::ExposeSecret;
use serde_json::json;
use time::OffsetDateTime;

use super::{Code, OAuth, OAuthError, authorize::AuthorizationRequest};
use crate::{
    audit,
    auth::{AuthError, sessions::own_session},
    model::{
        audit::Action,
        id::{ClientId, GrantId, Id, UserId, WorkspaceId},
        oauth::{
            client::Client,
            grant::{CODE_LIFETIME, GrantEnd, NewGrant},
            pkce::CodeChallenge,
            redirect_uri::{self, Kind},
        },
        one_time_token::Purpose,
        page::Page,
        principal::Caller,
        refresh_token::RefreshSeed,
        scope::Scope,
        workspace::OwnWorkspace,
    },
    store::{self, Tx},
};

/// Grants of one person to one client in one workspace that are used at a time; then the oldest ends.
const MAX_GRANTS: i64 = 50;

/// Workspaces that a person chooses among.
const MAX_CHOICES: i64 = 100;

const SESSION_ENDED: AuthError = AuthError::InvalidCredential("the session has ended");

/// What is to be granted.
pub(super) struct Wanted<'a> {
    pub(super) client: &'a Client,
    pub(super) scope: Scope,
    pub(super) resources: &'a [String],
    pub(super) code: Option<(String, CodeChallenge)>,
    pub(super) begin_by: OffsetDateTime,
}

impl OAuth {
    /// The workspaces that a person may let a client into.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn workspaces_to_choose(
        &self,
        caller: &Caller,
    ) -> Result<Vec<OwnWorkspace>, OAuthError> {
        let (_, user) = own_session(caller)?;
        let mut tx = self.store.begin_personal(user).await?;
        let page = Page { limit: MAX_CHOICES, before: None, offset: 0 };
        Ok(store::workspaces::of_person(&mut tx, user, page).await?.items)
    }

    /// Whether the person has let the client do as much before, in the workspace that they are in and by way of
    /// the same redirect URI, and nobody has to be asked: an answer to a program on somebody's machine may be any
    /// program's (RFC 8252, section 8.6).
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn is_remembered(
        &self,
        caller: &Caller,
        request: &AuthorizationRequest,
    ) -> Result<bool, OAuthError> {
        let kind = redirect_uri::check(&request.redirect_uri, &self.native_schemes);
        let is_elsewhere = kind == Ok(Kind::Web) && !redirect_uri::is_here(&request.redirect_uri);
        if !is_elsewhere || caller.principal.lacks_second_factor {
            return Ok(false);
        }
        let (_, user) = own_session(caller)?;
        let workspace = caller.workspace();
        let wanted = request.scope.min(caller.principal.scope);
        let mut tx = self.store.begin(workspace, Some(user)).await?;
        let (client, uri) = (request.client.id, &request.redirect_uri);
        let since = self.env.clock.now() - self.idle;
        let granted =
            store::oauth_grants::remembered(&mut tx, workspace, user, client, uri, since).await?;
        Ok(granted.iter().any(|(scope, resources)| {
            *scope >= wanted && request.resources.iter().all(|wanted| resources.contains(wanted))
        }))
    }

    /// Whether the person may grant as much as a client asks for without signing in anew: who lets something run
    /// the workspace has just shown who they are.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn may_grant(
        &self,
        caller: &Caller,
        request: &AuthorizationRequest,
    ) -> Result<bool, OAuthError> {
        let wanted = request.scope.min(caller.principal.scope);
        Ok(wanted < Scope::Admin || self.auth.is_confirmed(caller, None).await?)
    }

    /// Lets a client into a workspace, to do no more than this; answers where its code is to be sent.
    ///
    /// # Errors
    /// [`AuthError::Forbidden`] where the person may not.
    pub async fn consent(
        &self,
        caller: &Caller,
        request: &AuthorizationRequest,
        workspace: WorkspaceId,
        scope: Scope,
    ) -> Result<String, OAuthError> {
        let wanted = Wanted {
            client: &request.client,
            scope: scope.min(request.scope),
            resources: &request.resources,
            code: Some((request.redirect_uri.clone(), request.challenge)),
            begin_by: self.env.clock.now() + CODE_LIFETIME,
        };
        let (tx, grant, has_ended) = self.let_in(caller, workspace, wanted).await?;
        tx.commit().await?;
        if has_ended {
            self.auth.fence().wait().await?;
        }
        let code = self.auth.token_key().derive(Purpose::AuthorizationCode, grant.uuid());
        Ok(self.answer(request).with(&[("code", code.expose_secret())]))
    }

    /// Does not let a client in; answers where it is to be told.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn deny(
        &self,
        caller: &Caller,
        request: &AuthorizationRequest,
    ) -> Result<String, OAuthError> {
        let mut tx = self.store.begin(caller.workspace(), None).await?;
        self.note_denial(&mut tx, caller, &request.client).await?;
        tx.commit().await?;
        Ok(self.error_answer(request, Code::AccessDenied, "the person did not consent"))
    }

    /// The log tells that somebody did not let a client in.
    pub(super) async fn note_denial(
        &self,
        tx: &mut Tx,
        caller: &Caller,
        client: &Client,
    ) -> Result<(), OAuthError> {
        let event = audit::event(&self.env, caller, Action::GrantDenied, 303)
            .on(client.id, client.name.clone())
            .with(json!({ "client_id": client.client_id() }));
        Ok(store::audit::insert(tx, caller.workspace(), &event).await?)
    }

    /// Makes a grant, in a transaction that is to commit; answers also whether it ended others, which is to be
    /// waited for. Nobody grants above their own role.
    pub(super) async fn let_in(
        &self,
        caller: &Caller,
        workspace: WorkspaceId,
        wanted: Wanted<'_>,
    ) -> Result<(Tx, GrantId, bool), OAuthError> {
        let Wanted { client, scope, resources, code, begin_by } = wanted;
        let (session, user) = own_session(caller)?;
        let is_confirmed = scope < Scope::Admin || self.auth.is_confirmed(caller, None).await?;
        let mut tx = self.store.begin(workspace, Some(user)).await?;
        let role = store::members::pin_role(&mut tx, workspace, user).await?;
        let role = role.ok_or(AuthError::Forbidden("you are no member of this workspace"))?;
        // The cookie was good when the request began.
        let lives = store::sessions::created_at(&mut tx, user, session).await?.is_some();
        if !lives {
            return Err(SESSION_ENDED.into());
        }
        let scope = scope.min(role.scope());
        if scope == Scope::Admin && !is_confirmed {
            return Err(AuthError::Forbidden(
                "who lets something administer a workspace signs in anew before: follow \"Somebody else?\", and sign in",
            )
            .into());
        }
        let now = self.env.clock.now();
        let client_id = store::oauth_clients::store_document(&mut tx, client, now).await?;
        let grant = NewGrant {
            id: self.env.new_id(),
            client_id,
            workspace_id: workspace,
            by: Some((user, session)),
            scope,
            resources: resources.to_vec(),
            code,
            created_at: now,
            begin_by,
            seed: RefreshSeed::new(self.env.entropy.bytes()),
        };
        store::oauth_grants::insert(&mut tx, &grant).await?;
        if store::oauth_grants::lacks_second_factor(&mut tx, grant.id).await? {
            return Err(AuthError::Forbidden(
                "this workspace asks for a second factor: set one up first",
            )
            .into());
        }
        let ended = self.end_excess(&mut tx, caller, &grant, user).await?;
        let event = audit::event_in(&self.env, caller, workspace, Action::GrantCreated, 303)
            .on(client_id, client.name.clone())
            .with(json!({
                "client_id": client.client_id(),
                "grant_id": grant.id,
                "scope": grant.scope,
                "resources": grant.resources,
                "redirect_uri": grant.code.as_ref().map(|(uri, _)| uri),
            }));
        store::audit::insert(&mut tx, workspace, &event).await?;
        Ok((tx, grant.id, ended))
    }

    /// Who lets a client in again and again does not keep all of it.
    async fn end_excess(
        &self,
        tx: &mut Tx,
        caller: &Caller,
        grant: &NewGrant,
        user: UserId,
    ) -> Result<bool, OAuthError> {
        let (workspace, client): (_, ClientId) = (grant.workspace_id, grant.client_id);
        let now = self.env.clock.now();
        let ended =
            store::oauth_grants::end_excess(tx, workspace, user, client, MAX_GRANTS - 1, now)
                .await?;
        for id in &ended {
            let event = audit::event_in(&self.env, caller, workspace, Action::GrantEnded, 303)
                .on(*id, None)
                .with(GrantEnd::Superseded.told(client, Some(user)));
            store::audit::insert(tx, workspace, &event).await?;
        }
        Ok(!ended.is_empty())
    }
}
