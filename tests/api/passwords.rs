//! /v1/auth/password/… and /v1/auth/verify-email, with the mails that go with them.

use std::time::Duration;

use serde_json::{Value, json};
use sqlx::Connection;

use crate::fixture::{Answer, PASSWORD, Person, SmtpSink, TestApp, token_in};

const NEW: &str = "a walk in the old park";

async fn with_mail() -> (TestApp, SmtpSink) {
    let sink = SmtpSink::start();
    let app = TestApp::start_with(&[("mail.url", &sink.url())]).await;
    (app, sink)
}

async fn login(app: &TestApp, email: &str, password: &str) -> Answer {
    let body = json!({ "email": email, "password": password });
    app.post("/v1/auth/login").json(body).send().await
}

async fn works(app: &TestApp, credential: &str) -> bool {
    app.get("/v1/agents").bearer(credential).send().await.status == 200
}

async fn change(app: &TestApp, person: &Person, current: &str, new: &str) -> Answer {
    let body = json!({ "current_password": current, "new_password": new });
    app.by(&person.access_token, "POST", "/v1/auth/password/change").json(body).send().await
}

async fn forgot(app: &TestApp, email: &str) -> Answer {
    app.post("/v1/auth/password/forgot").json(json!({ "email": email })).send().await
}

async fn reset(app: &TestApp, token: &str, new: &str) -> Answer {
    let body = json!({ "token": token, "new_password": new });
    app.post("/v1/auth/password/reset").json(body).send().await
}

async fn verify(app: &TestApp, token: &str) -> Answer {
    app.post("/v1/auth/verify-email").json(json!({ "token": token })).send().await
}

async fn me(app: &TestApp, person: &Person) -> Value {
    app.by(&person.access_token, "GET", "/v1/auth/me").send().await.expect(200)
}

#[tokio::test]
async fn a_changed_password_ends_other_sessions_and_is_told_by_mail() {
    let (app, sink) = with_mail().await;
    let dana = app.register("acme").await;
    let key = app.mint(&dana, "server", "write").await;
    let other = login(&app, &dana.email, PASSWORD).await.expect(200);
    let other = other["access_token"].as_str().unwrap();
    assert!(works(&app, other).await);

    let wrong = change(&app, &dana, "not this one at all", NEW).await;
    wrong.refused(422, "validation_failed").blames("current_password");
    let weak = change(&app, &dana, PASSWORD, "password1234").await;
    weak.refused(422, "validation_failed").blames("new_password");
    assert!(works(&app, other).await);

    assert_eq!(change(&app, &dana, PASSWORD, NEW).await.status, 204);
    assert!(!works(&app, other).await);
    assert!(works(&app, &dana.access_token).await && works(&app, &key.secret).await);
    login(&app, &dana.email, PASSWORD).await.refused(401, "invalid_credentials");
    assert_eq!(login(&app, &dana.email, NEW).await.status, 200);
    app.events_of(&dana.access_token, "action=member.password_changed", 1).await;
    let ended = app.events_of(&dana.access_token, "action=session.ended", 1).await;
    assert_eq!(ended[0]["metadata"]["reason"], "password_changed");
    let mail = sink.mail(&dana.email, "password was changed").await;
    assert!(mail["text"].as_str().unwrap().contains("127.0.0.1"), "{mail:#}");
    app.by(&key.secret, "POST", "/v1/auth/password/change").send().await.refused(403, "forbidden");
}

#[tokio::test]
async fn a_forgotten_password_is_chosen_anew_by_a_mailed_link() {
    let (app, sink) = with_mail().await;
    let dana = app.register("acme").await;
    let key = app.mint(&dana, "server", "write").await;
    assert_eq!(forgot(&app, "OWNER@acme.example").await.status, 202);
    let mail = sink.mail("OWNER@acme.example", "Reset").await;
    let link = format!("{}/reset-password?token=", app.url);
    assert!(mail["text"].as_str().unwrap().contains(&link), "{mail:#}");
    assert!(mail["html"].as_str().unwrap().contains(&link), "{mail:#}");
    let token = token_in(&mail);

    let weak = reset(&app, &token, "password1234").await;
    weak.refused(422, "validation_failed").blames("new_password");
    assert_eq!(reset(&app, &token, NEW).await.status, 204);
    assert!(!works(&app, &dana.access_token).await, "a reset ends every session");
    assert!(works(&app, &key.secret).await);
    login(&app, &dana.email, PASSWORD).await.refused(401, "invalid_credentials");
    let mut again = dana.clone();
    again.take(&login(&app, &dana.email, NEW).await.expect(200));
    assert_eq!(me(&app, &again).await["user"]["email_verified"], true);
    sink.mail(&dana.email, "password was changed").await;
    let twice = reset(&app, &token, "yet another good one").await;
    twice.refused(422, "validation_failed").blames("token");
    assert_eq!(login(&app, &dana.email, NEW).await.status, 200);
}

#[tokio::test]
async fn asking_for_nobody_looks_the_same_and_mails_nobody() {
    let (app, sink) = with_mail().await;
    let dana = app.register("acme").await;
    let nobody = forgot(&app, "nobody@acme.example").await;
    let somebody = forgot(&app, &dana.email).await;
    assert_eq!(nobody.status, 202);
    assert_eq!(somebody.status, 202);
    assert_eq!(nobody.text, somebody.text);
    sink.mail(&dana.email, "Reset").await;
    assert!(sink.mails_to("nobody@acme.example").is_empty());
    forgot(&app, "no address").await.refused(422, "validation_failed");
}

#[tokio::test]
async fn links_run_out_and_are_worth_nothing_for_another_purpose() {
    let (app, sink) = with_mail().await;
    let dana = app.register("acme").await;
    let verification = token_in(&sink.mail(&dana.email, "Verify").await);
    forgot(&app, &dana.email).await;
    let late = token_in(&sink.mail(&dana.email, "Reset").await);
    for bad in [
        &verification,
        &late[..late.len() - 1],
        &format!("{late}A"),
        "",
        "x",
        &dana.refresh_token,
        &dana.access_token,
        &"A".repeat(64),
        &"é".repeat(64),
        &"A".repeat(100_000),
    ] {
        let refused = reset(&app, bad, NEW).await;
        refused.refused(422, "validation_failed").blames("token");
    }
    assert_eq!(verify(&app, &late).await.status, 422);
    app.clock.advance(Duration::from_hours(1));
    assert_eq!(reset(&app, &late, NEW).await.status, 422);
    assert_eq!(verify(&app, &verification).await.status, 204);
    assert_eq!(login(&app, &dana.email, PASSWORD).await.status, 200);
}

#[tokio::test]
async fn of_two_links_the_first_to_be_used_spoils_the_other() {
    let (app, sink) = with_mail().await;
    let dana = app.register("acme").await;
    forgot(&app, &dana.email).await;
    let first = token_in(&sink.mail(&dana.email, "Reset").await);
    forgot(&app, &dana.email).await;
    let second = crate::fixture::eventually("a second mail", async || {
        let mails = sink.mails_to(&dana.email);
        mails.iter().filter(|mail| mail["subject"] == "Reset your password").nth(1).cloned()
    })
    .await;
    assert_eq!(reset(&app, &token_in(&second), NEW).await.status, 204);
    assert_eq!(reset(&app, &first, "yet another good one").await.status, 422);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_ten_who_use_a_link_at_once_one_succeeds() {
    let (app, sink) = with_mail().await;
    let dana = app.register("acme").await;
    forgot(&app, &dana.email).await;
    let token = token_in(&sink.mail(&dana.email, "Reset").await);
    let passwords: Vec<_> = (0..10).map(|n| format!("the good password no {n}")).collect();
    let calls = passwords.iter().map(|new| reset(&app, &token, new));
    let statuses: Vec<_> =
        futures_util::future::join_all(calls).await.iter().map(|answer| answer.status).collect();
    let winner = statuses.iter().position(|status| status.as_u16() == 204).unwrap();
    assert_eq!(statuses.iter().filter(|status| status.as_u16() == 422).count(), 9, "{statuses:?}");
    assert_eq!(login(&app, &dana.email, &passwords[winner]).await.status, 200);
}

#[tokio::test]
async fn an_address_is_verified_by_a_mailed_link() {
    let (app, sink) = with_mail().await;
    let dana = app.register("acme").await;
    assert_eq!(me(&app, &dana).await["user"]["email_verified"], false);
    let first = token_in(&sink.mail(&dana.email, "Verify").await);
    let send = || app.by(&dana.access_token, "POST", "/v1/auth/verify-email/send");
    assert_eq!(send().send().await.status, 202);
    assert_eq!(verify(&app, &first).await.status, 204);
    assert_eq!(me(&app, &dana).await["user"]["email_verified"], true);
    assert_eq!(verify(&app, &first).await.status, 422, "a second time");
    send().send().await.refused(409, "conflict");
    app.events_of(&dana.access_token, "action=member.email_verified", 1).await;
}

#[tokio::test]
async fn nobody_is_buried_in_mail() {
    let (app, sink) = with_mail().await;
    let dana = app.register("acme").await;
    for _ in 0..8 {
        assert_eq!(forgot(&app, &dana.email).await.status, 202);
        let send = app.by(&dana.access_token, "POST", "/v1/auth/verify-email/send");
        assert_eq!(send.send().await.status, 202);
    }
    crate::fixture::eventually("the outbox is empty", async || {
        let mut connection = app.database.connect().await;
        let sql = "SELECT count(*) FROM mail_outbox";
        let left: i64 = sqlx::query_scalar(sql).fetch_one(&mut connection).await.unwrap();
        (left == 0).then_some(())
    })
    .await;
    let about = |subject: &str| {
        let mails = sink.mails_to(&dana.email);
        mails.iter().filter(|mail| mail["subject"].as_str().unwrap().contains(subject)).count()
    };
    assert_eq!((about("Reset"), about("Verify")), (5, 5));
}

#[tokio::test]
async fn a_reused_refresh_token_is_told_by_mail() {
    let (app, sink) = with_mail().await;
    let dana = app.register("acme").await;
    let refresh = async |token: &str| {
        app.post("/v1/auth/refresh").json(json!({ "refresh_token": token })).send().await
    };
    let second = refresh(&dana.refresh_token).await.expect(200);
    app.clock.advance(Duration::from_secs(11));
    refresh(&dana.refresh_token).await.refused(401, "invalid_refresh_token");
    refresh(second["refresh_token"].as_str().unwrap()).await.refused(401, "invalid_refresh_token");
    let mail = sink.mail(&dana.email, "ended one of your sessions").await;
    assert!(mail["html"].as_str().unwrap().contains("/sessions"), "{mail:#}");
}

/// Whoever verified the old password while a new one was being chosen does not get in with it.
#[tokio::test]
async fn a_sign_in_under_way_does_not_outlive_its_password() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let mut connection = app.database.connect().await;
    let mut tx = connection.begin().await.unwrap();
    // As a change of password does before it commits.
    let sql = "UPDATE users SET password_hash = 'another' WHERE email = $1";
    sqlx::query(sql).bind(&dana.email).execute(&mut *tx).await.unwrap();
    let change = async {
        app.database.somebody_waits_for_a_lock().await;
        tx.commit().await.unwrap();
    };
    let (answer, ()) = tokio::join!(login(&app, &dana.email, PASSWORD), change);
    answer.refused(401, "invalid_credentials");
}
