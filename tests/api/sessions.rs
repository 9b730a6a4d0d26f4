//! /v1/auth/sessions and /v1/auth/switch-workspace: the sessions of a user.

use std::time::Duration;

use serde_json::{Value, json};

use crate::fixture::{PASSWORD, TestApp, TestClient, TestResponse, TestUser};

/// Signs in again and returns the user with the tokens of the new session.
async fn sign_in(app: &TestClient, user: &TestUser) -> TestUser {
    let body = json!({ "email": user.email, "password": PASSWORD });
    let pair = app.post("/v1/auth/login").json(body).send().await.expect_status(200);
    let mut signed_in = user.clone();
    signed_in.set_tokens(&pair);
    signed_in
}

async fn list_sessions(app: &TestClient, user: &TestUser) -> Vec<Value> {
    let body = app
        .request_as(&user.access_token, "GET", "/v1/auth/sessions")
        .send()
        .await
        .expect_status(200);
    let sessions = body["sessions"].as_array().unwrap().clone();
    assert_eq!(body["total"], sessions.len());
    sessions
}

async fn current_session_id(app: &TestClient, user: &TestUser) -> String {
    let sessions = list_sessions(app, user).await;
    let current = sessions.iter().find(|session| session["current"] == true).unwrap();
    current["id"].as_str().unwrap().to_owned()
}

async fn is_accepted(app: &TestClient, user: &TestUser) -> bool {
    app.request_as(&user.access_token, "GET", "/v1/agents").send().await.status == 200
}

async fn refresh(app: &TestClient, token: &str) -> TestResponse {
    app.post("/v1/auth/refresh").json(json!({ "refresh_token": token })).send().await
}

#[tokio::test]
async fn own_sessions_are_listed_and_no_others() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    app.register("other").await;
    let request = app.post("/v1/auth/login").header("user-agent", "curl/8.5");
    let body = json!({ "email": dana.email, "password": PASSWORD });
    request.json(body).send().await.expect_status(200);
    let listed = list_sessions(&app, &dana).await;
    assert_eq!(listed.len(), 2, "{listed:#?}");
    assert_eq!(listed[0]["user_agent"], "curl/8.5");
    assert_eq!(listed[0]["ip"], "127.0.0.1");
    assert_eq!(listed[0]["current"], false);
    assert_eq!(listed[1]["current"], true);
    assert_eq!(listed[1]["workspace_id"], dana.workspace_id);
    let page = app.request_as(&dana.access_token, "GET", "/v1/auth/sessions?limit=1").send().await;
    let page = page.expect_status(200);
    assert_eq!((&page["sessions"][0], &page["total"]), (&listed[0], &json!(2)));
    let next =
        format!("/v1/auth/sessions?limit=1&cursor={}", page["next_cursor"].as_str().unwrap());
    let page = app.request_as(&dana.access_token, "GET", &next).send().await.expect_status(200);
    assert_eq!((&page["sessions"][0], &page["next_cursor"]), (&listed[1], &Value::Null));
}

#[tokio::test]
async fn expired_session_is_not_listed() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    app.clock.advance(Duration::from_hours(31 * 24));
    let again = sign_in(&app, &dana).await;
    assert_eq!(list_sessions(&app, &again).await.len(), 1);
}

#[tokio::test]
async fn session_is_ended_from_another_session() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let phone = sign_in(&app, &dana).await;
    let id = current_session_id(&app, &phone).await;
    let path = format!("/v1/auth/sessions/{id}");
    assert!(is_accepted(&app, &phone).await);
    let eve = app.register("eve").await;
    app.request_as(&eve.access_token, "DELETE", &path).send().await.assert_error(404, "not_found");
    assert!(is_accepted(&app, &phone).await);
    for _ in 0..2 {
        assert_eq!(app.request_as(&dana.access_token, "DELETE", &path).send().await.status, 204);
        assert!(!is_accepted(&app, &phone).await);
    }
    refresh(&app, &phone.refresh_token).await.assert_error(401, "invalid_refresh_token");
    assert!(is_accepted(&app, &dana).await);
    let events = app.wait_for_event_count(&dana.access_token, "action=session.ended", 1).await;
    assert_eq!(events[0]["target"]["id"], json!(id));
    assert_eq!(events[0]["metadata"]["reason"], "ended_by_user");
    // Ending the current session signs it out.
    let current_path = format!("/v1/auth/sessions/{}", current_session_id(&app, &dana).await);
    assert_eq!(
        app.request_as(&dana.access_token, "DELETE", &current_path).send().await.status,
        204
    );
    assert!(!is_accepted(&app, &dana).await);
}

#[tokio::test]
async fn all_other_sessions_end_together() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let (phone, tablet) = (sign_in(&app, &dana).await, sign_in(&app, &dana).await);
    let lee = app.register("lee").await;
    assert_eq!(
        app.request_as(&phone.access_token, "DELETE", "/v1/auth/sessions").send().await.status,
        204
    );
    assert!(is_accepted(&app, &phone).await);
    assert!(!is_accepted(&app, &dana).await && !is_accepted(&app, &tablet).await);
    assert!(is_accepted(&app, &lee).await);
    assert_eq!(list_sessions(&app, &phone).await.len(), 1);
    app.wait_for_event_count(&phone.access_token, "action=session.ended", 2).await;
}

#[tokio::test]
async fn api_key_cannot_manage_sessions() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let key = app.create_key(&dana, "admin", "admin").await;
    for (method, path) in [
        ("GET", "/v1/auth/sessions".to_owned()),
        ("DELETE", "/v1/auth/sessions".to_owned()),
        ("DELETE", format!("/v1/auth/sessions/{}", current_session_id(&app, &dana).await)),
        ("POST", "/v1/auth/switch-workspace".to_owned()),
    ] {
        app.request_as(&key.secret, method, &path).send().await.assert_error(403, "forbidden");
    }
    assert!(is_accepted(&app, &dana).await);
}

#[tokio::test]
async fn session_switches_to_another_workspace() {
    let app = TestApp::start().await;
    let acme = app.register("acme").await;
    // The viewer is signed in to acme and owns another workspace.
    let viewer = app.add_member(&acme, "viewer").await;
    let me =
        app.request_as(&viewer.access_token, "GET", "/v1/auth/me").send().await.expect_status(200);
    assert_eq!(me["workspace"]["id"], json!(acme.workspace_id));
    let mut connection = app.database.connect().await;
    let own_workspace: uuid::Uuid = sqlx::query_scalar(
        "SELECT workspace_id FROM memberships WHERE user_id = $1 AND role = 'owner'",
    )
    .bind(call2me_auth::model::id::parse("user", &viewer.user_id).unwrap())
    .fetch_one(&mut connection)
    .await
    .unwrap();
    let own_workspace = call2me_auth::model::id::WorkspaceId::from(own_workspace).to_string();

    let switch = |user: &TestUser, workspace: &str| {
        app.request_as(&user.access_token, "POST", "/v1/auth/switch-workspace")
            .json(json!({ "workspace_id": workspace }))
    };
    let other = app.register("other").await;
    switch(&viewer, &other.workspace_id).send().await.assert_error(403, "forbidden");
    let pair = switch(&viewer, &own_workspace).send().await.expect_status(200);
    let mut switched = viewer.clone();
    switched.set_tokens(&pair);
    assert!(!is_accepted(&app, &viewer).await, "the token of the previous workspace has ended");
    let me = app
        .request_as(&switched.access_token, "GET", "/v1/auth/me")
        .send()
        .await
        .expect_status(200);
    assert_eq!((&me["workspace"]["id"], &me["role"]), (&json!(own_workspace), &json!("owner")));
    // After a lost response, a retry with the previous token gets the same successor.
    let retried = refresh(&app, &viewer.refresh_token).await.expect_status(200);
    assert_eq!(retried["refresh_token"], json!(switched.refresh_token));
    assert_eq!(refresh(&app, &switched.refresh_token).await.status, 200);
    // The next sign-in selects that workspace, and both audit logs have the switch.
    let me = app
        .request_as(&sign_in(&app, &viewer).await.access_token, "GET", "/v1/auth/me")
        .send()
        .await;
    assert_eq!(me.expect_status(200)["workspace"]["id"], json!(own_workspace));
    let query = "action=session.switched";
    let entered = app.wait_for_event_count(&switched.access_token, query, 1).await;
    assert_eq!(entered[0]["metadata"], json!({ "direction": "entered" }));
    let left = app.wait_for_event_count(&acme.access_token, query, 1).await;
    assert_eq!(left[0]["metadata"], json!({ "direction": "left" }));
}

#[tokio::test(flavor = "multi_thread")]
async fn hundred_refreshes_on_two_nodes_give_one_successor() {
    let first = TestApp::start().await;
    let dana = first.register("acme").await;
    let second =
        TestApp::start_on(first.database.clone(), &[("server.public_url", &first.url)]).await;
    let requests = (0..100).map(|index| {
        let node = if index % 2 == 0 { &first } else { &second };
        refresh(node, &dana.refresh_token)
    });
    let mut successors = std::collections::HashSet::new();
    for response in futures_util::future::join_all(requests).await {
        let pair = response.expect_status(200);
        successors.insert(pair["refresh_token"].as_str().unwrap().to_owned());
    }
    assert_eq!(successors.len(), 1);
    let successor = successors.into_iter().next().unwrap();
    let pair = refresh(&second, &successor).await.expect_status(200);
    // The log has two refreshes, however many requests there were.
    let token = pair["access_token"].as_str().unwrap();
    first.wait_for_event_count(token, "action=session.refreshed", 2).await;
}

/// Terminates a database connection at the failpoint that is named in the table `failpoint`.
const FAILPOINTS: &str = "
    CREATE TABLE failpoint (name text);
    CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
    BEGIN
        IF EXISTS (SELECT FROM failpoint WHERE name = TG_ARGV[0]) THEN
            PERFORM pg_terminate_backend(pg_backend_pid());
            PERFORM pg_sleep(1);
        END IF;
        RETURN NEW;
    END $$;
    CREATE TRIGGER a BEFORE UPDATE ON sessions FOR EACH ROW EXECUTE FUNCTION fail('before the update');
    CREATE TRIGGER b AFTER UPDATE ON sessions FOR EACH ROW EXECUTE FUNCTION fail('after the update');
    CREATE TRIGGER c BEFORE INSERT ON audit_events FOR EACH ROW
        WHEN (NEW.action LIKE 'session.%') EXECUTE FUNCTION fail('before the event');
    CREATE TRIGGER d AFTER INSERT ON audit_events FOR EACH ROW
        WHEN (NEW.action LIKE 'session.%') EXECUTE FUNCTION fail('after the event');
    CREATE CONSTRAINT TRIGGER e AFTER UPDATE ON sessions DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
        EXECUTE FUNCTION fail('in the commit');";

/// Activates one failpoint. An unknown name deactivates all of them.
async fn set_failpoint(app: &TestApp, point: &str) {
    let mut connection = app.database.connect().await;
    let sql = "WITH gone AS (DELETE FROM failpoint) INSERT INTO failpoint VALUES ($1)";
    sqlx::query(sql).bind(point).execute(&mut connection).await.unwrap();
}

#[tokio::test]
async fn interrupted_refresh_is_safe_to_retry() {
    let app = TestApp::start().await;
    let mut dana = app.register("acme").await;
    let mut connection = app.database.connect().await;
    sqlx::raw_sql(FAILPOINTS).execute(&mut connection).await.unwrap();
    let points = [
        "before the update",
        "after the update",
        "before the event",
        "after the event",
        "in the commit",
    ];
    for point in points {
        set_failpoint(&app, point).await;
        let interrupted = refresh(&app, &dana.refresh_token).await;
        interrupted.assert_error(503, "unavailable");
        assert!(interrupted.header_number("retry-after") >= 1, "{point}");
        set_failpoint(&app, "nowhere").await;
        let pair = refresh(&app, &dana.refresh_token).await.expect_status(200);
        let retried = refresh(&app, &dana.refresh_token).await.expect_status(200);
        assert_eq!(pair["refresh_token"], retried["refresh_token"], "{point}");
        dana.set_tokens(&pair);
        assert!(is_accepted(&app, &dana).await, "{point}");
    }
    app.wait_for_event_count(&dana.access_token, "action=session.refreshed", points.len()).await;

    // If the session of a stolen token cannot be ended, the reuse is rejected with 503. The retry
    // ends the session.
    let stolen = dana.refresh_token.clone();
    dana.set_tokens(&refresh(&app, &dana.refresh_token).await.expect_status(200));
    app.clock.advance(Duration::from_secs(11));
    for point in points {
        set_failpoint(&app, point).await;
        refresh(&app, &stolen).await.assert_error(503, "unavailable");
        set_failpoint(&app, "nowhere").await;
        assert!(is_accepted(&app, &dana).await, "{point}");
    }
    refresh(&app, &stolen).await.assert_error(401, "invalid_refresh_token");
    assert!(!is_accepted(&app, &dana).await);
    // The emails of rolled-back transactions are not sent.
    let sql = "SELECT count(*) FROM email_outbox WHERE message ->> 'kind' = 'session_reuse'";
    let mails: i64 = sqlx::query_scalar(sql).fetch_one(&mut connection).await.unwrap();
    assert_eq!(mails, 1);
    refresh(&app, &dana.refresh_token).await.assert_error(401, "invalid_refresh_token");
}
