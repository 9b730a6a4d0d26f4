//! Passwords: change, reset and check them.
//!
//! A new password invalidates reset links, sign-in challenges and sessions, in the same
//! transaction.

mod reauthentication;

use std::sync::Arc;

use super::{
    AuthError,
    account_reclaim::AccountReclaim,
    context::ServiceContext,
    password_hashing::PasswordHasher,
    sessions::{SessionCredentials, Sessions},
};
use crate::{
    auth::caller::SessionCaller,
    model::{
        audit::{Action, Actor, RequestInfo},
        email::Email,
        mail::{EmailKind, OutgoingEmail},
        oauth::grant::GrantEndReason,
        one_time_token::BoundTokenPurpose,
        password::Password,
        session::{SessionEndReason, SessionSelector},
        user::User,
    },
    store::{self, Audited, Tx},
};

/// Maximum number of connected apps that an email lists.
const MAX_LISTED_APPS: i64 = 20;

/// Verifies, changes and resets passwords.
pub struct Passwords {
    pub(super) context: Arc<ServiceContext>,
    pub(super) hasher: PasswordHasher,
    pub(super) reclaim: Arc<AccountReclaim>,
    pub(super) sessions: Arc<Sessions>,
}

impl Passwords {
    /// Changes the caller's password, and ends the user's other sessions. The caller's session gets
    /// the returned credentials.
    ///
    /// # Errors
    /// [`AuthError::Invalid`] if the current password is wrong or the new one violates the policy;
    /// [`AuthError::Conflict`] if the password was changed concurrently.
    #[tracing::instrument(
        name = "auth.passwords.change",
        level = "debug",
        skip_all,
        fields(workspace = %caller.workspace()),
        err(level = "debug")
    )]
    pub async fn change(
        &self,
        caller: &SessionCaller,
        current: &Password,
        new: &Password,
    ) -> Result<SessionCredentials, AuthError> {
        let (session, user_id) = (caller.session(), caller.user());
        let user = self.context.user(user_id).await?;
        let current_hash =
            self.require(&user, "current_password", current, &caller.request).await?;
        let email = parse_stored_email(&user.email)?;
        let name = user.full_name.as_deref();
        let new_hash = self.hasher.hash_new_password("new_password", new, &email, name).await?;
        let mut tx = self.context.store.begin_for_user(user_id).await?;
        if !store::users::lock_password_hash(&mut tx, &current_hash, Some(&new_hash)).await? {
            return Err(AuthError::Conflict("the password was changed in the meantime; try again"));
        }
        let other_sessions = SessionSelector::AllExcept(session);
        let (disconnected_apps, request) = (Vec::new(), &caller.request);
        let audited =
            self.apply_change(&mut tx, &user, other_sessions, disconnected_apps, request).await?;
        let credentials = self.sessions.replace_credentials(&mut tx, caller).await?;
        self.context.fence.wait(tx.commit(audited).await?).await?;
        Ok(credentials)
    }

    /// Sends a password reset link, if the address is registered. That is checked later, by the
    /// mail worker, so that the response time does not reveal it.
    ///
    /// # Errors
    /// [`AuthError::Invalid`] for a malformed address.
    #[tracing::instrument(
        name = "auth.passwords.request_reset",
        level = "debug",
        skip_all,
        err(level = "debug")
    )]
    pub async fn request_reset(&self, email: &str) -> Result<(), AuthError> {
        let email = Email::parse(email).map_err(|reason| AuthError::invalid("email", reason))?;
        let mail =
            OutgoingEmail { to: email.as_str().to_owned(), subject: EmailKind::ForgotPassword };
        Ok(self.context.store.insert_mail(self.context.env.new_uuid(), &mail).await?)
    }

    /// Sets a new password with the token of a reset link, and ends all of the user's sessions and
    /// grants. The factors of an account with a verified address stay.
    ///
    /// This also verifies the email address, since the link was sent there. If it was not verified
    /// before, or lately by a link alone, everything that was set up until now ends; see
    /// [`account_reclaim`](super::account_reclaim).
    ///
    /// # Errors
    /// [`AuthError::Invalid`] if the token is not valid or the password violates the policy.
    #[tracing::instrument(
        name = "auth.passwords.reset",
        level = "debug",
        skip_all,
        err(level = "debug")
    )]
    pub async fn reset(
        &self,
        token: &str,
        new: &Password,
        request: &Arc<RequestInfo>,
    ) -> Result<(), AuthError> {
        let purpose = BoundTokenPurpose::PasswordReset;
        let verified = self.context.verify_mailed_token(purpose, token).await?;
        let (id, user_id) = verified.ok_or_else(invalid_link)?;
        let user = self.context.user(user_id).await?;
        let (email, name) = (parse_stored_email(&user.email)?, user.full_name.as_deref());
        let hash = self.hasher.hash_new_password("new_password", new, &email, name).await?;
        let (mut tx, account) = self.reclaim.lock(user_id).await?.ok_or_else(invalid_link)?;
        let now = self.context.env.clock.now();
        if !store::one_time_tokens::redeem(&mut tx, user_id, id, purpose, now).await? {
            return Err(invalid_link());
        }
        store::users::set_password_hash(&mut tx, user_id, &hash).await?;
        if store::users::set_email_verified(&mut tx, user_id, now).await? {
            self.context
                .audit_in_all_workspaces(&mut tx, &user, Action::EmailVerified, request)
                .await?;
        }
        if account.is_reclaimable {
            self.reclaim.end_prior_setup(&mut tx, &account, request, false).await?;
            store::users::set_reclaimable_until(&mut tx, user_id, None).await?;
        }
        // The owner lost control of the account, or at least of the password: no access that was
        // given until now may outlast the reset.
        let apps = store::connected_apps::list_names_by_user(&mut tx, user_id, MAX_LISTED_APPS);
        let disconnected_apps = apps.await?;
        let (reason, actor) = (GrantEndReason::PasswordReset, Actor::user(&user));
        self.sessions.end_grants(&mut tx, &[user_id], None, reason, &actor, request).await?;
        let all = SessionSelector::All;
        let audited = self.apply_change(&mut tx, &user, all, disconnected_apps, request).await?;
        Ok(self.context.fence.wait(tx.commit(audited).await?).await?)
    }

    /// Applies the consequences of a new password: ends sessions, invalidates reset links and
    /// sign-in challenges, emails the user, and records an audit event in each workspace of the
    /// user.
    async fn apply_change(
        &self,
        tx: &mut Tx,
        user: &User,
        sessions: SessionSelector,
        disconnected_apps: Vec<String>,
        request: &Arc<RequestInfo>,
    ) -> Result<Audited, AuthError> {
        let (now, actor) = (self.context.env.clock.now(), Actor::user(user));
        store::one_time_tokens::discard(tx, user.id, BoundTokenPurpose::PasswordReset, now).await?;
        store::second_factor::discard_challenges(tx, user.id, now).await?;
        let passkeys = store::passkeys::list(tx, user.id).await?;
        let passkeys = passkeys.into_iter().map(|(passkey, _)| passkey.name).collect();
        let apps = store::connected_apps::list_names_by_user(tx, user.id, MAX_LISTED_APPS).await?;
        let subject = EmailKind::PasswordChanged {
            origin: self.context.request_origin(request),
            passkeys,
            apps,
            disconnected_apps,
        };
        self.context.enqueue_email(tx, user.email.clone(), subject).await?;
        let audited = self
            .context
            .audit_in_all_workspaces(tx, user, Action::PasswordChanged, request)
            .await?;
        let reason = SessionEndReason::PasswordChanged;
        self.sessions.end_selected(tx, user.id, sessions, reason, &actor, request).await?;
        Ok(audited)
    }

    /// Hashes a password for a user that is created outside of this module. Returns a PHC string.
    ///
    /// # Errors
    /// [`AuthError::PasswordQueueFull`] if the queue of passwords to hash is full.
    pub async fn hash(
        &self,
        password: &crate::model::password::Password,
    ) -> Result<secrecy::SecretString, AuthError> {
        self.hasher.hash(password).await
    }

    /// Number of password hashes that are queued or being computed.
    #[must_use]
    pub fn pending_hashes(&self) -> usize {
        self.hasher.pending_count()
    }
}

/// The error for an action that requires the password or a recent sign-in.
pub(super) const REAUTHENTICATION_REQUIRED: AuthError =
    AuthError::Forbidden("confirm your password or sign in again");

/// The error for an invalid token of a link. It does not say what is wrong.
pub(super) fn invalid_link() -> AuthError {
    AuthError::Invalid {
        field: "token",
        reason: "the link is not valid: it was already used, has expired, or is incomplete"
            .to_owned(),
    }
}

/// Parses a user's stored email address.
pub(super) fn parse_stored_email(email: &str) -> Result<Email, AuthError> {
    Email::parse(email).map_err(|_| AuthError::Internal("an account has no valid email address"))
}
