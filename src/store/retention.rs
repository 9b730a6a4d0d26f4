//! Old partitions of the log, which its owner drops.

use secrecy::{ExposeSecret, SecretString};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use time::{Date, Month, OffsetDateTime, UtcOffset};

use super::{Store, StoreError, parse_url};
use crate::model::{
    audit::{ChainHash, Pruned},
    id::WorkspaceId,
};

/// The tables that are dropped by the month.
const PARENTS: [&str; 2] = ["audit_events", "audit_seals"];

/// A connection of the tables' owner, while no other node's owner prunes.
#[derive(Debug)]
pub struct Owner {
    connection: PgConnection,
}

/// A month of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    parent: &'static str,
    name: String,
    /// When the next month begins.
    pub end: OffsetDateTime,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    In,
    /// Somebody began to take it out, and did not finish.
    HalfOut,
    Out,
}

impl Partition {
    /// Whether it holds events; otherwise it holds seals.
    #[must_use]
    pub fn holds_events(&self) -> bool {
        self.parent == PARENTS[0]
    }

    /// What it is called.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Owner {
    /// Connects; none while somebody else prunes.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn connect(url: &SecretString) -> Result<Option<Self>, StoreError> {
        let malformed =
            |line: String| StoreError::Internal(sqlx::Error::Configuration(line.into()));
        let options = parse_url(url.expose_secret()).map_err(malformed)?;
        // Waiting behind a long reader, it must not hold up those who come behind it.
        let options = options.options([("lock_timeout", "3000")]);
        let mut connection = PgConnection::connect_with(&options).await?;
        let lock = "SELECT pg_try_advisory_lock(hashtext('prune the audit log'))";
        let is_ours: bool = sqlx::query_scalar(lock).fetch_one(&mut connection).await?;
        Ok(is_ours.then_some(Self { connection }))
    }

    /// All months of events and of seals.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn partitions(&mut self) -> Result<Vec<Partition>, StoreError> {
        let mut found = Vec::new();
        for parent in PARENTS {
            // Also what was taken out and, whoever did it having died, not dropped.
            let sql = "SELECT c.relname::text, i.inhrelid IS NOT NULL, coalesce(i.inhdetachpending, false)
                       FROM pg_class c LEFT JOIN pg_inherits i ON i.inhrelid = c.oid
                       WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r'
                         AND starts_with(c.relname, $1 || '_') ORDER BY 1";
            let names: Vec<(String, bool, bool)> =
                sqlx::query_as(sql).bind(parent).fetch_all(&mut self.connection).await?;
            found.extend(names.into_iter().filter_map(|(name, is_in, is_half_out)| {
                let end = end_of_month(name.strip_prefix(parent)?)?;
                let state = match (is_in, is_half_out) {
                    (false, _) => State::Out,
                    (true, true) => State::HalfOut,
                    (true, false) => State::In,
                };
                Some(Partition { parent, name, end, state })
            }));
        }
        Ok(found)
    }

    /// Drops one. Readers and writers of the others go on meanwhile.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached, or a long reader is in the way.
    pub async fn drop(&mut self, partition: &Partition) -> Result<(), StoreError> {
        let Partition { parent, name, state, .. } = partition;
        let detach = |how| format!("ALTER TABLE {parent} DETACH PARTITION {name} {how}");
        let detach = match state {
            State::In => Some(detach("CONCURRENTLY")),
            State::HalfOut => Some(detach("FINALIZE")),
            State::Out => None,
        };
        for sql in detach.into_iter().chain([format!("DROP TABLE {name}")]) {
            // Names are ours, and of letters and digits.
            sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut self.connection).await?;
        }
        Ok(())
    }

    /// Ends the connection, and the lock with it.
    pub async fn close(self) {
        self.connection.close().await.ok();
    }
}

/// From `_2026_11` to the beginning of December.
fn end_of_month(suffix: &str) -> Option<OffsetDateTime> {
    let (year, month) = suffix.strip_prefix('_')?.split_once('_')?;
    let (year, month): (i32, u8) = (year.parse().ok()?, month.parse().ok()?);
    let (year, month) = if month == 12 { (year + 1, 1) } else { (year, month + 1) };
    let first = Date::from_calendar_date(year, Month::try_from(month).ok()?, 1).ok()?;
    Some(first.midnight().assume_offset(UtcOffset::UTC))
}

impl Store {
    /// The workspaces that lose events from before a moment, or seals from before another, and have not been
    /// told, and what they are to be told.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn losing_workspaces(
        &self,
        events_before: OffsetDateTime,
        seals_before: OffsetDateTime,
    ) -> Result<Vec<(WorkspaceId, Pruned)>, StoreError> {
        let mut tx = self.pools.own().begin().await?;
        // Once an hour at most, and of all workspaces.
        sqlx::query!(r#"SELECT set_config('statement_timeout', '600000', true) AS "set""#)
            .fetch_one(&mut *tx)
            .await?;
        let rows = sqlx::query!(
            r#"SELECT workspace_id AS "workspace_id!: WorkspaceId", sequence AS "sequence!", hash
               FROM losing_workspaces($1, $2)"#,
            events_before,
            seals_before,
        )
        .fetch_all(&mut *tx)
        .await?;
        tx.rollback().await?;
        let told = rows.into_iter().map(|row| {
            let hash = match row.hash {
                None => ChainHash::genesis(row.workspace_id),
                Some(bytes) => {
                    let hash: Result<[u8; 32], _> = bytes.try_into();
                    hash.map_err(|_| StoreError::damaged("a hash"))?.into()
                }
            };
            let pruned = Pruned { before: events_before, sequence: row.sequence, hash };
            Ok((row.workspace_id, pruned))
        });
        told.collect()
    }

    /// The first and the last entry of the ledger.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn ledger_bounds(&self) -> Result<Option<(i64, i64)>, StoreError> {
        let row = sqlx::query!("SELECT first, last FROM ledger_bounds()")
            .fetch_one(&self.pools.own())
            .await?;
        Ok(row.first.zip(row.last))
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn months_end_where_the_next_begins() {
        assert_eq!(end_of_month("_2026_11"), Some(datetime!(2026-12-01 00:00 UTC)));
        assert_eq!(end_of_month("_2026_12"), Some(datetime!(2027-01-01 00:00 UTC)));
        assert_eq!(end_of_month("_2026_13"), None);
        assert_eq!(end_of_month("_default"), None);
    }
}
