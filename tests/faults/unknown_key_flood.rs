//! A flood of unknown credentials does not affect valid ones. The benchmark measures latencies
//! under such a flood.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use call2me_auth::{
    env::{Entropy, SystemEntropy},
    model::api_key::ApiKeySecret,
};
use futures_util::future::join_all;

use super::fixture::{Cluster, Node, acquire_test_lock};

/// Unknown keys, more than a node of this test caches.
const UNKNOWN_KEYS: usize = 2_500;
const SMALL_CACHE: (&str, &str) = ("cache.keys", "1000");
/// Clients that send unknown keys.
const FLOOD_CLIENTS: usize = 24;
/// Clients with valid keys.
const VALID_CLIENTS: usize = 4;

#[tokio::test(flavor = "multi_thread")]
async fn flood_of_unknown_keys_does_not_affect_valid_keys() {
    let _turn = acquire_test_lock().await;
    let cluster = Cluster::start(false).await;
    let node = Node::start("node", &cluster.node_url(), &[SMALL_CACHE]).await;
    let owner = node.register("acme").await;
    let valid_keys =
        join_all((0..VALID_CLIENTS).map(async |_| node.create_key(&owner, "good").await)).await;
    let environment = "live".parse().unwrap();
    let unknown_keys: Vec<_> = std::iter::repeat_with(|| {
        ApiKeySecret::generate(&environment, |bytes| SystemEntropy.fill(bytes))
    })
    .take(UNKNOWN_KEYS)
    .collect();
    let (next, is_over) = (AtomicUsize::new(0), AtomicBool::new(false));
    let [unknown, limited, accepted] = [0; 3].map(AtomicUsize::new);
    let flood = async {
        join_all((0..FLOOD_CLIENTS).map(async |_| {
            while let Some(key) = unknown_keys.get(next.fetch_add(1, SeqCst)) {
                let answer = node.verify(key.reveal()).send().await;
                match answer.status.as_u16() {
                    401 => unknown.fetch_add(1, SeqCst),
                    429 => limited.fetch_add(1, SeqCst),
                    status => panic!("status {status} for an unknown key: {}", answer.text),
                };
            }
        }))
        .await;
        is_over.store(true, SeqCst);
    };
    let use_valid_keys = join_all(valid_keys.iter().map(async |key| {
        while !is_over.load(SeqCst) {
            node.verify(&key.secret).send().await.expect_status(200);
            accepted.fetch_add(1, SeqCst);
        }
    }));
    tokio::join!(flood, use_valid_keys);
    let [unknown, limited, accepted] = [unknown, limited, accepted].map(AtomicUsize::into_inner);
    println!(
        "{unknown} x 401 and {limited} x 429 for unknown keys, {accepted} x 200 for valid keys"
    );
    assert_eq!(unknown + limited, UNKNOWN_KEYS);
    assert!(unknown > UNKNOWN_KEYS / 2, "the rate limit per address must not stop the flood");
    assert!(accepted > VALID_CLIENTS);
}
