//! A credential becomes a principal.

use std::{sync::Arc, time::Duration};

use super::{Auth, AuthError};
use crate::model::{
    api_key::{KEY_PREFIX, KeyRecord},
    principal::Principal,
};

/// What a credential turned out to be.
#[derive(Debug)]
pub enum Authenticated {
    /// Somebody.
    Principal(Arc<Principal>),
    /// A key that was revoked: refused, in its own workspace's log.
    RevokedKey(Arc<KeyRecord>),
}

impl Auth {
    /// Who bears this credential, the part of the `Authorization` header behind `Bearer`, in a request
    /// that began at this moment of the monotonic clock.
    ///
    /// # Errors
    /// When it is malformed, unknown or expired, or the database that knows is away.
    pub async fn authenticate(
        &self,
        credential: &str,
        began: Duration,
    ) -> Result<Authenticated, AuthError> {
        if credential.starts_with(KEY_PREFIX) {
            return self.verify_key(credential, began).await;
        }
        // A JWS in compact form has three parts (RFC 7515, section 3.1).
        if credential.bytes().filter(|byte| *byte == b'.').count() == 2 {
            return self.verify_jwt(credential, began).await.map(Authenticated::Principal);
        }
        if credential.starts_with("rt_call2me_") {
            return Err(AuthError::InvalidCredential(
                "a refresh token is no access token; exchange it at /v1/auth/refresh",
            ));
        }
        Err(AuthError::InvalidCredential("the credential is malformed"))
    }
}
