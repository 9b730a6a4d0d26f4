//! Client lookup and authentication (OAuth 2.1, section 2.4).
//!
//! A confidential client always needs its secret; a public client must not send one.

use std::sync::Arc;

use secrecy::{ExposeSecret, SecretString};

use super::{OAuth, OAuthError, OAuthErrorCode};
use crate::model::{
    audit::{Action, Actor, RequestInfo},
    oauth::{
        client::{Client, ClientOrigin, ClientRef, ClientWithSecrets, parse_client_id},
        parameters::Parameters,
    },
};

/// A client id and secret from an `Authorization: Basic` header, form-decoded (RFC 6749,
/// section 2.3.1).
#[derive(Debug)]
pub struct BasicCredentials {
    /// The client id.
    pub client_id: String,
    /// The client secret.
    pub secret: SecretString,
}

impl OAuth {
    /// Authenticates the client of a request to the token endpoint and similar endpoints. A public
    /// client only names itself.
    ///
    /// # Errors
    /// [`OAuthErrorCode::InvalidClient`] if authentication fails,
    /// [`OAuthErrorCode::InvalidRequest`] if the request uses two authentication methods.
    pub async fn authenticate_client(
        &self,
        basic: Option<&BasicCredentials>,
        parameters: &Parameters,
        request: &Arc<RequestInfo>,
    ) -> Result<Client, OAuthError> {
        if let Some(fault) = parameters.validation_error() {
            return Err(OAuthError::invalid_request(fault));
        }
        let (named, posted) = (parameters.get("client_id"), parameters.get("client_secret"));
        let (client_id, secret) = match (basic, named, posted) {
            (Some(_), _, Some(_)) => {
                return Err(OAuthError::invalid_request(
                    "send the client secret either in the Authorization header or in the body",
                ));
            }
            (Some(basic), Some(named), None) if basic.client_id != named => {
                return Err(OAuthError::invalid_request(
                    "client_id and the Authorization header differ",
                ));
            }
            (Some(basic), _, None) => (&*basic.client_id, Some(basic.secret.expose_secret())),
            (None, Some(named), posted) => (named, posted),
            (None, None, _) => return Err(invalid_client("client_id is missing")),
        };
        let known = self.find_client(client_id).await?;
        let ClientWithSecrets { client, .. } = &known;
        let why = match secret.filter(|secret| !secret.is_empty()) {
            Some(secret) if client.is_confidential() && known.has_secret(secret) => {
                return Ok(known.client);
            }
            None if !client.is_confidential() => return Ok(known.client),
            Some(_) if client.is_confidential() => "the client secret is wrong",
            Some(_) => "the client has no secret: do not send one",
            None => "the client secret is missing",
        };
        self.record_rejection(client, request).await?;
        Err(invalid_client(why))
    }

    /// Records failed client authentication in the audit log of the client's workspace. Nothing is
    /// recorded while the address exceeds its rate limit, so that a flood does not fill the log.
    async fn record_rejection(
        &self,
        client: &Client,
        request: &Arc<RequestInfo>,
    ) -> Result<(), OAuthError> {
        let ClientOrigin::Workspace(workspace) = client.origin else { return Ok(()) };
        if !self.limits.peek_address(request.ip).await.allowed {
            return Ok(());
        }
        let event = self
            .auth
            .context
            .audit_event(request, workspace, Action::ClientRejected, Actor::anonymous(), 401)
            .with_target(client.id, client.name.clone());
        Ok(self.auth.context.queue_audit_event(event).await?)
    }

    /// Finds a stored client: a registered one, a workspace client, or one of a metadata document
    /// that a user has authorized before.
    async fn find_client(&self, client_id: &str) -> Result<ClientWithSecrets, OAuthError> {
        let unknown = || invalid_client("unknown client");
        let client = parse_client_id(client_id).map_err(|_| unknown())?;
        let known = self.store.find_client(&client, self.env.clock.now()).await?;
        known.ok_or_else(unknown)
    }

    /// Returns the client of an authorization request: a stored client, or one from its metadata
    /// document, which may be fetched for this.
    ///
    /// # Errors
    /// [`OAuthErrorCode::InvalidClient`] if the client is unknown or its document is not valid.
    pub(super) async fn resolve_client(&self, client_id: &str) -> Result<Client, OAuthError> {
        let unknown = || invalid_client("unknown client");
        let client = parse_client_id(client_id).map_err(|_| unknown())?;
        let known = self.store.find_client(&client, self.env.clock.now());
        match &client {
            ClientRef::Id(_) => Ok(known.await?.ok_or_else(unknown)?.client),
            ClientRef::MetadataDocument(url) => {
                let mut client = self.documents.fetch_client(url).await?;
                // A client that was authorized before keeps its id.
                if let Some(known) = known.await? {
                    client.id = known.client.id;
                }
                Ok(client)
            }
        }
    }
}

fn invalid_client(description: &'static str) -> OAuthError {
    OAuthError::new(OAuthErrorCode::InvalidClient, description)
}
