//! Connections to PostgreSQL: those of requests, and those of the service's own work.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use sqlx::{
    PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};

/// Connections of the service's own work: the listener, the log's writer and three look-ups keep one each; the lease,
/// the sealer, those who follow, mail, and what there is to do now and then take one when they need it.
const OWN_CONNECTIONS: u32 = 10;

/// The state of a pool.
#[derive(Debug, Clone, Copy)]
pub struct Connections {
    /// Connections that there are.
    pub open: u32,
    /// Those of them that nobody uses.
    pub idle: u32,
}

/// Two pools, so that requests which take all connections neither keep the log from being written nor
/// let the node's lease run out. Cheap to clone.
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
    own: PgPool,
}

impl Pools {
    /// Pools whose connections are made when they are needed.
    pub(super) fn new(connect: PgConnectOptions, options: &crate::config::Pool) -> Self {
        let connect = Arc::new(connect);
        let (max_connections, acquire_timeout) = (options.max_connections, options.acquire_timeout);
        let pair = pair(&connect, max_connections, acquire_timeout);
        Self { current: Arc::new(RwLock::new(pair)), connect, max_connections, acquire_timeout }
    }

    /// For what clients ask.
    pub(super) fn requests(&self) -> PgPool {
        self.current.read().unwrap_or_else(PoisonError::into_inner).requests.clone()
    }

    /// For the service's own work.
    pub(super) fn own(&self) -> PgPool {
        self.current.read().unwrap_or_else(PoisonError::into_inner).own.clone()
    }

    /// Leaves the present connections behind for new ones. After an outage they may hang without an
    /// end (sqlx sets no time-out on a socket), and also block whoever gives one back to its pool. Work
    /// under way on those that live goes on to its end.
    pub(super) fn replace(&self) {
        let new = pair(&self.connect, self.max_connections, self.acquire_timeout);
        let old = std::mem::replace(
            &mut *self.current.write().unwrap_or_else(PoisonError::into_inner),
            new,
        );
        tokio::spawn(async move { tokio::join!(old.requests.close(), old.own.close()) });
    }

    pub(super) fn connections(&self) -> [Connections; 2] {
        [self.requests(), self.own()].map(|pool| Connections {
            open: pool.size(),
            idle: pool.num_idle().try_into().unwrap_or(u32::MAX),
        })
    }

    pub(super) async fn close(&self) {
        let Pair { requests, own } =
            self.current.read().unwrap_or_else(PoisonError::into_inner).clone();
        tokio::join!(requests.close(), own.close());
    }
}

fn pair(connect: &PgConnectOptions, max_connections: u32, acquire_timeout: Duration) -> Pair {
    let pool = |max_connections| {
        PgPoolOptions::new()
            .max_connections(max_connections)
            .acquire_timeout(acquire_timeout)
            // A round trip before every query; a connection that died shows itself soon enough.
            .test_before_acquire(false)
            .connect_lazy_with(connect.clone())
    };
    Pair { requests: pool(max_connections), own: pool(OWN_CONNECTIONS) }
}
