//! The binary as people start it: `dev`, `serve` and the rest, with what goes wrong.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Child, Command, Output, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::fixture::{ENCRYPTION_KEY, cluster};

fn binary() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_call2me-auth"));
    command.env_remove("DATABASE_URL").current_dir(env!("CARGO_TARGET_TMPDIR"));
    command
}

/// A running `dev` and what it said.
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
        let mut after = |mark: &str| {
            let line = lines.find(|line| line.contains(mark)).unwrap_or_else(|| panic!("{mark}"));
            line.split_once(mark).unwrap().1.trim().to_owned()
        };
        let url = after("running at");
        let sign_in = after("Demo sign-in");
        let database = after("Database");
        let curl = format!("curl{}", after("curl"));
        let (email, password) = sign_in.split_once(" / ").unwrap();
        let sign_in = (email.to_owned(), password.to_owned());
        Self { child, url, curl: curl.replacen("curl", "curl ", 1), database, sign_in }
    }

    /// What the printed curl line answers, pasted into a shell.
    fn paste(&self) -> Value {
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
fn a_fresh_folder_becomes_a_service_that_keeps_everything() {
    let folder = tempfile::tempdir().unwrap();
    let mut dev = Dev::start(folder.path());
    let agents = dev.paste();
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
    assert_eq!(dev.signal(Signal::INT), Some(0), "Ctrl-C is a good end");

    // Killed outright, started again at once: nothing is lost, and the key is the same.
    let mut dev = Dev::start(folder.path());
    assert_eq!(dev.paste(), agents);
    let create = format!(
        "{} -d '{{\"agent_name\":\"Late\"}}' -H 'content-type: application/json'",
        dev.curl
    );
    let created = Command::new("sh").args(["-c", &create]).output().unwrap();
    assert_eq!(dev.signal(Signal::KILL), None);
    let created: Value = serde_json::from_slice(&created.stdout).unwrap();
    let mut dev = Dev::start(folder.path());
    let kept = dev.paste();
    assert_eq!((&kept["total"], &kept["agents"][0]), (&Value::from(4), &created));
    let bearer = |line: &str| line.split('\'').nth(1).unwrap().to_owned();
    assert_eq!(bearer(&dev.curl), bearer(&key));
    assert_eq!(dev.sign_in, (email, password));

    // A second one on the same folder says so.
    let second = run(binary().args(["dev", "--port", "0", "--data-dir"]).arg(folder.path()));
    refused(&second, "another call2me-auth dev is running on");
    assert_eq!(dev.signal(Signal::TERM), Some(0));
}

fn run(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap()
}

/// One clear line, exit code 2, no panic.
#[track_caller]
fn refused(output: &Output, reason: &str) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains(reason), "{text}");
    assert_eq!(text.trim().lines().count(), 1, "{text}");
    assert!(text.starts_with("call2me-auth: "), "{text}");
}

#[test]
fn what_keeps_dev_from_starting_is_one_clear_line() {
    let folder = tempfile::tempdir().unwrap();
    let dev = |folder: &Path| {
        let mut command = binary();
        command.args(["dev", "--port", "0", "--data-dir"]).arg(folder);
        command
    };
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let output = run(binary().args(["dev", "--port", &port, "--data-dir"]).arg(folder.path()));
    refused(&output, "is in use by another process: choose another one with --port");

    let empty = tempfile::tempdir().unwrap();
    let output = run(dev(folder.path()).env("PG_BIN_DIR", empty.path()));
    refused(&output, "PostgreSQL's server is not installed");

    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    refused(&run(&mut dev(&file.join("below"))), "cannot use");
    refused(&run(&mut dev(Path::new("/proc/nowhere"))), "cannot use");

    // A cluster that belongs to somebody else.
    let foreign = tempfile::tempdir().unwrap();
    let data = foreign.path().join("postgres");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("PG_VERSION"), installed_version()).unwrap();
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(&data, Some(12345), Some(12345)).unwrap();
        refused(&run(&mut dev(foreign.path())), "belongs to uid 12345");
    }
    fs::write(data.join("PG_VERSION"), "7").unwrap();
    refused(&run(&mut dev(foreign.path())), "was made by PostgreSQL 7, which is not installed");

    let readonly = tempfile::tempdir().unwrap();
    fs::set_permissions(readonly.path(), fs::Permissions::from_mode(0o500)).unwrap();
    if !rustix::process::geteuid().is_root() {
        refused(&run(&mut dev(readonly.path())), "cannot write to");
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
fn bad_configuration_is_told_all_at_once() {
    let output = run(binary().arg("serve").env("CALL2ME_AUTH__SERVER__ADDRESS", "nowhere"));
    refused(&output, "server.address must be an address");
    for missing in [
        "server.public_url is not set",
        "database.url is not set",
        "keys.encryption_key is not set",
    ] {
        refused(&output, missing);
    }
    let away = run(serve().env("DATABASE_URL", "postgres://127.0.0.1:1/x"));
    refused(&away, "cannot connect to PostgreSQL");
    let output = run(serve().env("DATABASE_URL", "mysql://x"));
    refused(&output, "database.url must be a URL");
}

/// A command with everything that `serve` needs.
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
fn misspelt_names_stop_every_command() {
    for command in ["serve", "dev", "migrate", "openapi", "config"] {
        let mut misspelt = configured(command);
        misspelt.env("CALL2ME_AUTH_SERVER_ADDRESS", "127.0.0.1:0");
        let mut missing = configured(command);
        missing.args(["--config", "/nonexistent"]);
        for (mut refused, why) in [
            (misspelt, "did you mean CALL2ME_AUTH__SERVER__ADDRESS?"),
            (missing, "--config /nonexistent: no default.toml"),
        ] {
            let output = run(&mut refused);
            let text = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{command}: {text}");
            assert!(text.contains(why), "{command}: {text}");
        }
    }
}

#[test]
fn variables_of_other_programs_need_not_be_utf8() {
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
async fn serve_sets_up_an_empty_database_and_refuses_another_key() {
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
    let other = "b3RoZXIgZW5jcnlwdGlvbiBrZXksIDMyIGJ5dGVzISE=";
    let output = run(serve()
        .env("DATABASE_URL", &database.url)
        .env("CALL2ME_AUTH__KEYS__ENCRYPTION_KEY", other));
    refused(&output, "keys.encryption_key is not the one");
}

#[tokio::test]
async fn a_node_with_the_bare_role_needs_the_owner_for_migrations_only() {
    let database = cluster().empty_database().await;
    let mut connection = database.connect().await;
    // The role is there since the template was migrated.
    sqlx::raw_sql("ALTER ROLE call2me_auth_app LOGIN PASSWORD 'app'")
        .execute(&mut connection)
        .await
        .unwrap();
    let app_url = database.url.replace("postgres:test@", "call2me_auth_app:app@");
    let output = run(serve().env("DATABASE_URL", &app_url));
    refused(&output, "run `call2me-auth migrate`");
    let migrated = run(binary().arg("migrate").env("DATABASE_URL", &database.url));
    assert!(migrated.status.success(), "{migrated:?}");
    let mut child = serve().env("DATABASE_URL", &app_url).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.contains("serving")));
    child.kill().unwrap();
    child.wait().unwrap();
}

#[tokio::test]
async fn the_operator_makes_users_workspaces_and_keys() {
    let database = cluster().database().await;
    let admin = |arguments: &[&str]| -> Output {
        let mut command = serve();
        // In place of `serve`.
        let mut fresh = binary();
        fresh.arg("admin").args(arguments).env("DATABASE_URL", &database.url);
        for (name, value) in command.arg("x").get_envs() {
            if let (Some(name), Some(value)) = (name.to_str(), value) {
                fresh.env(name, value);
            }
        }
        run(fresh.env("DATABASE_URL", &database.url))
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
    let further =
        json(admin(&["workspaces", "create", "--name", "labs", "--owner", "OPS@acme.example"]));
    let workspace = further["workspace"]["id"].as_str().unwrap();
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
    let me = app.get("/v1/auth/me").bearer(key["key"].as_str().unwrap()).send().await.expect(200);
    assert_eq!(me["workspace"]["name"], "labs");
    assert_eq!(me["key"]["created_by"], Value::Null);
    app.get("/v1/users/me")
        .bearer(key["key"].as_str().unwrap())
        .send()
        .await
        .refused(404, "not_found");
    let login = serde_json::json!({ "email": "ops@acme.example", "password": user["password"] });
    app.post("/v1/auth/login").json(login).send().await.expect(200);
    refused(&admin(&["users", "create", "--email", "ops@acme.example"]), "exists already");
    refused(&admin(&["users", "create", "--email", "nonsense"]), "email must be");
    let ghost = "ws_01jd0zt8q7f7qvs4p2k6x3m9ab";
    refused(
        &admin(&["keys", "create", "--workspace", ghost, "--name", "x"]),
        "there is no such workspace",
    );
}

#[test]
fn config_and_openapi_print_without_a_database() {
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
    let mut rest = String::new();
    BufReader::new(output.stderr.as_slice()).read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "");
}
