use sqlx::{PgConnection, Postgres, error::DatabaseError, pool::PoolConnection};

use super::{Server, Store, StoreError, pools::ServerBinding};

/// A connection that one task keeps for itself.
///
/// sqlx pings a connection each time it returns to its pool: a round trip for each statement. A
/// task that runs one statement after another avoids it by keeping its connection.
#[derive(Debug)]
pub struct DedicatedConnection {
    store: Store,
    connection: Option<(PoolConnection<Postgres>, ServerBinding)>,
    /// The only server that queries may run on.
    server: Option<Server>,
}

impl DedicatedConnection {
    /// Creates the handle. It connects on first use.
    #[must_use]
    pub fn new(store: Store) -> Self {
        Self { store, connection: None, server: None }
    }

    /// Returns the server of the connection. The following queries fail if they would run on
    /// another one.
    ///
    /// # Errors
    /// [`StoreError`] if there is no connection, and none can be opened.
    pub async fn server(&mut self) -> Result<Server, StoreError> {
        let (connection, binding) = self.take().await?;
        let server = binding.server()?;
        (self.connection, self.server) = (Some((connection, binding)), Some(server));
        Ok(server)
    }

    /// Runs `work` on the connection. The connection is kept only if `work` succeeds: after an
    /// error or a cancellation its state is unknown, so it returns to its pool, which tests it.
    pub(super) async fn run<T>(
        &mut self,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, StoreError> {
        let (mut connection, binding) = self.take().await?;
        if self.server.is_some_and(|server| binding.server().ok() != Some(server)) {
            return Err(StoreError::timed_out());
        }
        let work = async {
            work(&mut connection).await.inspect_err(|error| {
                if has_stale_statement(error) {
                    connection.close_on_drop();
                }
            })
        };
        let output = self.store.pools.until_replaced(&binding, work).await?;
        self.connection = Some((connection, binding));
        Ok(output)
    }

    /// Takes the connection out; opens one if there is none, or if it reaches a server that was
    /// replaced.
    async fn take(&mut self) -> Result<(PoolConnection<Postgres>, ServerBinding), StoreError> {
        match self.connection.take() {
            Some(connection) if connection.1.server().is_ok() => Ok(connection),
            _ => self.store.pools.acquire_background().await,
        }
    }
}

/// Returns true if a prepared statement of the connection no longer works: its result has changed
/// with the schema (0A000), or the server does not know it any more (26000). sqlx would go on to
/// use it.
fn has_stale_statement(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(DatabaseError::code);
    matches!(code.as_deref(), Some("0A000" | "26000"))
}
