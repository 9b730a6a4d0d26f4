//! Workspaces: list, create, update and delete them.
//!
//! Only an owner deletes a workspace or changes whether it requires a second factor.
//! [`super::members`] manages the members.

use std::sync::Arc;

use serde_json::json;

use super::{
    AuthError,
    context::ServiceContext,
    passwords::{Passwords, REAUTHENTICATION_REQUIRED},
    sessions::SESSION_ENDED,
};
use crate::{
    audit,
    auth::caller::SessionCaller,
    model::{
        audit::{Action, Actor, NewEvent},
        email::Email,
        id::{UserId, WorkspaceId},
        oauth::grant::GrantEndReason,
        page::{ListPage, PageRequest},
        password::Password,
        principal::Caller,
        scope::Role,
        text,
        workspace::{Workspace, WorkspaceChange, WorkspaceWithRole},
    },
    store::{self, AdminRights, AdminTx, Audited, Tx},
};

/// Maximum number of workspaces that a user may be a member of when creating another.
const MAX_WORKSPACES: i64 = 100;

const OWNER_REQUIRED: AuthError =
    AuthError::Forbidden("only a signed-in owner can change whether a second factor is required");

/// Creates, updates and deletes workspaces.
pub struct Workspaces {
    pub(super) context: Arc<ServiceContext>,
    pub(super) passwords: Arc<Passwords>,
}

impl Workspaces {
    /// Deletes the transaction's workspace and everything in it except its audit log.
    pub(super) async fn delete_in_tx(
        &self,
        tx: &mut AdminTx<'_>,
        caller: &Caller,
        workspace: WorkspaceId,
    ) -> Result<Audited, AuthError> {
        let row = store::workspaces::get(tx, workspace).await?;
        let row = row.ok_or(AuthError::NotFound("workspace"))?;
        let event = audit::event_in_workspace(
            &self.context.env,
            caller,
            workspace,
            Action::WorkspaceDeleted,
            204,
        )
        .with_target(workspace, row.name);
        let audited = store::audit::insert(tx, workspace, &event).await?;
        let external_grants = store::oauth_clients::list_external_grants(tx, None).await?;
        store::workspaces::delete(tx).await?;
        let request = Some(&*caller.request);
        let reason = GrantEndReason::ClientDeleted;
        self.context.audit_ended_grants(tx, request, reason, external_grants).await?;
        Ok(audited)
    }

    /// Lists the workspaces of the caller's user, and counts them.
    ///
    /// # Errors
    /// [`AuthError::Forbidden`] if the caller is not a user session.
    #[tracing::instrument(
        name = "auth.workspaces.list_own",
        level = "debug",
        skip_all,
        fields(workspace = %caller.workspace()),
        err(level = "debug")
    )]
    pub async fn list_own(
        &self,
        caller: &SessionCaller,
        page: PageRequest,
    ) -> Result<(ListPage<WorkspaceWithRole>, i64), AuthError> {
        let user = caller.user();
        let mut tx = self.context.store.begin_for_user(user).await?;
        let items = store::workspaces::list_by_user(&mut tx, user, page).await?;
        let total = store::workspaces::count_by_user(&mut tx, user).await?;
        Ok((items, total))
    }

    /// Creates a workspace that the caller owns, in the request's transaction.
    ///
    /// # Errors
    /// [`AuthError::Invalid`] for an invalid name; [`AuthError::Conflict`] if the user has too many
    /// workspaces; [`AuthError::InvalidCredential`] if the session has ended.
    #[tracing::instrument(
        name = "auth.workspaces.create",
        level = "debug",
        skip_all,
        fields(workspace = %caller.workspace()),
        err(level = "debug")
    )]
    pub async fn create(
        &self,
        tx: &mut Tx,
        caller: &SessionCaller,
        name: &str,
    ) -> Result<(WorkspaceWithRole, Audited), AuthError> {
        let user = caller.user();
        let name = text::validate_name("name", name)
            .map_err(|reason| AuthError::invalid("name", reason))?;
        let workspace = self.build(name);
        tx.set_joining(workspace.id, user).await?;
        // Concurrent requests of the user take turns, so that the count below holds, and wait for a
        // reset or a verification that ends the session.
        store::users::lock(tx, user).await?.ok_or(SESSION_ENDED)?;
        let session = caller.presented_session();
        store::sessions::active_since(tx, user, session).await?.ok_or(SESSION_ENDED)?;
        if store::workspaces::count_by_user(tx, user).await? >= MAX_WORKSPACES {
            return Err(AuthError::Conflict("you are a member of too many workspaces"));
        }
        let action = Action::WorkspaceCreated;
        let event = audit::event_in_workspace(&self.context.env, caller, workspace.id, action, 201);
        let audited = self.insert(tx, &workspace, event).await?;
        Ok((WorkspaceWithRole { workspace, role: Role::Owner }, audited))
    }

    /// Creates a workspace for an existing user, on behalf of the operator.
    ///
    /// # Errors
    /// [`AuthError::NotFound`] for an unknown email address; [`AuthError::Invalid`] for invalid
    /// values.
    #[tracing::instrument(
        name = "auth.workspaces.create_as_operator",
        level = "debug",
        skip_all,
        err(level = "debug")
    )]
    pub async fn create_as_operator(
        &self,
        name: &str,
        owner_email: &str,
    ) -> Result<Workspace, AuthError> {
        let name = text::validate_name("name", name)
            .map_err(|reason| AuthError::invalid("name", reason))?;
        let email =
            Email::parse(owner_email).map_err(|reason| AuthError::invalid("owner", reason))?;
        let owner = self.context.store.find_account(&email).await?;
        let owner = owner.ok_or(AuthError::NotFound("account"))?.user_id;
        let workspace = self.build(name);
        let mut tx = self.context.store.begin_joining(workspace.id, owner).await?;
        let (action, id) = (Action::WorkspaceCreated, self.context.env.new_id());
        let event = NewEvent::new(id, workspace.id, action, Actor::system());
        let audited = self.insert(&mut tx, &workspace, event).await?;
        tx.commit(audited).await?.unfenced("a new workspace, which no node has cached");
        Ok(workspace)
    }

    /// Builds a new workspace, without storing it.
    pub(super) fn build(&self, name: String) -> Workspace {
        let (id, created_at) = (self.context.env.new_id(), self.context.env.clock.now());
        Workspace {
            id,
            name,
            rate_limit_per_minute: None,
            require_second_factor: false,
            created_at,
        }
    }

    /// Stores a workspace, its first owner and its audit event, in a transaction of workspace and
    /// owner.
    pub(super) async fn insert(
        &self,
        tx: &mut Tx,
        workspace: &Workspace,
        event: NewEvent,
    ) -> Result<Audited, AuthError> {
        store::workspaces::create(tx, workspace).await?;
        let event = event.with_target(workspace.id, workspace.name.clone());
        Ok(store::audit::insert(tx, workspace.id, &event).await?)
    }

    /// Sets the rate limit of each credential of a workspace, on behalf of the operator, and waits
    /// until every node applies it. `None` restores the configured default. Limits of keys that are
    /// above the new one are lowered to it. Returns the effective limit.
    ///
    /// # Errors
    /// [`AuthError::NotFound`] for an unknown workspace; [`AuthError::Invalid`] for a limit of 0.
    #[tracing::instrument(
        name = "auth.workspaces.set_rate_limit_as_operator",
        level = "debug",
        skip_all,
        fields(%workspace),
        err(level = "debug")
    )]
    pub async fn set_rate_limit_as_operator(
        &self,
        workspace: WorkspaceId,
        per_minute: Option<u32>,
    ) -> Result<u32, AuthError> {
        if let Some(limit) = per_minute {
            check_rate_limit(limit)?;
        }
        let effective = self.context.limits.effective_limit(per_minute);
        let mut tx = self.context.store.begin(workspace, None).await?;
        let mut admin = AdminTx::exempt(&mut tx, "the operator sets limits");
        if !store::workspaces::set_rate_limit(&mut admin, workspace, per_minute).await? {
            return Err(AuthError::NotFound("workspace"));
        }
        store::api_keys::lower_rate_limits(&mut admin, workspace, effective).await?;
        let (action, id) = (Action::WorkspaceUpdated, self.context.env.new_id());
        let event = NewEvent::new(id, workspace, action, Actor::system())
            .with_target(workspace, None)
            .with_metadata(json!({ "rate_limit_per_minute": per_minute }));
        let audited = store::audit::insert(&mut tx, workspace, &event).await?;
        self.context.fence.wait(tx.commit(audited).await?).await?;
        Ok(effective)
    }

    /// Updates the caller's workspace. Only an owner may change whether it requires a second
    /// factor, and only after setting one up and confirming the password or signing in recently.
    ///
    /// # Errors
    /// [`AuthError::Invalid`] for an invalid name or a wrong password; [`AuthError::Forbidden`] if
    /// those conditions are not met.
    #[tracing::instrument(
        name = "auth.workspaces.update",
        level = "debug",
        skip_all,
        fields(workspace = %caller.workspace()),
        err(level = "debug")
    )]
    pub async fn update(
        &self,
        caller: &Caller,
        change: WorkspaceChange,
        password: Option<&Password>,
    ) -> Result<Workspace, AuthError> {
        let name = change.name.map(|name| text::validate_name("name", &name)).transpose();
        let name = name.map_err(|reason| AuthError::invalid("name", reason))?;
        let change = WorkspaceChange { name, ..change };
        let owner = match change.require_second_factor {
            Some(_) => Some(self.require_recent_session(caller, password).await?.user()),
            None => None,
        };
        let workspace = caller.workspace();
        let mut tx = self.context.store.begin_as(caller).await?;
        let (mut admin, rights) = AdminTx::lock(&mut tx, caller).await?;
        if let Some(owner) = owner {
            check_can_require_second_factor(&mut admin, &rights, owner).await?;
        }
        let audited = if change == WorkspaceChange::default() {
            Audited::exempt("nothing changed")
        } else {
            store::workspaces::update(&mut admin, workspace, &change).await?;
            let mut event = audit::event(&self.context.env, caller, Action::WorkspaceUpdated, 200)
                .with_target(workspace, change.name.clone());
            if let Some(required) = change.require_second_factor {
                event = event.with_metadata(json!({ "require_second_factor": required }));
            }
            store::audit::insert(&mut admin, workspace, &event).await?
        };
        let updated = store::workspaces::get(&mut tx, workspace).await?;
        let committed = tx.commit(audited).await?;
        if change.require_second_factor.is_some() {
            self.context.fence.wait(committed).await?;
        } else {
            committed.unfenced("a name restricts no access");
        }
        updated.ok_or(AuthError::NotFound("workspace"))
    }

    /// Requires that the caller is a user session that has reauthenticated.
    async fn require_recent_session(
        &self,
        caller: &Caller,
        password: Option<&Password>,
    ) -> Result<SessionCaller, AuthError> {
        let session = SessionCaller::new(caller.clone()).map_err(|_| OWNER_REQUIRED)?;
        if self.passwords.has_reauthenticated(caller, password).await? {
            Ok(session)
        } else {
            Err(REAUTHENTICATION_REQUIRED)
        }
    }

    /// Deletes the caller's workspace and everything in it; its keys and sessions stop working at
    /// once. Its audit log is kept until its retention ends.
    ///
    /// # Errors
    /// [`AuthError::Forbidden`] unless the caller is an owner's session; [`AuthError::Invalid`] for
    /// a wrong password.
    #[tracing::instrument(
        name = "auth.workspaces.delete",
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
        let workspace = caller.workspace();
        let mut tx = self.context.store.begin(workspace, Some(user_id)).await?;
        let (mut admin, rights) = AdminTx::lock(&mut tx, caller).await?;
        if rights.role != Role::Owner {
            return Err(AuthError::Forbidden("only an owner can delete the workspace"));
        }
        let audited = self.delete_in_tx(&mut admin, caller, workspace).await?;
        Ok(self.context.fence.wait(tx.commit(audited).await?).await?)
    }
}

/// Checks that a caller may change whether the workspace requires a second factor.
async fn check_can_require_second_factor(
    tx: &mut Tx,
    rights: &AdminRights,
    user: UserId,
) -> Result<(), AuthError> {
    if rights.role != Role::Owner {
        return Err(OWNER_REQUIRED);
    }
    // Otherwise the requirement would lock out the owner first.
    if !store::second_factor::has_totp(tx, user).await? {
        return Err(AuthError::Forbidden("set up a second factor for your own account first"));
    }
    Ok(())
}

/// The highest rate limit that can be stored, in requests per minute; that of the settings.
const MAX_RATE_LIMIT: u32 = 1_000_000_000;

/// Checks the value of a rate limit.
///
/// # Errors
/// [`AuthError::Invalid`] for 0, or for more than the highest limit that can be stored.
pub(super) fn check_rate_limit(per_minute: u32) -> Result<(), AuthError> {
    if (1..=MAX_RATE_LIMIT).contains(&per_minute) {
        return Ok(());
    }
    Err(AuthError::Invalid {
        field: "rate_limit_per_minute",
        reason: "rate_limit_per_minute must be 1 to 1000000000".to_owned(),
    })
}

/// The default name of a user's first workspace.
pub(super) fn default_workspace_name(user_name: &str) -> String {
    format!("{}'s workspace", text::truncate_bytes(user_name, 80))
}
