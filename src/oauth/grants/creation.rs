//! Creation of grants.
//!
//! A grant never exceeds the user's own role. The admin scope requires a recent sign-in.

use serde_json::json;
use time::OffsetDateTime;

use super::Grants;
use crate::{
    audit,
    auth::{AuthError, caller::SessionCaller},
    model::{
        audit::Action,
        id::{GrantId, WorkspaceId},
        oauth::{
            client::Client,
            grant::{GrantEndReason, GrantFlow, NewGrant},
        },
        principal::Caller,
        scope::Scope,
    },
    oauth::OAuthError,
    store::{
        self, Audited, Tx,
        oauth_grants::{EndedGrant, GrantLimits},
    },
};

/// A further grant ends the oldest one. Most users have a few. Whatever ends all grants of a user,
/// such as a reset of the password, does so in one transaction.
const LIMITS: GrantLimits = GrantLimits { per_client: 50, per_user: 1_000 };

const SESSION_ENDED: AuthError = AuthError::InvalidCredential("the session has ended");

/// The parameters of a new grant.
pub(in crate::oauth) struct CreateGrantParams<'a> {
    pub(in crate::oauth) client: &'a Client,
    pub(in crate::oauth) scope: Scope,
    pub(in crate::oauth) resources: &'a [String],
    pub(in crate::oauth) flow: GrantFlow,
    /// Deadline for the first token request.
    pub(in crate::oauth) redeem_by: OffsetDateTime,
}

/// A new grant in an open transaction. [`Grants::commit`] completes it.
pub(in crate::oauth) struct CreatedGrant {
    pub(in crate::oauth) tx: Tx,
    pub(in crate::oauth) id: GrantId,
    audited: Audited,
    /// True if older grants ended, which must take effect on all nodes.
    has_ended_others: bool,
}

impl Grants {
    /// Creates a grant with at most the scope of the caller's role.
    ///
    /// # Errors
    /// [`AuthError::Forbidden`] if the caller is not a member of the workspace, lacks the second
    /// factor that it requires, or grants the admin scope without a recent sign-in.
    pub(in crate::oauth) async fn create(
        &self,
        caller: &SessionCaller,
        workspace: WorkspaceId,
        wanted: CreateGrantParams<'_>,
    ) -> Result<CreatedGrant, OAuthError> {
        let CreateGrantParams { client, scope, resources, flow, redeem_by } = wanted;
        let (session, user) = (caller.session(), caller.user());
        let is_confirmed =
            scope < Scope::Admin || self.passwords.has_reauthenticated(caller, None).await?;
        let not_a_member = AuthError::Forbidden("you are not a member of this workspace");
        let tx = self.context.store.begin_as_member(workspace, user).await?;
        let Some(mut tx) = tx else { return Err(not_a_member.into()) };
        let role = store::members::lock_role_for_share(&mut tx, workspace, user).await?;
        let role = role.ok_or(not_a_member)?;
        let scope = scope.min(role.scope());
        if scope == Scope::Admin && !is_confirmed {
            return Err(AuthError::Forbidden(
                "authorizing administrator access requires a recent sign-in: sign in again, then \
                 authorize the app",
            )
            .into());
        }
        let now = self.context.env.clock.now();
        let client_id = store::oauth_clients::store_metadata_document(&mut tx, client, now).await?;
        let id: GrantId = self.context.env.new_id();
        let sealed_seed = self.generate_seed(id)?;
        let grant = NewGrant {
            id,
            client_id,
            workspace_id: workspace,
            user_id: user,
            session_id: session,
            scope,
            resources: resources.to_vec(),
            flow,
            created_at: now,
            redeem_by,
            sealed_seed,
        };
        store::oauth_grants::insert(&mut tx, &grant).await?;
        // The session may have ended since the request was authenticated. The foreign key of the
        // new row waits for a reset or a verification that holds the user's row, so the check comes
        // after the insert.
        let presented = caller.presented_session();
        if store::sessions::active_since(&mut tx, user, presented).await?.is_none() {
            return Err(SESSION_ENDED.into());
        }
        if store::oauth_grants::lacks_second_factor(&mut tx, grant.id).await? {
            return Err(AuthError::Forbidden(
                "this workspace requires a second factor: set one up first",
            )
            .into());
        }
        let has_ended_others = self.end_oldest(&mut tx, caller, &grant).await?;
        let event = audit::event_in_workspace(
            &self.context.env,
            caller,
            workspace,
            Action::GrantCreated,
            303,
        )
        .with_target(client_id, client.name.clone())
        .with_metadata(json!({
            "client_id": client.client_id(),
            "grant_id": grant.id,
            "scope": grant.scope,
            "resources": grant.resources,
            "redirect_uri": grant.flow.redirect_uri(),
        }));
        let audited = store::audit::insert(&mut tx, workspace, &event).await?;
        Ok(CreatedGrant { tx, id: grant.id, audited, has_ended_others })
    }

    /// Commits a new grant, and waits until the end of older grants has taken effect on all nodes.
    /// Returns the id of the new grant.
    pub(in crate::oauth) async fn commit(
        &self,
        CreatedGrant { tx, id, audited, has_ended_others }: CreatedGrant,
    ) -> Result<GrantId, OAuthError> {
        let committed = tx.commit(audited).await?;
        if has_ended_others {
            self.context.fence.wait(committed).await?;
        } else {
            committed.unfenced("a new grant, which no node has cached");
        }
        Ok(id)
    }

    /// Records in the audit log that the caller denied a client's request.
    pub(in crate::oauth) async fn record_denial(
        &self,
        tx: &mut Tx,
        caller: &Caller,
        client: &Client,
    ) -> Result<Audited, OAuthError> {
        let event = audit::event(&self.context.env, caller, Action::GrantDenied, 303)
            .with_target(client.id, client.name.clone())
            .with_metadata(json!({ "client_id": client.client_id() }));
        Ok(store::audit::insert(tx, caller.workspace(), &event).await?)
    }

    /// Ends the user's oldest grants above [`LIMITS`]. Returns true if any ended.
    async fn end_oldest(
        &self,
        tx: &mut Tx,
        caller: &Caller,
        grant: &NewGrant,
    ) -> Result<bool, OAuthError> {
        let (env, reason) = (&self.context.env, GrantEndReason::Superseded);
        let (user, id, now) = (grant.user_id, grant.id, env.clock.now());
        let ended = store::oauth_grants::end_excess(tx, user, id, LIMITS, now).await?;
        let event = |ended: &EndedGrant| {
            audit::event_in_workspace(env, caller, ended.workspace, Action::GrantEnded, 303)
                .with_target(ended.id, None)
                .with_metadata(reason.audit_metadata(ended.client, ended.user))
        };
        let events: Vec<_> = ended.iter().map(event).collect();
        Ok(store::audit::insert_all(tx, &events).await?.is_some())
    }
}
