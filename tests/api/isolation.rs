//! The database alone keeps workspaces apart: what the role of the service sees and changes when the
//! workspace's condition is left out of a query altogether.

use call2me_auth::model::id;
use serde_json::json;
use sqlx::{Connection, Executor, PgConnection};
use uuid::Uuid;

use crate::fixture::{Person, TestApp, oauth::OAuth};

/// Tables that no workspace owns, and why the role may read them.
const SHARED: [&str; 3] = [
    "_sqlx_migrations",          // the schema's version
    "signing_keys",              // the deployment's; private halves are sealed
    "unknown_credential_counts", // addresses of nobody known
];

struct Setting {
    connection: PgConnection,
    acme: Uuid,
    widgets: Uuid,
}

impl Setting {
    /// Two workspaces with something in every table, seen as the role of the service, for acme.
    async fn new(app: &TestApp) -> Self {
        let [acme, widgets] = [app.register("acme").await, app.register("widgets-inc").await];
        for person in [&acme, &widgets] {
            fill(app, person).await;
        }
        let [acme, widgets] = [&acme, &widgets].map(|p| id::parse("ws", &p.workspace_id).unwrap());
        let mut connection = app.database.connect().await;
        connection.execute("SET ROLE call2me_auth_app").await.unwrap();
        Self { connection, acme, widgets }
    }
}

async fn fill(app: &TestApp, person: &Person) {
    let key = app.mint(person, "k", "write").await;
    let post = app.post("/v1/agents").bearer(&key.secret).json(json!({ "agent_name": "a" }));
    post.send().await.expect(201);
    let body = json!({ "email": "sam@new.example", "role": "viewer" });
    let post = app.post("/v1/invitations").bearer(&person.access_token).json(body);
    post.send().await.expect(201);
    let body = json!({ "name": "robot", "grant_types": ["client_credentials"] });
    let post = app.post("/v1/oauth/clients").bearer(&person.access_token).json(body);
    let client = post.send().await.expect(201);
    let [id, secret] = ["id", "client_secret"].map(|field| client[field].as_str().unwrap());
    let fields =
        [("grant_type", "client_credentials"), ("client_id", id), ("client_secret", secret)];
    app.token(&fields).await.expect(200);
    let query = format!("key_id={}", key.id);
    app.events(&person.access_token, &query, |_| true).await;
    app.database.all_is_sealed().await;
    let workspace = id::parse("ws", &person.workspace_id).unwrap();
    let key = id::parse("key", &key.id).unwrap();
    let mut connection = app.database.connect().await;
    for (sql, id) in [
        ("INSERT INTO wallet_transactions VALUES ($2, $1, 'top_up', 1, 'x', now())", workspace),
        (
            "INSERT INTO quiet_keys (workspace_id, key_id, quiet_since, quiet_until)
             VALUES ($1, $2, now(), now())",
            key,
        ),
    ] {
        sqlx::query(sql).bind(workspace).bind(id).execute(&mut connection).await.unwrap();
    }
}

/// Tables that the role may read, with whether row-level security is on.
async fn tables(connection: &mut PgConnection) -> Vec<(String, bool)> {
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
async fn no_table_can_be_read_without_a_policy() {
    let app = TestApp::start().await;
    let found = tables(&mut app.database.connect().await).await;
    let open: Vec<_> = found.iter().filter(|(_, secured)| !secured).map(|(name, _)| name).collect();
    assert_eq!(open, SHARED);
    assert!(
        found.iter().all(
            |(name, _)| !name.starts_with("audit_events_") && !name.starts_with("audit_seals_")
        ),
        "no partition"
    );
}

#[tokio::test]
async fn without_a_workspace_the_role_sees_nothing() {
    let app = TestApp::start().await;
    let mut setting = Setting::new(&app).await;
    for (table, _) in tables(&mut setting.connection).await {
        if SHARED.contains(&table.as_str()) {
            continue;
        }
        let count = count(&mut setting.connection, &format!("\"{table}\"")).await;
        assert_eq!(count, 0, "{table}");
    }
}

#[tokio::test]
async fn for_a_workspace_the_role_sees_that_workspace_alone() {
    let app = TestApp::start().await;
    let mut setting = Setting::new(&app).await;
    let (acme, widgets) = (setting.acme, setting.widgets);
    let mut seen = 0;
    for (table, column) in [
        ("workspaces", "id"),
        ("memberships", "workspace_id"),
        ("invitations", "workspace_id"),
        ("api_keys", "workspace_id"),
        ("api_key_activity", "workspace_id"),
        ("audit_events", "workspace_id"),
        ("audit_seals", "workspace_id"),
        ("chain_heads", "workspace_id"),
        ("key_usage_hours", "workspace_id"),
        ("key_usage_minutes", "workspace_id"),
        ("key_usage_clients", "workspace_id"),
        ("quiet_keys", "workspace_id"),
        ("documents", "workspace_id"),
        ("wallet_transactions", "workspace_id"),
        ("oauth_clients", "workspace_id"),
        ("oauth_client_secrets", "client_id"),
        ("oauth_grants", "workspace_id"),
    ] {
        // A secret is of its client's workspace.
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
        let mut tx = setting.connection.begin().await.unwrap();
        enter(&mut tx, setting.acme).await;
        let own = count(&mut tx, &format!("{table} WHERE {column} = '{acme}'")).await;
        assert!(own > 0, "{table}");
        // As a query that forgot its WHERE.
        assert_eq!(count(&mut tx, table).await, own, "{table}");
        assert_eq!(
            count(&mut tx, &format!("{table} WHERE {column} = '{widgets}'")).await,
            0,
            "{table}"
        );
        seen += 1;
    }
    assert_eq!(
        seen + SHARED.len()
            + [
                "users",
                "sessions",
                "one_time_tokens",
                "totp_factors",
                "mfa_challenges",
                "passkeys"
            ]
            .len(),
        tables(&mut setting.connection).await.len()
    );
    let mut tx = setting.connection.begin().await.unwrap();
    enter(&mut tx, acme).await;
    assert_eq!(count(&mut tx, "users").await, 1, "members of the workspace");
    assert_eq!(count(&mut tx, "sessions").await, 0, "those of a person, whom nobody named");
    let hashes = tx.execute("SELECT password_hash FROM users").await.unwrap_err();
    assert_eq!(hashes.as_database_error().unwrap().code().unwrap(), "42501");
}

#[tokio::test]
async fn writes_for_another_workspace_fail_or_touch_nothing() {
    let app = TestApp::start().await;
    let mut setting = Setting::new(&app).await;
    let (acme, widgets) = (setting.acme, setting.widgets);
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
        let mut tx = setting.connection.begin().await.unwrap();
        enter(&mut tx, acme).await;
        let table =
            sql.split_whitespace().find(|w| !["UPDATE", "DELETE", "FROM"].contains(w)).unwrap();
        let column = if table == "workspaces" { "id" } else { "workspace_id" };
        let forged = format!("{sql}{}", format_args!(" WHERE {column} = '{widgets}'"));
        let done = tx.execute(sqlx::AssertSqlSafe(forged)).await.unwrap();
        assert_eq!(done.rows_affected(), 0, "{sql}");
        let all = tx.execute(sqlx::AssertSqlSafe(sql)).await.unwrap();
        assert_eq!(all.rows_affected(), 1, "{sql}: acme's one row");
    }
    for sql in [
        "INSERT INTO documents VALUES ($1, $1, 'agent', NULL, '{}', 2, now(), now())",
        "INSERT INTO wallet_transactions VALUES (gen_random_uuid(), $1, 'top_up', 1, 'x', now())",
        "INSERT INTO audit_events (id, workspace_id, action, actor_type)
         VALUES (uuid_at(now()), $1, 'request', 'system')",
        "INSERT INTO ledger (since, workspace_ids, event_ids, digests)
         VALUES (now(), ARRAY[$1], ARRAY[$1], sha256('x'))",
        "INSERT INTO memberships SELECT $1, user_id, 'owner', now() FROM memberships",
        "INSERT INTO invitations VALUES
             ($1, $1, 'a@b.example', 'a@b.example', 'owner', 'x', now(), now(), NULL)",
        "INSERT INTO oauth_clients (id, kind, workspace_id, name, redirect_uris, auth_method, grant_types, created_at)
         VALUES ($1, 'workspace', $1, 'x', '{}', 'none', '{}', now())",
        "INSERT INTO oauth_grants (id, client_id, workspace_id, scope, resources, created_at, begin_by, refresh_seed)
         SELECT $1, client_id, $1, 'admin', resources, now(), now(), sha256('x') FROM oauth_grants",
        "INSERT INTO api_keys (id, workspace_id, name, scope, digest, display_start, display_end, created_at)
         VALUES ($1, $1, 'x', 'admin', sha256('x'), 'a', 'b', now())",
    ] {
        let mut tx = setting.connection.begin().await.unwrap();
        enter(&mut tx, acme).await;
        let error = sqlx::query(sql).bind(widgets).execute(&mut *tx).await.unwrap_err();
        let code = error.as_database_error().unwrap().code().unwrap().into_owned();
        assert_eq!(code, "42501", "{sql}: {error}");
    }
}

#[tokio::test]
async fn the_setting_ends_with_its_transaction() {
    let app = TestApp::start().await;
    let mut setting = Setting::new(&app).await;
    let mut tx = setting.connection.begin().await.unwrap();
    enter(&mut tx, setting.acme).await;
    assert!(count(&mut tx, "documents").await > 0);
    tx.commit().await.unwrap();
    assert_eq!(count(&mut setting.connection, "documents").await, 0);
}

#[tokio::test]
async fn a_login_that_no_policy_binds_is_refused() {
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
    let refused = call2me_auth::store::Store::connect(&url, &options).await.unwrap_err();
    assert!(refused.contains("GRANT call2me_auth_app TO it"), "{refused}");
}

#[tokio::test]
async fn what_has_ended_does_not_come_back() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let key = app.mint(&dana, "k", "write").await;
    app.delete(&format!("/v1/api-keys/{}", key.id))
        .bearer(&dana.access_token)
        .send()
        .await
        .expect(204);
    app.post("/v1/auth/logout").bearer(&dana.access_token).send().await.expect(204);
    let mut connection = app.database.connect().await;
    // Not even for the owner of the tables.
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
async fn a_signing_key_that_somebody_put_there_is_not_believed() {
    let app = TestApp::start().await;
    let jwks = app.get("/.well-known/jwks.json").send().await.text;
    let url = app.url.clone();
    let database = app.stop().await;
    let mut connection = database.connect().await;
    connection.execute("SET ROLE call2me_auth_app").await.unwrap();
    // Older than the genuine one, and younger.
    for moment in ["2020-01-01", "2099-01-01"] {
        let sql = format!(
            "INSERT INTO signing_keys VALUES (gen_random_uuid(), sha256('x'), 'sealed', '{moment}')"
        );
        connection.execute(sqlx::AssertSqlSafe(sql)).await.unwrap();
    }
    let app = TestApp::start_on(database, &[("server.public_url", &url)]).await;
    assert_eq!(app.get("/.well-known/jwks.json").send().await.text, jwks);
}

async fn enter(connection: &mut PgConnection, workspace: Uuid) {
    sqlx::query("SELECT set_config('call2me.workspace_id', $1, true)")
        .bind(workspace.to_string())
        .execute(connection)
        .await
        .unwrap();
}

async fn count(connection: &mut PgConnection, what: &str) -> i64 {
    let sql = format!("SELECT count(*) FROM {what}");
    sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_one(connection).await.unwrap()
}
