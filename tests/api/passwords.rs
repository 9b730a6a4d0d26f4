//! /v1/auth/password/… and /v1/auth/verify-email, with the emails that they send.

use std::time::Duration;

use serde_json::{Value, json};
use sqlx::Connection;

use crate::fixture::{PASSWORD, SmtpSink, TestApp, TestResponse, TestUser, link_token};

const NEW_PASSWORD: &str = "a walk in the old park";

async fn start_with_mail() -> (TestApp, SmtpSink) {
    let sink = SmtpSink::start();
    let app = TestApp::start_with(&[("mail.url", &sink.url())]).await;
    (app, sink)
}

async fn sign_in(app: &TestApp, email: &str, password: &str) -> TestResponse {
    let body = json!({ "email": email, "password": password });
    app.post("/v1/auth/login").json(body).send().await
}

async fn is_accepted(app: &TestApp, credential: &str) -> bool {
    app.get("/v1/agents").bearer(credential).send().await.status == 200
}

async fn change_password(app: &TestApp, user: &TestUser, current: &str, new: &str) -> TestResponse {
    let body = json!({ "current_password": current, "new_password": new });
    app.request_as(&user.access_token, "POST", "/v1/auth/password/change").json(body).send().await
}

async fn forgot_password(app: &TestApp, email: &str) -> TestResponse {
    app.post("/v1/auth/password/forgot").json(json!({ "email": email })).send().await
}

async fn reset_password(app: &TestApp, token: &str, new: &str) -> TestResponse {
    let body = json!({ "token": token, "new_password": new });
    app.post("/v1/auth/password/reset").json(body).send().await
}

async fn verify_email(app: &TestApp, user: &TestUser, token: &str) -> TestResponse {
    let body = json!({ "token": token });
    app.request_as(&user.access_token, "POST", "/v1/auth/verify-email").json(body).send().await
}

async fn me(app: &TestApp, user: &TestUser) -> Value {
    app.request_as(&user.access_token, "GET", "/v1/auth/me").send().await.expect_status(200)
}

#[tokio::test]
async fn password_change_ends_other_sessions_and_is_mailed() {
    let (app, sink) = start_with_mail().await;
    let mut dana = app.register_verified("acme").await;
    let key = app.create_key(&dana, "server", "write").await;
    let other = sign_in(&app, &dana.email, PASSWORD).await.expect_status(200);
    let other = other["access_token"].as_str().unwrap();
    assert!(is_accepted(&app, other).await);

    let wrong = change_password(&app, &dana, "not this one at all", NEW_PASSWORD).await;
    wrong.assert_error(422, "validation_failed").assert_field("current_password");
    let weak = change_password(&app, &dana, PASSWORD, "password1234").await;
    weak.assert_error(422, "validation_failed").assert_field("new_password");
    assert!(is_accepted(&app, other).await);

    let changed = change_password(&app, &dana, PASSWORD, NEW_PASSWORD).await.expect_status(200);
    let stolen = dana.access_token.clone();
    dana.set_tokens(&changed);
    assert!(!is_accepted(&app, other).await && !is_accepted(&app, &stolen).await);
    assert!(is_accepted(&app, &dana.access_token).await && is_accepted(&app, &key.secret).await);
    sign_in(&app, &dana.email, PASSWORD).await.assert_error(401, "invalid_credentials");
    assert_eq!(sign_in(&app, &dana.email, NEW_PASSWORD).await.status, 200);
    app.wait_for_event_count(&dana.access_token, "action=member.password_changed", 1).await;
    let ended = app.wait_for_event_count(&dana.access_token, "action=session.ended", 1).await;
    assert_eq!(ended[0]["metadata"]["reason"], "password_changed");
    let mail = sink.wait_for_email(&dana.email, "password was changed").await;
    assert!(mail["text"].as_str().unwrap().contains("127.0.0.1"), "{mail:#}");
    app.request_as(&key.secret, "POST", "/v1/auth/password/change")
        .send()
        .await
        .assert_error(403, "forbidden");
}

#[tokio::test]
async fn forgotten_password_is_reset_once_by_mailed_link() {
    let (app, sink) = start_with_mail().await;
    let dana = app.register_verified("acme").await;
    let key = app.create_key(&dana, "server", "write").await;
    assert_eq!(forgot_password(&app, "OWNER@acme.example").await.status, 202);
    let mail = sink.wait_for_email("OWNER@acme.example", "Reset").await;
    let link = format!("{}/reset-password?token=", app.url);
    assert!(mail["text"].as_str().unwrap().contains(&link), "{mail:#}");
    assert!(mail["html"].as_str().unwrap().contains(&link), "{mail:#}");
    let token = link_token(&mail);

    let weak = reset_password(&app, &token, "password1234").await;
    weak.assert_error(422, "validation_failed").assert_field("new_password");
    assert_eq!(reset_password(&app, &token, NEW_PASSWORD).await.status, 204);
    assert!(!is_accepted(&app, &dana.access_token).await, "a reset ends every session");
    assert!(is_accepted(&app, &key.secret).await);
    sign_in(&app, &dana.email, PASSWORD).await.assert_error(401, "invalid_credentials");
    let mut again = dana.clone();
    again.set_tokens(&sign_in(&app, &dana.email, NEW_PASSWORD).await.expect_status(200));
    assert_eq!(me(&app, &again).await["user"]["email_verified"], true);
    sink.wait_for_email(&dana.email, "password was changed").await;
    let twice = reset_password(&app, &token, "yet another good one").await;
    twice.assert_error(422, "validation_failed").assert_field("token");
    assert_eq!(sign_in(&app, &dana.email, NEW_PASSWORD).await.status, 200);
}

#[tokio::test]
async fn reset_for_unknown_email_looks_the_same_and_sends_nothing() {
    let (app, sink) = start_with_mail().await;
    let dana = app.register("acme").await;
    let unknown = forgot_password(&app, "nobody@acme.example").await;
    let known = forgot_password(&app, &dana.email).await;
    assert_eq!(unknown.status, 202);
    assert_eq!(known.status, 202);
    assert_eq!(unknown.text, known.text);
    sink.wait_for_email(&dana.email, "Reset").await;
    assert!(sink.emails_to("nobody@acme.example").is_empty());
    forgot_password(&app, "no address").await.assert_error(422, "validation_failed");
}

#[tokio::test]
async fn mailed_link_expires_and_serves_one_purpose() {
    let (app, sink) = start_with_mail().await;
    let dana = app.register("acme").await;
    let verification = link_token(&sink.wait_for_email(&dana.email, "Verify").await);
    forgot_password(&app, &dana.email).await;
    let reset_token = link_token(&sink.wait_for_email(&dana.email, "Reset").await);
    for invalid in [
        &verification,
        &reset_token[..reset_token.len() - 1],
        &format!("{reset_token}A"),
        "",
        "x",
        &dana.refresh_token,
        &dana.access_token,
        &"A".repeat(64),
        &"é".repeat(64),
        &"A".repeat(100_000),
    ] {
        let response = reset_password(&app, invalid, NEW_PASSWORD).await;
        response.assert_error(422, "validation_failed").assert_field("token");
    }
    assert_eq!(verify_email(&app, &dana, &reset_token).await.status, 422);
    app.clock.advance(Duration::from_hours(1));
    assert_eq!(reset_password(&app, &reset_token, NEW_PASSWORD).await.status, 422);
    let pair = sign_in(&app, &dana.email, PASSWORD).await.expect_status(200);
    let dana = dana.with_tokens(&pair);
    assert_eq!(verify_email(&app, &dana, &verification).await.status, 204);
    assert_eq!(sign_in(&app, &dana.email, PASSWORD).await.status, 200);
}

#[tokio::test]
async fn used_reset_link_invalidates_the_others() {
    let (app, sink) = start_with_mail().await;
    let dana = app.register("acme").await;
    forgot_password(&app, &dana.email).await;
    let first = link_token(&sink.wait_for_email(&dana.email, "Reset").await);
    forgot_password(&app, &dana.email).await;
    let second = crate::fixture::eventually("the second email arrives", async || {
        let mails = sink.emails_to(&dana.email);
        mails.iter().filter(|mail| mail["subject"] == "Reset your password").nth(1).cloned()
    })
    .await;
    assert_eq!(reset_password(&app, &link_token(&second), NEW_PASSWORD).await.status, 204);
    assert_eq!(reset_password(&app, &first, "yet another good one").await.status, 422);
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_uses_of_reset_link_succeed_once() {
    let (app, sink) = start_with_mail().await;
    let dana = app.register("acme").await;
    forgot_password(&app, &dana.email).await;
    let token = link_token(&sink.wait_for_email(&dana.email, "Reset").await);
    let passwords: Vec<_> = (0..10).map(|n| format!("the good password no {n}")).collect();
    let calls = passwords.iter().map(|new| reset_password(&app, &token, new));
    let statuses: Vec<_> = futures_util::future::join_all(calls)
        .await
        .iter()
        .map(|response| response.status)
        .collect();
    let winner = statuses.iter().position(|status| status.as_u16() == 204).unwrap();
    assert_eq!(statuses.iter().filter(|status| status.as_u16() == 422).count(), 9, "{statuses:?}");
    assert_eq!(sign_in(&app, &dana.email, &passwords[winner]).await.status, 200);
}

#[tokio::test]
async fn email_is_verified_once_by_mailed_link() {
    let (app, sink) = start_with_mail().await;
    let dana = app.register("acme").await;
    assert_eq!(me(&app, &dana).await["user"]["email_verified"], false);
    let token = link_token(&sink.wait_for_email(&dana.email, "Verify").await);
    let send = || app.request_as(&dana.access_token, "POST", "/v1/auth/verify-email/send");
    assert_eq!(send().send().await.status, 202);
    assert_eq!(verify_email(&app, &dana, &token).await.status, 204);
    assert_eq!(me(&app, &dana).await["user"]["email_verified"], true);
    assert_eq!(verify_email(&app, &dana, &token).await.status, 422, "the link works only once");
    send().send().await.assert_error(409, "conflict");
    app.wait_for_event_count(&dana.access_token, "action=member.email_verified", 1).await;
}

#[tokio::test]
async fn mailed_links_to_one_user_are_limited() {
    let (app, sink) = start_with_mail().await;
    let dana = app.register("acme").await;
    for _ in 0..8 {
        assert_eq!(forgot_password(&app, &dana.email).await.status, 202);
        let send = app.request_as(&dana.access_token, "POST", "/v1/auth/verify-email/send");
        assert_eq!(send.send().await.status, 202);
    }
    crate::fixture::eventually("the outbox is empty", async || {
        let mut connection = app.database.connect().await;
        let sql = "SELECT count(*) FROM email_outbox";
        let waiting: i64 = sqlx::query_scalar(sql).fetch_one(&mut connection).await.unwrap();
        (waiting == 0).then_some(())
    })
    .await;
    let count_of = |subject: &str| {
        let mails = sink.emails_to(&dana.email);
        mails.iter().filter(|mail| mail["subject"].as_str().unwrap().contains(subject)).count()
    };
    assert_eq!((count_of("Reset"), count_of("Verify")), (5, 5));
}

#[tokio::test]
async fn refresh_token_reuse_is_mailed() {
    let (app, sink) = start_with_mail().await;
    let dana = app.register_verified("acme").await;
    let refresh = async |token: &str| {
        app.post("/v1/auth/refresh").json(json!({ "refresh_token": token })).send().await
    };
    let rotated = refresh(&dana.refresh_token).await.expect_status(200);
    app.clock.advance(Duration::from_secs(11));
    refresh(&dana.refresh_token).await.assert_error(401, "invalid_refresh_token");
    refresh(rotated["refresh_token"].as_str().unwrap())
        .await
        .assert_error(401, "invalid_refresh_token");
    let mail = sink.wait_for_email(&dana.email, "ended one of your sessions").await;
    assert!(mail["html"].as_str().unwrap().contains("/sessions"), "{mail:#}");
}

/// A sign-in that verified the old password fails if the password changes meanwhile.
#[tokio::test]
async fn sign_in_in_flight_fails_after_password_change() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let mut connection = app.database.connect().await;
    let mut tx = connection.begin().await.unwrap();
    // The state of a password change before its commit.
    let sql = "UPDATE users SET password_hash = 'another' WHERE email = $1";
    sqlx::query(sql).bind(&dana.email).execute(&mut *tx).await.unwrap();
    let change = async {
        app.database.wait_for_blocked_statement().await;
        tx.commit().await.unwrap();
    };
    let (response, ()) = tokio::join!(sign_in(&app, &dana.email, PASSWORD), change);
    response.assert_error(401, "invalid_credentials");
}
