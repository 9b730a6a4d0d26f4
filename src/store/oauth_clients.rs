//! OAuth clients and their secrets.

use ipnet::IpNet;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Store, StoreError, Tx};
use crate::model::{
    id::{ClientId, Id, WorkspaceId},
    oauth::client::{AuthMethod, Client, ClientRef, GrantType, KnownClient, Origin, SecretDigest},
    page::{Items, Page},
    scope::Scope,
};

struct Row {
    id: ClientId,
    kind: String,
    workspace_id: Option<WorkspaceId>,
    document_url: Option<String>,
    name: String,
    redirect_uris: Vec<String>,
    auth_method: String,
    grant_types: Vec<String>,
    scope: Option<Scope>,
    client_uri: Option<String>,
    resource: Option<String>,
    created_at: OffsetDateTime,
    created_by: Option<String>,
}

impl Row {
    /// None for a row that the schema does not let be.
    fn client(self) -> Option<Client> {
        let origin = match (&*self.kind, self.workspace_id, self.document_url) {
            ("registered", None, None) => Origin::Registered,
            ("document", None, Some(url)) => Origin::Document(url),
            ("workspace", Some(workspace), None) => Origin::Workspace(workspace),
            _ => return None,
        };
        Some(Client {
            id: self.id,
            origin,
            name: self.name,
            redirect_uris: self.redirect_uris,
            auth_method: AuthMethod::from_name(&self.auth_method)?,
            grant_types: self.grant_types.iter().filter_map(|g| GrantType::from_name(g)).collect(),
            scope: self.scope,
            client_uri: self.client_uri,
            resource: self.resource,
            created_at: self.created_at,
            created_by: self.created_by,
        })
    }
}

fn names(grants: &[GrantType]) -> Vec<String> {
    grants.iter().map(|grant| grant.as_str().to_owned()).collect()
}

impl Store {
    /// A client, before anybody is known. One of a metadata document is found only if it was let in before.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn find_client(
        &self,
        client: &ClientRef,
        now: OffsetDateTime,
    ) -> Result<Option<KnownClient>, StoreError> {
        let (id, url) = match client {
            ClientRef::Id(id) => (Some(id.uuid()), None),
            ClientRef::Document(url) => (None, Some(url)),
        };
        let row = sqlx::query!(
            r#"SELECT id AS "id!: ClientId", kind AS "kind!",
                      workspace_id AS "workspace_id: WorkspaceId", document_url, name AS "name!",
                      redirect_uris AS "redirect_uris!", auth_method AS "auth_method!",
                      grant_types AS "grant_types!", scope AS "scope: Scope", client_uri, resource,
                      created_at AS "created_at!", created_by, secrets AS "secrets!"
               FROM find_oauth_client($1, $2, $3)"#,
            id,
            url,
            now,
        )
        .fetch_optional(&self.pools.requests())
        .await?;
        Ok(row.and_then(|row| {
            let digests = row.secrets.into_iter().filter_map(|digest| digest.try_into().ok());
            let secrets = digests.map(SecretDigest::new).collect();
            let row = Row {
                id: row.id,
                kind: row.kind,
                workspace_id: row.workspace_id,
                document_url: row.document_url,
                name: row.name,
                redirect_uris: row.redirect_uris,
                auth_method: row.auth_method,
                grant_types: row.grant_types,
                scope: row.scope,
                client_uri: row.client_uri,
                resource: row.resource,
                created_at: row.created_at,
                created_by: row.created_by,
            };
            Some(KnownClient { client: row.client()?, secrets })
        }))
    }

    /// Stores a client that registers itself, from somewhere. False: there are as many already from there, or over
    /// all, that nobody has let in.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn register_client(
        &self,
        client: &Client,
        secret: Option<(Uuid, SecretDigest)>,
        subnet: IpNet,
        [at_most, at_most_from_there]: [i32; 2],
    ) -> Result<bool, StoreError> {
        let (secret, digest) = secret.unzip();
        Ok(sqlx::query_scalar!(
            r#"SELECT register_oauth_client($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
                      AS "registered!""#,
            client.id.uuid(),
            client.name,
            &client.redirect_uris,
            client.auth_method.as_str(),
            &names(&client.grant_types),
            client.scope.map(Scope::as_str),
            client.client_uri,
            client.created_at,
            secret,
            digest.as_ref().map(SecretDigest::as_bytes),
            subnet as _,
            at_most,
            at_most_from_there,
        )
        .fetch_one(&self.pools.requests())
        .await?)
    }
}

/// Stores what a client's metadata document says now, in the transaction in which somebody lets it in. Answers
/// its id, which stays the same.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn store_document(
    tx: &mut Tx,
    client: &Client,
    now: OffsetDateTime,
) -> Result<ClientId, StoreError> {
    let Origin::Document(url) = &client.origin else { return Ok(client.id) };
    Ok(sqlx::query_scalar!(
        r#"SELECT store_oauth_document($1, $2, $3, $4, $5, $6, $7, $8) AS "id!: ClientId""#,
        client.id.uuid(),
        url,
        client.name,
        &client.redirect_uris,
        &names(&client.grant_types),
        client.scope.map(Scope::as_str),
        client.client_uri,
        now,
    )
    .fetch_one(tx.conn())
    .await?)
}

/// Stores a client of a workspace.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn insert(
    tx: &mut Tx,
    workspace: WorkspaceId,
    client: &Client,
) -> Result<(), StoreError> {
    sqlx::query!(
        "INSERT INTO oauth_clients (id, kind, workspace_id, name, redirect_uris, auth_method,
                                    grant_types, scope, client_uri, resource, created_at, created_by)
         VALUES ($1, 'workspace', $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
        client.id.uuid(),
        workspace.uuid(),
        client.name,
        &client.redirect_uris,
        client.auth_method.as_str(),
        &names(&client.grant_types),
        client.scope.map(Scope::as_str),
        client.client_uri,
        client.resource,
        client.created_at,
        client.created_by,
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// Gives a client of a workspace a secret. Those before go on until `others_until`.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn add_secret(
    tx: &mut Tx,
    client: ClientId,
    id: Uuid,
    digest: SecretDigest,
    now: OffsetDateTime,
    others_until: OffsetDateTime,
) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE oauth_client_secrets SET expires_at = least(expires_at, $2) WHERE client_id = $1",
        client.uuid(),
        others_until,
    )
    .execute(tx.conn())
    .await?;
    sqlx::query!(
        "INSERT INTO oauth_client_secrets (id, client_id, digest, created_at)
         VALUES ($1, $2, $3, $4)",
        id,
        client.uuid(),
        digest.as_bytes(),
        now,
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// How many secrets of a client of the transaction's workspace work.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn count_secrets(
    tx: &mut Tx,
    client: ClientId,
    now: OffsetDateTime,
) -> Result<i64, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!" FROM oauth_client_secrets
           WHERE client_id = $1 AND (expires_at IS NULL OR expires_at > $2)"#,
        client.uuid(),
        now,
    )
    .fetch_one(tx.conn())
    .await?)
}

/// Changes a client of a workspace; what is none stays. False: there is no such client.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn update(
    tx: &mut Tx,
    workspace: WorkspaceId,
    id: ClientId,
    name: Option<&str>,
    redirect_uris: Option<&[String]>,
) -> Result<bool, StoreError> {
    let done = sqlx::query!(
        "UPDATE oauth_clients SET name = coalesce($3, name),
                                  redirect_uris = coalesce($4, redirect_uris)
         WHERE id = $1 AND workspace_id = $2",
        id.uuid(),
        workspace.uuid(),
        name,
        redirect_uris,
    )
    .execute(tx.conn())
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Deletes a client of a workspace, and its grants with it. False: there is no such client.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn delete(tx: &mut Tx, workspace: WorkspaceId, id: ClientId) -> Result<bool, StoreError> {
    let done = sqlx::query!(
        "DELETE FROM oauth_clients WHERE id = $1 AND workspace_id = $2",
        id.uuid(),
        workspace.uuid(),
    )
    .execute(tx.conn())
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Where clients of the transaction's workspace are let in, when they are about to go.
#[derive(Debug)]
pub struct Abroad {
    /// Which client.
    pub client_id: ClientId,
    /// What it calls itself.
    pub client_name: String,
    /// Where.
    pub workspace_id: WorkspaceId,
    /// How often.
    pub grants: i64,
}

/// Where a client of the transaction's workspace is let in; or all of its clients, where they are let in elsewhere.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn abroad(tx: &mut Tx, client: Option<ClientId>) -> Result<Vec<Abroad>, StoreError> {
    Ok(sqlx::query_as!(
        Abroad,
        r#"SELECT client_id AS "client_id!: ClientId", client_name AS "client_name!",
                  workspace_id AS "workspace_id!: WorkspaceId", grants AS "grants!"
           FROM oauth_clients_abroad($1)"#,
        client.map(Id::uuid),
    )
    .fetch_all(tx.conn())
    .await?)
}

/// A client of a workspace, locked until the transaction ends.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn get(
    tx: &mut Tx,
    workspace: WorkspaceId,
    id: ClientId,
) -> Result<Option<Client>, StoreError> {
    let row = sqlx::query_as!(
        Row,
        r#"SELECT id AS "id: ClientId", kind, workspace_id AS "workspace_id: WorkspaceId",
                  document_url, name, redirect_uris, auth_method, grant_types,
                  scope AS "scope: Scope", client_uri, resource, created_at, created_by
           FROM oauth_clients WHERE id = $1 AND workspace_id = $2 FOR NO KEY UPDATE"#,
        id.uuid(),
        workspace.uuid(),
    )
    .fetch_optional(tx.conn())
    .await?;
    Ok(row.and_then(Row::client))
}

/// The clients of a workspace, the newest first.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn list(
    tx: &mut Tx,
    workspace: WorkspaceId,
    page: Page,
) -> Result<Items<Client>, StoreError> {
    let rows = sqlx::query_as!(
        Row,
        r#"SELECT id AS "id: ClientId", kind, workspace_id AS "workspace_id: WorkspaceId",
                  document_url, name, redirect_uris, auth_method, grant_types,
                  scope AS "scope: Scope", client_uri, resource, created_at, created_by
           FROM oauth_clients WHERE workspace_id = $1 AND ($2::uuid IS NULL OR id < $2)
           ORDER BY id DESC LIMIT $3 OFFSET $4"#,
        workspace.uuid(),
        page.before,
        page.limit + 1,
        page.offset,
    )
    .fetch_all(tx.conn())
    .await?;
    Ok(Items::from_excess(rows.into_iter().filter_map(Row::client).collect(), page.limit))
}

/// How many clients a workspace has.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn count(tx: &mut Tx, workspace: WorkspaceId) -> Result<i64, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!" FROM oauth_clients WHERE workspace_id = $1"#,
        workspace.uuid(),
    )
    .fetch_one(tx.conn())
    .await?)
}
