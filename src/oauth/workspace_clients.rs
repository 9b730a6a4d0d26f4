//! Clients that an admin makes: integrations, servers that act for themselves, resources that introspect.

use std::time::Duration;

use serde_json::json;
use time::OffsetDateTime;

use super::{
    OAuth, OAuthError,
    registration::{Registered, check_redirect_uris, is_web_page},
};
use crate::{
    audit,
    auth::AuthError,
    model::{
        audit::{Action, Actor, NewEvent},
        id::{ClientId, WorkspaceId},
        oauth::client::{AuthMethod, Client, ClientSecret, GrantType, Origin},
        page::{Items, Page},
        principal::Caller,
        scope::Scope,
        text,
    },
    store::{self, Tx},
};

/// Clients of a workspace at most.
const MAX_CLIENTS: i64 = 100;

/// Secrets of a client that work at a time, at most: each is compared with what is shown.
const MAX_SECRETS: i64 = 10;

/// The longest that a superseded secret may go on.
pub const MAX_OVERLAP: Duration = Duration::from_hours(30 * 24);

const NONE: AuthError = AuthError::NotFound("OAuth client");

/// A client to be made.
#[derive(Debug)]
pub struct NewClient {
    /// What people will read.
    pub name: String,
    /// Where codes may be sent.
    pub redirect_uris: Vec<String>,
    /// How it shows who it is.
    pub auth_method: AuthMethod,
    /// How it gets tokens.
    pub grant_types: Vec<GrantType>,
    /// The most that it is granted.
    pub scope: Scope,
    /// Its page.
    pub client_uri: Option<String>,
}

/// What is to change about a client; what is none stays.
#[derive(Debug, Default)]
pub struct ChangeClient {
    /// The new name.
    pub name: Option<String>,
    /// Where codes may be sent from now on.
    pub redirect_uris: Option<Vec<String>>,
}

impl OAuth {
    /// Makes a client in the caller's workspace.
    ///
    /// # Errors
    /// [`AuthError::Invalid`] for bad values, [`AuthError::Forbidden`] for a scope above the caller's,
    /// [`AuthError::Conflict`] where there are too many.
    pub async fn create_client(
        &self,
        caller: &Caller,
        wanted: NewClient,
    ) -> Result<Registered, AuthError> {
        if wanted.scope > caller.principal.scope {
            return Err(AuthError::Forbidden("nobody makes a client above their own scope"));
        }
        let workspace = caller.workspace();
        let mut client = self.new_client(workspace, wanted)?;
        client.created_by = Some(caller.principal.subject());
        let event = audit::event(&self.env, caller, Action::ClientCreated, 201);
        let mut tx = self.store.begin(workspace, caller.principal.person()).await?;
        self.auth.lock_members(&mut tx, caller).await?;
        if store::oauth_clients::count(&mut tx, workspace).await? >= MAX_CLIENTS {
            return Err(AuthError::Conflict("the workspace has 100 OAuth clients already"));
        }
        self.store_client(tx, workspace, client, event).await
    }

    /// Makes a client as the operator does; it may be a protected resource, which then introspects tokens for it
    /// of all workspaces.
    ///
    /// # Errors
    /// [`AuthError::Invalid`] for bad values, [`AuthError::NotFound`] for an unknown workspace.
    pub async fn create_client_as_operator(
        &self,
        workspace: WorkspaceId,
        wanted: NewClient,
        resource: Option<&str>,
    ) -> Result<Registered, AuthError> {
        let mut client = self.new_client(workspace, wanted)?;
        if let Some(resource) = resource {
            let known = self.resources.find(resource).ok_or_else(|| AuthError::Invalid {
                field: "resource",
                reason: "resource must be one of oauth.resources".to_owned(),
            })?;
            client.resource = Some(known.to_owned());
        }
        let mut tx = self.store.begin(workspace, None).await?;
        let known = store::workspaces::get(&mut tx, workspace).await?;
        known.ok_or(AuthError::NotFound("workspace"))?;
        let id = self.env.new_id();
        let event = NewEvent::new(id, workspace, Action::ClientCreated, Actor::system());
        self.store_client(tx, workspace, client, event).await
    }

    fn new_client(&self, workspace: WorkspaceId, wanted: NewClient) -> Result<Client, AuthError> {
        let NewClient { name, redirect_uris, auth_method, grant_types, scope, client_uri } = wanted;
        let invalid = |field, reason: &str| AuthError::Invalid { field, reason: reason.to_owned() };
        let name = text::name("name", &name).map_err(|why| AuthError::invalid("name", why))?;
        if grant_types.is_empty() {
            return Err(invalid("grant_types", "grant_types must hold one at least"));
        }
        if auth_method == AuthMethod::None && grant_types.contains(&GrantType::ClientCredentials) {
            let what = "a client without a secret cannot act for itself";
            return Err(invalid("grant_types", what));
        }
        self.check_uris(&redirect_uris, &grant_types)?;
        if client_uri.as_ref().is_some_and(|uri| !is_web_page(uri)) {
            return Err(invalid("client_uri", "client_uri must be an http or https URL"));
        }
        Ok(Client {
            id: self.env.new_id(),
            origin: Origin::Workspace(workspace),
            name,
            redirect_uris,
            auth_method,
            grant_types,
            scope: Some(scope),
            client_uri,
            resource: None,
            created_at: self.env.clock.now(),
            created_by: None,
        })
    }

    fn check_uris(&self, uris: &[String], grants: &[GrantType]) -> Result<(), AuthError> {
        match check_redirect_uris(uris, grants, &self.native_schemes) {
            Err(OAuthError::Refused { description, .. }) => {
                Err(AuthError::Invalid { field: "redirect_uris", reason: description.into_owned() })
            }
            Err(OAuthError::Failed(error)) => Err(error),
            Ok(()) => Ok(()),
        }
    }

    async fn store_client(
        &self,
        mut tx: Tx,
        workspace: WorkspaceId,
        client: Client,
        event: NewEvent,
    ) -> Result<Registered, AuthError> {
        store::oauth_clients::insert(&mut tx, workspace, &client).await?;
        let secret = client.is_confidential().then(|| self.new_secret());
        if let Some(secret) = &secret {
            let (id, now) = (self.env.new_uuid(), self.env.clock.now());
            store::oauth_clients::add_secret(&mut tx, client.id, id, secret.digest(), now, now)
                .await?;
        }
        let event = event
            .on(client.id, client.name.clone())
            .with(json!({ "scope": client.scope, "redirect_uris": client.redirect_uris }));
        store::audit::insert(&mut tx, workspace, &event).await?;
        tx.commit().await?;
        Ok(Registered { client, secret })
    }

    fn new_secret(&self) -> ClientSecret {
        ClientSecret::new(self.env.entropy.bytes())
    }

    /// The clients of the caller's workspace, and how many there are.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn clients(
        &self,
        caller: &Caller,
        page: Page,
    ) -> Result<(Items<Client>, i64), AuthError> {
        let mut tx = self.store.begin(caller.workspace(), None).await?;
        let items = store::oauth_clients::list(&mut tx, caller.workspace(), page).await?;
        let total = store::oauth_clients::count(&mut tx, caller.workspace()).await?;
        Ok((items, total))
    }

    /// A client of the caller's workspace.
    ///
    /// # Errors
    /// [`AuthError::NotFound`].
    pub async fn client(&self, caller: &Caller, id: ClientId) -> Result<Client, AuthError> {
        let mut tx = self.store.begin(caller.workspace(), None).await?;
        store::oauth_clients::get(&mut tx, caller.workspace(), id).await?.ok_or(NONE)
    }

    /// Changes a client's name or redirect URIs.
    ///
    /// # Errors
    /// [`AuthError::NotFound`], [`AuthError::Invalid`] for bad values.
    pub async fn change_client(
        &self,
        caller: &Caller,
        id: ClientId,
        wanted: ChangeClient,
    ) -> Result<Client, AuthError> {
        let workspace = caller.workspace();
        let name = wanted.name.as_deref().map(|name| text::name("name", name)).transpose();
        let name = name.map_err(|why| AuthError::invalid("name", why))?;
        let mut tx = self.store.begin(workspace, caller.principal.person()).await?;
        self.auth.lock_members(&mut tx, caller).await?;
        let known = store::oauth_clients::get(&mut tx, workspace, id).await?.ok_or(NONE)?;
        let uris = wanted.redirect_uris.as_deref();
        if let Some(uris) = uris {
            self.check_uris(uris, &known.grant_types)?;
        }
        store::oauth_clients::update(&mut tx, workspace, id, name.as_deref(), uris).await?;
        let client = store::oauth_clients::get(&mut tx, workspace, id).await?.ok_or(NONE)?;
        let event = audit::event(&self.env, caller, Action::ClientUpdated, 200)
            .on(id, client.name.clone())
            .with(json!({ "redirect_uris": client.redirect_uris }));
        store::audit::insert(&mut tx, workspace, &event).await?;
        tx.commit().await?;
        self.auth.fence().wait().await?;
        Ok(client)
    }

    /// Gives a client another secret, and tells until when the ones before go on.
    ///
    /// # Errors
    /// [`AuthError::NotFound`], [`AuthError::Conflict`] for a client without secrets, or with too many.
    pub async fn rotate_client_secret(
        &self,
        caller: &Caller,
        id: ClientId,
        overlap: Duration,
    ) -> Result<(Client, ClientSecret, OffsetDateTime), AuthError> {
        let workspace = caller.workspace();
        let mut tx = self.store.begin(workspace, caller.principal.person()).await?;
        self.auth.lock_members(&mut tx, caller).await?;
        let client = store::oauth_clients::get(&mut tx, workspace, id).await?.ok_or(NONE)?;
        if !client.is_confidential() {
            return Err(AuthError::Conflict("the client is a public one: it has no secret"));
        }
        let (secret, now) = (self.new_secret(), self.env.clock.now());
        let until = now + overlap.min(MAX_OVERLAP);
        let key = self.env.new_uuid();
        store::oauth_clients::add_secret(&mut tx, id, key, secret.digest(), now, until).await?;
        if store::oauth_clients::count_secrets(&mut tx, id, now).await? > MAX_SECRETS {
            return Err(AuthError::Conflict(
                "ten secrets of the client work still: wait until some expire, or have all end with overlap_seconds 0",
            ));
        }
        let event = audit::event(&self.env, caller, Action::ClientSecretRotated, 201)
            .on(id, client.name.clone())
            .with(json!({ "others_until_unix": until.unix_timestamp() }));
        store::audit::insert(&mut tx, workspace, &event).await?;
        tx.commit().await?;
        Ok((client, secret, until))
    }

    /// Deletes a client, and ends all that was granted to it, at once.
    ///
    /// # Errors
    /// [`AuthError::NotFound`].
    pub async fn delete_client(&self, caller: &Caller, id: ClientId) -> Result<(), AuthError> {
        let workspace = caller.workspace();
        let mut tx = self.store.begin(workspace, caller.principal.person()).await?;
        self.auth.lock_members(&mut tx, caller).await?;
        let client = store::oauth_clients::get(&mut tx, workspace, id).await?.ok_or(NONE)?;
        let abroad = store::oauth_clients::abroad(&mut tx, Some(id)).await?;
        store::oauth_clients::delete(&mut tx, workspace, id).await?;
        let event = audit::event(&self.env, caller, Action::ClientDeleted, 204).on(id, client.name);
        store::audit::insert(&mut tx, workspace, &event).await?;
        self.auth.tell_of_gone_clients(&mut tx, &caller.request, abroad).await?;
        tx.commit().await?;
        Ok(self.auth.fence().wait().await?)
    }
}
