//! A rush of sign-ins: memory stays within what is set, the rest is told to come back, and keys are served.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use futures_util::future::join_all;
use serde_json::json;

use super::fixture::{Cluster, Node, turn};
use crate::fixture::PASSWORD;

const AT_ONCE: usize = 200;
const THREADS: u64 = 2;
const SETTINGS: [(&str, &str); 2] = [("passwords.threads", "2"), ("passwords.queue", "16")];
/// Kilobytes that a hash takes.
const HASH: u64 = 19_456;
/// What so many connections take besides, their buffers above all.
const CONNECTIONS: u64 = 32 * 1024;

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_sign_ins_at_once_take_the_memory_of_those_that_are_hashed() {
    let _turn = turn().await;
    let cluster = Cluster::start(false).await;
    let node = Node::start("node", &cluster.node_url(), &SETTINGS).await;
    let owner = node.register("acme").await;
    let key = node.mint(&owner, "server").await.secret;
    let before = node.peak_kilobytes();
    let over = AtomicBool::new(false);
    let passed = AtomicUsize::new(0);
    let use_key = async {
        while !over.load(SeqCst) {
            node.verify(&key).send().await.expect(200);
            passed.fetch_add(1, SeqCst);
        }
    };
    let sign_in = async |number: usize| {
        // Some of these have no account, which costs as much.
        let name = if number.is_multiple_of(2) { "owner".to_owned() } else { number.to_string() };
        let body = json!({ "email": format!("{name}@acme.example"), "password": PASSWORD });
        let answer = node.call("POST", "/v1/auth/login").json(body).send().await;
        let status = answer.status.as_u16();
        assert!([200, 401, 503].contains(&status), "{status}: {}", answer.text);
        if status == 503 {
            assert!(answer.number("retry-after") > 0);
        }
        status
    };
    let rush = async {
        let statuses = join_all((0..AT_ONCE).map(sign_in)).await;
        over.store(true, SeqCst);
        statuses
    };
    let ((), statuses) = tokio::join!(use_key, rush);
    let refused = statuses.iter().filter(|status| **status == 503).count();
    let served = AT_ONCE - refused;
    let (peak, passed) = (node.peak_kilobytes(), passed.into_inner());
    println!(
        "{served} served, {refused} x 503, {passed} x 200 to a key; {before} kB, at most {peak} kB"
    );
    assert!(served >= 16, "what has a place in the queue is served");
    assert!(refused > 0, "the queue was to be full");
    assert!(passed > 0);
    assert!(peak < before + THREADS * HASH + CONNECTIONS, "{before} kB, then {peak} kB");
    // Whoever comes back is served.
    let body = json!({ "email": "owner@acme.example", "password": PASSWORD });
    node.call("POST", "/v1/auth/login").json(body).send().await.expect(200);
}
