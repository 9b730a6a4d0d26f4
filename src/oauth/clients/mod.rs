//! Clients: lookup, authentication and registration.
//!
//! Clients come from three sources: [`registration`] (dynamic registration, RFC 7591),
//! [`metadata_documents`] (client ID metadata documents) and [`workspace_clients`] (created by an
//! administrator). [`Clients`] finds them, and [`authentication`] verifies their secrets.

pub mod authentication;
pub mod client_metadata;
pub mod metadata_documents;
pub mod registration;
pub mod unknown_clients;
pub mod unrecorded_rejections;
pub mod workspace_clients;

use std::{net::IpAddr, sync::Arc};

use super::OAuthError;
use crate::{
    auth::ServiceContext,
    limit::Limits,
    model::oauth::client::{Client, ClientRef, ClientSecret, ClientWithSecrets, parse_client_id},
};

pub use authentication::{AuthenticatedClient, ClientCredentials};
use metadata_documents::MetadataDocumentFetcher;
use unknown_clients::UnknownClients;
use unrecorded_rejections::UnrecordedRejections;

/// A new client and its secret, which is returned only this once.
#[derive(Debug)]
pub struct RegisteredClient {
    /// The client.
    pub client: Client,
    /// The secret; `None` for a public client.
    pub secret: Option<ClientSecret>,
}

/// Finds and authenticates clients.
pub struct Clients {
    pub(super) context: Arc<ServiceContext>,
    pub(super) limits: Limits,
    pub(super) documents: MetadataDocumentFetcher,
    pub(super) unknown: Arc<UnknownClients>,
    pub(super) unrecorded: UnrecordedRejections,
}

impl Clients {
    /// Finds a stored client: a registered one, a workspace client, or one of a metadata document
    /// that a user has authorized before.
    async fn find(&self, client_id: &str) -> Result<ClientWithSecrets, OAuthError> {
        let client = parse_client_id(client_id).map_err(|_| OAuthError::UnknownClient)?;
        self.look_up(&client).await?.ok_or(OAuthError::UnknownClient)
    }

    /// Looks a client up, unless it did not exist a moment ago.
    async fn look_up(&self, client: &ClientRef) -> Result<Option<ClientWithSecrets>, OAuthError> {
        let clock = &self.context.env.clock;
        // A metadata document is stored by a consent, possibly on another node.
        let ClientRef::Id(id) = client else {
            return Ok(self.context.store.find_client(client, clock.now()).await?);
        };
        let (epoch, started_at) = (self.unknown.epoch(), clock.monotonic());
        if self.unknown.contains(*id, started_at) {
            return Ok(None);
        }
        let known = self.context.store.find_client(client, clock.now()).await?;
        if known.is_none() {
            self.unknown.insert(*id, epoch, started_at);
        }
        Ok(known)
    }

    /// Returns the client of an authorization request: a stored client, or one from its metadata
    /// document, which may be fetched for this request from `ip`.
    ///
    /// # Errors
    /// [`OAuthError::UnknownClient`], or `invalid_client` if its document is not valid.
    pub(in crate::oauth) async fn resolve(
        &self,
        client_id: &str,
        ip: IpAddr,
    ) -> Result<Client, OAuthError> {
        let client = parse_client_id(client_id).map_err(|_| OAuthError::UnknownClient)?;
        let known = self.look_up(&client);
        match &client {
            ClientRef::Id(_) => Ok(known.await?.ok_or(OAuthError::UnknownClient)?.client),
            ClientRef::MetadataDocument(url) => {
                let mut client = self.documents.fetch_client(url, ip).await?;
                // A client that was authorized before keeps its id.
                if let Some(known) = known.await? {
                    client.id = known.client.id;
                }
                Ok(client)
            }
        }
    }
}
