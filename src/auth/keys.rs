//! The life of API keys: minted, changed, revoked.

use ipnet::IpNet;
use serde_json::json;

use super::{Auth, AuthError};
use crate::{
    audit,
    coherence::Diary as _,
    model::{
        api_key::{ApiKey, ApiKeyChange, ApiKeySecret, NewApiKey, parse_networks},
        audit::{Action, Actor, NewEvent},
        id::{ApiKeyId, WorkspaceId},
        mail::MailSubject,
        page::{Items, Page},
        principal::Caller,
        scope::Scope,
        text,
        workspace::Workspace,
    },
    store::{self, Line, Tx, api_keys::KeyFilter},
};

/// What is asked for when a key is minted.
#[derive(Debug)]
pub struct MintKey {
    /// What people will call it.
    pub name: String,
    /// What it is for.
    pub description: Option<String>,
    /// What it may do.
    pub scope: Scope,
    /// The networks that it may be used from; empty is any.
    pub allowed_ips: Vec<String>,
}

/// What is asked for when a key is changed; what is `None` stays.
#[derive(Debug, Default)]
pub struct ChangeKey {
    /// The new name.
    pub name: Option<String>,
    /// The new description; an inner `None` removes it.
    pub description: Option<Option<String>>,
    /// The new networks.
    pub allowed_ips: Option<Vec<String>>,
}

/// A key and, this once, its secret.
#[derive(Debug)]
pub struct Minted {
    /// The key.
    pub key: ApiKey,
    /// The secret. It is nowhere else.
    pub secret: ApiKeySecret,
}

/// A key, and who answers for it.
#[derive(Debug)]
pub struct KeyOwner {
    /// The key.
    pub key: ApiKey,
    /// Its workspace.
    pub workspace: Workspace,
    /// The addresses of the workspace's owners.
    pub owners: Vec<String>,
}

impl Auth {
    /// Whose a key is that somebody found; none: nobody's.
    ///
    /// # Errors
    /// [`AuthError::NotAKey`] for what cannot be a key of this deployment.
    pub async fn reveal_owner(&self, found: &str) -> Result<Option<KeyOwner>, AuthError> {
        let secret = ApiKeySecret::parse(found, &self.environment)?;
        let known = Line::new(self.store.clone()).find_api_keys(&[secret.digest()]).await?;
        let Some((_, record)) = known.into_iter().next() else { return Ok(None) };
        let mut tx = self.store.begin(record.workspace_id, None).await?;
        let key = store::api_keys::get(&mut tx, record.workspace_id, record.id).await?;
        let workspace = store::workspaces::get(&mut tx, record.workspace_id).await?;
        let owners = store::members::owners(&mut tx, record.workspace_id).await?;
        Ok(key.zip(workspace).map(|(key, workspace)| KeyOwner { key, workspace, owners }))
    }

    /// Mints a key, in the transaction of the request.
    ///
    /// # Errors
    /// [`AuthError::Invalid`] for bad values, [`AuthError::Forbidden`] for a scope above the caller's.
    pub async fn mint_key(
        &self,
        tx: &mut Tx,
        caller: &Caller,
        wanted: MintKey,
    ) -> Result<Minted, AuthError> {
        // Before anything is locked.
        let new = self.new_key(&wanted)?;
        // Who was an admin when the request began may be none any more.
        self.lock_members(tx, caller).await?;
        self.mint(tx, caller, new).await
    }

    /// Mints a key for a caller who may run the workspace.
    pub(super) async fn mint(
        &self,
        tx: &mut Tx,
        caller: &Caller,
        (secret, mut new): (ApiKeySecret, NewApiKey),
    ) -> Result<Minted, AuthError> {
        if new.scope > caller.principal.scope {
            return Err(AuthError::Forbidden("nobody mints a key above their own scope"));
        }
        new.created_by = Some(caller.principal.subject());
        new.creator = caller.principal.person();
        if new.scope == Scope::Admin {
            self.tell_owners(tx, caller, &new.name).await?;
        }
        let event = audit::event(&self.env, caller, Action::ApiKeyCreated, 201);
        self.store_key(tx, caller.workspace(), secret, new, event).await
    }

    /// Tells the owners of a workspace by mail that there is another key that may run it.
    async fn tell_owners(&self, tx: &mut Tx, caller: &Caller, key: &str) -> Result<(), AuthError> {
        let id = caller.workspace();
        let workspace = store::workspaces::get(tx, id).await?;
        let workspace = workspace.ok_or(AuthError::NotFound("workspace"))?.name;
        for owner in store::members::owners(tx, id).await? {
            let (by, origin) = (caller.principal.name().to_string(), self.origin(&caller.request));
            let (key, workspace) = (key.to_owned(), workspace.clone());
            let subject = MailSubject::AdminKey { key, workspace, by, origin };
            self.mail(tx, owner, subject).await?;
        }
        Ok(())
    }

    /// Mints a key as the operator does, from the command line.
    ///
    /// # Errors
    /// [`AuthError::Invalid`] for bad values, [`AuthError::NotFound`] for an unknown workspace.
    pub async fn mint_key_as_operator(
        &self,
        workspace: WorkspaceId,
        wanted: MintKey,
    ) -> Result<Minted, AuthError> {
        let (secret, new) = self.new_key(&wanted)?;
        let mut tx = self.store.begin(workspace, None).await?;
        let known = store::workspaces::get(&mut tx, workspace).await?;
        known.ok_or(AuthError::NotFound("workspace"))?;
        let id = self.env.new_id();
        let event = NewEvent::new(id, workspace, Action::ApiKeyCreated, Actor::system());
        let minted = self.store_key(&mut tx, workspace, secret, new, event).await?;
        tx.commit().await?;
        Ok(minted)
    }

    pub(super) fn new_key(&self, wanted: &MintKey) -> Result<(ApiKeySecret, NewApiKey), AuthError> {
        let secret =
            ApiKeySecret::generate(&self.environment, |bytes| self.env.entropy.fill(bytes));
        let new = NewApiKey {
            id: self.env.new_id(),
            name: check_name(&wanted.name)?,
            description: wanted.description.as_deref().map(check_description).transpose()?,
            scope: wanted.scope,
            digest: secret.digest(),
            shown: secret.shown(),
            allowed_ips: check_networks(&wanted.allowed_ips)?,
            created_at: self.env.clock.now(),
            created_by: None,
            creator: None,
            rotated_from: None,
        };
        Ok((secret, new))
    }

    async fn store_key(
        &self,
        tx: &mut Tx,
        workspace: WorkspaceId,
        secret: ApiKeySecret,
        new: NewApiKey,
        event: NewEvent,
    ) -> Result<Minted, AuthError> {
        store::api_keys::insert(tx, workspace, &new).await?;
        let mut about = json!({ "scope": new.scope });
        if let Some(old) = new.rotated_from {
            about["rotated_from"] = json!(old);
        }
        let event = event.on(new.id, new.name.clone()).with(about);
        store::audit::insert(tx, workspace, &event).await?;
        let key = store::api_keys::get(tx, workspace, new.id).await?;
        let key = key.ok_or(AuthError::Internal("a key is gone as soon as it is stored"))?;
        Ok(Minted { key, secret })
    }

    /// The keys of the caller's workspace, and how many pass the filter.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn list_keys(
        &self,
        caller: &Caller,
        filter: &KeyFilter,
        page: Page,
    ) -> Result<(Items<ApiKey>, i64), AuthError> {
        let mut tx = self.store.begin(caller.workspace(), None).await?;
        let items = store::api_keys::list(&mut tx, caller.workspace(), filter, page).await?;
        let total = store::api_keys::count(&mut tx, caller.workspace(), filter).await?;
        Ok((items, total))
    }

    /// A key of the caller's workspace.
    ///
    /// # Errors
    /// [`AuthError::NotFound`].
    pub async fn get_key(&self, caller: &Caller, id: ApiKeyId) -> Result<ApiKey, AuthError> {
        let mut tx = self.store.begin(caller.workspace(), None).await?;
        let key = store::api_keys::get(&mut tx, caller.workspace(), id).await?;
        key.ok_or(AuthError::NotFound("API key"))
    }

    /// Changes a key's name, description or networks.
    ///
    /// # Errors
    /// [`AuthError::NotFound`], [`AuthError::Invalid`] for bad values.
    pub async fn change_key(
        &self,
        caller: &Caller,
        id: ApiKeyId,
        wanted: ChangeKey,
    ) -> Result<ApiKey, AuthError> {
        let change = ApiKeyChange {
            name: wanted.name.as_deref().map(check_name).transpose()?,
            description: match wanted.description {
                Some(text) => Some(text.as_deref().map(check_description).transpose()?),
                None => None,
            },
            allowed_ips: wanted.allowed_ips.as_deref().map(check_networks).transpose()?,
        };
        let mut tx = self.store.begin(caller.workspace(), None).await?;
        if !store::api_keys::update(&mut tx, caller.workspace(), id, &change).await? {
            return Err(AuthError::NotFound("API key"));
        }
        let key = store::api_keys::get(&mut tx, caller.workspace(), id).await?;
        let key = key.ok_or(AuthError::NotFound("API key"))?;
        let mut fields = Vec::new();
        fields.extend(change.name.as_ref().map(|_| "name"));
        fields.extend(change.description.as_ref().map(|_| "description"));
        fields.extend(change.allowed_ips.as_ref().map(|_| "allowed_ips"));
        let event = audit::event(&self.env, caller, Action::ApiKeyUpdated, 200)
            .on(id, key.name.clone())
            .with(json!({ "fields": fields }));
        store::audit::insert(&mut tx, caller.workspace(), &event).await?;
        tx.commit().await?;
        self.fence.wait().await?;
        Ok(key)
    }

    /// Revokes a key, for good. A second time does nothing.
    ///
    /// # Errors
    /// [`AuthError::NotFound`]; with `only_if_quiet`, [`AuthError::KeyInUse`] while it is not safe to do.
    pub async fn revoke_key(
        &self,
        caller: &Caller,
        id: ApiKeyId,
        only_if_quiet: bool,
    ) -> Result<(), AuthError> {
        let workspace = caller.workspace();
        let mut tx = self.store.begin(workspace, None).await?;
        if only_if_quiet {
            store::api_keys::lock(&mut tx, workspace, id).await?;
            let key = store::api_keys::get(&mut tx, workspace, id).await?;
            let is_live = key.ok_or(AuthError::NotFound("API key"))?.revoked_at.is_none();
            if is_live {
                let own_until = self.audit.written_until();
                let report = self.report(&mut tx, workspace, id, own_until).await?;
                if !report.safe_to_revoke {
                    return Err(AuthError::KeyInUse(Box::new(report)));
                }
            }
        }
        let by = caller.principal.subject();
        let now = self.env.clock.now();
        let revoked = store::api_keys::revoke(&mut tx, workspace, id, now, Some(&by)).await?;
        let key = store::api_keys::get(&mut tx, workspace, id).await?;
        let key = key.ok_or(AuthError::NotFound("API key"))?;
        if revoked {
            let event =
                audit::event(&self.env, caller, Action::ApiKeyRevoked, 204).on(id, key.name);
            store::audit::insert(&mut tx, workspace, &event).await?;
            tx.commit().await?;
        }
        // Also a second time: the first one's client may have gone without an answer.
        Ok(self.fence.wait().await?)
    }
}

fn check_name(name: &str) -> Result<String, AuthError> {
    text::name("name", name).map_err(|why| AuthError::invalid("name", why))
}

fn check_description(description: &str) -> Result<String, AuthError> {
    text::description("description", description)
        .map_err(|why| AuthError::invalid("description", why))
}

fn check_networks(networks: impl AsRef<[String]>) -> Result<Vec<IpNet>, AuthError> {
    parse_networks(networks.as_ref()).map_err(|why| AuthError::invalid("allowed_ips", why))
}
