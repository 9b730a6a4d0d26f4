//! The limit on open files: clients must not take the descriptors that the service needs itself.

use futures_util::{StreamExt as _, stream};
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufStream},
    net::TcpStream,
    time::timeout,
};

use super::fixture::{
    Cluster, Node, TEST_TIMEOUT, UnreadResponse, acquire_test_lock, available_clients,
    connect_from, format_request,
};

const OPEN_FILES: u64 = 256;

/// The service keeps connecting to PostgreSQL and answering while clients hold all connections that
/// it accepts.
#[tokio::test(flavor = "multi_thread")]
async fn clients_leave_descriptors_for_postgresql() {
    let _turn = acquire_test_lock().await;
    available_clients(400);
    let cluster = Cluster::start(false).await;
    let settings = [("database.max_connections", "16"), ("server.header_timeout_seconds", "3600")];
    let url = cluster.node_url();
    let limit = format!("--nofile={OPEN_FILES}:{OPEN_FILES}");
    let node = Node::start_through(&["prlimit", &limit], "node", &url, &settings).await;
    node.wait_for_log("server.max_connections is lowered").await;
    let owner = node.register("acme").await;
    // An HTTP client may open a second connection, which would wait behind the others.
    let mut stream = BufStream::new(connect_from(&node, 1).await);
    create_agent(&mut stream, &owner).await;
    // From twenty addresses, none of which reaches the limit of one.
    let clients =
        (0..400u16).map(|number| connect_from(&node, u8::try_from(number / 20).unwrap() + 2));
    let mut clients = Box::pin(stream::iter(clients).buffer_unordered(400));
    // More than the service accepts. The kernel holds some of the others, and lets the rest wait.
    let idle: Vec<TcpStream> = clients.by_ref().take(150).collect().await;
    // Each request is a transaction.
    for _ in 0..50 {
        create_agent(&mut stream, &owner).await;
    }
    let open = node.count_open_files();
    println!("{open} of {OPEN_FILES} files are open");
    assert!(u64::try_from(open).unwrap() < OPEN_FILES - 64, "{open}");
    assert_eq!(node.count_log_lines("server.max_connections is lowered"), 1);
    assert_eq!(node.count_log_lines("cannot accept a connection"), 0);
    assert_eq!(node.count_log_lines("ERROR"), 0);
    // Clients that had to wait are served when others leave.
    drop((idle, clients));
    drop(UnreadResponse::start(&node, 2, &format_request("/livez", &[])).await);
}

/// Creates an agent over an open connection.
async fn create_agent(stream: &mut BufStream<TcpStream>, owner: &str) {
    let body = json!({ "agent_name": "Receptionist" }).to_string();
    let request = format!(
        "POST /v1/agents HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {owner}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len(),
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
    let mut lines = Vec::new();
    while lines.last().is_none_or(|line| line != "\r\n") {
        let mut line = String::new();
        timeout(TEST_TIMEOUT, stream.read_line(&mut line)).await.unwrap().unwrap();
        lines.push(line.to_ascii_lowercase());
    }
    assert!(lines[0].starts_with("http/1.1 201"), "{lines:?}");
    let length = lines.iter().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
    let mut body = vec![0; length.trim().parse().unwrap()];
    timeout(TEST_TIMEOUT, stream.read_exact(&mut body)).await.unwrap().unwrap();
}

/// One client cannot take all connections that a low limit allows.
#[tokio::test(flavor = "multi_thread")]
async fn one_address_leaves_connections_to_others() {
    let _turn = acquire_test_lock().await;
    available_clients(400);
    let cluster = Cluster::start(false).await;
    let settings = [("server.header_timeout_seconds", "3600")];
    let url = cluster.node_url();
    let limit = format!("--nofile={OPEN_FILES}:{OPEN_FILES}");
    let node = Node::start_through(&["prlimit", &limit], "node", &url, &settings).await;
    let clients = (0..400).map(|_| connect_from(&node, 2));
    let _idle: Vec<TcpStream> = stream::iter(clients).buffered(32).collect().await;
    for host in 3..8 {
        drop(UnreadResponse::start(&node, host, &format_request("/readyz", &[])).await);
    }
}

/// If descriptors run out all the same, a connection waits until one is free.
#[tokio::test(flavor = "multi_thread")]
async fn connection_waits_while_no_descriptor_is_free() {
    let _turn = acquire_test_lock().await;
    let cluster = Cluster::start(false).await;
    let node = Node::start("node", &cluster.node_url(), &[]).await;
    node.limit_open_files(3);
    let mut waiting = Vec::new();
    for _ in 0..3 {
        let mut stream = connect_from(&node, 2).await;
        stream.write_all(format_request("/livez", &[]).as_bytes()).await.unwrap();
        waiting.push(stream);
    }
    node.wait_for_log("cannot accept a connection").await;
    node.limit_open_files(1000);
    for stream in waiting {
        stream.readable().await.unwrap();
    }
}
