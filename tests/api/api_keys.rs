//! /v1/api-keys: keys are created, listed, changed and revoked.

use serde_json::{Value, json};

use crate::fixture::{
    PASSWORD, SmtpSink, TestApp, TestClient, TestUser, eventually, link_token, with_placeholders,
};

#[tokio::test]
async fn created_key_has_documented_form_and_is_shown_once() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let body = json!({ "name": "prod-2026-q2", "description": "The booking server" });
    let answer = app.post("/v1/api-keys").bearer(&dana.access_token).json(body).send().await;
    let location = answer.header("location").to_owned();
    let key = answer.expect_status(201);
    assert_eq!(location, format!("/v1/api-keys/{}", key["id"].as_str().unwrap()));
    let secret = key["key"].as_str().unwrap();
    let random = secret.strip_prefix("sk_call2me_live_").unwrap();
    assert_eq!(random.len(), 36);
    assert_eq!(key["redacted"], format!("sk_call2me_live_{}…{}", &random[..4], &random[26..30]));
    let generated = ["/id", "/key", "/redacted", "/created_at", "/created_by"];
    let expected = json!({
        "id": "…", "name": "prod-2026-q2", "description": "The booking server", "scope": "write",
        "status": "active", "redacted": "…", "created_at": "…", "created_by": "…",
        "last_used_at": null, "last_used_ip": null, "revoked_at": null, "revoked_by": null,
        "rotated_from": null, "rotated_to": null, "allowed_ips": [],
        "rate_limit_per_minute": null, "key": "…",
    });
    assert_eq!(with_placeholders(&key, &generated), expected);
    let fetched = app.get(&location).bearer(&dana.access_token).send().await;
    assert!(!fetched.text.contains(secret));
    assert_eq!(fetched.expect_status(200)["created_by"], dana.user_id);
}

#[tokio::test]
async fn key_works_until_it_is_revoked() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let key = app.create_key(&dana, "prod", "write").await;
    app.get("/v1/agents").bearer(&key.secret).send().await.expect_status(200);
    let path = format!("/v1/api-keys/{}", key.id);
    let revoke = || app.delete(&path).bearer(&dana.access_token).send();
    assert_eq!(revoke().await.status, 204);
    let rejected = app.get("/v1/agents").bearer(&key.secret).send().await;
    rejected.assert_error(401, "unauthorized");
    assert_eq!(revoke().await.status, 204, "a second revocation changes nothing");
    let fetched = app.get(&path).bearer(&dana.access_token).send().await.expect_status(200);
    assert_eq!(fetched["status"], "revoked");
    assert_eq!(fetched["revoked_by"], dana.user_id);
    let events = app
        .wait_for_event(&dana.access_token, "", |event| event["action"] == "api_key.rejected")
        .await;
    let count = |action: &str| events.iter().filter(|event| event["action"] == action).count();
    assert_eq!(count("api_key.revoked"), 1);
    assert_eq!(count("api_key.rejected"), 1);
}

#[tokio::test]
async fn key_list_is_filtered_and_names_may_repeat() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let first = app.create_key(&dana, "prod", "write").await;
    app.create_key(&dana, "prod", "read-only").await;
    app.create_key(&dana, "staging", "admin").await;
    app.delete(&format!("/v1/api-keys/{}", first.id))
        .bearer(&dana.access_token)
        .send()
        .await
        .expect_status(204);
    let list = async |query: &str| {
        let path = format!("/v1/api-keys{query}");
        app.get(&path).bearer(&dana.access_token).send().await.expect_status(200)
    };
    let names = |body: &Value| -> Vec<String> {
        let keys = body["api_keys"].as_array().unwrap();
        keys.iter().map(|key| key["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&list("").await), ["staging", "prod", "prod"]);
    assert_eq!(list("").await["total"], 3);
    assert_eq!(list("?status=active&name=prod").await["total"], 1);
    assert_eq!(names(&list("?status=revoked").await), ["prod"]);
    assert_eq!(list("?name=PROD").await["total"], 0);
    assert_eq!(names(&list("?limit=2").await), ["staging", "prod"]);
    let cursor = list("?limit=2").await["next_cursor"].as_str().unwrap().to_owned();
    let last_page = list(&format!("?limit=2&cursor={cursor}")).await;
    assert_eq!(
        (names(&last_page), &last_page["next_cursor"]),
        (vec!["prod".to_owned()], &Value::Null)
    );
    assert_eq!(names(&list("?offset=1&limit=1").await), ["prod"]);
}

#[tokio::test]
async fn key_update_changes_everything_but_the_scope() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let key = app.create_key(&dana, "prod", "read-only").await;
    let path = format!("/v1/api-keys/{}", key.id);
    let patch = |body: Value| app.patch(&path).bearer(&dana.access_token).json(body).send();
    let changed = patch(json!({
        "name": "prod-eu", "description": "EU", "allowed_ips": ["10.1.2.3/8", "::1"],
    }));
    let changed = changed.await.expect_status(200);
    assert_eq!((&changed["name"], &changed["description"]), (&json!("prod-eu"), &json!("EU")));
    assert_eq!(changed["allowed_ips"], json!(["10.0.0.0/8", "::1/128"]));
    let unchanged = patch(json!({})).await.expect_status(200);
    assert_eq!(unchanged["description"], "EU", "absent fields keep their value");
    let cleared = patch(json!({ "description": null, "allowed_ips": [] })).await.expect_status(200);
    assert_eq!((&cleared["description"], &cleared["allowed_ips"]), (&Value::Null, &json!([])));
    for (field, value) in [
        ("scope", json!("admin")),
        ("expires_at", json!("2030-01-01T00:00:00Z")),
        ("name", Value::Null),
        ("name", json!(" ")),
        ("allowed_ips", json!(["300.0.0.1"])),
        ("allowed_ips", Value::Null),
        ("disabled", Value::Null),
        ("disabled", json!("yes")),
        ("rate_limit_per_minute", json!(0)),
        ("rate_limit_per_minute", json!(-1)),
        ("rate_limit_per_minute", json!(10_001)),
        ("rate_limit_per_minute", json!("600")),
    ] {
        patch(json!({ field: value }))
            .await
            .assert_error(422, "validation_failed")
            .assert_field(field);
    }
}

#[tokio::test]
async fn key_is_rejected_outside_allowed_ips() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let key = app.create_key(&dana, "prod", "write").await;
    let path = format!("/v1/api-keys/{}", key.id);
    let restrict = async |allowed_ips: Value| {
        let body = json!({ "allowed_ips": allowed_ips });
        app.patch(&path).bearer(&dana.access_token).json(body).send().await.expect_status(200);
    };
    restrict(json!(["203.0.113.0/24"])).await;
    app.get("/v1/agents").bearer(&key.secret).send().await.assert_error(403, "forbidden");
    restrict(json!(["127.0.0.0/8"])).await;
    app.get("/v1/agents").bearer(&key.secret).send().await.expect_status(200);
}

#[tokio::test]
async fn disabled_key_is_rejected_on_every_node_until_it_is_enabled() {
    let app = TestApp::start().await;
    let other = app.another_node().await;
    let dana = app.register("acme").await;
    let key = app.create_key(&dana, "prod", "admin").await;
    let body = json!({ "name": "child" });
    let child = app.post("/v1/api-keys").bearer(&key.secret).json(body).send().await;
    let child = child.expect_status(201)["key"].as_str().unwrap().to_owned();
    let path = format!("/v1/api-keys/{}", key.id);
    let set_disabled = async |disabled: bool| {
        let body = json!({ "disabled": disabled });
        app.patch(&path).bearer(&dana.access_token).json(body).send().await
    };
    let send = |node: &TestApp, key: &str| node.get("/v1/agents").bearer(key).send();
    for _ in 0..2 {
        send(&other, &key.secret).await.expect_status(200);
        assert_eq!(set_disabled(true).await.expect_status(200)["status"], "disabled");
        for node in [&other, &app] {
            let rejected = send(node, &key.secret).await;
            rejected.assert_error(401, "unauthorized");
            assert_eq!(rejected.body["detail"], "the API key is disabled");
            // What the key made keeps working.
            send(node, &child).await.expect_status(200);
        }
        assert_eq!(set_disabled(true).await.expect_status(200)["status"], "disabled");
        assert_eq!(set_disabled(false).await.expect_status(200)["status"], "active");
        send(&other, &key.secret).await.expect_status(200);
    }
    let count = async |action: &str, count: usize| {
        let query = format!("action={action}");
        app.wait_for_event_count(&dana.access_token, &query, count).await
    };
    count("api_key.rejected", 4).await;
    count("api_key.disabled", 2).await;
    count("api_key.enabled", 2).await;
    count("api_key.updated", 0).await;
    // A revoked key is neither disabled nor enabled.
    set_disabled(true).await.expect_status(200);
    app.delete(&path).bearer(&dana.access_token).send().await.expect_status(204);
    for disabled in [true, false] {
        set_disabled(disabled).await.assert_error(409, "conflict");
    }
    let resource = app.get(&path).bearer(&dana.access_token).send().await.expect_status(200);
    assert_eq!(resource["status"], "revoked");
}

#[tokio::test]
async fn disabled_keys_are_listed_by_status() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let mut keys = Vec::new();
    for name in ["active", "disabled", "revoked", "disabled, then revoked"] {
        keys.push(app.create_key(&dana, name, "write").await);
    }
    for key in [&keys[1], &keys[3]] {
        let body = json!({ "disabled": true });
        let path = format!("/v1/api-keys/{}", key.id);
        app.patch(&path).bearer(&dana.access_token).json(body).send().await.expect_status(200);
    }
    for key in [&keys[2], &keys[3]] {
        let path = format!("/v1/api-keys/{}", key.id);
        app.delete(&path).bearer(&dana.access_token).send().await.expect_status(204);
    }
    for (status, expected) in [
        ("active", vec!["active"]),
        ("disabled", vec!["disabled"]),
        ("revoked", vec!["disabled, then revoked", "revoked"]),
    ] {
        let path = format!("/v1/api-keys?status={status}");
        let list = app.get(&path).bearer(&dana.access_token).send().await.expect_status(200);
        let keys = list["api_keys"].as_array().unwrap();
        let names: Vec<_> = keys.iter().map(|key| key["name"].as_str().unwrap()).collect();
        assert_eq!((&list["total"], names), (&json!(expected.len()), expected));
    }
    let bad = app.get("/v1/api-keys?status=paused").bearer(&dana.access_token).send().await;
    bad.assert_error(422, "validation_failed").assert_field("status");
}

#[tokio::test]
async fn disabled_key_and_its_invitations_are_refused() {
    let sink = SmtpSink::start();
    let app = TestApp::start_with(&[("mail.url", &sink.url())]).await;
    let dana = app.register_verified("acme").await;
    let key = app.create_key(&dana, "prod", "admin").await;
    let body = json!({ "email": "sam@new.example", "role": "member" });
    app.post("/v1/invitations").bearer(&key.secret).json(body).send().await.expect_status(201);
    let token = link_token(&sink.wait_for_email("sam@new.example", "Invitation").await);
    let set_disabled = async |disabled: bool| {
        let path = format!("/v1/api-keys/{}", key.id);
        let body = json!({ "disabled": disabled });
        app.patch(&path).bearer(&dana.access_token).json(body).send().await.expect_status(200);
    };
    let accept = async || {
        let body = json!({ "token": token, "password": PASSWORD });
        app.post("/v1/invitations/accept").json(body).send().await
    };
    set_disabled(true).await;
    accept().await.assert_error(422, "validation_failed").assert_field("token");
    let page = app.get(&format!("/accept-invitation?token={token}")).send().await;
    assert_ne!(page.status, 200, "{}", page.text);
    set_disabled(false).await;
    accept().await.expect_status(201);
}

#[tokio::test]
async fn invalid_key_fields_are_rejected_by_name() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    for (body, field) in [
        (json!({}), "name"),
        (json!({ "name": "" }), "name"),
        (json!({ "name": "x".repeat(101) }), "name"),
        (json!({ "name": "a\nb\u{1}" }), "name"),
        (json!({ "name": "a\u{0}b" }), "name"),
        (json!({ "name": ["a"] }), "name"),
        (json!({ "name": "a", "scope": "root" }), "scope"),
        (json!({ "name": "a", "scope": "READ-ONLY" }), "scope"),
        (json!({ "name": "a", "expires_at": null }), "expires_at"),
        (json!({ "name": "a", "ttl": 60 }), "ttl"),
        (json!({ "name": "a", "workspace_id": dana.workspace_id }), "workspace_id"),
        (json!({ "name": "a", "allowed_ips": ["everywhere"] }), "allowed_ips"),
        (json!({ "name": "a", "allowed_ips": "10.0.0.0/8" }), "allowed_ips"),
        (json!({ "name": "a", "description": "x".repeat(501) }), "description"),
        (json!({ "name": "a", "rate_limit_per_minute": 0 }), "rate_limit_per_minute"),
        (json!({ "name": "a", "rate_limit_per_minute": 10_001 }), "rate_limit_per_minute"),
        (json!({ "name": "a", "rate_limit_per_minute": 1.5 }), "rate_limit_per_minute"),
    ] {
        let answer = app.post("/v1/api-keys").bearer(&dana.access_token).json(body).send().await;
        answer.assert_error(422, "validation_failed").assert_field(field);
    }
    let list = app.get("/v1/api-keys").bearer(&dana.access_token).send().await.expect_status(200);
    assert_eq!(list["total"], 0, "no key was created");
}

#[tokio::test]
async fn admin_key_creates_keys_and_revokes_itself() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let admin = app.create_key(&dana, "admin", "admin").await;
    let body = json!({ "name": "child", "scope": "read-only" });
    let child =
        app.post("/v1/api-keys").bearer(&admin.secret).json(body).send().await.expect_status(201);
    assert_eq!(child["created_by"], admin.id);
    app.delete(&format!("/v1/api-keys/{}", admin.id))
        .bearer(&admin.secret)
        .send()
        .await
        .expect_status(204);
    app.get("/v1/agents").bearer(&admin.secret).send().await.assert_error(401, "unauthorized");
    let secret = child["key"].as_str().unwrap();
    app.get("/v1/agents").bearer(secret).send().await.expect_status(200);
    // Both keys act for the same user.
    let me = app.get("/v1/users/me").bearer(secret).send().await.expect_status(200);
    assert_eq!(me["id"], dana.user_id);
}

#[tokio::test]
async fn malformed_key_is_rejected_with_specific_reason() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let key = app.create_key(&dana, "prod", "write").await;
    let mut mistyped = key.secret.clone().into_bytes();
    mistyped[20] = if mistyped[20] == b'A' { b'B' } else { b'A' };
    let mistyped = String::from_utf8(mistyped).unwrap();
    let answer = app.get("/v1/agents").bearer(&mistyped).send().await;
    answer.assert_error(401, "unauthorized");
    assert!(answer.body["detail"].as_str().unwrap().contains("checksum"));
    let test_key = key.secret.replace("_live_", "_test_");
    let answer = app.get("/v1/agents").bearer(&test_key).send().await;
    answer.assert_error(401, "unauthorized");
    assert!(answer.body["detail"].as_str().unwrap().contains("\"test\""));
    assert!(
        answer.header("www-authenticate").contains("'test'"),
        "a double quote would end the quoted string"
    );
}

#[tokio::test]
async fn key_use_is_recorded_and_counted() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let key = app.create_key(&dana, "prod", "read-only").await;
    for _ in 0..3 {
        app.get("/v1/agents").bearer(&key.secret).send().await.expect_status(200);
    }
    let path = format!("/v1/api-keys/{}", key.id);
    let used_key = eventually("last_used_at", async || {
        let key = app.get(&path).bearer(&dana.access_token).send().await.expect_status(200);
        key["last_used_at"].is_string().then_some(key)
    })
    .await;
    assert_eq!(used_key["last_used_ip"], "127.0.0.1");
    let counted = eventually("the request count", async || {
        let mut connection = app.database.connect().await;
        let count: i64 = sqlx::query_scalar("SELECT total_requests FROM api_key_activity")
            .fetch_one(&mut connection)
            .await
            .unwrap();
        (count == 3).then_some(count)
    });
    counted.await;
}

#[tokio::test]
async fn database_contains_no_plaintext_secret() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let key = app.create_key(&dana, "prod", "write").await;
    let mut connection = app.database.connect().await;
    let tables: Vec<String> = sqlx::query_scalar(
        "SELECT relname::text FROM pg_class WHERE relkind IN ('r', 'p') AND relnamespace = 'public'::regnamespace",
    )
    .fetch_all(&mut connection)
    .await
    .unwrap();
    assert!(tables.len() > 10);
    for table in tables {
        let dump = format!("SELECT coalesce(string_agg(t::text, ' '), '') FROM \"{table}\" t");
        let text: String =
            sqlx::query_scalar(sqlx::AssertSqlSafe(dump)).fetch_one(&mut connection).await.unwrap();
        for secret in [
            &key.secret[16..],
            &dana.access_token,
            &dana.refresh_token[11..],
            crate::fixture::PASSWORD,
        ] {
            assert!(!text.contains(secret), "{table}");
        }
    }
}

/// Inserts keys without secrets, so that the workspace has this number.
async fn fill_up_keys(app: &TestApp, owner: &TestUser, count: i64) {
    let workspace = call2me_auth::model::id::parse("ws", &owner.workspace_id).unwrap();
    let sql = "INSERT INTO api_keys (id, workspace_id, name, scope, digest, display_start,
                                     display_end, created_at)
               SELECT gen_random_uuid(), $1, 'filler', 'read-only',
                      sha256(uuid_send(gen_random_uuid())), 'a', 'b', now()
               FROM generate_series(1, $2 - (SELECT count(*) FROM api_keys
                                             WHERE workspace_id = $1 AND revoked_at IS NULL))";
    let mut connection = app.database.connect().await;
    sqlx::query(sql).bind(workspace).bind(count).execute(&mut connection).await.unwrap();
}

#[tokio::test]
async fn workspace_has_at_most_1000_keys() {
    let app = TestApp::start().await;
    let [dana, wim] = [app.register("acme").await, app.register("widgets-inc").await];
    let key = app.create_key(&dana, "prod", "write").await;
    fill_up_keys(&app, &dana, 999).await;
    let create = async || {
        let body = json!({ "name": "one more", "scope": "read-only" });
        app.post("/v1/api-keys").bearer(&dana.access_token).json(body).send().await
    };
    // Of concurrent creations, one gets the last place.
    let mut statuses = futures_util::future::join_all((0..5).map(|_| create())).await;
    statuses.sort_by_key(|answer| answer.status);
    assert_eq!(statuses[0].status, 201, "{}", statuses[0].text);
    for refused in &statuses[1..] {
        refused.assert_error(409, "conflict");
    }
    let rotate = format!("/v1/api-keys/{}/rotate", key.id);
    let rotate = app.post(&rotate).bearer(&dana.access_token).json(json!({}));
    rotate.send().await.assert_error(409, "conflict");
    // Other workspaces are not concerned, and a revoked key makes room.
    app.create_key(&wim, "prod", "write").await;
    let revoke = app.delete(&format!("/v1/api-keys/{}", key.id)).bearer(&dana.access_token);
    revoke.send().await.expect_status(204);
    create().await.expect_status(201);
    create().await.assert_error(409, "conflict");
}
