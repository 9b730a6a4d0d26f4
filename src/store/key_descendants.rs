//! Descendants of an API key: what it made, directly or through keys that it made, and what these
//! keys added to what others made.
//!
//! A revoked key still leads to what it made. Changes to them require a transaction that has locked
//! the workspace with [`lock_workspace`](super::members::lock_workspace): then no descendant is
//! created meanwhile.

use time::OffsetDateTime;

use super::{AdminTx, StoreError, Tx};
use crate::model::{
    api_key::KeyStatus,
    id::{ApiKeyId, ClientId, Id, InvitationId, UserId, WorkspaceId},
    invitation::Invitation,
    key_descendants::{
        AccessSource, AddedAccess, AddedRedirectUri, AddedSecret, DescendantClient, DescendantKey,
        KeyDescendants,
    },
    page::ListPage,
    scope::{Role, Scope},
    user::Member,
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
        added: list_added_access(tx, workspace, AccessSource::Key(key), now, limit).await?,
    })
}

/// Lists the access that a source gave to what others made: at most `limit` of each kind.
///
/// # Errors
/// [`StoreError`] if a query fails.
pub async fn list_added_access(
    tx: &mut Tx,
    workspace: WorkspaceId,
    source: AccessSource,
    now: OffsetDateTime,
    limit: i64,
) -> Result<AddedAccess, StoreError> {
    Ok(AddedAccess {
        client_secrets: list_added_secrets(tx, workspace, source, now, limit).await?,
        redirect_uris: list_added_uris(tx, workspace, source, limit).await?,
        members: list_set_roles(tx, workspace, source, limit).await?,
        widened_keys: list_widened_keys(tx, workspace, source, limit).await?,
    })
}

async fn list_added_secrets(
    tx: &mut Tx,
    workspace: WorkspaceId,
    source: AccessSource,
    now: OffsetDateTime,
    limit: i64,
) -> Result<ListPage<AddedSecret>, StoreError> {
    let secrets = sqlx::query_as!(
        AddedSecret,
        r#"SELECT c.id AS "client_id: ClientId", c.name AS client_name, s.created_at, s.created_by
           FROM oauth_client_secrets s JOIN oauth_clients c ON c.id = s.client_id
           WHERE c.workspace_id = $1
             AND (s.expires_at IS NULL OR s.expires_at > $4
                  OR has_oauth_grant_between(c.id, s.created_at, s.expires_at, $4))
             AND (s.creator_key_id IN (SELECT list_key_and_descendants($2))
                  OR s.creator_user_id = $3)
             AND (c.creator_key_id IN (SELECT list_key_and_descendants($2))
                  OR c.creator_user_id = $3) IS NOT TRUE
           ORDER BY s.created_at DESC, s.id DESC LIMIT $5"#,
        workspace.uuid(),
        source.key().map(Id::uuid),
        source.user().map(Id::uuid),
        now,
        limit + 1,
    )
    .fetch_all(tx.conn())
    .await?;
    Ok(ListPage::from_overfetch(secrets, limit))
}

async fn list_added_uris(
    tx: &mut Tx,
    workspace: WorkspaceId,
    source: AccessSource,
    limit: i64,
) -> Result<ListPage<AddedRedirectUri>, StoreError> {
    let uris = sqlx::query_as!(
        AddedRedirectUri,
        r#"SELECT c.id AS "client_id: ClientId", c.name AS client_name, a.uri, a.added_at,
                  a.removed_at, a.added_by
           FROM oauth_added_redirect_uris a JOIN oauth_clients c ON c.id = a.client_id
           WHERE c.workspace_id = $1
             AND (a.removed_at IS NULL OR has_oauth_grant_between(c.id, a.added_at, a.removed_at, NULL))
             AND (a.creator_key_id IN (SELECT list_key_and_descendants($2))
                  OR a.creator_user_id = $3)
             AND (c.creator_key_id IN (SELECT list_key_and_descendants($2))
                  OR c.creator_user_id = $3) IS NOT TRUE
           ORDER BY a.added_at DESC, c.id, a.uri LIMIT $4"#,
        workspace.uuid(),
        source.key().map(Id::uuid),
        source.user().map(Id::uuid),
        limit + 1,
    )
    .fetch_all(tx.conn())
    .await?;
    Ok(ListPage::from_overfetch(uris, limit))
}

/// Lists the members that the source invited, or whose role it set, also through members and keys
/// that it gave access to. Of a user, only administrators: others cannot give access.
async fn list_set_roles(
    tx: &mut Tx,
    workspace: WorkspaceId,
    source: AccessSource,
    limit: i64,
) -> Result<ListPage<Member>, StoreError> {
    let members = sqlx::query_as!(
        Member,
        r#"SELECT m.user_id AS "user_id: UserId", u.email, u.full_name, m.role AS "role: Role",
                  m.joined_at
           FROM memberships m JOIN users u ON u.id = m.user_id
           WHERE m.workspace_id = $1
             AND m.user_id IN (SELECT list_given_access($2, $3))
             AND ($3::uuid IS NULL OR m.user_id <> $3 AND m.role IN ('owner', 'admin'))
           ORDER BY m.joined_at DESC, m.user_id LIMIT $4"#,
        workspace.uuid(),
        source.key().map(Id::uuid),
        source.user().map(Id::uuid),
        limit + 1,
    )
    .fetch_all(tx.conn())
    .await?;
    Ok(ListPage::from_overfetch(members, limit))
}

/// A key that is not revoked.
struct ActiveKeyRow {
    id: ApiKeyId,
    name: String,
    scope: Scope,
    created_at: OffsetDateTime,
    created_by: Option<String>,
    disabled_at: Option<OffsetDateTime>,
}

impl From<ActiveKeyRow> for DescendantKey {
    fn from(row: ActiveKeyRow) -> Self {
        Self {
            id: row.id,
            name: row.name,
            scope: row.scope,
            status: KeyStatus::of_times(row.disabled_at, None),
            created_at: row.created_at,
            created_by: row.created_by,
        }
    }
}

async fn list_widened_keys(
    tx: &mut Tx,
    workspace: WorkspaceId,
    source: AccessSource,
    limit: i64,
) -> Result<ListPage<DescendantKey>, StoreError> {
    let rows = sqlx::query_as!(
        ActiveKeyRow,
        r#"SELECT id AS "id: ApiKeyId", name, scope AS "scope: Scope", created_at, created_by,
                  disabled_at
           FROM api_keys
           WHERE workspace_id = $1 AND revoked_at IS NULL AND id IS DISTINCT FROM $2
             AND id IN (SELECT list_given_access($2, $3))
             AND (creator_key_id IN (SELECT list_key_and_descendants($2))
                  OR creator_user_id = $3) IS NOT TRUE
           ORDER BY id DESC LIMIT $4"#,
        workspace.uuid(),
        source.key().map(Id::uuid),
        source.user().map(Id::uuid),
        limit + 1,
    )
    .fetch_all(tx.conn())
    .await?;
    Ok(ListPage::from_overfetch(rows.into_iter().map(DescendantKey::from).collect(), limit))
}

async fn list_keys(
    tx: &mut Tx,
    workspace: WorkspaceId,
    key: ApiKeyId,
    limit: i64,
) -> Result<ListPage<DescendantKey>, StoreError> {
    let rows = sqlx::query_as!(
        ActiveKeyRow,
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
    Ok(ListPage::from_overfetch(rows.into_iter().map(DescendantKey::from).collect(), limit))
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
             AND creator_key_id IN (SELECT list_key_and_descendants($2))
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
             AND inviter_key_id IN (SELECT list_key_and_descendants($2))
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

/// Returns true if an OAuth client has an active grant, in any of the transaction's rows, that a
/// cascade would end: one of a client among the descendants of a key, or to which these keys added
/// a secret or a redirect URI.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn has_active_client(
    tx: &mut Tx,
    workspace: WorkspaceId,
    key: ApiKeyId,
    now: OffsetDateTime,
) -> Result<bool, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"SELECT EXISTS (
               SELECT FROM oauth_clients c, list_external_oauth_grants(c.id) AS active
               WHERE c.workspace_id = $1
                 AND (c.creator_key_id IN (SELECT list_key_and_descendants($2))
                      OR EXISTS (
                          SELECT FROM oauth_client_secrets s
                          WHERE s.client_id = c.id
                            AND (s.expires_at IS NULL OR s.expires_at > $3
                                 OR has_oauth_grant_between(c.id, s.created_at, s.expires_at, $3))
                            AND s.creator_key_id IN (SELECT list_key_and_descendants($2)))
                      OR EXISTS (
                          SELECT FROM oauth_added_redirect_uris a
                          WHERE a.client_id = c.id
                            AND (a.removed_at IS NULL
                                 OR has_oauth_grant_between(c.id, a.added_at, a.removed_at, NULL))
                            AND a.creator_key_id IN (SELECT list_key_and_descendants($2))))
           ) AS "has_one!""#,
        workspace.uuid(),
        key.uuid(),
        now,
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
