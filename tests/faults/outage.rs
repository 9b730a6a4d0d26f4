//! PostgreSQL dies, or the service does: what was acknowledged is there, and in the log exactly once.

use std::collections::{HashMap, HashSet};

use call2me_auth::model::id;
use sqlx::{AssertSqlSafe, PgConnection};
use tokio::{
    task::JoinSet,
    time::{Instant, timeout},
};
use uuid::Uuid;

use super::fixture::{Cluster, Load, Node, Outcome, PATIENCE, turn};
use crate::fixture::Key;

const CLIENTS: usize = 8;
/// Requests that are to be acknowledged before something dies, and after it came back.
const WARM: usize = 150;
/// Statements under way when PostgreSQL dies.
const ORPHANS: i64 = 12;
/// So that requests hear soon that PostgreSQL is away.
const ACQUIRE: (&str, &str) = ("database.acquire_timeout_seconds", "1");

#[tokio::test(flavor = "multi_thread")]
async fn postgresql_is_killed_under_load() {
    postgresql_is_killed("batched", 4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgresql_is_killed_under_load_while_answers_wait_for_the_log() {
    // A request of the outage waits for long before it gives up, so once is enough.
    postgresql_is_killed("strict", 1).await;
}

async fn postgresql_is_killed(durability: &str, times: usize) {
    let _turn = turn().await;
    let mut cluster = Cluster::start(true).await;
    let settings = [ACQUIRE, ("audit.durability", durability)];
    let mut node = Node::start("node", &cluster.node_url(), &settings).await;
    let owner = node.register("acme").await;
    let key = node.mint(&owner, "load").await;
    let load = Load::start(&node, &key.secret, CLIENTS);
    load.more("the service is used", WARM, Outcome::is_acknowledged).await;
    for _ in 0..times {
        cluster.kill().await;
        load.more("clients hear of the outage", CLIENTS, |outcome| outcome.is(503)).await;
        cluster.restart().await;
        let began = Instant::now();
        load.more("the service is used again", WARM, Outcome::is_acknowledged).await;
        println!("{WARM} requests acknowledged within {:?} of the restart", began.elapsed());
    }
    let outcomes = load.finish().await;
    for outcome in &outcomes {
        let allowed = matches!(outcome.answer, Ok((200 | 201, _) | (503, true)));
        assert!(allowed, "a client saw more than a 503 with Retry-After: {outcome:?}");
    }
    assert!(node.stop().await.success(), "it ends well, and with the log written");
    let mut connection = cluster.connect().await;
    assert_written(&mut connection, &outcomes).await;
    assert_logged(&mut connection, &key, &outcomes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_is_killed_under_load() {
    let _turn = turn().await;
    let cluster = Cluster::start(true).await;
    let settings = [("audit.durability", "strict")];
    let mut node = Node::start("first", &cluster.node_url(), &settings).await;
    let owner = node.register("acme").await;
    let key = node.mint(&owner, "load").await;
    let load = Load::start(&node, &key.secret, CLIENTS);
    load.more("the service is used", 2 * WARM, Outcome::is_acknowledged).await;
    node.kill().await;
    let outcomes = load.finish().await;
    let broken = outcomes.iter().filter(|outcome| outcome.answer.is_err()).count();
    assert_eq!(broken, CLIENTS, "each client was cut off once, at the end");
    let mut connection = cluster.connect().await;
    assert_written(&mut connection, &outcomes).await;
    assert_logged(&mut connection, &key, &outcomes).await;

    let node = Node::start("second", &cluster.node_url(), &settings).await;
    let load = Load::start(&node, &key.secret, CLIENTS);
    load.more("the next one serves", WARM, Outcome::is_acknowledged).await;
    let outcomes: Vec<_> = outcomes.into_iter().chain(load.finish().await).collect();
    assert_logged(&mut connection, &key, &outcomes).await;
    // The one that was killed said no farewell, and is waited for no longer than its lease.
    node.revoke(&owner, &key).await;
    node.verify(&key.secret).send().await.refused(401, "unauthorized");
}

/// A postmaster that is killed leaves its children behind, at work for a while and with its log file
/// open. The next one cannot start before they have ended, and their last words are not its own.
#[tokio::test(flavor = "multi_thread")]
async fn postgresql_starts_again_past_the_children_of_the_one_that_was_killed() {
    let _turn = turn().await;
    let mut cluster = Cluster::start(false).await;
    let mut work = JoinSet::new();
    for number in 1..=ORPHANS {
        let mut connection = cluster.connect().await;
        work.spawn(async move {
            let long = format!("SELECT count(*) FROM generate_series(1, {})", number * 200_000);
            sqlx::raw_sql(AssertSqlSafe(long)).execute(&mut connection).await.ok();
            connection
        });
    }
    let mut connection = cluster.connect().await;
    // Those that are done already count for nothing, and do no harm.
    let started = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%generate_series(1,%'
                   AND pid <> pg_backend_pid()";
    let started =
        async || -> i64 { sqlx::query_scalar(started).fetch_one(&mut connection).await.unwrap() };
    timeout(PATIENCE, started_all(started)).await.unwrap();
    cluster.kill().await;
    cluster.restart().await;
    let mut connection = cluster.connect().await;
    sqlx::query("SELECT 1").execute(&mut connection).await.unwrap();
}

async fn started_all(mut started: impl AsyncFnMut() -> i64) {
    while started().await < ORPHANS {
        tokio::task::yield_now().await;
    }
}

/// Every agent that a client was told of is there; others only where a client was told nothing.
async fn assert_written(connection: &mut PgConnection, outcomes: &[Outcome]) {
    let there: HashSet<Uuid> = sqlx::query_scalar("SELECT id FROM documents WHERE kind = 'agent'")
        .fetch_all(connection)
        .await
        .unwrap()
        .into_iter()
        .collect();
    let told: HashSet<Uuid> = outcomes.iter().filter_map(|outcome| outcome.agent).collect();
    let lost: Vec<_> = told.difference(&there).collect();
    assert!(lost.is_empty(), "acknowledged and not there: {lost:?}");
    let untold = there.difference(&told).count();
    let unacknowledged = outcomes.iter().filter(|outcome| !outcome.is_acknowledged()).count();
    println!("{} writes acknowledged, {untold} others there", told.len());
    assert!(!told.is_empty() && untold <= unacknowledged, "{untold} of {unacknowledged}");
}

/// Every acknowledged request is in the log exactly once, with its status; of any other request
/// there is one event at most, and none of requests that nobody made.
async fn assert_logged(connection: &mut PgConnection, key: &Key, outcomes: &[Outcome]) {
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
        let events = logged.remove(&outcome.request).unwrap_or_default();
        if let Ok((status @ 200..=299, _)) = outcome.answer {
            assert_eq!(events, [i16::try_from(status).unwrap()], "{outcome:?}");
            acknowledged += 1;
        } else {
            assert!(events.len() <= 1, "{events:?} of {outcome:?}");
            extra += events.len();
        }
    }
    println!("{acknowledged} requests acknowledged, {count} events, {extra} of others");
    assert!(logged.is_empty(), "events of requests that nobody made: {logged:?}");
}
