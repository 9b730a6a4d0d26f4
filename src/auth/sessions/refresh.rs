//! Refreshing a session, with rotation of its refresh tokens (RFC 9700, section 4.14.2).
//!
//! A refresh token works once. A retry within a few seconds, after a lost response or from a second
//! tab, gets the same successor. Any other use of an old token is a reuse: two parties hold tokens
//! of this session and one of them may be a thief, so the session ends. A change of PostgreSQL's
//! clock must not turn a retry into a reuse, so only time that has certainly passed counts.

use std::sync::Arc;

use crate::{
    auth::{
        AuthError,
        sessions::{Sessions, TokenPair, TokenPairParams},
    },
    model::{
        audit::{Action, Actor, ActorType, RequestInfo},
        id::{Id, SessionId},
        mail::EmailKind,
        refresh_token::{PresentedToken, RefreshSeed},
        session::{RefreshState, SessionEndReason, SessionRecord, SessionSelector},
    },
    store::{self, Audited, Tx},
};

/// The status of a presented refresh token.
#[derive(Debug, PartialEq, Eq)]
enum TokenStatus {
    /// The newest token; it gets a successor.
    Current,
    /// The predecessor of the newest token, replaced moments ago; it gets the same successor again.
    Retry,
    /// An older token, used a second time.
    Reused,
    /// Not a valid token of an active session.
    Invalid,
}

impl Sessions {
    /// Exchanges a refresh token for the next token pair of its session.
    ///
    /// # Errors
    /// [`AuthError::InvalidRefreshToken`]. If the token was reused, the session is ended as well,
    /// and the user gets an email.
    #[tracing::instrument(
        name = "auth.sessions.refresh",
        level = "debug",
        skip_all,
        err(level = "debug")
    )]
    pub async fn refresh(
        &self,
        refresh_token: &str,
        request: &Arc<RequestInfo>,
    ) -> Result<TokenPair, AuthError> {
        let invalid = || AuthError::InvalidRefreshToken;
        let token = PresentedToken::parse(refresh_token).ok_or_else(invalid)?;
        let id = token.id();
        let session = self.context.store.find_session(id).await?.ok_or_else(invalid)?;
        let role = session.role.ok_or_else(invalid)?;
        let (user, workspace) = (session.user_id, session.workspace_id);
        let mut tx = self.context.store.begin(workspace, Some(user)).await?;
        let state =
            store::sessions::lock_refresh_state(&mut tx, user, id).await?.ok_or_else(invalid)?;
        let seed = self.open_seed(id, &state.sealed_seed)?;
        let (generation, audited) = match self.refresh_token_status(&token, &seed, &state) {
            TokenStatus::Current => {
                let now = self.context.env.clock.now();
                store::sessions::advance_refresh_token(&mut tx, user, id, now).await?;
                let event =
                    self.session_event(&session, id, Action::SessionRefreshed, request, 200);
                let audited = store::audit::insert(&mut tx, workspace, &event).await?;
                (state.generation.saturating_add(1), audited)
            }
            TokenStatus::Retry => (state.generation, Audited::exempt("a retry changes nothing")),
            TokenStatus::Reused => {
                let audited = self.end_reused(&mut tx, &session, id, request).await?;
                self.context.fence.wait(tx.commit(audited).await?).await?;
                return Err(AuthError::InvalidRefreshToken);
            }
            TokenStatus::Invalid => return Err(AuthError::InvalidRefreshToken),
        };
        let pair = self.issue_token_pair(&TokenPairParams {
            user,
            workspace,
            session: id,
            role,
            refresh_generation: generation,
            credential_generation: state.credential_generation,
            seed: &seed,
        })?;
        tx.commit(audited).await?.unfenced("no node caches refresh tokens");
        Ok(pair)
    }

    fn refresh_token_status(
        &self,
        token: &PresentedToken<SessionId>,
        seed: &RefreshSeed,
        state: &RefreshState,
    ) -> TokenStatus {
        let now = self.context.env.clock.now();
        let Some(generation) = token.verify(seed) else {
            return TokenStatus::Invalid;
        };
        if state.is_ended || now >= state.expires_at || generation > state.generation {
            return TokenStatus::Invalid;
        }
        if generation == state.generation {
            let is_active = now - state.refreshed_at < self.idle_timeout;
            return if is_active { TokenStatus::Current } else { TokenStatus::Invalid };
        }
        let is_predecessor = generation + 1 == state.generation;
        let since_refresh = self.context.env.clock.elapsed_since(state.refreshed_at);
        if is_predecessor && since_refresh <= self.refresh_retry_window {
            TokenStatus::Retry
        } else {
            TokenStatus::Reused
        }
    }

    async fn end_reused(
        &self,
        tx: &mut Tx,
        session: &SessionRecord,
        id: SessionId,
        request: &Arc<RequestInfo>,
    ) -> Result<Audited, AuthError> {
        let now = self.context.env.clock.now();
        let user = session.user_id;
        store::sessions::end_for_user(
            tx,
            user,
            SessionSelector::One(id),
            now,
            SessionEndReason::RefreshTokenReuse,
        )
        .await?;
        let event = self.session_event(session, id, Action::SessionReuseDetected, request, 401);
        let audited = store::audit::insert(tx, session.workspace_id, &event).await?;
        let account = store::users::get(tx, user).await?.ok_or(AuthError::InvalidRefreshToken)?;
        let subject = EmailKind::SessionReuse { origin: self.context.request_origin(request) };
        self.context.enqueue_email(tx, account.email, subject).await?;
        Ok(audited)
    }

    fn session_event(
        &self,
        session: &SessionRecord,
        id: SessionId,
        action: Action,
        request: &Arc<RequestInfo>,
        status: u16,
    ) -> crate::model::audit::NewEvent {
        let actor = Actor {
            kind: ActorType::User,
            id: Some(session.user_id.uuid()),
            name: Some(Arc::clone(&session.name)),
        };
        self.context
            .audit_event(request, session.workspace_id, action, actor, status)
            .with_target(id, None)
    }
}
