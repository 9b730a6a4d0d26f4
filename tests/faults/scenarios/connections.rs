//! Connections to PostgreSQL close while they are idle, a node has few file descriptors, or a
//! pooler stands between the nodes and PostgreSQL.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::{
    net::TcpStream,
    time::{sleep, timeout},
};

use super::{
    Scale,
    deployment::Deployment,
    figures::{Figures, Recovery},
    load::CredentialLoad,
    pooler::{PoolMode, Pooler},
};
use crate::faults::{
    fixture::{Node, Server},
    histories::{History, Reply, recovery_time},
};

/// The descriptors of each node.
const DESCRIPTORS: &str = "--nofile=96:96";
/// The connections to each node that clients open and do not use.
const IDLE_CONNECTIONS: usize = 400;
/// Writes at once on each node, of the four connections that a workspace may use.
const CONCURRENT_WRITES: usize = 3;
/// The pause before a proxy closes connections. It is shorter than that after which a node tests a
/// connection before use.
const BEFORE_CUT: Duration = Duration::from_millis(600);
/// The time that clients wait for a connection.
const PATIENCE: Duration = Duration::from_secs(2);
/// Closes all connections of nodes.
const TERMINATE_NODES: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                               WHERE usename = 'call2me_auth_app'";

/// The end of connections to PostgreSQL between requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdleEnd {
    /// PostgreSQL closes sessions that are idle for this time, in milliseconds.
    SessionTimeout(u64),
    /// A proxy closes all connections.
    Proxy,
}

/// Connections close between requests. A request after a pause must not fail.
pub async fn run_with_idle_connections(end: IdleEnd, scale: Scale) -> Figures {
    let server = Server::start_primary().await;
    let (title, pause) = match end {
        IdleEnd::SessionTimeout(timeout) => {
            let setting = format!("idle_session_timeout = '{timeout}ms'");
            server.execute(&format!("ALTER DATABASE call2me SET {setting}")).await;
            (setting, Duration::from_millis(timeout + 200))
        }
        IdleEnd::Proxy => ("a proxy closes idle connections".to_owned(), BEFORE_CUT),
    };
    let deployment = Deployment::start(&server, &[]).await;
    let keys = deployment.create_keys(2).await;
    for _ in 0..scale.pick(3, 20) {
        sleep(pause).await;
        if end == IdleEnd::Proxy {
            deployment.cut_connections();
        }
        for client in &deployment.clients {
            // Several at once, so that several connections are open.
            join_all((0..CONCURRENT_WRITES).map(|_| client.write(&deployment.owner))).await;
            client.read(&deployment.owner).await;
        }
        deployment.observe(&keys, Duration::ZERO).await;
    }
    let (history, events) = deployment.finish(&[&server]).await;
    let failed = history.count(Reply::is_unknown);
    let failure = (failed > 0).then(|| {
        format!("{failed} of {} requests failed without an outage.", history.operations.len())
    });
    Figures::of(title, &history, Some(&events), Recovery::NotMeasured).failed(failure)
}

/// Clients open more connections than a node has descriptors, and PostgreSQL closes those of the
/// node. It must find descriptors for new ones.
pub async fn run_with_few_descriptors(scale: Scale) -> Figures {
    let server = Server::start_primary().await;
    let (port, url) = (server.port(), server.node_url());
    let wrapper = ["prlimit", DESCRIPTORS];
    let deployment = Deployment::start_through(&wrapper, port, &url, port, &[]).await;
    let load = CredentialLoad::start(&deployment, 3, Vec::new());
    sleep(Duration::from_secs(1)).await;
    let fault = deployment.recorder.now();
    let idle = join_all(deployment.nodes.iter().map(open_idle_connections)).await;
    server.execute(TERMINATE_NODES).await;
    let has_recovered = deployment.wait_until_recovered().await;
    sleep(scale.pick(Duration::ZERO, Duration::from_secs(10))).await;
    let until = deployment.recorder.now();
    let opened: usize = idle.iter().map(Vec::len).sum();
    drop(idle);
    load.finish().await;
    deployment.wait_until_recovered().await;
    let (history, events) = deployment.finish(&[&server]).await;
    let recovery = recovery_time(&history, fault, until).filter(|_| has_recovered);
    Figures::of("few descriptors", &history, Some(&events), Recovery::from(recovery)).with_remark(
        format!("{opened} idle connections were open to two nodes with 96 descriptors each"),
    )
}

/// Opens connections and sends nothing. Those that the node does not accept in time are given up.
async fn open_idle_connections(node: &Node) -> Vec<TcpStream> {
    let address = node.url.trim_start_matches("http://");
    let connect = (0..IDLE_CONNECTIONS).map(|_| timeout(PATIENCE, TcpStream::connect(address)));
    join_all(connect).await.into_iter().flatten().flatten().collect()
}

/// pgbouncer stands between the nodes and PostgreSQL.
pub async fn run_with_pooler(mode: PoolMode, scale: Scale) -> Figures {
    let server = Server::start_primary().await;
    let pooler = Pooler::start(&server, mode).await;
    let title = format!("pgbouncer in {} mode", mode.name());
    let url = pooler.url(&server);
    if let Err(reason) = Node::try_start(&[], "probe", &url, &[]).await {
        let figures = Figures::of(title, &History::default(), None, Recovery::NotMeasured);
        return figures.with_remark(format!("a node does not start: {reason}"));
    }
    let port = pooler.port();
    let deployment = Deployment::start_through(&[], port, &url, port, &[]).await;
    let load = CredentialLoad::start(&deployment, 3, Vec::new());
    sleep(scale.pick(Duration::from_secs(4), Duration::from_secs(15))).await;
    let fault = deployment.recorder.now();
    server.execute(TERMINATE_NODES).await;
    load.finish_scenario(title, &deployment, &server, fault).await
}
