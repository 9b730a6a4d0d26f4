//! Cache invalidation between nodes: invalidations, acknowledgements and leases.
//!
//! Triggers in PostgreSQL record each change to a credential as an invalidation, in the transaction
//! of the change. All changes of one transaction have one generation, and generations have no gaps.
//! A node applies invalidations in order and acknowledges the newest generation that it has
//! applied. [`crate::cache_invalidation`] runs this protocol. Leases are in `leases.rs`.

use std::{collections::BTreeMap, time::Duration};

use sqlx::{Postgres, pool::PoolConnection, postgres::PgListener};
use uuid::Uuid;

use super::{
    Server, Store, StoreError, clock,
    context::ContextSigner,
    pools::{Pools, ServerBinding},
};
use crate::{
    env::DatabaseClock,
    model::{
        api_key::KeyDigest,
        id::{ClientId, GrantId, SessionId, UserId, WorkspaceId},
        invalidation::Invalidation,
    },
};

/// A point in the sequence of invalidations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Generation {
    /// The number of transactions with invalidations up to this one.
    pub number: i64,
    /// Random. After a failover or a restore, a number may be assigned again, with another token.
    pub token: Uuid,
}

/// The invalidations after a generation.
#[derive(Debug)]
pub enum InvalidationBatch {
    /// All of them.
    Complete {
        /// The newest generation.
        head: Generation,
        /// The cached credentials to drop.
        invalidations: Vec<Invalidation>,
        /// The age of each generation at the time of the query, by PostgreSQL's clock.
        lags: Vec<Duration>,
    },
    /// Some were deleted, because they are old: the node must clear its caches.
    Pruned,
    /// PostgreSQL has another history than the one in which the node has applied invalidations: it
    /// was restored, or has lost commits in a failover. The node must clear its caches.
    OtherHistory,
}

/// The registration of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Registration {
    /// The id of the node.
    pub id: Uuid,
    /// The number of the node's attempt to register. PostgreSQL may execute an attempt after the
    /// node gave it up.
    pub number: i32,
}

/// A registered node that may use its caches.
#[derive(Debug, Clone, Copy)]
pub struct LeaseHolder {
    /// The registration of the node.
    pub node: Registration,
    /// The number of its renewals. While it stands still, the lease runs out.
    pub renewals: i64,
    /// The duration of its lease.
    pub lease: Duration,
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

/// The time for which an expired lease still counts, because clocks run at different speeds.
pub const LEASE_TOLERANCE: Duration = Duration::from_secs(1);

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
    /// Subscribes to notifications, on the server that new connections reach.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn listen(&self) -> Result<Listener, StoreError> {
        self.pools.fresh().await?;
        let mut listener = PgListener::connect_with(&self.pools.background()).await?;
        // If the connection is lost, the caller creates a new listener, from the pool of that time.
        listener.eager_reconnect(false);
        listener.listen_all([INVALIDATIONS, ACKNOWLEDGEMENTS]).await?;
        Ok(Listener(listener))
    }

    /// Opens the connection of a node. The node reads invalidations and renews its lease on one
    /// server.
    ///
    /// # Errors
    /// [`StoreError`] if it cannot be opened.
    pub async fn connect_node(&self) -> Result<NodeConnection, StoreError> {
        let (connection, binding) = self.pools.acquire_background().await?;
        let (pools, server) = (self.pools.clone(), binding.server()?);
        let (context, clock) = (self.context.clone(), self.clock.clone());
        Ok(NodeConnection { pools, connection, binding, server, context, clock })
    }

    /// Waits until a connection has reached another server than the current ones.
    pub async fn wait_until_stale(&self) {
        self.pools.wait_until_stale().await;
    }

    /// Connects anew, and replaces all connections if that reaches another server.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if no host accepts writes within the time.
    pub async fn check_server(&self, within: Duration) -> Result<(), StoreError> {
        self.pools.check_server(within).await
    }

    /// Replaces all connections with new ones, for use when they fail or hang.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if no host accepts writes within the acquire timeout.
    pub async fn reconnect(&self) -> Result<(), StoreError> {
        self.pools.reconnect().await
    }

    /// Deletes invalidations that are older than ten minutes. A node that was away for longer
    /// detects the gap.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn prune_invalidations(&self) -> Result<(), StoreError> {
        sqlx::query!(r#"SELECT prune_invalidations() AS "done""#)
            .fetch_one(&self.pools.background())
            .await?;
        Ok(())
    }
}

/// The connection of a node to one server, for its lease and invalidations.
#[derive(Debug)]
pub struct NodeConnection {
    pub(super) pools: Pools,
    pub(super) connection: PoolConnection<Postgres>,
    binding: ServerBinding,
    pub(super) server: Server,
    pub(super) context: ContextSigner,
    clock: DatabaseClock,
}

impl NodeConnection {
    /// Returns the server of the connection.
    #[must_use]
    pub fn server(&self) -> Server {
        self.server
    }

    /// True while new connections reach the same server.
    #[must_use]
    pub fn is_current(&self) -> bool {
        self.pools.is_current(&self.binding)
    }

    /// Waits until all connections are replaced.
    pub async fn wait_until_replaced(&self) {
        self.pools.wait_until_replaced(&self.binding).await;
    }

    /// Reads the clock of the server. If it has changed, begins a new epoch. With `max_gap`, begins
    /// one too if no node has read the clock for this long.
    ///
    /// # Errors
    /// [`StoreError`] if a query fails; the node then continues with the time that it had.
    pub async fn synchronize_clock(&mut self, max_gap: Option<Duration>) -> Result<(), StoreError> {
        clock::synchronize(&mut self.connection, &self.context, &self.clock, max_gap).await?;
        clock::log_skew(&self.clock);
        Ok(())
    }

    /// Returns the invalidations after generation `applied`.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn invalidations_since(
        &mut self,
        applied: Generation,
    ) -> Result<InvalidationBatch, StoreError> {
        let rows = sqlx::query!(
            r#"SELECT newest_generation AS "newest!", newest_token AS "token!", applied_token,
                      generation, key_digest, session_id AS "session: SessionId",
                      user_id AS "user: UserId", workspace_id AS "workspace: WorkspaceId",
                      grant_id AS "grant: GrantId", client_id AS "client: ClientId", age_seconds
               FROM invalidations_since($1)"#,
            applied.number,
        )
        .fetch_all(&mut *self.connection)
        .await?;
        let Some(first) = rows.first() else { return Ok(InvalidationBatch::OtherHistory) };
        let head = Generation { number: first.newest, token: first.token };
        let is_known = match first.applied_token {
            Some(token) => token == applied.token,
            None => applied.number < head.number,
        };
        if !is_known {
            return Ok(InvalidationBatch::OtherHistory);
        }
        let ages: BTreeMap<_, _> =
            rows.iter().filter_map(|row| Some((row.generation?, row.age_seconds?))).collect();
        let is_complete = i64::try_from(ages.len()).ok() == Some(head.number - applied.number);
        if first.applied_token.is_none() || !is_complete {
            return Ok(InvalidationBatch::Pruned);
        }
        let lags = ages.into_values().filter_map(|age| Duration::try_from_secs_f64(age).ok());
        let lags = lags.collect();
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
        let invalidations = invalidations.collect();
        Ok(InvalidationBatch::Complete { head, invalidations, lags })
    }
}

/// A connection for a fence, to the server that has committed the change.
#[derive(Debug)]
pub struct FenceConnection {
    pub(super) connection: PoolConnection<Postgres>,
    server: Server,
    pools: Pools,
    pub(super) context: ContextSigner,
}

impl Store {
    /// Takes a connection to the server that has committed a change.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if new connections reach another server.
    pub async fn connect_fence(&self, server: Server) -> Result<FenceConnection, StoreError> {
        let connection = self.pools.acquire_on(server).await?;
        let (pools, context) = (self.pools.clone(), self.context.clone());
        Ok(FenceConnection { connection, server, pools, context })
    }

    /// Returns the server that new connections reach.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if none accepts writes.
    pub async fn server(&self) -> Result<Server, StoreError> {
        self.pools.fresh().await?.binding().server()
    }
}

impl FenceConnection {
    /// Checks that new connections still reach the same server.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if they reach another one.
    pub async fn check_server(&self) -> Result<(), StoreError> {
        let current = self.pools.fresh().await?.binding().server()?;
        if current == self.server { Ok(()) } else { Err(StoreError::timed_out()) }
    }

    /// Returns the newest generation. It covers every change that was committed before.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn newest_generation(&mut self) -> Result<i64, StoreError> {
        Ok(sqlx::query_scalar!(r#"SELECT newest_generation() AS "generation!""#)
            .fetch_one(&mut *self.connection)
            .await?)
    }
}
