//! The authorization request and response (OAuth 2.1, section 4.1), and the user's decision.
//!
//! An error is sent to the client only after its redirect URI was validated; until then it is shown
//! to the user. [`consent`] continues with a valid request.

pub mod consent;
mod request;
mod response;

use std::sync::Arc;

use super::{
    OAuthError, OAuthErrorCode,
    clients::Clients,
    request::{requested_resources, requested_scope},
};
use crate::model::{
    oauth::{
        client::{Client, GrantType},
        parameters::Parameters,
        pkce::CodeChallenge,
        redirect_uri,
        resource::ProtectedResources,
    },
    scope::Scope,
};

use request::parse_prompt;
pub use request::{AuthorizationRequest, Prompt};
pub use response::AuthorizationError;
use response::AuthorizationResponse;

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
    pub async fn validate(
        &self,
        parameters: &Parameters,
    ) -> Result<AuthorizationRequest, AuthorizationError> {
        let (client, redirect_uri) =
            self.resolve_redirect_uri(parameters).await.map_err(AuthorizationError::Page)?;
        let state = parameters.get("state").filter(|_| !parameters.is_repeated("state"));
        let answer =
            AuthorizationResponse { redirect_uri: &redirect_uri, state, issuer: &self.issuer };
        match self.check_request(&client, parameters) {
            Ok((scope, resources, challenge, prompt)) => Ok(AuthorizationRequest {
                state: state.map(str::to_owned),
                issuer: Arc::clone(&self.issuer),
                login_hint: parameters.get("login_hint").map(str::to_owned),
                client,
                redirect_uri,
                scope,
                resources,
                challenge,
                prompt,
            }),
            Err(error) => Err(answer.authorization_error(error)),
        }
    }

    /// Returns the client and the redirect URI of the response. Without a `redirect_uri` parameter
    /// the client must have exactly one redirect URI.
    async fn resolve_redirect_uri(
        &self,
        parameters: &Parameters,
    ) -> Result<(Client, String), OAuthError> {
        for name in ["client_id", "redirect_uri"] {
            if parameters.is_repeated(name) {
                return Err(OAuthError::invalid_request(format!("{name} must not be repeated")));
            }
        }
        let client_id = parameters.get("client_id");
        let client_id =
            client_id.ok_or_else(|| OAuthError::invalid_request("client_id is missing"))?;
        let client = self.clients.resolve(client_id).await?;
        let uri = match (parameters.get("redirect_uri"), client.redirect_uris.as_slice()) {
            (Some(requested), known) => {
                let is_known =
                    known.iter().any(|known| redirect_uri::matches_registered(known, requested));
                is_known.then(|| requested.to_owned())
            }
            (None, [only]) => Some(only.clone()),
            (None, _) => None,
        };
        let uri = uri.ok_or_else(|| {
            OAuthError::invalid_request("redirect_uri is not registered for this client")
        })?;
        Ok((client, uri))
    }

    fn check_request(
        &self,
        client: &Client,
        parameters: &Parameters,
    ) -> Result<(Scope, Vec<String>, CodeChallenge, Prompt), OAuthError> {
        if let Some(fault) = parameters.validation_error() {
            return Err(OAuthError::invalid_request(fault));
        }
        for name in ["request", "request_uri"] {
            if parameters.get(name).is_some() {
                return Err(OAuthError::invalid_request(format!("{name} is not supported")));
            }
        }
        match parameters.get("response_type") {
            Some("code") => {}
            Some(_) => {
                let message = "response_type must be code";
                return Err(OAuthError::new(OAuthErrorCode::UnsupportedResponseType, message));
            }
            None => return Err(OAuthError::invalid_request("response_type is missing")),
        }
        if parameters.get("response_mode").is_some_and(|mode| mode != "query") {
            return Err(OAuthError::invalid_request("response_mode must be query"));
        }
        if !client.allows_grant_type(GrantType::AuthorizationCode) {
            let message = "the client is not registered for authorization_code";
            return Err(OAuthError::new(OAuthErrorCode::UnauthorizedClient, message));
        }
        if parameters.get("code_challenge_method") != Some("S256") {
            return Err(OAuthError::invalid_request("code_challenge_method must be S256"));
        }
        let challenge = parameters.get("code_challenge").and_then(CodeChallenge::parse);
        let challenge = challenge.ok_or_else(|| {
            OAuthError::invalid_request(
                "code_challenge must be a SHA-256 hash in base64url (RFC 7636)",
            )
        })?;
        let scope = client.effective_scope(requested_scope(parameters)?);
        let resources = requested_resources(parameters, &self.resources)?;
        Ok((scope, resources, challenge, parse_prompt(parameters)?))
    }

    /// Returns the validated redirect URI of a request, even if its other parameters are not valid.
    pub async fn validated_redirect_uri(&self, parameters: &Parameters) -> Option<String> {
        self.resolve_redirect_uri(parameters).await.ok().map(|(_, uri)| uri)
    }
}
