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
mod tests {
    use proptest::prelude::*;
    use tokio::sync::Semaphore;

    use super::*;

    /// A source in a test's hands: what is true, and when it may answer.
    #[derive(Clone)]
    struct Truth {
        values: Arc<Mutex<HashMap<u32, u32>>>,
        fetches: Arc<AtomicU64>,
        /// One for each answer; read before it is taken, as a snapshot is.
        answers: Arc<Semaphore>,
    }

    impl Truth {
        fn new() -> Self {
            let answers = Arc::new(Semaphore::new(Semaphore::MAX_PERMITS));
            Self { values: Arc::default(), fetches: Arc::default(), answers }
        }

        fn set(&self, key: u32, value: u32) {
            self.values.lock().unwrap().insert(key, value);
        }

        fn fetches(&self) -> u64 {
            self.fetches.load(Ordering::SeqCst)
        }

        /// From now on nothing is answered until [`Semaphore::add_permits`].
        async fn hold(&self) {
            self.answers.acquire_many(1 << 20).await.unwrap().forget();
            self.answers.forget_permits(usize::MAX);
        }

        /// Ready once so many look-ups have begun.
        async fn asked(&self, times: u64) {
            while self.fetches() < times {
                tokio::task::yield_now().await;
            }
        }
    }

    impl Source for Truth {
        type Key = u32;
        type Known = u32;

        async fn fetch(&mut self, keys: &[u32]) -> Result<Found<Self>, StoreError> {
            let read: Vec<_> = {
                let values = self.values.lock().unwrap();
                keys.iter().filter_map(|key| Some((*key, *values.get(key)?))).collect()
            };
            self.fetches.fetch_add(1, Ordering::SeqCst);
            self.answers.acquire().await.map_err(|_| StoreError::Aborted)?.forget();
            Ok(read)
        }
    }

    const NOW: Duration = Duration::from_secs(100);

    fn cache(truth: &Truth, capacity: usize) -> (CredentialCache<Truth>, Lease) {
        let lease = Lease::default();
        lease.extend(NOW + Duration::from_secs(5));
        let cache = CredentialCache::start(truth.clone(), Env::system(), lease.clone(), capacity);
        (cache, lease)
    }

    #[tokio::test]
    async fn what_is_known_is_not_asked_again_while_the_lease_holds() {
        let truth = Truth::new();
        truth.set(1, 10);
        let (cache, lease) = cache(&truth, 100);
        for _ in 0..3 {
            assert_eq!(cache.find(1, NOW).await.unwrap(), Some(10));
        }
        assert_eq!(truth.fetches(), 1);
        let late = NOW + Duration::from_secs(6);
        assert_eq!(cache.find(1, late).await.unwrap(), Some(10));
        assert_eq!(truth.fetches(), 2, "past the lease each time");
        lease.extend(late + Duration::from_secs(5));
        assert_eq!(cache.find(1, late).await.unwrap(), Some(10));
        assert_eq!(truth.fetches(), 2);
    }

    #[tokio::test]
    async fn what_was_read_before_a_change_is_not_kept_after_it() {
        let truth = Truth::new();
        truth.set(1, 10);
        let (cache, _lease) = cache(&truth, 100);
        truth.hold().await;
        let early = tokio::spawn({
            let cache = cache.clone();
            async move { cache.find(1, NOW).await.unwrap() }
        });
        truth.asked(1).await;
        truth.set(1, 11);
        cache.forget(&1);
        truth.answers.add_permits(1);
        assert_eq!(early.await.unwrap(), Some(10), "it began before the change");
        truth.answers.add_permits(1);
        assert_eq!(cache.find(1, NOW).await.unwrap(), Some(11));
        assert_eq!(truth.fetches(), 2);
    }

    #[tokio::test]
    async fn nobody_joins_a_look_up_that_began_before() {
        let truth = Truth::new();
        truth.set(1, 10);
        let (cache, _lease) = cache(&truth, 100);
        truth.hold().await;
        let find = |cache: CredentialCache<Truth>| async move { cache.find(1, NOW).await.unwrap() };
        let early = tokio::spawn(find(cache.clone()));
        truth.asked(1).await;
        truth.set(1, 11);
        let late: Vec<_> = (0..10).map(|_| tokio::spawn(find(cache.clone()))).collect();
        tokio::task::yield_now().await;
        truth.answers.add_permits(2);
        assert_eq!(early.await.unwrap(), Some(10));
        for late in late {
            assert_eq!(late.await.unwrap(), Some(11));
        }
        assert_eq!(truth.fetches(), 2, "the ten of them share one");
    }

    #[tokio::test]
    async fn a_flood_of_unknown_credentials_pushes_no_good_one_out() {
        let truth = Truth::new();
        truth.set(1, 10);
        let (cache, _lease) = cache(&truth, 10);
        cache.find(1, NOW).await.unwrap();
        for key in 1000..3000 {
            assert_eq!(cache.find(key, NOW).await.unwrap(), None);
        }
        let fetches = truth.fetches();
        assert_eq!(cache.find(1, NOW).await.unwrap(), Some(10));
        assert_eq!(cache.find(2999, NOW).await.unwrap(), None);
        assert_eq!(truth.fetches(), fetches, "both are remembered");
        let (cached, bound) = (cache.cached.unknown.len(), 10);
        assert!(cached <= bound, "{cached} unknown ones are kept");
    }

    #[tokio::test]
    async fn a_source_that_fails_is_no_answer() {
        let truth = Truth::new();
        truth.answers.close();
        let (cache, _lease) = cache(&truth, 10);
        assert!(cache.find(1, NOW).await.is_err(), "not `unknown`");
        assert!(cache.cached.unknown.get(&1).is_none());
    }

    #[derive(Debug, Clone)]
    enum Step {
        Find(u32),
        Change(u32, u32),
        Remove(u32),
        LoseLease,
        ForgetAll,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0..8_u32).prop_map(Step::Find),
            3 => (0..8_u32, 0..100_u32).prop_map(|(key, value)| Step::Change(key, value)),
            1 => (0..8_u32).prop_map(Step::Remove),
            1 => Just(Step::LoseLease),
            1 => Just(Step::ForgetAll),
        ]
    }

    proptest! {
        /// Against a model that is nothing but the truth: whatever happens in between, a find after a
        /// change tells the new state.
        #[test]
        fn it_tells_the_truth(steps in prop::collection::vec(step(), 1..60)) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let truth = Truth::new();
                let (cache, lease) = cache(&truth, 4);
                for step in steps {
                    match step {
                        Step::Find(key) => {
                            let expected = truth.values.lock().unwrap().get(&key).copied();
                            // Only a change makes a known credential unknown, so what was unknown may
                            // stay so for a while; nobody can know a key before it is minted.
                            let found = cache.find(key, NOW).await.unwrap();
                            assert_eq!(found, expected);
                        }
                        Step::Change(key, value) => {
                            truth.set(key, value);
                            cache.forget(&key);
                        }
                        Step::Remove(key) => {
                            truth.values.lock().unwrap().remove(&key);
                            cache.forget(&key);
                        }
                        Step::LoseLease => lease.extend(Duration::ZERO),
                        Step::ForgetAll => {
                            cache.forget_all();
                            lease.extend(NOW + Duration::from_secs(5));
                        }
                    }
                }
            });
        }
    }
}
