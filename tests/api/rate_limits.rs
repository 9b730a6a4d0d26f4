//! Rate limits per key, session and address, and the headers that report them.

use std::time::Duration;

use serde_json::{Value, json};

use crate::fixture::{
    Browser, PASSWORD, TestApp, TestResponse,
    oauth::{DEVICE_GRANT, OAuthExt},
};

/// Returns the limit, the remaining requests and the seconds until the reset, from the headers.
fn limit_headers(app: &TestApp, response: &TestResponse) -> (i64, i64, i64) {
    use call2me_auth::env::Clock;
    // The test clock started at a whole second and has advanced a little. Both times are rounded
    // up.
    let reset = response.header_number("x-ratelimit-reset") - app.clock.now().unix_timestamp() - 1;
    (
        response.header_number("x-ratelimit-limit"),
        response.header_number("x-ratelimit-remaining"),
        reset,
    )
}

#[tokio::test]
async fn request_over_limit_is_429_until_retry_after() {
    let app = TestApp::start_with(&[("rate_limit.per_key_per_minute", "6")]).await;
    let dana = app.register("acme").await;
    let key = app.create_key(&dana, "prod", "read-only").await;
    let send = || app.get("/v1/agents").bearer(&key.secret).send();
    for remaining in (0..6).rev() {
        let response = send().await;
        assert_eq!(response.status, 200);
        assert_eq!(limit_headers(&app, &response), (6, remaining, (6 - remaining) * 10));
    }
    let refused = send().await;
    refused.assert_error(429, "rate_limited");
    assert_eq!(limit_headers(&app, &refused), (6, 0, 60));
    let wait = refused.header_number("retry-after");
    assert!((1..=10).contains(&wait));
    app.clock.advance(Duration::from_secs(wait.unsigned_abs() - 1));
    send().await.assert_error(429, "rate_limited");
    app.clock.advance(Duration::from_secs(1));
    assert_eq!(send().await.status, 200);
}

#[tokio::test]
async fn each_key_and_session_has_its_own_bucket() {
    let app = TestApp::start_with(&[("rate_limit.per_key_per_minute", "4")]).await;
    let dana = app.register("acme").await;
    let [a, b] = [
        app.create_key(&dana, "a", "read-only").await,
        app.create_key(&dana, "b", "read-only").await,
    ];
    for _ in 0..4 {
        app.get("/v1/agents").bearer(&a.secret).send().await.expect_status(200);
    }
    app.get("/v1/agents").bearer(&a.secret).send().await.assert_error(429, "rate_limited");
    app.get("/v1/agents").bearer(&b.secret).send().await.expect_status(200);
    app.get("/v1/agents").bearer(&dana.access_token).send().await.expect_status(200);
    app.get("/v1/agents").bearer(&dana.access_token).send().await.expect_status(200);
    app.get("/v1/agents").bearer(&dana.access_token).send().await.assert_error(429, "rate_limited");
}

#[tokio::test]
async fn workspace_limit_overrides_the_default() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let mut connection = app.database.connect().await;
    sqlx::query("UPDATE workspaces SET rate_limit_per_minute = 2")
        .execute(&mut connection)
        .await
        .unwrap();
    let response = app.get("/v1/workspace").bearer(&dana.access_token).send().await;
    assert_eq!(limit_headers(&app, &response).0, 2);
    assert_eq!(response.expect_status(200)["rate_limit_per_minute"], 2);
}

#[tokio::test]
async fn key_has_its_own_limit_up_to_that_of_the_workspace() {
    let app = TestApp::start_with(&[("rate_limit.per_key_per_minute", "60")]).await;
    let dana = app.register("acme").await;
    let body = json!({ "name": "slow", "rate_limit_per_minute": 3 });
    let created = app.post("/v1/api-keys").bearer(&dana.access_token).json(body).send().await;
    let created = created.expect_status(201);
    assert_eq!(created["rate_limit_per_minute"], 3);
    let secret = created["key"].as_str().unwrap();
    let path = format!("/v1/api-keys/{}", created["id"].as_str().unwrap());
    let set_limit = async |limit: Value| {
        let body = json!({ "rate_limit_per_minute": limit });
        app.patch(&path).bearer(&dana.access_token).json(body).send().await
    };
    let limit = async || {
        let response = app.get("/v1/agents").bearer(secret).send().await;
        (response.status.as_u16(), response.header_number("x-ratelimit-limit"))
    };
    for _ in 0..3 {
        assert_eq!(limit().await, (200, 3));
    }
    assert_eq!(limit().await, (429, 3));
    set_limit(json!(61)).await.assert_error(422, "validation_failed");
    assert_eq!(set_limit(json!(60)).await.expect_status(200)["rate_limit_per_minute"], 60);
    // The bucket is as empty as before.
    assert_eq!(limit().await, (429, 60));
    app.clock.advance(Duration::from_mins(1));
    assert_eq!(limit().await, (200, 60));
    let reset = set_limit(Value::Null).await.expect_status(200);
    assert_eq!(reset["rate_limit_per_minute"], Value::Null);
    assert_eq!(limit().await, (200, 60));
    // A successor has the limit of its predecessor.
    set_limit(json!(7)).await.expect_status(200);
    let rotate = app.post(&format!("{path}/rotate")).bearer(&dana.access_token).json(json!({}));
    assert_eq!(rotate.send().await.expect_status(201)["rate_limit_per_minute"], 7);
}

#[tokio::test]
async fn operator_sets_limit_of_workspace_on_every_node() {
    let app = TestApp::start_with(&[("rate_limit.per_key_per_minute", "600")]).await;
    let other = TestApp::start_on(
        app.database.clone(),
        &[("server.public_url", &app.url), ("rate_limit.per_key_per_minute", "600")],
    )
    .await;
    let dana = app.register("acme").await;
    let mut keys = Vec::new();
    for limit in [json!(500), json!(50), Value::Null] {
        let body = json!({ "name": "k", "rate_limit_per_minute": limit });
        let created = app.post("/v1/api-keys").bearer(&dana.access_token).json(body).send().await;
        keys.push(created.expect_status(201)["key"].as_str().unwrap().to_owned());
    }
    let limits = async || {
        let mut limits = Vec::new();
        for key in &keys {
            let response = other.get("/v1/agents").bearer(key).send().await;
            limits.push(response.header_number("x-ratelimit-limit"));
        }
        limits
    };
    assert_eq!(limits().await, [500, 50, 600]);
    let workspace = dana.workspace_id.parse().unwrap();
    let set_limit = async |per_minute: Option<u32>| {
        app.app.auth.workspaces.set_rate_limit_as_operator(workspace, per_minute).await.unwrap()
    };
    assert_eq!(set_limit(Some(100)).await, 100);
    assert_eq!(limits().await, [100, 50, 100], "the higher limit is lowered");
    let list = app.get("/v1/api-keys").bearer(&dana.access_token).send().await;
    let stored: Vec<_> = list.expect_status(200)["api_keys"]
        .as_array()
        .unwrap()
        .iter()
        .map(|key| key["rate_limit_per_minute"].clone())
        .collect();
    assert_eq!(stored, [Value::Null, json!(50), json!(100)]);
    assert_eq!(set_limit(None).await, 600);
    assert_eq!(limits().await, [100, 50, 600]);
    let result = app.app.auth.workspaces.set_rate_limit_as_operator(workspace, Some(0)).await;
    assert!(result.is_err());
    app.wait_for_event_count(&dana.access_token, "action=workspace.updated", 2).await;
}

#[tokio::test]
async fn address_limit_does_not_apply_to_valid_keys() {
    let app = TestApp::start_with(&[("rate_limit.per_address_per_minute", "5")]).await;
    let dana = app.register("acme").await;
    let key = app.create_key(&dana, "prod", "read-only").await;
    for credential in ["", "nonsense", "sk_call2me_live_x"] {
        app.get("/v1/agents").bearer(credential).send().await.assert_error(401, "unauthorized");
    }
    let last = app.get("/v1/nope").send().await;
    assert_eq!(limit_headers(&app, &last), (5, 0, 60));
    let refused = app.get("/v1/agents").bearer("nonsense").send().await;
    refused.assert_error(429, "rate_limited");
    assert_eq!(refused.header_number("retry-after"), 12);
    let refresh =
        |token: &str| app.post("/v1/auth/refresh").json(json!({ "refresh_token": token })).send();
    refresh("rt_call2me_x").await.assert_error(429, "rate_limited");
    refresh(&dana.refresh_token).await.expect_status(200);
    let response = app.get("/v1/agents").bearer(&key.secret).send().await;
    assert_eq!((response.status.as_u16(), limit_headers(&app, &response).0), (200, 10_000));
}

#[tokio::test]
async fn addresses_are_distinguished_only_behind_trusted_proxy() {
    let limits = [("rate_limit.per_address_per_minute", "1")];
    let proxied = [limits[0], ("server.trusted_proxies", "127.0.0.0/8")];
    let send = |app: &TestApp, address: &str| {
        app.get("/v1/agents").header("x-forwarded-for", address).send()
    };
    let app = TestApp::start_with(&proxied).await;
    send(&app, "203.0.113.1").await.assert_error(401, "unauthorized");
    send(&app, "203.0.113.1").await.assert_error(429, "rate_limited");
    send(&app, "203.0.113.2").await.assert_error(401, "unauthorized");
    // An IPv6 /64 network counts as one address.
    send(&app, "2001:db8::1").await.assert_error(401, "unauthorized");
    send(&app, "2001:db8::ffff:1").await.assert_error(429, "rate_limited");
    send(&app, "2001:db8:0:1::1").await.assert_error(401, "unauthorized");
    // Entries that the client adds itself are further left and have no effect.
    send(&app, "198.51.100.9, 203.0.113.1").await.assert_error(429, "rate_limited");

    let app = TestApp::start_with(&limits).await;
    send(&app, "203.0.113.1").await.assert_error(401, "unauthorized");
    send(&app, "203.0.113.2").await.assert_error(429, "rate_limited");
}

#[tokio::test]
async fn sign_in_has_a_lower_rate_limit() {
    let app = TestApp::start_with(&[("rate_limit.sign_in_per_minute", "3")]).await;
    let body = json!({ "email": "nobody@acme.example", "password": "wrong horse battery" });
    let sign_in = || app.post("/v1/auth/login").json(body.clone()).send();
    for remaining in (0..3).rev() {
        let response = sign_in().await;
        response.assert_error(401, "invalid_credentials");
        assert_eq!(limit_headers(&app, &response), (3, remaining, (3 - remaining) * 20));
    }
    let refused = sign_in().await;
    refused.assert_error(429, "rate_limited");
    assert_eq!(limit_headers(&app, &refused).1, 0);
    assert!((1..=21).contains(&refused.header_number("retry-after")));
    // The second factor shares this limit. The rest of the API does not.
    let code = json!({ "mfa_token": "x", "code": "123456" });
    app.post("/v1/auth/mfa/verify").json(code).send().await.assert_error(429, "rate_limited");
    app.get("/v1/agents").send().await.assert_error(401, "unauthorized");
}

/// Many people can be behind the address of an office.
#[tokio::test]
async fn colleagues_behind_one_address_are_not_limited_as_one() {
    let app = TestApp::start_with(&[("rate_limit.sign_in_per_minute", "3")]).await;
    let mut colleagues = Vec::new();
    for name in ["ann", "ben", "cleo", "dan"] {
        colleagues.push(app.register(name).await);
        app.clock.advance(Duration::from_secs(20));
    }
    // Each connects an app and a device, and signs in, within the same minute.
    for colleague in &colleagues {
        let grants = json!({ "grant_types": ["authorization_code", DEVICE_GRANT] });
        let client = app.register_client(grants).await;
        let fields = client.with_client_credentials(&[]);
        app.post_form("/oauth/device_authorization", &fields).await.expect_status(200);
        app.sign_in_again(colleague).await;
        Browser::signed_in(&app, &colleague.email).await;
    }
    // A sign-in that fails counts, also between others that succeed.
    let sign_in = async |email: &str| {
        let body = json!({ "email": email, "password": PASSWORD });
        app.post("/v1/auth/login").json(body).send().await.status.as_u16()
    };
    let mut statuses = Vec::new();
    for (stranger, colleague) in
        ["x@a.example", "y@a.example", "z@a.example"].iter().zip(&colleagues)
    {
        statuses.extend([sign_in(stranger).await, sign_in(&colleague.email).await]);
    }
    assert_eq!(statuses, [401, 200, 401, 200, 401, 429]);
    // Links, user codes and registrations have buckets of their own.
    let forgot = json!({ "email": "nobody@acme.example" });
    for (path, body, status) in [
        ("/v1/auth/verify-email", json!({ "token": "x" }), 422),
        ("/v1/auth/register", json!({}), 422),
        ("/v1/auth/password/forgot", forgot, 202),
    ] {
        let response = app.post(path).json(body).send().await;
        assert_eq!(response.status.as_u16(), status, "{path}: {}", response.text);
    }
    app.register_client(json!({})).await;
}

#[tokio::test]
async fn open_routes_have_a_ceiling_for_addresses_over_their_limit() {
    let app = TestApp::start_with(&[("rate_limit.per_address_per_minute", "1")]).await;
    let dana = app.register("acme").await;
    let refresh =
        |token: &str| app.post("/v1/auth/refresh").json(json!({ "refresh_token": token })).send();
    // The address is over its limit, but a valid token passes.
    refresh("unknown").await;
    let pair = refresh(&dana.refresh_token).await.expect_status(200);
    // At the ceiling nothing is done for a request: the token stays unused.
    let token = pair["refresh_token"].as_str().unwrap();
    for _ in 0..60 {
        refresh("unknown").await.assert_error(429, "rate_limited");
    }
    let refused = refresh(token).await;
    refused.assert_error(429, "rate_limited");
    assert!(refused.header_number("retry-after") >= 1);
}

#[tokio::test]
async fn idle_bucket_is_evicted() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    for _ in 0..5 {
        app.get("/v1/agents").bearer(&dana.access_token).send().await.expect_status(200);
    }
    assert_eq!(app.app.limits.bucket_count(), 2);
    app.clock.advance(Duration::from_mins(1));
    app.app.limits.evict_full();
    assert_eq!(app.app.limits.bucket_count(), 0);
}

#[tokio::test]
async fn absent_route_is_charged_to_the_credential() {
    let settings =
        [("rate_limit.per_address_per_minute", "5"), ("rate_limit.per_key_per_minute", "50")];
    let app = TestApp::start_with(&settings).await;
    let dana = app.register("acme").await;
    let key = app.create_key(&dana, "prod", "read-only").await;
    let address_before = app.app.limits.peek_address([127, 0, 0, 1].into()).await.remaining;
    for credential in [&key.secret, &dana.access_token] {
        for (method, path, status) in
            [("GET", "/v1/nope", 404), ("GET", "/v1/agents/a/b/c", 404), ("PUT", "/v1/agents", 405)]
        {
            let before = app.get("/v1/agents").bearer(credential).send().await;
            let absent = app.request_as(credential, method, path).send().await;
            assert_eq!(absent.status, status);
            assert_eq!(limit_headers(&app, &absent).0, 50);
            let spent = limit_headers(&app, &before).1 - limit_headers(&app, &absent).1;
            assert_eq!(spent, 1, "{method} {path}");
        }
    }
    let address_after = app.app.limits.peek_address([127, 0, 0, 1].into()).await.remaining;
    assert_eq!(address_after, address_before);
    // A key that is used from a foreign address is charged to the address.
    let body = json!({ "name": "far", "allowed_ips": ["192.0.2.0/24"] });
    let far = app.request_as(&dana.access_token, "POST", "/v1/api-keys").json(body).send().await;
    let far = far.expect_status(201)["key"].as_str().unwrap().to_owned();
    for credential in [&*far, "nonsense"] {
        let absent = app.get("/v1/nope").bearer(credential).send().await;
        assert_eq!(limit_headers(&app, &absent).0, 5);
    }
}
