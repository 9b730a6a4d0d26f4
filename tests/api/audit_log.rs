//! /v1/audit-log: the events that are written, their filters and their pages.

use std::time::Duration;

use serde_json::{Value, json};

use crate::fixture::{TestApp, TestClient, TestUser, with_placeholders, with_timeout};

fn is_request_to(path: &'static str) -> impl Fn(&Value) -> bool {
    move |event| event["action"] == "request" && event["request"]["path"] == path
}

#[tokio::test]
async fn call_of_absent_route_is_logged_up_to_the_rate_limit() {
    let app = TestApp::start_with(&[("rate_limit.per_key_per_minute", "300")]).await;
    let dana = app.register("acme").await;
    let key = app.create_key(&dana, "prod", "read-only").await;
    let body = json!({ "name": "far", "allowed_ips": ["192.0.2.0/24"] });
    let far = app.request_as(&dana.access_token, "POST", "/v1/api-keys").json(body).send().await;
    let far = far.expect_status(201);
    for (method, path, status) in [
        ("GET", "/v1/nope", 404),
        ("PUT", "/v1/agents", 405),
        ("POST", "/v1/agents/a/b/c?x=y", 404),
    ] {
        for credential in [&*key.secret, far["key"].as_str().unwrap(), "nonsense"] {
            let answer = app.request(method, path).bearer(credential).send().await;
            assert_eq!(answer.status, status, "{method} {path}");
        }
    }
    for (id, name) in [(&*key.id, "prod"), (far["id"].as_str().unwrap(), "far")] {
        let query = format!("key_id={id}");
        let events = app.wait_for_event_count(&dana.access_token, &query, 3).await;
        let requests: Vec<_> = events
            .iter()
            .map(|event| {
                assert_eq!(
                    (&event["action"], &event["actor"]["name"]),
                    (&json!("request"), &json!(name))
                );
                (event["request"]["path"].as_str().unwrap(), event["request"]["status"].clone())
            })
            .collect();
        let expected = [("/v1/agents/a/b/c", 404), ("/v1/agents", 405), ("/v1/nope", 404)]
            .map(|(p, s)| (p, json!(s)));
        assert_eq!(requests, expected);
        // Only the calls from an allowed address are uses of the key.
        app.database.wait_until_sealed().await;
        let usage = format!("/v1/api-keys/{id}/usage");
        let usage =
            app.request_as(&dana.access_token, "GET", &usage).send().await.expect_status(200);
        assert_eq!(usage["total_requests"], if name == "prod" { 3 } else { 0 });
    }
    app.clock.advance(Duration::from_mins(1));
    // A flood is answered, and fills the log no more than other requests may.
    for _ in 0..350 {
        app.get("/v1/flood").bearer(&key.secret).send().await.assert_error(404, "not_found");
    }
    let mut connection = app.stop().await.connect().await;
    let count = "SELECT count(*) FROM audit_events WHERE path = '/v1/flood'";
    let count: i64 = sqlx::query_scalar(count).fetch_one(&mut connection).await.unwrap();
    assert_eq!(count, 300);
}

#[tokio::test]
async fn request_is_logged_with_key_name() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let key = app.create_key(&dana, "prod-2026-q2", "read-only").await;
    let call = app.get("/v1/agents?limit=3").bearer(&key.secret).header("user-agent", "curl/8.5.0");
    let request_id = call.send().await.header("x-request-id").to_owned();
    let query = format!("key_id={}", key.id);
    let event = &app.wait_for_event_count(&dana.access_token, &query, 1).await[0];
    assert_eq!(event["request"]["id"], request_id);
    assert!(event["request"]["latency_us"].as_i64().is_some());
    let generated = ["/id", "/at", "/actor/id", "/request/id", "/request/latency_us"];
    let expected = json!({
        "id": "…", "at": "…", "action": "request", "metadata": {},
        "actor": { "type": "api_key", "id": "…", "name": "prod-2026-q2" },
        "request": {
            "id": "…", "ip": "127.0.0.1", "latency_us": "…", "method": "GET", "path": "/v1/agents",
            "status": 200, "user_agent": "curl/8.5.0",
        },
    });
    assert_eq!(with_placeholders(event, &generated), expected);
}

#[tokio::test]
async fn change_is_logged_as_change_and_as_request() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let body = json!({ "name": "prod" });
    let call = app.post("/v1/api-keys").bearer(&dana.access_token).json(body);
    let answer = call.send().await;
    let request_id = answer.header("x-request-id").to_owned();
    let key = answer.expect_status(201);
    // The event of the change is visible as soon as the change is.
    let path = format!("/v1/audit-log?action=api_key.created&request_id={request_id}");
    let listed = app.get(&path).bearer(&dana.access_token).send().await.expect_status(200);
    let event = &listed["events"][0];
    assert_eq!(event["target"], json!({ "type": "api_key", "id": key["id"], "name": "prod" }));
    assert_eq!(event["actor"]["id"], dana.user_id);
    assert_eq!(event["actor"]["name"], "Dana Meyer");
    assert_eq!(event["request"]["status"], 201);
    let query = format!("request_id={request_id}");
    app.wait_for_event_count(&dana.access_token, &query, 2).await;
}

#[tokio::test]
async fn rejected_requests_are_logged() {
    let app = TestApp::start_with(&[("rate_limit.per_key_per_minute", "2")]).await;
    let dana = app.register("acme").await;
    let key = app.create_key(&dana, "prod", "read-only").await;
    let reader = app.create_key(&dana, "reader", "read-only").await;
    let post = || app.post("/v1/agents").bearer(&key.secret).json(json!({})).send();
    post().await.assert_error(403, "insufficient_scope");
    app.get("/v1/agents/agent_x").bearer(&key.secret).send().await.assert_error(404, "not_found");
    post().await.assert_error(429, "rate_limited");
    app.raise_rate_limits().await;
    let query = format!("key_id={}", key.id);
    let events = app.wait_for_event_count(&reader.secret, &query, 3).await;
    let statuses: Vec<_> =
        events.iter().map(|event| event["request"]["status"].as_i64().unwrap()).collect();
    assert_eq!(statuses, [429, 404, 403]);
}

#[tokio::test]
async fn each_filter_returns_only_matching_events() {
    let app = TestApp::start_with(&[("server.trusted_proxies", "127.0.0.1")]).await;
    let dana = app.register("acme").await;
    let [a, b] =
        [app.create_key(&dana, "a", "write").await, app.create_key(&dana, "b", "write").await];
    app.get("/v1/agents").bearer(&a.secret).header("x-forwarded-for", "203.0.113.7").send().await;
    app.clock.advance(Duration::from_mins(1));
    let calls_response = app.get("/v1/calls").bearer(&b.secret).send().await;
    let request_id = calls_response.header("x-request-id").to_owned();
    app.post("/v1/agents").bearer(&b.secret).json(json!({ "agent_name": "x" })).send().await;
    let all = app
        .wait_for_event(&dana.access_token, "method=POST&status=201", is_request_to("/v1/agents"))
        .await;
    let at = all[0]["at"].as_str().unwrap().to_owned();
    let list = async |query: String| {
        let path = format!("/v1/audit-log?limit=100&{query}");
        let body = app.get(&path).bearer(&dana.access_token).send().await.expect_status(200);
        body["events"].as_array().unwrap().clone()
    };
    let check = async |query: String, is_expected: &dyn Fn(&Value) -> bool| {
        let events = list(query.clone()).await;
        assert!(!events.is_empty(), "{query}");
        assert!(events.iter().all(is_expected), "{query}: {events:#?}");
    };
    check(format!("key_id={}", a.id), &|e| e["actor"]["id"] == a.id.as_str()).await;
    check(format!("actor_id={}", b.id), &|e| e["actor"]["id"] == b.id.as_str()).await;
    check(format!("actor_id={}", dana.user_id), &|e| e["actor"]["type"] == "user").await;
    check("action=api_key.created".into(), &|e| e["target"]["type"] == "api_key").await;
    check("method=get".into(), &|e| e["request"]["method"] == "GET").await;
    check("status=201".into(), &|e| e["request"]["status"] == 201).await;
    check("ip=203.0.113.7".into(), &|e| e["actor"]["id"] == a.id.as_str()).await;
    check(format!("request_id={request_id}"), &|e| e["request"]["path"] == "/v1/calls").await;
    check(format!("since={at}"), &|e| e["at"].as_str().unwrap() >= at.as_str()).await;
    check(format!("until={at}"), &|e| e["at"].as_str().unwrap() < at.as_str()).await;
    check(format!("key_id={}&method=POST&status=201", b.id), &|e| {
        e["request"]["path"] == "/v1/agents" && e["request"]["method"] == "POST"
    })
    .await;
    assert!(list("action=oauth.granted".into()).await.is_empty());
    assert!(list(format!("key_id={}&method=POST", a.id)).await.is_empty());
}

#[tokio::test]
async fn invalid_filter_is_rejected_by_name() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    for (name, value) in [
        ("key_id", "prod"),
        ("key_id", &dana.user_id),
        ("actor_id", "x"),
        ("action", "DROP TABLE"),
        ("method", "G%20T"),
        ("status", "4xx"),
        ("status", "99"),
        ("ip", "localhost"),
        ("since", "yesterday"),
        ("until", "2026-13-01T00:00:00Z"),
        ("request_id", "req_1"),
        ("limit", "0"),
        ("limit", "101"),
        ("limit", "ten"),
        ("cursor", "!"),
        ("cursor", "AAAA"),
        ("offset", "-1"),
    ] {
        let path = format!("/v1/audit-log?{name}={value}");
        let answer = app.get(&path).bearer(&dana.access_token).send().await;
        answer.assert_error(422, "validation_failed").assert_field(name);
    }
    let with_unknown =
        app.get("/v1/audit-log?unknown=1&x[]=2").bearer(&dana.access_token).send().await;
    with_unknown.expect_status(200);
}

#[tokio::test]
async fn pages_stay_consistent_while_events_are_written() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let key = app.create_key(&dana, "prod", "read-only").await;
    for _ in 0..25 {
        app.get("/v1/agents").bearer(&key.secret).send().await.expect_status(200);
    }
    let query = format!("key_id={}", key.id);
    app.wait_for_event_count(&dana.access_token, &query, 25).await;
    let (mut listed, mut cursor) = (Vec::new(), String::new());
    loop {
        let path = format!("/v1/audit-log?limit=10&{query}{cursor}");
        let page = app.get(&path).bearer(&dana.access_token).send().await.expect_status(200);
        assert!(page.get("total").is_none());
        let ids = page["events"].as_array().unwrap().iter().map(|event| event["id"].to_string());
        listed.extend(ids);
        app.get("/v1/agents").bearer(&key.secret).send().await.expect_status(200);
        let Some(next) = page["next_cursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    assert_eq!(listed.len(), 25);
    assert!(listed.is_sorted_by(|a, b| a > b), "newest first, without duplicates");
}

#[tokio::test]
async fn service_role_can_only_insert_events() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    app.get("/v1/agents").bearer(&dana.access_token).send().await.expect_status(200);
    app.wait_for_event(&dana.access_token, "", is_request_to("/v1/agents")).await;
    let mut connection = app.database.connect().await;
    sqlx::query("SET ROLE call2me_auth_app").execute(&mut connection).await.unwrap();
    for sql in [
        "UPDATE audit_events SET action = 'x'",
        "DELETE FROM audit_events",
        "TRUNCATE audit_events",
        "INSERT INTO audit_chain_segments SELECT * FROM audit_chain_segments",
        "UPDATE audit_chain_segments SET first_sequence = 1",
        "DELETE FROM audit_chain_segments",
        "TRUNCATE audit_chain_segments",
        "UPDATE audit_chain_heads SET sequence = 0",
        "DELETE FROM audit_outbox",
        "DROP TABLE audit_events",
        "ALTER TABLE audit_events DISABLE ROW LEVEL SECURITY",
    ] {
        let error = sqlx::query(sql).execute(&mut connection).await.unwrap_err();
        let code = error.as_database_error().unwrap().code().unwrap().into_owned();
        assert_eq!(code, "42501", "{sql}");
    }
    let excess_grants: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM information_schema.role_table_grants
         WHERE grantee = 'call2me_auth_app' AND table_name LIKE 'audit%'
           AND NOT (table_name = 'audit_events' AND privilege_type IN ('SELECT', 'INSERT'))
           AND NOT (table_name IN ('audit_chain_segments', 'audit_chain_heads')
                    AND privilege_type = 'SELECT')",
    )
    .fetch_one(&mut connection)
    .await
    .unwrap();
    assert_eq!(excess_grants, 0);
}

#[tokio::test]
async fn unknown_credentials_are_counted_by_address() {
    let app = TestApp::start().await;
    for _ in 0..3 {
        app.get("/v1/agents").bearer("nonsense").send().await.assert_error(401, "unauthorized");
    }
    app.get("/v1/agents").send().await.assert_error(401, "unauthorized");
    let database = app.stop().await;
    let mut connection = database.connect().await;
    let (address, attempts): (String, i64) = sqlx::query_as(
        "SELECT host(address), sum(attempts)::bigint FROM unknown_credential_counts GROUP BY 1",
    )
    .fetch_one(&mut connection)
    .await
    .unwrap();
    assert_eq!((address.as_str(), attempts), ("127.0.0.1", 3));
}

#[tokio::test]
async fn credential_in_path_is_redacted_in_log() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let key = app.create_key(&dana, "prod", "write").await;
    let path = format!("/v1/agents/{}", key.secret);
    app.get(&path)
        .bearer(&key.secret)
        .header("user-agent", &key.secret)
        .send()
        .await
        .assert_error(404, "not_found");
    let events = app
        .wait_for_event(&dana.access_token, "status=404", is_request_to("/v1/agents/[redacted]"))
        .await;
    assert_eq!(events[0]["request"]["user_agent"], "[redacted]");
    // Text that only resembles a credential hides nothing.
    for path in ["/v1/agents/eyJ", "/v1/agents/x;eyJ=1", "/v1/agents/call2me_x"] {
        app.get(path).bearer(&key.secret).send().await.assert_error(404, "not_found");
        app.wait_for_event(&dana.access_token, "status=404", is_request_to(path)).await;
    }
}

/// Inserts API requests into the log of a workspace, a millisecond apart, before its first event.
async fn insert_old_requests(app: &TestApp, owner: &TestUser, count: i32) {
    let workspace = call2me_auth::model::id::parse("ws", &owner.workspace_id).unwrap();
    let sql =
        "INSERT INTO audit_events (id, workspace_id, action, actor_type, method, path, status,
                                         ip)
               SELECT uuidv7_lower_bound(oldest - n * interval '1 ms'), $1, 'request', 'anonymous',
                      CASE n WHEN $2 THEN 'PUT' ELSE 'GET' END, '/v1/agents',
                      CASE n WHEN $2 THEN 418 ELSE 200 END,
                      CASE n WHEN $2 THEN inet '192.0.2.7' ELSE inet '192.0.2.1' END
               FROM generate_series(1, $2) n,
                    (SELECT uuidv7_timestamp(min(id::text)::uuid) AS oldest FROM audit_events
                     WHERE workspace_id = $1) first";
    let mut connection = app.database.connect().await;
    let insert = sqlx::query(sql).bind(workspace).bind(count);
    assert_eq!(
        insert.execute(&mut connection).await.unwrap().rows_affected(),
        u64::from(count.unsigned_abs())
    );
}

/// A page ends after 20000 searched events, and its cursor continues the search.
#[tokio::test]
async fn search_for_rare_events_is_divided_into_pages() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let key = app.create_key(&dana, "reader", "read-only").await;
    insert_old_requests(&app, &dana, 45_000).await;
    for (filter, matches) in
        [("ip=192.0.2.7", 1), ("status=418", 1), ("method=PUT", 1), ("ip=192.0.2.9", 0)]
    {
        let (mut found, mut pages, mut cursor) = (0, 0, None);
        loop {
            let cursor_query = cursor.map(|cursor: String| format!("&cursor={cursor}"));
            let path = format!("/v1/audit-log?{filter}{}", cursor_query.unwrap_or_default());
            let page = app.get(&path).bearer(&key.secret).send().await.expect_status(200);
            found += page["events"].as_array().unwrap().len();
            pages += 1;
            cursor = page["next_cursor"].as_str().map(str::to_owned);
            if cursor.is_none() {
                break;
            }
        }
        assert_eq!((found, pages), (matches, 3), "{filter}");
    }
    // Pages of common events neither skip nor repeat any.
    let (mut ids, mut cursor) = (std::collections::HashSet::new(), String::new());
    for _ in 0..3 {
        let path = format!("/v1/audit-log?status=200&ip=192.0.2.1&limit=100{cursor}");
        let page = app.get(&path).bearer(&key.secret).send().await.expect_status(200);
        let events = page["events"].as_array().unwrap();
        ids.extend(events.iter().map(|event| event["id"].as_str().unwrap().to_owned()));
        cursor = format!("&cursor={}", page["next_cursor"].as_str().unwrap());
    }
    assert_eq!(ids.len(), 300);
}

#[tokio::test]
async fn queries_of_one_workspace_do_not_hold_up_others() {
    let app = TestApp::start_with(&[("database.max_connections", "16")]).await;
    let [acme, widgets] = [app.register("acme").await, app.register("widgets-inc").await];
    let id =
        |user: &TestUser| call2me_auth::model::id::parse("ws", &user.workspace_id).unwrap().into();
    let log = &app.app.audit_log;
    let held = log.acquire_query_permit(id(&acme)).await.unwrap();
    let waiting: Vec<_> =
        (0..60).map(|_| app.get("/v1/audit-log").bearer(&acme.access_token).send()).collect();
    let waiting = tokio::spawn(futures_util::future::join_all(waiting));
    let read = async |user: &TestUser| {
        app.get("/v1/audit-log").bearer(&user.access_token).send().await.expect_status(200)
    };
    with_timeout("the log of the other workspace", read(&widgets)).await;
    assert!(!waiting.is_finished());
    drop(held);
    for response in with_timeout("the waiting queries", waiting).await.unwrap() {
        response.expect_status(200);
    }
}
