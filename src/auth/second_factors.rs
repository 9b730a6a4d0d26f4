//! Authenticator apps (TOTP) and recovery codes: set up, confirm, renew, remove.
//!
//! Attempts are limited: five per challenge, and ten per hour and user. A challenge exists only
//! after a correct password, so a stranger cannot use up a user's attempts.

use std::{sync::Arc, time::Duration};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use secrecy::{ExposeSecret, SecretString};
use serde_json::json;
use uuid::Uuid;

use super::{
    AuthError,
    context::ServiceContext,
    passwords::{Passwords, REAUTHENTICATION_REQUIRED},
    sealing::SealingKeys,
    sessions::{SESSION_ENDED, SessionCredentials, Sessions},
};
use crate::{
    auth::caller::SessionCaller,
    model::{
        audit::{Action, Actor, NewEvent},
        email::Email,
        id::UserId,
        mail::EmailKind,
        password::Password,
        second_factor::{STEP_SECONDS, SecondFactorKey},
        session::{SessionEndReason, SessionSelector},
        user::User,
    },
    store::{self, Audited, Tx, second_factor::TotpFactor},
};

/// Time in which a new authenticator app must be confirmed with its first code.
const ENROLLMENT_LIFETIME: Duration = Duration::from_mins(15);

/// Maximum number of wrong codes per challenge, and for the first code of a new authenticator app.
pub(super) const MAX_WRONG_CODES: i32 = 5;

/// The error for a factor of an account whose email address is not verified.
///
/// A stranger may have registered the address. A factor would keep its owner out, and a password
/// reset by the owner would remove the factor, so it would protect nothing.
pub(super) const EMAIL_NOT_VERIFIED: AuthError = AuthError::Forbidden(
    "verify your email address before you set up a second factor: request a link with POST /v1/auth/verify-email/send, or on the settings page",
);

const PASSKEY_REQUIRED: AuthError = AuthError::Forbidden(
    "you have a passkey: sign in with it to change your sign-in methods; if you lost it, contact your administrator",
);

/// The secret of a new authenticator app. It is returned only once.
#[derive(Debug)]
pub struct TotpEnrollment {
    /// The secret in base32.
    pub secret: SecretString,
    /// The same as an `otpauth://` URI, for a QR code.
    pub uri: SecretString,
}

/// New recovery codes. They are returned only once, with the new credentials of the session that
/// requested them.
#[derive(Debug)]
pub struct NewRecoveryCodes {
    /// The recovery codes.
    pub codes: Vec<SecretString>,
    /// The credentials that replace those of the session.
    pub credentials: SessionCredentials,
}

/// Authenticator apps and recovery codes of users.
pub struct SecondFactors {
    pub(super) context: Arc<ServiceContext>,
    /// Encrypts the keys of factors.
    pub(super) key_sealing: SealingKeys,
    pub(super) passwords: Arc<Passwords>,
    pub(super) sessions: Arc<Sessions>,
}

impl SecondFactors {
    /// Locks the caller's user row until the transaction ends, and checks that the caller may
    /// change the user's sign-in methods.
    ///
    /// The caller's session must still be active. If passkeys are the user's only factor besides
    /// the password, the session must have used one; otherwise the password alone would be enough
    /// to replace them.
    ///
    /// # Errors
    /// [`AuthError::Forbidden`] if the caller is not a user session, or has not used the required
    /// passkey; [`AuthError::InvalidCredential`] if the session has ended.
    pub(super) async fn lock_user_for_change(
        &self,
        tx: &mut Tx,
        caller: &SessionCaller,
    ) -> Result<User, AuthError> {
        let (session, user) = (caller.session(), caller.user());
        let user_row = store::users::lock(tx, user).await?.ok_or(SESSION_ENDED)?;
        let presented = caller.presented_session();
        store::sessions::active_since(tx, user, presented).await?.ok_or(SESSION_ENDED)?;
        if !store::second_factor::is_satisfied(tx, user, session).await? {
            return Err(PASSKEY_REQUIRED);
        }
        Ok(user_row)
    }

    /// True if the caller's session may change the user's sign-in methods: the user has no passkey,
    /// has an authenticator app, or used a passkey in this session.
    ///
    /// # Errors
    /// [`AuthError::Forbidden`] if the caller is not a user session.
    #[tracing::instrument(
        name = "auth.second_factors.can_change",
        level = "debug",
        skip_all,
        fields(workspace = %caller.workspace()),
        err(level = "debug")
    )]
    pub async fn can_change(&self, caller: &SessionCaller) -> Result<bool, AuthError> {
        let (session, user) = (caller.session(), caller.user());
        let mut tx = self.context.store.begin_for_user(user).await?;
        Ok(store::second_factor::is_satisfied(&mut tx, user, session).await?)
    }

    /// Starts the setup of an authenticator app. Sign-ins require codes only after
    /// [`Self::confirm_totp`].
    ///
    /// # Errors
    /// [`AuthError::Conflict`] if one is already set up; [`AuthError::Forbidden`] if the user
    /// neither signed in recently nor gave the password, has not used the required passkey, or has
    /// an unverified email address; [`AuthError::Invalid`] for a wrong password.
    #[tracing::instrument(
        name = "auth.second_factors.enroll_totp",
        level = "debug",
        skip_all,
        fields(workspace = %caller.workspace()),
        err(level = "debug")
    )]
    pub async fn enroll_totp(
        &self,
        caller: &SessionCaller,
        password: Option<&Password>,
    ) -> Result<TotpEnrollment, AuthError> {
        let user_id = caller.user();
        if !self.passwords.has_reauthenticated(caller, password).await? {
            return Err(REAUTHENTICATION_REQUIRED);
        }
        let (factor, now) = (self.context.env.new_uuid(), self.context.env.clock.now());
        let (key, sealed_key) = self.key_sealing.generate(&self.context.env, factor.as_bytes())?;
        let mut tx = self.context.store.begin_for_user(user_id).await?;
        let user = self.lock_user_for_change(&mut tx, caller).await?;
        if user.email_verified_at.is_none() {
            return Err(EMAIL_NOT_VERIFIED);
        }
        let is_started =
            store::second_factor::start_enrollment(&mut tx, user_id, factor, &sealed_key, now);
        if !is_started.await? {
            return Err(AuthError::Conflict("an authenticator app is already set up"));
        }
        let audited = Audited::exempt("a factor that is not confirmed has no effect");
        tx.commit(audited).await?.unfenced("a factor that is not confirmed has no effect");
        let secret = SecondFactorKey::new(&key).totp_secret(factor).to_base32();
        let uri = otpauth_uri(&self.context.issuer, &user.email, &secret);
        Ok(TotpEnrollment { secret, uri })
    }

    /// Confirms an authenticator app with its first code. From now on sign-ins require a code, and
    /// the user's other sessions end. Returns the recovery codes, which cannot be read again.
    ///
    /// # Errors
    /// [`AuthError::Invalid`] for a wrong code; [`AuthError::Conflict`] if no setup is pending;
    /// [`AuthError::Forbidden`] if the session has not used the required passkey, or the email
    /// address is not verified.
    #[tracing::instrument(
        name = "auth.second_factors.confirm_totp",
        level = "debug",
        skip_all,
        fields(workspace = %caller.workspace()),
        err(level = "debug")
    )]
    pub async fn confirm_totp(
        &self,
        caller: &SessionCaller,
        code: &str,
    ) -> Result<NewRecoveryCodes, AuthError> {
        let user_id = caller.user();
        let now = self.context.env.clock.now();
        let mut tx = self.context.store.begin_for_user(user_id).await?;
        // The lock orders this with concurrent sign-ins: each ends before this, or sees the factor.
        let user = self.lock_user_for_change(&mut tx, caller).await?;
        if user.email_verified_at.is_none() {
            return Err(EMAIL_NOT_VERIFIED);
        }
        let factor = store::second_factor::lock(&mut tx, user_id).await?;
        let factor = factor
            .filter(|factor| !factor.confirmed && now < factor.created_at + ENROLLMENT_LIFETIME)
            .filter(|factor| factor.wrong_codes < MAX_WRONG_CODES)
            .ok_or(AuthError::Conflict(
                "there is no authenticator app to confirm: set one up first",
            ))?;
        let key = self.open_key(factor.id, &factor.sealed_key)?;
        let secret = key.totp_secret(factor.id);
        let step = secret.matching_step(code, now.unix_timestamp(), factor.last_accepted_step);
        let Some(step) = step else {
            store::second_factor::record_wrong_enrollment_code(&mut tx, user_id).await?;
            let audited = Audited::exempt("a wrong code of a factor that is not confirmed");
            tx.commit(audited).await?.unfenced("a counter, which no node caches");
            return Err(AuthError::Invalid { field: "code", reason: "code is wrong".to_owned() });
        };
        store::second_factor::record_accepted_code(&mut tx, user_id, step, now).await?;
        let origin = self.context.request_origin(&caller.request);
        let subject = EmailKind::SecondFactorAdded { origin };
        self.context.enqueue_email(&mut tx, user.email.clone(), subject).await?;
        let audited = self
            .context
            .audit_in_all_workspaces(&mut tx, &user, Action::SecondFactorAdded, &caller.request)
            .await?;
        // End the other sessions: they started without a second factor, and may be an attacker's.
        let reason = SessionEndReason::SecondFactorAdded;
        let credentials = self.sessions.renew_after_change(&mut tx, caller, reason).await?;
        let committed = tx.commit(audited).await?;
        // Ignore a fence error: the change is committed, and the codes are shown only now.
        self.context.fence.wait(committed).await.ok();
        Ok(NewRecoveryCodes { codes: key.recovery_codes(factor.id, 0), credentials })
    }

    /// Replaces the recovery codes; the previous ones become invalid, and the user's other sessions
    /// end. Returns the new codes, which cannot be read again.
    ///
    /// # Errors
    /// [`AuthError::Invalid`] for a wrong password; [`AuthError::NotFound`] without an
    /// authenticator app.
    #[tracing::instrument(
        name = "auth.second_factors.renew_recovery_codes",
        level = "debug",
        skip_all,
        fields(workspace = %caller.workspace()),
        err(level = "debug")
    )]
    pub async fn renew_recovery_codes(
        &self,
        caller: &SessionCaller,
        password: &Password,
    ) -> Result<NewRecoveryCodes, AuthError> {
        let user_id = caller.user();
        let user = self.context.user(user_id).await?;
        self.passwords.require(&user, "password", password, &caller.request).await?;
        let mut tx = self.context.store.begin_for_user(user_id).await?;
        self.lock_user_for_change(&mut tx, caller).await?;
        let renewed = store::second_factor::regenerate_recovery_codes(&mut tx, user_id).await?;
        let (factor, sealed_key, round) =
            renewed.ok_or(AuthError::NotFound("authenticator app"))?;
        let key = self.open_key(factor, &sealed_key)?;
        let origin = self.context.request_origin(&caller.request);
        let subject = EmailKind::RecoveryCodesRenewed { origin };
        self.context.enqueue_email(&mut tx, user.email.clone(), subject).await?;
        let audited = self
            .context
            .audit_in_all_workspaces(&mut tx, &user, Action::RecoveryCodesRenewed, &caller.request)
            .await?;
        let reason = SessionEndReason::RecoveryCodesRenewed;
        let credentials = self.sessions.renew_after_change(&mut tx, caller, reason).await?;
        let committed = tx.commit(audited).await?;
        // Ignore a fence error: the change is committed, and the codes are shown only now.
        self.context.fence.wait(committed).await.ok();
        let codes = key.recovery_codes(factor, round.unsigned_abs());
        Ok(NewRecoveryCodes { codes, credentials })
    }

    /// True if the caller's user has an authenticator app.
    ///
    /// # Errors
    /// [`AuthError::Forbidden`] if the caller is not a user session.
    #[tracing::instrument(
        name = "auth.second_factors.has_totp",
        level = "debug",
        skip_all,
        fields(workspace = %caller.workspace()),
        err(level = "debug")
    )]
    pub async fn has_totp(&self, caller: &SessionCaller) -> Result<bool, AuthError> {
        let user_id = caller.user();
        let mut tx = self.context.store.begin_for_user(user_id).await?;
        Ok(store::second_factor::has_totp(&mut tx, user_id).await?)
    }

    /// Removes the caller's authenticator app, and ends the user's other sessions. The caller's
    /// session gets the returned credentials.
    ///
    /// # Errors
    /// [`AuthError::Invalid`] for a wrong password; [`AuthError::NotFound`] if there is none;
    /// [`AuthError::Conflict`] if the user has passkeys and this session has used none of them.
    #[tracing::instrument(
        name = "auth.second_factors.remove_totp",
        level = "debug",
        skip_all,
        fields(workspace = %caller.workspace()),
        err(level = "debug")
    )]
    pub async fn remove_totp(
        &self,
        caller: &SessionCaller,
        password: &Password,
    ) -> Result<SessionCredentials, AuthError> {
        let (session, user_id) = (caller.session(), caller.user());
        let user = self.context.user(user_id).await?;
        self.passwords.require(&user, "password", password, &caller.request).await?;
        let mut tx = self.context.store.begin_for_user(user_id).await?;
        self.lock_user_for_change(&mut tx, caller).await?;
        if !store::second_factor::remove(&mut tx, user_id).await? {
            return Err(AuthError::NotFound("authenticator app"));
        }
        // Without the app, passkeys become the only factor. If this session has used none, it could
        // no longer change them.
        if !store::second_factor::is_satisfied(&mut tx, user_id, session).await? {
            return Err(AuthError::Conflict(
                "you have passkeys: sign in with one first, or remove them",
            ));
        }
        let now = self.context.env.clock.now();
        store::second_factor::discard_challenges(&mut tx, user_id, now).await?;
        let origin = self.context.request_origin(&caller.request);
        let subject = EmailKind::SecondFactorRemoved { origin };
        self.context.enqueue_email(&mut tx, user.email.clone(), subject).await?;
        let audited = self
            .context
            .audit_in_all_workspaces(&mut tx, &user, Action::SecondFactorRemoved, &caller.request)
            .await?;
        let reason = SessionEndReason::SecondFactorRemoved;
        let credentials = self.sessions.renew_after_change(&mut tx, caller, reason).await?;
        self.context.fence.wait(tx.commit(audited).await?).await?;
        Ok(credentials)
    }

    /// Removes a user's authenticator app and passkeys and ends all sessions, on behalf of the
    /// operator, after the user has lost them.
    ///
    /// # Errors
    /// [`AuthError::NotFound`] if the user does not exist or has no factors; [`AuthError::Invalid`]
    /// for a malformed email address.
    #[tracing::instrument(
        name = "auth.second_factors.remove_all_as_operator",
        level = "debug",
        skip_all,
        err(level = "debug")
    )]
    pub async fn remove_all_as_operator(&self, email: &str) -> Result<(), AuthError> {
        let email = Email::parse(email).map_err(|why| AuthError::invalid("email", why))?;
        let account = self.context.store.find_account(&email).await?;
        let user = account.ok_or(AuthError::NotFound("account"))?.user_id;
        let mut tx = self.context.store.begin_for_user(user).await?;
        let user_row = store::users::lock(&mut tx, user).await?;
        let user_row = user_row.ok_or(AuthError::NotFound("account"))?;
        let now = self.context.env.clock.now();
        // The lost device may be in use by a thief, signed in with it.
        let (all, reason) = (SessionSelector::All, SessionEndReason::SecondFactorRemoved);
        let ended = store::sessions::end_for_user(&mut tx, user, all, now, reason).await?;
        store::second_factor::discard_challenges(&mut tx, user, now).await?;
        let mut removed = Vec::new();
        if store::second_factor::remove(&mut tx, user).await? {
            removed.push(Action::SecondFactorRemoved);
        }
        if store::passkeys::remove_all(&mut tx, user).await? {
            removed.push(Action::PasskeyRemoved);
        }
        if removed.is_empty() {
            return Err(AuthError::NotFound("second factor"));
        }
        self.context
            .enqueue_email(&mut tx, user_row.email.clone(), EmailKind::FactorsTakenAway)
            .await?;
        let event = |workspace, action| {
            NewEvent::new(self.context.env.new_id(), workspace, action, Actor::system())
        };
        let sessions = ended.into_iter().map(|(id, workspace)| {
            let event = event(workspace, Action::SessionEnded).with_target(id, None);
            event.with_metadata(json!({ "reason": reason.as_str() }))
        });
        let mut events: Vec<_> = sessions.collect();
        for membership in store::members::list_by_user(&mut tx, user).await? {
            let workspace = membership.workspace_id;
            events.extend(
                removed.iter().map(|action| {
                    event(workspace, *action).with_target(user, user_row.email.clone())
                }),
            );
        }
        let audited = store::audit::insert_all(&mut tx, &events).await?;
        let audited = audited.unwrap_or_else(|| Audited::exempt("the user is in no workspace"));
        Ok(self.context.fence.wait(tx.commit(audited).await?).await?)
    }

    fn open_key(&self, factor: Uuid, sealed: &[u8]) -> Result<SecondFactorKey, AuthError> {
        let key = self.key_sealing.open_stored(factor.as_bytes(), sealed)?;
        Ok(SecondFactorKey::new(&key))
    }

    /// Checks a TOTP or recovery code and marks it as used. Returns false for a wrong code.
    pub(super) async fn use_code(
        &self,
        tx: &mut Tx,
        user: UserId,
        factor: &TotpFactor,
        code: &str,
    ) -> Result<bool, AuthError> {
        let now = self.context.env.clock.now();
        let key = self.open_key(factor.id, &factor.sealed_key)?;
        let secret = key.totp_secret(factor.id);
        let code = code.trim();
        let step = secret.matching_step(code, now.unix_timestamp(), factor.last_accepted_step);
        if let Some(step) = step {
            store::second_factor::record_accepted_code(tx, user, step, now).await?;
            return Ok(true);
        }
        let recovery =
            key.find_recovery_code(factor.id, factor.recovery_code_generation.unsigned_abs(), code);
        let unused = |number: &u8| factor.used_recovery_codes & (1 << number) == 0;
        match recovery.filter(unused) {
            Some(number) => {
                store::second_factor::use_recovery_code(tx, user, number).await?;
                Ok(true)
            }
            None => Ok(false),
        }
    }
}

/// Builds a URI in Google Authenticator's "key URI format", which all authenticator apps read.
fn otpauth_uri(public_url: &str, email: &str, secret: &SecretString) -> SecretString {
    let encode = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    let host = public_url.split("//").last().unwrap_or(public_url);
    let (issuer, account, secret) = (encode(host), encode(email), secret.expose_secret());
    format!(
        "otpauth://totp/{issuer}:{account}?secret={secret}&issuer={issuer}&period={STEP_SECONDS}"
    )
    .into()
}
