//! Verifies credentials and resolves them to principals: API keys, access tokens and session
//! cookies.

mod access_token;
mod session;

use std::{sync::Arc, time::Duration};

use super::{
    AuthError,
    context::ServiceContext,
    credential_caches::{CachedKey, CredentialCaches},
    signing_keys::SigningKeys,
};
use crate::model::{
    api_key::{ApiKeySecret, Environment, KEY_PREFIX, KeyRecord, KeyStatus},
    principal::Principal,
};

/// The result of verifying a bearer credential.
#[derive(Debug)]
pub enum AuthenticationOutcome {
    /// The credential is valid.
    Principal(Arc<Principal>),
    /// The credential is a disabled or revoked API key. The request must be refused, and the
    /// refusal recorded in the audit log of the key's workspace.
    InactiveKey(Arc<KeyRecord>),
}

/// Returns the reason for which a key that is not active is refused, for clients.
#[must_use]
pub fn inactive_key_reason(status: KeyStatus) -> &'static str {
    match status {
        KeyStatus::Disabled => "the API key is disabled",
        KeyStatus::Active | KeyStatus::Revoked => "the API key has been revoked",
    }
}

/// Verifies credentials and resolves them to principals.
pub struct Authenticator {
    pub(super) context: Arc<ServiceContext>,
    pub(super) caches: CredentialCaches,
    pub(super) environment: Environment,
    pub(super) signing_keys: Arc<SigningKeys>,
    pub(super) session_idle_timeout: Duration,
}

impl Authenticator {
    /// Verifies a bearer credential: an API key or an access token, as it follows `Bearer` in the
    /// `Authorization` header.
    ///
    /// `began` is the start of the request on the monotonic clock; it decides whether cached
    /// records may be used.
    ///
    /// # Errors
    /// [`AuthError::InvalidCredential`], [`AuthError::MalformedApiKey`] or
    /// [`AuthError::TokenExpired`] if the credential is not valid; [`AuthError::Store`] if it
    /// cannot be looked up.
    pub async fn authenticate(
        &self,
        credential: &str,
        began: Duration,
    ) -> Result<AuthenticationOutcome, AuthError> {
        if credential.starts_with(KEY_PREFIX) {
            return self.verify_api_key(credential, began).await;
        }
        // A JWS in compact form has three parts (RFC 7515, section 3.1).
        if credential.bytes().filter(|byte| *byte == b'.').count() == 2 {
            return self
                .verify_access_token(credential, began)
                .await
                .map(AuthenticationOutcome::Principal);
        }
        if credential.starts_with("rt_call2me_") {
            return Err(AuthError::InvalidCredential(
                "this is a refresh token, not an access token; exchange it at /v1/auth/refresh",
            ));
        }
        Err(AuthError::InvalidCredential("the credential is malformed"))
    }

    /// Resolves an API key to its principal, or to its record if it is not active.
    ///
    /// Format and checksum are checked first: this costs nothing and rejects most garbage. Then the
    /// SHA-256 digest of the whole key is looked up, in memory or in PostgreSQL. The digest of 178
    /// random bits cannot be guessed and leaks nothing through timing, so it needs no slow hash.
    async fn verify_api_key(
        &self,
        text: &str,
        began: Duration,
    ) -> Result<AuthenticationOutcome, AuthError> {
        let key = ApiKeySecret::parse(text, &self.environment)?;
        match self.caches.keys.find(key.digest(), began).await? {
            Some(CachedKey::Active(principal)) => Ok(AuthenticationOutcome::Principal(principal)),
            Some(CachedKey::Inactive(record)) => Ok(AuthenticationOutcome::InactiveKey(record)),
            None => Err(AuthError::InvalidCredential("the API key is unknown")),
        }
    }
}
