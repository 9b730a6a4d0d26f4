//! The servers that are measured, and what they need.

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
    bare_axum, client,
    options::Options,
    process::{Process, free_port},
    seed::{self, Account},
};

/// The binary of the service that cargo built for this run.
const SERVICE: &str = env!("CARGO_BIN_EXE_call2me-auth");
/// The `keys.encryption_key` of a deployment that ends with this run.
pub(crate) const ENCRYPTION_KEY: &str = "YmVuY2htYXJrIGJlbmNobWFyayBiZW5jaG1hcmsgYmM=";
/// A rate limit that is never reached.
const UNLIMITED_RATE: &str = "1000000000";

/// A server on a port of this machine.
pub(crate) struct Server {
    /// The process.
    pub(crate) process: Process,
    /// The port.
    pub(crate) port: u16,
}

/// The reason why a service does not run.
pub(crate) enum ServiceStartError {
    /// The service exited while it started, with this status and log.
    Exited(ExitStatus, String),
    /// Another error.
    Failed(String),
}

impl From<ServiceStartError> for String {
    fn from(reason: ServiceStartError) -> Self {
        match reason {
            ServiceStartError::Exited(status, text) => {
                format!("the service exited ({status}): {text}")
            }
            ServiceStartError::Failed(line) => line,
        }
    }
}

/// The running servers. They stop in the order of the fields.
pub(crate) struct BenchEnvironment {
    /// The service.
    pub(crate) service: Server,
    /// A bare axum.
    pub(crate) bare: Server,
    /// nginx.
    pub(crate) nginx: Server,
    /// The PostgreSQL that all databases are in.
    pub(crate) postgres: Postgres,
    /// A user of the service and their data.
    pub(crate) account: Account,
    /// The source of random bytes and ids.
    pub(crate) env: Env,
    /// The binary of the service that is measured.
    pub(crate) binary: PathBuf,
    folder: TempDir,
}

impl BenchEnvironment {
    /// Starts everything.
    pub(crate) async fn start(options: &Options) -> Result<Self, String> {
        let binary = options.binary.as_deref().unwrap_or(Path::new(SERVICE));
        let binary = fs::canonicalize(binary)
            .map_err(|error| format!("cannot find {}: {error}", binary.display()))?;
        // The target folder is on a disk, unlike the temporary folder of some machines.
        let place = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let folder = tempfile::Builder::new().prefix("bench-").tempdir_in(place);
        let folder = folder.map_err(|error| format!("cannot create a folder: {error}"))?;
        let cluster = folder.path().join("cluster");
        fs::create_dir(&cluster).map_err(|error| format!("cannot create a folder: {error}"))?;
        let postgres = Postgres::start(&cluster, &"bench".into(), true)?;
        create_database(&postgres, "main").await?;
        let service = start_service(&binary, folder.path(), &postgres, "main", "service", &[]);
        let service = service.await?;
        let bare = start_bare(folder.path()).await?;
        let nginx = start_nginx(folder.path()).await?;
        let account = seed::create_account(service.port).await?;
        Ok(Self { service, bare, nginx, postgres, account, env: Env::system(), binary, folder })
    }

    /// The folder for the files of this run.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Starts another service on one of the databases.
    pub(crate) async fn start_another_service(
        &self,
        database: &str,
        name: &'static str,
        variables: &[(&str, &str)],
    ) -> Result<Server, ServiceStartError> {
        let folder = self.folder();
        start_service(&self.binary, folder, &self.postgres, database, name, variables).await
    }

    /// Connects to a database as superuser.
    pub(crate) async fn connect(&self, database: &str) -> Result<PgConnection, String> {
        let url = self.postgres.url(database);
        let connection = PgConnection::connect(url.expose_secret()).await;
        connection.map_err(|error| format!("cannot connect to PostgreSQL: {error}"))
    }
}

/// Creates a database. The service that starts on it creates the tables.
pub(crate) async fn create_database(postgres: &Postgres, name: &str) -> Result<(), String> {
    migrate::create_database(postgres.url("postgres").expose_secret(), name).await
}

async fn start_service(
    binary: &Path,
    folder: &Path,
    postgres: &Postgres,
    database: &str,
    name: &'static str,
    variables: &[(&str, &str)],
) -> Result<Server, ServiceStartError> {
    let port = free_port().map_err(ServiceStartError::Failed)?;
    let url: SecretString = postgres.url(database);
    let (address, public_url) = (format!("127.0.0.1:{port}"), format!("http://127.0.0.1:{port}"));
    let mut all = vec![
        ("DATABASE_URL", url.expose_secret()),
        ("CALL2ME_AUTH__SERVER__ADDRESS", &*address),
        ("CALL2ME_AUTH__SERVER__PUBLIC_URL", &*public_url),
        ("CALL2ME_AUTH__KEYS__ENCRYPTION_KEY", ENCRYPTION_KEY),
        ("CALL2ME_AUTH__SESSIONS__REGISTRATION", "open"),
        ("CALL2ME_AUTH__RATE_LIMIT__PER_KEY_PER_MINUTE", UNLIMITED_RATE),
        ("CALL2ME_AUTH__RATE_LIMIT__PER_ADDRESS_PER_MINUTE", UNLIMITED_RATE),
        ("CALL2ME_AUTH__RATE_LIMIT__SIGN_IN_PER_MINUTE", UNLIMITED_RATE),
    ];
    all.extend_from_slice(variables);
    let mut command = Command::new(binary);
    command.arg("serve");
    let process =
        Process::start(name, &command, folder, &all).map_err(ServiceStartError::Failed)?;
    wait_until_ready(Server { process, port }, "/readyz", &folder.join(format!("{name}.log"))).await
}

async fn start_bare(folder: &Path) -> Result<Server, String> {
    let bench_binary =
        std::env::current_exe().map_err(|error| format!("cannot find this binary: {error}"))?;
    let port = free_port()?;
    let mut command = Command::new(bench_binary);
    command.args([bare_axum::SERVER_ARGUMENT, &port.to_string()]);
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

async fn wait_until_ready(
    mut server: Server,
    path: &str,
    log: &Path,
) -> Result<Server, ServiceStartError> {
    let ready_request = client::format_request("GET", path, None, None);
    for _ in 0..600 {
        if let Some(status) = server.process.exit_status() {
            let text = fs::read_to_string(log).unwrap_or_default();
            return Err(ServiceStartError::Exited(status, text.trim().to_owned()));
        }
        if client::send_once(server.port, &ready_request)
            .await
            .is_ok_and(|answer| answer.status == 200)
        {
            return Ok(server);
        }
        sleep(Duration::from_millis(50)).await;
    }
    Err(ServiceStartError::Failed(format!(
        "a server did not become ready in time: {}",
        log.display()
    )))
}
