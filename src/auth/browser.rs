//! People in browsers: a cookie stands for a session, in place of tokens.
//!
//! Like the tokens of mailed links it is derived from an id: the database holds nothing that opens a
//! session. It is looked up in the database each time, so it needs no fence.

use std::{sync::Arc, time::Duration};

use secrecy::SecretString;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::{Auth, AuthError};
use crate::{
    model::{
        id::{Id, SessionId, WorkspaceId},
        one_time_token::Purpose,
        principal::Principal,
    },
    store::Store,
};

/// How long PostgreSQL may take to say whose session it is.
const PATIENCE: Duration = Duration::from_secs(5);

const NO_SESSION: AuthError = AuthError::InvalidCredential("sign in first");

/// Whom a form is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FormOf {
    /// A browser, whoever sits at it. It says itself which it is, so this must not do for a session.
    Browser(Uuid),
    /// A session, for what is about its person, in whatever workspace it is.
    Person(SessionId),
    /// A session in a workspace: what was filled in for one is not to be done in another, which the session has
    /// been taken to since, in another window.
    Session(SessionId, WorkspaceId),
}

impl FormOf {
    fn derived_from(self) -> (Purpose, Uuid) {
        match self {
            Self::Browser(id) => (Purpose::Form, id),
            Self::Person(id) => (Purpose::SessionForm, id.uuid()),
            Self::Session(id, workspace) => {
                let both = Sha256::new().chain_update(id.uuid()).chain_update(workspace.uuid());
                let digest: [u8; 32] = both.finalize().into();
                let short = digest.first_chunk().copied().unwrap_or_default();
                (Purpose::SessionForm, Uuid::from_bytes(short))
            }
        }
    }
}

impl Auth {
    /// What a browser shows for a session.
    #[must_use]
    pub fn cookie_of(&self, session: SessionId) -> SecretString {
        self.token_key.derive(Purpose::Cookie, session.uuid())
    }

    /// Whose cookie this is. The session goes on for being used.
    ///
    /// # Errors
    /// [`AuthError::InvalidCredential`] where the session is over.
    pub async fn authenticate_cookie(&self, cookie: &str) -> Result<Arc<Principal>, AuthError> {
        let id = self.token_key.verify(Purpose::Cookie, cookie).ok_or(NO_SESSION)?;
        let (id, now) = (SessionId::from(id), self.env.clock.now());
        let look = self.store.use_session(id, now, self.lifetimes.refresh_token);
        let session = Store::within(PATIENCE, look).await?;
        let session = session.ok_or(NO_SESSION)?;
        self.person_in(id, &session).map(Arc::new)
    }

    /// The same, of a session that does not go on for being looked at: by whoever asks again and again. As fresh as for
    /// an access token, and answered from memory.
    ///
    /// # Errors
    /// As [`Self::authenticate_cookie`].
    pub async fn look_at_cookie(
        &self,
        cookie: &str,
        began: Duration,
    ) -> Result<Arc<Principal>, AuthError> {
        let id = self.token_key.verify(Purpose::Cookie, cookie).ok_or(NO_SESSION)?;
        let id = SessionId::from(id);
        let session = self.caches.sessions.find(id, began).await?.ok_or(NO_SESSION)?;
        self.person_in(id, &session).map(Arc::new)
    }

    /// What a form holds that was made for somebody: no other site can know it (OWASP, signed double-submit
    /// cookie).
    #[must_use]
    pub fn form_token(&self, of: FormOf) -> SecretString {
        let (purpose, id) = of.derived_from();
        self.token_key.derive(purpose, id)
    }

    /// Whether a form was made for them.
    #[must_use]
    pub fn is_form_of(&self, of: FormOf, token: &str) -> bool {
        let (purpose, id) = of.derived_from();
        self.token_key.verify(purpose, token) == Some(id)
    }
}
