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
    context::ContextSigner,
    pools::{Pools, ServerBinding},
};

/// Timeout of a query, because a connection may hang forever.
const QUERY_TIMEOUT: Duration = Duration::from_secs(5);

impl History {
    /// Returns true if every node with a lease is registered in this history of the database.
    /// Records it if this node knows it, and signs that; also if no node has used the database.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub(super) async fn settle(
        self,
        signer: Option<&ContextSigner>,
        connection: &mut PgConnection,
    ) -> Result<bool, StoreError> {
        let Self { system_identifier, timeline, database, generation_table } = self;
        let decision = signer.map(|signer| {
            let values: [&[u8]; 4] = [
                &system_identifier.to_be_bytes(),
                &timeline.to_be_bytes(),
                &database.to_be_bytes(),
                &generation_table.to_be_bytes(),
            ];
            signer.sign_decision("settle_history", &values)
        });
        Ok(sqlx::query_scalar!(
            r#"SELECT settle_history($1, $2, $3, $4, $5, $6, $7) AS "is!""#,
            system_identifier,
            timeline,
            Oid(database),
            Oid(generation_table),
            decision.is_some(),
            decision.as_ref().map(|decision| &decision.key_id[..]),
            decision.as_ref().map(|decision| &decision.mac[..]),
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
        signer: &ContextSigner,
    ) -> Result<(), StoreError> {
        let settle = || async {
            if !self.settle(binding, None).await? {
                sleep_until(binding.first_seen() + self.lease_duration() + LEASE_TOLERANCE).await;
                self.settle(binding, Some(signer)).await?;
            }
            Ok(())
        };
        binding.settled().get_or_try_init(settle).await.copied()
    }

    async fn settle(
        &self,
        binding: &ServerBinding,
        signer: Option<&ContextSigner>,
    ) -> Result<bool, StoreError> {
        let server = binding.server()?;
        Store::with_timeout(QUERY_TIMEOUT, async {
            server.history().settle(signer, &mut *self.acquire_on(server).await?).await
        })
        .await
    }
}
