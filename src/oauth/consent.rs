//! Consent: a user authorizes a client for a workspace, which creates a grant.
//!
//! A grant never exceeds the user's own role. The admin scope requires a recent sign-in. The
//! request comes from [`authorize`](super::authorize) or [`device`](super::device); the client
//! redeems the grant in [`token`](super::token).

use secrecy::ExposeSecret;
use serde_json::json;
use time::OffsetDateTime;

use super::{OAuth, OAuthError, OAuthErrorCode, authorize::AuthorizationRequest};
use crate::{
    audit,
    auth::{AuthError, caller::SessionCaller},
    model::{
        audit::Action,
        id::{ClientId, GrantId, Id, UserId, WorkspaceId},
        oauth::{
            client::Client,
            grant::{CODE_LIFETIME, GrantEndReason, NewGrant},
            pkce::CodeChallenge,
            redirect_uri::{self, RedirectUriKind},
        },
        one_time_token::TokenPurpose,
        page::PageRequest,
        principal::Caller,
        refresh_token::RefreshSeed,
        scope::Scope,
        workspace::WorkspaceWithRole,
    },
    store::{self, Tx},
};

/// Maximum number of used grants of one user to one client in one workspace. A further grant ends
/// the oldest one.
const MAX_GRANTS: i64 = 50;

/// Maximum number of workspaces to choose from.
const MAX_CHOICES: i64 = 100;

const SESSION_ENDED: AuthError = AuthError::InvalidCredential("the session has ended");

/// The parameters of a new grant.
pub(super) struct CreateGrantParams<'a> {
    pub(super) client: &'a Client,
    pub(super) scope: Scope,
    pub(super) resources: &'a [String],
    /// The redirect URI and PKCE challenge of the authorization code; `None` in the device flow.
    pub(super) code: Option<(String, CodeChallenge)>,
    /// Deadline for the first token request.
    pub(super) redeem_by: OffsetDateTime,
}

impl OAuth {
    /// Lists the workspaces for which the caller can authorize a client, at most 100.
    ///
    /// # Errors
    /// [`AuthError::Forbidden`] if the caller is not a session.
    pub async fn selectable_workspaces(
        &self,
        caller: &SessionCaller,
    ) -> Result<Vec<WorkspaceWithRole>, OAuthError> {
        let user = caller.user();
        let mut tx = self.store.begin_for_user(user).await?;
        let page = PageRequest { limit: MAX_CHOICES, before: None, offset: 0 };
        Ok(store::workspaces::list_by_user(&mut tx, user, page).await?.items)
    }

    /// Returns true if an earlier grant covers the request, so that no consent page is needed.
    ///
    /// The grant must be in the caller's current workspace, for the same redirect URI and with at
    /// least the requested scope and resources. The redirect URI must lead to a remote web server:
    /// on the user's own machine, any program could receive the code (RFC 8252, section 8.6).
    ///
    /// # Errors
    /// [`OAuthError::Service`] if the query fails.
    pub async fn has_prior_consent(
        &self,
        caller: &SessionCaller,
        request: &AuthorizationRequest,
    ) -> Result<bool, OAuthError> {
        let kind = redirect_uri::validate(&request.redirect_uri, &self.native_schemes);
        let is_remote =
            kind == Ok(RedirectUriKind::Web) && !redirect_uri::is_loopback(&request.redirect_uri);
        if !is_remote || caller.principal.lacks_second_factor {
            return Ok(false);
        }
        let user = caller.user();
        let workspace = caller.workspace();
        let wanted = request.scope.min(caller.principal.scope);
        let mut tx = self.store.begin(workspace, Some(user)).await?;
        let (client, uri) = (request.client.id, &request.redirect_uri);
        let since = self.env.clock.now() - self.grant_idle_timeout;
        let granted =
            store::oauth_grants::list_prior_consents(&mut tx, workspace, user, client, uri, since)
                .await?;
        Ok(granted.iter().any(|(scope, resources)| {
            *scope >= wanted && request.resources.iter().all(|wanted| resources.contains(wanted))
        }))
    }

    /// Returns true if the caller can grant the requested scope without signing in again. The admin
    /// scope requires a recent sign-in.
    ///
    /// # Errors
    /// [`OAuthError::Service`] if the query fails.
    pub async fn can_grant_without_reauthentication(
        &self,
        caller: &Caller,
        request: &AuthorizationRequest,
    ) -> Result<bool, OAuthError> {
        let wanted = request.scope.min(caller.principal.scope);
        Ok(wanted < Scope::Admin || self.auth.passwords.has_reauthenticated(caller, None).await?)
    }

    /// Authorizes a client for a workspace, with at most this scope. Returns the redirect URL with
    /// the authorization code.
    ///
    /// # Errors
    /// [`AuthError::Forbidden`] if the caller is not a member of the workspace, lacks the second
    /// factor that it requires, or grants the admin scope without a recent sign-in.
    pub async fn approve_authorization(
        &self,
        caller: &SessionCaller,
        request: &AuthorizationRequest,
        workspace: WorkspaceId,
        scope: Scope,
    ) -> Result<String, OAuthError> {
        let wanted = CreateGrantParams {
            client: &request.client,
            scope: scope.min(request.scope),
            resources: &request.resources,
            code: Some((request.redirect_uri.clone(), request.challenge)),
            redeem_by: self.env.clock.now() + CODE_LIFETIME,
        };
        let (tx, grant, has_ended) = self.create_grant(caller, workspace, wanted).await?;
        tx.commit().await?;
        if has_ended {
            self.auth.context.fence.wait().await?;
        }
        let code =
            self.auth.context.token_key.derive(TokenPurpose::AuthorizationCode, grant.uuid());
        Ok(self.authorization_response(request).redirect_url(&[("code", code.expose_secret())]))
    }

    /// Denies a request. Returns the redirect URL with the error `access_denied`.
    ///
    /// # Errors
    /// [`OAuthError::Service`] if the query fails.
    pub async fn deny_authorization(
        &self,
        caller: &Caller,
        request: &AuthorizationRequest,
    ) -> Result<String, OAuthError> {
        let mut tx = self.store.begin(caller.workspace(), None).await?;
        self.record_denial(&mut tx, caller, &request.client).await?;
        tx.commit().await?;
        Ok(self.error_redirect_url(
            request,
            OAuthErrorCode::AccessDenied,
            "the user denied the request",
        ))
    }

    /// Records in the audit log that the caller denied a client's request.
    pub(super) async fn record_denial(
        &self,
        tx: &mut Tx,
        caller: &Caller,
        client: &Client,
    ) -> Result<(), OAuthError> {
        let event = audit::event(&self.env, caller, Action::GrantDenied, 303)
            .with_target(client.id, client.name.clone())
            .with_metadata(json!({ "client_id": client.client_id() }));
        Ok(store::audit::insert(tx, caller.workspace(), &event).await?)
    }

    /// Creates a grant with at most the scope of the caller's role. Returns the open transaction,
    /// the grant's id, and true if older grants ended: then wait for the fence after the commit.
    pub(super) async fn create_grant(
        &self,
        caller: &SessionCaller,
        workspace: WorkspaceId,
        wanted: CreateGrantParams<'_>,
    ) -> Result<(Tx, GrantId, bool), OAuthError> {
        let CreateGrantParams { client, scope, resources, code, redeem_by: begin_by } = wanted;
        let (session, user) = (caller.session(), caller.user());
        let is_confirmed =
            scope < Scope::Admin || self.auth.passwords.has_reauthenticated(caller, None).await?;
        let mut tx = self.store.begin(workspace, Some(user)).await?;
        let role = store::members::lock_role_for_share(&mut tx, workspace, user).await?;
        let role = role.ok_or(AuthError::Forbidden("you are not a member of this workspace"))?;
        // The session may have ended since the request was authenticated.
        let is_active = store::sessions::active_since(&mut tx, user, session).await?.is_some();
        if !is_active {
            return Err(SESSION_ENDED.into());
        }
        let scope = scope.min(role.scope());
        if scope == Scope::Admin && !is_confirmed {
            return Err(AuthError::Forbidden(
                "authorizing administrator access requires a recent sign-in: sign in again, then \
                 authorize the app",
            )
            .into());
        }
        let now = self.env.clock.now();
        let client_id = store::oauth_clients::store_metadata_document(&mut tx, client, now).await?;
        let grant = NewGrant {
            id: self.env.new_id(),
            client_id,
            workspace_id: workspace,
            granted_by: Some((user, session)),
            scope,
            resources: resources.to_vec(),
            code,
            created_at: now,
            redeem_by: begin_by,
            seed: RefreshSeed::new(self.env.entropy.bytes()),
        };
        store::oauth_grants::insert(&mut tx, &grant).await?;
        if store::oauth_grants::lacks_second_factor(&mut tx, grant.id).await? {
            return Err(AuthError::Forbidden(
                "this workspace requires a second factor: set one up first",
            )
            .into());
        }
        let ended = self.end_oldest_grants(&mut tx, caller, &grant, user).await?;
        let event =
            audit::event_in_workspace(&self.env, caller, workspace, Action::GrantCreated, 303)
                .with_target(client_id, client.name.clone())
                .with_metadata(json!({
                    "client_id": client.client_id(),
                    "grant_id": grant.id,
                    "scope": grant.scope,
                    "resources": grant.resources,
                    "redirect_uri": grant.code.as_ref().map(|(uri, _)| uri),
                }));
        store::audit::insert(&mut tx, workspace, &event).await?;
        Ok((tx, grant.id, ended))
    }

    /// Ends the user's oldest grants to the same client above the maximum. Returns true if any
    /// ended.
    async fn end_oldest_grants(
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
            let event =
                audit::event_in_workspace(&self.env, caller, workspace, Action::GrantEnded, 303)
                    .with_target(*id, None)
                    .with_metadata(GrantEndReason::Superseded.audit_metadata(client, Some(user)));
            store::audit::insert(tx, workspace, &event).await?;
        }
        Ok(!ended.is_empty())
    }
}
