//! A person's own sessions: seen, ended, moved to another workspace.

use std::sync::Arc;

use serde_json::json;

use super::{Auth, AuthError, login::TokenPair};
use crate::{
    audit,
    model::{
        audit::{Action, Actor, NewEvent, RequestInfo},
        id::{SessionId, UserId, WorkspaceId},
        oauth::grant::GrantEnd,
        page::{Items, Page},
        principal::{Caller, Credential},
        scope::Role,
        session::{EndReason, Session, Which},
    },
    store::{self, Tx},
};

/// A session that has ended.
pub(super) const ENDED: AuthError = AuthError::InvalidCredential("the session has ended");

/// The session and the person of a caller who is one.
///
/// # Errors
/// [`AuthError::Forbidden`] for a caller that is no session.
pub fn own_session(caller: &Caller) -> Result<(SessionId, UserId), AuthError> {
    match &caller.principal.credential {
        Credential::Session { id, user_id, .. } => Ok((*id, *user_id)),
        Credential::ApiKey { .. } | Credential::Grant { .. } => {
            Err(AuthError::Forbidden("this takes a session of one's own"))
        }
    }
}

impl Auth {
    /// The caller's sessions that live, in whatever workspace, and how many there are.
    ///
    /// # Errors
    /// [`AuthError::Forbidden`] for a caller that is no session.
    pub async fn sessions(
        &self,
        caller: &Caller,
        page: Page,
    ) -> Result<(Items<Session>, i64), AuthError> {
        let (_, user) = own_session(caller)?;
        let (now, idle) = (self.env.clock.now(), self.lifetimes.refresh_token);
        let mut tx = self.store.begin_personal(user).await?;
        let items = store::sessions::list(&mut tx, user, now, idle, page).await?;
        let total = store::sessions::count(&mut tx, user, now, idle).await?;
        Ok((items, total))
    }

    /// Ends the caller's own session.
    ///
    /// # Errors
    /// [`AuthError::Forbidden`] for a caller that is no session.
    pub async fn logout(&self, caller: &Caller) -> Result<(), AuthError> {
        let (id, user) = own_session(caller)?;
        let tx = self.store.begin_personal(user).await?;
        self.end_own(tx, caller, Which::One(id), EndReason::Logout).await
    }

    /// Ends one of the caller's sessions. A second time does nothing.
    ///
    /// # Errors
    /// [`AuthError::NotFound`] for a session of somebody else.
    pub async fn end_session(&self, caller: &Caller, id: SessionId) -> Result<(), AuthError> {
        let (own, user) = own_session(caller)?;
        let reason = if id == own { EndReason::Logout } else { EndReason::Ended };
        let mut tx = self.store.begin_personal(user).await?;
        if !store::sessions::exists(&mut tx, user, id).await? {
            return Err(AuthError::NotFound("session"));
        }
        self.end_own(tx, caller, Which::One(id), reason).await
    }

    /// Ends all of the caller's sessions but the one that asks.
    ///
    /// # Errors
    /// [`AuthError::Forbidden`] for a caller that is no session.
    pub async fn end_other_sessions(&self, caller: &Caller) -> Result<(), AuthError> {
        let (own, user) = own_session(caller)?;
        let tx = self.store.begin_personal(user).await?;
        self.end_own(tx, caller, Which::AllBut(own), EndReason::Ended).await
    }

    /// Moves the caller's session to another workspace of the person, and gives it a new pair of tokens.
    /// Tokens for the workspace before stop working at once.
    ///
    /// # Errors
    /// [`AuthError::Forbidden`] where the person is no member.
    pub async fn switch_workspace(
        &self,
        caller: &Caller,
        workspace: WorkspaceId,
    ) -> Result<TokenPair, AuthError> {
        let (_, user) = own_session(caller)?;
        let mut tx = self.store.begin(workspace, Some(user)).await?;
        let role = store::members::pin_role(&mut tx, workspace, user)
            .await?
            .ok_or(AuthError::Forbidden("you are no member of this workspace"))?;
        let pair = self.move_session(&mut tx, caller, workspace, role).await?;
        tx.commit().await?;
        self.fence.wait().await?;
        Ok(pair)
    }

    /// Moves the caller's session to a workspace that the person is a member of, in a transaction of
    /// both; which is to commit and to be waited for.
    pub(super) async fn move_session(
        &self,
        tx: &mut Tx,
        caller: &Caller,
        workspace: WorkspaceId,
        role: Role,
    ) -> Result<TokenPair, AuthError> {
        let (id, user) = own_session(caller)?;
        // Before the session: whoever changes a password has them in this order.
        store::users::set_last_workspace(tx, user, workspace).await?;
        let state = store::sessions::lock_refresh_state(tx, user, id).await?;
        let state = state.filter(|state| !state.ended).ok_or(ENDED)?;
        let now = self.env.clock.now();
        store::sessions::set_workspace(tx, user, id, workspace).await?;
        store::sessions::advance_refresh(tx, user, id, now).await?;
        let entered = self.moved(caller, id, workspace, "entered");
        store::audit::insert(tx, workspace, &entered).await?;
        if caller.workspace() != workspace {
            let left = self.moved(caller, id, caller.workspace(), "left");
            tx.enter(caller.workspace()).await?;
            store::audit::insert(tx, caller.workspace(), &left).await?;
        }
        let generation = state.generation.saturating_add(1);
        self.token_pair(user, workspace, id, role, generation, &state.seed)
    }

    /// The log of a workspace tells that a session came or went, not from or to where.
    fn moved(
        &self,
        caller: &Caller,
        id: SessionId,
        workspace: WorkspaceId,
        direction: &str,
    ) -> NewEvent {
        audit::event_in(&self.env, caller, workspace, Action::SessionSwitched, 200)
            .on(id, None)
            .with(json!({ "direction": direction }))
    }

    /// Ends sessions of a person, each with its event in the log of the workspace that it was in.
    pub(super) async fn end_sessions(
        &self,
        tx: &mut Tx,
        user: UserId,
        which: Which,
        reason: EndReason,
        actor: &Actor,
        request: &Arc<RequestInfo>,
    ) -> Result<(), AuthError> {
        let now = self.env.clock.now();
        for (id, workspace) in store::sessions::end_of_person(tx, user, which, now, reason).await? {
            let event = self
                .witness(request, workspace, Action::SessionEnded, actor.clone(), 204)
                .on(id, None)
                .with(json!({ "reason": reason.as_str() }));
            tx.enter(workspace).await?;
            store::audit::insert(tx, workspace, &event).await?;
        }
        Ok(())
    }

    /// Ends what a person has granted, in a workspace or everywhere, each with its event in the log there.
    pub(super) async fn end_grants(
        &self,
        tx: &mut Tx,
        user: UserId,
        there: Option<WorkspaceId>,
        reason: GrantEnd,
        actor: &Actor,
        request: &Arc<RequestInfo>,
    ) -> Result<(), AuthError> {
        let now = self.env.clock.now();
        let ended = store::oauth_grants::end_of_person(tx, there, user, now, reason).await?;
        for (id, client, workspace) in ended {
            let event = self
                .witness(request, workspace, Action::GrantEnded, actor.clone(), 204)
                .on(id, None)
                .with(reason.told(client, Some(user)));
            tx.enter(workspace).await?;
            store::audit::insert(tx, workspace, &event).await?;
        }
        Ok(())
    }

    /// Ends sessions of the caller, at once.
    async fn end_own(
        &self,
        mut tx: Tx,
        caller: &Caller,
        which: Which,
        reason: EndReason,
    ) -> Result<(), AuthError> {
        let (_, user) = own_session(caller)?;
        let actor = Actor::from(&*caller.principal);
        self.end_sessions(&mut tx, user, which, reason, &actor, &caller.request).await?;
        tx.commit().await?;
        // Also where there was nothing to end: whoever ended it may have gone without an answer.
        Ok(self.fence.wait().await?)
    }
}
