use sqlx::{PgConnection, Postgres, pool::PoolConnection};

use super::{Store, StoreError};

/// A connection that one task keeps for itself.
///
/// sqlx pings a connection each time it returns to its pool: a round trip for each statement. A
/// task that runs one statement after another avoids it by keeping its connection.
#[derive(Debug)]
pub struct DedicatedConnection {
    store: Store,
    connection: Option<PoolConnection<Postgres>>,
}

impl DedicatedConnection {
    /// Creates the handle. It connects on first use.
    #[must_use]
    pub fn new(store: Store) -> Self {
        Self { store, connection: None }
    }

    /// Runs `work` on the connection. The connection is kept only if `work` succeeds: after an
    /// error or a cancellation its state is unknown.
    pub(super) async fn run<T>(
        &mut self,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, StoreError> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.store.pools.background().acquire().await?,
        };
        let output = work(&mut connection).await?;
        self.connection = Some(connection);
        Ok(output)
    }
}
