//! PostgreSQL or the service is killed. Everything that was acknowledged is stored, and is in the
//! audit log exactly once.

use std::collections::{HashMap, HashSet};

use call2me_auth::model::id;
use sqlx::{AssertSqlSafe, PgConnection};
use tokio::{
    task::JoinSet,
    time::{Instant, timeout},
};
use uuid::Uuid;

use super::fixture::{
    Cluster, Load, Node, RequestOutcome, TEST_TIMEOUT, acquire_test_lock, wait_until,
};
use crate::fixture::Key;

const CLIENTS: usize = 8;
/// The number of acknowledged requests to wait for, before a fault and after the recovery.
const STEADY_REQUESTS: usize = 150;
/// The number of running statements when PostgreSQL is killed.
const RUNNING_STATEMENTS: i64 = 12;
/// A short timeout, so that requests notice an outage soon.
const ACQUIRE: (&str, &str) = ("database.acquire_timeout_seconds", "1");

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_requests_survive_postgresql_kill() {
    kill_postgresql_under_load("batched", 4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_requests_survive_postgresql_kill_if_strict() {
    // A request that waits for the log takes long to fail during an outage, so one kill is enough.
    kill_postgresql_under_load("strict", 1).await;
}

async fn kill_postgresql_under_load(durability: &str, times: usize) {
    let _turn = acquire_test_lock().await;
    let mut cluster = Cluster::start(true).await;
    let settings = [ACQUIRE, ("audit.durability", durability)];
    let mut node = Node::start("node", &cluster.node_url(), &settings).await;
    let owner = node.register("acme").await;
    let key = node.create_key(&owner, "load").await;
    let load = Load::start(&node, &key.secret, CLIENTS);
    load.wait_for_more("requests succeed", STEADY_REQUESTS, RequestOutcome::is_acknowledged).await;
    for _ in 0..times {
        cluster.kill().await;
        load.wait_for_more("clients get 503", CLIENTS, |outcome| outcome.has_status(503)).await;
        cluster.restart().await;
        let began = Instant::now();
        load.wait_for_more(
            "requests succeed again",
            STEADY_REQUESTS,
            RequestOutcome::is_acknowledged,
        )
        .await;
        println!(
            "{STEADY_REQUESTS} requests acknowledged within {:?} of the restart",
            began.elapsed()
        );
    }
    let outcomes = load.finish().await;
    for outcome in &outcomes {
        let allowed = matches!(outcome.response, Ok((200 | 201, _) | (503, true)));
        assert!(allowed, "a client saw something other than a 503 with Retry-After: {outcome:?}");
    }
    assert!(node.stop().await.success(), "the node exits successfully and with the log written");
    let mut connection = cluster.connect().await;
    assert_written(&mut connection, &outcomes).await;
    assert_logged(&mut connection, &key, &outcomes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_requests_survive_service_kill() {
    let _turn = acquire_test_lock().await;
    let cluster = Cluster::start(true).await;
    let settings = [("audit.durability", "strict")];
    let mut node = Node::start("first", &cluster.node_url(), &settings).await;
    let owner = node.register("acme").await;
    let key = node.create_key(&owner, "load").await;
    let load = Load::start(&node, &key.secret, CLIENTS);
    load.wait_for_more("requests succeed", 2 * STEADY_REQUESTS, RequestOutcome::is_acknowledged)
        .await;
    node.kill().await;
    // A client that pauses notices it with its next request.
    let disconnected = || load.count(|outcome| outcome.response.is_err());
    wait_until("each client lost its connection", || disconnected() == CLIENTS).await;
    let outcomes = load.finish().await;
    let mut connection = cluster.connect().await;
    assert_written(&mut connection, &outcomes).await;
    assert_logged(&mut connection, &key, &outcomes).await;

    let node = Node::start("second", &cluster.node_url(), &settings).await;
    let load = Load::start(&node, &key.secret, CLIENTS);
    load.wait_for_more("the next node serves", STEADY_REQUESTS, RequestOutcome::is_acknowledged)
        .await;
    let outcomes: Vec<_> = outcomes.into_iter().chain(load.finish().await).collect();
    assert_logged(&mut connection, &key, &outcomes).await;
    // The killed node did not deregister, so the revocation waits until its lease has expired.
    node.revoke_key(&owner, &key).await;
    node.verify(&key.secret).send().await.assert_error(401, "unauthorized");
}

/// A killed postmaster leaves child processes, which run for a while with its log file open. The
/// next postmaster cannot start before they have exited, and must not take their messages for its
/// own.
#[tokio::test(flavor = "multi_thread")]
async fn postgresql_restarts_despite_orphaned_child_processes() {
    let _turn = acquire_test_lock().await;
    let mut cluster = Cluster::start(false).await;
    let mut work = JoinSet::new();
    for number in 1..=RUNNING_STATEMENTS {
        let mut connection = cluster.connect().await;
        work.spawn(async move {
            let statement =
                format!("SELECT count(*) FROM generate_series(1, {})", number * 200_000);
            sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut connection).await.ok();
            connection
        });
    }
    let mut connection = cluster.connect().await;
    // Statements that have finished already are not counted and do no harm.
    let running = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%generate_series(1,%'
                   AND pid <> pg_backend_pid()";
    let count_started =
        async || -> i64 { sqlx::query_scalar(running).fetch_one(&mut connection).await.unwrap() };
    timeout(TEST_TIMEOUT, wait_until_all_started(count_started)).await.unwrap();
    cluster.kill().await;
    cluster.restart().await;
    let mut connection = cluster.connect().await;
    sqlx::query("SELECT 1").execute(&mut connection).await.unwrap();
}

async fn wait_until_all_started(mut count_started: impl AsyncFnMut() -> i64) {
    while count_started().await < RUNNING_STATEMENTS {
        tokio::task::yield_now().await;
    }
}

/// Checks that every agent in a response exists. Another agent may exist only for a request that
/// was not acknowledged.
async fn assert_written(connection: &mut PgConnection, outcomes: &[RequestOutcome]) {
    let stored: HashSet<Uuid> = sqlx::query_scalar("SELECT id FROM documents WHERE kind = 'agent'")
        .fetch_all(connection)
        .await
        .unwrap()
        .into_iter()
        .collect();
    let acknowledged: HashSet<Uuid> =
        outcomes.iter().filter_map(|outcome| outcome.agent_id).collect();
    let lost: Vec<_> = acknowledged.difference(&stored).collect();
    assert!(lost.is_empty(), "acknowledged but not stored: {lost:?}");
    let extra = stored.difference(&acknowledged).count();
    let unacknowledged = outcomes.iter().filter(|outcome| !outcome.is_acknowledged()).count();
    println!("{} writes acknowledged, {extra} others stored", acknowledged.len());
    assert!(!acknowledged.is_empty() && extra <= unacknowledged, "{extra} of {unacknowledged}");
}

/// Checks that every acknowledged request is in the log exactly once, with its status. Any other
/// request has at most one event, and every event belongs to a request.
pub async fn assert_logged(connection: &mut PgConnection, key: &Key, outcomes: &[RequestOutcome]) {
    let rows: Vec<(Uuid, i16)> = sqlx::query_as(
        "SELECT request_id, status FROM audit_events WHERE action = 'request' AND actor_id = $1",
    )
    .bind(id::parse("key", &key.id).unwrap())
    .fetch_all(connection)
    .await
    .unwrap();
    let count = rows.len();
    let mut logged: HashMap<Uuid, Vec<i16>> = HashMap::new();
    for (request, status) in rows {
        logged.entry(request).or_default().push(status);
    }
    let (mut acknowledged, mut extra) = (0, 0);
    for outcome in outcomes {
        let events = logged.remove(&outcome.request_id).unwrap_or_default();
        if let Ok((status @ 200..=299, _)) = outcome.response {
            assert_eq!(events, [i16::try_from(status).unwrap()], "{outcome:?}");
            acknowledged += 1;
        } else {
            assert!(events.len() <= 1, "{events:?} of {outcome:?}");
            extra += events.len();
        }
    }
    println!("{acknowledged} requests acknowledged, {count} events, {extra} of other requests");
    assert!(logged.is_empty(), "events without a request: {logged:?}");
}
