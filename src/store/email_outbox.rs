//! The email outbox: emails that are stored and not yet sent.
//!
//! A node claims an email for a limited time, so that no two nodes send it at once.
//! [`crate::mail`] renders and sends the emails.

use std::time::Duration;

use sqlx::{PgExecutor, postgres::types::PgInterval, types::Json};
use uuid::Uuid;

use super::{Store, StoreError, Tx};
use crate::model::mail::OutgoingEmail;

/// An email that this node has claimed for sending.
#[derive(Debug)]
pub struct ClaimedMail {
    /// The email's id.
    pub id: Uuid,
    /// The email. `None` if it cannot be read: a newer version of this service stored a kind that
    /// this version does not know, or another party inserted it.
    pub mail: Option<OutgoingEmail>,
    /// The number of claims, including this one.
    pub attempts: u32,
    /// True if the email was deleted instead of claimed: its address has received too many, or is
    /// not verified.
    pub is_dropped: bool,
}

/// Adds an email to the outbox. It is sent only if the transaction commits.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn insert(tx: &mut Tx, id: Uuid, mail: &OutgoingEmail) -> Result<(), StoreError> {
    insert_with(tx.conn(), id, mail).await
}

async fn insert_with(
    executor: impl PgExecutor<'_>,
    id: Uuid,
    mail: &OutgoingEmail,
) -> Result<(), StoreError> {
    sqlx::query!(
        "INSERT INTO email_outbox (id, message, recipient, class) VALUES ($1, $2, $3, $4)",
        id,
        Json(mail) as _,
        mail.to.to_ascii_lowercase(),
        mail.subject.class(),
    )
    .execute(executor)
    .await?;
    Ok(())
}

impl Store {
    /// Adds an email to the outbox, in a transaction of its own.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn insert_mail(&self, id: Uuid, mail: &OutgoingEmail) -> Result<(), StoreError> {
        insert_with(&self.pools.requests(), id, mail).await
    }

    /// Claims up to `limit` emails that are due: those that a user waits for or needs first. No
    /// other node sends them until `lease` ends. No email is postponed for longer than `max_pause`.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn claim_mails(
        &self,
        limit: u32,
        lease: Duration,
        max_pause: Duration,
    ) -> Result<Vec<ClaimedMail>, StoreError> {
        let rows = sqlx::query!(
            r#"SELECT id AS "id!", message::text AS "message!", attempts AS "attempts!",
                      is_dropped AS "is_dropped!"
               FROM claim_emails($1, $2, $3)"#,
            i32::try_from(limit).unwrap_or(i32::MAX),
            interval(lease),
            interval(max_pause),
        )
        .fetch_all(&self.pools.background())
        .await?;
        // As text: an email that is not readable must not make the others of the batch fail.
        let claimed = rows.into_iter().map(|row| ClaimedMail {
            id: row.id,
            mail: serde_json::from_str(&row.message).ok(),
            attempts: row.attempts.try_into().unwrap_or_default(),
            is_dropped: row.is_dropped,
        });
        Ok(claimed.collect())
    }

    /// Releases a claimed email, to be retried after `pause`.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn postpone_mail(&self, id: Uuid, pause: Duration) -> Result<(), StoreError> {
        sqlx::query!(r#"SELECT postpone_email($1, $2) AS "done""#, id, interval(pause))
            .fetch_one(&self.pools.background())
            .await?;
        Ok(())
    }

    /// Deletes emails that have waited for a day. Returns their number.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn prune_mails(&self) -> Result<i64, StoreError> {
        let deleted = sqlx::query_scalar!(r#"SELECT prune_emails() AS "deleted!""#);
        Ok(deleted.fetch_one(&self.pools.background()).await?)
    }

    /// Deletes an email that was sent, or that cannot be delivered.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn remove_mail(&self, id: Uuid) -> Result<(), StoreError> {
        sqlx::query!(r#"SELECT delete_email($1) AS "done""#, id)
            .fetch_one(&self.pools.background())
            .await?;
        Ok(())
    }
}

fn interval(duration: Duration) -> PgInterval {
    let microseconds = duration.as_micros().try_into().unwrap_or(i64::MAX);
    PgInterval { months: 0, days: 0, microseconds }
}
