//! The token endpoint: authorization codes, refresh tokens and client credentials.

use std::time::Duration;

use serde_json::json;

use crate::fixture::{
    Browser, TestApp, TestClient,
    oauth::{CODE_VERIFIER, OAuthExt, basic_authorization, decode_claims, encode_form},
};

#[tokio::test]
async fn code_works_once_and_reuse_with_verifier_ends_grant() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let (client, other) =
        (app.register_client(json!({})).await, app.register_client(json!({})).await);
    let mut browser = Browser::signed_in(&app, &dana.email).await;
    let code = app.obtain_code(&mut browser, &client, &[]).await;
    let redeem_fields = |verifier: &'static str| {
        [("grant_type", "authorization_code"), ("code", &*code), ("code_verifier", verifier)]
    };
    let wrong_verifier = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXK";
    // A request that does not match the code leaves it valid.
    app.request_token(&client.with_client_credentials(&redeem_fields(wrong_verifier)))
        .await
        .assert_oauth_error(400, "invalid_grant");
    app.request_token(&client.with_client_credentials(&redeem_fields("short")))
        .await
        .assert_oauth_error(400, "invalid_grant");
    app.request_token(&client.with_client_credentials(&redeem_fields("")))
        .await
        .assert_oauth_error(400, "invalid_request");
    app.request_token(&other.with_client_credentials(&redeem_fields(CODE_VERIFIER)))
        .await
        .assert_oauth_error(400, "invalid_grant");
    let other_redirect =
        [&redeem_fields(CODE_VERIFIER)[..], &[("redirect_uri", "https://client.example/x")]]
            .concat();
    app.request_token(&client.with_client_credentials(&other_redirect))
        .await
        .assert_oauth_error(400, "invalid_grant");

    let tokens = app
        .request_token(&client.with_client_credentials(&redeem_fields(CODE_VERIFIER)))
        .await
        .expect_status(200);
    let [access, refresh] =
        ["access_token", "refresh_token"].map(|name| tokens[name].as_str().unwrap());
    app.request_as(access, "GET", "/v1/agents").send().await.expect_status(200);
    // An attacker with the code alone cannot end the grant by replaying it.
    app.request_token(&client.with_client_credentials(&redeem_fields(wrong_verifier)))
        .await
        .assert_oauth_error(400, "invalid_grant");
    app.request_token(&other.with_client_credentials(&redeem_fields(CODE_VERIFIER)))
        .await
        .assert_oauth_error(400, "invalid_grant");
    app.request_as(access, "GET", "/v1/agents").send().await.expect_status(200);

    app.request_token(&client.with_client_credentials(&redeem_fields(CODE_VERIFIER)))
        .await
        .assert_oauth_error(400, "invalid_grant");
    app.request_as(access, "GET", "/v1/agents").send().await.assert_error(401, "unauthorized");
    app.refresh_token(&client, refresh).await.assert_oauth_error(400, "invalid_grant");
    let reuse = app
        .wait_for_event_count(&dana.access_token, "action=oauth.reuse_detected", 1)
        .await
        .remove(0);
    assert_eq!(
        (&reuse["actor"]["id"], &reuse["metadata"]["reason"]),
        (&json!(client.id), &json!("code_reuse"))
    );
}

#[tokio::test]
async fn code_expires_after_one_minute() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let client = app.register_client(json!({})).await;
    let mut browser = Browser::signed_in(&app, &dana.email).await;
    let code = app.obtain_code(&mut browser, &client, &[]).await;
    let late = app.obtain_code(&mut browser, &client, &[("prompt", "consent")]).await;
    app.clock.advance(Duration::from_secs(59));
    app.redeem_code(&client, &code).await.expect_status(200);
    app.clock.advance(Duration::from_secs(1));
    app.redeem_code(&client, &late).await.assert_oauth_error(400, "invalid_grant");
    for code in ["", "x", &code[1..], &late.to_lowercase()] {
        let error = if code.is_empty() { "invalid_request" } else { "invalid_grant" };
        app.redeem_code(&client, code).await.assert_oauth_error(400, error);
    }
}

#[tokio::test]
async fn hundred_concurrent_redemptions_succeed_once() {
    let app = TestApp::start().await;
    let node = app.another_node().await;
    let dana = app.register("acme").await;
    let client = app.register_client(json!({})).await;
    let mut browser = Browser::signed_in(&app, &dana.email).await;
    let code = app.obtain_code(&mut browser, &client, &[]).await;
    let requests = (0..100)
        .map(|n| if n % 2 == 0 { &app } else { &node })
        .map(|node| node.redeem_code(&client, &code));
    let answers = futures_util::future::join_all(requests).await;
    let succeeded = answers.iter().filter(|answer| answer.status == 200).count();
    let rejected = answers.iter().filter(|answer| answer.body["error"] == "invalid_grant").count();
    assert_eq!((succeeded, rejected), (1, 99));
}

#[tokio::test]
async fn public_client_refresh_token_rotates_and_can_be_retried() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let client = app.register_client(json!({})).await;
    let mut browser = Browser::signed_in(&app, &dana.email).await;
    let tokens = app.obtain_tokens(&mut browser, &client, &[]).await;
    let first = tokens["refresh_token"].as_str().unwrap();
    let text = |body: &serde_json::Value| body["refresh_token"].as_str().unwrap().to_owned();

    let answer = app.refresh_token(&client, first).await.expect_status(200);
    let second = text(&answer);
    assert_ne!(second, first);
    assert_ne!(answer["access_token"], tokens["access_token"]);
    // The response was lost. The client retries ten minutes later and ten days later.
    app.clock.advance(Duration::from_mins(10));
    assert_eq!(text(&app.refresh_token(&client, first).await.expect_status(200)), second);
    app.clock.advance(Duration::from_hours(240));
    assert_eq!(text(&app.refresh_token(&client, first).await.expect_status(200)), second);
    // Once the successor is used, its predecessor counts as reused.
    let third = text(&app.refresh_token(&client, &second).await.expect_status(200));
    assert_eq!(text(&app.refresh_token(&client, &second).await.expect_status(200)), third);
    app.refresh_token(&client, first).await.assert_oauth_error(400, "invalid_grant");
    app.refresh_token(&client, &third).await.assert_oauth_error(400, "invalid_grant");
    let dana = app.add_member(&dana, "admin").await;
    let reuse =
        app.wait_for_event_count(&dana.access_token, "action=oauth.reuse_detected", 1).await;
    assert_eq!(reuse[0]["metadata"]["reason"], "refresh_token_reuse");
}

#[tokio::test]
async fn hundred_concurrent_refreshes_get_same_successor() {
    let app = TestApp::start().await;
    let node = app.another_node().await;
    let dana = app.register("acme").await;
    let client = app.register_client(json!({})).await;
    let mut browser = Browser::signed_in(&app, &dana.email).await;
    let tokens = app.obtain_tokens(&mut browser, &client, &[]).await;
    let first = tokens["refresh_token"].as_str().unwrap();
    let requests = (0..100)
        .map(|n| if n % 2 == 0 { &app } else { &node })
        .map(|node| node.refresh_token(&client, first));
    let answers = futures_util::future::join_all(requests).await;
    let mut successors: Vec<_> = answers
        .into_iter()
        .map(|answer| answer.expect_status(200)["refresh_token"].to_string())
        .collect();
    successors.sort();
    successors.dedup();
    assert_eq!(successors.len(), 1);
}

/// Advances the clock by months and creates the audit log partitions for them.
async fn advance_clock(app: &TestApp, by: Duration) {
    app.clock.advance(by);
    app.database.create_audit_partitions(app.app.env.clock.now()).await;
}

#[tokio::test]
async fn confidential_client_refresh_token_does_not_rotate() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let client = app.register_confidential_client().await;
    let mut browser = Browser::signed_in(&app, &dana.email).await;
    let tokens = app.obtain_tokens(&mut browser, &client, &[]).await;
    let token = tokens["refresh_token"].as_str().unwrap();
    for _ in 0..3 {
        let answer = app.refresh_token(&client, token).await.expect_status(200);
        assert_eq!(answer["refresh_token"], token);
        let access = answer["access_token"].as_str().unwrap();
        app.request_as(access, "GET", "/v1/agents").send().await.expect_status(200);
    }
    // Without the client secret, the refresh token is rejected.
    let mut stolen = client.clone();
    stolen.secret = None;
    app.refresh_token(&stolen, token).await.assert_oauth_error(401, "invalid_client");
    // A grant expires after ninety days without use.
    advance_clock(&app, Duration::from_hours(89 * 24)).await;
    app.refresh_token(&client, token).await.expect_status(200);
    advance_clock(&app, Duration::from_hours(90 * 24)).await;
    app.refresh_token(&client, token).await.assert_oauth_error(400, "invalid_grant");
}

#[tokio::test]
async fn refresh_can_narrow_but_not_widen_scope() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let client = app.register_client(json!({})).await;
    let mut browser = Browser::signed_in(&app, &dana.email).await;
    let tokens = app.obtain_tokens(&mut browser, &client, &[("scope", "call2me:write")]).await;
    let mut token = tokens["refresh_token"].as_str().unwrap().to_owned();
    for (requested, granted) in [
        ("call2me:read", "call2me:read"),
        ("call2me:read call2me:write call2me:admin", "call2me:read call2me:write"),
        ("offline_access call2me:read", "call2me:read"),
        ("", "call2me:read call2me:write"),
    ] {
        let fields =
            [("grant_type", "refresh_token"), ("refresh_token", &*token), ("scope", requested)];
        let answer =
            app.request_token(&client.with_client_credentials(&fields)).await.expect_status(200);
        assert_eq!(answer["scope"], granted, "{requested}");
        let decoded = decode_claims(answer["access_token"].as_str().unwrap());
        assert_eq!(decoded["scope"], granted);
        answer["refresh_token"].as_str().unwrap().clone_into(&mut token);
    }
}

#[tokio::test]
async fn foreign_refresh_token_is_rejected() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let client = app.register_client(json!({})).await;
    let other = app.register_confidential_client().await;
    let mut browser = Browser::signed_in(&app, &dana.email).await;
    let tokens = app.obtain_tokens(&mut browser, &client, &[]).await;
    let token = tokens["refresh_token"].as_str().unwrap();
    app.refresh_token(&other, token).await.assert_oauth_error(400, "invalid_grant");
    // Refresh tokens of sessions and of grants are not interchangeable.
    app.refresh_token(&client, &dana.refresh_token).await.assert_oauth_error(400, "invalid_grant");
    let body = json!({ "refresh_token": token });
    app.post("/v1/auth/refresh").json(body).send().await.assert_error(401, "invalid_refresh_token");
    app.request_as(token, "GET", "/v1/agents").send().await.assert_error(401, "unauthorized");
    for forged in ["", "rt_call2me_x", &dana.access_token, &token[..token.len() - 1]] {
        let error = if forged.is_empty() { "invalid_request" } else { "invalid_grant" };
        app.refresh_token(&client, forged).await.assert_oauth_error(400, error);
    }
    app.refresh_token(&client, token).await.expect_status(200);
}

#[tokio::test]
async fn client_authenticates_with_exactly_one_method() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let (public, confidential) =
        (app.register_client(json!({})).await, app.register_confidential_client().await);
    let client_secret = confidential.secret.as_deref().unwrap();
    let mut browser = Browser::signed_in(&app, &dana.email).await;
    let tokens = app.obtain_tokens(&mut browser, &confidential, &[]).await;
    let token = tokens["refresh_token"].as_str().unwrap();
    let refresh = [("grant_type", "refresh_token"), ("refresh_token", token)];
    let refresh_with = |header: String, extra: &[(&str, &str)]| {
        let body = encode_form(&[&refresh[..], extra].concat());
        let post = app.post("/oauth/token").header("authorization", &header);
        post.body("application/x-www-form-urlencoded;charset=UTF-8", body).send()
    };
    refresh_with(basic_authorization(&confidential.id, client_secret), &[])
        .await
        .expect_status(200);
    refresh_with(
        basic_authorization(&confidential.id, client_secret),
        &[("client_id", &confidential.id)],
    )
    .await
    .expect_status(200);
    // RFC 6749 requires percent-encoding, and some clients encode more than necessary.
    let encoded = |text: &str| text.replace('_', "%5F").replace('-', "%2D");
    refresh_with(basic_authorization(&encoded(&confidential.id), &encoded(client_secret)), &[])
        .await
        .expect_status(200);

    let wrong = refresh_with(basic_authorization(&confidential.id, "cs_call2me_x"), &[]).await;
    wrong.assert_oauth_error(401, "invalid_client");
    assert!(wrong.header("www-authenticate").starts_with("Basic "));
    refresh_with(basic_authorization(&confidential.id, ""), &[])
        .await
        .assert_oauth_error(401, "invalid_client");
    refresh_with(basic_authorization("client_01jd0zt8q7f7qvs4p2k6x3m9ab", client_secret), &[])
        .await
        .assert_oauth_error(401, "invalid_client");
    refresh_with("Basic !!!".to_owned(), &[]).await.assert_oauth_error(401, "invalid_client");
    refresh_with(format!("Bearer {}", dana.access_token), &[])
        .await
        .assert_oauth_error(401, "invalid_client");
    refresh_with(
        basic_authorization(&confidential.id, client_secret),
        &[("client_secret", client_secret)],
    )
    .await
    .assert_oauth_error(400, "invalid_request");
    refresh_with(
        basic_authorization(&confidential.id, client_secret),
        &[("client_id", &public.id)],
    )
    .await
    .assert_oauth_error(400, "invalid_request");

    app.request_token(&refresh).await.assert_oauth_error(401, "invalid_client");
    let mut repeated = confidential.with_client_credentials(&refresh);
    repeated.push(("client_id", &confidential.id));
    app.request_token(&repeated).await.assert_oauth_error(400, "invalid_request");
    let mut impostor = public.clone();
    impostor.secret = confidential.secret.clone();
    app.request_token(&impostor.with_client_credentials(&refresh))
        .await
        .assert_oauth_error(401, "invalid_client");
}

#[tokio::test]
async fn malformed_token_request_gets_rfc_6749_error() {
    let app = TestApp::start_with(&[("server.max_body_bytes", "20000")]).await;
    let client = app.register_client(json!({})).await;
    let send = |fields: &[(&'static str, &'static str)]| {
        let fields = fields.to_vec();
        let (app, client) = (&app, &client);
        async move { app.request_token(&client.with_client_credentials(&fields)).await }
    };
    send(&[]).await.assert_oauth_error(400, "invalid_request");
    send(&[("grant_type", "password"), ("username", "a")])
        .await
        .assert_oauth_error(400, "unsupported_grant_type");
    send(&[("grant_type", "implicit")]).await.assert_oauth_error(400, "unsupported_grant_type");
    send(&[("grant_type", "client_credentials")])
        .await
        .assert_oauth_error(400, "unauthorized_client");
    let repeated = [("grant_type", "refresh_token"), ("grant_type", "refresh_token")];
    send(&repeated).await.assert_oauth_error(400, "invalid_request");
    let long: &'static str = Box::leak("x".repeat(5000).into_boxed_str());
    send(&[("grant_type", "refresh_token"), ("refresh_token", long)])
        .await
        .assert_oauth_error(400, "invalid_request");
    let send_body = |kind: &str, text: String| app.post("/oauth/token").body(kind, text).send();
    send_body("text/plain", "{}".to_owned()).await.assert_oauth_error(415, "invalid_request");
    send_body("application/x-www-form-urlencoded", "a=%zz".to_owned())
        .await
        .assert_oauth_error(400, "invalid_request");
    send_body("application/x-www-form-urlencoded", "x".repeat(30_000))
        .await
        .assert_oauth_error(413, "invalid_request");
    let many_fields = (0..20_000).map(|n| format!("{n}=1")).collect::<Vec<_>>().join("&");
    send_body("application/x-www-form-urlencoded", many_fields[..16_000].to_owned())
        .await
        .assert_oauth_error(400, "invalid_request");
    // Credentials in the URL are ignored.
    let query = encode_form(
        &client.with_client_credentials(&[("grant_type", "refresh_token"), ("refresh_token", "x")]),
    );
    let in_url = app.post(&format!("/oauth/token?{query}"));
    let in_url = in_url.body("application/x-www-form-urlencoded", "grant_type=refresh_token");
    in_url.send().await.assert_oauth_error(401, "invalid_client");
    app.get("/oauth/token").send().await.assert_error(405, "method_not_allowed");
    app.get("/oauth/nothing").send().await.assert_error(404, "not_found");
}

#[tokio::test]
async fn database_outage_is_never_reported_as_invalid_grant() {
    let app = TestApp::start_with(&[("database.acquire_timeout_seconds", "1")]).await;
    let dana = app.register("acme").await;
    let client = app.register_confidential_client().await;
    let mut browser = Browser::signed_in(&app, &dana.email).await;
    let code = app.obtain_code(&mut browser, &client, &[("prompt", "consent")]).await;
    let tokens = app.obtain_tokens(&mut browser, &client, &[]).await;
    let token = tokens["refresh_token"].as_str().unwrap();
    app.database.allow_connections(false).await;
    for answer in [app.refresh_token(&client, token).await, app.redeem_code(&client, &code).await] {
        answer.assert_oauth_error(503, "temporarily_unavailable");
        assert!(answer.header_number("retry-after") >= 1);
    }
    let page = browser.get(&client.authorization_url(&[])).await;
    assert_eq!(page.status, 503, "{page:#?}");
    app.database.allow_connections(true).await;
    crate::fixture::eventually("PostgreSQL is back", async || {
        (app.refresh_token(&client, token).await.status == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn flood_is_rate_limited_and_valid_token_passes() {
    let app = TestApp::start_with(&[("rate_limit.per_address_per_minute", "30")]).await;
    let dana = app.register("acme").await;
    let client = app.register_confidential_client().await;
    let mut browser = Browser::signed_in(&app, &dana.email).await;
    let tokens = app.obtain_tokens(&mut browser, &client, &[]).await;
    let token = tokens["refresh_token"].as_str().unwrap();
    let mut last = None;
    for _ in 0..40 {
        last = Some(app.refresh_token(&client, "rt_call2me_guess").await);
    }
    let last = last.unwrap();
    last.assert_oauth_error(429, "temporarily_unavailable");
    assert!(last.header_number("retry-after") >= 1);
    // A flood from the same address does not block valid tokens.
    app.refresh_token(&client, token).await.expect_status(200);
}

/// If the workspace requires a second factor, grants of users without one are suspended and not
/// ended.
#[tokio::test]
async fn missing_second_factor_suspends_tokens_and_ends_no_grant() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let client = app.register_confidential_client().await;
    let mut browser = Browser::signed_in(&app, &dana.email).await;
    let tokens = app.obtain_tokens(&mut browser, &client, &[]).await;
    let [access, refresh] =
        ["access_token", "refresh_token"].map(|name| tokens[name].as_str().unwrap());
    let require_second_factor = async |is_required: bool| {
        let mut connection = app.database.connect().await;
        let sql = "UPDATE workspaces SET require_second_factor = $1";
        sqlx::query(sql).bind(is_required).execute(&mut connection).await.unwrap();
        app.database.wait_for_invalidation().await;
    };
    require_second_factor(true).await;
    let response = app.refresh_token(&client, refresh).await;
    response.assert_oauth_error(503, "temporarily_unavailable");
    assert_eq!(response.header_number("retry-after"), 60);
    let fields = client.with_client_credentials(&[("token", refresh)]);
    assert_eq!(
        app.post_form("/oauth/introspect", &fields).await.expect_status(200),
        json!({ "active": false })
    );
    // A token that is revoked meanwhile stays revoked.
    app.post_form("/oauth/revoke", &client.with_client_credentials(&[("token", access)]))
        .await
        .expect_status(200);
    require_second_factor(false).await;
    app.request_as(access, "GET", "/v1/agents").send().await.assert_error(401, "unauthorized");
    app.refresh_token(&client, refresh).await.expect_status(200);
}

/// A client id is public. A flood of wrong secrets leaves a few events and a count in the log of
/// the client's workspace, at each endpoint.
#[tokio::test]
async fn flood_of_wrong_client_secrets_does_not_fill_audit_log() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let body = json!({ "name": "Booking", "redirect_uris": ["https://client.example/cb"] });
    let created =
        app.request_as(&dana.access_token, "POST", "/v1/oauth/clients").json(body).send().await;
    let client = crate::fixture::oauth::OAuthClient::from_registration(&created.expect_status(201));
    let form = "application/x-www-form-urlencoded";
    let token = "grant_type=client_credentials&token=x";
    let with_secret = format!("{token}&client_id={}&client_secret=wrong", client.id);
    let without_secret = format!("{token}&client_id={}", client.id);
    let reject = async |path: &str, body: &str| {
        let answer = app.post(path).body(form, body.to_owned()).send().await;
        answer.assert_oauth_error(401, "invalid_client");
    };
    for _ in 0..10 {
        reject("/oauth/token", &with_secret).await;
        reject("/oauth/token", &without_secret).await;
        reject("/oauth/revoke", &with_secret).await;
    }
    let query = "action=oauth.client_rejected";
    app.wait_for_event_count(&dana.access_token, query, 10).await;
    app.clock.advance(Duration::from_mins(1));
    reject("/oauth/introspect", &with_secret).await;
    let events = app.wait_for_event_count(&dana.access_token, query, 11).await;
    assert_eq!(events[0]["metadata"]["unrecorded"], 20, "{events:#?}");
}

#[tokio::test]
async fn rejected_token_request_is_logged_with_client_name() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let body = json!({ "name": "Booking", "redirect_uris": ["https://client.example/cb"] });
    let created =
        app.request_as(&dana.access_token, "POST", "/v1/oauth/clients").json(body).send().await;
    let client = crate::fixture::oauth::OAuthClient::from_registration(&created.expect_status(201));
    let mut browser = Browser::signed_in(&app, &dana.email).await;
    let code = app.obtain_code(&mut browser, &client, &[]).await;
    let mut impostor = client.clone();
    impostor.secret = Some("cs_call2me_wrong".to_owned());
    app.redeem_code(&impostor, &code).await.assert_oauth_error(401, "invalid_client");
    let rejected =
        app.wait_for_event_count(&dana.access_token, "action=oauth.client_rejected", 1).await;
    assert_eq!(rejected[0]["target"]["name"], "Booking");
    app.clock.advance(Duration::from_mins(2));
    app.redeem_code(&client, &code).await.assert_oauth_error(400, "invalid_grant");
    let event = app
        .wait_for_event_count(&dana.access_token, "action=oauth.token_refused", 1)
        .await
        .remove(0);
    assert_eq!(
        (&event["actor"]["id"], &event["metadata"]["user_id"]),
        (&json!(client.id), &json!(dana.user_id))
    );
}

/// The rate limit also applies to the tokens that one grant gets.
#[tokio::test]
async fn tokens_per_grant_are_rate_limited() {
    let app = TestApp::start_with(&[("rate_limit.per_key_per_minute", "5")]).await;
    let dana = app.register("acme").await;
    let client = app.register_confidential_client().await;
    let mut browser = Browser::signed_in(&app, &dana.email).await;
    let tokens = app.obtain_tokens(&mut browser, &client, &[]).await;
    let token = tokens["refresh_token"].as_str().unwrap();
    for _ in 0..4 {
        app.refresh_token(&client, token).await.expect_status(200);
    }
    let limited = app.refresh_token(&client, token).await;
    limited.assert_oauth_error(429, "temporarily_unavailable");
    app.clock.advance(Duration::from_secs(limited.header_number("retry-after").unsigned_abs()));
    app.refresh_token(&client, token).await.expect_status(200);
}

#[tokio::test]
async fn client_credentials_act_in_workspace_of_client() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let body = json!({ "name": "Robot", "grant_types": ["client_credentials"], "scope": "write" });
    let created =
        app.request_as(&dana.access_token, "POST", "/v1/oauth/clients").json(body).send().await;
    let client = crate::fixture::oauth::OAuthClient::from_registration(&created.expect_status(201));
    let fields = [("grant_type", "client_credentials")];
    let tokens =
        app.request_token(&client.with_client_credentials(&fields)).await.expect_status(200);
    assert_eq!(
        (&tokens["scope"], &tokens["refresh_token"]),
        (&json!("call2me:read call2me:write"), &json!(null))
    );
    let token = tokens["access_token"].as_str().unwrap();
    let claims = decode_claims(token);
    assert_eq!((&claims["sub"], &claims["client_id"]), (&json!(client.id), &json!(client.id)));
    app.request_as(token, "POST", "/v1/agents")
        .json(json!({ "agent_name": "a" }))
        .send()
        .await
        .expect_status(201);
    let me = app.request_as(token, "GET", "/v1/auth/me").send().await.expect_status(200);
    assert_eq!((&me["subject"]["type"], me.get("user")), (&json!("oauth_client"), None));
    app.request_as(token, "GET", "/v1/users/me").send().await.assert_error(404, "not_found");
    // The scope is limited to that of the client.
    let more = [("grant_type", "client_credentials"), ("scope", "call2me:admin")];
    let more = app.request_token(&client.with_client_credentials(&more)).await.expect_status(200);
    assert_eq!(more["scope"], "call2me:read call2me:write");
    // Deleting the client ends its tokens.
    let path = format!("/v1/oauth/clients/{}", client.id);
    app.request_as(&dana.access_token, "DELETE", &path).send().await.expect_status(204);
    app.request_as(token, "GET", "/v1/agents").send().await.assert_error(401, "unauthorized");
    app.request_token(&client.with_client_credentials(&fields))
        .await
        .assert_oauth_error(401, "invalid_client");
}

#[tokio::test]
async fn concurrent_client_credentials_requests_share_one_grant() {
    let app = TestApp::start().await;
    let node = app.another_node().await;
    let dana = app.register("acme").await;
    let body = json!({ "name": "Robot", "grant_types": ["client_credentials"] });
    let created =
        app.request_as(&dana.access_token, "POST", "/v1/oauth/clients").json(body).send().await;
    let client = crate::fixture::oauth::OAuthClient::from_registration(&created.expect_status(201));
    let fields = [("grant_type", "client_credentials")];
    let requests = (0..20)
        .map(|n| if n % 2 == 0 { &app } else { &node })
        .map(async |node| node.request_token(&client.with_client_credentials(&fields)).await);
    let answers = futures_util::future::join_all(requests).await;
    let grants: std::collections::HashSet<_> = answers
        .into_iter()
        .map(|answer| {
            decode_claims(answer.expect_status(200)["access_token"].as_str().unwrap())["sid"]
                .clone()
        })
        .map(|sid| sid.to_string())
        .collect();
    assert_eq!(grants.len(), 1, "{grants:?}");
}

#[tokio::test]
async fn token_audience_is_the_requested_resource() {
    let mcp = "https://mcp.example/mcp";
    let app = TestApp::start_with(&[("oauth.resources", "https://mcp.example/mcp")]).await;
    let dana = app.register("acme").await;
    let client = app.register_client(json!({})).await;
    let mut browser = Browser::signed_in(&app, &dana.email).await;
    let tokens =
        app.obtain_tokens(&mut browser, &client, &[("resource", "https://mcp.example/mcp/")]).await;
    let token = tokens["access_token"].as_str().unwrap();
    assert_eq!(decode_claims(token)["aud"], mcp);
    // The token is not valid for this API.
    app.request_as(token, "GET", "/v1/agents").send().await.assert_error(401, "unauthorized");
    let refresh = |token: String, resource: &'static str| {
        let client = client.clone();
        let app = &app;
        async move {
            let fields = [
                ("grant_type", "refresh_token"),
                ("refresh_token", &*token),
                ("resource", resource),
            ];
            app.request_token(&client.with_client_credentials(&fields)).await
        }
    };
    let refresh_token = tokens["refresh_token"].as_str().unwrap().to_owned();
    refresh(refresh_token.clone(), "https://elsewhere.example")
        .await
        .assert_oauth_error(400, "invalid_target");
    refresh(refresh_token.clone(), "https://mcp.example")
        .await
        .assert_oauth_error(400, "invalid_target");
    let own_url = app.url.clone();
    refresh(refresh_token.clone(), Box::leak(own_url.into_boxed_str()))
        .await
        .assert_oauth_error(400, "invalid_target");
    let again = refresh(refresh_token, mcp).await.expect_status(200);
    assert_eq!(decode_claims(again["access_token"].as_str().unwrap())["aud"], mcp);

    // A token for both resources is accepted by either.
    let both = client.authorization_url(&[("resource", mcp), ("prompt", "consent")])
        + &format!("&resource={}", encode_form(&[("x", &app.url)]).trim_start_matches("x="));
    let page = browser.get(&both).await;
    let (_, params) =
        crate::fixture::oauth::redirect_parameters(&browser.submit_consent(&page, &[]).await);
    let tokens = app.redeem_code(&client, &params["code"]).await.expect_status(200);
    let token = tokens["access_token"].as_str().unwrap();
    assert_eq!(decode_claims(token)["aud"], json!([mcp, app.url]));
    app.request_as(token, "GET", "/v1/agents").send().await.expect_status(200);
}

#[tokio::test]
async fn oauth_token_cannot_manage_keys_clients_or_members() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let member = app.add_member(&dana, "member").await;
    let client = app.register_client(json!({})).await;
    let mut browser = Browser::signed_in(&app, &dana.email).await;
    let tokens = app.obtain_tokens(&mut browser, &client, &[("scope", "call2me:admin")]).await;
    let token = tokens["access_token"].as_str().unwrap();
    app.request_as(token, "GET", "/v1/members").send().await.expect_status(200);
    let path = format!("/v1/members/{}", member.user_id);
    let invitation = json!({ "email": "a@new.example", "role": "viewer" });
    let uris = json!({ "name": "x", "redirect_uris": ["https://a.example/cb"] });
    for (method, path, body) in [
        ("POST", "/v1/api-keys", json!({ "name": "k" })),
        ("PATCH", &path, json!({ "role": "viewer" })),
        ("DELETE", &path, json!(null)),
        ("POST", "/v1/invitations", invitation),
        ("POST", "/v1/oauth/clients", uris),
        ("GET", "/v1/oauth/grants", json!(null)),
        ("GET", "/v1/auth/sessions", json!(null)),
        ("GET", "/v1/workspaces", json!(null)),
        ("POST", "/v1/auth/logout", json!(null)),
    ] {
        let call = app.request_as(token, method, path);
        let call = if body.is_null() { call } else { call.json(body) };
        call.send().await.assert_error(403, "forbidden");
    }
    let key = app.create_key(&dana, "old", "write").await;
    let path = format!("/v1/api-keys/{}", key.id);
    app.request_as(token, "DELETE", &path).send().await.expect_status(204);
}

#[tokio::test]
async fn form_above_16_kib_is_rejected() {
    let app = TestClient::shared();
    for path in ["/oauth/token", "/oauth/revoke", "/oauth/introspect"] {
        let form = format!("client_id=x&token={}", "a".repeat(16 * 1024));
        let post = app.post(path).body("application/x-www-form-urlencoded", form.clone());
        post.send().await.assert_oauth_error(413, "invalid_request");
        let stream = futures_util::stream::iter([Ok::<_, std::io::Error>(form)]);
        let chunked = reqwest::Body::wrap_stream(stream);
        let post = app.post(path).body("application/x-www-form-urlencoded", chunked);
        post.send().await.assert_oauth_error(413, "invalid_request");
    }
}
