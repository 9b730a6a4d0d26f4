//! Old events are dropped by the month. The chain tells of it itself: each workspace that loses some is left an event,
//! sealed like any other, that says up to where. What is missing without one was removed.

use std::time::Duration;

use secrecy::SecretString;
use serde_json::json;
use time::OffsetDateTime;
use tokio::time::{interval, sleep};
use tracing::{info, warn};

use crate::{
    env::Env,
    model::{
        audit::{Action, Actor, NewEvent},
        timestamp,
    },
    store::{self, Store, StoreError, retention::Owner},
};

/// How often there is a look at what is old.
const LOOK_EVERY: Duration = Duration::from_hours(1);
/// How long it may take until the events that tell of it are sealed.
const PATIENCE: Duration = Duration::from_mins(1);

/// Drops what is older than it is to be kept.
pub struct Retention {
    store: Store,
    env: Env,
    owner: SecretString,
    kept_for: Duration,
}

impl Retention {
    /// As the owner of the tables, who logs in with this URL.
    #[must_use]
    pub fn new(store: Store, env: Env, owner: SecretString, kept_for: Duration) -> Self {
        Self { store, env, owner, kept_for }
    }

    /// Drops what is old until it is dropped itself.
    pub async fn run(self) {
        let mut looks = interval(LOOK_EVERY);
        loop {
            looks.tick().await;
            if let Err(error) = self.prune().await {
                warn!(?error, "cannot drop old audit events yet");
            }
        }
    }

    /// Drops the months that are wholly older than events are to be kept; which.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached, or a long reader is in the way: then it is tried again later.
    pub async fn prune(&self) -> Result<Vec<String>, StoreError> {
        let Some(mut owner) = Owner::connect(&self.owner).await? else { return Ok(Vec::new()) };
        let dropped = self.prune_as(&mut owner).await;
        owner.close().await;
        dropped
    }

    async fn prune_as(&self, owner: &mut Owner) -> Result<Vec<String>, StoreError> {
        let cutoff = self.env.clock.now() - self.kept_for;
        let partitions = owner.partitions().await?;
        let old = partitions.iter().filter(|month| month.holds_events() && month.end <= cutoff);
        let Some(before) = old.map(|month| month.end).max() else { return Ok(Vec::new()) };
        // Seals are kept for a month longer: clocks of nodes differ, and a seal may be of an event that was made
        // a little later than it says.
        let seals_before = previous_month(before);
        let losing = self.store.losing_workspaces(before, seals_before).await?;
        for (workspace, pruned) in losing {
            let told = json!({
                "before": timestamp::format(pruned.before),
                "sequence": pruned.sequence,
                "hash": pruned.hash,
            });
            let id = self.env.new_id();
            let event = NewEvent::new(id, workspace, Action::LogPruned, Actor::system()).with(told);
            let mut tx = self.store.begin(workspace, None).await?;
            store::audit::insert(&mut tx, workspace, &event).await?;
            tx.commit().await?;
        }
        // What is dropped is sealed, and so is what tells of it.
        self.all_is_sealed().await?;
        let mut dropped = Vec::new();
        for month in partitions {
            let limit = if month.holds_events() { before } else { seals_before };
            if month.end <= limit {
                owner.drop(&month).await?;
                info!(partition = month.name(), "old audit events were dropped");
                dropped.push(month.name().to_owned());
            }
        }
        Ok(dropped)
    }

    async fn all_is_sealed(&self) -> Result<(), StoreError> {
        let Some((_, last)) = self.store.ledger_bounds().await? else { return Ok(()) };
        let deadline = self.env.clock.monotonic() + PATIENCE;
        while self.store.ledger_bounds().await?.is_some_and(|(first, _)| first <= last) {
            if self.env.clock.monotonic() > deadline {
                return Err(StoreError::late());
            }
            sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }
}

/// The beginning of the month before the one that begins here.
fn previous_month(first: OffsetDateTime) -> OffsetDateTime {
    let earlier = first - time::Duration::DAY;
    earlier.replace_day(1).unwrap_or(earlier)
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    #[test]
    fn a_month_earlier() {
        let months = [
            (datetime!(2026-12-01 00:00 UTC), datetime!(2026-11-01 00:00 UTC)),
            (datetime!(2027-01-01 00:00 UTC), datetime!(2026-12-01 00:00 UTC)),
        ];
        for (first, before) in months {
            assert_eq!(super::previous_month(first), before);
        }
    }
}
