//! A person leaves a workspace, or for good.

use super::{Auth, AuthError, sessions::own_session};
use crate::{
    audit,
    model::{
        audit::{Action, Actor},
        id::WorkspaceId,
        mail::MailSubject,
        password::Password,
        principal::Caller,
        scope::Role,
        session::{EndReason, Which},
        user::Member,
    },
    store::{self, Tx},
};

const LAST_OWNER: AuthError =
    AuthError::Forbidden("a workspace keeps at least one owner: make somebody else one first");

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
        self.leave(&mut tx, caller, workspace, &member).await?;
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
        // One order for all who do this, or two could wait for each other.
        own.sort();
        for workspace in own {
            tx.enter(workspace).await?;
            let Some(member) = self.lock_own(&mut tx, caller, workspace).await? else { continue };
            if store::members::count(&mut tx, workspace).await? == 1 {
                self.erase_workspace(&mut tx, caller, workspace).await?;
            } else {
                self.leave(&mut tx, caller, workspace, &member).await?;
            }
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

    async fn leave(
        &self,
        tx: &mut Tx,
        caller: &Caller,
        workspace: WorkspaceId,
        member: &Member,
    ) -> Result<(), AuthError> {
        let user = member.user_id;
        let is_last = member.role == Role::Owner
            && !store::members::has_another_owner(tx, workspace, user).await?;
        if is_last {
            return Err(LAST_OWNER);
        }
        self.note_removal(tx, caller, workspace, member).await?;
        let (sessions, reason) = (Which::In(workspace), EndReason::Removed);
        let actor = Actor::from(&*caller.principal);
        self.end_sessions(tx, user, sessions, reason, &actor, &caller.request).await?;
        self.close_invitations_of(tx, workspace, user).await?;
        Ok(store::members::remove(tx, workspace, user).await?)
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
        let mut event = audit::event(&self.env, caller, Action::WorkspaceDeleted, 204)
            .on(workspace, known.name);
        event.workspace_id = workspace;
        store::audit::insert(tx, workspace, &event).await?;
        store::workspaces::delete(tx).await?;
        Ok(())
    }
}
