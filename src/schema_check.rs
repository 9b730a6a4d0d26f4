//! The check of the schema while a node runs: the operator may migrate the database to a schema of
//! another version, or restore a backup of one.
//!
//! While the node cannot use the schema, it answers 503 and is not ready, and its background tasks
//! pause. Only the audit writer continues: it may be able to write the queued events.

use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::store::Store;

/// Interval between two checks.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);
/// Timeout of one check.
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);

/// Checks the schema until `stopping` is cancelled.
pub(crate) async fn run(store: Store, stopping: CancellationToken) {
    let mut checks = interval(CHECK_INTERVAL);
    checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while stopping.run_until_cancelled(checks.tick()).await.is_some() {
        let was_compatible = store.is_schema_compatible();
        let outcome = Store::with_timeout(CHECK_TIMEOUT, store.check_schema()).await;
        match (was_compatible, store.is_schema_compatible()) {
            (true, false) => {
                let reason = match outcome {
                    Ok(mismatch) => mismatch.map(|mismatch| mismatch.to_string()),
                    Err(error) => Some(error.to_string()),
                };
                error!(reason, "this node cannot use the database schema, and answers 503");
            }
            (false, true) => {
                info!("this node can use the database schema again");
                // Their prepared statements may have results of the other schema.
                store.reconnect().await.ok();
            }
            _ => {}
        }
    }
}
