//! Password checks: at sign-in, and again before irreversible actions of an open session.
//!
//! Failed attempts are throttled; see [`Passwords::verify`].

use std::time::Duration;

use secrecy::SecretString;

use crate::{
    auth::{
        AuthError,
        password_hashing::PasswordVerification,
        passwords::{Passwords, parse_stored_email},
    },
    model::{audit::RequestInfo, email::Email, password::Password, principal::Caller, user::User},
    store,
    store::users::SignInAccount,
};

/// A sign-in counts as recent for this long; the password is not required again.
const RECENT_SIGN_IN: Duration = Duration::from_mins(15);

impl Passwords {
    /// Looks up a user by email address and verifies the password.
    ///
    /// Failed attempts cause growing pauses, counted per address and network of the client, so that
    /// a stranger cannot lock the owner out. Unknown addresses are throttled in the same way, so
    /// that they look the same as known ones.
    ///
    /// # Errors
    /// [`AuthError::TooManyAttempts`] during a pause.
    pub(in crate::auth) async fn verify(
        &self,
        email: &Email,
        password: &Password,
        request: &RequestInfo,
    ) -> Result<(Option<SignInAccount>, PasswordVerification), AuthError> {
        let now = self.context.env.clock.now();
        let (account, failed) =
            self.context.store.find_account_and_failed_attempts(email, request.ip).await?;
        let failed = failed.filter(|failed| !failed.are_expired(now));
        let pause = failed.map(|failed| failed.remaining_pause(now)).unwrap_or_default();
        if !pause.is_zero() {
            // Round up, so that waiting this long is enough.
            return Err(AuthError::TooManyAttempts(pause.as_secs() + 1));
        }
        let hash = account.as_ref().and_then(|account| account.password_hash.clone());
        let verified = self.hasher.verify(password, hash).await?;
        if verified == PasswordVerification::Wrong {
            let now = self.context.env.clock.now();
            self.context.store.record_wrong_password(email, request.ip, now).await?;
        } else if failed.is_some() {
            self.context.store.reset_wrong_passwords(email, request.ip).await?;
        }
        Ok((account, verified))
    }

    /// Requires that `password` is the user's password. Returns its hash.
    ///
    /// # Errors
    /// [`AuthError::Invalid`] for `field` if the password is wrong; otherwise as
    /// [`Self::verify`].
    pub(in crate::auth) async fn require(
        &self,
        user: &User,
        field: &'static str,
        password: &Password,
        request: &RequestInfo,
    ) -> Result<SecretString, AuthError> {
        let email = parse_stored_email(&user.email)?;
        let (account, verified) = self.verify(&email, password, request).await?;
        if verified == PasswordVerification::Wrong {
            return Err(AuthError::Invalid { field, reason: format!("{field} is wrong") });
        }
        let hash = account.and_then(|account| account.password_hash);
        hash.ok_or(AuthError::Internal("a verified password has no hash"))
    }

    /// True if the caller is a user session that started recently, or gives the correct password.
    ///
    /// # Errors
    /// [`AuthError::Invalid`] for a wrong password.
    pub(crate) async fn has_reauthenticated(
        &self,
        caller: &Caller,
        password: Option<&Password>,
    ) -> Result<bool, AuthError> {
        let Some((session, user)) = caller.principal.session() else { return Ok(false) };
        if let Some(password) = password {
            let user = self.context.user(user).await?;
            self.require(&user, "password", password, &caller.request).await?;
            return Ok(true);
        }
        let mut tx = self.context.store.begin_for_user(user).await?;
        let created_at = store::sessions::active_since(&mut tx, user, session).await?;
        Ok(created_at
            .is_some_and(|created_at| self.context.env.clock.now() < created_at + RECENT_SIGN_IN))
    }
}
