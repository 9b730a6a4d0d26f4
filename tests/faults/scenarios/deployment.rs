use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use serde_json::json;
use sqlx::PgConnection;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::{
    faults::{
        fixture::{Node, Proxy, ProxyMode, Server, TEST_TIMEOUT},
        histories::{Client, Credential, History, Recorder, Reply, read_events},
    },
    fixture::{Browser, oauth::OAuthExt as _},
};

/// The settings of all nodes: a short lease and short timeouts, so that scenarios take seconds.
/// Tokens outlive a jump of a clock by an hour, and a refresh may be retried after a long outage.
pub const SETTINGS: &[(&str, &str)] = &[
    ("cache.lease_seconds", "2"),
    ("database.acquire_timeout_seconds", "2"),
    // A commit that hangs is answered with 503 before a client gives up.
    ("server.handler_timeout_seconds", "6"),
    ("sessions.access_token_seconds", "86400"),
    ("sessions.refresh_reuse_seconds", "600"),
];
/// The longest time that a scenario waits for a revocation.
pub const REVOCATION_LIMIT: Duration = Duration::from_secs(14);
/// The longest time that a scenario waits for the service to recover.
pub const RECOVERY_LIMIT: Duration = Duration::from_secs(12);
/// The longest time that the events of answered requests take.
const EVENT_LIMIT: Duration = Duration::from_secs(6);
const PAUSE: Duration = Duration::from_millis(100);
const WAIT_PAUSE: Duration = Duration::from_millis(5);

/// Two nodes on one database.
pub struct Deployment {
    pub nodes: [Node; 2],
    /// The proxy between each node and PostgreSQL, if there is one.
    pub proxies: Vec<Proxy>,
    pub clients: [Client; 2],
    pub recorder: Arc<Recorder>,
    /// The session of the user that makes all changes.
    pub owner: Credential,
}

/// The workspace of all users and keys.
pub const WORKSPACE: &str = "acme";

impl Deployment {
    /// Starts two nodes, and signs up a user.
    pub async fn start(server: &Server, settings: &[(&str, &str)]) -> Self {
        Self::start_through(&[], server.port(), &server.node_url(), server.port(), settings).await
    }

    /// Starts two nodes through another program, with connections to `to` in place of the port of
    /// the URL.
    pub async fn start_through(
        wrapper: &[&str],
        port: u16,
        url: &str,
        to: u16,
        settings: &[(&str, &str)],
    ) -> Self {
        let proxies = [Proxy::start(to).await, Proxy::start(to).await];
        let urls = proxies.each_ref().map(|proxy| proxy.url(url, port));
        Self::start_on(wrapper, &urls, proxies.into(), settings).await
    }

    /// Starts a node for each of these URLs, without a proxy.
    pub async fn start_without_proxies(urls: &[String; 2]) -> Self {
        Self::start_on(&[], urls, Vec::new(), &[]).await
    }

    async fn start_on(
        wrapper: &[&str],
        [a, b]: &[String; 2],
        proxies: Vec<Proxy>,
        settings: &[(&str, &str)],
    ) -> Self {
        let settings = [SETTINGS, settings].concat();
        let nodes = [
            Node::start_through(wrapper, "a", a, &settings).await,
            Node::start_through(wrapper, "b", b, &settings).await,
        ];
        let recorder = Arc::new(Recorder::start());
        let clients = [0, 1].map(|index| Client::new(&recorder, index, &nodes[index]));
        let owner = clients[0].sign_up(WORKSPACE).await;
        Self { nodes, proxies, clients, recorder, owner }
    }

    /// Starts the nodes again, after they were stopped.
    pub async fn restart_nodes(&mut self, url: &str, port: u16) {
        let [a, b] = [0, 1].map(|index| self.proxies[index].url(url, port));
        self.nodes = [Node::start("a", &a, SETTINGS).await, Node::start("b", &b, SETTINGS).await];
        self.clients = [0, 1].map(|index| Client::new(&self.recorder, index, &self.nodes[index]));
    }

    /// Creates keys before the first fault, and uses each on both nodes, so that both have cached
    /// it.
    pub async fn create_keys(&self, count: usize) -> Vec<Credential> {
        let mut keys = Vec::new();
        wait_for("keys are created", async || {
            let client = &self.clients[keys.len() % 2];
            keys.extend(client.create_key(&self.owner, "before the fault").await);
            keys.len() == count
        })
        .await;
        for key in &keys {
            self.wait_until_cached(key).await;
        }
        keys
    }

    /// Uses a credential until both nodes have accepted it.
    pub async fn wait_until_cached(&self, credential: &Credential) {
        let accepted = [Reply::Accepted; 2];
        wait_for("both nodes accept the credential", async || {
            self.use_on_both(credential).await == accepted
        })
        .await;
    }

    /// Opens sessions, and connects as many apps, each with a grant. Returns the sessions first.
    pub async fn obtain_tokens(&self, count: usize) -> Vec<Credential> {
        let (node, client) = (&self.nodes[0], &self.clients[0]);
        let mut credentials = Vec::new();
        for _ in 0..count {
            credentials.extend(client.sign_in(WORKSPACE).await);
        }
        let mut browser = Browser::signed_in(node, &format!("owner@{WORKSPACE}.example")).await;
        for _ in 0..count {
            let app = node.register_client(json!({})).await;
            credentials.push(client.obtain_grant(node, &mut browser, &app).await);
        }
        credentials
    }

    /// Uses a credential on both nodes.
    pub async fn use_on_both(&self, credential: &Credential) -> [Reply; 2] {
        let [a, b] = &self.clients;
        let (a, b) = tokio::join!(a.use_credential(credential), b.use_credential(credential));
        [a, b]
    }

    /// Uses credentials on both nodes, again and again for a time.
    pub async fn observe(&self, credentials: &[Credential], time: Duration) {
        let started = Instant::now();
        loop {
            for credential in credentials {
                self.use_on_both(credential).await;
            }
            if started.elapsed() >= time {
                return;
            }
            sleep(PAUSE).await;
        }
    }

    /// Revokes a key on a node. True if it was acknowledged in time.
    pub async fn revoke(&self, node: usize, credential: &Credential) -> bool {
        self.clients[node].revoke(&self.owner, credential, REVOCATION_LIMIT).await
    }

    /// Sends new connections of both nodes to another server. Existing connections stay.
    pub fn redirect(&self, server: &Server) {
        for proxy in &self.proxies {
            proxy.redirect(server.port());
        }
    }

    /// Lets both nodes reach PostgreSQL, or keeps them away from it.
    pub fn set_database_access(&self, is_allowed: bool) {
        let mode = if is_allowed { ProxyMode::Pass } else { ProxyMode::Refuse };
        for proxy in &self.proxies {
            proxy.set_mode(mode);
        }
    }

    /// Closes the connections of both nodes to PostgreSQL.
    pub fn cut_connections(&self) {
        for proxy in &self.proxies {
            proxy.cut_connections();
        }
    }

    /// Waits until both nodes create keys and accept them. False if they do not in time.
    pub async fn wait_until_recovered(&self) -> bool {
        let started = Instant::now();
        while started.elapsed() < RECOVERY_LIMIT {
            let mut has_recovered = true;
            for client in &self.clients {
                let key = client.create_key(&self.owner, "after the fault").await;
                has_recovered &= match key {
                    Some(key) => self.use_on_both(&key).await == [Reply::Accepted; 2],
                    None => false,
                };
            }
            if has_recovered {
                return true;
            }
            sleep(PAUSE).await;
        }
        false
    }

    /// Returns all operations, and the number of events of each request on these servers. Waits for
    /// events that are not written yet.
    pub async fn finish(&self, servers: &[&Server]) -> (History, HashMap<Uuid, i64>) {
        self.finish_after(HashMap::new(), servers).await
    }

    /// Returns all operations, and the number of events of each request: `earlier` ones, and those
    /// on these servers.
    pub async fn finish_after(
        &self,
        earlier: HashMap<Uuid, i64>,
        servers: &[&Server],
    ) -> (History, HashMap<Uuid, i64>) {
        let mut connections = Vec::new();
        for server in servers {
            connections.push(server.connect().await);
        }
        self.finish_on(earlier, connections).await
    }

    /// As [`Self::finish_after`], with connections of a superuser.
    pub async fn finish_on(
        &self,
        earlier: HashMap<Uuid, i64>,
        mut connections: Vec<PgConnection>,
    ) -> (History, HashMap<Uuid, i64>) {
        let history = self.recorder.history();
        let is_acknowledged = |reply| reply == Reply::Accepted;
        let operations = history.operations.iter();
        let expected: HashSet<Uuid> = operations
            .filter(|operation| is_acknowledged(operation.reply))
            .filter_map(|operation| operation.request_id)
            .collect();
        let started = Instant::now();
        loop {
            let mut events = earlier.clone();
            for connection in &mut connections {
                for (request, count) in read_events(connection).await {
                    let known = events.entry(request).or_default();
                    *known = count.max(*known);
                }
            }
            let is_complete = expected.iter().all(|request| events.contains_key(request));
            if is_complete {
                return (history, events);
            }
            if started.elapsed() >= EVENT_LIMIT {
                self.nodes.iter().for_each(Node::print_log);
                return (history, events);
            }
            sleep(PAUSE).await;
        }
    }
}

/// Waits until a condition on the operations so far holds. Fails after [`TEST_TIMEOUT`].
pub async fn wait_for(description: &str, mut condition: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    while !condition().await {
        assert!(started.elapsed() < TEST_TIMEOUT, "timed out waiting for: {description}");
        sleep(WAIT_PAUSE).await;
    }
}
