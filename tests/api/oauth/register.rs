//! Dynamic client registration (RFC 7591).

use std::time::Duration;

use call2me_auth::env::Clock as _;
use serde_json::json;

use crate::fixture::{
    Browser, TestApp, TestClient,
    oauth::{OAuthClient, OAuthExt},
};

#[tokio::test]
async fn registration_response_contains_registered_metadata() {
    let app = TestApp::start().await;
    let body = json!({
        "redirect_uris": ["https://client.example/cb", "http://localhost:3000/cb", "cursor://x/cb"],
        "client_name": "Example", "client_uri": "https://client.example",
        "grant_types": ["authorization_code", "refresh_token", "implicit"],
        "response_types": ["code"], "scope": "call2me:write openid",
        "application_type": "web", "contacts": ["a@client.example"], "logo_uri": "https://client.example/x.png",
    });
    let answer = app.post("/oauth/register").json(body).send().await;
    assert_eq!(answer.header("cache-control"), "no-store");
    let client = answer.expect_status(201);
    assert!(client["client_id"].as_str().unwrap().starts_with("client_"));
    // The default method is `client_secret_basic` (RFC 7591, section 2).
    assert_eq!(client["token_endpoint_auth_method"], "client_secret_basic");
    assert!(client["client_secret"].as_str().unwrap().starts_with("cs_call2me_"));
    assert_eq!(client["client_secret_expires_at"], 0);
    assert_eq!(client["grant_types"], json!(["authorization_code", "refresh_token"]));
    assert_eq!(client["scope"], "call2me:read call2me:write");
    assert!(client["client_id_issued_at"].is_i64());
    let public =
        json!({ "redirect_uris": ["https://a.example/"], "token_endpoint_auth_method": "none" });
    let public = app.post("/oauth/register").json(public).send().await.expect_status(201);
    assert!(
        public.get("client_secret").is_none() && public.get("client_secret_expires_at").is_none()
    );
    assert_eq!(
        (&public["client_name"], &public["grant_types"]),
        (&json!("a.example"), &json!(["authorization_code"]))
    );
    assert!(public.as_object().unwrap().values().all(|value| !value.is_null()));
    // The secret is stored only as a digest.
    let mut connection = app.database.connect().await;
    let secret = client["client_secret"].as_str().unwrap();
    let stored: Vec<u8> = sqlx::query_scalar("SELECT digest FROM oauth_client_secrets")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    assert_eq!(
        stored,
        aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, secret.as_bytes()).as_ref()
    );
}

#[tokio::test]
async fn invalid_registration_metadata_is_rejected() {
    let app = TestClient::shared();
    let register = |body: serde_json::Value| app.post("/oauth/register").json(body).send();
    for uri in [
        "http://client.example/cb",
        "javascript:alert(1)",
        "data:text/html,x",
        "https://*.client.example/cb",
        "https://user@client.example/cb",
        "https://client.example/cb#x",
        "https://client.example;script-src/cb",
        "https://client.example,default-src/cb",
        "https://client.example%3bscript-src/cb",
        "myapp:/cb",
        "",
        "/cb",
    ] {
        let response = register(json!({ "redirect_uris": [uri] })).await;
        response.assert_oauth_error(400, "invalid_redirect_uri");
        // It is dropped if another one is valid.
        let uris = json!({ "redirect_uris": [uri, "https://a.example/", "https://b.example/"] });
        let client = register(uris).await.expect_status(201);
        assert_eq!(client["redirect_uris"], json!(["https://a.example/", "https://b.example/"]));
        assert_eq!(client["client_name"], "a.example");
    }
    register(json!({})).await.assert_oauth_error(400, "invalid_redirect_uri");
    for body in [
        json!({ "grant_types": ["client_credentials"] }),
        json!({ "redirect_uris": "https://a.example/" }),
        json!([]),
    ] {
        register(body).await.assert_oauth_error(400, "invalid_client_metadata");
    }
    let register_text =
        |text: &str| app.post("/oauth/register").body("application/json", text.to_owned()).send();
    register_text("").await.assert_oauth_error(400, "invalid_client_metadata");
    register_text("{").await.assert_oauth_error(400, "invalid_client_metadata");
}

#[tokio::test]
async fn client_is_registered_with_what_it_can_have() {
    let app = TestClient::shared();
    let uris: Vec<_> = (0..25).map(|n| format!("https://a.example/{n}")).collect();
    let long = "x".repeat(101);
    for (metadata, field, registered) in [
        (json!({ "redirect_uris": uris }), "redirect_uris", json!(uris[..20])),
        (
            json!({ "grant_types": ["authorization_code", "client_credentials", "password"] }),
            "grant_types",
            json!(["authorization_code"]),
        ),
        (
            json!({ "grant_types": ["client_credentials", "refresh_token"] }),
            "grant_types",
            json!(["authorization_code", "refresh_token"]),
        ),
        (json!({ "grant_types": ["implicit"] }), "grant_types", json!(["authorization_code"])),
        (json!({ "grant_types": [] }), "grant_types", json!(["authorization_code"])),
        (json!({ "response_types": ["token", "id_token"] }), "response_types", json!(["code"])),
        (json!({ "scope": "address phone" }), "scope", json!(null)),
        (json!({ "scope": "address,call2me:read" }), "scope", json!("call2me:read")),
        (
            json!({ "token_endpoint_auth_method": "private_key_jwt" }),
            "token_endpoint_auth_method",
            json!("client_secret_basic"),
        ),
        (json!({ "client_name": "" }), "client_name", json!("a.example")),
        (json!({ "client_name": " \n " }), "client_name", json!("a.example")),
        (json!({ "client_name": long }), "client_name", json!(long[..100])),
        (json!({ "client_name": "é".repeat(101) }), "client_name", json!("é".repeat(50))),
        (json!({ "client_name": "a\u{202e}b" }), "client_name", json!("ab")),
        (json!({ "client_name": "\u{3164}" }), "client_name", json!("a.example")),
        (json!({ "client_name": "a\nb" }), "client_name", json!("a b")),
        (json!({ "client_uri": "javascript:alert(1)" }), "client_uri", json!(null)),
    ] {
        let mut body = json!({ "redirect_uris": ["https://a.example/"] });
        body.as_object_mut().unwrap().extend(metadata.as_object().unwrap().clone());
        let client = app.post("/oauth/register").json(body).send().await.expect_status(201);
        assert_eq!(client.get(field).unwrap_or(&json!(null)), &registered, "{metadata}");
    }
}

#[tokio::test]
async fn client_without_refresh_grant_gets_no_refresh_token() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let client = app.register_client(json!({ "grant_types": ["authorization_code"] })).await;
    let mut browser = Browser::signed_in(&app, &dana.email).await;
    let tokens = app.obtain_tokens(&mut browser, &client, &[]).await;
    assert!(tokens.get("refresh_token").is_none(), "{tokens}");
    app.refresh_token(&client, "rt_call2me_x").await.assert_oauth_error(400, "unauthorized_client");
}

#[tokio::test]
async fn number_of_registrations_is_limited() {
    let app = TestApp::start_with(&[("rate_limit.sign_in_per_minute", "3")]).await;
    let body = json!({ "redirect_uris": ["https://a.example/"] });
    for _ in 0..6 * 3 {
        app.post("/oauth/register").json(body.clone()).send().await.expect_status(201);
    }
    let response = app.post("/oauth/register").json(body.clone()).send().await;
    response.assert_oauth_error(429, "temporarily_unavailable");
    assert!(response.header_number("retry-after") >= 1);
    // One address may have 200 registrations that no user has authorized. Then the newest replaces
    // the oldest, and no client that a user has authorized.
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let mut clients = Vec::new();
    for _ in 0..201 {
        clients.push(app.register_client(json!({})).await);
        if clients.len() == 1 {
            let mut user = Browser::signed_in(&app, &dana.email).await;
            app.obtain_tokens(&mut user, &clients[0], &[]).await;
        }
    }
    let exists = async |client: &OAuthClient| {
        let page = Browser::new(&app).get(&client.authorization_url(&[])).await;
        page.status == 303
    };
    assert!(exists(&clients[1]).await, "the used client does not count");
    clients.push(app.register_client(json!({})).await);
    for (index, is_expected) in [(0, true), (1, false), (2, true), (201, true)] {
        assert_eq!(exists(&clients[index]).await, is_expected, "{index}");
    }
    // The total is limited, too. Then the oldest registrations make room, so that a flood does not
    // keep others out.
    let app = TestApp::start_at_system_time(&[]).await;
    let mut connection = app.database.connect().await;
    let fill = "INSERT INTO oauth_clients (id, kind, name, redirect_uris, auth_method, grant_types, created_at)
                SELECT gen_random_uuid(), 'registered', 'x', '{}', 'none', '{}', $1
                FROM generate_series(1, 10000)";
    sqlx::query(fill).bind(app.clock.now()).execute(&mut connection).await.unwrap();
    let response = app.post("/oauth/register").json(body.clone()).send().await;
    response.assert_oauth_error(503, "temporarily_unavailable");
    let make_older = "UPDATE oauth_clients SET created_at = created_at - interval '2 hours'";
    sqlx::query(make_older).execute(&mut connection).await.unwrap();
    app.post("/oauth/register").json(body.clone()).send().await.expect_status(201);
    let count = "SELECT count(*) FROM oauth_clients";
    let remaining: i64 = sqlx::query_scalar(count).fetch_one(&mut connection).await.unwrap();
    assert_eq!(remaining, 10_000 - 100 + 1);
    // Unused registrations are deleted after a week.
    let make_older = "UPDATE oauth_clients SET created_at = created_at - interval '8 days'";
    sqlx::query(make_older).execute(&mut connection).await.unwrap();
    let idle = Duration::from_hours(90 * 24);
    app.app.store.prune_oauth(app.clock.now(), idle).await.unwrap();
    let remaining: i64 = sqlx::query_scalar(count).fetch_one(&mut connection).await.unwrap();
    assert_eq!(remaining, 0);
}
