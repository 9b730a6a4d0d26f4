//! Buckets that all nodes share, on a Valkey or Redis server.
//!
//! A charge is one call of a script, which the server runs at once, by its own clock. The script keeps
//! what a local bucket keeps, and the same function makes a [`Decision`] of it.
//!
//! No request ever waits for a connection. While there is one, a charge has [`ANSWER_TIMEOUT`]; the first
//! that fails takes the connection away from all others, and until a task of its own has made another
//! and tried the script over it, everybody decides locally at once.

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

use super::limiter::{Decision, decide, each, seen};
use crate::config::Redis;

/// The longest that a request waits for the server.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(100);

/// The longest that making a connection may take; no request waits for it, except at the start.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);

/// Between attempts to connect: at first…
const SHORTEST_PAUSE: Duration = Duration::from_millis(200);

/// …and, each pause being twice the one before, at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// How often a connection is tried: an idle one is kept from being closed, and a dead one is noticed.
const TRY_EVERY: Duration = Duration::from_secs(10);

/// What limits have done since the start, for metrics.
#[derive(Debug, Default)]
pub struct LimitCounts {
    /// Requests that a shared bucket decided.
    pub shared_decisions: AtomicU64,
    /// Requests that a bucket of this node decided: all of them in memory mode, else those of outages.
    pub local_decisions: AtomicU64,
    /// Requests that asked the server in vain, and were then decided locally.
    pub failed_calls: AtomicU64,
    /// Times that the server went away, or was not there at the start.
    pub fallbacks: AtomicU64,
}

/// What becomes of a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ask {
    /// One request is taken from it.
    Charge,
    /// Nothing is.
    Look,
}

/// The server, while it answers.
pub(super) struct Shared {
    client: Client,
    script: Script,
    prefix: String,
    link: RwLock<Option<Arc<MultiplexedConnection>>>,
    lost: Notify,
    counts: Arc<LimitCounts>,
}

impl Shared {
    /// Without a connection yet.
    ///
    /// # Errors
    /// When the URL is none; it is not in the text, since it may hold a password.
    pub(super) fn new(settings: &Redis, counts: Arc<LimitCounts>) -> Result<Self, String> {
        let bad = |error| format!("bad configuration: redis.url cannot be used: {error}");
        let address = settings.url.expose_secret().into_connection_info().map_err(bad)?;
        // A charge is one small packet, which is not to wait for a second.
        let address = address.set_tcp_settings(TcpSettings::default().set_nodelay(true));
        Ok(Self {
            client: Client::open(address).map_err(bad)?,
            script: Script::new(include_str!("charge.lua")),
            prefix: settings.prefix.clone(),
            link: RwLock::default(),
            lost: Notify::new(),
            counts,
        })
    }

    /// What a bucket says, or nothing while the server is away. `kind` and `id` name the bucket among
    /// all of this deployment.
    pub(super) async fn ask(
        &self,
        ask: Ask,
        kind: &str,
        id: &str,
        per_minute: NonZeroU32,
    ) -> Option<Decision> {
        let link = self.link()?;
        match self.call(&link, ask, kind, id, per_minute).await {
            Ok(full_in) => Some(match ask {
                Ask::Charge => decide(per_minute, full_in),
                Ask::Look => seen(per_minute, full_in),
            }),
            Err(error) => {
                self.counts.failed_calls.fetch_add(1, Relaxed);
                self.lose(&link, &error);
                None
            }
        }
    }

    /// Whether the server answers, as far as is known.
    pub(super) fn is_there(&self) -> bool {
        self.link().is_some()
    }

    /// The first attempt, whose failure is told; it is no reason not to start.
    pub(super) async fn start(&self) {
        if let Err(error) = self.connect().await {
            self.tell_loss(&error);
        }
    }

    /// Connects again whenever the server has gone away, until it is dropped.
    pub(super) async fn keep(&self) {
        let mut pause = SHORTEST_PAUSE;
        loop {
            if let Some(link) = self.link() {
                if timeout(TRY_EVERY, self.lost.notified()).await.is_err() {
                    match self.attempt(&link).await {
                        Ok(()) => pause = SHORTEST_PAUSE,
                        Err(error) => self.lose(&link, &error),
                    }
                }
                continue;
            }
            sleep(pause).await;
            // Not reset by a connection alone: a server that takes connections and answers nothing is
            // to be asked ever more rarely.
            pause = LONGEST_PAUSE.min(pause * 2);
            if let Err(error) = self.connect().await {
                debug!(error, "the server of the limits is still away");
            }
        }
    }

    async fn connect(&self) -> Result<(), String> {
        // Time-outs of answers are this module's own, one for the whole of a script's call.
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(None);
        let connecting = self.client.get_multiplexed_async_connection_with_config(&config);
        let link = Arc::new(connecting.await.map_err(|error| error.to_string())?);
        self.attempt(&link).await?;
        *self.link.write().unwrap_or_else(PoisonError::into_inner) = Some(link);
        info!("limits are shared with the other nodes");
        Ok(())
    }

    /// Runs the script on a bucket of its own: also a server without memory, or one that may not be
    /// written to, is no server for limits.
    async fn attempt(&self, link: &MultiplexedConnection) -> Result<(), String> {
        self.call(link, Ask::Charge, "probe", "", NonZeroU32::MAX).await.map(drop)
    }

    async fn call(
        &self,
        link: &MultiplexedConnection,
        ask: Ask,
        kind: &str,
        id: &str,
        per_minute: NonZeroU32,
    ) -> Result<Duration, String> {
        let each = each(per_minute);
        let cost = if ask == Ask::Charge { each } else { Duration::ZERO };
        let whole = each * per_minute.get();
        let mut script = self.script.key(format!("{}:limit:{kind}:{id}", self.prefix));
        script.arg(nanos(cost)).arg(nanos(whole));
        let mut link = link.clone();
        let mut answer = pin!(script.invoke_async(&mut link));
        let answer = if let Ok(answer) = timeout(ANSWER_TIMEOUT, &mut answer).await {
            Some(answer)
        } else {
            // It may be this node that stood still: what has arrived meanwhile is read first.
            yield_now().await;
            answer.now_or_never()
        };
        match answer {
            Some(Ok(full_in)) => Ok(Duration::from_nanos(full_in)),
            Some(Err(error)) => Err(error.to_string()),
            None => Err(format!("no answer within {ANSWER_TIMEOUT:?}")),
        }
    }

    fn link(&self) -> Option<Arc<MultiplexedConnection>> {
        self.link.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Gives a connection up. Of all requests that failed over it, the first does, and tells it.
    fn lose(&self, failed: &Arc<MultiplexedConnection>, error: &str) {
        let mut link = self.link.write().unwrap_or_else(PoisonError::into_inner);
        if link.take_if(|link| Arc::ptr_eq(link, failed)).is_some() {
            drop(link);
            self.tell_loss(error);
            self.lost.notify_one();
        }
    }

    fn tell_loss(&self, error: &str) {
        self.counts.fallbacks.fetch_add(1, Relaxed);
        warn!(
            error,
            "the server of the limits is away: each node limits for itself until it is back"
        );
    }
}

fn nanos(duration: Duration) -> u64 {
    duration.as_nanos().try_into().unwrap_or(u64::MAX)
}
