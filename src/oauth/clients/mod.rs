//! Clients: lookup, authentication and registration.
//!
//! Clients come from three sources: [`registration`] (dynamic registration, RFC 7591),
//! [`metadata_documents`] (client ID metadata documents) and [`workspace_clients`] (created by an
//! administrator). [`authentication`] verifies the secret of a client.

pub mod authentication;
pub mod metadata_documents;
pub mod registration;
pub mod workspace_clients;

use super::{OAuth, OAuthError, OAuthErrorCode};
use crate::model::oauth::client::{Client, ClientRef, ClientWithSecrets, parse_client_id};

impl OAuth {
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
    pub(in crate::oauth) async fn resolve_client(
        &self,
        client_id: &str,
    ) -> Result<Client, OAuthError> {
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
