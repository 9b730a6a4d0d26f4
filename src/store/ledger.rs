//! The ledger of events that are to be sealed, and the chains that they are sealed into.

use ipnet::IpNet;
use serde_json::Value;
use sqlx::{Postgres, Transaction, types::Json};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Store, StoreError, audit::EventRow};
use crate::model::{
    audit::{ChainHash, Event, EventDigest, Run},
    id::{EventId, Id, RequestId, WorkspaceId},
};

/// How long the transaction of a sealer may do nothing, in milliseconds: one that hangs must not keep
/// other nodes from sealing.
const IDLE: &str = "3000";

/// Events that were written together.
#[derive(Debug)]
pub struct Entry {
    /// Its place in the ledger.
    pub id: i64,
    /// When the oldest of them happened.
    pub since: OffsetDateTime,
    /// The events.
    pub events: Vec<(WorkspaceId, EventId)>,
    /// The digest of each; none where they are yet to be made.
    pub digests: Option<Vec<EventDigest>>,
}

/// A transaction in which nobody else seals.
#[derive(Debug)]
pub struct Sealing {
    tx: Transaction<'static, Postgres>,
}

impl Store {
    /// Begins to seal; none while another node does.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn begin_sealing(&self) -> Result<Option<Sealing>, StoreError> {
        let mut tx = self.pools.own().begin().await?;
        let is_ours = sqlx::query_scalar!(
            r#"SELECT pg_try_advisory_xact_lock(hashtext('seal')) AS "is!"
               FROM set_config('idle_in_transaction_session_timeout', $1, true)"#,
            IDLE,
        )
        .fetch_one(&mut *tx)
        .await?;
        Ok(is_ours.then_some(Sealing { tx }))
    }
}

impl Sealing {
    /// The oldest entries of the ledger behind this one, at most so many, and until they hold so many events.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn entries_behind(
        &mut self,
        entry: i64,
        most: i32,
        events: i32,
    ) -> Result<Vec<Entry>, StoreError> {
        let rows = sqlx::query!(
            r#"SELECT id AS "id!", since AS "since!", workspace_ids AS "workspace_ids!: Vec<WorkspaceId>",
                      event_ids AS "event_ids!: Vec<EventId>", digests
               FROM ledger_behind($1, $2, $3)"#,
            entry,
            most,
            events,
        )
        .fetch_all(&mut *self.tx)
        .await?;
        let digests = |bytes: Vec<u8>| {
            let (digests, _) = bytes.as_chunks();
            digests.iter().map(|digest| EventDigest::from(*digest)).collect()
        };
        let entry = rows.into_iter().map(|row| Entry {
            id: row.id,
            since: row.since,
            events: row.workspace_ids.into_iter().zip(row.event_ids).collect(),
            digests: row.digests.map(digests),
        });
        Ok(entry.collect())
    }

    /// Those of these events that are there.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn events(
        &mut self,
        events: &[(WorkspaceId, EventId)],
    ) -> Result<Vec<Event<'static>>, StoreError> {
        let workspaces: Vec<_> = events.iter().map(|(workspace, _)| workspace.uuid()).collect();
        let ids: Vec<_> = events.iter().map(|(_, id)| id.uuid()).collect();
        let rows = sqlx::query_as!(
            EventRow,
            r#"SELECT id AS "id!: EventId", action AS "action!", actor_type AS "actor_type!", actor_id,
                      actor_name, target_type, target_id, target_name,
                      request_id AS "request_id: RequestId", method, path, status, ip AS "ip: IpNet",
                      user_agent, latency_us, metadata AS "metadata!: Json<Value>"
               FROM events_to_seal($1, $2)"#,
            &workspaces,
            &ids,
        )
        .fetch_all(&mut *self.tx)
        .await?;
        Ok(rows.into_iter().map(Event::from).collect())
    }

    /// Empty runs at the ends of the chains of these workspaces, which may be the beginning.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn ends_of(
        &mut self,
        workspaces: impl IntoIterator<Item = WorkspaceId>,
    ) -> Result<Vec<Run>, StoreError> {
        let workspaces: Vec<_> = workspaces.into_iter().map(Id::uuid).collect();
        let rows = sqlx::query!(
            r#"SELECT workspace_id AS "workspace_id!: WorkspaceId", sequence AS "sequence!",
                      hash AS "hash!"
               FROM chain_heads_of($1)"#,
            &workspaces,
        )
        .fetch_all(&mut *self.tx)
        .await?;
        let runs = rows.into_iter().map(|row| {
            let hash: [u8; 32] = row.hash.try_into().map_err(|_| StoreError::damaged("a hash"))?;
            Ok(Run::behind(row.workspace_id, row.sequence, hash.into()))
        });
        runs.collect()
    }

    /// Adds runs to their chains, counts what the entries say of keys, and settles the entries.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn seal(
        mut self,
        now: OffsetDateTime,
        entries: &[Entry],
        runs: &[Run],
    ) -> Result<(), StoreError> {
        let entries: Vec<_> = entries.iter().map(|entry| entry.id).collect();
        let workspaces: Vec<_> = runs.iter().map(|run| run.workspace_id.uuid()).collect();
        let firsts: Vec<_> = runs.iter().map(|run| run.first).collect();
        let lasts: Vec<_> = runs.iter().map(Run::last).collect();
        let previous: Vec<_> = runs.iter().map(|run| &run.previous.as_bytes()[..]).collect();
        let hashes: Vec<Vec<u8>> = runs.iter().map(|run| concat(&run.events)).collect();
        let ids: Vec<Uuid> =
            runs.iter().flat_map(|run| &run.events).map(|(id, _)| id.uuid()).collect();
        sqlx::query!(
            r#"SELECT seal($1, $2, $3, $4, $5, $6, $7, $8) AS "done""#,
            now,
            &entries,
            &workspaces,
            &firsts,
            &lasts,
            &previous as _,
            &hashes,
            &ids,
        )
        .fetch_one(&mut *self.tx)
        .await?;
        Ok(self.tx.commit().await?)
    }
}

fn concat(events: &[(EventId, ChainHash)]) -> Vec<u8> {
    events.iter().flat_map(|(_, hash)| *hash.as_bytes()).collect()
}
