//! Passkeys of people.

use time::OffsetDateTime;
use uuid::Uuid;

use super::{Store, StoreError, Tx};
use crate::model::{
    id::{Id, PasskeyId, UserId},
    passkey::{NewPasskey, Passkey},
};

/// What a passkey's signature is checked with; read under a lock.
#[derive(Debug)]
pub struct KnownPasskey {
    /// Its id.
    pub id: PasskeyId,
    /// Its public key, as COSE has it.
    pub public_key: Vec<u8>,
    /// How often it had signed.
    pub sign_count: i64,
    /// Whether it may be copied to other devices.
    pub backup_eligible: bool,
}

impl Store {
    /// Whose passkey this is, before anybody is known.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn find_passkey(&self, credential_id: &[u8]) -> Result<Option<UserId>, StoreError> {
        Ok(sqlx::query_scalar!(r#"SELECT find_passkey($1) AS "user: UserId""#, credential_id)
            .fetch_one(&self.pools.requests())
            .await?)
    }

    /// Drops challenges that nobody can meet any more.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn prune_passkey_challenges(&self, now: OffsetDateTime) -> Result<(), StoreError> {
        sqlx::query!(r#"SELECT prune_passkey_challenges($1) AS "done""#, now)
            .fetch_one(&self.pools.own())
            .await?;
        Ok(())
    }
}

/// Notes that a challenge was met; false where it was before.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn meet_challenge(tx: &mut Tx, challenge: Uuid) -> Result<bool, StoreError> {
    Ok(sqlx::query_scalar!(r#"SELECT meet_passkey_challenge($1) AS "first!""#, challenge)
        .fetch_one(tx.conn())
        .await?)
}

/// Stores a new passkey, in a transaction of its person.
///
/// # Errors
/// [`Constraint::PasskeyKnown`](super::Constraint::PasskeyKnown) where somebody has it already.
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

/// A passkey of a person, by what its device knows it by. Its uses take turns until the transaction ends.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn lock(
    tx: &mut Tx,
    user: UserId,
    credential_id: &[u8],
) -> Result<Option<KnownPasskey>, StoreError> {
    Ok(sqlx::query_as!(
        KnownPasskey,
        r#"SELECT id AS "id: PasskeyId", public_key, sign_count, backup_eligible
           FROM passkeys WHERE user_id = $1 AND credential_id = $2 FOR UPDATE"#,
        user.uuid(),
        credential_id,
    )
    .fetch_optional(tx.conn())
    .await?)
}

/// Notes that a passkey was used.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn note_use(
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

/// A person's passkeys, the newest first, and what their devices know them by.
///
/// # Errors
/// When PostgreSQL cannot be reached.
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

/// Takes a person's passkey away; false where there was none.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn remove(tx: &mut Tx, user: UserId, id: PasskeyId) -> Result<bool, StoreError> {
    let done =
        sqlx::query!("DELETE FROM passkeys WHERE id = $1 AND user_id = $2", id.uuid(), user.uuid())
            .execute(tx.conn())
            .await?;
    Ok(done.rows_affected() == 1)
}

/// Takes all of a person's passkeys away; false where there was none.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn remove_all(tx: &mut Tx, user: UserId) -> Result<bool, StoreError> {
    let done = sqlx::query!("DELETE FROM passkeys WHERE user_id = $1", user.uuid());
    Ok(done.execute(tx.conn()).await?.rows_affected() > 0)
}
