use proptest::prelude::*;
use tokio::sync::Semaphore;

use super::*;
use crate::env::ManualClock;

/// A source under the control of a test: its values, and the moment of each answer.
#[derive(Clone)]
struct FakeSource {
    values: Arc<Mutex<HashMap<u32, u32>>>,
    fetches: Arc<AtomicU64>,
    /// One permit per answer. Taken after the values were read, as with a database snapshot.
    answers: Arc<Semaphore>,
}

impl FakeSource {
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

    /// Holds back all answers from now on, until [`Semaphore::add_permits`].
    async fn hold_answers(&self) {
        self.answers.acquire_many(1 << 20).await.unwrap().forget();
        self.answers.forget_permits(usize::MAX);
    }

    /// Waits until this many fetches have started.
    async fn wait_for_fetches(&self, times: u64) {
        while self.fetches() < times {
            tokio::task::yield_now().await;
        }
    }
}

/// Fails as a query does with records that cannot be decoded.
fn read_badly(keys: &[u32]) -> Result<(), StoreError> {
    assert!(!keys.contains(&PANIC), "a library panics");
    if keys.contains(&UNREADABLE) { Err(StoreError::unreadable()) } else { Ok(()) }
}

impl CredentialSource for FakeSource {
    type Key = u32;
    type Record = u32;

    async fn server(&mut self) -> Result<Server, StoreError> {
        Ok(Server::default())
    }

    async fn fetch(&mut self, keys: &[u32]) -> Result<FetchedRecords<Self>, StoreError> {
        read_badly(keys)?;
        let read: Vec<_> = {
            let values = self.values.lock().unwrap();
            keys.iter().filter_map(|key| Some((*key, *values.get(key)?))).collect()
        };
        self.fetches.fetch_add(1, Ordering::SeqCst);
        self.answers.acquire().await.map_err(|_| StoreError::Aborted)?.forget();
        Ok(read)
    }
}

/// Keys of records that cannot be read.
const UNREADABLE: u32 = 1_000_001;
const PANIC: u32 = 1_000_002;

#[tokio::test]
async fn record_that_cannot_be_read_fails_alone() {
    let source = FakeSource::new();
    for key in 0..100 {
        source.set(key, key);
    }
    let (cache, _lease) = cache(&source, 1000);
    for _ in 0..2 {
        let keys: Vec<_> = (0..100).chain([UNREADABLE, PANIC]).collect();
        let found = futures_util::future::join_all(keys.iter().map(|key| cache.find(*key, NOW)));
        for (key, found) in keys.iter().zip(found.await) {
            assert_eq!(found.ok().flatten(), (*key < 100).then_some(*key), "{key}");
        }
        cache.invalidate_all();
    }
}

const NOW: Duration = Duration::from_secs(100);

fn cache(source: &FakeSource, capacity: usize) -> (CredentialCache<FakeSource>, Lease) {
    let lease = Lease::default();
    lease.extend(NOW + Duration::from_secs(5), Server::default());
    let clock = Arc::<ManualClock>::default();
    clock.advance(NOW);
    let env = Env { clock, ..Env::system() };
    let (source, tasks) = (source.clone(), TaskGroup::default());
    let cache = CredentialCache::start(source, env, lease.clone(), capacity, &tasks);
    (cache, lease)
}

#[tokio::test]
async fn cached_record_is_not_fetched_again_while_the_lease_holds() {
    let source = FakeSource::new();
    source.set(1, 10);
    let (cache, lease) = cache(&source, 100);
    for _ in 0..3 {
        assert_eq!(cache.find(1, NOW).await.unwrap(), Some(10));
    }
    assert_eq!(source.fetches(), 1);
    lease.extend(Duration::ZERO, Server::default());
    assert!(cache.find(1, NOW).await.is_err(), "neither the cache nor a lookup is believed");
    assert_eq!(source.fetches(), 1);
    lease.extend(NOW + Duration::from_secs(5), Server::default());
    assert_eq!(cache.find(1, NOW).await.unwrap(), Some(10));
    assert_eq!(source.fetches(), 1);
}

#[tokio::test]
async fn lookup_waits_for_a_lease_on_its_server() {
    let source = FakeSource::new();
    source.set(1, 10);
    let (cache, lease) = cache(&source, 100);
    lease.extend(NOW + Duration::from_secs(5), Server::other());
    assert!(cache.find(1, NOW).await.is_err(), "the lease is from another server");
    let found = tokio::spawn({
        let cache = cache.clone();
        async move { cache.find(1, NOW).await }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(source.fetches(), 0);
    lease.extend(NOW + Duration::from_secs(5), Server::default());
    assert_eq!(found.await.unwrap().unwrap(), Some(10));
}

#[tokio::test]
async fn lookup_that_hangs_fails() {
    let source = FakeSource::new();
    let (cache, _lease) = cache(&source, 100);
    source.hold_answers().await;
    assert!(cache.find(1, NOW).await.is_err());
}

#[tokio::test]
async fn record_read_before_an_invalidation_is_not_cached() {
    let source = FakeSource::new();
    source.set(1, 10);
    let (cache, _lease) = cache(&source, 100);
    source.hold_answers().await;
    let early = tokio::spawn({
        let cache = cache.clone();
        async move { cache.find(1, NOW).await.unwrap() }
    });
    source.wait_for_fetches(1).await;
    source.set(1, 11);
    cache.invalidate(&1);
    source.answers.add_permits(1);
    assert_eq!(early.await.unwrap(), Some(10), "the query started before the change");
    source.answers.add_permits(1);
    assert_eq!(cache.find(1, NOW).await.unwrap(), Some(11));
    assert_eq!(source.fetches(), 2);
}

#[tokio::test]
async fn request_does_not_join_a_query_that_started_before_it() {
    let source = FakeSource::new();
    source.set(1, 10);
    let (cache, _lease) = cache(&source, 100);
    source.hold_answers().await;
    let find =
        |cache: CredentialCache<FakeSource>| async move { cache.find(1, NOW).await.unwrap() };
    let early = tokio::spawn(find(cache.clone()));
    source.wait_for_fetches(1).await;
    source.set(1, 11);
    let late: Vec<_> = (0..10).map(|_| tokio::spawn(find(cache.clone()))).collect();
    tokio::task::yield_now().await;
    source.answers.add_permits(2);
    assert_eq!(early.await.unwrap(), Some(10));
    for late in late {
        assert_eq!(late.await.unwrap(), Some(11));
    }
    assert_eq!(source.fetches(), 2, "the ten requests share one query");
}

#[tokio::test]
async fn flood_of_unknown_credentials_does_not_evict_valid_ones() {
    let source = FakeSource::new();
    source.set(1, 10);
    let (cache, _lease) = cache(&source, 10);
    cache.find(1, NOW).await.unwrap();
    for key in 1000..3000 {
        assert_eq!(cache.find(key, NOW).await.unwrap(), None);
    }
    let fetches = source.fetches();
    assert_eq!(cache.find(1, NOW).await.unwrap(), Some(10));
    assert_eq!(cache.find(2999, NOW).await.unwrap(), None);
    assert_eq!(source.fetches(), fetches, "both are cached");
    let (cached, bound) = (cache.state.unknown.len(), 10);
    assert!(cached <= bound, "{cached} negative entries are cached");
}

#[tokio::test]
async fn failed_fetch_is_an_error_and_is_not_cached() {
    let source = FakeSource::new();
    source.answers.close();
    let (cache, _lease) = cache(&source, 10);
    assert!(cache.find(1, NOW).await.is_err(), "an error, not `None`");
    assert!(cache.state.unknown.get(&1).is_none());
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
    /// Compares the cache with its source: after any sequence of events, a lookup after a
    /// change returns the new state.
    #[test]
    fn lookup_after_a_change_returns_the_new_state(steps in prop::collection::vec(step(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let source = FakeSource::new();
            let (cache, lease) = cache(&source, 4);
            let mut is_valid = true;
            for step in steps {
                match step {
                    Step::Find(key) => {
                        let expected = source.values.lock().unwrap().get(&key).copied();
                        // The source never turns an unknown key into a known one without an
                        // invalidation here. In production it may: a negative entry can outlive the
                        // creation of a key by a while, which is harmless, since no client has a
                        // key before it is created.
                        if is_valid {
                            assert_eq!(cache.find(key, NOW).await.unwrap(), expected);
                        } else {
                            let soon = timeout(Duration::from_millis(1), cache.find(key, NOW));
                            assert!(soon.await.is_err(), "nothing is believed without a lease");
                        }
                    }
                    Step::Change(key, value) => {
                        source.set(key, value);
                        cache.invalidate(&key);
                    }
                    Step::Remove(key) => {
                        source.values.lock().unwrap().remove(&key);
                        cache.invalidate(&key);
                    }
                    Step::LoseLease => {
                        lease.extend(Duration::ZERO, Server::default());
                        is_valid = false;
                    }
                    Step::ForgetAll => {
                        cache.invalidate_all();
                        lease.extend(NOW + Duration::from_secs(5), Server::default());
                        is_valid = true;
                    }
                }
            }
        });
    }
}
