//! Nodes die while they seal events, export the audit log, handle requests that are retried, or
//! report on key rotations.

use std::time::Duration;

use call2me_auth::{
    config::Pool,
    env::Env,
    model::id::{self, WorkspaceId},
    store::Store,
};
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use sqlx::PgConnection;
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};
use uuid::Uuid;

use super::fixture::{
    Cluster, Load, Node, Proxy, ProxyMode, RequestOutcome, TEST_TIMEOUT, acquire_test_lock,
    http_client, run_admin_command,
};
use crate::fixture::{Key, TestRequest, TestResponse, context_key, with_timeout};

/// The number of events in the long audit log.
const LONG_LOG_EVENTS: i64 = 250_000;
/// The memory that an export of the long log may add to a node, in kilobytes.
const MAX_EXPORT_KILOBYTES: u64 = 64 * 1024;

/// Waits until every event is sealed.
async fn wait_until_sealed(connection: &mut PgConnection) {
    let is_sealed = "SELECT NOT EXISTS (SELECT FROM audit_outbox)";
    let wait = async {
        while !sqlx::query_scalar::<_, bool>(is_sealed).fetch_one(&mut *connection).await.unwrap() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(TEST_TIMEOUT, wait)
        .await
        .unwrap_or_else(|_| panic!("timed out waiting for all events to be sealed"));
}

/// Checks that all usage counts of a key equal the number of its requests in the audit log. Returns
/// that number.
async fn assert_counted(connection: &mut PgConnection, key: &Key) -> i64 {
    let key = id::parse("key", &key.id).unwrap();
    let mut counts = Vec::new();
    for sql in [
        "SELECT count(*) FROM audit_events WHERE action = 'request' AND actor_id = $1",
        "SELECT total_requests FROM api_key_activity WHERE key_id = $1",
        "SELECT sum(requests)::bigint FROM key_usage_hours WHERE key_id = $1",
        "SELECT sum(requests)::bigint FROM key_usage_minutes WHERE key_id = $1",
        "SELECT sum(requests)::bigint FROM key_usage_clients WHERE key_id = $1",
    ] {
        let count = sqlx::query_scalar::<_, i64>(sql).bind(key).fetch_one(&mut *connection);
        counts.push(count.await.unwrap());
    }
    assert!(counts.iter().all(|count| *count == counts[0]), "{counts:?}");
    counts[0]
}

/// Under load, several nodes are killed, and PostgreSQL once.
#[tokio::test(flavor = "multi_thread")]
async fn events_are_sealed_and_counted_once_when_nodes_are_killed() {
    let _turn = acquire_test_lock().await;
    let mut cluster = Cluster::start(true).await;
    let url = cluster.node_url();
    let steady = Node::start("steady", &url, &[]).await;
    let owner = steady.register("acme").await;
    let key = steady.create_key(&owner, "prod").await;
    let load = Load::start(&steady, &key.secret, 4);
    for round in 0..3 {
        let mut victim = Node::start("victim", &url, &[]).await;
        let victim_load = Load::start(&victim, &key.secret, 4);
        victim_load.wait_for_more("the victim serves", 40, |outcome| outcome.has_status(200)).await;
        if round == 1 {
            cluster.kill().await;
            cluster.restart().await;
            load.wait_for_more("requests succeed again", 20, |outcome| outcome.has_status(200))
                .await;
        }
        victim.kill().await;
        victim_load.finish().await;
    }
    load.wait_for_more("requests succeed", 100, |outcome| outcome.has_status(200)).await;
    let outcomes = load.finish().await;
    let mut steady = steady;
    assert!(steady.stop().await.success());
    let mut connection = cluster.connect().await;
    // The last events of the killed nodes may not be sealed yet, so another node has to run.
    let last = Node::start("last", &url, &[]).await;
    wait_until_sealed(&mut connection).await;
    let request_count = assert_counted(&mut connection, &key).await;
    let acknowledged = outcomes.iter().filter(|outcome| outcome.is_acknowledged()).count();
    assert!(
        request_count >= i64::try_from(acknowledged).unwrap(),
        "{request_count} of {acknowledged}"
    );
    let verified = run_admin_command(&url, &["audit", "verify"], &[]).await.unwrap();
    assert_eq!(verified["verified"], true, "{verified:#}");
    println!("{request_count} requests counted; {}", verified["events"]);
    drop(last);

    // The command line names the event that was changed, and exits with an error.
    let sql = "UPDATE audit_events SET status = 200 WHERE action = 'request' AND status = 201 AND id = (
                   SELECT id FROM audit_events WHERE status = 201 AND action = 'request' ORDER BY id LIMIT 1)
               RETURNING id";
    let changed: Uuid = sqlx::query_scalar(sql).fetch_one(&mut connection).await.unwrap();
    let error = run_admin_command(&url, &["audit", "verify"], &[]).await.unwrap_err();
    let event_name = format!("{}, number ", id::format("event", changed));
    assert!(error.contains(&event_name) && error.contains("was changed"), "{error}");
}

/// A node that hangs while it seals does not block the others.
#[tokio::test(flavor = "multi_thread")]
async fn hanging_sealer_does_not_block_other_nodes() {
    let _turn = acquire_test_lock().await;
    let cluster = Cluster::start(false).await;
    let url = cluster.node_url();
    let node = Node::start("node", &url, &[]).await;
    let pool = Pool {
        max_connections: 2,
        acquire_timeout: Duration::from_secs(5),
        statement_timeout: Duration::from_secs(5),
    };
    let (lease, clock) = (Duration::from_secs(5), Env::system().database_clock);
    let store =
        Store::connect(&url, None, &pool, lease, context_key().into(), &clock).await.unwrap();
    let hanging = loop {
        if let Some(mut sealing) = store.begin_sealing(None).await.unwrap() {
            sealing.list_entries_after(0, &[], 10, 10).await.unwrap();
            break sealing;
        }
    };
    let owner = node.register("acme").await;
    let key = node.create_key(&owner, "prod").await;
    node.verify(&key.secret).send().await.expect_status(200);
    let mut connection = cluster.connect().await;
    wait_until_sealed(&mut connection).await;
    // The hanging node can no longer commit.
    let result = hanging.seal(time::OffsetDateTime::UNIX_EPOCH, None, &[], &[]).await;
    assert!(result.is_err());
    assert_counted(&mut connection, &key).await;
}

/// Fills the audit log of a workspace with many events.
async fn insert_long_log(connection: &mut PgConnection, workspace: &str) {
    let workspace: WorkspaceId = workspace.parse().unwrap();
    let sql = "INSERT INTO audit_events (
                   id, workspace_id, action, actor_type, actor_id, actor_name, request_id, method, path,
                   status, ip, user_agent, latency_us)
               SELECT (substring(uuidv7_lower_bound(now() - interval '1 second')::text FOR 14) || '7' ||
                       substring(lpad(to_hex(number), 3, '0') FROM 1 FOR 3) || '-8' ||
                       substring(md5(number::text) FOR 3) || '-' ||
                       substring(md5('x' || number) FOR 12))::uuid,
                      $1, 'request', 'api_key', '01900000-0000-7000-8000-000000000001', 'prod-2026-q2',
                      gen_random_uuid(), 'GET', '/v1/agents/agent_01jd0zt8q7f7qvs4p2k6x3m9ab', 200,
                      '203.0.113.9', 'python-httpx/0.27.0', 400 + number % 100
               FROM generate_series(1, $2) AS number";
    let insert = sqlx::query(sql).bind(id::Id::uuid(workspace)).bind(LONG_LOG_EVENTS);
    insert.execute(connection).await.unwrap();
}

/// Reads a body until it ends or breaks. Returns the number of lines, and `true` if it broke.
async fn count_lines(mut response: reqwest::Response) -> (i64, bool) {
    let mut count = 0;
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) => {
                let line_count = chunk.split(|byte| *byte == b'\n').count() - 1;
                count += i64::try_from(line_count).unwrap();
            }
            Ok(None) => return (count, false),
            Err(_) => return (count, true),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn long_export_uses_little_memory_and_fails_visibly() {
    let _turn = acquire_test_lock().await;
    let cluster = Cluster::start(false).await;
    let url = cluster.node_url();
    let node = Node::start("node", &url, &[]).await;
    let owner = node.register("acme").await;
    let me = node.request("GET", "/v1/auth/me").bearer(&owner).send().await.expect_status(200);
    let workspace = me["workspace"]["id"].as_str().unwrap();
    let mut connection = cluster.connect().await;
    insert_long_log(&mut connection, workspace).await;
    // This node has hashed no password, so its peak memory comes from the export.
    let mut exporter = Node::start("exporter", &url, &[]).await;
    let export = async |url: &str, format: &str| {
        let http = reqwest::Client::new();
        let path = format!("{url}/v1/audit-log/export?format={format}");
        let response = http.get(path).bearer_auth(&owner).send().await.unwrap();
        assert_eq!(response.status(), 200);
        response
    };
    // The first export allocates what every node needs.
    drop(export(&exporter.url, "ndjson").await.chunk().await.unwrap());
    exporter.reset_peak_memory();
    let before = exporter.peak_memory_kilobytes();
    let (exported, broken) = count_lines(export(&exporter.url, "ndjson").await).await;
    assert!(!broken && exported >= LONG_LOG_EVENTS, "{exported}");
    let growth = exporter.peak_memory_kilobytes().saturating_sub(before);
    println!("{exported} events exported; the node's memory grew by {growth} KiB at most");
    assert!(growth < MAX_EXPORT_KILOBYTES, "{growth} KiB");

    // If the node is killed during an export, the client notices that the export is incomplete.
    let mut response = export(&exporter.url, "csv").await;
    for _ in 0..50 {
        assert!(response.chunk().await.unwrap().is_some());
    }
    exporter.kill().await;
    let (_, broken) = count_lines(response).await;
    assert!(broken, "an incomplete export must not look complete");
    // Another node is not affected.
    assert!(export(&node.url, "ndjson").await.chunk().await.unwrap().is_some());
}

/// A request that is retried on another node after its first node died takes effect once.
#[tokio::test(flavor = "multi_thread")]
async fn request_retried_after_node_death_takes_effect_once() {
    let _turn = acquire_test_lock().await;
    let cluster = Cluster::start(true).await;
    let url = cluster.node_url();
    let steady = Node::start("steady", &url, &[]).await;
    let owner = steady.register("acme").await;
    let key = steady.create_key(&owner, "prod").await;
    let mut clients = JoinSet::new();
    for number in 0..5 {
        let mut victim = Node::start("victim", &url, &[]).await;
        for part in 0..6 {
            let (first, second) = (victim.url.clone(), steady.url.clone());
            let (http, secret) = (http_client(), key.secret.clone());
            clients.spawn(async move {
                let (mut created, mut failures) = (Vec::new(), 0);
                // Runs until the victim is killed, and retries the request that failed on the other
                // node.
                while failures == 0 {
                    let name = format!("agent {number} {part} {}", created.len());
                    let send = async |url: &str| {
                        let call =
                            TestRequest::new(&http, url, "POST", "/v1/agents").bearer(&secret);
                        let call = call.header("idempotency-key", &name.replace(' ', "-"));
                        call.json(json!({ "agent_name": name })).try_send().await
                    };
                    let mut answer = send(&first).await;
                    while !matches!(&answer, Ok(answer) if answer.status == 201) {
                        failures += 1;
                        sleep(Duration::from_millis(20)).await;
                        answer = send(&second).await;
                    }
                    let answer = answer.unwrap().body;
                    created.push((name, answer["agent_id"].as_str().unwrap().to_owned()));
                }
                created
            });
        }
        let mut connection = cluster.connect().await;
        let sql = format!(
            "SELECT count(*) FROM documents WHERE body ->> 'agent_name' LIKE 'agent {number} %'"
        );
        let wait = async {
            while sqlx::query_scalar::<_, i64>(sqlx::AssertSqlSafe(sql.clone()))
                .fetch_one(&mut connection)
                .await
                .unwrap()
                < 60
            {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(TEST_TIMEOUT, wait).await.unwrap();
        victim.kill().await;
    }
    let mut acknowledged: Vec<(String, String)> =
        clients.join_all().await.into_iter().flatten().collect();
    acknowledged.sort();
    let mut connection = cluster.connect().await;
    let sql = "SELECT body ->> 'agent_name', id FROM documents WHERE kind = 'agent' ORDER BY 1";
    let stored: Vec<(String, Uuid)> = sqlx::query_as(sql).fetch_all(&mut connection).await.unwrap();
    let mut stored: Vec<_> =
        stored.into_iter().map(|(name, agent)| (name, id::format("agent", agent))).collect();
    stored.sort();
    println!("{} agents created while five nodes were killed", acknowledged.len());
    assert_eq!(
        acknowledged, stored,
        "each agent exists once, with the id that its client received"
    );
}

/// PostgreSQL commits, but its response is lost.
#[tokio::test(flavor = "multi_thread")]
async fn key_creation_with_lost_commit_returns_same_secret() {
    let _turn = acquire_test_lock().await;
    let cluster = Cluster::start(false).await;
    let proxy = Proxy::start(cluster.port()).await;
    let url = proxy.url(&cluster.node_url(), cluster.port());
    let node = Node::start("node", &url, &[]).await;
    let owner = node.register("acme").await;
    let create_key = async |name: &str| {
        let call = node.request("POST", "/v1/api-keys").bearer(&owner);
        call.header("idempotency-key", name).json(json!({ "name": name })).send().await
    };
    // As a client does: on a busy machine the first transaction may still be open.
    let retry_creation = async |name: &str| loop {
        let answer = create_key(name).await;
        if answer.status != 409 {
            return answer.expect_status(201);
        }
        answer.assert_error(409, "idempotency_in_progress");
        sleep(Duration::from_millis(100)).await;
    };
    for round in 0..5 {
        let name = format!("key-{round}");
        proxy.set_mode(ProxyMode::DropCommitResponses);
        create_key(&name).await.assert_error(503, "unavailable");
        proxy.set_mode(ProxyMode::Pass);
        let first = with_timeout("the key is created", retry_creation(&name)).await;
        let again = create_key(&name).await.expect_status(201);
        assert_eq!(first["key"], again["key"]);
        node.verify(first["key"].as_str().unwrap()).send().await.expect_status(200);
    }
    let list = node.request("GET", "/v1/api-keys").bearer(&owner).send().await.expect_status(200);
    assert_eq!(list["total"], 5);
}

/// Settings with a quiet period of two seconds.
const SHORT_QUIET_PERIOD: [(&str, &str); 2] =
    [("rotation.quiet_seconds", "2"), ("cache.lease_seconds", "2")];

/// A key rotation in progress.
struct KeyRotation<'a> {
    owner: &'a str,
    old: Key,
    new_secret: String,
}

impl<'a> KeyRotation<'a> {
    async fn start(node: &Node, owner: &'a str, name: &str) -> Self {
        let old = node.create_key(owner, name).await;
        let path = format!("/v1/api-keys/{}/rotate", old.id);
        let answer = node.request("POST", &path).bearer(owner).send().await.expect_status(201);
        Self { owner, old, new_secret: answer["key"].as_str().unwrap().to_owned() }
    }

    async fn get_report(&self, node: &Node) -> Value {
        let path = format!("/v1/api-keys/{}/rotation", self.old.id);
        node.request("GET", &path).bearer(self.owner).send().await.expect_status(200)
    }

    /// Waits for a report of this node that passes.
    async fn wait_for_report(
        &self,
        node: &Node,
        description: &str,
        passes: impl Fn(&Value) -> bool,
    ) {
        let wait = async {
            while !passes(&self.get_report(node).await) {
                sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(TEST_TIMEOUT, wait)
            .await
            .unwrap_or_else(|_| panic!("timed out waiting for: {description}"));
    }

    async fn revoke_if_quiet(&self, node: &Node) -> TestResponse {
        let path = format!("/v1/api-keys/{}?if_quiet=true", self.old.id);
        node.request("DELETE", &path).bearer(self.owner).send().await
    }
}

fn is_safe(report: &Value) -> bool {
    report["safe_to_revoke"] == true
}

/// Before the verdict, a lost node may have taken uses of the key with it.
#[tokio::test(flavor = "multi_thread")]
async fn lost_node_delays_verdict_until_key_is_quiet_again() {
    let _turn = acquire_test_lock().await;
    let cluster = Cluster::start(false).await;
    let url = cluster.node_url();
    // Longer than the lease, so that the loss is detected before the key is quiet.
    let settings = [("rotation.quiet_seconds", "6"), ("cache.lease_seconds", "2")];
    let node = Node::start("node", &url, &settings).await;
    let mut victim = Node::start("victim", &url, &settings).await;
    let owner = node.register("acme").await;
    let rotation = KeyRotation::start(&node, &owner, "prod").await;
    for (at, secret) in [(&victim, &rotation.old.secret), (&node, &rotation.new_secret)] {
        at.verify(secret).send().await.expect_status(200);
    }
    let is_counted = |report: &Value| report["old"]["requests_last_hour"] == 1;
    rotation.wait_for_report(&node, "the use is counted", is_counted).await;
    victim.kill().await;
    let names_loss =
        |report: &Value| report["reason"].as_str().unwrap().contains("a node was lost");
    rotation.wait_for_report(&node, "the report names the lost node", names_loss).await;
    rotation.revoke_if_quiet(&node).await.assert_error(409, "key_in_use");
    rotation.wait_for_report(&node, "it is quiet again", is_safe).await;
    assert_eq!(rotation.revoke_if_quiet(&node).await.status, 204);
    assert_eq!(node.count_log_lines("panicked"), 0);
}

/// The verdict survives the loss of a node, and a restart of the node that gave it.
#[tokio::test(flavor = "multi_thread")]
async fn verdict_survives_lost_node_and_restart() {
    let _turn = acquire_test_lock().await;
    let cluster = Cluster::start(false).await;
    let url = cluster.node_url();
    let mut node = Node::start("node", &url, &SHORT_QUIET_PERIOD).await;
    let mut victim = Node::start("victim", &url, &SHORT_QUIET_PERIOD).await;
    let owner = node.register("acme").await;
    let rotation = KeyRotation::start(&node, &owner, "prod").await;
    for (at, secret) in [(&victim, &rotation.old.secret), (&node, &rotation.new_secret)] {
        at.verify(secret).send().await.expect_status(200);
    }
    rotation.wait_for_report(&node, "the old key is quiet", is_safe).await;
    victim.kill().await;
    node.stop().await;
    let node = Node::start("again", &url, &SHORT_QUIET_PERIOD).await;
    for _ in 0..40 {
        let report = rotation.get_report(&node).await;
        assert!(is_safe(&report), "{report:#}");
        sleep(Duration::from_millis(100)).await;
    }
    // Only a use of the old key withdraws the verdict.
    node.verify(&rotation.old.secret).send().await.expect_status(200);
    rotation
        .wait_for_report(&node, "the use withdraws the verdict", |report| !is_safe(report))
        .await;
    rotation.revoke_if_quiet(&node).await.assert_error(409, "key_in_use");
    rotation.wait_for_report(&node, "it is quiet again", is_safe).await;
    assert_eq!(rotation.revoke_if_quiet(&node).await.status, 204);
}

/// Right after one node reports a key as safe to revoke, another revokes it, while both are busy.
#[tokio::test(flavor = "multi_thread")]
async fn fifty_verdicts_hold_on_other_node_under_load() {
    let _turn = acquire_test_lock().await;
    let cluster = Cluster::start(false).await;
    let url = cluster.node_url();
    let nodes = [
        Node::start("one", &url, &SHORT_QUIET_PERIOD).await,
        Node::start("two", &url, &SHORT_QUIET_PERIOD).await,
    ];
    let owner = nodes[0].register("acme").await;
    let busy = nodes[0].create_key(&owner, "busy").await;
    let loads = nodes.each_ref().map(|node| Load::start(node, &busy.secret, 2));
    let revoked = (0..50).map(|number: usize| {
        let (one, other) = (&nodes[number % 2], &nodes[(number + 1) % 2]);
        let owner = &owner;
        async move {
            let rotation = KeyRotation::start(one, owner, &format!("key {number}")).await;
            other.verify(&rotation.old.secret).send().await.expect_status(200);
            one.verify(&rotation.new_secret).send().await.expect_status(200);
            rotation.wait_for_report(one, "the old key is quiet", is_safe).await;
            rotation.revoke_if_quiet(other).await.status.as_u16()
        }
    });
    let answers: Vec<u16> =
        futures_util::stream::iter(revoked).buffer_unordered(25).collect().await;
    assert_eq!(answers, [204; 50]);
    for load in loads {
        let outcomes = load.finish().await;
        assert!(outcomes.iter().all(RequestOutcome::is_acknowledged));
    }
}
