//! Consent: a user authorizes a client for a workspace, which creates a grant.
//!
//! The request comes from [`authorization`](super); the client redeems the grant at the
//! [token endpoint](crate::oauth::token_endpoint).

use std::sync::Arc;

use secrecy::ExposeSecret;

use super::ValidatedRequest;
use crate::{
    auth::{ServiceContext, caller::SessionCaller, passwords::Passwords},
    model::{
        id::{Id, WorkspaceId},
        oauth::{
            grant::{CODE_LIFETIME, GrantFlow},
            redirect_uri,
        },
        one_time_token::TokenPurpose,
        page::PageRequest,
        principal::Caller,
        scope::Scope,
        workspace::WorkspaceWithRole,
    },
    oauth::{
        OAuthError,
        grants::{CreateGrantParams, Grants},
    },
    store,
};

/// Maximum number of workspaces to choose from.
const MAX_CHOICES: i64 = 100;

/// Records the decisions of users about authorization requests.
pub struct Consent {
    pub(in crate::oauth) context: Arc<ServiceContext>,
    pub(in crate::oauth) passwords: Arc<Passwords>,
    pub(in crate::oauth) grants: Arc<Grants>,
}

impl Consent {
    /// Lists the workspaces for which the caller can authorize a client, at most 100.
    ///
    /// # Errors
    /// [`OAuthError::Service`] if the query fails.
    #[tracing::instrument(
        name = "oauth.consent.selectable_workspaces",
        level = "debug",
        skip_all,
        err(level = "debug")
    )]
    pub async fn selectable_workspaces(
        &self,
        caller: &SessionCaller,
    ) -> Result<Vec<WorkspaceWithRole>, OAuthError> {
        let user = caller.user();
        let mut tx = self.context.store.begin_for_user(user).await?;
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
    #[tracing::instrument(
        name = "oauth.consent.has_prior_consent",
        level = "debug",
        skip_all,
        fields(client = %request.client.id),
        err(level = "debug")
    )]
    pub async fn has_prior_consent(
        &self,
        caller: &SessionCaller,
        request: &ValidatedRequest,
    ) -> Result<bool, OAuthError> {
        if !redirect_uri::is_remote(request.redirect_uri()) || caller.principal.lacks_second_factor
        {
            return Ok(false);
        }
        let user = caller.user();
        let workspace = caller.workspace();
        let wanted = request.scope.min(caller.principal.scope);
        let mut tx = self.context.store.begin(workspace, Some(user)).await?;
        let (client, uri) = (request.client.id, request.redirect_uri());
        let since = self.context.env.clock.now() - self.grants.idle_timeout();
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
    #[tracing::instrument(
        name = "oauth.consent.can_grant_without_reauthentication",
        level = "debug",
        skip_all,
        fields(client = %request.client.id),
        err(level = "debug")
    )]
    pub async fn can_grant_without_reauthentication(
        &self,
        caller: &Caller,
        request: &ValidatedRequest,
    ) -> Result<bool, OAuthError> {
        let wanted = request.scope.min(caller.principal.scope);
        Ok(wanted < Scope::Admin || self.passwords.has_reauthenticated(caller, None).await?)
    }

    /// Authorizes a client for a workspace, with at most this scope. Returns the redirect URL with
    /// the authorization code.
    ///
    /// # Errors
    /// [`AuthError::Forbidden`](crate::auth::AuthError::Forbidden) if the caller is not a member of
    /// the workspace, lacks the second factor that it requires, or grants the admin scope without a
    /// recent sign-in.
    #[tracing::instrument(
        name = "oauth.consent.approve",
        level = "debug",
        skip_all,
        fields(client = %request.client.id, %workspace),
        err(level = "debug")
    )]
    pub async fn approve(
        &self,
        caller: &SessionCaller,
        request: &ValidatedRequest,
        workspace: WorkspaceId,
        scope: Scope,
    ) -> Result<String, OAuthError> {
        let wanted = CreateGrantParams {
            client: &request.client,
            scope: scope.min(request.scope),
            resources: &request.resources,
            flow: GrantFlow::AuthorizationCode {
                redirect_uri: request.redirect_uri().to_owned(),
                challenge: request.challenge,
            },
            redeem_by: self.context.env.clock.now() + CODE_LIFETIME,
        };
        let created = self.grants.create(caller, workspace, wanted).await?;
        let grant = self.grants.commit(created).await?;
        let code = self.context.token_key.derive(TokenPurpose::AuthorizationCode, grant.uuid());
        Ok(request.target.code_url(code.expose_secret()))
    }

    /// Denies a request. Returns the redirect URL with the error `access_denied`.
    ///
    /// # Errors
    /// [`OAuthError::Service`] if the query fails.
    #[tracing::instrument(
        name = "oauth.consent.deny",
        level = "debug",
        skip_all,
        fields(client = %request.client.id),
        err(level = "debug")
    )]
    pub async fn deny(
        &self,
        caller: &Caller,
        request: &ValidatedRequest,
    ) -> Result<String, OAuthError> {
        let mut tx = self.context.store.begin_for(caller).await?;
        let audited = self.grants.record_denial(&mut tx, caller, &request.client).await?;
        tx.commit(audited).await?.unfenced("a denial creates no grant");
        Ok(request.denial_url())
    }
}
