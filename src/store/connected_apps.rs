//! Connected apps: grants as people see them.

use time::OffsetDateTime;
use uuid::Uuid;

use super::{StoreError, Tx};
use crate::model::{
    id::{ClientId, GrantId, Id, UserId, WorkspaceId},
    oauth::grant::Grant,
    page::{Items, Page},
    scope::Scope,
};

/// What the apps of a person are called, in a transaction of that person.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn names_of_person(
    tx: &mut Tx,
    user: UserId,
    at_most: i64,
) -> Result<Vec<String>, StoreError> {
    Ok(sqlx::query_scalar!(
        "SELECT DISTINCT c.name FROM oauth_grants g JOIN oauth_clients c ON c.id = g.client_id
         WHERE g.user_id = $1 AND g.ended_at IS NULL AND g.begun_at IS NOT NULL ORDER BY 1 LIMIT $2",
        user.uuid(),
        at_most,
    )
    .fetch_all(tx.conn())
    .await?)
}

/// Whose grants are looked at.
#[derive(Debug, Clone, Copy)]
pub enum Whose {
    /// What a person granted, in whatever workspace; in a transaction of that person.
    Person(UserId),
    /// What was granted in a workspace, by whomever.
    Workspace(WorkspaceId),
}

impl Whose {
    fn columns(self) -> (Option<Uuid>, Option<Uuid>) {
        match self {
            Self::Person(user) => (Some(user.uuid()), None),
            Self::Workspace(workspace) => (None, Some(workspace.uuid())),
        }
    }
}

/// Grants that live, the newest first. Those that were not used since `used_since` do not any more.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn list(
    tx: &mut Tx,
    whose: Whose,
    used_since: OffsetDateTime,
    page: Page,
) -> Result<Items<Grant>, StoreError> {
    let (user, workspace) = whose.columns();
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
    Ok(Items::from_excess(grants, page.limit))
}

/// How many of them live.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn count(
    tx: &mut Tx,
    whose: Whose,
    used_since: OffsetDateTime,
) -> Result<i64, StoreError> {
    let (user, workspace) = whose.columns();
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

/// A grant, ended or not, as the transaction may see it.
///
/// # Errors
/// When PostgreSQL cannot be reached.
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
