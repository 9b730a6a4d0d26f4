//! All that is measured, started together.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    time::Duration,
};

use call2me_auth::{cli::dev::postgres::Postgres, env::Env, store::migrate};
use secrecy::{ExposeSecret as _, SecretString};
use sqlx::{Connection as _, PgConnection};
use tempfile::TempDir;
use tokio::time::sleep;

use crate::{
    bare, client,
    process::{Process, free_port},
    seed::{self, Account},
};

/// The binary that is measured.
pub(crate) const SERVICE: &str = env!("CARGO_BIN_EXE_call2me-auth");
/// Of a deployment that ends with this run.
pub(crate) const ENCRYPTION_KEY: &str = "YmVuY2htYXJrIGJlbmNobWFyayBiZW5jaG1hcmsgYmM=";
/// No limit is to be met.
const LIMITLESS: &str = "1000000000";

/// A server at a port of this machine.
pub(crate) struct Server {
    /// Its process.
    pub(crate) process: Process,
    /// Its port.
    pub(crate) port: u16,
}

/// Why a service does not run.
pub(crate) enum NoService {
    /// It ended while it started, in this way and with these words.
    Ended(ExitStatus, String),
    /// Something else went wrong.
    Failed(String),
}

impl From<NoService> for String {
    fn from(reason: NoService) -> Self {
        match reason {
            NoService::Ended(status, text) => format!("the service ended ({status}): {text}"),
            NoService::Failed(line) => line,
        }
    }
}

/// What runs. It stops in the order of the fields.
pub(crate) struct World {
    /// The service.
    pub(crate) service: Server,
    /// axum and nothing else.
    pub(crate) bare: Server,
    /// nginx.
    pub(crate) nginx: Server,
    /// The database that they share.
    pub(crate) postgres: Postgres,
    /// A person of the service and what is theirs.
    pub(crate) account: Account,
    /// Random bytes and ids.
    pub(crate) env: Env,
    folder: TempDir,
}

impl World {
    /// Starts everything.
    pub(crate) async fn start() -> Result<Self, String> {
        // On a disk, unlike a temporary folder of some machines.
        let place = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let folder = tempfile::Builder::new().prefix("bench-").tempdir_in(place);
        let folder = folder.map_err(|error| format!("cannot make a folder: {error}"))?;
        let cluster = folder.path().join("cluster");
        fs::create_dir(&cluster).map_err(|error| format!("cannot make a folder: {error}"))?;
        let postgres = Postgres::start(&cluster, &"bench".into(), true)?;
        create_database(&postgres, "main").await?;
        let service = start_service(folder.path(), &postgres, "main", "service", &[]).await?;
        let bare = start_bare(folder.path()).await?;
        let nginx = start_nginx(folder.path()).await?;
        let account = seed::account(service.port).await?;
        Ok(Self { service, bare, nginx, postgres, account, env: Env::system(), folder })
    }

    /// Where files of this run go.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A service more, over one of the databases.
    pub(crate) async fn service(
        &self,
        database: &str,
        name: &'static str,
        variables: &[(&str, &str)],
    ) -> Result<Server, NoService> {
        start_service(self.folder(), &self.postgres, database, name, variables).await
    }

    /// A connection to a database, as superuser.
    pub(crate) async fn connect(&self, database: &str) -> Result<PgConnection, String> {
        let url = self.postgres.url(database);
        let connection = PgConnection::connect(url.expose_secret()).await;
        connection.map_err(|error| format!("cannot connect to PostgreSQL: {error}"))
    }
}

/// Makes a database; the service that is started over it makes the tables.
pub(crate) async fn create_database(postgres: &Postgres, name: &str) -> Result<(), String> {
    migrate::create_database(postgres.url("postgres").expose_secret(), name).await
}

async fn start_service(
    folder: &Path,
    postgres: &Postgres,
    database: &str,
    name: &'static str,
    variables: &[(&str, &str)],
) -> Result<Server, NoService> {
    let port = free_port().map_err(NoService::Failed)?;
    let url: SecretString = postgres.url(database);
    let (address, public_url) = (format!("127.0.0.1:{port}"), format!("http://127.0.0.1:{port}"));
    let mut all = vec![
        ("DATABASE_URL", url.expose_secret()),
        ("CALL2ME_AUTH__SERVER__ADDRESS", &*address),
        ("CALL2ME_AUTH__SERVER__PUBLIC_URL", &*public_url),
        ("CALL2ME_AUTH__KEYS__ENCRYPTION_KEY", ENCRYPTION_KEY),
        ("CALL2ME_AUTH__SESSIONS__REGISTRATION", "open"),
        ("CALL2ME_AUTH__RATE_LIMIT__PER_KEY_PER_MINUTE", LIMITLESS),
        ("CALL2ME_AUTH__RATE_LIMIT__PER_ADDRESS_PER_MINUTE", LIMITLESS),
        ("CALL2ME_AUTH__RATE_LIMIT__SIGN_IN_PER_MINUTE", LIMITLESS),
    ];
    all.extend_from_slice(variables);
    let mut command = Command::new(SERVICE);
    command.arg("serve");
    let process = Process::start(name, &command, folder, &all).map_err(NoService::Failed)?;
    wait_until_ready(Server { process, port }, "/readyz", &folder.join(format!("{name}.log"))).await
}

async fn start_bare(folder: &Path) -> Result<Server, String> {
    let own = std::env::current_exe().map_err(|error| format!("who am I? {error}"))?;
    let port = free_port()?;
    let mut command = Command::new(own);
    command.args([bare::ARGUMENT, &port.to_string()]);
    let process = Process::start("axum", &command, folder, &[])?;
    let server = Server { process, port };
    Ok(wait_until_ready(server, "/v1/auth/verify", &folder.join("axum.log")).await?)
}

async fn start_nginx(folder: &Path) -> Result<Server, String> {
    let port = free_port()?;
    let configuration = folder.join("nginx.conf");
    let text = format!(
        r#"daemon off;
worker_processes auto;
pid nginx.pid;
error_log stderr warn;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    server {{
        listen 127.0.0.1:{port};
        default_type application/json;
        location / {{
            return 200 '{{"subject":"key_01jd0zt8q7f7qvs4p2k6x3m9ab","workspace_id":"ws_01jd0zt8q7f7qvs4p2k6x3m9ab","scope":"read-only","key_id":"key_01jd0zt8q7f7qvs4p2k6x3m9ab"}}';
        }}
    }}
}}
"#
    );
    fs::write(&configuration, text).map_err(|error| format!("cannot write: {error}"))?;
    let places = ["nginx", "/usr/sbin/nginx"].map(PathBuf::from);
    let program = places.iter().find(|place| place.exists()).unwrap_or(&places[0]);
    let mut command = Command::new(program);
    command.arg("-p").arg(folder).arg("-c").arg(&configuration);
    let server = Server { process: Process::start("nginx", &command, folder, &[])?, port };
    Ok(wait_until_ready(server, "/", &folder.join("nginx.log")).await?)
}

async fn wait_until_ready(mut server: Server, path: &str, log: &Path) -> Result<Server, NoService> {
    let question = client::request("GET", path, None, None);
    for _ in 0..600 {
        if let Some(status) = server.process.ended() {
            let text = fs::read_to_string(log).unwrap_or_default();
            return Err(NoService::Ended(status, text.trim().to_owned()));
        }
        if client::once(server.port, &question).await.is_ok_and(|answer| answer.status == 200) {
            return Ok(server);
        }
        sleep(Duration::from_millis(50)).await;
    }
    Err(NoService::Failed(format!("a server is not ready in time: {}", log.display())))
}
