//! API keys.
//!
//! The table holds a digest of each key, never the key itself. Keys are disabled or revoked, not
//! deleted. Their usage counts are in `usage`; the keys and clients that a key created are in
//! `key_descendants`.

use ipnet::IpNet;
use time::OffsetDateTime;

use super::{AdminTx, DedicatedConnection, Store, StoreError, Tx};
use crate::model::{
    api_key::{ApiKey, ApiKeyChange, KeyDigest, KeyRecord, KeyStatus, NewApiKey},
    id::{ApiKeyId, Id, UserId, WorkspaceId},
    page::{ListPage, PageRequest},
    scope::Scope,
};

impl DedicatedConnection {
    /// Finds keys by their digests, before the caller is authenticated. Includes inactive keys.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn find_api_keys(
        &mut self,
        digests: &[KeyDigest],
    ) -> Result<Vec<(KeyDigest, KeyRecord)>, StoreError> {
        let digests: Vec<_> = digests.iter().map(KeyDigest::as_bytes).collect();
        let find = sqlx::query!(
            r#"SELECT digest AS "digest!", id AS "id!: ApiKeyId",
                      workspace_id AS "workspace_id!: WorkspaceId", name AS "name!",
                      scope AS "scope!: Scope", allowed_ips AS "allowed_ips!: Vec<IpNet>",
                      creator_user_id AS "creator: UserId", disabled_at, revoked_at,
                      rate_limit_per_minute, workspace_rate_limit_per_minute
               FROM find_api_keys($1)"#,
            &digests as _,
        );
        let rows = self.run(async move |connection| find.fetch_all(connection).await).await?;
        let records = rows.into_iter().filter_map(|row| {
            let record = KeyRecord {
                id: row.id,
                workspace_id: row.workspace_id,
                name: row.name.into(),
                scope: row.scope,
                allowed_ips: row.allowed_ips,
                creator: row.creator,
                status: KeyStatus::of_times(row.disabled_at, row.revoked_at),
                rate_limit_per_minute: rate_limit(row.rate_limit_per_minute),
                workspace_rate_limit_per_minute: rate_limit(row.workspace_rate_limit_per_minute),
            };
            Some((KeyDigest::new(row.digest.try_into().ok()?), record))
        });
        Ok(records.collect())
    }
}

impl Store {
    /// Returns the workspace and the id of a key by its digest, before the caller is authenticated.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn find_active_api_key_id(
        &self,
        digest: KeyDigest,
    ) -> Result<Option<(WorkspaceId, ApiKeyId)>, StoreError> {
        let row = sqlx::query!(
            r#"SELECT workspace_id AS "workspace_id!: WorkspaceId", id AS "id!: ApiKeyId"
               FROM find_api_keys(ARRAY[$1::bytea]) WHERE revoked_at IS NULL"#,
            digest.as_bytes(),
        );
        let row = row.fetch_optional(&self.pools.requests()).await?;
        Ok(row.map(|row| (row.workspace_id, row.id)))
    }

    /// Returns the workspace of a key, for the operator.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn find_api_key_workspace(
        &self,
        id: ApiKeyId,
    ) -> Result<Option<WorkspaceId>, StoreError> {
        Ok(sqlx::query_scalar!(
            r#"SELECT find_api_key_workspace($1) AS "workspace: WorkspaceId""#,
            id.uuid(),
        )
        .fetch_one(&self.pools.requests())
        .await?)
    }
}

fn rate_limit(stored: Option<i32>) -> Option<u32> {
    stored.and_then(|limit| limit.try_into().ok())
}

/// Converts a rate limit to its type in the database, which the schema's checks bound as well.
fn stored_limit(limit: Option<u32>) -> Option<i32> {
    limit.map(|limit| limit.try_into().unwrap_or(i32::MAX))
}

/// Inserts a new key.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn insert(
    tx: &mut AdminTx<'_>,
    workspace: WorkspaceId,
    key: &NewApiKey,
) -> Result<(), StoreError> {
    sqlx::query!(
        "SELECT insert_api_key($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)",
        key.id.uuid(),
        workspace.uuid(),
        key.name,
        key.description,
        key.scope.as_str(),
        key.digest.as_bytes(),
        key.display_ends.0,
        key.display_ends.1,
        &key.allowed_ips as _,
        key.created_at,
        key.created_by,
        key.creator.map(Id::uuid),
        key.creator_key.map(Id::uuid),
        key.rotated_from.map(Id::uuid),
        stored_limit(key.rate_limit_per_minute),
    )
    .fetch_one(tx.conn())
    .await?;
    Ok(())
}

/// Returns a key of a workspace.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn get(
    tx: &mut Tx,
    workspace: WorkspaceId,
    id: ApiKeyId,
) -> Result<Option<ApiKey>, StoreError> {
    let row = sqlx::query_as!(
        ApiKeyRow,
        r#"SELECT k.id AS "id: ApiKeyId", k.workspace_id AS "workspace_id: WorkspaceId", k.name,
                  k.description, k.scope AS "scope: Scope", k.display_start, k.display_end,
                  k.allowed_ips AS "allowed_ips: Vec<IpNet>", k.created_at, k.created_by,
                  a.last_used_at AS "last_used_at?", a.last_used_ip AS "last_used_ip?: IpNet",
                  k.disabled_at, k.revoked_at, k.revoked_by, k.rate_limit_per_minute,
                  k.rotated_from AS "rotated_from: ApiKeyId",
                  (SELECT max(s.id::text)::uuid FROM api_keys s
                   WHERE s.rotated_from = k.id AND s.revoked_at IS NULL) AS "rotated_to: ApiKeyId"
           FROM api_keys k LEFT JOIN api_key_activity a ON a.key_id = k.id
           WHERE k.workspace_id = $1 AND k.id = $2"#,
        workspace.uuid(),
        id.uuid(),
    )
    .fetch_optional(tx.conn())
    .await?;
    Ok(row.map(ApiKey::from))
}

/// A filter for keys. A field that is `None` matches every key.
#[derive(Debug, Default)]
pub struct KeyFilter {
    /// Matches keys with this status only.
    pub status: Option<KeyStatus>,
    /// Matches keys of exactly this name.
    pub name: Option<String>,
}

impl KeyFilter {
    fn is_revoked(&self) -> Option<bool> {
        self.status.map(|status| status == KeyStatus::Revoked)
    }

    /// A revoked key has the status `revoked`, also if it was disabled before.
    fn is_disabled(&self) -> Option<bool> {
        match self.status? {
            KeyStatus::Active => Some(false),
            KeyStatus::Disabled => Some(true),
            KeyStatus::Revoked => None,
        }
    }
}

/// Lists the keys of a workspace, newest first.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn list(
    tx: &mut Tx,
    workspace: WorkspaceId,
    filter: &KeyFilter,
    page: PageRequest,
) -> Result<ListPage<ApiKey>, StoreError> {
    let rows = sqlx::query_as!(
        ApiKeyRow,
        r#"SELECT k.id AS "id: ApiKeyId", k.workspace_id AS "workspace_id: WorkspaceId", k.name,
                  k.description, k.scope AS "scope: Scope", k.display_start, k.display_end,
                  k.allowed_ips AS "allowed_ips: Vec<IpNet>", k.created_at, k.created_by,
                  a.last_used_at AS "last_used_at?", a.last_used_ip AS "last_used_ip?: IpNet",
                  k.disabled_at, k.revoked_at, k.revoked_by, k.rate_limit_per_minute,
                  k.rotated_from AS "rotated_from: ApiKeyId",
                  (SELECT max(s.id::text)::uuid FROM api_keys s
                   WHERE s.rotated_from = k.id AND s.revoked_at IS NULL) AS "rotated_to: ApiKeyId"
           FROM api_keys k LEFT JOIN api_key_activity a ON a.key_id = k.id
           WHERE k.workspace_id = $1
             AND ($2::bool IS NULL OR (k.revoked_at IS NOT NULL) = $2)
             AND ($3::bool IS NULL OR (k.disabled_at IS NOT NULL) = $3)
             AND ($4::text IS NULL OR k.name = $4)
             AND ($5::uuid IS NULL OR k.id < $5)
           ORDER BY k.id DESC LIMIT $6 OFFSET $7"#,
        workspace.uuid(),
        filter.is_revoked(),
        filter.is_disabled(),
        filter.name,
        page.before,
        page.limit + 1,
        page.offset,
    )
    .fetch_all(tx.conn())
    .await?;
    Ok(ListPage::from_overfetch(rows.into_iter().map(ApiKey::from).collect(), page.limit))
}

/// Counts the keys that match the filter.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn count(
    tx: &mut Tx,
    workspace: WorkspaceId,
    filter: &KeyFilter,
) -> Result<i64, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!" FROM api_keys
           WHERE workspace_id = $1
             AND ($2::bool IS NULL OR (revoked_at IS NOT NULL) = $2)
             AND ($3::bool IS NULL OR (disabled_at IS NOT NULL) = $3)
             AND ($4::text IS NULL OR name = $4)"#,
        workspace.uuid(),
        filter.is_revoked(),
        filter.is_disabled(),
        filter.name,
    )
    .fetch_one(tx.conn())
    .await?)
}

/// Counts the keys of a workspace that are not revoked, up to `limit`.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn count_not_revoked(
    tx: &mut Tx,
    workspace: WorkspaceId,
    limit: i64,
) -> Result<i64, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!" FROM (
               SELECT FROM api_keys WHERE workspace_id = $1 AND revoked_at IS NULL LIMIT $2) keys"#,
        workspace.uuid(),
        limit,
    )
    .fetch_one(tx.conn())
    .await?)
}

/// Counts the keys that a workspace has created since a time, revoked ones too, up to `limit`.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn count_created_since(
    tx: &mut Tx,
    workspace: WorkspaceId,
    since: OffsetDateTime,
    limit: i64,
) -> Result<i64, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!" FROM (
               SELECT FROM api_keys
               WHERE workspace_id = $1 AND id >= uuidv7_lower_bound($2) LIMIT $3) keys"#,
        workspace.uuid(),
        since,
        limit,
    )
    .fetch_one(tx.conn())
    .await?)
}

/// Changes a key. False if the key does not exist.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn update(
    tx: &mut AdminTx<'_>,
    workspace: WorkspaceId,
    id: ApiKeyId,
    change: &ApiKeyChange,
) -> Result<bool, StoreError> {
    let result = sqlx::query!(
        "UPDATE api_keys
         SET name = coalesce($3, name),
             description = CASE WHEN $4 THEN $5 ELSE description END,
             allowed_ips = coalesce($6, allowed_ips),
             rate_limit_per_minute = CASE WHEN $7 THEN $8 ELSE rate_limit_per_minute END,
             disabled_at = CASE WHEN $9 THEN $10 ELSE disabled_at END,
             widened_by_user_id = CASE WHEN $11 THEN $12 ELSE widened_by_user_id END,
             widened_by_key_id = CASE WHEN $11 THEN $13 ELSE widened_by_key_id END
         WHERE workspace_id = $1 AND id = $2",
        workspace.uuid(),
        id.uuid(),
        change.name,
        change.description.is_some(),
        change.description.clone().flatten(),
        change.allowed_ips.as_deref() as _,
        change.rate_limit_per_minute.is_some(),
        stored_limit(change.rate_limit_per_minute.flatten()),
        change.disabled_at.is_some(),
        change.disabled_at.flatten(),
        change.widened_by.is_some(),
        change.widened_by.and_then(|by| by.user).map(Id::uuid),
        change.widened_by.and_then(|by| by.key).map(Id::uuid),
    )
    .execute(tx.conn())
    .await?;
    Ok(result.rows_affected() == 1)
}

/// Revokes a key. False if it does not exist or is already revoked.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn revoke(
    tx: &mut AdminTx<'_>,
    workspace: WorkspaceId,
    id: ApiKeyId,
    now: OffsetDateTime,
    by: Option<&str>,
) -> Result<bool, StoreError> {
    let result = sqlx::query!(
        "UPDATE api_keys SET revoked_at = $3, revoked_by = $4
         WHERE workspace_id = $1 AND id = $2 AND revoked_at IS NULL",
        workspace.uuid(),
        id.uuid(),
        now,
        by,
    )
    .execute(tx.conn())
    .await?;
    Ok(result.rows_affected() == 1)
}

/// Revokes all active keys of a workspace. Returns their ids and names.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn revoke_all(
    tx: &mut AdminTx<'_>,
    workspace: WorkspaceId,
    now: OffsetDateTime,
    by: &str,
) -> Result<Vec<(ApiKeyId, String)>, StoreError> {
    let rows = sqlx::query!(
        r#"UPDATE api_keys SET revoked_at = $2, revoked_by = $3
           WHERE workspace_id = $1 AND revoked_at IS NULL
           RETURNING id AS "id: ApiKeyId", name"#,
        workspace.uuid(),
        now,
        by,
    )
    .fetch_all(tx.conn())
    .await?;
    Ok(rows.into_iter().map(|row| (row.id, row.name)).collect())
}

/// Lowers the rate limits of keys that are above a new limit of their workspace.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn lower_rate_limits(
    tx: &mut AdminTx<'_>,
    workspace: WorkspaceId,
    max: u32,
) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE api_keys SET rate_limit_per_minute = $2
         WHERE workspace_id = $1 AND rate_limit_per_minute > $2",
        workspace.uuid(),
        stored_limit(Some(max)),
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}

struct ApiKeyRow {
    id: ApiKeyId,
    workspace_id: WorkspaceId,
    name: String,
    description: Option<String>,
    scope: Scope,
    display_start: String,
    display_end: String,
    allowed_ips: Vec<IpNet>,
    created_at: OffsetDateTime,
    created_by: Option<String>,
    last_used_at: Option<OffsetDateTime>,
    last_used_ip: Option<IpNet>,
    disabled_at: Option<OffsetDateTime>,
    revoked_at: Option<OffsetDateTime>,
    revoked_by: Option<String>,
    rate_limit_per_minute: Option<i32>,
    rotated_from: Option<ApiKeyId>,
    rotated_to: Option<ApiKeyId>,
}

impl From<ApiKeyRow> for ApiKey {
    fn from(row: ApiKeyRow) -> Self {
        Self {
            id: row.id,
            workspace_id: row.workspace_id,
            name: row.name,
            description: row.description,
            scope: row.scope,
            display_start: row.display_start,
            display_end: row.display_end,
            allowed_ips: row.allowed_ips,
            created_at: row.created_at,
            created_by: row.created_by,
            last_used_at: row.last_used_at,
            last_used_ip: row.last_used_ip.map(|net| net.addr()),
            disabled_at: row.disabled_at,
            revoked_at: row.revoked_at,
            revoked_by: row.revoked_by,
            rate_limit_per_minute: rate_limit(row.rate_limit_per_minute),
            rotated_from: row.rotated_from,
            rotated_to: row.rotated_to,
        }
    }
}

/// Lists up to `limit` keys that a user created, newest first. Leaves out revoked keys.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn list_by_creator(
    tx: &mut Tx,
    workspace: WorkspaceId,
    user: UserId,
    scopes: &[Scope],
    limit: i64,
) -> Result<ListPage<(ApiKeyId, String)>, StoreError> {
    let scopes: Vec<String> = scopes.iter().map(|scope| scope.as_str().to_owned()).collect();
    let rows = sqlx::query!(
        r#"SELECT id AS "id: ApiKeyId", name FROM api_keys
           WHERE workspace_id = $1 AND creator_user_id = $2 AND revoked_at IS NULL
             AND scope = ANY($3)
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

/// Locks a key until the transaction ends, so that concurrent changes to it take turns. False if
/// the key does not exist.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn lock(tx: &mut Tx, workspace: WorkspaceId, id: ApiKeyId) -> Result<bool, StoreError> {
    let query = sqlx::query_scalar!(
        r#"SELECT true AS "found!" FROM api_keys WHERE workspace_id = $1 AND id = $2
           FOR NO KEY UPDATE"#,
        workspace.uuid(),
        id.uuid(),
    );
    Ok(query.fetch_optional(tx.conn()).await?.is_some())
}

/// Locks an active key against changes until the transaction ends, and returns its allowed
/// networks. `None` if the key does not exist or is not active.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn lock_for_share(
    tx: &mut Tx,
    workspace: WorkspaceId,
    id: ApiKeyId,
) -> Result<Option<Vec<IpNet>>, StoreError> {
    let query = sqlx::query_scalar!(
        r#"SELECT allowed_ips AS "allowed_ips: Vec<IpNet>" FROM api_keys
           WHERE workspace_id = $1 AND id = $2 AND revoked_at IS NULL AND disabled_at IS NULL
           FOR SHARE"#,
        workspace.uuid(),
        id.uuid(),
    );
    Ok(query.fetch_optional(tx.conn()).await?)
}
