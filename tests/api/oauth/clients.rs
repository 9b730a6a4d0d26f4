//! Workspace clients: OAuth clients that an administrator registers.

use std::time::Duration;

use serde_json::json;

use crate::fixture::{
    Browser, PASSWORD, TestApp, TestClient,
    oauth::{CALLBACK, CODE_VERIFIER, DEVICE_GRANT, OAuthClient, OAuthExt, redirect_parameters},
};

#[tokio::test]
async fn admin_creates_updates_and_deletes_clients() {
    let app = TestClient::shared();
    let (dana, sam) = (app.register("acme").await, app.register("widgets-inc").await);
    let by = |method: &str, path: &str| app.request_as(&dana.access_token, method, path);
    let body = json!({ "name": "Booking", "redirect_uris": [CALLBACK], "scope": "write" });
    let created = by("POST", "/v1/oauth/clients").json(body).send().await;
    let path = created.header("location").to_owned();
    let created = created.expect_status(201);
    let client = OAuthClient::from_registration(&created);
    assert_eq!(path, format!("/v1/oauth/clients/{}", client.id));
    let listed = by("GET", "/v1/oauth/clients").send().await.expect_status(200);
    assert_eq!((&listed["total"], listed["clients"][0].get("client_secret")), (&json!(1), None));

    // Users of other workspaces may authorize the client, for at most the client's own scope.
    let mut browser = Browser::signed_in(&app, &sam.email).await;
    let page = browser.get(&client.authorization_url(&[("scope", "call2me:admin")])).await;
    assert!(page.text.contains("Booking") && !page.text.contains("Administer"), "{}", page.text);
    let (_, params) = redirect_parameters(&browser.submit_consent(&page, &[]).await);
    let tokens = app.redeem_code(&client, &params["code"]).await.expect_status(200);
    assert_eq!(tokens["scope"], "call2me:read call2me:write");

    let change = json!({ "name": "Bookings", "redirect_uris": ["https://client.example/new"] });
    let changed = by("PATCH", &path).json(change).send().await.expect_status(200);
    assert_eq!(
        (&changed["name"], &changed["redirect_uris"][0]),
        (&json!("Bookings"), &json!("https://client.example/new"))
    );
    assert_eq!(browser.get(&client.authorization_url(&[])).await.status, 400);
    let token = tokens["access_token"].as_str().unwrap();
    let me = app.request_as(token, "GET", "/v1/auth/me").send().await.expect_status(200);
    assert_eq!(me["subject"]["name"], "Bookings");

    app.request_as(&sam.access_token, "DELETE", &path).send().await.assert_error(404, "not_found");
    by("DELETE", &path).send().await.expect_status(204);
    by("DELETE", &path).send().await.assert_error(404, "not_found");
    app.request_as(token, "GET", "/v1/agents").send().await.assert_error(401, "unauthorized");
    let events = app
        .wait_for_event(&dana.access_token, "", |event| event["action"] == "oauth.client_deleted")
        .await;
    let actions: Vec<_> = events
        .iter()
        .filter_map(|event| event["action"].as_str())
        .filter(|action| action.starts_with("oauth"))
        .collect();
    assert_eq!(actions, ["oauth.client_deleted", "oauth.client_updated", "oauth.client_created"]);
}

/// Grants of a client may belong to other workspaces than the client.
#[tokio::test]
async fn workspace_deletion_ends_grants_of_its_clients_elsewhere() {
    let app = TestApp::start().await;
    let node = app.another_node().await;
    let (dana, sam) = (app.register("acme").await, app.register("widgets-inc").await);
    let mut tokens = Vec::new();
    let mut browser = Browser::signed_in(&app, &sam.email).await;
    for n in 0..2 {
        let body = json!({ "name": format!("Booking {n}"), "redirect_uris": [CALLBACK] });
        let created =
            app.request_as(&dana.access_token, "POST", "/v1/oauth/clients").json(body).send().await;
        let client = OAuthClient::from_registration(&created.expect_status(201));
        let issued = app.obtain_tokens(&mut browser, &client, &[]).await;
        tokens.push((client, issued["access_token"].as_str().unwrap().to_owned()));
    }
    for node in [&app, &node] {
        for (_, token) in &tokens {
            node.request_as(token, "GET", "/v1/agents").send().await.expect_status(200);
        }
    }
    let path = format!("/v1/oauth/clients/{}", tokens[0].0.id);
    app.request_as(&dana.access_token, "DELETE", &path).send().await.expect_status(204);
    let body = json!({ "password": PASSWORD });
    let deleted =
        app.request_as(&dana.access_token, "DELETE", "/v1/workspace").json(body).send().await;
    deleted.expect_status(204);
    for node in [&app, &node] {
        for (_, token) in &tokens {
            node.request_as(token, "GET", "/v1/agents")
                .send()
                .await
                .assert_error(401, "unauthorized");
        }
    }
    // The events are in the log of the workspace that had granted access.
    let ended = app.wait_for_event_count(&sam.access_token, "action=oauth.grant_ended", 2).await;
    let names: Vec<_> = ended.iter().map(|event| &event["target"]["name"]).collect();
    assert_eq!(names, ["Booking 1", "Booking 0"]);
    assert!(ended.iter().all(|event| event["metadata"]["reason"] == "client_deleted"));
}

#[tokio::test]
async fn client_secret_is_rotated_without_downtime() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let by = |method: &str, path: &str| app.request_as(&dana.access_token, method, path);
    let body = json!({ "name": "Robot", "grant_types": ["client_credentials"] });
    let old = OAuthClient::from_registration(
        &by("POST", "/v1/oauth/clients").json(body).send().await.expect_status(201),
    );
    let path = format!("/v1/oauth/clients/{}/secret", old.id);
    let is_accepted = async |client: &OAuthClient| {
        let answer = app
            .request_token(&client.with_client_credentials(&[("grant_type", "client_credentials")]))
            .await;
        answer.status == 200
    };
    let rotate = async |seconds: u64| {
        let body = json!({ "overlap_seconds": seconds });
        OAuthClient::from_registration(
            &by("POST", &path).json(body).send().await.expect_status(201),
        )
    };
    let new = rotate(60).await;
    assert!(is_accepted(&old).await && is_accepted(&new).await);
    app.clock.advance(Duration::from_secs(61));
    assert!(!is_accepted(&old).await && is_accepted(&new).await);
    let newest = rotate(0).await;
    assert!(!is_accepted(&new).await && is_accepted(&newest).await);
    // The number of valid secrets is limited. A rejected rotation changes nothing.
    for _ in 0..9 {
        rotate(60).await;
    }
    let body = json!({ "overlap_seconds": 60 });
    by("POST", &path).json(body).send().await.assert_error(409, "conflict");
    assert!(is_accepted(&newest).await);
    let only = rotate(0).await;
    assert!(!is_accepted(&newest).await && is_accepted(&only).await);
    let body = json!({ "overlap_seconds": 2_592_001 });
    by("POST", &path)
        .json(body)
        .send()
        .await
        .assert_error(422, "validation_failed")
        .assert_field("overlap_seconds");
}

/// No table contains a code, a token, a client secret or a user code as plain text.
#[tokio::test]
async fn database_contains_no_plaintext_oauth_secret() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let client = app.register_confidential_client().await;
    let grants = json!({ "grant_types": [DEVICE_GRANT], "redirect_uris": [] });
    let device = app.register_client(grants).await;
    let device = app
        .post_form("/oauth/device_authorization", &device.with_client_credentials(&[]))
        .await
        .expect_status(200);
    let mut browser = Browser::signed_in(&app, &dana.email).await;
    let code = app.obtain_code(&mut browser, &client, &[]).await;
    let tokens = app.obtain_tokens(&mut browser, &client, &[("prompt", "consent")]).await;
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let mut secrets = vec![code, client.secret.clone().unwrap(), CODE_VERIFIER.to_owned()];
    secrets.extend(
        [&tokens["access_token"], &tokens["refresh_token"], &device["device_code"]].map(text),
    );
    // This includes the secret part of a token without its id.
    secrets.extend(secrets.clone().iter().map(|secret| secret[secret.len() - 30..].to_owned()));
    let user_code = text(&device["user_code"]);
    secrets.extend([user_code.replace('-', ""), user_code]);
    let mut connection = app.database.connect().await;
    let tables: Vec<String> = sqlx::query_scalar(
        "SELECT c.oid::regclass::text FROM pg_class c
         WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')",
    )
    .fetch_all(&mut connection)
    .await
    .unwrap();
    assert!(tables.len() > 20);
    for table in tables {
        let rows = format!("SELECT coalesce(string_agg(t::text, ' '), '') FROM {table} t");
        let rows: String =
            sqlx::query_scalar(sqlx::AssertSqlSafe(rows)).fetch_one(&mut connection).await.unwrap();
        let hex = |text: &str| data_encoding::HEXLOWER.encode(text.as_bytes());
        for secret in &secrets {
            assert!(!rows.contains(secret) && !rows.contains(&hex(secret)), "{table} has {secret}");
        }
    }
}

#[tokio::test]
async fn invalid_client_fields_are_rejected_by_name() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let member = app.add_member(&dana, "member").await;
    let key = app.create_key(&dana, "k", "admin").await;
    for (body, field) in [
        (json!({ "redirect_uris": [CALLBACK] }), "name"),
        (json!({ "name": "", "redirect_uris": [CALLBACK] }), "name"),
        (json!({ "name": "x" }), "redirect_uris"),
        (json!({ "name": "x", "redirect_uris": ["http://client.example/"] }), "redirect_uris"),
        (
            json!({ "name": "x", "redirect_uris": [CALLBACK], "grant_types": ["implicit"] }),
            "grant_types",
        ),
        (json!({ "name": "x", "redirect_uris": [CALLBACK], "grant_types": [] }), "grant_types"),
        (
            json!({ "name": "x", "token_endpoint_auth_method": "none", "grant_types": ["client_credentials"] }),
            "grant_types",
        ),
        (
            json!({ "name": "x", "redirect_uris": [CALLBACK], "token_endpoint_auth_method": "magic" }),
            "token_endpoint_auth_method",
        ),
        (json!({ "name": "x", "redirect_uris": [CALLBACK], "scope": "everything" }), "scope"),
        (json!({ "name": "x", "redirect_uris": [CALLBACK], "client_uri": "x" }), "client_uri"),
        (json!({ "name": "x", "redirect_uris": [CALLBACK], "expires_at": 1 }), "expires_at"),
    ] {
        let call =
            app.request_as(&dana.access_token, "POST", "/v1/oauth/clients").json(body.clone());
        call.send().await.assert_error(422, "validation_failed").assert_field(field);
    }
    let body = json!({ "name": "x", "redirect_uris": [CALLBACK] });
    let call = app.request_as(&member.access_token, "POST", "/v1/oauth/clients").json(body.clone());
    call.send().await.assert_error(403, "insufficient_scope");
    app.request_as(&key.secret, "POST", "/v1/oauth/clients")
        .json(body)
        .send()
        .await
        .expect_status(201);
}
