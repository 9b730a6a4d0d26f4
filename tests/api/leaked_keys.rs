//! A key that leaked: found in a repository, and whose it is. And a dump of the database, in which none is.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use call2me_auth::model::api_key::ApiKeySecret;
use data_encoding::HEXLOWER;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::fixture::{Browser, ENCRYPTION_KEY, PASSWORD, TestApp, eventually, oauth::OAuth as _};

fn git(folder: &Path, arguments: &[&str]) {
    let status = Command::new("git")
        .args(["-c", "user.name=x", "-c", "user.email=x@example.com", "-c", "commit.gpgsign=false"])
        .args(arguments)
        .current_dir(folder)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    assert!(status.unwrap().success(), "{arguments:?}");
}

/// The exit code of the script, and what it prints.
fn scan(folder: &Path, arguments: &[&str]) -> (i32, String) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/find-leaked-keys");
    let output = Command::new(script).arg(folder).args(arguments).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    (output.status.code().unwrap(), text)
}

#[tokio::test]
async fn the_script_finds_keys_in_the_work_tree_and_in_history_and_no_look_alikes() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let [old, new] = [app.mint(&dana, "old", "write").await, app.mint(&dana, "new", "write").await];
    let folder = tempfile::tempdir().unwrap();
    let (folder, write) = (folder.path(), |name: &str, text: &str| {
        fs::write(folder.path().join(name), text).unwrap();
    });
    git(folder, &["init", "-q", "-b", "main"]);
    let mut look_alike = new.secret.clone();
    look_alike.replace_range(20..21, if &look_alike[20..21] == "x" { "y" } else { "x" });
    write(
        "README.md",
        &format!("use {look_alike}, or sk_call2me_live_short, or x{}\n", new.secret),
    );
    git(folder, &["add", "."]);
    git(folder, &["commit", "-q", "-m", "one"]);
    assert_eq!(scan(folder, &[]), (0, String::new()));
    // Committed and taken out again, on a branch that was merged.
    git(folder, &["checkout", "-q", "-b", "side"]);
    write("config.json", &format!("{}{{\"key\":\"{}\"}}", " ".repeat(3 << 20), old.secret));
    git(folder, &["add", "."]);
    git(folder, &["commit", "-q", "-m", "two"]);
    write("config.json", "{}");
    git(folder, &["commit", "-q", "-a", "-m", "three"]);
    git(folder, &["checkout", "-q", "main"]);
    git(folder, &["merge", "-q", "--no-ff", "-m", "four", "side"]);
    let (code, text) = scan(folder, &[]);
    let shown = |secret: &str| format!("sk_call2me_live_{}…{}", &secret[16..20], &secret[42..46]);
    assert_eq!((code, text.lines().count()), (1, 1), "{text}");
    assert!(text.starts_with(&shown(&old.secret)) && text.contains(" config.json"), "{text}");
    assert_eq!(scan(folder, &["--work-tree-only"]), (0, String::new()));
    // Never committed.
    write(".env", &format!("A=1\nKEY='{}'\n", new.secret));
    let (code, text) = scan(folder, &["--work-tree-only"]);
    assert_eq!((code, text), (1, format!("{}  .env:2\n", shown(&new.secret))));
    let (code, text) = scan(folder, &[]);
    assert_eq!((code, text.lines().count()), (1, 2), "{text}");
    assert!(!text.contains(&new.secret) && !text.contains(&old.secret), "redacted");
    // Revoked, and accepted by digest.
    let digest = HEXLOWER.encode(&Sha256::digest(old.secret.as_bytes()));
    write(".leaked-keys-ignored", &format!("{digest}  revoked on Friday\n"));
    let (code, text) = scan(folder, &[]);
    assert_eq!((code, text), (1, format!("{}  .env:2\n", shown(&new.secret))));
}

#[test]
fn script_finds_no_key_in_these_documents() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    git(folder, &["init", "-q"]);
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    for entry in fs::read_dir(project).unwrap().chain(fs::read_dir(project.join("docs")).unwrap()) {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "md") {
            fs::copy(&path, folder.join(path.file_name().unwrap())).unwrap();
        }
    }
    assert!(folder.join("secret-scanning.md").exists());
    assert_eq!(scan(folder, &["--work-tree-only"]), (0, String::new()));
}

#[test]
fn the_example_in_the_document_is_well_formed() {
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/secret-scanning.md");
    let text = fs::read_to_string(document).unwrap();
    let example = text.split('`').find(|part| part.starts_with("sk_call2me_live_")).unwrap();
    ApiKeySecret::parse(example, &"live".parse().unwrap()).unwrap();
}

/// `call2me-auth admin keys reveal-owner`: the exit code, what it prints, and what it logs.
fn reveal(app: &TestApp, found: &str) -> (i32, Value, String) {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("found");
    fs::write(&input, found).unwrap();
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
    let answer = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    (output.status.code().unwrap(), answer, String::from_utf8(output.stderr).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_responder_is_told_whose_a_key_is() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let key = app.mint(&dana, "prod", "write").await;
    let (code, answer, log) = reveal(&app, &format!("  {}\n", key.secret));
    assert_eq!(code, 0, "{log}");
    assert_eq!(answer["key"]["id"], key.id.as_str());
    assert_eq!(answer["key"]["status"], "active");
    assert_eq!(answer["workspace"], json!({ "id": dana.workspace_id, "name": "acme" }));
    assert_eq!(answer["owners"], json!([dana.email]));
    assert!(!answer.to_string().contains(&key.secret) && !log.contains(&key.secret));
    // Also once it is revoked.
    let path = format!("/v1/api-keys/{}", key.id);
    app.delete(&path).bearer(&dana.access_token).send().await.expect(204);
    let (code, answer, _) = reveal(&app, &key.secret);
    assert_eq!((code, &answer["key"]["status"]), (0, &json!("revoked")));
    // Nobody's, and no key.
    let environment = "live".parse().unwrap();
    let nobodys = ApiKeySecret::generate(&environment, |bytes| bytes.fill(7));
    let (code, answer, _) = reveal(&app, nobodys.reveal());
    assert_eq!((code, answer), (1, json!({ "found": false })));
    let (code, _, log) = reveal(&app, "sk_call2me_live_nonsense");
    assert!(code == 2 && log.contains("malformed"), "{log}");
    // It is nowhere in the database.
    assert!(!dump(&app).contains(&key.secret));
}

/// A dump of the whole database, as an operator makes one.
fn dump(app: &TestApp) -> String {
    let folders = fs::read_dir("/usr/lib/postgresql").map(|entries| {
        entries.map(|entry| entry.unwrap().path().join("bin/pg_dump")).collect::<Vec<_>>()
    });
    let found = folders.unwrap_or_default().into_iter().filter(|path| path.exists()).max();
    let program = found.unwrap_or_else(|| "pg_dump".into());
    let output = Command::new(program).arg("--dbname").arg(&app.database.url).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_of_the_database_holds_no_secret() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let mut secrets = vec![
        ("a password", PASSWORD.to_owned()),
        ("an access token", dana.access_token.clone()),
        ("a refresh token", dana.refresh_token.clone()),
        ("the deployment's key", ENCRYPTION_KEY.to_owned()),
    ];
    let mint = app.post("/v1/api-keys").bearer(&dana.access_token);
    let mint = mint.header("idempotency-key", "the-clients-own-key").json(json!({ "name": "k" }));
    let minted = mint.send().await.expect(201);
    let key = minted["key"].as_str().unwrap().to_owned();
    secrets.push(("the random part of a key", key[16..46].to_owned()));
    secrets.push(("a client's Idempotency-Key", "the-clients-own-key".to_owned()));
    let rotate = format!("/v1/api-keys/{}/rotate", minted["id"].as_str().unwrap());
    let rotated = app.post(&rotate).bearer(&dana.access_token).header("idempotency-key", "another");
    let rotated = rotated.json(json!({})).send().await.expect(201);
    secrets.push(("a successor", rotated["key"].as_str().unwrap()[16..46].to_owned()));
    let factor = app.post("/v1/auth/mfa/totp").bearer(&dana.access_token);
    let factor = factor.json(json!({ "password": PASSWORD })).send().await.expect(200);
    secrets.push(("a second factor", factor["secret"].as_str().unwrap().to_owned()));
    let client = app.oauth_client(json!({ "client_name": "App" })).await;
    let mut browser = Browser::of(&app, &dana.email).await;
    let tokens = app.tokens_by(&mut browser, &client, &[]).await;
    for (what, field) in
        [("an app's token", "access_token"), ("an app's refresh token", "refresh_token")]
    {
        secrets.push((what, tokens[field].as_str().unwrap().to_owned()));
    }
    // In use, in the log, in a URL where it does not belong, and refused.
    app.get("/v1/agents").bearer(&key).send().await.expect(200);
    app.get(&format!("/v1/agents/{key}")).bearer(&key).header("user-agent", &key).send().await;
    let revoke = format!("/v1/api-keys/{}", minted["id"].as_str().unwrap());
    app.delete(&revoke).bearer(&dana.access_token).send().await.expect(204);
    app.get("/v1/agents").bearer(&key).send().await.refused(401, "unauthorized");
    eventually("all of it is in the log", async || {
        let path = "/v1/audit-log?action=api_key.rejected";
        let found = app.get(path).bearer(&dana.access_token).send().await.expect(200);
        (!found["events"].as_array().unwrap().is_empty()).then_some(())
    })
    .await;
    app.database.all_is_sealed().await;
    let dump = dump(&app);
    assert!(dump.contains("COPY public.kept_answers") && dump.contains("api_key.rejected"));
    for (what, secret) in secrets {
        assert!(!dump.contains(&secret), "{what}");
        // Nor as bytes.
        let bytes = HEXLOWER.encode(secret.as_bytes());
        assert!(!dump.contains(&bytes), "{what}, as bytes");
    }
}
