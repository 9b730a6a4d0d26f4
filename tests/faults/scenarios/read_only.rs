//! PostgreSQL refuses writes for a moment that is shorter than the lease. Connections that open
//! meanwhile stay read-only until they close.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::sleep;

use super::{
    Scale,
    deployment::Deployment,
    figures::{Figures, Recovery},
};
use crate::faults::{
    fixture::Server,
    histories::{Reply, recovery_time},
};

/// The object that the default is set on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadOnlyTarget {
    Database,
    Role,
}

impl ReadOnlyTarget {
    fn statement(self) -> &'static str {
        match self {
            Self::Database => "ALTER DATABASE call2me",
            Self::Role => "ALTER ROLE call2me_auth_app",
        }
    }
}

/// Reads during the spell on each node, which open connections.
const READS: usize = 8;
/// The time for which PostgreSQL refuses writes.
const SPELL: Duration = Duration::from_secs(1);
/// Writes afterwards, on each node.
const WRITES: usize = 15;
/// The last writes, which must not fail any more.
const LAST_WRITES: usize = 5;

/// Runs the scenario.
pub async fn run(target: ReadOnlyTarget, scale: Scale) -> Figures {
    let server = Server::start_primary().await;
    let deployment = Deployment::start(&server, &[("cache.lease_seconds", "6")]).await;
    let keys = deployment.create_keys(scale.pick(2, 10)).await;
    let fault = deployment.recorder.now();
    let statement = target.statement();
    server.execute(&format!("{statement} SET default_transaction_read_only = on")).await;
    // Connections for requests have ended a transaction. Those that keep the lease have not.
    server
        .execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
             WHERE usename = 'call2me_auth_app' AND query IN ('COMMIT', 'ROLLBACK')",
        )
        .await;
    let reads = deployment
        .clients
        .iter()
        .flat_map(|client| (0..READS).map(|_| client.read(&deployment.owner)));
    let spell = async {
        sleep(SPELL).await;
        server.execute(&format!("{statement} RESET default_transaction_read_only")).await;
    };
    tokio::join!(join_all(reads), spell);
    let writes = scale.pick(WRITES, 8 * WRITES);
    let mut last_failures = 0;
    for number in 0..writes {
        for client in &deployment.clients {
            let reply = client.write(&deployment.owner).await;
            let is_last = number + LAST_WRITES >= writes;
            last_failures += usize::from(is_last && reply != Reply::Accepted);
        }
        sleep(scale.pick(Duration::from_millis(100), Duration::from_millis(500))).await;
    }
    let has_recovered = deployment.wait_until_recovered().await && last_failures == 0;
    deployment.observe(&keys, Duration::ZERO).await;
    let (history, events) = deployment.finish(&[&server]).await;
    let recovery = recovery_time(&history, fault, Duration::MAX).filter(|_| has_recovered);
    let title = match target {
        ReadOnlyTarget::Database => "read-only spell, set on the database",
        ReadOnlyTarget::Role => "read-only spell, set on the role",
    };
    let figures = Figures::of(title, &history, Some(&events), Recovery::from(recovery));
    let failure = format!("{last_failures} of the last writes failed.");
    figures.failed((last_failures > 0).then_some(failure))
}
