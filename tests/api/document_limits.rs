//! Documents of a workspace: their number and their size are limited.

use call2me_auth::env::Clock as _;
use futures_util::future::join_all;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Executor as _, Row as _};

use crate::fixture::{PASSWORD, TestApp, TestResponse};

async fn post(app: &TestApp, credential: &str, path: &str, body: Value) -> TestResponse {
    app.post(path).bearer(credential).json(body).send().await
}

async fn create(app: &TestApp, credential: &str, body: Value) -> TestResponse {
    post(app, credential, "/v1/agents", body).await
}

/// Returns the number and the size of all documents, as counted and as stored.
async fn usage(app: &TestApp) -> [(i64, i64); 2] {
    let mut connection = app.database.connect().await;
    let mut read = async |sql: &'static str| {
        let row = connection.fetch_one(sql).await.unwrap();
        (row.get(0), row.get(1))
    };
    [
        read(
            "SELECT coalesce(sum(documents), 0)::bigint, coalesce(sum(bytes), 0)::bigint
              FROM document_usage",
        )
        .await,
        read("SELECT count(*), coalesce(sum(octet_length(body::text)), 0) FROM documents").await,
    ]
}

#[tokio::test]
async fn document_beyond_maximum_number_is_refused() {
    let app = TestApp::start_with(&[("documents.max_per_workspace", "4")]).await;
    let [dana, other] = [app.register("acme").await, app.register("other").await];
    let token = &dana.access_token;
    let agent = create(&app, token, json!({ "agent_name": "a" })).await.expect_status(201);
    let agent = agent["agent_id"].as_str().unwrap();
    let bodies = [
        ("/v1/calls", json!({ "agent_id": agent, "to_number": "+14155550100" })),
        ("/v1/knowledge-base", json!({ "name": "k" })),
        ("/v1/campaigns", json!({ "name": "c", "agent_id": agent })),
    ];
    for (path, body) in &bodies {
        post(&app, token, path, body.clone()).await.expect_status(201);
    }
    for (path, body) in &bodies {
        let refused = post(&app, token, path, body.clone()).await;
        refused.assert_error(409, "conflict");
        assert!(refused.text.contains("has 4 documents"), "{}", refused.text);
    }
    create(&app, &other.access_token, json!({ "agent_name": "a" })).await.expect_status(201);
    app.delete(&format!("/v1/agents/{agent}")).bearer(token).send().await.expect_status(204);
    create(&app, token, json!({ "agent_name": "b" })).await.expect_status(201);
    create(&app, token, json!({ "agent_name": "c" })).await.assert_error(409, "conflict");
}

#[tokio::test]
async fn document_beyond_maximum_size_is_refused() {
    let app = TestApp::start_with(&[("documents.max_bytes_per_workspace", "2000")]).await;
    let dana = app.register("acme").await;
    let token = &dana.access_token;
    let text = |length: usize| json!({ "agent_name": "a", "text": "x".repeat(length) });
    let small = create(&app, token, text(900)).await.expect_status(201);
    let path = format!("/v1/agents/{}", small["agent_id"].as_str().unwrap());
    create(&app, token, text(1900)).await.assert_error(409, "conflict");
    create(&app, token, text(900)).await.expect_status(201);
    let change = |length: usize| app.patch(&path).bearer(token).json(text(length)).send();
    change(1100).await.assert_error(409, "conflict");
    assert_eq!(
        app.get(&path).bearer(token).send().await.expect_status(200)["text"],
        text(900)["text"]
    );
    change(10).await.expect_status(200);
    change(900).await.expect_status(200);
    // After the operator has lowered the limit, documents can still shrink.
    let grow = "UPDATE documents SET body = json_build_object('agent_name', repeat('x', 3000)),
                       body_bytes = octet_length(json_build_object('agent_name', repeat('x', 3000))::text)";
    app.database.connect().await.execute(grow).await.unwrap();
    let shrink = json!({ "agent_name": "short" });
    app.patch(&path).bearer(token).json(shrink).send().await.expect_status(200);
}

/// Otherwise a client could create and delete documents, and leave the responses.
#[tokio::test]
async fn stored_responses_count_until_they_expire() {
    let app = TestApp::start_with(&[("documents.max_bytes_per_workspace", "5000")]).await;
    let dana = app.register("acme").await;
    let token = &dana.access_token;
    let create_and_delete = async |key: &str| {
        let body = json!({ "agent_name": "a", "text": "x".repeat(900) });
        let create = app.post("/v1/agents").bearer(token).header("idempotency-key", key).json(body);
        let created = create.send().await;
        if created.status == 201 {
            let id = created.expect_status(201)["agent_id"].as_str().unwrap().to_owned();
            let delete = app.delete(&format!("/v1/agents/{id}")).bearer(token).send().await;
            delete.expect_status(204);
            return true;
        }
        created.assert_error(409, "conflict");
        false
    };
    let mut stored = 0;
    while create_and_delete(&stored.to_string()).await {
        stored += 1;
    }
    assert!((2..5).contains(&stored), "{stored}");
    let expire = "UPDATE idempotency_keys SET expires_at = '2026-01-01'";
    app.database.connect().await.execute(expire).await.unwrap();
    app.app.store.prune_idempotency_keys(app.clock.now()).await.unwrap();
    assert_eq!(usage(&app).await[0], (0, 0));
    assert!(create_and_delete("again").await);
}

#[tokio::test]
async fn concurrent_creations_do_not_exceed_maximum() {
    let app = TestApp::start_with(&[("documents.max_per_workspace", "5")]).await;
    let dana = app.register("acme").await;
    let creations = (0..20).map(|_| create(&app, &dana.access_token, json!({ "agent_name": "a" })));
    let answers = join_all(creations).await;
    let count = |status: u16| answers.iter().filter(|answer| answer.status == status).count();
    assert_eq!((count(201), count(409)), (5, 15));
    let [counted, stored] = usage(&app).await;
    assert_eq!((counted, stored.0), (stored, 5));
}

#[tokio::test]
async fn documents_are_counted_in_each_statement() {
    let app = TestApp::start().await;
    app.register("acme").await;
    app.register("other").await;
    let mut connection = app.database.connect().await;
    for sql in [
        "INSERT INTO documents
         SELECT gen_random_uuid(), id, 'agent', NULL, '{}', 2, now(), now()
         FROM workspaces, generate_series(1, 3)",
        "UPDATE documents SET body = '{\"a\":1}', body_bytes = 7",
        "UPDATE documents SET updated_at = now()",
        "DELETE FROM documents WHERE id IN (SELECT id FROM documents LIMIT 2)",
        "DELETE FROM documents WHERE false",
    ] {
        connection.execute(AssertSqlSafe(sql)).await.unwrap();
        let [counted, stored] = usage(&app).await;
        assert_eq!(counted, stored, "{sql}");
        assert!(counted.0 >= 4, "{sql}");
    }
}

#[tokio::test]
async fn documents_of_deleted_workspace_are_deleted_in_batches() {
    let app = TestApp::start().await;
    let [dana, other] = [app.register("acme").await, app.register("other").await];
    let mut connection = app.database.connect().await;
    let fill = "INSERT INTO documents
                SELECT gen_random_uuid(), id, 'agent', NULL, '{}', 2, now(), now()
                FROM workspaces, generate_series(1, 2500)";
    connection.execute(fill).await.unwrap();
    let delete = app.request_as(&dana.access_token, "DELETE", "/v1/workspace");
    let delete = delete.json(json!({ "password": PASSWORD })).send().await;
    assert_eq!(delete.status, 204, "{}", delete.text);
    // A request that was on its way.
    let late = "INSERT INTO documents
                SELECT gen_random_uuid(), workspace_id, 'agent', NULL, '{}', 2, now(), now()
                FROM document_usage WHERE live_workspace_id IS NULL";
    connection.execute(late).await.unwrap_err();
    let prune = "SELECT prune_documents()";
    connection.execute(prune).await.unwrap();
    assert_eq!(usage(&app).await[0].0, 4000);
    app.app.store.prune_documents().await.unwrap();
    let [counted, stored] = usage(&app).await;
    assert_eq!((counted, stored.0), (stored, 2500));
    let agents = app.get("/v1/agents").bearer(&other.access_token).send().await.expect_status(200);
    assert_eq!(agents["total"], 2500);
}
