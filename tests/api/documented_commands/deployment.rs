//! Deploy and operate: from an empty PostgreSQL with TLS to nodes behind nginx and Valkey.

use std::{fs, path::Path, process::Command};

use call2me_auth::cli::dev::postgres::Postgres;
use data_encoding::BASE64;
use secrecy::ExposeSecret as _;
use sqlx::{AssertSqlSafe, Connection, Executor as _, PgConnection};

use super::{page::Page, shell::Shell};
use crate::{
    faults::{PatroniCluster, acquire_test_lock, issue_certificate},
    fixture::{ENCRYPTION_KEY, Gateway, eventually, free_port},
};

/// The host of `server.public_url` in documents.
const HOST: &str = "auth.example.com";

/// A machine with PostgreSQL and a certificate for it and for the proxy.
struct Deployment {
    shell: Shell,
    authority: String,
    certificate: String,
    key: String,
    _postgres: Postgres,
    _folder: tempfile::TempDir,
}

impl Deployment {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_owned();
        let start = move || Postgres::start(&path, &"superuser".into(), false).unwrap();
        let postgres = tokio::task::spawn_blocking(start).await.unwrap();
        let hosts = [HOST, "127.0.0.1"];
        let [authority, certificate, key] = issue_certificate(folder.path(), "tls", &hosts);
        let url = postgres.url("postgres").expose_secret().to_owned();
        enable_tls(&url, &certificate, &key, &authority).await;
        let address = url.rsplit(['@', '/']).nth(1).unwrap().to_owned();
        let mut shell = Shell::start(&[
            ("PGHOST", "127.0.0.1"),
            ("PGPORT", address.split(':').nth(1).unwrap()),
            ("PGUSER", "postgres"),
            ("PGPASSWORD", "superuser"),
            ("PGSSLROOTCERT", &authority),
            ("SSL_CERT_FILE", &authority),
        ])
        .await;
        shell.replace("db.example.com", &address);
        shell.replace("10.0.0.0/8", "127.0.0.0/8");
        Self { shell, authority, certificate, key, _postgres: postgres, _folder: folder }
    }

    /// Starts nginx with the configuration of the document in front of two nodes. From then on,
    /// curl finds it at the address of documents.
    async fn start_proxy(&mut self, site: &str, nodes: [&str; 2]) -> Gateway {
        let port = free_port();
        let site = site
            .replace("listen 443 ssl", &format!("listen 127.0.0.1:{port} ssl"))
            .replace("10.0.0.11:8080", nodes[0])
            .replace("10.0.0.12:8080", nodes[1])
            .replace("/etc/ssl/auth.example.com.pem", &self.certificate)
            .replace("/etc/ssl/auth.example.com.key", &self.key);
        self.shell.curl_options = format!(
            "connect-to = \"{HOST}:443:127.0.0.1:{port}\"\ncacert = \"{}\"",
            self.authority
        );
        Gateway::nginx(port, &site).await
    }

    /// Starts Valkey with TLS for the nodes and a socket for its command line.
    async fn start_valkey(&mut self) {
        let port = free_port();
        self.shell.replace("valkey.example.com", &format!("127.0.0.1:{port}"));
        let (certificate, key, authority) = (&self.certificate, &self.key, &self.authority);
        self.shell
            .run(&format!(
                "VALKEY_SOCKET=$PWD/valkey.socket
                 server=$(command -v valkey-server || command -v redis-server)
                 setpriv --pdeathsig KILL \"$server\" --port 0 --tls-port {port} --save '' \\
                   --unixsocket \"$VALKEY_SOCKET\" --tls-cert-file {certificate} \\
                   --tls-key-file {key} --tls-ca-cert-file {authority} --tls-auth-clients no \\
                   >valkey.log 2>&1 3>&- 4<&- &
                 until valkey-cli ping; do command sleep 0.1; done"
            ))
            .await;
    }
}

/// Lets PostgreSQL accept TLS connections, and waits until it does.
async fn enable_tls(url: &str, certificate: &str, key: &str, authority: &str) {
    let mut connection = PgConnection::connect(url).await.unwrap();
    for (name, path) in [("server.crt", certificate), ("server.key", key)] {
        let text = BASE64.encode(&fs::read(path).unwrap());
        // The server writes the files itself, because the key must belong to its user.
        let program = format!("umask 077 && base64 -d > {name}");
        let sql = format!("COPY (SELECT '{text}') TO PROGRAM '{program}'");
        connection.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await.unwrap();
    }
    for sql in ["ALTER SYSTEM SET ssl = on", "SELECT pg_reload_conf()"] {
        connection.execute(sqlx::raw_sql(sql)).await.unwrap();
    }
    let url = format!("{url}?sslmode=verify-full&sslrootcert={authority}");
    eventually("PostgreSQL accepts TLS", async || PgConnection::connect(&url).await.ok()).await;
}

/// Returns what systemd has to say about a unit, without the units of this machine.
fn unit_errors(path: &Path, unit: &str) -> String {
    fs::write(path, unit).unwrap();
    let mut command = Command::new("systemd-analyze");
    let output = command.args(["verify", "--man=no"]).arg(path).output();
    let output =
        output.unwrap_or_else(|_| panic!("systemd-analyze is missing: run ./scripts/test"));
    let text = String::from_utf8(output.stderr).unwrap();
    text.lines().filter(|line| line.contains("call2me-auth.service")).collect()
}

/// Checks the unit with systemd and starts its command as systemd does. Returns the node's address.
async fn start_unit(unit: &str, shell: &mut Shell) -> String {
    let unit = unit
        .replace("/usr/local/bin/call2me-auth", env!("CARGO_BIN_EXE_call2me-auth"))
        .replace("/etc/call2me-auth.env", &shell.path().join("auth.env").display().to_string());
    let path = shell.path().join("call2me-auth.service");
    assert_eq!(unit_errors(&path, &unit), "");
    assert_ne!(unit_errors(&path, &unit.replace("Restart=", "Restarts=")), "");
    let value = |name: &str| unit.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    let command = value("ExecStart=").strip_prefix(env!("CARGO_BIN_EXE_call2me-auth"));
    shell.run(&format!("run_container {}{}", value("EnvironmentFile="), command.unwrap())).await;
    shell.variable("node_address").await
}

#[tokio::test(flavor = "multi_thread")]
async fn deploy_commands_work() {
    let mut deployment = Deployment::start().await;
    let mut page = Page::read("docs/deploy.md");
    let (unit, site) = (page.take("ini"), page.take("nginx"));
    page.run_through("call2me-auth serve", &mut deployment.shell).await;
    let first = deployment.shell.variable("node_address").await;
    let second = start_unit(&unit, &mut deployment.shell).await;
    let _proxy = deployment.start_proxy(&site, [&first, &second]).await;
    deployment.start_valkey().await;
    page.run(&mut deployment.shell).await;
    // The file of settings is complete now.
    deployment.shell.run("set -a; . ./auth.env; set +a; call2me-auth serve").await;
    let shared = "curl -s http://$metrics_address | grep -q '^call2me_auth_rate_limit_shared 1'";
    deployment.shell.run(&format!("until {shared}; do command sleep 0.1; done")).await;
    deployment.shell.run("stop_nodes").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn operate_commands_work() {
    let Deployment { mut shell, _postgres, _folder, .. } = Deployment::start().await;
    Page::read("docs/deploy.md").run_through("call2me-auth serve", &mut shell).await;
    let request = "curl -s -o /dev/null http://$node_address/v1/agents";
    let metrics = shell.run(&format!("{request}; curl -s http://$metrics_address")).await;
    let mut page = Page::read("docs/operate.md");
    super::promql::check(&page.take("promql"), &metrics).await;
    // A node with the new key, as the document says. It notices that the node of the restored
    // backup has no lease.
    page.run_through("PREVIOUS_ENCRYPTION_KEYS=$OLD_KEY", &mut shell).await;
    let leases = "psql -tA \"$OWNER_URL\" -c 'SELECT count(*) FROM nodes WHERE NOT is_expired'";
    let wait = format!("until [ $({leases}) = 1 ]; do command sleep 0.1; done");
    shell.run(&format!("call2me-auth serve; {wait}")).await;
    page.run(&mut shell).await;
    // The settings of the document are exported now.
    shell.run("call2me-auth serve; stop_nodes").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failover_commands_work() {
    let _turn = acquire_test_lock().await;
    let cluster = PatroniCluster::start().await;
    let mut shell = Shell::start(&[
        ("PGSSLROOTCERT", &cluster.authority),
        ("MEMBER", cluster.members[0].folder.to_str().unwrap()),
        ("CALL2ME_AUTH__SERVER__PUBLIC_URL", "https://auth.example.com"),
        ("CALL2ME_AUTH__KEYS__ENCRYPTION_KEY", ENCRYPTION_KEY),
    ])
    .await;
    for folder in ["etc/patroni", "etc/default"] {
        fs::create_dir_all(shell.path().join(folder)).unwrap();
    }
    let folder = shell.path().display().to_string();
    shell.replace("/etc/", &format!("{folder}/etc/"));
    shell.replace("10.0.0.21,10.0.0.22,10.0.0.23", &cluster.hosts());
    let mut page = Page::read("docs/failover.md");
    page.run_through("call2me-auth serve", &mut shell).await;
    let node = shell.variable("node_address").await;
    shell.replace("127.0.0.1:8080", &node);
    page.run(&mut shell).await;
    shell.run("stop_nodes").await;
}
