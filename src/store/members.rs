//! Who belongs to which workspace.

use time::OffsetDateTime;

use super::{StoreError, Tx};
use crate::model::{
    id::{Id, UserId, WorkspaceId},
    page::{Items, Page},
    scope::Role,
    user::{Member, Membership},
};

/// Makes a person a member.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn insert(
    tx: &mut Tx,
    workspace: WorkspaceId,
    user: UserId,
    role: Role,
    joined_at: OffsetDateTime,
) -> Result<(), StoreError> {
    sqlx::query!(
        "INSERT INTO memberships (workspace_id, user_id, role, joined_at) VALUES ($1, $2, $3, $4)",
        workspace.uuid(),
        user.uuid(),
        role.as_str(),
        joined_at,
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// A person's role in a workspace, which stays as it is until the transaction ends.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn pin_role(
    tx: &mut Tx,
    workspace: WorkspaceId,
    user: UserId,
) -> Result<Option<Role>, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"SELECT role AS "role: Role" FROM memberships
           WHERE workspace_id = $1 AND user_id = $2 FOR SHARE"#,
        workspace.uuid(),
        user.uuid(),
    )
    .fetch_optional(tx.conn())
    .await?)
}

/// The workspaces of a person, the oldest membership first; in a transaction of that person.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn of_person(tx: &mut Tx, user: UserId) -> Result<Vec<Membership>, StoreError> {
    Ok(sqlx::query_as!(
        Membership,
        r#"SELECT workspace_id AS "workspace_id: WorkspaceId", role AS "role: Role"
           FROM memberships WHERE user_id = $1 ORDER BY joined_at, workspace_id"#,
        user.uuid(),
    )
    .fetch_all(tx.conn())
    .await?)
}

/// The members of a workspace, the newest account first.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn list(
    tx: &mut Tx,
    workspace: WorkspaceId,
    page: Page,
) -> Result<Items<Member>, StoreError> {
    let members = sqlx::query_as!(
        Member,
        r#"SELECT m.user_id AS "user_id: UserId", u.email, u.full_name, m.role AS "role: Role",
                  m.joined_at
           FROM memberships m JOIN users u ON u.id = m.user_id
           WHERE m.workspace_id = $1 AND ($2::uuid IS NULL OR m.user_id < $2)
           ORDER BY m.user_id DESC LIMIT $3 OFFSET $4"#,
        workspace.uuid(),
        page.before,
        page.limit + 1,
        page.offset,
    )
    .fetch_all(tx.conn())
    .await?;
    Ok(Items::from_excess(members, page.limit))
}

/// How many members a workspace has.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn count(tx: &mut Tx, workspace: WorkspaceId) -> Result<i64, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!" FROM memberships WHERE workspace_id = $1"#,
        workspace.uuid(),
    )
    .fetch_one(tx.conn())
    .await?)
}
