//! /v1/api-keys/{id}/rotate, /rotation and /usage, and /v1/api-keys/hygiene: key rotation, with a
//! report on the remaining use of the old key.

use std::time::Duration;

use futures_util::StreamExt as _;
use serde_json::{Value, json};

use crate::fixture::{Key, TestApp, TestClient, TestUser, eventually};

/// Rotates a key. Returns the successor and the whole response.
async fn rotate(app: &TestClient, owner: &TestUser, key: &Key, body: Value) -> (Key, Value) {
    let path = format!("/v1/api-keys/{}/rotate", key.id);
    let response =
        app.post(&path).bearer(&owner.access_token).json(body).send().await.expect_status(201);
    let text = |field: &str| response[field].as_str().unwrap().to_owned();
    (Key { id: text("id"), secret: text("key") }, response)
}

/// Returns the user with an API key as access token, which does not expire when the clock advances.
async fn with_api_key(app: &TestApp, owner: &TestUser) -> TestUser {
    let key = app.create_key(owner, "watcher", "admin").await;
    TestUser { access_token: key.secret, ..owner.clone() }
}

async fn fetch_report(app: &TestApp, owner: &TestUser, key: &Key) -> Value {
    let path = format!("/v1/api-keys/{}/rotation", key.id);
    app.get(&path).bearer(&owner.access_token).send().await.expect_status(200)
}

async fn fetch_usage(app: &TestApp, owner: &TestUser, key: &Key) -> Value {
    let path = format!("/v1/api-keys/{}/usage", key.id);
    app.get(&path).bearer(&owner.access_token).send().await.expect_status(200)
}

/// Sends requests with a key and this user agent.
async fn send_requests(app: &TestApp, key: &Key, user_agent: &str, count: usize) {
    for _ in 0..count {
        let request = app.get("/v1/agents").bearer(&key.secret).header("user-agent", user_agent);
        request.send().await.expect_status(200);
    }
}

/// Waits until the report has these request counts of the old and the new key, and returns it.
async fn wait_for_counts(app: &TestApp, owner: &TestUser, key: &Key, old: i64, new: i64) -> Value {
    eventually("the requests are counted", async || {
        let report = fetch_report(app, owner, key).await;
        let counts = ["old", "new"].map(|age| report[age]["requests_last_hour"].as_i64());
        (counts == [Some(old), Some(new)]).then_some(report)
    })
    .await
}

async fn revoke_if_quiet(
    app: &TestApp,
    owner: &TestUser,
    key: &Key,
) -> crate::fixture::TestResponse {
    let path = format!("/v1/api-keys/{}?if_quiet=true", key.id);
    app.delete(&path).bearer(&owner.access_token).send().await
}

#[tokio::test]
async fn rotation_report_follows_key_from_creation_to_revocation() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let body = json!({ "name": "prod-2026-q2", "scope": "write", "description": "The booking server",
                       "allowed_ips": ["127.0.0.0/8"] });
    let created = app.post("/v1/api-keys").bearer(&dana.access_token).json(body).send().await;
    let created = created.expect_status(201);
    let text = |field: &str| created[field].as_str().unwrap().to_owned();
    let old = Key { id: text("id"), secret: text("key") };
    send_requests(&app, &old, "booking/1", 3).await;

    let (new, rotated) = rotate(&app, &dana, &old, json!({ "name": "prod-2026-q3" })).await;
    assert_eq!(rotated["name"], "prod-2026-q3");
    assert_eq!(rotated["rotated_from"], old.id.as_str());
    for field in ["scope", "description", "allowed_ips"] {
        assert_eq!(rotated[field], created[field], "{field}");
    }
    let first = app.get(&format!("/v1/api-keys/{}", old.id)).bearer(&dana.access_token);
    let first = first.send().await.expect_status(200);
    assert_eq!((&first["status"], &first["rotated_to"]), (&json!("active"), &json!(new.id)));
    let events = app.wait_for_event(&dana.access_token, "action=api_key.rotated", |_| true).await;
    assert_eq!(events[0]["target"]["id"], old.id.as_str());
    assert_eq!(events[0]["metadata"]["rotated_to"], new.id.as_str());

    // The new key is unused.
    let unused = wait_for_counts(&app, &dana, &old, 3, 0).await;
    assert_eq!(unused["state"], "minted");
    assert_eq!(unused["safe_to_revoke"], false);
    assert_eq!(unused["reason"], "the new key has not been used yet");
    assert_eq!(unused["new"]["first_used_at"], Value::Null);
    let refused = revoke_if_quiet(&app, &dana, &old).await;
    refused.assert_error(409, "key_in_use");
    assert_eq!(refused.body["rotation"]["old"]["id"], old.id.as_str());
    assert_eq!(refused.body["rotation"]["reason"], unused["reason"]);

    // The old key still has more requests.
    app.clock.advance(Duration::from_mins(5));
    send_requests(&app, &new, "booking/2", 1).await;
    let adopted = wait_for_counts(&app, &dana, &old, 3, 1).await;
    assert_eq!((&adopted["state"], &adopted["adoption"]), (&json!("adopted"), &json!(0.25)));

    // Now the new key has more.
    send_requests(&app, &new, "booking/2", 4).await;
    send_requests(&app, &old, "forgotten-cron/1", 1).await;
    app.clock.advance(Duration::from_secs(899));
    wait_for_counts(&app, &dana, &old, 4, 5).await;
    let draining = eventually("all requests are counted", async || {
        let report = fetch_report(&app, &dana, &old).await;
        assert!(report["quiet_for_seconds"].as_i64() <= Some(899), "{report:#}");
        (report["quiet_for_seconds"] == 899).then_some(report)
    })
    .await;
    assert_eq!(draining["state"], "draining");
    let clients = draining["old"]["clients_last_hour"].as_array().unwrap();
    let listed: Vec<_> = clients
        .iter()
        .map(|client| {
            let text = |field: &str| client[field].as_str().unwrap().to_owned();
            (text("ip"), text("user_agent"), text("last_method"), text("last_path"))
        })
        .collect();
    let client = |user_agent: &str| {
        ("127.0.0.1".to_owned(), user_agent.to_owned(), "GET".to_owned(), "/v1/agents".to_owned())
    };
    assert_eq!(listed, [client("forgotten-cron/1"), client("booking/1")]);
    assert_eq!(draining["old"]["addresses_last_hour"], json!(["127.0.0.1"]));
    revoke_if_quiet(&app, &dana, &old).await.assert_error(409, "key_in_use");
    send_requests(&app, &old, "forgotten-cron/1", 1).await;

    // The old key has been quiet for long enough.
    app.clock.advance(Duration::from_mins(15));
    let quiet = eventually("safe to revoke", async || {
        let report = fetch_report(&app, &dana, &old).await;
        (report["safe_to_revoke"] == true).then_some(report)
    })
    .await;
    assert_eq!(quiet["state"], "quiet");
    assert_eq!(quiet["reason"], "the new key is in use, and the old key has been idle for 900 s");
    assert_eq!(revoke_if_quiet(&app, &dana, &old).await.status, 204);
    app.get("/v1/agents").bearer(&old.secret).send().await.assert_error(401, "unauthorized");
    send_requests(&app, &new, "booking/2", 1).await;
    // A retry, as after a lost response.
    assert_eq!(revoke_if_quiet(&app, &dana, &old).await.status, 204);
}

#[tokio::test]
async fn key_is_rotated_once_unless_successor_is_revoked() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let key = app.create_key(&dana, "prod", "read-only").await;
    let rotate_again = async || {
        let path = format!("/v1/api-keys/{}/rotate", key.id);
        app.post(&path).bearer(&dana.access_token).json(json!({})).send().await
    };
    let path = format!("/v1/api-keys/{}/rotation", key.id);
    app.get(&path).bearer(&dana.access_token).send().await.assert_error(404, "not_found");
    let (successor, response) = rotate(&app, &dana, &key, json!({})).await;
    assert_eq!((&response["name"], &response["scope"]), (&json!("prod"), &json!("read-only")));
    rotate_again().await.assert_error(409, "conflict");
    let revoke = format!("/v1/api-keys/{}", successor.id);
    app.delete(&revoke).bearer(&dana.access_token).send().await.expect_status(204);
    app.get(&path).bearer(&dana.access_token).send().await.assert_error(404, "not_found");
    // Of several concurrent rotations, one creates a key.
    let responses = futures_util::future::join_all((0..8).map(|_| rotate_again())).await;
    let created = responses.iter().filter(|response| response.status == 201).count();
    let refused = responses.iter().filter(|response| response.error_code() == "conflict").count();
    assert_eq!((created, refused), (1, 7));
    let revoke = format!("/v1/api-keys/{}", key.id);
    app.delete(&revoke).bearer(&dana.access_token).send().await.expect_status(204);
    rotate_again().await.assert_error(409, "conflict");
    let unknown = "/v1/api-keys/key_01jd0zt8q7f7qvs4p2k6x3m9ab/rotate";
    app.post(unknown).bearer(&dana.access_token).send().await.assert_error(404, "not_found");
    let with_scope = json!({ "name": "x", "scope": "admin" });
    let path = format!("/v1/api-keys/{}/rotate", successor.id);
    let refused = app.post(&path).bearer(&dana.access_token).json(with_scope).send().await;
    refused.assert_error(422, "validation_failed").assert_field("scope");
}

/// A script can rotate the admin key that it uses.
#[tokio::test]
async fn admin_key_rotates_itself() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let key = app.create_key(&dana, "ci", "admin").await;
    let path = format!("/v1/api-keys/{}/rotate", key.id);
    let responses = (0..4).map(|_| app.post(&path).bearer(&key.secret).json(json!({})).send());
    let responses = futures_util::future::join_all(responses).await;
    let created: Vec<_> = responses.iter().filter(|response| response.status == 201).collect();
    assert_eq!(created.len(), 1, "{responses:?}");
    assert_eq!(created[0].body["created_by"], key.id.as_str());
}

#[tokio::test]
async fn key_without_successor_is_revoked_only_if_quiet() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let key = app.create_key(&dana, "prod", "write").await;
    send_requests(&app, &key, "x", 1).await;
    let refused = revoke_if_quiet(&app, &dana, &key).await;
    refused.assert_error(409, "key_in_use");
    assert_eq!(refused.body["rotation"]["new"], Value::Null);
    let path = format!("/v1/api-keys/{}?if_quiet=perhaps", key.id);
    let refused = app.delete(&path).bearer(&dana.access_token).send().await;
    refused.assert_error(422, "validation_failed").assert_field("if_quiet");
    app.clock.advance(Duration::from_secs(901));
    // A key is not quiet while requests wait to be counted.
    eventually("safe to revoke", async || {
        (revoke_if_quiet(&app, &dana, &key).await.status == 204).then_some(())
    })
    .await;
}

/// A successor that fails must succeed again before the old key is safe to revoke.
#[tokio::test]
async fn failing_successor_keeps_old_key_from_being_safe_to_revoke() {
    let app = TestApp::start_with(&[("server.trusted_proxies", "127.0.0.0/8")]).await;
    let dana = app.register("acme").await;
    let body = json!({ "name": "prod", "scope": "write", "allowed_ips": ["203.0.113.0/24"] });
    let created = app.post("/v1/api-keys").bearer(&dana.access_token).json(body).send().await;
    let created = created.expect_status(201);
    let text = |field: &str| created[field].as_str().unwrap().to_owned();
    let key = Key { id: text("id"), secret: text("key") };
    let dana = with_api_key(&app, &dana).await;
    let (new, _) = rotate(&app, &dana, &key, json!({})).await;
    let send = async |path: &str, address: &str| {
        let request = app.get(path).bearer(&new.secret).header("x-forwarded-for", address);
        request.send().await.status.as_u16()
    };
    let wait_for_verdict = async |is_safe: bool, reason: &str| {
        app.database.wait_until_sealed().await;
        eventually(reason, async || {
            let report = fetch_report(&app, &dana, &key).await;
            let text = report["reason"].as_str().unwrap();
            (report["safe_to_revoke"] == is_safe && text.contains(reason)).then_some(())
        })
        .await;
    };
    app.clock.advance(Duration::from_mins(16));
    wait_for_verdict(false, "has not been used yet").await;
    assert_eq!(send("/v1/agents", "198.51.100.7").await, 403);
    wait_for_verdict(false, "has been refused so far").await;
    // A request that is wrong in itself is served by the key.
    assert_eq!(send("/v1/agents/agent_x", "203.0.113.9").await, 404);
    wait_for_verdict(true, "is in use").await;
    let recover = async || {
        assert_eq!(send("/v1/agents", "203.0.113.9").await, 200);
        wait_for_verdict(true, "is in use").await;
    };
    let failing = "have failed since its last success";
    // From an address outside of its networks.
    assert_eq!(send("/v1/agents", "198.51.100.7").await, 403);
    wait_for_verdict(false, failing).await;
    revoke_if_quiet(&app, &dana, &key).await.assert_error(409, "key_in_use");
    recover().await;
    // Without the required scope.
    assert_eq!(send("/v1/wallet/balance", "203.0.113.9").await, 403);
    wait_for_verdict(false, failing).await;
    recover().await;
    // While it is disabled, and until it has recovered from the refusals.
    let set_disabled = async |disabled: bool| {
        let path = format!("/v1/api-keys/{}", new.id);
        let body = json!({ "disabled": disabled });
        app.patch(&path).bearer(&dana.access_token).json(body).send().await.expect_status(200);
    };
    set_disabled(true).await;
    wait_for_verdict(false, "is disabled").await;
    set_disabled(false).await;
    wait_for_verdict(true, "is in use").await;
    set_disabled(true).await;
    assert_eq!(send("/v1/agents", "203.0.113.9").await, 401);
    set_disabled(false).await;
    wait_for_verdict(false, failing).await;
    recover().await;
    assert_eq!(revoke_if_quiet(&app, &dana, &key).await.status, 204);
}

/// While a node may have unwritten requests, the key does not count as quiet.
#[tokio::test]
async fn unwritten_requests_keep_key_from_being_quiet() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let key = app.create_key(&dana, "prod", "write").await;
    let dana = with_api_key(&app, &dana).await;
    let (new, _) = rotate(&app, &dana, &key, json!({})).await;
    send_requests(&app, &key, "x", 1).await;
    send_requests(&app, &new, "x", 1).await;
    wait_for_counts(&app, &dana, &key, 1, 1).await;
    app.clock.advance(Duration::from_mins(14));
    let other = app.another_node().await;
    other.clock.advance(Duration::from_mins(14));
    send_requests(&other, &key, "x", 1).await;
    wait_for_counts(&app, &dana, &key, 2, 1).await;
    // This lock blocks the audit log on both nodes.
    let mut connection = app.database.connect().await;
    let mut held = sqlx::Connection::begin(&mut connection).await.unwrap();
    sqlx::query("LOCK TABLE audit_events IN SHARE MODE").execute(&mut *held).await.unwrap();
    let request = other.get("/v1/agents").bearer(&key.secret).header("user-agent", "late");
    request.send().await.expect_status(200);
    // By the clock of this node, the key has been quiet for long. The other node has written
    // nothing since.
    app.clock.advance(Duration::from_hours(2));
    for _ in 0..5 {
        let report = fetch_report(&app, &dana, &key).await;
        assert_eq!(report["safe_to_revoke"], false, "{report:#}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    held.rollback().await.unwrap();
    other.clock.advance(Duration::from_hours(2));
    let report = eventually("all requests are written", async || {
        let report = fetch_report(&app, &dana, &key).await;
        (report["safe_to_revoke"] == true).then_some(report)
    })
    .await;
    assert_eq!(fetch_usage(&app, &dana, &key).await["total_requests"], 3, "{report:#}");
}

#[tokio::test]
async fn concurrent_requests_on_two_nodes_are_counted_exactly() {
    let app = TestApp::start().await;
    let other = app.another_node().await;
    let dana = app.register("acme").await;
    let key = app.create_key(&dana, "prod", "write").await;
    app.raise_rate_limits().await;
    app.database.wait_for_invalidation().await;
    let requests = (0..3000).map(|number| {
        let node = if number % 2 == 0 { &app } else { &other };
        // One request in ten is rejected.
        let path = if number % 10 == 9 { "/v1/wallet/balance" } else { "/v1/agents" };
        node.get(path).bearer(&key.secret).send()
    });
    let responses: Vec<_> =
        futures_util::stream::iter(requests).buffer_unordered(64).collect().await;
    let count = |status: u16| responses.iter().filter(|response| response.status == status).count();
    assert_eq!((count(200), count(403)), (2700, 300));
    let usage = eventually("all requests are counted", async || {
        let usage = fetch_usage(&app, &dana, &key).await;
        assert!(usage["total_requests"].as_i64() <= Some(3000), "{usage:#}");
        (usage["total_requests"] == 3000).then_some(usage)
    })
    .await;
    assert_eq!(usage["by_status"], json!({ "2xx": 2700, "3xx": 0, "4xx": 300, "5xx": 0 }));
    assert_eq!(usage["by_route"], json!({ "agents": 2700, "wallet": 300 }));
    assert_eq!(usage["addresses"][0]["requests"], 3000);
    for series in ["by_hour", "by_day"] {
        let buckets = usage[series].as_array().unwrap();
        let sum = |field: &dyn Fn(&Value) -> i64| buckets.iter().map(field).sum::<i64>();
        assert_eq!(sum(&|bucket| bucket["requests"].as_i64().unwrap()), 3000);
        assert_eq!(sum(&|bucket| bucket["by_status"]["4xx"].as_i64().unwrap()), 300);
        assert_eq!(sum(&|bucket| bucket["by_route"]["agents"].as_i64().unwrap()), 2700);
    }
    // The audit log has the same number of events.
    let sql =
        "SELECT count(*) FROM audit_events WHERE action = 'request' AND actor_type = 'api_key'";
    let mut connection = app.database.connect().await;
    let events: i64 = sqlx::query_scalar(sql).fetch_one(&mut connection).await.unwrap();
    assert_eq!(events, 3000);
}

#[tokio::test]
async fn usage_series_cover_the_requested_hours() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let key = app.create_key(&dana, "prod", "write").await;
    let dana = with_api_key(&app, &dana).await;
    let empty = fetch_usage(&app, &dana, &key).await;
    assert_eq!(empty["total_requests"], 0);
    assert_eq!((&empty["first_used_at"], &empty["by_hour"]), (&Value::Null, &json!([])));
    for _ in 0..3 {
        send_requests(&app, &key, "x", 2).await;
        app.database.wait_until_sealed().await;
        app.clock.advance(Duration::from_hours(1));
    }
    let usage = eventually("all requests are counted", async || {
        let usage = fetch_usage(&app, &dana, &key).await;
        (usage["total_requests"] == 6).then_some(usage)
    })
    .await;
    let hours = usage["by_hour"].as_array().unwrap();
    assert_eq!(hours.iter().map(|hour| &hour["requests"]).collect::<Vec<_>>(), [2, 2, 2]);
    assert!(hours.iter().all(|hour| hour["start"].as_str().unwrap().ends_with(":00:00.000000Z")));
    assert!(usage["first_used_at"].as_str() < usage["last_used_at"].as_str());
    let path = format!("/v1/api-keys/{}/usage?hours=2&days=1", key.id);
    let recent = app.get(&path).bearer(&dana.access_token).send().await.expect_status(200);
    assert_eq!(recent["by_hour"].as_array().unwrap().len(), 1, "{recent:#}");
    for invalid in ["hours=0", "hours=745", "days=x"] {
        let path = format!("/v1/api-keys/{}/usage?{invalid}", key.id);
        let refused = app.get(&path).bearer(&dana.access_token).send().await;
        refused
            .assert_error(422, "validation_failed")
            .assert_field(invalid.split('=').next().unwrap());
    }
}

#[tokio::test]
async fn hygiene_reports_unused_and_over_scoped_keys() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let [idle, reader, writer, boss, gateway] = [
        app.create_key(&dana, "idle", "read-only").await,
        app.create_key(&dana, "reader", "admin").await,
        app.create_key(&dana, "writer", "write").await,
        app.create_key(&dana, "boss", "admin").await,
        app.create_key(&dana, "gateway", "admin").await,
    ];
    let hygiene = async || {
        let request = app.get("/v1/api-keys/hygiene").bearer(&dana.access_token);
        request.send().await.expect_status(200)
    };
    assert_eq!(hygiene().await, json!({ "unused": [], "over_scoped": [] }));
    let later = app.app.env.clock.now() + time::Duration::days(91);
    app.database.create_audit_partitions(later).await;
    app.clock.advance(Duration::from_hours(24 * 91));
    let dana = app.sign_in_again(&dana).await;
    send_requests(&app, &reader, "x", 1).await;
    // A rejected request does not count as use of a scope.
    let refused = app.get("/v1/api-keys/key_x").bearer(&reader.secret).send().await;
    refused.assert_error(404, "not_found");
    let body = json!({ "agent_name": "a" });
    app.post("/v1/agents").bearer(&writer.secret).json(body).send().await.expect_status(201);
    app.get("/v1/wallet/balance").bearer(&boss.secret).send().await.expect_status(200);
    let forward_auth = app.get("/v1/auth/require/write").bearer(&gateway.secret);
    forward_auth.send().await.expect_status(200);
    let report = eventually("all requests are counted", async || {
        let request = app.get("/v1/api-keys/hygiene").bearer(&dana.access_token);
        let report = request.send().await.expect_status(200);
        (report["over_scoped"].as_array().unwrap().len() == 2
            && report["unused"].as_array().unwrap().len() == 1)
            .then_some(report)
    })
    .await;
    assert_eq!(report["unused"][0]["id"], idle.id.as_str());
    let over_scoped: Vec<_> = report["over_scoped"]
        .as_array()
        .unwrap()
        .iter()
        .map(|key| ["name", "scope", "used_scope"].map(|field| key[field].as_str().unwrap()))
        .collect();
    assert_eq!(over_scoped, [["gateway", "admin", "write"], ["reader", "admin", "read-only"]]);
}

/// The number of clients that are stored for a key is bounded.
#[tokio::test]
async fn key_usage_keeps_the_last_thousand_clients() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let key = app.create_key(&dana, "prod", "write").await;
    app.raise_rate_limits().await;
    let requests = (0..1100).map(|number| {
        let request = app.get("/v1/agents").bearer(&key.secret);
        request.header("user-agent", &format!("program {number}")).send()
    });
    futures_util::stream::iter(requests).buffered(32).collect::<Vec<_>>().await;
    eventually("all requests are counted", async || {
        (fetch_usage(&app, &dana, &key).await["total_requests"] == 1100).then_some(())
    })
    .await;
    let sql = "SELECT count(*), max(substring(user_agent FROM 9)::int) FROM key_usage_clients";
    let mut connection = app.database.connect().await;
    let kept: (i64, i32) = sqlx::query_as(sql).fetch_one(&mut connection).await.unwrap();
    assert_eq!(kept, (1000, 1099));
}
