//! OAuth clients and the digests of their secrets.
//!
//! A client is registered by itself (RFC 7591), described by a metadata document, or registered by
//! an administrator of a workspace. The first two belong to no workspace; only functions of the
//! schema write them.

use ipnet::IpNet;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::{
    AdminTx, Store, StoreError, Tx,
    client_additions::{ClientAdditions, RestoredClient},
    context::SignedDecision,
};
use crate::model::{
    id::{ClientId, Id, UserId, WorkspaceId},
    oauth::{
        client::{
            Client, ClientAuthMethod, ClientOrigin, ClientRef, ClientWithSecrets, GrantType,
            SecretDigest,
        },
        grant::GrantEndReason,
    },
    page::{ListPage, PageRequest},
    principal::Creator,
    scope::Scope,
};

/// The time after which a client without a grant is deleted, unless it belongs to a workspace.
const UNUSED_CLIENT_LIFETIME: Duration = Duration::days(7);

struct ClientRow {
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

impl ClientRow {
    /// Converts the row. `None` if the schema's constraints do not allow such a row.
    fn into_client(self) -> Option<Client> {
        let origin = match (&*self.kind, self.workspace_id, self.document_url) {
            ("registered", None, None) => ClientOrigin::SelfRegistered,
            ("document", None, Some(url)) => ClientOrigin::MetadataDocument(url),
            ("workspace", Some(workspace), None) => ClientOrigin::Workspace(workspace),
            _ => return None,
        };
        Some(Client {
            id: self.id,
            origin,
            name: self.name,
            redirect_uris: self.redirect_uris,
            auth_method: ClientAuthMethod::from_name(&self.auth_method)?,
            grant_types: self.grant_types.iter().filter_map(|g| GrantType::from_name(g)).collect(),
            scope: self.scope,
            client_uri: self.client_uri,
            resource: self.resource,
            created_at: self.created_at,
            created_by: self.created_by,
        })
    }
}

fn grant_type_names(grants: &[GrantType]) -> Vec<String> {
    grants.iter().map(|grant| grant.as_str().to_owned()).collect()
}

impl Store {
    /// Finds a client and its valid secrets, before the caller is authenticated. A client with a
    /// metadata document is stored, and so found, only after a user has authorized it once.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn find_client(
        &self,
        client: &ClientRef,
        now: OffsetDateTime,
    ) -> Result<Option<ClientWithSecrets>, StoreError> {
        let (id, url) = match client {
            ClientRef::Id(id) => (Some(id.uuid()), None),
            ClientRef::MetadataDocument(url) => (None, Some(url)),
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
            let row = ClientRow {
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
            Some(ClientWithSecrets { client: row.into_client()?, secrets })
        }))
    }

    /// Stores a client that registers itself from `subnet`. Of 200 clients of the subnet that have
    /// no grant yet, the oldest is deleted to make room. Of 10,000 overall, those older than an
    /// hour are; false if there are none.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn register_client(
        &self,
        client: &Client,
        secret: Option<(Uuid, SecretDigest)>,
        subnet: IpNet,
    ) -> Result<bool, StoreError> {
        let (secret, digest) = secret.unzip();
        Ok(sqlx::query_scalar!(
            r#"SELECT register_oauth_client($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
               AS "registered!""#,
            client.id.uuid(),
            client.name,
            &client.redirect_uris,
            client.auth_method.as_str(),
            &grant_type_names(&client.grant_types),
            client.scope.map(Scope::as_str),
            client.client_uri,
            client.created_at,
            secret,
            digest.as_ref().map(SecretDigest::as_bytes),
            subnet as _,
            client.created_at - UNUSED_CLIENT_LIFETIME,
        )
        .fetch_one(&self.pools.requests())
        .await?)
    }
}

/// Stores the current metadata document of a client, in the transaction in which a user authorizes
/// the client. Returns the client's id, which stays the same. Other clients are not changed.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn store_metadata_document(
    tx: &mut Tx,
    client: &Client,
    now: OffsetDateTime,
) -> Result<ClientId, StoreError> {
    let ClientOrigin::MetadataDocument(url) = &client.origin else { return Ok(client.id) };
    Ok(sqlx::query_scalar!(
        r#"SELECT store_oauth_metadata_document($1, $2, $3, $4, $5, $6, $7, $8) AS "id!: ClientId""#,
        client.id.uuid(),
        url,
        client.name,
        &client.redirect_uris,
        &grant_type_names(&client.grant_types),
        client.scope.map(Scope::as_str),
        client.client_uri,
        now,
    )
    .fetch_one(tx.conn())
    .await?)
}

/// Inserts a workspace client.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn insert(
    tx: &mut AdminTx<'_>,
    workspace: WorkspaceId,
    client: &Client,
    creator: Creator,
) -> Result<(), StoreError> {
    sqlx::query!(
        "INSERT INTO oauth_clients (id, kind, workspace_id, name, redirect_uris, auth_method,
                                    grant_types, scope, client_uri, created_at, created_by,
                                    creator_user_id, creator_key_id)
         VALUES ($1, 'workspace', $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
        client.id.uuid(),
        workspace.uuid(),
        client.name,
        &client.redirect_uris,
        client.auth_method.as_str(),
        &grant_type_names(&client.grant_types),
        client.scope.map(Scope::as_str),
        client.client_uri,
        client.created_at,
        client.created_by,
        creator.user.map(Id::uuid),
        creator.key.map(Id::uuid),
    )
    .execute(tx.conn())
    .await?;
    if let Some(resource) = &client.resource {
        let id = client.id.uuid();
        let values: [&[u8]; 2] = [id.as_bytes(), resource.as_bytes()];
        let SignedDecision { key_id, mac } =
            tx.context.sign_decision("oauth_client_resource", &values);
        sqlx::query!(
            r#"SELECT set_oauth_client_resource($1, $2, $3, $4) AS "done""#,
            client.id.uuid(),
            resource,
            &key_id,
            &mac,
        )
        .fetch_one(tx.conn())
        .await?;
    }
    Ok(())
}

/// Lists up to `limit` clients that a user created, directly or through an API key, newest first.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn list_by_creator(
    tx: &mut Tx,
    workspace: WorkspaceId,
    user: UserId,
    scopes: &[Scope],
    limit: i64,
) -> Result<ListPage<(ClientId, String)>, StoreError> {
    let scopes: Vec<String> = scopes.iter().map(|scope| scope.as_str().to_owned()).collect();
    let rows = sqlx::query!(
        r#"SELECT id AS "id: ClientId", name FROM oauth_clients
           WHERE workspace_id = $1 AND creator_user_id = $2
             AND (scope IS NULL OR scope = ANY($3))
           ORDER BY id DESC LIMIT $4"#,
        workspace.uuid(),
        user.uuid(),
        &scopes,
        limit + 1,
    )
    .fetch_all(tx.conn())
    .await?;
    Ok(ListPage::from_overfetch(rows.into_iter().map(|row| (row.id, row.name)).collect(), limit))
}

/// A new secret of a workspace client.
#[derive(Debug)]
pub struct NewClientSecret {
    /// The id of its row.
    pub id: Uuid,
    /// The digest of the secret.
    pub digest: SecretDigest,
    /// Time of creation.
    pub created_at: OffsetDateTime,
    /// The public id of the principal that adds it.
    pub created_by: Option<String>,
    /// The credentials that add it.
    pub creator: Creator,
}

/// Adds a secret to a workspace client. Its other secrets expire at `others_until` at the latest.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn add_secret(
    tx: &mut AdminTx<'_>,
    client: ClientId,
    secret: &NewClientSecret,
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
        "INSERT INTO oauth_client_secrets (id, client_id, digest, created_at, created_by,
                                           creator_user_id, creator_key_id)
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
        secret.id,
        client.uuid(),
        secret.digest.as_bytes(),
        secret.created_at,
        secret.created_by,
        secret.creator.user.map(Id::uuid),
        secret.creator.key.map(Id::uuid),
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// Records the redirect URIs that were added to a workspace client, and that it does not have
/// others any more. `uris` is the new list, `added` what was not in the old one. A URI that the
/// same credentials add again keeps the time of its first addition.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn record_added_uris(
    tx: &mut AdminTx<'_>,
    client: ClientId,
    [uris, added]: [&[String]; 2],
    now: OffsetDateTime,
    by: &str,
    creator: Creator,
) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE oauth_added_redirect_uris SET removed_at = $3
         WHERE client_id = $1 AND removed_at IS NULL AND uri <> ALL ($2)",
        client.uuid(),
        uris,
        now,
    )
    .execute(tx.conn())
    .await?;
    sqlx::query!(
        "WITH again AS (
             UPDATE oauth_added_redirect_uris SET removed_at = NULL
             WHERE client_id = $1 AND uri = ANY ($2)
               AND creator_user_id IS NOT DISTINCT FROM $5
               AND creator_key_id IS NOT DISTINCT FROM $6
             RETURNING uri
         )
         INSERT INTO oauth_added_redirect_uris (client_id, uri, added_at, added_by, creator_user_id,
                                                creator_key_id)
         SELECT DISTINCT $1::uuid, uri, $3::timestamptz, $4, $5::uuid, $6::uuid
         FROM unnest($2::text[]) AS uri WHERE uri NOT IN (SELECT uri FROM again)",
        client.uuid(),
        added,
        now,
        by,
        creator.user.map(Id::uuid),
        creator.key.map(Id::uuid),
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// Ends the grants that a client of the transaction's workspace has from the time of what keys
/// added to it, in all workspaces; for secrets, also the one of the client for itself. The clocks
/// of nodes may differ by a minute. Returns their number for each workspace.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn end_grants_of_additions(
    tx: &mut AdminTx<'_>,
    client: &RestoredClient,
    now: OffsetDateTime,
    reason: GrantEndReason,
) -> Result<Vec<ExternalGrants>, StoreError> {
    Ok(sqlx::query_as!(
        ExternalGrants,
        r#"SELECT client_id AS "client_id!: ClientId", client_name AS "client_name!",
                  workspace_id AS "workspace_id!: WorkspaceId", grants AS "grants!"
           FROM end_oauth_grants_between($1, $2, $3, $4, $5, $6)"#,
        client.id.uuid(),
        client.since,
        client.until,
        matches!(client.additions, ClientAdditions::Secrets(_)),
        now,
        reason.as_str(),
    )
    .fetch_all(tx.conn())
    .await?)
}

/// Counts the valid secrets of a client of the transaction's workspace.
///
/// # Errors
/// [`StoreError`] if the query fails.
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

/// Changes a workspace client. A field that is `None` keeps its value. False if the client does not
/// exist.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn update(
    tx: &mut AdminTx<'_>,
    workspace: WorkspaceId,
    id: ClientId,
    name: Option<&str>,
    redirect_uris: Option<&[String]>,
) -> Result<bool, StoreError> {
    let result = sqlx::query!(
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
    Ok(result.rows_affected() == 1)
}

/// Deletes a workspace client together with its grants. False if the client does not exist.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn delete(
    tx: &mut AdminTx<'_>,
    workspace: WorkspaceId,
    id: ClientId,
) -> Result<bool, StoreError> {
    let result = sqlx::query!(
        "DELETE FROM oauth_clients WHERE id = $1 AND workspace_id = $2",
        id.uuid(),
        workspace.uuid(),
    )
    .execute(tx.conn())
    .await?;
    Ok(result.rows_affected() == 1)
}

/// Deletes all clients of a workspace together with their grants. Returns their ids and names.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn delete_all(
    tx: &mut AdminTx<'_>,
    workspace: WorkspaceId,
) -> Result<Vec<(ClientId, String)>, StoreError> {
    let rows = sqlx::query!(
        r#"DELETE FROM oauth_clients WHERE workspace_id = $1
           RETURNING id AS "id: ClientId", name"#,
        workspace.uuid(),
    )
    .fetch_all(tx.conn())
    .await?;
    Ok(rows.into_iter().map(|row| (row.id, row.name)).collect())
}

/// Active grants in one workspace, of a client of the transaction's workspace. They end when the
/// client is deleted.
#[derive(Debug)]
pub struct ExternalGrants {
    /// The client.
    pub client_id: ClientId,
    /// The client's name.
    pub client_name: String,
    /// The workspace of the grants.
    pub workspace_id: WorkspaceId,
    /// The number of grants.
    pub grants: i64,
}

/// Counts the active grants of a client of the transaction's workspace, by the workspace that they
/// are for. If `client` is `None`, counts those of all its clients, in other workspaces only.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn list_external_grants(
    tx: &mut Tx,
    client: Option<ClientId>,
) -> Result<Vec<ExternalGrants>, StoreError> {
    Ok(sqlx::query_as!(
        ExternalGrants,
        r#"SELECT client_id AS "client_id!: ClientId", client_name AS "client_name!",
                  workspace_id AS "workspace_id!: WorkspaceId", grants AS "grants!"
           FROM list_external_oauth_grants($1)"#,
        client.map(Id::uuid),
    )
    .fetch_all(tx.conn())
    .await?)
}

/// Returns a workspace client and locks it until the transaction ends.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn get(
    tx: &mut Tx,
    workspace: WorkspaceId,
    id: ClientId,
) -> Result<Option<Client>, StoreError> {
    let row = sqlx::query_as!(
        ClientRow,
        r#"SELECT id AS "id: ClientId", kind, workspace_id AS "workspace_id: WorkspaceId",
                  document_url, name, redirect_uris, auth_method, grant_types,
                  scope AS "scope: Scope", client_uri, resource, created_at, created_by
           FROM oauth_clients WHERE id = $1 AND workspace_id = $2 FOR NO KEY UPDATE"#,
        id.uuid(),
        workspace.uuid(),
    )
    .fetch_optional(tx.conn())
    .await?;
    Ok(row.and_then(ClientRow::into_client))
}

/// Lists the clients of a workspace, newest first.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn list(
    tx: &mut Tx,
    workspace: WorkspaceId,
    page: PageRequest,
) -> Result<ListPage<Client>, StoreError> {
    let rows = sqlx::query_as!(
        ClientRow,
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
    Ok(ListPage::from_overfetch(
        rows.into_iter().filter_map(ClientRow::into_client).collect(),
        page.limit,
    ))
}

/// Counts the clients of a workspace.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn count(tx: &mut Tx, workspace: WorkspaceId) -> Result<i64, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!" FROM oauth_clients WHERE workspace_id = $1"#,
        workspace.uuid(),
    )
    .fetch_one(tx.conn())
    .await?)
}
