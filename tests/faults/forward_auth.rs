//! Forward-auth while PostgreSQL does not respond. Gateways give up after one or two seconds, and
//! some of them then answer 403.

use std::time::Duration;

use tokio::time::Instant;

use super::fixture::{Cluster, Node, Proxy, ProxyMode, acquire_test_lock};

const DEADLINE: Duration = Duration::from_secs(1);
/// A busy machine may delay a response, but not each of several.
const ATTEMPTS: usize = 3;

#[tokio::test(flavor = "multi_thread")]
async fn forward_auth_answers_within_a_second_while_postgresql_hangs() {
    check_hanging_postgresql("batched").await;
}

/// The response of a cached credential waits for its audit event.
#[tokio::test(flavor = "multi_thread")]
async fn forward_auth_answers_within_a_second_if_strict() {
    check_hanging_postgresql("strict").await;
}

async fn check_hanging_postgresql(durability: &str) {
    let _turn = acquire_test_lock().await;
    let cluster = Cluster::start(false).await;
    let proxy = Proxy::start(cluster.port()).await;
    let url = proxy.url(&cluster.node_url(), cluster.port());
    let node = Node::start("node", &url, &[("audit.durability", durability)]).await;
    let owner = node.register("acme").await;
    let [cached, unused] =
        [node.create_key(&owner, "cached").await, node.create_key(&owner, "unused").await];
    node.verify(&cached.secret).send().await.expect_status(200);
    proxy.set_mode(ProxyMode::Hang);
    for path in ["/v1/auth/verify", "/v1/auth/verify/a", "/v1/auth/require/write"] {
        for key in [&unused.secret, &cached.secret] {
            check_deadline(&node, path, key, key == &cached.secret).await;
        }
    }
}

/// Sends requests and checks their status and the time of the fastest one.
async fn check_deadline(node: &Node, path: &str, key: &str, is_cached: bool) {
    let mut fastest = Duration::MAX;
    for _ in 0..ATTEMPTS {
        let started = Instant::now();
        let response = node.request("GET", path).bearer(key).send().await;
        fastest = fastest.min(started.elapsed());
        if is_cached && response.status == 200 {
            continue;
        }
        response.assert_error(503, "unavailable");
        assert!(response.header_number("retry-after") >= 1);
        assert_ne!(response.header("x-ratelimit-limit"), "");
    }
    println!("{path}, cached: {is_cached}: {fastest:?}");
    assert!(fastest < DEADLINE, "{path}: {fastest:?}");
}
