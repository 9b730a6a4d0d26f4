//! /v1/audit-log/export: the log to take along, and to check.

use std::process::Stdio;

use futures_util::StreamExt as _;
use serde_json::{Value, json};
use tokio::process::Command;

use crate::fixture::{Answer, Person, TestApp, eventually, python};

async fn export(app: &TestApp, owner: &Person, query: &str) -> Answer {
    let path = format!("/v1/audit-log/export?{query}");
    let answer = app.get(&path).bearer(&owner.access_token).send().await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer
}

fn lines(answer: &Answer) -> Vec<Value> {
    answer.text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A workspace with more events than an export reads at a time.
async fn long_log(app: &TestApp) -> Person {
    let dana = app.register("acme").await;
    let key = app.mint(&dana, "=cmd|' /C calc'!A0", "write").await;
    app.lift_limits().await;
    let calls = (0..1100).map(|number| {
        let path = if number % 11 == 0 { "/v1/wallet/balance" } else { "/v1/agents" };
        let call = app.get(path).bearer(&key.secret);
        call.header("user-agent", if number % 2 == 0 { "@SUM(1)" } else { "quo\"ted, and more" })
            .send()
    });
    futures_util::stream::iter(calls).buffer_unordered(32).collect::<Vec<_>>().await;
    eventually("all is written", async || {
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
async fn an_export_is_what_the_list_has_to_the_last_event() {
    let app = TestApp::start().await;
    let dana = long_log(&app).await;
    let answer = export(&app, &dana, "status=403").await;
    assert_eq!(answer.header("content-type"), "application/x-ndjson");
    assert!(
        answer.header("content-disposition").starts_with("attachment; filename=\"audit-log-ws_")
    );
    assert_eq!(lines(&answer).len(), 100);
    // Page by page, and all at once.
    let (mut listed, mut cursor) = (Vec::new(), String::new());
    loop {
        let path = format!("/v1/audit-log?limit=100&method=GET&path=x{cursor}");
        let page = app.get(&path).bearer(&dana.access_token).send().await.expect(200);
        listed.extend(page["events"].as_array().unwrap().clone());
        let Some(next) = page["next_cursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    let exported = lines(&export(&app, &dana, "method=GET").await);
    // Behind the first page came the requests for the pages themselves.
    let from = exported.iter().position(|event| event["id"] == listed[0]["id"]).unwrap();
    assert_eq!(exported[from..], listed[..]);
}

#[tokio::test]
async fn csv_opens_in_a_spreadsheet_and_runs_nothing() {
    let app = TestApp::start().await;
    let dana = long_log(&app).await;
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
    assert_eq!(answer.text.matches("actor_type").count(), 1, "one header");
    // Of nothing there is the header alone.
    let empty = export(&app, &dana, "format=csv&action=never.happens").await.text;
    assert_eq!(empty.lines().count(), 1);
    assert_eq!(export(&app, &dana, "action=never.happens").await.text, "");
}

#[tokio::test]
async fn bad_values_are_refused() {
    let app = TestApp::start().await;
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
        answer.refused(422, "validation_failed").blames(field);
    }
    // Half of it would look whole there.
    let mut old = reqwest::Client::new().get(format!("{}/v1/audit-log/export", app.url));
    old = old.version(reqwest::Version::HTTP_10).bearer_auth(&dana.access_token);
    let answer = old.send().await.unwrap();
    assert_eq!(answer.status(), 400);
}

/// Runs the verifier that a customer might write: Python's standard library and one for the signature.
async fn verify(arguments: &[&std::path::Path]) -> (bool, String) {
    let script =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/verify_audit_log.py");
    let mut command = Command::new(python("python"));
    let output = command.arg(script).args(arguments).stdin(Stdio::null()).output().await.unwrap();
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    (output.status.success(), text)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_customer_checks_the_log_with_a_verifier_of_their_own() {
    let app = TestApp::start().await;
    let dana = long_log(&app).await;
    app.database.all_is_sealed().await;
    let folder = tempfile::tempdir().unwrap();
    let write = async |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let proof = export(&app, &dana, "proof=true").await.text;
    let checkpoint = app.get("/v1/audit-log/checkpoint").bearer(&dana.access_token).send().await;
    let checkpoint_text = checkpoint.text.clone();
    let checkpoint = checkpoint.expect(200);
    let jwks = write("jwks.json", &app.get("/.well-known/jwks.json").send().await.text).await;
    // The export may have been made a moment before: up to the checkpoint, it is to be whole.
    let at = checkpoint["sequence"].as_i64().unwrap();
    let proof = if i64::try_from(proof.lines().count()).unwrap() >= at {
        proof
    } else {
        export(&app, &dana, "proof=true").await.text
    };
    assert!(proof.lines().count() > 1100);
    let checkpoint = write("checkpoint.json", &checkpoint_text).await;
    let whole = write("proof.ndjson", &proof).await;
    let (good, text) = verify(&[&whole, &jwks, &checkpoint]).await;
    assert!(good, "{text}");

    // Changed, removed, put in another place, cut off: all of it shows.
    let lines: Vec<_> = proof.lines().collect();
    let mut changed = lines.clone();
    let other = changed[500].replace("/v1/agents", "/v1/calls").replace("/v1/wallet", "/v1/calls");
    changed[500] = &other;
    let mut removed = lines.clone();
    removed.remove(700);
    let mut swapped = lines.clone();
    swapped.swap(10, 11);
    // Taken out of the database, it is null, and no retention explains it.
    let mut gone: Value = serde_json::from_str(lines[600]).unwrap();
    gone["event"] = Value::Null;
    let gone = gone.to_string();
    let mut nulled = lines.clone();
    nulled[600] = &gone;
    let cut = lines[..usize::try_from(at).unwrap() - 1].to_vec();
    for (name, lines, what) in [
        ("changed", changed, "501"),
        ("removed", removed, "701"),
        ("swapped", swapped, "11"),
        ("nulled", nulled, "number 601 was removed"),
        ("cut", cut, "cut off"),
    ] {
        let path = write(name, &(lines.join("\n") + "\n")).await;
        let (good, text) = verify(&[&path, &jwks, &checkpoint]).await;
        assert!(!good && text.contains(what), "{name}: {text}");
    }
    // A checkpoint that somebody wrote.
    let mut forged: Value = serde_json::from_str(&checkpoint_text).unwrap();
    forged["hash"] = json!("0".repeat(64));
    let forged = write("forged.json", &forged.to_string()).await;
    let (good, text) = verify(&[&whole, &jwks, &forged]).await;
    assert!(!good && text.contains("signature"), "{text}");

    // Behind a checkpoint, the rest alone.
    let path = format!("proof=true&after_sequence={at}");
    app.database.all_is_sealed().await;
    let rest = export(&app, &dana, &path).await.text;
    let first: Value = serde_json::from_str(rest.lines().next().unwrap()).unwrap();
    assert_eq!(first["sequence"], at + 1);
    let rest = write("rest.ndjson", &rest).await;
    let (good, text) = verify(&[&rest, &jwks, &checkpoint]).await;
    assert!(good, "{text}");
}
