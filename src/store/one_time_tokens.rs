//! One-time tokens of mailed links, for password reset and email verification.
//!
//! A token is a MAC over its purpose and id under a key that is not in the database, so a database
//! dump contains no usable token.

use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::{Store, StoreError, Tx};
use crate::model::{
    email::Email,
    id::{Id, UserId},
    one_time_token::TokenPurpose,
};

/// The maximum number of tokens of one purpose that a user gets within [`LIMIT_WINDOW`].
const MAX_RECENT_TOKENS: i64 = 5;
/// The period over which tokens are counted for the limit.
const LIMIT_WINDOW: Duration = Duration::hours(1);

impl Store {
    /// Returns the user of a token, before the caller is authenticated.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn find_one_time_token_user(
        &self,
        purpose: TokenPurpose,
        id: Uuid,
    ) -> Result<Option<UserId>, StoreError> {
        let row = sqlx::query!(
            r#"SELECT user_id AS "user_id!: UserId", purpose AS "purpose!" FROM find_one_time_token_user($1)"#,
            id,
        )
        .fetch_optional(&self.pools.requests())
        .await?;
        Ok(row.filter(|row| row.purpose == purpose.as_str()).map(|row| row.user_id))
    }

    /// Returns the address that a token was created for, in lower case.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn find_one_time_token_email(
        &self,
        purpose: TokenPurpose,
        id: Uuid,
    ) -> Result<Option<String>, StoreError> {
        let email = sqlx::query_scalar!(
            r#"SELECT find_one_time_token_email($1, $2) AS "email""#,
            id,
            purpose.as_str(),
        );
        Ok(email.fetch_one(&self.pools.background()).await?)
    }

    /// Stores a password reset token for the account with this address. If the token is already
    /// stored for it and unused, its lifetime starts again. False if there is no such account, if
    /// the token was used or is another one with this id, or if five others were stored for the
    /// account within an hour.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn start_password_reset(
        &self,
        id: Uuid,
        email: &Email,
        created_at: OffsetDateTime,
        expires_at: OffsetDateTime,
    ) -> Result<bool, StoreError> {
        let started = sqlx::query_scalar!(
            r#"SELECT start_password_reset($1, $2, $3, $4, $5, $6) AS "started!""#,
            id,
            email.normalized(),
            created_at,
            expires_at,
            created_at - LIMIT_WINDOW,
            MAX_RECENT_TOKENS,
        );
        Ok(started.fetch_one(&self.pools.background()).await?)
    }

    /// Deletes tokens that expired more than seven days ago.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn prune_one_time_tokens(&self, now: OffsetDateTime) -> Result<(), StoreError> {
        sqlx::query!(r#"SELECT prune_one_time_tokens($1) AS "done""#, now)
            .fetch_one(&self.pools.background())
            .await?;
        Ok(())
    }
}

/// Stores a token for the address that it is emailed to. False if the user has five tokens of this
/// purpose from the last hour. The limit protects an address that may belong to a stranger.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn insert(
    tx: &mut Tx,
    user: UserId,
    id: Uuid,
    purpose: TokenPurpose,
    email: &Email,
    created_at: OffsetDateTime,
    expires_at: OffsetDateTime,
) -> Result<bool, StoreError> {
    let result = sqlx::query!(
        "INSERT INTO one_time_tokens (id, purpose, user_id, normalized_email, created_at, expires_at)
         SELECT $1::uuid, $2::text, $3::uuid, $4::text, $5::timestamptz, $6::timestamptz
         WHERE (SELECT count(*) FROM one_time_tokens
                WHERE user_id = $3 AND purpose = $2 AND created_at > $7) < $8",
        id,
        purpose.as_str(),
        user.uuid(),
        email.normalized(),
        created_at,
        expires_at,
        created_at - LIMIT_WINDOW,
        MAX_RECENT_TOKENS,
    )
    .execute(tx.conn())
    .await?;
    Ok(result.rows_affected() == 1)
}

/// Marks a token as used. False if it was used before, has expired, or was sent to an address that
/// is no longer the user's. Concurrent calls take turns.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn redeem(
    tx: &mut Tx,
    user: UserId,
    id: Uuid,
    purpose: TokenPurpose,
    now: OffsetDateTime,
) -> Result<bool, StoreError> {
    let result = sqlx::query!(
        "UPDATE one_time_tokens t SET used_at = $4
         FROM users u
         WHERE t.id = $1 AND t.user_id = $2 AND t.purpose = $3 AND t.used_at IS NULL
           AND t.expires_at > $4 AND u.id = t.user_id AND u.normalized_email = t.normalized_email",
        id,
        user.uuid(),
        purpose.as_str(),
        now,
    )
    .execute(tx.conn())
    .await?;
    Ok(result.rows_affected() == 1)
}

/// Marks all unused tokens of a user for a purpose as used.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn discard(
    tx: &mut Tx,
    user: UserId,
    purpose: TokenPurpose,
    now: OffsetDateTime,
) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE one_time_tokens SET used_at = $3
         WHERE user_id = $1 AND purpose = $2 AND used_at IS NULL",
        user.uuid(),
        purpose.as_str(),
        now,
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}
