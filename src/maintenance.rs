//! Maintenance: creates partitions of the audit log in advance, and deletes expired rows.

use std::time::Duration;

use futures_util::{FutureExt as _, future::BoxFuture};
use tokio::time::interval;
use tokio_util::sync::CancellationToken;

use crate::{
    env::Env,
    store::{Store, StoreError},
};

/// Interval of maintenance: partitions of the audit log, and expired rows.
const MAINTENANCE_INTERVAL: Duration = Duration::from_hours(1);

/// Interval of pruning tables that grow fast.
const PRUNE_INTERVAL: Duration = Duration::from_mins(1);

/// A step of maintenance: its name in the log, and its work.
type Step<'a> = (&'static str, BoxFuture<'a, Result<(), StoreError>>);

/// The maintenance of the database.
#[derive(Clone)]
pub(crate) struct Maintenance {
    store: Store,
    env: Env,
    /// Idle time after which a grant is deleted.
    grant_idle: Duration,
    usage_retention: Duration,
}

impl Maintenance {
    pub(crate) fn new(
        store: Store,
        env: Env,
        grant_idle: Duration,
        usage_retention: Duration,
    ) -> Self {
        Self { store, env, grant_idle, usage_retention }
    }

    /// Creates partitions and deletes expired rows, until `stopping` is cancelled.
    pub(crate) async fn run(self, stopping: CancellationToken) {
        let mut ticks = interval(MAINTENANCE_INTERVAL);
        while stopping.run_until_cancelled(ticks.tick()).await.is_some() {
            self.run_steps(self.hourly_steps(), &stopping).await;
        }
    }

    /// Prunes the tables that grow fast, until `stopping` is cancelled.
    pub(crate) async fn run_frequent_pruning(self, stopping: CancellationToken) {
        let mut ticks = interval(PRUNE_INTERVAL);
        while stopping.run_until_cancelled(ticks.tick()).await.is_some() {
            self.run_steps(self.frequent_steps(), &stopping).await;
        }
    }

    fn frequent_steps(&self) -> [Step<'_>; 3] {
        let (store, now) = (&self.store, self.env.clock.now());
        [
            ("delete old cache invalidations", store.prune_invalidations().boxed()),
            ("delete old key usage by the minute", store.prune_usage_minutes(now).boxed()),
            ("delete documents of deleted workspaces", store.prune_documents().boxed()),
        ]
    }

    fn hourly_steps(&self) -> [Step<'_>; 10] {
        let (store, now) = (&self.store, self.env.clock.now());
        [
            ("create partitions of the audit log", store.create_audit_partitions(now).boxed()),
            (
                "delete old counts of unknown credentials",
                store.prune_unknown_credential_counts().boxed(),
            ),
            ("delete old one-time tokens", store.prune_one_time_tokens(now).boxed()),
            ("delete old counts of failed sign-ins", store.prune_wrong_passwords(now).boxed()),
            ("delete old second-factor challenges", store.prune_mfa_challenges(now).boxed()),
            ("delete old passkey challenges", store.prune_passkey_challenges(now).boxed()),
            ("delete old idempotency keys", store.prune_idempotency_keys(now).boxed()),
            ("delete old key usage", store.prune_key_usage(now, self.usage_retention).boxed()),
            ("delete old invitations", store.prune_invitations(now).boxed()),
            (
                "delete old grants and unused OAuth clients",
                store.prune_oauth(now, self.grant_idle).boxed(),
            ),
        ]
    }

    /// Runs steps one after the other, until `stopping` is cancelled. A failed one is logged. Runs
    /// none while the node cannot use the schema.
    async fn run_steps<'a>(
        &self,
        steps: impl IntoIterator<Item = Step<'a>>,
        stopping: &CancellationToken,
    ) {
        for (action, step) in steps {
            if stopping.is_cancelled() || self.store.database_refusal().is_some() {
                return;
            }
            if let Err(error) = step.await {
                tracing::warn!(%error, "cannot {action}");
            }
        }
    }
}
