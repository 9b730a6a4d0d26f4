//! /v1/workspaces and /v1/workspace: workspaces are created, renamed and deleted.

use serde_json::json;
use sqlx::{Connection, Executor};

use crate::fixture::{PASSWORD, TestApp, TestClient, TestUser, eventually};

#[tokio::test]
async fn user_creates_switches_and_renames_workspaces() {
    let app = TestClient::shared();
    let mut dana = app.register("acme").await;
    let creation = app
        .request_as(&dana.access_token, "POST", "/v1/workspaces")
        .json(json!({ "name": "labs" }));
    let labs = creation.send().await.expect_status(201);
    assert_eq!((&labs["name"], &labs["role"]), (&json!("labs"), &json!("owner")));
    let own =
        app.request_as(&dana.access_token, "GET", "/v1/workspaces").send().await.expect_status(200);
    assert_eq!(own["total"], 2);
    assert_eq!(own["workspaces"][0]["id"], labs["id"]);
    assert_eq!(own["workspaces"][1]["id"], dana.workspace_id);

    // The session stays in its workspace until it switches.
    let here =
        app.request_as(&dana.access_token, "GET", "/v1/workspace").send().await.expect_status(200);
    assert_eq!(here["id"], dana.workspace_id);
    let switch = json!({ "workspace_id": labs["id"] });
    let switch =
        app.request_as(&dana.access_token, "POST", "/v1/auth/switch-workspace").json(switch);
    dana.set_tokens(&switch.send().await.expect_status(200));
    app.wait_for_event_count(&dana.access_token, "action=workspace.created", 1).await;

    let rename = |token: &str, name: &str| {
        app.request_as(token, "PATCH", "/v1/workspace").json(json!({ "name": name }))
    };
    assert_eq!(rename(&dana.access_token, "lab").send().await.expect_status(200)["name"], "lab");
    rename(&dana.access_token, "")
        .send()
        .await
        .assert_error(422, "validation_failed")
        .assert_field("name");
    let member = app.add_member(&dana, "member").await;
    rename(&member.access_token, "mine").send().await.assert_error(403, "insufficient_scope");
    let listed = app
        .request_as(&member.access_token, "GET", "/v1/workspaces")
        .send()
        .await
        .expect_status(200);
    assert_eq!(listed["total"], 2, "the own workspace and this one: {listed:#}");
}

#[tokio::test]
async fn deleted_workspace_rejects_credentials_and_keeps_its_log() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let (admin, widgets) =
        (app.add_member(&dana, "admin").await, app.register("widgets-inc").await);
    let key = app.create_key(&dana, "server", "admin").await;
    let agent = app.post("/v1/agents").bearer(&key.secret).json(json!({ "agent_name": "a" }));
    agent.send().await.expect_status(201);
    let delete = |token: &str, password: &str| {
        app.request_as(token, "DELETE", "/v1/workspace").json(json!({ "password": password }))
    };
    delete(&key.secret, PASSWORD).send().await.assert_error(403, "forbidden");
    delete(&admin.access_token, PASSWORD).send().await.assert_error(403, "forbidden");
    let wrong = delete(&dana.access_token, "not this one at all").send().await;
    wrong.assert_error(422, "validation_failed").assert_field("password");
    assert_eq!(app.get("/v1/agents").bearer(&key.secret).send().await.status, 200);

    assert_eq!(delete(&dana.access_token, PASSWORD).send().await.status, 204);
    for credential in [&key.secret, &dana.access_token, &admin.access_token] {
        app.get("/v1/agents").bearer(credential).send().await.assert_error(401, "unauthorized");
    }
    assert_eq!(app.get("/v1/agents").bearer(&widgets.access_token).send().await.status, 200);
    // The admin signs in to another workspace. Dana had no other and gets a new one.
    for user in [&admin, &dana] {
        let body = json!({ "email": user.email, "password": PASSWORD });
        let pair = app.post("/v1/auth/login").json(body).send().await.expect_status(200);
        let token = pair["access_token"].as_str().unwrap();
        let own = app.request_as(token, "GET", "/v1/workspaces").send().await.expect_status(200);
        assert_eq!(own["total"], 1, "{own:#}");
        assert_ne!(own["workspaces"][0]["id"], dana.workspace_id);
    }
    let mut connection = app.database.connect().await;
    let workspace = call2me_auth::model::id::parse("ws", &dana.workspace_id).unwrap();
    let count = async |connection: &mut sqlx::PgConnection, sql: &'static str| {
        let count = sqlx::query_scalar::<_, i64>(sql).bind(workspace);
        count.fetch_one(connection).await.unwrap()
    };
    let kept = "SELECT count(*) FROM audit_events
                WHERE workspace_id = $1 AND action IN ('api_key.created', 'workspace.deleted')";
    assert_eq!(count(&mut connection, kept).await, 2);
    app.app.store.prune_documents().await.unwrap();
    for deleted in [
        "SELECT count(*) FROM api_keys WHERE workspace_id = $1",
        "SELECT count(*) FROM documents WHERE workspace_id = $1",
        "SELECT count(*) FROM sessions WHERE workspace_id = $1",
    ] {
        assert_eq!(count(&mut connection, deleted).await, 0, "{deleted}");
    }
    // One invalidation, however many credentials the workspace had.
    let invalidations =
        "SELECT count(*) FROM invalidations WHERE workspace_id = $1 AND user_id IS NULL";
    assert_eq!(count(&mut connection, invalidations).await, 1);
}

/// Concurrent requests do not exceed the maximum number of workspaces.
#[tokio::test]
async fn concurrent_creations_respect_workspace_limit() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let mut connection = app.database.connect().await;
    let fill = "WITH added AS (INSERT INTO workspaces (id, name, created_at)
                               SELECT gen_random_uuid(), 'w', now() FROM generate_series(1, 98)
                               RETURNING id)
                INSERT INTO memberships (workspace_id, user_id, role, joined_at)
                SELECT added.id, u.id, 'owner', now() FROM added, users u";
    sqlx::query(fill).execute(&mut connection).await.unwrap();
    let create = || {
        let create = app.request_as(&dana.access_token, "POST", "/v1/workspaces");
        create.json(json!({ "name": "another" })).send()
    };
    let answers = futures_util::future::join_all((0..8).map(|_| create())).await;
    let mut statuses: Vec<_> = answers.iter().map(|answer| answer.status.as_u16()).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [201, 409, 409, 409, 409, 409, 409, 409]);
}

async fn count_waiting(app: &TestApp) -> i64 {
    let sql = "SELECT count(*) FROM pg_stat_activity
               WHERE datname = current_database() AND wait_event_type = 'Lock'";
    sqlx::query_scalar(sql).fetch_one(&mut app.database.connect().await).await.unwrap()
}

/// Checks that requests of `wim` succeed while those of another user wait for a lock.
async fn check_others_while_four_wait(app: &TestApp, wim: &TestUser) {
    eventually("four wait", async || (count_waiting(app).await >= 4).then_some(())).await;
    for path in ["/v1/agents", "/v1/members", "/v1/api-keys"].repeat(3) {
        app.get(path).bearer(&wim.access_token).send().await.expect_status(200);
        assert!(count_waiting(app).await <= 4);
    }
}

/// Requests that wait for a lock of their workspace hold some of the connections, never all.
#[tokio::test]
async fn waiting_requests_leave_connections_to_other_workspaces() {
    let app = TestApp::start_with(&[("database.max_connections", "5")]).await;
    let [dana, wim] = [app.register("acme").await, app.register("widgets-inc").await];
    let key = app.create_key(&dana, "prod", "write").await;
    let mut holder = app.database.connect().await;
    let mut lock = holder.begin().await.unwrap();
    let sql = "SELECT id FROM workspaces WHERE name = 'acme' FOR UPDATE";
    lock.execute(sql).await.unwrap();
    let path = format!("/v1/api-keys/{}", key.id);
    let changes = (0..20).map(|n| {
        let change = json!({ "description": n.to_string() });
        app.patch(&path).bearer(&dana.access_token).json(change).send()
    });
    let changes = futures_util::future::join_all(changes);
    let others = async {
        check_others_while_four_wait(&app, &wim).await;
        lock.rollback().await.unwrap();
    };
    let (answers, ()) = tokio::join!(changes, others);
    // On a slow machine, a change may wait for longer than the timeout of locks.
    assert!(answers.iter().all(|answer| [200, 503].contains(&answer.status.as_u16())));
    app.get(&path).bearer(&dana.access_token).send().await.expect_status(200);
}

/// A user may have many workspaces: they share the connections that the user may hold.
#[tokio::test]
async fn user_with_many_workspaces_leaves_connections_to_others() {
    let app = TestApp::start_with(&[("database.max_connections", "5")]).await;
    let [dana, wim] = [app.register("acme").await, app.register("widgets-inc").await];
    let mut tokens = vec![dana.access_token.clone()];
    for name in ["second", "third"] {
        let body = json!({ "name": name });
        let created = app.post("/v1/workspaces").bearer(&dana.access_token).json(body).send().await;
        let sign_in = json!({
            "email": dana.email, "password": PASSWORD,
            "workspace_id": created.expect_status(201)["id"],
        });
        let signed_in = app.post("/v1/auth/login").json(sign_in).send().await.expect_status(200);
        tokens.push(signed_in["access_token"].as_str().unwrap().to_owned());
    }
    let mut holder = app.database.connect().await;
    let mut lock = holder.begin().await.unwrap();
    let sql = "SELECT id FROM workspaces WHERE name <> 'widgets-inc' FOR UPDATE";
    lock.execute(sql).await.unwrap();
    let changes = tokens.iter().cycle().take(18).map(|token| {
        let change = json!({ "name": "renamed" });
        app.patch("/v1/workspace").bearer(token).json(change).send()
    });
    let changes = futures_util::future::join_all(changes);
    let others = async {
        check_others_while_four_wait(&app, &wim).await;
        lock.rollback().await.unwrap();
    };
    let (answers, ()) = tokio::join!(changes, others);
    assert!(answers.iter().all(|answer| [200, 503].contains(&answer.status.as_u16())));
}

/// So do requests that change the account.
#[tokio::test]
async fn user_that_waits_for_own_row_leaves_connections_to_others() {
    let app = TestApp::start_with(&[("database.max_connections", "5")]).await;
    let [dana, wim] = [app.register("acme").await, app.register("widgets-inc").await];
    let mut holder = app.database.connect().await;
    let mut lock = holder.begin().await.unwrap();
    let sql = "SELECT u.id FROM users u JOIN memberships m ON m.user_id = u.id
               JOIN workspaces w ON w.id = m.workspace_id WHERE w.name = 'acme' FOR UPDATE OF u";
    lock.execute(sql).await.unwrap();
    let confirmations = (0..18).map(|_| {
        let code = json!({ "code": "123456" });
        app.post("/v1/auth/mfa/totp/confirm").bearer(&dana.access_token).json(code).send()
    });
    let confirmations = futures_util::future::join_all(confirmations);
    let others = async {
        check_others_while_four_wait(&app, &wim).await;
        lock.rollback().await.unwrap();
    };
    let (answers, ()) = tokio::join!(confirmations, others);
    assert!(answers.iter().all(|answer| [403, 409, 503].contains(&answer.status.as_u16())));
}
