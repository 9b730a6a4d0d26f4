//! Registration, and sign-in with a password.
//!
//! A sign-in never reveals whether an email address is registered: not by the error and not by the
//! response time. [`super::second_factor`] completes sign-ins that require a code;
//! [`super::passkeys`] signs in without a password.

use std::sync::Arc;

use secrecy::SecretString;
use serde_json::json;

use super::{Auth, AuthError, password_hashing::PasswordVerification};
use crate::{
    config::Registration,
    model::{
        address,
        audit::{Action, Actor, NewEvent, RequestInfo},
        email::Email,
        fields::Fields,
        id::{SessionId, UserId, WorkspaceId},
        mail::EmailKind,
        password::Password,
        refresh_token::RefreshSeed,
        scope::Role,
        session::NewSession,
        text,
        user::{Membership, User},
        workspace::Workspace,
    },
    store::{self, Tx, users::SignInAccount},
};

/// The tokens of a session.
#[derive(Debug)]
pub struct TokenPair {
    /// The access token. Valid for one hour by default.
    pub access_token: SecretString,
    /// The refresh token. Works once, for the next pair.
    pub refresh_token: SecretString,
    /// The session of both tokens.
    pub session: SessionId,
}

/// The details of a new user.
#[derive(Debug)]
pub struct NewAccount {
    /// The email address to sign in with.
    pub email: String,
    /// The password.
    pub password: Password,
    /// The user's name.
    pub full_name: Option<String>,
    /// The name of the first workspace; by default it is named after the user.
    pub workspace_name: Option<String>,
}

/// The result of a registration.
#[derive(Debug)]
pub struct RegisteredAccount {
    /// The tokens of the user's first session.
    pub tokens: TokenPair,
    /// The user.
    pub user: User,
    /// The user's first workspace.
    pub workspace: Workspace,
}

impl Auth {
    /// Checks that registration is open to everyone.
    ///
    /// # Errors
    /// [`AuthError::Forbidden`] if it requires an invitation or is closed.
    pub fn require_open_registration(&self) -> Result<(), AuthError> {
        match self.registration {
            Registration::Open => Ok(()),
            Registration::Invite => {
                Err(AuthError::Forbidden("registration requires an invitation"))
            }
            Registration::Closed => Err(AuthError::Forbidden("registration is closed")),
        }
    }

    /// Registers a user with a first workspace, and signs the user in.
    ///
    /// # Errors
    /// [`AuthError::Forbidden`] if registration is not open; [`AuthError::Conflict`] if the address
    /// is already registered; [`AuthError::Invalid`] for invalid values.
    pub async fn register(
        &self,
        account: NewAccount,
        request: &Arc<RequestInfo>,
    ) -> Result<RegisteredAccount, AuthError> {
        self.require_open_registration()?;
        let (mut tx, user, email, workspace) = self.insert_account(&account).await?;
        let (action, actor) = (Action::WorkspaceCreated, Actor::user(&user));
        let event = self.audit_event(request, workspace.id, action, actor, 201);
        self.insert_workspace(&mut tx, &workspace, user.id, event).await?;
        let owner = Membership { workspace_id: workspace.id, role: Role::Owner };
        let tokens =
            self.create_session(&mut tx, user.id, Actor::user(&user), owner, request, 201).await?;
        self.send_email_verification(&mut tx, &user, &email).await?;
        tx.commit().await?;
        Ok(RegisteredAccount { tokens, user, workspace })
    }

    /// Creates a user with a first workspace, without a session, on behalf of the operator. Works
    /// also if registration is not open.
    ///
    /// # Errors
    /// [`AuthError::Conflict`] if the address is already registered; [`AuthError::Invalid`] for
    /// invalid values.
    pub async fn create_account_as_operator(
        &self,
        account: NewAccount,
    ) -> Result<(User, Workspace), AuthError> {
        let (mut tx, user, _, workspace) = self.insert_account(&account).await?;
        let (action, id) = (Action::WorkspaceCreated, self.env.new_id());
        let event = NewEvent::new(id, workspace.id, action, Actor::system());
        self.insert_workspace(&mut tx, &workspace, user.id, event).await?;
        tx.commit().await?;
        Ok((user, workspace))
    }

    /// Inserts a new user, in a new transaction of the user and the first workspace. The workspace
    /// is not inserted yet.
    async fn insert_account(
        &self,
        account: &NewAccount,
    ) -> Result<(Tx, User, Email, Workspace), AuthError> {
        let (user, email, workspace) = self.validate_account(account)?;
        let name = user.full_name.as_deref();
        let hash = self
            .password_hasher
            .hash_new_password("password", &account.password, &email, name)
            .await?;
        let mut tx = self.store.begin(workspace.id, Some(user.id)).await?;
        store::users::insert(&mut tx, &user, &email, &hash, workspace.id).await?;
        Ok((tx, user, email, workspace))
    }

    fn validate_account(
        &self,
        account: &NewAccount,
    ) -> Result<(User, Email, Workspace), AuthError> {
        let invalid = AuthError::invalid;
        let email = Email::parse(&account.email).map_err(|reason| invalid("email", reason))?;
        let user = self.build_user(&email, account.full_name.as_deref())?;
        let workspace_name = match &account.workspace_name {
            Some(name) => text::validate_name("workspace_name", name)
                .map_err(|reason| invalid("workspace_name", reason))?,
            None => default_workspace_name(user.display_name()),
        };
        Ok((user, email, self.build_workspace(workspace_name)))
    }

    /// Builds a new user with an unverified email address, without storing it.
    pub(super) fn build_user(
        &self,
        email: &Email,
        full_name: Option<&str>,
    ) -> Result<User, AuthError> {
        let full_name = full_name.map(|name| text::validate_name("full_name", name)).transpose();
        Ok(User {
            id: self.env.new_id(),
            email: email.as_str().to_owned(),
            full_name: full_name.map_err(|reason| AuthError::invalid("full_name", reason))?,
            profile: Fields::default(),
            created_at: self.env.clock.now(),
            email_verified_at: None,
        })
    }

    /// Signs a user in with a password: to the given workspace, or the one last used, or the
    /// oldest.
    ///
    /// # Errors
    /// [`AuthError::WrongEmailOrPassword`] for an unknown address or a wrong password;
    /// [`AuthError::TooManyAttempts`] after failed attempts; [`AuthError::MfaRequired`] if a code
    /// is required; [`AuthError::Forbidden`] if the user is not a member of the given workspace.
    pub async fn sign_in(
        &self,
        email: &str,
        password: &Password,
        workspace: Option<WorkspaceId>,
        request: &Arc<RequestInfo>,
    ) -> Result<TokenPair, AuthError> {
        let Ok(email) = Email::parse(email) else {
            // No user can have this address. Hash all the same, to take the same time.
            self.password_hasher.verify(password, None).await?;
            return Err(AuthError::WrongEmailOrPassword);
        };
        let (account, verified) = self.verify_password(&email, password, request).await?;
        let Some(account) = account else { return Err(AuthError::WrongEmailOrPassword) };
        if verified == PasswordVerification::Wrong {
            self.record_failed_sign_in(&account, request, "wrong_password", 401).await?;
            return Err(AuthError::WrongEmailOrPassword);
        }
        self.finish_sign_in(&account, password, verified, workspace, request).await
    }

    async fn finish_sign_in(
        &self,
        account: &SignInAccount,
        password: &Password,
        verified: PasswordVerification,
        requested: Option<WorkspaceId>,
        request: &Arc<RequestInfo>,
    ) -> Result<TokenPair, AuthError> {
        let new_hash = match verified {
            PasswordVerification::CorrectNeedsRehash => {
                Some(self.password_hasher.hash(password).await?)
            }
            _ => None,
        };
        let mut tx = self.store.begin_for_user(account.user_id).await?;
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
            tx.commit().await?;
            return Err(AuthError::MfaRequired(token));
        }
        let pair = self.complete_sign_in(&mut tx, account, requested, request).await?;
        tx.commit().await?;
        Ok(pair)
    }

    /// Starts a session for an authenticated user, in a transaction of that user which the caller
    /// must commit. Emails the user if the device is new.
    pub(super) async fn complete_sign_in(
        &self,
        tx: &mut Tx,
        account: &SignInAccount,
        requested: Option<WorkspaceId>,
        request: &Arc<RequestInfo>,
    ) -> Result<TokenPair, AuthError> {
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
                self.record_failed_sign_in(account, request, "not_a_member", 403).await?;
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
                EmailKind::NewDeviceAuthorization { origin: self.request_origin(request) };
            self.enqueue_email(tx, account.email.clone(), subject).await?;
        }
        let actor = Actor::user_with_name(account.user_id, account.display_name());
        self.create_session(tx, account.user_id, actor, membership, request, 200).await
    }

    /// Creates a workspace for a user without any, in a transaction of that user.
    async fn create_first_workspace(
        &self,
        tx: &mut Tx,
        account: &SignInAccount,
        request: &Arc<RequestInfo>,
    ) -> Result<Membership, AuthError> {
        let name = default_workspace_name(account.full_name.as_deref().unwrap_or(&account.email));
        let workspace = self.build_workspace(name);
        tx.set_workspace(workspace.id).await?;
        let (action, actor) = (Action::WorkspaceCreated, Actor::system());
        let event = self.audit_event(request, workspace.id, action, actor, 200);
        self.insert_workspace(tx, &workspace, account.user_id, event).await?;
        Ok(Membership { workspace_id: workspace.id, role: Role::Owner })
    }

    /// Stores a session and its audit event, and issues its first token pair.
    pub(super) async fn create_session(
        &self,
        tx: &mut Tx,
        user: UserId,
        actor: Actor,
        Membership { workspace_id, role }: Membership,
        request: &Arc<RequestInfo>,
        status: u16,
    ) -> Result<TokenPair, AuthError> {
        let now = self.env.clock.now();
        let session = NewSession {
            id: self.env.new_id(),
            user_id: user,
            workspace_id,
            created_at: now,
            expires_at: now + self.lifetimes.session,
            ip: request.ip,
            user_agent: request.user_agent.clone(),
            seed: RefreshSeed::new(self.env.entropy.bytes()),
        };
        store::sessions::insert(tx, &session).await?;
        let event = self
            .audit_event(request, workspace_id, Action::SessionCreated, actor, status)
            .with_target(session.id, None);
        store::audit::insert(tx, workspace_id, &event).await?;
        self.issue_token_pair(user, workspace_id, session.id, role, 0, &session.seed)
    }

    pub(super) fn issue_token_pair(
        &self,
        user: UserId,
        workspace: WorkspaceId,
        session: SessionId,
        role: Role,
        generation: u32,
        seed: &RefreshSeed,
    ) -> Result<TokenPair, AuthError> {
        Ok(TokenPair {
            access_token: self.issue_session_token(user, workspace, session, role)?.into(),
            refresh_token: self.session_refresh_key.derive(session, generation, seed),
            session,
        })
    }

    /// Records a failed sign-in through the audit queue, not in a transaction, and without waiting
    /// for its commit even if durability is strict: a wrong password must not take longer than an
    /// unknown address.
    pub(super) async fn record_failed_sign_in(
        &self,
        account: &SignInAccount,
        request: &Arc<RequestInfo>,
        reason: &str,
        status: u16,
    ) -> Result<(), AuthError> {
        let Some(workspace) = account.last_workspace_id else { return Ok(()) };
        let event = self
            .audit_event(request, workspace, Action::LoginFailed, Actor::anonymous(), status)
            .with_target(account.user_id, account.email.clone())
            .with_metadata(json!({ "reason": reason }));
        self.queue_audit_event(event).await
    }

    /// Queues an audit event that is not part of a transaction.
    ///
    /// # Errors
    /// [`AuthError::AuditQueueFull`] if the queue is full.
    pub(crate) async fn queue_audit_event(&self, event: NewEvent) -> Result<(), AuthError> {
        self.audit.reserve().await.ok_or(AuthError::AuditQueueFull)?.send(event);
        Ok(())
    }

    /// Creates an audit event for a request.
    pub(crate) fn audit_event(
        &self,
        request: &Arc<RequestInfo>,
        workspace: WorkspaceId,
        action: Action,
        actor: Actor,
        status: u16,
    ) -> NewEvent {
        NewEvent::new(self.env.new_id(), workspace, action, actor).with_request(
            request,
            status,
            self.env.clock.monotonic(),
        )
    }
}

/// The default name of a user's first workspace.
fn default_workspace_name(user_name: &str) -> String {
    format!("{}'s workspace", text::truncate_bytes(user_name, 80))
}
