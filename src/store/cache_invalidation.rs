//! Cache invalidation between nodes: invalidations, acknowledgements and leases.
//!
//! Triggers in PostgreSQL record each change to a credential as an invalidation, in the transaction
//! of the change and under the next generation. Generations have no gaps. A node applies
//! invalidations in order and acknowledges the newest generation that it has applied.
//! [`crate::cache_invalidation`] runs this protocol.

use std::time::Duration;

use sqlx::postgres::{PgListener, types::PgInterval};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Store, StoreError};
use crate::model::{
    api_key::KeyDigest,
    id::{ClientId, GrantId, SessionId, UserId, WorkspaceId},
    invalidation::Invalidation,
};

/// The invalidations after a generation.
#[derive(Debug)]
pub struct InvalidationBatch {
    /// The newest generation.
    pub head: i64,
    /// The cached credentials to drop. `None` if the list is incomplete: the node must then drop
    /// its whole cache.
    pub invalidations: Option<Vec<Invalidation>>,
    /// The age of each invalidation at the time of the query, by PostgreSQL's clock.
    pub lags: Vec<Duration>,
}

/// A subscription to the notifications of all nodes, including this one.
pub struct Listener(PgListener);

/// The kind of a notification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notification {
    /// New invalidations exist.
    Invalidations,
    /// A node acknowledged invalidations or renewed its lease.
    Acknowledgements,
}

/// The time for which a node that stopped without deregistering is remembered: it may have lost
/// audit events.
const LOST_NODE_RETENTION: Duration = Duration::from_hours(24);
/// The time for which an expired lease still counts, because clocks run at different speeds.
const LEASE_TOLERANCE: Duration = Duration::from_secs(1);
/// The time for which an invalidation is kept. A node that was disconnected for longer clears its
/// cache.
const INVALIDATION_RETENTION: Duration = Duration::from_mins(10);

const INVALIDATIONS: &str = "call2me_invalidations";
const ACKNOWLEDGEMENTS: &str = "call2me_acknowledgements";

impl Listener {
    /// Waits for the next notification.
    ///
    /// # Errors
    /// [`StoreError`] if the connection is lost. Notifications sent meanwhile are lost with it.
    pub async fn next(&mut self) -> Result<Notification, StoreError> {
        match self.0.try_recv().await? {
            Some(notification) if notification.channel() == ACKNOWLEDGEMENTS => {
                Ok(Notification::Acknowledgements)
            }
            Some(_) => Ok(Notification::Invalidations),
            None => Err(StoreError::timed_out()),
        }
    }
}

impl Store {
    /// Subscribes to notifications.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn listen(&self) -> Result<Listener, StoreError> {
        let mut listener = PgListener::connect_with(&self.pools.background()).await?;
        // If the connection is lost, the caller creates a new listener, from the pool of that time.
        listener.eager_reconnect(false);
        listener.listen_all([INVALIDATIONS, ACKNOWLEDGEMENTS]).await?;
        Ok(Listener(listener))
    }

    /// Registers a node whose cache is empty. Returns the generation after which it must apply
    /// invalidations.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn register_node(
        &self,
        node: Uuid,
        lease: Duration,
        written_until: OffsetDateTime,
    ) -> Result<i64, StoreError> {
        Ok(sqlx::query_scalar!(
            r#"SELECT register_node($1, $2, $3, $4, $5) AS "head!""#,
            node,
            interval(lease),
            written_until,
            interval(LOST_NODE_RETENTION),
            &self.context.key_id(),
        )
        .fetch_one(&self.pools.background())
        .await?)
    }

    /// Renews a node's lease and stores its watermark: the node has written all its events from
    /// before `written_until`. False if the node is no longer registered.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn renew_lease(
        &self,
        node: Uuid,
        applied: i64,
        lease: Duration,
        written_until: OffsetDateTime,
    ) -> Result<bool, StoreError> {
        Ok(sqlx::query_scalar!(
            r#"SELECT renew_lease($1, $2, $3, $4) AS "is!""#,
            node,
            applied,
            interval(lease),
            written_until,
        )
        .fetch_one(&self.pools.background())
        .await?)
    }

    /// Records that a node has applied all invalidations up to generation `applied`.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn acknowledge_generation(&self, node: Uuid, applied: i64) -> Result<(), StoreError> {
        sqlx::query!(r#"SELECT acknowledge_generation($1, $2) AS "done""#, node, applied)
            .fetch_one(&self.pools.background())
            .await?;
        Ok(())
    }

    /// Removes a node that no longer serves requests.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn deregister_node(&self, node: Uuid) -> Result<(), StoreError> {
        sqlx::query!(r#"SELECT deregister_node($1) AS "done""#, node)
            .fetch_one(&self.pools.background())
            .await?;
        Ok(())
    }

    /// Returns the invalidations after generation `applied`.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn invalidations_since(&self, applied: i64) -> Result<InvalidationBatch, StoreError> {
        let rows = sqlx::query!(
            r#"SELECT newest_generation AS "newest!", generation, key_digest, session_id AS "session: SessionId",
                      user_id AS "user: UserId", workspace_id AS "workspace: WorkspaceId",
                      grant_id AS "grant: GrantId", client_id AS "client: ClientId", age_seconds
               FROM invalidations_since($1)"#,
            applied,
        )
        .fetch_all(&self.pools.background())
        .await?;
        let head = rows.first().map_or(applied, |row| row.newest);
        let count = rows.iter().filter(|row| row.generation.is_some()).count();
        // Rows are missing if they were pruned, or if a restored backup set the generation back. It
        // is then unknown which.
        if i64::try_from(count).ok() != Some(head - applied) {
            return Ok(InvalidationBatch { head, invalidations: None, lags: Vec::new() });
        }
        let lags = rows
            .iter()
            .filter_map(|row| Duration::try_from_secs_f64(row.age_seconds?).ok())
            .collect();
        let invalidations = rows.into_iter().filter_map(|row| {
            let digest = row.key_digest.and_then(|digest| digest.try_into().ok());
            let key = digest.map(KeyDigest::new).map(Invalidation::Key);
            let workspace = row.workspace;
            let user = row.user.map(|user| Invalidation::User { user, workspace });
            key.or(row.session.map(Invalidation::Session))
                .or(row.grant.map(Invalidation::Grant))
                .or(row.client.map(Invalidation::Client))
                .or(user)
                .or(workspace.map(Invalidation::Workspace))
        });
        Ok(InvalidationBatch { head, invalidations: Some(invalidations.collect()), lags })
    }

    /// Returns the newest generation. It covers every change that was committed before.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn newest_generation(&self) -> Result<i64, StoreError> {
        Ok(sqlx::query_scalar!(r#"SELECT newest_generation() AS "generation!""#)
            .fetch_one(&self.pools.requests())
            .await?)
    }

    /// Returns true if every node that may have something cached has acknowledged `generation`.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn is_acknowledged(&self, generation: i64) -> Result<bool, StoreError> {
        Ok(sqlx::query_scalar!(
            r#"SELECT is_generation_acknowledged($1, $2) AS "is!""#,
            generation,
            interval(LEASE_TOLERANCE),
        )
        .fetch_one(&self.pools.requests())
        .await?)
    }

    /// Deletes invalidations that are older than ten minutes. A node that was away for longer
    /// detects the gap.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn prune_invalidations(&self) -> Result<(), StoreError> {
        let max_age = interval(INVALIDATION_RETENTION);
        sqlx::query!(r#"SELECT prune_invalidations($1) AS "done""#, max_age)
            .fetch_one(&self.pools.background())
            .await?;
        Ok(())
    }

    /// Replaces all connections with new ones, for use when they fail or hang.
    pub fn replace_connections(&self) {
        self.pools.replace();
    }
}

pub(super) fn interval(duration: Duration) -> PgInterval {
    let microseconds = i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
    PgInterval { months: 0, days: 0, microseconds }
}
