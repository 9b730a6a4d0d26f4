//! Keys that sign access tokens; the private halves are sealed.

use super::{Store, StoreError};
use crate::model::{
    id::{Id, SigningKeyId},
    signing_key::StoredSigningKey,
};

impl Store {
    /// The keys whose tokens are still believed, the youngest, which signs, first.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn signing_keys(&self) -> Result<Vec<StoredSigningKey>, StoreError> {
        Ok(sqlx::query_as!(
            StoredSigningKey,
            r#"SELECT id AS "id: SigningKeyId", public_key, sealed_private_key, created_at
               FROM signing_keys WHERE retired_at IS NULL ORDER BY created_at DESC, id DESC"#,
        )
        .fetch_all(&self.pools.requests())
        .await?)
    }

    /// Stores the first signing key, unless another node was faster.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn insert_first_signing_key(&self, key: &StoredSigningKey) -> Result<(), StoreError> {
        let mut tx = self.pools.requests().begin().await?;
        sqlx::query!(r#"SELECT pg_advisory_xact_lock(hashtext('first signing key')) AS "lock?""#)
            .fetch_one(&mut *tx)
            .await?;
        sqlx::query!(
            "INSERT INTO signing_keys (id, public_key, sealed_private_key, created_at)
             SELECT $1, $2, $3, $4
             WHERE NOT EXISTS (SELECT FROM signing_keys WHERE retired_at IS NULL)",
            key.id.uuid(),
            key.public_key,
            key.sealed_private_key,
            key.created_at,
        )
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(())
    }
}
