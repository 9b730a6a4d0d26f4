//! Clients request a large answer and do not read it.

use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{io::AsyncWriteExt as _, net::TcpSocket, time::sleep};

use super::{
    Scale,
    deployment::Deployment,
    figures::{Figures, Recovery},
};
use crate::faults::fixture::Server;

/// The memory that the unread answers may take, in MiB.
const MAX_GROWTH: u64 = 64;
/// The receive buffer of a client, in bytes. The kernel doubles it.
const RECEIVE_BUFFER: u32 = 4096;

/// Opens connections that request `path` and read nothing, while others use a key.
pub async fn run(path: &'static str, scale: Scale) -> Figures {
    let count = scale.pick(200, 2000);
    raise_descriptor_limit();
    let server = Server::start_primary().await;
    let settings = [
        ("server.max_connections_per_address", "10000"),
        ("rate_limit.per_address_per_minute", "100000000"),
    ];
    let deployment = Deployment::start(&server, &settings).await;
    let keys = deployment.create_keys(2).await;
    let node = &deployment.nodes[0];
    let response = node.request("GET", path).send().await;
    assert_eq!(response.status, 200, "{path}");
    let size = response.text.len() / 1024;
    let at_rest = node.memory_kilobytes();
    node.reset_peak_memory();
    let address = node.url.trim_start_matches("http://").parse().unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let mut connections = Vec::new();
    for number in 0..count {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(RECEIVE_BUFFER).unwrap();
        let mut connection = socket.connect(address).await.unwrap();
        connection.write_all(request.as_bytes()).await.unwrap();
        connections.push(connection);
        if number % 50 == 0 {
            deployment.observe(&keys, Duration::ZERO).await;
        }
    }
    sleep(Duration::from_secs(1)).await;
    deployment.observe(&keys, Duration::ZERO).await;
    let growth = node.peak_memory_kilobytes().saturating_sub(at_rest) / 1024;
    drop(connections);
    let (history, events) = deployment.finish(&[&server]).await;
    let failure = (growth > MAX_GROWTH)
        .then(|| format!("{count} unread answers took {growth} MiB; {MAX_GROWTH} MiB are allowed"));
    let title = format!("{count} connections do not read {path}");
    Figures::of(title, &history, Some(&events), Recovery::NotMeasured)
        .with_remark(format!("{size} KiB an answer, {growth} MiB more than at rest"))
        .failed(failure)
}

/// Raises the soft limit of this process to the hard one.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
}
