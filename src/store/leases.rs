//! The leases of nodes: their registration, renewal, acknowledgements and end.
//!
//! A revocation is answered once all nodes with a lease have acknowledged it. So each statement
//! that adds, changes or ends a lease has a MAC: SQL that an attacker injects could otherwise make
//! revocations wait, or let them not wait for a node that still accepts the credential.

use std::time::Duration;

use sqlx::{PgConnection, postgres::types::PgInterval};
use uuid::Uuid;

use super::{
    Store, StoreError,
    cache_invalidation::{FenceConnection, Generation, LeaseHolder, NodeConnection, Registration},
    context::{ContextSigner, SignedDecision, TimedMac},
};
use crate::model::{rotation::NodeWatermark, timestamp};

impl Store {
    /// Removes a node that no longer serves requests.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn deregister_node(&self, node: Uuid) -> Result<(), StoreError> {
        let SignedDecision { key_id, mac } =
            self.context.sign_decision("deregister_node", &[node.as_bytes()]);
        sqlx::query!(r#"SELECT deregister_node($1, $2, $3) AS "done""#, node, &key_id, &mac)
            .fetch_one(&self.pools.background())
            .await?;
        Ok(())
    }
}

impl NodeConnection {
    /// Registers a node whose cache is empty. Returns the generation after which it must apply
    /// invalidations, or `None` if the database is in quarantine.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn register(
        &mut self,
        node: Registration,
        lease: Duration,
        watermark: NodeWatermark,
    ) -> Result<Option<Generation>, StoreError> {
        // Before the first node of a database is registered, its history is settled at once.
        self.server.history().settle(None, &mut self.connection).await?;
        let written_until = timestamp::to_micros(watermark.written_until);
        let values: [&[u8]; 5] = [
            node.id.as_bytes(),
            &node.number.to_be_bytes(),
            &interval_bytes(lease),
            &written_until.to_be_bytes(),
            &watermark.clock_epoch.unwrap_or(-1).to_be_bytes(),
        ];
        let TimedMac { issued_at, key_id, mac } =
            self.context.sign_fresh_decision("register_node", &values);
        let row = sqlx::query!(
            r#"SELECT generation AS "number!", token AS "token!"
               FROM register_node($1, $2, $3, $4, $5, $6, $7, $8)"#,
            node.id,
            node.number,
            interval(lease),
            written_until,
            watermark.clock_epoch,
            issued_at,
            &key_id,
            &mac,
        )
        .fetch_optional(&mut *self.connection)
        .await?;
        if row.is_none() {
            self.pools.quarantine().set(true);
        }
        Ok(row.map(|row| Generation { number: row.number, token: row.token }))
    }

    /// Renews a node's lease and stores its watermark. False if the node must register again.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn renew_lease(
        &mut self,
        node: Registration,
        applied: Generation,
        lease: Duration,
        watermark: NodeWatermark,
    ) -> Result<bool, StoreError> {
        let written_until = timestamp::to_micros(watermark.written_until);
        let values: [&[u8]; 7] = [
            node.id.as_bytes(),
            &node.number.to_be_bytes(),
            &applied.number.to_be_bytes(),
            applied.token.as_bytes(),
            &interval_bytes(lease),
            &written_until.to_be_bytes(),
            &watermark.clock_epoch.unwrap_or(-1).to_be_bytes(),
        ];
        let TimedMac { issued_at, key_id, mac } =
            self.context.sign_fresh_decision("renew_lease", &values);
        Ok(sqlx::query_scalar!(
            r#"SELECT renew_lease($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) AS "is!""#,
            node.id,
            node.number,
            applied.number,
            applied.token,
            interval(lease),
            written_until,
            watermark.clock_epoch,
            issued_at,
            &key_id,
            &mac,
        )
        .fetch_one(&mut *self.connection)
        .await?)
    }

    /// Records that a node has applied all invalidations up to generation `applied`.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn acknowledge(
        &mut self,
        node: Registration,
        applied: Generation,
    ) -> Result<(), StoreError> {
        let values: [&[u8]; 4] = [
            node.id.as_bytes(),
            &node.number.to_be_bytes(),
            &applied.number.to_be_bytes(),
            applied.token.as_bytes(),
        ];
        let SignedDecision { key_id, mac } =
            self.context.sign_decision("acknowledge_generation", &values);
        sqlx::query!(
            r#"SELECT acknowledge_generation($1, $2, $3, $4, $5, $6) AS "done""#,
            node.id,
            node.number,
            applied.number,
            applied.token,
            &key_id,
            &mac,
        )
        .fetch_one(&mut *self.connection)
        .await?;
        Ok(())
    }

    /// Returns all nodes that may use their caches.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn lease_holders(&mut self) -> Result<Vec<LeaseHolder>, StoreError> {
        find_unacknowledged_nodes(&mut self.connection, i64::MAX).await
    }

    /// Records that the lease of a node has expired, unless it was renewed meanwhile.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn expire_lease(&mut self, node: &LeaseHolder) -> Result<(), StoreError> {
        expire_lease(&mut self.connection, &self.context, node).await
    }
}

impl FenceConnection {
    /// Returns the nodes that may use their caches and have not acknowledged `generation`.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn unacknowledged_nodes(
        &mut self,
        generation: i64,
    ) -> Result<Vec<LeaseHolder>, StoreError> {
        find_unacknowledged_nodes(&mut self.connection, generation).await
    }

    /// Records that the lease of a node has expired, unless it was renewed meanwhile.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn expire_lease(&mut self, node: &LeaseHolder) -> Result<(), StoreError> {
        expire_lease(&mut self.connection, &self.context, node).await
    }
}

async fn find_unacknowledged_nodes(
    connection: &mut PgConnection,
    generation: i64,
) -> Result<Vec<LeaseHolder>, StoreError> {
    let rows = sqlx::query!(
        r#"SELECT id AS "id!", registration AS "registration!", renewals AS "renewals!",
                  (extract(epoch FROM lease) * 1000000)::bigint AS "lease_us!"
           FROM find_unacknowledged_nodes($1)"#,
        generation,
    )
    .fetch_all(connection)
    .await?;
    let holders = rows.into_iter().map(|row| LeaseHolder {
        node: Registration { id: row.id, number: row.registration },
        renewals: row.renewals,
        lease: Duration::from_micros(row.lease_us.unsigned_abs()),
    });
    Ok(holders.collect())
}

async fn expire_lease(
    connection: &mut PgConnection,
    context: &ContextSigner,
    holder: &LeaseHolder,
) -> Result<(), StoreError> {
    let LeaseHolder { node, renewals, .. } = holder;
    let values: [&[u8]; 3] =
        [node.id.as_bytes(), &node.number.to_be_bytes(), &renewals.to_be_bytes()];
    let SignedDecision { key_id, mac } = context.sign_decision("expire_lease", &values);
    sqlx::query!(
        r#"SELECT expire_lease($1, $2, $3, $4, $5) AS "done""#,
        node.id,
        node.number,
        renewals,
        &key_id,
        &mac,
    )
    .fetch_one(connection)
    .await?;
    Ok(())
}

pub(super) fn interval(duration: Duration) -> PgInterval {
    let microseconds = i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
    PgInterval { months: 0, days: 0, microseconds }
}

/// Returns what `interval_send()` returns for [`interval`]: microseconds, days and months.
pub(super) fn interval_bytes(duration: Duration) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&interval(duration).microseconds.to_be_bytes());
    bytes
}
