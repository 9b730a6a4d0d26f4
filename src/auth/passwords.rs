//! Passwords and email addresses of users: change, reset and verify them.
//!
//! A new password invalidates reset links, sign-in challenges and sessions, in the same
//! transaction. This module also writes to the email outbox, for the other modules.

use std::{sync::Arc, time::Duration};

use super::{Auth, AuthError, sessions::require_user_session};
use crate::{
    model::{
        audit::{Action, Actor, RequestInfo},
        email::Email,
        id::UserId,
        mail::{EmailKind, OutgoingEmail, RequestOrigin},
        oauth::grant::GrantEndReason,
        one_time_token::TokenPurpose,
        password::Password,
        principal::Caller,
        session::{SessionEndReason, SessionSelector},
        timestamp,
        user::User,
    },
    store::{self, Tx},
};

/// Lifetime of an email verification link.
const VERIFICATION_LIFETIME: Duration = Duration::from_hours(7 * 24);

/// The error for an invalid token of a link. It does not say what is wrong.
pub(super) fn invalid_link() -> AuthError {
    AuthError::Invalid {
        field: "token",
        reason: "the link is not valid: it was already used, has expired, or is incomplete"
            .to_owned(),
    }
}

/// Maximum number of connected apps that an email lists.
const MAX_LISTED_APPS: i64 = 20;

impl Auth {
    /// Changes the caller's password, and ends the user's other sessions.
    ///
    /// # Errors
    /// [`AuthError::Invalid`] if the current password is wrong or the new one violates the policy;
    /// [`AuthError::Conflict`] if the password was changed concurrently.
    pub async fn change_password(
        &self,
        caller: &Caller,
        current: &Password,
        new: &Password,
    ) -> Result<(), AuthError> {
        let (session, user_id) = require_user_session(caller)?;
        let user = self.get_user(user_id).await?;
        let current_hash =
            self.require_password(&user, "current_password", current, &caller.request).await?;
        let email = parse_stored_email(&user.email)?;
        let name = user.full_name.as_deref();
        let new_hash =
            self.password_hasher.hash_new_password("new_password", new, &email, name).await?;
        let mut tx = self.store.begin_for_user(user_id).await?;
        if !store::users::lock_password_hash(&mut tx, &current_hash, Some(&new_hash)).await? {
            return Err(AuthError::Conflict("the password was changed in the meantime; try again"));
        }
        let other_sessions = SessionSelector::AllExcept(session);
        self.apply_password_change(&mut tx, &user, other_sessions, &caller.request).await?;
        tx.commit().await?;
        Ok(self.fence.wait().await?)
    }

    /// Sends a password reset link, if the address is registered. That is checked later, by the
    /// mail worker, so that the response time does not reveal it.
    ///
    /// # Errors
    /// [`AuthError::Invalid`] for a malformed address.
    pub async fn request_password_reset(&self, email: &str) -> Result<(), AuthError> {
        let email = Email::parse(email).map_err(|reason| AuthError::invalid("email", reason))?;
        let mail =
            OutgoingEmail { to: email.as_str().to_owned(), subject: EmailKind::ForgotPassword };
        Ok(self.store.insert_mail(self.env.new_uuid(), &mail).await?)
    }

    /// Sets a new password with the token of a reset link, and ends all of the user's sessions.
    /// This also verifies the email address, since the link was sent there.
    ///
    /// # Errors
    /// [`AuthError::Invalid`] if the token is not valid or the password violates the policy.
    pub async fn reset_password(
        &self,
        token: &str,
        new: &Password,
        request: &Arc<RequestInfo>,
    ) -> Result<(), AuthError> {
        let purpose = TokenPurpose::PasswordReset;
        let id = self.token_key.verify(purpose, token).ok_or_else(invalid_link)?;
        let user_id =
            self.store.find_one_time_token_user(purpose, id).await?.ok_or_else(invalid_link)?;
        let user = self.get_user(user_id).await?;
        let (email, name) = (parse_stored_email(&user.email)?, user.full_name.as_deref());
        let hash =
            self.password_hasher.hash_new_password("new_password", new, &email, name).await?;
        let mut tx = self.store.begin_for_user(user_id).await?;
        let now = self.env.clock.now();
        if !store::one_time_tokens::redeem(&mut tx, user_id, id, purpose, now).await? {
            return Err(invalid_link());
        }
        store::users::set_password_hash(&mut tx, user_id, &hash).await?;
        if store::users::set_email_verified(&mut tx, user_id, now).await? {
            // Until now the address was only claimed. A stranger may have registered it; the
            // stranger's authenticator app must not lock the owner out.
            store::second_factor::remove(&mut tx, user_id).await?;
            // End grants for the same reason.
            let (reason, actor) = (GrantEndReason::EmailReclaimed, Actor::user(&user));
            self.end_grants(&mut tx, user_id, None, reason, &actor, request).await?;
        }
        self.apply_password_change(&mut tx, &user, SessionSelector::All, request).await?;
        tx.commit().await?;
        Ok(self.fence.wait().await?)
    }

    /// Applies the consequences of a new password: ends sessions, invalidates reset links and
    /// sign-in challenges, emails the user, and records an audit event in each workspace of the
    /// user.
    async fn apply_password_change(
        &self,
        tx: &mut Tx,
        user: &User,
        sessions: SessionSelector,
        request: &Arc<RequestInfo>,
    ) -> Result<(), AuthError> {
        let (now, actor) = (self.env.clock.now(), Actor::user(user));
        store::one_time_tokens::discard(tx, user.id, TokenPurpose::PasswordReset, now).await?;
        store::second_factor::discard_challenges(tx, user.id, now).await?;
        let passkeys = store::passkeys::list(tx, user.id).await?;
        let passkeys = passkeys.into_iter().map(|(passkey, _)| passkey.name).collect();
        let apps = store::connected_apps::list_names_by_user(tx, user.id, MAX_LISTED_APPS).await?;
        let subject =
            EmailKind::PasswordChanged { origin: self.request_origin(request), passkeys, apps };
        self.enqueue_email(tx, user.email.clone(), subject).await?;
        self.audit_in_all_workspaces(tx, user, Action::PasswordChanged, request).await?;
        let reason = SessionEndReason::PasswordChanged;
        self.end_sessions(tx, user.id, sessions, reason, &actor, request).await
    }

    /// Records an action that concerns a user, not one workspace, in the audit logs of all
    /// workspaces of the user.
    pub(super) async fn audit_in_all_workspaces(
        &self,
        tx: &mut Tx,
        user: &User,
        action: Action,
        request: &Arc<RequestInfo>,
    ) -> Result<(), AuthError> {
        for membership in store::members::list_by_user(tx, user.id).await? {
            let workspace = membership.workspace_id;
            let event = self
                .audit_event(request, workspace, action, Actor::user(user), 204)
                .with_target(user.id, user.email.clone());
            tx.set_workspace(workspace).await?;
            store::audit::insert(tx, workspace, &event).await?;
        }
        Ok(())
    }

    /// Marks the user's email address as verified, with the token of a mailed link.
    ///
    /// # Errors
    /// [`AuthError::Invalid`] if the token is not valid.
    pub async fn verify_email(
        &self,
        token: &str,
        request: &Arc<RequestInfo>,
    ) -> Result<(), AuthError> {
        let purpose = TokenPurpose::EmailVerification;
        let id = self.token_key.verify(purpose, token).ok_or_else(invalid_link)?;
        let user_id =
            self.store.find_one_time_token_user(purpose, id).await?.ok_or_else(invalid_link)?;
        let user = self.get_user(user_id).await?;
        let mut tx = self.store.begin_for_user(user_id).await?;
        let now = self.env.clock.now();
        if !store::one_time_tokens::redeem(&mut tx, user_id, id, purpose, now).await? {
            return Err(invalid_link());
        }
        store::one_time_tokens::discard(&mut tx, user_id, purpose, now).await?;
        if store::users::set_email_verified(&mut tx, user_id, now).await? {
            self.audit_in_all_workspaces(&mut tx, &user, Action::EmailVerified, request).await?;
        }
        Ok(tx.commit().await?)
    }

    /// Sends the caller another email verification link.
    ///
    /// # Errors
    /// [`AuthError::Conflict`] if the address is already verified.
    pub async fn resend_email_verification(&self, caller: &Caller) -> Result<(), AuthError> {
        let (_, user_id) = require_user_session(caller)?;
        let user = self.get_user(user_id).await?;
        if user.email_verified_at.is_some() {
            return Err(AuthError::Conflict("the email address is already verified"));
        }
        let email = parse_stored_email(&user.email)?;
        let mut tx = self.store.begin_for_user(user_id).await?;
        self.send_email_verification(&mut tx, &user, &email).await?;
        Ok(tx.commit().await?)
    }

    /// Sends a user an email verification link, in a transaction of that user.
    pub(super) async fn send_email_verification(
        &self,
        tx: &mut Tx,
        user: &User,
        email: &Email,
    ) -> Result<(), AuthError> {
        let (token, now) = (self.env.new_uuid(), self.env.clock.now());
        let (purpose, expires_at) = (TokenPurpose::EmailVerification, now + VERIFICATION_LIFETIME);
        let inserted =
            store::one_time_tokens::insert(tx, user.id, token, purpose, email, now, expires_at);
        if inserted.await? {
            self.enqueue_email(tx, user.email.clone(), EmailKind::VerifyEmail { token }).await?;
        }
        Ok(())
    }

    /// Adds an email to the outbox; it is sent after the transaction commits.
    pub(super) async fn enqueue_email(
        &self,
        tx: &mut Tx,
        to: String,
        subject: EmailKind,
    ) -> Result<(), AuthError> {
        let mail = OutgoingEmail { to, subject };
        Ok(store::email_outbox::insert(tx, self.env.new_uuid(), &mail).await?)
    }

    /// The time and origin of a request, for emails.
    pub(super) fn request_origin(&self, request: &RequestInfo) -> RequestOrigin {
        RequestOrigin {
            at: timestamp::format(self.env.clock.now()),
            ip: request.ip.to_string(),
            user_agent: request.user_agent.clone(),
        }
    }

    pub(super) async fn get_user(&self, id: UserId) -> Result<User, AuthError> {
        let mut tx = self.store.begin_for_user(id).await?;
        store::users::get(&mut tx, id).await?.ok_or(AuthError::NotFound("account"))
    }
}

/// Parses a user's stored email address.
pub(super) fn parse_stored_email(email: &str) -> Result<Email, AuthError> {
    Email::parse(email).map_err(|_| AuthError::Internal("an account has no valid email address"))
}
