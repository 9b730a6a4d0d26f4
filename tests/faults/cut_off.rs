//! A node that is cut off from PostgreSQL believes what it knows for as long as its lease, and then
//! nothing, rather than something that is no longer so.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use tokio::time::Instant;

use super::fixture::{Cluster, Mode, Node, Proxy, turn, until};
use crate::fixture::Key;

/// So that a revocation need not wait for long.
const LEASE: (&str, &str) = ("cache.lease_seconds", "2");
/// So that a request that needs PostgreSQL hears soon that it is away.
const ACQUIRE: (&str, &str) = ("database.acquire_timeout_seconds", "1");
/// Right answers in a row for either key that show that a node is whole again.
const WHOLE: usize = 10;

/// A node behind a broken wire, and what it answers.
struct CutOff {
    node: Node,
    good: Key,
    doomed: Key,
    /// Whether the revocation was answered.
    revoked: AtomicBool,
    /// Whether the test has seen enough.
    done: AtomicBool,
    /// 200 to the good key.
    passed: AtomicUsize,
    /// 503 to the good key, since the revocation was answered.
    unknowing: AtomicUsize,
    /// 503 or 401 to the revoked key, since its revocation was answered.
    refused: AtomicUsize,
    /// 200 to the good key, and 401 to the other, in a row.
    whole: [AtomicUsize; 2],
}

impl CutOff {
    /// Uses the good key without a pause.
    async fn use_good(&self) {
        while !self.done.load(SeqCst) {
            let is_late = self.revoked.load(SeqCst);
            let answer = self.node.verify(&self.good.secret).send().await;
            match answer.status.as_u16() {
                200 => {
                    self.passed.fetch_add(1, SeqCst);
                    self.whole[0].fetch_add(1, SeqCst);
                }
                503 => {
                    assert!(answer.number("retry-after") > 0);
                    self.whole[0].store(0, SeqCst);
                    self.unknowing.fetch_add(usize::from(is_late), SeqCst);
                }
                status => panic!("{status} to a good key: {}", answer.text),
            }
        }
    }

    /// Uses the key that is revoked meanwhile, without a pause.
    async fn use_doomed(&self) {
        while !self.done.load(SeqCst) {
            let is_late = self.revoked.load(SeqCst);
            let answer = self.node.verify(&self.doomed.secret).send().await;
            match (is_late, answer.status.as_u16()) {
                (true, 401) => drop(self.whole[1].fetch_add(1, SeqCst)),
                (_, 503) => {
                    assert!(answer.number("retry-after") > 0);
                    self.whole[1].store(0, SeqCst);
                }
                (false, 200 | 401) => {}
                (_, status) => panic!("{status} to a revoked key: {}", answer.text),
            }
            self.refused.fetch_add(usize::from(is_late), SeqCst);
        }
    }
}

async fn is_cut_off(mode: Mode) {
    let _turn = turn().await;
    let cluster = Cluster::start(false).await;
    let a = Node::start("a", &cluster.node_url(), &[LEASE]).await;
    let proxy = Proxy::start(cluster.port()).await;
    let url = proxy.url(&cluster.node_url(), cluster.port());
    let node = Node::start("b", &url, &[LEASE, ACQUIRE]).await;
    let owner = a.register("acme").await;
    let (good, doomed) = (a.mint(&owner, "good").await, a.mint(&owner, "doomed").await);
    for key in [&good, &doomed] {
        node.verify(&key.secret).send().await.expect(200);
    }
    let zero = AtomicUsize::default;
    let b = CutOff {
        node,
        good,
        doomed,
        revoked: AtomicBool::default(),
        done: AtomicBool::default(),
        passed: zero(),
        unknowing: zero(),
        refused: zero(),
        whole: [zero(), zero()],
    };
    let story = async {
        proxy.set(mode);
        let began = Instant::now();
        a.revoke(&owner, &b.doomed).await;
        b.revoked.store(true, SeqCst);
        println!(
            "{mode:?}: revoked in {:?}; {} x 200 meanwhile",
            began.elapsed(),
            count(&b.passed)
        );
        until("the node says that it cannot know", || {
            count(&b.unknowing) >= 1 && count(&b.refused) >= 1
        })
        .await;
        proxy.set(Mode::Pass);
        let began = Instant::now();
        until("the node is whole again, unaided", || {
            b.whole.iter().all(|whole| count(whole) >= WHOLE)
        })
        .await;
        println!("{mode:?}: whole again in {:?}", began.elapsed());
        b.done.store(true, SeqCst);
    };
    tokio::join!(story, b.use_good(), b.use_doomed());
}

fn count(counter: &AtomicUsize) -> usize {
    counter.load(SeqCst)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_cut_off_believes_nothing_that_was_revoked() {
    is_cut_off(Mode::Refuse).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_connections_hang_believes_nothing_that_was_revoked() {
    is_cut_off(Mode::Hang).await;
}
