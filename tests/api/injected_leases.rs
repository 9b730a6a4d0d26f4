//! SQL that an attacker injects affects no lease: revocations neither wait for it, nor miss a node.

use call2me_auth::store::ContextKey;
use data_encoding::HEXLOWER;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection, Row as _};
use uuid::Uuid;

use crate::fixture::{TestApp, context_key};

/// The node of an app, as its row has it.
struct Node {
    id: Uuid,
    registration: i32,
    renewals: i64,
    generation: i64,
    token: Uuid,
}

impl Node {
    async fn of(app: &TestApp) -> Self {
        let sql = "SELECT n.id, n.registration, n.renewals, g.generation, g.token
                   FROM nodes n, invalidation_generation g";
        let row = app.database.connect().await.fetch_one(sql).await.unwrap();
        let (id, registration, renewals) = (row.get(0), row.get(1), row.get(2));
        Self { id, registration, renewals, generation: row.get(3), token: row.get(4) }
    }
}

async fn connect_as_role(app: &TestApp) -> PgConnection {
    let mut connection = app.database.connect().await;
    connection.execute("SET ROLE call2me_auth_app").await.unwrap();
    connection
}

/// Runs a statement as the role of the service, and undoes it. Returns the SQLSTATE of its error.
async fn run(connection: &mut PgConnection, sql: &str) -> Option<String> {
    let mut tx = connection.begin().await.unwrap();
    let result = tx.execute(AssertSqlSafe(sql.to_owned())).await;
    tx.rollback().await.unwrap();
    let error = result.err()?;
    Some(error.as_database_error().unwrap_or_else(|| panic!("{sql}: {error}")).code()?.into_owned())
}

fn hex(bytes: &[u8]) -> String {
    format!("'\\x{}'", HEXLOWER.encode(bytes))
}

/// The last parameters of a function: the key id and the MAC of a decision.
fn signature(key: &ContextKey, purpose: &str, values: &[&[u8]]) -> String {
    format!("{}, {}", hex(&key.id()), hex(&key.sign_decision(purpose, values)))
}

#[tokio::test]
async fn statements_about_leases_need_a_mac() {
    let app = TestApp::start().await;
    let Node { id, registration, renewals, generation, token } = Node::of(&app).await;
    let mut role = connect_as_role(&app).await;
    let key_id = hex(&context_key().id());
    let macs = format!("{key_id}, {}", hex(&[0; 32]));
    for sql in [
        format!("SELECT register_node(gen_random_uuid(), 1, '1 minute', 0, NULL, 0, {macs})"),
        format!(
            "SELECT renew_lease('{id}', {registration}, {generation}, '{token}', '1 minute', 0,
                                NULL, 0, {macs})"
        ),
        format!(
            "SELECT acknowledge_generation('{id}', {registration}, {generation}, '{token}', {macs})"
        ),
        format!("SELECT expire_lease('{id}', {registration}, {renewals}, {macs})"),
        format!("SELECT deregister_node('{id}', {macs})"),
        format!("SELECT settle_history(1, 1, 1::oid, 1::oid, true, {macs})"),
        format!("SELECT report_lost_generation('{id}', 1, 100, '1 year', true, 0, {macs})"),
        format!("SELECT deregister_node('{id}', NULL, NULL)"),
        format!("SELECT expire_lease('{id}', NULL, {renewals}, {macs})"),
    ] {
        assert_eq!(run(&mut role, &sql).await.as_deref(), Some("42501"), "{sql}");
    }
}

/// A MAC is that of one statement about one node.
#[tokio::test]
async fn mac_is_valid_for_its_values_only() {
    let app = TestApp::start().await;
    let Node { id, registration, renewals, .. } = Node::of(&app).await;
    let (mut role, key, other) = (connect_as_role(&app).await, context_key(), Uuid::from_u128(7));
    let values = |id: &Uuid, renewals: i64| {
        [&id.as_bytes()[..], &registration.to_be_bytes(), &renewals.to_be_bytes()].concat()
    };
    let expire = |signed: &[u8]| {
        let signature = signature(&key, "expire_lease", &[signed]);
        format!("SELECT expire_lease('{id}', {registration}, {renewals}, {signature})")
    };
    for signed in [values(&other, renewals), values(&id, renewals + 1)] {
        assert_eq!(run(&mut role, &expire(&signed)).await.as_deref(), Some("42501"));
    }
    assert_eq!(run(&mut role, &expire(&values(&id, renewals))).await, None);
    let as_other = signature(&key, "expire_lease", &[id.as_bytes()]);
    let deregister = format!("SELECT deregister_node('{id}', {as_other})");
    assert_eq!(run(&mut role, &deregister).await.as_deref(), Some("42501"));
}

/// A registration is valid for 30 seconds, and for a minute's lease at most: a revocation waits for
/// as long.
#[tokio::test]
async fn registration_is_fresh_and_short() {
    let app = TestApp::start().await;
    let (mut role, key, id) = (connect_as_role(&app).await, context_key(), Uuid::from_u128(7));
    let time = "SELECT (extract(epoch FROM database_time()) * 1000000)::bigint";
    let now: i64 = role.fetch_one(time).await.unwrap().get(0);
    let minute = 60_000_000_i64;
    let register = |lease: i64, issued_at: i64, signed_at: i64| {
        let interval = [&lease.to_be_bytes()[..], &[0; 8]].concat();
        let values: [&[u8]; 6] = [
            id.as_bytes(),
            &1_i32.to_be_bytes(),
            &interval,
            &now.to_be_bytes(),
            &(-1_i64).to_be_bytes(),
            &signed_at.to_be_bytes(),
        ];
        let signature = signature(&key, "register_node", &values);
        format!(
            "SELECT register_node('{id}', 1, '{lease} microseconds', {now}, NULL, {issued_at},
                                  {signature})"
        )
    };
    assert_eq!(run(&mut role, &register(minute, now, now)).await, None);
    for (sql, code) in [
        (register(minute + 1, now, now), "23514"),
        (register(minute, now, now - 1), "42501"),
        (register(minute, now - minute, now - minute), "MC001"),
        (register(minute, now + minute, now + minute), "MC001"),
    ] {
        assert_eq!(run(&mut role, &sql).await.as_deref(), Some(code), "{sql}");
    }
}

/// The interval between renewals says how much time was lost.
#[tokio::test]
async fn report_of_lost_generation_covers_interval_and_time() {
    let app = TestApp::start().await;
    let (mut role, key, id) = (connect_as_role(&app).await, context_key(), Uuid::from_u128(7));
    let time = "SELECT (extract(epoch FROM database_time()) * 1000000)::bigint";
    let now: i64 = role.fetch_one(time).await.unwrap().get(0);
    let report = |interval: &str, signed_interval: i64, issued_at: i64| {
        let signed_interval = [&signed_interval.to_be_bytes()[..], &[0; 8]].concat();
        let values: [&[u8]; 6] = [
            id.as_bytes(),
            &1_i32.to_be_bytes(),
            &20_i64.to_be_bytes(),
            &signed_interval,
            &[0],
            &issued_at.to_be_bytes(),
        ];
        let signature = signature(&key, "report_lost_generation", &values);
        format!(
            "SELECT report_lost_generation('{id}', 1, 20, '{interval}', false, {issued_at},
                                           {signature})"
        )
    };
    let second = 1_000_000;
    assert_eq!(run(&mut role, &report("1 second", second, now)).await, None);
    for (sql, code) in [
        (report("1 year", second, now), "42501"),
        (report("1 second", second, now - 60 * second), "MC001"),
    ] {
        assert_eq!(run(&mut role, &sql).await.as_deref(), Some(code), "{sql}");
    }
}
