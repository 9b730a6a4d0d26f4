//! What creating requests were answered.

use time::OffsetDateTime;

use super::{Store, StoreError, Tx};

/// What is known of a request that may have come before.
#[derive(Debug)]
pub enum Earlier {
    /// It did not. Nobody else works on it until the transaction ends.
    None,
    /// Another transaction works on it.
    InProgress,
    /// It was answered.
    Answered {
        /// The MAC of its body.
        request: Vec<u8>,
        /// The sealed answer.
        answer: Vec<u8>,
    },
}

/// What is known of the request of this id.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn find(tx: &mut Tx, id: &[u8], now: OffsetDateTime) -> Result<Earlier, StoreError> {
    let row = sqlx::query!(
        r#"SELECT is_ours AS "is_ours!", request, answer FROM find_answer($1, $2)"#,
        id,
        now
    )
    .fetch_one(tx.conn())
    .await?;
    Ok(match (row.is_ours, row.request, row.answer) {
        (false, ..) => Earlier::InProgress,
        (true, Some(request), Some(answer)) => Earlier::Answered { request, answer },
        (true, ..) => Earlier::None,
    })
}

/// Keeps an answer for as long.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn keep(
    tx: &mut Tx,
    id: &[u8],
    request: &[u8],
    answer: &[u8],
    until: OffsetDateTime,
) -> Result<(), StoreError> {
    sqlx::query!(r#"SELECT keep_answer($1, $2, $3, $4) AS "done""#, id, request, answer, until)
        .fetch_one(tx.conn())
        .await?;
    Ok(())
}

impl Store {
    /// Forgets answers that are kept no longer.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn prune_answers(&self, now: OffsetDateTime) -> Result<(), StoreError> {
        sqlx::query!(r#"SELECT prune_answers($1) AS "done""#, now)
            .fetch_one(&self.pools.own())
            .await?;
        Ok(())
    }
}
