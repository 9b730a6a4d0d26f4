//! Limits: per key, per session, per address, and how clients are told.

use std::time::Duration;

use serde_json::json;

use crate::fixture::{Answer, TestApp};

/// What the three headers say, the last as seconds from now.
fn told(app: &TestApp, answer: &Answer) -> (i64, i64, i64) {
    use call2me_auth::env::Clock;
    // The test's clock begins at a whole second and has gone on a little: both are rounded up.
    let reset = answer.number("x-ratelimit-reset") - app.clock.now().unix_timestamp() - 1;
    (answer.number("x-ratelimit-limit"), answer.number("x-ratelimit-remaining"), reset)
}

#[tokio::test]
async fn over_the_limit_is_429_and_waiting_as_told_is_enough() {
    let app = TestApp::start_with(&[("rate_limit.per_key_per_minute", "6")]).await;
    let dana = app.register("acme").await;
    let key = app.mint(&dana, "prod", "read-only").await;
    let call = || app.get("/v1/agents").bearer(&key.secret).send();
    for left in (0..6).rev() {
        let answer = call().await;
        assert_eq!(answer.status, 200);
        assert_eq!(told(&app, &answer), (6, left, (6 - left) * 10));
    }
    let refused = call().await;
    refused.refused(429, "rate_limited");
    assert_eq!(told(&app, &refused), (6, 0, 60));
    let wait = refused.number("retry-after");
    assert!((1..=10).contains(&wait));
    app.clock.advance(Duration::from_secs(wait.unsigned_abs() - 1));
    call().await.refused(429, "rate_limited");
    app.clock.advance(Duration::from_secs(1));
    assert_eq!(call().await.status, 200);
}

#[tokio::test]
async fn each_key_and_session_has_its_own_bucket() {
    let app = TestApp::start_with(&[("rate_limit.per_key_per_minute", "4")]).await;
    let dana = app.register("acme").await;
    let [a, b] = [app.mint(&dana, "a", "read-only").await, app.mint(&dana, "b", "read-only").await];
    for _ in 0..4 {
        app.get("/v1/agents").bearer(&a.secret).send().await.expect(200);
    }
    app.get("/v1/agents").bearer(&a.secret).send().await.refused(429, "rate_limited");
    app.get("/v1/agents").bearer(&b.secret).send().await.expect(200);
    app.get("/v1/agents").bearer(&dana.access_token).send().await.expect(200);
    app.get("/v1/agents").bearer(&dana.access_token).send().await.expect(200);
    app.get("/v1/agents").bearer(&dana.access_token).send().await.refused(429, "rate_limited");
}

#[tokio::test]
async fn a_workspace_may_have_its_own_limit() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let mut connection = app.database.connect().await;
    sqlx::query("UPDATE workspaces SET rate_limit_per_minute = 2")
        .execute(&mut connection)
        .await
        .unwrap();
    let answer = app.get("/v1/workspace").bearer(&dana.access_token).send().await;
    assert_eq!(told(&app, &answer).0, 2);
    assert_eq!(answer.expect(200)["rate_limit_per_minute"], 2);
}

#[tokio::test]
async fn a_noisy_address_does_not_throttle_good_keys() {
    let app = TestApp::start_with(&[("rate_limit.per_address_per_minute", "5")]).await;
    let dana = app.register("acme").await;
    let key = app.mint(&dana, "prod", "read-only").await;
    for credential in ["", "nonsense", "sk_call2me_live_x"] {
        app.get("/v1/agents").bearer(credential).send().await.refused(401, "unauthorized");
    }
    let last = app.get("/v1/nope").send().await;
    assert_eq!(told(&app, &last), (5, 0, 60));
    let refused = app.get("/v1/agents").bearer("nonsense").send().await;
    refused.refused(429, "rate_limited");
    assert_eq!(refused.number("retry-after"), 12);
    let refresh =
        |token: &str| app.post("/v1/auth/refresh").json(json!({ "refresh_token": token })).send();
    refresh("rt_call2me_x").await.refused(429, "rate_limited");
    refresh(&dana.refresh_token).await.expect(200);
    let good = app.get("/v1/agents").bearer(&key.secret).send().await;
    assert_eq!((good.status.as_u16(), told(&app, &good).0), (200, 10_000));
}

#[tokio::test]
async fn addresses_are_told_apart_behind_a_trusted_proxy_only() {
    let limits = [("rate_limit.per_address_per_minute", "1")];
    let proxied = [limits[0], ("server.trusted_proxies", "127.0.0.0/8")];
    let call =
        |app: &TestApp, from: &str| app.get("/v1/agents").header("x-forwarded-for", from).send();
    let app = TestApp::start_with(&proxied).await;
    call(&app, "203.0.113.1").await.refused(401, "unauthorized");
    call(&app, "203.0.113.1").await.refused(429, "rate_limited");
    call(&app, "203.0.113.2").await.refused(401, "unauthorized");
    // Of IPv6 a /64 counts as one.
    call(&app, "2001:db8::1").await.refused(401, "unauthorized");
    call(&app, "2001:db8::ffff:1").await.refused(429, "rate_limited");
    call(&app, "2001:db8:0:1::1").await.refused(401, "unauthorized");
    // What the client claims itself stands further left.
    call(&app, "198.51.100.9, 203.0.113.1").await.refused(429, "rate_limited");

    let app = TestApp::start_with(&limits).await;
    call(&app, "203.0.113.1").await.refused(401, "unauthorized");
    call(&app, "203.0.113.2").await.refused(429, "rate_limited");
}

#[tokio::test]
async fn sign_in_has_a_far_lower_limit() {
    let app = TestApp::start_with(&[("rate_limit.sign_in_per_minute", "3")]).await;
    let body = json!({ "email": "nobody@acme.example", "password": "wrong horse battery" });
    let login = || app.post("/v1/auth/login").json(body.clone()).send();
    for left in (0..3).rev() {
        let answer = login().await;
        answer.refused(401, "invalid_credentials");
        assert_eq!(told(&app, &answer), (3, left, (3 - left) * 20));
    }
    let refused = login().await;
    refused.refused(429, "rate_limited");
    assert_eq!(told(&app, &refused).1, 0);
    assert!((1..=21).contains(&refused.number("retry-after")));
    // Registration shares it; the rest of the API does not.
    app.post("/v1/auth/register").json(json!({})).send().await.refused(429, "rate_limited");
    app.get("/v1/agents").send().await.refused(401, "unauthorized");
}

#[tokio::test]
async fn idle_buckets_are_forgotten() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    for _ in 0..5 {
        app.get("/v1/agents").bearer(&dana.access_token).send().await.expect(200);
    }
    assert_eq!(app.app.limits.buckets(), 2);
    app.clock.advance(Duration::from_mins(1));
    app.app.limits.evict_full();
    assert_eq!(app.app.limits.buckets(), 0);
}
