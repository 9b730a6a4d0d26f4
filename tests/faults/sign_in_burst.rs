//! A burst of sign-ins: memory stays within the configured limits, excess requests get 503, and API
//! keys keep working.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use futures_util::future::join_all;
use serde_json::json;

use super::fixture::{Cluster, Node, acquire_test_lock};
use crate::fixture::PASSWORD;

const SIGN_INS: usize = 200;
const HASH_THREADS: u64 = 2;
const SETTINGS: [(&str, &str); 2] = [("passwords.threads", "2"), ("passwords.queue", "16")];
/// The memory of one password hash, in kilobytes.
const HASH_KILOBYTES: u64 = 19_456;
/// The memory of the connections, mostly their buffers, in kilobytes.
const CONNECTIONS_KILOBYTES: u64 = 32 * 1024;

#[tokio::test(flavor = "multi_thread")]
async fn memory_of_two_hundred_concurrent_sign_ins_is_bounded() {
    let _turn = acquire_test_lock().await;
    let cluster = Cluster::start(false).await;
    let node = Node::start("node", &cluster.node_url(), &SETTINGS).await;
    let owner = node.register("acme").await;
    let key = node.create_key(&owner, "server").await.secret;
    let before = node.peak_memory_kilobytes();
    let is_over = AtomicBool::new(false);
    let accepted = AtomicUsize::new(0);
    let use_key = async {
        while !is_over.load(SeqCst) {
            node.verify(&key).send().await.expect_status(200);
            accepted.fetch_add(1, SeqCst);
        }
    };
    let sign_in = async |number: usize| {
        // Most sign-ins name no account, which takes as much work: one account has a limit of its
        // own.
        let name = if number == 0 { "owner".to_owned() } else { number.to_string() };
        let body = json!({ "email": format!("{name}@acme.example"), "password": PASSWORD });
        let answer = node.request("POST", "/v1/auth/login").json(body).send().await;
        let status = answer.status.as_u16();
        assert!([200, 401, 503].contains(&status), "{status}: {}", answer.text);
        if status == 503 {
            assert!(answer.header_number("retry-after") > 0);
        }
        status
    };
    let burst = async {
        let statuses = join_all((0..SIGN_INS).map(sign_in)).await;
        is_over.store(true, SeqCst);
        statuses
    };
    let ((), statuses) = tokio::join!(use_key, burst);
    let rejected = statuses.iter().filter(|status| **status == 503).count();
    let served = SIGN_INS - rejected;
    let (peak, accepted) = (node.peak_memory_kilobytes(), accepted.into_inner());
    println!(
        "{served} served, {rejected} x 503, {accepted} x 200 for a key; {before} kB before, {peak} kB at peak"
    );
    assert!(served >= 16, "every queued sign-in is served");
    assert!(rejected > 0, "the queue must be full");
    assert!(accepted > 0);
    assert!(
        peak < before + HASH_THREADS * HASH_KILOBYTES + CONNECTIONS_KILOBYTES,
        "{before} kB before, {peak} kB at peak"
    );
    // A retry succeeds.
    let body = json!({ "email": "owner@acme.example", "password": PASSWORD });
    node.request("POST", "/v1/auth/login").json(body).send().await.expect_status(200);
}
