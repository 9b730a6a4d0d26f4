//! Who asks: clients looked up, and how they show who they are (OAuth 2.1, section 2.4).

use std::sync::Arc;

use secrecy::{ExposeSecret, SecretString};

use super::{Code, OAuth, OAuthError};
use crate::model::{
    audit::{Action, Actor, RequestInfo},
    oauth::{
        client::{Client, ClientRef, KnownClient, Origin, parse_client_id},
        parameters::Parameters,
    },
};

/// A client's id and secret from an `Authorization: Basic` header, form-decoded (RFC 6749, section 2.3.1).
#[derive(Debug)]
pub struct BasicCredentials {
    /// Its id.
    pub client_id: String,
    /// Its secret.
    pub secret: SecretString,
}

impl OAuth {
    /// The client that a request to the token endpoint and the like is of, once it has shown who it is. A
    /// public client has nothing to show.
    ///
    /// # Errors
    /// [`Code::InvalidClient`] where it did not, [`Code::InvalidRequest`] where it did so twice.
    pub async fn authenticate_client(
        &self,
        basic: Option<&BasicCredentials>,
        parameters: &Parameters,
        request: &Arc<RequestInfo>,
    ) -> Result<Client, OAuthError> {
        if let Some(fault) = parameters.fault() {
            return Err(OAuthError::request(fault));
        }
        let (named, posted) = (parameters.get("client_id"), parameters.get("client_secret"));
        let (client_id, secret) = match (basic, named, posted) {
            (Some(_), _, Some(_)) => {
                return Err(OAuthError::request(
                    "a client shows its secret in one way, not in two",
                ));
            }
            (Some(basic), Some(named), None) if basic.client_id != named => {
                return Err(OAuthError::request("client_id and the Authorization header differ"));
            }
            (Some(basic), _, None) => (&*basic.client_id, Some(basic.secret.expose_secret())),
            (None, Some(named), posted) => (named, posted),
            (None, None, _) => return Err(refused("there is no client_id")),
        };
        let known = self.known_client(client_id).await?;
        let KnownClient { client, .. } = &known;
        let why = match secret.filter(|secret| !secret.is_empty()) {
            Some(secret) if client.is_confidential() && known.has(secret) => {
                return Ok(known.client);
            }
            None if !client.is_confidential() => return Ok(known.client),
            Some(_) if client.is_confidential() => "the client secret is wrong",
            Some(_) => "the client has no secret",
            None => "the client has to show its secret",
        };
        self.note_rejection(client, request).await?;
        Err(refused(why))
    }

    /// The log of a client's workspace tells that somebody used its name; unless they do so in a flood.
    async fn note_rejection(
        &self,
        client: &Client,
        request: &Arc<RequestInfo>,
    ) -> Result<(), OAuthError> {
        let Origin::Workspace(workspace) = client.origin else { return Ok(()) };
        if !self.limits.look_at_address(request.ip).await.allowed {
            return Ok(());
        }
        let event = self
            .auth
            .witness(request, workspace, Action::ClientRejected, Actor::anonymous(), 401)
            .on(client.id, client.name.clone());
        Ok(self.auth.note(event).await?)
    }

    /// A client that is known here: it registered, was made, or was let in before.
    async fn known_client(&self, client_id: &str) -> Result<KnownClient, OAuthError> {
        let unknown = || refused("there is no such client");
        let client = parse_client_id(client_id).map_err(|_| unknown())?;
        let known = self.store.find_client(&client, self.env.clock.now()).await?;
        known.ok_or_else(unknown)
    }

    /// The client that wants to be let in: one that is known, or that its metadata document tells of now.
    ///
    /// # Errors
    /// [`Code::InvalidClient`] where there is none.
    pub(super) async fn resolve_client(&self, client_id: &str) -> Result<Client, OAuthError> {
        let unknown = || refused("there is no such client");
        let client = parse_client_id(client_id).map_err(|_| unknown())?;
        let known = self.store.find_client(&client, self.env.clock.now());
        match &client {
            ClientRef::Id(_) => Ok(known.await?.ok_or_else(unknown)?.client),
            ClientRef::Document(url) => {
                let mut told = self.documents.find(url).await?;
                // Who was let in before keeps its id.
                if let Some(known) = known.await? {
                    told.id = known.client.id;
                }
                Ok(told)
            }
        }
    }
}

fn refused(description: &'static str) -> OAuthError {
    OAuthError::new(Code::InvalidClient, description)
}
