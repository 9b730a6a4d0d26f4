//! Who may change what signs one in, and what a workspace may ask for.

use std::time::Duration;

use serde_json::{Value, json};
use sqlx::Connection as _;

use crate::{
    fixture::{
        Answer, Browser, LOCALHOST, PASSWORD, Person, SmtpSink, TestApp, device::Device, token_in,
    },
    mfa::{code, confirm, enrol, login, now, with_factor},
    passkeys::{self, add, device_of, new_options, new_passkey, options, sign_in},
};

#[tokio::test]
async fn a_workspace_may_ask_for_a_second_factor() {
    let app = TestApp::start().await;
    let node = app.another_node().await;
    let dana = app.register("acme").await;
    let [admin, member] = [app.join(&dana, "admin").await, app.join(&dana, "member").await];
    let key = app.mint(&dana, "server", "write").await;
    let ask = async |bearer: &str, body: Value| {
        app.by(bearer, "PATCH", "/v1/workspace").json(body).send().await
    };
    let on = json!({ "require_second_factor": true });
    let agents =
        async |app: &TestApp, bearer: &str| app.by(bearer, "GET", "/v1/agents").send().await.status;
    // Who may: an owner who has one, and has shown who they are.
    ask(&admin.access_token, on.clone()).await.refused(403, "forbidden");
    ask(&key.secret, on.clone()).await.refused(403, "insufficient_scope");
    let admin_key = app.mint(&dana, "admin", "admin").await.secret;
    ask(&admin_key, on.clone()).await.refused(403, "forbidden");
    ask(&dana.access_token, on.clone()).await.refused(403, "forbidden");
    with_factor(&app, &dana).await;
    app.clock.advance(Duration::from_mins(20));
    ask(&dana.access_token, on.clone()).await.refused(403, "forbidden");
    assert_eq!(agents(&node, &member.access_token).await, 200);
    let body = json!({ "require_second_factor": true, "password": PASSWORD });
    let changed = ask(&dana.access_token, body).await.expect(200);
    assert_eq!(changed["require_second_factor"], true);

    // Who has none is let in nowhere but where they set one up, at once and on every node.
    for app in [&app, &node] {
        assert_eq!(agents(app, &member.access_token).await, 403);
        assert_eq!(agents(app, &dana.access_token).await, 200);
        assert_eq!(agents(app, &key.secret).await, 200, "API keys are not affected");
    }
    let call = app.by(&admin.access_token, "POST", "/v1/api-keys").json(json!({ "name": "k" }));
    call.send().await.refused(403, "forbidden");
    let fresh = login(&app, &member, PASSWORD).await.expect(200);
    let bearer = fresh["access_token"].as_str().unwrap();
    assert_eq!(agents(&app, bearer).await, 403);
    let own = app.by(bearer, "GET", "/v1/auth/sessions").send().await;
    own.expect(200);
    // Elsewhere nobody asks for it.
    let elsewhere = app.by(bearer, "GET", "/v1/workspaces").send().await.expect(200);
    let mut workspaces = elsewhere["workspaces"].as_array().unwrap().iter();
    let other = workspaces.find(|own| own["id"] != json!(dana.workspace_id)).unwrap();
    let body = json!({ "workspace_id": other["id"] });
    let call = app.by(bearer, "POST", "/v1/auth/switch-workspace").json(body);
    let moved = call.send().await.expect(200);
    assert_eq!(agents(&app, moved["access_token"].as_str().unwrap()).await, 200);

    let access_token = bearer_of(&app, &member).await;
    let enrolling = Person { access_token, ..member.clone() };
    assert_eq!(agents(&node, &enrolling.access_token).await, 403);
    with_factor(&app, &enrolling).await;
    // What was begun with less has ended: somebody else may have it.
    app.by(&member.access_token, "GET", "/v1/auth/me").send().await.refused(401, "unauthorized");
    let member = enrolling;
    for app in [&app, &node] {
        assert_eq!(agents(app, &member.access_token).await, 200, "open as soon as it is confirmed");
    }
    let body = json!({ "password": PASSWORD });
    let call = app.by(&member.access_token, "DELETE", "/v1/auth/mfa/totp").json(body);
    call.send().await.expect(204);
    for app in [&app, &node] {
        assert_eq!(agents(app, &member.access_token).await, 403);
    }
    let body = json!({ "require_second_factor": false, "password": PASSWORD });
    ask(&dana.access_token, body).await.expect(200);
    for app in [&app, &node] {
        assert_eq!(agents(app, &member.access_token).await, 200);
    }
    let events = app.events_of(&admin_key, "action=workspace.updated", 2).await;
    assert_eq!(events[0]["metadata"]["require_second_factor"], false);
    assert_eq!(events[1]["metadata"]["require_second_factor"], true);
}

#[tokio::test]
async fn what_an_ended_session_began_changes_no_factor() {
    let app = TestApp::start_with(&[("server.public_url", LOCALHOST)]).await;
    let [dana, lee] = [app.register("acme").await, app.register_verified("lee").await];
    let enrolment = enrol(&app, &dana, json!({})).await.expect(200);
    let code = code(enrolment["secret"].as_str().unwrap(), now(&app));
    let passkey = json!({ "name": "phone", "credential": new_passkey(&app, &lee).await });
    let [kim, sam] = [app.register("kim").await, app.register("sam").await];
    with_factor(&app, &kim).await;
    with_factor(&app, &sam).await;
    let password = json!({ "password": PASSWORD });
    for (person, method, path, body) in [
        (&dana, "POST", "/v1/auth/mfa/totp/confirm", json!({ "code": code })),
        (&lee, "POST", "/v1/auth/passkeys", passkey),
        (&kim, "POST", "/v1/auth/mfa/recovery-codes", password.clone()),
        (&sam, "DELETE", "/v1/auth/mfa/totp", password),
    ] {
        let mut connection = app.database.connect().await;
        let mut tx = connection.begin().await.unwrap();
        sqlx::query("SELECT FROM users FOR NO KEY UPDATE").execute(&mut *tx).await.unwrap();
        let end = async {
            app.database.somebody_waits_for_a_lock().await;
            let sql = "UPDATE sessions SET ended_at = now() FROM users u
                       WHERE u.id = user_id AND u.email = $1";
            sqlx::query(sql).bind(&person.email).execute(&mut *tx).await.unwrap();
            tx.commit().await.unwrap();
        };
        let call = app.by(&person.access_token, method, path).json(body).send();
        let (answer, ()) = tokio::join!(call, end);
        answer.refused(401, "unauthorized");
    }
    let mut connection = app.database.connect().await;
    let sql = "SELECT (SELECT count(*) FROM passkeys)
                      + (SELECT count(*) FROM totp_factors WHERE confirmed_at IS NOT NULL)";
    let made: i64 = sqlx::query_scalar(sql).fetch_one(&mut connection).await.unwrap();
    assert_eq!(made, 2, "those that were there before");
}

/// A fresh sign-in's token, for the person's workspace.
async fn bearer_of(app: &TestApp, person: &Person) -> String {
    let body = json!({
        "email": person.email, "password": PASSWORD, "workspace_id": person.workspace_id,
    });
    let pair = app.post("/v1/auth/login").json(body).send().await.expect(200);
    pair["access_token"].as_str().unwrap().to_owned()
}

/// What a person's session is refused who has a passkey and has not shown it there.
async fn refuses_to_change_factors(app: &TestApp, person: &Person, passkey: &str) {
    let call = async |method: &str, path: &str, body: Value| {
        let answer = app.by(&person.access_token, method, path).json(body).send().await;
        answer.refused(403, "forbidden");
        assert!(answer.text.contains("passkey"), "{}", answer.text);
    };
    let password = json!({ "password": PASSWORD });
    call("POST", "/v1/auth/mfa/totp", password.clone()).await;
    call("POST", "/v1/auth/passkeys/options", password.clone()).await;
    call("DELETE", &format!("/v1/auth/passkeys/{passkey}"), password).await;
}

async fn id_of_passkey(app: &TestApp, person: &Person) -> String {
    let listed = app.by(&person.access_token, "GET", "/v1/auth/passkeys").send().await.expect(200);
    listed["passkeys"][0]["id"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_password_alone_does_not_get_round_a_passkey() {
    let app = passkeys::app().await;
    let node = TestApp::start_on(
        app.database.clone(),
        &[("server.public_url", &app.app.settings.public_url)],
    )
    .await;
    let dana = app.register("acme").await;
    let mut lee = app.join(&dana, "member").await;
    app.set_verified(&lee, true).await;
    with_factor(&app, &dana).await;
    let body = json!({ "require_second_factor": true });
    app.by(&dana.access_token, "PATCH", "/v1/workspace").json(body).send().await.expect(200);
    let agents = async |app: &TestApp, person: &Person| {
        app.by(&person.access_token, "GET", "/v1/agents").send().await.status
    };
    // Begun while the password was all there was.
    let stolen = lee.with(&login(&app, &lee, PASSWORD).await.expect(200));
    let enrolment = enrol(&app, &stolen, json!({})).await.expect(200);
    let theirs = new_passkey(&app, &stolen).await;
    assert_eq!(agents(&app, &lee).await, 403);
    let device = Device { count: 1, ..device_of(&app, &lee).await };
    for app in [&app, &node] {
        assert_eq!(agents(app, &lee).await, 200, "who has just made it has shown it");
        assert_eq!(agents(app, &stolen).await, 403);
    }
    let passkey = id_of_passkey(&app, &lee).await;
    let first = code(enrolment["secret"].as_str().unwrap(), now(&app));
    confirm(&app, &stolen, &first).await.refused(403, "forbidden");
    add(&app, &stolen, &theirs).await.refused(403, "forbidden");
    refuses_to_change_factors(&app, &stolen, &passkey).await;
    let again = lee.with(&login(&app, &lee, PASSWORD).await.expect(200));
    refuses_to_change_factors(&node, &again, &passkey).await;
    assert_eq!(agents(&app, &again).await, 403);
    // Its page tells what to do, and offers nothing that would be refused.
    let mut browser = Browser::of(&app, &lee.email).await;
    let page = browser.get("/second-factor").await;
    assert!(page.text.contains("sign in with your passkey"), "{page:#?}");
    for form in ["/second-factor/set-up", "/second-factor/passkeys/new", "/remove"] {
        assert!(!page.text.contains(form), "{form}");
    }

    let own = lee.with(&sign_in(&app, &device.signed(&options(&app).await)).await.expect(200));
    assert_eq!(agents(&node, &own).await, 200);
    new_options(&app, &own).await;
    // Taken away from one session, the others end at once, on every node.
    let path = format!("/v1/auth/passkeys/{passkey}");
    app.by(&own.access_token, "DELETE", &path).json(json!({})).send().await.expect(204);
    for app in [&app, &node] {
        assert_eq!(agents(app, &lee).await, 401);
        assert_eq!(agents(app, &own).await, 403, "it has not shown what is there");
    }
    // There is nothing to be shown any more: as for anybody without a factor.
    lee = lee.with(&login(&app, &lee, PASSWORD).await.expect(200));
    with_factor(&app, &lee).await;
    assert_eq!(agents(&node, &lee).await, 200);
    let owner = app.mint(&dana, "log", "admin").await.secret;
    let ended = |event: &Value| event["metadata"]["reason"] == "passkey_removed";
    app.events(&owner, "action=session.ended", ended).await;
}

#[tokio::test]
async fn a_challenge_to_one_authenticator_is_not_met_by_the_next() {
    let app = passkeys::app().await;
    let dana = app.register_verified("acme").await;
    with_factor(&app, &dana).await;
    // Somebody who knows the password keeps a challenge while the authenticator is changed.
    let challenge = login(&app, &dana, PASSWORD).await;
    challenge.refused(401, "mfa_required");
    let token = challenge.body["mfa_token"].as_str().unwrap();
    let off = app.by(&dana.access_token, "DELETE", "/v1/auth/mfa/totp");
    off.json(json!({ "password": PASSWORD })).send().await.expect(204);
    let stolen = dana.with(&login(&app, &dana, PASSWORD).await.expect(200));
    let enrolment = enrol(&app, &stolen, json!({})).await.expect(200);
    device_of(&app, &dana).await;
    let code = code(enrolment["secret"].as_str().unwrap(), now(&app));
    let body = json!({ "mfa_token": token, "code": code });
    let answer = app.post("/v1/auth/mfa/verify").json(body.clone()).send().await;
    answer.refused(401, "invalid_credentials");
    refuses_to_change_factors(&app, &stolen, &id_of_passkey(&app, &dana).await).await;
    // Neither where it had been kept: what waits for its first code meets none.
    let mut connection = app.database.connect().await;
    let sql = "UPDATE mfa_challenges SET used_at = NULL";
    sqlx::query(sql).execute(&mut connection).await.unwrap();
    let answer = app.post("/v1/auth/mfa/verify").json(body).send().await;
    answer.refused(401, "invalid_credentials");
    // Nor, once it is gone, by one that is confirmed.
    let lee = app.register("lee").await;
    with_factor(&app, &lee).await;
    let challenge = login(&app, &lee, PASSWORD).await.body["mfa_token"].clone();
    let off = app.by(&lee.access_token, "DELETE", "/v1/auth/mfa/totp");
    off.json(json!({ "password": PASSWORD })).send().await.expect(204);
    let (_, codes) = with_factor(&app, &lee).await;
    let body = json!({ "mfa_token": challenge, "code": codes[0] });
    let answer = app.post("/v1/auth/mfa/verify").json(body).send().await;
    answer.refused(401, "invalid_credentials");
    let challenge = login(&app, &lee, PASSWORD).await.body["mfa_token"].clone();
    let body = json!({ "mfa_token": challenge, "code": codes[0] });
    app.post("/v1/auth/mfa/verify").json(body).send().await.expect(200);
}

#[tokio::test]
async fn who_has_a_lost_device_is_out_with_its_passkey() {
    let app = passkeys::app().await;
    let dana = app.register_verified("acme").await;
    let lost = Device { count: 1, ..device_of(&app, &dana).await };
    let passkey = id_of_passkey(&app, &dana).await;
    let theirs = dana.with(&sign_in(&app, &lost.signed(&options(&app).await)).await.expect(200));
    // They make one of their own there, before the owner notices.
    device_of(&app, &theirs).await;
    let path = format!("/v1/auth/passkeys/{passkey}");
    app.by(&dana.access_token, "DELETE", &path).json(json!({})).send().await.expect(204);
    let me = app.by(&theirs.access_token, "GET", "/v1/auth/me").send().await;
    me.refused(401, "unauthorized");
}

#[tokio::test]
async fn nobody_turns_off_what_they_could_not_turn_on_again() {
    let app = passkeys::app().await;
    let dana = app.register_verified("acme").await;
    device_of(&app, &dana).await;
    let (secret, _) = with_factor(&app, &dana).await;
    let challenge = login(&app, &dana, PASSWORD).await.body["mfa_token"].clone();
    let body = json!({ "mfa_token": challenge, "code": code(&secret, now(&app) + 30) });
    let pair = app.post("/v1/auth/mfa/verify").json(body).send().await.expect(200);
    let by_code = dana.with(&pair);
    let off = async |person: &Person| {
        let call = app.by(&person.access_token, "DELETE", "/v1/auth/mfa/totp");
        call.json(json!({ "password": PASSWORD })).send().await
    };
    off(&by_code).await.refused(409, "conflict");
    // Who has shown the passkey may.
    off(&dana).await.expect(204);
}

#[tokio::test]
async fn a_passkey_is_for_a_verified_address() {
    let app = passkeys::app().await;
    // Somebody who signs up with an address that is not theirs.
    let mallory = app.register("acme").await;
    let ask = app.by(&mallory.access_token, "POST", "/v1/auth/passkeys/options").json(json!({}));
    ask.send().await.refused(409, "conflict");
    app.set_verified(&mallory, true).await;
    let made = new_passkey(&app, &mallory).await;
    app.set_verified(&mallory, false).await;
    add(&app, &mallory, &made).await.refused(409, "conflict");
    app.set_verified(&mallory, true).await;
    add(&app, &mallory, &made).await.expect(201);
}

#[tokio::test]
async fn who_chooses_a_new_password_is_told_of_their_passkeys() {
    let sink = SmtpSink::start();
    let settings = [("server.public_url", LOCALHOST), ("mail.url", &*sink.url())];
    let app = TestApp::start_with(&settings).await;
    let dana = app.register_verified("acme").await;
    let device = Device { count: 1, ..device_of(&app, &dana).await };
    let body = json!({ "email": dana.email });
    app.post("/v1/auth/password/forgot").json(body).send().await.expect(202);
    let token = token_in(&sink.mail(&dana.email, "Reset").await);
    let body = json!({ "token": token, "new_password": "another horse, another battery" });
    app.post("/v1/auth/password/reset").json(body).send().await.expect(204);
    let mail = sink.mail(&dana.email, "Your password was changed").await;
    assert!(mail["text"].as_str().unwrap().contains("go on signing in: phone."), "{mail}");
    let pair = sign_in(&app, &device.signed(&options(&app).await)).await.expect(200);
    let by_passkey = dana.with(&pair);
    // The operator helps who has lost the device.
    let auth = &app.app.auth;
    auth.remove_factors_as_operator(&dana.email).await.unwrap();
    auth.remove_factors_as_operator(&dana.email).await.unwrap_err();
    let device = Device { count: 2, ..device };
    let answer: Answer = sign_in(&app, &device.signed(&options(&app).await)).await;
    answer.refused(401, "invalid_credentials");
    // Whoever has it is out.
    let me = app.by(&by_passkey.access_token, "GET", "/v1/auth/me").send().await;
    me.refused(401, "unauthorized");
    let pair = login(&app, &dana, "another horse, another battery").await.expect(200);
    let key = app.mint(&dana.with(&pair), "log", "admin").await.secret;
    app.events_of(&key, "action=member.passkey_removed", 1).await;
    sink.mail(&dana.email, "Your authenticator and passkeys were taken away").await;
    // What was never confirmed was never on.
    enrol(&app, &dana.with(&pair), json!({})).await.expect(200);
    auth.remove_factors_as_operator(&dana.email).await.unwrap_err();
    app.by(&key, "GET", "/v1/auth/verify").send().await.expect(200);
}
