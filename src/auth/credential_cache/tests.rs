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
