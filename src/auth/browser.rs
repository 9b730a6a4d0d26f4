//! People in browsers: a cookie stands for a session, in place of tokens.
//!
//! Like the tokens of mailed links it is derived from an id: the database holds nothing that opens a
//! session. It is looked up in the database each time, so it needs no fence.

use std::sync::Arc;

use secrecy::SecretString;
use uuid::Uuid;

use super::{Auth, AuthError};
use crate::model::{
    id::{Id, SessionId},
    one_time_token::Purpose,
    principal::Principal,
};

const NO_SESSION: AuthError = AuthError::InvalidCredential("sign in first");

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
        let session = self.store.use_session(id, now, self.lifetimes.refresh_token).await?;
        let session = session.ok_or(NO_SESSION)?;
        self.person_in(id, &session).map(Arc::new)
    }

    /// What a form holds that was made for a browser, or for one of its sessions: no other site can know
    /// it (OWASP, signed double-submit cookie).
    #[must_use]
    pub fn form_token(&self, browser: Uuid) -> SecretString {
        self.token_key.derive(Purpose::Form, browser)
    }

    /// Whether a form was made for this browser.
    #[must_use]
    pub fn is_form_of(&self, browser: Uuid, token: &str) -> bool {
        self.token_key.verify(Purpose::Form, token) == Some(browser)
    }
}
