//! The quarantine of a restored database. `tests/faults/restore.rs` restores real backups.

use call2me_auth::{
    auth::restore::{self, RestoreKind, RestoreOptions, RestoreReport},
    model::restore::RevocationList,
};
use serde_json::json;
use sqlx::{Executor as _, PgConnection, error::DatabaseError};

use crate::fixture::{PASSWORD, TestApp, TestUser, eventually};

/// The identity differs from the recorded one, as after a dump was restored.
const CHANGE_IDENTITY: &str = "UPDATE database_state SET generation_table = 1";

/// Does what `admin restore finish` does, with the lines of a file of revocations.
async fn finish(app: &TestApp, lines: &str) -> Result<RestoreReport, String> {
    let mut list = RevocationList::default();
    list.add_file(lines, None).unwrap();
    finish_with(app, RestoreKind::Backup(Box::new(list)), false).await
}

async fn finish_with(
    app: &TestApp,
    kind: RestoreKind,
    dry_run: bool,
) -> Result<RestoreReport, String> {
    let (checkpoints, keep_oauth_grants) = (Vec::new(), false);
    let options = RestoreOptions { kind, checkpoints, keep_oauth_grants, dry_run };
    restore::finish(&app.database.url, &app.app.env, options).await
}

async fn wait_for_status(app: &TestApp, key: &str, status: u16) {
    eventually("the status of the key", async || {
        let response = app.get("/v1/agents").bearer(key).send().await;
        (response.status.as_u16() == status).then_some(())
    })
    .await;
}

/// Signs in and refreshes. Both must be refused as unavailable.
async fn expect_sign_in_unavailable(app: &TestApp, user: &TestUser) {
    let body = json!({ "email": user.email, "password": PASSWORD });
    app.post("/v1/auth/login").json(body).send().await.assert_error(503, "unavailable");
    let body = json!({ "refresh_token": user.refresh_token });
    app.post("/v1/auth/refresh").json(body).send().await.assert_error(503, "unavailable");
}

async fn quarantine_reason(sql: &mut PgConnection) -> Option<String> {
    sqlx::query_scalar("SELECT quarantine_reason()").fetch_one(sql).await.unwrap()
}

#[tokio::test]
async fn restored_database_is_in_quarantine_until_restore_is_finished() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let member = app.add_member(&dana, "admin").await;
    let (good, revoked) = (
        app.create_key(&dana, "good", "write").await,
        app.create_key(&dana, "revoked", "write").await,
    );
    let mut sql = app.database.connect().await;
    sql.execute(CHANGE_IDENTITY).await.unwrap();
    wait_for_status(&app, &good.secret, 503).await;
    expect_sign_in_unavailable(&app, &dana).await;
    let ready = app.get("/readyz").send().await;
    assert_eq!(ready.status, 503);
    assert!(ready.text.contains("call2me-auth admin restore finish"), "{}", ready.text);
    let health = app.get("/health").send().await.expect_status(503);
    assert_eq!(
        (&health["checks"]["restore"], &health["checks"]["schema"]),
        (&json!("down"), &json!("up"))
    );

    // A node that starts is in quarantine, too.
    let other = app.another_node().await;
    other.get("/v1/agents").bearer(&good.secret).send().await.assert_error(503, "unavailable");

    let lines = format!("{}\n{} {}", revoked.id, dana.workspace_id, member.user_id);
    let list = || {
        let mut list = RevocationList::default();
        list.add_file(&lines, None).unwrap();
        RestoreKind::Backup(Box::new(list))
    };
    let planned = finish_with(&app, list(), true).await.unwrap();
    assert!(planned.dry_run && quarantine_reason(&mut sql).await.is_some());
    let report = finish(&app, &lines).await.unwrap();
    assert_eq!((report.revoked.api_keys, report.revoked.members), (1, 1), "{report:?}");
    assert_eq!(report.sessions, planned.sessions, "{report:?}");
    assert!(report.quarantine.contains("restored from a dump"), "{report:?}");
    for node in [&app, &other] {
        wait_for_status(node, &good.secret, 200).await;
        node.get("/v1/agents")
            .bearer(&revoked.secret)
            .send()
            .await
            .assert_error(401, "unauthorized");
        let ended = node.get("/v1/auth/me").bearer(&dana.access_token).send().await;
        ended.assert_error(401, "unauthorized");
    }
    let body = json!({ "refresh_token": dana.refresh_token });
    let refreshed = app.post("/v1/auth/refresh").json(body).send().await;
    refreshed.assert_error(401, "invalid_refresh_token");
    let dana = app.sign_in_again(&dana).await;
    for (action, count) in
        [("api_key.revoked", 1), ("member.removed", 1), ("workspace.restored", 1)]
    {
        app.wait_for_event_count(&dana.access_token, &format!("action={action}"), count).await;
    }
    let repeated = finish(&app, &lines).await.unwrap_err();
    assert!(repeated.contains("not in quarantine"), "{repeated}");
}

#[tokio::test]
async fn moved_database_keeps_its_sessions() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let mut sql = app.database.connect().await;
    sql.execute(CHANGE_IDENTITY).await.unwrap();
    wait_for_status(&app, &dana.access_token, 503).await;
    let report = finish_with(&app, RestoreKind::Move, false).await.unwrap();
    assert_eq!(report.sessions, 0);
    // In another cluster a new transaction could have the id of one of the dump.
    let batches = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM invalidation_batches");
    assert_eq!(batches.fetch_one(&mut sql).await.unwrap(), 0);
    wait_for_status(&app, &dana.access_token, 200).await;
}

/// The quarantine is over before the node notices it, as for a node that is cut off meanwhile.
#[tokio::test]
async fn ended_session_is_rejected_by_node_that_missed_the_quarantine() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    app.get("/v1/auth/me").bearer(&dana.access_token).send().await.expect_status(200);
    let mut sql = app.database.connect().await;
    sql.execute(
        "UPDATE database_state
         SET quarantined_at = clock_timestamp(), quarantine_reason = 'a base backup'",
    )
    .await
    .unwrap();
    finish(&app, "").await.unwrap();
    wait_for_status(&app, &dana.access_token, 401).await;
}

/// In the same history, nothing but a restore explains that a generation is lost.
#[tokio::test]
async fn node_that_knows_lost_generation_begins_quarantine() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let key = app.create_key(&dana, "revoked", "write").await;
    let path = format!("/v1/api-keys/{}", key.id);
    app.delete(&path).bearer(&dana.access_token).send().await.expect_status(204);
    let mut sql = app.database.connect().await;
    sql.execute(
        "BEGIN;
         DELETE FROM invalidation_batches;
         UPDATE invalidation_generation SET generation = generation - 1, token = gen_random_uuid();
         COMMIT",
    )
    .await
    .unwrap();
    eventually("the quarantine", async || {
        quarantine_reason(&mut app.database.connect().await).await
    })
    .await;
    wait_for_status(&app, &dana.access_token, 503).await;
    expect_sign_in_unavailable(&app, &dana).await;
    finish(&app, &key.id).await.unwrap();
}

/// In another history it may be a failover. Then the loss of a minute is no failover.
#[tokio::test]
async fn lost_minute_is_no_failover() {
    let app = TestApp::start().await;
    app.register("acme").await;
    let mut sql = app.database.connect().await;
    // Without the MAC.
    let function = "CREATE FUNCTION require_fresh_decision(text, bytea, bigint, bytea, bytea)
                    RETURNS void LANGUAGE sql AS ''";
    sql.execute("DROP FUNCTION require_fresh_decision").await.unwrap();
    sql.execute(function).await.unwrap();
    let report = "SELECT report_lost_generation(id, registration, renewals + $1,
                                                interval '2 seconds', false, 0, '', '')
                  FROM nodes";
    for (lost, is_in_quarantine) in [(0_i64, false), (20, false), (40, true)] {
        let reported = sqlx::query_scalar::<_, bool>(report).bind(lost).fetch_one(&mut sql).await;
        assert_eq!(reported.unwrap(), is_in_quarantine, "{lost}");
    }
}

#[tokio::test]
async fn injected_sql_cannot_lift_quarantine() {
    let app = TestApp::start().await;
    let mut sql = app.database.connect().await;
    sql.execute(CHANGE_IDENTITY).await.unwrap();
    sql.execute("SET ROLE call2me_auth_app").await.unwrap();
    for statement in [
        "UPDATE database_state SET system_identifier = NULL",
        "DELETE FROM database_state",
        "TRUNCATE database_state",
        "SELECT * FROM database_state",
        "SELECT claim_database()",
        "SELECT report_lost_generation(gen_random_uuid(), 1, 100, '1 s', true, 0, '', '')",
        "CREATE OR REPLACE FUNCTION quarantine_reason() RETURNS text LANGUAGE sql AS 'SELECT NULL'",
    ] {
        let error = sql.execute(statement).await.unwrap_err();
        let code = error.as_database_error().and_then(DatabaseError::code).unwrap();
        assert_eq!(code, "42501", "{statement}: {error}");
    }
    assert!(quarantine_reason(&mut sql).await.is_some());
}
