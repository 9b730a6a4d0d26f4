//! Consent: a user authorizes a client for a workspace, which creates a grant.
//!
//! The request comes from [`authorization`](super); the client redeems the grant at the
//! [token endpoint](crate::oauth::token_endpoint).

use secrecy::ExposeSecret;
use serde_json::json;

use super::AuthorizationRequest;
use crate::{
    audit,
    auth::caller::SessionCaller,
    model::{
        audit::Action,
        id::{Id, WorkspaceId},
        oauth::{
            client::Client,
            grant::CODE_LIFETIME,
            redirect_uri::{self, RedirectUriKind},
        },
        one_time_token::TokenPurpose,
        page::PageRequest,
        principal::Caller,
        scope::Scope,
        workspace::WorkspaceWithRole,
    },
    oauth::{OAuth, OAuthError, OAuthErrorCode, grants::CreateGrantParams},
    store::{self, Tx},
};

/// Maximum number of workspaces to choose from.
const MAX_CHOICES: i64 = 100;

impl OAuth {
    /// Lists the workspaces for which the caller can authorize a client, at most 100.
    ///
    /// # Errors
    /// [`OAuthError::Service`] if the query fails.
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
    /// [`AuthError::Forbidden`](crate::auth::AuthError::Forbidden) if the caller is not a member of
    /// the workspace, lacks the second factor that it requires, or grants the admin scope without a
    /// recent sign-in.
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
    pub(in crate::oauth) async fn record_denial(
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
}
