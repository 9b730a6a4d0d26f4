//! Client authentication (OAuth 2.1, section 2.4).
//!
//! A confidential client always needs its secret; a public client must not send one.

use std::{ops::Deref, sync::Arc};

use secrecy::{ExposeSecret, SecretString};

use super::{Clients, invalid_client};
use crate::{
    auth::ServiceContext,
    model::{
        audit::{Action, Actor, NewEvent, RequestInfo},
        id::WorkspaceId,
        oauth::{
            client::{Client, ClientOrigin, ClientWithSecrets},
            parameters::Parameters,
        },
    },
    oauth::OAuthError,
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

/// A client that has proved its identity, or a public client that named itself, in a request.
///
/// Only [`Clients::authenticate`] creates it, so a value proves that the check ran.
#[derive(Debug)]
pub struct AuthenticatedClient {
    client: Client,
    request: Arc<RequestInfo>,
}

impl Deref for AuthenticatedClient {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl AuthenticatedClient {
    /// The request with which the client authenticated.
    pub(in crate::oauth) fn request(&self) -> &RequestInfo {
        &self.request
    }

    /// Creates an audit event whose actor is the client; `status` is that of the response.
    pub(in crate::oauth) fn audit_event(
        &self,
        context: &ServiceContext,
        workspace: WorkspaceId,
        action: Action,
        status: u16,
    ) -> NewEvent {
        let actor = Actor::client(self.client.id, &self.client.name);
        context.audit_event(&self.request, workspace, action, actor, status)
    }
}

impl Clients {
    /// Authenticates the client of a request to the token endpoint and similar endpoints. A public
    /// client only names itself.
    ///
    /// # Errors
    /// [`InvalidClient`](crate::oauth::OAuthErrorCode::InvalidClient) if authentication fails,
    /// [`InvalidRequest`](crate::oauth::OAuthErrorCode::InvalidRequest) if the request uses two
    /// authentication methods.
    pub async fn authenticate(
        &self,
        basic: Option<&BasicCredentials>,
        parameters: &Parameters,
        request: &Arc<RequestInfo>,
    ) -> Result<AuthenticatedClient, OAuthError> {
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
        let known = self.find(client_id).await?;
        let ClientWithSecrets { client, .. } = &known;
        let is_confidential = client.is_confidential();
        let why = match secret.filter(|secret| !secret.is_empty()) {
            Some(secret) if is_confidential && known.has_secret(secret) => {
                return Ok(AuthenticatedClient { client: known.client, request: request.clone() });
            }
            None if !is_confidential => {
                return Ok(AuthenticatedClient { client: known.client, request: request.clone() });
            }
            Some(_) if is_confidential => "the client secret is wrong",
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
            .context
            .audit_event(request, workspace, Action::ClientRejected, Actor::anonymous(), 401)
            .with_target(client.id, client.name.clone());
        Ok(self.context.queue_audit_event(event).await?)
    }
}
