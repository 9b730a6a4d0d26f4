//! The chains of workspaces, to be read.

use std::collections::HashMap;

use ipnet::IpNet;
use serde_json::Value;
use sqlx::types::Json;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Store, StoreError, Tx, audit::EventRow};
use crate::model::{
    audit::{ChainHash, Event, Run},
    id::{EventId, Id, RequestId, WorkspaceId},
};

/// Where a chain ends.
#[derive(Debug, Clone, Copy)]
pub struct Head {
    /// The place of its last event; 0 where there is none yet.
    pub sequence: i64,
    /// The hash there.
    pub hash: ChainHash,
    /// When it was sealed.
    pub at: OffsetDateTime,
}

/// Where the chain of a workspace ends; none where nothing was sealed yet.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn head(tx: &mut Tx, workspace: WorkspaceId) -> Result<Option<Head>, StoreError> {
    let row = sqlx::query!(
        "SELECT sequence, hash, sealed_at FROM chain_heads WHERE workspace_id = $1",
        workspace.uuid(),
    )
    .fetch_optional(tx.conn())
    .await?;
    let head = |sequence, hash: Vec<u8>, at| Ok(Head { sequence, hash: hash_of(&hash)?, at });
    row.map(|row| head(row.sequence, row.hash, row.sealed_at)).transpose()
}

/// The runs of a chain behind a place, in order: those that end within so many places, or else the next.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn runs_behind(
    tx: &mut Tx,
    workspace: WorkspaceId,
    sequence: i64,
    span: i64,
) -> Result<Vec<Run>, StoreError> {
    let rows = sqlx::query!(
        r#"SELECT first_sequence, previous_hash, event_ids AS "event_ids: Vec<EventId>", hashes
           FROM audit_seals
           WHERE workspace_id = $1 AND last_sequence > $2
             AND last_sequence <= greatest($2 + $3, (
                 SELECT last_sequence FROM audit_seals WHERE workspace_id = $1 AND last_sequence > $2
                 ORDER BY last_sequence LIMIT 1))
           ORDER BY last_sequence"#,
        workspace.uuid(),
        sequence,
        span,
    )
    .fetch_all(tx.conn())
    .await?;
    let run = rows.into_iter().map(|row| {
        let (hashes, _) = row.hashes.as_chunks::<32>();
        let hashes = hashes.iter().map(|hash| ChainHash::from(*hash));
        Ok(Run {
            workspace_id: workspace,
            first: row.first_sequence,
            previous: hash_of(&row.previous_hash)?,
            events: row.event_ids.into_iter().zip(hashes).collect(),
        })
    });
    run.collect()
}

fn hash_of(bytes: &[u8]) -> Result<ChainHash, StoreError> {
    let hash: [u8; 32] = bytes.try_into().map_err(|_| StoreError::damaged("a hash"))?;
    Ok(hash.into())
}

/// Events of a workspace behind this one, the oldest first.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn events_behind(
    tx: &mut Tx,
    workspace: WorkspaceId,
    id: Uuid,
    most: i64,
) -> Result<Vec<Event<'static>>, StoreError> {
    let rows = sqlx::query_as!(
        EventRow,
        r#"SELECT id AS "id: EventId", action, actor_type, actor_id, actor_name, target_type,
                  target_id, target_name, request_id AS "request_id: RequestId", method, path, status,
                  ip AS "ip: IpNet", user_agent, latency_us, metadata AS "metadata: Json<Value>"
           FROM audit_events WHERE workspace_id = $1 AND id > $2 ORDER BY id LIMIT $3"#,
        workspace.uuid(),
        id,
        most,
    )
    .fetch_all(tx.conn())
    .await?;
    Ok(rows.into_iter().map(Event::from).collect())
}

/// An event in its place of the chain.
#[derive(Debug)]
pub struct Sealed {
    /// The place.
    pub sequence: i64,
    /// Which event stands there.
    pub id: EventId,
    /// The chain's hash there.
    pub hash: ChainHash,
    /// The event; none: it is gone.
    pub event: Option<Event<'static>>,
}

/// What is behind a place of a chain, up to another, in order: at most so many events.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn sealed_behind(
    tx: &mut Tx,
    workspace: WorkspaceId,
    sequence: i64,
    until: i64,
    most: usize,
) -> Result<Vec<Sealed>, StoreError> {
    let runs =
        runs_behind(tx, workspace, sequence, i64::try_from(most).unwrap_or(i64::MAX)).await?;
    let places = runs.iter().flat_map(|run| (run.first..).zip(&run.events));
    let places = places.filter(|(place, _)| *place > sequence && *place <= until).take(most);
    let places: Vec<_> = places.map(|(place, (id, hash))| (place, *id, *hash)).collect();
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
    let sealed = places.into_iter().map(|(sequence, id, hash)| Sealed {
        sequence,
        id,
        hash,
        event: events.remove(&id),
    });
    Ok(sealed.collect())
}

/// Events of a workspace that are written and not yet sealed.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn unsealed(tx: &mut Tx, workspace: WorkspaceId) -> Result<Vec<EventId>, StoreError> {
    let ids = sqlx::query_scalar!(
        r#"SELECT event AS "event!: EventId" FROM unsealed_events($1) AS event"#,
        workspace.uuid(),
    );
    Ok(ids.fetch_all(tx.conn()).await?)
}

impl Store {
    /// The places at which the chains of these workspaces end.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn chain_ends(
        &self,
        workspaces: &[WorkspaceId],
    ) -> Result<Vec<(WorkspaceId, i64)>, StoreError> {
        let workspaces: Vec<_> = workspaces.iter().map(|id| id.uuid()).collect();
        let rows = sqlx::query!(
            r#"SELECT workspace_id AS "workspace_id!: WorkspaceId", sequence AS "sequence!"
               FROM chain_heads_of($1)"#,
            &workspaces,
        )
        .fetch_all(&self.pools.own())
        .await?;
        Ok(rows.into_iter().map(|row| (row.workspace_id, row.sequence)).collect())
    }

    /// Every workspace that has, or had, a log.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn audited_workspaces(&self) -> Result<Vec<WorkspaceId>, StoreError> {
        let ids = sqlx::query_scalar!(
            r#"SELECT workspace AS "workspace!: WorkspaceId" FROM audited_workspaces() AS workspace"#,
        );
        Ok(ids.fetch_all(&self.pools.own()).await?)
    }
}
