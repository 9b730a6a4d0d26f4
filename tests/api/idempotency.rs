//! Idempotency-Key: a retry has no second effect and gets the response of the first request.

use std::{collections::BTreeSet, time::Duration};

use serde_json::{Value, json};

use crate::fixture::{TestApp, TestClient, TestRequest, TestResponse};

fn with_idempotency_key(call: TestRequest, key: &str, body: &Value) -> TestRequest {
    call.header("idempotency-key", key).json(body.clone())
}

#[track_caller]
fn assert_replayed(first: &TestResponse, second: &TestResponse) {
    assert_eq!(second.header("idempotency-replayed"), "true", "{}", second.text);
    assert_eq!((first.status, &first.text), (second.status, &second.text));
    for header in ["location", "content-type", "cache-control"] {
        assert_eq!(first.header(header), second.header(header), "{header}");
    }
    assert_ne!(first.header("x-request-id"), second.header("x-request-id"));
}

#[tokio::test]
async fn retried_key_creation_returns_same_secret() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let body = json!({ "name": "prod", "scope": "write" });
    let create = async |key: &str, body: &Value| {
        with_idempotency_key(app.post("/v1/api-keys").bearer(&dana.access_token), key, body)
            .send()
            .await
    };
    let first = create("7f1c", &body).await;
    assert_eq!((first.status.as_u16(), first.header("idempotency-replayed")), (201, ""));
    assert_replayed(&first, &create("7f1c", &body).await);
    app.get("/v1/agents")
        .bearer(first.body["key"].as_str().unwrap())
        .send()
        .await
        .expect_status(200);
    // Another body is a conflict; another idempotency key creates another API key.
    create("7f1c", &json!({ "name": "other" })).await.assert_error(409, "idempotency_conflict");
    assert_ne!(create("7f1d", &body).await.expect_status(201)["id"], first.body["id"]);
    let list = app.get("/v1/api-keys").bearer(&dana.access_token).send().await.expect_status(200);
    assert_eq!(list["total"], 2);
    // The idempotency key applies in all sessions of the same user.
    let again = app.sign_in_again(&dana).await;
    let call =
        with_idempotency_key(app.post("/v1/api-keys").bearer(&again.access_token), "7f1c", &body);
    assert_replayed(&first, &call.send().await);
    // The log has one creation event for each key, and none for the retries.
    let events = app.wait_for_event_count(&dana.access_token, "action=api_key.created", 2).await;
    assert_eq!(events[1]["target"]["id"], first.body["id"]);
    // The idempotency key expires after a day.
    app.clock.advance(Duration::from_hours(24));
    let again = app.sign_in_again(&dana).await;
    let call =
        with_idempotency_key(app.post("/v1/api-keys").bearer(&again.access_token), "7f1c", &body);
    assert_ne!(call.send().await.expect_status(201)["id"], first.body["id"]);
}

/// Creating routes whose `Idempotency-Key` is ignored. docs/integrate.md gives the reasons.
const NOT_REPLAYED: [&str; 4] =
    ["/oauth/register", "/v1/auth/passkeys", "/v1/auth/register", "/v1/invitations/accept"];

/// The OpenAPI document states the header for each creating route that supports it.
#[tokio::test]
async fn every_creating_route_supports_key_or_is_listed() {
    let app = TestClient::shared();
    let document = app.get("/openapi.json").send().await.expect_status(200);
    let creating = document["paths"]
        .as_object()
        .unwrap()
        .iter()
        .filter(|(_, item)| item["post"]["responses"].get("201").is_some());
    let (supporting, others): (Vec<_>, Vec<_>) = creating.partition(|(_, item)| {
        let parameters = item["post"]["parameters"].as_array();
        parameters.is_some_and(|all| all.iter().any(|it| it["name"] == "Idempotency-Key"))
    });
    assert!(supporting.len() >= 10, "{supporting:?}");
    let others: BTreeSet<_> = others.iter().map(|(path, _)| path.as_str()).collect();
    assert_eq!(others, NOT_REPLAYED.into());
    let guide = include_str!("../../docs/integrate.md");
    let section = guide.split("## Retry without creating twice").nth(1).unwrap();
    let section = section.split("\n## ").next().unwrap();
    for path in supporting.iter().map(|(path, _)| path.as_str()).chain(NOT_REPLAYED) {
        assert!(section.contains(&format!("`{path}`")), "{path} is not in docs/integrate.md");
    }
}

/// Covers every creating route of the API contract.
#[tokio::test]
async fn every_creating_route_is_safe_to_retry() {
    let app = TestApp::start().await;
    let dana = app.register_verified("acme").await;
    let old = app.create_key(&dana, "old", "write").await;
    let agent =
        app.post("/v1/agents").bearer(&dana.access_token).json(json!({ "agent_name": "a" }));
    let agent = agent.send().await.expect_status(201)["agent_id"].clone();
    let rotate = format!("/v1/api-keys/{}/rotate", old.id);
    let client = app.post("/v1/oauth/clients").bearer(&dana.access_token);
    let client = client.json(json!({ "name": "c", "redirect_uris": ["https://c.example/"] }));
    let client = client.send().await.header("location").to_owned();
    let secret = format!("{client}/secret");
    for (path, body) in [
        ("/v1/api-keys", json!({ "name": "k" })),
        (rotate.as_str(), json!({})),
        ("/v1/invitations", json!({ "email": "sam@new.example", "role": "viewer" })),
        ("/v1/workspaces", json!({ "name": "another" })),
        ("/v1/agents", json!({ "agent_name": "b" })),
        ("/v1/calls", json!({ "agent_id": agent, "to_number": "+14155550100" })),
        ("/v1/knowledge-base", json!({ "name": "kb" })),
        ("/v1/campaigns", json!({ "name": "c", "agent_id": agent })),
        (
            "/v1/oauth/clients",
            json!({ "name": "robot", "grant_types": ["client_credentials"], "scope": "admin" }),
        ),
        (secret.as_str(), json!({ "overlap_seconds": 60 })),
    ] {
        let send = async || {
            with_idempotency_key(app.post(path).bearer(&dana.access_token), "same", &body)
                .send()
                .await
        };
        let first = send().await;
        assert_eq!(first.status, 201, "{path}: {}", first.text);
        assert!(!first.header("location").is_empty(), "{path}");
        assert_replayed(&first, &send().await);
    }
}

#[tokio::test]
async fn concurrent_requests_with_one_key_run_once() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let other = app.another_node().await;
    let body = json!({ "name": "prod" });
    let calls = (0..20).map(|number| {
        let node = if number % 2 == 0 { &app } else { &other };
        with_idempotency_key(node.post("/v1/api-keys").bearer(&dana.access_token), "once", &body)
            .send()
    });
    let answers = futures_util::future::join_all(calls).await;
    let mut secrets = Vec::new();
    for answer in &answers {
        if answer.status == 201 {
            secrets.push(answer.body["key"].as_str().unwrap());
        } else {
            answer.assert_error(409, "idempotency_in_progress");
            assert_eq!(answer.header("retry-after"), "1");
        }
    }
    assert!(!secrets.is_empty());
    assert!(secrets.iter().all(|secret| *secret == secrets[0]));
    let list = app.get("/v1/api-keys").bearer(&dana.access_token).send().await.expect_status(200);
    assert_eq!(list["total"], 1);
}

#[tokio::test]
async fn rejected_or_failed_request_is_not_replayed() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let send = async |body: Value| {
        with_idempotency_key(app.post("/v1/calls").bearer(&dana.access_token), "k", &body)
            .send()
            .await
    };
    let agent = json!("agent_01jd0zt8q7f7qvs4p2k6x3m9ab");
    send(json!({ "agent_id": agent, "to_number": "+14155550100" }))
        .await
        .assert_error(422, "validation_failed");
    let agent =
        app.post("/v1/agents").bearer(&dana.access_token).json(json!({ "agent_name": "a" }));
    let agent = agent.send().await.expect_status(201)["agent_id"].clone();
    // The corrected request succeeds with the same key.
    send(json!({ "agent_id": agent, "to_number": "+14155550100" })).await.expect_status(201);

    // If PostgreSQL refuses to store the response, the work is rolled back as well.
    let mut connection = app.database.connect().await;
    let sql =
        "ALTER TABLE idempotency_keys ADD CONSTRAINT never CHECK (expires_at IS NULL) NOT VALID";
    sqlx::query(sql).execute(&mut connection).await.unwrap();
    let create_key = async || {
        let call = app.post("/v1/api-keys").bearer(&dana.access_token);
        with_idempotency_key(call, "lost", &json!({ "name": "k" })).send().await
    };
    create_key().await.assert_error(500, "internal");
    let total = async || {
        let call = app.get("/v1/api-keys").bearer(&dana.access_token);
        call.send().await.expect_status(200)["total"].clone()
    };
    assert_eq!(total().await, 0);
    sqlx::query("ALTER TABLE idempotency_keys DROP CONSTRAINT never")
        .execute(&mut connection)
        .await
        .unwrap();
    let first = create_key().await;
    assert_replayed(&first, &create_key().await);
    assert_eq!(total().await, 1);
}

#[tokio::test]
async fn idempotency_key_is_scoped_to_caller_and_path() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let [a, b] =
        [app.create_key(&dana, "a", "write").await, app.create_key(&dana, "b", "write").await];
    let other_workspace = app.register("widgets").await;
    let body = json!({ "name": "x", "agent_name": "x", "knowledge_base_name": "x" });
    let send = async |path: &str, credential: &str| {
        with_idempotency_key(app.post(path).bearer(credential), "same", &body).send().await
    };
    let first = send("/v1/agents", &a.secret).await;
    for (path, credential) in [
        ("/v1/agents", &b.secret),
        ("/v1/agents", &dana.access_token),
        ("/v1/agents", &other_workspace.access_token),
        ("/v1/knowledge-base", &a.secret),
    ] {
        let other = send(path, credential).await;
        assert_eq!(
            (other.status.as_u16(), other.header("idempotency-replayed")),
            (201, ""),
            "{path}"
        );
    }
    assert_replayed(&first, &send("/v1/agents", &a.secret).await);
    // The key is looked up after authorization, so a retry without the scope is rejected again.
    let reader = app.create_key(&dana, "r", "read-only").await;
    for _ in 0..2 {
        send("/v1/agents", &reader.secret).await.assert_error(403, "insufficient_scope");
    }
}

#[tokio::test]
async fn invalid_idempotency_key_is_rejected() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let long = "x".repeat(256);
    for invalid in ["", "two words", long.as_str(), "tab\there"] {
        let call = app.post("/v1/agents").bearer(&dana.access_token);
        with_idempotency_key(call, invalid, &json!({ "agent_name": "a" }))
            .send()
            .await
            .assert_error(422, "validation_failed")
            .assert_field("Idempotency-Key");
    }
    let call = app.post("/v1/agents").bearer(&dana.access_token).header("idempotency-key", "a");
    with_idempotency_key(call, "b", &json!({ "agent_name": "a" }))
        .send()
        .await
        .assert_error(422, "validation_failed")
        .assert_field("Idempotency-Key");
    let call = app.post("/v1/agents").bearer(&dana.access_token);
    with_idempotency_key(call, &"x".repeat(255), &json!({ "agent_name": "a" }))
        .send()
        .await
        .expect_status(201);
}

#[tokio::test]
async fn stored_response_contains_no_plaintext() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let call = app.post("/v1/api-keys").bearer(&dana.access_token);
    let created = with_idempotency_key(call, "a-key-of-the-client", &json!({ "name": "k" }))
        .send()
        .await
        .expect_status(201);
    let mut connection = app.database.connect().await;
    let sql = "SELECT id || request_mac || sealed_response FROM idempotency_keys";
    let stored: Vec<u8> = sqlx::query_scalar(sql).fetch_one(&mut connection).await.unwrap();
    let secret = created["key"].as_str().unwrap();
    for text in ["a-key-of-the-client", secret, &secret[20..30], "redacted"] {
        assert!(!stored.windows(text.len()).any(|part| part == text.as_bytes()), "{text}");
    }
    // The service role cannot read the table directly.
    sqlx::query("SET ROLE call2me_auth_app").execute(&mut connection).await.unwrap();
    assert!(sqlx::query(sql).execute(&mut connection).await.is_err());
}
