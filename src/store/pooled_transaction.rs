use std::ops::{Deref, DerefMut};

use sqlx::{
    AssertSqlSafe, Database, PgConnection, PgPool, Postgres, SqlSafeStr, pool::PoolConnection,
};
use sqlx_core::transaction::TransactionManager;

/// The functions with which sqlx begins and ends transactions of PostgreSQL.
type Manager = <Postgres as Database>::TransactionManager;

/// A transaction on a connection of a pool. It is rolled back unless it is committed.
///
/// Unlike sqlx's own type, it returns no connection to its pool on which `BEGIN` has failed: sqlx
/// 0.9 leaves the aborted transaction open there, in which every later statement fails.
#[derive(Debug)]
pub(super) struct PooledTransaction {
    connection: PoolConnection<Postgres>,
    is_open: bool,
}

impl PooledTransaction {
    /// Begins a transaction with this statement. Must not be cancelled.
    pub(super) async fn begin(pool: &PgPool, statement: String) -> Result<Self, sqlx::Error> {
        let mut connection = pool.acquire().await?;
        let statement = AssertSqlSafe(statement).into_sql_str();
        let begun = Manager::begin(&mut connection, Some(statement)).await;
        let Err(error) = begun else { return Ok(Self { connection, is_open: true }) };
        let is_usable = error.as_database_error().is_some()
            && sqlx::raw_sql("ROLLBACK").execute(&mut *connection).await.is_ok();
        if !is_usable {
            connection.close_on_drop();
        }
        Err(error)
    }

    /// Commits the transaction.
    pub(super) async fn commit(mut self) -> Result<(), sqlx::Error> {
        Manager::commit(&mut self.connection).await?;
        self.is_open = false;
        Ok(())
    }

    /// Ends the transaction without its changes.
    pub(super) async fn rollback(mut self) -> Result<(), sqlx::Error> {
        Manager::rollback(&mut self.connection).await?;
        self.is_open = false;
        Ok(())
    }
}

impl Deref for PooledTransaction {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.connection
    }
}

impl DerefMut for PooledTransaction {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.connection
    }
}

impl Drop for PooledTransaction {
    fn drop(&mut self) {
        if self.is_open {
            // Sent when the connection returns to its pool.
            Manager::start_rollback(&mut self.connection);
        }
    }
}
