//! A node that loses PostgreSQL serves from its cache until its lease expires and then responds
//! with 503. It never accepts a revoked credential.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use tokio::time::Instant;

use super::fixture::{Cluster, Node, Proxy, ProxyMode, acquire_test_lock, wait_until};
use crate::fixture::Key;

/// A short lease, so that a revocation does not wait for long.
const LEASE: (&str, &str) = ("cache.lease_seconds", "2");
/// A short timeout, so that requests that need PostgreSQL fail soon.
const ACQUIRE: (&str, &str) = ("database.acquire_timeout_seconds", "1");
/// The number of consecutive correct responses for each key after which a node has recovered.
const RECOVERY_RESPONSES: usize = 10;

/// A node behind a proxy that breaks its connections, and counts of its responses.
struct PartitionedNode {
    node: Node,
    valid_key: Key,
    revoked_key: Key,
    /// True once the revocation has been answered.
    is_revoked: AtomicBool,
    /// True once the test has seen enough.
    is_finished: AtomicBool,
    /// 200 responses for the valid key.
    accepted: AtomicUsize,
    /// 503 responses for the valid key since the revocation was answered.
    unavailable: AtomicUsize,
    /// 503 or 401 responses for the revoked key since the revocation was answered.
    rejected: AtomicUsize,
    /// Consecutive correct responses: 200 for the valid key, and 401 for the revoked key.
    consecutive_correct: [AtomicUsize; 2],
}

impl PartitionedNode {
    /// Uses the valid key without a pause.
    async fn use_valid_key(&self) {
        while !self.is_finished.load(SeqCst) {
            let is_after_revocation = self.is_revoked.load(SeqCst);
            let answer = self.node.verify(&self.valid_key.secret).send().await;
            match answer.status.as_u16() {
                200 => {
                    self.accepted.fetch_add(1, SeqCst);
                    self.consecutive_correct[0].fetch_add(1, SeqCst);
                }
                503 => {
                    assert!(answer.header_number("retry-after") > 0);
                    self.consecutive_correct[0].store(0, SeqCst);
                    self.unavailable.fetch_add(usize::from(is_after_revocation), SeqCst);
                }
                status => panic!("status {status} for a valid key: {}", answer.text),
            }
        }
    }

    /// Uses the key that is being revoked, without a pause.
    async fn use_revoked_key(&self) {
        while !self.is_finished.load(SeqCst) {
            let is_after_revocation = self.is_revoked.load(SeqCst);
            let answer = self.node.verify(&self.revoked_key.secret).send().await;
            match (is_after_revocation, answer.status.as_u16()) {
                (true, 401) => drop(self.consecutive_correct[1].fetch_add(1, SeqCst)),
                (_, 503) => {
                    assert!(answer.header_number("retry-after") > 0);
                    self.consecutive_correct[1].store(0, SeqCst);
                }
                (false, 200 | 401) => {}
                (_, status) => panic!("status {status} for a revoked key: {}", answer.text),
            }
            self.rejected.fetch_add(usize::from(is_after_revocation), SeqCst);
        }
    }
}

async fn check_revocation_while_disconnected(mode: ProxyMode) {
    let _turn = acquire_test_lock().await;
    let cluster = Cluster::start(false).await;
    let a = Node::start("a", &cluster.node_url(), &[LEASE]).await;
    let proxy = Proxy::start(cluster.port()).await;
    let url = proxy.url(&cluster.node_url(), cluster.port());
    let node = Node::start("b", &url, &[LEASE, ACQUIRE]).await;
    let owner = a.register("acme").await;
    let (valid_key, revoked_key) =
        (a.create_key(&owner, "valid").await, a.create_key(&owner, "revoked").await);
    for key in [&valid_key, &revoked_key] {
        node.verify(&key.secret).send().await.expect_status(200);
    }
    let zero = AtomicUsize::default;
    let b = PartitionedNode {
        node,
        valid_key,
        revoked_key,
        is_revoked: AtomicBool::default(),
        is_finished: AtomicBool::default(),
        accepted: zero(),
        unavailable: zero(),
        rejected: zero(),
        consecutive_correct: [zero(), zero()],
    };
    let scenario = async {
        proxy.set_mode(mode);
        let started = Instant::now();
        a.revoke_key(&owner, &b.revoked_key).await;
        b.is_revoked.store(true, SeqCst);
        println!(
            "{mode:?}: revoked in {:?}; {} x 200 meanwhile",
            started.elapsed(),
            count(&b.accepted)
        );
        wait_until("the node responds with 503", || {
            count(&b.unavailable) >= 1 && count(&b.rejected) >= 1
        })
        .await;
        proxy.set_mode(ProxyMode::Pass);
        let started = Instant::now();
        wait_until("the node recovers without help", || {
            b.consecutive_correct.iter().all(|counter| count(counter) >= RECOVERY_RESPONSES)
        })
        .await;
        println!("{mode:?}: recovered in {:?}", started.elapsed());
        b.is_finished.store(true, SeqCst);
    };
    tokio::join!(scenario, b.use_valid_key(), b.use_revoked_key());
}

fn count(counter: &AtomicUsize) -> usize {
    counter.load(SeqCst)
}

#[tokio::test(flavor = "multi_thread")]
async fn disconnected_node_never_accepts_revoked_key() {
    check_revocation_while_disconnected(ProxyMode::Refuse).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn node_with_hanging_connections_never_accepts_revoked_key() {
    check_revocation_while_disconnected(ProxyMode::Hang).await;
}

/// The shutdown does not wait for PostgreSQL forever. Without deregistering, other nodes treat the
/// node as crashed, because it may have lost events.
#[tokio::test(flavor = "multi_thread")]
async fn node_with_hanging_connections_stops_and_reports_lost_events() {
    let _turn = acquire_test_lock().await;
    let cluster = Cluster::start(false).await;
    let proxy = Proxy::start(cluster.port()).await;
    let url = proxy.url(&cluster.node_url(), cluster.port());
    let mut node = Node::start("node", &url, &[ACQUIRE]).await;
    let owner = node.register("acme").await;
    let key = node.create_key(&owner, "valid").await;
    node.verify(&key.secret).send().await.expect_status(200);
    proxy.set_mode(ProxyMode::Hang);
    // The lease is still valid, so the node answers and queues the event.
    node.verify(&key.secret).send().await.expect_status(200);
    let started = Instant::now();
    assert!(node.stop().await.success());
    println!("stopped in {:?}", started.elapsed());
    assert_eq!(node.count_log_lines("audit events were lost"), 1);
    let nodes = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM nodes");
    assert_eq!(nodes.fetch_one(&mut cluster.connect().await).await.unwrap(), 1);
}
