//! Verification of session cookies, and the principal of a session.
//!
//! A cookie's session is read from PostgreSQL on each request, under the node's lease like other
//! lookups; only [`Authenticator::authenticate_cookie_from_cache`] uses the cache.

use std::{sync::Arc, time::Duration};

use super::Authenticator;
use crate::{
    auth::{
        AuthError, ServiceContext, credential_caches::BindingRecord, sessions::SESSION_ENDED,
        token_issuer::TokenBinding,
    },
    model::{
        id::SessionId,
        principal::{Credential, Principal},
        session::SessionRecord,
        session_cookie::SessionCookie,
    },
    store::{Store, StoreError},
};

/// Timeout of the query for a cookie's session.
const QUERY_TIMEOUT: Duration = Duration::from_secs(5);

const NOT_SIGNED_IN: AuthError = AuthError::InvalidCredential("sign in first");

impl Authenticator {
    /// Authenticates a session cookie, and extends the session's idle time.
    ///
    /// # Errors
    /// [`AuthError::InvalidCredential`] if the session has ended.
    pub async fn authenticate_cookie(&self, cookie: &str) -> Result<Arc<Principal>, AuthError> {
        let cookie = SessionCookie::parse(cookie).ok_or(NOT_SIGNED_IN)?;
        let session = Store::with_timeout(QUERY_TIMEOUT, self.touch_session(&cookie)).await?;
        let session = session.ok_or(NOT_SIGNED_IN)?;
        self.session_principal(cookie.session(), &session).map(Arc::new)
    }

    /// Reads a session on the server of the lease. Any other one may be a primary that was
    /// replaced.
    async fn touch_session(
        &self,
        cookie: &SessionCookie,
    ) -> Result<Option<SessionRecord>, StoreError> {
        let ServiceContext { store, env, .. } = &*self.context;
        let server = store.server().await?;
        self.caches.lease.wait_until_valid(server, &*env.clock).await;
        store.touch_session(server, cookie, env.clock.now(), self.session_idle_timeout).await
    }

    /// Authenticates a session cookie without extending the session, for requests that a page
    /// repeats by itself. Answered from the cache, with the same freshness as an access token.
    /// `began` is the start of the request on the monotonic clock.
    ///
    /// # Errors
    /// As [`Self::authenticate_cookie`].
    pub async fn authenticate_cookie_from_cache(
        &self,
        cookie: &str,
        began: Duration,
    ) -> Result<Arc<Principal>, AuthError> {
        let cookie = SessionCookie::parse(cookie).ok_or(NOT_SIGNED_IN)?;
        let id = cookie.session();
        let record = self.caches.bindings.find(TokenBinding::Session(id), began).await?;
        let Some(BindingRecord::Session(session)) = record else { return Err(NOT_SIGNED_IN) };
        if !session.cookie_digest.matches(cookie.digest()) {
            return Err(NOT_SIGNED_IN);
        }
        self.session_principal(id, &session).map(Arc::new)
    }

    /// The principal of a session, with all rights of the user's role.
    pub(super) fn session_principal(
        &self,
        id: SessionId,
        session: &SessionRecord,
    ) -> Result<Principal, AuthError> {
        if session.is_ended || self.context.env.clock.now() >= session.expires_at {
            return Err(SESSION_ENDED);
        }
        let role = session.role.ok_or(AuthError::InvalidCredential(
            "the user is no longer a member of the workspace",
        ))?;
        Ok(Principal {
            workspace_id: session.workspace_id,
            scope: role.scope(),
            rate_limit_per_minute: session.rate_limit_per_minute,
            lacks_second_factor: session.lacks_second_factor,
            credential: Credential::Session {
                id,
                user_id: session.user_id,
                name: Arc::clone(&session.name),
                role,
                credential_generation: session.credential_generation,
            },
        })
    }
}
