//! Accounts: register a user, and delete an account.
//!
//! A workspace that has other members never loses its last owner this way.

use std::sync::Arc;

use super::{
    AuthError,
    context::ServiceContext,
    email_verification::EmailVerification,
    members::Members,
    passwords::Passwords,
    sessions::{SessionCredentials, Sessions},
    workspaces::{Workspaces, default_workspace_name},
};
use crate::{
    auth::caller::SessionCaller,
    config::Registration,
    model::{
        audit::{Action, Actor, NewEvent, RequestInfo},
        email::Email,
        fields::Fields,
        mail::EmailKind,
        password::Password,
        scope::Role,
        text,
        user::{Membership, User},
        workspace::Workspace,
    },
    store::{self, AdminTx, Audited, StoreError, Tx},
};

/// The reason of a conflict with a change of the user's workspaces.
const WORKSPACES_CHANGED: &str = "your workspaces changed in the meantime; try again";

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
    /// The credentials of the user's first session.
    pub credentials: SessionCredentials,
    /// The user.
    pub user: User,
    /// The user's first workspace.
    pub workspace: Workspace,
}

/// Creates and deletes user accounts.
pub struct Accounts {
    pub(super) context: Arc<ServiceContext>,
    pub(super) registration: Registration,
    pub(super) email_verification: Arc<EmailVerification>,
    pub(super) members: Arc<Members>,
    pub(super) passwords: Arc<Passwords>,
    pub(super) sessions: Arc<Sessions>,
    pub(super) workspaces: Arc<Workspaces>,
}

impl Accounts {
    /// Deletes the caller's account, and the workspaces that have no other members.
    ///
    /// # Errors
    /// [`AuthError::Invalid`] for a wrong password; [`AuthError::Forbidden`] for the last owner of
    /// a workspace with other members; [`AuthError::Conflict`] if the user joined a workspace
    /// concurrently.
    #[tracing::instrument(
        name = "auth.accounts.delete",
        level = "debug",
        skip_all,
        fields(workspace = %caller.workspace()),
        err(level = "debug")
    )]
    pub async fn delete(
        &self,
        caller: &SessionCaller,
        password: &Password,
    ) -> Result<(), AuthError> {
        let user_id = caller.user();
        let user = self.context.user(user_id).await?;
        self.passwords.require(&user, "password", password, &caller.request).await?;
        let mut tx = self.context.store.begin_for_user(user_id).await?;
        let workspaces = store::members::list_by_user(&mut tx, user_id).await?;
        let mut workspaces: Vec<_> =
            workspaces.into_iter().map(|membership| membership.workspace_id).collect();
        // Lock in one order to avoid deadlocks between concurrent deletions: all workspaces,
        // sorted, then the user.
        workspaces.sort();
        let mut locked = Vec::new();
        for workspace in workspaces {
            tx.set_workspace(workspace).await.map_err(|error| match error {
                StoreError::NotAMember => AuthError::Conflict(WORKSPACES_CHANGED),
                error => error.into(),
            })?;
            let member = self.members.lock_own(&mut tx, caller, workspace).await?;
            locked.extend(member.map(|member| (workspace, member)));
        }
        let mut audited = Audited::exempt("the user is in no workspace");
        for (workspace, member) in locked {
            tx.set_workspace(workspace).await?;
            let mut admin = AdminTx::exempt(&mut tx, "users delete their own account");
            audited = if store::members::count(&mut admin, workspace).await? == 1 {
                self.workspaces.delete_in_tx(&mut admin, caller, workspace).await?
            } else {
                self.members.remove_membership(&mut admin, caller, workspace, &member).await?
            };
        }
        // With the user's row locked, the user can join no workspace. A workspace that was joined
        // since the list above was read would lose its member without an audit event.
        store::users::lock(&mut tx, user_id).await?;
        if !store::members::list_by_user(&mut tx, user_id).await?.is_empty() {
            return Err(AuthError::Conflict(WORKSPACES_CHANGED));
        }
        // An unverified address may be a stranger's. The outbox cannot check this for a deleted
        // account.
        if user.email_verified_at.is_some() {
            let origin = self.context.request_origin(&caller.request);
            let subject = EmailKind::AccountDeleted { origin };
            self.context.enqueue_email(&mut tx, user.email, subject).await?;
        }
        store::users::delete(&mut tx).await?;
        Ok(self.context.fence.wait(tx.commit(audited).await?).await?)
    }

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
    #[tracing::instrument(
        name = "auth.accounts.register",
        level = "debug",
        skip_all,
        err(level = "debug")
    )]
    pub async fn register(
        &self,
        account: NewAccount,
        request: &Arc<RequestInfo>,
    ) -> Result<RegisteredAccount, AuthError> {
        self.require_open_registration()?;
        let (mut tx, user, email, workspace) = self.insert(&account).await?;
        let (action, actor) = (Action::WorkspaceCreated, Actor::user(&user));
        let event = self.context.audit_event(request, workspace.id, action, actor, 201);
        self.workspaces.insert(&mut tx, &workspace, event).await?;
        let owner = Membership { workspace_id: workspace.id, role: Role::Owner };
        let (credentials, audited) =
            self.sessions.create(&mut tx, user.id, Actor::user(&user), owner, request, 201).await?;
        self.email_verification.send(&mut tx, &user, &email).await?;
        tx.commit(audited).await?.unfenced("a new account, which no node has cached");
        Ok(RegisteredAccount { credentials, user, workspace })
    }

    /// Creates a user with a first workspace, without a session, on behalf of the operator. Works
    /// also if registration is not open.
    ///
    /// # Errors
    /// [`AuthError::Conflict`] if the address is already registered; [`AuthError::Invalid`] for
    /// invalid values.
    #[tracing::instrument(
        name = "auth.accounts.create_as_operator",
        level = "debug",
        skip_all,
        err(level = "debug")
    )]
    pub async fn create_as_operator(
        &self,
        account: NewAccount,
    ) -> Result<(User, Workspace), AuthError> {
        let (mut tx, user, _, workspace) = self.insert(&account).await?;
        let (action, id) = (Action::WorkspaceCreated, self.context.env.new_id());
        let event = NewEvent::new(id, workspace.id, action, Actor::system());
        let audited = self.workspaces.insert(&mut tx, &workspace, event).await?;
        tx.commit(audited).await?.unfenced("a new account, which no node has cached");
        Ok((user, workspace))
    }

    /// Inserts a new user, in a new transaction of the user and the first workspace. The workspace
    /// is not inserted yet.
    async fn insert(
        &self,
        account: &NewAccount,
    ) -> Result<(Tx, User, Email, Workspace), AuthError> {
        let (user, email, workspace) = self.validate(account)?;
        let name = user.full_name.as_deref();
        let hash = self
            .passwords
            .hasher
            .hash_new_password("password", &account.password, &email, name)
            .await?;
        let mut tx = self.context.store.begin_joining(workspace.id, user.id).await?;
        store::users::insert(&mut tx, &user, &email, &hash, workspace.id).await?;
        Ok((tx, user, email, workspace))
    }

    fn validate(&self, account: &NewAccount) -> Result<(User, Email, Workspace), AuthError> {
        let invalid = AuthError::invalid;
        let email = Email::parse(&account.email).map_err(|reason| invalid("email", reason))?;
        let user = self.build(&email, account.full_name.as_deref())?;
        let workspace_name = match &account.workspace_name {
            Some(name) => text::validate_name("workspace_name", name)
                .map_err(|reason| invalid("workspace_name", reason))?,
            None => default_workspace_name(user.display_name()),
        };
        Ok((user, email, self.workspaces.build(workspace_name)))
    }

    /// Builds a new user with an unverified email address, without storing it.
    pub(super) fn build(&self, email: &Email, full_name: Option<&str>) -> Result<User, AuthError> {
        let full_name = full_name.map(|name| text::validate_name("full_name", name)).transpose();
        Ok(User {
            id: self.context.env.new_id(),
            email: email.as_str().to_owned(),
            full_name: full_name.map_err(|reason| AuthError::invalid("full_name", reason))?,
            profile: Fields::default(),
            created_at: self.context.env.clock.now(),
            email_verified_at: None,
            reclaimable_until: None,
        })
    }
}
