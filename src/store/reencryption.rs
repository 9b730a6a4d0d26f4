//! Re-encryption of sealed values, as the owner of the tables: row-level security hides other
//! workspaces from the role of the service, and no function lets that role change such values.
//!
//! [`crate::auth::reencryption`] runs it.

use std::{fmt, time::Duration};

use sqlx::{AssertSqlSafe, Connection as _};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{ServiceLogin, StoreError, brief, leases::interval, owner_connection::OwnerConnection};
use crate::model::key_ring::KeyId;

/// A column of sealed values.
#[derive(Debug)]
pub struct SealedColumn {
    table: &'static str,
    /// The primary key, a UUID.
    key: &'static str,
    /// An SQL expression for the context that a value is sealed with.
    context: &'static str,
    column: &'static str,
}

impl fmt::Display for SealedColumn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.table, self.column)
    }
}

/// The seeds of sessions' refresh tokens.
pub const SESSION_SEEDS: SealedColumn =
    SealedColumn { table: "sessions", key: "id", context: "uuid_send(id)", column: "refresh_seed" };

/// The seeds of OAuth grants' refresh tokens.
pub const GRANT_SEEDS: SealedColumn = SealedColumn {
    table: "oauth_grants",
    key: "id",
    context: "uuid_send(id)",
    column: "refresh_seed",
};

/// The keys of authenticator apps and recovery codes.
pub const FACTOR_KEYS: SealedColumn = SealedColumn {
    table: "totp_factors",
    key: "user_id",
    context: "uuid_send(factor_id)",
    column: "sealed_key",
};

/// Private signing keys.
pub const SIGNING_KEYS: SealedColumn = SealedColumn {
    table: "signing_keys",
    key: "id",
    context: "uuid_send(id) || convert_to(purpose || ' ' || algorithm, 'UTF8')",
    column: "sealed_private_key",
};

/// A sealed value.
#[derive(Debug, sqlx::FromRow)]
pub struct SealedValue {
    /// The primary key of its row.
    pub key: Uuid,
    /// The context that it is sealed with.
    pub context: Vec<u8>,
    /// The value.
    pub sealed: Vec<u8>,
}

/// A value that is sealed under another key, and its replacement.
#[derive(Debug)]
pub struct ResealedValue {
    /// The primary key of its row.
    pub key: Uuid,
    /// The value to replace.
    pub old: Vec<u8>,
    /// The new value.
    pub new: Vec<u8>,
}

/// The use of an encryption key that is not the current one.
#[derive(Debug)]
pub struct PreviousKeyUse {
    /// The id of the key.
    pub id: Vec<u8>,
    /// The number of running nodes that create values with it.
    pub nodes: i64,
    /// The time at which the last value that cannot be re-encrypted expires. `None` while nodes
    /// create such values.
    pub needed_until: Option<OffsetDateTime>,
    /// True if that time has passed.
    pub is_expired: bool,
}

impl OwnerConnection {
    /// Returns up to `limit` values after a primary key, in its order.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn list_sealed(
        &mut self,
        SealedColumn { table, key, context, column }: &SealedColumn,
        after: Uuid,
        limit: i64,
    ) -> Result<Vec<SealedValue>, StoreError> {
        // Formatting is safe: the names are constants.
        let sql = format!(
            "SELECT {key} AS key, {context} AS context, {column} AS sealed FROM {table}
             WHERE {key} > $1 ORDER BY {key} LIMIT $2"
        );
        let query = sqlx::query_as(AssertSqlSafe(sql)).bind(after).bind(limit);
        Ok(query.fetch_all(&mut self.0).await?)
    }

    /// Replaces values that have not changed since they were read. Rows that a transaction has
    /// locked are skipped, so this waits for none and cannot deadlock. Returns the number of
    /// replaced values.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn replace_sealed(
        &mut self,
        SealedColumn { table, key, column, .. }: &SealedColumn,
        values: Vec<ResealedValue>,
    ) -> Result<u64, StoreError> {
        let (mut keys, mut old, mut new) = (Vec::new(), Vec::new(), Vec::new());
        for value in values {
            keys.push(value.key);
            old.push(value.old);
            new.push(value.new);
        }
        let sql = format!(
            "WITH change AS (
                 SELECT * FROM unnest($1::uuid[], $2::bytea[], $3::bytea[]) AS c (key, old, new)
             ), locked AS (
                 SELECT c.key, c.old, c.new FROM {table} t JOIN change c ON t.{key} = c.key
                 WHERE t.{column} = c.old FOR NO KEY UPDATE OF t SKIP LOCKED
             )
             UPDATE {table} t SET {column} = l.new FROM locked l
             WHERE t.{key} = l.key AND t.{column} = l.old"
        );
        let query = sqlx::query(AssertSqlSafe(sql)).bind(keys).bind(old).bind(new);
        Ok(query.execute(&mut self.0).await?.rows_affected())
    }

    /// Records the keys other than `current` that no running node uses any more, and returns all of
    /// them. `lifetime` is that of values that cannot be re-encrypted.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn record_previous_keys(
        &mut self,
        current: KeyId,
        lifetime: Duration,
    ) -> Result<Vec<PreviousKeyUse>, StoreError> {
        // A node that crashed may have created values until its lease ended.
        Ok(sqlx::query_as!(
            PreviousKeyUse,
            r#"WITH node AS (
                   SELECT encryption_key_id AS id, max(renewed_at + lease) AS lease_until,
                          count(*) FILTER (WHERE NOT is_expired) AS running
                   FROM nodes GROUP BY encryption_key_id
               )
               UPDATE context_keys k
               SET replaced_at = CASE WHEN node.running > 0 THEN NULL
                   ELSE greatest(coalesce(k.replaced_at, clock_timestamp()), node.lease_until) END
               FROM context_keys other LEFT JOIN node USING (id)
               WHERE k.id = other.id AND k.id <> $1
               RETURNING k.id AS "id!", coalesce(node.running, 0) AS "nodes!",
                         k.replaced_at + $2 AS "needed_until",
                         coalesce(k.replaced_at + $2 <= clock_timestamp(), false) AS "is_expired!""#,
            &current,
            interval(lifetime),
        )
        .fetch_all(&mut self.0)
        .await?)
    }

    /// Removes a key that no running node uses: the database no longer accepts it. False if a node
    /// uses it.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn remove_key(&mut self, id: &[u8]) -> Result<bool, StoreError> {
        let removed = sqlx::query!(
            "DELETE FROM context_keys WHERE id = $1 AND NOT EXISTS (
                 SELECT FROM nodes WHERE encryption_key_id = $1 AND NOT is_expired)",
            id,
        )
        .execute(&mut self.0)
        .await?;
        Ok(removed.rows_affected() == 1)
    }

    /// Removes all keys but one at once, also those that nodes use or that were added meanwhile,
    /// and returns the ids of the removed ones. SQL that an attacker injects can register nodes, so
    /// they must not keep a leaked key. A node with a removed key fails until it is restarted.
    /// Records the removed keys and `others` as discarded, so that no node starts with one.
    ///
    /// # Errors
    /// [`StoreError`] if a query fails.
    pub async fn discard_keys_except(
        &mut self,
        id: KeyId,
        others: &[KeyId],
    ) -> Result<Vec<Vec<u8>>, StoreError> {
        let mut tx = self.0.begin().await?;
        // Waits for transactions that are about to add a key. Later ones do not find the key that
        // proves that they may.
        sqlx::query!("LOCK TABLE context_keys IN EXCLUSIVE MODE").execute(&mut *tx).await?;
        let removed =
            sqlx::query_scalar!("DELETE FROM context_keys WHERE id <> $1 RETURNING id", &id)
                .fetch_all(&mut *tx)
                .await?;
        let others = others.iter().filter(|other| **other != id).map(|other| other.to_vec());
        let discarded: Vec<_> = removed.iter().cloned().chain(others).collect();
        sqlx::query!(
            "INSERT INTO discarded_context_keys (id)
             SELECT DISTINCT id FROM unnest($1::bytea[]) AS id ON CONFLICT DO NOTHING",
            &discarded,
        )
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(removed)
    }

    /// Drops the login of the service that was derived from a removed key, if there is one.
    ///
    /// # Errors
    /// A one-line message for the operator.
    pub async fn drop_service_login(&mut self, login: &ServiceLogin) -> Result<(), String> {
        // Formatting is safe: the name has letters, digits and underscores only.
        let sql = format!(
            "DO $$ BEGIN
                 IF EXISTS (SELECT FROM pg_roles WHERE rolname = '{name}') THEN
                     DROP ROLE {name};
                 END IF;
             END $$",
            name = login.name
        );
        let dropped = sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut self.0).await;
        dropped.map(drop).map_err(|error| {
            format!("cannot drop the login {} of the previous key: {}", login.name, brief(&error))
        })
    }
}
