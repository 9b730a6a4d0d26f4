//! Signing keys of access tokens: their algorithm, and the time from which a new key signs.

use std::time::Duration;

use call2me_auth::{auth::signing_keys::Activation, model::signing_key::KeyPurpose};
use serde_json::{Value, json};

use crate::fixture::{Script, TestApp, TestClient, eventually};

const ALGORITHMS: [&str; 3] = ["EdDSA", "ES256", "RS256"];

async fn start(algorithm: &str) -> TestApp {
    TestApp::start_at_system_time(&[("tokens.signing_algorithm", algorithm)]).await
}

/// Restarts a service with another algorithm, at the same URL.
async fn restart(app: TestApp, algorithm: &str) -> TestApp {
    let (url, clock) = (app.url.clone(), app.clock.clone());
    let settings = [("server.public_url", &*url), ("tokens.signing_algorithm", algorithm)];
    let database = app.stop().await;
    TestApp::start_with_shared_clock(database, &settings, clock).await
}

/// Returns `alg` and `kid` of a new access token.
async fn signer(app: &TestApp, workspace: &str) -> (String, String) {
    let token = app.register(workspace).await.access_token;
    app.get("/v1/agents").bearer(&token).send().await.expect_status(200);
    let header = jsonwebtoken::decode_header(&token).unwrap();
    (serde_json::to_value(header.alg).unwrap().as_str().unwrap().to_owned(), header.kid.unwrap())
}

async fn jwks(app: &TestClient) -> Vec<Value> {
    let jwks = app.get("/.well-known/jwks.json").send().await.expect_status(200);
    jwks["keys"].as_array().unwrap().clone()
}

/// Waits until the JWKS lists this algorithm, and returns its keys.
async fn published(app: &TestApp, algorithm: &str) -> Vec<Value> {
    eventually("the key is published", async || {
        let keys = jwks(app).await;
        keys.iter().any(|key| key["alg"] == algorithm).then_some(keys)
    })
    .await
}

/// Advances the clock, and lets the node reload its keys.
async fn advance(app: &TestApp, by: Duration) {
    app.clock.advance(by);
    // A token of an unknown key causes a reload.
    let token = "eyJ0eXAiOiJhdCtqd3QiLCJhbGciOiJFZERTQSIsImtpZCI6IngifQ.e30.x";
    app.get("/v1/agents").bearer(token).send().await.assert_error(401, "unauthorized");
}

#[tokio::test(flavor = "multi_thread")]
async fn libraries_without_eddsa_verify_tokens_of_other_algorithms() {
    let mut arguments = Vec::new();
    let mut apps = Vec::new();
    for algorithm in ALGORITHMS {
        let app = start(algorithm).await;
        let token = app.register("acme").await.access_token;
        app.get("/v1/agents").bearer(&token).send().await.expect_status(200);
        let header = jsonwebtoken::decode_header(&token).unwrap();
        assert_eq!(serde_json::to_value(header.alg).unwrap(), algorithm);
        let keys = jwks(&app).await;
        assert_eq!(keys.len(), 1, "{keys:#?}");
        let members = ["kid", "alg", "use"].map(|name| keys[0][name].clone());
        assert_eq!(members, [json!(header.kid), json!(algorithm), json!("sig")]);
        assert!(keys[0].get("d").is_none());
        if algorithm != "EdDSA" {
            arguments.extend([app.url.clone(), algorithm.to_owned(), token]);
        }
        apps.push(app);
    }
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    Script::node("jsonwebtoken.mjs", &arguments, &[]).expect_success().await;
    Script::python("python_jose.py", &arguments, &[]).expect_success().await;
}

/// All nodes with the setting sign at the same time, and the earlier key stays valid.
#[tokio::test]
async fn changed_algorithm_signs_after_publication() {
    let app = start("EdDSA").await;
    let first = signer(&app, "a").await;
    let old_token = app.register("b").await.access_token;

    let app = restart(app, "ES256").await;
    let keys = published(&app, "ES256").await;
    // The key that signs is the first of the set.
    assert_eq!([&keys[0]["kid"], &keys[1]["alg"]], [&json!(first.1), &json!("ES256")]);
    assert_eq!(signer(&app, "c").await, first);
    // A minute before `tokens.key_publication_seconds`.
    advance(&app, Duration::from_mins(59)).await;
    assert_eq!(signer(&app, "d").await, first);
    app.get("/v1/agents").bearer(&old_token).send().await.expect_status(200);
    advance(&app, Duration::from_mins(1)).await;
    let second = signer(&app, "e").await;
    assert_eq!(json!(second), json!(["ES256", keys[1]["kid"]]));
    assert_eq!(jwks(&app).await[0]["kid"], json!(second.1));

    // No key is created for an algorithm that has one, and that key is known already.
    let app = restart(app, "EdDSA").await;
    assert_eq!(signer(&app, "f").await, first);
    assert_eq!(jwks(&app).await.len(), 2);
}

#[tokio::test]
async fn rotated_key_signs_after_longest_cache() {
    let app = start("ES256").await;
    let keys = &app.app.auth.signing_keys;
    let first = signer(&app, "a").await;
    let second = keys.rotate(KeyPurpose::AccessTokens, Activation::AfterPublication).await.unwrap();
    // `max-age` of the key set, libraries that cache for longer, and the configured time.
    for (minutes, total) in [(5, 5), (7, 12), (47, 59)] {
        advance(&app, Duration::from_mins(minutes)).await;
        let listed = jwks(&app).await;
        assert_eq!(listed.len(), 2, "{listed:#?}");
        assert_eq!(signer(&app, &format!("b{total}")).await, first, "after {total} minutes");
    }
    assert!(keys.retire(first.1.parse().unwrap()).await.is_err());
    advance(&app, Duration::from_mins(1)).await;
    assert_eq!(signer(&app, "c").await.1, second.id.to_string());
    keys.retire(first.1.parse().unwrap()).await.unwrap();
    advance(&app, Duration::from_secs(1)).await;
    assert_eq!(jwks(&app).await.len(), 1);

    // In an emergency.
    let third = keys.rotate(KeyPurpose::AccessTokens, Activation::Now).await.unwrap();
    advance(&app, Duration::from_secs(6)).await;
    assert_eq!(signer(&app, "d").await.1, third.id.to_string());
}

#[tokio::test]
async fn checkpoint_key_is_published_apart_from_token_keys() {
    let app = TestClient::shared();
    let path = "/.well-known/audit-checkpoint-keys.json";
    let checkpoints = app.get(path).header("origin", "https://any.example").send().await;
    assert_eq!(checkpoints.header("cache-control"), "public, max-age=300");
    assert_eq!(checkpoints.header("access-control-allow-origin"), "*");
    let checkpoints = checkpoints.expect_status(200);
    let checkpoints = checkpoints["keys"].as_array().unwrap();
    assert!(!checkpoints.is_empty());
    let tokens = jwks(&app).await;
    assert!(tokens.iter().all(|key| checkpoints.iter().all(|other| other["kid"] != key["kid"])));
}
