//! What a backup of the database depends on.

use time::OffsetDateTime;

use super::{Store, StoreError};

/// The state of the database and of its server, as far as a backup depends on it.
#[derive(Debug)]
pub struct BackupState {
    /// The version of the schema.
    pub schema_version: i64,
    /// The owner of the tables.
    pub owner: String,
    /// The login of the service.
    pub login: String,
    /// The name of the database.
    pub database: String,
    /// True if the audit log has partitions for the current month and the next one.
    pub has_partitions: bool,
    /// True if the server archives its write-ahead log, which a physical backup needs.
    pub archives_wal: bool,
    /// The last time that a file of the write-ahead log was archived.
    pub last_archived_at: Option<OffsetDateTime>,
    /// True if the last attempt to archive one failed.
    pub archiving_fails: bool,
}

impl Store {
    /// Returns what a backup depends on.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn inspect_backup(&self) -> Result<BackupState, StoreError> {
        let mut connection = self.pools.background().acquire().await?;
        // Not checked at build time: the table of the migrations does not exist there.
        let schema_version: i64 =
            sqlx::query_scalar("SELECT max(version) FROM _sqlx_migrations WHERE success")
                .fetch_one(&mut *connection)
                .await?;
        let row = sqlx::query!(
            r#"SELECT pg_get_userbyid(c.relowner)::text AS "owner!", session_user::text AS "login!",
                      current_database()::text AS "database!",
                      (SELECT count(*) = 4 FROM unnest(
                           ARRAY['audit_events', 'audit_chain_segments']) AS parent,
                           generate_series(0, 1) AS month
                       WHERE to_regclass('public.' || parent || to_char(
                           (database_time() AT TIME ZONE 'UTC') + month * interval '1 month',
                           '_YYYY_MM')) IS NOT NULL) AS "has_partitions!",
                      current_setting('archive_mode') <> 'off' AS "archives_wal!",
                      a.last_archived_time,
                      coalesce(a.last_failed_time > coalesce(a.last_archived_time, '-infinity'),
                               false) AS "archiving_fails!"
               FROM pg_class c, pg_stat_archiver a WHERE c.oid = 'workspaces'::regclass"#,
        )
        .fetch_one(&mut *connection)
        .await?;
        Ok(BackupState {
            schema_version,
            owner: row.owner,
            login: row.login,
            database: row.database,
            has_partitions: row.has_partitions,
            archives_wal: row.archives_wal,
            last_archived_at: row.last_archived_time,
            archiving_fails: row.archiving_fails,
        })
    }
}
