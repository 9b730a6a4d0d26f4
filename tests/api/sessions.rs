//! /v1/auth/sessions and /v1/auth/switch-workspace: a person's own sessions.

use std::time::Duration;

use serde_json::{Value, json};

use crate::fixture::{Answer, PASSWORD, Person, TestApp};

async fn sign_in(app: &TestApp, person: &Person) -> Person {
    let body = json!({ "email": person.email, "password": PASSWORD });
    let pair = app.post("/v1/auth/login").json(body).send().await.expect(200);
    let mut again = person.clone();
    again.take(&pair);
    again
}

async fn sessions(app: &TestApp, person: &Person) -> Vec<Value> {
    let body = app.by(&person.access_token, "GET", "/v1/auth/sessions").send().await.expect(200);
    let sessions = body["sessions"].as_array().unwrap().clone();
    assert_eq!(body["total"], sessions.len());
    sessions
}

async fn own_id(app: &TestApp, person: &Person) -> String {
    let sessions = sessions(app, person).await;
    let own = sessions.iter().find(|session| session["current"] == true).unwrap();
    own["id"].as_str().unwrap().to_owned()
}

async fn works(app: &TestApp, person: &Person) -> bool {
    app.by(&person.access_token, "GET", "/v1/agents").send().await.status == 200
}

async fn refresh(app: &TestApp, token: &str) -> Answer {
    app.post("/v1/auth/refresh").json(json!({ "refresh_token": token })).send().await
}

#[tokio::test]
async fn ones_own_sessions_are_listed_and_nobody_elses() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    app.register("other").await;
    let call = app.post("/v1/auth/login").header("user-agent", "curl/8.5");
    let body = json!({ "email": dana.email, "password": PASSWORD });
    call.json(body).send().await.expect(200);
    let found = sessions(&app, &dana).await;
    assert_eq!(found.len(), 2, "{found:#?}");
    assert_eq!(found[0]["user_agent"], "curl/8.5");
    assert_eq!(found[0]["ip"], "127.0.0.1");
    assert_eq!(found[0]["current"], false);
    assert_eq!(found[1]["current"], true);
    assert_eq!(found[1]["workspace_id"], dana.workspace_id);
    let page = app.by(&dana.access_token, "GET", "/v1/auth/sessions?limit=1").send().await;
    let page = page.expect(200);
    assert_eq!((&page["sessions"][0], &page["total"]), (&found[0], &json!(2)));
    let next =
        format!("/v1/auth/sessions?limit=1&cursor={}", page["next_cursor"].as_str().unwrap());
    let page = app.by(&dana.access_token, "GET", &next).send().await.expect(200);
    assert_eq!((&page["sessions"][0], &page["next_cursor"]), (&found[1], &Value::Null));
}

#[tokio::test]
async fn what_has_run_out_is_not_listed() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    app.clock.advance(Duration::from_hours(31 * 24));
    let again = sign_in(&app, &dana).await;
    assert_eq!(sessions(&app, &again).await.len(), 1);
}

#[tokio::test]
async fn a_session_ends_from_another_one_at_once() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let phone = sign_in(&app, &dana).await;
    let id = own_id(&app, &phone).await;
    let path = format!("/v1/auth/sessions/{id}");
    assert!(works(&app, &phone).await);
    let eve = app.register("eve").await;
    app.by(&eve.access_token, "DELETE", &path).send().await.refused(404, "not_found");
    assert!(works(&app, &phone).await);
    for _ in 0..2 {
        assert_eq!(app.by(&dana.access_token, "DELETE", &path).send().await.status, 204);
        assert!(!works(&app, &phone).await);
    }
    refresh(&app, &phone.refresh_token).await.refused(401, "invalid_refresh_token");
    assert!(works(&app, &dana).await);
    let events = app.events_of(&dana.access_token, "action=session.ended", 1).await;
    assert_eq!(events[0]["target"]["id"], json!(id));
    assert_eq!(events[0]["metadata"]["reason"], "ended");
    // One's own is signed out.
    let own = format!("/v1/auth/sessions/{}", own_id(&app, &dana).await);
    assert_eq!(app.by(&dana.access_token, "DELETE", &own).send().await.status, 204);
    assert!(!works(&app, &dana).await);
}

#[tokio::test]
async fn all_others_end_together() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let (phone, tablet) = (sign_in(&app, &dana).await, sign_in(&app, &dana).await);
    let lee = app.register("lee").await;
    assert_eq!(app.by(&phone.access_token, "DELETE", "/v1/auth/sessions").send().await.status, 204);
    assert!(works(&app, &phone).await);
    assert!(!works(&app, &dana).await && !works(&app, &tablet).await);
    assert!(works(&app, &lee).await);
    assert_eq!(sessions(&app, &phone).await.len(), 1);
    app.events_of(&phone.access_token, "action=session.ended", 2).await;
}

#[tokio::test]
async fn a_key_has_no_sessions() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let key = app.mint(&dana, "admin", "admin").await;
    for (method, path) in [
        ("GET", "/v1/auth/sessions".to_owned()),
        ("DELETE", "/v1/auth/sessions".to_owned()),
        ("DELETE", format!("/v1/auth/sessions/{}", own_id(&app, &dana).await)),
        ("POST", "/v1/auth/switch-workspace".to_owned()),
    ] {
        app.by(&key.secret, method, &path).send().await.refused(403, "forbidden");
    }
    assert!(works(&app, &dana).await);
}

#[tokio::test]
async fn a_session_moves_to_another_workspace() {
    let app = TestApp::start().await;
    let acme = app.register("acme").await;
    // Signed in to acme; the own workspace is another.
    let viewer = app.join(&acme, "viewer").await;
    let me = app.by(&viewer.access_token, "GET", "/v1/auth/me").send().await.expect(200);
    assert_eq!(me["workspace"]["id"], json!(acme.workspace_id));
    let mut connection = app.database.connect().await;
    let own: uuid::Uuid = sqlx::query_scalar(
        "SELECT workspace_id FROM memberships WHERE user_id = $1 AND role = 'owner'",
    )
    .bind(call2me_auth::model::id::parse("user", &viewer.user_id).unwrap())
    .fetch_one(&mut connection)
    .await
    .unwrap();
    let own = call2me_auth::model::id::WorkspaceId::from(own).to_string();

    let switch = |person: &Person, workspace: &str| {
        app.by(&person.access_token, "POST", "/v1/auth/switch-workspace")
            .json(json!({ "workspace_id": workspace }))
    };
    let other = app.register("other").await;
    switch(&viewer, &other.workspace_id).send().await.refused(403, "forbidden");
    let pair = switch(&viewer, &own).send().await.expect(200);
    let mut moved = viewer.clone();
    moved.take(&pair);
    assert!(!works(&app, &viewer).await, "the token for the workspace before");
    let me = app.by(&moved.access_token, "GET", "/v1/auth/me").send().await.expect(200);
    assert_eq!((&me["workspace"]["id"], &me["role"]), (&json!(own), &json!("owner")));
    // A lost answer: the token that was current before gets the same successor.
    let retried = refresh(&app, &viewer.refresh_token).await.expect(200);
    assert_eq!(retried["refresh_token"], json!(moved.refresh_token));
    assert_eq!(refresh(&app, &moved.refresh_token).await.status, 200);
    // The next sign-in leads there, and both logs tell.
    let me = app.by(&sign_in(&app, &viewer).await.access_token, "GET", "/v1/auth/me").send().await;
    assert_eq!(me.expect(200)["workspace"]["id"], json!(own));
    let query = "action=session.switched";
    let entered = app.events_of(&moved.access_token, query, 1).await;
    assert_eq!(entered[0]["metadata"], json!({ "direction": "entered" }));
    let left = app.events_of(&acme.access_token, query, 1).await;
    assert_eq!(left[0]["metadata"], json!({ "direction": "left" }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_refreshes_over_two_nodes_give_one_successor() {
    let one = TestApp::start().await;
    let dana = one.register("acme").await;
    let two = TestApp::start_on(one.database.clone(), &[("server.public_url", &one.url)]).await;
    let calls = (0..100).map(|n| {
        let node = if n % 2 == 0 { &one } else { &two };
        refresh(node, &dana.refresh_token)
    });
    let mut successors = std::collections::HashSet::new();
    for answer in futures_util::future::join_all(calls).await {
        let pair = answer.expect(200);
        successors.insert(pair["refresh_token"].as_str().unwrap().to_owned());
    }
    assert_eq!(successors.len(), 1);
    let successor = successors.into_iter().next().unwrap();
    let pair = refresh(&two, &successor).await.expect(200);
    // The session is refreshed twice, whoever asked how often.
    let token = pair["access_token"].as_str().unwrap();
    one.events_of(token, "action=session.refreshed", 2).await;
}

/// Ends the connection that comes to a point whose name is in the table `failpoint`.
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

async fn fail_at(app: &TestApp, point: &str) {
    let mut connection = app.database.connect().await;
    let sql = "WITH gone AS (DELETE FROM failpoint) INSERT INTO failpoint VALUES ($1)";
    sqlx::query(sql).bind(point).execute(&mut connection).await.unwrap();
}

#[tokio::test]
async fn a_refresh_that_breaks_off_while_it_writes_is_tried_again() {
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
        fail_at(&app, point).await;
        let broken = refresh(&app, &dana.refresh_token).await;
        broken.refused(503, "unavailable");
        assert!(broken.number("retry-after") >= 1, "{point}");
        fail_at(&app, "nowhere").await;
        let pair = refresh(&app, &dana.refresh_token).await.expect(200);
        let again = refresh(&app, &dana.refresh_token).await.expect(200);
        assert_eq!(pair["refresh_token"], again["refresh_token"], "{point}");
        dana.take(&pair);
        assert!(works(&app, &dana).await, "{point}");
    }
    app.events_of(&dana.access_token, "action=session.refreshed", points.len()).await;

    // A thief's reuse is refused also where its session cannot be ended: with 503, and ended by the retry.
    let stolen = dana.refresh_token.clone();
    dana.take(&refresh(&app, &dana.refresh_token).await.expect(200));
    app.clock.advance(Duration::from_secs(11));
    for point in points {
        fail_at(&app, point).await;
        refresh(&app, &stolen).await.refused(503, "unavailable");
        fail_at(&app, "nowhere").await;
        assert!(works(&app, &dana).await, "{point}");
    }
    refresh(&app, &stolen).await.refused(401, "invalid_refresh_token");
    assert!(!works(&app, &dana).await);
    // The mail of what was rolled back is not sent.
    let sql = "SELECT count(*) FROM mail_outbox WHERE mail ->> 'kind' = 'session_reuse'";
    let mails: i64 = sqlx::query_scalar(sql).fetch_one(&mut connection).await.unwrap();
    assert_eq!(mails, 1);
    refresh(&app, &dana.refresh_token).await.refused(401, "invalid_refresh_token");
}
