//! One-time tokens of mailed links, for password reset and email verification.
//!
//! A token is a MAC over its account, address, purpose and id, under a key that is not in the
//! database, so a database dump contains no usable token.

use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::{Store, StoreError, Tx};
use crate::model::{
    email::Email,
    id::{Id, UserId},
    one_time_token::BoundTokenPurpose,
};

/// The maximum number of tokens of one purpose that a user gets within [`LIMIT_WINDOW`].
const MAX_RECENT_TOKENS: i64 = 5;
/// The period over which tokens are counted for the limit.
const LIMIT_WINDOW: Duration = Duration::hours(1);

/// The user and the address that a token is bound to.
#[derive(Debug)]
pub struct OneTimeTokenOwner {
    /// The user.
    pub user: UserId,
    /// The address in lower case.
    pub email: String,
}

impl Store {
    /// Returns the user and the address of a token, before the caller is authenticated.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn find_one_time_token(
        &self,
        purpose: BoundTokenPurpose,
        id: Uuid,
    ) -> Result<Option<OneTimeTokenOwner>, StoreError> {
        Ok(sqlx::query_as!(
            OneTimeTokenOwner,
            r#"SELECT user_id AS "user!: UserId", normalized_email AS "email!"
               FROM find_one_time_token($1, $2)"#,
            id,
            purpose.as_str(),
        )
        .fetch_optional(&self.pools.requests())
        .await?)
    }

    /// Stores a password reset token for the account with this address, and returns the account. If
    /// the token is already stored for it and unused, its lifetime starts again. `None` if there is
    /// no such account, if the token was used or is another one with this id, or if five others
    /// were stored for the account within an hour.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn start_password_reset(
        &self,
        id: Uuid,
        email: &Email,
        created_at: OffsetDateTime,
        expires_at: OffsetDateTime,
    ) -> Result<Option<UserId>, StoreError> {
        let account = sqlx::query_scalar!(
            r#"SELECT start_password_reset($1, $2, $3, $4, $5, $6) AS "account: UserId""#,
            id,
            email.normalized(),
            created_at,
            expires_at,
            created_at - LIMIT_WINDOW,
            MAX_RECENT_TOKENS,
        );
        Ok(account.fetch_one(&self.pools.background()).await?)
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
    purpose: BoundTokenPurpose,
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
    purpose: BoundTokenPurpose,
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
    purpose: BoundTokenPurpose,
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
