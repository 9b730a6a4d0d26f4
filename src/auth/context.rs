//! The parts that every service of this module needs, and what they do together: audit events,
//! emails and lookups of users.

use std::sync::Arc;

use serde_json::json;
use uuid::Uuid;

use super::AuthError;
use crate::{
    audit::AuditWriter,
    cache_invalidation::Fence,
    env::Env,
    limit::Limits,
    model::{
        audit::{Action, Actor, NewEvent, RequestInfo},
        email::Email,
        id::{UserId, WorkspaceId},
        mail::{EmailKind, OutgoingEmail, RequestOrigin},
        oauth::grant::GrantEndReason,
        one_time_token::{BoundTokenPurpose, TokenKey, TokenOwner, unverified_id},
        timestamp,
        user::{Membership, User},
    },
    store::{self, Audited, Store, Tx, oauth_clients::ExternalGrants},
};

/// The parts that every service needs.
pub struct ServiceContext {
    pub(crate) store: Store,
    pub(crate) env: Env,
    pub(crate) audit: AuditWriter,
    pub(crate) fence: Fence,
    pub(crate) limits: Limits,
    /// The MAC key of one-time tokens: mailed links, CSRF tokens, OAuth codes.
    pub(crate) token_key: TokenKey,
    /// The issuer of tokens: the service's public URL, without a trailing slash.
    pub(crate) issuer: Arc<str>,
}

impl ServiceContext {
    /// Records an action that concerns a user, not one workspace, in the audit logs of all
    /// workspaces of the user.
    pub(super) async fn audit_in_all_workspaces(
        &self,
        tx: &mut Tx,
        user: &User,
        action: Action,
        request: &Arc<RequestInfo>,
    ) -> Result<Audited, AuthError> {
        let event = |membership: Membership| {
            self.audit_event(request, membership.workspace_id, action, Actor::user(user), 204)
                .with_target(user.id, user.email.clone())
        };
        let memberships = store::members::list_by_user(tx, user.id).await?;
        let events: Vec<_> = memberships.into_iter().map(event).collect();
        let audited = store::audit::insert_all(tx, &events).await?;
        Ok(audited.unwrap_or_else(|| Audited::exempt("the user is in no workspace")))
    }

    /// Adds an email to the outbox; it is sent after the transaction commits.
    pub(super) async fn enqueue_email(
        &self,
        tx: &mut Tx,
        to: String,
        subject: EmailKind,
    ) -> Result<(), AuthError> {
        let mail = OutgoingEmail { to, subject };
        Ok(store::email_outbox::insert(tx, self.env.new_uuid(), &mail).await?)
    }

    /// Adds an email to the outbox for each owner of the transaction's workspace. `subject` creates
    /// it with the workspace's name.
    pub(crate) async fn email_owners(
        &self,
        tx: &mut Tx,
        workspace: WorkspaceId,
        subject: impl Fn(String) -> EmailKind,
    ) -> Result<(), AuthError> {
        let row = store::workspaces::get(tx, workspace).await?;
        let name = row.ok_or(AuthError::NotFound("workspace"))?.name;
        for owner in store::members::list_owner_emails(tx, workspace).await? {
            self.enqueue_email(tx, owner, subject(name.clone())).await?;
        }
        Ok(())
    }

    /// Records in all workspaces that a client's grants there have ended. The actor is the system:
    /// the one that changed the client may be unknown to those workspaces.
    pub(crate) async fn audit_ended_grants(
        &self,
        tx: &mut Tx,
        request: Option<&RequestInfo>,
        reason: GrantEndReason,
        external_grants: Vec<ExternalGrants>,
    ) -> Result<(), AuthError> {
        let event = |ended: ExternalGrants| {
            let (id, workspace) = (self.env.new_id(), ended.workspace_id);
            NewEvent::new(id, workspace, Action::GrantEnded, Actor::system())
                .with_target(ended.client_id, ended.client_name)
                .with_metadata(json!({
                    "reason": reason.as_str(),
                    "grants": ended.grants,
                    "request_id": request.map(|request| request.id),
                }))
        };
        let events: Vec<_> = external_grants.into_iter().map(event).collect();
        store::audit::insert_all(tx, &events).await?;
        Ok(())
    }

    /// The time and origin of a request, for emails.
    pub(crate) fn request_origin(&self, request: &RequestInfo) -> RequestOrigin {
        RequestOrigin {
            at: timestamp::format(self.env.clock.now()),
            ip: request.ip.to_string(),
            user_agent: request.user_agent.clone(),
        }
    }

    pub(super) async fn user(&self, id: UserId) -> Result<User, AuthError> {
        let mut tx = self.store.begin_for_user(id).await?;
        store::users::get(&mut tx, id).await?.ok_or(AuthError::NotFound("account"))
    }

    /// Verifies the token of a link that was mailed to an account. Returns its id and the account,
    /// or `None` if it is not valid. The caller must check that it is unused and not expired.
    pub(super) async fn verify_mailed_token(
        &self,
        purpose: BoundTokenPurpose,
        token: &str,
    ) -> Result<Option<(Uuid, UserId)>, AuthError> {
        let Some(id) = unverified_id(token) else { return Ok(None) };
        let Some(owner) = self.store.find_one_time_token(purpose, id).await? else {
            return Ok(None);
        };
        let Ok(email) = Email::parse(&owner.email) else { return Ok(None) };
        let bound_to = TokenOwner::Account(owner.user, &email);
        let verified = self.token_key.verify_for(bound_to, purpose, token);
        Ok(verified.map(|id| (id, owner.user)))
    }

    /// Queues an audit event that is not part of a transaction.
    ///
    /// # Errors
    /// [`AuthError::AuditQueueFull`] if the queue is full.
    pub(crate) async fn queue_audit_event(&self, event: NewEvent) -> Result<(), AuthError> {
        self.audit.reserve().await.ok_or(AuthError::AuditQueueFull)?.send(event);
        Ok(())
    }

    /// Creates an audit event for a request.
    pub(crate) fn audit_event(
        &self,
        request: &Arc<RequestInfo>,
        workspace: WorkspaceId,
        action: Action,
        actor: Actor,
        status: u16,
    ) -> NewEvent {
        NewEvent::new(self.env.new_id(), workspace, action, actor).with_request(
            request,
            status,
            self.env.clock.monotonic(),
        )
    }
}
