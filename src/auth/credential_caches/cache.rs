//! A bounded cache of credential records with batched lookups, coherent across all nodes.
//!
//! Invariant: a request sees every invalidation that was confirmed before the request started. A
//! cached record is used, and a lookup is believed, only while the node's [`Lease`] holds; no
//! request joins a query that started before it. Cache invalidations arrive through [`super`].

use std::{
    collections::HashMap,
    future::Future,
    hash::Hash,
    panic::AssertUnwindSafe,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::FutureExt as _;
use quick_cache::sync::Cache;
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};
use tracing::error;

use crate::{
    cache_invalidation::Lease,
    env::{Clock, Env},
    store::{Server, StoreError},
    tasks::TaskGroup,
    telemetry::LogLimiter,
};

/// Maximum number of credentials in one query.
const MAX_BATCH: usize = 1000;
/// Maximum number of requests that wait for a lookup; further ones are answered 503.
const MAX_QUEUED: usize = 10_000;
/// Lifetime of a negative entry: an unknown credential is not looked up again for this long.
const NEGATIVE_TTL: Duration = Duration::from_secs(10);
/// Maximum time of a lookup. A client gets 503 and tries again, rather than wait for a lock or a
/// dead connection.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(1);

/// Loads credential records that are not cached.
pub(in crate::auth) trait CredentialSource: Send + Sync + 'static {
    /// The identifier of a credential.
    type Key: Copy + Eq + Hash + Send + Sync + 'static;
    /// The record of a credential.
    type Record: Clone + Send + Sync + 'static;

    /// Returns the server of the following queries. They fail if they would run on another one.
    fn server(&mut self) -> impl Future<Output = Result<Server, StoreError>> + Send;

    /// Loads many records in one query. Keys without a record in the result do not exist.
    fn fetch(
        &mut self,
        keys: &[Self::Key],
    ) -> impl Future<Output = Result<FetchedRecords<Self>, StoreError>> + Send;
}

/// The loaded records, with their keys.
pub(in crate::auth) type FetchedRecords<S> =
    Vec<(<S as CredentialSource>::Key, <S as CredentialSource>::Record)>;

/// Counters of cache lookups, by outcome.
#[derive(Debug, Default)]
pub struct CacheCounters {
    /// Answered from the cache.
    pub hits: AtomicU64,
    /// Answered from a negative entry: the credential does not exist.
    pub negative_hits: AtomicU64,
    /// Looked up in PostgreSQL.
    pub misses: AtomicU64,
}

/// A cache of credentials of one kind. Cheap to clone.
///
/// A request never joins a query that started before the request did. While a query runs, new
/// requests gather for the next one, which contains each credential once. Therefore a request sees
/// everything that was revoked before it arrived, and a flood of unknown credentials costs
/// PostgreSQL one query for hundreds of them.
pub(in crate::auth) struct CredentialCache<S: CredentialSource> {
    state: Arc<CacheState<S>>,
    lease: Lease,
    queue: mpsc::Sender<Lookup<S>>,
}

/// The result of a lookup, or the text of its error.
type LookupResult<S> = Result<Option<<S as CredentialSource>::Record>, Arc<str>>;

/// The requests that wait for each credential.
type Waiters<S> = HashMap<<S as CredentialSource>::Key, Vec<oneshot::Sender<LookupResult<S>>>>;

struct Lookup<S: CredentialSource> {
    key: S::Key,
    reply: oneshot::Sender<LookupResult<S>>,
}

struct CacheState<S: CredentialSource> {
    known: Cache<S::Key, S::Record>,
    /// Expiry of negative entries, on the monotonic clock. A separate cache, so that a flood of
    /// invalid credentials does not evict valid ones.
    unknown: Cache<S::Key, Duration>,
    /// Invalidation epoch. Results of lookups that started in an older epoch are not cached. The
    /// lock is held while an entry is inserted or invalidated.
    epoch: Mutex<u64>,
    counts: CacheCounters,
}

impl<S: CredentialSource> Clone for CredentialCache<S> {
    fn clone(&self) -> Self {
        let (state, lease) = (Arc::clone(&self.state), self.lease.clone());
        Self { state, lease, queue: self.queue.clone() }
    }
}

impl<S: CredentialSource> CredentialCache<S> {
    /// Starts an empty cache. `capacity` bounds the records, and separately the negative entries.
    /// Lookups run in `tasks`.
    pub(in crate::auth) fn start(
        source: S,
        env: Env,
        lease: Lease,
        capacity: usize,
        tasks: &TaskGroup,
    ) -> Self {
        let state = Arc::new(CacheState {
            known: Cache::new(capacity),
            unknown: Cache::new(capacity),
            epoch: Mutex::default(),
            counts: CacheCounters::default(),
        });
        let (queue, lookups) = mpsc::channel(MAX_QUEUED);
        let run = run_lookups(source, env, Arc::clone(&state), lease.clone(), lookups);
        tasks.spawn_critical("credential lookups", |stopping| async move {
            // A lookup only reads, so it can end anywhere.
            stopping.run_until_cancelled(run).await;
        });
        Self { state, lease, queue }
    }

    /// Returns the record of a credential, or `None` if it does not exist. `now` is the start of
    /// the request on the monotonic clock.
    ///
    /// # Errors
    /// [`StoreError`] if the record must be looked up and the query fails or the queue is full.
    pub(in crate::auth) async fn find(
        &self,
        key: S::Key,
        now: Duration,
    ) -> Result<Option<S::Record>, StoreError> {
        let counts = &self.state.counts;
        if self.lease.is_valid_at(now) {
            if let Some(known) = self.state.known.get(&key) {
                counts.hits.fetch_add(1, Ordering::Relaxed);
                return Ok(Some(known));
            }
            if self.state.unknown.get(&key).is_some_and(|until| now < until) {
                counts.negative_hits.fetch_add(1, Ordering::Relaxed);
                return Ok(None);
            }
        }
        counts.misses.fetch_add(1, Ordering::Relaxed);
        self.look_up(key).await
    }

    async fn look_up(&self, key: S::Key) -> Result<Option<S::Record>, StoreError> {
        let (reply, result) = oneshot::channel();
        self.queue.try_send(Lookup { key, reply }).map_err(|_| StoreError::timed_out())?;
        let result = timeout(LOOKUP_TIMEOUT, result).await.map_err(|_| StoreError::timed_out())?;
        result.map_err(|_| StoreError::Aborted)?.map_err(|error| StoreError::shared(&error))
    }

    /// Removes one credential from the cache.
    pub(in crate::auth) fn invalidate(&self, key: &S::Key) {
        let mut epoch = self.state.lock_epoch();
        *epoch += 1;
        self.state.known.remove(key);
        self.state.unknown.remove(key);
    }

    /// Removes all records for which `predicate` is true.
    pub(in crate::auth) fn invalidate_where(&self, predicate: impl Fn(&S::Record) -> bool) {
        let mut epoch = self.state.lock_epoch();
        *epoch += 1;
        self.state.known.retain(|_, known| !predicate(known));
    }

    /// Removes all entries.
    pub(in crate::auth) fn invalidate_all(&self) {
        let mut epoch = self.state.lock_epoch();
        *epoch += 1;
        self.state.known.clear();
        self.state.unknown.clear();
    }

    /// Number of cached records.
    pub(in crate::auth) fn len(&self) -> usize {
        self.state.known.len()
    }

    /// Counters of this cache.
    pub(in crate::auth) fn counters(&self) -> &CacheCounters {
        &self.state.counts
    }
}

impl<S: CredentialSource> CacheState<S> {
    fn lock_epoch(&self) -> std::sync::MutexGuard<'_, u64> {
        self.epoch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Caches the results of a query, or the text of its error, and sends them to the waiting
    /// requests.
    fn complete(
        &self,
        waiters: Waiters<S>,
        records: Result<FetchedRecords<S>, Arc<str>>,
        epoch_at_start: u64,
        now: Duration,
    ) {
        let records: Result<HashMap<_, _>, _> =
            records.map(|records| records.into_iter().collect());
        for (key, waiters) in waiters {
            let result = records.as_ref().map(|records| records.get(&key));
            if let Ok(record) = result {
                self.insert(epoch_at_start, key, record, now);
            }
            for waiter in waiters {
                waiter.send(result.map(Option::<&_>::cloned).map_err(Arc::clone)).ok();
            }
        }
    }

    /// Caches one result, unless an invalidation has happened since the query started.
    fn insert(&self, epoch_at_start: u64, key: S::Key, record: Option<&S::Record>, now: Duration) {
        let epoch = self.lock_epoch();
        if *epoch != epoch_at_start {
            return;
        }
        match record {
            Some(record) => self.known.insert(key, record.clone()),
            None => self.unknown.insert(key, now + NEGATIVE_TTL),
        }
    }
}

/// Runs queued lookups in batches. While one query runs, the next batch gathers in the queue.
async fn run_lookups<S: CredentialSource>(
    mut source: S,
    env: Env,
    state: Arc<CacheState<S>>,
    lease: Lease,
    mut lookups: mpsc::Receiver<Lookup<S>>,
) {
    let (mut batch, limiter) = (Vec::new(), LogLimiter::default());
    while lookups.recv_many(&mut batch, MAX_BATCH).await > 0 {
        let mut waiters: Waiters<S> = HashMap::new();
        for Lookup { key, reply } in batch.drain(..) {
            // Skip requests of clients that have disconnected.
            if !reply.is_closed() {
                waiters.entry(key).or_default().push(reply);
            }
        }
        // The parts of the batch that are not complete.
        let mut pending = vec![waiters];
        while let Some(mut waiters) = pending.pop() {
            let keys: Vec<_> = waiters.keys().copied().collect();
            let epoch_at_start = *state.lock_epoch();
            let now = env.clock.monotonic();
            let log_failure = |error: &StoreError| {
                if let Some(suppressed) = limiter.admit(&error.to_string(), now) {
                    let suppressed = (suppressed > 0).then_some(suppressed);
                    error!(%error, lookups = keys.len(), suppressed, "cannot look up credentials");
                }
            };
            let fetched =
                fetch_with_retry(&mut source, &keys, &lease, &*env.clock, log_failure).await;
            match fetched {
                // The others are found without the record that cannot be read.
                Err(FetchError { is_unreadable: true, .. }) if keys.len() > 1 => {
                    let half = keys.iter().take(keys.len() / 2);
                    let half = half.filter_map(|key| waiters.remove_entry(key)).collect();
                    pending.extend([half, waiters]);
                }
                fetched => {
                    let records = fetched.map_err(|error| error.text);
                    state.complete(waiters, records, epoch_at_start, now);
                }
            }
        }
    }
}

/// The failure of a query.
struct FetchError {
    text: Arc<str>,
    /// A record cannot be read.
    is_unreadable: bool,
}

impl From<&StoreError> for FetchError {
    fn from(error: &StoreError) -> Self {
        Self { text: error.to_string().into(), is_unreadable: error.is_unreadable() }
    }
}

/// Runs a query, up to twice: the first attempt may get a connection that died while it was idle.
/// Returns the last error.
async fn fetch_with_retry<S: CredentialSource>(
    source: &mut S,
    keys: &[S::Key],
    lease: &Lease,
    clock: &dyn Clock,
    log_failure: impl Fn(&StoreError),
) -> Result<FetchedRecords<S>, FetchError> {
    let attempts = async {
        let mut is_retry = false;
        loop {
            match fetch_under_lease(source, keys, lease, clock).await {
                Ok(records) => return Ok(records),
                Err(error) => {
                    log_failure(&error);
                    if is_retry || error.is_unreadable() {
                        return Err(FetchError::from(&error));
                    }
                    is_retry = true;
                }
            }
        }
    };
    timeout(LOOKUP_TIMEOUT, attempts).await.unwrap_or_else(|_| {
        let error = StoreError::timed_out();
        log_failure(&error);
        Err(FetchError::from(&error))
    })
}

/// Runs a query on the server of the lease. Any other server may be a primary that was replaced: it
/// answers, and does not know the latest revocations.
async fn fetch_under_lease<S: CredentialSource>(
    source: &mut S,
    keys: &[S::Key],
    lease: &Lease,
    clock: &dyn Clock,
) -> Result<FetchedRecords<S>, StoreError> {
    let server = source.server().await?;
    lease.wait_until_valid(server, clock).await;
    // A library may panic on a value that it cannot decode. That ends no lookup but this one.
    let fetched = AssertUnwindSafe(source.fetch(keys)).catch_unwind().await;
    fetched.unwrap_or_else(|_| Err(StoreError::unreadable()))
}

#[cfg(test)]
mod tests;
