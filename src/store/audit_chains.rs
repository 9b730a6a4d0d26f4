//! Read access to the hash chains of the audit log.
//!
//! A chain is stored as segments, one for each sealed batch. The sealer appends them.

use std::collections::HashMap;

use ipnet::IpNet;
use serde_json::Value;
use sqlx::types::Json;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Store, StoreError, Tx, audit::EventRow};
use crate::model::{
    audit::{ChainHash, ChainSegment, Event},
    id::{EventId, Id, RequestId, WorkspaceId},
};

/// The end of a chain.
#[derive(Debug, Clone, Copy)]
pub struct ChainHead {
    /// The sequence number of the last event; 0 if the chain is empty.
    pub sequence: i64,
    /// The chain's hash after that event.
    pub hash: ChainHash,
    /// The time at which that event was sealed.
    pub sealed_at: OffsetDateTime,
}

/// Returns the end of a workspace's chain. `None` if nothing is sealed yet.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn get_head(
    tx: &mut Tx,
    workspace: WorkspaceId,
) -> Result<Option<ChainHead>, StoreError> {
    let row = sqlx::query!(
        "SELECT sequence, hash, sealed_at FROM audit_chain_heads WHERE workspace_id = $1",
        workspace.uuid(),
    )
    .fetch_optional(tx.conn())
    .await?;
    let head = |sequence, hash: Vec<u8>, at| {
        Ok(ChainHead { sequence, hash: parse_hash(&hash)?, sealed_at: at })
    };
    row.map(|row| head(row.sequence, row.hash, row.sealed_at)).transpose()
}

/// Returns the chain segments after `sequence`, in order: those that end within the next `span`
/// sequence numbers, or the next segment if none does.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn list_segments_after(
    tx: &mut Tx,
    workspace: WorkspaceId,
    sequence: i64,
    span: i64,
) -> Result<Vec<ChainSegment>, StoreError> {
    let rows = sqlx::query!(
        r#"SELECT first_sequence, previous_hash, event_ids AS "event_ids: Vec<EventId>", hashes
           FROM audit_chain_segments
           WHERE workspace_id = $1 AND last_sequence > $2
             AND last_sequence <= greatest($2 + $3, (
                 SELECT last_sequence FROM audit_chain_segments WHERE workspace_id = $1 AND last_sequence > $2
                 ORDER BY last_sequence LIMIT 1))
           ORDER BY last_sequence"#,
        workspace.uuid(),
        sequence,
        span,
    )
    .fetch_all(tx.conn())
    .await?;
    let segments = rows.into_iter().map(|row| {
        let (hashes, _) = row.hashes.as_chunks::<32>();
        let hashes = hashes.iter().map(|hash| ChainHash::from(*hash));
        Ok(ChainSegment {
            workspace_id: workspace,
            first_sequence: row.first_sequence,
            previous_hash: parse_hash(&row.previous_hash)?,
            events: row.event_ids.into_iter().zip(hashes).collect(),
        })
    });
    segments.collect()
}

fn parse_hash(bytes: &[u8]) -> Result<ChainHash, StoreError> {
    let hash: [u8; 32] = bytes.try_into().map_err(|_| StoreError::corrupt("a chain hash"))?;
    Ok(hash.into())
}

/// Returns up to `limit` events of a workspace after the event `id`, oldest first.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn list_events_after(
    tx: &mut Tx,
    workspace: WorkspaceId,
    id: Uuid,
    limit: i64,
) -> Result<Vec<Event<'static>>, StoreError> {
    let rows = sqlx::query_as!(
        EventRow,
        r#"SELECT id AS "id: EventId", action, actor_type, actor_id, actor_name, target_type,
                  target_id, target_name, request_id AS "request_id: RequestId", method, path, status,
                  ip AS "ip: IpNet", user_agent, latency_us, metadata AS "metadata: Json<Value>"
           FROM audit_events WHERE workspace_id = $1 AND id > $2 ORDER BY id LIMIT $3"#,
        workspace.uuid(),
        id,
        limit,
    )
    .fetch_all(tx.conn())
    .await?;
    Ok(rows.into_iter().map(Event::from).collect())
}

/// A sealed event at its place in the chain.
#[derive(Debug)]
pub struct SealedEvent {
    /// The sequence number.
    pub sequence: i64,
    /// The event's id.
    pub id: EventId,
    /// The chain's hash after the event.
    pub hash: ChainHash,
    /// The event; `None` if it is no longer stored.
    pub event: Option<Event<'static>>,
}

/// Returns up to `limit` sealed events after `sequence`, up to and including `until`, in the order
/// of the chain.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn list_sealed_events_after(
    tx: &mut Tx,
    workspace: WorkspaceId,
    sequence: i64,
    until: i64,
    limit: usize,
) -> Result<Vec<SealedEvent>, StoreError> {
    let segments =
        list_segments_after(tx, workspace, sequence, i64::try_from(limit).unwrap_or(i64::MAX))
            .await?;
    let places =
        segments.iter().flat_map(|segment| (segment.first_sequence..).zip(&segment.events));
    let places = places.filter(|(number, _)| *number > sequence && *number <= until).take(limit);
    let places: Vec<_> = places.map(|(number, (id, hash))| (number, *id, *hash)).collect();
    let ids: Vec<_> = places.iter().map(|(_, id, _)| id.uuid()).collect();
    let rows = sqlx::query_as!(
        EventRow,
        r#"SELECT id AS "id: EventId", action, actor_type, actor_id, actor_name, target_type,
                  target_id, target_name, request_id AS "request_id: RequestId", method, path, status,
                  ip AS "ip: IpNet", user_agent, latency_us, metadata AS "metadata: Json<Value>"
           FROM audit_events WHERE workspace_id = $1 AND id = ANY ($2)"#,
        workspace.uuid(),
        &ids,
    )
    .fetch_all(tx.conn())
    .await?;
    let mut events: HashMap<_, _> =
        rows.into_iter().map(Event::from).map(|event| (event.id, event)).collect();
    let sealed = places.into_iter().map(|(sequence, id, hash)| SealedEvent {
        sequence,
        id,
        hash,
        event: events.remove(&id),
    });
    Ok(sealed.collect())
}

/// Returns the ids of a workspace's events that are stored and not yet sealed.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn list_unsealed_events(
    tx: &mut Tx,
    workspace: WorkspaceId,
) -> Result<Vec<EventId>, StoreError> {
    let ids = sqlx::query_scalar!(
        r#"SELECT event AS "event!: EventId" FROM list_unsealed_event_ids($1) AS event"#,
        workspace.uuid(),
    );
    Ok(ids.fetch_all(tx.conn()).await?)
}

impl Store {
    /// Returns the last sequence number of each of these workspaces' chains.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn last_chain_sequences(
        &self,
        workspaces: &[WorkspaceId],
    ) -> Result<Vec<(WorkspaceId, i64)>, StoreError> {
        let workspaces: Vec<_> = workspaces.iter().map(|id| id.uuid()).collect();
        let rows = sqlx::query!(
            r#"SELECT workspace_id AS "workspace_id!: WorkspaceId", sequence AS "sequence!"
               FROM find_chain_heads($1)"#,
            &workspaces,
        )
        .fetch_all(&self.pools.background())
        .await?;
        Ok(rows.into_iter().map(|row| (row.workspace_id, row.sequence)).collect())
    }

    /// Returns every workspace that has or had an audit log, including deleted workspaces.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn audited_workspaces(&self) -> Result<Vec<WorkspaceId>, StoreError> {
        let ids = sqlx::query_scalar!(
            r#"SELECT workspace AS "workspace!: WorkspaceId" FROM list_audited_workspaces() AS workspace"#,
        );
        Ok(ids.fetch_all(&self.pools.background()).await?)
    }
}
