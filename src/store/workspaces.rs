//! Workspaces and their white-label settings.

use sqlx::types::Json;

use super::{StoreError, Tx};
use crate::model::{
    fields::Fields,
    id::{Id, WorkspaceId},
    workspace::Workspace,
};

/// Stores a new workspace, in a transaction of that workspace.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn insert(tx: &mut Tx, workspace: &Workspace) -> Result<(), StoreError> {
    sqlx::query!(
        "INSERT INTO workspaces (id, name, created_at) VALUES ($1, $2, $3)",
        workspace.id.uuid(),
        workspace.name,
        workspace.created_at,
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// A workspace.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn get(tx: &mut Tx, id: WorkspaceId) -> Result<Option<Workspace>, StoreError> {
    let row = sqlx::query!(
        r#"SELECT id AS "id: WorkspaceId", name, rate_limit_per_minute, created_at
           FROM workspaces WHERE id = $1"#,
        id.uuid(),
    )
    .fetch_optional(tx.conn())
    .await?;
    Ok(row.map(|row| Workspace {
        id: row.id,
        name: row.name,
        rate_limit_per_minute: row.rate_limit_per_minute.and_then(|limit| limit.try_into().ok()),
        created_at: row.created_at,
    }))
}

/// A workspace's white-label settings.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn branding(tx: &mut Tx, id: WorkspaceId) -> Result<Option<Fields>, StoreError> {
    let branding = sqlx::query_scalar!(
        r#"SELECT branding AS "branding: Json<Fields>" FROM workspaces WHERE id = $1"#,
        id.uuid(),
    )
    .fetch_optional(tx.conn())
    .await?;
    Ok(branding.map(|Json(branding)| branding))
}

/// Replaces a workspace's white-label settings.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn set_branding(
    tx: &mut Tx,
    id: WorkspaceId,
    branding: &Fields,
) -> Result<bool, StoreError> {
    let done = sqlx::query!(
        "UPDATE workspaces SET branding = $2 WHERE id = $1",
        id.uuid(),
        Json(branding) as _,
    )
    .execute(tx.conn())
    .await?;
    Ok(done.rows_affected() == 1)
}
