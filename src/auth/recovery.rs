//! Passwords changed and forgotten, and addresses shown to be one's own.

use std::{sync::Arc, time::Duration};

use super::{Auth, AuthError, sessions::own_session};
use crate::{
    model::{
        audit::{Action, Actor, RequestInfo},
        email::Email,
        id::UserId,
        mail::{Mail, MailSubject, Origin},
        oauth::grant::GrantEnd,
        one_time_token::Purpose,
        password::Password,
        principal::Caller,
        session::{EndReason, Which},
        timestamp,
        user::User,
    },
    store::{self, Tx},
};

/// How long a link to verify an address works.
const VERIFY_LIFETIME: Duration = Duration::from_hours(7 * 24);

/// The refusal of a link's token, whatever is wrong with it.
pub(super) fn bad_link() -> AuthError {
    AuthError::Invalid {
        field: "token",
        reason: "the link is not valid: it was used, has expired, or is damaged".to_owned(),
    }
}

/// Connected apps that a mail names.
const NAMED: i64 = 20;

impl Auth {
    /// Chooses another password, which ends the person's other sessions.
    ///
    /// # Errors
    /// [`AuthError::Invalid`] where the current one is wrong or the new one may not be chosen.
    pub async fn change_password(
        &self,
        caller: &Caller,
        current: &Password,
        new: &Password,
    ) -> Result<(), AuthError> {
        let (session, user_id) = own_session(caller)?;
        let user = self.person(user_id).await?;
        let old = self.check_password(&user, "current_password", current, &caller.request).await?;
        let email = address_of(&user.email)?;
        let name = user.full_name.as_deref();
        let renewed = self.passwords.hash_chosen("new_password", new, &email, name).await?;
        let mut tx = self.store.begin_personal(user_id).await?;
        if !store::users::pin_password_hash(&mut tx, &old, Some(&renewed)).await? {
            return Err(AuthError::Conflict("the password was changed meanwhile"));
        }
        let kept = Which::AllBut(session);
        self.password_changed(&mut tx, &user, kept, &caller.request).await?;
        tx.commit().await?;
        Ok(self.fence.wait().await?)
    }

    /// Mails a link to choose a new password, if the address is anybody's: which is found out later, so
    /// that nobody can tell from the time that this takes.
    ///
    /// # Errors
    /// [`AuthError::Invalid`] for what is no address.
    pub async fn forgot_password(&self, email: &str) -> Result<(), AuthError> {
        let email = Email::parse(email).map_err(|why| AuthError::invalid("email", why))?;
        let mail = Mail { to: email.as_str().to_owned(), subject: MailSubject::ForgotPassword };
        Ok(self.store.insert_mail(self.env.new_uuid(), &mail).await?)
    }

    /// Chooses a new password by the token of a mailed link, which ends all of the person's sessions. Who
    /// has read the mail has the address, too.
    ///
    /// # Errors
    /// [`AuthError::Invalid`] where the token does not work or the password may not be chosen.
    pub async fn reset_password(
        &self,
        token: &str,
        new: &Password,
        request: &Arc<RequestInfo>,
    ) -> Result<(), AuthError> {
        let purpose = Purpose::ResetPassword;
        let id = self.token_key.verify(purpose, token).ok_or_else(bad_link)?;
        let owner = self.store.find_one_time_token(purpose, id).await?.ok_or_else(bad_link)?;
        let user = self.person(owner).await?;
        let (email, name) = (address_of(&user.email)?, user.full_name.as_deref());
        let hash = self.passwords.hash_chosen("new_password", new, &email, name).await?;
        let mut tx = self.store.begin_personal(owner).await?;
        let now = self.env.clock.now();
        if !store::one_time_tokens::redeem(&mut tx, owner, id, purpose, now).await? {
            return Err(bad_link());
        }
        store::users::set_password_hash(&mut tx, owner, &hash).await?;
        if store::users::set_email_verified(&mut tx, owner, now).await? {
            // Until now the address was somebody's claim: their authenticator must not keep its owner out.
            store::second_factor::remove(&mut tx, owner).await?;
            // Nor is what they let in to stay.
            let (reason, actor) = (GrantEnd::Disowned, Actor::user(&user));
            self.end_grants(&mut tx, owner, None, reason, &actor, request).await?;
        }
        self.password_changed(&mut tx, &user, Which::All, request).await?;
        tx.commit().await?;
        Ok(self.fence.wait().await?)
    }

    /// What follows from another password: sessions end, other links are worth nothing, the person is
    /// told by mail, and the workspaces in their logs.
    async fn password_changed(
        &self,
        tx: &mut Tx,
        user: &User,
        sessions: Which,
        request: &Arc<RequestInfo>,
    ) -> Result<(), AuthError> {
        let (now, actor) = (self.env.clock.now(), Actor::user(user));
        store::one_time_tokens::discard(tx, user.id, Purpose::ResetPassword, now).await?;
        store::second_factor::discard_challenges(tx, user.id, now).await?;
        let passkeys = store::passkeys::list(tx, user.id).await?;
        let passkeys = passkeys.into_iter().map(|(passkey, _)| passkey.name).collect();
        let apps = store::connected_apps::names_of_person(tx, user.id, NAMED).await?;
        let subject = MailSubject::PasswordChanged { origin: self.origin(request), passkeys, apps };
        self.mail(tx, user.email.clone(), subject).await?;
        self.tell_workspaces(tx, user, Action::PasswordChanged, request).await?;
        let reason = EndReason::PasswordChanged;
        self.end_sessions(tx, user.id, sessions, reason, &actor, request).await
    }

    /// Puts what a person did to the own account into the logs of all workspaces of that person.
    pub(super) async fn tell_workspaces(
        &self,
        tx: &mut Tx,
        user: &User,
        action: Action,
        request: &Arc<RequestInfo>,
    ) -> Result<(), AuthError> {
        for membership in store::members::of_person(tx, user.id).await? {
            let workspace = membership.workspace_id;
            let event = self
                .witness(request, workspace, action, Actor::user(user), 204)
                .on(user.id, user.email.clone());
            tx.enter(workspace).await?;
            store::audit::insert(tx, workspace, &event).await?;
        }
        Ok(())
    }

    /// Notes that an address is its person's, by the token of a mailed link.
    ///
    /// # Errors
    /// [`AuthError::Invalid`] where the token does not work.
    pub async fn verify_email(
        &self,
        token: &str,
        request: &Arc<RequestInfo>,
    ) -> Result<(), AuthError> {
        let purpose = Purpose::VerifyEmail;
        let id = self.token_key.verify(purpose, token).ok_or_else(bad_link)?;
        let owner = self.store.find_one_time_token(purpose, id).await?.ok_or_else(bad_link)?;
        let user = self.person(owner).await?;
        let mut tx = self.store.begin_personal(owner).await?;
        let now = self.env.clock.now();
        if !store::one_time_tokens::redeem(&mut tx, owner, id, purpose, now).await? {
            return Err(bad_link());
        }
        store::one_time_tokens::discard(&mut tx, owner, purpose, now).await?;
        if store::users::set_email_verified(&mut tx, owner, now).await? {
            self.tell_workspaces(&mut tx, &user, Action::EmailVerified, request).await?;
        }
        Ok(tx.commit().await?)
    }

    /// Mails the caller another link to verify the address.
    ///
    /// # Errors
    /// [`AuthError::Conflict`] where it is verified.
    pub async fn request_verification(&self, caller: &Caller) -> Result<(), AuthError> {
        let (_, user_id) = own_session(caller)?;
        let user = self.person(user_id).await?;
        if user.email_verified_at.is_some() {
            return Err(AuthError::Conflict("the address is verified"));
        }
        let email = address_of(&user.email)?;
        let mut tx = self.store.begin_personal(user_id).await?;
        self.mail_verification(&mut tx, &user, &email).await?;
        Ok(tx.commit().await?)
    }

    /// Mails a person a link to verify the address, in a transaction of that person.
    pub(super) async fn mail_verification(
        &self,
        tx: &mut Tx,
        user: &User,
        email: &Email,
    ) -> Result<(), AuthError> {
        let (token, now) = (self.env.new_uuid(), self.env.clock.now());
        let (purpose, expires_at) = (Purpose::VerifyEmail, now + VERIFY_LIFETIME);
        let stored =
            store::one_time_tokens::insert(tx, user.id, token, purpose, email, now, expires_at);
        if stored.await? {
            self.mail(tx, user.email.clone(), MailSubject::VerifyEmail { token }).await?;
        }
        Ok(())
    }

    /// Puts a mail into the outbox: it is sent if the transaction commits.
    pub(super) async fn mail(
        &self,
        tx: &mut Tx,
        to: String,
        subject: MailSubject,
    ) -> Result<(), AuthError> {
        let mail = Mail { to, subject };
        Ok(store::mail::insert(tx, self.env.new_uuid(), &mail).await?)
    }

    /// When and from where a request was made.
    pub(super) fn origin(&self, request: &RequestInfo) -> Origin {
        Origin {
            at: timestamp::format(self.env.clock.now()),
            ip: request.ip.to_string(),
            user_agent: request.user_agent.clone(),
        }
    }

    pub(super) async fn person(&self, id: UserId) -> Result<User, AuthError> {
        let mut tx = self.store.begin_personal(id).await?;
        store::users::get(&mut tx, id).await?.ok_or(AuthError::NotFound("account"))
    }
}

/// The address of an account, which was one when it was stored.
pub(super) fn address_of(email: &str) -> Result<Email, AuthError> {
    Email::parse(email).map_err(|_| AuthError::Internal("an account has no address"))
}
