//! /v1/invitations: by mail, for one address, once.

use std::time::Duration;

use serde_json::{Value, json};

use crate::fixture::{Answer, PASSWORD, Person, SmtpSink, TestApp, token_in};

async fn with_mail() -> (TestApp, SmtpSink, Person) {
    let sink = SmtpSink::start();
    let app = TestApp::start_with(&[("mail.url", &sink.url())]).await;
    let dana = app.register("acme").await;
    (app, sink, dana)
}

async fn invite(app: &TestApp, by: &str, email: &str, role: &str) -> Answer {
    let body = json!({ "email": email, "role": role });
    app.by(by, "POST", "/v1/invitations").json(body).send().await
}

async fn accept(app: &TestApp, bearer: Option<&str>, body: Value) -> Answer {
    let call = app.post("/v1/invitations/accept");
    bearer
        .map_or(app.post("/v1/invitations/accept"), |token| call.bearer(token))
        .json(body)
        .send()
        .await
}

async fn token_for(sink: &SmtpSink, email: &str) -> String {
    token_in(&sink.mail(email, "Invitation").await)
}

#[tokio::test]
async fn somebody_new_joins_by_a_mailed_link() {
    let (app, sink, dana) = with_mail().await;
    let made = invite(&app, &dana.access_token, "Sam@new.example", "member").await.expect(201);
    assert_eq!((&made["role"], &made["invited_by"]), (&json!("member"), &json!(dana.user_id)));
    invite(&app, &dana.access_token, "sam@NEW.example", "viewer").await.refused(409, "conflict");
    let open = app.by(&dana.access_token, "GET", "/v1/invitations").send().await.expect(200);
    assert_eq!((&open["total"], &open["invitations"][0]["id"]), (&json!(1), &made["id"]));

    let mail = sink.mail("Sam@new.example", "Invitation").await;
    assert!(mail["text"].as_str().unwrap().contains("the workspace acme"), "{mail:#}");
    let token = token_in(&mail);
    let without = accept(&app, None, json!({ "token": token })).await;
    without.refused(422, "validation_failed").blames("password");
    let weak = json!({ "token": token, "password": "password1234" });
    accept(&app, None, weak).await.refused(422, "validation_failed").blames("password");
    let body = json!({ "token": token, "password": PASSWORD, "full_name": "Sam Lee" });
    let pair = accept(&app, None, body.clone()).await.expect(201);
    let me = app.by(pair["access_token"].as_str().unwrap(), "GET", "/v1/auth/me");
    let me = me.send().await.expect(200);
    assert_eq!(
        (&me["workspace"]["id"], &me["role"]),
        (&json!(dana.workspace_id), &json!("member"))
    );
    assert_eq!(me["user"]["email_verified"], true);

    // Once.
    accept(&app, None, body).await.refused(422, "validation_failed").blames("token");
    let open = app.by(&dana.access_token, "GET", "/v1/invitations").send().await.expect(200);
    assert_eq!(open["total"], 0);
    app.events_of(&dana.access_token, "action=member.invited", 1).await;
    let joined = app.events_of(&dana.access_token, "action=member.joined", 1).await;
    assert_eq!(joined[0]["metadata"]["invitation_id"], made["id"]);
    let again = invite(&app, &dana.access_token, "sam@new.example", "admin").await;
    again.refused(409, "conflict");
}

#[tokio::test]
async fn an_account_that_exists_joins_with_its_own_session_alone() {
    let (app, sink, dana) = with_mail().await;
    let [sam, eve] = [app.register("widgets-inc").await, app.register("evil").await];
    invite(&app, &dana.access_token, &sam.email, "admin").await.expect(201);
    let token = token_for(&sink, &sam.email).await;
    // The link alone opens no account, whatever password comes with it.
    let body = json!({ "token": token, "password": "another long password", "full_name": "Eve" });
    accept(&app, None, body).await.refused(401, "unauthorized");
    let body = json!({ "token": token });
    accept(&app, Some(&eve.access_token), body.clone()).await.refused(403, "forbidden");
    let key = app.mint(&sam, "k", "admin").await;
    accept(&app, Some(&key.secret), body.clone()).await.refused(403, "forbidden");
    accept(&app, Some("nonsense"), body.clone()).await.refused(401, "unauthorized");

    let pair = accept(&app, Some(&sam.access_token), body.clone()).await.expect(201);
    let token = pair["access_token"].as_str().unwrap();
    let me = app.by(token, "GET", "/v1/auth/me").send().await.expect(200);
    assert_eq!((&me["workspace"]["id"], &me["role"]), (&json!(dana.workspace_id), &json!("admin")));
    // The session has moved: its tokens for the workspace before are dead.
    app.get("/v1/agents").bearer(&sam.access_token).send().await.refused(401, "unauthorized");
    let twice = accept(&app, Some(token), body).await;
    twice.refused(422, "validation_failed").blames("token");
}

#[tokio::test]
async fn invitations_are_withdrawn_and_run_out_and_stay_below_the_inviter() {
    let (app, sink, dana) = with_mail().await;
    let admin = app.join(&dana, "admin").await;
    let key = app.mint(&dana, "k", "admin").await;
    for by in [&admin.access_token, &key.secret] {
        invite(&app, by, "a@new.example", "owner").await.refused(403, "forbidden");
    }
    invite(&app, &dana.access_token, "no address", "member")
        .await
        .refused(422, "validation_failed")
        .blames("email");
    invite(&app, &dana.access_token, "a@new.example", "king")
        .await
        .refused(422, "validation_failed");
    let withdraw = async |by: &str, id: &Value| {
        app.by(by, "DELETE", &format!("/v1/invitations/{}", id.as_str().unwrap())).send().await
    };
    let owner = invite(&app, &dana.access_token, "a@new.example", "owner").await.expect(201);
    withdraw(&admin.access_token, &owner["id"]).await.refused(403, "forbidden");
    assert_eq!(withdraw(&dana.access_token, &owner["id"]).await.status, 204);
    withdraw(&dana.access_token, &owner["id"]).await.refused(404, "not_found");
    let refused = async |email: &str| {
        let body = json!({ "token": token_for(&sink, email).await, "password": PASSWORD });
        accept(&app, None, body).await.refused(422, "validation_failed").blames("token");
    };
    refused("a@new.example").await;

    invite(&app, &dana.access_token, "b@new.example", "viewer").await.expect(201);
    // Who is no admin any more has not invited anybody.
    invite(&app, &admin.access_token, "c@new.example", "admin").await.expect(201);
    let path = format!("/v1/members/{}", admin.user_id);
    let demote = app.by(&dana.access_token, "PATCH", &path).json(json!({ "role": "member" }));
    demote.send().await.expect(200);
    refused("c@new.example").await;
    let token = token_for(&sink, "b@new.example").await;
    app.clock.advance(Duration::from_hours(24 * 7 + 1));
    let body = json!({ "token": token, "password": PASSWORD });
    accept(&app, None, body).await.refused(422, "validation_failed").blames("token");
}

#[tokio::test]
async fn an_owner_to_be_is_invited_by_who_has_just_signed_in_or_knows_the_password() {
    let (app, _sink, dana) = with_mail().await;
    app.clock.advance(Duration::from_mins(16));
    let refused = invite(&app, &dana.access_token, "sam@new.example", "owner").await;
    refused.refused(403, "forbidden");
    let body = json!({ "email": "sam@new.example", "role": "owner", "password": PASSWORD });
    app.by(&dana.access_token, "POST", "/v1/invitations").json(body).send().await.expect(201);
    invite(&app, &dana.access_token, "kim@new.example", "admin").await.expect(201);
}

#[tokio::test]
async fn of_many_who_accept_at_once_one_joins() {
    let (app, sink, dana) = with_mail().await;
    invite(&app, &dana.access_token, "sam@new.example", "viewer").await.expect(201);
    let token = token_for(&sink, "sam@new.example").await;
    let body = json!({ "token": token, "password": PASSWORD });
    let tries = (0..8).map(|_| accept(&app, None, body.clone()));
    let statuses = futures_util::future::join_all(tries).await;
    let won = statuses.iter().filter(|answer| answer.status == 201).count();
    assert_eq!(won, 1, "{:?}", statuses.iter().map(|a| a.status).collect::<Vec<_>>());
    assert!(statuses.iter().all(|answer| answer.status.as_u16() < 500));
}

/// Whom strangers invite is not buried in mail.
#[tokio::test]
async fn an_address_is_invited_so_many_times_a_day() {
    let (app, _sink, dana) = with_mail().await;
    for _ in 0..10 {
        let made = invite(&app, &dana.access_token, "sam@new.example", "viewer").await.expect(201);
        let path = format!("/v1/invitations/{}", made["id"].as_str().unwrap());
        assert_eq!(app.by(&dana.access_token, "DELETE", &path).send().await.status, 204);
    }
    invite(&app, &dana.access_token, "sam@new.example", "viewer").await.refused(409, "conflict");
    let eve = app.register("evil").await;
    invite(&app, &eve.access_token, "SAM@new.example", "viewer").await.refused(409, "conflict");
}
