//! Workspaces of a person: seen, made, changed, deleted.

use serde_json::json;

use super::{Auth, AuthError, check_password::UNCONFIRMED, sessions::own_session};
use crate::{
    audit,
    model::{
        audit::{Action, Actor, NewEvent},
        email::Email,
        id::UserId,
        page::{Items, Page},
        password::Password,
        principal::Caller,
        scope::Role,
        text,
        workspace::{OwnWorkspace, Workspace, WorkspaceChange},
    },
    store::{self, Tx},
};

/// Workspaces that a person may be a member of when making another.
const MAX_OWN: i64 = 100;
const OWNERS_ASK: AuthError =
    AuthError::Forbidden("an owner's own session says what a workspace asks of its people");

impl Auth {
    /// The caller's workspaces, and how many there are.
    ///
    /// # Errors
    /// [`AuthError::Forbidden`] for a caller that is no session.
    pub async fn own_workspaces(
        &self,
        caller: &Caller,
        page: Page,
    ) -> Result<(Items<OwnWorkspace>, i64), AuthError> {
        let (_, user) = own_session(caller)?;
        let mut tx = self.store.begin_personal(user).await?;
        let items = store::workspaces::of_person(&mut tx, user, page).await?;
        let total = store::workspaces::count_of_person(&mut tx, user).await?;
        Ok((items, total))
    }

    /// Makes a workspace, of which the caller is the owner, in the transaction of the request.
    ///
    /// # Errors
    /// [`AuthError::Invalid`] for a bad name, [`AuthError::Conflict`] for somebody who has too many.
    pub async fn found_workspace(
        &self,
        tx: &mut Tx,
        caller: &Caller,
        name: &str,
    ) -> Result<OwnWorkspace, AuthError> {
        let (_, user) = own_session(caller)?;
        let name = text::name("name", name).map_err(|why| AuthError::invalid("name", why))?;
        let workspace = self.new_workspace(name);
        tx.enter(workspace.id).await?;
        if store::workspaces::count_of_person(tx, user).await? >= MAX_OWN {
            return Err(AuthError::Conflict("you are in too many workspaces"));
        }
        let action = Action::WorkspaceCreated;
        let event = audit::event_in(&self.env, caller, workspace.id, action, 201);
        self.found(tx, &workspace, user, event).await?;
        Ok(OwnWorkspace { workspace, role: Role::Owner })
    }

    /// Makes a further workspace for somebody who has an account, as the operator does.
    ///
    /// # Errors
    /// [`AuthError::NotFound`] for an unknown address, [`AuthError::Invalid`] for bad values.
    pub async fn create_workspace(
        &self,
        name: &str,
        owner_email: &str,
    ) -> Result<Workspace, AuthError> {
        let name = text::name("name", name).map_err(|why| AuthError::invalid("name", why))?;
        let email = Email::parse(owner_email).map_err(|why| AuthError::invalid("owner", why))?;
        let owner = self.store.find_sign_in(&email).await?;
        let owner = owner.ok_or(AuthError::NotFound("account"))?.user_id;
        let workspace = self.new_workspace(name);
        let mut tx = self.store.begin(workspace.id, Some(owner)).await?;
        let (founded, id) = (Action::WorkspaceCreated, self.env.new_id());
        let event = NewEvent::new(id, workspace.id, founded, Actor::system());
        self.found(&mut tx, &workspace, owner, event).await?;
        tx.commit().await?;
        Ok(workspace)
    }

    /// A workspace to be.
    pub(super) fn new_workspace(&self, name: String) -> Workspace {
        let (id, created_at) = (self.env.new_id(), self.env.clock.now());
        Workspace {
            id,
            name,
            rate_limit_per_minute: None,
            require_second_factor: false,
            created_at,
        }
    }

    /// Stores a workspace, its first owner and the event that tells of it, in a transaction of both.
    pub(super) async fn found(
        &self,
        tx: &mut Tx,
        workspace: &Workspace,
        owner: UserId,
        event: NewEvent,
    ) -> Result<(), AuthError> {
        store::workspaces::insert(tx, workspace).await?;
        let since = workspace.created_at;
        store::members::insert(tx, workspace.id, owner, Role::Owner, since).await?;
        let event = event.on(workspace.id, workspace.name.clone());
        Ok(store::audit::insert(tx, workspace.id, &event).await?)
    }

    /// Changes the caller's workspace. What it asks of its people is an owner's to say, who has set a second
    /// factor up and gives the password or has just signed in.
    ///
    /// # Errors
    /// [`AuthError::Invalid`] for a bad name or password, [`AuthError::Forbidden`] for anybody but such an
    /// owner.
    pub async fn update_workspace(
        &self,
        caller: &Caller,
        change: WorkspaceChange,
        password: Option<&Password>,
    ) -> Result<Workspace, AuthError> {
        let name = change.name.map(|name| text::name("name", &name)).transpose();
        let name = name.map_err(|why| AuthError::invalid("name", why))?;
        let change = WorkspaceChange { name, ..change };
        if change.require_second_factor.is_some() && !self.is_confirmed(caller, password).await? {
            return Err(own_session(caller).map_or(OWNERS_ASK, |_| UNCONFIRMED));
        }
        let workspace = caller.workspace();
        let mut tx = self.store.begin(workspace, caller.principal.person()).await?;
        if change.require_second_factor.is_some() {
            self.check_may_ask(&mut tx, caller).await?;
        }
        if change != WorkspaceChange::default() {
            store::workspaces::update(&mut tx, workspace, &change).await?;
            let mut event = audit::event(&self.env, caller, Action::WorkspaceUpdated, 200)
                .on(workspace, change.name.clone());
            if let Some(required) = change.require_second_factor {
                event = event.with(json!({ "require_second_factor": required }));
            }
            store::audit::insert(&mut tx, workspace, &event).await?;
        }
        let changed = store::workspaces::get(&mut tx, workspace).await?;
        tx.commit().await?;
        if change.require_second_factor.is_some() {
            self.fence.wait().await?;
        }
        changed.ok_or(AuthError::NotFound("workspace"))
    }

    /// Whether the caller may say what a workspace asks of its people.
    async fn check_may_ask(&self, tx: &mut Tx, caller: &Caller) -> Result<(), AuthError> {
        let (_, user) = own_session(caller)?;
        if self.lock_members(tx, caller).await? != Role::Owner {
            return Err(OWNERS_ASK);
        }
        // Or they would be the first to be shut out.
        if !store::second_factor::exists(tx, user).await? {
            return Err(AuthError::Forbidden("set a second factor up for yourself first"));
        }
        Ok(())
    }

    /// Deletes the caller's workspace with all that is in it: keys and sessions stop working at once. Its
    /// log is kept for its time.
    ///
    /// # Errors
    /// [`AuthError::Forbidden`] for anybody but an owner, [`AuthError::Invalid`] for a wrong password.
    pub async fn delete_workspace(
        &self,
        caller: &Caller,
        password: &Password,
    ) -> Result<(), AuthError> {
        const OWNERS: AuthError = AuthError::Forbidden("an owner deletes a workspace, nobody else");
        let (_, user_id) = own_session(caller).map_err(|_| OWNERS)?;
        let user = self.person(user_id).await?;
        self.check_password(&user, "password", password, &caller.request).await?;
        let workspace = caller.workspace();
        let mut tx = self.store.begin(workspace, Some(user_id)).await?;
        if self.lock_members(&mut tx, caller).await? != Role::Owner {
            return Err(OWNERS);
        }
        self.erase_workspace(&mut tx, caller, workspace).await?;
        tx.commit().await?;
        Ok(self.fence.wait().await?)
    }
}
