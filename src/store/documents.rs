//! Stored documents.

use serde_json::{Map, Value};
use sqlx::types::Json;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{StoreError, Tx};
use crate::model::{
    document::{Document, Kind},
    id::{AgentId, Id, WorkspaceId},
    page::{Items, Page},
};

/// Stores a new document.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn insert(
    tx: &mut Tx,
    workspace: WorkspaceId,
    kind: Kind,
    document: &Document,
) -> Result<(), StoreError> {
    sqlx::query!(
        "INSERT INTO documents (id, workspace_id, kind, agent_id, body, created_at, updated_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
        document.id,
        workspace.uuid(),
        kind.as_str(),
        document.agent_id.map(Id::uuid),
        Json(&document.body) as _,
        document.created_at,
        document.updated_at,
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// A document.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn get(
    tx: &mut Tx,
    workspace: WorkspaceId,
    kind: Kind,
    id: Uuid,
) -> Result<Option<Document>, StoreError> {
    let row = sqlx::query_as!(
        DocumentRow,
        r#"SELECT id, agent_id AS "agent_id: AgentId", body AS "body: Json<Map<String, Value>>",
                  created_at, updated_at
           FROM documents WHERE workspace_id = $1 AND kind = $2 AND id = $3"#,
        workspace.uuid(),
        kind.as_str(),
        id,
    )
    .fetch_optional(tx.conn())
    .await?;
    Ok(row.map(Document::from))
}

/// A document that stays as it is until the transaction ends.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn lock(
    tx: &mut Tx,
    workspace: WorkspaceId,
    kind: Kind,
    id: Uuid,
) -> Result<Option<Document>, StoreError> {
    let row = sqlx::query_as!(
        DocumentRow,
        r#"SELECT id, agent_id AS "agent_id: AgentId", body AS "body: Json<Map<String, Value>>",
                  created_at, updated_at
           FROM documents WHERE workspace_id = $1 AND kind = $2 AND id = $3 FOR UPDATE"#,
        workspace.uuid(),
        kind.as_str(),
        id,
    )
    .fetch_optional(tx.conn())
    .await?;
    Ok(row.map(Document::from))
}

/// Whether an agent exists; it cannot be deleted until the transaction ends.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn pin_agent(
    tx: &mut Tx,
    workspace: WorkspaceId,
    id: AgentId,
) -> Result<bool, StoreError> {
    let found = sqlx::query!(
        "SELECT id FROM documents WHERE workspace_id = $1 AND kind = 'agent' AND id = $2
         FOR KEY SHARE",
        workspace.uuid(),
        id.uuid(),
    )
    .fetch_optional(tx.conn())
    .await?;
    Ok(found.is_some())
}

/// The documents of a kind, newest first; of one agent where asked for.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn list(
    tx: &mut Tx,
    workspace: WorkspaceId,
    kind: Kind,
    agent: Option<AgentId>,
    page: Page,
) -> Result<Items<Document>, StoreError> {
    let rows = sqlx::query_as!(
        DocumentRow,
        r#"SELECT id, agent_id AS "agent_id: AgentId", body AS "body: Json<Map<String, Value>>",
                  created_at, updated_at
           FROM documents
           WHERE workspace_id = $1 AND kind = $2
             AND ($3::uuid IS NULL OR agent_id = $3)
             AND ($4::uuid IS NULL OR id < $4)
           ORDER BY id DESC LIMIT $5 OFFSET $6"#,
        workspace.uuid(),
        kind.as_str(),
        agent.map(Id::uuid),
        page.before,
        page.limit + 1,
        page.offset,
    )
    .fetch_all(tx.conn())
    .await?;
    Ok(Items::from_excess(rows.into_iter().map(Document::from).collect(), page.limit))
}

/// How many documents of a kind there are; of one agent where asked for.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn count(
    tx: &mut Tx,
    workspace: WorkspaceId,
    kind: Kind,
    agent: Option<AgentId>,
) -> Result<i64, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!" FROM documents
           WHERE workspace_id = $1 AND kind = $2 AND ($3::uuid IS NULL OR agent_id = $3)"#,
        workspace.uuid(),
        kind.as_str(),
        agent.map(Id::uuid),
    )
    .fetch_one(tx.conn())
    .await?)
}

/// Replaces a document's body; false if there is no such document.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn update(
    tx: &mut Tx,
    workspace: WorkspaceId,
    kind: Kind,
    document: &Document,
) -> Result<bool, StoreError> {
    let done = sqlx::query!(
        "UPDATE documents SET body = $4, agent_id = $5, updated_at = $6
         WHERE workspace_id = $1 AND kind = $2 AND id = $3",
        workspace.uuid(),
        kind.as_str(),
        document.id,
        Json(&document.body) as _,
        document.agent_id.map(Id::uuid),
        document.updated_at,
    )
    .execute(tx.conn())
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Erases a document; false if there is no such document.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn delete(
    tx: &mut Tx,
    workspace: WorkspaceId,
    kind: Kind,
    id: Uuid,
) -> Result<bool, StoreError> {
    let done = sqlx::query!(
        "DELETE FROM documents WHERE workspace_id = $1 AND kind = $2 AND id = $3",
        workspace.uuid(),
        kind.as_str(),
        id,
    )
    .execute(tx.conn())
    .await?;
    Ok(done.rows_affected() == 1)
}

struct DocumentRow {
    id: Uuid,
    agent_id: Option<AgentId>,
    body: Json<Map<String, Value>>,
    created_at: OffsetDateTime,
    updated_at: OffsetDateTime,
}

impl From<DocumentRow> for Document {
    fn from(row: DocumentRow) -> Self {
        Self {
            id: row.id,
            agent_id: row.agent_id,
            body: row.body.0,
            created_at: row.created_at,
            updated_at: row.updated_at,
        }
    }
}
