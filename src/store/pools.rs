//! The connection pools: one for requests, one for background work.
//!
//! Requests that take every connection of their pool do not stop the audit writer, and do not let
//! the node's lease expire.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use sqlx::{
    PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};

/// Connections in the background pool. The listener, the audit writer and three lookups hold one
/// each. The lease, the sealer, the followers of audit logs, mail and maintenance take one when
/// they need it.
const BACKGROUND_CONNECTIONS: u32 = 10;

/// The state of one pool.
#[derive(Debug, Clone, Copy)]
pub struct PoolUsage {
    /// Open connections.
    pub open: u32,
    /// Open connections that are not in use.
    pub idle: u32,
}

/// Both pools, and the settings for their replacements. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Pools {
    current: Arc<RwLock<Pair>>,
    connect: Arc<PgConnectOptions>,
    max_connections: u32,
    acquire_timeout: Duration,
}

#[derive(Debug, Clone)]
struct Pair {
    requests: PgPool,
    background: PgPool,
}

impl Pools {
    /// Creates pools that open connections on demand.
    pub(super) fn new(connect: PgConnectOptions, options: &crate::config::Pool) -> Self {
        let connect = Arc::new(connect);
        let (max_connections, acquire_timeout) = (options.max_connections, options.acquire_timeout);
        let pair = new_pair(&connect, max_connections, acquire_timeout);
        Self { current: Arc::new(RwLock::new(pair)), connect, max_connections, acquire_timeout }
    }

    /// Returns the pool for client requests.
    pub(super) fn requests(&self) -> PgPool {
        self.current.read().unwrap_or_else(PoisonError::into_inner).requests.clone()
    }

    /// Returns the pool for background work.
    pub(super) fn background(&self) -> PgPool {
        self.current.read().unwrap_or_else(PoisonError::into_inner).background.clone()
    }

    /// Replaces all connections with new ones. After an outage a connection may hang forever,
    /// because sqlx sets no timeout on a socket; it then also blocks the task that returns it to
    /// its pool. Work on a healthy connection continues to its end.
    pub(super) fn replace(&self) {
        let new = new_pair(&self.connect, self.max_connections, self.acquire_timeout);
        let old = std::mem::replace(
            &mut *self.current.write().unwrap_or_else(PoisonError::into_inner),
            new,
        );
        tokio::spawn(async move { tokio::join!(old.requests.close(), old.background.close()) });
    }

    pub(super) fn usage(&self) -> [PoolUsage; 2] {
        [self.requests(), self.background()].map(|pool| PoolUsage {
            open: pool.size(),
            idle: pool.num_idle().try_into().unwrap_or(u32::MAX),
        })
    }

    pub(super) async fn close(&self) {
        let Pair { requests, background } =
            self.current.read().unwrap_or_else(PoisonError::into_inner).clone();
        tokio::join!(requests.close(), background.close());
    }
}

fn new_pair(connect: &PgConnectOptions, max_connections: u32, acquire_timeout: Duration) -> Pair {
    let pool = |max_connections| {
        PgPoolOptions::new()
            .max_connections(max_connections)
            .acquire_timeout(acquire_timeout)
            // The test costs a round trip before every query. A dead connection fails its next
            // query anyway.
            .test_before_acquire(false)
            .connect_lazy_with(connect.clone())
    };
    Pair { requests: pool(max_connections), background: pool(BACKGROUND_CONNECTIONS) }
}
