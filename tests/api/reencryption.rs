//! Rotation of `keys.encryption_key`: two keys at the same time, and `admin reencrypt`.

use std::time::Duration;

use call2me_auth::{
    app::Application,
    auth::{
        master_key::MasterKeys,
        reencryption::{self, ReencryptionReport},
    },
    env::{Clock as _, Env},
    store::migrate::database_name,
};
use serde_json::{Value, json};
use sqlx::Executor;
use time::OffsetDateTime;

use crate::{
    fixture::{
        Browser, Database, ENCRYPTION_KEY, PASSWORD, SmtpSink, TestApp, TestResponse, TestUser,
        cluster, eventually, link_token,
        oauth::{OAuthClient, OAuthExt},
        settings,
    },
    mfa::{compute_totp_code, enable_totp, unix_now},
};

const NEW_KEY: &str = "bmV3IGVuY3J5cHRpb24ga2V5LCAzMiBieXRlcyAhISE=";
const URL: &str = "http://127.0.0.1:1";

/// The settings of a node before the rotation that can read values of the new key.
fn prepared(sink: &SmtpSink) -> [(&'static str, String); 3] {
    keys(ENCRYPTION_KEY, NEW_KEY, sink)
}

/// The settings of a node after the rotation.
fn rotated(sink: &SmtpSink) -> [(&'static str, String); 3] {
    keys(NEW_KEY, ENCRYPTION_KEY, sink)
}

fn keys(current: &str, previous: &str, sink: &SmtpSink) -> [(&'static str, String); 3] {
    [
        ("keys.encryption_key", current.to_owned()),
        ("keys.previous_encryption_keys", previous.to_owned()),
        ("mail.url", sink.url()),
    ]
}

async fn start(database: Database, keys: &[(&'static str, String)]) -> TestApp {
    let keys = keys.iter().map(|(key, value)| (*key, value.as_str()));
    let all: Vec<_> = [("server.public_url", URL)].into_iter().chain(keys).collect();
    TestApp::start_on(database, &all).await
}

fn master_keys(database: &Database) -> MasterKeys {
    let keys =
        [("keys.encryption_key", NEW_KEY), ("keys.previous_encryption_keys", ENCRYPTION_KEY)];
    MasterKeys::new(&settings(URL, database, &keys).keys)
}

/// Does what `admin reencrypt` does, with the new key.
async fn reencrypt(app: &TestApp, discard: bool) -> Result<ReencryptionReport, String> {
    let (keys, env) = (master_keys(&app.database), &app.app.env);
    reencryption::reencrypt(&app.database.url, &keys, env, discard).await
}

/// Returns which of these roles exist, in this order.
async fn existing_roles(app: &TestApp, names: &[String]) -> Vec<String> {
    let sql = "SELECT name FROM unnest($1::text[]) WITH ORDINALITY AS n (name, position)
               WHERE EXISTS (SELECT FROM pg_roles WHERE rolname = name) ORDER BY position";
    let mut connection = app.database.connect().await;
    sqlx::query_scalar(sql).bind(names).fetch_all(&mut connection).await.unwrap()
}

async fn refresh(app: &TestApp, token: &str) -> TestResponse {
    app.post("/v1/auth/refresh").json(json!({ "refresh_token": token })).send().await
}

async fn create_key(app: &TestApp, user: &TestUser) -> TestResponse {
    let call = app.post("/v1/api-keys").bearer(&user.access_token);
    call.header("idempotency-key", "7f1c").json(json!({ "name": "prod" })).send().await
}

async fn request_reset(app: &TestApp, sink: &SmtpSink, user: &TestUser) -> String {
    let body = json!({ "email": user.email });
    app.post("/v1/auth/password/forgot").json(body).send().await.expect_status(202);
    link_token(&sink.wait_for_email(&user.email, "Reset").await)
}

async fn reset(app: &TestApp, token: &str) -> TestResponse {
    let body = json!({ "token": token, "new_password": "a walk in the new park" });
    app.post("/v1/auth/password/reset").json(body).send().await
}

/// Signs in with a code of the user's authenticator app.
async fn sign_in_with_totp(app: &TestApp, user: &TestUser, secret: &str) -> TestResponse {
    let body = json!({ "email": user.email, "password": PASSWORD });
    let first = app.post("/v1/auth/login").json(body).send().await;
    let code = compute_totp_code(secret, unix_now(app));
    let body = json!({ "mfa_token": first.body["mfa_token"], "code": code });
    app.post("/v1/auth/mfa/verify").json(body).send().await
}

/// A user with a value of every kind.
struct Values {
    /// The time of the last check. Nodes have clocks of their own.
    checked_at: OffsetDateTime,
    dana: TestUser,
    totp_secret: String,
    client: OAuthClient,
    grant: Value,
    created_key: TestResponse,
}

impl Values {
    async fn new(app: &TestApp, workspace: &str) -> Self {
        let mut dana = app.register(workspace).await;
        let (totp_secret, _) = enable_totp(app, &mut dana).await;
        let client = app.register_confidential_client().await;
        let other = app.register(&format!("{workspace}-apps")).await;
        let mut browser = Browser::signed_in(app, &other.email).await;
        let grant = app.obtain_tokens(&mut browser, &client, &[]).await;
        let created_key = create_key(app, &dana).await;
        assert_eq!(created_key.status, 201);
        Self { checked_at: app.clock.now(), dana, totp_secret, client, grant, created_key }
    }

    /// Checks that all stored values work, and replaces the tokens of the session.
    async fn check(&mut self, app: &TestApp) {
        // Each time step of an authenticator app has one code, which works once.
        let passed = self.checked_at - app.clock.now() + Duration::from_secs(30);
        app.clock.advance(passed.try_into().unwrap_or_default());
        self.checked_at = app.clock.now();
        let call = app.get("/v1/agents").bearer(&self.dana.access_token);
        call.send().await.expect_status(200);
        let pair = refresh(app, &self.dana.refresh_token).await.expect_status(200);
        self.dana.set_tokens(&pair);
        sign_in_with_totp(app, &self.dana, &self.totp_secret).await.expect_status(200);
        // The token of a confidential client does not rotate.
        let token = self.grant["refresh_token"].as_str().unwrap();
        let renewed = app.refresh_token(&self.client, token).await.expect_status(200);
        assert_eq!(renewed["refresh_token"], token);
    }
}

async fn count(app: &TestApp, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(&mut app.database.connect().await).await.unwrap()
}

#[tokio::test]
async fn nothing_is_lost_when_encryption_key_is_rotated() {
    let sink = SmtpSink::start();
    let app = start(cluster().database().await, &prepared(&sink)).await;
    let mut values = Values::new(&app, "acme").await;
    let reused = values.dana.refresh_token.clone();
    values.check(&app).await;

    let app = start(app.stop().await, &rotated(&sink)).await;
    values.check(&app).await;
    let replayed = create_key(&app, &values.dana).await;
    assert_eq!(replayed.header("idempotency-replayed"), "true");
    assert_eq!(replayed.text, values.created_key.text);
    let report = reencrypt(&app, false).await.unwrap();
    assert!(report.previous_keys_needed, "{report:?}");
    assert_eq!((report.reencrypted.signing_keys, report.reencrypted.authenticator_apps), (2, 1));
    assert!(report.reencrypted.sessions > 0 && report.reencrypted.oauth_grants > 0, "{report:?}");
    assert!(report.summary.contains("still needed until 20"), "{report:?}");
    values.check(&app).await;

    // A week later no value of the old key is valid.
    let later = "UPDATE context_keys SET replaced_at = replaced_at - interval '7 days'";
    app.database.connect().await.execute(later).await.unwrap();
    let report = reencrypt(&app, false).await.unwrap();
    assert!(!report.previous_keys_needed && report.previous_keys[0].removed, "{report:?}");
    assert_eq!(report.reencrypted.sessions + report.reencrypted.signing_keys, 0);
    assert_eq!(count(&app, "SELECT count(*) FROM context_keys").await, 1);

    let only = [("keys.encryption_key", NEW_KEY.to_owned()), ("mail.url", sink.url())];
    let app = start(app.stop().await, &only).await;
    values.check(&app).await;
    // The reuse of a token of the old key is still detected, not just refused.
    refresh(&app, &reused).await.assert_error(401, "invalid_refresh_token");
    let newest = refresh(&app, &values.dana.refresh_token).await;
    newest.assert_error(401, "invalid_refresh_token");
}

#[tokio::test]
async fn nodes_with_old_and_new_key_serve_the_same_clients() {
    let sink = SmtpSink::start();
    let old = start(cluster().database().await, &prepared(&sink)).await;
    let new = start(old.database.clone(), &rotated(&sink)).await;
    let mut values = Values::new(&old, "acme").await;
    values.check(&new).await;
    values.check(&old).await;
    let replayed = create_key(&new, &values.dana).await;
    assert_eq!(replayed.text, values.created_key.text);
    let mut others = Values::new(&new, "widgets").await;
    others.check(&old).await;
    let replayed = create_key(&old, &others.dana).await;
    assert_eq!(replayed.text, others.created_key.text);
    // Either node sends the email, and the other accepts its link.
    let token = request_reset(&old, &sink, &values.dana).await;
    assert_eq!(reset(&new, &token).await.status, 204);
    let report = reencrypt(&new, false).await.unwrap();
    assert_eq!(report.previous_keys[0].nodes, 1, "{report:?}");
    assert!(report.summary.contains("running nodes with another key: 1"), "{report:?}");
    assert!(report.previous_keys_needed, "{report:?}");
    others.check(&old).await;
    others.check(&new).await;
}

#[tokio::test]
async fn discarded_key_is_worthless_at_once() {
    let sink = SmtpSink::start();
    let app = start(cluster().database().await, &prepared(&sink)).await;
    let mut values = Values::new(&app, "acme").await;
    let token = request_reset(&app, &sink, &values.dana).await;
    let app = start(app.stop().await, &rotated(&sink)).await;
    let name = database_name(&app.database.url).unwrap();
    let logins = master_keys(&app.database).service_logins(&name).unwrap();
    let logins: Vec<_> = logins.iter().map(|login| login.name.clone()).collect();
    assert_eq!(existing_roles(&app, &logins).await.len(), 2);
    let report = reencrypt(&app, true).await.unwrap();
    assert!(!report.previous_keys_needed && report.previous_keys[0].removed, "{report:?}");
    assert!(report.summary.ends_with("remove keys.previous_encryption_keys"), "{report:?}");
    assert_eq!(existing_roles(&app, &logins).await, logins[..1]);
    let app = start(app.stop().await, &[("keys.encryption_key", NEW_KEY.to_owned())]).await;
    values.check(&app).await;
    reset(&app, &token).await.assert_error(422, "validation_failed");
    assert_eq!(create_key(&app, &values.dana).await.header("idempotency-replayed"), "");
}

/// A running node accepts no value of a discarded key either, so a leaked key is worthless before
/// the nodes are restarted.
#[tokio::test]
async fn running_node_stops_reading_with_discarded_key() {
    let sink = SmtpSink::start();
    let app = start(cluster().database().await, &prepared(&sink)).await;
    let mut values = Values::new(&app, "acme").await;
    let email = app.register("widgets").await.email;
    let link = link_token(&sink.wait_for_email(&email, "Verify").await);
    let app = start(app.stop().await, &rotated(&sink)).await;
    let page = format!("/verify-email?token={link}");
    assert_eq!(app.get(&page).send().await.status, 200);
    reencrypt(&app, true).await.unwrap();
    eventually("the link is invalid", async || {
        (app.get(&page).send().await.status == 422).then_some(())
    })
    .await;
    values.check(&app).await;
    assert_eq!(create_key(&app, &values.dana).await.header("idempotency-replayed"), "");
    // A link of the current key is valid.
    let email = app.register("umbrella").await.email;
    let link = link_token(&sink.wait_for_email(&email, "Verify").await);
    assert_eq!(app.get(&format!("/verify-email?token={link}")).send().await.status, 200);
}

/// An attacker with a leaked key and the database role can register a node, and renew its lease.
#[tokio::test]
async fn injected_registration_does_not_keep_discarded_key() {
    let sink = SmtpSink::start();
    let app = start(cluster().database().await, &prepared(&sink)).await;
    let app = start(app.stop().await, &rotated(&sink)).await;
    let inject = "INSERT INTO nodes (id, registration, acknowledged_generation, lease,
                                     events_written_until, encryption_key_id)
                  SELECT gen_random_uuid(), 1, 0, '1 minute', now(), id
                  FROM list_context_keys() AS id";
    app.database.connect().await.execute(inject).await.unwrap();
    let report = reencrypt(&app, false).await.unwrap();
    assert!(report.previous_keys_needed, "{report:?}");
    let report = reencrypt(&app, true).await.unwrap();
    assert!(!report.previous_keys_needed && report.previous_keys[0].removed, "{report:?}");
    assert!(report.summary.contains("removed while nodes used them (1)"), "{report:?}");
    assert_eq!(count(&app, "SELECT count(*) FROM context_keys").await, 1);
    app.register("acme").await;
}

/// Values of a leaked key would be valid again on a node that still has it configured.
#[tokio::test]
async fn node_with_discarded_key_does_not_start() {
    let sink = SmtpSink::start();
    let app = start(cluster().database().await, &prepared(&sink)).await;
    let app = start(app.stop().await, &rotated(&sink)).await;
    reencrypt(&app, true).await.unwrap();
    // A key that the database has never had.
    let unused = "dW51c2VkIGVuY3J5cHRpb24ga2V5LCAzMiBieXRlcyE=";
    let database = app.stop().await;
    for (current, previous) in
        [(NEW_KEY, ENCRYPTION_KEY), (ENCRYPTION_KEY, NEW_KEY), (ENCRYPTION_KEY, unused)]
    {
        let changes = keys(current, previous, &sink);
        let changes = changes.each_ref().map(|(key, value)| (*key, &**value));
        let settings = settings(URL, &database, &changes);
        let started = Application::build(settings, Env::system()).await;
        let error = started.map(drop).unwrap_err();
        assert!(error.contains("was discarded"), "{error}");
    }
    start(database, &keys(NEW_KEY, unused, &sink)).await.register("acme").await;
}

/// A row that a transaction has locked is tried again, and its change is not overwritten.
#[tokio::test]
async fn rows_in_use_are_reencrypted_later() {
    let sink = SmtpSink::start();
    let app = start(cluster().database().await, &prepared(&sink)).await;
    let mut values = Values::new(&app, "acme").await;
    let app = start(app.stop().await, &rotated(&sink)).await;
    let mut other = app.database.connect().await;
    other.execute("BEGIN; SELECT FROM sessions FOR UPDATE").await.unwrap();
    let unlock = async {
        // Signing keys are first, so this run tries the sessions while they are locked.
        eventually("the signing keys are re-encrypted", async || {
            let sql = "SELECT count(*) FROM signing_keys WHERE substr(sealed_private_key, 1, 8)
                       = (SELECT encryption_key_id FROM nodes WHERE NOT is_expired)";
            (count(&app, sql).await == 2).then_some(())
        })
        .await;
        other.execute("COMMIT").await.unwrap();
    };
    let (report, ()) = tokio::join!(reencrypt(&app, true), unlock);
    let report = report.unwrap();
    assert_eq!(report.unreadable, 0);
    assert!(report.reencrypted.sessions > 0 && report.reencrypted.oauth_grants > 0, "{report:?}");
    let app = start(app.stop().await, &[("keys.encryption_key", NEW_KEY.to_owned())]).await;
    values.check(&app).await;
}

/// A value that no key decrypts is counted, and stops nothing.
#[tokio::test]
async fn unreadable_value_is_counted() {
    let sink = SmtpSink::start();
    let app = start(cluster().database().await, &prepared(&sink)).await;
    Values::new(&app, "acme").await;
    let damage = "UPDATE totp_factors SET sealed_key = substr(sealed_key, 1, 36) || sha256('x')";
    app.database.connect().await.execute(damage).await.unwrap();
    let app = start(app.stop().await, &rotated(&sink)).await;
    let report = reencrypt(&app, true).await.unwrap();
    assert_eq!((report.unreadable, report.previous_keys_needed), (1, false), "{report:?}");
}

#[tokio::test]
async fn reencryption_requires_owner_of_tables() {
    let app = TestApp::start().await;
    let role = "CREATE ROLE reader_of_keys LOGIN PASSWORD 'x'";
    app.database.connect().await.execute(role).await.ok();
    let url = app.database.url.replace("postgres:test@", "reader_of_keys:x@");
    let keys = MasterKeys::new(&settings(URL, &app.database, &[]).keys);
    let error = reencryption::reencrypt(&url, &keys, &app.app.env, false).await.unwrap_err();
    assert!(error.contains("set database.owner_url"), "{error}");
    // Without a rotation there is nothing to do.
    let report = reencryption::reencrypt(&app.database.url, &keys, &app.app.env, false).await;
    let report = report.unwrap();
    assert!(report.previous_keys.is_empty() && !report.previous_keys_needed, "{report:?}");
}
