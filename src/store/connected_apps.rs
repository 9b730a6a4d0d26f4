//! Connected apps: OAuth grants as users see them.
//!
//! `oauth_grants` changes grants; this module lists them, joined with their client and workspace.

use time::OffsetDateTime;
use uuid::Uuid;

use super::{StoreError, Tx};
use crate::model::{
    id::{ClientId, GrantId, Id, UserId, WorkspaceId},
    oauth::grant::Grant,
    page::{ListPage, PageRequest},
    scope::Scope,
};

/// Returns up to `limit` names of a user's connected apps, in alphabetical order. `tx` must belong
/// to that user.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn list_names_by_user(
    tx: &mut Tx,
    user: UserId,
    limit: i64,
) -> Result<Vec<String>, StoreError> {
    Ok(sqlx::query_scalar!(
        "SELECT DISTINCT c.name FROM oauth_grants g JOIN oauth_clients c ON c.id = g.client_id
         WHERE g.user_id = $1 AND g.ended_at IS NULL AND g.redeemed_at IS NOT NULL ORDER BY 1 LIMIT $2",
        user.uuid(),
        limit,
    )
    .fetch_all(tx.conn())
    .await?)
}

/// The owner of the grants in a list.
#[derive(Debug, Clone, Copy)]
pub enum GrantOwner {
    /// Grants that this user gave, in all workspaces. `tx` must belong to that user.
    User(UserId),
    /// All grants of this workspace.
    Workspace(WorkspaceId),
}

impl GrantOwner {
    fn columns(self) -> (Option<Uuid>, Option<Uuid>) {
        match self {
            Self::User(user) => (Some(user.uuid()), None),
            Self::Workspace(workspace) => (None, Some(workspace.uuid())),
        }
    }
}

/// Lists active grants, newest first. A grant without use since `used_since` has expired and is
/// left out.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn list(
    tx: &mut Tx,
    owner: GrantOwner,
    used_since: OffsetDateTime,
    page: PageRequest,
) -> Result<ListPage<Grant>, StoreError> {
    let (user, workspace) = owner.columns();
    let grants = sqlx::query_as!(
        Grant,
        r#"SELECT g.id AS "id: GrantId", g.client_id AS "client_id: ClientId",
                  c.name AS client_name, g.workspace_id AS "workspace_id: WorkspaceId",
                  w.name AS workspace_name, g.user_id AS "user_id: UserId", g.scope AS "scope: Scope", g.created_at,
                  g.last_used_at
           FROM oauth_grants g JOIN oauth_clients c ON c.id = g.client_id
           JOIN workspaces w ON w.id = g.workspace_id
           WHERE ($1::uuid IS NULL OR g.user_id = $1) AND ($2::uuid IS NULL OR g.workspace_id = $2)
             AND g.ended_at IS NULL AND g.last_used_at > $3
             AND ($4::uuid IS NULL OR g.id < $4)
           ORDER BY g.id DESC LIMIT $5 OFFSET $6"#,
        user,
        workspace,
        used_since,
        page.before,
        page.limit + 1,
        page.offset,
    )
    .fetch_all(tx.conn())
    .await?;
    Ok(ListPage::from_overfetch(grants, page.limit))
}

/// Counts active grants, as [`list`] does.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn count(
    tx: &mut Tx,
    owner: GrantOwner,
    used_since: OffsetDateTime,
) -> Result<i64, StoreError> {
    let (user, workspace) = owner.columns();
    Ok(sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!" FROM oauth_grants
           WHERE ($1::uuid IS NULL OR user_id = $1) AND ($2::uuid IS NULL OR workspace_id = $2)
             AND ended_at IS NULL AND last_used_at > $3"#,
        user,
        workspace,
        used_since,
    )
    .fetch_one(tx.conn())
    .await?)
}

/// Returns a grant that the transaction may see, active or ended.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn get(tx: &mut Tx, id: GrantId) -> Result<Option<Grant>, StoreError> {
    Ok(sqlx::query_as!(
        Grant,
        r#"SELECT g.id AS "id: GrantId", g.client_id AS "client_id: ClientId",
                  c.name AS client_name, g.workspace_id AS "workspace_id: WorkspaceId",
                  w.name AS workspace_name, g.user_id AS "user_id: UserId", g.scope AS "scope: Scope", g.created_at,
                  g.last_used_at
           FROM oauth_grants g JOIN oauth_clients c ON c.id = g.client_id
           JOIN workspaces w ON w.id = g.workspace_id
           WHERE g.id = $1"#,
        id.uuid(),
    )
    .fetch_optional(tx.conn())
    .await?)
}
