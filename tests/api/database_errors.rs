//! Errors of PostgreSQL that a request does not cause, such as missing rights and tables during a
//! restore: the response is 503, never 401, and no acknowledged request loses its audit event.

use std::time::Duration;

use call2me_auth::{cache_invalidation::InvalidationSink as _, env::Clock as _};
use serde_json::json;
use sqlx::{AssertSqlSafe, Executor};

use crate::fixture::{
    Browser, Database, Key, PASSWORD, TestApp, TestRequest, TestUser, eventually,
    oauth::OAuthExt as _,
};

/// SQLSTATEs that report the state of the server or the schema.
const SERVER_STATES: [&str; 18] = [
    "0A000", "25006", "26000", "3F000", "42501", "42P01", "42703", "42883", "53100", "55000",
    "57014", "58030", "58P01", "72000", "F0000", "XX000", "XX001", "XX002",
];

/// Runs statements as the owner of the tables.
async fn execute(database: &Database, sql: &str) {
    let mut connection = database.connect().await;
    connection.execute(sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))).await.unwrap();
}

/// Makes every insertion into a table for which `condition` holds fail with an SQLSTATE.
async fn fail_insertions(database: &Database, table: &str, sqlstate: &str, condition: &str) {
    let sql = format!(
        "CREATE OR REPLACE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql
             AS $$ BEGIN RAISE EXCEPTION 'as a test' USING ERRCODE = '{sqlstate}'; END $$;
         CREATE OR REPLACE TRIGGER fail BEFORE INSERT ON {table}
             FOR EACH ROW WHEN ({condition}) EXECUTE FUNCTION fail();"
    );
    execute(database, &sql).await;
}

async fn stop_failures(database: &Database, table: &str) {
    execute(database, &format!("DROP TRIGGER fail ON {table}")).await;
}

async fn app_with_key() -> (TestApp, TestUser, Key) {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let key = app.create_key(&dana, "prod", "write").await;
    (app, dana, key)
}

fn create_agent(app: &TestApp, key: &Key) -> TestRequest {
    app.post("/v1/agents").bearer(&key.secret).json(json!({ "agent_name": "Front desk" }))
}

/// Sends a request whose event has this path. It needs no PostgreSQL query, because the key is
/// cached.
async fn verify(app: &TestApp, key: &Key, path: &str) {
    let answer = app.get(&format!("/v1/auth/verify{path}")).bearer(&key.secret).send().await;
    answer.expect_status(200);
}

async fn count_events(database: &Database, path: &str) -> i64 {
    let count = sqlx::query_scalar("SELECT count(*) FROM audit_events WHERE path = $1").bind(path);
    count.fetch_one(&mut database.connect().await).await.unwrap()
}

/// Waits until the audit writer has failed with this SQLSTATE.
async fn wait_for_write_failure(app: &TestApp, sqlstate: &str) {
    let has_failed =
        async || app.app.audit.counts().failures().contains_key(sqlstate).then_some(());
    eventually(&format!("the audit writer fails with {sqlstate}"), has_failed).await;
}

fn lost_events(app: &TestApp) -> u64 {
    app.app.audit.counts().lost.load(std::sync::atomic::Ordering::SeqCst)
}

#[tokio::test]
async fn state_of_server_is_503_and_bug_is_500() {
    let (app, _dana, key) = app_with_key().await;
    for sqlstate in SERVER_STATES {
        fail_insertions(&app.database, "documents", sqlstate, "true").await;
        let answer = create_agent(&app, &key).send().await;
        answer.assert_error(503, "unavailable");
        assert!(answer.header_number("retry-after") >= 1, "{sqlstate}");
    }
    for sqlstate in ["21000", "22012", "23514", "44000", "P0001"] {
        fail_insertions(&app.database, "documents", sqlstate, "true").await;
        create_agent(&app, &key).send().await.assert_error(500, "internal");
    }
    stop_failures(&app.database, "documents").await;
    create_agent(&app, &key).send().await.expect_status(201);
}

/// The first statement of each pair removes something that requests need; the second restores it.
/// The connections of the pool work again afterwards.
#[tokio::test]
async fn missing_rights_and_objects_are_503_until_they_are_restored() {
    let (app, _dana, key) = app_with_key().await;
    for (remove, restore) in [
        (
            "REVOKE INSERT ON documents FROM call2me_auth_app",
            "GRANT INSERT ON documents TO call2me_auth_app",
        ),
        ("ALTER TABLE documents RENAME TO moved", "ALTER TABLE moved RENAME TO documents"),
        (
            "ALTER TABLE documents RENAME body TO moved",
            "ALTER TABLE documents RENAME moved TO body",
        ),
        (
            "ALTER FUNCTION set_context RENAME TO moved",
            "ALTER FUNCTION moved RENAME TO set_context",
        ),
    ] {
        execute(&app.database, remove).await;
        let answer = create_agent(&app, &key).send().await;
        answer.assert_error(503, "unavailable");
        assert!(answer.header_number("retry-after") >= 1, "{remove}");
        execute(&app.database, restore).await;
        create_agent(&app, &key).send().await.expect_status(201);
    }
}

#[tokio::test]
async fn credential_that_cannot_be_checked_is_503_and_never_401() {
    let (app, dana, key) = app_with_key().await;
    let mut browser = Browser::signed_in(&app, &dana.email).await;
    let client = app.register_confidential_client().await;
    let login = json!({ "email": dana.email, "password": PASSWORD });
    let refresh = json!({ "refresh_token": dana.refresh_token });
    for (function, request) in [
        ("find_api_keys", app.get("/v1/agents").bearer(&key.secret)),
        ("find_sessions", app.get("/v1/agents").bearer(&dana.access_token)),
        ("find_account_by_email", app.post("/v1/auth/login").json(login)),
        ("set_context", app.post("/v1/auth/refresh").json(refresh)),
    ] {
        execute(&app.database, &format!("ALTER FUNCTION {function} RENAME TO moved")).await;
        app.app.auth.caches.invalidate_all();
        request.send().await.assert_error(503, "unavailable");
        execute(&app.database, &format!("ALTER FUNCTION moved RENAME TO {function}")).await;
    }
    execute(&app.database, "REVOKE EXECUTE ON FUNCTION touch_session FROM call2me_auth_app").await;
    assert_eq!(browser.get("/api-keys").await.status, 503);
    execute(&app.database, "REVOKE EXECUTE ON FUNCTION find_oauth_client FROM call2me_auth_app")
        .await;
    let answer = app.redeem_code(&client, "code").await;
    answer.assert_oauth_error(503, "temporarily_unavailable");
}

/// Missing rights, and the state of other servers, condemn no event. The node is not ready
/// meanwhile, and says why.
#[tokio::test]
async fn events_wait_while_rights_are_missing() {
    let (app, _dana, key) = app_with_key().await;
    verify(&app, &key, "/warm").await;
    let function = "FUNCTION append_audit_events";
    execute(&app.database, &format!("REVOKE EXECUTE ON {function} FROM call2me_auth_app")).await;
    for _ in 0..3 {
        verify(&app, &key, "/kept").await;
    }
    wait_for_write_failure(&app, "42501").await;
    app.clock.advance(Duration::from_secs(3));
    let ready = app.get("/readyz").send().await;
    assert_eq!((ready.status.as_u16(), ready.header_number("retry-after")), (503, 1));
    assert_eq!(ready.text, "audit events cannot be written");
    let health = app.get("/health").send().await.expect_status(503);
    assert_eq!(
        health["checks"],
        json!({ "database": "up", "schema": "up", "restore": "up", "audit_log": "down" })
    );
    execute(&app.database, &format!("GRANT EXECUTE ON {function} TO call2me_auth_app")).await;
    eventually("the node is ready again", async || {
        (app.get("/readyz").send().await.status == 200).then_some(())
    })
    .await;
    assert_eq!(lost_events(&app), 0);
    assert_eq!(count_events(&app.stop().await, "/kept").await, 3);
}

#[tokio::test]
async fn events_wait_for_every_error_but_that_of_their_data() {
    let (app, _dana, key) = app_with_key().await;
    for sqlstate in ["0A000", "23505", "42P01", "58030", "P0001", "XX001"] {
        fail_insertions(&app.database, "audit_outbox", sqlstate, "true").await;
        verify(&app, &key, "/kept").await;
        wait_for_write_failure(&app, sqlstate).await;
        stop_failures(&app.database, "audit_outbox").await;
    }
    eventually("the events are written", async || {
        (count_events(&app.database, "/kept").await == 6).then_some(())
    })
    .await;
    assert_eq!(lost_events(&app), 0);
}

#[tokio::test]
async fn event_with_refused_data_does_not_affect_others() {
    let (app, _dana, key) = app_with_key().await;
    for (sqlstate, lost) in [("22000", 1), ("22P02", 2), ("23514", 3)] {
        fail_insertions(&app.database, "audit_events", sqlstate, "NEW.path = '/refused'").await;
        for path in ["/kept", "/refused", "/kept"] {
            verify(&app, &key, path).await;
        }
        eventually("the event is lost", async || (lost_events(&app) == lost).then_some(())).await;
    }
    let database = app.stop().await;
    assert_eq!(count_events(&database, "/kept").await, 6);
    assert_eq!(count_events(&database, "/refused").await, 0);
}

/// A batch that takes PostgreSQL too long, or too much memory, is written in parts.
#[tokio::test]
async fn batch_that_is_too_large_is_written_in_parts() {
    for failure in ["PERFORM pg_sleep(60)", "RAISE EXCEPTION USING ERRCODE = '53200'"] {
        let app = TestApp::start_with(&[("database.statement_timeout_seconds", "1")]).await;
        let dana = app.register("acme").await;
        let key = app.create_key(&dana, "prod", "write").await;
        verify(&app, &key, "/warm").await;
        // The requests meanwhile form one batch.
        let mut blocking = app.database.connect().await;
        let lock = "BEGIN; LOCK TABLE audit_events";
        blocking.execute(sqlx::raw_sql(lock)).await.unwrap();
        let sql = format!(
            "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN
                 IF (SELECT count(*) FROM inserted) > 3 THEN {failure}; END IF;
                 RETURN NULL;
             END $$;
             CREATE TRIGGER fail AFTER INSERT ON audit_events REFERENCING NEW TABLE AS inserted
                 FOR EACH STATEMENT EXECUTE FUNCTION fail(); COMMIT"
        );
        for _ in 0..12 {
            verify(&app, &key, "/kept").await;
        }
        blocking.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await.unwrap();
        eventually("the events are written", async || {
            (count_events(&app.database, "/kept").await == 12).then_some(())
        })
        .await;
        let sqlstate = if failure.contains("53200") { "53200" } else { "57014" };
        assert!(app.app.audit.counts().failures().contains_key(sqlstate), "{failure}");
        assert_eq!(lost_events(&app), 0);
    }
}

#[tokio::test]
async fn events_wait_for_partition_that_cannot_be_created() {
    // The service creates the partitions of present months only.
    let app = TestApp::start_at_system_time(&[]).await;
    let dana = app.register("acme").await;
    let key = app.create_key(&dana, "prod", "write").await;
    verify(&app, &key, "/warm").await;
    // Otherwise this event creates the partition again, before the right is revoked.
    eventually("the event is written", async || {
        (count_events(&app.database, "/warm").await == 1).then_some(())
    })
    .await;
    let now = app.clock.now();
    let (year, month) = (now.year(), u8::from(now.month()));
    execute(&app.database, &format!("DROP TABLE audit_events_{year}_{month:02}")).await;
    let function = "FUNCTION create_present_audit_partition";
    execute(&app.database, &format!("REVOKE EXECUTE ON {function} FROM call2me_auth_app")).await;
    verify(&app, &key, "/kept").await;
    wait_for_write_failure(&app, "23514").await;
    let create = app.post("/v1/api-keys").bearer(&dana.access_token).json(json!({ "name": "x" }));
    create.send().await.assert_error(503, "unavailable");
    execute(&app.database, &format!("GRANT EXECUTE ON {function} TO call2me_auth_app")).await;
    eventually("the event is written", async || {
        (count_events(&app.database, "/kept").await == 1).then_some(())
    })
    .await;
    assert_eq!(lost_events(&app), 0);
}

/// Counts the calls of a function that fails: a sequence is not rolled back.
const COUNT_AND_FAIL: &str = "PERFORM nextval('attempts'); RAISE insufficient_privilege";

async fn count_attempts(database: &Database) -> i64 {
    let query = sqlx::query_scalar("SELECT last_value - 1 + is_called::integer FROM attempts");
    query.fetch_one(&mut database.connect().await).await.unwrap()
}

#[tokio::test]
async fn counts_of_unknown_credentials_survive_failed_writes() {
    let app = TestApp::start().await;
    let sql = format!(
        "CREATE SEQUENCE attempts; GRANT USAGE ON attempts TO call2me_auth_app;
         CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql
             AS $$ BEGIN {COUNT_AND_FAIL}; END $$;
         CREATE TRIGGER fail BEFORE INSERT ON unknown_credential_counts
             FOR EACH STATEMENT EXECUTE FUNCTION fail()"
    );
    execute(&app.database, &sql).await;
    for _ in 0..3 {
        app.get("/v1/agents").bearer("unknown").send().await.assert_error(401, "unauthorized");
    }
    eventually("the counts cannot be written", async || {
        (count_attempts(&app.database).await > 0).then_some(())
    })
    .await;
    stop_failures(&app.database, "unknown_credential_counts").await;
    let database = app.stop().await;
    let sum = sqlx::query_scalar("SELECT sum(attempts)::bigint FROM unknown_credential_counts");
    let sum: i64 = sum.fetch_one(&mut database.connect().await).await.unwrap();
    assert_eq!(sum, 3);
}

/// Adds or removes a migration that this version does not know.
async fn set_newer_schema(database: &Database, is_newer: bool) {
    let sql = if is_newer {
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
         VALUES (9999, 'newer', true, 'newer', 0)"
    } else {
        "DELETE FROM _sqlx_migrations WHERE version = 9999"
    };
    execute(database, sql).await;
}

async fn wait_for_readiness(app: &TestApp, expected: &str) {
    eventually(expected, async || (app.get("/readyz").send().await.text == expected).then_some(()))
        .await;
}

const OTHER_SCHEMA: &str = "the database has the schema of another version";

#[tokio::test]
async fn node_on_newer_schema_is_not_ready_and_answers_503() {
    let (app, dana, key) = app_with_key().await;
    verify(&app, &key, "/warm").await;
    set_newer_schema(&app.database, true).await;
    wait_for_readiness(&app, OTHER_SCHEMA).await;
    let login = json!({ "email": dana.email, "password": PASSWORD });
    for request in [
        app.get("/v1/auth/verify").bearer(&key.secret),
        create_agent(&app, &key),
        app.get("/v1/agents").bearer("unknown"),
        app.post("/v1/auth/login").json(login),
    ] {
        let answer = request.send().await;
        answer.assert_error(503, "unavailable");
        assert!(answer.header_number("retry-after") >= 1);
    }
    let health = app.get("/health").send().await.expect_status(503);
    assert_eq!(
        health["checks"],
        json!({ "database": "up", "schema": "down", "restore": "up", "audit_log": "up" })
    );
    set_newer_schema(&app.database, false).await;
    wait_for_readiness(&app, "ok").await;
    create_agent(&app, &key).send().await.expect_status(201);
    assert_eq!(count_events(&app.stop().await, "/warm").await, 1);
}

#[tokio::test]
async fn node_on_schema_that_is_declared_compatible_stays_ready() {
    let app = TestApp::start().await;
    let latest = "SELECT max(version) FROM _sqlx_migrations";
    let latest: i64 =
        sqlx::query_scalar(latest).fetch_one(&mut app.database.connect().await).await.unwrap();
    set_newer_schema(&app.database, true).await;
    for (oldest, is_compatible) in [(latest, true), (latest + 1, false), (1, true)] {
        let sql = format!(
            "CREATE OR REPLACE FUNCTION oldest_compatible_version(p_schema_version bigint)
             RETURNS bigint LANGUAGE sql IMMUTABLE AS 'SELECT {oldest}::bigint'"
        );
        execute(&app.database, &sql).await;
        assert_eq!(app.app.store.check_schema().await.unwrap().is_none(), is_compatible);
        assert_eq!(app.app.store.is_schema_compatible(), is_compatible);
    }
}

/// During a restore, tables are missing; an older backup lacks migrations.
#[tokio::test]
async fn node_without_readable_or_current_version_is_not_ready() {
    let app = TestApp::start().await;
    for (cause, end) in [
        (
            "REVOKE SELECT ON _sqlx_migrations FROM call2me_auth_app",
            "GRANT SELECT ON _sqlx_migrations TO call2me_auth_app",
        ),
        (
            "ALTER TABLE _sqlx_migrations RENAME TO moved",
            "ALTER TABLE moved RENAME TO _sqlx_migrations",
        ),
        (
            "UPDATE _sqlx_migrations SET success = false WHERE version > 10",
            "UPDATE _sqlx_migrations SET success = true WHERE version > 10",
        ),
    ] {
        execute(&app.database, cause).await;
        wait_for_readiness(&app, OTHER_SCHEMA).await;
        execute(&app.database, end).await;
        wait_for_readiness(&app, "ok").await;
    }
}

/// A newer schema may have constraints that the events of an older node do not meet.
#[tokio::test]
async fn newer_schema_condemns_no_event() {
    let (app, _dana, key) = app_with_key().await;
    verify(&app, &key, "/warm").await;
    fail_insertions(&app.database, "audit_events", "58030", "NEW.path = '/kept'").await;
    verify(&app, &key, "/kept").await;
    wait_for_write_failure(&app, "58030").await;
    set_newer_schema(&app.database, true).await;
    fail_insertions(&app.database, "audit_events", "23514", "NEW.path = '/kept'").await;
    wait_for_write_failure(&app, "23514").await;
    assert_eq!(lost_events(&app), 0);
    stop_failures(&app.database, "audit_events").await;
    set_newer_schema(&app.database, false).await;
    eventually("the event is written", async || {
        (count_events(&app.database, "/kept").await == 1).then_some(())
    })
    .await;
}
