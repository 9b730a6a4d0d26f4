//! Row-level security isolates workspaces: the service role sees and changes the rows of one
//! workspace only, even if a query has no condition on the workspace.

use call2me_auth::model::id;
use data_encoding::HEXLOWER;
use serde_json::json;
use sqlx::{Connection, Executor, PgConnection};
use uuid::Uuid;

use crate::fixture::{TestApp, TestUser, context_key, oauth::OAuthExt};

/// Tables without row-level security that the service role may read, each with the reason.
const SHARED: [&str; 3] = [
    "_sqlx_migrations",          // the schema version
    "signing_keys",              // of the deployment; private keys are sealed
    "unknown_credential_counts", // addresses without a known user
];

struct TwoWorkspaces {
    connection: PgConnection,
    acme: Uuid,
    widgets: Uuid,
}

impl TwoWorkspaces {
    /// Creates two workspaces with a row in every table, and connects as the service role.
    async fn new(app: &TestApp) -> Self {
        let [acme, widgets] = [app.register("acme").await, app.register("widgets-inc").await];
        for person in [&acme, &widgets] {
            app.set_verified(person, true).await;
            populate(app, person).await;
        }
        let [acme, widgets] = [&acme, &widgets].map(|p| id::parse("ws", &p.workspace_id).unwrap());
        let mut connection = app.database.connect().await;
        connection.execute("SET ROLE call2me_auth_app").await.unwrap();
        Self { connection, acme, widgets }
    }
}

async fn populate(app: &TestApp, person: &TestUser) {
    let key = app.create_key(person, "k", "write").await;
    let post = app.post("/v1/agents").bearer(&key.secret).json(json!({ "agent_name": "a" }));
    post.send().await.expect_status(201);
    let body = json!({ "email": "sam@new.example", "role": "viewer" });
    let post = app.post("/v1/invitations").bearer(&person.access_token).json(body);
    post.send().await.expect_status(201);
    let body = json!({ "name": "robot", "grant_types": ["client_credentials"] });
    let post = app.post("/v1/oauth/clients").bearer(&person.access_token).json(body);
    let client = post.send().await.expect_status(201);
    let [id, secret] = ["id", "client_secret"].map(|field| client[field].as_str().unwrap());
    let fields =
        [("grant_type", "client_credentials"), ("client_id", id), ("client_secret", secret)];
    app.request_token(&fields).await.expect_status(200);
    let uris = json!({ "redirect_uris": ["https://app.example/cb"] });
    let path = format!("/v1/oauth/clients/{id}");
    let patch = app.patch(&path).bearer(&person.access_token).json(uris);
    patch.send().await.expect_status(200);
    let query = format!("key_id={}", key.id);
    app.wait_for_event(&person.access_token, &query, |_| true).await;
    app.database.wait_until_sealed().await;
    let workspace = id::parse("ws", &person.workspace_id).unwrap();
    let key = id::parse("key", &key.id).unwrap();
    let mut connection = app.database.connect().await;
    for (sql, id) in [
        ("INSERT INTO wallet_transactions VALUES ($2, $1, 'top_up', 1, 'x', now())", workspace),
        (
            "INSERT INTO quiet_confirmations
                 (workspace_id, key_id, total_requests, quiet_since, quiet_until)
             VALUES ($1, $2, 0, now(), now())",
            key,
        ),
    ] {
        sqlx::query(sql).bind(workspace).bind(id).execute(&mut connection).await.unwrap();
    }
}

/// Returns the tables that the service role may read, with `true` if row-level security is enabled.
async fn readable_tables(connection: &mut PgConnection) -> Vec<(String, bool)> {
    sqlx::query_as(
        "SELECT c.relname::text, c.relrowsecurity FROM pg_class c
         WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')
           AND has_any_column_privilege('call2me_auth_app', c.oid, 'SELECT') ORDER BY 1",
    )
    .fetch_all(connection)
    .await
    .unwrap()
}

#[tokio::test]
async fn every_readable_table_has_row_level_security() {
    let app = TestApp::start().await;
    let readable = readable_tables(&mut app.database.connect().await).await;
    let unsecured: Vec<_> =
        readable.iter().filter(|(_, is_secured)| !is_secured).map(|(name, _)| name).collect();
    assert_eq!(unsecured, SHARED);
    assert!(
        readable.iter().all(|(name, _)| !name.starts_with("audit_events_")
            && !name.starts_with("audit_chain_segments_")),
        "partitions must not be readable directly"
    );
}

#[tokio::test]
async fn service_role_without_workspace_sees_nothing() {
    let app = TestApp::start().await;
    let mut workspaces = TwoWorkspaces::new(&app).await;
    for (table, _) in readable_tables(&mut workspaces.connection).await {
        if SHARED.contains(&table.as_str()) {
            continue;
        }
        let count = count_rows(&mut workspaces.connection, &format!("\"{table}\"")).await;
        assert_eq!(count, 0, "{table}");
    }
}

#[tokio::test]
async fn service_role_sees_only_its_workspace() {
    let app = TestApp::start().await;
    let mut workspaces = TwoWorkspaces::new(&app).await;
    let (acme, widgets) = (workspaces.acme, workspaces.widgets);
    let mut checked = 0;
    for (table, column) in [
        ("workspaces", "id"),
        ("memberships", "workspace_id"),
        ("invitations", "workspace_id"),
        ("api_keys", "workspace_id"),
        ("api_key_activity", "workspace_id"),
        ("audit_events", "workspace_id"),
        ("audit_chain_segments", "workspace_id"),
        ("audit_chain_heads", "workspace_id"),
        ("key_usage_hours", "workspace_id"),
        ("key_usage_minutes", "workspace_id"),
        ("key_usage_clients", "workspace_id"),
        ("quiet_confirmations", "workspace_id"),
        ("documents", "workspace_id"),
        ("document_usage", "workspace_id"),
        ("wallet_transactions", "workspace_id"),
        ("oauth_clients", "workspace_id"),
        ("oauth_client_secrets", "client_id"),
        ("oauth_added_redirect_uris", "client_id"),
        ("oauth_grants", "workspace_id"),
    ] {
        // Secrets and redirect URIs belong to the workspace of their client.
        let [acme, widgets] = match table {
            "oauth_client_secrets" | "oauth_added_redirect_uris" => {
                let sql = "SELECT id FROM oauth_clients WHERE workspace_id = $1";
                let mut as_owner = app.database.connect().await;
                let mut ids = Vec::new();
                for workspace in [acme, widgets] {
                    let id = sqlx::query_scalar::<_, Uuid>(sql).bind(workspace);
                    ids.push(id.fetch_one(&mut as_owner).await.unwrap());
                }
                [ids[0], ids[1]]
            }
            _ => [acme, widgets],
        };
        let mut tx = workspaces.connection.begin().await.unwrap();
        set_workspace(&mut tx, workspaces.acme).await;
        let own = count_rows(&mut tx, &format!("{table} WHERE {column} = '{acme}'")).await;
        assert!(own > 0, "{table}");
        // A query without a WHERE clause sees the same rows.
        assert_eq!(count_rows(&mut tx, table).await, own, "{table}");
        assert_eq!(
            count_rows(&mut tx, &format!("{table} WHERE {column} = '{widgets}'")).await,
            0,
            "{table}"
        );
        checked += 1;
    }
    assert_eq!(
        checked
            + SHARED.len()
            + [
                "users",
                "sessions",
                "one_time_tokens",
                "totp_factors",
                "mfa_challenges",
                "passkeys"
            ]
            .len(),
        readable_tables(&mut workspaces.connection).await.len()
    );
    let mut tx = workspaces.connection.begin().await.unwrap();
    set_workspace(&mut tx, acme).await;
    assert_eq!(count_rows(&mut tx, "users").await, 1, "only members of the workspace");
    assert_eq!(
        count_rows(&mut tx, "sessions").await,
        0,
        "sessions belong to a user, and no user is set"
    );
    let hashes = tx.execute("SELECT password_hash FROM users").await.unwrap_err();
    assert_eq!(hashes.as_database_error().unwrap().code().unwrap(), "42501");
}

#[tokio::test]
async fn writes_to_other_workspace_fail_or_change_nothing() {
    let app = TestApp::start().await;
    let mut workspaces = TwoWorkspaces::new(&app).await;
    let (acme, widgets) = (workspaces.acme, workspaces.widgets);
    for sql in [
        "UPDATE workspaces SET name = 'x'",
        "UPDATE api_keys SET revoked_at = now()",
        "UPDATE documents SET body = '{}', body_bytes = 2",
        "DELETE FROM documents",
        "UPDATE invitations SET closed_at = now()",
        "UPDATE memberships SET role = 'owner'",
        "UPDATE oauth_grants SET ended_at = now()",
        "UPDATE oauth_clients SET name = 'x'",
    ] {
        let mut tx = workspaces.connection.begin().await.unwrap();
        set_workspace(&mut tx, acme).await;
        let table =
            sql.split_whitespace().find(|w| !["UPDATE", "DELETE", "FROM"].contains(w)).unwrap();
        let column = if table == "workspaces" { "id" } else { "workspace_id" };
        let forged = format!("{sql}{}", format_args!(" WHERE {column} = '{widgets}'"));
        let updated = tx.execute(sqlx::AssertSqlSafe(forged)).await.unwrap();
        assert_eq!(updated.rows_affected(), 0, "{sql}");
        let all = tx.execute(sqlx::AssertSqlSafe(sql)).await.unwrap();
        assert_eq!(all.rows_affected(), 1, "{sql}: only the row of acme");
    }
    for sql in [
        "INSERT INTO documents VALUES ($1, $1, 'agent', NULL, '{}', 2, now(), now())",
        "INSERT INTO wallet_transactions VALUES (gen_random_uuid(), $1, 'top_up', 1, 'x', now())",
        "INSERT INTO audit_events (id, workspace_id, action, actor_type)
         VALUES (uuidv7_lower_bound(now()), $1, 'request', 'system')",
        "INSERT INTO audit_outbox (oldest_event_at, workspace_ids, event_ids, digests)
         VALUES (now(), ARRAY[$1], ARRAY[$1], sha256('x'))",
        "INSERT INTO memberships SELECT $1, user_id, 'owner', now() FROM memberships",
        "DELETE FROM memberships WHERE workspace_id = $1",
        "INSERT INTO invitations VALUES
             ($1, $1, 'a@b.example', 'a@b.example', 'owner', 'x', now(), now(), NULL)",
        "INSERT INTO oauth_clients (id, kind, workspace_id, name, redirect_uris, auth_method, grant_types, created_at)
         VALUES ($1, 'workspace', $1, 'x', '{}', 'none', '{}', now())",
        "INSERT INTO oauth_grants (id, client_id, workspace_id, scope, resources, created_at, redeem_by, refresh_seed)
         SELECT $1, client_id, $1, 'admin', resources, now(), now(), sha256('x') FROM oauth_grants",
        "INSERT INTO api_keys (id, workspace_id, name, scope, digest, display_start, display_end, created_at)
         VALUES ($1, $1, 'x', 'admin', sha256('x'), 'a', 'b', now())",
    ] {
        let mut tx = workspaces.connection.begin().await.unwrap();
        set_workspace(&mut tx, acme).await;
        let error = sqlx::query(sql).bind(widgets).execute(&mut *tx).await.unwrap_err();
        let code = error.as_database_error().unwrap().code().unwrap().into_owned();
        assert_eq!(code, "42501", "{sql}: {error}");
    }
}

/// SQL that an attacker injects runs as the role of the service, in a transaction of the attacker's
/// workspace.
#[tokio::test]
async fn injected_sql_cannot_enter_other_workspace() {
    let app = TestApp::start().await;
    let mut workspaces = TwoWorkspaces::new(&app).await;
    let (acme, widgets) = (workspaces.acme, workspaces.widgets);
    let genuine = {
        let mut tx = workspaces.connection.begin().await.unwrap();
        set_workspace(&mut tx, widgets).await;
        let setting = "SELECT current_setting('call2me.context')";
        sqlx::query_scalar::<_, String>(setting).fetch_one(&mut *tx).await.unwrap()
    };
    let own_seal = {
        let mut tx = workspaces.connection.begin().await.unwrap();
        set_workspace(&mut tx, acme).await;
        let setting = "SELECT current_setting('call2me.context')";
        let own: String = sqlx::query_scalar(setting).fetch_one(&mut *tx).await.unwrap();
        own.replace(&acme.simple().to_string(), &widgets.simple().to_string())
    };
    assert!(own_seal.contains(&widgets.simple().to_string()));
    let unsealed = format!("\\x{}{}", widgets.simple(), Uuid::nil().simple());
    for forged in [
        format!("SET LOCAL call2me.context = '{genuine}'"),
        format!("SET call2me.context = '{genuine}'"),
        format!("SELECT set_config('call2me.context', '{own_seal}', true)"),
        format!("SELECT set_config('call2me.context', '{unsealed}{}', true)", "0".repeat(64)),
        format!("SELECT set_config('call2me.context', '{unsealed}', false)"),
        format!("SET LOCAL call2me.workspace_id = '{widgets}'"),
        "SET LOCAL call2me.context = 'nonsense'".to_owned(),
    ] {
        let mut tx = workspaces.connection.begin().await.unwrap();
        set_workspace(&mut tx, acme).await;
        tx.execute(sqlx::AssertSqlSafe(forged.clone())).await.unwrap();
        let seen =
            count_rows(&mut tx, &format!("documents WHERE workspace_id = '{widgets}'")).await;
        assert_eq!(seen, 0, "{forged}");
        let write = format!("UPDATE documents SET body = '{{}}' WHERE workspace_id = '{widgets}'");
        let written = tx.execute(sqlx::AssertSqlSafe(write)).await.unwrap();
        assert_eq!(written.rows_affected(), 0, "{forged}");
        tx.execute("RESET call2me.context").await.unwrap();
    }
    // The key and the functions that compute seals and MACs are out of reach.
    for sql in [
        "SELECT * FROM context_keys",
        "SELECT * FROM context_seal_key",
        "SELECT context_seal('a', 'b')",
        "SELECT hmac_sha256('a', 'b', 'c')",
        "INSERT INTO context_keys VALUES ('\\x0102030405060708', '', '')",
        "INSERT INTO api_keys (id, workspace_id, name, scope, digest, display_start, display_end, created_at)
         SELECT gen_random_uuid(), current_workspace_id(), 'x', 'admin', sha256('x'), 'a', 'b', now()",
        "UPDATE api_keys SET digest = sha256('x')",
    ] {
        let mut tx = workspaces.connection.begin().await.unwrap();
        set_workspace(&mut tx, acme).await;
        let error = tx.execute(sql).await.unwrap_err();
        assert_eq!(error.as_database_error().unwrap().code().unwrap(), "42501", "{sql}: {error}");
    }
    for (workspace, rotated_from) in [
        (widgets, "NULL".to_owned()),
        (acme, format!("(SELECT '{}'::uuid)", foreign_key(&app, widgets).await)),
    ] {
        let mut tx = workspaces.connection.begin().await.unwrap();
        set_workspace(&mut tx, acme).await;
        let insert = format!(
            "SELECT insert_api_key(gen_random_uuid(), '{workspace}', 'x', NULL, 'admin', sha256('x'),
                                   'a', 'b', '{{}}', now(), NULL, NULL, NULL, {rotated_from}, NULL)"
        );
        let error = tx.execute(sqlx::AssertSqlSafe(insert)).await.unwrap_err();
        assert_eq!(error.as_database_error().unwrap().code().unwrap(), "42501", "{error}");
    }
}

async fn foreign_key(app: &TestApp, workspace: Uuid) -> Uuid {
    let sql = "SELECT id FROM api_keys WHERE workspace_id = $1 LIMIT 1";
    let mut connection = app.database.connect().await;
    sqlx::query_scalar(sql).bind(workspace).fetch_one(&mut connection).await.unwrap()
}

#[tokio::test]
async fn forged_or_old_context_is_refused() {
    let app = TestApp::start().await;
    let mut workspaces = TwoWorkspaces::new(&app).await;
    let (acme, widgets) = (workspaces.acme, workspaces.widgets);
    let now = database_time(&mut workspaces.connection).await;
    let minute = 60_000_000;
    let key = context_key();
    for (issued_at, mac, code) in [
        (now, key.sign(Some(acme), None, now), "42501"),
        (now, key.sign(Some(widgets), Some(acme), now), "42501"),
        (now, key.sign(Some(widgets), None, now - 1), "42501"),
        (now, [0; 32], "42501"),
        // Genuine MACs that leaked, and are used later or from a node with a wrong clock.
        (now - minute, key.sign(Some(widgets), None, now - minute), "MC001"),
        (now + minute, key.sign(Some(widgets), None, now + minute), "MC001"),
        (i64::MAX, key.sign(Some(widgets), None, i64::MAX), "MC001"),
        (i64::MIN, key.sign(Some(widgets), None, i64::MIN), "MC001"),
    ] {
        let mut tx = workspaces.connection.begin().await.unwrap();
        let error = set_context(&mut tx, widgets, issued_at, &mac).await.unwrap_err();
        assert_eq!(error.as_database_error().unwrap().code().unwrap(), code, "{error}");
    }
    // An unknown key, also in place of the first one.
    let sql = "SELECT set_context(NULL, NULL, 0, 'x', sha256('x'))";
    assert!(workspaces.connection.execute(sql).await.is_err());
    let sql = "SELECT store_first_context_key('\\x0102030405060708', $1, $1)";
    let stored: bool = sqlx::query_scalar(sql)
        .bind([0_u8; 64])
        .fetch_one(&mut workspaces.connection)
        .await
        .unwrap();
    assert!(!stored);
    // Another key, without the MAC of a known one.
    let sql = "SELECT add_context_key('\\x0102030405060708', $1, $1, $2, sha256('x'))";
    let added = sqlx::query(sql).bind([0_u8; 64]).bind(key.id());
    let error = added.execute(&mut workspaces.connection).await.unwrap_err();
    assert_eq!(error.as_database_error().unwrap().code().unwrap(), "42501", "{error}");
    // No MAC is visible to other sessions of the same login.
    let shown = "SELECT count(*) FROM pg_stat_activity
                 WHERE query LIKE '%set_context(''%' AND pid <> pg_backend_pid()";
    let mut as_superuser = app.database.connect().await;
    let shown: i64 = sqlx::query_scalar(shown).fetch_one(&mut as_superuser).await.unwrap();
    assert_eq!(shown, 0);
}

/// A node reads PostgreSQL's clock again when a context is refused because of its time.
#[tokio::test]
async fn wrong_clock_is_unavailable_until_it_is_right() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let mut owner = app.database.connect().await;
    // As if the clock were an hour behind.
    let definition = "SELECT pg_get_functiondef('set_context'::regproc)";
    let genuine: String = sqlx::query_scalar(definition).fetch_one(&mut owner).await.unwrap();
    let behind = genuine.replace("database_time()", "(database_time() - interval '1 hour')");
    assert_ne!(genuine, behind);
    owner.execute(sqlx::AssertSqlSafe(behind)).await.unwrap();
    let answer = app.get("/v1/members").bearer(&dana.access_token).send().await;
    answer.assert_error(503, "unavailable");
    owner.execute(sqlx::AssertSqlSafe(genuine)).await.unwrap();
    app.get("/v1/members").bearer(&dana.access_token).send().await.expect_status(200);
}

#[tokio::test]
async fn context_ends_with_its_transaction() {
    let app = TestApp::start().await;
    let mut workspaces = TwoWorkspaces::new(&app).await;
    let mut tx = workspaces.connection.begin().await.unwrap();
    set_workspace(&mut tx, workspaces.acme).await;
    assert!(count_rows(&mut tx, "documents").await > 0);
    tx.commit().await.unwrap();
    assert_eq!(count_rows(&mut workspaces.connection, "documents").await, 0);
}

#[tokio::test]
async fn login_without_service_role_is_rejected() {
    let app = TestApp::start().await;
    let mut connection = app.database.connect().await;
    connection
        .execute("DROP ROLE IF EXISTS unbound; CREATE ROLE unbound LOGIN PASSWORD 'x'")
        .await
        .unwrap();
    let url = app.database.url.replace("postgres:test@", "unbound:x@");
    let options = call2me_auth::config::Pool {
        max_connections: 2,
        acquire_timeout: std::time::Duration::from_secs(2),
        statement_timeout: std::time::Duration::from_secs(2),
    };
    let (lease, keys) = (options.acquire_timeout, context_key().into());
    let clock = &app.app.env.database_clock;
    let connect = call2me_auth::store::Store::connect(&url, None, &options, lease, keys, clock);
    let error = connect.await.unwrap_err();
    assert!(error.contains("GRANT call2me_auth_app TO <user>"), "{error}");
}

#[tokio::test]
async fn revocation_and_sign_out_are_irreversible() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let key = app.create_key(&dana, "k", "write").await;
    app.delete(&format!("/v1/api-keys/{}", key.id))
        .bearer(&dana.access_token)
        .send()
        .await
        .expect_status(204);
    app.post("/v1/auth/logout").bearer(&dana.access_token).send().await.expect_status(204);
    let mut connection = app.database.connect().await;
    let retire = "UPDATE signing_keys SET retired_at = now() WHERE purpose = 'access tokens'";
    connection.execute(retire).await.unwrap();
    // Not even the owner of the tables can undo it.
    for sql in [
        "UPDATE api_keys SET revoked_at = NULL",
        "UPDATE api_keys SET revoked_at = now() + interval '1 day'",
        "UPDATE sessions SET ended_at = NULL",
        "UPDATE signing_keys SET retired_at = NULL WHERE retired_at IS NOT NULL",
    ] {
        let error = connection.execute(sql).await.unwrap_err();
        assert_eq!(error.as_database_error().unwrap().code().unwrap(), "42501", "{sql}");
    }
}

#[tokio::test]
async fn injected_signing_key_is_ignored() {
    let app = TestApp::start().await;
    let jwks = app.get("/.well-known/jwks.json").send().await.text;
    let url = app.url.clone();
    let database = app.stop().await;
    let mut connection = database.connect().await;
    connection.execute("SET ROLE call2me_auth_app").await.unwrap();
    // One key is older than the genuine one, and one is newer.
    for moment in ["2020-01-01", "2099-01-01"] {
        let sql = format!(
            "INSERT INTO signing_keys VALUES (gen_random_uuid(), 'access tokens', 'EdDSA',
                                              decode(repeat('00', 68), 'hex'), '{moment}',
                                              '{moment}')"
        );
        connection.execute(sqlx::AssertSqlSafe(sql)).await.unwrap();
    }
    let app = TestApp::start_on(database, &[("server.public_url", &url)]).await;
    assert_eq!(app.get("/.well-known/jwks.json").send().await.text, jwks);
}

/// A client that is a protected resource introspects tokens of all workspaces. Only the operator
/// makes a client one.
#[tokio::test]
async fn injected_sql_cannot_make_client_a_resource() {
    let app = TestApp::start().await;
    let mut workspaces = TwoWorkspaces::new(&app).await;
    let (acme, key) = (workspaces.acme, context_key());
    let [own, other] = [acme, workspaces.widgets];
    let of_other =
        key.sign_decision("oauth_client_resource", &[other.as_bytes(), b"https://api.example"]);
    let context = key.sign(Some(own), None, 0);
    let set = |mac: &[u8]| {
        format!(
            "SELECT set_oauth_client_resource(id, 'https://api.example', '\\x{}', '\\x{}')
             FROM oauth_clients",
            HEXLOWER.encode(&key.id()),
            HEXLOWER.encode(mac),
        )
    };
    for sql in [
        "INSERT INTO oauth_clients (id, kind, workspace_id, name, redirect_uris, auth_method,
                                    grant_types, resource, created_at)
         VALUES (gen_random_uuid(), 'workspace', current_workspace_id(), 'x', '{}', 'none', '{}',
                 'https://api.example', now())"
            .to_owned(),
        "UPDATE oauth_clients SET resource = 'https://api.example'".to_owned(),
        set(&of_other),
        set(&context),
        set(&[0; 32]),
    ] {
        let mut tx = workspaces.connection.begin().await.unwrap();
        set_workspace(&mut tx, acme).await;
        let error = tx.execute(sqlx::AssertSqlSafe(sql.clone())).await.unwrap_err();
        assert_eq!(error.as_database_error().unwrap().code().unwrap(), "42501", "{sql}: {error}");
    }
}

/// Sets the context of a transaction as the service does.
async fn set_workspace(connection: &mut PgConnection, workspace: Uuid) {
    let issued_at = database_time(connection).await;
    let mac = context_key().sign(Some(workspace), None, issued_at);
    set_context(connection, workspace, issued_at, &mac).await.unwrap();
}

async fn set_context(
    connection: &mut PgConnection,
    workspace: Uuid,
    issued_at: i64,
    mac: &[u8],
) -> Result<(), sqlx::Error> {
    sqlx::query("SELECT set_context($1, NULL, $2, $3, $4)")
        .bind(workspace)
        .bind(issued_at)
        .bind(context_key().id())
        .bind(mac)
        .execute(connection)
        .await
        .map(drop)
}

/// Returns the time of PostgreSQL, in microseconds since 1970.
pub async fn database_time(connection: &mut PgConnection) -> i64 {
    sqlx::query_scalar("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint")
        .fetch_one(connection)
        .await
        .unwrap()
}

async fn count_rows(connection: &mut PgConnection, what: &str) -> i64 {
    let sql = format!("SELECT count(*) FROM {what}");
    sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_one(connection).await.unwrap()
}
