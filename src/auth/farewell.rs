//! A person leaves a workspace, or for good.

use std::sync::Arc;

use serde_json::json;

use super::{Auth, AuthError, sessions::own_session};
use crate::{
    audit,
    model::{
        audit::{Action, Actor, NewEvent, RequestInfo},
        id::WorkspaceId,
        mail::MailSubject,
        oauth::grant::GrantEnd,
        password::Password,
        principal::Caller,
        user::Member,
    },
    store::{self, Tx, oauth_clients::Abroad},
};

impl Auth {
    /// Leaves a workspace; the person's sessions in it end.
    ///
    /// # Errors
    /// [`AuthError::NotFound`] for no workspace of the caller, [`AuthError::Forbidden`] for its last owner.
    pub async fn leave_workspace(
        &self,
        caller: &Caller,
        workspace: WorkspaceId,
    ) -> Result<(), AuthError> {
        let (_, user) = own_session(caller)?;
        let mut tx = self.store.begin(workspace, Some(user)).await?;
        let member = self.lock_own(&mut tx, caller, workspace).await?;
        let member = member.ok_or(AuthError::NotFound("workspace"))?;
        self.take_out(&mut tx, caller, workspace, &member).await?;
        tx.commit().await?;
        Ok(self.fence.wait().await?)
    }

    /// Deletes the caller's account, and the workspaces that nobody else is in.
    ///
    /// # Errors
    /// [`AuthError::Invalid`] for a wrong password, [`AuthError::Forbidden`] for the last owner of a
    /// workspace that has other members.
    pub async fn delete_account(
        &self,
        caller: &Caller,
        password: &Password,
    ) -> Result<(), AuthError> {
        let (_, user_id) = own_session(caller)?;
        let user = self.person(user_id).await?;
        self.check_password(&user, "password", password, &caller.request).await?;
        let mut tx = self.store.begin_personal(user_id).await?;
        let own = store::members::of_person(&mut tx, user_id).await?;
        let mut own: Vec<_> = own.into_iter().map(|membership| membership.workspace_id).collect();
        // One order for all who do this, or two could wait for each other: all workspaces before the person.
        own.sort();
        let mut locked = Vec::new();
        for workspace in own {
            tx.enter(workspace).await?;
            let member = self.lock_own(&mut tx, caller, workspace).await?;
            locked.extend(member.map(|member| (workspace, member)));
        }
        for (workspace, member) in locked {
            tx.enter(workspace).await?;
            if store::members::count(&mut tx, workspace).await? == 1 {
                self.erase_workspace(&mut tx, caller, workspace).await?;
            } else {
                self.take_out(&mut tx, caller, workspace, &member).await?;
            }
        }
        // What the person joined meanwhile would go without a word: locked, nobody joins anything.
        store::users::lock(&mut tx, user_id).await?;
        if !store::members::of_person(&mut tx, user_id).await?.is_empty() {
            return Err(AuthError::Conflict("you joined a workspace meanwhile: try again"));
        }
        let subject = MailSubject::AccountDeleted { origin: self.origin(&caller.request) };
        self.mail(&mut tx, user.email, subject).await?;
        store::users::delete(&mut tx).await?;
        tx.commit().await?;
        Ok(self.fence.wait().await?)
    }

    /// The caller as a member of a workspace, whose members stay as they are until the transaction ends.
    async fn lock_own(
        &self,
        tx: &mut Tx,
        caller: &Caller,
        workspace: WorkspaceId,
    ) -> Result<Option<Member>, AuthError> {
        let (_, user) = own_session(caller)?;
        if !store::members::lock(tx, workspace).await? {
            return Ok(None);
        }
        Ok(store::members::get(tx, workspace, user).await?)
    }

    /// Deletes the workspace of the transaction, with all that is in it but its log.
    pub(super) async fn erase_workspace(
        &self,
        tx: &mut Tx,
        caller: &Caller,
        workspace: WorkspaceId,
    ) -> Result<(), AuthError> {
        let known = store::workspaces::get(tx, workspace).await?;
        let known = known.ok_or(AuthError::NotFound("workspace"))?;
        let event = audit::event_in(&self.env, caller, workspace, Action::WorkspaceDeleted, 204)
            .on(workspace, known.name);
        store::audit::insert(tx, workspace, &event).await?;
        let abroad = store::oauth_clients::abroad(tx, None).await?;
        store::workspaces::delete(tx).await?;
        self.tell_of_gone_clients(tx, &caller.request, abroad).await
    }

    /// Tells workspaces that a client was let into that it is gone, and what was granted to it; not who took it away,
    /// who may be nobody of theirs.
    pub(crate) async fn tell_of_gone_clients(
        &self,
        tx: &mut Tx,
        request: &Arc<RequestInfo>,
        abroad: Vec<Abroad>,
    ) -> Result<(), AuthError> {
        for Abroad { client_id, client_name, workspace_id, grants } in abroad {
            let id = self.env.new_id();
            let event = NewEvent::new(id, workspace_id, Action::GrantEnded, Actor::system())
                .on(client_id, client_name)
                .with(json!({
                    "reason": GrantEnd::ClientDeleted.as_str(),
                    "grants": grants,
                    "request_id": request.id,
                }));
            tx.enter(workspace_id).await?;
            store::audit::insert(tx, workspace_id, &event).await?;
        }
        Ok(())
    }
}
