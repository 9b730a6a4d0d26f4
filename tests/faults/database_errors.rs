//! PostgreSQL answers, but cannot do the work for some seconds: a right, a table or a function is
//! missing, or a disk fails. No acknowledged request loses its audit event, and clients see nothing
//! worse than a 503.

use serde_json::json;
use sqlx::{AssertSqlSafe, PgConnection};

use super::{
    fixture::{Cluster, Load, Node, RequestOutcome, acquire_test_lock},
    outage::assert_logged,
};

const CLIENTS: usize = 8;
/// The number of acknowledged requests to wait for, before a fault and after the recovery.
const STEADY_REQUESTS: usize = 100;
/// A short queue, so that it is full soon.
const QUEUE: (&str, &str) = ("audit.queue", "100");

/// A fault of the tables of the audit log.
struct Fault {
    sqlstate: &'static str,
    /// The SQL that causes it.
    cause: String,
    /// The SQL that ends it.
    end: String,
}

impl Fault {
    fn new(sqlstate: &'static str, cause: &str, end: &str) -> Self {
        Self { sqlstate, cause: cause.to_owned(), end: end.to_owned() }
    }
}

async fn execute(connection: &mut PgConnection, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(connection).await.unwrap();
}

/// Causes a fault under load until clients get 503, and ends it. Every acknowledged request must
/// have its event, also those whose event waited for the end of the fault.
async fn check_events_survive(make_fault: impl AsyncFn(&mut PgConnection) -> Fault) {
    let _turn = acquire_test_lock().await;
    let cluster = Cluster::start(false).await;
    let mut connection = cluster.connect().await;
    let mut node = Node::start("node", &cluster.node_url(), &[QUEUE]).await;
    let owner = node.register("acme").await;
    let key = node.create_key(&owner, "load").await;
    let load = Load::start(&node, &key.secret, CLIENTS);
    load.wait_for_more("requests succeed", STEADY_REQUESTS, RequestOutcome::is_acknowledged).await;
    let fault = make_fault(&mut connection).await;
    execute(&mut connection, &fault.cause).await;
    load.wait_for_more("clients get 503", CLIENTS, |outcome| outcome.has_status(503)).await;
    let ready = node.request("GET", "/readyz").send().await;
    assert_eq!((ready.status.as_u16(), &*ready.text), (503, "audit events cannot be written"));
    let create = node.request("POST", "/v1/api-keys").bearer(&owner).json(json!({ "name": "x" }));
    let refused = create.send().await;
    refused.assert_error(503, "unavailable");
    assert!(refused.header_number("retry-after") >= 1);
    node.wait_for_log(&format!("SQLSTATE {}", fault.sqlstate)).await;
    execute(&mut connection, &fault.end).await;
    load.wait_for_more("requests succeed again", STEADY_REQUESTS, RequestOutcome::is_acknowledged)
        .await;
    node.request("GET", "/readyz").send().await.expect_status(200);
    let outcomes = load.finish().await;
    for outcome in &outcomes {
        let allowed = matches!(outcome.response, Ok((200 | 201, _) | (503, true)));
        assert!(allowed, "a client saw something other than a 503 with Retry-After: {outcome:?}");
    }
    assert!(node.stop().await.success());
    assert_eq!(node.count_log_lines("was lost") + node.count_log_lines("were lost"), 0);
    assert_logged(&mut connection, &key, &outcomes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_requests_keep_events_while_rights_are_missing() {
    check_events_survive(async |_| {
        let rights = |verb: &str, preposition: &str| {
            format!(
                "{verb} INSERT ON audit_events {preposition} call2me_auth_app;
                 {verb} EXECUTE ON FUNCTION append_audit_events {preposition} call2me_auth_app"
            )
        };
        Fault::new("42501", &rights("REVOKE", "FROM"), &rights("GRANT", "TO"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_requests_keep_events_while_table_is_missing() {
    check_events_survive(async |_| {
        let rename = |from, to| format!("ALTER TABLE {from} RENAME TO {to}");
        Fault::new("42P01", &rename("audit_events", "moved"), &rename("moved", "audit_events"))
    })
    .await;
}

/// As while a database is migrated to a newer schema, or restored.
#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_requests_keep_events_while_function_is_missing() {
    check_events_survive(async |connection| {
        let definition = "SELECT pg_get_functiondef('append_audit_events'::regproc)";
        let definition: String =
            sqlx::query_scalar(definition).fetch_one(connection).await.unwrap();
        let grants = "REVOKE ALL ON FUNCTION append_audit_events FROM PUBLIC;
                      GRANT EXECUTE ON FUNCTION append_audit_events TO call2me_auth_app;
                      GRANT INSERT ON audit_events TO call2me_auth_app";
        // Changes write their events without the function.
        let cause = "DROP FUNCTION append_audit_events;
                     REVOKE INSERT ON audit_events FROM call2me_auth_app";
        Fault::new("42883", cause, &format!("{definition}; {grants}"))
    })
    .await;
}

/// A full disk and a disk that fails cannot be had on each machine, so a trigger reports one.
#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_requests_keep_events_while_disk_fails() {
    check_events_survive(async |_| {
        let cause = "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql
                         AS $$ BEGIN RAISE io_error; END $$;
                     CREATE TRIGGER fail BEFORE INSERT ON audit_events
                         FOR EACH ROW EXECUTE FUNCTION fail()";
        Fault::new("58030", cause, "DROP TRIGGER fail ON audit_events")
    })
    .await;
}
