//! Workspace clients: OAuth clients that an administrator creates and manages.
//!
//! They are integrations, servers that use client credentials, or resources that introspect tokens.
//! A client never has more scope than its creator.

use std::{sync::Arc, time::Duration};

use serde_json::json;
use time::OffsetDateTime;

use super::{
    RegisteredClient,
    client_metadata::{check_redirect_uris, is_web_url},
    unknown_clients::UnknownClients,
};
use crate::{
    audit,
    auth::{AuthError, ServiceContext, caller::AdminCaller, members::require_unrestricted},
    model::{
        audit::{Action, Actor, NewEvent},
        id::{ClientId, WorkspaceId},
        mail::EmailKind,
        oauth::{
            client::{Client, ClientAuthMethod, ClientOrigin, ClientSecret, GrantType},
            grant::GrantEndReason,
            resource::ProtectedResources,
        },
        page::{ListPage, PageRequest},
        principal::{Caller, Creator},
        scope::Scope,
        text,
    },
    store::{self, AdminTx, Audited, Tx, oauth_clients::NewClientSecret},
};

/// Maximum number of clients of a workspace.
const MAX_CLIENTS: i64 = 100;

/// Maximum number of valid secrets of a client. Authentication compares the presented secret with
/// each of them.
const MAX_SECRETS: i64 = 10;

/// Maximum time for which older secrets remain valid after a rotation.
pub const MAX_SECRET_OVERLAP: Duration = Duration::from_hours(30 * 24);

const NOT_FOUND: AuthError = AuthError::NotFound("OAuth client");

/// The parameters of a new client.
#[derive(Debug)]
pub struct CreateClientParams {
    /// The display name.
    pub name: String,
    /// The allowed redirect URIs.
    pub redirect_uris: Vec<String>,
    /// The client authentication method at the token endpoint.
    pub auth_method: ClientAuthMethod,
    /// The grant types that the client can use.
    pub grant_types: Vec<GrantType>,
    /// The maximum scope of the client's grants.
    pub scope: Scope,
    /// The URL of the client's home page.
    pub client_uri: Option<String>,
}

/// Changes to a client; a field that is `None` stays as it is.
#[derive(Debug, Default)]
pub struct UpdateClientParams {
    /// The new name.
    pub name: Option<String>,
    /// The new redirect URIs.
    pub redirect_uris: Option<Vec<String>>,
}

/// A client with a new secret. It has no `Debug`, because it contains the secret.
pub struct RotatedSecret {
    /// The client.
    pub client: Client,
    /// The new secret.
    pub secret: ClientSecret,
    /// The time at which the older secrets expire.
    pub others_until: OffsetDateTime,
}

/// Manages the OAuth clients of workspaces.
pub struct WorkspaceClients {
    pub(in crate::oauth) context: Arc<ServiceContext>,
    /// Schemes that redirect URIs may have although they have no dot.
    pub(in crate::oauth) native_schemes: Arc<[String]>,
    pub(in crate::oauth) resources: Arc<ProtectedResources>,
    pub(in crate::oauth) unknown: Arc<UnknownClients>,
}

impl WorkspaceClients {
    /// Creates a client in the caller's workspace, in the caller's transaction.
    ///
    /// # Errors
    /// [`AuthError::Invalid`] for bad values, [`AuthError::Forbidden`] for a scope above the
    /// caller's or for a key that is restricted to networks, [`AuthError::Conflict`] if the
    /// workspace already has 100 clients.
    #[tracing::instrument(
        name = "oauth.workspace_clients.create",
        level = "debug",
        skip_all,
        fields(workspace = %caller.workspace()),
        err(level = "debug")
    )]
    pub async fn create(
        &self,
        tx: &mut Tx,
        caller: &AdminCaller,
        wanted: CreateClientParams,
    ) -> Result<(RegisteredClient, Audited), AuthError> {
        if wanted.scope > caller.principal.scope {
            return Err(AuthError::Forbidden("the scope of a client cannot exceed your own"));
        }
        let workspace = caller.workspace();
        let mut client = self.build(workspace, wanted)?;
        client.created_by = Some(caller.principal.subject());
        let event = audit::event(&self.context.env, caller, Action::ClientCreated, 201);
        let (mut admin, rights) = AdminTx::lock(tx, caller).await?;
        let tx = &mut admin;
        require_unrestricted(&rights)?;
        if store::oauth_clients::count(tx, workspace).await? >= MAX_CLIENTS {
            return Err(AuthError::Conflict("the workspace already has 100 OAuth clients"));
        }
        if client.scope == Some(Scope::Admin) {
            let origin = self.context.request_origin(&caller.request);
            let subject = |workspace| EmailKind::AdminClient {
                client: client.name.clone(),
                workspace,
                by: caller.principal.name().to_string(),
                origin: origin.clone(),
            };
            self.context.email_owners(tx, workspace, subject).await?;
        }
        self.insert(tx, workspace, client, caller.principal.creator(), event).await
    }

    /// Creates a client on behalf of the operator. With a `resource`, the client is that protected
    /// resource and can introspect tokens for it from all workspaces.
    ///
    /// # Errors
    /// [`AuthError::Invalid`] for bad values, [`AuthError::NotFound`] for an unknown workspace.
    #[tracing::instrument(
        name = "oauth.workspace_clients.create_as_operator",
        level = "debug",
        skip_all,
        fields(%workspace),
        err(level = "debug")
    )]
    pub async fn create_as_operator(
        &self,
        workspace: WorkspaceId,
        wanted: CreateClientParams,
        resource: Option<&str>,
    ) -> Result<RegisteredClient, AuthError> {
        let mut client = self.build(workspace, wanted)?;
        if let Some(resource) = resource {
            let known = self.resources.find(resource).ok_or_else(|| AuthError::Invalid {
                field: "resource",
                reason: "resource must be one of oauth.resources".to_owned(),
            })?;
            client.resource = Some(known.to_owned());
        }
        let mut tx = self.context.store.begin(workspace, None).await?;
        let known = store::workspaces::get(&mut tx, workspace).await?;
        known.ok_or(AuthError::NotFound("workspace"))?;
        let id = self.context.env.new_id();
        let event = NewEvent::new(id, workspace, Action::ClientCreated, Actor::system());
        let creator = Creator::default();
        let mut admin = AdminTx::exempt(&mut tx, "the operator creates a client");
        let (registered, audited) =
            self.insert(&mut admin, workspace, client, creator, event).await?;
        tx.commit(audited).await?.unfenced("a new client, which no node has cached");
        Ok(registered)
    }

    fn build(
        &self,
        workspace: WorkspaceId,
        wanted: CreateClientParams,
    ) -> Result<Client, AuthError> {
        let CreateClientParams { name, redirect_uris, auth_method, grant_types, scope, client_uri } =
            wanted;
        let invalid = |field, reason: &str| AuthError::Invalid { field, reason: reason.to_owned() };
        let name =
            text::validate_name("name", &name).map_err(|why| AuthError::invalid("name", why))?;
        if grant_types.is_empty() {
            return Err(invalid("grant_types", "grant_types must contain at least one grant type"));
        }
        if auth_method == ClientAuthMethod::None
            && grant_types.contains(&GrantType::ClientCredentials)
        {
            let message = "client_credentials requires a client with a secret";
            return Err(invalid("grant_types", message));
        }
        self.check_uris(&redirect_uris, &grant_types)?;
        if client_uri.as_ref().is_some_and(|uri| !is_web_url(uri)) {
            return Err(invalid("client_uri", "client_uri must be an http or https URL"));
        }
        Ok(Client {
            id: self.context.env.new_id(),
            origin: ClientOrigin::Workspace(workspace),
            name,
            redirect_uris,
            auth_method,
            grant_types,
            scope: Some(scope),
            client_uri,
            resource: None,
            created_at: self.context.env.clock.now(),
            created_by: None,
        })
    }

    fn check_uris(&self, uris: &[String], grants: &[GrantType]) -> Result<(), AuthError> {
        let checked = check_redirect_uris(uris, grants, &self.native_schemes);
        checked.map_err(|why| AuthError::invalid("redirect_uris", why))
    }

    async fn insert(
        &self,
        tx: &mut AdminTx<'_>,
        workspace: WorkspaceId,
        client: Client,
        creator: Creator,
        event: NewEvent,
    ) -> Result<(RegisteredClient, Audited), AuthError> {
        store::oauth_clients::insert(tx, workspace, &client, creator).await?;
        let secret = client.is_confidential().then(|| self.new_secret());
        if let Some(secret) = &secret {
            let new = self.build_secret(secret, client.created_by.clone(), creator);
            store::oauth_clients::add_secret(tx, client.id, &new, new.created_at).await?;
        }
        let event = event
            .with_target(client.id, client.name.clone())
            .with_metadata(json!({ "scope": client.scope, "redirect_uris": client.redirect_uris }));
        let audited = store::audit::insert(tx, workspace, &event).await?;
        // Before the commit, because the transaction is the caller's. Others do not know the id.
        self.unknown.invalidate(client.id);
        Ok((RegisteredClient { client, secret }, audited))
    }

    fn new_secret(&self) -> ClientSecret {
        ClientSecret::new(self.context.env.entropy.bytes())
    }

    fn build_secret(
        &self,
        secret: &ClientSecret,
        created_by: Option<String>,
        creator: Creator,
    ) -> NewClientSecret {
        let (id, created_at) = (self.context.env.new_uuid(), self.context.env.clock.now());
        NewClientSecret { id, digest: secret.digest(), created_at, created_by, creator }
    }

    /// Lists the clients of the caller's workspace, with their total number.
    ///
    /// # Errors
    /// [`AuthError::Store`] if the query fails.
    #[tracing::instrument(
        name = "oauth.workspace_clients.list",
        level = "debug",
        skip_all,
        fields(workspace = %caller.workspace()),
        err(level = "debug")
    )]
    pub async fn list(
        &self,
        caller: &Caller,
        page: PageRequest,
    ) -> Result<(ListPage<Client>, i64), AuthError> {
        let mut tx = self.context.store.begin_for(caller).await?;
        let items = store::oauth_clients::list(&mut tx, caller.workspace(), page).await?;
        let total = store::oauth_clients::count(&mut tx, caller.workspace()).await?;
        Ok((items, total))
    }

    /// Returns a client of the caller's workspace.
    ///
    /// # Errors
    /// [`AuthError::NotFound`] if the workspace has no such client.
    #[tracing::instrument(
        name = "oauth.workspace_clients.get",
        level = "debug",
        skip_all,
        fields(client = %id),
        err(level = "debug")
    )]
    pub async fn get(&self, caller: &Caller, id: ClientId) -> Result<Client, AuthError> {
        let mut tx = self.context.store.begin_for(caller).await?;
        store::oauth_clients::get(&mut tx, caller.workspace(), id).await?.ok_or(NOT_FOUND)
    }

    /// Changes a client's name or redirect URIs.
    ///
    /// # Errors
    /// [`AuthError::NotFound`] if the workspace has no such client, [`AuthError::Invalid`] for bad
    /// values, [`AuthError::Forbidden`] if a key that is restricted to networks changes the URIs.
    #[tracing::instrument(
        name = "oauth.workspace_clients.update",
        level = "debug",
        skip_all,
        fields(client = %id),
        err(level = "debug")
    )]
    pub async fn update(
        &self,
        caller: &AdminCaller,
        id: ClientId,
        wanted: UpdateClientParams,
    ) -> Result<Client, AuthError> {
        let workspace = caller.workspace();
        let name = wanted.name.as_deref().map(|name| text::validate_name("name", name)).transpose();
        let name = name.map_err(|why| AuthError::invalid("name", why))?;
        let mut tx = self.context.store.begin_as(caller).await?;
        let (mut admin, rights) = AdminTx::lock(&mut tx, caller).await?;
        let known = store::oauth_clients::get(&mut admin, workspace, id).await?.ok_or(NOT_FOUND)?;
        let uris = wanted.redirect_uris.as_deref();
        if let Some(uris) = uris {
            require_unrestricted(&rights)?;
            self.check_uris(uris, &known.grant_types)?;
        }
        store::oauth_clients::update(&mut admin, workspace, id, name.as_deref(), uris).await?;
        if let Some(uris) = uris {
            let is_new = |uri: &&String| !known.redirect_uris.contains(uri);
            let added: Vec<_> = uris.iter().filter(is_new).cloned().collect();
            let (now, by) = (self.context.env.clock.now(), caller.principal.subject());
            let (lists, creator) = ([uris, &added], caller.principal.creator());
            store::oauth_clients::record_added_uris(&mut admin, id, lists, now, &by, creator)
                .await?;
        }
        let client =
            store::oauth_clients::get(&mut admin, workspace, id).await?.ok_or(NOT_FOUND)?;
        let event = audit::event(&self.context.env, caller, Action::ClientUpdated, 200)
            .with_target(id, client.name.clone())
            .with_metadata(json!({ "redirect_uris": client.redirect_uris }));
        let audited = store::audit::insert(&mut tx, workspace, &event).await?;
        self.context.fence.wait(tx.commit(audited).await?).await?;
        Ok(client)
    }

    /// Adds a new secret to a client, in the caller's transaction. Its older secrets expire after
    /// `overlap`, at most [`MAX_SECRET_OVERLAP`].
    ///
    /// # Errors
    /// [`AuthError::NotFound`] if the workspace has no such client, [`AuthError::Conflict`] if the
    /// client is public or already has ten valid secrets, [`AuthError::Forbidden`] for a key that
    /// is restricted to networks.
    #[tracing::instrument(
        name = "oauth.workspace_clients.rotate_secret",
        level = "debug",
        skip_all,
        fields(client = %id),
        err(level = "debug")
    )]
    pub async fn rotate_secret(
        &self,
        tx: &mut Tx,
        caller: &AdminCaller,
        id: ClientId,
        overlap: Duration,
    ) -> Result<(RotatedSecret, Audited), AuthError> {
        let workspace = caller.workspace();
        let (mut admin, rights) = AdminTx::lock(tx, caller).await?;
        let tx = &mut admin;
        let client = store::oauth_clients::get(tx, workspace, id).await?.ok_or(NOT_FOUND)?;
        require_unrestricted(&rights)?;
        if !client.is_confidential() {
            return Err(AuthError::Conflict("this is a public client: it has no secret"));
        }
        let (secret, principal) = (self.new_secret(), &caller.principal);
        let new = self.build_secret(&secret, Some(principal.subject()), principal.creator());
        let (now, until) = (new.created_at, new.created_at + overlap.min(MAX_SECRET_OVERLAP));
        store::oauth_clients::add_secret(tx, id, &new, until).await?;
        if store::oauth_clients::count_secrets(tx, id, now).await? > MAX_SECRETS {
            return Err(AuthError::Conflict(
                "the client already has ten valid secrets: wait until some expire, or set \
                 overlap_seconds to 0 to end them all",
            ));
        }
        let event = audit::event(&self.context.env, caller, Action::ClientSecretRotated, 201)
            .with_target(id, client.name.clone())
            .with_metadata(json!({ "others_until_unix": until.unix_timestamp() }));
        let audited = store::audit::insert(tx, workspace, &event).await?;
        Ok((RotatedSecret { client, secret, others_until: until }, audited))
    }

    /// Deletes a client and all its grants, on all nodes before it returns. Other workspaces that
    /// granted it access get an audit event.
    ///
    /// # Errors
    /// [`AuthError::NotFound`] if the workspace has no such client.
    #[tracing::instrument(
        name = "oauth.workspace_clients.delete",
        level = "debug",
        skip_all,
        fields(client = %id),
        err(level = "debug")
    )]
    pub async fn delete(&self, caller: &AdminCaller, id: ClientId) -> Result<(), AuthError> {
        let workspace = caller.workspace();
        let mut tx = self.context.store.begin_as(caller).await?;
        let (mut admin, _) = AdminTx::lock(&mut tx, caller).await?;
        let client =
            store::oauth_clients::get(&mut admin, workspace, id).await?.ok_or(NOT_FOUND)?;
        let abroad = store::oauth_clients::list_external_grants(&mut admin, Some(id)).await?;
        store::oauth_clients::delete(&mut admin, workspace, id).await?;
        let event = audit::event(&self.context.env, caller, Action::ClientDeleted, 204)
            .with_target(id, client.name);
        let audited = store::audit::insert(&mut tx, workspace, &event).await?;
        let request = Some(&*caller.request);
        let reason = GrantEndReason::ClientDeleted;
        self.context.audit_ended_grants(&mut tx, request, reason, abroad).await?;
        Ok(self.context.fence.wait(tx.commit(audited).await?).await?)
    }
}
