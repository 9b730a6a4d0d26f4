//! Users leave a workspace, or delete their account.
//!
//! A workspace that has other members never loses its last owner this way.

use std::sync::Arc;

use serde_json::json;

use super::{Auth, AuthError, sessions::require_user_session};
use crate::{
    audit,
    model::{
        audit::{Action, Actor, NewEvent, RequestInfo},
        id::WorkspaceId,
        mail::EmailKind,
        oauth::grant::GrantEndReason,
        password::Password,
        principal::Caller,
        user::Member,
    },
    store::{self, Tx, oauth_clients::ExternalGrants},
};

impl Auth {
    /// Removes the caller's user from a workspace, and ends the user's sessions in it.
    ///
    /// # Errors
    /// [`AuthError::NotFound`] if the user is not a member; [`AuthError::Forbidden`] for the last
    /// owner.
    pub async fn leave_workspace(
        &self,
        caller: &Caller,
        workspace: WorkspaceId,
    ) -> Result<(), AuthError> {
        let (_, user) = require_user_session(caller)?;
        let mut tx = self.store.begin(workspace, Some(user)).await?;
        let member = self.lock_own_membership(&mut tx, caller, workspace).await?;
        let member = member.ok_or(AuthError::NotFound("workspace"))?;
        self.remove_membership(&mut tx, caller, workspace, &member).await?;
        tx.commit().await?;
        Ok(self.fence.wait().await?)
    }

    /// Deletes the caller's account, and the workspaces that have no other members.
    ///
    /// # Errors
    /// [`AuthError::Invalid`] for a wrong password; [`AuthError::Forbidden`] for the last owner of
    /// a workspace with other members; [`AuthError::Conflict`] if the user joined a workspace
    /// concurrently.
    pub async fn delete_account(
        &self,
        caller: &Caller,
        password: &Password,
    ) -> Result<(), AuthError> {
        let (_, user_id) = require_user_session(caller)?;
        let user = self.get_user(user_id).await?;
        self.require_password(&user, "password", password, &caller.request).await?;
        let mut tx = self.store.begin_for_user(user_id).await?;
        let workspaces = store::members::list_by_user(&mut tx, user_id).await?;
        let mut workspaces: Vec<_> =
            workspaces.into_iter().map(|membership| membership.workspace_id).collect();
        // Lock in one order to avoid deadlocks between concurrent deletions: all workspaces,
        // sorted, then the user.
        workspaces.sort();
        let mut locked = Vec::new();
        for workspace in workspaces {
            tx.set_workspace(workspace).await?;
            let member = self.lock_own_membership(&mut tx, caller, workspace).await?;
            locked.extend(member.map(|member| (workspace, member)));
        }
        for (workspace, member) in locked {
            tx.set_workspace(workspace).await?;
            if store::members::count(&mut tx, workspace).await? == 1 {
                self.delete_workspace_in_tx(&mut tx, caller, workspace).await?;
            } else {
                self.remove_membership(&mut tx, caller, workspace, &member).await?;
            }
        }
        // With the user's row locked, the user can join no workspace. A workspace that was joined
        // since the list above was read would lose its member without an audit event.
        store::users::lock(&mut tx, user_id).await?;
        if !store::members::list_by_user(&mut tx, user_id).await?.is_empty() {
            return Err(AuthError::Conflict("you joined a workspace in the meantime; try again"));
        }
        let subject = EmailKind::AccountDeleted { origin: self.request_origin(&caller.request) };
        self.enqueue_email(&mut tx, user.email, subject).await?;
        store::users::delete(&mut tx).await?;
        tx.commit().await?;
        Ok(self.fence.wait().await?)
    }

    /// Locks a workspace's members until the transaction ends, and returns the caller's membership.
    async fn lock_own_membership(
        &self,
        tx: &mut Tx,
        caller: &Caller,
        workspace: WorkspaceId,
    ) -> Result<Option<Member>, AuthError> {
        let (_, user) = require_user_session(caller)?;
        if !store::members::lock_workspace(tx, workspace).await? {
            return Ok(None);
        }
        Ok(store::members::get(tx, workspace, user).await?)
    }

    /// Deletes the transaction's workspace and everything in it except its audit log.
    pub(super) async fn delete_workspace_in_tx(
        &self,
        tx: &mut Tx,
        caller: &Caller,
        workspace: WorkspaceId,
    ) -> Result<(), AuthError> {
        let row = store::workspaces::get(tx, workspace).await?;
        let row = row.ok_or(AuthError::NotFound("workspace"))?;
        let event =
            audit::event_in_workspace(&self.env, caller, workspace, Action::WorkspaceDeleted, 204)
                .with_target(workspace, row.name);
        store::audit::insert(tx, workspace, &event).await?;
        let external_grants = store::oauth_clients::list_external_grants(tx, None).await?;
        store::workspaces::delete(tx).await?;
        self.audit_deleted_clients(tx, &caller.request, external_grants).await
    }

    /// Records in other workspaces that a deleted client's grants there have ended. The actor is
    /// the system: the one that deleted the client may be unknown to those workspaces.
    pub(crate) async fn audit_deleted_clients(
        &self,
        tx: &mut Tx,
        request: &Arc<RequestInfo>,
        external_grants: Vec<ExternalGrants>,
    ) -> Result<(), AuthError> {
        for ExternalGrants { client_id, client_name, workspace_id, grants } in external_grants {
            let id = self.env.new_id();
            let event = NewEvent::new(id, workspace_id, Action::GrantEnded, Actor::system())
                .with_target(client_id, client_name)
                .with_metadata(json!({
                    "reason": GrantEndReason::ClientDeleted.as_str(),
                    "grants": grants,
                    "request_id": request.id,
                }));
            tx.set_workspace(workspace_id).await?;
            store::audit::insert(tx, workspace_id, &event).await?;
        }
        Ok(())
    }
}
