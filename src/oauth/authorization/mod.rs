//! The authorization request and response (OAuth 2.1, section 4.1), and the user's decision.
//!
//! An error is sent to the client only after its redirect URI was validated; until then it is shown
//! to the user. So is the error for a client that the signed-in user has not authorized: anyone can
//! register a client and authorize it with an account of their own, and a redirect to it would be
//! an open redirect. [`consent`] continues with a valid request.

pub mod consent;
mod kept_requests;
mod request;
mod response;

use std::{net::IpAddr, sync::Arc};

use super::{
    OAuthError, OAuthErrorCode, ProtocolError, clients::Clients, request::require_grant_type,
};
use crate::{
    auth::ServiceContext,
    model::{
        id::UserId,
        oauth::{
            client::{Client, ClientOrigin, GrantType},
            pkce::CodeChallenge,
            redirect_uri,
            resource::ProtectedResources,
        },
        scope::Scope,
    },
    store,
};

pub use request::{AuthorizationRequest, Prompt};
use response::ResponseTarget;

/// A valid authorization request: the client is known and the redirect URI belongs to it.
#[derive(Debug)]
pub struct ValidatedRequest {
    /// The client.
    pub client: Client,
    /// The requested scope.
    pub scope: Scope,
    /// The requested resources (RFC 8707).
    pub resources: Vec<String>,
    /// The PKCE challenge, which binds the code to the client that requested it (RFC 7636).
    pub challenge: CodeChallenge,
    /// The requested interaction with the user.
    pub prompt: Prompt,
    /// The email address with which the user probably signs in.
    pub login_hint: Option<String>,
    target: ResponseTarget,
}

impl ValidatedRequest {
    /// Returns the redirect URI of the response.
    #[must_use]
    pub fn redirect_uri(&self) -> &str {
        &self.target.redirect_uri
    }

    /// Returns the redirect URL that carries the user's denial to the client.
    #[must_use]
    pub(in crate::oauth) fn denial_url(&self) -> String {
        self.target.error_url(OAuthErrorCode::AccessDenied, "the user denied the request")
    }
}

/// An error for the client, at its valid redirect URI, without a decision of the user.
#[derive(Debug)]
pub struct ErrorResponse {
    /// The error.
    pub error: ProtocolError,
    /// The redirect URL, which carries the error.
    pub url: String,
    /// The name that the client states.
    pub client_name: String,
    /// True if the browser may be redirected: the signed-in user has authorized the client, or is a
    /// member of the workspace that registered it. Otherwise the user must follow the URL
    /// knowingly.
    pub can_redirect: bool,
}

/// The error of an authorization request that does not lead to the consent page.
#[derive(Debug, thiserror::Error)]
pub enum AuthorizationError {
    /// The redirect URI is unknown or not trusted: show the error to the user.
    #[error(transparent)]
    Page(#[from] OAuthError),
    /// The redirect URI is valid: the error is for the client.
    #[error("{}", .0.error)]
    Response(Box<ErrorResponse>),
}

impl From<ProtocolError> for AuthorizationError {
    /// An error is for the user unless the redirect URI has been validated.
    fn from(error: ProtocolError) -> Self {
        Self::Page(error.into())
    }
}

/// Validates authorization requests.
pub struct Authorization {
    pub(super) context: Arc<ServiceContext>,
    pub(super) clients: Arc<Clients>,
    pub(super) resources: Arc<ProtectedResources>,
    pub(super) issuer: Arc<str>,
}

impl Authorization {
    /// Validates an authorization request of the signed-in user, if there is one, from an address.
    ///
    /// # Errors
    /// [`AuthorizationError::Page`] if the client or its redirect URI is not valid, else
    /// [`AuthorizationError::Response`].
    #[tracing::instrument(
        name = "oauth.authorization.validate",
        level = "debug",
        skip_all,
        err(level = "debug")
    )]
    pub async fn validate(
        &self,
        request: AuthorizationRequest,
        user: Option<UserId>,
        ip: IpAddr,
    ) -> Result<ValidatedRequest, AuthorizationError> {
        let (client, redirect_uri) = self.resolve_redirect_uri(&request, ip).await?;
        let issuer = Arc::clone(&self.issuer);
        let target = ResponseTarget { redirect_uri, state: request.state.clone(), issuer };
        let (scope, resources, challenge, prompt) = match self.check_parameters(&client, &request) {
            Ok(parameters) => parameters,
            Err(error) => {
                let response = self.build_error_response(&client, &target, user, error).await?;
                return Err(AuthorizationError::Response(Box::new(response)));
            }
        };
        let login_hint = request.login_hint;
        Ok(ValidatedRequest { client, scope, resources, challenge, prompt, login_hint, target })
    }

    /// Returns the response to a valid request that cannot be granted without the user.
    ///
    /// # Errors
    /// [`OAuthError::Service`] if the query fails.
    pub async fn error_response(
        &self,
        request: &ValidatedRequest,
        user: Option<UserId>,
        code: OAuthErrorCode,
        description: &'static str,
    ) -> Result<ErrorResponse, OAuthError> {
        let error = ProtocolError::new(code, description);
        self.build_error_response(&request.client, &request.target, user, error).await
    }

    async fn build_error_response(
        &self,
        client: &Client,
        target: &ResponseTarget,
        user: Option<UserId>,
        error: ProtocolError,
    ) -> Result<ErrorResponse, OAuthError> {
        let can_redirect = match user {
            Some(user) => self.is_trusted_by(user, client).await?,
            None => false,
        };
        let url = target.error_url(error.code, &error.description);
        Ok(ErrorResponse { error, url, client_name: client.name.clone(), can_redirect })
    }

    /// True if the user has authorized the client, or is a member of the workspace that registered
    /// it.
    async fn is_trusted_by(&self, user: UserId, client: &Client) -> Result<bool, OAuthError> {
        let workspace = match client.origin {
            ClientOrigin::Workspace(workspace) => Some(workspace),
            ClientOrigin::SelfRegistered | ClientOrigin::MetadataDocument(_) => None,
        };
        let mut tx = self.context.store.begin_for_user(user).await?;
        Ok(store::oauth_grants::is_client_trusted(&mut tx, user, client.id, workspace).await?)
    }

    /// Returns the client and the redirect URI of the response. Without a `redirect_uri` parameter
    /// the client must have exactly one redirect URI.
    async fn resolve_redirect_uri(
        &self,
        request: &AuthorizationRequest,
        ip: IpAddr,
    ) -> Result<(Client, String), OAuthError> {
        let client = self.clients.resolve(&request.client_id, ip).await?;
        let uri = match (&request.redirect_uri, client.redirect_uris.as_slice()) {
            (Some(requested), known) => {
                let is_known =
                    known.iter().any(|known| redirect_uri::matches_registered(known, requested));
                is_known.then(|| requested.clone())
            }
            (None, [only]) => Some(only.clone()),
            (None, _) => None,
        };
        let uri = uri.ok_or_else(|| {
            ProtocolError::invalid_request("redirect_uri is not registered for this client")
        })?;
        Ok((client, uri))
    }

    fn check_parameters(
        &self,
        client: &Client,
        request: &AuthorizationRequest,
    ) -> Result<(Scope, Vec<String>, CodeChallenge, Prompt), ProtocolError> {
        request.support.clone()?;
        require_grant_type(client, GrantType::AuthorizationCode)?;
        let challenge = request.challenge.clone()?;
        let scope = client.effective_scope(request.scope);
        let resources = request.resources.resolve(&self.resources)?;
        Ok((scope, resources, challenge, request.prompt.clone()?))
    }
}
