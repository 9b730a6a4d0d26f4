//! WHERE A KEY IS VERIFIED.
//!
//! Form and checksum first, which cost nothing and turn most garbage away; then the SHA-256 of the
//! whole key is looked up, in memory or in PostgreSQL. A digest of 178 random bits cannot be guessed
//! and leaks nothing by timing.

use std::time::Duration;

use super::{Auth, AuthError, authenticate::Authenticated, caches::KnownKey};
use crate::model::api_key::ApiKeySecret;

impl Auth {
    /// Who bears this API key.
    pub(super) async fn verify_key(
        &self,
        text: &str,
        began: Duration,
    ) -> Result<Authenticated, AuthError> {
        let key = ApiKeySecret::parse(text, &self.environment)?;
        match self.caches.keys.find(key.digest(), began).await? {
            Some(KnownKey::Active(principal)) => Ok(Authenticated::Principal(principal)),
            Some(KnownKey::Revoked(record)) => Ok(Authenticated::RevokedKey(record)),
            None => Err(AuthError::InvalidCredential("the API key is unknown")),
        }
    }
}
