//! Devices: a code is typed in elsewhere.

use std::time::Duration;

use serde_json::{Value, json};

use crate::fixture::{
    Answer, Browser, PASSWORD, TestApp,
    oauth::{DEVICE_GRANT, OAuth, OAuthClient},
};

async fn device_client(app: &TestApp) -> OAuthClient {
    let grants = json!({ "grant_types": [DEVICE_GRANT, "refresh_token"], "redirect_uris": [] });
    app.oauth_client(grants).await
}

async fn start(app: &TestApp, client: &OAuthClient) -> Value {
    let fields = client.shows(&[("scope", "call2me:write")]);
    app.oauth("/oauth/device_authorization", &fields).await.expect(200)
}

async fn poll(app: &TestApp, client: &OAuthClient, device: &Value) -> Answer {
    let code = device["device_code"].as_str().unwrap();
    app.token(&client.shows(&[("grant_type", DEVICE_GRANT), ("device_code", code)])).await
}

#[tokio::test]
async fn a_device_shows_a_code_and_is_let_in() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let client = device_client(&app).await;
    let device = start(&app, &client).await;
    assert_eq!((&device["expires_in"], &device["interval"]), (&json!(900), &json!(5)));
    assert_eq!(device["verification_uri"], format!("{}/device", app.url));
    let code = device["user_code"].as_str().unwrap();
    let complete = device["verification_uri_complete"].as_str().unwrap();
    poll(&app, &client, &device).await.told(400, "authorization_pending");

    let mut browser = Browser::new(&app);
    let page = browser.get(complete.strip_prefix(&app.url).unwrap()).await;
    let page = browser.get(page.leads_to().unwrap()).await;
    let fields = [("email", &*dana.email), ("password", PASSWORD)];
    let page = browser.submit(&page, "/sign-in", &fields).await;
    let page = browser.get(page.leads_to().unwrap()).await;
    assert!(page.text.contains(code), "{}", page.text);
    // In small letters, with spaces.
    let typed = code.to_lowercase().replace('-', " ");
    let page = browser.submit(&page, "/device", &[("user_code", &typed)]).await;
    for words in ["Example app", "another device", "Read and write"] {
        assert!(page.text.contains(words), "{words}: {}", page.text);
    }
    app.clock.advance(Duration::from_secs(5));
    poll(&app, &client, &device).await.told(400, "authorization_pending");
    let done = browser.consent(&page, &[]).await;
    assert!(done.status == 200 && done.text.contains("Connected"), "{done:#?}");

    let tokens = poll(&app, &client, &device).await.expect(200);
    assert_eq!(tokens["scope"], "call2me:read call2me:write");
    let token = tokens["access_token"].as_str().unwrap();
    app.by(token, "GET", "/v1/agents").send().await.expect(200);
    app.refresh(&client, tokens["refresh_token"].as_str().unwrap()).await.expect(200);
    // Once; and the log tells who tried it again.
    poll(&app, &client, &device).await.told(400, "invalid_grant");
    let refused = "action=oauth.token_refused";
    let event = app.events_of(&dana.access_token, refused, 1).await.remove(0);
    assert_eq!(event["metadata"]["user_id"], json!(dana.user_id), "{event}");
    app.by(token, "GET", "/v1/agents").send().await.expect(200);
    let page = browser.get("/device").await;
    let again = browser.submit(&page, "/device", &[("user_code", code)]).await;
    assert!(again.status == 422 && again.text.contains("o device shows this code"), "{again:#?}");
}

#[tokio::test]
async fn who_polls_too_often_is_slowed_down() {
    let app = TestApp::start().await;
    let client = device_client(&app).await;
    let device = start(&app, &client).await;
    poll(&app, &client, &device).await.told(400, "authorization_pending");
    poll(&app, &client, &device).await.told(400, "slow_down");
    // Five seconds more each time.
    app.clock.advance(Duration::from_secs(6));
    poll(&app, &client, &device).await.told(400, "slow_down");
    app.clock.advance(Duration::from_secs(16));
    poll(&app, &client, &device).await.told(400, "authorization_pending");
    app.clock.advance(Duration::from_mins(15));
    poll(&app, &client, &device).await.told(400, "expired_token");
}

#[tokio::test]
async fn an_answer_of_the_last_moment_is_fetched() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let client = device_client(&app).await;
    let [early, late] = [start(&app, &client).await, start(&app, &client).await];
    app.clock.advance(Duration::from_mins(14));
    let mut browser = Browser::of(&app, &dana.email).await;
    for device in [&early, &late] {
        let page = browser.get("/device").await;
        let code = device["user_code"].as_str().unwrap();
        let page = browser.submit(&page, "/device", &[("user_code", code)]).await;
        assert_eq!(browser.consent(&page, &[]).await.status, 200);
    }
    app.clock.advance(Duration::from_mins(2));
    poll(&app, &client, &early).await.expect(200);
    // But not whenever.
    app.clock.advance(Duration::from_mins(15));
    poll(&app, &client, &late).await.told(400, "invalid_grant");
}

#[tokio::test]
async fn a_no_is_told_and_codes_are_their_clients() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let (client, other) = (device_client(&app).await, device_client(&app).await);
    let device = start(&app, &client).await;
    poll(&app, &other, &device).await.told(400, "invalid_grant");
    let mut browser = Browser::of(&app, &dana.email).await;
    let page = browser.get("/device").await;
    let code = device["user_code"].as_str().unwrap();
    let page = browser.submit(&page, "/device", &[("user_code", code)]).await;
    let done = browser.submit(&page, "/device/consent", &[("decision", "deny")]).await;
    assert!(done.text.contains("Not connected"), "{done:#?}");
    poll(&app, &client, &device).await.told(400, "access_denied");
    // Another answer comes too late.
    let late = browser.consent(&page, &[]).await;
    assert_eq!(late.status, 422, "{late:#?}");
    let web = app.oauth_client(json!({})).await;
    let refused = app.oauth("/oauth/device_authorization", &web.shows(&[])).await;
    refused.told(400, "unauthorized_client");
    app.oauth("/oauth/device_authorization", &[]).await.told(401, "invalid_client");
    let scope = client.shows(&[("scope", "openid")]);
    app.oauth("/oauth/device_authorization", &scope).await.told(400, "invalid_scope");
    app.token(&client.shows(&[("grant_type", DEVICE_GRANT)])).await.told(400, "invalid_request");
}

#[tokio::test]
async fn one_address_has_so_many_devices_wait() {
    let app = TestApp::start_with(&[("rate_limit.per_address_per_minute", "60")]).await;
    let client = device_client(&app).await;
    let mut device = None;
    for _ in 0..50 {
        device = Some(start(&app, &client).await);
    }
    let refused = app.oauth("/oauth/device_authorization", &client.shows(&[])).await;
    refused.told(503, "temporarily_unavailable");
    // Who waits as it should is told so, whatever others behind the same address do.
    for _ in 0..20 {
        app.refresh(&client, "rt_call2me_guess").await;
    }
    app.refresh(&client, "rt_call2me_guess").await.told(429, "temporarily_unavailable");
    poll(&app, &client, &device.unwrap()).await.told(400, "authorization_pending");
    app.clock.advance(Duration::from_mins(15));
    start(&app, &client).await;
}

#[tokio::test]
async fn codes_are_not_guessed() {
    let app = TestApp::start_with(&[("rate_limit.sign_in_per_minute", "6")]).await;
    let dana = app.register("acme").await;
    let mut browser = Browser::of(&app, &dana.email).await;
    let page = browser.get("/device").await;
    let mut statuses = Vec::new();
    for path in ["/device", "/device/consent", "/device", "/device/consent", "/device"] {
        let mut fields = page.hidden("/device");
        fields.push(("user_code".to_owned(), "BCDF-GHJK".to_owned()));
        let answer = browser.post(path, &fields, &[("sec-fetch-site", "same-origin")]).await;
        statuses.push(answer.status);
    }
    // Registering and signing in were of the same limit.
    assert_eq!(statuses, [422, 422, 422, 422, 429]);
    // Nor does anybody approve by opening a link.
    let client = Browser::new(&app).get("/device?user_code=BCDF-GHJK").await;
    assert!(client.leads_to().unwrap().starts_with("/sign-in?next=%2Fdevice"));
}
