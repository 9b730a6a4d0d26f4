//! Cache invalidation between two nodes on one database: once the response to a change is out, the
//! other node applies the change.

use std::time::Duration;

use serde_json::json;
use sqlx::{Connection, Executor};
use uuid::Uuid;

use crate::fixture::{Key, TestApp, TestUser, eventually};

/// Starts two nodes and creates a user and a key, which both nodes have cached.
async fn two_nodes() -> (TestApp, TestApp, TestUser, Key) {
    let one = TestApp::start().await;
    let other = one.another_node().await;
    let dana = one.register("acme").await;
    let key = one.create_key(&dana, "prod", "write").await;
    for node in [&one, &other] {
        for credential in [&key.secret, &dana.access_token] {
            node.get("/v1/agents").bearer(credential).send().await.expect_status(200);
        }
    }
    (one, other, dana, key)
}

#[tokio::test]
async fn revoked_key_is_rejected_on_every_node() {
    let (one, other, dana, key) = two_nodes().await;
    let path = format!("/v1/api-keys/{}", key.id);
    one.delete(&path).bearer(&dana.access_token).send().await.expect_status(204);
    for node in [&other, &one] {
        node.get("/v1/agents").bearer(&key.secret).send().await.assert_error(401, "unauthorized");
    }
}

#[tokio::test]
async fn ended_session_is_rejected_on_every_node() {
    let (one, other, dana, key) = two_nodes().await;
    one.post("/v1/auth/logout").bearer(&dana.access_token).send().await.expect_status(204);
    let answer = other.get("/v1/agents").bearer(&dana.access_token).send().await;
    answer.assert_error(401, "unauthorized");
    other.get("/v1/agents").bearer(&key.secret).send().await.expect_status(200);
}

#[tokio::test]
async fn allowed_ips_apply_on_every_node() {
    let (one, other, dana, key) = two_nodes().await;
    let change = json!({ "allowed_ips": ["192.0.2.0/24"] });
    let path = format!("/v1/api-keys/{}", key.id);
    one.patch(&path).bearer(&dana.access_token).json(change).send().await.expect_status(200);
    other.get("/v1/agents").bearer(&key.secret).send().await.assert_error(403, "forbidden");
}

/// Database triggers announce every change, also one that is made with psql.
#[tokio::test]
async fn manual_database_change_invalidates_caches() {
    let (one, other, dana, key) = two_nodes().await;
    let mut sql = one.database.connect().await;
    sql.execute("UPDATE workspaces SET rate_limit_per_minute = 7").await.unwrap();
    one.database.wait_for_invalidation().await;
    let answer = other.get("/v1/agents").bearer(&key.secret).send().await;
    assert_eq!(answer.header_number("x-ratelimit-limit"), 7);
    sql.execute("UPDATE api_keys SET revoked_at = now()").await.unwrap();
    sql.execute("DELETE FROM memberships").await.unwrap();
    one.database.wait_for_invalidation().await;
    for credential in [&key.secret, &dana.access_token] {
        other.get("/v1/agents").bearer(credential).send().await.assert_error(401, "unauthorized");
    }
}

/// A cached absence of a role is invalidated like a cached role.
#[tokio::test]
async fn restored_member_is_accepted_again() {
    let (one, other, dana, _key) = two_nodes().await;
    let mut sql = one.database.connect().await;
    sql.execute("CREATE TABLE gone AS SELECT * FROM memberships").await.unwrap();
    sql.execute("DELETE FROM memberships").await.unwrap();
    one.database.wait_for_invalidation().await;
    let request = || other.get("/v1/agents").bearer(&dana.access_token).send();
    request().await.assert_error(401, "unauthorized");
    sql.execute("INSERT INTO memberships SELECT * FROM gone").await.unwrap();
    one.database.wait_for_invalidation().await;
    request().await.expect_status(200);
}

/// Registers a node that acknowledges nothing, with a lease of `seconds`.
async fn unresponsive_node(app: &TestApp, seconds: i32) -> Uuid {
    let node = app.app.env.new_uuid();
    let mut sql = app.database.connect().await;
    let insert = "INSERT INTO nodes (id, registration, acknowledged_generation, lease,
                            events_written_until, encryption_key_id)
         VALUES ($1, 1, 0, make_interval(secs => $2), now(), '')";
    sqlx::query(insert).bind(node).bind(f64::from(seconds)).execute(&mut sql).await.unwrap();
    node
}

async fn is_lease_over(app: &TestApp, node: Uuid) -> bool {
    let mut sql = app.database.connect().await;
    let over = "SELECT is_expired AND renewed_at + lease + interval '1 second' <= clock_timestamp()
                FROM nodes WHERE id = $1";
    sqlx::query_scalar(over).bind(node).fetch_one(&mut sql).await.unwrap()
}

#[tokio::test]
async fn revocation_waits_for_lease_of_unresponsive_node() {
    let (one, _other, dana, key) = two_nodes().await;
    let path = format!("/v1/api-keys/{}", key.id);
    let node = unresponsive_node(&one, 1).await;
    one.delete(&path).bearer(&dana.access_token).send().await.expect_status(204);
    assert!(is_lease_over(&one, node).await, "the response came before the lease expired");
    // A retry waits as well, because the first response may have been lost.
    let node = unresponsive_node(&one, 1).await;
    one.delete(&path).bearer(&dana.access_token).send().await.expect_status(204);
    assert!(is_lease_over(&one, node).await, "the response came before the lease expired");
}

#[tokio::test]
async fn stopped_node_is_deregistered_before_its_lease_ends() {
    let one = TestApp::start().await;
    let settings = [("server.public_url", &*one.url), ("cache.lease_seconds", "60")];
    let other = TestApp::start_on(one.database.clone(), &settings).await;
    let dana = one.register("acme").await;
    let key = one.create_key(&dana, "prod", "write").await;
    other.get("/v1/agents").bearer(&key.secret).send().await.expect_status(200);
    other.stop().await;
    let mut sql = one.database.connect().await;
    let nodes = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM nodes");
    assert_eq!(nodes.fetch_one(&mut sql).await.unwrap(), 1);
    let path = format!("/v1/api-keys/{}", key.id);
    one.delete(&path).bearer(&dana.access_token).send().await.expect_status(204);
}

/// A node whose row was deleted must start with an empty cache, because no fence waits for it.
#[tokio::test]
async fn deleted_node_registers_again_with_empty_cache() {
    let (one, other, dana, key) = two_nodes().await;
    let mut sql = one.database.connect().await;
    sql.execute("DELETE FROM nodes").await.unwrap();
    let registered = "SELECT count(*) FROM nodes";
    while sqlx::query_scalar::<_, i64>(registered).fetch_one(&mut sql).await.unwrap() < 2 {
        tokio::task::yield_now().await;
    }
    let path = format!("/v1/api-keys/{}", key.id);
    one.delete(&path).bearer(&dana.access_token).send().await.expect_status(204);
    other.get("/v1/agents").bearer(&key.secret).send().await.assert_error(401, "unauthorized");
}

/// Another node has seen the lease expire, and no fence waits any more.
#[tokio::test]
async fn node_with_expired_lease_registers_again_with_empty_cache() {
    let (one, other, dana, key) = two_nodes().await;
    let mut sql = one.database.connect().await;
    sql.execute("UPDATE nodes SET is_expired = true").await.unwrap();
    let registered = "SELECT count(*) FROM nodes WHERE registration > 1 AND NOT is_expired";
    while sqlx::query_scalar::<_, i64>(registered).fetch_one(&mut sql).await.unwrap() < 2 {
        tokio::task::yield_now().await;
    }
    let path = format!("/v1/api-keys/{}", key.id);
    one.delete(&path).bearer(&dana.access_token).send().await.expect_status(204);
    other.get("/v1/agents").bearer(&key.secret).send().await.assert_error(401, "unauthorized");
}

/// The database loses the last invalidation, which both nodes have applied. The next one has its
/// number. In the same history it was restored, so the nodes serve no request.
#[tokio::test]
async fn number_that_is_assigned_again_is_not_taken_for_applied() {
    let (one, other, dana, key) = two_nodes().await;
    let mut sql = one.database.connect().await;
    sql.execute("UPDATE workspaces SET rate_limit_per_minute = 7").await.unwrap();
    one.database.wait_for_invalidation().await;
    let mut tx = sql.begin().await.unwrap();
    tx.execute(
        "WITH lost AS (
             DELETE FROM invalidation_batches WHERE generation = newest_generation()
             RETURNING generation, previous_token
         )
         UPDATE invalidation_generation g
         SET generation = lost.generation - 1, token = lost.previous_token FROM lost",
    )
    .await
    .unwrap();
    tx.execute("UPDATE nodes SET acknowledged_generation = newest_generation()").await.unwrap();
    // The revocation is in the same transaction: no node sees the generation in between.
    tx.execute("UPDATE api_keys SET revoked_at = now()").await.unwrap();
    tx.commit().await.unwrap();
    for node in [&one, &other] {
        eventually("the node is in quarantine", async || {
            (node.get("/v1/agents").bearer(&dana.access_token).send().await.status == 503)
                .then_some(())
        })
        .await;
        node.get("/v1/agents").bearer(&key.secret).send().await.assert_error(503, "unavailable");
    }
}

/// PostgreSQL may execute the attempt of a node to register after the node gave it up.
#[tokio::test]
async fn late_registration_acknowledges_nothing_for_the_node() {
    let (one, other, dana, key) = two_nodes().await;
    let mut sql = one.database.connect().await;
    sql.execute("UPDATE nodes SET is_expired = true").await.unwrap();
    let registered = "SELECT count(*) FROM nodes WHERE registration = 2 AND NOT is_expired";
    while sqlx::query_scalar::<_, i64>(registered).fetch_one(&mut sql).await.unwrap() < 2 {
        tokio::task::yield_now().await;
    }
    other.get("/v1/agents").bearer(&key.secret).send().await.expect_status(200);
    let mut tx = sql.begin().await.unwrap();
    tx.execute("UPDATE api_keys SET revoked_at = now()").await.unwrap();
    tx.execute("SET CONSTRAINTS ALL IMMEDIATE").await.unwrap();
    let late = "INSERT INTO nodes (id, registration, acknowledged_generation, lease,
                                   events_written_until, encryption_key_id)
                SELECT id, 1, generation, '1 second', now(), ''
                FROM nodes, invalidation_generation WHERE registration = 2";
    tx.execute(late).await.unwrap();
    tx.commit().await.unwrap();
    let path = format!("/v1/api-keys/{}", key.id);
    one.delete(&path).bearer(&dana.access_token).send().await.expect_status(204);
    other.get("/v1/agents").bearer(&key.secret).send().await.assert_error(401, "unauthorized");
}

/// After a failover or a restore, nodes with a lease may be missing in the table, and may not find
/// a new credential. The first change waits for their leases.
#[tokio::test]
async fn first_change_settles_the_history() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let key = app.create_key(&dana, "old", "write").await;
    let mut sql = app.database.connect().await;
    let path = format!("/v1/api-keys/{}", key.id);
    for histories in [2, 3] {
        sql.execute("UPDATE settled_histories SET timeline = timeline + 1").await.unwrap();
        let changes = [("server.public_url", app.url.as_str()), ("cache.lease_seconds", "1")];
        let node = TestApp::start_on(app.database.clone(), &changes).await;
        if histories == 2 {
            node.create_key(&dana, "new", "write").await;
        } else {
            node.delete(&path).bearer(&dana.access_token).send().await.expect_status(204);
        }
        let settled = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM settled_histories");
        assert_eq!(settled.fetch_one(&mut sql).await.unwrap(), histories);
    }
}

/// If invalidations are deleted before a node has read them, it cannot know which ones it missed.
#[tokio::test]
async fn missed_invalidations_clear_the_whole_cache() {
    let (one, other, _dana, key) = two_nodes().await;
    let mut sql = one.database.connect().await;
    let mut tx = sql.begin().await.unwrap();
    tx.execute("UPDATE api_keys SET revoked_at = now()").await.unwrap();
    tx.execute("SET CONSTRAINTS ALL IMMEDIATE").await.unwrap();
    tx.execute("DELETE FROM invalidation_batches").await.unwrap();
    tx.commit().await.unwrap();
    one.database.wait_for_invalidation().await;
    other.get("/v1/agents").bearer(&key.secret).send().await.assert_error(401, "unauthorized");
}

#[tokio::test]
async fn strict_durability_responds_after_commit() {
    let strict = TestApp::start_with(&[("audit.durability", "strict")]).await;
    let batched = TestApp::start_on(strict.database.clone(), &[]).await;
    let dana = strict.register("acme").await;
    let key = strict.create_key(&dana, "prod", "write").await;
    let mut sql = strict.database.connect().await;
    let mut tx = sql.begin().await.unwrap();
    tx.execute("LOCK TABLE audit_events IN SHARE MODE").await.unwrap();
    let mut waiting = tokio::spawn(strict.get("/v1/agents").bearer(&key.secret).send());
    strict.database.wait_for_blocked_statement().await;
    let early = tokio::time::timeout(Duration::from_millis(500), &mut waiting).await;
    assert!(early.is_err(), "the response came before the commit: {early:?}");
    // With batched durability, the response does not wait for the log.
    batched.get("/v1/auth/me").bearer(&key.secret).send().await.expect_status(200);
    tx.rollback().await.unwrap();
    waiting.await.unwrap().expect_status(200);
    let events = "SELECT count(*) FROM audit_events WHERE path = '/v1/agents'";
    let written = sqlx::query_scalar::<_, i64>(events).fetch_one(&mut sql).await.unwrap();
    assert_eq!(written, 1, "the event is stored before the response");
}

/// A full audit queue delays requests. It loses none, and rejects none that waits a moment.
#[tokio::test]
async fn full_audit_queue_delays_requests_without_loss() {
    let app = TestApp::start_with(&[("audit.queue", "2")]).await;
    let dana = app.register("acme").await;
    let key = app.create_key(&dana, "prod", "write").await;
    let calls: Vec<_> =
        (0..100).map(|_| tokio::spawn(app.get("/v1/auth/me").bearer(&key.secret).send())).collect();
    for call in calls {
        call.await.unwrap().expect_status(200);
    }
    let database = app.stop().await;
    let written = "SELECT count(*) FROM audit_events WHERE path = '/v1/auth/me'";
    let mut sql = database.connect().await;
    assert_eq!(sqlx::query_scalar::<_, i64>(written).fetch_one(&mut sql).await.unwrap(), 100);
}
