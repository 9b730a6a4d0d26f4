//! Retention of the audit log: drops monthly partitions that are old enough.
//!
//! Only the owner of the tables can drop a partition, so this module connects as the owner. A
//! PostgreSQL advisory lock lets one node prune at a time.

use secrecy::{ExposeSecret, SecretString};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use time::{Date, Month, OffsetDateTime, UtcOffset};

use super::{Store, StoreError, hosts};
use crate::model::{
    audit::{ChainHash, PruneRecord},
    id::WorkspaceId,
};

/// The tables that are partitioned by month.
const PARENTS: [&str; 2] = ["audit_events", "audit_chain_segments"];

/// A connection as the owner of the tables. It holds the pruning lock: no other node prunes
/// meanwhile.
#[derive(Debug)]
pub struct RetentionConnection {
    connection: PgConnection,
}

/// One month of a partitioned table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    parent: &'static str,
    name: String,
    /// The start of the next month.
    pub end: OffsetDateTime,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Attached,
    /// A detach was started and not finished.
    DetachPending,
    Detached,
}

impl Partition {
    /// Returns true if the partition holds events, false if it holds seals.
    #[must_use]
    pub fn has_events(&self) -> bool {
        self.parent == PARENTS[0]
    }

    /// Returns the name of the partition's table.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl RetentionConnection {
    /// Connects and takes the pruning lock. `None` if another node holds it.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn connect(url: &SecretString) -> Result<Option<Self>, StoreError> {
        let malformed =
            |line: String| StoreError::Internal(sqlx::Error::Configuration(line.into()));
        let hosts = hosts::parse(url.expose_secret()).map_err(malformed)?.into_iter();
        // A lock request that waits for a long reader blocks all later requests, so it waits 3 s at
        // most.
        let hosts: Vec<_> = hosts.map(|host| host.options([("lock_timeout", "3000")])).collect();
        let mut connection = hosts::connect(&hosts).await?;
        let lock = "SELECT pg_try_advisory_lock(hashtext('prune the audit log'))";
        let is_ours: bool = sqlx::query_scalar(lock).fetch_one(&mut connection).await?;
        Ok(is_ours.then_some(Self { connection }))
    }

    /// Lists the partitions of events and of seals.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn list_partitions(&mut self) -> Result<Vec<Partition>, StoreError> {
        let mut partitions = Vec::new();
        for parent in PARENTS {
            // Includes tables that were detached but not dropped, because the node stopped in
            // between.
            let sql = "SELECT c.relname::text, i.inhrelid IS NOT NULL, coalesce(i.inhdetachpending, false)
                       FROM pg_class c LEFT JOIN pg_inherits i ON i.inhrelid = c.oid
                       WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r'
                         AND starts_with(c.relname, $1 || '_') ORDER BY 1";
            let names: Vec<(String, bool, bool)> =
                sqlx::query_as(sql).bind(parent).fetch_all(&mut self.connection).await?;
            partitions.extend(names.into_iter().filter_map(|(name, is_attached, is_pending)| {
                let end = end_of_month(name.strip_prefix(parent)?)?;
                let state = match (is_attached, is_pending) {
                    (false, _) => State::Detached,
                    (true, true) => State::DetachPending,
                    (true, false) => State::Attached,
                };
                Some(Partition { parent, name, end, state })
            }));
        }
        Ok(partitions)
    }

    /// Drops a partition. Reads and writes of other partitions continue meanwhile.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails, for example because a long reader holds the partition.
    pub async fn drop_partition(&mut self, partition: &Partition) -> Result<(), StoreError> {
        let Partition { parent, name, state, .. } = partition;
        let detach = |how| format!("ALTER TABLE {parent} DETACH PARTITION {name} {how}");
        let detach = match state {
            State::Attached => Some(detach("CONCURRENTLY")),
            State::DetachPending => Some(detach("FINALIZE")),
            State::Detached => None,
        };
        for sql in detach.into_iter().chain([format!("DROP TABLE {name}")]) {
            // The names are this service's own and consist of letters, digits and underscores.
            sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut self.connection).await?;
        }
        Ok(())
    }

    /// Closes the connection, which releases the lock.
    pub async fn close(self) {
        self.connection.close().await.ok();
    }
}

/// Parses the suffix of a partition's name: `_2026_11` gives the start of December 2026.
fn end_of_month(suffix: &str) -> Option<OffsetDateTime> {
    let (year, month) = suffix.strip_prefix('_')?.split_once('_')?;
    let (year, month): (i32, u8) = (year.parse().ok()?, month.parse().ok()?);
    let (year, month) = if month == 12 { (year + 1, 1) } else { (year, month + 1) };
    let first = Date::from_calendar_date(year, Month::try_from(month).ok()?, 1).ok()?;
    Some(first.midnight().assume_offset(UtcOffset::UTC))
}

impl Store {
    /// Returns the workspaces that are about to lose events from before `events_before`, or seals
    /// from before `seals_before`, and whose log does not record it yet. The second value is the
    /// record to write.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn list_pending_prune_events(
        &self,
        events_before: OffsetDateTime,
        seals_before: OffsetDateTime,
    ) -> Result<Vec<(WorkspaceId, PruneRecord)>, StoreError> {
        let mut tx = self.pools.background().begin().await?;
        // The query reads the logs of all workspaces, once an hour at most. It may take ten
        // minutes.
        sqlx::query!(r#"SELECT set_config('statement_timeout', '600000', true) AS "set""#)
            .fetch_one(&mut *tx)
            .await?;
        let rows = sqlx::query!(
            r#"SELECT workspace_id AS "workspace_id!: WorkspaceId", sequence AS "sequence!", hash
               FROM list_pending_prune_events($1, $2)"#,
            events_before,
            seals_before,
        )
        .fetch_all(&mut *tx)
        .await?;
        tx.rollback().await?;
        let pruned = rows.into_iter().map(|row| {
            let hash = match row.hash {
                None => ChainHash::genesis(row.workspace_id),
                Some(bytes) => {
                    let hash: Result<[u8; 32], _> = bytes.try_into();
                    hash.map_err(|_| StoreError::corrupt("a chain hash"))?.into()
                }
            };
            let pruned = PruneRecord { before: events_before, sequence: row.sequence, hash };
            Ok((row.workspace_id, pruned))
        });
        pruned.collect()
    }

    /// Returns the first and the last entry of the audit outbox. `None` if it is empty.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn outbox_bounds(&self) -> Result<Option<(i64, i64)>, StoreError> {
        let row = sqlx::query!("SELECT first, last FROM outbox_bounds()")
            .fetch_one(&self.pools.background())
            .await?;
        Ok(row.first.zip(row.last))
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn month_suffix_is_parsed_to_start_of_next_month() {
        assert_eq!(end_of_month("_2026_11"), Some(datetime!(2026-12-01 00:00 UTC)));
        assert_eq!(end_of_month("_2026_12"), Some(datetime!(2027-01-01 00:00 UTC)));
        assert_eq!(end_of_month("_2026_13"), None);
        assert_eq!(end_of_month("_default"), None);
    }
}
