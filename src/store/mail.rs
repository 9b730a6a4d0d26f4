//! Mails that wait to be sent.

use std::time::Duration;

use sqlx::{postgres::types::PgInterval, types::Json};
use uuid::Uuid;

use super::{Store, StoreError, Tx};
use crate::model::mail::Mail;

/// A mail that this node has to itself for a while, to send it.
#[derive(Debug)]
pub struct Claimed {
    /// Its id.
    pub id: Uuid,
    /// What to write and to whom; none: of a version of this service that knows more kinds.
    pub mail: Option<Mail>,
    /// How often it was claimed, this time included.
    pub attempts: u32,
}

/// Puts a mail into the outbox: it is sent if the transaction commits, and only then.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn insert(tx: &mut Tx, id: Uuid, mail: &Mail) -> Result<(), StoreError> {
    sqlx::query!("INSERT INTO mail_outbox (id, mail) VALUES ($1, $2)", id, Json(mail) as _)
        .execute(tx.conn())
        .await?;
    Ok(())
}

impl Store {
    /// Puts a mail into the outbox by itself.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn insert_mail(&self, id: Uuid, mail: &Mail) -> Result<(), StoreError> {
        sqlx::query!("INSERT INTO mail_outbox (id, mail) VALUES ($1, $2)", id, Json(mail) as _)
            .execute(&self.pools.requests())
            .await?;
        Ok(())
    }

    /// Takes mails that are due, for so long: no other node sends them meanwhile.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn claim_mails(
        &self,
        most: u32,
        lease: Duration,
    ) -> Result<Vec<Claimed>, StoreError> {
        let rows = sqlx::query!(
            r#"SELECT id AS "id!", mail AS "mail!: Json<serde_json::Value>", attempts AS "attempts!"
               FROM claim_mails($1, $2)"#,
            i32::try_from(most).unwrap_or(i32::MAX),
            interval(lease),
        )
        .fetch_all(&self.pools.own())
        .await?;
        let claimed = rows.into_iter().map(|row| Claimed {
            id: row.id,
            mail: serde_json::from_value(row.mail.0).ok(),
            attempts: row.attempts.try_into().unwrap_or_default(),
        });
        Ok(claimed.collect())
    }

    /// Gives a mail back, to be tried again after a pause.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn put_mail_off(&self, id: Uuid, pause: Duration) -> Result<(), StoreError> {
        sqlx::query!(r#"SELECT put_mail_off($1, $2) AS "done""#, id, interval(pause))
            .fetch_one(&self.pools.own())
            .await?;
        Ok(())
    }

    /// Removes mails that have waited for longer than this, and tells how many.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn prune_mails(&self, older_than: Duration) -> Result<i64, StoreError> {
        let gone =
            sqlx::query_scalar!(r#"SELECT prune_mails($1) AS "gone!""#, interval(older_than));
        Ok(gone.fetch_one(&self.pools.own()).await?)
    }

    /// Removes a mail that was sent, or that nobody will have.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn remove_mail(&self, id: Uuid) -> Result<(), StoreError> {
        sqlx::query!(r#"SELECT remove_mail($1) AS "done""#, id)
            .fetch_one(&self.pools.own())
            .await?;
        Ok(())
    }
}

fn interval(duration: Duration) -> PgInterval {
    let microseconds = duration.as_micros().try_into().unwrap_or(i64::MAX);
    PgInterval { months: 0, days: 0, microseconds }
}
