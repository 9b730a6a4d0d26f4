//! Descendants of an API key: what it made, directly or through keys that it made.
//!
//! A revoked key still leads to what it made. Changes to them require a transaction that has locked
//! the workspace with [`lock_workspace`](super::members::lock_workspace): then no descendant is
//! created meanwhile.

use time::OffsetDateTime;

use super::{AdminTx, StoreError, Tx};
use crate::model::{
    api_key::KeyStatus,
    id::{ApiKeyId, ClientId, Id, InvitationId, WorkspaceId},
    invitation::Invitation,
    key_descendants::{DescendantClient, DescendantKey, KeyDescendants},
    page::ListPage,
    scope::{Role, Scope},
};

/// Lists the descendants of a key that still give access: at most `limit` of each kind.
///
/// # Errors
/// [`StoreError`] if a query fails.
pub async fn list(
    tx: &mut Tx,
    workspace: WorkspaceId,
    key: ApiKeyId,
    now: OffsetDateTime,
    limit: i64,
) -> Result<KeyDescendants, StoreError> {
    Ok(KeyDescendants {
        api_keys: list_keys(tx, workspace, key, limit).await?,
        oauth_clients: list_clients(tx, workspace, key, limit).await?,
        invitations: list_invitations(tx, workspace, key, now, limit).await?,
    })
}

async fn list_keys(
    tx: &mut Tx,
    workspace: WorkspaceId,
    key: ApiKeyId,
    limit: i64,
) -> Result<ListPage<DescendantKey>, StoreError> {
    let rows = sqlx::query!(
        r#"SELECT id AS "id: ApiKeyId", name, scope AS "scope: Scope", created_at, created_by,
                  disabled_at
           FROM api_keys
           WHERE workspace_id = $1 AND revoked_at IS NULL
             AND id IN (SELECT list_key_descendants($2))
           ORDER BY id DESC LIMIT $3"#,
        workspace.uuid(),
        key.uuid(),
        limit + 1,
    )
    .fetch_all(tx.conn())
    .await?;
    let keys = rows.into_iter().map(|row| DescendantKey {
        id: row.id,
        name: row.name,
        scope: row.scope,
        status: KeyStatus::of_times(row.disabled_at, None),
        created_at: row.created_at,
        created_by: row.created_by,
    });
    Ok(ListPage::from_overfetch(keys.collect(), limit))
}

/// Lists the OAuth clients among the descendants of a key, newest first.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn list_clients(
    tx: &mut Tx,
    workspace: WorkspaceId,
    key: ApiKeyId,
    limit: i64,
) -> Result<ListPage<DescendantClient>, StoreError> {
    let clients = sqlx::query_as!(
        DescendantClient,
        r#"SELECT id AS "id: ClientId", name, scope AS "scope: Scope", created_at, created_by
           FROM oauth_clients
           WHERE workspace_id = $1
             AND (creator_key_id = $2 OR creator_key_id IN (SELECT list_key_descendants($2)))
           ORDER BY id DESC LIMIT $3"#,
        workspace.uuid(),
        key.uuid(),
        limit + 1,
    )
    .fetch_all(tx.conn())
    .await?;
    Ok(ListPage::from_overfetch(clients, limit))
}

async fn list_invitations(
    tx: &mut Tx,
    workspace: WorkspaceId,
    key: ApiKeyId,
    now: OffsetDateTime,
    limit: i64,
) -> Result<ListPage<Invitation>, StoreError> {
    let invitations = sqlx::query_as!(
        Invitation,
        r#"SELECT id AS "id: InvitationId", email, role AS "role: Role", invited_by, created_at,
                  expires_at
           FROM invitations
           WHERE workspace_id = $1 AND closed_at IS NULL AND expires_at > $3
             AND (inviter_key_id = $2 OR inviter_key_id IN (SELECT list_key_descendants($2)))
           ORDER BY id DESC LIMIT $4"#,
        workspace.uuid(),
        key.uuid(),
        now,
        limit + 1,
    )
    .fetch_all(tx.conn())
    .await?;
    Ok(ListPage::from_overfetch(invitations, limit))
}

/// Returns true if one of the OAuth clients among the descendants of a key has an active grant, in
/// any of the transaction's rows.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn has_active_client(
    tx: &mut Tx,
    workspace: WorkspaceId,
    key: ApiKeyId,
) -> Result<bool, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"SELECT EXISTS (
               SELECT FROM oauth_clients c, list_external_oauth_grants(c.id) AS active
               WHERE c.workspace_id = $1
                 AND (c.creator_key_id = $2 OR c.creator_key_id IN (SELECT list_key_descendants($2)))
           ) AS "has_one!""#,
        workspace.uuid(),
        key.uuid(),
    )
    .fetch_one(tx.conn())
    .await?)
}

/// Revokes up to `limit` keys among the descendants of a key, the oldest first: a key is revoked
/// before those that it made. Returns their ids and names; another call continues.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn revoke_keys(
    tx: &mut AdminTx<'_>,
    workspace: WorkspaceId,
    key: ApiKeyId,
    now: OffsetDateTime,
    by: Option<&str>,
    limit: i64,
) -> Result<Vec<(ApiKeyId, String)>, StoreError> {
    let rows = sqlx::query!(
        r#"UPDATE api_keys SET revoked_at = $3, revoked_by = $4
           WHERE workspace_id = $1 AND id IN (
               SELECT k.id FROM api_keys k
               WHERE k.workspace_id = $1 AND k.revoked_at IS NULL
                 AND k.id IN (SELECT list_key_descendants($2))
               ORDER BY k.id LIMIT $5)
           RETURNING id AS "id: ApiKeyId", name"#,
        workspace.uuid(),
        key.uuid(),
        now,
        by,
        limit,
    )
    .fetch_all(tx.conn())
    .await?;
    Ok(rows.into_iter().map(|row| (row.id, row.name)).collect())
}

/// Closes the open invitations that a key sent and, if `includes_descendants`, those of the keys
/// that it made. Returns their ids and addresses.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn close_invitations(
    tx: &mut AdminTx<'_>,
    workspace: WorkspaceId,
    key: ApiKeyId,
    includes_descendants: bool,
    now: OffsetDateTime,
) -> Result<Vec<(InvitationId, String)>, StoreError> {
    let rows = sqlx::query!(
        r#"UPDATE invitations SET closed_at = $4
           WHERE workspace_id = $1 AND closed_at IS NULL AND expires_at > $4
             AND (inviter_key_id = $2
                  OR ($3 AND inviter_key_id IN (SELECT list_key_descendants($2))))
           RETURNING id AS "id: InvitationId", email"#,
        workspace.uuid(),
        key.uuid(),
        includes_descendants,
        now,
    )
    .fetch_all(tx.conn())
    .await?;
    Ok(rows.into_iter().map(|row| (row.id, row.email)).collect())
}
