//! Password checks: at sign-in, and again before irreversible actions of an open session.
//!
//! Attempts are throttled; see [`Passwords::verify`].

use std::time::Duration;

use secrecy::SecretString;

use crate::{
    auth::{
        AuthError,
        password_hashing::{AccountWork, PasswordVerification},
        passwords::{Passwords, parse_stored_email},
    },
    model::{
        address,
        audit::RequestInfo,
        email::Email,
        mail::{EmailKind, OutgoingEmail},
        password::Password,
        principal::Caller,
        user::User,
    },
    store::{self, sign_in_throttling::SignInState, users::SignInAccount},
};

/// Maximum number of tries to count an attempt while others at the same account are counted.
const MAX_RESERVATIONS: u32 = 10;

/// A sign-in counts as recent for this long; the password is not required again.
const RECENT_SIGN_IN: Duration = Duration::from_mins(15);

impl Passwords {
    /// Looks up a user by email address and verifies the password, one at a time for each account.
    ///
    /// Each attempt is counted before it is verified: by account, where networks from which the
    /// account has signed in before have a budget of their own, and by account and subnet, where
    /// wrong passwords cause growing pauses. So a stranger cannot lock the owner out. Unknown
    /// addresses are throttled in the same way, so that they look the same as known ones.
    ///
    /// # Errors
    /// [`AuthError::TooManyAttempts`] over the limit of the account, or during a pause.
    pub(in crate::auth) async fn verify(
        &self,
        email: &Email,
        password: &Password,
        request: &RequestInfo,
    ) -> Result<(Option<SignInAccount>, PasswordVerification), AuthError> {
        let lookup = self.hasher.lock_account(email, AccountWork::Lookup).await;
        let state = self.context.store.get_sign_in_state(email, request.ip).await?;
        drop(lookup);
        let known_network = state.is_known_network.then(|| address::site_subnet(request.ip));
        let decision = self.context.limits.charge_account(email, known_network).await;
        if !decision.allowed {
            return Err(too_many_attempts(decision.retry_in));
        }
        let work = match known_network {
            Some(_) => AccountWork::Password,
            None => AccountWork::StrangersPassword,
        };
        let _permit = self.hasher.lock_account(email, work).await;
        let state = self.reserve_attempt(email, request).await?;
        let hash = state.account.as_ref().and_then(|account| account.password_hash.clone());
        let verified = self.hasher.verify(password, hash).await?;
        if verified != PasswordVerification::Wrong {
            self.context.store.reset_wrong_passwords(email, request.ip).await?;
        } else if !state.is_known_network {
            self.record_foreign_guess(email, request).await?;
        }
        Ok((state.account, verified))
    }

    /// Counts an attempt if no pause prevents it. Returns the state of the account before it.
    async fn reserve_attempt(
        &self,
        email: &Email,
        request: &RequestInfo,
    ) -> Result<SignInState, AuthError> {
        let store = &self.context.store;
        for _ in 0..MAX_RESERVATIONS {
            let state = store.get_sign_in_state(email, request.ip).await?;
            let clock = &self.context.env.clock;
            let now = clock.now();
            let failed = state.failed.filter(|failed| !failed.are_expired(now));
            let pause = failed.map_or(Duration::ZERO, |failed| {
                failed.remaining_pause(clock.elapsed_since(failed.last_at))
            });
            if !pause.is_zero() {
                return Err(too_many_attempts(pause));
            }
            let count = failed.map_or(0, |failed| failed.count);
            if store.reserve_sign_in_attempt(email, request.ip, count, now).await? {
                return Ok(state);
            }
        }
        // Other nodes count attempts at the same account all the time.
        Err(AuthError::TooManyAttempts(1))
    }

    /// Counts a wrong password from a network that is new to the account. After many of them, the
    /// owner gets an email, at most once a day. It is looked up when the email is sent if the
    /// account exists, so that the response takes the same time for known and unknown addresses.
    async fn record_foreign_guess(
        &self,
        email: &Email,
        request: &RequestInfo,
    ) -> Result<(), AuthError> {
        let now = self.context.env.clock.now();
        if self.context.store.record_foreign_wrong_password(email, now).await? {
            let subject =
                EmailKind::PasswordGuesses { origin: self.context.request_origin(request) };
            let mail = OutgoingEmail { to: email.as_str().to_owned(), subject };
            self.context.store.insert_mail(self.context.env.new_uuid(), &mail).await?;
        }
        Ok(())
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

/// The error for an attempt that is allowed after this pause, rounded up so that waiting this long
/// is enough.
fn too_many_attempts(pause: Duration) -> AuthError {
    AuthError::TooManyAttempts(pause.as_secs() + 1)
}
