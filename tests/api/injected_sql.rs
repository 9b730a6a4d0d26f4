//! SQL that an attacker injects runs as the role of the service, with the context of the attacker's
//! own request. It can call every function of the role. `isolation.rs` checks the tables.

use call2me_auth::{cache_invalidation::InvalidationSink as _, model::id, store::ContextKey};
use serde_json::{Value, json};
use sqlx::{
    AssertSqlSafe, Connection, Executor, PgConnection, Postgres, Row as _, Transaction,
    postgres::PgRow,
};
use uuid::Uuid;

use crate::{
    fixture::{
        Browser, PASSWORD, SmtpSink, TestApp, TestUser, context_key, eventually, link_token,
        oauth::{DEVICE_GRANT, OAuthClient, OAuthExt},
    },
    isolation::database_time,
};

const NEW_PASSWORD: &str = "a walk in the old park";

/// A connection as the role of the service.
pub struct Injection(pub PgConnection);

impl Injection {
    pub async fn new(app: &TestApp) -> Self {
        let mut connection = app.database.connect().await;
        connection.execute("SET ROLE call2me_auth_app").await.unwrap();
        Self(connection)
    }

    /// Begins a transaction with the context of a request of this user.
    pub async fn begin_as(&mut self, user: &TestUser) -> Transaction<'_, Postgres> {
        self.begin(Some(workspace_of(user)), Some(id_of(user))).await
    }

    pub async fn begin(
        &mut self,
        workspace: Option<Uuid>,
        user: Option<Uuid>,
    ) -> Transaction<'_, Postgres> {
        let mut tx = self.0.begin().await.unwrap();
        set_context(&mut tx, workspace, user).await.unwrap();
        tx
    }
}

/// Sets a context as the service does for a user that is a member of the workspace.
async fn set_context(
    tx: &mut PgConnection,
    workspace: Option<Uuid>,
    user: Option<Uuid>,
) -> Result<(), sqlx::Error> {
    let (key, issued_at): (ContextKey, i64) = (context_key(), database_time(tx).await);
    sqlx::query("SELECT set_context($1, $2, $3, $4, $5)")
        .bind(workspace)
        .bind(user)
        .bind(issued_at)
        .bind(key.id())
        .bind(key.sign(workspace, user, issued_at))
        .execute(tx)
        .await
        .map(drop)
}

/// Accepts an invitation as the service does, with a MAC, in the workspace and for the user of the
/// transaction.
async fn accept(tx: &mut PgConnection, invitation: Uuid, user: &TestUser) -> bool {
    let accepted_at = database_time(tx).await;
    let key = context_key();
    let mac = key.sign_decision(
        "accept_invitation",
        &[
            invitation.as_bytes(),
            workspace_of(user).as_bytes(),
            id_of(user).as_bytes(),
            &accepted_at.to_be_bytes(),
        ],
    );
    sqlx::query_scalar("SELECT accept_invitation($1, NULL, $2, $3, $4)")
        .bind(invitation)
        .bind(accepted_at)
        .bind(key.id())
        .bind(mac)
        .fetch_one(tx)
        .await
        .unwrap()
}

pub fn id_of(user: &TestUser) -> Uuid {
    id::parse("user", &user.user_id).unwrap()
}

pub fn workspace_of(user: &TestUser) -> Uuid {
    id::parse("ws", &user.workspace_id).unwrap()
}

/// Runs SQL as the owner of the tables.
pub async fn execute(app: &TestApp, sql: impl Into<String>) {
    let mut connection = app.database.connect().await;
    let sql: String = sql.into();
    connection.execute(AssertSqlSafe(sql.clone())).await.unwrap_or_else(|e| panic!("{sql}: {e}"));
}

/// Returns the first row of a query of the owner of the tables.
pub async fn fetch(app: &TestApp, sql: impl Into<String>) -> PgRow {
    let mut connection = app.database.connect().await;
    let sql: String = sql.into();
    connection.fetch_one(AssertSqlSafe(sql)).await.unwrap()
}

/// Runs SQL and checks that the role may not.
pub async fn assert_denied(connection: &mut PgConnection, sql: &str) {
    let mut savepoint = connection.begin().await.unwrap();
    let error = savepoint.execute(AssertSqlSafe(sql.to_owned())).await.unwrap_err();
    let code = error.as_database_error().unwrap().code().unwrap().into_owned();
    assert_eq!(code, "42501", "{sql}: {error}");
}

async fn app_with_mail() -> (TestApp, SmtpSink) {
    let sink = SmtpSink::start();
    (TestApp::start_with(&[("mail.url", &sink.url())]).await, sink)
}

/// Requests a link to reset the password of a user. Returns its token and the id of that.
async fn reset_token(app: &TestApp, sink: &SmtpSink, user: &TestUser) -> (String, Uuid) {
    let forgot = app.post("/v1/auth/password/forgot").json(json!({ "email": user.email }));
    assert_eq!(forgot.send().await.status, 202);
    let token = link_token(&sink.wait_for_email(&user.email, "Reset").await);
    let sql = format!(
        "SELECT id FROM one_time_tokens WHERE purpose = 'reset_password' AND user_id = '{}'",
        id_of(user)
    );
    let id = fetch(app, sql).await.get(0);
    (token, id)
}

async fn reset_password(app: &TestApp, token: &str) -> u16 {
    let body = json!({ "token": token, "new_password": NEW_PASSWORD });
    app.post("/v1/auth/password/reset").json(body).send().await.status.as_u16()
}

/// Returns the account that the token with this id is for.
async fn account_of_token(app: &TestApp, id: Uuid) -> Option<Uuid> {
    let sql = format!("SELECT (SELECT user_id FROM one_time_tokens WHERE id = '{id}')");
    fetch(app, sql).await.get(0)
}

/// The attacker receives a link, and binds the row of its id to the victim's account.
#[tokio::test]
async fn mailed_reset_link_is_invalid_for_other_account() {
    let (app, sink) = app_with_mail().await;
    let victim = app.register_verified("acme").await;
    for attack in ["row pruned", "account deleted", "email injected"] {
        let attacker = app.register_verified(&attack.replace(' ', "-")).await;
        let (token, id) = reset_token(&app, &sink, &attacker).await;
        if attack == "account deleted" {
            let delete = app.request_as(&attacker.access_token, "DELETE", "/v1/users/me");
            let answer = delete.json(json!({ "password": PASSWORD })).send().await;
            assert_eq!(answer.status, 204, "{}", answer.text);
        } else {
            execute(&app, format!("DELETE FROM one_time_tokens WHERE id = '{id}'")).await;
        }
        let (mut injection, email) = (Injection::new(&app).await, &victim.email);
        let bind = if attack == "email injected" {
            // The mailer removes an email after the server has accepted it.
            eventually("the outbox is empty", async || {
                let sql = format!("SELECT count(*) FROM email_outbox WHERE id = '{id}'");
                (fetch(&app, sql).await.get::<i64, _>(0) == 0).then_some(())
            })
            .await;
            format!(
                "INSERT INTO email_outbox (id, message, recipient, class)
                 VALUES ('{id}', '{{\"to\": \"{email}\", \"kind\": \"forgot_password\"}}',
                         '{email}', 'reset')"
            )
        } else {
            format!(
                "SELECT start_password_reset('{id}', '{email}', '2026-06-15', '2099-01-01',
                                             '2099-01-01', 5)"
            )
        };
        injection.0.execute(AssertSqlSafe(bind)).await.unwrap();
        eventually("the id is bound to the victim's account", async || {
            (account_of_token(&app, id).await == Some(id_of(&victim))).then_some(())
        })
        .await;
        assert_eq!(reset_password(&app, &token).await, 422, "{attack}");
    }
    let mailed = link_token(&sink.wait_for_email(&victim.email, "Reset").await);
    assert_eq!(reset_password(&app, &mailed).await, 204, "the victim's own link");
}

/// A user that the attacker registered with an address of a stranger.
#[tokio::test]
async fn mailed_verification_link_is_invalid_for_other_account_or_address() {
    let (app, sink) = app_with_mail().await;
    let attacker = app.register("mallory").await;
    let squatter = app.register("acme").await;
    let token = link_token(&sink.wait_for_email(&attacker.email, "Verify").await);
    let sql = format!("SELECT id FROM one_time_tokens WHERE user_id = '{}'", id_of(&attacker));
    let id: Uuid = fetch(&app, sql).await.get(0);
    let mut injection = Injection::new(&app).await;
    for (user, purpose, address) in [
        (&squatter, "verify_email", &squatter.email),
        (&attacker, "verify_email", &squatter.email),
        (&attacker, "reset_password", &attacker.email),
    ] {
        execute(&app, format!("DELETE FROM one_time_tokens WHERE id = '{id}'")).await;
        let mut tx = injection.begin_as(user).await;
        let sql = format!(
            "INSERT INTO one_time_tokens VALUES
                 ('{id}', '{purpose}', '{}', '{address}', '2026-06-15', '2099-01-01')",
            id_of(user)
        );
        tx.execute(AssertSqlSafe(sql)).await.unwrap();
        tx.commit().await.unwrap();
        let body = json!({ "token": token });
        let answer = app.post("/v1/auth/verify-email").json(body).send().await;
        answer.assert_error(422, "validation_failed").assert_field("token");
        assert_eq!(reset_password(&app, &token).await, 422, "{purpose} {address}");
    }
    let verified = "SELECT count(*) FROM users WHERE email_verified_at IS NOT NULL";
    assert_eq!(fetch(&app, verified).await.get::<i64, _>(0), 0);
}

/// The attacker receives an invitation to its own workspace, and binds its id to another one.
#[tokio::test]
async fn mailed_invitation_is_invalid_for_other_workspace_or_address() {
    let (app, sink) = app_with_mail().await;
    let [mallory, acme] = [app.register_verified("mallory").await, app.register("acme").await];
    let body = json!({ "email": "eve@evil.example", "role": "viewer" });
    let invite = app.post("/v1/invitations").bearer(&mallory.access_token).json(body);
    invite.send().await.expect_status(201);
    let token = link_token(&sink.wait_for_email("eve@evil.example", "Invitation").await);
    let id: Uuid = fetch(&app, "SELECT id FROM invitations").await.get(0);
    let mut injection = Injection::new(&app).await;
    for (inviter, address) in [
        (&acme, "eve@evil.example"),
        (&mallory, "victim@acme.example"),
        (&acme, "victim@acme.example"),
    ] {
        execute(&app, "DELETE FROM invitations").await;
        let mut tx = injection.begin_as(inviter).await;
        let sql = format!(
            "INSERT INTO invitations VALUES
                 ('{id}', '{}', '{address}', '{address}', 'owner', 'x', '2026-06-15',
                  '2099-01-01')",
            workspace_of(inviter)
        );
        tx.execute(AssertSqlSafe(sql)).await.unwrap();
        tx.commit().await.unwrap();
        let body = json!({ "token": token, "password": NEW_PASSWORD });
        let answer = app.post("/v1/invitations/accept").json(body).send().await;
        answer.assert_error(422, "validation_failed").assert_field("token");
        let page = Browser::new(&app).get(&format!("/accept-invitation?token={token}")).await;
        assert!(!page.text.contains(address), "{}", page.text);
    }
}

/// Rows that are alive, by table. Their times are those of the server.
const LIVE_ROWS: [(&str, &str); 14] = [
    (
        "one_time_tokens",
        "SELECT gen_random_uuid(), 'verify_email', id, email, now(), now() + '1 hour' FROM users",
    ),
    (
        "invitations",
        "SELECT gen_random_uuid(), id, 'a@b.example', 'a@b.example', 'owner', 'x', now(), now()
         FROM workspaces",
    ),
    (
        "mfa_challenges",
        "SELECT gen_random_uuid(), id, NULL, now() - interval '59 minutes', now(), 5 FROM users",
    ),
    ("used_webauthn_challenges", "SELECT uuidv7_lower_bound(now())"),
    ("sign_in_failures", "SELECT sha256('x'), '192.0.2.1', 9, now()"),
    ("foreign_sign_in_failures", "SELECT sha256('x'), 9, now(), now()"),
    (
        "oauth_clients (id, kind, name, redirect_uris, auth_method, grant_types, created_at)",
        "SELECT gen_random_uuid(), 'registered', name, '{}', 'none', '{}', now()
         FROM (VALUES ('used'), ('unused')) client (name)",
    ),
    (
        "oauth_client_secrets",
        "SELECT gen_random_uuid(), id, sha256('x'), now(), now() FROM oauth_clients",
    ),
    (
        "oauth_grants (id, client_id, workspace_id, user_id, scope, resources, created_at,
                       redeem_by, refresh_seed, redeemed_at, last_used_at)",
        "SELECT gen_random_uuid(), c.id, w.id, u.id, 'write', '{x}', now(),
                now() + interval '1 min', decode(repeat('00', 68), 'hex'), redeemed_at, redeemed_at
         FROM oauth_clients c, workspaces w, users u,
              (VALUES (NULL), (now() - interval '1 hour')) stage (redeemed_at)
         WHERE c.name = 'used'",
    ),
    (
        "oauth_device_authorizations",
        "SELECT gen_random_uuid(), id, sha256(name::bytea), 'write', '{}', now(),
                now() + interval '1 min', '192.0.2.1', 5 FROM oauth_clients",
    ),
    (
        "oauth_authorization_requests",
        "SELECT gen_random_uuid(), 'x', now(), now() + interval '1 min', '192.0.2.1'",
    ),
    ("unknown_credential_counts", "SELECT '192.0.2.1', now(), 5"),
    ("idempotency_keys", "SELECT sha256('x'), sha256('y'), 'z', now() + interval '1 hour'"),
    (
        "email_outbox (id, message, recipient, class)",
        "SELECT gen_random_uuid(), '{}', 'a@b.example', 'account'",
    ),
];

/// Inserts a live row into each table that prune functions delete from, and returns the tables.
async fn insert_live_rows(app: &TestApp) -> Vec<&'static str> {
    for (table, rows) in LIVE_ROWS {
        execute(app, format!("INSERT INTO {table} {rows}")).await;
    }
    execute(
        app,
        "INSERT INTO key_usage_hours
             SELECT id, workspace_id, now(), 'agents', 'write', 2, 1 FROM api_keys;
         INSERT INTO key_usage_minutes SELECT id, workspace_id, now(), 1 FROM api_keys;
         INSERT INTO key_usage_clients
             SELECT id, workspace_id, '192.0.2.1', '', now(), now(), 'GET', '/', 1 FROM api_keys;
         INSERT INTO email_counts VALUES ('a@b.example', 'account', now(), 5)",
    )
    .await;
    let tables = LIVE_ROWS.map(|(table, _)| table.split_once(' ').map_or(table, |(name, _)| name));
    let others = [
        "key_usage_hours",
        "key_usage_minutes",
        "key_usage_clients",
        "email_counts",
        "invalidation_batches",
    ];
    tables.into_iter().chain(others).collect()
}

pub async fn count(app: &TestApp, table: &str) -> i64 {
    fetch(app, format!("SELECT count(*) FROM {table}")).await.get(0)
}

/// Returns a call of each function that deletes old rows, with these arguments for its times and
/// ages.
async fn prune_calls(app: &TestApp, time: &str, seconds: &str) -> Vec<String> {
    let mut connection = app.database.connect().await;
    let functions: Vec<(String, Vec<String>)> = sqlx::query_as(
        "SELECT p.proname::text, ARRAY(SELECT format_type(t, NULL)
                                       FROM unnest(p.proargtypes) WITH ORDINALITY a (t, position)
                                       ORDER BY position)
         FROM pg_proc p WHERE p.proname LIKE 'prune\\_%'
           AND has_function_privilege('call2me_auth_app', p.oid, 'EXECUTE')",
    )
    .fetch_all(&mut connection)
    .await
    .unwrap();
    assert_eq!(functions.len(), 15, "{functions:?}");
    let call = |(name, types): (String, Vec<String>)| {
        let arguments = types.iter().map(|kind| match kind.as_str() {
            "timestamp with time zone" => time,
            "bigint" => seconds,
            "bytea" => "'x'",
            other => panic!("{name} takes a value of the type {other}: can it delete live rows?"),
        });
        format!("SELECT {name}({})", arguments.collect::<Vec<_>>().join(", "))
    };
    functions.into_iter().map(call).collect()
}

/// Every function that deletes old rows decides itself which rows are old.
#[tokio::test]
async fn prune_functions_delete_nothing_live() {
    let app = TestApp::start_at_system_time(&[]).await;
    let dana = app.register("acme").await;
    app.create_key(&dana, "k", "write").await;
    let tables = insert_live_rows(&app).await;
    let mut before = Vec::new();
    for table in &tables {
        let rows = count(&app, table).await;
        assert!(rows > 0, "{table}");
        before.push(rows);
    }
    let active = "SELECT count(*) FROM oauth_grants WHERE ended_at IS NULL";
    let active_before: i64 = fetch(&app, active).await.get(0);
    let mut injection = Injection::new(&app).await;
    for (time, seconds) in [
        ("'infinity'::timestamptz", "0"),
        ("now() + interval '100 years'", "-9000000000"),
        ("clock_timestamp()", "-1"),
        ("NULL::timestamptz", "NULL"),
    ] {
        for call in prune_calls(&app, time, seconds).await {
            if call.contains("'x'") {
                assert_denied(&mut injection.0, &call).await;
            } else {
                injection.0.execute(AssertSqlSafe(call)).await.unwrap();
            }
        }
    }
    for (table, before) in tables.iter().zip(before) {
        let after = count(&app, table).await;
        assert!(after >= before, "{table}: {after} of {before}");
    }
    assert_eq!(fetch(&app, active).await.get::<i64, _>(0), active_before);
}

/// The same rows are deleted once they are old.
#[tokio::test]
async fn prune_functions_delete_what_is_old() {
    let app = TestApp::start_at_system_time(&[]).await;
    let dana = app.register("acme").await;
    app.create_key(&dana, "k", "write").await;
    let mut tables = insert_live_rows(&app).await;
    // Each column of a time moves into the past.
    let columns = "SELECT table_name::text, column_name::text FROM information_schema.columns
                   WHERE table_schema = 'public' AND data_type = 'timestamp with time zone'";
    let mut connection = app.database.connect().await;
    let columns: Vec<(String, String)> =
        sqlx::query_as(columns).fetch_all(&mut connection).await.unwrap();
    for (table, column) in columns {
        if tables.contains(&table.as_str()) && table != "invalidation_batches" {
            let sql = format!("UPDATE {table} SET {column} = {column} - interval '2000 days'");
            execute(&app, sql).await;
        }
    }
    execute(
        &app,
        "UPDATE used_webauthn_challenges SET id = uuidv7_lower_bound(now() - interval '2 days');
         INSERT INTO api_key_activity (key_id, workspace_id, last_used_at, total_requests,
                                       last_used_epoch, last_success_epoch, last_failure_epoch)
             SELECT id, workspace_id, now() - interval '2000 days', 1, 0, 0, 0 FROM api_keys
         ON CONFLICT (key_id) DO UPDATE SET last_used_at = excluded.last_used_at",
    )
    .await;
    let (store, now) = (&app.app.store, call2me_auth::env::Clock::now(&*app.clock));
    let day = std::time::Duration::from_hours(24);
    store.prune_oauth(now, day).await.unwrap();
    let reasons = "SELECT string_agg(end_reason, ' ') FROM oauth_grants";
    assert_eq!(
        fetch(&app, reasons).await.get::<String, _>(0),
        "idle",
        "the unused code is deleted"
    );
    // Without the trigger, which keeps ended grants from changing.
    execute(
        &app,
        "SET session_replication_role = replica;
         UPDATE oauth_grants SET ended_at = ended_at - interval '91 days'",
    )
    .await;
    store.prune_oauth(now, day).await.unwrap();
    store.prune_one_time_tokens(now).await.unwrap();
    store.prune_wrong_passwords(now).await.unwrap();
    store.prune_mfa_challenges(now).await.unwrap();
    store.prune_passkey_challenges(now).await.unwrap();
    store.prune_idempotency_keys(now).await.unwrap();
    store.prune_key_usage(now, day).await.unwrap();
    store.prune_usage_minutes(now).await.unwrap();
    store.prune_invitations(now).await.unwrap();
    store.prune_unknown_credential_counts().await.unwrap();
    store.prune_invalidations().await.unwrap();
    store.prune_mails().await.unwrap();
    tables.retain(|table| *table != "invalidation_batches");
    for table in tables {
        assert_eq!(count(&app, table).await, 0, "{table}");
    }
}

/// Only a node knows the settings that decide which grants and counts are old.
#[tokio::test]
async fn settings_of_prune_functions_need_their_mac() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let mut injection = Injection::new(&app).await;
    let (key, hour) = (context_key(), 3600);
    let [grants, usage] = ["oauth.refresh_token_seconds", "audit.usage_retention_days"];
    let hex = |bytes: &[u8]| data_encoding::HEXLOWER.encode(bytes);
    let sign = |name, seconds: i64| key.sign_decision(name, &[&seconds.to_be_bytes()]);
    for (function, mac) in [
        ("prune_oauth_grants", sign(usage, hour)),
        ("prune_oauth_grants", sign(grants, hour + 1)),
        ("prune_oauth_grants", key.sign(Some(workspace_of(&dana)), None, hour)),
        ("prune_oauth_grants", [0; 32]),
        ("prune_key_usage", sign(grants, hour)),
        ("prune_key_usage", sign(usage, hour - 1)),
        ("prune_key_usage", [0; 32]),
    ] {
        let call = format!(
            "SELECT {function}(now(), {hour}, '\\x{}', '\\x{}')",
            hex(&key.id()),
            hex(&mac)
        );
        assert_denied(&mut injection.0, &call).await;
    }
}

/// Inserting a member would show the whole workspace the row of that user.
#[tokio::test]
async fn membership_requires_invitation_of_own_address() {
    let app = TestApp::start().await;
    let [victim, attacker] = [app.register("acme").await, app.register("mallory").await];
    let (stranger, own) = (id_of(&victim), workspace_of(&attacker));
    let mut injection = Injection::new(&app).await;
    let mut tx = injection.begin_as(&attacker).await;
    for sql in [
        format!("INSERT INTO memberships VALUES ('{own}', '{stranger}', 'viewer', now())"),
        format!("UPDATE memberships SET user_id = '{stranger}'"),
        format!("INSERT INTO workspaces (id, name, created_at) VALUES ('{own}', 'x', now())"),
        format!("SELECT create_workspace('{}', 'x', now())", workspace_of(&victim)),
        "SELECT create_workspace(gen_random_uuid(), 'x', now())".to_owned(),
        "SELECT create_workspace(NULL, 'x', now())".to_owned(),
    ] {
        assert_denied(&mut tx, &sql).await;
    }
    // Invitations of the workspace: for the victim's address, expired, and closed.
    for (address, expires_at, closed_at) in [
        (&victim.email, "2099-01-01", "NULL"),
        (&attacker.email, "2020-01-01", "NULL"),
        (&attacker.email, "2099-01-01", "now()"),
    ] {
        let id = Uuid::from_u128(1);
        let sql = format!(
            "INSERT INTO invitations VALUES ('{id}', '{own}', '{address}', '{address}', 'owner',
                                             'x', now(), '{expires_at}', {closed_at})"
        );
        let mut savepoint = tx.begin().await.unwrap();
        savepoint.execute(AssertSqlSafe(sql)).await.unwrap();
        let is_accepted = accept(&mut savepoint, id, &attacker).await;
        assert!(!is_accepted, "{address} {expires_at} {closed_at}");
    }
    let seen = format!("SELECT count(*) FROM users WHERE id = '{stranger}'");
    let seen: i64 = tx.fetch_one(AssertSqlSafe(seen)).await.unwrap().get(0);
    assert_eq!(seen, 0);
    drop(tx);
    // A context without a user, such as that of a request with an API key.
    let mut tx = injection.begin(Some(own), None).await;
    assert_denied(&mut tx, &format!("SELECT create_workspace('{own}', 'x', now())")).await;
}

/// An invitation of another workspace, also one to the attacker's address, is accepted only in a
/// request that presents its token.
#[tokio::test]
async fn invitation_of_other_workspace_is_not_accepted() {
    let app = TestApp::start().await;
    let [acme, attacker] = [app.register_verified("acme").await, app.register("mallory").await];
    for address in ["sam@new.example", &attacker.email] {
        let body = json!({ "email": address, "role": "owner" });
        let invite = app.post("/v1/invitations").bearer(&acme.access_token).json(body);
        invite.send().await.expect_status(201);
    }
    let mut injection = Injection::new(&app).await;
    let mut tx = injection.begin_as(&attacker).await;
    let mut as_owner = app.database.connect().await;
    let ids: Vec<Uuid> =
        sqlx::query_scalar("SELECT id FROM invitations").fetch_all(&mut as_owner).await.unwrap();
    for id in ids {
        assert!(!accept(&mut tx, id, &attacker).await);
    }
}

async fn register_workspace_client(app: &TestApp, owner: &TestUser) -> OAuthClient {
    let body = json!({
        "name": "robot", "grant_types": ["client_credentials"],
        "token_endpoint_auth_method": "client_secret_post",
    });
    let create = app.post("/v1/oauth/clients").bearer(&owner.access_token).json(body);
    OAuthClient::from_registration(&create.send().await.expect_status(201))
}

fn client_id(client: &OAuthClient) -> Uuid {
    id::parse("client", &client.id).unwrap()
}

/// A client has one grant of its own. One that an attacker inserts would take its place.
#[tokio::test]
async fn foreign_own_grant_is_refused_and_client_gets_tokens() {
    let app = TestApp::start().await;
    let [acme, attacker] = [app.register("acme").await, app.register("mallory").await];
    let victim = register_workspace_client(&app, &acme).await;
    let registered = app.register_client(json!({})).await;
    let (own, foreign) = (workspace_of(&attacker), workspace_of(&acme));
    let seed = "decode(repeat('00', 68), 'hex')";
    let insert = |client: &OAuthClient| {
        format!(
            "INSERT INTO oauth_grants (id, client_id, workspace_id, scope, resources, created_at,
                                       redeem_by, refresh_seed)
             VALUES (gen_random_uuid(), '{}', '{own}', 'write', '{{x}}', now(), now(), {seed})",
            client_id(client)
        )
    };
    let call = |client: &OAuthClient, workspace: Uuid| {
        format!(
            "SELECT get_or_create_own_grant(gen_random_uuid(), '{}', '{workspace}', 'write',
                                            '{{x}}', now(), {seed})",
            client_id(client)
        )
    };
    let mut injection = Injection::new(&app).await;
    let mut tx = injection.begin_as(&attacker).await;
    for sql in [
        insert(&victim),
        insert(&registered),
        call(&victim, own),
        call(&victim, foreign),
        call(&registered, own),
    ] {
        assert_denied(&mut tx, &sql).await;
    }
    drop(tx);
    let fields = [("grant_type", "client_credentials")];
    for _ in 0..2 {
        app.request_token(&victim.with_client_credentials(&fields)).await.expect_status(200);
    }
    assert_eq!(count(&app, "oauth_grants").await, 1);
}

async fn register_device_client(app: &TestApp) -> OAuthClient {
    let grants = json!({ "grant_types": [DEVICE_GRANT, "authorization_code"] });
    app.register_client(grants).await
}

/// Starts a device authorization. Returns the response and the id of the authorization.
async fn start_device(app: &TestApp, client: &OAuthClient) -> (Value, Uuid) {
    let fields = client.with_client_credentials(&[("scope", "call2me:write")]);
    let device = app.post_form("/oauth/device_authorization", &fields).await.expect_status(200);
    let newest = "SELECT id FROM oauth_device_authorizations ORDER BY id DESC LIMIT 1";
    (device, fetch(app, newest).await.get(0))
}

/// Inserts a grant as the owner of the tables, and returns its id.
async fn insert_grant(
    app: &TestApp,
    [client, workspace, user]: [Uuid; 3],
    columns: &str,
    values: &str,
) -> Uuid {
    let sql = format!(
        "INSERT INTO oauth_grants (id, client_id, workspace_id, user_id, scope, resources,
                                   created_at, redeem_by, refresh_seed{columns})
         VALUES (gen_random_uuid(), '{client}', '{workspace}', '{user}', 'write', '{{x}}', now(),
                 '2099-01-01', decode(repeat('00', 68), 'hex'){values}) RETURNING id"
    );
    fetch(app, sql).await.get(0)
}

#[tokio::test]
async fn device_is_decided_only_with_new_grant_of_its_client_and_user() {
    let app = TestApp::start().await;
    let [victim, attacker] = [app.register("acme").await, app.register("mallory").await];
    let [client, other] = [register_device_client(&app).await, register_device_client(&app).await];
    let (_, device) = start_device(&app, &client).await;
    let own = [client_id(&client), workspace_of(&attacker), id_of(&attacker)];
    let [theirs, their_user] = [workspace_of(&victim), id_of(&victim)];
    let code = ", redirect_uri, code_challenge";
    let mut injection = Injection::new(&app).await;
    for (parties, columns, values) in [
        ([own[0], theirs, their_user], "", ""),
        ([own[0], own[1], their_user], "", ""),
        ([own[0], theirs, own[2]], "", ""),
        ([client_id(&other), own[1], own[2]], "", ""),
        (own, code, ", 'https://a.example/', sha256('x')"),
        (own, ", redeemed_at, last_used_at", ", now(), now()"),
        (own, ", ended_at", ", now()"),
    ] {
        let grant = insert_grant(&app, parties, columns, values).await;
        let mut tx = injection.begin_as(&attacker).await;
        let decide = "SELECT decide_device_authorization($1, $2, '2026-06-15')";
        let decide = sqlx::query_scalar(decide).bind(device).bind(grant);
        let is_decided: bool = decide.fetch_one(&mut *tx).await.unwrap();
        assert!(!is_decided, "{parties:?} {columns}");
    }
    let grant = insert_grant(&app, own, "", "").await;
    let mut tx = injection.begin_as(&attacker).await;
    let decide = "SELECT decide_device_authorization($1, $2, '2026-06-15')";
    let decide = sqlx::query_scalar(decide).bind(device).bind(grant);
    let is_decided: bool = decide.fetch_one(&mut *tx).await.unwrap();
    assert!(is_decided, "the user's own decision");
}

/// Also if a device authorization has the grant of another client or flow, the device gets nothing.
#[tokio::test]
async fn device_gets_no_tokens_of_other_client_or_flow() {
    let app = TestApp::start().await;
    let victim = app.register("acme").await;
    let [client, other] = [register_device_client(&app).await, register_device_client(&app).await];
    let mut browser = Browser::signed_in(&app, &victim.email).await;
    for (attack, of) in [("other flow", &client), ("other client and flow", &other)] {
        let code = app.obtain_code(&mut browser, of, &[]).await;
        let (device, _) = start_device(&app, &client).await;
        execute(
            &app,
            "UPDATE oauth_device_authorizations SET grant_id = (SELECT max(id::text)::uuid
                                                                FROM oauth_grants)
             WHERE id = (SELECT max(id::text)::uuid FROM oauth_device_authorizations)",
        )
        .await;
        poll(&app, &client, &device).await.assert_oauth_error(400, "invalid_grant");
        let answer = app.redeem_code(of, &code).await;
        assert_eq!(answer.status, 200, "{attack}: {}", answer.text);
    }
    // The approved device of another client.
    let (device, approved) = start_device(&app, &other).await;
    let page = browser.get("/device").await;
    let code = device["user_code"].as_str().unwrap();
    let page = browser.submit(&page, "/device", &[("user_code", code)]).await;
    assert_eq!(browser.submit_consent(&page, &[]).await.status, 200);
    let (stolen, id) = start_device(&app, &client).await;
    execute(
        &app,
        format!(
            "UPDATE oauth_device_authorizations SET grant_id =
                 (SELECT grant_id FROM oauth_device_authorizations WHERE id = '{approved}')
             WHERE id = '{id}'"
        ),
    )
    .await;
    poll(&app, &client, &stolen).await.assert_oauth_error(400, "invalid_grant");
    poll(&app, &other, &device).await.expect_status(200);
}

async fn poll(app: &TestApp, client: &OAuthClient, device: &Value) -> crate::fixture::TestResponse {
    let code = device["device_code"].as_str().unwrap();
    let fields = [("grant_type", DEVICE_GRANT), ("device_code", code)];
    app.request_token(&client.with_client_credentials(&fields)).await
}

/// Runs SQL and checks that a constraint, or the lack of a right, refuses it.
pub async fn assert_refused(connection: &mut PgConnection, sql: &str) {
    let mut savepoint = connection.begin().await.unwrap();
    let error = savepoint.execute(AssertSqlSafe(sql.to_owned())).await.unwrap_err();
    let code = error.as_database_error().unwrap().code().unwrap().into_owned();
    assert!(["23514", "42501"].contains(&&*code), "{sql}: {error}");
}

/// A call of `append_audit_events` without events, with these times and counts.
pub fn append_usage(
    oldest: &str,
    key: &str,
    agent: &str,
    ids: [&str; 2],
    requests: &str,
) -> String {
    let none = "'{}'";
    let events = [none; 17].join(", ");
    let [first, last] = ids;
    format!(
        "SELECT append_audit_events({events}, '', '{oldest}', ARRAY[{key}]::uuid[],
             ARRAY['agents'], ARRAY['write'], ARRAY[2::smallint], ARRAY['served'],
             ARRAY['192.0.2.1'::inet], ARRAY[{agent}], ARRAY['GET'], ARRAY['/'],
             ARRAY['{first}'::uuid], ARRAY['{last}'::uuid], ARRAY[{requests}::bigint], false)"
    )
}

pub const AN_ID: &str = "01938000-0000-7000-8000-000000000000";
const LATE_ID: &str = "ffffffff-ffff-7fff-bfff-ffffffffffff";

/// An attacker's user with a row in each table that the role may write.
pub async fn register_writer(app: &TestApp) -> (TestUser, Uuid) {
    let mallory = app.register("mallory").await;
    let key = app.create_key(&mallory, "k", "write").await;
    let client = client_id(&register_workspace_client(app, &mallory).await);
    insert_grant(app, [client, workspace_of(&mallory), id_of(&mallory)], "", "").await;
    (mallory, id::parse("key", &key.id).unwrap())
}

pub async fn assert_all_refused(app: &TestApp, mallory: &TestUser, statements: &[String]) {
    let mut injection = Injection::new(app).await;
    let mut tx = injection.begin_as(mallory).await;
    for sql in statements {
        assert_refused(&mut tx, sql).await;
    }
}

/// One value that a node cannot decode would stop the queries of all tenants.
#[tokio::test]
async fn arrays_and_json_that_no_node_can_read_are_refused() {
    let app = TestApp::start().await;
    let (mallory, _) = register_writer(&app).await;
    let workspace = workspace_of(&mallory);
    let mut statements: Vec<_> = [
        ("api_keys SET allowed_ips", "ARRAY[NULL]::cidr[]"),
        ("oauth_clients SET redirect_uris", "ARRAY[NULL]::text[]"),
        ("oauth_grants SET revoked_tokens", "ARRAY[NULL]::uuid[]"),
        ("oauth_grants SET revoked_tokens", "array_fill(gen_random_uuid(), ARRAY[1], ARRAY[2])"),
        ("oauth_grants SET revoked_tokens", "array_fill(gen_random_uuid(), ARRAY[2, 2])"),
    ]
    .map(|(column, value)| format!("UPDATE {column} = {value}"))
    .into();
    for ips in ["ARRAY[NULL]", "'[2:2]={192.0.2.1}'", "'{{192.0.2.1,192.0.2.2}}'"] {
        statements.push(format!(
            "SELECT insert_api_key(gen_random_uuid(), '{workspace}', 'k', NULL, 'write',
                 sha256('k'), 'a', 'b', {ips}::inet[], now(), NULL, NULL, NULL, NULL, NULL)"
        ));
    }
    let numbers = r#"'{"n": 1e400}'"#;
    for json in [numbers, "(repeat('[', 500) || repeat(']', 500))::jsonb"] {
        statements.push(format!(
            "INSERT INTO audit_events (id, workspace_id, action, actor_type, metadata)
             VALUES (uuidv7_lower_bound(now()), '{workspace}', 'x', 'user', {json})"
        ));
    }
    assert_all_refused(&app, &mallory, &statements).await;
}

#[tokio::test]
async fn times_that_no_node_can_read_are_refused() {
    let app = TestApp::start().await;
    let (mallory, key) = register_writer(&app).await;
    let (key, workspace) = (format!("'{key}'"), workspace_of(&mallory));
    let mut statements = Vec::new();
    for time in ["infinity", "-infinity", "20000-01-01", "9999-12-31", "0044-03-15 BC"] {
        for column in [
            "api_keys SET disabled_at",
            "sessions SET last_seen_at",
            "oauth_grants SET last_used_at",
            "users SET email_verified_at",
            "signing_keys SET retired_at",
        ] {
            statements.push(format!("UPDATE {column} = '{time}'"));
        }
        statements.push(append_usage(time, &key, "''", [AN_ID; 2], "1"));
        statements.push(format!(
            "SELECT reserve_sign_in_attempt(sha256('x'), '192.0.2.1', 0, '{time}', now())"
        ));
        statements.push(format!(
            "SELECT insert_api_key(gen_random_uuid(), '{workspace}', 'k', NULL, 'write',
                 sha256('k'), 'a', 'b', '{{}}', '{time}', NULL, NULL, NULL, NULL, NULL)"
        ));
        statements.push(format!(
            "INSERT INTO signing_keys VALUES (gen_random_uuid(), 'access tokens', 'EdDSA',
                                              decode(repeat('00', 68), 'hex'), '{time}', now())"
        ));
    }
    assert_all_refused(&app, &mallory, &statements).await;
}

/// The sealer, the mailer and the counters of all nodes would fail at each attempt.
#[tokio::test]
async fn counts_and_texts_that_no_node_can_add_are_refused() {
    let app = TestApp::start().await;
    let (mallory, key) = register_writer(&app).await;
    let key = format!("'{key}'");
    let email = |recipient: &str, column: &str, value: &str| {
        format!(
            "INSERT INTO email_outbox (id, message, recipient, class{column})
             VALUES (gen_random_uuid(), '{{}}', {recipient}, 'account'{value})"
        )
    };
    let mut statements = vec![
        email("'a@b.example'", ", attempts", ", 2147483647"),
        email("repeat('a', 100000)", "", ""),
    ];
    for attempts in ["-1", "9223372036854775807"] {
        statements.push(format!(
            "INSERT INTO unknown_credential_counts VALUES ('192.0.2.1', now(), {attempts})"
        ));
    }
    let agent = "(SELECT string_agg(md5(i::text), '') FROM generate_series(1, 1000) i)";
    for (agent, ids, requests) in [
        ("''", [LATE_ID, AN_ID], "1"),
        ("''", [AN_ID, LATE_ID], "1"),
        ("''", [AN_ID; 2], "9223372036854775807"),
        ("''", [AN_ID; 2], "-1"),
        ("''", [AN_ID; 2], "NULL"),
        (agent, [AN_ID; 2], "1"),
        ("NULL", [AN_ID; 2], "1"),
    ] {
        statements.push(append_usage("2026-06-15", &key, agent, ids, requests));
    }
    assert_all_refused(&app, &mallory, &statements).await;
    let mut injection = Injection::new(&app).await;
    let usual = append_usage("2026-06-15", &key, "'curl/8'", [AN_ID; 2], "1");
    injection.0.execute(AssertSqlSafe(usual)).await.unwrap();
}

/// Also the columns of tables that are added later.
#[tokio::test]
async fn every_time_array_and_json_has_its_check() {
    let app = TestApp::start().await;
    let mut connection = app.database.connect().await;
    let unchecked: Vec<(String, String)> = sqlx::query_as(
        "SELECT c.relname::text, a.attname::text
         FROM pg_class c
         JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
         JOIN pg_type t ON t.oid = a.atttypid
         WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')
           AND c.relname <> '_sqlx_migrations'
           AND (t.typcategory = 'A' OR t.typname IN ('timestamptz', 'jsonb'))
           AND NOT EXISTS (
               SELECT FROM pg_constraint k
               WHERE k.conrelid = c.oid AND k.contype = 'c' AND k.conkey = ARRAY[a.attnum]
                 AND pg_get_constraintdef(k.oid)
                     LIKE CASE WHEN t.typcategory = 'A' THEN '%is_plain_array(%'
                               WHEN t.typname = 'jsonb' THEN '%is_readable_json(%'
                               ELSE '%is_supported_time(%' END)",
    )
    .fetch_all(&mut connection)
    .await
    .unwrap();
    assert!(unchecked.is_empty(), "{unchecked:?}");
}

/// Drops the check of a column and sets it to a value that no node can read.
async fn make_unreadable(app: &TestApp, table: &str, column: &str, value: &str, row: &str) {
    execute(
        app,
        format!(
            "ALTER TABLE {table} DROP CONSTRAINT {table}_{column}_is_readable;
             UPDATE {table} SET {column} = {value} WHERE {row}"
        ),
    )
    .await;
}

/// Looks up credentials at the same time, and returns the statuses of the responses.
async fn look_up_together(app: &TestApp, credentials: &[&str]) -> Vec<u16> {
    app.app.auth.caches.invalidate_all();
    let requests = credentials.iter().map(async |credential| {
        app.get("/v1/agents").bearer(credential).send().await.status.as_u16()
    });
    futures_util::future::join_all(requests).await
}

/// A row that cannot be read, such as one from before a check, costs no other tenant its request.
#[tokio::test]
async fn unreadable_credential_is_rejected_alone() {
    let app = TestApp::start().await;
    let [acme, mallory] = [app.register("acme").await, app.register("mallory").await];
    // The decoder panics at the first value, and refuses the second one.
    for (column, value) in [("disabled_at", "'infinity'"), ("allowed_ips", "ARRAY[NULL]::cidr[]")] {
        let bad = app.create_key(&mallory, "bad", "write").await;
        let mut good = Vec::new();
        for _ in 0..5 {
            good.push(app.create_key(&acme, "good", "write").await.secret);
        }
        let id: Uuid = id::parse("key", &bad.id).unwrap();
        make_unreadable(&app, "api_keys", column, value, &format!("id = '{id}'")).await;
        for _ in 0..3 {
            let good = good.iter().map(String::as_str);
            let all: Vec<_> = [&*bad.secret].into_iter().chain(good).collect();
            assert_eq!(look_up_together(&app, &all).await, [503, 200, 200, 200, 200, 200]);
        }
    }
    let row = format!("user_id = '{}'", id_of(&mallory));
    make_unreadable(&app, "sessions", "expires_at", "'infinity'", &row).await;
    for _ in 0..3 {
        let all = [&*mallory.access_token, &*acme.access_token];
        assert_eq!(look_up_together(&app, &all).await, [503, 200]);
    }
}

/// An entry that cannot be sealed, such as one from before a check, does not delay the others.
#[tokio::test]
async fn entry_that_cannot_be_sealed_is_skipped() {
    let app = TestApp::start().await;
    let mallory = app.register("mallory").await;
    let key = app.create_key(&mallory, "k", "write").await;
    let key: Uuid = id::parse("key", &key.id).unwrap();
    app.database.wait_until_sealed().await;
    execute(
        &app,
        "ALTER TABLE audit_outbox DROP CONSTRAINT audit_outbox_oldest_event_at_is_readable;
         ALTER TABLE audit_outbox DROP CONSTRAINT audit_outbox_usage_requests_check;",
    )
    .await;
    let key = format!("'{key}'");
    // The decoder panics, and PostgreSQL refuses the sum.
    let panics = append_usage("-infinity", &key, "''", [AN_ID; 2], "1");
    let usage = append_usage("2026-06-15", &key, "''", [AN_ID; 2], "9223372036854775807");
    execute(&app, format!("{panics}; {usage}; {usage}")).await;
    app.create_key(&mallory, "later", "write").await;
    // The sum of the first two numbers is out of range, so one of them stays.
    eventually("all others are sealed", async || {
        (count(&app, "audit_outbox").await == 2).then_some(())
    })
    .await;
    app.wait_for_event_count(&mallory.access_token, "action=api_key.created", 2).await;
}

/// Emails that cannot be read do not delay the others.
#[tokio::test]
async fn unreadable_email_does_not_stop_others() {
    let (app, sink) = app_with_mail().await;
    execute(&app, "ALTER TABLE email_outbox DROP CONSTRAINT email_outbox_message_is_readable")
        .await;
    let numbers = r#"'{"n": 1e400}'"#;
    for message in [numbers, "repeat('[', 500) || repeat(']', 500)", "'[]'"] {
        let inject = format!(
            "INSERT INTO email_outbox (id, message, recipient, class)
             SELECT gen_random_uuid(), ({message})::jsonb, 'a@b.example', 'account'
             FROM generate_series(1, 40)"
        );
        execute(&app, inject).await;
    }
    let dana = app.register("acme").await;
    sink.wait_for_email(&dana.email, "Verify").await;
}

/// Records the contexts of all transactions that are committed from now on.
async fn record_contexts(app: &TestApp) {
    execute(
        app,
        "CREATE TABLE recorded_contexts (workspace_id uuid, user_id uuid);
         ALTER FUNCTION set_context RENAME TO genuine_set_context;
         CREATE FUNCTION set_context(workspace uuid, member uuid, issued_at bigint, key_id bytea,
                                     mac bytea, is_joining boolean DEFAULT false)
             RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
             AS $$
             BEGIN
                 PERFORM genuine_set_context(workspace, member, issued_at, key_id, mac, is_joining);
                 IF current_setting('transaction_read_only') = 'off' THEN
                     INSERT INTO recorded_contexts
                     VALUES (current_workspace_id(), current_user_id());
                 END IF;
             END
             $$",
    )
    .await;
}

/// Returns the number of recorded contexts for which the condition is true.
async fn count_contexts(app: &TestApp, condition: &str) -> i64 {
    count(app, &format!("recorded_contexts WHERE {condition}")).await
}

/// A key is a credential of its workspace. Injected SQL may have stored any creator with it.
#[tokio::test]
async fn request_of_api_key_has_no_user() {
    let app = TestApp::start().await;
    let [acme, victim] = [app.register_verified("acme").await, app.register("victim").await];
    let viewer = app.add_member(&acme, "viewer").await;
    let key = app.create_key(&acme, "k", "admin").await;
    let forged = app.create_key(&acme, "forged", "admin").await;
    let creator = "UPDATE api_keys SET creator_user_id =";
    execute(&app, format!("{creator} '{}' WHERE name = 'forged'", id_of(&victim))).await;
    record_contexts(&app).await;
    let client = json!({ "name": "robot", "grant_types": ["client_credentials"] });
    let remove = format!("/v1/members/{}", viewer.user_id);
    for (method, path, body, status) in [
        ("POST", "/v1/agents", json!({ "agent_name": "a" }), 201),
        ("PATCH", "/v1/users/me", json!({ "full_name": "Dana of Acme" }), 200),
        ("PATCH", "/v1/workspace", json!({ "name": "Acme" }), 200),
        ("POST", "/v1/api-keys", json!({ "name": "child", "scope": "admin" }), 201),
        ("POST", "/v1/oauth/clients", client.clone(), 201),
        ("DELETE", &remove, json!({}), 204),
    ] {
        let answer = app.request_as(&key.secret, method, path).json(body).send().await;
        assert_eq!(answer.status, status, "{method} {path}: {}", answer.text);
    }
    for (path, body) in
        [("/v1/agents", json!({ "agent_name": "a" })), ("/v1/oauth/clients", client)]
    {
        app.post(path).bearer(&forged.secret).json(body).send().await.expect_status(201);
    }
    assert!(count_contexts(&app, "workspace_id IS NOT NULL").await > 0);
    assert_eq!(count_contexts(&app, "user_id IS NOT NULL").await, 0);
    let me = app.get("/v1/users/me").bearer(&key.secret).send().await.expect_status(200);
    assert_eq!(me["full_name"], "Dana of Acme");
    let created = format!("api_keys WHERE creator_user_id = '{}'", id_of(&acme));
    assert_eq!(count(&app, &created).await, 2, "the key and its child");
}

/// An app may do in one workspace what the user allowed there, and nothing in the user's others.
#[tokio::test]
async fn request_of_oauth_grant_has_no_user() {
    let app = TestApp::start().await;
    let acme = app.register_verified("acme").await;
    let client = app.register_client(json!({})).await;
    let mut browser = Browser::signed_in(&app, &acme.email).await;
    let scope = ("scope", "call2me:write");
    let tokens = app.obtain_tokens(&mut browser, &client, &[scope]).await;
    let token = tokens["access_token"].as_str().unwrap();
    record_contexts(&app).await;
    for (path, body) in [
        ("/v1/agents", json!({ "agent_name": "a" })),
        ("/v1/knowledge-base", json!({ "name": "k" })),
    ] {
        app.post(path).bearer(token).json(body).send().await.expect_status(201);
    }
    assert!(count_contexts(&app, "workspace_id IS NOT NULL").await > 0);
    assert_eq!(count_contexts(&app, "user_id IS NOT NULL").await, 0);
}

/// Nor does a request that ends the access of another user.
#[tokio::test]
async fn removing_members_opens_no_context_of_them() {
    let (app, sink) = app_with_mail().await;
    let [acme, squatter] = [app.register_verified("acme").await, app.register("squatter").await];
    let [removed, leaving] =
        [app.add_member(&acme, "admin").await, app.add_member(&acme, "viewer").await];
    let reclaimed = app.add_member(&squatter, "admin").await;
    let (token, _) = reset_token(&app, &sink, &squatter).await;
    record_contexts(&app).await;
    let path = format!("/v1/members/{}", removed.user_id);
    let remove = app.request_as(&acme.access_token, "DELETE", &path);
    assert_eq!(remove.send().await.status, 204);
    // The owner of the address reclaims the account, which removes the members of its workspace.
    assert_eq!(reset_password(&app, &token).await, 204);
    for user in [&removed, &reclaimed] {
        let of_user = format!("user_id = '{}'", id_of(user));
        assert_eq!(count_contexts(&app, &of_user).await, 0);
        assert!(!is_accepted(&app, user).await);
    }
    let path = format!("/v1/workspaces/{}/leave", acme.workspace_id);
    let leave = app.request_as(&leaving.access_token, "POST", &path);
    assert_eq!(leave.send().await.status, 204);
    assert!(!is_accepted(&app, &leaving).await);
    let live = format!(
        "sessions WHERE ended_at IS NULL AND workspace_id IN ('{}', '{}')",
        workspace_of(&acme),
        workspace_of(&squatter)
    );
    assert_eq!(count(&app, &live).await, 1, "the session of acme's owner");
}

/// Returns true if the access token of a user is valid.
async fn is_accepted(app: &TestApp, user: &TestUser) -> bool {
    app.get("/v1/agents").bearer(&user.access_token).send().await.status == 200
}

#[tokio::test]
async fn creator_of_api_key_is_user_of_transaction_or_of_creating_key() {
    let app = TestApp::start().await;
    let [victim, attacker] = [app.register("acme").await, app.register("mallory").await];
    let own = id::parse("key", &app.create_key(&attacker, "k", "admin").await.id).unwrap();
    let theirs = id::parse("key", &app.create_key(&victim, "k", "admin").await.id).unwrap();
    let workspace = workspace_of(&attacker);
    let insert = |creator: Option<Uuid>, key: Option<Uuid>| {
        let sql_id = |id: Option<Uuid>| id.map_or("NULL".to_owned(), |id| format!("'{id}'"));
        format!(
            "SELECT insert_api_key(gen_random_uuid(), '{workspace}', 'x', NULL, 'admin',
                                   sha256(gen_random_uuid()::text::bytea), 'a', 'b', '{{}}', now(),
                                   NULL, {}, {}, NULL, NULL)",
            sql_id(creator),
            sql_id(key)
        )
    };
    let (user, stranger) = (Some(id_of(&attacker)), Some(id_of(&victim)));
    let mut injection = Injection::new(&app).await;
    // In a request of the user, and of an API key.
    for context_user in [user, None] {
        let mut tx = injection.begin(Some(workspace), context_user).await;
        for (creator, key) in [(stranger, None), (stranger, Some(own)), (stranger, Some(theirs))] {
            assert_denied(&mut tx, &insert(creator, key)).await;
        }
        for (creator, key) in [(None, None), (user, Some(own)), (None, Some(own))] {
            tx.execute(AssertSqlSafe(insert(creator, key))).await.unwrap();
        }
    }
    let mut tx = injection.begin(Some(workspace), None).await;
    assert_denied(&mut tx, &insert(user, None)).await;
}

#[tokio::test]
async fn context_requires_membership() {
    let app = TestApp::start().await;
    let [acme, attacker] = [app.register("acme").await, app.register("mallory").await];
    let former = app.add_member(&acme, "viewer").await;
    let path = format!("/v1/members/{}", former.user_id);
    let remove = app.request_as(&acme.access_token, "DELETE", &path);
    assert_eq!(remove.send().await.status, 204);
    let mut injection = Injection::new(&app).await;
    let gone = Uuid::from_u128(1);
    for (workspace, user) in [
        (workspace_of(&acme), id_of(&attacker)),
        (workspace_of(&attacker), id_of(&acme)),
        (workspace_of(&acme), id_of(&former)),
        (gone, id_of(&attacker)),
        (workspace_of(&acme), gone),
    ] {
        let mut tx = injection.0.begin().await.unwrap();
        let error = set_context(&mut tx, Some(workspace), Some(user)).await.unwrap_err();
        assert_eq!(error.as_database_error().unwrap().code().unwrap(), "MC002", "{error}");
    }
    // The MAC of a member is none of a user that joins.
    let mut tx = injection.0.begin().await.unwrap();
    let (key, now) = (context_key(), database_time(&mut tx).await);
    let (workspace, user) = (workspace_of(&acme), id_of(&attacker));
    let hex = |bytes: &[u8]| data_encoding::HEXLOWER.encode(bytes);
    let join = format!(
        "SELECT set_context('{workspace}', '{user}', {now}, '\\x{}', '\\x{}', true)",
        hex(&key.id()),
        hex(&key.sign(Some(workspace), Some(user), now))
    );
    assert_denied(&mut tx, &join).await;
}

/// The service reads the workspace of a session from its row.
#[tokio::test]
async fn session_leads_to_no_foreign_workspace() {
    let app = TestApp::start().await;
    let [acme, attacker] = [app.register("acme").await, app.register("mallory").await];
    app.sign_in_again(&attacker).await;
    let list = app.get("/v1/auth/sessions").bearer(&attacker.access_token);
    let sessions = list.send().await.expect_status(200)["sessions"].clone();
    let mut sessions = sessions.as_array().unwrap().iter();
    let other = sessions.find(|session| session["current"] == false).unwrap();
    let other: Uuid = id::parse("session", other["id"].as_str().unwrap()).unwrap();
    let theirs = workspace_of(&acme);
    let mut injection = Injection::new(&app).await;
    let mut tx = injection.begin_as(&attacker).await;
    for sql in [
        format!("UPDATE sessions SET workspace_id = '{theirs}'"),
        format!("UPDATE sessions SET workspace_id = '{theirs}', last_seen_at = now()"),
        format!(
            "INSERT INTO sessions SELECT (jsonb_populate_record(s, jsonb_build_object(
                 'id', gen_random_uuid(), 'workspace_id', '{theirs}'))).* FROM sessions s LIMIT 1"
        ),
    ] {
        assert_denied(&mut tx, &sql).await;
    }
    drop(tx);
    // As if it had a foreign workspace nevertheless.
    execute(&app, format!("UPDATE sessions SET workspace_id = '{theirs}' WHERE id = '{other}'"))
        .await;
    record_contexts(&app).await;
    let end = app.request_as(&attacker.access_token, "DELETE", "/v1/auth/sessions");
    assert_eq!(end.send().await.status, 204);
    let switch = app.request_as(&attacker.access_token, "POST", "/v1/auth/switch-workspace");
    let switch = switch.json(json!({ "workspace_id": acme.workspace_id })).send().await;
    switch.assert_error(403, "forbidden");
    let path = format!("/v1/workspaces/{}/leave", acme.workspace_id);
    let leave = app.request_as(&attacker.access_token, "POST", &path).send().await;
    leave.assert_error(404, "not_found");
    let of_acme = format!("workspace_id = '{theirs}'");
    assert_eq!(count_contexts(&app, &of_acme).await, 0);
    assert!(count_contexts(&app, "user_id IS NOT NULL").await > 0);
    let ended = format!("audit_events WHERE action = 'session.ended' AND {of_acme}");
    assert_eq!(count(&app, &ended).await, 1, "the workspace of the session has the event");
}

/// A row of one workspace that names the API key of another one.
#[tokio::test]
async fn rows_naming_foreign_api_key_do_not_disturb_its_workspace() {
    let app = TestApp::start().await;
    let [acme, attacker] = [app.register("acme").await, app.register("mallory").await];
    let theirs: Uuid = id::parse("key", &app.create_key(&acme, "k", "admin").await.id).unwrap();
    let client = client_id(&register_workspace_client(&app, &attacker).await);
    let own = workspace_of(&attacker);
    let mut injection = Injection::new(&app).await;
    let mut tx = injection.begin_as(&attacker).await;
    for sql in [
        format!(
            "INSERT INTO oauth_clients (id, kind, workspace_id, name, redirect_uris, auth_method,
                                        grant_types, created_at, creator_key_id)
             VALUES (gen_random_uuid(), 'workspace', '{own}', 'x', '{{}}', 'none', '{{}}', now(),
                     '{theirs}')"
        ),
        format!(
            "INSERT INTO oauth_added_redirect_uris (client_id, uri, added_at, added_by,
                                                    creator_key_id)
             VALUES ('{client}', 'https://a.example/', now(), 'x', '{theirs}')"
        ),
        format!("UPDATE memberships SET role_set_by_key_id = '{theirs}'"),
        format!(
            "INSERT INTO quiet_confirmations (key_id, workspace_id, total_requests, quiet_since,
                                              quiet_until)
             VALUES ('{theirs}', '{own}', 0, now(), now())"
        ),
    ] {
        tx.execute(AssertSqlSafe(sql)).await.unwrap();
    }
    tx.commit().await.unwrap();
    let mut tx = injection.begin_as(&acme).await;
    let confirm = format!(
        "INSERT INTO quiet_confirmations (key_id, workspace_id, total_requests, quiet_since,
                                              quiet_until)
         VALUES ('{theirs}', '{}', 0, now(), now())
         ON CONFLICT (workspace_id, key_id) DO UPDATE SET quiet_until = excluded.quiet_until",
        workspace_of(&acme)
    );
    tx.execute(AssertSqlSafe(confirm)).await.unwrap();
    tx.commit().await.unwrap();
    let delete = app.request_as(&acme.access_token, "DELETE", "/v1/workspace");
    let answer = delete.json(json!({ "password": PASSWORD })).send().await;
    assert_eq!(answer.status, 204, "{}", answer.text);
    // No other column can keep a foreign key's workspace from being deleted.
    let blocking = "SELECT count(*) FROM pg_constraint
                    WHERE confrelid = 'api_keys'::regclass AND confdeltype = 'a'
                      AND has_any_column_privilege('call2me_auth_app', conrelid, 'INSERT')";
    assert_eq!(fetch(&app, blocking).await.get::<i64, _>(0), 0);
}

/// Times that decide about access are those of the service.
#[tokio::test]
async fn proofs_of_address_and_invitations_need_their_mac() {
    let app = TestApp::start().await;
    let attacker = app.register("mallory").await;
    let (workspace, user) = (workspace_of(&attacker), id_of(&attacker));
    let mut injection = Injection::new(&app).await;
    let mut tx = injection.begin_as(&attacker).await;
    let key = context_key();
    let hex = |bytes: &[u8]| data_encoding::HEXLOWER.encode(bytes);
    let call = |function: &str, arguments: String, mac: [u8; 32]| {
        format!("SELECT {function}({arguments}, '\\x{}', '\\x{}')", hex(&key.id()), hex(&mac))
    };
    let time = |micros: i64| micros.to_be_bytes();
    let proof = |purpose, micros| key.sign_decision(purpose, &[user.as_bytes(), &time(micros)]);
    let invitation = Uuid::from_u128(1);
    let acceptance = |id: Uuid, micros| {
        let ids = [id.as_bytes(), workspace.as_bytes(), user.as_bytes()];
        key.sign_decision("accept_invitation", &[ids[0], ids[1], ids[2], &time(micros)])
    };
    let accept = |mac| call("accept_invitation", format!("'{invitation}', NULL, 5"), mac);
    for sql in [
        "UPDATE users SET email_verified_at = now()".to_owned(),
        "UPDATE users SET reclaimable_until = NULL".to_owned(),
        call("set_email_verified", "5".to_owned(), [0; 32]),
        call("set_email_verified", "5".to_owned(), proof("email_verified_at", 6)),
        call("set_email_verified", "5".to_owned(), proof("reclaimable_until", 5)),
        call("set_reclaimable_until", "NULL".to_owned(), proof("reclaimable_until", 5)),
        call("set_reclaimable_until", "0".to_owned(), proof("email_verified_at", 0)),
        accept([0; 32]),
        accept(acceptance(invitation, 6)),
        accept(acceptance(Uuid::from_u128(2), 5)),
        accept(key.sign(Some(workspace), Some(user), 5)),
    ] {
        assert_denied(&mut tx, &sql).await;
    }
}

/// Large objects outlive the request, and belong to no workspace.
#[tokio::test]
async fn large_objects_cannot_be_created() {
    let app = TestApp::start().await;
    let mut injection = Injection::new(&app).await;
    for sql in [
        "SELECT lo_from_bytea(0, 'x')",
        "SELECT lo_create(0)",
        "SELECT lo_creat(-1)",
        "SELECT lo_get(1)",
        "SELECT lo_import('/etc/passwd')",
    ] {
        assert_denied(&mut injection.0, sql).await;
    }
}
