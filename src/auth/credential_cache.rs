//! What is known of credentials: bounded, looked up many at a time, coherent over all nodes.

use std::{
    collections::HashMap,
    future::Future,
    hash::Hash,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use quick_cache::sync::Cache;
use tokio::sync::{mpsc, oneshot};
use tracing::warn;

use crate::{
    coherence::Lease,
    env::Env,
    store::{Store, StoreError},
};

/// Look-ups in one statement at most.
const BATCH: usize = 1000;
/// Requests that wait for a look-up at most; further ones are answered 503.
const WAITING: usize = 10_000;
/// How long a credential that nobody knows is taken for unknown without asking again.
const UNKNOWN_FOR: Duration = Duration::from_secs(10);
/// The longest that PostgreSQL may take for one statement.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where a cache looks up what it does not know.
pub(super) trait Source: Send + Sync + 'static {
    /// What credentials are told apart by.
    type Key: Copy + Eq + Hash + Send + Sync + 'static;
    /// What is known of one.
    type Known: Clone + Send + Sync + 'static;

    /// Looks up many at once; what is not in the answer does not exist.
    fn fetch(
        &mut self,
        keys: &[Self::Key],
    ) -> impl Future<Output = Result<Found<Self>, StoreError>> + Send;
}

/// What was found of what was looked up.
pub(super) type Found<S> = Vec<(<S as Source>::Key, <S as Source>::Known)>;

/// How often a cache was asked, and what came of it.
#[derive(Debug, Default)]
pub struct CacheCounts {
    /// Answered from memory.
    pub hits: AtomicU64,
    /// Answered from memory: known not to exist.
    pub unknown_hits: AtomicU64,
    /// Looked up in PostgreSQL.
    pub misses: AtomicU64,
}

/// Credentials of one kind. Cheap to clone.
///
/// A request never joins a look-up that began before it: those that come while one is under way
/// gather for the next, each credential once. So whatever was revoked before a request came is seen
/// by it, and a flood of unknown credentials costs PostgreSQL a statement for hundreds of them.
pub(super) struct CredentialCache<S: Source> {
    cached: Arc<Cached<S>>,
    lease: Lease,
    queue: mpsc::Sender<Wanted<S>>,
}

type Answer<S> = Result<Option<<S as Source>::Known>, ()>;

/// Who waits for which.
type Waiting<S> = HashMap<<S as Source>::Key, Vec<oneshot::Sender<Answer<S>>>>;

struct Wanted<S: Source> {
    key: S::Key,
    answer: oneshot::Sender<Answer<S>>,
}

struct Cached<S: Source> {
    known: Cache<S::Key, S::Known>,
    /// Until when each is taken for unknown. Apart, so that a flood of made-up credentials does not
    /// push good ones out.
    unknown: Cache<S::Key, Duration>,
    /// How often something was forgotten. What was looked up before is not kept after; the lock is
    /// held while either is done.
    forgettings: Mutex<u64>,
    counts: CacheCounts,
}

impl<S: Source> Clone for CredentialCache<S> {
    fn clone(&self) -> Self {
        let (cached, lease) = (Arc::clone(&self.cached), self.lease.clone());
        Self { cached, lease, queue: self.queue.clone() }
    }
}

impl<S: Source> CredentialCache<S> {
    /// An empty cache of at most so many known credentials, and as many unknown ones.
    pub(super) fn start(source: S, env: Env, lease: Lease, capacity: usize) -> Self {
        let cached = Arc::new(Cached {
            known: Cache::new(capacity),
            unknown: Cache::new(capacity),
            forgettings: Mutex::default(),
            counts: CacheCounts::default(),
        });
        let (queue, wanted) = mpsc::channel(WAITING);
        tokio::spawn(look_up(source, env, Arc::clone(&cached), wanted));
        Self { cached, lease, queue }
    }

    /// What is known of a credential, by a request that began at this moment of the monotonic clock.
    ///
    /// # Errors
    /// When it has to be looked up and PostgreSQL cannot be reached.
    pub(super) async fn find(
        &self,
        key: S::Key,
        now: Duration,
    ) -> Result<Option<S::Known>, StoreError> {
        let counts = &self.cached.counts;
        if self.lease.holds(now) {
            if let Some(known) = self.cached.known.get(&key) {
                counts.hits.fetch_add(1, Ordering::Relaxed);
                return Ok(Some(known));
            }
            if self.cached.unknown.get(&key).is_some_and(|until| now < until) {
                counts.unknown_hits.fetch_add(1, Ordering::Relaxed);
                return Ok(None);
            }
        }
        counts.misses.fetch_add(1, Ordering::Relaxed);
        self.ask(key).await
    }

    async fn ask(&self, key: S::Key) -> Result<Option<S::Known>, StoreError> {
        let (answer, answered) = oneshot::channel();
        self.queue.try_send(Wanted { key, answer }).map_err(|_| StoreError::late())?;
        answered.await.map_err(|_| StoreError::Aborted)?.map_err(|()| StoreError::late())
    }

    /// Forgets one credential.
    pub(super) fn forget(&self, key: &S::Key) {
        let mut forgettings = self.cached.forgettings();
        *forgettings += 1;
        self.cached.known.remove(key);
        self.cached.unknown.remove(key);
    }

    /// Forgets those of which this is true.
    pub(super) fn forget_if(&self, is: impl Fn(&S::Known) -> bool) {
        let mut forgettings = self.cached.forgettings();
        *forgettings += 1;
        self.cached.known.retain(|_, known| !is(known));
    }

    /// Forgets all.
    pub(super) fn forget_all(&self) {
        let mut forgettings = self.cached.forgettings();
        *forgettings += 1;
        self.cached.known.clear();
        self.cached.unknown.clear();
    }

    /// How many are known.
    pub(super) fn len(&self) -> usize {
        self.cached.known.len()
    }

    /// How often it was asked.
    pub(super) fn counts(&self) -> &CacheCounts {
        &self.cached.counts
    }
}

impl<S: Source> Cached<S> {
    fn forgettings(&self) -> std::sync::MutexGuard<'_, u64> {
        self.forgettings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps what was found, and tells those who wait.
    fn answer(&self, waiting: Waiting<S>, found: Option<Found<S>>, before: u64, now: Duration) {
        let found: Option<HashMap<_, _>> = found.map(|found| found.into_iter().collect());
        for (key, askers) in waiting {
            let answer = found.as_ref().map(|found| found.get(&key));
            if let Some(known) = answer {
                self.keep(before, key, known, now);
            }
            for asker in askers {
                asker.send(answer.map(Option::<&_>::cloned).ok_or(())).ok();
            }
        }
    }

    /// Keeps what was found, unless something was forgotten since the look-up began.
    fn keep(&self, before: u64, key: S::Key, found: Option<&S::Known>, now: Duration) {
        let forgettings = self.forgettings();
        if *forgettings != before {
            return;
        }
        match found {
            Some(known) => self.known.insert(key, known.clone()),
            None => self.unknown.insert(key, now + UNKNOWN_FOR),
        }
    }
}

/// Looks up whatever is wanted; while one statement is under way the next gathers.
async fn look_up<S: Source>(
    mut source: S,
    env: Env,
    cached: Arc<Cached<S>>,
    mut wanted: mpsc::Receiver<Wanted<S>>,
) {
    let mut batch = Vec::new();
    while wanted.recv_many(&mut batch, BATCH).await > 0 {
        let mut waiting: Waiting<S> = HashMap::new();
        for Wanted { key, answer } in batch.drain(..) {
            // Whoever hung up meanwhile is not asked for.
            if !answer.is_closed() {
                waiting.entry(key).or_default().push(answer);
            }
        }
        let keys: Vec<_> = waiting.keys().copied().collect();
        let before = *cached.forgettings();
        let now = env.clock.monotonic();
        let found = fetch(&mut source, &keys).await;
        cached.answer(waiting, found, before, now);
    }
}

/// Tries twice: the first try may meet a connection that died while it was idle.
async fn fetch<S: Source>(source: &mut S, keys: &[S::Key]) -> Option<Found<S>> {
    for _ in 0..2 {
        match Store::within(PATIENCE, source.fetch(keys)).await {
            Ok(found) => return Some(found),
            Err(error) => warn!(%error, wanted = keys.len(), "cannot look credentials up"),
        }
    }
    None
}

#[cfg(test)]
mod tests;
