//! A revoked key is dead on every node from the moment that the revocation is answered.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
};

use sqlx::PgConnection;
use tokio::{
    task::JoinSet,
    time::{Duration, Instant, sleep},
};

use super::fixture::{Cluster, Node, turn, until};
use crate::fixture::Key;

/// Keys that are revoked while nothing else goes wrong.
const KEYS: usize = 1000;
/// Keys that are revoked on nodes that keep almost none of them.
const KEYS_OF_THE_FORGETFUL: usize = 400;
/// Keys that are revoked while listeners are killed.
const KEYS_OF_THE_DEAF: usize = 150;
/// Keys that are revoked from one killing of listeners to the next.
const KEYS_OF_A_KILLING: usize = 8;
/// Keys that are revoked between one death of PostgreSQL and the next.
const KEYS_OF_AN_AGE: usize = 25;
/// How often it dies.
const DEATHS: usize = 3;
/// Keys that are raced for at a time.
const WORKERS: usize = 8;
/// Answers on each node to requests that began after a key's revocation was answered.
const LATE: usize = 5;

/// Two nodes, and what was seen on both of them.
struct Race {
    nodes: [Node; 2],
    owner: String,
    keys: Vec<Key>,
    next: AtomicUsize,
    /// Keys that may be revoked so far: a fast machine waits for what is to disturb it.
    allowed: AtomicUsize,
    /// Whether nodes may be unable to tell, now and then.
    disturbed: bool,
    /// Successes before the revocation was answered.
    early: AtomicUsize,
    /// 401 to requests that began after.
    refused: AtomicUsize,
    /// 503.
    unavailable: AtomicUsize,
    /// 503 to a revocation.
    not_yet: AtomicUsize,
    /// Successes of requests that began after: there must be none.
    late: AtomicUsize,
}

impl Race {
    async fn prepare(
        cluster: &Cluster,
        keys: usize,
        disturbed: bool,
        settings: &[(&str, &str)],
    ) -> Arc<Self> {
        let url = cluster.node_url();
        let nodes =
            [Node::start("a", &url, settings).await, Node::start("b", &url, settings).await];
        let owner = nodes[0].register("acme").await;
        let minted = (0..WORKERS).map(async |worker| {
            let mut minted = Vec::new();
            for number in (worker..keys).step_by(WORKERS) {
                minted.push(nodes[0].mint(&owner, &format!("key {number}")).await);
            }
            minted
        });
        let keys = futures_util::future::join_all(minted).await.into_iter().flatten().collect();
        let zero = AtomicUsize::default;
        Arc::new(Self {
            nodes,
            owner,
            keys,
            next: zero(),
            allowed: AtomicUsize::new(usize::MAX),
            disturbed,
            early: zero(),
            refused: zero(),
            unavailable: zero(),
            not_yet: zero(),
            late: zero(),
        })
    }

    /// Revokes all keys, several at a time, and looks at each once more at the end.
    async fn run(self: &Arc<Self>) {
        let mut workers = JoinSet::new();
        for _ in 0..WORKERS {
            let race = Arc::clone(self);
            workers.spawn(async move {
                loop {
                    let next = race.next.fetch_add(1, SeqCst);
                    let Some(key) = race.keys.get(next) else { break };
                    until("the key may be revoked", || next < race.allowed.load(SeqCst)).await;
                    race.revoke_under_load(key).await;
                }
            });
        }
        // Panics with the first that did.
        workers.join_all().await;
        for (key, node) in self.keys.iter().flat_map(|key| self.nodes.each_ref().map(|n| (key, n)))
        {
            node.verify(&key.secret).send().await.refused(401, "unauthorized");
        }
    }

    async fn revoke_under_load(&self, key: &Key) {
        let revoked = AtomicBool::new(false);
        let early = [AtomicUsize::new(0), AtomicUsize::new(0)];
        let [a, b] = &self.nodes;
        let revoke = async {
            until("both nodes know the key", || early.iter().all(|early| early.load(SeqCst) >= 2))
                .await;
            self.not_yet.fetch_add(a.revoke(&self.owner, key).await, SeqCst);
            revoked.store(true, SeqCst);
        };
        tokio::join!(
            self.use_it(a, key, &early[0], &revoked),
            self.use_it(b, key, &early[1], &revoked),
            revoke,
        );
        self.early.fetch_add(early.iter().map(|early| early.load(SeqCst)).sum(), SeqCst);
    }

    /// Uses a key without a pause, until it was refused often enough after its revocation.
    async fn use_it(&self, node: &Node, key: &Key, early: &AtomicUsize, revoked: &AtomicBool) {
        let mut answers = 0;
        while answers < LATE {
            let is_late = revoked.load(SeqCst);
            let answer = node.verify(&key.secret).send().await;
            match (is_late, answer.status.as_u16()) {
                (false, 200) => drop(early.fetch_add(1, SeqCst)),
                (false, 401) => {}
                (true, 200) => drop(self.late.fetch_add(1, SeqCst)),
                (true, 401) => drop(self.refused.fetch_add(1, SeqCst)),
                (_, 503) if self.disturbed => {
                    self.unavailable.fetch_add(1, SeqCst);
                    continue;
                }
                (_, status) => panic!("{status} (late: {is_late}): {}", answer.text),
            }
            answers += usize::from(is_late);
        }
    }

    fn assert_dead(&self) {
        let [early, refused, unavailable, not_yet, late] =
            [&self.early, &self.refused, &self.unavailable, &self.not_yet, &self.late]
                .map(|count| count.load(SeqCst));
        let keys = self.keys.len();
        println!(
            "{keys} keys: {early} successes before, {refused} refusals and {late} successes after; \
             {unavailable} x 503, {not_yet} to a revocation"
        );
        assert_eq!(late, 0, "successes of requests that began after the revocation was answered");
        assert_eq!(refused, keys * 2 * LATE);
        assert!(early >= keys * 4, "the keys were in use");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_key_is_dead_on_every_node() {
    let _turn = turn().await;
    let cluster = Cluster::start(false).await;
    let race = Race::prepare(&cluster, KEYS, false, &[]).await;
    race.run().await;
    race.assert_dead();
}

/// What is being looked up while it is revoked must not be kept.
#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_key_is_dead_also_where_it_is_looked_up_all_the_time() {
    let _turn = turn().await;
    let cluster = Cluster::start(false).await;
    let race = Race::prepare(&cluster, KEYS_OF_THE_FORGETFUL, false, &[("cache.keys", "4")]).await;
    race.run().await;
    race.assert_dead();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_key_is_dead_also_where_listeners_are_killed() {
    let _turn = turn().await;
    let cluster = Cluster::start(false).await;
    let race = Race::prepare(&cluster, KEYS_OF_THE_DEAF, true, &[]).await;
    race.allowed.store(0, SeqCst);
    let (mut connection, killed) = (cluster.connect().await, AtomicUsize::new(0));
    tokio::select! {
        () = race.run() => {}
        () = kill_listeners(&mut connection, &killed, &race.allowed) => {}
    }
    let killed = killed.load(SeqCst);
    let [a, b] = &race.nodes;
    let deaf = [a, b].map(|node| node.logged("cannot hear what other nodes change"));
    println!("{killed} listeners were killed; nodes were deaf {deaf:?} times");
    assert!(killed >= 10 && deaf.iter().all(|times| *times > 0), "it was no disturbance");
    race.assert_dead();
}

/// For ever, now this one, now that one, now both; each time that one died, further keys may be
/// revoked.
async fn kill_listeners(
    connection: &mut PgConnection,
    killed: &AtomicUsize,
    allowed: &AtomicUsize,
) {
    let kill = "SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) FROM pg_stat_activity
                WHERE query LIKE 'LISTEN%' AND random() < 0.7";
    loop {
        let count: i64 = sqlx::query_scalar(kill).fetch_one(&mut *connection).await.unwrap();
        if count > 0 {
            killed.fetch_add(usize::try_from(count).unwrap(), SeqCst);
            allowed.fetch_add(KEYS_OF_A_KILLING, SeqCst);
        }
        sleep(Duration::from_millis(100)).await;
    }
}

/// What nodes had acknowledged may be lost with it, what was revoked may not.
#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_key_is_dead_also_where_postgresql_is_killed() {
    let _turn = turn().await;
    let mut cluster = Cluster::start(true).await;
    let race = Race::prepare(&cluster, KEYS_OF_AN_AGE * (DEATHS + 1), true, &[]).await;
    let die = async {
        for death in 1..=DEATHS {
            let so_far = || race.next.load(SeqCst);
            until("keys are revoked", || so_far() >= death * KEYS_OF_AN_AGE).await;
            let began = Instant::now();
            cluster.kill().await;
            cluster.restart().await;
            let (away, there) = (began.elapsed(), Instant::now());
            let before = so_far();
            until("further keys are revoked", || so_far() > before).await;
            println!("PostgreSQL was away for {away:?}; a key revoked {:?} later", there.elapsed());
        }
    };
    tokio::join!(race.run(), die);
    race.assert_dead();
}
