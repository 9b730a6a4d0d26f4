//! Clients that read their responses slowly or not at all: they must cost little memory.

use futures_util::{StreamExt as _, future::join_all, stream};
use serde_json::json;
use uuid::Uuid;

use super::fixture::{
    Cluster, Node, UnreadResponse, acquire_test_lock, available_clients, format_request,
};
use call2me_auth::model::id;

const CLIENTS: usize = 2000;

/// Maximum growth of the service's memory with [`CLIENTS`] clients that do not read.
const MAX_GROWTH_KILOBYTES: u64 = 64 * 1024;

type Headers = &'static [(&'static str, &'static str)];

const PLAIN: Headers = &[];
const GZIP: Headers = &[("accept-encoding", "gzip")];
const HTML: Headers = &[("accept", "text/html")];

/// Static responses, and a page, which is mostly a style sheet. Each with the number of requests
/// that a client sends: enough to fill the buffers of the kernel.
const STATIC_RESPONSES: [(&str, Headers, usize); 7] = [
    ("/openapi.json", PLAIN, 2),
    ("/openapi.json", GZIP, 4),
    ("/docs/swagger-ui-bundle.js", PLAIN, 2),
    ("/assets/dashboard.js", PLAIN, 20),
    ("/sign-in", PLAIN, 6),
    ("/nowhere", HTML, 6),
    ("/.well-known/jwks.json", PLAIN, 8),
];

/// Timeouts that no connection of these tests reaches.
const PATIENT: [(&str, &str); 2] =
    [("server.write_timeout_seconds", "3600"), ("server.header_timeout_seconds", "3600")];

/// Reads all responses. Returns the number of those that are complete: the oldest ones need not be
/// those of the first clients.
async fn count_complete(clients: Vec<UnreadResponse>) -> usize {
    let mut complete = 0;
    for client in clients {
        complete += usize::from(client.read_to_end().await);
    }
    complete
}

/// Starts clients on several addresses: 500 on each, fewer than one address may have.
async fn start_clients(node: &Node, count: usize, request: &str) -> Vec<UnreadResponse> {
    let clients = (0..count).map(|number| {
        UnreadResponse::start(node, u8::try_from(number / 500 + 2).unwrap(), request)
    });
    stream::iter(clients).buffered(64).collect().await
}

/// Returns when the service has worked on what it received before.
async fn settle(node: &Node) {
    for _ in 0..3 {
        node.request("GET", "/readyz").send().await.expect_status(200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unread_static_responses_need_little_memory() {
    let _turn = acquire_test_lock().await;
    let count = available_clients(CLIENTS);
    let cluster = Cluster::start(false).await;
    let node = Node::start("node", &cluster.node_url(), &PATIENT).await;
    settle(&node).await;
    let at_rest = node.memory_kilobytes();
    println!("{at_rest} KiB at rest");
    for (path, headers, requests) in STATIC_RESPONSES {
        node.reset_peak_memory();
        let request = format_request(path, headers).repeat(requests);
        let clients = start_clients(&node, count, &request).await;
        settle(&node).await;
        let growth = node.peak_memory_kilobytes().saturating_sub(at_rest);
        println!("{count} × {path} {headers:?}: {growth} KiB");
        assert!(growth <= MAX_GROWTH_KILOBYTES, "{path} {headers:?}: {growth} KiB");
        drop(clients);
    }
}

/// A client that reads after all gets what it requested, beside many that do not.
#[tokio::test(flavor = "multi_thread")]
async fn late_reader_gets_whole_static_response() {
    let _turn = acquire_test_lock().await;
    let cluster = Cluster::start(false).await;
    let node = Node::start("node", &cluster.node_url(), &PATIENT).await;
    for (path, headers, _) in STATIC_RESPONSES {
        let clients = start_clients(&node, 20, &format_request(path, headers)).await;
        let complete = join_all(clients.into_iter().map(UnreadResponse::read_to_end)).await;
        assert!(complete.into_iter().all(|is_complete| is_complete), "{path}");
    }
}

/// Without the limit of a workspace these clients would need 400 MB.
#[tokio::test(flavor = "multi_thread")]
async fn unread_lists_need_memory_of_one_workspace_only() {
    let _turn = acquire_test_lock().await;
    let count = available_clients(100);
    let cluster = Cluster::start(false).await;
    let node = Node::start("node", &cluster.node_url(), &PATIENT).await;
    let owner = node.register("acme").await;
    for number in 0..4 {
        let body = json!({ "agent_name": number.to_string(), "notes": "x".repeat(1_000_000) });
        node.request("POST", "/v1/agents")
            .bearer(&owner)
            .json(body)
            .send()
            .await
            .expect_status(201);
    }
    let authorization = format!("Bearer {owner}");
    let request = format_request("/v1/agents", &[("authorization", &authorization)]);
    drop(start_clients(&node, 2, &request).await);
    let at_rest = node.memory_kilobytes();
    node.reset_peak_memory();
    let clients = start_clients(&node, count, &request).await;
    // The newest one is never discarded.
    let newest = UnreadResponse::start(&node, 9, &request).await;
    let growth = node.peak_memory_kilobytes().saturating_sub(at_rest);
    println!("{count} lists of 4 MB that are not read: {growth} KiB");
    assert!(growth <= 2 * MAX_GROWTH_KILOBYTES, "{growth} KiB");
    assert!(newest.read_to_end().await);
    assert!(count_complete(clients).await < count);
    // A client that reads at once gets its list.
    let list = node.request("GET", "/v1/agents").bearer(&owner).send().await.expect_status(200);
    assert_eq!(list["agents"].as_array().unwrap().len(), 4);
}

/// Inserts events of five kilobytes each.
async fn insert_large_events(cluster: &Cluster, workspace: Uuid) {
    let sql = "INSERT INTO audit_events (
                   id, workspace_id, action, actor_type, actor_id, actor_name, request_id, method, path,
                   status, ip, user_agent, latency_us, metadata)
               SELECT (substring(uuidv7_lower_bound(now() - interval '1 second')::text FOR 14) || '7' ||
                       substring(lpad(to_hex(number), 3, '0') FROM 1 FOR 3) || '-8' ||
                       substring(md5(number::text) FOR 3) || '-' ||
                       substring(md5('x' || number) FOR 12))::uuid,
                      $1, 'request', 'api_key', '01900000-0000-7000-8000-000000000001', 'prod-2026-q2',
                      gen_random_uuid(), 'GET', repeat('/p', 256), 200, '203.0.113.9',
                      repeat('ua', 256), 400, jsonb_build_object('note', repeat('n', 4000))
               FROM generate_series(1, 4000) AS number";
    sqlx::query(sql).bind(workspace).execute(&mut cluster.connect().await).await.unwrap();
}

/// Size of the head of an export, at most. More bytes belong to its first events.
const MAX_HEAD_BYTES: usize = 1024;

/// Each of these exports has read a thousand events: without a limit 300 MB in all.
#[tokio::test(flavor = "multi_thread")]
async fn unread_exports_need_memory_of_one_workspace_only() {
    let _turn = acquire_test_lock().await;
    let count = available_clients(60);
    let cluster = Cluster::start(false).await;
    let node = Node::start("node", &cluster.node_url(), &PATIENT).await;
    let owner = node.register("acme").await;
    let me = node.request("GET", "/v1/auth/me").bearer(&owner).send().await.expect_status(200);
    let workspace = me["workspace"]["id"].as_str().unwrap();
    insert_large_events(&cluster, id::parse("ws", workspace).unwrap()).await;
    let authorization = format!("Bearer {owner}");
    let request = format_request("/v1/audit-log/export", &[("authorization", &authorization)]);
    for client in start_clients(&node, 2, &request).await {
        client.wait_for_bytes(MAX_HEAD_BYTES).await;
    }
    let at_rest = node.memory_kilobytes();
    node.reset_peak_memory();
    let clients = start_clients(&node, count, &request).await;
    for client in &clients {
        client.wait_for_bytes(MAX_HEAD_BYTES).await;
    }
    let growth = node.peak_memory_kilobytes().saturating_sub(at_rest);
    println!("{count} exports that are not read: {growth} KiB");
    assert!(growth <= 2 * MAX_GROWTH_KILOBYTES, "{growth} KiB");
    let export = node.request("GET", "/v1/audit-log/export").bearer(&owner).send().await;
    assert!(export.text.lines().count() >= 4000);
    // An export that was discarded has no regular end.
    assert!(count_complete(clients).await < count);
}
