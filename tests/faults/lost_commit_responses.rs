//! PostgreSQL commits, but its response is lost. The outcome is unknown to the node, and a retry is
//! safe.

use serde_json::{Value, json};

use super::fixture::{Cluster, Node, Proxy, ProxyMode, acquire_test_lock};
use crate::fixture::{Browser, PASSWORD, TestResponse, oauth::OAuthExt};

const ROUNDS: usize = 10;

async fn refresh(node: &Node, token: &str) -> TestResponse {
    node.request("POST", "/v1/auth/refresh").json(json!({ "refresh_token": token })).send().await
}

fn refresh_token_of(pair: &Value) -> String {
    pair["refresh_token"].as_str().unwrap().to_owned()
}

/// The grant of a connected app must not end, either.
#[tokio::test(flavor = "multi_thread")]
async fn connected_app_survives_lost_commit_responses() {
    let _turn = acquire_test_lock().await;
    let cluster = Cluster::start(false).await;
    let proxy = Proxy::start(cluster.port()).await;
    let url = proxy.url(&cluster.node_url(), cluster.port());
    let node = Node::start("node", &url, &[]).await;
    node.register("acme").await;
    let client = node.register_client(json!({})).await;
    let mut browser = Browser::signed_in(&node, "owner@acme.example").await;
    let mut current = refresh_token_of(&node.obtain_tokens(&mut browser, &client, &[]).await);
    for _ in 0..ROUNDS {
        proxy.set_mode(ProxyMode::DropCommitResponses);
        node.refresh_token(&client, &current)
            .await
            .assert_oauth_error(503, "temporarily_unavailable");
        proxy.set_mode(ProxyMode::Pass);
        let retried = node.refresh_token(&client, &current).await.expect_status(200);
        let again = node.refresh_token(&client, &current).await.expect_status(200);
        assert_eq!(refresh_token_of(&retried), refresh_token_of(&again));
        node.verify(retried["access_token"].as_str().unwrap()).send().await.expect_status(200);
        current = refresh_token_of(&retried);
    }
    let mut connection = cluster.connect().await;
    let sql = "SELECT count(*) FROM oauth_grants WHERE ended_at IS NOT NULL";
    let ended: i64 = sqlx::query_scalar(sql).fetch_one(&mut connection).await.unwrap();
    assert_eq!(ended, 0, "a retry was treated as reuse of a refresh token");
}

#[tokio::test(flavor = "multi_thread")]
async fn refresh_with_lost_commit_returns_successor_on_retry() {
    let _turn = acquire_test_lock().await;
    let cluster = Cluster::start(false).await;
    let proxy = Proxy::start(cluster.port()).await;
    let url = proxy.url(&cluster.node_url(), cluster.port());
    let node = Node::start("node", &url, &[]).await;
    node.register("acme").await;
    let body = json!({ "email": "owner@acme.example", "password": PASSWORD });
    let first = node.request("POST", "/v1/auth/login").json(body).send().await.expect_status(200);
    let mut current = refresh_token_of(&first);
    for _ in 0..ROUNDS {
        proxy.set_mode(ProxyMode::DropCommitResponses);
        refresh(&node, &current).await.assert_error(503, "unavailable");
        proxy.set_mode(ProxyMode::Pass);
        // The refresh was committed, so the retry returns its result and creates no other.
        let mut connection = cluster.connect().await;
        let sql = "SELECT max(refresh_generation) FROM sessions";
        let before: i32 = sqlx::query_scalar(sql).fetch_one(&mut connection).await.unwrap();
        let retried = refresh(&node, &current).await.expect_status(200);
        let after: i32 = sqlx::query_scalar(sql).fetch_one(&mut connection).await.unwrap();
        assert_eq!(before, after);
        let bearer = retried["access_token"].as_str().unwrap();
        node.verify(bearer).send().await.expect_status(200);
        current = refresh_token_of(&retried);
    }
    let mut connection = cluster.connect().await;
    let sql = "SELECT count(*) FROM audit_events WHERE action = 'session.reuse_detected'";
    let reuses: i64 = sqlx::query_scalar(sql).fetch_one(&mut connection).await.unwrap();
    assert_eq!(reuses, 0, "a retry was treated as reuse of a refresh token");
}
