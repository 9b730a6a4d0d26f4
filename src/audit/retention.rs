//! Retention: drops audit events that are older than the retention period, in whole months.
//!
//! The hash chain records each drop: every affected workspace gets an event, sealed like any other,
//! that states the last dropped sequence number. Events that are missing without such an event were
//! removed by other means; see [`verifier`](super::verifier).

use std::time::Duration;

use secrecy::SecretString;
use serde_json::json;
use time::OffsetDateTime;
use tokio::time::{interval, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    env::Env,
    model::{
        audit::{Action, Actor, NewEvent},
        timestamp,
    },
    store::{self, Store, StoreError, retention::RetentionConnection},
};

/// Interval between two runs.
const RUN_INTERVAL: Duration = Duration::from_hours(1);
/// Maximum wait until the events that record the drop are sealed.
const SEAL_TIMEOUT: Duration = Duration::from_mins(1);

/// Drops audit events that are older than the retention period.
#[derive(Clone)]
pub struct Retention {
    store: Store,
    env: Env,
    owner: SecretString,
    period: Duration,
}

impl Retention {
    /// Creates the task. `owner` is the database URL of the tables' owner, the only role that can
    /// drop partitions.
    #[must_use]
    pub fn new(store: Store, env: Env, owner: SecretString, period: Duration) -> Self {
        Self { store, env, owner, period }
    }

    /// Drops old events every hour, until `stopping` is cancelled.
    pub async fn run(self, stopping: CancellationToken) {
        let mut runs = interval(RUN_INTERVAL);
        while stopping.run_until_cancelled(runs.tick()).await.is_some() {
            if self.store.database_refusal().is_some() {
                continue;
            }
            if let Err(error) = self.prune(&stopping).await {
                warn!(?error, "cannot drop old audit events; retrying in an hour");
            }
        }
    }

    /// Drops the months that are completely older than the retention period. Returns the names of
    /// the dropped partitions; none if another node is doing this. Ends early, between two steps,
    /// if `stopping` is cancelled.
    ///
    /// # Errors
    /// [`StoreError`] if a query fails, also if a long-running reader holds a lock. A later call
    /// continues.
    pub async fn prune(&self, stopping: &CancellationToken) -> Result<Vec<String>, StoreError> {
        let Some(mut owner) = RetentionConnection::connect(&self.owner).await? else {
            return Ok(Vec::new());
        };
        let dropped = self.prune_as(&mut owner, stopping).await;
        owner.close().await;
        dropped
    }

    async fn prune_as(
        &self,
        owner: &mut RetentionConnection,
        stopping: &CancellationToken,
    ) -> Result<Vec<String>, StoreError> {
        let cutoff = self.env.clock.now() - self.period;
        let partitions = owner.list_partitions().await?;
        let old = partitions.iter().filter(|month| month.has_events() && month.end <= cutoff);
        let Some(before) = old.map(|month| month.end).max() else { return Ok(Vec::new()) };
        // Seals stay one month longer: the clocks of nodes differ, so a seal may cover an event
        // that was created slightly later than its time says.
        let seals_before = previous_month(before);
        let losing = self.store.list_pending_prune_events(before, seals_before).await?;
        for (workspace, pruned) in losing {
            if stopping.is_cancelled() {
                break;
            }
            let metadata = json!({
                "before": timestamp::format(pruned.before),
                "sequence": pruned.sequence,
                "hash": pruned.hash,
            });
            let id = self.env.new_id();
            let event = NewEvent::new(id, workspace, Action::LogPruned, Actor::system())
                .with_metadata(metadata);
            let mut tx = self.store.begin_in_background(workspace).await?;
            let audited = store::audit::insert(&mut tx, workspace, &event).await?;
            tx.commit(audited).await?.unfenced("an audit event changes no access");
        }
        // Both the dropped events and the events that record the drop must be sealed before the
        // drop.
        stopping.run_until_cancelled(self.wait_until_sealed()).await.transpose()?;
        let mut dropped = Vec::new();
        for month in partitions {
            let limit = if month.has_events() { before } else { seals_before };
            if month.end <= limit && !stopping.is_cancelled() {
                owner.drop_partition(&month).await?;
                info!(partition = month.name(), "dropped old audit events");
                dropped.push(month.name().to_owned());
            }
        }
        Ok(dropped)
    }

    /// Waits until all entries that are in the outbox now are sealed.
    async fn wait_until_sealed(&self) -> Result<(), StoreError> {
        let Some((_, last)) = self.store.outbox_bounds().await? else { return Ok(()) };
        let deadline = self.env.clock.monotonic() + SEAL_TIMEOUT;
        while self.store.outbox_bounds().await?.is_some_and(|(first, _)| first <= last) {
            if self.env.clock.monotonic() > deadline {
                return Err(StoreError::timed_out());
            }
            sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }
}

/// Returns the start of the month before the month that starts at `first`.
fn previous_month(first: OffsetDateTime) -> OffsetDateTime {
    let earlier = first - time::Duration::DAY;
    earlier.replace_day(1).unwrap_or(earlier)
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    #[test]
    fn previous_month_crosses_year_boundary() {
        let months = [
            (datetime!(2026-12-01 00:00 UTC), datetime!(2026-11-01 00:00 UTC)),
            (datetime!(2027-01-01 00:00 UTC), datetime!(2026-12-01 00:00 UTC)),
        ];
        for (first, before) in months {
            assert_eq!(super::previous_month(first), before);
        }
    }
}
