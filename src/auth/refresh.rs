//! Refresh with rotation (RFC 9700, section 4.14.2).
//!
//! A token works once. Its retry within a few seconds, when an answer was lost or two tabs were
//! quick, gets the same successor; anything else that is not the newest is a reuse, and one of the
//! two who hold the family is a thief, so the session ends.

use std::sync::Arc;

use super::{Auth, AuthError, login::TokenPair};
use crate::{
    model::{
        audit::{Action, Actor, ActorType, RequestInfo},
        id::{Id, SessionId},
        mail::MailSubject,
        refresh_token::PresentedToken,
        session::{EndReason, RefreshState, SessionRecord, Which},
    },
    store::{self, Tx},
};

/// What a refresh token is worth.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// The newest: it gets a successor.
    Current,
    /// The one before, just used: it gets the same successor again.
    Retry,
    /// An older one: somebody uses it a second time.
    Reused,
    /// Nothing.
    Invalid,
}

impl Auth {
    /// The next pair of tokens of a session.
    ///
    /// # Errors
    /// [`AuthError::InvalidRefreshToken`]; a reuse also ends the session.
    pub async fn refresh(
        &self,
        refresh_token: &str,
        request: &Arc<RequestInfo>,
    ) -> Result<TokenPair, AuthError> {
        let invalid = || AuthError::InvalidRefreshToken;
        let token = PresentedToken::parse(refresh_token).ok_or_else(invalid)?;
        let id = token.id();
        let session = self.store.find_session(id).await?.ok_or_else(invalid)?;
        let role = session.role.ok_or_else(invalid)?;
        let (user, workspace) = (session.user_id, session.workspace_id);
        let mut tx = self.store.begin(workspace, Some(user)).await?;
        let state =
            store::sessions::lock_refresh_state(&mut tx, user, id).await?.ok_or_else(invalid)?;
        let generation = match self.judge(&token, &state) {
            Verdict::Current => {
                let now = self.env.clock.now();
                store::sessions::advance_refresh(&mut tx, user, id, now).await?;
                let event =
                    self.session_event(&session, id, Action::SessionRefreshed, request, 200);
                store::audit::insert(&mut tx, workspace, &event).await?;
                state.generation.saturating_add(1)
            }
            Verdict::Retry => state.generation,
            Verdict::Reused => {
                self.end_reused(&mut tx, &session, id, request).await?;
                tx.commit().await?;
                self.fence.wait().await?;
                return Err(AuthError::InvalidRefreshToken);
            }
            Verdict::Invalid => return Err(AuthError::InvalidRefreshToken),
        };
        let pair = self.token_pair(user, workspace, id, role, generation, &state.seed)?;
        tx.commit().await?;
        Ok(pair)
    }

    fn judge(&self, token: &PresentedToken<SessionId>, state: &RefreshState) -> Verdict {
        let now = self.env.clock.now();
        let Some(generation) = token.verify(&self.refresh_key, &state.seed) else {
            return Verdict::Invalid;
        };
        let unused_for = now - state.refreshed_at;
        if state.ended || now >= state.expires_at || generation > state.generation {
            return Verdict::Invalid;
        }
        if generation == state.generation {
            let alive = unused_for < self.lifetimes.refresh_token;
            return if alive { Verdict::Current } else { Verdict::Invalid };
        }
        let predecessor = generation + 1 == state.generation;
        if predecessor && unused_for <= self.lifetimes.refresh_reuse {
            Verdict::Retry
        } else {
            Verdict::Reused
        }
    }

    async fn end_reused(
        &self,
        tx: &mut Tx,
        session: &SessionRecord,
        id: SessionId,
        request: &Arc<RequestInfo>,
    ) -> Result<(), AuthError> {
        let now = self.env.clock.now();
        let user = session.user_id;
        store::sessions::end_of_person(tx, user, Which::One(id), now, EndReason::Reuse).await?;
        let event = self.session_event(session, id, Action::SessionReuseDetected, request, 401);
        store::audit::insert(tx, session.workspace_id, &event).await?;
        let person = store::users::get(tx, user).await?.ok_or(AuthError::InvalidRefreshToken)?;
        let subject = MailSubject::SessionReuse { origin: self.origin(request) };
        self.mail(tx, person.email, subject).await
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
        self.witness(request, session.workspace_id, action, actor, status).on(id, None)
    }
}
