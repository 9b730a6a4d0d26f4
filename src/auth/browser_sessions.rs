//! Browser sessions: session cookies and CSRF tokens.
//!
//! A cookie is derived from a session id, as the tokens of mailed links are from theirs, so the
//! database holds nothing that opens a session. A cookie's session is read from PostgreSQL on each
//! request and needs no cache invalidation; only [`Auth::authenticate_cookie_from_cache`] uses the
//! cache.

use std::{sync::Arc, time::Duration};

use secrecy::SecretString;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::{Auth, AuthError};
use crate::{
    model::{
        id::{Id, SessionId, WorkspaceId},
        one_time_token::TokenPurpose,
        principal::Principal,
    },
    store::Store,
};

/// Timeout of the query for a cookie's session.
const QUERY_TIMEOUT: Duration = Duration::from_secs(5);

const NOT_SIGNED_IN: AuthError = AuthError::InvalidCredential("sign in first");

/// The subject that a form's CSRF token is bound to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CsrfBinding {
    /// A browser without regard to the user. The browser id is the browser's own claim, so this
    /// must not protect actions of a session.
    Browser(Uuid),
    /// A session, for forms about the user that are valid in any workspace.
    Session(SessionId),
    /// A session in a workspace. The form is rejected after the session has switched to another
    /// workspace, for example in another tab.
    SessionInWorkspace(SessionId, WorkspaceId),
}

impl CsrfBinding {
    fn purpose_and_id(self) -> (TokenPurpose, Uuid) {
        match self {
            Self::Browser(id) => (TokenPurpose::BrowserCsrf, id),
            Self::Session(id) => (TokenPurpose::SessionCsrf, id.uuid()),
            Self::SessionInWorkspace(id, workspace) => {
                let hasher = Sha256::new().chain_update(id.uuid()).chain_update(workspace.uuid());
                let digest: [u8; 32] = hasher.finalize().into();
                let truncated = digest.first_chunk().copied().unwrap_or_default();
                (TokenPurpose::SessionCsrf, Uuid::from_bytes(truncated))
            }
        }
    }
}

impl Auth {
    /// The value of the session cookie.
    #[must_use]
    pub fn session_cookie(&self, session: SessionId) -> SecretString {
        self.token_key.derive(TokenPurpose::SessionCookie, session.uuid())
    }

    /// Authenticates a session cookie, and extends the session's idle time.
    ///
    /// # Errors
    /// [`AuthError::InvalidCredential`] if the session has ended.
    pub async fn authenticate_cookie(&self, cookie: &str) -> Result<Arc<Principal>, AuthError> {
        let id = self.token_key.verify(TokenPurpose::SessionCookie, cookie).ok_or(NOT_SIGNED_IN)?;
        let (id, now) = (SessionId::from(id), self.env.clock.now());
        let lookup = self.store.touch_session(id, now, self.lifetimes.refresh_token);
        let session = Store::with_timeout(QUERY_TIMEOUT, lookup).await?;
        let session = session.ok_or(NOT_SIGNED_IN)?;
        self.session_principal(id, &session).map(Arc::new)
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
        let id = self.token_key.verify(TokenPurpose::SessionCookie, cookie).ok_or(NOT_SIGNED_IN)?;
        let id = SessionId::from(id);
        let session = self.caches.sessions.find(id, began).await?.ok_or(NOT_SIGNED_IN)?;
        self.session_principal(id, &session).map(Arc::new)
    }

    /// The CSRF token of a form. Other sites cannot know it (OWASP, signed double-submit cookie).
    #[must_use]
    pub fn csrf_token(&self, binding: CsrfBinding) -> SecretString {
        let (purpose, id) = binding.purpose_and_id();
        self.token_key.derive(purpose, id)
    }

    /// True if a CSRF token is valid for this binding.
    #[must_use]
    pub fn is_valid_csrf_token(&self, binding: CsrfBinding, token: &str) -> bool {
        let (purpose, id) = binding.purpose_and_id();
        self.token_key.verify(purpose, token) == Some(id)
    }
}
