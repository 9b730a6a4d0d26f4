//! Reclaiming an account: what happens at the first proof of its email address.
//!
//! Anyone can register with any address. If the address is first proven without a session of the
//! account, by a mailed link, a stranger may have registered it before its owner. So everything
//! that was set up until then ends, in the transaction of the proof: the credentials of the
//! account, and in workspaces that it alone vouches for, those of others too. A proof with a
//! session of the account ends nothing: the same person holds the mailbox and the session.
//!
//! A proof by link alone keeps the password, unless the user removes it: the user may have signed
//! up on another device. If a stranger chose it, the owner of the address resets it, and for some
//! time that reset ends everything once more. Until then the account adds no other owner, and one
//! that joined after the proof and after the account does not vouch for a workspace.

use std::{collections::BTreeSet, sync::Arc};

use serde_json::json;

use super::{AuthError, context::ServiceContext, members::end_memberships, sessions::Sessions};
use crate::{
    model::{
        audit::{Action, Actor, RequestInfo},
        id::{UserId, WorkspaceId},
        mail::{EmailKind, EndedSetup, NameList},
        oauth::grant::GrantEndReason,
        session::{SessionEndReason, SessionSelector},
        user::{Member, User},
    },
    store::{self, AdminTx, StoreError, Tx},
};

/// The reason in the metadata of audit events.
const REASON: &str = "email_reclaimed";

/// The number of connected apps that are counted for the email.
const MAX_APPS: i64 = 1000;

/// The number of attempts to lock an account that joins workspaces meanwhile. The number of its
/// workspaces is limited too, so it cannot do so forever.
const MAX_LOCK_ATTEMPTS: usize = 20;

/// An account whose rows are locked for a proof of its address.
pub(super) struct LockedAccount {
    /// The user.
    pub(super) user: User,
    /// True if another person than the owner of the address may have set up the account.
    pub(super) is_reclaimable: bool,
    /// Of a reclaimable account: the workspaces that it owns and that no other owner vouches for,
    /// with their other members.
    workspaces: Vec<(WorkspaceId, Vec<Member>)>,
}

/// Ends what was set up before the first proof of an address.
pub struct AccountReclaim {
    pub(super) context: Arc<ServiceContext>,
    pub(super) sessions: Arc<Sessions>,
}

impl AccountReclaim {
    /// Locks an account for a proof of its address, in a new transaction of the user. `None` if the
    /// account does not exist.
    ///
    /// Locks are taken in the order of all changes: workspaces and their memberships, then users,
    /// each sorted. A workspace that the user joins meanwhile is not locked, so the locks are
    /// released and taken again. From the lock of the user's row on, the user can join none.
    ///
    /// # Errors
    /// [`AuthError::Conflict`] if the user joined workspaces during each of several attempts.
    pub(super) async fn lock(
        &self,
        user: UserId,
    ) -> Result<Option<(Tx, LockedAccount)>, AuthError> {
        for _ in 0..MAX_LOCK_ATTEMPTS {
            let mut tx = self.context.store.begin_for_user(user).await?;
            let memberships = list_workspaces(&mut tx, user).await?;
            let account = match self.lock_with(&mut tx, user, &memberships).await {
                Ok(Some(account)) => account,
                Ok(None) => return Ok(None),
                // The user left one of the workspaces.
                Err(StoreError::NotAMember) => continue,
                Err(error) => return Err(error.into()),
            };
            if list_workspaces(&mut tx, user).await?.is_subset(&memberships) {
                return Ok(Some((tx, account)));
            }
        }
        Err(AuthError::Conflict("the account is being changed; try again"))
    }

    /// Locks the account, and of these workspaces those that only it vouches for.
    async fn lock_with(
        &self,
        tx: &mut Tx,
        user: UserId,
        memberships: &BTreeSet<WorkspaceId>,
    ) -> Result<Option<LockedAccount>, StoreError> {
        let Some(found) = store::users::get(tx, user).await? else { return Ok(None) };
        let now = self.context.env.clock.now();
        let mut workspaces = Vec::new();
        if found.is_reclaimable(now) {
            workspaces = self.lock_owned_workspaces(tx, user, memberships).await?;
        }
        let others = workspaces.iter().flat_map(|(_, members)| members);
        let mut users: BTreeSet<_> = others.map(|member| member.user_id).collect();
        users.insert(user);
        store::members::lock_users(tx, &users).await?;
        let locked = store::users::lock(tx, user).await?;
        Ok(locked.map(|user| {
            let is_reclaimable = user.is_reclaimable(now);
            LockedAccount { user, is_reclaimable, workspaces }
        }))
    }

    async fn lock_owned_workspaces(
        &self,
        tx: &mut Tx,
        user: UserId,
        memberships: &BTreeSet<WorkspaceId>,
    ) -> Result<Vec<(WorkspaceId, Vec<Member>)>, StoreError> {
        let mut workspaces = Vec::new();
        for &id in memberships {
            tx.set_workspace(id).await?;
            if !store::members::lock_workspace(tx, id).await? {
                continue;
            }
            let mut members = store::members::lock_all(tx, id).await?;
            if store::members::is_sole_verifiable_owner(tx, id, user).await? {
                members.retain(|member| member.user_id != user);
                workspaces.push((id, members));
            }
        }
        Ok(workspaces)
    }

    /// Ends everything that was set up for an account before the first proof of its address, except
    /// the password, and emails the user what was ended. The caller must commit and wait at the
    /// fence.
    pub(super) async fn end_prior_setup(
        &self,
        tx: &mut Tx,
        account: &LockedAccount,
        request: &Arc<RequestInfo>,
        is_password_removed: bool,
    ) -> Result<(), AuthError> {
        let LockedAccount { user, workspaces, .. } = account;
        let mut ended = EndedSetup { password: is_password_removed, ..EndedSetup::default() };
        self.end_credentials(tx, user, request, &mut ended).await?;
        for (workspace, members) in workspaces {
            self.end_workspace_access(tx, user, *workspace, members, request, &mut ended).await?;
        }
        if ended != EndedSetup::default() {
            let origin = self.context.request_origin(request);
            let subject = EmailKind::PriorSetupEnded { origin, ended };
            self.context.enqueue_email(tx, user.email.clone(), subject).await?;
        }
        Ok(())
    }

    /// Ends the sessions, grants and factors of the account.
    async fn end_credentials(
        &self,
        tx: &mut Tx,
        user: &User,
        request: &Arc<RequestInfo>,
        ended: &mut EndedSetup,
    ) -> Result<(), AuthError> {
        let (now, actor) = (self.context.env.clock.now(), Actor::user(user));
        let apps = store::connected_apps::list_names_by_user(tx, user.id, MAX_APPS).await?;
        ended.apps = NameList::new(apps);
        let reason = GrantEndReason::EmailReclaimed;
        self.sessions.end_grants(tx, &[user.id], None, reason, &actor, request).await?;
        let passkeys = store::passkeys::list(tx, user.id).await?;
        ended.passkeys = NameList::new(passkeys.into_iter().map(|(passkey, _)| passkey.name));
        if store::passkeys::remove_all(tx, user.id).await? {
            let action = Action::PasskeyRemoved;
            self.context.audit_in_all_workspaces(tx, user, action, request).await?;
        }
        store::second_factor::cancel_enrollment(tx, user.id).await?;
        ended.totp = store::second_factor::remove(tx, user.id).await?;
        if ended.totp {
            let action = Action::SecondFactorRemoved;
            self.context.audit_in_all_workspaces(tx, user, action, request).await?;
        }
        store::second_factor::discard_challenges(tx, user.id, now).await?;
        let (all, reason) = (SessionSelector::All, SessionEndReason::EmailReclaimed);
        let (count, _) =
            self.sessions.end_and_count(tx, user.id, all, reason, &actor, request).await?;
        ended.sessions = count;
        Ok(())
    }

    /// Ends the API keys, open invitations, OAuth clients and other members of a workspace. Takes a
    /// few statements, however many there are: an account may have a hundred workspaces.
    async fn end_workspace_access(
        &self,
        tx: &mut Tx,
        user: &User,
        workspace: WorkspaceId,
        members: &[Member],
        request: &Arc<RequestInfo>,
        ended: &mut EndedSetup,
    ) -> Result<(), AuthError> {
        let (now, actor) = (self.context.env.clock.now(), Actor::user(user));
        let event = |action| {
            self.context
                .audit_event(request, workspace, action, actor.clone(), 204)
                .with_metadata(json!({ "reason": REASON }))
        };
        tx.set_workspace(workspace).await?;
        let tx = &mut AdminTx::exempt(tx, "the owner of the address reclaims the workspace");
        let (by, mut events) = (user.id.to_string(), Vec::new());
        for (id, name) in store::api_keys::revoke_all(tx, workspace, now, &by).await? {
            events.push(event(Action::ApiKeyRevoked).with_target(id, name.clone()));
            ended.api_keys.push(name);
        }
        for (id, email) in store::invitations::close_all(tx, workspace, now).await? {
            events.push(event(Action::InvitationRevoked).with_target(id, email.clone()));
            ended.invitations.push(email);
        }
        let external_grants = store::oauth_clients::list_external_grants(tx, None).await?;
        for (id, name) in store::oauth_clients::delete_all(tx, workspace).await? {
            events.push(event(Action::ClientDeleted).with_target(id, name.clone()));
            ended.oauth_clients.push(name);
        }
        for member in members {
            // The keys and clients that the member created have just ended.
            let details = json!({
                "reason": REASON, "role": member.role, "api_keys": [], "oauth_clients": [],
            });
            let event =
                event(Action::MemberRemoved).with_target(member.user_id, member.email.clone());
            events.push(event.with_metadata(details));
            ended.members.push(member.email.clone());
        }
        store::audit::insert_all(tx, &events).await?;
        let (reason, request_info) = (GrantEndReason::ClientDeleted, Some(&**request));
        self.context.audit_ended_grants(tx, request_info, reason, external_grants).await?;
        let members: Vec<_> = members.iter().map(|member| member.user_id).collect();
        end_memberships(&self.sessions, tx, &actor, request, workspace, &members).await
    }
}

/// The workspaces of which a user is a member.
async fn list_workspaces(tx: &mut Tx, user: UserId) -> Result<BTreeSet<WorkspaceId>, AuthError> {
    let memberships = store::members::list_by_user(tx, user).await?;
    Ok(memberships.into_iter().map(|own| own.workspace_id).collect())
}
