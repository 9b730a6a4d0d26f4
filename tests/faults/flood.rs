//! A flood of credentials that nobody knows does no harm to those of others. How long requests take
//! meanwhile is measured by the benchmark.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use call2me_auth::{
    env::{Entropy, SystemEntropy},
    model::api_key::ApiKeySecret,
};
use futures_util::future::join_all;

use super::fixture::{Cluster, Node, turn};

/// Made-up keys, more than a node of this test keeps.
const UNKNOWN: usize = 2_500;
const CAPACITY: (&str, &str) = ("cache.keys", "1000");
/// Clients that send them.
const FLOODERS: usize = 24;
/// Clients with good keys.
const GOOD: usize = 4;

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_unknown_keys_does_not_reach_good_ones() {
    let _turn = turn().await;
    let cluster = Cluster::start(false).await;
    let node = Node::start("node", &cluster.node_url(), &[CAPACITY]).await;
    let owner = node.register("acme").await;
    let good = join_all((0..GOOD).map(async |_| node.mint(&owner, "good").await)).await;
    let environment = "live".parse().unwrap();
    let made_up: Vec<_> = std::iter::repeat_with(|| {
        ApiKeySecret::generate(&environment, |bytes| SystemEntropy.fill(bytes))
    })
    .take(UNKNOWN)
    .collect();
    let (next, over) = (AtomicUsize::new(0), AtomicBool::new(false));
    let [unknown, limited, passed] = [0; 3].map(AtomicUsize::new);
    let flood = async {
        join_all((0..FLOODERS).map(async |_| {
            while let Some(key) = made_up.get(next.fetch_add(1, SeqCst)) {
                let answer = node.verify(key.reveal()).send().await;
                match answer.status.as_u16() {
                    401 => unknown.fetch_add(1, SeqCst),
                    429 => limited.fetch_add(1, SeqCst),
                    status => panic!("{status} to a made-up key: {}", answer.text),
                };
            }
        }))
        .await;
        over.store(true, SeqCst);
    };
    let use_good = join_all(good.iter().map(async |key| {
        while !over.load(SeqCst) {
            node.verify(&key.secret).send().await.expect(200);
            passed.fetch_add(1, SeqCst);
        }
    }));
    tokio::join!(flood, use_good);
    let [unknown, limited, passed] = [unknown, limited, passed].map(AtomicUsize::into_inner);
    println!("{unknown} x 401 and {limited} x 429 to made-up keys, {passed} x 200 to good ones");
    assert_eq!(unknown + limited, UNKNOWN);
    assert!(unknown > UNKNOWN / 2, "the limit on addresses was to be out of the way");
    assert!(passed > GOOD);
}
