//! Two nodes on one database: what one changes, the other does not believe when the answer is out.

use std::time::Duration;

use serde_json::json;
use sqlx::{Connection, Executor};
use uuid::Uuid;

use crate::fixture::{Key, Person, TestApp};

/// Two nodes, a person and a key, which both nodes know.
async fn two_nodes() -> (TestApp, TestApp, Person, Key) {
    let one = TestApp::start().await;
    let other = one.another_node().await;
    let dana = one.register("acme").await;
    let key = one.mint(&dana, "prod", "write").await;
    for node in [&one, &other] {
        for credential in [&key.secret, &dana.access_token] {
            node.get("/v1/agents").bearer(credential).send().await.expect(200);
        }
    }
    (one, other, dana, key)
}

#[tokio::test]
async fn a_key_that_one_node_revokes_is_dead_on_the_other() {
    let (one, other, dana, key) = two_nodes().await;
    let path = format!("/v1/api-keys/{}", key.id);
    one.delete(&path).bearer(&dana.access_token).send().await.expect(204);
    for node in [&other, &one] {
        node.get("/v1/agents").bearer(&key.secret).send().await.refused(401, "unauthorized");
    }
}

#[tokio::test]
async fn a_session_that_ends_on_one_node_is_over_on_the_other() {
    let (one, other, dana, key) = two_nodes().await;
    one.post("/v1/auth/logout").bearer(&dana.access_token).send().await.expect(204);
    let answer = other.get("/v1/agents").bearer(&dana.access_token).send().await;
    answer.refused(401, "unauthorized");
    other.get("/v1/agents").bearer(&key.secret).send().await.expect(200);
}

#[tokio::test]
async fn networks_that_one_node_sets_bind_on_the_other() {
    let (one, other, dana, key) = two_nodes().await;
    let change = json!({ "allowed_ips": ["192.0.2.0/24"] });
    let path = format!("/v1/api-keys/{}", key.id);
    one.patch(&path).bearer(&dana.access_token).json(change).send().await.expect(200);
    other.get("/v1/agents").bearer(&key.secret).send().await.refused(403, "forbidden");
}

/// Whoever changes a row, with whatever tool: triggers tell the nodes.
#[tokio::test]
async fn what_the_operator_changes_by_hand_is_heard_too() {
    let (one, other, dana, key) = two_nodes().await;
    let mut sql = one.database.connect().await;
    sql.execute("UPDATE workspaces SET rate_limit_per_minute = 7").await.unwrap();
    one.database.every_node_knows().await;
    let answer = other.get("/v1/agents").bearer(&key.secret).send().await;
    assert_eq!(answer.number("x-ratelimit-limit"), 7);
    sql.execute("UPDATE api_keys SET revoked_at = now()").await.unwrap();
    sql.execute("DELETE FROM memberships").await.unwrap();
    one.database.every_node_knows().await;
    for credential in [&key.secret, &dana.access_token] {
        other.get("/v1/agents").bearer(credential).send().await.refused(401, "unauthorized");
    }
}

/// That somebody has no role is believed no longer than that some other role.
#[tokio::test]
async fn who_was_removed_and_comes_back_is_believed_again() {
    let (one, other, dana, _key) = two_nodes().await;
    let mut sql = one.database.connect().await;
    sql.execute("CREATE TABLE gone AS SELECT * FROM memberships").await.unwrap();
    sql.execute("DELETE FROM memberships").await.unwrap();
    one.database.every_node_knows().await;
    let ask = || other.get("/v1/agents").bearer(&dana.access_token).send();
    ask().await.refused(401, "unauthorized");
    sql.execute("INSERT INTO memberships SELECT * FROM gone").await.unwrap();
    one.database.every_node_knows().await;
    ask().await.expect(200);
}

/// A node that does not answer any more, until its lease is over.
async fn silent_node(app: &TestApp, seconds: i32) -> Uuid {
    let node = app.app.env.new_uuid();
    let mut sql = app.database.connect().await;
    let insert = "INSERT INTO nodes (id, acknowledged, lease_until, written_until)
                  VALUES ($1, 0, clock_timestamp() + make_interval(secs => $2), now())";
    sqlx::query(insert).bind(node).bind(f64::from(seconds)).execute(&mut sql).await.unwrap();
    node
}

async fn lease_is_over(app: &TestApp, node: Uuid) -> bool {
    let mut sql = app.database.connect().await;
    let over =
        "SELECT lease_until + interval '1 second' <= clock_timestamp() FROM nodes WHERE id = $1";
    sqlx::query_scalar(over).bind(node).fetch_one(&mut sql).await.unwrap()
}

#[tokio::test]
async fn a_node_that_does_not_answer_is_waited_for_until_its_lease_is_over() {
    let (one, _other, dana, key) = two_nodes().await;
    let path = format!("/v1/api-keys/{}", key.id);
    let node = silent_node(&one, 1).await;
    one.delete(&path).bearer(&dana.access_token).send().await.expect(204);
    assert!(lease_is_over(&one, node).await, "answered too early");
    // Who asks again waits as well: the first answer may have been lost.
    let node = silent_node(&one, 1).await;
    one.delete(&path).bearer(&dana.access_token).send().await.expect(204);
    assert!(lease_is_over(&one, node).await, "answered too early");
}

#[tokio::test]
async fn a_node_that_stops_says_farewell() {
    let (one, other, dana, key) = two_nodes().await;
    other.stop().await;
    let mut sql = one.database.connect().await;
    let nodes = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM nodes");
    assert_eq!(nodes.fetch_one(&mut sql).await.unwrap(), 1);
    let path = format!("/v1/api-keys/{}", key.id);
    one.delete(&path).bearer(&dana.access_token).send().await.expect(204);
}

/// Whose row somebody took away has to begin anew: nobody waits for it any more.
#[tokio::test]
async fn a_node_that_was_forgotten_registers_again_with_nothing_cached() {
    let (one, other, dana, key) = two_nodes().await;
    let mut sql = one.database.connect().await;
    sql.execute("DELETE FROM nodes").await.unwrap();
    let registered = "SELECT count(*) FROM nodes";
    while sqlx::query_scalar::<_, i64>(registered).fetch_one(&mut sql).await.unwrap() < 2 {
        tokio::task::yield_now().await;
    }
    let path = format!("/v1/api-keys/{}", key.id);
    one.delete(&path).bearer(&dana.access_token).send().await.expect(204);
    other.get("/v1/agents").bearer(&key.secret).send().await.refused(401, "unauthorized");
}

/// When more was announced than is kept, a node cannot know what it missed.
#[tokio::test]
async fn a_gap_in_what_is_told_makes_a_node_forget_everything() {
    let (one, other, _dana, key) = two_nodes().await;
    let mut sql = one.database.connect().await;
    let mut tx = sql.begin().await.unwrap();
    tx.execute("UPDATE api_keys SET revoked_at = now()").await.unwrap();
    tx.execute("SET CONSTRAINTS ALL IMMEDIATE").await.unwrap();
    tx.execute("DELETE FROM invalidations").await.unwrap();
    tx.commit().await.unwrap();
    one.database.every_node_knows().await;
    other.get("/v1/agents").bearer(&key.secret).send().await.refused(401, "unauthorized");
}

#[tokio::test]
async fn strict_durability_answers_once_the_event_is_committed() {
    let strict = TestApp::start_with(&[("audit.durability", "strict")]).await;
    let batched = TestApp::start_on(strict.database.clone(), &[]).await;
    let dana = strict.register("acme").await;
    let key = strict.mint(&dana, "prod", "write").await;
    let mut sql = strict.database.connect().await;
    let mut tx = sql.begin().await.unwrap();
    tx.execute("LOCK TABLE audit_events IN SHARE MODE").await.unwrap();
    let mut waiting = tokio::spawn(strict.get("/v1/auth/verify/s").bearer(&key.secret).send());
    strict.database.somebody_waits_for_a_lock().await;
    let early = tokio::time::timeout(Duration::from_millis(500), &mut waiting).await;
    assert!(early.is_err(), "no answer before the commit: {early:?}");
    // Batched, it is answered while the log stands still.
    batched.get("/v1/auth/verify/b").bearer(&key.secret).send().await.expect(200);
    tx.rollback().await.unwrap();
    waiting.await.unwrap().expect(200);
    let events = "SELECT count(*) FROM audit_events WHERE path = '/s'";
    let written = sqlx::query_scalar::<_, i64>(events).fetch_one(&mut sql).await.unwrap();
    assert_eq!(written, 1, "it is there when the answer is");
}

/// A full queue holds requests up; it loses none, and refuses none that waits a moment.
#[tokio::test]
async fn a_full_queue_holds_requests_up() {
    let app = TestApp::start_with(&[("audit.queue", "2")]).await;
    let dana = app.register("acme").await;
    let key = app.mint(&dana, "prod", "write").await;
    let calls: Vec<_> = (0..100)
        .map(|_| tokio::spawn(app.get("/v1/auth/verify").bearer(&key.secret).send()))
        .collect();
    for call in calls {
        call.await.unwrap().expect(200);
    }
    let database = app.stop().await;
    let written = "SELECT count(*) FROM audit_events WHERE path = '/v1/auth/verify'";
    let mut sql = database.connect().await;
    assert_eq!(sqlx::query_scalar::<_, i64>(written).fetch_one(&mut sql).await.unwrap(), 100);
}
