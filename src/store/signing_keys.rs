//! Signing keys. Private keys are stored sealed.
//!
//! A purpose never loses its last active key: [`Store::retire_signing_key`] refuses that.

use sqlx::{Postgres, Transaction};
use time::OffsetDateTime;

use super::{Store, StoreError};
use crate::model::{
    id::{Id, SigningKeyId},
    signing_key::{KeyPurpose, SigningAlgorithm, SigningKeyMetadata, StoredSigningKey},
};

impl Store {
    /// Returns the active keys, newest first. All of them verify.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn list_active_signing_keys(&self) -> Result<Vec<StoredSigningKey>, StoreError> {
        Ok(sqlx::query_as!(
            StoredSigningKey,
            r#"SELECT id AS "id: SigningKeyId", purpose AS "purpose: KeyPurpose",
                      algorithm AS "algorithm: SigningAlgorithm", sealed_private_key, created_at,
                      signs_at
               FROM signing_keys WHERE retired_at IS NULL ORDER BY created_at DESC, id DESC"#,
        )
        .fetch_all(&self.pools.background())
        .await?)
    }

    /// Inserts a signing key, unless there is an active one of its purpose and algorithm, such as
    /// that of a node that was faster.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn insert_missing_signing_key(
        &self,
        key: &StoredSigningKey,
    ) -> Result<(), StoreError> {
        let mut tx = self.begin_key_change().await?;
        sqlx::query!(
            "INSERT INTO signing_keys (id, purpose, algorithm, sealed_private_key, created_at,
                                       signs_at)
             SELECT $1, $2, $3, $4, $5, $6
             WHERE NOT EXISTS (SELECT FROM signing_keys
                               WHERE purpose = $2 AND algorithm = $3 AND retired_at IS NULL)",
            key.id.uuid(),
            key.purpose.as_str(),
            key.algorithm.as_str(),
            key.sealed_private_key,
            key.created_at,
            key.signs_at,
        )
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(())
    }

    /// Inserts another signing key.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn insert_signing_key(&self, key: &StoredSigningKey) -> Result<(), StoreError> {
        sqlx::query!(
            "INSERT INTO signing_keys (id, purpose, algorithm, sealed_private_key, created_at,
                                       signs_at)
             VALUES ($1, $2, $3, $4, $5, $6)",
            key.id.uuid(),
            key.purpose.as_str(),
            key.algorithm.as_str(),
            key.sealed_private_key,
            key.created_at,
            key.signs_at,
        )
        .execute(&self.pools.background())
        .await?;
        Ok(())
    }

    /// Retires a key for tokens. False if it is not active, or is the only active one of its
    /// purpose.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn retire_signing_key(
        &self,
        id: SigningKeyId,
        now: OffsetDateTime,
    ) -> Result<bool, StoreError> {
        let mut tx = self.begin_key_change().await?;
        let result = sqlx::query!(
            "UPDATE signing_keys key SET retired_at = $2
             WHERE id = $1 AND purpose <> 'checkpoints' AND retired_at IS NULL AND EXISTS (
                 SELECT FROM signing_keys other WHERE other.id <> $1 AND other.purpose = key.purpose
                     AND other.retired_at IS NULL)",
            id.uuid(),
            now,
        )
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(result.rows_affected() == 1)
    }

    /// Returns all signing keys, including retired ones, newest first.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn list_all_signing_keys(&self) -> Result<Vec<SigningKeyMetadata>, StoreError> {
        Ok(sqlx::query_as!(
            SigningKeyMetadata,
            r#"SELECT id AS "id: SigningKeyId", purpose AS "purpose: KeyPurpose",
                      algorithm AS "algorithm: SigningAlgorithm", created_at, signs_at, retired_at
               FROM signing_keys ORDER BY created_at DESC, id DESC"#,
        )
        .fetch_all(&self.pools.background())
        .await?)
    }

    /// Begins a transaction that holds the lock on key changes: no other node inserts its first key
    /// or retires one meanwhile.
    async fn begin_key_change(&self) -> Result<Transaction<'static, Postgres>, StoreError> {
        let mut tx = self.pools.background().begin().await?;
        sqlx::query!(r#"SELECT pg_advisory_xact_lock(hashtext('signing keys')) AS "lock?""#)
            .fetch_one(&mut *tx)
            .await?;
        Ok(tx)
    }
}
