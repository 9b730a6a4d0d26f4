//! /v1/audit-log/export: the log as a download, and its verification outside the service.

use std::process::Stdio;

use futures_util::StreamExt as _;
use serde_json::{Value, json};
use tokio::process::Command;

use crate::fixture::{TestApp, TestClient, TestResponse, TestUser, eventually, python};

async fn export(app: &TestApp, owner: &TestUser, query: &str) -> TestResponse {
    let path = format!("/v1/audit-log/export?{query}");
    let answer = app.get(&path).bearer(&owner.access_token).send().await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer
}

fn parse_lines(answer: &TestResponse) -> Vec<Value> {
    answer.text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Creates a workspace with more events than an export reads in one batch.
async fn workspace_with_long_log(app: &TestApp) -> TestUser {
    let dana = app.register("acme").await;
    let key = app.create_key(&dana, "=cmd|' /C calc'!A0", "write").await;
    app.raise_rate_limits().await;
    let calls = (0..1100).map(|number| {
        let path = if number % 11 == 0 { "/v1/wallet/balance" } else { "/v1/agents" };
        let call = app.get(path).bearer(&key.secret);
        call.header("user-agent", if number % 2 == 0 { "@SUM(1)" } else { "quo\"ted, and more" })
            .send()
    });
    futures_util::stream::iter(calls).buffer_unordered(32).collect::<Vec<_>>().await;
    eventually("all events are written", async || {
        let sql =
            "SELECT count(*) FROM audit_events WHERE action = 'request' AND actor_type = 'api_key'";
        let mut connection = app.database.connect().await;
        let count: i64 = sqlx::query_scalar(sql).fetch_one(&mut connection).await.unwrap();
        (count == 1100).then_some(())
    })
    .await;
    dana
}

#[tokio::test]
async fn export_equals_all_pages_of_list() {
    let app = TestApp::start().await;
    let dana = workspace_with_long_log(&app).await;
    let answer = export(&app, &dana, "status=403").await;
    assert_eq!(answer.header("content-type"), "application/x-ndjson");
    assert!(
        answer.header("content-disposition").starts_with("attachment; filename=\"audit-log-ws_")
    );
    assert_eq!(parse_lines(&answer).len(), 100);
    // Compare all pages of the list with one export.
    let (mut listed, mut cursor) = (Vec::new(), String::new());
    loop {
        let path = format!("/v1/audit-log?limit=100&method=GET&path=x{cursor}");
        let page = app.get(&path).bearer(&dana.access_token).send().await.expect_status(200);
        listed.extend(page["events"].as_array().unwrap().clone());
        let Some(next) = page["next_cursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    let exported = parse_lines(&export(&app, &dana, "method=GET").await);
    // The requests for the pages were logged later; as newer events they come first.
    let from = exported.iter().position(|event| event["id"] == listed[0]["id"]).unwrap();
    assert_eq!(exported[from..], listed[..]);
}

#[tokio::test]
async fn csv_export_contains_no_formulas() {
    let app = TestApp::start().await;
    let dana = workspace_with_long_log(&app).await;
    let answer = export(&app, &dana, "format=csv").await;
    assert_eq!(answer.header("content-type"), "text/csv; charset=utf-8");
    let mut reader = csv::Reader::from_reader(answer.text.as_bytes());
    let header = reader.headers().unwrap().clone();
    let column = |name: &str| header.iter().position(|column| column == name).unwrap();
    let rows: Vec<_> = reader.records().map(Result::unwrap).collect();
    assert!(rows.len() > 1100);
    for row in &rows {
        for cell in row {
            assert!(!cell.starts_with(['=', '+', '-', '@', '\t', '\r']), "{cell}");
        }
    }
    let has = |name: &str, text: &str| rows.iter().any(|row| &row[column(name)] == text);
    assert!(has("actor_name", "'=cmd|' /C calc'!A0"));
    assert!(has("user_agent", "'@SUM(1)") && has("user_agent", "quo\"ted, and more"));
    assert_eq!(answer.text.matches("actor_type").count(), 1, "the header occurs once");
    // A CSV export without events consists of the header only.
    let empty = export(&app, &dana, "format=csv&action=oauth.denied").await.text;
    assert_eq!(empty.lines().count(), 1);
    assert_eq!(export(&app, &dana, "action=oauth.denied").await.text, "");
}

#[tokio::test]
async fn invalid_export_parameters_are_rejected() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    for (query, field) in [
        ("format=xlsx", "format"),
        ("proof=maybe", "proof"),
        ("proof=true&format=csv", "format"),
        ("proof=true&status=200", "status"),
        ("proof=true&since=2026-01-01T00:00:00Z", "since"),
        ("after_sequence=1", "after_sequence"),
        ("proof=true&after_sequence=-1", "after_sequence"),
        ("ip=x", "ip"),
    ] {
        let path = format!("/v1/audit-log/export?{query}");
        let answer = app.get(&path).bearer(&dana.access_token).send().await;
        answer.assert_error(422, "validation_failed").assert_field(field);
    }
    // HTTP/1.0 cannot signal a truncated body: half an export would look complete.
    let mut http_10 = reqwest::Client::new().get(format!("{}/v1/audit-log/export", app.url));
    http_10 = http_10.version(reqwest::Version::HTTP_10).bearer_auth(&dana.access_token);
    let answer = http_10.send().await.unwrap();
    assert_eq!(answer.status(), 400);
}

/// Runs an independent verifier such as a customer might write. It uses the standard library of
/// Python and one package for the signature. Returns its success and its output.
async fn run_verifier(arguments: &[&std::path::Path]) -> (bool, String) {
    let script =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/verify_audit_log.py");
    let mut command = Command::new(python("python"));
    let output = command.arg(script).args(arguments).stdin(Stdio::null()).output().await.unwrap();
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    (output.status.success(), text)
}

#[tokio::test(flavor = "multi_thread")]
async fn independent_verifier_detects_tampering() {
    let app = TestApp::start().await;
    let dana = workspace_with_long_log(&app).await;
    app.database.wait_until_sealed().await;
    let folder = tempfile::tempdir().unwrap();
    let write = async |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let proof = export(&app, &dana, "proof=true").await.text;
    let checkpoint = app.get("/v1/audit-log/checkpoint").bearer(&dana.access_token).send().await;
    let checkpoint_text = checkpoint.text.clone();
    let checkpoint = checkpoint.expect_status(200);
    let keys = app.get("/.well-known/audit-checkpoint-keys.json").send().await.text;
    let keys = write("keys.json", &keys).await;
    // Export again if the first export ended before the checkpoint.
    let checkpoint_sequence = checkpoint["sequence"].as_i64().unwrap();
    let proof = if i64::try_from(proof.lines().count()).unwrap() >= checkpoint_sequence {
        proof
    } else {
        export(&app, &dana, "proof=true").await.text
    };
    assert!(proof.lines().count() > 1100);
    let checkpoint = write("checkpoint.json", &checkpoint_text).await;
    let intact = write("proof.ndjson", &proof).await;
    let (is_valid, text) = run_verifier(&[&intact, &keys, &checkpoint]).await;
    assert!(is_valid, "{text}");

    // Every change, removal, reordering and truncation must be detected.
    let lines: Vec<_> = proof.lines().collect();
    let mut changed = lines.clone();
    let edited_line =
        changed[500].replace("/v1/agents", "/v1/calls").replace("/v1/wallet", "/v1/calls");
    changed[500] = &edited_line;
    let mut removed = lines.clone();
    removed.remove(700);
    let mut swapped = lines.clone();
    swapped.swap(10, 11);
    // A deleted event is exported as null, and no retention record explains it.
    let mut deleted: Value = serde_json::from_str(lines[600]).unwrap();
    deleted["event"] = Value::Null;
    let deleted = deleted.to_string();
    let mut emptied = lines.clone();
    emptied[600] = &deleted;
    let truncated = lines[..usize::try_from(checkpoint_sequence).unwrap() - 1].to_vec();
    for (name, lines, expected) in [
        ("changed", changed, "501"),
        ("removed", removed, "701"),
        ("swapped", swapped, "11"),
        ("emptied", emptied, "number 601 was removed"),
        ("truncated", truncated, "cut off"),
    ] {
        let path = write(name, &(lines.join("\n") + "\n")).await;
        let (is_valid, text) = run_verifier(&[&path, &keys, &checkpoint]).await;
        assert!(!is_valid && text.contains(expected), "{name}: {text}");
    }
    // A forged checkpoint.
    let mut forged: Value = serde_json::from_str(&checkpoint_text).unwrap();
    forged["hash"] = json!("0".repeat(64));
    let forged = write("forged.json", &forged.to_string()).await;
    let (is_valid, text) = run_verifier(&[&intact, &keys, &forged]).await;
    assert!(!is_valid && text.contains("signature"), "{text}");

    // An export that starts after a checkpoint is verified against that checkpoint.
    let query = format!("proof=true&after_sequence={checkpoint_sequence}");
    app.database.wait_until_sealed().await;
    let tail = export(&app, &dana, &query).await.text;
    let first: Value = serde_json::from_str(tail.lines().next().unwrap()).unwrap();
    assert_eq!(first["sequence"], checkpoint_sequence + 1);
    let tail = write("rest.ndjson", &tail).await;
    let (is_valid, text) = run_verifier(&[&tail, &keys, &checkpoint]).await;
    assert!(is_valid, "{text}");
}
