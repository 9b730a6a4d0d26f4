//! The report of a node that the database has lost a generation. See `docs/revocation.md`, rule 9.

use std::time::Duration;

use super::{
    StoreError,
    cache_invalidation::{NodeConnection, Registration},
    leases::{interval, interval_bytes},
};

impl NodeConnection {
    /// Reports that the database has lost a generation that this node has applied, after this many
    /// renewals, one in each interval. Returns true if the database is in quarantine now, because
    /// only a restore explains the loss.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn report_lost_generation(
        &mut self,
        node: Registration,
        renewals: i64,
        renew_interval: Duration,
        is_same_history: bool,
    ) -> Result<bool, StoreError> {
        let values: [&[u8]; 5] = [
            node.id.as_bytes(),
            &node.number.to_be_bytes(),
            &renewals.to_be_bytes(),
            &interval_bytes(renew_interval),
            &[is_same_history.into()],
        ];
        let signed = self.context.sign_fresh_decision("report_lost_generation", &values);
        let is_in_quarantine = sqlx::query_scalar!(
            r#"SELECT report_lost_generation($1, $2, $3, $4, $5, $6, $7, $8) AS "is!""#,
            node.id,
            node.number,
            renewals,
            interval(renew_interval),
            is_same_history,
            signed.issued_at,
            &signed.key_id,
            &signed.mac,
        )
        .fetch_one(&mut *self.connection)
        .await?;
        Ok(is_in_quarantine)
    }
}
