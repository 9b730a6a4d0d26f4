//! Verification of API keys.
//!
//! Format and checksum are checked first: this costs nothing and rejects most garbage. Then the
//! SHA-256 digest of the whole key is looked up, in memory or in PostgreSQL. The digest of 178
//! random bits cannot be guessed and leaks nothing through timing, so it needs no slow hash.

use std::time::Duration;

use crate::{
    auth::{
        AuthError,
        authenticator::{AuthenticationOutcome, Authenticator},
        caches::CachedKey,
    },
    model::api_key::ApiKeySecret,
};

impl Authenticator {
    /// Resolves an API key to its principal, or to its record if it is revoked.
    pub(in crate::auth) async fn verify_api_key(
        &self,
        text: &str,
        began: Duration,
    ) -> Result<AuthenticationOutcome, AuthError> {
        let key = ApiKeySecret::parse(text, &self.environment)?;
        match self.caches.keys.find(key.digest(), began).await? {
            Some(CachedKey::Active(principal)) => Ok(AuthenticationOutcome::Principal(principal)),
            Some(CachedKey::Revoked(record)) => Ok(AuthenticationOutcome::RevokedKey(record)),
            None => Err(AuthError::InvalidCredential("the API key is unknown")),
        }
    }
}
