//! Idempotency keys: stored responses of creating requests, so that a retry creates nothing twice.
//!
//! A key is locked while a transaction works on its request, and the response is stored in that
//! same transaction. [`crate::idempotency`] makes the ids, the MACs and the sealed responses.

use time::OffsetDateTime;

use super::{Store, StoreError, Tx};

/// The state of an idempotency key.
#[derive(Debug)]
pub enum IdempotencyRecord {
    /// No response is stored. No other transaction works on the request until this one ends.
    New,
    /// Another transaction works on the request.
    InProgress,
    /// A response is stored.
    Completed {
        /// The MAC of the request body.
        request_mac: Vec<u8>,
        /// The sealed response.
        sealed_response: Vec<u8>,
    },
}

/// Looks up an idempotency key and locks it for this transaction. `id` is the MAC that identifies
/// it.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn find_and_lock(
    tx: &mut Tx,
    id: &[u8],
    now: OffsetDateTime,
) -> Result<IdempotencyRecord, StoreError> {
    let row = sqlx::query!(
        r#"SELECT has_lock AS "has_lock!", request_mac, sealed_response
           FROM lock_idempotency_key($1, $2)"#,
        id,
        now
    )
    .fetch_one(tx.conn())
    .await?;
    Ok(match (row.has_lock, row.request_mac, row.sealed_response) {
        (false, ..) => IdempotencyRecord::InProgress,
        (true, Some(request_mac), Some(sealed_response)) => {
            IdempotencyRecord::Completed { request_mac, sealed_response }
        }
        (true, ..) => IdempotencyRecord::New,
    })
}

/// Stores a sealed response until `until`, with the MAC of the request body.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn store_response(
    tx: &mut Tx,
    id: &[u8],
    request_mac: &[u8],
    sealed_response: &[u8],
    until: OffsetDateTime,
) -> Result<(), StoreError> {
    sqlx::query!(
        r#"SELECT store_idempotent_response($1, $2, $3, $4) AS "done""#,
        id,
        request_mac,
        sealed_response,
        until
    )
    .fetch_one(tx.conn())
    .await?;
    Ok(())
}

impl Store {
    /// Deletes responses that have expired.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn prune_idempotency_keys(&self, now: OffsetDateTime) -> Result<(), StoreError> {
        sqlx::query!(r#"SELECT prune_idempotency_keys($1) AS "done""#, now)
            .fetch_one(&self.pools.background())
            .await?;
        Ok(())
    }
}
