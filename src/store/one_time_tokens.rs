//! Links that work once.

use time::OffsetDateTime;
use uuid::Uuid;

use super::{Store, StoreError, Tx};
use crate::model::{
    email::Email,
    id::{Id, UserId},
    one_time_token::Purpose,
};

impl Store {
    /// Whose token this is, before anybody is known.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn find_one_time_token(
        &self,
        purpose: Purpose,
        id: Uuid,
    ) -> Result<Option<UserId>, StoreError> {
        let row = sqlx::query!(
            r#"SELECT user_id AS "user_id!: UserId", purpose AS "purpose!" FROM find_one_time_token($1)"#,
            id,
        )
        .fetch_optional(&self.pools.requests())
        .await?;
        Ok(row.filter(|row| row.purpose == purpose.as_str()).map(|row| row.user_id))
    }

    /// Stores a token, or lets it run anew, to reset the password of whoever has the address; false: nobody has, or they have
    /// been mailed five within an hour.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn start_password_reset(
        &self,
        id: Uuid,
        email: &Email,
        created_at: OffsetDateTime,
        expires_at: OffsetDateTime,
    ) -> Result<bool, StoreError> {
        let started = sqlx::query_scalar!(
            r#"SELECT start_password_reset($1, $2, $3, $4) AS "started!""#,
            id,
            email.key(),
            created_at,
            expires_at,
        );
        Ok(started.fetch_one(&self.pools.own()).await?)
    }

    /// Drops tokens that expired a while ago.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn prune_one_time_tokens(&self, now: OffsetDateTime) -> Result<(), StoreError> {
        sqlx::query!(r#"SELECT prune_one_time_tokens($1) AS "done""#, now)
            .fetch_one(&self.pools.own())
            .await?;
        Ok(())
    }
}

/// Stores a token of a person, for the address that it is mailed to. False: not, since the person has been
/// mailed five of them within an hour, and the address may be a stranger's.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn insert(
    tx: &mut Tx,
    user: UserId,
    id: Uuid,
    purpose: Purpose,
    email: &Email,
    created_at: OffsetDateTime,
    expires_at: OffsetDateTime,
) -> Result<bool, StoreError> {
    let done = sqlx::query!(
        "INSERT INTO one_time_tokens (id, purpose, user_id, email_key, created_at, expires_at)
         SELECT $1::uuid, $2::text, $3::uuid, $4::text, $5::timestamptz, $6::timestamptz
         WHERE (SELECT count(*) FROM one_time_tokens
                WHERE user_id = $3 AND purpose = $2 AND created_at > $5 - interval '1 hour') < 5",
        id,
        purpose.as_str(),
        user.uuid(),
        email.key(),
        created_at,
        expires_at,
    )
    .execute(tx.conn())
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Uses a token up; false where it was used before, has expired, or was mailed to an address that is no
/// longer the person's. Of two who try at once one waits for the other.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn redeem(
    tx: &mut Tx,
    user: UserId,
    id: Uuid,
    purpose: Purpose,
    now: OffsetDateTime,
) -> Result<bool, StoreError> {
    let done = sqlx::query!(
        "UPDATE one_time_tokens t SET used_at = $4
         FROM users u
         WHERE t.id = $1 AND t.user_id = $2 AND t.purpose = $3 AND t.used_at IS NULL
           AND t.expires_at > $4 AND u.id = t.user_id AND u.email_key = t.email_key",
        id,
        user.uuid(),
        purpose.as_str(),
        now,
    )
    .execute(tx.conn())
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Uses up all other tokens of a person for a purpose.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn discard(
    tx: &mut Tx,
    user: UserId,
    purpose: Purpose,
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
