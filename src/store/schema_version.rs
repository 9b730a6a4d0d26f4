//! The version of the database's schema, compared with the migrations of this binary.
//!
//! A node starts only on the schema that its own migrations create. While it runs, the operator may
//! migrate the database or restore a backup. [`crate::database_check`] checks this regularly, and
//! the node answers 503 while it cannot use the schema.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use sqlx::PgExecutor;

use super::{Store, StoreError, migrate};

/// The reason why this version of the service cannot use a schema, for the operator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SchemaMismatch {
    /// Migrations of this version are missing.
    #[error("the database schema is not up to date: it has version {found} instead of {expected}")]
    Older {
        /// The version of the schema; 0 if it has none.
        found: i64,
        /// The version that this binary expects.
        expected: i64,
    },
    /// The schema has migrations that this version does not know.
    #[error(
        "the database schema has version {found}, which is newer than version {expected} of this \
         call2me-auth: use the version that migrated it"
    )]
    Newer {
        /// The version of the schema.
        found: i64,
        /// The version that this binary expects.
        expected: i64,
    },
    /// A migration differs from that of this version.
    #[error(
        "migration {version} of the database is not that of this call2me-auth: use an unchanged \
         release"
    )]
    Modified {
        /// The number of the migration.
        version: i64,
    },
}

/// The migrations of a schema.
#[derive(Debug)]
pub(super) struct AppliedMigrations {
    /// The version and the checksum of each migration, oldest first.
    migrations: Vec<(i64, Vec<u8>)>,
    /// The version of the oldest nodes that can use the schema.
    oldest_compatible: i64,
}

impl AppliedMigrations {
    /// Reads the migrations of a database that has their table.
    pub(super) async fn read(executor: impl PgExecutor<'_>) -> Result<Self, sqlx::Error> {
        // Not checked at build time: the table does not exist where the files are applied with
        // psql.
        let rows: Vec<(i64, Vec<u8>, i64)> = sqlx::query_as(
            "SELECT version, checksum, oldest_compatible_version(max(version) OVER ())
             FROM _sqlx_migrations WHERE success ORDER BY version",
        )
        .fetch_all(executor)
        .await?;
        let oldest_compatible = rows.first().map_or(0, |(.., oldest)| *oldest);
        let migrations = rows.into_iter().map(|(version, checksum, _)| (version, checksum));
        Ok(Self { migrations: migrations.collect(), oldest_compatible })
    }

    /// Checks that they are the migrations of this binary, and no others.
    pub(super) fn check_equal(&self) -> Result<(), SchemaMismatch> {
        self.compare(&known_migrations())
    }

    /// Checks that a running node can use the schema.
    fn check_compatible(&self) -> Result<(), SchemaMismatch> {
        match self.check_equal() {
            Err(SchemaMismatch::Newer { expected, .. }) if self.oldest_compatible <= expected => {
                Ok(())
            }
            result => result,
        }
    }

    fn compare(&self, known: &[(i64, &[u8])]) -> Result<(), SchemaMismatch> {
        let latest = |version: Option<&i64>| version.copied().unwrap_or_default();
        let expected = latest(known.iter().map(|(version, _)| version).max());
        let found = latest(self.migrations.iter().map(|(version, _)| version).max());
        let is_known = |(version, checksum): &&(i64, Vec<u8>)| {
            *version > expected || known.contains(&(*version, checksum))
        };
        if let Some((version, _)) = self.migrations.iter().find(|migration| !is_known(migration)) {
            return Err(SchemaMismatch::Modified { version: *version });
        }
        if found > expected {
            return Err(SchemaMismatch::Newer { found, expected });
        }
        if self.migrations.len() < known.len() {
            return Err(SchemaMismatch::Older { found, expected });
        }
        Ok(())
    }
}

fn known_migrations() -> Vec<(i64, &'static [u8])> {
    let known = migrate::MIGRATOR.iter();
    known.map(|migration| (migration.version, &*migration.checksum)).collect()
}

/// True while the node cannot use the schema. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct SchemaFlag(Arc<AtomicBool>);

impl Store {
    /// Returns true unless the last check found that this node cannot use the schema.
    #[must_use]
    pub fn is_schema_compatible(&self) -> bool {
        !self.schema.0.load(Relaxed)
    }

    /// Checks that this node can use the schema. Returns the reason if it cannot.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails. The node then cannot use the schema if the version cannot
    /// be read because of a missing table, function or right; otherwise the last result holds.
    pub async fn check_schema(&self) -> Result<Option<SchemaMismatch>, StoreError> {
        let applied = AppliedMigrations::read(&self.pools.background()).await;
        let applied = applied.map_err(StoreError::from).inspect_err(|error| {
            if error.is_schema_unusable() {
                self.schema.0.store(true, Relaxed);
            }
        })?;
        let mismatch = applied.check_compatible().err();
        self.schema.0.store(mismatch.is_some(), Relaxed);
        Ok(mismatch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: [(i64, &[u8]); 2] = [(1, b"a"), (2, b"b")];

    fn applied(migrations: &[(i64, &[u8])]) -> AppliedMigrations {
        let migrations = migrations.iter().map(|(version, sum)| (*version, sum.to_vec()));
        AppliedMigrations { migrations: migrations.collect(), oldest_compatible: 0 }
    }

    #[test]
    fn schema_of_other_migrations_is_a_mismatch() {
        let compare = |migrations: &[(i64, &[u8])]| applied(migrations).compare(&KNOWN);
        assert_eq!(compare(&KNOWN), Ok(()));
        let older = |found| Err(SchemaMismatch::Older { found, expected: 2 });
        assert_eq!(compare(&[]), older(0));
        assert_eq!(compare(&KNOWN[..1]), older(1));
        assert_eq!(compare(&KNOWN[1..]), older(2));
        let newer = Err(SchemaMismatch::Newer { found: 4, expected: 2 });
        assert_eq!(compare(&[KNOWN[0], KNOWN[1], (4, b"d")]), newer);
        assert_eq!(compare(&[KNOWN[0], (2, b"x")]), Err(SchemaMismatch::Modified { version: 2 }));
        assert_eq!(compare(&[(0, b"x")]), Err(SchemaMismatch::Modified { version: 0 }));
    }

    #[test]
    fn newer_schema_is_compatible_only_if_it_says_so() {
        let latest = known_migrations().last().unwrap().0;
        let with_newer = |oldest_compatible| {
            let known = known_migrations().into_iter().chain([(latest + 1, &b"new"[..])]);
            let mut newer = applied(&known.collect::<Vec<_>>());
            newer.oldest_compatible = oldest_compatible;
            newer
        };
        assert!(with_newer(latest).check_compatible().is_ok());
        assert!(with_newer(latest + 1).check_compatible().is_err());
        assert!(with_newer(latest).check_equal().is_err(), "a node does not start on it");
    }
}
