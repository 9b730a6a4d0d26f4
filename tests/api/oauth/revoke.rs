//! Tokens given back, and looked at.

use serde_json::{Value, json};

use crate::fixture::{
    Browser, TestApp,
    oauth::{OAuth, OAuthClient, claims},
};

async fn setting(app: &TestApp, client: &OAuthClient) -> (String, Value) {
    let dana = app.register("acme").await;
    let mut browser = Browser::of(app, &dana.email).await;
    let tokens = app.tokens_by(&mut browser, client, &[("scope", "call2me:write")]).await;
    (dana.access_token, tokens)
}

fn text<'a>(tokens: &'a Value, name: &str) -> &'a str {
    tokens[name].as_str().unwrap()
}

#[tokio::test]
async fn an_access_token_goes_alone_and_a_refresh_token_with_all() {
    let app = TestApp::start().await;
    let node = app.another_node().await;
    let client = app.confidential_client().await;
    let (dana, tokens) = setting(&app, &client).await;
    let refresh = text(&tokens, "refresh_token");
    let other = app.refresh(&client, refresh).await.expect(200);
    let revoke = |token: &str| {
        let fields = [("token", token.to_owned()), ("token_type_hint", "refresh_token".to_owned())];
        let (app, client) = (&app, client.clone());
        async move {
            let fields = fields.each_ref().map(|(name, value)| (*name, &**value));
            app.oauth("/oauth/revoke", &client.shows(&fields)).await
        }
    };
    for node in [&app, &node] {
        node.by(text(&tokens, "access_token"), "GET", "/v1/agents").send().await.expect(200);
    }
    assert_eq!(revoke(text(&tokens, "access_token")).await.status, 200);
    for node in [&app, &node] {
        let gone = node.by(text(&tokens, "access_token"), "GET", "/v1/agents").send().await;
        gone.refused(401, "unauthorized");
        node.by(text(&other, "access_token"), "GET", "/v1/agents").send().await.expect(200);
    }
    let third = app.refresh(&client, refresh).await.expect(200);
    for _ in 0..2 {
        assert_eq!(revoke(refresh).await.status, 200);
    }
    for token in [&other, &third] {
        let gone = node.by(text(token, "access_token"), "GET", "/v1/agents").send().await;
        gone.refused(401, "unauthorized");
    }
    app.refresh(&client, refresh).await.told(400, "invalid_grant");
    let events = app.events(&dana, "", |event| event["action"] == "oauth.grant_ended").await;
    let ended = events.iter().find(|event| event["action"] == "oauth.grant_ended").unwrap();
    assert_eq!(
        (&ended["actor"]["id"], &ended["metadata"]["reason"]),
        (&json!(client.id), &json!("client"))
    );
}

#[tokio::test]
async fn what_is_nobodys_needs_no_revoking_and_what_is_anothers_is_left_alone() {
    let app = TestApp::start().await;
    let (client, other) = (app.oauth_client(json!({})).await, app.confidential_client().await);
    let (dana, tokens) = setting(&app, &client).await;
    let revoke = |by: &OAuthClient, token: &str| {
        let (app, by, token) = (&app, by.clone(), token.to_owned());
        async move { app.oauth("/oauth/revoke", &by.shows(&[("token", &token)])).await }
    };
    for nothing in ["x", "rt_call2me_x", "a.b.c", &text(&tokens, "refresh_token")[..80]] {
        assert_eq!(revoke(&client, nothing).await.status, 200, "{nothing}");
    }
    for name in ["access_token", "refresh_token"] {
        revoke(&other, text(&tokens, name)).await.told(400, "invalid_grant");
    }
    revoke(&client, &dana).await.told(400, "invalid_grant");
    revoke(&client, "sk_call2me_live_x").await.told(400, "unsupported_token_type");
    app.oauth("/oauth/revoke", &client.shows(&[])).await.told(400, "invalid_request");
    app.oauth("/oauth/revoke", &[("token", "x")]).await.told(401, "invalid_client");
    app.by(text(&tokens, "access_token"), "GET", "/v1/agents").send().await.expect(200);
    app.refresh(&client, text(&tokens, "refresh_token")).await.expect(200);
}

#[tokio::test]
async fn a_token_is_looked_at_by_those_whom_it_concerns() {
    let app = TestApp::start().await;
    let (client, stranger) = (app.confidential_client().await, app.confidential_client().await);
    let public = app.oauth_client(json!({})).await;
    let (dana, tokens) = setting(&app, &client).await;
    let body = json!({ "name": "api", "grant_types": ["client_credentials"] });
    let made = app.by(&dana, "POST", "/v1/oauth/clients").json(body).send().await.expect(201);
    let (neighbour, token) = (OAuthClient::of(&made), text(&tokens, "access_token"));
    let look = |by: &OAuthClient, token: &str| {
        let (app, by, token) = (&app, by.clone(), token.to_owned());
        async move { app.oauth("/oauth/introspect", &by.shows(&[("token", &token)])).await }
    };
    let claims = claims(token);
    for by in [&client, &neighbour] {
        let seen = look(by, token).await.expect(200);
        assert_eq!(seen["active"], true);
        assert_eq!(seen["scope"], "call2me:read call2me:write");
        for name in ["client_id", "sub", "aud", "iss", "exp", "iat", "jti", "workspace_id"] {
            assert_eq!(seen[name], claims[name], "{name}");
        }
        assert_eq!(seen["token_type"], "Bearer");
    }
    let refresh = look(&client, text(&tokens, "refresh_token")).await.expect(200);
    assert_eq!((&refresh["active"], &refresh["sub"]), (&json!(true), &claims["sub"]));
    let nothing = json!({ "active": false });
    for (by, what) in [
        (&stranger, token),
        (&stranger, text(&tokens, "refresh_token")),
        (&neighbour, text(&tokens, "refresh_token")),
        (&client, &*dana),
        (&client, "x"),
        (&client, "a.b.c"),
        (&client, "rt_call2me_x"),
    ] {
        assert_eq!(look(by, what).await.expect(200), nothing, "{what}");
    }
    look(&public, token).await.told(401, "invalid_client");
    app.oauth("/oauth/introspect", &[("token", token)]).await.told(401, "invalid_client");
    app.oauth("/oauth/introspect", &client.shows(&[])).await.told(400, "invalid_request");
    // Ended is ended.
    app.oauth("/oauth/revoke", &client.shows(&[("token", text(&tokens, "refresh_token"))]))
        .await
        .expect(200);
    for token in [token, text(&tokens, "refresh_token")] {
        assert_eq!(look(&client, token).await.expect(200), nothing);
    }
}
