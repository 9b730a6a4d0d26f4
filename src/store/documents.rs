//! The documents that clients store, such as agents and campaigns, as JSON text.
//!
//! A document's size is stored with it, so that [`list`] bounds a page without reading the bodies.
//! A trigger counts the documents of each workspace and their sizes.

use time::OffsetDateTime;
use uuid::Uuid;

use super::{Store, StoreError, Tx};
use crate::model::{
    document::{Document, DocumentKind, DocumentUsage},
    id::{AgentId, Id, WorkspaceId},
    page::{ListPage, PageRequest},
};

/// Inserts a new document.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn insert(
    tx: &mut Tx,
    workspace: WorkspaceId,
    kind: DocumentKind,
    document: &Document,
) -> Result<(), StoreError> {
    sqlx::query!(
        "INSERT INTO documents
             (id, workspace_id, kind, agent_id, body, body_bytes, created_at, updated_at)
         VALUES ($1, $2, $3, $4, $5::text::json, octet_length($5::text), $6, $7)",
        document.id,
        workspace.uuid(),
        kind.as_str(),
        document.agent_id.map(Id::uuid),
        &document.body,
        document.created_at,
        document.updated_at,
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// Returns a document.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn get(
    tx: &mut Tx,
    workspace: WorkspaceId,
    kind: DocumentKind,
    id: Uuid,
) -> Result<Option<Document>, StoreError> {
    let row = sqlx::query_as!(
        DocumentRow,
        r#"SELECT id, agent_id AS "agent_id: AgentId", body::text AS "body!",
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

/// Returns a document and locks it until the transaction ends.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn lock(
    tx: &mut Tx,
    workspace: WorkspaceId,
    kind: DocumentKind,
    id: Uuid,
) -> Result<Option<Document>, StoreError> {
    let row = sqlx::query_as!(
        DocumentRow,
        r#"SELECT id, agent_id AS "agent_id: AgentId", body::text AS "body!",
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

/// Locks an agent against deletion until the transaction ends. False if it does not exist.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn lock_agent_for_share(
    tx: &mut Tx,
    workspace: WorkspaceId,
    id: AgentId,
) -> Result<bool, StoreError> {
    let row = sqlx::query!(
        "SELECT id FROM documents WHERE workspace_id = $1 AND kind = 'agent' AND id = $2
         FOR KEY SHARE",
        workspace.uuid(),
        id.uuid(),
    )
    .fetch_optional(tx.conn())
    .await?;
    Ok(row.is_some())
}

/// Lists the documents of a kind, newest first, and of one agent if `agent` is set. The page ends
/// before its documents exceed `max_bytes` in total, but it contains at least one.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn list(
    tx: &mut Tx,
    workspace: WorkspaceId,
    kind: DocumentKind,
    agent: Option<AgentId>,
    page: PageRequest,
    max_bytes: i64,
) -> Result<ListPage<Document>, StoreError> {
    // Adds up the stored sizes first, so that only the bodies of this page are read.
    let rows = sqlx::query!(
        r#"SELECT d.id, d.agent_id AS "agent_id: AgentId", d.body::text AS "body!", d.created_at,
                  d.updated_at, page.available AS "available!"
           FROM (
               SELECT id, count(*) OVER () AS available, row_number() OVER newest AS place,
                      sum(body_bytes) OVER newest AS bytes
               FROM (
                   SELECT id, body_bytes FROM documents
                   WHERE workspace_id = $1 AND kind = $2
                     AND ($3::uuid IS NULL OR agent_id = $3)
                     AND ($4::uuid IS NULL OR id < $4)
                   ORDER BY id DESC LIMIT $5 OFFSET $6
               ) AS candidates
               WINDOW newest AS (ORDER BY id DESC)
           ) AS page
           JOIN documents d ON d.id = page.id AND d.workspace_id = $1
           WHERE page.place = 1 OR (page.bytes <= $7 AND page.place < $5)
           ORDER BY d.id DESC"#,
        workspace.uuid(),
        kind.as_str(),
        agent.map(Id::uuid),
        page.before,
        page.limit + 1,
        page.offset,
        max_bytes,
    )
    .fetch_all(tx.conn())
    .await?;
    let available = rows.first().map_or(0, |row| row.available);
    let items: Vec<_> = rows
        .into_iter()
        .map(|row| Document {
            id: row.id,
            agent_id: row.agent_id,
            body: row.body,
            created_at: row.created_at,
            updated_at: row.updated_at,
        })
        .collect();
    let more = available > i64::try_from(items.len()).unwrap_or(i64::MAX);
    Ok(ListPage { items, has_more: more, searched_to: None })
}

/// Counts the documents of a kind, and of one agent if `agent` is set.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn count(
    tx: &mut Tx,
    workspace: WorkspaceId,
    kind: DocumentKind,
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

/// Replaces the body and the agent of a document. False if the document does not exist.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn update(
    tx: &mut Tx,
    workspace: WorkspaceId,
    kind: DocumentKind,
    document: &Document,
) -> Result<bool, StoreError> {
    let result = sqlx::query!(
        "UPDATE documents
         SET body = $4::text::json, body_bytes = octet_length($4::text), agent_id = $5,
             updated_at = $6
         WHERE workspace_id = $1 AND kind = $2 AND id = $3",
        workspace.uuid(),
        kind.as_str(),
        document.id,
        &document.body,
        document.agent_id.map(Id::uuid),
        document.updated_at,
    )
    .execute(tx.conn())
    .await?;
    Ok(result.rows_affected() == 1)
}

/// Deletes a document. False if it does not exist.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn delete(
    tx: &mut Tx,
    workspace: WorkspaceId,
    kind: DocumentKind,
    id: Uuid,
) -> Result<bool, StoreError> {
    let result = sqlx::query!(
        "DELETE FROM documents WHERE workspace_id = $1 AND kind = $2 AND id = $3",
        workspace.uuid(),
        kind.as_str(),
        id,
    )
    .execute(tx.conn())
    .await?;
    Ok(result.rows_affected() == 1)
}

/// Returns the number and the size of all documents of a workspace. After a change in the same
/// transaction they stay the same until its commit: other changes wait for it.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn usage(tx: &mut Tx, workspace: WorkspaceId) -> Result<DocumentUsage, StoreError> {
    let usage = sqlx::query_as!(
        DocumentUsage,
        "SELECT documents, bytes FROM document_usage WHERE workspace_id = $1",
        workspace.uuid(),
    )
    .fetch_optional(tx.conn())
    .await?;
    Ok(usage.unwrap_or_default())
}

impl Store {
    /// Deletes the documents of deleted workspaces.
    ///
    /// # Errors
    /// [`StoreError`] if a query fails.
    pub async fn prune_documents(&self) -> Result<(), StoreError> {
        let pool = self.pools.background();
        // Each call is a transaction: none holds its locks for long.
        while sqlx::query_scalar!(r#"SELECT prune_documents() AS "has_more!""#)
            .fetch_one(&pool)
            .await?
        {}
        Ok(())
    }
}

struct DocumentRow {
    id: Uuid,
    agent_id: Option<AgentId>,
    body: String,
    created_at: OffsetDateTime,
    updated_at: OffsetDateTime,
}

impl From<DocumentRow> for Document {
    fn from(row: DocumentRow) -> Self {
        Self {
            id: row.id,
            agent_id: row.agent_id,
            body: row.body,
            created_at: row.created_at,
            updated_at: row.updated_at,
        }
    }
}
