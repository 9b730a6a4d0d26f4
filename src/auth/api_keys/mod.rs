//! The lifecycle of API keys: create, update, revoke.
//!
//! No caller creates a key with a scope above its own, and a secret is returned only once, at
//! creation. [`rotation`] creates successors and [`usage`] reports the use of keys;
//! [`super::authenticator`] verifies them.

pub mod rotation;
pub mod usage;

use std::sync::Arc;

use ipnet::IpNet;
use serde_json::json;
use uuid::Uuid;

use super::{AuthError, context::ServiceContext, members::Members};
use crate::{
    audit,
    auth::caller::AdminCaller,
    cache_invalidation::AuditWatermark as _,
    model::{
        api_key::{ApiKey, ApiKeyChange, ApiKeySecret, Environment, NewApiKey, parse_networks},
        audit::{Action, Actor, NewEvent},
        id::{ApiKeyId, WorkspaceId},
        mail::EmailKind,
        page::{ListPage, PageRequest},
        principal::Caller,
        scope::Scope,
        text,
        workspace::Workspace,
    },
    store::{self, Audited, DedicatedConnection, Tx, api_keys::KeyFilter},
};

/// The parameters of a new API key.
#[derive(Debug)]
pub struct CreateKeyParams {
    /// The display name.
    pub name: String,
    /// The purpose of the key, for its readers.
    pub description: Option<String>,
    /// The scope.
    pub scope: Scope,
    /// The networks that the key may be used from; empty means any.
    pub allowed_ips: Vec<String>,
}

/// Changes to an API key; `None` leaves a field as it is.
#[derive(Debug, Default)]
pub struct UpdateKeyParams {
    /// The new name.
    pub name: Option<String>,
    /// The new description; an inner `None` removes it.
    pub description: Option<Option<String>>,
    /// The new networks; empty means any.
    pub allowed_ips: Option<Vec<String>>,
}

/// A new key with its secret.
#[derive(Debug)]
pub struct CreatedKey {
    /// The key.
    pub key: ApiKey,
    /// The secret. Only its digest is stored, so this is the only copy.
    pub secret: ApiKeySecret,
}

/// A key with its workspace and the owners to notify.
#[derive(Debug)]
pub struct KeyOwner {
    /// The key.
    pub key: ApiKey,
    /// The key's workspace.
    pub workspace: Workspace,
    /// The email addresses of the workspace's owners.
    pub owners: Vec<String>,
}

/// Creates, rotates and revokes API keys, and reports their usage.
pub struct ApiKeys {
    pub(super) context: Arc<ServiceContext>,
    pub(super) environment: Environment,
    pub(super) quiet_period: time::Duration,
    pub(super) node_id: Uuid,
    pub(super) members: Arc<Members>,
}

impl ApiKeys {
    /// The environment label in this deployment's API keys.
    #[must_use]
    pub fn environment(&self) -> &Environment {
        &self.environment
    }

    /// Identifies the workspace and owners of a leaked key. Returns `None` if the key does not
    /// exist.
    ///
    /// # Errors
    /// [`AuthError::MalformedApiKey`] if the text is not a key of this deployment.
    #[tracing::instrument(
        name = "auth.api_keys.find_owner",
        level = "debug",
        skip_all,
        err(level = "debug")
    )]
    pub async fn find_owner(&self, text: &str) -> Result<Option<KeyOwner>, AuthError> {
        let secret = ApiKeySecret::parse(text, &self.environment)?;
        let known = DedicatedConnection::new(self.context.store.clone())
            .find_api_keys(&[secret.digest()])
            .await?;
        let Some((_, record)) = known.into_iter().next() else { return Ok(None) };
        let mut tx = self.context.store.begin(record.workspace_id, None).await?;
        let key = store::api_keys::get(&mut tx, record.workspace_id, record.id).await?;
        let workspace = store::workspaces::get(&mut tx, record.workspace_id).await?;
        let owners = store::members::list_owner_emails(&mut tx, record.workspace_id).await?;
        Ok(key.zip(workspace).map(|(key, workspace)| KeyOwner { key, workspace, owners }))
    }

    /// Creates a key, in the request's transaction.
    ///
    /// # Errors
    /// [`AuthError::Invalid`] for invalid values; [`AuthError::Forbidden`] for a scope above the
    /// caller's.
    #[tracing::instrument(
        name = "auth.api_keys.create",
        level = "debug",
        skip_all,
        fields(workspace = %caller.workspace()),
        err(level = "debug")
    )]
    pub async fn create(
        &self,
        tx: &mut Tx,
        caller: &AdminCaller,
        params: CreateKeyParams,
    ) -> Result<(CreatedKey, Audited), AuthError> {
        // Validate before taking any lock.
        let new = self.prepare(&params)?;
        // Check the role again: the caller may have lost it since authentication.
        self.members.lock_as_admin(tx, caller.workspace(), caller.credential()).await?;
        self.create_prepared(tx, caller, new).await
    }

    /// Creates a key, after the caller's right to manage the workspace was checked. Emails the
    /// owners if the key has the admin scope.
    pub(in crate::auth) async fn create_prepared(
        &self,
        tx: &mut Tx,
        caller: &Caller,
        (secret, mut new): (ApiKeySecret, NewApiKey),
    ) -> Result<(CreatedKey, Audited), AuthError> {
        if new.scope > caller.principal.scope {
            return Err(AuthError::Forbidden(
                "you cannot create a key with a scope above your own",
            ));
        }
        new.created_by = Some(caller.principal.subject());
        new.creator = caller.principal.user_id();
        if new.scope == Scope::Admin {
            self.email_owners(tx, caller, &new.name).await?;
        }
        let event = audit::event(&self.context.env, caller, Action::ApiKeyCreated, 201);
        self.insert(tx, caller.workspace(), secret, new, event).await
    }

    /// Emails the workspace's owners that there is a new key with the admin scope.
    async fn email_owners(&self, tx: &mut Tx, caller: &Caller, key: &str) -> Result<(), AuthError> {
        let id = caller.workspace();
        let workspace = store::workspaces::get(tx, id).await?;
        let workspace = workspace.ok_or(AuthError::NotFound("workspace"))?.name;
        for owner in store::members::list_owner_emails(tx, id).await? {
            let (by, origin) =
                (caller.principal.name().to_string(), self.context.request_origin(&caller.request));
            let (key, workspace) = (key.to_owned(), workspace.clone());
            let subject = EmailKind::AdminKey { key, workspace, by, origin };
            self.context.enqueue_email(tx, owner, subject).await?;
        }
        Ok(())
    }

    /// Creates a key on behalf of the operator, from the command line.
    ///
    /// # Errors
    /// [`AuthError::Invalid`] for invalid values; [`AuthError::NotFound`] for an unknown workspace.
    #[tracing::instrument(
        name = "auth.api_keys.create_as_operator",
        level = "debug",
        skip_all,
        err(level = "debug")
    )]
    pub async fn create_as_operator(
        &self,
        workspace: WorkspaceId,
        params: CreateKeyParams,
    ) -> Result<CreatedKey, AuthError> {
        let (secret, new) = self.prepare(&params)?;
        let mut tx = self.context.store.begin(workspace, None).await?;
        let known = store::workspaces::get(&mut tx, workspace).await?;
        known.ok_or(AuthError::NotFound("workspace"))?;
        let id = self.context.env.new_id();
        let event = NewEvent::new(id, workspace, Action::ApiKeyCreated, Actor::system());
        let (minted, audited) = self.insert(&mut tx, workspace, secret, new, event).await?;
        tx.commit(audited).await?.unfenced("a new key, which no node has cached");
        Ok(minted)
    }

    pub(in crate::auth) fn prepare(
        &self,
        params: &CreateKeyParams,
    ) -> Result<(ApiKeySecret, NewApiKey), AuthError> {
        let secret =
            ApiKeySecret::generate(&self.environment, |bytes| self.context.env.entropy.fill(bytes));
        let new = NewApiKey {
            id: self.context.env.new_id(),
            name: check_name(&params.name)?,
            description: params.description.as_deref().map(check_description).transpose()?,
            scope: params.scope,
            digest: secret.digest(),
            display_ends: secret.display_ends(),
            allowed_ips: check_networks(&params.allowed_ips)?,
            created_at: self.context.env.clock.now(),
            created_by: None,
            creator: None,
            rotated_from: None,
        };
        Ok((secret, new))
    }

    async fn insert(
        &self,
        tx: &mut Tx,
        workspace: WorkspaceId,
        secret: ApiKeySecret,
        new: NewApiKey,
        event: NewEvent,
    ) -> Result<(CreatedKey, Audited), AuthError> {
        store::api_keys::insert(tx, workspace, &new).await?;
        let mut details = json!({ "scope": new.scope });
        if let Some(old) = new.rotated_from {
            details["rotated_from"] = json!(old);
        }
        let event = event.with_target(new.id, new.name.clone()).with_metadata(details);
        let audited = store::audit::insert(tx, workspace, &event).await?;
        let key = store::api_keys::get(tx, workspace, new.id).await?;
        let key = key.ok_or(AuthError::Internal("a key is missing right after its insert"))?;
        Ok((CreatedKey { key, secret }, audited))
    }

    /// Lists the keys of the caller's workspace that match a filter, and counts them.
    ///
    /// # Errors
    /// [`AuthError::Store`] if the query fails.
    #[tracing::instrument(
        name = "auth.api_keys.list",
        level = "debug",
        skip_all,
        fields(workspace = %caller.workspace()),
        err(level = "debug")
    )]
    pub async fn list(
        &self,
        caller: &Caller,
        filter: &KeyFilter,
        page: PageRequest,
    ) -> Result<(ListPage<ApiKey>, i64), AuthError> {
        let mut tx = self.context.store.begin(caller.workspace(), None).await?;
        let items = store::api_keys::list(&mut tx, caller.workspace(), filter, page).await?;
        let total = store::api_keys::count(&mut tx, caller.workspace(), filter).await?;
        Ok((items, total))
    }

    /// Returns a key of the caller's workspace.
    ///
    /// # Errors
    /// [`AuthError::NotFound`] if the workspace has no such key.
    #[tracing::instrument(
        name = "auth.api_keys.get",
        level = "debug",
        skip_all,
        fields(workspace = %caller.workspace()),
        err(level = "debug")
    )]
    pub async fn get(&self, caller: &Caller, id: ApiKeyId) -> Result<ApiKey, AuthError> {
        let mut tx = self.context.store.begin(caller.workspace(), None).await?;
        let key = store::api_keys::get(&mut tx, caller.workspace(), id).await?;
        key.ok_or(AuthError::NotFound("API key"))
    }

    /// Updates a key's name, description or networks, and waits until every node applies them.
    ///
    /// # Errors
    /// [`AuthError::NotFound`] if the workspace has no such key; [`AuthError::Invalid`] for invalid
    /// values.
    #[tracing::instrument(
        name = "auth.api_keys.update",
        level = "debug",
        skip_all,
        fields(workspace = %caller.workspace()),
        err(level = "debug")
    )]
    pub async fn update(
        &self,
        caller: &Caller,
        id: ApiKeyId,
        params: UpdateKeyParams,
    ) -> Result<ApiKey, AuthError> {
        let change = ApiKeyChange {
            name: params.name.as_deref().map(check_name).transpose()?,
            description: match params.description {
                Some(text) => Some(text.as_deref().map(check_description).transpose()?),
                None => None,
            },
            allowed_ips: params.allowed_ips.as_deref().map(check_networks).transpose()?,
        };
        let mut tx = self.context.store.begin(caller.workspace(), None).await?;
        if !store::api_keys::update(&mut tx, caller.workspace(), id, &change).await? {
            return Err(AuthError::NotFound("API key"));
        }
        let key = store::api_keys::get(&mut tx, caller.workspace(), id).await?;
        let key = key.ok_or(AuthError::NotFound("API key"))?;
        let mut fields = Vec::new();
        fields.extend(change.name.as_ref().map(|_| "name"));
        fields.extend(change.description.as_ref().map(|_| "description"));
        fields.extend(change.allowed_ips.as_ref().map(|_| "allowed_ips"));
        let event = audit::event(&self.context.env, caller, Action::ApiKeyUpdated, 200)
            .with_target(id, key.name.clone())
            .with_metadata(json!({ "fields": fields }));
        let audited = store::audit::insert(&mut tx, caller.workspace(), &event).await?;
        self.context.fence.wait(tx.commit(audited).await?).await?;
        Ok(key)
    }

    /// Revokes a key for good, and waits until every node rejects it. Revoking it again has no
    /// effect.
    ///
    /// # Errors
    /// [`AuthError::NotFound`] if the workspace has no such key; with `only_if_quiet`,
    /// [`AuthError::KeyInUse`] if it is not yet safe to revoke.
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
        only_if_quiet: bool,
    ) -> Result<(), AuthError> {
        let workspace = caller.workspace();
        let mut tx = self.context.store.begin(workspace, None).await?;
        if only_if_quiet {
            store::api_keys::lock(&mut tx, workspace, id).await?;
            let key = store::api_keys::get(&mut tx, workspace, id).await?;
            let is_live = key.ok_or(AuthError::NotFound("API key"))?.revoked_at.is_none();
            if is_live {
                let own_until = self.context.audit.written_until();
                let report = self.build_rotation_report(&mut tx, workspace, id, own_until).await?;
                if !report.safe_to_revoke {
                    return Err(AuthError::KeyInUse(Box::new(report)));
                }
            }
        }
        let by = caller.principal.subject();
        let now = self.context.env.clock.now();
        let revoked = store::api_keys::revoke(&mut tx, workspace, id, now, Some(&by)).await?;
        let key = store::api_keys::get(&mut tx, workspace, id).await?;
        let key = key.ok_or(AuthError::NotFound("API key"))?;
        let audited = if revoked {
            let event = audit::event(&self.context.env, caller, Action::ApiKeyRevoked, 204)
                .with_target(id, key.name);
            store::audit::insert(&mut tx, workspace, &event).await?
        } else {
            Audited::exempt("the key was revoked before")
        };
        // Wait even if the key was revoked before: the first client may have disconnected before
        // the fence was passed.
        Ok(self.context.fence.wait(tx.commit(audited).await?).await?)
    }
}

fn check_name(name: &str) -> Result<String, AuthError> {
    text::validate_name("name", name).map_err(|reason| AuthError::invalid("name", reason))
}

fn check_description(description: &str) -> Result<String, AuthError> {
    text::validate_description("description", description)
        .map_err(|reason| AuthError::invalid("description", reason))
}

fn check_networks(networks: impl AsRef<[String]>) -> Result<Vec<IpNet>, AuthError> {
    parse_networks(networks.as_ref()).map_err(|reason| AuthError::invalid("allowed_ips", reason))
}
