//! /v1/invitations: sent by email, valid once and for one email address.

use std::time::Duration;

use serde_json::{Value, json};

use crate::{
    fixture::{PASSWORD, SmtpSink, TestApp, TestResponse, TestUser, link_token},
    mail::wait_for_empty_outbox,
};

async fn app_with_mail() -> (TestApp, SmtpSink, TestUser) {
    let sink = SmtpSink::start();
    let app = TestApp::start_with(&[("mail.url", &sink.url())]).await;
    let dana = app.register_verified("acme").await;
    (app, sink, dana)
}

async fn invite(app: &TestApp, by: &str, email: &str, role: &str) -> TestResponse {
    let body = json!({ "email": email, "role": role });
    app.request_as(by, "POST", "/v1/invitations").json(body).send().await
}

async fn accept(app: &TestApp, bearer: Option<&str>, body: Value) -> TestResponse {
    let call = app.post("/v1/invitations/accept");
    bearer
        .map_or(app.post("/v1/invitations/accept"), |token| call.bearer(token))
        .json(body)
        .send()
        .await
}

async fn invitation_token(sink: &SmtpSink, email: &str) -> String {
    link_token(&sink.wait_for_email(email, "Invitation").await)
}

#[tokio::test]
async fn new_user_joins_by_mailed_link() {
    let (app, sink, dana) = app_with_mail().await;
    let created =
        invite(&app, &dana.access_token, "Sam@new.example", "member").await.expect_status(201);
    assert_eq!(
        (&created["role"], &created["invited_by"]),
        (&json!("member"), &json!(dana.user_id))
    );
    invite(&app, &dana.access_token, "sam@NEW.example", "viewer")
        .await
        .assert_error(409, "conflict");
    let pending = app
        .request_as(&dana.access_token, "GET", "/v1/invitations")
        .send()
        .await
        .expect_status(200);
    assert_eq!((&pending["total"], &pending["invitations"][0]["id"]), (&json!(1), &created["id"]));

    let mail = sink.wait_for_email("Sam@new.example", "Invitation").await;
    assert!(mail["text"].as_str().unwrap().contains("the workspace acme"), "{mail:#}");
    let token = link_token(&mail);
    let without_password = accept(&app, None, json!({ "token": token })).await;
    without_password.assert_error(422, "validation_failed").assert_field("password");
    let weak = json!({ "token": token, "password": "password1234" });
    accept(&app, None, weak).await.assert_error(422, "validation_failed").assert_field("password");
    let body = json!({ "token": token, "password": PASSWORD, "full_name": "Sam Lee" });
    let pair = accept(&app, None, body.clone()).await.expect_status(201);
    let me = app.request_as(pair["access_token"].as_str().unwrap(), "GET", "/v1/auth/me");
    let me = me.send().await.expect_status(200);
    assert_eq!(
        (&me["workspace"]["id"], &me["role"]),
        (&json!(dana.workspace_id), &json!("member"))
    );
    assert_eq!(me["user"]["email_verified"], true);

    // An invitation works once.
    accept(&app, None, body).await.assert_error(422, "validation_failed").assert_field("token");
    let pending = app
        .request_as(&dana.access_token, "GET", "/v1/invitations")
        .send()
        .await
        .expect_status(200);
    assert_eq!(pending["total"], 0);
    app.wait_for_event_count(&dana.access_token, "action=member.invited", 1).await;
    let joined = app.wait_for_event_count(&dana.access_token, "action=member.joined", 1).await;
    assert_eq!(joined[0]["metadata"]["invitation_id"], created["id"]);
    let again = invite(&app, &dana.access_token, "sam@new.example", "admin").await;
    again.assert_error(409, "conflict");
}

#[tokio::test]
async fn existing_account_joins_only_with_own_session() {
    let (app, sink, dana) = app_with_mail().await;
    let [sam, eve] = [app.register("widgets-inc").await, app.register("evil").await];
    invite(&app, &dana.access_token, &sam.email, "admin").await.expect_status(201);
    let token = invitation_token(&sink, &sam.email).await;
    // The link gives no access to an existing account, with any password.
    let body = json!({ "token": token, "password": "another long password", "full_name": "Eve" });
    accept(&app, None, body).await.assert_error(401, "unauthorized");
    let body = json!({ "token": token });
    accept(&app, Some(&eve.access_token), body.clone()).await.assert_error(403, "forbidden");
    let key = app.create_key(&sam, "k", "admin").await;
    accept(&app, Some(&key.secret), body.clone()).await.assert_error(403, "forbidden");
    accept(&app, Some("nonsense"), body.clone()).await.assert_error(401, "unauthorized");

    let pair = accept(&app, Some(&sam.access_token), body.clone()).await.expect_status(201);
    let token = pair["access_token"].as_str().unwrap();
    let me = app.request_as(token, "GET", "/v1/auth/me").send().await.expect_status(200);
    assert_eq!((&me["workspace"]["id"], &me["role"]), (&json!(dana.workspace_id), &json!("admin")));
    assert_eq!(me["user"]["email_verified"], true);
    app.wait_for_event_count(token, "action=member.email_verified", 1).await;
    // The session has switched workspaces: its tokens for the previous one are invalid.
    app.get("/v1/agents").bearer(&sam.access_token).send().await.assert_error(401, "unauthorized");
    let second_attempt = accept(&app, Some(token), body).await;
    second_attempt.assert_error(422, "validation_failed").assert_field("token");
}

#[tokio::test]
async fn withdrawn_expired_or_excessive_invitation_is_rejected() {
    let (app, sink, dana) = app_with_mail().await;
    let admin = app.add_member(&dana, "admin").await;
    app.set_verified(&admin, true).await;
    let key = app.create_key(&dana, "k", "admin").await;
    for by in [&admin.access_token, &key.secret] {
        invite(&app, by, "a@new.example", "owner").await.assert_error(403, "forbidden");
    }
    invite(&app, &dana.access_token, "no address", "member")
        .await
        .assert_error(422, "validation_failed")
        .assert_field("email");
    invite(&app, &dana.access_token, "a@new.example", "king")
        .await
        .assert_error(422, "validation_failed");
    let withdraw = async |by: &str, id: &Value| {
        app.request_as(by, "DELETE", &format!("/v1/invitations/{}", id.as_str().unwrap()))
            .send()
            .await
    };
    let owner = invite(&app, &dana.access_token, "a@new.example", "owner").await.expect_status(201);
    withdraw(&admin.access_token, &owner["id"]).await.assert_error(403, "forbidden");
    assert_eq!(withdraw(&dana.access_token, &owner["id"]).await.status, 204);
    withdraw(&dana.access_token, &owner["id"]).await.assert_error(404, "not_found");
    let assert_unusable = async |email: &str| {
        let body = json!({ "token": invitation_token(&sink, email).await, "password": PASSWORD });
        accept(&app, None, body).await.assert_error(422, "validation_failed").assert_field("token");
    };
    assert_unusable("a@new.example").await;

    invite(&app, &dana.access_token, "b@new.example", "viewer").await.expect_status(201);
    // Demoting the inviter invalidates the invitation.
    invite(&app, &admin.access_token, "c@new.example", "admin").await.expect_status(201);
    let path = format!("/v1/members/{}", admin.user_id);
    let demote =
        app.request_as(&dana.access_token, "PATCH", &path).json(json!({ "role": "member" }));
    demote.send().await.expect_status(200);
    assert_unusable("c@new.example").await;
    let token = invitation_token(&sink, "b@new.example").await;
    app.clock.advance(Duration::from_hours(24 * 7 + 1));
    let body = json!({ "token": token, "password": PASSWORD });
    accept(&app, None, body).await.assert_error(422, "validation_failed").assert_field("token");
}

#[tokio::test]
async fn owner_invitation_needs_recent_sign_in_or_password() {
    let (app, _sink, dana) = app_with_mail().await;
    app.clock.advance(Duration::from_mins(16));
    let rejected = invite(&app, &dana.access_token, "sam@new.example", "owner").await;
    rejected.assert_error(403, "forbidden");
    let body = json!({ "email": "sam@new.example", "role": "owner", "password": PASSWORD });
    app.request_as(&dana.access_token, "POST", "/v1/invitations")
        .json(body)
        .send()
        .await
        .expect_status(201);
    invite(&app, &dana.access_token, "kim@new.example", "admin").await.expect_status(201);
}

#[tokio::test]
async fn concurrent_accepts_add_one_member() {
    let (app, sink, dana) = app_with_mail().await;
    invite(&app, &dana.access_token, "sam@new.example", "viewer").await.expect_status(201);
    let token = invitation_token(&sink, "sam@new.example").await;
    let body = json!({ "token": token, "password": PASSWORD });
    let attempts = (0..8).map(|_| accept(&app, None, body.clone()));
    let responses = futures_util::future::join_all(attempts).await;
    let accepted = responses.iter().filter(|answer| answer.status == 201).count();
    assert_eq!(accepted, 1, "{:?}", responses.iter().map(|a| a.status).collect::<Vec<_>>());
    assert!(responses.iter().all(|answer| answer.status.as_u16() < 500));
}

/// Sends an invitation and revokes it. Returns the status of the invitation.
async fn invite_and_revoke(app: &TestApp, by: &str, email: &str) -> u16 {
    let response = invite(app, by, email, "viewer").await;
    if response.status == 201 {
        let path = format!("/v1/invitations/{}", response.body["id"].as_str().unwrap());
        assert_eq!(app.request_as(by, "DELETE", &path).send().await.status, 204);
    }
    response.status.as_u16()
}

/// A workspace invites an address three times a day, which prevents no other workspace from
/// inviting it.
#[tokio::test]
async fn invitations_of_workspace_to_one_address_are_limited_per_day() {
    let app = TestApp::start().await;
    let dana = app.register_verified("acme").await;
    let key = app.create_key(&dana, "k", "admin").await;
    let mut statuses = Vec::new();
    for email in ["sam@new.example", "SAM@new.example", "sam@NEW.example", "sam@new.example"] {
        statuses.push(invite_and_revoke(&app, &dana.access_token, email).await);
    }
    assert_eq!(statuses, [201, 201, 201, 409]);
    assert_eq!(invite_and_revoke(&app, &key.secret, "sam@new.example").await, 409);
    assert_eq!(invite_and_revoke(&app, &key.secret, "kim@new.example").await, 201);
    let eve = app.register_verified("evil").await;
    assert_eq!(invite_and_revoke(&app, &eve.access_token, "sam@new.example").await, 201);
    app.clock.advance(Duration::from_hours(24));
    assert_eq!(invite_and_revoke(&app, &key.secret, "sam@new.example").await, 201);
}

/// An address gets ten emails a day. Further invitations are stored without an email, and nothing
/// tells their workspace about the others.
#[tokio::test]
async fn invitation_emails_to_one_address_are_limited_per_day() {
    let (app, sink, dana) = app_with_mail().await;
    let key = app.create_key(&dana, "k", "admin").await;
    for n in 0..4 {
        let user = app.register_verified(&format!("w{n}")).await;
        for _ in 0..3 {
            let sent = invite_and_revoke(&app, &user.access_token, "sam@new.example").await;
            assert_eq!(sent, 201, "{n}");
        }
    }
    let silent = invite(&app, &key.secret, "sam@new.example", "viewer").await.expect_status(201);
    let other = invite(&app, &key.secret, "kim@new.example", "viewer").await.expect_status(201);
    let fields = |body: &Value| body.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(fields(&silent), fields(&other));
    wait_for_empty_outbox(&app).await;
    assert_eq!(sink.emails_to("sam@new.example").len(), 10);
    app.clock.advance(Duration::from_hours(24));
    assert_eq!(invite_and_revoke(&app, &key.secret, "sam@new.example").await, 409);
    let path = format!("/v1/invitations/{}", silent["id"].as_str().unwrap());
    assert_eq!(app.request_as(&key.secret, "DELETE", &path).send().await.status, 204);
    assert_eq!(invite_and_revoke(&app, &key.secret, "sam@new.example").await, 201);
    wait_for_empty_outbox(&app).await;
    assert_eq!(sink.emails_to("sam@new.example").len(), 11);
}

#[tokio::test]
async fn unverified_user_invites_nobody() {
    let (app, sink, _) = app_with_mail().await;
    let eve = app.register("evil").await;
    let key = app.create_key(&eve, "k", "admin").await;
    for by in [&eve.access_token, &key.secret] {
        invite(&app, by, "sam@new.example", "member").await.assert_error(403, "forbidden");
    }
    // An admin with a verified address invites, and one without does not.
    let [admin, other] = [app.add_member(&eve, "admin").await, app.add_member(&eve, "admin").await];
    app.set_verified(&admin, true).await;
    invite(&app, &other.access_token, "a@new.example", "member")
        .await
        .assert_error(403, "forbidden");
    invite(&app, &admin.access_token, "a@new.example", "member").await.expect_status(201);
    sink.wait_for_email("a@new.example", "Invitation").await;
    assert!(sink.emails_to("sam@new.example").is_empty());
}

/// Invitations that are withdrawn again count too.
#[tokio::test]
async fn invitations_per_day_are_limited() {
    let app = TestApp::start().await;
    let dana = app.register_verified("acme").await;
    let other = app.add_member(&dana, "admin").await;
    app.set_verified(&other, true).await;
    let key = app.create_key(&dana, "k", "admin").await;
    let invite_many = async |by: &str, name: &str| {
        let mut sent = 0;
        for n in 0..60 {
            let response = invite(&app, by, &format!("{name}{n}@new.example"), "member").await;
            if response.status != 201 {
                response.assert_error(409, "conflict");
                break;
            }
            let path = format!("/v1/invitations/{}", response.body["id"].as_str().unwrap());
            assert_eq!(app.request_as(by, "DELETE", &path).send().await.status, 204);
            sent += 1;
        }
        sent
    };
    assert_eq!(invite_many(&dana.access_token, "a").await, 50);
    assert_eq!(invite_many(&other.access_token, "b").await, 50);
    assert_eq!(invite_many(&key.secret, "c").await, 0, "the workspace has sent 100");
    app.clock.advance(Duration::from_hours(24));
    assert_eq!(invite_many(&key.secret, "d").await, 50);
}

#[tokio::test]
async fn subject_of_invitation_contains_no_text_of_the_inviter() {
    let (app, sink, _) = app_with_mail().await;
    for (n, name) in ["Your bank account", "Prize: 1000 EUR", "Call 0900 123"].iter().enumerate() {
        let mut user = app.register(&format!("w{n}")).await;
        app.set_verified(&user, true).await;
        let body = json!({ "name": name });
        app.request_as(&user.access_token, "PATCH", "/v1/workspace")
            .json(body)
            .send()
            .await
            .expect_status(200);
        user.email = format!("victim{n}@new.example");
        invite(&app, &user.access_token, &user.email, "viewer").await.expect_status(201);
        let email = sink.wait_for_email(&user.email, "Invitation").await;
        assert_eq!(email["subject"], "Invitation to a workspace on Call2Me");
    }
}
