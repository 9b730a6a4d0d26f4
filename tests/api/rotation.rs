//! /v1/api-keys/{id}/rotate, /rotation, /usage, /hygiene: a rotation that proves itself.

use std::time::Duration;

use futures_util::StreamExt as _;
use serde_json::{Value, json};

use crate::fixture::{Key, Person, TestApp, eventually};

/// Rotates a key.
async fn rotate(app: &TestApp, owner: &Person, key: &Key, body: Value) -> (Key, Value) {
    let path = format!("/v1/api-keys/{}/rotate", key.id);
    let answer = app.post(&path).bearer(&owner.access_token).json(body).send().await.expect(201);
    let text = |field: &str| answer[field].as_str().unwrap().to_owned();
    (Key { id: text("id"), secret: text("key") }, answer)
}

/// The same, by a key, which no clock ends.
async fn by_key(app: &TestApp, owner: &Person) -> Person {
    let key = app.mint(owner, "watcher", "admin").await;
    Person { access_token: key.secret, ..owner.clone() }
}

async fn report(app: &TestApp, owner: &Person, key: &Key) -> Value {
    let path = format!("/v1/api-keys/{}/rotation", key.id);
    app.get(&path).bearer(&owner.access_token).send().await.expect(200)
}

async fn usage(app: &TestApp, owner: &Person, key: &Key) -> Value {
    let path = format!("/v1/api-keys/{}/usage", key.id);
    app.get(&path).bearer(&owner.access_token).send().await.expect(200)
}

/// Uses a key, as a program of this name.
async fn serve(app: &TestApp, key: &Key, agent: &str, times: usize) {
    for _ in 0..times {
        let call = app.get("/v1/agents").bearer(&key.secret).header("user-agent", agent);
        call.send().await.expect(200);
    }
}

/// The report, once it counts so many requests with the old key and the new one.
async fn counted(app: &TestApp, owner: &Person, key: &Key, old: i64, new: i64) -> Value {
    eventually("the uses are counted", async || {
        let report = report(app, owner, key).await;
        let counts = ["old", "new"].map(|which| report[which]["requests_last_hour"].as_i64());
        (counts == [Some(old), Some(new)]).then_some(report)
    })
    .await
}

async fn revoke_if_quiet(app: &TestApp, owner: &Person, key: &Key) -> crate::fixture::Answer {
    let path = format!("/v1/api-keys/{}?if_quiet=true", key.id);
    app.delete(&path).bearer(&owner.access_token).send().await
}

#[tokio::test]
async fn a_rotation_is_watched_from_the_mint_to_the_revocation() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let body = json!({ "name": "prod-2026-q2", "scope": "write", "description": "The booking server",
                       "allowed_ips": ["127.0.0.0/8"] });
    let made = app.post("/v1/api-keys").bearer(&dana.access_token).json(body).send().await;
    let made = made.expect(201);
    let text = |field: &str| made[field].as_str().unwrap().to_owned();
    let old = Key { id: text("id"), secret: text("key") };
    serve(&app, &old, "booking/1", 3).await;

    let (new, answer) = rotate(&app, &dana, &old, json!({ "name": "prod-2026-q3" })).await;
    assert_eq!(answer["name"], "prod-2026-q3");
    assert_eq!(answer["rotated_from"], old.id.as_str());
    for field in ["scope", "description", "allowed_ips"] {
        assert_eq!(answer[field], made[field], "{field}");
    }
    let first = app.get(&format!("/v1/api-keys/{}", old.id)).bearer(&dana.access_token);
    let first = first.send().await.expect(200);
    assert_eq!((&first["status"], &first["rotated_to"]), (&json!("active"), &json!(new.id)));
    let events = app.events(&dana.access_token, "action=api_key.rotated", |_| true).await;
    assert_eq!(events[0]["target"]["id"], old.id.as_str());
    assert_eq!(events[0]["metadata"]["rotated_to"], new.id.as_str());

    // Nobody uses the new one yet.
    let minted = counted(&app, &dana, &old, 3, 0).await;
    assert_eq!(minted["state"], "minted");
    assert_eq!(minted["safe_to_revoke"], false);
    assert_eq!(minted["reason"], "the new key has not been used yet");
    assert_eq!(minted["new"]["first_used_at"], Value::Null);
    let refused = revoke_if_quiet(&app, &dana, &old).await;
    refused.refused(409, "key_in_use");
    assert_eq!(refused.body["rotation"]["old"]["id"], old.id.as_str());
    assert_eq!(refused.body["rotation"]["reason"], minted["reason"]);

    // The old one still serves more.
    app.clock.advance(Duration::from_mins(5));
    serve(&app, &new, "booking/2", 1).await;
    let adopted = counted(&app, &dana, &old, 3, 1).await;
    assert_eq!((&adopted["state"], &adopted["adoption"]), (&json!("adopted"), &json!(0.25)));

    // The new one does.
    serve(&app, &new, "booking/2", 4).await;
    serve(&app, &old, "forgotten-cron/1", 1).await;
    app.clock.advance(Duration::from_secs(899));
    counted(&app, &dana, &old, 4, 5).await;
    let draining = eventually("nothing waits to be counted", async || {
        let report = report(&app, &dana, &old).await;
        assert!(report["quiet_for_seconds"].as_i64() <= Some(899), "{report:#}");
        (report["quiet_for_seconds"] == 899).then_some(report)
    })
    .await;
    assert_eq!(draining["state"], "draining");
    let clients = draining["old"]["clients_last_hour"].as_array().unwrap();
    let told: Vec<_> = clients
        .iter()
        .map(|client| {
            let text = |field: &str| client[field].as_str().unwrap().to_owned();
            (text("ip"), text("user_agent"), text("last_method"), text("last_path"))
        })
        .collect();
    let client = |agent: &str| {
        ("127.0.0.1".to_owned(), agent.to_owned(), "GET".to_owned(), "/v1/agents".to_owned())
    };
    assert_eq!(told, [client("forgotten-cron/1"), client("booking/1")]);
    assert_eq!(draining["old"]["addresses_last_hour"], json!(["127.0.0.1"]));
    revoke_if_quiet(&app, &dana, &old).await.refused(409, "key_in_use");
    serve(&app, &old, "forgotten-cron/1", 1).await;

    // Quiet, for long enough.
    app.clock.advance(Duration::from_mins(15));
    let quiet = eventually("safe to revoke", async || {
        let report = report(&app, &dana, &old).await;
        (report["safe_to_revoke"] == true).then_some(report)
    })
    .await;
    assert_eq!(quiet["state"], "quiet");
    assert_eq!(quiet["reason"], "the new key serves, and the old one has been quiet for 900 s");
    assert_eq!(revoke_if_quiet(&app, &dana, &old).await.status, 204);
    app.get("/v1/agents").bearer(&old.secret).send().await.refused(401, "unauthorized");
    serve(&app, &new, "booking/2", 1).await;
    // Again, as after a lost answer.
    assert_eq!(revoke_if_quiet(&app, &dana, &old).await.status, 204);
}

#[tokio::test]
async fn a_key_is_rotated_once_and_a_revoked_successor_cancels() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let key = app.mint(&dana, "prod", "read-only").await;
    let rotate_again = async || {
        let path = format!("/v1/api-keys/{}/rotate", key.id);
        app.post(&path).bearer(&dana.access_token).json(json!({})).send().await
    };
    let path = format!("/v1/api-keys/{}/rotation", key.id);
    app.get(&path).bearer(&dana.access_token).send().await.refused(404, "not_found");
    let (successor, answer) = rotate(&app, &dana, &key, json!({})).await;
    assert_eq!((&answer["name"], &answer["scope"]), (&json!("prod"), &json!("read-only")));
    rotate_again().await.refused(409, "conflict");
    let revoke = format!("/v1/api-keys/{}", successor.id);
    app.delete(&revoke).bearer(&dana.access_token).send().await.expect(204);
    app.get(&path).bearer(&dana.access_token).send().await.refused(404, "not_found");
    // Of many at once, one mints.
    let outcomes = futures_util::future::join_all((0..8).map(|_| rotate_again())).await;
    let made = outcomes.iter().filter(|answer| answer.status == 201).count();
    let refused = outcomes.iter().filter(|answer| answer.code() == "conflict").count();
    assert_eq!((made, refused), (1, 7));
    let revoke = format!("/v1/api-keys/{}", key.id);
    app.delete(&revoke).bearer(&dana.access_token).send().await.expect(204);
    rotate_again().await.refused(409, "conflict");
    let unknown = "/v1/api-keys/key_01jd0zt8q7f7qvs4p2k6x3m9ab/rotate";
    app.post(unknown).bearer(&dana.access_token).send().await.refused(404, "not_found");
    let named = json!({ "name": "x", "scope": "admin" });
    let path = format!("/v1/api-keys/{}/rotate", successor.id);
    let refused = app.post(&path).bearer(&dana.access_token).json(named).send().await;
    refused.refused(422, "validation_failed").blames("scope");
}

/// An admin key rotates itself, as a script does.
#[tokio::test]
async fn a_key_rotates_itself() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let key = app.mint(&dana, "ci", "admin").await;
    let path = format!("/v1/api-keys/{}/rotate", key.id);
    let answers = (0..4).map(|_| app.post(&path).bearer(&key.secret).json(json!({})).send());
    let answers = futures_util::future::join_all(answers).await;
    let made: Vec<_> = answers.iter().filter(|answer| answer.status == 201).collect();
    assert_eq!(made.len(), 1, "{answers:?}");
    assert_eq!(made[0].body["created_by"], key.id.as_str());
}

#[tokio::test]
async fn a_key_without_a_successor_is_revoked_if_it_is_quiet() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let key = app.mint(&dana, "prod", "write").await;
    serve(&app, &key, "x", 1).await;
    let refused = revoke_if_quiet(&app, &dana, &key).await;
    refused.refused(409, "key_in_use");
    assert_eq!(refused.body["rotation"]["new"], Value::Null);
    let path = format!("/v1/api-keys/{}?if_quiet=perhaps", key.id);
    let refused = app.delete(&path).bearer(&dana.access_token).send().await;
    refused.refused(422, "validation_failed").blames("if_quiet");
    app.clock.advance(Duration::from_secs(901));
    // What still waits to be counted is not known to be quiet.
    eventually("safe to revoke", async || {
        (revoke_if_quiet(&app, &dana, &key).await.status == 204).then_some(())
    })
    .await;
}

/// What a node has not written yet is not known, and so it is not quiet.
#[tokio::test]
async fn uses_that_wait_to_be_written_keep_a_key_from_being_quiet() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let key = app.mint(&dana, "prod", "write").await;
    let dana = by_key(&app, &dana).await;
    let (new, _) = rotate(&app, &dana, &key, json!({})).await;
    serve(&app, &key, "x", 1).await;
    serve(&app, &new, "x", 1).await;
    counted(&app, &dana, &key, 1, 1).await;
    app.clock.advance(Duration::from_mins(14));
    // The log stands still, here and on the other node.
    let other = app.another_node().await;
    other.clock.advance(Duration::from_mins(14));
    serve(&other, &key, "x", 1).await;
    counted(&app, &dana, &key, 2, 1).await;
    let mut connection = app.database.connect().await;
    let mut held = sqlx::Connection::begin(&mut connection).await.unwrap();
    sqlx::query("LOCK TABLE audit_events IN SHARE MODE").execute(&mut *held).await.unwrap();
    let call = other.get("/v1/agents").bearer(&key.secret).header("user-agent", "late");
    call.send().await.expect(200);
    // By the answering node's clock it has long been quiet; the other one has told nothing since.
    app.clock.advance(Duration::from_hours(2));
    for _ in 0..5 {
        let report = report(&app, &dana, &key).await;
        assert_eq!(report["safe_to_revoke"], false, "{report:#}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    held.rollback().await.unwrap();
    other.clock.advance(Duration::from_hours(2));
    let report = eventually("it is known", async || {
        let report = report(&app, &dana, &key).await;
        (report["safe_to_revoke"] == true).then_some(report)
    })
    .await;
    assert_eq!(usage(&app, &dana, &key).await["total_requests"], 3, "{report:#}");
}

#[tokio::test]
async fn three_thousand_concurrent_requests_on_two_nodes_are_counted_exactly() {
    let app = TestApp::start().await;
    let other = app.another_node().await;
    let dana = app.register("acme").await;
    let key = app.mint(&dana, "prod", "write").await;
    app.lift_limits().await;
    app.database.every_node_knows().await;
    let calls = (0..3000).map(|number| {
        let node = if number % 2 == 0 { &app } else { &other };
        // One in ten is refused.
        let path = if number % 10 == 9 { "/v1/wallet/balance" } else { "/v1/agents" };
        node.get(path).bearer(&key.secret).send()
    });
    let answers: Vec<_> = futures_util::stream::iter(calls).buffer_unordered(64).collect().await;
    let of = |status: u16| answers.iter().filter(|answer| answer.status == status).count();
    assert_eq!((of(200), of(403)), (2700, 300));
    let found = eventually("all are counted", async || {
        let found = usage(&app, &dana, &key).await;
        assert!(found["total_requests"].as_i64() <= Some(3000), "{found:#}");
        (found["total_requests"] == 3000).then_some(found)
    })
    .await;
    assert_eq!(found["by_status"], json!({ "2xx": 2700, "3xx": 0, "4xx": 300, "5xx": 0 }));
    assert_eq!(found["by_route"], json!({ "agents": 2700, "wallet": 300 }));
    assert_eq!(found["addresses"][0]["requests"], 3000);
    for series in ["by_hour", "by_day"] {
        let spells = found[series].as_array().unwrap();
        let sum = |field: &dyn Fn(&Value) -> i64| spells.iter().map(field).sum::<i64>();
        assert_eq!(sum(&|spell| spell["requests"].as_i64().unwrap()), 3000);
        assert_eq!(sum(&|spell| spell["by_status"]["4xx"].as_i64().unwrap()), 300);
        assert_eq!(sum(&|spell| spell["by_route"]["agents"].as_i64().unwrap()), 2700);
    }
    // As many as there are in the log itself.
    let sql =
        "SELECT count(*) FROM audit_events WHERE action = 'request' AND actor_type = 'api_key'";
    let mut connection = app.database.connect().await;
    let events: i64 = sqlx::query_scalar(sql).fetch_one(&mut connection).await.unwrap();
    assert_eq!(events, 3000);
}

#[tokio::test]
async fn series_go_by_the_clock_and_reach_as_far_as_asked() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let key = app.mint(&dana, "prod", "write").await;
    let dana = by_key(&app, &dana).await;
    let empty = usage(&app, &dana, &key).await;
    assert_eq!(empty["total_requests"], 0);
    assert_eq!((&empty["first_used_at"], &empty["by_hour"]), (&Value::Null, &json!([])));
    for _ in 0..3 {
        serve(&app, &key, "x", 2).await;
        app.database.all_is_sealed().await;
        app.clock.advance(Duration::from_hours(1));
    }
    let found = eventually("all are counted", async || {
        let found = usage(&app, &dana, &key).await;
        (found["total_requests"] == 6).then_some(found)
    })
    .await;
    let hours = found["by_hour"].as_array().unwrap();
    assert_eq!(hours.iter().map(|hour| &hour["requests"]).collect::<Vec<_>>(), [2, 2, 2]);
    assert!(hours.iter().all(|hour| hour["start"].as_str().unwrap().ends_with(":00:00.000000Z")));
    assert!(found["first_used_at"].as_str() < found["last_used_at"].as_str());
    let path = format!("/v1/api-keys/{}/usage?hours=2&days=1", key.id);
    let near = app.get(&path).bearer(&dana.access_token).send().await.expect(200);
    assert_eq!(near["by_hour"].as_array().unwrap().len(), 1, "{near:#}");
    for bad in ["hours=0", "hours=745", "days=x"] {
        let path = format!("/v1/api-keys/{}/usage?{bad}", key.id);
        let refused = app.get(&path).bearer(&dana.access_token).send().await;
        refused.refused(422, "validation_failed").blames(bad.split('=').next().unwrap());
    }
}

#[tokio::test]
async fn hygiene_tells_of_unused_keys_and_of_those_that_may_do_too_much() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let [idle, reader, writer, boss, gateway] = [
        app.mint(&dana, "idle", "read-only").await,
        app.mint(&dana, "reader", "admin").await,
        app.mint(&dana, "writer", "write").await,
        app.mint(&dana, "boss", "admin").await,
        app.mint(&dana, "gateway", "admin").await,
    ];
    let hygiene = async || {
        let call = app.get("/v1/api-keys/hygiene").bearer(&dana.access_token);
        call.send().await.expect(200)
    };
    assert_eq!(hygiene().await, json!({ "unused": [], "over_scoped": [] }));
    let later = app.app.env.clock.now() + time::Duration::days(91);
    app.app.store.create_audit_partitions(later).await.unwrap();
    app.clock.advance(Duration::from_hours(24 * 91));
    let dana = app.with_fresh_session(&dana).await;
    serve(&app, &reader, "x", 1).await;
    // Refused: that is no use of a scope.
    let refused = app.get("/v1/api-keys/key_x").bearer(&reader.secret).send().await;
    refused.refused(404, "not_found");
    let body = json!({ "agent_name": "a" });
    app.post("/v1/agents").bearer(&writer.secret).json(body).send().await.expect(201);
    app.get("/v1/wallet/balance").bearer(&boss.secret).send().await.expect(200);
    let question = app.get("/v1/auth/verify?scope=write").bearer(&gateway.secret);
    question.send().await.expect(200);
    let found = eventually("all are counted", async || {
        let call = app.get("/v1/api-keys/hygiene").bearer(&dana.access_token);
        let found = call.send().await.expect(200);
        (found["over_scoped"].as_array().unwrap().len() == 2
            && found["unused"].as_array().unwrap().len() == 1)
            .then_some(found)
    })
    .await;
    assert_eq!(found["unused"][0]["id"], idle.id.as_str());
    let told: Vec<_> = found["over_scoped"]
        .as_array()
        .unwrap()
        .iter()
        .map(|key| ["name", "scope", "used_scope"].map(|field| key[field].as_str().unwrap()))
        .collect();
    assert_eq!(told, [["gateway", "admin", "write"], ["reader", "admin", "read-only"]]);
}

/// What is kept of who uses a key is bounded, whoever uses it.
#[tokio::test]
async fn of_many_programs_the_last_thousand_are_remembered() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let key = app.mint(&dana, "prod", "write").await;
    app.lift_limits().await;
    let calls = (0..1100).map(|number| {
        let call = app.get("/v1/agents").bearer(&key.secret);
        call.header("user-agent", &format!("program {number}")).send()
    });
    futures_util::stream::iter(calls).buffered(32).collect::<Vec<_>>().await;
    eventually("all are counted", async || {
        (usage(&app, &dana, &key).await["total_requests"] == 1100).then_some(())
    })
    .await;
    let sql = "SELECT count(*), max(substring(user_agent FROM 9)::int) FROM key_usage_clients";
    let mut connection = app.database.connect().await;
    let kept: (i64, i32) = sqlx::query_as(sql).fetch_one(&mut connection).await.unwrap();
    assert_eq!(kept, (1000, 1099));
}
