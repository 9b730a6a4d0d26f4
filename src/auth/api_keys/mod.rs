//! The lifecycle of API keys: create, update, disable, revoke.
//!
//! No caller creates a key with a scope above its own, and a secret is returned only once, at
//! creation. A key that is restricted to networks creates and changes keys only within these.
//! [`revocation`] revokes keys and what they made, [`rotation`] creates successors and [`usage`]
//! reports the use of keys; [`super::authenticator`] verifies them.

pub(super) mod daily_limit;
pub mod revocation;
pub mod rotation;
pub mod usage;

use std::sync::Arc;

use ipnet::IpNet;
use serde_json::json;
use uuid::Uuid;

use super::{
    AuthError, api_keys::daily_limit::require_allowance, check_scope::require_first_party,
    context::ServiceContext, workspaces::check_rate_limit,
};
use crate::{
    audit,
    auth::caller::AdminCaller,
    model::{
        api_key::{
            ApiKey, ApiKeyChange, ApiKeySecret, Environment, KeyStatus, NewApiKey,
            is_within_networks, parse_networks,
        },
        audit::{Action, Actor, NewEvent},
        id::{ApiKeyId, Id as _, WorkspaceId},
        mail::EmailKind,
        page::{ListPage, MAX_LIMIT, PageRequest},
        principal::{Caller, Creator},
        scope::Scope,
        text,
        workspace::Workspace,
    },
    store::{self, AdminRights, AdminTx, Audited, DedicatedConnection, Tx, api_keys::KeyFilter},
};

/// Maximum number of keys of a workspace that are not revoked.
const MAX_KEYS: i64 = 1_000;

/// Maximum number of keys that a workspace creates within a day. Revoked ones are kept, and reports
/// on what a key made read them.
const MAX_KEYS_PER_DAY: i64 = 5_000;

/// The parameters of a new API key.
#[derive(Debug)]
pub struct CreateKeyParams {
    /// The display name.
    pub name: String,
    /// The purpose of the key, for its readers.
    pub description: Option<String>,
    /// The scope.
    pub scope: Scope,
    /// The networks that the key may be used from. Empty means any or, if a key creates it, the
    /// networks of that key.
    pub allowed_ips: Vec<String>,
    /// The rate limit in requests per minute; `None` is the workspace's.
    pub rate_limit_per_minute: Option<u32>,
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
    /// The new rate limit; an inner `None` restores the workspace's.
    pub rate_limit_per_minute: Option<Option<u32>>,
    /// True disables the key, false enables it.
    pub disabled: Option<bool>,
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
    /// [`AuthError::Invalid`] for invalid values or a rate limit above the workspace's;
    /// [`AuthError::Forbidden`] for a scope above the caller's, or networks outside of the
    /// caller's; [`AuthError::Conflict`] if the workspace has 1,000 keys, or has created too many
    /// within a day.
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
        let (mut admin, rights) = AdminTx::lock(tx, caller).await?;
        self.create_prepared(&mut admin, caller, &rights, new).await
    }

    /// Creates a key, after the caller's right to manage the workspace was checked. Emails the
    /// owners if the key has the admin scope.
    pub(in crate::auth) async fn create_prepared(
        &self,
        tx: &mut AdminTx<'_>,
        caller: &Caller,
        rights: &AdminRights,
        (secret, mut new): (ApiKeySecret, NewApiKey),
    ) -> Result<(CreatedKey, Audited), AuthError> {
        if new.scope > caller.principal.scope {
            return Err(AuthError::Forbidden(
                "you cannot create a key with a scope above your own",
            ));
        }
        if new.allowed_ips.is_empty() {
            new.allowed_ips.clone_from(&rights.networks);
        } else {
            require_within(&new.allowed_ips, &rights.networks)?;
        }
        self.check_rate_limit(tx, caller.workspace(), new.rate_limit_per_minute).await?;
        require_allowance(&self.context, tx, caller).await?;
        // The workspace is locked, so creations take turns.
        let count = store::api_keys::count_not_revoked(tx, caller.workspace(), MAX_KEYS).await?;
        if count >= MAX_KEYS {
            return Err(AuthError::Conflict(
                "the workspace has 1000 API keys, which is the maximum: revoke unused ones first",
            ));
        }
        let since = self.context.env.clock.now() - time::Duration::DAY;
        let created =
            store::api_keys::count_created_since(tx, caller.workspace(), since, MAX_KEYS_PER_DAY);
        if created.await? >= MAX_KEYS_PER_DAY {
            return Err(AuthError::Conflict(
                "the workspace has created 5000 API keys within a day, which is the maximum: try \
                 again later",
            ));
        }
        new.created_by = Some(caller.principal.subject());
        new.creator = caller.principal.user_id();
        new.creator_key = caller.principal.api_key();
        if new.scope == Scope::Admin {
            self.email_owners(tx, caller, &new.name).await?;
        }
        let event = audit::event(&self.context.env, caller, Action::ApiKeyCreated, 201);
        self.insert(tx, caller.workspace(), secret, new, event).await
    }

    /// Emails the workspace's owners that there is a new key with the admin scope.
    async fn email_owners(&self, tx: &mut Tx, caller: &Caller, key: &str) -> Result<(), AuthError> {
        let origin = self.context.request_origin(&caller.request);
        let subject = |workspace| EmailKind::AdminKey {
            key: key.to_owned(),
            workspace,
            by: caller.principal.name().to_string(),
            origin: origin.clone(),
        };
        self.context.email_owners(tx, caller.workspace(), subject).await
    }

    /// Checks that a key's own rate limit does not exceed that of its workspace.
    async fn check_rate_limit(
        &self,
        tx: &mut Tx,
        workspace: WorkspaceId,
        per_minute: Option<u32>,
    ) -> Result<(), AuthError> {
        let Some(limit) = per_minute else { return Ok(()) };
        check_rate_limit(limit)?;
        let max = self.workspace_limit(tx, workspace).await?;
        if limit <= max {
            return Ok(());
        }
        Err(AuthError::Invalid {
            field: "rate_limit_per_minute",
            reason: format!("rate_limit_per_minute must be at most {max}, the workspace's limit"),
        })
    }

    /// The rate limit of each credential of a workspace, in requests per minute.
    async fn workspace_limit(&self, tx: &mut Tx, workspace: WorkspaceId) -> Result<u32, AuthError> {
        let row = store::workspaces::get(tx, workspace).await?;
        let own = row.ok_or(AuthError::NotFound("workspace"))?.rate_limit_per_minute;
        Ok(self.context.limits.effective_limit(own))
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
        self.check_rate_limit(&mut tx, workspace, new.rate_limit_per_minute).await?;
        let id = self.context.env.new_id();
        let event = NewEvent::new(id, workspace, Action::ApiKeyCreated, Actor::system());
        let mut admin = AdminTx::exempt(&mut tx, "the operator creates a key");
        let (minted, audited) = self.insert(&mut admin, workspace, secret, new, event).await?;
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
            creator_key: None,
            rotated_from: None,
            rate_limit_per_minute: params.rate_limit_per_minute,
        };
        Ok((secret, new))
    }

    async fn insert(
        &self,
        tx: &mut AdminTx<'_>,
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
        let mut tx = self.context.store.begin_for(caller).await?;
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
        let mut tx = self.context.store.begin_for(caller).await?;
        let key = store::api_keys::get(&mut tx, caller.workspace(), id).await?;
        key.ok_or(AuthError::NotFound("API key"))
    }

    /// Updates a key, and waits until every node applies it. A disabled key is rejected like a
    /// revoked one; what it made stays valid.
    ///
    /// To enable a key, or to widen its networks, creates access as a new key does. So OAuth
    /// clients may not, and a key that is restricted to networks only within these.
    ///
    /// # Errors
    /// [`AuthError::NotFound`] if the workspace has no such key; [`AuthError::Invalid`] for invalid
    /// values; [`AuthError::Forbidden`] for networks outside of the caller's, also those of a key
    /// that is enabled, and for an OAuth client that creates access; [`AuthError::Conflict`] to
    /// disable or enable a revoked key.
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
            rate_limit_per_minute: params.rate_limit_per_minute,
            disabled_at: None,
            widened_by: None,
        };
        let workspace = caller.workspace();
        let mut tx = self.context.store.begin_for(caller).await?;
        // Changes to the keys of a workspace take turns: a key may change itself or its creator.
        let (mut admin, AdminRights { networks, .. }) = AdminTx::lock(&mut tx, caller).await?;
        if let Some(new) = &change.allowed_ips {
            require_within(new, &networks)?;
        }
        let limit = change.rate_limit_per_minute.flatten();
        self.check_rate_limit(&mut admin, workspace, limit).await?;
        let before = store::api_keys::get(&mut admin, workspace, id).await?;
        let before = before.ok_or(AuthError::NotFound("API key"))?;
        let widens = before.is_widened_by(&change, params.disabled);
        if widens {
            require_first_party(&caller.principal)?;
            require_allowance(&self.context, &mut admin, caller).await?;
        }
        let change =
            ApiKeyChange { widened_by: widens.then(|| caller.principal.creator()), ..change };
        let event = |action| audit::event(&self.context.env, caller, action, 200);
        let (key, audited) =
            self.apply(&mut admin, workspace, before, change, params.disabled, event).await?;
        if params.disabled == Some(false) {
            // An enabled key is access, as a new one is.
            require_within(&key.allowed_ips, &networks)?;
        }
        self.context.fence.wait(tx.commit(audited).await?).await?;
        Ok(key)
    }

    /// Disables or enables a key on behalf of the operator, and waits until every node applies it.
    ///
    /// # Errors
    /// [`AuthError::NotFound`] for an unknown key; [`AuthError::Conflict`] if it is revoked.
    #[tracing::instrument(
        name = "auth.api_keys.set_disabled_as_operator",
        level = "debug",
        skip_all,
        err(level = "debug")
    )]
    pub async fn set_disabled_as_operator(
        &self,
        id: ApiKeyId,
        disabled: bool,
    ) -> Result<ApiKey, AuthError> {
        let workspace = self.context.store.find_api_key_workspace(id).await?;
        let workspace = workspace.ok_or(AuthError::NotFound("API key"))?;
        let mut tx = self.context.store.begin(workspace, None).await?;
        store::members::lock_workspace(&mut tx, workspace).await?;
        let mut admin = AdminTx::exempt(&mut tx, "the operator disables and enables keys");
        let event =
            |action| NewEvent::new(self.context.env.new_id(), workspace, action, Actor::system());
        let before = store::api_keys::get(&mut admin, workspace, id).await?;
        let before = before.ok_or(AuthError::NotFound("API key"))?;
        let change = ApiKeyChange {
            widened_by: (!disabled).then(Creator::default),
            ..ApiKeyChange::default()
        };
        let (key, audited) =
            self.apply(&mut admin, workspace, before, change, Some(disabled), event).await?;
        self.context.fence.wait(tx.commit(audited).await?).await?;
        Ok(key)
    }

    /// Applies a change to the key `before` in a transaction that has locked the workspace, and
    /// records its events.
    async fn apply(
        &self,
        tx: &mut AdminTx<'_>,
        workspace: WorkspaceId,
        before: ApiKey,
        mut change: ApiKeyChange,
        disabled: Option<bool>,
        event: impl Fn(Action) -> NewEvent,
    ) -> Result<(ApiKey, Audited), AuthError> {
        let id = before.id;
        let mut audited = Audited::exempt("the key is as disabled or enabled as before");
        if let Some(disabled) = disabled {
            if before.status() == KeyStatus::Revoked {
                return Err(AuthError::Conflict("the key is revoked, which is final"));
            }
            if disabled != before.disabled_at.is_some() {
                change.disabled_at = Some(disabled.then(|| self.context.env.clock.now()));
                let action = if disabled { Action::ApiKeyDisabled } else { Action::ApiKeyEnabled };
                let event = event(action).with_target(id, before.name.clone());
                audited = store::audit::insert(tx, workspace, &event).await?;
            }
        }
        store::api_keys::update(tx, workspace, id, &change).await?;
        let key = store::api_keys::get(tx, workspace, id).await?;
        let key = key.ok_or(AuthError::NotFound("API key"))?;
        let fields = change.field_names();
        // A request that changes nothing is recorded too, unless it is about `disabled` only.
        if disabled.is_none() || !fields.is_empty() {
            let event = event(Action::ApiKeyUpdated)
                .with_target(id, key.name.clone())
                .with_metadata(json!({ "fields": fields }));
            audited = store::audit::insert(tx, workspace, &event).await?;
        }
        Ok((key, audited))
    }

    /// Lists keys on behalf of the operator: those of one workspace, or of all. Those of a
    /// workspace are sorted, newest first.
    ///
    /// # Errors
    /// [`AuthError::Store`] if a query fails.
    #[tracing::instrument(
        name = "auth.api_keys.list_as_operator",
        level = "debug",
        skip_all,
        err(level = "debug")
    )]
    pub async fn list_as_operator(
        &self,
        workspace: Option<WorkspaceId>,
        filter: &KeyFilter,
    ) -> Result<Vec<ApiKey>, AuthError> {
        let workspaces = match workspace {
            Some(workspace) => vec![workspace],
            None => self.context.store.audited_workspaces().await?,
        };
        let mut keys = Vec::new();
        for workspace in workspaces {
            let mut tx = self.context.store.begin(workspace, None).await?;
            let mut page = PageRequest { limit: MAX_LIMIT, ..PageRequest::default() };
            loop {
                let listed = store::api_keys::list(&mut tx, workspace, filter, page).await?;
                page.before = listed.items.last().map(|key| key.id.uuid());
                keys.extend(listed.items);
                if !listed.has_more {
                    break;
                }
            }
        }
        Ok(keys)
    }
}

/// Requires that networks are within those that the caller is restricted to.
fn require_within(networks: &[IpNet], callers: &[IpNet]) -> Result<(), AuthError> {
    if is_within_networks(networks, callers) {
        return Ok(());
    }
    Err(AuthError::Forbidden(
        "this key is restricted to networks (allowed_ips): it can only create, enable and change \
         keys that are restricted to networks within its own",
    ))
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
