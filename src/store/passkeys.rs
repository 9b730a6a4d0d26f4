//! Passkeys of users, and used challenges.
//!
//! Challenges are derived from their ids and are not stored. Only used ones are, so that each works
//! once.

use time::OffsetDateTime;
use uuid::Uuid;

use super::{Store, StoreError, Tx};
use crate::model::{
    id::{Id, PasskeyId, UserId},
    passkey::{NewPasskey, Passkey},
};

/// The data that a passkey's signature is verified with, read under a lock.
#[derive(Debug)]
pub struct StoredPasskey {
    /// The passkey's id.
    pub id: PasskeyId,
    /// The public key in COSE encoding.
    pub public_key: Vec<u8>,
    /// The signature counter at the last use.
    pub sign_count: i64,
    /// True if the passkey may be copied to other devices.
    pub backup_eligible: bool,
}

impl Store {
    /// Returns the user of a passkey, before the caller is authenticated.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn find_passkey_user(
        &self,
        credential_id: &[u8],
    ) -> Result<Option<UserId>, StoreError> {
        Ok(sqlx::query_scalar!(r#"SELECT find_passkey_user($1) AS "user: UserId""#, credential_id)
            .fetch_one(&self.pools.requests())
            .await?)
    }

    /// Deletes used challenges that are older than a day.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn prune_passkey_challenges(&self, now: OffsetDateTime) -> Result<(), StoreError> {
        sqlx::query!(r#"SELECT prune_used_webauthn_challenges($1) AS "done""#, now)
            .fetch_one(&self.pools.background())
            .await?;
        Ok(())
    }
}

/// Marks a challenge as used. False if it was used before.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn mark_challenge_used(tx: &mut Tx, challenge: Uuid) -> Result<bool, StoreError> {
    Ok(sqlx::query_scalar!(r#"SELECT use_webauthn_challenge($1) AS "is_first_use!""#, challenge)
        .fetch_one(tx.conn())
        .await?)
}

/// Inserts a new passkey. `tx` must belong to its user.
///
/// # Errors
/// [`Constraint::PasskeyRegistered`](super::Constraint::PasskeyRegistered) if the passkey is
/// already registered, by any user.
pub async fn insert(
    tx: &mut Tx,
    user: UserId,
    new: &NewPasskey,
    passkey: &Passkey,
) -> Result<(), StoreError> {
    sqlx::query!(
        "INSERT INTO passkeys (id, user_id, credential_id, public_key, sign_count, backup_eligible, name,
                               created_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        passkey.id.uuid(),
        user.uuid(),
        new.credential_id,
        new.public_key,
        i64::from(new.sign_count),
        new.is_backup_eligible,
        passkey.name,
        passkey.created_at,
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// Returns a user's passkey by its credential id and locks it until the transaction ends, so that
/// its uses take turns.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn lock(
    tx: &mut Tx,
    user: UserId,
    credential_id: &[u8],
) -> Result<Option<StoredPasskey>, StoreError> {
    Ok(sqlx::query_as!(
        StoredPasskey,
        r#"SELECT id AS "id: PasskeyId", public_key, sign_count, backup_eligible
           FROM passkeys WHERE user_id = $1 AND credential_id = $2 FOR UPDATE"#,
        user.uuid(),
        credential_id,
    )
    .fetch_optional(tx.conn())
    .await?)
}

/// Records a use of a passkey and its new signature counter.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn record_use(
    tx: &mut Tx,
    user: UserId,
    id: PasskeyId,
    sign_count: u32,
    now: OffsetDateTime,
) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE passkeys SET sign_count = $3, last_used_at = $4 WHERE id = $1 AND user_id = $2",
        id.uuid(),
        user.uuid(),
        i64::from(sign_count),
        now,
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// Lists a user's passkeys with their credential ids, newest first.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn list(tx: &mut Tx, user: UserId) -> Result<Vec<(Passkey, Vec<u8>)>, StoreError> {
    let rows = sqlx::query!(
        r#"SELECT id AS "id: PasskeyId", credential_id, name, created_at, last_used_at
           FROM passkeys WHERE user_id = $1 ORDER BY id DESC"#,
        user.uuid(),
    )
    .fetch_all(tx.conn())
    .await?;
    let passkeys = rows.into_iter().map(|row| {
        let (created_at, last_used_at) = (row.created_at, row.last_used_at);
        (Passkey { id: row.id, name: row.name, created_at, last_used_at }, row.credential_id)
    });
    Ok(passkeys.collect())
}

/// Deletes a user's passkey. False if it does not exist.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn remove(tx: &mut Tx, user: UserId, id: PasskeyId) -> Result<bool, StoreError> {
    let result =
        sqlx::query!("DELETE FROM passkeys WHERE id = $1 AND user_id = $2", id.uuid(), user.uuid())
            .execute(tx.conn())
            .await?;
    Ok(result.rows_affected() == 1)
}

/// Deletes all passkeys of a user. False if there are none.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn remove_all(tx: &mut Tx, user: UserId) -> Result<bool, StoreError> {
    let query = sqlx::query!("DELETE FROM passkeys WHERE user_id = $1", user.uuid());
    Ok(query.execute(tx.conn()).await?.rows_affected() > 0)
}
