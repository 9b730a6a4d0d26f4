//! Signing keys are rotated and retired while two nodes serve.

use data_encoding::BASE64URL_NOPAD;
use serde_json::{Value, json};
use tokio::time::{Duration, Instant, sleep};

use super::fixture::{Cluster, Node, TEST_TIMEOUT, acquire_test_lock, run_admin_command};
use crate::fixture::PASSWORD;

async fn sign_in(node: &Node) -> String {
    let body = json!({ "email": "owner@acme.example", "password": PASSWORD });
    let pair = node.request("POST", "/v1/auth/login").json(body).send().await.expect_status(200);
    pair["access_token"].as_str().unwrap().to_owned()
}

fn kid(token: &str) -> String {
    let header = BASE64URL_NOPAD.decode(token.split('.').next().unwrap().as_bytes()).unwrap();
    let header: Value = serde_json::from_slice(&header).unwrap();
    header["kid"].as_str().unwrap().to_owned()
}

async fn published_key_ids(node: &Node) -> Vec<String> {
    let jwks = node.request("GET", "/.well-known/jwks.json").send().await;
    assert_eq!(jwks.header("cache-control"), "public, max-age=300");
    let jwks = jwks.expect_status(200);
    jwks["keys"]
        .as_array()
        .unwrap()
        .iter()
        .map(|key| key["kid"].as_str().unwrap().to_owned())
        .collect()
}

/// Meanwhile, every node must accept the tokens of every other node.
#[tokio::test(flavor = "multi_thread")]
async fn rotated_key_signs_and_retired_key_is_rejected_everywhere() {
    let _turn = acquire_test_lock().await;
    let cluster = Cluster::start(false).await;
    let url = cluster.node_url();
    let nodes = [Node::start("a", &url, &[]).await, Node::start("b", &url, &[]).await];
    nodes[0].register("acme").await;
    let [old, other_old] = [sign_in(&nodes[0]).await, sign_in(&nodes[1]).await];
    let first = kid(&old);
    assert_eq!(kid(&other_old), first);
    let error =
        run_admin_command(&url, &["signing-keys", "retire", &first], &[]).await.unwrap_err();
    assert!(error.contains("this key is in use for signing"), "{error}");

    let rotated = run_admin_command(&url, &["signing-keys", "rotate", "--now"], &[]).await.unwrap();
    let (second, started) = (rotated["id"].as_str().unwrap().to_owned(), Instant::now());
    let mut signed = [false; 2];
    while signed != [true; 2] {
        assert!(
            started.elapsed() < TEST_TIMEOUT,
            "not all nodes sign with the new key: {signed:?}"
        );
        for (at, signed) in signed.iter_mut().enumerate() {
            let token = sign_in(&nodes[at]).await;
            *signed = kid(&token) == second;
            for node in &nodes {
                node.verify(&token).send().await.expect_status(200);
            }
        }
        sleep(Duration::from_millis(100)).await;
    }
    println!("both nodes signed with the new key after {:?}", started.elapsed());
    for node in &nodes {
        node.verify(&old).send().await.expect_status(200);
        assert_eq!(published_key_ids(node).await, [second.clone(), first.clone()]);
    }
    let fresh = sign_in(&nodes[1]).await;

    run_admin_command(&url, &["signing-keys", "retire", &first], &[]).await.unwrap();
    let started = Instant::now();
    for node in &nodes {
        while node.verify(&old).send().await.status != 401 {
            assert!(started.elapsed() < TEST_TIMEOUT, "a node accepts a retired key");
            sleep(Duration::from_millis(100)).await;
        }
        node.verify(&fresh).send().await.expect_status(200);
        assert_eq!(published_key_ids(node).await, std::slice::from_ref(&second));
    }
    println!("no node accepted the retired key after {:?}", started.elapsed());
    let list = run_admin_command(&url, &["signing-keys", "list"], &[]).await.unwrap();
    let keys = list["signing_keys"].as_array().unwrap().iter();
    let states: Vec<_> = keys.filter(|key| key["purpose"] == "access tokens").collect();
    assert_eq!((&states[0]["id"], &states[0]["state"]), (&json!(second), &json!("signs")));
    assert_eq!((&states[1]["id"], &states[1]["state"]), (&json!(first), &json!("retired")));
    let error =
        run_admin_command(&url, &["signing-keys", "retire", &first], &[]).await.unwrap_err();
    assert!(error.contains("no such signing key"), "{error}");
}
