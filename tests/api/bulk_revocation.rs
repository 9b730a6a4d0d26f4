//! The end of much access at once, and the limits on what a user or a workspace accumulates.
//!
//! Rows are inserted with SQL: there may be more than the limits allow.

use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _};

use crate::fixture::{
    Browser, PASSWORD, SmtpSink, TestApp, TestUser, link_token,
    oauth::{OAuthClient, OAuthExt as _},
};

async fn execute(app: &TestApp, sql: String) {
    app.database.connect().await.execute(AssertSqlSafe(sql)).await.unwrap();
}

async fn fetch_number(app: &TestApp, sql: &str) -> i64 {
    let mut connection = app.database.connect().await;
    sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_one(&mut connection).await.unwrap()
}

/// An SQL expression: the id of a user.
fn user_id(user: &TestUser) -> String {
    format!("(SELECT id FROM users WHERE email = '{}')", user.email)
}

/// An SQL expression: the id of the workspace of the user's last sign-in.
fn workspace_id(user: &TestUser) -> String {
    format!("(SELECT last_workspace_id FROM users WHERE email = '{}')", user.email)
}

/// Inserts active grants of a user to the newest client, with a second between two of them.
/// `redeemed_at` is an SQL expression.
async fn insert_grants(app: &TestApp, user: &TestUser, count: u32, redeemed_at: &str) {
    let (user, workspace) = (user_id(user), workspace_id(user));
    execute(
        app,
        format!(
            "INSERT INTO oauth_grants (id, client_id, workspace_id, user_id, scope, resources,
                                       created_at, redeem_by, redeemed_at, last_used_at,
                                       refresh_seed)
             SELECT overlay(uuidv7_lower_bound(now() - n * interval '1 s')::text
                            PLACING left(gen_random_uuid()::text, 8) FROM 29)::uuid,
                    (SELECT id FROM oauth_clients ORDER BY created_at DESC LIMIT 1),
                    {workspace}, {user}, 'read-only', '{{x}}', now(), now(), {redeemed_at},
                    {redeemed_at}, decode(repeat('00', 68), 'hex')
             FROM generate_series(1, {count}) AS n"
        ),
    )
    .await;
}

/// Inserts active sessions of a user, with a second between two of them.
async fn insert_sessions(app: &TestApp, user: &TestUser, count: u32) {
    let (user, workspace) = (user_id(user), workspace_id(user));
    execute(
        app,
        format!(
            "INSERT INTO sessions (id, user_id, workspace_id, created_at, last_seen_at, refresh_seed,
                                   refreshed_at, cookie_digest, expires_at)
             SELECT overlay(uuidv7_lower_bound(now() - n * interval '1 s')::text
                            PLACING left(gen_random_uuid()::text, 8) FROM 29)::uuid,
                    {user}, {workspace}, now(), now(), decode(repeat('00', 68), 'hex'), now(),
                    decode(repeat('00', 32), 'hex'), now() + interval '1 day'
             FROM generate_series(1, {count}) AS n"
        ),
    )
    .await;
}

/// Inserts keys into workspaces, which an SQL condition selects. `revoked_at` is an SQL expression.
async fn insert_keys(app: &TestApp, workspaces: &str, count: u32, revoked_at: &str) {
    execute(
        app,
        format!(
            "INSERT INTO api_keys (id, workspace_id, name, scope, digest, display_start,
                                   display_end, created_at, revoked_at)
             SELECT overlay(uuidv7_lower_bound(now())::text
                            PLACING substr(gen_random_uuid()::text, 15) FROM 15)::uuid,
                    w.id, 'key', 'write', sha256(gen_random_uuid()::text::bytea), 'AAAA', 'ZZZZ',
                    now(), {revoked_at}
             FROM workspaces w, generate_series(1, {count}) AS n WHERE {workspaces}"
        ),
    )
    .await;
}

const ACTIVE_GRANTS: &str = "SELECT count(*) FROM oauth_grants WHERE ended_at IS NULL";

/// The number of audit events with an action and a reason.
async fn count_events(app: &TestApp, action: &str, reason: &str) -> i64 {
    let count = format!(
        "SELECT count(*) FROM audit_events
         WHERE action = '{action}' AND metadata ->> 'reason' = '{reason}'"
    );
    fetch_number(app, &count).await
}

async fn register_client(app: &TestApp) -> OAuthClient {
    app.register_client(json!({ "client_name": "app" })).await
}

async fn me_status(app: &TestApp, user: &TestUser) -> u16 {
    app.request_as(&user.access_token, "GET", "/v1/auth/me").send().await.status.as_u16()
}

async fn start_with_mail() -> (TestApp, SmtpSink) {
    let sink = SmtpSink::start();
    (TestApp::start_at_system_time(&[("mail.url", &sink.url())]).await, sink)
}

/// Requests a link to reset the password, and resets it.
async fn reset_password(app: &TestApp, sink: &SmtpSink, user: &TestUser) {
    let forgot = app.post("/v1/auth/password/forgot").json(json!({ "email": user.email }));
    assert_eq!(forgot.send().await.status, 202);
    let token = link_token(&sink.wait_for_email(&user.email, "Reset your password").await);
    let body = json!({ "token": token, "new_password": "a walk in the old park" });
    app.post("/v1/auth/password/reset").json(body).send().await.expect_status(204);
}

#[tokio::test]
async fn member_with_thousands_of_grants_is_removed() {
    let app = TestApp::start_at_system_time(&[]).await;
    let dana = app.register("acme").await;
    let sam = app.add_member(&dana, "viewer").await;
    register_client(&app).await;
    insert_grants(&app, &sam, 5_000, "NULL").await;
    let generation = fetch_number(&app, "SELECT newest_generation()").await;
    let path = format!("/v1/members/{}", sam.user_id);
    app.request_as(&dana.access_token, "DELETE", &path).send().await.expect_status(204);
    assert_eq!(fetch_number(&app, "SELECT newest_generation()").await, generation + 1);
    assert_eq!(me_status(&app, &sam).await, 401);
    assert_eq!(fetch_number(&app, ACTIVE_GRANTS).await, 0);
    assert_eq!(count_events(&app, "oauth.grant_ended", "membership_removed").await, 5_000);
    app.database.wait_until_sealed().await;
}

#[tokio::test]
async fn password_reset_ends_thousands_of_grants_and_sessions() {
    let (app, sink) = start_with_mail().await;
    let dana = app.register_verified("acme").await;
    register_client(&app).await;
    insert_grants(&app, &dana, 5_000, "NULL").await;
    insert_sessions(&app, &dana, 1_000).await;
    reset_password(&app, &sink, &dana).await;
    assert_eq!(me_status(&app, &dana).await, 401);
    assert_eq!(fetch_number(&app, ACTIVE_GRANTS).await, 0);
    assert_eq!(count_events(&app, "oauth.grant_ended", "password_reset").await, 5_000);
    assert_eq!(count_events(&app, "session.ended", "password_changed").await, 1_001);
}

#[tokio::test]
async fn sign_out_everywhere_ends_thousands_of_sessions() {
    let app = TestApp::start_at_system_time(&[]).await;
    let dana = app.register("acme").await;
    insert_sessions(&app, &dana, 5_000).await;
    let others = app.request_as(&dana.access_token, "DELETE", "/v1/auth/sessions").send().await;
    others.expect_status(204);
    assert_eq!(me_status(&app, &dana).await, 200);
    assert_eq!(count_events(&app, "session.ended", "ended_by_user").await, 5_000);
}

/// A stranger registered the address, and created workspaces with keys and members.
#[tokio::test]
async fn reclaim_ends_keys_and_members_of_many_workspaces() {
    let (app, sink) = start_with_mail().await;
    let dana = app.register("acme").await;
    execute(
        &app,
        format!(
            "INSERT INTO workspaces (id, name, created_at)
                 SELECT gen_random_uuid(), 'copy', now() FROM generate_series(1, 30);
             INSERT INTO memberships (workspace_id, user_id, role, joined_at)
                 SELECT id, {}, 'owner', now() FROM workspaces WHERE name = 'copy';
             INSERT INTO users (id, email, normalized_email, created_at)
                 SELECT gen_random_uuid(), email, email, now()
                 FROM (SELECT 'u' || n || '@many.example' AS email
                       FROM generate_series(1, 500) AS n) addresses;
             INSERT INTO memberships (workspace_id, user_id, role, joined_at)
                 SELECT {}, id, 'admin', now() FROM users WHERE email LIKE 'u%@many.example'",
            user_id(&dana),
            workspace_id(&dana),
        ),
    )
    .await;
    insert_keys(&app, "true", 100, "NULL").await;
    reset_password(&app, &sink, &dana).await;
    let active = "SELECT count(*) FROM api_keys WHERE revoked_at IS NULL";
    assert_eq!(fetch_number(&app, active).await, 0);
    assert_eq!(count_events(&app, "api_key.revoked", "email_reclaimed").await, 3_100);
    assert_eq!(count_events(&app, "member.removed", "email_reclaimed").await, 500);
    let mail = sink.wait_for_email(&dana.email, "Your account was reset").await;
    assert!(mail["text"].as_str().unwrap().contains("and 3080 more"), "{mail}");
}

/// The lock on the generation is that of all workspaces.
#[tokio::test]
async fn large_change_of_one_workspace_blocks_no_revocation_of_another() {
    let app = TestApp::start_at_system_time(&[]).await;
    let (dana, olivia) = (app.register("acme").await, app.register("other").await);
    let keys =
        [app.create_key(&olivia, "1", "write").await, app.create_key(&olivia, "2", "write").await];
    let revoke = async |id: &str| {
        let path = format!("/v1/api-keys/{id}");
        app.request_as(&olivia.access_token, "DELETE", &path).send().await.expect_status(204);
    };
    insert_sessions(&app, &dana, 10_000).await;
    assert_eq!(me_status(&app, &dana).await, 200);
    let mut connection = app.database.connect().await;
    let mut tx = connection.begin().await.unwrap();
    let end = format!("UPDATE sessions SET ended_at = now() WHERE user_id = {}", user_id(&dana));
    tx.execute(AssertSqlSafe(end)).await.unwrap();
    // All work is done, and the lock is not taken before the commit.
    revoke(&keys[0].id).await;
    let generation = fetch_number(&app, "SELECT newest_generation()").await;
    tx.commit().await.unwrap();
    revoke(&keys[1].id).await;
    assert_eq!(fetch_number(&app, "SELECT newest_generation()").await, generation + 2);
    assert_eq!(me_status(&app, &dana).await, 401);
}

/// `SET CONSTRAINTS` assigns the generation before the end of the transaction.
#[tokio::test]
async fn changes_after_early_generation_reach_the_nodes() {
    let app = TestApp::start_at_system_time(&[]).await;
    let (dana, olivia) = (app.register("acme").await, app.register("other").await);
    for user in [&dana, &olivia] {
        assert_eq!(me_status(&app, user).await, 200);
    }
    let mut connection = app.database.connect().await;
    let mut tx = connection.begin().await.unwrap();
    for (user, statement) in [(&dana, "SET CONSTRAINTS ALL IMMEDIATE"), (&olivia, "SAVEPOINT s")] {
        let end = format!("DELETE FROM memberships WHERE user_id = {}", user_id(user));
        tx.execute(AssertSqlSafe(end)).await.unwrap();
        tx.execute(statement).await.unwrap();
    }
    tx.commit().await.unwrap();
    app.database.wait_for_invalidation().await;
    for user in [&dana, &olivia] {
        assert_eq!(me_status(&app, user).await, 401);
    }
}

#[tokio::test]
async fn cascade_ends_thousands_of_grants() {
    let app = TestApp::start_at_system_time(&[]).await;
    let dana = app.register("acme").await;
    let key = app.create_key(&dana, "deploy", "admin").await;
    let body = json!({ "name": "web", "redirect_uris": ["https://app.example/callback"] });
    let client = app.request_as(&dana.access_token, "POST", "/v1/oauth/clients").json(body);
    let client = client.send().await.expect_status(201);
    let path = format!("/v1/oauth/clients/{}", client["id"].as_str().unwrap());
    let uris = ["https://app.example/callback", "https://evil.example/callback"];
    let change = app.request_as(&key.secret, "PATCH", &path).json(json!({ "redirect_uris": uris }));
    change.send().await.expect_status(200);
    insert_grants(&app, &dana, 5_000, "now()").await;
    let path = format!("/v1/api-keys/{}?cascade=true", key.id);
    app.request_as(&dana.access_token, "DELETE", &path).send().await.expect_status(204);
    assert_eq!(fetch_number(&app, ACTIVE_GRANTS).await, 0);
}

#[tokio::test]
async fn idle_grants_end_in_batches() {
    let app = TestApp::start_at_system_time(&[]).await;
    let dana = app.register("acme").await;
    register_client(&app).await;
    insert_grants(&app, &dana, 2_500, "now() - interval '100 days'").await;
    let generation = fetch_number(&app, "SELECT newest_generation()").await;
    let (now, idle) =
        (call2me_auth::env::Clock::now(&*app.clock), std::time::Duration::from_hours(24));
    app.app.store.prune_oauth(now, idle).await.unwrap();
    assert_eq!(fetch_number(&app, ACTIVE_GRANTS).await, 0);
    assert_eq!(fetch_number(&app, "SELECT newest_generation()").await, generation + 3);
}

#[tokio::test]
async fn grants_that_are_not_redeemed_are_limited() {
    let app = TestApp::start_at_system_time(&[]).await;
    let dana = app.register("acme").await;
    let client = register_client(&app).await;
    let mut browser = Browser::signed_in(&app, &dana.email).await;
    let tokens = app.obtain_tokens(&mut browser, &client, &[]).await;
    insert_grants(&app, &dana, 60, "NULL").await;
    app.obtain_code(&mut browser, &client, &[]).await;
    // Those of the limit, the new one, and the one with tokens.
    assert_eq!(fetch_number(&app, ACTIVE_GRANTS).await, 52);
    assert_eq!(count_events(&app, "oauth.grant_ended", "superseded").await, 10);
    let token = tokens["access_token"].as_str().unwrap();
    app.request_as(token, "GET", "/v1/auth/me").send().await.expect_status(200);
}

#[tokio::test]
async fn grants_of_a_user_are_limited_over_all_clients() {
    let app = TestApp::start_at_system_time(&[]).await;
    let dana = app.register("acme").await;
    for _ in 0..25 {
        register_client(&app).await;
        insert_grants(&app, &dana, 45, "now()").await;
    }
    let client = register_client(&app).await;
    let mut browser = Browser::signed_in(&app, &dana.email).await;
    let tokens = app.obtain_tokens(&mut browser, &client, &[]).await;
    assert_eq!(fetch_number(&app, ACTIVE_GRANTS).await, 1_000);
    let token = tokens["access_token"].as_str().unwrap();
    app.request_as(token, "GET", "/v1/auth/me").send().await.expect_status(200);
}

#[tokio::test]
async fn further_session_ends_the_oldest() {
    let app = TestApp::start_at_system_time(&[]).await;
    let dana = app.register("acme").await;
    insert_sessions(&app, &dana, 999).await;
    let body = json!({ "email": dana.email, "password": PASSWORD });
    let pair = app.post("/v1/auth/login").json(body).send().await.expect_status(200);
    let active = "SELECT count(*) FROM sessions WHERE ended_at IS NULL";
    assert_eq!(fetch_number(&app, active).await, 1_000);
    assert_eq!(count_events(&app, "session.ended", "superseded").await, 1);
    for user in [&dana.with_tokens(&pair), &dana] {
        assert_eq!(me_status(&app, user).await, 200);
    }
}

#[tokio::test]
async fn keys_that_a_workspace_creates_within_a_day_are_limited() {
    let app = TestApp::start_at_system_time(&[]).await;
    let dana = app.register("acme").await;
    let key = app.create_key(&dana, "server", "write").await;
    insert_keys(&app, &format!("id = {}", workspace_id(&dana)), 4_998, "now()").await;
    let post = async |path: &str, body: Value| {
        app.request_as(&dana.access_token, "POST", path).json(body).send().await
    };
    post("/v1/api-keys", json!({ "name": "last" })).await.expect_status(201);
    let rotate = format!("/v1/api-keys/{}/rotate", key.id);
    for (path, body) in [("/v1/api-keys", json!({ "name": "k" })), (&*rotate, json!({}))] {
        let refused = post(path, body).await;
        refused.assert_error(409, "conflict");
        assert!(refused.text.contains("5000 API keys within a day"), "{}", refused.text);
    }
}
