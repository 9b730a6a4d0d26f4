//! Long authorization requests are kept on the server while the user signs in.
//!
//! Otherwise the URL of the sign-in page contains the request, encoded once more. That can be too
//! long for the buffers of a proxy. A request is only kept, and validated again when the user comes
//! back: its id gives no access.

use std::{net::IpAddr, time::Duration};

use uuid::Uuid;

use super::Authorization;
use crate::{
    model::address,
    oauth::OAuthError,
    store::oauth_requests::{KeptRequest, MAX_QUERY},
};

/// The time for which a request is kept: a user may have to wait for an email.
const LIFETIME: Duration = Duration::from_hours(24);

impl Authorization {
    /// Keeps the query of a request and returns its id. `None` if it is too long, or too many
    /// requests are kept.
    ///
    /// # Errors
    /// [`OAuthError::Service`] if the query fails.
    #[tracing::instrument(name = "oauth.authorization.keep_request", level = "debug", skip_all)]
    pub async fn keep_request(&self, query: &str, ip: IpAddr) -> Result<Option<Uuid>, OAuthError> {
        if query.len() > MAX_QUERY {
            return Ok(None);
        }
        let id = Uuid::from_bytes(self.context.env.entropy.bytes());
        let created_at = self.context.env.clock.now();
        let (expires_at, subnet) = (created_at + LIFETIME, address::client_subnet(ip));
        let request = KeptRequest { id, query, created_at, expires_at, subnet };
        Ok(self.context.store.keep_authorization_request(&request).await?.then_some(id))
    }

    /// Returns the query of a kept request; `None` if it is unknown or has expired.
    ///
    /// # Errors
    /// [`OAuthError::Service`] if the query fails.
    #[tracing::instrument(name = "oauth.authorization.kept_request", level = "debug", skip_all)]
    pub async fn kept_request(&self, id: Uuid) -> Result<Option<String>, OAuthError> {
        let now = self.context.env.clock.now();
        Ok(self.context.store.find_authorization_request(id, now).await?)
    }
}
