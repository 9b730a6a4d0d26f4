//! Third-party clients: curl, the official Python SDK, and schemathesis with the OpenAPI document.

use std::{path::Path, process::Stdio};

use tokio::process::Command;

use crate::fixture::{TestApp, python};

async fn assert_success(mut command: Command) {
    let output = command.stdin(Stdio::null()).output().await.unwrap();
    let [out, err] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    assert!(output.status.success(), "{out}\n{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn official_sdk_works_unchanged() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let admin = app.create_key(&dana, "sdk", "admin").await;
    let reader = app.create_key(&dana, "sdk-reader", "read-only").await;
    let mut command = Command::new(python("python"));
    command
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/drive_sdk.py"))
        .arg(&app.url)
        .env("ADMIN_KEY", &admin.secret)
        .env("READER_KEY", &reader.secret);
    assert_success(command).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn readme_walkthrough_succeeds() {
    let app = TestApp::start().await;
    let mut command =
        Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/walkthrough"));
    command.arg(&app.url);
    assert_success(command).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn readme_rotation_walkthrough_succeeds() {
    let app = TestApp::start_with(&[("rotation.quiet_seconds", "2")]).await;
    // The test clock follows real time.
    let clock = app.clock.clone();
    let ticking = tokio::spawn(async move {
        loop {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            clock.advance(std::time::Duration::from_millis(100));
        }
    });
    let mut command =
        Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/walkthrough-rotation"));
    command.arg(&app.url);
    assert_success(command).await;
    ticking.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn schemathesis_finds_no_5xx_or_undocumented_response() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let key = app.create_key(&dana, "fuzz", "admin").await;
    let mut command = Command::new(python("schemathesis"));
    command
        .current_dir(env!("CARGO_TARGET_TMPDIR"))
        .arg("run")
        .arg(format!("{}/openapi.json", app.url))
        .args(["--header", &format!("Authorization: Bearer {}", key.secret)])
        .args(["--checks", "not_a_server_error,status_code_conformance,content_type_conformance"])
        .args(["--checks", "response_schema_conformance,response_headers_conformance"])
        .args(["--phases", "examples,coverage,fuzzing", "--max-examples", "25", "--seed", "1"])
        .args(["--generation-database", "none", "--workers", "1"])
        // This response never ends.
        .args(["--exclude-path", "/v1/audit-log/stream"])
        // These operations end the session or the key that schemathesis uses.
        .args(["--exclude-path", "/v1/auth/logout", "--exclude-operation-id", "api_keys_revoke"]);
    assert_success(command).await;
}
