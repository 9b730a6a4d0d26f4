//! Verification of API keys.
//!
//! Format and checksum are checked first: this costs nothing and rejects most garbage. Then the
//! SHA-256 digest of the whole key is looked up, in memory or in PostgreSQL. The digest of 178
//! random bits cannot be guessed and leaks nothing through timing, so it needs no slow hash.

use std::time::Duration;

use super::{Auth, AuthError, authenticate::Authenticated, caches::KnownKey};
use crate::model::api_key::ApiKeySecret;

impl Auth {
    /// Resolves an API key to its principal, or to its record if it is revoked.
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
