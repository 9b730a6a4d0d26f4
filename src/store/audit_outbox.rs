//! The audit outbox: events that are stored and not yet sealed into a hash chain.
//!
//! One transaction seals events, counts the key usage in them and deletes their outbox entries, so
//! each event is sealed once and counted once. [`crate::audit`] runs the sealer.

use aws_lc_rs::digest::{SHA256, digest};
use sqlx::{Postgres, Transaction};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{
    Store, StoreError,
    context::{ContextSigner, SignedDecision},
};
use crate::model::{
    audit::{ChainHash, ChainSegment, EventDigest},
    id::{EventId, Id, WorkspaceId},
    timestamp,
};

/// The idle timeout of a sealing transaction, in milliseconds. A sealer that hangs must not block
/// the sealers of other nodes.
const IDLE_TIMEOUT_MS: &str = "3000";

/// Events that were written together.
#[derive(Debug)]
pub struct OutboxEntry {
    /// The entry's position in the outbox.
    pub id: i64,
    /// The time of the oldest event.
    pub oldest_event_at: OffsetDateTime,
    /// The workspace, the id and the digest of each event.
    pub events: Vec<(WorkspaceId, EventId, EventDigest)>,
}

/// A transaction that holds the sealing lock: no other node seals meanwhile.
#[derive(Debug)]
pub struct SealingTransaction {
    tx: Transaction<'static, Postgres>,
    context: ContextSigner,
}

impl Store {
    /// Begins a sealing transaction. `None` if another node is sealing, or if the caller has not
    /// noticed the present epoch of the clock yet.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn begin_sealing(
        &self,
        clock_epoch: Option<i64>,
    ) -> Result<Option<SealingTransaction>, StoreError> {
        let mut tx = self.pools.background().begin().await?;
        let is_ours = sqlx::query_scalar!(
            r#"SELECT pg_try_advisory_xact_lock(hashtext('seal')) AND is_present_epoch($2) AS "is!"
               FROM set_config('idle_in_transaction_session_timeout', $1, true)"#,
            IDLE_TIMEOUT_MS,
            clock_epoch,
        )
        .fetch_one(&mut *tx)
        .await?;
        let context = self.context.clone();
        Ok(is_ours.then_some(SealingTransaction { tx, context }))
    }
}

impl Store {
    /// Returns the id of the first entry after `entry` that is not in `skipped`.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn find_outbox_entry_after(
        &self,
        entry: i64,
        skipped: &[i64],
    ) -> Result<Option<i64>, StoreError> {
        Ok(sqlx::query_scalar!("SELECT find_outbox_entry_after($1, $2)", entry, skipped)
            .fetch_one(&self.pools.background())
            .await?)
    }
}

impl SealingTransaction {
    /// Returns the oldest entries after `entry`, without those in `skipped`: at most `limit` of
    /// them, and no more once they hold `max_events` events.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn list_entries_after(
        &mut self,
        entry: i64,
        skipped: &[i64],
        limit: i32,
        max_events: i32,
    ) -> Result<Vec<OutboxEntry>, StoreError> {
        let rows = sqlx::query!(
            r#"SELECT id AS "id!", oldest_event_at AS "oldest_event_at!",
                      workspace_ids AS "workspace_ids!: Vec<WorkspaceId>",
                      event_ids AS "event_ids!: Vec<EventId>", digests AS "digests!"
               FROM list_outbox_entries_after($1, $2, $3, $4)"#,
            entry,
            skipped,
            limit,
            max_events,
        )
        .fetch_all(&mut *self.tx)
        .await?;
        let entries = rows.into_iter().map(|row| {
            let (digests, _) = row.digests.as_chunks();
            let digests = digests.iter().map(|digest| EventDigest::from(*digest));
            let ids = row.workspace_ids.into_iter().zip(row.event_ids);
            let events = ids.zip(digests).map(|((workspace, id), digest)| (workspace, id, digest));
            OutboxEntry {
                id: row.id,
                oldest_event_at: row.oldest_event_at,
                events: events.collect(),
            }
        });
        Ok(entries.collect())
    }

    /// Returns an empty segment at the end of each of these workspaces' chains. A workspace without
    /// a chain is left out.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn open_segments(
        &mut self,
        workspaces: impl IntoIterator<Item = WorkspaceId>,
    ) -> Result<Vec<ChainSegment>, StoreError> {
        let workspaces: Vec<_> = workspaces.into_iter().map(Id::uuid).collect();
        let rows = sqlx::query!(
            r#"SELECT workspace_id AS "workspace_id!: WorkspaceId", sequence AS "sequence!",
                      hash AS "hash!"
               FROM find_chain_heads($1)"#,
            &workspaces,
        )
        .fetch_all(&mut *self.tx)
        .await?;
        let segments = rows.into_iter().map(|row| {
            let hash: [u8; 32] =
                row.hash.try_into().map_err(|_| StoreError::corrupt("a chain hash"))?;
            Ok(ChainSegment::after(row.workspace_id, row.sequence, hash.into()))
        });
        segments.collect()
    }

    /// Appends the segments to their chains, counts the key usage in the entries, deletes the
    /// entries and commits. `now` is a time of this epoch of the clock; `None` if the caller does
    /// not follow the clock of PostgreSQL.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails, if an entry or the end of a chain has changed since it
    /// was read, or if the clock has changed.
    pub async fn seal(
        mut self,
        now: OffsetDateTime,
        clock_epoch: Option<i64>,
        entries: &[OutboxEntry],
        segments: &[ChainSegment],
    ) -> Result<(), StoreError> {
        let entries: Vec<_> = entries.iter().map(|entry| entry.id).collect();
        let workspaces: Vec<_> =
            segments.iter().map(|segment| segment.workspace_id.uuid()).collect();
        let firsts: Vec<_> = segments.iter().map(|segment| segment.first_sequence).collect();
        let lasts: Vec<_> = segments.iter().map(ChainSegment::last_sequence).collect();
        let previous: Vec<_> =
            segments.iter().map(|segment| &segment.previous_hash.as_bytes()[..]).collect();
        let hashes: Vec<Vec<u8>> =
            segments.iter().map(|segment| concat_hashes(&segment.events)).collect();
        let ids: Vec<Uuid> =
            segments.iter().flat_map(|segment| &segment.events).map(|(id, _)| id.uuid()).collect();
        let now = timestamp::to_micros(now);
        let SignedDecision { key_id, mac } = self.context.sign_decision(
            "append_chain_segments",
            &[
                &now.to_be_bytes(),
                &clock_epoch.unwrap_or(-1).to_be_bytes(),
                digest(&SHA256, array_text(&entries).as_bytes()).as_ref(),
                digest(&SHA256, &hashes.concat()).as_ref(),
            ],
        );
        sqlx::query!(
            r#"SELECT append_chain_segments($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) AS "done""#,
            now,
            clock_epoch,
            &entries,
            &workspaces,
            &firsts,
            &lasts,
            &previous as _,
            &hashes,
            &ids,
            &key_id,
            &mac,
        )
        .fetch_one(&mut *self.tx)
        .await?;
        Ok(self.tx.commit().await?)
    }
}

fn concat_hashes(events: &[(EventId, ChainHash)]) -> Vec<u8> {
    events.iter().flat_map(|(_, hash)| *hash.as_bytes()).collect()
}

/// Returns an array as PostgreSQL formats it.
fn array_text(numbers: &[i64]) -> String {
    let numbers: Vec<_> = numbers.iter().map(i64::to_string).collect();
    format!("{{{}}}", numbers.join(","))
}
