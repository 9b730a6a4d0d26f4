//! Members of a workspace: given another role, taken out.
//!
//! Changes take turns under a lock of the workspace, so that no two of them leave it without an owner,
//! and who asks for one is looked at again under that lock. Nobody gives, changes or takes a role above
//! their own.

use serde_json::json;

use super::{Auth, AuthError, check_password::UNCONFIRMED};
use crate::{
    audit,
    model::{
        audit::{Action, Actor},
        id::{UserId, WorkspaceId},
        oauth::grant::GrantEnd,
        password::Password,
        principal::{Caller, Credential},
        scope::{Role, Scope},
        session::{EndReason, Which},
        user::Member,
    },
    store::{self, Tx},
};

/// Keys that the event of a removal names.
const KEYS_NAMED: i64 = 100;

const NO_LONGER_A_MEMBER: AuthError =
    AuthError::InvalidCredential("the session's person is no longer a member of the workspace");

impl Auth {
    /// Gives a member another role.
    ///
    /// # Errors
    /// [`AuthError::Forbidden`] for a role above the caller's, before or after, and where nobody would
    /// be owner or, where ownership comes or goes, by a person who has neither just signed in nor given
    /// the password; [`AuthError::NotFound`] for nobody of the workspace.
    pub async fn change_role(
        &self,
        caller: &Caller,
        user: UserId,
        role: Role,
        password: Option<&Password>,
    ) -> Result<Member, AuthError> {
        let workspace = caller.workspace();
        let confirmed = self.is_confirmed(caller, password).await?;
        let mut tx = self.store.begin(workspace, Some(user)).await?;
        let (member, acting) = self.lock_member(&mut tx, caller, user).await?;
        keep_an_owner(&mut tx, workspace, &member).await?;
        if role > acting {
            return Err(AuthError::Forbidden("nobody gives a role above their own"));
        }
        if role == member.role {
            return Ok(member);
        }
        if role.max(member.role) == Role::Owner && !confirmed {
            return Err(UNCONFIRMED);
        }
        store::members::set_role(&mut tx, workspace, user, role).await?;
        if role < member.role {
            self.close_invitations_of(&mut tx, workspace, user).await?;
        }
        let event = audit::event(&self.env, caller, Action::MemberRoleChanged, 200)
            .on(user, member.email.clone())
            .with(json!({ "from": member.role, "to": role }));
        store::audit::insert(&mut tx, workspace, &event).await?;
        tx.commit().await?;
        self.fence.wait().await?;
        Ok(Member { role, ..member })
    }

    /// Takes a member out; the person's sessions in the workspace end. Keys that the person minted stay,
    /// and are named in the event.
    ///
    /// # Errors
    /// As [`Self::change_role`].
    pub async fn remove_member(&self, caller: &Caller, user: UserId) -> Result<(), AuthError> {
        let workspace = caller.workspace();
        let confirmed = self.is_confirmed(caller, None).await?;
        let mut tx = self.store.begin(workspace, Some(user)).await?;
        let (member, _) = self.lock_member(&mut tx, caller, user).await?;
        if member.role == Role::Owner && !confirmed {
            return Err(UNCONFIRMED);
        }
        self.take_out(&mut tx, caller, workspace, &member).await?;
        tx.commit().await?;
        Ok(self.fence.wait().await?)
    }

    /// A member as they are, and the role that the caller acts with, until the transaction ends. Refuses
    /// a member above the caller.
    async fn lock_member(
        &self,
        tx: &mut Tx,
        caller: &Caller,
        user: UserId,
    ) -> Result<(Member, Role), AuthError> {
        let workspace = caller.workspace();
        let acting = self.lock_members(tx, caller).await?;
        let member = store::members::get(tx, workspace, user).await?;
        let member = member.ok_or(AuthError::NotFound("member"))?;
        if member.role > acting {
            return Err(AuthError::Forbidden("only an owner changes an owner"));
        }
        Ok((member, acting))
    }

    /// The role that the caller acts with in the own workspace, whose members stay as they are until the
    /// transaction ends.
    pub(crate) async fn lock_members(
        &self,
        tx: &mut Tx,
        caller: &Caller,
    ) -> Result<Role, AuthError> {
        let workspace = caller.workspace();
        if !store::members::lock(tx, workspace).await? {
            return Err(NO_LONGER_A_MEMBER);
        }
        let role = match &caller.principal.credential {
            // Its scope does not shrink; but it may have been revoked since it was looked at.
            Credential::ApiKey { id, .. } => {
                if !store::api_keys::pin(tx, workspace, *id).await? {
                    return Err(AuthError::InvalidCredential("the API key has been revoked"));
                }
                Role::Admin
            }
            Credential::Session { user_id, .. } => {
                let role = store::members::pin_role(tx, workspace, *user_id).await?;
                role.ok_or(NO_LONGER_A_MEMBER)?
            }
            Credential::Grant { .. } => {
                return Err(AuthError::Forbidden("OAuth clients may not do this"));
            }
        };
        match role.scope() {
            Scope::Admin => Ok(role),
            held => Err(AuthError::InsufficientScope { required: Scope::Admin, held }),
        }
    }

    /// Takes a member out of a workspace, in a transaction of both whose members stay as they are.
    ///
    /// # Errors
    /// [`AuthError::Forbidden`] for the last owner.
    pub(super) async fn take_out(
        &self,
        tx: &mut Tx,
        caller: &Caller,
        workspace: WorkspaceId,
        member: &Member,
    ) -> Result<(), AuthError> {
        keep_an_owner(tx, workspace, member).await?;
        let user = member.user_id;
        let minted = store::api_keys::minted_by(tx, workspace, user, KEYS_NAMED).await?;
        let keys: Vec<_> =
            minted.items.iter().map(|(id, name)| json!({ "id": id, "name": name })).collect();
        let event = audit::event_in(&self.env, caller, workspace, Action::MemberRemoved, 204)
            .on(user, member.email.clone())
            .with(json!({ "role": member.role, "api_keys": keys, "more_api_keys": minted.more }));
        store::audit::insert(tx, workspace, &event).await?;
        self.close_invitations_of(tx, workspace, user).await?;
        // Membership, person, session: everybody locks them in this order.
        store::members::remove(tx, workspace, user).await?;
        // What somebody granted who is no longer a member does not come back with them.
        let actor = Actor::from(&*caller.principal);
        let (there, reason) = (Some(workspace), GrantEnd::Removed);
        self.end_grants(tx, user, there, reason, &actor, &caller.request).await?;
        store::users::lock(tx, user).await?;
        let (sessions, reason) = (Which::In(workspace), EndReason::Removed);
        self.end_sessions(tx, user, sessions, reason, &actor, &caller.request).await
    }

    /// What somebody invited who may not invite any more is not to be accepted.
    async fn close_invitations_of(
        &self,
        tx: &mut Tx,
        workspace: WorkspaceId,
        user: UserId,
    ) -> Result<(), AuthError> {
        let (inviter, now) = (user.to_string(), self.env.clock.now());
        Ok(store::invitations::close_all_of(tx, workspace, &inviter, now).await?)
    }
}

/// Refuses to let the last owner of a workspace go, in a transaction in which members stay as they are.
async fn keep_an_owner(
    tx: &mut Tx,
    workspace: WorkspaceId,
    member: &Member,
) -> Result<(), AuthError> {
    let is_needed = member.role == Role::Owner
        && !store::members::has_another_owner(tx, workspace, member.user_id).await?;
    if is_needed {
        return Err(AuthError::Forbidden(
            "a workspace keeps at least one owner: make somebody else one first",
        ));
    }
    Ok(())
}
