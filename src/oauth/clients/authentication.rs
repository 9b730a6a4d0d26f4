//! Client authentication (OAuth 2.1, section 2.4).
//!
//! A confidential client always needs its secret; a public client must not send one.

use std::{ops::Deref, sync::Arc};

use secrecy::{ExposeSecret, SecretString};
use serde_json::json;

use super::Clients;
use crate::{
    auth::{AuthError, ServiceContext},
    model::{
        audit::{Action, Actor, NewEvent, RequestInfo},
        id::WorkspaceId,
        oauth::{
            client::{Client, ClientOrigin, ClientWithSecrets},
            parameters::Parameters,
        },
    },
    oauth::{OAuthError, ProtocolError},
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

/// The id of a client, and the secret that proves it.
#[derive(Debug)]
pub struct ClientCredentials {
    client_id: String,
    secret: Option<SecretString>,
}

impl ClientCredentials {
    /// Reads the credentials of a request: from the `Authorization` header or the parameters. All
    /// parameters of the request are validated first.
    ///
    /// # Errors
    /// `invalid_request` if a parameter is malformed or repeated, or the request uses two
    /// authentication methods; `invalid_client` if it names no client.
    pub fn parse(
        basic: Option<BasicCredentials>,
        parameters: &Parameters,
    ) -> Result<Self, ProtocolError> {
        if let Some(fault) = parameters.validation_error() {
            return Err(ProtocolError::invalid_request(fault));
        }
        let (named, posted) = (parameters.get("client_id"), parameters.get("client_secret"));
        match (basic, named, posted) {
            (Some(_), _, Some(_)) => Err(ProtocolError::invalid_request(
                "send the client secret either in the Authorization header or in the body",
            )),
            (Some(basic), Some(named), None) if basic.client_id != named => {
                Err(ProtocolError::invalid_request("client_id and the Authorization header differ"))
            }
            (Some(BasicCredentials { client_id, secret }), _, None) => {
                // An empty secret in the header counts as absent, like an empty parameter.
                let secret = Some(secret).filter(|secret| !secret.expose_secret().is_empty());
                Ok(Self { client_id, secret })
            }
            (None, Some(named), posted) => {
                Ok(Self { client_id: named.to_owned(), secret: posted.map(Into::into) })
            }
            (None, None, _) => Err(ProtocolError::invalid_client("client_id is missing")),
        }
    }
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
    /// `invalid_client` if the client is unknown or authentication fails.
    #[tracing::instrument(
        name = "oauth.clients.authenticate",
        level = "debug",
        skip_all,
        fields(request = %request.id),
        err(level = "debug")
    )]
    pub async fn authenticate(
        &self,
        credentials: &ClientCredentials,
        request: &Arc<RequestInfo>,
    ) -> Result<AuthenticatedClient, OAuthError> {
        let known = self.find(&credentials.client_id).await?;
        let secret = credentials.secret.as_ref().map(ExposeSecret::expose_secret);
        if let Err(why) = verify_secret(&known, secret) {
            self.record_rejection(&known.client, request).await?;
            return Err(ProtocolError::invalid_client(why).into());
        }
        Ok(AuthenticatedClient { client: known.client, request: Arc::clone(request) })
    }

    /// Records a request of a client that has proved its identity, in the audit log of its
    /// workspace. A client that registered itself has none: its request is recorded in that of the
    /// token, if it concerns one. `status` is the status of the response.
    ///
    /// Nothing is recorded while the client exceeds the rate limit of a credential, so that a flood
    /// does not fill the log.
    ///
    /// # Errors
    /// [`AuthError::AuditQueueFull`] if the event cannot be recorded.
    pub async fn record_request(
        &self,
        client: &AuthenticatedClient,
        token_workspace: Option<WorkspaceId>,
        status: u16,
    ) -> Result<(), OAuthError> {
        let workspace = match client.origin {
            ClientOrigin::Workspace(workspace) => Some(workspace),
            ClientOrigin::SelfRegistered | ClientOrigin::MetadataDocument(_) => token_workspace,
        };
        let Some(workspace) = workspace.filter(|_| client.is_confidential()) else {
            return Ok(());
        };
        if !self.limits.charge_client_event(client.id).allowed {
            return Ok(());
        }
        let permit = self.context.audit.reserve().await.ok_or(AuthError::AuditQueueFull)?;
        let event = client.audit_event(&self.context, workspace, Action::Request, status);
        if !permit.record(event).await {
            return Err(AuthError::AuditQueueFull.into());
        }
        Ok(())
    }

    /// Records failed client authentication in the audit log of the client's workspace. Nothing is
    /// recorded while the address exceeds its rate limit. Above a rate of the client over all
    /// addresses, rejections are only counted, so that a flood does not fill the log.
    async fn record_rejection(
        &self,
        client: &Client,
        request: &Arc<RequestInfo>,
    ) -> Result<(), OAuthError> {
        let ClientOrigin::Workspace(workspace) = client.origin else { return Ok(()) };
        if !self.limits.peek_address(request.ip).await.allowed {
            return Ok(());
        }
        if !self.limits.charge_client_rejection(client.id).allowed {
            self.unrecorded.count(client.id);
            return Ok(());
        }
        let mut event = self
            .context
            .audit_event(request, workspace, Action::ClientRejected, Actor::anonymous(), 401)
            .with_target(client.id, client.name.clone());
        let unrecorded = self.unrecorded.take(client.id);
        if unrecorded > 0 {
            event = event.with_metadata(json!({ "unrecorded": unrecorded }));
        }
        Ok(self.context.queue_audit_event(event).await?)
    }
}

/// Verifies the secret of a client. The error is for the developer of the client.
fn verify_secret(known: &ClientWithSecrets, secret: Option<&str>) -> Result<(), &'static str> {
    match (known.client.is_confidential(), secret) {
        (true, Some(secret)) if known.has_secret(secret) => Ok(()),
        (true, Some(_)) => Err("the client secret is wrong"),
        (true, None) => Err("the client secret is missing"),
        (false, Some(_)) => Err("the client has no secret: do not send one"),
        (false, None) => Ok(()),
    }
}
