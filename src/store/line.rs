use sqlx::{PgConnection, Postgres, pool::PoolConnection};

use super::{Store, StoreError};

/// A connection that one task of the service keeps to itself.
///
/// sqlx asks a connection whether it lives whenever one is given back to its pool: a round trip for
/// each statement, which a task that does nothing else can do without.
#[derive(Debug)]
pub struct Line {
    store: Store,
    kept: Option<PoolConnection<Postgres>>,
}

impl Line {
    /// Connects when it is used.
    #[must_use]
    pub fn new(store: Store) -> Self {
        Self { store, kept: None }
    }

    /// Does something over the connection. It is kept only if that succeeds: whoever gives up half-way
    /// leaves a connection behind in whose state nobody should trust.
    pub(super) async fn run<T>(
        &mut self,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, StoreError> {
        let mut connection = match self.kept.take() {
            Some(kept) => kept,
            None => self.store.pools.own().acquire().await?,
        };
        let done = work(&mut connection).await?;
        self.kept = Some(connection);
        Ok(done)
    }
}
