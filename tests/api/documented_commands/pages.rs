//! The documents whose commands need a service with the demo workspace, or none.

use std::{fs, os::unix::fs::symlink, path::Path, process::Stdio};

use regex::Regex;
use serde_json::Value;
use tokio::process::{Child, Command};

use super::{
    demo_service::{DOCUMENTED_URL, DemoService},
    page::Page,
    shell::{Shell, remove_foreign_variables},
};
use crate::{
    fixture::{ENCRYPTION_KEY, cluster, eventually},
    leaked_keys::run_git,
};

/// A running `./scripts/dev`, with its data and its output in the folder of a shell.
async fn start_dev(shell: &mut Shell) -> Child {
    let welcome = shell.path().join("welcome.txt");
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", env!("CARGO_BIN_EXE_call2me-auth"), "dev", "--port", "0"]);
    remove_foreign_variables(&mut command);
    command.current_dir(shell.path()).kill_on_drop(true).stdin(Stdio::null());
    command.stdout(fs::File::create(&welcome).unwrap()).stderr(Stdio::null());
    let process = command.spawn().unwrap();
    let text = eventually("dev is running", async || {
        fs::read_to_string(&welcome).ok().filter(|text| text.contains("Press Ctrl-C"))
    })
    .await;
    let url = text.lines().find_map(|line| line.strip_prefix("call2me-auth is running at"));
    shell.replace(DOCUMENTED_URL, url.unwrap().trim());
    process
}

/// Returns the names of the values that `dev` writes for its demo workspace.
fn credential_names(shell: &Shell) -> Vec<String> {
    let text = fs::read_to_string(shell.path().join(".call2me/demo.toml")).unwrap();
    text.parse::<toml::Table>().unwrap().keys().cloned().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn readme_commands_work() {
    let mut shell = Shell::start(&[]).await;
    let mut dev = start_dev(&mut shell).await;
    Page::read("README.md").run(&mut shell).await;
    let demo = DemoService::start(&[]).await;
    assert_eq!(credential_names(&shell), credential_names(&demo.shell));
    shell.run(&format!("kill -INT {}", dev.id().unwrap())).await;
    assert!(dev.wait().await.unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn contributing_commands_work() {
    let mut demo = DemoService::start(&[]).await;
    let mut page = Page::read("CONTRIBUTING.md");
    let [form, examples] = [page.take("text"), page.take("text")];
    assert!(form.starts_with("area: imperative, up to 72 characters\n\n"));
    check_commit_messages(&examples);
    page.run(&mut demo.shell).await;
}

/// Checks that `./scripts/commit-messages` accepts these subjects.
fn check_commit_messages(subjects: &str) {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("scripts")).unwrap();
    let script = folder.path().join("scripts/commit-messages");
    let original = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/commit-messages");
    symlink(original, &script).unwrap();
    run_git(folder.path(), &["init", "-q", "-b", "main"]);
    for subject in subjects.lines() {
        let message = format!("{subject}\n\nA reason.");
        run_git(folder.path(), &["commit", "-q", "--allow-empty", "-m", &message]);
        let output = std::process::Command::new(&script).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn integrate_commands_work() {
    let mut demo = DemoService::start(&[("rotation.quiet_seconds", "3")]).await;
    Page::read("docs/integrate.md").run(&mut demo.shell).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connect_commands_work() {
    let mut demo = DemoService::start(&[]).await;
    let mut page = Page::read("docs/connect.md");
    let metadata: Value = serde_json::from_str(&page.take("json")).unwrap();
    page.run(&mut demo.shell).await;
    // The metadata of the other resource server fit the configuration and the service.
    let resource = demo.shell.variable("CALL2ME_AUTH__OAUTH__RESOURCES").await;
    assert_eq!(metadata["resource"], *resource);
    let path = "/.well-known/oauth-authorization-server";
    let server = demo.app.get(path).send().await.expect_status(200);
    let offered = server["scopes_supported"].as_array().unwrap();
    assert!(metadata["scopes_supported"].as_array().unwrap().iter().all(|it| offered.contains(it)));
    assert!(server["issuer"].is_string() && metadata["authorization_servers"][0].is_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn audit_log_commands_work() {
    let mut demo = DemoService::start(&[]).await;
    Page::read("docs/audit-log.md").run(&mut demo.shell).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn secret_scanning_commands_work() {
    let mut demo = DemoService::start(&[]).await;
    let mut page = Page::read("docs/secret-scanning.md");
    check_scanner_rule(&page.take("toml"));
    // A repository with a leaked key, and the file with the key that a scanner found.
    let leaked = demo.shell.path().join("src/booking-server");
    fs::create_dir_all(&leaked).unwrap();
    let key = demo.shell.run("sed -n 's/^api_key = \"\\(.*\\)\"/\\1/p' .call2me/demo.toml").await;
    fs::write(leaked.join(".env"), format!("API_KEY={key}")).unwrap();
    fs::write(demo.shell.path().join("found.txt"), key).unwrap();
    run_git(&leaked, &["init", "-q"]);
    run_git(&leaked, &["add", ".env"]);
    run_git(&leaked, &["commit", "-q", "-m", "Add a key"]);
    demo.shell.run("git init -q; git add found.txt").await;
    page.run(&mut demo.shell).await;
}

/// Checks a rule of gitleaks with keys and look-alikes. Its regular expressions are those of RE2,
/// as in Rust.
fn check_scanner_rule(rule: &str) {
    let rule: toml::Table = rule.parse().unwrap();
    let rule = rule["rules"][0].as_table().unwrap();
    let regex = Regex::new(rule["regex"].as_str().unwrap()).unwrap();
    let key = "sk_call2me_live_0000000000000000000000000000002C8GjS";
    let keyword = rule["keywords"][0].as_str().unwrap();
    assert!(regex.is_match(&format!("API_KEY={key}")) && key.contains(keyword));
    assert!(!regex.is_match(&key[1..]) && !regex.is_match(&format!("{key}0")));
    assert!(rule["id"].is_str() && rule["description"].is_str());
}

#[tokio::test(flavor = "multi_thread")]
async fn configuration_commands_work() {
    let mut shell = Shell::start(&[
        ("APP_PASSWORD", "secret"),
        ("DATABASE_URL", "postgres://db.example.com/call2me"),
        ("CALL2ME_AUTH__SERVER__PUBLIC_URL", "https://auth.example.com"),
        ("CALL2ME_AUTH__KEYS__ENCRYPTION_KEY", ENCRYPTION_KEY),
    ])
    .await;
    Page::read("docs/configuration.md").run(&mut shell).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn troubleshooting_commands_work() {
    let database = cluster().database().await;
    let mut shell = Shell::start(&[("OWNER_URL", &database.url)]).await;
    Page::read("docs/troubleshooting.md").run(&mut shell).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn benchmarks_commands_work() {
    Page::read("docs/benchmarks.md").run(&mut Shell::start(&[]).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_commands_work() {
    Page::read("docs/faults.md").run(&mut Shell::start(&[]).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn guarantees_commands_work() {
    Page::read("docs/guarantees.md").run(&mut Shell::start(&[]).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn architecture_commands_work() {
    Page::read("docs/architecture.md").run(&mut Shell::start(&[]).await).await;
}
