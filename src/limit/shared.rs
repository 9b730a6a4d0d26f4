//! Buckets that all nodes share, on a Valkey or Redis server.
//!
//! A charge is one call of a script, which the server runs atomically, by its own clock. The script
//! stores the same state as a local bucket, and the same function turns it into a [`Decision`].
//!
//! No request ever waits for a connection. A charge over an open connection has [`ANSWER_TIMEOUT`].
//! The first charge that fails closes the connection for all requests. Until a background task has
//! reconnected and tested the script, all requests use the local buckets.

use std::{
    num::NonZeroU32,
    pin::pin,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::FutureExt;
use redis::{
    AsyncConnectionConfig, Client, IntoConnectionInfo, Script, aio::MultiplexedConnection,
    io::tcp::TcpSettings,
};
use secrecy::ExposeSecret;
use tokio::{
    sync::Notify,
    task::yield_now,
    time::{sleep, timeout},
};
use tracing::{debug, info, warn};

use super::buckets::{BucketOperation, Decision, refill_interval};
use crate::config::Redis;

/// Timeout of a call to the server, for a request.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(100);

/// Timeout of connecting. No request waits for it, only the start of the service.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);

/// Initial pause between attempts to connect.
const SHORTEST_PAUSE: Duration = Duration::from_millis(200);

/// Maximum pause between attempts to connect; the pause doubles up to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Interval of probes: they keep an idle connection open and detect a dead one.
const PROBE_INTERVAL: Duration = Duration::from_secs(10);

/// Counters since the start of the process, for metrics.
#[derive(Debug, Default)]
pub struct LimitCounts {
    /// Requests decided by a shared bucket.
    pub shared_decisions: AtomicU64,
    /// Requests decided by a local bucket: all in memory mode, otherwise those during outages.
    pub local_decisions: AtomicU64,
    /// Requests that were decided locally after a failed call to the server.
    pub failed_calls: AtomicU64,
    /// Number of times that the connection was lost, or not available at the start.
    pub fallbacks: AtomicU64,
}

/// The client of the server with the shared buckets.
pub(super) struct SharedBuckets {
    client: Client,
    script: Script,
    prefix: String,
    /// The open connection; `None` while the server is unavailable.
    connection: RwLock<Option<Arc<MultiplexedConnection>>>,
    connection_lost: Notify,
    counts: Arc<LimitCounts>,
}

impl SharedBuckets {
    /// Creates the client, without a connection.
    ///
    /// # Errors
    /// A message for the operator if the URL is invalid. It omits the URL, which may contain a
    /// password.
    pub(super) fn new(settings: &Redis, counts: Arc<LimitCounts>) -> Result<Self, String> {
        let bad = |error| format!("invalid configuration: redis.url cannot be used: {error}");
        let address = settings.url.expose_secret().into_connection_info().map_err(bad)?;
        // A charge is one small packet; Nagle's algorithm would delay it.
        let address = address.set_tcp_settings(TcpSettings::default().set_nodelay(true));
        Ok(Self {
            client: Client::open(address).map_err(bad)?,
            script: Script::new(include_str!("charge.lua")),
            prefix: settings.prefix.clone(),
            connection: RwLock::default(),
            connection_lost: Notify::new(),
            counts,
        })
    }

    /// Applies an operation to a bucket; `None` while the server is unavailable. `kind` and `id`
    /// identify the bucket within the deployment.
    pub(super) async fn apply(
        &self,
        operation: BucketOperation,
        kind: &str,
        id: &str,
        per_minute: NonZeroU32,
    ) -> Option<Decision> {
        let connection = self.connection()?;
        match self.call(&connection, operation, kind, id, per_minute).await {
            Ok(full_in) => Some(operation.decide(per_minute, full_in)),
            Err(error) => {
                self.counts.failed_calls.fetch_add(1, Relaxed);
                self.drop_connection(&connection, &error);
                None
            }
        }
    }

    /// True if there is a connection that has not failed so far.
    pub(super) fn is_connected(&self) -> bool {
        self.connection().is_some()
    }

    /// Connects for the first time. A failure is logged; the service starts anyway.
    pub(super) async fn connect_initially(&self) {
        if let Err(error) = self.connect().await {
            self.log_fallback(&error);
        }
    }

    /// Probes the connection and reconnects when it is lost; runs until dropped.
    pub(super) async fn keep_connected(&self) {
        let mut pause = SHORTEST_PAUSE;
        loop {
            if let Some(connection) = self.connection() {
                if timeout(PROBE_INTERVAL, self.connection_lost.notified()).await.is_err() {
                    match self.probe(&connection).await {
                        Ok(()) => pause = SHORTEST_PAUSE,
                        Err(error) => self.drop_connection(&connection, &error),
                    }
                }
                continue;
            }
            sleep(pause).await;
            // Only a later probe resets the pause, not a connection alone: a server that accepts
            // connections but does not answer is tried less and less often.
            pause = LONGEST_PAUSE.min(pause * 2);
            if let Err(error) = self.connect().await {
                debug!(error, "the shared rate-limit store is still unavailable");
            }
        }
    }

    async fn connect(&self) -> Result<(), String> {
        // No response timeout of the client: `call` has one for the whole call of the script.
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(None);
        let connecting = self.client.get_multiplexed_async_connection_with_config(&config);
        let connection = Arc::new(connecting.await.map_err(|error| error.to_string())?);
        self.probe(&connection).await?;
        *self.connection.write().unwrap_or_else(PoisonError::into_inner) = Some(connection);
        info!("rate limits are shared with the other nodes");
        Ok(())
    }

    /// Runs the script on a separate bucket. This also detects a server that is out of memory or
    /// read-only, which cannot store limits.
    async fn probe(&self, connection: &MultiplexedConnection) -> Result<(), String> {
        self.call(connection, BucketOperation::Charge, "probe", "", NonZeroU32::MAX).await.map(drop)
    }

    async fn call(
        &self,
        connection: &MultiplexedConnection,
        operation: BucketOperation,
        kind: &str,
        id: &str,
        per_minute: NonZeroU32,
    ) -> Result<Duration, String> {
        let each = refill_interval(per_minute);
        let cost = match operation {
            BucketOperation::Charge => nanos(each),
            BucketOperation::Peek => 0,
            BucketOperation::Refund => -nanos(each),
        };
        let whole = each * per_minute.get();
        let mut script = self.script.key(format!("{}:limit:{kind}:{id}", self.prefix));
        script.arg(cost).arg(nanos(whole));
        let mut connection = connection.clone();
        let mut answer = pin!(script.invoke_async(&mut connection));
        let answer = if let Ok(answer) = timeout(ANSWER_TIMEOUT, &mut answer).await {
            Some(answer)
        } else {
            // This node itself may have been suspended: read an answer that has arrived meanwhile.
            yield_now().await;
            answer.now_or_never()
        };
        match answer {
            Some(Ok(full_in)) => Ok(Duration::from_nanos(full_in)),
            Some(Err(error)) => Err(error.to_string()),
            None => Err(format!("no answer within {ANSWER_TIMEOUT:?}")),
        }
    }

    fn connection(&self) -> Option<Arc<MultiplexedConnection>> {
        self.connection.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Closes a failed connection. Only the first request that failed over it does so and logs it.
    fn drop_connection(&self, failed: &Arc<MultiplexedConnection>, error: &str) {
        let mut connection = self.connection.write().unwrap_or_else(PoisonError::into_inner);
        if connection.take_if(|connection| Arc::ptr_eq(connection, failed)).is_some() {
            drop(connection);
            self.log_fallback(error);
            self.connection_lost.notify_one();
        }
    }

    fn log_fallback(&self, error: &str) {
        self.counts.fallbacks.fetch_add(1, Relaxed);
        warn!(
            error,
            "the shared rate-limit store is unavailable; using local limits until it is back"
        );
    }
}

fn nanos(duration: Duration) -> i64 {
    duration.as_nanos().try_into().unwrap_or(i64::MAX)
}
