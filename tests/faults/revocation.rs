//! A revoked key is rejected on every node from the moment that the revocation is answered.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
};

use sqlx::PgConnection;
use tokio::{
    task::JoinSet,
    time::{Duration, Instant, sleep},
};

use super::fixture::{Cluster, Node, acquire_test_lock, wait_until};
use crate::fixture::Key;

/// Keys that are revoked without any other fault.
const KEYS: usize = 200;
/// Keys that are revoked on nodes that cache almost none of them.
const KEYS_WITH_SMALL_CACHE: usize = 100;
/// Keys that are revoked while `LISTEN` connections are killed.
const KEYS_WITH_LOST_LISTENERS: usize = 60;
/// Keys that each kill of `LISTEN` connections allows to be revoked.
const KEYS_PER_LISTENER_KILL: usize = 6;
/// Keys that are revoked between two kills of PostgreSQL.
const KEYS_PER_POSTGRESQL_KILL: usize = 12;
/// The number of times that PostgreSQL is killed.
const POSTGRESQL_KILLS: usize = 3;
/// Keys that are revoked concurrently.
const WORKERS: usize = 8;
/// Requests with a key on each node that start after its revocation was answered.
const LATE_REQUESTS: usize = 5;
/// The pause of a client between two requests before the revocation, and after a 503. It leaves CPU
/// time to the nodes.
const PAUSE: Duration = Duration::from_millis(30);

/// Two nodes, and counts of their responses.
struct Race {
    nodes: [Node; 2],
    owner: String,
    keys: Vec<Key>,
    next: AtomicUsize,
    /// The number of keys that may be revoked so far. A fast machine waits for the next fault.
    allowed_keys: AtomicUsize,
    /// 200 responses before the revocation was answered.
    early_successes: AtomicUsize,
    /// 401 responses to requests that started afterwards.
    late_rejections: AtomicUsize,
    /// 503 responses.
    unavailable: AtomicUsize,
    /// 503 responses to revocations.
    failed_revocations: AtomicUsize,
    /// 200 responses to requests that started afterwards. There must be none.
    late_successes: AtomicUsize,
}

impl Race {
    async fn prepare(cluster: &Cluster, keys: usize, settings: &[(&str, &str)]) -> Arc<Self> {
        let url = cluster.node_url();
        let nodes =
            [Node::start("a", &url, settings).await, Node::start("b", &url, settings).await];
        let owner = nodes[0].register("acme").await;
        let created = (0..WORKERS).map(async |worker| {
            let mut created = Vec::new();
            for number in (worker..keys).step_by(WORKERS) {
                created.push(nodes[0].create_key(&owner, &format!("key {number}")).await);
            }
            created
        });
        let keys = futures_util::future::join_all(created).await.into_iter().flatten().collect();
        let zero = AtomicUsize::default;
        Arc::new(Self {
            nodes,
            owner,
            keys,
            next: zero(),
            allowed_keys: AtomicUsize::new(usize::MAX),
            early_successes: zero(),
            late_rejections: zero(),
            unavailable: zero(),
            failed_revocations: zero(),
            late_successes: zero(),
        })
    }

    /// Revokes all keys, several at a time. Then checks each key once more on each node.
    async fn run(self: &Arc<Self>) {
        let mut workers = JoinSet::new();
        for _ in 0..WORKERS {
            let race = Arc::clone(self);
            workers.spawn(async move {
                loop {
                    let next = race.next.fetch_add(1, SeqCst);
                    let Some(key) = race.keys.get(next) else { break };
                    wait_until("the key may be revoked", || next < race.allowed_keys.load(SeqCst))
                        .await;
                    race.revoke_under_load(key).await;
                }
            });
        }
        // Panics with the first worker that panicked.
        workers.join_all().await;
        for (key, node) in self.keys.iter().flat_map(|key| self.nodes.each_ref().map(|n| (key, n)))
        {
            node.verify(&key.secret).send().await.assert_error(401, "unauthorized");
        }
    }

    async fn revoke_under_load(&self, key: &Key) {
        let revoked = AtomicBool::new(false);
        let early_successes = [AtomicUsize::new(0), AtomicUsize::new(0)];
        let [a, b] = &self.nodes;
        let revoke = async {
            wait_until("both nodes have accepted the key", || {
                early_successes.iter().all(|count| count.load(SeqCst) >= 2)
            })
            .await;
            self.failed_revocations.fetch_add(a.revoke_key(&self.owner, key).await, SeqCst);
            revoked.store(true, SeqCst);
        };
        tokio::join!(
            self.use_key(a, key, &early_successes[0], &revoked),
            self.use_key(b, key, &early_successes[1], &revoked),
            revoke,
        );
        self.early_successes
            .fetch_add(early_successes.iter().map(|count| count.load(SeqCst)).sum(), SeqCst);
    }

    /// Uses a key until it was rejected often enough after its revocation.
    async fn use_key(
        &self,
        node: &Node,
        key: &Key,
        early_successes: &AtomicUsize,
        revoked: &AtomicBool,
    ) {
        let mut answers = 0;
        while answers < LATE_REQUESTS {
            let is_after_revocation = revoked.load(SeqCst);
            let answer = node.verify(&key.secret).send().await;
            match (is_after_revocation, answer.status.as_u16()) {
                (false, 200) => {
                    early_successes.fetch_add(1, SeqCst);
                    sleep(PAUSE).await;
                }
                (false, 401) => {}
                (true, 200) => drop(self.late_successes.fetch_add(1, SeqCst)),
                (true, 401) => drop(self.late_rejections.fetch_add(1, SeqCst)),
                // Also without faults: a lookup may take too long on a busy machine.
                (_, 503) => {
                    self.unavailable.fetch_add(1, SeqCst);
                    sleep(PAUSE).await;
                    continue;
                }
                (_, status) => panic!("{status} (late: {is_after_revocation}): {}", answer.text),
            }
            answers += usize::from(is_after_revocation);
        }
    }

    fn assert_all_rejected(&self) {
        let [early_successes, late_rejections, unavailable, failed_revocations, late_successes] = [
            &self.early_successes,
            &self.late_rejections,
            &self.unavailable,
            &self.failed_revocations,
            &self.late_successes,
        ]
        .map(|count| count.load(SeqCst));
        let keys = self.keys.len();
        println!(
            "{keys} keys: {early_successes} successes before, {late_rejections} rejections and {late_successes} successes after; \
             {unavailable} x 503, {failed_revocations} x 503 for a revocation"
        );
        assert_eq!(
            late_successes, 0,
            "successes of requests that started after the revocation was answered"
        );
        assert_eq!(late_rejections, keys * 2 * LATE_REQUESTS);
        assert!(early_successes >= keys * 4, "the keys must be in use");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn revoked_key_is_rejected_on_every_node_under_load() {
    let _turn = acquire_test_lock().await;
    let cluster = Cluster::start(false).await;
    let race = Race::prepare(&cluster, KEYS, &[]).await;
    race.run().await;
    race.assert_all_rejected();
}

/// A lookup that overlaps the revocation must not be cached.
#[tokio::test(flavor = "multi_thread")]
async fn revoked_key_is_rejected_with_small_cache() {
    let _turn = acquire_test_lock().await;
    let cluster = Cluster::start(false).await;
    let race = Race::prepare(&cluster, KEYS_WITH_SMALL_CACHE, &[("cache.keys", "4")]).await;
    race.run().await;
    race.assert_all_rejected();
}

#[tokio::test(flavor = "multi_thread")]
async fn revoked_key_is_rejected_while_listeners_are_killed() {
    let _turn = acquire_test_lock().await;
    let cluster = Cluster::start(false).await;
    let race = Race::prepare(&cluster, KEYS_WITH_LOST_LISTENERS, &[]).await;
    race.allowed_keys.store(0, SeqCst);
    let (mut connection, killed) = (cluster.connect().await, AtomicUsize::new(0));
    tokio::select! {
        () = race.run() => {}
        () = kill_listeners(&mut connection, &killed, &race.allowed_keys) => {}
    }
    let killed = killed.load(SeqCst);
    let [a, b] = &race.nodes;
    let losses = [a, b].map(|node| node.count_log_lines("cannot receive cache invalidations"));
    println!("{killed} listeners were killed; nodes lost their listener {losses:?} times");
    assert!(killed >= 10 && losses.iter().all(|times| *times > 0), "too few listeners were killed");
    race.assert_all_rejected();
}

/// Kills `LISTEN` connections forever: of one node, of the other or of both. Each kill allows
/// further keys to be revoked.
async fn kill_listeners(
    connection: &mut PgConnection,
    killed: &AtomicUsize,
    allowed_keys: &AtomicUsize,
) {
    let kill = "SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) FROM pg_stat_activity
                WHERE query LIKE 'LISTEN%' AND random() < 0.7";
    loop {
        let count: i64 = sqlx::query_scalar(kill).fetch_one(&mut *connection).await.unwrap();
        if count > 0 {
            killed.fetch_add(usize::try_from(count).unwrap(), SeqCst);
            allowed_keys.fetch_add(KEYS_PER_LISTENER_KILL, SeqCst);
        }
        sleep(Duration::from_millis(100)).await;
    }
}

/// Acknowledgements of nodes may be lost with PostgreSQL, but revocations may not.
#[tokio::test(flavor = "multi_thread")]
async fn revoked_key_is_rejected_while_postgresql_is_killed() {
    let _turn = acquire_test_lock().await;
    let mut cluster = Cluster::start(true).await;
    let race =
        Race::prepare(&cluster, KEYS_PER_POSTGRESQL_KILL * (POSTGRESQL_KILLS + 1), &[]).await;
    let kill_repeatedly = async {
        for kill in 1..=POSTGRESQL_KILLS {
            let revoked_so_far = || race.next.load(SeqCst);
            wait_until("keys are revoked", || revoked_so_far() >= kill * KEYS_PER_POSTGRESQL_KILL)
                .await;
            let started = Instant::now();
            cluster.kill().await;
            cluster.restart().await;
            let (downtime, restarted) = (started.elapsed(), Instant::now());
            let before = revoked_so_far();
            wait_until("further keys are revoked", || revoked_so_far() > before).await;
            println!(
                "PostgreSQL was down for {downtime:?}; the next key was revoked {:?} later",
                restarted.elapsed()
            );
        }
    };
    tokio::join!(race.run(), kill_repeatedly);
    race.assert_all_rejected();
}
