//! The database is restored from a backup. Nothing that was revoked after the backup works again.

use std::{fs, path::PathBuf};

use serde_json::Value;

use super::{
    fixture::{Node, Server, acquire_test_lock, run_admin_command},
    scenarios::{Backup, Nodes, Scale, run_with_restore},
};
use crate::fixture::{Key, TestResponse, eventually, oauth::decode_claims};

#[tokio::test(flavor = "multi_thread")]
async fn restored_dump_revives_nothing_on_running_nodes() {
    let _turn = acquire_test_lock().await;
    run_with_restore(Backup::Dump, Nodes::Running, Scale::Test).await.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn base_backup_revives_nothing_on_running_nodes() {
    let _turn = acquire_test_lock().await;
    run_with_restore(Backup::BaseOnSameTimeline, Nodes::Running, Scale::Test).await.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn base_backup_with_recovery_revives_nothing() {
    let _turn = acquire_test_lock().await;
    run_with_restore(Backup::BaseOnNewTimeline, Nodes::Restarted, Scale::Test).await.assert_clean();
}

/// Runs `call2me-auth admin …` with the settings of a node and the URL of the owner.
async fn admin(server: &Server, arguments: &[&str]) -> Result<Value, String> {
    let owner = server.owner_url();
    run_admin_command(&server.node_url(), arguments, &[("database.owner_url", &owner)]).await
}

/// Writes a file into the folder of the test.
fn write(folder: &tempfile::TempDir, name: &str, text: &str) -> PathBuf {
    let path = folder.path().join(name);
    fs::write(&path, text).unwrap();
    path
}

/// An export of the audit log and a checkpoint from after the backup are all that the operator has.
#[tokio::test(flavor = "multi_thread")]
async fn audit_export_and_checkpoint_finish_a_restore() {
    let _turn = acquire_test_lock().await;
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start_primary().await;
    let node = Node::start("a", &server.node_url(), &[("cache.lease_seconds", "2")]).await;
    let owner = node.register("acme").await;
    let keys = [
        node.create_key(&owner, "revoked").await,
        node.create_key(&owner, "disabled").await,
        node.create_key(&owner, "good").await,
    ];
    let backup = server.dump().await;
    node.revoke_key(&owner, &keys[0]).await;
    admin(&server, &["keys", "disable", &keys[1].id]).await.unwrap();
    let checkpoint = eventually_sealed(&node, &server, &owner).await;
    let checkpoint = write(&folder, "checkpoint.json", &checkpoint);
    let export = node.request("GET", "/v1/audit-log/export").bearer(&owner).send().await;
    let export = write(&folder, "export.ndjson", &export.text);
    let claims = decode_claims(&owner);
    let workspace = claims["workspace_id"].as_str().unwrap();

    server.restore_dump(&backup).await;
    node.wait_for_log("call2me-auth admin restore finish").await;
    assert_eq!(use_key(&node, &keys[2]).await.status, 503);
    let verified = ["audit", "verify", "--checkpoint", checkpoint.to_str().unwrap()];
    let cut_off = admin(&server, &verified).await.unwrap_err();
    assert!(cut_off.contains("cut off"), "{cut_off}");
    let status = admin(&server, &["restore", "status"]).await.unwrap();
    assert_eq!(status["in_quarantine"], true);
    let checked = admin(&server, &["backup", "check"]).await.unwrap_err();
    assert!(checked.contains("admin restore finish"), "{checked}");

    let checkpoint = checkpoint.to_str().unwrap();
    let moved = ["restore", "finish", "--nothing-was-lost", "--checkpoint", checkpoint];
    let refused = admin(&server, &moved).await.unwrap_err();
    assert!(refused.contains("not moved but restored"), "{refused}");
    let revocations = format!("{workspace}={}", export.display());
    let finish = ["restore", "finish", "--revocations", &revocations, "--checkpoint", checkpoint];
    let report = admin(&server, &finish).await.unwrap();
    assert_eq!(report["revoked"]["api_keys"], 1, "{report:#}");
    assert_eq!(report["revoked"]["disabled_api_keys"], 1, "{report:#}");
    assert!(report["checkpoints"][0]["missing_events"].as_i64().unwrap() > 0, "{report:#}");
    wait_until_served(&node, &keys[2]).await;
    for key in &keys[..2] {
        use_key(&node, key).await.assert_error(401, "unauthorized");
    }
}

async fn use_key(node: &Node, key: &Key) -> TestResponse {
    node.request("GET", "/v1/agents").bearer(&key.secret).send().await
}

async fn wait_until_served(node: &Node, key: &Key) {
    eventually("the node serves", async || (use_key(node, key).await.status == 200).then_some(()))
        .await;
}

/// Returns a checkpoint that covers all events so far.
async fn eventually_sealed(node: &Node, server: &Server, owner: &str) -> String {
    let mut sql = server.connect().await;
    while sqlx::query_scalar("SELECT EXISTS (SELECT FROM audit_outbox)")
        .fetch_one(&mut sql)
        .await
        .unwrap()
    {
        tokio::task::yield_now().await;
    }
    node.request("GET", "/v1/audit-log/checkpoint").bearer(owner).send().await.text
}
