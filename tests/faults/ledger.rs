//! Nodes die while they seal, while they send an export and while they answer what is tried again.

use std::time::Duration;

use call2me_auth::{
    config::Pool,
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
    Cluster, Load, Mode, Node, Outcome, PATIENCE, Proxy, admin, client, turn, until,
};
use crate::fixture::{Answer, Call, Key};

/// Events of the long log.
const LONG: i64 = 1_000_000;
/// What an export of it may add to a node's memory, in kilobytes.
const MOST_KILOBYTES: u64 = 64 * 1024;

/// Ready once every event that is written is sealed.
async fn all_is_sealed(connection: &mut PgConnection) {
    let settled = "SELECT NOT EXISTS (SELECT FROM ledger)";
    let wait = async {
        while !sqlx::query_scalar::<_, bool>(settled).fetch_one(&mut *connection).await.unwrap() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("all is sealed"));
}

/// What the counts say of a key is what the log says, in each of the tables.
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

/// Under load, each node is killed several times, and PostgreSQL once.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_dies_every_event_is_sealed_once_and_counted_once() {
    let _turn = turn().await;
    let mut cluster = Cluster::start(true).await;
    let url = cluster.node_url();
    let steady = Node::start("steady", &url, &[]).await;
    let owner = steady.register("acme").await;
    let key = steady.mint(&owner, "prod").await;
    let load = Load::start(&steady, &key.secret, 8);
    for round in 0..6 {
        let mut victim = Node::start("victim", &url, &[]).await;
        let more = Load::start(&victim, &key.secret, 4);
        more.more("the victim serves", 100, |outcome| outcome.is(200)).await;
        if round == 3 {
            cluster.kill().await;
            cluster.restart().await;
            load.more("it goes on", 20, |outcome| outcome.is(200)).await;
        }
        victim.kill().await;
        more.finish().await;
    }
    load.more("it goes on", 100, |outcome| outcome.is(200)).await;
    let outcomes = load.finish().await;
    let mut steady = steady;
    assert!(steady.stop().await.success());
    let mut connection = cluster.connect().await;
    // The last words of one that was killed may still be on their way into the ledger.
    let last = Node::start("last", &url, &[]).await;
    all_is_sealed(&mut connection).await;
    let counted = assert_counted(&mut connection, &key).await;
    let acknowledged = outcomes.iter().filter(|outcome| outcome.is_acknowledged()).count();
    assert!(counted >= i64::try_from(acknowledged).unwrap(), "{counted} of {acknowledged}");
    let verified = admin(&url, &["audit", "verify"], &[]).await.unwrap();
    assert_eq!(verified["verified"], true, "{verified:#}");
    println!("{counted} requests counted; {}", verified["events"]);
    drop(last);

    // And from the command line, what does not fit is named, and the exit code tells.
    let sql = "UPDATE audit_events SET status = 200 WHERE action = 'request' AND status = 201 AND id = (
                   SELECT id FROM audit_events WHERE status = 201 AND action = 'request' ORDER BY id LIMIT 1)
               RETURNING id";
    let changed: Uuid = sqlx::query_scalar(sql).fetch_one(&mut connection).await.unwrap();
    let refused = admin(&url, &["audit", "verify"], &[]).await.unwrap_err();
    let named = format!("{}, number ", id::format("event", changed));
    assert!(refused.contains(&named) && refused.contains("was changed"), "{refused}");
}

/// One that hangs in the middle of sealing does not keep the others from it.
#[tokio::test(flavor = "multi_thread")]
async fn a_sealer_that_hangs_is_put_aside() {
    let _turn = turn().await;
    let cluster = Cluster::start(false).await;
    let url = cluster.node_url();
    let node = Node::start("node", &url, &[]).await;
    let pool = Pool {
        max_connections: 2,
        acquire_timeout: Duration::from_secs(5),
        statement_timeout: Duration::from_secs(5),
    };
    let store = Store::connect(&url, &pool).await.unwrap();
    let hanging = loop {
        if let Some(mut sealing) = store.begin_sealing().await.unwrap() {
            sealing.entries_behind(0, 10, 10).await.unwrap();
            break sealing;
        }
    };
    let owner = node.register("acme").await;
    let key = node.mint(&owner, "prod").await;
    node.verify(&key.secret).send().await.expect(200);
    let mut connection = cluster.connect().await;
    all_is_sealed(&mut connection).await;
    // What it would do now comes too late.
    let late = hanging.seal(time::OffsetDateTime::UNIX_EPOCH, &[], &[]).await;
    assert!(late.is_err());
    assert_counted(&mut connection, &key).await;
}

/// A workspace with a long log, of events that were not all there is: another has as many.
async fn long_log(connection: &mut PgConnection, workspace: &str) {
    let workspace: WorkspaceId = workspace.parse().unwrap();
    let sql = "INSERT INTO audit_events (
                   id, workspace_id, action, actor_type, actor_id, actor_name, request_id, method, path,
                   status, ip, user_agent, latency_us)
               SELECT (substring(uuid_at(now() - interval '1 second')::text FOR 14) || '7' ||
                       substring(lpad(to_hex(number), 3, '0') FROM 1 FOR 3) || '-8' ||
                       substring(md5(number::text) FOR 3) || '-' ||
                       substring(md5('x' || number) FOR 12))::uuid,
                      $1, 'request', 'api_key', '01900000-0000-7000-8000-000000000001', 'prod-2026-q2',
                      gen_random_uuid(), 'GET', '/v1/agents/agent_01jd0zt8q7f7qvs4p2k6x3m9ab', 200,
                      '203.0.113.9', 'python-httpx/0.27.0', 400 + number % 100
               FROM generate_series(1, $2) AS number";
    let insert = sqlx::query(sql).bind(id::Id::uuid(workspace)).bind(LONG);
    insert.execute(connection).await.unwrap();
}

/// Reads all of a body, or until it breaks; how many lines, and whether it broke.
async fn lines(mut response: reqwest::Response) -> (i64, bool) {
    let mut count = 0;
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) => {
                let ends = chunk.split(|byte| *byte == b'\n').count() - 1;
                count += i64::try_from(ends).unwrap();
            }
            Ok(None) => return (count, false),
            Err(_) => return (count, true),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_million_events_are_exported_in_little_memory_and_never_half_as_if_whole() {
    let _turn = turn().await;
    let cluster = Cluster::start(false).await;
    let url = cluster.node_url();
    let node = Node::start("node", &url, &[]).await;
    let owner = node.register("acme").await;
    let me = node.call("GET", "/v1/auth/me").bearer(&owner).send().await.expect(200);
    let workspace = me["workspace"]["id"].as_str().unwrap();
    let mut connection = cluster.connect().await;
    long_log(&mut connection, workspace).await;
    // One that has hashed no password, so that its peak is its own.
    let mut exporter = Node::start("exporter", &url, &[]).await;
    let export = async |url: &str, format: &str| {
        let http = reqwest::Client::new();
        let path = format!("{url}/v1/audit-log/export?format={format}");
        let response = http.get(path).bearer_auth(&owner).send().await.unwrap();
        assert_eq!(response.status(), 200);
        response
    };
    // Once a little, so that what a node needs at all is there.
    drop(export(&exporter.url, "ndjson").await.chunk().await.unwrap());
    exporter.forget_peak();
    let before = exporter.peak_kilobytes();
    let (exported, broken) = lines(export(&exporter.url, "ndjson").await).await;
    assert!(!broken && exported >= LONG, "{exported}");
    let grown = exporter.peak_kilobytes().saturating_sub(before);
    println!("{exported} events exported; the node's memory grew by {grown} KiB at most");
    assert!(grown < MOST_KILOBYTES, "{grown} KiB");

    // Killed on the way, the client knows that it has not got all of it.
    let mut response = export(&exporter.url, "csv").await;
    for _ in 0..50 {
        assert!(response.chunk().await.unwrap().is_some());
    }
    exporter.kill().await;
    let (_, broken) = lines(response).await;
    assert!(broken, "half an export that looks whole");
    // Another node is not affected.
    assert!(export(&node.url, "ndjson").await.chunk().await.unwrap().is_some());
}

/// Whatever happens to the node that was asked first, trying again elsewhere does nothing twice.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_tried_again_after_a_node_died_is_done_once() {
    let _turn = turn().await;
    let cluster = Cluster::start(true).await;
    let url = cluster.node_url();
    let steady = Node::start("steady", &url, &[]).await;
    let owner = steady.register("acme").await;
    let key = steady.mint(&owner, "prod").await;
    let mut clients = JoinSet::new();
    for number in 0..5 {
        let mut victim = Node::start("victim", &url, &[]).await;
        for part in 0..6 {
            let (first, second) = (victim.url.clone(), steady.url.clone());
            let (http, secret) = (client(), key.secret.clone());
            clients.spawn(async move {
                let (mut made, mut broken) = (Vec::new(), 0);
                // Until the victim is gone, and once more behind it.
                while broken == 0 {
                    let name = format!("agent {number} {part} {}", made.len());
                    let send = async |url: &str| {
                        let call = Call::new(&http, url, "POST", "/v1/agents").bearer(&secret);
                        let call = call.header("idempotency-key", &name.replace(' ', "-"));
                        call.json(json!({ "agent_name": name })).try_send().await
                    };
                    let mut answer = send(&first).await;
                    while !matches!(&answer, Ok(answer) if answer.status == 201) {
                        broken += 1;
                        sleep(Duration::from_millis(20)).await;
                        answer = send(&second).await;
                    }
                    let answer = answer.unwrap().body;
                    made.push((name, answer["agent_id"].as_str().unwrap().to_owned()));
                }
                made
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
        timeout(PATIENCE, wait).await.unwrap();
        victim.kill().await;
    }
    let mut told: Vec<(String, String)> = clients.join_all().await.into_iter().flatten().collect();
    told.sort();
    let mut connection = cluster.connect().await;
    let sql = "SELECT body ->> 'agent_name', id FROM documents WHERE kind = 'agent' ORDER BY 1";
    let there: Vec<(String, Uuid)> = sqlx::query_as(sql).fetch_all(&mut connection).await.unwrap();
    let mut there: Vec<_> =
        there.into_iter().map(|(name, agent)| (name, id::format("agent", agent))).collect();
    there.sort();
    println!("{} agents were asked for, over five nodes that died", told.len());
    assert_eq!(told, there, "each is there once, under the id that its client was told");
}

/// PostgreSQL commits, and the answer is lost on the way.
#[tokio::test(flavor = "multi_thread")]
async fn a_mint_whose_commit_is_not_told_gives_the_same_secret_again() {
    let _turn = turn().await;
    let cluster = Cluster::start(false).await;
    let proxy = Proxy::start(cluster.port()).await;
    let url = proxy.url(&cluster.node_url(), cluster.port());
    let node = Node::start("node", &url, &[]).await;
    let owner = node.register("acme").await;
    let mint = async |name: &str| {
        let call = node.call("POST", "/v1/api-keys").bearer(&owner);
        call.header("idempotency-key", name).json(json!({ "name": name })).send().await
    };
    for round in 0..5 {
        let name = format!("key-{round}");
        proxy.set(Mode::LoseCommits);
        mint(&name).await.refused(503, "unavailable");
        proxy.set(Mode::Pass);
        let first = mint(&name).await.expect(201);
        let again = mint(&name).await.expect(201);
        assert_eq!(first["key"], again["key"]);
        node.verify(first["key"].as_str().unwrap()).send().await.expect(200);
    }
    let list = node.call("GET", "/v1/api-keys").bearer(&owner).send().await.expect(200);
    assert_eq!(list["total"], 5);
}

/// Settings of nodes that call a key quiet after two seconds.
const QUICK: [(&str, &str); 2] = [("rotation.quiet_seconds", "2"), ("cache.lease_seconds", "2")];

/// A key that is rotated.
struct Rotation<'a> {
    owner: &'a str,
    old: Key,
    new_secret: String,
}

impl<'a> Rotation<'a> {
    async fn start(node: &Node, owner: &'a str, name: &str) -> Self {
        let old = node.mint(owner, name).await;
        let path = format!("/v1/api-keys/{}/rotate", old.id);
        let answer = node.call("POST", &path).bearer(owner).send().await.expect(201);
        Self { owner, old, new_secret: answer["key"].as_str().unwrap().to_owned() }
    }

    async fn report(&self, node: &Node) -> Value {
        let path = format!("/v1/api-keys/{}/rotation", self.old.id);
        node.call("GET", &path).bearer(self.owner).send().await.expect(200)
    }

    /// The first report of this node that passes.
    async fn wait(&self, node: &Node, what: &str, passes: impl Fn(&Value) -> bool) {
        let wait = async {
            while !passes(&self.report(node).await) {
                sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("{what}"));
    }

    async fn revoke_if_quiet(&self, node: &Node) -> Answer {
        let path = format!("/v1/api-keys/{}?if_quiet=true", self.old.id);
        node.call("DELETE", &path).bearer(self.owner).send().await
    }
}

fn is_safe(report: &Value) -> bool {
    report["safe_to_revoke"] == true
}

/// Until there is a verdict, a lost node may have taken uses with it.
#[tokio::test(flavor = "multi_thread")]
async fn lost_node_delays_verdict_until_key_is_quiet_again() {
    let _turn = turn().await;
    let cluster = Cluster::start(false).await;
    let url = cluster.node_url();
    // Longer than the lease, so that the loss is known before the key is quiet.
    let settings = [("rotation.quiet_seconds", "6"), ("cache.lease_seconds", "2")];
    let node = Node::start("node", &url, &settings).await;
    let mut victim = Node::start("victim", &url, &settings).await;
    let owner = node.register("acme").await;
    let rotation = Rotation::start(&node, &owner, "prod").await;
    for (at, secret) in [(&victim, &rotation.old.secret), (&node, &rotation.new_secret)] {
        at.verify(secret).send().await.expect(200);
    }
    let is_counted = |report: &Value| report["old"]["requests_last_hour"] == 1;
    rotation.wait(&node, "the use is counted", is_counted).await;
    victim.kill().await;
    let names_loss =
        |report: &Value| report["reason"].as_str().unwrap().contains("a node was lost");
    rotation.wait(&node, "the report names the lost node", names_loss).await;
    rotation.revoke_if_quiet(&node).await.refused(409, "key_in_use");
    rotation.wait(&node, "it is quiet again", is_safe).await;
    assert_eq!(rotation.revoke_if_quiet(&node).await.status, 204);
    until("the node serves", || node.logged("panicked") == 0).await;
}

/// A verdict outlives the loss of a node, and a restart of the one that gave it.
#[tokio::test(flavor = "multi_thread")]
async fn verdict_survives_lost_node_and_restart() {
    let _turn = turn().await;
    let cluster = Cluster::start(false).await;
    let url = cluster.node_url();
    let mut node = Node::start("node", &url, &QUICK).await;
    let mut victim = Node::start("victim", &url, &QUICK).await;
    let owner = node.register("acme").await;
    let rotation = Rotation::start(&node, &owner, "prod").await;
    for (at, secret) in [(&victim, &rotation.old.secret), (&node, &rotation.new_secret)] {
        at.verify(secret).send().await.expect(200);
    }
    rotation.wait(&node, "the old key is quiet", is_safe).await;
    victim.kill().await;
    node.stop().await;
    let node = Node::start("again", &url, &QUICK).await;
    for _ in 0..40 {
        let report = rotation.report(&node).await;
        assert!(is_safe(&report), "{report:#}");
        sleep(Duration::from_millis(100)).await;
    }
    // Only a use of the old key takes it back.
    node.verify(&rotation.old.secret).send().await.expect(200);
    rotation.wait(&node, "the use takes the verdict back", |report| !is_safe(report)).await;
    rotation.revoke_if_quiet(&node).await.refused(409, "key_in_use");
    rotation.wait(&node, "it is quiet again", is_safe).await;
    assert_eq!(rotation.revoke_if_quiet(&node).await.status, 204);
}

/// Right after one node calls a key safe to revoke, another revokes it, while both are busy.
#[tokio::test(flavor = "multi_thread")]
async fn fifty_verdicts_hold_on_the_other_node_under_load() {
    let _turn = turn().await;
    let cluster = Cluster::start(false).await;
    let url = cluster.node_url();
    let nodes = [Node::start("one", &url, &QUICK).await, Node::start("two", &url, &QUICK).await];
    let owner = nodes[0].register("acme").await;
    let busy = nodes[0].mint(&owner, "busy").await;
    let loads = nodes.each_ref().map(|node| Load::start(node, &busy.secret, 2));
    let revoked = (0..50).map(|number: usize| {
        let (one, other) = (&nodes[number % 2], &nodes[(number + 1) % 2]);
        let owner = &owner;
        async move {
            let rotation = Rotation::start(one, owner, &format!("key {number}")).await;
            other.verify(&rotation.old.secret).send().await.expect(200);
            one.verify(&rotation.new_secret).send().await.expect(200);
            rotation.wait(one, "the old key is quiet", is_safe).await;
            rotation.revoke_if_quiet(other).await.status.as_u16()
        }
    });
    let answers: Vec<u16> =
        futures_util::stream::iter(revoked).buffer_unordered(25).collect().await;
    assert_eq!(answers, [204; 50]);
    for load in loads {
        let outcomes = load.finish().await;
        assert!(outcomes.iter().all(Outcome::is_acknowledged));
    }
}
