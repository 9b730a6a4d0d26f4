//! The second step of a sign-in: a TOTP code or a recovery code.
//!
//! Attempts are limited: five per challenge, and ten per hour and user. A challenge exists only
//! after a correct password, so a stranger cannot use up a user's attempts.

use std::{sync::Arc, time::Duration};

use secrecy::SecretString;

use crate::{
    auth::{
        AuthError, passwords::parse_stored_email, second_factors::MAX_WRONG_CODES,
        sessions::SessionCredentials, sign_in::SignIn,
    },
    model::{
        audit::RequestInfo,
        id::{UserId, WorkspaceId},
        one_time_token::{BoundTokenPurpose, TokenOwner, unverified_id},
    },
    store::{self, Audited, Tx},
};

/// Lifetime of a sign-in challenge.
const CHALLENGE_LIFETIME: Duration = Duration::from_mins(5);

/// Maximum number of wrong codes of a user within [`PERIOD`].
const MAX_WRONG_CODES_IN_PERIOD: i64 = 10;

const PERIOD: Duration = Duration::from_hours(1);

/// The error for an invalid challenge token. It does not say what is wrong.
const SIGN_IN_AGAIN: AuthError = AuthError::InvalidSecondFactor("sign in again, then enter a code");

const WRONG_CODE: AuthError = AuthError::InvalidSecondFactor("the code is wrong");

impl SignIn {
    /// Stores a challenge for a sign-in that requires a code, and returns its token.
    pub(in crate::auth) async fn create_mfa_challenge(
        &self,
        tx: &mut Tx,
        user: UserId,
        wanted: Option<WorkspaceId>,
    ) -> Result<SecretString, AuthError> {
        let (id, now) = (self.context.env.new_uuid(), self.context.env.clock.now());
        let expires_at = now + CHALLENGE_LIFETIME;
        store::second_factor::insert_challenge(tx, user, id, wanted, now, expires_at).await?;
        let owner = TokenOwner::User(user);
        Ok(self.context.token_key.derive_for(owner, BoundTokenPurpose::SecondFactor, id))
    }

    /// Completes a sign-in with a TOTP code or a recovery code.
    ///
    /// # Errors
    /// [`AuthError::InvalidSecondFactor`] for a wrong code or an invalid token;
    /// [`AuthError::TooManyAttempts`] after too many wrong codes.
    #[tracing::instrument(
        name = "auth.sign_in.complete_mfa_challenge",
        level = "debug",
        skip_all,
        err(level = "debug")
    )]
    pub async fn complete_mfa_challenge(
        &self,
        token: &str,
        code: &str,
        request: &Arc<RequestInfo>,
    ) -> Result<SessionCredentials, AuthError> {
        let id = unverified_id(token).ok_or(SIGN_IN_AGAIN)?;
        let user_id = self.context.store.find_mfa_challenge_user(id).await?.ok_or(SIGN_IN_AGAIN)?;
        let (owner, purpose) = (TokenOwner::User(user_id), BoundTokenPurpose::SecondFactor);
        let id = self.context.token_key.verify_for(owner, purpose, token).ok_or(SIGN_IN_AGAIN)?;
        let user = self.context.user(user_id).await?;
        let account = self.context.store.find_account(&parse_stored_email(&user.email)?).await?;
        let account = account.ok_or(SIGN_IN_AGAIN)?;
        let now = self.context.env.clock.now();
        let mut tx = self.context.store.begin_for_user(user_id).await?;
        // Lock the user's row first, as a password change does. It also serializes all attempts of
        // a user across challenges, so that they cannot exceed the limit together.
        store::users::lock(&mut tx, user_id).await?.ok_or(SIGN_IN_AGAIN)?;
        let factor = store::second_factor::lock(&mut tx, user_id).await?;
        // The challenged app may have been removed since; an unconfirmed new one must not be
        // accepted in its place.
        let factor = factor.filter(|factor| factor.confirmed).ok_or(SIGN_IN_AGAIN)?;
        let challenge = store::second_factor::lock_challenge(&mut tx, user_id, id, now).await?;
        let challenge = challenge
            .filter(|challenge| challenge.wrong_codes < MAX_WRONG_CODES)
            .ok_or(SIGN_IN_AGAIN)?;
        let (wrong, first) =
            store::second_factor::count_wrong_codes(&mut tx, user_id, now - PERIOD).await?;
        if wrong >= MAX_WRONG_CODES_IN_PERIOD {
            let remaining = first.map_or(time::Duration::ZERO, |first| first + PERIOD - now);
            let seconds = u64::try_from(remaining.whole_seconds()).unwrap_or_default() + 1;
            return Err(AuthError::TooManyAttempts(seconds));
        }
        if !self.second_factors.use_code(&mut tx, user_id, &factor, code).await? {
            store::second_factor::record_wrong_code(&mut tx, user_id, id).await?;
            let audited = Audited::exempt("the event is queued after the commit");
            tx.commit(audited).await?.unfenced("a counter, which no node caches");
            self.record_failure(&account, request, "wrong_code", 401).await?;
            return Err(WRONG_CODE);
        }
        store::second_factor::use_challenge(&mut tx, user_id, id, now).await?;
        let (credentials, audited) =
            self.complete(&mut tx, &account, challenge.workspace, request).await?;
        tx.commit(audited).await?.unfenced("a new session, which no node has cached");
        Ok(credentials)
    }
}
