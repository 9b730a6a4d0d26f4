//! Row-level security isolates workspaces: the service role sees and changes the rows of one
//! workspace only, even if a query has no condition on the workspace.

use call2me_auth::model::id;
use serde_json::json;
use sqlx::{Connection, Executor, PgConnection};
use uuid::Uuid;

use crate::fixture::{TestApp, TestUser, oauth::OAuthExt};

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
    let query = format!("key_id={}", key.id);
    app.wait_for_event(&person.access_token, &query, |_| true).await;
    app.database.wait_until_sealed().await;
    let workspace = id::parse("ws", &person.workspace_id).unwrap();
    let key = id::parse("key", &key.id).unwrap();
    let mut connection = app.database.connect().await;
    for (sql, id) in [
        ("INSERT INTO wallet_transactions VALUES ($2, $1, 'top_up', 1, 'x', now())", workspace),
        (
            "INSERT INTO quiet_confirmations (workspace_id, key_id, quiet_since, quiet_until)
             VALUES ($1, $2, now(), now())",
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
        ("wallet_transactions", "workspace_id"),
        ("oauth_clients", "workspace_id"),
        ("oauth_client_secrets", "client_id"),
        ("oauth_grants", "workspace_id"),
    ] {
        // A client secret belongs to the workspace of its client.
        let [acme, widgets] = match table {
            "oauth_client_secrets" => {
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
        "UPDATE documents SET body = '{}'",
        "DELETE FROM documents",
        "DELETE FROM memberships",
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

#[tokio::test]
async fn workspace_setting_ends_with_its_transaction() {
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
    let error = call2me_auth::store::Store::connect(&url, &options).await.unwrap_err();
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
    // Not even the owner of the tables can undo it.
    for sql in [
        "UPDATE api_keys SET revoked_at = NULL",
        "UPDATE api_keys SET revoked_at = now() + interval '1 day'",
        "UPDATE sessions SET ended_at = NULL",
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
            "INSERT INTO signing_keys VALUES (gen_random_uuid(), sha256('x'), 'sealed', '{moment}')"
        );
        connection.execute(sqlx::AssertSqlSafe(sql)).await.unwrap();
    }
    let app = TestApp::start_on(database, &[("server.public_url", &url)]).await;
    assert_eq!(app.get("/.well-known/jwks.json").send().await.text, jwks);
}

async fn set_workspace(connection: &mut PgConnection, workspace: Uuid) {
    sqlx::query("SELECT set_config('call2me.workspace_id', $1, true)")
        .bind(workspace.to_string())
        .execute(connection)
        .await
        .unwrap();
}

async fn count_rows(connection: &mut PgConnection, what: &str) -> i64 {
    let sql = format!("SELECT count(*) FROM {what}");
    sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_one(connection).await.unwrap()
}
