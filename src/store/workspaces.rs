//! Workspaces and their white-label settings.

use sqlx::types::Json;

use super::{AdminTx, StoreError, Tx};
use crate::model::{
    brand::Brand,
    fields::Fields,
    id::{Id, UserId, WorkspaceId},
    page::{ListPage, PageRequest},
    scope::Role,
    workspace::{Workspace, WorkspaceChange, WorkspaceWithRole},
};

/// Creates a workspace that the user of `tx` owns. `tx` must belong to that workspace.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn create(tx: &mut Tx, workspace: &Workspace) -> Result<(), StoreError> {
    sqlx::query!(
        r#"SELECT create_workspace($1, $2, $3) AS "done""#,
        workspace.id.uuid(),
        workspace.name,
        workspace.created_at,
    )
    .fetch_one(tx.conn())
    .await?;
    Ok(())
}

/// Returns a workspace.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn get(tx: &mut Tx, id: WorkspaceId) -> Result<Option<Workspace>, StoreError> {
    let row = sqlx::query!(
        r#"SELECT id AS "id: WorkspaceId", name, rate_limit_per_minute, require_second_factor,
                  created_at
           FROM workspaces WHERE id = $1"#,
        id.uuid(),
    )
    .fetch_optional(tx.conn())
    .await?;
    Ok(row.map(|row| Workspace {
        id: row.id,
        name: row.name,
        rate_limit_per_minute: row.rate_limit_per_minute.and_then(|limit| limit.try_into().ok()),
        require_second_factor: row.require_second_factor,
        created_at: row.created_at,
    }))
}

/// Returns a workspace's white-label settings.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn branding(tx: &mut Tx, id: WorkspaceId) -> Result<Option<Fields>, StoreError> {
    let branding = sqlx::query_scalar!(
        r#"SELECT branding AS "branding: Json<Fields>" FROM workspaces WHERE id = $1"#,
        id.uuid(),
    )
    .fetch_optional(tx.conn())
    .await?;
    Ok(branding.map(|Json(branding)| branding))
}

/// Returns a workspace's name and brand.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn appearance(
    tx: &mut Tx,
    id: WorkspaceId,
) -> Result<Option<(String, Brand)>, StoreError> {
    let row = sqlx::query!(
        r#"SELECT name, branding AS "branding: Json<Fields>" FROM workspaces WHERE id = $1"#,
        id.uuid(),
    )
    .fetch_optional(tx.conn())
    .await?;
    Ok(row.map(|row| (row.name, Brand::from_settings(&row.branding))))
}

/// Replaces a workspace's white-label settings. False if the workspace does not exist.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn set_branding(
    tx: &mut AdminTx<'_>,
    id: WorkspaceId,
    branding: &Fields,
) -> Result<bool, StoreError> {
    let result = sqlx::query!(
        "UPDATE workspaces SET branding = $2 WHERE id = $1",
        id.uuid(),
        Json(branding) as _,
    )
    .execute(tx.conn())
    .await?;
    Ok(result.rows_affected() == 1)
}

/// Changes a workspace. False if it does not exist.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn update(
    tx: &mut AdminTx<'_>,
    id: WorkspaceId,
    change: &WorkspaceChange,
) -> Result<bool, StoreError> {
    let result = sqlx::query!(
        "UPDATE workspaces SET name = coalesce($2, name),
                               require_second_factor = coalesce($3, require_second_factor)
         WHERE id = $1",
        id.uuid(),
        change.name,
        change.require_second_factor,
    )
    .execute(tx.conn())
    .await?;
    Ok(result.rows_affected() == 1)
}

/// Sets the rate limit of a workspace; `None` restores the configured default. False if the
/// workspace does not exist.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn set_rate_limit(
    tx: &mut AdminTx<'_>,
    id: WorkspaceId,
    per_minute: Option<u32>,
) -> Result<bool, StoreError> {
    let result = sqlx::query!(
        "UPDATE workspaces SET rate_limit_per_minute = $2 WHERE id = $1",
        id.uuid(),
        per_minute.map(|limit| i32::try_from(limit).unwrap_or(i32::MAX)),
    )
    .execute(tx.conn())
    .await?;
    Ok(result.rows_affected() == 1)
}

/// Deletes the transaction's workspace with all its data except the audit log. False if it does not
/// exist.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn delete(tx: &mut AdminTx<'_>) -> Result<bool, StoreError> {
    Ok(sqlx::query_scalar!(r#"SELECT delete_current_workspace() AS "deleted!""#)
        .fetch_one(tx.conn())
        .await?)
}

/// Lists the workspaces of a user, newest first. `tx` must belong to that user.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn list_by_user(
    tx: &mut Tx,
    user: UserId,
    page: PageRequest,
) -> Result<ListPage<WorkspaceWithRole>, StoreError> {
    let rows = sqlx::query!(
        r#"SELECT w.id AS "id: WorkspaceId", w.name, w.rate_limit_per_minute,
                  w.require_second_factor, w.created_at,
                  m.role AS "role: Role"
           FROM memberships m JOIN workspaces w ON w.id = m.workspace_id
           WHERE m.user_id = $1 AND ($2::uuid IS NULL OR w.id < $2)
           ORDER BY w.id DESC LIMIT $3 OFFSET $4"#,
        user.uuid(),
        page.before,
        page.limit + 1,
        page.offset,
    )
    .fetch_all(tx.conn())
    .await?;
    let workspaces = rows.into_iter().map(|row| WorkspaceWithRole {
        workspace: Workspace {
            id: row.id,
            name: row.name,
            rate_limit_per_minute: row
                .rate_limit_per_minute
                .and_then(|limit| limit.try_into().ok()),
            require_second_factor: row.require_second_factor,
            created_at: row.created_at,
        },
        role: row.role,
    });
    Ok(ListPage::from_overfetch(workspaces.collect(), page.limit))
}

/// Counts the workspaces of a user. `tx` must belong to that user.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn count_by_user(tx: &mut Tx, user: UserId) -> Result<i64, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!" FROM memberships WHERE user_id = $1"#,
        user.uuid(),
    )
    .fetch_one(tx.conn())
    .await?)
}
