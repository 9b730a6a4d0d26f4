//! Sessions of users: list them, end them, move them to another workspace.
//!
//! Every end and move of a session is recorded in the audit log of each workspace concerned, in the
//! same transaction. `refresh` renews a session's tokens; `Sessions::renew_after_change` replaces
//! its credentials after a change of the password or of a factor.

mod refresh;

use std::{sync::Arc, time::Duration};

use secrecy::SecretString;
use serde_json::json;

use super::{AuthError, context::ServiceContext, sealing::SealingKeys, token_issuer::TokenIssuer};
use crate::{
    audit,
    auth::caller::SessionCaller,
    model::{
        audit::{Action, Actor, NewEvent, RequestInfo},
        id::{Id, SessionId, UserId, WorkspaceId},
        oauth::grant::GrantEndReason,
        page::{ListPage, PageRequest},
        principal::Caller,
        refresh_token::RefreshSeed,
        scope::Role,
        session::{NewSession, Session, SessionEndReason, SessionSelector},
        session_cookie::SessionCookie,
        user::Membership,
    },
    store::{self, Audited, Tx, oauth_grants::EndedGrant},
};

/// Maximum number of active sessions of a user. A further one ends the oldest. At the default rate
/// of sign-ins, that one is older than its access token.
const MAX_SESSIONS: i64 = 1_000;

/// The error for a session that has ended.
pub(super) const SESSION_ENDED: AuthError = AuthError::InvalidCredential("the session has ended");

/// The tokens of a session.
#[derive(Debug)]
pub struct TokenPair {
    /// The access token. Valid for one hour by default.
    pub access_token: SecretString,
    /// The refresh token. Works once, for the next pair.
    pub refresh_token: SecretString,
    /// The session of both tokens.
    pub session: SessionId,
}

/// All credentials of a session: those of a new one, or those that replace the earlier ones.
#[derive(Debug)]
pub struct SessionCredentials {
    /// The tokens, for API clients.
    pub tokens: TokenPair,
    /// The cookie, for browsers.
    pub cookie: SessionCookie,
}

/// The session and the generations of a new token pair.
struct TokenPairParams<'a> {
    user: UserId,
    workspace: WorkspaceId,
    session: SessionId,
    role: Role,
    refresh_generation: u32,
    credential_generation: u32,
    seed: &'a RefreshSeed,
}

/// The sessions of users and their refresh tokens.
pub struct Sessions {
    pub(super) context: Arc<ServiceContext>,
    /// Encrypts the seeds of refresh tokens.
    pub(super) seed_sealing: SealingKeys,
    pub(super) lifetime: Duration,
    pub(super) idle_timeout: Duration,
    pub(super) refresh_retry_window: Duration,
    pub(super) token_issuer: Arc<TokenIssuer>,
}

impl Sessions {
    /// Lists the caller's active sessions in all workspaces, and counts them.
    ///
    /// # Errors
    /// [`AuthError::Forbidden`] if the caller is not a user session.
    #[tracing::instrument(
        name = "auth.sessions.list",
        level = "debug",
        skip_all,
        fields(workspace = %caller.workspace()),
        err(level = "debug")
    )]
    pub async fn list(
        &self,
        caller: &SessionCaller,
        page: PageRequest,
    ) -> Result<(ListPage<Session>, i64), AuthError> {
        let user = caller.user();
        let (now, idle) = (self.context.env.clock.now(), self.idle_timeout);
        let mut tx = self.context.store.begin_for_user(user).await?;
        let items = store::sessions::list(&mut tx, user, now, idle, page).await?;
        let total = store::sessions::count(&mut tx, user, now, idle).await?;
        Ok((items, total))
    }

    /// Signs the caller out: ends the session that made the request.
    ///
    /// # Errors
    /// [`AuthError::Forbidden`] if the caller is not a user session.
    #[tracing::instrument(
        name = "auth.sessions.sign_out",
        level = "debug",
        skip_all,
        fields(workspace = %caller.workspace()),
        err(level = "debug")
    )]
    pub async fn sign_out(&self, caller: &SessionCaller) -> Result<(), AuthError> {
        let (id, user) = (caller.session(), caller.user());
        let tx = self.context.store.begin_for_user(user).await?;
        self.end_own(tx, caller, SessionSelector::One(id), SessionEndReason::SignedOut).await
    }

    /// Ends one of the caller's sessions. Ending it again has no effect.
    ///
    /// # Errors
    /// [`AuthError::NotFound`] if the user has no such session.
    #[tracing::instrument(
        name = "auth.sessions.end",
        level = "debug",
        skip_all,
        fields(workspace = %caller.workspace()),
        err(level = "debug")
    )]
    pub async fn end(&self, caller: &SessionCaller, id: SessionId) -> Result<(), AuthError> {
        let (own, user) = (caller.session(), caller.user());
        let reason =
            if id == own { SessionEndReason::SignedOut } else { SessionEndReason::EndedByUser };
        let mut tx = self.context.store.begin_for_user(user).await?;
        if !store::sessions::exists(&mut tx, user, id).await? {
            return Err(AuthError::NotFound("session"));
        }
        self.end_own(tx, caller, SessionSelector::One(id), reason).await
    }

    /// Ends all of the caller's sessions except the one that made the request.
    ///
    /// # Errors
    /// [`AuthError::Forbidden`] if the caller is not a user session.
    #[tracing::instrument(
        name = "auth.sessions.end_others",
        level = "debug",
        skip_all,
        fields(workspace = %caller.workspace()),
        err(level = "debug")
    )]
    pub async fn end_others(&self, caller: &SessionCaller) -> Result<(), AuthError> {
        let (own, user) = (caller.session(), caller.user());
        let tx = self.context.store.begin_for_user(user).await?;
        self.end_own(tx, caller, SessionSelector::AllExcept(own), SessionEndReason::EndedByUser)
            .await
    }

    /// Moves the caller's session to another workspace of the user, and issues a new token pair.
    /// Tokens for the previous workspace stop working at once.
    ///
    /// # Errors
    /// [`AuthError::Forbidden`] if the user is not a member of the workspace.
    #[tracing::instrument(
        name = "auth.sessions.switch_workspace",
        level = "debug",
        skip_all,
        fields(workspace = %caller.workspace()),
        err(level = "debug")
    )]
    pub async fn switch_workspace(
        &self,
        caller: &SessionCaller,
        workspace: WorkspaceId,
    ) -> Result<TokenPair, AuthError> {
        let user = caller.user();
        let not_a_member = AuthError::Forbidden("you are not a member of this workspace");
        let tx = self.context.store.begin_as_member(workspace, user).await?;
        let Some(mut tx) = tx else { return Err(not_a_member) };
        let role = store::members::lock_role_for_share(&mut tx, workspace, user).await?;
        let role = role.ok_or(not_a_member)?;
        let (pair, audited) = self.move_to(&mut tx, caller, workspace, role).await?;
        self.context.fence.wait(tx.commit(audited).await?).await?;
        Ok(pair)
    }

    /// Moves the caller's session to a workspace of the user, in a transaction of both. The caller
    /// must commit the transaction, then wait at the fence.
    pub(in crate::auth) async fn move_to(
        &self,
        tx: &mut Tx,
        caller: &SessionCaller,
        workspace: WorkspaceId,
        role: Role,
    ) -> Result<(TokenPair, Audited), AuthError> {
        let (id, user) = (caller.session(), caller.user());
        // Lock the user's row before the session's: a password change locks them in this order.
        store::users::set_last_workspace(tx, user, workspace).await?;
        let state = store::sessions::lock_refresh_state(tx, user, id).await?;
        let presented = caller.presented_session().credential_generation;
        let state = state
            .filter(|state| !state.is_ended && state.credential_generation == presented)
            .ok_or(SESSION_ENDED)?;
        let now = self.context.env.clock.now();
        store::sessions::set_workspace(tx, user, id, workspace).await?;
        store::sessions::advance_refresh_token(tx, user, id, now).await?;
        let entered = self.switched_event(caller, id, workspace, "entered");
        let audited = store::audit::insert(tx, workspace, &entered).await?;
        if caller.workspace() != workspace {
            let left = self.switched_event(caller, id, caller.workspace(), "left");
            store::audit::insert_elsewhere(tx, &left).await?;
        }
        let pair = self.issue_token_pair(&TokenPairParams {
            user,
            workspace,
            session: id,
            role,
            refresh_generation: state.generation.saturating_add(1),
            credential_generation: state.credential_generation,
            seed: &self.open_seed(id, &state.sealed_seed)?,
        })?;
        Ok((pair, audited))
    }

    /// Applies a change of the user's password or factors to the user's sessions: ends the others,
    /// and replaces the credentials of the caller's own. A thief of either session loses access.
    ///
    /// `tx` must be of the user and have locked the user's row. The caller must commit it and wait
    /// at the fence.
    ///
    /// # Errors
    /// As [`Self::replace_credentials`].
    pub(in crate::auth) async fn renew_after_change(
        &self,
        tx: &mut Tx,
        caller: &SessionCaller,
        reason: SessionEndReason,
    ) -> Result<SessionCredentials, AuthError> {
        let others = SessionSelector::AllExcept(caller.session());
        let actor = Actor::from(&*caller.principal);
        self.end_selected(tx, caller.user(), others, reason, &actor, &caller.request).await?;
        self.replace_credentials(tx, caller).await
    }

    /// Replaces the cookie and all tokens of the caller's session. The earlier ones become invalid.
    ///
    /// # Errors
    /// [`SESSION_ENDED`] if the session has ended or its credentials were replaced meanwhile;
    /// [`AuthError::Conflict`] if it has switched to another workspace meanwhile.
    pub(in crate::auth) async fn replace_credentials(
        &self,
        tx: &mut Tx,
        caller: &SessionCaller,
    ) -> Result<SessionCredentials, AuthError> {
        let (session, user, workspace) = (caller.session(), caller.user(), caller.workspace());
        let (entropy, now) = (&self.context.env.entropy, self.context.env.clock.now());
        let (seed, sealed_seed) = self.generate_seed(session)?;
        let cookie = SessionCookie::new(session, entropy.bytes());
        let digest = cookie.digest();
        let presented = caller.presented_session();
        let replaced =
            store::sessions::replace_credentials(tx, user, presented, &sealed_seed, digest, now)
                .await?;
        let replaced = replaced.ok_or(SESSION_ENDED)?;
        if replaced.workspace_id != workspace {
            return Err(AuthError::Conflict("the session has switched to another workspace"));
        }
        let tokens = self.issue_token_pair(&TokenPairParams {
            user,
            workspace,
            session,
            role: caller.role(),
            refresh_generation: replaced.refresh_generation,
            credential_generation: replaced.credential_generation,
            seed: &seed,
        })?;
        Ok(SessionCredentials { tokens, cookie })
    }

    /// The audit event for a session that entered or left a workspace. It does not name the other
    /// workspace, so that workspaces learn nothing about each other.
    fn switched_event(
        &self,
        caller: &Caller,
        id: SessionId,
        workspace: WorkspaceId,
        direction: &str,
    ) -> NewEvent {
        audit::event_in_workspace(
            &self.context.env,
            caller,
            workspace,
            Action::SessionSwitched,
            200,
        )
        .with_target(id, None)
        .with_metadata(json!({ "direction": direction }))
    }

    /// Ends sessions of a user, with an audit event in the workspace of each.
    pub(in crate::auth) async fn end_selected(
        &self,
        tx: &mut Tx,
        user: UserId,
        selector: SessionSelector,
        reason: SessionEndReason,
        actor: &Actor,
        request: &Arc<RequestInfo>,
    ) -> Result<Audited, AuthError> {
        let (_, audited) = self.end_and_count(tx, user, selector, reason, actor, request).await?;
        Ok(audited)
    }

    /// Ends sessions as [`Self::end_selected`] does, and returns their number too.
    pub(in crate::auth) async fn end_and_count(
        &self,
        tx: &mut Tx,
        user: UserId,
        selector: SessionSelector,
        reason: SessionEndReason,
        actor: &Actor,
        request: &Arc<RequestInfo>,
    ) -> Result<(usize, Audited), AuthError> {
        let now = self.context.env.clock.now();
        let ended = store::sessions::end_for_user(tx, user, selector, now, reason).await?;
        let count = ended.len();
        Ok((count, self.audit_ended(tx, ended, reason, actor, request).await?))
    }

    /// Records that sessions have ended, in the workspace of each.
    pub(in crate::auth) async fn audit_ended(
        &self,
        tx: &mut Tx,
        ended: impl IntoIterator<Item = (SessionId, WorkspaceId)>,
        reason: SessionEndReason,
        actor: &Actor,
        request: &Arc<RequestInfo>,
    ) -> Result<Audited, AuthError> {
        let event = |(id, workspace)| {
            self.context
                .audit_event(request, workspace, Action::SessionEnded, actor.clone(), 204)
                .with_target(id, None)
                .with_metadata(json!({ "reason": reason.as_str() }))
        };
        let events: Vec<_> = ended.into_iter().map(event).collect();
        let audited = store::audit::insert_all(tx, &events).await?;
        Ok(audited.unwrap_or_else(|| Audited::exempt("no session has ended")))
    }

    /// Ends grants that users gave, in one workspace or in all, with an audit event in the
    /// workspace of each.
    pub(in crate::auth) async fn end_grants(
        &self,
        tx: &mut Tx,
        users: &[UserId],
        workspace_filter: Option<WorkspaceId>,
        reason: GrantEndReason,
        actor: &Actor,
        request: &Arc<RequestInfo>,
    ) -> Result<(), AuthError> {
        let now = self.context.env.clock.now();
        let ended =
            store::oauth_grants::end_for_users(tx, workspace_filter, users, now, reason).await?;
        let event = |ended: &EndedGrant| {
            self.context
                .audit_event(request, ended.workspace, Action::GrantEnded, actor.clone(), 204)
                .with_target(ended.id, None)
                .with_metadata(reason.audit_metadata(ended.client, ended.user))
        };
        let events: Vec<_> = ended.iter().map(event).collect();
        store::audit::insert_all(tx, &events).await?;
        Ok(())
    }

    /// Ends sessions of the caller, commits, and waits until they are ended on every node.
    async fn end_own(
        &self,
        mut tx: Tx,
        caller: &SessionCaller,
        selector: SessionSelector,
        reason: SessionEndReason,
    ) -> Result<(), AuthError> {
        let user = caller.user();
        let actor = Actor::from(&*caller.principal);
        let audited =
            self.end_selected(&mut tx, user, selector, reason, &actor, &caller.request).await?;
        // Wait even if nothing was ended: an earlier request may have ended the session, and its
        // client may have disconnected before the fence was passed.
        Ok(self.context.fence.wait(tx.commit(audited).await?).await?)
    }

    /// Stores a session and its audit event, and issues its first token pair. Ends the oldest
    /// sessions above [`MAX_SESSIONS`]; no request reports their end, so the caller need not wait
    /// at the fence.
    pub(in crate::auth) async fn create(
        &self,
        tx: &mut Tx,
        user: UserId,
        actor: Actor,
        Membership { workspace_id, role }: Membership,
        request: &Arc<RequestInfo>,
        status: u16,
    ) -> Result<(SessionCredentials, Audited), AuthError> {
        let now = self.context.env.clock.now();
        let id = self.context.env.new_id();
        let cookie = SessionCookie::new(id, self.context.env.entropy.bytes());
        let (seed, sealed_seed) = self.generate_seed(id)?;
        let session = NewSession {
            id,
            user_id: user,
            workspace_id,
            created_at: now,
            expires_at: now + self.lifetime,
            ip: request.ip,
            user_agent: request.user_agent.clone(),
            sealed_seed,
            cookie_digest: cookie.digest(),
        };
        store::sessions::insert(tx, &session).await?;
        let idle = self.idle_timeout;
        let ended = store::sessions::end_excess(tx, user, id, MAX_SESSIONS, now, idle).await?;
        self.audit_ended(tx, ended, SessionEndReason::Superseded, &actor, request).await?;
        let event = self
            .context
            .audit_event(request, workspace_id, Action::SessionCreated, actor, status)
            .with_target(session.id, None);
        let audited = store::audit::insert(tx, workspace_id, &event).await?;
        let tokens = self.issue_token_pair(&TokenPairParams {
            user,
            workspace: workspace_id,
            session: id,
            role,
            refresh_generation: 0,
            credential_generation: 0,
            seed: &seed,
        })?;
        Ok((SessionCredentials { tokens, cookie }, audited))
    }

    fn issue_token_pair(&self, params: &TokenPairParams<'_>) -> Result<TokenPair, AuthError> {
        let TokenPairParams { user, workspace, session, role, .. } = *params;
        let generation = params.credential_generation;
        let access_token =
            self.token_issuer.issue_session_token(user, workspace, session, generation, role)?;
        let refresh_token = params.seed.derive(session, params.refresh_generation);
        Ok(TokenPair { access_token: access_token.into(), refresh_token, session })
    }

    /// Creates the seed of a session's refresh tokens. Returns it with its sealed form.
    fn generate_seed(&self, session: SessionId) -> Result<(RefreshSeed, Vec<u8>), AuthError> {
        let context = session.uuid();
        let (seed, sealed) = self.seed_sealing.generate(&self.context.env, context.as_bytes())?;
        Ok((RefreshSeed::new(seed), sealed))
    }

    fn open_seed(&self, session: SessionId, sealed: &[u8]) -> Result<RefreshSeed, AuthError> {
        let seed = self.seed_sealing.open_stored(session.uuid().as_bytes(), sealed)?;
        Ok(RefreshSeed::new(seed))
    }

    /// Maximum lifetime of a session.
    #[must_use]
    pub fn lifetime(&self) -> Duration {
        self.lifetime
    }
}
