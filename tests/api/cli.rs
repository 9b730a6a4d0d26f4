//! The binary on the command line: `dev`, `serve` and the other commands, and their errors.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Child, Command, Output, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::fixture::{Database, ENCRYPTION_KEY, TestApp, cluster};

fn binary() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_call2me-auth"));
    command.env_remove("DATABASE_URL").current_dir(env!("CARGO_TARGET_TMPDIR"));
    command
}

/// A running `dev` command and the values that it printed.
struct Dev {
    child: Child,
    url: String,
    curl: String,
    database: String,
    sign_in: (String, String),
}

impl Dev {
    fn start(folder: &Path) -> Self {
        let mut child = binary()
            .args(["dev", "--port", "0", "--data-dir"])
            .arg(folder)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let mut value_after = |label: &str| {
            let line = lines.find(|line| line.contains(label)).unwrap_or_else(|| panic!("{label}"));
            line.split_once(label).unwrap().1.trim().to_owned()
        };
        let url = value_after("running at");
        let sign_in = value_after("Demo sign-in");
        let database = value_after("Database");
        let curl = format!("curl{}", value_after("curl"));
        let (email, password) = sign_in.split_once(" / ").unwrap();
        let sign_in = (email.to_owned(), password.to_owned());
        Self { child, url, curl: curl.replacen("curl", "curl ", 1), database, sign_in }
    }

    /// Runs the printed curl command in a shell and returns the response body.
    fn run_curl(&self) -> Value {
        let output = Command::new("sh").args(["-c", &self.curl]).output().unwrap();
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"))
    }

    fn signal(&mut self, signal: Signal) -> Option<i32> {
        let pid = Pid::from_raw(self.child.id().try_into().unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
        self.child.wait().unwrap().code()
    }
}

#[test]
fn dev_starts_in_empty_folder_and_keeps_data() {
    let folder = tempfile::tempdir().unwrap();
    let mut dev = Dev::start(folder.path());
    let agents = dev.run_curl();
    assert_eq!(agents["total"], 3);
    assert!(dev.database.starts_with("postgres://"));
    let (email, password) = dev.sign_in.clone();
    let login = format!(
        "curl -s {}/v1/auth/login -H 'content-type: application/json' \
         -d '{{\"email\":\"{email}\",\"password\":\"{password}\"}}'",
        dev.url
    );
    let output = Command::new("sh").args(["-c", &login]).output().unwrap();
    let pair: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(pair["expires_in"], 3600);
    let key = dev.curl.clone();
    assert_eq!(dev.signal(Signal::INT), Some(0), "Ctrl-C ends with exit code 0");

    // After a SIGKILL and a restart, no data is lost and the key is the same.
    let mut dev = Dev::start(folder.path());
    assert_eq!(dev.run_curl(), agents);
    let create = format!(
        "{} -d '{{\"agent_name\":\"Late\"}}' -H 'content-type: application/json'",
        dev.curl
    );
    let created = Command::new("sh").args(["-c", &create]).output().unwrap();
    assert_eq!(dev.signal(Signal::KILL), None);
    let created: Value = serde_json::from_slice(&created.stdout).unwrap();
    let mut dev = Dev::start(folder.path());
    let kept = dev.run_curl();
    assert_eq!((&kept["total"], &kept["agents"][0]), (&Value::from(4), &created));
    let bearer = |line: &str| line.split('\'').nth(1).unwrap().to_owned();
    assert_eq!(bearer(&dev.curl), bearer(&key));
    assert_eq!(dev.sign_in, (email, password));

    // A second process on the same folder reports the conflict.
    let second = run(binary().args(["dev", "--port", "0", "--data-dir"]).arg(folder.path()));
    assert_refused(&second, "another call2me-auth dev is running on");
    assert_eq!(dev.signal(Signal::TERM), Some(0));
}

fn run(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap()
}

/// Checks for one line on standard error, exit code 2 and no panic.
#[track_caller]
fn assert_refused(output: &Output, reason: &str) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains(reason), "{text}");
    assert_eq!(text.trim().lines().count(), 1, "{text}");
    assert!(text.starts_with("call2me-auth: "), "{text}");
}

#[test]
fn dev_start_failure_is_one_clear_line() {
    let folder = tempfile::tempdir().unwrap();
    let dev = |folder: &Path| {
        let mut command = binary();
        command.args(["dev", "--port", "0", "--data-dir"]).arg(folder);
        command
    };
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let output = run(binary().args(["dev", "--port", &port, "--data-dir"]).arg(folder.path()));
    assert_refused(&output, "is in use by another process: choose another one with --port");

    let empty = tempfile::tempdir().unwrap();
    let output = run(dev(folder.path()).env("PG_BIN_DIR", empty.path()));
    assert_refused(&output, "the PostgreSQL server is not installed");

    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    assert_refused(&run(&mut dev(&file.join("below"))), "cannot use");
    assert_refused(&run(&mut dev(Path::new("/proc/nowhere"))), "cannot use");

    // A cluster that belongs to another system user.
    let foreign = tempfile::tempdir().unwrap();
    let data = foreign.path().join("postgres");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("PG_VERSION"), installed_version()).unwrap();
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(&data, Some(12345), Some(12345)).unwrap();
        assert_refused(&run(&mut dev(foreign.path())), "belongs to uid 12345");
    }
    fs::write(data.join("PG_VERSION"), "7").unwrap();
    assert_refused(
        &run(&mut dev(foreign.path())),
        "was created by PostgreSQL 7, which is not installed",
    );

    let readonly = tempfile::tempdir().unwrap();
    fs::set_permissions(readonly.path(), fs::Permissions::from_mode(0o500)).unwrap();
    if !rustix::process::geteuid().is_root() {
        assert_refused(&run(&mut dev(readonly.path())), "cannot write to");
    }
}

fn installed_version() -> String {
    let found = fs::read_dir("/usr/lib/postgresql").unwrap().flatten();
    let mut versions: Vec<u32> =
        found.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    versions.sort_unstable();
    versions.last().unwrap().to_string()
}

#[test]
fn configuration_errors_are_reported_together() {
    let output = run(binary().arg("serve").env("CALL2ME_AUTH__SERVER__ADDRESS", "nowhere"));
    assert_refused(&output, "server.address must be an address");
    for missing in [
        "server.public_url is not set",
        "database.url is not set",
        "keys.encryption_key is not set",
    ] {
        assert_refused(&output, missing);
    }
    let unreachable = run(serve().env("DATABASE_URL", "postgres://127.0.0.1:1/x"));
    assert_refused(&unreachable, "cannot connect to PostgreSQL");
    let output = run(serve().env("DATABASE_URL", "mysql://x"));
    assert_refused(&output, "database.url must be a URL");
}

/// Returns a command with all settings that `serve` requires.
fn configured(command: &str) -> Command {
    let mut configured = binary();
    configured.arg(command).env("DATABASE_URL", "postgres://127.0.0.1:1/x");
    for (name, value) in serve().get_envs() {
        if let Some(value) = value {
            configured.env(name, value);
        }
    }
    configured
}

#[test]
fn misspelled_setting_stops_every_command() {
    for command in ["serve", "dev", "migrate", "openapi", "config"] {
        let mut misspelled = configured(command);
        misspelled.env("CALL2ME_AUTH_SERVER_ADDRESS", "127.0.0.1:0");
        let mut missing = configured(command);
        missing.args(["--config", "/nonexistent"]);
        for (mut invocation, reason) in [
            (misspelled, "did you mean CALL2ME_AUTH__SERVER__ADDRESS?"),
            (missing, "--config /nonexistent: no default.toml"),
        ] {
            let output = run(&mut invocation);
            let text = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{command}: {text}");
            assert!(text.contains(reason), "{command}: {text}");
        }
    }
}

#[test]
fn unrelated_variable_may_be_non_utf8() {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _};
    for command in ["openapi", "config", "--help"] {
        let mut command = configured(command);
        command.env("OTHER", OsStr::from_bytes(b"\xff")).env(OsStr::from_bytes(b"\xfe"), "x");
        let output = run(&mut command);
        assert!(output.status.success(), "{output:?}");
    }
}

fn serve() -> Command {
    let mut command = binary();
    command
        .arg("serve")
        .env("CALL2ME_AUTH__SERVER__ADDRESS", "127.0.0.1:0")
        .env("CALL2ME_AUTH__SERVER__PUBLIC_URL", "http://127.0.0.1:1")
        .env("CALL2ME_AUTH__KEYS__ENCRYPTION_KEY", ENCRYPTION_KEY);
    command
}

#[tokio::test]
async fn serve_migrates_empty_database_and_rejects_other_key() {
    let database = cluster().empty_database().await;
    let mut child =
        serve().env("DATABASE_URL", &database.url).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    let line = lines.find(|line| line.contains("serving")).unwrap();
    let line: Value = serde_json::from_str(&line).unwrap();
    let url = format!("http://{}/health", line["address"].as_str().unwrap());
    let health: Value = reqwest::get(url).await.unwrap().json().await.unwrap();
    assert_eq!(health["status"], "healthy");
    assert_eq!(health["service"], "call2me-auth");
    let pid = Pid::from_raw(child.id().try_into().unwrap()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let other_key = "b3RoZXIgZW5jcnlwdGlvbiBrZXksIDMyIGJ5dGVzISE=";
    let output = run(serve()
        .env("DATABASE_URL", &database.url)
        .env("CALL2ME_AUTH__KEYS__ENCRYPTION_KEY", other_key));
    assert_refused(&output, "the database has data of another encryption key (id ");
}

#[tokio::test]
async fn service_role_needs_owner_only_for_migrations() {
    let database = cluster().empty_database().await;
    // The role exists: it was created when the template database was migrated.
    cluster().enable_app_role_login().await;
    let app_url = database.url.replace("postgres:test@", "call2me_auth_app:app@");
    let output = run(serve().env("DATABASE_URL", &app_url));
    assert_refused(&output, "run `call2me-auth migrate`");
    let migrated = run(binary().arg("migrate").env("DATABASE_URL", &database.url));
    assert!(migrated.status.success(), "{migrated:?}");
    let mut child = serve().env("DATABASE_URL", &app_url).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.contains("serving")));
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Adds a migration that this version does not know.
const NEWER_MIGRATION: &str =
    "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
     VALUES (9999, 'newer', true, 'newer', 0)";

/// With the role of the application, and as the owner of the tables.
#[tokio::test]
async fn serve_refuses_schema_of_another_version() {
    let first = "SELECT min(version) FROM _sqlx_migrations";
    for (sql, app_reason, owner_reason) in [
        (NEWER_MIGRATION.to_owned(), "has version 9999, which is newer", Some("which is newer")),
        (
            format!("UPDATE _sqlx_migrations SET checksum = 'x' WHERE version > ({first})"),
            "is not that of this call2me-auth",
            Some("has been modified"),
        ),
        (
            format!("DELETE FROM _sqlx_migrations WHERE version > ({first})"),
            "run `call2me-auth migrate`",
            None,
        ),
    ] {
        let database = cluster().database().await;
        let mut connection = database.connect().await;
        cluster().enable_app_role_login().await;
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut connection).await.unwrap();
        let app_url = database.url.replace("postgres:test@", "call2me_auth_app:app@");
        assert_refused(&run(serve().env("DATABASE_URL", &app_url)), app_reason);
        if let Some(reason) = owner_reason {
            assert_refused(&run(serve().env("DATABASE_URL", &database.url)), reason);
        }
    }
}

/// Runs a command of `admin` with the environment of `serve`, while the service in this process
/// goes on.
async fn run_admin(database: &Database, arguments: &[&str]) -> Output {
    let mut command = configured("admin");
    command.args(arguments).env("DATABASE_URL", &database.url);
    tokio::task::spawn_blocking(move || run(&mut command)).await.unwrap()
}

#[tokio::test]
async fn admin_command_lists_disables_and_revokes_keys_and_sets_limits() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let key = app.create_key(&dana, "prod", "admin").await;
    let admin = async |arguments: &[&str]| run_admin(&app.database, arguments).await;
    let json = |output: Output| -> Value {
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let send = || app.get("/v1/agents").bearer(&key.secret).send();
    for (command, key_status, status) in
        [("disable", "disabled", 401), ("enable", "active", 200), ("revoke", "revoked", 401)]
    {
        send().await;
        assert_eq!(json(admin(&["keys", command, &key.id]).await)["status"], key_status);
        assert_eq!(send().await.status, status, "{command}");
        let filters = [&["--status", key_status][..], &["--workspace", &dana.workspace_id]];
        for filter in filters {
            let listed = json(admin(&[&["keys", "list"], filter].concat()).await);
            assert_eq!(listed["api_keys"][0]["id"], key.id, "{filter:?}");
        }
    }
    let events = app.wait_for_event_count(&dana.access_token, "action=api_key.revoked", 1).await;
    assert_eq!(events[0]["actor"]["type"], "system");
    assert_refused(&admin(&["keys", "enable", &key.id]).await, "revoked, which is final");
    let missing = "key_01jd0zt8q7f7qvs4p2k6x3m9ab";
    assert_refused(&admin(&["keys", "revoke", missing]).await, "no such API key");
    // 600 is the default of `serve`.
    for (limit, effective) in [("30", 30), ("default", 600)] {
        let set = json(admin(&["workspaces", "set-limit", &dana.workspace_id, limit]).await);
        assert_eq!(set["rate_limit_per_minute"], effective);
    }
    for limit in ["fast", "0", "-1"] {
        let set = admin(&["workspaces", "set-limit", &dana.workspace_id, limit]).await;
        assert!(!set.status.success(), "{limit}");
    }
}

#[tokio::test]
async fn admin_command_creates_users_workspaces_and_keys() {
    let database = cluster().database().await;
    let admin = |arguments: &[&str]| -> Output {
        let mut serve_command = serve();
        // The command `admin` with the environment of `serve`.
        let mut admin_command = binary();
        admin_command.arg("admin").args(arguments).env("DATABASE_URL", &database.url);
        for (name, value) in serve_command.arg("x").get_envs() {
            if let (Some(name), Some(value)) = (name.to_str(), value) {
                admin_command.env(name, value);
            }
        }
        run(admin_command.env("DATABASE_URL", &database.url))
    };
    let json = |output: Output| -> Value {
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let user = json(admin(&[
        "users",
        "create",
        "--email",
        "ops@acme.example",
        "--workspace-name",
        "acme",
    ]));
    assert!(user["password"].as_str().unwrap().len() >= 12);
    let created =
        json(admin(&["workspaces", "create", "--name", "labs", "--owner", "OPS@acme.example"]));
    let workspace = created["workspace"]["id"].as_str().unwrap();
    let key = json(admin(&[
        "keys",
        "create",
        "--workspace",
        workspace,
        "--name",
        "ci",
        "--scope",
        "admin",
    ]));
    let app = crate::fixture::TestApp::start_on(database.clone(), &[]).await;
    let me =
        app.get("/v1/auth/me").bearer(key["key"].as_str().unwrap()).send().await.expect_status(200);
    assert_eq!(me["workspace"]["name"], "labs");
    assert_eq!(me["key"]["created_by"], Value::Null);
    app.get("/v1/users/me")
        .bearer(key["key"].as_str().unwrap())
        .send()
        .await
        .assert_error(404, "not_found");
    let login = serde_json::json!({ "email": "ops@acme.example", "password": user["password"] });
    app.post("/v1/auth/login").json(login).send().await.expect_status(200);
    assert_refused(&admin(&["users", "create", "--email", "ops@acme.example"]), "already exists");
    assert_refused(&admin(&["users", "create", "--email", "nonsense"]), "email must be");
    let missing_id = "ws_01jd0zt8q7f7qvs4p2k6x3m9ab";
    assert_refused(
        &admin(&["keys", "create", "--workspace", missing_id, "--name", "x"]),
        "there is no such workspace",
    );
}

#[test]
fn config_and_openapi_work_without_database() {
    let output = run(serve().arg("--help"));
    assert!(output.status.success());
    let openapi = run(binary().arg("openapi"));
    let document: Value = serde_json::from_slice(&openapi.stdout).unwrap();
    assert_eq!(document["openapi"], "3.1.0");
    let mut config = binary();
    config
        .arg("config")
        .env("DATABASE_URL", "postgres://user:secret@db/x")
        .env("CALL2ME_AUTH__SERVER__PUBLIC_URL", "https://auth.example.com")
        .env("CALL2ME_AUTH__KEYS__ENCRYPTION_KEY", ENCRYPTION_KEY);
    let output = run(&mut config);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    assert!(text.contains("public_url = \"https://auth.example.com\""), "{text}");
    assert!(!text.contains("secret@") && !text.contains(ENCRYPTION_KEY), "{text}");
    let mut errors = String::new();
    BufReader::new(output.stderr.as_slice()).read_to_string(&mut errors).unwrap();
    assert_eq!(errors, "");
}
