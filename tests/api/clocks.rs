//! Clocks that are wrong: those of the machines, and that of PostgreSQL, which may also change
//! while the service runs. Nodes take the time from PostgreSQL, so their own clocks decide nothing.

use std::sync::Arc;

use call2me_auth::{
    app::Application,
    env::{Clock as _, Env, SystemClock},
};
use serde_json::{Value, json};
use time::Duration;
use tokio::time::Instant;

use crate::{
    fixture::{
        Browser, Key, PASSWORD, SkewedClock, SmtpSink, TestApp, TestResponse, TestUser, cluster,
        eventually,
        oauth::{OAuthExt as _, decode_claims},
        settings,
    },
    mfa::{compute_totp_code, confirm_totp, enroll_totp, start_sign_in, verify_code},
};

/// The errors of a machine's clock that the tests try: more than any window of the service.
const SKEWS: [Duration; 4] =
    [Duration::HOUR, Duration::hours(-1), Duration::seconds(20), Duration::seconds(-20)];

/// The setting `rotation.quiet_seconds` of tests that wait until a key is safe to revoke.
const QUIET_SECONDS: u64 = 2;
const SHORT_QUIET_PERIOD: [(&str, &str); 1] = [("rotation.quiet_seconds", "2")];

/// The changes of PostgreSQL's clock that the tests try, in seconds.
const CLOCK_CHANGES: [i64; 4] = [3600, -3600, 10, -10];

/// Starts two nodes on one database. The clock of the second machine is ahead by this time.
async fn two_nodes(ahead: Duration, settings: &[(&str, &str)]) -> [TestApp; 2] {
    let database = cluster().database().await;
    let one = TestApp::start_with_skew(database.clone(), settings, Duration::ZERO).await;
    let settings = [settings, &[("server.public_url", &one.url)]].concat();
    let other = TestApp::start_with_skew(database, &settings, ahead).await;
    [one, other]
}

async fn refresh(node: &TestApp, token: &str) -> TestResponse {
    node.post("/v1/auth/refresh").json(json!({ "refresh_token": token })).send().await
}

/// Refreshes a session on one node, and retries that on another. Returns the new refresh token.
async fn refresh_and_retry(first: &TestApp, second: &TestApp, token: &str) -> String {
    let refreshed = refresh(first, token).await.expect_status(200);
    let retried = refresh(second, token).await.expect_status(200);
    assert_eq!(retried["refresh_token"], refreshed["refresh_token"]);
    let access_token = retried["access_token"].as_str().unwrap();
    for node in [first, second] {
        node.get("/v1/agents").bearer(access_token).send().await.expect_status(200);
    }
    refreshed["refresh_token"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn refresh_retried_on_node_with_wrong_clock_keeps_the_session() {
    for ahead in SKEWS {
        let [one, other] = two_nodes(ahead, &[]).await;
        let dana = one.register("acme").await;
        let token = refresh_and_retry(&one, &other, &dana.refresh_token).await;
        refresh_and_retry(&other, &one, &token).await;
    }
}

#[tokio::test]
async fn token_of_node_with_wrong_clock_is_valid_on_every_node() {
    for ahead in SKEWS {
        let [one, other] = two_nodes(ahead, &[("sessions.access_token_seconds", "60")]).await;
        let dana = other.register("acme").await;
        for node in [&one, &other] {
            node.get("/v1/agents").bearer(&dana.access_token).send().await.expect_status(200);
        }
        let sign_in = json!({ "email": dana.email, "password": PASSWORD });
        for (at, on) in [(&one, &other), (&other, &one)] {
            let answer =
                at.post("/v1/auth/login").json(sign_in.clone()).send().await.expect_status(200);
            let token = answer["access_token"].as_str().unwrap();
            on.get("/v1/agents").bearer(token).send().await.expect_status(200);
        }
    }
}

/// The claims are right for other servers, which compare them with their own clocks.
#[tokio::test]
async fn claims_of_node_with_wrong_clock_have_the_right_times() {
    for ahead in SKEWS {
        let [_, other] = two_nodes(ahead, &[]).await;
        let before = SystemClock.now().unix_timestamp();
        let dana = other.register("acme").await;
        let after = SystemClock.now().unix_timestamp();
        let claims = decode_claims(&dana.access_token);
        let issued_at = claims["iat"].as_i64().unwrap();
        assert!((before - 1..=after + 1).contains(&issued_at), "{ahead}: {claims:#}");
    }
}

#[tokio::test]
async fn authorization_code_of_node_with_wrong_clock_is_redeemed_on_every_node() {
    for ahead in SKEWS {
        let nodes = two_nodes(ahead, &[]).await;
        let dana = nodes[0].register("acme").await;
        let client = nodes[0].register_client(json!({})).await;
        for (issuer, other) in [(&nodes[0], &nodes[1]), (&nodes[1], &nodes[0])] {
            let mut browser = Browser::signed_in(issuer, &dana.email).await;
            let code = issuer.obtain_code(&mut browser, &client, &[]).await;
            let tokens = other.redeem_code(&client, &code).await.expect_status(200);
            let token = tokens["refresh_token"].as_str().unwrap();
            let refreshed = issuer.refresh_token(&client, token).await.expect_status(200);
            let retried = other.refresh_token(&client, token).await.expect_status(200);
            assert_eq!(retried["refresh_token"], refreshed["refresh_token"], "{ahead}");
            let token = retried["access_token"].as_str().unwrap();
            issuer.get("/v1/agents").bearer(token).send().await.expect_status(200);
        }
    }
}

#[tokio::test]
async fn totp_code_is_accepted_once_on_nodes_with_wrong_clocks() {
    for ahead in SKEWS {
        let nodes = two_nodes(ahead, &[]).await;
        let mut dana = nodes[0].register("acme").await;
        nodes[0].set_verified(&dana, true).await;
        let enrollment = enroll_totp(&nodes[0], &dana, json!({})).await.expect_status(200);
        let secret = enrollment["secret"].as_str().unwrap();
        let code =
            |steps: i64| compute_totp_code(secret, SystemClock.now().unix_timestamp() + 30 * steps);
        let confirmed = confirm_totp(&nodes[1], &dana, &code(0)).await.expect_status(200);
        dana.set_tokens(&confirmed);
        // The code of the next step, which may be due before it is sent.
        let next = code(1);
        for (node, status) in [(&nodes[1], 200), (&nodes[0], 401)] {
            let token = start_sign_in(node, &dana).await;
            verify_code(node, &token, &next).await.expect_status(status);
        }
    }
}

/// Idempotency keys expire after a day.
#[tokio::test]
async fn retry_on_node_with_wrong_clock_has_no_second_effect() {
    for ahead in [Duration::hours(25), Duration::hours(-25)] {
        let nodes = two_nodes(ahead, &[]).await;
        let dana = nodes[0].register("acme").await;
        for [first, second] in [[0, 1], [1, 0]] {
            let create = async |node: usize| {
                let call = nodes[node].post("/v1/api-keys").bearer(&dana.access_token);
                let call = call.header("idempotency-key", &format!("from-{first}"));
                call.json(json!({ "name": "prod" })).send().await.expect_status(201)
            };
            assert_eq!(create(first).await["id"], create(second).await["id"], "{ahead}");
        }
    }
}

#[tokio::test]
async fn audit_log_keeps_the_order_of_events_of_nodes_with_wrong_clocks() {
    for ahead in SKEWS {
        let nodes = two_nodes(ahead, &[]).await;
        let dana = nodes[0].register("acme").await;
        let mut created = Vec::new();
        for node in [&nodes[0], &nodes[1], &nodes[0], &nodes[1]] {
            created.push(node.create_key(&dana, "prod", "write").await.id);
        }
        for node in &nodes {
            let query = "action=api_key.created";
            let events = node.wait_for_event_count(&dana.access_token, query, 4).await;
            let logged = events.iter().rev().map(|event| event["target"]["id"].as_str().unwrap());
            assert!(logged.eq(created.iter().map(String::as_str)), "{ahead}: {events:#?}");
        }
    }
}

/// A rotation of a key that has been used, with a successor in use.
struct Rotation {
    owner: TestUser,
    old: Key,
    new: Key,
}

impl Rotation {
    /// Starts a rotation on a node. Both keys are used there.
    async fn start(node: &TestApp) -> Self {
        let owner = node.register("acme").await;
        let old = node.create_key(&owner, "prod", "write").await;
        let path = format!("/v1/api-keys/{}/rotate", old.id);
        let rotated = node.post(&path).bearer(&owner.access_token).json(json!({})).send().await;
        let rotated = rotated.expect_status(201);
        let text = |field: &str| rotated[field].as_str().unwrap().to_owned();
        let new = Key { id: text("id"), secret: text("key") };
        // The session expires when the clock is set.
        let watcher = node.create_key(&owner, "watcher", "admin").await;
        let owner = TestUser { access_token: watcher.secret, ..owner };
        let rotation = Self { owner, old, new };
        for key in [&rotation.old, &rotation.new] {
            rotation.use_key(node, key).await;
        }
        rotation
    }

    async fn use_key(&self, node: &TestApp, key: &Key) {
        node.get("/v1/agents").bearer(&key.secret).send().await.expect_status(200);
        node.database.wait_until_sealed().await;
    }

    async fn report(&self, node: &TestApp) -> Value {
        let path = format!("/v1/api-keys/{}/rotation", self.old.id);
        let report = node.get(&path).bearer(&self.owner.access_token).send().await;
        report.expect_status(200)
    }

    async fn is_safe(&self, node: &TestApp) -> bool {
        self.report(node).await["safe_to_revoke"] == true
    }

    /// Waits until each node reports that the old key is safe to revoke. That must not be before it
    /// has been idle for `QUIET_SECONDS`. It was not used since a moment after `last_use`.
    async fn wait_until_safe(&self, nodes: &[TestApp], last_use: Instant) {
        for node in nodes {
            eventually("safe to revoke", async || self.is_safe(node).await.then_some(())).await;
            assert!(last_use.elapsed().as_secs() >= QUIET_SECONDS, "{:?}", last_use.elapsed());
        }
    }

    async fn wait_until_unsafe(&self, node: &TestApp, reason: &str) {
        eventually(reason, async || {
            let report = self.report(node).await;
            let text = report["reason"].as_str().unwrap();
            (report["safe_to_revoke"] == false && text.contains(reason)).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn key_just_used_is_not_safe_to_revoke_by_wrong_clock() {
    for ahead in SKEWS {
        let nodes = two_nodes(ahead, &[]).await;
        let rotation = Rotation::start(&nodes[0]).await;
        for node in [&nodes[1], &nodes[0]] {
            rotation.use_key(node, &rotation.old).await;
            for node in &nodes {
                let report = rotation.report(node).await;
                assert_eq!(report["safe_to_revoke"], false, "{report:#}");
                // The quiet period is 900 seconds. A busy machine may take some.
                assert!(report["quiet_for_seconds"].as_i64() < Some(600), "{report:#}");
            }
        }
    }
}

#[tokio::test]
async fn idle_key_is_safe_to_revoke_in_spite_of_wrong_clock() {
    for ahead in SKEWS {
        let nodes = two_nodes(ahead, &SHORT_QUIET_PERIOD).await;
        let rotation = Rotation::start(&nodes[1]).await;
        let last_use = Instant::now();
        rotation.use_key(&nodes[1], &rotation.old).await;
        rotation.wait_until_safe(&nodes, last_use).await;
    }
}

/// Waits until each node has noticed that the clock of PostgreSQL has changed.
async fn wait_for_epoch(nodes: &[TestApp], epoch_before: i64) {
    for node in nodes {
        eventually("the node has noticed the change", async || {
            let epoch = node.app.env.clock.epoch().unwrap();
            (epoch.number > epoch_before).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn refresh_retried_across_a_change_of_the_clock_keeps_the_session() {
    for by in CLOCK_CHANGES {
        let nodes = two_nodes(Duration::ZERO, &[]).await;
        let [one, other] = &nodes;
        let dana = one.register("acme").await;
        let before = one.app.env.clock.epoch().unwrap().number;
        let first = refresh(one, &dana.refresh_token).await.expect_status(200);
        one.database.set_clock_ahead(by).await;
        // Before the nodes have noticed, and afterwards.
        let retried = refresh(other, &dana.refresh_token).await.expect_status(200);
        assert_eq!(retried["refresh_token"], first["refresh_token"], "{by}");
        let token = first["refresh_token"].as_str().unwrap();
        let second = refresh(one, token).await.expect_status(200);
        wait_for_epoch(&nodes, before).await;
        let retried = refresh(other, token).await.expect_status(200);
        assert_eq!(retried["refresh_token"], second["refresh_token"], "{by}");
        let token = second["refresh_token"].as_str().unwrap();
        refresh_and_retry(other, one, token).await;
    }
}

#[tokio::test]
async fn change_of_the_clock_is_no_idle_time() {
    for by in CLOCK_CHANGES {
        let nodes = two_nodes(Duration::ZERO, &SHORT_QUIET_PERIOD).await;
        let rotation = Rotation::start(&nodes[0]).await;
        let last_use = Instant::now();
        rotation.use_key(&nodes[1], &rotation.old).await;
        nodes[0].database.set_clock_ahead(by).await;
        rotation.wait_until_safe(&nodes, last_use).await;
    }
}

#[tokio::test]
async fn report_names_a_change_of_the_clock() {
    for by in CLOCK_CHANGES {
        let nodes = two_nodes(Duration::ZERO, &[]).await;
        let rotation = Rotation::start(&nodes[0]).await;
        nodes[0].database.set_clock_ahead(by).await;
        for node in &nodes {
            rotation.wait_until_unsafe(node, "the clock of the database was changed").await;
        }
    }
}

#[tokio::test]
async fn verdict_survives_a_change_of_the_clock_until_the_key_is_used() {
    for by in CLOCK_CHANGES {
        let nodes = two_nodes(Duration::ZERO, &SHORT_QUIET_PERIOD).await;
        let last_use = Instant::now();
        let rotation = Rotation::start(&nodes[0]).await;
        rotation.wait_until_safe(&nodes, last_use).await;
        let before = nodes[0].app.env.clock.epoch().unwrap().number;
        nodes[0].database.set_clock_ahead(by).await;
        for node in &nodes {
            assert!(rotation.is_safe(node).await, "{by}: before it has noticed");
        }
        wait_for_epoch(&nodes, before).await;
        for node in &nodes {
            assert!(rotation.is_safe(node).await, "{by}");
        }
        let last_use = Instant::now();
        rotation.use_key(&nodes[1], &rotation.old).await;
        rotation.wait_until_safe(&nodes, last_use).await;
    }
}

/// After the clock was set back, the event of a failure has a lesser id than that of the success
/// before.
#[tokio::test]
async fn failure_after_a_change_of_the_clock_withdraws_the_verdict() {
    for by in CLOCK_CHANGES {
        let nodes = two_nodes(Duration::ZERO, &SHORT_QUIET_PERIOD).await;
        let last_use = Instant::now();
        let rotation = Rotation::start(&nodes[0]).await;
        rotation.wait_until_safe(&nodes, last_use).await;
        let before = nodes[0].app.env.clock.epoch().unwrap().number;
        nodes[0].database.set_clock_ahead(by).await;
        wait_for_epoch(&nodes, before).await;
        let refused = nodes[1].get("/v1/wallet/balance").bearer(&rotation.new.secret);
        refused.send().await.assert_error(403, "insufficient_scope");
        for node in &nodes {
            rotation.wait_until_unsafe(node, "have failed since its last success").await;
        }
        rotation.use_key(&nodes[0], &rotation.new).await;
        rotation.wait_until_safe(&nodes, last_use).await;
    }
}

/// While no node runs, a change of the clock goes unnoticed.
#[tokio::test]
async fn time_without_any_node_is_no_idle_time() {
    let start = |database| TestApp::start_with_skew(database, &[], Duration::ZERO);
    let node = start(cluster().database().await).await;
    let rotation = Rotation::start(&node).await;
    let database = node.stop().await;
    database.set_clock_ahead(3600).await;
    let node = start(database).await;
    rotation.wait_until_unsafe(&node, "no node was running").await;
}

#[tokio::test]
async fn email_is_sent_after_the_clock_was_set_back() {
    let database = cluster().database().await;
    database.set_clock_ahead(3600).await;
    // Without `mail.url`, the email stays in the outbox.
    let node = TestApp::start_with_skew(database, &[], Duration::ZERO).await;
    let dana = node.register("acme").await;
    let database = node.stop().await;
    database.set_clock_ahead(0).await;
    let sink = SmtpSink::start();
    let settings = [("mail.url", &*sink.url())];
    let _node = TestApp::start_with_skew(database, &settings, Duration::ZERO).await;
    sink.wait_for_email(&dana.email, "Verify").await;
}

#[tokio::test]
async fn node_does_not_start_if_its_clock_is_too_wrong() {
    for (ahead, message) in [
        (Duration::ZERO, None),
        (Duration::seconds(20), None),
        (Duration::HOUR, Some("the clock of this machine is 3600 s ahead of that of PostgreSQL")),
        (
            Duration::seconds(-45),
            Some("the clock of this machine is 45 s behind that of PostgreSQL"),
        ),
    ] {
        let database = cluster().database().await;
        let env = Env::with_machine_clock(Arc::new(SkewedClock(ahead)));
        let settings = settings("http://127.0.0.1:1", &database, &[]);
        let application = Application::build(settings, env).await.unwrap();
        let outcome = application.check_clock();
        match message {
            None => outcome.unwrap(),
            Some(message) => {
                let error = outcome.unwrap_err();
                assert!(error.contains(message), "{error}");
                assert!(error.contains("database.max_clock_skew_seconds (30)"), "{error}");
            }
        }
        application.shut_down().await;
    }
}
