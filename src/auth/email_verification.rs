//! Verification of email addresses with mailed links.

use std::{sync::Arc, time::Duration};

use super::{
    AuthError,
    context::ServiceContext,
    passwords::{invalid_link, parse_stored_email},
};
use crate::{
    auth::caller::SessionCaller,
    model::{
        audit::{Action, RequestInfo},
        email::Email,
        mail::EmailKind,
        one_time_token::TokenPurpose,
        user::User,
    },
    store::{self, Audited, Tx},
};

/// Lifetime of an email verification link.
const VERIFICATION_LIFETIME: Duration = Duration::from_hours(7 * 24);

/// Verifies email addresses with mailed links.
pub struct EmailVerification {
    pub(super) context: Arc<ServiceContext>,
}

impl EmailVerification {
    /// Marks the user's email address as verified, with the token of a mailed link.
    ///
    /// # Errors
    /// [`AuthError::Invalid`] if the token is not valid.
    #[tracing::instrument(
        name = "auth.email_verification.verify",
        level = "debug",
        skip_all,
        err(level = "debug")
    )]
    pub async fn verify(&self, token: &str, request: &Arc<RequestInfo>) -> Result<(), AuthError> {
        let purpose = TokenPurpose::EmailVerification;
        let id = self.context.token_key.verify(purpose, token).ok_or_else(invalid_link)?;
        let user_id = self
            .context
            .store
            .find_one_time_token_user(purpose, id)
            .await?
            .ok_or_else(invalid_link)?;
        let user = self.context.user(user_id).await?;
        let mut tx = self.context.store.begin_for_user(user_id).await?;
        let now = self.context.env.clock.now();
        if !store::one_time_tokens::redeem(&mut tx, user_id, id, purpose, now).await? {
            return Err(invalid_link());
        }
        store::one_time_tokens::discard(&mut tx, user_id, purpose, now).await?;
        let audited = if store::users::set_email_verified(&mut tx, user_id, now).await? {
            self.context
                .audit_in_all_workspaces(&mut tx, &user, Action::EmailVerified, request)
                .await?
        } else {
            Audited::exempt("the address was verified before")
        };
        tx.commit(audited).await?.unfenced("a verified address restricts no access");
        Ok(())
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
        let (purpose, expires_at) = (TokenPurpose::EmailVerification, now + VERIFICATION_LIFETIME);
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
