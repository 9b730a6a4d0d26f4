//! Sign-in with a password.
//!
//! A sign-in never reveals whether an email address is registered: not by the error and not by the
//! response time. `mfa` completes sign-ins that require a code;
//! [`super::passkeys`] signs in without a password.

mod mfa;

use std::sync::Arc;

use serde_json::json;

use super::{
    AuthError,
    context::ServiceContext,
    password_hashing::PasswordVerification,
    passwords::Passwords,
    second_factors::SecondFactors,
    sessions::{SessionCredentials, Sessions},
    workspaces::{Workspaces, default_workspace_name},
};
use crate::{
    model::{
        address,
        audit::{Action, Actor, RequestInfo},
        email::Email,
        id::WorkspaceId,
        mail::EmailKind,
        password::Password,
        scope::Role,
        user::Membership,
    },
    store::{self, Audited, Tx, users::SignInAccount},
};

/// Signs users in with a password and, if required, a code.
pub struct SignIn {
    pub(super) context: Arc<ServiceContext>,
    pub(super) passwords: Arc<Passwords>,
    pub(super) second_factors: Arc<SecondFactors>,
    pub(super) sessions: Arc<Sessions>,
    pub(super) workspaces: Arc<Workspaces>,
}

impl SignIn {
    /// Signs a user in with a password: to the given workspace, or the one last used, or the
    /// oldest.
    ///
    /// # Errors
    /// [`AuthError::WrongEmailOrPassword`] for an unknown address or a wrong password;
    /// [`AuthError::TooManyAttempts`] after failed attempts; [`AuthError::MfaRequired`] if a code
    /// is required; [`AuthError::Forbidden`] if the user is not a member of the given workspace.
    #[tracing::instrument(
        name = "auth.sign_in.with_password",
        level = "debug",
        skip_all,
        err(level = "debug")
    )]
    pub async fn with_password(
        &self,
        email: &str,
        password: &Password,
        workspace: Option<WorkspaceId>,
        request: &Arc<RequestInfo>,
    ) -> Result<SessionCredentials, AuthError> {
        let Ok(email) = Email::parse(email) else {
            // No user can have this address. Hash all the same, to take the same time.
            self.passwords.hasher.verify(password, None).await?;
            return Err(AuthError::WrongEmailOrPassword);
        };
        let (account, verified) = self.passwords.verify(&email, password, request).await?;
        let Some(account) = account else { return Err(AuthError::WrongEmailOrPassword) };
        if verified == PasswordVerification::Wrong {
            self.record_failure(&account, request, "wrong_password", 401).await?;
            return Err(AuthError::WrongEmailOrPassword);
        }
        self.finish(&account, password, verified, workspace, request).await
    }

    async fn finish(
        &self,
        account: &SignInAccount,
        password: &Password,
        verified: PasswordVerification,
        requested: Option<WorkspaceId>,
        request: &Arc<RequestInfo>,
    ) -> Result<SessionCredentials, AuthError> {
        let new_hash = match verified {
            PasswordVerification::CorrectNeedsRehash => {
                Some(self.passwords.hasher.hash(password).await?)
            }
            _ => None,
        };
        let mut tx = self.context.store.begin_for_user(account.user_id).await?;
        // The password may have been changed during verification, which ended the user's sessions.
        // The old password must not start a new one.
        let current_hash = account.password_hash.as_ref().ok_or(AuthError::WrongEmailOrPassword)?;
        if !store::users::lock_password_hash(&mut tx, current_hash, new_hash.as_ref()).await? {
            return Err(AuthError::WrongEmailOrPassword);
        }
        // In a separate statement: the one above may have waited for a transaction that set up a
        // second factor, and would not see it.
        if store::second_factor::has_totp(&mut tx, account.user_id).await? {
            let token = self.create_mfa_challenge(&mut tx, account.user_id, requested).await?;
            let audited = Audited::exempt("the sign-in is not complete");
            tx.commit(audited).await?.unfenced("a challenge, which grants no access yet");
            return Err(AuthError::MfaRequired(token));
        }
        let (credentials, audited) = self.complete(&mut tx, account, requested, request).await?;
        tx.commit(audited).await?.unfenced("a new session, which no node has cached");
        Ok(credentials)
    }

    /// Starts a session for an authenticated user, in a transaction of that user which the caller
    /// must commit. Emails the user if the device is new.
    pub(in crate::auth) async fn complete(
        &self,
        tx: &mut Tx,
        account: &SignInAccount,
        requested: Option<WorkspaceId>,
        request: &Arc<RequestInfo>,
    ) -> Result<(SessionCredentials, Audited), AuthError> {
        let memberships = store::members::list_by_user(tx, account.user_id).await?;
        let membership_in =
            |id: WorkspaceId| memberships.iter().find(move |m| m.workspace_id == id);
        let membership = match requested {
            Some(id) => membership_in(id),
            None => account.last_workspace_id.and_then(membership_in).or(memberships.first()),
        };
        let membership = match (membership, requested) {
            (Some(membership), _) => *membership,
            // The user was removed from the last workspace. Create one, since a user without a
            // workspace can do nothing.
            (None, None) => self.create_first_workspace(tx, account, request).await?,
            (None, Some(_)) => {
                self.record_failure(account, request, "not_a_member", 403).await?;
                return Err(AuthError::Forbidden("you are not a member of this workspace"));
            }
        };
        let (network, client) = (address::site_subnet(request.ip), request.user_agent.as_deref());
        if store::sessions::set_workspace_and_check_device(
            tx,
            membership.workspace_id,
            network,
            client,
        )
        .await?
        {
            let subject =
                EmailKind::NewDeviceAuthorization { origin: self.context.request_origin(request) };
            self.context.enqueue_email(tx, account.email.clone(), subject).await?;
        }
        let actor = Actor::user_with_name(account.user_id, account.display_name());
        self.sessions.create(tx, account.user_id, actor, membership, request, 200).await
    }

    /// Creates a workspace for a user without any, in a transaction of that user.
    async fn create_first_workspace(
        &self,
        tx: &mut Tx,
        account: &SignInAccount,
        request: &Arc<RequestInfo>,
    ) -> Result<Membership, AuthError> {
        let name = default_workspace_name(account.full_name.as_deref().unwrap_or(&account.email));
        let workspace = self.workspaces.build(name);
        tx.set_joining(workspace.id, account.user_id).await?;
        let (action, actor) = (Action::WorkspaceCreated, Actor::system());
        let event = self.context.audit_event(request, workspace.id, action, actor, 200);
        self.workspaces.insert(tx, &workspace, event).await?;
        Ok(Membership { workspace_id: workspace.id, role: Role::Owner })
    }

    /// Records a failed sign-in through the audit queue, not in a transaction, and without waiting
    /// for its commit even if durability is strict: a wrong password must not take longer than an
    /// unknown address.
    pub(in crate::auth) async fn record_failure(
        &self,
        account: &SignInAccount,
        request: &Arc<RequestInfo>,
        reason: &str,
        status: u16,
    ) -> Result<(), AuthError> {
        let Some(workspace) = account.last_workspace_id else { return Ok(()) };
        let event = self
            .context
            .audit_event(request, workspace, Action::LoginFailed, Actor::anonymous(), status)
            .with_target(account.user_id, account.email.clone())
            .with_metadata(json!({ "reason": reason }));
        self.context.queue_audit_event(event).await
    }
}
