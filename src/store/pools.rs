//! The connection pools: one for requests, one for background work.
//!
//! Requests that take every connection of their pool do not stop the audit writer, and do not let
//! the node's lease expire.
//!
//! All connections of both pools reach one [`Server`]. If a new connection reaches another one, as
//! after a failover, the pools are stale: no transaction commits on them, and the node replaces
//! them.

use std::{
    io::ErrorKind,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use sqlx::{
    Connection, PgConnection, PgPool, Postgres,
    pool::PoolConnection,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tokio::{
    sync::{Notify, OnceCell, watch},
    time::{Instant, sleep, timeout},
};
use tracing::warn;

use super::{
    Server, StoreError,
    hosts::find_primary,
    quarantine::{self, QuarantineFlag},
};

/// Connections in the background pool. The listener, the audit writer and three lookups hold one
/// each. The lease, the sealer, the followers of audit logs, mail and maintenance take one when
/// they need it.
const BACKGROUND_CONNECTIONS: u32 = 10;
/// A connection that was idle for longer is tested before use, which costs a round trip: PostgreSQL
/// or a proxy may have closed it.
const TESTED_AFTER_IDLE: Duration = Duration::from_secs(1);
/// Timeout of that test.
const PING_TIMEOUT: Duration = Duration::from_secs(1);
/// Pause between attempts to connect while PostgreSQL starts.
const CONNECT_PAUSE: Duration = Duration::from_millis(100);

/// Returns the largest number of connections that the pools have open: for a moment twice their
/// size, when they are replaced.
#[must_use]
pub fn max_open_connections(options: &crate::config::Pool) -> usize {
    let connections = options.max_connections + BACKGROUND_CONNECTIONS;
    usize::try_from(connections).unwrap_or(usize::MAX).saturating_mul(2)
}

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
pub(super) struct Pools(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    current: watch::Sender<Pair>,
    signals: Signals,
    /// One for each host of the URL.
    hosts: Vec<PgConnectOptions>,
    max_connections: u32,
    acquire_timeout: Duration,
    lease_duration: Duration,
}

/// Signals of new connections.
#[derive(Debug, Clone, Default)]
struct Signals {
    /// Notified when the pools become stale.
    stale: Arc<Notify>,
    /// Set before a connection to a database in quarantine is used.
    quarantine: QuarantineFlag,
}

/// Both pools of one server.
#[derive(Debug, Clone)]
pub(super) struct Pair {
    requests: PgPool,
    background: PgPool,
    binding: ServerBinding,
}

/// The server of a connection, for as long as new connections reach it.
#[derive(Debug, Clone)]
pub(super) struct ServerBinding(Arc<BindingState>);

#[derive(Debug)]
struct BindingState {
    server: Server,
    first_seen: Instant,
    is_stale: AtomicBool,
    settled: OnceCell<()>,
}

impl ServerBinding {
    fn new(server: Server) -> Self {
        let (first_seen, is_stale) = (Instant::now(), AtomicBool::new(false));
        Self(Arc::new(BindingState { server, first_seen, is_stale, settled: OnceCell::new() }))
    }

    /// Returns the server.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if new connections reach another one.
    pub(super) fn server(&self) -> Result<Server, StoreError> {
        if self.is_stale() { Err(StoreError::timed_out()) } else { Ok(self.0.server) }
    }

    /// Returns the time at which a connection first reached the server.
    pub(super) fn first_seen(&self) -> Instant {
        self.0.first_seen
    }

    /// Returns a cell that is set once no node can have a lease from before the server's history.
    pub(super) fn settled(&self) -> &OnceCell<()> {
        &self.0.settled
    }

    fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    fn is_stale(&self) -> bool {
        self.0.is_stale.load(Ordering::Acquire)
    }

    fn mark_stale(&self) {
        self.0.is_stale.store(true, Ordering::Release);
    }
}

impl Pair {
    pub(super) fn requests(&self) -> &PgPool {
        &self.requests
    }

    pub(super) fn binding(&self) -> ServerBinding {
        self.binding.clone()
    }
}

impl Pools {
    /// Connects to the host that accepts writes. While PostgreSQL starts, tries again until the
    /// acquire timeout. `lease_duration` is that of all nodes.
    ///
    /// # Errors
    /// The error of the last attempt.
    pub(super) async fn connect(
        hosts: Vec<PgConnectOptions>,
        options: &crate::config::Pool,
        lease_duration: Duration,
    ) -> Result<Self, sqlx::Error> {
        let (max_connections, acquire_timeout) = (options.max_connections, options.acquire_timeout);
        let until = Instant::now() + acquire_timeout;
        let (host, server) = loop {
            match find_primary(&hosts, acquire_timeout).await {
                Err(error) if is_starting(&error) && Instant::now() < until => {
                    sleep(CONNECT_PAUSE).await;
                }
                found => break found?,
            }
        };
        let signals = Signals::default();
        let binding = ServerBinding::new(server);
        let pair = new_pair(&host, binding, max_connections, acquire_timeout, &signals);
        let current = watch::Sender::new(pair);
        let inner =
            Inner { current, signals, hosts, max_connections, acquire_timeout, lease_duration };
        Ok(Self(Arc::new(inner)))
    }

    pub(super) fn quarantine(&self) -> &QuarantineFlag {
        &self.0.signals.quarantine
    }

    /// Returns the pool for client requests.
    pub(super) fn requests(&self) -> PgPool {
        self.0.current.borrow().requests.clone()
    }

    /// Returns the pool for background work.
    pub(super) fn background(&self) -> PgPool {
        self.0.current.borrow().background.clone()
    }

    /// Returns the pools, once they are not stale.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if they are not replaced within the acquire timeout.
    pub(super) async fn fresh(&self) -> Result<Pair, StoreError> {
        let pair = self.0.current.borrow().clone();
        if !pair.binding.is_stale() {
            return Ok(pair);
        }
        let mut current = self.0.current.subscribe();
        let fresh = current.wait_for(|pair| !pair.binding.is_stale());
        match timeout(self.0.acquire_timeout, fresh).await {
            Ok(Ok(pair)) => Ok(pair.clone()),
            Ok(Err(_)) | Err(_) => Err(StoreError::timed_out()),
        }
    }

    /// Returns the duration of the leases of nodes.
    pub(super) fn lease_duration(&self) -> Duration {
        self.0.lease_duration
    }

    /// Takes a connection for background work.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if there is none within the acquire timeout.
    pub(super) async fn acquire_background(
        &self,
    ) -> Result<(PoolConnection<Postgres>, ServerBinding), StoreError> {
        let pair = self.fresh().await?;
        Ok((pair.background.acquire().await?, pair.binding))
    }

    /// Takes a connection to a server, for a request.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if new connections reach another server, or if there is no
    /// connection within the acquire timeout.
    pub(super) async fn acquire_on(
        &self,
        server: Server,
    ) -> Result<PoolConnection<Postgres>, StoreError> {
        let pair = self.fresh().await?;
        let connection = pair.requests.acquire().await?;
        if pair.binding.server()? == server { Ok(connection) } else { Err(StoreError::timed_out()) }
    }

    /// Waits until the pools are stale.
    pub(super) async fn wait_until_stale(&self) {
        // A notification is stored until it is awaited.
        let notified = self.0.signals.stale.notified();
        if !self.0.current.borrow().binding.is_stale() {
            notified.await;
        }
    }

    /// True if these are still the pools of a connection.
    pub(super) fn is_current(&self, binding: &ServerBinding) -> bool {
        self.0.current.borrow().binding.is_same(binding)
    }

    /// Waits until the pools of a connection are replaced.
    pub(super) async fn wait_until_replaced(&self, binding: &ServerBinding) {
        let mut current = self.0.current.subscribe();
        current.wait_for(|pair| !pair.binding.is_same(binding)).await.ok();
    }

    /// Does work on a connection, but no longer than its pools are in use: a server that was cut
    /// off may never answer, and nothing that it still does counts.
    ///
    /// # Errors
    /// The errors of `work`; [`StoreError::Unavailable`] if the pools are replaced meanwhile.
    pub(super) async fn until_replaced<T, E>(
        &self,
        binding: &ServerBinding,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, StoreError>
    where
        StoreError: From<E>,
    {
        tokio::select! {
            biased;
            done = work => Ok(done?),
            () = self.wait_until_replaced(binding) => Err(StoreError::timed_out()),
        }
    }

    /// Connects anew, and replaces the pools if that reaches another server.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if no host accepts writes within the time.
    pub(super) async fn check_server(&self, within: Duration) -> Result<(), StoreError> {
        let (host, server) = find_primary(&self.0.hosts, within).await?;
        if self.0.current.borrow().binding.server().ok() != Some(server) {
            warn!("connections reach another PostgreSQL server, or one that was restarted");
            self.replace(&host, server);
        }
        Ok(())
    }

    /// Replaces all connections with new ones, if a host accepts writes. After an outage a
    /// connection may hang forever, because sqlx sets no timeout on a socket; it then also blocks
    /// the task that returns it to its pool.
    ///
    /// # Errors
    /// As [`Self::check_server`].
    pub(super) async fn reconnect(&self) -> Result<(), StoreError> {
        let (host, server) = find_primary(&self.0.hosts, self.0.acquire_timeout).await?;
        self.replace(&host, server);
        Ok(())
    }

    fn replace(&self, host: &PgConnectOptions, server: Server) {
        let Inner { current, signals, max_connections, acquire_timeout, .. } = &*self.0;
        current.send_modify(|pair| {
            // Connections to the same server are stale together, also those of earlier pools.
            let binding = match pair.binding.server() {
                Ok(current) if current == server => pair.binding.clone(),
                _ => {
                    pair.binding.mark_stale();
                    ServerBinding::new(server)
                }
            };
            let new = new_pair(host, binding, *max_connections, *acquire_timeout, signals);
            let old = std::mem::replace(pair, new);
            // Work on a healthy connection continues to its end.
            tokio::spawn(async move { tokio::join!(old.requests.close(), old.background.close()) });
        });
    }

    pub(super) fn usage(&self) -> [PoolUsage; 2] {
        [self.requests(), self.background()].map(|pool| PoolUsage {
            open: pool.size(),
            idle: pool.num_idle().try_into().unwrap_or(u32::MAX),
        })
    }

    pub(super) async fn close(&self) {
        let Pair { requests, background, .. } = self.0.current.borrow().clone();
        tokio::join!(requests.close(), background.close());
    }
}

/// True if PostgreSQL may accept the connection a moment later.
fn is_starting(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(error) => error.kind() == ErrorKind::ConnectionRefused,
        sqlx::Error::Database(error) => error.code().is_some_and(|code| code == "57P03"),
        _ => false,
    }
}

fn new_pair(
    host: &PgConnectOptions,
    binding: ServerBinding,
    max_connections: u32,
    acquire_timeout: Duration,
    signals: &Signals,
) -> Pair {
    let pool = |max_connections| {
        let (binding, signals) = (binding.clone(), signals.clone());
        PgPoolOptions::new()
            .max_connections(max_connections)
            .acquire_timeout(acquire_timeout)
            // A test of each connection would cost a round trip before every query.
            .test_before_acquire(false)
            .before_acquire(|connection, usage| {
                Box::pin(async move {
                    Ok(usage.idle_for < TESTED_AFTER_IDLE
                        || timeout(PING_TIMEOUT, connection.ping()).await.is_ok_and(|r| r.is_ok()))
                })
            })
            .after_connect(move |connection, _| {
                let (binding, signals) = (binding.clone(), signals.clone());
                Box::pin(async move { check_connection(connection, &binding, &signals).await })
            })
            .connect_lazy_with(host.clone())
    };
    let (requests, background) = (pool(max_connections), pool(BACKGROUND_CONNECTIONS));
    Pair { requests, background, binding }
}

/// Refuses a connection that cannot write. Marks the pools as stale if it reaches another server,
/// and records if the database is in quarantine; the connection itself is good.
async fn check_connection(
    connection: &mut PgConnection,
    binding: &ServerBinding,
    signals: &Signals,
) -> Result<(), sqlx::Error> {
    if Server::of(connection).await? != binding.0.server {
        binding.mark_stale();
        signals.stale.notify_one();
    }
    // Only the periodic check finds that the quarantine is over: this may be an earlier server.
    if quarantine::find_reason(connection).await?.is_some() {
        signals.quarantine.set(true);
    }
    Ok(())
}
