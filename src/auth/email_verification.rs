//! Verification of email addresses with mailed links.

use std::{sync::Arc, time::Duration};

use uuid::Uuid;

use super::{
    AuthError,
    account_reclaim::AccountReclaim,
    context::ServiceContext,
    passwords::{invalid_link, parse_stored_email},
    sessions::SESSION_ENDED,
};
use crate::{
    auth::caller::SessionCaller,
    model::{
        audit::{Action, RequestInfo},
        email::Email,
        id::UserId,
        mail::EmailKind,
        one_time_token::BoundTokenPurpose,
        user::User,
    },
    store::{self, Audited, Tx},
};

/// Lifetime of an email verification link.
pub(super) const VERIFICATION_LIFETIME: Duration = Duration::from_hours(7 * 24);

/// After a verification by link alone, the time in which a password reset ends what was set up.
const RECLAIM_WINDOW: Duration = Duration::from_hours(7 * 24);

const OTHER_ACCOUNT: AuthError = AuthError::Forbidden(
    "this link is for another account: sign in to that account, or send no credential",
);

/// Verifies email addresses with mailed links.
pub struct EmailVerification {
    pub(super) context: Arc<ServiceContext>,
    pub(super) reclaim: Arc<AccountReclaim>,
}

/// What a request presents besides the token of a link.
#[derive(Debug, Clone, Copy)]
pub enum AddressProof<'a> {
    /// A session of the account: what was set up with it stays.
    WithSession(&'a SessionCaller),
    /// Nothing: what was set up before the first proof of the address ends.
    LinkOnly {
        /// True if the password ends too.
        removes_password: bool,
    },
}

/// The account of a link, for the page that the link opens.
#[derive(Debug)]
pub struct VerificationPreview {
    /// The user.
    pub user: UserId,
    /// True if the address is already verified, so that the link changes nothing.
    pub is_verified: bool,
}

impl EmailVerification {
    /// Marks the user's email address as verified, with the token of a mailed link.
    ///
    /// # Errors
    /// [`AuthError::Invalid`] if the token is not valid; [`AuthError::Forbidden`] if the session is
    /// one of another account; [`AuthError::InvalidCredential`] if it has ended.
    #[tracing::instrument(
        name = "auth.email_verification.verify",
        level = "debug",
        skip_all,
        err(level = "debug")
    )]
    pub async fn verify(
        &self,
        token: &str,
        proof: AddressProof<'_>,
        request: &Arc<RequestInfo>,
    ) -> Result<(), AuthError> {
        let (purpose, now) = (BoundTokenPurpose::EmailVerification, self.context.env.clock.now());
        let (id, user_id) = self.find_token(token).await?;
        let (mut tx, account) = self.reclaim.lock(user_id).await?.ok_or_else(invalid_link)?;
        if let AddressProof::WithSession(caller) = proof {
            if caller.user() != user_id {
                return Err(OTHER_ACCOUNT);
            }
            // The session may have ended since it was authenticated.
            let session = caller.presented_session();
            let created_at = store::sessions::active_since(&mut tx, user_id, session).await?;
            created_at.ok_or(SESSION_ENDED)?;
        }
        if !store::one_time_tokens::redeem(&mut tx, user_id, id, purpose, now).await? {
            return Err(invalid_link());
        }
        store::one_time_tokens::discard(&mut tx, user_id, purpose, now).await?;
        if !store::users::set_email_verified(&mut tx, user_id, now).await? {
            // The first proof may have been cut off before its wait.
            let audited = Audited::exempt("the address was verified before");
            return Ok(self.context.fence.wait(tx.commit(audited).await?).await?);
        }
        let (user, action) = (&account.user, Action::EmailVerified);
        let audited = self.context.audit_in_all_workspaces(&mut tx, user, action, request).await?;
        let AddressProof::LinkOnly { removes_password } = proof else {
            tx.commit(audited).await?.unfenced("a verified address restricts no access");
            return Ok(());
        };
        self.reclaim.end_prior_setup(&mut tx, &account, request, removes_password).await?;
        if removes_password {
            store::users::remove_password(&mut tx, user_id).await?;
        } else {
            let until = Some(now + RECLAIM_WINDOW);
            store::users::set_reclaimable_until(&mut tx, user_id, until).await?;
        }
        Ok(self.context.fence.wait(tx.commit(audited).await?).await?)
    }

    /// Returns the account of a link, which may be used or expired.
    ///
    /// # Errors
    /// [`AuthError::Invalid`] if the token is not valid.
    #[tracing::instrument(
        name = "auth.email_verification.preview",
        level = "debug",
        skip_all,
        err(level = "debug")
    )]
    pub async fn preview(&self, token: &str) -> Result<VerificationPreview, AuthError> {
        let (_, user) = self.find_token(token).await?;
        let is_verified = self.context.user(user).await?.email_verified_at.is_some();
        Ok(VerificationPreview { user, is_verified })
    }

    /// True if the email address of the caller's user is verified.
    ///
    /// # Errors
    /// [`AuthError::NotFound`] if the account was deleted.
    #[tracing::instrument(
        name = "auth.email_verification.is_verified",
        level = "debug",
        skip_all,
        fields(workspace = %caller.workspace()),
        err(level = "debug")
    )]
    pub async fn is_verified(&self, caller: &SessionCaller) -> Result<bool, AuthError> {
        Ok(self.context.user(caller.user()).await?.email_verified_at.is_some())
    }

    async fn find_token(&self, token: &str) -> Result<(Uuid, UserId), AuthError> {
        let purpose = BoundTokenPurpose::EmailVerification;
        self.context.verify_mailed_token(purpose, token).await?.ok_or_else(invalid_link)
    }

    /// Sends the caller another email verification link.
    ///
    /// # Errors
    /// [`AuthError::Conflict`] if the address is already verified.
    #[tracing::instrument(
        name = "auth.email_verification.resend",
        level = "debug",
        skip_all,
        fields(workspace = %caller.workspace()),
        err(level = "debug")
    )]
    pub async fn resend(&self, caller: &SessionCaller) -> Result<(), AuthError> {
        let user_id = caller.user();
        let user = self.context.user(user_id).await?;
        if user.email_verified_at.is_some() {
            return Err(AuthError::Conflict("the email address is already verified"));
        }
        let email = parse_stored_email(&user.email)?;
        let mut tx = self.context.store.begin_for_user(user_id).await?;
        self.send(&mut tx, &user, &email).await?;
        let audited = Audited::exempt("an email is no change");
        tx.commit(audited).await?.unfenced("an email, which changes no access");
        Ok(())
    }

    /// Sends a user an email verification link, in a transaction of that user.
    pub(super) async fn send(
        &self,
        tx: &mut Tx,
        user: &User,
        email: &Email,
    ) -> Result<(), AuthError> {
        let (token, now) = (self.context.env.new_uuid(), self.context.env.clock.now());
        let purpose = BoundTokenPurpose::EmailVerification;
        let expires_at = now + VERIFICATION_LIFETIME;
        let inserted =
            store::one_time_tokens::insert(tx, user.id, token, purpose, email, now, expires_at);
        if inserted.await? {
            self.context
                .enqueue_email(tx, user.email.clone(), EmailKind::VerifyEmail { token })
                .await?;
        }
        Ok(())
    }
}
