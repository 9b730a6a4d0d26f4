//! Whoever holds an open session shows once more who they are, before what cannot be taken back.

use std::time::Duration;

use secrecy::SecretString;

use super::{Auth, AuthError, password::Verification, sessions::own_session};
use crate::{
    model::{password::Password, principal::Caller, user::User},
    store,
};

/// What is not done without it.
pub(super) const UNCONFIRMED: AuthError =
    AuthError::Forbidden("this takes your password, or a fresh sign-in");

/// For so long after signing in nobody is asked again.
const RECENT: Duration = Duration::from_mins(15);

impl Auth {
    /// Whether the caller's password is this one; answers its hash.
    ///
    /// # Errors
    /// [`AuthError::Invalid`] where it is not, for the field that held it.
    pub(super) async fn check_password(
        &self,
        user: &User,
        field: &'static str,
        password: &Password,
    ) -> Result<SecretString, AuthError> {
        let account = self.store.find_sign_in(&super::recovery::address_of(&user.email)?).await?;
        let hash = account.and_then(|account| account.password_hash);
        if self.passwords.verify(password, hash.clone()).await? == Verification::Wrong {
            return Err(AuthError::Invalid { field, reason: format!("{field} is wrong") });
        }
        hash.ok_or(AuthError::Internal("a verified password has no hash"))
    }

    /// Whether the caller is a person who has just signed in, or gives the password.
    ///
    /// # Errors
    /// [`AuthError::Invalid`] for a wrong password.
    pub(super) async fn is_confirmed(
        &self,
        caller: &Caller,
        password: Option<&Password>,
    ) -> Result<bool, AuthError> {
        let Ok((session, user)) = own_session(caller) else { return Ok(false) };
        if let Some(password) = password {
            let user = self.person(user).await?;
            self.check_password(&user, "password", password).await?;
            return Ok(true);
        }
        let mut tx = self.store.begin_personal(user).await?;
        let began = store::sessions::created_at(&mut tx, user, session).await?;
        Ok(began.is_some_and(|began| self.env.clock.now() < began + RECENT))
    }
}
