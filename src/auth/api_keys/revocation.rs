//! Revocation of API keys, and of what they made.
//!
//! A key may have created other keys and OAuth clients, and sent invitations. Its own open
//! invitations close when it is revoked. All others stay valid, and the audit event and an email to
//! the owners name them, unless the revocation cascades.
//!
//! It may also have given access to what others made. A cascade ends the secrets and the redirect
//! URIs that it added to OAuth clients, with what these clients were granted since. Members that it
//! invited or whose role it set, and keys that it enabled or widened, are named in every case: only
//! an administrator knows which of them are right.
//!
//! Every revocation locks the workspace first, as the creation of a credential does, so a key
//! creates nothing while it is being revoked.

use std::sync::Arc;

use serde_json::{Value, json};
use uuid::Uuid;

use super::ApiKeys;
use crate::{
    auth::{
        AuthError,
        remaining_access::{ids_and_names, name_added_access},
    },
    cache_invalidation::AuditWatermark as _,
    model::{
        api_key::{ApiKey, ApiKeySecret, KeyStatus},
        audit::{Action, Actor, KEY_HOLDER_NAME, NewEvent, RequestInfo},
        id::{ApiKeyId, Id as _, InvitationId, WorkspaceId},
        key_descendants::{AccessSource, KeyDescendants},
        mail::{EmailKind, RemainingAccess},
        oauth::grant::GrantEndReason,
        principal::Caller,
    },
    store::{
        self, AdminTx, Audited, Store, StoreError, Tx,
        client_additions::{ClientAdditions, RestoredClient},
    },
};

/// Maximum number of descendants of each kind that an event and an email name.
const MAX_NAMED: i64 = 100;

/// Maximum number of descendants of each kind in a list.
const MAX_LISTED: i64 = 1000;

/// Maximum number of keys that one transaction of a cascade revokes.
const BATCH_SIZE: i64 = 500;

/// Maximum number of keys that a cascade can revoke only if all are idle.
const MAX_CHECKED: i64 = 100;

/// The condition on which a key is revoked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum QuietCondition {
    /// None.
    #[default]
    None,
    /// The key is safe to revoke. What it made may be in use.
    Key,
    /// Each key that would be revoked is safe to revoke, and no OAuth client that would be deleted
    /// has access.
    All,
}

/// Options of a revocation.
#[derive(Debug, Clone, Copy, Default)]
pub struct RevokeKeyOptions {
    /// The condition on which the key is revoked.
    pub condition: QuietCondition,
    /// Also revoke the keys, OAuth clients and open invitations that the key made, and those that
    /// these keys made. End the secrets and redirect URIs that they added to OAuth clients.
    pub cascade: bool,
}

/// The principal that revokes a key.
enum Revoker<'a> {
    /// An administrator or a credential with the admin scope.
    Caller(&'a Caller),
    /// A client that presented the key itself.
    Holder(&'a Arc<RequestInfo>),
    /// The operator, on the command line.
    Operator,
}

impl Revoker<'_> {
    async fn begin(&self, store: &Store, workspace: WorkspaceId) -> Result<Tx, StoreError> {
        match self {
            Self::Caller(caller) => store.begin_for(caller).await,
            Self::Holder(_) | Self::Operator => store.begin(workspace, None).await,
        }
    }

    /// Locks the workspace for the revocation, and checks the rights of a caller again.
    async fn lock<'tx>(
        &self,
        tx: &'tx mut Tx,
        workspace: WorkspaceId,
    ) -> Result<AdminTx<'tx>, AuthError> {
        let reason = match self {
            Self::Caller(caller) => return Ok(AdminTx::lock(tx, caller).await?.0),
            Self::Holder(_) => "a key can be revoked with itself",
            Self::Operator => "the operator revokes keys",
        };
        store::members::lock_workspace(tx, workspace).await?;
        Ok(AdminTx::exempt(tx, reason))
    }

    fn request(&self) -> Option<&Arc<RequestInfo>> {
        match self {
            Self::Caller(caller) => Some(&caller.request),
            Self::Holder(request) => Some(request),
            Self::Operator => None,
        }
    }

    fn actor(&self) -> Actor {
        match self {
            Self::Caller(caller) => Actor::from(&*caller.principal),
            Self::Holder(_) => Actor::key_holder(),
            Self::Operator => Actor::system(),
        }
    }

    /// The public id of the principal, if it has one.
    fn subject(&self) -> Option<String> {
        match self {
            Self::Caller(caller) => Some(caller.principal.subject()),
            Self::Holder(_) | Self::Operator => None,
        }
    }

    /// The name of the principal in emails.
    fn name(&self) -> String {
        match self {
            Self::Caller(caller) => caller.principal.name().to_string(),
            Self::Holder(_) => format!("the {KEY_HOLDER_NAME}"),
            Self::Operator => "the operator of the service".to_owned(),
        }
    }
}

/// The outcome of one batch of a cascade.
struct Batch {
    /// The proof of the events; `None` if nothing was left to revoke.
    audited: Option<Audited>,
    /// True if there may be more to revoke.
    has_more: bool,
}

impl ApiKeys {
    /// Revokes a key for good, and waits until every node rejects it. Revoking it again has no
    /// effect, except that a cascade continues.
    ///
    /// # Errors
    /// [`AuthError::NotFound`] if the workspace has no such key; [`AuthError::KeyInUse`] if the
    /// condition is not met; [`AuthError::InvalidCredential`] or [`AuthError::InsufficientScope`]
    /// if the caller has lost its access.
    #[tracing::instrument(
        name = "auth.api_keys.revoke",
        level = "debug",
        skip_all,
        fields(workspace = %caller.workspace()),
        err(level = "debug")
    )]
    pub async fn revoke(
        &self,
        caller: &Caller,
        id: ApiKeyId,
        options: RevokeKeyOptions,
    ) -> Result<(), AuthError> {
        self.revoke_as(&Revoker::Caller(caller), caller.workspace(), id, options).await
    }

    /// Revokes a key on behalf of the operator, as [`Self::revoke`]. Returns the key.
    ///
    /// # Errors
    /// [`AuthError::NotFound`] for an unknown key.
    #[tracing::instrument(
        name = "auth.api_keys.revoke_as_operator",
        level = "debug",
        skip_all,
        err(level = "debug")
    )]
    pub async fn revoke_as_operator(
        &self,
        id: ApiKeyId,
        cascade: bool,
    ) -> Result<ApiKey, AuthError> {
        let workspace = self.context.store.find_api_key_workspace(id).await?;
        let workspace = workspace.ok_or(AuthError::NotFound("API key"))?;
        let options = RevokeKeyOptions { cascade, ..RevokeKeyOptions::default() };
        self.revoke_as(&Revoker::Operator, workspace, id, options).await?;
        let mut tx = self.context.store.begin(workspace, None).await?;
        let key = store::api_keys::get(&mut tx, workspace, id).await?;
        key.ok_or(AuthError::NotFound("API key"))
    }

    /// Revokes the key that a client presents, without another credential: the holder of a key may
    /// always revoke it. Emails the owners. Succeeds for malformed, unknown and revoked keys too.
    ///
    /// # Errors
    /// [`AuthError::Store`] if a query fails.
    #[tracing::instrument(
        name = "auth.api_keys.revoke_by_holder",
        level = "debug",
        skip_all,
        err(level = "debug")
    )]
    pub async fn revoke_by_holder(
        &self,
        text: &str,
        request: &Arc<RequestInfo>,
    ) -> Result<(), AuthError> {
        // The checksum is public, so the time that this takes reveals nothing.
        let Ok(secret) = ApiKeySecret::parse(text, &self.environment) else { return Ok(()) };
        let found = self.context.store.find_active_api_key_id(secret.digest()).await?;
        let Some((workspace, id)) = found else {
            // Waits as a revocation does: an earlier one may still wait. It takes no lock of the
            // workspace, since a revoked key is no credential.
            let tx = self.context.store.begin(self.context.env.new_id(), None).await?;
            let audited = Audited::exempt("the key is unknown or was revoked before");
            return Ok(self.context.fence.wait(tx.commit(audited).await?).await?);
        };
        let revoker = Revoker::Holder(request);
        self.revoke_as(&revoker, workspace, id, RevokeKeyOptions::default()).await
    }

    /// Lists the descendants of a key that still give access.
    ///
    /// # Errors
    /// [`AuthError::NotFound`] if the workspace has no such key.
    #[tracing::instrument(
        name = "auth.api_keys.descendants",
        level = "debug",
        skip_all,
        fields(workspace = %caller.workspace()),
        err(level = "debug")
    )]
    pub async fn descendants(
        &self,
        caller: &Caller,
        id: ApiKeyId,
    ) -> Result<KeyDescendants, AuthError> {
        let (workspace, now) = (caller.workspace(), self.context.env.clock.now());
        let mut tx = self.context.store.begin_snapshot(caller).await?;
        let key = store::api_keys::get(&mut tx, workspace, id).await?;
        key.ok_or(AuthError::NotFound("API key"))?;
        Ok(store::key_descendants::list(&mut tx, workspace, id, now, MAX_LISTED).await?)
    }

    async fn revoke_as(
        &self,
        revoker: &Revoker<'_>,
        workspace: WorkspaceId,
        id: ApiKeyId,
        options: RevokeKeyOptions,
    ) -> Result<(), AuthError> {
        let mut tx = revoker.begin(&self.context.store, workspace).await?;
        let mut admin = revoker.lock(&mut tx, workspace).await?;
        if options.condition != QuietCondition::None {
            let includes_descendants = options.cascade && options.condition == QuietCondition::All;
            self.require_quiet(&mut admin, workspace, id, includes_descendants).await?;
        }
        let mut audited =
            self.revoke_key(&mut admin, revoker, workspace, id, options.cascade).await?;
        let mut has_more = options.cascade;
        while has_more {
            let batch = self.revoke_descendants(&mut admin, revoker, workspace, id).await?;
            audited = batch.audited.unwrap_or(audited);
            has_more = batch.has_more;
            if has_more {
                // A transaction for each batch bounds the time for which the workspace is locked.
                // If the work is cut off, a repeated request continues it.
                tx.commit(audited).await?.unfenced("the last batch waits for all of them");
                tx = revoker.begin(&self.context.store, workspace).await?;
                store::members::lock_workspace(&mut tx, workspace).await?;
                // A key may revoke itself, and its cascade continues.
                admin = AdminTx::exempt(&mut tx, "the rights were checked for the first batch");
                audited = Audited::exempt("the earlier batches have events");
            }
        }
        // Wait even if the key was revoked before: the first client may have disconnected before
        // the fence was passed.
        Ok(self.context.fence.wait(tx.commit(audited).await?).await?)
    }

    /// Revokes a key and closes its open invitations; with `cascade`, also those of the keys that
    /// it made. Emails the owners if the holder revokes it, or if it leaves access behind.
    async fn revoke_key(
        &self,
        tx: &mut AdminTx<'_>,
        revoker: &Revoker<'_>,
        workspace: WorkspaceId,
        id: ApiKeyId,
        cascade: bool,
    ) -> Result<Audited, AuthError> {
        let (by, now) = (revoker.subject(), self.context.env.clock.now());
        let is_new = store::api_keys::revoke(tx, workspace, id, now, by.as_deref()).await?;
        let key = store::api_keys::get(tx, workspace, id).await?;
        let key = key.ok_or(AuthError::NotFound("API key"))?;
        let keys = if cascade {
            store::given_access::list_key_and_descendants(tx, id).await?
        } else {
            vec![id.uuid()]
        };
        let closed = store::key_descendants::close_invitations(tx, workspace, &keys, now).await?;
        let event = |(invitation, email): &(InvitationId, String)| {
            self.revocation_event(revoker, workspace, Action::InvitationRevoked, id)
                .with_target(*invitation, email.clone())
        };
        let events: Vec<_> = closed.iter().map(event).collect();
        let audited = store::audit::insert_all(tx, &events).await?;
        if !is_new {
            return Ok(audited.unwrap_or_else(|| Audited::exempt("the key was revoked before")));
        }
        let (remaining, mut details) = if cascade {
            self.access_after_cascade(tx, workspace, id).await?
        } else {
            self.remaining_access(tx, workspace, id).await?
        };
        if !closed.is_empty() {
            details["closed_invitations"] = json!(ids_and_names(&closed));
        }
        let event = self.event(revoker, workspace, Action::ApiKeyRevoked);
        let event = event.with_target(id, key.name.clone()).with_metadata(details);
        let audited = store::audit::insert(tx, workspace, &event).await?;
        if !remaining.is_empty() || matches!(revoker, Revoker::Holder(_)) {
            let subject = |workspace| EmailKind::KeyRevoked {
                key: key.name.clone(),
                workspace,
                by: revoker.name(),
                origin: revoker.request().map(|request| self.context.request_origin(request)),
                remaining: remaining.clone(),
            };
            self.context.email_owners(tx, workspace, subject).await?;
        }
        Ok(audited)
    }

    /// Returns the access that a revoked key leaves behind, for an email and for the metadata of
    /// its event. What takes too long is not named: the revocation must not fail because of it.
    async fn remaining_access(
        &self,
        tx: &mut Tx,
        workspace: WorkspaceId,
        id: ApiKeyId,
    ) -> Result<(RemainingAccess, Value), AuthError> {
        let now = self.context.env.clock.now();
        let descendants = store::key_descendants::list(tx, workspace, id, now, MAX_NAMED).await?;
        if descendants.is_empty() {
            return Ok((RemainingAccess::default(), json!({})));
        }
        let has_more = descendants.has_more();
        let KeyDescendants { api_keys, oauth_clients, invitations, added } = descendants;
        let keys: Vec<_> = api_keys.items.into_iter().map(|key| (key.id, key.name)).collect();
        let clients = oauth_clients.items.into_iter().map(|client| (client.id, client.name));
        let clients: Vec<_> = clients.collect();
        let invitations = invitations.items.into_iter().map(|open| (open.id, open.email));
        let mut details = json!({
            "api_keys": ids_and_names(&keys),
            "oauth_clients": ids_and_names(&clients),
            "invitations": ids_and_names(&invitations.collect::<Vec<_>>()),
            "has_more": has_more,
        });
        let mut remaining = RemainingAccess {
            api_keys: keys.into_iter().map(|(_, name)| name).collect(),
            oauth_clients: clients.into_iter().map(|(_, name)| name).collect(),
            has_more,
            ..RemainingAccess::default()
        };
        name_added_access(&added, &mut details, &mut remaining);
        Ok((remaining, details))
    }

    /// Returns the access that a cascade leaves behind, as [`Self::remaining_access`].
    async fn access_after_cascade(
        &self,
        tx: &mut Tx,
        workspace: WorkspaceId,
        id: ApiKeyId,
    ) -> Result<(RemainingAccess, Value), AuthError> {
        let (source, now) = (AccessSource::Key(id), self.context.env.clock.now());
        let added =
            store::added_access::list_added_access(tx, workspace, source, now, MAX_NAMED).await?;
        let added = added.without_clients();
        let mut details = json!({ "cascade": true });
        if added.has_more() {
            details["has_more"] = json!(true);
        }
        let mut remaining =
            RemainingAccess { has_more: added.has_more(), ..RemainingAccess::default() };
        name_added_access(&added, &mut details, &mut remaining);
        Ok((remaining, details))
    }

    /// Revokes a batch of the keys that a revoked key made, deletes a batch of the OAuth clients,
    /// and ends what these keys added to others.
    async fn revoke_descendants(
        &self,
        tx: &mut AdminTx<'_>,
        revoker: &Revoker<'_>,
        workspace: WorkspaceId,
        id: ApiKeyId,
    ) -> Result<Batch, AuthError> {
        let (by, now) = (revoker.subject(), self.context.env.clock.now());
        let by = by.as_deref();
        let keys = store::given_access::list_key_and_descendants(tx, id).await?;
        let ended =
            store::key_descendants::revoke_keys(tx, workspace, &keys, now, by, BATCH_SIZE).await?;
        let has_more_keys = i64::try_from(ended.len()).unwrap_or(i64::MAX) >= BATCH_SIZE;
        let mut events = Vec::new();
        for (key, name) in ended {
            let event = self.revocation_event(revoker, workspace, Action::ApiKeyRevoked, id);
            events.push(event.with_target(key, name));
        }
        let clients = store::key_descendants::list_clients(tx, workspace, &keys, MAX_NAMED).await?;
        let mut grants = Vec::new();
        for client in clients.items {
            grants.extend(store::oauth_clients::list_external_grants(tx, Some(client.id)).await?);
            store::oauth_clients::delete(tx, workspace, client.id).await?;
            let event = self.revocation_event(revoker, workspace, Action::ClientDeleted, id);
            events.push(event.with_target(client.id, client.name));
        }
        let mut audited = store::audit::insert_all(tx, &events).await?;
        let (request, reason) =
            (revoker.request().map(|request| &**request), GrantEndReason::ClientDeleted);
        self.context.audit_ended_grants(tx, request, reason, grants).await?;
        if let Some(restored) = self.restore_clients(tx, revoker, workspace, (id, &keys)).await? {
            audited = Some(restored);
        }
        Ok(Batch { audited, has_more: has_more_keys || clients.has_more })
    }

    /// Ends the secrets and the redirect URIs that a key and its descendants added to OAuth clients
    /// of other creators. The holder of the key may have used them, so the grants that such a
    /// client got since then end too. Those that ended before count as well, up to that time.
    /// Returns `None` if there are none.
    async fn restore_clients(
        &self,
        tx: &mut AdminTx<'_>,
        revoker: &Revoker<'_>,
        workspace: WorkspaceId,
        (id, keys): (ApiKeyId, &[Uuid]),
    ) -> Result<Option<Audited>, AuthError> {
        let (now, reason) = (self.context.env.clock.now(), GrantEndReason::ApiKeyRevoked);
        let mut clients =
            store::client_additions::end_added_secrets(tx, workspace, keys, now).await?;
        clients.extend(store::client_additions::remove_added_uris(tx, workspace, keys, now).await?);
        let mut audited = None;
        for client in clients {
            let grants =
                store::oauth_clients::end_grants_of_additions(tx, &client, now, reason).await?;
            let RestoredClient { id: client, name, additions, .. } = client;
            let (action, details) = match additions {
                ClientAdditions::Secrets(secrets) => {
                    (Action::ClientSecretRevoked, json!({ "secrets": secrets }))
                }
                ClientAdditions::RedirectUris { removed, earlier } => (
                    Action::ClientUpdated,
                    json!({
                        "removed_redirect_uris": removed,
                        "earlier_redirect_uris": earlier,
                    }),
                ),
            };
            let event = self.revocation_event_with(revoker, workspace, action, id, details);
            let event = event.with_target(client, name);
            audited = Some(store::audit::insert(tx, workspace, &event).await?);
            let request = revoker.request().map(|request| &**request);
            self.context.audit_ended_grants(tx, request, reason, grants).await?;
        }
        Ok(audited)
    }

    fn event(&self, revoker: &Revoker<'_>, workspace: WorkspaceId, action: Action) -> NewEvent {
        let env = &self.context.env;
        let event = NewEvent::new(env.new_id(), workspace, action, revoker.actor());
        match revoker.request() {
            Some(request) => event.with_request(request, 204, env.clock.monotonic()),
            None => event,
        }
    }

    /// Creates the event of something that ends because the key `cause` was revoked.
    fn revocation_event(
        &self,
        revoker: &Revoker<'_>,
        workspace: WorkspaceId,
        action: Action,
        cause: ApiKeyId,
    ) -> NewEvent {
        self.revocation_event_with(revoker, workspace, action, cause, json!({}))
    }

    /// As [`Self::revocation_event`], with further metadata.
    fn revocation_event_with(
        &self,
        revoker: &Revoker<'_>,
        workspace: WorkspaceId,
        action: Action,
        cause: ApiKeyId,
        mut details: Value,
    ) -> NewEvent {
        details["reason"] = json!("api_key_revoked");
        details["api_key_id"] = json!(cause);
        self.event(revoker, workspace, action).with_metadata(details)
    }

    /// Requires that a key is safe to revoke. With `includes_descendants`, the same applies to the
    /// keys that it made, and its OAuth clients must have no access: their use is not counted.
    async fn require_quiet(
        &self,
        tx: &mut Tx,
        workspace: WorkspaceId,
        id: ApiKeyId,
        includes_descendants: bool,
    ) -> Result<(), AuthError> {
        let key = store::api_keys::get(tx, workspace, id).await?;
        let key = key.ok_or(AuthError::NotFound("API key"))?;
        let watermark = self.context.audit.watermark();
        let report = self.build_rotation_report(tx, workspace, id, watermark).await?;
        if key.status() != KeyStatus::Revoked && !report.safe_to_revoke {
            return Err(AuthError::KeyInUse(Box::new(report)));
        }
        if !includes_descendants {
            return Ok(());
        }
        let now = self.context.env.clock.now();
        let made = store::key_descendants::list(tx, workspace, id, now, MAX_CHECKED).await?;
        if made.api_keys.has_more {
            let report = report.blocked(format!("it has made more than {MAX_CHECKED} keys"));
            return Err(AuthError::KeyInUse(Box::new(report)));
        }
        let keys = store::given_access::list_key_and_descendants(tx, id).await?;
        if store::key_descendants::has_active_client(tx, workspace, &keys, now).await? {
            let report = report.blocked("an OAuth client that it made or changed has access");
            return Err(AuthError::KeyInUse(Box::new(report)));
        }
        for key in made.api_keys.items {
            let report = self.build_rotation_report(tx, workspace, key.id, watermark).await?;
            if !report.safe_to_revoke {
                let reason = format!("the key {}, which it made: {}", key.id, report.reason);
                return Err(AuthError::KeyInUse(Box::new(report.blocked(reason))));
            }
        }
        Ok(())
    }
}
