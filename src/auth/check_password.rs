//! Passwords are asked for: at sign-in, and once more of whoever holds an open session, before what cannot
//! be taken back. Guesses are few.

use std::time::Duration;

use secrecy::SecretString;

use super::{Auth, AuthError, password::Verification, recovery::address_of, sessions::own_session};
use crate::{
    model::{audit::RequestInfo, email::Email, password::Password, principal::Caller, user::User},
    store::{self, users::SignIn},
};

/// What is not done without it.
pub(super) const UNCONFIRMED: AuthError =
    AuthError::Forbidden("this takes your password, or a fresh sign-in");

/// For so long after signing in nobody is asked again.
const RECENT: Duration = Duration::from_mins(15);

impl Auth {
    /// The account with an address, if there is one, and whether a password is its. Wrong ones are followed
    /// by longer and longer pauses: by address and by who makes them, so that no stranger keeps the owner
    /// out, and whether or not anybody has the address.
    ///
    /// # Errors
    /// [`AuthError::TooManyAttempts`] during a pause.
    pub(super) async fn verify_password(
        &self,
        email: &Email,
        password: &Password,
        request: &RequestInfo,
    ) -> Result<(Option<SignIn>, Verification), AuthError> {
        let now = self.env.clock.now();
        let (account, pause) = self.store.find_attempt(email, request.ip, now).await?;
        if let Some(pause) = pause.filter(|pause| !pause.is_zero()) {
            // Rounded up: waiting so long is enough.
            return Err(AuthError::TooManyAttempts(pause.as_secs() + 1));
        }
        let hash = account.as_ref().and_then(|account| account.password_hash.clone());
        let verified = self.passwords.verify(password, hash).await?;
        if verified == Verification::Wrong {
            let now = self.env.clock.now();
            self.store.count_wrong_password(email, request.ip, now).await?;
        } else if pause.is_some() {
            self.store.forget_wrong_passwords(email, request.ip).await?;
        }
        Ok((account, verified))
    }

    /// Whether the caller's password is this one; answers its hash.
    ///
    /// # Errors
    /// [`AuthError::Invalid`] where it is not, for the field that held it; those of
    /// [`Self::verify_password`].
    pub(super) async fn check_password(
        &self,
        user: &User,
        field: &'static str,
        password: &Password,
        request: &RequestInfo,
    ) -> Result<SecretString, AuthError> {
        let email = address_of(&user.email)?;
        let (account, verified) = self.verify_password(&email, password, request).await?;
        if verified == Verification::Wrong {
            return Err(AuthError::Invalid { field, reason: format!("{field} is wrong") });
        }
        let hash = account.and_then(|account| account.password_hash);
        hash.ok_or(AuthError::Internal("a verified password has no hash"))
    }

    /// Whether the caller is a person who has just signed in, or gives the password.
    ///
    /// # Errors
    /// [`AuthError::Invalid`] for a wrong password.
    pub(crate) async fn is_confirmed(
        &self,
        caller: &Caller,
        password: Option<&Password>,
    ) -> Result<bool, AuthError> {
        let Ok((session, user)) = own_session(caller) else { return Ok(false) };
        if let Some(password) = password {
            let user = self.person(user).await?;
            self.check_password(&user, "password", password, &caller.request).await?;
            return Ok(true);
        }
        let mut tx = self.store.begin_personal(user).await?;
        let began = store::sessions::created_at(&mut tx, user, session).await?;
        Ok(began.is_some_and(|began| self.env.clock.now() < began + RECENT))
    }
}
