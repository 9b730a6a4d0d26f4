//! Descendants of an API key: what it made, directly or through keys that it made, and what these
//! keys added to what others made.
//!
//! A revoked key still leads to what it made. Changes to them require a transaction that has locked
//! the workspace with [`lock_workspace`](super::members::lock_workspace): then no descendant is
//! created meanwhile. They name the key and its descendants, which
//! [`list_key_and_descendants`](super::given_access::list_key_and_descendants) returns.

use time::OffsetDateTime;
use uuid::Uuid;

use super::{
    AdminTx, StoreError, Tx,
    added_access::{ActiveKeyRow, Source, list_added_by},
};
use crate::model::{
    id::{ApiKeyId, ClientId, Id as _, InvitationId, WorkspaceId},
    invitation::Invitation,
    key_descendants::{AccessSource, DescendantClient, DescendantKey, KeyDescendants},
    page::ListPage,
    scope::{Role, Scope},
};

/// Lists the descendants of a key that still give access: at most `limit` of each kind. Lists that
/// take too long are unknown.
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
    let source = Source::read(tx, AccessSource::Key(key)).await?;
    // First, so that no number of descendants hides it.
    let added = list_added_by(tx, workspace, source.as_ref(), now, limit).await?;
    let mut made = None;
    if let Some(source) = &source {
        tx.begin_report().await?;
        let report = list_made(tx, workspace, &source.keys, now, limit).await;
        made = tx.end_report(report).await?;
    }
    let (api_keys, oauth_clients, invitations) =
        made.unwrap_or_else(|| (ListPage::unknown(), ListPage::unknown(), ListPage::unknown()));
    Ok(KeyDescendants { api_keys, oauth_clients, invitations, added })
}

type Made = (ListPage<DescendantKey>, ListPage<DescendantClient>, ListPage<Invitation>);

async fn list_made(
    tx: &mut Tx,
    workspace: WorkspaceId,
    keys: &[Uuid],
    now: OffsetDateTime,
    limit: i64,
) -> Result<Made, StoreError> {
    Ok((
        // Without the key itself, which is the first.
        list_keys(tx, workspace, keys.get(1..).unwrap_or_default(), limit).await?,
        list_clients(tx, workspace, keys, limit).await?,
        list_invitations(tx, workspace, keys, now, limit).await?,
    ))
}

async fn list_keys(
    tx: &mut Tx,
    workspace: WorkspaceId,
    keys: &[Uuid],
    limit: i64,
) -> Result<ListPage<DescendantKey>, StoreError> {
    let rows = sqlx::query_as!(
        ActiveKeyRow,
        r#"SELECT id AS "id: ApiKeyId", name, scope AS "scope: Scope", created_at, created_by,
                  disabled_at
           FROM api_keys
           WHERE workspace_id = $1 AND revoked_at IS NULL
             AND id IN (SELECT unnest($2::uuid[]))
           ORDER BY id DESC LIMIT $3"#,
        workspace.uuid(),
        keys,
        limit + 1,
    )
    .fetch_all(tx.conn())
    .await?;
    Ok(ListPage::from_overfetch(rows.into_iter().map(DescendantKey::from).collect(), limit))
}

/// Lists the OAuth clients that keys made, newest first.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn list_clients(
    tx: &mut Tx,
    workspace: WorkspaceId,
    keys: &[Uuid],
    limit: i64,
) -> Result<ListPage<DescendantClient>, StoreError> {
    let clients = sqlx::query_as!(
        DescendantClient,
        r#"SELECT id AS "id: ClientId", name, scope AS "scope: Scope", created_at, created_by
           FROM oauth_clients
           WHERE workspace_id = $1
             AND creator_key_id IN (SELECT unnest($2::uuid[]))
           ORDER BY id DESC LIMIT $3"#,
        workspace.uuid(),
        keys,
        limit + 1,
    )
    .fetch_all(tx.conn())
    .await?;
    Ok(ListPage::from_overfetch(clients, limit))
}

async fn list_invitations(
    tx: &mut Tx,
    workspace: WorkspaceId,
    keys: &[Uuid],
    now: OffsetDateTime,
    limit: i64,
) -> Result<ListPage<Invitation>, StoreError> {
    let invitations = sqlx::query_as!(
        Invitation,
        r#"SELECT id AS "id: InvitationId", email, role AS "role: Role", invited_by, created_at,
                  expires_at
           FROM invitations
           WHERE workspace_id = $1 AND closed_at IS NULL AND expires_at > $3
             AND inviter_key_id IN (SELECT unnest($2::uuid[]))
           ORDER BY id DESC LIMIT $4"#,
        workspace.uuid(),
        keys,
        now,
        limit + 1,
    )
    .fetch_all(tx.conn())
    .await?;
    Ok(ListPage::from_overfetch(invitations, limit))
}

/// Returns true if an OAuth client has an active grant, in any of the transaction's rows, that a
/// cascade would end: one of a client that these keys made, or to which they added a secret or a
/// redirect URI.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn has_active_client(
    tx: &mut Tx,
    workspace: WorkspaceId,
    keys: &[Uuid],
    now: OffsetDateTime,
) -> Result<bool, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"SELECT EXISTS (
               SELECT FROM oauth_clients c, list_external_oauth_grants(c.id) AS active
               WHERE c.workspace_id = $1
                 AND (c.creator_key_id IN (SELECT unnest($2::uuid[]))
                      OR EXISTS (
                          SELECT FROM oauth_client_secrets s
                          WHERE s.client_id = c.id
                            AND (s.expires_at IS NULL OR s.expires_at > $3
                                 OR has_oauth_grant_between(c.id, s.created_at, s.expires_at, $3))
                            AND s.creator_key_id IN (SELECT unnest($2::uuid[])))
                      OR EXISTS (
                          SELECT FROM oauth_added_redirect_uris a
                          WHERE a.client_id = c.id
                            AND (a.removed_at IS NULL
                                 OR has_oauth_grant_between(c.id, a.added_at, a.removed_at, NULL))
                            AND a.creator_key_id IN (SELECT unnest($2::uuid[]))))
           ) AS "has_one!""#,
        workspace.uuid(),
        keys,
        now,
    )
    .fetch_one(tx.conn())
    .await?)
}

/// Revokes up to `limit` of these keys that are not revoked, the oldest first: a key is revoked
/// before those that it made. Returns their ids and names; another call continues.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn revoke_keys(
    tx: &mut AdminTx<'_>,
    workspace: WorkspaceId,
    keys: &[Uuid],
    now: OffsetDateTime,
    by: Option<&str>,
    limit: i64,
) -> Result<Vec<(ApiKeyId, String)>, StoreError> {
    let rows = sqlx::query!(
        r#"UPDATE api_keys SET revoked_at = $3, revoked_by = $4
           WHERE workspace_id = $1 AND id IN (
               SELECT k.id FROM api_keys k
               WHERE k.workspace_id = $1 AND k.revoked_at IS NULL
                 AND k.id IN (SELECT unnest($2::uuid[]))
               ORDER BY k.id LIMIT $5)
           RETURNING id AS "id: ApiKeyId", name"#,
        workspace.uuid(),
        keys,
        now,
        by,
        limit,
    )
    .fetch_all(tx.conn())
    .await?;
    Ok(rows.into_iter().map(|row| (row.id, row.name)).collect())
}

/// Closes the open invitations that keys sent. Returns their ids and addresses.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn close_invitations(
    tx: &mut AdminTx<'_>,
    workspace: WorkspaceId,
    keys: &[Uuid],
    now: OffsetDateTime,
) -> Result<Vec<(InvitationId, String)>, StoreError> {
    let rows = sqlx::query!(
        r#"UPDATE invitations SET closed_at = $3
           WHERE workspace_id = $1 AND closed_at IS NULL AND expires_at > $3
             AND inviter_key_id IN (SELECT unnest($2::uuid[]))
           RETURNING id AS "id: InvitationId", email"#,
        workspace.uuid(),
        keys,
        now,
    )
    .fetch_all(tx.conn())
    .await?;
    Ok(rows.into_iter().map(|row| (row.id, row.email)).collect())
}
