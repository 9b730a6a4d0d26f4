//! Members of a workspace: change their roles and remove them.
//!
//! Changes are serialized by a lock on the workspace, so a workspace always keeps an owner. The
//! caller's own role is read again under that lock ([`AdminTx::lock`]), and no caller can assign,
//! change or remove a role above it.

use std::sync::Arc;

use serde_json::{Value, json};
use time::OffsetDateTime;

use super::{
    AuthError,
    api_keys::daily_limit::require_allowance,
    context::ServiceContext,
    passwords::{Passwords, REAUTHENTICATION_REQUIRED},
    remaining_access,
    sessions::Sessions,
};
use crate::{
    audit,
    auth::caller::{AdminCaller, SessionCaller},
    model::{
        audit::{Action, Actor, RequestInfo},
        id::{UserId, WorkspaceId},
        mail::EmailKind,
        oauth::grant::GrantEndReason,
        password::Password,
        principal::Caller,
        scope::{Role, Scope},
        session::SessionEndReason,
        user::Member,
    },
    store::{self, AdminRights, AdminTx, Audited, Tx},
};

/// The members of workspaces and their roles.
pub struct Members {
    pub(super) context: Arc<ServiceContext>,
    pub(super) passwords: Arc<Passwords>,
    pub(super) sessions: Arc<Sessions>,
}

impl Members {
    /// Removes the caller's user from a workspace, and ends the user's sessions in it.
    ///
    /// # Errors
    /// [`AuthError::NotFound`] if the user is not a member; [`AuthError::Forbidden`] for the last
    /// owner.
    #[tracing::instrument(
        name = "auth.members.leave",
        level = "debug",
        skip_all,
        fields(workspace = %caller.workspace()),
        err(level = "debug")
    )]
    pub async fn leave(
        &self,
        caller: &SessionCaller,
        workspace: WorkspaceId,
    ) -> Result<(), AuthError> {
        let user = caller.user();
        let tx = self.context.store.begin_as_member(workspace, user).await?;
        let mut tx = tx.ok_or(AuthError::NotFound("workspace"))?;
        let member = self.lock_own(&mut tx, caller, workspace).await?;
        let member = member.ok_or(AuthError::NotFound("workspace"))?;
        let mut admin = AdminTx::exempt(&mut tx, "users leave by themselves");
        let audited = self.remove_membership(&mut admin, caller, workspace, &member).await?;
        Ok(self.context.fence.wait(tx.commit(audited).await?).await?)
    }

    /// Locks a workspace's members until the transaction ends, and returns the caller's membership.
    pub(super) async fn lock_own(
        &self,
        tx: &mut Tx,
        caller: &SessionCaller,
        workspace: WorkspaceId,
    ) -> Result<Option<Member>, AuthError> {
        let user = caller.user();
        if !store::members::lock_workspace(tx, workspace).await? {
            return Ok(None);
        }
        Ok(store::members::get(tx, workspace, user).await?)
    }

    /// Changes a member's role.
    ///
    /// # Errors
    /// [`AuthError::Forbidden`] if the old or new role is above the caller's, if the workspace
    /// would lose its last owner, if ownership is assigned or removed without a recent sign-in or
    /// the password, if ownership is assigned by an account that may still be reclaimed, or if a
    /// key that is restricted to networks raises a role; [`AuthError::NotFound`] if the user is not
    /// a member.
    #[tracing::instrument(
        name = "auth.members.change_role",
        level = "debug",
        skip_all,
        fields(workspace = %caller.workspace()),
        err(level = "debug")
    )]
    pub async fn change_role(
        &self,
        caller: &AdminCaller,
        user: UserId,
        role: Role,
        password: Option<&Password>,
    ) -> Result<Member, AuthError> {
        let workspace = caller.workspace();
        let confirmed = self.passwords.has_reauthenticated(caller, password).await?;
        let mut tx = self.context.store.begin_for(caller).await?;
        let (mut admin, rights) = AdminTx::lock(&mut tx, caller).await?;
        let member = find_member(&mut admin, &rights, workspace, user).await?;
        require_another_owner(&mut admin, workspace, &member).await?;
        if role > rights.role {
            return Err(AuthError::Forbidden("you cannot assign a role above your own"));
        }
        if role > member.role {
            require_unrestricted(&rights)?;
            require_allowance(&self.context, &mut admin, caller).await?;
        }
        if role == member.role {
            // The request that demoted the member may have been cut off before its wait.
            let audited = Audited::exempt("the role is unchanged");
            self.context.fence.wait(tx.commit(audited).await?).await?;
            return Ok(member);
        }
        if role.max(member.role) == Role::Owner && !confirmed {
            return Err(REAUTHENTICATION_REQUIRED);
        }
        if role == Role::Owner {
            let now = self.context.env.clock.now();
            require_settled_account(&mut admin, caller, now).await?;
        }
        let by = caller.principal.creator();
        store::members::set_role(&mut admin, workspace, user, role, by).await?;
        if role < member.role {
            close_invitations_by(&self.context, &mut admin, workspace, user).await?;
        }
        let mut details = json!({ "from": member.role, "to": role });
        if role < member.role && role.scope() < Scope::Admin {
            details = self.report_demotion(&mut admin, caller, &member, role, details).await?;
        }
        let event = audit::event(&self.context.env, caller, Action::MemberRoleChanged, 200)
            .with_target(user, member.email.clone())
            .with_metadata(details);
        let audited = store::audit::insert(&mut admin, workspace, &event).await?;
        self.context.fence.wait(tx.commit(audited).await?).await?;
        Ok(Member { role, ..member })
    }

    /// Adds the access above the new role of a member, which stays valid, to the metadata of an
    /// event, and emails the owners about it.
    async fn report_demotion(
        &self,
        tx: &mut AdminTx<'_>,
        caller: &Caller,
        member: &Member,
        role: Role,
        mut details: Value,
    ) -> Result<Value, AuthError> {
        let (workspace, now) = (caller.workspace(), self.context.env.clock.now());
        let (access, remaining) =
            remaining_access::of_member(tx, workspace, member.user_id, Some(role), now).await?;
        if remaining.is_empty() {
            return Ok(details);
        }
        if let (Some(details), Value::Object(access)) = (details.as_object_mut(), access) {
            details.extend(access);
        }
        let origin = self.context.request_origin(&caller.request);
        let subject = |workspace| EmailKind::MemberLostAccess {
            member: member.email.clone(),
            role: Some(role),
            workspace,
            by: caller.principal.name().to_string(),
            origin: origin.clone(),
            remaining: remaining.clone(),
        };
        self.context.email_owners(tx, workspace, subject).await?;
        Ok(details)
    }

    /// Removes a member and ends the user's sessions in the workspace. API keys and OAuth clients
    /// that the user created stay valid, and so does what the user added to others; the audit event
    /// lists them.
    ///
    /// # Errors
    /// As [`Self::change_role`].
    #[tracing::instrument(
        name = "auth.members.remove",
        level = "debug",
        skip_all,
        fields(workspace = %caller.workspace()),
        err(level = "debug")
    )]
    pub async fn remove(&self, caller: &AdminCaller, user: UserId) -> Result<(), AuthError> {
        let workspace = caller.workspace();
        let confirmed = self.passwords.has_reauthenticated(caller, None).await?;
        let mut tx = self.context.store.begin_for(caller).await?;
        let (mut admin, rights) = AdminTx::lock(&mut tx, caller).await?;
        let member = find_member(&mut admin, &rights, workspace, user).await?;
        if member.role == Role::Owner && !confirmed {
            return Err(REAUTHENTICATION_REQUIRED);
        }
        let audited = self.remove_membership(&mut admin, caller, workspace, &member).await?;
        Ok(self.context.fence.wait(tx.commit(audited).await?).await?)
    }

    /// Removes a member, in a transaction of the workspace in which members are locked. Emails the
    /// owners if keys or clients that the member created stay valid.
    ///
    /// # Errors
    /// [`AuthError::Forbidden`] for the last owner.
    pub(super) async fn remove_membership(
        &self,
        tx: &mut AdminTx<'_>,
        caller: &Caller,
        workspace: WorkspaceId,
        member: &Member,
    ) -> Result<Audited, AuthError> {
        let (context, sessions) = (&self.context, &self.sessions);
        let (actor, request) = (Actor::from(&*caller.principal), &caller.request);
        remove_membership(context, sessions, tx, &actor, request, workspace, member).await
    }
}

/// Returns a member. Refuses one with a role above the caller's.
async fn find_member(
    tx: &mut Tx,
    rights: &AdminRights,
    workspace: WorkspaceId,
    user: UserId,
) -> Result<Member, AuthError> {
    let member = store::members::get(tx, workspace, user).await?;
    let member = member.ok_or(AuthError::NotFound("member"))?;
    if member.role > rights.role {
        return Err(AuthError::Forbidden("only an owner can change or remove an owner"));
    }
    Ok(member)
}

/// Refuses to let a user add owners whose account may still be reclaimed: the reset of its password
/// ends what was set up, except in workspaces that another owner vouches for.
pub(super) async fn require_settled_account(
    tx: &mut Tx,
    caller: &Caller,
    now: OffsetDateTime,
) -> Result<(), AuthError> {
    // No API key has the role that this takes.
    let Some((_, user)) = caller.principal.session() else { return Ok(()) };
    let user = store::users::get(tx, user).await?.ok_or(AuthError::NotFound("account"))?;
    if !user.is_reclaimable(now) {
        return Ok(());
    }
    Err(AuthError::Forbidden(match user.email_verified_at {
        None => "verify your email address before you add other owners",
        Some(_) => {
            "your email address was verified without signing in: reset your password before you \
             add other owners, or wait a week"
        }
    }))
}

/// Refuses an API key that is restricted to networks: it must not create access that works from
/// elsewhere.
///
/// # Errors
/// [`AuthError::Forbidden`] for such a key.
pub(crate) fn require_unrestricted(rights: &AdminRights) -> Result<(), AuthError> {
    if rights.networks.is_empty() {
        return Ok(());
    }
    Err(AuthError::Forbidden(
        "this key is restricted to networks (allowed_ips), so it cannot create access that works \
         from elsewhere",
    ))
}

/// Removes a member on behalf of `actor`, as [`Members::remove_membership`] does.
pub(super) async fn remove_membership(
    context: &ServiceContext,
    sessions: &Sessions,
    tx: &mut AdminTx<'_>,
    actor: &Actor,
    request: &Arc<RequestInfo>,
    workspace: WorkspaceId,
    member: &Member,
) -> Result<Audited, AuthError> {
    require_another_owner(tx, workspace, member).await?;
    let user = member.user_id;
    let now = context.env.clock.now();
    let (mut details, remaining) =
        remaining_access::of_member(tx, workspace, user, None, now).await?;
    details["role"] = json!(member.role);
    let event = context
        .audit_event(request, workspace, Action::MemberRemoved, actor.clone(), 204)
        .with_target(user, member.email.clone())
        .with_metadata(details);
    let audited = store::audit::insert(tx, workspace, &event).await?;
    close_invitations_by(context, tx, workspace, user).await?;
    end_memberships(sessions, tx, actor, request, workspace, &[user]).await?;
    if !remaining.is_empty() {
        let origin = context.request_origin(request);
        let subject = |workspace| EmailKind::MemberLostAccess {
            member: member.email.clone(),
            role: None,
            workspace,
            by: actor.name.as_deref().unwrap_or("the service").to_owned(),
            origin: origin.clone(),
            remaining: remaining.clone(),
        };
        context.email_owners(tx, workspace, subject).await?;
    }
    Ok(audited)
}

/// Ends memberships, and the sessions and grants of these users in the workspace. The caller
/// records the removal of each member.
pub(super) async fn end_memberships(
    sessions: &Sessions,
    tx: &mut AdminTx<'_>,
    actor: &Actor,
    request: &Arc<RequestInfo>,
    workspace: WorkspaceId,
    users: &[UserId],
) -> Result<(), AuthError> {
    let reason = SessionEndReason::MembershipRemoved;
    let now = sessions.context.env.clock.now();
    let ended = store::members::remove(tx, workspace, users, now, reason).await?;
    let ended = ended.into_iter().map(|session| (session, workspace));
    sessions.audit_ended(tx, ended, reason, actor, request).await?;
    // End the grants: they must not revive if a user joins again.
    let (workspace_filter, reason) = (Some(workspace), GrantEndReason::MembershipRemoved);
    sessions.end_grants(tx, users, workspace_filter, reason, actor, request).await
}

/// Revokes a user's open invitations, after the user has lost the right to invite.
async fn close_invitations_by(
    context: &ServiceContext,
    tx: &mut AdminTx<'_>,
    workspace: WorkspaceId,
    user: UserId,
) -> Result<(), AuthError> {
    let (inviter, now) = (user.to_string(), context.env.clock.now());
    Ok(store::invitations::close_all_by_inviter(tx, workspace, &inviter, now).await?)
}

/// Refuses to change or remove the last owner of a workspace. Members must be locked.
async fn require_another_owner(
    tx: &mut Tx,
    workspace: WorkspaceId,
    member: &Member,
) -> Result<(), AuthError> {
    let is_last_owner = member.role == Role::Owner
        && !store::members::has_another_owner(tx, workspace, member.user_id).await?;
    if is_last_owner {
        return Err(AuthError::Forbidden(
            "a workspace needs at least one owner: make another member an owner first",
        ));
    }
    Ok(())
}
