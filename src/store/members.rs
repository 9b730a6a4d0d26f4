//! Who belongs to which workspace.

use time::OffsetDateTime;

use super::{StoreError, Tx};
use crate::model::{
    email::Email,
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

/// Makes changes to the membership of a workspace take turns, until the transaction ends; false where
/// there is no such workspace.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn lock(tx: &mut Tx, workspace: WorkspaceId) -> Result<bool, StoreError> {
    let found = sqlx::query_scalar!(
        r#"SELECT true AS "found!" FROM workspaces WHERE id = $1 FOR NO KEY UPDATE"#,
        workspace.uuid(),
    );
    Ok(found.fetch_optional(tx.conn()).await?.is_some())
}

/// A member.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn get(
    tx: &mut Tx,
    workspace: WorkspaceId,
    user: UserId,
) -> Result<Option<Member>, StoreError> {
    Ok(sqlx::query_as!(
        Member,
        r#"SELECT m.user_id AS "user_id: UserId", u.email, u.full_name, m.role AS "role: Role",
                  m.joined_at
           FROM memberships m JOIN users u ON u.id = m.user_id
           WHERE m.workspace_id = $1 AND m.user_id = $2"#,
        workspace.uuid(),
        user.uuid(),
    )
    .fetch_optional(tx.conn())
    .await?)
}

/// Whether a workspace has an owner besides this person.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn has_another_owner(
    tx: &mut Tx,
    workspace: WorkspaceId,
    user: UserId,
) -> Result<bool, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT FROM memberships
                          WHERE workspace_id = $1 AND user_id <> $2 AND role = 'owner') AS "is!""#,
        workspace.uuid(),
        user.uuid(),
    )
    .fetch_one(tx.conn())
    .await?)
}

/// Whether the person with an address is a member.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn has_address(
    tx: &mut Tx,
    workspace: WorkspaceId,
    email: &Email,
) -> Result<bool, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT FROM memberships m JOIN users u ON u.id = m.user_id
                          WHERE m.workspace_id = $1 AND u.email_key = $2) AS "is!""#,
        workspace.uuid(),
        email.key(),
    )
    .fetch_one(tx.conn())
    .await?)
}

/// Gives a member another role.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn set_role(
    tx: &mut Tx,
    workspace: WorkspaceId,
    user: UserId,
    role: Role,
) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE memberships SET role = $3 WHERE workspace_id = $1 AND user_id = $2",
        workspace.uuid(),
        user.uuid(),
        role.as_str(),
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// Takes a member out, in a transaction of that person, who will sign in to another workspace.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn remove(tx: &mut Tx, workspace: WorkspaceId, user: UserId) -> Result<(), StoreError> {
    sqlx::query!(
        "DELETE FROM memberships WHERE workspace_id = $1 AND user_id = $2",
        workspace.uuid(),
        user.uuid(),
    )
    .execute(tx.conn())
    .await?;
    sqlx::query!(
        "UPDATE users SET last_workspace_id =
             (SELECT m.workspace_id FROM memberships m WHERE m.user_id = $2
              ORDER BY m.joined_at, m.workspace_id LIMIT 1)
         WHERE id = $2 AND last_workspace_id = $1",
        workspace.uuid(),
        user.uuid(),
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// The addresses of a workspace's owners, of the first twenty.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn owners(tx: &mut Tx, workspace: WorkspaceId) -> Result<Vec<String>, StoreError> {
    Ok(sqlx::query_scalar!(
        "SELECT u.email FROM memberships m JOIN users u ON u.id = m.user_id
         WHERE m.workspace_id = $1 AND m.role = 'owner' ORDER BY m.joined_at, u.id LIMIT 20",
        workspace.uuid(),
    )
    .fetch_all(tx.conn())
    .await?)
}
