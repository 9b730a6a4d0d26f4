//! The check of the database while a node runs: the operator may migrate it to a schema of another
//! version, or restore a backup.
//!
//! While the node cannot use the database, it answers 503 and is not ready, and its background
//! tasks pause. Only the audit writer continues: it may be able to write the queued events.

use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::store::{DatabaseRefusal, Store, StoreError};

/// Interval between two checks.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);
/// Timeout of one check.
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);

/// Checks the database until `stopping` is cancelled.
pub(crate) async fn run(store: Store, stopping: CancellationToken) {
    let mut checks = interval(CHECK_INTERVAL);
    checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut logged = None;
    while stopping.run_until_cancelled(checks.tick()).await.is_some() {
        let outcome = Store::with_timeout(CHECK_TIMEOUT, check(&store)).await;
        let refusal = store.database_refusal();
        if refusal == logged {
            continue;
        }
        if let Some(refusal) = refusal {
            let reason = outcome.unwrap_or_else(|error| Some(error.to_string()));
            error!(reason, "this node answers 503: {}", refusal.message());
        } else {
            info!("this node can use the database again");
            if logged == Some(DatabaseRefusal::OtherSchema) {
                // Prepared statements may have results of the other schema.
                store.reconnect().await.ok();
            }
        }
        logged = refusal;
    }
}

/// Returns the reason why this node cannot use the database.
async fn check(store: &Store) -> Result<Option<String>, StoreError> {
    if let Some(mismatch) = store.check_schema().await? {
        return Ok(Some(mismatch.to_string()));
    }
    store.check_quarantine().await
}
