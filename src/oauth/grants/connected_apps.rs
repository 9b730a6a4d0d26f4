//! Connected apps: lists and ends the grants of a user or of a workspace.
//!
//! A user sees and ends only their own grants; an administrator also those of the workspace. Ending
//! a grant takes effect on all nodes before the call returns.

use super::Grants;
use crate::{
    audit,
    auth::{AuthError, caller::SessionCaller},
    model::{
        audit::Action,
        id::GrantId,
        oauth::grant::{Grant, GrantEndReason},
        page::{ListPage, PageRequest},
        principal::Caller,
        scope::Scope,
    },
    store::{self, Audited, connected_apps::GrantOwner},
};

const NOT_FOUND: AuthError = AuthError::NotFound("connected app");

impl Grants {
    /// Lists the caller's grants in all workspaces, with their total number.
    ///
    /// # Errors
    /// [`AuthError::Store`] if the query fails.
    #[tracing::instrument(
        name = "oauth.grants.list_by_user",
        level = "debug",
        skip_all,
        err(level = "debug")
    )]
    pub async fn list_by_user(
        &self,
        caller: &SessionCaller,
        page: PageRequest,
    ) -> Result<(ListPage<Grant>, i64), AuthError> {
        let user = caller.user();
        self.list(caller, GrantOwner::User(user), page).await
    }

    /// Lists all grants in the caller's workspace, with their total number.
    ///
    /// # Errors
    /// [`AuthError::InsufficientScope`] if the caller lacks the admin scope.
    #[tracing::instrument(
        name = "oauth.grants.list_by_workspace",
        level = "debug",
        skip_all,
        fields(workspace = %caller.workspace()),
        err(level = "debug")
    )]
    pub async fn list_by_workspace(
        &self,
        caller: &SessionCaller,
        page: PageRequest,
    ) -> Result<(ListPage<Grant>, i64), AuthError> {
        let held = caller.principal.scope;
        if held < Scope::Admin {
            return Err(AuthError::InsufficientScope { required: Scope::Admin, held });
        }
        self.list(caller, GrantOwner::Workspace(caller.workspace()), page).await
    }

    async fn list(
        &self,
        caller: &Caller,
        owner: GrantOwner,
        page: PageRequest,
    ) -> Result<(ListPage<Grant>, i64), AuthError> {
        let used_since = self.context.env.clock.now() - self.idle_timeout;
        let mut tx = match owner {
            GrantOwner::User(user) => self.context.store.begin_for_user(user).await?,
            GrantOwner::Workspace(_) => self.context.store.begin_as(caller).await?,
        };
        let items = store::connected_apps::list(&mut tx, owner, used_since, page).await?;
        let total = store::connected_apps::count(&mut tx, owner, used_since).await?;
        Ok((items, total))
    }

    /// Ends a grant of the caller, or any grant in the workspace that the caller administers, on
    /// all nodes before it returns. Ending it again succeeds without effect.
    ///
    /// # Errors
    /// [`AuthError::NotFound`] if the caller has no right to the grant.
    #[tracing::instrument(
        name = "oauth.grants.end",
        level = "debug",
        skip_all,
        fields(grant = %id),
        err(level = "debug")
    )]
    pub async fn end(&self, caller: &SessionCaller, id: GrantId) -> Result<(), AuthError> {
        let user = caller.user();
        let mut tx = self.context.store.begin(caller.workspace(), Some(user)).await?;
        let grant = store::connected_apps::get(&mut tx, id).await?.ok_or(NOT_FOUND)?;
        if grant.user_id != Some(user) {
            let role =
                store::members::lock_role_for_share(&mut tx, caller.workspace(), user).await?;
            let is_admin = role.is_some_and(|role| role.scope() == Scope::Admin);
            if !is_admin || grant.workspace_id != caller.workspace() {
                return Err(NOT_FOUND);
            }
        }
        let (workspace, now) = (grant.workspace_id, self.context.env.clock.now());
        let reason = GrantEndReason::RevokedByUser;
        let audited = if store::oauth_grants::end(&mut tx, workspace, id, now, reason).await? {
            let event = audit::event_in_workspace(
                &self.context.env,
                caller,
                workspace,
                Action::GrantEnded,
                204,
            )
            .with_target(id, grant.client_name)
            .with_metadata(reason.audit_metadata(grant.client_id, grant.user_id));
            store::audit::insert_elsewhere(&mut tx, &event).await?
        } else {
            Audited::exempt("the grant had already ended")
        };
        // Wait also if it had already ended: an earlier call may have been aborted before its wait.
        Ok(self.context.fence.wait(tx.commit(audited).await?).await?)
    }
}
