//! Token revocation (RFC 7009) and introspection (RFC 7662).

use std::time::Duration;

use serde_json::{Value, json};

use crate::fixture::{
    Browser, TestApp, TestClient,
    oauth::{DEVICE_GRANT, OAuthClient, OAuthExt, decode_claims},
};

async fn issue_tokens(app: &TestClient, client: &OAuthClient) -> (String, Value) {
    let dana = app.register("acme").await;
    let mut browser = Browser::signed_in(app, &dana.email).await;
    let tokens = app.obtain_tokens(&mut browser, client, &[("scope", "call2me:write")]).await;
    (dana.access_token, tokens)
}

fn text_field<'a>(tokens: &'a Value, name: &str) -> &'a str {
    tokens[name].as_str().unwrap()
}

#[tokio::test]
async fn access_token_is_revoked_alone_and_refresh_token_with_grant() {
    let app = TestApp::start().await;
    let node = app.another_node().await;
    let client = app.register_confidential_client().await;
    let (dana, tokens) = issue_tokens(&app, &client).await;
    let refresh = text_field(&tokens, "refresh_token");
    let other = app.refresh_token(&client, refresh).await.expect_status(200);
    let revoke = |token: &str| {
        let fields = [("token", token.to_owned()), ("token_type_hint", "refresh_token".to_owned())];
        let (app, client) = (&app, client.clone());
        async move {
            let fields = fields.each_ref().map(|(name, value)| (*name, &**value));
            app.post_form("/oauth/revoke", &client.with_client_credentials(&fields)).await
        }
    };
    for node in [&app, &node] {
        node.request_as(text_field(&tokens, "access_token"), "GET", "/v1/agents")
            .send()
            .await
            .expect_status(200);
    }
    assert_eq!(revoke(text_field(&tokens, "access_token")).await.status, 200);
    for node in [&app, &node] {
        let response =
            node.request_as(text_field(&tokens, "access_token"), "GET", "/v1/agents").send().await;
        response.assert_error(401, "unauthorized");
        node.request_as(text_field(&other, "access_token"), "GET", "/v1/agents")
            .send()
            .await
            .expect_status(200);
    }
    let third = app.refresh_token(&client, refresh).await.expect_status(200);
    for _ in 0..2 {
        assert_eq!(revoke(refresh).await.status, 200);
    }
    for token in [&other, &third] {
        let response =
            node.request_as(text_field(token, "access_token"), "GET", "/v1/agents").send().await;
        response.assert_error(401, "unauthorized");
    }
    app.refresh_token(&client, refresh).await.assert_oauth_error(400, "invalid_grant");
    let events =
        app.wait_for_event(&dana, "", |event| event["action"] == "oauth.grant_ended").await;
    let ended = events.iter().find(|event| event["action"] == "oauth.grant_ended").unwrap();
    assert_eq!(
        (&ended["actor"]["id"], &ended["metadata"]["reason"]),
        (&json!(client.id), &json!("client"))
    );
}

#[tokio::test]
async fn revoking_unknown_token_succeeds_and_foreign_token_fails() {
    let app = TestClient::shared();
    let (client, other) =
        (app.register_client(json!({})).await, app.register_confidential_client().await);
    let (dana, tokens) = issue_tokens(&app, &client).await;
    let revoke = |by: &OAuthClient, token: &str| {
        let (app, by, token) = (&app, by.clone(), token.to_owned());
        async move {
            app.post_form("/oauth/revoke", &by.with_client_credentials(&[("token", &token)])).await
        }
    };
    for unknown in ["x", "rt_call2me_x", "a.b.c", &text_field(&tokens, "refresh_token")[..80]] {
        assert_eq!(revoke(&client, unknown).await.status, 200, "{unknown}");
    }
    for name in ["access_token", "refresh_token"] {
        revoke(&other, text_field(&tokens, name)).await.assert_oauth_error(400, "invalid_grant");
    }
    revoke(&client, &dana).await.assert_oauth_error(400, "invalid_grant");
    revoke(&client, "sk_call2me_live_x").await.assert_oauth_error(400, "unsupported_token_type");
    app.post_form("/oauth/revoke", &client.with_client_credentials(&[]))
        .await
        .assert_oauth_error(400, "invalid_request");
    app.post_form("/oauth/revoke", &[("token", "x")])
        .await
        .assert_oauth_error(401, "invalid_client");
    app.request_as(text_field(&tokens, "access_token"), "GET", "/v1/agents")
        .send()
        .await
        .expect_status(200);
    app.refresh_token(&client, text_field(&tokens, "refresh_token")).await.expect_status(200);
}

#[tokio::test]
async fn requests_of_authenticated_clients_are_logged_up_to_the_rate_limit() {
    let app = TestApp::start_with(&[("rate_limit.per_key_per_minute", "300")]).await;
    let client = app.register_confidential_client().await;
    let (dana, tokens) = issue_tokens(&app, &client).await;
    let body = json!({ "name": "api", "grant_types": ["client_credentials", DEVICE_GRANT] });
    let created = app.request_as(&dana, "POST", "/v1/oauth/clients").json(body).send().await;
    let api = OAuthClient::from_registration(&created.expect_status(201));
    app.clock.advance(Duration::from_mins(1));
    let token = text_field(&tokens, "access_token");
    let post = async |path: &str, by: &OAuthClient, fields: &[(&str, &str)]| {
        app.post_form(path, &by.with_client_credentials(fields)).await.status.as_u16()
    };
    for (path, fields, status) in [
        ("/oauth/introspect", vec![("token", token)], 200),
        ("/oauth/introspect", vec![("token", "unknown")], 200),
        ("/oauth/introspect", vec![], 400),
        ("/oauth/revoke", vec![("token", "unknown")], 200),
        ("/oauth/device_authorization", vec![], 200),
    ] {
        assert_eq!(post(path, &api, &fields).await, status, "{path}");
    }
    // The client that registered itself has no workspace: the token's workspace logs the request.
    assert_eq!(post("/oauth/introspect", &client, &[("token", token)]).await, 200);
    assert_eq!(post("/oauth/introspect", &client, &[("token", "unknown")]).await, 200);
    let query = format!("actor_id={}&action=request", api.id);
    let events = app.wait_for_event_count(&dana, &query, 5).await;
    let requests: Vec<_> = events
        .iter()
        .rev()
        .map(|event| {
            assert_eq!(event["actor"]["name"], "api");
            (event["request"]["path"].as_str().unwrap(), event["request"]["status"].as_u64())
        })
        .collect();
    let expected = [
        ("/oauth/introspect", Some(200)),
        ("/oauth/introspect", Some(200)),
        ("/oauth/introspect", Some(400)),
        ("/oauth/revoke", Some(200)),
        ("/oauth/device_authorization", Some(200)),
    ];
    assert_eq!(requests, expected);
    let query = format!("actor_id={}&action=request", client.id);
    app.wait_for_event_count(&dana, &query, 1).await;
    // A flood is answered, and fills the log no more than other requests may.
    app.clock.advance(Duration::from_mins(1));
    for _ in 0..350 {
        assert_eq!(post("/oauth/introspect", &api, &[("token", "unknown")]).await, 200);
    }
    let mut connection = app.stop().await.connect().await;
    let count = "SELECT count(*) FROM audit_events WHERE path = '/oauth/introspect'
                 AND actor_name = 'api'";
    let count: i64 = sqlx::query_scalar(count).fetch_one(&mut connection).await.unwrap();
    assert_eq!(count, 3 + 300);
}

#[tokio::test]
async fn introspection_is_limited_to_related_clients() {
    let app = TestClient::shared();
    let (client, stranger) =
        (app.register_confidential_client().await, app.register_confidential_client().await);
    let public = app.register_client(json!({})).await;
    let (dana, tokens) = issue_tokens(&app, &client).await;
    let body = json!({ "name": "api", "grant_types": ["client_credentials"] });
    let made = app
        .request_as(&dana, "POST", "/v1/oauth/clients")
        .json(body)
        .send()
        .await
        .expect_status(201);
    let (neighbour, token) =
        (OAuthClient::from_registration(&made), text_field(&tokens, "access_token"));
    let introspect = |by: &OAuthClient, token: &str| {
        let (app, by, token) = (&app, by.clone(), token.to_owned());
        async move {
            app.post_form("/oauth/introspect", &by.with_client_credentials(&[("token", &token)]))
                .await
        }
    };
    let claims = decode_claims(token);
    for by in [&client, &neighbour] {
        let introspected = introspect(by, token).await.expect_status(200);
        assert_eq!(introspected["active"], true);
        assert_eq!(introspected["scope"], "call2me:read call2me:write");
        for name in ["client_id", "sub", "aud", "iss", "exp", "iat", "jti", "workspace_id"] {
            assert_eq!(introspected[name], claims[name], "{name}");
        }
        assert_eq!(introspected["token_type"], "Bearer");
    }
    let refresh =
        introspect(&client, text_field(&tokens, "refresh_token")).await.expect_status(200);
    assert_eq!((&refresh["active"], &refresh["sub"]), (&json!(true), &claims["sub"]));
    let inactive = json!({ "active": false });
    for (by, presented) in [
        (&stranger, token),
        (&stranger, text_field(&tokens, "refresh_token")),
        (&neighbour, text_field(&tokens, "refresh_token")),
        (&client, &*dana),
        (&client, "x"),
        (&client, "a.b.c"),
        (&client, "rt_call2me_x"),
    ] {
        assert_eq!(introspect(by, presented).await.expect_status(200), inactive, "{presented}");
    }
    introspect(&public, token).await.assert_oauth_error(401, "invalid_client");
    app.post_form("/oauth/introspect", &[("token", token)])
        .await
        .assert_oauth_error(401, "invalid_client");
    app.post_form("/oauth/introspect", &client.with_client_credentials(&[]))
        .await
        .assert_oauth_error(400, "invalid_request");
    // Tokens of an ended grant are inactive.
    app.post_form(
        "/oauth/revoke",
        &client.with_client_credentials(&[("token", text_field(&tokens, "refresh_token"))]),
    )
    .await
    .expect_status(200);
    for token in [token, text_field(&tokens, "refresh_token")] {
        assert_eq!(introspect(&client, token).await.expect_status(200), inactive);
    }
}
