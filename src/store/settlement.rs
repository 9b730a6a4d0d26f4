//! Settlement of a history: commits are answered once all leases of earlier servers are over.
//!
//! A failover or a restore may lose the registration of a node that has a lease. Until the lease is
//! over, the node may accept credentials whose end was committed on the new server, and does not
//! find those that were created there. See `docs/revocation.md`, rule 6.

use std::time::Duration;

use sqlx::{PgConnection, postgres::types::Oid};
use tokio::time::sleep_until;

use super::{
    History, Store, StoreError,
    cache_invalidation::LEASE_TOLERANCE,
    pools::{Pools, ServerBinding},
};

/// Timeout of a query, because a connection may hang forever.
const QUERY_TIMEOUT: Duration = Duration::from_secs(5);

impl History {
    /// Returns true if every node with a lease is registered in this history of the database.
    /// Records it if `is_settled`, or if no node has used the database.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub(super) async fn settle(
        self,
        is_settled: bool,
        connection: &mut PgConnection,
    ) -> Result<bool, StoreError> {
        let Self { system_identifier, timeline, database, generation_table } = self;
        Ok(sqlx::query_scalar!(
            r#"SELECT settle_history($1, $2, $3, $4, $5) AS "is!""#,
            system_identifier,
            timeline,
            Oid(database),
            Oid(generation_table),
            is_settled,
        )
        .fetch_one(connection)
        .await?)
    }
}

impl Pools {
    /// Waits until no node can have a lease from before the history of a server. Asks PostgreSQL
    /// once for each server.
    ///
    /// # Errors
    /// [`StoreError`] if a query fails, or if new connections reach another server.
    pub(super) async fn wait_until_settled(
        &self,
        binding: &ServerBinding,
    ) -> Result<(), StoreError> {
        let settle = || async {
            if !self.settle(binding, false).await? {
                sleep_until(binding.first_seen() + self.lease_duration() + LEASE_TOLERANCE).await;
                self.settle(binding, true).await?;
            }
            Ok(())
        };
        binding.settled().get_or_try_init(settle).await.copied()
    }

    async fn settle(&self, binding: &ServerBinding, is_settled: bool) -> Result<bool, StoreError> {
        let server = binding.server()?;
        Store::with_timeout(QUERY_TIMEOUT, async {
            server.history().settle(is_settled, &mut *self.acquire_on(server).await?).await
        })
        .await
    }
}
