//! The PostgreSQL server that a connection reaches.
//!
//! Behind a proxy or a name, the server changes at a failover, while old connections stay on the
//! old one. See `docs/revocation.md`.

use sqlx::PgConnection;

/// A running PostgreSQL server, and the history of its database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(test, derive(Default))]
pub struct Server {
    /// The start of the server, in microseconds since 1970 by its clock. It tells a primary from
    /// its standbys, and changes at a restart.
    started_at: i64,
    history: History,
}

/// A history of the database. A failover and a restore start another one, which may lack commits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(test, derive(Default))]
pub struct History {
    pub(super) system_identifier: i64,
    pub(super) timeline: i32,
    /// The oid of the database.
    pub(super) database: u32,
    /// The oid of the table `invalidation_generation`: a dump that is restored into the same
    /// database creates it again.
    pub(super) generation_table: u32,
}

impl Server {
    /// Returns the history of the database on this server.
    #[must_use]
    pub fn history(&self) -> History {
        self.history
    }

    /// Returns a server that started at another time than the default one.
    #[cfg(test)]
    pub(crate) fn other() -> Self {
        Self { started_at: 1, ..Self::default() }
    }

    /// Returns the server of a connection.
    ///
    /// # Errors
    /// The query fails, or the server cannot write: it is a standby, or the connection is
    /// read-only. It stays so, even if the server can write later.
    pub(super) async fn of(connection: &mut PgConnection) -> Result<Self, sqlx::Error> {
        let row = sqlx::query!(
            r#"SELECT (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint
                          AS "started_at!",
                      pg_is_in_recovery() AS "is_standby!",
                      current_setting('transaction_read_only')::boolean AS "is_read_only!",
                      (pg_control_system()).system_identifier AS "system_identifier!",
                      -- The name of a segment of the log begins with its timeline.
                      CASE WHEN pg_is_in_recovery() THEN 0
                           ELSE ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))
                                ::bit(32)::integer END AS "timeline!",
                      (SELECT oid FROM pg_database WHERE datname = current_database())
                          AS "database!: sqlx::postgres::types::Oid",
                      coalesce(to_regclass('public.invalidation_generation')::oid, 0)
                          AS "generation_table!: sqlx::postgres::types::Oid""#,
        )
        .fetch_one(connection)
        .await?;
        if row.is_standby || row.is_read_only {
            let state = if row.is_standby { "is a standby" } else { "is read-only" };
            return Err(sqlx::Error::Protocol(format!("the PostgreSQL server {state}")));
        }
        let history = History {
            system_identifier: row.system_identifier,
            timeline: row.timeline,
            database: row.database.0,
            generation_table: row.generation_table.0,
        };
        Ok(Self { started_at: row.started_at, history })
    }
}
