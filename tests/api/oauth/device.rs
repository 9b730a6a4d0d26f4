//! The device authorization grant (RFC 8628).

use std::time::Duration;

use serde_json::{Value, json};

use crate::fixture::{
    Browser, PASSWORD, TestApp, TestClient, TestResponse,
    oauth::{DEVICE_GRANT, OAuthClient, OAuthExt},
};

async fn register_device_client(app: &TestClient) -> OAuthClient {
    let grants = json!({ "grant_types": [DEVICE_GRANT, "refresh_token"], "redirect_uris": [] });
    app.register_client(grants).await
}

async fn start_authorization(app: &TestClient, client: &OAuthClient) -> Value {
    let fields = client.with_client_credentials(&[("scope", "call2me:write")]);
    app.post_form("/oauth/device_authorization", &fields).await.expect_status(200)
}

async fn poll(app: &TestClient, client: &OAuthClient, device: &Value) -> TestResponse {
    let code = device["device_code"].as_str().unwrap();
    app.request_token(
        &client.with_client_credentials(&[("grant_type", DEVICE_GRANT), ("device_code", code)]),
    )
    .await
}

#[tokio::test]
async fn device_gets_tokens_after_user_enters_code() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let client = register_device_client(&app).await;
    let device = start_authorization(&app, &client).await;
    assert_eq!((&device["expires_in"], &device["interval"]), (&json!(900), &json!(5)));
    assert_eq!(device["verification_uri"], format!("{}/device", app.url));
    let code = device["user_code"].as_str().unwrap();
    let complete_uri = device["verification_uri_complete"].as_str().unwrap();
    poll(&app, &client, &device).await.assert_oauth_error(400, "authorization_pending");

    let mut browser = Browser::new(&app);
    let page = browser.get(complete_uri.strip_prefix(&app.url).unwrap()).await;
    let page = browser.get(page.redirect_target().unwrap()).await;
    let fields = [("email", &*dana.email), ("password", PASSWORD)];
    let page = browser.submit(&page, "/sign-in", &fields).await;
    let page = browser.get(page.redirect_target().unwrap()).await;
    assert!(page.text.contains(code), "{}", page.text);
    // The code is accepted in lower case and with spaces.
    let typed_code = code.to_lowercase().replace('-', " ");
    let page = browser.submit(&page, "/device", &[("user_code", &typed_code)]).await;
    for text in ["Example app", "another device", "Read and write"] {
        assert!(page.text.contains(text), "{text}: {}", page.text);
    }
    app.clock.advance(Duration::from_secs(5));
    poll(&app, &client, &device).await.assert_oauth_error(400, "authorization_pending");
    let result = browser.submit_consent(&page, &[]).await;
    assert!(result.status == 200 && result.text.contains("Connected"), "{result:#?}");

    let tokens = poll(&app, &client, &device).await.expect_status(200);
    assert_eq!(tokens["scope"], "call2me:read call2me:write");
    let token = tokens["access_token"].as_str().unwrap();
    app.request_as(token, "GET", "/v1/agents").send().await.expect_status(200);
    app.refresh_token(&client, tokens["refresh_token"].as_str().unwrap()).await.expect_status(200);
    // A device code works once. The event of a second attempt names the user.
    poll(&app, &client, &device).await.assert_oauth_error(400, "invalid_grant");
    let refused = "action=oauth.token_refused";
    let event = app.wait_for_event_count(&dana.access_token, refused, 1).await.remove(0);
    assert_eq!(event["metadata"]["user_id"], json!(dana.user_id), "{event}");
    app.request_as(token, "GET", "/v1/agents").send().await.expect_status(200);
    let page = browser.get("/device").await;
    let again = browser.submit(&page, "/device", &[("user_code", code)]).await;
    assert!(
        again.status == 422 && again.text.contains("his code is wrong or has expired"),
        "{again:#?}"
    );
}

#[tokio::test]
async fn too_frequent_polling_is_slowed_down() {
    let app = TestApp::start().await;
    let client = register_device_client(&app).await;
    let device = start_authorization(&app, &client).await;
    poll(&app, &client, &device).await.assert_oauth_error(400, "authorization_pending");
    poll(&app, &client, &device).await.assert_oauth_error(400, "slow_down");
    // Each `slow_down` adds five seconds to the interval.
    app.clock.advance(Duration::from_secs(6));
    poll(&app, &client, &device).await.assert_oauth_error(400, "slow_down");
    // A poll may come up to a second early.
    app.clock.advance(Duration::from_millis(14_100));
    poll(&app, &client, &device).await.assert_oauth_error(400, "authorization_pending");
    app.clock.advance(Duration::from_mins(15));
    poll(&app, &client, &device).await.assert_oauth_error(400, "expired_token");
}

#[tokio::test]
async fn approval_before_expiry_can_be_redeemed_shortly_after() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let client = register_device_client(&app).await;
    let [early, late] =
        [start_authorization(&app, &client).await, start_authorization(&app, &client).await];
    app.clock.advance(Duration::from_mins(14));
    let mut browser = Browser::signed_in(&app, &dana.email).await;
    for device in [&early, &late] {
        let page = browser.get("/device").await;
        let code = device["user_code"].as_str().unwrap();
        let page = browser.submit(&page, "/device", &[("user_code", code)]).await;
        assert_eq!(browser.submit_consent(&page, &[]).await.status, 200);
    }
    app.clock.advance(Duration::from_mins(2));
    poll(&app, &client, &early).await.expect_status(200);
    // An approval that is never redeemed expires, too.
    app.clock.advance(Duration::from_mins(15));
    poll(&app, &client, &late).await.assert_oauth_error(400, "invalid_grant");
}

#[tokio::test]
async fn denial_is_reported_and_device_code_is_bound_to_client() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let (client, other) = (register_device_client(&app).await, register_device_client(&app).await);
    let device = start_authorization(&app, &client).await;
    poll(&app, &other, &device).await.assert_oauth_error(400, "invalid_grant");
    let mut browser = Browser::signed_in(&app, &dana.email).await;
    let page = browser.get("/device").await;
    let code = device["user_code"].as_str().unwrap();
    let page = browser.submit(&page, "/device", &[("user_code", code)]).await;
    let result = browser.submit(&page, "/device/consent", &[("decision", "deny")]).await;
    assert!(result.text.contains("Not connected"), "{result:#?}");
    poll(&app, &client, &device).await.assert_oauth_error(400, "access_denied");
    // A decision is final.
    let late_decision = browser.submit_consent(&page, &[]).await;
    assert_eq!(late_decision.status, 422, "{late_decision:#?}");
    let web_client = app.register_client(json!({})).await;
    let response = app
        .post_form("/oauth/device_authorization", &web_client.with_client_credentials(&[]))
        .await;
    response.assert_oauth_error(400, "unauthorized_client");
    app.post_form("/oauth/device_authorization", &[])
        .await
        .assert_oauth_error(401, "invalid_client");
    app.request_token(&client.with_client_credentials(&[("grant_type", DEVICE_GRANT)]))
        .await
        .assert_oauth_error(400, "invalid_request");
}

#[tokio::test]
async fn pending_device_codes_are_limited_per_address() {
    let app = TestApp::start_with(&[("rate_limit.per_address_per_minute", "60")]).await;
    let client = register_device_client(&app).await;
    let mut device = None;
    for _ in 0..50 {
        device = Some(start_authorization(&app, &client).await);
    }
    let response =
        app.post_form("/oauth/device_authorization", &client.with_client_credentials(&[])).await;
    response.assert_oauth_error(503, "temporarily_unavailable");
    // A device that polls at its interval is served even if its address is rate-limited.
    for _ in 0..20 {
        app.refresh_token(&client, "rt_call2me_guess").await;
    }
    app.refresh_token(&client, "rt_call2me_guess")
        .await
        .assert_oauth_error(429, "temporarily_unavailable");
    poll(&app, &client, &device.unwrap()).await.assert_oauth_error(400, "authorization_pending");
    app.clock.advance(Duration::from_mins(15));
    start_authorization(&app, &client).await;
}

#[tokio::test]
async fn user_code_attempts_are_rate_limited() {
    let app = TestApp::start_with(&[("rate_limit.sign_in_per_minute", "4")]).await;
    let dana = app.register("acme").await;
    let mut browser = Browser::signed_in(&app, &dana.email).await;
    let page = browser.get("/device").await;
    let mut statuses = Vec::new();
    for path in ["/device", "/device/consent", "/device", "/device/consent", "/device"] {
        let mut fields = page.hidden_fields("/device");
        fields.push(("user_code".to_owned(), "BCDF-GHJK".to_owned()));
        let answer = browser.post(path, &fields, &[("sec-fetch-site", "same-origin")]).await;
        statuses.push(answer.status);
    }
    assert_eq!(statuses, [422, 422, 422, 422, 429]);
    // Opening a link approves nothing.
    let response = Browser::new(&app).get("/device?user_code=BCDF-GHJK").await;
    assert!(response.redirect_target().unwrap().starts_with("/sign-in?next=%2Fdevice"));
}
