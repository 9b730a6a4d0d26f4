//! Leaked API keys: `scripts/find-leaked-keys` finds them in a repository, and
//! `call2me-auth admin keys reveal-owner` names their owner. A database dump contains no secret.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use call2me_auth::model::api_key::ApiKeySecret;
use data_encoding::HEXLOWER;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::{
    fixture::{
        Browser, ENCRYPTION_KEY, PASSWORD, TestApp, TestClient, eventually, oauth::OAuthExt as _,
    },
    pages::SESSION_COOKIE,
};

pub fn run_git(folder: &Path, arguments: &[&str]) {
    let status = Command::new("git")
        .args(["-c", "user.name=x", "-c", "user.email=x@example.com", "-c", "commit.gpgsign=false"])
        .args(arguments)
        .current_dir(folder)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    assert!(status.unwrap().success(), "{arguments:?}");
}

/// Runs `scripts/find-leaked-keys` and returns its exit code and its output.
fn find_leaked_keys(folder: &Path, arguments: &[&str]) -> (i32, String) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/find-leaked-keys");
    let output = Command::new(script).arg(folder).args(arguments).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    (output.status.code().unwrap(), text)
}

#[tokio::test]
async fn leak_scan_finds_only_valid_keys_in_files_and_history() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let [old, new] =
        [app.create_key(&dana, "old", "write").await, app.create_key(&dana, "new", "write").await];
    let folder = tempfile::tempdir().unwrap();
    let (folder, write) = (folder.path(), |name: &str, text: &str| {
        fs::write(folder.path().join(name), text).unwrap();
    });
    run_git(folder, &["init", "-q", "-b", "main"]);
    let mut invalid_key = new.secret.clone();
    invalid_key.replace_range(20..21, if &invalid_key[20..21] == "x" { "y" } else { "x" });
    write(
        "README.md",
        &format!("use {invalid_key}, or sk_call2me_live_short, or x{}\n", new.secret),
    );
    run_git(folder, &["add", "."]);
    run_git(folder, &["commit", "-q", "-m", "one"]);
    assert_eq!(find_leaked_keys(folder, &[]), (0, String::new()));
    // A key that is committed and removed again on a branch, which is then merged.
    run_git(folder, &["checkout", "-q", "-b", "side"]);
    write("config.json", &format!("{}{{\"key\":\"{}\"}}", " ".repeat(3 << 20), old.secret));
    run_git(folder, &["add", "."]);
    run_git(folder, &["commit", "-q", "-m", "two"]);
    write("config.json", "{}");
    run_git(folder, &["commit", "-q", "-a", "-m", "three"]);
    run_git(folder, &["checkout", "-q", "main"]);
    run_git(folder, &["merge", "-q", "--no-ff", "-m", "four", "side"]);
    let (code, text) = find_leaked_keys(folder, &[]);
    let redact = |secret: &str| format!("sk_call2me_live_{}…{}", &secret[16..20], &secret[42..46]);
    assert_eq!((code, text.lines().count()), (1, 1), "{text}");
    assert!(text.starts_with(&redact(&old.secret)) && text.contains(" config.json"), "{text}");
    assert_eq!(find_leaked_keys(folder, &["--work-tree-only"]), (0, String::new()));
    // A key that was never committed.
    write(".env", &format!("A=1\nKEY='{}'\n", new.secret));
    let (code, text) = find_leaked_keys(folder, &["--work-tree-only"]);
    assert_eq!((code, text), (1, format!("{}  .env:2\n", redact(&new.secret))));
    let (code, text) = find_leaked_keys(folder, &[]);
    assert_eq!((code, text.lines().count()), (1, 2), "{text}");
    assert!(!text.contains(&new.secret) && !text.contains(&old.secret), "keys are redacted");
    // A revoked key is ignored by its digest.
    let digest = HEXLOWER.encode(&Sha256::digest(old.secret.as_bytes()));
    write(".leaked-keys-ignored", &format!("{digest}  revoked on Friday\n"));
    let (code, text) = find_leaked_keys(folder, &[]);
    assert_eq!((code, text), (1, format!("{}  .env:2\n", redact(&new.secret))));
}

#[test]
fn leak_scan_finds_no_key_in_documentation() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    run_git(folder, &["init", "-q"]);
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    for entry in fs::read_dir(project).unwrap().chain(fs::read_dir(project.join("docs")).unwrap()) {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "md") {
            fs::copy(&path, folder.join(path.file_name().unwrap())).unwrap();
        }
    }
    assert!(folder.join("secret-scanning.md").exists());
    assert_eq!(find_leaked_keys(folder, &["--work-tree-only"]), (0, String::new()));
}

#[test]
fn documented_example_key_is_well_formed() {
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/secret-scanning.md");
    let text = fs::read_to_string(document).unwrap();
    let example = text.split('`').find(|part| part.starts_with("sk_call2me_live_")).unwrap();
    ApiKeySecret::parse(example, &"live".parse().unwrap()).unwrap();
}

/// Runs `call2me-auth admin keys reveal-owner` with this input. Returns the exit code, the output
/// as JSON, and the log.
fn reveal_owner(app: &TestApp, key: &str) -> (i32, Value, String) {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("key");
    fs::write(&input, key).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_call2me-auth"))
        .args(["admin", "keys", "reveal-owner"])
        .current_dir(folder.path())
        .env_remove("DATABASE_URL")
        .env("CALL2ME_AUTH__DATABASE__URL", &app.database.url)
        .env("CALL2ME_AUTH__SERVER__PUBLIC_URL", &app.url)
        .env("CALL2ME_AUTH__KEYS__ENCRYPTION_KEY", ENCRYPTION_KEY)
        .stdin(fs::File::open(&input).unwrap())
        .output()
        .unwrap();
    let revealed = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    (output.status.code().unwrap(), revealed, String::from_utf8(output.stderr).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn reveal_owner_names_key_workspace_and_owners() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let key = app.create_key(&dana, "prod", "write").await;
    let (code, revealed, log) = reveal_owner(&app, &format!("  {}\n", key.secret));
    assert_eq!(code, 0, "{log}");
    assert_eq!(revealed["key"]["id"], key.id.as_str());
    assert_eq!(revealed["key"]["status"], "active");
    assert_eq!(revealed["workspace"], json!({ "id": dana.workspace_id, "name": "acme" }));
    assert_eq!(revealed["owners"], json!([dana.email]));
    assert!(!revealed.to_string().contains(&key.secret) && !log.contains(&key.secret));
    // It also works for a revoked key.
    let path = format!("/v1/api-keys/{}", key.id);
    app.delete(&path).bearer(&dana.access_token).send().await.expect_status(204);
    let (code, revealed, _) = reveal_owner(&app, &key.secret);
    assert_eq!((code, &revealed["key"]["status"]), (0, &json!("revoked")));
    // An unknown key and a malformed one.
    let environment = "live".parse().unwrap();
    let unknown_key = ApiKeySecret::generate(&environment, |bytes| bytes.fill(7));
    let (code, revealed, _) = reveal_owner(&app, unknown_key.reveal());
    assert_eq!((code, revealed), (1, json!({ "found": false })));
    let (code, _, log) = reveal_owner(&app, "sk_call2me_live_nonsense");
    assert!(code == 2 && log.contains("malformed"), "{log}");
    // The command does not store the key.
    assert!(!dump_database(&app).contains(&key.secret));
}

/// Dumps the whole database with `pg_dump`, as an operator does.
fn dump_database(app: &TestApp) -> String {
    let folders = fs::read_dir("/usr/lib/postgresql").map(|entries| {
        entries.map(|entry| entry.unwrap().path().join("bin/pg_dump")).collect::<Vec<_>>()
    });
    let newest = folders.unwrap_or_default().into_iter().filter(|path| path.exists()).max();
    let program = newest.unwrap_or_else(|| "pg_dump".into());
    let output = Command::new(program).arg("--dbname").arg(&app.database.url).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn database_dump_contains_no_secret() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let mut secrets = vec![
        ("a password", PASSWORD.to_owned()),
        ("an access token", dana.access_token.clone()),
        ("a refresh token", dana.refresh_token.clone()),
        ("the encryption key", ENCRYPTION_KEY.to_owned()),
    ];
    let create = app.post("/v1/api-keys").bearer(&dana.access_token);
    let create =
        create.header("idempotency-key", "the-clients-own-key").json(json!({ "name": "k" }));
    let created = create.send().await.expect_status(201);
    let key = created["key"].as_str().unwrap().to_owned();
    secrets.push(("the random part of a key", key[16..46].to_owned()));
    secrets.push(("the Idempotency-Key of a client", "the-clients-own-key".to_owned()));
    let rotate_path = format!("/v1/api-keys/{}/rotate", created["id"].as_str().unwrap());
    let successor =
        app.post(&rotate_path).bearer(&dana.access_token).header("idempotency-key", "another");
    let successor = successor.json(json!({})).send().await.expect_status(201);
    secrets
        .push(("the successor of the key", successor["key"].as_str().unwrap()[16..46].to_owned()));
    app.set_verified(&dana, true).await;
    let enrollment = app.post("/v1/auth/mfa/totp").bearer(&dana.access_token);
    let enrollment =
        enrollment.json(json!({ "password": PASSWORD })).send().await.expect_status(200);
    secrets.push(("the TOTP secret", enrollment["secret"].as_str().unwrap().to_owned()));
    let client = app.register_client(json!({ "client_name": "App" })).await;
    let mut browser = Browser::signed_in(&app, &dana.email).await;
    secrets.push(("the session cookie", browser.cookies[SESSION_COOKIE].clone()));
    let tokens = app.obtain_tokens(&mut browser, &client, &[]).await;
    for (name, field) in [
        ("an access token of a client", "access_token"),
        ("a refresh token of a client", "refresh_token"),
    ] {
        secrets.push((name, tokens[field].as_str().unwrap().to_owned()));
    }
    // The key is used, logged, sent in a URL by mistake, revoked and rejected.
    app.get("/v1/agents").bearer(&key).send().await.expect_status(200);
    app.get(&format!("/v1/agents/{key}")).bearer(&key).header("user-agent", &key).send().await;
    let key_path = format!("/v1/api-keys/{}", created["id"].as_str().unwrap());
    app.delete(&key_path).bearer(&dana.access_token).send().await.expect_status(204);
    app.get("/v1/agents").bearer(&key).send().await.assert_error(401, "unauthorized");
    eventually("the rejected request is in the log", async || {
        let path = "/v1/audit-log?action=api_key.rejected";
        let log = app.get(path).bearer(&dana.access_token).send().await.expect_status(200);
        (!log["events"].as_array().unwrap().is_empty()).then_some(())
    })
    .await;
    app.database.wait_until_sealed().await;
    let dump = dump_database(&app);
    assert!(dump.contains("COPY public.idempotency_keys") && dump.contains("api_key.rejected"));
    for (name, secret) in secrets {
        assert!(!dump.contains(&secret), "{name}");
        // Nor in hexadecimal, the form of bytea columns in a dump.
        let bytes = HEXLOWER.encode(secret.as_bytes());
        assert!(!dump.contains(&bytes), "{name}, in hexadecimal");
    }
}
