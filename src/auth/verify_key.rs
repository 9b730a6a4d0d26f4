//! WHERE A KEY IS VERIFIED.
//!
//! Form and checksum first, which cost nothing and turn most garbage away; then the SHA-256 of the
//! whole key is looked up. A digest of 178 random bits cannot be guessed and leaks nothing by timing.

use super::{Auth, AuthError, authenticate::Authenticated};
use crate::model::{
    api_key::ApiKeySecret,
    principal::{Credential, Principal},
};

impl Auth {
    /// Who bears this API key.
    pub(super) async fn verify_key(&self, text: &str) -> Result<Authenticated, AuthError> {
        let key = ApiKeySecret::parse(text, &self.environment)?;
        let record = self
            .store
            .find_api_key(key.digest())
            .await?
            .ok_or(AuthError::InvalidCredential("the API key is unknown"))?;
        if record.revoked {
            return Ok(Authenticated::RevokedKey(record));
        }
        Ok(Authenticated::Principal(Principal {
            workspace_id: record.workspace_id,
            scope: record.scope,
            rate_limit_per_minute: record.rate_limit_per_minute,
            credential: Credential::ApiKey {
                id: record.id,
                name: record.name,
                allowed_ips: record.allowed_ips,
                creator: record.creator,
            },
        }))
    }
}
