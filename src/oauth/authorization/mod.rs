//! The authorization request and response (OAuth 2.1, section 4.1), and the user's decision.
//!
//! An error is sent to the client only after its redirect URI was validated; until then it is shown
//! to the user. [`consent`] continues with a valid request.

pub mod consent;
mod request;
mod response;

use std::sync::Arc;

use super::{
    OAuthError, OAuthErrorCode, ProtocolError, clients::Clients, request::require_grant_type,
};
use crate::model::{
    oauth::{
        client::{Client, GrantType},
        pkce::CodeChallenge,
        redirect_uri,
        resource::ProtectedResources,
    },
    scope::Scope,
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

    /// Returns the redirect URL that carries an error to the client.
    #[must_use]
    pub fn error_url(&self, code: OAuthErrorCode, description: &str) -> String {
        self.target.error_url(code, description)
    }
}

/// The error of an authorization request that does not lead to the consent page.
#[derive(Debug, thiserror::Error)]
pub enum AuthorizationError {
    /// The redirect URI is unknown or not trusted: show the error to the user.
    #[error(transparent)]
    Page(#[from] OAuthError),
    /// The redirect URI is valid: send the error to the client.
    #[error("{error}")]
    Redirect {
        /// The error.
        error: ProtocolError,
        /// The redirect URL, which carries the error.
        url: String,
    },
}

impl From<ProtocolError> for AuthorizationError {
    /// An error is for the user unless the redirect URI has been validated.
    fn from(error: ProtocolError) -> Self {
        Self::Page(error.into())
    }
}

/// Validates authorization requests.
pub struct Authorization {
    pub(super) clients: Arc<Clients>,
    pub(super) resources: Arc<ProtectedResources>,
    pub(super) issuer: Arc<str>,
}

impl Authorization {
    /// Validates an authorization request.
    ///
    /// # Errors
    /// [`AuthorizationError::Page`] if the client or its redirect URI is not valid, else
    /// [`AuthorizationError::Redirect`].
    #[tracing::instrument(
        name = "oauth.authorization.validate",
        level = "debug",
        skip_all,
        err(level = "debug")
    )]
    pub async fn validate(
        &self,
        request: AuthorizationRequest,
    ) -> Result<ValidatedRequest, AuthorizationError> {
        let (client, redirect_uri) = self.resolve_redirect_uri(&request).await?;
        let issuer = Arc::clone(&self.issuer);
        let target = ResponseTarget { redirect_uri, state: request.state.clone(), issuer };
        let redirect = |error: ProtocolError| {
            let url = target.error_url(error.code, &error.description);
            AuthorizationError::Redirect { error, url }
        };
        let (scope, resources, challenge, prompt) =
            self.check_parameters(&client, &request).map_err(redirect)?;
        let login_hint = request.login_hint;
        Ok(ValidatedRequest { client, scope, resources, challenge, prompt, login_hint, target })
    }

    /// Returns the validated redirect URI of a request, even if its other parameters are not valid.
    #[tracing::instrument(
        name = "oauth.authorization.validated_redirect_uri",
        level = "debug",
        skip_all
    )]
    pub async fn validated_redirect_uri(&self, request: &AuthorizationRequest) -> Option<String> {
        self.resolve_redirect_uri(request).await.ok().map(|(_, uri)| uri)
    }

    /// Returns the client and the redirect URI of the response. Without a `redirect_uri` parameter
    /// the client must have exactly one redirect URI.
    async fn resolve_redirect_uri(
        &self,
        request: &AuthorizationRequest,
    ) -> Result<(Client, String), OAuthError> {
        let client = self.clients.resolve(&request.client_id).await?;
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
        let scope = client.effective_scope(request.scope.known()?);
        let resources = request.resources.resolve(&self.resources)?;
        Ok((scope, resources, challenge, request.prompt.clone()?))
    }
}
